"""What every arm trains on: captioned moving shapes whose lengths vary as those of a real mix do.

Modelled is a mix of ten sizes from 256 x 256 to 1280 x 720, four images in ten examples, and films
of eight durations (5, 9, ... 33 latent frames), in tokens of 16 x 16 pixels. Sides are divided by
32 and a token has 4 x 4 pixels, durations by four and a token has two frames: from 4 to 540 tokens
an example, 73 in the mean. Every choice is a pure function of (seed, index).
"""

from __future__ import annotations

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from data_pipeline import generated
from data_pipeline.index import index

PATCH = (2, 4, 4)
IMAGES = 0.4
FPS = 8
SIZES = (
    (256, 256), (240, 426), (426, 240), (360, 640), (640, 360),
    (512, 512), (480, 640), (480, 854), (854, 480), (720, 1280),
)  # fmt: skip
LAYERS = range(2, 10)  # of tokens in time; an image has one
SEED = 0


def scene(index: int, seed: int = SEED) -> generated.Scene:
    """What clip `index` shows: a scene of the generator at a size of this mix."""
    draw = partial(generated.draw, seed, index)
    own = generated.scene(seed, index)
    height, width = (_side(side) for side in SIZES[int(draw("mix size") * len(SIZES))])
    # As large a part of its own picture.
    radius = own.radius * min(height, width) / min(own.height, own.width)
    size = {"height": height, "width": width, "radius": radius}
    if draw("mix image") < IMAGES:
        return dataclasses.replace(own, motion="", frames=1, fps=0, **size)
    motions = list(generated.MOTIONS)
    layers = LAYERS[int(draw("mix layers") * len(LAYERS))]
    return dataclasses.replace(
        own,
        motion=motions[int(draw("mix motion") * len(motions))],
        frames=layers * PATCH[0],
        fps=FPS,
        **size,
    )


def _side(pixels: int) -> int:
    return PATCH[1] * max(2, round(pixels / 128))


def make(folder: Path, clips: int) -> Path:
    """Clips 0 .. clips - 1 as files, and their manifest, unless they lie there already."""
    manifest = folder / f"mix-{clips}-{_digest()}" / "manifest"
    if (manifest / "clips.parquet").is_file():
        return manifest
    files = manifest.parent / "clips"
    files.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(partial(write, files), range(clips)):
            pass
    index(str(files), str(manifest))
    return manifest


def _digest() -> str:
    """Of what some clips show: another generator makes another mix."""
    found = hashlib.sha256()
    for one in map(scene, range(8)):
        found.update(one.caption.encode() + generated.render(one, SEED).tobytes())
    return found.hexdigest()[:8]


def write(folder: Path, index: int) -> None:
    one = scene(index)
    generated.save(folder, one, generated.render(one, SEED))
