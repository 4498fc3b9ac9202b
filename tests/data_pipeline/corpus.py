"""Files as strangers send them: each a name, how to make it, and the class it must get."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
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


def cut(share: float) -> Callable[[Path], None]:
    """A whole file of which only the first part is there."""

    def make(path: Path) -> None:
        whole = mp4(path).read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

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


def two_sizes(path: Path) -> None:
    """Motion JPEG whose pictures change size halfway."""
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 20, 16, "yuvj420p"
        for index in range(6):
            packet = av.Packet(picture("JPEG", (20, 16) if index < 3 else (32, 24)))
            packet.stream, packet.pts, packet.dts = stream, index, index
            packet.time_base = Fraction(1, 8)
            container.mux(packet)


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
REFUSED: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "zero.mp4": (lambda p: p.write_bytes(b""), {"empty"}),
    "zero.png": (lambda p: p.write_bytes(b""), {"empty"}),
    "text.mp4": (lambda p: p.write_text("this is no video"), {"format"}),
    "text.png": (lambda p: p.write_text("this is no picture"), {"format"}),
    "noise.mp4": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000)), {"format"}),
    "noise.webm": (lambda p: p.write_bytes(np.random.default_rng(1).bytes(5000)), {"format"}),
    "picture.mp4": (lambda p: p.write_bytes(picture("PNG")), {"format"}),
    "jpeg.mkv": (lambda p: p.write_bytes(picture("JPEG")), {"format"}),
    "film.png": (lambda p: mp4(p.with_suffix(".mp4x")).rename(p), {"format"}),
    "animation.png": (lambda p: p.write_bytes(picture("GIF")), {"format"}),
    "cut_picture.png": (lambda p: p.write_bytes(picture("PNG")[:60]), {"corrupt"}),
    "cut_picture.jpg": (lambda p: p.write_bytes(picture("JPEG")[:-200]), {"corrupt", "format"}),
    "playlist.mp4": (lambda p: p.write_text("ffconcat version 1.0\nfile 'a.mp4'\n"), {"format"}),
    "stream.mp4": (lambda p: p.write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"), {"format"}),
    "flipped.mp4": (flipped, {"corrupt"}),
    "sizes.avi": (two_sizes, {"size", "corrupt"}),
    "sound.mp4": (sound_only, {"no_video"}),
    "pipe.mp4": (os.mkfifo, {"not_a_file"}),
    "pipe.png": (os.mkfifo, {"not_a_file"}),
    "folder.mp4": (os.mkdir, {"not_a_file"}),
    "link.mp4": (link, {"link"}),
    "dangling.mp4": (lambda p: p.symlink_to("/nowhere"), {"link"}),
    "device.mp4": (lambda p: p.symlink_to("/dev/zero"), {"link"}),
    "line\nbreak.mp4": (mp4, {"name"}),
    "codec.mp4": (patched(b"avc1", b"zzzz", after=b"stsd"), {"codec", "no_video"}),
} | {
    f"cut_{share:.2f}.mp4": (cut(share), {"truncated", "corrupt", "format", "no_video", "codec"})
    for share in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
}
ACCEPTED: dict[str, tuple[Callable[[Path], object], tuple[int, int, int]]] = {
    "plain.mp4": (mp4, (6, 16, 24)),
    "latin.mp4": (foreign_title, (6, 16, 24)),
    "one.mp4": (lambda p: mp4(p, frames=1), (1, 16, 24)),
    "odd.mkv": (lambda p: lossless(p, film(5, 13, 17), [0, 100, 200, 300, 400]), (5, 13, 17)),
    "rotated.mp4": (patched(IDENTITY, CLOCKWISE, after=b"tkhd"), (6, 24, 16)),
    "uneven.mkv": (lambda p: lossless(p, film(4), [0, 40, 300, 310]), (4, 16, 24)),
    "picture.jpg": (lambda p: p.write_bytes(picture("JPEG")), (1, 16, 20)),
    "lie.avi": (lambda p: lying_avi(p), (6, 16, 20)),
    "long_name_" + "x" * 200 + ".mp4": (lambda p: mp4(p.with_name("s.mp4")).rename(p), (6, 16, 24)),
}  # fmt: skip


def lying_avi(path: Path) -> None:
    """A header that promises 444 frames of the 6 there are."""
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 20, 16, "yuvj420p"
        for index in range(6):
            packet = av.Packet(picture("JPEG"))
            packet.stream, packet.pts, packet.dts = stream, index, index
            packet.time_base = Fraction(1, 8)
            container.mux(packet)
    whole = bytearray(path.read_bytes())
    for mark, offset in ((b"avih", 24), (b"strh", 40)):
        place = whole.index(mark) + offset
        assert int.from_bytes(whole[place : place + 4], "little") == 6
        whole[place : place + 4] = (444).to_bytes(4, "little")
    path.write_bytes(bytes(whole))
