"""What balance is worth: training steps of a packed transformer on two devices, rows as they come
and rows dealt so that both devices have the same attention to do.

    python -m tests.benchmarks.balance [--steps=24] [--tokens=1152] [--rounds=3]

Both orders run in turns, in one compiled program, on the same rows of the mix that `packing` trains
on. A step waits for the slower device; by count it does so by `straggler` over the mean.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.devices import two_cpu_devices

if __name__ == "__main__":  # before JAX starts
    two_cpu_devices()

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipeline.balance import balance, straggler
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.sizes import Native
from tests.benchmarks.packing import mix
from tests.benchmarks.packing.recipe import make_run
from vdm_jax.train.feed import to_device
from vdm_jax.train.program import make_program

ROWS, TEXT_TOKENS, SEGMENTS = 8, 256, 32
DEVICES = 2
Arrays = Mapping[str, np.ndarray]


def costs(arrays: Arrays) -> np.ndarray:
    """(rows,) sums of squared lengths: the attention of each row, of one microbatch."""
    segment = arrays["segment"][0]
    return np.array([np.square(np.bincount(row[row > 0])).sum() for row in segment], float)


def dealt(arrays: Arrays, order: np.ndarray) -> dict[str, np.ndarray]:
    """The rows in this order; each device has a run of them."""
    return {name: leaf[:, order.reshape(-1)] for name, leaf in arrays.items()}


def measure(manifest: Path, tokens: int, steps: int, rounds: int) -> dict[str, dict[str, float]]:
    data = PackedVideo(
        sources=(Source(manifest=str(manifest)),), patch=mix.PATCH, tokens=tokens,
        text_tokens=TEXT_TOKENS, segments=SEGMENTS, rows=ROWS, seed=0, size=Native(),
        holdout=0.1, block=4096,
    )  # fmt: skip
    program = make_program(make_run(data, seed=0))
    state = program.init()
    batches = data.batches()
    come = [next(batches).arrays for _ in range(steps)]
    batches.close()
    straight = np.arange(ROWS).reshape(DEVICES, -1)
    orders = {
        "as they come": [straight for _ in come],
        "balanced": [balance(costs(arrays), DEVICES) for arrays in come],
    }
    fed = {
        name: [
            to_device(dealt(arrays, order), program.batch_sharding)
            for arrays, order in zip(come, mine, strict=True)
        ]
        for name, mine in orders.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in orders}
    for round_ in range(rounds + 1):
        for index in range(steps):
            for name in orders:
                started = time.perf_counter()
                state, metrics = program.step(state, fed[name][index])
                jax.block_until_ready(metrics)
                if round_:  # the first compiles
                    seconds[name].append(time.perf_counter() - started)
    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            "straggler": statistics.mean(
                straggler(costs(arrays), order) for arrays, order in zip(come, mine, strict=True)
            ),
        }
        for name, mine in orders.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=1152)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    manifest = mix.make(Path("data/packing"), 6000)
    found: Any = measure(manifest, options.tokens, options.steps, options.rounds)
    table = Table(title=f"{ROWS} rows of {options.tokens} tokens on {DEVICES} devices")
    for column in ("rows", "median s a step", "slowest / mean, by count"):
        table.add_column(column, justify="left" if column == "rows" else "right")
    for name, one in found.items():
        table.add_row(name, f"{one['seconds']:.3f}", f"{one['straggler']:.3f}")
    come, balanced = (found[name]["seconds"] for name in ("as they come", "balanced"))
    Console(width=80).print(table, f"balanced is {come / balanced:.2f} times as fast", sep="\n")


if __name__ == "__main__":
    main()
