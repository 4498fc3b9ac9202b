"""A kernel divided over the rows' devices: the same numbers, gathered whole and scattered back."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.axes import EMBED, MLP, ROW, TOKEN, VOCAB
from vdm_jax.nets.gathered import lookup, product
from vdm_jax.nets.layers import Dense
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.rules import table

MESHES = {
    "fsdp": {"data": 2, "fsdp": 4},
    "fsdp_tp": {"fsdp": 4, "tensor": 2},
    "fsdp_seq": {"data": 2, "fsdp": 2, "seq": 2},
    "dp": {"data": 8},
}
ROWS, TOKENS, WIDTH, HIDDEN = 8, 5, 16, 32  # tokens that seq does not divide
BY = (ROW, TOKEN)


def loss(kernels, x):
    up, down = kernels
    hidden = jnp.tanh(product(x, up, (EMBED, MLP), BY))
    return jnp.sin(product(hidden, down, (MLP, EMBED), BY)).sum()


def operands():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((WIDTH, HIDDEN), (HIDDEN, WIDTH), (ROWS, TOKENS, WIDTH))
    *kernels, x = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    return kernels, x


def compiled(rules, x):
    kernels, _ = operands()
    with jax.set_mesh(make_mesh(MESHES[rules])), nn.logical_axis_rules(table(rules)):
        return jax.jit(jax.grad(loss, (0, 1))).lower(kernels, x).compile()


@pytest.mark.parametrize("rules", MESHES)
def test_same_gradients(rules):
    kernels, x = operands()
    expected = jax.grad(loss, (0, 1))(kernels, x)
    found = compiled(rules, x)(kernels, x)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("rules", ["fsdp", "fsdp_seq"])
def test_gradients_are_scattered(rules):
    """Both kernels' gradients; none is summed whole, over fsdp or over the tokens of a row."""
    x = operands()[1][:, :4]
    places = jax.NamedSharding(make_mesh(MESHES[rules]), jax.P(("data", "fsdp"), "seq"))
    text = compiled(rules, jax.device_put(x, places)).as_text()
    assert len(re.findall(r" reduce-scatter\(", text)) == 2
    for line in text.splitlines():
        if " all-reduce(" in line:
            assert f"[{WIDTH},{HIDDEN}]" not in line and f"[{HIDDEN},{WIDTH}]" not in line


@pytest.mark.parametrize("rules", MESHES)
def test_a_table_is_read_and_its_gradient_added_up_where_the_ids_are(rules):
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 12, (ROWS, TOKENS)))
    entries, weight = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((12, WIDTH), (ROWS, TOKENS, WIDTH))
    )

    def total(entries, ids, weight):
        return (weight * jnp.sin(lookup(entries, ids, (VOCAB, EMBED)))).sum()

    truth = np.zeros(entries.shape)
    slopes = np.asarray(weight * jnp.cos(entries[ids]), np.float64)
    np.add.at(truth, np.asarray(ids), slopes)
    mesh = make_mesh(MESHES[rules])
    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    ids, weight = jax.device_put((ids, weight), rows)
    with jax.set_mesh(mesh), nn.logical_axis_rules(table(rules)):
        run = jax.jit(jax.grad(total)).lower(entries, ids, weight).compile()
    np.testing.assert_allclose(run(entries, ids, weight), truth, atol=1e-5)


def test_rows_that_do_not_divide_are_left_to_the_compiler():
    kernels, x = operands()
    expected = jax.grad(loss, (0, 1))(kernels, x[:3])
    found = compiled("fsdp", x[:3])(kernels, x[:3])
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_dense_layer_is_flax_s():
    """Parameters, their first values and the result, bit for bit."""
    x = operands()[1]
    theirs = nn.Dense(HIDDEN, kernel_init=nn.initializers.lecun_normal())
    ours = Dense(features=HIDDEN, axes=(EMBED, MLP), kernel_init=nn.initializers.lecun_normal())
    made = theirs.init(jax.random.key(1), x)
    for one, other in zip(
        jax.tree.leaves(nn.unbox(ours.init(jax.random.key(1), x))), jax.tree.leaves(made),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(ours.apply(made, x), theirs.apply(made, x), rtol=1e-6)
