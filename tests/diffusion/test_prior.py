"""Factors against numpy's Cholesky; noise against the factor times white noise, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.carriers import frames, packed, quick
from vdm_jax.diffusion import prior as pr

F = 6


def correlated(value):
    return np.full((F, F), value) + (1 - value) * np.eye(F)


GAPS = np.abs(np.arange(F)[:, None] - np.arange(F))
FACTORS = {
    "iid": (pr.Iid(), np.eye(F)),
    "mixed": (pr.Mixed(alpha=2.0), correlated(0.8)),  # shared variance 4 / 5
    "progressive": (pr.Progressive(alpha=2.0), 0.8 ** (GAPS / 2)),
    "base": (pr.Base(share=0.3), correlated(0.3)),
}


@pytest.mark.parametrize("name", FACTORS)
def test_factor_is_cholesky_of_the_covariance(name):
    factor, covariance = FACTORS[name]
    f, g = np.indices((F, F))
    np.testing.assert_allclose(quick(factor)(f, g), np.linalg.cholesky(covariance), atol=1e-5)


def test_shared_factors_are_all_ones():
    f, g = jnp.meshgrid(jnp.arange(F), jnp.arange(F), indexing="ij")
    for factor in (pr.Shared(), pr.Base(share=1.0)):
        np.testing.assert_allclose(factor(f, g) @ factor(f, g).T, np.ones((F, F)))


@pytest.mark.parametrize("factor", [pr.Progressive(alpha=1.0), pr.Shared()])
def test_frames_are_mixed_by_the_factor(factor):
    batch = frames(b=2, f=3)

    @quick
    def run(batch):
        keys = batch.keys(0, "noise")
        return pr.Prior(factor=factor)(keys, batch), batch.white(keys)

    noise, white = run(batch)
    f, g = jnp.meshgrid(jnp.arange(3), jnp.arange(3), indexing="ij")
    np.testing.assert_allclose(noise, np.einsum("fg,bghwc->bfhwc", factor(f, g), white), atol=1e-5)


def test_frames_inside_a_patch():
    """Two frames per patch: frame 2 t + i of the video is row i of token slice t."""
    batch = packed(rows=(((3, 2, 1), (1, 1, 1)),), tokens=8, d=4, patch=(2, 1, 1))
    factor = pr.Mixed(alpha=1.0)

    @quick
    def run(batch):
        keys = batch.keys(0, "noise")
        return pr.Prior(factor=factor)(keys, batch), batch.white(keys)

    noise, white = run(batch)

    def video(tokens):
        return np.asarray(tokens)[0, :6].reshape(3, 2, 2, 2).transpose(0, 2, 1, 3).reshape(6, 2, 2)

    f, g = jnp.meshgrid(jnp.arange(6), jnp.arange(6), indexing="ij")
    want = np.einsum("fg,gsc->fsc", factor(f, g), video(white))
    np.testing.assert_allclose(video(noise), want, atol=1e-5)
    assert np.all(noise[0, 7:] == 0)


def test_iid_is_one_draw_and_that_one():
    batch = packed()
    keys = batch.keys(0, "noise")
    assert np.array_equal(*quick(lambda k: (pr.Prior()(k, batch), batch.white(k)))(keys))
    draws = str(jax.make_jaxpr(lambda k: pr.Prior()(k, batch))(keys)).count("random_bits")
    assert draws == 1


def test_the_bits_do_not_depend_on_neighbours():
    """The same clip beside longer ones, in another row and slot."""
    prior = pr.Prior(factor=pr.Progressive(alpha=1.0), offset=0.1)
    run = quick(lambda b: prior(b.keys(0, "noise"), b))
    one = run(packed(rows=(((2, 2, 1), (1, 2, 2)),), tokens=12, ids=[[7, 8]]))
    two = run(packed(rows=(((5, 1, 1), (2, 2, 1)),), tokens=12, ids=[[9, 7]]))
    assert np.array_equal(one[0, :4], two[0, 5:9])
    assert not np.any(np.asarray(one)[0, :4] == 0)


@pytest.mark.parametrize("make", ["frames", "packed"])
def test_offset_is_one_number_per_frame_and_channel(make):
    if make == "frames":
        batch = frames(b=3, f=2, c=2)
    else:
        batch = packed(rows=(((2, 2, 2),),) * 3, tokens=8, d=2 * 3 * 2, patch=(2, 1, 3), slots=1)
    priors = pr.Prior(offset=0.5), pr.Prior()
    run = quick(lambda b: [prior(b.keys(0, "noise"), b) for prior in priors])
    noisy, plain = run(batch)
    extra = np.asarray(noisy - plain) / 0.5
    if make == "packed":  # (rows, t, y x, frame of patch, area, c) -> (rows, frame, space, c)
        extra = extra.reshape(3, 2, 4, 2, 3, 2).transpose(0, 1, 3, 2, 4, 5).reshape(3, 4, 12, 2)
    extra = extra.reshape(3, extra.shape[1], -1, 2)
    np.testing.assert_allclose(extra, np.broadcast_to(extra[:, :, :1], extra.shape), atol=1e-5)
    values = np.unique(np.round(extra[:, :, 0], 4))
    assert len(values) == 3 * extra.shape[1] * 2, "one number each"
    assert 0.4 < values.std() < 1.8
