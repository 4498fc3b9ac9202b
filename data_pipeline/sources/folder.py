"""A folder of video and still images, in an order that does not depend on the disk.

A caption is what the first of these says:

    1. sidecar  `name.txt` beside `name.mp4`, a caption a line; an empty one says: no caption
    2. sidecar  `name.json` with `caption` or `captions`; what else it says is the clip's label
    3. table    `captions.csv` or `captions.jsonl` in a folder above (`captions.py`)
    4. folder   the name of the folder the file lies in
"""

from __future__ import annotations

import dataclasses
import json
import os
import posixpath
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from data_pipeline import captions as tables
from data_pipeline import remote
from data_pipeline.errors import BadClip, DataError
from data_pipeline.files import Limits
from data_pipeline.places import Place
from data_pipeline.sources import entry as words
from data_pipeline.sources.entry import Entry, Said, cleaned, is_clip, is_still

BESIDE = Limits(bytes=1 << 20)


@dataclasses.dataclass(frozen=True)
class Folder:
    """All that is called a video or an image below `root`; links to folders are not followed.

    Raises:
      DataError: code 2, no such folder.
    """

    root: str
    name: str = "folder"

    def __post_init__(self) -> None:
        if not remote.is_remote(self.root) and not Path(self.root).is_dir():
            raise DataError(f"there is no folder '{self.root}' to index.", code=2)

    @cached_property
    def files(self) -> list[str]:
        """Paths of all files from the root on, sorted by folder."""
        return listing(self.root)

    @cached_property
    def _tables(self) -> tables.Tables:
        found = [file for file in self.files if posixpath.basename(file) in tables.NAMES]
        return tables.read(self.root, found, [file for file in self.files if is_clip(file)])

    @property
    def problems(self) -> tuple[str, ...]:
        return self._tables.problems

    def entries(self) -> list[Entry]:
        return [
            Entry(place=Place(self.root, file), name=file, still=is_still(file))
            for file in self.files
            if is_clip(file)
        ]

    def said(self, entry: Entry, start: float, end: float) -> Said:
        """A sidecar that cannot be read is as good as none."""
        beside = _json(self._beside(entry, ".json"))
        listed = beside.pop("captions", None)
        found = [beside.pop("caption", ""), *(listed if isinstance(listed, list) else [listed])]
        written, origin = self._beside(entry, ".txt"), words.SIDECAR
        if written is not None:
            found = list(written.splitlines())
        captions = cleaned(found)
        if not captions and written is None:
            captions, origin = tuple(self._tables.of(entry.name, start, end)), words.TABLE
        if not captions and written is None:
            captions, origin = cleaned([self._folder_of(entry).replace("_", " ")]), words.FOLDER
        label = json.dumps(beside, sort_keys=True) if beside else ""
        return Said(captions=captions, label=label, origin=origin if captions else words.NONE)

    def _folder_of(self, entry: Entry) -> str:
        inside = posixpath.basename(posixpath.dirname(entry.name))
        outside = self.root if remote.is_remote(self.root) else str(Path(self.root).resolve())
        return inside or posixpath.basename(outside.rstrip("/"))

    def _beside(self, entry: Entry, suffix: str) -> str | None:
        place = Place(self.root, os.path.splitext(entry.name)[0] + suffix)
        try:
            with place.open(BESIDE) as file:
                return file.read().decode("utf-8", "replace")
        except BadClip as bad:
            return "" if bad.reason == "empty" else None


def listing(root: str) -> list[str]:
    """Paths of all files below a folder or URL, from there on, sorted."""
    return remote.find(root) if remote.is_remote(root) else list(_walk(Path(root), ""))


def _walk(root: Path, inside: str) -> Iterator[str]:
    for name in sorted(os.listdir(root / inside)):
        path = f"{inside}{name}"
        yield path
        if (root / path).is_dir() and not (root / path).is_symlink():
            yield from _walk(root, f"{path}/")


def _json(text: str | None) -> dict[str, object]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
