"""Pictures and films whose motion, light and text are known, and rows of a manifest for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from data_pipeline.index import index
from data_pipeline.manifest import Manifest, read

RATE = 24


def texture(height: int, width: int, seed: int, grain: float = 8.0) -> np.ndarray:
    """float32 (h w): smooth noise about grey, its blots of `grain` pixels."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), grain)
    return np.clip(128 + 45 * (noise - noise.mean()) / noise.std(), 0, 255)


def pan(
    speed: float,
    *,
    angle: float = 0.5,
    frames: int = 37,
    rate: int = RATE,
    size: tuple[int, int] = (96, 160),
    seed: int = 0,
) -> np.ndarray:
    """uint8 (t h w 3): a texture that moves by `speed` shorter sides per second, to the right and
    downwards for an `angle` between 0 and a quarter turn."""
    height, width = size
    side, reach = min(size), int(abs(speed) * min(size) * frames / rate) + 8
    whole = texture(height + 2 * reach, width + 2 * reach, seed, grain=side / 16)
    shown = []
    for t in range(frames):
        step = speed * side * t / rate
        # What is seen goes right when the window goes left.
        x = reach + width / 2 - step * np.cos(angle)
        y = reach + height / 2 - step * np.sin(angle)
        shown.append(cv2.getRectSubPix(whole, (width, height), (x, y)))
    return colours(np.stack(shown))


def colours(grey: np.ndarray) -> np.ndarray:
    """(... h w) -> uint8 (... h w 3)."""
    return np.repeat(np.round(grey).astype(np.uint8)[..., None], 3, axis=-1)


def still_clip(picture: np.ndarray, frames: int = 24) -> np.ndarray:
    return np.repeat(picture[None], frames, axis=0)


def write_on(
    picture: np.ndarray,
    text: str,
    *,
    size: int,
    at: tuple[int, int] = (40, 60),
    ink: int = 255,
    alpha: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 (... h w 3) with text on it, bool (h w) the text's boxes, line by line)."""
    height, width = picture.shape[-3:-1]
    mask = PIL.Image.new("L", (width, height), 0)
    draw, font = PIL.ImageDraw.Draw(mask), PIL.ImageFont.load_default(size)
    boxes = np.zeros((height, width), bool)
    for number, line in enumerate(text.splitlines()):
        place = at[0], at[1] + int(1.4 * size) * number
        draw.text(place, line, fill=255, font=font)
        left, top, right, bottom = map(int, draw.textbbox(place, line, font=font))
        boxes[top:bottom, left:right] = True
    share = alpha * np.asarray(mask, np.float32)[..., None] / 255
    return np.round(picture * (1 - share) + ink * share).astype(np.uint8), boxes


def row(video: np.ndarray, rate: int = RATE, **more: Any) -> Mapping[str, Any]:
    """What a manifest says of a film."""
    frames, height, width = video.shape[:3]
    known = {"clip_id": "a", "uri": "a.mp4", "still": False, "source": "s", "captions": []}
    size = {"height": height, "width": width, "n_frames": frames, "bytes": None}
    time = {"start_s": 0.0, "end_s": frames / rate, "fps_num": rate, "fps_den": 1}
    return known | size | time | more


def indexed(folder: Path) -> Manifest:
    """The manifest of `folder/in`, made in `folder/manifest`."""
    index(str(folder / "in"), str(folder / "manifest"), threads=1)
    return read(folder / "manifest")
