"""Which source a path is: what the user says it is, else what it looks like."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from data_pipeline import remote
from data_pipeline.errors import DataError
from data_pipeline.lines import SUFFIXES
from data_pipeline.sources import records
from data_pipeline.sources.annotated import Annotated
from data_pipeline.sources.annotations import ANNOTATIONS
from data_pipeline.sources.entry import Source, is_clip, suffix
from data_pipeline.sources.folder import Folder, listing
from data_pipeline.sources.records import Records, prepared
from data_pipeline.sources.tars import Tars

FOLDERS: dict[str, Callable[..., Source]] = {
    "folder": Folder, "webdataset": Tars, "arrayrecord": Records, "tfds": prepared
}  # fmt: skip
FORMS = (*FOLDERS, *ANNOTATIONS)
DOCUMENTS = (".json", ".txt")  # of annotations, which do not say whose they are


def choose(source: str, form: str | None, media: str | None, fps: Fraction | None = None) -> Source:
    """The source at a path. Annotations' files lie in `media`, or else beside them; `fps` is of
    films that tensorflow-datasets stores as pictures.

    Raises:
      DataError: code 2, no such form, or nothing of it at this path.
    """
    if not remote.is_remote(source) and not Path(source).exists():
        raise DataError(f"there is no folder or file '{source}' to index.", code=2)
    form = form or _looks_like(source)
    if form not in FORMS:
        raise DataError(f"there is no form '{form}'; it is one of {', '.join(FORMS)}.", code=2)
    if fps is not None and form != "tfds":
        raise DataError(f"'{source}' is a {form}: its films have times, and take no --fps.", 2)
    if form in ANNOTATIONS:
        told = functools.partial(ANNOTATIONS[form], source)
        return Annotated(media or _beside(source), form, told)
    if media is not None:
        raise DataError(f"'{source}' is a {form}: it holds its files, and takes no --media.", 2)
    return prepared(source, fps) if form == "tfds" else FOLDERS[form](source)


def _looks_like(source: str) -> str:
    if suffix(source) in SUFFIXES:
        return "table"
    if suffix(source) in DOCUMENTS:
        known = ", ".join(ANNOTATIONS)
        raise DataError(f"'{source}' may be of any form; say --form, one of {known}.", code=2)
    if not _is_folder(source):
        return "arrayrecord" if records.RECORDS.fullmatch(source) else "folder"
    files = listing(source)
    if any(posixpath.basename(file) == records.INFO for file in files):
        return "tfds"
    if any(map(is_clip, files)):  # whatever else lies beside them
        return "folder"
    if any(file.endswith(".tar") for file in files):
        return "webdataset"
    return "arrayrecord" if any(map(records.RECORDS.fullmatch, files)) else "folder"


def _is_folder(source: str) -> bool:
    return remote.is_remote(source) or Path(source).is_dir()


def _beside(source: str) -> str:
    if suffix(source):
        return posixpath.dirname(source) or "."
    return source
