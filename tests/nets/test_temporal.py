"""Parts that act in time, each by itself, against NumPy and against one another."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from tests.nets.rows import random_like
from tests.nets.test_unet3d import CHANNELS, HEADS, rows
from vdm_jax.config import UserError
from vdm_jax.nets import temporal
from vdm_jax.nets.channels import Affine, Shift
from vdm_jax.nets.clip import Clip, HeadCount, TimeConvolution, as_tokens
from vdm_jax.nets.positions import Rotary, Sincos


def test_a_convolution_in_time_is_numpy_s():
    batch, *_ = rows(((0, 4), (1, 1)))
    around = Clip(as_tokens(batch), jnp.zeros((1, 6, 1)), batch.segment > 0, {})
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(3, CHANNELS, 2)), rng.normal(size=2)
    layer = TimeConvolution(2, (None, None))
    found = layer.apply({"params": {"kernel": kernel, "bias": bias}}, batch.x, around)
    series = np.asarray(batch.x, np.float64)[0, :4, 3, 5]
    for out in range(2):
        truth = sum(
            np.convolve(series[:, c], kernel[::-1, c, out], mode="same") for c in range(CHANNELS)
        )
        np.testing.assert_allclose(found[0, :4, 3, 5, out], truth + bias[out], atol=1e-5)
    np.testing.assert_allclose(found[0, 4], batch.x[0, 4] @ kernel[1] + bias, atol=1e-5)


def alone(part, x, batch, params=None):
    """(what a part makes of x by itself, its fresh parameters)."""

    class Around(nn.Module):
        @nn.compact
        def __call__(self, x):
            tokens = as_tokens(batch)
            clip = Clip(tokens, jnp.zeros((*batch.segment.shape, 1)), batch.segment > 0, {})
            return part(x, clip, name="part", dtype="float32")

    network = Around()
    params = params or meta.unbox(network.init(jax.random.key(0), x))
    return network.apply(params, x), params


def by_pixel(x, batch):
    """(a video's pixels as frames of one pixel, and their batch), in raster order."""
    b, f, h, w, c = x.shape
    each = functools.partial(jnp.repeat, repeats=h * w, axis=1)
    own = jnp.arange(f * h * w)[None]
    return x.reshape(b, f * h * w, 1, 1, c), batch.replace(
        x=x.reshape(b, f * h * w, 1, 1, c), segment=each(batch.segment), position=own
    )


def test_joint_attention_is_attention_in_time_of_a_video_s_pixels():
    """Every place asks every place of its example's frames, and of no other's."""
    batch, *_ = rows(((0, 4), (1, 2)))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(1, 6, 2, 3, 4)), jnp.float32)
    _, fresh = alone(temporal.Joint(heads=HEADS), x, batch)
    params = {"params": random_like(fresh["params"])}
    found, _ = alone(temporal.Joint(heads=HEADS), x, batch, params)
    truth, _ = alone(temporal.Attention(heads=HEADS), *by_pixel(x, batch), params)
    np.testing.assert_allclose(found.reshape(truth.shape), truth, atol=1e-5)
    assert np.abs(found - x).max() > 0.1


def test_joint_attention_is_turned_by_frame_row_and_column():
    """Against NumPy: pairs of features of queries and keys are turned by the place."""
    batch, *_ = rows(((0, 6),))
    x = jnp.asarray(np.random.default_rng(5).normal(size=(1, 6, 2, 3, 12)), jnp.float32)
    part = temporal.Joint(heads=HeadCount(1), position=Rotary(split=(4, 4, 4)))
    _, fresh = alone(part, x, batch)
    params = {"params": random_like(fresh["params"])}
    found, _ = alone(part, x, batch, params)
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"]["part"])
    flat = np.asarray(x, np.float64).reshape(36, 12)
    inner = (flat - flat.mean(-1, keepdims=True)) / np.sqrt(flat.var(-1, keepdims=True) + 1e-5)
    inner = inner * layers["norm"]["scale"] + layers["norm"]["bias"]
    at = np.stack(np.meshgrid(*map(np.arange, (6, 2, 3)), indexing="ij"), -1).reshape(36, 3)
    turn = np.exp(1j * np.repeat(at, 2, axis=1) * np.tile([1, 0.01], 3))

    def turned(name):
        pairs = (inner @ layers["self"][name]["kernel"]).reshape(36, 6, 2)
        return (pairs[..., 0] + 1j * pairs[..., 1]) * turn

    scores = (turned("query") @ turned("key").conj().T).real / np.sqrt(12)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    out = shares @ (inner @ layers["self"]["value"]["kernel"])
    truth = flat + out @ layers["self"]["out"]["kernel"] + layers["self"]["out"]["bias"]
    np.testing.assert_allclose(found.reshape(36, 12), truth, atol=1e-4)


def test_places_are_rows_columns_and_frames():
    """Of each example, against sines and cosines by NumPy; what only turns queries is refused."""
    batch, *_ = rows(((0, 4), (1, 2)))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(1, 6, 2, 3, 8)), jnp.float32)
    part = temporal.Places(positions=(Sincos(axes="xy"), Sincos(axes="t")))
    found, params = alone(part, x, batch)
    assert not params

    def waves(at, width):
        angles = np.asarray(at)[..., None] / 10_000 ** (np.arange(width // 2) / (width // 2))
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    frame = np.array([0, 1, 2, 3, 0, 1])[:, None, None]
    row, column = np.arange(2)[None, :, None], np.arange(3)[None, None]
    shape = (6, 2, 3, 8)
    by_picture = np.concatenate(
        [np.broadcast_to(waves(axis, 4), (1, 2, 3, 4)) for axis in (column, row)], axis=-1
    )
    truth = np.broadcast_to(by_picture, shape) + np.broadcast_to(waves(frame, 8), shape)
    np.testing.assert_allclose((found - x)[0], truth, atol=1e-5)
    with pytest.raises(UserError, match="Rotary turns queries"):
        alone(temporal.Places(positions=(Rotary(),)), x, batch)


def test_a_shift_moves_channels_between_frames_of_an_example():
    batch, *_ = rows(((0, 4), (1, 2)))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(1, 6, 2, 2, 4)), jnp.float32)
    found, _ = alone(Shift(by=(1, -1, 0, 2)), x, batch)
    for channel, by in enumerate((1, -1, 0, 2)):
        for clip in (slice(0, 4), slice(4, 6)):
            series, count = np.asarray(x)[0, clip, ..., channel], clip.stop - clip.start
            truth = np.zeros_like(series)
            for frame in range(count):
                if 0 <= frame - by < count:
                    truth[frame] = series[frame - by]
            np.testing.assert_array_equal(found[0, clip, ..., channel], truth)
    back, _ = alone(Shift(by=(-1, 1, 0, 0)), found[..., :4].at[..., 3].set(x[..., 3]), batch)
    np.testing.assert_array_equal(back[0, 1:3], x[0, 1:3])  # the clip's interior
    with pytest.raises(UserError, match="4 channels do not divide into the 3 portions"):
        alone(Shift(by=(1, 0, 0)), x, batch)


def test_a_scale_for_each_frame_counts_frames_of_its_example():
    batch, *_ = rows(((0, 4), (1, 2)))
    table = {"scale": jnp.arange(9.0).reshape(3, 3), "bias": -jnp.ones((3, 3))}
    found, _ = alone(Affine(frames=3), batch.x, batch, {"params": {"part": table}})
    for frame, own in enumerate((0, 1, 2, 2, 0, 1)):
        truth = np.asarray(batch.x)[0, frame] * (3 * own + np.arange(3)) - 1
        np.testing.assert_allclose(found[0, frame], truth, atol=1e-6)


@pytest.mark.parametrize("weight", ["sigmoid", "held"])
def test_a_mixture_is_what_it_says(weight):
    batch, *_ = rows(((0, 6),))
    part = temporal.Mixed(part=Shift(by=(1,)), weight=weight, start=0.3)
    found, params = alone(part, batch.x, batch)
    x = np.asarray(batch.x)[0]
    np.testing.assert_allclose(found[0, 1:], 0.3 * x[1:] + 0.7 * x[:-1], atol=1e-6)

    def at(value):
        given = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), params)
        return alone(part, batch.x, batch, given)[0][0, 1, 0, 0, 0]

    rise = x[1, 0, 0, 0] - x[0, 0, 0, 0]
    if weight == "held":
        np.testing.assert_allclose(at(1.5), x[1, 0, 0, 0], atol=1e-6)
        for value in (1.0, 1.5):
            np.testing.assert_allclose(jax.grad(at)(value), rise, rtol=1e-5)
    else:
        share = 1 / (1 + np.exp(-1))
        np.testing.assert_allclose(jax.grad(at)(1.0), rise * share * (1 - share), rtol=1e-5)
