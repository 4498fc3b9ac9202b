"""Parts that act in time, each by itself, against NumPy and against one another."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from tests.nets.test_unet3d import CHANNELS, rows
from vdm_jax.config import UserError
from vdm_jax.nets import temporal
from vdm_jax.nets.channels import Affine, Shift
from vdm_jax.nets.clip import Clip, TimeConvolution, as_tokens


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
