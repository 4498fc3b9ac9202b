"""Laws 2 and 3: a packed row is its examples side by side, and nothing passes between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from flax.core import meta

from tests.nets.rows import (
    PATCH,
    REGISTERS,
    SHAPE,
    WIDTH,
    alone,
    example,
    pack,
    quick,
    random_like,
)
from vdm_jax.kernels import BACKENDS, chunked, fused
from vdm_jax.nets.dit import DiT
from vdm_jax.nets.modulation import PerBlock, Shared
from vdm_jax.nets.patterns import Full, Groups, Spatial, Temporal, Window
from vdm_jax.nets.positions import Fractional, Rotary, Sincos
from vdm_jax.nets.registers import insert

PATTERNS = {
    "full": Full(),
    "spatial": Spatial(),
    "temporal": Temporal(),
    "temporal_attend": Temporal(on_single="attend"),
    "window": Window(size=(2, 2, 2), shift=(1, 0, 1)),
}
SLOW = [pytest.mark.slow]
MODULATIONS = {"per_block": PerBlock(), "shared": Shared()}
# Equal lengths, so that each comes alone through one compiled program; an image among them.
EXAMPLES = [example(0, (3, 2, 2)), example(1, (1, 3, 4)), example(2, (2, 2, 3))]
LENGTH, WORDS = 12, 3
LAYOUT = ((2, 0), (1,), ())  # rows of examples; the last is padding alone


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Rows here are short; blocks must be shorter, or the chunked backend has only one."""
    monkeypatch.setattr(chunked, "BLOCKS", {"cpu": 8})
    monkeypatch.setattr(fused, "BLOCK", 16)


@struct.dataclass
class Given:
    """A pattern that says what it was told: groups are data here, so that one compiled network
    serves all patterns."""

    found: Groups

    def groups(self, batch, register):
        return self.found


@functools.cache
def grouping(pattern):
    def ask(batch):
        row = insert(batch, REGISTERS)
        groups = PATTERNS[pattern].groups(row.batch, row.register)
        places = jnp.broadcast_to(jnp.arange(groups.id.shape[1]), groups.id.shape)
        return Groups(
            id=groups.id,
            order=places if groups.order is None else groups.order,
            inverse=places if groups.inverse is None else groups.inverse,
            active=groups.id >= 0 if groups.active is None else groups.active,
        )

    return quick(ask)


def network(modulation="per_block", backend=None, pattern=PATTERNS["full"]):
    return DiT(
        width=WIDTH, depth=1, heads=2, patch_features=PATCH, registers=REGISTERS, cross=("text",),
        patterns=(pattern,), modulation=MODULATIONS[modulation], layers="loop", backend=backend,
        positions=(Sincos(axes="xy"), Fractional(entries=4), Rotary(fps=8.0)),
    )  # fmt: skip


@functools.cache
def parameters(modulation="per_block"):
    net = network(modulation)
    return random_like(meta.unbox(jax.eval_shape(net.init, jax.random.key(0), *alone(EXAMPLES[0]))))


@functools.cache
def program(modulation, backend):
    """Outputs and the gradients of their weighted sum, for any groups, compiled once per shape."""

    def total(params, x, text, batch, time, cond, groups, weight):
        tokens = {"text": cond.tokens["text"].replace(x=text)}
        net = network(modulation, backend, Given(groups))
        out = net.apply(params, batch.replace(x=x), time, cond.replace(tokens=tokens))
        return (out * weight).sum(), out

    return quick(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))


def answers(pattern, modulation, backend, batch, time, cond, weight):
    """(out, gradients by parameters, tokens and text) of a row."""
    (_, out), grads = program(modulation, backend)(
        parameters(modulation), batch.x, cond.tokens["text"].x,
        batch, time, cond, grouping(pattern)(batch), jnp.asarray(weight),
    )  # fmt: skip
    return out, grads


def weight_of(index: int):
    """What multiplies an example's output in the loss: no other's, so none can pass for another."""
    return np.random.default_rng(90 + index).normal(size=(len(EXAMPLES[index].x), PATCH))


@functools.cache
def separately(pattern, modulation):
    weights = [weight_of(i)[None] for i in range(len(EXAMPLES))]
    return [
        answers(pattern, modulation, "dense", *alone(one), weight)
        for one, weight in zip(EXAMPLES, weights, strict=True)
    ]


def together(pattern, modulation, backend, layout=LAYOUT, loud=range(3), **options):
    """Outputs and gradients of rows of those examples, where the loss hears only `loud` ones."""
    batch, time, cond = pack([[EXAMPLES[i] for i in row] for row in layout], **SHAPE, **options)
    weight = np.zeros((len(layout), SHAPE["tokens"], PATCH))
    for index, (row, tokens, _) in places(layout).items():
        weight[row, tokens] = weight_of(index) * (index in loud)
    return answers(pattern, modulation, backend, batch, time, cond, weight)


def places(layout):
    """Example -> (row, its tokens, its text)."""
    return {
        index: (
            row,
            slice(place * LENGTH, (place + 1) * LENGTH),
            slice(place * WORDS, (place + 1) * WORDS),
        )
        for row, members in enumerate(layout)
        for place, index in enumerate(members)
    }


def near(a, b, bound=1e-5):
    scale = max(1.0, float(np.abs(b).max()))
    np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, rtol=0, atol=bound)


# One backend that loops and the plain one with every modulation; each is another program.
EVERY = [
    pytest.param(m, b, marks=[] if m == "per_block" or b in ("dense", "chunked") else SLOW)
    for m in sorted(MODULATIONS)
    for b in sorted(BACKENDS)
]


@pytest.mark.parametrize("modulation, backend", EVERY)
@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_packed_equals_separate(pattern, modulation, backend):
    parts = separately(pattern, modulation)
    out, (d_params, d_x, d_text) = together(pattern, modulation, backend)
    covered = np.zeros(out.shape, bool)
    for index, (row, tokens, text) in places(LAYOUT).items():
        part, (_, part_x, part_text) = parts[index]
        assert np.abs(part).max() > 0.01
        near(out[row, tokens], part[0])
        near(d_x[row, tokens], part_x[0])
        near(d_text[row, text], part_text[0])
        covered[row, tokens] = True
    summed = jax.tree.map(lambda *leaves: sum(leaves), *(grads[0] for _, grads in parts))
    jax.tree.map(near, d_params, summed)
    assert not np.any(np.asarray(out)[~covered])
    assert not np.any(np.asarray(d_x)[~covered])


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("pattern", ["full", "temporal"])
def test_order_permutes_outputs_only(pattern, backend):
    """Examples in other rows and at other places of a row."""
    moved = ((), (1, 2), (0,))
    one, (one_params, one_x, _) = together(pattern, "per_block", backend)
    two, (two_params, two_x, _) = together(pattern, "per_block", backend, moved)
    for index, (row, tokens, _) in places(LAYOUT).items():
        there, moved_tokens, _ = places(moved)[index]
        near(one[row, tokens], two[there, moved_tokens])
        near(one_x[row, tokens], two_x[there, moved_tokens])
    jax.tree.map(near, one_params, two_params)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_padding_says_nothing(backend):
    """Even nan in padding tokens and padding text leaves every bit as it was."""
    quiet = together("full", "per_block", backend)
    loud = together("full", "per_block", backend, filler=float("nan"))
    jax.tree.map(np.testing.assert_array_equal, loud, quiet)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(loud))


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_nothing_leaks(pattern, backend):
    """Law 3: what one example's output depends on is exactly its own input and text."""
    loud = 0
    _, (_, d_x, d_text) = together(pattern, "per_block", backend, loud=(loud,))
    row, tokens, text = places(LAYOUT)[loud]
    for found, own in ((np.array(d_x), tokens), (np.array(d_text), text)):
        assert np.all(np.abs(found[row, own]).max(-1) > 0)
        found[row, own] = 0
        assert not np.any(found)
