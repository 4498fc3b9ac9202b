"""A folder of video and still images, walked in an order that does not depend on the disk.

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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipeline import captions as tables
from data_pipeline.errors import BadClip, DataError
from data_pipeline.files import Limits, open_regular
from data_pipeline.text import clean

VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
SIDECAR = Limits(bytes=1 << 20)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file to look at: `uri` is its path from the root, with forward slashes."""

    root: Path
    uri: str
    still: bool

    @property
    def path(self) -> Path:
        return self.root / self.uri


class Said(NamedTuple):
    """What is known of a clip beside its pixels, and which of `ORIGINS` its captions are from."""

    captions: list[str]
    label: str
    origin: str


ORIGINS = ("sidecar", "table", "folder", "none")


def is_still(uri: str) -> bool:
    """Whether a name is that of a still image."""
    return os.path.splitext(uri)[1].lower() in IMAGES


def walk(root: str | os.PathLike) -> tuple[list[Entry], list[str]]:
    """(every file that is called a video or an image, the path of every table of captions), sorted;
    links to folders are not followed.

    Raises:
      DataError: code 2, no such folder.
    """
    if not Path(root).is_dir():
        raise DataError(f"there is no folder '{root}' to index.", code=2)
    uris = list(_walk(Path(root), ""))
    entries = [
        Entry(Path(root), uri, is_still(uri))
        for uri in uris
        if is_still(uri) or os.path.splitext(uri)[1].lower() in VIDEOS
    ]
    return entries, [uri for uri in uris if os.path.basename(uri) in tables.NAMES]


def _walk(root: Path, inside: str) -> Iterator[str]:
    for name in sorted(os.listdir(root / inside)):
        uri = f"{inside}{name}"
        yield uri
        if (root / uri).is_dir() and not (root / uri).is_symlink():
            yield from _walk(root, f"{uri}/")


def describe(entry: Entry, table: list[str] | None = None) -> Said:
    """What is said of a file, `table` being what the tables say; a sidecar that cannot be read is
    as good as none."""
    said = _json(_beside(entry, ".json"))
    listed = said.pop("captions", None)
    captions = [said.pop("caption", ""), *(listed if isinstance(listed, list) else [listed])]
    written, origin = _beside(entry, ".txt"), "sidecar"
    if written is not None:
        captions = list(written.splitlines())
    captions = [clean(text) for text in captions if isinstance(text, str) and clean(text)]
    if not captions and written is None:
        captions, origin = table or [], "table"
    if not captions and written is None:
        folder = entry.path.parent.name or entry.path.parent.resolve().name
        captions, origin = [clean(folder.replace("_", " "))], "folder"
    label = json.dumps(said, sort_keys=True) if said else ""
    return Said(captions, label, origin if captions else "none")


def _beside(entry: Entry, suffix: str) -> str | None:
    try:
        with open_regular(entry.path.with_suffix(suffix), SIDECAR) as file:
            return file.read().decode("utf-8", "replace")
    except BadClip as bad:
        return "" if bad.reason == "empty" else None


def _json(text: str | None) -> dict[str, object]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
