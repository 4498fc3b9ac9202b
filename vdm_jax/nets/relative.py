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
from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm_jax.axes import HEAD_DIM, HEADS
from vdm_jax.kernels import dense
from vdm_jax.nets.layers import SMALL, XAVIER, parameter
from vdm_jax.types import Count

Heads = Float[Array, "r f h d"]


class Relative(Protocol):
    def tables(
        self, module: nn.Module, name: str, heads: int, features: int, at: Int[Array, "b f"]
    ) -> Any:
        """What is learnt of the distances in each row (b ...), in `module`; `at` numbers frames."""

    def meet(self, q: Heads, k: Heads, v: Heads, ids: Int[Array, "r f"], tables: Any) -> Heads:
        """What stands in for `kernels.attend`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Bias:
    """Equation (1), in both directions: half of the buckets for each, half of those exact, and
    logarithmic ones up to `reach`."""

    buckets: Count = 32
    reach: Count = 32

    def tables(self, module, name, heads, features, at):
        table = parameter(module, f"{name}_bias", SMALL, (None, HEADS), (self.buckets, heads))
        return jnp.moveaxis(table[self.bucket(distance(at))], -1, 1)

    def meet(self, q, k, v, ids, tables):
        each = jnp.repeat(tables, len(q) // len(tables), axis=0)
        return dense.attend(q, k, v, ids, ids, each)

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

    def tables(self, module, name, heads, features, at):
        shape = (2 * self.reach + 1, features)
        to_keys, to_values = (
            parameter(module, f"{name}_{kind}", XAVIER, (None, HEAD_DIM), shape)
            for kind in ("keys", "values")
        )
        index = jnp.clip(distance(at), -self.reach, self.reach) + self.reach
        return to_keys[index], to_values[index]

    def meet(self, q, k, v, ids, tables):
        a, c = tables
        b, rows = len(a), (len(a), -1, *q.shape[1:])
        scores = jnp.einsum("bsihd,bijd->bshij", q.reshape(rows), a) * q.shape[-1] ** -0.5
        p = dense.weights(q, k, ids, ids, scores.reshape(-1, *scores.shape[2:]))
        out = jnp.einsum("rhij,rjhd->rihd", p, v)
        told = jnp.einsum("bshij,bijd->bsihd", p.reshape(b, -1, *p.shape[1:]), c)
        return (out + told.reshape(out.shape)).astype(q.dtype)


def distance(at: Int[Array, "b f"]) -> Int[Array, "b f f"]:
    """From each frame to each other: j - i at (i, j)."""
    return at[:, None, :] - at[:, :, None]
