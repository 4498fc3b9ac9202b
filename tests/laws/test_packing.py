"""Laws 2 and 3: a packed row is its examples side by side, and nothing passes between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from tests.nets.rows import PATCH, WIDTH, alone, example, pack, random_like, spans
from vdm_jax.kernels import BACKENDS, chunked
from vdm_jax.nets.dit import DiT
from vdm_jax.nets.modulation import PerBlock, Shared
from vdm_jax.nets.patterns import Full, Spatial, Temporal, Window
from vdm_jax.nets.positions import Fractional, Rotary, Sincos

PATTERNS = {
    "full": Full(),
    "spatial": Spatial(),
    "temporal": Temporal(),
    "temporal_attend": Temporal(on_single="attend"),
    "window": Window(size=(2, 2, 2), shift=(1, 0, 1)),
}
MODULATIONS = {"per_block": PerBlock(), "shared": Shared()}
# Equal lengths, so that each comes alone through one compiled program; an image among them.
EXAMPLES = [example(0, (3, 2, 2)), example(1, (1, 3, 4)), example(2, (2, 2, 3))]
ROW = dict(tokens=42, text=11, slots=4)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Rows here are short; blocks must be shorter, or the chunked backend has only one."""
    monkeypatch.setattr(chunked, "BLOCKS", {"cpu": 8})


def network(pattern="full", modulation="per_block", backend=None, **more):
    fields = dict(
        width=WIDTH, depth=1, heads=2, patch_features=PATCH, registers=2, cross=("text",), layers="loop",
        patterns=(PATTERNS[pattern],), modulation=MODULATIONS[modulation], backend=backend,
        positions=(Sincos(axes="xy"), Fractional(entries=4), Rotary(fps=8.0)),
    )  # fmt: skip
    return DiT(**(fields | more))


@functools.cache
def parameters(modulation="per_block"):
    net = network(modulation=modulation)
    return random_like(meta.unbox(jax.eval_shape(net.init, jax.random.key(0), *alone(EXAMPLES[0]))))


def answers(net):
    """A function to the outputs and the gradients of their weighted sum."""

    def total(params, batch, x, text, time, cond, weight):
        tokens = {"text": cond.tokens["text"].replace(x=text)}
        out = net.apply(params, batch.replace(x=x), time, cond.replace(tokens=tokens))
        return (out * weight).sum(), out

    grad = jax.value_and_grad(total, argnums=(0, 2, 3), has_aux=True)

    def run(params, batch, time, cond, weight):
        (_, out), grads = grad(
            params, batch, batch.x, cond.tokens["text"].x, time, cond, jnp.asarray(weight)
        )
        return out, grads

    return run


def weight_of(index: int):
    """What multiplies an example's output in the loss: its own, so that none can stand for another."""
    return np.random.default_rng(90 + index).normal(size=(len(EXAMPLES[index].x), PATCH))


@functools.cache
def separately(pattern, modulation):
    run = answers(network(pattern, modulation, "dense"))
    params = parameters(modulation)
    weights = [weight_of(i)[None] for i in range(len(EXAMPLES))]
    return [run(params, *alone(one), w) for one, w in zip(EXAMPLES, weights, strict=True)]


def together(order, pattern, modulation, backend, **options):
    """Outputs and gradients of one row with those examples in that order, and their places."""
    row = [EXAMPLES[i] for i in order]
    batch, time, cond = pack([row], **ROW, **options)
    weight = np.zeros((1, ROW["tokens"], PATCH))
    for index, here in zip(order, spans(row), strict=True):
        weight[0, here] = weight_of(index)
    run = answers(network(pattern, modulation, backend))
    return *run(parameters(modulation), batch, time, cond, weight), spans(row)


def near(a, b, bound=1e-5):
    scale = max(1.0, float(np.abs(b).max()))
    np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, rtol=0, atol=bound)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("modulation", sorted(MODULATIONS))
@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_packed_equals_separate(pattern, modulation, backend):
    order = (2, 0, 1)
    parts = separately(pattern, modulation)
    out, (d_params, d_x, d_text), places = together(order, pattern, modulation, backend)
    text = 0
    for index, here in zip(order, places, strict=True):
        part, (_, part_x, part_text) = parts[index]
        assert np.abs(part).max() > 0.01
        near(out[0, here], part[0])
        near(d_x[0, here], part_x[0])
        near(d_text[0, text : text + 3], part_text[0])
        text += 3
    summed = jax.tree.map(lambda *leaves: sum(leaves), *(grads[0] for _, grads in parts))
    jax.tree.map(near, d_params, summed)
    assert not np.any(out[0, places[-1].stop :])
    assert not np.any(d_x[0, places[-1].stop :])
