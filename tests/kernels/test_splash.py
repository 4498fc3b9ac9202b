"""The TPU kernel, interpreted: against dense, and what the map it is given makes it compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from vdm_jax.kernels import attend, blocks, dense, splash
from vdm_jax.kernels.attend import choose
from vdm_jax.kernels.kernel import HIDDEN, Saved, merge
from vdm_jax.kernels.kernel import attend as run
from vdm_jax.kernels.platform import platform
from vdm_jax.kernels.splash import Splash

N, M, HEADS, DIM, BLOCK = 384, 300, 2, 16, 128
KERNEL = Splash(block=BLOCK, interpret=True)
RISING = [1] * 100 + [2] * 28 + [3] * 128 + [4] * 50 + [5] * 14 + [0] * 64
GROUPS = {
    "one_segment": ([1] * N, [1] * N),
    "one_each": (list(range(1, N + 1)),) * 2,
    "block_borders": ([1] * 128 + [2] * 128 + [3] * 128,) * 2,
    "unaligned": (RISING, RISING),
    "unsorted": ([i * 7 % 5 for i in range(N)],) * 2,
    "all_padding": ([0] * N, [0] * N),
    "large_ids": ([10**9 + g for g in RISING],) * 2,
    # The second block of queries meets a block whose ids surround its own; the third meets none.
    "blind": ([1] * 128 + [3] * 128 + [9] * 128, [1] * 128 + [2] * 64 + [4] * 192),
}


def inputs(case, m=N, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, s, HEADS, DIM)), dtype) for s in (N, m, m))
    q_ids, kv_ids = GROUPS[case]
    # Two rows of other packings; the other's ids are none of the first's.
    other = [7] * 200 + [8] * 150 + [0] * 34
    q_group, kv_group = jnp.asarray([q_ids, other]), jnp.asarray([kv_ids[:m], other[:m]])
    return q, k, v, q_group, kv_group


def answers(on, q, k, v, q_group, kv_group):
    """(out, dq, dk, dv)."""
    weight = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)

    def total(q, k, v):
        out = on(q, k, v, q_group, kv_group)
        return (out.astype(jnp.float32) * weight).sum(), out

    (_, out), slopes = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(q, k, v)
    return out, *slopes


@functools.cache
def program(on):
    return jax.jit(functools.partial(answers, on))


ours, truth = program(functools.partial(run, KERNEL)), program(dense.attend)


def near(found, exact, bound=3e-5):
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            np.asarray(one, np.float32), np.asarray(other, np.float32), atol=bound
        )


@pytest.mark.parametrize("case", sorted(GROUPS))
def test_agrees_with_dense(case):
    arguments = inputs(case)
    near(ours(*arguments), truth(*arguments))


def test_one_program_serves_every_packing():
    ours(*inputs("unaligned"))
    programs = ours._cache_size()
    ours(*inputs("one_each"))
    assert ours._cache_size() == programs


def test_queries_to_fewer_keys():
    arguments = inputs("unaligned", m=M)
    near(ours(*arguments), truth(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(GROUPS))
@pytest.mark.parametrize("m", [M, 77])
def test_queries_to_fewer_keys_of_any_packing(case, m):
    arguments = inputs(case, m)
    near(ours(*arguments), truth(*arguments))


def test_half_precision():
    arguments = inputs("unaligned", dtype=jnp.bfloat16)
    full = truth(*(x.astype(jnp.float32) for x in arguments[:3]), *arguments[3:])
    for half, exact in zip(ours(*arguments), full, strict=True):
        assert half.dtype == jnp.bfloat16
        assert np.abs(np.asarray(half, np.float32) - exact).max() < 0.03 * np.abs(exact).max()


def test_a_query_that_sees_nothing():
    """Whether it met a block of others or none at all: 0, no gradient, and no weight in a merge."""
    q, k, v, q_group, kv_group = inputs("blind")
    out, lse = KERNEL.forward(q, k, v, q_group, kv_group)
    assert not np.any(out[0, 128:]) and np.all(lse[0, :, 128:] == np.float32(HIDDEN))
    assert np.all(np.isfinite(out)) and np.all(lse[0, :, :128] > HIDDEN)
    _, d_q, d_k, d_v = ours(q, k, v, q_group, kv_group)
    assert not np.any(d_q[0, 128:]) and not np.any(d_k[0, 128:]) and not np.any(d_v[0, 128:])
    assert np.any(d_q[0, :128]) and np.any(d_k[0, :128])


def test_keys_in_two_parts_merge():
    """What a ring does: each part forwards, then backwards given the result over all keys."""
    q, k, v, q_group, kv_group = inputs("unaligned")
    parts = [(k[:, cut], v[:, cut], kv_group[:, cut]) for cut in (slice(0, 256), slice(256, N))]
    on = jax.jit(lambda k, v, ids: KERNEL.forward(q, k, v, q_group, ids))
    out, lse = merge(*(on(*part) for part in parts))
    weight = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)
    back = jax.jit(
        lambda k, v, ids: KERNEL.backward(Saved(q, k, v, q_group, ids, out, lse), weight)
    )
    (one_q, *one), (other_q, *other) = (back(*part) for part in parts)
    keys = (jnp.concatenate(pair, 1) for pair in zip(one, other, strict=True))
    near((out, one_q + other_q, *keys), truth(q, k, v, q_group, kv_group))


@pytest.mark.parametrize("case", sorted(GROUPS))
def test_the_map_names_the_blocks_that_meet(case, monkeypatch):
    """Counted from what the kernel is given, forwards, for dq and for dk and dv."""
    arguments = inputs(case, m=M)
    given = {}

    class Seen(Exception):
        pass

    def forward(info, *_, **__):
        given["out"] = info
        raise Seen

    def backward(*, res, **_):
        given["dq"], given["dkv"] = res[-2:]
        raise Seen

    monkeypatch.setattr(splash.splash, "_splash_attention_forward", forward)
    monkeypatch.setattr(splash.splash, "_splash_attention_bwd", backward)
    q, *_, q_group, kv_group = arguments
    with pytest.raises(Seen):
        KERNEL.forward(*arguments)
    with pytest.raises(Seen):
        KERNEL.backward(Saved(*arguments, q, jnp.zeros((2, HEADS, N))), q)

    met = np.asarray(blocks.meets(q_group, kv_group, BLOCK))
    expected = {(b * 3 + i, b * 3 + j) for b, i, j in zip(*np.nonzero(met), strict=True)}
    count = int(blocks.executed(q_group, kv_group, BLOCK).sum())
    assert 0 < count == len(expected)
    for name, info in given.items():
        flags, fetch = np.asarray(info.block_mask)[0], np.asarray(info.data_next)[0]
        assert flags.sum() == count
        rows, columns = np.nonzero(flags)
        if name == "dkv":  # (slot, block of keys) -> block of queries
            pairs = zip(fetch[rows, columns], columns, strict=True)
        else:  # (block of queries, slot) -> block of keys
            pairs = zip(rows, fetch[rows, columns], strict=True)
        assert {(int(i), int(j)) for i, j in pairs} == expected
        # An idle slot fetches nothing new.
        along = 0 if name == "dkv" else 1
        idle = np.diff(fetch, axis=along)[np.take(flags, range(1, 3), axis=along) == 0]
        assert not idle.any()


def test_skipped_blocks_are_not_touched():
    """Whatever lies in blocks that cannot meet, nan even, is never multiplied."""
    q, k, v, *_ = inputs("unaligned")
    ids = jnp.asarray([[1] * 128 + [2] * 256, [7] * 256 + [0] * 128])
    poison = [x.at[0, 128:].set(jnp.nan).at[1, 256:].set(jnp.nan) for x in (q, k, v)]
    spoilt, clean = ours(*poison, ids, ids), ours(q, k, v, ids, ids)
    for one, other in zip(spoilt, clean, strict=True):
        np.testing.assert_array_equal(one[0, :128], other[0, :128])
        np.testing.assert_array_equal(one[1, :256], other[1, :256])
        assert np.isnan(one[0, 128:]).all() and np.isnan(one[1, 256:]).all()  # nor is it hidden


def test_maps_fit_the_scalar_memory():
    """Rows end to end share one map; where it would be too large, blocks grow."""

    def sizes(b, n, m):
        q, k = (jax.ShapeDtypeStruct((b, s, 1, 64), jnp.bfloat16) for s in (n, m))
        return Splash(block=512, interpret=False)._sizes(q, k)

    assert sizes(1, 40, 77) == (128, 128)
    assert sizes(4, 131072, 131072) == (512, 512)
    assert sizes(1, 131072, 300) == (512, 384)
    assert sizes(2, 262144, 262144) == (1024, 1024)
    # 2 rows of 256 x 256 blocks: an index up to 511 takes two bytes, a flag one.
    assert splash.map_bytes(2, 256, 256) == 2 * 256 * 256 * 3


def described(kind="tpu"):
    device = AbstractDevice(device_kind="TPU v5", num_cores=1, platform=kind)
    return AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)


def test_the_mesh_says_what_is_traced_for():
    assert platform() == jax.default_backend() == "cpu"
    with jax.sharding.use_abstract_mesh(described()):
        assert platform() == "tpu"
        assert not splash.kernel().interpret
    assert splash.kernel().interpret


def test_a_tpu_is_given_the_kernel():
    """Lowered for one, on a machine that has none: three kernels, chosen without being named."""
    assert choose("tpu", rows=1, queries=4096, keys=4096, heads=4) == "splash"
    assert choose("tpu", rows=1, queries=512, keys=512, heads=4) == "dense"
    assert choose("tpu", rows=512, queries=512, keys=512, heads=16) == "splash"
    rows = jax.ShapeDtypeStruct((1, 1024, 2, 64), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((1, 1024), jnp.int32)

    def on(q, k, v, q_group, kv_group):
        return attend(q, k, v, q_group=q_group, kv_group=kv_group)

    step = jax.jit(functools.partial(answers, on))
    with jax.sharding.use_abstract_mesh(described()):
        lowered = step.trace(rows, rows, rows, ids, ids).lower(lowering_platforms=("tpu",))
    for name in ("fwd", "dq", "dkv"):
        assert f"splash_mha_{name}_segmented" in lowered.as_text()
    assert lowered.as_text().count("tpu_custom_call") >= 3
