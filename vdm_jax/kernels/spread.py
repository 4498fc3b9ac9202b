"""A kernel under a mesh: each device runs it on its own rows and heads, without a collective.

A kernel's loops cannot be divided by the compiler, which would gather everything first. Rows and
heads never meet in attention, so where the ambient mesh divides them the kernel is mapped over
their devices; each loops as often as its own rows need.
"""

from __future__ import annotations

import functools
import math

import jax
from flax.linen import get_logical_axis_rules
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from vdm_jax.axes import HEADS, ROW
from vdm_jax.kernels.kernel import Kernel
from vdm_jax.kernels.kernel import attend as run


def attend(
    kernel: Kernel,
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    q_group: Int[Array, "b n"],
    kv_group: Int[Array, "b m"],
) -> Float[Array, "b n h d"]:
    """Attention by a kernel, over the ambient mesh if there is one."""
    rows, heads = mesh_axes(ROW, q.shape[0]), mesh_axes(HEADS, q.shape[2])
    on = functools.partial(_compiled, kernel)
    if rows or heads:
        tokens, ids = PartitionSpec(rows, None, heads), PartitionSpec(rows)
        on = jax.shard_map(
            on,
            in_specs=(tokens, tokens, tokens, ids, ids),
            out_specs=tokens,
            axis_names={*rows, *heads},
            check_vma=False,
        )
    return on(q, k, v, q_group, kv_group)


def mesh_axes(name: str, size: int) -> tuple[str, ...]:
    """Axes of the ambient mesh over which a logical axis is divided; none if they do not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    rule = dict(get_logical_axis_rules()).get(name) or ()
    names = (rule,) if isinstance(rule, str) else tuple(rule)
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(a for a in names if kinds.get(a) == AxisType.Auto and mesh.shape[a] > 1)
    return axes if size % math.prod(mesh.shape[a] for a in axes) == 0 else ()


# Outside of a compiled step (a notebook, a test) every call would compile its loops anew.
_compiled = jax.jit(run, static_argnums=0)
