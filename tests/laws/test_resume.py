"""Law 9: resume equals straight, byte for byte, in fresh processes, however the run was stopped."""

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.workbench import ROOT, digest, environment, train, vdm
from vdm_jax.train.log import read_lines

STEPS = 8


def numbers(workdir):
    """step -> (digest of its examples, loss); a step that ran twice must agree with itself."""
    found = {}
    for line in read_lines(workdir / "metrics.jsonl"):
        if "loss" in line:
            now = (line["batch"], line["loss"])
            assert found.setdefault(line["step"], now) == now
    return found


def restored(workdir):
    lines = read_lines(workdir / "metrics.jsonl")
    return [line["restored_step"] for line in lines if "restored_step" in line]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, manifest):
    """The run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    vdm(*train(workdir, manifest, f"--steps={STEPS}", "--config.save_every=2"))
    return workdir


def test_resume_equals_straight(tmp_path, manifest, straight):
    """Stopped at step 5, where nothing is saved but by --steps, and gone on in a new process."""
    workdir = tmp_path / "run"
    vdm(*train(workdir, manifest, "--steps=5", "--config.save_every=2"))
    assert digest(workdir)["step"] == 5
    vdm(*train(workdir, manifest, f"--steps={STEPS}", "--config.save_every=3"))
    assert digest(workdir) == digest(straight)
    assert numbers(workdir) == numbers(straight)
    assert restored(workdir) == [0, 5]


@pytest.mark.slow
def test_another_seed_is_another_run(tmp_path, manifest, straight):
    workdir = tmp_path / "run"
    vdm(*train(workdir, manifest, f"--steps={STEPS}", "--config.seed=1"))
    assert digest(workdir)["digest"] != digest(straight)["digest"]
    ours, theirs = numbers(workdir), numbers(straight)
    assert all(ours[step] != theirs[step] for step in theirs)


@pytest.mark.slow
def test_sigterm_saves_and_exits_75(tmp_path, manifest, straight):
    workdir = tmp_path / "run"
    words = train(workdir, manifest, f"--steps={STEPS}", "--config.save_every=100")
    command = [sys.executable, "-m", "vdm_jax", *words]
    process = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for_step(workdir, 1, process)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=120)
    if code == 0:
        pytest.skip("the run ended before the signal came")
    assert code == 75
    assert 0 < digest(workdir)["step"] < STEPS
    vdm(*train(workdir, manifest, f"--steps={STEPS}"))
    assert digest(workdir) == digest(straight)


@pytest.mark.slow
def test_killed_five_times_at_random(tmp_path, manifest):
    """kill -9 at random moments of one run; the finished run is the run never interrupted."""
    rng = random.Random(0)
    steps, kills, workdir, oracle = 120, 0, tmp_path / "killed", tmp_path / "straight"
    shared = (f"--steps={steps}", "--config.save_every=5")
    vdm(*train(oracle, manifest, *shared))
    command = [sys.executable, "-m", "vdm_jax", *train(workdir, manifest, *shared)]
    while kills < 5:
        process = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL)
        seen = max(numbers(workdir), default=0)
        wait_for_step(workdir, seen + rng.randint(1, 15), process)
        time.sleep(rng.random() * 0.5)
        assert process.poll() is None, "the run ended before it was killed five times"
        process.kill()
        process.wait()
        kills += 1
    vdm(*train(workdir, manifest, *shared))
    assert digest(workdir) == digest(oracle)
    assert numbers(workdir) == numbers(oracle)
    assert len(restored(workdir)) == 6 and min(restored(workdir)[1:]) > 0


def wait_for_step(workdir, step, process):
    while process.poll() is None and max(numbers(workdir), default=0) < step:
        time.sleep(0.05)
