"""What the blocks of a video UNet share: rows of frames, norms and convolutions over them.

Convolutions are folded: they see (b f) pictures, which runs twice as fast as 1 x 3 x 3 kernels do.
Work in time never passes from one example of a row to the next, and leaves stills as they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.nn.initializers import Initializer
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.axes import EMBED, ROW, TOKEN
from vdm_jax.batch import Frames, Packed
from vdm_jax.config import UserError
from vdm_jax.kernels.convolution import convolve, convolve_enlarged
from vdm_jax.nets.context import Context
from vdm_jax.nets.gathered import apply, product
from vdm_jax.nets.layers import ONE, XAVIER, ZERO, AxisNames, parameter
from vdm_jax.types import Count, Fraction, Positive, Video

Scope = Literal["frame", "clip"]


@struct.dataclass
class Clip:
    """What every block is given besides the pictures.

    Attributes:
      frames: the row's frames as tokens, without values: who is who, and when.
      time: embedding of each frame's noise level, with the condition's vector added.
      moving: frames of examples that have more than one; parts that act in time leave the rest.
      train: whether features are dropped.
    """

    frames: Packed
    time: Float[Array, "b f d"]
    moving: Bool[Array, "b f"]
    context: Mapping[str, Context]
    train: bool = struct.field(pytree_node=False, default=False)

    @property
    def segment(self) -> Int[Array, "b f"]:
        return self.frames.segment

    def average(self, values: Float[Array, "b f *rest"]) -> Float[Array, "b f *rest"]:
        """In place of each frame's values, their mean over the frames of its example; 0 on padding.

        A sum and no product: those a TPU would round to bfloat16.
        """
        there = (self.segment > 0)[:, None]
        same = (self.segment[:, :, None] == self.segment[:, None]) & there
        share = same / jnp.maximum(same.sum(-1, keepdims=True), 1)
        return (share.reshape(*share.shape, *(1,) * (values.ndim - 2)) * values[:, None]).sum(2)


def as_tokens(batch: Frames) -> Packed:
    """Frames as tokens of width 0 at (t, 0, 0), of grids (t, 1, 1)."""
    b, f = batch.segment.shape
    at = batch.position
    examples: Any = batch.examples
    return Packed(
        x=jnp.zeros((b, f, 0)),
        segment=batch.segment,
        position=jnp.stack([at, jnp.zeros_like(at), jnp.zeros_like(at)], axis=-1),
        raster=at,
        examples=examples.replace(grid=examples.grid.at[..., 1:].set(1)),
        level=batch.level,
    )


class Heads(Protocol):
    def __call__(self, width: int) -> int:
        """How many heads so many features have."""


@dataclasses.dataclass(frozen=True)
class HeadCount:
    """As many heads whatever the width."""

    count: Count

    def __call__(self, width):
        return _divided(width, self.count)


@dataclasses.dataclass(frozen=True)
class HeadWidth:
    """Heads of so many features."""

    features: Count

    def __call__(self, width):
        return width // _divided(width, self.features)


def _divided(width: int, by: int) -> int:
    if width % by:
        raise UserError(f"{width} features do not divide into heads by {by}; change either.")
    return by


class GroupNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) over groups of channels, then a learnt scale and shift.

    Attributes:
      over: what statistics are taken of: each 'frame', or all frames of an example ('clip').
        Weights have the same shape either way, so a wrong choice shows in results only.
    """

    groups: Count = 32
    eps: Positive = 1e-5
    over: Scope = "frame"
    axis: str = EMBED

    @nn.compact
    def __call__(self, x: Video, clip: Clip) -> Video:
        """Raises: UserError, channels that do not divide into groups."""
        b, f, h, w, c = x.shape
        if c % self.groups:
            raise UserError(f"{c} channels do not divide into {self.groups} groups of a norm.")
        wide = x.astype(jnp.float32).reshape(b, f, h * w, self.groups, -1)
        mean = wide.mean((2, 4), keepdims=True)
        variance = jnp.square(wide - mean).mean((2, 4), keepdims=True)
        if self.over == "clip":
            own = mean
            mean = clip.average(own)
            variance = clip.average(variance + jnp.square(own - mean))
        elif self.over != "frame":
            raise UserError(f"a norm's scope is '{self.over}'; use 'frame' or 'clip'.")
        out = ((wide - mean) * jax.lax.rsqrt(variance + self.eps)).reshape(x.shape)
        out = out * parameter(self, "scale", ONE, (self.axis,), (c,))
        return (out + parameter(self, "bias", ZERO, (self.axis,), (c,))).astype(x.dtype)


class Dropout(nn.Module):
    """In training, features are 0 with a probability of `rate`, the others larger by as much.

    Which ones follows from the collection 'dropout', this layer, the example, its visit and frame:
    from none of its neighbours.
    """

    rate: Fraction

    @nn.compact
    def __call__(self, x: Video, clip: Clip) -> Video:
        if self.rate == 0 or not clip.train:
            return x
        frames = clip.frames.replace(x=x.reshape(*x.shape[:2], -1))
        draw = frames.white(frames.keys(jax.random.bits(self.make_rng("dropout")), "dropout"))
        stay = (draw > ndtri(self.rate)).reshape(x.shape)
        return jnp.where(stay, x / (1 - self.rate), 0)


class Convolution(nn.Module):
    """A convolution of every picture by itself.

    Attributes:
      axes: logical names of the channels (in, out).
      stride: 2 halves height and width.
      enlarged: of size 3, it sees pictures of twice the height and width, each pixel four times.
    """

    features: Count
    axes: AxisNames
    size: Count = 3
    stride: Count = 1
    enlarged: bool = False
    start: Initializer = XAVIER
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Video, clip: Clip | None = None) -> Video:
        """Nothing of `clip` matters to it."""
        del clip
        kernel, bias = _weights(self, (self.size, self.size, x.shape[-1], self.features))
        axes = (None, None, *self.axes)

        def pictures(x: Array, kernel: Array) -> Array:
            b, f = x.shape[:2]
            usual = functools.partial(convolve, stride=self.stride)
            seen = convolve_enlarged if self.enlarged else usual
            out = seen(x.reshape(b * f, *x.shape[2:]), kernel)
            return out.reshape(b, f, *out.shape[1:])

        return apply(pictures, x.astype(self.dtype), kernel, axes, (ROW, TOKEN)) + bias


class TimeConvolution(nn.Module):
    """A convolution over the frames of an example, each place by itself:

        out_f = sum_j x_(f + j) W_j + bias,   j = -(size // 2) .. size // 2,                     (1)

    with nothing where frame f + j is not of the same example.
    """

    features: Count
    axes: AxisNames
    size: Count = 3
    start: Initializer = XAVIER
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Video, clip: Clip) -> Video:
        """Raises: UserError, a size that has no middle."""
        if self.size % 2 == 0:
            raise UserError(f"a convolution in time has size {self.size}; it must be odd.")
        shape = (self.size, x.shape[-1], self.features)
        kernel, bias = _weights(self, shape)
        x = x.astype(self.dtype)
        # Tap by tap: of the channels of all taps in a row no device would have its share.
        out = bias
        for tap, weights in enumerate(kernel):
            seen = moved(x, clip.segment, tap - self.size // 2)
            out = out + product(seen, weights, self.axes)
        return out


def _weights(
    module: Convolution | TimeConvolution, shape: tuple[int, ...]
) -> tuple[Float[Array, "*taps c d"], Float[Array, " d"]]:
    """Kernel and bias, in the dtype of the products."""
    axes = (*(None,) * (len(shape) - 2), *module.axes)
    kernel = parameter(module, "kernel", module.start, axes, shape)
    bias = parameter(module, "bias", ZERO, axes[-1:], shape[-1:])
    return kernel.astype(module.dtype), bias.astype(module.dtype)


def moved(x: Video, segment: Int[Array, "b f"], by: int) -> Video:
    """Frame f + `by` in place of frame f, zeros where that is not of the same example."""
    f = x.shape[1]
    before, after = max(-by, 0), max(by, 0)

    def shift(values: Array) -> Array:
        edges = ((0, 0), (before, after)) + ((0, 0),) * (values.ndim - 2)
        return jnp.pad(values, edges)[:, after : after + f]

    same = (shift(segment) == segment) & (segment > 0)
    return jnp.where(same[..., None, None, None], shift(x), 0)


def identity(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """An initializer: the convolution over time that changes nothing."""
    del key
    return jnp.zeros(shape, dtype).at[shape[0] // 2].set(jnp.eye(shape[1], shape[2], dtype=dtype))
