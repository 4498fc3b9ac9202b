"""The judge knows true clips from broken ones, and the exam counts what it says."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipeline import exam, judge
from data_pipeline.encode import write_mp4
from data_pipeline.errors import DataError
from data_pipeline.generated import (
    COLOURS,
    MOTIONS,
    SHAPES,
    file_name,
    generate,
    render,
    scene,
)
from data_pipeline.judge import Seen, look

CLIPS = 96


def plain(**changes):
    """A clip of which every attribute can be told by eye."""
    one = next(s for s in (scene(0, i) for i in range(99)) if s.motion)
    easy = {"pattern": "plain", "tone": "dark", "frames": 8, "height": 32, "width": 32}
    return dataclasses.replace(one, **(easy | changes))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("motion", MOTIONS)
def test_the_judge_names_what_was_drawn(shape, motion):
    for colour in COLOURS:
        one = plain(shape=shape, motion=motion, colour=colour)
        seen = look(render(one, 0))
        assert (seen.colour, seen.shape, seen.motion) == (colour, shape, motion)


@pytest.mark.parametrize(
    ("shape", "area", "perimeter"),
    [("circle", np.pi, 2 * np.pi), ("square", 4, 8), ("ring", 0.75 * np.pi, 3 * np.pi)],
)
def test_a_shape_s_outline_is_measured(shape, area, perimeter):
    unit = judge._units()[shape]
    assert unit.area == pytest.approx(area, rel=0.01)
    assert unit.perimeter == pytest.approx(perimeter, rel=0.03)  # corners are cut


@pytest.mark.parametrize("shape", SHAPES)
def test_how_far_an_outline_may_be_away(shape):
    """Outlines that swing to and fro by 0.06 of the radius in the mean pass, by 0.2 they do not."""
    one = plain(shape=shape, motion="staying still", height=64, width=64)
    for swing, passes in ((0.06, True), (0.2, False)):

        def rough(x, y, by=swing):
            wave = np.where(np.sin(9 * np.arctan2(y, x)) > 0, 1, -1)
            return SHAPES[shape](x, y) + by * wave

        assert (look(render(one, 0, rough)).shape == shape) == passes


def test_the_judge_sees_nothing_in_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    for video in (np.zeros((8, 24, 24, 3), np.uint8), np.full((8, 24, 24, 3), 128, np.uint8)):
        assert look(video) == Seen(None, None, None)
    assert look(noise).shape is None


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Clips trained on, and unseen ones."""
    root = tmp_path_factory.mktemp("exam")
    generate(str(root / "clips"), 60, 0, holdout=0)
    generate(str(root / "truth"), CLIPS, 1, holdout=0, unseen=True)
    return root


def sampled(root, name, scenes, change=lambda index, video: video):
    """A folder as `vdm sample` leaves it, whose videos are true clips, changed."""
    (root / name).mkdir()
    records = []
    for index, one in enumerate(scenes):
        write_mp4(root / name / f"{index}.mp4", change(index, render(one, 1)), one.fps or 8)
        records.append({"index": index, "file": f"{index}.mp4", "prompt": one.caption})
    (root / name / "index.json").write_text(json.dumps(records))
    return str(root / name)


def test_true_clips_pass_and_broken_ones_do_not(folders):
    scenes = exam.read_scenes(str(folders / "truth"))
    made = sampled(folders, "perfect", scenes)
    found = exam.examine(made, str(folders / "truth"), str(folders / "clips"))
    for part in ("judge", "judge_on_truth"):
        assert found[part]["n"] == CLIPS
        assert all(found[part][kind]["share"] > 0.95 for kind in exam.KINDS)
        sizes = found[part]["by_size"]
        assert sum(one["n"] for one in sizes.values()) == CLIPS
        assert "direction" not in sizes["images"] and "videos of 16" in sizes
    for way, accepted in found["judge_on_broken"].items():
        assert accepted["n"] > 20, way
        assert accepted["share"] <= 0.05, way
    shuffled = found["permuted_prompts"]
    assert set(shuffled["chance"]) == set(exam.KINDS)
    for kind, chance in shuffled["chance"].items():
        assert abs(shuffled[kind]["share"] - chance) < 0.15  # 3 deviations of 96 draws
        assert chance < 0.35
    near = found["nearest_training_clip"]
    assert near["samples"] == pytest.approx(near["truth"], rel=0.1)  # the codec blurs images
    json.dumps(found)


def test_a_copy_of_a_training_clip_is_found(folders):
    scenes = exam.read_scenes(str(folders / "truth"))[:20]
    known = exam.read_scenes(str(folders / "clips"))
    real = [render(one, 1) for one in scenes]
    copies = [exam.load(folders / "clips" / file_name(one), one) for one in known[:20]]
    found = exam.nearest(copies, real, str(folders / "clips"))
    assert found["samples"] == 0 and found["nearer_than_any_truth"] == 1


def test_a_wrong_video_costs_its_share():
    """Every fourth video shows another colour."""
    asked = [plain(index=i, colour="red" if i % 4 else "blue") for i in range(40)]
    seen = [look(render(plain(colour="red"), 0)) for _ in asked]
    assert exam.score(seen, asked)["colour"]["share"] == 0.75


def test_chance_is_that_of_independent_draws():
    """Of one group three of four videos are red and half the captions: red meets red in 3/8, blue
    blue in 1/8. A second group of two always meets."""
    seen, asked = ["red", "red", "red", "blue"], ["red", "blue", "red", "blue"]
    first, second = np.arange(4), np.arange(4, 6)
    assert exam._chance(seen, asked, [first]) == pytest.approx(1 / 2)
    both = exam._chance([*seen, "pink", "pink"], [*asked, "pink", "pink"], [first, second])
    assert both == pytest.approx(2 / 3)
    assert exam._chance([None, None], ["red", "red"], [np.arange(2)]) == 0


def test_intervals_are_wilson_s():
    """Against the closed form (Wilson 1927) at z = 1.959964."""
    found = exam.share([True] * 30 + [False] * 10)
    z, n, p = 1.959963985, 40, 0.75
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (found["low"], found["high"]) == pytest.approx((centre - half, centre + half), rel=1e-6)


def test_what_cannot_be_examined_is_said(folders, tmp_path):
    with pytest.raises(DataError, match=r"no index\.json"):
        exam.examine(str(tmp_path), str(folders / "truth"), str(folders / "clips"))
    with pytest.raises(DataError, match="no generated clips"):
        exam.examine(str(tmp_path), str(tmp_path), str(folders / "clips"))
    scenes = exam.read_scenes(str(folders / "truth"))[:2]
    other = sampled(folders, "other", scenes[::-1])
    with pytest.raises(DataError, match="not made from these requests"):
        exam.examine(other, str(folders / "truth"), str(folders / "clips"))
