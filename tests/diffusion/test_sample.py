"""The loop: keyed noise, known cells, starts from a clip, different numbers of steps (law 11)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.carriers import frames, gaussian, packed, quick
from vdm_jax.config import UserError, build, spec
from vdm_jax.diffusion import constraints, grids, guides, steppers
from vdm_jax.diffusion import schedule as sch
from vdm_jax.diffusion.prior import Mixed, Prior
from vdm_jax.diffusion.process import Process, TokenShift
from vdm_jax.diffusion.sample import Sampler, sample

MEAN, STD = 0.7, 0.5
PROCESS = Process(schedule=sch.Cosine())
EXACT = gaussian(MEAN, STD)


def run(batch, sampler, process=PROCESS, **rest):
    return quick(lambda b: sample(EXACT, b, process=process, sampler=sampler, **rest))(batch)


def test_an_example_does_not_know_its_neighbours():
    """The same request in another row, slot and company: the same bits, through random steps."""
    sampler = Sampler(stepper=steppers.Ancestral(), steps=3)
    process = Process(schedule=sch.Cosine(), shift=TokenShift(reference=4.0))
    go = quick(lambda b, s: sample(EXACT, b, process=process, sampler=sampler, seed=s))
    one = packed(rows=(((2, 2, 1), (1, 2, 2)), ((3, 1, 1),)), ids=[[7, 8], [9]])
    two = packed(rows=(((5, 1, 1),), ((1, 1, 3), (2, 2, 1))), ids=[[9], [6, 7]])
    first, second, other = go(one, 0), go(two, 0), go(one, 1)
    assert np.array_equal(first[0, :4], second[1, 3:7])
    assert not np.any(np.asarray(first)[0, :4] == np.asarray(other)[0, :4])
    assert not np.any(np.asarray(first)[0, :4] == np.asarray(first)[0, 4:8])
    assert np.all(np.asarray(first)[0, 8:] == 0)


def test_noise_of_every_step_is_fresh():
    """Consistency steps keep only the last noise: means over cells of x at two steps differ."""
    drawn = []

    class Recording(steppers.Consistency):
        def step(self, denoise, draw, carry, batch, now, nxt):
            noise = draw("step")
            jax.debug.callback(lambda n: drawn.append(np.asarray(n)), noise, ordered=True)
            return super().step(denoise, draw, carry, batch, now, nxt)

    run(packed(), Sampler(stepper=Recording(), steps=3))
    jax.effects_barrier()
    inside = np.asarray(packed().segment) > 0
    stacked = np.stack([noise[inside].ravel() for noise in drawn])
    assert len(stacked) == 3
    assert np.abs(np.corrcoef(stacked) - np.eye(3)).max() < 0.6
    assert len(np.unique(stacked)) == stacked.size


@pytest.mark.parametrize("known", ["clean", "told"])
@pytest.mark.parametrize("make", [packed, frames])
def test_known_cells_stay_and_are_told(make, known):
    """The network sees given cells in place at every call, at level 0 or at the clip's own."""
    batch = make()
    mask = jnp.zeros(batch.segment.shape, bool).at[0, 1].set(True)
    given = jnp.full_like(batch.x, 5.0)
    batch = batch.replace(known=mask, given=given)
    mask = np.asarray(mask)

    def checked(batch, at, cond):
        sigma = batch.spread(at.sigma).reshape(batch.segment.shape)
        inside = batch.segment > 0
        level_is_right = jnp.where(mask, sigma == 0, sigma > 0) if known == "clean" else sigma > 0
        right = jnp.where(inside, level_is_right, True).all()
        right &= jnp.all(batch.x[0, 1] == 5.0)
        prediction = EXACT(batch, at)
        return prediction._replace(x0=jnp.where(right, prediction.x0, jnp.nan))

    sampler = Sampler(stepper=steppers.DpmPp2m(), steps=3, known=known)
    x = quick(lambda b: sample(checked, b, process=PROCESS, sampler=sampler))(batch)
    x = np.asarray(x)
    assert np.all(x[mask] == 5.0) and np.all(np.isfinite(x))
    assert not np.any(x[(np.asarray(batch.segment) > 0) & ~mask] == 5.0)


def test_start_from_a_clip():
    """Strength 0 returns the clip, 1 ignores it, between them it is the clip noised to there."""
    batch = packed(rows=(((40, 1, 1), (40, 1, 1), (40, 1, 1)),), tokens=120, slots=3)
    strength = jnp.array([[[0.0], [0.4], [1.0]]])
    sampler = Sampler(steps=2)

    def forget(batch, at, cond):  # leaves x_t alone but for its scale: shows the start
        zero = jnp.zeros_like(batch.x)
        return EXACT(batch, at)._replace(x0=batch.x, eps=zero)

    go = quick(
        lambda b: sample(forget, b, process=PROCESS, sampler=sampler, strength=strength)
    )  # fmt: skip
    one, two = (np.asarray(go(batch.replace(x=jnp.full_like(batch.x, v))))[0] for v in (2.0, -3.0))
    assert np.all(one[:40] == 2) and np.all(two[:40] == -3)
    assert np.array_equal(one[80:], two[80:])
    at, mid = PROCESS.level(0.4), PROCESS.level(0.2)
    np.testing.assert_allclose((one - two)[40:80], at.alpha * 5 * mid.alpha, rtol=1e-4)
    noise = one[40:80] / mid.alpha - at.alpha * 2
    assert abs(noise.std() / at.sigma - 1) < 0.25


def test_fewer_steps_beside_more():
    """Requests of 2 and 5 steps in one loop: each as alone with its own number of steps."""
    batch = packed(rows=(((2, 2, 1), (1, 2, 2)),), tokens=8)
    sampler = Sampler(stepper=steppers.UniPc(), steps=5)
    both = run(batch, sampler, counts=jnp.array([[[2], [5]]]))
    two, five = run(batch, sampler.override(steps=2)), run(batch, sampler)
    np.testing.assert_allclose(both[0, :4], two[0, :4], atol=1e-6)
    np.testing.assert_allclose(both[0, 4:], five[0, 4:], atol=1e-6)
    assert np.abs(np.asarray(two - five)).min() > 1e-5


def test_frames_with_correlated_noise():
    """The other carrier and prior, in bfloat16: the state is float32 all the same."""
    batch = frames()
    batch = batch.replace(x=batch.x.astype(jnp.bfloat16))
    sampler = Sampler(stepper=steppers.Ddim(eta=0.5), steps=8, grid=grids.Karras())
    x = run(batch, sampler, prior=Prior(factor=Mixed(alpha=1.0)))
    assert x.dtype == jnp.float32 and x.shape == batch.x.shape
    assert abs(float(x.mean()) - MEAN) < 4 * STD / 24**0.5 * 1.5
    assert 0.2 < float(x.std()) < 1.0


def test_built_from_a_config_and_hashable():
    """A sampler is a static argument of jit, so it must hash."""
    node = spec(
        Sampler,
        stepper=spec(steppers.UniPc),
        grid=spec(grids.Shifted, grid=spec(grids.Linspace), factor=3.0),
        steps=30,
        guides=(spec(guides.Guidance, scales=(spec(guides.Constant, value=5.0),)),),
    )
    sampler = build(node)
    assert sampler == build(node) and hash(sampler) == hash(build(node))
    assert sampler.override(guidance=2.0).guides[0].scales == (guides.Constant(value=2.0),)


def test_mistakes_are_said():
    with pytest.raises(UserError, match="noised"):
        Sampler(constraints=(constraints.Keep(),))
    with pytest.raises(UserError, match="'held'"):
        Sampler(known="held")
