"""ArrayRecord files, and the directories that tensorflow-datasets writes them to.

A record is a file itself, told by its first bytes, or a tf.Example. What an example holds is said
by `features.json`, or else by the names of its features:

| feature | meaning |
| --- | --- |
| video (Text: a file's bytes), image, any Image, any Video | the clip |
| caption, captions, text | one or several |
| label, any ClassLabel | by its name in `label.labels.txt` |
| clip_id | the clip's own name, the same whatever else lies in the directory |

A Video is stored as pictures without times: how many a second must be told. TensorFlow is not
needed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipeline import examples, remote
from data_pipeline.errors import BadClip, DataError, printable
from data_pipeline.places import Place
from data_pipeline.sources import entry as words
from data_pipeline.sources.entry import Entry, Said, cleaned
from data_pipeline.sources.folder import listing

RECORDS = re.compile(r"(?:.*/)?[^/]*\.array_?record[^/]*")
SPLIT = re.compile(r".*-(?P<split>[^-]+)\.array_record-\d+-of-\d+")
INFO, FEATURES = "dataset_info.json", "features.json"
VIDEO, CAPTIONS = ("video", "image"), ("caption", "captions", "text")
LABEL, NAME = "label", "clip_id"
STILLS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")
EBML = b"\x1aE\xdf\xa3"  # Matroska and WebM
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # mp4 and QuickTime


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """Which features of an example say what; `names` are a class label's."""

    clip: Sequence[str] = VIDEO
    label: str = LABEL
    names: Sequence[str] = ()
    fps: Fraction | None = None  # of a Video


@dataclasses.dataclass(frozen=True)
class Records:
    """One ArrayRecord file, or all below a folder.

    Raises:
      DataError: code 2, there is none on this disk.
    """

    path: str
    name: str = "arrayrecord"
    schema: Schema = Schema()
    _problems: list[str] = dataclasses.field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        _refuse_remote(self.path)
        if not self.files:
            raise DataError(f"no ArrayRecord file lies in '{self.path}'.", code=2)

    @property
    def root(self) -> str:
        return self.path if Path(self.path).is_dir() else os.path.dirname(self.path) or "."

    @cached_property
    def files(self) -> list[str]:
        """From the root on."""
        if not Path(self.path).is_dir():
            return [os.path.basename(self.path)]
        return [file for file in listing(self.path) if RECORDS.fullmatch(file)]

    @property
    def problems(self) -> tuple[str, ...]:
        """Those met so far."""
        return tuple(self._problems)

    def entries(self) -> Iterator[Entry]:
        self._problems.clear()
        for file in self.files:
            try:
                reader = Place(self.root, f"record://{file}#0").records()
            except BadClip as bad:
                self._problems.append(f"{printable(file)} is left out ({bad}).")
                continue
            for number in range(len(reader)):
                yield self._entry(file, number, reader)

    def _entry(self, file: str, number: int, reader: Any) -> Entry:
        name = f"record://{file}#{number}"
        blank = Entry(place=Place(self.root, name), name=f"{file}#{number}", said=Said())
        try:
            record = reader[number]
            still = is_still(record)
            if still is not None:
                return dataclasses.replace(blank, still=still)
            features = examples.features(record)
            return self._example(features, blank) if features else blank
        except (BadClip, RuntimeError):  # why it cannot be used is found when it is looked at
            return blank

    def _example(self, features: Mapping[str, Any], blank: Entry) -> Entry:
        clip = next((name for name in self.schema.clip if name in features), self.schema.clip[0])
        uri = f"{blank.place.uri}/{clip}"
        still = any(is_still(content) for content in _bytes(features, clip)[:1])
        if self.schema.fps:
            uri, still = f"{uri}?fps={self.schema.fps}", False
        return Entry(
            place=Place(self.root, uri),
            name=next(iter(_texts(features, NAME)), blank.name),
            still=still,
            said=self._said(features, blank.place.uri),
        )

    def _said(self, features: Mapping[str, Any], uri: str) -> Said:
        captions = cleaned(text for name in CAPTIONS for text in _texts(features, name))
        named = SPLIT.fullmatch(uri.partition("#")[0])
        return Said(
            captions=captions,
            label=self._label(features),
            split=named["split"] if named else "",
            origin=words.SIDECAR if captions else words.NONE,
        )

    def _label(self, features: Mapping[str, Any]) -> str:
        said = next(iter(_texts(features, self.schema.label)), "")
        if said or self.schema.label not in features:
            return said
        numbers = features[self.schema.label].int64_list.value
        known = len(numbers) == 1 and 0 <= numbers[0] < len(self.schema.names)
        return self.schema.names[numbers[0]] if known else ""

    def said(self, entry: Entry, start: float, end: float) -> Said:
        return entry.said or Said()


def prepared(path: str, fps: Fraction | None = None) -> Records:
    """The directory of a data set that tensorflow-datasets prepared.

    Args:
      fps: of its Video feature, where it has one.

    Raises:
      DataError: code 2, it holds no ArrayRecord files, or no clips, or pictures without a rate.
    """
    _refuse_remote(path)
    if not (Path(path) / INFO).is_file():
        raise DataError(f"'{path}' has no {INFO}; name the directory of one version.", code=2)
    if not any(RECORDS.fullmatch(file) for file in listing(path)):
        raise DataError(
            f"'{path}' holds no ArrayRecord files; prepare it with file_format='array_record'.",
            code=2,
        )
    return Records(path, "tfds", _schema(Path(path), fps))


def _refuse_remote(path: str) -> None:
    if remote.is_remote(path):
        raise DataError(f"'{path}' is read from disk only; copy its ArrayRecord files.", code=2)


def _schema(path: Path, fps: Fraction | None) -> Schema:
    try:
        found = json.loads((path / FEATURES).read_text())["featuresDict"]["features"]
        kinds = {name: one["pythonClassName"].rpartition(".")[2] for name, one in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"'{path / FEATURES}' cannot be read ({error}).", code=2) from None
    films = [name for name, kind in kinds.items() if kind == "Video"]
    clips = films or [name for name in VIDEO if kinds.get(name) == "Text"]
    clips = clips or [name for name, kind in kinds.items() if kind == "Image"]
    if not clips:
        raise DataError(
            f"'{path}' holds {', '.join(sorted(kinds))}: no Text of bytes called 'video', no Image "
            "and no Video.",
            code=2,
        )
    if films and fps is None:
        raise DataError(
            f"'{films[0]}' of '{path}' is stored as pictures without times; say --fps=25, or how "
            "many there are a second.",
            code=2,
        )
    if fps is not None and not films:
        raise DataError(f"the films of '{path}' have times of their own; leave out --fps.", code=2)
    label = next((name for name, kind in kinds.items() if kind == "ClassLabel"), LABEL)
    names = path / f"{label}.labels.txt"
    said = names.read_text().split("\n") if names.is_file() else []
    return Schema(
        clip=clips, label=label, names=[name.strip() for name in said if name.strip()], fps=fps
    )


def is_still(content: bytes) -> bool | None:
    """Whether bytes begin as an image's file does; None where as no file that is read here."""
    riff = content[8:12] if content.startswith(b"RIFF") else b""
    if content.startswith(STILLS) or riff == b"WEBP":
        return True
    if content.startswith(EBML) or riff == b"AVI " or content[4:8] in BOXES:
        return False
    return None


def _bytes(features: Mapping[str, Any], name: str) -> Sequence[bytes]:
    return features[name].bytes_list.value if name in features else ()


def _texts(features: Mapping[str, Any], name: str) -> list[str]:
    return [value.decode("utf-8", "replace") for value in _bytes(features, name)]
