"""Law 7: every experiment builds, is consumed to the last leaf, has its parameters, trains."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.workbench import call, vdm
from vdm_jax.config import SPEC, UserError, build, from_json, leaves, problems, to_json
from vdm_jax.train.log import read_lines
from vdm_jax.train.program import initialise, parameter_count

FILES = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "experiments").glob("*.py")
    if path.stem not in ("__init__", "base", "curation")  # which trains nothing
)
# Its stages are sampled one after another: tests/test_make_a_video.py.
ALONE = [name for name in FILES if name != "make_a_video"]
# Parameters of the full size. None is published for these: the sizes are ours or assumed, and the
# numbers only tell when a change of the code changes the model. Change them if that was meant.
PARAMETERS = {
    "bunny": 965_376,
    "demo": 963_072,
    "imagen": 2_261_371_395,
    "imagen:space1": 790_704_003,
    "imagen:space2": 446_591_875,
    "imagen_video": 5_477_479_427,
    "imagen_video:time1": 1_893_946_243,
    "imagen_video:space1": 1_456_299_715,
    "imagen_video:space2": 1_228_819_139,
    "imagen_video:time2": 872_562_595,
    "imagen_video:time3": 579_089_539,
    "imagen_video:space3": 338_511_075,
    "make_a_video": 3_109_129_795,
    "make_a_video:prior": 1_295_168_000,
    "make_a_video:image": 2_360_180_227,
    "make_a_video:interp": 3_109_148_227,
    "make_a_video:space1": 1_363_941_155,
    "make_a_video:space2": 700_718_979,
    "own": 965_376,
    "pyoco": 1_028_216_515,
    "sora": 2_767_795_200,
    "vdm_kingma": 30_588_934,
    "video_diffusion_models": 1_201_644_803,
    "video_diffusion_models:small": 308_795_011,
    "video_diffusion_models:size": 1_161_350_659,
}


def config_of(name, variant=""):
    return importlib.import_module(f"experiments.{name}").get_config(variant)


@pytest.mark.parametrize("variant", ["", "smoke"])
@pytest.mark.parametrize("name", FILES)
def test_builds_and_round_trips(name, variant):
    config = config_of(name, variant)
    assert problems(config) == []
    run = build(config)
    assert run.stage.problems() == []
    again = build(from_json(to_json(config)))
    assert again.stage == run.stage and again.optimizer == run.optimizer


@pytest.mark.parametrize("name", FILES)
def test_no_leaf_is_ignored(name):
    """A misspelt leaf anywhere in the tree is refused, so every leaf there is was consumed."""
    config = config_of(name, "smoke")
    specs = [path for path, _ in leaves(config) if path.endswith(SPEC)]
    assert len(specs) > 10
    for path in specs:
        node = config
        for part in path.split(".")[:-1]:
            key, *indices = part.replace("]", "").split("[")
            node = node[key]
            for index in indices:
                node = node[int(index)]
        with node.unlocked():
            node.misspelt_leaf = 1
            with pytest.raises(UserError, match="misspelt_leaf"):
                build(config)
            del node["misspelt_leaf"]


@pytest.mark.parametrize("variant", ["", "smoke"])
@pytest.mark.parametrize("name", FILES)
def test_a_config_that_is_changed_changes_no_other(name, variant):
    """Nothing in it is shared with the next one that the file makes."""

    def nodes(node):
        parts = node.values() if isinstance(node, ConfigDict) else node
        found = [node] if isinstance(node, ConfigDict) else []
        for part in parts:
            if isinstance(part, ConfigDict | tuple | list):
                found += nodes(part)
        return found

    one, other = nodes(config_of(name, variant)), nodes(config_of(name, variant))
    assert len(one) > 10 and not {id(node) for node in one} & {id(node) for node in other}


@pytest.mark.parametrize("name", FILES)
def test_unknown_variant_is_refused(name):
    with pytest.raises(UserError, match="smokey"):
        config_of(name, "smokey")


def test_every_file_is_counted():
    assert set(FILES) == {name.split(":")[0] for name in PARAMETERS}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_the_full_size(name):
    file, _, stage = name.partition(":")
    run = build(config_of(file, stage))
    state = jax.eval_shape(lambda: initialise(run))
    assert parameter_count(state.params) == PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_smoke_trains_and_samples(name, tmp_path, manifest):
    workdir, out = tmp_path / "run", tmp_path / "out"
    config = (f"--config=experiments/{name}.py:smoke", f"--config.knobs.manifest={manifest}")
    vdm("train", *config, f"--workdir={workdir}", "--steps=3")
    lines = [line for line in read_lines(workdir / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 3 and all(np.isfinite(line["loss"]) for line in lines)
    done = call("sample", workdir, "--prompt=a red circle", "--frames=4", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("*.mp4"))) == 1
