"""Sampled videos as files: an mp4 each, an index of them, and one animated sheet to look at.

Where a stage of a cascade is to make more of them elsewhere, also an array each: an mp4 is not what
was made to the bit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track

from data_pipeline.encode import write_mp4
from vdm_jax.cascade import Cascade
from vdm_jax.config import UserError
from vdm_jax.pipeline import Pipeline
from vdm_jax.requests import Made, Request, Video

CELL = 160  # pixels of one video's longer side on the sheet
LINE, LINES, LETTERS = 11, 3, 28  # of a caption above it: pixels a line, lines, letters a line
CAPTION = LINE * LINES + 2


def write_all(
    pipeline: Pipeline | Cascade,
    requests: Sequence[Request],
    folder: Path,
    *,
    below: Sequence[Video] | None = None,
    arrays: bool = False,
) -> dict[str, Any]:
    """Make every request and write it to `folder`, each file as soon as it is made.

    Args:
      below: the videos of a stage below, of which these are made.
      arrays: write a .npy beside each mp4 too, for `read_all`.

    Returns {'model', 'files', 'sheet', 'failed'}; `failed` are the indices of requests whose video
    has a value that is not finite. They are not written.

    Raises:
      UserError: no videos come out, or the folder cannot be written to (code 6), before anything is
        sampled.
    """
    last = pipeline.stages[-1] if isinstance(pipeline, Cascade) else pipeline
    if not last.stage.makes_videos:
        raise UserError("a prior makes embeddings, no videos; name the run that is told of them.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise UserError(f"cannot write to '{folder}': {error.strerror}.", code=6) from error
    records: list[dict[str, Any]] = []
    failed: list[int] = []
    videos: list[tuple[str, np.ndarray]] = []
    made: Iterator[Made]
    made = pipeline(requests) if isinstance(pipeline, Cascade) else pipeline(requests, below)
    for index, video in track(made, "sampling", len(requests), console=Console(stderr=True)):
        request = requests[index]
        if video is None:
            failed.append(index)
            continue
        path = folder / file_name(index, request)
        about = {"model": pipeline.digest, "config": pipeline.config, "index": index}
        about |= dataclasses.asdict(request)
        write_mp4(path, video, request.fps, metadata=metadata(about))
        if arrays:
            np.save(path.with_suffix(".npy"), video)
        records.append({"file": path.name, **about})
        videos.append((request.prompt, video))
        write_json(folder / "index.json", records)
    sheet = folder / "sheet.webp"
    if videos:
        write_sheet(sheet, videos)
    files = [str(folder / record["file"]) for record in records]
    return {"model": pipeline.digest, "files": files, "sheet": str(sheet), "failed": failed}


def read_all(folder: Path) -> list[tuple[Request, Video]]:
    """What `write_all` wrote there with arrays, in the order of the requests.

    Raises: UserError, nothing is there, or no arrays.
    """
    index = folder / "index.json"
    if not index.is_file():
        raise UserError(f"'{folder}' holds no samples: it has no index.json.")
    fields = [field.name for field in dataclasses.fields(Request)]
    found = []
    for record in sorted(json.loads(index.read_text()), key=lambda record: record["index"]):
        array = (folder / record["file"]).with_suffix(".npy")
        if not array.is_file():
            raise UserError(f"'{array}' is not there; sample that stage again with --arrays.")
        found.append((Request(**{name: record[name] for name in fields}), np.load(array)))
    return found


def file_name(index: int, request: Request) -> str:
    """'003_a-red-circle_8x24x24_s7.mp4'; nothing of a prompt can leave the folder."""
    words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:40] or "empty"
    size = f"{request.frames}x{request.height}x{request.width}"
    return f"{index:03d}_{words}_{size}_s{request.seed}.mp4"


def metadata(about: dict[str, Any]) -> dict[str, str]:
    """Tags that players show, and the whole record as JSON in the comment."""
    return {"title": about["prompt"], "comment": json.dumps(about, sort_keys=True)}


def write_json(path: Path, value: Any) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(partial, path)


def write_sheet(path: Path, videos: Sequence[tuple[str, np.ndarray]], most: int = 24) -> None:
    """One looping animation of up to `most` videos in a grid, each under its prompt."""
    videos = videos[:most]
    columns = min(4, len(videos))
    rows = -(-len(videos) // columns)
    length = max(len(video) for _, video in videos)
    side = CELL + CAPTION
    frames = []
    for time in range(length):
        page = Image.new("RGB", (columns * CELL, rows * side), "white")
        pen = ImageDraw.Draw(page)
        for place, (prompt, video) in enumerate(videos):
            left, top = (place % columns) * CELL, (place // columns) * side
            picture = Image.fromarray(video[time % len(video)])
            scale = CELL / max(picture.size)
            size = [max(1, round(edge * scale)) for edge in picture.size]
            page.paste(picture.resize(size, Image.Resampling.NEAREST), (left, top + CAPTION))
            said = textwrap.wrap(prompt, LETTERS, max_lines=LINES, placeholder=" ...")
            for line, words in enumerate(said):
                pen.text((left + 1, top + line * LINE), words, fill="black", font_size=9)
        frames.append(page)
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=125, loop=0, lossless=True
    )
