"""The envelope of a checkpoint: digests of every file, a commit marker, verification, quarantine.

A finalised folder `<step>/` is sealed by two more files, written last and in this order:

    MANIFEST.json  format, step, size and SHA-256 of every file, the tree's fingerprint, meta
    COMMIT         format and the SHA-256 of MANIFEST.json

A checkpoint exists only if COMMIT and MANIFEST agree; it is good only if every file agrees with the
manifest and nothing else lies in the folder. Storage libraries find truncation but not a flipped
bit, and follow links, so `verify` runs before any of them touches the folder. POSIX storage gets
fsync; object stores need none and cannot rename, so a sealed folder is marked, never moved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from etils import epath

from vdm_jax.config import UserError
from vdm_jax.parallel.hosts import Hosts

FORMAT = 1
COMMIT, MANIFEST = "COMMIT", "MANIFEST.json"
COMMIT_BYTES, MANIFEST_BYTES = 4096, 256 * 2**20  # more than this is hostile
THREADS = 8
BLOCK = 2**20


class Damaged(UserError):
    """A checkpoint that must not be used: `step`, `file` and `reason`, a word for its new name."""

    def __init__(self, step: str, file: str, reason: str, detail: str):
        super().__init__(f"checkpoint {step} is damaged: {file}: {detail}.", code=4)
        self.step, self.file, self.reason, self.detail = step, file, reason, detail


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a sealed checkpoint says of itself.

    Attributes:
      files: relative path -> (bytes, SHA-256).
      fingerprint: item -> its leaves, each {"path": [...], "shape": [...], "dtype": "..."}.
      meta: whatever JSON the writer of the checkpoint gave.
    """

    step: int
    files: Mapping[str, tuple[int, str]]
    fingerprint: Mapping[str, list[dict[str, Any]]]
    meta: Mapping[str, Any]

    def to_json(self) -> bytes:
        fields = {"format": FORMAT} | dataclasses.asdict(self)
        return json.dumps(fields, sort_keys=True, allow_nan=False).encode()


def seal(
    folder: epath.Path,
    *,
    step: int,
    fingerprint: Mapping[str, Any],
    meta: Mapping[str, Any],
    hosts: Hosts,
) -> None:
    """Hash every file (each host its share), make all durable, write MANIFEST, then COMMIT."""

    def share() -> dict[str, tuple[int, str]]:
        mine = dict(sorted(entries(folder).items())[hosts.index :: hosts.count])
        digests = _digests(folder, mine, durable=True)
        return {file: (size, digests[file]) for file, size in mine.items()}

    files: dict[str, tuple[int, str]] = {}
    for part in hosts.agree("share", share):
        files |= {file: (size, digest) for file, (size, digest) in part.items()}

    def commit() -> None:
        if hosts.index == 0:
            manifest = Manifest(
                step=step, files=files, fingerprint=dict(fingerprint), meta=dict(meta)
            )
            text = manifest.to_json()
            _sync_folders(folder)
            write(folder / MANIFEST, text)
            marker = {"format": FORMAT, "manifest": hashlib.sha256(text).hexdigest()}
            write(folder / COMMIT, json.dumps(marker).encode())

    hosts.agree("commit", commit)


def verify(folder: epath.Path, hosts: Hosts) -> Manifest:
    """Read every byte (each host its share) and compare it with the manifest.

    Raises:
      Damaged: on every host, with the first thing wrong.
    """
    manifest: list[Manifest] = []

    def check() -> list[str] | None:
        try:
            found = read_manifest(folder)
            _check_files(folder, found, hosts)
        except Damaged as damage:
            return [damage.file, damage.reason, damage.detail]
        except OSError as error:
            file = os.path.relpath(str(error.filename or folder), str(folder))
            return [file, "unreadable", error.strerror or str(error)]
        manifest.append(found)
        return None

    for problem in hosts.agree("verify", check):
        if problem is not None:
            raise Damaged(folder.name, problem[0], problem[1], problem[2])
    return manifest[0]


def sealed(folder: epath.Path) -> bool:
    """Whether COMMIT and MANIFEST agree with each other and the folder's name; reads no data."""
    try:
        read_manifest(folder)
    except (Damaged, OSError):
        return False
    return True


def read_manifest(folder: epath.Path) -> Manifest:
    """The manifest, checked against COMMIT and against the folder's name.

    Raises:
      Damaged: a marker is missing, is no regular file, disagrees, or is of a later format.
    """
    step = folder.name
    if is_local(folder) and not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise Damaged(step, ".", "not-a-folder", "a link or no folder")
    marker = _json(step, COMMIT, _small(folder, COMMIT, COMMIT_BYTES, "no-commit"))
    _check_format(step, COMMIT, marker)
    text = _small(folder, MANIFEST, MANIFEST_BYTES, "no-manifest")
    if hashlib.sha256(text).hexdigest() != marker.get("manifest"):
        raise Damaged(step, MANIFEST, "manifest", "it and COMMIT disagree")
    fields = _json(step, MANIFEST, text)
    _check_format(step, MANIFEST, fields)
    try:
        manifest = Manifest(
            step=int(fields["step"]),
            files={name: (int(size), str(sha)) for name, (size, sha) in fields["files"].items()},
            fingerprint=fields["fingerprint"],
            meta=fields["meta"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(step, MANIFEST, "manifest", f"not a manifest ({error!r})") from error
    if str(manifest.step) != step:
        raise Damaged(step, MANIFEST, "step", f"it was written for step {manifest.step}")
    return manifest


def quarantine(folder: epath.Path, reason: str) -> str:
    """Rename `<step>` to `<step>.corrupt-<reason>`; on an object store leave a marker so named.

    Nothing is ever deleted. Returns the new name.
    """
    base = f"{folder.name}.corrupt-{reason}"
    taken = {path.name for path in folder.parent.iterdir()}
    name = next(n for n in _numbered(base) if n not in taken)
    if is_local(folder):
        os.rename(folder, folder.parent / name)
        sync_folder(folder.parent)
    else:
        (folder.parent / name).write_text("see the folder of this step")
    return name


def is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)


def entries(folder: epath.Path) -> dict[str, int]:
    """Relative path -> bytes of every file of a folder, our two markers apart.

    Raises:
      Damaged: something is neither a regular file nor a folder; links are not followed.
    """
    walk = _walk_local(folder, os.fspath(folder)) if is_local(folder) else _walk(folder, "")
    return {file: size for file, size in walk if file not in (COMMIT, MANIFEST)}


def write(path: epath.Path, content: bytes) -> None:
    """Write a small file and make it durable, with its name."""
    path.write_bytes(content)
    if is_local(path):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)


def sync_folder(folder: epath.Path) -> None:
    """Make the names in a folder durable."""
    if is_local(folder):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check_files(folder: epath.Path, manifest: Manifest, hosts: Hosts) -> None:
    step, found = folder.name, entries(folder)
    for file in sorted(manifest.files.keys() | found.keys()):
        if file not in found:
            raise Damaged(step, file, "missing-file", "it is missing")
        if file not in manifest.files:
            raise Damaged(step, file, "extra-file", "the manifest does not know it")
        if found[file] != manifest.files[file][0]:
            size = manifest.files[file][0]
            raise Damaged(step, file, "size", f"{found[file]} bytes instead of {size}")
    mine = sorted(found)[hosts.index :: hosts.count]
    digests = _digests(folder, mine, durable=False)
    for file in mine:
        if digests[file] != manifest.files[file][1]:
            raise Damaged(step, file, "digest", "its SHA-256 differs from the manifest's")


def _digests(folder: epath.Path, files: Iterable[str], *, durable: bool) -> dict[str, str]:
    def digest(file: str) -> str:
        found = hashlib.sha256()
        with _open(folder / file) as stream:
            while block := stream.read(BLOCK):
                found.update(block)
            if durable and is_local(folder):
                os.fsync(stream.fileno())
        return found.hexdigest()

    names = list(files)
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def _open(path: epath.Path) -> IO[bytes]:
    if not is_local(path):
        return path.open("rb")
    # Not blocking: a pipe in the place of a file must fail, not wait for ever.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    return os.fdopen(handle, "rb", buffering=0)


def _small(folder: epath.Path, name: str, most: int, missing: str) -> bytes:
    path = folder / name
    if is_local(path):
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            raise Damaged(folder.name, name, missing, "it is missing") from None
        if not stat.S_ISREG(mode):
            raise Damaged(folder.name, name, "not-regular", "a link or no regular file")
    elif not path.exists():
        raise Damaged(folder.name, name, missing, "it is missing")
    with _open(path) as stream:
        text = stream.read(most + 1)
    if len(text) > most:
        raise Damaged(folder.name, name, "size", f"more than {most} bytes")
    return text


def _json(step: str, file: str, text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(step, file, "manifest", "it is not JSON") from error
    if not isinstance(found, dict):
        raise Damaged(step, file, "manifest", "it is not a JSON object")
    return found


def _check_format(step: str, file: str, fields: Mapping[str, Any]) -> None:
    version = fields.get("format")
    if version != FORMAT:
        detail = f"format {version!r}, this library reads {FORMAT}; a later one may have written it"
        raise Damaged(step, file, "format", detail)


def _walk_local(folder: epath.Path, top: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as found:
        for entry in found:
            file = os.path.relpath(entry.path, top)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk_local(epath.Path(entry.path), top)
            elif entry.is_file(follow_symlinks=False):
                yield file, entry.stat(follow_symlinks=False).st_size
            else:
                step = os.path.basename(top)
                raise Damaged(step, file, "not-regular", "a link or no regular file")


def _walk(folder: epath.Path, prefix: str) -> Iterator[tuple[str, int]]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path, f"{prefix}{path.name}/")
        else:
            yield f"{prefix}{path.name}", path.stat().length


def _sync_folders(folder: epath.Path) -> None:
    if is_local(folder):
        for top, _, _ in os.walk(folder):
            sync_folder(epath.Path(top))


def _numbered(base: str) -> Iterator[str]:
    yield base
    number = 2
    while True:
        yield f"{base}-{number}"
        number += 1
