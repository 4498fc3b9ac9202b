"""Guides: decorators that turn one denoiser into another.

    guided = guide(denoise, conds, step)        conds: name -> Cond, step: index in the loop

`Guidance` mixes predictions under several conditions, strongest first, c_0 ... c_n, with scales g:

    c_0 + sum over j of (g_j - 1) (c_j - c_(j+1))                                          (1)

which for one scale is u + g (c - u) with u = c_1 (Ho and Salimans 2022, g = 1 + w), for two is
c_2 + g_1 (c_1 - c_2) + g_0 (c_0 - c_1) (Brooks et al. 2023, equation 3), and is c_0 to the bit
where every scale is 1. x0 and eps are affine in each other at fixed x_t, so (1) acts on both alike.

The other guides refine a prediction; `plain` carries what it was before guidance to them. At its
neutral strength a guide returns the denoiser it was given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from einops import reduce
from jaxtyping import Array, Float, Int

from vdm_jax.batch import Frames, Packed
from vdm_jax.cond import Cond, concat
from vdm_jax.config import UserError, suggestion
from vdm_jax.diffusion.parameterization import Parameterization, Prediction, V, from_x0
from vdm_jax.diffusion.process import Level, over
from vdm_jax.types import Count, Finite, Fraction, Natural, NonNegative, Positive

DenoiseFn = Callable[[Frames | Packed, Level, Cond], Prediction]
Conds = Mapping[str, Cond]
Step = int | Int[Array, ""]


@runtime_checkable
class Guide(Protocol):
    def __call__(self, denoise: DenoiseFn, conds: Conds, step: Step) -> DenoiseFn: ...


@runtime_checkable
class Scale(Protocol):
    """A guidance scale; `neutral` says that it is 1 everywhere."""

    @property
    def neutral(self) -> bool: ...

    def __call__(self, step: Step, batch: Frames | Packed) -> Float[Array, "..."]:
        """The scale of each cell, broadcastable to x."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    value: Finite = 1.0

    @property
    def neutral(self):
        return self.value == 1

    def __call__(self, step, batch):
        return jnp.asarray(self.value, jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerFrame:
    """Linear from `first` at the first frame (or slice of patches) to `last` at the last one."""

    first: Finite = 1.0
    last: Finite = 3.0

    @property
    def neutral(self):
        return self.first == self.last == 1

    def __call__(self, step, batch):
        place = batch.position[..., 0] if isinstance(batch, Packed) else batch.position
        place = place.reshape(place.shape + (1,) * (batch.x.ndim - 2))
        steps = batch.spread(jnp.maximum(batch.examples.grid[..., 0] - 1, 1))
        return self.first + (self.last - self.first) * over(place, steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oscillating:
    """`high` for the first `constant` steps, then low, high, low ... (Ho et al. 2022, 2.6)."""

    high: Finite = 15.0
    low: Finite = 1.0
    constant: Natural = 15

    @property
    def neutral(self):
        return self.high == self.low == 1

    def __call__(self, step, batch):
        past = jnp.asarray(step) - self.constant
        return jnp.where((past >= 0) & (past % 2 == 0), self.low, self.high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerExample:
    """Each example's own scale, as a server's requests have; not for configs."""

    values: Float[Array, "b e"]

    @property
    def neutral(self):
        return False

    def __call__(self, step, batch):
        copies = batch.segment.shape[0] // self.values.shape[0]
        return batch.spread(jnp.tile(self.values, (copies, 1)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """Equation (1), every branch in one call of the network, side by side along the row axis.

    Attributes:
      scales: one fewer than branches.
      branches: names of conditions, strongest first; the first is the one being sampled.
      channels: guide only this many leading channels of the data (a published sampler does).

    Raises:
      UserError: numbers that do not match, or a branch that the caller has no condition for.
    """

    scales: tuple[Scale, ...] = (Constant(value=7.5),)
    branches: tuple[str, ...] = ("cond", "uncond")
    channels: Count | None = None

    def __post_init__(self):
        if len(self.branches) != len(self.scales) + 1:
            raise UserError(
                f"Guidance has {len(self.scales)} scales for {len(self.branches)} branches; "
                "it needs one scale fewer than branches."
            )

    def __call__(self, denoise, conds, step):
        if all(scale.neutral for scale in self.scales):
            return denoise
        for name in self.branches[1:]:
            if name not in conds:
                raise UserError(f"guidance needs condition '{name}'.{suggestion(name, conds)}")

        def guided(batch, at, cond):
            count = len(self.branches)
            joined = concat(cond, *(conds[name] for name in self.branches[1:]))
            out = denoise(concat(*[batch] * count), concat(*[at] * count), joined)
            branches = [
                jax.tree.map(lambda leaf, i=i: jnp.split(leaf, count)[i], out) for i in range(count)
            ]
            inside = self._guided_features(batch)
            x0, eps = branches[0].x0, branches[0].eps
            for scale, strong, weak in zip(self.scales, branches, branches[1:], strict=False):
                extra = (scale(step, batch) - 1) * inside
                x0 = x0 + extra * (strong.x0 - weak.x0)
                eps = eps + extra * (strong.eps - weak.eps)
            return Prediction(x0, eps, branches[0].var_frac, plain=branches[0])

        return guided

    def _guided_features(self, batch: Frames | Packed) -> Array | float:
        if self.channels is None:
            return 1.0
        width = batch.x.shape[-1]
        area = batch.patch[0] * batch.patch[1] * batch.patch[2] if isinstance(batch, Packed) else 1
        return jnp.where(jnp.arange(width) % (width // area) < self.channels, 1.0, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rescale:
    """Give a guided prediction back the standard deviation of the plain one, by a share `phi`.

    Per example, on the quantity that `on` would predict (Lin et al. 2024, equations 15 and 16).
    """

    phi: Fraction = 0.7
    on: Parameterization = dataclasses.field(default_factory=V)

    def __call__(self, denoise, conds, step):
        if self.phi == 0:
            return denoise

        def rescaled(batch, at, cond):
            guided = denoise(batch, at, cond)
            if guided.plain is None:
                return guided
            here = jax.tree.map(batch.spread, at)
            value = self.on.target(guided.x0, guided.eps, here)
            plain = self.on.target(guided.plain.x0, guided.plain.eps, here)
            ratio = jnp.sqrt(over(batch.reduce(plain, "var"), batch.reduce(value, "var")))
            factor = batch.spread(self.phi * ratio + 1 - self.phi)
            pair = self.on.split(factor * value, batch.x, here)
            return guided._replace(x0=pair.x0, eps=pair.eps)

        return rescaled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """Guidance only where low <= sigma / alpha <= high (Kynkaanniemi et al. 2024)."""

    low: NonNegative = 0.0
    high: Positive | None = None

    def __call__(self, denoise, conds, step):
        if self.low == 0 and self.high is None:
            return denoise

        def within(batch, at, cond):
            guided = denoise(batch, at, cond)
            if guided.plain is None:
                return guided
            ratio = batch.spread(jnp.exp(-at.logsnr / 2))
            inside = ratio >= self.low
            if self.high is not None:
                inside &= ratio <= self.high
            return guided._replace(
                x0=jnp.where(inside, guided.x0, guided.plain.x0),
                eps=jnp.where(inside, guided.eps, guided.plain.eps),
            )

        return within


def _with_x0(prediction: Prediction, x0: Array, x_t: Array, here: Level) -> Prediction:
    """`prediction` with another x0 and its eps; unchanged cells keep their bits."""
    eps = jnp.where(x0 == prediction.x0, prediction.eps, from_x0(x0, x_t, here).eps)
    return prediction._replace(x0=x0, eps=eps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """x0 clipped to [-limit, limit]."""

    limit: Positive = 1.0

    def __call__(self, denoise, conds, step):
        def clipped(batch, at, cond):
            prediction = denoise(batch, at, cond)
            x0 = jnp.clip(prediction.x0, -self.limit, self.limit)
            return _with_x0(prediction, x0, batch.x, jax.tree.map(batch.spread, at))

        return clipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicThreshold:
    """x0 clipped at q = max(floor, quantile of |x0| in the example), and scaled by floor / q.

    For pixels (Saharia et al. 2022, section 2.3, where floor is 1).
    """

    quantile: Fraction = 0.995
    floor: Positive = 1.0

    def __call__(self, denoise, conds, step):
        def clipped(batch, at, cond):
            prediction = denoise(batch, at, cond)
            reach = batch.reduce(jnp.abs(prediction.x0), float(self.quantile))
            limit = jnp.maximum(batch.spread(reach), self.floor)
            x0 = jnp.clip(prediction.x0, -limit, limit) * (self.floor / limit)
            return _with_x0(prediction, x0, batch.x, jax.tree.map(batch.spread, at))

        return clipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Pull what is unknown towards agreement with what is known, through the denoiser:

        x0_b - weight alpha / 2 grad_(x_b) ||given - x0_a||^2         (Ho et al. 2022b, equation 8)

    a: known cells, b: the rest; meant for `Sampler(known='noised')` with the constraint `Keep`.
    With `pool` nothing is known but means: those of squares of so many pixels, which `given` has,
    and b is all of the video: super-resolution by a model that was never told of it. Costs a
    backward pass a step.
    """

    weight: NonNegative = 1.0
    pool: Count = 1

    def __call__(self, denoise, conds, step):
        if self.weight == 0:
            return denoise

        def pulled(batch, at, cond):
            if batch.given is None or (batch.known is None and self.pool == 1):
                return denoise(batch, at, cond)
            if self.pool > 1:
                known = jnp.zeros((), bool)
            else:
                known = batch.known.reshape(batch.known.shape + (1,) * (batch.x.ndim - 2))

            def mismatch(x):
                prediction = denoise(batch.replace(x=x), at, cond)
                error = batch.given - prediction.x0
                error = self._means(error) if self.pool > 1 else jnp.where(known, error, 0)
                return jnp.sum(jnp.square(error)), prediction

            slope, prediction = jax.grad(mismatch, has_aux=True)(batch.x)
            here = jax.tree.map(batch.spread, at)
            moved = prediction.x0 - self.weight * here.alpha / 2 * slope
            x0 = jnp.where(known, prediction.x0, moved)
            return _with_x0(prediction, x0, batch.x, here)

        return pulled

    def _means(self, video: Array) -> Array:
        k = self.pool
        return reduce(video, "b f (h k) (w l) c -> b f h w c", "mean", k=k, l=k)
