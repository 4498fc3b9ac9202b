"""Positions: relative rotation, the order of axes, fractions of any grid, tables stretched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from tests.nets.rows import example, pack, quick
from vdm_jax.config import UserError
from vdm_jax.nets.positions import Fractional, Learned, Rotary, Sincos, rotate

HEAD, WIDTH = 16, 24


def row(*grids, fps=8.0):
    made = [example(i, grid, text=1) for i, grid in enumerate(grids)]
    tokens = sum(len(one.x) for one in made) + 2
    batch, *_ = pack([made], tokens=tokens, text=len(grids) + 1, slots=len(grids))
    return batch.replace(
        examples=batch.examples.replace(fps=jnp.full_like(batch.examples.fps, fps))
    )


def at(batch, *position):
    """The first token with that position (t, y, x) among the real ones."""
    same = (np.asarray(batch.position[0]) == position).all(-1) & (np.asarray(batch.segment[0]) > 0)
    return int(np.nonzero(same)[0][0])


def added(position, batch, width=WIDTH):
    """What a position adds, with parameters drawn afresh."""
    return np.asarray(
        quick(lambda: position.init_with_output(jax.random.key(1), batch, width, method="add"))()[0]
    )


def products(batch, rotary, seed=0):
    """Query at every token times key at every token, the same query and key everywhere."""
    rng = np.random.default_rng(seed)
    shape = (1, batch.segment.shape[1], 1, HEAD)
    q, k = (jnp.broadcast_to(jnp.asarray(rng.normal(size=HEAD)), shape) for _ in range(2))
    angles = rotary.angles(batch, HEAD)
    return np.einsum("bnhd,bmhd->nm", rotate(q, angles), rotate(k, angles))


@pytest.mark.parametrize("rotary", [Rotary(), Rotary(split=(4, 6, 6), base=256.0, fps=24.0)])
def test_rotary_products_depend_on_the_difference_alone(rotary):
    batch = row((3, 4, 5))
    found = products(batch, rotary)
    for step in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 2, 1)):
        start = found[at(batch, 0, 0, 0), at(batch, *step)]
        for base in ((1, 1, 1), (1, 0, 3), (0, 1, 2)):
            other = found[at(batch, *base), at(batch, *np.add(base, step))]
            np.testing.assert_allclose(other, start, rtol=1e-5, atol=1e-6)
    # ... and do depend on it, on the sign too.
    moved = [found[at(batch, 1, 1, 1), at(batch, *p)] for p in ((1, 1, 2), (1, 1, 0), (0, 1, 1))]
    assert len({round(float(m), 3) for m in [*moved, found[0, 0]]}) == 4


def test_rotation_keeps_lengths_and_the_origin():
    batch = row((2, 2, 3))
    x = jax.random.normal(jax.random.key(0), (1, batch.segment.shape[1], 2, HEAD))
    turned = rotate(x, Rotary().angles(batch, HEAD))
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(turned[0, at(batch, 0, 0, 0)], x[0, at(batch, 0, 0, 0)])
    assert rotate(x.astype(jnp.bfloat16), Rotary().angles(batch, HEAD)).dtype == jnp.bfloat16


def test_rotary_pair_turns_as_a_complex_number():
    """Neighbouring features are one complex number, multiplied by exp(i position rate)."""
    batch = row((1, 1, 4))
    x = np.random.default_rng(0).normal(size=(1, 6, 1, HEAD))
    turned = np.asarray(rotate(jnp.asarray(x), Rotary(split=(0, 0, HEAD)).angles(batch, HEAD)))
    rates = np.exp(-np.log(10000) * np.arange(HEAD // 2) * 2 / HEAD)
    pairs = (x[0, 3, 0, ::2] + 1j * x[0, 3, 0, 1::2]) * np.exp(3j * rates)
    np.testing.assert_allclose(turned[0, 3, 0, ::2], pairs.real, atol=1e-5)
    np.testing.assert_allclose(turned[0, 3, 0, 1::2], pairs.imag, atol=1e-5)


def test_frame_rate_makes_equal_times_equal():
    """Frame 2 at 8 frames a second is frame 1 at 4, and stills are left alone."""
    slow, fast = row((4, 1, 1), fps=4.0), row((4, 1, 1), fps=8.0)
    rotary = Rotary(fps=4.0)
    angles = {name: np.asarray(rotary.angles(b, HEAD)[0]) for name, b in
              (("slow", slow), ("fast", fast), ("still", row((4, 1, 1), fps=0.0)))}  # fmt: skip
    np.testing.assert_allclose(angles["fast"][2], angles["slow"][1], rtol=1e-6)
    assert np.all(np.isfinite(angles["still"]))
    np.testing.assert_allclose(angles["still"][1], angles["slow"][1], rtol=1e-6)


def test_interpolation_scales_the_coordinates():
    batch = row((1, 1, 5))
    half = Rotary(scale=(1.0, 1.0, 0.5)).angles(batch, HEAD)
    whole = Rotary().angles(batch, HEAD)
    np.testing.assert_allclose(half[0, 4], whole[0, 2], rtol=1e-6)


@pytest.mark.parametrize("split", [(4, 4, 4), (5, 5, 6), (16, 2, -2)])
def test_a_split_that_does_not_fit_is_told(split):
    with pytest.raises(UserError, match="rotary split"):
        Rotary(split=split).angles(row((1, 1, 1)), HEAD)


def test_sincos_puts_x_before_y():
    batch = row((1, 3, 3))
    found = np.asarray(Sincos(axes="xy").add(batch, WIDTH)[0])
    origin, right, down = (found[at(batch, 0, *p)] for p in ((0, 0), (0, 1), (1, 0)))
    half = WIDTH // 2
    np.testing.assert_array_equal(right[half:], origin[half:])
    np.testing.assert_array_equal(down[:half], origin[:half])
    np.testing.assert_allclose(right[:half], down[half:])
    # sin first: at the origin sines are 0 and cosines 1.
    np.testing.assert_array_equal(origin[:half], [0] * (half // 2) + [1] * (half // 2))


def test_sincos_on_a_base_grid_covers_the_same_range():
    small, large = row((1, 2, 2)), row((1, 4, 8))
    position = Sincos(axes="xy", base=(1, 4, 4))
    one, two = (np.asarray(position.add(b, WIDTH)[0]) for b in (small, large))
    np.testing.assert_allclose(one[at(small, 0, 1, 1)], two[at(large, 0, 2, 4)], atol=1e-6)


def test_sincos_is_told_what_it_cannot_do():
    with pytest.raises(UserError, match="does not divide"):
        Sincos(axes="txy").add(row((1, 1, 1)), 16)
    with pytest.raises(UserError, match="letters of"):
        Sincos(axes="hw").add(row((1, 1, 1)), 16)


def test_learned_tables_add_up_and_stretch():
    batch = row((2, 3, 3))
    found = added(Learned(size=(4, 3, 3)), batch)[0]
    # Sums of one term per axis: the mixed difference vanishes.
    corner = [found[at(batch, 0, *p)] for p in ((0, 0), (0, 1), (1, 0), (1, 1))]
    np.testing.assert_allclose(corner[0] + corner[3], corner[1] + corner[2], atol=1e-6)
    assert np.abs(corner[0] - corner[1]).max() > 1e-3
    # Five cells on a table of three: ends meet the ends, the middle the middle, others lie between.
    wide = row((2, 3, 5))
    stretched = added(Learned(size=(4, 3, 3)), wide)[0]
    for here, there in ((0, 0), (2, 1), (4, 2)):
        np.testing.assert_allclose(
            stretched[at(wide, 1, 1, here)], found[at(batch, 1, 1, there)], atol=1e-6
        )
    between = (found[at(batch, 1, 1, 0)] + found[at(batch, 1, 1, 1)]) / 2
    np.testing.assert_allclose(stretched[at(wide, 1, 1, 1)], between, atol=1e-6)


@pytest.mark.parametrize("relative_to", ["axis", "longest"])
def test_fractions_are_finite_and_know_no_resolution(relative_to):
    position = Fractional(entries=8, relative_to=relative_to)
    one, three = row((1, 1, 1)), row((3, 3, 3))
    single, triple = added(position, one)[0], added(position, three)[0]
    assert np.all(np.isfinite(single))
    np.testing.assert_allclose(single[0], triple[at(three, 1, 1, 1)], atol=1e-6)


def test_fractions_of_the_longest_side_keep_the_aspect_ratio():
    batch = row((1, 2, 4))

    def step(relative_to, axis):
        found = added(Fractional(entries=64, relative_to=relative_to), batch)[0]
        return found[at(batch, 0, *axis)] - found[at(batch, 0, 0, 0)]

    wide = row((1, 4, 4))
    square = added(Fractional(entries=64), wide)[0]
    np.testing.assert_allclose(
        step("longest", (1, 0)), square[at(wide, 0, 1, 0)] - square[at(wide, 0, 0, 0)], atol=1e-6
    )
    assert np.abs(step("axis", (1, 0)) - step("longest", (1, 0))).max() > 1e-3


def test_fractions_reach_every_entry_evenly():
    """With as many cells as entries a cell reads its own entry, no mixture."""
    batch = row((1, 1, 4))
    params = meta.unbox(Fractional(entries=4).init(jax.random.key(1), batch, WIDTH, method="add"))
    table = {k: jnp.zeros_like(v) for k, v in params["params"].items()}
    table["table_x"] = params["params"]["table_x"]
    found = Fractional(entries=4).apply({"params": table}, batch, WIDTH, method="add")
    np.testing.assert_allclose(found[0, :4], table["table_x"], atol=1e-7)
