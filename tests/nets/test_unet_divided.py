"""Law 8 for the video UNet: on eight devices as on one, by every rule set, and really divided."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import meta

from tests.nets.rows import quick, random_like
from tests.nets.test_unet3d import PARTS, SIDE, WIDTH, image, rows
from vdm_jax.nets.unet3d import UNet3D
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.place import shardings
from vdm_jax.parallel.rules import TABLES, table

MESHES = {
    "dp": {"data": 8},
    "fsdp": {"data": 2, "fsdp": 4},
    "fsdp_tp": {"data": 2, "fsdp": 2, "tensor": 2},
    "fsdp_seq": {"fsdp": 2, "seq": 4},
    "all": {"fsdp": 2, "seq": 2, "tensor": 2},
}
FRAMES, RATE = 8, 0.1
AT = {"pseudo3d": "after_attention", "convolutions": "after_attention"}
LAYOUT = [((i, 5), (i + 8, 1)) for i in range(8)]  # of each row: a clip, a still and padding
# Each part once: a program with all of them everywhere takes minutes to compile.
EVERY = tuple(
    dataclasses.replace(PARTS[name], levels=(), at=AT.get(name, PARTS[name].at))
    for name in sorted(PARTS)
)
SHARED = dict(temporal=EVERY, cross=("text",))


def network(**changes):
    return UNet3D(**SHARED | dict(image=image()) | changes)


@functools.cache
def inputs():
    return rows(*LAYOUT, frames=FRAMES)


@functools.cache
def boxed():
    return jax.eval_shape(network().init, jax.random.key(0), *inputs())


def step(params, x, text, batch, time, cond):
    """(outputs, parameters after one step down the slope, slopes of the video and its text)."""

    def total(params, x, text):
        tokens = {"text": cond.tokens["text"].replace(x=text)}
        given = batch.replace(x=x), time, cond.replace(tokens=tokens)
        out = network().apply(params, *given)
        return jnp.square(out - 1).sum() / len(LAYOUT), out

    (_, out), (slope, *rest) = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(params, x, text)
    return out, jax.tree.map(lambda p, g: p - RATE * g, params, slope), rest


def trained(rules=None):
    """(what `step` gives, its program, the mesh's sizes)."""
    batch, time, cond = inputs()
    params = random_like(meta.unbox(boxed()))
    given = params, batch.x, cond.tokens["text"].x, batch, time, cond
    if rules is None:
        return quick(step)(*given), None, None
    mesh = make_mesh(MESHES[rules])
    with jax.set_mesh(mesh), nn.logical_axis_rules(table(rules)):
        placed = shardings(boxed(), mesh, table(rules))
        over_rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
        given = jax.device_put(given[0], placed), *jax.device_put(given[1:], over_rows)
        leaves, tree = jax.tree.flatten(given)
        run = jax.jit(
            lambda *leaves: step(*tree.unflatten(leaves)),
            out_shardings=(None, placed, over_rows),
            compiler_options={"xla_backend_optimization_level": 0},
        ).lower(*leaves).compile()  # fmt: skip
        return run(*leaves), run.as_text(), mesh.shape


def is_box(leaf):
    return isinstance(leaf, nn.LogicallyPartitioned)


single = functools.cache(trained)
QUICK = {"all"}


def test_every_rule_set_is_tried():
    assert set(MESHES) == set(TABLES)


@pytest.mark.parametrize(
    "rules", [r if r in QUICK else pytest.param(r, marks=pytest.mark.slow) for r in MESHES]
)
def test_divided_equals_single(rules):
    found, text, sizes = trained(rules)
    for one, other in zip(*map(jax.tree.leaves, (found, single()[0])), strict=True):
        scale = max(1.0, float(jnp.abs(other).max()))
        np.testing.assert_allclose(one / scale, other / scale, atol=2e-5)
    share = len(LAYOUT) // (sizes["data"] * sizes["fsdp"])
    frames = FRAMES // sizes["seq"]
    hidden = WIDTH // sizes["tensor"]
    pictures = share * frames
    # Pictures: as many as a device has, its share of channels in them; nowhere those of others.
    assert f"f32[{pictures},{SIDE},{SIDE},{hidden}]" in text
    assert f"f32[{share},{frames},{SIDE},{SIDE},{WIDTH}]" in text
    whole = rf"f32\[{share},{FRAMES},{SIDE},{SIDE},({hidden}|{WIDTH})\]"
    assert (re.search(whole, text) is None) == (sizes["seq"] > 1)
    assert f"f32[{len(LAYOUT)},{frames},{SIDE},{SIDE}," not in text
    # Time: places of all frames.
    heads, width = 2 // sizes["tensor"], WIDTH // 2
    places = SIDE * SIDE // sizes["seq"]
    assert f"f32[{share * places},{FRAMES},{heads},{width}]" in text
    # But for a CPU's own form of the slopes of convolutions, which `tensor` divides its own way.
    moved = [line for line in text.splitlines() if " all-to-all(" in line]
    assert any("/conv_" not in line for line in moved) == (sizes["seq"] > 1)
    # Kernels: gathered to be used, and the slopes of each convolution's scattered to be kept.
    scattered = re.findall(r"f32\[3,3,\d+,\d+\]\S* reduce-scatter\(", text)
    convolutions = sum(leaf.value.ndim == 4 for leaf in jax.tree.leaves(boxed(), is_leaf=is_box))
    assert len(scattered) == (convolutions if sizes["fsdp"] > 1 else 0)
    assert (" all-gather(" in text) == (sizes["fsdp"] > 1)
