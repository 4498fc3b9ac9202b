"""The demo's data shows what its captions say."""

import json

import numpy as np
import pytest

from data_pipeline import manifest
from data_pipeline.errors import DataError
from data_pipeline.generated import (
    COLOURS,
    HELD_OUT_SHARE,
    MOTIONS,
    SHAPES,
    SIDES,
    Extent,
    combinations,
    generate,
    render,
    scene,
)
from tests.workbench import call


def mask(one, frame):
    """Pixels nearer to the shape's colour than a third of the way to anything else."""
    return np.abs(frame.astype(int) - COLOURS[one.colour]).sum(axis=-1) < 60


def scenes(motion, count=6):
    found = (scene(3, index) for index in range(2000))
    return [one for one in found if one.motion == motion][:count]


@pytest.mark.parametrize("motion", MOTIONS)
def test_shapes_move_as_they_are_said_to(motion):
    dx, dy, swell = MOTIONS[motion]
    for one in scenes(motion):
        video = render(one, 3)
        first, last = mask(one, video[0]), mask(one, video[-1])
        assert first.any() and last.any()
        moved = np.mean(np.nonzero(last), axis=1) - np.mean(np.nonzero(first), axis=1)
        if swell == 0:
            assert np.sign(np.rint(moved)).tolist() == [dy, dx], one
        else:
            assert np.sign(int(last.sum()) - int(first.sum())) == swell
        article = "an" if one.colour == "orange" else "a"
        assert one.caption.startswith(f"{article} {one.colour} {one.shape} {motion} over ")
    if motion == "staying still":
        assert (render(one, 3) == render(one, 3)[0]).all()


def test_clips_are_as_mixed_as_promised():
    found = [scene(0, index) for index in range(600)]
    films = [one for one in found if one.motion]
    assert 0.34 < 1 - len(films) / len(found) < 0.46
    assert {one.frames for one in films} == set(range(4, 9))
    assert {one.height for one in found} == {one.width for one in found} == set(SIDES)
    assert {one.shape for one in found} == set(SHAPES) and len(SHAPES) >= 5
    assert {one.colour for one in found} == set(COLOURS) and len(COLOURS) >= 6
    assert {one.fps for one in films} == set(range(6, 13))
    assert len({one.caption for one in found}) > 380


def test_other_extents_show_the_same_scenes(tmp_path):
    words = ("--frames", "16", "--sides", "32", "24", "--radius", "0.2", "0.25")
    done = call("generate", tmp_path, "--clips=12", "--seed=3", *words, module="data_pipeline")
    assert done.returncode == 0, done.stderr
    for index in range(12):
        said = json.loads((tmp_path / f"clip-{index:06d}.json").read_text())
        one = scene(3, index)
        assert said["frames"] == (16 if one.motion else 1) and said["height"] in (24, 32)
        assert 0.2 <= said["radius"] / min(said["height"], said["width"]) <= 0.25
        other = dict.fromkeys(("frames", "height", "width", "radius"), 0)
        assert said | other == vars(one) | other
    odd = call("generate", tmp_path, "--clips=1", "--sides=15", module="data_pipeline")
    assert odd.returncode == 2 and "even" in odd.stderr
    huge = ("--clips=1", "--radius", "0.2", "0.5")
    huge = call("generate", tmp_path, *huge, module="data_pipeline")
    assert huge.returncode == 2 and "0.05 to 0.38" in huge.stderr


def test_small_shapes_go_further():
    """The way a shape goes is what it leaves of the width, and longer for a small one."""
    ways = []
    for radius in ((0.2, 0.2), (0.35, 0.35)):
        extent = Extent(frames=(8,), sides=(40,), radius=radius)
        found = (scene(3, index, extent=extent) for index in range(300))
        one = next(one for one in found if one.motion == "moving right")
        video = render(one, 3).astype(int)
        columns = [np.nonzero(np.ptp(frame, axis=-1).max(0) > 100)[0].mean() for frame in video]
        ways.append(columns[-1] - columns[0])
        assert ways[-1] == pytest.approx(0.9 * 40 * (1 - 2 * radius[0]), abs=1.0)
    assert ways[0] > 1.9 * ways[1]


def test_a_clip_does_not_depend_on_the_others(tmp_path):
    generate(str(tmp_path / "few"), 3, 5)
    generate(str(tmp_path / "more"), 6, 5)
    generate(str(tmp_path / "other"), 3, 6)
    few = {path.name: path.read_bytes() for path in (tmp_path / "few").iterdir()}
    assert len(few) == 9
    for name, data in few.items():
        assert (tmp_path / "more" / name).read_bytes() == data
    other = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    assert other != few


def test_what_is_read_back_is_what_was_drawn(shapes):
    """Through the encoder, the files, the index: sizes exact, colours near, captions as said."""
    found = manifest.read(shapes)
    assert len(found) == 24
    for row in found.table.to_pylist():
        said = json.loads(row["label"])
        one = scene(0, said["index"])
        assert row["captions"] == [one.caption]
        assert (row["n_frames"], row["height"], row["width"]) == (one.frames, one.height, one.width)
        assert row["fps_num"] / row["fps_den"] == pytest.approx(one.fps, rel=1e-3)


def shown(count, **how):
    found = [scene(4, index, **how) for index in range(count)]
    return [(one.shape, one.colour, one.motion) for one in found]


def test_what_is_held_out_is_never_shown():
    """Seen and unseen combinations are apart, together all there are, and another draw's differ."""
    every = len(SHAPES) * len(COLOURS) * (len(MOTIONS) + 1)
    unseen, seen = set(combinations(0, True)), set(combinations(0, False))
    assert not unseen & seen and len(unseen | seen) == every
    assert len(unseen) == round(HELD_OUT_SHARE * every)
    assert set(shown(1500, holdout=0)) <= seen
    assert set(shown(600, holdout=0, unseen=True)) == unseen
    assert set(combinations(1, True)) != unseen
    # Every word is still learnt from.
    for kind, words in enumerate((SHAPES, COLOURS, (*MOTIONS, ""))):
        assert {one[kind] for one in seen} == set(words)


def test_unseen_clips_come_with_requests_for_them(tmp_path):
    generate(str(tmp_path), 12, 5, holdout=3, unseen=True)
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    for index, line in enumerate(map(json.loads, lines)):
        one = scene(5, index, holdout=3, unseen=True)
        assert line["prompt"] == (tmp_path / f"clip-{index:06d}.txt").read_text().strip()
        assert (line["frames"], line["height"], line["width"]) == render(one, 5).shape[:3]
        assert line["seed"] == index
    assert len(lines) == 12
    with pytest.raises(DataError, match="--holdout"):
        generate(str(tmp_path), 12, 5, unseen=True)
