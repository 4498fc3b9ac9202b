"""How annotations are read: files to records, records to what is told, whatever a record says.

A record that is not as its format has it becomes `Unread`: where it stands, and what it lacks.
"""

from __future__ import annotations

import io
import json
import math
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data_pipeline import lines
from data_pipeline.errors import BadClip, DataError, printable
from data_pipeline.files import Limits
from data_pipeline.places import Place
from data_pipeline.sources.annotated import Lines, Told, Unread
from data_pipeline.sources.entry import Said, suffix
from data_pipeline.sources.folder import listing

ANY = Limits(bytes=1 << 40)  # of what is read as a stream
WHOLE = Limits(bytes=1 << 30)  # of what is read at once
CHUNK = 1 << 20  # characters of a stream of JSON
LONGEST = 1 << 27  # of one member of it
BEFORE, BETWEEN = re.compile(r"\s*[{,]\s*"), re.compile(r"\s*:\s*")
END = re.compile(r"\s*(\{\s*)?\}\s*")
# What a record of any other form than expected may raise.
OTHER_FORM = (
    TypeError, ValueError, IndexError, AttributeError, ArithmeticError, SyntaxError,
    RecursionError, MemoryError,
)  # fmt: skip
SPLITS = {
    "train": "train", "val": "validation", "dev5": "test", "test": "test", "challenge": "test"
}  # fmt: skip
Record = tuple[str, Any]  # where it stands, and what it says


def told(records: Iterable[Record], read: Callable[[Any], Lines]) -> Iterator[Told | Unread]:
    """What `read` makes of each record."""
    for where, record in records:
        try:
            yield from read(record)
        except KeyError as error:
            yield Unread(where, f"has no {error}")
        except OTHER_FORM:
            yield Unread(where, "is of another form")


def rows(path: str) -> Iterator[Record]:
    """Lines of a table, or of all tables of a folder.

    Raises:
      DataError: one cannot be read.
    """
    for file in _files(path):
        name = posixpath.basename(file)
        for at, cells in _readable(file, lines.lines(Place.of(file), ANY)):
            yield f"line {at} of {name}", cells


def texts(path: str) -> Iterator[Record]:
    """Lines of a file of plain text. Raises: as `rows`."""
    name = posixpath.basename(path)
    for at, line in _readable(path, lines.texts(Place.of(path), ANY)):
        yield f"line {at} of {name}", line


def document(path: str) -> Any:
    """All that a JSON file says. Raises: as `rows`."""
    try:
        with Place.of(path).open(WHOLE) as file:
            return json.load(file)
    except (BadClip, OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' cannot be read as JSON ({printable(str(error))}).") from None


def members(path: str) -> Iterator[Record]:
    """(key, value) of each member of a JSON object of any size, one at a time.

    The standard decoder does it: streaming ones refuse the NaN that Python itself writes. Where the
    object breaks off, or is none, a record of None tells.

    Raises: as `rows`.
    """
    last = "the beginning"
    try:
        with Place.of(path).open(ANY) as file:
            for key, value in _pairs(io.TextIOWrapper(file, "utf-8-sig", "replace")):
                last = repr(key)
                yield last, (key, value)
    except (BadClip, OSError) as error:
        raise DataError(f"'{path}' cannot be read ({error}).") from None
    except (ValueError, RecursionError):
        yield f"what follows {last}", None


def _pairs(file: io.TextIOBase) -> Iterator[tuple[str, Any]]:
    """Raises: ValueError, what follows is no member of an object."""
    decode = json.JSONDecoder().raw_decode
    text, at = "", 0
    while not END.fullmatch(text, at):
        try:
            key, end = decode(text, _behind(BEFORE, text, at))
            value, end = decode(text, _behind(BETWEEN, text, end))
            if end == len(text) and isinstance(value, int | float):
                raise ValueError("a number that may go on")
        except ValueError as error:
            more = file.read(CHUNK)
            if not more or len(text) - at > LONGEST:
                raise ValueError(str(error)) from error
            text, at = text[at:] + more, 0
            continue
        yield key, value
        at = end


def _behind(mark: re.Pattern[str], text: str, at: int) -> int:
    found = mark.match(text, at)
    if found is None:
        raise ValueError(f"no {mark.pattern}")
    return found.end()


def several(name: str, records: Iterable[Any]) -> list[Record]:
    """Parts of one record, by number."""
    return [(f"{name}, number {number}", record) for number, record in enumerate(records)]


def moment(file: str, times: Iterable[Any], said: Said, *, id: str = "", cut: str = "") -> Told:
    """A part of a film.

    Raises:
      ValueError: its times are not two, each after the one before.
    """
    start, end = map(seconds, times)
    if not 0 <= start < end < math.inf:
        raise ValueError(f"no time between {start} and {end}")
    return Told(file, said, start=start, end=end, id=id, cut=cut)


def seconds(time: Any) -> float:
    """Of a number of seconds or `hh:mm:ss.mmm`. Raises: ValueError, TypeError."""
    if not isinstance(time, str):
        return float(time)
    total = 0.0
    for part in time.split(":"):
        total = 60 * total + float(part)
    return total


def name_of(value: Any) -> str:
    """A file's or clip's name, as it stands. Raises: ValueError, there is none."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError("no name")
    return str(value).strip()


def split_of(word: Any) -> str:
    """`train`, `validation` or `test`, as a file's name or a field has it; empty where neither."""
    found = re.search("|".join(SPLITS), str(word).lower())
    return SPLITS[found[0]] if found else ""


def _files(path: str) -> list[str]:
    if suffix(path) in lines.SUFFIXES:
        return [path]
    try:
        inside = [file for file in listing(path) if suffix(file) in lines.SUFFIXES]
    except NotADirectoryError:
        inside = []
    if not inside:
        known = ", ".join(lines.SUFFIXES)
        raise DataError(f"'{path}' is no table and holds none ({known}).", code=2)
    return [f"{path.rstrip('/')}/{file}" for file in inside]


def _readable(path: str, found: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from found
    except BadClip as bad:
        raise DataError(f"'{path}' cannot be read ({printable(str(bad))}).") from None
