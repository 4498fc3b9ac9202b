"""`vdm sample --requests=FILE`: a request a line, each with its own size, rate and seed."""

import argparse
import json

import av
import pytest

from tests.workbench import call, vdm
from vdm_jax.cli import sample
from vdm_jax.config import UserError

GOOD = {"prompt": "a red circle", "frames": 3, "height": 16, "width": 24}


def lines(tmp_path, *rows):
    path = tmp_path / "requests.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("not json", ("line 2", "no JSON object")),
        ("[1]", ("line 2", "no JSON object")),
        (GOOD | {"heigth": 8}, ("line 2", "heigth", "height")),
        ({"prompt": "x"}, ("line 2", "frames, height, width")),
        (GOOD | {"frames": 0}, ("line 2", "frames is 0", "at least 1")),
        (GOOD | {"width": 8.5}, ("line 2", "width is 8.5")),
        (GOOD | {"height": True}, ("line 2", "height is True")),
        (GOOD | {"fps": 0}, ("line 2", "fps is 0")),
        (GOOD | {"fps": True}, ("line 2", "fps is True")),
        (GOOD | {"seed": -1}, ("line 2", "seed is -1")),
        (GOOD | {"prompt": 3}, ("line 2", "prompt is 3")),
    ],
    ids=str,
)
def test_a_line_that_is_no_request(row, said, tmp_path):
    with pytest.raises(UserError) as caught:
        sample.read_requests(lines(tmp_path, GOOD, row))
    for words in said:
        assert words in str(caught.value)


def test_no_file_or_nothing_in_it(tmp_path):
    with pytest.raises(UserError, match="no file of requests"):
        sample.read_requests(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="holds no request"):
        sample.read_requests(lines(tmp_path))


def test_requests_come_before_prompts(tmp_path):
    parser = argparse.ArgumentParser()
    sample.add_arguments(parser)
    file = lines(tmp_path, GOOD, GOOD | {"seed": 9, "fps": 12, "negative": "blue"})
    args = parser.parse_args(["run", f"--requests={file}", "--prompt=a dog", "--out=x"])
    first, second, third = sample.plan(args)
    assert (first.prompt, first.frames, first.height, first.width) == ("a red circle", 3, 16, 24)
    assert (second.seed, second.fps, second.negative) == (9, 12, "blue")
    assert (third.prompt, third.height) == ("a dog", 24)


def test_every_request_becomes_its_own_file(tmp_path, trained):
    file = lines(tmp_path, GOOD, GOOD | {"frames": 1, "height": 24, "width": 16, "seed": 4})
    out = tmp_path / "out"
    found = json.loads(
        vdm("sample", trained, f"--requests={file}", f"--out={out}", "--json").stdout
    )
    sizes = []
    for path in found["files"]:
        with av.open(path) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        sizes.append((len(frames), *frames[0].shape[:2]))
    assert sizes == [(3, 16, 24), (1, 24, 16)]
    assert [line["seed"] for line in json.loads((out / "index.json").read_text())] == [0, 4]


def test_the_judge_reports_and_joins_a_summary(tmp_path):
    """The command line over samples that are true clips: what it prints is what it writes."""
    from data_pipeline import exam
    from data_pipeline.encode import write_mp4
    from data_pipeline.generated import render

    for folder, unseen in (("clips", []), ("truth", ["--unseen"])):
        words = ["generate", tmp_path / folder, "--clips", 12, "--holdout", 0, "--seed", 1, *unseen]
        assert call(*words, module="data_pipeline").returncode == 0
    records = []
    for index, one in enumerate(exam.read_scenes(str(tmp_path / "truth"))):
        write_mp4(tmp_path / f"{index}.mp4", render(one, 1), one.fps or 8)
        records.append({"index": index, "file": f"{index}.mp4", "prompt": one.caption})
    (tmp_path / "index.json").write_text(json.dumps(records))
    (tmp_path / "summary.json").write_text('{"train": {"steps": 3}}')
    where = ["--truth", tmp_path / "truth", "--trained-on", tmp_path / "clips"]
    into = ["--into", tmp_path / "summary.json"]
    done = call("judge", tmp_path, *where, *into, "--json", module="data_pipeline")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert json.loads((tmp_path / "summary.json").read_text()) == found | {"train": {"steps": 3}}
    assert found["judge"]["colour"]["share"] == 1 and len(found["files"]) == 12
    told = call("judge", tmp_path, *where, module="data_pipeline")
    assert told.stdout == "" and "direction" in told.stderr and "chance" in told.stderr
    broken = call("judge", tmp_path / "none", *where, module="data_pipeline")
    assert broken.returncode == 2 and "index.json" in broken.stderr
