"""Small copies of large files: to train at 40 pixels, nobody should decode 1080 at every step.

    a film      H.264 in mp4, every frame at its own time, upright, a key frame every twelve
    an image    PNG

The shorter side of a copy has `side` pixels, rounded to even; what is smaller stays as large as it
is. A copy is made anew if the file is younger, and appears under its name only when it is whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

import av
import PIL.Image
from av.video.reformatter import VideoReformatter

from data_pipeline import keys
from data_pipeline.decode import (
    Limits,
    guarded,
    load_image,
    open_video,
    resize,
    upright_size,
    whole_frames,
)
from data_pipeline.encode import OPTIONS, STEADY
from data_pipeline.errors import BadClip
from data_pipeline.probe import packet_times

GROUP = 12  # frames from one key frame to the next: what is decoded to reach any frame
QUALITY = {"crf": "12", "preset": "veryfast", "g": str(GROUP), "x264-params": STEADY}


def name_of(uri: str, *, still: bool) -> str:
    """What the copy of a file is called: never too long, whatever the file is called."""
    return "".join(f"{word:016x}" for word in keys.identity(uri)) + (".png" if still else ".mp4")


def copy(path: Path, to: Path, *, side: int, still: bool, limits: Limits | None = None) -> None:
    """Write the small copy of one file.

    Raises:
      BadClip: it cannot be read, and why.
      OSError: the copy cannot be written.
    """
    if to.is_file() and path.is_file() and to.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(to.name + ".part")
    make = _image if still else _film
    try:
        with guarded(path, limits or Limits()) as file:
            make(file, partial, side, limits or Limits())
        os.replace(partial, to)
    finally:
        partial.unlink(missing_ok=True)


def small_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width), both even, of the copy of a picture."""
    scale = min(1.0, side / min(height, width))
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))


def _image(file: IO[bytes], to: Path, side: int, limits: Limits) -> None:
    picture = load_image(file, limits)
    height, width = small_size(picture.height, picture.width, side)
    picture.resize((width, height), PIL.Image.Resampling.BOX).save(to, format="PNG")


def _film(file: IO[bytes], to: Path, side: int, limits: Limits) -> None:
    scaler, shape = VideoReformatter(), None
    with (
        open_video(file, limits) as (source, stream),
        av.open(str(to), "w", format="mp4", options=OPTIONS) as container,
    ):
        source.seek(packet_times(source, stream, limits)[0], stream=stream, backward=True)
        out: Any = None
        for _, frame in whole_frames(source, stream):
            if out is None:
                shape = upright_size(frame)
                out = container.add_stream("libx264", options=QUALITY)
                out.height, out.width = small_size(*shape, side)
                out.pix_fmt, out.thread_count = "yuv420p", 1
                out.codec_context.time_base = stream.time_base
            if upright_size(frame) != shape:
                raise BadClip("size", "changes within the clip")
            picture = resize(frame, (out.height, out.width), scaler)
            small = av.VideoFrame.from_ndarray(picture, format="rgb24")
            small.pts, small.time_base = frame.pts, stream.time_base
            container.mux(out.encode(small))
        if out is None:
            raise BadClip("no_frames")
        container.mux(out.encode())
