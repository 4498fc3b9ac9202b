"""Training on latents that were made beforehand: rows hold them, and steps draw from them."""

import dataclasses
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from scipy import stats

from data_pipeline import keys, latents, manifest, rows
from data_pipeline.clips import LogFrames
from data_pipeline.errors import DataError
from data_pipeline.loaders import Source
from data_pipeline.sizes import Area
from tests.rows import example, pack
from tests.test_features import CLIPS, DRAWN, Pool, clips, contents, encoding, loader
from tests.train.test_step import make_stage
from tests.workbench import SMOKE, vdm
from vdm_jax.cli import configs
from vdm_jax.codecs import Pixels
from vdm_jax.config import build
from vdm_jax.pipeline import Pipeline
from vdm_jax.requests import Capacity, Request
from vdm_jax.train.feed import to_carrier
from vdm_jax.train.outcome import loss_curve

__all__ = ["clips"]  # a fixture
PATCH = (2, 2, 2)


@pytest.fixture(scope="module")
def made(clips, tmp_path_factory):
    """Two views of each clip, as moments."""
    folder = tmp_path_factory.mktemp("latents")
    encoding(clips, Pool(), views=2, **DRAWN)(str(folder))
    return folder


def packed(folder, **changes):
    source = Source(manifest=str(folder))
    settings = {"sources": (source,), "patch": PATCH, "tokens": 1024, "cache": str(folder / "p")}
    return loader(folder, **settings | changes)


@pytest.mark.parametrize("law", [{}, {"duration": LogFrames(low=1, high=3)}], ids=["whole", "cut"])
def test_rows_hold_what_the_records_hold(made, law):
    """Cut in time, latents keep their beginning: a causal codec's first stands alone."""
    kept = contents(made)
    names = {keys.identity(name)[0]: name for name in kept}
    seen, shorter = set(), 0
    for _, batch in zip(range(24), packed(made, **law).batches(), strict=False):
        assert batch.arrays["moments"].dtype == np.float16 and not batch.bad
        for row in range(2):
            arrays = {name: leaf[0, row] for name, leaf in batch.arrays.items()}
            found = rows.unpack(arrays, PATCH, "moments")
            ids = [int(high) << 32 | int(low) for high, low in arrays["id"][arrays["valid"]]]
            for identity, video in zip(ids, found, strict=True):
                one = kept[names[identity]]
                whole = np.concatenate([one["mean"], one["logvar"]], axis=-1)
                t, h, w, _ = video.shape
                top, left = (whole.shape[1] - h) // 2, (whole.shape[2] - w) // 2
                assert np.array_equal(video, whole[:t, top : top + h, left : left + w])
                assert max(whole.shape[1] - h, whole.shape[2] - w) < 2  # less than a patch
                shorter += t < len(whole)
                seen.add(identity)
    assert len(seen) == 2 * CLIPS
    assert (shorter > 0) == bool(law)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_record_of_what_is_no_number_keeps_its_slot_masked(number, made, tmp_path):
    """Written by somebody else, under the key and hash that the manifest names."""
    folder = shutil.copytree(made, tmp_path / "copy")
    found = manifest.read(folder)
    kept, said = latents.Latents.of(found), found.table.to_pylist()
    arrays = kept.read(0)
    # Not by `pack`, which refuses it.
    about = {latents.ABOUT: json.dumps(dataclasses.asdict(kept.key) | {"view": {}})}
    spoilt = {name: np.full_like(array, number) for name, array in arrays.items()}
    record = safetensors.numpy.save(spoilt, metadata=about)
    latents.write_records(folder / "foreign.array_record", [record])
    said[0] |= {
        "uri": "record://foreign.array_record#0", "sha256": hashlib.sha256(record).hexdigest()
    }  # fmt: skip
    manifest.write(folder, manifest.table_of(said), found.root, found.latents)
    bad, batches = set(), packed(folder).batches()
    for _ in range(24):
        batch = next(batches)
        assert np.isfinite(batch.arrays["moments"]).all()
        bad |= {(name, why) for name, _, why in batch.bad}
    batches.close()
    assert bad == {(said[0]["clip_id"], "not_finite")}


def test_views_of_a_clip_are_held_out_together(made):
    data = packed(made, holdout=0.4)
    names = manifest.read(made).table["clip_id"].to_pylist()
    train, held = ({names[i].partition("@")[0] for i in part[0]} for part in data._split)
    assert train and held and not train & held
    assert data.held_out == 2 * len(held)


def moments(mean, logvar, **sizes):
    """Rows of (1, 2, 2) patches whose every cell has these moments, with 3 channels."""
    members = [[example(1, (2, 4, 4), ()), example(2, (1, 3, 3), ())], [example(1, (2, 4, 4), ())]]
    arrays = pack(members, tokens=48, text=4, segments=3)
    del arrays["patches"]
    cell = np.repeat(np.float16([mean, logvar]), 3)
    return arrays | {"moments": np.tile(cell, (2, 48, 4))}


def carrier(arrays, seed=None):
    return to_carrier(jax.tree.map(jnp.asarray, arrays), Pool(), (1, 2, 2), seed)[0]


def test_steps_draw_from_the_posterior():
    arrays = moments(0.5, 2 * np.log(0.25))
    drawn, mean = carrier(arrays, 0), carrier(arrays)
    inside = arrays["segment"] > 0
    assert np.all(np.asarray(mean.x)[inside] == 0.5) and not np.asarray(drawn.x)[~inside].any()
    noise = (np.asarray(drawn.x)[inside] - 0.5) / 0.25
    assert stats.kstest(noise[: 32 + 9].reshape(-1), "norm").pvalue > 1e-3
    # One example has one draw, wherever it is; its next visit and another seed have others.
    one, other = (np.asarray(drawn.x)[row, :32] for row in (0, 1))
    assert np.array_equal(one, other)
    visit = carrier(arrays | {"visit": arrays["visit"] + 1}, 0)
    for again in (visit, carrier(arrays, 1)):
        assert not np.any(np.asarray(again.x)[0, :32] == one)


def test_each_channel_has_its_own_moments():
    """A patch of 4 cells: mean r g b and then log variance r g b in each."""
    arrays = moments(0, 0)
    arrays["moments"][:] = np.tile(np.float16([1, 2, 3, -90, -90, -90]), 4)
    x = np.asarray(carrier(arrays, 0).x)
    assert np.array_equal(x[0, 0], np.tile([1, 2, 3], 4))


def test_what_cannot_be_asked_of_latents_is_said(made, clips):
    both = (Source(manifest=str(made)), Source(manifest=str(clips / "manifest")))
    for changes, said in (
        ({"size": Area(low=64.0, high=256.0)}, "size is a law"),
        ({"fps": 4.0}, "fps is 4.0"),
        ({"tokens": 4}, "more tokens than a row"),
        ({"sources": both}, "several encoders, or clips too"),
    ):
        found = packed(made, **changes).problems()
        assert len(found) == 1 and said in found[0]
        with pytest.raises(DataError):
            packed(made, **changes).batches()


def config_of(folder):
    from vdm_jax.cli import configs

    return configs.load([SMOKE, f"--config.knobs.manifest={folder}"])


def mistake(folder, **changes):
    """What is wrong with a smoke run on a manifest, its codec changed."""
    config = configs.load([SMOKE, f"--config.knobs.manifest={folder}"])
    for name, value in changes.items():
        config.stage.codec[name] = value
    config.stage.denoiser.backbone.patch_features = 32 * config.stage.codec.channels
    (found,) = build(config).problems(1)
    return found


def test_latents_of_another_codec_are_refused(made, clips):
    """Before anything is compiled, in a sentence."""
    assert "by another encoder than stage.codec" in mistake(made)
    assert "have 3 channels, stage.codec has 4" in mistake(made, channels=4)
    said = mistake(clips / "manifest", stride=(1, 2, 2))
    assert "the data are pixels; encode them first" in said


@dataclasses.dataclass(frozen=True, kw_only=True)
class Enlarged(Pool):
    """`Pool`, and cells as large as they were."""

    def decode(self, params, latent):
        for axis, times in enumerate(self.stride):
            latent = np.repeat(latent, times, axis=axis)
        return np.asarray(Pixels().decode({}, latent / params["scale"]))


def test_videos_are_sampled_through_a_codec(clips):
    """As long as they were asked for, whatever pads time on the latent grid."""
    stage = dataclasses.replace(make_stage(), codec=Enlarged(stride=(2, 2, 2)))
    tokenizer = loader(clips).tokenizer
    room = Capacity(rows=1, tokens=96, text_tokens=8, segments=4)
    arrays = pack([[example(1, (1, 2, 2), (5,))]], tokens=64, text=8, segments=2)
    batch, raw = to_carrier(jax.tree.map(jnp.asarray, arrays), Pixels(), stage.patch)
    at = stage.process.level(jnp.full((1, 2, 1), 0.5))
    start = jax.jit(lambda: stage.denoiser.init(jax.random.key(0), batch, at, raw, method="start"))
    pipeline = Pipeline(stage, jax.tree.map(jnp.asarray, start()), tokenizer, room)
    lengths = (1, 5, 8)
    made = dict(pipeline([Request(prompt="", frames=n, height=8, width=12) for n in lengths]))
    for index, frames in enumerate(lengths):
        assert made[index].shape == (frames, 8, 12, 3) and made[index].dtype == np.uint8


def test_latents_of_pixels_are_trained_on_as_pixels(clips, tmp_path):
    """The same rows, texts and keys, and the same values but for float16."""
    encoding(clips, Pixels(), patch=PATCH)(str(tmp_path))
    streams = loader(clips, patch=PATCH, tokens=4096), packed(tmp_path, tokens=4096)
    for _, pixels, encoded in zip(range(4), *(data.batches() for data in streams), strict=False):
        same = set(pixels.arrays) - {"patches"}
        assert set(encoded.arrays) == same | {"latent"} and not pixels.bad
        for name in same:
            assert np.array_equal(pixels.arrays[name], encoded.arrays[name]), name
        one, other = (
            to_carrier({n: jnp.asarray(x[0]) for n, x in batch.arrays.items()}, Pixels(), PATCH, 0)
            for batch in (pixels, encoded)
        )
        assert np.allclose(one[0].x, other[0].x, atol=5e-4)


@pytest.mark.slow
def test_a_run_on_latents(clips, tmp_path):
    """All of a run: steps, validation, pictures."""
    encoding(clips, Pixels(), patch=(2, 4, 4), tokens=256)(str(tmp_path / "out"))
    run = (SMOKE, f"--config.knobs.manifest={tmp_path / 'out'}", f"--workdir={tmp_path / 'run'}")
    vdm("train", *run, "--steps=2", "--config.validate_every=2")
    losses = [loss for _, loss in loss_curve(tmp_path / "run")]
    assert len(losses) == 2 and np.all(np.isfinite(losses))
