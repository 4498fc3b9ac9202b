"""Programs that outlive their process: XLA's cache of executables, and functions traced before.

    $VDM_CACHE/compiled    what XLA made of each program, by the program's own digest
    $VDM_CACHE/traced      StableHLO of samplers, by what they were traced from

A second start of the same thing then neither traces nor compiles. Nothing here is a pickle; still,
what lies in the cache is run, so its folders are its owner's alone. `$VDM_CACHE` is by default the
user's cache folder.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import filelock
import jax
from jax import export

import data_pipeline
import vdm_jax
from data_pipeline.remote import cache_folder

MOST_BYTES = 10 << 30  # of executables; what was longest not used goes first
LEAST_SECONDS = 0.1  # of compiling; what took less is made anew sooner than found
LOCK = ".lockfile"  # JAX's own, beside the entries
LOG = logging.getLogger(__name__)
CHOSEN = {
    "JAX_COMPILATION_CACHE_DIR": "jax_compilation_cache_dir",
    "JAX_COMPILATION_CACHE_MAX_SIZE": "jax_compilation_cache_max_size",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "jax_persistent_cache_min_compile_time_secs",
}


def remember(environment: Mapping[str, str] = os.environ, *, shared: Path | None = None) -> None:
    """From here on, keep what XLA compiles, and use what was kept. JAX's variables go before.

    Args:
      shared: a folder that all processes of a run see: of several, process 0 alone writes.
    """
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        return
    folder = (cache_folder() if shared is None else shared) / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if shared is None:
            sweep(folder)
    except OSError as error:
        LOG.warning("nothing that is compiled is kept: %s.", error)
        return
    wanted = {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        # Bounded, JAX locks the folder at every look: many hosts would queue.
        "JAX_COMPILATION_CACHE_MAX_SIZE": MOST_BYTES if shared is None else -1,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": LEAST_SECONDS,
    }
    for name, value in wanted.items():
        if name not in environment:
            jax.config.update(CHOSEN[name], value)


def sweep(folder: Path) -> None:
    """Remove entries that a killed process left half written: they lack the time of their last use,
    which is written after them, and JAX would neither read them nor write anything beside them."""
    with filelock.FileLock(folder / LOCK, timeout=10):
        for entry in folder.glob("*-cache"):
            if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
                entry.unlink(missing_ok=True)


@functools.cache
def code_digest() -> str:
    """SHA-256, in short, over every Python file of the library."""
    found = sha256()
    for folder in (Path(vdm_jax.__file__).parent, Path(data_pipeline.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            content = path.read_bytes()
            found.update(f"{path.relative_to(folder.parent)} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Traced:
    """Functions as StableHLO in a folder: `traced(name, function, *arguments)` is the function,
    traced if it has not been before.

    `name` must say all that the function depends on besides its arguments' shapes and the code.
    Under a mesh nothing is kept: such a program is for that mesh and its rules alone.

    Attributes:
      made: what was asked for before, by its digest: JAX compiles once for a function, and so these
        have to stay the same ones.
    """

    folder: Path
    made: dict[str, Callable[..., Any]] = dataclasses.field(default_factory=dict, compare=False)

    @classmethod
    def beside(cls) -> Traced:
        """In the user's cache."""
        return cls(cache_folder() / "traced")

    def __call__(
        self, name: str, function: Callable[..., Any], *arguments: Any
    ) -> Callable[..., Any]:
        if not jax.sharding.get_abstract_mesh().empty:
            return function
        shapes = jax.tree.map(jax.typeof, arguments)
        platform = jax.default_backend()
        told = repr((name, shapes, platform, jax.__version__, code_digest()))
        digest = sha256(told.encode()).hexdigest()
        if digest not in self.made:
            self.made[digest] = self._found(digest, function, shapes)
        return self.made[digest]

    def _found(
        self, digest: str, function: Callable[..., Any], shapes: Sequence[Any]
    ) -> Callable[..., Any]:
        path = self.folder / f"{digest}.stablehlo"
        exported = self._read(path)
        if exported is None:
            try:
                exported = export.export(jax.jit(function))(*shapes)
                self._write(path, exported.serialize())
            except (ValueError, NotImplementedError, OSError) as error:
                # A custom call that may change, a callback, or a folder that cannot be written.
                LOG.warning("a program is not kept for the next start: %s.", error)
                return jax.jit(function)
        return jax.jit(exported.call)

    def _read(self, path: Path) -> export.Exported | None:
        try:
            return export.deserialize(bytearray(path.read_bytes()))
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a half file makes of a flatbuffer's reader
            LOG.warning("%s cannot be read (%s); it is made anew.", path, error)
            return None

    def _write(self, path: Path, content: bytes | bytearray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, partial = tempfile.mkstemp(dir=self.folder)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(partial, path)
