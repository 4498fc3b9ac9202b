"""How examples are laid out in steps of static shape.

    Packed    rows that several examples share; every step has one shape
    Buckets   one example a row, a row as long as its bucket; a step holds one bucket only

Packing is what this library is built for. Buckets are what others do, to compare with, and for
networks that cannot read packed rows: each bucket is a shape that is compiled by itself, and a step
of short rows has more of them. An example waits until its bucket fills a step; at the end of a
block every bucket is emptied, so a step may have empty rows there. With one bucket every row is as
long as the longest example: padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from data_pipeline import keys
from data_pipeline.bins import best_fit
from data_pipeline.blocks import TEXT_CUT, Block, Capacity, Kind
from data_pipeline.checks import whole

CANDIDATES = 1 << 10  # lengths among which the edges of buckets are looked for


class Layout(Protocol):
    def kinds(
        self, capacity: Capacity, rows: int, measure: Callable[[], np.ndarray]
    ) -> tuple[Kind, ...]:
        """The shapes of steps, by length; `measure()` is (n,) `EXAMPLE` of the stream."""

    def lay_out(self, examples: np.ndarray, kinds: Sequence[Kind], seed: int, k: int) -> Block:
        """Block k of these examples, which may be changed."""

    def problems(self) -> list[str]:
        """What is wrong with the layout's own numbers, one sentence each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """Rows that several examples share (`bins.py`), shuffled: best fit puts like with like."""

    def kinds(
        self, capacity: Capacity, rows: int, measure: Callable[[], np.ndarray]
    ) -> tuple[Kind, ...]:
        return (Kind(capacity, rows),)

    def lay_out(self, examples: np.ndarray, kinds: Sequence[Kind], seed: int, k: int) -> Block:
        tokens = examples["tokens"].astype(np.int64)
        wanted = np.stack([tokens, examples["words"], np.ones_like(tokens), tokens**2], axis=1)
        row = best_fit(wanted, kinds[0].capacity.limits)
        count = int(row.max(initial=-1)) + 1
        place = np.empty(count, np.int64)
        shuffled = np.argsort(keys.words(seed, f"rows/{k}", np.arange(count)), kind="stable")
        place[shuffled] = np.arange(count)
        return Block.of(examples, np.where(row < 0, -1, place[row]) if count else row)

    def problems(self) -> list[str]:
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buckets:
    """`count` lengths of rows, which are those that pad the examples least.

    Attributes:
      multiple: lengths are rounded up to whole ones of it, such as a kernel's block.
    """

    count: int = 8
    multiple: int = 1

    def kinds(
        self, capacity: Capacity, rows: int, measure: Callable[[], np.ndarray]
    ) -> tuple[Kind, ...]:
        """A row that is a k-th as long as `capacity` has k times the rows. The longest is as long
        as `capacity`, for an example that was not measured; all hold the longest text measured."""
        seen = measure()
        lengths = seen["tokens"][seen["tokens"] > 0]
        rounded = -(-lengths // self.multiple) * self.multiple
        found = edges(np.append(np.minimum(rounded, capacity.tokens), capacity.tokens), self.count)
        words = min(capacity.text_tokens, int(seen["words"].max(initial=1)) + 1)
        return tuple(
            Kind(
                dataclasses.replace(capacity, tokens=tokens, text_tokens=words, segments=1),
                rows * (capacity.tokens // tokens),
            )
            for tokens in found
        )

    def lay_out(self, examples: np.ndarray, kinds: Sequence[Kind], seed: int, k: int) -> Block:
        room = kinds[-1].capacity.text_tokens - 1
        examples["changed"] |= (examples["words"] > room) * TEXT_CUT
        examples["words"] = np.minimum(examples["words"], room)
        return Block.of(examples, queue(examples["tokens"], kinds))

    def problems(self) -> list[str]:
        return [
            f"layout has {name} {getattr(self, name)!r}; it must be a whole number of at least 1."
            for name in ("count", "multiple")
            if not whole(getattr(self, name))
        ]


def kind_of(tokens: np.ndarray, kinds: Sequence[Kind]) -> np.ndarray:
    """The first of `kinds`, which are ordered by length, whose rows hold each example."""
    return np.searchsorted([kind.capacity.tokens for kind in kinds], tokens)


def queue(tokens: np.ndarray, kinds: Sequence[Kind]) -> np.ndarray:
    """(examples,) the row of each, one example a row, in the order of steps: a step is ready when
    its kind has examples for all its rows. Those left over at the end come last; -1: no tokens."""
    arrived = np.flatnonzero(tokens)
    kind = kind_of(tokens[arrived], kinds)
    ready = np.empty(len(arrived), np.int64)
    for number, one in enumerate(kinds):
        mine = np.flatnonzero(kind == number)
        last = np.arange(len(mine)) // one.rows * one.rows + one.rows - 1
        whole_steps = last < len(mine)
        ready[mine[whole_steps]] = mine[last[whole_steps]]
        ready[mine[~whole_steps]] = len(arrived) + number
    row = np.full(len(tokens), -1, np.int64)
    row[arrived[np.argsort(ready, kind="stable")]] = np.arange(len(arrived))
    return row


def edges(lengths: np.ndarray, count: int) -> list[int]:
    """At most `count` bucket lengths, such that padding all examples costs the least tokens.

    Exact, by dynamic programming over the distinct lengths: no other choice has a better fill. Of
    more than `CANDIDATES` distinct lengths that many, as often seen each, are chosen from.
    """
    distinct, times = np.unique(lengths, return_counts=True)
    if len(distinct) > CANDIDATES:
        shares = np.arange(1, CANDIDATES + 1) / CANDIDATES
        candidates = np.unique(np.quantile(lengths, shares, method="inverted_cdf"))
        times = np.bincount(np.searchsorted(candidates, distinct), times).astype(np.int64)
        distinct = candidates
    before = np.concatenate([[0], np.cumsum(times)])
    number = len(distinct)
    # cost[i, j]: examples of the distinct lengths i .. j - 1, all as long as the last of them
    cost = np.full((number + 1, number + 1), np.inf)
    for j in range(1, number + 1):
        cost[:j, j] = (before[j] - before[:j]) * distinct[j - 1]
    best = np.full(number + 1, np.inf)
    best[0] = 0
    cuts = []
    for _ in range(min(count, number)):
        total = best[:, None] + cost
        cuts.append(total.argmin(axis=0))
        best = total.min(axis=0)
    found, end = [], number
    for cut in reversed(cuts):
        if end:
            found.append(int(distinct[end - 1]))
            end = int(cut[end])
    return found[::-1]
