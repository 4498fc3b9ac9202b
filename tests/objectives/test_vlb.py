"""The variational bound of data whose entropy is known, with their exact denoiser: it is tight."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from tests.diffusion.carriers import examples, quick
from vdm_jax.batch import Packed
from vdm_jax.codecs import Pixels
from vdm_jax.denoiser import Denoiser, NoiseLevel
from vdm_jax.diffusion.parameterization import Eps, V
from vdm_jax.diffusion.prior import Mixed, Prior
from vdm_jax.diffusion.process import Level, Process
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.diffusion.schedule import LinearLogSNR, Straight
from vdm_jax.nets.gamma import Gamma
from vdm_jax.objectives.vlb import Vlb, gate, log_likelihood
from vdm_jax.stage import Stage

LOW, HIGH = -13.3, 8.0  # of -log SNR
VALUES = np.arange(256) / 127.5 - 1
WEIGHT = np.exp(-(((VALUES - 0.2) / 0.3) ** 2) / 2) + 0.3 * (np.arange(256) % 16 == 0)
CHANCE = WEIGHT / WEIGHT.sum()
ENTROPY = float(-(CHANCE * np.log2(CHANCE)).sum())


class Bytes(nn.Module):
    """The exact answer for bytes that are drawn with `CHANCE`, times `gain`; time is -log SNR."""

    hub: object
    gain: float = 1.0

    def __call__(self, batch, time, cond, *, train=False):
        noise = batch.spread(time)
        alpha, sigma = jnp.sqrt(nn.sigmoid(-noise)), jnp.sqrt(nn.sigmoid(noise))
        near = -jnp.square(batch.x / alpha - VALUES) * jnp.exp(-noise) / 2 + np.log(CHANCE)
        x0 = self.gain * (nn.softmax(near) * VALUES).sum(-1, keepdims=True)
        at = Level(noise, -noise, alpha, sigma)
        return self.hub.target(x0, (batch.x - alpha * x0) / sigma, at)


LINE = LinearLogSNR(logsnr_min=-HIGH, logsnr_max=-LOW)


def stage(hub, schedule=LINE, gamma=None, gain=1.0):
    network = Denoiser(
        backbone=Bytes(hub, gain), parameterization=hub, gamma=gamma,
        time_input=NoiseLevel(scale=1.0),
    )  # fmt: skip
    return Stage(
        denoiser=network, process=Process(schedule=schedule), prior=Prior(), sampler=Sampler(),
        patch=(1, 1, 1), codec=Pixels(channels=1),
    )  # fmt: skip


def data(rows=64, slots=16, cells=8, seed=0):
    n = slots * cells
    rng = np.random.default_rng(seed)
    segment = np.tile(np.repeat(np.arange(slots) + 1, cells), (rows, 1)).astype(np.int32)
    raster = np.tile(np.arange(cells), (rows, slots)).astype(np.int32)
    identity = np.zeros((rows, slots, 2), np.uint32)
    identity[..., 1] = np.arange(rows * slots).reshape(rows, slots) + seed * rows * slots
    extent = np.broadcast_to(np.array([cells, 1, 1]), (rows, slots, 3))
    position = np.stack([raster, 0 * raster, 0 * raster], axis=-1)
    return Packed(
        x=jnp.asarray(rng.choice(VALUES, p=CHANCE, size=(rows, n, 1)), jnp.float32),
        segment=jnp.asarray(segment), position=jnp.asarray(position), raster=jnp.asarray(raster),
        examples=examples(identity, np.ones((rows, slots), bool), extent),
    )  # fmt: skip


def bits(run, params, batch, seed=0):
    total, weight, metrics = Vlb()(run, params, batch, {}, seed)
    return total / weight, metrics


# Half of the way slowly, then fast: the curve of a learnt schedule, and its ends.
BENT = {
    "gamma_0": LOW, "gamma_1": HIGH, "first": -0.5, "second": np.full(2, 9.0),
    "places": np.full(2, -4.0), "third": np.full(2, 1.0),
}  # fmt: skip
CASES = {
    "straight": (Eps(), None, {}),
    "bent": (V(), Gamma(low=0.0, high=1.0, hidden=2), {"gamma": BENT}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_bound_is_the_entropy_whatever_the_schedule(case):
    """24 estimates of 16384 bytes: good to 0.04 bits of 7.3."""
    hub, gamma, params = CASES[case]
    run, batch, count = stage(hub, gamma=gamma), data(rows=128), 24
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {"params": params})
    estimates = quick(lambda b: jax.lax.map(lambda s: bits(run, params, b, s), jnp.arange(count)))
    found, parts = estimates(batch)
    error = np.std(found) / count**0.5
    # The entropy of these bytes, rather than of all that might have been drawn.
    truth = np.mean(-np.log2(CHANCE)[np.round((np.asarray(batch.x) + 1) * 127.5).astype(int)])
    assert abs(truth - ENTROPY) < 0.05 and error < 0.06
    assert abs(np.mean(found) - truth) < 4 * error + 0.01, (np.mean(found), truth, error)
    assert np.all(parts["mean_bits_prior"] < 1e-3)
    assert np.all(parts["mean_bits_reconstruction"] < 0.02)
    total = sum(part for name, part in parts.items() if "bits" in name)
    np.testing.assert_allclose(total, found, rtol=1e-5)


def test_a_worse_denoiser_has_a_worse_bound():
    run = stage(Eps(), gain=0.9)
    found = quick(lambda b: bits(run, {"params": {}}, b)[0])(data())
    assert found > ENTROPY + 1


def test_what_has_no_such_bound_is_said():
    plain = stage(Eps())
    assert Vlb().problems(plain) == []
    for change, said in (
        ({"codec": _Latents()}, "bytes"),
        ({"prior": Prior(factor=Mixed(alpha=1.0))}, "independent"),
        ({"process": Process(schedule=Straight())}, "infinite at t = 0"),
    ):
        (found,) = Vlb().problems(dataclasses.replace(plain, **change))
        assert said in found


class _Latents:
    """Some other codec."""


def test_what_is_lost_at_the_first_level():
    """Against numbers: noise of a tenth of a byte loses nothing, of many bytes all eight bits."""
    x = jnp.asarray(VALUES[[0, 7, 255]], jnp.float32)
    fine, coarse = (
        quick(lambda s: log_likelihood(x, x, s))(np.float32(-2 * np.log(width)))
        for width in (0.1 / 127.5, 1e4)
    )
    np.testing.assert_allclose(fine, 0, atol=1e-5)
    np.testing.assert_allclose(coarse, -8 * np.log(2), rtol=1e-5)
    # One byte beside: odds of e^-(1/2) and e^-(1/2 + 2) for noise as wide as a byte.
    seen = x.at[1].add(1 / 127.5)
    beside = quick(lambda s: log_likelihood(x, s, jnp.float32(2 * np.log(127.5))))(seen)[1]
    odds = np.exp(-0.5 * (np.arange(-7, 249) - 1.0) ** 2)
    np.testing.assert_allclose(beside, np.log(odds[7] / odds.sum()), atol=1e-4)


def test_the_gate_turns_slopes_into_those_of_squares():
    u, du = jnp.asarray([[[0.3], [0.6]]]), jnp.asarray([[[1.0], [2.0]]])

    def each(u, du):
        return (jnp.sin(u) * du)[..., 0]

    def gated(u, du):
        u, du, probe = gate(u, du)
        value = each(u, du)
        return (value + jax.lax.stop_gradient(value) * probe).sum()

    found = quick(jax.value_and_grad(gated, (0, 1)))(u, du)
    want = quick(jax.grad(lambda u, du: jnp.square(each(u, du)).sum(), (0, 1)))(u, du)
    np.testing.assert_allclose(found[0], float(each(u, du).sum()), rtol=1e-6)
    np.testing.assert_allclose(found[1][0], want[0], rtol=1e-5)
    np.testing.assert_allclose(found[1][1], want[1], rtol=1e-5)


def test_a_schedule_learns_to_make_the_bound_steady():
    """Its curve alone is trained: the bound stays, an estimate of it varies much less."""
    gamma = Gamma(low=LOW, high=HIGH, hidden=32)
    run, batch = stage(Eps(), gamma=gamma), data(rows=16)
    first = meta.unbox(jax.jit(gamma.init)(jax.random.key(0), jnp.zeros(1)))["params"]
    curve = {name: leaf for name, leaf in first.items() if not name.startswith("gamma")}

    def params(curve):
        return {"params": {"gamma": first | curve}}

    def estimate(curve, seed):
        return bits(run, params(curve), batch, seed)[0]

    @quick
    def varied(curve, seed):
        """(mean, variance) over the examples' own estimates."""
        terms, _, _ = Vlb().terms(run, params(curve), batch, {}, seed)
        each = batch.reduce(terms["diffusion"], "mean")
        return each.mean(), each.var()

    slope = quick(jax.grad(estimate))
    before = [varied(curve, seed) for seed in range(100, 108)]
    trained = curve
    moment = jax.tree.map(np.zeros_like, curve)
    for step in range(150):
        grads = slope(trained, step)
        moment = jax.tree.map(lambda m, g: 0.9 * m + g, moment, grads)
        norm = sum(float(np.square(g).sum()) for g in jax.tree.leaves(moment)) ** 0.5
        trained = jax.tree.map(lambda p, m, n=norm: p - 0.1 * m / n, trained, moment)
    after = [varied(trained, seed) for seed in range(100, 108)]
    assert np.mean([v for _, v in after]) < 0.75 * np.mean([v for _, v in before])
    means = [np.mean([m for m, _ in some]) for some in (before, after)]
    assert abs(means[0] - means[1]) < 0.5, "the bound is the same"
