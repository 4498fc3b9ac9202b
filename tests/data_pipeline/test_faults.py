"""Faults in a run and in an index: what they hit is left out where it stands, and nothing moves.

Batches are compared leaf by leaf, byte by byte, with those of a run in which the same slots are
known to be bad and nothing goes wrong.
"""

import dataclasses
import itertools
import json
import os
import shutil
import threading

import numpy as np
import PIL.Image
import pytest

from data_pipeline import failpoints, manifest
from data_pipeline.__main__ import main
from data_pipeline.decode import View, decode, read_view
from data_pipeline.errors import BadClip, DataError
from data_pipeline.generated import generate
from data_pipeline.index import index
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.places import Place
from data_pipeline.sizes import Native
from data_pipeline.workers import InProcess, Workers
from tests.data_pipeline.corpus import ACCEPTED, REFUSED, film, lossless
from tests.data_pipeline.processes import decoders

STEPS = 4  # of which each clip of the corpus is in one
PATIENT = Workers(seconds=600.0, memory_mib=256)  # a machine that is busy is no fault
QUICK = dataclasses.replace(PATIENT, seconds=2.0)  # for those who wait for a time-out
DEADLY = {"segv": "crashed", "kill": "crashed", "stop": "timeout", "hang": "timeout"}
DEADLY |= {"hog": "memory"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    generate(str(folder / "clips"), 16, 0)
    index(str(folder / "clips"), str(folder / "manifest"))
    return folder


def loader(folder, **changes):
    settings = {
        "sources": (Source(manifest=str(folder / "manifest")),), "patch": (2, 4, 4),
        "tokens": 160, "text_tokens": 64, "segments": 6, "rows": 8, "seed": 0,
        "size": Native(), "block": 24, "memory_mib": 0, "threads": 2, "decoder": PATIENT,
    }  # fmt: skip
    return PackedVideo(**settings | changes)


def take(data, count, **how):
    batches = data.batches(**how)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def same_but_for(batches, wanted):
    for one, other in zip(batches, wanted, strict=True):
        assert one.cursor == other.cursor
        assert [bad[:2] for bad in one.bad] == [bad[:2] for bad in other.bad]
        for name, leaf in one.arrays.items():
            assert leaf.tobytes() == other.arrays[name].tobytes(), name


@pytest.mark.parametrize("action", [*DEADLY, "raise", "eio"])
def test_a_run_with_failing_decoders_is_one_without_those_clips(action, made, monkeypatch):
    """A decoder fails again and again, at every 150th frame or so of its life."""
    whole = take(loader(made), 6)
    monkeypatch.setenv(failpoints.NAME, f"decode.frame:{action}@150")
    waits = DEADLY.get(action) == "timeout"
    found = take(loader(made, decoder=QUICK if waits else PATIENT), 6)
    monkeypatch.delenv(failpoints.NAME)
    bad = [one for batch in found for one in batch.bad]
    if action == "eio":  # the clip was decoded again
        assert bad == []
        return same_but_for(found, whole)
    assert {why for _, _, why in bad} == {DEADLY.get(action, "decoder")}
    assert len({ordinal for _, ordinal, _ in bad}) == len(bad) >= 1
    known = take(loader(made), 6, known_bad=[one[:2] for one in bad])
    same_but_for(found, known)
    for clean, batch in zip(whole, found, strict=True):
        masked = clean.arrays["valid"] & ~batch.arrays["valid"]
        assert masked.sum() == len(batch.bad)
        assert np.array_equal(clean.arrays["ordinal"], batch.arrays["ordinal"])


def test_transient_trouble_of_every_decoder_changes_nothing(made, monkeypatch):
    whole = take(loader(made), 4)
    monkeypatch.setenv(failpoints.NAME, "decode.read:eio@2;decode.read:eio@9;decode.read:eio@20")
    same_but_for(take(loader(made), 4), whole)


def test_decoders_that_are_killed_from_outside_cost_no_more_than_their_clips(made):
    """Whoever kills them and whenever, as an operating system without memory does."""
    whole, done = take(loader(made), 12), threading.Event()

    def hunt():
        while not done.wait(0.02):
            for pid in decoders():
                os.kill(pid, 9)

    thread = threading.Thread(target=hunt)
    thread.start()
    try:
        found = take(loader(made, max_bad=1.0), 12)
    finally:
        done.set()
        thread.join()
    bad = [one[:2] for batch in found for one in batch.bad]
    assert bad
    same_but_for(found, take(loader(made), 12, known_bad=bad))
    assert [b.cursor for b in found] == [b.cursor for b in whole]


def test_data_that_only_kills_ends_the_run(made, monkeypatch):
    monkeypatch.setenv(failpoints.NAME, "decode.frame:segv")
    with pytest.raises(DataError, match=r"crashed \d+.*max_bad 0\.5.*times") as error:
        take(loader(made), 40)
    assert error.value.code == 3
    assert str(error.value).count(" times)") == 5


def test_few_bad_examples_may_be_too_many(made):
    """An absolute number, whatever share it is: the third bad example is one too many."""
    names = _names(made)
    data = loader(made, max_bad_examples=2)
    two, three = ([(name, o) for name in names for o in range(count)] for count in (2, 3))
    assert sum(len(batch.bad) for batch in take(data, 8, known_bad=two)) == 2
    with pytest.raises(DataError, match=r"3 of \d+.*known 3.*max_bad_examples 2 ") as error:
        take(data, 8, known_bad=three)
    assert error.value.code == 3


def _names(folder):
    return manifest.read(folder / "manifest").table["clip_id"].to_pylist()


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_bad_files_are_borne_up_to_the_share_that_is_allowed(share, made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    files = [tmp_path / "copy" / "clips" / name for name in _names(made)]
    for path in files[: round(share * len(files))]:
        path.write_bytes(b"\0" * path.stat().st_size)  # as long as before
    data = loader(tmp_path / "copy")
    if share < data.max_bad:
        found = take(data, 30)
        bad = sum(len(batch.bad) for batch in found)
        seen = bad + sum(int(batch.arrays["valid"].sum()) for batch in found)
        assert abs(bad / seen - share) < 0.1
        return
    with pytest.raises(DataError, match=r"format \d+") as error:
        take(data, 30)
    assert error.value.code == 3
    assert sorted(str(error.value).count(f"{path} (") for path in files)[-6:] == [0] + [1] * 5


def test_another_file_of_the_same_length_is_noticed_by_hash_alone(tmp_path):
    """Pixels of 24 bits without compression: another picture has the very same length."""
    (tmp_path / "clips").mkdir()
    for n in range(4):
        PIL.Image.fromarray(film(1, seed=n)[0]).save(tmp_path / "clips" / f"{n}.bmp")
    index(str(tmp_path / "clips"), str(tmp_path / "manifest"))
    PIL.Image.fromarray(film(1, seed=9)[0]).save(tmp_path / "clips" / "2.bmp")
    for verify, bad in (("size", set()), ("sha256", {("2.bmp", "changed")})):
        (batch,) = take(loader(tmp_path, verify=verify, patch=(1, 4, 4)), 1)
        assert {(name, why) for name, _, why in batch.bad} == bad


def test_a_file_replaced_while_it_is_read_is_still_the_one_that_was_opened(tmp_path):
    """A rename puts another file under the name; what was opened stays what it was."""
    times = list(range(0, 600, 100))
    path = lossless(tmp_path / "a.mkv", film(6), times)
    lossless(tmp_path / "b.mkv", film(6, seed=3), times)
    run = PATIENT.start(read_view)

    class Replacing:
        def fill(self, out, task, *files, **arguments):
            os.replace(tmp_path / "b.mkv", path)
            run.fill(out, task, *files, **arguments)

    view = View(rate=10.0, frames=6, stored=(16, 24), resized=(16, 24), size=(16, 24))
    assert np.array_equal(decode(Place.of(path), view, still=False, run=Replacing()), film(6))
    assert np.array_equal(decode(Place.of(path), view, still=False, run=run), film(6, seed=3))


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_shrinks_while_it_is_read_is_bad(known, tmp_path):
    path = lossless(tmp_path / "a.mkv", film(6, 64, 96), list(range(0, 600, 100)))
    size = path.stat().st_size
    run = PATIENT.start(read_view)

    class Cutting:
        def fill(self, out, task, *files, **arguments):
            os.truncate(path, size // 2)
            run.fill(out, task, *files, **arguments)

    shape = (64, 96)
    view = View(
        rate=10.0, frames=6, stored=shape, resized=shape, size=shape, bytes=size if known else None
    )
    with pytest.raises(BadClip) as bad:
        decode(Place.of(path), view, still=False, run=Cutting())
    assert bad.value.reason in ({"changed"} if known else {"truncated", "corrupt", "short"})


def test_an_index_outlives_the_files_that_kill(tmp_path, monkeypatch, capsys):
    """Each of these decoders dies at its eighth frame; the files in which it does are left out by
    name, all others are measured as ever."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for n in range(9):
        lossless(clips / f"{n}.mkv", film(3, seed=n), [0, 100, 200])
    want = index(str(clips), str(tmp_path / "whole"))
    monkeypatch.setenv(failpoints.NAME, "decode.frame:segv@8")
    found = index(str(clips), str(tmp_path / "found"), threads=1)
    assert found["skipped"] == {"crashed": 3} and found["clips"] == want["clips"] - 3 == 6
    rows = {
        row["clip_id"]: row for row in manifest.read(tmp_path / "whole").table.to_pylist()
    }  # fmt: skip
    for row in manifest.read(tmp_path / "found").table.to_pylist():
        assert rows[row["clip_id"]] == row
    for how in ({"cut": True}, {"side": 8}):
        found = index(str(clips), str(tmp_path / "more"), threads=1, **how)
        assert found["clips"] >= 3 and set(found["skipped"]) == {"crashed"}
    monkeypatch.setenv(failpoints.NAME, "decode.read:hang@4")
    decoder = dataclasses.replace(QUICK, seconds=0.5)
    found = index(str(clips), str(tmp_path / "hung"), threads=1, decoder=decoder)
    assert found["skipped"] == {"timeout": 2} and found["clips"] == 7


def test_a_folder_of_everything_is_trained_on(tmp_path, capsys):
    """Indexed whole, then ruined: every file of the corpus takes the place of one that was good.
    Training goes on, and equals the run in which those slots are masked."""
    clips = tmp_path / "clips"
    clips.mkdir()
    everything = [*REFUSED.items(), *ACCEPTED.items()]
    names = [f"{n:02d}{os.path.splitext(name)[1]}" for n, (name, _) in enumerate(everything)]
    for n, name in enumerate(names):
        if name.endswith((".png", ".jpg")):
            PIL.Image.fromarray(film(1, seed=n)[0]).save(clips / name)
        else:
            kind = lossless(clips / f"{n}.tmp", film(4, seed=n), [0, 100, 200, 300])
            kind.rename(clips / name)
    assert main(["index", str(clips), "--out", str(tmp_path / "manifest"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == len(names)
    data = loader(tmp_path, max_bad=1.0, block=len(names), threads=4)
    whole = take(data, STEPS)
    for name, (_, (make, _)) in zip(names, everything, strict=True):
        (clips / name).unlink()
        make(clips / name)
    found = take(dataclasses.replace(data), STEPS)
    bad = [one for batch in found for one in batch.bad]
    assert sum(int(batch.arrays["valid"].sum()) for batch in whole) == len(bad) == len(names)
    assert {name for name, _, _ in bad} == set(names)
    assert {why for _, _, why in bad} <= {"changed", "empty", "not_a_file", "link", "size", "short"}
    masked = take(dataclasses.replace(data), STEPS, known_bad=[one[:2] for one in bad])
    same_but_for(found, masked)
    assert [batch.cursor for batch in found] == [batch.cursor for batch in whole]


def test_decoding_here_and_in_processes_gives_the_same_batches(made):
    same_but_for(take(loader(made, decoder=InProcess()), 4), take(loader(made), 4))
