"""Frames that are asked: the table of shifts by hand, stills, neighbours in a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from tests.nets.rows import quick, random_like
from tests.nets.test_unet3d import BY_FRAME, HEADS, rows
from vdm_jax.config import UserError
from vdm_jax.nets import spatial
from vdm_jax.nets.clip import Clip, as_tokens
from vdm_jax.nets.frame_keys import LOCAL, FrameKeys
from vdm_jax.nets.unet3d import ImageUNet, UNet3D


def clip_of(batch):
    tokens = as_tokens(batch)
    return Clip(
        frames=tokens, time=jnp.zeros((*batch.segment.shape, 4)),
        moving=batch.segment > 0, context={},
    )  # fmt: skip


def test_the_table_of_shifts():
    """Place by place, on pictures that are not square: frame 0 reads itself."""
    batch, _, _ = rows(((0, 4), (1, 2)))
    x = np.random.default_rng(0).normal(size=(1, 6, 5, 7, 2)).astype(np.float32)
    keys = FrameKeys(frames=("before", "own"), tile=LOCAL)
    found = np.asarray(keys(jnp.asarray(x), clip_of(batch))).reshape(1, 6, 2, 5, 7, 2)
    table = [[4, 3, 2, 1], [3, 2, 1, 0], [2, 1, 0, 0], [1, 2, 3, 4]]
    for start, count in ((0, 4), (4, 2)):
        for f in range(count):
            for which, frame in enumerate((max(f - 1, 0), f)):
                for row in range(5):
                    for column in range(7):
                        k = table[row % 4][column % 4]
                        source = frame - k if frame >= k else frame
                        np.testing.assert_array_equal(
                            found[0, start + f, which, row, column],
                            x[0, start + source, row, column],
                        )


def test_first_and_before():
    batch, _, _ = rows(((0, 3), (1, 1), (2, 2)))
    x = jnp.arange(6.0).reshape(1, 6, 1, 1, 1)
    found = FrameKeys(frames=("first", "before", "own"))(x, clip_of(batch))[0, ..., 0]
    want = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [3, 3, 3], [4, 4, 4], [4, 4, 5]]
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("block", [spatial.Transformer, spatial.Attend])
def test_a_still_and_its_neighbours(block):
    """Of a still nothing changes; a video's frames hear of one another, no other's do."""

    def unet(keys):
        one = block(heads=HEADS, norm=BY_FRAME, keys=keys)
        sizes = dict(width=8, mults=(1,), blocks=1, follow=(one,), middle=None, norm=BY_FRAME)
        return UNet3D(image=ImageUNet(**sizes))

    batch, time, cond = rows(((0, 3), (1, 1)), ((2, 4),))
    cond = cond.replace(tokens={})
    plain, asking = unet(None), unet(FrameKeys(frames=("first", "before")))
    shapes = meta.unbox(jax.eval_shape(plain.init, jax.random.key(0), batch, time, cond))
    params = {"params": random_like(shapes["params"])}
    alike = quick(plain.apply)(params, batch, time, cond)
    run = quick(asking.apply)
    found = run(params, batch, time, cond)
    np.testing.assert_allclose(found[0, 3], alike[0, 3], atol=2e-5)
    np.testing.assert_allclose(found[0, 0], alike[0, 0], atol=2e-5)  # the first asks itself
    assert np.abs(found[0, 2] - alike[0, 2]).max() > 1e-3
    other = run(params, batch.replace(x=batch.x.at[0, 0].add(1.0)), time, cond)
    moved = np.abs(other - found).max((2, 3, 4))
    assert np.all(moved[0, :3] > 1e-4) and moved[0, 3] == 0 and not moved[1].any()


def test_mistakes_are_said():
    with pytest.raises(UserError, match="own, first, before"):
        FrameKeys(frames=("last",))
    with pytest.raises(UserError, match="looks back"):
        FrameKeys(tile=((0, -1),))
