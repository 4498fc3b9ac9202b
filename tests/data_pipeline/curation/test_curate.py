"""Films of every kind, curated: what is kept, scored and left out, however it is run."""

import dataclasses
import json
import os

import numpy as np
import pytest

from data_pipeline import manifest, parts
from data_pipeline.__main__ import main
from data_pipeline.curation.chain import Chain
from data_pipeline.curation.curate import curate
from data_pipeline.curation.duplicates import Duplicates
from data_pipeline.curation.lettering import TextArea
from data_pipeline.curation.light import Light
from data_pipeline.curation.model import Model
from data_pipeline.curation.motion import CodecMotion, Flow
from data_pipeline.curation.processes import Processes
from data_pipeline.curation.watermark import Watermark
from data_pipeline.encode import write_mp4
from data_pipeline.errors import DataError
from tests.data_pipeline.corpus import mp4, picture
from tests.data_pipeline.curation.engines import Inline
from tests.data_pipeline.curation.scenes import RATE, indexed, pan, still_clip, write_on
from tests.workbench import call
from vdm_jax.__main__ import main as vdm_main
from vdm_jax.cli.curate import show

SIZE = (96, 160)
CHAIN = Chain(
    stages=(Light(), Flow(), TextArea()),
    models=(Model(score="aesthetic", function="tests.data_pipeline.curation.models:redness"),),
    watermark=Watermark(),
    duplicates=Duplicates(),
)
LEFT_OUT = {
    "again.mp4": "duplicate",
    "black.mp4": "black",
    "gone.mp4": "missing",
    "other.mp4": "changed",
    "static.mp4": "static",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curated")
    speeds = {"slow.mp4": 0.05, "fast.mp4": 0.3, "titled.mp4": 0.1, "gone.mp4": 0.1}
    films = {
        name: pan(speed, size=SIZE, seed=seed, frames=30)
        for seed, (name, speed) in enumerate(speeds.items())
    }
    films["titled.mp4"], _ = write_on(films["titled.mp4"], "the quick owl", size=14, at=(20, 40))
    films["black.mp4"] = np.zeros((30, *SIZE, 3), np.uint8)
    films["static.mp4"] = still_clip(films["slow.mp4"][0], 30)
    films["other.mp4"] = films["slow.mp4"][:5]
    films["aaa.mp4"] = films["again.mp4"] = films.pop("fast.mp4")
    (folder / "in").mkdir()
    for name, video in films.items():
        write_mp4(folder / "in" / name, video, RATE, crf=12 if name != "again.mp4" else 28)
        (folder / "in" / f"{name[:-4]}.json").write_text(json.dumps({"caption": name[:-4]}))
    (folder / "in" / "still.png").write_bytes(picture("PNG", (160, 96)))
    found = indexed(folder)
    # Scores that the chain does not measure stay; those that it measures are replaced.
    rows = [row | {"scores": {"clip": 0.25, "motion": 99.0}} for row in found.table.to_pylist()]
    manifest.write(folder / "manifest", manifest.table_of(rows), found.root)
    (folder / "in" / "gone.mp4").unlink()
    mp4(folder / "in" / "other.mp4", seed=5)
    return folder / "manifest"


def table(folder):
    return {row["clip_id"]: row for row in manifest.read(folder).table.to_pylist()}


@pytest.fixture(scope="module")
def straight(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "m"
    return curate(str(source), str(out), CHAIN, Inline(part=100, batch=100)), out


def test_what_is_kept_has_its_scores(source, straight):
    out = straight[1]
    before, after = table(source), table(out)
    assert set(after) == {"aaa.mp4", "slow.mp4", "still.png", "titled.mp4"}
    for name, row in after.items():
        assert row | {"scores": None} == before[name] | {"scores": None}
        assert row["scores"]["clip"] == 0.25 and row["scores"]["watermark"] is None
        assert 0 < row["scores"]["aesthetic"] < 1
    scores = {name: row["scores"] for name, row in after.items()}
    assert abs(scores["aaa.mp4"]["motion"] - 0.3) < 0.05
    assert abs(scores["slow.mp4"]["motion"] - 0.05) < 0.02
    assert scores["still.png"]["motion"] is None and scores["still.png"]["change"] is None
    text = {name: one["text_area"] for name, one in scores.items()}
    assert text.pop("titled.mp4") > 0.005 and max(text.values()) == 0
    assert os.path.samefile(str(manifest.read(out).place(0)), str(manifest.read(source).place(0)))


def test_what_is_left_out_is_counted_and_listed(straight):
    found, out = straight
    lines = [json.loads(line) for line in (out / manifest.SKIPPED).read_text().splitlines()]
    assert {line["file"]: line["reason"] for line in lines} == LEFT_OUT
    assert [line["detail"] for line in lines if line["reason"] == "duplicate"] == [
        "repeats aaa.mp4"
    ]
    assert found["skipped"] == dict.fromkeys(sorted(LEFT_OUT.values()), 1)
    assert found["clips"] == 4 and not (out / parts.FOLDER).exists()
    assert set((out / manifest.PROMPTS).read_text().split()) == {"aaa", "in", "slow", "titled"}
    told = found["scores"]["brightness"]
    assert told["scored"] == 1 and 0 < told["p10"] <= told["p50"] <= told["p90"] < 1
    assert found["scores"]["motion"]["scored"] == 0.75 and "watermark" not in found["scores"]


@pytest.mark.parametrize("engine", [Inline(part=3, batch=2), Inline(part=4, backwards=True)])
def test_parts_batches_and_order_change_nothing(source, straight, tmp_path, engine):
    again = curate(str(source), str(tmp_path / "m"), CHAIN, engine)
    assert again | {"manifest": ""} == straight[0] | {"manifest": ""}
    assert table(tmp_path / "m") == table(straight[1])


def test_one_process_finds_what_two_find(source, straight, tmp_path):
    for count in (1, 2):
        engine = Processes(count=count, batch=2)
        found = curate(str(source), str(tmp_path / str(count)), CHAIN, engine)
        assert found | {"manifest": ""} == straight[0] | {"manifest": ""}
        assert table(tmp_path / str(count)) == table(straight[1])


def test_a_curation_goes_on_where_it_was_stopped(source, straight, tmp_path):
    """Parts of two: the two in front of the one that was under way are not looked at again."""
    names = sorted(table(source))
    out, chain = str(tmp_path / "m"), dataclasses.replace(CHAIN, watermark=None)
    with pytest.raises(KeyboardInterrupt):
        curate(str(source), out, chain, Inline(part=2, stop_after=4))
    assert not (tmp_path / "m" / manifest.TABLE).exists()
    engine = Inline(part=2)
    curate(str(source), out, chain, engine)
    assert engine.seen == names[4:]
    assert table(tmp_path / "m") == table(straight[1])


def test_a_watermark_is_learnt_from_the_set_and_but_once(tmp_path):
    """Twenty-six films with a mark; the one named last is without."""
    (tmp_path / "in").mkdir()
    for number in range(27):
        video = pan(0.6, size=SIZE, frames=8, seed=number)
        if number < 26:
            video, _ = write_on(video, "STOCK", size=18, at=(70, 60), alpha=0.7)
        write_mp4(tmp_path / "in" / f"{number:02d}.mp4", video, RATE)
    indexed(tmp_path)
    chain, source, out = Chain(watermark=Watermark()), tmp_path / "manifest", tmp_path / "m"
    with pytest.raises(KeyboardInterrupt):
        curate(str(source), str(out), chain, Inline(part=9, batch=9, stop_after=27 + 9))
    engine = Inline(part=9)
    curate(str(source), str(out), chain, engine)
    assert engine.seen == [f"{number:02d}.mp4" for number in range(9, 27)]
    found = {name: row["scores"]["watermark"] for name, row in table(out).items()}
    assert found.pop("26.mp4") < 0.2 and len(found) == 26 and min(found.values()) > 0.5
    assert not (out / parts.FOLDER).exists()


def test_another_chain_looks_at_everything_anew(source, tmp_path):
    names, chain = sorted(table(source)), Chain(stages=(Flow(),))
    with pytest.raises(KeyboardInterrupt):
        curate(str(source), str(tmp_path / "m"), chain, Inline(part=2, stop_after=4))
    engine = Inline(part=2)
    curate(str(source), str(tmp_path / "m"), Chain(stages=(CodecMotion(),)), engine)
    assert engine.seen == names


def test_mistakes_are_told_before_anything_is_looked_at(source, tmp_path):
    engine = Inline()
    broken = Chain(stages=(Flow(), CodecMotion()), duplicates=Duplicates(distance=600))
    with pytest.raises(DataError, match="2 mistake") as error:
        curate(str(source), str(tmp_path / "m"), broken, engine)
    assert error.value.code == 2 and "600" in str(error.value)
    with pytest.raises(DataError, match="count is 0"):
        curate(str(source), str(tmp_path / "m"), CHAIN, Processes(count=0))
    with pytest.raises(DataError, match="the manifest itself"):
        curate(str(source), f"{source}/.", CHAIN, engine)
    with pytest.raises(DataError, match="no manifest"):
        curate(str(tmp_path), str(tmp_path / "m"), CHAIN, engine)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write") as error:
        curate(str(source), str(tmp_path / "file"), Chain(stages=(Flow(),)), Inline())
    assert error.value.code == 6
    assert engine.seen == []


def test_where_nothing_is_left_it_is_said_why(source, tmp_path):
    with pytest.raises(DataError, match=r"no clip .* is left: 7 black") as error:
        curate(str(source), str(tmp_path / "m"), Chain(stages=(Light(black=1.1),)), Inline())
    assert error.value.code == 3


def test_the_recipe_runs_from_the_command_line(source, tmp_path, capsys):
    words = ("curate", source, "--config=experiments/curation.py", "--processes=1", "--json")
    done = call(*words, f"--out={tmp_path / 'm'}", module="data_pipeline")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["skipped"] == dict.fromkeys(sorted(LEFT_OUT.values()), 1)
    assert set(found["scores"]) == {"motion", "brightness", "change", "text_area"}
    assert len(table(tmp_path / "m")) == found["clips"] == 4
    show(found)
    shown = capsys.readouterr().out
    assert "4 clips" in shown and "black 1" in shown and "brightness" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config={folder}/other.py"], "no chain"),
        (["--config=experiments/curation.py:no.such.module"], "no.such.module:aesthetic"),
        (["--config=experiments/curation.py", "--processes=0"], "count is 0"),
        (["--config=experiments/curation.py", "--config.duplicates.distance=99"], "99"),
        (["--config=experiments/curation.py", "--config.duplicates.near=9"], "near"),
    ],
)
def test_a_wrong_command_is_one_sentence(source, tmp_path, capsys, words, said):
    (tmp_path / "other.py").write_text(
        "from data_pipeline.sizes import Native\n"
        "from vdm_jax.config import spec\n"
        "def get_config():\n    return spec(Native)\n"
    )
    words = [word.format(folder=tmp_path) for word in words]
    assert vdm_main(["curate", str(source), f"--out={tmp_path / 'm'}", *words]) == 2
    assert said in capsys.readouterr().err


def test_curate_is_among_the_verbs(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "curate" in capsys.readouterr().out
