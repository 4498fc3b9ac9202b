"""A feed-forward layer's gradient with `kernels.linear` against XLA's own products, in one run.

    python -m tests.benchmarks.linear [--tokens=2048] [--rounds=7] [--json]

Up, GELU and down, forward and backward, fp32. Times are medians of rounds in which both run in
turn: of processor time, which a busy machine does not distort as long as one thread does the work,
so the process keeps to one core. What counts is the ratio.
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

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from vdm_jax.kernels import linear

WIDTHS = (96, 256, 512, 768)
FORMS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "ours": linear.product,
    "XLA's": jnp.matmul,
}


def compiled(
    width: int, tokens: int, product: Callable[[jax.Array, jax.Array], jax.Array]
) -> Callable[[], object]:
    shapes = ((1, tokens, width), (width, 4 * width), (4 * width, width))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arguments = [jax.random.normal(*each) for each in zip(keys, shapes, strict=True)]

    def total(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return jnp.square(product(nn.gelu(product(x, up)), down)).sum()

    step = jax.jit(jax.value_and_grad(total, (0, 1, 2))).lower(*arguments).compile()
    return lambda: jax.block_until_ready(step(*arguments))


def measure(width: int, tokens: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each form."""
    steps = {name: compiled(width, tokens, form) for name, form in FORMS.items()}
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
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    found = {width: measure(width, options.tokens, options.rounds) for width in WIDTHS}
    if options.json:
        print(json.dumps(found))
        return
    table = Table(title=f"feed-forward, forward and backward, {options.tokens} tokens, ms")
    for name in ("width", *FORMS, "times as fast"):
        table.add_column(name, justify="right")
    for width, times in found.items():
        mine, plain = times.values()
        table.add_row(str(width), f"{mine:.1f}", f"{plain:.1f}", f"{plain / mine:.2f}")
    Console(width=80).print(table)


if __name__ == "__main__":
    main()
