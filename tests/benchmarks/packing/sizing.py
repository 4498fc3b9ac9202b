"""The largest batch of each kind that fits into the memory of a step of packed rows.

Memory is what the compiler says a step holds at once: arguments, results and temporaries, less the
results that take the place of arguments.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

from data_pipeline import rows
from data_pipeline.plan import Capacity
from tests.benchmarks.packing.layouts import Kind
from vdm_jax.kernels import choose
from vdm_jax.train.program import Program

SLACK = 1.02  # of the packed step's memory may be used
NEAR = 0.97  # of what may be used ends the search
TRIALS = 6


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step of one kind; `seconds` to trace and compile it."""

    kind: Kind
    step: Any
    bytes: int
    seconds: float
    attention: str  # the backend of self-attention that the library chose


def compile_step(program: Program, kind: Kind, heads: int) -> Compiled:
    arrays = {
        name: jax.ShapeDtypeStruct(
            (1, kind.rows, *leaf.shape), leaf.dtype, sharding=program.batch_sharding
        )
        for name, leaf in rows.blank(kind.capacity).items()
    }
    start = time.perf_counter()
    step = program.lower(program.abstract, arrays).compile()
    seconds = time.perf_counter() - start
    memory = step.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    n = kind.capacity.tokens
    chosen = choose(jax.default_backend(), rows=kind.rows, queries=n, keys=n, heads=heads)
    return Compiled(kind, step, held, seconds, chosen)


def largest(
    compile_kind: Callable[[Kind], Compiled], capacity: Capacity, limit: float, guess: int, unit: int
) -> Compiled:
    """The step with most rows, a multiple of `unit`, that holds at most `limit` bytes.

    Memory is nearly linear in rows, so a line through two trials says where to try next; the search
    ends where one `unit` more was too much, or at `NEAR` of the limit.

    Raises:
      ValueError: not even `unit` rows fit.
    """
    tried: dict[int, Compiled] = {}
    count = max(unit, guess // unit * unit)
    for _ in range(TRIALS):
        tried[count] = compile_kind(Kind(capacity, count))
        good = max((n for n, one in tried.items() if one.bytes <= limit), default=0)
        bad = min((n for n, one in tried.items() if one.bytes > limit), default=None)
        if bad is not None and bad - good <= unit:
            break
        if good and tried[good].bytes >= NEAR * limit:
            break
        count = _next({n: one.bytes for n, one in tried.items()}, limit, good, bad, unit)
    if not good:
        raise ValueError(f"{count} rows of {capacity.tokens} tokens do not fit into {limit:.0f} B")
    return tried[good]


def _next(held: dict[int, int], limit: float, good: int, bad: int | None, unit: int) -> int:
    """The number of rows where a line through the two nearest trials meets the limit."""
    near = sorted(held, key=lambda n: abs(held[n] - limit))[:2]
    if len(near) == 2:
        one, two = near
        slope = max((held[two] - held[one]) / (two - one), 1.0)
        wanted = one + (limit - held[one]) / slope
    else:
        wanted = near[0] * limit / held[near[0]]
    count = int(wanted) // unit * unit
    return max(min(count, bad - unit if bad else count), good + unit)
