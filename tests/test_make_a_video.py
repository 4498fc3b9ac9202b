"""Make-A-Video's assembly: what each network inherits, who is told what, words to embeddings."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.generated import SIDES, render, scene
from data_pipeline.text import Tokenizer
from experiments import make_a_video
from tests.laws.test_links import frames_of
from tests.nets.rows import random_like
from tests.workbench import call, make_data, vdm
from vdm_jax import gallery, pipeline
from vdm_jax.cascade import Cascade
from vdm_jax.config import UserError, build, problems
from vdm_jax.image_prompt import of_videos
from vdm_jax.pipeline import Pipeline
from vdm_jax.requests import Capacity, Desk, Job, Request
from vdm_jax.signals import drop_all
from vdm_jax.train.program import initialise
from vdm_jax.train.surgery import transplant

CONFIG = "--config=experiments/make_a_video.py:smoke-"
ORDER = ("prior", "base", "interp", "space1", "space2")


def config_of(name):
    return make_a_video.get_config(f"smoke-{name}")


def fresh(name):
    """Parameters as they are initialised."""
    run = build(config_of(name))
    return nn.unbox(jax.jit(lambda: initialise(run).params)())


def answer(name, params, raw):
    """The raw output of a stage for noised clips of 4, 1 and 3 frames."""
    stage = build(config_of(name)).stage
    batch = frames_of(((1, 4), (2, 1), (3, 3)), side=16, length=8)
    at = stage.process.level(jnp.full((1, 4, 1), 0.4))

    def asked(params):
        cond = stage.denoiser.apply(params, raw, batch, {}, method="condition")
        return stage.denoiser.apply(params, batch, at, cond)

    return np.asarray(jax.jit(asked)(params))


@pytest.mark.parametrize("name", [*make_a_video.STAGES, *make_a_video.PRIORS])
def test_every_variant_fits_together(name):
    config = make_a_video.get_config(name)
    assert problems(config) == [] and build(config).stage.problems() == []


def test_each_network_begins_as_the_one_that_it_inherits():
    """Law 4: the decoder of videos as that of images frame by frame, whatever the frame rate; the
    interpolation as the decoder, whatever it is told of the frames below."""
    rng = np.random.default_rng(0)
    raw = {
        "image": jnp.asarray(rng.normal(size=(1, 4, 16)), jnp.float32),
        "fps": jnp.asarray([[8.0, 0.0, 3.0, 0.0]]),
        "below": jnp.asarray(rng.normal(size=(1, 8, 16, 16, 4)), jnp.float32),
    }
    params = random_like(fresh("image"))
    outputs = [answer("image", params, raw)]
    for name in ("base", "interp"):
        rules = build(config_of(name)).inherit.rules
        params, report = transplant(fresh(name), jax.tree.map(np.asarray, params), rules)
        assert "left over" not in report and "new: params/backbone/conv" not in report
        outputs.append(answer(name, params, raw))
    assert np.abs(outputs[0]).max() > 0.1
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-4)
    np.testing.assert_allclose(outputs[2], outputs[1], atol=1e-4)
    # What is new is there: other weights in it, another output.
    other = answer("interp", random_like(params), raw)
    changed = raw | {"fps": raw["fps"] * 2, "below": -raw["below"]}
    assert np.abs(answer("interp", random_like(params), changed) - other).max() > 1e-3


@pytest.fixture(scope="module")
def words(manifest):
    return Tokenizer(str(manifest / "tokenizer.json"))


def maker(name, words, **changes):
    """A stage without weights: for what is said before it samples."""
    stage = dataclasses.replace(build(config_of(name)).stage, **changes)
    room = Capacity(rows=1, tokens=16, text_tokens=64, segments=4)
    return Pipeline(stage=stage, params={}, tokenizer=words, capacity=room)


def request(frames, side, **more):
    return Request(prompt="a red circle", frames=frames, height=side, width=side, **more)


def test_what_each_stage_is_asked(words):
    made = Cascade(tuple(maker(name, words) for name in ORDER))
    asked = made.asked([request(7, 96, fps=14.0), request(1, 96)])
    assert [one[0].size for one in asked] == [
        (1, 16, 16), (4, 16, 16), (7, 16, 16), (7, 32, 32), (7, 96, 96)
    ]  # fmt: skip
    assert asked[1][0].fps == pytest.approx(8) and asked[2][0].fps == 14
    assert [one[1].frames for one in asked] == [1] * 5


def test_at_full_size_16_frames_make_76():
    sizes = []
    size = (76, 768, 768)
    for name in ("space2", "space1", "interp"):
        size = build(make_a_video.get_config(name)).stage.link.size(*size)
        sizes.append(size)
    assert sizes == [(76, 256, 256), (76, 64, 64), (16, 64, 64)]


def test_stages_that_do_not_follow_each_other_are_refused(words, tmp_path):
    prior, base, space1 = (maker(name, words) for name in ("prior", "base", "space1"))
    with pytest.raises(UserError, match="stage 2 of 2 is told of a video"):
        Cascade((prior, space1)).asked([request(4, 32)])
    with pytest.raises(UserError, match="stage 2 of 2 is told of none"):
        Cascade((base, prior)).asked([request(1, 16)])
    image = base.stage.image
    small = dataclasses.replace(image.encoder, module=image.encoder.module.clone(depth=1))
    other = maker("base", words, image=dataclasses.replace(image, encoder=small))
    with pytest.raises(UserError, match="by another encoder than the one before"):
        Cascade((prior, other)).asked([request(4, 16)])
    with pytest.raises(UserError, match="a prior makes embeddings"):
        gallery.write_all(prior, [request(1, 16)], tmp_path)
    with pytest.raises(UserError, match="given no video"):
        base([request(4, 16)])


def test_a_folder_without_clip_is_said_before_anything_compiles(manifest):
    config = config_of("base")
    config.knobs.manifest, config.knobs.clip = str(manifest), "nowhere"
    (found,) = build(config).problems(1)
    assert "'nowhere' holds no CLIP" in found


def test_the_prior_has_its_data_encoded_first(manifest):
    config = config_of("prior")
    config.knobs.manifest = str(manifest)
    (found,) = build(config).problems(1)
    assert "the data are pixels; encode them first" in found


def test_what_a_negative_prompt_does_to_a_stage_that_reads_no_text(words):
    """Nothing: guidance still leaves the embedding out."""
    for name, negated in (("base", False), ("prior", True)):
        made = maker(name, words)
        desk = Desk(stage=made.stage, room=made.capacity, tokenizer=words, features={})
        image = np.arange(16.0) if name == "base" else None
        size = (4, 16) if name == "base" else (1, 16)
        arrays = desk([[Job(request=request(*size, negative="a blue ring"), image=image)]])
        assert arrays["negated"][0, 0] == negated
        if name == "base":
            np.testing.assert_array_equal(arrays["image"][0, 0], image)
            batch = frames_of(((1, 4),), side=16)
            assert set(drop_all(made.stage.denoiser.signals, batch)) == {"image"}


@pytest.mark.slow
def test_the_whole_cascade_trains_and_samples(tmp_path):
    """From clips to a video of 7 x 96 x 96, by the commands of the header."""
    pixels = make_data(tmp_path)
    told = json.loads(
        vdm("encode", f"{CONFIG}embed", f"--config.knobs.manifest={pixels}", "--views=2",
            f"--out={tmp_path / 'embeddings'}", "--json").stdout
    )  # fmt: skip
    assert told["clips"] == 80 and not told["skipped"]
    origin = {"base": "image", "interp": "base"}
    for name in ("prior", "image", *ORDER[1:]):
        data = tmp_path / "embeddings" if name == "prior" else pixels
        more = [f"--init={tmp_path / origin[name]}"] if name in origin else []
        # Validation asks the encoder, too.
        more.append(f"--config.validate_every={2 if name == 'interp' else 0}")
        vdm("train", f"{CONFIG}{name}", f"--config.knobs.manifest={data}", "--steps=2",
            f"--workdir={tmp_path / name}", *more)  # fmt: skip
    lines = (tmp_path / "interp" / "metrics.jsonl").read_text().splitlines()
    (loss,) = [
        one["validation/loss"] for line in lines if "validation/loss" in (one := json.loads(line))
    ]
    assert np.isfinite(loss)
    runs = [tmp_path / name for name in ORDER]
    done = call("sample", *runs, "--prompt=a red circle", "--frames=7", "--height=96", "--width=96",
                "--fps=14", f"--out={tmp_path / 'out'}", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["files"]) == 1
    alone = call("sample", runs[1], "--prompt=a red circle", f"--out={tmp_path / 'alone'}")
    assert alone.returncode == 2 and "given no video" in alone.stderr


@pytest.mark.slow
def test_the_prior_learns_what_words_look_like(tmp_path):
    """Of captions whose combinations it has not seen: what it makes is nearer to the embedding of
    the caption's own clip than to those of other captions' clips."""
    pixels = make_data(tmp_path, clips=1000, holdout=0)
    embeddings, run = tmp_path / "embeddings", tmp_path / "prior"
    vdm("encode", f"{CONFIG}embed", f"--config.knobs.manifest={pixels}", "--views=2",
        f"--out={embeddings}")  # fmt: skip
    vdm("train", f"{CONFIG}prior", f"--config.knobs.manifest={embeddings}", f"--workdir={run}",
        "--config.knobs.steps=400", "--config.validate_every=0")  # fmt: skip
    made = pipeline.load(run)
    scenes = [scene(1, index, holdout=0, unseen=True) for index in range(64)]
    side = SIDES[0]
    scenes = [dataclasses.replace(one, height=side, width=side, radius=6.0) for one in scenes]
    true = np.stack(of_videos(made.stage.codec, [render(one, 1) for one in scenes]))
    asked = [
        Request(prompt=one.caption, frames=1, height=side, width=side, seed=index)
        for index, one in enumerate(scenes)
    ]
    found = np.stack([vector.reshape(-1) for _, vector in sorted(made(asked), key=lambda x: x[0])])
    cosine = found @ true.T / true.shape[-1]
    own = np.diag(cosine)
    others = (cosine.sum(1) - own) / (len(own) - 1)
    assert own.mean() > 0.9 and (own - others).mean() > 0.15
    assert (cosine < own[:, None]).sum(1).mean() > 0.85 * (len(own) - 1)
