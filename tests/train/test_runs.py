"""Whole runs as a user starts them: any files, warm starts, forks, bad data, exploding numbers."""

import json

import numpy as np
import pytest

from data_pipeline.encode import write_mp4
from tests.workbench import call, digest, train, vdm
from vdm_jax.train.log import read_lines


def films(folder, count=3):
    """Videos of unlike size, length and frame rate."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        frames, height, width = [(6, 16, 24), (11, 40, 16), (3, 24, 24)][index % 3]
        video = rng.integers(0, 256, (frames, height, width, 3), np.uint8)
        write_mp4(folder / f"{index:02d}.mp4", video, (8, 24, 12)[index % 3])
    return folder


def index(folder, out):
    done = call("index", folder, "--out", out, "--json", module="data_pipeline")
    assert done.returncode == 0, done.stderr
    return out


def start_line(workdir):
    return next(x for x in read_lines(workdir / "metrics.jsonl") if "restored_step" in x)


@pytest.mark.slow
def test_any_three_files_train_in_one_program(tmp_path):
    manifest = index(films(tmp_path / "films"), tmp_path / "manifest")
    workdir = tmp_path / "run"
    still = ("--config.data.holdout=0.0", "--config.validate_every=0")
    vdm(*train(workdir, manifest, "--steps=5", *still))
    summary = json.loads((workdir / "summary.json").read_text())["train"]
    assert summary["compiled_programs"] == 1 and summary["steps"] == 5
    lines = [line for line in read_lines(workdir / "metrics.jsonl") if "loss" in line]
    # Rows of unlike content every step, one program for all.
    assert len({line["batch"] for line in lines}) == 5 and lines[0]["examples"] >= 3
    assert all(np.isfinite(line["loss"]) for line in lines)
    # A start that finds everything done keeps what is known of the run.
    vdm(*train(workdir, manifest, "--steps=5", *still))
    assert json.loads((workdir / "summary.json").read_text())["train"] == summary


def test_a_fork_goes_on_as_its_origin_did(tmp_path, manifest, trained):
    fork = tmp_path / "fork"
    vdm(*train(fork, manifest, f"--fork={trained}@3", "--steps=6", "--config.save_every=3"))
    assert digest(fork) == digest(trained)
    line = start_line(fork)
    assert line["restored_step"] == 3
    assert line["origin"] == {"fork": str(trained), "step": 3, "weights": "params"}


@pytest.mark.slow
def test_a_fork_of_the_average(tmp_path, manifest, trained):
    fork = tmp_path / "fork"
    vdm(*train(fork, manifest, f"--fork={trained}@3:ema", "--steps=6"))
    assert digest(fork)["digest"] != digest(trained)["digest"]
    assert start_line(fork)["origin"]["weights"] == "ema"


@pytest.mark.slow
def test_a_warm_start_says_what_it_took(tmp_path, manifest, trained):
    done = vdm(*train(tmp_path / "same", manifest, f"--init={trained}", "--steps=1"))
    taken = next(line for line in done.stderr.splitlines() if line.startswith("taken:"))
    count = taken.split()[1]
    assert taken == f"taken: {count} of {count} parameters" and int(count) > 20
    assert start_line(tmp_path / "same")["origin"] == {"init": str(trained), "step": 6}


@pytest.mark.slow
def test_a_warm_start_of_another_width_says_what_it_left(tmp_path, manifest, trained):
    wide = ("--config.knobs.width=64", "--steps=1")
    done = vdm(*train(tmp_path / "wide", manifest, f"--init={trained}", *wide))
    assert "other shape: params/backbone/patch/kernel (96, 32) -> (96, 64)" in done.stderr


def test_held_out_loss_is_told_apart_by_noise_size_and_source(trained):
    found = [x for x in read_lines(trained / "metrics.jsonl") if "validation/loss" in x]
    assert [line["step"] for line in found] == [4]
    names = {name.removeprefix("validation/") for name in found[0] if "/" in name}
    bins = {name for name in names if name.startswith("noise_")}
    sizes = {name for name in names if name == "images" or name.startswith("tokens_")}
    assert len(bins) == 5 and len(sizes) >= 2 and "source_0" in names
    mean = np.mean([found[0][f"validation/{name}"] for name in bins])
    assert found[0]["validation/loss"] == pytest.approx(mean, rel=1e-5)
    assert found[0]["validation/source_0"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.slow
def test_a_trace_is_written(tmp_path, manifest):
    workdir = tmp_path / "run"
    vdm(*train(workdir, manifest, "--steps=3", "--profile=1:2"))
    assert list((workdir / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_minutes_are_turned_into_steps_once(tmp_path, manifest):
    workdir = tmp_path / "run"
    words = train(workdir, manifest, "--minutes=0.02", "--config.validate_every=0")
    vdm(*words)
    steps = json.loads((workdir / "config.json").read_text())["steps"]
    assert steps == json.loads((workdir / "summary.json").read_text())["train"]["step"] >= 1
    done = vdm(*words)
    assert json.loads((workdir / "config.json").read_text())["steps"] == steps
    assert "from step" in done.stderr


def test_numbers_that_explode_end_the_run_with_5(tmp_path, manifest):
    workdir = tmp_path / "run"
    rates = ("--config.knobs.learning_rate=1e30", "--config.knobs.muon_rate=1e30")
    words = ("--steps=30", "--config.skip_limit=3", "--config.save_every=100")
    done = call(*train(workdir, manifest, *rates, *words, "--config.validate_every=0"))
    assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
    assert "3 steps in a row" in done.stderr


@pytest.mark.slow
def test_a_clip_that_went_bad_keeps_its_slot(tmp_path):
    folder = films(tmp_path / "films", count=8)
    manifest = index(folder, tmp_path / "manifest")
    (folder / "04.mp4").write_bytes((folder / "04.mp4").read_bytes()[:-40])
    workdir = tmp_path / "run"
    still = ("--config.data.holdout=0.0", "--config.validate_every=0")
    vdm(*train(workdir, manifest, "--steps=4", *still))
    bad = [line["bad_clip"] for line in read_lines(workdir / "metrics.jsonl") if "bad_clip" in line]
    assert bad and all("04" in line for line in bad)


@pytest.mark.slow
def test_nothing_but_bad_clips_ends_the_run_with_3(tmp_path):
    folder = films(tmp_path / "films", count=6)
    manifest = index(folder, tmp_path / "manifest")
    for path in folder.glob("*.mp4"):
        path.write_bytes(path.read_bytes()[:-40])
    done = call(*train(tmp_path / "run", manifest, "--steps=200", "--config.validate_every=0"))
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    assert "changed" in done.stderr


def test_doctor_names_what_there_is():
    found = json.loads(vdm("doctor", "--json").stdout)
    assert found["problems"] == [] and found["devices"] == {"cpu": 1}
    assert found["versions"]["jax"]
