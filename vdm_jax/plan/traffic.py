"""What a compiled step moves: between chips, and between a chip and its memory.

A collective counts once per execution, inside loops as often as they turn. Its bytes are those of
the whole array that the group makes or reduces, whatever share of it a device holds:

    all-gather        result         reduce-scatter    operand
    all-reduce        operand        all-to-all        operand      collective-permute   operand

The TPU compiler writes a reduce-scatter as a fusion called `all-reduce-scatter`, and spreads an
asynchronous collective over several fusions that repeat it; both are seen through.

Bytes of memory: what every fusion or operation that is not fused reads and writes, a slice of an
array as the slice. Values that the compiler keeps in the core's own memory cost nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator

import numpy as np

from vdm_jax.plan.hlo import Computation, Instruction, Module, Shape

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
FREE = frozenset(
    (
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
        "conditional", "after-all", "partition-id", "replica-id", "iota", "domain",
        "opt-barrier", "copy-done", "async-start", "async-update", "async-done",
    )
)  # fmt: skip
SLICES = frozenset(("dynamic-slice", "slice", "gather"))
_SPREAD = re.compile(r'"async_collective_fusion_config":\{"flag_start":"(-?\d+)"')
_MESHED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}"
)
_SCATTERED = "all-reduce-scatter"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective operation of a program.

    Attributes:
      bytes: of the array, once; times: executions in a step.
      group: partitions of its first group, numbered as the mesh's devices are.
      looped: whether it lies in a loop.
      place: the operation of the traced program that it is for.
    """

    kind: str
    bytes: int
    times: float
    group: tuple[int, ...]
    looped: bool
    place: str

    @property
    def moved(self) -> float:
        """Bytes over all executions."""
        return self.bytes * self.times


def collectives(module: Module) -> tuple[Collective, ...]:
    """Every collective that moves something, in no particular order."""
    found = []
    for where, one, times in module.executed():
        kind = one.opcode.removesuffix("-start")
        if kind not in KINDS or one.opcode.endswith(("-done", "-update")):
            continue
        spread = _SPREAD.search(one.attributes)
        if spread and spread[1] != "-1":
            continue  # the rest of one that has begun
        if kind == "all-reduce" and where.startswith(_SCATTERED):
            kind = "reduce-scatter"
        members = group(one.attributes)
        if len(members) == 1:
            continue
        place = re.search(r'op_name="([^"]*)"', one.attributes)
        found.append(
            Collective(
                kind=kind,
                bytes=_whole(module.computations[where], one, kind, len(members)),
                times=times,
                group=members,
                looped=times > 1,
                place=place[1] if place else "",
            )
        )
    return tuple(found)


def _whole(here: Computation, one: Instruction, kind: str, size: int) -> int:
    """Bytes of the whole array, from the operands: results of `-start` hold more than results."""
    operands = sum(here[name].bytes for name in one.operands if name in here)
    if kind == "all-gather":
        return operands * size
    return operands


def group(attributes: str) -> tuple[int, ...]:
    """The members of the first group of `replica_groups` or `source_target_pairs`, in any of the
    ways they are written; of pairs, all that are named."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return tuple(map(int, listed[1].split(",")))
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if tiled:
        ids = _ids(tiled[3], tiled[4])
        return tuple(ids.reshape(int(tiled[1]), int(tiled[2]))[0].tolist())
    meshed = _MESHED.search(attributes)
    if meshed:
        sizes = [(name, int(size)) for name, size in re.findall(r"'(\w+)'=(\d+)", meshed[1])]
        over = set(re.findall(r"'(\w+)'", meshed[4]))
        ids = _ids(meshed[2], meshed[3]) if meshed[2] else np.arange(np.prod([n for _, n in sizes]))
        first = tuple(slice(None) if name in over else 0 for name, _ in sizes)
        return tuple(np.ravel(ids.reshape([n for _, n in sizes])[first]).tolist())
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    if pairs:
        return tuple(sorted(set(map(int, re.findall(r"\d+", pairs[1])))))
    return ()


def _ids(shape: str, transposed: str | None) -> np.ndarray:
    """0, 1, 2, ... in a shape, its axes in another order."""
    sizes = tuple(map(int, shape.split(",")))
    ids = np.arange(np.prod(sizes)).reshape(sizes)
    return ids.transpose(tuple(map(int, transposed.split(",")))) if transposed else ids


def summary(found: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """By kind: `count` of executions and `bytes` over them."""
    out: dict[str, dict[str, float]] = {}
    for one in found:
        entry = out.setdefault(one.kind, {"count": 0, "bytes": 0})
        entry["count"] += one.times
        entry["bytes"] += one.moved
    return {kind: out[kind] for kind in sorted(out)}


def memory_bytes(module: Module) -> float:
    """Bytes read from and written to a device's memory in one step."""
    return sum(times * size for _, size, times in costs(module))


def costs(module: Module) -> Iterator[tuple[Instruction, int, float]]:
    """(instruction, bytes it reads and writes, times) of what is not fused."""
    for where, one, times in module.executed():
        if where in module.fused or one.opcode in FREE:
            continue
        yield one, _cost(module, module.computations[where], one), times


def _cost(module: Module, here: Computation, one: Instruction) -> int:
    operands = [here[name] for name in one.operands if name in here]
    if one.opcode in SLICES:
        return 2 * _memory(one.shapes)
    if one.opcode == "dynamic-update-slice":
        return 2 * _memory(operands[1].shapes)
    inner = module.computations.get(one.called.get("calls", [""])[0])
    if one.opcode != "fusion" or inner is None:
        return _memory(one.shapes) + sum(_memory(operand.shapes) for operand in operands)
    users: dict[str, list[Instruction]] = {}
    for each in inner.values():
        for name in each.operands:
            users.setdefault(name, []).append(each)
    total = _written(inner, one)
    for each in inner.values():
        if each.opcode == "parameter":
            number = int(each.attributes.split()[0])
            whole = _memory(operands[number].shapes) if number < len(operands) else 0
            total += min(whole, _read(inner, users, each)) if whole else 0
    return total


def _read(inner: Computation, users: dict[str, list[Instruction]], value: Instruction) -> int:
    """Bytes of a fusion's parameter that are looked at: slices, or all of it."""
    total = 0
    for user in users.get(value.name, ()):
        if user.opcode == "bitcast":
            total += _read(inner, users, user)
        elif user.opcode in SLICES and user.operands[0] == value.name:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
            continue  # written in place
        else:
            return value.bytes
    return total


def _written(inner: Computation, one: Instruction) -> int:
    """Bytes a fusion writes: of an update in place, the update."""
    root = next(each for each in inner.values() if each.root)
    outs = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for out, shape in zip(outs, one.shapes, strict=False):
        while out.opcode == "bitcast" and out.operands[0] in inner:
            out = inner[out.operands[0]]
        update = out.opcode == "dynamic-update-slice"
        size = inner[out.operands[1]].bytes if update else shape.bytes
        total += 0 if shape.vmem else size
    return total


def _memory(shapes: Iterable[Shape]) -> int:
    return sum(shape.bytes for shape in shapes if not shape.vmem)


def cycles(module: Module) -> float:
    """The compiler's own estimate over a step, of what it gives one for (not kernels)."""
    total = 0.0
    for where, one, times in module.executed():
        if where not in module.fused:
            found = re.search(r'"estimated_cycles":"(\d+)"', one.attributes)
            total += times * int(found[1]) if found else 0
    return total
