"""Token dropping: train on a part of an example's tokens (NaViT, arXiv:2307.06304, section 3.3).

A law says which share d of an example's n tokens is left out; max(1, floor(n (1 - d))) stay. How
many is drawn in the plan, for it changes what fits into a row; which ones is drawn when the row is
made, uniformly, by the example's own key (`rows.py`). A token that stays keeps its place.

| law | d |
| --- | --- |
| `KeepAll` | 0 |
| `Constant` | the same for all |
| `Beta` | u `most`; u is beta distributed, of mean m = `mean` / `most`, variance 0.3 m (1 - m) |
| `ByLength` | normal of `std`, truncated to [0, 1), its mean rising linearly with n |
| `Scheduled` | another law's, times a factor that passes from `first` to `last` |

A schedule follows the example's ordinal, its place in the stream, and so the number of examples
seen; never the step, which would make a plan depend on the size of a batch.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from scipy.special import betaincinv, expit, ndtr, ndtri

from data_pipeline.checks import real, share, whole

MOST = 1 - 2.0**-20  # a share of 1 would leave nothing


class Dropping(Protocol):
    def rate(self, tokens: np.ndarray, ordinal: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """The share of each example's tokens that is left out; `draw` is uniform in [0, 1)."""

    def problems(self) -> list[str]:
        """What is wrong with the law's own numbers, one sentence each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepAll:
    """Every token of every example."""

    def rate(self, tokens: np.ndarray, ordinal: np.ndarray, draw: np.ndarray) -> np.ndarray:
        return np.zeros(len(tokens))

    def problems(self) -> list[str]:
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """The same share of every example's tokens is left out."""

    share: float

    def rate(self, tokens: np.ndarray, ordinal: np.ndarray, draw: np.ndarray) -> np.ndarray:
        return np.full(len(tokens), float(self.share))

    def problems(self) -> list[str]:
        return _share_problems(share=self.share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beta:
    """A share between 0 and `most`, `mean` in the mean."""

    mean: float
    most: float = 0.8

    def rate(self, tokens: np.ndarray, ordinal: np.ndarray, draw: np.ndarray) -> np.ndarray:
        # a + b + 1 = m (1 - m) / variance = 1 / 0.3
        middle, both = self.mean / self.most, 1 / 0.3 - 1
        return self.most * betaincinv(middle * both, (1 - middle) * both, draw)

    def problems(self) -> list[str]:
        found = _share_problems(mean=self.mean, most=self.most)
        if not found and not 0 < self.mean < self.most:
            numbers = f"mean {self.mean} and most {self.most}"
            found.append(f"dropping has {numbers}; it needs 0 < mean < most.")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByLength:
    """More of a long example: about `low` at `shortest` tokens, about `high` at `longest`."""

    low: float
    high: float
    shortest: int
    longest: int
    std: float = 0.02

    def rate(self, tokens: np.ndarray, ordinal: np.ndarray, draw: np.ndarray) -> np.ndarray:
        mean = np.interp(tokens, (self.shortest, self.longest), (self.low, self.high))
        below, above = (ndtr((end - mean) / self.std) for end in (0.0, 1.0))
        return np.clip(mean + self.std * ndtri(below + (above - below) * draw), 0, MOST)

    def problems(self) -> list[str]:
        found = _share_problems(low=self.low, high=self.high)
        if not (real(self.std) and self.std > 0):
            found.append(f"dropping has std {self.std!r}; it must be above 0.")
        if not (whole(self.shortest) and whole(self.longest) and self.shortest < self.longest):
            found.append(
                f"dropping is by lengths from {self.shortest!r} to {self.longest!r}; they must be "
                "whole numbers, 1 <= shortest < longest."
            )
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheduled:
    """`law`, times a sigmoid of the ordinal: `first` long before example `middle`, `last` long
    after it, and most of the way within `width` examples on either side."""

    law: KeepAll | Constant | Beta | ByLength
    middle: int
    width: int
    first: float = 1.0
    last: float = 0.0

    def rate(self, tokens: np.ndarray, ordinal: np.ndarray, draw: np.ndarray) -> np.ndarray:
        passed = expit((ordinal - self.middle) / self.width)
        factor = self.first + (self.last - self.first) * passed
        return factor * self.law.rate(tokens, ordinal, draw)

    def problems(self) -> list[str]:
        found = self.law.problems()
        for name in ("first", "last"):
            if not (real(getattr(self, name)) and 0 <= getattr(self, name) <= 1):
                found.append(f"dropping has {name} {getattr(self, name)!r}; it must be in [0, 1].")
        if not (whole(self.middle, 0) and whole(self.width)):
            found.append(
                f"dropping passes example {self.middle!r} within {self.width!r}; they must be "
                "whole numbers, middle of at least 0 and width of at least 1."
            )
        return found


def kept(tokens: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """How many tokens stay: at least one of an example that has any."""
    # 1e-9: 100 tokens less 0.7 of them are 30, whatever the product rounds to.
    stay = np.floor(tokens * (1 - rate) + 1e-9).astype(np.int64)
    return np.minimum(np.maximum(stay, 1), tokens)


def _share_problems(**shares: object) -> list[str]:
    return [
        f"dropping has {name} {value!r}; it must be at least 0 and below 1."
        for name, value in shares.items()
        if not share(value)
    ]
