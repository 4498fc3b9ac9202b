"""Frames out to a captioner and captions back, with whatever a captioner may do to a file."""

import base64
import io
import itertools
import json

import numpy as np
import PIL.Image
import pytest

from data_pipeline import manifest
from data_pipeline.__main__ import main
from data_pipeline.curation.recaption import mixed, recaption, request
from data_pipeline.curation.stage import AtRate
from data_pipeline.errors import DataError
from tests.data_pipeline.corpus import lossless, picture
from tests.data_pipeline.curation.engines import Inline
from tests.data_pipeline.curation.scenes import indexed

RATE = 10
SEES = AtRate(fps=2, side=24, most=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Four films of 2 s, frame t grey 10 t; d.mkv is gone; and an image."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "in").mkdir()
    video = np.broadcast_to(10 * np.arange(20)[:, None, None, None], (20, 48, 64, 3))
    for name, said in (("a", "one\ntwo"), ("b", "old"), ("c", ""), ("d", "gone")):
        times = [1000 * t // RATE for t in range(20)]
        lossless(folder / "in" / f"{name}.mkv", video.astype(np.uint8), times)
        (folder / "in" / f"{name}.txt").write_text(said)
    (folder / "in" / "e.png").write_bytes(picture("PNG"))
    found = indexed(folder)
    (folder / "in" / "d.mkv").unlink()
    assert len(found) == 5
    return folder / "manifest"


def pictures(asked):
    for frame in asked["frames"]:
        head, _, body = frame.partition(",")
        assert head == "data:image/jpeg;base64"
        yield np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(body)), formats=["JPEG"]))


def test_requests_hold_the_frames_of_every_clip(source, tmp_path):
    engine = Inline(part=2)
    found = request(str(source), str(tmp_path / "r"), SEES, engine)
    assert found == {"files": 3, "requests": 4, "skipped": {"missing": 1}}
    files = sorted((tmp_path / "r").iterdir())
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a.mkv", "b.mkv", "c.mkv", "e.png"]
    assert {line["source"] for line in lines} == {"folder"}
    assert [line["fps"] for line in lines] == [2, 2, 2, 0]
    for line in lines[:3]:
        shown = list(pictures(line))
        assert [one.shape for one in shown] == [(24, 32, 3)] * 4
        # Half a second is five frames of 10.
        assert np.allclose([one.mean() for one in shown], [0, 50, 100, 150], atol=2)
    assert len(list(pictures(lines[3]))) == 1


def test_requests_go_on_where_they_were_stopped(source, tmp_path):
    straight, out = tmp_path / "one", tmp_path / "two"
    request(str(source), str(straight), SEES, Inline(part=2))
    with pytest.raises(KeyboardInterrupt):
        request(str(source), str(out), SEES, Inline(part=2, batch=1, stop_after=3))
    # The part that was under way is not there, not even by half.
    assert len(list(out.iterdir())) == 1
    engine = Inline(part=2)
    request(str(source), str(out), SEES, engine)
    assert engine.seen == ["c.mkv", "d.mkv", "e.png"]
    content = [{file.name: file.read_bytes() for file in one.iterdir()} for one in (straight, out)]
    assert content[0] == content[1]


def test_requests_of_other_frames_are_not_mixed_with_these(source, tmp_path):
    request(str(source), str(tmp_path), SEES, Inline(part=8))
    with pytest.raises(DataError, match="other clips or frames") as error:
        request(str(source), str(tmp_path), AtRate(fps=1, side=24), Inline(part=8))
    assert error.value.code == 2
    with pytest.raises(DataError, match="fps is 0"):
        request(str(source), str(tmp_path), AtRate(fps=0, side=24), Inline())


def test_shares_of_captions():
    """In closed form: the answers get their share together, the others the rest."""
    captions, weights = mixed(["one", "two"], None, {"short": 1.0, "long": 3.0}, 0.8)
    assert captions == ["one", "two", "short", "long"]
    assert weights == pytest.approx([0.1, 0.1, 0.2, 0.6])
    assert mixed(["one", "two"], [3.0, 1.0], {"new": 1.0}, 0.5)[1] == pytest.approx(
        [0.375, 0.125, 0.5]
    )
    assert mixed(["one"], None, {"new": 2.0}, 1.0) == (["new"], None)
    assert mixed([], None, {"new": 1.0}, 0.5) == (["new"], None)
    assert mixed([], None, {"a": 1.0, "b": 2.0}, 0.5)[1] == pytest.approx([1 / 6, 1 / 3])
    assert mixed(["one"], None, {"new": 1.0}, 0.5) == (["one", "new"], None)
    assert mixed(["same", "one"], None, {"same": 1.0}, 0.5)[1] == pytest.approx([0.75, 0.25])
    for share, (before, after) in itertools.product((0.05, 0.95), ((2, 1), (1, 5))):
        old = [f"o{n}" for n in range(before)]
        weights = mixed(old, None, {f"n{n}": n + 1.0 for n in range(after)}, share)[1]
        assert sum(weights[before:]) == pytest.approx(share) and sum(weights) == pytest.approx(1)


ANSWERS = [
    {"id": "a.mkv", "text": "a long answer", "model": "m", "fps": 2, "frames": 4, "weight": 3},
    {"id": "a.mkv", "text": " a\tshort\nanswer ", "weight": 1},
    {"id": "c.mkv", "text": "x" * 5000, "weight": "many"},
    {"id": "nobody.mkv", "text": "whose"},
    {"id": "b.mkv", "text": " \n "},
    {"id": "b.mkv", "text": None},
    {"text": "of what"},
    ["no", "object"],
]


def test_answers_become_captions(source, tmp_path, capsys):
    lines = [json.dumps(one) for one in ANSWERS]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:4]) + "\n")
    # The last line was being written when the captioner was stopped.
    (tmp_path / "b.jsonl").write_text("\n".join(lines[4:]) + '\n{"id": "b.mkv", "te')
    words = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    command = ["recaption", str(source), *words, "--out", str(tmp_path / "m"), "--share", "0.8"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == {"broken": 4, "empty": 1, "truncated": 1, "unknown": 1}
    assert (found["clips"], found["answered"], found["added"]) == (5, 2, 3)
    rows = {row["clip_id"]: row for row in manifest.read(tmp_path / "m").table.to_pylist()}
    before = {row["clip_id"]: row for row in manifest.read(source).table.to_pylist()}
    a = rows["a.mkv"]
    assert a["captions"] == ["one", "two", "a long answer", "a short answer"]
    assert a["caption_weights"] == pytest.approx([0.1, 0.1, 0.6, 0.2])
    assert rows["c.mkv"]["captions"] == ["x" * 4096] and rows["c.mkv"]["caption_weights"] is None
    for name in ("b.mkv", "d.mkv", "e.png"):
        assert rows[name] == before[name]
    again = ["captions", "caption_weights"]
    for name in ("a.mkv", "c.mkv"):
        assert all(rows[name][key] == before[name][key] for key in rows[name] if key not in again)
    assert "a long answer" in (tmp_path / "m" / manifest.PROMPTS).read_text()


def test_wrong_answers_are_one_sentence(source, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "z", "text": "a"}\nno json\n')
    out = str(tmp_path / "m")
    with pytest.raises(DataError, match="1 broken, 1 unknown") as error:
        recaption(str(source), [str(tmp_path / "a.jsonl")], out, share=0.5)
    assert error.value.code == 3
    with pytest.raises(DataError, match=r"missing\.jsonl' cannot be read"):
        recaption(str(source), [str(tmp_path / "missing.jsonl")], out, share=0.5)
    for share in (0, -1, 1.5, float("nan")):
        with pytest.raises(DataError, match="share") as error:
            recaption(str(source), [str(tmp_path / "a.jsonl")], out, share=share)
        assert error.value.code == 2


def test_requests_from_the_command_line(source, tmp_path, capsys):
    words = ["--fps", "2", "--frames", "2", "--side", "16", "--processes", "1", "--json"]
    assert main(["requests", str(source), "--out", str(tmp_path), *words]) == 0
    assert json.loads(capsys.readouterr().out)["requests"] == 4
    (file,) = tmp_path.iterdir()
    line = json.loads(file.read_text().splitlines()[0])
    # The two in the middle of four.
    assert np.allclose([one.mean() for one in pictures(line)], [50, 100], atol=2)
