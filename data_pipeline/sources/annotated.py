"""Clips that annotations name, and the files they are of, wherever in the media folder these lie.

A file is named by its path from the media folder or by its bare name, with its suffix or without.
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

from data_pipeline.places import Place
from data_pipeline.sources import entry as words
from data_pipeline.sources.entry import Entry, Part, Said, is_clip, is_still
from data_pipeline.sources.folder import listing


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


Annotations = Callable[[], Iterable[Told]]


@dataclasses.dataclass(frozen=True)
class Annotated:
    """`told` reads the annotations anew each time; `root` is the media folder or its URL."""

    root: str
    name: str
    told: Annotations
    problems: tuple[str, ...] = ()

    @cached_property
    def _media(self) -> dict[str, str | None]:
        """From every way of naming a file to its path; None where a bare name is of two files."""
        found: dict[str, str | None] = {}
        files = [file for file in listing(self.root) if is_clip(file)]
        for file in files:
            bare = posixpath.basename(file)
            for key in (bare, posixpath.splitext(bare)[0]):
                found[key] = file if found.get(key, file) == file else None
        found |= {posixpath.splitext(file)[0]: file for file in files}
        return found | {file: file for file in files}

    def entries(self) -> Iterator[Entry]:
        located = map(self._locate, self.told())
        for file, lines in itertools.groupby(located, key=lambda pair: pair[0]):
            yield _entry(Place(self.root, file), [line for _, line in lines])

    def _locate(self, line: Told) -> tuple[str, Told]:
        """The line, and the file it is of; one that is cut out already is told of as a whole."""
        if file := self._media.get(line.cut):
            return file, line._replace(start=-math.inf, end=math.inf)
        # One that is not there is counted as missing when it is looked at.
        return self._media.get(line.file) or line.file, line

    def said(self, entry: Entry, start: float, end: float) -> Said:
        return entry.said or Said()


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
