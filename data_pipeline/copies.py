"""Small copies of large files: to train at 40 pixels, nobody should decode 1080 at every step.

    a film      H.264 in mp4, every frame at its own time, upright, a key frame every twelve
    an image    PNG

The shorter side of a copy has `side` pixels, rounded to even; what is smaller stays as large as it
is. A copy is called after its file's name and version, so that of a file that changed another one
is made, and appears under its name only when it is whole.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import IO, Any

import av
import PIL.Image
from av.video.reformatter import VideoReformatter

from data_pipeline import failpoints, keys
from data_pipeline.decode import load_image, open_video, resize, upright_size, whole_frames
from data_pipeline.encode import STEADY
from data_pipeline.errors import BadClip
from data_pipeline.files import Limits, guarded
from data_pipeline.places import Place
from data_pipeline.probe import packet_times
from data_pipeline.runner import HERE, Runner

GROUP = 12  # frames from one key frame to the next: what is decoded to reach any frame
QUALITY = {"crf": "12", "preset": "veryfast", "g": str(GROUP), "x264-params": STEADY}


@dataclasses.dataclass(frozen=True)
class Copies:
    """Where small copies lie, and their shorter side in pixels."""

    folder: Path
    side: int
    limits: Limits = dataclasses.field(default_factory=Limits)
    run: Runner = HERE

    def make(self, place: Place, *, still: bool) -> Place:
        """The small copy of a file; no name is too long for what it is called.

        Raises:
          BadClip: the file cannot be read, and why.
          OSError: the copy cannot be written.
        """
        name = "".join(f"{word:016x}" for word in keys.identity(f"{place.uri}\0{place.version()}"))
        small = self.folder / (name + (".png" if still else ".mp4"))
        if not small.is_file():
            copy(place, small, side=self.side, still=still, limits=self.limits, run=self.run)
        return Place.of(small)


def copy(
    place: Place,
    to: Path,
    *,
    side: int,
    still: bool,
    limits: Limits | None = None,
    run: Runner = HERE,
) -> None:
    """Write the small copy of one file, made where `run` says.

    Raises: as `Copies.make`.
    """
    limits = limits or Limits()
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(to.name + ".part")
    partial.touch()  # here, where it is not the file's fault if it cannot be written

    def write(file: IO[bytes]) -> None:
        with open(partial, "wb") as out:
            run.ask(shrink, file, out, limits=limits, side=side, still=still)

    try:
        guarded(place, limits, write)
        os.replace(partial, to)
    finally:
        partial.unlink(missing_ok=True)


def small_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width), both even, of the copy of a picture."""
    scale = min(1.0, side / min(height, width))
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))


def shrink(file: IO[bytes], to: IO[bytes], *, limits: Limits, side: int, still: bool) -> None:
    """Write the small copy of an open file into another; a task of `runner.Runner`.

    Raises:
      BadClip: the file cannot be read, and why. OSError: nor written, or just now not read.
    """
    failpoints.reach("decode.read")
    (_image if still else _film)(file, to, side, limits)


def _image(file: IO[bytes], to: IO[bytes], side: int, limits: Limits) -> None:
    picture = load_image(file, limits)
    height, width = small_size(picture.height, picture.width, side)
    picture.resize((width, height), PIL.Image.Resampling.BOX).save(to, format="PNG")


def _film(file: IO[bytes], to: IO[bytes], side: int, limits: Limits) -> None:
    scaler, shape = VideoReformatter(), None
    with (
        open_video(file, limits) as (source, stream),
        av.open(to, "w", format="mp4") as container,
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
