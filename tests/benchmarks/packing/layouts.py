"""Three ways to lay the same stream of examples into steps of static shape.

    packed    rows that several examples share, by the library's planner
    padded    one example a row, every row as long as the longest example
    bucketed  one example a row, a row of its bucket's length; a step holds one bucket only

A bucket is a range of lengths, so that one compiled program serves many sizes. An example waits in
its bucket's queue until the queue fills a batch, as in the loaders that work so: nothing is
dropped, and in the long run every example is seen equally often.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline import rows
from data_pipeline.blocks import Kind
from data_pipeline.layouts import Packed
from tests.benchmarks.packing.pool import Pool


class Step(NamedTuple):
    """The examples (n,) of each row, and which kind the step is of; further rows are empty."""

    kind: int
    rows: list[np.ndarray]

    @property
    def examples(self) -> np.ndarray:
        return np.concatenate(self.rows)


def packed(epochs: Iterable[np.ndarray], kind: Kind, seed: int) -> Iterator[Step]:
    """Each epoch is a block of its own; the last step of one may have empty rows."""
    for k, examples in enumerate(epochs):
        block = Packed().lay_out(examples, (kind,), seed, k)
        for first in range(0, len(block), kind.rows):
            last = min(first + kind.rows, len(block))
            yield Step(0, [block.row(row) for row in range(first, last)])


def queued(epochs: Iterable[np.ndarray], kinds: Sequence[Kind]) -> Iterator[Step]:
    """One example a row, in the shortest kind that holds it; with a single kind, padded rows.

    `kinds` are ordered by length.
    """
    lengths = [kind.capacity.tokens for kind in kinds]
    queues: list[list[np.ndarray]] = [[] for _ in kinds]
    for examples in epochs:
        for place, kind in enumerate(np.searchsorted(lengths, examples["tokens"])):
            queues[kind].append(examples[place : place + 1])
            if len(queues[kind]) == kinds[kind].rows:
                yield Step(int(kind), queues[kind])
                queues[kind] = []


def fill(steps: Sequence[Step], kinds: Sequence[Kind]) -> float:
    """The share of all tokens that belong to an example."""
    used = sum(int(step.examples["tokens"].sum()) for step in steps)
    return used / sum(kinds[step.kind].slots for step in steps)


def arrays(step: Step, kind: Kind, pool: Pool) -> rows.Arrays:
    """What the compiled step takes: leaves (1, rows, ...)."""
    blank = rows.blank(kind.capacity)
    read = [rows.pack([pool.member(one) for one in row], kind.capacity) for row in step.rows]
    read += [blank] * (kind.rows - len(read))
    return {name: np.stack([row[name] for row in read])[None] for name in blank}
