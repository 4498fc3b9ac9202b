"""The one place where a local file of a stranger's is opened, and what a file may cost."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from pathlib import Path
from typing import IO

from data_pipeline.errors import BadClip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may cost before it is refused."""

    bytes: int = 4 << 30
    pixels: int = 1 << 25  # of one frame
    frames: int = 1 << 20


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
