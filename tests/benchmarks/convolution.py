"""Convolutions of `kernels.convolution` against the forms they stand in for, in one run.

    python -m tests.benchmarks.convolution [--rounds=7] [--json]

enlarged   pixels four times each, then 3 x 3: the larger picture written, or never;
small      pictures no larger than the kernel: the compiler's convolution, or one product.

Forward, and with the gradients of both arguments, fp32. Times are medians of rounds in which both
run in turn: of processor time, so the process keeps to one core. What counts is the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

from tests.benchmarks.devices import keep_to_cores

if __name__ == "__main__":  # before JAX counts the cores
    keep_to_cores(1)

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from vdm_jax.kernels.convolution import convolve, convolve_enlarged

Form = Callable[[jax.Array, jax.Array], jax.Array]


def written(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return convolve(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), kernel, 1)


def by_compiler(x: jax.Array, kernel: jax.Array) -> jax.Array:
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=names)


def ours(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return convolve(x, kernel, 1)


# (what, pictures, side, channels, the form that it stands in for, ours)
CASES: tuple[tuple[str, int, int, int, Form, Form], ...] = (
    ("enlarged", 128, 8, 32, written, convolve_enlarged),
    ("enlarged", 128, 4, 64, written, convolve_enlarged),
    ("enlarged", 64, 16, 32, written, convolve_enlarged),
    ("enlarged", 16, 32, 128, written, convolve_enlarged),
    ("enlarged", 128, 2, 128, written, convolve_enlarged),
    ("small", 128, 2, 128, by_compiler, ours),
)


def compiled(form: Form, x: jax.Array, kernel: jax.Array, slopes: bool) -> Callable[[], object]:
    def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.square(form(x, kernel)).sum()

    step = jax.jit(jax.value_and_grad(total, (0, 1)) if slopes else form).lower(x, kernel).compile()
    return lambda: jax.block_until_ready(step(x, kernel))


def measure(case: tuple[str, int, int, int, Form, Form], rounds: int) -> dict[str, float]:
    """Milliseconds of each form, forward and with slopes."""
    _, count, side, channels, *forms = case
    x = jax.random.normal(jax.random.key(0), (count, side, side, channels))
    kernel = 0.1 * jax.random.normal(jax.random.key(1), (3, 3, channels, channels))
    steps = {
        f"{name}{' with slopes' if slopes else ''}": compiled(form, x, kernel, slopes)
        for slopes in (False, True)
        for name, form in zip(("before", "ours"), forms, strict=True)
    }
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if turn:  # the first is warm-up
                taken[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    found = {
        f"{what}, {count} of {side} x {side}, {channels} channels": measure(case, options.rounds)
        for case in CASES
        for what, count, side, channels, *_ in (case,)
    }
    if options.json:
        print(json.dumps(found))
        return
    table = Table(title="3 x 3 convolutions, ms of processor time")
    for name in ("pictures", *next(iter(found.values()))):
        table.add_column(name, justify="left" if name == "pictures" else "right")
    for name, times in found.items():
        table.add_row(name, *(f"{value:.1f}" for value in times.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
