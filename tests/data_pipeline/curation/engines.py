"""Engines for tests: on this thread, and as awkward as an engine may be."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator

from data_pipeline.curation.chain import batches


@dataclasses.dataclass
class Inline:
    """`seen` are the clips that were looked at; after `stop_after` the machine is switched off."""

    part: int = 4
    batch: int = 2
    backwards: bool = False
    stop_after: float = math.inf
    seen: list[str] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def running(self, task) -> Iterator:
        def look(clips):
            asked = batches(clips, self.batch)
            for some in asked[::-1] if self.backwards else asked:
                if len(self.seen) >= self.stop_after:
                    raise KeyboardInterrupt
                self.seen += some["clip_id"].to_pylist()
                found = task(some)
                yield found.take(list(range(len(found)))[::-1]) if self.backwards else found

        yield look

    def problems(self) -> list[str]:
        return []
