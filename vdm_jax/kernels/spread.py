"""A kernel under a mesh: rows, heads and tokens over devices.

A kernel's loops cannot be divided by the compiler, which would gather everything first. Rows and
heads never meet in attention, so where the ambient mesh divides them the kernel is mapped over
their devices; each loops as often as its own rows need, without a collective.

Tokens of a row do meet. Where queries are divided and keys are not (video that reads its caption),
every device has all keys and nothing is sent. Where both are divided over the same devices there
are two ways for queries to reach the keys of others:

    ulysses  heads are divided instead, for as long as attention takes    (ulysses.py)
    ring     keys go round the devices                                    (ring.py)

Ulysses is taken where its devices divide the heads: of S devices the ring sends S / 2 times as much
forwards, more backwards, and each of its hops takes as long as the device with most pairs in it;
Ulysses gives all devices the same work, however rows are packed. The ring has no such condition, it
hides what it sends behind what it computes, and its hops whose groups cannot meet are free.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax.linen import get_logical_axis_rules
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from vdm_jax.axes import HEADS, ROW
from vdm_jax.config import UserError
from vdm_jax.kernels import ring, ulysses
from vdm_jax.kernels.kernel import Kernel
from vdm_jax.kernels.kernel import attend as run

Axes = tuple[str, ...]
WAYS: dict[str, Callable[..., Array]] = {"ring": ring.attend, "ulysses": ulysses.attend}
# The group of tokens that fill up the last device's share: nobody's, and next to padding in order.
FILLER = jnp.iinfo(jnp.int32).max - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Axes of the ambient mesh that divide each part; the `way` to divided keys, if they are."""

    rows: Axes = ()
    heads: Axes = ()
    queries: Axes = ()
    keys: Axes = ()
    way: str | None = None


def layout(rows: int, heads: int, *, q_axis: str, kv_axis: str, way: str | None = None) -> Layout:
    """Where attention runs under the ambient mesh and rules.

    Args:
      rows, heads: how many there are; stay whole where their axes do not divide them.
      q_axis, kv_axis: logical axes of the queries' and the keys' tokens.
      way: a name of `WAYS`; None chooses.

    Raises:
      UserError: 'ulysses', and heads that do not divide.
    """
    queries, keys = mesh_axes(q_axis), mesh_axes(kv_axis)
    whole = Layout(rows=_dividing(ROW, rows), heads=_dividing(HEADS, heads), queries=queries)
    if not queries or queries != keys:
        return whole
    refusal = ulysses.refusal(heads, devices(whole.heads), devices(queries))
    if way == "ulysses" and refusal:
        raise UserError(refusal)
    way = way or ("ring" if refusal else "ulysses")
    return dataclasses.replace(whole, keys=keys, way=way)


def attend(
    kernel: Kernel,
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    q_group: Int[Array, "b n"],
    kv_group: Int[Array, "b m"],
    *,
    over: Layout = Layout(),
) -> Float[Array, "b n h d"]:
    """Attention by a kernel, each device its part of it; any lengths."""
    on = functools.partial(_compiled, over.way, kernel, over.queries)
    divided = {*over.rows, *over.heads, *over.queries}
    if not divided:
        return on(q, k, v, q_group, kv_group)

    def spec(tokens: Axes, heads: Axes = ()) -> PartitionSpec:
        return PartitionSpec(over.rows, tokens, *([heads] if heads else []))

    n, full = q.shape[1], functools.partial(fill, axis=1, multiple=devices(over.queries))
    q, q_group = full(q), full(q_group, value=FILLER)
    if over.keys:
        k, v, kv_group = full(k), full(v), full(kv_group, value=FILLER)
    queries, keys = spec(over.queries, over.heads), spec(over.keys, over.heads)
    out = jax.shard_map(
        on,
        in_specs=(queries, keys, keys, spec(over.queries), spec(over.keys)),
        out_specs=queries,
        # All of the mesh, axes of one device too: a TPU's kernels refuse to be divided any further.
        axis_names=set(mesh_auto()),
        check_vma=False,
    )(q, k, v, q_group, kv_group)
    return out[:, :n]


def mesh_axes(name: str) -> Axes:
    """Axes of the ambient mesh over which the ambient rules divide a logical axis."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    rule = dict(get_logical_axis_rules()).get(name) or ()
    names = (rule,) if isinstance(rule, str) else tuple(rule)
    return tuple(a for a in names if a in mesh_auto() and mesh.shape[a] > 1)


def mesh_auto() -> Axes:
    """Axes of the ambient mesh that nothing has been mapped over yet."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Auto)


def devices(axes: Axes) -> int:
    """How many devices axes of the ambient mesh have together."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)


def fill(x: Array, axis: int, multiple: int, value: int = 0) -> Array:
    """x, filled up at the end of an axis to a multiple."""
    widths = [(0, -size % multiple if at == axis else 0) for at, size in enumerate(x.shape)]
    return jnp.pad(x, widths, constant_values=value)


def _dividing(name: str, size: int) -> Axes:
    axes = mesh_axes(name)
    return axes if size % devices(axes) == 0 else ()


def _here(way: str | None, kernel: Kernel, axes: Axes, *arguments: Array) -> Array:
    return WAYS[way](kernel, axes, *arguments) if way else run(kernel, *arguments)


# Outside of a compiled step (a notebook, a test) every call would compile its loops anew.
_compiled = jax.jit(_here, static_argnums=(0, 1, 2))
