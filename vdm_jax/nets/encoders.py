"""Text encoders: plain sentences in, one vector per token out; they know nothing of packing.

An encoder is a module (ids (m l), mask (m l)) -> (m l d), with mask true on real tokens; `m` lines
hold one text each. Pretrained ones have the same signature, with frozen parameters. Outputs where
mask is false are 0 and decide nothing.
"""

from __future__ import annotations

from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.axes import EMBED, LAYER, ROW, TEXT, VOCAB
from vdm_jax.config import UserError
from vdm_jax.kernels import attend
from vdm_jax.nets.attention import merge, project
from vdm_jax.nets.gathered import lookup
from vdm_jax.nets.layers import SMALL, Activation, Gelu, LayerNorm, Mlp, parameter
from vdm_jax.types import Count, Natural, Positive


class TextEncoder(Protocol):
    def __call__(self, ids: Int[Array, "m l"], mask: Bool[Array, "m l"]) -> Float[Array, "m l d"]:
        """Features of every token of every line."""


class TextEmbedding(nn.Module):
    """A small trainable encoder: embedding, learnt positions, `depth` pre-norm transformer blocks.

    Attributes:
      vocab: ids run from 0 to vocab - 1.
      max_length: the longest line it takes.
    """

    vocab: Count
    width: Count
    max_length: Count
    depth: Natural = 0
    heads: Count = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids: Int[Array, "m l"], mask: Bool[Array, "m l"]) -> Float[Array, "m l d"]:
        """Raises: UserError if lines are longer than `max_length` or heads do not divide width."""
        length = ids.shape[1]
        if length > self.max_length:
            raise UserError(f"text of {length} tokens; the encoder takes {self.max_length}.")
        if self.width % self.heads:
            raise UserError(f"width {self.width} does not divide into {self.heads} heads.")
        table = parameter(self, "table", SMALL, (VOCAB, EMBED), (self.vocab, self.width))
        place = parameter(self, "place", SMALL, (None, EMBED), (self.max_length, self.width))
        x = lookup(table, ids, (VOCAB, EMBED))
        x = by_lines((x + place[:length]).astype(self.dtype))
        if self.depth:
            made = blocks(self.depth)(self.heads, 4 * self.width, self.dtype, name="blocks")
            x, _ = made(x, mask)
        return jnp.where(mask[..., None], LayerNorm(affine=True, name="norm")(x), 0)


def blocks(depth: int) -> Any:
    """So many blocks as one, their parameters stacked: apart, a dozen take the compiler longer than
    the whole trunk. Of each only the input is kept for the backward pass: a row's captions, padded
    to lines, have half as many tokens as its videos.
    """
    return nn.scan(
        nn.remat(Block, prevent_cse=False),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=depth,
        metadata_params={nn.PARTITION_NAME: LAYER},
    )


class Block(nn.Module):
    """Pre-norm self-attention within a line, and a feed-forward layer of `hidden` units."""

    heads: Count
    hidden: Count
    dtype: str
    activation: Activation = Gelu()
    eps: Positive = 1e-6

    @nn.compact
    def __call__(
        self, x: Float[Array, "m l d"], mask: Bool[Array, "m l"]
    ) -> tuple[Float[Array, "m l d"], None]:
        width = x.shape[-1]
        inner = LayerNorm(self.eps, affine=True, name="attention_norm")(x)
        q, k, v = (
            project(inner, name, self.heads, self.dtype, tokens=(TEXT,))
            for name in ("query", "key", "value")
        )
        group = mask.astype(jnp.int32)
        out = attend(q, k, v, q_group=group, kv_group=group, q_axis=TEXT, kv_axis=TEXT)
        x = x + merge(out, width, self.dtype, tokens=(TEXT,))
        inner = LayerNorm(self.eps, affine=True, name="mlp_norm")(x)
        mlp = Mlp(self.hidden, self.activation, self.dtype, name="mlp")
        return by_lines(x + mlp(inner)), None


def by_lines(x: Float[Array, "m l d"]) -> Float[Array, "m l d"]:
    """Lines over the devices of their rows: left to itself the compiler may divide the features
    and keep every line of the global batch on every device."""
    return nn.with_logical_constraint(x, (ROW, TEXT, EMBED))
