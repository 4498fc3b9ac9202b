"""How fast the picture moves, by optical flow or by the codec's own vectors.

The unit is the shorter side per second, so that size, frame rate and measurer do not matter: at 0.5
what is seen travels half the height of a landscape picture in a second.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import IO, Any, ClassVar

import cv2
import numpy as np
from av.video.frame import PictureType

from data_pipeline.curation.stage import COARSE, AtRate, Found, Row
from data_pipeline.decode import open_video, whole_frames
from data_pipeline.files import Limits, guarded
from data_pipeline.places import Place

FLOW = dict(pyr_scale=0.5, levels=3, winsize=15, iterations=3, poly_n=5, poly_sigma=1.2, flags=0)
LEAST = 8  # pixels of a side that Farneback's neighbourhoods need


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """`motion` by Farneback's dense flow between frames half a second apart, of 16 pixels at the
    shorter side: the mean length over places and times (Stable Video Diffusion, appendix C).

    So small, half a second's motion is a few pixels, which the method needs. What moves by more
    than a quarter of the shorter side from frame to frame is measured too small.
    """

    sees: AtRate = COARSE
    finds: ClassVar[tuple[str, ...]] = ("motion",)

    def __call__(self, shown: np.ndarray, row: Row) -> Found:
        side = min(shown.shape[1:3])
        if len(shown) < 2 or side < LEAST:
            return {"motion": None}
        return {"motion": float(np.mean(speeds(grey(shown))) / side * self.sees.view(row).rate)}


def grey(shown: np.ndarray) -> np.ndarray:
    """uint8 (t h w): the luma of uint8 (t h w 3)."""
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in shown])


def speeds(video: np.ndarray) -> np.ndarray:
    """float (t-1 h w), pixels per frame, of uint8 (t h w)."""
    return np.linalg.norm(flows(video), axis=-1)


def flows(video: np.ndarray) -> np.ndarray:
    """float32 (t-1 h w 2): where each pixel of a frame goes, (x, y) pixels, until the next one."""
    pairs = itertools.pairwise(video)
    return np.stack([cv2.calcOpticalFlowFarneback(a, b, None, **FLOW) for a, b in pairs])  # type: ignore[call-overload]


@dataclasses.dataclass(frozen=True)
class Vectors:
    """float64 (p,): of each frame that is predicted from the past alone, the mean length of its
    blocks' motion vectors over the time since the frame they point to, in shorter sides per second.

    Vectors are taken to point to the frame before which is no B frame's, as nearly all do. Empty
    where the codec exports none: FFmpeg does for H.264 and the older MPEGs only.
    """

    def take(self, place: Place, row: Row) -> np.ndarray:
        if row["still"]:
            return np.zeros(0)
        limits = Limits()
        found = guarded(place, limits, lambda file: self._lengths(file, row, limits))
        return np.array([length for length in found if np.isfinite(length)])

    def _lengths(self, file: IO[bytes], row: Row, limits: Limits) -> list[float]:
        found, last = [], None
        with open_video(file, limits) as (container, stream):
            stream.codec_context.options |= {"flags2": "+export_mvs"}
            begin = round(row["start_s"] / stream.time_base)
            container.seek(begin, stream=stream, backward=True)
            for now, frame in whole_frames(container, stream):
                if now >= row["end_s"]:
                    break
                kind = frame.pict_type
                if kind == PictureType.P and last is not None and last >= row["start_s"]:
                    found.append(_length(frame) / (now - last) / min(frame.height, frame.width))
                if kind in (PictureType.I, PictureType.P):
                    last = now
        return found

    def problems(self) -> list[str]:
        return []


def _length(frame: Any) -> float:
    """Mean length in pixels of a frame's motion vectors, by the area of their blocks; nan: none."""
    vectors = frame.side_data.get("MOTION_VECTORS")
    if vectors is None:
        return np.nan
    one = vectors.to_ndarray()
    length = np.hypot(one["motion_x"], one["motion_y"]) / one["motion_scale"]
    return float(np.average(length, weights=one["w"].astype(float) * one["h"]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecMotion:
    """`motion` by the vectors that the encoder chose. They cost a decoding and no arithmetic, and
    know no fastest speed; they are the encoder's and tell how it saved bits, not what moved."""

    sees: Vectors = Vectors()
    finds: ClassVar[tuple[str, ...]] = ("motion",)

    def __call__(self, shown: np.ndarray, row: Row) -> Found:
        return {"motion": float(shown.mean()) if len(shown) else None}
