"""Schedules against their published definitions in float64, and against each other's inverses."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.carriers import quick
from vdm_jax.config import UserError, build, spec
from vdm_jax.diffusion import schedule as sch

ALL = {
    "cosine": sch.Cosine(),
    "linear_logsnr": sch.LinearLogSNR(logsnr_min=-9.0, logsnr_max=7.0),
    "straight": sch.Straight(),
    "sigmoid": sch.Sigmoid(tau=0.9),
    "betas": sch.FromBetas(kind="scaled_linear", start=0.00085, end=0.012),
    "shift": sch.Shift(schedule=sch.Straight(), factor=3.0),
    "clip": sch.Clip(schedule=sch.Straight(), logsnr_min=-7.0, logsnr_max=6.0),
    "zero_terminal": sch.ZeroTerminal(schedule=sch.FromBetas()),
}


@pytest.mark.parametrize("name", ALL)
def test_falls_and_inverts(name):
    plan = ALL[name]
    t = np.linspace(0.05, 0.95, 181, dtype=np.float32)
    far = np.array([np.inf, 1e4, -1e4, -np.inf], np.float32)
    logsnr, back, ends = quick(lambda t, far: (plan(t), plan.inverse(plan(t)), plan.inverse(far)))(
        t, far
    )
    assert np.all(np.diff(logsnr) < 0)
    np.testing.assert_allclose(back, t, atol=3e-5)
    low, high = 0.0, 1.0
    if name == "clip":
        low, high = 1 / (1 + np.exp(3.0)), 1 / (1 + np.exp(-3.5))
    np.testing.assert_allclose(ends, [low, low, high, high], atol=1.1e-3)


TABLE = [  # kind, beta_1, beta_T, sigma / alpha of the first and the last entry, sqrt(abar_T)
    ("linear", 1e-4, 0.02, 0.0100, 157.4, 0.00635),
    ("scaled_linear", 1e-4, 0.02, 0.0100, 36.9, 0.0271),
    ("scaled_linear", 0.00085, 0.012, 0.0292, 14.61, 0.0683),
    ("linear", 0.00085, 0.012, 0.0292, 25.15, 0.0397),
    ("scaled_linear", 0.0015, 0.0155, 0.0388, 38.7, 0.0259),
    ("scaled_linear", 0.0015, 0.0195, 0.0388, 83.8, 0.0119),
    ("cosine", 1e-4, 0.02, 0.0064, 2.0e4, 5e-5),
]


@pytest.mark.parametrize(("kind", "start", "end", "low", "high", "signal"), TABLE)
def test_tables_have_the_published_ends(kind, start, end, low, high, signal):
    plan = sch.FromBetas(kind=kind, start=start, end=end)
    logsnr = plan(jnp.array([1e-3, 1.0]))
    np.testing.assert_allclose(np.exp(-logsnr / 2), [low, high], rtol=0.03)
    np.testing.assert_allclose(1 / np.sqrt(1 + np.exp(-float(logsnr[1]))), signal, rtol=0.03)


def test_every_entry_of_a_table():
    """Entry i, by a plain cumulative product, is at t = (i + 1) / T; between entries, the mean."""
    plan = sch.FromBetas(steps=50)
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 50))
    want = np.log(kept / (1 - kept))
    got = plan(jnp.arange(1, 51) / 50)
    np.testing.assert_allclose(got, want, atol=1e-4)
    np.testing.assert_allclose(plan(jnp.array(10.5 / 50)), (want[9] + want[10]) / 2, atol=1e-4)
    np.testing.assert_allclose(plan(jnp.array(0.001)), want[0], atol=1e-4)


def test_cosine_in_float64():
    low, high = -20.0, 20.0
    b = np.arctan(np.exp(-high / 2))
    c = np.arctan(np.exp(-low / 2)) - b
    t = np.linspace(0, 1, 41)
    want = -2 * np.log(np.tan(c * t + b))
    np.testing.assert_allclose(sch.Cosine()(jnp.asarray(t)), want, atol=2e-4)


def test_sigmoid_in_float64():
    def s(v):
        return 1 / (1 + np.exp(-v / 0.9))

    t = np.linspace(0.001, 0.999, 41)
    kept = (s(3.0) - s(-3.0 + 6.0 * t)) / (s(3.0) - s(-3.0))
    want = np.log(kept / (1 - kept))
    np.testing.assert_allclose(ALL["sigmoid"](jnp.asarray(t)), want, atol=1e-4)
    assert np.isposinf(sch.Sigmoid()(jnp.array(0.0)))
    assert np.isneginf(sch.Sigmoid()(jnp.array(1.0)))


def test_shift_moves_sigma_as_published():
    """sigma' = a sigma / (1 + (a - 1) sigma); shifting there and back is nothing."""
    sigma = jnp.linspace(0.01, 0.99, 33)
    shifted = sch.Shift(schedule=sch.Straight(), factor=3.0)
    got = 1 / (1 + np.exp(shifted(sigma) / 2))
    np.testing.assert_allclose(got, 3 * sigma / (1 + 2 * sigma), rtol=1e-5)
    back = sch.Shift(schedule=shifted, factor=1 / 3.0)
    np.testing.assert_allclose(back(sigma), sch.Straight()(sigma), atol=1e-5)


def test_zero_terminal_as_published():
    """Square roots of abar moved and scaled, in numpy, on the table itself."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    q = np.sqrt(np.cumprod(1 - betas))
    want = (q - q[-1]) * q[0] / (q[0] - q[-1])
    inner = sch.FromBetas(kind="scaled_linear", start=0.00085, end=0.012)
    logsnr = np.asarray(sch.ZeroTerminal(schedule=inner)(jnp.arange(1, 1001) / 1000), np.float64)
    got = 1 / np.sqrt(1 + np.exp(-logsnr))
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert np.isneginf(logsnr[-1])
    np.testing.assert_allclose(logsnr[0], np.log(q[0] ** 2 / (1 - q[0] ** 2)), atol=1e-3)


def test_clip_holds_the_ends():
    np.testing.assert_allclose(ALL["clip"](jnp.array([0.0, 0.5, 1.0])), [6, 0, -7], atol=1e-6)


def test_mistakes_are_said():
    with pytest.raises(UserError, match="squaredcos"):
        sch.FromBetas(kind="squaredcos")
    with pytest.raises(UserError, match="logsnr_min below"):
        sch.Cosine(logsnr_min=3.0, logsnr_max=-3.0)


def test_built_from_a_config():
    node = spec(sch.ZeroTerminal, schedule=spec(sch.FromBetas, kind="cosine", steps=100))
    assert build(node) == sch.ZeroTerminal(schedule=sch.FromBetas(kind="cosine", steps=100))
