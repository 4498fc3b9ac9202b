"""Small files that cost much: refused before they are decoded, or stopped by a budget."""

import dataclasses

import pytest

from data_pipeline.decode import View, decode, read_view
from data_pipeline.errors import BadClip
from data_pipeline.files import Limits
from data_pipeline.places import Place
from data_pipeline.probe import look, probe
from data_pipeline.sources.entry import is_still
from data_pipeline.workers import Workers
from tests.data_pipeline.bombs import BOMBS, LARGE, countless, solid
from tests.data_pipeline.corpus import ACCEPTED, REFUSED
from tests.data_pipeline.processes import watched

MIB = 1 << 20
BUDGET = 256  # MiB
BASELINE = 64 * MIB  # what a decoder holds before it has seen any file, and some more


def classes(path, decoder):
    """What a file is called when it is measured, and when its first frame is decoded; the most
    memory that a decoder held meanwhile."""
    still, run = is_still(path.name), decoder.start(look, read_view)
    size = (4, 4)
    view = View(rate=0, frames=1, stored=size, resized=size, size=size)
    found = []
    with watched() as held:
        for attempt in (
            lambda: probe(Place.of(path), still=still, limits=decoder.limits, run=run),
            lambda: decode(Place.of(path), view, still=still, limits=decoder.limits, run=run),
        ):
            try:
                attempt()
                found.append("ok")
            except BadClip as bad:
                found.append(bad.reason)
    return found, max(held.values(), default=0)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_within_the_budget(name, tmp_path):
    make, class_ = BOMBS[name]
    make(tmp_path / name)
    found, most = classes(tmp_path / name, Workers(memory_mib=BUDGET))
    assert found == [class_, class_]
    assert 0 < most <= 1.2 * BUDGET * MIB


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_large_bomb_is_refused_within_the_budget(name, tmp_path):
    make, class_ = LARGE[name]
    make(tmp_path / name)
    found, most = classes(tmp_path / name, Workers(memory_mib=BUDGET))
    # Whoever asks for the first frame of a million never sees the others.
    assert found == [class_, "size" if name == "countless.avi" else class_]
    assert 0 < most <= 1.2 * BUDGET * MIB


@pytest.mark.parametrize("budget", [20, 32])
def test_what_the_limits_let_pass_the_budget_stops(budget, tmp_path):
    """Frames of 9 million pixels, 14 MiB each, of which H.264 keeps some."""
    solid("libx264", 4096, 2304, "yuv420p", "mp4")(tmp_path / "a.mp4")
    small = {"resized": (9, 16), "size": (9, 16)}
    view = View(rate=8.0, frames=4, stored=(2304, 4096), **small)
    decoder = Workers(memory_mib=budget, limits=Limits(pixels=1 << 30))
    run = decoder.start(read_view)
    with watched() as held, pytest.raises(BadClip) as bad:
        decode(Place.of(tmp_path / "a.mp4"), view, still=False, limits=decoder.limits, run=run)
    # H.264 calls some of its frames damaged when there was no room for them.
    assert bad.value.reason in ("memory", "corrupt")
    # One that had little left afterwards has ended by now, and may have been missed.
    assert max(held.values(), default=0) <= 1.2 * budget * MIB + BASELINE
    more = dataclasses.replace(decoder, memory_mib=1024).start(read_view)
    assert decode(
        Place.of(tmp_path / "a.mp4"), view, still=False, limits=decoder.limits, run=more
    ).any()


def test_too_many_frames_are_refused_by_count(tmp_path):
    countless(3000)(tmp_path / "a.avi")
    for most, class_ in ((2999, "too_large"), (3000, "ok")):
        decoder = Workers(memory_mib=BUDGET, limits=Limits(frames=most))
        assert classes(tmp_path / "a.avi", decoder)[0][0] == class_


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REFUSED, *ACCEPTED], ids=lambda name: ascii(name)[:24])
def test_the_whole_corpus_within_the_budget(name, tmp_path):
    """Each file gets its class from a decoder, too, which needs no more than it may."""
    make = (REFUSED | ACCEPTED)[name][0]
    make(tmp_path / name)
    (class_, _), most = classes(tmp_path / name, Workers(memory_mib=BUDGET))
    assert class_ in (REFUSED[name][1] | {"ok"} if name in REFUSED else {"ok"})
    assert most <= 1.2 * BUDGET * MIB
