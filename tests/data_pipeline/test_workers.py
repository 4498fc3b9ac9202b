"""Decoders in processes: the same frames, whatever becomes of them; no clip pays for another."""

import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from data_pipeline import copies, failpoints, probe, shots, wire, workers
from data_pipeline.children import Child, Patience
from data_pipeline.decode import View, decode, read_view
from data_pipeline.errors import BadClip
from data_pipeline.files import Limits
from data_pipeline.places import Place
from data_pipeline.workers import InProcess, Pool, Workers
from tests.data_pipeline.corpus import film, lossless
from tests.data_pipeline.processes import decoders, family, lives, nurseries
from tests.workbench import ROOT, environment

VIEW = View(rate=10.0, frames=6, stored=(16, 24), resized=(16, 24), size=(16, 24))


@pytest.fixture
def clip(tmp_path):
    return lossless(tmp_path / "clip.mkv", film(6), list(range(0, 600, 100)))


@pytest.fixture
def failing(monkeypatch):
    """Ask for failures in decoders that are started from now on."""
    return lambda text: monkeypatch.setenv(failpoints.NAME, text)


def start(**changes):
    """A deadline that only a decoder without hope misses, however busy the machine."""
    return Workers(**{"seconds": 600.0, "memory_mib": 256} | changes).start(read_view)


def look(path, run, view=VIEW, still=False):
    return decode(Place.of(path), view, still=still, run=run)


def reason(path, run, **how):
    with pytest.raises(BadClip) as bad:
        look(path, run, **how)
    return bad.value.reason


def test_frames_are_those_that_were_stored(clip, tmp_path):
    run = start()
    assert np.array_equal(look(clip, run), film(6))
    PIL.Image.fromarray(film(1)[0]).save(tmp_path / "a.png")
    still = View(rate=0, frames=1, stored=(16, 24), resized=(16, 24), size=(16, 24))
    assert np.array_equal(look(tmp_path / "a.png", run, still, True), film(1))
    larger = lossless(tmp_path / "b.mkv", film(40, 160, 240), list(range(0, 4000, 100)))
    size = (160, 240)
    view = View(rate=10.0, frames=40, stored=size, resized=size, size=size)
    assert np.array_equal(look(larger, run, view), film(40, 160, 240))
    assert np.array_equal(look(clip, run), film(6))


def test_many_threads_get_their_own_frames(tmp_path):
    """Each array is that of the file that was asked for, whoever asks beside; no more decoders
    than threads."""
    before = decoders()
    videos = [film(6, seed=seed) for seed in range(8)]
    paths = [
        lossless(tmp_path / f"{n}.mkv", video, list(range(0, 600, 100)))
        for n, video in enumerate(videos)
    ]
    run, wrong = start(), []

    def many(offset):
        for turn in range(16):
            n = (turn * 3 + offset) % 8
            if not np.array_equal(look(paths[n], run), videos[n]):
                wrong.append(n)

    threads = [threading.Thread(target=many, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 1 <= len(decoders() - before) <= 4


def test_files_are_measured_cut_and_copied_alike(tmp_path):
    video = np.concatenate([film(24, seed=0) // 3, 255 - film(24, seed=1) // 3])
    path = lossless(tmp_path / "a.mkv", video, list(range(0, 48 * 40, 40)))
    run = Workers().start(probe.look, shots.watch, copies.shrink)
    place = Place.of(path)
    assert probe.probe(place, still=False, run=run) == probe.probe(place, still=False)
    found = shots.shots(place, run=run)
    assert found == shots.shots(place) and len(found) > 1
    made = []
    for name, where in (("one", run), ("two", InProcess().start())):
        copies.copy(place, tmp_path / name, side=8, still=False, run=where)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    PIL.Image.fromarray(video[0]).save(tmp_path / "a.png")
    copies.copy(Place.of(tmp_path / "a.png"), tmp_path / "b.png", side=8, still=True, run=run)
    assert PIL.Image.open(tmp_path / "b.png").size == (12, 8)


@pytest.mark.parametrize(
    ("action", "class_"),
    [
        ("segv", "crashed"), ("kill", "crashed"), ("stop", "timeout"), ("hang", "timeout"),
        ("hog", "memory"), ("raise", "decoder"), ("eio", "read"),
    ],
)  # fmt: skip
def test_a_decoder_that_fails_costs_its_clip_alone(action, class_, clip, tmp_path, failing):
    """The fault is at the fourth frame: of the second clip, three frames being asked of each."""
    short = View(rate=10.0, frames=2, stored=(16, 24), resized=(16, 24), size=(16, 24))
    failing(f"decode.frame:{action}@4" if action != "eio" else "decode.frame:eio")
    run = start(seconds=2.0) if class_ == "timeout" else start()
    if action == "eio":
        assert reason(clip, run, view=short) == class_
        return
    other = lossless(tmp_path / "other.mkv", film(6, seed=1), list(range(0, 600, 100)))
    assert np.array_equal(look(clip, run, short), film(6)[:2])
    victims = decoders()
    assert reason(other, run, view=short) == class_
    failing("")
    assert np.array_equal(look(other, run, short), film(6, seed=1)[:2])
    assert np.array_equal(look(clip, run), film(6))
    if class_ in ("crashed", "timeout", "memory"):
        assert len(decoders() & victims) < len(victims)  # the one that failed is gone


def test_trouble_that_passes_is_tried_again(clip, failing):
    failing("decode.read:eio@1;decode.read:eio@2")
    assert np.array_equal(look(clip, start()), film(6))
    failing("decode.read:eio@1;decode.read:eio@2;decode.read:eio@3")
    assert reason(clip, start()) == "read"


def test_five_crashes_on_one_clip_are_enough(clip, tmp_path, failing):
    """Then no decoder is started for it, though it would succeed now; other clips, and other parts
    of the same file, are as before."""
    failing("decode.frame:kill")
    run = start()
    assert [reason(clip, run) for _ in range(5)] == ["crashed"] * 5
    failing("")
    before = decoders()
    assert reason(clip, run) == "quarantined"
    assert decoders() <= before
    later = View(
        first=0.3, rate=10.0, frames=3, stored=(16, 24), resized=(16, 24), size=(16, 24)
    )  # fmt: skip
    assert np.array_equal(look(clip, run, later), film(6)[3:])


def test_a_decoder_that_died_idle_is_nobody_s_fault(clip):
    before = decoders()
    run = start()
    look(clip, run)
    (mine,) = decoders() - before
    os.kill(mine, signal.SIGKILL)
    while mine in decoders():
        time.sleep(0.01)
    assert np.array_equal(look(clip, run), film(6))


def test_a_nursery_that_dies_is_begun_again(clip, failing):
    """It takes a decoder at work with it, whose clip is decoded all the same."""
    failing("decode.read:stop")
    run, got = start(), []
    before = decoders()
    thread = threading.Thread(target=lambda: got.append(look(clip, run)))
    thread.start()
    while not decoders() - before:
        time.sleep(0.01)
    failing("")
    for pid in nurseries():
        os.kill(pid, signal.SIGKILL)
    thread.join()
    assert np.array_equal(got[0], film(6))


def test_signals_that_ask_the_trainer_to_stop_leave_decoders_at_work(clip):
    before = decoders()
    run = start()
    look(clip, run)
    mine = decoders() - before
    for pid in nurseries() | mine:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert np.array_equal(look(clip, run), film(6))
    assert mine <= decoders()


def test_decoders_end_when_nobody_wants_them(clip):
    before = decoders()
    run = start()
    look(clip, run)
    assert decoders() - before
    del run
    until = time.monotonic() + 10
    while decoders() - before and time.monotonic() < until:
        time.sleep(0.05)
    assert not decoders() - before


def test_no_file_stays_open_and_no_memory_has_a_name(clip, tmp_path):
    (tmp_path / "bad.mp4").write_text("text")
    shared = set(os.listdir("/dev/shm"))
    run = start()
    look(clip, run)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        look(clip, run)
        for name in ("bad.mp4", "none.mp4"):
            assert reason(tmp_path / name, run) in ("format", "missing")
    assert len(os.listdir("/proc/self/fd")) <= before
    (mine,) = [pid for pid in decoders() if pid == run._idle[0].pid]
    held = len(os.listdir(f"/proc/{mine}/fd"))
    look(clip, run)
    assert len(os.listdir(f"/proc/{mine}/fd")) == held
    assert set(os.listdir("/dev/shm")) == shared


ORPHANS = """
import sys
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.sizes import Native
from data_pipeline.workers import Workers
data = PackedVideo(
    sources=(Source(manifest=sys.argv[1]),), patch=(2, 4, 4), tokens=256, text_tokens=64,
    segments=8, rows=4, seed=0, size=Native(), block=32, threads=3, cache=sys.argv[2],
    decoder=Workers(seconds=600),
)
next(data.batches())
"""


@pytest.mark.parametrize("action", ["hang", "stop"])
def test_no_orphan_outlives_a_trainer_that_is_killed(action, shapes, tmp_path):
    """Nor a decoder that listens to nobody, five seconds after SIGKILL."""
    shared = set(os.listdir("/dev/shm"))
    trainer = subprocess.Popen(
        [sys.executable, "-c", ORPHANS, str(shapes), str(tmp_path)],
        env=environment(**{failpoints.NAME: f"decode.frame:{action}"}),
        cwd=ROOT,
    )
    try:
        while len(family(trainer.pid)) < 4:  # a nursery and three decoders
            assert trainer.poll() is None
            time.sleep(0.05)
        mine = family(trainer.pid)
    finally:
        trainer.kill()
        trainer.wait()
    until = time.monotonic() + 5
    while any(map(lives, mine)) and time.monotonic() < until:
        time.sleep(0.05)
    left = [pid for pid in mine if lives(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
    assert set(os.listdir("/dev/shm")) == shared


class Liar:
    """A nursery whose only child says what it likes."""

    def __init__(self, *said):
        self.said, self.ended = said, []

    def start(self, memory):
        mine, theirs = socket.socketpair()

        def speak():
            with theirs:
                _, files = wire.receive(theirs)
                for handle in files:
                    os.close(handle)
                for part in self.said:
                    theirs.sendall(part)

        threading.Thread(target=speak).start()
        return Child(0, 0, mine)

    def end(self, child):
        child.channel.close()
        self.ended.append(child)
        return 0


def told(text):
    return wire.LENGTH.pack(len(text)) + text


@pytest.mark.parametrize(
    "said",
    [
        b"", b"\1", wire.LENGTH.pack(2**32 - 1) + b"x", told(b"no json"), told(b"[" * 100_000),
        told(b"[]"), told(b"{}"), told(b'{"bad": ["x"]}'), told(b'{"bad": 5}'),
        told(b'{"error": ["1", "2"]}'), told(b"9" * 10_000), told(b"\xff\xfe"),
    ],
)  # fmt: skip
def test_what_a_decoder_says_cannot_hurt(said, clip):
    """One that a file has taken over is ended, whatever it answers."""
    liar = Liar(said)
    assert reason(clip, Pool(liar, 1 << 28, 600.0)) == "crashed"
    assert len(liar.ended) == 1


def test_an_answer_may_come_in_pieces(clip):
    said = told(b'{"bad": ["corrupt", "here"]}')
    liar = Liar(*(said[i : i + 1] for i in range(len(said))))
    assert reason(clip, Pool(liar, 1 << 28, 600.0)) == "corrupt"
    assert liar.ended == []


def test_patience_lasts_while_there_is_progress(tmp_path):
    """Counted in looks, not seconds: a place that moves at each of thirty looks is waited for,
    one that stands still is not."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        looks = itertools.count()

        def moving():
            look = next(looks)
            if look == 30:
                theirs.send(b"x")
            return look

        Patience(mine, 0.01, moving)()
        assert next(looks) >= 30
        mine.recv(1)
        with pytest.raises(TimeoutError):
            Patience(mine, 0.01, lambda: 7)()
        assert not select.select([mine], [], [], 0)[0]


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        (Workers(memory_mib=0), "memory_mib is 0"), (Workers(seconds=0), "seconds is 0"),
        (Workers(seconds=float("nan")), "seconds is nan"), (Workers(memory_mib=1.5), "1.5"),
        (Workers(limits=Limits(pixels=0)), "limits.pixels is 0"),
        (InProcess(limits=Limits(seconds=-1)), "limits.seconds is -1"),
    ],
)  # fmt: skip
def test_a_mistake_is_said(decoder, said):
    (found,) = decoder.problems()
    assert said in found


def test_other_systems_are_told(monkeypatch):
    monkeypatch.setattr(workers.sys, "platform", "darwin")
    assert "InProcess" in Workers().problems()[0] and InProcess().problems() == []


def test_a_decoder_never_holds_jax(clip):
    """What is forked has numpy, PyAV and Pillow, and nothing of the trainer; it is forked from one
    thread, and the system kills it before the trainer."""
    run = start()
    look(clip, run)
    cuts = Workers().start(shots.watch)
    shots.shots(Place.of(clip), run=cuts)
    for pid in nurseries():
        libraries = Path(f"/proc/{pid}/maps").read_text()
        assert "libav" in libraries and "jaxlib" not in libraries and "grain" not in libraries
        assert len(os.listdir(f"/proc/{pid}/task")) == 1
    mine = Path("/proc/self/oom_score_adj").read_text()
    for pid in decoders():
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) > int(mine)


KEPT = []


def leak(file, *, out):
    """A task that keeps 40 MiB each time, as a library with a fault would."""
    KEPT.append(b"x" * (40 << 20))
    out[:] = len(KEPT)


def test_a_decoder_that_leaks_is_replaced_before_a_clip_must_pay(clip):
    """128 MiB may be kept of 256: four times, then it begins anew."""
    run, out, seen = Workers(memory_mib=256).start(leak), np.zeros(1, np.uint8), []
    for _ in range(9):
        with open(clip, "rb") as file:
            run.fill(out, leak, file)
        seen.append(int(out[0]))
    assert seen == [1, 2, 3, 4] * 2 + [1]


def test_an_action_that_nobody_can_do_is_said():
    with pytest.raises(ValueError, match="explode"):
        failpoints.arm("decode.frame:explode")
    failpoints.arm("")
