"""Which source a path is: what the user says it is, else what it looks like."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Callable
from pathlib import Path

from data_pipeline import remote
from data_pipeline.errors import DataError
from data_pipeline.lines import SUFFIXES
from data_pipeline.sources.annotated import Annotated
from data_pipeline.sources.annotations import ANNOTATIONS
from data_pipeline.sources.entry import Source, suffix
from data_pipeline.sources.folder import Folder, listing
from data_pipeline.sources.tars import Tars

FOLDERS: dict[str, Callable[[str], Source]] = {"folder": Folder, "webdataset": Tars}
FORMS = (*FOLDERS, *ANNOTATIONS)


def choose(source: str, form: str | None, media: str | None) -> Source:
    """The source at a path. Annotations' files lie in `media`, or else beside them.

    Raises:
      DataError: code 2, no such form, or nothing of it at this path.
    """
    if not remote.is_remote(source) and not Path(source).exists():
        raise DataError(f"there is no folder or file '{source}' to index.", code=2)
    form = form or _looks_like(source)
    if form in FOLDERS:
        if media is not None:
            raise DataError(f"'{source}' is a {form}: it holds its files, and takes no --media.", 2)
        return FOLDERS[form](source)
    if form not in ANNOTATIONS:
        raise DataError(f"there is no form '{form}'; it is one of {', '.join(FORMS)}.", code=2)
    told = functools.partial(ANNOTATIONS[form], source)
    return Annotated(media or _beside(source), form, told)


def _looks_like(source: str) -> str:
    if suffix(source) in SUFFIXES:
        return "table"
    tars = any(file.endswith(".tar") for file in listing(source)) if _is_folder(source) else False
    return "webdataset" if tars else "folder"


def _is_folder(source: str) -> bool:
    return remote.is_remote(source) or Path(source).is_dir()


def _beside(source: str) -> str:
    if suffix(source):
        return posixpath.dirname(source) or "."
    return source
