"""From plan to batches: which step holds which rows, who decodes them, and how many were bad."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Collection, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple, NoReturn, Protocol

import numpy as np
from cachetools import LRUCache, cached

from data_pipeline import rows
from data_pipeline.balance import balance
from data_pipeline.collection import Clips
from data_pipeline.decode import View
from data_pipeline.errors import BadClip, DataError
from data_pipeline.places import Place
from data_pipeline.plan import ROWS_PER_BLOCK, Block, Capacity
from data_pipeline.text import Tokenizer

LEAST_JUDGED = 64  # examples seen before the share of bad ones means anything
WORST = 5  # paths that are named when there are too many of them


class Blocks(Protocol):
    def block(self, k: int) -> Block: ...


class Batch(NamedTuple):
    """`arrays`: leaves (microbatches, rows of this shard, ...); `cursor`: where to resume after
    this batch; `bad`: (clip, ordinal, reason) of the examples masked in it."""

    arrays: rows.Arrays
    cursor: int
    bad: tuple[tuple[str, int, str], ...]


class Row(NamedTuple):
    arrays: rows.Arrays
    bad: tuple[tuple[str, int, str], ...]
    places: tuple[Place, ...]  # of the bad ones
    examples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """Which rows of a step this shard decodes."""

    rows: int
    shard: int = 0
    shards: int = 1
    devices: int = 1
    microbatches: int = 1

    @property
    def rows_per_step(self) -> int:
        return self.rows // self.shards

    def of(self, costs: np.ndarray) -> np.ndarray:
        """(rows_per_step,) places within the step, microbatch by microbatch, device by device.

        Rows are balanced over the devices of all shards, within each microbatch.
        """
        each = self.rows // self.microbatches
        first = self.shard * self.devices // self.shards
        last = (self.shard + 1) * self.devices // self.shards
        places = [
            start + balance(costs[start : start + each], self.devices)[first:last].reshape(-1)
            for start in range(0, self.rows, each)
        ]
        return np.concatenate(places)


class Steps:
    """Numbers the steps from a cursor on, over blocks of different numbers of rows."""

    def __init__(self, plans: Blocks, cursor: int, rows: int):
        self.plans, self.rows = plans, rows
        block, self._row = divmod(cursor, ROWS_PER_BLOCK)
        self._first = block
        self._ends: list[int] = []  # steps up to the end of each block from the first on
        self._lock = threading.Lock()

    def locate(self, step: int) -> tuple[int, int]:
        """(block, first row) of a step."""
        with self._lock:
            while not self._ends or self._ends[-1] <= step:
                before = self._ends[-1] if self._ends else 0
                block = self.plans.block(self._first + len(self._ends))
                left = max(0, len(block) - (0 if self._ends else self._row))
                self._ends.append(before + -(-left // self.rows))
            index = int(np.searchsorted(self._ends, step, side="right"))
        skipped = self._ends[index - 1] if index else 0
        start = 0 if index else self._row
        return self._first + index, start + (step - skipped) * self.rows

    def after(self, step: int) -> int:
        """The cursor that resumes behind a step."""
        block, row = self.locate(step)
        row += self.rows
        if row >= len(self.plans.block(block)):
            return (block + 1) * ROWS_PER_BLOCK
        return block * ROWS_PER_BLOCK + row

    def examples(self, step: int) -> tuple[list[np.ndarray], np.ndarray]:
        """(the examples of each row, the work of each row); rows beyond the block are empty."""
        k, first = self.locate(step)
        block = self.plans.block(k)
        last = min(first + self.rows, len(block))
        costs = np.zeros(self.rows)
        costs[: last - first] = block.costs[first:last]
        filled = [block.row(row) for row in range(first, last)]
        return filled + [block.examples[:0]] * (self.rows - len(filled)), costs


def remembering(decode: Callable[..., np.ndarray], mib: int) -> Callable[..., np.ndarray]:
    """`decode`, keeping up to `mib` MiB of what it made; what was longest not asked for goes first.

    Of a set that fits, every epoch but the first finds each view decoded already.
    """
    kept = LRUCache[tuple[Place, View], np.ndarray](mib << 20, getsizeof=lambda video: video.nbytes)
    return cached(kept, key=lambda place, view, still: (place, view), lock=threading.Lock())(decode)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Decodes planned rows; `verify` says what of a file is compared with its manifest."""

    sources: tuple[Clips, ...]
    capacity: Capacity
    tokenizer: Tokenizer
    decode: Callable[..., np.ndarray]
    verify: str = "size"

    def read(self, examples: np.ndarray, known_bad: Collection[tuple[str, int]] = ()) -> Row:
        """A row of (n,) `EXAMPLE`: a bad one keeps its slot, zero-filled and not valid."""
        members, bad, places = [], [], []
        for example in examples:
            clips = self.sources[example["source"]]
            name, ordinal = clips.names[example["clip"]], int(example["ordinal"])
            video = None
            try:
                if (name, ordinal) in known_bad:
                    raise BadClip("known")
                video = self._decode(clips, example)
            except BadClip as error:
                bad.append((name, ordinal, error.reason))
                places.append(clips.manifest.place(int(example["clip"])))
            members.append(self._member(clips, example, video))
        return Row(rows.pack(members, self.capacity), tuple(bad), tuple(places), len(members))

    def _decode(self, clips: Clips, example: np.void) -> np.ndarray:
        clip = int(example["clip"])
        place = clips.manifest.place(clip)
        hashed = self.verify == "sha256"
        digest = clips.manifest.table["sha256"][clip].as_py() if hashed else None
        view = View(
            first=float(clips.first[clip]),
            end=float(clips.end[clip]),
            offset=float(example["offset"]),
            rate=float(example["rate"]),
            frames=int(example["frames"]),
            stored=(int(clips.height[clip]), int(clips.width[clip])),
            resized=(int(example["resized"][0]), int(example["resized"][1])),
            size=(int(example["size"][0]), int(example["size"][1])),
            bytes=int(clips.bytes[clip]),
            sha256=digest,
        )
        return self.decode(place, view, still=bool(clips.still[clip]))

    def _member(self, clips: Clips, example: np.void, video: np.ndarray | None) -> rows.Member:
        caption = int(example["caption"])
        ids = self.tokenizer.encode(clips.captions[caption]) if caption >= 0 else [0]
        word = int(clips.id[example["clip"], 0])
        return rows.Member(
            video=video,
            frames=int(example["frames"]),
            grid=(int(example["grid"][0]), int(example["grid"][1]), int(example["grid"][2])),
            text=ids[: example["words"]],
            id=(word >> 32, word & 0xFFFFFFFF),
            visit=int(example["visit"]),
            ordinal=int(example["ordinal"]),
            fps=float(example["rate"]),
            source=int(example["source"]),
        )


@dataclasses.dataclass(frozen=True)
class Served:
    """A shard's rows of all steps, by number: what grain reads from."""

    steps: Steps
    share: Share
    reader: Reader
    known_bad: Collection[tuple[str, int]]

    def __len__(self) -> int:
        return 1 << 60

    def __getitem__(self, index: int) -> Row:
        step, slot = divmod(int(index), self.share.rows_per_step)
        return self.reader.read(self._layout(step)[slot], self.known_bad)

    @cached_property
    def _layout(self) -> Callable[[int], list[np.ndarray]]:
        """Examples of each of this shard's rows of a step; kept for the few steps under way."""

        @lru_cache(maxsize=8)
        def layout(step: int) -> list[np.ndarray]:
            examples, costs = self.steps.examples(step)
            return [examples[place] for place in self.share.of(costs)]

        return layout


def stack(read: Sequence[Row], cursor: int, share: Share) -> Batch:
    """Rows -> a batch, leaves (microbatches, rows, ...)."""
    arrays = {
        name: np.stack([row.arrays[name] for row in read]).reshape(
            share.microbatches, -1, *leaf.shape
        )
        for name, leaf in read[0].arrays.items()
    }
    return Batch(arrays, cursor, tuple(one for row in read for one in row.bad))


class ErrorBudget:
    """Ends a run whose data is mostly bad, instead of letting it train on nothing."""

    def __init__(self, share: float, number: int | None = None):
        self.share, self.number = share, number
        self.seen = 0
        self.reasons: collections.Counter[str] = collections.Counter()
        self.places: collections.Counter[tuple[Place, str]] = collections.Counter()

    def count(self, read: Sequence[Row]) -> None:
        """Raises: DataError, code 3, when more than the share or number allowed is bad."""
        self.seen += sum(row.examples for row in read)
        for row in read:
            reasons = [reason for _, _, reason in row.bad]
            self.reasons.update(reasons)
            self.places.update(zip(row.places, reasons, strict=True))
        bad = self.reasons.total()
        if self.number is not None and bad > self.number:
            self._stop(bad, f"max_bad_examples {self.number}")
        if self.seen >= LEAST_JUDGED and bad > self.share * self.seen:
            self._stop(bad, f"max_bad {self.share:g}")

    def _stop(self, bad: int, rule: str) -> NoReturn:
        top = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common(3))
        worst = ", ".join(
            f"{place} ({reason}, {count} times)"
            for (place, reason), count in self.places.most_common(WORST)
        )
        raise DataError(
            f"{bad} of {self.seen} examples cannot be used ({top}), more than {rule} allows; "
            f"look at {worst}."
        )
