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
from data_pipeline.blocks import Capacity, Kind
from vdm_jax.kernels import choose
from vdm_jax.train.program import Program

SLACK = 1.02  # of the packed step's memory may be used
NEAR = 0.95  # of what may be used is enough
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
    assert memory is not None, "the compiler does not say how much memory a step needs"
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    n = kind.capacity.tokens
    chosen = choose(jax.default_backend(), rows=kind.rows, queries=n, keys=n, heads=heads)
    return Compiled(kind, step, held, seconds, chosen)


def largest(
    compile_kind: Callable[[Kind], Compiled],
    capacity: Capacity,
    limit: float,
    guess: int,
    unit: int,
) -> Compiled:
    """The step with most rows, a multiple of `unit`, that holds at most `limit` bytes.

    Memory is nearly linear in rows: the search follows a line through two trials, and ends where
    one `unit` more was, or by that line would be, too much.

    Raises:
      ValueError: not even `unit` rows fit.
    """
    held: dict[int, int] = {}
    count = max(unit, guess // unit * unit)
    for _ in range(TRIALS):
        held[count] = compile_kind(Kind(capacity, count)).bytes
        good = max((n for n in held if held[n] <= limit), default=0)
        bad = min((n for n in held if held[n] > limit), default=None)
        wanted = _crossing(held, limit) // unit * unit
        if good and (wanted <= good or bad == good + unit or held[good] >= NEAR * limit):
            break
        count = max(min(wanted, bad - unit if bad else wanted), good + unit)
        if count in held:
            break
    if not good:
        raise ValueError(f"{count} rows of {capacity.tokens} tokens do not fit into {limit:.0f} B")
    return compile_kind(Kind(capacity, good))


def _crossing(held: dict[int, int], limit: float) -> int:
    """The number of rows at which a line through the two nearest trials meets the limit."""
    one, *others = sorted(held, key=lambda n: abs(held[n] - limit))
    if not others:
        return int(one * limit / held[one])
    slope = max((held[others[0]] - held[one]) / (others[0] - one), 1.0)
    return int(one + (limit - held[one]) / slope)
