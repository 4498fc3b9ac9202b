"""Multi-head attention, over `kernels.attend`: of packed rows, and of tokens in any layout.

Queries and keys may be normalised per head (RMS, learnt scale) before they are rotated: without it
logits grow in deep networks trained in bfloat16 (Dehghani et al. 2023; Esser et al. 2024).

Where the collection `intermediates` is mutable, each layer sows `max_logit`, an upper bound of its
largest attention logit: max |q_i| max |k_j| / sqrt(d) over its real tokens (Cauchy-Schwarz), which
costs no matrix of scores. It is fp32 and carries no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

from vdm_jax.axes import CONDITION, EMBED, HEAD_DIM, HEADS, ROW, TEXT, TOKEN
from vdm_jax.config import UserError
from vdm_jax.kernels import attend
from vdm_jax.nets.layers import XAVIER, ZERO, LayerNorm, RMSNorm, dense
from vdm_jax.nets.patterns import Groups, permute, take
from vdm_jax.nets.positions import rotate
from vdm_jax.types import Count

Names = tuple[str | None, ...]
Meet = Callable[[Array, Array, Array], Array]  # queries, keys and values of all heads


class SelfAttention(nn.Module):
    """Tokens of a row attend within their groups.

    Attributes:
      qk_norm: 'rms' per head, or 'none'.
      backend: of `kernels.attend`; None chooses.
    """

    heads: Count
    qk_norm: str = "rms"
    dtype: str = "float32"
    backend: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], groups: Groups, angles: Float[Array, "b n half"] | None
    ) -> Float[Array, "b n d"]:
        ids = groups.id
        if groups.order is not None and groups.inverse is not None:
            x = permute(x, groups.order, groups.inverse)
            angles = None if angles is None else take(angles, groups.order)
        q, k, v = (project(x, name, self.heads, self.dtype) for name in ("query", "key", "value"))
        q, k = normalise(q, k, self.qk_norm)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        report_max_logit(self, q, k, ids, ids)
        out = attend(q, k, v, q_group=ids, kv_group=ids, backend=self.backend)
        out = merge(out, x.shape[-1], self.dtype)
        if groups.order is None or groups.inverse is None:
            return out
        return permute(out, groups.inverse, groups.order)


class CrossAttention(nn.Module):
    """Tokens of a row attend to a set of condition tokens.

    Queries pass an affine norm, and the output layer starts at 0, so that a new condition enters
    a trained network without a shock.
    """

    heads: Count
    qk_norm: str = "rms"
    dtype: str = "float32"
    backend: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b l c"],
        q_group: Int[Array, "b n"],
        kv_group: Int[Array, "b l"],
    ) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        q = project(LayerNorm(affine=True, name="norm")(x), "query", self.heads, self.dtype)
        text: dict[str, Any] = dict(width=width, tokens=(TEXT,), features=CONDITION)
        k, v = (project(context, name, self.heads, self.dtype, **text) for name in ("key", "value"))
        q, k = normalise(q, k, self.qk_norm)
        report_max_logit(self, q, k, q_group, kv_group)
        out = attend(
            q, k, v, q_group=q_group, kv_group=kv_group, kv_axis=TEXT, backend=self.backend
        )
        return merge(out, width, self.dtype, init=ZERO)


class MultiHead(nn.Module):
    """Queries of `x` and keys and values of `context`, met as `meet` does; only the layer out has a
    bias.

    Attributes:
      start: of the layer out.
      tokens: logical names of the axes of x between rows and features.
      context: those of `context`, and of its features; None are those of x.
    """

    heads: Count
    dtype: str
    start: Initializer = XAVIER
    tokens: Names = (TOKEN,)
    context: tuple[Names, str] | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *n c"], context: Float[Array, "b *m e"], meet: Meet
    ) -> Float[Array, "b *n c"]:
        width = x.shape[-1]
        tokens, features = self.context or (self.tokens, EMBED)
        common: dict[str, Any] = dict(heads=self.heads, dtype=self.dtype, bias=False)
        q = project(x, "query", tokens=self.tokens, **common)
        k, v = (
            project(context, name, width=width, tokens=tokens, features=features, **common)
            for name in ("key", "value")
        )
        return merge(meet(q, k, v), width, self.dtype, self.start, self.tokens)


def project(
    x: Float[Array, "b *n c"],
    name: str,
    heads: int,
    dtype: str,
    *,
    width: int | None = None,
    tokens: Names = (TOKEN,),
    features: str = EMBED,
    bias: bool = True,
) -> Float[Array, "b *n h d"]:
    """Queries, keys or values of every head; `tokens` and `features` name the axes of x."""
    by = (ROW, *tokens)
    layer = dense(width or x.shape[-1], (features, HEADS), name=name, dtype=dtype, bias=bias, by=by)
    out = layer(x)
    out = out.reshape(*out.shape[:-1], heads, -1)
    return nn.with_logical_constraint(out, (ROW, *tokens, HEADS, HEAD_DIM))


def merge(
    out: Float[Array, "b *n h d"],
    width: int,
    dtype: str,
    init: Initializer = XAVIER,
    tokens: Names = (TOKEN,),
) -> Float[Array, "b *n width"]:
    """The output layer over all heads; `tokens` names axes as for `project`."""
    out = checkpoint_name(out, "attention")
    flat = out.reshape(*out.shape[:-2], -1)
    by = (ROW, *tokens)
    return dense(width, (HEADS, EMBED), name="out", dtype=dtype, init=init, by=by)(flat)


def normalise(q: Array, k: Array, kind: str) -> tuple[Array, Array]:
    """Norms of each head's query and key, with layers in the calling module."""
    if kind == "none":
        return q, k
    if kind != "rms":
        raise UserError(f"qk_norm is '{kind}'; use 'rms' or 'none'.")
    return RMSNorm(axis=HEAD_DIM, name="query_norm")(q), RMSNorm(axis=HEAD_DIM, name="key_norm")(k)


def report_max_logit(
    module: nn.Module,
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    q_group: Int[Array, "b n"],
    kv_group: Int[Array, "b m"],
) -> None:
    """Sow the bound of the module's docstring, if somebody asks for it."""
    if not module.is_mutable_collection("intermediates"):
        return

    def longest(x: Array, group: Array) -> Array:
        squares = jnp.square(x.astype(jnp.float32)).sum(-1)
        return jnp.where(group[..., None] > 0, squares, 0).max((0, 1))

    bound = jnp.sqrt(longest(q, q_group) * longest(k, kv_group)).max() * q.shape[-1] ** -0.5
    module.sow("intermediates", "max_logit", jax.lax.stop_gradient(bound))
