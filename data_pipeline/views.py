"""Views: the parts of clips that are encoded beforehand, each once and not in a stream.

A view is an `EXAMPLE` without a row: a clip, its start, rate, frames and size, drawn by the laws of
a loader. What is drawn is a function of the seed, the clip's name and the number of the view: other
clips, their order and who encodes them do not matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np

from data_pipeline import keys
from data_pipeline.blocks import EXAMPLE
from data_pipeline.errors import BadClip
from data_pipeline.order import Drawn
from data_pipeline.plan import SCHEME, Planner
from data_pipeline.serve import Reader


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """`count` views of each clip of a planner's sources, held out or not."""

    planner: Planner
    reader: Reader
    count: int
    threads: int

    @cached_property
    def examples(self) -> np.ndarray:
        """(views,) `EXAMPLE`, those of one size together; `visit` numbers the views of a clip. One
        that fits into no row has no tokens."""
        found = [np.zeros(0, EXAMPLE)]
        for number in range(self.count):
            for source, clips in enumerate(self.planner.sources):
                each = np.arange(len(clips))
                drawn = Drawn(np.full(len(each), source), each, np.full(len(each), number))
                # In place of an ordinal, which would change with the company of a clip.
                counter = keys.words(self.planner.seed, f"view/{number}", clips.id[:, 0]) >> 1
                some = self.planner.describe(drawn, counter.astype(np.int64), self.planner.seed)
                found.append(some)
        views = np.concatenate(found)
        size, visit = views["size"], views["visit"]
        order = (views["clip"], views["source"], visit, views["frames"], size[:, 1], size[:, 0])
        return views[np.lexsort(order)]

    @property
    def settings(self) -> str:
        """All that decides what is drawn of a clip."""
        by = self.planner
        budget = by.capacity.patch, by.capacity.longest
        return repr([SCHEME, self.count, by.seed, by.size, by.rate, by.duration, *budget])

    def clip(self, example: np.void) -> dict[str, Any]:
        """The manifest's row of the clip that a view is of."""
        table = self.planner.sources[example["source"]].manifest.table
        return table.slice(int(example["clip"]), 1).to_pylist()[0]

    def decoded(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray | BadClip]]:
        """The videos of each batch of `examples`, or why there is none; while one batch is at
        work the next is decoded."""
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: Sequence | None = None
            try:
                for batch in batches:
                    begun = [pool.submit(self._video, example) for example in batch]
                    if waiting is not None:
                        yield [one.result() for one in waiting]
                    waiting = begun
                if waiting is not None:
                    yield [one.result() for one in waiting]
            finally:
                pool.shutdown(cancel_futures=True)

    def _video(self, example: np.void) -> np.ndarray | BadClip:
        try:
            return self.reader.video(example)
        except BadClip as bad:
            return bad
