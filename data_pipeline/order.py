"""The stream of examples: ordinal -> (source, clip, visit), without end and without state.

Weights count examples. They are rounded to shares of `PERIOD`; within each period the sources take
turns as evenly as whole turns allow, so an ordinal's example is found without its predecessors. A
source is shuffled anew each time round (each *visit*), by the identities of its clips: neither the
order of rows in a manifest nor the other sources matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from data_pipeline import keys

PERIOD = 1 << 16
AT_ONCE = 1 << 20  # words are mixed, in several copies


class Drawn(NamedTuple):
    """Leaves (n,): which source, which of its clips, and how often that was seen before."""

    source: np.ndarray
    clip: np.ndarray
    visit: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """`clips[s]` are the 64-bit identities of source s's clips, `weights[s]` its share."""

    clips: tuple[np.ndarray, ...]
    weights: tuple[float, ...]
    seed: int

    @cached_property
    def turns(self) -> np.ndarray:
        """(PERIOD,) whose turn it is."""
        share = shares(self.weights, PERIOD)
        ticks = np.concatenate([(np.arange(n) + 0.5) / n for n in share])
        owner = np.repeat(np.arange(len(share)), share)
        return owner[np.argsort(ticks, kind="stable")]

    @cached_property
    def taken(self) -> np.ndarray:
        """(PERIOD + 1, sources): turns each source has had before each place of a period."""
        mine = self.turns[:, None] == np.arange(len(self.clips))
        return np.concatenate([np.zeros((1, len(self.clips)), np.int64), mine.cumsum(axis=0)])

    def draw(self, first: int, count: int) -> Drawn:
        """The examples of the ordinals first .. first + count - 1."""
        ordinal = np.arange(first, first + count, dtype=np.int64)
        rounds, place = np.divmod(ordinal, PERIOD)
        source = self.turns[place]
        turn = rounds * self.taken[-1, source] + self.taken[place, source]
        clip, visit = np.empty(count, np.int64), np.empty(count, np.int64)
        for s, identities in enumerate(self.clips):
            mine = np.flatnonzero(source == s)
            visit[mine], place_in_round = np.divmod(turn[mine], len(identities))
            # Turns only rise: the examples of one round follow each other.
            ends = np.flatnonzero(np.diff(visit[mine], append=-1)) + 1
            for start, end in zip((0, *ends), ends, strict=False):
                order = self.shuffled(s, int(visit[mine[start]]))
                clip[mine[start:end]] = order[place_in_round[start:end]]
        return Drawn(source, clip, visit)

    @cached_property
    def shuffled(self) -> Callable[[int, int], np.ndarray]:
        """(source, round) -> its clips in their order of that round; the last few are kept."""
        return lru_cache(maxsize=2 * len(self.clips))(self._shuffled)

    def _shuffled(self, source: int, round_: int) -> np.ndarray:
        identities = self.clips[source]
        mixed = np.empty(len(identities), np.uint64)
        for first in range(0, len(mixed), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            mixed[some] = keys.words(self.seed, f"order/{source}/{round_}", identities[some])
        return np.argsort(mixed, kind="stable").astype(np.uint32)


def shares(weights: Sequence[float], total: int) -> np.ndarray:
    """Whole numbers in proportion to weights, at least 1 each, that add up to `total`."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * total
    share = np.maximum(np.floor(exact).astype(np.int64), 1)
    left = total - share.sum()
    order = np.argsort(share - exact, kind="stable")  # the most short-changed first
    if left >= 0:
        share[order[:left]] += 1
    else:
        share[np.argmax(share)] += left
    return share


def held_out(second: np.ndarray, fraction: float) -> np.ndarray:
    """Which clips are held out: a clip's own hash says so, whatever the seed and its company."""
    return (second >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction
