"""The impure loop around the pure step. Its order is fixed:

    next batch -> dispatch step -> write the PREVIOUS step's metrics -> look, save -> stop?

Metrics are read one step late, so that the host never waits for the device; a non-finite loss never
reaches the weights (`state.advance`), so late is early enough. Among several processes each line is
of all of them, and bad clips, which each finds among its own rows, are united at every save.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from data_pipeline.loaders import Batch
from vdm_jax.config import UserError
from vdm_jax.parallel.hosts import Hosts
from vdm_jax.parallel.place import row_share
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.feed import to_device
from vdm_jax.train.log import Writer
from vdm_jax.train.meter import Meter
from vdm_jax.train.observe import Observers
from vdm_jax.train.preemption import Preemption
from vdm_jax.train.profile import Profile
from vdm_jax.train.program import Program
from vdm_jax.train.run import Run
from vdm_jax.train.state import TrainState
from vdm_jax.train.work import Gather

PREEMPTED = 75
KNOWN = "known"  # the loader's reason for what it was told is bad


@dataclasses.dataclass
class Position:
    """Where a run stands in its data: the cursor, and what was found bad before it."""

    cursor: int = 0
    bad: tuple[tuple[str, int, str], ...] = ()

    def after(self, batch: Batch) -> Position:
        new = tuple(entry for entry in batch.bad if entry not in self.bad and entry[2] != KNOWN)
        return Position(batch.cursor, self.bad + new)

    def united(self, said: Sequence[Sequence[Sequence[Any]]]) -> Position:
        """With what every process found bad, in the order in which it was to be shown."""
        every = {(clip, ordinal): reason for one in said for clip, ordinal, reason in one}
        ordered = sorted(every.items(), key=lambda entry: (entry[0][1], entry[0][0]))
        return Position(self.cursor, tuple((*key, reason) for key, reason in ordered))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    run: Run
    program: Program
    checkpoints: Checkpoints
    writer: Writer
    observers: Observers
    meter: Meter
    profile: Profile
    meta: Mapping[str, Any]  # what every checkpoint says besides its cursor
    hosts: Hosts = dataclasses.field(default_factory=lambda: Hosts("loop"))

    def __call__(self, state: TrainState, position: Position) -> tuple[int, TrainState]:
        """Train until `run.steps`. Returns (exit code: 0 done or 75 preempted and saved, state).

        Raises:
          UserError: code 5 after `run.skip_limit` non-finite steps in a row; code 3 when too much
            of the data is bad; code 6 when a checkpoint could not be written.
        """
        step, pending, code = int(state.step), None, 0
        gather = Gather(self.program.batch_sharding)
        with Preemption() as stop, self.meter.progress(step, self.run.steps) as bar:
            batches = self.batches(position)
            try:
                while step < self.run.steps:
                    with self.meter.waiting():
                        batch = next(batches)
                        arrays = to_device(batch.arrays, self.program.batch_sharding)
                    self.profile.before(step)
                    state, metrics = self.program.step(state, arrays)
                    position, step = position.after(batch), step + 1
                    said = gather(self.meter.account(batch.arrays))
                    if pending is not None:
                        self.write(*pending, bar)
                    pending = (step, batch.bad, said, metrics)
                    self.observers(step, state, self.writer)
                    stopping = stop.requested(step)
                    if step % self.run.save_every == 0 or step == self.run.steps or stopping:
                        self.write(*pending, bar)  # never save a state whose numbers are unread
                        pending = None
                        position = self.save(step, state, position, wait=stopping)
                    self.checkpoints.poll()
                    if stopping:
                        code = PREEMPTED
                        break
            finally:
                self.profile.close()
                batches.close()
        self.checkpoints.wait()
        return code, state

    def batches(self, position: Position) -> Generator[Batch]:
        shard, shards = row_share(self.program.mesh)
        return self.run.data.batches(
            position.cursor,
            shard=shard,
            shards=shards,
            devices=self.program.row_devices,
            microbatches=self.run.microbatches,
            known_bad=[(clip, ordinal) for clip, ordinal, _ in position.bad],
        )

    def write(
        self,
        step: int,
        bad: Sequence[tuple[str, int, str]],
        said: np.ndarray | jax.Array,
        metrics: Mapping[str, jax.Array],
        bar: Any,
    ) -> None:
        """One line of a finished step; this is where the host waits for the device."""
        numbers: dict[str, Any] = {name: float(value) for name, value in metrics.items()}
        numbers |= self.meter.measure(said)
        self.writer.scalars(step, numbers)
        self._tell_bad(step, bad)
        self.meter.show(bar, step, numbers)
        skipped = int(numbers["consecutive_skipped"])
        if skipped >= self.run.skip_limit:
            raise UserError(
                f"{skipped} steps in a row had a loss or gradient that is not finite; the weights "
                f"are those before step {step - skipped + 1}. Lower the learning rate, or look at "
                "the batches named in metrics.jsonl.",
                code=5,
            )

    def save(self, step: int, state: TrainState, position: Position, *, wait: bool) -> Position:
        """Save in the background; returns the position that was saved."""
        whole = position.united(self.hosts.agree("bad", lambda: list(position.bad)))
        self._tell_bad(step, [entry for entry in whole.bad if entry not in position.bad])
        meta = {**self.meta, "cursor": whole.cursor, "bad": list(whole.bad)}
        finite = ("params", "ema", "opt")
        self.checkpoints.save(step, state.items(), meta, wait=wait, check_finite=finite)
        return whole

    def _tell_bad(self, step: int, bad: Sequence[tuple[str, int, str]]) -> None:
        for clip, ordinal, reason in bad:
            self.writer.text(step, {"bad_clip": f"{clip} (example {ordinal}): {reason}"})
