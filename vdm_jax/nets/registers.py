"""Register tokens: a few learnt tokens of each example, in the packed row (Darcet et al. 2024).

`insert` puts R after the tokens of each example that is present, so that segments stay contiguous,
and `remove` takes them out. They have level 0 and position 0, which rotates nothing, and read the
same time and condition as their example.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.axes import EMBED
from vdm_jax.batch import Packed
from vdm_jax.nets.layers import SMALL, parameter
from vdm_jax.nets.patterns import take
from vdm_jax.types import Count


@struct.dataclass
class Extended:
    """A row with registers: its carrier, who is one, and where the first tokens went."""

    batch: Packed
    register: Bool[Array, "b n"]
    home: Int[Array, "b m"]  # of each token of the row without registers


class Registers(nn.Module):
    """The learnt tokens, the same `count` for every example."""

    count: Count

    @nn.compact
    def __call__(self, batch: Packed, x: Float[Array, "b m d"]) -> tuple[Extended, Array]:
        """(the extended row, its embedded tokens) for embedded tokens `x` of `batch`."""
        table = parameter(self, "tokens", SMALL, (None, EMBED), (self.count, x.shape[-1]))
        row = insert(batch, self.count)
        b, e = batch.examples.valid.shape
        learnt = jnp.broadcast_to(jnp.tile(table, (e, 1)), (b, e * self.count, x.shape[-1]))
        order = jnp.argsort(_places(batch, self.count), axis=1, stable=True)
        return row, take(jnp.concatenate([x, learnt.astype(x.dtype)], axis=1), order)


def insert(batch: Packed, count: int) -> Extended:
    """The row with `count` registers after each present example; padding stays last."""
    m = batch.segment.shape[1]
    extra = batch.examples.valid.shape[1] * count
    order = jnp.argsort(_places(batch, count), axis=1, stable=True)

    def extend(x: Array) -> Array:
        return take(jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2)), order)

    segment = jnp.concatenate([batch.segment, _register_segments(batch, count)], axis=1)
    row = batch.replace(
        x=extend(batch.x),
        segment=take(segment, order),
        position=extend(batch.position),
        raster=extend(batch.raster),
        level=None if batch.level is None else extend(batch.level),
        mask=None,
        known=None,
        given=None,
    )
    home = jnp.argsort(order, axis=1, stable=True)[:, :m]
    return Extended(batch=row, register=order >= m, home=home)


def remove(row: Extended, x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
    """The tokens that were there before `insert`, in their places."""
    return take(x, row.home)


def _register_segments(batch: Packed, count: int) -> Int[Array, "b r"]:
    present = batch.membership().any(-1)
    ids = jnp.where(present, jnp.arange(1, present.shape[1] + 1), 0)
    return jnp.repeat(ids, count, axis=1).astype(batch.segment.dtype)


def _places(batch: Packed, count: int) -> Int[Array, "b n"]:
    """Keys whose stable sort puts registers behind their example, and padding at the end."""
    segment = jnp.concatenate([batch.segment, _register_segments(batch, count)], axis=1)
    return jnp.where(segment == 0, jnp.iinfo(segment.dtype).max, segment)
