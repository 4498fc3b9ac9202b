"""What the kernel says of the processes that decode."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

NURSERY = "data_pipeline.nursery"


def family(parent: int) -> set[int]:
    """Every living process that descends from one; zombies are dead."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                state, above = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(folder.name)] = int(above)
    found: set[int] = set()
    while more := {pid for pid, above in parents.items() if above in found | {parent}} - found:
        found |= more
    return found


def named(parent: int, word: str) -> set[int]:
    """Those of a family whose command line has a word."""
    found = set()
    for pid in family(parent):
        with contextlib.suppress(OSError):
            if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def nurseries() -> set[int]:
    """Of this process."""
    return {pid for pid in named(os.getpid(), NURSERY) if _parent(pid) == os.getpid()}


def decoders() -> set[int]:
    """Of this process."""
    return named(os.getpid(), NURSERY) - nurseries()


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def lives(pid: int) -> bool:
    """Whether a process is still there, and no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def peak(pid: int) -> int:
    """Bytes of memory that a process has held at most; 0, if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def watched() -> Iterator[dict[int, int]]:
    """{decoder: the most memory it held}, looked at again and again until the end."""
    found: dict[int, int] = {}
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            for pid in decoders():
                found[pid] = max(found.get(pid, 0), peak(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
        for pid in decoders():
            found[pid] = max(found.get(pid, 0), peak(pid))
    finally:
        done.set()
        thread.join()
