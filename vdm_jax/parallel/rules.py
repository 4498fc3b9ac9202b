"""From logical axis names to mesh axes: one table per strategy, checked when it is used.

    dp        rows divided, parameters copied
    fsdp      also parameters, optimizer and EMA, along the residual stream
    fsdp_tp   also heads and hidden units along `tensor`
    fsdp_seq  fsdp, and the tokens or frames of a row along `seq`
    all       everything at once

Activations come first in a table: where an activation carries both `row` and `embed`, Flax gives
the mesh axis to the earlier rule. For a parameter there is no such precedence; two of its axes on
one mesh axis are an error, since one of them would silently stay whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from jax.sharding import PartitionSpec

from vdm_jax import axes
from vdm_jax.config import UserError, suggestion

MeshAxes = str | tuple[str, ...] | None
Rules = tuple[tuple[str, MeshAxes], ...]

ROWS: dict[str, MeshAxes] = {axes.ROW: ("data", "fsdp")}
TOKENS: dict[str, MeshAxes] = {axes.TOKEN: "seq", axes.PLACE: "seq"}
STREAM: dict[str, MeshAxes] = {axes.EMBED: "fsdp", axes.CONDITION: "fsdp"}
UNITS: dict[str, MeshAxes] = {
    axes.MLP: "tensor",
    axes.HEADS: "tensor",
    axes.MODULATION: "tensor",
    axes.VOCAB: "tensor",
}

TABLES: dict[str, dict[str, MeshAxes]] = {
    "dp": ROWS,
    "fsdp": ROWS | STREAM,
    "fsdp_tp": ROWS | STREAM | UNITS,
    "fsdp_seq": ROWS | TOKENS | STREAM,
    "all": ROWS | TOKENS | STREAM | UNITS,
}


def table(name: str) -> Rules:
    """The rules of a strategy, for every name of the vocabulary; None means not divided.

    Raises:
      UserError: no such strategy.
    """
    if name not in TABLES:
        raise UserError(f"there are no sharding rules called '{name}'.{suggestion(name, TABLES)}")
    chosen = TABLES[name]
    return (*chosen.items(), *((axis, None) for axis in sorted(axes.NAMES - chosen.keys())))


def spec_of(names: Sequence[str | None], rules: Rules, what: str) -> PartitionSpec:
    """Logical names of a parameter's axes -> its partition; `what` names it in errors.

    Raises:
      UserError: a name outside the vocabulary, or two axes on the same mesh axis.
    """
    known = dict(rules)
    parts: list[MeshAxes] = []
    taken: dict[str, str] = {}
    for name in names:
        if name is None:
            parts.append(None)
            continue
        if name not in known:
            raise UserError(f"{what} has a logical axis '{name}'.{suggestion(name, known)}")
        part = known[name]
        for mesh_axis in mesh_axes(part):
            if mesh_axis in taken:
                raise UserError(
                    f"{what} has axes {taken[mesh_axis]} and {name} both on mesh axis {mesh_axis}; "
                    "give one of them another logical name."
                )
            taken[mesh_axis] = name
        parts.append(part)
    return PartitionSpec(*parts)


def mesh_axes(part: MeshAxes) -> tuple[str, ...]:
    """The mesh axes of one entry of a table or partition."""
    if part is None:
        return ()
    return (part,) if isinstance(part, str) else tuple(part)
