"""Only what divides is tried, and what fits and is fastest comes first."""

from experiments import sora
from vdm_jax.config import build
from vdm_jax.parallel.mesh import sizes_of
from vdm_jax.plan import search
from vdm_jax.plan.search import Choice, Found, choices


def run(rules="fsdp", rows=64):
    config = sora.get_config("smoke")
    config.rules, config.data.rows = rules, rows
    return build(config)


def plan(fits, rate, size=10):
    return {"fits": fits, "predicted_tokens_per_second": rate, "hbm_bytes": size}


def test_choices_divide_devices_and_rows():
    for rules in ("dp", "fsdp", "fsdp_tp", "fsdp_seq", "all"):
        made = run(rules)
        found = choices(made, 32)
        assert found and len(found) == len(set(found))
        for choice in found:
            data, fsdp, _, _ = sizes_of(dict(choice.mesh), 32)
            assert made.data.rows % (data * fsdp * choice.microbatches) == 0
    assert {dict(c.mesh)["fsdp"] for c in choices(run("dp"), 32)} == {1}
    assert {dict(c.mesh)["tensor"] for c in choices(run("fsdp_tp"), 32)} == {1, 2, 4, 8, 16}


def test_rows_that_divide_nowhere():
    assert choices(run(rows=3), 8) == []


def test_ranking():
    first = choices(run(), 8)
    plans = [plan(True, 5.0), plan(False, 99.0, 30), None, plan(True, 7.0), plan(False, 99.0, 20)]
    answers = dict(zip(first, plans, strict=False))
    found = search.search(
        first[:5], lambda choice: Found(choice=choice, plan=answers[choice], why="died")
    )
    assert [one.plan for one in found] == [plans[3], plans[0], plans[4], plans[1], None]


def test_a_choice_that_dies_says_why():
    choice = Choice(mesh=(("data", 1), ("fsdp", 1)), remat="full", microbatches=1)
    found = search.in_process(["--topology=v9:2x2"])(choice)
    assert found.plan is None and "there is no topology 'v9:2x2'" in found.why
