"""Distillation: a student that needs fewer evaluations than its teacher for the same samples.

    Guided       one evaluation, told the scale, is the teacher's guided one (Meng et al. 2023)
    Progressive  one DDIM step is two of the teacher's (Salimans and Ho 2022)

Both want an estimate of x0. Let the teacher step t > t' > t'', with x1 = x0(x_t, t) and
x2 = x0(x_t', t'). A DDIM step is affine in x0 (`diffusion/steppers.py`, equation 2), so a student
whose one step from t lands where both of the teacher's do has estimated

    x1 + share (x2 - x1),     share = (1 - e^-h2) / (1 - e^-(h1 + h2))                     (1)

for h1 and h2 half the gains in log SNR of the two steps: never outside x1 ... x2, and finite where
a clean end makes h2 infinite (share 1) or an end without signal h1 (share 1 - e^-h2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.batch import Frames, Packed
from vdm_jax.cond import Cond
from vdm_jax.config import UserError
from vdm_jax.diffusion.guides import Guidance, Guide, PerExample
from vdm_jax.diffusion.parameterization import Eps, Prediction, from_x0
from vdm_jax.diffusion.process import Level, gap, over, with_known
from vdm_jax.diffusion.sample import POSITIVE
from vdm_jax.diffusion.times import Stratified, Times
from vdm_jax.diffusion.weights import TruncatedSnr, Weight
from vdm_jax.objectives.denoise import Denoise, Network, respond
from vdm_jax.signals import GUIDANCE, Dropped, draw_dropped, drop_all
from vdm_jax.stage import Stage
from vdm_jax.types import Count, Metrics, Params, Positive

TEACHER = "teacher"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scales:
    """Guidance scales for training, even between `low` and `high`, one for each example."""

    low: Positive
    high: Positive

    def __post_init__(self):
        if self.high < self.low:
            raise UserError(f"Scales needs low up to high, not {self.low:g} and {self.high:g}.")

    def __call__(self, batch: Frames | Packed, seed: int) -> Float[Array, "b e"]:
        u = jax.vmap(jax.vmap(jax.random.uniform))(batch.keys(seed, GUIDANCE))
        return self.low + (self.high - self.low) * u


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guided:
    """The teacher's guided prediction, in one evaluation that is told the scale.

    Attributes:
      guides: those of the teacher's sampler; the scale of the one `Guidance` is drawn from
        `scales`. What others do to a prediction (`Interval`, `Rescale`) is learnt along.
    """

    teacher: Network
    scales: Scales
    guides: tuple[Guide, ...] = (Guidance(),)
    times: Times = dataclasses.field(default_factory=Stratified)
    weight: Weight = dataclasses.field(default_factory=TruncatedSnr)

    def __post_init__(self):
        if len([g for g in self.guides if isinstance(g, Guidance) and len(g.scales) == 1]) != 1:
            raise UserError("Guided.guides needs one Guidance of one scale, which is then learnt.")

    @property
    def frozen(self):
        return {TEACHER: self.teacher}

    def problems(self, stage):
        return []

    def __call__(self, stage, params, batch, raw, seed):
        process = stage.learnt_process(params).on(batch)
        batch, t = with_known(batch, self.times(batch.keys(seed, "time"), batch, process))
        at = process.level(t)
        scale = self.scales(batch, seed)
        teacher = _Asked(self.teacher, params, batch, raw)
        hidden = drop_all(self.teacher.denoiser.signals, batch)
        conds = {POSITIVE: teacher.condition({}), "uncond": teacher.condition(hidden)}
        denoise = teacher.predict
        for guide in self.guides:
            if isinstance(guide, Guidance):
                guide = dataclasses.replace(guide, scales=(PerExample(values=scale),))
            denoise = guide(denoise, conds, 0)
        x_t = _noised(stage, batch, at, seed)
        x0 = denoise(batch.replace(x=x_t), at, conds[POSITIVE]).x0
        raw = {**raw, GUIDANCE: scale}
        cond = stage.denoiser.apply(params, raw, batch, {}, method="condition")
        weight = self.weight(at, stage.denoiser.parameterization, process)
        return _compared(stage, params, batch.replace(x=x_t), at, cond, x0, weight, seed)

    def errors(self, stage, params, batch, raw, seed, t):
        return _errors(self, stage, params, batch, raw, seed, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progressive:
    """Each of `steps` DDIM steps is two of the teacher's, on the grid of the stage's sampler.

    Attributes:
      steps: as many as the stage's sampler takes.
      scales: of guidance, that student and teacher are told; None where neither is.
      times: a law by which steps are drawn, the first of n where t is above 1 - 1 / n.
    """

    teacher: Network
    steps: Count
    scales: Scales | None = None
    times: Times = dataclasses.field(default_factory=Stratified)
    weight: Weight = dataclasses.field(default_factory=TruncatedSnr)

    @property
    def frozen(self):
        return {TEACHER: self.teacher}

    def problems(self, stage):
        found = problems(stage, self.teacher)
        if self.steps != stage.sampler.steps:
            found.append(
                f"objective.steps is {self.steps}, but stage.sampler.steps is "
                f"{stage.sampler.steps}; a student is sampled with the steps it learnt."
            )
        return found

    def __call__(self, stage, params, batch, raw, seed):
        process, signals = stage.learnt_process(params).on(batch), stage.denoiser.signals
        grid, n = stage.sampler.grid, self.steps
        u = self.times(batch.keys(seed, "time"), batch, process)
        step = jnp.clip(jnp.floor((1 - u) * n), 0, n - 1).astype(jnp.int32)
        visited = ((step, n), (2 * step + 1, 2 * n), (step + 1, n))
        t = jnp.stack([grid(i, jnp.asarray(m), jnp.ones_like(u), process) for i, m in visited])
        batch, t = with_known(batch, t)
        now, middle, nxt = (process.level(one) for one in t)

        dropped: Dropped = {}
        if self.scales is None:  # its sampler guides it, so it learns both branches
            dropped = draw_dropped(signals, batch, seed)
        else:
            raw = {**raw, GUIDANCE: self.scales(batch, seed)}
        x_t = _noised(stage, batch, now, seed)
        teacher = _Asked(self.teacher, params, batch, raw)
        asked = teacher.condition(dropped)
        first = teacher.predict(batch.replace(x=x_t), now, asked)
        there = jax.tree.map(batch.spread, middle)
        x = batch.insert_known(there.alpha * first.x0 + there.sigma * first.eps)
        second = teacher.predict(batch.replace(x=x), middle, asked)
        x0 = first.x0 + batch.spread(share(now, middle, nxt)) * (second.x0 - first.x0)

        cond = stage.denoiser.apply(params, raw, batch, dropped, method="condition")
        weight = self.weight(now, stage.denoiser.parameterization, process)
        return _compared(stage, params, batch.replace(x=x_t), now, cond, x0, weight, seed)

    def errors(self, stage, params, batch, raw, seed, t):
        return _errors(self, stage, params, batch, raw, seed, t)


def share(now: Level, middle: Level, nxt: Level) -> Array:
    """Equation (1), of the shape of the levels' leaves; 0 where no level changes."""
    second = -jnp.expm1(-gap(middle, nxt) / 2)
    both = -jnp.expm1(-gap(now, nxt) / 2)
    return over(second, both)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A frozen network, of whose weights `params` hold a copy."""

    network: Network
    params: Params
    batch: Frames | Packed
    raw: Mapping[str, Any]

    @property
    def _variables(self) -> Params:
        return {"params": self.params[TEACHER]}

    def condition(self, dropped: Dropped) -> Cond:
        given = self._variables, self.raw, self.batch, dropped
        return cast(Cond, self.network.denoiser.apply(*given, method="condition"))

    def predict(self, batch: Frames | Packed, at: Level, cond: Cond) -> Prediction:
        given = self._variables, batch, at, cond
        return cast(Prediction, self.network.denoiser.apply(*given, method="predict"))


def _noised(stage: Stage, batch: Frames | Packed, at: Level, seed: int) -> Array:
    eps = stage.prior(batch.keys(seed, "noise"), batch)
    return batch.insert_known(stage.process.noise(batch.x, eps, jax.tree.map(batch.spread, at)))


def _compared(
    stage: Stage,
    params: Params,
    batch: Frames | Packed,
    at: Level,
    cond: Cond,
    x0: Array,
    weight: Array,
    seed: int,
) -> tuple[Array, Array, Metrics]:
    """The student's answer to x_t = batch.x, held against that of the estimate x0."""
    out, largest = respond(stage.denoiser, params, batch, at, cond, seed)
    here = jax.tree.map(batch.spread, at)
    target = stage.denoiser.parameterization.target(x0, from_x0(x0, batch.x, here).eps, here)
    total, count = batch.total(jnp.square(out - target) * batch.spread(weight))
    return total, count, {"max_logit": largest}


def _errors(objective: Guided | Progressive, stage, params, batch, raw, seed, t):
    """Held against the data, like the teacher's own: told the least guidance, if it is told any."""
    if objective.scales is not None:
        raw = {**raw, GUIDANCE: jnp.full_like(raw[GUIDANCE], objective.scales.low)}
    plain = Denoise(times=objective.times, weight=objective.weight)
    return plain.errors(stage, params, batch, raw, seed, t)


def problems(stage: Stage, teacher: Network) -> list[str]:
    """Why a student of this stage cannot halve its steps, one sentence each."""
    found = [
        f"{who} predicts eps, which says nothing of x0 without signal; distil a model of V, X0 or "
        "Flow."
        for who, denoiser in (("the student", stage.denoiser), ("the teacher", teacher.denoiser))
        if isinstance(denoiser.parameterization, Eps)
    ]
    n, grid = stage.sampler.steps, stage.sampler.grid
    with jax.ensure_compile_time_eval():
        index, ones = jnp.arange(n + 1), jnp.ones(n + 1)
        mine = grid(index, jnp.asarray(n), ones, stage.process)
        its = grid(2 * index, jnp.asarray(2 * n), ones, stage.process)
        if not np.allclose(mine, its, atol=1e-5):
            found.append(
                f"the grid {type(grid).__name__} of {n} steps is not every other time of that of "
                f"{2 * n}; distil on Linspace, or on a Shifted one."
            )
    return found
