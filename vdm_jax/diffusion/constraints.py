"""Constraints: decorators of a sampler's step that also act on the state between steps.

    constrained = constraint(advance, denoise)         advance(batch, carry, now, nxt, draw)

`Keep` forces the known cells to follow their own forward process, `Langevin` lets the state relax
towards its level's distribution. A cell whose level does not change keeps its bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vdm_jax.batch import Frames, Packed
from vdm_jax.diffusion.process import Level, held, over
from vdm_jax.diffusion.steppers import Carry, Draw, Predict, posterior_variance
from vdm_jax.types import Count, Positive

Advance = Callable[[Frames | Packed, Carry, Level, Level, Draw], tuple[Array, Carry]]


@runtime_checkable
class Constraint(Protocol):
    def __call__(self, advance: Advance, denoise: Predict) -> Advance: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """Replacement: known cells are `given` at the state's own noise level, freshly noised.

    `times` > 1 repeats each step after going back up by the forward process, so that the unknown
    cells can adapt (Lugmayr et al. 2022, algorithm 1). Needs `Sampler(known='noised')`.
    """

    times: Count = 1

    def __call__(self, advance, denoise):
        def kept(batch, carry, now, nxt, draw):
            def once(index, state):
                high, _, _ = state

                def fresh(purpose, *counts):
                    return draw(f"keep/{purpose}", index, *counts)

                high = _put(batch, high, now, fresh("now"))
                low, after = advance(batch.replace(x=high), carry, now, nxt, fresh)
                low = _put(batch, low, nxt, fresh("next")).astype(high.dtype)
                return _up(batch, low, nxt, now, fresh("up")), low, after

            # A loop, not Python's: the network is compiled once however often it is repeated.
            start = (batch.x, batch.x, carry)
            _, x, after = jax.lax.fori_loop(0, self.times, once, start)
            return x, after

        return kept


def _put(batch: Frames | Packed, x: Array, at: Level, eps: Array) -> Array:
    if batch.known is None:
        return x
    known = batch.known.reshape(batch.known.shape + (1,) * (x.ndim - 2))
    here = jax.tree.map(batch.spread, at)
    return jnp.where(known, here.alpha * batch.given + here.sigma * eps, x)


def _up(batch: Frames | Packed, x: Array, low: Level, high: Level, noise: Array) -> Array:
    """From a cleaner level to a noisier one by the forward process."""
    low, high = (jax.tree.map(batch.spread, at) for at in (low, high))
    # Forward variance: the posterior's, in the units of the noisier level.
    backward = posterior_variance(high, low)
    variance = jnp.where(low.sigma > 0, backward * over(high.sigma, low.sigma) ** 2, high.sigma**2)
    raised = over(high.alpha, low.alpha) * x + jnp.sqrt(variance) * noise
    return jnp.where(held(low, high), x, raised)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Langevin:
    """After each step, `times` steps of Langevin dynamics at the new level:

    x - delta / 2 sigma eps(x) + sqrt(delta) sigma n        (Ho et al. 2022b, section 3.1)
    """

    delta: Positive = 0.1
    times: Count = 1

    def __call__(self, advance, denoise):
        def corrected(batch, carry, now, nxt, draw):
            x, after = advance(batch, carry, now, nxt, draw)
            here, there = (jax.tree.map(batch.spread, at) for at in (now, nxt))

            def once(index, x):
                eps = denoise(batch.replace(x=x), nxt).eps
                noise = self.delta**0.5 * draw("langevin", index) - self.delta / 2 * eps
                return jnp.where(held(here, there), x, x + there.sigma * noise)

            return jax.lax.fori_loop(0, self.times, once, x.astype(batch.x.dtype)), after

        return corrected
