"""What attention in time is told of the distance between two frames.

    t5     score + b[bucket(j - i)], a bias per head                    (Raffel et al. 2020)     (1)
    shaw   score_ij = q_i . (k_j + a[j - i]) / sqrt(d),
           out_i = sum_j p_ij (v_j + c[j - i])                          (Shaw et al. 2018)       (2)

In (2) distances are held within +-`reach`. Rows of queries and keys are all places of each row of
frames, as many for each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int

from vdm_jax.axes import HEAD_DIM, HEADS
from vdm_jax.kernels import dense
from vdm_jax.nets.layers import SMALL, XAVIER, parameter
from vdm_jax.types import Count

Meet = Callable[..., Array]


class Relative(Protocol):
    def meet(
        self, module: nn.Module, name: str, heads: int, features: int, at: Int[Array, "b f"]
    ) -> Meet:
        """What stands in for `kernels.attend`, its tables made in `module`; `at` numbers frames."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Bias:
    """Equation (1), in both directions: half of the buckets for each, half of those exact, and
    logarithmic ones up to `reach`."""

    buckets: Count = 32
    reach: Count = 32

    def meet(self, module, name, heads, features, at):
        table = parameter(module, f"{name}_bias", SMALL, (None, HEADS), (self.buckets, heads))
        bias = jnp.moveaxis(table[self.bucket(distance(at))], -1, 1)

        def meet(q, k, v, *, q_group, kv_group):
            each = jnp.repeat(bias, len(q) // len(bias), axis=0)
            return dense.attend(q, k, v, q_group, kv_group, each)

        return meet

    def bucket(self, distance: Int[Array, "..."]) -> Int[Array, "..."]:
        """Number of the bucket of a signed distance (ibid., section 2.1)."""
        half = self.buckets // 2
        exact = half // 2
        far = jnp.abs(distance)
        scale = (half - exact) / math.log(self.reach / exact)
        logarithmic = exact + (jnp.log(jnp.maximum(far, 1) / exact) * scale).astype(jnp.int32)
        found = jnp.where(far < exact, far, jnp.minimum(logarithmic, half - 1))
        return jnp.where(distance > 0, half, 0) + found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shaw:
    """Equation (2); tables (2 reach + 1, features of a head) shared by all heads."""

    reach: Count = 16

    def meet(self, module, name, heads, features, at):
        shape = (2 * self.reach + 1, features)
        to_keys, to_values = (
            parameter(module, f"{name}_{kind}", XAVIER, (None, HEAD_DIM), shape)
            for kind in ("keys", "values")
        )
        index = jnp.clip(distance(at), -self.reach, self.reach) + self.reach

        def meet(q, k, v, *, q_group, kv_group):
            b, rows = len(at), (len(at), -1, *q.shape[1:])
            a, c = to_keys[index], to_values[index]
            scores = jnp.einsum("bsihd,bijd->bshij", q.reshape(rows), a) * q.shape[-1] ** -0.5
            p = dense.weights(q, k, q_group, kv_group, scores.reshape(-1, *scores.shape[2:]))
            out = jnp.einsum("rhij,rjhd->rihd", p, v)
            told = jnp.einsum("bshij,bijd->bsihd", p.reshape(b, -1, *p.shape[1:]), c)
            return (out + told.reshape(out.shape)).astype(q.dtype)

        return meet


def distance(at: Int[Array, "b f"]) -> Int[Array, "b f f"]:
    """From each frame to each other: j - i at (i, j)."""
    return at[:, None, :] - at[:, :, None]
