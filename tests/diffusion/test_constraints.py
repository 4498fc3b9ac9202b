"""Constraints against the distributions they must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.carriers import gaussian, packed, quick
from vdm_jax.diffusion import constraints, steppers
from vdm_jax.diffusion import schedule as sch
from vdm_jax.diffusion.parameterization import Prediction
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler, sample

PROCESS = Process(schedule=sch.Cosine(logsnr_min=-10.0, logsnr_max=10.0))
N = 400


def pairs():
    """Examples of two cells, the first known to be 1.5."""
    batch = packed(rows=(((2, 1, 1),) * 2,) * (N // 2), tokens=4, d=1)
    known = (batch.segment > 0) & (batch.position[..., 0] == 0)
    return batch.replace(known=known, given=jnp.full_like(batch.x, 1.5))


def correlated(rho):
    """The exact denoiser of pairs of cells with unit variance and correlation rho."""

    def denoise(batch, at, cond=None):
        a, s = batch.spread(at.alpha), batch.spread(at.sigma)
        x = batch.x.reshape(-1, 2, 2, 1)  # (row, example, cell)
        a, s = a.reshape(-1, 2, 2, 1), s.reshape(-1, 2, 2, 1)
        total, difference = x.sum(2, keepdims=True) / 2, (x - x[:, :, ::-1]) / 2
        x0, eps = 0, 0
        for part, variance in ((total, 1 + rho), (difference, 1 - rho)):
            marginal = a**2 * variance + s**2
            x0, eps = x0 + a * variance / marginal * part, eps + s / marginal * part
        return Prediction(x0.reshape(batch.x.shape), eps.reshape(batch.x.shape))

    return denoise


def test_replacement_and_resampling():
    """Known cells end as given. Replacement alone pulls its partner only part of the way to the
    conditional mean 0.9 x 1.5; going back up and down again brings it nearer.
    """
    batch = pairs()

    def mean(times):
        rules = (constraints.Keep(times=times),)
        sampler = Sampler(stepper=steppers.Ancestral(), steps=12, constraints=rules, known="noised")
        run = quick(lambda b: sample(correlated(0.9), b, process=PROCESS, sampler=sampler))
        x = np.asarray(run(batch)).reshape(-1, 2)
        assert np.all(x[:, 0] == 1.5)
        return x[:, 1].mean()

    want, once, often = 0.9 * 1.5, mean(1), mean(6)
    assert 0.3 < once < want - 0.1
    assert abs(often - want) < 0.7 * abs(once - want)


def test_known_cells_are_at_the_level_of_the_state():
    """While sampling they are alpha 1.5 + sigma n, not clean."""
    batch = pairs()
    seen = []

    def watched(batch, at, cond):
        jax.debug.callback(lambda *v: seen.append(v), batch.x, at.alpha, at.sigma, ordered=True)
        return gaussian(0.0, 1.0)(batch, at)

    sampler = Sampler(steps=3, constraints=(constraints.Keep(),), known="noised")
    quick(lambda b: sample(watched, b, process=PROCESS, sampler=sampler))(batch)
    jax.effects_barrier()
    assert len(seen) == 3
    for x, alpha, sigma in seen:
        first = np.asarray(x).reshape(-1, 2)[:, 0]
        assert abs(first.mean() - alpha[0, 0, 0] * 1.5) < 4 * sigma[0, 0, 0] / N**0.5
        assert abs(first.std() / sigma[0, 0, 0] - 1) < 4 / (2 * N) ** 0.5


@pytest.mark.parametrize("path", ["vp", "ve", "linear"])
def test_back_up_keeps_the_forward_law(path):
    """x at a low level, raised, has the mean and variance of x0 noised to the high one."""
    process = Process(schedule=PROCESS.schedule, path=path)
    batch = packed(rows=(((2000, 1, 1),),), tokens=2000, d=2, slots=1)
    low, high = (process.level(jnp.full((1, 1, 1), t)) for t in (0.3, 0.6))
    noise = [jax.random.normal(jax.random.key(i), batch.x.shape) for i in range(2)]
    x = low.alpha * 0.8 + low.sigma * noise[0]
    rise = quick(lambda x: [constraints._up(batch, x, low, at, noise[1]) for at in (high, low)])
    up, level = rise(x)
    sigma = float(high.sigma[0, 0, 0])
    assert abs(up.mean() - 0.8 * high.alpha[0, 0, 0]) < 4 * sigma / 4000**0.5
    assert abs(up.std() / sigma - 1) < 4 / 8000**0.5
    assert np.array_equal(level, x)


def test_langevin_relaxes_to_the_level():
    """From a wrong spread to that of the level, which is 1 for unit data: the chain
    x -> (1 - delta sigma^2 / 2) x + sqrt(delta) sigma n settles at 1 / (1 - delta sigma^2 / 4).
    """
    batch = packed(rows=(((1500, 1, 1),),), tokens=1500, d=2, slots=1)
    batch = batch.replace(x=jnp.full_like(batch.x, 3.0))
    now, nxt = (PROCESS.level(jnp.full((1, 1, 1), t)) for t in (0.75, 0.7))
    exact = gaussian(0.0, 1.0)

    def stay(batch, carry, now, nxt, draw):
        return batch.x, carry

    def draw(purpose, index):
        return jax.random.normal(jax.random.fold_in(jax.random.key(0), index), batch.x.shape)

    rule = constraints.Langevin(delta=0.4, times=20)
    go = rule(stay, lambda batch, at: exact(batch, at))
    x = np.asarray(quick(lambda b: go(b, (), now, nxt, draw)[0])(batch))
    sigma2 = float(nxt.sigma[0, 0, 0]) ** 2
    left = 3.0 * (1 - 0.4 * sigma2 / 2) ** 20
    assert abs(x.mean() - left) < 4 / 3000**0.5
    assert abs(x.var() / (1 / (1 - 0.4 * sigma2 / 4)) - 1) < 4 * (2 / 3000) ** 0.5
    held = quick(lambda b: go(b, (), now, now, draw)[0])(batch)
    assert np.array_equal(held, batch.x)
