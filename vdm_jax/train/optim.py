"""The optimizer as data: ordered (pattern, algorithm) rules over parameter paths.

The first pattern that matches a parameter's path (`params/backbone/...`, regular expression,
`re.search`) decides how it is updated, and every parameter must match one. Learning-rate scale,
weight decay and freezing are values of a rule, never subclasses. One schedule, a factor in [0, 1]
over accepted updates, multiplies every rule's learning rate.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from optax import contrib

from vdm_jax.config import UserError
from vdm_jax.types import Fraction, Natural, NonNegative, Positive


class Schedule(Protocol):
    def __call__(self, count: jax.Array) -> jax.Array:
        """Factor on the learning rate after `count` accepted updates."""


class Algorithm(Protocol):
    def transform(self, factor: Schedule) -> optax.GradientTransformation: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Warmup:
    """Linear from 0 over `steps`, then constant."""

    steps: Natural = 0

    def __call__(self, count):
        return jnp.minimum(1.0, (count + 1) / max(self.steps, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine down to `final` at `total` updates."""

    steps: Natural
    total: Natural
    final: Fraction = 0.0

    def __call__(self, count):
        rise = jnp.minimum(1.0, (count + 1) / max(self.steps, 1))
        progress = jnp.clip((count - self.steps) / max(self.total - self.steps, 1), 0, 1)
        return rise * (self.final + (1 - self.final) * 0.5 * (1 + jnp.cos(jnp.pi * progress)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter 2019)."""

    learning_rate: Positive
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0

    def transform(self, factor):
        return optax.adamw(
            lambda count: self.learning_rate * factor(count),
            b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon:
    """Momentum made orthogonal by Newton-Schulz iteration (Jordan et al. 2024), for matrices.

    The last two axes of a parameter are the matrix; those before (scanned layers) are batched.
    With `rms`, updates are scaled to AdamW's usual size, so one learning rate serves both
    (Liu et al. 2025, consistent RMS).
    """

    learning_rate: Positive
    momentum: Fraction = 0.95
    weight_decay: NonNegative = 0.0
    rms: Positive = 0.2

    def transform(self, factor):
        def scale(updates):
            # Liu et al. 2025, equation 4: an orthogonal (m, n) matrix has RMS 1 / sqrt(max(m, n)).
            return jax.tree.map(lambda u: u * self.rms * max(u.shape[-2:]) ** 0.5, updates)

        return optax.chain(
            nesterov(self.momentum),
            optax.stateless(lambda updates, _: scale(jax.tree.map(orthogonal, updates))),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(lambda count: self.learning_rate * factor(count)),
        )


def nesterov(decay: float) -> optax.GradientTransformation:
    """Nesterov's momentum, every moment without its bias (as `optax.contrib.muon` has it)."""

    def init(params):
        return optax.EmaState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        del params
        moment = optax.tree.update_moment(updates, state.ema, decay, 1)
        count = state.count + 1
        ahead = optax.tree.bias_correction(moment, decay, count + 1)
        here = optax.tree.bias_correction(updates, decay, count)
        led = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, ahead, here)
        return led, optax.EmaState(count, moment)

    return optax.GradientTransformation(init, update)


def orthogonal(matrices: Array) -> Array:
    """Newton-Schulz iteration on the last two axes, one matrix after another: divided over devices
    a matrix is gathered for it, and all layers at once would fill a chip's memory."""
    newton_schulz = contrib.scale_by_muon(beta=0.0, nesterov=False)

    def one(matrix: Array) -> Array:
        return newton_schulz.update(matrix, newton_schulz.init(matrix))[0]

    if matrices.ndim == 2:
        return one(matrices)
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    return jax.lax.map(one, flat).reshape(matrices.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen:
    """Never updated."""

    def transform(self, factor):
        del factor
        return optax.set_to_zero()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """`rules`: ordered (pattern, algorithm); `clip`: maximum global gradient norm, or None."""

    rules: tuple[tuple[str, Algorithm], ...]
    schedule: Schedule = dataclasses.field(default_factory=Warmup)
    clip: Positive | None = 1.0

    def labels(self, params: Any) -> Any:
        """A tree like `params` with the index of the rule each parameter falls under.

        Raises:
          UserError: parameters that no pattern matches, a rule that decides no parameter, or a
            matrix rule on what is no matrix.
        """
        lost: list[str] = []
        used: set[int] = set()

        def label(path, leaf):
            name = path_name(path)
            for index, (pattern, algorithm) in enumerate(self.rules):
                if re.search(pattern, name):
                    if isinstance(algorithm, Muon) and leaf.ndim < 2:
                        raise UserError(
                            f"optimizer rule {index} ('{pattern}') sends {name} of shape "
                            f"{leaf.shape} to Muon, which updates matrices; narrow the pattern."
                        )
                    used.add(index)
                    return str(index)
            lost.append(name)
            return "lost"

        labels = jax.tree_util.tree_map_with_path(label, params)
        if lost:
            raise UserError(
                f"no optimizer rule matches {', '.join(sorted(lost)[:5])}; "
                "end config.optimizer.rules with a rule whose pattern is '.*'."
            )
        idle = [index for index in range(len(self.rules)) if index not in used]
        if idle:
            raise UserError(
                f"optimizer rule {idle[0]} ('{self.rules[idle[0]][0]}') decides no parameter: its "
                "pattern matches none, or earlier rules take them all; mend it or leave it out."
            )
        return labels

    def transform(self) -> optax.GradientTransformation:
        clip = optax.identity() if self.clip is None else optax.clip_by_global_norm(self.clip)
        by_rule = {
            str(index): algorithm.transform(self.schedule)
            for index, (_, algorithm) in enumerate(self.rules)
        }
        return optax.chain(clip, optax.multi_transform(by_rule, self.labels))

    def learning_rate(self, count: jax.Array) -> jax.Array:
        """The first rule's learning rate, for the log."""
        rates = [getattr(algorithm, "learning_rate", 0.0) for _, algorithm in self.rules]
        return self.schedule(count) * rates[0]


def path_name(path: Any) -> str:
    """'params/backbone/...' from a JAX key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
