"""Guarded decoding: chosen frames of one file, at one size, or one reason why not.

A file is a stranger's. It is opened without following a link or waiting for a writer (`files.py`),
only known containers and codecs are tried, and nothing it names is opened. Frames are chosen by
presentation time, never by number; the first error, corrupt frame or change of size refuses the
whole clip (`BadClip`). FFmpeg can be made to crash: `workers.py` runs it where that does no harm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import itertools
from collections.abc import Iterator
from typing import IO, Any

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
from av.video.reformatter import Interpolation, VideoReformatter

from data_pipeline import failpoints
from data_pipeline.errors import BadClip
from data_pipeline.files import FULL, TRANSIENT, Limits, guarded, size_of
from data_pipeline.places import Place
from data_pipeline.runner import HERE, Runner

STILL_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
CODECS = (
    "av1,libdav1d,h264,hevc,vp8,vp9,libvpx,libvpx-vp9,mpeg1video,mpeg2video,mpeg4,msmpeg4,"
    "msmpeg4v1,msmpeg4v2,h263,mjpeg,png,prores,dnxhd,ffv1"
)
# `protocol_whitelist` names no protocol: a file cannot make the demuxer open another one.
OPTIONS = {
    "format_whitelist": CONTAINERS,
    "codec_whitelist": CODECS,
    "protocol_whitelist": "none",
    "err_detect": "explode",
}
# PyAV before 19 refuses a whole file for a title that is not UTF-8, unless told otherwise.
TAGS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
)
SMALLER, LARGER = Interpolation.AREA, Interpolation.BICUBIC
# 1 ms, below the distance of frames at any rate that is accepted: containers round their clocks.
TOLERANCE_S = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Which part of a clip: `frames` at first + offset + i / rate seconds of presentation time,
    resized to `resized` (height, width), of which the middle `size` is kept. `first` is the time of
    the clip's first frame in the file and `end` that of the first frame behind it, `stored` the
    file's size, upright, and `bytes` its length, all as they were when it was indexed; `sha256`,
    where there is one, is compared with that of the whole file."""

    first: float = 0.0
    end: float = np.inf
    offset: float = 0.0
    rate: float
    frames: int
    stored: tuple[int, int]
    resized: tuple[int, int]
    size: tuple[int, int]
    bytes: int | None = None
    sha256: str | None = None

    @property
    def times(self) -> np.ndarray:
        return self.first + self.offset + np.arange(self.frames) / (self.rate or 1.0)

    def crop(self, picture: np.ndarray) -> np.ndarray:
        top, left = ((r - s) // 2 for r, s in zip(self.resized, self.size, strict=True))
        return picture[top : top + self.size[0], left : left + self.size[1]]


def decode(
    place: Place, view: View, *, still: bool, limits: Limits | None = None, run: Runner = HERE
) -> np.ndarray:
    """uint8 (frames, height, width, 3) of a file, decoded where `run` says.

    Raises:
      BadClip: for whatever is wrong with the file.
    """
    limits = limits or Limits()
    out = np.empty((view.frames, *view.size, 3), np.uint8)
    guarded(
        place,
        limits,
        lambda file: run.fill(out, read_view, file, limits=limits, view=view, still=still),
    )
    return out


def read_view(file: IO[bytes], *, limits: Limits, view: View, still: bool, out: np.ndarray) -> None:
    """Fill `out`, uint8 (frames, height, width, 3); a task of `runner.Runner`.

    Raises:
      BadClip: what is wrong with the file. OSError: it cannot be read just now.
    """
    failpoints.reach("decode.read")
    if view.bytes is not None and size_of(file) != view.bytes:
        raise BadClip("changed", "not as many bytes as when it was indexed")
    if view.sha256 is not None:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        file.seek(0)
        if digest != view.sha256:
            raise BadClip("changed", "other bytes than when it was indexed")
    (_image if still else _video)(file, view, limits, out)


def _image(file: IO[bytes], view: View, limits: Limits, out: np.ndarray) -> None:
    picture = load_image(file, limits)
    if (picture.height, picture.width) != view.stored:
        raise BadClip("size", f"{picture.height} x {picture.width}, not as indexed")
    if view.resized != view.stored:
        height, width = view.resized
        smaller = height * width < picture.height * picture.width
        how = PIL.Image.Resampling.BOX if smaller else PIL.Image.Resampling.BICUBIC
        picture = picture.resize((width, height), how)
    out[0] = view.crop(np.asarray(picture))


def load_image(file: IO[bytes], limits: Limits) -> PIL.Image.Image:
    """An upright RGB picture, turned as its EXIF says; its size is checked before its pixels are
    read."""
    try:
        with PIL.Image.open(file, formats=STILL_FORMATS) as picture:
            if picture.width * picture.height > limits.pixels:
                raise BadClip("too_large", f"{picture.height} x {picture.width} pixels")
            upright = PIL.ImageOps.exif_transpose(picture)
            return upright.convert("RGB")
    except PIL.UnidentifiedImageError as error:
        raise BadClip("format") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise BadClip("corrupt", str(error)) from error
    except PIL.Image.DecompressionBombError as error:
        raise BadClip("too_large", str(error)) from error
    except (ValueError, SyntaxError, EOFError) as error:
        raise BadClip("corrupt", str(error)) from error


@contextlib.contextmanager
def open_video(file: IO[bytes], limits: Limits) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream), to be decoded on the caller's thread alone; FFmpeg's
    errors become `BadClip`, and the container is closed."""
    try:
        # The pixels count here too: FFmpeg decodes a frame to learn what the container leaves open.
        container = av.open(file, options=OPTIONS | {"max_pixels": str(limits.pixels)}, **TAGS)
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:
        raise BadClip("format") from error
    except av.error.FFmpegError as error:
        raise BadClip(*_class_of(error)) from error
    try:
        if not container.streams.video:
            raise BadClip("no_video")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None or context.name not in CODECS.split(","):
            raise BadClip("codec", context.name if context else "unknown")
        if context.width < 1 or context.height < 1:
            # FFmpeg forgets a size that is above `max_pixels`.
            raise BadClip("size", "none, or too many pixels")
        if context.width * context.height > limits.pixels:
            raise BadClip("too_large", f"{context.height} x {context.width} pixels")
        # One thread per decoder: the loader decodes many clips at once.
        context.thread_count = 1
        context.options = {"err_detect": "explode", "max_pixels": str(limits.pixels)}
        yield container, stream
    except av.error.FFmpegError as error:
        raise BadClip(*_class_of(error)) from error
    finally:
        container.close()


def _class_of(error: av.error.FFmpegError) -> tuple[str, str]:
    if isinstance(error, OSError) and error.errno in TRANSIENT:
        raise error
    if error.errno in FULL:
        raise OSError(error.errno, error.strerror) from error
    if isinstance(error, EOFError):
        return "truncated", ""
    if error.errno == errno.ENOMEM:
        return "memory", ""
    known = isinstance(error, av.error.InvalidDataError)
    return ("corrupt" if known else "codec"), type(error).__name__


def whole_frames(container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
    """(presentation time in seconds, frame) from where the container stands, in order.

    Raises:
      BadClip: a corrupt frame, one without a time, or times that do not rise.
    """
    last = -np.inf
    for frame in container.decode(stream):
        failpoints.reach("decode.frame")
        if frame.is_corrupt:
            raise BadClip("corrupt")
        if frame.pts is None or frame.time is None:
            raise BadClip("timestamps", "missing")
        if not frame.time > last:
            raise BadClip("timestamps", "not rising")
        last = frame.time
        yield frame.time, frame


def upright_size(frame: Any) -> tuple[int, int]:
    """(height, width) after rotation."""
    sideways = turns(frame) % 2 == 1
    return (frame.width, frame.height) if sideways else (frame.height, frame.width)


def turns(frame: Any) -> int:
    """Quarter turns counter-clockwise that bring a frame upright."""
    return round(frame.rotation / 90) % 4


def _video(file: IO[bytes], view: View, limits: Limits, out: np.ndarray) -> None:
    scaler = VideoReformatter()  # one a clip: setting it up costs more than scaling a small frame
    with open_video(file, limits) as (container, stream):
        # Half a period early: the frame nearest to the first time may come before it.
        early = max(view.first, view.first + view.offset - 0.5 / (view.rate or np.inf))
        filled = 0
        for index, frame in _nearest(_frames_from(container, stream, early), view, limits):
            if upright_size(frame) != view.stored:
                raise BadClip("size", f"{upright_size(frame)}, not as indexed")
            out[index] = view.crop(resize(frame, view.resized, scaler))
            filled += 1
        if filled < view.frames:
            raise BadClip("short", f"{filled} of {view.frames} frames")


def _frames_from(container: Any, stream: Any, time: float) -> Iterator[tuple[float, Any]]:
    """`whole_frames` from `time` or earlier on; a film's beginning is not sought."""
    tick = stream.time_base
    begin = float((stream.start_time or 0) * tick) if tick else np.inf
    if time <= begin + TOLERANCE_S:
        return whole_frames(container, stream)
    back = 0.0
    while True:
        target = max(begin, time - back)
        container.seek(round(target / float(tick)), stream=stream, backward=True)
        frames = whole_frames(container, stream)
        head = next(frames, None)
        # Containers seek by decoding time: where frames are stored out of order, the place found
        # may be shown later than was asked for.
        if target == begin or (head is not None and head[0] <= time + TOLERANCE_S):
            return frames if head is None else itertools.chain([head], frames)
        back = 2 * back or 1.0


def _nearest(
    frames: Iterator[tuple[float, Any]], view: View, limits: Limits
) -> Iterator[tuple[int, Any]]:
    """(index, the frame of the clip nearest in time to `view.times[index]`), each index once and in
    order; frames of the file that lie before or behind the clip are passed over."""
    times = view.times
    period = 1 / view.rate if view.rate else np.inf
    index, before = 0, None
    for count, (now, frame) in enumerate(frames):
        if count >= limits.frames:
            raise BadClip("too_large", "too many frames")
        if now < view.first - TOLERANCE_S:
            continue
        if now >= view.end - TOLERANCE_S:
            break
        while index < len(times) and now >= times[index] - TOLERANCE_S:
            early = before is not None and times[index] - before[0] < now - times[index]
            yield index, before[1] if early and before is not None else frame
            index += 1
        if index == len(times):
            return
        before = now, frame
    # The clip ended; its last frame stands for times up to half a period after it.
    while before is not None and index < len(times) and times[index] - before[0] < period / 2:
        yield index, before[1]
        index += 1


def resize(frame: Any, size: tuple[int, int], scaler: VideoReformatter) -> np.ndarray:
    """uint8 (height, width, 3) of a frame, upright; resized in C before it is turned."""
    quarter = turns(frame)
    height, width = size if quarter % 2 == 0 else size[::-1]
    smaller = height * width < frame.height * frame.width
    shown = scaler.reformat(
        frame,
        width=width,
        height=height,
        format="rgb24",
        interpolation=(SMALLER if smaller else LARGER)
        | Interpolation.ACCURATE_RND
        | Interpolation.BITEXACT,
        threads=1,
    )
    return np.rot90(shown.to_ndarray(), quarter)
