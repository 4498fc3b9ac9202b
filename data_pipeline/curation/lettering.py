"""How much of the picture is text: lines of strokes, found without a network.

A letter is a connected patch, darker or lighter than what is around it, with sharp edges and
strokes of nearly one width (Epshtein et al. 2010); text is four of them or more in a row: on one
base line, as high, as thick and as bright as each other. Only level lines are found; letters that
touch, or are less than five pixels high, are not, and leaves may line up by chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_pipeline.curation.motion import grey
from data_pipeline.curation.stage import FINE, Found, Row, Spread

SCALES = (1, 2)  # the picture, and its half: large letters are small ones there
WINDOW, LIFT = 25, 16  # pixels that a patch is compared with, and grey levels it must differ by
EDGE = 60  # grey levels across a letter's edge, in the mean
LEAST, TALLEST = 5, 0.35  # height of a letter: pixels, and share of the picture's
LETTERS = 4  # of a line
LEVEL = 0.12  # of a letter's height that two may be off one base line
BLOCK = 256  # letters compared at once with all: a page of text may have thousands
SQUARE = np.ones((3, 3), np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextArea:
    """`text_area`: the share of the picture inside lines of text, mean over `frames` frames spread
    over those that are seen: first, middle and last (Stable Video Diffusion, appendix C, where a
    network, CRAFT, finds the text)."""

    sees: Spread = FINE
    frames: int = 3
    finds: ClassVar[tuple[str, ...]] = ("text_area",)

    def __call__(self, shown: np.ndarray, row: Row) -> Found:
        few = min(self.frames, len(shown))
        some = shown[np.linspace(0, len(shown) - 1, few).round().astype(int)]
        return {"text_area": float(np.mean([lettered(one).mean() for one in grey(some)]))}


def lettered(picture: np.ndarray) -> np.ndarray:
    """bool (h w): which pixels of a uint8 (h w) picture lie in a line of text."""
    found = np.zeros(picture.shape, bool)
    for scale in SCALES:
        height, width = (max(1, side // scale) for side in picture.shape)
        small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        edges = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, SQUARE)
        for lit in (small, 255 - small):
            patches = cv2.adaptiveThreshold(
                lit, 1, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY, WINDOW, -LIFT
            )
            for left, top, right, bottom in _lines(_letters(patches, small, edges)):
                found[scale * top : scale * bottom, scale * left : scale * right] = True
    return found


@dataclasses.dataclass(frozen=True)
class Letters:
    """Leaves (n,), pixels and grey levels."""

    left: np.ndarray
    top: np.ndarray
    width: np.ndarray
    height: np.ndarray
    stroke: np.ndarray
    tone: np.ndarray

    def __len__(self) -> int:
        return len(self.left)


def _letters(patches: np.ndarray, picture: np.ndarray, edges: np.ndarray) -> Letters:
    """The patches that may be letters."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(patches, connectivity=8)

    def mean(where: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(count,) of `values`, patch by patch, over the pixels `where`."""
        inside = labels[where]
        total = np.bincount(inside, values[where].astype(np.float64), count)
        return total / np.maximum(np.bincount(inside, minlength=count), 1)

    # Along the middle of a stroke the distance to its edge is half its width.
    half = cv2.distanceTransform(patches, cv2.DIST_L2, 3)
    middle = (half >= cv2.dilate(half, SQUARE)) & (patches > 0)
    width_of_stroke = mean(middle, half)
    spread = np.sqrt(np.maximum(mean(middle, half**2) - width_of_stroke**2, 0))
    rim = (patches > 0) & (cv2.erode(patches, SQUARE) == 0)
    left, top, width, height, area = stats.T.astype(np.float64)
    whole = picture.shape
    letter = (
        (height >= LEAST) & (height <= TALLEST * whole[0])
        & (width >= 0.08 * height) & (width <= 2.5 * height)
        & (area > 0.15 * width * height)
        & (spread < 0.5 * width_of_stroke + 0.2)
        & (2 * width_of_stroke < 0.6 * np.maximum(height, width))
        & (mean(rim, edges) > EDGE)
        # What the picture's border cuts is not whole.
        & (left > 0) & (top > 0) & (left + width < whole[1]) & (top + height < whole[0])
    )  # fmt: skip
    letter[0] = False  # what is between them
    tone = mean(patches > 0, picture)
    leaves = (left, top, width, height, 2 * width_of_stroke, tone)
    return Letters(*(leaf[letter] for leaf in leaves))


def _lines(letters: Letters) -> Iterator[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of each row of letters."""
    if len(letters) < LETTERS:
        return
    right, bottom = letters.left + letters.width, letters.top + letters.height
    _, group = connected_components(_beside(letters), directed=False)
    for number in np.flatnonzero(np.bincount(group) >= LETTERS):
        row = group == number
        height = np.median(letters.height[row])
        level = np.abs(bottom[row] - np.median(bottom[row])) <= LEVEL * height + 0.6
        box = letters.left[row].min(), letters.top[row].min(), right[row].max(), bottom[row].max()
        alike = letters.height[row].std() < 0.25 * height
        long = box[2] - box[0] >= 2 * height and box[3] - box[1] <= 2 * height
        if level.mean() >= 0.8 and alike and long:
            yield int(box[0]), int(box[1]), int(box[2]), int(box[3])


def _beside(letters: Letters) -> coo_array:
    """(n, n): which letters follow each other in a line."""
    found = [
        np.argwhere(_follow(letters, slice(first, first + BLOCK))) + np.array([first, 0])
        for first in range(0, len(letters), BLOCK)
    ]
    rows, columns = np.concatenate(found).T
    return coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(letters),) * 2)


def _follow(letters: Letters, some: slice) -> np.ndarray:
    """(some, n): the same, of some letters and all."""

    def both(how: np.ufunc, leaf: np.ndarray) -> np.ndarray:
        return how(leaf[some, None], leaf)

    right, bottom = letters.left + letters.width, letters.top + letters.height
    taller = both(np.maximum, letters.height)
    gap = both(np.maximum, letters.left) - both(np.minimum, right)
    off = np.minimum(abs(both(np.subtract, bottom)), abs(both(np.subtract, letters.top)))
    return (
        (off < LEVEL * taller + 1)
        & (gap < 1.2 * taller) & (gap > -0.3 * taller)
        & (taller < 2.2 * both(np.minimum, letters.height))
        & (both(np.maximum, letters.stroke) < 1.8 * both(np.minimum, letters.stroke))
        & (abs(both(np.subtract, letters.tone)) < 25)
    )  # fmt: skip
