"""What a run leaves to look at: held-out clips restored, and a picture that says whose they are."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
from flax import linen as nn

from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.rows import unpack
from data_pipeline.sizes import Native
from vdm_jax.batch import Packed
from vdm_jax.denoiser import Denoiser
from vdm_jax.diffusion.parameterization import X0
from vdm_jax.diffusion.prior import Prior
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.diffusion.schedule import Straight
from vdm_jax.stage import Stage
from vdm_jax.train import outcome
from vdm_jax.train.reconstruct import Reconstruction, reconstruct

PATCH = (2, 4, 4)


class Half(nn.Module):
    """A network that says half of what it sees."""

    @nn.compact
    def __call__(self, batch: Packed, time, cond, *, train: bool):
        return 0.5 * batch.x


@dataclasses.dataclass
class Settings:
    """What `reconstruct` asks of a run."""

    stage: Stage
    seed: int = 0


@pytest.fixture(scope="module")
def held(manifest):
    """(a run whose model is known, its held-out batch)."""
    data = PackedVideo(
        sources=(Source(manifest=str(manifest)),), patch=PATCH, tokens=512, text_tokens=64,
        segments=16, rows=2, seed=0, size=Native(), holdout=0.3, block=64,
    )  # fmt: skip
    stage = Stage(
        denoiser=Denoiser(backbone=Half(), parameterization=X0()),
        process=Process(schedule=Straight(), path="linear"), prior=Prior(), sampler=Sampler(),
        patch=PATCH,
    )  # fmt: skip
    return Settings(stage), data.validation(2).arrays


def test_what_is_restored_is_what_the_model_says_of_the_noised_clip(held):
    run, arrays = held
    found = reconstruct(run, {}, arrays, times=(0.0, 0.5), most=3)
    rows = [{name: leaf[0, row] for name, leaf in arrays.items()} for row in range(2)]
    clips = [video for row in rows for video in unpack(row, PATCH) if len(video) > 1]
    assert len(found) == 3 <= len(clips)
    for one, clip in zip(found, clips, strict=False):
        assert np.array_equal(one.clip, clip)
        (t, clean, half), (later, noised, estimate) = one.tries
        assert (t, later) == (0.0, 0.5) and np.array_equal(clean, clip)
        # Half of a value in [-1, 1] is 127.5 plus half of its distance from there.
        assert np.abs(half - (clip / 2 + 63.75)).max() <= 1
        assert np.abs(noised.astype(float) - clip).mean() > 20
        inside = (noised > 0) & (noised < 255)  # elsewhere the picture was clipped
        # At t = 1/2 the network is shown x_t / sqrt(1/4 + 1/4), of unit variance.
        want = 127.5 + (noised - 127.5) / 2 * np.sqrt(2)
        assert np.abs(estimate - want)[inside].max() <= 1.3
    again = reconstruct(run, {}, arrays, times=(0.5,), most=3)
    assert np.array_equal(again[0].tries[0][1], found[0].tries[1][1])


def test_the_picture_holds_everything(tmp_path):
    """A strip of a colour of its own for each part, found in the picture."""

    def plain(colour, frames=4):
        return np.full((frames, 8, 12, 3), colour, np.uint8)

    rebuilt = Reconstruction(plain((200, 0, 0)), ((0.5, plain((0, 200, 0)), plain((0, 0, 200))),))
    strips = [("a prompt", outcome._strip(plain((200, 0, 200))))]
    strips.append((outcome._legend(rebuilt), outcome._abreast(rebuilt)))
    sizes = []
    for credit in ("", "(c) someone"):
        outcome.draw(tmp_path / "loss.png", [(1, 2.0), (2, 1.0)], strips, credit)
        picture = np.asarray(PIL.Image.open(tmp_path / "loss.png").convert("RGB")).astype(int)
        for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 0, 200)):
            assert (np.abs(picture - colour).max(axis=-1) == 0).sum() > 500
        sizes.append((picture < 100).all(axis=-1)[-25:].sum())
    assert sizes[1] > sizes[0] == 0
    assert "t = 0.5" in outcome._legend(rebuilt)


def test_an_image_is_drawn_no_larger_than_a_video():
    film, image = (np.zeros((n, 8, 10, 3), np.uint8) for n in (9, 1))
    assert outcome._strip(image).shape == outcome._strip(film).shape == (8, 66, 3)
    assert (outcome._strip(image)[:, 11:] == 255).all()
