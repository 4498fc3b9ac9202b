"""Which tokens attend to which: a pattern gives every token of a packed row a group id.

    full      segment                      every token of the example
    spatial   (segment, t)                 one frame
    temporal  (segment, y, x)              one site through time
    window    (segment, t/wt, y/wy, x/wx)  a box of cells, shifted by half a box if asked

Ids are segment * stride + 1 + local, with 0 for padding and local = -1 for registers (which form a
group of their own wherever the pattern is not full); `stride` is larger than any local id of the
row. Where ids do not rise along the row, `order` sorts the tokens so that they do: kernels then
skip what cannot meet. On a mesh that divides the tokens of a row (`seq`) sorting costs a gather:
each of its devices gets the whole row of activations, n D numbers, before such a block's attention,
and again after it; patterns whose ids rise already, full and spatial, send nothing for it.

A temporal block on a one-frame example is the identity (`on_single="skip"`): images are a data mode
and their temporal parts must not act. `"attend"` lets the block act, where a checkpoint was
trained so.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.batch import Packed
from vdm_jax.config import UserError

Grid = tuple[int, int, int]


@struct.dataclass
class Groups:
    """Group ids of a row's tokens; `order` sorts them, `inverse` puts them back.

    `active`, where given, is false on tokens that a block of this pattern leaves as they are.
    """

    id: Int[Array, "b n"]
    order: Int[Array, "b n"] | None = None
    inverse: Int[Array, "b n"] | None = None
    active: Bool[Array, "b n"] | None = None


class Pattern(Protocol):
    def groups(self, batch: Packed, register: Bool[Array, "b n"] | None) -> Groups:
        """Ids of the row's tokens; `register` marks those that have no place in the grid."""

    def pairs(self, grid: Grid, registers: int = 0) -> int:
        """Query-key pairs of one example; 0 if its blocks are skipped. For counting work."""


@dataclasses.dataclass(frozen=True)
class Full:
    """Every token of an example sees every other, registers too."""

    def groups(self, batch: Packed, register: Bool[Array, "b n"] | None) -> Groups:
        return Groups(id=batch.segment)

    def pairs(self, grid: Grid, registers: int = 0) -> int:
        return (grid[0] * grid[1] * grid[2] + registers) ** 2


@dataclasses.dataclass(frozen=True)
class Spatial:
    """Tokens see their own frame."""

    def groups(self, batch: Packed, register: Bool[Array, "b n"] | None) -> Groups:
        local = batch.position[..., 0]
        stride = batch.examples.grid[..., 0].max(-1, keepdims=True) + 2
        return Groups(id=_ids(batch, local, stride, register))

    def pairs(self, grid: Grid, registers: int = 0) -> int:
        return grid[0] * (grid[1] * grid[2]) ** 2 + registers**2


@dataclasses.dataclass(frozen=True)
class Temporal:
    """Tokens see their own site in all frames; `on_single` says what one-frame examples do."""

    on_single: Literal["skip", "attend"] = "skip"

    def groups(self, batch: Packed, register: Bool[Array, "b n"] | None) -> Groups:
        extent = batch.examples.grid
        local = batch.position[..., 1] * _width(batch, extent[..., 2]) + batch.position[..., 2]
        stride = (extent[..., 1] * extent[..., 2]).max(-1, keepdims=True) + 2
        if self.on_single == "attend":
            active = None
        elif self.on_single == "skip":
            active = batch.spread(extent[..., 0] > 1)[..., 0]
        else:
            raise UserError(f"on_single is '{self.on_single}'; use 'skip' or 'attend'.")
        return _sorted(_ids(batch, local, stride, register), active)

    def pairs(self, grid: Grid, registers: int = 0) -> int:
        if grid[0] == 1 and self.on_single == "skip":
            return 0
        return grid[0] ** 2 * grid[1] * grid[2] + registers**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens see a box of `size` cells (t, y, x), its borders moved by `shift` cells."""

    size: tuple[int, int, int]
    shift: tuple[int, int, int] = (0, 0, 0)

    def groups(self, batch: Packed, register: Bool[Array, "b n"] | None) -> Groups:
        size, shift = jnp.asarray(self.size), jnp.asarray(self.shift)
        at = (batch.position + shift) // size
        boxes = (batch.examples.grid + shift - 1) // size + 1
        local = at[..., 0]
        for axis in (1, 2):
            local = local * _width(batch, boxes[..., axis]) + at[..., axis]
        stride = boxes.prod(-1).max(-1, keepdims=True) + 2
        return _sorted(_ids(batch, local, stride, register))

    def pairs(self, grid: Grid, registers: int = 0) -> int:
        total = 1
        for extent, size, shift in zip(grid, self.size, self.shift, strict=True):
            boxes = [(i + shift) // size for i in range(extent)]
            total *= sum(boxes.count(box) ** 2 for box in set(boxes))
        return total + registers**2


def cross_groups(
    batch: Packed,
    segment: Int[Array, "b l"],
    frame: Int[Array, "b l"] | None,
    register: Bool[Array, "b n"] | None,
) -> tuple[Int[Array, "b n"], Int[Array, "b l"]]:
    """(ids of the row's tokens, ids of the keys): by example, or by example and frame."""
    if frame is None:
        return batch.segment, segment
    stride = (
        jnp.maximum(
            batch.examples.grid[..., 0].max(-1, keepdims=True), frame.max(-1, keepdims=True) + 1
        )
        + 2
    )
    queries = _ids(batch, batch.position[..., 0], stride, register)
    return queries, jnp.where(segment > 0, segment * stride + 1 + frame, 0)


def take(x: Array, order: Int[Array, "b n"]) -> Array:
    """Tokens of each row in another order; 0 where it names none."""
    places = order.reshape(order.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, places, axis=1, mode="fill", fill_value=0)


@jax.custom_vjp
def permute(
    x: Float[Array, "b m *rest"], order: Int[Array, "b n"], back: Int[Array, "b m"]
) -> Float[Array, "b n *rest"]:
    """`take`, whose gradient is taken too: left to JAX it is a sum at scattered places, which a TPU
    sorts first.

    Args:
      order: every token at most once; back: where each went, n where it is left out.
    """
    del back
    return take(x, order)


def _permute_forward(x: Array, order: Array, back: Array) -> tuple[Array, Array]:
    return take(x, order), back


def _permute_backward(back: Array, d_out: Array) -> tuple[Array, None, None]:
    return take(d_out, back), None, None


permute.defvjp(_permute_forward, _permute_backward)


def _ids(
    batch: Packed, local: Array, stride: Array, register: Bool[Array, "b n"] | None
) -> Int[Array, "b n"]:
    if register is not None:
        local = jnp.where(register, -1, local)
    return jnp.where(batch.segment > 0, batch.segment * stride + 1 + local, 0)


def _width(batch: Packed, per_example: Int[Array, "b e"]) -> Int[Array, "b n"]:
    return batch.spread(per_example)[..., 0]


def _sorted(ids: Int[Array, "b n"], active: Bool[Array, "b n"] | None = None) -> Groups:
    # Padding last, where the packer puts it; a stable sort leaves sorted rows alone.
    key = jnp.where(ids == 0, jnp.iinfo(ids.dtype).max, ids)
    order = jnp.argsort(key, axis=1, stable=True)
    inverse = jnp.argsort(order, axis=1, stable=True)
    return Groups(id=take(ids, order), order=order, inverse=inverse, active=active)
