"""Places where a test makes decoding fail on purpose; nothing happens unless a variable says so.

    VDM_FAILPOINT="decode.frame:hang@17;decode.read:eio@1"

at the seventeenth frame that a process decodes it stops making progress, and its first read fails.
Without `@n` it happens every time.

    decode.read    before the first byte of a file is read, in the process that decodes it
    decode.frame   before a decoded frame is used
"""

from __future__ import annotations

import collections
import errno
import os
import signal

NAME = "VDM_FAILPOINT"


def reach(place: str) -> None:
    """Do what is asked for here."""
    if _armed:
        _count[place] += 1
        for action, number in _armed.get(place, ()):
            if number in (None, _count[place]):
                _do(action)


def arm(text: str) -> None:
    """Ask for other failures than the variable did, and count from 0.

    Raises:
      ValueError: an action that is not one of `ACTIONS`.
    """
    _armed.clear()
    _count.clear()
    for part in filter(None, text.split(";")):
        place, _, rest = part.partition(":")
        action, _, number = rest.partition("@")
        if action not in ACTIONS:
            raise ValueError(f"{NAME} asks for '{action}'; there are {', '.join(ACTIONS)}.")
        _armed.setdefault(place, []).append((action, int(number) if number else None))


def _do(action: str) -> None:
    if action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[action])
    elif action == "hang":
        while True:
            pass
    elif action == "hog":
        kept = [b"\1" * (1 << 24) for _ in range(256)]  # 4 GiB, and no more if nobody stops it
        del kept
    elif action == "eio":
        raise OSError(errno.EIO, "input/output error, on purpose")
    else:
        raise RuntimeError("on purpose")


_SIGNALS = {"kill": signal.SIGKILL, "segv": signal.SIGSEGV, "stop": signal.SIGSTOP}
ACTIONS = (*_SIGNALS, "hang", "hog", "eio", "raise")
_armed: dict[str, list[tuple[str, int | None]]] = {}
_count: collections.Counter[str] = collections.Counter()
arm(os.environ.get(NAME, ""))
