"""Links: what a stage is told of the video of the stage below it.

    training   truth  --reduce-->  what the stage below would have made  --+
    sampling   the video that the stage below made  -----------------------+--noise--expand--> raw

From where the two ways meet they are one: a stage cannot be told of its condition otherwise in
sampling than it was in training. `raw` has

    below         (b f h w d)  the video below at the frames and the size of this one; for some
                               selections how the frames around one differ, or a channel that is 1
                               where a frame is given
    augmentation  (b e)        the time of the noise that was put on it, 0 for none

and signals of these names put them into the slots `channels` and `vector`. With `detail` the stage
makes what its video has beyond that alone (`apart`, `together`).

Noise on the condition in training makes a stage forgive what the stage below does badly; how much
of it there is to be in sampling can then be chosen (Ho et al. 2022a, section 4.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from einops import reduce
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.batch import Frames
from vdm_jax.config import UserError
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedule import Cosine
from vdm_jax.diffusion.times import Times, Uniform
from vdm_jax.types import Count, Fraction, Natural, Positive, Video

NONE = -1  # no frame
Places = Int[Array, "b f"]
Mixture = Sequence[tuple[Places, "Float[Array, 'b f'] | float"]]  # of frames, with their shares


class Selection(Protocol):
    """Which frames of a video the stage below makes, and which of those each frame is told."""

    @property
    def masked(self) -> bool:
        """Whether a channel says which frames are given."""

    def count(self, frames: int) -> int:
        """How many frames the video below has, for one of so many."""

    def above(self, frames: int) -> int | None:
        """Of how many frames a video below of so many is made; None where that is free."""

    def below(self, place: Places, frames: Places) -> Places:
        """Which frame of the video below the frame at `place` of `frames` is, or `NONE`."""

    def shown(self, place: Places, frames: Places) -> tuple[Mixture, ...]:
        """The pictures that the frame at `place` is told, each mixed of frames of the video below,
        or `NONE`. Shares of the first, which is what to expect of it, add up to 1."""

    def part(self, window: range) -> slice | None:
        """Which frames of the video below a window of a longer video is told; None where these are
        the frames that the window before carries over.

        Raises: UserError, a window that begins between them.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class EveryFrame:
    """All frames, each told its own: super-resolution in space."""

    masked = False

    def count(self, frames: int) -> int:
        return frames

    def above(self, frames: int) -> int | None:
        return frames

    def below(self, place: Places, frames: Places) -> Places:
        return place

    def shown(self, place: Places, frames: Places) -> tuple[Mixture, ...]:
        return _one(place)

    def part(self, window: range) -> slice | None:
        return slice(window.start, window.stop)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strided:
    """Every `stride`-th frame, the first at `ends`: super-resolution in time, interpolation.

    n frames below make (n - 1) stride + 1 + 2 ends: 16 make 61 at stride 4 and 76 at stride 5 but
    for what follows the last; 8 make 37 at stride 4 with 4 more at both ends. A still has no frames
    between its own, and is told nothing.

    Attributes:
      fill: what the frames between are told: 'repeat' is the last one before them, 'linear' a
        mixture of those before and after them by their distance, and how these two differ, which
        says what moved; 'blank' none.
      change: the standard deviation of how these two differ, in model values; that is told in units
        of it, or beside the pictures themselves it would be too little to be noticed.
    """

    stride: Count
    ends: Natural = 0
    fill: Literal["repeat", "linear", "blank"] = "repeat"
    change: Positive = 1.0

    def __post_init__(self):
        if self.fill not in ("repeat", "linear", "blank"):
            raise UserError(f"Strided.fill is '{self.fill}'; use 'repeat', 'linear' or 'blank'.")
        if self.fill != "linear" and self.change != 1:
            raise UserError(
                f"Strided.change is {self.change:g}, but with fill='{self.fill}' no differences "
                "of frames are told; leave it out, or use fill='linear'."
            )

    @property
    def masked(self) -> bool:
        return self.fill == "blank"

    def count(self, frames: int) -> int:
        return max(frames - 1 - 2 * self.ends, 0) // self.stride + 1

    def above(self, frames: int) -> int | None:
        if frames == 1:
            return 1
        between = (frames - 1) * self.stride + 1 + 2 * self.ends
        # But for 'blank' the last frame, too, is followed by frames of its own.
        return between if self.masked else between + self.stride - 1

    def below(self, place: Places, frames: Places) -> Places:
        index = self._before(place, frames)
        own = index * self.stride + self.ends == place
        return jnp.where(own & self._any(frames), index, NONE)

    def shown(self, place: Places, frames: Places) -> tuple[Mixture, ...]:
        if self.fill == "blank":
            return _one(self.below(place, frames))
        before = self._before(place, frames)
        here = jnp.where(self._any(frames), before, NONE)
        if self.fill == "repeat":
            return _one(here)
        past = (place - self.ends - before * self.stride) / self.stride
        after = jnp.minimum(before + 1, self._last(frames))
        after = jnp.where(self._any(frames), after, NONE)
        share = jnp.clip(past, 0, 1)
        mixed = (here, 1 - share), (after, share)
        return mixed, ((here, -1 / self.change), (after, 1 / self.change))

    def _any(self, frames: Places) -> Bool[Array, "b f"]:
        """Whether there is a frame below that is not the video itself."""
        return frames > max(1, 2 * self.ends)

    def part(self, window: range) -> slice | None:
        if window.start % self.stride or self.ends:
            raise UserError(
                f"a window begins at frame {window.start}, but a stride of {self.stride} with "
                f"{self.ends} frames at the ends has none of the frames below there; let "
                "windows.frames - windows.carry be a multiple of the stride, and ends 0."
            )
        first = window.start // self.stride
        return slice(first, first + self.count(len(window)))

    def _before(self, place: Places, frames: Places) -> Places:
        return jnp.clip((place - self.ends) // self.stride, 0, self._last(frames))

    def _last(self, frames: Places) -> Places:
        return jnp.maximum(frames - 1 - 2 * self.ends, 0) // self.stride


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ends:
    """The `first` and the `last` frames: animation of an image, prediction, filling in.

    A video of no more frames than that is told none of them.
    """

    first: Natural = 1
    last: Natural = 0
    masked = True

    def __post_init__(self):
        if not self.first + self.last:
            raise UserError("Ends needs first or last above 0.")

    def count(self, frames: int) -> int:
        return self.first + self.last

    def above(self, frames: int) -> int | None:
        return None

    def below(self, place: Places, frames: Places) -> Places:
        late = place - (frames - self.last)
        index = jnp.where(late >= 0, self.first + late, NONE)
        index = jnp.where(place < self.first, place, index)
        return jnp.where(frames > self.first + self.last, index, NONE)

    def shown(self, place: Places, frames: Places) -> tuple[Mixture, ...]:
        return _one(self.below(place, frames))

    def part(self, window: range) -> slice | None:
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """Noise on the condition.

    Attributes:
      times: the law of its time in training; at: its time in sampling.
    """

    process: Process = dataclasses.field(default_factory=lambda: Process(schedule=Cosine()))
    times: Times = dataclasses.field(default_factory=Uniform)
    at: Fraction = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """Attributes:
    factor: how many times smaller the pictures below are, in height and in width.
    detail: the standard deviation of what a video has beyond what is told of it without noise,
      in model values; this then is what the stage makes (Li et al. 2022, SRDiff), in units of its
      standard deviation. None is the video itself.
    """

    select: Selection = EveryFrame()
    factor: Count = 1
    augment: Augment | None = None
    detail: Positive | None = None

    def train(self, batch: Frames, seed: int | Array) -> Mapping[str, Array]:
        """What the stage is told of a batch of true videos."""
        time = jnp.zeros(batch.examples.valid.shape)
        if (noise := self.augment) is not None:
            time = noise.times(batch.keys(seed, "augmentation"), batch, noise.process)[..., 0]
        return self._told(self.reduce(batch), batch, time, seed)

    def sample(self, below: Frames, batch: Frames, seed: int | Array = 0) -> Mapping[str, Array]:
        """What the stage is told in sampling `batch`; `below` has its examples, in their places."""
        at = 0.0 if self.augment is None else self.augment.at
        return self._told(below, batch, jnp.full(batch.examples.valid.shape, at), seed)

    def apart(self, batch: Frames, told: Mapping[str, Array]) -> Frames:
        """The batch with what its videos have beyond what is told of them in their place."""
        if self.detail is None:
            return batch
        mean, scale = self._mean(batch, told), told["scale"]
        given = None if batch.given is None else (batch.given - mean) / scale
        return batch.replace(x=(batch.x - mean) / scale, given=given)

    def together(self, x: Video, batch: Frames, told: Mapping[str, Array]) -> Video:
        """The inverse of `apart`: x of the batch -> the videos."""
        return x if self.detail is None else self._mean(batch, told) + told["scale"] * x

    def give(self, below: Frames, batch: Frames) -> Frames:
        """The batch with the video below as what is known of it, for `Keep` and `Reconstruct`: of
        pictures as large, whole frames, none that are only repeated or mixed of others; of smaller
        ones, means."""
        known = None
        if self.factor == 1:
            own = self.select.below(batch.position, _lengths(batch)) != NONE
            known = own & self._fetch(below, batch)[1]
        return batch.replace(
            known=known, given=self._expand(below, batch)[..., : below.x.shape[-1]]
        )

    def reduce(self, batch: Frames) -> Frames:
        """What the stage below would have made: frames left out, pictures averaged."""
        k = self.factor
        index = self.select.below(batch.position, _lengths(batch))
        kept = (index != NONE) & (batch.segment > 0)
        return batch.replace(
            x=reduce(batch.x, "b f (h k) (w l) c -> b f h w c", "mean", k=k, l=k),
            segment=jnp.where(kept, batch.segment, 0),
            position=jnp.where(kept, index, 0),
            mask=None, level=None, known=None, given=None,
        )  # fmt: skip

    def size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Of the video below one of this size."""
        return self.select.count(frames), height // self.factor, width // self.factor

    def above(self, frames: int, height: int, width: int) -> tuple[int | None, int, int]:
        """The size that is made of a video below of this size; frames None where that is free."""
        return self.select.above(frames), height * self.factor, width * self.factor

    def _told(
        self, below: Frames, batch: Frames, time: Float[Array, "b e"], seed: int | Array
    ) -> Mapping[str, Array]:
        if self.augment is not None:
            at = self.augment.process.level(time[..., None])
            eps = below.white(below.keys(seed, "below"))
            x = self.augment.process.noise(below.x, eps, jax.tree.map(below.spread, at))
            below = below.replace(x=x)
        told = {"below": self._expand(below, batch), "augmentation": time}
        if self.detail is not None:
            # Of unit variance, x less alpha (alpha x + sigma n) varies by sigma^2 (sigma^2 +
            # alpha^2 var(n)). What is told nothing is left whole.
            noise: Array | float = 0.0
            if self.augment is not None:
                alpha2, sigma2 = (jnp.square(batch.spread(one)) for one in (at.alpha, at.sigma))
                noise = sigma2 * (sigma2 + alpha2 * self._variance(batch)[..., None, None, None])
            left = jnp.sqrt(self.detail**2 + noise)
            given = self._fetch(below, batch)[1][..., None, None, None]
            told["scale"] = jnp.where(given, left, 1.0)
        return told

    def _mean(self, batch: Frames, told: Mapping[str, Array]) -> Video:
        """What is to be expected of videos of unit variance by what is told of them."""
        below = told["below"][..., : batch.x.shape[-1]]
        if self.augment is None:
            return below
        at = self.augment.process.level(told["augmentation"][..., None])
        return batch.spread(at.alpha) * below

    def _variance(self, batch: Frames) -> Float[Array, "b f"]:
        """Of what each frame is to be expected to be, where frames below vary by 1 each."""
        mixture = self.select.shown(batch.position, _lengths(batch))[0]
        total = jnp.zeros(batch.position.shape)
        for frame, share in mixture:
            for other, its in mixture:
                total += jnp.where(frame == other, share * its, 0.0)
        return total

    def _expand(self, below: Frames, batch: Frames) -> Video:
        """The video below at the frames and the size of `batch`; zeros where there is none."""
        found, given = self._fetch(below, batch)
        given = given[..., None, None, None]
        shape = (*found.shape[:2], *batch.x.shape[2:4], found.shape[-1])
        video = jnp.where(given, jax.image.resize(found, shape, "bilinear"), 0)
        if not self.select.masked:
            return video
        mask = jnp.broadcast_to(given, (*shape[:-1], 1)).astype(video.dtype)
        return jnp.concatenate([video, mask], axis=-1)

    def _fetch(self, below: Frames, batch: Frames) -> tuple[Video, Bool[Array, "b f"]]:
        """What each frame is told of those below, and whether there is any."""
        same = (below.segment[:, None] == batch.segment[..., None]) & (batch.segment > 0)[..., None]
        given = jnp.zeros(batch.segment.shape, bool)
        pictures = []
        for mixture in self.select.shown(batch.position, _lengths(batch)):
            picture: Video | float = 0.0
            for shown, share in mixture:
                mine = same & (below.position[:, None] == shown[..., None])
                frames = jax.vmap(lambda frames, i: frames[i])(below.x, jnp.argmax(mine, axis=-1))
                picture += jnp.asarray(share)[..., None, None, None] * frames
                given |= mine.any(-1)
            pictures.append(picture)
        return jnp.concatenate(pictures, axis=-1), given


def _one(frame: Places) -> tuple[Mixture, ...]:
    """One picture, that of one frame."""
    return (((frame, 1.0),),)


def _lengths(batch: Frames) -> Places:
    """How many frames the example of each frame has."""
    return batch.spread(batch.examples.grid[..., 0])[..., 0, 0, 0]
