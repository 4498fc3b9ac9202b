"""Law 6: a stage is told the same in training and in sampling; counts of frames; what is below."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from vdm_jax.batch import Examples, Frames
from vdm_jax.config import UserError
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedule import Cosine
from vdm_jax.diffusion.times import Within
from vdm_jax.links import Augment, Ends, EveryFrame, Link, Strided
from vdm_jax.windows import Windows

SIDE = 8
NOISY = Augment(process=Process(schedule=Cosine()), times=Within(high=0.5), at=0.25)
LINKS = {
    "space": Link(factor=2),
    "space, noisy": Link(factor=4, augment=NOISY),
    "time": Link(select=Strided(stride=2)),
    "time, mixed": Link(select=Strided(stride=3, fill="linear")),
    "time and space, noisy": Link(select=Strided(stride=3), factor=2, augment=NOISY),
    "between": Link(select=Strided(stride=4, fill="blank")),
    "between and at the ends": Link(select=Strided(stride=2, ends=2, fill="blank")),
    "first": Link(select=Ends(first=1), augment=NOISY),
    "first and last": Link(select=Ends(first=2, last=1)),
}


def frames_of(row, *, side=SIDE, length=12, seed=0):
    """A row of videos (name, frames); the same videos whatever row they are in."""
    x = np.zeros((1, length, side, side, 3), np.float32)
    segment, position = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
    ids, grid = np.zeros((1, 4, 2), np.uint32), np.zeros((1, 4, 3), np.int32)
    at = 0
    for slot, (name, count) in enumerate(row):
        here = slice(at, at + count)
        x[0, here] = np.random.default_rng([seed, name]).uniform(-1, 1, (count, side, side, 3))
        segment[0, here], position[0, here] = slot + 1, np.arange(count)
        ids[0, slot], grid[0, slot] = (7, name), (count, side, side)
        at += count
    none = jnp.zeros((1, 4), jnp.int32)
    examples = Examples(
        id=jnp.asarray(ids), visit=none, ordinal=none, valid=jnp.asarray(grid[..., 0] > 0),
        grid=jnp.asarray(grid), fps=none.astype(jnp.float32),
    )  # fmt: skip
    return Frames(
        x=jnp.asarray(x), segment=jnp.asarray(segment), position=jnp.asarray(position),
        examples=examples,
    )  # fmt: skip


def compact(link, batch, row):
    """The videos below, made by hand of the truth, in a carrier of their own layout."""
    below = np.zeros((1, 16, SIDE // link.factor, SIDE // link.factor, 3), np.float32)
    segment, position = np.zeros((1, 16), np.int32), np.zeros((1, 16), np.int32)
    at, first = 0, 0
    for slot, (_, count) in enumerate(row):
        video = np.asarray(batch.x)[0, first : first + count]
        first += count
        chosen = chosen_by_hand(link.select, count)
        small = video[chosen]
        k = link.factor
        small = rearrange(small, "f (h k) (w l) c -> f h w c k l", k=k, l=k).mean((-1, -2))
        here = slice(at, at + len(chosen))
        below[0, here], segment[0, here] = small, slot + 1
        position[0, here] = np.arange(len(chosen))
        at += len(chosen)
    return Frames(
        x=jnp.asarray(below), segment=jnp.asarray(segment), position=jnp.asarray(position),
        examples=batch.examples,
    )  # fmt: skip


def chosen_by_hand(select, count):
    if isinstance(select, EveryFrame):
        return list(range(count))
    if count == 1:
        return []
    if isinstance(select, Strided):
        return list(range(select.ends, count - select.ends, select.stride))
    ends = select.first + select.last
    last = range(count - select.last, count)
    return [*range(select.first), *last] if count > ends else []


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_training_and_sampling_tell_the_same(link):
    """Keys, shapes, types and, where the noise has the same time, every value."""
    row = ((1, 7), (2, 1), (3, 4))
    batch = frames_of(row)
    trained = jax.jit(lambda batch: link.train(batch, 0))(batch)
    if link.augment is not None:
        # Noise of one time, as in sampling.
        fixed = Augment(
            process=link.augment.process,
            times=Within(low=0.25, high=0.25 + 1e-6),
            at=link.augment.at,
        )
        link = Link(select=link.select, factor=link.factor, augment=fixed)
        same = link.train(batch, 0)
    else:
        same = trained
    sampled = link.sample(compact(link, batch, row), batch, 0)
    assert sorted(trained) == sorted(sampled) == ["augmentation", "below"]
    for name, leaf in trained.items():
        assert leaf.shape == sampled[name].shape and leaf.dtype == sampled[name].dtype
        np.testing.assert_allclose(same[name], sampled[name], atol=1e-4)
    mixed = isinstance(link.select, Strided) and link.select.fill == "linear"
    assert trained["below"].shape == (1, 12, SIDE, SIDE, 3 + link.select.masked + 3 * mixed)


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_an_example_is_told_the_same_among_others(link):
    told = link.train(frames_of(((1, 7), (3, 4))), 5)
    alone = link.train(frames_of(((3, 4),)), 5)
    np.testing.assert_allclose(told["below"][0, 7:11], alone["below"][0, :4], atol=1e-6)
    np.testing.assert_array_equal(told["augmentation"][0, 1], alone["augmentation"][0, 0])
    assert not np.any(told["below"][0, 11:])


@pytest.mark.parametrize(
    ("select", "below", "frames"),
    [
        (Strided(stride=4, fill="blank"), 16, 61),  # LaVie's interpolation
        (Strided(stride=4, fill="blank"), 8, 29),  # Show-1's
        (Strided(stride=4, ends=4, fill="blank"), 8, 37),  # Emu Video's
        (Strided(stride=2), 16, 32),  # Imagen Video's
        (EveryFrame(), 16, 16),
    ],
)
def test_counts_of_frames(select, below, frames):
    assert select.above(below) == frames and select.count(frames) == below


def test_make_a_videos_count():
    """16 frames at a skip of 5 make 76: the last one stands at frame 75."""
    assert Strided(stride=5, fill="blank").count(76) == 16


def test_frames_between_are_told_the_one_before_or_none():
    batch = frames_of(((1, 5),))
    repeated = np.asarray(Link(select=Strided(stride=2)).train(batch, 0)["below"])[0]
    x = np.asarray(batch.x)[0]
    np.testing.assert_allclose(repeated[:5], x[[0, 0, 2, 2, 4]], atol=1e-6)
    blank = np.asarray(Link(select=Strided(stride=2, fill="blank")).train(batch, 0)["below"])[0]
    np.testing.assert_allclose(
        blank[:5, ..., 3],
        np.array([1, 0, 1, 0, 1])[:, None, None] * 1.0 + np.zeros((5, SIDE, SIDE)),
    )
    np.testing.assert_allclose(blank[[0, 2, 4], ..., :3], x[[0, 2, 4]], atol=1e-6)
    assert not blank[[1, 3]].any()


def test_frames_between_are_mixed_by_their_distance():
    batch = frames_of(((1, 6), (2, 1), (3, 4)))
    mixed = Link(select=Strided(stride=3, fill="linear", change=0.5))
    told = np.asarray(mixed.train(batch, 0)["below"])[0]
    x = np.asarray(batch.x)[0]
    # What follows the last frame is told that one; a still is told nothing.
    expected = [x[0], (2 * x[0] + x[3]) / 3, (x[0] + 2 * x[3]) / 3, x[3], x[3], x[3], 0 * x[6]]
    expected += [x[7], (2 * x[7] + x[10]) / 3, (x[7] + 2 * x[10]) / 3, x[10]]
    np.testing.assert_allclose(told[:11, ..., :3], expected, atol=1e-6)
    # ... and how those around it differ, in units of `change`.
    differ = [(x[3] - x[0]) / 0.5] * 3 + [0 * x[0]] * 4 + [(x[10] - x[7]) / 0.5] * 3 + [0 * x[0]]
    np.testing.assert_allclose(told[:11, ..., 3:], differ, atol=1e-6)
    ends = Link(select=Strided(stride=2, ends=1, fill="linear")).train(frames_of(((1, 5),)), 0)
    at_ends = [x[1], x[1], (x[1] + x[3]) / 2, x[3], x[3]]
    np.testing.assert_allclose(ends["below"][0, :5, ..., :3], at_ends, atol=1e-6)


def test_noise_has_the_variance_of_its_time():
    """At time t a picture is alpha x + sigma n; its time is said."""
    at = 0.7
    noisy = Augment(process=Process(schedule=Cosine()), at=at)
    batch = frames_of(((1, 12),), side=32)
    told = Link(augment=noisy).sample(batch, batch)
    level = noisy.process.level(jnp.asarray(at))
    rest = np.asarray(told["below"] - level.alpha * batch.x)[0]
    assert rest.std() == pytest.approx(float(level.sigma), rel=0.02)
    np.testing.assert_allclose(told["augmentation"], at)
    drawn = Link(augment=Augment(times=Within(low=0.2, high=0.4))).train(batch, 1)["augmentation"]
    assert np.all((drawn > 0.2) & (drawn <= 0.4))


DETAILS = {name: dataclasses.replace(link, detail=0.1) for name, link in LINKS.items()}


@pytest.mark.parametrize("link", DETAILS.values(), ids=DETAILS)
def test_what_is_apart_comes_together_again(link):
    """In sampling, too, where known frames go the same way; what is told nothing is whole."""
    row = ((1, 7), (2, 1), (3, 4))
    batch = frames_of(row)
    batch = batch.replace(given=batch.x, known=batch.position < 1)
    below = compact(link, batch, row)
    told = link.sample(below, batch, 0)
    apart = link.apart(batch, told)
    np.testing.assert_allclose(link.together(apart.x, batch, told), batch.x, atol=1e-5)
    np.testing.assert_array_equal(apart.given, apart.x)
    untold = np.asarray(told["scale"])[0, :, 0, 0, 0] == 1
    np.testing.assert_array_equal(np.asarray(apart.x)[0, untold], np.asarray(batch.x)[0, untold])
    assert untold[7] == (not isinstance(link.select, EveryFrame))  # a still


@pytest.mark.parametrize("fill", ["repeat", "linear", "blank"])
def test_only_frames_of_the_video_below_are_known(fill):
    """Those between are told some of it, and are the stage's to make."""
    batch = frames_of([(0, 5), (1, 1)])
    link = Link(select=Strided(stride=2, fill=fill))
    given = link.give(link.reduce(batch), batch)
    assert given.known[0].tolist() == [True, False] * 2 + [True] + [False] * 7
    np.testing.assert_array_equal(given.given[0, :5:2], batch.x[0, :5:2])


@pytest.mark.parametrize("augment", [None, NOISY], ids=["clear", "noisy"])
def test_details_vary_by_one(augment):
    """Of pictures of unit variance, told with noise; told without, by what is left of `detail`."""
    batch = frames_of(((1, 12),), side=32)
    x = jax.random.normal(jax.random.key(0), batch.x.shape)
    small = 0.1 * jax.random.normal(jax.random.key(1), batch.x.shape)
    link = Link(augment=augment, detail=0.1)
    told = link.sample(batch.replace(x=x), batch, 3)
    apart = link.apart(batch.replace(x=x + small), told)
    assert float(apart.x.std()) == pytest.approx(1, rel=0.02)


def test_details_of_mixed_frames_vary_by_one():
    """A mixture has less noise than each of its frames; the last is mixed of one with itself."""
    batch = frames_of(((1, 12),), side=32)
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), batch.x.shape[2:]), batch.x.shape)
    small = 0.1 * jax.random.normal(jax.random.key(1), batch.x.shape)
    link = Link(select=Strided(stride=2, fill="linear"), augment=NOISY, detail=0.1)
    told = link.sample(link.reduce(batch.replace(x=x)), batch, 3)
    apart = link.apart(batch.replace(x=x + small), told)
    np.testing.assert_allclose(apart.x.std((0, 2, 3, 4)), 1, rtol=0.05)


def test_windows_fall_on_the_frames_below():
    """Show-1: windows of 5 frames, each between two frames below."""
    select = Strided(stride=4, fill="blank")
    cut = Windows(frames=5, carry=1).cut(29)
    assert [select.part(window) for window in cut] == [slice(k, k + 2) for k in range(7)]
    with pytest.raises(UserError, match="multiple of the stride"):
        select.part(range(3, 8))


def test_nothing_told_is_refused():
    with pytest.raises(UserError, match="first or last"):
        Ends(first=0, last=0)
    with pytest.raises(UserError, match="'linear' or 'blank'"):
        Strided(stride=2, fill="black")
    with pytest.raises(UserError, match=r"change is .* but with fill='repeat'"):
        Strided(stride=2, change=0.5)
