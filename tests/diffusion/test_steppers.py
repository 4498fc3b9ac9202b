"""Steppers against another library, step by step from the same noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.carriers import gaussian, packed, quick
from vdm_jax.diffusion import grids, steppers
from vdm_jax.diffusion import schedule as sch
from vdm_jax.diffusion.process import Process

# What diffusers 0.42.1 makes of the four numbers START with the exact eps (or velocity) of data
# N(0.7, 0.5^2), 10 steps, betas scaled_linear(0.00085, 0.012), T = 1000, float32. Schedulers:
#   DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing='trailing' / 'leading')
#   DPMSolverMultistepScheduler(algorithm_type='dpmsolver++', final_sigmas_type='zero',
#                               lower_order_final=False, timestep_spacing='trailing')
#   UniPCMultistepScheduler(solver_type='bh2', final_sigmas_type='zero',
#                           timestep_spacing='trailing')
#   FlowMatchEulerDiscreteScheduler(shift=3.0)
# Change them only if the definition of a scheduler there was wrong.
START = [-1.5, -0.3, 0.2, 1.1]
GOLDEN = {
    "ddim": [0.1036603, 0.5660033, 0.7586462, 1.1054033],
    "ddim_leading": [0.0592681, 0.5450270, 0.7474265, 1.1117457],
    "dpmpp_2m": [0.0644495, 0.5571926, 0.7625021, 1.1320595],
    "unipc": [0.0600217, 0.5561979, 0.7629376, 1.1350695],
    "flow": [0.1612596, 0.5922520, 0.7718321, 1.0950762],
}
TABLE = Process(schedule=sch.FromBetas(kind="scaled_linear", start=0.00085, end=0.012))
FLOW = Process(schedule=sch.Straight(), path="linear")
TWICE = grids.Shifted(grid=grids.Linspace(last=3 * 0.001 / 1.002), factor=3.0)
CASES = {
    "ddim": (steppers.Ddim(), TABLE, grids.Trailing()),
    "ddim_leading": (steppers.Ddim(), TABLE, grids.Leading()),
    "dpmpp_2m": (steppers.DpmPp2m(), TABLE, grids.Trailing()),
    "unipc": (steppers.UniPc(), TABLE, grids.Trailing()),
    "flow": (steppers.Euler(), FLOW, TWICE),
}


def drive(stepper, process, times, batch, denoise):
    """batch.x from the first of `times` (s b e k) to the last, without randomness."""
    levels = process.level(times)

    def one(state, ends):
        x, carry = state
        return steppers.advance(
            stepper, denoise, lambda _: jnp.zeros_like(x), carry, batch.replace(x=x), *ends
        ), None

    ends = [jax.tree.map(lambda leaf, s=s: leaf[s], levels) for s in (slice(-1), slice(1, None))]
    return jax.lax.scan(one, (batch.x, stepper.init(batch)), tuple(ends))[0][0]


def line(values):
    batch = packed(rows=(((len(values), 1, 1),),), tokens=len(values), d=1, slots=1)
    return batch.replace(x=jnp.asarray(values, jnp.float32).reshape(1, -1, 1))


@pytest.mark.parametrize("name", CASES)
def test_equal_to_another_library(name):
    stepper, process, grid = CASES[name]
    index = jnp.arange(11).reshape(-1, 1, 1, 1)
    times = grid(index, jnp.asarray(10), jnp.ones((1, 1, 1)), process)
    run = quick(lambda b: drive(stepper, process, times, b, gaussian(0.7, 0.5)))
    np.testing.assert_allclose(run(line(START)).ravel(), GOLDEN[name], atol=3e-5)


def test_up_and_down_again_is_nothing():
    """Deterministic inversion: DDIM runs towards noise too, and back to where it came from."""
    down = jnp.linspace(0.9, 0.05, 200).reshape(-1, 1, 1, 1)
    process = Process(schedule=sch.Cosine())

    @quick
    def round_trip(batch):
        noisy = drive(steppers.Ddim(), process, down[::-1], batch, gaussian(0.7, 0.5))
        clean = drive(steppers.Ddim(), process, down, batch.replace(x=noisy), gaussian(0.7, 0.5))
        return noisy, clean

    batch = line([0.3, 0.7, 1.5, -0.2])
    noisy, clean = round_trip(batch)
    assert np.abs(np.asarray(noisy - batch.x)).min() > 0.1
    np.testing.assert_allclose(clean, batch.x, atol=0.02)
