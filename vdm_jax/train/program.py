"""The compiled side of a run: mesh, shardings, jitted initialisation and step.

`eval_shape -> shardings -> jit(init, out_shardings)`: no parameter is ever whole on one device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.batch import Frames, Packed
from vdm_jax.denoiser import Denoiser
from vdm_jax.images import ImageEncoder
from vdm_jax.objectives.denoise import Network
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.place import abstract, batch_sharding, unbox
from vdm_jax.parallel.rules import Rules, table
from vdm_jax.train import state as states
from vdm_jax.train.feed import to_stage
from vdm_jax.train.run import Run
from vdm_jax.train.state import TrainState
from vdm_jax.train.step import make_step
from vdm_jax.types import Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Attributes:
    abstract: shapes, dtypes and shardings of the whole state.
    batch_sharding: of arrays (microbatches, rows, ...): rows over `data` and `fsdp`.
    frozen: shapes, dtypes and shardings of the weights of the frozen `networks`: the objective's
      and the stage's.
    """

    mesh: jax.sharding.Mesh
    abstract: TrainState
    batch_sharding: jax.sharding.NamedSharding
    rules: Rules
    jitted_init: Callable[[], TrainState]
    jitted_step: Any  # (state, arrays, frozen) -> (state, metrics), of jax.jit
    frozen: Params = dataclasses.field(default_factory=dict)
    networks: Mapping[str, Network | ImageEncoder] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def weights(self) -> Params:
        """Of the frozen networks, read and placed when they are first asked for."""
        read = {name: network.weights()["params"] for name, network in self.networks.items()}
        return jax.device_put(read, jax.tree.map(lambda leaf: leaf.sharding, self.frozen))

    def init(self) -> TrainState:
        with self.ambient():
            return self.jitted_init()

    def step(self, state: TrainState, arrays: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
        """One update; `state` is donated."""
        with self.ambient():
            return self.jitted_step(state, arrays, self.weights)

    def lower(self, state: TrainState, arrays: Mapping[str, Any]) -> jax.stages.Lowered:
        """The step before the compiler, for concrete or abstract arguments."""
        with self.ambient():
            return self.jitted_step.lower(state, arrays, self.frozen)

    def trace(self, state: TrainState, arrays: Mapping[str, Any]) -> jax.stages.Traced:
        """The step before it is lowered, for whatever platform."""
        with self.ambient():
            return self.jitted_step.trace(state, arrays, self.frozen)

    @contextlib.contextmanager
    def ambient(self) -> Iterator[None]:
        """Mesh and rules, for whatever is traced inside."""
        # Under `with mesh:` Flax would silently ignore every constraint.
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.rules):
            yield

    @property
    def row_devices(self) -> int:
        """Over how many devices the rows of a microbatch are spread."""
        return int(self.mesh.shape["data"] * self.mesh.shape["fsdp"])


def initialise(run: Run) -> TrainState:
    """A fresh state, its parameters boxed with logical axis names; traced, never run eagerly."""
    params = {"params": parameters(run, run.stage.denoiser)}
    return states.create(params, run.optimizer.transform(), run.ema)


def parameters(run: Run, denoiser: Denoiser) -> Params:
    """Those of a denoiser of this run's data, fresh and boxed."""
    batch, raw = given(run)
    at = run.stage.process.on(batch).level(jnp.full((*batch.examples.valid.shape, 1), 0.5))
    key = jax.random.fold_in(jax.random.key(run.seed), np.uint32(0x1417))
    return denoiser.init(key, batch, at, raw, method="start")["params"]


def encoders(run: Run) -> Params:
    """Parameters of the stage's frozen encoders by name, fresh and boxed."""
    return {name: encoder.fresh()["params"] for name, encoder in run.stage.encoders.items()}


def given(run: Run) -> tuple[Frames | Packed, dict[str, Any]]:
    """A row of padding and its conditions, of which only shapes matter: of what encoders that are
    fresh make of it, the compiler makes nothing."""
    arrays = jax.tree.map(jnp.asarray, run.blank_arrays(1))
    return to_stage(arrays, run.stage, frozen=unbox(encoders(run)))


def condition_features(run: Run, params: Any) -> dict[str, int]:
    """Features of a token of each condition's token set; traced, never run."""
    denoiser = run.stage.denoiser

    def condition(params: Any) -> Any:
        batch, raw = given(run)
        return denoiser.apply(params, raw, batch, {}, method="condition")

    cond = jax.eval_shape(condition, params)
    return {name: tokens.x.shape[-1] for name, tokens in cond.tokens.items()}


def parameter_count(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def make_program(run: Run, devices: Sequence[jax.Device] | None = None) -> Program:
    """Everything but compilation, which the first step does; on all devices unless some are given.

    Raises:
      UserError: the mesh does not fit the devices, a parameter no rule of the optimizer matches.
    """
    mesh = make_mesh(run.mesh, devices)
    rules = table(run.rules)
    boxed = jax.eval_shape(lambda: initialise(run))
    whole = abstract(boxed, mesh, rules)
    placed = jax.tree.map(lambda leaf: leaf.sharding, whole)
    asked = run.objective.frozen
    frozen = jax.eval_shape(
        lambda: {**{n: parameters(run, x.denoiser) for n, x in asked.items()}, **encoders(run)}
    )
    step = make_step(run.stage, run.objective, run.optimizer.transform(), run.seed)

    init = jax.jit(lambda: unbox(initialise(run)), out_shardings=placed)
    return Program(
        mesh=mesh,
        abstract=whole,
        batch_sharding=batch_sharding(mesh),
        rules=rules,
        jitted_init=init,
        jitted_step=jax.jit(step, donate_argnums=0, out_shardings=(placed, None)),
        frozen=abstract(frozen, mesh, rules),
        networks={**asked, **run.stage.encoders},
    )
