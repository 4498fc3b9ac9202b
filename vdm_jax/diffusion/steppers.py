"""Samplers' steps, from one noise level to the next, written in alpha, sigma and log SNR alone.

At fixed x_t the exact deterministic path of every process is (Song et al. 2021, in these terms)

    dx = x0(x) d alpha + eps(x) d sigma                                                    (1)

and with h = half the gain in log SNR it integrates to

    x' = (sigma' / sigma) x + (alpha' - sigma' alpha / sigma) D                            (2)

for x0 = D constant; alpha' - sigma' alpha / sigma = alpha' (1 - e^-h) is finite at both ends.

A step sees levels per example (b e k); cells may stand at different levels, and a cell whose level
stands still must be left alone, its history too. `advance` sees to both, so the leaves of a carry
are per cell, broadcastable to x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vdm_jax.batch import Frames, Packed
from vdm_jax.diffusion.parameterization import Prediction
from vdm_jax.diffusion.process import Level, Process, gap, held, over
from vdm_jax.types import Fraction

Predict = Callable[[Frames | Packed, Level], Prediction]
Draw = Callable[..., Array]  # (purpose, *counters) -> this step's noise, like x
Carry = Any


@runtime_checkable
class Stepper(Protocol):
    """`order` is the order of convergence to the deterministic path; 0 for a random step."""

    @property
    def order(self) -> int: ...

    def init(self, batch: Frames | Packed) -> Carry:
        """History before the first step; leaves broadcast to x."""

    def step(
        self,
        denoise: Predict,
        draw: Draw,
        carry: Carry,
        batch: Frames | Packed,
        now: Level,
        nxt: Level,
    ) -> tuple[Array, Carry]:
        """batch.x at `now` -> x at `nxt`."""


def advance(
    stepper: Stepper,
    denoise: Predict,
    draw: Draw,
    carry: Carry,
    batch: Frames | Packed,
    now: Level,
    nxt: Level,
) -> tuple[Array, Carry]:
    """One step in which cells that are held keep their bits and their history."""
    x, after = stepper.step(denoise, draw, carry, batch, now, nxt)
    still = held(_spread(batch, now), _spread(batch, nxt))
    x = jnp.where(still, batch.x, x)
    return x, jax.tree.map(lambda old, new: jnp.where(still, old, new), carry, after)


def _spread(batch: Frames | Packed, at: Level) -> Level:
    return jax.tree.map(batch.spread, at)


def posterior_variance(now: Level, nxt: Level) -> Array:
    """Variance of q(x at nxt | x at now, x0): sigma'^2 (1 - snr / snr')."""
    return nxt.sigma**2 * -jnp.expm1(-jnp.maximum(gap(now, nxt), 0))


class _Memoryless:
    """What steppers have in common that remember nothing; random ones, unless they say more."""

    order: ClassVar[int] = 0

    def init(self, batch):
        return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ddim(_Memoryless):
    """Song et al. 2021a, equation 12; `eta` 1 has the posterior's variance. Runs upward too."""

    eta: Fraction = 0.0

    @property
    def order(self):
        return 1 if self.eta == 0 else 0

    def step(self, denoise, draw, carry, batch, now, nxt):
        prediction = denoise(batch, now)
        now, nxt = _spread(batch, now), _spread(batch, nxt)
        fresh = self.eta**2 * posterior_variance(now, nxt)
        kept = jnp.sqrt(jnp.maximum(nxt.sigma**2 - fresh, 0))
        x = nxt.alpha * prediction.x0 + kept * prediction.eps
        return (x if self.eta == 0 else x + jnp.sqrt(fresh) * draw("step")), carry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral(_Memoryless):
    """A sample of the posterior (Ho et al. 2020, equation 6).

    Its log variance lies between the posterior's (0, right for data that is a point) and the
    forward step's (1, right for white data): at `large`, or where the network has learnt it.
    """

    large: Fraction = 0.0

    def step(self, denoise, draw, carry, batch, now, nxt):
        prediction = denoise(batch, now)
        now, nxt = _spread(batch, now), _spread(batch, nxt)
        small = posterior_variance(now, nxt)
        mean = nxt.alpha * prediction.x0
        mean += jnp.sqrt(jnp.maximum(nxt.sigma**2 - small, 0)) * prediction.eps
        mix = self.large if prediction.var_frac is None else prediction.var_frac
        # small = sigma'^2 g, large = sigma^2 g: their ratio is that of the sigmas.
        growth = jnp.where(nxt.sigma > 0, over(now.sigma, nxt.sigma), 1) ** mix
        return mean + growth * jnp.sqrt(small) * draw("step"), carry


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoStep(_Memoryless):
    """A deterministic step of twice the length, then noise for the way back, for distilled models
    (Ho et al. 2022, "Imagen Video", section 2.7). With r = sigma / alpha at the time 2 t' - t,

        x' = alpha' (x0 + r eps) + sqrt(sigma'^2 - (alpha' r)^2) n

    Attributes:
      process: the stage's own, which says what lies beyond the next level.
    """

    process: Process

    def step(self, denoise, draw, carry, batch, now, nxt):
        prediction = denoise(batch, now)
        beyond = self.process.on(batch).level(jnp.maximum(2 * nxt.t - now.t, 0))
        ratio, nxt = batch.spread(jnp.exp(-beyond.logsnr / 2)), _spread(batch, nxt)
        kept = nxt.alpha * ratio
        x = nxt.alpha * prediction.x0 + kept * prediction.eps
        return x + jnp.sqrt(jnp.maximum(nxt.sigma**2 - kept**2, 0)) * draw("step"), carry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler(_Memoryless):
    """(1) with x0 and eps of the present; in exact arithmetic the same as `Ddim` with eta 0."""

    order: ClassVar[int] = 1

    def step(self, denoise, draw, carry, batch, now, nxt):
        prediction = denoise(batch, now)
        return _increment(batch, prediction, _spread(batch, now), _spread(batch, nxt)), carry


def _increment(batch: Frames | Packed, slope: Prediction, now: Level, nxt: Level) -> Array:
    signal, noise = nxt.alpha - now.alpha, nxt.sigma - now.sigma
    return batch.x + signal * slope.x0 + noise * slope.eps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(_Memoryless):
    """(1) by the trapezium rule; Euler onto a clean level (Karras et al. 2022, algorithm 1)."""

    order: ClassVar[int] = 2

    def step(self, denoise, draw, carry, batch, now, nxt):
        first = denoise(batch, now)
        here, there = _spread(batch, now), _spread(batch, nxt)
        x = _increment(batch, first, here, there)
        second = denoise(batch.replace(x=x), nxt)
        mean = Prediction((first.x0 + second.x0) / 2, (first.eps + second.eps) / 2)
        return jnp.where(there.sigma > 0, _increment(batch, mean, here, there), x), carry


class History(NamedTuple):
    """What multistep solvers remember of a cell; `seen` says how many entries are real."""

    x: Array  # state before the last step
    x0: tuple[Array, Array]  # newest first
    logsnr: tuple[Array, Array]
    alpha: Array
    sigma: Array
    seen: Array

    @classmethod
    def empty(cls, batch: Frames | Packed) -> History:
        cell = jnp.zeros(batch.segment.shape + (1,) * (batch.x.ndim - 2), batch.x.dtype)
        zero = jnp.zeros_like(batch.x)
        return cls(zero, (zero, zero), (cell, cell), cell, cell, cell)

    def push(self, x: Array, x0: Array, at: Level) -> History:
        return History(
            x, (x0, self.x0[0]), (at.logsnr, self.logsnr[0]), at.alpha, at.sigma, self.seen + 1
        )


def _half_gap(low: Array, high: Array) -> Array:
    same = low == high
    return jnp.where(same, 0, high - jnp.where(same, 0, low)) / 2


def _extrapolate(x0: Array, past: Array, h: Array, h_past: Array, known: Array) -> Array:
    """x0 at the middle of the coming step; the present x0 where there is no finite history."""
    usable = known & jnp.isfinite(h) & jnp.isfinite(h_past) & (h_past != 0)
    rate = jnp.where(usable, h, 0) / jnp.where(usable, 2 * h_past, 1)
    return x0 + rate * (x0 - jnp.where(usable, past, x0))


def _exponential(x: Array, x0: Array, now: Level, nxt: Level) -> Array:
    """Equation (2)."""
    shrink = over(nxt.sigma, now.sigma)
    return shrink * x + (nxt.alpha - shrink * now.alpha) * x0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpmPp2m:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), with each cell's own history."""

    order: ClassVar[int] = 2

    def init(self, batch):
        return History.empty(batch)

    def step(self, denoise, draw, carry, batch, now, nxt):
        x0 = denoise(batch, now).x0
        now, nxt = _spread(batch, now), _spread(batch, nxt)
        h, h_past = _half_gap(now.logsnr, nxt.logsnr), _half_gap(carry.logsnr[0], now.logsnr)
        middle = _extrapolate(x0, carry.x0[0], h, h_past, carry.seen > 0)
        return _exponential(batch.x, middle, now, nxt), carry.push(batch.x, x0, now)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPc:
    """UniPC of order 2, B2 (Zhao et al. 2023, algorithms 5 to 8): corrects the last step by the
    evaluation that the next one needs anyway, so it still costs one evaluation a step.
    """

    order: ClassVar[int] = 2

    def init(self, batch):
        return History.empty(batch)

    def step(self, denoise, draw, carry, batch, now, nxt):
        x0 = denoise(batch, now).x0
        now, nxt = _spread(batch, now), _spread(batch, nxt)
        x = jnp.where(carry.seen > 0, self._correct(carry, x0, now), batch.x)
        h, h_past = _half_gap(now.logsnr, nxt.logsnr), _half_gap(carry.logsnr[0], now.logsnr)
        middle = _extrapolate(x0, carry.x0[0], h, h_past, carry.seen > 0)
        return _exponential(x, middle, now, nxt), carry.push(x, x0, now)

    def _correct(self, carry: History, x0: Array, now: Level) -> Array:
        """The last step again, x0 now being known at both of its ends (and at the one before)."""
        before = Level(now.t, carry.logsnr[0], carry.alpha, carry.sigma)
        h = _half_gap(carry.logsnr[0], now.logsnr)
        h_past = _half_gap(carry.logsnr[1], carry.logsnr[0])
        second = (carry.seen > 1) & jnp.isfinite(h) & jnp.isfinite(h_past) & (h_past != 0)
        h = jnp.where(second, h, 1)
        ratio = jnp.where(second, -h_past, -1) / h
        b1, b2 = _moments(-h)
        old = jnp.where(second, (b1 - b2) / (1 - ratio), 0)
        new = jnp.where(second, b1 - old, 0.5)
        slope = jnp.where(second, (carry.x0[1] - carry.x0[0]) / ratio, 0)
        middle = carry.x0[0] + old * slope + new * (x0 - carry.x0[0])
        return _exponential(carry.x, middle, before, now)


def _moments(z: Array) -> tuple[Array, Array]:
    """(e^z - 1 - z) / (z (e^z - 1)) and 2 (e^z - 1 - z - z^2/2) / (z^2 (e^z - 1)).

    Both cancel near 0, where the series of their numerators is used.
    """
    small = jnp.abs(z) < 0.5
    far = jnp.where(small, 1, z)
    phi1 = jnp.expm1(far) / far - 1
    phi2 = phi1 / far - 0.5
    near = jnp.where(small, z, 0)
    series1 = series2 = jnp.zeros_like(z)
    for k in range(10, 0, -1):  # Horner, from the last term
        series1 = near / (k + 1) * (1 + series1)
        series2 = near / (k + 2) * (1 + series2)
    bottom = jnp.expm1(jnp.where(z == 0, 1, z))
    b1 = jnp.where(small, series1, phi1) / bottom
    b2 = jnp.where(small, series2, 2 * phi2) / bottom
    return jnp.where(z == 0, 0.5, b1), jnp.where(z == 0, 1 / 3, b2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(_Memoryless):
    """x0 and fresh noise (Song et al. 2023, algorithm 1), for a denoiser that is the whole path."""

    def step(self, denoise, draw, carry, batch, now, nxt):
        x0 = denoise(batch, now).x0
        nxt = _spread(batch, nxt)
        return nxt.alpha * x0 + nxt.sigma * draw("step"), carry
