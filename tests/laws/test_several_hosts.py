"""Law 9 over whole runs: one, two and four processes train the same, fail together, stop together.

Real processes over loopback, four devices in all. A clip is broken, so that one process finds what
the others must be told.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipeline import manifest as manifests
from tests.workbench import ROOT, digest, environment, make_data
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.log import read_lines

pytestmark = pytest.mark.slow
DEVICES = 4
CONFIG = """
from experiments import demo
from vdm_jax.config import spec
from vdm_jax.train.run import Prompt

def get_config(arg=None):
    config = demo.get_config("smoke")
    config.data.rows = 8
    config.stage.denoiser.backbone.depth = 1
    config.save_every = 3
    if arg == "pictures":
        config.prompts = (spec(Prompt, text="a red circle", frames=2, height=8, width=8),)
        config.sample_every = 3
    return config
"""
FSDP = ("--config.rules=fsdp", "--config.mesh.data=1", "--config.mesh.fsdp=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(manifest of clips, some of them broken since; the config; a cache for all)."""
    folder = tmp_path_factory.mktemp("data")
    manifest = make_data(folder)
    names = manifests.read(manifest).table["uri"].to_pylist()
    for name in names[::8]:
        (folder / "clips" / name).write_bytes(b"broken")
    (folder / "config.py").write_text(CONFIG)
    return manifest, folder / "config.py", folder / "cache"


def start(data, workdir, count, *words, variant="", each=lambda index: ()):
    """`count` processes of one run; stderr of process i is in <workdir>.i."""
    manifest, config, cache = data
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    found = []
    for index in range(count):
        flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="
        settings = environment(
            XLA_FLAGS=f"{flags}{DEVICES // count}", JAX_COMPILATION_CACHE_DIR=str(cache)
        )
        command = [
            sys.executable, "-m", "vdm_jax", "train", f"--config={config}:{variant}",
            f"--workdir={workdir}", f"--config.knobs.manifest={manifest}", *words, *each(index),
        ]  # fmt: skip
        if count > 1:
            command += [f"--coordinator=localhost:{port}", f"--process={index}/{count}"]
        err = open(f"{workdir}.{index}", "w")  # noqa: SIM115
        found.append(subprocess.Popen(command, env=settings, cwd=ROOT, stderr=err))
    return found


def told(workdir, index):
    with open(f"{workdir}.{index}") as file:
        return file.read()


def codes(processes, seconds=900):
    try:
        return [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(data, workdir, count, *words, **keywords):
    processes = start(data, workdir, count, *words, **keywords)
    found = codes(processes)
    assert found == [0] * count, "\n".join(told(workdir, n)[-2000:] for n in range(count))


def losses(workdir):
    lines = [line for line in read_lines(workdir / "metrics.jsonl") if "loss" in line]
    assert len(lines) == len({line["step"] for line in lines})  # one process writes
    return {line["step"]: (line["loss"], line["batch"], line["tokens"]) for line in lines}


def same(workdir, truth):
    ours, theirs = losses(workdir), losses(truth)
    assert ours.keys() == theirs.keys()
    for step, (loss, *rest) in ours.items():
        assert loss == pytest.approx(theirs[step][0], rel=1e-5) and tuple(rest) == theirs[step][1:]


def bad_of(workdir, step):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return sorted(tuple(entry) for entry in checkpoints.meta(step)["bad"])


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run(data, workdir, 1, "--steps=6")
    assert bad_of(workdir, 6)
    return workdir


def test_two_then_four_processes_train_as_one(data, alone, tmp_path):
    """Parameters copied; what was found bad, summary and pictures are those of one process."""
    workdir = tmp_path / "run"
    run(data, workdir, 2, "--steps=3")
    assert bad_of(workdir, 3) == bad_of(alone, 3)
    run(data, workdir, 4, "--steps=6", variant="pictures")
    same(workdir, alone)
    assert bad_of(workdir, 6) == bad_of(alone, 6)
    lines = read_lines(workdir / "metrics.jsonl")
    clips = {line["bad_clip"] for line in lines if "bad_clip" in line}
    assert clips == {x["bad_clip"] for x in read_lines(alone / "metrics.jsonl") if "bad_clip" in x}
    assert [x["restored_step"] for x in lines if "restored_step" in x] == [0, 3]
    assert sum("validation/loss" in line for line in lines) == 1
    assert json.loads((workdir / "summary.json").read_text())["train"]["devices"] == DEVICES
    assert len(list((workdir / "tb").iterdir())) == 2  # one file a start, of process 0
    assert (workdir / "loss.png").is_file() and not list(workdir.glob(".seen-*"))
    said = [told(workdir, n) for n in range(4)]
    assert "wrote" in said[0] and not any("wrote" in one for one in said[1:])


def test_four_then_one_process_train_as_one_with_parameters_divided(data, alone, tmp_path):
    workdir = tmp_path / "run"
    run(data, workdir, 4, "--steps=3", *FSDP)
    run(data, workdir, 1, "--steps=6", *FSDP)
    same(workdir, alone)
    found = []
    for folder in (workdir, alone):
        with Checkpoints(folder / "checkpoints") as checkpoints:
            found.append(checkpoints.restore_numpy(6, ("ema",)))
    for one, other in zip(*map(_leaves, found), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def _leaves(tree):
    return (
        [tree]
        if not isinstance(tree, dict)
        else [x for k in sorted(tree) for x in _leaves(tree[k])]
    )


def wait_for(workdir, step, processes):
    while all(process.poll() is None for process in processes):
        if max((x["step"] for x in read_lines(workdir / "metrics.jsonl")), default=0) >= step:
            return
        time.sleep(0.1)


def test_all_save_at_one_step_when_one_is_terminated_and_end_when_one_is_killed(data, tmp_path):
    workdir = tmp_path / "run"
    words = ("--steps=100000", "--config.save_every=100000", "--config.validate_every=0")
    processes = start(data, workdir, 2, *words)
    wait_for(workdir, 1, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert codes(processes, 300) == [75, 75], told(workdir, 0)[-2000:] + told(workdir, 1)[-2000:]
    step = digest(workdir)["step"]
    assert step >= 1
    processes = start(data, workdir, 2, *words)
    wait_for(workdir, step + 1, processes)
    processes[1].kill()
    start_of_end = time.monotonic()
    assert processes[0].wait(timeout=60) == 77
    assert time.monotonic() - start_of_end < 30
    assert "process 1 is gone" in told(workdir, 0) and digest(workdir)["step"] == step


@pytest.mark.parametrize("broken", [0, 1])
def test_unlike_processes_are_refused_before_anything_compiles(data, tmp_path, broken):
    workdir = tmp_path / "run"
    other = lambda index: ("--config.knobs.seed=5",) if index == broken else ()  # noqa: E731
    assert codes(start(data, workdir, 2, "--steps=3", each=other), 300) == [2, 2]
    for index in range(2):
        words = told(workdir, index)
        assert "config.seed is " in words and "on process 1" in words, words
        assert "Traceback" not in words and not (workdir / "config.json").exists()


def test_a_mistake_on_one_process_ends_all_with_its_code(data, tmp_path):
    workdir = tmp_path / "run"
    gone = lambda index: ("--config.knobs.manifest=/nowhere",) if index else ()  # noqa: E731
    assert codes(start(data, workdir, 2, "--steps=3", each=gone), 300) == [2, 2]
    assert "process 1 failed" in told(workdir, 0) and "/nowhere" in told(workdir, 1)


def test_nobody_comes(data, tmp_path):
    """The coordinator's address is wrong, its port is taken: exit 77 within the time to wait."""
    workdir = tmp_path / "run"
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        for index in range(2):
            words = (f"--coordinator=localhost:{port}", f"--process={index}/2", "--wait=2")
            (process,) = start(data, workdir, 1, *words)
            assert codes([process], 120) == [77]
            said = told(workdir, 0).strip().splitlines()
            assert len(said) == 1 and str(port) in said[0], said
    assert os.listdir(tmp_path) == ["run.0"]


def test_two_processes_encode_what_one_does(data, tmp_path):
    manifest, config, _ = data

    def encode(out, *flags):
        command = [
            sys.executable, "-m", "vdm_jax", "encode", f"--config={config}", "--json",
            f"--config.knobs.manifest={manifest}", f"--out={out}", "--views=14", *flags,
        ]  # fmt: skip
        return subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE)

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [(f"--coordinator=localhost:{port}", f"--process={n}/2") for n in range(2)]
    both = [encode(tmp_path / "both", *flags[n]) for n in range(2)]
    said = [process.communicate(timeout=300)[0].splitlines() for process in both]
    said = [[line for line in lines if line.startswith(b"{")] for lines in said]
    assert [process.returncode for process in both] == [0, 0] and said[1] == []
    one = json.loads(encode(tmp_path / "one").communicate(timeout=300)[0].splitlines()[-1])
    told = json.loads(said[0][0])
    assert told["missing"] == 0 and told["digest"] == one["digest"] is not None
    assert told["clips"] == one["clips"] and told["skipped"] == one["skipped"] != {}
