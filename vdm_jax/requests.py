"""From requests to the arrays of calls: plain numpy, in the shapes of one compiled program.

    requests -> jobs (a window of a request, and what it is given) -> groups of rows -> arrays

Several jobs share a row, as examples do in training; a call holds as many rows as its capacity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_pipeline.rows import patchify
from data_pipeline.text import Tokenizer
from vdm_jax.config import UserError
from vdm_jax.stage import Stage

Video = np.ndarray  # uint8 (t h w c); of a prior, float32 (1 1 1 d): an embedding
Made = tuple[int, Video | None]  # a request's index; no video where it has values of no number
TEXT_PARTS = ("ids", "segment", "position")
LANES = 128  # lengths of packed rows are rounded up to whole ones of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One video to make; one frame is a still image. An empty `negative` is no text at all."""

    prompt: str
    frames: int
    height: int
    width: int
    fps: float = 8.0
    seed: int = 0
    negative: str = ""

    @property
    def size(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What one example of a call is.

    Attributes:
      window: its number in a video that is made part by part; noise differs by it.
      below: uint8 (f h w c), the video of the stage below; None where there is none.
      image: the embedding of the picture that it is told of, if it is.
      given: uint8 (k h w c), its first frames, known beforehand.
    """

    request: Request
    window: int = 0
    below: np.ndarray | None = None
    given: np.ndarray | None = None
    image: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """The static shape of one call: rows of `tokens`, `text_tokens` and `segments` each."""

    rows: int
    tokens: int
    text_tokens: int
    segments: int


def grid(stage: Stage, request: Request) -> tuple[int, int, int]:
    """Cells (t, y, x) of a request; time is rounded up to whole patches."""
    units = [s * p for s, p in zip(stage.codec.stride, stage.patch, strict=True)]
    t, h, w = (-(-extent // unit) for extent, unit in zip(request.size, units, strict=True))
    return t, h, w


def check(stage: Stage, request: Request, index: int) -> None:
    """Raises: UserError, a size that the stage does not make; the nearest that it does."""
    if wrong := size_problems(stage, request.size):
        raise UserError(f"request {index}: {' '.join(wrong)}")


def size_problems(stage: Stage, size: tuple[int, int, int]) -> list[str]:
    """Why a video of (frames, height, width) cannot be made by this stage; nearest legal size."""
    found = []
    for axis, (name, value, unit) in enumerate(
        zip(("frames", "height", "width"), size, stage.unit, strict=True)
    ):
        # Time may be any length: patches are padded at the front and the padding is cut off.
        if value < 1 or (axis > 0 and value % unit):
            near = max(unit, round(value / unit) * unit)
            found.append(f"{name} is {value}; it must be a multiple of {unit}, such as {near}.")
    return found


def room_for(
    stage: Stage, capacity: Capacity, tokenizer: Tokenizer, requests: Sequence[Request]
) -> Capacity:
    """The trained row, lengthened where one request alone would not fit in it."""
    longest = max(int(np.prod(grid(stage, request))) for request in requests)
    lanes = 1 if stage.whole_frames else LANES
    words = max(len(tokenizer.encode(text)) for r in requests for text in (r.prompt, r.negative))
    return dataclasses.replace(
        capacity,
        tokens=max(capacity.tokens, -(-longest // lanes) * lanes),
        text_tokens=max(capacity.text_tokens, words + 1),
    )


def groups(
    stage: Stage, room: Capacity, tokenizer: Tokenizer, requests: Sequence[Request]
) -> Iterator[list[list[int]]]:
    """Indices of requests by call and row, in order: a full row is closed for good."""
    rows: list[list[int]] = [[]]
    used = np.zeros(3, int)
    limit = np.array([room.tokens, room.text_tokens - 1, room.segments])
    for index, request in enumerate(requests):
        words = max(len(tokenizer.encode(t)) for t in (request.prompt, request.negative))
        need = np.array([int(np.prod(grid(stage, request))), words, 1])
        if rows[-1] and np.any(used + need > limit):
            if len(rows) == room.rows:
                yield rows
                rows = []
            rows.append([])
            used = np.zeros(3, int)
        rows[-1].append(index)
        used = used + need
    yield rows


def blank(stage: Stage, room: Capacity) -> dict[str, np.ndarray]:
    """The arrays of a call with nothing in them."""
    b, n, e, l = room.rows, room.tokens, room.segments, room.text_tokens
    out: dict[str, np.ndarray] = {
        "segment": np.zeros((b, n), np.int32),
        "position": np.zeros((b, n, 3), np.int32),
        "raster": np.zeros((b, n), np.int32),
        "mask": np.zeros((b, n, stage.patch_features), bool),
        "id": np.zeros((b, e, 2), np.uint32),
        "visit": np.zeros((b, e), np.int32),
        "valid": np.zeros((b, e), bool),
        "grid": np.zeros((b, e, 3), np.int32),
        "fps": np.zeros((b, e), np.float32),
        "negated": np.zeros((b, e), bool),
    }
    for kind in ("prompt", "negative"):
        out |= {f"{kind}_{part}": np.zeros((b, l), np.int32) for part in TEXT_PARTS}
        if stage.text is not None:
            out[f"{kind}_features"] = np.zeros((b, l, stage.text.width), np.float16)
    if stage.link is not None:
        _, h, w = stage.link.size(1, *stage.patch[1:])
        out["below"] = np.zeros((b, n, h, w, stage.codec.channels), np.uint8)
        out["below_segment"] = np.zeros((b, n), np.int32)
        out["below_position"] = np.zeros((b, n), np.int32)
    if stage.image is not None:
        out["image"] = np.zeros((b, e, stage.image.channels), np.float32)
    if stage.windows is not None and stage.windows.carry:
        out["known"] = np.zeros((b, n), bool)
        out["given"] = np.zeros((b, n, stage.patch_features), np.uint8)
    return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Desk:
    """Writes jobs into the arrays of a call.

    Attributes:
      features: {text: (words, width)} of the frozen text encoder, if there is one.
    """

    stage: Stage
    room: Capacity
    tokenizer: Tokenizer
    features: Mapping[str, np.ndarray]

    def __call__(self, rows: Sequence[Sequence[Job]]) -> dict[str, np.ndarray]:
        """Raises: UserError, a video below that is not of the size that it must be."""
        out = blank(self.stage, self.room)
        for row, members in enumerate(rows):
            start, texts, frame = 0, {"prompt": 0, "negative": 0}, 0
            for slot, job in enumerate(members):
                stop = start + int(np.prod(grid(self.stage, job.request)))
                self._place(out, row, slot, slice(start, stop), job)
                for kind in texts:
                    texts[kind] = self._say(out, row, slot, kind, texts[kind], job.request)
                frame = self._show(out, row, slot, frame, job)
                start = stop
        if not any(job.below is not None for members in rows for job in members):
            return {name: leaf for name, leaf in out.items() if not name.startswith("below")}
        return out

    def _place(self, out, row: int, slot: int, here: slice, job: Job) -> None:
        """The job's cells."""
        request, stage = job.request, self.stage
        cells, layers = grid(stage, request), -(-request.frames // stage.codec.stride[0])
        count = here.stop - here.start
        out["segment"][row, here] = slot + 1
        out["position"][row, here] = np.indices(cells).reshape(3, -1).T
        out["raster"][row, here] = np.arange(count)
        out["mask"][row, here] = _time_mask(layers, cells, stage)
        out["id"][row, slot] = (request.seed >> 32, request.seed & 0xFFFFFFFF)
        out["visit"][row, slot] = job.window
        out["valid"][row, slot] = True
        out["grid"][row, slot] = cells
        out["fps"][row, slot] = request.fps / stage.codec.stride[0] if layers > 1 else 0
        # A stage that reads no text is guided away from no condition, whatever is negative.
        reads = any(signal.key == "text" for signal in stage.denoiser.signals)
        out["negated"][row, slot] = reads and bool(request.negative)
        if job.image is not None:
            out["image"][row, slot] = job.image
        if job.given is not None:
            patches = patchify(job.given, stage.patch)
            first = slice(here.start, here.start + len(patches))
            out["known"][row, first], out["given"][row, first] = True, patches

    def _say(self, out, row: int, slot: int, kind: str, start: int, request: Request) -> int:
        """The job's text; where the next one begins."""
        text = getattr(request, kind)
        ids = self.tokenizer.encode(text)
        here = slice(start, start + len(ids))
        out[f"{kind}_ids"][row, here] = ids
        out[f"{kind}_segment"][row, here] = slot + 1
        out[f"{kind}_position"][row, here] = np.arange(len(ids))
        if text in self.features:
            some = self.features[text]
            out[f"{kind}_features"][row, here][: len(some)] = some
        return start + len(ids)

    def _show(self, out, row: int, slot: int, start: int, job: Job) -> int:
        """The video below; where the next one begins."""
        if (link := self.stage.link) is None or job.below is None:
            return start
        wanted = link.size(*job.request.size)
        if job.below.shape[:3] != wanted:
            raise UserError(
                f"the video below one of {job.request.size} has (frames, height, width) "
                f"{job.below.shape[:3]}; this stage needs {wanted}."
            )
        here = slice(start, start + len(job.below))
        out["below"][row, here] = job.below
        out["below_segment"][row, here] = slot + 1
        out["below_position"][row, here] = np.arange(len(job.below))
        return start + len(job.below)


def _time_mask(layers: int, grid: tuple[int, int, int], stage: Stage) -> np.ndarray:
    """False on the features that pad time at the front, as the loader pads it."""
    pt = stage.patch[0]
    padding = grid[0] * pt - layers
    mask = np.ones((int(np.prod(grid)), pt, stage.patch_features // pt), bool)
    mask[: grid[1] * grid[2], :padding] = False
    return mask.reshape(len(mask), -1)
