"""From annotations to clips: whatever is wrong with them is said, and each finds its own file."""

import io
import json
import random

import pytest

from data_pipeline import manifest
from data_pipeline.__main__ import main
from data_pipeline.errors import DataError
from data_pipeline.index import index
from data_pipeline.sources.annotated import Annotated, Told, Unread
from data_pipeline.sources.annotations import ANNOTATIONS, reading
from data_pipeline.sources.annotations.gather import by_file
from data_pipeline.sources.choose import choose
from data_pipeline.sources.folder import Folder
from tests.data_pipeline.corpus import mp4, picture
from tests.data_pipeline.test_annotations import document, part, said, table, text, told


@pytest.mark.parametrize("form", ANNOTATIONS)
@pytest.mark.parametrize("content", ["", "this is\nno annotation\n", "[1, 2, 3]\n", "{}\n"])
def test_what_is_no_annotation_is_refused_in_one_sentence(form, content, tmp_path, capsys):
    """Or it is one of nothing."""
    for name in ("a.csv", "a.jsonl", "a.json", "a.parquet", "folder/classInd.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        words = ["index", str(tmp_path / name), "--form", form, "--out", str(tmp_path / "m")]
        assert main(words) in (2, 3)
        error = capsys.readouterr().err.strip()
        assert error.startswith("data_pipeline: ") and error.isprintable(), error


SAMPLES = {
    "table": ("a.csv", "file,caption,start,weight,id\nb.mp4,x,1,2,3\n"),
    "webvid": ("a.csv", "videoid,contentUrl,duration,page_dir,name\n007,u,PT00H00M15S,p,x\n"),
    "openvid": ("a.csv", "video,caption,aesthetic score,camera motion\nb.mp4,x,5.5,static\n"),
    "msrvtt": (
        "a.json",
        '{"videos": [{"video_id": "video0", "category": 3, "split": "train"}],'
        ' "sentences": [{"video_id": "video0", "caption": "x"}]}',
    ),
    "ucf101": ("trainlist01.txt", "YoYo/v_YoYo_g01_c01.avi 1\n"),
    "lsmdc": ("a.csv", "1_A_00.00.01.926-00.00.02.129\t\t\t00.00.01.926\t00.00.02.129\tx\n"),
    "didemo": ("a.json", '[{"video": "b", "description": "x", "times": [[0, 1], [2, 3]]}]'),
    "youcook2": (
        "a.json",
        '{"database": {"b": {"subset": "training", "annotations":'
        ' [{"segment": [1, 2], "sentence": "x"}]}}}',
    ),
    "activitynet": ("a.json", '{"v_b": {"timestamps": [[1, 2.5]], "sentences": ["x"]}}'),
    "how2": ("segments", "b_0 b 0.5 1.5\n"),
    "howto100m": ("a.json", '{"b": {"text": ["x", NaN], "start": [1, 2], "end": [2, 1e3]}}'),
    "hdvila": (
        "a.jsonl",
        '{"video_id": "b", "clip": [{"clip_id": "b.1.mp4", "span": ["0:0:1.5", "0:0:2"]}]}\n',
    ),
    "internvid": (
        "a.jsonl",
        '{"YoutubeID": "b", "Start_timestamp": "0:0:1", "End_timestamp": 2, "Caption": "x"}\n',
    ),
    "panda70m": (
        "a.csv",
        "videoID,timestamp,caption,matching_score\nb,\"[['0:0:1', '0:0:2']]\",['x'],[0.5]\n",
    ),
}


@pytest.mark.parametrize("form", ANNOTATIONS)
def test_whatever_is_wrong_with_annotations_is_said(form, tmp_path):
    """Bytes changed, lost, put in and repeated at random: no error of another kind, ever."""
    name, content = SAMPLES[form]
    text(tmp_path / "classInd.txt", "1 YoYo")
    text(tmp_path / "testlist01.txt", "YoYo/v_YoYo_g01_c02.avi")
    text(tmp_path / "text", "b_0 hello")
    (tmp_path / name).write_text(content)
    path = tmp_path if form in ("ucf101", "how2") else tmp_path / name
    assert told(form, path)[0] and not told(form, path)[1]
    rng = random.Random(form)
    odd = (
        b"",
        b"\0",
        b"\xff",
        b'"',
        b"[",
        b"[" * 3000,
        b"}",
        b"9" * 400,
        b"-1",
        b"\n",
        b"e",
        b"\t",
    )
    for _ in range(150):
        whole = content.encode() * rng.choice((1, 1, 2))
        for _ in range(rng.choice((1, 1, 3))):
            at, lost = rng.randrange(len(whole)), rng.choice((0, 1, 9))
            whole = whole[:at] + rng.choice(odd) + whole[at + lost :]
        (tmp_path / name).write_bytes(whole)
        try:
            for line in ANNOTATIONS[form](str(path)):
                assert isinstance(line, Unread | Told)
        except DataError as error:
            assert str(error).isprintable()


def test_scattered_lines_come_together_in_their_order():
    lines = [Told(file, said(str(n))) for n, file in enumerate("badcabdabc" * 3)]
    found = list(by_file([lines[0], Unread("x", "y"), *lines[1:]]))
    assert found[0] == Unread("x", "y")
    assert found[1:] == sorted(lines, key=lambda line: line.file)


MEMBERS = {
    "a": {"text": ['x"}{,:', "é\\u00e9"], "start": [0.5, 1e-3], "end": [-1, 2]},
    "": [],
    "two\nlines": {"n": None, "t": [True, False, {"deep": [[[]]]}]},
    "number": 12345,
    "last": "a } b",
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 50, 10_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_document_read_as_a_stream_says_what_json_says(chunk, indent, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text("\n " + json.dumps(MEMBERS, indent=indent) + " \n")
    assert [record for _, record in reading.members(str(path))] == list(MEMBERS.items())
    path.write_text(" { } ")
    assert list(reading.members(str(path))) == []


def test_a_stream_is_read_no_further_than_it_is_asked_for():
    class Endless(io.StringIO):
        read_so_far = 0

        def read(self, count):
            self.read_so_far += count
            return ('{"a": [1]' + ', "b": [2]' * count)[:count]

    file = Endless()
    pairs = reading._pairs(file)
    assert [next(pairs) for _ in range(3)] == [("a", [1]), ("b", [2]), ("b", [2])]
    assert file.read_so_far == reading.CHUNK


@pytest.mark.parametrize("end", ["", ', "c": {"text"', "]", ', "c": 12'])
def test_a_document_that_breaks_off_is_read_up_to_there(end, tmp_path):
    film = {"text": ["x"], "start": [0], "end": [1]}
    path = tmp_path / "caption.json"
    path.write_text(json.dumps({"a": film, "b": film})[:-1] + end)
    found, unread = told("howto100m", path)
    assert set(found) == {part("a", 0, 1), part("b", 0, 1)}
    assert unread == [Unread("what follows 'b'", "is of another form")]


def annotated(media, *lines):
    return Annotated(str(media), "mine", lambda: lines)


def located(media, *lines):
    return [entry.place.uri for entry in annotated(media, *lines).entries()]


def test_files_are_found_by_path_or_name_with_any_suffix(tmp_path):
    names = ("007.mp4", "7.webm", "x/deep.1.mp4", "x/same.mp4", "y/same.mp4", "x/film.mkv")
    for name in names:
        text(tmp_path / name)
    (tmp_path / "x" / "film.jpg").write_bytes(picture("JPEG"))  # its thumbnail
    for name, want in {
        "007": "007.mp4", "7": "7.webm", "7.mp4": "7.webm", "deep.1": "x/deep.1.mp4",
        "x/deep.1": "x/deep.1.mp4", "deep.1.avi": "x/deep.1.mp4", "same": "same",
        "y/same": "y/same.mp4", "film": "x/film.mkv", "x/film": "x/film.mkv",
        "x/film.jpg": "x/film.jpg", "film.mp4": "x/film.mkv", "deep.2": "deep.2", "07": "07",
    }.items():  # fmt: skip
        assert located(tmp_path, Told(name, said())) == [want], name


@pytest.mark.parametrize(
    "name", ["../out.mp4", "/etc/passwd", "x/../../out.mp4", "s3://b/a.mp4", "tar://../o.tar#0,9"]
)
def test_nothing_outside_the_media_is_opened(name, tmp_path):
    mp4(tmp_path / "out.mp4")
    (tmp_path / "in").mkdir()
    mp4(tmp_path / "in" / "a.mp4")
    table(tmp_path / "t.csv", ("file", "caption"), (name, "stolen"), ("a", "mine"))
    found = index(str(tmp_path / "t.csv"), str(tmp_path / "m"), media=str(tmp_path / "in"))
    assert found["clips"] == 1 and found["skipped"] == {"outside": 1}


def test_lines_that_cannot_be_read_are_counted_in_one_sentence(tmp_path):
    good = Told("a", said("x"))
    some = annotated(tmp_path, good, Unread("line 2", "has no 'a\nb'"), good, Unread("l", "w"))
    assert len(list(some.entries())) == 1
    assert some.problems == ("2 line(s) cannot be used, such as line 2, which has no 'a\\nb'.",)
    assert len(list(some.entries())) == 1 and len(some.problems) == 1
    none = annotated(tmp_path, Unread("line 1", "is of another form"))
    with pytest.raises(DataError, match="not of the form 'mine': see line 1, which is of another"):
        list(none.entries())
    assert list(annotated(tmp_path).entries()) == []


def indexed(tmp_path, source, form=None):
    found = index(str(source), str(tmp_path / "m"), form=form, media=str(tmp_path / "media"))
    rows = manifest.read(tmp_path / "m").table.to_pylist()
    return found, {row["clip_id"]: row for row in rows}


def test_parts_of_a_film_are_clips_with_their_own_frames(tmp_path):
    """Eight frames a second, 32 of them; the parts overlap, and one lies behind the end."""
    mp4(text(tmp_path / "media" / "v_a.mp4"), frames=32)
    times = [[0.5, 2], [1, 3.5], [0.5, 2.0], [3, 100], [4.5, 9]]
    film = {"duration": 4, "timestamps": times, "sentences": ["one", "two", "three", "four", "no"]}
    gone = {"duration": 4, "timestamps": [[0, 1]], "sentences": ["gone"]}
    path = document(tmp_path / "train.json", {"v_a": film, "v_gone": gone})
    found, rows = indexed(tmp_path, path, "activitynet")
    assert found["clips"] == 3 and found["skipped"] == {"missing": 1, "span": 1}
    assert found["captions"] == {"annotation": 3} and found["problems"] == []
    shown = {tuple(row["captions"]): (row["start_s"], row["n_frames"]) for row in rows.values()}
    assert shown == {("one", "three"): (0.5, 12), ("two",): (1.0, 20), ("four",): (3.0, 8)}
    assert {row["source"] for row in rows.values()} == {"activitynet"}
    assert {row["split"] for row in rows.values()} == {"train"}


def test_a_part_that_was_cut_out_already_is_a_clip_of_its_own(tmp_path):
    mp4(text(tmp_path / "media" / "video_clips" / "abc" / "abc.1.mp4"), frames=5)
    mp4(text(tmp_path / "media" / "abc.mp4"), frames=32)
    clips = [
        {"clip_id": f"abc.{n}.mp4", "span": [f"00:00:0{n}.000", f"00:00:0{n + 1}.000"]}
        for n in range(3)
    ]
    path = text(tmp_path / "p.jsonl", json.dumps({"video_id": "abc", "clip": clips}))
    found, rows = indexed(tmp_path, path, "hdvila")
    assert found["captions"] == {"none": 3}
    where = {name: (row["uri"], row["start_s"], row["n_frames"]) for name, row in rows.items()}
    assert where == {
        "abc.0.mp4": ("abc.mp4", 0.0, 8),
        "abc.1.mp4": ("video_clips/abc/abc.1.mp4", 0.0, 5),
        "abc.2.mp4": ("abc.mp4", 2.0, 8),
    }


def test_clips_called_alike_are_one(tmp_path):
    for name in ("a", "b"):
        mp4(text(tmp_path / "media" / f"{name}.mp4"))
    head = ("file", "id", "caption")
    path = table(tmp_path / "t.csv", head, ("a", "1", "x"), ("b", "1", "y"), ("b", "1", "z"))
    found, rows = indexed(tmp_path, path)
    assert found["clips"] == 1 and found["skipped"] == {"duplicate": 1}
    assert rows["1"]["captions"] == ["x"]


def test_the_form_is_told_by_the_looks_of_a_path(tmp_path):
    mp4(text(tmp_path / "clips" / "a.mp4"))
    table(tmp_path / "t.csv", ("file", "caption"), ("a.mp4", "x"))
    document(tmp_path / "train.json", {})
    assert isinstance(choose(str(tmp_path / "clips"), None, None), Folder)
    chosen = choose(str(tmp_path / "t.csv"), None, None)
    assert (chosen.name, chosen.root) == ("table", str(tmp_path))
    assert choose(str(tmp_path / "t.csv"), "webvid", "/media").root == "/media"
    for path, form, media, said_ in (
        ("train.json", None, None, "say --form, one of table, webvid"),
        ("clips", "webvit", None, "there is no form 'webvit'; it is one of folder"),
        ("clips", "folder", "/media", "takes no --media"),
        ("gone.csv", None, None, "there is no folder or file"),
    ):
        with pytest.raises(DataError, match=said_) as error:
            choose(str(tmp_path / path), form, media)
        assert error.value.code == 2


def test_a_set_is_indexed_as_it_lies_on_disk(tmp_path, capsys):
    """WebVid: two ids that are one number, in folders by page; of one the file is broken, of one
    there is none, one line has no id."""
    for folder, name in (("000001_000050", "007"), ("000051_000100", "7"), ("000051_000100", "8")):
        mp4(text(tmp_path / "videos" / folder / f"{name}.mp4"), seed=int(name))
    (tmp_path / "videos" / "000051_000100" / "8.mp4").write_text("no film")
    head = ("videoid", "contentUrl", "duration", "page_dir", "name")
    lines = [
        (name, "u", "PT00H00M15S", "p", f"caption {name}") for name in ("7", "8", "007", "", "9")
    ]
    path = table(tmp_path / "results_2M_train.csv", head, *lines)
    words = ["index", str(path), "--form=webvid", "--out", str(tmp_path / "m"), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["clips"] == 2 and found["skipped"] == {"format": 1, "missing": 1}
    (problem,) = found["problems"]
    assert problem.startswith("1 line(s) cannot be used, such as line 5 of results_2M_train.csv, ")
    rows = manifest.read(tmp_path / "m").table.to_pylist()
    assert {row["uri"]: (row["captions"], row["split"]) for row in rows} == {
        "videos/000001_000050/007.mp4": (["caption 007"], "train"),
        "videos/000051_000100/7.mp4": (["caption 7"], "train"),
    }
