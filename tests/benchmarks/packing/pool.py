"""The examples of a run, decoded once and held in memory, and their order.

The loader's own first block is read and taken apart again. Sizes, starts and captions are thereby
drawn once; no arm waits for a decoder, and all arms see the same examples in the same order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline import rows
from data_pipeline.blocks import EXAMPLE
from data_pipeline.loaders import PackedVideo
from data_pipeline.order import Order
from data_pipeline.plan import ROWS_PER_BLOCK, plan_name

VISITS = 1 << 16  # of one seed; the next seed's come behind, so that its noise is its own


@dataclasses.dataclass(frozen=True)
class Pool:
    """`examples` (n,) `EXAMPLE`, of which `clip` is the index of the member."""

    members: tuple[rows.Member, ...]

    @property
    def examples(self) -> np.ndarray:
        found = np.zeros(len(self.members), EXAMPLE)
        found["clip"] = np.arange(len(found))
        found["grid"] = [member.grid for member in self.members]
        found["tokens"] = found["grid"].prod(axis=1)
        found["words"] = [len(member.text) for member in self.members]
        found["frames"] = [member.frames for member in self.members]
        found["rate"] = [member.fps for member in self.members]
        found["visit"] = [member.visit for member in self.members]
        return found

    def epochs(self, seed: int) -> Iterator[np.ndarray]:
        """All examples, shuffled anew each time, without end."""
        every, count = self.examples, len(self.members)
        order = Order(clips=(np.arange(count, dtype=np.uint64),), weights=(1.0,), seed=seed)
        apart = 1 + int(every["visit"].max())
        first = 0
        while True:
            drawn = order.draw(first, count)
            examples = every[drawn.clip]
            examples["ordinal"] = first + np.arange(count)
            # Noise is keyed by visit: the program is compiled once, and each seed's noise differs.
            examples["visit"] += drawn.visit.astype(np.int32) * apart + seed * VISITS
            yield examples
            first += count

    def member(self, example: np.void) -> rows.Member:
        return dataclasses.replace(
            self.members[example["clip"]],
            visit=int(example["visit"]),
            ordinal=int(example["ordinal"]),
        )


def collect(data: PackedVideo, cache: Path) -> Pool:
    """The members of the loader's first block, by ordinal; kept in a file, as films decode slowly.

    The file is this benchmark's own: pickles of strangers are not to be put there.
    """
    file = cache / f"pool-{plan_name(data.fingerprint())}.pickle"
    if file.is_file():
        return Pool(pickle.loads(file.read_bytes()))
    members: list[rows.Member] = []
    with contextlib.closing(data.batches()) as batches:
        for batch in batches:
            for row in range(batch.arrays["segment"].shape[1]):
                arrays = {name: leaf[0, row] for name, leaf in batch.arrays.items()}
                members += members_of(arrays, data.capacity.patch)
            if batch.cursor >= ROWS_PER_BLOCK:
                break
    found = tuple(sorted(members, key=lambda member: member.ordinal))
    cache.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.part")
    partial.write_bytes(pickle.dumps(found))
    os.replace(partial, file)
    return Pool(found)


def members_of(row: rows.Arrays, patch: tuple[int, int, int]) -> list[rows.Member]:
    """The inverse of `rows.pack`, but for what could not be decoded."""
    slots = np.flatnonzero(row["valid"])
    return [
        rows.Member(
            video=video,
            frames=len(video),
            grid=tuple(row["grid"][slot].tolist()),
            text=row["text"][row["text_segment"] == slot + 1].tolist(),
            id=tuple(row["id"][slot].tolist()),
            visit=int(row["visit"][slot]),
            ordinal=int(row["ordinal"][slot]),
            fps=float(row["fps"][slot]),
            source=int(row["source"][slot]),
        )
        for slot, video in zip(slots, rows.unpack(row, patch), strict=True)
    ]
