"""Where mathematics meets a network: scaling, time input, backbone, and what its output means."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from vdm_jax.batch import Frames, Packed
from vdm_jax.cond import Cond
from vdm_jax.diffusion.parameterization import Parameterization, Prediction
from vdm_jax.diffusion.process import Level, Process
from vdm_jax.nets.gamma import Gamma
from vdm_jax.signals import Dropped, Signal, gather
from vdm_jax.types import Count, Params, PerExample, Positive


class TimeInput(Protocol):
    def __call__(self, at: Level) -> PerExample:
        """The number a network is told for a noise level; finite at both ends of time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaledTime:
    """`scale` times t: 1000 sigma on a straight path."""

    scale: Positive = 1000.0

    def __call__(self, at):
        return self.scale * at.t


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableIndex:
    """The index, from 0, of a table of `steps` entries: entry i lies at t = (i + 1) / steps."""

    steps: Count = 1000

    def __call__(self, at):
        return jnp.maximum(self.steps * at.t - 1, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuarterLogSigma:
    """ln(sigma / alpha) / 4 (Karras et al. 2022, c_noise), held within `limit` at the ends."""

    limit: Positive = 20.0

    def __call__(self, at):
        return jnp.clip(-at.logsnr / 2, -self.limit, self.limit) / 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """`scale` times -log SNR, which is held within `limit` at the ends (Kingma et al. 2021)."""

    scale: Positive = 50.0
    limit: Positive = 20.0

    def __call__(self, at):
        return self.scale * jnp.clip(-at.logsnr, -self.limit, self.limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learnt:
    """The schedule that a denoiser has learnt: -gamma(t). Nothing is trained through it."""

    gamma: Gamma
    variables: Params

    def __call__(self, t):
        return -self.gamma.apply(jax.lax.stop_gradient(self.variables), t)

    def inverse(self, logsnr):
        """By bisection, to 2^-24."""

        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            early = self(middle) > logsnr
            return jnp.where(early, middle, low), jnp.where(early, high, middle)

        start = jnp.zeros_like(logsnr), jnp.ones_like(logsnr)
        _, late = jax.lax.fori_loop(0, 24, halve, start)
        return jnp.where(logsnr >= self(jnp.zeros(())), 0, late)


class Denoiser(nn.Module):
    """backbone + signals + parameterization.

    `condition` turns raw values into a `Cond`; `__call__` gives the raw output of the network,
    which `predict` splits into estimates of x0 and eps. Where `gamma` is given, the noise schedule
    is learnt too, and `process` binds it.
    """

    backbone: nn.Module
    parameterization: Parameterization
    signals: tuple[Signal, ...] = ()
    time_input: TimeInput = ScaledTime()
    gamma: Gamma | None = None

    def process(self, params: Params, process: Process) -> Process:
        """`process`, its schedule the one that `params` have learnt, if they have learnt one."""
        if self.gamma is None:
            return process
        schedule = Learnt(gamma=self.gamma, variables={"params": params["params"]["gamma"]})
        return dataclasses.replace(process, schedule=schedule)

    def condition(
        self, raw: Mapping[str, Any], batch: Frames | Packed, dropped: Dropped | None = None
    ) -> Cond:
        return gather(self.signals, raw, batch, dropped or {})

    def __call__(
        self, batch: Frames | Packed, at: Level, cond: Cond, *, train: bool = False
    ) -> Array:
        """Args: batch.x is x_t; the leaves of `at` are (b e k)."""
        here = jax.tree.map(batch.spread, at)
        scaled = batch.replace(x=self.parameterization.scale(batch.x, here))
        return self.backbone(scaled, self.time_input(at), cond, train=train).astype(jnp.float32)

    def predict(self, batch: Frames | Packed, at: Level, cond: Cond) -> Prediction:
        out = self(batch, at, cond)
        return self.parameterization.split(out, batch.x, jax.tree.map(batch.spread, at))

    def start(self, batch: Frames | Packed, at: Level, raw: Mapping[str, Any]) -> Array:
        """Everything once, for initialisation."""
        if self.gamma is not None:
            self.gamma(at.t)
        return self(batch, at, self.condition(raw, batch))
