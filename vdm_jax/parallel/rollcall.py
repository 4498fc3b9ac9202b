"""Every process of a run calls in before it begins, and is missed at once if it dies later.

JAX's own start waits for processes that never come and then aborts without a name, and one that
dies is missed after 100 seconds, by another abort. So process 0 first takes a roll call on the port
that JAX's coordinator will have, and says who did not come; the connections stay open, and one that
breaks, or that tells of a failure, ends all the others within `GRACE_S`. Lines of JSON:

    to process 0    {"process": i, "processes": n}, at last {"done": true} or {"failed", "code"}
    from it         {"all": n} or {"missing": words}, at last {"done": true} or {"lost", "code"}

A process that hangs with its connections open is JAX's affair: its heartbeats stop.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from vdm_jax.config import UserError
from vdm_jax.parallel.hosts import HostError

LONGEST = 4096  # bytes of a line
HELLO_S = 5.0  # for who connected to say who it is
GRACE_S = 2.0  # for a process to end by its own words, which are better than "gone"
AGAIN = "start the run again, and it goes on from its last checkpoint"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Process `index` of `count`; process 0 is to be found at `host`:`port`."""

    host: str
    port: int
    index: int
    count: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


class Line:
    """A connection on which lines of JSON go both ways."""

    def __init__(self, connection: socket.socket):
        self.socket, self._held = connection, b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):  # a machine that lost its power sends no farewell
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)

    def say(self, **words: Any) -> None:
        with contextlib.suppress(OSError):  # who is gone is missed by whoever listens
            self.socket.sendall(json.dumps(words).encode() + b"\n")

    def hear(self, seconds: float | None = None) -> dict[str, Any] | None:
        """The next line; None when the other side is gone, or says nothing that makes sense.

        Raises: TimeoutError, nothing came.
        """
        self.socket.settimeout(seconds)
        try:
            while b"\n" not in self._held and len(self._held) < LONGEST:
                more = self.socket.recv(LONGEST)
                if not more:
                    return None
                self._held += more
            line, _, self._held = self._held.partition(b"\n")
            said = json.loads(line)
        except TimeoutError:
            raise
        except (OSError, ValueError):
            return None
        return said if isinstance(said, dict) else None

    def gone(self) -> bool:
        """Whether the other side has hung up; does not wait."""
        self.socket.setblocking(False)
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


def take(place: Place, seconds: float) -> dict[int, Line]:
    """Wait until all processes have called in: process 0's line to each other one, else the one to
    process 0.

    Raises:
      HostError: the port is taken, nobody answers at the address, or not all came in time; said to
        all that came. UserError: processes that disagree on how many there are.
    """
    until = time.monotonic() + seconds
    return _gather(place, until, seconds) if place.index == 0 else {0: _report(place, until)}


def _gather(place: Place, until: float, seconds: float) -> dict[int, Line]:
    lines: dict[int, Line] = {}
    try:
        with _listen(place) as listener:
            while len(lines) < place.count - 1:
                listener.settimeout(max(0.0, until - time.monotonic()) or 1e-3)
                connection, peer = listener.accept()
                line = Line(connection)
                index = _introduced(line, place, lines, peer[0])
                if index is not None:
                    lines[index] = line
    except TimeoutError:
        absent = sorted({*range(1, place.count)} - lines.keys())
        words = _missing(absent, place, seconds)
        for line in lines.values():
            line.say(missing=words)
        raise HostError(words) from None
    except UserError as error:
        for line in lines.values():
            line.say(missing=str(error), code=error.code)
        raise
    for line in lines.values():
        line.say(all=place.count)
    return lines


def _listen(place: Place) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", place.port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=min(place.count, 1024),
        )
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is in use" if taken else f"cannot be had ({error.strerror})"
        raise HostError(
            f"port {place.port} of process 0 {why}; take another one for all processes, with "
            "--coordinator=HOST:PORT."
        ) from None


def _introduced(line: Line, place: Place, lines: dict[int, Line], peer: str) -> int | None:
    """Who called; None for a stranger.

    Raises: UserError, it is nobody that can be of this run.
    """
    try:
        said = line.hear(HELLO_S) or {}
    except TimeoutError:
        return None
    index, count = said.get("process"), said.get("processes")
    if not isinstance(index, int) or not isinstance(count, int):
        line.socket.close()
        return None
    if index in lines and lines[index].gone():
        del lines[index]  # it died while it waited, and was started again
    if count != place.count or not 0 < index < count or index in lines:
        twice = " once more" if index in lines or index == 0 else ""
        words = (
            f"{peer} called in as process {index} of {count}{twice}, but this run has "
            f"{place.count} processes, each once; give all of them the same number."
        )
        line.say(missing=words, code=2)
        raise UserError(words)
    return index


def _report(place: Place, until: float) -> Line:
    why = "nobody answers there"
    while True:
        left = until - time.monotonic()
        if left <= 0:
            raise HostError(
                f"process {place.index} found no process 0 at {place.address} in time: {why}; is "
                "the address right, and does process 0 run?"
            )
        try:
            connection = socket.create_connection((place.host, place.port), timeout=left)
        except OSError as error:
            named = isinstance(error, socket.gaierror)
            reason = f"there is no host '{place.host}'" if named else error.strerror or str(error)
            why = f"nobody answers there ({reason})"
            time.sleep(min(0.2, left))
            continue
        line = Line(connection)
        line.say(process=place.index, processes=place.count)
        with contextlib.suppress(TimeoutError):
            said = line.hear(left + 2 * GRACE_S) or {}  # process 0's own time is up first
            if "all" in said:
                return line
            if "missing" in said:
                code = said.get("code")
                code = code if isinstance(code, int) else HostError.CODE
                raise HostError(str(said["missing"])[:500], code)
        why = "who answers there is no process of this run"
        line.socket.close()
        time.sleep(min(0.2, left))


def _missing(absent: list[int], place: Place, seconds: float) -> str:
    shown = ", ".join(map(str, absent[:8])) + (" ..." if len(absent) > 8 else "")
    return (
        f"{len(absent)} of {place.count} processes did not come to {place.address} within "
        f"{seconds:g} s (number {shown}); look at what they said themselves."
    )


def end(words: str, code: int) -> NoReturn:
    """Leave now: the others will not come to an orderly shutdown, and it would wait for them."""
    if words:
        print(f"vdm: {words}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def watch(
    place: Place, lines: dict[int, Line], ending: Callable[[str, int], None] = end
) -> Iterator[None]:
    """While the block runs, who is gone or has failed ends this process too, by `ending`.

    What is raised in the block is told to the others, with its exit code.
    """
    watcher = _Watcher(place, lines, ending)
    for index in lines:
        threading.Thread(
            target=watcher.listen, args=(index,), daemon=True, name=f"line-{index}"
        ).start()
    try:
        yield
    except BaseException as error:
        code = getattr(error, "code", None)
        lost = None
        if isinstance(error, Exception) and not isinstance(code, int):
            # A collective breaks when a process dies: who died is what matters.
            lost = watcher.lost(GRACE_S)
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        watcher.tell(failed=said[:500], code=code if isinstance(code, int) else HostError.CODE)
        final = lost[1] if lost else code if isinstance(code, int) else 1
        # Python's own end would wait at JAX's barrier for those that end by `failed`.
        atexit.register(ending, "", final)
        if lost:
            raise HostError(*lost) from error
        raise
    watcher.tell(done=True)


class _Watcher:
    def __init__(self, place: Place, lines: dict[int, Line], ending: Callable[[str, int], None]):
        self.place, self.lines, self.ending = place, lines, ending
        self._leaving, self._heard = threading.Event(), threading.Event()
        self._loss: tuple[str, int] | None = None
        self._lock = threading.Lock()

    def lost(self, seconds: float) -> tuple[str, int] | None:
        """(words, exit code) of the first loss, if one is heard of in time; the block is left."""
        self._leaving.set()
        self._heard.wait(seconds)
        return self._loss

    def tell(self, **words: Any) -> None:
        """To process 0, or from it to all; from here on nobody's end is a surprise."""
        self._leaving.set()
        if self.place.index == 0 and "failed" in words:
            words = {"lost": f"process 0 failed: {words['failed']}", "code": words["code"]}
        for line in self.lines.values():
            line.say(**words)

    def listen(self, index: int) -> None:
        said = self.lines[index].hear()
        if said is None:
            self._miss(f"process {index} is gone; {AGAIN}.", HostError.CODE)
        elif not said.get("done"):
            code = said.get("code")
            words = said.get("lost") or f"process {index} failed: {said.get('failed')}"
            self._miss(str(words), code if isinstance(code, int) else HostError.CODE)

    def _miss(self, words: str, code: int) -> None:
        with self._lock:
            if self._loss is not None:
                return
            self._loss = words, code
        if self.place.index == 0:
            for line in self.lines.values():
                line.say(lost=words, code=code)
        self._heard.set()  # not before the others know, or what fails here of it is told first
        time.sleep(GRACE_S)
        if not self._leaving.is_set():
            self.ending(words, code)
