"""One config on one machine: lowered, compiled, counted and predicted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.cond import Cond
from vdm_jax.config import UserError, refuse
from vdm_jax.diffusion.parameterization import Prediction
from vdm_jax.diffusion.sample import sample
from vdm_jax.kernels.splash import BLOCK
from vdm_jax.pipeline import _generate, capacity_of
from vdm_jax.plan import work as counted
from vdm_jax.plan.compiled import Compiled, compile_step
from vdm_jax.plan.mix import Mix, mix_of
from vdm_jax.plan.products import products
from vdm_jax.plan.roofline import Load, Seconds, link_seconds, predict
from vdm_jax.plan.topology import LOCAL, Topology
from vdm_jax.plan.traffic import collectives, cycles, memory_bytes, summary
from vdm_jax.plan.work import Work
from vdm_jax.requests import blank
from vdm_jax.stage import Stage
from vdm_jax.train.program import Program, make_program, parameter_count
from vdm_jax.train.run import Run

WHAT = ("train", "sample")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would be on a machine. Bytes are of one device, FLOPs of a step on all of them.

    Attributes:
      limit: bytes a device has for a program; None where it is not known.
      traffic: bytes that a device reads and writes in a step; cycles: the compiler's estimate.
      unknown: loops of the compiled step whose length is data; they were counted once.
      seconds: None without a chip whose peaks are known.
      tokens: of examples, in a step.
      share: rows of the trunk's square kernels on each device of fsdp; 0 where it is divided oddly.
    """

    what: str
    topology: Topology
    mesh: Mapping[str, int]
    parameters: int
    rows: int
    mix: Mix
    compiled: Compiled
    arguments: int
    limit: int | None
    work: Work
    collectives: Mapping[str, Mapping[str, float]]
    traffic: float
    cycles: float
    unknown: int
    seconds: Seconds | None
    tokens: int
    share: int

    @property
    def bytes(self) -> int:
        """What a device needs; where the compiler gave up, what it asked for."""
        memory = self.compiled.memory
        return memory.total if memory else int(self.compiled.wanted or 0)

    @property
    def fits(self) -> bool:
        return self.compiled.memory is not None and (self.limit is None or self.bytes <= self.limit)

    @property
    def mfu(self) -> float | None:
        """Useful FLOPs over what the chips' peaks allow in the predicted time."""
        if self.seconds is None or self.topology.chip is None:
            return None
        peak = self.topology.chips * self.topology.chip.flops
        return self.work.useful / (self.seconds.guess * peak)

    @property
    def tokens_per_second(self) -> float | None:
        return None if self.seconds is None else self.tokens / self.seconds.guess

    def json(self) -> dict[str, Any]:
        guess = self.seconds.guess if self.seconds else None
        return {
            "fits": self.fits,
            "hbm_bytes": self.bytes,
            "hbm_limit_bytes": self.limit,
            "parameters": self.parameters,
            "flops_useful": self.work.useful,
            "flops_executed": self.work.executed,
            "collectives": {kind: dict(found) for kind, found in self.collectives.items()},
            "predicted_step_seconds": guess,
            "predicted_mfu": self.mfu,
            "predicted_tokens_per_second": self.tokens_per_second,
        }


def make_plan(
    run: Run,
    machine: Topology,
    what: str = "train",
    mix: Mix | None = None,
    effort: str = "full",
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Compile `run`'s training step, or one call of its sampler, for a machine, and count.

    Args:
      mix: the examples of a step; None takes those of the run's data.
      effort, say: of `compile_step`.

    Raises:
      UserError: a mesh that does not fit, sizes that do not divide.
    """
    if what not in WHAT:
        raise UserError(f"--what is '{what}'; it must be {' or '.join(WHAT)}.")
    counted.backbone(run)
    _check(run, machine)
    mix = mix_of(run.data) if mix is None else mix
    program = make_program(run, machine.devices)
    made = _trained(run, program) if what == "train" else _sampled(run, program, mix)
    traced, rows, arguments = made
    tpu = machine.name != LOCAL
    lowered = traced.lower(lowering_platforms=("tpu",)) if tpu else traced.lower()
    compiled = compile_step(lowered, arguments=arguments, tpu=tpu, effort=effort, say=say)
    return judge(run, machine, what, program, mix, traced, compiled, rows, arguments)


def _check(run: Run, machine: Topology) -> None:
    """What is wrong with a run on these devices, but for manifests: lengths have a stand-in."""
    found = [one for one in run.problems(len(machine.devices)) if not one.startswith("sources")]
    refuse(found)


def _trained(run: Run, program: Program) -> tuple[Any, int, int]:
    """(traced step, rows of a step, bytes of its arguments on a device)."""
    each = run.data.rows // run.microbatches
    arrays = {
        name: jax.ShapeDtypeStruct(
            (run.microbatches, each, *leaf.shape[1:]), leaf.dtype, sharding=program.batch_sharding
        )
        for name, leaf in run.blank_arrays(1).items()
    }
    traced = program.trace(program.abstract, arrays)
    return traced, run.data.rows, shard_bytes((program.abstract, arrays))


def _sampled(run: Run, program: Program, mix: Mix) -> tuple[Any, int, int]:
    """One row for each device of rows."""
    rows = program.row_devices
    one = blank(run.stage, capacity_of(run.data, 1))
    places = jax.sharding.NamedSharding(program.mesh, jax.P(("data", "fsdp")))
    arrays = {
        name: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype, sharding=places)
        for name, leaf in one.items()
    }
    params = program.abstract.params
    with program.ambient():
        traced = _generate.trace(run.stage, params, arrays)
    return traced, rows, shard_bytes((params, arrays))


def judge(
    run: Run, machine: Topology, what: str, program: Program, mix: Mix, traced: Any,
    compiled: Compiled, rows: int, arguments: int,
) -> Plan:  # fmt: skip
    """Everything that follows from a traced and compiled step."""
    mine = Mix(mix.rows[:rows], mix.source)
    once = counted.forward(run, mine, program, BLOCK)
    options: dict[str, Any] = dict(products=products(traced.jaxpr), devices=program.row_devices)
    if what == "train":
        remat = counted.backbone(run).remat
        work = counted.of_training(run, mine, once, remat=remat, **options)
    else:
        work = counted.of_sampling(run, mine, once, evaluations=evaluations(run.stage), **options)
    devices, module = len(machine.devices), compiled.module
    moved = collectives(module) if module else ()
    traffic = memory_bytes(module) if module else 0.0
    seconds = None
    if machine.chip is not None and module is not None:
        load = Load(
            products=work.products / devices,
            attention=work.attention / devices,
            straggler=work.straggler,
            memory=traffic,
            links=link_seconds(moved, machine.chip, list(program.mesh.devices.flat)),
        )
        seconds = predict(load, machine.chip)
    return Plan(
        what=what,
        topology=machine,
        mesh=dict(program.mesh.shape),
        parameters=parameter_count(program.abstract.params),
        rows=rows,
        mix=mine,
        compiled=compiled,
        arguments=arguments,
        limit=machine.chip.usable if machine.chip else None,
        work=work,
        collectives=summary(moved),
        traffic=traffic,
        cycles=cycles(module) if module else 0.0,
        unknown=len(module.unknown) if module else 0,
        seconds=seconds,
        tokens=mine.tokens,
        share=_share(counted.backbone(run).width, program.mesh.shape["fsdp"]),
    )


def _share(width: int, devices: int) -> int:
    return 0 if width % devices else width // devices


def evaluations(stage: Stage) -> int:
    """How often a call of the sampler evaluates the network: traced with one that is a product of
    two numbers, and those are counted."""
    batch = _one_token(stage)

    def counted_denoise(batch: Any, at: Any, cond: Any) -> Prediction:
        rows = batch.x[:, 0, :1]  # guidance asks for several branches in the rows of one call
        return Prediction(batch.x + (rows @ jnp.ones((1, 1)))[:, None], batch.x)

    def free(batch: Any, at: Any, cond: Any) -> Prediction:
        return Prediction(batch.x, batch.x)

    def total(denoise: Any) -> int:
        conds = dict.fromkeys(("cond", "uncond"), Cond())
        made = jax.make_jaxpr(
            lambda: sample(
                denoise, batch, process=stage.process, sampler=stage.sampler,
                prior=stage.prior, conds=conds,
            )
        )()  # fmt: skip
        return products(made)

    return (total(counted_denoise) - total(free)) // 2


def _one_token(stage: Stage) -> Any:
    from vdm_jax.batch import Examples, Packed

    zero = jnp.zeros((1, 1), jnp.int32)
    examples = Examples(
        id=jnp.zeros((1, 1, 2), jnp.uint32), visit=zero, ordinal=zero,
        valid=jnp.ones((1, 1), bool), grid=jnp.ones((1, 1, 3), jnp.int32), fps=jnp.ones((1, 1)),
    )  # fmt: skip
    return Packed(
        x=jnp.zeros((1, 1, stage.patch_features)), segment=zero + 1,
        position=jnp.zeros((1, 1, 3), jnp.int32), raster=zero, examples=examples,
        patch=stage.patch,
    )  # fmt: skip


def shard_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device, as they are sharded."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )
