"""Light of clips made by hand: in closed form."""

import numpy as np
import pytest

from data_pipeline.curation.light import Light
from data_pipeline.encode import write_mp4
from data_pipeline.errors import BadClip
from tests.data_pipeline.curation.scenes import RATE, colours, indexed, pan, row, still_clip


def flat(*levels):
    """Frames of one grey each."""
    return colours(np.broadcast_to(np.array(levels)[:, None, None], (len(levels), 16, 28)))


def light(video, **settings):
    return Light(**settings)(video, row(video))


def test_brightness_and_change_are_means():
    found = light(flat(100, 150, 130))
    assert found["brightness"] == pytest.approx((100 + 150 + 130) / 3 / 255)
    assert found["change"] == pytest.approx((50 + 20) / 2 / 255)
    half = flat(100, 100)
    half[1, :, :14] = 200  # half of the picture changes
    assert light(half)["change"] == pytest.approx(50 / 255)


def refused(video, **settings):
    with pytest.raises(BadClip) as error:
        light(video, **settings)
    return error.value.reason


def test_black_is_refused_and_dark_is_not():
    assert refused(flat(0, 0, 0)) == refused(flat(4, 2, 4)) == refused(flat(0)) == "black"
    assert light(flat(0, 0, 40, 0))["brightness"] == pytest.approx(10 / 255)
    night = flat(0, 0)
    night[:, 4:8, 4:12], night[1, 4:8, 12:16] = 120, 120  # lamps
    assert light(night)["brightness"] < 0.06
    assert light(flat(0, 20), black=0)["change"] > 0


def test_what_never_changes_is_refused_and_an_image_is_not():
    assert refused(flat(90, 90, 90)) == refused(flat(90, 92, 90)) == "static"
    assert light(flat(90)) == {"brightness": pytest.approx(90 / 255), "change": None}
    little = flat(90, 90, 90, 90)
    little[2:, 3:5, 7:9] = 110  # four pixels of 448
    assert light(little)["change"] < 0.001
    assert light(flat(90, 90), static=0)["change"] == 0


@pytest.mark.parametrize("crf", [12, 28])
def test_a_picture_encoded_as_a_film_is_static(tmp_path, crf):
    (tmp_path / "in").mkdir()
    video = {"a.mp4": still_clip(pan(0.0, frames=1)[0], 48), "b.mp4": pan(0.02, frames=48)}
    for name, frames in video.items():
        write_mp4(tmp_path / "in" / name, frames, RATE, crf=crf)
    clips, stage = indexed(tmp_path), Light()
    still, moving = clips.table.to_pylist()
    with pytest.raises(BadClip, match="static"):
        stage(stage.sees.take(clips.place(0), still), still)
    assert stage(stage.sees.take(clips.place(1), moving), moving)["change"] > 0
