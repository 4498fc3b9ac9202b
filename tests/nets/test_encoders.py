"""The text encoder: padding decides nothing, order and neighbours do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from tests.nets.rows import quick, random_like
from vdm_jax.config import UserError
from vdm_jax.nets.encoders import TextEmbedding

ENCODER = TextEmbedding(vocab=11, width=8, max_length=6, depth=2, heads=2)
IDS = jnp.asarray([[3, 1, 4, 0, 0], [5, 9, 2, 6, 5], [0, 0, 0, 0, 0]])
MASK = jnp.asarray([[True] * 3 + [False] * 2, [True] * 5, [False] * 5])


@functools.cache
def parameters(encoder=ENCODER):
    return random_like(meta.unbox(jax.eval_shape(encoder.init, jax.random.key(0), IDS, MASK)))


@functools.cache
def compiled(encoder):
    return quick(encoder.apply)


def encode(ids, mask, encoder=ENCODER):
    return np.asarray(compiled(encoder)(parameters(encoder), ids, mask))


def test_padding_decides_nothing_and_gives_nothing():
    out = encode(IDS, MASK)
    assert out.shape == (3, 5, 8) and not np.any(out[~np.asarray(MASK)])
    other = encode(jnp.where(MASK, IDS, 7), MASK)
    np.testing.assert_array_equal(other, out)
    shorter = encode(IDS[:, :3], MASK[:, :3])
    np.testing.assert_allclose(shorter[0], out[0, :3], atol=1e-5)


def test_words_see_their_line_and_their_place():
    out = encode(IDS, MASK)
    changed = encode(IDS.at[1, 4].set(8), MASK)
    assert np.abs(changed[1, 0] - out[1, 0]).max() > 1e-4
    np.testing.assert_array_equal(changed[0], out[0])
    assert np.abs(out[1, 0] - out[1, 4]).max() > 1e-4  # the same word at both ends
    flat = TextEmbedding(vocab=11, width=8, max_length=6)
    apart = encode(IDS.at[1, 4].set(8), MASK, flat) - encode(IDS, MASK, flat)
    assert np.any(apart[1, 4]) and not np.any(apart[1, :4])


def test_gradients_are_finite_where_lines_are_empty():
    grads = quick(jax.grad(lambda p: jnp.square(ENCODER.apply(p, IDS, MASK)).sum()))(parameters())
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    used = np.any(np.asarray(grads["params"]["table"]), axis=-1)
    assert set(np.nonzero(used)[0]) == {1, 2, 3, 4, 5, 6, 9}


def test_mistakes_are_told():
    with pytest.raises(UserError, match="text of 7 tokens; the encoder takes 6"):
        encode(jnp.zeros((1, 7), int), jnp.ones((1, 7), bool))
    with pytest.raises(UserError, match="does not divide into 3 heads"):
        jax.eval_shape(TextEmbedding(vocab=3, width=8, max_length=6, heads=3).init,
                       jax.random.key(0), IDS, MASK)  # fmt: skip
