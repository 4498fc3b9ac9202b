"""A network whose tokens are divided over devices answers as on one: registers, which lengthen the
row to what no device divides, tokens that are sorted, text that is whole, layers that are scanned
and recomputed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import meta

from tests.nets.rows import PATCH, REGISTERS, SHAPE, WIDTH, example, pack, quick, random_like
from vdm_jax.kernels import chunked
from vdm_jax.nets.dit import DiT
from vdm_jax.nets.patterns import Full, Temporal
from vdm_jax.nets.positions import Rotary, Sincos
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.rules import table

HEADS = 2
NET = DiT(
    width=WIDTH, depth=2, heads=HEADS, patch_features=PATCH, registers=REGISTERS, cross=("text",),
    patterns=(Full(), Temporal()), positions=(Sincos(axes="xy"), Rotary(fps=8.0)),
    remat="attention", layers="scan",
)  # fmt: skip
EXAMPLES = [example(0, (3, 2, 2)), example(1, (1, 3, 4)), example(2, (2, 2, 3))]
LENGTH = SHAPE["tokens"] + SHAPE["slots"] * REGISTERS
MESHES = {
    "ring": {"data": 1, "seq": 4, "tensor": 1},
    "ulysses": {"data": 2, "seq": 2, "tensor": 1},
    "ring_and_heads": {"data": 2, "seq": 2, "tensor": 2},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCKS", {"cpu": 8})


@functools.cache
def inputs():
    """(parameters, batch, time, condition), the fewest rows that two devices divide."""
    rest = pack([[EXAMPLES[2], EXAMPLES[0]], [EXAMPLES[1]]], **SHAPE)
    shapes = jax.eval_shape(NET.init, jax.random.key(0), *rest)
    return random_like(meta.unbox(shapes)), *rest


def total(params, x, text, batch, time, cond):
    cond = cond.replace(tokens={"text": cond.tokens["text"].replace(x=text)})
    out = NET.apply(params, batch.replace(x=x), time, cond)
    return jnp.sin(out).sum(), out


def program():
    """(outputs and gradients, program), compiled under the ambient mesh."""
    params, batch, time, cond = inputs()
    leaves, tree = jax.tree.flatten((params, batch.x, cond.tokens["text"].x, batch, time, cond))

    def step(*leaves):
        return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*tree.unflatten(leaves))

    compiled = quick(step).lower(*leaves).compile()
    return compiled(*leaves), compiled.as_text()


@functools.cache
def single():
    return program()[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_divided_tokens_change_nothing(name):
    data, seq, tensor = MESHES[name].values()
    expected = single()
    mesh = make_mesh(MESHES[name], jax.devices()[: data * seq * tensor])
    with jax.set_mesh(mesh), nn.logical_axis_rules(table("all")):
        found, text = program()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(jnp.abs(other).max()))
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-5)
    rows, heads, share = 2 // data, HEADS // tensor, -(-LENGTH // seq)
    assert f"f32[{rows},{share},{heads},{WIDTH // HEADS}]" in text
    for whole in (LENGTH, share * seq):
        assert f"f32[{rows},{whole},{heads},{WIDTH // HEADS}]" not in text
    sent = "all-to-all" if name == "ulysses" else "collective-permute"
    assert f" {sent}(" in text
