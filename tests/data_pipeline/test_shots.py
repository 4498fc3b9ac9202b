"""Films made of scenes whose cuts are known: each shot is found, and read back frame by frame."""

import itertools
import json

import numpy as np
import pytest

from data_pipeline import manifest, shots
from data_pipeline.__main__ import main
from data_pipeline.decode import View, decode
from data_pipeline.errors import BadClip
from data_pipeline.index import index
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.places import Place
from data_pipeline.sizes import Native
from tests.data_pipeline.corpus import lossless, reordered

RATE = 24
LENGTHS = (30, 17, 3, 41, 24)  # frames of each scene; the third is too short to keep
SIZE = (32, 48)


def scenes(lengths=LENGTHS, size=SIZE):
    """uint8 (frames, h, w, 3): each scene a bright ground of its own with a bar that moves."""
    grounds = [(200, 60, 60), (60, 60, 200), (220, 220, 90), (40, 160, 60), (150, 80, 180)]
    videos = []
    for ground, length in zip(grounds, lengths, strict=True):
        video = np.empty((length, *size, 3), np.uint8)
        video[:] = ground
        for t in range(length):
            video[t, :, t % size[1]] = 255 - np.array(ground)
        videos.append(video)
    return np.concatenate(videos)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """(folder with one lossless film, its frames, the number of each scene's first frame)."""
    folder = tmp_path_factory.mktemp("films")
    video = scenes()
    lossless(folder / "film.mkv", video, [round(1000 * t / RATE) for t in range(len(video))])
    return folder, video, np.cumsum((0, *LENGTHS))


def test_every_cut_is_found_and_counted_by_time(film):
    folder, _, starts = film
    found = shots.shots(Place.of(folder / "film.mkv"))
    assert [shot.n_frames for shot in found] == list(LENGTHS)
    for shot, start, after in zip(found, starts[:-1], starts[1:], strict=True):
        assert abs(shot.start_s - start / RATE) < 1e-3
        assert abs(shot.end_s - after / RATE) < 2e-3
        assert abs(shot.fps_num / shot.fps_den - RATE) < 1
    assert [shots.is_short(shot) for shot in found] == [False, False, True, False, False]


def read_back(clips, **law):
    """Every clip as the loader gives it: (name, video of its first example)."""
    data = PackedVideo(
        sources=(Source(manifest=str(clips)),), patch=(1, 8, 8), tokens=24 * 41, text_tokens=32,
        segments=4, rows=4, seed=0, size=Native(), block=64, **law,
    )  # fmt: skip
    reader, block = data._reader, data._plans.block(0)
    names = reader.sources[0].names
    for example in block.examples:
        assert reader.read(example[None], data.capacity).bad == ()
        yield names[example["clip"]], reader.video(example), example


@pytest.mark.parametrize("fps", [None, 8.0])
def test_a_shot_read_back_is_its_frames_alone(film, fps, tmp_path):
    folder, video, starts = film
    found = index(str(folder), str(tmp_path / "m"), cut=True)
    assert (found["clips"], found["files"], found["skipped"]) == (4, 1, {"short": 1})
    seen = set()
    for name, got, example in read_back(tmp_path / "m", fps=fps):
        scene = int(name.removeprefix("film.mkv#"))
        stride = 1 if fps is None else round(RATE / fps)
        first = starts[scene] + round(float(example["offset"]) * RATE)
        want = video[first : starts[scene + 1] : stride][: len(got)]
        assert len(got) >= 5 and np.array_equal(got, want)
        seen.add(scene)
    assert seen == {0, 1, 3, 4}


def test_a_film_stored_out_of_order_is_read_back_exactly(tmp_path):
    """Long groups of pictures, no shot at the beginning of one: the truth is the whole film."""
    (tmp_path / "in").mkdir()
    path = reordered(tmp_path / "in" / "a.mp4", scenes(), "libx264", g="50", crf="1")
    starts = np.cumsum((0, *LENGTHS))
    whole = View(rate=RATE, frames=int(starts[-1]), stored=SIZE, resized=SIZE, size=SIZE)
    truth = decode(Place.of(path), whole, still=False)
    index(str(tmp_path / "in"), str(tmp_path / "m"), cut=True)
    for name, got, _ in itertools.islice(read_back(tmp_path / "m"), 12):
        scene = int(name.removeprefix("a.mp4#"))
        assert np.array_equal(got, truth[starts[scene] : starts[scene + 1]])


def test_no_cut_no_shots(tmp_path, capsys):
    """What moves, brightens or is brief is one clip each, under the file's own name."""
    fade = np.linspace(30, 200, 40).astype(np.uint8)[:, None, None, None] * np.ones((1, *SIZE, 3))
    for name, video in (
        ("moves.mkv", scenes((60,) * 5)[:60]),
        ("fades.mkv", fade.astype(np.uint8)),
        ("brief.mkv", scenes()[:4]),
    ):
        lossless(tmp_path / name, video, [round(1000 * t / RATE) for t in range(len(video))])
    assert main(["index", str(tmp_path), "--out", str(tmp_path / "m"), "--shots", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 3
    names = manifest.read(tmp_path / "m").table["clip_id"].to_pylist()
    assert names == ["brief.mkv", "fades.mkv", "moves.mkv"]


def test_a_fade_through_black_is_a_cut(tmp_path):
    """40 grey frames that darken, 6 black ones, 40 that brighten: two shots."""
    level = np.concatenate([np.linspace(1, 0, 40), np.zeros(6), np.linspace(0, 1, 40)])
    grey = np.broadcast_to(200 * level[:, None, None, None], (len(level), *SIZE, 3))
    video = grey.astype(np.uint8)
    lossless(tmp_path / "a.mkv", video, [round(1000 * t / RATE) for t in range(len(video))])
    first, second = shots.shots(Place.of(tmp_path / "a.mkv"))
    assert 38 <= first.n_frames <= 48 and first.n_frames + second.n_frames == 86


def test_captions_of_a_film_are_those_of_its_shots(film, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "film.mkv").write_bytes((film[0] / "film.mkv").read_bytes())
    index(str(folder), str(tmp_path / "m"), cut=True)
    assert manifest.read(tmp_path / "m").table["captions"].to_pylist() == [["in"]] * 4
    lines = ["file,caption,start,end", "film.mkv,red,0,1.2", "film.mkv,any,,"]
    (folder / "captions.csv").write_text("\n".join(lines))
    index(str(folder), str(tmp_path / "m"), cut=True)
    said = manifest.read(tmp_path / "m").table["captions"].to_pylist()
    assert said == [["red"], ["any"], ["any"], ["any"]]


def test_a_film_that_breaks_off_is_refused_as_a_whole(film, tmp_path):
    whole = (film[0] / "film.mkv").read_bytes()
    broken = bytearray(whole)
    for place in range(len(whole) // 2, len(whole) // 2 + 4000, 40):
        broken[place] ^= 0xFF
    (tmp_path / "a.mkv").write_bytes(bytes(broken))
    with pytest.raises(BadClip):
        shots.shots(Place.of(tmp_path / "a.mkv"))


def test_large_pictures_are_looked_at_small(tmp_path, monkeypatch):
    """The size that is looked at bounds the work; where the cuts are does not depend on it."""
    video = scenes(size=(96, 160))
    lossless(tmp_path / "a.mkv", video, [round(1000 * t / RATE) for t in range(len(video))])
    lengths = []
    for side in (shots.SIDE, 64, 400):
        monkeypatch.setattr(shots, "SIDE", side)
        lengths.append([shot.n_frames for shot in shots.shots(Place.of(tmp_path / "a.mkv"))])
    assert lengths == [list(LENGTHS)] * 3
