"""The clips of all sources as columns: what a plan is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipeline import keys, manifest
from data_pipeline.order import held_out
from data_pipeline.text import Tokenizer


@dataclasses.dataclass(frozen=True)
class Clips:
    """One source; leaves (clips,), captions flat with `starts` (clips + 1,) into them."""

    manifest: manifest.Manifest
    names: Sequence[str]
    id: np.ndarray  # (clips, 2) uint64: the first and second 8 bytes of SHA-256 of the name
    first: np.ndarray  # seconds of presentation time in the file: the first frame
    end: np.ndarray  # and the first one behind the last
    frames: np.ndarray
    rate: np.ndarray  # frames a second; 0 for a still image
    still: np.ndarray  # an image file, not a film of one frame
    height: np.ndarray
    width: np.ndarray
    bytes: np.ndarray
    captions: Sequence[str]
    starts: np.ndarray
    words: np.ndarray  # (captions,) tokens of each

    def __len__(self) -> int:
        return len(self.names)


def gather(found: manifest.Manifest, tokenizer: Tokenizer) -> Clips:
    """The columns of one manifest, its captions measured by `tokenizer`."""
    names = found.table["clip_id"].to_pylist()
    lists = [captions or [] for captions in found.table["captions"].to_pylist()]
    captions = [caption or "" for inside in lists for caption in inside]
    return Clips(
        manifest=found,
        names=names,
        id=np.array([keys.identity(name) for name in names], np.uint64).reshape(-1, 2),
        first=found.column("start_s"),
        end=np.where(found.column("fps_num") > 0, found.column("end_s"), np.inf),
        frames=found.column("n_frames").astype(np.int64),
        rate=found.column("fps_num") / found.column("fps_den"),
        still=found.column("still"),
        height=found.column("height").astype(np.int64),
        width=found.column("width").astype(np.int64),
        bytes=found.column("bytes"),
        captions=captions,
        starts=np.cumsum([0, *map(len, lists)]),
        words=np.array(tokenizer.lengths(captions), np.int64),
    )


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
    return [np.flatnonzero(~mask) for mask in chosen], [np.flatnonzero(mask) for mask in chosen]
