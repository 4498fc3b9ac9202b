"""Small copies: the same film at the same times, only smaller; what is refused stays refused."""

import itertools
import json
import os
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from data_pipeline import copies, manifest
from data_pipeline.__main__ import main
from data_pipeline.copies import Copies
from data_pipeline.errors import DataError
from data_pipeline.index import index
from data_pipeline.places import Place
from data_pipeline.sources.entry import is_still
from data_pipeline.workers import InProcess, Workers
from tests.data_pipeline.corpus import ACCEPTED, REFUSED, film, look, lossless
from tests.data_pipeline.test_shots import LENGTHS, RATE, read_back, scenes

TIMES = [40 * i + 13 * (i % 3) for i in range(30)]  # milliseconds, at no even rate


def frames(path):
    """([seconds], uint8 (t h w 3), [number of each key frame])."""
    with av.open(str(path)) as container:
        found = list(container.decode(video=0))
    video = np.stack([frame.to_ndarray(format="rgb24") for frame in found])
    return [f.time for f in found], video, [i for i, f in enumerate(found) if f.key_frame]


def test_a_copy_has_every_frame_at_its_time_and_is_smaller(tmp_path):
    video = film(30, 64, 96)
    lossless(tmp_path / "a.mkv", video, TIMES)
    copies.copy(Place.of(tmp_path / "a.mkv"), tmp_path / "b.mp4", side=32, still=False)
    times, small, first = frames(tmp_path / "b.mp4")
    assert np.allclose(times, np.array(TIMES) / 1000, atol=1e-3)
    assert small.shape == (30, 32, 48, 3)
    truth = video.reshape(30, 32, 2, 48, 2, 3).mean((2, 4))
    assert abs(small - truth).mean() < 3 and abs(small - truth).max() < 24
    assert max(b - a for a, b in itertools.pairwise([*first, 30])) <= copies.GROUP


@pytest.mark.parametrize(
    ("size", "side", "small"),
    [((720, 1280), 96, (96, 170)), ((1280, 720), 96, (170, 96)), ((30, 41), 96, (30, 40)),
     ((1, 900), 8, (2, 900)), ((97, 97), 96, (96, 96))],
)  # fmt: skip
def test_sizes_are_even_and_never_larger_than_the_film(size, side, small):
    assert copies.small_size(*size, side) == small


def test_an_image_is_copied_as_png(tmp_path):
    PIL.Image.fromarray(film(1, 64, 96)[0]).save(tmp_path / "a.jpg", quality=98)
    copies.copy(Place.of(tmp_path / "a.jpg"), tmp_path / "b.png", side=16, still=True)
    small = np.asarray(PIL.Image.open(tmp_path / "b.png"))
    truth = film(1, 64, 96)[0].reshape(16, 4, 24, 4, 3).mean((1, 3))
    assert small.shape == (16, 24, 3) and abs(small - truth).max() < 8


@pytest.mark.parametrize("seconds", [1, -1000])
def test_a_copy_is_made_once_and_anew_when_the_file_changed(tmp_path, seconds):
    """Also when an older file took its place."""
    lossless(tmp_path / "a.mkv", film(5), [0, 40, 80, 120, 160])
    store = Copies(tmp_path / "small", 8)

    def made():
        path = Path(str(store.make(Place.of(tmp_path / "a.mkv"), still=False)))
        return path, len(frames(path)[0]), path.stat().st_mtime_ns

    first = made()
    assert made() == first
    lossless(tmp_path / "a.mkv", film(4), [0, 40, 80, 120])
    os.utime(tmp_path / "a.mkv", ns=(0, first[2] + seconds * 10**9))
    assert made()[1] == 4


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_not_copied(name, tmp_path):
    make, classes = REFUSED[name]
    make(tmp_path / name)
    store = Copies(tmp_path / "copies", 8)
    found = look(tmp_path, name, store=store)
    assert found.rows == []
    assert [one["reason"] in classes for one in found.skipped] == [True]
    assert not store.folder.exists() or list(store.folder.iterdir()) == []


@pytest.mark.parametrize("name", ACCEPTED, ids=lambda name: name[:20])
def test_a_copy_is_measured_like_the_file(name, tmp_path):
    make, (count, height, width) = ACCEPTED[name]
    make(tmp_path / name)
    (small,) = look(tmp_path, name, store=Copies(tmp_path / "copies", 8)).rows
    (large,) = look(tmp_path, name).rows
    assert (small["height"], small["width"]) == copies.small_size(height, width, 8)
    assert small["n_frames"] == count and small["clip_id"] == large["clip_id"]
    for key in ("start_s", "end_s", "captions"):
        assert (
            small[key] == pytest.approx(large[key], abs=2e-3) if key != "captions" else large[key]
        )


def test_shots_and_captions_of_copies_are_those_of_the_films(tmp_path):
    """What is read back is the film's shots, shrunk; captions name the file as it was."""
    folder = tmp_path / "in"
    folder.mkdir()
    video = scenes(size=(64, 96))
    lossless(folder / "a.mkv", video, [round(1000 * t / RATE) for t in range(len(video))])
    (folder / "captions.csv").write_text("file,caption,start,end\na.mkv,red,0,1.2\na.mkv,any,,\n")
    found = index(str(folder), str(tmp_path / "m"), cut=True, side=32)
    assert (found["clips"], found["files"], found["skipped"]) == (4, 1, {"short": 1})
    table = manifest.read(tmp_path / "m").table
    assert table["captions"].to_pylist() == [["red"], ["any"], ["any"], ["any"]]
    assert table["clip_id"].to_pylist() == [f"a.mkv#{n:04d}" for n in (0, 1, 3, 4)]
    starts = np.cumsum((0, *LENGTHS))
    small = video.reshape(len(video), 32, 2, 48, 2, 3).mean((2, 4))
    seen = set()
    for name, got, _ in read_back(tmp_path / "m"):
        scene = int(name.removeprefix("a.mkv#"))
        want = small[starts[scene] : starts[scene + 1]][: len(got)]
        assert abs(got - want).mean() < 6  # codec; another scene is 40 off, and more
        seen.add(scene)
    assert seen == {0, 1, 3, 4}


def test_no_room_for_copies_ends_the_index_in_one_sentence(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    lossless(tmp_path / "in" / "a.mkv", film(3), [0, 40, 80])
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "copies-16").write_text("in the way")
    words = ["index", str(tmp_path / "in"), "--out", str(tmp_path / "m")]
    assert main([*words, "--copies", "16"]) == 6
    assert "small copies" in capsys.readouterr().err
    (tmp_path / "m" / "copies-16").unlink()
    assert main([*words, "--copies", "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 1


@pytest.mark.parametrize("name", ["a.mkv", "a.png"])
def test_a_full_disk_is_not_the_file_s_fault(tmp_path, name, monkeypatch):
    """/dev/full takes no byte, as a disk without room: no clip is skipped, the index ends."""
    (tmp_path / "in").mkdir()
    if is_still(name):
        PIL.Image.fromarray(film(1)[0]).save(tmp_path / "in" / name)
    else:
        lossless(tmp_path / "in" / name, film(3), [0, 40, 80])
    real = open
    monkeypatch.setattr(copies, "open", lambda path, mode: real("/dev/full", mode), raising=False)
    for decoder in (InProcess(), Workers()):
        with pytest.raises(DataError, match="small copies") as error:
            index(str(tmp_path / "in"), str(tmp_path / "m"), side=8, decoder=decoder)
        assert error.value.code == 6
