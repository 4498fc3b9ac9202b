"""A folder of video and still images, walked in an order that does not depend on the disk.

A caption lies beside its file: `name.txt` (a caption a line), or `name.json` with `caption` or
`captions`; else it is the name of the folder the file lies in. Whatever else `name.json` says
becomes the clip's label.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.decode import Limits, open_regular
from data_pipeline.errors import BadClip, DataError
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


def is_still(uri: str) -> bool:
    """Whether a name is that of a still image."""
    return os.path.splitext(uri)[1].lower() in IMAGES


def walk(root: str | os.PathLike) -> Iterator[Entry]:
    """Every file that is called a video or an image, sorted; links to folders are not followed.

    Raises:
      DataError: code 2, no such folder.
    """
    if not Path(root).is_dir():
        raise DataError(f"there is no folder '{root}' to index.", code=2)
    yield from _walk(Path(root), "")


def _walk(root: Path, inside: str) -> Iterator[Entry]:
    for name in sorted(os.listdir(root / inside)):
        uri = f"{inside}{name}"
        if is_still(uri) or os.path.splitext(uri)[1].lower() in VIDEOS:
            yield Entry(root, uri, is_still(uri))
        if (root / uri).is_dir() and not (root / uri).is_symlink():
            yield from _walk(root, f"{uri}/")


def describe(entry: Entry) -> tuple[list[str], str]:
    """(captions, label) of a file, from what lies beside it; a sidecar that cannot be read is
    as good as none."""
    said = _json(_beside(entry, ".json"))
    listed = said.pop("captions", None)
    captions = [said.pop("caption", ""), *(listed if isinstance(listed, list) else [listed])]
    written = _beside(entry, ".txt")
    if written is not None:
        captions = list(written.splitlines()) or [""]
    captions = [clean(text) for text in captions if isinstance(text, str) and clean(text)]
    if not captions and written is None:
        folder = entry.path.parent.name or entry.path.parent.resolve().name
        captions = [clean(folder.replace("_", " "))]
    return captions, json.dumps(said, sort_keys=True) if said else ""


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
