"""From plan to batches: which step holds which rows, who decodes them, and how many were bad."""

from __future__ import annotations

import bisect
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
from data_pipeline.blocks import Block, Capacity, Kind
from data_pipeline.collection import Clips
from data_pipeline.decode import View
from data_pipeline.errors import BadClip, DataError
from data_pipeline.layouts import kind_of
from data_pipeline.places import Place
from data_pipeline.plan import ROWS_PER_BLOCK
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

    shard: int = 0
    shards: int = 1
    devices: int = 1
    microbatches: int = 1

    def of(self, costs: np.ndarray) -> np.ndarray:
        """(rows / shards,) places within the step, microbatch by microbatch, device by device.

        Rows are balanced over the devices of all shards, within each microbatch.
        """
        each = len(costs) // self.microbatches
        first = self.shard * self.devices // self.shards
        last = (self.shard + 1) * self.devices // self.shards
        places = [
            start + balance(costs[start : start + each], self.devices)[first:last].reshape(-1)
            for start in range(0, len(costs), each)
        ]
        return np.concatenate(places)


class Located(NamedTuple):
    """A step: rows `first` to `last` - 1 of a block, and left-out ones up to those of its kind."""

    block: int
    first: int
    last: int
    kind: Kind


class Starts(NamedTuple):
    """Of each step of a block: its first row, its kind, and the rows of all steps up to its end,
    counting those that are left empty."""

    row: np.ndarray
    kind: np.ndarray
    behind: np.ndarray


class Steps:
    """Numbers the steps from a cursor on, over blocks of different numbers of steps."""

    def __init__(self, plans: Blocks, cursor: int, kinds: Sequence[Kind]):
        self.plans, self.kinds = plans, kinds
        self._block, self._row = divmod(cursor, ROWS_PER_BLOCK)
        self._starts: list[Starts] = []  # of each block from the first on
        self._steps: list[int] = []  # up to the end of each block
        self._rows: list[int] = []  # likewise
        self._lock = threading.Lock()

    def locate(self, step: int) -> Located:
        index, place = self._find(step, self._steps)
        row, kind, _ = self._starts[index]
        more = place + 1 < len(row)
        last = int(row[place + 1]) if more else len(self.plans.block(self._block + index))
        return Located(self._block + index, int(row[place]), last, self.kinds[kind[place]])

    def slot(self, row: int) -> tuple[int, int]:
        """(step, place in it) of a row, counted from the cursor on with those left empty."""
        index, left = self._find(row, self._rows)
        behind = self._starts[index].behind
        place = int(np.searchsorted(behind, left, side="right"))
        step = place + (self._steps[index - 1] if index else 0)
        return step, left - (int(behind[place - 1]) if place else 0)

    def in_first_block(self) -> int:
        """How many steps there are up to the end of the block of the cursor."""
        self._find(0, self._steps)
        return self._steps[0]

    def after(self, step: int) -> int:
        """The cursor that resumes behind a step."""
        block, _, last, _ = self.locate(step)
        if last >= len(self.plans.block(block)):
            return (block + 1) * ROWS_PER_BLOCK
        return block * ROWS_PER_BLOCK + last

    def examples(self, step: int) -> tuple[list[np.ndarray], np.ndarray]:
        """(the examples of each row, the work of each row); rows beyond the last are empty."""
        k, first, last, kind = self.locate(step)
        block = self.plans.block(k)
        costs = np.zeros(kind.rows)
        costs[: last - first] = block.costs[first:last]
        filled = [block.row(row) for row in range(first, last)]
        return filled + [block.examples[:0]] * (kind.rows - len(filled)), costs

    def _find(self, number: int, ends: list[int]) -> tuple[int, int]:
        """(index of the block, what is left of `number` in it); `ends` grows as far as needed."""
        with self._lock:
            while not ends or ends[-1] <= number:
                starts = self._split(len(self._starts))
                self._starts.append(starts)
                steps, rows = len(starts.row), int(starts.behind[-1]) if len(starts.row) else 0
                self._steps.append(steps + (self._steps[-1] if self._steps else 0))
                self._rows.append(rows + (self._rows[-1] if self._rows else 0))
            index = bisect.bisect_right(ends, number)
            return index, number - (ends[index - 1] if index else 0)

    def _split(self, index: int) -> Starts:
        """Rows that follow each other are of one step as long as they are of one kind, and it has
        room for them."""
        block = self.plans.block(self._block + index)
        start = 0 if index else self._row
        kind = kind_of(block.examples["tokens"][block.offsets[start:-1]], self.kinds)
        borders = np.flatnonzero(np.diff(kind)) + 1
        runs = zip((0, *borders), (*borders, len(kind)), strict=True)
        pieces = [np.arange(a, b, self.kinds[kind[a]].rows) for a, b in runs if a < b]
        first = np.concatenate([np.zeros(0, np.int64), *pieces])
        held = np.array([kind.rows for kind in self.kinds])[kind[first]]
        return Starts(start + first, kind[first], np.cumsum(held))


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
    tokenizer: Tokenizer
    seed: int
    decode: Callable[..., np.ndarray]
    verify: str = "size"

    def read(
        self,
        examples: np.ndarray,
        capacity: Capacity,
        known_bad: Collection[tuple[str, int]] = (),
    ) -> Row:
        """A row of (n,) `EXAMPLE`: a bad one keeps its slot, zero-filled and not valid."""
        members, bad, places = [], [], []
        for example in examples:
            clips = self.sources[example["source"]]
            name, ordinal = clips.names[example["clip"]], int(example["ordinal"])
            video = features = None
            try:
                if (name, ordinal) in known_bad:
                    raise BadClip("known")
                features = self.features(example)
                video = self.video(example)
            except BadClip as error:
                bad.append((name, ordinal, error.reason))
                places.append(clips.manifest.place(int(example["clip"])))
            members.append(self._member(clips, example, video, features))
        return Row(rows.pack(members, capacity), tuple(bad), tuple(places), len(members))

    def video(self, example: np.void) -> np.ndarray:
        """(frames, height, width, numbers of a cell) of one `EXAMPLE`: uint8 pixels, or latents.

        Raises: BadClip.
        """
        clips, clip = self.sources[example["source"]], int(example["clip"])
        if clips.latents is not None:
            height, width = (int(side) for side in example["size"])
            return clips.latents.video(clip, int(example["frames"]), (height, width))
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

    def features(self, example: np.void) -> np.ndarray | None:
        """float16 (words, width) of the caption of one `EXAMPLE`; None where there are none.

        Raises: BadClip.
        """
        clips, caption = self.sources[example["source"]], int(example["caption"])
        if clips.texts is None or clips.text_rows is None or caption < 0:
            return None
        return clips.texts.read(int(clips.text_rows[caption]), clips.captions[caption])

    def _member(
        self,
        clips: Clips,
        example: np.void,
        video: np.ndarray | None,
        features: np.ndarray | None,
    ) -> rows.Member:
        caption = int(example["caption"])
        ids = self.tokenizer.encode(clips.captions[caption]) if caption >= 0 else [0]
        word, visit = int(clips.id[example["clip"], 0]), int(example["visit"])
        grid = int(example["grid"][0]), int(example["grid"][1]), int(example["grid"][2])
        return rows.Member(
            video=video,
            frames=int(example["frames"]),
            grid=grid,
            text=ids[: example["words"]],
            id=(word >> 32, word & 0xFFFFFFFF),
            visit=visit,
            ordinal=int(example["ordinal"]),
            fps=float(example["rate"]),
            source=int(example["source"]),
            stay=rows.staying(self.seed, word, visit, grid, int(example["tokens"])),
            features=features,
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
        # Of each step this shard has as many rows as any other.
        step, place = self.steps.slot(int(index) * self.share.shards)
        examples, capacity = self._layout(step)
        return self.reader.read(examples[place // self.share.shards], capacity, self.known_bad)

    @cached_property
    def _layout(self) -> Callable[[int], tuple[list[np.ndarray], Capacity]]:
        """(examples of each of this shard's rows, shape of a row) of a step; kept for the few steps
        under way."""

        @lru_cache(maxsize=8)
        def layout(step: int) -> tuple[list[np.ndarray], Capacity]:
            examples, costs = self.steps.examples(step)
            mine = [examples[place] for place in self.share.of(costs)]
            return mine, self.steps.locate(step).kind.capacity

        return layout


def stack(read: Sequence[Row], cursor: int, microbatches: int) -> Batch:
    """Rows -> a batch, leaves (microbatches, rows, ...)."""
    arrays = {
        name: np.stack([row.arrays[name] for row in read]).reshape(microbatches, -1, *leaf.shape)
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
        self.add(read)
        bad = self.reasons.total()
        if self.number is not None and bad > self.number:
            self._stop(f"max_bad_examples {self.number}")
        if self.seen >= LEAST_JUDGED and bad > self.share * self.seen:
            self._stop(f"max_bad {self.share:g}")

    def add(self, read: Sequence[Row]) -> None:
        """Count them, whatever is allowed."""
        self.seen += sum(row.examples for row in read)
        for row in read:
            reasons = [reason for _, _, reason in row.bad]
            self.reasons.update(reasons)
            self.places.update(zip(row.places, reasons, strict=True))

    @property
    def top(self) -> str:
        """The most frequent reasons."""
        return ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common(3))

    @property
    def worst(self) -> str:
        """The files that failed most often."""
        return ", ".join(
            f"{place} ({reason}, {count} times)"
            for (place, reason), count in self.places.most_common(WORST)
        )

    def _stop(self, rule: str) -> NoReturn:
        raise DataError(
            f"{self.reasons.total()} of {self.seen} examples cannot be used ({self.top}), more "
            f"than {rule} allows; look at {self.worst}."
        )
