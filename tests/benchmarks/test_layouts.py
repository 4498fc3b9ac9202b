"""The packing benchmark's layouts: every arm sees every example once, in shapes that add up."""

import itertools
from functools import cache

import numpy as np
import pytest

from data_pipeline import rows
from data_pipeline.blocks import Capacity, Kind
from data_pipeline.generated import render
from data_pipeline.layouts import edges
from tests.benchmarks.packing import judge, mix
from tests.benchmarks.packing.layouts import Step, arrays, fill, packed, queued
from tests.benchmarks.packing.pool import Pool, members_of

COUNT, EPOCHS, SEED, TOKENS, WORDS = 150, 3, 7, 576, 5


@cache
def pool() -> Pool:
    scenes = [mix.scene(index) for index in range(COUNT)]
    return Pool(
        tuple(
            rows.Member(
                video=render(one, mix.SEED),
                frames=one.frames,
                grid=(-(-one.frames // mix.PATCH[0]), one.height // 4, one.width // 4),
                text=range(1, 1 + index % WORDS + 1),
                id=(0, index),
                fps=float(one.fps),
            )
            for index, one in enumerate(scenes)
        )
    )


def kind(tokens: int, rows_: int, segments: int = 1) -> Kind:
    text = segments * WORDS + 1
    return Kind(
        Capacity(patch=mix.PATCH, tokens=tokens, text_tokens=text, segments=segments), rows_
    )


def epochs():
    return itertools.islice(pool().epochs(SEED), EPOCHS)


def arm(name: str) -> tuple[list[Kind], list[Step]]:
    lengths = pool().examples["tokens"]
    if name == "packed":
        kinds = [kind(TOKENS, 4, segments=16)]
        return kinds, list(packed(epochs(), kinds[0], SEED))
    kinds = [kind(n, max(1, 2304 // n)) for n in edges(lengths, 1 if name == "padded" else 6)]
    return kinds, list(queued(epochs(), kinds))


def ordinals(steps: list[Step]) -> np.ndarray:
    return np.concatenate([step.examples["ordinal"] for step in steps])


@pytest.mark.parametrize("name", ["packed", "padded", "bucketed"])
def test_no_example_is_lost_or_seen_twice(name):
    kinds, steps = arm(name)
    seen = ordinals(steps)
    assert len(np.unique(seen)) == len(seen)
    if name == "packed":
        for k in range(EPOCHS):  # whole epochs, one after the other
            mine = seen[k * COUNT : (k + 1) * COUNT]
            assert sorted(mine) == list(range(k * COUNT, (k + 1) * COUNT))
        return
    every = np.concatenate(list(epochs()))
    waiting = every[~np.isin(every["ordinal"], seen)]
    place = np.searchsorted([k.capacity.tokens for k in kinds], waiting["tokens"])
    # What is left is less than a batch of each bucket.
    assert all((place == i).sum() < one.rows for i, one in enumerate(kinds))
    for i in range(len(kinds)):  # and it arrived after all that was served
        served = [s.examples["ordinal"].max() for s in steps if s.kind == i]
        left = waiting["ordinal"][place == i]
        assert not len(left) or not served or max(served) < left.min()


def test_all_arms_see_the_same_examples():
    seen = {}
    for name in ("packed", "padded", "bucketed"):
        examples = np.concatenate([step.examples for step in arm(name)[1]])
        fields = ("ordinal", "clip", "visit", "tokens")
        seen[name] = set(zip(*(examples[field].tolist() for field in fields), strict=True))
    assert seen["padded"] <= seen["packed"]
    assert seen["bucketed"] <= seen["packed"]


@pytest.mark.parametrize("name", ["packed", "padded", "bucketed"])
def test_a_step_has_its_kinds_shape_and_holds_its_examples(name):
    kinds, steps = arm(name)
    for step in steps[:4]:
        one = kinds[step.kind]
        made = arrays(step, one, pool())
        assert made["segment"].shape == (1, one.rows, one.capacity.tokens)
        assert (made["segment"] > 0).sum() == step.examples["tokens"].sum()
        for row, examples in enumerate(step.rows):
            found = members_of({key: leaf[0, row] for key, leaf in made.items()}, mix.PATCH)
            for member, example in zip(found, examples, strict=True):
                wanted = pool().members[example["clip"]]
                np.testing.assert_array_equal(member.video, wanted.video)
                assert member.text == list(wanted.text)
                assert (member.visit, member.ordinal) == (example["visit"], example["ordinal"])


def test_fill_is_what_arithmetic_says():
    lengths = pool().examples["tokens"]
    kinds, steps = arm("padded")
    lost = np.concatenate(list(epochs()))["tokens"].sum() - sum(
        s.examples["tokens"].sum() for s in steps
    )
    places = EPOCHS * COUNT // kinds[0].rows * kinds[0].rows
    assert fill(steps, kinds) == pytest.approx(
        (EPOCHS * lengths.sum() - lost) / (places * lengths.max())
    )
    kinds, steps = arm("bucketed")
    for i, one in enumerate(kinds):
        mine = [step for step in steps if step.kind == i]
        longest = max(step.examples["tokens"].max() for step in mine)
        assert longest <= one.capacity.tokens
        assert all(len(row) == 1 for step in mine for row in step.rows)
        assert all(len(step.rows) == one.rows for step in mine)
    kinds, steps = arm("packed")
    slots = len(steps) * 4 * TOKENS
    assert fill(steps, kinds) == pytest.approx(EPOCHS * lengths.sum() / slots)


def test_edges_pad_least():
    """Against every choice there is, on a few lengths."""
    lengths = np.array([1, 1, 2, 3, 3, 3, 7, 8, 8, 20])
    distinct = np.unique(lengths)

    def cost(chosen) -> int:
        return int(np.array(chosen)[np.searchsorted(chosen, lengths)].sum())

    for count in range(1, len(distinct) + 2):
        inner = itertools.combinations(distinct[:-1].tolist(), min(count, len(distinct)) - 1)
        best = min(cost([*some, 20]) for some in inner)
        found = edges(lengths, count)
        assert found == sorted(set(found)) and found[-1] == 20 and len(found) <= count
        assert cost(found) == best


def test_seeds_share_no_noise():
    """Noise is keyed by (clip, visit): no two seeds and no two epochs of one have a key alike."""
    visits = [
        {(int(e["clip"]), int(e["visit"])) for e in np.concatenate(list(found))}
        for found in (itertools.islice(pool().epochs(seed), EPOCHS) for seed in range(2))
    ]
    assert all(len(found) == EPOCHS * COUNT for found in visits)
    assert not visits[0] & visits[1]


def test_time_to_a_loss():
    assert judge.decreasing([5, 3, 4, 1, 2]) == [5, 3.5, 3.5, 1.5, 1.5]
    assert judge.time_to([0, 1, 2, 3], [5, 3, 2, 1], 2.5) == pytest.approx(1.5)
    assert judge.time_to([0, 1], [5, 3], 1) == float("inf")
