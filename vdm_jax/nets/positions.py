"""What a token is told of its place (t, y, x) in its example's grid.

A `Position` either adds a vector to the token's embedding or gives angles by which pairs of
features of its queries and keys are turned. Both kinds answer both questions, one of them with
None, so that a network takes a tuple of positions and asks each.

    sincos   a(p) = [sin(p w), cos(p w)],  w_k = 10000^(-k / (D/2)),  k = 0 .. D/2 - 1         (1)
    rotary   pair j of axis a, of d_a features, is turned by p_a base^(-2j / d_a)              (2)

In (1) the order of axes is x before y: the reference codes build their mesh width first. In (2) the
pairs are neighbours (2j, 2j + 1), so a product of a query and a key depends on the difference of
their positions only. Angles are fp32.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.axes import EMBED
from vdm_jax.batch import Packed
from vdm_jax.config import UserError
from vdm_jax.nets.layers import SMALL, parameter
from vdm_jax.types import Count, Positive

AXES = "tyx"


class Position(Protocol):
    def add(self, batch: Packed, width: int) -> Float[Array, "b n width"] | None:
        """Vectors to add to the embedded tokens, or None."""

    def angles(self, batch: Packed, head_dim: int) -> Float[Array, "b n half"] | None:
        """Angles for `rotate`, half the features of a head, or None."""


def rotate(x: Float[Array, "b n h d"], angles: Float[Array, "b n half"]) -> Float[Array, "b n h d"]:
    """Turn the neighbouring pairs of features by the angles, equation (2), in fp32."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    a, b = pairs[..., 0], pairs[..., 1]
    return (
        jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape).astype(x.dtype)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sincos:
    """Fixed sines and cosines, equation (1), of the axes named, each with an equal share of width.

    Args:
      axes: in the order in which they take their share; 'xy' for images, 't' for frames, and
        both side by side for video.
      base: grid (t, y, x) to which every example's grid is stretched, so that a larger picture
        covers the same range of positions; None uses the indices.
    """

    axes: str = "xy"
    base: tuple[float, float, float] | None = None

    def add(self, batch: Packed, width: int) -> Float[Array, "b n width"]:
        """Raises: UserError if an axis is unknown or the width does not divide."""
        share = width // max(len(self.axes), 1)
        if not self.axes or set(self.axes) - set(AXES):
            raise UserError(f"position axes are '{self.axes}'; use letters of '{AXES}'.")
        if share * len(self.axes) != width or share % 2:
            raise UserError(
                f"width {width} does not divide into sine and cosine for axes '{self.axes}'."
            )
        at = batch.position.astype(jnp.float32)
        if self.base is not None:
            at = at * jnp.asarray(self.base, jnp.float32) / _grid(batch)
        return jnp.concatenate([sincos(at[..., AXES.index(a)], share) for a in self.axes], axis=-1)

    def angles(self, batch: Packed, head_dim: int) -> None:
        return None


def sincos(position: Float[Array, "..."], width: int) -> Float[Array, "... width"]:
    """Equation (1)."""
    half = width // 2
    rates = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32)[..., None] * rates
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class Learned(nn.Module):
    """A table per axis, summed: phi_t[t] + phi_y[y] + phi_x[x] (Dehghani et al. 2023, factorized).

    An example larger than the table reads it stretched to its size, interpolated linearly.
    """

    size: tuple[int, int, int]  # entries (t, y, x)

    @nn.compact
    def add(self, batch: Packed, width: int) -> Float[Array, "b n width"]:
        size = jnp.asarray(self.size, jnp.float32)
        stretch = jnp.minimum(1, (size - 1) / jnp.maximum(_grid(batch) - 1, 1))
        return _read_tables(self, batch.position * stretch, self.size, width)

    def angles(self, batch: Packed, head_dim: int) -> None:
        return None


class Fractional(nn.Module):
    """Tables read at r = (index + 1/2) / g, g the example's own extent (Dehghani et al. 2023).

    Args:
      entries: of each axis's table, read with linear interpolation.
      relative_to: 'axis' divides y and x by their own extents; 'longest' divides both by the
        longer one, which keeps the aspect ratio.
    """

    entries: Count = 32
    relative_to: Literal["axis", "longest"] = "axis"

    @nn.compact
    def add(self, batch: Packed, width: int) -> Float[Array, "b n width"]:
        extent = _grid(batch)
        if self.relative_to == "longest":
            longest = extent[..., 1:].max(-1, keepdims=True)
            extent = jnp.concatenate([extent[..., :1], longest, longest], axis=-1)
        elif self.relative_to != "axis":
            raise UserError(f"relative_to is '{self.relative_to}'; use 'axis' or 'longest'.")
        r = (batch.position + 0.5) / extent
        return _read_tables(self, r * self.entries - 0.5, (self.entries,) * 3, width)

    def angles(self, batch: Packed, head_dim: int) -> None:
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotation by position along three axes, equation (2).

    Args:
      split: features of a head for (t, y, x), each even; None gives y and x a third each, rounded
        down to even, and t the rest.
      base: of the frequencies.
      scale: multiplies the coordinates; below 1 it interpolates to sizes not seen in training.
      fps: reference frame rate. If given, a frame's coordinate is t fps / (the example's rate), so
        that equal times have equal angles; stills (rate 0) keep t.
    """

    split: tuple[int, int, int] | None = None
    base: Positive = 10000.0
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    fps: Positive | None = None

    def add(self, batch: Packed, width: int) -> None:
        return None

    def angles(self, batch: Packed, head_dim: int) -> Float[Array, "b n half"]:
        """Raises: UserError if the split does not suit the head."""
        third = 2 * (head_dim // 6)
        split = self.split or (head_dim - 2 * third, third, third)
        if sum(split) != head_dim or any(part % 2 or part < 0 for part in split):
            raise UserError(
                f"rotary split {tuple(split)} must be even numbers that sum to the head's "
                f"{head_dim} features."
            )
        at = batch.position * jnp.asarray(self.scale, jnp.float32)
        if self.fps is not None:
            rate = jnp.where(batch.examples.fps > 0, batch.examples.fps, self.fps)
            at = at.at[..., 0].multiply(batch.spread(self.fps / rate)[..., 0])
        turned = []
        for axis, part in enumerate(split):
            rates = self.base ** (-jnp.arange(0, part, 2, dtype=jnp.float32) / max(part, 1))
            turned.append(at[..., axis, None] * rates)
        return jnp.concatenate(turned, axis=-1)


def _grid(batch: Packed) -> Float[Array, "b n 3"]:
    """Each token's extent of grid; 1 on padding, so that dividing by it is safe."""
    extent = [batch.spread(batch.examples.grid[..., axis])[..., 0] for axis in range(3)]
    return jnp.maximum(jnp.stack(extent, axis=-1), 1).astype(jnp.float32)


def _read_tables(
    module: nn.Module, at: Float[Array, "b n 3"], size: tuple[int, ...], width: int
) -> Float[Array, "b n width"]:
    """Sum over axes of a learnt table read at a fractional index, held within its ends."""
    total = jnp.zeros((*at.shape[:2], width), jnp.float32)
    for axis, entries in enumerate(size):
        name = f"table_{AXES[axis]}"
        table = parameter(module, name, SMALL, (None, EMBED), (entries, width))
        index = jnp.clip(at[..., axis], 0, entries - 1)
        low = jnp.floor(index).astype(jnp.int32)
        part = (index - low)[..., None]
        total = total + table[low] * (1 - part) + table[jnp.minimum(low + 1, entries - 1)] * part
    return total
