"""Law 5: each guide at its neutral strength returns the denoiser; at others, closed forms.

A condition's vector is the mean of Gaussian data of one standard deviation. Guiding such data with
scale g gives Gaussian data again, whose mean is the same mix of means: an exact truth for (1).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.carriers import frames, gaussian, packed, quick, spread
from vdm_jax.cond import Cond
from vdm_jax.config import UserError
from vdm_jax.diffusion import guides
from vdm_jax.diffusion import schedule as sch
from vdm_jax.diffusion.parameterization import Prediction, V
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler, sample

STD = 0.5
PROCESS = Process(schedule=sch.Cosine())


def denoise(batch, at, cond):
    return gaussian(batch.spread(cond.vector[..., 0]), STD)(batch, at)


def conds(batch, **means):
    shape = (*batch.examples.valid.shape, 1)
    full = {name: np.full(shape, mean, np.float32) for name, mean in means.items()}
    return {name: Cond(vector=jnp.asarray(value)) for name, value in full.items()}


def filled(batch, scale=1.0):
    x = scale * np.random.default_rng(0).normal(size=batch.x.shape)
    inside = (np.asarray(batch.segment) > 0)[..., None]
    return batch.replace(x=jnp.asarray(np.where(inside, x, 0), jnp.float32))


def at_half(batch, t=0.5):
    t = jnp.asarray(np.full((*batch.examples.valid.shape, 1), t, np.float32))
    return jax.tree.map(jnp.asarray, quick(PROCESS.level)(t))


def constant(*values):
    return tuple(guides.Constant(value=float(value)) for value in values)


NEUTRAL = {
    "guidance": guides.Guidance(scales=constant(1)),
    "two_way": guides.Guidance(scales=constant(1, 1), branches=("cond", "image", "uncond")),
    "frames": guides.Guidance(scales=(guides.PerFrame(first=1.0, last=1.0),)),
    "oscillating": guides.Guidance(scales=(guides.Oscillating(high=1.0, low=1.0),)),
    "rescale": guides.Rescale(phi=0.0),
    "interval": guides.Interval(),
    "reconstruct": guides.Reconstruct(weight=0.0),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_is_the_denoiser_itself(name):
    assert NEUTRAL[name](denoise, {}, 0) is denoise


def test_neutral_numbers_give_the_same_bits():
    """Scales that only turn out to be 1, and thresholds that nothing exceeds."""
    batch = filled(packed(), 0.1)
    at, given = at_half(batch), conds(batch, cond=0.1, uncond=-0.4)
    ones = guides.PerExample(values=jnp.ones((2, 2)))
    chosen = (
        guides.Guidance(scales=(ones,)), guides.Threshold(), guides.DynamicThreshold()
    )  # fmt: skip

    @quick
    def run(batch):
        plain = denoise(batch, at, given["cond"])
        return plain, [g(denoise, given, 0)(batch, at, given["cond"]) for g in chosen]

    plain, others = run(batch)
    for other in others:
        assert np.array_equal(other.x0, plain.x0) and np.array_equal(other.eps, plain.eps)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_guidance_moves_the_mean(scale):
    batch = filled(packed())
    at, given = at_half(batch), conds(batch, cond=0.3, uncond=-0.5)
    guided = guides.Guidance(scales=constant(scale))(denoise, given, 0)
    got = quick(guided)(batch, at, given["cond"])
    want = quick(gaussian(-0.5 + scale * (0.3 + 0.5), STD))(batch, at)
    inside = np.asarray(batch.segment) > 0
    np.testing.assert_allclose(got.x0[inside], want.x0[inside], atol=1e-5)
    np.testing.assert_allclose(got.eps[inside], want.eps[inside], atol=1e-5)
    np.testing.assert_array_equal(got.plain.x0, quick(denoise)(batch, at, given["cond"]).x0)


def test_two_way_guidance():
    """u + g_i (i - u) + g_p (ip - i): the first scale belongs to the last condition added."""
    batch = filled(packed())
    at, given = at_half(batch), conds(batch, cond=0.9, image=0.4, uncond=0.0)
    guide = guides.Guidance(scales=constant(7, 2), branches=("cond", "image", "uncond"))
    got = quick(guide(denoise, given, 0))(batch, at, given["cond"])
    want = quick(gaussian(0.0 + 2 * 0.4 + 7 * 0.5, STD))(batch, at)
    inside = np.asarray(batch.segment) > 0
    np.testing.assert_allclose(got.x0[inside], want.x0[inside], atol=1e-4)


def test_all_branches_in_one_call():
    calls = []

    def counted(batch, at, cond):
        calls.append(batch.segment.shape)
        return denoise(batch, at, cond)

    batch = filled(packed())
    given = conds(batch, cond=0.9, image=0.4, uncond=0.0)
    guide = guides.Guidance(scales=constant(7, 2), branches=("cond", "image", "uncond"))
    guide(counted, given, 0)(batch, at_half(batch), given["cond"])
    assert calls == [(6, 12)]


def test_scales_by_hand():
    batch = frames(b=1, f=3)
    line = quick(lambda b: guides.PerFrame(first=1.0, last=3.0)(0, b))
    first, middle, last = line(batch).ravel()
    assert (first, middle, last) == (1, 2, 3)
    image = line(packed(rows=(((1, 2, 1),),), tokens=2))
    np.testing.assert_allclose(image.ravel(), 1)
    wave = guides.Oscillating(high=15.0, low=1.0, constant=3)
    seen = quick(lambda steps: jax.vmap(lambda step: wave(step, batch))(steps))(jnp.arange(7))
    assert seen.tolist() == [15, 15, 15, 1, 15, 1, 15]
    each = guides.PerExample(values=jnp.array([[2.0, 5.0]]))
    row = packed(rows=(((1, 1, 2), (1, 1, 1)),), tokens=4)
    assert quick(lambda b: each(0, b))(row).ravel().tolist() == [2, 2, 5, 0]


def test_only_some_channels():
    """Patches of 2 cells with 2 channels each: features 0 and 2 are channel 0."""
    batch = filled(packed(d=4, patch=(1, 1, 2)))
    at, given = at_half(batch), conds(batch, cond=0.3, uncond=-0.5)
    guide = guides.Guidance(scales=constant(3), channels=1)
    got = quick(guide(denoise, given, 0))(batch, at, given["cond"])
    whole = quick(guides.Guidance(scales=constant(3))(denoise, given, 0))(batch, at, given["cond"])
    np.testing.assert_array_equal(got.x0[..., ::2], whole.x0[..., ::2])
    np.testing.assert_array_equal(got.x0[..., 1::2], got.plain.x0[..., 1::2])


def test_rescale_restores_the_deviation():
    batch = filled(packed(rows=(((2, 2, 2), (2, 2, 1)),)))
    at, here = at_half(batch), quick(spread)(batch, at_half(batch))
    inner = guides.Guidance(scales=(guides.PerFrame(first=2.0, last=9.0),))
    given = conds(batch, cond=0.3, uncond=-0.5)

    def deviation(prediction):
        v = quick(V().target)(prediction.x0, prediction.eps, here)[0]
        return np.array([v[:8].std(), v[8:12].std()])

    guided = inner(denoise, given, 0)
    before = quick(guided)(batch, at, given["cond"])
    after = quick(guides.Rescale(phi=1.0)(guided, given, 0))(batch, at, given["cond"])
    half = quick(guides.Rescale(phi=0.5)(guided, given, 0))(batch, at, given["cond"])
    assert np.all(deviation(before) > 1.05 * deviation(before.plain))
    np.testing.assert_allclose(deviation(after), deviation(before.plain), rtol=1e-4)
    np.testing.assert_allclose(deviation(half), (deviation(after) + deviation(before)) / 2, 1e-4)
    x_t = here.alpha * half.x0 + here.sigma * half.eps
    np.testing.assert_allclose(x_t, batch.x, atol=1e-5)
    alone = quick(guides.Rescale()(denoise, given, 0))(batch, at, given["cond"])
    np.testing.assert_array_equal(alone.x0, quick(denoise)(batch, at, given["cond"]).x0)


def test_interval_of_noise():
    """sigma / alpha is 1 at t = 1/2 for the first example; the second is nearly clean."""
    batch = filled(packed(rows=(((1, 2, 2), (1, 2, 2)),), tokens=8))
    at = jax.tree.map(jnp.asarray, quick(PROCESS.level)(jnp.array([[[0.5], [0.1]]])))
    given = conds(batch, cond=0.3, uncond=-0.5)
    guided = guides.Guidance(scales=constant(5))(denoise, given, 0)
    full = quick(guided)(batch, at, given["cond"])
    got = quick(guides.Interval(low=0.5, high=2.0)(guided, given, 0))(batch, at, given["cond"])
    np.testing.assert_array_equal(got.x0[0, :4], full.x0[0, :4])
    np.testing.assert_array_equal(got.x0[0, 4:], full.plain.x0[0, 4:])
    np.testing.assert_array_equal(got.eps[0, 4:], full.plain.eps[0, 4:])
    above = quick(guides.Interval(high=0.9)(guided, given, 0))(batch, at, given["cond"])
    np.testing.assert_array_equal(above.x0[0, :4], full.plain.x0[0, :4])


def test_thresholds_by_hand():
    batch = packed(rows=(((1, 1, 3), (1, 1, 2)),), tokens=6, d=1)
    at, here = at_half(batch), quick(spread)(batch, at_half(batch))
    values = jnp.asarray(np.array([0.5, -2, 4, 0.1, -0.2, 0], np.float32).reshape(1, 6, 1))

    def fixed(batch, at, cond):
        return Prediction(values, jnp.where(here.sigma > 0, (batch.x - here.alpha * values), 0))

    static = quick(guides.Threshold(limit=1.0)(fixed, {}, 0))(batch, at, Cond())
    np.testing.assert_allclose(static.x0.ravel(), [0.5, -1, 1, 0.1, -0.2, 0])
    inside = np.asarray(batch.segment) > 0
    x_t = here.alpha * static.x0 + here.sigma * static.eps
    np.testing.assert_allclose(x_t[inside][1:3], batch.x[inside][1:3], atol=1e-6)

    # The median of 0.5, 2, 4 is 2; the other example stays within 1.
    dynamic = quick(guides.DynamicThreshold(quantile=0.5)(fixed, {}, 0))(batch, at, Cond())
    np.testing.assert_allclose(dynamic.x0.ravel(), [0.25, -1, 1, 0.1, -0.2, 0], atol=1e-6)


def test_reconstruction_is_the_conditional_mean():
    """Two cells with correlation 0.8: with weight sigma^2 / (alpha^2 Var(known | x_t)) the guide
    gives E[unknown | x_t, known], computed here by conditioning the joint Gaussian.
    """
    batch = packed(rows=(((2, 1, 1),),), tokens=2, d=1, slots=1)
    known = jnp.array([[True, False]])
    x = jnp.array([0.4, -0.7]).reshape(1, 2, 1)
    batch = batch.replace(x=x, known=known, given=jnp.full_like(x, 1.3))
    at = at_half(batch, 0.45)
    a, s = float(at.alpha[0, 0, 0]), float(at.sigma[0, 0, 0])
    cov = np.array([[1.0, 0.8], [0.8, 1.0]])
    gain = a * cov @ np.linalg.inv(a**2 * cov + s**2 * np.eye(2))
    posterior = cov - gain @ (a * cov)
    mean = gain @ np.asarray(x).ravel()
    want = mean[1] + posterior[1, 0] / posterior[0, 0] * (1.3 - mean[0])

    def joint(batch, at, cond):
        x0 = jnp.einsum("ij,bjd->bid", jnp.asarray(gain, jnp.float32), batch.x)
        return Prediction(x0, (batch.x - a * x0) / s)

    weight = s**2 / (a**2 * posterior[0, 0])
    got = quick(guides.Reconstruct(weight=float(weight))(joint, {}, 0))(batch, at, Cond())
    assert abs(want - mean[1]) > 0.1
    np.testing.assert_allclose(got.x0.ravel(), [mean[0], want], atol=1e-4)
    np.testing.assert_allclose(a * got.x0 + s * got.eps, x, atol=1e-5)


def test_reconstruction_of_means_is_the_conditional_mean():
    """Independent pixels of which four's mean is known: each moves by what the mean lacks, which
    the guide gives at weight 4 / (alpha d x0 / d x_t)."""
    batch = frames(b=1, f=2, h=4, w=4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=batch.x.shape), jnp.float32)
    given = jnp.asarray(np.random.default_rng(1).normal(size=batch.x.shape), jnp.float32)
    batch = batch.replace(x=x, given=given)
    at = at_half(batch, 0.45)
    a, s = float(at.alpha[0, 0, 0]), float(at.sigma[0, 0, 0])
    slope = a * STD**2 / (a**2 * STD**2 + s**2)

    def white(batch, at, cond):
        x0 = slope * batch.x
        return Prediction(x0, (batch.x - a * x0) / s)

    guide = guides.Reconstruct(weight=4 / (a * slope), pool=2)
    got = quick(guide(white, {}, 0))(batch, at, Cond()).x0

    def means(video):
        return np.asarray(video).reshape(1, 2, 2, 2, 2, 2, 1).mean((3, 5))

    np.testing.assert_allclose(means(got), means(given), atol=1e-5)
    lacking = means(given) - means(slope * x)
    want = slope * np.asarray(x) + lacking.repeat(2, axis=2).repeat(2, axis=3)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_sampling_with_guides_lands_on_the_guided_mean():
    """Through the whole loop: oscillating between 3 and 1 from step 0 of 20."""
    batch = packed(rows=(((50, 1, 1),),), tokens=50, slots=1)
    given = conds(batch, cond=0.3, uncond=-0.5)
    sampler = Sampler(steps=20, guides=(guides.Guidance(scales=constant(3)),))
    run = quick(
        lambda s: sample(denoise, batch, process=PROCESS, sampler=sampler, conds=given, seed=s)
    )
    x = np.asarray(run(0))
    assert abs(x.mean() - (-0.5 + 3 * 0.8)) < 4 * STD / 10
    changed = sampler.override(guidance=1.0, steps=7)
    assert changed.steps == 7 and changed.guides[0](denoise, given, 0) is denoise
    assert dataclasses.replace(changed, steps=20, guides=sampler.guides) == sampler


def test_mistakes_are_said():
    with pytest.raises(UserError, match="'uncond'"):
        guides.Guidance(scales=constant(3))(denoise, {"cond": Cond(), "uncnd": Cond()}, 0)
    with pytest.raises(UserError, match="one scale fewer"):
        guides.Guidance(scales=constant(3, 4))
    with pytest.raises(UserError, match="without Guidance"):
        Sampler().override(guidance=3.0)
