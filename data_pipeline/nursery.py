"""The process that decoders are forked from, and what a decoder does. It never holds JAX.

    trainer --- nursery          forks on request; looks at no file
        \\          |
         `----- decoders         each at the trainer's end of a socket of its own

The nursery imports what decoders need, once, and has one thread: to fork it is safe and takes
milliseconds, so a decoder that died is replaced at once. Both ignore SIGTERM and SIGINT, since the
trainer saves first. Neither outlives the trainer: the nursery ends when its socket does or its
parent is another, and the kernel kills a decoder, whatever it is busy with, when the nursery ends.

    python -m data_pipeline.nursery DESCRIPTOR MODULE:FUNCTION ...
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import mmap
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image

from data_pipeline import failpoints, wire
from data_pipeline.decode import View
from data_pipeline.errors import BadClip
from data_pipeline.files import Limits
from data_pipeline.runner import Task

POLL_S = 1.0  # between two looks at who the parent is
DEATH_S = 2.0  # that a killed decoder may take to end; a disk may hold it back longer
PR_SET_PDEATHSIG = 1
DISPENSABLE = "800"  # of a thousand: the system kills a decoder before it kills the trainer
RECORDS = {"limits": Limits, "view": View}


def main(words: Sequence[str]) -> None:
    parent = os.getppid()
    for ignored in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    control = socket.socket(fileno=int(words[0]))
    tasks = {name: _task(name) for name in words[1:]}
    PIL.Image.init()  # not by every decoder anew
    gc.collect()
    gc.freeze()  # what is shared with the decoders stays shared
    children: dict[int, int | None] = {}  # pid -> exit status
    while os.getppid() == parent:
        _bury(children)
        if not select.select([control], [], [], POLL_S)[0]:
            continue
        try:
            message, files = wire.receive(control)
            if "end" in message:
                answer = _end(message["end"], children)
            else:
                answer = _start(control, files[0], message, tasks)
                children[answer] = None
            wire.send(control, answer)
        except (EOFError, ConnectionError):
            return


def _task(name: str) -> Task:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _start(control: socket.socket, end: int, message: Any, tasks: Mapping[str, Task]) -> int:
    nursery = os.getpid()
    pid = os.fork()
    if pid:
        os.close(end)
        return pid
    try:
        control.close()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == nursery:
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text(DISPENSABLE)
            failpoints.arm(message["failpoints"])
            _decode_until_gone(socket.socket(fileno=end), tasks, message["memory"])
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _bury(children: dict[int, int | None]) -> None:
    """Note who has ended."""
    for child in [pid for pid, status in children.items() if status is None]:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            children[child] = os.waitstatus_to_exitcode(status)


def _end(pid: int, children: dict[int, int | None]) -> int | None:
    """Kill a decoder, unless it is dead; its exit status, if it is known."""
    until = time.monotonic() + DEATH_S
    if children.get(pid, 0) is None:
        os.kill(pid, signal.SIGKILL)
    while children.get(pid, 0) is None and time.monotonic() < until:
        time.sleep(1e-3)
        _bury(children)
    return None if children.get(pid) is None else children.pop(pid)


def _decode_until_gone(channel: socket.socket, tasks: Mapping[str, Task], memory: int) -> None:
    """A decoder: do tasks until the trainer hangs up or an answer is the `last`."""
    baseline = _address_space()
    shared: mmap.mmap | None = None
    answer: dict[str, Any] = {}
    while not answer.get("last"):
        try:
            message, files = wire.receive(channel)
        except (EOFError, ConnectionError):
            return
        if message["shared"]:
            handle = files.pop()
            shared = mmap.mmap(handle, message["shared"])
            os.close(handle)
        # What is handed back was planned by the trainer and is not the file's to answer for.
        own = baseline + (len(shared) if shared else 0)
        resource.setrlimit(resource.RLIMIT_AS, (own + memory, resource.RLIM_INFINITY))
        opened = [os.fdopen(handle, **_mode(handle)) for handle in files]
        answer = _do(tasks[message["task"]], opened, message, shared)
        # What a library leaks must not be charged to the clips that come after.
        full = _address_space() > own + memory // 2
        answer["last"] = full or "memory" in answer.get("bad", ())
        wire.send(channel, answer)


def _address_space() -> int:
    """Bytes that this process has mapped."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * mmap.PAGESIZE


def _mode(handle: int) -> dict[str, Any]:
    writes = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    return {"mode": "wb"} if writes else {"mode": "rb", "buffering": 0}


def _do(task: Task, files: list[IO[bytes]], message: Any, shared: mmap.mmap | None) -> Any:
    """`done`: what the task returned, `bad`: reason and detail, or `error`: number and text.
    `last`, added later, says whether the decoder ends now."""
    arguments = {name: _argument(name, value) for name, value in message["arguments"].items()}
    if message["shape"] and shared:
        count = int(np.prod(message["shape"]))
        arguments["out"] = np.frombuffer(shared, np.uint8, count).reshape(message["shape"])
    try:
        done = task(*files, **arguments)
        for file in files:
            file.close()
        return {"done": done}
    except BadClip as bad:
        return {"bad": [bad.reason, bad.detail]}
    except MemoryError:
        return {"bad": ["memory", ""]}
    except OSError as error:
        return {"error": [error.errno or 0, error.strerror or str(error)]}
    except Exception as error:
        return {"bad": ["decoder", f"{type(error).__name__}: {error}"]}
    finally:
        for file in files:
            with contextlib.suppress(OSError):
                file.close()


def _argument(name: str, value: Any) -> Any:
    """A record again, where it was one."""
    if name not in RECORDS:
        return value
    fields = {key: tuple(part) if isinstance(part, list) else part for key, part in value.items()}
    return RECORDS[name](**fields)


if __name__ == "__main__":
    main(sys.argv[1:])
