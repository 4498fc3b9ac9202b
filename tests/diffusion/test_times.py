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
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, N, axis=0), one)
    names = jnp.stack([jnp.zeros(N, jnp.uint32), jnp.arange(N, dtype=jnp.uint32)], -1)[:, None]
    examples = many.examples.replace(id=names, ordinal=jnp.arange(N)[:, None] + 10**7)
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
    t = np.asarray(times.Stratified()(batch.keys(0, "time"), batch, PROCESS)).ravel()
    for start in (0, 17, 200):
        counts = np.histogram(t[start : start + 64], bins=16, range=(0, 1))[0]
        assert counts.min() >= 2 and counts.max() <= 6


def test_neighbours_do_not_matter(batch):
    order = np.random.default_rng(0).permutation(N)
    other = jax.tree.map(lambda leaf: leaf[order], batch)
    for law in (times.Uniform(), times.Stratified(), times.PerFrame(levels=2)):
        here, there = (law(b.keys(0, "time"), b, PROCESS) for b in (batch, other))
        assert np.array_equal(np.asarray(here)[order], there)


def test_sigma_law_goes_through_the_shift(batch):
    """ln sigma keeps its law on any schedule: t is only its name there."""
    law = times.LogNormalSigma(mean=-0.5, std=0.8)
    process = Process(schedule=sch.FromBetas(kind="scaled_linear", start=0.00085, end=0.012))
    t = law(batch.keys(0, "time"), batch, process)
    log_sigma = -np.asarray(process.level(t).logsnr).ravel() / 2
    assert stats.kstest((log_sigma + 0.5) / 0.8, "norm").pvalue > 1e-3
