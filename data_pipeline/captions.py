"""Captions in tables: `captions.csv` or `captions.jsonl` in any folder of a source, a line each.

| column or key | also | meaning |
| --- | --- | --- |
| file | path, videoid, name | the file, from the table's own folder; without its suffix, too |
| caption | text, name | what is to be seen |
| start, end | | may be left out: seconds of the film between which the caption holds |

The first name that a table has is the one that counts, so WebVid's `videoid` and `name` are
understood. Names are text: 007 stays 007. Several lines of one file are several captions; a clip
whose middle lies between a line's `start` and `end` has those lines alone. Of two tables that name
the same file the one nearer to it counts. Nothing that a table names is opened.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import posixpath
from collections.abc import Collection, Mapping
from typing import Any

from data_pipeline.errors import BadClip, printable
from data_pipeline.files import Limits
from data_pipeline.lines import lines
from data_pipeline.places import Place
from data_pipeline.text import clean

NAMES = ("captions.csv", "captions.jsonl")
FILE, CAPTION = ("file", "path", "videoid", "name"), ("caption", "text", "name")
SIZE = Limits(bytes=1 << 30)


@dataclasses.dataclass(frozen=True)
class Caption:
    text: str
    start: float = -math.inf
    end: float = math.inf

    @property
    def whole(self) -> bool:
        return self.end - self.start == math.inf


@dataclasses.dataclass(frozen=True)
class Tables:
    """All tables of a source: captions of each file, and a sentence for each kind of mistake."""

    captions: Mapping[str, tuple[Caption, ...]] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def of(self, uri: str, start: float, end: float) -> list[str]:
        """Captions of the part of a file from `start` to `end` seconds: those of its middle, else
        those of the whole file."""
        said, middle = self.captions.get(uri, ()), (start + end) / 2
        near = [one.text for one in said if not one.whole and one.start <= middle < one.end]
        return near or [one.text for one in said if one.whole]


def read(root: str, tables: Collection[str], files: Collection[str]) -> Tables:
    """Read the tables at these paths from `root`; `files` are all that may be captioned."""
    named: dict[str, list[str]] = {}
    for uri in files:
        named.setdefault(uri, []).append(uri)
        named.setdefault(posixpath.splitext(uri)[0], []).append(uri)
    found: dict[str, tuple[Caption, ...]] = {}
    problems: list[str] = []
    # The outer folders first: what lies nearer to a file takes the place of what they said.
    for inside in _by_folder(tables):
        here: dict[str, list[Caption]] = {}
        for table in inside:
            try:
                problems += _read(root, table, named, here)
            except BadClip as bad:
                problems.append(f"{printable(table)} cannot be read ({bad}).")
        found |= {uri: tuple(captions) for uri, captions in here.items()}
    return Tables(found, tuple(problems))


def _by_folder(tables: Collection[str]) -> list[list[str]]:
    found: dict[str, list[str]] = collections.defaultdict(list)
    for table in sorted(tables, key=lambda table: (table.count("/"), table)):
        found[posixpath.dirname(table)].append(table)
    return list(found.values())


def _read(
    root: str, table: str, named: Mapping[str, list[str]], into: dict[str, list[Caption]]
) -> list[str]:
    """Add one table's captions; what is wrong with it, a sentence each."""
    folder, name = posixpath.dirname(table), printable(table)
    broken: list[int] = []
    absent: list[str] = []
    for number, cells in lines(Place(root, table), SIZE):
        line = _line(cells)
        if line is None:
            broken.append(number)
            continue
        uris = named.get(posixpath.normpath(posixpath.join(folder, line[0])), [])
        absent += [] if uris else [line[0]]
        for uri in uris:
            into.setdefault(uri, []).append(line[1])
    problems = []
    if broken:
        problems.append(
            f"{name}: {len(broken)} line(s) do not say both a file and a caption (the columns or "
            f"keys 'file' and 'caption'), such as line {broken[0]}."
        )
    if absent:
        problems.append(
            f"{name}: {len(absent)} line(s) name a file that is not there, such as "
            f"'{printable(absent[0])[:100]}'."
        )
    return problems


def _line(cells: Mapping[str, Any] | None) -> tuple[str, Caption] | None:
    """(file as it is named, its caption), or None where a line does not say both."""
    cells = cells or {}
    key = next((name for name in FILE if name in cells), None)
    said = next((name for name in CAPTION if name in cells and name != key), None)
    file, text = (cells.get(name) if name else None for name in (key, said))
    if isinstance(file, int) and not isinstance(file, bool):
        file = str(file)
    if not isinstance(file, str) or not isinstance(text, str) or not (file and clean(text)):
        return None
    try:
        start, end = (
            default if cells.get(name) in (None, "") else float(cells[name])
            for name, default in (("start", -math.inf), ("end", math.inf))
        )
    except (TypeError, ValueError):
        return None
    return file.strip(), Caption(clean(text), start, end)
