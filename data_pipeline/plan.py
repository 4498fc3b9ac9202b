"""The plan: which examples share a row, from metadata alone.

The stream of examples is cut into blocks of a fixed number. Block k, a pure function of (sources,
seed, settings, k), holds everything that changes a length: caption, start, rate, frames, size.
Its examples are packed by themselves and its rows shuffled (best fit puts like with like), so row
r of block k is one random-access element: to resume costs nothing and decodes nothing twice.

    cursor = k * ROWS_PER_BLOCK + r

A block is one memory-mapped array of `EXAMPLE`, ordered by row; dropped examples come last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import clips, keys, sizes
from data_pipeline.bins import best_fit
from data_pipeline.collection import Clips
from data_pipeline.errors import DataError
from data_pipeline.order import Drawn, Order

ROWS_PER_BLOCK = 1 << 20
NO_ROW = np.iinfo(np.int32).max
SCHEME = 1  # of orders, draws and packing; another number means other batches
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
        ("tokens", "<i4"),
        ("changed", "<i4"),
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """What one row holds. One text token is kept free, for queries that belong to no example."""

    patch: tuple[int, int, int]
    tokens: int
    text_tokens: int
    segments: int

    @property
    def features(self) -> int:
        return 3 * int(np.prod(self.patch))


@dataclasses.dataclass(frozen=True)
class Block:
    """Examples ordered by row."""

    examples: np.ndarray

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planner:
    """Makes blocks. `train[s]` are the clips of source s that may be drawn."""

    sources: tuple[Clips, ...]
    train: tuple[np.ndarray, ...]
    weights: tuple[float, ...]
    seed: int
    capacity: Capacity
    size: sizes.SizeLaw
    fps: float | None
    block: int

    @cached_property
    def order(self) -> Order:
        identities = [s.id[mine, 0] for s, mine in zip(self.sources, self.train, strict=True)]
        return Order(clips=tuple(identities), weights=self.weights, seed=self.seed)

    def make(self, k: int) -> Block:
        """Block k of the stream."""
        drawn = self.order.draw(k * self.block, self.block)
        clip = np.empty_like(drawn.clip)
        for s, mine in enumerate(self.train):
            inside = drawn.source == s
            clip[inside] = mine[drawn.clip[inside]]
        ordinal = k * self.block + np.arange(self.block)
        examples = self.describe(drawn._replace(clip=clip), ordinal, self.seed)
        return lay_out(examples, self.capacity, self.seed, k)

    def describe(self, drawn: Drawn, ordinal: np.ndarray, seed: int) -> np.ndarray:
        """(n,) `EXAMPLE`: every choice that changes a length, keyed by (seed, ordinal)."""

        def column(name: str) -> np.ndarray:
            return pick(self.sources, drawn, lambda clips, chosen: getattr(clips, name)[chosen])

        def draw(purpose: str) -> np.ndarray:
            return keys.uniform(seed, purpose, ordinal)

        height, width = column("height"), column("width")
        whole, rate = clips.at_rate(column("frames"), column("rate"), self.fps)
        scale = self.size.scale(height, width, draw("size"))
        patch, budget = self.capacity.patch, self.capacity.tokens
        fitted = sizes.fit(whole, height, width, scale, patch, budget)

        start = column("starts")
        count = pick(self.sources, drawn, lambda clips, chosen: clips.starts[chosen + 1]) - start
        said = count > 0
        caption = np.where(said, start + np.floor(draw("caption") * count).astype(np.int64), -1)
        words = pick(
            self.sources,
            drawn._replace(clip=caption),
            lambda clips, chosen: np.append(clips.words, 1)[chosen],  # no caption: the null token
        )
        room = self.capacity.text_tokens - 1

        examples = np.zeros(len(ordinal), EXAMPLE)
        examples["ordinal"], examples["source"] = ordinal, drawn.source
        examples["clip"], examples["visit"] = drawn.clip, drawn.visit
        examples["caption"], examples["words"] = caption, np.minimum(words, room)
        examples["offset"] = clips.start(fitted.frames, whole, rate, draw("start"))
        examples["rate"] = np.where(fitted.frames > 1, rate, 0)
        for name in ("frames", "resized", "size", "grid", "tokens"):
            examples[name] = getattr(fitted, name)
        examples["changed"] = fitted.changed + (words > room) * TEXT_CUT
        return examples


def pick(
    sources: Sequence[Clips], drawn: Drawn, read: Callable[[Clips, np.ndarray], np.ndarray]
) -> np.ndarray:
    """`read(clips, indices)` of each source, put where its examples are."""
    masks = [drawn.source == s for s in range(len(sources))]
    values = [read(s, drawn.clip[mine]) for s, mine in zip(sources, masks, strict=True)]
    found = np.empty(len(drawn.clip), np.result_type(*values))
    for mine, value in zip(masks, values, strict=True):
        found[mine] = value
    return found


def lay_out(examples: np.ndarray, capacity: Capacity, seed: int, k: int) -> Block:
    """Pack examples into rows and shuffle the rows."""
    wanted = np.stack([examples["tokens"], examples["words"], np.ones(len(examples), int)], axis=1)
    rows = best_fit(wanted, (capacity.tokens, capacity.text_tokens - 1, capacity.segments))
    shuffled = np.argsort(keys.words(seed, f"rows/{k}", np.arange(len(rows))), kind="stable")
    examples["row"] = NO_ROW
    for place, row in enumerate(shuffled):
        examples["row"][rows[row]] = place
    return Block(examples[np.argsort(examples["row"], kind="stable")])


@dataclasses.dataclass(frozen=True)
class Plans:
    """Blocks by number, memory-mapped from files that are written once, atomically."""

    planner: Planner
    folder: Path

    @cached_property
    def block(self):
        return lru_cache(maxsize=16)(self._block)

    def _block(self, k: int) -> Block:
        """Raises: DataError, code 6 where the cache cannot be written; 2 where nothing fits."""
        file = self.folder / f"block-{k:08d}.npy"
        block = self._cached(file)
        if block is None:
            self._store(self.planner.make(k), file)
            block = self._cached(file)
        if block is None:
            raise DataError(f"the plan '{file}' cannot be read back; name another cache.", code=6)
        if not len(block):
            raise DataError(
                f"not one of the examples of block {k} fits into a row of "
                f"{self.planner.capacity.tokens} tokens; raise tokens or lower size.",
                code=2,
            )
        return block

    def _cached(self, file: Path) -> Block | None:
        try:
            examples = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # absent, or cut short by a full disk: made again
            return None
        whole = examples.dtype == EXAMPLE and len(examples) == self.planner.block
        return Block(examples) if whole else None

    def _store(self, block: Block, file: Path) -> None:
        partial = file.with_name(f"{file.name}.{os.getpid()}.{id(block)}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as out:
                np.save(out, block.examples)
            os.replace(partial, file)
        except OSError as error:
            raise DataError(
                f"cannot write the plan to '{self.folder}' ({error}); name another with cache=.",
                code=6,
            ) from None
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()


def plan_name(fingerprint: Mapping[str, Any]) -> str:
    """The name of the folder for plans of this fingerprint."""
    return sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:24]
