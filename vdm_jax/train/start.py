"""How a run begins: afresh, from where it stopped, from another run's weights or checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import re
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from data_pipeline.text import Tokenizer
from vdm_jax.config import UserError, build, from_json, problems, refuse, spec, to_json
from vdm_jax.parallel.chips import peak_flops
from vdm_jax.parallel.hosts import Hosts
from vdm_jax.parallel.place import row_share
from vdm_jax.train import alike, lineage, log, outcome
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.feed import to_device
from vdm_jax.train.loop import Loop, Position
from vdm_jax.train.meter import CompileCounter, Meter
from vdm_jax.train.observe import Many, Samples, Validation
from vdm_jax.train.profile import Profile
from vdm_jax.train.program import (
    Program,
    condition_features,
    make_program,
    parameter_count,
)
from vdm_jax.train.reconstruct import Reconstruction, reconstruct
from vdm_jax.train.run import Run
from vdm_jax.train.state import TrainState
from vdm_jax.train.surgery import Inherit, average
from vdm_jax.train.work import Work

TIMED_STEPS = 20
Changes = Mapping[str, tuple[Any, Any]]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """`Start(workdir=...)(config)` trains and returns the process's exit code."""

    workdir: str
    init: str | None = None
    fork: str | None = None
    minutes: float | None = None
    profile: str | None = None
    console: Console = dataclasses.field(
        default_factory=lambda: Console(stderr=True, quiet=jax.process_index() != 0)
    )
    hosts: Hosts = dataclasses.field(default_factory=lambda: Hosts("start"))

    @property
    def folder(self) -> Path:
        return Path(self.workdir)

    def __call__(self, config: ConfigDict) -> int:
        """Raises: UserError, before anything is compiled or written, for every mistake."""
        profile = Profile.parse(self.profile, self.folder / "profile")
        config, changed = self._settle(config)
        run = check(config)
        self._check_origin(run)
        self._check_hosts(config, run)
        program = make_program(run)
        row_share(program.mesh)  # a mesh that processes cannot feed is said before it compiles
        if self.minutes and not self._resumes:
            found = steps_for(self.minutes, run, program)
            config.steps = self.hosts.agree("steps", lambda: found)[0]
            run = check(config)
            program = make_program(run)
        with (
            CompileCounter() as compiled,
            Checkpoints(self.folder / "checkpoints", keep=run.keep) as checkpoints,
            contextlib.closing(log.only_first(lambda: writers(run, self.folder))) as writer,
        ):
            state, position, origin = self._state(run, program, checkpoints)
            self.hosts.agree("config", lambda: self._write_config(config, run))
            restored = int(state.step)
            count = parameter_count(state.params)
            writer.text(
                restored,
                {
                    "restored_step": restored, "origin": origin, "changed": changed,
                    "steps": run.steps, "parameters": count,
                    "mesh": dict(program.mesh.shape), "versions": versions(),
                },
            )  # fmt: skip
            self._announce(run, restored, count, changed)
            loop = Loop(
                run=run, program=program, checkpoints=checkpoints, writer=writer,
                observers=observers(run, self.folder, program), profile=profile,
                meter=meter_of(run, program, self.console),
                meta={"data": run.data.fingerprint(), "origin": origin},
            )  # fmt: skip
            code, state = loop(state, position)
            samples = last_samples(run, state, self.folder, writer) if code == 0 else {}
            rebuilt = last_reconstructions(run, state, program) if code == 0 else []
        outcome.write(self.folder, state, loop.meter, compiled, samples, rebuilt, run.credit)
        self.console.print(f"wrote {self.workdir}/loss.png and {self.workdir}/summary.json")
        return code

    def _check_hosts(self, config: ConfigDict, run: Run) -> None:
        """Raises: UserError, the processes of this run would not do the same."""
        if self.hosts.count > 1:
            mine = alike.particulars(config, run.data.fingerprint(), versions())
            alike.check(self.hosts, mine)
            alike.check_shared(self.hosts, self.folder)

    @property
    def _resumes(self) -> bool:
        return (self.folder / "config.json").is_file()

    def _settle(self, config: ConfigDict) -> tuple[ConfigDict, Changes]:
        """The config this run will have, and what changed since it last ran."""
        if not self._resumes:
            if (self.folder / "checkpoints").is_dir():
                raise UserError(
                    f"{self.workdir} holds checkpoints but no config.json, so it cannot be told "
                    "what they are; take a new --workdir.",
                    code=4,
                )
            return named(config, self.init), {}
        for flag, value in (("--init", self.init), ("--fork", self.fork)):
            if value:
                raise UserError(
                    f"{self.workdir} already holds a run; {flag} needs a new --workdir."
                )
        old = from_json((self.folder / "config.json").read_text())
        if old.get("inherit") and not (config.inherit and config.inherit.run):
            config = named(config, old.inherit.run)  # where it began is said once
        new = from_json(to_json(config))
        if self.minutes:  # the number of steps was fixed when the run began
            config.steps = new.steps = old.steps
        return config, lineage.check_resume(old, new, self.workdir)

    def _check_origin(self, run: Run) -> None:
        """Raises: UserError if there is nothing at --init or --fork, before anything compiles."""
        if run.inherit and run.inherit.run and not self._resumes:
            run.inherit.find()
        if self.fork:
            folder, step, _ = parse_fork(self.fork)
            with Checkpoints(Path(folder) / "checkpoints") as other:
                if step not in other.steps():
                    known = other.steps() or "none"
                    raise UserError(f"{folder} has no checkpoint {step}: {known}.", code=4)

    def _state(
        self, run: Run, program: Program, checkpoints: Checkpoints
    ) -> tuple[TrainState, Position, dict[str, Any]]:
        """(state, place in the data, where they come from)."""
        step = checkpoints.newest()
        if step is not None:
            meta = checkpoints.meta(step)
            lineage.check_data(meta["data"], run.data.fingerprint(), self.workdir)
            items = checkpoints.restore(step, program.abstract.items())
            return TrainState.of(items), position_of(meta), meta["origin"]
        if self.fork:
            return self._forked(run, program, self.fork)
        state = program.init()
        if not (run.inherit and run.inherit.run):
            return state, Position(), {}
        step = run.inherit.find()
        params, report = run.inherit(state.params, average(run.inherit.run, step))
        self.console.print(report, soft_wrap=True, markup=False)
        params = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, state.params))
        ema = {rate: jax.tree.map(jax.numpy.copy, params) for rate in state.ema}
        origin = {"init": run.inherit.run, "step": step}
        return state.replace(params=params, ema=ema), Position(), origin

    def _forked(self, run: Run, program: Program, fork: str):
        folder, step, averaged = parse_fork(fork)
        with Checkpoints(Path(folder) / "checkpoints") as other:
            meta = other.meta(step)
            state = TrainState.of(other.restore(step, program.abstract.items()))
        if averaged:
            state = state.replace(
                params=jax.tree.map(jax.numpy.copy, next(iter(state.ema.values())))
            )
        same_data = meta["data"] == run.data.fingerprint()
        origin = {"fork": folder, "step": step, "weights": "ema" if averaged else "params"}
        return state, position_of(meta) if same_data else Position(), origin

    def _write_config(self, config: ConfigDict, run: Run) -> None:
        if jax.process_index() == 0:
            (self.folder / "config.json").write_text(to_json(config))
            (self.folder / "tokenizer.json").write_bytes(run.data.tokenizer.content)

    def _announce(self, run: Run, restored: int, count: int, changed: Changes) -> None:
        where = f"{jax.device_count()} {jax.default_backend()} device(s)"
        at = f"from step {restored} " if restored else ""
        self.console.print(
            f"{self.workdir}: {count:,} parameters on {where}, {at}to step {run.steps}"
        )
        for path, (old, new) in changed.items():
            self.console.print(f"changed: {path} {old!r} -> {new!r}")


def check(config: ConfigDict) -> Run:
    """The run of a config.

    Raises:
      UserError: every mistake found, a line each; nothing is compiled and no array allocated.
    """
    refuse(problems(config))
    run = build(config)
    refuse(run.problems(jax.device_count()))
    return run


def meter_of(run: Run, program: Program, console: Console) -> Meter:
    """A meter that knows what the run's examples cost, and what these devices could do."""
    work = Work.of(run.stage, condition_features(run, program.abstract.params))
    peak = peak_flops(program.mesh.devices.flat[0].device_kind)
    return Meter(console=console, work=work, peak=peak, rows=program.row_devices)


def writers(run: Run, folder: Path) -> log.Writer:
    found: list[log.Writer] = [
        log.JsonLines(folder / "metrics.jsonl"),
        log.TensorBoard(folder / "tb"),
    ]
    if run.wandb:
        found.append(log.Wandb(dir=str(folder), **run.wandb))
    return log.Many(found)


def observers(run: Run, folder: Path, program: Program) -> Many:
    found: list[Any] = []
    if validates(run):
        arrays = run.data.validation(run.validation_rows).arrays
        found.append(Validation(run, arrays, program.weights))
    if run.sample_every:
        found.append(Samples(run, Tokenizer(str(folder / "tokenizer.json"))))
    return Many(tuple(found))


def validates(run: Run) -> bool:
    """Whether there is something to validate on: of a single clip nothing can be held out."""
    return bool(run.validate_every and run.data.held_out)


def last_reconstructions(run: Run, state: TrainState, program: Program) -> list[Reconstruction]:
    """Held-out clips, noised, and what the finished model makes of them, where that can be seen."""
    if not (validates(run) and run.stage.makes_videos):
        return []
    arrays = run.data.validation(run.validation_rows).arrays
    return reconstruct(run, state.ema[str(run.ema[0])], arrays, frozen=program.weights)


def last_samples(
    run: Run, state: TrainState, folder: Path, writer: log.Writer
) -> dict[str, np.ndarray]:
    """Videos of the run's prompts by the finished model."""
    if not run.prompts:
        return {}
    samples = Samples(run, Tokenizer(str(folder / "tokenizer.json")))
    return samples.make(int(state.step), state.ema[str(run.ema[0])], writer)


def steps_for(minutes: float, run: Run, program: Program) -> int:
    """How many steps fit into `minutes`, by timing some on a state that is then thrown away.

    Fixed before the run begins, and recorded in its config, so that schedules know their end and a
    resumed run is the same run.
    """
    state = program.init()
    shard, shards = row_share(program.mesh)
    batches = run.data.batches(
        shard=shard, shards=shards, devices=program.row_devices, microbatches=run.microbatches
    )
    spans = []
    for _ in range(TIMED_STEPS + 1):
        start = time.perf_counter()
        arrays = to_device(next(batches).arrays, program.batch_sharding)
        state, metrics = program.step(state, arrays)
        jax.block_until_ready(metrics)
        spans.append(time.perf_counter() - start)
    batches.close()
    typical = sorted(spans[1:])[TIMED_STEPS // 2]  # the first one compiles
    return max(1, int(minutes * 60 / typical))


def parse_fork(text: str) -> tuple[str, int, bool]:
    """'DIR@STEP[:ema]' -> (folder, step, whether from the average)."""
    found = re.fullmatch(r"(.+)@(\d+)(:ema)?", text)
    if not found:
        raise UserError(f"--fork is '{text}'; write DIR@STEP or DIR@STEP:ema.")
    return found[1], int(found[2]), bool(found[3])


def named(config: ConfigDict, run: str | None) -> ConfigDict:
    """`config`, its first weights those of `run`, if that is given."""
    if run and config.inherit:
        config.inherit.run = run
    elif run:
        config.inherit = spec(Inherit, run=run)
    return config


def position_of(meta: Mapping[str, Any]) -> Position:
    return Position(meta["cursor"], tuple((c, o, r) for c, o, r in meta["bad"]))


def versions() -> dict[str, str]:
    found = {package: metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **found}
