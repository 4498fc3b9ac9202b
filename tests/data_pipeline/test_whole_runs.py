"""Trainers as processes, and two thousand damaged files: what only takes long to try."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_pipeline import failpoints
from data_pipeline.decode import View, decode, read_view
from data_pipeline.errors import BadClip
from data_pipeline.places import Place
from data_pipeline.probe import look, probe
from data_pipeline.workers import Workers
from tests.data_pipeline.corpus import coded, stamped
from tests.data_pipeline.processes import family, lives
from tests.workbench import ROOT, call, environment, train

pytestmark = pytest.mark.slow


def test_a_set_that_only_kills_ends_the_run_with_3(manifest, tmp_path, monkeypatch):
    monkeypatch.setenv(failpoints.NAME, "decode.frame:segv")
    done = call(*train(tmp_path / "run", manifest, "--steps=200", "--config.validate_every=0"))
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    assert "crashed" in done.stderr and done.stderr.count(" times)") == 5


@pytest.mark.parametrize(
    "more", [(), ("--config.validate_every=0",)], ids=["held out", "trained on"]
)
def test_a_set_that_is_all_bad_ends_the_run_within_a_minute(more, manifest, tmp_path):
    """Whether it is met in the held-out clips or in the others: reasons and five paths. The minute
    is the processors': others at work on this machine lengthen that of the clock."""
    folder = shutil.copytree(manifest.parent, tmp_path / "copy")
    for path in (folder / "clips").glob("*.*"):
        if path.suffix in (".mp4", ".png"):
            path.write_bytes(bytes(path.stat().st_size))
    before = os.times()
    done = call(*train(tmp_path / "run", folder / "manifest", "--steps=200", *more))
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    after = os.times()
    used = [getattr(after, n) - getattr(before, n) for n in ("children_user", "children_system")]
    assert sum(used) < 60
    said = done.stderr.splitlines()[-1]
    assert re.search(r"\(format \d+\)", said) and said.count(f"{folder}/clips/") == 5, said


def begin(workdir, manifest):
    """A run of many steps that has made one, and its processes: a nursery and decoders."""
    words = train(workdir, manifest, "--steps=100000")
    trainer = subprocess.Popen(
        [sys.executable, "-m", "vdm_jax", *map(str, words)],
        env=environment(), cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and '"loss"' in metrics.read_text()):
        assert trainer.poll() is None, trainer.stderr.read()
        time.sleep(0.1)
    mine = family(trainer.pid)
    assert mine
    return trainer, mine


def left(processes, seconds=5):
    """Those that live after so long."""
    until = time.monotonic() + seconds
    while any(map(lives, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    return [pid for pid in processes if lives(pid)]


def test_a_group_that_is_asked_to_stop_saves_and_leaves_nobody(manifest, tmp_path):
    """SIGTERM to trainer and decoders alike, as a scheduler sends it."""
    trainer, mine = begin(tmp_path / "run", manifest)
    os.killpg(trainer.pid, signal.SIGTERM)
    said = trainer.communicate()[1]
    assert trainer.returncode == 75, said
    assert left(mine) == []


def test_a_trainer_that_is_killed_leaves_nobody(manifest, tmp_path):
    """SIGKILL to the trainer alone."""
    shared = set(os.listdir("/dev/shm"))
    trainer, mine = begin(tmp_path / "run", manifest)
    trainer.kill()
    trainer.wait()
    orphans = left(mine)
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    assert orphans == []
    trainer.stderr.close()
    assert set(os.listdir("/dev/shm")) == shared


KINDS = {
    "h264.mp4": coded("libx264", "yuv420p", "mp4"),
    "hevc.mkv": coded("libx265", "yuv420p", "matroska"),
    "vp9.webm": coded("libvpx-vp9", "yuv420p", "webm"),
    "mpeg4.avi": coded("mpeg4", "yuv420p", "avi"),
    "ffv1.mkv": coded("ffv1", "bgr0", "matroska"),
    "mjpeg.avi": stamped(range(6), "avi", clock=8),
}


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_survived_and_seen_by_hash(name, tmp_path):
    """336 seeded damages of each kind: measured and decoded, or refused with a class; nothing hangs
    and, where the hash is asked for, nothing that changed is taken."""
    KINDS[name](tmp_path / name)
    run = Workers(seconds=10.0, memory_mib=256).start(look, read_view)
    found = probe(Place.of(tmp_path / name), still=False)
    size = (found.height, found.width)
    first = {"first": found.start_s, "rate": found.fps_num / found.fps_den, "frames": 6}
    view = View(stored=size, resized=size, size=size, **first)
    hashed = View(stored=size, resized=size, size=size, sha256=found.sha256, **first)
    whole = (tmp_path / name).read_bytes()
    truth = decode(Place.of(tmp_path / name), hashed, still=False, run=run)

    def damage(seed):
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 12)):
            data[place] ^= rng.integers(1, 256)
        path = tmp_path / f"{seed}-{name}"
        path.write_bytes(bytes(data[: rng.integers(len(data) // 2, 2 * len(data))]))
        said = []
        for attempt in (
            lambda: probe(Place.of(path), still=False, run=run).n_frames,
            lambda: np.array_equal(decode(Place.of(path), view, still=False, run=run), truth),
            lambda: decode(Place.of(path), hashed, still=False, run=run),
        ):
            try:
                said.append(f"taken {attempt()}")
            except BadClip as bad:
                said.append(bad.reason)
        path.unlink()
        return said

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(damage, range(336)))
    assert {by_hash for _, _, by_hash in outcomes} == {"changed"}
    assert len({decoded for _, decoded, _ in outcomes}) > 3
