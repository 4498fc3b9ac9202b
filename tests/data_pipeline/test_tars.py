"""WebDataset shards: the clips in them are those that lay in a folder before they were packed."""

import io
import json
import tarfile

import numpy as np
import pytest

from data_pipeline import manifest
from data_pipeline.decode import View, decode
from data_pipeline.errors import DataError
from data_pipeline.files import Limits
from data_pipeline.index import index
from data_pipeline.places import Place
from data_pipeline.sources.tars import said_of
from tests.data_pipeline.corpus import mp4


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    """Two shards of three samples, and the files they are made of."""
    files = {}
    (tmp_path / "shards").mkdir()
    for number in range(2):
        with tarfile.open(tmp_path / "shards" / f"{number:05d}.tar", "w") as archive:
            for key in range(3):
                path = mp4(tmp_path / f"{number}{key}.mp4", seed=3 * number + key, frames=5 + key)
                name = f"{number:05d}{key:04d}"
                files[f"{number:05d}.tar/{name}"] = path
                told = {"caption": "not this", "label": f"l{key}", "motion": 0.5, "key": name}
                add(archive, f"{name}.mp4", path.read_bytes())
                add(archive, f"{name}.txt", f"caption {name}".encode())
                add(archive, f"{name}.json", json.dumps(told).encode())
    return tmp_path / "shards", files


def test_a_clip_in_a_shard_is_the_file_it_was(shards, tmp_path):
    folder, files = shards
    found = index(str(folder), str(tmp_path / "m"))
    assert (found["clips"], found["captions"]) == (6, {"sidecar": 6})
    read = manifest.read(tmp_path / "m")
    for row, name in enumerate(read.table["clip_id"].to_pylist()):
        path = files[name]
        with read.place(row).open(Limits()) as file:
            assert file.read() == path.read_bytes()
        line = read.table.slice(row, 1).to_pylist()[0]
        assert line["captions"] == [f"caption {name.rpartition('/')[2]}"]
        assert (line["label"], line["scores"]["motion"]) == (f"l{int(name[-1])}", 0.5)
        view = View(rate=8.0, frames=5, stored=(16, 24), resized=(16, 24), size=(16, 24),
                    bytes=path.stat().st_size)  # fmt: skip
        shown = [decode(place, view, still=False) for place in (read.place(row), Place.of(path))]
        assert np.array_equal(*shown)


def test_a_damaged_shard_is_read_up_to_its_damage(shards, tmp_path):
    folder, _ = shards
    whole = (folder / "00001.tar").read_bytes()
    with tarfile.open(folder / "00001.tar") as archive:
        second = archive.getmember("000010001.mp4")
    (folder / "00001.tar").write_bytes(whole[: second.offset_data + second.size // 2])
    (folder / "00002.tar").write_bytes(b"no archive" * 99)
    found = index(str(folder), str(tmp_path / "m"))
    assert (found["clips"], found["skipped"]) == (4, {})
    assert sorted(problem[:9] for problem in found["problems"]) == ["00001.tar", "00002.tar"]


def test_text_beside_a_video_is_read_as_it_is_written():
    def told(text, beside):
        said = said_of(text, beside)
        return said.captions, dict(said.scores)

    assert told("one\n\ntwo\n", '{"caption": "x"}') == (("one", "two"), {})
    assert told(None, '{"captions": ["a", 3, "a", "b"]}') == (("a", "b"), {})
    assert told("", '{"caption": "x", "aesthetic": "5.5", "clip": "nan"}') == (
        ("x",),
        {"aesthetic": 5.5},
    )
    assert told(None, "[1") == told(None, "[]") == told(None, None) == ((), {})


def test_films_beside_a_shard_are_not_passed_over(shards, tmp_path):
    folder, _ = shards
    mp4(folder / "film.mp4")
    found = index(str(folder), str(tmp_path / "m"))
    assert (found["clips"], found["captions"]) == (1, {"folder": 1})


def test_a_folder_without_shards_is_a_mistake(tmp_path):
    with pytest.raises(DataError, match=r"no \.tar file"):
        index(str(tmp_path), str(tmp_path / "m"), form="webdataset")
