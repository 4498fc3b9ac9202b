"""What a plan consists of: examples, the rows they share, and the shapes of rows.

The stream of examples is cut into blocks of a fixed number, which are laid out by themselves: row r
of block k is one random-access element. A block is one array of `EXAMPLE`, ordered by row; dropped
examples come last.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property

import numpy as np

NO_ROW = np.iinfo(np.int32).max
TEXT_CUT = 8  # a bit of `changed`, beside those of `sizes`
EXAMPLE = np.dtype(
    [
        ("row", "<i4"),  # NO_ROW: dropped
        ("ordinal", "<i8"),
        ("source", "<i4"),
        ("clip", "<i8"),
        ("visit", "<i4"),
        ("caption", "<i8"),  # -1: none
        ("words", "<i4"),
        ("offset", "<f8"),  # seconds from the clip's first frame
        ("rate", "<f8"),  # frames a second; 0 for a still image
        ("frames", "<i4"),
        ("resized", "<i4", 2),
        ("size", "<i4", 2),
        ("grid", "<i4", 3),
        ("tokens", "<i4"),  # that stay, of those of the grid
        ("changed", "<i4"),
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """What a row holds of each cell: `numbers` of a type, in the array called `name`."""

    name: str
    numbers: int
    dtype: str


PIXELS = Content(name="patches", numbers=3, dtype="uint8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """What one row holds. One text token is kept free, for queries that belong to no example.

    `pairs` is the largest share of the row's tokens² query-key pairs that its examples' own pairs
    may make up: attention's work. A row of one example that fills it has them all, so 1 caps
    nothing; below that the longest examples are shortened, and rows become more even.
    `text_width` is that of the features of its text tokens, 0 where it holds their ids alone.
    """

    patch: tuple[int, int, int]
    tokens: int
    text_tokens: int
    segments: int
    pairs: float = 1.0
    content: Content = PIXELS
    text_width: int = 0

    @property
    def features(self) -> int:
        return self.content.numbers * int(np.prod(self.patch))

    @property
    def limits(self) -> tuple[int, int, int, int]:
        """Most tokens, words, examples, and pairs, of a row."""
        return self.tokens, self.text_tokens - 1, self.segments, int(self.pairs * self.tokens**2)

    @property
    def longest(self) -> int:
        """Most tokens of one example."""
        return min(self.tokens, math.isqrt(self.limits[3]))


@dataclasses.dataclass(frozen=True)
class Kind:
    """The shape of a step: what is compiled."""

    capacity: Capacity
    rows: int

    @property
    def slots(self) -> int:
        return self.rows * self.capacity.tokens


@dataclasses.dataclass(frozen=True)
class Block:
    """Examples ordered by row."""

    examples: np.ndarray

    @classmethod
    def of(cls, examples: np.ndarray, row: np.ndarray) -> Block:
        """Examples in their order of arrival, and the row of each; -1 where it was dropped."""
        examples["row"] = np.where(row < 0, NO_ROW, row)
        return cls(examples[np.argsort(examples["row"], kind="stable")])

    @cached_property
    def offsets(self) -> np.ndarray:
        """(rows + 1,): row r is examples[offsets[r] : offsets[r + 1]]."""
        row = np.asarray(self.examples["row"])
        kept = row[row < NO_ROW]
        return np.searchsorted(kept, np.arange(kept.max(initial=-1) + 2))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> np.ndarray:
        return np.asarray(self.examples[self.offsets[index] : self.offsets[index + 1]])

    @cached_property
    def costs(self) -> np.ndarray:
        """(rows,) attention's work: the sum of squared lengths."""
        squares = np.square(self.examples["tokens"][: self.offsets[-1]].astype(np.float64))
        return np.add.reduceat(squares, self.offsets[:-1]) if len(self) else np.zeros(0)
