"""Where every array of a state lies, found from the logical names at its parameters.

`eval_shape` of a boxed state -> `shardings` -> `jit(init, out_shardings=...)`: nothing is ever
whole on one device. Boxes (`nn.with_logical_partitioning`) survive whatever maps over a tree, so
moments of optimizers and averages of weights carry their parameter's names; a leaf that lost its
box takes the placement of the parameter whose path it ends with, if the shape is the same too.
Other leaves (counters) are copied to every device.

An axis that its mesh axes do not divide stays whole if the array is small (`SMALL` elements, where
a copy on each device costs less than any remedy), else it is an error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vdm_jax.config import UserError
from vdm_jax.parallel.rules import MeshAxes, Rules, mesh_axes, spec_of

PyTree = Any
SMALL = 2**18


@dataclasses.dataclass(frozen=True)
class _Known:
    """A parameter whose names are known: keys of its path, shape, partition."""

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    spec: PartitionSpec


def shardings(boxed: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """The `NamedSharding` of every leaf of an abstract state, in the structure of `unbox(boxed)`.

    Raises:
      UserError: a logical name outside the vocabulary, two axes of one parameter on the same mesh
        axis, or a large axis that does not divide.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=_is_box)
    known = []
    for path, box in flat:
        if _is_box(box) and len(box.names) == box.value.ndim:
            what = jax.tree_util.keystr(path, simple=True, separator="/")
            spec = spec_of(box.names, rules, what)
            spec = _divisible(spec, box.value.shape, mesh, what, box.names)
            known.append(_Known(_keys(path), box.value.shape, spec))
    here = {entry.keys: entry for entry in known}

    def place(path: Any, leaf: Any) -> NamedSharding:
        keys = _keys(path)
        found = here.get(keys) if _is_box(leaf) else None
        if found is None:
            value = leaf.value if _is_box(leaf) else leaf
            found = _like(keys, value.shape, known)
        return NamedSharding(mesh, PartitionSpec() if found is None else found.spec)

    return jax.tree_util.tree_map_with_path(place, boxed, is_leaf=_is_box)


def unbox(tree: PyTree) -> PyTree:
    """The tree without its boxes of names."""
    return meta.unbox(tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays (microbatches, rows, ...): rows over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))


def row_share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """(which share of a step's rows a process feeds, of how many): one share for each set of
    devices along `data` and `fsdp` that a process has. Where a row is divided, along `seq` or
    `tensor`, over several processes, they feed the same.

    Args:
      process: this one by default.

    Raises:
      UserError: processes share some of their rows' devices, but not all.
    """
    process = jax.process_index() if process is None else process
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    held: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices.reshape(rows, -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(row)
    shares = sorted({tuple(sorted(mine)) for mine in held.values()})
    if sum(map(len, shares)) != rows:
        sizes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
        raise UserError(
            f"mesh ({sizes}) divides rows unevenly over {len(held)} processes; let data x fsdp be "
            "a multiple of their number, or a divisor of it."
        )
    return shares.index(tuple(sorted(held[process]))), len(shares)


def whole(tree: PyTree) -> PyTree:
    """The tree with every array whole on every process; all processes must call it."""

    def read(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jnp.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return leaf

    return jax.tree.map(read, tree)


def abstract(boxed: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """Shapes, dtypes and shardings of `unbox(boxed)`, as a checkpoint's `restore` wants them."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        unbox(boxed),
        shardings(boxed, mesh, rules),
    )


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _like(keys: tuple[str, ...], shape: tuple[int, ...], known: list[_Known]) -> _Known | None:
    """The parameter that shares the longest end of its path, its name at least, and its shape."""
    best, length = None, 0
    for entry in known if shape else ():
        common = _common_end(keys, entry.keys)
        if entry.shape == shape and common > length:
            best, length = entry, common
    return best


def _common_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _divisible(
    spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh, what: str, names: Any
) -> PartitionSpec:
    parts: list[MeshAxes] = []
    for size, part, name in zip(shape, spec, names, strict=True):
        devices = _devices(part, mesh.shape)
        if size % devices == 0:
            parts.append(part)
        elif math.prod(shape) <= SMALL:
            parts.append(None)
        else:
            on = " x ".join(mesh_axes(part))
            raise UserError(
                f"{what} has axis {name} of size {size}, which mesh axis {on} of {devices} devices "
                "does not divide; change the width or the mesh, or choose other rules."
            )
    return PartitionSpec(*parts)


def _devices(part: MeshAxes, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[axis] for axis in mesh_axes(part))
