"""Levels obey their path; every example has its own shift; given cells have their own level."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.carriers import frames, packed, quick, spread
from vdm_jax.config import UserError
from vdm_jax.diffusion import schedule as sch
from vdm_jax.diffusion.process import Process, TokenShift, gap, held, with_known


@pytest.mark.parametrize("path", ["vp", "ve", "linear"])
def test_paths(path):
    process = Process(schedule=sch.LinearLogSNR(logsnr_min=-14.0, logsnr_max=14.0), path=path)
    t = np.linspace(0.01, 1, 50, dtype=np.float32)
    at, back = quick(lambda t: (process.level(t), process.inverse(process.level(t).logsnr)))(t)
    np.testing.assert_allclose(
        at.alpha / at.sigma, np.exp(np.linspace(13.72, -14, 50) / 2), rtol=1e-4
    )
    invariant = {
        "vp": at.alpha**2 + at.sigma**2, "ve": at.alpha, "linear": at.alpha + at.sigma
    }[path]  # fmt: skip
    np.testing.assert_allclose(invariant, 1, atol=1e-6)
    np.testing.assert_allclose(back, t, atol=1e-5)


@pytest.mark.parametrize("path", ["vp", "linear"])
def test_ends_are_finite_and_clean_is_exact(path):
    for plan in (sch.Straight(), sch.Cosine(), sch.ZeroTerminal(schedule=sch.FromBetas())):
        at = quick(Process(schedule=plan, path=path).level)(np.array([0, 1], np.float32))
        assert np.all(np.isfinite([at.alpha, at.sigma]))
        assert float(at.alpha[0]) == 1 and float(at.sigma[0]) == 0 and np.isposinf(at.logsnr[0])
        np.testing.assert_allclose(at.alpha[1], 0, atol=1e-4)


def test_noise_is_their_sum():
    at = Process(schedule=sch.Straight(), path="linear").level(0.25)
    x = Process(schedule=sch.Straight(), path="linear").noise(jnp.array(2.0), jnp.array(-4.0), at)
    np.testing.assert_allclose(x, 0.75 * 2 - 0.25 * 4, rtol=1e-6)


def test_infinite_ve_and_unknown_path_are_refused():
    with pytest.raises(UserError, match="Clip"):
        Process(schedule=sch.Straight(), path="ve")
    with pytest.raises(UserError, match="'flow'"):
        Process(schedule=sch.Straight(), path="flow")


def test_each_example_has_its_own_shift():
    """sigma' = a sigma / (1 + (a - 1) sigma) with a = sqrt(cells / reference), per example."""
    batch = packed(rows=(((1, 2, 2), (4, 2, 2)),), tokens=20)
    process = Process(
        schedule=sch.Straight(), path="linear", shift=TokenShift(reference=4.0)
    ).on(batch)  # fmt: skip
    run = quick(lambda t: (process.level(t).sigma, process.inverse(process.level(t).logsnr)))
    sigma, back = run(np.full((1, 2, 1), 0.4, np.float32))
    np.testing.assert_allclose(sigma.ravel(), [0.4, 2 * 0.4 / (1 + 0.4)], rtol=1e-5)
    np.testing.assert_allclose(back, 0.4, rtol=1e-5)


def test_gap_and_held_at_infinite_ends():
    process = Process(schedule=sch.Straight())
    now, nxt = process.level(jnp.array([1.0, 1.0, 0.0])), process.level(jnp.array([1.0, 0.5, 0.0]))
    assert np.array_equal(held(now, nxt), [True, False, True])
    assert np.array_equal(gap(now, nxt), [0, np.inf, 0])


@pytest.mark.parametrize("make", [packed, frames])
def test_known_cells_get_a_clean_level(make):
    batch = make()
    known = np.zeros(batch.segment.shape, bool)
    known[0, 1] = True
    batch = batch.replace(known=jnp.asarray(known), given=batch.x)
    process = Process(schedule=sch.Cosine())

    @quick
    def run(batch):
        told, t = with_known(batch, jnp.full((*batch.examples.valid.shape, 1), 0.5))
        return spread(told, process.level(t)).sigma

    sigma = run(batch).reshape(batch.segment.shape)
    real = np.asarray(batch.segment) > 0
    assert sigma[0, 1] == 0
    np.testing.assert_allclose(sigma[real & ~known], np.sqrt(0.5), rtol=1e-5)


def test_known_cells_among_frames_with_levels():
    batch = frames(b=1)
    known = jnp.array([[False, True, False]])
    batch = batch.replace(level=batch.position, known=known, given=batch.x)

    @quick
    def run(batch):
        told, t = with_known(batch, jnp.array([[[0.3, 0.6, 0.9]]]))
        return spread(told, Process(schedule=sch.Straight(), path="linear").level(t)).sigma

    np.testing.assert_allclose(run(batch).ravel(), [0.3, 0, 0.9], rtol=1e-6)
