"""What a video UNet is given in training, and of its input: features dropped, waves joined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from tests.nets.rows import quick, random_like
from tests.nets.test_unet3d import CHANNELS, SIDE, image, rows
from vdm_jax.nets.clip import Clip, Dropout, as_tokens
from vdm_jax.nets.unet3d import UNet3D


def test_what_is_dropped_follows_the_example():
    """In training alone, at its rate, another at each visit, whatever else lies in the row."""
    network = UNet3D(image=image(dropout=0.4, follow=(None,), middle=None), cross=("text",))
    shapes = meta.unbox(jax.eval_shape(network.init, jax.random.key(0), *rows(((0, 6),))))
    params = {"params": random_like(shapes["params"])}

    def named(layout):
        """The examples known by their names."""
        batch, time, cond = rows(*layout)
        name = np.zeros((*batch.examples.valid.shape, 2), np.uint32)
        for r, row in enumerate(layout):
            name[r, : len(row), 1] = [who for who, _ in row]
        return batch.replace(examples=batch.examples.replace(id=jnp.asarray(name))), time, cond

    @quick
    def run(batch, time, cond, visit):
        batch = batch.replace(examples=batch.examples.replace(visit=visit + batch.examples.visit))
        rngs = {"dropout": jax.random.key(3)}
        train = network.apply(params, batch, time, cond, train=True, rngs=rngs)
        return train, network.apply(params, batch, time, cond)

    together, still = run(*named((((0, 3), (1, 2)), ((2, 4),))), 0)
    alone, still_alone = run(*named((((1, 2),), ((0, 3),))), 0)
    np.testing.assert_allclose(still[0, 3:5], still_alone[0, :2], atol=2e-5)
    np.testing.assert_allclose(together[0, 3:5], alone[0, :2], atol=2e-5)
    np.testing.assert_allclose(together[0, :3], alone[1, :3], atol=2e-5)
    assert np.abs(together - still)[0, :5].min((1, 2, 3)).max() > 0
    again, _ = run(*named((((1, 2),), ((0, 3),))), 1)
    assert np.abs(again - alone)[0, :2].max() > 1e-2


def test_dropped_features_are_made_up_for():
    batch = rows(((0, 3), (1, 3)))[0]
    x = jnp.ones((1, 6, SIDE, SIDE, 32))
    around = Clip(as_tokens(batch), jnp.zeros((1, 6, 1)), batch.segment > 0, {}, train=True)
    layer = Dropout(rate=0.25)
    found = quick(lambda x: layer.apply({}, x, around, rngs={"dropout": jax.random.key(0)}))(x)
    assert set(np.unique(found)) == {0, np.float32(1 / 0.75)}
    assert found.mean() == pytest.approx(1, abs=4 * (0.25 / 0.75 / x.size) ** 0.5)
    assert np.any(found[0, 0] != found[0, 1]), "two frames alike"


def test_waves_show_fine_detail():
    """Two inputs that a byte's step apart are alike to the first layer, but for the waves."""
    plain, waved = (UNet3D(image=image(), cross=("text",), waves=w) for w in ((), (7, 8)))
    args = rows(((0, 6),))
    kernels = [
        meta.unbox(jax.eval_shape(net.init, jax.random.key(0), *args))["params"]["conv_in"]
        for net in (plain, waved)
    ]
    inputs = [one["kernel"].shape[-2] for one in kernels]
    assert inputs == [CHANNELS, 5 * CHANNELS]
    # With period 2^-6 in the input: of n = 7 alone nothing changes, moved by a whole one.
    params = random_like(meta.unbox(jax.eval_shape(waved.init, jax.random.key(0), *args))["params"])
    kernel = params["conv_in"]["kernel"]
    params["conv_in"]["kernel"] = kernel.at[:, :, :CHANNELS].set(0)
    batch, time, cond = args
    run = quick(lambda x: waved.apply({"params": params}, batch.replace(x=x), time, cond))
    found, whole, half = (run(batch.x + by) for by in (0.0, 2.0**-6, 2.0**-7))
    np.testing.assert_allclose(found, whole, atol=1e-2)
    assert np.abs(found - half).max() > 0.1
