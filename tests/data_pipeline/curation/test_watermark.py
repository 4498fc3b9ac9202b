"""Marks that were drawn over some sources and not over others, most of all on still cameras."""

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.curation.stage import MARK
from data_pipeline.curation.watermark import LEAST, Watermark, canvas
from data_pipeline.manifest import SCHEMA
from tests.data_pipeline.curation.scenes import colours, pan, row, texture, write_on

SIZE = (180, 320)
CLIPS = 26


def footage(seed):
    """Two frames of a still camera, or of one that moves: every second each."""
    if seed % 2:
        return pan(0.5, frames=2, rate=4, size=SIZE, seed=seed)
    return np.repeat(colours(texture(*SIZE, seed, grain=6.0))[None], 2, axis=0)


def marked(video, alpha, at=(190, 140)):
    return write_on(video, "STOCK-CLIPS", size=20, at=at, alpha=alpha)[0]


def learn(sources):
    """(what is learnt, {source: its clips}) of {source: clips}."""
    videos = [(name, video) for name, clips in sources.items() for video in clips]
    rows = [
        row(video, source=name, clip_id=f"{place:03d}", uri="a")
        for place, (name, video) in enumerate(videos)
    ]
    blank = dict.fromkeys(SCHEMA.names)
    table = pa.Table.from_pylist([blank | dict(one) for one in rows], schema=SCHEMA)
    watermark = Watermark(clips=CLIPS)
    some = watermark.sample(table)
    chosen = [int(name) for name in some["clip_id"].to_pylist()]
    edges = [watermark.stage(videos[place][1], rows[place])[MARK] for place in chosen]
    return watermark.learn(some, edges)


def score(stage, video, source):
    return stage(video, row(video, source=source))["watermark"]


@pytest.mark.parametrize("alpha", [0.3, 0.6])
def test_a_mark_is_learnt_and_clips_are_scored_by_it(alpha):
    clean = [footage(seed) for seed in range(CLIPS)]
    bearing = [marked(video, alpha) for video in clean]
    stage = learn({"marked": bearing, "clean": clean})
    others = [footage(seed) for seed in range(1000, 1010)]
    assert min(score(stage, marked(one, alpha), "marked") for one in others) > 0.5
    assert max(score(stage, one, "marked") for one in others) < 0.25
    # At another place it is not the mark of this source.
    assert max(score(stage, marked(one, alpha, (20, 20)), "marked") for one in others) < 0.25
    # What still cameras see is no mark, however still.
    assert {score(stage, one, "clean") for one in others + bearing} == {0.0}


def test_a_mark_is_found_at_any_size_of_the_picture():
    large = [np.kron(footage(seed), np.ones((1, 2, 2, 1), np.uint8)) for seed in range(CLIPS + 1)]
    bearing = [write_on(one, "STOCK-CLIPS", size=40, at=(380, 280), alpha=0.6)[0] for one in large]
    small = [one.reshape(-1, 180, 2, 320, 2, 3).mean(axis=(2, 4)) for one in bearing[:CLIPS]]
    stage = learn({"s": [one.astype(np.uint8) for one in small]})
    assert score(stage, bearing[-1], "s") > 0.6 and score(stage, large[-1], "s") < 0.25


def test_of_few_clips_nothing_is_learnt():
    few = [marked(footage(seed), 0.6) for seed in range(LEAST - 1)]
    stage = learn({"few": few, "many": [footage(seed) for seed in range(LEAST)]})
    assert score(stage, few[0], "few") is None
    assert score(stage, few[0], "unheard of") is None
    assert score(stage, few[0], "many") == 0.0
    tall = np.swapaxes(few[0], 1, 2)
    assert score(stage, tall, "many") is None  # of this shape none was seen


def test_a_sample_is_spread_over_each_source():
    rows = [
        dict.fromkeys(SCHEMA.names)
        | {"clip_id": f"{n:04d}", "source": source, "height": height, "width": width}
        for n in range(300)
        for source, height, width in (("a", 90, 160), ("a", 720, 1280), ("b", 160, 90))
    ] + [dict.fromkeys(SCHEMA.names) | {"clip_id": "z", "source": "c", "height": 9, "width": 16}]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    some = Watermark(clips=50).sample(table).to_pylist()
    # Two sizes of one shape are one kind; a source of one clip is none.
    assert [sum(one["source"] == name for one in some) for name in "abc"] == [50, 50, 0]
    numbers = [int(one["clip_id"]) for one in some if one["source"] == "b"]
    assert np.ptp(numbers) == 299 and np.diff(numbers).max() <= 7
    assert len(Watermark().sample(table.slice(0, 5))) == 0


def test_shapes():
    assert canvas(720, 1280) == canvas(1080, 1920) == (180, 320)
    assert canvas(1280, 720) == (320, 180) and canvas(50, 50) == (180, 180)
    assert canvas(1, 100_000) == (180, 720)


def test_too_small_a_sample_is_a_problem():
    assert Watermark().problems() == []
    assert "24" in Watermark(clips=8).problems()[0]
