"""The step: one division for any split into microbatches and rows, sharded as on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rows import FEATURES, example, pack, steps
from vdm_jax.denoiser import Denoiser
from vdm_jax.diffusion.guides import Guidance
from vdm_jax.diffusion.parameterization import Flow
from vdm_jax.diffusion.prior import Prior
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.diffusion.schedule import Straight
from vdm_jax.diffusion.times import Uniform
from vdm_jax.diffusion.weights import Uniform as Plain
from vdm_jax.nets.dit import DiT
from vdm_jax.nets.encoders import TextEmbedding
from vdm_jax.objectives.denoise import Denoise
from vdm_jax.signals import PackedText, Signal
from vdm_jax.stage import Stage
from vdm_jax.train import state as states
from vdm_jax.train import step
from vdm_jax.train.feed import to_carrier
from vdm_jax.train.optim import AdamW, Optimizer
from vdm_jax.train.step import make_step

SIZES = {"tokens": 24, "text": 8, "segments": 3}
CLIPS = [
    example(1, (2, 2, 2), (5, 6)),
    example(2, (1, 2, 3), (7,)),
    example(3, (3, 1, 3), (8, 9, 10)),
    example(4, (1, 3, 3), (5,)),
]


def make_stage():
    text = PackedText(encoder=TextEmbedding(vocab=16, width=8, max_length=4), max_length=4)
    backbone = DiT(width=16, depth=2, heads=2, patch_features=FEATURES, cross=("text",))
    signal = Signal(key="text", slot="tokens.text", embed=text, drop=0.3)
    return Stage(
        denoiser=Denoiser(backbone=backbone, parameterization=Flow(), signals=(signal,)),
        process=Process(schedule=Straight(), path="linear"),
        prior=Prior(), sampler=Sampler(steps=2, guides=(Guidance(),)), patch=(1, 2, 2),
    )  # fmt: skip


STAGE = make_stage()
OBJECTIVE = Denoise(times=Uniform(), weight=Plain())
TRANSFORM = Optimizer(rules=((".*", AdamW(learning_rate=1e-2)),)).transform()
STEP = jax.jit(make_step(STAGE, OBJECTIVE, TRANSFORM, seed=0))


@pytest.fixture(scope="module")
def state():
    """After one update, so that the output layer is not zero any more."""
    arrays = pack([CLIPS[:2], CLIPS[2:]], **SIZES)
    batch, raw = to_carrier(jax.tree.map(jnp.asarray, arrays), STAGE.codec, STAGE.patch)
    at = STAGE.process.level(jnp.full((2, 3, 1), 0.5))
    params = jax.jit(lambda: STAGE.denoiser.init(jax.random.key(0), batch, at, raw, method="start"))
    fresh = states.create(jax.tree.map(lambda x: x, unboxed(params())), TRANSFORM, (0.9,))
    return STEP(fresh, steps(arrays))[0]


def unboxed(tree):
    from flax.core import meta

    return meta.unbox(tree)


def close(one, other, atol=2e-5):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def test_microbatches_equal_one_batch(state):
    # One example and three: a mean of means would weigh the one threefold.
    whole, metrics = STEP(state, steps(pack([CLIPS[:1], CLIPS[1:]], **SIZES)))
    parts, other = STEP(state, steps(pack([CLIPS[:1]], **SIZES), pack([CLIPS[1:]], **SIZES)))
    assert float(metrics["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(other["grad_norm"]), rel=1e-4)
    close(whole.ema, parts.ema)


def test_packing_and_order_do_not_matter(state):
    """Law 2 for the loss and its gradient: the same four clips, packed otherwise."""
    _, one = STEP(state, steps(pack([CLIPS[:2], CLIPS[2:]], **SIZES)))
    _, other = STEP(state, steps(pack([[CLIPS[3], CLIPS[1]], [CLIPS[2], CLIPS[0]]], **SIZES)))
    assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
    assert float(one["grad_norm"]) == pytest.approx(float(other["grad_norm"]), rel=1e-4)


def test_the_loss_is_the_mean_over_examples(state):
    """An example alone gives its own loss; together they give the mean, whatever their sizes."""
    single = [float(STEP(state, steps(pack([[c], []], **SIZES)))[1]["loss"]) for c in CLIPS]
    _, together = STEP(state, steps(pack([CLIPS[:2], CLIPS[2:]], **SIZES)))
    assert float(together["loss"]) == pytest.approx(np.mean(single), rel=1e-5)


def test_padding_alone_is_a_finite_step_with_no_loss(state):
    new, metrics = STEP(state, steps(pack([[], []], **SIZES)))
    assert float(metrics["loss"]) == 0 and float(metrics["grad_norm"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new.params))


def test_a_bad_clip_changes_nothing_for_the_others(state):
    """Masked in its slot: the loss of the others is what it is without that clip's weight."""
    arrays = pack([CLIPS[:2], CLIPS[2:]], **SIZES)
    arrays["valid"][0, 1] = False
    arrays["patches"][0, arrays["segment"][0] == 2] = 0
    _, masked = STEP(state, steps(arrays))
    single = [
        float(STEP(state, steps(pack([[CLIPS[i]], []], **SIZES)))[1]["loss"]) for i in (0, 2, 3)
    ]
    assert float(masked["loss"]) == pytest.approx(np.mean(single), rel=1e-5)


def test_what_is_said_of_microbatches():
    """Maxima are maxima, means means, and all else adds up."""
    values = jnp.array([1.0, 5.0, 3.0])
    said = [float(step._over_microbatches(n, values)) for n in ("max_logit", "mean_bits", "tokens")]
    assert said == [5, 3, 9]


def test_no_large_constant_in_the_lowered_step(state):
    """Law 8: weights and tables are arguments, not constants of the program."""
    text = (
        jax.jit(make_step(STAGE, OBJECTIVE, TRANSFORM, seed=0))
        .lower(state, steps(pack([CLIPS[:2], CLIPS[2:]], **SIZES)))
        .as_text()
    )
    longest = max((len(line) for line in text.splitlines() if "constant" in line), default=0)
    assert longest < 2**20
