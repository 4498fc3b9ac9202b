"""Does a clip bear the mark that the clips of its source have in common?

What stays put in one clip may be a still camera's view; what stays put in many clips of one source
is a watermark, a logo or a letterbox. Half transparent, it changes with what is behind it, but its
edges do not (Dekel et al. 2017):

    1. e(p), in the plane       a clip's edge at p: the median over its frames of the gradient of
                                luma, e / max(|e|, FAINT), so that strong edges count alike
    2. m(p) = mean of e(p)      over clips of a source. Where they are anyone's they cancel, and |m|
                                falls with the root of the number of clips; on a mark it is near 1
    3. the mark                 all p where |m(p)| > ALIKE; none, if these are fewer than SMALLEST
    4. a clip's score           mean over the mark of e(p) . m(p) / |m(p)|: 1 bears it, about 0 not

Some clips of each source are looked at first, to learn its mark; then all are scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.curation.motion import grey
from data_pipeline.curation.stage import FINE, MARK, Found, Row, Spread

SIDE, STEP = 180, 16  # pixels: the shorter side, and what the longer one is a multiple of
WIDEST = 4.0
FAINT = 3.0  # grey levels per pixel
ALIKE = 0.6
SMALLEST = 64  # pixels: a share of 0.0011 of a 16 : 9 picture
LEAST = 24  # clips: of fewer, chance agrees on too many pixels
Shape = tuple[int, int]  # of the canvas that all clips of a source and a shape are laid on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edges:
    """`MARK`: the edges of (1), int8 (h w 2), 127 is 1."""

    sees: Spread
    finds: ClassVar[tuple[str, ...]] = (MARK,)

    def __call__(self, shown: np.ndarray, row: Row) -> Found:
        return {MARK: packed(edges(shown, canvas(row["height"], row["width"])))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marked:
    """`watermark`: the score of (4); 0 where the source has no mark, None where it has too few
    clips to tell.

    Attributes:
      marks: {(source, shape of the canvas): m / |m| on the mark, else 0}, as `packed`; empty where
        the source has none.
    """

    sees: Spread
    marks: Mapping[tuple[str, Shape], bytes]
    finds: ClassVar[tuple[str, ...]] = ("watermark",)

    def __call__(self, shown: np.ndarray, row: Row) -> Found:
        shape = canvas(row["height"], row["width"])
        mark = self.marks.get((row["source"] or "", shape))
        if mark is None:
            return {"watermark": None}
        if not mark:
            return {"watermark": 0.0}
        direction = unpacked(mark, shape)
        on = direction.any(axis=-1)
        agreement = (edges(shown, shape)[on] * direction[on]).sum(axis=-1).mean()
        return {"watermark": float(np.clip(agreement, 0, 1))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watermark:
    """Learns the marks: `sample` says from which clips, `stage` is what is found of those."""

    sees: Spread = FINE
    clips: int = 64

    @property
    def stage(self) -> Edges:
        return Edges(sees=self.sees)

    def sample(self, table: pa.Table) -> pa.Table:
        """`clips` rows, spread over the table, of each source and shape that has enough."""
        chosen = [
            rows[np.linspace(0, len(rows) - 1, min(self.clips, len(rows))).round().astype(int)]
            for rows in _groups(table).values()
            if len(rows) >= LEAST
        ]
        return table.take(pa.array(np.sort(np.concatenate([np.zeros(0, int), *chosen]))))

    def learn(self, table: pa.Table, found: Sequence[bytes | None]) -> Marked:
        """What is scored by, from the edges found of a sample's rows."""
        marks = {}
        for (source, shape), rows in _groups(table).items():
            some = [unpacked(mark, shape) for row in rows if (mark := found[row]) is not None]
            if len(some) >= LEAST:
                marks[source, shape] = common(some)
        return Marked(sees=self.sees, marks=marks)

    def problems(self) -> list[str]:
        if self.clips >= LEAST:
            return []
        return [f"Watermark.clips is {self.clips}; a mark is seen on {LEAST} clips or more."]


def canvas(height: int, width: int) -> Shape:
    """(height, width) that a clip is laid on; beyond 1 : WIDEST it is squeezed."""
    ratio = min(max(height, width) / min(height, width), WIDEST)
    longer = max(SIDE, STEP * round(ratio * SIDE / STEP))
    return (longer, SIDE) if height > width else (SIDE, longer)


def edges(shown: np.ndarray, shape: Shape) -> np.ndarray:
    """float32 (h w 2): (1) of uint8 (t h w 3)."""
    slopes = []
    for picture in grey(shown):
        laid = cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA)
        # Sobel's weights add up to 8 times the difference of neighbours.
        pair = [cv2.Sobel(laid, cv2.CV_32F, *axis, ksize=3) / 8 for axis in ((1, 0), (0, 1))]
        slopes.append(np.stack(pair, axis=-1))
    still = np.median(slopes, axis=0)
    return still / np.maximum(np.linalg.norm(still, axis=-1, keepdims=True), FAINT)


def common(some: Sequence[np.ndarray]) -> bytes:
    """The mark of (3), packed, of (h w 2) edges each; empty: there is none."""
    mean = np.mean(some, axis=0)
    length = np.linalg.norm(mean, axis=-1, keepdims=True)
    on = length > ALIKE
    if on.sum() < SMALLEST:
        return b""
    return packed(np.where(on, mean / np.maximum(length, ALIKE), 0))


def packed(field: np.ndarray) -> bytes:
    return np.round(127 * field).astype(np.int8).tobytes()


def unpacked(field: bytes, shape: Shape) -> np.ndarray:
    return np.frombuffer(field, np.int8).reshape(*shape, 2).astype(np.float32) / 127


def _groups(table: pa.Table) -> dict[tuple[str, Shape], np.ndarray]:
    """The rows of each source and shape, rising."""
    sources = pc.fill_null(table["source"], "").combine_chunks().dictionary_encode()
    names = sources.dictionary.to_pylist()
    sizes = (table[side].to_numpy().astype(np.int64) for side in ("height", "width"))
    kinds, place = np.unique(
        np.stack([sources.indices.to_numpy(), *sizes]), axis=1, return_inverse=True
    )
    order = np.argsort(place.reshape(-1), kind="stable")
    counts = np.bincount(place.reshape(-1), minlength=kinds.shape[1])
    found: dict[tuple[str, Shape], list[np.ndarray]] = {}
    for (code, height, width), count, end in zip(kinds.T, counts, counts.cumsum(), strict=True):
        shape = canvas(int(height), int(width))
        found.setdefault((names[code], shape), []).append(order[end - count : end])
    return {key: np.sort(np.concatenate(rows)) for key, rows in found.items()}
