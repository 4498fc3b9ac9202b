"""The demo's own data: captioned shapes that move, written as real video files and images.

    a red circle moving left over dark stripes            name.mp4, name.txt, name.json
    a photo of a blue star over a plain light background  name.png, ...

Every choice is a pure function of (seed, index): clip i does not depend on how many are made. The
attributes lie beside each file as JSON. Shapes are drawn from signed distances d in pixels and
cover a pixel by clip(1/2 - d, 0, 1), so that edges are smooth and slow motion is visible.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from rich.console import Console
from rich.progress import track

from data_pipeline import keys
from data_pipeline.encode import write_mp4
from data_pipeline.errors import DataError

STILL_SHARE = 0.2
COLOURS = {
    "red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230),
    "yellow": (240, 220, 40), "orange": (245, 140, 30), "purple": (150, 60, 200),
    "pink": (250, 130, 190), "cyan": (40, 210, 220),
}  # fmt: skip
MOTIONS = {
    "moving left": (-1, 0, 0), "moving right": (1, 0, 0), "moving up": (0, -1, 0),
    "moving down": (0, 1, 0), "growing": (0, 0, 1), "shrinking": (0, 0, -1),
    "staying still": (0, 0, 0),
}  # fmt: skip
PATTERNS = ("plain", "gradient", "stripes", "checks")
TONES = {"dark": (20, 75), "light": (180, 235)}
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 1


def square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x), abs(y)) - 0.85


def triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(y - 0.75, (math.sqrt(3) * abs(x) - y) / 2 - 0.55)


def ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return abs(np.hypot(x, y) - 0.75) - 0.25


def cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    long, short = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
    return np.maximum(long - 1, short - 0.33)


SHAPES: dict[str, Distance] = {
    "circle": circle, "square": square, "triangle": triangle, "ring": ring, "cross": cross,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """The ground truth of one clip; `frames` is 1 and `motion` empty for a still image."""

    index: int
    shape: str
    colour: str
    motion: str
    pattern: str
    tone: str
    frames: int
    height: int
    width: int
    fps: int

    @property
    def caption(self) -> str:
        over = {
            "plain": f"a plain {self.tone} background",
            "gradient": f"a {self.tone} gradient",
        }.get(self.pattern, f"{self.tone} {self.pattern}")
        thing = f"a {self.colour} {self.shape}"
        moving = f"{thing} {self.motion}" if self.motion else f"a photo of {thing}"
        return f"{moving} over {over}"


def draw(seed: int, index: int, purpose: str) -> float:
    """A number in [0, 1) for one purpose of one clip."""
    return float(keys.uniform(seed, f"generated/{purpose}", np.array([index]))[0])


def scene(seed: int, index: int) -> Scene:
    """What clip `index` shows."""

    def choose(purpose: str, options):
        options = list(options)
        return options[int(draw(seed, index, purpose) * len(options))]

    still = draw(seed, index, "still") < STILL_SHARE
    return Scene(
        index=index,
        shape=choose("shape", SHAPES),
        colour=choose("colour", COLOURS),
        motion="" if still else choose("motion", MOTIONS),
        pattern=choose("pattern", PATTERNS),
        tone=choose("tone", TONES),
        frames=1 if still else choose("frames", range(4, 13)),
        height=choose("height", range(16, 25, 4)),
        width=choose("width", range(16, 25, 4)),
        fps=0 if still else choose("fps", range(6, 13)),
    )


def render(one: Scene, seed: int) -> np.ndarray:
    """uint8 (frames, height, width, 3) of a scene."""
    say = partial(draw, seed, one.index)
    behind = _background(one, seed)
    y, x = np.mgrid[: one.height, : one.width] + 0.5
    dx, dy, swell = MOTIONS.get(one.motion, (0, 0, 0))
    small = min(one.height, one.width)
    radius = small * (0.28 + 0.06 * say("radius"))
    # A path that stays inside: a little less than what is left on both sides of the shape.
    reach = np.array([one.width, one.height]) / 2 - radius
    middle = np.array([one.width, one.height]) / 2
    aside = (np.array([say("x"), say("y")]) - 0.5) * 1.2 * reach * (np.array([dx, dy]) == 0)
    colour = np.array(COLOURS[one.colour], np.float64)
    video = np.empty((one.frames, one.height, one.width, 3), np.uint8)
    for frame, along in enumerate(np.linspace(-1, 1, one.frames) if one.frames > 1 else [0.0]):
        centre = middle + aside + 0.8 * along * reach * np.array([dx, dy])
        size = radius * (1 + 0.4 * swell * along)
        distance = SHAPES[one.shape]((x - centre[0]) / size, (y - centre[1]) / size) * size
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        video[frame] = np.rint(behind * (1 - cover) + colour * cover)
    return video


def _background(one: Scene, seed: int) -> np.ndarray:
    """float (height, width, 3): a pattern between two greys of a tone, slightly tinted."""
    say = partial(draw, seed, one.index)
    low, high = TONES[one.tone]
    y, x = np.mgrid[: one.height, : one.width] + 0.5
    angle = 2 * math.pi * say("angle")
    along = x * math.cos(angle) + y * math.sin(angle)
    period = 5 + 5 * say("period")
    if one.pattern == "plain":
        mix = np.full_like(x, say("level"))
    elif one.pattern == "gradient":
        mix = (along - along.min()) / np.ptp(along)
    elif one.pattern == "stripes":
        mix = np.clip(0.5 + period / 4 * np.sin(2 * math.pi * along / period), 0, 1)
    else:
        mix = (x // (period / 2) + y // (period / 2)) % 2
    tint = np.array([say("tint red"), say("tint green"), say("tint blue")]) * 30 - 15
    return np.clip(low + (high - low) * mix[..., None] + tint, 0, 255)


def generate(directory: str, clips: int, seed: int) -> dict[str, Any]:
    """Write `clips` clips with captions and attributes into a folder.

    Returns: `directory`, `clips`, `videos`, `images`.

    Raises:
      DataError: code 6, the folder cannot be written.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = pool.map(partial(write, folder, seed), range(clips))
            shown = track(made, "drawing", clips, console=Console(stderr=True), transient=True)
            images = sum(one.frames == 1 for one in shown)
    except OSError as error:
        raise DataError(f"cannot write clips to '{directory}' ({error}).", code=6) from None
    return {"directory": directory, "clips": clips, "videos": clips - images, "images": images}


def write(folder: Path, seed: int, index: int) -> Scene:
    """Write one clip, its caption and its attributes."""
    one = scene(seed, index)
    video = render(one, seed)
    name = folder / f"clip-{index:06d}"
    if one.motion:
        write_mp4(name.with_suffix(".mp4"), video, one.fps)
    else:
        PIL.Image.fromarray(video[0]).save(name.with_suffix(".png"))
    name.with_suffix(".txt").write_text(one.caption + "\n")
    name.with_suffix(".json").write_text(json.dumps(dataclasses.asdict(one), sort_keys=True) + "\n")
    return one
