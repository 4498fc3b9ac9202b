"""Law 8: sharded equals single for every rule set, and really shards; no constant over 1 MiB."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from experiments import demo, sora
from vdm_jax.config import build
from vdm_jax.parallel.rules import TABLES
from vdm_jax.train.feed import to_device
from vdm_jax.train.program import make_program

ONE = {"data": 1, "fsdp": 1, "seq": 1, "tensor": 1}
MESHES = {
    "dp": {"data": 8},
    "fsdp": {"data": 2, "fsdp": 4},
    "fsdp_tp": {"fsdp": 4, "tensor": 2},
    "fsdp_seq": {"fsdp": 2, "seq": 4},
    "all": {"fsdp": 2, "seq": 2, "tensor": 2},
}


def make_run(manifest, rules, mesh, *, experiment=demo, backend=None, **changes):
    config = experiment.get_config("smoke")
    config.update(changes)
    config.knobs.manifest = str(manifest)
    config.data.rows = 8
    config.rules = rules
    config.mesh.update(ONE | mesh)
    config.stage.denoiser.backbone.backend = backend
    return build(config)


def read(run):
    """The first three batches of a run."""
    found = run.data.batches(0)
    arrays = [next(found).arrays for _ in range(3)]
    found.close()
    return arrays


@pytest.fixture(scope="module")
def batches(manifest):
    return read(make_run(manifest, "dp", {"data": 1}))


def train(run, batches, devices=None):
    """(state after the batches, losses, the compiled step)."""
    program = make_program(run, devices)
    state, losses = program.init(), []
    arrays = [to_device(batch, program.batch_sharding) for batch in batches]
    compiled = program.lower(state, arrays[0]).compile()
    for batch in arrays:
        state, metrics = compiled(state, batch, program.weights)
        losses.append(float(metrics["loss"]))
    return state, losses, compiled


@pytest.fixture(scope="module")
def single(manifest, batches):
    run = make_run(manifest, "dp", {"data": 1})
    return train(run, batches, jax.devices()[:1])[:2]


def test_every_rule_set_is_tried():
    assert set(MESHES) == set(TABLES)


def agree(found, expected):
    """States and losses of two runs."""
    (state, losses), (other_state, other_losses) = found, expected
    np.testing.assert_allclose(losses, other_losses, rtol=1e-5)
    leaves = (jax.tree.leaves(one.ema) for one in (state, other_state))
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


SLOW = ["dp", "fsdp", "fsdp_seq", "all"]
RULES = [
    ("fsdp_tp", None),
    *(pytest.param(rules, None, marks=pytest.mark.slow) for rules in SLOW),
    pytest.param("fsdp_seq", "ring", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("rules, backend", RULES)
def test_sharded_equals_single(rules, backend, manifest, batches, single):
    mesh = ONE | MESHES[rules]
    run = make_run(manifest, rules, mesh, backend=backend)
    state, losses, compiled = train(run, batches)
    text = compiled.as_text()
    agree((state, losses), single)
    largest = max(jax.tree.leaves(state.params), key=lambda leaf: leaf.size)
    share = largest.addressable_shards[0].data.size / largest.size
    divided = mesh["fsdp"] * mesh["tensor"]
    assert share <= 1 / min(divided, 4) if rules != "dp" else share == 1
    # The state is donated: what goes in gives its memory to what comes out.
    assert compiled.memory_analysis().alias_size_in_bytes >= held_bytes(state)
    assert "all-reduce" in text
    if rules != "dp":
        assert "all-gather" in text
    if mesh["seq"] > 1:
        rows_are_divided(run, mesh, text)


def rows_are_divided(run, mesh, text):
    """By the compiled step: no device has keys of a whole row, nor hidden units of one."""
    backbone = run.stage.denoiser.backbone
    rows, tokens = run.data.rows // (mesh["data"] * mesh["fsdp"]), run.data.tokens
    heads, hidden = backbone.heads // mesh["tensor"], backbone.hidden // mesh["tensor"]
    share = tokens // mesh["seq"]
    assert re.search(rf"f32\[({rows},{share}|{rows * share}),{hidden}\]", text)
    assert not re.search(rf"f32\[({rows},{tokens}|{rows * tokens}),{hidden}\]", text)
    assert f"f32[{rows},{share},{heads}," in text
    assert f"f32[{rows},{tokens},{heads}," not in text
    if backbone.backend == "ring" or heads % mesh["seq"]:
        assert " collective-permute(" in text
    else:
        assert " all-to-all(" in text and f"f32[{rows},{tokens},{heads // mesh['seq']}," in text


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["fsdp_seq", "all"])
def test_a_caption_of_tokens_and_registers_too(rules, manifest):
    """Another network: it reads text, whose tokens are whole, and registers lengthen the row to
    what no device divides."""
    run = make_run(manifest, "dp", {"data": 1}, experiment=sora)
    arrays = read(run)
    expected = train(run, arrays, jax.devices()[:1])[:2]
    run = make_run(manifest, rules, MESHES[rules], experiment=sora)
    assert run.stage.denoiser.backbone.registers and run.stage.denoiser.backbone.cross
    state, losses, compiled = train(run, arrays)
    text = compiled.as_text()
    agree((state, losses), expected)
    assert " collective-permute(" in text  # two heads: a ring


def held_bytes(state):
    """Of one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_microbatches_on_a_mesh_equal_one_batch(manifest, batches, single):
    run = make_run(manifest, "fsdp_tp", MESHES["fsdp_tp"], microbatches=2)
    halves = [
        {name: leaf.reshape(2, 4, *leaf.shape[2:]) for name, leaf in batch.items()}
        for batch in batches
    ]
    state, losses, compiled = train(run, halves)
    np.testing.assert_allclose(losses, single[1], rtol=1e-5)
    for one, other in zip(jax.tree.leaves(state.ema), jax.tree.leaves(single[0].ema), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    assert compiled.memory_analysis().alias_size_in_bytes >= held_bytes(state)


def test_heads_that_do_not_divide_are_said_with_those_that_would(manifest):
    def found(rules, tensor, devices=8):
        mesh = {"data": devices // tensor, "tensor": tensor}
        return make_run(manifest, rules, mesh).problems(devices)

    (heads,) = found("fsdp_tp", 8)
    assert "heads is 4" in heads and "tensor of 8 devices" in heads and "one of 1, 2, 4" in heads
    assert found("fsdp_tp", 4) == [] and found("fsdp", 8) == []
    (heads,) = found("fsdp_tp", 3, devices=6)  # fewer than heads, and still no divisor
    assert "tensor of 3 devices" in heads


def test_rows_need_only_divide_where_rows_are_divided(manifest):
    run = make_run(manifest, "fsdp_tp", {"fsdp": 4, "tensor": 2})

    def found(**data):
        return dataclasses.replace(run, data=dataclasses.replace(run.data, **data)).problems(8)

    assert found(rows=4) == []
    (rows,) = found(rows=2)
    assert "rows is 2" in rows and "4 devices" in rows and "such as 4." in rows
    assert "such as 4 or 8." in found(rows=6)[0]
    run = make_run(manifest, "fsdp_seq", {"fsdp": 4, "seq": 2})
    (tokens,) = found(tokens=255)
    assert "tokens is 255" in tokens and "seq" in tokens
    run = make_run(manifest, "fsdp_seq", {"seq": 8}, backend="ulysses")
    (heads,) = found()
    assert "4 of them do not divide over 8 devices" in heads and "'ring'" in heads
    assert dataclasses.replace(run, rules="fsdp").problems(8) == []  # which divides no tokens
    run = make_run(manifest, "dp", {"data": 3})
    (mesh,) = found(rows=3)
    assert "does not fit 8 devices" in mesh and "one of 1, 2, 4, 8;" in mesh


def test_no_large_parameter_stays_whole():
    """Of the full-size flagship, shapes alone: text kernels that few think of, too."""
    config = sora.get_config()
    config.rules = "fsdp"
    config.mesh.update(ONE | {"fsdp": 8})
    state = make_program(build(config)).abstract
    whole = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt, state.ema))
        if leaf.size > 2**20 and leaf.sharding.shard_shape(leaf.shape) == leaf.shape
    ]
    assert not whole


def test_no_large_constant(manifest, batches):
    """Weights and tables are arguments of the step, not constants in its program."""
    program = make_program(make_run(manifest, "dp", {"data": 8}))
    state = program.init()
    arrays = to_device(batches[0], program.batch_sharding)
    text = program.lower(state, arrays).as_text()
    longest = max((len(line) for line in text.splitlines() if "constant" in line), default=0)
    assert longest < 2**20
