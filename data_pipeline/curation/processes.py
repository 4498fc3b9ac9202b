"""Where clips are looked at: processes of this machine, of one thread each.

A file that kills its process costs one clip: the clips that were under way then are looked at again
one at a time, and the one that kills again is left out. Processes end with the one that started
them, however that ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

import cv2
import pyarrow as pa

from data_pipeline.curation.chain import WIDEN, batches, left_out

Task = Callable[[pa.Table], pa.Table]  # clips -> what is found of them


class Engine(Protocol):
    """Where tasks run; what they find does not depend on it."""

    @property
    def part(self) -> int:
        """Clips that are given to it at a time; what was found of them is kept then."""

    def running(
        self, task: Task
    ) -> contextlib.AbstractContextManager[Callable[[pa.Table], Iterator[pa.Table]]]:
        """Within it, a function from clips to what is found of them, in tables as they come."""

    def problems(self) -> list[str]:
        """What is wrong with its settings, a sentence each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """`count` processes, by default one a core; each is given `batch` clips at a time."""

    count: int | None = None
    batch: int = 8
    part: int = 512

    @contextlib.contextmanager
    def running(self, task: Task) -> Iterator[Callable[[pa.Table], Iterator[pa.Table]]]:
        crew = Crew(task, self.count or os.cpu_count() or 1)
        try:
            yield lambda clips: crew.look(batches(clips, self.batch))
        finally:
            crew.close()

    def problems(self) -> list[str]:
        return [
            f"Processes.{name} is {value}; it must be at least 1."
            for name, value in dataclasses.asdict(self).items()
            if value is not None and value < 1
        ]


class Crew:
    """Processes that all know one task."""

    def __init__(self, task: Task, count: int):
        self._task, self._count = task, count
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._count, context, _prepare, (self._task,))

    def look(self, clips: Sequence[pa.Table]) -> Iterator[pa.Table]:
        """What is found of each table of clips, in their order."""
        asked = [_ask(self._pool, some) for some in clips]
        broken = False
        for some, answer in zip(clips, asked, strict=True):
            try:
                yield answer.result()
            except BrokenProcessPool:
                # All that was under way is lost with it.
                if not broken:
                    self._renew()
                broken = True
                yield self._carefully(some)

    def _carefully(self, clips: pa.Table) -> pa.Table:
        """The same, while nothing else is under way."""
        try:
            return _ask(self._pool, clips).result()
        except BrokenProcessPool:
            self._renew()
            if len(clips) == 1:
                return left_out(clips, "crashed", "its process did not survive it")
            alone = [self._carefully(one) for one in batches(clips, 1)]
            return pa.concat_tables(alone, **WIDEN)

    def _renew(self) -> None:
        self._pool.shutdown()
        self._pool = self._start()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _ask(pool: ProcessPoolExecutor, clips: pa.Table) -> Future[pa.Table]:
    try:
        return pool.submit(_run, clips)
    except BrokenProcessPool as error:
        failed: Future[pa.Table] = Future()
        failed.set_exception(error)
        return failed


_task: Task


def _prepare(task: Task) -> None:
    """In a new process."""
    global _task
    _task = task
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started it says when to stop
    threading.Thread(target=_outlive, daemon=True).start()


def _outlive() -> None:
    """End when the process that started this one has."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(clips: pa.Table) -> pa.Table:
    return _task(clips)
