"""Blocks of an image UNet, on rows of frames: residual blocks, attention, resampling.

Each takes and gives (b f h w c) and treats pictures one by one. Where parts that act in time may
stand, a block calls `insert(place, x, nth)`, which gives x as they leave it.

    ResBlock     norm, SiLU, conv, + time, norm, SiLU, conv, + input     (Ho et al. 2020)
    Attend       norm, self-attention, + input, cross-attention          (Dhariwal & Nichol 2021)
    Cross        norm, cross-attention, + input                          (Saharia et al. 2022)
    Transformer  norm, in, depth x [self, cross, GEGLU], out, + input    (Rombach et al. 2022)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from vdm_jax.axes import CONDITION, EMBED, MLP, TEXT, TOKEN
from vdm_jax.config import UserError
from vdm_jax.kernels import attend
from vdm_jax.nets.attention import MultiHead
from vdm_jax.nets.clip import Clip, Convolution, Dropout, GroupNorm, Heads, Scope
from vdm_jax.nets.folded import by_frame, within_pictures
from vdm_jax.nets.frame_keys import FrameKeys
from vdm_jax.nets.layers import XAVIER, ZERO, GeGlu, LayerNorm, Mlp, dense
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

    def __call__(self, name: str, axis: str = EMBED) -> GroupNorm:
        return GroupNorm(self.groups, self.eps, self.scope, axis, name=name)


BY_FRAME = Norm()
FINE = Norm(eps=1e-6)


class ResBlock(nn.Module):
    """Two convolutions and a way around them; to `features` channels.

    Attributes:
      time: how the time embedding enters: 'add' to the first convolution's result, or
        'scale_shift' the second norm's.
      gain: the sum is multiplied by it: 1, or 1 / sqrt(2) (Saharia et al. 2022, appendix B).
      convolution: of pictures, or `TimeConvolution`.
      start: of the second convolution.
    """

    features: Count
    norm: Norm = BY_FRAME
    time: Literal["add", "scale_shift"] = "add"
    gain: Positive = 1.0
    dropout: Fraction = 0.0
    dtype: str = "float32"
    convolution: Callable[..., Any] = Convolution
    start: Initializer = ZERO

    @nn.compact
    def __call__(self, x: Video, clip: Clip, insert: Insert) -> Video:
        conv: Any = functools.partial(self.convolution, self.features, dtype=self.dtype)
        inner = nn.silu(self.norm("norm_in")(x, clip))
        inner = by_frame(conv(axes=(EMBED, MLP), name="conv_in")(inner, clip), MLP)
        inner = insert("after_conv", inner)
        normed = self.norm("norm_out", MLP)
        if self.time == "scale_shift":
            scale, shift = jnp.split(self._time(clip, 2), 2, axis=-1)
            inner = normed(inner, clip) * (1 + scale) + shift
        elif self.time == "add":
            inner = normed(inner + self._time(clip, 1), clip)
        else:
            raise UserError(f"a block's time is '{self.time}'; use 'add' or 'scale_shift'.")
        inner = Dropout(self.dropout, name="dropout")(nn.silu(inner), clip)
        layer = conv(axes=(MLP, EMBED), start=self.start, name="conv_out")
        inner = insert("after_conv", layer(inner, clip), 1)
        if x.shape[-1] != self.features:
            x = dense(self.features, (EMBED, None), name="shortcut", dtype=self.dtype)(x)
        return by_frame((x + inner) * self.gain)

    def _time(self, clip: Clip, parts: int) -> Float[Array, "b f 1 1 d"]:
        layer = dense(parts * self.features, (None, MLP), name="time", dtype=self.dtype)
        return layer(nn.silu(clip.time))[:, :, None, None]


class Block(Protocol):
    """A record of what follows a residual block."""

    def __call__(self, x: Video, clip: Clip, insert: Insert, *, name: str, dtype: str) -> Video:
        """Applies the block, its layers made in the calling module under `name`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attend:
    """Self-attention within each picture, then attention to each token set of `cross`.

    Attributes:
      keys: the frames that a picture asks instead of itself.
    """

    heads: Heads
    norm: Norm = BY_FRAME
    cross: tuple[str, ...] = ()
    keys: FrameKeys | None = None

    def __call__(self, x, clip, insert, *, name, dtype):
        return _Attend(self, dtype, name=name)(x, clip, insert)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cross:
    """Attention to each token set of `cross`, and none within the picture: for pictures that are
    too large for it (Saharia et al. 2022, the last super-resolution)."""

    heads: Heads
    norm: Norm = BY_FRAME
    cross: tuple[str, ...]

    def __call__(self, x, clip, insert, *, name, dtype):
        return _Cross(self, dtype, name=name)(x, clip, insert)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer:
    """`depth` transformer blocks within each picture, attending to each token set of `cross`.

    Attributes:
      keys: the frames that a picture asks instead of itself.
    """

    heads: Heads
    depth: Count = 1
    norm: Norm = FINE
    cross: tuple[str, ...] = ()
    keys: FrameKeys | None = None

    def __call__(self, x, clip, insert, *, name, dtype):
        return _Transformer(self, dtype, name=name)(x, clip, insert)


class _Cross(nn.Module):
    record: Attend | Cross
    dtype: str

    @nn.compact
    def __call__(self, x: Video, clip: Clip, insert: Insert) -> Video:
        heads = self.record.heads(x.shape[-1])
        for name in self.record.cross:
            inner = self.record.norm(f"norm_{name}")(x, clip)
            x = x + cross(inner, clip, name, heads, self.dtype, f"cross_{name}", start=ZERO)
        return insert("after_ca", by_frame(x))


class _Attend(nn.Module):
    record: Attend
    dtype: str

    @nn.compact
    def __call__(self, x: Video, clip: Clip, insert: Insert) -> Video:
        heads = self.record.heads(x.shape[-1])
        inner = self.record.norm("norm")(x, clip)
        x = x + attention(inner, clip, heads, self.dtype, "self", self.record.keys, start=ZERO)
        x = insert("after_sa", by_frame(x))
        if not self.record.cross:
            return x
        return _Cross(self.record, self.dtype, name="cross")(x, clip, insert)


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
            asked = self.record.keys
            inner = inner + attention(layer(inner), clip, heads, dtype, f"self_{i}", asked)
            inner = insert("after_sa", inner, i)
            for name in self.record.cross:
                layer = LayerNorm(eps=1e-5, affine=True, name=f"norm_{name}_{i}")
                inner = inner + cross(layer(inner), clip, name, heads, dtype, f"{name}_{i}")
            inner = insert("after_ca", inner, i)
            layer = LayerNorm(eps=1e-5, affine=True, name=f"norm_mlp_{i}")
            mlp = Mlp(4 * width, GeGlu(), dtype, (TOKEN, None, None), name=f"mlp_{i}")
            inner = insert("after_ff", by_frame(inner + mlp(layer(inner))), i)
        inner = insert("after_block", inner)
        return by_frame(x + dense(width, (None, EMBED), name="out", dtype=dtype, init=ZERO)(inner))


def attention(
    x: Video,
    clip: Clip,
    heads: int,
    dtype: str,
    name: str,
    keys: FrameKeys | None = None,
    start: Initializer = XAVIER,
) -> Video:
    """Attention of each picture to itself, or to the frames that `keys` says."""
    flat = rearrange(x, "b f h w c -> b f (h w) c")
    asked = flat if keys is None else keys(x, clip)
    layer = MultiHead(heads, dtype, start, (TOKEN, None), name=name)
    out = layer(flat, asked, functools.partial(within_pictures, segment=clip.segment))
    return out.reshape(x.shape)


def cross(
    x: Video, clip: Clip, which: str, heads: int, dtype: str, name: str, start: Initializer = XAVIER
) -> Video:
    """Attention of every place to a condition's tokens of its example, or of its frame."""
    context = clip.context[which]
    flat = rearrange(x, "b f h w c -> b (f h w) c")
    ids = jnp.repeat(context.q_group, x.shape[2] * x.shape[3], axis=1)
    meet = functools.partial(attend, q_group=ids, kv_group=context.kv_group, kv_axis=TEXT)
    layer = MultiHead(heads, dtype, start, context=((TEXT,), CONDITION), name=name)
    return layer(flat, context.x, meet).reshape(x.shape)


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
        return by_frame(layer(x))


class Upsample(nn.Module):
    """Twice the height and width: each pixel four times, then a convolution."""

    features: Count
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Video) -> Video:
        layer = Convolution(
            self.features, (EMBED, None), enlarged=True, dtype=self.dtype, name="conv"
        )
        return by_frame(layer(x))
