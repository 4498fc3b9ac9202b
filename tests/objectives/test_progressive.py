"""Distillation of exact denoisers, whose two steps are known in closed form."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.carriers import packed, quick
from vdm_jax.config import UserError
from vdm_jax.denoiser import Denoiser, ScaledTime
from vdm_jax.diffusion.grids import Karras, Linspace, Shifted
from vdm_jax.diffusion.guides import Constant, Guidance, Interval
from vdm_jax.diffusion.parameterization import X0, Eps, Flow, Parameterization, V
from vdm_jax.diffusion.prior import Prior
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler, sample
from vdm_jax.diffusion.schedule import Cosine, Straight
from vdm_jax.objectives.progressive import Guided, Progressive, Scales
from vdm_jax.signals import Signal
from vdm_jax.stage import Stage

MEAN, STD = 0.7, 0.5
PROCESSES = {
    "finite": Process(schedule=Cosine(logsnr_min=-12.0, logsnr_max=12.0)),
    "infinite": Process(schedule=Straight(), path="linear"),
    "ve": Process(schedule=Cosine(logsnr_min=-8.0, logsnr_max=8.0), path="ve"),
}
HUBS = {"v": V(), "x0": X0(), "flow": Flow()}


def unscaled(hub, x, at):
    """x_t of what a backbone is shown."""
    return x if isinstance(hub, Flow) else x * jnp.sqrt(at.alpha**2 + at.sigma**2)


class Exact(nn.Module):
    """The exact answer for data N(mean, STD^2); the condition's vector (b e 2), if there is one,
    is (mean, scale of guidance): guided away from data of mean 0."""

    process: Process
    hub: Parameterization

    def __call__(self, batch, time, cond, *, train=False):
        at = jax.tree.map(batch.spread, self.process.level(time))
        x = unscaled(self.hub, batch.x, at)
        mean, scale = MEAN, 1.0
        if cond.vector is not None:
            mean, scale = (batch.spread(cond.vector[..., i]) for i in range(2))
        # Of x0 given x_t the mean is linear in the data's mean, hence so is guidance.
        mean = mean * scale
        gain = at.alpha * STD**2 / ((at.alpha * STD) ** 2 + at.sigma**2)
        x0 = mean + gain * (x - at.alpha * mean)
        eps = (x - at.alpha * x0) / jnp.where(at.sigma > 0, at.sigma, 1)
        return self.hub.target(x0, eps, at)


class Table(nn.Module):
    """x0 = x / radius * slope + offset, a slope and an offset for each of the `times`."""

    process: Process
    hub: Parameterization
    times: tuple[float, ...]

    @nn.compact
    def __call__(self, batch, time, cond, *, train=False):
        table = self.param("table", nn.initializers.zeros_init(), (len(self.times), 2))
        at = jax.tree.map(batch.spread, self.process.level(time))
        index = jnp.abs(batch.spread(time)[..., None] - jnp.array(self.times)).argmin(-1)
        slope, offset = table[index, 0], table[index, 1]
        x = unscaled(self.hub, batch.x, at)
        x0 = slope * x / jnp.sqrt(at.alpha**2 + at.sigma**2) + offset
        eps = (x - at.alpha * x0) / jnp.where(at.sigma > 0, at.sigma, 1)
        return self.hub.target(x0, eps, at)


@dataclasses.dataclass(frozen=True)
class Known:
    denoiser: Denoiser

    def weights(self):
        return {"params": {}}


def denoiser(backbone, hub, signals=()):
    return Denoiser(
        backbone=backbone, parameterization=hub, signals=signals, time_input=ScaledTime(scale=1.0)
    )


EVEN = Linspace()


def stage(network, process, steps, grid=EVEN):
    sampler = Sampler(steps=steps, grid=grid)
    return Stage(denoiser=network, process=process, prior=Prior(), sampler=sampler, patch=(1, 1, 1))


def data(n=64, examples=8):
    batch = packed(rows=(((n, 1, 1),) * examples,), tokens=n * examples, slots=examples)
    noise = np.random.default_rng(0).normal(size=batch.x.shape)
    return batch.replace(x=jnp.asarray(MEAN + STD * noise, jnp.float32))


def two_steps(process, steps):
    """(steps, 2): slope, over the radius, and offset of the x0 whose one step from each time is two
    of the exact denoiser's, by following two points; float64."""
    t = np.linspace(1, 0, 2 * steps + 1)
    with jax.enable_x64(True):
        levels = process.level(jnp.asarray(t))
    a, s = np.asarray(levels.alpha), np.asarray(levels.sigma)

    def exact(x, i):
        x0 = MEAN + a[i] * STD**2 / ((a[i] * STD) ** 2 + s[i] ** 2) * (x - a[i] * MEAN)
        return a[i + 1] * x0 + s[i + 1] * (x - a[i] * x0) / s[i]

    table = []
    for i in range(0, 2 * steps, 2):
        x = np.array([-1.0, 2.0])
        end = exact(exact(x, i), i + 1)
        # x'' = a'' x0 + s'' (x - a x0) / s, for x0.
        kept = s[i + 2] / s[i]
        x0 = (end - kept * x) / (a[i + 2] - kept * a[i])
        slope = (x0[1] - x0[0]) / 3
        table.append((slope * np.hypot(a[i], s[i]), x0[0] + slope))
    return np.array(table)


def loss_of(run, objective, batch, teacher=None):
    """The mean loss as a function of the student's table."""

    def loss(table):
        params = {"params": {"backbone": {"table": table}}, "teacher": teacher or {}}
        total, weight, _ = objective(run, params, batch, {}, 0)
        return total / weight

    return loss


CASES = (("finite", "v", 4), ("infinite", "flow", 4), ("infinite", "x0", 1), ("ve", "x0", 3))


@pytest.mark.parametrize("kind, hub, steps", CASES)
def test_the_target_is_two_steps_of_the_teacher(kind, hub, steps):
    """A student of the closed form has no loss, at both ends of time too; one beside it has."""
    process, hub = PROCESSES[kind], HUBS[hub]
    objective = Progressive(teacher=Known(denoiser(Exact(process, hub), hub)), steps=steps)
    times = tuple(1 - i / steps for i in range(steps))
    run = stage(denoiser(Table(process, hub, times), hub), process, steps)
    loss = quick(loss_of(run, objective, data(n=2, examples=16)))
    table = two_steps(process, steps).astype(np.float32)
    assert loss(table) < 1e-7 and loss(table + 0.1) > 1e-3


@pytest.mark.slow
def test_a_distilled_student_samples_what_its_teacher_did():
    """Twice in a row, from 8 steps to 2; the loss is quadratic in the table, so that one step of
    Newton's method is all of its training."""
    process, hub, batch = PROCESSES["infinite"], V(), data(n=16, examples=16)
    grid = Shifted(grid=Linspace(), factor=3.0)
    teacher, weights = Known(denoiser(Exact(process, hub), hub)), {}
    first = through(stage(teacher.denoiser, process, 8, grid), {}, batch)
    for steps in (4, 2):
        sampler = Sampler(steps=steps, grid=grid)
        times = np.asarray(sampler.times(batch, process))[:-1, 0, 0, 0]
        network = denoiser(Table(process, hub, tuple(map(float, times))), hub)
        run = stage(network, process, steps, grid)
        loss = loss_of(run, Progressive(teacher=teacher, steps=steps), batch, weights)
        start = jnp.zeros((steps, 2))
        slope, bend = quick(lambda t, loss=loss: (jax.grad(loss)(t), jax.hessian(loss)(t)))(start)
        table = -np.linalg.solve(bend.reshape(2 * steps, -1), slope.reshape(-1))
        teacher, weights = (
            Known(network),
            {"backbone": {"table": jnp.asarray(table.reshape(-1, 2))}},
        )
        found = through(run, weights, batch)
        np.testing.assert_allclose(found, first, atol=2e-3)
    plain = through(stage(denoiser(Exact(process, hub), hub), process, 2, grid), {}, batch)
    assert np.abs(plain - first).max() > 0.05, "two steps of the first teacher would do"


def through(run, weights, batch):
    """Samples, of noise that the student has not seen."""
    params = {"params": weights}

    def denoise(batch, at, cond):
        return run.denoiser.apply(params, batch, at, cond, method="predict")

    return quick(lambda b: sample(denoise, b, process=run.process, sampler=run.sampler, seed=3))(
        batch
    )


class Told(nn.Module):
    """A condition as it is: (value, 1), or (0, 1) where it is hidden."""

    def __call__(self, value, batch, dropped):
        return jnp.stack([jnp.where(dropped, 0, value), jnp.ones_like(value)], axis=-1)


class Scaled(nn.Module):
    """(0, scale - 1): added to `Told`, (value, scale)."""

    def __call__(self, value, batch, dropped):
        return jnp.stack([jnp.zeros_like(value), value - 1], axis=-1)


MEANING = Signal(key="mean", embed=Told(), slot="vector", drop=0.1)
GUIDED = (MEANING, Signal(key="guidance", embed=Scaled(), slot="vector"))


PLAIN = (Guidance(scales=(Constant(value=9.0),)),)


def guided(student, guides=PLAIN):
    """Loss of a student of exact form, told nothing, or its scale."""
    process, hub = PROCESSES["infinite"], V()
    teacher = Known(denoiser(Exact(process, hub), hub, (MEANING,)))
    run = stage(denoiser(Exact(process, hub), hub, student), process, 4)
    objective = Guided(teacher=teacher, scales=Scales(low=2.0, high=6.0), guides=guides)
    batch = data(n=2, examples=32)
    raw = {"mean": jnp.linspace(-1, 1, 32)[None], "guidance": jnp.ones((1, 32))}

    def loss(batch):
        total, weight, _ = objective(run, {"params": {}, "teacher": {}}, batch, raw, 0)
        return total / weight

    return float(quick(loss)(batch))


def test_guidance_is_distilled_into_what_the_student_is_told():
    """Guided by g, an exact denoiser is that of data whose mean is g times the condition's."""
    assert guided(GUIDED) < 1e-8
    # What else the teacher's sampler does to a prediction is learnt too: here, to guide nowhere.
    nowhere = (Guidance(), Interval(high=1e-6))
    assert guided(GUIDED, nowhere) > 0.1


def test_scales_are_drawn_between_their_ends_by_example():
    batch = packed(rows=(((1, 1, 1),) * 400,), tokens=400, slots=400)
    drawn = quick(lambda b: Scales(low=2.0, high=6.0)(b, 0))(batch)
    assert drawn.min() > 2 and drawn.max() < 6
    assert abs(drawn.mean() - 4) < 4 * 4 / 4800**0.5
    with pytest.raises(UserError, match="low up to high"):
        Scales(low=3.0, high=2.0)


def test_halving_keeps_the_scale_as_an_input():
    """A student of its teacher's own form has the loss of one small step for two, if it is told the
    same scale."""
    process, hub = PROCESSES["infinite"], V()
    batch = data(n=2, examples=32)
    raw = {"mean": jnp.full((1, 32), 0.5), "guidance": jnp.ones((1, 32))}

    def loss(student, scales):
        made = denoiser(Exact(process, hub), hub, student)
        run = stage(made, process, 64)  # so many that one step is as good as two
        objective = Progressive(
            teacher=Known(denoiser(Exact(process, hub), hub, GUIDED)), steps=64, scales=scales
        )
        params = {"params": {}, "teacher": {}}
        total, weight, _ = quick(lambda b: objective(run, params, b, raw, 0))(batch)
        return total / weight

    told, untold = (loss(one, Scales(low=4.0, high=4.0)) for one in (GUIDED, (MEANING,)))
    assert told < 2e-3 < 0.1 < untold


def test_what_cannot_be_distilled_is_said():
    process = PROCESSES["infinite"]

    def said(hub, grid, steps=4):
        made = denoiser(Exact(process, hub), hub)
        objective = Progressive(teacher=Known(made), steps=steps)
        return objective.problems(stage(made, process, 4, grid))

    assert said(V(), Linspace()) == said(X0(), Shifted(grid=Linspace(), factor=3.0)) == []
    assert [line.split(" predicts")[0] for line in said(Eps(), Linspace())] == [
        "the student", "the teacher",
    ]  # fmt: skip
    assert "Karras of 4 steps" in said(V(), Karras())[0]
    assert "stage.sampler.steps is 4" in said(V(), Linspace(), steps=8)[0]
    with pytest.raises(UserError, match="one Guidance"):
        Guided(teacher=None, scales=Scales(low=1.0, high=2.0), guides=(Interval(low=1.0),))
