"""Planning at scale: how fast, in how much memory, how full and how even; beside grain's packer.

    python -m tests.benchmarks.planning [--rows=1000000] [--tokens=32768] [--json=FILE]

Two mixes of clips, of which a token is 16 x 16 pixels of one (latent) frame: `sizes` is one of ten
resolutions from 256 x 256 to 1280 x 720, four in ten an image, the others of 1, 5, ... 33 frames;
`free` the same with areas between those drawn at will, and aspects up to 1.8. A manifest of so many
rows, a caption of eight words each, lies in an Arrow file that is mapped, as is what a plan keeps.
Each phase is a process of its own on one core:

    measure    hash the names, count the tokens of the captions; done once for a tokenizer
    plan       every block of one epoch: order, draws, sizes, packing, written to files

Times are those of the processor, which a busy machine does not lengthen. Fill, balance and spread
are those of a block of 2^18 examples, on 32 devices of four rows each; of spreads the ratio to that
of batches drawn at random is shown. Grain packs the first examples of the same stream, tokens
alone, with 64 bins.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from data_pipeline import report, text
from data_pipeline.blocks import Block, Capacity
from data_pipeline.collection import gather
from data_pipeline.manifest import SCHEMA, TABLE, TOKENIZER, Manifest
from data_pipeline.plan import Planner, Plans
from data_pipeline.serve import Steps
from data_pipeline.sizes import Native

SIZES = (
    (256, 256), (256, 448), (448, 256), (384, 384), (384, 640),
    (640, 384), (512, 512), (480, 832), (832, 480), (720, 1280),
)  # fmt: skip
IMAGES, FRAMES = 0.4, range(1, 34, 4)
LENGTHS = (8192, 32768, 131072)
DEVICES, EACH = 32, 4
BLOCK = 1 << 18
AT_ONCE = 1 << 18  # rows of the manifest that are made together
WORDS = [
    "a", "red", "blue", "dark", "small", "old", "wet", "quiet", "dog", "car", "woman", "river",
    "street", "horse", "bird", "boat", "child", "tree", "runs", "stands", "turns", "falls", "moves",
    "sings", "flies", "over", "under", "near", "behind", "the", "hill", "bridge", "house", "snow",
]  # fmt: skip

console = Console(stderr=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the manifest")
    parser.add_argument("--tokens", type=int, default=32768, help="of a row, for speed and memory")
    parser.add_argument("--grain", type=int, default=20_000, help="examples that grain packs")
    parser.add_argument("--json", help="a file for everything that was measured")
    parser.add_argument("--write", metavar="DIR", help="only write the manifest, to report on")
    options = parser.parse_args()
    if options.write:
        write_manifest(Path(options.write), options.rows)
        return
    folder = Path(tempfile.mkdtemp(prefix="planning-"))
    try:
        found = measure(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))
    show(found)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    console.print(f"writing a manifest of {options.rows:,} rows")
    apart(write, folder / "sizes", "sizes", options.rows)
    speed = {}
    for phase in (measure_text, plan_epoch):
        speed[phase.__name__] = apart(phase, folder / "sizes", options.tokens)
        console.print(f"{phase.__name__}: {speed[phase.__name__]}")
    packing = []
    for mix in ("sizes", "free"):
        small = folder / f"block-{mix}"
        apart(write, small, mix, BLOCK)
        for tokens in LENGTHS:
            packing.append({"mix": mix} | apart(pack, small, tokens, options.grain))
            console.print(str(packing[-1]))
    return {"rows": options.rows, "tokens": options.tokens, "speed": speed, "packing": packing}


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """`work(*arguments)` in a new process on one core."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # the tokenizer's
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_alone) as pool:
        return pool.submit(work, *arguments).result()


def _alone() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class Watch:
    """Seconds by the clock and of the processor, and the most MiB in memory: of the process's own,
    looked at twenty times a second, and with the pages of mapped files, which can be let go."""

    def __init__(self) -> None:
        self.clock, self.cpu = time.perf_counter(), time.process_time()
        self.own, self.done = 0, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self.done.wait(0.05):
            found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
            self.own = max(self.own, int(found[1]) if found else 0)

    def read(self, rows: int) -> dict[str, float]:
        cpu = time.process_time() - self.cpu
        self.done.set()
        return {
            "seconds": time.perf_counter() - self.clock,
            "cpu_seconds": cpu,
            "microseconds_per_row": 1e6 * cpu / rows,
            "own_mebibytes": self.own / 1024,
            "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def write(folder: Path, mix: str, rows: int) -> None:
    """A manifest's table as an Arrow file, and a tokenizer."""
    folder.mkdir(parents=True)
    first = next(synthetic(mix, min(rows, 2000)))
    captions = first["captions"].combine_chunks().flatten().to_pylist()
    text.train(captions, folder / TOKENIZER)
    with pa.ipc.new_file(str(folder / "clips.arrow"), first.schema) as out:
        for table in synthetic(mix, rows):
            out.write_table(table)


def write_manifest(folder: Path, rows: int) -> None:
    """The same rows as a manifest, with every column."""
    write(folder, "sizes", rows)
    table = pa.ipc.open_file(pa.memory_map(str(folder / "clips.arrow"))).read_all()
    absent = [field for field in SCHEMA if field.name not in table.schema.names]
    for field in absent:
        table = table.append_column(field, pa.nulls(rows, field.type))
    pq.write_table(table.select(SCHEMA.names).cast(SCHEMA), folder / TABLE)
    (folder / "clips.arrow").unlink()


def synthetic(mix: str, rows: int) -> Iterator[pa.Table]:
    """The columns that a plan is made of, some rows at a time."""
    for start in range(0, rows, AT_ONCE):
        count = min(AT_ONCE, rows - start)
        rng = np.random.default_rng((0, start))
        height, width = (np.array(side) for side in zip(*SIZES, strict=True))
        chosen = rng.integers(0, len(SIZES), count)
        height, width = height[chosen], width[chosen]
        if mix == "free":
            area = np.exp(rng.uniform(*np.log([256 * 256, 720 * 1280]), count))
            aspect = np.exp(rng.uniform(-0.6, 0.6, count))
            height, width = np.rint((area * aspect) ** 0.5), np.rint((area / aspect) ** 0.5)
        still = rng.random(count) < IMAGES
        frames = np.where(still, 1, rng.choice(FRAMES, count))
        number = pa.array(np.arange(start, start + count)).cast(pa.string())
        name = pc.utf8_lpad(number, 9, "0")
        words = [
            pa.array(WORDS).take(pa.array(rng.integers(0, len(WORDS), count))) for _ in range(8)
        ]
        said = pc.binary_join_element_wise(*words, " ")
        rate = np.where(still, 0, 24)
        yield pa.table(
            {
                "clip_id": name,
                "uri": pc.binary_join_element_wise(name, "mp4", "."),
                "still": still,
                "start_s": np.zeros(count),
                "end_s": frames / 24,
                "fps_num": rate,
                "fps_den": np.ones(count, np.int64),
                "height": height.astype(np.int32),
                "width": width.astype(np.int32),
                "n_frames": frames.astype(np.int32),
                "captions": pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), said),
                "caption_weights": pa.nulls(count, pa.list_(pa.float32())),
                "bytes": np.full(count, 1 << 20),
            }
        )


def planner_of(folder: Path, tokens: int) -> Planner:
    table = pa.ipc.open_file(pa.memory_map(str(folder / "clips.arrow"))).read_all()
    found = Manifest(table, folder, folder)
    clips = gather(found, text.Tokenizer(found.tokenizer), folder)
    return Planner(
        sources=(clips,), train=(np.arange(len(clips), dtype=np.uint32),), weights=(1.0,), seed=0,
        capacity=Capacity(
            patch=(1, 16, 16), tokens=tokens, text_tokens=max(256, tokens // 16), segments=64
        ),
        rows=DEVICES * EACH, block=min(BLOCK, len(clips)), size=Native(),
    )  # fmt: skip


def measure_text(folder: Path, tokens: int) -> dict[str, float]:
    watch = Watch()
    rows = len(planner_of(folder, tokens).sources[0])
    return watch.read(rows)


def plan_epoch(folder: Path, tokens: int) -> dict[str, float]:
    """Every block of an epoch, written to a file each, as a run does; the files are removed."""
    watch = Watch()
    planner = planner_of(folder, tokens)
    rows = len(planner.sources[0])
    for k in range(-(-rows // planner.block)):
        Plans(planner, folder / "plans").block(k)
        shutil.rmtree(folder / "plans")
    return watch.read(rows)


@dataclasses.dataclass(frozen=True)
class One:
    """A block that is asked for again and again."""

    made: Block

    def block(self, k: int) -> Block:
        return self.made


def pack(folder: Path, tokens: int, grain_examples: int) -> dict[str, float]:
    """How full and even the rows of one block are, and how full grain's."""
    planner = planner_of(folder, tokens)
    watch = Watch()
    block = planner.make(0)
    cost = watch.read(planner.block)["microseconds_per_row"]
    steps = Steps(One(block), 0, planner.kinds)
    # Without the last step, which has empty rows: a block is an eightieth of ten million clips.
    look = report.look_at(steps, steps.in_first_block() - 1)
    judged = report.judge(look, DEVICES)
    spread = judged["spread"]
    arrived = planner.arrive(0, grain_examples)["tokens"]
    return {
        "tokens": tokens,
        "fill": judged["fill"],
        "fill_of_the_block": float(block.examples["tokens"].sum() / (tokens * len(block))),
        "examples_per_row": judged["examples_per_row"],
        "microseconds_per_example": cost,
        "straggler": judged["straggler_ratio"],
        "straggler_unbalanced": judged["straggler_unbalanced"],
        "images_to_random": spread["images"] / spread["images_at_random"],
        "work_to_random": spread["work"] / spread["work_at_random"],
    } | grains(arrived, tokens)


def grains(lengths: np.ndarray, tokens: int) -> dict[str, float]:
    """Grain's own best-fit packer on these lengths, of one byte a token."""
    examples = [{"tokens": np.ones(length, np.uint8)} for length in lengths]
    watch = Watch()
    rows = grain.experimental.BestFitPackIterDataset(
        grain.MapDataset.source(examples).to_iter_dataset(),
        length_struct={"tokens": tokens},
        num_packing_bins=64,
        shuffle_bins=False,
    )
    count = sum(1 for _ in rows)
    return {
        "grain_fill": float(lengths.sum() / (count * tokens)),
        "grain_microseconds_per_example": watch.read(len(lengths))["microseconds_per_row"],
    }


def show(found: dict[str, Any]) -> None:
    out = Console(width=130)
    table = Table(title=f"{found['rows']:,} rows, packed into rows of {found['tokens']:,} tokens")
    for name in ("phase", "seconds", "of the processor", "us a row", "MiB", "with mapped files"):
        table.add_column(name, justify="right")
    for name, one in found["speed"].items():
        numbers = (f"{one[part]:.1f}" for part in ("seconds", "cpu_seconds"))
        cost = f"{one['microseconds_per_row']:.1f}"
        memory = (f"{one[part]:,.0f}" for part in ("own_mebibytes", "mebibytes"))
        table.add_row(name, *numbers, cost, *memory)
    out.print(table)
    table = Table(title=f"one block; {DEVICES} devices of {EACH} rows")
    columns = (
        "mix", "tokens", "fill", "grain's", "examples a row", "us each", "grain's", "straggler",
        "unbalanced", "images", "work",
    )  # fmt: skip
    for name in columns:
        table.add_column(name, justify="right")
    for one in found["packing"]:
        table.add_row(
            one["mix"], f"{one['tokens']:,}", f"{one['fill']:.2%}", f"{one['grain_fill']:.2%}",
            f"{one['examples_per_row']:.2f}", f"{one['microseconds_per_example']:.1f}",
            f"{one['grain_microseconds_per_example']:.0f}", f"{one['straggler']:.3f}",
            f"{one['straggler_unbalanced']:.2f}", f"{one['images_to_random']:.2f}",
            f"{one['work_to_random']:.2f}",
        )  # fmt: skip
    out.print(table)


if __name__ == "__main__":
    main()
