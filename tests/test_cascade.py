"""Stages of whole frames, through the real command: windows, cascades, files between processes.

The networks are untrained; what is tested is who is told what.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.text import Tokenizer
from vdm_jax import gallery
from vdm_jax.cascade import Apart, Cascade, Turns
from vdm_jax.config import UserError
from vdm_jax.denoiser import Denoiser
from vdm_jax.diffusion.constraints import Keep
from vdm_jax.diffusion.guides import DynamicThreshold, Threshold
from vdm_jax.diffusion.parameterization import X0
from vdm_jax.diffusion.prior import Prior, Shared
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.diffusion.schedule import Cosine
from vdm_jax.links import Augment, Ends, Link, Strided
from vdm_jax.nets.clip import HeadCount
from vdm_jax.nets.spatial import Norm
from vdm_jax.nets.temporal import Attention, Temporal
from vdm_jax.nets.unet3d import ImageUNet, UNet3D
from vdm_jax.pipeline import Pipeline
from vdm_jax.requests import Capacity, Request, blank
from vdm_jax.signals import Channels, Signal
from vdm_jax.stage import Stage
from vdm_jax.windows import Windows

NORM = Norm(groups=4)
HOLDS = Sampler(constraints=(Keep(),), known="noised")
IN_TIME = Temporal(part=Attention(heads=HeadCount(2), init="random"), at="after_res")


def stage(side=8, link=None, signals=(), temporal=(IN_TIME,), **sampler):
    image = ImageUNet(width=8, mults=(1, 1), blocks=1, follow=(None, None), norm=NORM)
    if link is not None:
        signals = (Signal(key="below", embed=Channels(), slot="channels"), *signals)
    return Stage(
        denoiser=Denoiser(
            backbone=UNet3D(image=image, temporal=temporal), parameterization=X0(),
            signals=signals,
        ),
        process=Process(schedule=Cosine()), prior=Prior(), sampler=Sampler(steps=2, **sampler),
        patch=(1, side, side), link=link,
    )  # fmt: skip


@pytest.fixture(scope="module")
def words(manifest):
    return Tokenizer(str(manifest / "tokenizer.json"))


def pipeline(stage, words, *, frames=4, rows=2, seed=0):
    """A pipeline of random weights, the last layer's among them, which start at zero."""
    capacity = Capacity(rows=rows, tokens=frames, text_tokens=64, segments=4)
    arrays = jax.tree.map(jnp.asarray, blank(stage, capacity))

    def start(key):
        from vdm_jax.pipeline import _below, _blank

        batch = stage.carry(_blank(stage, arrays))
        raw = {"fps": arrays["fps"]}
        if stage.link is not None:
            raw |= stage.link.sample(_below(stage, arrays, batch), batch)
        at = stage.process.level(jnp.full((*batch.examples.valid.shape, 1), 0.5))
        return stage.denoiser.init(key, batch, at, raw, method="start")

    import flax.linen as nn

    shapes = jax.eval_shape(lambda: nn.meta.unbox(start(jax.random.key(0))))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    params = tree.unflatten([rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves])
    return Pipeline(stage=stage, params=params, tokenizer=words, capacity=capacity)


def request(frames=4, side=8, seed=0, **more):
    return Request(prompt="a red circle", frames=frames, height=side, width=side, seed=seed, **more)


def videos(made):
    return [video for _, video in sorted(made, key=lambda pair: pair[0])]


def test_a_seed_gives_the_same_frames_anywhere(words):
    """Law 11, of whole frames: among others, and in another row."""
    made = pipeline(stage(), words)
    alone = videos(made([request(seed=5)]))[0]
    crowd = [request(1, seed=3), request(seed=5), request(2, seed=9)]
    assert alone.shape == (4, 8, 8, 3) and np.ptp(alone) > 20
    np.testing.assert_array_equal(videos(made(crowd))[1], alone)
    assert np.any(videos(made([request(seed=6)]))[0] != alone)


def test_every_size_of_frames_has_its_program(words):
    made = pipeline(stage(), words)
    found = videos(made([request(2, side=8), request(4, side=12), request(1, side=8)]))
    assert [video.shape for video in found] == [(2, 8, 8, 3), (4, 12, 12, 3), (1, 8, 8, 3)]
    with pytest.raises(UserError, match="height is 9"):
        list(made([request(side=9)]))


def test_windows_side_by_side_are_the_windows_alone(words):
    whole = stage(temporal=())
    long = dataclasses.replace(whole, windows=Windows(frames=4))
    made = pipeline(whole, words)
    parts = dataclasses.replace(made, stage=long)
    (found,) = videos(parts([request(10, seed=5)]))
    assert found.shape == (10, 8, 8, 3)
    first = videos(made([request(4, seed=5)]))[0]
    np.testing.assert_array_equal(found[:4], first)
    # Noise of another window is another.
    assert np.any(found[4:8] != first)


def test_windows_of_the_same_noise(words):
    """And of a prior that frames share: without time in the network nothing moves."""
    whole = dataclasses.replace(stage(temporal=()), prior=Prior(factor=Shared()))
    made = pipeline(whole, words)
    (wanted,) = videos(made([request(1, seed=5)]))
    for same in (True, False):
        windows = Windows(frames=4, same_noise=same)
        parts = dataclasses.replace(made, stage=dataclasses.replace(whole, windows=windows))
        (found,) = videos(parts([request(10, seed=5)]))
        np.testing.assert_array_equal(found[:4], np.repeat(wanted, 4, axis=0))
        assert np.array_equal(found[4:], np.repeat(wanted, 6, axis=0)) == same


@pytest.mark.parametrize("told", [{"constraints": (Keep(),), "known": "noised"}, {}])
def test_what_a_window_carries_is_known_to_the_next(words, told):
    """Followed by `Keep`, or put in place as it is."""
    long = dataclasses.replace(stage(**told), windows=Windows(frames=4, carry=2))
    made = pipeline(long, words)
    short, longer = (videos(made([request(n, seed=5)]))[0] for n in (4, 8))
    np.testing.assert_array_equal(longer[:4], short)
    # The second window depends on what the first one left: other weights, other frames.
    free = dataclasses.replace(made, stage=dataclasses.replace(long, windows=Windows(frames=4)))
    assert np.any(videos(free([request(8, seed=5)]))[0][4:6] != longer[4:6])


def cascade(words):
    """4 frames of 8 x 8, then 8 of them, then of 16 x 16, noise on what is told of."""
    augment = Augment(at=0.1)
    stages = (
        stage(),
        stage(link=Link(select=Strided(stride=2), augment=augment)),
        stage(side=16, link=Link(factor=2)),
    )
    made = [pipeline(one, words, frames=8, seed=seed) for seed, one in enumerate(stages)]
    return Cascade(tuple(made))


def test_what_each_stage_is_asked(words):
    made = cascade(words)
    asked = made.asked([request(8, 16, fps=8.0), request(1, 16)])
    assert [(r[0].size, r[0].fps) for r in asked] == [
        ((4, 8, 8), 4.0), ((8, 8, 8), 8.0), ((8, 16, 16), 8.0)
    ]  # fmt: skip
    assert [r[1].size for r in asked] == [(1, 8, 8), (1, 8, 8), (1, 16, 16)]
    with pytest.raises(UserError, match="stage 2 of 2"):
        Cascade((made.stages[0], made.stages[0])).asked([request(8)])


@pytest.mark.slow
def test_a_cascade_is_its_stages_one_after_another(words):
    """Videos and a still, in turns and apart; the still passes the stage in time untouched."""
    made = cascade(words)
    crowd = [request(8, 16, seed=1), request(1, 16, seed=2), request(8, 16, seed=3)]
    asked = made.asked(crowd)
    base, time, space = made.stages
    first = videos(base(asked[0]))
    between = [first[1]]
    second = videos(time([asked[1][0], asked[1][2]], [first[0], first[2]]))
    between = [second[0], first[1], second[1]]
    wanted = videos(space(asked[2], between))
    for placement in (Turns(), Apart()):
        found = videos(dataclasses.replace(made, placement=placement)(crowd))
        for one, other in zip(found, wanted, strict=True):
            # To a unit of brightness: rows lie otherwise, so sums may round otherwise.
            np.testing.assert_allclose(one.astype(int), other, atol=1)
    assert [video.shape for video in found] == [(8, 16, 16, 3), (1, 16, 16, 3), (8, 16, 16, 3)]


@pytest.mark.slow
def test_stages_apart_exchange_files(words, tmp_path):
    made = cascade(words)
    base, time, _ = made.stages
    asked = made.asked([request(8, 16, seed=1)])
    gallery.write_all(base, asked[0], tmp_path / "base", arrays=True)
    ((said, video),) = gallery.read_all(tmp_path / "base")
    assert said == asked[0][0]
    np.testing.assert_array_equal(video, videos(base(asked[0]))[0])
    found = gallery.write_all(time, asked[1], tmp_path / "time", below=[video], arrays=True)
    ((_, made_there),) = gallery.read_all(tmp_path / "time")
    np.testing.assert_array_equal(made_there, videos(time(asked[1], [video]))[0])
    assert not found["failed"]
    (tmp_path / "base" / "index.json").rename(tmp_path / "index.json")
    with pytest.raises(UserError, match=r"no index\.json"):
        gallery.read_all(tmp_path / "base")


def test_a_stage_without_what_is_below_it_says_so(words):
    made = pipeline(stage(link=Link(factor=2)), words)
    with pytest.raises(UserError, match="given no video"):
        made([request()])
    with pytest.raises(UserError, match=r"\(4, 8, 8\); this stage needs \(4, 4, 4\)"):
        list(made([request()], [np.zeros((4, 8, 8, 3), np.uint8)]))
    with pytest.raises(UserError, match="no noise on what is below"):
        made.override(augmentation=0.1)


@pytest.mark.slow
def test_the_noise_on_what_is_below_can_be_swept(words):
    made = pipeline(stage(link=Link(factor=2, augment=Augment(at=0.0))), words)
    below = [np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)]
    clean, none, much = (
        videos(one([request()], below))[0]
        for one in (made, made.override(augmentation=0.0), made.override(augmentation=0.8))
    )
    np.testing.assert_array_equal(clean, none)
    assert np.any(clean != much)


def test_a_stage_that_adds_nothing_enlarges(words):
    """A network whose output is 0, of what a video has beyond the one below, leaves that one."""
    made = pipeline(stage(link=Link(factor=2, detail=0.1)), words)
    made = dataclasses.replace(made, params=jax.tree.map(jnp.zeros_like, made.params))
    below = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    found = videos(made([request()], [below]))[0]
    larger = jax.image.resize(below.astype(np.float32), (4, 8, 8, 3), "bilinear")
    np.testing.assert_allclose(found, larger, atol=0.51)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"link": Link(factor=2, detail=0.1), "sampler": HOLDS}, "no signal reads 'below'"),
        ({"patch": (2, 8, 8)}, "reads whole frames"),
        ({"patch": (1, 8, 9)}, "whole multiples of 2 x 2"),
        ({"link": Link(select=Ends())}, "neither Keep nor Reconstruct"),
    ],
)
def test_stages_that_do_not_fit_are_refused(changes, said):
    (found,) = dataclasses.replace(stage(), **changes).problems()
    assert said in found


@pytest.mark.parametrize("guide", [Threshold(), DynamicThreshold()])
def test_details_are_no_pixels_to_clip(guide):
    (found,) = stage(link=Link(factor=2, detail=0.1), guides=(guide,)).problems()
    assert type(guide).__name__ in found and "detail" in found
