"""Two real processes agree, save one checkpoint together, and stop at the same step."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vdm_jax.parallel.hosts import Hosts
from vdm_jax.train import envelope

PROCESS = """
import json, os, pathlib, sys, time
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np
index, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, index)
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from vdm_jax.parallel.hosts import HostError, Hosts
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.digest import digest
from vdm_jax.train.preemption import Preemption

def say(**found):
    print(json.dumps(found), flush=True)

hosts = Hosts("test", timeout_s=1.0)
say(agreed=[hosts.agree("index", lambda: jax.process_index()) for _ in range(2)])

def fails():
    if index == 1:
        raise OSError("disk of one")
    return 0

try:
    hosts.agree("fails", fails)
except (HostError, OSError) as error:
    say(error=f"{type(error).__name__}: {error}")
if index == 0:
    try:
        hosts.agree("silent", lambda: 0)
    except HostError as error:
        say(silent=str(error))

mesh = Mesh(np.array(jax.devices()), ("a",))
place = NamedSharding(mesh, PartitionSpec("a"))
whole = np.arange(32, dtype=np.float32).reshape(8, 4)

def state(n):
    w = jax.make_array_from_callback(whole.shape, place, lambda i: n + whole[i])
    return {"params": {"w": w}}

with Checkpoints(folder, barrier_timeout_s=60) as checkpoints:
    for n in (1, 2):
        checkpoints.save(n, state(n), {"n": n}, check_finite=("params",))
    checkpoints.wait()
    say(newest=checkpoints.newest(), digest=digest(state(2)))
    leaf = jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=place)
    wanted = {"params": {"w": leaf}}
    say(restored=digest(checkpoints.restore(2, wanted)), read=digest(checkpoints.restore_numpy(2)))
    if index == 0:
        file = sorted(p for p in pathlib.Path(folder, "2").rglob("d/*") if p.is_file())[-1]
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    hosts.agree("damaged", lambda: 0)
    checkpoints._verified.clear()
    say(after=checkpoints.newest())
    with Preemption() as stop:
        for step in range(3, 10_000):
            if step == 5:
                say(looping=True)
            time.sleep(0.01)
            if stop.requested(step):
                checkpoints.save(step, state(step), {}, wait=True)
                say(stopped=step, steps=checkpoints.steps())
                break
"""


def test_alone_nobody_is_asked():
    hosts = Hosts("alone", timeout_s=0.01)
    assert hosts.agree("x", lambda: {"y": 1}) == [{"y": 1}]
    with pytest.raises(KeyError):
        hosts.agree("x", lambda: {}["z"])


def heard(process):
    """What a process says; Gloo prints lines of its own."""
    return (line for line in process.stdout if line.startswith(b"{"))


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "run"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(index), str(port), str(folder)],
            stdout=subprocess.PIPE,
            stderr=(tmp_path / f"err{index}").open("w"),
            cwd=Path(__file__).parents[2],
        )
        for index in (0, 1)
    ]
    said = [{}, {}]
    try:
        for index, process in enumerate(processes):
            for line in heard(process):
                said[index] |= json.loads(line)
                if "looping" in said[index] and "stopped" not in said[index]:
                    break
        processes[1].send_signal(signal.SIGTERM)
        for index, process in enumerate(processes):
            for line in heard(process):
                said[index] |= json.loads(line)
            assert process.wait(timeout=60) == 0, (tmp_path / f"err{index}").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
    assert said[0]["agreed"] == said[1]["agreed"] == [[0, 1], [0, 1]]
    assert said[1]["error"] == "OSError: disk of one"
    assert said[0]["error"] == "HostError: process 1 failed: OSError: disk of one"
    assert "process 1 did not answer" in said[0]["silent"]
    for one in said:
        assert one["digest"] == one["restored"] == one["read"]
        assert (one["newest"], one["after"]) == (2, 1)
    assert said[0]["stopped"] == said[1]["stopped"] >= 3
    assert said[0]["steps"] == said[1]["steps"] == [1, said[0]["stopped"]]
    assert (folder / "2.corrupt-digest").is_dir()
    # Both wrote, and one process alone can verify what two have sealed.
    manifest = envelope.verify(envelope.epath.Path(folder) / "1", Hosts("alone"))
    assert any("process_0" in file for file in manifest.files)
    assert any("process_1" in file for file in manifest.files)
