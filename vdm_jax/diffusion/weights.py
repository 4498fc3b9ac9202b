"""How much an error counts: the weight of the squared error of the *target*.

    loss = weight(at, parameterization, process) * (out - target)^2

The laws below are stated for the error of x0 or of eps; the hub converts them. Since x0 is affine
in the network's output at fixed x_t, with slope g(logsnr),

    |x0 error|^2 = g^2 |target error|^2            |eps error|^2 = snr |x0 error|^2       (1)

so one law gives one loss whatever the network predicts. g depends on log SNR only; it is evaluated
on the vp path with log SNR held within +-30, hence every weight is finite, at t = 0 and 1 too.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.diffusion.parameterization import Parameterization
from vdm_jax.diffusion.process import Level, Process
from vdm_jax.types import Finite, NonNegative, Positive

_LIMIT = 30.0
_EDGE = 1e-4

Leaf = Float[Array, "..."]


@runtime_checkable
class Weight(Protocol):
    def __call__(self, at: Level, parameterization: Parameterization, process: Process) -> Leaf: ...


def _logsnr(at: Level) -> Leaf:
    return jnp.clip(at.logsnr, -_LIMIT, _LIMIT)


def from_x0_weight(weight: Leaf, at: Level, parameterization: Parameterization) -> Leaf:
    """The weight on the target's error that equals `weight` on the error of x0, by (1)."""
    logsnr = _logsnr(at)
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
    canonical = Level(at.t, logsnr, alpha, sigma)
    slope = parameterization.split(jnp.ones_like(alpha), jnp.zeros_like(alpha), canonical).x0
    return weight * slope**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """1 on the target's own error: the plain loss."""

    def __call__(self, at, parameterization, process):
        return jnp.ones_like(at.alpha)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snr:
    """snr on x0, that is 1 on eps: the plain loss of an eps network, for any network."""

    def __call__(self, at, parameterization, process):
        return from_x0_weight(jnp.exp(_logsnr(at)), at, parameterization)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinSnr:
    """min(snr, gamma) on x0 (Hang et al. 2023, equation 7), and never below `floor`.

    A floor of 1 keeps the error of x0 in the loss where noise hides nearly everything: there the
    layout of a video is decided, and snr alone would count it for nothing.
    """

    gamma: Positive = 5.0
    floor: NonNegative = 0.0

    def __call__(self, at, parameterization, process):
        weight = jnp.clip(jnp.exp(_logsnr(at)), self.floor, self.gamma)
        return from_x0_weight(weight, at, parameterization)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedSnr:
    """max(snr, floor) on x0 (Salimans and Ho 2022, section 4), for distillation."""

    floor: Positive = 1.0

    def __call__(self, at, parameterization, process):
        weight = jnp.maximum(jnp.exp(_logsnr(at)), self.floor)
        return from_x0_weight(weight, at, parameterization)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdmWeight:
    """(sigma^2 + d^2) / (sigma d)^2 on x0, d = sigma_data, at sigma / alpha (Karras et al. 2022).

    Equals snr + 1 / d^2; 1 on the target of `Edm` with the same d.
    """

    sigma_data: Positive = 0.5

    def __call__(self, at, parameterization, process):
        weight = jnp.exp(_logsnr(at)) + self.sigma_data**-2
        return from_x0_weight(weight, at, parameterization)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vlb:
    """-1/2 d logsnr/dt on eps: the variational bound in nats, for uniform t (Kingma et al. 2021).

    The slope is infinite where log SNR is; t is held 1e-4 away from the ends.
    """

    def __call__(self, at, parameterization, process):
        t = jnp.clip(at.t, _EDGE, 1 - _EDGE)
        _, slope = jax.jvp(lambda t: process.level(t).logsnr, (t,), (jnp.ones_like(t),))
        weight = -slope / 2 * jnp.exp(_logsnr(at))
        return from_x0_weight(weight, at, parameterization)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """sigmoid(bias - logsnr) times `Vlb`: high frequencies count less (Kingma and Gao 2023)."""

    bias: Finite = 0.0

    def __call__(self, at, parameterization, process):
        return jax.nn.sigmoid(self.bias - at.logsnr) * Vlb()(at, parameterization, process)
