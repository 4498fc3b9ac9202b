"""A noise schedule that is learnt: a monotone network of time (Kingma et al. 2021, appendix H).

    gamma(t) = -log SNR = gamma_0 + (gamma_1 - gamma_0) u(t),   u(t) = (c(t) - c(0)) / (c(1) - c(0))
    c(t) = l1(t) + l3(sigmoid(l2(l1(t))))                                                 (1)

The linear layers l have positive weights, so gamma rises with t; its ends gamma_0 and gamma_1 are
parameters of their own, and no other parameter moves them.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, constant
from jaxtyping import Array, Float

from vdm_jax.nets.layers import parameter
from vdm_jax.types import Count, Finite

STEEP = 12.0  # at first, of each hidden unit's sigmoid: it rises within a sixth of time
SHARE = 0.1  # at first, of the hidden units in c; the rest is the straight line


def _raw(weight: float) -> Initializer:
    """Of what softplus makes this weight of."""
    return constant(math.log(math.expm1(weight)))


def _places(key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
    """Biases with which the hidden units' sigmoids rise anywhere in time."""
    del out_sharding
    return -STEEP * jax.random.uniform(key, shape, dtype)


class Gamma(nn.Module):
    """Equation (1), elementwise; nearly a straight line at first.

    Attributes:
      low, high: gamma_0 and gamma_1 at first; the paper's are -13.3 and 5.
      hidden: units of l2.
    """

    low: Finite = -13.3
    high: Finite = 5.0
    hidden: Count = 1024

    def setup(self) -> None:
        def one(name: str, init: Initializer, shape: tuple[int, ...]) -> Array:
            return parameter(self, name, init, (None,) * len(shape), shape)

        self.gamma_0 = one("gamma_0", constant(self.low), ())
        self.gamma_1 = one("gamma_1", constant(self.high), ())
        self.first = one("first", _raw(1.0), ())
        self.second = one("second", _raw(STEEP), (self.hidden,))
        self.places = one("places", _places, (self.hidden,))
        self.third = one("third", _raw(SHARE), (self.hidden,))

    def ends(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(gamma_0, gamma_1)."""
        return self.gamma_0, self.gamma_1

    def curve(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """u(t): 0 at t = 0, 1 at t = 1."""
        start, end = self._c(jnp.zeros(())), self._c(jnp.ones(()))
        return (self._c(t) - start) / (end - start)

    def __call__(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.gamma_0 + (self.gamma_1 - self.gamma_0) * self.curve(t)

    def _c(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        line = nn.softplus(self.first) * t
        units = nn.sigmoid(nn.softplus(self.second) * line[..., None] + self.places)
        return line + (nn.softplus(self.third) * units).mean(-1)
