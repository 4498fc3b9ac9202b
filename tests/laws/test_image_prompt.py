"""Law 6, of pictures: a stage is told the same embedding in training and in sampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import make_a_video
from tests.laws.test_links import SIDE, chosen_by_hand, frames_of
from vdm_jax.codecs import Embedding
from vdm_jax.config import UserError, build
from vdm_jax.image_prompt import of_batch, of_videos
from vdm_jax.images import Tower
from vdm_jax.links import Ends, EveryFrame, Link, Strided
from vdm_jax.nets.vision import VisionTower
from vdm_jax.train.program import make_program

TOWER = VisionTower(side=8, patch=4, width=8, depth=1, heads=2, hidden=16, features=6)
CODEC = Embedding(encoder=Tower(module=TOWER), side=SIDE)
LINKS = {
    "the video itself": None,
    "every second frame": Link(select=Strided(stride=2, fill="blank")),
    "the first frame": Link(select=Ends(first=1)),
    "smaller ones": Link(factor=2),
}
ROW = ((1, 7), (2, 1), (3, 4))
LENGTHS = [count for _, count in ROW]


def bytes_of(batch):
    """The batch with values that bytes have."""
    return batch.replace(x=jnp.round((batch.x + 1) * 127.5) / 127.5 - 1)


def videos_below(link, batch):
    """uint8, made by hand of the truth, of every example of the row."""
    select, factor = (link.select, link.factor) if link else (EveryFrame(), 1)
    starts = np.cumsum([0, *LENGTHS])
    whole = np.asarray(batch.x)[0]
    for start, count in zip(starts, LENGTHS, strict=False):
        video = whole[start : start + count][chosen_by_hand(select, count)]
        f, h, w, c = video.shape
        small = video.reshape(f, h // factor, factor, w // factor, factor, c).mean((2, 4))
        yield np.rint((small + 1) * 127.5).astype(np.uint8)


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_training_and_sampling_tell_the_same_embedding(link):
    batch = bytes_of(frames_of(ROW))
    below = batch if link is None else link.reduce(batch)
    told = jax.jit(lambda weights, below: of_batch(CODEC, weights, below))
    trained = told(CODEC.weights(), below)
    made = list(videos_below(link, batch))
    there = [index for index, video in enumerate(made) if len(video)]
    sampled = of_videos(CODEC, [made[index] for index in there])
    for index, vector in zip(there, sampled, strict=True):
        # Means of bytes are rounded to bytes again where a stage below makes them.
        near = 0.05 if link is not None and link.factor > 1 else 1e-4
        np.testing.assert_allclose(trained[0, index], vector, atol=near)
        assert np.square(vector).mean() == pytest.approx(1, abs=1e-4)
    for index in set(range(4)) - set(there):  # nothing below, or no example
        assert not np.any(trained[0, index])
    assert len(there) == (3 if link is None or link.factor > 1 else 2)
    assert np.abs(sampled[0] - sampled[-1]).max() > 1e-2


def test_it_is_of_the_middle_frame():
    batch = frames_of(ROW)
    told = of_batch(CODEC, CODEC.weights(), batch)
    apart = CODEC.embed(CODEC.weights(), batch.x[0])
    for example, frame in enumerate((3, 7, 8 + 2)):
        np.testing.assert_allclose(told[0, example], apart[frame], atol=1e-5)


def test_an_embedding_passes_as_it_is():
    rng = np.random.default_rng(0)
    made = rng.normal(size=(1, 1, 1, 6)).astype(np.float32)
    (told,) = of_videos(CODEC, [made])
    np.testing.assert_array_equal(told, made.reshape(6))
    with pytest.raises(UserError, match="embedding of 5 numbers"):
        of_videos(CODEC, [made[..., :5]])
    long = np.asarray(CODEC.decode({}, 3 * made))
    np.testing.assert_allclose(np.square(long).mean(), 1, atol=1e-5)
    np.testing.assert_allclose(long / long[..., :1], made / made[..., :1], rtol=1e-4)


def test_more_videos_than_are_embedded_together():
    rng = np.random.default_rng(0)
    made = [rng.integers(0, 256, (n % 3 + 1, SIDE, SIDE, 3), np.uint8) for n in range(20)]
    whole = of_videos(CODEC, made)
    for index in (0, 15, 16, 19):
        np.testing.assert_allclose(whole[index], of_videos(CODEC, [made[index]])[0], atol=1e-5)


def test_the_encoder_is_an_argument_of_the_step_spread_over_the_mesh():
    """Law 8: it is large enough that a constant of it would be seen."""
    config = make_a_video.get_config("smoke-base")
    config.stage.image.encoder.module.update({"width": 256, "hidden": 1024, "depth": 1})
    config.rules = "fsdp"
    config.mesh.update({"data": 1, "fsdp": 8})
    config.data.rows = 8
    run = build(config)
    program = make_program(run)
    (up,) = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(program.frozen["image"])
        if jax.tree_util.keystr(path, simple=True, separator="/") == "blocks/mlp/up/kernel"
    ]
    assert up.size * 4 >= 2**20
    assert up.sharding.shard_shape(up.shape) == (1, 256 // 8, 1024)
    arrays = {
        name: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype, sharding=program.batch_sharding)
        for name, leaf in run.blank_arrays(8).items()
    }
    text = program.lower(program.abstract, arrays).as_text()
    assert max(len(line) for line in text.splitlines() if "constant" in line) < 2**20
    assert "256x1024xf32" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": None}, "stage.image is None"),
        ({"image": dataclasses.replace(CODEC, side=4)}, "side is 4, but it is shown 16 x 16"),
        ({"link": Link(factor=2)}, "side is 16, but it is shown 8 x 8"),
        ({"codec": CODEC}, "whole frames of pixels"),
    ],
)
def test_what_does_not_fit_is_said(changes, said):
    stage = build(make_a_video.get_config("smoke-base").stage)
    assert stage.problems() == []
    found = dataclasses.replace(stage, **changes).problems()
    assert any(said in line for line in found)


def test_a_picture_that_nobody_reads_is_said():
    stage = build(make_a_video.get_config("smoke-space1").stage)
    (found,) = dataclasses.replace(stage, image=dataclasses.replace(CODEC, side=16)).problems()
    assert "no signal reads 'image'" in found
