"""What meets in a video that is divided over devices: within pictures, and through time.

Frames of a row are its tokens: where a mesh divides tokens each device has some frames, whole ones.
Within a picture nothing else is needed. Through time a place needs itself in all frames, and no
other place: there the devices have places of all frames instead. `by_frame` and `by_place` say
which; between the two, each device sends every other its share (Zhao et al. 2024, DSP).

Attention folds pictures, or places, into rows of its own, which the compiler cannot do with two
divided axes; each device does it with its share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from vdm_jax.axes import EMBED, PLACE, ROW, TOKEN
from vdm_jax.kernels import attend
from vdm_jax.kernels.spread import devices, fill, mesh_axes

BY_FRAME, BY_PLACE = (TOKEN, None), (None, PLACE)  # names of (frames, places)
Flat = Float[Array, "b f n c"]  # n places of each frame
Heads = Float[Array, "b f n h d"]
# Queries, keys, values, ids of both (rows, frames), and what else is told of each row.
Through = Callable[[Array, Array, Array, Array, Any], Array]


def by_frame(x: Float[Array, "b f *n c"], features: str = EMBED) -> Float[Array, "b f *n c"]:
    """x, each device having its frames of it."""
    names = (ROW, TOKEN, *(None,) * (x.ndim - 3), features)
    return nn.with_logical_constraint(x, names)


def by_place(x: Flat) -> Flat:
    """x, each device having its places of it, in all frames."""
    return nn.with_logical_constraint(x, (ROW, *BY_PLACE, EMBED))


def within_pictures(q: Heads, k: Heads, v: Heads, segment: Int[Array, "b f"]) -> Heads:
    """Attention of every place to all that its picture is given; padding to padding."""

    def fold(q: Array, k: Array, v: Array, segment: Array) -> Array:
        b = q.shape[0]
        q, k, v = (rearrange(x, "b f n h d -> (b f) n h d") for x in (q, k, v))
        there = (segment > 0).astype(jnp.int32).reshape(-1, 1)
        ids, keys = (jnp.repeat(there, x.shape[1], axis=1) for x in (q, k))
        out = attend(q, k, v, q_group=ids, kv_group=keys)
        return rearrange(out, "(b f) n h d -> b f n h d", b=b)

    return _on_devices(fold, TOKEN, 1, (q, k, v, segment))


def through_time(
    q: Heads, k: Heads, v: Heads, segment: Int[Array, "b f"], meet: Through, told: Any = None
) -> Heads:
    """Attention of every place to itself in the frames of its example.

    Args:
      meet: what attention does, of rows that are places; `told` is of the rows of videos.
    """

    def fold(q: Array, k: Array, v: Array, segment: Array, told: Any) -> Array:
        b, n = q.shape[0], q.shape[2]
        q, k, v = (rearrange(x, "b f n h d -> (b n) f h d") for x in (q, k, v))
        out = meet(q, k, v, jnp.repeat(segment, n, axis=0), told)
        return rearrange(out, "(b n) f h d -> b f n h d", b=b)

    return _on_devices(fold, PLACE, 2, (q, k, v), (segment, told))


def _on_devices(
    function: Callable[..., Array], name: str, axis: int, divided: tuple, whole: tuple = ()
) -> Array:
    """`function` on each device, of its rows, and its share of one axis of the arrays `divided`."""
    shares = mesh_axes(name)
    if not shares:
        return function(*divided, *whole)
    rows, size = mesh_axes(ROW), divided[0].shape[axis]
    rows = rows if len(divided[0]) % devices(rows) == 0 else ()
    spec = PartitionSpec(rows, *[None] * (axis - 1), shares)
    full = (fill(x, axis, devices(shares)) for x in divided)
    out = jax.shard_map(
        function,
        in_specs=(spec,) * len(divided) + (PartitionSpec(rows),) * len(whole),
        out_specs=spec,
        axis_names={*rows, *shares},
        check_vma=False,
    )(*full, *whole)
    return jax.lax.slice_in_dim(out, 0, size, axis=axis)
