"""Messages between the trainer and its decoders: a length, JSON, and open files beside them.

JSON and no pickle: a decoder that a stranger's file has taken over cannot make the trainer run
code. It can lie about a file, say nothing, or say too much, which is refused.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

LENGTH = struct.Struct("<I")
LONGEST = 1 << 26  # bytes of a message
MOST_FILES = 4


def send(channel: socket.socket, message: Any, files: Sequence[int] = ()) -> None:
    """Say something, and hand over descriptors with it."""
    said = json.dumps(message).encode()
    data = LENGTH.pack(len(said)) + said
    sent = socket.send_fds(channel, [data], list(files)) if files else 0
    if sent < len(data):
        channel.sendall(data[sent:])


def receive(
    channel: socket.socket, wait: Callable[[], None] = lambda: None
) -> tuple[Any, list[int]]:
    """What is said next, and the descriptors that came with it; `wait` is called before each read.

    Raises:
      EOFError: the other side is gone. ValueError: what it says is no message.
    """
    data, files = bytearray(), list[int]()
    while True:
        wait()
        part, found, *_ = socket.recv_fds(channel, 1 << 16, MOST_FILES)
        files += found
        if not part:
            raise EOFError("the other side is gone")
        data += part
        if len(data) < LENGTH.size:
            continue
        (length,) = LENGTH.unpack_from(data)
        if length > LONGEST:
            raise ValueError(f"a message of {length} bytes")
        if len(data) >= LENGTH.size + length:
            return json.loads(data[LENGTH.size :]), files
