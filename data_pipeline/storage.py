"""Files of our own, on disk or on object storage; what is written appears only when it is whole.

Clips are strangers' files and are opened by `places.py`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from data_pipeline import remote


def join(folder: str | os.PathLike, *names: str) -> str:
    """A path, or a URL, below a folder."""
    return "/".join([os.fspath(folder).rstrip("/") or "/", *names])


def exists(path: str) -> bool:
    """Whether there is a file of this name.

    Raises:
      OSError: nobody can tell.
    """
    if not remote.is_remote(path):
        return Path(path).is_file()
    system, inside = remote.file_system(path)
    try:  # not `isfile`, which takes every error for a no
        found = remote.persistent(functools.partial(system.info, inside), inside)
    except FileNotFoundError:
        return False
    return found["type"] == "file"


def read(path: str) -> bytes:
    """All of a file.

    Raises:
      OSError: it cannot be read.
    """
    if not remote.is_remote(path):
        return Path(path).read_bytes()
    system, inside = remote.file_system(path)
    return remote.persistent(functools.partial(system.cat_file, inside), inside)


def remove(folder: str) -> None:
    """Delete a folder and all in it, if there is one."""
    if not remote.is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    system, inside = remote.file_system(folder)
    with contextlib.suppress(FileNotFoundError):
        system.rm(inside, recursive=True)


@contextlib.contextmanager
def whole(path: str) -> Iterator[IO[bytes]]:
    """A file to write to, which appears under its name only when the block ends without an error.

    Raises:
      OSError: it cannot be written.
    """
    if remote.is_remote(path):
        system, inside = remote.file_system(path)
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            put = functools.partial(system.put_file, file.name, inside)
            remote.persistent(put, inside)
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    partial = f"{path}.{os.getpid()}.{threading.get_ident()}.part"
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
