"""What a network predicts. The hub is the pair (x0, eps): 2n small functions instead of n^2.

With a = alpha, s = sigma of the level, z = x_t and r = sqrt(a^2 + s^2):

    Eps   eps                    x0 = (z - s out) / a
    X0    x0                     eps = (z - a out) / s
    V     (a eps - s x0) / r     x0 = (a z / r - s out) / r      eps = (s z / r + a out) / r
    Flow  eps - x0               x0 = (z - s out) / (a + s)      eps = (z + a out) / (a + s)
    Edm   (s x0 - d^2 a eps) / (d q),   q^2 = s^2 + d^2 a^2,  d = sigma_data

V is defined by the variance-preserving direction z / r, so it means the same on every path; at
a = 1 and d = 1, Edm is -V. Eps is undefined without signal and X0 without noise: there the missing
member of the pair is 0, never nan.

Where the output has twice the channels of x, its second half u is a learned variance:
`var_frac` = (u + 1) / 2 between the two bounds (Nichol and Dhariwal 2021, equation 15).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array

from vdm_jax.diffusion.process import Level, over
from vdm_jax.types import Positive


class Prediction(NamedTuple):
    """Estimates of x0 and eps that belong together: alpha x0 + sigma eps = x_t.

    `plain` is the prediction before guidance, where there was any.
    """

    x0: Array
    eps: Array
    var_frac: Array | None = None
    plain: Prediction | None = None


@runtime_checkable
class Parameterization(Protocol):
    """The leaves of `at` broadcast to x everywhere."""

    def scale(self, x_t: Array, at: Level) -> Array:
        """What the network is shown."""

    def target(self, x0: Array, eps: Array, at: Level) -> Array:
        """What the network should answer."""

    def split(self, out: Array, x_t: Array, at: Level) -> Prediction:
        """What the network's answer means."""


def from_x0(x0: Array, x_t: Array, at: Level) -> Prediction:
    """The pair with this x0."""
    return Prediction(x0, over(x_t - at.alpha * x0, at.sigma))


def _radius(at: Level) -> Array:
    return jnp.sqrt(at.alpha**2 + at.sigma**2)


def _halves(out: Array, x_t: Array) -> tuple[Array, Array | None]:
    out = out.astype(jnp.promote_types(out.dtype, jnp.float32))
    if out.shape[-1] == x_t.shape[-1]:
        return out, None
    mean, variance = jnp.split(out, 2, axis=-1)
    return mean, (variance + 1) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eps:
    def scale(self, x_t: Array, at: Level) -> Array:
        return over(x_t, _radius(at))

    def target(self, x0: Array, eps: Array, at: Level) -> Array:
        return eps

    def split(self, out: Array, x_t: Array, at: Level) -> Prediction:
        eps, var_frac = _halves(out, x_t)
        return Prediction(over(x_t - at.sigma * eps, at.alpha), eps, var_frac)


@dataclasses.dataclass(frozen=True, kw_only=True)
class X0:
    def scale(self, x_t: Array, at: Level) -> Array:
        return over(x_t, _radius(at))

    def target(self, x0: Array, eps: Array, at: Level) -> Array:
        return x0

    def split(self, out: Array, x_t: Array, at: Level) -> Prediction:
        x0, var_frac = _halves(out, x_t)
        return from_x0(x0, x_t, at)._replace(var_frac=var_frac)


@dataclasses.dataclass(frozen=True, kw_only=True)
class V:
    """Salimans and Ho 2022, appendix D."""

    def scale(self, x_t: Array, at: Level) -> Array:
        return over(x_t, _radius(at))

    def target(self, x0: Array, eps: Array, at: Level) -> Array:
        return over(at.alpha * eps - at.sigma * x0, _radius(at))

    def split(self, out: Array, x_t: Array, at: Level) -> Prediction:
        v, var_frac = _halves(out, x_t)
        radius = _radius(at)
        z = over(x_t, radius)
        x0 = over(at.alpha * z - at.sigma * v, radius)
        eps = over(at.sigma * z + at.alpha * v, radius)
        return Prediction(x0, eps, var_frac)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """The velocity of a straight path (Liu et al. 2022; Lipman et al. 2022)."""

    def scale(self, x_t: Array, at: Level) -> Array:
        return x_t

    def target(self, x0: Array, eps: Array, at: Level) -> Array:
        return eps - x0

    def split(self, out: Array, x_t: Array, at: Level) -> Prediction:
        u, var_frac = _halves(out, x_t)
        total = at.alpha + at.sigma
        return Prediction(
            over(x_t - at.sigma * u, total), over(x_t + at.alpha * u, total), var_frac
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edm:
    """Unit-variance input and target for data of std `sigma_data` (Karras et al. 2022, table 1)."""

    sigma_data: Positive = 0.5

    def _norm(self, at: Level) -> Array:
        return jnp.sqrt(at.sigma**2 + (self.sigma_data * at.alpha) ** 2)

    def scale(self, x_t: Array, at: Level) -> Array:
        return over(x_t, self._norm(at))

    def target(self, x0: Array, eps: Array, at: Level) -> Array:
        d = self.sigma_data
        return over(at.sigma * x0 / d - d * at.alpha * eps, self._norm(at))

    def split(self, out: Array, x_t: Array, at: Level) -> Prediction:
        f, var_frac = _halves(out, x_t)
        d, norm = self.sigma_data, self._norm(at)
        z = over(x_t, norm)
        x0 = over(d**2 * at.alpha * z + d * at.sigma * f, norm)
        eps = over(at.sigma * z - d * at.alpha * f, norm)
        return Prediction(x0, eps, var_frac)
