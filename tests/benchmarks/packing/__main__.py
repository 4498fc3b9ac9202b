"""Time to the same held-out loss: packed rows, one example per row, and buckets, at equal memory.

    python -m tests.benchmarks.packing [--mix=generated|MANIFEST] [--seconds=N] [--seeds=3]
                                       [--json=FILE]

Model, objective, optimizer, examples and their order are the same. Each arm has the largest batch
that fits into the memory of the packed step, by the compiler's word, and the best of three learning
rates, found on a seed that is not reported. Arms take turns in one process; held-out loss is that
of the averaged weights, noise fixed, at five noise levels, its time not counted. Curves are made
non-increasing by isotonic regression. The loss aimed at is the worst arm's last one; beside that,
each rival is held against packed alone, at the worse one's last loss. Three seeds of four arms for
120 seconds each took 75 minutes on one busy core, of which 24 were training that is reported.

A bucket is a range of lengths; the ranges are those that pad least, for their number. More of them
fill better and compile longer: of the generated mix 8 have a fill of 84 %, 12 of 91 %, 16 of 94 %.
Every bucket trains at one learning rate, whatever its batch, as rivals do.

Two devices on a CPU, unless XLA_FLAGS says otherwise: what XLA runs on one core at a time then
runs on two, and rows are divided evenly in every arm.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.devices import two_cpu_devices

if __name__ == "__main__":  # before JAX starts
    two_cpu_devices()

import jax
import numpy as np
from rich.console import Console

from data_pipeline.blocks import Capacity, Kind
from data_pipeline.layouts import edges as bucket_edges
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.sizes import Area, Native
from tests.benchmarks.packing import judge, mix, tables
from tests.benchmarks.packing.pool import Pool, collect
from tests.benchmarks.packing.race import PACKED, Arm, Held, Runner, race, warm
from tests.benchmarks.packing.recipe import HEADS, LEARNING_RATE, VALIDATION_ROWS, make_run
from tests.benchmarks.packing.sizing import SLACK, Compiled, compile_step, largest
from vdm_jax.train.meter import CompileCounter
from vdm_jax.train.observe import Validation
from vdm_jax.train.program import Program, make_program

TOKENS, TEXT_TOKENS, SEGMENTS = 576, 128, 16  # of a packed row
HOLDOUT = 0.1
FACTORS = (0.5, 1.0, 2.0)  # of the learning rate
TUNING_SEED, TUNING_SHARE = 99, 0.25
TURN = 5.0  # seconds

console = Console(stderr=True)


def load(options: argparse.Namespace) -> PackedVideo:
    """The packed arm's loader, from which all arms have their examples."""
    generated = options.mix == "generated"
    manifest = mix.make(Path(options.cache), options.clips) if generated else options.mix
    # Films at hand are large and long: their area is drawn within the range of the generated mix.
    size = Native() if generated else Area(low=16 * 16, high=24 * 40)
    return PackedVideo(
        sources=(Source(manifest=str(manifest)),),
        patch=mix.PATCH,
        tokens=TOKENS,
        text_tokens=TEXT_TOKENS,
        segments=SEGMENTS,
        rows=options.rows,
        seed=0,
        size=size,
        fps=None if generated else options.fps,
        holdout=HOLDOUT,
        block=int(options.clips * (1 - HOLDOUT)),
        cache=str(Path(options.cache) / "plans"),
    )


def make_arms(
    program: Program, data: PackedVideo, pool: Pool, rows: int, buckets: list[int]
) -> list[Arm]:
    """Packed at `rows`, then every other arm at what fits into the same memory."""

    @functools.cache  # arms may share a kind; JAX would compile it once, too, and in no time
    def compiled(kind: Kind) -> Compiled:
        found = compile_step(program, kind, HEADS)
        shape = f"{kind.rows} x {kind.capacity.tokens}"
        console.print(f"  {shape}: {found.bytes / 2**20:.1f} MiB, {found.seconds:.1f} s")
        return found

    first = compiled(Kind(data.capacity, rows))
    limit, unit = SLACK * first.bytes, program.row_devices
    lengths, words = pool.examples["tokens"], int(pool.examples["words"].max())

    def fitted(edges: list[int]) -> tuple[Compiled, ...]:
        """The largest step of each length; a length starts where the one before it ended."""
        found: list[Compiled] = []
        density = rows * TOKENS
        for tokens in sorted(edges, reverse=True):
            shape = Capacity(
                patch=data.capacity.patch, tokens=tokens, text_tokens=words + 1, segments=1
            )
            found.append(largest(compiled, shape, limit, density // tokens, unit))
            density = found[-1].kind.slots
        return tuple(reversed(found))

    arms = [Arm(PACKED, (first,)), Arm("padded", fitted([int(lengths.max())]))]
    for count in buckets:
        name = f"{count} buckets"
        arms.append(Arm(name, fitted(bucket_edges(lengths, count))))
    return arms


def tune(
    arms: list[Arm], program: Program, pool: Pool, held: Held, seconds: float, turn: float
) -> tuple[dict[str, float], dict[str, dict[float, float]]]:
    """Of each arm: the factor of the learning rate, and the last loss with each of them."""
    tried: dict[str, dict[float, float]] = {arm.name: {} for arm in arms}
    for factor in FACTORS:
        rates = {arm.name: factor for arm in arms}
        for runner in race(
            arms, program, pool, held, seed=TUNING_SEED, rates=rates, seconds=seconds, turn=turn
        ):
            loss = judge.decreasing([point[1] for point in runner.curve])[-1]
            tried[runner.arm.name][factor] = loss
            console.print(f"  {runner.arm.name} at {factor * LEARNING_RATE:g}: {loss:.4f}")
    return {name: min(losses, key=losses.__getitem__) for name, losses in tried.items()}, tried


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is known after each seed, for JSON and the tables."""
    before = os.getloadavg()
    data = load(options)
    pool = collect(data, Path(options.cache))
    run = make_run(data, seed=0)
    program = make_program(run)
    held = Held(Validation(run, data.validation(VALIDATION_ROWS).arrays))
    lengths = pool.examples["tokens"]
    console.print(
        f"{len(lengths)} examples of {lengths.min()} to {lengths.max()} tokens, "
        f"mean {lengths.mean():.0f}"
    )
    console.print("compiling:")
    arms = make_arms(program, data, pool, options.rows, options.buckets)
    warm(arms, program)
    held.losses(program.init())  # compiles
    console.print("learning rates:")
    brief = max(options.turn, TUNING_SHARE * options.seconds)
    factors, tried = tune(arms, program, pool, held, brief, options.turn)
    known = {
        "mix": options.mix,
        "platform": f"{jax.device_count()} {jax.default_backend()} devices, jax {jax.__version__}",
        "load_before": before,
        "options": vars(options),
        "lengths": {int(n): int((lengths == n).sum()) for n in np.unique(lengths)},
        "fill_by_buckets": {n: _bucket_fill(lengths, n) for n in (1, 2, 4, 8, 12, 16, 32)},
        "learning_rates": {name: factor * LEARNING_RATE for name, factor in factors.items()},
        "tuning": tried,
    }
    races: list[list[Runner]] = []
    for seed in range(options.seeds):
        start = time.perf_counter()
        begun = make_program(dataclasses.replace(run, seed=seed))
        with CompileCounter() as counter:
            races.append(
                race(
                    arms, begun, pool, held, seed=seed, rates=factors, seconds=options.seconds,
                    turn=options.turn,
                )
            )  # fmt: skip
        console.print(f"seed {seed}: {time.perf_counter() - start:.0f} s")
        # Only the seed's own initialisation may be compiled here.
        yield known | summary(races) | {"compiled_while_racing": counter.programs}


def summary(races: list[list[Runner]]) -> dict[str, Any]:
    verdicts = {
        name: [judge.verdict(runners, column) for runners in races]
        for name, column in (("examples", 1), ("tokens", 2))
    }
    by_arm = zip(*races, strict=True)
    return {
        "seeds": list(range(len(races))),
        "load_after": os.getloadavg(),
        "throughput": {mine[0].arm.name: judge.throughput(mine) for mine in by_arm},
        "verdicts": verdicts,
        "medians": {name: judge.medians(ones) for name, ones in verdicts.items()},
        "curves": [{r.arm.name: r.curve for r in runners} for runners in races],
    }


def _bucket_fill(lengths: np.ndarray, count: int) -> float:
    edges = np.array(bucket_edges(lengths, count))
    return float(lengths.sum() / edges[np.searchsorted(edges, lengths)].sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mix", default="generated", help="'generated', or an indexed folder")
    parser.add_argument("--seconds", type=float, default=90, help="of each arm and seed")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--rows", type=int, default=4, help="of a packed step")
    parser.add_argument("--buckets", type=int, nargs="*", default=[12], help="an arm for each")
    parser.add_argument("--turn", type=float, default=TURN, help="seconds")
    parser.add_argument("--clips", type=int, default=6000, help="examples, a tenth held out")
    parser.add_argument("--fps", type=float, default=4, help="of an indexed folder's films")
    parser.add_argument("--cache", default="data/packing", help="for the generated mix and plans")
    parser.add_argument("--json", help="a file for everything that was measured")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for found in measure(options):
        if options.json:  # after each seed: a long run that is cut short has told something
            Path(options.json).write_text(json.dumps(found, indent=1))
    tables.show(found)


if __name__ == "__main__":
    main()
