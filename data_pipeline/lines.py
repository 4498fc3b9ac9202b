"""Tables line by line: CSV, TSV, JSONL and Parquet, and plain text, on disk or on object storage.

Names of columns are lower-case; cells of CSV and TSV are text, as it stands: 007 stays 007.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.errors import BadClip
from data_pipeline.files import Limits
from data_pipeline.places import Place
from data_pipeline.sources.entry import suffix

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
Line = tuple[int, Mapping[str, Any] | None]  # its number, and its cells where they can be read
LONGEST = 1 << 20  # characters of a cell: captions of a whole film, ids of a list


def lines(place: Place, limits: Limits) -> Iterator[Line]:
    """Every line of a table, in its order, numbered as an editor would.

    Raises:
      BadClip: the file cannot be read.
    """
    kind = suffix(place.uri)
    try:
        with place.open(limits) as file:
            if kind == ".parquet":
                yield from _batches(file)
                return
            text = io.TextIOWrapper(file, "utf-8-sig", "replace", newline="")
            if kind == ".jsonl":
                yield from _objects(text)
            else:
                yield from _rows(text, "\t" if kind == ".tsv" else ",")
    except (csv.Error, UnicodeError, pa.ArrowException) as error:
        raise BadClip("table", str(error)) from error
    except OSError as error:
        raise BadClip("read", str(error)) from error


def texts(place: Place, limits: Limits) -> Iterator[tuple[int, str]]:
    """Every line of plain text that is not empty, numbered as an editor would.

    Raises:
      BadClip: the file cannot be read.
    """
    try:
        with place.open(limits) as file:
            for number, line in enumerate(io.TextIOWrapper(file, "utf-8-sig", "replace"), 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise BadClip("read", str(error)) from error


def _rows(text: io.TextIOBase, between: str) -> Iterator[Line]:
    csv.field_size_limit(LONGEST)
    reader = csv.DictReader(text, delimiter=between)
    for cells in reader:
        yield reader.line_num, {str(key).strip().lower(): cell for key, cell in cells.items()}


def _objects(text: io.TextIOBase) -> Iterator[Line]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError):
            cells = None
        yield number, _lower(cells) if isinstance(cells, dict) else None


def _batches(file: Any) -> Iterator[Line]:
    number = 0
    for batch in pq.ParquetFile(file).iter_batches():
        for cells in batch.to_pylist():
            number += 1
            yield number, _lower(cells)


def _lower(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {key.strip().lower(): cell for key, cell in cells.items()}
