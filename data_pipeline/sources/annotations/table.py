"""A table of any origin: CSV, TSV, JSONL or Parquet, a line for each clip or each of its captions.

| column | also | meaning |
| --- | --- | --- |
| file | path, video, videoid, name | the file, from the media folder; its suffix may be left out |
| caption | captions, text, name | one, or a list of them |
| weight | weights | how often each is drawn; may be left out |
| start, end | | seconds of the film that the clip is; may be left out |
| id | clip_id | the clip's own name; may be left out |
| label, split, licence | | may be left out |
| one of `manifest.SCORES` | | may be left out |

The first name that a table has is the one that counts. Lines need no order: those of one file are
brought together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.manifest import SCORES
from data_pipeline.sources.annotated import Told, Unread
from data_pipeline.sources.annotations.gather import WORDS, by_file
from data_pipeline.sources.annotations.reading import rows, told
from data_pipeline.sources.entry import Said, cleaned, number

FILE = ("file", "path", "video", "videoid", "name")
CAPTION = ("caption", "captions", "text", "name")
WEIGHT, ID = ("weight", "weights"), ("id", "clip_id")


def table(path: str) -> Iterator[Told | Unread]:
    """Raises: DataError, the table cannot be read."""
    return by_file(told(rows(path), _line))


def _line(cells: Mapping[str, Any]) -> list[Told]:
    key = next((name for name in FILE if name in cells), None)
    file = str(cells[key]).strip() if key and cells[key] is not None else ""
    if not file:
        raise KeyError("file")
    said = next((name for name in CAPTION if name in cells and name != key), "")
    weights = _list(_first(cells, WEIGHT))
    captions = cleaned(_list(cells.get(said)))
    start, end = number(cells.get("start")), number(cells.get("end"))
    scores = {name: number(cells.get(name)) for name in SCORES}
    known = Said(
        captions=captions,
        # Weights count where there is one for each caption that says something.
        weights=tuple(number(w) or 0.0 for w in weights) if len(weights) == len(captions) else (),
        scores={name: score for name, score in scores.items() if score is not None},
        **{name: str(cells.get(name) or "") for name in WORDS},
    )
    return [
        Told(
            file,
            known,
            start=-math.inf if start is None else start,
            end=math.inf if end is None else end,
            id=str(_first(cells, ID) or ""),
        )
    ]


def _first(cells: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((cells[name] for name in names if name in cells), None)


def _list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
