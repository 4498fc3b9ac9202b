"""From noise to data: one `lax.scan` over a grid of levels.

    x = sample(denoise, batch, process=..., sampler=..., prior=..., conds={"cond": ..., ...})

Every cell follows its own sequence of levels (b e k), spread by the carrier. Hence

- a cell whose level does not change in a step keeps its bits, so requests with fewer steps, given
  cells and frames that wait are all the same thing;
- known cells carry their values and level 0 (clean), and so never move;
- the noise of step s is keyed by (seed, purpose, s, example, cell): neighbours do not matter.

The state is float32 whatever the network computes in.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vdm_jax.batch import Frames, Packed
from vdm_jax.cond import Cond
from vdm_jax.config import UserError
from vdm_jax.diffusion.constraints import Constraint, Keep
from vdm_jax.diffusion.grids import Grid, Linspace
from vdm_jax.diffusion.guides import Conds, Constant, DenoiseFn, Guidance, Guide
from vdm_jax.diffusion.prior import Prior
from vdm_jax.diffusion.process import Level, Process, with_known
from vdm_jax.diffusion.schedule import Numbers
from vdm_jax.diffusion.steppers import Carry, Ddim, Draw, Stepper, advance
from vdm_jax.types import Count, Positive

POSITIVE = "cond"  # the name of the condition that is sampled
_IID = Prior()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """How to sample.

    Attributes:
      steps: evaluations at different levels (a grid may need more, or say its own number).
      guides: applied in order, the first innermost.
      constraints: likewise.
      known: what becomes of given cells: 'clean' (put in place, at level 0), 'told' (put in place
        while the network is told the clip's own level), 'noised' (left to `Keep`).
      guidance: the scale that a network is told whose guidance was distilled, so that it needs no
        `Guidance`; None where it is told none.

    Raises:
      UserError: `Keep` with cells that are kept clean anyway, or an unknown `known`.
    """

    stepper: Stepper = dataclasses.field(default_factory=Ddim)
    grid: Grid = dataclasses.field(default_factory=Linspace)
    steps: Count = 50
    guides: tuple[Guide, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    known: str = "clean"
    guidance: Positive | None = None

    def __post_init__(self):
        if self.known not in ("clean", "told", "noised"):
            raise UserError(f"Sampler.known is '{self.known}'; use 'clean', 'told' or 'noised'.")
        if self.known != "noised" and any(isinstance(rule, Keep) for rule in self.constraints):
            raise UserError(f"Sampler: Keep has nothing to do with known='{self.known}'; 'noised'.")

    def override(self, *, steps: int | None = None, guidance: float | None = None) -> Sampler:
        """This sampler with another number of steps or guidance scale.

        Raises:
          UserError: a guidance scale for a sampler that has no single-scale `Guidance`, nor tells
            the network of one; or one to tell that is not above 0.
        """
        changed = self if steps is None else dataclasses.replace(self, steps=steps)
        if guidance is None:
            return changed
        if self.guidance is not None:
            if guidance <= 0:
                raise UserError(f"guidance is {guidance:g}; this model is told one above 0.")
            return dataclasses.replace(changed, guidance=float(guidance))
        single = [g for g in self.guides if isinstance(g, Guidance) and len(g.scales) == 1]
        if not single:
            raise UserError(f"guidance {guidance:g} was asked of a sampler without Guidance.")
        scales = (Constant(value=float(guidance)),)
        guides = tuple(
            dataclasses.replace(g, scales=scales) if g in single else g for g in self.guides
        )
        return dataclasses.replace(changed, guides=guides)

    def times(
        self,
        batch: Frames | Packed,
        process: Process,
        strength: Array | float = 1.0,
        counts: Int[Array, "..."] | None = None,
    ) -> Numbers:
        """(steps + 1, b, e, k): every level's times, from its start to 0.

        Args:
          process: as the batch sees it, `process.on(batch)`.
          strength: where to start, in [0, 1]; broadcasts to (b e k).
          counts: numbers of steps, at most `steps`, where they differ; broadcasts to (b e k).
        """
        shape = (*batch.examples.valid.shape, 1)
        index = jnp.arange(self.grid.length(self.steps) + 1).reshape(-1, 1, 1, 1)
        steps = jnp.asarray(self.steps if counts is None else counts)
        start = jnp.broadcast_to(strength, jnp.broadcast_shapes(jnp.shape(strength), shape))
        return self.grid(index, steps, start.astype(jnp.result_type(float)), process)


def sample(
    denoise: DenoiseFn,
    batch: Frames | Packed,
    *,
    process: Process,
    sampler: Sampler,
    prior: Prior = _IID,
    conds: Conds | None = None,
    seed: int | Array = 0,
    strength: Array | float = 1.0,
    counts: Int[Array, "..."] | None = None,
) -> Array:
    """Sample every example of `batch`; returns x like batch.x, float32.

    Args:
      denoise: (batch, level (b e k), cond) -> Prediction.
      batch: where and how large the examples are. Its x is used only at a `strength` below 1;
        `known` and `given` are conditions.
      conds: conditions by name; 'cond' is sampled, guides use the others.
      seed: together with the examples' ids, what all noise follows from.
      strength: start from batch.x noised to this time (Meng et al. 2022): 0 returns x, 1 ignores
        it. Per example (b e 1) or per level (b e k).
      counts: steps per example (b e 1) or level (b e k), at most the sampler's.
    """
    conds = conds or {}
    dtype = jnp.promote_types(batch.x.dtype, jnp.float32)
    process = process.on(batch)
    t = sampler.times(batch, process, strength, counts)
    if sampler.known == "clean":
        batch, t = with_known(batch, t)
    levels = process.level(t)

    def noise(purpose: str, *counts: Array | int) -> Array:
        keys = batch.keys(seed, f"sample/{purpose}")
        for count in counts:
            keys = jax.vmap(jax.vmap(lambda key, count=count: jax.random.fold_in(key, count)))(keys)
        return prior(keys, batch).astype(dtype)

    first = jax.tree.map(lambda leaf: leaf[0], levels)
    x = _start(batch.replace(x=batch.x.astype(dtype)), first, noise("start", 0), strength)
    if sampler.known != "noised":
        x = batch.insert_known(x)
        denoise = _with_conditions_in_place(denoise)

    def one(state: tuple[Array, Carry], now_next):
        step, now, nxt = now_next
        x, carry = _step(denoise, batch.replace(x=state[0]), state[1], now, nxt, step)
        return (x.astype(dtype), carry), None

    def _step(denoise, here, carry, now, nxt, step):
        for guide in sampler.guides:
            denoise = guide(denoise, conds, step)
        cond = conds.get(POSITIVE, Cond())

        def predict(batch, at):
            return denoise(batch, at, cond)

        def draw(purpose, *counts):
            return noise(purpose, step, *counts)

        go = _advance(sampler.stepper, predict)
        for constraint in sampler.constraints:
            go = constraint(go, predict)
        x, carry = go(here, carry, now, nxt, draw)
        return x if sampler.known == "noised" else here.insert_known(x), carry

    ends = [jax.tree.map(lambda leaf, s=s: leaf[s], levels) for s in (slice(-1), slice(1, None))]
    carry = sampler.stepper.init(batch.replace(x=x))
    (x, _), _ = jax.lax.scan(one, (x, carry), (jnp.arange(t.shape[0] - 1), *ends))
    return x


def _start(batch: Frames | Packed, at: Level, eps: Array, strength: Array | float) -> Array:
    """Noise, and batch.x under it where the strength is below 1."""
    here = jax.tree.map(batch.spread, at)
    start = jnp.broadcast_to(strength, jnp.broadcast_shapes(jnp.shape(strength), (1, 1, 1)))
    whole = jnp.broadcast_to(start >= 1, (*batch.examples.valid.shape, start.shape[-1]))
    ignored = _per_cell(batch, whole)
    return here.sigma * eps + jnp.where(ignored, 0, here.alpha * batch.x)


def _per_cell(batch: Frames | Packed, values: Array) -> Array:
    # Known cells use a level beyond those of `strength`; they are overwritten.
    if batch.level is not None and values.shape[-1] > 1:
        batch = batch.replace(level=jnp.minimum(batch.level, values.shape[-1] - 1))
    return batch.spread(values)


def _with_conditions_in_place(denoise: DenoiseFn) -> DenoiseFn:
    def told(batch, at, cond):
        return denoise(batch.replace(x=batch.insert_known(batch.x)), at, cond)

    return told


def _advance(stepper: Stepper, predict):
    def go(batch: Frames | Packed, carry: Carry, now: Level, nxt: Level, draw: Draw):
        return advance(stepper, predict, draw, carry, batch, now, nxt)

    return go
