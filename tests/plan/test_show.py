"""What a plan says in words, and its tables: every figure with where it is from."""

import io
import types

import pytest
from rich.console import Console

from vdm_jax.parallel.chips import CHIPS
from vdm_jax.plan import show
from vdm_jax.plan.compiled import Compiled, Memory
from vdm_jax.plan.cost import cost
from vdm_jax.plan.machine import Plan
from vdm_jax.plan.mix import Mix
from vdm_jax.plan.roofline import Load, predict
from vdm_jax.plan.search import Choice, Found
from vdm_jax.plan.topology import Topology
from vdm_jax.plan.work import Work

GIB = 2**30


def plan(temporaries=4 * GIB, fsdp=16, share=144, wanted=None):
    memory = Memory(arguments=3 * GIB, outputs=2 * GIB, aliased=2 * GIB, temporaries=temporaries,
                    code=GIB)  # fmt: skip
    load = Load(products=1e15, attention=1e14, straggler=1.0, memory=1e12, links=0.1)
    work = Work(useful=1e17, products=2e17, attention=1e17, pairs=1.02, blocks=1.0, straggler=1.01)
    return Plan(
        what="train",
        topology=Topology("v5e:16x16", (types.SimpleNamespace(),) * 256, CHIPS["v5e"]),
        mesh={"data": 16, "fsdp": fsdp, "seq": 1, "tensor": 1},
        parameters=2_767_795_200,
        rows=512,
        mix=Mix((), "a mix by hand"),
        compiled=Compiled(
            memory=None if wanted else memory, wanted=wanted, module=None, seconds=60.0
        ),
        arguments=3 * GIB,
        limit=CHIPS["v5e"].usable,
        work=work,
        collectives={"reduce-scatter": {"count": 64, "bytes": 5e9}},
        traffic=1e12,
        cycles=0.0,
        unknown=0,
        seconds=predict(load, CHIPS["v5e"]),
        tokens=16_000_000,
        share=share,
    )


def test_json_has_the_promised_keys_and_adds_up():
    found = plan().json()
    assert set(found) == {
        "fits", "hbm_bytes", "hbm_limit_bytes", "parameters", "flops_useful", "flops_executed",
        "collectives", "predicted_step_seconds", "predicted_mfu", "predicted_tokens_per_second",
    }  # fmt: skip
    # Aliased outputs take the place of arguments.
    assert found["hbm_bytes"] == 8 * GIB and found["fits"] is True
    assert found["flops_executed"] == 3e17
    peak = 256 * 197e12
    assert found["predicted_mfu"] == pytest.approx(
        found["flops_useful"] / found["predicted_step_seconds"] / peak
    )
    rate = 16_000_000 / found["predicted_step_seconds"]
    assert found["predicted_tokens_per_second"] == pytest.approx(rate)


def test_what_does_not_fit_says_by_how_much():
    too_much = plan(temporaries=12 * GIB)
    assert not too_much.fits and "it does NOT fit: 0.25 GiB too much" in show.notes(too_much)[0]
    refused = plan(wanted=20 * GIB)
    assert not refused.fits and refused.json()["hbm_bytes"] == 20 * GIB
    assert "4.25 GiB too much" in show.notes(refused)[0]
    assert "it fits, 7.75 GiB" in show.notes(plan())[0]


def test_kernels_cut_across_tiles_are_named():
    assert not any("scattered" in line for line in show.notes(plan()))
    assert any("fsdp 256 leaves 9 rows" in line for line in show.notes(plan(fsdp=256, share=9)))
    assert any("an uneven number" in line for line in show.notes(plan(fsdp=7, share=0)))
    assert not any("scattered" in line for line in show.notes(plan(fsdp=1, share=0)))


def test_every_figure_says_where_it_is_from():
    console = Console(file=io.StringIO(), width=120)
    show.show(plan(), console)
    text = console.file.getvalue()
    for line in ("parameters", "temporaries", "useful FLOPs", "reduce-scatter", "lower bound"):
        (row,) = [row for row in text.splitlines() if row.startswith(line)]
        assert row.rstrip().endswith(("counted", "compiler", "predicted")), row


def test_tables_of_money_and_search():
    console = Console(file=io.StringIO(), width=160)
    show.show_cost(
        cost(step_seconds=1.0, tokens_per_step=10, chips=4, steps=86400, price=2.0), console
    )
    choice = Choice(mesh=(("data", 1), ("fsdp", 4)), remat="full", microbatches=2)
    found = [Found(choice=choice, plan=plan().json()), Found(choice=choice, plan=None, why="died")]
    show.show_search(found, console)
    text = console.file.getvalue()
    assert "1.00" in text and "192" in text  # a day; 4 chips, 24 hours, 2 each
    assert "fsdp 4, remat full, 2 microbatch(es)" in text and "died" in text
