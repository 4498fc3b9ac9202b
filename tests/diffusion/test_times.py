"""Laws of t against their distribution functions; an example's times are its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.diffusion.carriers import packed, quick
from vdm_jax.diffusion import schedule as sch
from vdm_jax.diffusion import times
from vdm_jax.diffusion.process import Process

PROCESS = Process(schedule=sch.Straight(), path="linear")
N = 512


@pytest.fixture(scope="module")
def batch():
    one = packed(rows=(((1, 1, 1),),), tokens=1, slots=1)
    many = jax.tree.map(lambda leaf: jnp.asarray(np.repeat(leaf, N, axis=0)), one)
    names = np.stack([np.zeros(N, np.uint32), np.arange(N, dtype=np.uint32)], -1)[:, None]
    ordinal = np.arange(N, dtype=np.int32)[:, None] + 10**7
    examples = many.examples.replace(id=jnp.asarray(names), ordinal=jnp.asarray(ordinal))
    return many.replace(examples=examples)


LAWS = {
    "uniform": (times.Uniform(), "uniform", lambda t: t),
    "per_frame": (times.PerFrame(levels=3), "uniform", lambda t: t),
    "stratified": (times.Stratified(), "uniform", lambda t: t),
    "logit_normal": (
        times.LogitNormal(mean=0.5, std=1.5), "norm", lambda t: (np.log(t / (1 - t)) - 0.5) / 1.5
    ),
    "log_normal_sigma": (
        times.LogNormalSigma(mean=-1.2, std=1.2), "norm",
        lambda t: (np.log(t / (1 - t)) + 1.2) / 1.2,
    ),
    "lattice": (
        times.LogitNormal(base=times.Stratified()), "norm", lambda t: np.log(t / (1 - t))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_distribution(name, batch):
    law, kind, standard = LAWS[name]
    t = np.asarray(quick(lambda b: law(b.keys(0, "time"), b, PROCESS))(batch), np.float64)
    assert t.shape == (N, 1, 3 if name == "per_frame" else 1)
    assert np.all(t > 0) and np.all(t <= 1)
    for level in range(t.shape[-1]):
        assert stats.kstest(standard(t[:, 0, level]), kind).pvalue > 1e-3
    if name == "per_frame":
        assert abs(np.corrcoef(t[:, 0].T)[0, 1]) < 0.15


def test_stratified_is_even(batch):
    """Every window of 64 consecutive examples fills 16 bins almost alike; 4 in each is even."""
    t = quick(lambda b: times.Stratified()(b.keys(0, "time"), b, PROCESS))(batch).ravel()
    for start in (0, 17, 200):
        counts = np.histogram(t[start : start + 64], bins=16, range=(0, 1))[0]
        assert counts.min() >= 2 and counts.max() <= 6


def test_neighbours_do_not_matter(batch):
    order = np.random.default_rng(0).permutation(N)
    other = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[order]), batch)
    for law in (times.Uniform(), times.Stratified(), times.PerFrame(levels=2)):
        run = quick(lambda b, law=law: law(b.keys(0, "time"), b, PROCESS))
        assert np.array_equal(run(batch)[order], run(other))


def test_sigma_law_goes_through_the_shift(batch):
    """ln sigma keeps its law on any schedule: t is only its name there."""
    law = times.LogNormalSigma(mean=-0.5, std=0.8)
    process = Process(schedule=sch.FromBetas(kind="scaled_linear", start=0.00085, end=0.012))
    run = quick(lambda b: process.level(law(b.keys(0, "time"), b, process)).logsnr)
    log_sigma = -run(batch).ravel() / 2
    assert stats.kstest((log_sigma + 0.5) / 0.8, "norm").pvalue > 1e-3
