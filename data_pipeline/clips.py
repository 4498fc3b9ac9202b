"""Which frames of a clip: how many, how far apart, and where they start.

A clip slower than the wanted rate keeps its own: frames are left out, never invented. A clip of
uneven rate is sampled at even times, at its mean rate.
"""

from __future__ import annotations

import numpy as np


def at_rate(
    frames: np.ndarray, native: np.ndarray, wanted: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """(frames, rate) of whole clips sampled at `wanted` frames a second; None is as they are.

    Args:
      frames: how many a clip has; native: its frame rate, 0 for a still image.
    """
    if wanted is None:
        return frames, native
    slower = native > wanted
    span = (frames - 1) / np.where(slower, native, 1)
    # 1e-6: a span of exactly k periods has k + 1 frames, whatever the division rounds to.
    fewer = np.floor(span * wanted + 1e-6).astype(frames.dtype) + 1
    return np.where(slower, fewer, frames), np.where(slower, wanted, native)


def start(kept: np.ndarray, whole: np.ndarray, rate: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Seconds from the clip's first frame to the first one kept, where `kept` of `whole` frames
    at `rate` remain: a whole number of frames, uniform by `draw` in [0, 1)."""
    skipped = np.floor(draw * (whole - kept + 1))
    return skipped / np.where(rate > 0, rate, 1)
