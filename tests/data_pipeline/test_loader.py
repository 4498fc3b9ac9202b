"""The loader as its users see it: mistakes, held-out data, reports, real pixels."""

import dataclasses
import itertools
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from data_pipeline import loaders, rows, serve
from data_pipeline.clips import LogFrames, LogRate, LogSeconds, Strides
from data_pipeline.collection import split
from data_pipeline.decode import decode
from data_pipeline.dropping import Beta, ByLength, Constant, Scheduled
from data_pipeline.errors import DataError
from data_pipeline.files import Limits
from data_pipeline.index import index
from data_pipeline.layouts import Buckets
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.mixture import ByTokens
from data_pipeline.serve import Reader
from data_pipeline.sizes import Area, Crop, Native, NormalSide, Side
from data_pipeline.workers import InProcess, Workers
from tests.data_pipeline.corpus import film, lossless, mp4


def loader(folder, **changes):
    settings = {
        "sources": (Source(manifest=str(folder)),), "patch": (2, 4, 4), "tokens": 256,
        "text_tokens": 64, "segments": 8, "rows": 4, "seed": 0, "size": Native(), "block": 32,
    }  # fmt: skip
    return PackedVideo(**settings | changes)


def first(data, count=1, **how):
    batches = data.batches(**how)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": 0}, ("tokens", "0")),
        ({"tokens": 2.5}, ("tokens", "2.5")),
        ({"text_tokens": 1}, ("text_tokens", "1")),
        ({"segments": -1}, ("segments", "-1")),
        ({"rows": 0}, ("rows", "0")),
        ({"rows": 6}, ("rows", "6", "4 devices")),
        ({"rows": 64}, ("block", "32", "64")),
        ({"block": 1 << 21}, ("block",)),
        ({"seed": -1}, ("seed", "-1")),
        ({"threads": 0}, ("threads",)),
        ({"prefetch_mib": 0}, ("prefetch_mib",)),
        ({"memory_mib": -1}, ("memory_mib",)),
        ({"fps": 0.0}, ("fps", "0.0")),
        ({"fps": float("nan")}, ("fps", "nan")),
        ({"holdout": 1.0}, ("holdout", "1.0")),
        ({"holdout": -0.1}, ("holdout", "-0.1")),
        ({"holdout": 0.999999}, ("holdout", "no clip")),
        ({"max_bad": float("inf")}, ("max_bad", "inf")),
        ({"max_bad_examples": -1}, ("max_bad_examples", "-1")),
        ({"verify": "md5"}, ("verify", "md5", "size, sha256")),
        ({"decoder": Workers(seconds=-1.0)}, ("decoder.seconds", "-1.0")),
        ({"decoder": InProcess(limits=Limits(pixels=0))}, ("limits.pixels", "0")),
        ({"patch": (2, 4)}, ("patch", "(2, 4)")),
        ({"patch": (2, 4, 0)}, ("patch",)),
        ({"patch": (2, 64, 4)}, ("patch", "height", "20")),
        ({"patch": (99, 4, 4)}, ("patch", "frames")),
        ({"size": Crop(height=30, width=16)}, ("30 x 16", "4 x 4")),
        ({"size": Area(low=0, high=5)}, ("area", "0")),
        ({"size": Area(low=9, high=5)}, ("9", "5")),
        ({"size": Area(low=9, high=float("inf"))}, ("inf",)),
        ({"size": Side(low=-1, high=5)}, ("side", "-1")),
        ({"size": NormalSide(low=5, high=5)}, ("NormalSide", "5")),
        ({"size": NormalSide(low=5, high=9, std=0)}, ("std 0",)),
        ({"fps": LogRate(low=3, high=2)}, ("fps", "3", "2")),
        ({"fps": Strides(choices=(1, 0))}, ("strides", "(1, 0)")),
        ({"duration": LogSeconds(low=0, high=2)}, ("duration", "seconds")),
        ({"duration": LogFrames(low=2, high=1.5)}, ("duration", "1.5")),
        ({"dropping": Constant(share=1.0)}, ("share", "1.0")),
        ({"dropping": Beta(mean=0.9)}, ("mean 0.9", "most 0.8")),
        ({"dropping": ByLength(low=0, high=0.5, shortest=9, longest=9)}, ("9", "shortest")),
        (
            {"dropping": Scheduled(law=Constant(share=0.5), middle=-1, width=1)},
            ("-1", "middle"),
        ),
        ({"pairs": 0.0}, ("pairs", "0.0")),
        ({"pairs": 1e-9}, ("pairs", "single token")),
        ({"layout": Buckets(count=0)}, ("count", "0")),
        ({"sources": ()}, ("sources",)),
        ({"sources": (Source(manifest="/nowhere"),)}, ("/nowhere", "index")),
    ],
)
def test_a_mistake_in_the_settings_is_said(shapes, changes, said):
    data = loader(shapes, **changes)
    found = data.problems(devices=4)
    assert len(found) == 1, found
    for word in said:
        assert word in found[0]
    with pytest.raises(DataError) as error:
        first(data, devices=4)
    assert error.value.code == 2


def test_all_mistakes_are_said_at_once(shapes):
    bad = Source(manifest=str(shapes), weight=-1.0)
    data = loader(shapes, tokens=0, fps=-1.0, holdout=7.0, sources=(bad, Source(manifest="/no")))
    assert len(data.problems()) == 5
    assert loader(shapes).problems(devices=2, microbatches=2) == []


@pytest.mark.parametrize("how", [{"shards": 3}, {"shard": 2, "shards": 2}, {"cursor": -1}])
def test_a_mistake_in_the_call_is_said(shapes, how):
    with pytest.raises(DataError):
        loader(shapes).batches(devices=4, **how)


def test_the_fingerprint_survives_json_and_sees_every_change(shapes, tmp_path):
    data = loader(shapes, holdout=0.1)
    assert json.loads(json.dumps(data.fingerprint())) == data.fingerprint()
    dropping = Scheduled(law=Beta(mean=0.3), middle=9, width=9)
    for name, value in {
        "patch": (1, 4, 4), "tokens": 300, "text_tokens": 70, "segments": 9, "pairs": 0.5,
        "seed": 1, "size": Area(low=100, high=200), "fps": 5.0,
        "duration": LogFrames(low=1, high=2), "dropping": dropping,
        "layout": Buckets(count=2), "mix": ByTokens(), "holdout": 0.2, "block": 33,
        "sources": (Source(manifest=str(shapes), where="n_frames > 1"),),
    }.items():  # fmt: skip
        other = dataclasses.replace(data, **{name: value})
        assert other.fingerprint() != data.fingerprint(), name
    same = {
        "threads": 1, "prefetch_mib": 9, "memory_mib": 3, "cache": str(tmp_path), "max_bad": 0.1,
        "rows": 8, "max_bad_examples": 3, "verify": "sha256", "decoder": InProcess(),
    }  # fmt: skip
    assert dataclasses.replace(data, **same).fingerprint() == data.fingerprint()


def test_a_set_that_fits_in_memory_is_decoded_once(shapes, monkeypatch):
    """Epoch after epoch the same arrays as without memory."""

    def read(memory_mib):
        decoded = []  # a list for each loader: one that was closed may still be at work

        def counted(path, view, *, still, limits, run):
            decoded.append(path)
            return decode(path, view, still=still, limits=limits, run=run)

        monkeypatch.setattr(loaders, "decode", counted)
        return first(loader(shapes, threads=1, memory_mib=memory_mib), 12), decoded

    forgetful, often = read(0)
    mindful, seldom = read(64)
    assert len(seldom) == len(set(seldom)) <= 24 < len(often)
    for a, b in zip(forgetful, mindful, strict=True):
        for name, leaf in a.arrays.items():
            assert leaf.tobytes() == b.arrays[name].tobytes(), name


def test_another_view_of_a_clip_is_decoded_anew(tmp_path):
    """A film that is longer than a row is seen in parts: what is remembered of one is no other."""
    (tmp_path / "in").mkdir()
    lossless(tmp_path / "in" / "a.mkv", film(64, 16, 24), [100 * t for t in range(64)])
    index(str(tmp_path / "in"), str(tmp_path / "m"))
    parts = [
        [batch.arrays["patches"].tobytes() for batch in first(data, 12)]
        for data in (loader(tmp_path / "m", memory_mib=mib, tokens=96) for mib in (0, 256))
    ]
    assert parts[0] == parts[1] and len(set(parts[0])) > 3


def test_memory_is_bounded_in_bytes():
    made = []

    def one(path, view, *, still):
        made.append(path)
        return np.zeros((1, 512, 512, 3), np.uint8)  # three quarters of a MiB

    recall = serve.remembering(one, 2)
    for name in ("a", "b", "b", "c", "c", "b", "a"):
        recall(Path(name), None, still=False)
    assert [str(path) for path in made] == ["a", "b", "c", "a"]


def names(batch):
    return {tuple(pair) for pair in batch.arrays["id"][batch.arrays["valid"]].tolist()}


def test_held_out_clips_are_never_trained_on(shapes):
    data = loader(shapes, holdout=0.3)
    held = data.validation(8)
    assert held.arrays["patches"].shape[:2] == (1, 8)
    trained = set().union(*(names(batch) for batch in first(data, 16)))
    assert names(held) and not names(held) & trained
    assert len(names(held)) + len(trained) == 24
    assert not held.arrays["visit"].any()
    other = dataclasses.replace(data, seed=5).validation(8)
    for name, leaf in held.arrays.items():
        assert leaf.tobytes() == other.arrays[name].tobytes(), name
    with pytest.raises(DataError, match="holds out none") as error:
        dataclasses.replace(data, holdout=0.0).validation(8)
    assert error.value.code == 2


def test_few_clips_can_be_held_out_too(tmp_path):
    for seed in range(3):
        mp4(_folder(tmp_path / "clips") / f"{seed}.mp4", seed=seed, frames=3 + seed)
    index(str(tmp_path / "clips"), str(tmp_path / "manifest"))
    data = loader(tmp_path / "manifest", holdout=0.01)
    assert data.problems() == []
    assert len(names(data.validation(2))) == 1
    assert len(set().union(*(names(batch) for batch in first(data, 2)))) == 2


def _folder(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_the_report_says_what_the_batches_will_be(shapes):
    data = loader(shapes, tokens=512)
    said, batches = data.report(steps=6, devices=2), first(data, 6)
    used = [(batch.arrays["segment"] > 0).mean() for batch in batches]
    assert said["fill"] == pytest.approx(np.mean(used))
    assert said["tokens_per_step"] == pytest.approx(np.mean(used) * 4 * 512)
    words = [(batch.arrays["text_segment"] > 0).mean() for batch in batches]
    assert said["text_fill"] == pytest.approx(np.mean(words))
    valid = np.concatenate([batch.arrays["valid"].reshape(-1, 8) for batch in batches])
    assert said["examples_per_row"] == pytest.approx(valid.sum(axis=1).mean())
    assert said["examples_per_row_max"] == valid.sum(axis=1).max()
    still = np.concatenate([b.arrays["fps"][b.arrays["valid"]] for b in batches]) == 0
    assert said["images"] == pytest.approx(still.mean())
    assert said["empty_rows"] == pytest.approx((valid.sum(axis=1) == 0).mean())
    assert 1 <= said["straggler_ratio"] <= said["straggler_unbalanced"]
    assert said["drops"] == {"trimmed": 0, "shrunk": 0, "dropped": 0, "text_cut": 0}
    json.dumps(said)
    tight = loader(shapes, tokens=48, text_tokens=4).report(steps=6)
    assert tight["drops"]["trimmed"] > 0 and tight["drops"]["text_cut"] > 0


def test_pixels_arrive_as_they_are_in_the_files(tmp_path):
    """Lossless files, sizes that do not divide: the middle of each, to the bit."""
    clips, truth = _folder(tmp_path / "clips"), {}
    for seed, size in enumerate([(5, 13, 18), (1, 9, 22), (8, 16, 8)]):
        video = film(*size, seed=seed)
        if size[0] == 1:
            path = clips / f"{seed}.png"
            PIL.Image.fromarray(video[0]).save(path)
        else:
            path = lossless(clips / f"{seed}.mkv", video, list(range(0, 100 * size[0], 100)))
        top, left = size[1] % 4 // 2, size[2] % 4 // 2
        height, width = size[1] // 4 * 4, size[2] // 4 * 4
        truth[size[0]] = video[:, top : top + height, left : left + width]
    index(str(clips), str(tmp_path / "manifest"))
    (batch,) = first(loader(tmp_path / "manifest"))
    seen = set()
    for row in range(4):
        arrays = {name: leaf[0, row] for name, leaf in batch.arrays.items()}
        for video in rows.unpack(arrays, (2, 4, 4)):
            assert np.array_equal(video, truth[len(video)])
            seen.add(len(video))
    assert seen == {1, 5, 8}
    rate = batch.arrays["fps"][batch.arrays["valid"]]
    assert set(rate.tolist()) == {0.0, 10.0}


def test_captions_leave_one_slot_free(tmp_path):
    """Captions of exactly half a row: two would fill it, so every row holds one."""
    for seed in range(6):
        name = mp4(_folder(tmp_path / "clips") / f"{seed}.mp4", seed=seed, height=8, width=8)
        name.with_suffix(".txt").write_text("zq wx yv uj")
    index(str(tmp_path / "clips"), str(tmp_path / "manifest"))
    data = loader(tmp_path / "manifest")
    words = len(data.tokenizer.encode("zq wx yv uj"))
    for text_tokens, most in ((2 * words, 1), (2 * words + 1, 2)):
        batches = first(dataclasses.replace(data, text_tokens=text_tokens), 2)
        segments = np.concatenate([batch.arrays["text_segment"][0] for batch in batches])
        assert segments.max() == most
        assert (segments == 0).any(axis=1).all()


def test_two_sources_are_mixed_by_weight(shapes, tmp_path):
    for seed in range(2):
        mp4(_folder(tmp_path / "clips") / f"{seed}.mp4", seed=seed)
    index(str(tmp_path / "clips"), str(tmp_path / "manifest"))
    both = (Source(manifest=str(shapes)), Source(manifest=str(tmp_path / "manifest"), weight=3.0))
    data = loader(shapes, sources=both, cache=str(tmp_path / "plans"))
    batches = first(data, 12)
    source = np.concatenate([b.arrays["source"][b.arrays["valid"]] for b in batches])
    ordinal = np.concatenate([b.arrays["ordinal"][b.arrays["valid"]] for b in batches])
    whole = source[ordinal < 64]
    assert len(whole) == 64 and (whole == 1).sum() == 48


def test_closing_leaves_no_thread_and_no_fault(shapes):
    before = threading.active_count()
    batches = loader(shapes, threads=3).batches()
    next(batches)
    batches.close()
    loader(shapes).batches().close()
    until = time.monotonic() + 60  # a clip that is under way is decoded to its end
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_no_more_is_decoded_ahead_than_was_allowed(shapes, monkeypatch):
    """256 tokens of 96 bytes, twice for the mask: 49 KiB a row, so 1 MiB holds about 20 rows."""
    served, really = [], Reader.read

    def counted(self, *args):
        served.append(1)
        return really(self, *args)

    monkeypatch.setattr(Reader, "read", counted)
    batches = loader(shapes, rows=16, prefetch_mib=1, threads=2).batches()
    next(batches)
    time.sleep(0.5)
    batches.close()
    assert 16 < len(served) <= 16 + 21 + 2


def test_a_spoilt_plan_is_made_again(shapes, tmp_path):
    data = loader(shapes, cache=str(tmp_path / "plans"))
    (want,) = first(data)
    (file,) = (tmp_path / "plans").rglob("block-00000000.npy")
    for broken in (b"", file.read_bytes()[:-100], b"\x80\x04pickle"):
        file.unlink()  # the old one may still be mapped by a thread on its way out
        file.write_bytes(broken)
        (found,) = first(loader(shapes, cache=str(tmp_path / "plans")))
        assert found.arrays["patches"].tobytes() == want.arrays["patches"].tobytes()
    assert not list((tmp_path / "plans").rglob("*.part"))


def test_a_plan_that_cannot_be_written_is_said(shapes, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cache=") as error:
        first(loader(shapes, cache=str(tmp_path / "file" / "plans")))
    assert error.value.code == 6


def test_what_fits_nowhere_is_said(tmp_path):
    PIL.Image.new("RGB", (900, 4)).save(_folder(tmp_path / "clips") / "thin.png")
    index(str(tmp_path / "clips"), str(tmp_path / "manifest"))
    data = loader(tmp_path / "manifest", patch=(1, 4, 4), tokens=100)
    with pytest.raises(DataError, match="raise tokens") as error:
        first(data)
    assert error.value.code == 2


def test_clips_and_manifest_move_together(shapes, tmp_path):
    shutil.copytree(shapes.parent, tmp_path / "moved")
    (batch,) = first(loader(tmp_path / "moved" / "manifest"))
    assert batch.bad == ()


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.999])
def test_a_single_clip_is_trained_on(fraction):
    """Whatever its hash; of two clips one is held out."""

    class Counted:
        def __init__(self, *hashes):
            self.id = np.array([(0, value) for value in hashes], np.uint64)

        def __len__(self):
            return len(self.id)

    for value in (0, 2**63, 2**64 - 1):
        train, held = split([Counted(value)], fraction)
        assert train[0].tolist() == [0] and held[0].tolist() == []
    train, held = split([Counted(2**64 - 1, 2**64 - 2)], 0.1)
    assert train[0].tolist() == [0] and held[0].tolist() == [1]
