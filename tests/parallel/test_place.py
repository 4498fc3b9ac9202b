"""Every rule set really divides what it says, computes what one device computes, errs in words."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from vdm_jax import axes
from vdm_jax.config import UserError
from vdm_jax.parallel import place, rules
from vdm_jax.parallel.mesh import AXES, make_mesh
from vdm_jax.parallel.place import abstract, batch_sharding, shardings, unbox

MESHES = {
    "dp": {"data": 8},
    "fsdp": {"data": 2, "fsdp": 4},
    "fsdp_tp": {"data": 2, "fsdp": 2, "tensor": 2},
    "fsdp_seq": {"data": 2, "fsdp": 2, "seq": 2},
    "all": {"fsdp": 2, "seq": 2, "tensor": 2},
}
WIDTH, HIDDEN, ROWS, TOKENS, PATCH = 16, 32, 8, 6, 12


def weight(*names):
    return nn.with_logical_partitioning(nn.initializers.normal(0.3), names)


class Trunk(nn.Module):
    """Patches in, a gated layer, two heads of attention, patches out: the names of a real net."""

    @nn.compact
    def __call__(self, x):
        def constrain(x, *names):
            return nn.with_logical_constraint(x, names)

        stem = self.param("stem", weight(axes.PATCH, axes.EMBED), (PATCH, WIDTH))
        x = constrain(x @ stem, axes.ROW, axes.TOKEN, axes.EMBED)
        into = self.param("in", weight(axes.EMBED, axes.MLP), (WIDTH, HIDDEN))
        bias = self.param("bias", weight(axes.MLP), (HIDDEN,))
        out = self.param("out", weight(axes.MLP, axes.EMBED), (HIDDEN, WIDTH))
        hidden = constrain(nn.gelu(x @ into + bias), axes.ROW, axes.TOKEN, axes.MLP)
        x = constrain(x + hidden @ out, axes.ROW, axes.TOKEN, axes.EMBED)
        heads = weight(axes.EMBED, axes.HEADS, axes.HEAD_DIM)
        q, k = (
            jnp.einsum("bnd,dhe->bnhe", x, self.param(name, heads, (WIDTH, 2, 8))) for name in "qk"
        )
        seen = jax.nn.softmax(jnp.einsum("bnhe,bmhe->bhnm", q, k) / 8**0.5)
        x = jnp.einsum("bhnm,bmd->bnd", seen, x)
        modulate = self.param("modulate", weight(axes.EMBED, axes.MODULATION), (WIDTH, 6))
        head = self.param("head", weight(axes.EMBED, axes.PATCH), (WIDTH, PATCH))
        return x @ head + (x.mean(1) @ modulate).sum(-1)[:, None, None]


TRANSFORM = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def create():
    params = Trunk().init(jax.random.key(0), jnp.zeros((1, TOKENS, PATCH)))
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "ema": {"0.9": jax.tree.map(jnp.copy, params)},
        "opt": TRANSFORM.init(params),
    }


def update(state, x):
    def loss(params):
        return jnp.square(Trunk().apply(params, x)).mean()

    value, grads = jax.value_and_grad(loss)(state["params"])
    updates, opt = TRANSFORM.update(grads, state["opt"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    ema = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, state["ema"]["0.9"], params)
    return {"step": state["step"] + 1, "params": params, "ema": {"0.9": ema}, "opt": opt}, value


def inputs():
    return np.random.default_rng(0).normal(size=(ROWS, TOKENS, PATCH)).astype(np.float32)


@functools.cache
def divided(name):
    """State and compiled update of a strategy on its mesh."""
    mesh, table = make_mesh(MESHES[name]), rules.table(name)
    placed = shardings(jax.eval_shape(create), mesh, table)
    row = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh), nn.logical_axis_rules(table):
        state = jax.jit(lambda: unbox(create()), out_shardings=placed)()
        x = jax.device_put(inputs(), row)
        compiled = jax.jit(update, out_shardings=(placed, None)).lower(state, x).compile()
    return state, x, compiled


def shard(leaf):
    return leaf.addressable_shards[0].data.shape


@pytest.fixture(scope="module")
def single():
    states, values = [jax.jit(lambda: unbox(create()))()], []
    for _ in range(3):
        state, value = jax.jit(update)(states[-1], inputs())
        states.append(state)
        values.append(float(value))
    return states, values


@pytest.mark.parametrize("name", MESHES)
def test_divided_equals_single(name, single):
    """Law 8: three updates of parameters, moments and averages, on eight devices as on one."""
    states, values = single
    state, x, compiled = divided(name)
    assert jax.tree.structure(state) == jax.tree.structure(states[0])
    for leaf, alone in zip(*map(jax.tree.leaves, (state, states[0])), strict=True):
        np.testing.assert_array_equal(leaf, alone)  # counter-based draws: the same bits
    for value in values:
        state, found = compiled(state, x)
        assert float(found) == pytest.approx(value, rel=1e-5)
    for leaf, alone in zip(*map(jax.tree.leaves, (state, states[-1])), strict=True):
        np.testing.assert_allclose(leaf, alone, atol=2e-5)


@pytest.mark.parametrize("name", MESHES)
def test_the_state_is_really_divided(name):
    """What lies on one device, by arithmetic from the mesh: its share, not the whole."""
    state, _, _ = divided(name)
    sizes = {axis: MESHES[name].get(axis, 1) for axis in AXES}
    fsdp, tensor = (sizes["fsdp"], sizes["tensor"]) if name != "dp" else (1, 1)
    moments = state["opt"][1][0]
    for tree in (state["params"], state["ema"]["0.9"], moments.mu, moments.nu):
        p = tree["params"]
        assert shard(p["stem"]) == (PATCH, WIDTH // fsdp)
        assert shard(p["in"]) == (WIDTH // fsdp, HIDDEN // tensor)
        assert shard(p["bias"]) == (HIDDEN // tensor,)
        assert shard(p["out"]) == (HIDDEN // tensor, WIDTH // fsdp)
        assert shard(p["q"]) == (WIDTH // fsdp, 2 // tensor, 8)
        assert shard(p["modulate"]) == (WIDTH // fsdp, 6 // tensor)
    assert len(state["step"].sharding.device_set) == 8


@pytest.mark.parametrize("name", MESHES)
def test_the_compiled_step_is_really_divided(name):
    """By the optimised HLO: rows, tokens and units of the activations are a device's share."""
    _, _, compiled = divided(name)
    text = compiled.as_text()
    sizes = {axis: MESHES[name].get(axis, 1) for axis in AXES}
    rows = ROWS // (sizes["data"] * sizes["fsdp"])
    tokens = TOKENS // sizes["seq"]
    hidden = HIDDEN // sizes["tensor"]
    assert f"f32[{ROWS},{TOKENS}," not in text, "some activation is whole on a device"
    assert re.search(rf"f32\[({rows},{tokens}|{rows * tokens}),{hidden}\]", text)
    if sizes["fsdp"] > 1:
        assert "all-gather" in text
    assert "all-reduce" in text or "reduce-scatter" in text


def test_batches_put_rows_over_data_and_fsdp():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    batch = jax.device_put(np.zeros((3, 8, 5)), batch_sharding(mesh))
    assert shard(batch) == (3, 2, 5)
    assert len({str(s.index) for s in batch.addressable_shards}) == 4


def test_abstract_says_it_all():
    mesh, table = make_mesh(MESHES["fsdp"]), rules.table("fsdp")
    boxed = jax.eval_shape(create)
    found = abstract(boxed, mesh, table)
    assert jax.tree.structure(found) == jax.tree.structure(unbox(boxed))
    stem = found["params"]["params"]["stem"]
    assert stem.shape == (PATCH, WIDTH) and stem.sharding.spec == PartitionSpec(None, "fsdp")


def test_leaves_that_lost_their_box_follow_their_parameter():
    boxed = jax.eval_shape(create)
    plain = boxed | {"ema": unbox(boxed["ema"]), "opt": unbox(boxed["opt"])}
    mesh, table = make_mesh(MESHES["all"]), rules.table("all")
    assert shardings(plain, mesh, table) == shardings(boxed, mesh, table)
    # Same name, other shape (a factored moment): not its parameter's placement.
    odd = boxed | {"opt": {"params": {"in": jax.ShapeDtypeStruct((WIDTH,), jnp.float32)}}}
    assert shardings(odd, mesh, table)["opt"]["params"]["in"].spec == PartitionSpec()


# Rules


def test_tables_and_vocabulary_agree_both_ways():
    for name in rules.TABLES:
        table = rules.table(name)
        assert [axis for axis, _ in table] == list(dict(table))
        assert set(dict(table)) == axes.NAMES
        used = {mesh_axis for _, part in table for mesh_axis in rules.mesh_axes(part)}
        assert used <= set(AXES)
    everything = {a for _, part in rules.table("all") for a in rules.mesh_axes(part)}
    assert everything == set(AXES)
    declared = {value for key, value in vars(axes).items() if key.isupper() and key != "NAMES"}
    assert declared == axes.NAMES


def box(shape, names):
    return {"layer": {"kernel": nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, "f4"), names)}}


def test_mistakes_are_said():
    mesh, table = make_mesh(MESHES["fsdp_tp"]), rules.table("fsdp_tp")
    with pytest.raises(UserError, match=r"layer/kernel has a logical axis 'embedd'.*'embed'"):
        shardings(box((4, 4), ("embedd", None)), mesh, table)
    with pytest.raises(UserError, match="layer/kernel has axes mlp and heads both on mesh axis"):
        shardings(box((4, 4), ("mlp", "heads")), mesh, table)
    with pytest.raises(UserError, match=r"no sharding rules called 'fdsp'.*'fsdp'"):
        rules.table("fdsp")


def test_what_does_not_divide():
    mesh, table = make_mesh(MESHES["fsdp"]), rules.table("fsdp")
    found = shardings(box((3, 8), ("mlp", "embed")), mesh, table)
    assert found["layer"]["kernel"].spec == PartitionSpec(None, "fsdp")
    found = shardings(box((8, 6), ("mlp", "embed")), mesh, table)  # small: stays whole
    assert found["layer"]["kernel"].spec == PartitionSpec(None, None)
    with pytest.raises(UserError, match=r"layer/kernel has axis embed of size 2050.*fsdp of 4"):
        shardings(box((place.SMALL // 1024, 2050), ("mlp", "embed")), mesh, table)
