"""ArrayRecord files and data sets of tensorflow-datasets, read without TensorFlow."""

import io
import itertools
import json
import os
import pickle
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from data_pipeline import generated, manifest
from data_pipeline.__main__ import main
from data_pipeline.decode import View, decode
from data_pipeline.errors import BadClip, DataError
from data_pipeline.files import Limits
from data_pipeline.index import index
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.places import Place
from data_pipeline.sizes import Native
from data_pipeline.sources.choose import choose
from data_pipeline.sources.records import is_still
from tests.data_pipeline.corpus import ACCEPTED, film, mp4, picture


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def example(**features):
    """A tf.Example of bytes, text, numbers, or lists of them."""
    message = tf_example_pb2.Example()
    for name, values in features.items():
        feature = message.features.feature[name]
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int):
                feature.int64_list.value.append(value)
            else:
                feature.bytes_list.value.append(
                    value if isinstance(value, bytes) else value.encode()
                )
    return message.SerializeToString()


def indexed(source, out, **how):
    found = index(str(source), str(out), **how)
    return found, {row["clip_id"]: row for row in manifest.read(out).table.to_pylist()}


def frames(read, row):
    view = View(
        rate=row["fps_num"] / row["fps_den"], frames=row["n_frames"], bytes=row["bytes"],
        **dict.fromkeys(("stored", "resized", "size"), (row["height"], row["width"])),
    )  # fmt: skip
    return decode(read, view, still=row["still"])


def test_records_that_are_files_are_told_by_their_first_bytes(tmp_path):
    clip = mp4(tmp_path / "a.mp4").read_bytes()
    source = write(
        tmp_path / "in" / "clips.array_record",
        clip, picture("PNG"), picture("JPEG"), picture("GIF"), b"no file at all", b"",
        clip[: len(clip) // 2],
    )  # fmt: skip
    for path in (source, source.parent):
        found, rows = indexed(path, tmp_path / "m")
        assert {name: (row["still"], row["n_frames"]) for name, row in rows.items()} == {
            "clips.array_record#0": (False, 6),
            "clips.array_record#1": (True, 1),
            "clips.array_record#2": (True, 1),
        }
        assert sum(found["skipped"].values()) == 4
        assert found["skipped"]["empty"] == 1 and found["problems"] == []
        assert rows["clips.array_record#1"]["source"] == "arrayrecord"
    row = rows["clips.array_record#0"]
    truth = frames(Place(str(tmp_path), "a.mp4"), row)
    assert np.array_equal(frames(Place(str(source.parent), row["uri"]), row), truth)


@pytest.mark.parametrize("name", ACCEPTED, ids=lambda name: name[:20])
def test_whatever_is_read_from_a_folder_is_told_by_its_first_bytes(name, tmp_path):
    make, (count, _, _) = ACCEPTED[name]
    make(tmp_path / name)
    still = is_still((tmp_path / name).read_bytes())
    assert still is not None and still == name.endswith((".png", ".jpg"))
    assert not still or count == 1
    for kind, want in (("WEBP", True), ("BMP", True), ("GIF", None), ("TIFF", None)):
        assert is_still(picture(kind)) is want


def test_examples_without_a_schema_go_by_the_names_of_their_features(tmp_path):
    clip = mp4(tmp_path / "a.mp4").read_bytes()
    write(
        tmp_path / "in" / "x-val.array_record-00000-of-00002",
        example(video=clip, caption=" a dog ", label="dog"),
        example(image=picture("PNG"), captions=["one", "zwei Hünde", "one"], clip_id="mine"),
        example(sound=b"..."),
    )
    write(tmp_path / "in" / "deep" / "x-train.array_record-00001-of-00002", example(video=clip))
    found, rows = indexed(tmp_path / "in", tmp_path / "m")
    assert {name: (row["captions"], row["label"], row["split"]) for name, row in rows.items()} == {
        "x-val.array_record-00000-of-00002#0": (["a dog"], "dog", "val"),
        "mine": (["one", "zwei Hünde"], "", "val"),
        "deep/x-train.array_record-00001-of-00002#0": ([], "", "train"),
    }
    assert found["skipped"] == {"record": 1}
    assert found["captions"] == {"sidecar": 2, "none": 1}


class Few(tfds.core.GeneratorBasedBuilder):
    """A film with two captions and a class; a picture without."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self):
        features = {
            "video": tfds.features.Text(),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "kind": tfds.features.ClassLabel(names=["dog", "Hünde"]),
            "seconds": tfds.features.Scalar(np.float32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        with tempfile.TemporaryDirectory() as folder:
            clip = mp4(Path(folder, "a.mp4")).read_bytes()
        return {
            "train": self._generate_examples(video=clip, captions=["one", "two"], kind=1),
            "test": self._generate_examples(video=picture("PNG"), captions=[], kind=-1),
        }

    def _generate_examples(self, **features):
        yield "a", features | {"seconds": 1.0}


def test_what_tensorflow_datasets_prepared_is_read_without_tensorflow(tmp_path):
    builder = Few(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    found, rows = indexed(builder.data_path, tmp_path / "m")
    said = {
        (row["split"], row["n_frames"]): (row["captions"], row["label"]) for row in rows.values()
    }
    assert said == {("train", 6): (["one", "two"], "Hünde"), ("test", 1): ([], "")}
    assert {row["source"] for row in rows.values()} == {"tfds"}
    assert found["skipped"] == {} and "tensorflow" not in sys.modules
    with pytest.raises(DataError, match="name the directory of one version"):
        choose(str(tmp_path / "few"), None, None)


KIND = "tensorflow_datasets.core.features.{}"
VIDEO, IMAGE, TEXT = "video_feature.Video", "image_feature.Image", "text_feature.Text"


def prepared(folder, features, *records, name="set-train.array_record-00000-of-00001"):
    """A directory as tensorflow-datasets writes it: Video needs TensorFlow even to be named."""
    write(folder / name, *records)
    kinds = {one: {"pythonClassName": KIND.format(kind)} for one, kind in features.items()}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": kinds}}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def encoded(video, kind):
    files = []
    for frame in video:
        file = io.BytesIO()
        PIL.Image.fromarray(frame).save(file, kind, quality=95)
        files.append(file.getvalue())
    return files


@pytest.mark.parametrize(
    ("kind", "size"), [("PNG", (16, 24)), ("PNG", (13, 17)), ("JPEG", (16, 24))]
)
def test_a_video_of_encoded_frames_plays_at_the_rate_it_is_told(kind, size, tmp_path):
    video = film(7, *size)
    features = {"video": VIDEO, "caption": TEXT}
    source = prepared(tmp_path / "in", features, example(video=encoded(video, kind), caption="x"))
    found, rows = indexed(source, tmp_path / "m", fps=Fraction(30000, 1001))
    (row,) = rows.values()
    assert (row["n_frames"], row["height"], row["width"]) == (7, *size) and not row["still"]
    assert row["fps_num"] / row["fps_den"] == pytest.approx(29.97, rel=1e-3)
    assert row["captions"] == ["x"] and found["skipped"] == {}
    place = manifest.read(tmp_path / "m").place(0)
    error = abs(frames(place, row).astype(int) - video)
    assert error.max() == 0 if kind == "PNG" else error.mean() < 3 and error.max() < 16
    assert place.open(Limits()).read() == place.open(Limits()).read()


def test_bad_frames_spoil_their_clip_alone(tmp_path):
    video = encoded(film(4), "PNG")
    other = encoded(film(1, 32, 32), "PNG")
    source = prepared(
        tmp_path / "in", {"video": VIDEO},
        example(video=video), example(video=video[:3] + other), example(video=[]),
        example(video=[*video[:2], video[2][:60], video[3]]), example(video=[b"no picture"] * 3),
    )  # fmt: skip
    found, rows = indexed(source, tmp_path / "m", fps=Fraction(8))
    assert list(rows) == ["set-train.array_record-00000-of-00001#0"]
    assert sum(found["skipped"].values()) == 4
    assert set(found["skipped"]) <= {"size", "corrupt", "record", "format", "codec"}


def test_an_image_set_is_one_of_stills(tmp_path):
    source = prepared(
        tmp_path / "in", {"picture": IMAGE, "label": "class_label_feature.ClassLabel"},
        example(picture=picture("JPEG"), label=0), example(picture=picture("PNG"), label=7),
    )  # fmt: skip
    (tmp_path / "in" / "label.labels.txt").write_text("cat\n")
    _, rows = indexed(source, tmp_path / "m")
    assert [(row["still"], row["label"]) for row in rows.values()] == [(True, "cat"), (True, "")]


@pytest.mark.parametrize(
    ("features", "name", "how", "said"),
    [
        ({"video": VIDEO}, "set-train.array_record-00000-of-00001", {}, "say --fps=25"),
        ({"video": TEXT}, "set-train.array_record-00000-of-00001", {"fps": 8}, "leave out --fps"),
        ({"x": TEXT}, "set-train.array_record-00000-of-00001", {}, "holds x: no Text of bytes"),
        ({"video": "tensor_feature.Tensor"}, "a.array_record", {}, "holds video: no Text"),
        ({"video": TEXT}, "set-train.tfrecord-00000-of-00001", {}, "file_format='array_record'"),
        ({"video": TEXT}, "a.array_record", {"media": "/m"}, "takes no --media"),
        ({"video": TEXT}, "a.array_record", {"form": "folder", "fps": 8}, "take no --fps"),
        ({"video": TEXT}, "a.array_record", {"form": "webdataset"}, "no .tar file lies in"),
    ],
)
def test_a_mistake_is_one_sentence(features, name, how, said, tmp_path):
    source = prepared(tmp_path / "in", features, example(video=b"x"), name=name)
    with pytest.raises(DataError, match=said) as error:
        index(str(source), str(tmp_path / "m"), **how)
    assert error.value.code == 2 and str(error.value).isprintable()


def test_mistakes_about_record_files_are_said(tmp_path):
    (tmp_path / "empty").mkdir()
    for source, form, said in (
        (str(tmp_path / "empty"), "arrayrecord", "no ArrayRecord file lies in"),
        (str(tmp_path / "empty"), "tfds", "has no dataset_info.json"),
        ("s3://bucket/set", "tfds", "from disk only"),
        ("s3://bucket/set", "arrayrecord", "from disk only"),
    ):
        with pytest.raises(DataError, match=said) as error:
            choose(source, form, None)
        assert error.value.code == 2
    prepared(tmp_path / "in", {}, b"x")
    (tmp_path / "in" / "features.json").write_text("{half")
    with pytest.raises(DataError, match="cannot be read"):
        choose(str(tmp_path / "in"), None, None)


def test_a_damaged_file_costs_its_own_clips_alone(tmp_path):
    clips = [mp4(tmp_path / "a.mp4", seed=seed).read_bytes() for seed in range(3)]
    whole = write(tmp_path / "in" / "a.array_record", *clips).read_bytes()
    (tmp_path / "in" / "b.array_record").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "c.array_record").write_text("no array record" * 9000)
    hurt = bytearray(whole)
    hurt[whole.index(clips[1]) + len(clips[1]) // 2] ^= 0xFF
    (tmp_path / "in" / "d.array_record").write_bytes(bytes(hurt))
    found, rows = indexed(tmp_path / "in", tmp_path / "m")
    kept = [f"a.array_record#{n}" for n in range(3)] + [f"d.array_record#{n}" for n in (0, 2)]
    assert list(rows) == kept and found["skipped"] == {"record": 1}
    assert [problem[:14] for problem in found["problems"]] == ["b.array_record", "c.array_record"]


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    place = Place(str(tmp_path), "record://a.array_record#0")
    for content in (b"first", b"another"):
        write(tmp_path / "a.array_record", content)
        assert place.open(Limits()).read() == content
    with pytest.raises(BadClip, match="record"):
        Place(str(tmp_path), "record://a.array_record#1").open(Limits())
    with pytest.raises(BadClip, match="too_large"):
        place.open(Limits(bytes=6))


def test_many_threads_read_one_file(tmp_path):
    rng = np.random.default_rng(0)
    contents = [rng.bytes(int(size)) for size in rng.integers(1, 40_000, 200)]
    write(tmp_path / "a.array_record", *contents)

    def read(number):
        return Place(str(tmp_path), f"record://a.array_record#{number}").open(Limits()).read()

    order = rng.permutation(np.tile(np.arange(200), 5))
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(read, order))
    assert found == [contents[number] for number in order]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same clips as files and as a data set of tensorflow-datasets."""
    folder = tmp_path_factory.mktemp("both")
    words = ["--clips", "24", "--seed", "3", "--holdout", "0"]
    assert main(["generate", str(folder / "files"), *words]) == 0
    assert main(["generate", str(folder / "set"), *words, "--as=tfds"]) == 0
    index(str(folder / "files"), str(folder / "of-files"))
    index(str(folder / "set" / "shapes" / "24-3-0" / "1.0.0"), str(folder / "of-set"))
    return folder


def loader(folder):
    return PackedVideo(
        sources=(Source(manifest=str(folder)),), patch=(2, 4, 4), tokens=160, text_tokens=64,
        segments=6, rows=8, seed=0, size=Native(), block=24,
    )  # fmt: skip


def test_a_set_in_either_form_gives_the_same_batches(both):
    columns = [name for name in manifest.SCHEMA.names if name not in ("uri", "source", "split")]
    tables = [manifest.read(both / name).table for name in ("of-files", "of-set")]
    assert tables[0].select(columns).equals(tables[1].select(columns))
    assert set(tables[1]["split"].to_pylist()) == {"train"}
    assert all(uri.endswith("/video") for uri in tables[1]["uri"].to_pylist())
    pairs = [loader(both / name).batches() for name in ("of-files", "of-set")]
    for one, other in itertools.islice(zip(*pairs, strict=True), 5):
        assert one.bad == other.bad == () and one.arrays["valid"].any()
        for name, leaf in one.arrays.items():
            assert leaf.tobytes() == other.arrays[name].tobytes(), name
    for batches in pairs:
        batches.close()


def test_the_set_is_one_of_tensorflow_datasets(both):
    """Through its own reader: the bytes of the files, and what lies beside them."""
    path = both / "set" / "shapes" / "24-3-0" / "1.0.0"
    source = tfds.builder_from_directory(str(path)).as_data_source("train")
    assert len(source) == 24 and "tensorflow" not in sys.modules
    for one in source:
        file = both / "files" / one["clip_id"].decode()
        assert one["video"] == file.read_bytes()
        assert one["caption"].decode() == file.with_suffix(".txt").read_text().strip()
        assert json.loads(one["label"]) == json.loads(file.with_suffix(".json").read_text())
    names = {one["clip_id"].decode() for one in source}
    assert names == {generated.file_name(generated.scene(3, n, holdout=0)) for n in range(24)}


def test_a_loader_travels_without_its_readers(both):
    data = loader(both / "of-set")
    before = len(pickle.dumps(data))
    place = manifest.read(both / "of-set").place(0)
    content = place.open(Limits()).read()
    assert len(pickle.dumps(place)) < 1000 and before < 2000
    assert pickle.loads(pickle.dumps(place)).open(Limits()).read() == content
    assert loader(pickle.loads(pickle.dumps(data)).sources[0].manifest) == data


def test_the_command_says_where_the_set_is(tmp_path, capsys):
    words = ["generate", str(tmp_path), "--clips", "2", "--as=tfds", "--json"]
    for _ in range(2):  # the second time it is there
        assert main(words) == 0
        said = json.loads(capsys.readouterr().out)
        assert said == {"directory": str(tmp_path / "shapes" / "2-0" / "1.0.0"), "clips": 2}
    assert main([*words, "--holdout", "0", "--unseen"]) == 2
    assert "leave out --as" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["generate", str(tmp_path / "file"), "--clips", "2", "--as=tfds"]) == 6
    assert "cannot write" in capsys.readouterr().err
    assert os.listdir(tmp_path / "shapes") == ["2-0"]
    with pytest.raises(SystemExit):
        main(["index", str(tmp_path), "--out", str(tmp_path / "m"), "--fps", "0"])
    assert "must be a number above 0" in capsys.readouterr().err
