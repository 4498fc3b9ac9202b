"""Long work in parts: what was found so far, written as it is found, so that stopped work goes on.

A part holds what some entries in a row, files or clips, gave. It says which entries and settings it
is of; one of others is made again.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import storage

FOLDER = "parts"
ENTRIES = 512  # of a part
FOUND = b"found"


class Part(NamedTuple):
    """Rows; what was left out, and why; where the rows' captions are from."""

    table: pa.Table
    skipped: list[dict[str, str]]
    origins: Counter[str]


@dataclasses.dataclass(frozen=True)
class Parts:
    """Those of a manifest folder; `settings` is all that an entry's rows depend on beside what the
    entry's `repr` says."""

    out: str
    settings: str

    def get(self, number: int, entries: Sequence[object]) -> Part | None:
        """What was found of these entries, if it was written."""
        name = self._name(number)
        try:
            if not storage.exists(name):
                return None
            table = pq.read_table(pa.BufferReader(storage.read(name)))
            found = json.loads((table.schema.metadata or {})[FOUND])
            if found["of"] != self._key(entries):
                return None
        except (OSError, pa.ArrowException, ValueError, KeyError):  # of another program
            return None
        return Part(table.replace_schema_metadata(), found["skipped"], Counter(found["origins"]))

    def put(self, number: int, entries: Sequence[object], part: Part) -> None:
        """Raises: OSError, the part cannot be written."""
        found: dict[str, Any] = {
            "of": self._key(entries), "skipped": part.skipped, "origins": part.origins
        }  # fmt: skip
        table = part.table.replace_schema_metadata({FOUND: json.dumps(found).encode()})
        with storage.whole(self._name(number)) as file:
            pq.write_table(table, file)

    def remove(self) -> None:
        storage.remove(storage.join(self.out, FOLDER))

    def _name(self, number: int) -> str:
        return storage.join(self.out, FOLDER, f"{number:06d}.parquet")

    def _key(self, entries: Sequence[object]) -> str:
        said = f"{self.settings}\0{entries!r}".encode("utf-8", "surrogateescape")
        return sha256(said).hexdigest()
