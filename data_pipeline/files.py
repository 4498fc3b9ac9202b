"""A stranger's file, opened: a regular one within limits, and what goes wrong with it has a name.

This is the only module that opens a local path of a data set. What decodes it gets the open file,
never its name.
"""

from __future__ import annotations

import abc
import dataclasses
import errno
import functools
import io
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from data_pipeline.errors import BadClip, DataError

TRANSIENT = (errno.EIO, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of the disk a copy is written to
RETRIES = 3

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may cost before it is refused."""

    bytes: int = 4 << 30
    pixels: int = 1 << 25  # of one frame
    frames: int = 1 << 20
    seconds: float = 86_400.0  # from a film's first frame to its last

    def problems(self) -> list[str]:
        """Everything wrong with these numbers, one sentence each."""
        return [
            f"limits.{name} is {value!r}; it must be above 0."
            for name, value in dataclasses.asdict(self).items()
            if not value > 0
        ]


class Openable(Protocol):
    """Where a stranger's bytes are (`places.Place`)."""

    def open(self, limits: Limits) -> IO[bytes]:
        """Raises: BadClip, OSError."""


def guarded(place: Openable, limits: Limits, use: Callable[[IO[bytes]], T]) -> T:
    """What `use` makes of a file, opened at its beginning.

    A read that fails in a way that may pass is tried again, so that a moment's trouble does not
    make two runs differ.

    Raises:
      BadClip: for whatever is wrong with the file.
      OSError: only where a disk that is written to meanwhile is full.
    """
    for attempt in range(RETRIES):
        try:
            with place.open(limits) as file:
                return use(file)
        except OSError as error:
            if error.errno in FULL:
                raise
            if error.errno not in TRANSIENT or attempt + 1 == RETRIES:
                raise BadClip("read", str(error)) from error
            time.sleep(0.05 * 4**attempt)
        except (BadClip, DataError):
            raise
        except MemoryError as error:
            raise BadClip("memory", str(error)) from error
        # Decoders of broken files fail in ways nobody lists; one clip must not end the run.
        except Exception as error:
            raise BadClip("decoder", f"{type(error).__name__}: {error}") from error
    raise AssertionError("every attempt returns or raises")


def open_regular(path: Path, limits: Limits) -> IO[bytes]:
    """Open a regular file of 1 to `limits.bytes` bytes; never a link, pipe, device or folder.

    Raises:
      BadClip: what it is instead. OSError: reading failed in another way.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadClip("missing") from error
    except PermissionError as error:
        raise BadClip("permission") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BadClip("link") from error
        if error.errno in (errno.ENXIO, errno.ENAMETOOLONG):
            raise BadClip("not_a_file") from error
        raise
    except ValueError as error:  # a name with a NUL
        raise BadClip("name") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise BadClip("not_a_file")
        if status.st_size == 0:
            raise BadClip("empty")
        if status.st_size > limits.bytes:
            raise BadClip("too_large", f"{status.st_size} bytes")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


class Shown(io.RawIOBase):
    """`size` bytes that lie elsewhere, as a file; `read_at` fetches some of them."""

    def __init__(self, size: int):
        self._size, self._at = size, 0

    @abc.abstractmethod
    def read_at(self, first: int, count: int) -> bytes:
        """At least one and at most `count` bytes from `first` on, all inside."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._size - self._at)
        if count <= 0:
            return 0
        data = self.read_at(self._at, count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def size_of(file: IO[bytes]) -> int:
    """How many bytes an open file has; it stands at its beginning afterwards."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


@functools.lru_cache(maxsize=1 << 16)
def is_inside(folder: Path, root: Path) -> bool:
    """Whether no link below `root` makes `folder` another place than its name says."""
    return folder.resolve() == root.resolve() / folder.relative_to(root)
