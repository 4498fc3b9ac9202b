"""Blocks of an image UNet, on rows of frames: residual blocks, attention, resampling.

Each takes and gives (b f h w c) and treats pictures one by one. Where parts that act in time may
stand, a block calls `insert(place, x, nth)`, which gives x as they leave it.

    ResBlock     norm, SiLU, conv, + time, norm, SiLU, conv, + input     (Ho et al. 2020)
    Attend       norm, self-attention, + input, cross-attention          (Dhariwal & Nichol 2021)
    Transformer  norm, in, depth x [self, cross, GEGLU], out, + input    (Rombach et al. 2022)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

from vdm_jax.axes import CONDITION, EMBED, HEADS, MLP
from vdm_jax.config import UserError
from vdm_jax.kernels import attend
from vdm_jax.nets.clip import Clip, Convolution, Dropout, GroupNorm, Heads, Scope
from vdm_jax.nets.layers import XAVIER, ZERO, LayerNorm, dense
from vdm_jax.types import Count, Fraction, Positive, Video


class Insert(Protocol):
    def __call__(self, place: str, x: Video, nth: int = 0) -> Video:
        """What stands at the `nth` place of this kind in the calling module has acted on x."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm:
    """The group norms of a family of blocks."""

    groups: Count = 32
    eps: Positive = 1e-5
    scope: Scope = "frame"

    def __call__(self, name: str) -> GroupNorm:
        return GroupNorm(self.groups, self.eps, self.scope, name=name)


BY_FRAME = Norm()
FINE = Norm(eps=1e-6)


class ResBlock(nn.Module):
    """Two convolutions and a way around them; to `features` channels.

    Attributes:
      time: how the time embedding enters: 'add' to the first convolution's result, or
        'scale_shift' the second norm's.
      gain: the sum is multiplied by it: 1, or 1 / sqrt(2) (Saharia et al. 2022, appendix B).
    """

    features: Count
    norm: Norm = BY_FRAME
    time: Literal["add", "scale_shift"] = "add"
    gain: Positive = 1.0
    dropout: Fraction = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Video, clip: Clip, insert: Insert) -> Video:
        conv: dict[str, Any] = dict(features=self.features, dtype=self.dtype)
        inner = nn.silu(self.norm("norm_in")(x, clip))
        inner = Convolution(**conv, axes=(EMBED, MLP), name="conv_in")(inner)
        inner = insert("after_conv", inner)
        normed = self.norm("norm_out")
        if self.time == "scale_shift":
            scale, shift = jnp.split(self._time(clip, 2), 2, axis=-1)
            inner = normed(inner, clip) * (1 + scale) + shift
        elif self.time == "add":
            inner = normed(inner + self._time(clip, 1), clip)
        else:
            raise UserError(f"a block's time is '{self.time}'; use 'add' or 'scale_shift'.")
        inner = Dropout(self.dropout, name="dropout")(nn.silu(inner), clip)
        inner = Convolution(**conv, axes=(MLP, EMBED), start=ZERO, name="conv_out")(inner)
        inner = insert("after_conv", inner, 1)
        if x.shape[-1] != self.features:
            x = Convolution(**conv, axes=(EMBED, None), size=1, name="shortcut")(x)
        return (x + inner) * self.gain

    def _time(self, clip: Clip, parts: int) -> Float[Array, "b f 1 1 d"]:
        layer = dense(parts * self.features, (None, MLP), name="time", dtype=self.dtype)
        return layer(nn.silu(clip.time))[:, :, None, None]


class Block(Protocol):
    """A record of what follows a residual block."""

    def __call__(self, x: Video, clip: Clip, insert: Insert, *, name: str, dtype: str) -> Video:
        """Applies the block, its layers made in the calling module under `name`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attend:
    """Self-attention within each picture, then attention to each token set of `cross`."""

    heads: Heads
    norm: Norm = BY_FRAME
    cross: tuple[str, ...] = ()

    def __call__(self, x, clip, insert, *, name, dtype):
        return _Attend(self, dtype, name=name)(x, clip, insert)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer:
    """`depth` transformer blocks within each picture, attending to each token set of `cross`."""

    heads: Heads
    depth: Count = 1
    norm: Norm = FINE
    cross: tuple[str, ...] = ()

    def __call__(self, x, clip, insert, *, name, dtype):
        return _Transformer(self, dtype, name=name)(x, clip, insert)


class _Attend(nn.Module):
    record: Attend
    dtype: str

    @nn.compact
    def __call__(self, x: Video, clip: Clip, insert: Insert) -> Video:
        heads = self.record.heads(x.shape[-1])
        inner = self.record.norm("norm")(x, clip)
        x = insert("after_sa", x + attention(inner, clip, heads, self.dtype, "self", init=ZERO))
        for name in self.record.cross:
            inner = self.record.norm(f"norm_{name}")(x, clip)
            x = x + cross(inner, clip, name, heads, self.dtype, f"cross_{name}", init=ZERO)
        return insert("after_ca", x) if self.record.cross else x


class _Transformer(nn.Module):
    record: Transformer
    dtype: str

    @nn.compact
    def __call__(self, x: Video, clip: Clip, insert: Insert) -> Video:
        width, dtype = x.shape[-1], self.dtype
        heads = self.record.heads(width)
        inner = self.record.norm("norm")(x, clip)
        inner = dense(width, (EMBED, None), name="in", dtype=dtype)(inner)
        for i in range(self.record.depth):
            layer = LayerNorm(eps=1e-5, affine=True, name=f"norm_self_{i}")
            inner = inner + attention(layer(inner), clip, heads, dtype, f"self_{i}")
            inner = insert("after_sa", inner, i)
            for name in self.record.cross:
                layer = LayerNorm(eps=1e-5, affine=True, name=f"norm_{name}_{i}")
                inner = inner + cross(layer(inner), clip, name, heads, dtype, f"{name}_{i}")
            inner = insert("after_ca", inner, i)
            layer = LayerNorm(eps=1e-5, affine=True, name=f"norm_mlp_{i}")
            inner = insert("after_ff", inner + GeGlu(dtype, name=f"mlp_{i}")(layer(inner)), i)
        inner = insert("after_block", inner)
        return x + dense(width, (None, EMBED), name="out", dtype=dtype, init=ZERO)(inner)


class GeGlu(nn.Module):
    """u gelu(g) of four times the width (Shazeer 2020); the exact GELU."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        width = x.shape[-1]
        both = dense(8 * width, (EMBED, MLP), name="up", dtype=self.dtype)(x)
        value, gate = jnp.split(both, 2, axis=-1)
        inner = value * nn.gelu(gate, approximate=False)
        return dense(width, (MLP, EMBED), name="down", dtype=self.dtype)(inner)


class MultiHead(nn.Module):
    """Queries of `x`, keys and values of `context`; projections in have no bias, the one out has.

    Attributes:
      axes: logical names of the features of `x` and of `context`.
      meet: how queries, keys and values of all heads do.
    """

    heads: Count
    dtype: str
    start: Initializer = XAVIER
    axes: tuple[str | None, str | None] = (EMBED, EMBED)
    meet: Callable[..., Array] = attend

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "r n c"],
        context: Float[Array, "r m e"],
        q_group: Int[Array, "r n"],
        kv_group: Int[Array, "r m"],
    ) -> Float[Array, "r n c"]:
        width = x.shape[-1]

        def project(source, name, axis):
            layer = dense(width, (axis, HEADS), name=name, dtype=self.dtype, bias=False)
            return layer(source).reshape(*source.shape[:2], self.heads, -1)

        q = project(x, "query", self.axes[0])
        k, v = (project(context, name, self.axes[1]) for name in ("key", "value"))
        out = self.meet(q, k, v, q_group=q_group, kv_group=kv_group)
        out = out.reshape(*out.shape[:2], -1)
        return dense(width, (HEADS, EMBED), name="out", dtype=self.dtype, init=self.start)(out)


def attention(x: Video, clip: Clip, heads: int, dtype: str, name: str, init: Any = XAVIER) -> Video:
    """Self-attention within each picture."""
    b, f, h = x.shape[:3]
    rows = rearrange(x, "b f h w c -> (b f) (h w) c")
    ids = jnp.broadcast_to((clip.segment > 0).reshape(b * f, 1), rows.shape[:2]).astype(jnp.int32)
    out = MultiHead(heads, dtype, init, name=name)(rows, rows, ids, ids)
    return rearrange(out, "(b f) (h w) c -> b f h w c", b=b, h=h)


def cross(
    x: Video, clip: Clip, which: str, heads: int, dtype: str, name: str, init: Any = XAVIER
) -> Video:
    """Attention of every place to a condition's tokens of its example, or of its frame."""
    _, f, h, w, _ = x.shape
    context = clip.context[which]
    rows = rearrange(x, "b f h w c -> b (f h w) c")
    ids = jnp.repeat(context.q_group, h * w, axis=1)
    layer = MultiHead(heads, dtype, init, axes=(EMBED, CONDITION), name=name)
    out = layer(rows, context.x, ids, context.kv_group)
    return rearrange(out, "b (f h w) c -> b f h w c", f=f, h=h)


class Downsample(nn.Module):
    """Half the height and width, by a convolution of stride 2."""

    features: Count
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Video) -> Video:
        """Raises: UserError, a side that is odd."""
        for name, side in zip(("height", "width"), x.shape[2:4], strict=True):
            if side % 2:
                raise UserError(
                    f"the {name} at a level of the UNet is {side}, which does not halve; make the "
                    "video's sides multiples of 2 to the number of levels less one."
                )
        layer = Convolution(self.features, (EMBED, None), stride=2, dtype=self.dtype, name="conv")
        return layer(x)


class Upsample(nn.Module):
    """Twice the height and width: each pixel four times, then a convolution."""

    features: Count
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Video) -> Video:
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        return Convolution(self.features, (EMBED, None), dtype=self.dtype, name="conv")(x)
