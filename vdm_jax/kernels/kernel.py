"""A kernel: attention among the tokens that one device holds, and its gradient, as two functions.

The forward pass also gives lambda_i = log sum_j exp(s_ij), the logarithm of each query's normaliser
over the keys it saw. With it results over disjoint sets of keys A and B merge exactly,

    lambda = log(exp(lambda_A) + exp(lambda_B)),
    out = exp(lambda_A - lambda) out_A + exp(lambda_B - lambda) out_B,                        (1)

and the gradient needs nothing of the forward pass but (out, lambda), of all keys even where only
some of them are at hand. Kernels are values: hashable, compared by their fields.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

# The logarithm of no weight at all; finite, so that HIDDEN - HIDDEN is 0 and not nan.
HIDDEN = -1e30


class Saved(NamedTuple):
    """What a backward pass is given. A query that sees nothing has `out` 0 and `lse` HIDDEN."""

    q: Float[Array, "b n h d"]
    k: Float[Array, "b m h d"]
    v: Float[Array, "b m h d"]
    q_group: Int[Array, "b n"]
    kv_group: Int[Array, "b m"]
    out: Float[Array, "b n h d"]
    lse: Float[Array, "b h n"]


class Kernel(Protocol):
    def forward(
        self, q: Array, k: Array, v: Array, q_group: Array, kv_group: Array
    ) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
        """(out in the dtype of `q`, lambda in fp32)."""

    def backward(
        self, saved: Saved, d_out: Float[Array, "b n h d"]
    ) -> tuple[Float[Array, "b n h d"], Float[Array, "b m h d"], Float[Array, "b m h d"]]:
        """Gradients of q, k and v, in their dtypes."""


def merge(
    one: tuple[Float[Array, "b n h d"], Float[Array, "b h n"]],
    other: tuple[Float[Array, "b n h d"], Float[Array, "b h n"]],
) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
    """(out, lambda) over two disjoint sets of keys -> over both, by equation (1); `out` in fp32."""
    lse = jnp.logaddexp(one[1], other[1])
    weighted = (jnp.exp(part - lse).swapaxes(1, 2)[..., None] * out for out, part in (one, other))
    return sum(weighted, start=jnp.float32(0)), lse


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    kernel: Kernel,
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    q_group: Int[Array, "b n"],
    kv_group: Int[Array, "b m"],
) -> Float[Array, "b n h d"]:
    """Attention by a kernel, with its gradient."""
    return kernel.forward(q, k, v, q_group, kv_group)[0]


def _save(kernel, q, k, v, q_group, kv_group):
    out, lse = kernel.forward(q, k, v, q_group, kv_group)
    # Names for remat policies: kept, they spare the backward pass a second forward pass.
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, Saved(q, k, v, q_group, kv_group, out, lse)


def _differentiate(kernel, saved, d_out):
    return *kernel.backward(saved, d_out), None, None


attend.defvjp(_save, _differentiate)
