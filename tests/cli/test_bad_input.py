"""A mistake of the user: one clear sentence, the right exit code, nothing lost or begun."""

import json
import shutil

import av
import numpy as np
import pytest

from data_pipeline.encode import write_mp4
from tests.workbench import SMOKE, call, here, train, vdm

EIGHT = (SMOKE, "--config.data.rows=8")  # a row for each of the tests' devices
CONFIG_MISTAKES = [
    (("--config=experiments/demmo.py",), ("demmo.py", "experiments/demo.py")),
    ((*EIGHT, "--config.stepss=3"), ("stepss", "steps")),
    ((*EIGHT, "--config.data.rowz=3"), ("rowz", "rows")),
    ((*EIGHT, "--config.steps=many"), ("many",)),
    ((*EIGHT, "--config.steps=-1"), ("steps", "-1", "at least 1")),
    ((*EIGHT, "--config.knobs.learning_rate=-0.001"), ("learning_rate", "-0.001", "above 0")),
    ((*EIGHT, "--config.knobs.learning_rate=nan"), ("learning_rate", "nan")),
    ((*EIGHT, "--config.data.rows=3", "--config.microbatches=2"), ("rows", "3")),
    ((*EIGHT, "--config.knobs.manifest=/nowhere/at/all"), ("/nowhere/at/all",)),
    ((*EIGHT, "--config.stage.denoiser.backbone.width=10"), ("width", "10")),
    ((*EIGHT, "--config.mesh.data=7"), ("7",)),
    ((*EIGHT, "--config.rules=fspd"), ("fspd", "fsdp")),
    ((*EIGHT, "--workdri=x"), ("--workdri",)),
    ((*EIGHT, "--profile=5"), ("--profile", "a:b")),
    ((*EIGHT, "--steps=0"), ("--steps", "0")),
    ((*EIGHT, "--fork=x"), ("--fork", "DIR@STEP")),
    (("--config=README.md",), ("README.md",)),
    ((), ("--config=",)),
]


def refused(done, code, *words):
    assert done.returncode == code, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "said"), CONFIG_MISTAKES, ids=[" ".join(w[-1:]) for w, _ in CONFIG_MISTAKES]
)
def test_a_config_mistake_costs_nothing(words, said, tmp_path, manifest):
    named = any("manifest" in word for word in words) or SMOKE not in words
    words = words if named else (*words, f"--config.knobs.manifest={manifest}")
    refused(here("train", f"--workdir={tmp_path / 'run'}", *words), 2, *said)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("flag", ["--init=/nowhere", "--fork=/nowhere@3"])
def test_there_is_nothing_to_start_from(flag, tmp_path, manifest):
    done = call(*train(tmp_path / "run", manifest, flag))
    refused(done, 4, "/nowhere")
    assert not (tmp_path / "run").exists()


def test_every_mistake_is_said_at_once(manifest):
    words = (SMOKE, f"--config.knobs.manifest={manifest}", "--config.skip_limit=0", "--json")
    done = call("check", *words, "--config.steps=-3", "--config.knobs.learning_rate=inf")
    assert done.returncode == 2
    assert len(json.loads(done.stdout)["errors"]) >= 3


def test_check_reports_without_compiling(manifest):
    done = vdm("check", SMOKE, f"--config.knobs.manifest={manifest}", "--json")
    found = json.loads(done.stdout)
    assert found["errors"] == []
    assert found["parameters"] > 1000 and 0.2 < found["fill"] <= 1
    assert found["tokens_per_step"] > 0 and found["memory_bytes"] > 12 * found["parameters"]


SAMPLE_MISTAKES = [
    ((), ("--prompt",)),
    (("--prompts=/no/such.txt",), ("/no/such.txt",)),
    (("--prompt=x", "--height=23"), ("height", "23", "24")),
    (("--prompt=x", "--width=-4"), ("width", "-4")),
    (("--prompt=x", "--frames=two"), ("frames", "two")),
    (("--prompt=x", "--frames=1,2", "--height=8,16,24"), ("different numbers",)),
    (("--prompt=x", "--num=0"), ("--num", "0")),
    (("--prompt=x", "--steps=0"), ("--steps", "0")),
    (("--prompt=x", "--seed=-1"), ("--seed", "-1")),
    (("--prompt=x", "--fps=0"), ("--fps", "0")),
    (("--prompt=x", "--guidance=nan"), ("--guidance", "nan")),
    (("--prompt=x", "--frame=3"), ("--frame",)),
]


@pytest.mark.parametrize(
    ("words", "said"), SAMPLE_MISTAKES, ids=[" ".join(w[-1:]) for w, _ in SAMPLE_MISTAKES]
)
def test_a_sampling_mistake(words, said, tmp_path, trained):
    out = tmp_path / "out"
    refused(here("sample", trained, f"--out={out}", *words), 2, *said)
    assert not list(out.glob("*.mp4"))


def test_sampling_from_nothing(tmp_path):
    done = call("sample", tmp_path / "none", "--prompt=x", f"--out={tmp_path / 'out'}")
    refused(done, 4, "none")


def test_sampling_a_missing_checkpoint(tmp_path, trained):
    done = call("sample", trained, "--prompt=x", "--step=5", f"--out={tmp_path / 'out'}")
    refused(done, 4, "no checkpoint 5")


def test_another_runs_workdir_is_refused_and_kept(tmp_path, trained, manifest):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    before = vdm("digest", workdir).stdout
    width = "--config.stage.denoiser.backbone.depth=1"
    refused(call(*train(workdir, manifest, width)), 2, "depth", "--init=")
    assert vdm("digest", workdir).stdout == before


def test_checkpoints_without_a_config_are_not_overwritten(tmp_path, trained, manifest):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (workdir / "config.json").unlink()
    refused(call(*train(workdir, manifest)), 4, "config.json")


@pytest.mark.parametrize("make", ["missing", "empty", "only_text"])
def test_a_folder_without_video(make, tmp_path):
    folder = tmp_path / "clips"
    if make != "missing":
        folder.mkdir()
    if make == "only_text":
        (folder / "movie.mp4").write_text("this is no video")
    done = call("index", folder, "--out", tmp_path / "manifest", module="data_pipeline")
    refused(done, 3 if make != "missing" else done.returncode, str(folder))
    assert done.returncode in (2, 3)


def test_bad_clips_are_skipped_and_counted(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    video = np.random.default_rng(0).integers(0, 256, (6, 16, 24, 3), np.uint8)
    write_mp4(folder / "good.mp4", video, 8)
    whole = (folder / "good.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("hello")
    out = tmp_path / "manifest"
    done = call("index", folder, "--out", out, "--json", module="data_pipeline")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["clips"] == 1
    assert sum(found["skipped"].values()) == 3
    with av.open(str(folder / "good.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6
