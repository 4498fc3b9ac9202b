"""Arms trained in turns in one process, each on its own clock, on the same held-out examples.

A clock runs while an arm's step runs and its next batch is laid out (which happens while the device
is at work); it stands while held-out examples are looked at and while the others have their turn.
The order of turns rotates, so that a busy machine slows all alike.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tests.benchmarks.packing import layouts
from tests.benchmarks.packing.layouts import Step
from tests.benchmarks.packing.pool import Pool
from tests.benchmarks.packing.recipe import EMA, at_rate
from tests.benchmarks.packing.sizing import Compiled
from vdm_jax.train.feed import to_device
from vdm_jax.train.observe import Validation, size_class
from vdm_jax.train.program import Program
from vdm_jax.train.state import TrainState

PACKED = "packed"


@dataclasses.dataclass(frozen=True)
class Arm:
    """A layout and its compiled steps, one for each kind, by length."""

    name: str
    compiled: tuple[Compiled, ...]

    def steps(self, pool: Pool, seed: int) -> Iterator[Step]:
        kinds = [one.kind for one in self.compiled]
        if kinds[0].capacity.segments > 1:
            return layouts.packed(pool.epochs(seed), kinds[0], seed)
        return layouts.queued(pool.epochs(seed), kinds)

    @property
    def compile_seconds(self) -> float:
        return sum(one.seconds for one in self.compiled)


@dataclasses.dataclass(frozen=True)
class Held:
    """The held-out batch, always laid out in packed rows and judged by one compiled program."""

    validation: Validation

    def losses(self, state: TrainState) -> tuple[float, float]:
        """(mean over examples, mean over tokens) of the averaged weights' unweighted error.

        The second weighs the loss of each size class by its tokens.
        """
        found = self.validation.measure(state.ema[str(EMA)])
        arrays = {name: leaf[0] for name, leaf in self.validation.arrays.items()}
        tokens = np.prod(arrays["grid"], axis=-1)[arrays["valid"]]
        classes = np.where(arrays["fps"][arrays["valid"]] > 0, size_class(tokens), 0)
        total = 0.0
        for label in np.unique(classes):
            name = f"validation/tokens_{label}" if label else "validation/images"
            total += found[name] * tokens[classes == label].sum()
        return found["validation/loss"], total / tokens.sum()


@dataclasses.dataclass
class Runner:
    """One arm in one race. `curve`: (seconds on the clock, loss by examples, by tokens)."""

    arm: Arm
    program: Program
    pool: Pool
    state: TrainState
    source: Iterator[Step]
    clock: float = 0.0
    host: float = 0.0  # seconds spent on laying out, most of them hidden behind the device
    curve: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)
    # (kind, seconds, useful tokens, examples, images) of every step
    log: list[tuple[int, float, int, int, int]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._prepare()

    def _prepare(self) -> None:
        start = time.perf_counter()
        self.step = next(self.source)
        kind = self.arm.compiled[self.step.kind].kind
        arrays = layouts.arrays(self.step, kind, self.pool)
        self.arrays = to_device(arrays, self.program.batch_sharding)
        self.host += time.perf_counter() - start

    def train(self, until: float) -> None:
        """Steps until the clock has reached `until`."""
        while self.clock < until:
            start, step = time.perf_counter(), self.step
            run = self.arm.compiled[step.kind].step
            self.state, metrics = run(self.state, self.arrays)
            self._prepare()
            jax.block_until_ready(metrics)
            span = time.perf_counter() - start
            self.clock += span
            examples = step.examples
            tokens, images = int(examples["tokens"].sum()), int((examples["rate"] == 0).sum())
            self.log.append((step.kind, span, tokens, len(examples), images))

    def look(self, held: Held) -> None:
        self.curve.append((self.clock, *held.losses(self.state)))


def race(
    arms: Sequence[Arm],
    program: Program,
    pool: Pool,
    held: Held,
    *,
    seed: int,
    rates: Mapping[str, float],
    seconds: float,
    turn: float,
) -> list[Runner]:
    """Every arm from the same weights for `seconds` of its own clock."""
    runners = [
        Runner(arm, program, pool, at_rate(program.init(), rates[arm.name]), arm.steps(pool, seed))
        for arm in arms
    ]
    for runner in runners:
        runner.look(held)
    turns = max(1, round(seconds / turn))
    for number in range(turns):
        first = number % len(runners)
        for runner in runners[first:] + runners[:first]:
            runner.train(seconds * (number + 1) / turns)
            runner.look(held)
    return runners


def warm(arms: Sequence[Arm], program: Program) -> None:
    """Runs every compiled step once, on rows of padding, and forgets what came of it."""
    for arm in arms:
        state: Any = program.init()
        for one in arm.compiled:
            empty = layouts.arrays(Step(0, []), one.kind, Pool(()))
            state, metrics = one.step(state, to_device(empty, program.batch_sharding))
            jax.block_until_ready(metrics)
