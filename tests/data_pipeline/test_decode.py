"""The frames that come out are those of the file at the times asked for, or there is a reason."""

import errno
import os

import numpy as np
import PIL.Image
import pytest

from data_pipeline import decode as decoding
from data_pipeline import files
from data_pipeline import probe as probing
from data_pipeline.decode import View
from data_pipeline.errors import BadClip
from data_pipeline.files import Limits
from data_pipeline.places import Place
from tests.data_pipeline.corpus import (
    CLOCKWISE,
    IDENTITY,
    film,
    lossless,
    mp4,
    patched,
    reordered,
)


def decode(path, view, **how):
    return decoding.decode(Place.of(path), view, **how)


def probe(path, **how):
    return probing.probe(Place.of(path), **how)


def view(frames, stored, **more):
    """Everything of a file, unless `more` says otherwise."""
    return View(
        **{"rate": 10.0, "frames": frames, "stored": stored, "resized": stored, "size": stored}
        | more
    )


@pytest.fixture(scope="module")
def even(tmp_path_factory):
    """20 frames at 10 a second, and the exact pixels."""
    path = tmp_path_factory.mktemp("even") / "even.mkv"
    video = film(20)
    return lossless(path, video, list(range(0, 2000, 100))), video


@pytest.mark.parametrize("start", [0, 1, 7, 19])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_frames_by_time_are_exact(even, start, stride):
    path, video = even
    want = video[start::stride]
    found = decode(
        path,
        view(len(want), (16, 24), offset=start / 10, rate=10 / stride),
        still=False,
    )
    assert np.array_equal(found, want)


def test_a_seek_within_groups_of_pictures_is_exact(tmp_path):
    """H.264 with B-frames: each window equals that part of decoding from the beginning."""
    path = mp4(tmp_path / "a.mp4", frames=40)
    found = probe(path, still=False)
    rate = found.fps_num / found.fps_den
    whole = decode(path, view(40, (16, 24), first=found.start_s, rate=rate), still=False)
    for start in (1, 13, 29, 38):
        part = view(2, (16, 24), first=found.start_s, offset=start / rate, rate=rate)
        assert np.array_equal(decode(path, part, still=False), whole[start : start + 2])


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.avi", "mpeg4"), ("a.mp4", "libx264"), ("a.mkv", "libx265")],
)
def test_every_frame_is_found_wherever_the_container_seeks_to(name, codec, tmp_path):
    """Each frame, and each clip of three that starts anywhere, is that of decoding from the
    beginning: seeking by decoding time may end up behind the frame that is wanted."""
    quiet = {"x265-params": "log-level=none:open-gop=1"} if codec == "libx265" else {}
    path = reordered(tmp_path / name, film(40), codec, **quiet)
    found = probe(path, still=False)
    rate, count = found.fps_num / found.fps_den, found.n_frames
    assert count > 30
    whole = decode(path, view(count, (16, 24), first=found.start_s, rate=rate), still=False)
    for start in range(count - 3):
        time = start / rate
        one = view(1, (16, 24), first=found.start_s, offset=time, rate=0)
        assert np.array_equal(decode(path, one, still=False), whole[start : start + 1])
        clip = view(
            3, (16, 24), first=found.start_s + time, end=found.start_s + time + 3 / rate, rate=rate
        )
        assert np.array_equal(decode(path, clip, still=False), whole[start : start + 3])


def test_a_clip_ends_where_the_next_begins(even):
    """Frames 7 to 11 are the clip: what is asked of it beyond them is not its neighbour's."""
    path, video = even
    clip = {"first": 0.7, "end": 1.2, "rate": 10.0}
    assert np.array_equal(decode(path, view(5, (16, 24), **clip), still=False), video[7:12])
    with pytest.raises(BadClip, match="short"):
        decode(path, view(6, (16, 24), **clip), still=False)
    nearer_before = view(1, (16, 24), **clip | {"first": 0.66, "end": 1.2})
    assert np.array_equal(decode(path, nearer_before, still=False), video[7:8])
    for offset, kept in ((0.44, True), (0.46, False)):  # frame 12 is nearer to 1.16 s
        asked = view(1, (16, 24), **clip | {"offset": offset})
        if kept:
            assert np.array_equal(decode(path, asked, still=False), video[11:12])
        else:
            with pytest.raises(BadClip, match="short"):
                decode(path, asked, still=False)


def test_uneven_times_take_the_nearest_frame(tmp_path):
    video = film(4)
    path = lossless(tmp_path / "u.mkv", video, [0, 40, 300, 310])
    found = decode(path, view(4, (16, 24), rate=10.0), still=False)  # 0, 100, 200, 300 ms
    assert np.array_equal(found, video[[0, 1, 2, 2]])
    later = view(2, (16, 24), rate=10.0, offset=0.21)  # 210, 310 ms
    assert np.array_equal(decode(path, later, still=False), video[[2, 3]])


def test_rotation_brings_the_picture_upright(tmp_path):
    stored = mp4(tmp_path / "stored.mp4")
    patched(IDENTITY, CLOCKWISE, after=b"tkhd")(tmp_path / "turned.mp4")
    plain = decode(stored, view(6, (16, 24), rate=8.0), still=False)
    upright = decode(tmp_path / "turned.mp4", view(6, (24, 16), rate=8.0), still=False)
    assert np.array_equal(upright, np.rot90(plain, -1, axes=(1, 2)))


def test_an_image_is_turned_as_its_exif_says(tmp_path):
    picture = PIL.Image.fromarray(film(1)[0])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    picture.save(tmp_path / "a.png", exif=exif)
    assert probe(tmp_path / "a.png", still=True).height == 24
    found = decode(tmp_path / "a.png", view(1, (24, 16)), still=True)
    assert np.array_equal(found[0], np.rot90(film(1)[0], -1))


@pytest.mark.parametrize("still", [False, True])
def test_resizing_keeps_places_and_crops_the_middle(tmp_path, still):
    """A linear ramp stays the same ramp, sampled at the middles of larger pixels."""
    y, x = np.mgrid[:48, :64]
    ramp = np.stack([4 * x, 4 * y, 2 * x + 2 * y], axis=-1).astype(np.uint8)
    path = tmp_path / ("a.png" if still else "a.mkv")
    if still:
        PIL.Image.fromarray(ramp).save(path)
    else:
        lossless(path, ramp[None], [0])
    half = view(1, (48, 64), resized=(24, 32), size=(20, 24))
    found = decode(path, half, still=still)[0].astype(float)
    want = ramp.reshape(24, 2, 32, 2, 3).mean(axis=(1, 3))[2:22, 4:28]
    assert np.abs(found - want).max() <= 1.01


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stored": (16, 20)}, "size"),
        ({"frames": 7}, "short"),
        ({"offset": 5.0}, "short"),
        ({"bytes": 17}, "changed"),
    ],
)
def test_a_file_that_is_not_as_planned_is_bad(change, reason, tmp_path):
    path = mp4(tmp_path / "a.mp4")
    asked = {"frames": 6, "stored": (16, 24), "resized": (16, 24), "size": (16, 24)} | change
    with pytest.raises(BadClip) as bad:
        decode(path, View(rate=8.0, **asked), still=False)
    assert bad.value.reason == reason


@pytest.mark.parametrize("limits", [{"bytes": 100}, {"pixels": 100}, {"frames": 3}])
def test_limits_are_kept(limits, tmp_path):
    path = mp4(tmp_path / "a.mp4")
    with pytest.raises(BadClip, match="too_large"):
        probe(path, still=False, limits=Limits(**limits))
    with pytest.raises(BadClip, match="too_large"):
        decode(path, view(6, (16, 24), rate=8.0), still=False, limits=Limits(**limits))


def test_a_film_may_not_be_too_long(tmp_path):
    """By its own clock, whatever a header says of its duration."""
    lossless(tmp_path / "a.mkv", film(3), [0, 100, 4000])
    assert probe(tmp_path / "a.mkv", still=False, limits=Limits(seconds=4)).n_frames == 3
    with pytest.raises(BadClip, match="too_large"):
        probe(tmp_path / "a.mkv", still=False, limits=Limits(seconds=3.9))


def test_other_bytes_of_the_same_length_are_noticed_by_their_hash(tmp_path):
    """Two pictures of one size; by length alone nobody could tell."""
    for seed in (0, 1):
        PIL.Image.fromarray(film(1, seed=seed)[0]).save(tmp_path / f"{seed}.bmp")
    found = probe(tmp_path / "0.bmp", still=True)
    assert found.bytes == probe(tmp_path / "1.bmp", still=True).bytes
    asked = {"bytes": found.bytes, "sha256": found.sha256, "rate": 0.0}
    assert np.array_equal(
        decode(tmp_path / "0.bmp", view(1, (16, 24), **asked), still=True), film(1)
    )
    decode(tmp_path / "1.bmp", view(1, (16, 24), **asked | {"sha256": None}), still=True)
    with pytest.raises(BadClip, match="changed: other bytes"):
        decode(tmp_path / "1.bmp", view(1, (16, 24), **asked), still=True)


def test_a_picture_is_measured_before_it_is_read(tmp_path):
    PIL.Image.new("RGB", (3000, 2000)).save(tmp_path / "a.png")
    with pytest.raises(BadClip, match="too_large"):
        probe(tmp_path / "a.png", still=True, limits=Limits(pixels=5_000_000))


@pytest.mark.parametrize(("failures", "reason"), [(2, None), (3, "read")])
def test_trouble_that_passes_is_tried_again(failures, reason, tmp_path, monkeypatch):
    path, left = mp4(tmp_path / "a.mp4"), [failures]
    really = os.open

    def flaky(name, *flags, **more):
        if os.fspath(name) == os.fspath(path) and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "input/output error")
        return really(name, *flags, **more)

    monkeypatch.setattr(os, "open", flaky)
    monkeypatch.setattr(files.time, "sleep", lambda _: None)
    asked = view(6, (16, 24), rate=8.0)
    if reason is None:
        assert decode(path, asked, still=False).shape == (6, 16, 24, 3)
        left[0] = failures
        assert probe(path, still=False).n_frames == 6
        return
    for attempt in (lambda: decode(path, asked, still=False), lambda: probe(path, still=False)):
        left[0] = failures
        with pytest.raises(BadClip) as bad:
            attempt()
        assert bad.value.reason == reason


def test_no_file_stays_open(tmp_path):
    path = mp4(tmp_path / "a.mp4")
    (tmp_path / "bad.mp4").write_text("text")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        decode(path, view(3, (16, 24), rate=8.0), still=False)
        for name in ("bad.mp4", "none.mp4"):
            with pytest.raises(BadClip):
                decode(tmp_path / name, view(3, (16, 24)), still=False)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_long_film_is_tried_in_three_places(tmp_path, monkeypatch):
    path = mp4(tmp_path / "a.mp4", frames=40)
    whole = probe(path, still=False)
    monkeypatch.setattr(probing, "WHOLE", 20)
    monkeypatch.setattr(probing, "TRIED", 4)
    assert probe(path, still=False) == whole


def test_no_mutation_of_a_file_raises_anything_else(tmp_path):
    """Seeded damage to five kinds of file: measured, or refused with a class; then decoded, or
    refused with a class."""
    lossless(tmp_path / "a.mkv", film(3), [0, 100, 200])
    mp4(tmp_path / "a.mp4", frames=3)
    for kind in ("png", "jpg", "webp", "bmp"):
        PIL.Image.fromarray(film(1)[0]).save(tmp_path / f"a.{kind}")
    rng, refused = np.random.default_rng(0), 0
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        broken = tmp_path / f"broken{path.suffix}"
        still = path.suffix not in (".mp4", ".mkv")
        for _ in range(25):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), rng.integers(1, 12)):
                data[place] = rng.integers(256)
            broken.write_bytes(bytes(data[: rng.integers(len(data) // 2, 2 * len(data))]))
            for attempt in (
                lambda: probe(broken, still=still),  # noqa: B023
                lambda: decode(broken, view(1 if still else 3, (16, 24)), still=still),  # noqa: B023
            ):
                try:
                    attempt()
                except BadClip as bad:
                    refused += 1
                    assert bad.reason
    assert refused > 50
