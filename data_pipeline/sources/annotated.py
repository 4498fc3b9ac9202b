"""Clips that annotations name, and the files they are of, wherever in the media folder these lie.

A file is named by its path from the media folder or by its bare name, with its suffix, another
one, or none; of a film and an image called alike the film is meant, and of two films none.
Annotations are read as a stream; what they tell of one file should come together.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import posixpath
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

from data_pipeline.errors import DataError, printable
from data_pipeline.places import Place
from data_pipeline.sources import entry as words
from data_pipeline.sources.entry import Entry, Part, Said, is_clip, is_still
from data_pipeline.sources.folder import listing

SHOWN = 200  # characters of a stranger's line that are repeated


class Told(NamedTuple):
    """One line of annotations: what a file, or a part of it, shows.

    `file` names the whole film; `cut`, where the set is also passed on in pieces, the file that is
    this piece alone. `id` is the clip's own name, where the set gives one. Times are seconds.
    """

    file: str
    said: Said
    start: float = -math.inf
    end: float = math.inf
    id: str = ""
    cut: str = ""

    @property
    def whole(self) -> bool:
        return self.start == -math.inf and self.end == math.inf


class Unread(NamedTuple):
    """A line of annotations that cannot be used: where it stands, and what it does or lacks."""

    where: str
    why: str


Lines = Iterable[Told | Unread]


@dataclasses.dataclass(frozen=True)
class Annotated:
    """`told` reads the annotations anew each time; `root` is the media folder or its URL."""

    root: str
    name: str
    told: Callable[[], Lines]
    _problems: list[str] = dataclasses.field(default_factory=list, compare=False)

    @property
    def problems(self) -> tuple[str, ...]:
        """Known when all entries were read."""
        return tuple(self._problems)

    @cached_property
    def _media(self) -> dict[str, str | None]:
        """From every way of naming a file to its path; None where a bare name is of two files."""
        found: dict[str, str | None] = {}
        files = [file for file in listing(self.root) if is_clip(file)]
        stills = [file for file in files if is_still(file)]
        # Films come second: a thumbnail beside its film does not take its name.
        for some in (stills, [file for file in files if not is_still(file)]):
            bare: dict[str, str | None] = {}
            for file in some:
                name = posixpath.basename(file)
                for key in (name, _stem(name)):
                    bare[key] = file if bare.get(key, file) == file else None
            found |= bare
            found |= {_stem(file): file for file in some}
        return found | {file: file for file in files}

    def entries(self) -> Iterator[Entry]:
        """Raises: DataError, the annotations are not of this form."""
        located = map(self._locate, self._read())
        for file, lines in itertools.groupby(located, key=lambda pair: pair[0]):
            yield _entry(Place(self.root, file), [line for _, line in lines])

    def _read(self) -> Iterator[Told]:
        """All lines that can be used; the others are counted."""
        used, unread, first = False, 0, Unread("", "")
        for line in self.told():
            if isinstance(line, Unread):
                first = line if not unread else first
                unread += 1
            else:
                used = True
                yield line
        said = f"{printable(first.where)[:SHOWN]}, which {printable(first.why)[:SHOWN]}"
        if unread and not used:
            raise DataError(f"the annotations are not of the form '{self.name}': see {said}.")
        if unread:
            self._problems[:] = [f"{unread} line(s) cannot be used, such as {said}."]

    def _locate(self, line: Told) -> tuple[str, Told]:
        """The line, and the file it is of; one that is cut out already is told of as a whole."""
        if file := self._find(line.cut):
            return file, line._replace(start=-math.inf, end=math.inf)
        # One that is not there is counted as missing when it is looked at.
        return self._find(line.file) or line.file, line

    def _find(self, name: str) -> str | None:
        return self._media.get(name) or self._media.get(_stem(name))

    def said(self, entry: Entry, start: float, end: float) -> Said:
        return entry.said or Said()


def _stem(name: str) -> str:
    """A name without its suffix; only that of a clip is one: `v_1.5` has none."""
    return posixpath.splitext(name)[0] if is_clip(name) else name


def _entry(place: Place, lines: list[Told]) -> Entry:
    """The clips of one file. Lines of the same part are captions of one clip; where some tell of
    the whole file, it is one clip, and they are what is said of it."""
    whole = [line for line in lines if line.whole]
    if whole:
        name = whole[0].id or place.uri
        return Entry(place=place, name=name, still=is_still(place.uri), said=merged(whole))
    spans: dict[tuple[float, float], list[Told]] = {}
    for line in lines:
        spans.setdefault((line.start, line.end), []).append(line)
    parts = tuple(
        Part(
            name=told[0].id or f"{place.uri}@{start:.3f}-{end:.3f}",
            start=start,
            end=end,
            said=merged(told),
        )
        for (start, end), told in sorted(spans.items())
    )
    return Entry(place=place, name=place.uri, parts=parts)


def merged(lines: list[Told]) -> Said:
    """What several lines say of one clip: all captions, and the first word on all else."""
    captions: dict[str, float] = {}
    for line in lines:
        weights = line.said.weights or (1.0,) * len(line.said.captions)
        for caption, weight in zip(line.said.captions, weights, strict=True):
            captions[caption] = captions.get(caption, 0.0) + weight
    first = lines[0].said
    alike = len(set(captions.values())) < 2
    return dataclasses.replace(
        first,
        captions=tuple(captions),
        weights=() if alike else tuple(captions.values()),
        origin=words.ANNOTATION if captions else words.NONE,
    )
