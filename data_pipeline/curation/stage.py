"""What a stage is, and which frames of a clip it may ask for.

Stages that ask for the same frames are shown one decoding of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from data_pipeline.decode import View, decode
from data_pipeline.places import Place

MARK = "mark"  # what is found of a clip that is no score: bytes
LONGEST = 16
Row = Mapping[str, Any]  # of a manifest
Found = Mapping[str, float | bytes | None]  # scores by name, and `MARK`; None: cannot be measured


class Sampling(Protocol):
    """What of a clip is looked at; two that are equal see the same."""

    def take(self, place: Place, row: Row) -> np.ndarray:
        """Raises: BadClip, the file cannot be read, and why."""

    def problems(self) -> list[str]:
        """What is wrong with its settings, a sentence each."""


class Stage(Protocol):
    """What it finds depends on what it is shown of a clip, and on the clip's row, alone."""

    @property
    def sees(self) -> Sampling: ...

    @property
    def finds(self) -> tuple[str, ...]:
        """Names of scores of the manifest, or `MARK`."""

    def __call__(self, shown: np.ndarray, row: Row) -> Found:
        """Raises: BadClip, nobody should train on this clip, and why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtRate:
    """uint8 (t h w 3): frames at `fps` from the first on, the shorter side of `side` pixels.

    A slower clip is seen at its own rate, a smaller one at its own size, and one too short for two
    frames by its first and last. Of a clip with more than `most` such frames those in its middle
    are seen.
    """

    fps: float
    side: int
    most: int = 256

    def take(self, place: Place, row: Row) -> np.ndarray:
        return decode(place, self.view(row), still=row["still"])

    def view(self, row: Row) -> View:
        span = seconds(row)
        if not span:
            return _view(row, self.side, 1, 0.0)
        rate = min(self.fps, row["fps_num"] / row["fps_den"])
        # 1e-6: a span of exactly k periods has k + 1 frames, whatever the division rounds to.
        frames = math.floor(span * rate + 1e-6) + 1
        if frames == 1:
            return _view(row, self.side, 2, 1 / span)
        skipped = max(0, frames - self.most) // 2
        return _view(row, self.side, min(frames, self.most), rate, skipped / rate)

    def problems(self) -> list[str]:
        return _wrong(self, fps=0, side=0, most=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """uint8 (t h w 3): `frames` frames from the first to the last, evenly spread over the clip, or
    as many as there are; the shorter side of `side` pixels, or as many as there are."""

    frames: int
    side: int

    def take(self, place: Place, row: Row) -> np.ndarray:
        return decode(place, self.view(row), still=row["still"])

    def view(self, row: Row) -> View:
        span, frames = seconds(row), min(self.frames, row["n_frames"])
        if not span or frames == 1:
            return _view(row, self.side, 1, 0.0)
        return _view(row, self.side, frames, (frames - 1) / span)

    def problems(self) -> list[str]:
        return _wrong(self, frames=0, side=0)


# What the stages of this package see: two decodings of a clip.
COARSE = AtRate(fps=2.0, side=16)
FINE = Spread(frames=8, side=360)


def seconds(row: Row) -> float:
    """From the first frame to the last; 0 where there is but one."""
    return (row["n_frames"] - 1) * row["fps_den"] / row["fps_num"] if row["fps_num"] else 0.0


def _view(row: Row, side: int, frames: int, rate: float, offset: float = 0.0) -> View:
    stored = row["height"], row["width"]
    size = small(stored, side)
    return View(
        first=row["start_s"],
        end=row["end_s"] if row["fps_num"] else math.inf,
        offset=offset,
        rate=rate,
        frames=frames,
        stored=stored,
        resized=size,
        size=size,
        bytes=row["bytes"],
    )


def small(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) of a picture whose shorter side is shrunk to `side` pixels, or further where
    the longer one would have more than `LONGEST` times as many."""
    scale = min(1.0, side / min(size), LONGEST * side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _wrong(sampling: Sampling, **above: int) -> list[str]:
    return [
        f"{type(sampling).__name__}.{name} is {value}; it must be above {least}."
        for name, least in above.items()
        if not (value := getattr(sampling, name)) > least
    ]
