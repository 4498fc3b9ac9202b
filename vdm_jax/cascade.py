"""Cascades: stages that each make a better video of the one before.

    pipeline.load_all(["runs/base", "runs/frames", "runs/size"])(requests)

A request is for the last stage; what the stages below it are asked follows from the links. A stage
that would add nothing to a still, as there are no frames between its frames, lets it pass.

Where the weights are is said by a `Placement`: stages take turns on the devices there are, or each
has devices of its own, so that one makes its videos while the next makes better ones of earlier
videos. Stages in other processes exchange files instead (`gallery.read_all`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Protocol, Self, cast

import jax
import numpy as np

from vdm_jax.codecs import Embedding
from vdm_jax.config import UserError
from vdm_jax.requests import Capacity, Made, Request, Video
from vdm_jax.stage import Stage

Videos = dict[int, Video | None]  # by the number of the request


class Maker(Protocol):
    """A stage that makes videos: what a cascade asks of `pipeline.Pipeline`."""

    @property
    def stage(self) -> Stage: ...

    @property
    def capacity(self) -> Capacity: ...

    @property
    def digest(self) -> str: ...

    @property
    def config(self) -> str: ...

    def __call__(
        self, requests: Sequence[Request], below: Sequence[Video] | None = None
    ) -> Iterator[Made]: ...

    def on(self, devices: Sequence[jax.Device]) -> Self:
        """With its weights on these devices."""

    def override(
        self,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        augmentation: float | None = None,
    ) -> Self: ...


class Stretch(Protocol):
    def __call__(self, maker: Maker, number: int, videos: Videos) -> Videos:
        """What stage `number` makes of the videos of the one below."""


class Placement(Protocol):
    def __call__(
        self, stages: Sequence[Maker], stretch: Stretch, groups: Sequence[Videos]
    ) -> Iterator[Videos]:
        """Groups of videos through all stages."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turns:
    """Every stage on the same devices, one after another; the others' weights wait on the host."""

    def __call__(
        self, stages: Sequence[Maker], stretch: Stretch, groups: Sequence[Videos]
    ) -> Iterator[Videos]:
        for number, stage in enumerate(stages):
            here = stage.on(jax.local_devices()[:1])
            groups = [stretch(here, number, videos) for videos in groups]
            del here  # before the next stage's weights come in
        yield from groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Apart:
    """Every stage on devices of its own, all at work at the same time.

    Raises: UserError, more stages than devices.
    """

    def __call__(
        self, stages: Sequence[Maker], stretch: Stretch, groups: Sequence[Videos]
    ) -> Iterator[Videos]:
        devices = jax.local_devices()
        if len(devices) < len(stages):
            raise UserError(
                f"{len(stages)} stages apart need as many devices, and there are {len(devices)}; "
                "let them take turns."
            )
        shares = np.array_split(np.array(devices), len(stages))
        placed = [stage.on(list(share)) for stage, share in zip(stages, shares, strict=True)]
        with ExitStack() as stack:
            # A thread a stage: groups pass through in their order, each as soon as it can.
            threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in placed]

            def follow(number: int, before: Future[Videos] | Videos) -> Videos:
                videos = before.result() if isinstance(before, Future) else before
                return stretch(placed[number], number, videos)

            ends = []
            for videos in groups:
                last: Future[Videos] | Videos = videos
                for number, thread in enumerate(threads):
                    last = thread.submit(follow, number, last)
                ends.append(last)
            for end in ends:
                yield end.result() if isinstance(end, Future) else end


TURNS = Turns()
PLACEMENTS: dict[str, Placement] = {"turns": TURNS, "apart": Apart()}


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Attributes:
    stages: the first makes videos of words alone.
    """

    stages: tuple[Maker, ...]
    placement: Placement = TURNS

    @property
    def digest(self) -> str:
        return "+".join(stage.digest for stage in self.stages)

    @property
    def config(self) -> str:
        return "+".join(stage.config for stage in self.stages)

    def __call__(self, requests: Sequence[Request]) -> Iterator[Made]:
        """Yields (index of the request, uint8 video (t h w c)); None for a video with a value that
        is not finite at any stage.

        Raises: UserError, a size that some stage does not make.
        """
        asked = self.asked(requests)

        def stretch(maker: Maker, number: int, videos: Videos) -> Videos:
            wanted = asked[number]
            mine = [index for index in videos if not self._passes(number, wanted[index])]
            if number:
                mine = [index for index in mine if videos[index] is not None]
            if not mine:
                return videos
            below = [videos[index] for index in mine] if number else None
            made = maker([wanted[index] for index in mine], below)  # type: ignore[arg-type]
            return videos | {mine[place]: video for place, video in made}

        size = max(1, self.stages[0].capacity.rows)
        numbers = range(len(requests))
        groups: list[Videos] = [
            dict.fromkeys(numbers[first : first + size]) for first in numbers[::size]
        ]
        for videos in self.placement(self.stages, stretch, groups):
            yield from videos.items()

    def asked(self, requests: Sequence[Request]) -> list[list[Request]]:
        """What each stage is asked, the first one first.

        Raises: UserError, a stage that is told of none before the last, or of something else.
        """
        found = [list(requests)]
        for number in range(len(self.stages) - 1, 0, -1):
            self._check(number)
            stage = self.stages[number].stage
            found.insert(0, [_below(stage, request) for request in found[0]])
        return found

    def _check(self, number: int) -> None:
        """Whether stage `number` is told what the one before it makes."""
        here, before = self.stages[number].stage, self.stages[number - 1].stage
        name = f"stage {number + 1} of {len(self.stages)}"
        if here.first:
            raise UserError(
                f"{name} is told of none below it; name it first, or leave out those before it."
            )
        if before.makes_videos:
            return
        if here.link is not None:
            raise UserError(f"{name} is told of a video, but the one before it makes none.")
        if before.codec != here.image:
            raise UserError(
                f"{name} is told of embeddings by another encoder than the one before it makes."
            )

    def override(self, **changes: Any) -> Cascade:
        """With another number of steps, guidance or augmentation for every stage that has one."""
        stages = []
        for one in self.stages:
            link = one.stage.link
            mine = dict(changes)
            if link is None or link.augment is None:
                mine.pop("augmentation", None)
            stages.append(one.override(**mine))
        return dataclasses.replace(self, stages=tuple(stages))

    def _passes(self, number: int, request: Request) -> bool:
        """Whether a still is already what this stage would make of it."""
        link = self.stages[number].stage.link
        return link is not None and request.frames == 1 and link.size(*request.size) == request.size


def _below(stage: Stage, request: Request) -> Request:
    """What the stage below is asked for this request."""
    if (link := stage.link) is None:
        _, height, width = cast(Embedding, stage.image).stride
        return dataclasses.replace(request, frames=1, height=height, width=width)
    frames, height, width = link.size(*request.size)
    fps = request.fps * link.select.count(request.frames) / request.frames
    return dataclasses.replace(
        request, frames=frames, height=height, width=width, fps=max(fps, 1e-3)
    )
