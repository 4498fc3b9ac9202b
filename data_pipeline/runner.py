"""Where a task on an open file runs: on the caller's own thread, or in another process.

A task is a function of a module: open files by place, everything else by name. It either returns
what JSON can say, or fills an array of bytes that it is given as `out`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any, Protocol

import numpy as np

Task = Callable[..., Any]


class Runner(Protocol):
    """Raises, whatever it is asked: what the task raises, or `BadClip` if its process did not
    survive it."""

    def ask(self, task: Task, *files: IO[bytes], **arguments: Any) -> Any:
        """What a task returns that looks at a file as a whole."""

    def fill(self, out: np.ndarray, task: Task, *files: IO[bytes], **arguments: Any) -> None:
        """Have `out`, uint8, filled by a task that decodes one clip."""


class Here:
    """The caller's own thread; a decoder that dies or hangs takes the caller with it."""

    def ask(self, task: Task, *files: IO[bytes], **arguments: Any) -> Any:
        return task(*files, **arguments)

    def fill(self, out: np.ndarray, task: Task, *files: IO[bytes], **arguments: Any) -> None:
        task(*files, out=out, **arguments)


HERE = Here()
