"""Loops multiply, repeated pieces of one collective count once, bytes are those of the arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.plan import hlo, traffic
from vdm_jax.plan.traffic import collectives, group, memory_bytes, summary

# As the TPU compiler writes it: a scan of 5 with a gather that is spread over fusions and a
# reduce-scatter that is a fusion, an all-reduce outside, and a loop whose length is data.
TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%begin (p0: bf16[8,64]) -> bf16[32,64] {
  %p0 = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %ag = bf16[32,64]{1,0} all-gather(%p0), channel_id=3, {GROUPS}, backend_config={BEGUN}
}

%go_on (p1: bf16[8,64]) -> bf16[32,64] {
  %p1 = bf16[8,64]{1,0} parameter(0)
  ROOT %ag2 = bf16[32,64]{1,0} all-gather(%p1), channel_id=3, {GROUPS}, backend_config={GOES_ON}
}

%all-reduce-scatter.1 (p2: f32[32,64]) -> f32[8,64] {
  %p2 = f32[32,64]{1,0} parameter(0)
  %at = s32[] constant(0)
  %ar = f32[32,64]{1,0} all-reduce(%p2), channel_id=1, replica_groups={FOURS}, to_apply=%add
  ROOT %cut = f32[8,64]{1,0} dynamic-slice(%ar, %at, %at), dynamic_slice_sizes={8,64}
}

%inner_body (ib: (s32[], s32[])) -> (s32[], s32[]) {
  ROOT %ib = (s32[], s32[]) parameter(0)
}

%inner_condition (ic: (s32[], s32[])) -> pred[] {
  %ic = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%ic), index=0
  %n = s32[] get-tuple-element(%ic), index=1
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (state: (s32[], bf16[8,64], f32[32,64])) -> (s32[], bf16[8,64], f32[32,64]) {
  %state = (s32[], bf16[8,64]{1,0}, f32[32,64]{1,0}) parameter(0)
  %w = bf16[8,64]{1,0} get-tuple-element(%state), index=1
  %g = f32[32,64]{1,0} get-tuple-element(%state), index=2
  %whole = bf16[32,64]{1,0} fusion(%w), kind=kOutput, calls=%begin
  %more = bf16[32,64]{1,0} fusion(%w), kind=kOutput, calls=%go_on
  %kernel = f32[8]{0} custom-call(%w), custom_call_target="tpu_custom_call", backend_config={
 "a": "text that goes on
}
", "b": 1}
  %mine = f32[8,64]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %pair = (s32[], s32[]) tuple()
  %data = (s32[], s32[]) while(%pair), condition=%inner_condition, body=%inner_body
  ROOT %next = (s32[], bf16[8,64]{1,0}, f32[32,64]{1,0}) tuple(%w, %g)
}

%condition (c: (s32[], bf16[8,64], f32[32,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %c = (s32[], bf16[8,64]{1,0}, f32[32,64]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%c), index=0
  ROOT %go = pred[] compare(%count, %limit), direction=LT
}

ENTRY %main (x: f32[16], w0: bf16[8,64], g0: f32[32,64]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  %w0 = bf16[8,64]{1,0} parameter(1)
  %g0 = f32[32,64]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[8,64]{1,0}, f32[32,64]{1,0}) tuple(%zero, %w0, %g0)
  %loop = (s32[], bf16[8,64]{1,0}, f32[32,64]{1,0}) while(%start), condition=%condition, body=%body
  %alone = f32[16]{0} all-reduce(%x), replica_groups={{0}}, to_apply=%add
  ROOT %loss = f32[16]{0} all-reduce(%alone), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}
""".replace("{BEGUN}", '{"async_collective_fusion_config":{"flag_start":"-1"}}')
TEXT = TEXT.replace("{GOES_ON}", '{"async_collective_fusion_config":{"flag_start":"2"}}')
TEXT = TEXT.replace("{GROUPS}", "replica_groups=[2,4]<=[8], dimensions={0}")
TEXT = TEXT.replace("{FOURS}", "{{0,1,2,3},{4,5,6,7}}")


@pytest.fixture(scope="module")
def module():
    return hlo.parse(TEXT)


def test_loops_multiply_and_unknown_ones_are_named(module):
    assert module.runs["body"] == 5
    assert module.runs["begin"] == 5
    assert module.runs["inner_body"] == 5  # a loop of unknown length, once in each turn
    assert module.unknown == ("data",)


def test_a_counter_may_start_elsewhere():
    assert (
        hlo.parse(TEXT.replace("%zero = s32[] constant(0)", "%zero = s32[] constant(2)")).runs[
            "body"
        ]
        == 3
    )


def test_the_compilers_own_count_is_believed():
    said = 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    assert hlo.parse(TEXT.replace("body=%body", said)).runs["body"] == 7


def test_collectives_by_kind(module):
    found = summary(collectives(module))
    assert found == {
        # The whole array, 32 x 64 of two bytes, in each of 5 turns; its second piece is the same.
        "all-gather": {"count": 5, "bytes": 5 * 32 * 64 * 2},
        "reduce-scatter": {"count": 5, "bytes": 5 * 32 * 64 * 4},
        # A group of one moves nothing.
        "all-reduce": {"count": 1, "bytes": 16 * 4},
    }


def test_collectives_know_group_and_loop(module):
    by_kind = {one.kind: one for one in collectives(module)}
    assert by_kind["all-gather"].group == (0, 1, 2, 3) and by_kind["all-gather"].looped
    assert len(by_kind["all-reduce"].group) == 8 and not by_kind["all-reduce"].looped


@pytest.mark.parametrize(
    "written, members",
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", (0, 2, 4, 6)),
        ("source_target_pairs={{0,1},{1,2},{2,0}}", (0, 1, 2)),
    ],
)
def test_groups_however_they_are_written(written, members):
    assert group(f"channel_id=1, {written}, dimensions={{0}}") == members


def test_what_the_core_keeps_costs_nothing():
    text = """HloModule m

ENTRY %main (a: f32[1024]) -> f32[1024] {
  %a = f32[1024]{0:T(1024)} parameter(0)
  %kept = f32[1024]{0:T(1024)S(1)} negate(%a)
  ROOT %out = f32[1024]{0:T(1024)} exponential(%kept)
}
"""
    assert memory_bytes(hlo.parse(text)) == 2 * 4096


def test_a_slice_of_a_stack_costs_the_slice():
    text = """HloModule m

%one_layer (p: f32[32,1024], i: s32[]) -> f32[1024] {
  %p = f32[32,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,1024]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,1024}
  ROOT %flat = f32[1024]{0} bitcast(%cut)
}

%put_back (q: f32[32,1024], v: f32[1,1024], j: s32[]) -> f32[32,1024] {
  %q = f32[32,1024]{1,0} parameter(0)
  %v = f32[1,1024]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %put = f32[32,1024]{1,0} dynamic-update-slice(%q, %v, %j, %none)
}

ENTRY %main (stack: f32[32,1024], n: s32[], new: f32[1,1024]) -> f32[32,1024] {
  %stack = f32[32,1024]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %new = f32[1,1024]{1,0} parameter(2)
  %layer = f32[1024]{0} fusion(%stack, %n), kind=kLoop, calls=%one_layer
  ROOT %out = f32[32,1024]{1,0} fusion(%stack, %new, %n), kind=kLoop, calls=%put_back
}
"""
    read, written = 4096, 4096
    index = 4
    expected = (read + written + index) + (4096 + written + index)
    assert memory_bytes(hlo.parse(text)) == pytest.approx(expected, abs=8)


def test_traffic_of_a_program_without_loops_is_what_the_compiler_counts():
    def f(x, w):
        return jnp.tanh(x @ w) @ w + x

    x, w = (jnp.zeros(shape) for shape in ((64, 256), (256, 256)))
    compiled = jax.jit(f).lower(x, w).compile()
    counted = memory_bytes(hlo.parse(compiled.as_text()))
    assert counted == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.1)


def test_a_live_scan_over_devices():
    """Against the program itself: 6 layers, each gathering its kernel once."""
    mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.NamedSharding(mesh, jax.P(None, "a"))

    def gathered(x, kernel):
        def here(x, kernel):
            return x @ jax.lax.all_gather(kernel, "a", axis=0, tiled=True)

        specs = dict(in_specs=(jax.P("a"), jax.P("a")), out_specs=jax.P("a"), check_vma=False)
        return jax.shard_map(here, mesh=mesh, **specs)(x, kernel), None

    def f(x, kernels):
        return jax.lax.scan(gathered, x, kernels)[0]

    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P("a")))
    kernels = jax.ShapeDtypeStruct((6, 16, 16), jnp.float32, sharding=place)
    module = hlo.parse(jax.jit(f).lower(x, kernels).compile().as_text())
    found = [one for one in collectives(module) if one.kind == "all-gather"]
    assert sum(one.times for one in found) == 6
    assert sum(one.moved for one in found) == 6 * 16 * 16 * 4
    assert {len(one.group) for one in found} == {8}


def test_cycles_are_summed_over_turns():
    said = 'calls=%begin, backend_config={"estimated_cycles":"100"}'
    assert traffic.cycles(hlo.parse(TEXT.replace("calls=%begin", said))) == 500


def test_text_without_an_entry():
    with pytest.raises(ValueError, match="no entry"):
        hlo.parse("HloModule empty\n")


def test_bytes_of_shapes():
    one = hlo.parse(TEXT).computations["begin"]["ag"]
    assert one.bytes == 32 * 64 * np.dtype(np.float16).itemsize
