"""A product with a kernel that is divided over the devices of the rows: gathered, used, and its
gradient scattered.

Where parameters are divided over the same devices as rows (fsdp), a product needs the whole kernel
for a moment, and its gradient is a sum over devices of which each keeps a part: an all-gather, and
in the backward pass a reduce-scatter. Left to the compiler the second is often an all-reduce of the
whole gradient in every layer (on v5e:16x16, libtpu 0.0.42, of every kernel of every layer), twice
the bytes and a whole gradient in memory. Mapped over the devices by hand, the transpose of the one
is the other by definition. Where the tokens of a row are divided too (seq), each device's gradient
is of its own tokens, and what is summed over them is the part it keeps, no whole kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from vdm_jax.axes import ROW
from vdm_jax.kernels import linear
from vdm_jax.kernels.spread import Axes, devices, fill, mesh_axes

Names = tuple[str | None, ...]  # logical, of an array's axes


def product(
    x: Float[Array, "b *rest c"], kernel: Float[Array, "c d"], axes: Names, by: Names = (ROW,)
) -> Float[Array, "b *rest d"]:
    """`apply`, of a matrix product, in the dtype of both."""
    return apply(linear.product, x, kernel, axes, by)


def apply(
    function: Callable[[Array, Array], Array],
    x: Float[Array, "b *rest c"],
    kernel: Float[Array, "*taps c d"],
    axes: Names,
    by: Names = (ROW,),
) -> Float[Array, "b *rest d"]:
    """`function` of x and a kernel whose logical axes are `axes`.

    Args:
      by: logical names of the first axes of x: along them `function` treats each entry by itself,
        and so each device its own entries. Rows that do not divide are left to the compiler.
    """
    shares = _rows(x), *(mesh_axes(name) if name else () for name in by[1:])
    if any(shares[1:]) or any(_divided(x, kernel, axes)):
        return _by_shares(function, x, kernel, axes, shares)
    return function(x, kernel)


def lookup(
    table: Float[Array, "v d"], ids: Int[Array, " b *rest"], axes: Names
) -> Float[Array, "b *rest d"]:
    """Rows of `table`, whose logical axes are `axes`.

    Each device adds up the gradient of its own ids: left to the compiler, all devices send each
    other what every id adds, as large as the activations of the whole batch.
    """

    def read(ids: Array, table: Array) -> Array:
        return table[ids]

    rows = _rows(ids)
    return _by_shares(read, ids, table, axes, (rows,)) if rows else read(ids, table)


def _by_shares(
    function: Callable[[Array, Array], Array],
    x: Array,
    kernel: Array,
    axes: Names,
    shares: tuple[Axes, ...],
) -> Array:
    """`function` of each device's share of x and the whole kernel; `shares`: of x's first axes."""
    divided = _divided(x, kernel, axes)

    def here(x: Array, kernel: Array) -> Array:
        for axis, over in enumerate(divided):
            if over:
                kernel = jax.lax.all_gather(kernel, over, axis=axis, tiled=True)
        return function(x, kernel)

    sizes = x.shape[: len(shares)]
    for axis, over in enumerate(shares):
        x = fill(x, axis, devices(over))
    out = jax.shard_map(
        here,
        in_specs=(PartitionSpec(*shares), PartitionSpec(*divided)),
        out_specs=PartitionSpec(*shares),
        axis_names={name for over in shares for name in over},
        check_vma=False,
    )(x, kernel)
    return out[tuple(map(slice, sizes))]


def _rows(x: Array) -> Axes:
    """Axes of the ambient mesh that divide the rows of x; none if they do not."""
    rows = mesh_axes(ROW)
    return rows if x.shape[0] % devices(rows) == 0 else ()


def _divided(x: Array, kernel: Array, axes: Names) -> list[Axes]:
    """For each axis of a kernel, those of the rows' mesh axes that divide it."""
    rows = _rows(x)
    return [_over(name, size, rows) for name, size in zip(axes, kernel.shape, strict=True)]


def _over(name: str | None, size: int, rows: Axes) -> Axes:
    """Those of the rows' mesh axes that divide an axis of a kernel."""
    over = () if name is None else tuple(axis for axis in mesh_axes(name) if axis in rows)
    return over if size % devices(over) == 0 else ()
