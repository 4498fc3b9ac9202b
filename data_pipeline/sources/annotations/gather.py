"""What is told of one file, brought together, however far apart its lines stand.

Lines are held in Arrow's columns, which need little more room than their text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.manifest import SCORES
from data_pipeline.sources.annotated import Lines, Told, Unread
from data_pipeline.sources.entry import Said
from data_pipeline.text import clean, whole

BATCH = 1 << 14  # lines that become Arrow's at once
WORDS = ("label", "split", "licence")
COLUMNS = pa.schema(
    [
        ("file", pa.string()),
        ("cut", pa.string()),
        ("id", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("captions", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float64())),
        *((name, pa.string()) for name in WORDS),
        *((name, pa.float64()) for name in SCORES),
    ]
)


def by_file(told: Lines) -> Iterator[Told | Unread]:
    """The same lines, those of one file in a row and in their order; first what was not read."""
    batches: list[pa.Table] = []
    rows: list[dict[str, Any]] = []
    for line in told:
        if isinstance(line, Unread):
            yield line
            continue
        rows.append(_row(line))
        if len(rows) == BATCH:
            batches.append(pa.Table.from_pylist(rows, schema=COLUMNS))
            rows = []
    every = pa.concat_tables([*batches, pa.Table.from_pylist(rows, schema=COLUMNS)])
    keys = [("file", "ascending"), ("cut", "ascending")]
    order = pc.sort_indices(every, sort_keys=keys)  # stable
    for first in range(0, len(order), BATCH):
        for row in every.take(order.slice(first, BATCH)).to_pylist():
            yield _told(row)


def _row(line: Told) -> dict[str, Any]:
    said = line.said
    found: dict[str, Any] = {name: whole(getattr(line, name)) for name in ("file", "cut", "id")}
    found |= {"start": line.start, "end": line.end}
    found |= {"captions": said.captions, "weights": said.weights}
    found |= {name: clean(getattr(said, name)) for name in WORDS}
    return found | {name: said.scores.get(name) for name in SCORES}


def _told(row: dict[str, Any]) -> Told:
    said = Said(
        captions=tuple(row["captions"]),
        weights=tuple(row["weights"]),
        scores={name: row[name] for name in SCORES if row[name] is not None},
        **{name: row[name] for name in WORDS},
    )
    return Told(row["file"], said, row["start"], row["end"], row["id"], row["cut"])
