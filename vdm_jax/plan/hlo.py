"""Optimised HLO text as computations and instructions, and how often each computation runs.

    HloModule ...
    %body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
      %x = f32[8]{0:T(256)} fusion(%a, %b), kind=kLoop, calls=%fused, ...
      ROOT ...
    }
    ENTRY %main (...) -> ... { ... }

A loop's length is read off it: the compiler's `known_trip_count`, or a condition that compares a
counter from 0 with a constant. A loop whose length is data counts once, and is named in `unknown`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_SHAPE = re.compile(r"\b(pred|bf16|[sufc]\d+|f8\w+)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# Attributes may go on over several lines, a lone brace among them: what is no line is passed over.
_LINE = re.compile(r"^\s+(ROOT )?%?[\w.\-]+ = [(\w]")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array; `vmem` where the compiler put it into a memory other than the device's own."""

    dtype: str
    dims: tuple[int, ...]
    vmem: bool

    @property
    def bytes(self) -> int:
        return math.prod(self.dims) * BITS.get(self.dtype, 8) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the result; several for a tuple."""
        return tuple(
            Shape(dtype, tuple(map(int, dims.split(","))) if dims else (), _elsewhere(layout))
            for dtype, dims, layout in _SHAPE.findall(self.type)
        )

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    @cached_property
    def called(self) -> dict[str, list[str]]:
        """Computations by role: calls, to_apply, body, condition, branches."""
        found: dict[str, list[str]] = {}
        for role, name in _CALLED.findall(self.attributes):
            found.setdefault(role, []).append(name)
        for names in _BRANCHES.findall(self.attributes):
            found.setdefault("branches", []).extend(re.findall(r"%?([\w.\-]+)", names))
        return found


def _elsewhere(layout: str) -> bool:
    space = re.search(r"S\((\d+)\)", layout)
    return space is not None and space[1] != "0"


Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    computations: Mapping[str, Computation]
    entry: str

    @cached_property
    def _walk(self) -> tuple[dict[str, float], set[str], tuple[str, ...]]:
        runs: dict[str, float] = {}
        fused: set[str] = set()
        unknown: list[str] = []

        def visit(name: str, times: float, inside: bool) -> None:
            if name not in self.computations:
                return
            runs[name] = runs.get(name, 0) + times
            if inside:
                fused.add(name)
            for one in self.computations[name].values():
                called = one.called
                if not called or one.opcode in ("reduce", "reduce-window", "scatter", "sort"):
                    continue
                more = times
                if one.opcode == "while":
                    trips = self.trips(name, one)
                    more = times * (1 if trips is None else trips)
                    if trips is None:
                        unknown.append(one.name)
                for role, names in called.items():
                    # What an all-reduce applies is a sum of two numbers.
                    if role == "to_apply" and one.opcode != "call":
                        continue
                    for other in names:
                        visit(other, more, inside or one.opcode == "fusion")

        visit(self.entry, 1, False)
        return runs, fused, tuple(unknown)

    @property
    def runs(self) -> Mapping[str, float]:
        """How often each computation runs in one execution of the module."""
        return self._walk[0]

    @property
    def fused(self) -> set[str]:
        """Computations that are the inside of a fusion: their values never reach memory."""
        return self._walk[1]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Loops whose length is data."""
        return self._walk[2]

    def executed(self) -> Iterator[tuple[str, Instruction, float]]:
        """(computation, instruction, times) of all that runs."""
        for name, times in self.runs.items():
            for one in self.computations[name].values():
                yield name, one, times

    def trips(self, where: str, loop: Instruction) -> int | None:
        """The length of a `while`, None where it is data."""
        known = _TRIPS.search(loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations.get(loop.called.get("condition", [""])[0], {})
        root = next((one for one in condition.values() if one.root), None)
        if root is None or root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        counter, limit = (condition.get(name) for name in root.operands)
        if counter is None or limit is None or limit.opcode != "constant":
            return None
        index = re.search(r"index=(\d+)", counter.attributes)
        if counter.opcode != "get-tuple-element" or index is None:
            return None
        start = self._starts_at(where, loop, int(index[1]))
        return None if start is None else max(_constant(limit) - start, 0)

    def _starts_at(self, where: str, loop: Instruction, index: int) -> int | None:
        here = self.computations[where]
        start = here.get(loop.operands[0])
        if start is not None and start.opcode == "tuple":
            start = here.get(start.operands[index])
        while start is not None and start.opcode in ("copy", "bitcast"):
            start = here.get(start.operands[0])
        if start is None or start.opcode != "constant":
            # Handed in from outside; counters of scans start at 0.
            return 0
        return _constant(start)


def _constant(one: Instruction) -> int:
    return int(re.match(r"-?\d+", one.attributes)[0])  # type: ignore[index]


def parse(text: str) -> Module:
    """Raises: ValueError, text without an entry computation."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, here = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            here = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif here is not None and _LINE.match(line):
            one = _instruction(line)
            here[one.name] = one
    if not entry:
        raise ValueError("this HLO has no entry computation")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    root = left.startswith("ROOT ")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    kind, rest = right[:end], right[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside, attributes = rest[len(opcode) + 1 : close], rest[close + 1 :].lstrip(", ")
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    if opcode in ("constant", "parameter"):
        attributes = f"{inside} {attributes}"
    name = left.removeprefix("ROOT ").lstrip("%")
    return Instruction(name, kind, opcode, operands, attributes, root)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        if text[at] == "(":
            depth += 1
        elif text[at] == ")":
            depth -= 1
            if depth == 0:
                return at
    return len(text)
