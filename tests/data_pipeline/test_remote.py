"""Object storage: a set on it is the set on disk, its errors pass, its blocks are bounded."""

import errno
import io
import os
import pickle
import random
import shutil

import fsspec
import numpy as np
import pytest
import tenacity

from data_pipeline import manifest, remote
from data_pipeline.errors import BadClip, DataError
from data_pipeline.files import Limits
from data_pipeline.index import index
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.places import Place
from data_pipeline.remote import BLOCK, Blocks, Facts, RemoteFile
from data_pipeline.sizes import Native
from tests.data_pipeline.bucket import KEYS, client, serving
from tests.data_pipeline.corpus import mp4


@pytest.fixture(scope="module")
def server():
    with serving() as found:
        yield found


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """(server, client of it) with an empty bucket 'films', and a cache of our own."""
    app, url = server
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": url}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)
    remote.blocks.cache_clear()
    fsspec.filesystem("s3").clear_instance_cache()
    s3 = client(url)
    s3.create_bucket(Bucket="films")
    app.requests.clear()
    yield app, s3
    app.spoil = lambda method, path, number: None
    for one in s3.list_objects_v2(Bucket="films").get("Contents", ()):
        s3.delete_object(Bucket="films", Key=one["Key"])
    remote.blocks.cache_clear()


@pytest.fixture
def films(bucket, tmp_path):
    """The same six captioned files in a folder and under s3://films/set."""
    folder = tmp_path / "films"
    for number in range(6):
        (folder / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        path = mp4(folder / f"{number % 2}" / f"{number}.mp4", seed=number)
        path.with_suffix(".txt").write_text(f"film {number}")
    for path in sorted(folder.rglob("*.*")):
        bucket[1].put_object(
            Bucket="films", Key=f"set/{path.relative_to(folder)}", Body=path.read_bytes()
        )
    return folder


def loader(path):
    return PackedVideo(
        sources=(Source(manifest=str(path)),), patch=(2, 4, 4), tokens=160, text_tokens=64,
        segments=4, rows=2, seed=0, size=Native(), block=12, memory_mib=0,
    )  # fmt: skip


def test_a_set_on_a_bucket_is_the_set_on_disk(films, bucket, tmp_path):
    """Index, manifest, tokenizer, plan and arrays; the manifest lies on the bucket, too."""
    here = index(str(films), str(tmp_path / "m"))
    there = index("s3://films/set", "s3://films/manifest")
    assert there | {"manifest": ""} == here | {"manifest": ""}
    read = [manifest.read(path) for path in (tmp_path / "m", "s3://films/manifest")]
    assert read[0].table.equals(read[1].table) and read[1].root == "s3://films/set"
    one, two = (loader(path).batches() for path in (tmp_path / "m", "s3://films/manifest"))
    for _ in range(8):
        a, b = next(one), next(two)
        assert a.bad == b.bad == () and a.cursor == b.cursor
        assert all(np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays)
    one.close(), two.close()
    assert pickle.loads(pickle.dumps(read[1].place(0))) == read[1].place(0)


def test_a_second_look_asks_for_no_byte_again(films, bucket):
    app, _ = bucket
    place = Place("s3://films/set", "0/0.mp4")
    for _ in range(2):
        with place.open(Limits()) as file:
            assert file.read() == (films / "0/0.mp4").read_bytes()
    asked = [one for one in app.requests if one[0] == "GET" and one[1].endswith("0.mp4")]
    assert len(asked) == 1 and asked[0][2].startswith("bytes=0-")


def test_a_file_that_was_replaced_is_read_anew(films, bucket):
    place = Place("s3://films/set", "0/0.mp4")
    before = place.version()
    place.open(Limits()).read()
    size = (films / "0/0.mp4").stat().st_size
    bucket[1].put_object(Bucket="films", Key="set/0/0.mp4", Body=b"x" * size)
    assert place.open(Limits()).read() == b"x" * size and place.version() != before


@pytest.mark.parametrize("fault", ["503 Slow Down", "500 Internal Server Error", "short"])
def test_errors_that_pass_are_not_seen(films, bucket, fault):
    """Each request of a clip fails twice before it is answered."""
    app, _ = bucket
    app.spoil = lambda method, path, number: (
        fault
        if number < 2 and path.endswith(".mp4") and (fault != "short" or method == "GET")
        else None
    )
    with Place("s3://films/set", "1/3.mp4").open(Limits()) as file:
        assert file.read() == (films / "1/3.mp4").read_bytes()
    assert len(app.requests) >= 4


def test_errors_that_stay_are_the_clip_s_own(films, bucket, tmp_path):
    """The clip keeps its slot in a batch, and an index skips it."""
    index("s3://films/set", "s3://films/manifest")
    shutil.rmtree(tmp_path / "cache")
    app, _ = bucket
    app.requests.clear()
    app.spoil = lambda method, path, number: "503 Slow Down" if path.endswith("1/3.mp4") else None
    batches = loader("s3://films/manifest").batches()
    bad = {one[::2] for _ in range(4) for one in next(batches).bad}
    batches.close()
    assert bad == {("1/3.mp4", "read")}
    assert index("s3://films/set", str(tmp_path / "m"))["skipped"] == {"read": 1}


@pytest.mark.parametrize(
    ("name", "reason"), [("none.mp4", "missing"), ("0", "not_a_file"), ("empty.mp4", "empty")]
)
def test_what_is_no_file_is_named(films, bucket, name, reason):
    bucket[1].put_object(Bucket="films", Key="set/empty.mp4", Body=b"")
    with pytest.raises(BadClip) as error:
        Place("s3://films/set", name).open(Limits())
    assert error.value.reason == reason


@pytest.mark.parametrize(
    "root", ["http://169.254.169.254/latest", "file:///etc", "pipe://x", "memory://x", "S3://films"]
)
def test_no_other_scheme_is_opened(root, tmp_path, monkeypatch):
    """Neither as a root that a manifest of a stranger's names nor on the command line."""
    monkeypatch.setattr(fsspec, "url_to_fs", lambda url, **how: pytest.fail("opened"))
    line = {"clip_id": "a", "uri": "a", "still": True, "n_frames": 1, "height": 8, "width": 8,
            "fps_num": 0, "fps_den": 1, "start_s": 0.0, "end_s": 0.0, "bytes": 1}  # fmt: skip
    manifest.write(tmp_path / "m", manifest.table_of([line]), root)
    for attempt in (
        lambda: manifest.read(tmp_path / "m"),
        lambda: index(root, str(tmp_path / "n")),
        lambda: manifest.read(root),
    ):
        with pytest.raises(DataError, match="cannot be read") as error:
            attempt()
        assert error.value.code == 2


@pytest.mark.parametrize("missing", ["the network", "the keys"])
def test_a_bucket_out_of_reach_is_one_sentence(bucket, missing, tmp_path, monkeypatch, capsys):
    """Nobody listens there, or nobody says who asks."""
    if missing == "the network":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    else:
        for name in KEYS:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    fsspec.filesystem("s3").clear_instance_cache()
    for attempt in (
        lambda: index("s3://films/set", str(tmp_path / "n")),
        lambda: manifest.read("s3://films/manifest"),
    ):
        with pytest.raises(DataError, match="cannot be reached") as error:
            attempt()
        assert error.value.code == 6 and "\n" not in str(error.value)


def test_a_bound_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv(remote.CACHE_MIB, "lots")
    remote.blocks.cache_clear()
    with pytest.raises(DataError, match="VDM_CACHE_MIB is 'lots'"):
        remote.blocks()
    monkeypatch.setenv(remote.CACHE_MIB, "7")
    assert remote.blocks().mib == 7
    remote.blocks.cache_clear()


def test_a_missing_package_is_named(monkeypatch):
    def absent(url, **how):
        raise ImportError("Install gcsfs")

    monkeypatch.setattr(fsspec, "url_to_fs", absent)
    with pytest.raises(DataError, match="pip install gcsfs"):
        remote.file_system("gs://films/a")


class Counted:
    """A file system of one file, which counts what is read of it; the first reads fail."""

    def __init__(self, content, faults=()):
        self.content, self.faults, self.read = content, list(faults), []

    def cat_file(self, path, start, end):
        self.read.append((start, end))
        if self.faults:
            raise self.faults.pop(0)
        return self.content[start:end]


@pytest.mark.parametrize(
    ("faults", "tries", "number"),
    [
        ([TimeoutError(), ConnectionResetError(), RuntimeError("of the client's own")], 4, None),
        ([OSError("always")] * 99, remote.ATTEMPTS, errno.EREMOTEIO),
        ([RuntimeError("always")] * 99, remote.ATTEMPTS, errno.EREMOTEIO),
        ([FileNotFoundError(errno.ENOENT, "a")] * 99, 1, errno.ENOENT),
    ],
)
def test_a_read_is_tried_so_many_times(faults, tries, number, tmp_path, monkeypatch):
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)
    system = Counted(b"abcd", faults)
    file = RemoteFile(Facts(system, "a", 4, "v"), Blocks(tmp_path, 1))
    if len(faults) < tries:
        assert file.read(4) == b"abcd"
    else:
        with pytest.raises(OSError) as error:
            file.read(4)
        assert error.value.errno == number
    assert len(system.read) == tries


def test_a_remote_file_behaves_as_its_bytes(tmp_path, monkeypatch):
    """Against BytesIO, over the borders of blocks; no block is fetched twice."""
    monkeypatch.setattr(remote, "BLOCK", 100)
    content = random.Random(0).randbytes(1234)
    system, rng = Counted(content), random.Random(1)
    shown = io.BufferedReader(
        RemoteFile(Facts(system, "a", len(content), "v"), Blocks(tmp_path, 1)), 64
    )
    truth = io.BytesIO(content)
    for _ in range(300):
        offset, size = rng.randrange(1300), rng.choice((0, 1, 63, 100, 450))
        assert shown.seek(offset) == truth.seek(offset)
        assert shown.read(size) == truth.read(size)
    assert len(system.read) == len(set(system.read)) == 13
    assert BLOCK >= 1 << 20  # what is fetched at once where it matters


def test_blocks_are_bounded_and_the_longest_unused_goes_first(tmp_path):
    kept = Blocks(tmp_path, 1)
    size, fetched = 64 << 10, []

    def get(name):
        def read():
            fetched.append(name)
            return bytes([name]) * size

        data = kept.get(str(name), size, read)
        os.utime(tmp_path / str(name), ns=(len(fetched), len(fetched) + 10 * name * (name > 90)))
        return data

    for name in range(40):
        assert get(name) == bytes([name]) * size
        assert get(0) == bytes(size)  # always the one used last
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 1 << 20
    assert fetched.count(0) == 1 and fetched.count(39) == 1
    get(1)
    assert fetched.count(1) == 2


def test_a_block_cut_short_on_disk_is_fetched_again(tmp_path):
    kept = Blocks(tmp_path, 1)
    assert kept.get("a", 4, lambda: b"abcd") == b"abcd"
    (tmp_path / "a").write_bytes(b"ab")
    assert kept.get("a", 4, lambda: b"abcd") == b"abcd"
    assert kept.get("a", 4, lambda: pytest.fail("fetched")) == b"abcd"


def test_a_disk_without_room_makes_nothing_fail(tmp_path):
    (tmp_path / "file").write_text("in the way")
    kept = Blocks(tmp_path / "file", 1)
    assert [kept.get("a", 2, lambda: b"ab") for _ in range(2)] == [b"ab", b"ab"]
