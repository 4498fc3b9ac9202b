"""Numbers of a run's speed against rows whose work is known."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from experiments import demo
from tests.rows import example, pack, steps
from vdm_jax.config import build
from vdm_jax.nets import cost
from vdm_jax.nets.dit import DiT
from vdm_jax.nets.patterns import Spatial
from vdm_jax.train import meter as meters
from vdm_jax.train.meter import Meter, percentiles
from vdm_jax.train.work import Gather, Work, accounts, total

SIZES = {"tokens": 24, "text": 8, "segments": 3}
CLIPS = [
    example(1, (2, 2, 2), (5, 6)),
    example(2, (1, 2, 3), (7,)),
    example(3, (3, 1, 3), (8, 9, 10)),
    example(4, (1, 3, 3), (5,)),
]
DIT = DiT(width=16, depth=2, heads=2, patch_features=12, cross=("text",), registers=1)
WORK = Work(DIT, {"text": 8})


def rows(*of):
    """The arrays of a batch of one microbatch."""
    return {name: np.asarray(leaf) for name, leaf in steps(pack([*of], **SIZES)).items()}


def alone(grid, words):
    return cost.multiply_adds(DIT, [grid], context={"text": [(words, 8)]})[0]


def test_the_work_of_a_step_is_that_of_its_examples():
    arrays = rows(CLIPS[:2], CLIPS[2:])
    found = total(accounts(arrays, WORK), 2, WORK)
    loads = [alone((2, 2, 2), 2) + alone((1, 2, 3), 1), alone((3, 1, 3), 3) + alone((1, 3, 3), 1)]
    assert (found.slots, found.tokens, found.examples) == (48, 8 + 6 + 9 + 9, 4)
    assert found.useful == pytest.approx(3 * sum(loads), rel=1e-6)
    assert found.straggler == pytest.approx(max(loads) / np.mean(loads), rel=1e-6)
    # Padding goes through the linear layers: twice 4 D^2 + 2 D 4 D, and into the text's keys.
    slot = 2 * (4 * 16**2 + 2 * 16 * 64 + 2 * 16**2) + 16 * (12 + 12)
    assert slot == WORK.slot
    assert found.raw == pytest.approx(3 * (sum(loads) + 16 * slot), rel=1e-6)


def test_a_bad_example_is_work_that_nobody_learns_from():
    arrays = rows(CLIPS[:2], CLIPS[2:])
    bad = arrays | {"valid": arrays["valid"].copy()}
    bad["valid"][0, 0, 0] = False
    whole, part = (total(accounts(a, WORK), 2, WORK) for a in (arrays, bad))
    assert part.tokens == whole.tokens - 8 and part.examples == 3
    assert whole.useful - part.useful == pytest.approx(3 * alone((2, 2, 2), 2), rel=1e-6)
    assert part.straggler == whole.straggler and part.batch != whole.batch


def test_tokens_left_out_make_no_pairs():
    work = Work(DiT(width=16, depth=2, heads=2, patch_features=12), {})
    whole = work.example((4, 4, 4), 64, 0)
    linear, once = 64 * work.slot, 256 * 16 + 16**2 + work.dit.modulation.kernel_count(2) * 16**2
    pairs = 2 * 2 * 64**2 * 16
    assert whole == linear + once + pairs
    half = work.example((4, 4, 4), 32, 0)
    assert half == pytest.approx(linear / 2 + (once + pairs) / 4)
    # Frames apart: a slot costs what it costs.
    apart = Work(DiT(width=16, depth=2, heads=2, patch_features=12, patterns=(Spatial(),)), {})
    assert apart.slot == work.slot and apart.example((4, 4, 4), 64, 0) < whole


def test_the_digest_of_a_batch_does_not_know_where_rows_lie():
    one, other = (
        rows(*(CLIPS[n : n + 1] for n in order)) for order in ((0, 1, 2, 3), (2, 0, 3, 1))
    )
    first, second = (total(accounts(a, None), 4, None) for a in (one, other))
    assert first.batch == second.batch and first.useful is None
    third = rows(CLIPS[:1], CLIPS[1:2], CLIPS[2:3], CLIPS[2:3])
    assert total(accounts(third, None), 4, None).batch != first.batch
    again = {name: leaf.copy() for name, leaf in one.items()}
    again["visit"][0, 0, 0] += 1
    assert total(accounts(again, None), 4, None).batch != first.batch


def test_accounts_come_through_the_mesh_unchanged(monkeypatch):
    said = accounts(rows(*(CLIPS[n : n + 1] for n in range(4)), *[CLIPS[:1]] * 4), WORK, 0.25)
    mesh = jax.make_mesh((8,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, PartitionSpec(None, "data"))
    gather = Gather(sharding)
    assert gather(said) is said
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    found = gather(said)
    assert found.is_fully_replicated and np.array_equal(found, said)


def test_rates_of_a_clock_that_is_known(monkeypatch):
    clock = iter([101.0, 103.0, 104.0, 114.0])
    monkeypatch.setattr(meters.time, "perf_counter", lambda: next(clock))
    meter = Meter(work=WORK, peak=1e6, devices=2, rows=2, started=100.0)
    said = meter.account(rows(CLIPS[:2], CLIPS[2:]))
    lines = [meter.measure(said) for _ in range(4)]
    assert [line["seconds"] for line in lines] == [1, 2, 1, 10]
    assert "seconds_p50" not in lines[0]  # the first step compiles
    useful = total(said, 2, WORK).useful
    assert lines[1]["useful_tokens_per_second"] == 16
    assert lines[1]["useful_tokens_per_second_per_device"] == 8
    assert lines[1]["useful_utilisation"] == pytest.approx(2 * useful / 2 / (2 * 1e6))
    assert lines[1]["raw_utilisation"] > lines[1]["useful_utilisation"]
    found = meter.summary()
    assert (found["steps"], found["seconds"], found["seconds_p50"]) == (4, 13, 2)
    assert found["seconds_p99"] == pytest.approx(np.percentile([2, 1, 10], 99))
    assert found["useful_tokens_per_second"] == pytest.approx(96 / 13)
    assert found["useful_flops_per_second"] == pytest.approx(3 * 2 * useful / 13, rel=1e-6)
    assert found["useful_utilisation"] == pytest.approx(found["useful_flops_per_second"] / 2e6)
    assert found["fill"] == pytest.approx(32 / 48) and found["straggler"] == lines[1]["straggler"]
    assert found["memory_bytes"] > 50e6


def test_the_share_of_waiting_is_that_of_who_waits_longest(monkeypatch):
    meter = Meter(rows=2)
    arrays = rows(CLIPS[:2], CLIPS[2:])
    clock = iter([0.0, 3.0, 10.0])
    monkeypatch.setattr(meters.time, "perf_counter", lambda: next(clock))
    meter.started = 0.0
    with meter.waiting():
        pass
    said = np.concatenate([accounts(arrays, None, 0.5), meter.account(arrays)], axis=1)
    meter.rows = 4
    line = meter.measure(said)
    assert line["input_bound"] == pytest.approx(0.3)
    assert "useful_utilisation" not in line and meter.summary()["useful_utilisation"] is None


def test_percentiles():
    found = percentiles(list(range(101)))
    assert found == {"seconds_p50": 50, "seconds_p90": 90, "seconds_p99": 99}


def test_the_demo_s_work_is_counted():
    stage = build(demo.get_config("smoke").stage)
    assert Work.of(stage, {}).example((4, 5, 5), 100, 12) > 1e6
