"""A convolution's gradients against those JAX derives, and against its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vdm_jax.kernels.convolution import FEW, _convolve, convolve, convolve_enlarged


def inputs(size, stride, side=(6, 9), channels=(4, 5)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, *side, channels[0])).astype(np.float32)
    kernel = rng.normal(size=(size, size, *channels)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(kernel)


@pytest.mark.parametrize("channels", [(4, 5), (5, 4), (FEW + 3, FEW + 1), (FEW + 1, FEW + 3)])
@pytest.mark.parametrize(
    ("size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (4, 1), (4, 2), (2, 2)]
)
def test_gradients_are_those_of_the_convolution(size, stride, channels):
    """Whichever of the two is shifted, side by side or one after the other."""
    x, kernel = inputs(size, stride, channels=channels)

    def loss(convolve):
        return lambda x, kernel: jnp.sin(convolve(x, kernel, stride)).sum()

    ours = jax.grad(loss(convolve), (0, 1))(x, kernel)
    theirs = jax.grad(loss(_convolve), (0, 1))(x, kernel)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [(1, 1), (2, 2), (2, 9), (3, 1)])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (4, 2), (5, 1)])
def test_pictures_smaller_than_the_kernel(size, stride, side):
    """Values and gradients against the compiler's own."""
    x, kernel = inputs(size, stride, side=side)
    around = ((size // 2,) * 2,) * 2

    def theirs(x, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), around, dimension_numbers=names
        )

    ours = functools.partial(convolve, stride=stride)
    np.testing.assert_allclose(ours(x, kernel), theirs(x, kernel), rtol=1e-4, atol=1e-4)
    found, wanted = (
        jax.grad(lambda x, k, f=f: jnp.sin(f(x, k)).sum(), (0, 1))(x, kernel)
        for f in (ours, theirs)
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_cpu_sees_small_pictures_in_one_product():
    x, kernel = inputs(3, 1, side=(2, 2))
    text = jax.jit(lambda x, k: convolve(x, k, 1)).lower(x, kernel).compile().as_text()
    assert " convolution(" not in text


@pytest.mark.parametrize("side", [(1, 1), (2, 3), (5, 4)])
def test_an_enlarged_picture_is_never_written(side):
    """Values and gradients are those of the larger picture, made and convolved; no array of the
    program is as large with as many channels."""
    x, kernel = inputs(3, 1, side=side)

    def written(x, kernel):
        return convolve(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), kernel, 1)

    def both(f):
        return f(x, kernel), *jax.grad(lambda x, k: jnp.sin(f(x, k)).sum(), (0, 1))(x, kernel)

    for one, other in zip(both(convolve_enlarged), both(written), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    if side == (1, 1):  # with the zeros around it, it is as large itself
        return
    large = f"f32[3,{2 * side[0]},{2 * side[1]},{x.shape[-1]}]"
    for f, there in ((written, True), (convolve_enlarged, False)):
        assert (large in str(jax.make_jaxpr(f)(x, kernel))) == there


def test_its_values_and_slopes():
    """By hand at one place; slopes against finite differences."""
    x, kernel = inputs(3, 1)
    seen = np.asarray(x)[1, 1:4, 2:5]
    wanted = np.einsum("ijc,ijco->o", seen, np.asarray(kernel))
    np.testing.assert_allclose(convolve(x, kernel, 1)[1, 2, 3], wanted, rtol=1e-4)
    check_grads(lambda x, k: convolve(x, k, 2), (x, kernel), order=1, modes="rev", rtol=2e-2)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_cpu_sees_no_slow_convolution_in_a_loop(stride):
    """Those that remain are in the form that its library has: no reversed or spread-out windows."""
    x, kernel = inputs(3, stride)

    def slope(x):
        return jax.grad(lambda k, x: jnp.sin(convolve(x, k, stride)).sum(), (0, 1))(kernel, x)

    def loop(xs):
        return jax.lax.scan(lambda carry, x: (carry, slope(x)), 0, xs)

    text = jax.jit(loop).lower(jnp.stack([x, x])).compile().as_text()
    found = [line for line in text.splitlines() if " convolution(" in line]
    assert len(found) == 2  # y and dx
    for line in found:
        assert "dim_labels=b01f_01io->b01f" in line
        assert "lhs_dilate" not in line and "rhs_reversal" not in line
