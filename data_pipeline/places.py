"""Where the bytes of a clip are, and the one way to open them.

    a/b.mp4                                a file
    tar://shards/00000.tar#1536,20480      20,480 bytes of a file, from byte 1,536 on
    record://clips.array_record#17         record 17 of an ArrayRecord file
    record://clips.array_record#17/video   the bytes of one feature of the tf.Example in it
    record://clips.array_record#17/video?fps=25    its pictures, as a film of 25 frames a second

All paths count from the root of a source: a folder, or a prefix on object storage. Nothing outside
the root is ever opened, and no other scheme.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import re
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from data_pipeline import examples, remote, slides
from data_pipeline.errors import BadClip, DataError, printable
from data_pipeline.files import Limits, Shown, is_inside, open_regular

TAR = re.compile(r"tar://(?P<file>.+)#(?P<first>\d+),(?P<size>\d+)", re.DOTALL)
RECORD = re.compile(
    r"record://(?P<file>.+)#(?P<index>\d+)"
    r"(?:/(?P<feature>[^?]+)(?:\?fps=(?P<fps>[1-9]\d{0,6}(?:/[1-9]\d{0,6})?))?)?",
    re.DOTALL,
)
ANY_SIZE = Limits(bytes=1 << 62)  # of a file of which only a part is read
# Patterns of RE2, so that Arrow can look through a column of millions.
OUTSIDE = r"(?s)^$|\x00|^/|^(tar|record):///|(^|/)\.\.(/|#|$)"
SCHEME, OURS = r"^[A-Za-z][A-Za-z0-9+.-]*://", r"^(tar|record)://"


@dataclasses.dataclass(frozen=True)
class Place:
    """`uri`, in one of the forms above, from `root` on."""

    root: str
    uri: str

    @classmethod
    def of(cls, path: str | os.PathLike) -> Place:
        """A file on this disk."""
        folder, name = os.path.split(os.fspath(path))
        return cls(folder or ".", name)

    def __str__(self) -> str:
        return printable(f"{self.root.rstrip('/')}/{self.uri}")

    def open(self, limits: Limits) -> IO[bytes]:
        """The bytes, as a file of their own: seekable, of 1 to `limits.bytes` bytes.

        Raises:
          BadClip: what it is instead. OSError: reading failed in another way.
        """
        self._refuse_outside()
        if part := TAR.fullmatch(self.uri):
            return self._part(part["file"], int(part["first"]), int(part["size"]), limits)
        if record := RECORD.fullmatch(self.uri):
            return self._record(record, limits)
        return self._file(self.uri, limits)

    def records(self) -> Any:
        """A reader of the ArrayRecord file that holds the bytes, for all threads.

        Raises:
          BadClip: it is no such file. DataError: it is not on disk.
        """
        self._refuse_outside()
        if remote.is_remote(self.root):
            raise DataError("ArrayRecord files are read from disk only; copy them.", code=2)
        named = RECORD.fullmatch(self.uri)
        path = self._local(named["file"] if named else self.uri)
        with open_regular(path, ANY_SIZE) as file:  # not a link or pipe
            status = os.fstat(file.fileno())
        try:
            return _records(str(path), status.st_mtime_ns, status.st_size)
        except (ValueError, RuntimeError) as error:
            raise BadClip("record", str(error)) from error

    def version(self) -> str:
        """A word that changes when the file that holds the bytes is replaced or written to.

        Raises: as `open`.
        """
        self._refuse_outside()
        part = TAR.fullmatch(self.uri) or RECORD.fullmatch(self.uri)
        name = part["file"] if part else self.uri
        if remote.is_remote(self.root):
            return remote.facts(f"{self.root.rstrip('/')}/{name}").version
        with open_regular(self._local(name), ANY_SIZE) as file:
            status = os.fstat(file.fileno())
        return f"{status.st_mtime_ns}-{status.st_size}"

    def _file(self, name: str, limits: Limits) -> IO[bytes]:
        if remote.is_remote(self.root):
            return remote.open_file(f"{self.root.rstrip('/')}/{name}", limits)
        return open_regular(self._local(name), limits)

    def _local(self, name: str) -> Path:
        path = Path(self.root, name)
        if not is_inside(path.parent, Path(self.root)):
            raise BadClip("link", "one of its folders")
        return path

    def _part(self, name: str, first: int, size: int, limits: Limits) -> IO[bytes]:
        if size > limits.bytes:
            raise BadClip("too_large", f"{size} bytes")
        if size == 0:
            raise BadClip("empty")
        whole = self._file(name, ANY_SIZE)
        if whole.seek(0, os.SEEK_END) < first + size:
            whole.close()
            raise BadClip("truncated", f"{printable(name)} ends before byte {first + size}")
        return io.BufferedReader(Window(whole, first, size))

    def _refuse_outside(self) -> None:
        # Annotations and manifests are strangers': what they name may be any path at all.
        if re.search(OUTSIDE, self.uri) or (
            re.search(SCHEME, self.uri) and not re.search(OURS, self.uri)
        ):
            raise BadClip("outside", "the file is not inside its source")

    def _record(self, named: re.Match[str], limits: Limits) -> IO[bytes]:
        reader = self.records()
        try:
            content = reader[int(named["index"])]
        except (ValueError, RuntimeError) as error:
            raise BadClip("record", str(error)) from error
        if named["feature"]:
            values = examples.values(content, named["feature"])
            content = slides.film(values, Fraction(named["fps"])) if named["fps"] else values[0]
        if not content:
            raise BadClip("empty")
        if len(content) > limits.bytes:
            raise BadClip("too_large", f"{len(content)} bytes")
        return io.BytesIO(content)


class Window(Shown):
    """`size` bytes of a file from `first` on; the file is closed with it."""

    def __init__(self, file: IO[bytes], first: int, size: int):
        super().__init__(size)
        self._file, self._first = file, first

    def read_at(self, first: int, count: int) -> bytes:
        self._file.seek(self._first + first)
        return self._file.read(count)

    def close(self) -> None:
        self._file.close()
        super().close()


@functools.lru_cache(maxsize=64)
def _records(path: str, time: int, size: int):
    """A reader for all threads; a file that was written anew, which `time` and `size` tell, is
    opened anew."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource([path])
