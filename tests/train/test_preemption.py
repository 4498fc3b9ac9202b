"""SIGTERM or one SIGINT stops the loop at its next step; a second SIGINT stops at once."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vdm_jax.train.preemption import Preemption

LOOP = """
import sys, time
import jax.numpy as jnp
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.preemption import Preemption
with Preemption() as stop, Checkpoints(sys.argv[1]) as checkpoints:
    for step in range(1, 1000):
        if step == 3:
            print("running", flush=True)
        time.sleep(0.02)
        if stop.requested(step):
            checkpoints.save(step, {"x": {"step": jnp.int32(step)}}, {}, wait=True)
            sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_handlers_come_back(number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Preemption() as stop:
        assert not stop.requested(1)
        os.kill(os.getpid(), number)
        assert stop.requested(2) and stop.requested(3)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_second_interrupt_does_not_wait():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Preemption():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_the_second_termination_waits_for_the_save():
    with Preemption() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested(1)


def test_outside_the_main_thread_nothing_is_caught():
    found = []

    def work():
        with Preemption() as stop:
            found.append((stop.requested(1), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def test_a_terminated_process_saves_and_exits(tmp_path):
    from vdm_jax.train.checkpoint import Checkpoints

    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(folder)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout.readline() == b"running\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    process.stdout.close()
    with Checkpoints(folder) as checkpoints:
        step = checkpoints.newest()
        assert step >= 3 and checkpoints.restore_numpy(step)["x"]["step"] == step
