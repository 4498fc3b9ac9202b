"""Full disks, failures in the background and kills at any moment cost no older checkpoint."""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.train.saved import names, state
from vdm_jax.config import UserError
from vdm_jax.train import envelope
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.digest import digest

# Failures of the storage (A9, A10)


def test_a_failure_in_the_background_surfaces_once(run, monkeypatch):
    real = envelope.write

    def full(path, content):
        if path.name == "COMMIT":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, content)

    with Checkpoints(run) as checkpoints:
        monkeypatch.setattr(envelope, "write", full)
        checkpoints.save(4, state(4), {})
        checkpoints._thread.join()
        with pytest.raises(UserError) as caught:
            checkpoints.poll()
        assert caught.value.code == 6 and "checkpoint 4 could not be written" in str(caught.value)
        assert "No space left" in str(caught.value) and "\n" not in str(caught.value)
        checkpoints.poll()
        assert names(run) == ["1", "2", "3"] and checkpoints.newest() == 3
        checkpoints.save(4, state(4), {})
        with pytest.raises(UserError):  # also where nobody polls
            checkpoints.save(5, state(5), {})
        monkeypatch.setattr(envelope, "write", real)
        checkpoints.save(5, state(5), {}, wait=True)
        assert checkpoints.newest() == 5
    assert names(run) == ["2", "3", "5"]


def test_what_reads_back_differently_is_no_checkpoint(run, monkeypatch):
    real = envelope.seal

    def rotten(folder, **keywords):
        real(folder, **keywords)
        bit_file = max((p for p in Path(folder).rglob("d/*") if p.is_file()), key=os.path.getsize)
        bit_file.write_bytes(b"\0" * bit_file.stat().st_size)

    monkeypatch.setattr(envelope, "seal", rotten)
    with Checkpoints(run, keep=1) as checkpoints:
        with pytest.raises(UserError) as caught:
            checkpoints.save(4, state(4), {}, wait=True)
        assert caught.value.code == 6
        assert names(run) == ["1", "2", "3"]  # nothing was pruned for its sake


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(tmp_path):
    items = {"params": {"w": jax.random.normal(jax.random.key(0), (2**17,))}}
    with small_disk(tmp_path / "disk", "1500k") as disk, Checkpoints(disk / "run") as checkpoints:
        checkpoints.save(1, items, {}, wait=True)
        (disk / "other").write_bytes(b"x" * 600_000)
        for step in (2, 3):
            with pytest.raises(UserError) as caught:
                checkpoints.save(step, items, {}, wait=True)
            assert caught.value.code == 6 and "\n" not in str(caught.value)
            assert names(disk / "run") == ["1"]
        assert checkpoints.newest() == 1
        (disk / "other").unlink()
        checkpoints.save(4, items, {}, wait=True)
        assert checkpoints.newest() == 4 and digest(checkpoints.restore_numpy(4)) == digest(items)


# Kills (A2), at any moment

WRITER = """
import sys
import jax, jax.numpy as jnp
from vdm_jax.train.checkpoint import Checkpoints
with Checkpoints(sys.argv[1], keep=2) as checkpoints:
    step = checkpoints.newest() or 0
    print("from", step, flush=True)
    while True:
        step += 1
        items = {"params": {"w": jnp.full((64, 64), step, jnp.float32)}}
        checkpoints.save(step, items, {"s": step})
"""


def kill_while_saving(folder, kills, draw):
    """Start a writer, kill it at a random moment, look; returns the newest step seen each time."""
    seen = []
    for _ in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        line = writer.stdout.readline().split()
        time.sleep(draw.uniform(0.2, 1.2))
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        with Checkpoints(folder) as checkpoints:
            newest = checkpoints.newest()
            assert not any(".corrupt-" in name for name in names(folder))
            if newest is not None:
                found = checkpoints.restore_numpy(newest)["params"]["w"]
                assert (found == newest).all() and checkpoints.meta(newest) == {"s": newest}
        assert line == [b"from", str(seen[-1] if seen else 0).encode()]
        assert not seen or (newest or 0) >= seen[-1]
        seen.append(newest or 0)
    return seen


def test_killed_while_saving(tmp_path):
    folder = tmp_path / "run"
    seen = kill_while_saving(folder, 2, random.Random(1))
    assert seen[-1] > 0
    # What the last kill left is gone once a writer starts again.
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(10_000, {"params": {"w": jnp.zeros(3)}}, {}, wait=True)
        assert set(names(folder)) == {str(step) for step in checkpoints.steps()}


@pytest.mark.slow
def test_killed_while_saving_many_times(tmp_path):
    seen = kill_while_saving(tmp_path / "run", 20, random.Random(2))
    assert seen[-1] > 20


@pytest.mark.parametrize("at", ["marked", "made", "written", "manifest", "committed", "pruning"])
def test_every_point_of_a_save_may_be_the_last(run, at):
    """The states of the folder between two steps of a save, made by hand, then a new start."""
    whole = run / "3"
    if at == "pruning":
        (run / "1.partial").touch()
        (run / "1" / "COMMIT").unlink()
        (run / "1" / "MANIFEST.json").unlink()
    else:
        (run / "4.partial").touch()
        if at != "marked":
            (run / "4").mkdir()
        if at in ("written", "manifest"):
            shutil.copytree(whole / "items", run / "4" / "items")
        if at == "manifest":
            shutil.copy(whole / "MANIFEST.json", run / "4")
        if at == "committed":
            shutil.rmtree(run / "4")
            with Checkpoints(run, keep=9) as checkpoints:
                (run / "4.partial").unlink()
                checkpoints.save(4, state(4), {}, wait=True)
            (run / "4.partial").touch()
    before = names(run)
    with Checkpoints(run, keep=9) as checkpoints:
        good = 4 if at == "committed" else 3
        assert checkpoints.newest() == good
        assert names(run) == before  # who only reads changes nothing
        checkpoints.save(5, state(5), {}, wait=True)
        left = {"committed": ["1", "2", "3", "4", "5"], "pruning": ["2", "3", "5"]}
        assert names(run) == left.get(at, ["1", "2", "3", "5"])


def test_killed_in_the_first_save_ever(tmp_path):
    """Nothing was saved yet, so nothing is lost: neither an error nor a quarantine."""
    (tmp_path / "1.partial").touch()
    (tmp_path / "1").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest() is None and names(tmp_path) == ["1", "1.partial"]
        checkpoints.save(1, state(1), {}, wait=True)
        assert checkpoints.newest() == 1 and names(tmp_path) == ["1"]
