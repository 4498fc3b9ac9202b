"""Seconds by hand, from numbers that divide well."""

import dataclasses
import types

import pytest

from vdm_jax.config import UserError
from vdm_jax.parallel.chips import CHIPS, Chip, chip_called, chip_of, peak_flops
from vdm_jax.plan.roofline import Load, Reached, assumptions, link_seconds, predict, seconds
from vdm_jax.plan.traffic import Collective

CHIP = Chip(
    name="toy", kinds=("Toy",), flops=100.0, hbm=1000, hbm_bandwidth=10.0, links=2, link=1.0,
    usable=900, source="nowhere",
)  # fmt: skip
HALF = Reached(products=0.5, attention=0.25, memory=0.5, links=0.5)


def square(side):
    """Devices of a side x side torus, row by row."""
    return [types.SimpleNamespace(coords=(x, y, 0)) for x in range(side) for y in range(side)]


def collective(kind, members, size=160, times=1.0):
    return Collective(
        kind=kind, bytes=size, times=times, group=tuple(members), looped=False, place=""
    )


def test_bounds_and_guess():
    load = Load(products=200.0, attention=100.0, straggler=1.5, memory=30.0, links=1.0)
    found = predict(load, CHIP, HALF)
    assert found.products == 200 / 50 and found.attention == 1.5 * 100 / 25
    assert found.memory == 30 / 5 and found.links == 2
    assert found.lower == max(200 / 100 + 1.5 * 100 / 100, 30 / 10, 1)
    assert found.upper == 4 + 6 + 6 + 2
    assert found.guess == 6 + max(4, 6)


def test_links_rule_where_they_are_slowest():
    load = Load(products=1.0, attention=0.0, straggler=1.0, memory=1.0, links=50.0)
    found = predict(load, CHIP, HALF)
    assert found.guess == found.links == 100 and found.lower == 50


@pytest.mark.parametrize(
    "kind, members, expected",
    [
        # 160 bytes over 4 chips of one axis, two links: 160 x 3/4 / 2.
        ("all-gather", range(4), 60.0),
        ("reduce-scatter", range(4), 60.0),
        ("all-reduce", range(4), 120.0),
        # All 16 chips along two axes: 160 x 15/16 / 4.
        ("all-gather", range(16), 37.5),
        # A quarter of the longest axis's hops: 160 x 4/4 / 2.
        ("all-to-all", range(4), 80.0),
        ("collective-permute", (0, 1), 160.0),
    ],
)
def test_seconds_of_a_collective(kind, members, expected):
    assert seconds(collective(kind, members), CHIP, square(4)) == pytest.approx(expected)


def test_cores_of_a_chip_share_its_links_and_do_not_need_them():
    two = dataclasses.replace(CHIP, devices=2)
    cores = [device for device in square(4) for _ in range(2)]
    assert seconds(collective("all-gather", range(2)), two, cores) == 0
    # Eight devices on four chips: as four chips, at half the links each.
    assert seconds(collective("all-gather", range(8)), two, cores) == pytest.approx(120.0)


def test_executions_add_up():
    many = collective("all-gather", range(4), times=3.0)
    assert link_seconds([many, many], CHIP, square(4)) == pytest.approx(6 * 60.0)


def test_assumptions_are_printed():
    said = " ".join(assumptions(CHIPS["v5p"], HALF))
    assert "459 TFLOP/s" in said and "2765 GB/s" in said and "0.25 in attention" in said
    assert "overlap" in said and CHIPS["v5p"].source in said


def test_chips_are_found_by_what_jax_calls_them():
    assert chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert peak_flops("TPU7x") == 2307e12 / 2  # a device is half a chip
    assert chip_of("cpu") is None and peak_flops("cpu") is None
    with pytest.raises(UserError, match=r"'v5f'.*'v5[ep]'"):
        chip_called("v5f")


def test_no_device_is_given_more_than_its_chip_has():
    for chip in CHIPS.values():
        assert 0.9 * chip.hbm < chip.usable * chip.devices <= 1.02 * chip.hbm
