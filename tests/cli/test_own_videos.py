"""`make demo VIDEOS=...` and what it runs: one file, spaces in names, and mistakes said at once."""

import json
import os
import subprocess

import pytest

from tests.data_pipeline.corpus import mp4
from tests.workbench import ROOT, call, environment, vdm


def make(*words):
    return subprocess.run(
        ["make", *words], capture_output=True, text=True, env=os.environ | environment(), cwd=ROOT
    )


@pytest.mark.parametrize(
    ("name", "said"), [("none at all", "there is no such folder"), ("empty one", "no video is in")]
)
def test_a_wrong_folder_is_said_before_anything_is_installed(name, said, tmp_path):
    (tmp_path / "empty one").mkdir()
    done = make("demo", f"VIDEOS={tmp_path / name}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert said in done.stdout and name in done.stdout
    assert not (tmp_path / "venv").exists()


def test_another_device_is_refused(tmp_path):
    done = make("demo", "DEVICE=tpuu", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0 and "'tpuu'; it must be cpu or gpu" in done.stderr


def test_names_with_spaces_and_gpus_reach_the_commands(tmp_path):
    """What make would run, and not run here."""
    (tmp_path / "my videos").mkdir()
    mp4(tmp_path / "my videos" / "a b.mp4")
    said = make("-n", "demo", f"VIDEOS={tmp_path / 'my videos'}", "DEVICE=gpu", "VENV=none").stdout
    assert 'index "$VIDEOS" --out data/own/manifest --shots' in said
    assert "-r requirements-gpu.txt" in said and "doctor --need=gpu" in said
    assert "force_host_platform_device_count" not in said
    plain = make("-n", "demo", "VENV=none").stdout
    assert "experiments/demo.py" in plain and "force_host_platform_device_count=2" in plain
    assert "gpu" not in plain


def test_a_doctor_who_is_told_what_is_needed():
    assert json.loads(vdm("doctor", "--need=cpu", "--json").stdout)["problems"] == []
    done = call("doctor", "--need=gpu", "--json")
    assert done.returncode == 70
    assert json.loads(done.stdout)["problems"] == ["JAX runs on the cpu, not on a gpu."]
    done = call("doctor", "--need=gpuu")
    assert done.returncode == 2 and "'gpuu'" in done.stderr


@pytest.mark.slow
def test_one_file_in_a_folder_with_spaces_trains_and_is_sampled(tmp_path):
    """Of a single clip nothing can be held out: the run does without validation."""
    clips, data, run = tmp_path / "my videos", tmp_path / "m", tmp_path / "run"
    clips.mkdir()
    mp4(clips / "a b.mp4", frames=12, height=48, width=80)
    done = call("index", clips, "--out", data, "--shots", "--json", module="data_pipeline")
    assert json.loads(done.stdout)["captions"] == {"folder": 1}
    config = ("--config=experiments/own.py:smoke", f"--config.knobs.manifest={data}")
    vdm("train", *config, f"--workdir={run}", "--steps=4")
    assert (run / "loss.png").is_file()
    prompts = f"--prompts={data / 'captions.txt'}"
    words = ("--frames=4", "--height=16", "--width=24", "--steps=2", f"--out={tmp_path / 'out'}")
    found = json.loads(vdm("sample", run, prompts, *words, "--json").stdout)
    assert len(found["files"]) == 1 and "my-videos" in found["files"][0]
