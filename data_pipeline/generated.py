"""The demo's own data: captioned shapes that move, written as real video files and images.

    a red circle moving left over dark stripes            name.mp4, name.txt, name.json
    a photo of a blue star over a plain light background  name.png, ...

Every choice is a pure function of (seed, index, held-out combinations): clip i does not depend on
how many are made. The attributes lie beside each file as JSON. Shapes are drawn from signed
distances d in pixels and cover a pixel by clip(1/2 - d, 0, 1), so that edges are smooth and slow
motion is visible.

Combinations of shape, colour and motion can be held out, `holdout` being the draw that chooses
them: the others are what a model is trained on, these what it is examined on.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
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

STILL_SHARE = 0.4
HELD_OUT_SHARE = 0.15  # of all combinations of shape, colour and motion
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
STILL = ""  # the motion of an image
SIDES = (16, 20)
RADIUS = (0.33, 0.38)  # of the shorter side; small shapes have further to go, and go faster
TRAVEL = 0.9  # of the way that is left on both sides of a shape
SWELL = 0.3  # of its radius, either way
PATTERNS = ("plain", "gradient", "stripes", "checks")
REQUESTS = "requests.jsonl"
TONES = {"dark": (30, 65), "light": (190, 225)}
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 1


def square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x), abs(y)) - 1


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
class Extent:
    """How many frames a video may have, pixels a side, and how large shapes are: the least and the
    greatest radius, of the shorter side."""

    frames: tuple[int, ...] = (4, 5, 6, 7, 8)
    sides: tuple[int, ...] = SIDES
    radius: tuple[float, float] = RADIUS


SMALL = Extent()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """The ground truth of one clip; `frames` is 1 and `motion` empty for a still image; `radius` is
    in pixels."""

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
    radius: float

    @property
    def caption(self) -> str:
        over = {
            "plain": f"a plain {self.tone} background",
            "gradient": f"a {self.tone} gradient",
        }.get(self.pattern, f"{self.tone} {self.pattern}")
        article = "an" if self.colour[0] in "aeiou" else "a"
        thing = f"{article} {self.colour} {self.shape}"
        moving = f"{thing} {self.motion}" if self.motion else f"a photo of {thing}"
        return f"{moving} over {over}"


def draw(seed: int, index: int, purpose: str) -> float:
    """A number in [0, 1) for one purpose of one clip."""
    return float(keys.uniform(seed, f"generated/{purpose}", np.array([index]))[0])


Combination = tuple[str, str, str]  # shape, colour, motion


@functools.cache
def combinations(holdout: int | None, unseen: bool) -> tuple[Combination, ...]:
    """Those held out by the draw `holdout`, or the others; all, or none, where it is None."""
    every = list(itertools.product(SHAPES, COLOURS, (*MOTIONS, STILL)))
    if holdout is None:
        return () if unseen else tuple(every)
    chance = keys.uniform(holdout, "generated/holdout", np.arange(len(every)))
    out = set(np.argsort(chance, kind="stable")[: round(HELD_OUT_SHARE * len(every))].tolist())
    return tuple(one for i, one in enumerate(every) if (i in out) == unseen)


def scene(
    seed: int,
    index: int,
    *,
    holdout: int | None = None,
    unseen: bool = False,
    extent: Extent = SMALL,
) -> Scene:
    """What clip `index` shows; with `unseen` a combination that is held out, else another."""

    def choose(purpose: str, options):
        options = list(options)
        return options[int(draw(seed, index, purpose) * len(options))]

    still = draw(seed, index, "still") < STILL_SHARE
    allowed = [one for one in combinations(holdout, unseen) if (one[2] == STILL) == still]
    shape, colour, motion = choose("combination", allowed)
    height, width = choose("height", extent.sides), choose("width", extent.sides)
    low, high = extent.radius
    return Scene(
        index=index,
        shape=shape,
        colour=colour,
        motion=motion,
        pattern=choose("pattern", PATTERNS),
        tone=choose("tone", TONES),
        frames=1 if still else choose("frames", extent.frames),
        height=height,
        width=width,
        fps=0 if still else choose("fps", range(6, 13)),
        radius=min(height, width) * (low + (high - low) * draw(seed, index, "radius")),
    )


def render(one: Scene, seed: int, distance: Distance | None = None) -> np.ndarray:
    """uint8 (frames, height, width, 3) of a scene; another `distance` draws another shape."""
    distance = distance or SHAPES[one.shape]
    say = partial(draw, seed, one.index)
    behind = _background(one, seed)
    y, x = np.mgrid[: one.height, : one.width] + 0.5
    dx, dy, swell = MOTIONS.get(one.motion, (0, 0, 0))
    # A path that stays inside: a little less than what is left on both sides of the shape.
    reach = np.array([one.width, one.height]) / 2 - one.radius
    middle = np.array([one.width, one.height]) / 2
    aside = (np.array([say("x"), say("y")]) - 0.5) * reach * (np.array([dx, dy]) == 0)
    colour = np.array(COLOURS[one.colour], np.float64)
    video = np.empty((one.frames, one.height, one.width, 3), np.uint8)
    for frame, along in enumerate(np.linspace(-1, 1, one.frames) if one.frames > 1 else [0.0]):
        centre = middle + aside + TRAVEL * along * reach * np.array([dx, dy])
        size = one.radius * (1 + SWELL * swell * along)
        outside = distance((x - centre[0]) / size, (y - centre[1]) / size) * size
        cover = np.clip(0.5 - outside, 0, 1)[..., None]
        video[frame] = np.rint(behind * (1 - cover) + colour * cover)
    return video


def _background(one: Scene, seed: int) -> np.ndarray:
    """float (height, width, 3): a pattern between two greys of a tone, slightly tinted."""
    say = partial(draw, seed, one.index)
    low, high = TONES[one.tone]
    y, x = np.mgrid[: one.height, : one.width] + 0.5
    angle = 2 * math.pi * say("angle")
    along = x * math.cos(angle) + y * math.sin(angle)
    period = 8 + 6 * say("period")
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


def generate(
    directory: str,
    clips: int,
    seed: int,
    *,
    holdout: int | None = None,
    unseen: bool = False,
    extent: Extent = SMALL,
) -> dict[str, Any]:
    """Write `clips` clips with captions and attributes into a folder.

    `unseen` clips show what `holdout` holds out, and come with `requests.jsonl`: what to ask of a
    model so that it makes a clip of the same kind and size, a line each, seeds counted from 0.

    Returns: `directory`, `clips`, `videos`, `images`.

    Raises:
      DataError: code 2, `unseen` without `holdout`; code 6, the folder cannot be written.
    """
    if unseen and holdout is None:
        raise DataError("--unseen needs --holdout, the draw that says what is held out.", code=2)
    folder = Path(directory)

    def make(index: int) -> Scene:
        one = scene(seed, index, holdout=holdout, unseen=unseen, extent=extent)
        return write(folder, one, seed)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            shown = track(
                pool.map(make, range(clips)),
                "drawing",
                clips,
                console=Console(stderr=True),
                transient=True,
            )
            made = list(shown)
        if unseen:
            lines = [json.dumps(request(one)) + "\n" for one in made]
            (folder / REQUESTS).write_text("".join(lines))
    except OSError as error:
        raise DataError(f"cannot write clips to '{directory}' ({error}).", code=6) from None
    images = sum(one.frames == 1 for one in made)
    return {"directory": directory, "clips": clips, "videos": clips - images, "images": images}


def request(one: Scene) -> dict[str, Any]:
    """What to ask of a model to see this scene."""
    size = {"frames": one.frames, "height": one.height, "width": one.width}
    return {"prompt": one.caption, **size, "fps": one.fps or 8, "seed": one.index}


def write(folder: Path, one: Scene, seed: int) -> Scene:
    """Draw a scene and write it."""
    save(folder, one, render(one, seed))
    return one


def file_name(one: Scene) -> str:
    return f"clip-{one.index:06d}{'.mp4' if one.motion else '.png'}"


def save(folder: Path, one: Scene, video: np.ndarray) -> None:
    """Write a clip, its caption and its attributes."""
    name = folder / file_name(one)
    if one.motion:
        write_mp4(name, video, one.fps)
    else:
        PIL.Image.fromarray(video[0]).save(name)
    name.with_suffix(".txt").write_text(one.caption + "\n")
    name.with_suffix(".json").write_text(json.dumps(dataclasses.asdict(one), sort_keys=True) + "\n")
