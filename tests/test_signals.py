"""Conditions: what a dropped text is, encoders that know nothing of packing, levels as numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rows import example, pack
from vdm_jax.codecs import Pixels
from vdm_jax.denoiser import QuarterLogSigma, ScaledTime, TableIndex
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedule import FromBetas, Straight
from vdm_jax.nets.encoders import TextEmbedding
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.rules import table
from vdm_jax.signals import (
    NoiseTime,
    PackedText,
    PooledText,
    Signal,
    Sinusoid,
    Vector,
    draw_dropped,
    drop_all,
)
from vdm_jax.train.feed import to_carrier

ONE = example(1, (2, 2, 2), (5, 6, 7))
TWO = example(2, (1, 2, 3), (8, 9))
EMPTY = example(1, (2, 2, 2), (0,))


def carrier(rows, segments=3):
    arrays = pack(rows, tokens=20, text=8, segments=segments)
    return to_carrier(jax.tree.map(jnp.asarray, arrays), Pixels(), (1, 2, 2))


def encoder():
    return TextEmbedding(vocab=16, width=8, max_length=4, depth=1, heads=2)


def text_module():
    return PackedText(encoder=encoder(), max_length=4)


def apply(rows, dropped=None, module=None):
    module = module or text_module()
    batch, raw = carrier(rows)
    hidden = jnp.zeros_like(batch.examples.valid) if dropped is None else jnp.asarray(dropped)
    params = module.init(jax.random.key(0), raw["text"], batch, hidden)
    return module.apply(params, raw["text"], batch, hidden)


def test_packed_text_is_the_texts_encoded_apart():
    both = apply([[ONE, TWO]])
    np.testing.assert_array_equal(both.segment[0], [1, 1, 1, 2, 2, 0, 0, 0])
    for index, (start, alone) in enumerate([(0, ONE), (3, TWO)]):
        single = apply([[alone]])
        n = len(alone["text"])
        np.testing.assert_allclose(both.x[0, start : start + n], single.x[0, :n], atol=1e-6)
        assert index + 1 in both.segment[0]
    assert not np.any(both.x[0, 5:])


def test_a_dropped_text_is_what_an_empty_prompt_is():
    dropped = apply([[ONE, TWO]], [[True, False, False]])
    empty = apply([[EMPTY, TWO]])
    kept = np.asarray(dropped.segment[0]) == 1
    assert kept.sum() == 1
    np.testing.assert_allclose(dropped.x[0, kept], empty.x[0, :1], atol=1e-6)
    np.testing.assert_allclose(dropped.x[0, 3:5], empty.x[0, 1:3], atol=1e-6)


def pooled(rows, dropped=None):
    return apply(rows, dropped, PooledText(encoder=encoder(), max_length=4, width=6))


def test_a_pooled_text_is_its_own_alone():
    both = pooled([[ONE, TWO]])
    assert both.shape == (1, 3, 6)
    for index, alone in enumerate([ONE, TWO]):
        np.testing.assert_allclose(both[0, index], pooled([[alone]])[0, 0], atol=1e-6)
    assert np.abs(both[0, 0] - both[0, 1]).max() > 1e-4
    dropped, empty = pooled([[ONE, TWO]], [[True, False, False]]), pooled([[EMPTY, TWO]])
    np.testing.assert_allclose(dropped[0, :2], empty[0, :2], atol=1e-6)


def test_text_beyond_the_encoder_is_cut():
    long = example(1, (1, 1, 1), (1, 2, 3, 4, 5, 6))
    cut = apply([[long]])
    assert int((cut.segment[0] > 0).sum()) == 4


def test_dropping_follows_the_example_and_its_rate():
    signals = (
        Signal(key="text", slot="tokens.text", embed=text_module(), drop=0.25),
        Signal(key="fps", slot="vector", embed=Sinusoid(width=4), drop=0.25, group="text"),
        Signal(key="size", slot="vector", embed=Sinusoid(width=4)),
    )
    rows = [[example(8 * r + i, (1, 1, 1), (1,)) for i in range(8)] for r in range(64)]
    arrays = pack(rows, tokens=8, text=9, segments=8)
    batch, _ = to_carrier(jax.tree.map(jnp.asarray, arrays), Pixels(), (1, 2, 2))
    found = draw_dropped(signals, batch, seed=0)
    assert set(found) == {"text", "size"} and not found["size"].any()
    share = float(found["text"].mean())
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 512)
    again = draw_dropped(signals, jax.tree.map(lambda leaf: leaf[::-1], batch), seed=0)
    np.testing.assert_array_equal(again["text"][::-1], found["text"])
    other = draw_dropped(signals, batch, seed=1)
    assert np.any(other["text"] != found["text"])
    assert set(drop_all(signals, batch)) == {"text"}


def test_sinusoid_has_a_null_for_images_and_dropped():
    module = Sinusoid(width=6)
    batch, _ = carrier([[ONE, TWO]], segments=4)
    value = jnp.asarray([[8.0, 24.0, 0.0, 8.0]])
    dropped = jnp.asarray([[False, False, False, True]])
    params = module.init(jax.random.key(0), value, batch, dropped)
    out = np.asarray(module.apply(params, value, batch, dropped))[0]
    np.testing.assert_array_equal(out[2], out[3])
    assert np.abs(out[0] - out[1]).max() > 1e-3


def test_a_vector_has_a_null_for_nothing_and_dropped():
    batch, _ = carrier([[ONE, TWO]], segments=4)
    value = jnp.asarray([[[1.0, 2.0], [2.0, -1.0], [0.0, 0.0], [1.0, 2.0]]])
    dropped = jnp.asarray([[False, False, False, True]])
    module = Vector(width=6)
    params = module.init(jax.random.key(0), value, batch, dropped)
    out = np.asarray(module.apply(params, value, batch, dropped))[0]
    np.testing.assert_array_equal(out[2], out[3])
    assert np.any(out[2]) and np.abs(out[0] - out[1]).max() > 1e-3
    other = module.apply(params, value.at[0, 0].multiply(2), batch, dropped)
    assert np.any(other[0, 0] != out[0])


def test_no_noise_is_a_time_like_others():
    """Of noise on a condition there may be none, which is no null: it lies next to very little."""
    module = NoiseTime(width=6)
    batch, _ = carrier([[ONE, TWO]], segments=4)
    value, hidden = jnp.asarray([[0.0, 1e-4, 0.3, 0.3]]), jnp.asarray([[False] * 3 + [True]])
    params = module.init(jax.random.key(0), value, batch, hidden)
    none, little, much, unsaid = np.asarray(module.apply(params, value, batch, hidden))[0]
    assert np.linalg.norm(none - little) < 0.1 * np.linalg.norm(none - much)
    assert np.linalg.norm(none) > 0.1 * np.linalg.norm(much) and not unsaid.any()


@pytest.mark.parametrize("time_input", [ScaledTime(), TableIndex(), QuarterLogSigma()])
def test_time_inputs_are_finite_and_rise_with_noise(time_input):
    process = Process(schedule=Straight(), path="linear")
    told = np.asarray(time_input(process.level(jnp.asarray([0.0, 1e-3, 0.5, 1.0]))))
    assert np.isfinite(told).all() and (np.diff(told) >= 0).all()


def test_table_index_is_the_entry():
    process = Process(schedule=FromBetas(), path="vp")
    entry = np.array([0, 1, 499, 999])
    level = process.level(jnp.asarray((entry + 1) / 1000, jnp.float32))
    np.testing.assert_allclose(TableIndex()(level), entry, atol=1e-3)
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(level.alpha**2, np.cumprod(1 - betas)[entry], rtol=2e-4)


def test_captions_stay_with_their_rows():
    """On a mesh that divides rows and parameters a device encodes its own rows' captions only."""
    arrays = pack([[ONE], [TWO]] * 4, tokens=20, text=8, segments=3)
    module = text_module()

    def loss(params, arrays):
        batch, raw = to_carrier(arrays, Pixels(), (1, 2, 2))
        hidden = jnp.zeros_like(batch.examples.valid)
        return jnp.square(module.apply(params, raw["text"], batch, hidden).x).sum()

    batch, raw = carrier([[ONE]])
    params = module.init(
        jax.random.key(0), raw["text"], batch, jnp.zeros_like(batch.examples.valid)
    )
    params = nn.unbox(params)
    mesh = make_mesh({"fsdp": 8})
    row = jax.NamedSharding(mesh, jax.P("fsdp"))
    with jax.set_mesh(mesh), nn.logical_axis_rules(table("fsdp")):
        step = jax.jit(jax.grad(loss), in_shardings=(None, row))
        text = step.lower(params, arrays).compile().as_text()
    lines, length, width = 8 * 3, 4, 8
    assert f"f32[{lines // 8},{length},{4 * width}]" in text
    assert f"f32[{lines},{length},{4 * width}]" not in text
    assert f"f32[{lines * length},{4 * width}]" not in text
