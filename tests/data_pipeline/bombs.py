"""Small files that cost much to look into: each a name, how to make it, its class."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av

from tests.data_pipeline.corpus import film, lossless, mp4, picture

SWOLLEN = 1 << 27  # bytes that a few kilobytes unpack to


def png(width: int, height: int, *, text: bytes = b"", kind: bytes = b"") -> Callable[[Path], None]:
    """A PNG whose header says this size, with one more chunk."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    def make(path: Path) -> None:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        more = chunk(kind, b"k\0\0" + zlib.compress(text, 9)) if kind else b""
        data = chunk(b"IDAT", zlib.compress(bytes(4 * 13)))
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + data + chunk(b"IEND", b"")
        )

    return make


def declared(path: Path) -> None:
    """FFV1, whose only word on its size is the container's: 65535 x 65535."""
    lossless(path, film(2, 300, 300), [0, 100])
    side = (300).to_bytes(2, "big")
    whole = path.read_bytes()
    for mark in (b"\xb0\x82", b"\xba\x82"):
        assert whole.count(mark + side) == 1
        whole = whole.replace(mark + side, mark + b"\xff\xff")
    path.write_bytes(whole)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.mp4", bytes(SWOLLEN))


def tarred(path: Path) -> None:
    whole = mp4(path.with_suffix(".whole")).read_bytes()
    path.with_suffix(".whole").unlink()
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.mp4")
        member.size = len(whole)
        archive.addfile(member, io.BytesIO(whole))


def solid(codec: str, width: int, height: int, pixels: str, kind: str) -> Callable[[Path], None]:
    """Four frames of one colour: nothing to store, much to decode."""

    def make(path: Path) -> None:
        with av.open(str(path), "w", format=kind) as container:
            stream = container.add_stream(codec, rate=8)
            stream.height, stream.width, stream.pix_fmt = height, width, pixels
            stream.thread_count = 1
            if codec == "libx264":
                stream.options = {"preset": "ultrafast"}
            frame = av.VideoFrame(width, height, pixels)
            for plane in frame.planes:
                plane.update(bytes([128]) * plane.buffer_size)
            for time in range(4):
                frame.pts = time
                container.mux(stream.encode(frame))
            container.mux(stream.encode())

    return make


def countless(frames: int) -> Callable[[Path], None]:
    """One tiny picture again and again."""

    def make(path: Path) -> None:
        with av.open(str(path), "w", format="avi") as container:
            stream = container.add_stream("mjpeg", rate=100)
            stream.width, stream.height, stream.pix_fmt = 8, 8, "yuvj420p"
            data = picture("JPEG", (8, 8))
            for time in range(frames):
                packet = av.Packet(data)
                packet.stream, packet.pts, packet.dts = stream, time, time
                packet.time_base = Fraction(1, 100)
                container.mux(packet)

    return make


BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "huge.png": (png(65535, 65535), "too_large"),
    "large.png": (png(8000, 8000), "too_large"),
    "text.png": (png(4, 4, kind=b"zTXt", text=bytes(SWOLLEN)), "corrupt"),
    "profile.png": (png(4, 4, kind=b"iCCP", text=bytes(SWOLLEN)), "corrupt"),
    "declared.mkv": (declared, "size"),
    "zipped.mp4": (zipped, "format"),
    "tarred.mp4": (tarred, "format"),
    "gzipped.mp4": (lambda p: p.write_bytes(gzip.compress(bytes(SWOLLEN))), "format"),
    "weights.mp4": (lambda p: p.write_bytes(struct.pack("<Q", 100 << 20) + b"{" * 999), "format"),
}
LARGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "8k.mp4": (solid("libx264", 8192, 4320, "yuv420p", "mp4"), "too_large"),
    "12k.mkv": (solid("ffv1", 12000, 12000, "gray", "matroska"), "size"),
    "countless.avi": (countless((1 << 20) + 5), "too_large"),
}
