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
from vdm_jax.nets.patterns import permute, take
from vdm_jax.types import Count


@struct.dataclass
class Extended:
    """A row with registers: its carrier, who is one, and where tokens come from and went.

    Counted on from the last of the row's m tokens, registers are tokens m to n - 1.
    """

    batch: Packed
    register: Bool[Array, "b n"]
    order: Int[Array, "b n"]  # which token stands at each place
    home: Int[Array, "b m"]  # where each token of the row stands
    own: Int[Array, "b r"]  # and each register


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
        both = jnp.concatenate([x, learnt.astype(x.dtype)], axis=1)
        return row, permute(both, row.order, jnp.concatenate([row.home, row.own], axis=1))


def insert(batch: Packed, count: int) -> Extended:
    """The row with `count` registers after each present example; padding stays last."""
    order, home, own = _moves(batch, count)

    def extend(x: Array) -> Array:
        return take(x, order)

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
    register = order >= batch.segment.shape[1]
    return Extended(batch=row, register=register, order=order, home=home, own=own)


def remove(row: Extended, x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
    """The tokens that were there before `insert`, in their places."""
    return permute(x, row.home, row.order)


def _register_segments(batch: Packed, count: int) -> Int[Array, "b r"]:
    present = batch.membership().any(-1)
    ids = jnp.where(present, jnp.arange(1, present.shape[1] + 1), 0)
    return jnp.repeat(ids, count, axis=1).astype(batch.segment.dtype)


def _moves(batch: Packed, count: int) -> tuple[Array, Array, Array]:
    """`order`, `home` and `own` of an extended row.

    In closed form, not by sorting: a sort of a whole row takes a TPU's compiler as long as a third
    of the network. With `last` the place behind the last token of an example, `start` of its
    registers in the extended row,

        home of token i     i + count #{examples with last <= i}
        start               last + count #{examples with a smaller last}

    and what stands at place j is a register of the example with start <= j < start + count, or the
    token j - count #{examples with start + count <= j}. Absent examples come last.
    """
    m, e = batch.segment.shape[1], batch.examples.valid.shape[1]
    cells, examples = jnp.arange(m), jnp.arange(e)
    member = batch.segment[:, None] == examples[:, None] + 1
    last = jnp.where(member, cells + 1, 0).max(-1)
    last = jnp.where(last > 0, last, m + 1 + examples)
    start = jnp.minimum(last, m) + count * (last[:, None] < last[:, :, None]).sum(-1)
    home = cells + count * (last[:, :, None] <= cells).sum(1)
    own = (start[:, :, None] + jnp.arange(count)).reshape(-1, e * count)

    since = jnp.arange(m + e * count) - start[:, :, None]
    within = (since >= 0) & (since < count)
    learnt = jnp.where(within, m + count * examples[:, None] + since, 0).sum(1)
    token = jnp.arange(m + e * count) - count * (since >= count).sum(1)
    return jnp.where(within.any(1), learnt, token), home, own
