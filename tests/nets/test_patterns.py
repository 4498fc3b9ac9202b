"""Patterns and registers against the sentence that defines them, pair by pair."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nets.rows import example, pack
from vdm_jax.config import UserError
from vdm_jax.nets.patterns import Full, Spatial, Temporal, Window, cross_groups, permute, take
from vdm_jax.nets.registers import insert, remove

GRIDS = [(3, 2, 2), (1, 3, 4), (2, 2, 3)]
COUNT = 2


def row(drop=0.0):
    batch, *_ = pack([[example(i, g) for i, g in enumerate(GRIDS)]], tokens=40, text=12, slots=4)
    if drop:  # an example may keep only some of its tokens
        keep = np.random.default_rng(0).uniform(size=40) > drop
        order = jnp.asarray(np.argsort(~keep, kind="stable"))[None]
        left = int(keep.sum())
        leaves = {name: take(getattr(batch, name), order) for name in
                  ("x", "segment", "position", "raster", "level")}  # fmt: skip
        leaves["segment"] = leaves["segment"].at[:, left:].set(0)
        batch = batch.replace(**leaves)
    return batch


def box(p, size, shift):
    return tuple((a + s) // w for a, s, w in zip(p, shift, size, strict=True))


MEANING = {
    "full": (Full(), lambda p, q: True),
    "spatial": (Spatial(), lambda p, q: p[0] == q[0]),
    "temporal": (Temporal(), lambda p, q: p[1:] == q[1:]),
    "window": (
        Window(size=(2, 2, 3), shift=(1, 0, 2)),
        lambda p, q: box(p, (2, 2, 3), (1, 0, 2)) == box(q, (2, 2, 3), (1, 0, 2)),
    ),
    "cells": (Window(size=(1, 1, 1)), lambda p, q: p == q),
}


@pytest.mark.parametrize("drop", [0.0, 0.6])
@pytest.mark.parametrize("name", sorted(MEANING))
def test_groups_mean_what_they_say(name, drop):
    pattern, meaning = MEANING[name]
    extended = insert(row(drop), COUNT)
    batch, register = extended.batch, np.asarray(extended.register[0])
    groups = pattern.groups(batch, extended.register)
    ids = groups.id if groups.inverse is None else take(groups.id, groups.inverse)
    ids, segment = np.asarray(ids[0]), np.asarray(batch.segment[0])
    place = [tuple(int(c) for c in p) for p in np.asarray(batch.position[0])]
    for i, j in itertools.product(range(len(ids)), repeat=2):
        if segment[i] != segment[j]:
            together = False
        elif segment[i] == 0 or name == "full":
            together = True
        elif register[i] or register[j]:
            together = bool(register[i] and register[j])
        else:
            together = meaning(place[i], place[j])
        assert (ids[i] == ids[j]) == together, (i, j)
    assert np.array_equal(ids == 0, segment == 0)


@pytest.mark.parametrize("name", ["temporal", "window"])
def test_order_brings_groups_together(name):
    groups = MEANING[name][0].groups(row(), None)
    ids = np.asarray(groups.id[0])
    real = ids[ids > 0]
    assert np.all(np.diff(real) >= 0) and not np.any(ids[len(real) :])
    x = jnp.arange(40.0)[None, :, None]
    np.testing.assert_array_equal(take(take(x, groups.order), groups.inverse), x)


@pytest.mark.parametrize("name", sorted(MEANING))
@pytest.mark.parametrize("grid", [(3, 2, 2), (2, 3, 4)])
def test_pairs_are_counted(name, grid):
    pattern, meaning = MEANING[name]
    cells = list(itertools.product(*(range(extent) for extent in grid)))
    assert pattern.pairs(grid) == sum(meaning(p, q) for p in cells for q in cells)
    extra = (len(cells) + COUNT) ** 2 - len(cells) ** 2 if name == "full" else COUNT**2
    assert pattern.pairs(grid, COUNT) - pattern.pairs(grid) == extra


def test_temporal_groups_leave_stills_alone_unless_told():
    batch = row()
    active = np.asarray(Temporal().groups(batch, None).active[0])
    segment = np.asarray(batch.segment[0])
    assert np.array_equal(active, (segment == 1) | (segment == 3))
    assert Temporal(on_single="attend").groups(batch, None).active is None
    assert Temporal().pairs((1, 3, 4)) == 0 and Temporal(on_single="attend").pairs((1, 3, 4)) == 12
    with pytest.raises(UserError, match="on_single"):
        Temporal(on_single="never").groups(batch, None)


def test_framed_keys_are_seen_from_their_frame():
    batch, _, cond = pack(
        [[example(i, g) for i, g in enumerate(GRIDS)]], tokens=40, text=12, slots=4, framed=True
    )
    tokens = cond.tokens["text"]
    queries, keys = cross_groups(batch, tokens.segment, tokens.frame, None)
    for i, j in itertools.product(range(40), range(12)):
        owner, other = int(batch.segment[0, i]), int(tokens.segment[0, j])
        frame = int(batch.position[0, i, 0])
        sees = owner == other and (owner == 0 or frame == int(tokens.frame[0, j]))
        assert (int(queries[0, i]) == int(keys[0, j])) == sees


def test_registers_stand_behind_their_example():
    batch = row()
    extended = insert(batch, COUNT)
    segment = np.asarray(extended.batch.segment[0])
    expected = []
    for index, grid in enumerate(GRIDS):
        expected += [index + 1] * (int(np.prod(grid)) + COUNT)
    assert np.array_equal(segment, expected + [0] * (len(segment) - len(expected)))
    assert int(extended.register[0, segment > 0].sum()) == COUNT * len(GRIDS)
    assert not np.any(np.asarray(extended.batch.position)[np.asarray(extended.register)])
    np.testing.assert_array_equal(remove(extended, extended.batch.x), batch.x)
    level = remove(extended, extended.batch.level[..., None])[..., 0]
    np.testing.assert_array_equal(level, batch.level)


@pytest.mark.parametrize("ids", [[1, 1, 2, 4, 0], [3, 1, 0, 0, 2], [4] * 5, [0] * 5])
def test_registers_are_where_a_stable_sort_of_the_row_puts_them(ids):
    # Of four examples some are absent; padding is at the end, within, nowhere, everywhere.
    count, ids = 2, np.repeat(ids, 8)[:40]
    batch = row().replace(segment=jnp.asarray(ids)[None])
    extended = insert(batch, count)
    ends = {i + 1: max(np.flatnonzero(ids == i + 1), default=40 + i) for i in range(4)}
    keys = [*range(40), *(ends[i + 1] + 0.5 for i in range(4) for _ in range(count))]
    order = np.argsort(keys, kind="stable")
    np.testing.assert_array_equal(extended.order[0], order)
    places = np.concatenate([extended.home[0], extended.own[0]])
    np.testing.assert_array_equal(places, np.argsort(order))
    np.testing.assert_array_equal(remove(extended, extended.batch.x), batch.x)


def test_the_gradient_of_another_order_is_that_of_a_gather():
    draw = np.random.default_rng(0)
    order = np.stack([draw.permutation(7)[:5] for _ in range(2)])  # two of seven are left out
    back = np.full((2, 7), 5)
    np.put_along_axis(back, order, np.arange(5)[None], axis=1)
    x, weight = draw.normal(size=(2, 7, 3)), draw.normal(size=(2, 5, 3))

    def loss(x, pick):
        return (jnp.asarray(weight) * jnp.square(pick(x))).sum()

    ours = jax.grad(loss)(x, lambda x: permute(x, order, back))
    np.testing.assert_allclose(ours, jax.grad(loss)(x, lambda x: x[np.arange(2)[:, None], order]))


def test_registers_pass_gradients_on_as_gathers_do():
    batch = row()
    extended = insert(batch, COUNT)
    weight = np.random.default_rng(0).normal(size=(1, 40, 5))
    x = jnp.asarray(np.random.default_rng(1).normal(size=extended.batch.x.shape), jnp.float32)

    def loss(x, out):
        return (jnp.asarray(weight) * jnp.square(out(x))).sum()

    ours = jax.grad(loss)(x, lambda x: remove(extended, x))
    theirs = jax.grad(loss)(x, lambda x: x[:, np.asarray(extended.home[0])])
    np.testing.assert_allclose(ours, theirs)
