"""Models as a user brings them: functions that a chain names."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

seen: list[int] = []  # clips of each call


def redness(frames: Sequence[np.ndarray], captions: Sequence[str]) -> list[float]:
    """The mean of the red channel, 0 to 1."""
    seen.append(len(frames))
    assert all(one.dtype == np.uint8 and one.shape[-1] == 3 for one in frames)
    return [float(one[..., 0].mean() / 255) for one in frames]


def likeness(frames: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """1 where a caption that names red stands under a clip that is red, else 0; nan: no caption."""
    red = np.array([one[..., 0].mean() > one[..., 2].mean() for one in frames])
    said = np.array(["red" in caption for caption in captions])
    return np.where([bool(one) for one in captions], red & said, np.nan)


def too_few(frames: Sequence[np.ndarray], captions: Sequence[str]) -> list[float]:
    return [1.0]


def fails(frames: Sequence[np.ndarray], captions: Sequence[str]) -> list[float]:
    raise MemoryError("no room on the device")


def dies(frames: Sequence[np.ndarray], captions: Sequence[str]) -> list[float]:
    """Kills its process where a clip is called so; what else there is scores 0.5."""
    if any("deadly" in caption for caption in captions):
        os.kill(os.getpid(), signal.SIGKILL)
    return [0.5] * len(frames)


not_a_function = 3


def waits(frames: Sequence[np.ndarray], captions: Sequence[str]) -> list[float]:
    """At a clip that is called patient, as long as the file that $WAIT names is there."""
    while any("patient" in caption for caption in captions) and Path(os.environ["WAIT"]).exists():
        time.sleep(0.02)
    return redness(frames, captions)
