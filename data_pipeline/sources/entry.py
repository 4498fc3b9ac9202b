"""The words that all sources share."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from typing import Protocol

from data_pipeline.places import Place
from data_pipeline.text import clean

VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
# Where captions may come from.
SIDECAR, TABLE, FOLDER, ANNOTATION, NONE = "sidecar", "table", "folder", "annotation", "none"
ORIGINS = (SIDECAR, TABLE, FOLDER, ANNOTATION, NONE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """What is known of a clip beside its pixels.

    Attributes:
      captions: any number; weights: one each, or none where all count alike.
      scores: `motion`, `aesthetic`, `clip`, `text_area`, where measured.
      origin: where the captions are from, one of the words above.
    """

    captions: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    label: str = ""
    split: str = ""
    licence: str = ""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    origin: str = NONE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A clip that annotations name: from `start` up to before `end`, seconds of its file."""

    name: str
    start: float
    end: float
    said: Said


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One file. `name` says what its clips are called; with `parts`, these are its clips.

    `said` is of the whole file; None where its source is to be asked, when the file is looked at.
    """

    place: Place
    name: str
    still: bool = False
    said: Said | None = None
    parts: tuple[Part, ...] = ()


class Source(Protocol):
    @property
    def name(self) -> str:
        """Of the set, for the manifest."""

    @property
    def root(self) -> str:
        """The folder, or URL, that all places count from."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with its annotations, a sentence each."""

    def entries(self) -> Iterable[Entry]:
        """All files, always in the same order."""

    def said(self, entry: Entry, start: float, end: float) -> Said:
        """What is known of a part of an entry's file, in seconds."""


def suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def is_still(name: str) -> bool:
    """Whether a name is that of a still image."""
    return suffix(name) in IMAGES


def is_clip(name: str) -> bool:
    """Whether a name is that of a video or an image."""
    return suffix(name) in VIDEOS | IMAGES


def cleaned(captions: Iterable[object]) -> tuple[str, ...]:
    """Those that say something, each once."""
    said = (clean(caption) for caption in captions if isinstance(caption, str))
    return tuple(dict.fromkeys(caption for caption in said if caption))


def number(value: object) -> float | None:
    """A finite number in whatever form a table holds it, or None."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None
