"""Forward and backward attention: packed rows by every backend, and the same examples padded.

    python -m tests.benchmarks.attention [--json] [--full]

Times are medians of rounds in which all contestants run in turn, so that a busy machine slows them
alike; what counts is the ratio to dense, which computes all of a row and masks. Rows hold
`SEGMENTS` examples and 5 % padding; `padded` is dense on a row per example, each as long as the
longest of them.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from vdm_jax.kernels import blocks, choose, chunked, dense, kernel
from vdm_jax.kernels.attend import KERNELS

SEGMENTS = 5
ROUNDS = 7
BLOCKS = (32, 64, 128)
NATIVE = {"tpu": "splash", "gpu": "fused"}  # elsewhere they would be interpreted
SHORT = [(1, 256, 4, 32), (4, 256, 4, 32), (4, 512, 4, 32), (2, 1024, 4, 64), (1, 2048, 4, 32)]
FULL = [
    (rows, length, 4, dim)
    for length, rows, dim in itertools.product((128, 192, 256, 512, 1024, 2048), (1, 8), (16, 64))
    if rows * length <= 8192
]


def inputs(rows: int, length: int, heads: int, dim: int) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    group = np.sort(rng.integers(1, SEGMENTS + 1, (rows, length)), axis=1)
    group[:, int(0.95 * length) :] = 0
    q, k, v = (jnp.asarray(rng.normal(size=(rows, length, heads, dim)), jnp.float32) for _ in "qkv")
    return [q, k, v, jnp.asarray(group, jnp.int32)]


def padded(arguments: list[jax.Array]) -> list[jax.Array]:
    """The examples of packed rows, one a row."""
    q, k, v, group = map(np.asarray, arguments)
    cells = [(row, np.flatnonzero(ids == g)) for row, ids in enumerate(group)
             for g in np.unique(ids[ids > 0])]  # fmt: skip
    shape = len(cells), max(len(places) for _, places in cells)
    ids = np.zeros(shape, np.int32)
    moved = [np.zeros((*shape, *x.shape[2:]), np.float32) for x in (q, k, v)]
    for at, (row, places) in enumerate(cells):
        ids[at, : len(places)] = 1
        for new, old in zip(moved, (q, k, v), strict=True):
            new[at, : len(places)] = old[row, places]
    return [*map(jnp.asarray, moved), jnp.asarray(ids)]


def compiled(attend: Callable[..., jax.Array], arguments: list[jax.Array]) -> Callable[[], object]:
    """A call that computes the output and all gradients, and waits for them."""

    def total(q, k, v, group):
        return jnp.square(attend(q, k, v, group, group)).sum()

    step = jax.jit(jax.value_and_grad(total, (0, 1, 2))).lower(*arguments).compile()
    return lambda: jax.block_until_ready(step(*arguments))


def measure(shape: tuple[int, int, int, int]) -> dict[str, object]:
    """Milliseconds of every contestant at (rows, length, heads, head_dim)."""
    arguments = inputs(*shape)
    rows, length, heads, dim = shape
    steps = {
        "dense": compiled(dense.attend, arguments),
        "padded": compiled(dense.attend, padded(arguments)),
    }
    for block in BLOCKS:
        attend = functools.partial(kernel.attend, chunked.Chunked(block))
        steps[f"chunked/{block}"] = compiled(attend, arguments)
    if native := NATIVE.get(jax.default_backend()):
        attend = functools.partial(kernel.attend, KERNELS[native]())
        steps[native] = compiled(attend, arguments)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(ROUNDS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first is warm-up
                taken[name].append(1e3 * (time.perf_counter() - start))
    group = arguments[3]
    pairs = float(blocks.executed(group, group, 64).mean()) / (-(-length // 64)) ** 2
    chosen = choose(jax.default_backend(), rows=rows, queries=length, keys=length, heads=heads)
    return dict(
        rows=rows, length=length, heads=heads, head_dim=dim, pairs=pairs, chosen=chosen,
        milliseconds={name: statistics.median(times) for name, times in taken.items()},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    parser.add_argument("--full", action="store_true", help="all sizes, minutes")
    options = parser.parse_args()
    found = [measure(shape) for shape in (FULL if options.full else SHORT)]
    if options.json:
        print(json.dumps({"platform": jax.default_backend(), "results": found}))
        return
    table = Table(title="forward and backward, milliseconds (times faster than dense)")
    for name in ("rows", "length", "head_dim", "pairs", "chosen", *found[0]["milliseconds"]):
        table.add_column(name, justify="right")
    for row in found:
        times = row["milliseconds"]
        cells = [f"{ms:.1f} ({times['dense'] / ms:.2f})" for ms in times.values()]
        facts = [str(row[name]) for name in ("rows", "length", "head_dim")]
        table.add_row(*facts, f"{row['pairs']:.2f}", str(row["chosen"]), *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
