"""This machine: a plan is run three times, and what does not fit is answered with what does."""

import json

import pytest

from tests.workbench import vdm
from vdm_jax.plan.local import largest, memory

LENGTHS = [64, 128, 192, 256]
REMATS = ("none", "dots", "full")
COST = {"none": 4, "dots": 3, "full": 1}


@pytest.mark.parametrize(
    "limit, expected",
    [
        (10**9, (256, "none")),
        (256 * 3, (256, "dots")),
        (256, (256, "full")),
        (200, (192, "full")),
        (63, None),
    ],
)
def test_the_largest_row_and_the_least_recomputation(limit, expected):
    asked = []

    def needs(tokens, remat):
        asked.append((tokens, remat))
        return tokens * COST[remat]

    assert largest(LENGTHS, REMATS, needs, limit) == expected
    assert len(asked) <= 5  # compilations are dear


def test_memory_is_that_of_a_machine():
    assert 2**28 < memory() < 2**45


@pytest.mark.slow
def test_the_verb_on_this_machine(manifest):
    config = ("--config=experiments/sora.py:smoke", f"--config.knobs.manifest={manifest}")
    done = vdm("plan", *config, "--topology=local", "--json", "--steps=100", "--price=1")
    found = json.loads(done.stdout)
    assert found["fits"] and len(found["measured_step_seconds"]) == 3
    middle = sorted(found["measured_step_seconds"])[1]
    assert found["days"] == pytest.approx(100 * middle / 86400)
    assert found["money"] == pytest.approx(found["chip_hours"])


@pytest.mark.slow
def test_what_does_not_fit_is_answered(manifest):
    from experiments import sora
    from vdm_jax.config import build
    from vdm_jax.plan.local import measure, needs
    from vdm_jax.plan.machine import make_plan
    from vdm_jax.plan.topology import topology

    config = sora.get_config("smoke")
    config.knobs.manifest, config.data.rows = str(manifest), 8
    run = build(config)
    limit = needs(run, 128, "full") + 1
    found = measure(run, make_plan(run, topology("local")), limit)
    assert not found.fits and found.steps == ()
    tokens, remat = found.largest
    assert 128 <= tokens < run.data.tokens and needs(run, tokens, remat) <= limit
    assert f"rows of {tokens} tokens with remat '{remat}'" in found.lines()[1]
