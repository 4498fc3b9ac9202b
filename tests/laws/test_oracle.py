"""Law 1: with the exact denoiser, every stepper x path x parameterization reaches the data.

Data has two features: Gaussian N(0.7, 0.5^2), whose deterministic path is known in closed form, and
an even mixture of N(+-1, 0.3^2). To compile once per stepper, the kind of process and the
parameterization are numbers and `jax.lax.map` runs over them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.carriers import exact_path, gaussian, packed, quick, spread, two_modes
from vdm_jax.diffusion import parameterization as params
from vdm_jax.diffusion import schedule, steppers
from vdm_jax.diffusion.parameterization import Prediction
from vdm_jax.diffusion.prior import Prior, Shared
from vdm_jax.diffusion.process import PATHS, Process
from vdm_jax.diffusion.sample import Sampler, sample

MEAN, STD, CENTRE, WIDTH, N = 0.7, 0.5, 1.0, 0.3, 600
HUBS = (params.Eps(), params.X0(), params.V(), params.Flow(), params.Edm(sigma_data=0.6))
DETERMINISTIC = {
    "ddim": steppers.Ddim(),
    "euler": steppers.Euler(),
    "heun": steppers.Heun(),
    "dpmpp_2m": steppers.DpmPp2m(),
    "unipc": steppers.UniPc(),
}
RANDOM = {"ddim_eta": steppers.Ddim(eta=1.0), "ancestral": steppers.Ancestral()}
STEPPERS = DETERMINISTIC | RANDOM
FINITE = schedule.Cosine(logsnr_min=-12.0, logsnr_max=12.0)
INFINITE = schedule.Straight()
KINDS = ((FINITE, "vp"), (FINITE, "ve"), (FINITE, "linear"), (INFINITE, "vp"), (INFINITE, "linear"))
# Without signal eps says nothing of x0: an eps network cannot start there, only stay finite.
SOUND = [(k, h) for k in range(5) for h in range(5) if not (k >= 3 and h == 0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyKind(Process):
    """One of several processes, chosen by a traced number."""

    kinds: tuple = KINDS
    index: object = None

    def level(self, t):
        made = [Process(schedule=s, path="vp").level(t) for s, _ in self.kinds]
        made = [
            at._replace(alpha=PATHS[path](at.logsnr)[0], sigma=PATHS[path](at.logsnr)[1])
            for at, (_, path) in zip(made, self.kinds, strict=True)
        ]
        chosen = [self.index == i for i in range(len(self.kinds))]
        return jax.tree.map(lambda *leaves: jnp.select(chosen, leaves), *made)


def through(hub_index, exact):
    """The exact answer as a network with parameterization number `hub_index` would give it."""

    def denoise(batch, at, cond=None):
        truth, here = exact(batch, at), spread(batch, at)
        each = [h.split(h.target(truth.x0, truth.eps, here), batch.x, here) for h in HUBS]
        chosen = [hub_index == i for i in range(len(HUBS))]
        return Prediction(
            jnp.select(chosen, [p.x0 for p in each]), jnp.select(chosen, [p.eps for p in each])
        )

    return denoise


def both(batch, at, cond=None):
    one, two = gaussian(MEAN, STD)(batch, at), two_modes(CENTRE, WIDTH)(batch, at)
    first = jnp.arange(batch.x.shape[-1]) == 0
    return Prediction(jnp.where(first, one.x0, two.x0), jnp.where(first, one.eps, two.eps))


def cells(n=N):
    return packed(rows=(((n, 1, 1),),), tokens=n + 4, d=2, slots=1)


def start_noise(batch, seed):
    fold = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, 0)))
    return quick(lambda b: Prior()(fold(b.keys(seed, "sample/start")), b))(batch)


@functools.cache
def all_combinations(name):
    """(kind, hub, token, feature): samples after 40 steps."""
    batch = cells()

    def one(pair):
        process = AnyKind(schedule=FINITE, index=pair[0])
        sampler = Sampler(stepper=STEPPERS[name], steps=40)
        return sample(through(pair[1], both), batch, process=process, sampler=sampler, seed=3)

    pairs = jnp.array([[k, h] for k in range(len(KINDS)) for h in range(len(HUBS))])
    out = quick(lambda pairs: jax.lax.map(one, pairs))(pairs)
    return np.asarray(out)[:, 0].reshape(len(KINDS), len(HUBS), *batch.x.shape[1:])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_reaches_the_exact_path(name):
    """Root mean square distance to the closed form, of a standard deviation of 0.5."""
    x = all_combinations(name)
    eps = start_noise(cells(), 3)[0, :N, 0]
    for kind, hub in SOUND:
        plan, path = KINDS[kind]
        at = Process(schedule=plan, path=path).level(1.0)
        a, s = float(at.alpha), float(at.sigma)
        want = exact_path(s * eps, MEAN, STD, (a, s), (1.0, 0.0))
        distance = np.sqrt(np.mean((x[kind, hub, :N, 0] - want) ** 2))
        assert distance < (0.04 if STEPPERS[name].order == 1 else 0.008), (kind, hub, distance)


@pytest.mark.parametrize("name", STEPPERS)
def test_moments_of_both_data(name):
    """600 samples: the standard error of a mean is 0.02, of a standard deviation 0.015."""
    x = all_combinations(name)
    assert np.all(np.isfinite(x)), "every kind and hub, sound or not"
    assert np.all(x[:, :, N:] == 0), "padding"
    slack = 0.0 if STEPPERS[name].order == 2 else 0.04  # what 40 steps of first order leave
    for kind, hub in SOUND:
        one, two = x[kind, hub, :N, 0], x[kind, hub, :N, 1]
        assert abs(one.mean() - MEAN) < 0.07
        assert abs(one.std() - STD) < 0.05 + slack, (kind, hub, one.std())
        side = np.sign(two)
        assert abs(side.mean()) < 0.14
        assert abs((two * side).mean() - CENTRE) < 0.05 + slack
        assert abs((two * side).std() - WIDTH) < 0.05 + slack


def test_random_steps_reach_the_variance():
    """With many steps the posterior's variance is the right one: none is lost, none added."""
    batch = cells(2000)
    process = Process(schedule=FINITE)

    @quick
    def run(batch):
        chosen = (steppers.Ancestral(), steppers.Ddim(eta=1.0), steppers.Ddim(eta=0.5))
        chosen += (steppers.TwoStep(process=process),)
        samplers = [Sampler(stepper=stepper, steps=300) for stepper in chosen]
        return [sample(gaussian(MEAN, STD), batch, process=process, sampler=s) for s in samplers]

    for x in run(batch):
        x = np.asarray(x)[0, :2000]
        assert abs(x.mean() - MEAN) < 4 * STD / 4000**0.5
        assert abs(x.std() - STD) < 4 * STD / 8000**0.5 + 0.005


@pytest.mark.parametrize("plan, path", [KINDS[0], KINDS[4]])
def test_twice_as_far_and_half_the_way_back(plan, path):
    """Of the exact denoiser a step is linear, so the covariance with where it began is known, and
    the variance: the far end's, brought back by the forward process."""
    batch, process = cells(4000), Process(schedule=plan, path=path)
    times = (0.8, 0.5, 0.2)  # now, next, and as far again
    now, nxt = (process.level(jnp.full((1, 1, 1), t)) for t in times[:2])
    (a, s), (a1, s1), (a2, s2) = [
        (float(at.alpha), float(at.sigma)) for at in map(process.level, times)
    ]
    spread = ((a * STD) ** 2 + s**2) ** 0.5

    @quick
    def step(batch):
        n = jax.random.normal(jax.random.key(0), (2, *batch.x.shape))
        x = a * MEAN + spread * n[0]
        stepper, exact = steppers.TwoStep(process=process), gaussian(MEAN, STD)
        move = stepper.step(exact, lambda _: n[1], (), batch.replace(x=x), now, nxt)[0]
        last = stepper.step(
            exact, lambda _: n[1], (), batch.replace(x=x), now, process.level(jnp.zeros((1, 1, 1)))
        )[0]
        return x, move, last, exact(batch.replace(x=x), now).x0

    x, found, last, clean = (leaf[0, :4000] for leaf in step(batch))
    far = (a2 * a * STD**2 + s2 * s) / spread**2  # the slope of the deterministic step
    variance = (a1 / a2) ** 2 * ((far * spread) ** 2 - s2**2) + s1**2
    assert found.std() == pytest.approx(variance**0.5, rel=0.03)
    slope = np.mean((x - a * MEAN) * (found - a1 * MEAN)) / spread**2
    assert slope == pytest.approx(far * a1 / a2, abs=0.03)
    np.testing.assert_allclose(last, clean, atol=1e-6)  # onto a clean level, no noise


def test_learnt_variance_moves_between_its_bounds():
    """One step onto a level that is not clean: the variance is the posterior's, the forward's, or
    their geometric mean where the network says one half; 1 - beta is the ratio of alpha^2.
    """
    batch = cells(4000)
    process = Process(schedule=schedule.LinearLogSNR(logsnr_min=-1.0, logsnr_max=1.0))
    now, nxt = (process.level(jnp.full((1, 1, 1), t)) for t in (1.0, 0.5))

    draw = jnp.asarray(start_noise(batch, 1))
    cases = (None, 0.0), (None, 1.0), (1.0, 0.0), (0.5, 0.0)

    @quick
    def noise(batch):
        def one(var_frac, large):
            def denoise(batch, at):
                return gaussian(MEAN, STD)(batch, at)._replace(var_frac=var_frac)

            args = denoise, lambda _: draw, (), batch, now, nxt
            return steppers.Ancestral(large=large).step(*args)[0]

        return [one(*case) for case in cases]

    kept, kept_next = 1 / (1 + np.e), 0.5  # alpha^2 at log SNR -1 and 0
    beta = 1 - kept / kept_next
    small = beta * (1 - kept_next) / (1 - kept)
    for x, want in zip(noise(batch), (small, beta, beta, (beta * small) ** 0.5), strict=True):
        assert x[0, :4000].std() == pytest.approx(want**0.5, rel=0.04)


def test_consistency_with_the_exact_map():
    """A denoiser that jumps along the whole path keeps the law at every number of steps."""
    batch = cells(2000)
    process = Process(schedule=INFINITE, path="linear")

    def jump(batch, at, cond=None):
        a, s = spread(batch, at).alpha, spread(batch, at).sigma
        x0 = MEAN + STD * (batch.x - a * MEAN) / jnp.sqrt((a * STD) ** 2 + s**2 + 1e-30)
        return Prediction(x0, jnp.zeros_like(x0))

    for steps in (1, 4):
        sampler = Sampler(stepper=steppers.Consistency(), steps=steps)
        x = quick(lambda b, s=sampler: sample(jump, b, process=process, sampler=s))(batch)
        x = np.asarray(x)[0, :2000]
        assert abs(x.mean() - MEAN) < 4 * STD / 4000**0.5
        assert abs(x.std() - STD) < 4 * STD / 8000**0.5


@dataclasses.dataclass(frozen=True)
class Until:
    """Even in t from 1 to `end`, which is not clean."""

    end: float

    def length(self, steps):
        return steps

    def __call__(self, index, steps, start, process):
        return start + (self.end - start) * jnp.minimum(index / steps, 1)


COUNTS = np.array([8, 16, 32, 64])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence(name):
    """Error against the closed-form path, fitted over 8 to 64 steps in float64, on every path.

    All four counts run side by side: those with fewer steps are held at the end.
    """
    stepper = STEPPERS[name]
    plan = schedule.LinearLogSNR(logsnr_min=-5.0, logsnr_max=5.0)
    kinds = tuple((plan, path) for path in PATHS)
    with jax.enable_x64(True):
        batch = packed(rows=(((4, 1, 1),) * 4,), tokens=16, d=2, slots=4, ids=[[5] * 4])
        batch = batch.replace(x=batch.x.astype(jnp.float64))
        sampler = Sampler(stepper=stepper, grid=Until(0.2), steps=64)
        counts = jnp.asarray(COUNTS).reshape(1, 4, 1)

        def one(index):
            process = AnyKind(schedule=plan, kinds=kinds, index=index)
            exact = gaussian(MEAN, STD)
            return sample(exact, batch, process=process, sampler=sampler, counts=counts)

        x = np.asarray(quick(lambda index: jax.lax.map(one, index))(jnp.arange(3)))
        eps = np.asarray(start_noise(batch, 0))[0]
        for path, kind in enumerate(PATHS):
            ends = [Process(schedule=plan, path=kind).level(t) for t in (1.0, 0.2)]
            now, nxt = [(float(at.alpha), float(at.sigma)) for at in ends]
            want = exact_path(now[1] * eps, MEAN, STD, now, nxt)
            error = np.abs(x[path, 0] - want).reshape(4, -1).mean(-1)
            slope = -np.polyfit(np.log(COUNTS), np.log(error), 1)[0]
            assert slope > stepper.order - 0.15, (kind, slope, error)
            assert slope < stepper.order + 1.5, "the data is too easy to measure an order"


@dataclasses.dataclass(frozen=True)
class Pausing:
    """Even in t; frame j waits 2 j steps before its first step and as many after its fifth."""

    def length(self, steps):
        return steps + 8

    def __call__(self, index, steps, start, process):
        wait = 2 * jnp.arange(3)
        moved = jnp.maximum(index - wait, 0)
        moved = jnp.minimum(moved, 5) + jnp.maximum(moved - wait - 5, 0)
        return start * jnp.maximum(1 - moved / steps, 0)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_held_then_moving(name):
    """Frames that wait end where the frame that never waited ends: each cell's history is its own.

    All frames start from the same noise and have the same exact denoiser.
    """
    batch = packed(rows=(((3, 1, 2), (3, 1, 1)),), tokens=10, d=2)
    batch = batch.replace(level=batch.position[..., 0])
    sampler = Sampler(stepper=STEPPERS[name], grid=Pausing(), steps=12)

    def run(batch):
        prior = Prior(factor=Shared())
        process = Process(schedule=FINITE)
        return sample(both, batch, process=process, sampler=sampler, prior=prior)

    x = np.asarray(quick(run)(batch))[0]
    clip, image = x[:6].reshape(3, 2, 2), x[6:9].reshape(3, 1, 2)
    assert np.all(x[:9] != 0)
    for frames in (clip, image):
        np.testing.assert_allclose(frames[1:], frames[[0, 0]], atol=2e-6)


def test_a_cell_that_does_not_move_keeps_its_bits():
    """Strength 0 holds an example; others of the row go all the way, through every stepper."""
    batch = packed(rows=(((2, 2, 1), (3, 1, 1)),), tokens=8, d=2)
    clip = jax.random.normal(jax.random.key(1), batch.x.shape) * 3
    clip = jnp.where(batch.segment[..., None] > 0, clip, 0)
    strength = jnp.array([[[0.0], [1.0]]])
    process = Process(schedule=schedule.Cosine())

    @quick
    def run(batch):
        samplers = [Sampler(stepper=stepper, steps=4) for stepper in STEPPERS.values()]
        return [
            sample(both, batch, process=process, sampler=s, strength=strength) for s in samplers
        ]

    segment, clip = np.asarray(batch.segment), np.asarray(clip)
    for x in run(batch.replace(x=jnp.asarray(clip))):
        x = np.asarray(x)
        assert np.array_equal(x[segment == 1], clip[segment == 1])
        assert not np.any(x[segment == 2] == clip[segment == 2])
