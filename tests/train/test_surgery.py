"""What a new model inherits: rules are kept to the letter; inflation is the identity (law 4)."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from tests.nets.rows import quick, random_like
from tests.nets.test_unet3d import image, rows, unet
from tests.workbench import vdm
from vdm_jax import pipeline
from vdm_jax.cond import Cond
from vdm_jax.config import UserError
from vdm_jax.nets.unet3d import UNet3D
from vdm_jax.train.surgery import LENIENT, Copy, Fitting, Fresh, Wider, transplant

INFLATE = ((r"/after_[a-z_]+_\d+_\d+/", Fresh()), (".*", Copy()))


def test_without_rules_what_fits_is_taken_and_the_rest_is_said():
    target = {"a": jnp.zeros(2), "b": jnp.zeros((2, 2)), "c": jnp.zeros(1)}
    source = {"a": np.ones(2), "b": np.ones((3, 3)), "d": np.ones(1)}
    params, report = transplant(target, source, LENIENT)
    assert float(params["a"].sum()) == 2 and float(params["b"].sum()) == 0
    assert report.splitlines() == [
        "taken: 1 of 3 parameters", "new: c", "other shape: b (3, 3) -> (2, 2)", "left over: d",
    ]  # fmt: skip
    with pytest.raises(UserError, match="not one parameter"):
        transplant({"a": jnp.zeros(2)}, {"z": np.zeros(2)}, LENIENT)


def test_the_first_rule_that_matches_decides():
    target = {"in": {"kernel": jnp.ones((3, 5, 2))}, "time": jnp.full(2, 7.0), "new": jnp.zeros(1)}
    source = {
        "in": {"kernel": np.arange(18.0).reshape(3, 3, 2)}, "clock": np.ones(2), "old": np.ones(4),
    }  # fmt: skip
    rules = (("new", Fresh()), ("in/kernel", Wider()), (".*", Copy(here="^time$", there="clock")))
    params, report = transplant(target, source, rules)
    kernel = np.asarray(params["in"]["kernel"])
    np.testing.assert_array_equal(kernel[:, :3], source["in"]["kernel"])
    assert not kernel[:, 3:].any() and float(params["time"][0]) == 1
    assert report.splitlines() == [
        "taken: 2 of 3 parameters", "wider: in/kernel 3 -> 5 inputs", "new: new", "left over: old",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "rules, said",
    [
        (((("a"), Copy()),), "no rule matches b"),
        (((".*", Copy()),), "b has a shape of (2,), but (3,) there"),
        ((("b", Fresh()), ("a", Copy(here="a", there="z"))), "a is not there as z"),
        (((".*", Wider()),), "b has a shape of (2,), which does not widen (3,)"),
        ((("b|a", Fresh()), ("a", Copy())), "rule 1 ('a') decides no parameter"),
    ],
)
def test_a_rule_that_cannot_be_kept_is_a_mistake(rules, said):
    target, source = {"a": jnp.zeros(1), "b": jnp.zeros(2)}, {"a": np.ones(1), "b": np.ones(3)}
    with pytest.raises(UserError) as caught:
        transplant(target, source, rules)
    assert said in str(caught.value)


def test_one_rule_may_be_lenient_among_strict_ones():
    target, source = {"a": jnp.zeros(1), "b": jnp.zeros(2)}, {"a": np.ones(1)}
    params, _ = transplant(target, source, (("b", Fitting()), (".*", Copy())))
    assert float(params["a"][0]) == 1 and not params["b"].any()


INFLATED = ("attention", "pseudo3d")


def test_an_inflated_unet_is_the_image_unet_frame_by_frame():
    """Law 4: with more inputs, which it begins by not looking at."""
    batch, time, cond = rows(((0, 3), (1, 1), (2, 2)))
    pictures = UNet3D(image=image(), cross=("text",))
    shapes = meta.unbox(jax.eval_shape(pictures.init, jax.random.key(0), batch, time, cond))
    source = {"params": random_like(shapes["params"])}
    extra = jnp.asarray(np.random.default_rng(0).normal(size=(*batch.x.shape[:-1], 2)), jnp.float32)
    shown = cond.replace(channels=extra)
    film = unet(*INFLATED)
    fresh = meta.unbox(quick(film.init)(jax.random.key(1), batch, time, shown))
    rules = ((r"^params/conv_in/kernel$", Wider()), *INFLATE)
    params, report = transplant(fresh, source, rules)
    assert "wider: params/conv_in/kernel 3 -> 5 inputs" in report
    assert "left over" not in report and "other shape" not in report
    new = [line for line in report.splitlines() if line.startswith("new: ")]
    assert len(new) > len(INFLATED) and all("/after_" in line for line in new)
    want = quick(pictures.apply)(source, batch, time, cond)
    found = quick(film.apply)(params, batch, time, shown)
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(found, want, atol=1e-5)


CONFIGS = """
from data_pipeline.clips import Whole
from experiments import vdm_kingma
from vdm_jax.config import spec
from vdm_jax.nets import temporal
from vdm_jax.nets.clip import HeadCount
from vdm_jax.train.optim import Warmup
from vdm_jax.train.surgery import Copy, Fresh, Inherit

RULES = ((r"/after_[a-z_]+_\\d+_\\d+/", spec(Fresh)), (".*", spec(Copy)))


def get_config(variant):
    made = vdm_kingma.get_config("smoke")
    made.validate_every, made.knobs.learning_rate = 0, 0.01
    made.optimizer.schedule = spec(Warmup)
    if variant == "film":
        made.data.duration, made.data.tokens = spec(Whole), 16
        part = spec(temporal.Attention, heads=spec(HeadCount, count=2))
        parts = (spec(temporal.Temporal, part=part, at="after_res"),)
        made.stage.denoiser.backbone.temporal = parts
        made.optimizer.schedule = spec(Warmup, steps=10**9)  # the first step moves nothing
        made.inherit = spec(Inherit, rules=RULES)
    return made
"""


@pytest.mark.slow
def test_a_run_inherits_from_a_run_of_images(tmp_path, manifest):
    """Law 4 through run directories, a start that was killed before its first checkpoint included:
    what the film model makes of a clip at first is what the image model makes of its frames."""
    file = tmp_path / "inflate.py"
    file.write_text(CONFIGS)

    temporal = "new: params/backbone/down_0/after_res_0_0/"

    def run(variant, *more):
        words = (f"--config={file}:{variant}", f"--config.knobs.manifest={manifest}")
        return vdm("train", *words, f"--workdir={tmp_path / variant}", *more)

    run("image", "--steps=4")
    done = run("film", f"--init={tmp_path / 'image'}", "--steps=1")
    assert temporal in done.stderr and "left over" not in done.stderr
    shutil.rmtree(tmp_path / "film" / "checkpoints")
    again = run("film", "--steps=1")  # where it began is in its config
    assert temporal in again.stderr
    still, film = (pipeline.load(tmp_path / name) for name in ("image", "film"))
    made = [np.asarray(answer(run)) for run in (still, film)]
    assert np.abs(made[0]).max() > 1e-3
    np.testing.assert_allclose(made[1], made[0], atol=1e-5)


def answer(run):
    """The raw output for noised clips of 3 and of 2 frames."""
    batch, _, _ = rows(((0, 3), (1, 2)))
    at = run.stage.learnt_process(run.params).level(jnp.full((1, 2, 1), 0.4))
    denoiser = run.stage.denoiser
    return jax.jit(lambda params: denoiser.apply(params, batch, at, Cond()))(run.params)
