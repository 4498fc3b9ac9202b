"""Which noise levels training visits: one law of t per example and level.

    t = times(keys, batch, process)            keys (b e), t (b e k), in (0, 1]

Never exactly 0, where weights of a clean cell would be infinite. A law has two parts: uniform
numbers u in (0, 1] (`Uniform`, `Stratified`, `PerFrame`, themselves laws), and a map of u to t
(`LogitNormal`, `LogNormalSigma`, whose `base` is one of those). Each example's times follow from
its own key and ordinal alone.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from vdm_jax.batch import Frames, Packed
from vdm_jax.config import UserError
from vdm_jax.diffusion.process import Process
from vdm_jax.types import Count, ExampleKeys, Finite, Fraction, PerExample, Positive

_GOLDEN = 2654435769  # 2^32 / golden ratio, odd: multiples modulo 2^32 are a lattice without gaps


@runtime_checkable
class Times(Protocol):
    def __call__(
        self, keys: ExampleKeys, batch: Frames | Packed, process: Process
    ) -> PerExample: ...


def _uniform(keys: ExampleKeys, levels: int) -> Float[Array, "b e k"]:
    draw = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (levels,))))
    return 1 - draw(keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """One level per example, anywhere."""

    def __call__(self, keys, batch, process):
        return _uniform(keys, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Within:
    """Only times between `low` and `high`, evenly: for an expert of some levels (Balaji et al.
    2022, section 4.1), for noise on a condition.

    Raises:
      UserError: no room between them.
    """

    low: Fraction = 0.0
    high: Fraction = 1.0
    base: Times = Uniform()

    def __post_init__(self):
        if not self.low < self.high:
            raise UserError(f"Within needs low below high, not {self.low:g} and {self.high:g}.")

    def __call__(self, keys, batch, process):
        return self.low + (self.high - self.low) * self.base(keys, batch, process)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerFrame:
    """`levels` independent levels per example (Chen et al. 2024, "Diffusion Forcing")."""

    levels: Count

    def __call__(self, keys, batch, process):
        return _uniform(keys, self.levels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stratified:
    """Even cover of [0, 1] by consecutive examples: u = frac(ordinal x golden ratio + jitter).

    The lattice point is a function of the example's ordinal, so neighbours do not matter. `jitter`
    is the width of a uniform offset, which keeps the law continuous.
    """

    jitter: Fraction = 1 / 64

    def __call__(self, keys, batch, process):
        # Exact integers: a product in float32 would lose the fraction after 10^7 examples.
        lattice = batch.examples.ordinal.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
        u = (lattice >> 8).astype(jnp.float32) / 2**24
        return 1 - jnp.mod(u[..., None] + self.jitter * (1 - _uniform(keys, 1)), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal:
    """t = sigmoid(mean + std n) (Esser et al. 2024, equation 19; there t runs the same way)."""

    mean: Finite = 0.0
    std: Positive = 1.0
    base: Times = Uniform()

    def __call__(self, keys, batch, process):
        t = jax.nn.sigmoid(self.mean + self.std * _normal(self.base(keys, batch, process)))
        return jnp.maximum(t, jnp.finfo(t.dtype).tiny)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormalSigma:
    """ln(sigma / alpha) ~ N(mean, std^2), through the process (Karras et al. 2022, table 1)."""

    mean: Finite = -1.2
    std: Positive = 1.2
    base: Times = Uniform()

    def __call__(self, keys, batch, process):
        log_sigma = self.mean + self.std * _normal(self.base(keys, batch, process))
        t = process.inverse(-2 * log_sigma)
        return jnp.clip(t, math.ldexp(1.0, -24), 1)


def _normal(u: Float[Array, "..."]) -> Float[Array, "..."]:
    # u = 1 would be infinite; half a step of float32's lattice below it is 5.4 sigma.
    return ndtri(jnp.clip(u, 2.0**-25, 1 - 2.0**-24))
