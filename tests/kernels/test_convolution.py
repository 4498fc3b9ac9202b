"""A convolution's gradients against those JAX derives, and against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vdm_jax.kernels.convolution import _convolve, convolve


def inputs(size, stride, side=(6, 9)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, *side, 4)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 4, 5)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(kernel)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (4, 2), (2, 2)])
def test_gradients_are_those_of_the_convolution(size, stride):
    x, kernel = inputs(size, stride)

    def loss(convolve):
        return lambda x, kernel: jnp.sin(convolve(x, kernel, stride)).sum()

    ours = jax.grad(loss(convolve), (0, 1))(x, kernel)
    theirs = jax.grad(loss(_convolve), (0, 1))(x, kernel)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_its_values_and_slopes():
    """By hand at one place; slopes against finite differences."""
    x, kernel = inputs(3, 1)
    seen = np.asarray(x)[1, 1:4, 2:5]
    wanted = np.einsum("ijc,ijco->o", seen, np.asarray(kernel))
    np.testing.assert_allclose(convolve(x, kernel, 1)[1, 2, 3], wanted, rtol=1e-4)
    check_grads(lambda x, k: convolve(x, k, 2), (x, kernel), order=1, modes="rev", rtol=2e-2)


def test_no_kernels_gradient_is_a_convolution_on_a_cpu():
    """In a loop it would be computed element by element."""
    x, kernel = inputs(3, 1)
    slope = jax.grad(lambda kernel, x: jnp.sin(convolve(x, kernel, 1)).sum())
    text = jax.jit(slope).lower(kernel, x).compile().as_text()
    assert text.count(" convolution(") == 1  # the one forwards
