"""Which frames of a clip: how far apart, how many, and where they start.

| law of the rate | frames a second |
| --- | --- |
| `OwnRate` | the clip's own |
| `Rate` | a fixed number |
| `LogRate` | drawn, uniform in its logarithm |
| `Strides` | the clip's own, divided by one of a few whole numbers, each as often |

A clip slower than the wanted rate keeps its own: frames are left out, never invented. A clip of
uneven rate is sampled at even times, at its mean rate.

| law of the duration | |
| --- | --- |
| `Whole` | as long as the clip is, or as a row has room for |
| `LogSeconds` | seconds, uniform in their logarithm; as many whole frames, at least one |
| `LogFrames` | n frames with probability log(1 + 1/n) / log((high + 1) / low), the same in frames |

A duration is drawn given that it is at most the clip's own; a clip shorter than `low` is whole.
Where a row has no room for it, it is trimmed (`sizes.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from data_pipeline.checks import range_problems, real, whole

ROUNDING = 1e-6  # a span of exactly k periods has k + 1 frames, whatever a division rounds to


class RateLaw(Protocol):
    def wanted(self, native: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Frames a second of each clip; `native` is 0 for a still image, `draw` in [0, 1)."""

    def problems(self) -> list[str]:
        """What is wrong with the law's own numbers, one sentence each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnRate:
    """Every clip at its own rate."""

    def wanted(self, native: np.ndarray, draw: np.ndarray) -> np.ndarray:
        return native

    def problems(self) -> list[str]:
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """Every clip at the same rate."""

    fps: float

    def wanted(self, native: np.ndarray, draw: np.ndarray) -> np.ndarray:
        return np.full(len(native), float(self.fps))

    def problems(self) -> list[str]:
        if real(self.fps) and self.fps > 0:
            return []
        return [f"fps is {self.fps!r}; it must be above 0, or None for each clip's own."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogRate:
    """A rate between `low` and `high` frames a second, uniform in its logarithm."""

    low: float
    high: float

    def wanted(self, native: np.ndarray, draw: np.ndarray) -> np.ndarray:
        return self.low * (self.high / self.low) ** draw

    def problems(self) -> list[str]:
        return range_problems("fps is", self.low, self.high, "frames a second")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strides:
    """Every frame, every second one, and so on: one of `choices`, each as often."""

    choices: tuple[int, ...]

    def wanted(self, native: np.ndarray, draw: np.ndarray) -> np.ndarray:
        choices = np.asarray(self.choices)
        return native / choices[(draw * len(choices)).astype(np.int64)]

    def problems(self) -> list[str]:
        if self.choices and all(whole(stride) for stride in self.choices):
            return []
        return [f"fps has the strides {self.choices!r}; they must be whole numbers of at least 1."]


class DurationLaw(Protocol):
    def frames(self, whole: np.ndarray, rate: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """How many of its `whole` frames are wanted of each clip, of `rate` frames a second."""

    def problems(self) -> list[str]:
        """What is wrong with the law's own numbers, one sentence each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    """Every clip as long as it is."""

    def frames(self, whole: np.ndarray, rate: np.ndarray, draw: np.ndarray) -> np.ndarray:
        return whole

    def problems(self) -> list[str]:
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSeconds:
    """Between `low` and `high` seconds, uniform in their logarithm; a frame lasts 1 / rate."""

    low: float
    high: float

    def frames(self, whole: np.ndarray, rate: np.ndarray, draw: np.ndarray) -> np.ndarray:
        own = whole / np.where(rate > 0, rate, 1)
        seconds = self.low * (np.clip(own, self.low, self.high) / self.low) ** draw
        found = np.floor(seconds * rate + ROUNDING).astype(whole.dtype)
        return np.where(own < self.low, whole, np.clip(found, 1, whole))

    def problems(self) -> list[str]:
        return range_problems("duration is", self.low, self.high, "seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogFrames:
    """Between `low` and `high` frames, both included; short ones more often than long ones."""

    low: int
    high: int

    def frames(self, whole: np.ndarray, rate: np.ndarray, draw: np.ndarray) -> np.ndarray:
        top = np.clip(whole, self.low, self.high)
        found = np.floor(self.low * ((top + 1) / self.low) ** draw).astype(whole.dtype)
        return np.minimum(np.minimum(found, top), whole)

    def problems(self) -> list[str]:
        if whole(self.low) and whole(self.high) and self.low <= self.high:
            return []
        return [
            f"duration is between {self.low!r} and {self.high!r} frames; they must be whole "
            "numbers, 1 <= low <= high."
        ]


def at_rate(
    frames: np.ndarray, native: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(frames, rate) of whole clips sampled at `wanted` frames a second, their own if slower.

    Args:
      frames: how many a clip has; native: its frame rate, 0 for a still image.
    """
    slower = native > wanted
    span = (frames - 1) / np.where(slower, native, 1)
    fewer = np.floor(span * wanted + ROUNDING).astype(frames.dtype) + 1
    return np.where(slower, fewer, frames), np.where(slower, wanted, native)


def start(kept: np.ndarray, whole: np.ndarray, rate: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Seconds from the clip's first frame to the first one kept, where `kept` of `whole` frames
    at `rate` remain: a whole number of frames, uniform by `draw` in [0, 1)."""
    skipped = np.floor(draw * (whole - kept + 1))
    return skipped / np.where(rate > 0, rate, 1)


def at_first(kept: np.ndarray, whole: np.ndarray, rate: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """0, in place of `start`: the first latents of a causal codec stand alone, and no others."""
    return np.zeros(len(kept))
