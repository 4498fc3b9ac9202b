"""Configs: recorded calls, checked keywords, ranges, JSON, and only code that may be named."""

import dataclasses
import math

import pytest
from ml_collections import ConfigDict

from vdm_jax import config as configs
from vdm_jax.config import UserError, build, from_json, problems, spec, to_json
from vdm_jax.train.optim import AdamW, Optimizer, WarmupCosine


def tree():
    schedule = spec(WarmupCosine, steps=5, total=100)
    adam = spec(AdamW, learning_rate=1e-3)
    return spec(Optimizer, rules=((".*", adam),), schedule=schedule)


def test_build_makes_what_was_recorded():
    made = build(tree())
    assert made == Optimizer(
        rules=((".*", AdamW(learning_rate=1e-3)),), schedule=WarmupCosine(steps=5, total=100)
    )


def test_json_round_trip_builds_the_same():
    assert build(from_json(to_json(tree()))) == build(tree())


def test_references_reach_into_tuples_and_json():
    top = ConfigDict({"rate": 1e-3})
    top.rule = ((".*", spec(AdamW, learning_rate=top.get_ref("rate"))),)
    top.rate = 0.5
    assert build(top.rule)[0][1].learning_rate == 0.5
    assert from_json(to_json(top)).rule[0][1].learning_rate == 0.5


def test_misspelt_keyword_is_named_with_a_suggestion():
    with pytest.raises(UserError, match=r"AdamW takes no 'learning_rat'.*'learning_rate'"):
        spec(AdamW, learning_rat=1e-3)
    node = spec(AdamW, learning_rate=1e-3)
    node.weight_decai = 0.1
    with pytest.raises(UserError, match=r"weight_decai.*weight_decay"):
        build(node)


def test_missing_keyword_is_named():
    with pytest.raises(UserError, match=r"AdamW needs learning_rate"):
        build(spec(AdamW))


@pytest.mark.parametrize("name", ["os:system", "subprocess:run", "vdm_jaxx:x", "builtins:eval"])
def test_a_strangers_config_cannot_name_other_code(name):
    with pytest.raises(UserError, match="only"):
        build(ConfigDict({"spec": name}))


def test_unknown_class_is_said():
    with pytest.raises(UserError, match="does not exist"):
        build(ConfigDict({"spec": "vdm_jax.train.optim:Adamm"}))


@pytest.mark.parametrize("value", [-1e-3, 0.0, math.nan, math.inf])
def test_numbers_out_of_range_are_found(value):
    node = tree()
    node.rules = ((".*", spec(AdamW, learning_rate=value)),)
    found = problems(node)
    assert len(found) == 1
    assert "config.rules[0][1].learning_rate" in found[0]


def test_every_problem_is_reported_at_once():
    node = tree()
    node.clip = -1.0
    node.schedule.total = -3
    node.rules = ((".*", spec(AdamW, learning_rate=-1.0, b1=2.0)),)
    assert len(problems(node)) == 4


def test_whole_numbers_must_be_whole():
    node = tree()
    with node.schedule.ignore_type():
        node.schedule.total = 2.5
    assert "whole number" in problems(node)[0]


def test_leaves_are_dotted_paths():
    found = dict(configs.leaves(tree()))
    assert found["rules[0][1].learning_rate"] == 1e-3
    assert found["schedule.total"] == 100


def test_defaults_need_no_mention():
    assert problems(spec(Optimizer, rules=())) == []
    assert dataclasses.is_dataclass(build(spec(WarmupCosine, steps=0, total=1)))
