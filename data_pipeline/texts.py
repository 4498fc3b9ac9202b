"""Text features: what a frozen text encoder made of captions beforehand, and of what exactly.

They lie in the folder `texts` of a manifest, each distinct caption once: ArrayRecord files, and
`captions.parquet`, sorted by hash, which says of each caption

    caption   SHA-256 of the clean caption
    uri       its record, from this folder on; null where a feature is not finite in float16
    words     how many of its ids have a feature: the encoder's length may cut it

A record is a safetensors file: `features` float16 (words, width), one vector for each id that the
manifest's tokenizer gives, so a plan counts the same words with features and without. An empty
caption has none: a model has a vector of its own for no text.

The manifest and every record carry a `Key`: the captions, the encoder, and the tokenizer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import storage
from data_pipeline.errors import BadClip, DataError
from data_pipeline.files import guarded
from data_pipeline.latents import AGAIN, DTYPE, Key, unpack
from data_pipeline.manifest import Manifest
from data_pipeline.places import ANY_SIZE, Place
from data_pipeline.text import Tokenizer, clean

FOLDER, TABLE, FEATURES = "texts", "captions.parquet", "features"
SCHEMA = pa.schema([("caption", pa.binary(32)), ("uri", pa.string()), ("words", pa.int32())])
CAUSES = {
    "content": "of other captions",
    "encoder": "by another encoder",
    "transform": "with another tokenizer",
}
EMPTY, MISSING = -1, -2  # in place of a row: a caption that needs none, and one that has none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """The text features of a manifest; `root` is the folder of the manifest."""

    root: str
    key: Key
    width: int

    @classmethod
    def of(cls, found: Manifest) -> Texts | None:
        """Those of a manifest; None where it has none.

        Raises:
          DataError: what it says of them cannot be read.
        """
        if found.texts is None:
            return None
        try:
            said = json.loads(found.texts)
            return cls(root=found.folder, key=Key(**said["key"]), width=int(said["width"]))
        except (ValueError, LookupError, TypeError, RecursionError):
            raise DataError(
                f"'{found.folder}' does not say what its text features are of; make them anew: "
                f"{AGAIN}"
            ) from None

    @property
    def folder(self) -> str:
        return storage.join(self.root, FOLDER)

    @cached_property
    def table(self) -> pa.Table:
        """Raises: DataError, there is none or it is not ours."""
        file = storage.join(self.folder, TABLE)
        try:
            return pq.read_table(pa.BufferReader(storage.read(file))).cast(SCHEMA)
        except (OSError, ValueError) as error:  # Arrow's are ValueErrors
            raise DataError(
                f"'{file}' cannot be read ({str(error).splitlines()[0]}); make it anew: {AGAIN}"
            ) from None

    def rows(self, captions: Sequence[str]) -> np.ndarray:
        """int32 (captions,): the row of each in `table`, `EMPTY`, or `MISSING`."""
        wanted = np.array([named(caption) for caption in captions], "S32")
        if not len(self._sorted):
            return np.where(wanted == named(""), EMPTY, MISSING).astype(np.int32)
        place = np.searchsorted(self._sorted, wanted).clip(max=len(self._sorted) - 1)
        found = np.where(self._sorted[place] == wanted, place, MISSING)
        return np.where(wanted == named(""), EMPTY, found).astype(np.int32)

    def read(self, row: int, caption: str) -> np.ndarray:
        """The features of a caption, float16 (words, width), by its row (see `rows`).

        Raises:
          BadClip: it is no record of this caption, encoder and tokenizer, or not finite.
        """
        if row == EMPTY:
            return np.zeros((0, self.width), DTYPE)
        uri, words = (self.table[name][row].as_py() for name in ("uri", "words"))
        if uri is None:
            raise BadClip("not_finite", FEATURES)
        record = guarded(Place(self.folder, uri), ANY_SIZE, lambda file: file.read())
        arrays, about = unpack(record)
        key = dataclasses.replace(self.key, content=named(caption).hex())
        for name, value in dataclasses.asdict(key).items():
            if about.get(name) != value:
                raise BadClip("stale", f"features of another {name}")
        features, shape = arrays.get(FEATURES), (words, self.width)
        if features is None or features.shape != shape or features.dtype != DTYPE:
            raise BadClip("size", f"features are not float16 {shape}")
        if not np.isfinite(features).all():
            raise BadClip("not_finite", FEATURES)
        return features

    @cached_property
    def _sorted(self) -> np.ndarray:
        return np.array(self.table["caption"].to_pylist(), "S32")


def named(caption: str) -> bytes:
    """The hash that a caption is known by; what its tokenizer does not see makes no difference."""
    return sha256(clean(caption).encode()).digest()


def distinct(tables: Iterable[pa.Table]) -> dict[bytes, str]:
    """{hash: clean caption} of all captions of clips that are not empty, sorted by hash."""
    found: dict[bytes, str] = {}
    for table in tables:
        for chunk in table["captions"].chunks:
            for caption in chunk.flatten().unique().to_pylist():
                found[named(caption or "")] = clean(caption or "")
    found.pop(named(""), None)
    return dict(sorted(found.items()))


def described(key: Key, width: int) -> str:
    """What a manifest says of its text features."""
    return json.dumps({"key": dataclasses.asdict(key), "width": width}, sort_keys=True)


def text_problems(manifests: Sequence[Manifest], tokenizer: Tokenizer) -> list[str]:
    """What does not go together in the text features of sources, one sentence each.

    Raises: DataError, a manifest does not say what its features are of.
    """
    held = [Texts.of(one) for one in manifests]
    kinds = {one and (one.key.encoder, one.key.transform, one.width) for one in held}
    if len(kinds) > 1:
        return [
            "sources have text features of several encoders, or none; encode all of them alike."
        ]
    return [
        stale(one.root, ["transform"])
        for one in held
        if one and one.key.transform != tokenizer.digest
    ]


def caption_problems(sources: Iterable[Any]) -> list[str]:
    """Of the captions of `Clips`, whether each has features."""
    missing = {
        clips.texts.root: int(np.sum(clips.text_rows == MISSING))
        for clips in sources
        if clips.texts is not None
    }
    return [
        f"{count} captions in '{root}' have no text features; make them anew: {AGAIN}"
        for root, count in missing.items()
        if count
    ]


def stale(folder: str, causes: Iterable[str], again: str = AGAIN) -> str:
    """That features were made of something else, and how to make them anew."""
    said = " and ".join(CAUSES[cause] for cause in causes)
    return (
        f"the text features in '{folder}' are stale: they were made {said}; make them anew: {again}"
    )
