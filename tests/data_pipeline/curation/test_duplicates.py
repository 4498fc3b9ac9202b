"""The same clip encoded anew, resized or cropped a little, against other clips; all pairs against
the few that are compared."""

import numpy as np
import pytest

from data_pipeline.curation.duplicates import LIMIT, Duplicates, pairs
from data_pipeline.curation.stage import MARK
from data_pipeline.encode import write_mp4
from data_pipeline.places import Place
from tests.data_pipeline.curation.scenes import RATE, colours, pan, row

STAGE = Duplicates().stage
BITS = 512


def printed(folder, video, crf=18, rate=RATE):
    """Of a film that was written and is read as a stage reads it."""
    write_mp4(folder / "a.mp4", video, rate, crf=crf)
    clip = row(video, rate)
    return STAGE(STAGE.sees.take(Place.of(folder / "a.mp4"), clip), clip)[MARK]


def apart(one, other):
    both = np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)
    return int(np.unpackbits(both).sum())


def test_a_clip_encoded_anew_or_resized_is_the_same(tmp_path):
    for seed in range(4):
        video = pan(0.2, size=(120, 200), seed=seed)
        print_ = printed(tmp_path, video)
        assert len(print_) == BITS // 8
        smaller = video.reshape(len(video), 60, 2, 100, 2, 3).mean(axis=(2, 4)).astype(np.uint8)
        for again in (
            printed(tmp_path, video, crf=40),
            printed(tmp_path, smaller, crf=30),
            printed(tmp_path, video[::2], rate=RATE // 2),
            printed(tmp_path, np.clip(1.1 * video + 5, 0, 255).astype(np.uint8)),
        ):
            assert apart(print_, again) < LIMIT
        other = printed(tmp_path, pan(0.2, size=(120, 200), seed=seed + 100))
        assert apart(print_, other) > 4 * LIMIT


def test_flat_pictures_have_no_print():
    black = np.zeros((5, 40, 70, 3), np.uint8)
    assert STAGE(black, row(black)) == {MARK: None}
    sky = colours(np.broadcast_to(np.linspace(200, 208, 40)[:, None], (5, 40, 70)))
    assert STAGE(sky, row(sky)) == {MARK: None}


def flipped(print_, count, rng):
    bits = np.unpackbits(print_)
    bits[rng.choice(BITS, count, replace=False)] ^= 1
    return np.packbits(bits)


@pytest.mark.parametrize("distance", [0, 5, LIMIT - 1])
def test_no_pair_within_the_distance_is_missed(distance):
    """Against all pairs, with copies that are just within it, just outside, and all alike."""
    rng = np.random.default_rng(distance)
    first = rng.integers(0, 256, (60, BITS // 8), np.uint8)
    near = [flipped(one, distance, rng) for one in first[:30]]
    far = [flipped(one, distance + 1, rng) for one in first[30:]]
    same = np.repeat(first[:1], 5, axis=0)
    prints = np.concatenate([first, near, far, same])[rng.permutation(125)]
    bits = np.unpackbits(prints, axis=1).astype(int)
    differ = (bits[:, None] != bits[None]).sum(axis=-1)
    want = {(i, j) for i, j in np.argwhere(differ <= distance).tolist() if i < j}
    assert len(want) >= 40
    assert set(pairs(prints, distance)) == want


@pytest.mark.parametrize("place", range(32))
def test_the_most_even_difference_is_found(place):
    """Two bits in each band, one at `place` in the last: nothing but three bytes is shared."""
    print_ = np.random.default_rng(place).integers(0, 256, BITS // 8, np.uint8)
    bits = np.unpackbits(print_).reshape(-1, 32)
    bits[:, [0, 16]] ^= 1
    bits[-1, [0, 16]] ^= 1
    bits[-1, place] ^= 1
    assert set(pairs(np.stack([print_, np.packbits(bits)]), LIMIT - 1)) == {(0, 1)}


def test_of_those_alike_the_first_by_name_is_kept():
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 256, (2, BITS // 8), np.uint8)
    within, beyond = flipped(one, 20, rng), flipped(one, 60, rng)
    prints = [other, within, one, None, beyond, one, other, None]
    names = ["h", "c", "b", "a0", "d", "e", "g", "a1"]
    out = Duplicates().of(names, [None if p is None else p.tobytes() for p in prints])
    assert {names[clip]: names[of] for clip, of in out.items()} == {"c": "b", "e": "b", "h": "g"}


def test_what_is_kept_is_no_repetition_and_what_is_left_out_is_one():
    """Chains of clips, each near to the next one alone: a is near b, b near c, but a not near c."""
    rng = np.random.default_rng(2)
    prints = [rng.integers(0, 256, BITS // 8, np.uint8)]
    for _ in range(40):
        prints.append(flipped(prints[-1], 20, rng))
    order = rng.permutation(len(prints))
    prints = [prints[place].tobytes() for place in order]
    names = [f"{place:03d}" for place in range(len(prints))]
    out = Duplicates().of(names, prints)
    kept = [place for place in range(len(prints)) if place not in out]
    assert 1 < len(kept) < len(prints)
    assert all(apart(prints[i], prints[j]) >= LIMIT for i in kept for j in kept if i < j)
    assert all(of in kept and of < clip for clip, of in out.items())
    assert all(apart(prints[clip], prints[of]) < LIMIT for clip, of in out.items())


def test_nothing_and_one_have_no_repetition():
    assert Duplicates().of([], []) == {}
    assert Duplicates().of(["a"], [bytes(64)]) == {}
    assert Duplicates().of(["a", "b"], [None, None]) == {}


def test_a_distance_that_bands_may_miss_is_a_problem():
    assert Duplicates(distance=0).problems() == Duplicates(distance=31).problems() == []
    for distance in (-1, 32):
        assert "31" in Duplicates(distance=distance).problems()[0]
