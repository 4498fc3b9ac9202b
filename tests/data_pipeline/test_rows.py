"""Pack, then unpack: the same pixels; and the invariants that attention relies on."""

import numpy as np
import pytest
from einops import rearrange

from data_pipeline import rows
from data_pipeline.blocks import Capacity
from data_pipeline.rows import Member


def member(frames, grid, patch, text=(5, 6), seed=0, **more):
    size = (frames, grid[1] * patch[1], grid[2] * patch[2], 3)
    video = np.random.default_rng(seed).integers(1, 256, size, np.uint8)
    return Member(video=video, frames=frames, grid=grid, text=text, id=(seed, 7), **more)


@pytest.mark.parametrize("patch", [(1, 2, 3), (2, 4, 3), (3, 1, 5)])
def test_patchify_is_what_einops_says(patch):
    video = np.random.default_rng(0).integers(0, 256, (6, 12, 15, 3), np.uint8)
    ours = rows.patchify(video, patch)
    pattern = "(t a) (h b) (w c) k -> (t h w) (a b c k)"
    assert np.array_equal(ours, rearrange(video, pattern, a=patch[0], b=patch[1], c=patch[2]))
    grid = tuple(side // p for side, p in zip(video.shape[:3], patch, strict=True))
    assert np.array_equal(rows.unpatchify(ours, grid, patch), video)


@pytest.mark.parametrize("pt", [1, 2, 3])
def test_pack_then_unpack_is_the_identity(pt):
    patch = (pt, 3, 2)
    capacity = Capacity(patch=patch, tokens=120, text_tokens=12, segments=5)
    layers = [1, 5, 4, 7]  # frames
    members = [
        member(n, (-(-n // pt), 1 + i, 2), patch, seed=i, ordinal=i) for i, n in enumerate(layers)
    ]
    packed = rows.pack(members, capacity)
    for made, found in zip(members, rows.unpack(packed, patch), strict=True):
        assert np.array_equal(found, made.video)
    assert ("cells" in packed) == (pt > 1)
    if pt > 1:
        masked = (~packed["cells"][packed["segment"] > 0]).sum()
        pads = [(-(-n // pt) * pt - n) * (1 + i) * 3 * 4 * 3 for i, n in enumerate(layers)]
        assert masked == sum(pads)
        assert not packed["cells"][packed["segment"] == 0].any()


def test_time_is_padded_at_the_front_with_the_first_frame():
    capacity = Capacity(patch=(4, 1, 1), tokens=4, text_tokens=4, segments=1)
    video = np.arange(1, 6, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    made = Member(video=video, frames=5, grid=(2, 1, 1), text=(1,), id=(0, 0))
    packed = rows.pack([made], capacity)
    assert packed["patches"][:2, ::3].tolist() == [[1, 1, 1, 1], [2, 3, 4, 5]]
    assert packed["cells"][:2, ::3].tolist() == [[False, False, False, True], [True] * 4]


def test_a_bad_member_keeps_its_slot():
    patch = (2, 2, 2)
    capacity = Capacity(patch=patch, tokens=40, text_tokens=12, segments=4)
    members = [member(3, (2, 2, 2), patch, seed=i) for i in range(3)]
    whole = rows.pack(members, capacity)
    broken = Member(**{**vars(members[1]), "video": None})
    packed = rows.pack([members[0], broken, members[2]], capacity)
    slot = packed["segment"] == 2
    assert not packed["patches"][slot].any() and whole["patches"][slot].all()
    assert packed["valid"].tolist() == [True, False, True, False]
    for name in set(packed) - {"patches", "valid"}:
        assert np.array_equal(packed[name], whole[name]), name
    assert np.array_equal(packed["patches"][~slot], whole["patches"][~slot])
    assert len(rows.unpack(packed, patch)) == 2


def test_positions_count_the_grid():
    capacity = Capacity(patch=(1, 1, 1), tokens=20, text_tokens=9, segments=2)
    packed = rows.pack([member(1, (1, 1, 1), (1, 1, 1)), member(2, (2, 2, 3), (1, 1, 1))], capacity)
    assert packed["position"][1:13].tolist() == [
        [t, y, x] for t in range(2) for y in range(2) for x in range(3)
    ]
    assert packed["raster"].tolist() == [0, *range(12), *[0] * 7]
    assert packed["segment"].tolist() == [1] + [2] * 12 + [0] * 7
    assert packed["text_segment"].tolist() == [1, 1, 2, 2, 0, 0, 0, 0, 0]
    assert packed["text_position"].tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("pt", [1, 2])
def test_tokens_that_stay_keep_their_place(pt):
    """Against the same members whole: what is there is there at the same position."""
    patch = (pt, 2, 2)
    capacity = Capacity(patch=patch, tokens=200, text_tokens=30, segments=4)
    whole = [member(3 * pt - (pt > 1), (3, 2 + i, 5), patch, seed=i) for i in range(3)]
    some = [
        Member(**vars(one) | {"stay": rows.staying(0, i, 0, one.grid, 7 + i)})
        for i, one in enumerate(whole)
    ]
    full, thin = rows.pack(whole, capacity), rows.pack(some, capacity)
    assert thin["grid"].tolist() == full["grid"].tolist()
    assert [(thin["segment"] == slot + 1).sum() for slot in range(3)] == [7, 8, 9]
    for slot in range(3):
        mine, its = thin["segment"] == slot + 1, full["segment"] == slot + 1
        raster = thin["raster"][mine]
        assert (np.diff(raster) > 0).all()
        for name in {"patches", "position", "raster", "cells"} & set(full):
            assert np.array_equal(thin[name][mine], full[name][its][raster]), name
    for one, video in zip(whole, rows.unpack(thin, patch), strict=True):
        assert video.shape == one.video.shape
        shown = video > 0  # the pixels of this test are never 0
        assert 0 < shown.sum() < shown.size and np.array_equal(video[shown], one.video[shown])


def test_which_tokens_stay_is_the_examples_own():
    grid, count = (3, 4, 5), 600
    drawn = np.stack([rows.staying(1, identity, 0, grid, 20) for identity in range(count)])
    assert (np.diff(drawn, axis=1) > 0).all() and drawn.min() == 0 and drawn.max() == 59
    often = np.bincount(drawn.reshape(-1), minlength=60)  # each stays with probability 1/3
    assert abs(often - count / 3).max() < 5 * (count * 2 / 9) ** 0.5
    again = rows.staying(1, 7, 0, grid, 20)
    assert np.array_equal(again, drawn[7])
    for other in ((2, 7, 0), (1, 8, 0), (1, 7, 1)):
        assert not np.array_equal(rows.staying(*other, grid, 20), again)
    assert rows.staying(1, 7, 0, grid, 60) is None


@pytest.mark.parametrize("limit", [{"tokens": 15}, {"text_tokens": 4}, {"segments": 1}])
def test_what_does_not_fit_is_an_error(limit):
    roomy = {"tokens": 16, "text_tokens": 5, "segments": 2} | limit
    made = [member(2, (2, 2, 2), (1, 1, 1), seed=i) for i in range(2)]
    with pytest.raises(ValueError, match="does not fit"):
        rows.pack(made, Capacity(patch=(1, 1, 1), **roomy))
