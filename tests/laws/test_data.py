"""Law 9, for data: the same batches whatever serves them, resumed anywhere; nothing lost, nothing
shifted by a bad file.

Batches are compared leaf by leaf, byte by byte.
"""

import collections
import dataclasses
import hashlib
import itertools
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.blocks import Capacity
from data_pipeline.clips import LogFrames, Rate
from data_pipeline.collection import Clips
from data_pipeline.dropping import Beta, Constant, KeepAll
from data_pipeline.errors import DataError
from data_pipeline.generated import generate
from data_pipeline.index import index
from data_pipeline.layouts import Buckets
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.manifest import SCHEMA, Manifest
from data_pipeline.plan import ROWS_PER_BLOCK, Planner
from data_pipeline.sizes import Area, Native

CLIPS = 30
BLOCK = 24  # smaller than an epoch, and no multiple of anything else here


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("law")
    generate(str(folder / "clips"), CLIPS, 0)
    index(str(folder / "clips"), str(folder / "manifest"))
    return folder


def loader(folder, **changes):
    settings = {
        "sources": (Source(manifest=str(folder / "manifest")),), "patch": (2, 4, 4),
        "tokens": 160, "text_tokens": 64, "segments": 6, "rows": 8, "seed": 0,
        "size": Native(), "block": BLOCK,
    }  # fmt: skip
    return PackedVideo(**settings | changes)


# Every way of choosing and laying out examples keeps these laws.
PLANS = {
    "packed": {},
    "buckets": {"layout": Buckets(count=3)},
    "dropping": {
        "dropping": Constant(share=0.4),
        "duration": LogFrames(low=2, high=9),
        "tokens": 48,
    },
    "parts": {"where": "n_frames > 1 or height > 16"},
}
plans = pytest.mark.parametrize("plan", PLANS)


def planned(folder, plan, **changes):
    settings = dict(PLANS[plan])
    source = Source(manifest=str(folder / "manifest"), where=settings.pop("where", ""))
    return loader(folder, sources=(source,), **settings | changes)


def take(data, count, cursor=0, **how):
    batches = data.batches(cursor, **how)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def same(one, other):
    assert one.cursor == other.cursor and one.bad == other.bad
    assert set(one.arrays) == set(other.arrays)
    for name, leaf in one.arrays.items():
        assert leaf.dtype == other.arrays[name].dtype
        assert leaf.shape == other.arrays[name].shape
        assert leaf.tobytes() == other.arrays[name].tobytes(), name


@plans
def test_batches_do_not_depend_on_threads_or_prefetch(made, plan):
    want = take(planned(made, plan, threads=1, prefetch_mib=1, memory_mib=0), 7)
    assert (
        plan != "packed" or want[-1].cursor >= 2 * ROWS_PER_BLOCK
    )  # two borders of blocks were crossed
    for threads, prefetch in ((4, 1), (4, 256)):
        found = take(planned(made, plan, threads=threads, prefetch_mib=prefetch), 7)
        for one, other in zip(want, found, strict=True):
            same(one, other)


@plans
@pytest.mark.parametrize("shards", [2, 4])
def test_batches_do_not_depend_on_the_number_of_hosts(made, shards, plan):
    data, how = planned(made, plan), {"devices": 4, "microbatches": 2}
    want = take(data, 4, **how)
    parts = [take(data, 4, shard=s, shards=shards, **how) for s in range(shards)]
    for step, one in enumerate(want):
        for name, leaf in one.arrays.items():
            together = np.concatenate([part[step].arrays[name] for part in parts], axis=1)
            assert together.tobytes() == leaf.tobytes(), name
        assert {part[step].cursor for part in parts} == {one.cursor}


def test_microbatches_hold_the_rows_of_the_step(made):
    """Balancing moves rows between devices only: each microbatch is the same set of rows."""
    data = loader(made)
    plain, spread = take(data, 3, microbatches=2), take(data, 3, microbatches=2, devices=4)
    for one, other in zip(plain, spread, strict=True):
        for micro in range(2):
            rows = [sorted(r.tobytes() for r in b.arrays["patches"][micro]) for b in (one, other)]
            assert rows[0] == rows[1]


@plans
def test_any_cursor_resumes_with_what_follows(made, plan):
    data = planned(made, plan)
    straight = take(data, 9)
    borders = [batch.cursor for batch in straight if batch.cursor % ROWS_PER_BLOCK == 0]
    assert 1 <= len(borders) < len(straight)  # steps inside of blocks, and at their ends
    fresh = planned(made, plan)
    for place, batch in enumerate(straight[:-2]):
        for one, other in zip(take(fresh, 2, batch.cursor), straight[place + 1 :], strict=False):
            same(one, other)


def test_the_seed_and_only_the_seed_decides(made, tmp_path):
    first = take(loader(made), 2)
    again = take(loader(made, cache=str(tmp_path / "elsewhere")), 2)
    for one, other in zip(first, again, strict=True):
        same(one, other)
    other = take(loader(made, seed=1), 2)
    assert other[0].arrays["id"].tobytes() != first[0].arrays["id"].tobytes()
    assert other[0].arrays["patches"].tobytes() != first[0].arrays["patches"].tobytes()


def test_every_clip_once_an_epoch(made):
    """Over three epochs each clip is seen at visits 0, 1 and 2; each ordinal once."""
    seen, ordinals, wanted = collections.Counter(), [], 3 * CLIPS
    for batch in take(loader(made, fps=4.0, size=Area(low=64, high=300)), 12):
        arrays = batch.arrays
        inside = arrays["valid"] & (arrays["ordinal"] < wanted)
        ordinals += arrays["ordinal"][inside].tolist()
        for (high, low), visit in zip(
            arrays["id"][inside].tolist(), arrays["visit"][inside].tolist(), strict=True
        ):
            seen[(high << 32) | low, visit] += 1
    assert sorted(ordinals) == list(range(wanted))
    names = [
        int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:8], "big")
        for path in (made / "clips").iterdir()
        if path.suffix in (".mp4", ".png")
    ]
    assert len(names) == CLIPS
    assert seen == {(name, visit): 1 for name in names for visit in range(3)}


@pytest.mark.parametrize("dropping", [KeepAll(), Beta(mean=0.5)])
@pytest.mark.parametrize("patch", [(1, 4, 4), (2, 4, 4), (4, 8, 8)])
def test_the_arrays_keep_their_promises(made, patch, dropping):
    data = loader(made, patch=patch, dropping=dropping)
    for batch in take(data, 4, microbatches=2):
        rows = {name: leaf.reshape(-1, *leaf.shape[2:]) for name, leaf in batch.arrays.items()}
        for row in range(data.rows):
            keeps_invariants({name: leaf[row] for name, leaf in rows.items()}, data)


def keeps_invariants(row, data):
    """The table of rows.py, said again in terms of counting."""
    segment, count = row["segment"], int(row["segment"].max())
    used = int((segment > 0).sum())
    assert (np.diff(segment[:used]) >= 0).all() and (np.diff(segment[:used]) <= 1).all()
    assert (segment[used:] == 0).all() and (segment[:used] > 0).all()
    assert row["valid"].tolist() == [True] * count + [False] * (data.segments - count)
    assert not row["patches"][used:].any() and not row["position"][used:].any()
    for slot in range(count):
        mine, grid = segment == slot + 1, row["grid"][slot]
        assert 1 <= mine.sum() <= grid.prod()
        assert data.dropping != KeepAll() or mine.sum() == grid.prod()
        assert (row["position"][mine] < grid).all() and (row["position"][mine] >= 0).all()
        flat = np.ravel_multi_index(row["position"][mine].T, grid)
        assert (np.diff(flat) > 0).all()
        assert np.array_equal(row["raster"][mine], flat)
        words = row["text_segment"] == slot + 1
        assert words.any()
        assert np.array_equal(row["text_position"][words], np.arange(words.sum()))
        assert (row["text"][words] > 0).all()  # every clip here has a caption
    assert (row["text_segment"] == 0).any() and row["text_segment"].max() == count
    assert (row["fps"][count:] == 0).all()
    if data.patch[0] > 1:
        assert not row["cells"][segment == 0].any()
        assert row["cells"][segment > 0].any(axis=1).all()
    else:
        assert "cells" not in row


@pytest.fixture
def spoilt(made, tmp_path):
    """The same clips, of which six were ruined after they had been indexed."""
    shutil.copytree(made, tmp_path / "copy")
    clips = tmp_path / "copy" / "clips"
    films, images = sorted(clips.glob("*.mp4")), sorted(clips.glob("*.png"))
    whole = films[0].read_bytes()
    films[0].write_bytes(whole[: len(whole) // 2])
    films[1].unlink()
    films[2].unlink()
    os.mkfifo(films[2])
    pieces = bytearray(films[3].read_bytes())
    for place in range(len(pieces) // 2, len(pieces), 7):  # as long as before
        pieces[place] ^= 0x55
    films[3].write_bytes(bytes(pieces))
    size = films[4].stat().st_size
    films[4].write_bytes(films[5].read_bytes()[:size].ljust(size, b"\0"))
    images[0].write_bytes(b"\x89PNG" + bytes(images[0].stat().st_size - 4))
    bad = {p.name: r for p, r in zip(films, ("changed", "missing", "not_a_file"), strict=False)}
    return tmp_path / "copy", bad | {films[3].name: None, films[4].name: None, images[0].name: None}


@plans
def test_a_bad_file_is_masked_and_moves_nothing(made, spoilt, plan):
    folder, ruined = spoilt
    seen = set()
    both = (take(planned(where, plan), 9) for where in (made, folder))
    for whole, batch in zip(*both, strict=True):
        masked = whole.arrays["valid"] & ~batch.arrays["valid"]
        assert masked.sum() == len(batch.bad)
        assert {o for _, o, _ in batch.bad} == set(batch.arrays["ordinal"][masked].tolist())
        for name, _, reason in batch.bad:
            assert ruined[name] in (None, reason)
            seen.add(name)
        for name in set(batch.arrays) - {"patches", "valid"}:
            assert batch.arrays[name].tobytes() == whole.arrays[name].tobytes(), name
        slot = np.take_along_axis(
            np.pad(masked, ((0, 0), (0, 0), (1, 0))), batch.arrays["segment"], axis=2
        )
        assert not batch.arrays["patches"][slot].any()
        assert np.array_equal(batch.arrays["patches"][~slot], whole.arrays["patches"][~slot])
        assert batch.cursor == whole.cursor
    assert seen == set(ruined)


def test_what_is_known_to_be_bad_is_not_opened(made, spoilt):
    """A missing file that is known keeps the reason 'known': nobody looked. A whole one is masked
    too, so that a file that heals does not change a resumed run."""
    folder, _ = spoilt
    (found,) = take(loader(folder), 1)
    known = [(name, ordinal) for name, ordinal, _ in found.bad]
    assert known
    for data in (loader(folder), loader(made)):
        (again,) = take(data, 1, known_bad=known)
        same(again, found._replace(bad=tuple((*one, "known") for one in known)))


def test_mostly_bad_data_ends_the_run(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    for path in sorted((tmp_path / "copy" / "clips").glob("*.mp4"))[:14]:
        path.write_text("ruined")
    data = loader(tmp_path / "copy", max_bad=0.3)
    with pytest.raises(DataError, match=r"changed \d+.*0\.3.*\.mp4") as error:
        take(data, 40)
    assert error.value.code == 3
    assert 1 <= str(error.value).count(".mp4") <= 5
    assert len(take(dataclasses.replace(data, max_bad=0.9), 40)) == 40


def test_held_out_clips_that_are_all_bad_are_named(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    for path in (tmp_path / "copy" / "clips").iterdir():
        if path.suffix in (".mp4", ".png"):
            path.write_bytes(bytes(path.stat().st_size))
    data = loader(tmp_path / "copy", holdout=0.5)
    said = rf"not one of {data.held_out} held-out clips .*\(format {data.held_out}\).*/clips/"
    with pytest.raises(DataError, match=said) as error:
        data.validation(64)
    assert error.value.code == 3 and str(error.value).count(" times)") == 5


def table_of(n):
    """A synthetic source: nothing of it exists on disk."""
    i = np.arange(n)
    rows = pa.Table.from_pylist([], schema=SCHEMA)
    return Clips(
        manifest=Manifest(rows, None, None), names=[f"clip {k}" for k in i],
        id=np.stack([i * 2654435761 % 2**32, i], axis=1).astype(np.uint64),
        first=np.zeros(n), end=np.full(n, np.inf), frames=1 + i * 7 % 33,
        rate=np.where(i * 7 % 33 > 0, 8.0, 0.0),
        still=i * 7 % 33 == 0, height=64 + i * 13 % 100, width=64 + i * 29 % 100,
        bytes=np.ones(n), captions=["x"] * (2 * n), starts=2 * np.arange(n + 1),
        words=1 + np.arange(2 * n) % 9,
    )  # fmt: skip


def test_the_order_of_data_never_changes():
    """What seed 0 draws and how it is packed, frozen: change these digests only together with
    `plan.SCHEME`, and say so in the release's notes, for every run in the world changes its data.
    """
    planner = Planner(
        sources=(table_of(100), table_of(37)), train=(np.arange(100), np.arange(37)),
        weights=(3.0, 1.0), seed=0, size=Area(low=2000, high=9000), rate=Rate(fps=6.0), block=500,
        rows=8,
        capacity=Capacity(patch=(2, 8, 8), tokens=1024, text_tokens=64, segments=16),
    )  # fmt: skip
    drawn = planner.order.draw(0, 1000)
    stream = hashlib.sha256(np.stack(drawn).astype("<i8").tobytes()).hexdigest()
    rows = hashlib.sha256(b"".join(planner.make(k).examples.tobytes() for k in (0, 3))).hexdigest()
    assert (stream[:16], rows[:16]) == ("bd3678a0765c7d57", "74a5a2653d54d4c6")
