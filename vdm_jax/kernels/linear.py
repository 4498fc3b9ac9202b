"""The product of a linear layer, with the gradient of its weights in the form a CPU is fast at.

    y = x W,   dx = dy W^T,   dW = x^T dy                                                        (1)

dW sums over tokens, which both of its factors hold on an outer axis. Left alone, XLA for the CPU
writes dy down transposed and still walks x across its rows. Here x is written down transposed, and
the product is one of rows by columns, as y is: `tests/benchmarks/linear.py` measures both. For
other platforms the compiler chooses.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

STRIPS = (512, 384, 256)  # features of x a strip; the first that divides them all


@jax.custom_vjp
def product(x: Float[Array, "... k"], w: Float[Array, "k m"]) -> Float[Array, "... m"]:
    """x W of equations (1), in the dtype of both."""
    return jnp.tensordot(x, w, 1)


def _save(x, w):
    # Not `product`, inside of which a remat policy would not see the product it may keep.
    return jnp.tensordot(x, w, 1), (x, w)


def _differentiate(saved, d_y):
    x, w = saved
    d_x = jnp.tensordot(d_y, w, ((-1,), (1,)))
    return d_x, jax.lax.platform_dependent(x, d_y, cpu=_in_strips, default=_over_tokens)


product.defvjp(_save, _differentiate)


def _over_tokens(x: Float[Array, "... k"], d_y: Float[Array, "... m"]) -> Float[Array, "k m"]:
    tokens = tuple(range(x.ndim - 1))
    return jnp.tensordot(x, d_y, (tokens, tokens))


def _in_strips(x: Float[Array, "... k"], d_y: Float[Array, "... m"]) -> Float[Array, "k m"]:
    """Strips of dW, from x turned strip by strip.

    The barrier keeps the compiler from folding the turn into the product. The loop makes it lay x
    out first: it would otherwise compute x again, an activation and all, in a walk across its rows.
    """

    def strip(start):
        piece = jax.lax.dynamic_slice_in_dim(x, start, width, axis=-1)
        turned = jax.lax.optimization_barrier(jnp.moveaxis(piece, -1, 0))
        return jnp.tensordot(turned, d_y, x.ndim - 1)

    k = x.shape[-1]
    width = next((width for width in STRIPS if k % width == 0), k)
    return jax.lax.map(strip, jnp.arange(0, k, width)).reshape(k, -1)
