"""Time grids against published lists of levels."""

import jax.numpy as jnp
import numpy as np

from tests.diffusion.carriers import quick
from vdm_jax.diffusion import grids
from vdm_jax.diffusion import schedule as sch
from vdm_jax.diffusion.process import Process

STRAIGHT = Process(schedule=sch.Straight(), path="linear")


def times(grid, steps, process=STRAIGHT, start=1.0, counts=None):
    counts = steps if counts is None else counts

    def run():
        index = jnp.arange(grid.length(steps) + 1).reshape(-1, 1, 1, 1)
        return grid(index, jnp.asarray(counts), jnp.full((1, 1, 1), start), process)

    return quick(run)()


def test_karras_levels():
    """The formula of Karras et al. 2022, equation 5, in numpy."""
    i = np.arange(6)
    want = (80 ** (1 / 7) + i / 5 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    process = Process(schedule=sch.LinearLogSNR(logsnr_min=-14.0, logsnr_max=14.0), path="ve")
    t = times(grids.Karras(), 6, process).ravel()
    np.testing.assert_allclose(quick(process.level)(t[:-1]).sigma, want, rtol=1e-3)
    assert t[-1] == 0


def test_entries_of_a_table():
    """The lists that diffusers 0.42.1 makes of 1000 training steps (DDIMScheduler, 10 steps)."""
    trailing = [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    leading = [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    for grid, want in ((grids.Trailing(), trailing), (grids.Leading(), leading)):
        t = times(grid, 10).ravel()
        np.testing.assert_allclose(t[:-1] * 1000 - 1, want, atol=1e-3)
        assert t[-1] == 0
    np.testing.assert_allclose(times(grids.Trailing(), 3).ravel() * 1000, [1000, 667, 333, 0], 1e-5)


def test_shifted_as_a_published_flow_scheduler():
    """sigmas of diffusers 0.42.1, FlowMatchEulerDiscreteScheduler(shift=3), 10 steps. Its lower end
    is shifted twice: once when it is stored and once with the grid.
    """
    want = [1.0, 0.9601293, 0.913349, 0.8576923, 0.7903683, 0.7072785, 0.6021506, 0.464876,
            0.2780488, 0.0089286, 0.0]  # fmt: skip
    once = 3 * 0.001 / (1 + 2 * 0.001)
    grid = grids.Shifted(grid=grids.Linspace(last=once), factor=3.0)
    np.testing.assert_allclose(times(grid, 10).ravel(), want, atol=1e-5)


def test_even_grids_and_explicit_times():
    np.testing.assert_allclose(times(grids.Linspace(), 4).ravel(), [1, 0.75, 0.5, 0.25, 0])
    t = times(grids.Linspace(), 4, start=0.4).ravel()
    np.testing.assert_allclose(t, [0.4, 0.3, 0.2, 0.1, 0], 1e-6)
    t = times(grids.LogSnr(logsnr_min=-6.0, logsnr_max=6.0), 5).ravel()
    np.testing.assert_allclose(quick(STRAIGHT.level)(t[:-1]).logsnr, [-6, -3, 0, 3, 6], atol=1e-4)
    assert t[-1] == 0
    given = grids.Explicit(times=(1.0, 0.76, 0.5))
    np.testing.assert_allclose(times(given, 99).ravel(), [1, 0.76, 0.5, 0])


def test_fewer_steps_reach_clean_earlier_and_stay():
    for grid in (grids.Linspace(), grids.Karras(), grids.LogSnr(), grids.Trailing()):
        t = times(grid, 4, counts=[[[2], [4]]])[:, 0, :, 0]
        alone = times(grid, 2).ravel()
        np.testing.assert_allclose(t[:, 0], [*alone, 0, 0], atol=1e-6)
        np.testing.assert_allclose(t[:, 1], times(grid, 4).ravel(), atol=1e-6)


def test_a_clean_start_never_moves():
    for grid in (grids.Linspace(), grids.Karras(), grids.LogSnr(), grids.Trailing(),
                 grids.Leading(), grids.Shifted(grid=grids.Linspace(), factor=2.0)):  # fmt: skip
        assert np.all(times(grid, 5, start=0.0) == 0)
        t = times(grid, 5, start=0.3).ravel()
        assert np.all(t <= 0.3 + 1e-6) and np.all(np.diff(t) <= 0) and t[-1] == 0


def test_staggered_frames():
    grid = grids.Staggered(grid=grids.Linspace(), levels=3, delay=1)
    want = np.array([[2, 2, 2], [1, 2, 2], [0, 1, 2], [0, 0, 1], [0, 0, 0]]) / 2
    np.testing.assert_allclose(times(grid, 2)[:, 0, 0], want)
