"""Files as strangers send them: each a name, how to make it, and the class it must get.

Those that only cost much are in `bombs.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image

from data_pipeline import index
from data_pipeline.encode import write_mp4
from data_pipeline.places import Place
from data_pipeline.sources.entry import Entry, is_still
from data_pipeline.sources.folder import Folder


def look(folder: Path, name: str, **how) -> index.Looked:
    """What an index finds of one file of a folder."""
    entry = Entry(place=Place(str(folder), name), name=name, still=is_still(name))
    return index.look(entry, source=Folder(str(folder)), **how)


def film(frames: int = 6, height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
    """uint8 (frames, height, width, 3): smooth, so that a codec keeps it; every frame differs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [
        (rng.integers(40, 200) + 3 * x + 2 * y + 12 * t)[..., None] + np.array([0, 20, 40])
        for t in range(frames)
    ]
    return np.clip(np.stack(planes), 0, 255).astype(np.uint8)


def mp4(path: Path, **kind: int) -> Path:
    write_mp4(path, film(**kind), 8)
    return path


def lossless(path: Path, video: np.ndarray, times: list[int]) -> Path:
    """Matroska, ffv1: exact colours, at any presentation times in milliseconds."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "bgr0"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(video, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def reordered(path: Path, video: np.ndarray, codec: str, **options: str) -> Path:
    """Groups of twelve frames, stored in another order than they are shown in."""
    kind = {".mp4": "mp4", ".avi": "avi", ".mkv": "matroska"}[path.suffix]
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"g": "12", "bf": "2"} | options
        for picture in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def cut(part: float) -> Callable[[Path], None]:
    """A whole file of which only the first part is there: a share, or bytes if it is whole."""

    def make(path: Path) -> None:
        whole = mp4(path).read_bytes()
        path.write_bytes(whole[: part if isinstance(part, int) else int(len(whole) * part)])

    return make


def patched(old: bytes, new: bytes, after: bytes = b"") -> Callable[[Path], None]:
    """A whole file in which some bytes were changed."""

    def make(path: Path) -> None:
        whole = mp4(path).read_bytes()
        start = whole.index(old, whole.index(after) if after else 0)
        path.write_bytes(whole[:start] + new + whole[start + len(old) :])

    return make


def flipped(path: Path) -> None:
    """A byte in each of the last frames is wrong."""
    whole = bytearray(mp4(path).read_bytes())
    for place in range(len(whole) - 900, len(whole) - 20, 40):
        whole[place] ^= 0xFF
    path.write_bytes(bytes(whole))


def picture(kind: str, size: tuple[int, int] = (20, 16)) -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", size, (200, 30, 30)).save(out, kind)
    return out.getvalue()


def stamped(
    times: Sequence[int],
    kind: str = "matroska",
    size: Callable[[int], tuple[int, int]] = lambda index: (20, 16),
    clock: int = 1000,
    **options: str,
) -> Callable[[Path], None]:
    """Motion JPEG with these presentation times in 1 / clock s, each picture of its own size."""

    def make(path: Path) -> None:
        with av.open(str(path), "w", format=kind, options=options) as container:
            stream = container.add_stream("mjpeg", rate=8)
            stream.width, stream.height, stream.pix_fmt = 20, 16, "yuvj420p"
            stream.time_base = Fraction(1, clock)
            for index, time in enumerate(times):
                packet = av.Packet(picture("JPEG", size(index)))
                packet.stream, packet.pts, packet.dts = stream, time, time
                packet.time_base = Fraction(1, clock)
                container.mux(packet)

    return make


def coded(codec: str, pixels: str, kind: str, **options: str) -> Callable[[Path], None]:
    """Six frames by this encoder, in this pixel format and container."""

    def make(path: Path) -> None:
        with av.open(str(path), "w", format=kind, options=options) as container:
            stream = container.add_stream(codec, rate=8)
            stream.height, stream.width, stream.pix_fmt = 16, 24, pixels
            for picture in film():
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame.reformat(format=pixels)))
            container.mux(stream.encode())

    return make


ENCRYPTED = {
    "encryption_scheme": "cenc-aes-ctr", "encryption_key": "00" * 16, "encryption_kid": "11" * 16
}  # fmt: skip


def without_frames(kind: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with av.open(str(path), "w", format=kind) as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 24, 16, "yuv420p"
            container.start_encoding()

    return make


def box(name: bytes, offset: int, value: int, after: bytes = b"ftyp") -> Callable[[Path], None]:
    """An mp4 in one of whose boxes four bytes say something else."""

    def make(path: Path) -> None:
        whole = bytearray(mp4(path).read_bytes())
        place = whole.index(name, whole.index(after)) + 4 + offset
        whole[place : place + 4] = value.to_bytes(4, "big")
        path.write_bytes(bytes(whole))

    return make


def avi_rate(rate: int, scale: int) -> Callable[[Path], None]:
    """An AVI whose stream header says rate / scale frames a second."""

    def make(path: Path) -> None:
        lying_avi(path)
        whole = bytearray(path.read_bytes())
        place = whole.index(b"strh") + 8 + 20
        whole[place : place + 8] = scale.to_bytes(4, "little") + rate.to_bytes(4, "little")
        path.write_bytes(bytes(whole))

    return make


def foreign_title(path: Path) -> None:
    """Its title is Latin-1."""
    write_mp4(path, film(), 8, metadata={"title": "caf@@"})
    path.write_bytes(path.read_bytes().replace(b"caf@@", b"caf\xe9\xe8"))


def sound_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for index in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, 1024 * index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def bind(path: Path) -> None:
    """A socket, by a name that is short enough for one."""
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)


def link(path: Path) -> None:
    target = path.parent / "target"
    mp4(target)
    path.symlink_to(target)


IDENTITY = b"\x00\x01\x00\x00" + bytes(12) + b"\x00\x01\x00\x00" + bytes(12) + b"\x40\x00\x00\x00"
CLOCKWISE = (
    bytes(4)
    + b"\x00\x01\x00\x00"
    + bytes(4)
    + b"\xff\xff\x00\x00"
    + bytes(16)
    + b"\x40\x00\x00\x00"
)
BROKEN_OFF = {"truncated", "corrupt", "format", "no_video", "codec"}
REFUSED: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "zero.mp4": (lambda p: p.write_bytes(b""), {"empty"}),
    "zero.png": (lambda p: p.write_bytes(b""), {"empty"}),
    "text.mp4": (lambda p: p.write_text("this is no video"), {"format"}),
    "text.png": (lambda p: p.write_text("this is no picture"), {"format"}),
    "noise.mp4": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000)), {"format"}),
    "noise.webm": (lambda p: p.write_bytes(np.random.default_rng(1).bytes(5000)), {"format"}),
    "picture.mp4": (lambda p: p.write_bytes(picture("PNG")), {"format"}),
    "jpeg.mkv": (lambda p: p.write_bytes(picture("JPEG")), {"format"}),
    "animation.mp4": (lambda p: p.write_bytes(picture("GIF")), {"format"}),
    "film.png": (lambda p: mp4(p.with_suffix(".mp4x")).rename(p), {"format"}),
    "animation.png": (lambda p: p.write_bytes(picture("GIF")), {"format"}),
    "cut_picture.png": (lambda p: p.write_bytes(picture("PNG")[:60]), {"corrupt"}),
    "cut_picture.jpg": (lambda p: p.write_bytes(picture("JPEG")[:-200]), {"corrupt", "format"}),
    "playlist.mp4": (lambda p: p.write_text("ffconcat version 1.0\nfile 'a.mp4'\n"), {"format"}),
    "stream.mp4": (lambda p: p.write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"), {"format"}),
    "flipped.mp4": (flipped, {"corrupt"}),
    "sizes.avi": (
        stamped(range(6), "avi", lambda i: (20, 16) if i < 3 else (32, 24), 8),
        {"size", "corrupt"},
    ),
    "sound.mp4": (sound_only, {"no_video"}),
    "nothing.mp4": (without_frames("mp4"), {"no_video", "no_frames"}),
    "nothing.mkv": (without_frames("matroska"), {"truncated", "no_frames"}),
    "sample_count.mp4": (box(b"stsz", 8, 2**31 - 1), {"format", "truncated"}),
    "time_count.mp4": (box(b"stts", 8, 2**31 - 1), {"truncated"}),
    "fast.mp4": (box(b"mdhd", 12, 10**9), {"timestamps"}),
    "fast.avi": (avi_rate(10**9, 1), {"timestamps"}),
    "standing.mkv": (stamped([0, 100, 100, 200]), {"timestamps"}),
    "before_zero.mp4": (
        stamped([-200, -100, 0, 100], "mp4", avoid_negative_ts="disabled"), {"truncated"}
    ),
    "too_long.mkv": (stamped([0, 100_000_000]), {"too_large"}),
    "huffyuv.avi": (coded("huffyuv", "rgb24", "avi"), {"codec"}),
    "raw.avi": (coded("rawvideo", "bgr24", "avi"), {"codec"}),
    "animation.mov": (coded("qtrle", "rgb24", "mov"), {"codec"}),
    "codec.mp4": (patched(b"avc1", b"zzzz", after=b"stsd"), {"codec", "no_video"}),
    "encrypted.mp4": (coded("libx264", "yuv420p", "mp4", **ENCRYPTED), {"corrupt"}),
    "pipe.mp4": (os.mkfifo, {"not_a_file"}),
    "pipe.png": (os.mkfifo, {"not_a_file"}),
    "folder.mp4": (os.mkdir, {"not_a_file"}),
    "socket.mp4": (lambda p: bind(p), {"not_a_file"}),
    "link.mp4": (link, {"link"}),
    "dangling.mp4": (lambda p: p.symlink_to("/nowhere"), {"link"}),
    "device.mp4": (lambda p: p.symlink_to("/dev/zero"), {"link"}),
    "line\nbreak.mp4": (mp4, {"name"}),
    "colour\x1b[31m.mp4": (mp4, {"name"}),
} | {
    f"cut_{part}.mp4": (cut(part), BROKEN_OFF)
    for part in (8, 40, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, -1)
}  # fmt: skip
ACCEPTED: dict[str, tuple[Callable[[Path], object], tuple[int, int, int]]] = {
    "plain.mp4": (mp4, (6, 16, 24)),
    "latin.mp4": (foreign_title, (6, 16, 24)),
    "one.mp4": (lambda p: mp4(p, frames=1), (1, 16, 24)),
    "odd.mkv": (lambda p: lossless(p, film(5, 13, 17), [0, 100, 200, 300, 400]), (5, 13, 17)),
    "rotated.mp4": (patched(IDENTITY, CLOCKWISE, after=b"tkhd"), (6, 24, 16)),
    "uneven.mkv": (lambda p: lossless(p, film(4), [0, 40, 300, 310]), (4, 16, 24)),
    "late.mkv": (stamped([3_600_000, 3_600_100, 3_600_200]), (3, 16, 20)),
    "before_zero.mkv": (
        stamped([-200, -100, 0, 100], avoid_negative_ts="disabled"), (2, 16, 20)
    ),
    "lie.avi": (lambda p: lying_avi(p), (6, 16, 20)),
    "no_rate.avi": (avi_rate(0, 1), (6, 16, 20)),
    "no_scale.avi": (avi_rate(8, 0), (6, 16, 20)),
    "no_clock.mp4": (box(b"mdhd", 12, 0), (1, 16, 24)),
    "duration.mp4": (box(b"mdhd", 16, 2**31 - 1), (6, 16, 24)),
    "size.mp4": (box(b"avc1", 24, 2**32 - 1, after=b"stsd"), (6, 16, 24)),
    "alpha.mkv": (coded("ffv1", "bgra", "matroska"), (6, 16, 24)),
    "gray.mkv": (coded("ffv1", "gray", "matroska"), (6, 16, 24)),
    "ten_bits.mp4": (coded("libx264", "yuv420p10le", "mp4"), (6, 16, 24)),
    "prores.mov": (coded("prores_ks", "yuva444p10le", "mov"), (6, 16, 24)),
    "vp9.webm": (coded("libvpx-vp9", "yuva420p", "webm"), (6, 16, 24)),
    "picture.jpg": (lambda p: p.write_bytes(picture("JPEG")), (1, 16, 20)),
    "cmyk.jpg": (lambda p: PIL.Image.new("CMYK", (20, 16)).save(p), (1, 16, 20)),
    "gray.png": (lambda p: PIL.Image.new("I;16", (20, 16)).save(p), (1, 16, 20)),
    "palette.png": (lambda p: PIL.Image.new("P", (20, 16)).save(p), (1, 16, 20)),
    "long_name_" + "x" * 200 + ".mp4": (lambda p: mp4(p.with_name("s.mp4")).rename(p), (6, 16, 24)),
}  # fmt: skip
# Not called a video or an image: nobody looks into them.
UNSEEN: dict[str, Callable[[Path], object]] = {
    "zero.h264": lambda p: p.write_bytes(b""),
    "film.txt": lambda p: mp4(p.with_suffix(".mp4x")).rename(p),
}


def lying_avi(path: Path) -> None:
    """A header that promises 444 frames of the 6 there are."""
    stamped(range(6), "avi", clock=8)(path)
    whole = bytearray(path.read_bytes())
    for mark, offset in ((b"avih", 24), (b"strh", 40)):
        place = whole.index(mark) + offset
        assert int.from_bytes(whole[place : place + 4], "little") == 6
        whole[place : place + 4] = (444).to_bytes(4, "little")
    path.write_bytes(bytes(whole))
