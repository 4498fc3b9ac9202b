"""The learnt schedule: it rises, between ends that nothing else moves, and its inverse is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from tests.diffusion.carriers import quick
from vdm_jax.denoiser import Learnt
from vdm_jax.diffusion.process import Process
from vdm_jax.nets.gamma import Gamma

NET = Gamma(low=-6.0, high=4.0, hidden=64)
T = np.linspace(0, 1, 201, dtype=np.float32)


@pytest.fixture(scope="module")
def variables():
    """Far from where it begins: every parameter moved at random, its ends apart."""
    fresh = jax.jit(NET.init)(jax.random.key(0), jnp.zeros(1))
    rng = np.random.default_rng(0)
    moved = {
        name: jnp.asarray(leaf + (rng.normal(size=leaf.shape) * 3 if "gamma" not in name else 0))
        for name, leaf in meta.unbox(fresh)["params"].items()
    }
    moved["third"] = moved["third"] + 8  # and much of it is no straight line
    return {"params": moved}


def test_it_begins_nearly_straight():
    value = quick(lambda: NET.apply(NET.init(jax.random.key(1), jnp.zeros(1)), jnp.asarray(T)))()
    np.testing.assert_allclose(value, -6 + 10 * T, atol=0.5)


def test_it_rises_strictly_between_its_ends(variables):
    value, curve = quick(
        lambda v: (NET.apply(v, jnp.asarray(T)), NET.apply(v, jnp.asarray(T), method="curve"))
    )(variables)
    assert np.all(np.diff(value) > 0)
    assert np.abs(value - (-6 + 10 * T)).max() > 0.2, "as straight as it began"
    np.testing.assert_allclose(value[[0, -1]], (-6, 4), atol=1e-5)
    np.testing.assert_allclose(curve[[0, -1]], (0, 1), atol=1e-6)


def test_its_inverse_and_its_levels(variables):
    @quick
    def there_and_back(v):
        process = Process(schedule=Learnt(gamma=NET, variables=v))
        at = process.level(jnp.asarray(T))
        beyond = process.inverse(jnp.array([9.0, -9.0]))
        return at, process.inverse(at.logsnr), beyond

    at, back, beyond = there_and_back(variables)
    np.testing.assert_allclose(back, T, atol=1e-4)
    np.testing.assert_allclose(beyond, (0, 1), atol=1e-6)
    assert at.sigma[0] == 0 and at.alpha[0] == 1  # clean, whatever gamma_0 is
    np.testing.assert_allclose(at.alpha**2 + at.sigma**2, 1, atol=1e-6)


def test_a_process_that_is_bound_trains_nothing(variables):
    def level(v):
        return Process(schedule=Learnt(gamma=NET, variables=v)).level(0.5).logsnr

    slopes = quick(jax.grad(level))(variables)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes))
