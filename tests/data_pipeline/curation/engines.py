"""Engines for tests: on this thread, and as awkward as an engine may be."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from data_pipeline.curation.chain import batches


@dataclasses.dataclass
class Inline:
    """`seen` are the clips that were looked at; at `stop_at` the machine is switched off."""

    part: int = 4
    batch: int = 2
    backwards: bool = False
    stop_at: str | None = None
    seen: list[str] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def running(self, task) -> Iterator:
        def look(clips):
            asked = batches(clips, self.batch)
            for some in asked[::-1] if self.backwards else asked:
                names = some["clip_id"].to_pylist()
                if self.stop_at in names:
                    raise KeyboardInterrupt
                self.seen += names
                found = task(some)
                yield found.take(list(range(len(found)))[::-1]) if self.backwards else found

        yield look

    def problems(self) -> list[str]:
        return []
