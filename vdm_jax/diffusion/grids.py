"""Time grids: which levels a sampler visits, from `start` down to 0, clean.

A grid is a function of (index, steps) that works elementwise, so each example, even each level of
an example, may have its own start and number of steps in one loop: with fewer steps it reaches 0
earlier and is held there.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedule import Numbers
from vdm_jax.types import Count, Finite, Fraction, Natural, Positive

Indices = Int[Array, "..."]


@runtime_checkable
class Grid(Protocol):
    def length(self, steps: int) -> int:
        """How many steps the loop must take."""

    def __call__(
        self, index: Indices, steps: Indices, start: Float[Array, "..."], process: Process
    ) -> Numbers:
        """The time before step `index`; 0 from the last step on. Arguments broadcast."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linspace:
    """Even in t, down to clean; or, where `last` is given, down to it and then clean."""

    last: Fraction = 0.0

    def length(self, steps):
        return steps

    def __call__(self, index, steps, start, process):
        if self.last == 0:
            return start * jnp.maximum(1 - index / steps, 0)
        t = start + (self.last - start) * index / jnp.maximum(steps - 1, 1)
        return jnp.where(index >= steps, 0, jnp.minimum(t, start))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Karras:
    """sigma / alpha even in its power 1 / rho, then clean (Karras et al. 2022, equation 5).

    `sigma_max` holds where the process is noisier still.
    """

    rho: Positive = 7.0
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    def length(self, steps):
        return steps

    def __call__(self, index, steps, start, process):
        top = jnp.minimum(jnp.exp(-process.level(start).logsnr / 2), self.sigma_max)
        low, high = jnp.minimum(self.sigma_min, top) ** (1 / self.rho), top ** (1 / self.rho)
        place = index / jnp.maximum(steps - 1, 1)
        sigma = (high + jnp.clip(place, 0, 1) * (low - high)) ** self.rho
        t = jnp.minimum(process.inverse(-2 * jnp.log(sigma)), start)
        return jnp.where(index >= steps, 0, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSnr:
    """Even in log SNR between the start (at least `logsnr_min`) and `logsnr_max`, then clean."""

    logsnr_min: Finite = -12.0
    logsnr_max: Finite = 8.0

    def length(self, steps):
        return steps

    def __call__(self, index, steps, start, process):
        low = jnp.clip(process.level(start).logsnr, self.logsnr_min, self.logsnr_max)
        place = jnp.clip(index / jnp.maximum(steps - 1, 1), 0, 1)
        t = process.inverse(low + place * (self.logsnr_max - low))
        return jnp.where(index >= steps, 0, jnp.minimum(t, start))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trailing:
    """Entries round(T - k T / N) - 1 of a table of T (Lin et al. 2024, table 2)."""

    table: Count = 1000

    def length(self, steps):
        return steps

    def __call__(self, index, steps, start, process):
        entry = jnp.round(self.table - index * self.table / steps)
        return jnp.where(index >= steps, 0, jnp.minimum(entry / self.table, start))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leading:
    """Entries (N - 1 - k) floor(T / N) + offset of a table of T; never reaches pure noise."""

    table: Count = 1000
    offset: Natural = 1

    def length(self, steps):
        return steps

    def __call__(self, index, steps, start, process):
        entry = (steps - 1 - index) * (self.table // steps) + self.offset
        return jnp.where(index >= steps, 0, jnp.minimum((entry + 1) / self.table, start))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explicit:
    """These times, then clean; `Sampler.steps` has no say."""

    times: tuple[float, ...]

    def length(self, steps):
        return len(self.times)

    def __call__(self, index, steps, start, process):
        table = jnp.asarray((*self.times, 0.0))
        return jnp.minimum(table[jnp.minimum(index, len(self.times))], start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifted:
    """`grid`, moved towards noise by `factor`, as `schedule.Shift` moves a process."""

    grid: Grid
    factor: Positive = 3.0

    def length(self, steps):
        return self.grid.length(steps)

    def __call__(self, index, steps, start, process):
        t = self.grid(index, steps, start, process)
        shifted = process.inverse(process.level(t).logsnr - 2 * jnp.log(self.factor))
        return jnp.where((t <= 0) | (t >= start), t, jnp.minimum(shifted, start))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Staggered:
    """Level j of an example starts `delay` steps after level j - 1 and is held before and after.

    With one level per frame: delay 0 samples all frames together, `Sampler.steps` one after the
    other, between them a pyramid (Chen et al. 2024, figure 2).
    """

    grid: Grid
    levels: Count
    delay: Natural = 1

    def length(self, steps):
        return self.grid.length(steps) + self.delay * (self.levels - 1)

    def __call__(self, index, steps, start, process):
        late = index - self.delay * jnp.arange(self.levels)
        return self.grid(jnp.maximum(late, 0), steps, start, process)
