"""Attention whose tokens are divided over devices, against dense on one; hops; what is sent."""

import collections
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec

from vdm_jax.config import UserError
from vdm_jax.kernels import attend, chunked, dense, spread
from vdm_jax.kernels.chunked import Chunked
from vdm_jax.kernels.spread import Layout

ROWS, N, HEADS, DIM, BLOCK = 2, 48, 4, 8, 8
RULES = (("row", "data"), ("token", "seq"), ("heads", "tensor"))
MESHES = {
    "four": {"seq": 4},
    "eight": {"seq": 8},
    "rows_and_heads": {"data": 2, "seq": 2, "tensor": 2},
}
UNALIGNED = [1] * 7 + [2] * 20 + [3] * 5 + [4] * 6 + [0] * 10
GROUPS = {
    "one_group": ([1] * N, [1] * N),
    "unaligned": (UNALIGNED, UNALIGNED),
    "aligned": ([1] * 12 + [2] * 24 + [3] * 12,) * 2,
    "one_each": (list(range(1, N + 1)),) * 2,
    "unsorted": ([i * 7 % 5 for i in range(N)],) * 2,
    "all_padding": ([0] * N, [0] * N),
    "blind_queries": (UNALIGNED, [1] * 10 + [3] * (N - 10)),
    "large_ids": ([10**9 + g for g in UNALIGNED],) * 2,
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCKS", {"cpu": BLOCK})


def inputs(case="unaligned", n=N, m=N, dtype=jnp.float32):
    """(q, k, v, what the loss weighs the output by, group ids); the rows' ids differ."""
    rng = np.random.default_rng(0)
    shapes = [(ROWS, s, HEADS, DIM) for s in (n, m, m, n)]
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    return *arrays, *(
        jnp.asarray([ids[:s], ids[::-1][:s]], jnp.int32)
        for ids, s in zip(GROUPS[case], (n, m), strict=True)
    )


def answers(on, q, k, v, weight, q_group, kv_group):
    """(out, dq, dk, dv)."""

    def total(q, k, v):
        out = on(q, k, v, q_group, kv_group)
        return (out * weight).astype(jnp.float32).sum(), out

    (_, out), slopes = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(q, k, v)
    return out, *slopes


@functools.cache
def truth(*case):
    return jax.jit(functools.partial(answers, dense.attend))(*inputs(*case))


def named(backend, **axes):
    def on(q, k, v, q_group, kv_group):
        return attend(q, k, v, q_group=q_group, kv_group=kv_group, backend=backend, **axes)

    return on


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function on a mesh; arrays are divided over it before it is called."""

    mesh: jax.sharding.Mesh
    call: Any

    def __call__(self, *arrays):
        return self.call(*(jax.device_put(x, self.place(x)) for x in arrays))

    def place(self, x):
        rows, tokens = (
            axis if axis in self.mesh.shape and size % self.mesh.shape[axis] == 0 else None
            for axis, size in zip(("data", "seq"), x.shape, strict=False)
        )
        return jax.NamedSharding(self.mesh, PartitionSpec(rows, tokens))

    @property
    def text(self) -> str:
        return self.call.as_text()


def mesh_of(shape):
    count = int(np.prod([*shape.values()]))
    kinds = (AxisType.Auto,) * len(shape)
    sizes, devices = tuple(shape.values()), jax.devices()[:count]
    return jax.make_mesh(sizes, tuple(shape), axis_types=kinds, devices=devices)


def compiled(shape, on, arrays, rules=RULES):
    """`answers` of `on` for these shapes: ids are data, one program serves all packings."""
    program = Program(mesh_of(shape), None)
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=program.place(x)) for x in arrays]
    with jax.set_mesh(program.mesh), nn.logical_axis_rules(rules):
        lowered = jax.jit(functools.partial(answers, on)).lower(*like)
    return dataclasses.replace(program, call=lowered.compile())


@functools.cache
def divided(mesh, way):
    return compiled(MESHES[mesh], named(way), inputs())


def agree(found, expected, atol=3e-5):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


CASES = [
    ("four", "ring"),
    ("rows_and_heads", "ulysses"),
    pytest.param("eight", "ring", marks=pytest.mark.slow),
    pytest.param("four", "ulysses", marks=pytest.mark.slow),
    pytest.param("rows_and_heads", "ring", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("mesh, way", CASES)
@pytest.mark.parametrize("case", sorted(GROUPS))
def test_divided_tokens_agree_with_dense(case, mesh, way):
    found = divided(mesh, way)(*inputs(case))
    agree(found, truth(case))
    *_, q_group, kv_group = inputs(case)
    blind = ~(q_group[:, :, None] == kv_group[:, None]).any(-1)
    assert not np.any(np.asarray(found[0])[blind]) and not np.any(np.asarray(found[1])[blind])


@pytest.mark.parametrize("mesh, way", CASES)
def test_what_is_sent_and_what_is_whole(mesh, way):
    """By the compiled program of one device: its share, and the collectives of the way."""
    text = divided(mesh, way).text
    rows, seq, heads = (
        whole // MESHES[mesh].get(axis, 1)
        for axis, whole in (("data", ROWS), ("seq", N), ("tensor", HEADS))
    )
    assert f"f32[{rows},{seq},{heads},{DIM}]" in text
    assert not re.search(rf"f32\[\d+,{N},{HEADS},", text)
    assert not re.search(r"f32\S* all-gather", text), "keys are gathered"
    if way == "ring":
        # Values, keys and ids once a hop forwards; again, and the two gradients, backwards.
        assert "collective-permute" in text and "all-to-all" not in text
        assert not re.search(rf"f32\[{rows},{N},", text), "a device holds a whole row"
    else:
        assert "all-to-all" in text and "collective-permute" not in text
        assert f"f32[{rows},{N},{heads * seq // N},{DIM}]" in text, "heads are not divided"


@pytest.mark.parametrize("way", ["ring", pytest.param("ulysses", marks=pytest.mark.slow)])
def test_lengths_that_the_devices_do_not_divide(way):
    arrays = inputs("unaligned", 42, 42)
    found = compiled({"seq": 4}, named(way), arrays)(*arrays)
    assert found[0].shape == arrays[0].shape
    agree(found, truth("unaligned", 42, 42))


def test_whole_keys_are_read_without_a_collective():
    """Cross-attention from divided tokens: forwards nothing is sent, and text is not divided."""
    arrays = inputs("unaligned", N, 29)
    on = named("chunked", kv_axis="text")
    agree(compiled({"seq": 4}, on, arrays)(*arrays), truth("unaligned", N, 29))
    program = Program(mesh_of({"seq": 4}), None)
    q, *others = (arrays[i] for i in (0, 1, 2, 4, 5))
    whole = jax.NamedSharding(program.mesh, PartitionSpec())
    q, *others = jax.device_put(q, program.place(q)), *(jax.device_put(x, whole) for x in others)
    with jax.set_mesh(program.mesh), nn.logical_axis_rules(RULES):
        text = jax.jit(on).lower(q, *others).compile().as_text()
    assert f"f32[{ROWS},{N // 4},{HEADS},{DIM}]" in text
    for sent in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert sent not in text


@pytest.mark.slow
def test_half_precision_is_summed_in_full():
    """Over eight hops no worse than twice what one kernel loses on one device."""
    arrays = inputs("one_group", N, N, jnp.bfloat16)
    exact = truth("one_group")
    ring = compiled({"seq": 8}, named("ring"), arrays)(*arrays)
    alone = jax.jit(functools.partial(answers, named("chunked")))(*arrays)
    for hops, one, other in zip(ring, alone, exact, strict=True):
        assert hops.dtype == jnp.bfloat16

        def lost(x, other=other):
            return np.abs(np.asarray(x, np.float64) - np.asarray(other, np.float64)).mean()

        assert lost(hops) < 2 * lost(one)


@dataclasses.dataclass(frozen=True)
class Counting:
    """A kernel that writes down each of its runs."""

    kernel: Chunked
    runs: collections.Counter = dataclasses.field(default_factory=collections.Counter, hash=False)

    def forward(self, *arguments):
        jax.debug.callback(lambda: self.runs.update(["forward"]))
        return self.kernel.forward(*arguments)

    def backward(self, *arguments):
        jax.debug.callback(lambda: self.runs.update(["backward"]))
        return self.kernel.backward(*arguments)


@functools.cache
def counted():
    """A ring of four that counts hops, and its counter."""
    kernel, over = Counting(Chunked(BLOCK)), Layout(queries=("seq",), keys=("seq",), way="ring")
    on = functools.partial(spread.attend, kernel, over=over)
    return compiled({"seq": 4}, on, inputs()), kernel.runs


@pytest.mark.parametrize(
    "ids, hops",
    [
        ([1] * N, 16),
        ([1] * 12 + [2] * 12 + [3] * 12 + [0] * 12, 4),
        # Two shares meet where a segment crosses their border: 0 and 1, 1 and 2; padding is last.
        ([1] * 18 + [2] * 12 + [0] * 18, 4 + 2 * 3),
        ([1, 2] * 24, 16),  # ranges cannot tell these apart
    ],
)
def test_hops_that_compute_are_those_whose_groups_can_meet(ids, hops):
    program, runs = counted()
    q, k, v, weight, *_ = inputs()
    ids = jnp.asarray([ids, ids], jnp.int32)
    runs.clear()
    jax.block_until_ready(program(q, k, v, weight, ids, ids))
    jax.effects_barrier()
    assert runs == {"forward": hops, "backward": hops}


def test_skipped_hops_touch_nothing():
    """Whatever travels by, nan even."""
    program = divided("four", "ring")
    ids = jnp.asarray([[1] * 24 + [2] * 24] * ROWS, jnp.int32)
    arrays = inputs()[:4]
    poison = [x.at[:, 24:].set(jnp.nan) for x in arrays[:3]]
    clean, spoilt = program(*arrays, ids, ids), program(*poison, arrays[3], ids, ids)
    for one, other in zip(clean, spoilt, strict=True):
        np.testing.assert_array_equal(one[:, :24], other[:, :24])


@pytest.mark.slow
@pytest.mark.parametrize("way, sent", [("ring", "collective-permute"), ("ulysses", "all-to-all")])
def test_a_kept_result_spares_the_second_pass(way, sent):
    """By the loops and collectives of a layer's gradient when all, its result or nothing is kept.

    Keys of the ring: k, v and ids once in the forward loop; twice in the backward pass, with two
    gradients; these once more at the last hop and once home. Ulysses: q, k, v and out, there and
    back; what is recomputed moves q, k and v again.
    """
    keep = jax.checkpoint_policies
    q, *_, ids, _ = inputs("one_group")

    def counts(policy):
        def layer(x):
            q, k, v = jnp.sin(x), jnp.cos(x), 2 * x
            return attend(q, k, v, q_group=ids, kv_group=ids, backend=way)

        def total(x):
            kept = jax.checkpoint(layer, policy=policy, prevent_cse=False)
            return jnp.sin(jax.lax.scan(lambda x, _: (kept(x), None), x, length=2)[0]).sum()

        with jax.set_mesh(mesh_of({"seq": 4})), nn.logical_axis_rules(RULES):
            text = jax.jit(jax.grad(total)).lower(q).compile().as_text()
        return tuple(len(re.findall(rf" {name}\(", text)) for name in ("while", sent))

    everything = counts(keep.everything_saveable)
    result = counts(keep.save_only_these_names("attention"))
    nothing = counts(keep.nothing_saveable)
    assert everything[1] == {"ring": 3 + 3 + (3 + 2) + 2 + 2, "ulysses": 4 + 4}[way]
    assert result[0] == everything[0] < nothing[0]
    assert result[1] == everything[1] + {"ring": 0, "ulysses": 3}[way]


def test_the_way_is_chosen_by_heads():
    def way(mesh, heads, name=None, **axes):
        usual = dict(q_axis="token", kv_axis="token")
        with jax.set_mesh(mesh_of(mesh)), nn.logical_axis_rules(RULES):
            return spread.layout(2, heads, way=name, **(usual | axes)).way

    assert way({"seq": 4}, 8) == "ulysses"
    assert way({"seq": 4}, 6) == "ring"
    assert way({"seq": 2, "tensor": 2}, 2) == "ring"
    assert way({"seq": 2, "tensor": 2}, 4) == "ulysses"
    assert way({"seq": 2, "tensor": 2}, 4, "ring") == "ring"
    assert way({"seq": 1, "tensor": 2}, 4, "ring") is None
    assert way({"seq": 4}, 8, kv_axis="text") is way({"seq": 4}, 8, q_axis="text") is None
    with pytest.raises(UserError, match=r"6 of them do not divide over 4 devices.*'ring'"):
        way({"seq": 4}, 6, "ulysses")
