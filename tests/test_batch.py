"""The carriers: who is whose, noise that only an example's own cells decide, honest totals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.batch import Examples, Frames, Packed, patchify, unpack, unpatchify


def examples(ids, grids):
    """One row of examples; `None` is an absent one."""
    e = len(ids)
    identity = np.zeros((1, e, 2), np.uint32)
    identity[0, :, 1] = [i or 0 for i in ids]
    zero = jnp.zeros((1, e), jnp.int32)
    return Examples(
        id=jnp.asarray(identity), visit=zero, ordinal=zero,
        valid=jnp.asarray([[i is not None for i in ids]]),
        grid=jnp.asarray([grids]), fps=jnp.full((1, e), 8.0),
    )  # fmt: skip


def packed(ids, grids, features=4, pad=2, **extra):
    """Those examples in one row, in order, with padding behind."""
    position, segment, raster = [], [], []
    for index, grid in enumerate(grids):
        cells = np.indices(grid).reshape(3, -1).T
        position += list(cells)
        segment += [index + 1] * len(cells)
        raster += list(range(len(cells)))
    n = len(segment) + pad
    x = np.random.default_rng(0).normal(size=(1, n, features)).astype(np.float32)
    return Packed(
        x=jnp.asarray(x),
        segment=jnp.asarray([segment + [0] * pad]),
        position=jnp.asarray([np.concatenate([position, np.zeros((pad, 3), int)])]),
        raster=jnp.asarray([raster + [0] * pad]),
        examples=examples(ids, grids),
        **extra,
    )


def test_noise_belongs_to_the_example_not_to_its_place():
    a = packed([7, 9], [(1, 2, 2), (2, 1, 3)])
    b = packed([9, 5, 7], [(2, 1, 3), (1, 1, 1), (1, 2, 2)], pad=0)
    noise_a = a.white(a.keys(3, "noise"))
    noise_b = b.white(b.keys(3, "noise"))
    np.testing.assert_array_equal(noise_a[0, :4], noise_b[0, 7:11])
    np.testing.assert_array_equal(noise_a[0, 4:10], noise_b[0, :6])
    assert not np.any(noise_a[0, 10:])


@pytest.mark.parametrize("change", ["seed", "purpose", "visit"])
def test_noise_changes_with(change):
    a = packed([7], [(1, 4, 4)])
    keys = a.keys(3, "noise")
    if change == "visit":
        later = a.examples.replace(visit=a.examples.visit + 1)
        other = a.replace(examples=later).keys(3, "noise")
    else:
        other = a.keys(4, "noise") if change == "seed" else a.keys(3, "time")
    first, second = np.asarray(a.white(keys)), np.asarray(a.white(other))
    assert np.abs(first[0, :16] - second[0, :16]).min() > 0


def test_white_noise_is_standard_normal():
    a = packed([7, 8], [(4, 8, 8), (4, 8, 8)], features=16)
    noise = np.asarray(a.white(a.keys(0, "noise")))[0, :512]
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / noise.size)
    assert abs(np.corrcoef(noise[:256].ravel(), noise[256:].ravel())[0, 1]) < 0.07


def test_noise_of_another_frame():
    a = packed([7], [(3, 2, 2)], pad=1)
    keys = a.keys(0, "noise")
    whole = np.asarray(a.white(keys))[0, :12].reshape(3, 4, -1)
    for frame in range(3):
        moved = np.asarray(a.white(keys, frame=frame))[0, :12].reshape(3, 4, -1)
        np.testing.assert_array_equal(moved, np.broadcast_to(whole[frame], moved.shape))


def test_spread_and_lookup_agree_and_padding_reads_zero():
    level = jnp.asarray([[0, 1, 1, 0, 0, 1, 0, 1]])
    a = packed([1, 2], [(1, 2, 1), (2, 1, 2)], level=level)
    table = jnp.arange(1.0, 5.0).reshape(1, 2, 2)
    expected = [1, 2, 4, 3, 3, 4, 0, 0]
    np.testing.assert_array_equal(a.spread(table)[0, :, 0], expected)
    np.testing.assert_array_equal(a.lookup(table[..., None])[0, :, 0], expected)


@pytest.mark.parametrize("how", ["mean", "var", 0.25])
def test_reduce_is_numpy_on_each_part(how):
    a = packed([1, None, 3], [(1, 2, 2), (0, 0, 0), (2, 1, 2)])
    found = np.asarray(a.reduce(a.x, how))[0]
    parts = [np.asarray(a.x[0, :4]), np.asarray(a.x[0, 4:8])]
    judge = {"mean": np.mean, "var": np.var}.get(how, lambda part: np.quantile(part, how))
    np.testing.assert_allclose(found[[0, 2]], [judge(part) for part in parts], atol=1e-6)
    assert found[1] == 0


def test_frames_answer_as_packed_does():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 5, 2, 2, 3)), jnp.float32)
    frames = Frames(
        x=x, segment=jnp.asarray([[1, 1, 1, 2, 0]]), position=jnp.asarray([[0, 1, 2, 0, 0]]),
        examples=examples([4, 6], [(3, 2, 2), (1, 2, 2)]),
    )  # fmt: skip
    found = np.asarray(frames.reduce(x, "mean"))[0]
    np.testing.assert_allclose(found, [x[0, :3].mean(), x[0, 3].mean()], atol=1e-6)
    assert frames.spread(jnp.asarray([[5.0, 7.0]])).shape == (1, 5, 1, 1, 1)
    noise = frames.white(frames.keys(0, "noise"))
    assert not np.any(noise[0, 4])
    same = frames.white(frames.keys(0, "noise"), frame=0)
    np.testing.assert_array_equal(same[0, 2], noise[0, 0])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_total_weighs_examples_by_size(power):
    a = packed([1, 2], [(1, 1, 1), (1, 3, 3)])
    values = jnp.where(a.segment[..., None] == 1, 2.0, 5.0) * jnp.ones_like(a.x)
    total, weight = a.total(values, power)
    sizes = np.array([1.0, 9.0]) ** (1 - power)
    assert float(weight) == pytest.approx(sizes.sum(), rel=1e-6)
    assert float(total) == pytest.approx((sizes * [2, 5]).sum(), rel=1e-6)


def test_total_leaves_out_known_cells_masked_features_and_bad_examples():
    mask = np.ones((1, 6, 4), bool)
    mask[0, 0, 1:] = False  # one feature of token 0 is left
    mask[0, 1] = False  # nothing of token 1
    known = jnp.asarray([[False, False, True, False, False, False]])
    a = packed([1, None], [(1, 2, 2), (1, 1, 1)], pad=1, mask=jnp.asarray(mask), known=known)
    values = jnp.arange(24.0).reshape(1, 6, 4).at[0, 4:].set(jnp.nan)
    total, weight = a.total(values, 1.0)
    # Learnt: token 0 by its feature 0, and token 3; their mean is the example's.
    assert float(weight) == pytest.approx(1)
    assert float(total) == pytest.approx((0 + 13.5) / 2)


def test_total_of_padding_alone_is_zero():
    a = packed([None], [(1, 1, 1)], pad=3)
    total, weight = a.total(jnp.full_like(a.x, jnp.nan))
    assert float(total) == 0 and float(weight) == 0


def test_known_cells_are_put_in_place():
    known = jnp.asarray([[True, False, False]])
    a = packed([1], [(1, 1, 1)], known=known, given=jnp.full((1, 3, 4), 9.0))
    found = a.insert_known(a.x)
    assert np.all(found[0, 0] == 9) and np.array_equal(found[0, 1:], a.x[0, 1:])


def test_unpack_inverts_packing_and_cuts_padded_time():
    rng = np.random.default_rng(2)
    patch = (2, 2, 3)
    grids = [(2, 1, 2), (1, 2, 1)]
    videos = [rng.normal(size=(*np.multiply(g, patch), 3)).astype(np.float32) for g in grids]
    tokens = np.concatenate([np.asarray(patchify(jnp.asarray(v), patch)) for v in videos])
    mask = np.ones((1, 6, 36), bool)
    mask[0, 4:, :18] = False  # the second video's first frame only pads its patch
    a = packed([1, 2], grids, features=36, pad=0, mask=jnp.asarray(mask), patch=patch)
    found = unpack(a.replace(x=jnp.asarray(tokens[None])))
    np.testing.assert_array_equal(found[0], videos[0])
    np.testing.assert_array_equal(found[1], videos[1][1:])
    again = unpatchify(jnp.asarray(tokens[:4]), grids[0], patch)
    np.testing.assert_array_equal(again, videos[0])


def test_unpack_of_what_was_dropped_is_zero_and_padding_is_still_cut():
    """One of two layers of 2 x 2 tokens, its first frame padding; two tokens stay, one in each."""
    patch, stay = (2, 1, 1), np.array([1, 6])
    video = np.random.default_rng(3).normal(size=(4, 2, 2, 3)).astype(np.float32)
    tokens = np.asarray(patchify(jnp.asarray(video), patch))
    mask = np.ones((1, 2, 6), bool)
    mask[0, 0, :3] = False
    a = packed([1], [(1, 1, 2)], features=6, pad=0, mask=jnp.asarray(mask), patch=patch)
    a = a.replace(
        x=jnp.asarray(tokens[None, stay]),
        raster=jnp.asarray(stay[None]),
        examples=examples([1], [(2, 2, 2)]),
    )
    (found,) = unpack(a)
    assert found.shape == (3, 2, 2, 3)
    wanted = np.zeros_like(video)
    wanted[:2, 0, 1], wanted[2:, 1, 0] = video[:2, 0, 1], video[2:, 1, 0]
    np.testing.assert_array_equal(found, wanted[1:])


def test_keys_differ_between_examples():
    a = packed([1, 2, 1 + 2**31], [(1, 1, 1)] * 3)
    data = np.asarray(jax.random.key_data(a.keys(0, "noise")))[0]
    assert len({tuple(key) for key in data}) == 3
