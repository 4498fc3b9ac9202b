"""This machine: what a step needs of its memory, three steps by the clock, and what would fit.

Devices simulated on a CPU share its memory; those of an accelerator have their own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from data_pipeline.rows import Arrays
from vdm_jax.config import UserError
from vdm_jax.nets.remat import REMAT
from vdm_jax.plan.compiled import memory_of
from vdm_jax.plan.machine import Plan
from vdm_jax.plan.mix import arrays
from vdm_jax.train.feed import to_device
from vdm_jax.train.program import make_program
from vdm_jax.train.run import Run

STEPS = 3
LENGTHS = 16  # row lengths that are tried are multiples of this part of the config's
LESS_AND_LESS = ("none", "dots", "attention", "full")  # by what they keep for the backward pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Attributes:
    needed, limit: bytes of the whole machine, or of one device that has its own memory.
    steps: seconds of each; empty where it does not fit.
    largest: (tokens of a row, remat) that would fit; None where it fits, or nothing does.
    """

    needed: int
    limit: int
    steps: tuple[float, ...]
    largest: tuple[int, str] | None

    @property
    def fits(self) -> bool:
        return self.needed <= self.limit

    @property
    def step_seconds(self) -> float | None:
        return float(np.median(self.steps)) if self.steps else None

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "fits": self.fits,
            "hbm_bytes": self.needed,
            "hbm_limit_bytes": self.limit,
            "measured_step_seconds": list(self.steps),
        }
        if self.largest:
            found |= {"largest_tokens": self.largest[0], "largest_remat": self.largest[1]}
        return found

    def lines(self) -> list[str]:
        room = f"{self.needed / 2**30:.2f} GiB of {self.limit / 2**30:.2f} GiB"
        if self.fits:
            times = ", ".join(f"{seconds:.3f}" for seconds in self.steps)
            return [f"it fits: {room} (compiler)", f"steps took {times} s (measured)"]
        if self.largest is None:
            return [f"it does NOT fit: {room}, and neither does any row length; take a smaller net"]
        tokens, remat = self.largest
        return [
            f"it does NOT fit: {room} (compiler)",
            f"rows of {tokens} tokens with remat '{remat}' would fit: "
            f"--config.data.tokens={tokens} --config.stage.denoiser.backbone.remat={remat}",
        ]

    def show(self) -> None:
        from rich.console import Console

        for line in self.lines():
            Console().print(f"- {line}", soft_wrap=True, markup=False, highlight=False)


def measure(run: Run, plan: Plan, limit: int | None = None) -> Measured:
    """Three steps of a plan for this machine, or what would fit in `limit` bytes of it.

    Raises:
      UserError: a plan to sample.
    """
    if plan.what != "train":
        raise UserError("--topology=local plans training; `vdm sample` is quickly tried itself.")
    limit = memory() if limit is None else limit
    needed = plan.bytes * shared()
    if needed > limit:
        lengths = sorted({run.data.tokens * part // LENGTHS for part in range(1, LENGTHS + 1)})
        found = largest(lengths, remats(), lambda n, remat: needs(run, n, remat), limit)
        return Measured(needed=needed, limit=limit, steps=(), largest=found)
    program = make_program(run)
    made = arrays(plan.mix, run.data, run.data.rows)
    batch = to_device(_microbatches(made, run.microbatches), program.batch_sharding)
    state, steps = program.init(), []
    for _ in range(1 + STEPS):  # the first warms up
        began = time.perf_counter()
        state, metrics = plan.compiled.executable(state, batch)
        jax.block_until_ready((state, metrics))
        steps.append(time.perf_counter() - began)
    return Measured(needed=needed, limit=limit, steps=tuple(steps[1:]), largest=None)


def _microbatches(made: Arrays, count: int) -> Arrays:
    return {name: leaf.reshape(count, -1, *leaf.shape[1:]) for name, leaf in made.items()}


def largest(
    lengths: Sequence[int], remats: Sequence[str], needs: Callable[[int, str], int], limit: int
) -> tuple[int, str] | None:
    """The longest row that fits with the last remat, and the first remat with which it does.

    Args:
      lengths: rising; remats: from what keeps most to what keeps least.
      needs: bytes of a row length and a remat, rising in the length.
    """
    low, high = 0, len(lengths)  # lengths[:low] fit, lengths[high:] do not
    while low < high:
        middle = (low + high) // 2
        if needs(lengths[middle], remats[-1]) <= limit:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return None
    length = lengths[low - 1]
    kept = next((remat for remat in remats[:-1] if needs(length, remat) <= limit), remats[-1])
    return length, kept


def remats() -> tuple[str, ...]:
    return tuple(name for name in LESS_AND_LESS if name in REMAT)


def needs(run: Run, tokens: int, remat: str) -> int:
    """Bytes of the compiled step of a run with other rows and another remat."""
    net = run.stage.denoiser
    net = net.clone(backbone=net.backbone.clone(remat=remat))
    changed = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, tokens=tokens),
        stage=dataclasses.replace(run.stage, denoiser=net),
    )
    program = make_program(changed)
    each = changed.data.rows // changed.microbatches
    batch = {
        name: jax.ShapeDtypeStruct(
            (changed.microbatches, each, *leaf.shape[1:]), leaf.dtype,
            sharding=program.batch_sharding,
        )
        for name, leaf in changed.blank_arrays(1).items()
    }  # fmt: skip
    compiled = program.lower(program.abstract, batch).compile()
    return memory_of(compiled).total * shared()


def shared() -> int:
    """How many devices share the memory that `memory` speaks of."""
    return len(jax.devices()) if jax.default_backend() == "cpu" else 1


def memory() -> int:
    """Bytes that are free for a run: of this machine, or of an accelerator's device."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"])
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["MemAvailable"].split()[0]) * 1024
