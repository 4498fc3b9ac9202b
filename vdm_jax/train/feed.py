"""From the loader's dicts of numpy arrays to global carriers on the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.batch import Examples, Packed
from vdm_jax.codecs import Codec
from vdm_jax.cond import Text

EXAMPLE_FIELDS = ("id", "visit", "ordinal", "valid", "grid", "fps")


def to_device(arrays: Mapping[str, np.ndarray], sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """This host's share (microbatches, rows, ...) -> global arrays, rows over the mesh."""
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(leaf))
        for name, leaf in arrays.items()
    }


def to_carrier(
    arrays: Mapping[str, Any], codec: Codec, patch: tuple[int, int, int]
) -> tuple[Packed, dict[str, Any]]:
    """One microbatch -> the packed batch and the raw values of its conditions. Runs inside jit.

    The codec here has no weights: packed rows hold pixels, or latents encoded beforehand.
    """
    segment = arrays["segment"]
    x = codec.encode({}, arrays["patches"])
    batch = Packed(
        x=jnp.where(segment[..., None] > 0, x, 0),
        segment=segment,
        position=arrays["position"],
        raster=arrays["raster"],
        examples=Examples(**{field: arrays[field] for field in EXAMPLE_FIELDS}),
        mask=arrays.get("cells"),
        patch=patch,
    )
    text = Text(
        ids=arrays["text"], segment=arrays["text_segment"], position=arrays["text_position"]
    )
    return batch, {"text": text, "fps": arrays["fps"]}
