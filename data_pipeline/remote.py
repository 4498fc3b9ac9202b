"""Files on object storage, read in blocks; blocks lie on local disk until others need the room.

A file is named by URL. What a block is called says which version of its file it is of, so a file
that was replaced is read anew. Reads that fail in a way that may pass are tried again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import os
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec
import tenacity

from data_pipeline.errors import BadClip, DataError
from data_pipeline.files import Limits, Shown

# What a manifest of a stranger's may name; each needs a package of fsspec's family.
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
CACHE = "VDM_CACHE"  # the environment variable that names the folder of blocks and plans
CACHE_MIB = "VDM_CACHE_MIB"
DEFAULT_MIB = 16 << 10
BLOCK = 4 << 20
ATTEMPTS = 5
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def is_remote(path: str | os.PathLike) -> bool:
    return "://" in os.fspath(path)


def cache_folder() -> Path:
    """Where what can be made or fetched again may lie: `$VDM_CACHE`, else the user's cache."""
    if named := os.environ.get(CACHE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vdm_jax"


def file_system(url: str) -> tuple[Any, str]:
    """(fsspec's file system, path on it) of a URL.

    Raises:
      DataError: code 2, a scheme that is not read, or whose package is not installed.
    """
    scheme = url.partition("://")[0]
    if scheme not in PACKAGES:
        known = ", ".join(f"{name}://" for name in PACKAGES)
        raise DataError(f"'{url}' cannot be read; data may lie on {known} or on disk.", code=2)
    try:
        # A listing that is kept would hide what changes, and ten million names are gigabytes.
        return fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError:
        raise DataError(
            f"'{url}' needs the package {PACKAGES[scheme]}: pip install {PACKAGES[scheme]}.", code=2
        ) from None


def find(url: str) -> list[str]:
    """Paths of all files below a URL, from there on, sorted.

    Raises:
      DataError: code 2, there is nothing; 6, it cannot be reached.
    """
    system, path = file_system(url.rstrip("/"))
    try:
        found = persistent(functools.partial(system.find, path), path)
    except FileNotFoundError:
        raise DataError(f"there is no folder '{url}' to index.", code=2) from None
    except OSError as error:
        raise DataError(f"'{url}' cannot be reached ({error}).", code=6) from None
    return sorted(name[len(path) + 1 :] for name in found)


def persistent(read: Callable[[], Any], path: str) -> Any:
    """What `read` returns, tried up to `ATTEMPTS` times.

    Raises:
      OSError: one of `FINAL`, or, whatever the file system raised the last time, EREMOTEIO, which
        nobody tries again.
    """
    attempt = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential_jitter(initial=0.1, max=10),
        # The file systems' own errors have no common class: all but the certain ones may pass.
        retry=tenacity.retry_if_not_exception_type(FINAL),
        reraise=True,
    )
    try:
        return attempt(read)
    except FINAL:
        raise
    except Exception as error:
        raise OSError(errno.EREMOTEIO, f"{path}: {type(error).__name__}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Bytes by name in a folder, at most `mib` MiB of them; what was longest unused goes first.

    Several processes may share a folder: each sees to the bound when it has written a sixteenth
    of it.
    """

    folder: Path
    mib: int
    _written: list[int] = dataclasses.field(default_factory=lambda: [0], compare=False)
    _lock: Any = dataclasses.field(default_factory=threading.Lock, compare=False)

    def get(self, name: str, size: int, read: Callable[[], bytes]) -> bytes:
        """The `size` bytes called `name`, from disk if they lie there, else from `read`."""
        path = self.folder / name
        try:
            data = path.read_bytes()
            if len(data) == size:
                os.utime(path)
                return data
        except OSError:
            pass
        data = read()
        # A disk that is full makes reading slower; it makes nothing fail.
        with contextlib.suppress(OSError):
            self._keep(path, data)
        return data

    def _keep(self, path: Path, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        with self._lock:
            self._written[0] += len(data)
            if self._written[0] >= (self.mib << 20) // 16:
                self._written[0] = 0
                self._trim()

    def _trim(self) -> None:
        kept = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                kept.append((status.st_mtime_ns, status.st_size, entry.path))
        over = sum(size for _, size, _ in kept) - (self.mib << 20) * 15 // 16
        for _, size, path in sorted(kept):
            if over <= 0:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            over -= size


@functools.cache
def blocks() -> Blocks:
    """Those of this process.

    Raises: DataError, code 2, `$VDM_CACHE_MIB` is no whole number.
    """
    mib = os.environ.get(CACHE_MIB, str(DEFAULT_MIB))
    if not mib.isdecimal():
        raise DataError(f"{CACHE_MIB} is '{mib}'; it must be a whole number of MiB.", code=2)
    return Blocks(cache_folder() / "blocks", int(mib))


class Facts(NamedTuple):
    system: Any
    path: str
    size: int
    version: str


def facts(url: str) -> Facts:
    """What is known of a file before it is read.

    Raises:
      BadClip: it is missing, or not a file. OSError: it could not be reached.
    """
    system, path = file_system(url)
    try:
        found = persistent(functools.partial(system.info, path), path)
    except FileNotFoundError as error:
        raise BadClip("missing") from error
    except PermissionError as error:
        raise BadClip("permission") from error
    if found["type"] != "file":
        raise BadClip("not_a_file")
    # What object storage calls a version of a file goes by these names.
    marks = [str(found[name]) for name in ("ETag", "etag", "generation", "mtime") if name in found]
    return Facts(system, path, int(found["size"]), "-".join(marks))


class RemoteFile(Shown):
    """A file on object storage."""

    def __init__(self, found: Facts, kept: Blocks):
        super().__init__(found.size)
        self._found, self._kept = found, kept
        word = f"{found.path}\0{found.version}\0{found.size}"
        self._name = sha256(word.encode()).hexdigest()

    def read_at(self, first: int, count: int) -> bytes:
        number, inside = divmod(first, BLOCK)
        return self._block(number)[inside : inside + count]

    def _block(self, number: int) -> bytes:
        system, path, size, _ = self._found
        first, last = number * BLOCK, min((number + 1) * BLOCK, size)

        def fetch() -> bytes:
            data = system.cat_file(path, start=first, end=last)
            if len(data) != last - first:
                raise OSError(errno.EIO, f"{len(data)} of {last - first} bytes arrived")
            return data

        name = f"{self._name}-{number:08d}"
        return self._kept.get(name, last - first, lambda: persistent(fetch, path))


def open_file(url: str, limits: Limits) -> IO[bytes]:
    """Open a file of 1 to `limits.bytes` bytes by its URL.

    Raises:
      BadClip: it is missing, not a file, empty or too large. OSError: it could not be reached.
    """
    found = facts(url)
    if found.size == 0:
        raise BadClip("empty")
    if found.size > limits.bytes:
        raise BadClip("too_large", f"{found.size} bytes")
    return io.BufferedReader(RemoteFile(found, blocks()))
