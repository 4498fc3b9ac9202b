"""Attention against a loop over groups in float64, backends against each other, and skipping."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

from vdm_jax.config import UserError
from vdm_jax.kernels import BACKENDS, attend, blocks, chunked, dense, fused
from vdm_jax.kernels.attend import choose

N, HEADS, DIM, BLOCK = 40, 2, 8, 8
RISING = [1] * 7 + [2] * 20 + [3] * 5 + [0] * 8
GROUPS = {
    "one_group": ([1] * N, [1] * N),
    "padded": (RISING, RISING),
    "block_borders": ([1] * 8 + [2] * 16 + [3] * 16,) * 2,
    "one_each": (list(range(1, N + 1)),) * 2,
    "unsorted": ([i * 7 % 5 for i in range(N)],) * 2,
    "all_padding": ([0] * N, [0] * N),
    "blind_queries": (RISING, [1] * 10 + [3] * 30),
    "large_ids": ([10**9 + g for g in RISING],) * 2,
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCKS", {"cpu": BLOCK})
    monkeypatch.setattr(fused, "BLOCK", 2 * BLOCK)


def inputs(case="padded", n=N, m=N, dtype=jnp.float32, size=1.5):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(size * rng.normal(size=(2, s, HEADS, DIM)), dtype) for s in (n, m, m))
    q_group, kv_group = (jnp.asarray([ids[:s], ids[::-1][:s]], jnp.int32)
                         for ids, s in zip(GROUPS[case], (n, m), strict=True))  # fmt: skip
    return q, k, v, q_group, kv_group


def by_loops(q, k, v, q_group, kv_group, bias=None):
    """Each query's softmax over the keys of its group, one at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(q.shape[:3]):
        seen = [j for j in range(k.shape[1]) if q_group[b, i] == kv_group[b, j]]
        if seen:
            logits = k[b, seen, h] @ q[b, i, h] / np.sqrt(q.shape[-1])
            if bias is not None:
                logits = logits + np.asarray(bias, np.float64)[b, h, i, seen]
            weights = np.exp(logits - logits.max())
            out[b, i, h] = weights @ v[b, seen, h] / weights.sum()
    return out


def gradients(backend, q, k, v, q_group, kv_group):
    weight = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)

    def total(q, k, v):
        out = attend(q, k, v, q_group=q_group, kv_group=kv_group, backend=backend)
        return (out.astype(jnp.float32) * weight).sum()

    return jax.grad(total, (0, 1, 2))(q, k, v)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("case", sorted(GROUPS))
def test_agrees_with_loops(case, backend):
    q, k, v, q_group, kv_group = inputs(case)
    out = attend(q, k, v, q_group=q_group, kv_group=kv_group, backend=backend)
    truth = by_loops(q, k, v, np.asarray(q_group), np.asarray(kv_group))
    np.testing.assert_allclose(out, truth, atol=1e-5)


@pytest.mark.parametrize("backend", sorted({*BACKENDS} - {"dense"}))
@pytest.mark.parametrize("case", sorted(GROUPS))
def test_gradients_agree_with_dense(case, backend):
    arguments = inputs(case)
    for found, truth in zip(
        gradients(backend, *arguments), gradients("dense", *arguments), strict=True
    ):
        np.testing.assert_allclose(found, truth, atol=3e-5)


def test_dense_gradient_is_the_slope():
    """The reference itself, against finite differences."""
    with jax.enable_x64(True):
        arguments = [jnp.asarray(np.asarray(x)[:1, :6]) for x in inputs("unsorted")]
        arguments[:3] = [x.astype(jnp.float64) / 3 for x in arguments[:3]]
        check_grads(
            lambda q, k, v: dense.attend(q, k, v, *arguments[3:]), arguments[:3], order=1,
            modes=["rev"], eps=1e-4, rtol=1e-3,
        )  # fmt: skip


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_lengths_that_fill_no_block(backend):
    q, k, v, q_group, kv_group = inputs("unsorted", n=13, m=29)
    out = attend(q, k, v, q_group=q_group, kv_group=kv_group, backend=backend)
    truth = by_loops(q, k, v, np.asarray(q_group), np.asarray(kv_group))
    np.testing.assert_allclose(out, truth, atol=1e-5)
    for found, exact in zip(
        gradients(backend, q, k, v, q_group, kv_group),
        gradients("dense", q, k, v, q_group, kv_group),
        strict=True,
    ):
        np.testing.assert_allclose(found, exact, atol=3e-5)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_a_query_that_sees_nothing_gives_exactly_nothing(backend):
    q, k, v, q_group, kv_group = inputs("blind_queries")
    blind = ~(q_group[:, :, None] == kv_group[:, None]).any(-1)
    assert 0 < blind.sum() < blind.size
    out = attend(q, k, v, q_group=q_group, kv_group=kv_group, backend=backend)
    d_q, d_k, d_v = gradients(backend, q, k, v, q_group, kv_group)
    assert not np.any(out[blind]) and not np.any(d_q[blind])
    assert all(np.all(np.isfinite(x)) for x in (d_q, d_k, d_v))


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_large_logits_stay_finite(backend):
    q, k, v, q_group, kv_group = inputs()
    out = attend(200 * q, k, v, q_group=q_group, kv_group=kv_group, backend=backend)
    truth = by_loops(200 * q, k, v, np.asarray(q_group), np.asarray(kv_group))
    np.testing.assert_allclose(out, truth, atol=1e-3)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_half_precision_keeps_a_softmax_in_full(backend):
    q, k, v, q_group, kv_group = inputs(dtype=jnp.bfloat16, size=3)
    out = attend(q, k, v, q_group=q_group, kv_group=kv_group, backend=backend)
    assert out.dtype == jnp.bfloat16
    assert {x.dtype for x in gradients(backend, q, k, v, q_group, kv_group)} == {out.dtype}
    truth = by_loops(q, k, v, np.asarray(q_group), np.asarray(kv_group))
    # Eight bits of mantissa in the weights and in the result; logits in half would lose five times
    # as much: they are as large as 30.
    assert np.abs(np.asarray(out, np.float64) - truth).mean() < 0.008


def test_pairs_executed_are_those_that_must_meet():
    def count(ids):
        return int(blocks.executed(jnp.asarray([ids]), jnp.asarray([ids]), BLOCK)[0])

    assert count([1] * 64) == 64
    assert count([g for g in (1, 2, 3, 4) for _ in range(16)]) == 4 * 2 * 2
    assert count(list(range(1, 65))) == 8
    # Padding counts as the last group: a block that ends in it does not reach back to the first.
    assert count([1] * 16 + [2] * 12 + [0] * 20) == 2 * 2 + 2 * 2 + 3 * 3 - 1
    # Groups that interleave cannot be told apart by range.
    assert count([1, 2] * 32) == 64


@pytest.mark.parametrize("case", sorted(GROUPS))
def test_no_pair_that_sees_is_skipped(case):
    *_, q_group, kv_group = inputs(case)
    met = np.asarray(blocks.meets(q_group, kv_group, BLOCK))
    sees = np.asarray(q_group[:, :, None] == kv_group[:, None])
    for row, i, j in zip(*np.nonzero(sees), strict=True):
        assert met[row, i // BLOCK, j // BLOCK]


def test_skipped_blocks_are_not_touched():
    """Whatever lies in blocks that cannot meet, nan even, is never multiplied."""
    ids = jnp.asarray([[1] * 16 + [2] * 24] * 2, jnp.int32)
    q, k, v, *_ = inputs()
    poison = [x.at[:, 16:].set(jnp.nan) for x in (q, k, v)]
    clean = attend(q, k, v, q_group=ids, kv_group=ids, backend="chunked")
    found = attend(*poison, q_group=ids, kv_group=ids, backend="chunked")
    np.testing.assert_array_equal(found[:, :16], clean[:, :16])
    wholes = gradients("chunked", q, k, v, ids, ids)
    for spoilt, whole in zip(gradients("chunked", *poison, ids, ids), wholes, strict=True):
        np.testing.assert_array_equal(spoilt[:, :16], whole[:, :16])


def test_bias():
    q, k, v, q_group, kv_group = inputs()
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(2, HEADS, N, N)), jnp.float32)
    out = attend(q, k, v, q_group=q_group, kv_group=kv_group, bias=bias)
    truth = by_loops(q, k, v, np.asarray(q_group), np.asarray(kv_group), bias)
    np.testing.assert_allclose(out, truth, atol=1e-5)
    with pytest.raises(UserError, match="takes no bias"):
        attend(q, k, v, q_group=q_group, kv_group=kv_group, bias=bias, backend="chunked")


def test_choice_is_by_platform_and_shape_and_said_once(caplog):
    assert choose("cpu", rows=4, queries=64, keys=64, heads=4) == "dense"
    assert choose("cpu", rows=1, queries=2048, keys=2048, heads=4) == "chunked"
    assert choose("gpu", rows=4, queries=256, keys=256, heads=4) == "dense"
    assert choose("gpu", rows=1, queries=2048, keys=2048, heads=4) == "fused"
    on = functools.partial(choose, "gpu", refused={"fused"})
    assert on(rows=1, queries=2048, keys=2048, heads=4) == "dense"
    assert on(rows=4, queries=32768, keys=32768, heads=16) == "chunked"
    assert choose("tpu", rows=4, queries=32768, keys=32768, heads=16) == "splash"
    q, k, v, q_group, kv_group = inputs(n=11, m=11)
    with caplog.at_level(logging.INFO, logger="vdm_jax.kernels.attend"):
        for _ in range(3):
            attend(q, k, v, q_group=q_group, kv_group=kv_group)
    assert [r.getMessage() for r in caplog.records] == ["attention of 11 queries to 11 keys: dense"]
    with pytest.raises(UserError, match="Did you mean 'chunked'"):
        attend(q, k, v, q_group=q_group, kv_group=kv_group, backend="chunkd")


@pytest.mark.parametrize("policy", ["nothing_saveable", "attention"])
def test_inside_scan_and_remat(policy):
    """Two layers in a scan, recomputed in the backward pass, as two calls one after the other."""
    q, k, v, q_group, kv_group = inputs()
    keep = jax.checkpoint_policies.save_only_these_names("attention")
    policies = {"nothing_saveable": jax.checkpoint_policies.nothing_saveable, "attention": keep}

    def layer(x, scale):
        out = attend(scale * x, k, v, q_group=q_group, kv_group=kv_group, backend="chunked")
        return x + out

    def scanned(x, scales):
        step = jax.checkpoint(
            lambda x, s: (layer(x, s), None), policy=policies[policy], prevent_cse=False
        )
        return jnp.sin(jax.lax.scan(step, x, scales)[0]).sum()

    def plain(x, scales):
        return jnp.sin(layer(layer(x, scales[0]), scales[1])).sum()

    scales = jnp.asarray([0.5, 0.7])
    found = jax.jit(jax.grad(scanned, (0, 1)))(q, scales)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-5),
        found,
        jax.grad(plain, (0, 1))(q, scales),
    )


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four simulated devices")
@pytest.mark.parametrize("rows", [4, 3])
def test_rows_over_devices_need_no_collective(rows):
    """Each device runs its own rows; rows that do not divide still give the right answer."""
    arguments = [jnp.concatenate([x, x[::-1]])[:rows] for x in inputs()]
    plain = gradients("chunked", *arguments)
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2,
                         devices=jax.devices()[:4])  # fmt: skip
    with jax.set_mesh(mesh), nn.logical_axis_rules((("row", ("data", "fsdp")),)):
        spec = PartitionSpec(("data", "fsdp")) if rows == 4 else PartitionSpec()
        placed = [jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in arguments]
        compiled = jax.jit(lambda *a: gradients("chunked", *a)).lower(*placed).compile()
        found = compiled(*placed)
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5)
        if rows == 4:
            assert one.sharding.spec[0] == ("data", "fsdp")
    if rows == 4:
        text = compiled.as_text()
        for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
            assert collective not in text
