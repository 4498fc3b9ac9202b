"""Laws of size, duration, rate and dropping draw what they say: against scipy's distributions."""

import numpy as np
import pytest
from scipy import stats

from data_pipeline import clips, sizes
from data_pipeline.clips import LogFrames, LogRate, LogSeconds, Strides, Whole
from data_pipeline.dropping import Beta, ByLength, Constant, KeepAll, Scheduled, kept
from data_pipeline.sizes import Area, Crop, NormalSide, Side

COUNT = 4000
DRAW = (np.arange(COUNT) + 0.5) / COUNT  # evenly: what is drawn then has the law's own quantiles


def alike(found, law):
    """The largest distance of two distribution functions is that of rounding alone."""
    assert stats.ks_1samp(found, law.cdf).statistic < 1.5 / COUNT


def side_of(law, height, width):
    shape = np.full(COUNT, height), np.full(COUNT, width)
    return np.sqrt(height * width) * law.scale(*shape, DRAW)


@pytest.mark.parametrize(
    ("law", "size", "wanted"),
    [
        (Side(low=64, high=256), (800, 600), stats.uniform(64, 192)),
        (Side(low=64, high=256), (100, 100), stats.uniform(64, 36)),
        (NormalSide(low=64, high=384), (900, 900), stats.truncnorm(-0.5, 1.5, 144, 160)),
        (NormalSide(low=64, high=384), (144, 144), stats.truncnorm(-0.5, 0, 144, 160)),
        (
            NormalSide(low=10, high=30, mean=0.5, std=0.25),
            (90, 90),
            stats.truncnorm(-6, 2, 25, 2.5),
        ),
        # Of an area that is uniform in its logarithm the side is, too.
        (Area(low=64**2, high=256**2), (512, 512), stats.loguniform(64, 256)),
    ],
)
def test_a_size_has_its_law_up_to_the_clips_own(law, size, wanted):
    alike(side_of(law, *size), wanted)


@pytest.mark.parametrize("law", [Side(low=64, high=256), NormalSide(low=64, high=256)])
def test_a_small_clip_gets_the_least_size(law):
    assert np.allclose(side_of(law, 30, 40), 64)


def test_a_crop_has_its_size_and_covers_it():
    rng = np.random.default_rng(0)
    height, width = rng.integers(10, 900, COUNT), rng.integers(10, 900, COUNT)
    law = Crop(height=48, width=80)
    scale = law.scale(height, width, DRAW)
    fitted = sizes.fit(np.full(COUNT, 9), height, width, scale, (1, 48, 80), 16, law.most)
    assert np.all(fitted.size == (48, 80)) and np.all(fitted.grid == (9, 1, 1))
    # One side fits to the pixel, the other covers; nothing is stretched by more than a pixel.
    spare = fitted.resized - (48, 80)
    assert np.all(spare.min(axis=1) == 0)
    stretch = fitted.resized / np.stack([height, width], axis=1)
    off = np.abs(stretch[:, 0] / stretch[:, 1] - 1) * fitted.resized.min(axis=1)
    assert off.max() <= 1.01


@pytest.mark.parametrize("law", [Side(low=50, high=200), NormalSide(low=50, high=200)])
def test_sizes_stretch_nothing(law):
    rng = np.random.default_rng(0)
    height, width = rng.integers(20, 900, COUNT), rng.integers(20, 900, COUNT)
    fitted = sizes.fit(
        np.ones(COUNT, int), height, width, law.scale(height, width, DRAW), (1, 8, 8), 4096
    )
    stretch = fitted.resized / np.stack([height, width], axis=1)
    off = np.abs(stretch[:, 0] / stretch[:, 1] - 1) * fitted.resized.min(axis=1)
    assert off.max() <= 1.01  # to a pixel, and patches are 8 wide


def test_seconds_are_uniform_in_their_logarithm():
    frames = LogSeconds(low=1, high=8).frames(np.full(COUNT, 10**9), np.full(COUNT, 1e6), DRAW)
    alike(frames / 1e6, stats.loguniform(1, 8))
    # Of ten frames at 5 a second: up to the clip's own two seconds.
    short = LogSeconds(low=1, high=8).frames(np.full(COUNT, 10), np.full(COUNT, 5.0), DRAW)
    assert short.min() == 5 and short.max() == 9
    quarter = (short == 6).mean()  # from 6/5 to 7/5 of a second, of those from 1 to 2
    assert quarter == pytest.approx(np.log(7 / 6) / np.log(2), abs=2 / COUNT)


def test_frames_have_the_probability_that_is_written():
    found = LogFrames(low=2, high=9).frames(np.full(COUNT, 50), np.full(COUNT, 8.0), DRAW)
    for n in range(2, 10):
        wanted = np.log(1 + 1 / n) / np.log(10 / 2)
        assert (found == n).mean() == pytest.approx(wanted, abs=2 / COUNT)
    assert found.min() == 2 and found.max() == 9
    capped = LogFrames(low=2, high=9).frames(np.full(COUNT, 4), np.full(COUNT, 8.0), DRAW)
    assert capped.max() == 4


@pytest.mark.parametrize("law", [Whole(), LogSeconds(low=2, high=8), LogFrames(low=3, high=20)])
def test_what_is_shorter_is_whole(law):
    whole, rate = np.array([1, 2, 1]), np.array([0.0, 8.0, 24.0])
    assert law.frames(whole, rate, np.full(3, 0.7)).tolist() == [1, 2, 1]


def test_rates_and_strides():
    native = np.full(COUNT, 1e9)
    alike(LogRate(low=4, high=30).wanted(native, DRAW), stats.loguniform(4, 30))
    wanted = Strides(choices=(1, 2, 4)).wanted(np.full(COUNT, 24.0), DRAW)
    values, counts = np.unique(wanted, return_counts=True)
    assert values.tolist() == [6.0, 12.0, 24.0] and np.ptp(counts) <= 2
    # 25 frames at 24 a second, every one, every second, every fourth of them.
    frames, rate = clips.at_rate(np.full(3, 25), np.full(3, 24.0), np.array([24.0, 12.0, 6.0]))
    assert frames.tolist() == [25, 13, 7] and rate.tolist() == [24.0, 12.0, 6.0]


def rate_of(law, tokens=1000, ordinal=0):
    return law.rate(np.full(COUNT, tokens), np.full(COUNT, ordinal), DRAW)


def test_dropping_has_the_published_moments():
    """NaViT: u = d / most has mean m and variance 0.3 m (1 - m)."""
    law = Beta(mean=0.5, most=0.8)
    u, m = rate_of(law) / 0.8, 0.5 / 0.8
    alike(u, stats.beta(7 * m / 3, 7 * (1 - m) / 3))
    assert u.mean() == pytest.approx(m, abs=1e-3)
    assert u.var() == pytest.approx(0.3 * m * (1 - m), abs=1e-3)
    assert (rate_of(Constant(share=0.25)) == 0.25).all() and not rate_of(KeepAll()).any()


def test_long_examples_lose_more():
    law = ByLength(low=0.2, high=0.6, shortest=100, longest=900)
    for tokens, mean in ((50, 0.2), (100, 0.2), (500, 0.4), (900, 0.6), (5000, 0.6)):
        alike(rate_of(law, tokens), stats.norm(mean, 0.02))
    edge = ByLength(low=0.0, high=0.5, shortest=1, longest=9)
    alike(rate_of(edge, 1), stats.truncnorm(0, 50, 0, 0.02))


def test_a_schedule_follows_the_ordinal():
    law = Scheduled(law=Constant(share=0.8), first=1.0, last=0.25, middle=10_000, width=1000)
    passed = [rate_of(law, ordinal=at)[0] for at in (0, 9000, 10_000, 11_000, 10**6)]
    assert passed[0] == pytest.approx(0.8, abs=1e-4) and passed[-1] == pytest.approx(0.2)
    assert passed[2] == pytest.approx(0.5)
    # The logistic function at -1 is 0.2689.
    assert passed[1] == pytest.approx(0.8 - 0.6 * 0.26894, abs=1e-4)
    assert passed[1] + passed[3] == pytest.approx(1.0)


def test_at_least_one_token_stays():
    tokens = np.array([0, 1, 3, 100, 1000])
    assert kept(tokens, np.full(5, 0.7)).tolist() == [0, 1, 1, 30, 300]
    assert kept(tokens, np.zeros(5)).tolist() == tokens.tolist()
