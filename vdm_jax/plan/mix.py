"""Which examples a step holds: those of the manifest's own plan, or of a documented stand-in.

A plan needs lengths: attention costs their squares. Where a config's manifest is not there yet its
data laws (sizes, rates, durations, packing) are applied to a stand-in of `CLIPS` clips: of 100,

    40 images    sides from 256 to 1536 pixels, log-uniform in area
    60 films     240 to 720 lines, 1 to 10 seconds, log-uniform in both, 24 frames a second

in five shapes of picture (16:9, 4:3, 1:1, 3:4, 9:16), with captions of 8 to 200 words, log-uniform.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import manifest, text
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.rows import Arrays, Member, pack

CLIPS = 4096
SHAPES = ((16, 9), (4, 3), (1, 1), (3, 4), (9, 16))
FPS = 24
STAND_IN = "a stand-in mix (40 % images of 256-1536 px, 60 % films of 240-720 lines, 1-10 s)"


@dataclasses.dataclass(frozen=True)
class Mix:
    """The examples of one step, row by row (records of `data_pipeline.blocks.EXAMPLE`)."""

    rows: tuple[np.ndarray, ...]
    source: str

    @property
    def squares(self) -> np.ndarray:
        """(rows,) sum of squared lengths: attention's work."""
        return np.array([float(np.square(row["tokens"].astype(float)).sum()) for row in self.rows])

    @property
    def tokens(self) -> int:
        """Of examples, in the step."""
        return int(sum(row["tokens"].sum() for row in self.rows))

    @property
    def examples(self) -> int:
        return sum(map(len, self.rows))


def mix_of(data: PackedVideo) -> Mix:
    """The first step of a config's data, in its plan's own order."""
    if not data.problems():
        return Mix(tuple(data.rows_of_step()), "the manifest's own plan")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), CLIPS, FPS, data.patch)
        stand_in = dataclasses.replace(
            data,
            sources=(Source(manifest=folder),),
            cache=folder,
            holdout=0.0,
            block=min(data.block, max(1024, 32 * data.rows)),
        )
        wrong = stand_in.problems()
        if wrong:
            raise manifest.DataError(" ".join(wrong), code=2)
        rows = tuple(np.array(row) for row in stand_in.rows_of_step())
    return Mix(rows, STAND_IN)


def write(folder: Path, clips: int, fps: int, patch: tuple[int, int, int]) -> None:
    """The stand-in as a manifest whose clips are nowhere."""
    draw = np.random.default_rng(0)
    still = np.arange(clips) % 5 < 2
    shape = np.array(SHAPES)[draw.integers(len(SHAPES), size=clips)]
    low, high = np.where(still, 256, 240), np.where(still, 1536, 720)
    lines = np.exp(draw.uniform(np.log(low), np.log(high)))
    shorter = np.sqrt(shape.min(1) / shape.max(1)) * lines
    side = np.where(still, shorter, lines)  # images by area, films by their shorter side
    size = np.maximum(16 * np.round(side[:, None] * shape / shape.min(1)[:, None] / 16), patch[1:])
    seconds = np.exp(draw.uniform(0, np.log(10), clips))
    frames = np.where(still, 1, np.maximum(np.round(seconds * fps), patch[0])).astype(int)
    words = np.exp(draw.uniform(np.log(8), np.log(200), clips)).astype(int)
    rows = [
        {
            "clip_id": str(i),
            "uri": f"{i}.mp4",
            "still": bool(still[i]),
            "start_s": 0.0,
            "end_s": float(frames[i] / fps),
            "fps_num": 0 if still[i] else fps,
            "fps_den": 1,
            "width": int(size[i, 0]),
            "height": int(size[i, 1]),
            "n_frames": int(frames[i]),
            "rotation": 0,
            "captions": [" ".join(["a"] * words[i])],
            "bytes": 0,
            "sha256": "",
        }
        for i in range(clips)
    ]
    manifest.write(folder, manifest.table_of(rows), folder)
    text.train(["a"], str(folder / manifest.TOKENIZER))


def arrays(mix: Mix, data: PackedVideo, rows: int) -> Arrays:
    """The first `rows` rows with black videos, as the loader gives them: leaves (rows, ...)."""
    made = [_row(mix.rows[row % len(mix.rows)], data) for row in range(rows)]
    return {name: np.stack([one[name] for one in made]) for name in made[0]}


def _row(examples: np.ndarray, data: PackedVideo) -> Arrays:
    def member(one: Any) -> Member:
        grid = tuple(map(int, one["grid"]))
        size = [cells * side for cells, side in zip(grid, data.patch, strict=True)]
        shown = np.zeros((int(one["frames"]), *size[1:], data.content.numbers), data.content.dtype)
        stay = None if one["tokens"] >= np.prod(grid) else np.arange(one["tokens"])
        return Member(
            video=shown, frames=int(one["frames"]), grid=(grid[0], grid[1], grid[2]),
            text=[1] * int(one["words"]), id=(0, int(one["clip"]) & 0xFFFFFFFF),
            fps=float(one["rate"]), stay=stay,
        )  # fmt: skip

    return pack([member(one) for one in examples], data.capacity)
