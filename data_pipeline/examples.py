"""tf.Examples, read without TensorFlow: tensorflow-datasets brings the message's own definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from data_pipeline.errors import BadClip, printable


def features(record: bytes) -> Mapping[str, Any]:
    """Of a serialised tf.Example, by name.

    Raises:
      BadClip: the record is none.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        return tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        raise BadClip("record", str(error)) from error


def values(record: bytes, name: str) -> Sequence[bytes]:
    """What one feature holds, at least one.

    Raises:
      BadClip: the record is no tf.Example, or has no such bytes.
    """
    found = features(record)
    held = found[name].bytes_list.value if name in found else ()
    if not held:
        raise BadClip("record", f"no bytes called {printable(name)}")
    return held
