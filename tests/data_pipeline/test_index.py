"""Every file of a folder gets a class; what is written depends on the files alone."""

import json
import os
import random
import subprocess
import sys

import av
import pytest

from data_pipeline import manifest
from data_pipeline.__main__ import main
from data_pipeline.errors import DataError
from data_pipeline.index import index
from data_pipeline.places import Place
from data_pipeline.sources.entry import Entry
from data_pipeline.sources.folder import Folder
from tests.data_pipeline.corpus import ACCEPTED, REFUSED, UNSEEN, look, mp4


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_gets_a_class(name, tmp_path):
    make, classes = REFUSED[name]
    make(tmp_path / name)
    for cut in (False, True):
        found = look(tmp_path, name, cut=cut)
        assert found.rows == []
        assert [one["reason"] in classes for one in found.skipped] == [True]


def test_a_film_cut_between_packets_is_noticed(tmp_path):
    """Cut anywhere, the table of samples at the front still promises all of them."""
    whole = mp4(tmp_path / "a.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        ends = [p.pos + p.size for p in container.demux(video=0) if p.size]
    assert len(ends) == 6
    for end in sorted(ends)[:-1]:
        (tmp_path / "a.mp4").write_bytes(whole[:end])
        for cut in (False, True):
            found = look(tmp_path, "a.mp4", cut=cut)
            assert found.rows == [] and found.skipped[0]["reason"] in ("truncated", "corrupt")


@pytest.mark.parametrize("name", ACCEPTED, ids=lambda name: name[:20])
def test_a_strange_but_whole_file_is_measured(name, tmp_path):
    make, size = ACCEPTED[name]
    make(tmp_path / name)
    (found,) = look(tmp_path, name).rows
    assert (found["n_frames"], found["height"], found["width"]) == size
    assert (found["fps_num"] == 0) == (size[0] == 1)
    # A film that is not cut is measured alike when it is looked at for cuts.
    assert look(tmp_path, name, cut=True).rows == [found]


def test_a_folder_of_everything_is_indexed_and_counted(tmp_path, capsys):
    clips, out = tmp_path / "clips", tmp_path / "manifest"
    clips.mkdir()
    everything = REFUSED | ACCEPTED
    for name, (make, _) in everything.items():
        make(clips / name)
    for name, make in UNSEEN.items():
        make(clips / name)
    os.rename(mp4(clips / "n.mp4"), os.fsencode(clips) + b"/\xff\xfe.mp4")  # no UTF-8
    assert main(["index", str(clips), "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["clips"] == len(manifest.read(out)) == len(ACCEPTED)
    assert sum(found["skipped"].values()) == len(REFUSED) + 1
    lines = [json.loads(line) for line in (out / manifest.SKIPPED).read_text().splitlines()]
    assert len(lines) == len(REFUSED) + 1
    assert all(line["file"].isprintable() and line["detail"].isprintable() for line in lines)


def test_the_digest_depends_on_the_files_alone(tmp_path, monkeypatch):
    clips = tmp_path / "clips"
    (clips / "deep").mkdir(parents=True)
    for seed, name in enumerate(("b.mp4", "a.mp4", "deep/c.mp4", "deep/a.mp4")):
        mp4(clips / name, seed=seed)
    first = index(str(clips), str(tmp_path / "one"))["digest"]
    listing = os.listdir

    def shuffled(path):
        names = listing(path)
        random.Random(1).shuffle(names)
        return names

    monkeypatch.setattr(os, "listdir", shuffled)
    again = index(str(clips), str(tmp_path / "deeper" / "two"), threads=1)
    assert again["digest"] == first
    tables = [(tmp_path / folder / manifest.TABLE) for folder in ("one", "deeper/two")]
    assert manifest.read(tables[0]).table["uri"] == manifest.read(tables[1]).table["uri"]
    tokenizers = [table.with_name(manifest.TOKENIZER).read_bytes() for table in tables]
    assert tokenizers[0] == tokenizers[1]
    assert "/clips/" in str(manifest.read(tmp_path / "deeper" / "two").place(0))
    mp4(clips / "a.mp4", seed=9)
    assert index(str(clips), str(tmp_path / "three"))["digest"] != first


def said_of(folder, name):
    place = Place(str(folder), name)
    said = Folder(str(folder)).said(Entry(place=place, name=name), 0, 1)
    return list(said.captions), said.label


def caption_of(folder, **beside):
    folder.mkdir()
    for suffix, text in beside.items():
        (folder / f"clip.{suffix}").write_text(text)
    return said_of(folder, "clip.mp4")


def test_captions_lie_beside_their_file(tmp_path):
    assert caption_of(tmp_path / "a", txt="one\n\n two  words \n") == (["one", "two words"], "")
    said = '{"caption": "from json", "colour": "red"}'
    assert caption_of(tmp_path / "b", json=said) == (["from json"], '{"colour": "red"}')
    assert caption_of(tmp_path / "c", json='{"captions": ["x", 3, "y"]}')[0] == ["x", "y"]
    both = caption_of(tmp_path / "d", txt="a caption", json='{"shape": "star"}')
    assert both == (["a caption"], '{"shape": "star"}')
    assert caption_of(tmp_path / "Apply_Eye_Makeup") == (["Apply Eye Makeup"], "")
    assert caption_of(tmp_path / "e", json="[" * 100_000)[0] == ["e"]
    assert caption_of(tmp_path / "f", txt="") == ([], "")
    os.mkfifo(tmp_path / "f" / "pipe.txt")
    assert said_of(tmp_path / "f", "pipe.mp4")[0] == ["f"]


def test_links_to_folders_are_not_followed(tmp_path):
    (tmp_path / "in").mkdir()
    mp4(tmp_path / "in" / "a.mp4")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    assert [entry.name for entry in Folder(str(tmp_path / "in")).entries()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"clip_id": "a", "uri": "../../etc/passwd"}], "not inside"),
        ([{"clip_id": "a", "uri": "/etc/passwd"}], "not inside"),
        ([{"clip_id": "a", "uri": "a"}, {"clip_id": "a", "uri": "b"}], "same"),
        ([{"clip_id": "a", "uri": "a", "height": 0}], "height"),
        ([{"clip_id": "a", "uri": "a", "n_frames": None}], "n_frames"),
        ([{"clip_id": "a", "uri": "a", "bytes": None}], "bytes"),
        ([{"clip_id": "a", "uri": "a", "bytes": -1}], "bytes"),
        ([{"clip_id": "a", "uri": "a", "start_s": float("nan")}], "start_s"),
        ([{"clip_id": "a", "uri": "a", "end_s": None}], "end_s"),
        ([{"clip_id": "a", "uri": "a", "end_s": float("inf")}], "end_s"),
        ([], "lists no clip"),
    ],
)
def test_a_strangers_table_is_judged(rows, said, tmp_path):
    whole = {"still": True, "n_frames": 1, "height": 8, "width": 8, "fps_num": 0, "fps_den": 1}
    whole |= {"start_s": 0.0, "end_s": 0.0, "bytes": 1}
    table = manifest.table_of([whole | row for row in rows])
    manifest.write(tmp_path / "m", table, tmp_path)
    with pytest.raises(DataError, match=said):
        manifest.read(tmp_path / "m")


def test_what_is_no_manifest_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no manifest") as error:
        manifest.read(tmp_path / "none")
    assert error.value.code == 2
    (tmp_path / "clips.parquet").write_text("not parquet")
    with pytest.raises(DataError, match="not a Parquet file"):
        manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["index", "{}/none", "--out", "{}/m"], 2, "none"),
        (["index", "{}/empty", "--out", "{}/m"], 3, "no video or image"),
        (["index", "{}/clips", "--out", "{}/clips/a.mp4"], 6, "cannot write"),
        (["generate", "{}/clips/a.mp4", "--clips", "1"], 6, "cannot write"),
    ],
)
def test_a_mistake_is_one_sentence(words, code, said, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "clips").mkdir()
    mp4(tmp_path / "clips" / "a.mp4")
    assert main([word.format(tmp_path) for word in words]) == code
    out, err = capsys.readouterr()
    assert said in err and out == ""
    assert len([line for line in err.splitlines() if line.strip()]) == 1


def test_the_command_as_a_process(tmp_path):
    words = [sys.executable, "-m", "data_pipeline", "generate", str(tmp_path), "--clips", "-3"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert "'-3' must be a whole number of at least 1" in done.stderr


def test_weights_of_captions_are_kept(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        mp4(tmp_path / name)
    lines = [
        {"file": "a.mp4", "captions": ["short", "long"], "weights": [1, 3]},
        {"file": "b.mp4", "captions": ["one", "two"]},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    index(str(tmp_path / "t.jsonl"), str(tmp_path / "m"))
    table = manifest.read(tmp_path / "m").table
    assert table["captions"].to_pylist() == [["short", "long"], ["one", "two"]]
    assert table["caption_weights"].to_pylist() == [[1.0, 3.0], None]
