"""Latents: what an encoder made of views of clips beforehand, and of what exactly.

They lie in ArrayRecord files, one view a record, and a manifest on the latent grid names the
records: `n_frames`, `height`, `width` are cells, the frame rate is that of the latents, `sha256`
and `bytes` are those of the record. A record is a safetensors file, float16 (t, h, w, c):

    mean, logvar    the moments of the encoder's posterior
    latent          of an encoder that has none

A row of a batch holds them as `moments`, in each cell the mean's channels and then the log
variance's, or as `latent`.

float16, for latents are of the order of 1: three more bits of each number are worth more than
the range of bfloat16. What is beyond its range is found when it is encoded.

Every record and the manifest carry a `Key`. Latents whose key is not the one that is wanted are
refused, never used.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors import SafetensorError

from data_pipeline import manifest
from data_pipeline.blocks import Content
from data_pipeline.errors import BadClip, DataError
from data_pipeline.files import guarded
from data_pipeline.manifest import Manifest
from data_pipeline.places import ANY_SIZE

DTYPE = np.dtype(np.float16)
ABOUT = "about"
LATENT, MOMENTS = "latent", ("mean", "logvar")
AGAIN = "python -m vdm_jax encode"
CAUSES = {
    "content": "of other clips",
    "encoder": "by another encoder",
    "transform": "of other views (laws of size, rate or duration, seed, number)",
}
GRID = ("n_frames", "height", "width")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """SHA-256 of all that latents depend on.

    Attributes:
      content: of the clip's file; in a manifest, of what its clips are.
      encoder: of its architecture and weights.
      transform: of the laws, seed and code that draw the views.
    """

    content: str
    encoder: str
    transform: str

    def differing(self, other: Key) -> list[str]:
        """What is not the same, in words."""
        return [
            said for name, said in CAUSES.items() if getattr(self, name) != getattr(other, name)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents:
    """A manifest of latents that are what they are wanted to be; see `open`."""

    manifest: Manifest
    key: Key
    channels: int
    arrays: tuple[str, ...]

    @classmethod
    def of(cls, found: Manifest, again: str = AGAIN) -> Latents | None:
        """Those of a manifest; None where it is one of clips.

        Raises:
          DataError: what it says of them cannot be read.
        """
        if found.latents is None:
            return None
        try:
            said = json.loads(found.latents)
            key, channels, arrays = Key(**said["key"]), int(said["channels"]), tuple(said["arrays"])
            if arrays not in ((LATENT,), MOMENTS):
                raise ValueError("other arrays")
        except (ValueError, LookupError, TypeError, RecursionError):
            raise DataError(
                f"'{found.folder}' does not say what its latents are of; make them anew: {again}"
            ) from None
        return cls(manifest=found, key=key, channels=channels, arrays=arrays)

    @property
    def content(self) -> Content:
        """What a row of a batch holds of them."""
        many = self.arrays == MOMENTS
        name, numbers = ("moments", 2 * self.channels) if many else (LATENT, self.channels)
        return Content(name=name, numbers=numbers, dtype=DTYPE.name)

    @classmethod
    def open(cls, folder: str, wanted: Key, again: str) -> Latents:
        """The latents in a folder.

        Args:
          again: the command that makes them anew.

        Raises:
          DataError: code 2, there are none; 3, they were made of other clips, by another encoder,
            or of other views.
        """
        found = cls.of(manifest.read(folder), again)
        if found is None:
            raise DataError(f"'{folder}' is a manifest of clips, not of latents.", code=2)
        if differing := wanted.differing(found.key):
            raise DataError(
                f"the latents in '{folder}' are stale: they were made "
                f"{' and '.join(differing)}; make them anew: {again}"
            )
        return found

    def read(self, row: int) -> dict[str, np.ndarray]:
        """The arrays of a row, float16 (t, h, w, channels).

        Raises:
          BadClip: it is no record, or one of other latents than the manifest's.
        """
        record = guarded(self.manifest.place(row), ANY_SIZE, lambda file: file.read())
        if sha256(record).hexdigest() != self.manifest.table["sha256"][row].as_py():
            raise BadClip("changed", "another record than the manifest's")
        arrays, about = unpack(record)
        shape = (*(int(self.manifest.table[n][row].as_py()) for n in GRID), self.channels)
        if sorted(arrays) != sorted(self.arrays):
            raise BadClip("record", f"it holds {', '.join(sorted(arrays))}")
        for name, array in arrays.items():
            if array.shape != shape or array.dtype != DTYPE:
                raise BadClip("size", f"{name} is {array.dtype} {array.shape}, not {shape}")
            if not np.isfinite(array).all():  # one would make the whole step's loss so
                raise BadClip("not_finite", name)
        for name in ("encoder", "transform"):
            if about.get(name) != getattr(self.key, name):
                raise BadClip("stale", f"a record of another {name}")
        return arrays

    def video(self, row: int, frames: int, size: tuple[int, int]) -> np.ndarray:
        """The first `frames` of a row and the middle of `size` (height, width), as rows of batches
        hold them: float16 (frames, height, width, numbers of a cell).

        Raises: BadClip, as `read`.
        """
        arrays = self.read(row)
        whole = np.concatenate([arrays[name] for name in self.arrays], axis=-1)
        top, left = ((have - want) // 2 for have, want in zip(whole.shape[1:3], size, strict=True))
        return whole[:frames, top : top + size[0], left : left + size[1]]


def view_name(clip: str, number: int) -> str:
    """What a view is called: the first as its clip."""
    return f"{clip}@{number}" if number else clip


def viewed(name: str) -> str:
    """The clip that a view is of."""
    clip, _, number = name.rpartition("@")
    return clip if clip and number.isdecimal() else name


def pack(arrays: Mapping[str, np.ndarray], key: Key, view: Mapping[str, Any]) -> bytes:
    """A record; `view` says what it is of.

    Raises:
      BadClip: a number is not finite in float16.
    """
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise BadClip("not_finite", name)
    # One entry: safetensors writes several in any order, and the same latents are the same bytes.
    about = {ABOUT: json.dumps(dataclasses.asdict(key) | {"view": view}, sort_keys=True)}
    kept = {name: np.ascontiguousarray(array, DTYPE) for name, array in arrays.items()}
    return safetensors.numpy.save(kept, metadata=about)


def unpack(record: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, what is said of them: the fields of its key, and its `view`) of a record.

    Raises:
      BadClip: it is none.
    """
    try:
        arrays = safetensors.numpy.load(record)  # checks the header against the bytes there are
        length = int.from_bytes(record[:8], "little")
        header = json.loads(record[8 : 8 + length])
        return arrays, dict(json.loads(header["__metadata__"][ABOUT]))
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadClip("record", str(error)) from error


def write_records(file: Path, records: Iterable[bytes]) -> None:
    """An ArrayRecord file that appears only when it is whole.

    Raises: OSError, it cannot be written.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        os.replace(partial, file)
    except (RuntimeError, ValueError) as error:  # of the writer, about the disk
        raise OSError(str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


def described(key: Key, channels: int, arrays: Iterable[str]) -> str:
    """What a manifest says of its latents."""
    said = {"key": dataclasses.asdict(key), "channels": channels}
    return json.dumps(
        said | {"arrays": sorted(arrays, key=(LATENT, *MOMENTS).index)}, sort_keys=True
    )


def digest(*parts: str | bytes) -> str:
    """SHA-256 of several texts, each hashed by itself first, so that no two lists are alike."""
    found = sha256()
    for part in parts:
        found.update(sha256(part.encode() if isinstance(part, str) else part).digest())
    return found.hexdigest()
