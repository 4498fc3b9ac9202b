"""The reference: the whole (n, m) matrix of scores, masked, differentiated by JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm_jax.kernels.kernel import HIDDEN


def attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    q_group: Int[Array, "b n"],
    kv_group: Int[Array, "b m"],
    bias: Float[Array, "#b #h #n #m"] | None = None,
) -> Float[Array, "b n h d"]:
    """Equation (1) of `attend.py`."""
    p = weights(q, k, q_group, kv_group, bias).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", p, v, preferred_element_type=jnp.float32).astype(q.dtype)


def weights(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    q_group: Int[Array, "b n"],
    kv_group: Int[Array, "b m"],
    bias: Float[Array, "#b #h #n #m"] | None = None,
) -> Float[Array, "b h n m"]:
    """What each query makes of each key, fp32."""
    visible = q_group[:, None, :, None] == kv_group[:, None, None, :]
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    scores = jnp.where(visible, scores, HIDDEN)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    p = jnp.where(visible, jnp.exp(scores - top), 0)
    total = p.sum(-1, keepdims=True)
    return p / jnp.where(total > 0, total, 1)
