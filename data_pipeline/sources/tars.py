"""WebDataset shards: tar files in which members of one key are one sample.

    00000.tar:  000000000.mp4  000000000.txt  000000000.json  000000001.mp4 ...

A sample is its video or image and what `.txt` and `.json` say of it. What is found is where the
bytes of each video lie in its shard, so that any clip is read at random without unpacking, as from
an index of (offset, size).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import posixpath
import tarfile
from collections.abc import Iterator

from data_pipeline.errors import BadClip, DataError, printable
from data_pipeline.files import Limits
from data_pipeline.manifest import SCORES
from data_pipeline.places import Place
from data_pipeline.sources import entry as words
from data_pipeline.sources.entry import Entry, Said, cleaned, is_clip, is_still, number
from data_pipeline.sources.folder import listing

SHARD = Limits(bytes=1 << 50)
TOLD = 1 << 20  # bytes of a .txt or .json that are read


@dataclasses.dataclass(frozen=True)
class Tars:
    """All `*.tar` below `root`."""

    root: str
    name: str = "webdataset"

    _problems: list[str] = dataclasses.field(default_factory=list, compare=False)

    @property
    def problems(self) -> tuple[str, ...]:
        """Those met so far."""
        return tuple(self._problems)

    def entries(self) -> Iterator[Entry]:
        """Raises: DataError, code 2, where there is no shard."""
        shards = [file for file in listing(self.root) if file.endswith(".tar")]
        if not shards:
            raise DataError(f"no .tar file lies in '{self.root}'.", code=2)
        for shard in shards:
            try:
                yield from self._samples(shard)
            except (tarfile.TarError, EOFError, BadClip) as error:
                self._problems.append(f"{printable(shard)} is read up to its damage ({error}).")

    def _samples(self, shard: str) -> Iterator[Entry]:
        with (
            Place(self.root, shard).open(SHARD) as file,
            # Not a compressed one: its members have no place of their own.
            tarfile.open(fileobj=file, mode="r:") as archive,
        ):
            files = (member for member in archive if member.isreg())
            for key, members in itertools.groupby(files, key=lambda member: _key(member.name)):
                yield from self._sample(shard, key, archive, list(members))

    def _sample(
        self, shard: str, key: str, archive: tarfile.TarFile, members: list[tarfile.TarInfo]
    ) -> Iterator[Entry]:
        def told(suffix: str) -> str | None:
            for member in members:
                if member.name.endswith(suffix) and member.size <= TOLD:
                    content = archive.extractfile(member)
                    return content.read().decode("utf-8", "replace") if content else None
            return None

        said = said_of(told(".txt"), told(".json"))
        clips = [member for member in members if is_clip(member.name)]
        for clip in clips:
            yield Entry(
                place=Place(self.root, f"tar://{shard}#{clip.offset_data},{clip.size}"),
                name=f"{shard}/{clip.name if len(clips) > 1 else key}",
                still=is_still(clip.name),
                said=said,
            )

    def said(self, entry: Entry, start: float, end: float) -> Said:
        return entry.said or Said()


def _key(name: str) -> str:
    """The part of a member's name that a sample shares: up to the first dot of its last part."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def said_of(text: str | None, beside: str | None) -> Said:
    """What a `.txt` and a `.json` say, in the fields that video2dataset writes."""
    try:
        fields = json.loads(beside or "{}")
    except (ValueError, RecursionError):
        fields = {}
    fields = fields if isinstance(fields, dict) else {}
    listed = fields.get("captions")
    captions = cleaned(
        (text or "").splitlines()
        or [fields.get("caption"), *(listed if isinstance(listed, list) else [])]
    )
    scores = {name: number(fields.get(name)) for name in SCORES}
    label = fields.get("label")
    return Said(
        captions=captions,
        label=label if isinstance(label, str) else "",
        scores={name: score for name, score in scores.items() if score is not None},
        origin=words.SIDECAR if captions else words.NONE,
    )
