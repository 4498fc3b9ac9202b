"""The forward process: what one noise level is. The convention, stated here once for everything:

    t in [0, 1], 0 = clean, 1 = noise; log SNR falls with t; eps = noise; x0 = clean

    x_t = alpha x0 + sigma eps,     alpha / sigma = exp(logsnr / 2)                       (1)

A schedule gives log SNR; a path fixes the scale of (1):

    vp      alpha^2 + sigma^2 = 1
    ve      alpha = 1
    linear  alpha + sigma = 1

All else reads the four numbers of a `Level`. Log SNR may be infinite at the ends, alpha and sigma
never are. t = 0 is exactly clean (alpha 1, sigma 0) on every schedule, even one that starts at a
finite log SNR: it is the end of sampling, and the level of cells that are given.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.batch import Frames, Packed
from vdm_jax.config import UserError
from vdm_jax.diffusion.schedule import Numbers, Schedule, Shift
from vdm_jax.types import Finite, Positive


class Level(NamedTuple):
    """One noise level; leaves of one shape: (b e k) per example, or spread to broadcast to x."""

    t: Numbers
    logsnr: Numbers
    alpha: Numbers
    sigma: Numbers


def _vp(logsnr: Numbers) -> tuple[Numbers, Numbers]:
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def _ve(logsnr: Numbers) -> tuple[Numbers, Numbers]:
    return jnp.ones_like(logsnr), jnp.exp(-logsnr / 2)


def _linear(logsnr: Numbers) -> tuple[Numbers, Numbers]:
    return jax.nn.sigmoid(logsnr / 2), jax.nn.sigmoid(-logsnr / 2)


PATHS = {"vp": _vp, "ve": _ve, "linear": _linear}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenShift:
    """More noise for larger videos: factor (cells / reference) ** power on the noise ratio.

    Power 1/2 keeps the uncertainty of the mean of redundant cells (Esser et al. 2024, equation 23).
    """

    reference: Positive
    power: Finite = 0.5

    def __call__(self, batch: Frames | Packed) -> Float[Array, "b e 1"]:
        cells = jnp.prod(batch.examples.grid, axis=-1, keepdims=True)
        return (jnp.maximum(cells, 1) / self.reference) ** self.power


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """A schedule on a path.

    Attributes:
      path: 'vp', 've' or 'linear'.
      shift: where given, each example's own shift; it acts through `on(batch)`.

    Raises:
      UserError: an unknown path, or a ve path whose schedule has no finite end.
    """

    schedule: Schedule
    path: str = "vp"
    shift: TokenShift | None = None

    def __post_init__(self):
        if self.path not in PATHS:
            raise UserError(f"Process.path is '{self.path}'; use {', '.join(PATHS)}.")
        if self.path == "ve":
            with jax.ensure_compile_time_eval():
                end = self.schedule(jnp.ones(()))
                # A shift by a traced factor cannot be read; it does not make an end infinite.
                if not isinstance(end, jax.core.Tracer) and bool(jnp.any(jnp.isinf(end))):
                    raise UserError("Process: sigma is infinite at t = 1 on path 've'; use a Clip.")

    def on(self, batch: Frames | Packed) -> Process:
        """This process as the examples of `batch` see it: call it wherever a batch is at hand.

        `level` and `inverse` of the result take times that broadcast against (b e 1).
        """
        if self.shift is None:
            return self
        shifted = Shift(schedule=self.schedule, factor=self.shift(batch))
        return dataclasses.replace(self, schedule=shifted, shift=None)

    def level(self, t: Numbers | float) -> Level:
        """The noise level at times of any shape."""
        t = jnp.asarray(t, jnp.result_type(float))
        logsnr = jnp.where(t <= 0, jnp.inf, self.schedule(t))
        alpha, sigma = PATHS[self.path](logsnr)
        return Level(jnp.broadcast_to(t, logsnr.shape), logsnr, alpha, sigma)

    def inverse(self, logsnr: Numbers | float) -> Numbers:
        """The time of a log SNR; the nearest end for one out of range."""
        return self.schedule.inverse(jnp.asarray(logsnr, jnp.result_type(float)))

    def noise(self, x0: Array, eps: Array, at: Level) -> Array:
        """Equation (1); the leaves of `at` broadcast to x0."""
        return at.alpha * x0 + at.sigma * eps


def over(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, 0 where the denominator is 0 (a clean cell, no signal, padding)."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)


def gap(now: Level, nxt: Level) -> Array:
    """How much log SNR a step gains; 0, not nan, between two equal levels at an infinite end."""
    same = nxt.logsnr == now.logsnr
    return jnp.where(same, 0, nxt.logsnr - jnp.where(same, 0, now.logsnr))


def held(now: Level, nxt: Level) -> Array:
    """Where a step does not change the level."""
    return (now.alpha == nxt.alpha) & (now.sigma == nxt.sigma)


def with_known(batch: Frames | Packed, t: Numbers) -> tuple[Frames | Packed, Numbers]:
    """Append time 0 to times (... b e k) and let the known cells use it.

    Training and sampling both call this, so that a model is told of its conditions alike in both.
    """
    if batch.known is None:
        return batch, t
    levels = t.shape[-1]
    level = jnp.zeros_like(batch.segment) if levels == 1 or batch.level is None else batch.level
    t = jnp.concatenate([t, jnp.zeros_like(t[..., :1])], axis=-1)
    return batch.replace(level=jnp.where(batch.known, levels, level)), t
