"""Denoising: predict a target from noised cells, weighted by noise level (Ho et al. 2020, eq. 14).

With t drawn per example, x_t = alpha x0 + sigma eps, and the network's output held against the
parameterization's target. Time, noise and dropped conditions are keyed by (seed, example, visit),
so an example's loss does not depend on its row, its neighbours, the batch or the mesh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.batch import Frames, Packed
from vdm_jax.cond import Cond
from vdm_jax.denoiser import Denoiser
from vdm_jax.diffusion.process import Level, with_known
from vdm_jax.diffusion.times import Times
from vdm_jax.diffusion.weights import Weight
from vdm_jax.signals import draw_dropped
from vdm_jax.stage import Stage
from vdm_jax.types import Fraction, Metrics, Params


class Network(Protocol):
    """A finished denoiser that is asked and never trained, such as a teacher."""

    @property
    def denoiser(self) -> Denoiser: ...

    def weights(self) -> Params:
        """Variables of `denoiser.apply`, on the host."""


class Objective(Protocol):
    @property
    def frozen(self) -> Mapping[str, Network]:
        """Networks by name: beside those that are trained, `params` holds each one's weights under
        its name. They are arguments of the step, spread over the mesh like the model's own."""

    def problems(self, stage: Stage) -> list[str]:
        """Why a model of this stage cannot be trained so, one sentence each."""

    def __call__(
        self,
        stage: Stage,
        params: Params,
        batch: Frames | Packed,
        raw: Mapping[str, Any],
        seed: int,
    ) -> tuple[Array, Array, Metrics]:
        """(loss sum, weight sum, metrics): divided once, over all microbatches and devices."""

    def errors(
        self,
        stage: Stage,
        params: Params,
        batch: Frames | Packed,
        raw: Mapping[str, Any],
        seed: int,
        t: float,
    ) -> Float[Array, "b e"]:
        """Unweighted error of each example at a fixed time, with noise fixed by the example."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoise:
    """Args:
    times: the law of t; weight: of the error, by level.
    power: 1 counts examples alike, 0 counts tokens alike (`batch.total`).
    """

    times: Times
    weight: Weight
    power: Fraction = 1.0

    @property
    def frozen(self):
        return {}

    def problems(self, stage):
        return []

    def __call__(self, stage, params, batch, raw, seed):
        process = stage.learnt_process(params).on(batch)
        # Cells that are given are told level 0, as in sampling.
        batch, t = with_known(batch, self.times(batch.keys(seed, "time"), batch, process))
        at = process.level(t)
        dropped = draw_dropped(stage.denoiser.signals, batch, seed)
        keys = batch.keys(seed, "noise")
        err, max_logit = _error(stage, params, batch, raw, at, keys, dropped, seed)
        weight = self.weight(at, stage.denoiser.parameterization, process)
        total, count = batch.total(err * batch.spread(weight), self.power)
        return total, count, {"max_logit": max_logit}

    def errors(self, stage, params, batch, raw, seed, t):
        b, e = batch.examples.valid.shape
        process = stage.learnt_process(params).on(batch)
        batch, times = with_known(batch, jnp.full((b, e, 1), t))
        at = process.level(times)
        keys = batch.keys(seed, "validation")
        err, _ = _error(stage, params, batch, raw, at, keys, {})
        return batch.reduce(err, "mean")


class Attempt(NamedTuple):
    """A network's raw output for a noisy batch, like x, and the largest attention logit."""

    x_t: Array
    eps: Array
    out: Array
    largest: Array


def attempt(stage, params, batch, raw, at, noise_keys, dropped, seed=None) -> Attempt:
    """The network at the levels `at` (b e k), with noise by `noise_keys`; see `respond`."""
    denoiser = stage.denoiser
    eps = stage.prior(noise_keys, batch)
    x_t = batch.insert_known(stage.process.noise(batch.x, eps, jax.tree.map(batch.spread, at)))
    cond = denoiser.apply(params, raw, batch, dropped, method="condition")
    return Attempt(x_t, eps, *respond(denoiser, params, batch.replace(x=x_t), at, cond, seed))


def _error(stage, params, batch, raw, at, noise_keys, dropped, seed=None) -> tuple[Array, Array]:
    """(squared error like x, largest attention logit)."""
    made = attempt(stage, params, batch, raw, at, noise_keys, dropped, seed)
    here = jax.tree.map(batch.spread, at)
    target = stage.denoiser.parameterization.target(batch.x, made.eps, here)
    return jnp.square(made.out - target), made.largest


def respond(
    denoiser: Denoiser,
    params: Params,
    batch: Frames | Packed,
    at: Level,
    cond: Cond,
    seed: int | None,
) -> tuple[Array, Array]:
    """(raw output for x_t = batch.x, largest attention logit).

    Args:
      seed: of what the network drops in training; None drops nothing.
    """
    draws = {} if seed is None else {"dropout": jax.random.key(seed)}
    out, sown = denoiser.apply(
        params, batch, at, cond, train=bool(draws), mutable="intermediates", rngs=draws
    )
    logits = jax.tree.leaves(sown.get("intermediates", {}))
    largest = jnp.max(jnp.stack([leaf.max() for leaf in logits])) if logits else jnp.zeros(())
    return out, jax.lax.stop_gradient(largest)
