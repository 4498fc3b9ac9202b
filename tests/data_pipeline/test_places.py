"""Bytes at a place: those of the file, the part or the record named, and no others."""

import io
import os
import random
import tarfile

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from data_pipeline.errors import BadClip
from data_pipeline.files import Limits
from data_pipeline.places import ANY_SIZE, Place, Window

CONTENT = {"a/one.mp4": b"first" * 300, "a/two.mp4": b"2", "three.txt": bytes(range(256)) * 9}


@pytest.fixture
def shard(tmp_path):
    """(root, where the content of each member begins)."""
    with tarfile.open(tmp_path / "s#1.tar", "w") as archive:
        for name, content in CONTENT.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    raw = (tmp_path / "s#1.tar").read_bytes()
    return tmp_path, {name: raw.index(content) for name, content in CONTENT.items()}


@pytest.mark.parametrize("name", CONTENT)
def test_a_part_of_a_file_is_a_file(name, shard):
    root, starts = shard
    content = CONTENT[name]
    place = Place(str(root), f"tar://s#1.tar#{starts[name]},{len(content)}")
    with place.open(ANY_SIZE) as file:
        assert file.read() == content
        assert file.seek(0, os.SEEK_END) == len(content) and file.read(1) == b""


def test_a_window_behaves_as_the_bytes_it_shows(shard):
    """Against BytesIO, whatever is sought and read."""
    root, starts = shard
    content = CONTENT["three.txt"]
    truth, rng = io.BytesIO(content), random.Random(0)
    shown = Window((root / "s#1.tar").open("rb"), starts["three.txt"], len(content))
    for _ in range(300):
        whence = rng.choice((os.SEEK_SET, os.SEEK_END))
        offset = rng.randrange(len(content) + 9) - (len(content) if whence else 0)
        size = rng.choice((0, 1, 7, 512, 5000))
        assert shown.seek(offset, whence) == truth.seek(offset, whence)
        assert shown.read(size) == truth.read(size) and shown.tell() == truth.tell()
    with pytest.raises(ValueError, match="-1"):
        shown.seek(-1)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("tar://s#1.tar#0,0", "empty"),
        ("tar://s#1.tar#1000,99999999", "truncated"),
        ("tar://none.tar#0,5", "missing"),
        ("tar://folder#0,5", "not_a_file"),
        ("tar://link.tar#0,5", "link"),
        ("none.mp4", "missing"),
        ("record://none.array_record#0", "missing"),
    ],
)
def test_what_is_not_there_is_named(uri, reason, shard):
    root, _ = shard
    (root / "folder").mkdir()
    (root / "link.tar").symlink_to(root / "s#1.tar")
    with pytest.raises(BadClip) as error:
        Place(str(root), uri).open(ANY_SIZE)
    assert error.value.reason == reason


def test_the_limit_of_bytes_is_that_of_the_part(shard):
    root, starts = shard
    part = Place(str(root), f"tar://s#1.tar#{starts['a/two.mp4']},1")
    with part.open(Limits(bytes=1)) as file:
        assert file.read() == b"2"
    for place in (
        Place(str(root), f"tar://s#1.tar#{starts['a/two.mp4']},2"),
        Place.of(root / "s#1.tar"),
    ):
        with pytest.raises(BadClip, match="too_large"):
            place.open(Limits(bytes=1))


def test_a_record_and_a_feature_of_it(tmp_path):
    path = tmp_path / "clips.array_record-00000-of-00001"
    example = tf_example_pb2.Example()
    example.features.feature["video"].bytes_list.value.append(b"\0film\0")
    example.features.feature["label"].int64_list.value.append(3)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in (b"plain", example.SerializeToString(), b"\xff\xff"):
        writer.write(record)
    writer.close()

    def read(fragment, limits=ANY_SIZE):
        with Place(str(tmp_path), f"record://{path.name}#{fragment}").open(limits) as file:
            return file.read()

    assert read("0") == b"plain" and read("1/video") == b"\0film\0"
    for fragment, said in (("1/audio", "no bytes"), ("1/label", "no bytes"), ("2/video", "record"),
                           ("3", "record")):  # fmt: skip
        with pytest.raises(BadClip, match=said):
            read(fragment)
    with pytest.raises(BadClip, match="too_large"):
        read("0", Limits(bytes=4))


def test_a_version_changes_with_the_file_that_holds_the_bytes(shard):
    root, starts = shard
    part = Place(str(root), f"tar://s#1.tar#{starts['a/two.mp4']},1")
    before = part.version()
    assert part.version() == before == Place.of(root / "s#1.tar").version()
    os.utime(root / "s#1.tar", ns=(0, 1))
    assert part.version() != before
    with pytest.raises(BadClip, match="missing"):
        Place(str(root), "none").version()
