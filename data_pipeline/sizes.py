"""Which size and how many frames: laws of scale, whole patches, and the token budget of a row.

A law gives each example a scale. Its sides are then scaled alike, rounded to pixels, and the
middle is cropped to whole patches: nothing is stretched, and less than one patch is cut off.

| law | draws | density between its ends |
| --- | --- | --- |
| `Native` | nothing | |
| `Area` | the area | uniform in its logarithm |
| `Side` | the side of a square of the same area | uniform |
| `NormalSide` | the same | normal, mean nearer to the low end |
| `Crop` | nothing | |

`Crop` gives every clip one size, for networks that know no other. None of the others enlarges a
clip beyond `low`: each is its density given a size of at most the clip's own, and a clip smaller
than `low` gets `low`. NaViT (arXiv:2307.06304, sections 2.2 and 3.2) found the side better to draw
than the area, and a normal truncated to [-1, 1] with mean -1/2 better still.

An example of more tokens than a row has is, in this order,

    trimmed    to as many frames as fit, where one layer of its patches fits,
    shrunk     until one layer fits,
    dropped    where it is so thin that not even that helps.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import ndtr, ndtri

from data_pipeline.checks import range_problems, whole

TRIMMED, SHRUNK, DROPPED = 1, 2, 4  # bits of `Fitted.changed`


class SizeLaw(Protocol):
    @property
    def most(self) -> tuple[int, int] | None:
        """Height and width beyond which a clip is cropped, None where it is not."""

    def scale(self, height: np.ndarray, width: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Factor for both sides of each clip; `draw` is uniform in [0, 1), one per example."""

    def problems(self) -> list[str]:
        """What is wrong with the law's own numbers, one sentence each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Native:
    """Every clip at its own size."""

    most = None

    def scale(self, height: np.ndarray, width: np.ndarray, draw: np.ndarray) -> np.ndarray:
        return np.ones(len(height))

    def problems(self) -> list[str]:
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Area:
    """An area in pixels between `low` and `high`, uniform in its logarithm."""

    low: float
    high: float
    most = None

    def scale(self, height: np.ndarray, width: np.ndarray, draw: np.ndarray) -> np.ndarray:
        own = height.astype(np.float64) * width
        top = np.clip(own, self.low, self.high)
        return np.sqrt(self.low * (top / self.low) ** draw / own)

    def problems(self) -> list[str]:
        return range_problems("size is an area", self.low, self.high, "pixels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """The side of a square of the same area, in pixels, uniform between `low` and `high`."""

    low: float
    high: float
    most = None

    def scale(self, height: np.ndarray, width: np.ndarray, draw: np.ndarray) -> np.ndarray:
        own = np.sqrt(height.astype(np.float64) * width)
        top = np.clip(own, self.low, self.high)
        return (self.low + (top - self.low) * draw) / own

    def problems(self) -> list[str]:
        return range_problems("size is a side", self.low, self.high, "pixels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalSide:
    """The side of a square of the same area, in pixels: a normal of `mean` and `std`, truncated to
    [-1, 1], of which -1 is `low` and 1 is `high`."""

    low: float
    high: float
    mean: float = -0.5
    std: float = 1.0
    most = None

    def scale(self, height: np.ndarray, width: np.ndarray, draw: np.ndarray) -> np.ndarray:
        own = np.sqrt(height.astype(np.float64) * width)
        half = (self.high - self.low) / 2
        top = (np.clip(own, self.low, self.high) - self.low) / half - 1
        below, above = (ndtr((end - self.mean) / self.std) for end in (-1.0, top))
        found = self.mean + self.std * ndtri(below + (above - below) * draw)
        return (self.low + (np.clip(found, -1, top) + 1) * half) / own

    def problems(self) -> list[str]:
        found = range_problems("size is a side", self.low, self.high, "pixels")
        if not found and self.low == self.high:
            found.append(f"size is a side of {self.low} alone; NormalSide needs low < high.")
        # Beyond this the density between the ends is too steep for its inverse in doubles.
        if not (0 < self.std <= 100 and abs(self.mean) <= 1 + 6 * self.std):
            found.append(
                f"size has mean {self.mean} and std {self.std}; it needs 0 < std <= 100 and a mean "
                "at most 6 std outside of [-1, 1]."
            )
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crop:
    """Every clip at `height` x `width` pixels: scaled until it covers them, either way, and cut to
    their middle."""

    height: int
    width: int

    @property
    def most(self) -> tuple[int, int]:
        return self.height, self.width

    def scale(self, height: np.ndarray, width: np.ndarray, draw: np.ndarray) -> np.ndarray:
        return np.maximum(self.height / height, self.width / width)

    def problems(self) -> list[str]:
        return [
            f"size has {name} {getattr(self, name)!r}; it must be a whole number of at least 1."
            for name in ("height", "width")
            if not whole(getattr(self, name))
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
    most: tuple[int, int] | None = None,
) -> Fitted:
    """Sizes in whole patches that cost at most `tokens` each; see the module's docstring."""
    own = np.stack([height, width], axis=1).astype(np.float64)
    scale = scale.astype(np.float64)
    resized, cells = _layer(own, scale, patch, most)
    shrunk = cells.prod(axis=1) > tokens
    over = np.flatnonzero(shrunk)
    for _ in range(64):
        if not len(over):
            break
        # The square root lands on the budget but for rounding; 1 % less each time ends that.
        ratio = tokens / cells[over].prod(axis=1)
        scale[over] *= np.minimum(np.sqrt(ratio), 0.99)
        resized[over], cells[over] = _layer(own[over], scale[over], patch, most)
        over = over[cells[over].prod(axis=1) > tokens]
    layer = cells.prod(axis=1)
    dropped = layer > tokens
    room = patch[0] * (tokens // np.where(dropped, 1, layer))
    kept = np.where(dropped, 0, np.minimum(frames, room))
    grid = np.concatenate([-(-kept // patch[0])[:, None], cells], axis=1)
    trimmed = ~dropped & (kept < frames)
    changed = trimmed * TRIMMED + (shrunk & ~dropped) * SHRUNK + dropped * DROPPED
    return Fitted(kept, resized, cells * patch[1:], grid, grid.prod(axis=1), changed)


def _layer(
    own: np.ndarray,
    scale: np.ndarray,
    patch: tuple[int, int, int],
    most: tuple[int, int] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """(resized sides in pixels, cells) of one layer: at least one patch, aspect kept."""
    sides = np.array(patch[1:])
    scale = np.maximum(scale, (sides / own).max(axis=1))
    resized = np.maximum(np.rint(own * scale[:, None]).astype(np.int64), sides)
    seen = resized if most is None else np.minimum(resized, most)
    return resized, seen // sides
