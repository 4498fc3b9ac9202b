"""The clips of all sources as columns: what a plan is made of.

A collection may have ten million clips. What the planner reads of each is an array of small
numbers; names, captions and whatever only a decoder asks for stay in Arrow, and become Python
objects one at a time. What takes long to find, the hash of each name and the number of tokens of
each caption, is kept in files, under the digest of what it was found from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import arrays, keys, manifest
from data_pipeline.errors import DataError, printable
from data_pipeline.latents import Latents, viewed
from data_pipeline.order import held_out
from data_pipeline.text import Tokenizer
from data_pipeline.texts import Texts

AT_ONCE = 1 << 15  # values that are Python objects at the same time


@dataclasses.dataclass(frozen=True)
class Lazy(Sequence):
    """A column that stays in Arrow; `read` makes of one value what is asked for."""

    column: pa.ChunkedArray
    read: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: Any) -> Any:
        return self.read(self.column[int(index)].as_py())


@dataclasses.dataclass(frozen=True)
class Ends(Sequence):
    """The time of the first frame behind each clip; a still image has no end."""

    times: Lazy
    rate: np.ndarray

    def __len__(self) -> int:
        return len(self.rate)

    def __getitem__(self, index: Any) -> Any:
        return self.times[index] if self.rate[index] > 0 else np.inf


@dataclasses.dataclass(frozen=True)
class Clips:
    """One source; leaves (clips,), captions flat with `starts` (clips + 1,) into them."""

    manifest: manifest.Manifest
    names: Sequence[str]
    id: np.ndarray  # (clips, 2) uint64: the first and second 8 bytes of SHA-256 of the name
    first: Sequence[float]  # seconds of presentation time in the file: the first frame
    end: Sequence[float]  # and the first one behind the last
    frames: np.ndarray
    rate: np.ndarray  # frames a second; 0 for a still image
    still: Sequence[bool]  # an image file, not a film of one frame
    height: np.ndarray
    width: np.ndarray
    bytes: Sequence[int]
    captions: Sequence[str]
    starts: np.ndarray
    words: np.ndarray  # (captions,) tokens of each
    # (captions + 1,) sum of the weights of all captions before each; None where all are alike
    weights: np.ndarray | None = None
    # (captions,) row in the table of `texts`; None where the captions have no features
    text_rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def latents(self) -> Latents | None:
        """What the records hold, where the clips were encoded beforehand."""
        return Latents.of(self.manifest)

    @cached_property
    def texts(self) -> Texts | None:
        """What a frozen encoder made of the captions, where it was run beforehand."""
        return Texts.of(self.manifest)

    def caption(self, clip: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """The caption of each clip that `draw` in [0, 1) chooses, by weight; -1: it has none."""
        first, last = self.starts[clip], self.starts[clip + 1]
        if self.weights is None:
            chosen = first + np.floor(draw * (last - first)).astype(np.int64)
        else:
            before, behind = self.weights[first], self.weights[last]
            # Rounding must not reach the end, behind which the next clip's captions begin.
            aim = np.minimum(before + draw * (behind - before), np.nextafter(behind, before))
            chosen = np.searchsorted(self.weights, aim, side="right") - 1
        return np.where(last > first, chosen, -1)


def gather(found: manifest.Manifest, tokenizer: Tokenizer, cache: Path) -> Clips:
    """The columns of one manifest, its captions measured by `tokenizer`.

    Args:
      cache: a folder for what takes long to find; where it cannot be written, nothing is kept.

    Raises:
      DataError: weights of captions that are no weights.
    """
    table = found.table
    rate = found.column("fps_num") / found.column("fps_den")
    lists = table["captions"]
    captions = pa.chunked_array([chunk.flatten() for chunk in lists.chunks], pa.string())
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    names = table["clip_id"]

    def identities() -> np.ndarray:
        ids = np.concatenate([keys.identities(map(str, some)) for some in _batches(names)])
        if found.latents is not None:  # all views of a clip are held out, or none
            clips = [keys.identities(viewed(str(n)) for n in some) for some in _batches(names)]
            ids[:, 1] = np.concatenate(clips)[:, 1]
        return ids

    def words() -> np.ndarray:
        found = [tokenizer.lengths([c or "" for c in some]) for some in _batches(captions)]
        return np.concatenate([np.zeros(0, "<i4"), *found]).astype("<i4")

    texts = Texts.of(found)

    def text_rows() -> np.ndarray:
        rows = [texts.rows([c or "" for c in some]) for some in _batches(captions) if texts]
        return np.concatenate([np.zeros(0, "<i4"), *rows]).astype("<i4")

    kind = "ids" if found.latents is None else "views"
    kept_ids = cache / f"{kind}-{_digest(names)}.npy"
    kept_words = cache / f"words-{_digest(captions, tokenizer.digest)}.npy"
    kept_rows = cache / f"texts-{_digest(captions, repr(texts and texts.key))}.npy"
    return Clips(
        manifest=found,
        names=Lazy(names, str),
        id=_kept(kept_ids, identities, "<u8", (len(names), 2)),
        first=Lazy(table["start_s"], float),
        end=Ends(Lazy(table["end_s"], float), rate),
        frames=found.column("n_frames"),
        rate=rate,
        still=Lazy(table["still"], bool),
        height=found.column("height"),
        width=found.column("width"),
        bytes=Lazy(table["bytes"], int),
        captions=Lazy(captions, lambda caption: caption or ""),
        starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        words=_kept(kept_words, words, "<i4", (len(captions),)),
        weights=_weights(table, lengths),
        text_rows=_kept(kept_rows, text_rows, "<i4", (len(captions),)) if texts else None,
    )


def _kept(
    file: Path, make: Callable[[], np.ndarray], dtype: str, shape: tuple[int, ...]
) -> np.ndarray:
    """The array of a file, which is made where there is none."""
    found = arrays.load(file, np.dtype(dtype), shape)
    if found is None:
        found = make()
        with contextlib.suppress(OSError):  # a folder that is only read: found again next time
            arrays.store(found, file)
    return found


def _batches(column: pa.ChunkedArray) -> Iterator[list[str | None]]:
    for first in range(0, len(column), AT_ONCE):
        yield column.slice(first, AT_ONCE).to_pylist()


def _digest(column: pa.ChunkedArray, *more: str) -> str:
    """Of the text of a column, and of what else decides."""
    found = hashlib.sha256("/".join(more).encode())
    for chunk in column.chunks:
        _, offsets, text = chunk.buffers()
        ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        found.update(np.diff(ends).tobytes())
        found.update(memoryview(text)[ends[0] : ends[-1]] if text else b"")
    return found.hexdigest()[:24]


def _weights(table: pa.Table, lengths: np.ndarray) -> np.ndarray | None:
    """`Clips.weights`; a clip without weights has ones."""
    column = table["caption_weights"]
    if column.null_count == len(column):
        return None
    given = column.is_valid().to_numpy()
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], pa.float32())
    values = pc.fill_null(flat, np.nan).to_numpy()
    owner = np.repeat(np.arange(len(column)), counts)
    total = np.bincount(owner, values, len(column))
    wrong = given & (counts != lengths) | (counts > 0) & ~(total > 0) | ~np.isfinite(total)
    wrong[owner[~(values >= 0)]] = True
    if wrong.any():
        name = printable(table["clip_id"][int(np.argmax(wrong))].as_py())
        raise DataError(
            f"the caption_weights of '{name}' are no weights: there must be one for each caption, "
            "at least 0, and not all of them 0."
        )
    every = np.ones(int(lengths.sum()))
    every[np.repeat(given, lengths)] = values
    return np.concatenate([[0.0], np.cumsum(every)])


def split(sources: Sequence[Clips], fraction: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(training, held out) indices of clips of each source.

    A clip's own hash decides. Where a small collection would hold out nothing though `fraction` is
    above 0, the clip of the least hash is held out: three clips can be validated on, too. A single
    clip is trained on, whatever its hash.
    """
    if sum(map(len, sources)) == 1:
        fraction = 0.0
    chosen = [held_out(clips.id[:, 1], fraction) for clips in sources]
    if fraction > 0 and not any(mask.any() for mask in chosen):
        least = [clips.id[:, 1].min() for clips in sources]
        source = int(np.argmin(least))
        chosen[source][np.argmin(sources[source].id[:, 1])] = True
    return [_places(~mask) for mask in chosen], [_places(mask) for mask in chosen]


def _places(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(mask).astype(np.uint32)
