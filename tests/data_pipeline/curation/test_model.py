"""Scores by functions of the user's."""

import numpy as np
import pytest

from data_pipeline.curation.chain import Chain, Look
from data_pipeline.curation.light import Light
from data_pipeline.curation.model import Model
from data_pipeline.curation.motion import CodecMotion, Flow
from data_pipeline.errors import DataError
from tests.data_pipeline.corpus import lossless
from tests.data_pipeline.curation import models
from tests.data_pipeline.curation.scenes import indexed

MODELS = "tests.data_pipeline.curation.models"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Five films, each of one colour; b.mkv is none."""
    folder = tmp_path_factory.mktemp("colours")
    (folder / "in").mkdir()
    for name, red, caption in (
        ("a", 200, "a red wall"), ("b", 10, "a blue wall"), ("c", 240, ""), ("d", 50, "red"),
        ("e", 180, "red"),
    ):  # fmt: skip
        video = np.full((8, 16, 24, 3), (red, 40, 90), np.uint8)
        lossless(folder / "in" / f"{name}.mkv", video, [40 * t for t in range(8)])
        (folder / "in" / f"{name}.txt").write_text(caption)
    found = indexed(folder)
    (folder / "in" / "b.mkv").write_bytes(b"no film")
    return found


def looked(clips, *chosen):
    return Look(root=clips.root, models=chosen)(clips.table).to_pylist()


def test_models_score_the_frames_and_captions_that_they_are_given(clips):
    models.seen.clear()
    found = looked(
        clips,
        Model(score="aesthetic", function=f"{MODELS}:redness", batch=2),
        Model(score="clip", function=f"{MODELS}:likeness"),
    )
    reds = {"a.mkv": 200, "c.mkv": 240, "d.mkv": 50, "e.mkv": 180}
    scores = {one["clip_id"]: one["aesthetic"] for one in found if one["reason"] is None}
    assert scores == {name: pytest.approx(red / 255) for name, red in reds.items()}
    assert [one["clip"] for one in found] == [1, None, None, 0, 1]
    # The bad clip leaves no hole in a batch.
    assert models.seen == [2, 2]
    assert found[1]["reason"] == "changed"


@pytest.mark.parametrize(
    ("name", "said"), [("too_few", "1 scores for 4"), ("fails", "no room on the device")]
)
def test_a_model_that_fails_ends_the_work(clips, name, said):
    with pytest.raises(DataError, match=said):
        looked(clips, Model(score="clip", function=f"{MODELS}:{name}"))


@pytest.mark.parametrize("name", ["no.such:thing", f"{MODELS}:missing", f"{MODELS}:not_a_function",
                                  MODELS, ""])  # fmt: skip
def test_a_function_that_is_not_there_is_a_problem(name):
    (problem,) = Chain(models=(Model(score="clip", function=name),)).problems()
    assert name in problem


def test_a_chain_says_everything_that_is_wrong_with_it():
    assert Chain().problems() == []
    chain = Chain(
        stages=(Flow(), Light(), CodecMotion()),
        models=(Model(score="beauty", function=f"{MODELS}:redness", batch=0),),
    )
    problems = chain.problems()
    assert len(problems) == 3
    assert any("'motion' is measured 2 times" in one for one in problems)
    assert any("'beauty'" in one and "aesthetic" in one for one in problems)
    assert any("batch is 0" in one for one in problems)
