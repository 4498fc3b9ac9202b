"""What a file really holds, found by demuxing and decoding it: headers lie.

Presentation times come from the packets. Frames are counted by decoding; a long film is decoded in
three places instead and its packets are counted. A film that is to be cut is decoded as a whole;
one of which annotations name parts, where the parts begin.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import IO, Any, Protocol

from data_pipeline import failpoints
from data_pipeline.decode import load_image, open_video, turns, upright_size, whole_frames
from data_pipeline.errors import BadClip
from data_pipeline.files import Limits, guarded, size_of
from data_pipeline.places import Place
from data_pipeline.runner import HERE, Runner

WHOLE = 2048  # films with more frames than this are tried in three places
TRIED = 32  # frames in each
FASTEST = 1000  # frames a second that are believed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Columns of the manifest that only the file itself can fill."""

    start_s: float
    end_s: float
    fps_num: int
    fps_den: int
    height: int
    width: int
    n_frames: int
    rotation: int
    sha256: str
    bytes: int


class Cuts(Protocol):
    """Watches a film."""

    @property
    def places(self) -> Sequence[int]:
        """The numbers of the frames with which another shot begins, rising, none of them 0."""

    def see(self, frame: Any) -> None:
        """The next frame."""


Span = tuple[float, float]  # seconds of presentation time: from, and up to before


def probe(place: Place, *, still: bool, limits: Limits | None = None, run: Runner = HERE) -> Found:
    """Look at one file, where `run` says.

    Raises:
      BadClip: it cannot be trained on, and why.
    """
    limits = limits or Limits()
    (found,) = guarded(place, limits, lambda file: run.ask(look, file, limits=limits, still=still))
    return Found(**found)


def probe_spans(
    place: Place, spans: Sequence[Span], *, limits: Limits | None = None, run: Runner = HERE
) -> list[Found | BadClip]:
    """Look at parts of a film; what each holds, or what is wrong with that part alone.

    Raises:
      BadClip: the film cannot be trained on, and why.
    """
    limits, ends = limits or Limits(), [list(span) for span in spans]
    parts = guarded(place, limits, lambda file: run.ask(look_at, file, limits=limits, spans=ends))
    return [BadClip(*part["bad"]) if "bad" in part else Found(**part) for part in parts]


def look(
    file: IO[bytes], *, limits: Limits, still: bool, cuts: Cuts | None = None
) -> list[dict[str, Any]]:
    """Fields of `Found` for each shot, in order, of an open file; a task of `runner.Runner`.

    Raises:
      BadClip: as `probe`. OSError: it cannot be read just now.
    """
    known = _known(file)
    parts = _still(file, limits) if still else _film(file, limits, cuts)
    return [part | known for part in parts]


def look_at(
    file: IO[bytes], *, limits: Limits, spans: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """Fields of `Found` for each span of an open film, or `bad`: reason and detail; a task of
    `runner.Runner`.

    Raises: as `look`.
    """
    known = _known(file)
    parts = _spans(file, limits, spans)
    return [
        {"bad": [part.reason, part.detail]} if isinstance(part, BadClip) else part | known
        for part in parts
    ]


def _known(file: IO[bytes]) -> dict[str, Any]:
    """What does not depend on what a file holds."""
    failpoints.reach("decode.read")
    size = size_of(file)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0)
    return {"sha256": digest, "bytes": size}


def _still(file: IO[bytes], limits: Limits) -> list[dict[str, Any]]:
    picture = load_image(file, limits)
    size: dict[str, float] = {"height": picture.height, "width": picture.width}
    no_time = {"start_s": 0.0, "end_s": 0.0, "fps_num": 0, "fps_den": 1}
    return [{**no_time, **size, "n_frames": 1, "rotation": 0}]


def _film(file: IO[bytes], limits: Limits, cuts: Cuts | None) -> list[dict[str, Any]]:
    with open_video(file, limits) as (container, stream):
        ticks = packet_times(container, stream, limits)
        if len(ticks) > WHOLE and cuts is None:
            tried = (ticks[0], ticks[len(ticks) // 2], ticks[-TRIED])
            shape = _shape(container, stream, tried)
        else:
            see = cuts.see if cuts else None
            shape, ticks = _try(container, stream, ticks[0], limits.frames, see)
        base = Fraction(stream.time_base)
    bounds = [0, *(cuts.places if cuts else ()), len(ticks)]
    return [_part(shape, ticks, base, *ends) for ends in itertools.pairwise(bounds)]


def _spans(
    file: IO[bytes], limits: Limits, spans: Sequence[Sequence[float]]
) -> list[dict[str, Any] | BadClip]:
    with open_video(file, limits) as (container, stream):
        ticks = packet_times(container, stream, limits)
        base = Fraction(stream.time_base)
        if len(ticks) > WHOLE:
            begun = {bisect.bisect_left(ticks, start / base) for start, _ in spans}
            tried = [ticks[first] for first in sorted(begun) if first < len(ticks)]
            shape = _shape(container, stream, tried or ticks[:1])
        else:
            shape, ticks = _try(container, stream, ticks[0], limits.frames)
    found: list[dict[str, Any] | BadClip] = []
    for start, end in spans:
        first, behind = (bisect.bisect_left(ticks, time / base) for time in (start, end))
        try:
            if first >= behind:
                raise BadClip("span", f"no frame between {start:g} and {end:g} seconds")
            found.append(_part(shape, ticks, base, first, behind))
        except BadClip as bad:
            found.append(bad)
    return found


def _shape(container: Any, stream: Any, starts: Sequence[int]) -> tuple[int, int, int]:
    """(height, width, rotation), the same wherever a film is tried."""
    shapes = {_try(container, stream, tick, TRIED)[0] for tick in starts}
    if len(shapes) > 1:
        raise BadClip("size", "changes within the clip")
    return shapes.pop()


def _part(
    shape: tuple[int, int, int], ticks: list[int], base: Fraction, first: int, behind: int
) -> dict[str, Any]:
    """Columns of the frames first .. behind - 1."""
    inside, rate = ticks[first:behind], Fraction(0)
    if len(inside) > 1:
        rate = (len(inside) - 1) / ((inside[-1] - inside[0]) * base)
        rate = rate.limit_denominator(100_000)
        if not 0 < rate <= FASTEST:
            raise BadClip("timestamps", f"{float(rate):g} frames a second")
    if behind < len(ticks):
        end = float(ticks[behind] * base)
    else:
        end = float(inside[-1] * base) + (float(1 / rate) if rate else 0.0)
    height, width, rotation = shape
    return {
        "start_s": float(inside[0] * base), "end_s": end,
        "fps_num": rate.numerator, "fps_den": rate.denominator,
        "height": height, "width": width, "n_frames": len(inside), "rotation": rotation,
    }  # fmt: skip


def packet_times(container: Any, stream: Any, limits: Limits) -> list[int]:
    """Presentation times of all packets in ticks, sorted."""
    ticks, count, promised = [], 0, stream.frames
    for packet in container.demux(stream):
        if packet.size == 0:  # the flush at the end
            continue
        if packet.is_corrupt:
            raise BadClip("truncated")
        if packet.pts is None:
            raise BadClip("timestamps", "missing")
        count += 1
        if not packet.is_discard:  # an edit list hides it
            ticks.append(packet.pts)
        if count > limits.frames:
            raise BadClip("too_large", f"more than {limits.frames} frames")
    if not ticks:
        raise BadClip("truncated" if promised else "no_frames")
    span = (max(ticks) - min(ticks)) * stream.time_base
    if span > limits.seconds:
        raise BadClip("too_large", f"longer than {limits.seconds:g} seconds")
    if len(ticks) - 1 > FASTEST * span:
        raise BadClip("timestamps", f"{len(ticks)} frames in {float(span):g} seconds")
    # In mp4 the table of samples is the file's own count; an AVI header's is often wrong.
    if container.format.name.startswith("mov") and count < promised:
        raise BadClip("truncated", f"{count} of {promised} frames")
    return sorted(ticks)


def _try(
    container: Any,
    stream: Any,
    start: int,
    most: int,
    see: Callable[[Any], None] | None = None,
) -> tuple[tuple[int, int, int], list[int]]:
    """((height, width, rotation), ticks) of at most `most` frames from `start` on, which must agree
    in shape."""
    container.seek(start, stream=stream, backward=True)
    shape, ticks = None, []
    for _, frame in whole_frames(container, stream):
        now = (*upright_size(frame), turns(frame) * 90)
        shape = shape or now
        if shape != now:
            raise BadClip("size", "changes within the clip")
        ticks.append(frame.pts)
        if see is not None:
            see(frame)
        if len(ticks) == most:
            break
    if shape is None:
        raise BadClip("no_frames")
    return shape, ticks
