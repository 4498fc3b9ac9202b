"""A judge of the demo's videos: which colour, shape and motion a clip shows, by its pixels.

It knows how `generated` draws and nothing of who made the video. Backgrounds are nearly grey,
shapes are not: pixels whose red, green and blue lie far apart give the shape's colour k, those
where they lie close the background's b, and each pixel's cover is its place between the two,

    c(p) = clip((p - b) . (k - b) / |k - b|^2, 0, 1),

from which follow

    colour   the palette's nearest to k, if near enough;
    shape    the template d of greatest overlap o = sum min(c, d) / sum max(c, d) over small changes
             of place and size, averaged over frames, if its outline is near enough: of a shape of
             area A and perimeter P the outlines lie (1 - o) A / P apart in the mean, so that thin
             shapes, of which the same distance takes more, are held to the same;
    motion   least-squares slopes over time of the centroid and of the logarithm of the area.

What passes no threshold is None, and no caption is true of None.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np

from data_pipeline.generated import COLOURS, MOTIONS, SHAPES, STILL

GREY = 45.0  # max - min of red, green, blue: of a background at most 30, of a colour at least 120
LEAST = 60.0  # a clip with no pixel more saturated shows no shape
LUMA = np.array([0.299, 0.587, 0.114])
FAR = 70.0  # in RGB, from the palette
APART = 0.095  # of the radius, in the mean: of blobs 4 in 100 come so near to what they are not
SHIFT = 0.1  # of the shorter side, over the whole clip: less is no motion
GROWTH = 0.5  # of ln(area), over the whole clip: less is no growth
LOOKED_AT = 4  # frames whose shape is measured
RADII = (0.85, 0.92, 1.0, 1.08, 1.15)
PLACES = (-0.6, 0.0, 0.6)  # pixels


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a clip shows; `motion` is '' for a still image."""

    colour: str | None
    shape: str | None
    motion: str | None


def look(video: np.ndarray) -> Seen:
    """Judge uint8 (frames, height, width, 3)."""
    video = video.astype(np.float64)
    saturation = np.ptp(video, axis=-1)
    top = np.quantile(saturation, 0.99)
    behind = saturation < GREY
    if top < LEAST or not behind.any():
        return Seen(None, None, STILL if len(video) == 1 else None)
    colour = video[saturation > 0.8 * top].mean(axis=0)
    ground = video[behind].mean(axis=0)
    cover = np.clip((video - ground) @ (colour - ground) / np.sum((colour - ground) ** 2), 0, 1)
    cover = np.where(behind & (cover < 0.5), 0, cover)  # a pattern's lighter and darker places
    # How much of the contrast is luma, which the codec keeps sharp; colour it keeps at half size.
    luma = LUMA @ (colour - ground) * (colour - ground).sum() / np.sum((colour - ground) ** 2)
    return Seen(_nearest(colour), _shape(cover, float(luma)), _motion(cover))


def _nearest(colour: np.ndarray) -> str | None:
    far = {name: float(np.linalg.norm(colour - rgb)) for name, rgb in COLOURS.items()}
    name = min(far, key=far.__getitem__)
    return name if far[name] < FAR else None


def _shape(cover: np.ndarray, luma: float) -> str | None:
    frames = np.linspace(0, len(cover) - 1, min(LOOKED_AT, len(cover))).round().astype(int)
    overlaps = np.mean([_overlaps(cover[frame], luma) for frame in frames], axis=0)
    best = int(np.argmax(overlaps))
    name = list(SHAPES)[best]
    unit = _units()[name]
    return name if (1 - overlaps[best]) * unit.area / unit.perimeter < APART else None


def _overlaps(cover: np.ndarray, luma: float) -> np.ndarray:
    """(shapes,) the greatest overlap with each template, near where the cover is."""
    y, x = np.mgrid[: cover.shape[0], : cover.shape[1]] + 0.5
    area = cover.sum()
    if area < 1:
        return np.zeros(len(SHAPES))
    middle = np.array([(cover * x).sum(), (cover * y).sum()]) / area
    found = []
    for name, unit in _units().items():
        tried = np.array(list(itertools.product(RADII, PLACES, PLACES)))
        radius = np.sqrt(area / unit.area) * tried[:, 0, None, None]
        across = x - (middle[0] - unit.centroid[0] * radius + tried[:, 1, None, None])
        down = y - (middle[1] - unit.centroid[1] * radius + tried[:, 2, None, None])
        drawn = np.clip(0.5 - SHAPES[name](across / radius, down / radius) * radius, 0, 1)
        drawn = luma * drawn + (1 - luma) * _halved(drawn)
        same = np.minimum(cover, drawn).sum((1, 2)) / np.maximum(cover, drawn).sum((1, 2))
        found.append(same.max())
    return np.array(found)


def _halved(drawn: np.ndarray) -> np.ndarray:
    """(n, height, width) at half the resolution, as yuv420p keeps colour."""
    n, height, width = drawn.shape
    padded = np.pad(drawn, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    small = padded.reshape(n, (height + 1) // 2, 2, (width + 1) // 2, 2).mean((2, 4))
    return small.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]


class Unit(NamedTuple):
    """A shape of radius 1."""

    area: float
    perimeter: float
    centroid: tuple[float, float]


@functools.cache
def _units() -> dict[str, Unit]:
    """Each shape, measured on a fine raster."""
    step, band = 1 / 256, 0.02
    y, x = (np.mgrid[:1024, :1024] + 0.5) * step - 2
    found = {}
    for name, distance in SHAPES.items():
        far = distance(x, y)
        inside, edge = far < 0, abs(far) < band
        # The area of the band along the outline, over its width, which is 2 band / |gradient|.
        steep = np.hypot(*np.gradient(far, step))[edge]
        found[name] = Unit(
            area=float(inside.sum() * step**2),
            perimeter=float(steep.sum() * step**2 / (2 * band)),
            centroid=(float(x[inside].mean()), float(y[inside].mean())),
        )
    return found


def _motion(cover: np.ndarray) -> str | None:
    if len(cover) == 1:
        return STILL
    y, x = np.mgrid[: cover.shape[1], : cover.shape[2]] + 0.5
    area = cover.sum((1, 2))
    if area.min() < 1:
        return None
    paths = np.stack([(cover * x).sum((1, 2)) / area, (cover * y).sum((1, 2)) / area, np.log(area)])
    along = np.linspace(-0.5, 0.5, len(cover))
    shift = paths @ along / (along @ along)  # least squares, over the whole clip
    side = min(cover.shape[1:])
    scaled = np.array([shift[0] / side / SHIFT, shift[1] / side / SHIFT, shift[2] / GROWTH])
    axis = int(np.argmax(abs(scaled)))
    moved = np.zeros(3)
    if abs(scaled[axis]) > 1:
        moved[axis] = np.sign(scaled[axis])
    return next(name for name, way in MOTIONS.items() if tuple(moved) == way)
