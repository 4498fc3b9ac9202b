"""`vdm distill` as a user starts it: rounds that are runs, gone on with and sampled like any."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import demo
from tests.workbench import call, vdm
from vdm_jax import pipeline
from vdm_jax.config import UserError, build, spec
from vdm_jax.objectives.progressive import Progressive
from vdm_jax.parallel.place import whole
from vdm_jax.pipeline import Request
from vdm_jax.train.distill import Distillation, halved
from vdm_jax.train.frozen import FromRun
from vdm_jax.train.log import read_lines
from vdm_jax.train.program import make_program


def distil(folder, teacher, *more):
    words = ("--from=8", "--to=4", "--guide=1,6", "--steps=2")
    return call("distill", f"--workdir={folder}", f"--teacher={teacher}", *words, *more)


@pytest.mark.slow
def test_rounds_are_runs(tmp_path, trained):
    """Guidance, then half the steps; begun again, what is done is not done again."""
    folder = tmp_path / "students"
    done = distil(folder, trained)
    assert done.returncode == 0, done.stderr
    assert "new: params/backbone/time/early/kernel" in done.stderr
    assert "left over" not in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["4", "guided"]
    for name, count in (("guided", 8), ("4", 4)):
        lines = [x for x in read_lines(folder / name / "metrics.jsonl") if "loss" in x]
        assert len(lines) == 2 and all(np.isfinite(line["loss"]) for line in lines)
        sampler = pipeline.load(folder / name).stage.sampler
        assert sampler.steps == count and sampler.guides == () and sampler.guidance == 5.0
    again = distil(folder, trained)
    assert again.returncode == 0 and again.stderr.count("is trained.") == 2
    # On from two steps to three: another teacher's steps would be another run.
    more = distil(folder, trained, "--steps=3")
    assert more.returncode == 0 and "from step 2 to step 3" in more.stderr, more.stderr
    out = tmp_path / "out"
    words = ("--prompt=a red circle", "--frames=4", "--height=16", "--width=16", "--json")
    made = vdm("sample", folder / "4", *words, "--guidance=3", f"--out={out}")
    assert json.loads(made.stdout)["failed"] == []


@pytest.mark.slow
def test_a_student_begins_as_its_teacher_and_is_told_the_scale(tmp_path, trained):
    """Before it is trained a student of guidance is its teacher without guidance, whatever it is
    told; after training, scales matter, and one evaluation a step is all it takes."""
    config = Distillation(
        teacher=str(trained), workdir=str(tmp_path), begin=8, end=4, steps=1, guide=(1.0, 6.0)
    ).config(str(trained), str(tmp_path / "guided"), 8)
    run = build(config)
    state = make_program(run, jax.devices()[:1]).init()
    params, report = run.inherit(state.params, FromRun(run=str(trained), step=6).weights())
    assert "left over" not in report
    params = jax.tree.map(np.asarray, params)
    made = pipeline.load(trained)
    student = dataclasses.replace(made, stage=run.stage, params=params, traced=None)
    requests = [Request(prompt="a red circle", frames=4, height=16, width=16)]

    def video(made, scale):
        return dict(made.override(steps=8, guidance=scale)(requests))[0].astype(int)

    plain, told, strongly = video(made, 1.0), video(student, 1.0), video(student, 6.0)
    np.testing.assert_array_equal(told, strongly)
    np.testing.assert_allclose(told, plain, atol=1)
    # Its new layer starts at 0; once it does not, the scale is heard.
    early = params["params"]["backbone"]["time"]["early"]
    early["kernel"] = early["kernel"] + 1.0
    assert np.any(video(student, 1.0) != video(student, 6.0))


def test_the_teacher_is_an_argument_of_the_step(manifest, trained):
    """Law 8: spread over the mesh as the student is, no constant of the program, never changed."""
    config = demo.get_config("smoke")
    config.knobs.manifest, config.data.rows, config.rules = str(manifest), 8, "fsdp"
    config.mesh.update({"data": 2, "fsdp": 4})
    teacher = spec(FromRun, run=str(trained), step=6)
    config.objective = spec(Progressive, teacher=teacher, steps=config.stage.sampler.steps)
    run = build(config)
    program = make_program(run)
    arrays = run.blank_arrays(8)
    abstract = {
        name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype, sharding=program.batch_sharding)
        for name, x in arrays.items()
    }
    traced = program.trace(program.abstract, abstract)
    kept = [np.asarray(x).nbytes for x in traced.jaxpr.consts]
    assert max(kept, default=0) < 2**20
    inputs = len(jax.tree.leaves((program.abstract, abstract)))
    teacher = jax.tree.leaves(program.weights)
    assert len(traced.jaxpr.in_avals) == inputs + len(teacher)
    largest = max(teacher, key=lambda leaf: leaf.size)
    assert largest.addressable_shards[0].data.size == largest.size // 4
    saved = FromRun(run=str(trained), step=6).weights()["params"]
    for mine, its in zip(teacher, jax.tree.leaves(saved), strict=True):
        np.testing.assert_array_equal(whole(mine), its)


def test_halving():
    assert halved(32, 4) == [32, 16, 8, 4] and halved(24, 3) == [24, 12, 6, 3]
    assert halved(32, 5) == [] and halved(4, 0) == [] and halved(7, 1) == []


def test_mistakes_are_said(tmp_path, trained):
    folder = f"--workdir={tmp_path}"
    for words, said in (
        (("--from=24", "--to=4", "--steps=1"), "24 steps, halved again and again, are never 4"),
        (("--from=8", "--to=4", "--steps=0"), "--steps is 0"),
        (("--from=8", "--to=4", "--steps=1", "--guide=5"), "--guide is '5'"),
        (("--from=8", "--to=4", "--steps=1", "--guide=6,1"), "--guide is '6,1'"),
    ):
        done = call("distill", folder, f"--teacher={trained}", *words)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    with pytest.raises(UserError, match="no run directory"):
        Distillation(teacher="nowhere", workdir="x", begin=8, end=4, steps=1).config(
            "nowhere", "x", 4
        )
