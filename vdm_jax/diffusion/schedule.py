"""Schedules: t in [0, 1] -> log SNR, strictly falling, and back.

    logsnr(t) = ln(alpha(t)^2 / sigma(t)^2)                                               (1)

is the only primitive of noise; `process.py` turns it into alpha and sigma. At the ends it may be
infinite. Every schedule is a value with `__call__(t)` and `inverse(logsnr)`, for arrays of any
shape; wrappers (`Shift`, `Clip`, `ZeroTerminal`) take a schedule and are one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.config import UserError
from vdm_jax.types import Count, Finite, Positive

Numbers = Float[Array, "..."]


@runtime_checkable
class Schedule(Protocol):
    def __call__(self, t: Numbers) -> Numbers:
        """log SNR at time t; +inf or -inf are allowed at the ends."""

    def inverse(self, logsnr: Numbers) -> Numbers:
        """The t in [0, 1] whose log SNR this is; the nearest end for one out of range."""


def _ordered(name: str, low: float, high: float) -> None:
    if not low < high:
        raise UserError(f"{name} needs logsnr_min below logsnr_max, not {low:g} and {high:g}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    """logsnr = -2 ln tan(c t + b), b = atan(e^(-max/2)), c = atan(e^(-min/2)) - b.

    Cut at finite ends as in Ho et al. 2022, "Imagen Video" (after Nichol and Dhariwal 2021).
    """

    logsnr_min: Finite = -20.0
    logsnr_max: Finite = 20.0

    def __post_init__(self):
        _ordered("Cosine", self.logsnr_min, self.logsnr_max)

    @property
    def _ends(self) -> tuple[float, float]:
        # Angles from the near end: tan loses all its digits just below pi / 2.
        return math.atan(math.exp(-self.logsnr_max / 2)), math.atan(math.exp(self.logsnr_min / 2))

    def __call__(self, t):
        low, high = self._ends
        span = math.pi / 2 - high - low
        early = -2 * jnp.log(jnp.tan(low + span * jnp.minimum(t, 0.5)))
        late = 2 * jnp.log(jnp.tan(high + span * (1 - jnp.maximum(t, 0.5))))
        return jnp.where(t < 0.5, early, late)

    def inverse(self, logsnr):
        low, high = self._ends
        span = math.pi / 2 - high - low
        early = (jnp.arctan(jnp.exp(-jnp.maximum(logsnr, 0) / 2)) - low) / span
        late = 1 - (jnp.arctan(jnp.exp(jnp.minimum(logsnr, 0) / 2)) - high) / span
        return jnp.clip(jnp.where(logsnr > 0, early, late), 0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearLogSNR:
    """A straight line in log SNR; on the ve path, sigma is geometric in t."""

    logsnr_min: Finite = -20.0
    logsnr_max: Finite = 20.0

    def __post_init__(self):
        _ordered("LinearLogSNR", self.logsnr_min, self.logsnr_max)

    def __call__(self, t):
        return self.logsnr_max + (self.logsnr_min - self.logsnr_max) * t

    def inverse(self, logsnr):
        t = (self.logsnr_max - logsnr) / (self.logsnr_max - self.logsnr_min)
        return jnp.clip(t, 0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Straight:
    """logsnr = 2 ln((1 - t) / t): alpha = 1 - t, sigma = t on the linear path (flow matching)."""

    def __call__(self, t):
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def inverse(self, logsnr):
        return jax.nn.sigmoid(-logsnr / 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """alpha^2 falls as a sigmoid from 1 to 0 on the vp path (Jabri et al. 2022, section B).

    alpha^2 = (s(end) - s(start + t (end - start))) / (s(end) - s(start)), s(v) = sigmoid(v / tau).
    Differences of sigmoids are ratios of sinh, so with d = (end - start) / tau

        logsnr = ln sinh(d (1 - t) / 2) - ln sinh(d t / 2) + ln cosh(start / 2 tau)
                 - ln cosh(end / 2 tau)
    """

    start: Finite = -3.0
    end: Finite = 3.0
    tau: Positive = 1.0

    @property
    def _span_and_offset(self) -> tuple[float, float]:
        low, high = self.start / self.tau, self.end / self.tau
        return high - low, math.log(math.cosh(low / 2)) - math.log(math.cosh(high / 2))

    def __call__(self, t):
        span, offset = self._span_and_offset
        return jnp.log(jnp.sinh(span * (1 - t) / 2)) - jnp.log(jnp.sinh(span * t / 2)) + offset

    def inverse(self, logsnr):
        span, offset = self._span_and_offset
        # With u = ln(ratio of sinh): e^(d t) = (e^u + e^(d/2)) / (e^u + e^(-d/2)).
        u = logsnr - offset
        t = (jnp.logaddexp(u, span / 2) - jnp.logaddexp(u, -span / 2)) / span
        return jnp.where(jnp.isposinf(logsnr), 0, jnp.clip(t, 0, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromBetas:
    """A table of `steps` variances beta_i; entry i is at t = (i + 1) / steps, and t = 0 is clean.

    Between entries log SNR is linear in t, so a network trained on the table can be sampled at any
    t; up to the first entry it is constant.

    Attributes:
      kind: 'linear' (beta from `start` to `end`), 'scaled_linear' (sqrt(beta) is linear) or
        'cosine' (Nichol and Dhariwal 2021, equation 17; `start` and `end` unused).

    Raises:
      UserError: an unknown kind.
    """

    kind: str = "linear"
    start: Positive = 1e-4
    end: Positive = 0.02
    steps: Count = 1000

    def __post_init__(self):
        if self.kind not in ("linear", "scaled_linear", "cosine"):
            raise UserError(
                f"FromBetas.kind is '{self.kind}'; use 'linear', 'scaled_linear' or 'cosine'."
            )

    @functools.cached_property
    def betas(self) -> np.ndarray:
        if self.kind == "linear":
            return np.linspace(self.start, self.end, self.steps)
        if self.kind == "scaled_linear":
            return np.linspace(self.start**0.5, self.end**0.5, self.steps) ** 2
        t = np.arange(self.steps + 1) / self.steps
        kept = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - kept[1:] / kept[:-1], 0.999)

    @functools.cached_property
    def table(self) -> np.ndarray:
        """log SNR of every entry, in float64: 1 - alpha^2 would round to 0 in float32."""
        log_alpha2 = np.cumsum(np.log1p(-self.betas))
        return log_alpha2 - np.log(-np.expm1(log_alpha2))

    def __call__(self, t):
        place = jnp.clip(t * self.steps - 1, 0, self.steps - 1)
        return jnp.interp(place, jnp.arange(self.steps), jnp.asarray(self.table))

    def inverse(self, logsnr):
        rising = jnp.asarray(-self.table)
        place = jnp.interp(-logsnr, rising, jnp.arange(self.steps))
        return jnp.where(jnp.isposinf(logsnr), 0, (place + 1) / self.steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """Log SNR lowered by 2 ln `factor` everywhere (Esser et al. 2024, section 5.3.2).

    On a straight path sigma' = factor sigma / (1 + (factor - 1) sigma). `factor` may be an array
    that broadcasts against t, one factor per example.
    """

    schedule: Schedule
    factor: Positive | Float[Array, "..."] = 1.0

    def __call__(self, t):
        return self.schedule(t) - 2 * jnp.log(self.factor)

    def inverse(self, logsnr):
        return self.schedule.inverse(logsnr + 2 * jnp.log(self.factor))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """Log SNR held within [logsnr_min, logsnr_max]; t keeps its meaning."""

    schedule: Schedule
    logsnr_min: Finite = -20.0
    logsnr_max: Finite = 20.0

    def __post_init__(self):
        _ordered("Clip", self.logsnr_min, self.logsnr_max)

    def __call__(self, t):
        return jnp.clip(self.schedule(t), self.logsnr_min, self.logsnr_max)

    def inverse(self, logsnr):
        return self.schedule.inverse(jnp.clip(logsnr, self.logsnr_min, self.logsnr_max))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroTerminal:
    """No signal at all at t = 1 (Lin et al. 2024, algorithm 1), on the vp path.

    With q = alpha: q' = (q - q(1)) q(0) / (q(0) - q(1)), which keeps the first level. Needs a
    parameterization that is defined without signal (v, x0, flow).
    """

    schedule: Schedule

    def _ends(self) -> tuple[Array, Array]:
        return self.schedule(jnp.zeros(())), self.schedule(jnp.ones(()))

    def __call__(self, t):
        first, last = self._ends()
        q, p = _signal(self.schedule(t))
        (q_first, p_first), (q_last, p_last) = _signal(first), _signal(last)
        scaled = q_first * (q - q_last) / (p_last - p_first)
        missing = p_first + q_first * (p - p_first) / (p_last - p_first)  # 1 - scaled, precisely
        logsnr = 2 * jnp.log(jnp.maximum(scaled, 0)) - jnp.log(missing * (1 + scaled))
        return jnp.where(t >= 1, -jnp.inf, logsnr)

    def inverse(self, logsnr):
        first, last = self._ends()
        q, p = _signal(logsnr)
        (q_first, p_first), (q_last, p_last) = _signal(first), _signal(last)
        inner_q = q * (p_last - p_first) / q_first + q_last
        inner_p = (p - p_first) * (p_last - p_first) / q_first + p_first
        inner = 2 * jnp.log(inner_q) - jnp.log(jnp.maximum(inner_p, 0) * (1 + inner_q))
        return jnp.where(jnp.isneginf(logsnr), 1, self.schedule.inverse(inner))


def _signal(logsnr: Numbers) -> tuple[Numbers, Numbers]:
    """(alpha, 1 - alpha) on the vp path, each with all its digits."""
    log_alpha = -jax.nn.softplus(-logsnr) / 2
    return jnp.exp(log_alpha), -jnp.expm1(log_alpha)
