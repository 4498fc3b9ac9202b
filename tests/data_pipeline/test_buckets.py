"""Buckets: one example a row, steps of one length; nothing lost, and what the edges promise."""

import itertools

import numpy as np
import pytest

from data_pipeline.blocks import Capacity, Kind
from data_pipeline.layouts import CANDIDATES, Buckets, edges, queue
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.plan import ROWS_PER_BLOCK
from data_pipeline.serve import Steps
from data_pipeline.sizes import Native
from tests.data_pipeline import synthetic


def loader(folder, **changes):
    settings = {
        "sources": (Source(manifest=str(folder)),), "patch": (2, 4, 4), "tokens": 256,
        "text_tokens": 64, "segments": 8, "rows": 4, "seed": 0, "size": Native(), "block": 128,
        "layout": Buckets(count=4),
    }  # fmt: skip
    return PackedVideo(**settings | changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("made"), 100)


def steps_of(data, blocks=2):
    """(kind, rows' examples) of the steps of the first blocks."""
    steps = Steps(data._plans, 0, data.kinds)
    found = []
    for step in itertools.count():
        place = steps.locate(step)
        if place.block == blocks:
            return found
        found.append((place.kind, steps.examples(step)[0]))


def test_every_example_has_a_row_of_its_buckets_length(made):
    data = loader(made)
    lengths = [kind.capacity.tokens for kind in data.kinds]
    assert lengths == sorted(set(lengths)) and len(lengths) <= 4 and lengths[-1] == 256
    for kind in data.kinds:  # as many tokens a step as there is room for, whatever the length
        assert kind.rows == 4 * (256 // kind.capacity.tokens)
    ordinals = []
    for kind, rows in steps_of(data):
        assert len(rows) == kind.rows and max(map(len, rows)) == 1
        tokens = np.concatenate(rows)["tokens"]
        below = [n for n in lengths if n < kind.capacity.tokens]
        assert (tokens <= kind.capacity.tokens).all() and (tokens > max([0, *below])).all()
        ordinals += np.concatenate(rows)["ordinal"].tolist()
    assert sorted(ordinals) == list(range(2 * 128))


def test_only_the_last_steps_of_a_block_have_empty_rows(made):
    for _, steps in itertools.groupby(
        steps_of(loader(made)), key=lambda step: step[1][0]["ordinal"][0] // 128
    ):
        filled = [(kind, sum(map(len, rows))) for kind, rows in steps]
        short = [place for place, (kind, count) in enumerate(filled) if count < kind.rows]
        assert short == list(range(len(filled) - len(short), len(filled)))
        assert len({filled[place][0].capacity.tokens for place in short}) == len(short)


def test_lengths_are_whole_multiples(made):
    for kind in loader(made, layout=Buckets(count=5, multiple=16)).kinds:
        assert kind.capacity.tokens % 16 == 0


def test_captions_longer_than_any_that_was_measured_are_cut(made):
    data = loader(made)
    room = data.kinds[0].capacity.text_tokens - 1
    words = np.concatenate([np.concatenate(rows)["words"] for _, rows in steps_of(data)])
    assert words.max() == room < data.text_tokens


def waiting(tokens, kinds):
    """The queues themselves, carried out: lists of examples, in the order in which steps leave."""
    queues, done = [[] for _ in kinds], []
    for index, length in enumerate(tokens):
        fits = [i for i, kind in enumerate(kinds) if kind.capacity.tokens >= length]
        if length and fits:
            queues[fits[0]].append(index)
            if len(queues[fits[0]]) == kinds[fits[0]].rows:
                done += queues[fits[0]]
                queues[fits[0]] = []
    return done + [index for left in queues for index in left]


def test_rows_are_those_of_queues_that_fill():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 60, 500)
    kinds = [
        Kind(Capacity(patch=(1, 1, 1), tokens=n, text_tokens=2, segments=1), rows)
        for n, rows in ((7, 9), (20, 5), (31, 4), (60, 1))
    ]
    row = queue(tokens, kinds)
    assert (row[tokens == 0] == -1).all()
    assert np.argsort(row, kind="stable")[(tokens == 0).sum() :].tolist() == waiting(tokens, kinds)


def test_many_lengths_are_chosen_from_those_seen_most():
    """Of 9,000 distinct lengths, against equal shares and equal steps: fill is no worse."""
    lengths = np.random.default_rng(1).permutation(np.geomspace(1, 10**6, 9000).astype(int))
    assert len(np.unique(lengths)) > CANDIDATES

    def fill(chosen) -> float:
        chosen = np.asarray(chosen)
        return lengths.sum() / chosen[np.searchsorted(chosen, lengths)].sum()

    found = edges(lengths, 8)
    assert found[-1] == lengths.max() and len(found) == 8
    shares = np.quantile(lengths, np.arange(1, 9) / 8, method="higher")
    assert fill(found) > max(fill(shares), fill(np.linspace(0, lengths.max(), 9)[1:]))
    # Nearly the best there is: of pieces of equal ratio that many, the mean over the longest.
    ratio = 10 ** (6 / 8)
    assert fill(found) > (1 - 1 / ratio) / np.log(ratio)


def test_batches_are_of_their_kinds_and_resume(shapes):
    data = loader(shapes, block=48)
    batches = data.batches()
    read = list(itertools.islice(batches, 14))
    batches.close()
    assert len({batch.arrays["segment"].shape for batch in read}) > 2
    assert read[-1].cursor >= ROWS_PER_BLOCK  # the border of a block was crossed
    for (kind, _), batch in zip(steps_of(data, 2), read, strict=False):
        assert batch.arrays["segment"].shape == (1, kind.rows, kind.capacity.tokens)
        assert batch.arrays["valid"].shape == (1, kind.rows, 1)
    for place in (0, 3, 9):
        batches = data.batches(read[place].cursor)
        (again,) = itertools.islice(batches, 1)
        batches.close()
        assert again.cursor == read[place + 1].cursor
        for name, leaf in read[place + 1].arrays.items():
            assert leaf.tobytes() == again.arrays[name].tobytes(), name


def test_the_rows_of_a_step_are_part_of_the_plan(made):
    """A packed row is the same in steps of any number of rows; a bucket's steps are not."""
    one, other = (loader(made, rows=rows).fingerprint() for rows in (4, 8))
    assert one != other
