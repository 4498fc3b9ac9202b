"""Decoders in processes of their own: one that dies, hangs, is stopped or hoards memory costs its
clip and nothing else.

    caller's thread --- open file, arguments ---> decoder
                    <-- done, or what is bad ----
                    <-- frames, in memory that both have mapped

Each thread that wants something decoded has a decoder to itself and watches it: no thread and no
queue stands between them, so nothing is lost, doubled or moved. The memory is the trainer's, has no
name that could be left behind, and is copied before the decoder may write to it again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any, Protocol

import numpy as np

from data_pipeline.children import Child, Nursery, nursery
from data_pipeline.errors import BadClip
from data_pipeline.files import Limits
from data_pipeline.runner import HERE, Runner, Task

MOST_CRASHES = 5  # decoders that a clip may cost before it is left alone for good
LIMITS = Limits()
WHOLE = 4
SPOOLED = 1 << 20  # bytes that are copied at once
LIVES = 3  # times that a clip is tried while not its decoder but the nursery dies


class Decoder(Protocol):
    """Where a loader or an index has its files decoded."""

    @property
    def limits(self) -> Limits: ...

    def start(self, *tasks: Task) -> Runner:
        """What runs these tasks."""

    def problems(self) -> list[str]:
        """Everything wrong with these settings, one sentence each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InProcess:
    """On the caller's own threads: nothing to start, and no help against a file that kills."""

    limits: Limits = LIMITS

    def start(self, *tasks: Task) -> Runner:
        return HERE

    def problems(self) -> list[str]:
        return self.limits.problems()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """In disposable processes, as many as threads ask at once. Linux only.

    Attributes:
      memory_mib: address space that a decoder may use beyond what it starts with.
      seconds: that a clip may take; a file that is looked at as a whole may take `WHOLE` times as
        many without being read any further.
    """

    memory_mib: int = 1024
    seconds: float = 30.0
    limits: Limits = LIMITS

    def start(self, *tasks: Task) -> Runner:
        return Pool(nursery(tuple(map(_name, tasks))), self.memory_mib << 20, self.seconds)

    def problems(self) -> list[str]:
        found = self.limits.problems()
        if sys.platform != "linux":
            found.append(f"decoder is Workers, which {sys.platform} lacks; take InProcess.")
        if not (isinstance(self.memory_mib, int) and self.memory_mib > 0):
            found.append(f"decoder.memory_mib is {self.memory_mib!r}; it must be at least 1.")
        if not (isinstance(self.seconds, int | float) and 0 < self.seconds < math.inf):
            found.append(f"decoder.seconds is {self.seconds!r}; it must be above 0.")
        return found


DEFAULT: Workers | InProcess = Workers() if sys.platform == "linux" else InProcess()


class Pool:
    """A `Runner` whose tasks run in decoders; any number of threads may ask at once."""

    def __init__(self, nursery: Nursery, memory: int, seconds: float):
        self._nursery, self._memory, self._seconds = nursery, memory, seconds
        self._idle: list[Child] = []
        self._crashes: collections.Counter[tuple[Any, ...]] = collections.Counter()
        self._lock = threading.Lock()
        weakref.finalize(self, _dismiss, self._idle)

    def ask(self, task: Task, *files: IO[bytes], **arguments: Any) -> Any:
        with contextlib.ExitStack() as stack:
            owned = tuple(stack.enter_context(_described(file)) for file in files)
            # Decoder and trainer share one place in the file: it moves while there is progress.
            place = partial(os.lseek, owned[0].fileno(), 0, os.SEEK_CUR)
            return self._run(None, task, owned, arguments, WHOLE * self._seconds, place)

    def fill(self, out: np.ndarray, task: Task, *files: IO[bytes], **arguments: Any) -> None:
        with contextlib.ExitStack() as stack:
            owned = tuple(stack.enter_context(_described(file)) for file in files)
            self._run(out, task, owned, arguments, self._seconds, lambda: 0)

    def _run(
        self,
        out: np.ndarray | None,
        task: Task,
        files: tuple[IO[bytes], ...],
        arguments: dict[str, Any],
        seconds: float,
        place: Callable[[], int],
    ) -> Any:
        clip = _identity(files[0], arguments)
        if self._crashes[clip] >= MOST_CRASHES:
            raise BadClip("quarantined", f"it has cost {MOST_CRASHES} decoders")
        told = {name: _plain(value) for name, value in arguments.items()}
        message = {"task": _name(task), "arguments": told}
        lost, status = ["", ""], None
        for _ in range(LIVES):
            child = self._take()
            try:
                answer = child.call(message, files, out, seconds, place)
            except TimeoutError:
                lost = ["timeout", f"no answer within {seconds:g} seconds"]
            except (EOFError, ConnectionError, ValueError, RecursionError):
                lost = ["crashed", ""]
            except BaseException:
                self._nursery.end(child)
                raise
            else:
                if not answer.get("last"):
                    with self._lock:
                        self._idle.append(child)
                    return _result(answer)
                if "memory" not in answer.get("bad", ()):
                    self._nursery.end(child)
                    return _result(answer)
                lost = ["memory", f"beyond {self._memory >> 20} MiB"]
            status = self._nursery.end(child)
            if status is not None or lost[0] != "crashed":
                break
            # The nursery died, and the decoder with it: the clip has done nothing.
        with self._lock:
            self._crashes[clip] += 1
        raise BadClip(lost[0], lost[1] or _cause(status))

    def _take(self) -> Child:
        """An idle decoder, or a new one."""
        while True:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is None:
                return self._nursery.start(self._memory)
            if child.is_well():
                return child
            self._nursery.end(child)


def _dismiss(idle: list[Child]) -> None:
    """Hang up; decoders end by themselves then."""
    for child in idle:
        child.channel.close()


@contextlib.contextmanager
def _described(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The file, or, where the kernel knows none (a part of a shard, a file on object storage), its
    bytes in one that has no name."""
    try:
        file.fileno()
    except OSError:
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy, SPOOLED)
            copy.seek(0)
            yield copy
    else:
        yield file


def _identity(file: IO[bytes], arguments: dict[str, Any]) -> tuple[Any, ...]:
    """Names a clip: a file, and where in it."""
    status, first = os.fstat(file.fileno()), getattr(arguments.get("view"), "first", None)
    if status.st_nlink:
        return status.st_dev, status.st_ino, first
    digest = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
    file.seek(0)
    return digest, first  # of a copy of ours, made anew each time


def _name(task: Task) -> str:
    return f"{task.__module__}:{task.__qualname__}"


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


def _result(answer: dict[str, Any]) -> Any:
    if "bad" in answer:
        raise BadClip(*answer["bad"])
    if "error" in answer:
        raise OSError(*answer["error"])
    return answer["done"]


def _cause(status: int | None) -> str:
    if status is None:
        return "nobody knows how"
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
