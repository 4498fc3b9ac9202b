"""Textures that move at a known speed, in a known direction: measured from pixels and by codecs."""

import numpy as np
import pytest

from data_pipeline.curation.motion import CodecMotion, Flow, flows, grey
from data_pipeline.curation.stage import COARSE
from data_pipeline.encode import write_mp4
from data_pipeline.places import Place
from tests.data_pipeline.corpus import lossless, reordered
from tests.data_pipeline.curation.scenes import RATE, indexed, pan, row, still_clip

SPEEDS = (0.05, 0.1, 0.2, 0.35)  # shorter sides per second


def measured(stage, folder, video, write=None):
    """By a stage, of a film that was written and indexed."""
    (folder / "in").mkdir(parents=True)
    write = write or (lambda path: write_mp4(path, video, RATE))
    write(folder / "in" / "a.mp4")
    clips = indexed(folder)
    (found,) = clips.table.to_pylist()
    return stage(stage.sees.take(clips.place(0), found), found)["motion"]


def test_flow_measures_the_speed_of_a_texture(tmp_path):
    found = [measured(Flow(), tmp_path / str(v), pan(v, seed=3)) for v in SPEEDS]
    assert np.allclose(found, SPEEDS, rtol=0.12, atol=0.005)
    assert np.all(np.diff(found) > 0)


def test_flow_does_not_depend_on_size_or_rate(tmp_path):
    for number, how in enumerate(({"size": (160, 96)}, {"size": (192, 320)}, {"rate": 12})):
        video = pan(0.2, frames=37 if "rate" not in how else 19, **how)
        rate = how.get("rate", RATE)

        def write(path, video=video, rate=rate):
            write_mp4(path, video, rate)

        assert abs(measured(Flow(), tmp_path / str(number), video, write) - 0.2) < 0.03


@pytest.mark.parametrize("angle", [0.0, np.pi / 2, np.pi, -np.pi / 2])
def test_flow_points_where_the_picture_goes(angle):
    video = grey(pan(0.5, angle=angle, frames=3, rate=8))
    mean = flows(video).mean(axis=(0, 1, 2))
    want = 0.5 * 96 / 8 * np.array([np.cos(angle), np.sin(angle)])
    assert np.allclose(mean, want, atol=0.6)


def test_what_stands_still_does_not_move(tmp_path):
    video = still_clip(pan(0.0, frames=1)[0], 37)
    assert measured(Flow(), tmp_path / "flow", video) < 0.003
    assert measured(CodecMotion(), tmp_path / "codec", video) < 0.003


def test_there_is_no_motion_of_one_frame():
    one = np.zeros((1, 16, 28, 3), np.uint8)
    assert Flow()(one, row(one)) == {"motion": None}
    tiny = np.zeros((4, 3, 3, 3), np.uint8)
    assert Flow()(tiny, row(tiny)) == {"motion": None}


def test_codecs_know_the_speed_too(tmp_path):
    """Even those at which flow between frames half a second apart has lost the texture."""
    for speed in (0.1, 0.35, 1.5):
        video = pan(speed, frames=25)
        found = measured(CodecMotion(), tmp_path / str(speed), video)
        assert abs(found - speed) < 0.1 * speed
        old = tmp_path / f"old-{speed}"

        def write(path, video=video):
            reordered(path.with_suffix(".avi"), video, "mpeg4")

        assert abs(measured(CodecMotion(), old, video, write) - speed) < 0.15 * speed


def test_codecs_are_asked_for_one_part_of_a_film(tmp_path):
    """Half a film stands still, half of it moves."""
    (tmp_path / "in").mkdir()
    moving = pan(0.3, frames=24)
    write_mp4(tmp_path / "in" / "a.mp4", np.concatenate([still_clip(moving[0]), moving]), RATE)
    clips = indexed(tmp_path)
    (whole,) = clips.table.to_pylist()
    parts = []
    for start, end in ((0.0, 1.0), (1.0, 2.0)):
        part = whole | {"start_s": start, "end_s": end, "n_frames": 24}
        stage = CodecMotion()
        parts.append(stage(stage.sees.take(clips.place(0), part), part)["motion"])
    assert parts[0] < 0.01 and abs(parts[1] - 0.3) < 0.05


def test_codecs_without_vectors_have_no_motion(tmp_path):
    lossless(tmp_path / "a.mkv", pan(0.3, frames=6), [40 * t for t in range(6)])
    clip = row(pan(0.3, frames=6), uri="a.mkv", end_s=np.inf)
    shown = CodecMotion().sees.take(Place.of(tmp_path / "a.mkv"), clip)
    assert CodecMotion()(shown, clip) == {"motion": None}
    assert len(CodecMotion().sees.take(Place.of("no.png"), clip | {"still": True})) == 0


def test_the_recipe_is_that_of_the_paper():
    """Two frames a second, 16 pixels at the shorter side."""
    assert Flow().sees == COARSE and (COARSE.fps, COARSE.side) == (2.0, 16)
