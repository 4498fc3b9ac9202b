"""Names and mistakes, before any compiler is asked."""

import importlib.util

import pytest

from vdm_jax.__main__ import main
from vdm_jax.config import UserError
from vdm_jax.plan import topology
from vdm_jax.plan.compiled import refusal
from vdm_jax.plan.topology import split


def test_names():
    assert split("v5e:16x16")[0].name == "v5e" and split("v5p:4x4x8")[1] == "4x4x8"
    assert split("tpu7x:4x4x4")[0].name == split("v7x:4x4x4")[0].name == "v7x"


@pytest.mark.parametrize(
    "name, said",
    [
        ("v5d:16x16", "there is no topology 'v5d:16x16'.*v5e:16x16"),
        ("v5e", "v5e chips along 2 axes, such as v5e:16x16"),
        ("v5e:4x4x4", "v5e chips along 2 axes"),
        ("v5p:16x16", "v5p chips along 3 axes, such as v5p:4x4x8"),
        ("v6e:0x4", "v6e chips"),
    ],
)
def test_mistakes(name, said):
    with pytest.raises(UserError, match=said):
        split(name)


def test_without_the_compiler_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-tpu\.txt"):
        topology.topology("v5e:2x2")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--topology=v5f:2x2"], "there is no topology 'v5f:2x2'"),
        (["--topology=local", "--mesh=rows=2"], "--mesh has 'rows=2'"),
        (["--topology=local", "--price=2"], "--price needs --steps or --tokens"),
        (["--topology=local", "--search"], "--search is for a TPU"),
        (["--topology=local", "--what=dream"], "--what is 'dream'"),
        (["--topology=local", "--effort=slow"], "no --effort 'slow'. Did you mean 'low'?"),
    ],
)
def test_the_verb_s_mistakes(words, said, capsys):
    assert main(["plan", "--config=experiments/sora.py:smoke", *words]) == 2
    assert said in capsys.readouterr().err


def test_refusals_of_the_compiler():
    """Its two ways of saying that memory does not do; anything else is no refusal."""
    first = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    first += "temporaries (840.50G) exceeds available HBM (15.75G)."
    assert refusal(first, 2**30) == int(841.5 * 2**30)
    second = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm."
    assert refusal(second, 2**30) == int(20.5 * 2**30)
    assert refusal("INVALID_ARGUMENT: no such thing", 0) is None
