"""The trainer's ends of the processes that decode: the nursery, its children, and patience."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import mmap
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_pipeline import failpoints, wire
from data_pipeline.errors import DataError

SLICE_S = 0.25
START_S = 120.0  # to import numpy and FFmpeg on a machine that is busy
ANSWER_S = 15.0  # to fork, or to end a child
END_S = 5.0
SMALLEST = 1 << 20  # bytes of shared memory
ROOT = Path(__file__).parents[1]
# One thread each, as a decoder has: many clips are decoded at once.
LIBRARIES = ("OPENBLAS", "OMP", "MKL")
ALONE = {f"{name}_NUM_THREADS": "1" for name in LIBRARIES} | {"OPENCV_FOR_THREADS_NUM": "1"}


class Patience:
    """Waits for an answer, `seconds` from when `place` moved last.

    It waits in slices: while the trainer itself is stopped, no time passes.
    """

    def __init__(self, channel: socket.socket, seconds: float, place: Callable[[], int]):
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._seconds, self._place = seconds, place
        self._left, self._last = seconds, place()

    def __call__(self) -> None:
        """Raises: TimeoutError."""
        while not self._poll.poll(1000 * min(SLICE_S, self._left)):
            self._left -= SLICE_S
            now = self._place()
            if now != self._last:
                self._left, self._last = self._seconds, now
            if self._left <= 0:
                raise TimeoutError


class Child:
    """A decoder, used by one thread at a time."""

    def __init__(self, pid: int, nursery: int, channel: socket.socket):
        self.pid, self.nursery, self.channel = pid, nursery, channel
        self._shared: mmap.mmap | None = None

    def is_well(self) -> bool:
        """Whether an idle decoder is still there: it says nothing that was not asked."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        return not poll.poll(0)

    def call(
        self,
        message: dict[str, Any],
        files: Sequence[IO[bytes]],
        out: np.ndarray | None,
        seconds: float,
        place: Callable[[], int],
    ) -> Any:
        """Its answer to a task; `out`, if any, is filled where that is `done`.

        Raises:
          TimeoutError, EOFError, ConnectionError; ValueError and RecursionError for an answer that
          is none. It must not be used again then.
        """
        handles, added = [file.fileno() for file in files], list[int]()
        message |= {"shape": None, "shared": 0}
        if out is not None:
            message["shape"] = out.shape
            if self._shared is None or len(self._shared) < out.nbytes:
                size = max(SMALLEST, 1 << (out.nbytes - 1).bit_length())
                added = [_make_shared(size)]
                self._shared = mmap.mmap(added[0], size)
                message["shared"] = size
        try:
            wire.send(self.channel, message, handles + added)
        finally:
            _close(added)
        answer, unasked = wire.receive(self.channel, Patience(self.channel, seconds, place))
        _close(unasked)
        _check(answer)
        if out is not None and self._shared is not None and "done" in answer:
            out[...] = np.frombuffer(self._shared, np.uint8, out.nbytes).reshape(out.shape)
        return answer


def _check(answer: Any) -> None:
    """Raises: ValueError, unless it is one of the three answers there are."""
    match answer:
        case {"done": _} | {"bad": [str(), str()]} | {"error": [int(), str()]}:
            return
    raise ValueError("no answer")


def _make_shared(size: int) -> int:
    """Memory without a name, so none can be left behind; nobody can make it smaller, and the
    trainer fault, or larger."""
    handle = os.memfd_create("decoded", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(handle, size)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, seals)
    return handle


def _close(handles: Sequence[int]) -> None:
    for handle in handles:
        os.close(handle)


class Nursery:
    """The process that children are forked from, begun when the first is wanted and again should it
    end."""

    def __init__(self, tasks: Sequence[str]):
        self._tasks = tasks
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready = False  # it has answered once
        atexit.register(self._stop)

    def start(self, memory: int) -> Child:
        """A new child, which may use `memory` bytes.

        Raises:
          DataError: code 70, this machine cannot start one.
        """
        message = {"memory": memory, "failpoints": os.environ.get(failpoints.NAME, "")}
        with self._lock:
            for _ in range(2):
                process = self._begin()
                mine, theirs = socket.socketpair()
                with theirs:
                    pid = self._say(message, [theirs.fileno()])
                if pid is not None:
                    return Child(pid, process.pid, mine)
                mine.close()
        raise DataError(
            f"decoders cannot be started: '{sys.executable} -m data_pipeline.nursery' ended or "
            "was silent; see what it wrote, or take decoder=InProcess().",
            code=70,
        )

    def end(self, child: Child) -> int | None:
        """Kill a child, unless it is dead; its exit status, or None where nobody knows."""
        with self._lock:
            mine = self._process is not None and self._process.pid == child.nursery
            status = self._say({"end": child.pid}) if mine else None
        child.channel.close()
        return status

    def _begin(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._control, theirs = socket.socketpair()
            with theirs:
                self._ready = False
                words = ["-P", "-m", "data_pipeline.nursery", str(theirs.fileno()), *self._tasks]
                path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
                self._process = subprocess.Popen(
                    [sys.executable, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=os.environ | ALONE | {"PYTHONPATH": path},
                )
        return self._process

    def _say(self, message: dict[str, Any], files: Sequence[int] = ()) -> Any:
        """The nursery's answer; None, and the nursery ended, where there is none."""
        assert self._control is not None
        try:
            wire.send(self._control, message, files)
            seconds = ANSWER_S if self._ready else START_S
            answer, _ = wire.receive(self._control, Patience(self._control, seconds, lambda: 0))
            self._ready = True
            return answer
        except (TimeoutError, EOFError, ConnectionError):
            self._stop()
            return None

    def _stop(self) -> None:
        if self._process is None or self._control is None:
            return
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._process.kill()
        self._process.wait()
        self._process = self._control = None


@functools.cache
def nursery(tasks: tuple[str, ...]) -> Nursery:
    """The nursery of these tasks; one serves all pools of a process."""
    return Nursery(tasks)
