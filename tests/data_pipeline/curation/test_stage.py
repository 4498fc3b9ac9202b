"""Which frames a stage is shown: known by what is painted on them."""

import numpy as np
import pytest

from data_pipeline.curation import stage
from data_pipeline.curation.chain import Look
from data_pipeline.curation.duplicates import Duplicates
from data_pipeline.curation.lettering import TextArea
from data_pipeline.curation.light import Light
from data_pipeline.curation.motion import Flow
from data_pipeline.curation.stage import AtRate, Spread, small
from tests.data_pipeline.corpus import lossless, picture
from tests.data_pipeline.curation.scenes import indexed, pan

FRAMES, RATE = 60, 20


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A manifest of one lossless film of three seconds; frame t is grey 4 t all over."""
    folder = tmp_path_factory.mktemp("film")
    (folder / "in").mkdir()
    video = np.broadcast_to(4 * np.arange(FRAMES)[:, None, None, None], (FRAMES, 40, 60, 3))
    times = [1000 * t // RATE for t in range(FRAMES)]
    lossless(folder / "in" / "a.mkv", video.astype(np.uint8), times)
    return indexed(folder)


def taken(clips, sampling, **changes):
    """(numbers of the frames that are seen, their size)."""
    (row,) = clips.table.to_pylist()
    shown = sampling.take(clips.place(0), row | changes)
    assert shown.dtype == np.uint8 and np.ptp(shown, axis=(1, 2, 3)).max() == 0
    return (shown[:, 0, 0, 0] // 4).tolist(), shown.shape[1:3]


def test_frames_at_a_rate(film):
    assert taken(film, AtRate(fps=2, side=10)) == ([0, 10, 20, 30, 40, 50], (10, 15))
    assert taken(film, AtRate(fps=5, side=40))[0] == list(range(0, 60, 4))
    # Slower than is asked for: every frame.
    assert taken(film, AtRate(fps=100, side=8))[0] == list(range(FRAMES))
    # From the middle of what is long.
    assert taken(film, AtRate(fps=2, side=8, most=2))[0] == [20, 30]
    # Too short for two frames at the rate: the first and the last.
    assert taken(film, AtRate(fps=0.1, side=8))[0] == [0, 59]


def test_frames_spread_over_a_clip(film):
    assert taken(film, Spread(frames=3, side=10)) == ([0, 30, 59], (10, 15))
    assert taken(film, Spread(frames=1, side=10))[0] == [0]
    assert taken(film, Spread(frames=500, side=10))[0] == list(range(FRAMES))


def test_a_part_of_a_film_is_seen_alone(film):
    part = {"start_s": 1.0, "end_s": 2.0, "n_frames": 20}
    assert taken(film, AtRate(fps=2, side=8), **part)[0] == [20, 30]
    assert taken(film, Spread(frames=3, side=8), **part)[0] == [20, 30, 39]


def test_an_image_is_one_frame(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture("PNG", (40, 20)))
    clips = indexed(tmp_path)
    (row,) = clips.table.to_pylist()
    for sampling in (AtRate(fps=2, side=10), Spread(frames=8, side=10)):
        assert sampling.take(clips.place(0), row).shape == (1, 10, 20, 3)


def test_sizes_keep_their_shape_and_never_grow():
    assert small((720, 1280), 16) == (16, 28)
    assert small((1280, 720), 360) == (640, 360)
    assert small((12, 20), 16) == (12, 20)
    assert small((1, 5000), 16) == (1, 256)


@pytest.mark.parametrize(
    "sampling",
    [
        AtRate(fps=0, side=16),
        AtRate(fps=float("nan"), side=16),
        AtRate(fps=1, side=16, most=1),
        Spread(frames=0, side=8),
        Spread(frames=3, side=-1),
    ],
)
def test_settings_that_show_nothing_are_problems(sampling):
    (problem,) = sampling.problems()
    assert "must be" in problem


def test_stages_that_see_the_same_share_a_decoding(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    lossless(tmp_path / "in" / "a.mkv", pan(0.2, frames=12), [40 * t for t in range(12)])
    clips = indexed(tmp_path)
    views, decode = [], stage.decode

    def counted(place, view, **how):
        views.append(view)
        return decode(place, view, **how)

    monkeypatch.setattr(stage, "decode", counted)
    together = Look(root=clips.root, stages=(Flow(), TextArea(), Light(), Duplicates().stage))
    (found,) = together(clips.table).to_pylist()
    assert len(views) == 2
    for one in (Flow(), TextArea(), Light(), Duplicates().stage):
        (alone,) = Look(root=clips.root, stages=(one,))(clips.table).to_pylist()
        assert all(found[name] == alone[name] is not None for name in one.finds)
    assert len(views) == 6
