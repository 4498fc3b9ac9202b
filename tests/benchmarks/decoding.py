"""How fast clips are decoded, as a share of bare PyAV on the same frames with as many threads.

    python -m tests.benchmarks.decoding [--clips=48] [--frames=48] [--height=360] [--threads=2]
                                        [--steps=4] [--rounds=3] [--json]

A loader's plan says which frames of which files are wanted, and at which size. They are decoded by

    bare       the least code that does it with PyAV: no limit, no check, nothing caught
    here       `decode` on threads of this process
    workers    `decode` on threads, each with a decoder in a process of its own
    loader     whole batches of rows from `PackedVideo`, with either

in turn, `rounds` times; each is judged by its fastest round, which other programs disturbed least.
Ratios of one run can be compared, and seconds of two machines cannot.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from rich.console import Console
from rich.table import Table

from data_pipeline.decode import View, decode, read_view
from data_pipeline.encode import write_mp4
from data_pipeline.index import index
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.sizes import Area
from data_pipeline.workers import Decoder, InProcess, Workers

Wanted = tuple[Path, View]
AHEAD = 6  # steps that are not timed: the loader decodes four ahead of the one that is taken
EXACT = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


def make_clips(folder: Path, count: int, frames: int, height: int) -> Path:
    """A manifest of films in 16:9 whose picture moves, with some grain."""
    width = 2 * round(height * 8 / 9)
    rng = np.random.default_rng(0)
    (folder / "clips").mkdir(parents=True)
    ground = rng.integers(0, 256, (height // 8 + frames, width // 8, 3), np.uint8)
    large = np.repeat(np.repeat(ground, 8, axis=0), 8, axis=1)
    for number in range(count):
        video = np.stack([large[4 * t : 4 * t + height, :width] for t in range(frames)])
        grain = rng.integers(-6, 7, (frames, *video.shape[1:3], 1))
        shown = np.clip(video + grain, 0, 255).astype(np.uint8)
        write_mp4(folder / "clips" / f"{number}.mp4", shown, 24, crf=23)
    index(str(folder / "clips"), str(folder / "manifest"))
    return folder / "manifest"


def make_loader(manifest: Path, options: argparse.Namespace, decoder: Decoder) -> PackedVideo:
    return PackedVideo(
        sources=(Source(manifest=str(manifest)),),
        patch=(2, 8, 8),
        tokens=2048,
        text_tokens=128,
        segments=16,
        rows=4,
        seed=0,
        size=Area(low=96 * 96, high=160 * 160),
        fps=12.0,
        block=256,
        threads=options.threads,
        memory_mib=0,
        decoder=decoder,
    )


def wanted_by(data: PackedVideo, steps: range) -> list[Wanted]:
    """What these steps decode."""
    found: list[Wanted] = []

    def note(path: Path, view: View, *, still: bool) -> np.ndarray:
        found.append((path, view))
        return np.zeros((view.frames, *view.size, 3), np.uint8)

    reader = dataclasses.replace(data._reader, decode=note)
    for step in steps:
        for row in data.rows_of_step(step):
            reader.read(row, data.capacity)
    return found


def bare(path: Path, view: View) -> np.ndarray:
    """The frames nearest to the view's times, resized and cropped, by PyAV alone."""
    out = np.empty((view.frames, *view.size, 3), np.uint8)
    scaler = VideoReformatter()  # for all of a clip: setting one up takes longer than to scale
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if view.offset > 0:
            container.seek(round(view.times[0] / stream.time_base), stream=stream)
        index, before = 0, None
        for frame in container.decode(stream):
            while index < view.frames and frame.time >= view.times[index] - 1e-3:
                early = before and view.times[index] - before.time < frame.time - view.times[index]
                height, width = view.resized
                nearest = before if early else frame
                shown = scaler.reformat(nearest, width, height, "rgb24", interpolation=EXACT)
                out[index] = view.crop(shown.to_ndarray())
                index += 1
            if index == view.frames:
                break
            before = frame
    return out


def timed(work: Callable[[Wanted], Any], wanted: Sequence[Wanted], threads: int) -> float:
    """Seconds to do all of it."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        for _ in pool.map(work, wanted):
            pass
        return time.perf_counter() - start


def timed_loader(data: PackedVideo, steps: range) -> float:
    """Seconds for these steps: the ones before have filled what is decoded ahead, so as much is
    decoded meanwhile as is taken."""
    batches = data.batches()
    for _ in range(steps.start):
        next(batches)
    start = time.perf_counter()
    for _ in steps:
        next(batches)
    took = time.perf_counter() - start
    batches.close()
    return took


def measure(manifest: Path, options: argparse.Namespace) -> dict[str, Any]:
    loaders = {"here": InProcess(), "workers": Workers()}
    data = {name: make_loader(manifest, options, how) for name, how in loaders.items()}
    steps = range(AHEAD, AHEAD + options.steps)
    wanted = wanted_by(data["here"], steps)
    run = Workers().start(read_view)
    ways: dict[str, Callable[[Wanted], Any]] = {
        "bare": lambda one: bare(*one),
        "here": lambda one: decode(*one, still=False),
        "workers": lambda one: decode(*one, still=False, run=run),
    }
    for one in wanted[:4]:
        assert all(np.array_equal(way(one), bare(*one)) for way in ways.values())
    took: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            took.setdefault(name, []).append(timed(way, wanted, options.threads))
        for name, loader in data.items():
            seconds = timed_loader(loader, steps)
            took.setdefault(f"loader, {name}", []).append(seconds)
    seconds = {name: min(rounds) for name, rounds in took.items()}
    frames = sum(view.frames for _, view in wanted)
    rows = [
        {
            "way": name,
            "seconds": value,
            "clips_per_second": len(wanted) / value,
            "frames_per_second": frames / value,
            "share": seconds["bare"] / value,
        }
        for name, value in seconds.items()
    ]
    return {"threads": options.threads, "clips": len(wanted), "frames": frames, "ways": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"clips": 48, "frames": 48, "height": 360, "steps": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make = functools.partial(make_clips, Path(folder))
        found = measure(make(options.clips, options.frames, options.height), options)
    if options.json:
        print(json.dumps(found))
        return
    table = Table(
        title=f"{found['clips']} clips, {found['frames']} frames, {found['threads']} threads"
    )
    for column in ("way", "clips/s", "frames/s", "share of bare"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in found["ways"]:
        table.add_row(
            row["way"],
            f"{row['clips_per_second']:.1f}",
            f"{row['frames_per_second']:.0f}",
            f"{row['share']:.2f}",
        )
    Console(width=80).print(table)


if __name__ == "__main__":
    main()
