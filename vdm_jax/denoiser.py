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
from vdm_jax.diffusion.process import Level
from vdm_jax.signals import Dropped, Signal, gather
from vdm_jax.types import Count, PerExample, Positive


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


class Denoiser(nn.Module):
    """backbone + signals + parameterization.

    `condition` turns raw values into a `Cond`; `__call__` gives the raw output of the network,
    which `predict` splits into estimates of x0 and eps.
    """

    backbone: nn.Module
    parameterization: Parameterization
    signals: tuple[Signal, ...] = ()
    time_input: TimeInput = ScaledTime()

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
        return self(batch, at, self.condition(raw, batch))
