"""A table of any origin: CSV, TSV, JSONL or Parquet, a line for each clip or each of its captions.

| column | also | meaning |
| --- | --- | --- |
| file | path, video, videoid, name | the file, from the media folder; its suffix may be left out |
| caption | captions, text, name | one, or a list of them |
| weight | weights | how often each is drawn; may be left out |
| start, end | | seconds of the film that the clip is; may be left out |
| id | clip_id | the clip's own name; may be left out |
| label, split, licence | | may be left out |
| motion, aesthetic, clip, text_area | | scores; may be left out |

The first name that a table has is the one that counts. Lines need no order: those of one file are
brought together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.errors import BadClip, DataError
from data_pipeline.files import Limits
from data_pipeline.lines import lines
from data_pipeline.places import Place
from data_pipeline.sources.annotated import Told
from data_pipeline.sources.entry import Said, cleaned, number

FILE = ("file", "path", "video", "videoid", "name")
CAPTION = ("caption", "captions", "text", "name")
WEIGHT, ID = ("weight", "weights"), ("id", "clip_id")
WORDS = ("label", "split", "licence")
SCORES = ("motion", "aesthetic", "clip", "text_area")
SIZE = Limits(bytes=1 << 40)
BATCH = 1 << 14  # lines that become Arrow's at once
COLUMNS = pa.schema(
    [
        ("file", pa.string()),
        ("id", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float64())),
        ("start", pa.float64()),
        ("end", pa.float64()),
        *((name, pa.string()) for name in WORDS),
        *((name, pa.float64()) for name in SCORES),
    ]
)


def table(path: str) -> Iterator[Told]:
    """Raises: DataError, code 3, the table cannot be read or a line of it says no file."""
    batches, rows = [], []
    try:
        for at, cells in lines(Place.of(path), SIZE):
            rows.append(_row(path, at, cells))
            if len(rows) == BATCH:
                batches.append(pa.Table.from_pylist(rows, schema=COLUMNS))
                rows = []
    except BadClip as bad:
        raise DataError(f"'{path}' cannot be read ({bad}).") from None
    every = pa.concat_tables([*batches, pa.Table.from_pylist(rows, schema=COLUMNS)])
    order = pc.sort_indices(every, sort_keys=[("file", "ascending")])  # stable
    for batch in every.take(order).to_batches(BATCH):
        yield from map(_told, batch.to_pylist())


def _row(path: str, at: int, cells: Mapping[str, Any] | None) -> dict[str, Any]:
    cells = cells or {}
    key = next((name for name in FILE if name in cells), None)
    file = cells.get(key) if key else None
    if file is None or not str(file).strip():
        raise DataError(
            f"line {at} of '{path}' names no file; a table has a column 'file', and 'caption'."
        )
    said = next((name for name in CAPTION if name in cells and name != key), None)
    captions, weights = _list(cells.get(said or "")), _list(_first(cells, WEIGHT))
    kept = cleaned(captions)
    found: dict[str, Any] = {
        "file": str(file).strip(),
        "id": str(_first(cells, ID) or ""),
        "captions": list(kept),
        # Weights count where there is one for each caption that says something.
        "weights": [number(w) or 0.0 for w in weights] if len(weights) == len(kept) else [],
        "start": number(cells.get("start")),
        "end": number(cells.get("end")),
    }
    found |= {name: str(cells.get(name) or "") for name in WORDS}
    return found | {name: number(cells.get(name)) for name in SCORES}


def _first(cells: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((cells[name] for name in names if name in cells), None)


def _list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _told(row: dict[str, Any]) -> Told:
    said = Said(
        captions=tuple(row["captions"]),
        weights=tuple(row["weights"]),
        scores={name: row[name] for name in SCORES if row[name] is not None},
        **{name: row[name] for name in WORDS},
    )
    start = -math.inf if row["start"] is None else row["start"]
    end = math.inf if row["end"] is None else row["end"]
    return Told(row["file"], said, start=start, end=end, id=row["id"])
