"""The plan: which examples share a row, from metadata alone.

The stream of examples is cut into blocks of a fixed number. Block k, a pure function of (sources,
seed, settings, k), holds everything that changes a length: caption, start, rate, frames, size, and
how many tokens stay. Its examples are laid out by themselves, so row r of block k is one
random-access element: to resume costs nothing and decodes nothing twice.

    cursor = k * ROWS_PER_BLOCK + r
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import arrays, clips, keys, sizes
from data_pipeline.blocks import EXAMPLE, TEXT_CUT, Block, Capacity, Kind
from data_pipeline.collection import Clips
from data_pipeline.dropping import Dropping, KeepAll, kept
from data_pipeline.errors import DataError
from data_pipeline.layouts import Layout, Packed
from data_pipeline.order import Drawn, Order

ROWS_PER_BLOCK = 1 << 20
SCHEME = 2  # of orders, draws and packing; another number means other batches
MEASURED = 1 << 16  # examples by which a stream is judged before it is planned


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planner:
    """Makes blocks. `train[s]` are the clips of source s that may be drawn."""

    sources: tuple[Clips, ...]
    train: tuple[np.ndarray, ...]
    weights: tuple[float, ...]
    seed: int
    capacity: Capacity
    rows: int
    block: int
    size: sizes.SizeLaw
    rate: clips.RateLaw = dataclasses.field(default_factory=clips.OwnRate)
    duration: clips.DurationLaw = dataclasses.field(default_factory=clips.Whole)
    start: Callable[..., np.ndarray] = clips.start
    dropping: Dropping = dataclasses.field(default_factory=KeepAll)
    layout: Layout = dataclasses.field(default_factory=Packed)

    @cached_property
    def order(self) -> Order:
        identities = [
            s.id[:, 0] if len(mine) == len(s) else s.id[mine, 0]
            for s, mine in zip(self.sources, self.train, strict=True)
        ]
        return Order(clips=tuple(identities), weights=self.weights, seed=self.seed)

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """The shapes of steps."""

        def measure() -> np.ndarray:
            return self.arrive(0, min(self.block, MEASURED))

        return self.layout.kinds(self.capacity, self.rows, measure)

    def make(self, k: int) -> Block:
        """Block k of the stream."""
        examples = self.arrive(k * self.block, self.block)
        return self.layout.lay_out(examples, self.kinds, self.seed, k)

    def arrive(self, first: int, count: int) -> np.ndarray:
        """(count,) `EXAMPLE`: the stream from ordinal `first` on, before it is laid out."""
        drawn = self.order.draw(first, count)
        clip = np.empty_like(drawn.clip)
        for s, mine in enumerate(self.train):
            inside = drawn.source == s
            clip[inside] = mine[drawn.clip[inside]]
        return self.describe(drawn._replace(clip=clip), first + np.arange(count), self.seed)

    def tokens_per_example(self) -> tuple[float, ...]:
        """Of each source, in the mean over up to `MEASURED` of its clips."""
        found = []
        for s, mine in enumerate(self.train):
            clip = mine[self.order.shuffled(s, 0)[:MEASURED]]
            drawn = Drawn(np.full(len(clip), s), clip, np.zeros(len(clip), np.int64))
            examples = self.describe(drawn, np.arange(len(clip)), self.seed)
            found.append(max(float(examples["tokens"].mean()), 1.0))
        return tuple(found)

    def describe(self, drawn: Drawn, ordinal: np.ndarray, seed: int) -> np.ndarray:
        """(n,) `EXAMPLE`: every choice that changes a length, keyed by (seed, ordinal)."""

        def column(name: str) -> np.ndarray:
            return pick(self.sources, drawn, lambda clips, chosen: getattr(clips, name)[chosen])

        def draw(purpose: str) -> np.ndarray:
            return keys.uniform(seed, purpose, ordinal)

        height, width = column("height").astype(np.int64), column("width").astype(np.int64)
        native = column("rate")
        wanted = self.rate.wanted(native, draw("rate"))
        whole, rate = clips.at_rate(column("frames").astype(np.int64), native, wanted)
        frames = self.duration.frames(whole, rate, draw("duration"))
        scale = self.size.scale(height, width, draw("size"))
        fitted = sizes.fit(
            frames, height, width, scale, self.capacity.patch, self.capacity.longest, self.size.most
        )
        left_out = self.dropping.rate(fitted.tokens, ordinal, draw("dropping"))

        chance = draw("caption")
        caption = np.empty(len(ordinal), np.int64)
        for s, source in enumerate(self.sources):
            mine = drawn.source == s
            caption[mine] = source.caption(drawn.clip[mine], chance[mine])
        words = pick(
            self.sources,
            drawn._replace(clip=caption),
            # No caption is the null token: one.
            lambda clips, chosen: np.where(chosen < 0, 1, _at(clips.words, chosen)),
        )
        room = self.capacity.text_tokens - 1

        examples = np.zeros(len(ordinal), EXAMPLE)
        examples["ordinal"], examples["source"] = ordinal, drawn.source
        examples["clip"], examples["visit"] = drawn.clip, drawn.visit
        examples["caption"], examples["words"] = caption, np.minimum(words, room)
        examples["offset"] = self.start(fitted.frames, whole, rate, draw("start"))
        examples["rate"] = np.where(fitted.frames > 1, rate, 0)
        for name in ("frames", "resized", "size", "grid"):
            examples[name] = getattr(fitted, name)
        examples["tokens"] = kept(fitted.tokens, left_out)
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


def _at(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """`values[index]`; anything for indices below 0, of which a source may have nothing else."""
    return values[index] if len(values) else np.zeros(len(index), values.dtype)


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
        shape = (self.planner.block,)
        examples = arrays.load(file, EXAMPLE, shape)
        if examples is None:
            try:
                arrays.store(self.planner.make(k).examples, file)
            except OSError as error:
                raise DataError(
                    f"cannot write the plan to '{self.folder}' ({error}); name another with "
                    "cache=.",
                    code=6,
                ) from None
            examples = arrays.load(file, EXAMPLE, shape)
        if examples is None:
            raise DataError(f"the plan '{file}' cannot be read back; name another cache.", code=6)
        block = Block(examples)
        if not len(block):
            raise DataError(
                f"not one of the examples of block {k} fits into a row of "
                f"{self.planner.capacity.tokens} tokens; raise tokens or lower size.",
                code=2,
            )
        return block


def plan_name(fingerprint: Mapping[str, Any]) -> str:
    """The name of the folder for plans of this fingerprint."""
    return sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:24]
