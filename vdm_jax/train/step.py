"""The pure training step: gradients of a sum over microbatches, one division, one update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vdm_jax.objectives.denoise import Objective
from vdm_jax.stage import Stage
from vdm_jax.train import state as states
from vdm_jax.train.feed import NONE, to_stage
from vdm_jax.train.state import TrainState
from vdm_jax.types import Metrics, Params


def make_step(
    stage: Stage, objective: Objective, transform: optax.GradientTransformation, seed: int
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A function (state, arrays with leading axis of microbatches, frozen) -> (state, metrics).

    `frozen` are the weights of frozen networks by name: the objective's and the stage's.

    Losses and weights are summed over microbatches (and, by the sharded sums, over devices) before
    the one division, so k microbatches equal one batch and rows of unlike fill count rightly.
    """

    def loss(params, frozen, arrays):
        batch, raw = to_stage(arrays, stage, seed, frozen)
        total, weight, metrics = objective(stage, {**params, **frozen}, batch, raw, seed)
        return total, (weight, metrics)

    def step(
        state: TrainState, arrays: Mapping[str, Any], frozen: Params = NONE
    ) -> tuple[TrainState, Metrics]:
        def accumulate(carry, microbatch):
            (total, (weight, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(
                state.params, frozen, microbatch
            )
            summed = jax.tree.map(jnp.add, carry, (grads, total, weight))
            return summed, metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        start = (zeros, jnp.zeros(()), jnp.zeros(()))
        (grads, total, weight), metrics = jax.lax.scan(accumulate, start, arrays)
        # A batch of padding alone has no weight: loss and gradients are 0, not nan.
        scale = 1 / jnp.maximum(weight, 1)
        grads = jax.tree.map(lambda g: g * scale, grads)
        new, taken = states.advance(state, grads, total * scale, transform)
        found = {
            "loss": total * scale,
            "grad_norm": optax.global_norm(grads),
            "skipped": new.guard.skipped,
            "consecutive_skipped": new.guard.consecutive,
            "taken": taken,
            **{name: _over_microbatches(name, value) for name, value in metrics.items()},
        }
        return new, found

    return step


def _over_microbatches(name: str, values: jax.Array) -> jax.Array:
    """Maxima stay maxima and means means; everything else objectives report is a sum."""
    kind = name.partition("_")[0]
    if kind == "max":
        return values.max(0)
    return values.mean(0) if kind == "mean" else values.sum(0)
