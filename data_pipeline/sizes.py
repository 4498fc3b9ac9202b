"""Which size and how many frames: laws of scale, whole patches, and the token budget of a row.

A law gives each example a scale. Its sides are then scaled alike, rounded to pixels, and the
middle is cropped to whole patches: nothing is stretched, and less than one patch is cut off.
An example of more tokens than a row has is, in this order,

    trimmed    to as many frames as fit, where one layer of its patches fits,
    shrunk     until one layer fits,
    dropped    where it is so thin that not even that helps.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, Protocol

import numpy as np

TRIMMED, SHRUNK, DROPPED = 1, 2, 4  # bits of `Fitted.changed`


class SizeLaw(Protocol):
    def scale(self, height: np.ndarray, width: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Factor for both sides of each clip; `draw` is uniform in [0, 1), one per example."""

    def problems(self) -> list[str]:
        """What is wrong with the law's own numbers, one sentence each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Native:
    """Every clip at its own size."""

    def scale(self, height: np.ndarray, width: np.ndarray, draw: np.ndarray) -> np.ndarray:
        return np.ones(len(height))

    def problems(self) -> list[str]:
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Area:
    """An area in pixels drawn between `low` and `high`, uniform in its logarithm.

    A clip smaller than `high` is drawn up to its own area only, so that nothing is enlarged
    beyond `low` (NaViT, arXiv:2307.06304, section 2.2, samples sizes likewise).
    """

    low: float
    high: float

    def scale(self, height: np.ndarray, width: np.ndarray, draw: np.ndarray) -> np.ndarray:
        own = height.astype(np.float64) * width
        top = np.clip(own, self.low, self.high)
        return np.sqrt(self.low * (top / self.low) ** draw / own)

    def problems(self) -> list[str]:
        if math.isfinite(self.high) and 0 < self.low <= self.high:
            return []
        return [
            f"size is an area between {self.low} and {self.high}; it needs 0 < low <= high, "
            "finite, in pixels."
        ]


class Fitted(NamedTuple):
    """Leaves (n,), or (n, 2) for (height, width); a dropped example has no tokens."""

    frames: np.ndarray
    resized: np.ndarray
    size: np.ndarray
    grid: np.ndarray  # (n, 3)
    tokens: np.ndarray
    changed: np.ndarray


def fit(
    frames: np.ndarray,
    height: np.ndarray,
    width: np.ndarray,
    scale: np.ndarray,
    patch: tuple[int, int, int],
    tokens: int,
) -> Fitted:
    """Sizes in whole patches that cost at most `tokens` each; see the module's docstring."""
    own = np.stack([height, width], axis=1).astype(np.float64)
    scale = scale.astype(np.float64)
    resized, cells = _layer(own, scale, patch)
    shrunk = cells.prod(axis=1) > tokens
    for _ in range(64):
        over = cells.prod(axis=1) > tokens
        if not over.any():
            break
        # The square root lands on the budget but for rounding; 1 % less each time ends that.
        ratio = tokens / cells.prod(axis=1)
        scale = np.where(over, scale * np.minimum(np.sqrt(ratio), 0.99), scale)
        resized, cells = _layer(own, scale, patch)
    layer = cells.prod(axis=1)
    dropped = layer > tokens
    room = patch[0] * (tokens // np.where(dropped, 1, layer))
    kept = np.where(dropped, 0, np.minimum(frames, room))
    grid = np.concatenate([-(-kept // patch[0])[:, None], cells], axis=1)
    trimmed = ~dropped & (kept < frames)
    changed = trimmed * TRIMMED + (shrunk & ~dropped) * SHRUNK + dropped * DROPPED
    return Fitted(kept, resized, cells * patch[1:], grid, grid.prod(axis=1), changed)


def _layer(
    own: np.ndarray, scale: np.ndarray, patch: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(resized sides in pixels, cells) of one layer: at least one patch, aspect kept."""
    sides = np.array(patch[1:])
    scale = np.maximum(scale, (sides / own).max(axis=1))
    resized = np.maximum(np.rint(own * scale[:, None]).astype(np.int64), sides)
    return resized, resized // sides
