"""A product with a kernel that is divided over the devices of the rows: gathered, used, and its
gradient scattered.

Where parameters are divided over the same devices as rows (fsdp), a product needs the whole kernel
for a moment, and its gradient is a sum over devices of which each keeps a part: an all-gather, and
in the backward pass a reduce-scatter. Left to the compiler the second is often an all-reduce of the
whole gradient in every layer (on v5e:16x16, libtpu 0.0.42, of every kernel of every layer), twice
the bytes and a whole gradient in memory. Mapped over the devices by hand, the transpose of the one
is the other by definition.
"""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from vdm_jax.axes import ROW
from vdm_jax.kernels import linear
from vdm_jax.kernels.spread import Axes, devices, mesh_axes


def product(
    x: Float[Array, "b *rest c"], kernel: Float[Array, "c d"], axes: tuple[str | None, str | None]
) -> Float[Array, "b *rest d"]:
    """x times `kernel`, whose logical axes are `axes`; in their dtype."""
    rows = mesh_axes(ROW)
    if not rows or x.shape[0] % devices(rows):
        return linear.product(x, kernel)
    divided = [_over(name, size, rows) for name, size in zip(axes, kernel.shape, strict=True)]
    if not any(divided):
        return linear.product(x, kernel)

    def here(x: Array, kernel: Array) -> Array:
        for axis, over in enumerate(divided):
            if over:
                kernel = jax.lax.all_gather(kernel, over, axis=axis, tiled=True)
        return linear.product(x, kernel)

    return jax.shard_map(
        here,
        in_specs=(PartitionSpec(rows), PartitionSpec(*divided)),
        out_specs=PartitionSpec(rows),
        axis_names=set(rows),
        check_vma=False,
    )(x, kernel)


def _over(name: str | None, size: int, rows: Axes) -> Axes:
    """Those of the rows' mesh axes that divide an axis of a kernel."""
    over = () if name is None else tuple(axis for axis in mesh_axes(name) if axis in rows)
    return over if size % devices(over) == 0 else ()
