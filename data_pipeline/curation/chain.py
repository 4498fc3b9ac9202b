"""Stages together: what is to be found of every clip, and the finding of it, a few clips at a time.

What is found is a table, a row for each clip, in the order of the clips:

| column | meaning |
| --- | --- |
| clip_id | as in the manifest |
| reason, detail | why the clip is left out; null: it is not |
| mark | bytes that a stage found |
| motion ... | each score; null where it was not measured |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from data_pipeline.curation.duplicates import Duplicates
from data_pipeline.curation.model import Model
from data_pipeline.curation.stage import MARK, Sampling, Stage
from data_pipeline.curation.watermark import Watermark
from data_pipeline.errors import BadClip
from data_pipeline.manifest import SCORES
from data_pipeline.places import Place

LEFT_OUT = [("clip_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
WIDEN: Any = {"promote_options": "default"}  # of `concat_tables`: what one lacks is null
FOUND = pa.schema([*LEFT_OUT, (MARK, pa.binary()), *((name, pa.float32()) for name in SCORES)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """All that is found of a set of clips.

    Attributes:
      stages: look at one clip at a time; models: at several, as networks like it.
      watermark: learns the mark of each source and scores clips by it; duplicates: leaves out
        clips that repeat others. Both need the whole set.
    """

    stages: tuple[Stage, ...] = ()
    models: tuple[Model, ...] = ()
    watermark: Watermark | None = None
    duplicates: Duplicates | None = None

    @property
    def finds(self) -> tuple[str, ...]:
        """The scores it measures."""
        found = [name for stage in self.stages for name in stage.finds]
        found += [model.score for model in self.models]
        return (*found, *(("watermark",) if self.watermark else ()))

    def problems(self) -> list[str]:
        """Everything wrong with it, a sentence each."""
        found = []
        for name in dict.fromkeys(self.finds):
            if name not in SCORES:
                found.append(f"there is no score '{name}'; it is one of {', '.join(SCORES)}.")
            if self.finds.count(name) > 1:
                found.append(f"the score '{name}' is measured {self.finds.count(name)} times.")
        wide = [one for one in (self.watermark, self.duplicates) if one is not None]
        looking: list[Stage | Model | Watermark | Duplicates] = [*self.stages, *self.models, *wide]
        for seen in dict.fromkeys(one.sees for one in looking):
            found += seen.problems()
        for one in (*self.models, *wide):
            found += one.problems()
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """(clips, as rows of a manifest) -> what is found of them. Other processes can be sent it."""

    root: str
    stages: tuple[Stage, ...] = ()
    models: tuple[Model, ...] = ()

    def __call__(self, clips: pa.Table) -> pa.Table:
        rows = clips.to_pylist()
        found: list[dict[str, Any]] = [{"clip_id": row["clip_id"]} for row in rows]
        looking: list[Stage | Model] = [*self.stages, *self.models]
        for sees in dict.fromkeys(one.sees for one in looking):
            self._see(sees, rows, found)
        return pa.Table.from_pylist(found, schema=FOUND)

    def _see(self, sees: Sampling, rows: Sequence[Any], found: Sequence[dict[str, Any]]) -> None:
        """Add what all find who see the same."""
        stages = [one for one in self.stages if one.sees == sees]
        models = [one for one in self.models if one.sees == sees]
        shown, left = [], [place for place, one in enumerate(found) if "reason" not in one]
        for place in left:
            row = rows[place]
            try:
                frames = sees.take(Place(self.root, row["uri"]), row)
                for stage in stages:
                    found[place].update(stage(frames, row))
            except BadClip as bad:
                found[place].update(reason=bad.reason, detail=str(bad))
                continue
            shown += [(place, frames)] if models else []
        for model in models:
            scores = model([frames for _, frames in shown], [rows[place] for place, _ in shown])
            for (place, _), score in zip(shown, scores, strict=True):
                found[place].update(score)


def left_out(clips: pa.Table, reason: str, detail: str) -> pa.Table:
    """What is found of clips that could not be looked at: the columns `LEFT_OUT`."""
    rows = [
        {"clip_id": name, "reason": reason, "detail": detail}
        for name in clips["clip_id"].to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(LEFT_OUT))


def batches(clips: pa.Table, size: int) -> list[pa.Table]:
    """A table cut into tables of `size` rows, and the rest."""
    return [clips.slice(first, size) for first in range(0, len(clips), size)]
