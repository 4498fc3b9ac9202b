"""Text that Pillow wrote, and pictures without any."""

import numpy as np
import pytest

from data_pipeline.curation.lettering import TextArea, lettered
from tests.data_pipeline.curation.scenes import colours, row, texture, write_on

SIZE = (360, 640)
TEXT = "Directed by nobody\nMusic: a brown owl"


def ground(seed):
    """Three kinds: flat, smooth, rough."""
    if seed == 0:
        return colours(np.full(SIZE, 70.0))
    return colours(40 + 0.4 * texture(*SIZE, seed, grain=30.0 / seed))


def share(found, boxes):
    """(of the boxes that is found, of what is found that is in the boxes)."""
    return (found & boxes).sum() / boxes.sum(), (found & boxes).sum() / max(found.sum(), 1)


@pytest.mark.parametrize("seed", [0, 1, 3])
@pytest.mark.parametrize(("size", "ink"), [(14, 255), (24, 255), (24, 0), (48, 255)])
def test_written_lines_are_found_where_they_are(seed, size, ink):
    picture, boxes = write_on(ground(seed), TEXT, size=size, ink=ink)
    if ink == 0:
        picture, boxes = write_on(ground(seed) // 2 + 120, TEXT, size=size, ink=ink)
    recall, precision = share(lettered(picture[..., 0]), boxes)
    assert recall > 0.4 and precision > 0.8


def stripes(period, angle):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return 128 + 100 * np.sign(np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period))


@pytest.mark.parametrize(
    "picture",
    [
        np.full(SIZE, 90.0),
        texture(*SIZE, 1, grain=30.0),
        texture(*SIZE, 2, grain=4.0),
        stripes(30, 0.0),
        stripes(9, 0.7),
        stripes(30, np.pi / 2),
        np.tile(np.linspace(0, 255, SIZE[1]), (SIZE[0], 1)),
    ],
)
def test_pictures_without_text_have_next_to_none(picture):
    assert lettered(np.round(picture).astype(np.uint8)).mean() < 0.01


def test_fine_noise_stays_bounded():
    """Thousands of patches, of which some line up."""
    noise = np.random.default_rng(0).integers(0, 256, SIZE).astype(np.uint8)
    assert lettered(noise).mean() < 0.15


def test_more_text_is_more_area_and_a_clip_is_the_mean_of_three():
    one, _ = write_on(ground(1), "A line of words", size=24)
    three, _ = write_on(ground(1), "A line of words\n" * 3, size=24)
    stage, none = TextArea(), ground(1)

    def area(*frames):
        return stage(np.stack(frames), row(np.stack(frames)))["text_area"]

    assert 0 == area(none) < area(one) < 0.6 * area(three)
    # First, middle and last of five; the others are not looked at.
    assert area(one, three, none, three, none) == pytest.approx(area(one) / 3)


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (5, 5), (20, 2000)])
def test_any_size_is_a_picture(size):
    assert lettered(np.zeros(size, np.uint8)).shape == size
