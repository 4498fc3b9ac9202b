"""Operations against closed forms, brute force over tokens, and the program itself."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.blocks import EXAMPLE
from experiments import imagen_video, sora
from vdm_jax.config import UserError, build
from vdm_jax.kernels import attend, everywhere
from vdm_jax.nets.remat import REMAT
from vdm_jax.plan import work
from vdm_jax.plan.machine import evaluations, make_plan
from vdm_jax.plan.mix import STAND_IN, Mix, arrays, mix_of
from vdm_jax.plan.products import kernels, products
from vdm_jax.plan.topology import LOCAL, topology
from vdm_jax.train.program import make_program


def flagship(**backbone):
    config = sora.get_config("smoke")
    config.knobs.manifest = "nowhere"
    for name, value in backbone.items():
        config.stage.denoiser.backbone[name] = value
    return build(config)


def rows_of(*rows):
    """Rows of one-frame examples of so many tokens, with as many words as tokens / 8."""
    made = []
    for lengths in rows:
        row = np.zeros(len(lengths), EXAMPLE)
        row["tokens"] = lengths
        row["grid"] = [(1, 1, n) for n in lengths]
        row["words"] = [max(n // 8, 1) for n in lengths]
        made.append(row)
    return Mix(tuple(made), "by hand")


def test_products_of_a_scan_of_layers():
    def f(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    x, w = jnp.zeros((5, 16)), jnp.zeros((7, 16, 16))
    once = 2 * 5 * 16 * 16 * 7
    assert products(jax.make_jaxpr(f)(x, w)) == once
    # Backwards two products for each, one of them of the input.
    assert products(jax.make_jaxpr(jax.grad(f, (0, 1)))(x, w)) == 3 * once


def test_products_of_a_convolution_and_of_branches():
    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert products(jax.make_jaxpr(convolve)(image, kernel)) == 2 * (2 * 8 * 8 * 5) * 27

    def branch(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x, x)

    assert products(jax.make_jaxpr(branch)(jnp.zeros((4, 4)))) == 2 * 64


def test_products_of_a_program_over_devices():
    """As many as on one: what every device does counts once for each."""
    mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))

    def f(x, w):
        specs = dict(in_specs=(jax.P("a"), jax.P()), out_specs=jax.P("a"))
        return jax.shard_map(lambda x, w: x @ w, mesh=mesh, **specs)(x, w)

    assert products(jax.make_jaxpr(f)(jnp.zeros((16, 4)), jnp.zeros((4, 4)))) == 2 * 16 * 16


def test_blocks_by_brute_force():
    """Pairs and blocks of a row of three examples and padding, token by token."""
    run = flagship(registers=0)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, tokens=512))
    mix = rows_of([100, 130, 200])
    product, found = work.attention(run, mix, 128)
    ids = np.zeros(512, int)
    ids[:100], ids[100:230], ids[230:430] = 1, 2, 3
    same = (ids[:, None] == ids) & (ids[:, None] > 0)
    tiles = same.reshape(4, 128, 4, 128).any((1, 3))
    assert found.seen == same.sum()
    assert found.needed == tiles.sum()
    assert found.visited >= found.needed and found.computed == found.visited * 128 * 128
    dit = work.backbone(run)
    text = np.zeros(run.data.text_tokens, int)
    text[:12], text[12:28], text[28:53] = 1, 2, 3
    cross = work._blocks(jnp.asarray(ids)[None], jnp.asarray(text)[None], 128).computed
    assert product == pytest.approx(2 * dit.width * dit.depth * (found.computed + cross))


def test_one_example_wastes_nothing():
    run = flagship(registers=0)
    _, found = work.attention(run, rows_of([256]), 128)
    assert found.seen == found.computed == 256**2 and found.visited == found.needed == 4


@pytest.fixture(scope="module")
def traced():
    """The traced training step under each remat, with the kernel that loops."""

    def step(remat):
        run = flagship(remat=remat, backend="chunked")
        program = make_program(run, jax.devices()[:1])
        batch = {
            name: jax.ShapeDtypeStruct((1, 2, *leaf.shape[1:]), leaf.dtype)
            for name, leaf in run.blank_arrays(1).items()
        }
        return run, program.trace(program.abstract, batch).jaxpr

    return {remat: step(remat) for remat in REMAT}


@pytest.mark.slow
def test_every_remat_has_its_number_of_forward_passes(traced):
    """By the loops of the kernel in the traced step: one forwards, one backwards."""
    assert set(work.FORWARDS) >= set(REMAT)
    counts = {remat: kernels(jaxpr) for remat, (_, jaxpr) in traced.items()}
    run, _ = traced["none"]
    dit = work.backbone(run)
    # The kernel loops for each block of 64 queries of each of two rows.
    blocks = 2 * -(-(run.data.tokens + run.data.segments * dit.registers) // 64)
    layers = dit.depth * (1 + len(dit.cross)) * blocks
    for remat, count in counts.items():
        assert count - counts["none"] == layers * (work.FORWARDS[remat] - 1), remat


@pytest.mark.slow
def test_recomputation_is_counted(traced):
    none, dots, full = (products(traced[name][1]) for name in ("none", "dots", "full"))
    run = traced["none"][0]
    dit = work.backbone(run)
    tokens = 2 * (run.data.tokens + run.data.segments * dit.registers)
    text = 2 * run.data.text_tokens
    width = dit.width
    forward = dit.depth * (
        2 * tokens * (4 + 2 + 2 * 4) * width**2
        + 4 * text * width * work.text_features(run)
        # Tokens look six vectors up by a product with who belongs to which example.
        + 2 * tokens * run.data.segments * 6 * width
    )
    assert none <= dots < full
    # All of a block's products once more; the last, whose result nothing needs, may be left out.
    left_out = dit.depth * 2 * tokens * 4 * width**2
    assert forward - left_out <= full - none <= forward


def test_useful_work_is_that_of_the_examples_alone():
    run = flagship(registers=0)
    alone = [work.useful(run, rows_of([n])) for n in (64, 200)]
    assert work.useful(run, rows_of([64, 200])) == pytest.approx(sum(alone))
    assert work.useful(run, rows_of([64], [200])) == pytest.approx(sum(alone))
    # Per block 14 products of width², or width x words; attention and its cross counterpart.
    dit = work.backbone(run)
    n, words, d = 200, 25, dit.width
    block = 2 * n * 14 * d**2 + 4 * n**2 * d
    cross = 4 * words * d * work.text_features(run) + 4 * n * words * d
    once = 2 * (n * d * 2 * dit.patch_features) + 2 * (256 * d + d * d + 6 * d * d)
    assert alone[1] == pytest.approx(dit.depth * (block + cross) + once)


def test_a_sampler_s_evaluations():
    stage = flagship().stage
    # Euler, with and without the prompt.
    assert evaluations(stage) == 2 * stage.sampler.steps
    plain = dataclasses.replace(stage.sampler, guides=())
    assert evaluations(dataclasses.replace(stage, sampler=plain)) == stage.sampler.steps


def test_what_cannot_be_counted_is_refused_before_it_is_compiled():
    run = flagship()
    strange = run.stage.denoiser.clone(backbone=nn.Dense(3))
    run = dataclasses.replace(run, stage=dataclasses.replace(run.stage, denoiser=strange))
    with pytest.raises(UserError, match="a DiT or a UNet3D, but the backbone is a Dense"):
        make_plan(run, topology(LOCAL))


def unet(**image):
    """A smoke run of one level, all of whose pictures are as large: 8 frames of 16 x 16."""
    config = imagen_video.get_config("smoke-base")
    config.knobs.manifest = "nowhere"
    config.data.rows = 8
    sizes = {"mults": (1,), "blocks": (1,), "resample": "after", "follow": (None,), **image}
    for name, value in sizes.items():
        config.stage.denoiser.backbone.image[name] = value
    return build(config)


def test_a_unets_products_by_hand():
    """Every kernel once for every place: a pixel, a frame or an example."""
    run = unet(middle=None)
    run = dataclasses.replace(run, stage=dataclasses.replace(run.stage, denoiser=without_time(run)))
    program = make_program(run, jax.devices()[:1])
    whole, product = work.traced(run, program)
    kernels = jax.tree_util.tree_leaves_with_path(program.abstract.params["params"]["backbone"])
    wanted, pixels, frames, slots = 0, 8 * 16 * 16, 8, run.data.segments
    for path, leaf in kernels:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("kernel"):
            places = pixels
            if re.search(r"^(time|vector)/", name):
                places = slots
            elif name.endswith("time/kernel"):
                places = frames
            wanted += 2 * leaf.size * places
    wanted += 2 * frames * slots * 4 * run.stage.denoiser.backbone.width  # each frame its time
    assert whole == wanted and product == 0


def without_time(run):
    """Nothing that acts in time: what is left is one picture's network."""
    backbone = run.stage.denoiser.backbone
    return run.stage.denoiser.clone(backbone=backbone.clone(temporal=()))


def test_a_unets_attention_by_hand():
    """256 x 256 pairs in each of 8 frames, where the CPU takes the kernel; 8 x 8 at each of 256
    places in time are dense, and products like others."""
    run = unet()
    program = make_program(run, jax.devices()[:1])
    _, product = work.traced(run, program)
    width = run.stage.denoiser.backbone.width
    assert product == 2 * 8 * 256**2 * width  # the middle's
    rows = rows_of([8], [8])
    made = work.forward(run, rows, program, 128)
    assert made.blocks is None and made.product == 2 * product


def test_attention_is_by_one_backend_everywhere_inside():
    x, ids = jnp.ones((1, 256, 2, 8)), jnp.ones((1, 256), jnp.int32)
    counted = []
    for backend in ("dense", "chunked"):
        with everywhere(backend):
            made = jax.make_jaxpr(lambda: attend(x, x, x, q_group=ids, kv_group=ids))()
        counted.append(products(made))
    assert counted == [2 * 2 * 256**2 * 2 * 8, 0]


@pytest.mark.slow
def test_a_unet_is_planned_for_this_machine():
    """From its config to the figures of a training step."""
    run = unet()
    plan = make_plan(run, topology(LOCAL))
    fill = plan.tokens / (run.data.rows * run.data.tokens)
    assert plan.work.blocks is None and 0 < fill <= 1 and plan.fits
    # Backwards twice as much as forwards, of whole rows; attention's kernel computes a bit more.
    assert plan.work.executed * fill == pytest.approx(plan.work.useful, rel=0.1)


def test_a_missing_manifest_has_a_stand_in():
    run = flagship()
    mix = mix_of(run.data)
    assert mix.source == STAND_IN and len(mix.rows) == run.data.rows
    for row in mix.rows:
        assert 0 < row["tokens"].sum() <= run.data.tokens
        assert row["words"].sum() < run.data.text_tokens and len(row) <= run.data.segments
    made = arrays(mix, run.data, run.data.rows)
    blank = run.blank_arrays(run.data.rows)
    assert {k: (v.shape, v.dtype) for k, v in made.items()} == {
        k: (v.shape, v.dtype) for k, v in blank.items()
    }
    assert (made["segment"] > 0).sum() == mix.tokens and made["valid"].sum() == mix.examples


def test_a_manifest_that_is_there_is_used(manifest):
    config = sora.get_config("smoke")
    config.knobs.manifest = str(manifest)
    run = build(config)
    mix = mix_of(run.data)
    assert "own plan" in mix.source
    for mine, theirs in zip(mix.rows, run.data.rows_of_step(), strict=True):
        np.testing.assert_array_equal(mine["clip"], theirs["clip"])


def test_the_flagship_s_mix_wastes_little():
    """Law of the planned mix: pairs in visited blocks over useful ones, at most 1.07."""
    run = build(sora.get_config())
    mix = mix_of(run.data)
    few = Mix(mix.rows[:: len(mix.rows) // 8], mix.source)
    _, found = work.attention(run, few, 512)
    assert found.visited / found.needed <= 1.07
    assert found.computed / found.seen <= 1.07
    assert mix.tokens / (len(mix.rows) * run.data.tokens) > 0.97
