"""What a clip is called: sidecar, then table, then folder, each told apart and counted."""

import csv
import io
import json
import re
import tarfile

import pytest

from data_pipeline import captions, manifest
from data_pipeline.__main__ import main
from data_pipeline.captions import Caption
from data_pipeline.index import index, prompts
from tests.data_pipeline.corpus import mp4


def table(folder, *lines, name="captions.csv"):
    """A table as the csv and json modules write it; the first line of a csv is its header."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w", newline="") as file:
        if name.endswith(".csv"):
            csv.writer(file).writerows(lines)
        else:
            file.write("".join(json.dumps(line) + "\n" for line in lines))


def read(root, *files):
    tables = [str(p.relative_to(root)) for p in root.rglob("captions.*")]
    found = captions.read(root, tables, files)
    return {uri: [one.text for one in said] for uri, said in found.captions.items()}, found.problems


@pytest.mark.parametrize("file", captions.FILE)
@pytest.mark.parametrize("said", ["caption", "text"])
@pytest.mark.parametrize("name", captions.NAMES)
def test_every_column_name_is_understood(file, said, name, tmp_path):
    texts = ["a dog, running", 'a "dog"\non grass', "ein Hünd"]
    lines = [("a.mp4", texts[0]), ("in/b.mp4", texts[1]), ("a.mp4", texts[2])]
    if name.endswith(".csv"):
        table(tmp_path, ("other", file, said), *[("?", *line) for line in lines], name=name)
    else:
        table(tmp_path, *[{file: f, said: text, "other": 3} for f, text in lines], name=name)
    found, problems = read(tmp_path, "a.mp4", "in/b.mp4", "c.mp4")
    assert found == {"a.mp4": [texts[0], texts[2]], "in/b.mp4": ['a "dog" on grass']}
    assert problems == ()


def test_names_are_text_and_need_no_suffix(tmp_path):
    """As WebVid writes it: `videoid` is the file, `name` is the caption."""
    table(tmp_path, ("videoid", "name"), ("007", "an agent"), ("7", "a number"))
    table(tmp_path, {"file": 12, "text": "twelve"}, name="captions.jsonl")
    found, problems = read(tmp_path, "007.mp4", "7.webm", "12.mov")
    assert found == {"007.mp4": ["an agent"], "7.webm": ["a number"], "12.mov": ["twelve"]}
    assert problems == ()


def test_names_start_at_the_tables_folder_and_the_nearer_table_counts(tmp_path):
    table(tmp_path, ("file", "caption"), ("in/a.mp4", "far"), ("in/b.mp4", "only"), ("c.mp4", "c"))
    table(tmp_path / "in", ("file", "caption"), ("./a.mp4", "near"), ("../c.mp4", "nearer?"))
    found, problems = read(tmp_path, "in/a.mp4", "in/b.mp4", "c.mp4")
    assert found["in/a.mp4"] == ["near"] and found["in/b.mp4"] == ["only"]
    assert problems == ()


def test_a_caption_may_hold_for_a_part_of_a_film():
    said = captions.Tables(
        {"a.mp4": (Caption("all"), Caption("first", 0, 4), Caption("later", 4, 9))}
    )
    assert said.of("a.mp4", 0, 3) == ["first"]
    assert said.of("a.mp4", 2, 6) == ["later"]  # its middle, 4 s
    assert said.of("a.mp4", 20, 30) == ["all"]
    assert said.of("b.mp4", 0, 3) == []


def test_times_are_read_from_both_kinds(tmp_path):
    table(
        tmp_path, ("file", "caption", "start", "end"), ("a", "x", "", "2.5"), ("a", "y", "soon", 3)
    )
    line = {"file": "a.mp4", "caption": "z", "start": 0, "end": 7}
    table(tmp_path, line, name="captions.jsonl")
    found = captions.read(tmp_path, captions.NAMES, ["a.mp4"])
    assert found.captions["a.mp4"][1] == Caption("z", 0.0, 7.0)
    assert found.captions["a.mp4"][0].end == 2.5
    assert len(found.problems) == 1 and "line 3" in found.problems[0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "captions.csv",
            b"file,caption\ngone.mp4,x\na.mp4,y\n",
            "1 line(s) name a file that is not",
        ),
        ("captions.csv", b"file,caption\n../../etc/passwd,x\n", "'../../etc/passwd'"),
        ("captions.csv", b"clip,words\na.mp4,x\n", "1 line(s) do not say both"),
        ("captions.csv", b"file,caption\na.mp4\n,x\na.mp4,  \n", "3 line(s) do not say both"),
        ("captions.csv", b"file,caption\n" + b"x" * 2_000_000 + b",y\n", "cannot be read (table"),
        ("captions.csv", b"", "cannot be read (empty)"),
        ("captions.csv", bytes(range(256)), "do not say both"),
        ("captions.jsonl", b"[1]\nnothing\n{}\n" + b"[" * 100_000, "4 line(s) do not say both"),
        ("captions.jsonl", b'{"file": true, "caption": "x"}\n', "1 line(s) do not say both"),
        ("captions.jsonl", b'{"file": "a", "caption": ["x"]}\n', "1 line(s) do not say both"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_sentence(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    _, problems = read(tmp_path, "a.mp4")
    assert len(problems) == 1 and said in problems[0] and name in problems[0]
    assert problems[0].isprintable() and len(problems[0]) < 300


def test_a_table_is_not_a_link(tmp_path):
    (tmp_path / "captions.csv").symlink_to("/etc/passwd")
    assert read(tmp_path, "a.mp4") == ({}, ("captions.csv cannot be read (link).",))


def test_the_first_origin_counts_and_all_are_counted(tmp_path, capsys):
    clips = tmp_path / "my clips"
    clips.mkdir()
    for seed, name in enumerate(("text", "json", "table", "folder", "silent")):
        mp4(clips / f"{name}.mp4", seed=seed)
    names = ("text", "json", "table", "gone", "silent")
    table(clips, ("file", "caption"), *[(f"{name}.mp4", f"{name}: table") for name in names])
    (clips / "text.txt").write_text("from text")
    (clips / "text.json").write_text('{"caption": "from json"}')
    (clips / "json.json").write_text('{"caption": "from json", "k": 1}')
    (clips / "table.json").write_text('{"k": 1}')
    (clips / "silent.txt").write_text("")
    assert main(["index", str(clips), "--out", str(tmp_path / "m"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["captions"] == {"sidecar": 2, "table": 1, "folder": 1, "none": 1}
    assert len(found["problems"]) == 1 and "gone.mp4" in found["problems"][0]
    rows = manifest.read(tmp_path / "m").table.to_pylist()
    assert {row["uri"]: row["captions"] for row in rows} == {
        "text.mp4": ["from text"],
        "json.mp4": ["from json"],
        "table.mp4": ["table: table"],
        "folder.mp4": ["my clips"],
        "silent.mp4": [],
    }
    assert main(["index", str(clips), "--out", str(tmp_path / "m")]) == 0
    said = capsys.readouterr().err
    assert "captions: sidecar 2, table 1, folder 1, none 1" in said
    assert "problems: captions.csv: 1 line(s) name a file that is not there" in said


def test_what_to_sample_with_is_what_is_said_most(tmp_path):
    rows = [{"captions": ["b", "a"]}, {"captions": ["a"]}, {"captions": ["c"]}]
    rows += [{"captions": [f"once {n}"]} for n in range(20)]
    said = prompts(manifest.table_of(rows))
    assert said[0] == "a" and len(said) == len(set(said)) == 8
    assert prompts(manifest.table_of(rows[::-1])) == said
    mp4(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("one\ntwo\none\n")
    index(str(tmp_path), str(tmp_path / "m"))
    assert set((tmp_path / "m" / manifest.PROMPTS).read_text().splitlines()) == {"one", "two"}


HOSTILE = {
    "empty": "", "long": "word " * 200_000, "nul": "a\0b", "rtl": "\u202eabc \u05d0",
    "surrogate": "a \ud800 b", "control": "a\x07\x08\r\nb\x85\u2028c",
    "ansi": "\x1b[31mred\x1b[0m",
}  # fmt: skip
CLEAN = {
    "empty": "", "long": ("word " * 820)[:4096], "nul": "a b", "rtl": "abc \u05d0",
    "surrogate": "a ? b", "control": "a b c", "ansi": "[31mred [0m",
}  # fmt: skip


def beside(folder):
    for name, text in HOSTILE.items():
        (folder / f"{name}.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    return folder, {}


def sidecars(folder):
    for name, text in HOSTILE.items():
        (folder / f"{name}.json").write_text(json.dumps({"caption": text, "label": text}))
    return folder, {}


def one_table(suffix):
    def make(folder):
        table = folder / f"t{suffix}"
        if suffix == ".jsonl":
            lines = ({"file": n, "caption": t, "label": t, "id": n} for n, t in HOSTILE.items())
            table.write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            with open(table, "w", newline="", encoding="utf-8", errors="surrogatepass") as file:
                rows = [("file", "caption", "label"), *((n, t, t) for n, t in HOSTILE.items())]
                csv.writer(file).writerows(rows)
        return table, {}

    return make


def shard(folder):
    with tarfile.open(folder / "0.tar", "w") as archive:
        for name, text in HOSTILE.items():
            archive.add(folder / f"{name}.mp4", f"{name}.mp4")
            said = json.dumps({"caption": text, "label": text}).encode()
            member = tarfile.TarInfo(f"{name}.json")
            member.size = len(said)
            archive.addfile(member, io.BytesIO(said))
    return folder, {"form": "webdataset"}


@pytest.mark.parametrize("make", [beside, sidecars, one_table(".jsonl"), one_table(".csv"), shard])
def test_whatever_is_said_becomes_one_clean_line(make, tmp_path, capsys):
    """In each form that says something: captions, labels, and what is printed of them."""
    for name in HOSTILE:
        mp4(tmp_path / f"{name}.mp4")
    source, how = make(tmp_path)
    found = index(str(source), str(tmp_path / "m"), **how)
    assert found["clips"] == len(HOSTILE) and found["skipped"] == {}
    for row in manifest.read(tmp_path / "m").table.to_pylist():
        name = re.split(r"[./]", row["clip_id"].removeprefix("0.tar/"))[0]
        # Bytes that are no text are told from half a pair by nobody.
        said = re.sub("[?\ufffd]+", "?", " ".join(row["captions"]))
        nothing = said in ("", tmp_path.name.replace("_", " "))
        # A megabyte beside a file is not read at all.
        assert said == CLEAN[name] or (nothing and name in ("empty", "long"))
        assert all(len(one) <= 4096 and one.isprintable() for one in row["captions"])
        assert row["label"].isprintable() and len(row["label"]) <= 4096
    assert main(["card", str(tmp_path / "m")]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_clips_with_names_that_cannot_be_shown_are_left_out(tmp_path):
    """An id, or the end of a film, that a table names."""
    mp4(tmp_path / "a.mp4", frames=8)
    ids = ("good", "\x1b[31mred", "line\nbreak", "half \ud800")
    lines = (
        {"file": "a.mp4", "id": name, "start": n / 8, "end": (n + 2) / 8}
        for n, name in enumerate(ids)
    )
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = index(str(tmp_path / "t.jsonl"), str(tmp_path / "m"))
    assert found["skipped"] == {"name": 2}
    kept = manifest.read(tmp_path / "m").table["clip_id"].to_pylist()
    assert kept == ["good", "half ?"]
