"""Everything a run must remember besides its data cursor: a pytree that one jitted step advances.

There is no random state: every draw is keyed by (seed, purpose, example or step).
Master weights, EMA and optimizer state are fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.core import meta
from jaxtyping import Array, Bool, Int

from vdm_jax.types import Params


@struct.dataclass
class Guard:
    """Counts of updates taken and of steps skipped because a loss or gradient was not finite."""

    updates: Int[Array, ""]
    skipped: Int[Array, ""]
    consecutive: Int[Array, ""]  # skipped steps since the last update


@struct.dataclass
class TrainState:
    step: Int[Array, ""]
    params: Params
    ema: Mapping[str, Params]  # one shadow per rate, keyed by the rate as written in the config
    opt: optax.OptState
    guard: Guard

    if TYPE_CHECKING:

        def replace(self, **changes: Any) -> TrainState: ...

    def items(self) -> dict[str, Any]:
        """The parts a checkpoint stores apart, so that a sampler can load the EMA alone."""
        counters = {"step": self.step, "guard": self.guard}
        return {"params": self.params, "ema": self.ema, "opt": self.opt, "counters": counters}

    @classmethod
    def of(cls, items: Mapping[str, Any]) -> TrainState:
        """The inverse of `items`."""
        counters = items["counters"]
        return cls(
            step=counters["step"], params=items["params"], ema=items["ema"], opt=items["opt"],
            guard=counters["guard"],
        )  # fmt: skip


def create(
    params: Params, transform: optax.GradientTransformation, rates: tuple[float, ...]
) -> TrainState:
    """A fresh state; every EMA starts as a copy, so that its structure never changes.

    `params` may be boxed with axis names. The optimizer sees the bare arrays: rules that mask
    parameters would leave boxes with nothing inside.
    """
    zero = jnp.zeros((), jnp.int32)
    ema = {str(rate): jax.tree.map(jnp.copy, params) for rate in rates}
    guard = Guard(updates=zero, skipped=zero, consecutive=zero)
    return TrainState(
        step=zero, params=params, ema=ema, opt=transform.init(meta.unbox(params)), guard=guard
    )


def advance(
    state: TrainState,
    grads: Params,
    loss: Array,
    transform: optax.GradientTransformation,
) -> tuple[TrainState, Bool[Array, ""]]:
    """One update, or none where loss or gradients are not finite. Returns (state, taken).

    The check comes before clipping, which would turn one infinity into nan everywhere. A skipped
    step changes no weight, moment, average or schedule; only `step` and the counters move on.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.global_norm(grads))
    updates, opt = transform.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    count = state.guard.updates
    ema = {
        rate: _average(shadow, params, _decay(float(rate), count))
        for rate, shadow in state.ema.items()
    }
    taken = finite.astype(jnp.int32)
    guard = Guard(
        updates=count + taken,
        skipped=state.guard.skipped + 1 - taken,
        consecutive=(state.guard.consecutive + 1) * (1 - taken),
    )

    def keep(new, old):
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    new = TrainState(
        step=state.step + 1,
        params=keep(params, state.params),
        ema=keep(ema, dict(state.ema)),
        opt=keep(opt, state.opt),
        guard=guard,
    )
    return new, finite


def _average(shadow: Params, params: Params, decay: Array) -> Params:
    return jax.tree.map(lambda old, new: old * decay + new * (1 - decay), shadow, params)


def _decay(rate: float, count: Array) -> Array:
    """Ramped so that the first updates are not drowned in the initial weights."""
    return jnp.minimum(rate, (1.0 + count) / (10.0 + count))
