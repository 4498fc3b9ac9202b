"""A linear layer's product and its gradients against float64, and where strips are taken."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.kernels import linear
from vdm_jax.nets.layers import dense


def arrays(tokens, k, m, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = ((*tokens, k), (k, m), (*tokens, m))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def slopes(x, w, d_y):
    y, pull = jax.vjp(linear.product, x, w)
    return y, *pull(d_y)


@pytest.mark.parametrize("tokens", [(6,), (2, 5), (2, 1, 3)])
@pytest.mark.parametrize("k", [7, 512, 514, 768, 1024])  # in whole, of one strip, and of several
def test_gradients_are_those_of_a_product(tokens, k):
    x, w, d_y = arrays(tokens, k, 9)
    flat, wide, cotangent = (np.asarray(a, np.float64) for a in (x, w, d_y))
    flat, cotangent = flat.reshape(-1, k), cotangent.reshape(-1, 9)
    truth = flat @ wide, cotangent @ wide.T, flat.T @ cotangent
    for found, exact in zip(jax.jit(slopes)(x, w, d_y), truth, strict=True):
        np.testing.assert_allclose(np.asarray(found).reshape(exact.shape), exact, atol=2e-4)


def test_half_precision_stays_half():
    for found in slopes(*arrays((4, 3), 1024, 5, jnp.bfloat16)):
        assert found.dtype == jnp.bfloat16


def test_only_a_cpu_takes_strips():
    traced = jax.jit(slopes).trace(*arrays((8,), 1024, 4))
    assert "while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "while" not in text and "optimization_barrier" not in text and "dot_general" in text


def test_a_dense_layer_calls_it():
    """Under `jit` and `vmap`, with a bias, as the layer of Flax with its own product."""
    x, *_ = arrays((3, 2, 4), 1024, 6)
    ours, plain = dense(6, (None, None), name="layer"), nn.Dense(6)
    params = plain.init(jax.random.key(0), x[0])

    def slope(layer):
        def total(params, x):
            return jax.vmap(lambda row: jnp.sin(layer.apply(params, row)).sum())(x).sum()

        return jax.tree.leaves(jax.jit(jax.value_and_grad(total, (0, 1)))(params, x))

    for found, exact in zip(slope(ours), slope(plain), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
