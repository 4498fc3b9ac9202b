"""A stranger's manifest and files may be refused; they open nothing but what was to be read."""

import contextlib
import ctypes
import itertools
import os
from pathlib import Path

import av
import pytest

from data_pipeline import manifest
from data_pipeline.decode import View, decode, read_view
from data_pipeline.errors import BadClip, DataError
from data_pipeline.index import index
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.places import Place
from data_pipeline.probe import look, probe
from data_pipeline.sizes import Native
from data_pipeline.workers import InProcess, Workers
from tests.data_pipeline.corpus import film, lossless, mp4

IN_OPEN = 0x20


@contextlib.contextmanager
def unopened(path):
    """Fails if anybody on this machine opens a file meanwhile: the kernel tells (inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert watch >= 0 and libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) >= 0
    try:
        yield
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
    finally:
        os.close(watch)


def test_the_kernel_tells(tmp_path):
    (tmp_path / "a").write_text("x")
    with unopened(tmp_path / "a"):
        (tmp_path / "a").stat()
    with pytest.raises(BaseException, match="DID NOT RAISE"), unopened(tmp_path / "a"):
        (tmp_path / "a").read_text()


@pytest.fixture
def data(tmp_path):
    """A manifest of four clips whose root is `data`; beside it a file that is none of them."""
    (tmp_path / "data").mkdir()
    for n in range(4):
        lossless(tmp_path / "data" / f"{n}.mkv", film(4, seed=n), [0, 100, 200, 300])
    lossless(tmp_path / "secret.mkv", film(4, seed=3), [0, 100, 200, 300])
    index(str(tmp_path / "data"), str(tmp_path / "data" / "manifest"))
    return tmp_path / "data"


def rename(folder, uri):
    """The last clip's row says that its file is `uri`."""
    found = manifest.read(folder / "manifest")
    rows = found.table.to_pylist()
    rows[-1]["uri"] = uri
    manifest.write(folder / "manifest", manifest.table_of(rows), folder)


def bad_of(folder, decoder):
    data = PackedVideo(
        sources=(Source(manifest=str(folder / "manifest")),), patch=(2, 4, 4), tokens=256,
        text_tokens=64, segments=8, rows=4, seed=0, size=Native(), block=4, decoder=decoder,
        max_bad=1.0,
    )  # fmt: skip
    batches = data.batches()
    try:
        return {one for batch in itertools.islice(batches, 2) for one in batch.bad}
    finally:
        batches.close()


OUTSIDE = [
    "{}/secret.mkv", "../secret.mkv", "a/../../secret.mkv", "./../secret.mkv", "a\0b.mkv", "",
    "file://{}/secret.mkv", "http://169.254.169.254/latest", "s3://bucket/a.mkv", "TAR://a.tar#0,9",
    "tar://../secret.mkv#0,9", "tar://{}/secret.mkv#0,9", "tar://a/../../secret.mkv#0,9",
    "record://../secret.mkv#0", "record://{}/secret.mkv#0/video",
]  # fmt: skip


@pytest.mark.parametrize("uri", OUTSIDE)
def test_a_manifest_that_names_what_is_outside_is_refused(uri, data):
    rename(data, uri.format(data.parent))
    with unopened(data.parent / "secret.mkv"):
        for decoder in (InProcess(), Workers()):
            with pytest.raises(DataError):
                bad_of(data, decoder)


@pytest.mark.parametrize(
    ("uri", "class_"),
    [
        ("link.mkv", "link"), ("folder/secret.mkv", "link"), ("folder/sub/secret.mkv", "link"),
        ("..\\secret.mkv", "missing"), ("C:\\secret.mkv", "missing"), ("3.MKV", "missing"),
        ("\u2024\u2024/secret.mkv", "missing"), ("x" * 4096 + ".mkv", "not_a_file"),
        ("pipe.mkv", "not_a_file"), ("device/zero", "link"), ("manifest", "not_a_file"),
        ("0.mkv/3.mkv", "missing"), ("socket.mkv", "missing"), ("file:0.mkv", "missing"),
        ("file:../secret.mkv", "missing"), ("pipe:0", "missing"), ("concat:0.mkv|1.mkv", "missing"),
        ("subfile,,start,0,end,99,,:0.mkv", "missing"), ("data:video/mp4;base64,AA", "missing"),
        ("tar://link.mkv#0,9", "link"), ("tar://0.mkv#0,99999999", "truncated"),
        ("tar://pipe.mkv#0,9", "not_a_file"), ("record://0.mkv#0", "record"),
        ("record://none#0", "missing"), ("tar://none.tar#0,9", "missing"),
    ],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_a_bad_clip(uri, class_, data):
    (data / "link.mkv").symlink_to(data.parent / "secret.mkv")
    (data / "folder").symlink_to(data.parent)
    (data.parent / "sub").mkdir()
    lossless(data.parent / "sub" / "secret.mkv", film(4, seed=3), [0, 100, 200, 300])
    (data / "device").symlink_to("/dev")
    os.mkfifo(data / "pipe.mkv")
    rename(data, uri)
    with unopened(data.parent / "secret.mkv"), unopened(data.parent / "sub" / "secret.mkv"):
        bad = bad_of(data, Workers())
    assert {why for _, _, why in bad} == {class_}
    assert {name for name, _, _ in bad} == {"3.mkv"}


def test_a_root_that_is_itself_a_link_is_the_user_s_own(data):
    (data.parent / "alias").symlink_to(data)
    assert bad_of(data.parent / "alias", Workers()) == set()


def atom(name, *parts):
    data = b"".join(parts)
    return (8 + len(data)).to_bytes(4, "big") + name + data


def elsewhere(path, target):
    """An mp4 whose samples are said to lie in another file."""
    whole = mp4(path).read_bytes()
    old = atom(b"dref", bytes(7) + b"\1", atom(b"url ", bytes(3) + b"\1"))
    assert whole.count(old) == 1
    alias = bytearray(150)
    alias[50:51] = bytes([min(63, len(target.name))])
    alias[51 : 51 + len(target.name)] = target.name.encode()
    where = str(target).encode()
    alias += b"\0\x02" + len(where).to_bytes(2, "big") + where + b"\0" * (len(where) % 2)
    new = atom(b"dref", bytes(7) + b"\1", atom(b"alis", bytes(4), bytes(alias), b"\xff\xff\0\0"))
    grown = len(new) - len(old)
    whole = bytearray(whole.replace(old, new))
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = whole.index(name) - 4
        size = int.from_bytes(whole[place : place + 4], "big") + grown
        whole[place : place + 4] = size.to_bytes(4, "big")
    path.write_bytes(bytes(whole))


def playlists(target):
    return {
        "concat.mp4": f"ffconcat version 1.0\nfile '{target}'\n",
        "plain_concat.mp4": f"concat:{target}|{target}",
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n",
        "hls_url.mp4": "#EXTM3U\n#EXTINF:1,\nhttp://169.254.169.254/latest\n#EXT-X-ENDLIST\n",
        "dash.mp4": f'<?xml version="1.0"?><MPD><BaseURL>file:{target}</BaseURL></MPD>',
        "smil.mov": f'<smil><body><video src="{target}"/></body></smil>',
        "sdp.mp4": "v=0\no=- 0 0 IN IP4 169.254.169.254\nm=video 9 RTP/AVP 96\n",
        "pipe.mp4": "pipe:0",
        "url.mkv": f"file:{target}",
        "subtitles.avi": f"[Script Info]\nVideo File: {target}\n",
    }


@pytest.mark.parametrize("name", [*playlists(""), "elsewhere.mp4"])
@pytest.mark.parametrize("decoder", [InProcess(), Workers()], ids=["here", "workers"])
def test_no_file_opens_another(name, decoder, tmp_path):
    target = mp4(tmp_path / "target.mp4")
    if name == "elsewhere.mp4":
        elsewhere(tmp_path / name, target)
    else:
        (tmp_path / name).write_text(playlists(target)[name])
    run = decoder.start(look, read_view)
    view = View(rate=8.0, frames=6, stored=(16, 24), resized=(16, 24), size=(16, 24))
    with unopened(target):
        for attempt in (
            lambda: probe(Place.of(tmp_path / name), still=False, run=run),
            lambda: decode(Place.of(tmp_path / name), view, still=False, run=run),
        ):
            with (
                contextlib.suppress(BadClip)
                if name == "elsewhere.mp4"
                else pytest.raises(BadClip, match="format")
            ):
                attempt()


def test_the_file_that_lies_elsewhere_would_work(tmp_path):
    """FFmpeg opens the other file if nobody forbids it: the test above tests something."""
    elsewhere(tmp_path / "a.mp4", mp4(tmp_path / "target.mp4"))
    trusting = {"enable_drefs": "1", "use_absolute_path": "1"}
    with pytest.raises(BaseException, match="DID NOT RAISE"), unopened(tmp_path / "target.mp4"):
        av.open(str(tmp_path / "a.mp4"), options=trusting).close()


def test_a_decoder_is_told_no_name(data):
    """What it gets is an open file: the folder may even be gone."""
    path = data / "0.mkv"
    run = Workers().start(read_view)

    class Hiding:
        def fill(self, out, task, *files, **arguments):
            path.unlink()
            assert not any(str(data) in repr(value) for value in arguments.values())
            run.fill(out, task, *files, **arguments)

    view = View(rate=10.0, frames=4, stored=(16, 24), resized=(16, 24), size=(16, 24))
    assert (decode(Place.of(path), view, still=False, run=Hiding()) == film(4)).all()
    assert not Path(path).exists()
