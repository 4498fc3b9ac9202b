"""Latents made beforehand: of the right pixels, whoever makes them, and never of other ones."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline import keys, latents, manifest, rows
from data_pipeline.clips import LogFrames, LogRate
from data_pipeline.decode import View, decode
from data_pipeline.errors import BadClip, DataError
from data_pipeline.generated import generate
from data_pipeline.index import index
from data_pipeline.latents import Latents
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.places import Place
from data_pipeline.sizes import Area, Native
from data_pipeline.workers import InProcess
from tests.workbench import ROOT, SMOKE, call, environment, vdm
from vdm_jax import features
from vdm_jax.__main__ import main
from vdm_jax.codecs import Pixels
from vdm_jax.features import Encoding
from vdm_jax.parallel.hosts import Hosts

CLIPS = 12
AGAIN = "vdm encode again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """Cells of pixels, averaged and scaled: a codec with one weight and an invented posterior."""

    stride: tuple[int, int, int] = (1, 2, 2)
    channels: int = 3
    scale: float = 1.0

    def weights(self):
        return {"scale": jnp.float32(self.scale)}

    def encode(self, params, video):
        return self.moments(params, video)["mean"]

    def decode(self, params, latent):
        raise NotImplementedError

    def moments(self, params, video):
        b, f, h, w, c = video.shape
        t, y, x = self.stride
        cells = video.astype(jnp.float32).reshape(b, f // t, t, h // y, y, w // x, x, c)
        mean = params["scale"] * (cells.mean((2, 4, 6)) / 127.5 - 1)
        return {"mean": mean, "logvar": -2 - mean}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The folder of a dozen generated clips and their manifest."""
    folder = tmp_path_factory.mktemp("clips")
    generate(str(folder / "clips"), CLIPS, 0)
    index(str(folder / "clips"), str(folder / "manifest"))
    return folder


def loader(folder, **changes):
    settings = {
        "sources": (Source(manifest=str(folder / "manifest")),), "patch": (1, 2, 2),
        "tokens": 4096, "text_tokens": 64, "segments": 6, "rows": 2, "seed": 0,
        "size": Native(), "block": 24, "decoder": InProcess(), "cache": str(folder / "plans"),
    }  # fmt: skip
    return PackedVideo(**settings | changes)


DRAWN = {
    "size": Area(low=16.0 * 16, high=32.0 * 32),
    "fps": LogRate(low=3.0, high=8.0),
    "duration": LogFrames(low=2, high=9),
}


def encoding(folder, codec=None, views=1, **changes):
    return Encoding(codec=codec or Pool(), data=loader(folder, **changes), views=views, again=AGAIN)


def contents(folder):
    """{clip: its arrays} of a folder of latents, whatever they are of."""
    key = latents.Key(**json.loads(manifest.read(folder).latents)["key"])
    found = Latents.open(str(folder), key, AGAIN)
    names = found.manifest.table["clip_id"].to_pylist()
    return {name: found.read(row) for row, name in enumerate(names)}


def same(one, other):
    assert one.keys() == other.keys()
    for name, arrays in one.items():
        assert arrays.keys() == other[name].keys()
        assert all(arrays[k].tobytes() == other[name][k].tobytes() for k in arrays)


@pytest.mark.parametrize("stride", [(1, 2, 2), (4, 2, 2)])
def test_latents_are_those_of_what_the_loader_gives(clips, stride, tmp_path):
    """With laws that draw nothing, a view is the whole clip, as in training on pixels."""
    patch = stride[0], stride[1] * 2, stride[2] * 2
    told = encoding(clips, Pool(stride=stride))(str(tmp_path / "out"))
    assert told["clips"] == CLIPS and told["skipped"] == {} and told["missing"] == 0
    found, given = contents(tmp_path / "out"), {}
    for batch in loader(clips, patch=patch).batches():
        for row in range(2):
            arrays = {name: leaf[0, row] for name, leaf in batch.arrays.items()}
            videos = rows.unpack(arrays, patch)
            ids = [int(high) << 32 | int(low) for high, low in arrays["id"][arrays["valid"]]]
            given |= dict(zip(ids, videos, strict=True))
        if len(given) == CLIPS:
            break
    table = manifest.read(tmp_path / "out").table
    for row in table.to_pylist():
        video = given[keys.identity(row["clip_id"])[0]].astype(np.float64)
        while len(video) % stride[0]:
            video = np.concatenate([video[:1], video])
        cells = [
            video[k :: stride[0], i :: stride[1], j :: stride[2]]
            for k in range(stride[0])
            for i in range(stride[1])
            for j in range(stride[2])
        ]
        mean = np.mean(cells, axis=0) / 127.5 - 1
        arrays = found[row["clip_id"]]
        assert np.allclose(arrays["mean"], mean, atol=1e-3)
        assert np.allclose(arrays["logvar"], -2 - mean, atol=2e-3)
        assert (row["n_frames"], row["height"], row["width"]) == mean.shape[:3]


def test_the_manifest_carries_over_what_is_known(clips, tmp_path):
    encoding(clips, Pool(stride=(4, 2, 2)))(str(tmp_path / "out"))
    before = manifest.read(clips / "manifest").table.to_pylist()
    after = manifest.read(tmp_path / "out").table.to_pylist()
    for old, new in zip(before, after, strict=True):
        for name in ("clip_id", "captions", "caption_weights", "label", "still", "source"):
            assert old[name] == new[name]
        rate = Fraction(new["fps_num"], new["fps_den"])
        assert rate == Fraction(old["fps_num"], old["fps_den"]) / 4
    for name in ("tokenizer.json", "captions.txt"):
        ours, theirs = tmp_path / "out" / name, clips / "manifest" / name
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_record_says_which_pixels_it_is_of(clips, tmp_path):
    """Two drawn views of each clip, decoded again by what their records say."""
    told = encoding(clips, Pixels(), views=2, **DRAWN)(str(tmp_path / "out"))
    assert told["clips"] == 2 * CLIPS
    table = manifest.read(clips / "manifest").table
    stored = {row["clip_id"]: row for row in table.to_pylist()}
    root, seen = manifest.read(clips / "manifest").root, {}
    out = manifest.read(tmp_path / "out")
    for row, uri in enumerate(out.table["uri"].to_pylist()):
        with Place(str(tmp_path / "out"), uri).open(latents.ANY_SIZE) as file:
            arrays, about = latents.unpack(file.read())
        view = about["view"]
        clip = stored[view["clip_id"]]
        assert about["content"] == clip["sha256"]
        video = decode(
            Place(root, clip["uri"]),
            View(
                first=view["first"], offset=view["offset"], rate=view["rate"],
                frames=view["frames"], stored=(clip["height"], clip["width"]),
                resized=tuple(view["resized"]), size=tuple(view["size"]),
            ),
            still=clip["still"],
        )  # fmt: skip
        # float16 is exact enough to give back every pixel.
        again = np.asarray(Pixels().decode({}, arrays["latent"].astype(np.float32)))
        assert np.array_equal(again, video)
        name = view["clip_id"] + ("@1" if view["number"] else "")
        assert out.table["clip_id"][row].as_py() == name
        seen.setdefault(view["clip_id"], []).append((view["size"], view["frames"]))
    assert any(first != second for first, second in seen.values())


def test_hosts_together_make_what_one_makes(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 5)
    one = encoding(clips, **DRAWN)(str(tmp_path / "one"))
    second = encoding(clips, **DRAWN)(str(tmp_path / "two"), 1, 2)
    assert second["manifest"] is None and second["missing"] == 2
    assert not (tmp_path / "two" / manifest.TABLE).exists()
    both = encoding(clips, **DRAWN)(str(tmp_path / "two"), 0, 2)
    assert both["digest"] == one["digest"] and both["missing"] == 0
    same(contents(tmp_path / "one"), contents(tmp_path / "two"))
    assert not (tmp_path / "two" / "parts").exists()
    # Whoever comes late finds the work done.
    assert encoding(clips, **DRAWN)(str(tmp_path / "two"), 1, 2) == both


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_what_was_stopped_goes_on(clips, tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(features, "PART", 5)
    straight = encoding(clips, **DRAWN)(str(tmp_path / "one"))
    made, real = [], latents.write_records

    def write(file, records):
        made.append(file.name)
        if len(made) == stop_at:
            next(iter(records))  # in the middle of a file
            raise KeyboardInterrupt
        real(file, records)

    with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
        first.setattr(latents, "write_records", write)
        encoding(clips, **DRAWN)(str(tmp_path / "two"))
    made.clear()
    monkeypatch.setattr(latents, "write_records", lambda *x: (made.append(x[0].name), real(*x)))
    resumed = encoding(clips, **DRAWN)(str(tmp_path / "two"))
    assert len(made) == 3 - (stop_at - 1)
    assert resumed | {"manifest": ""} == straight | {"manifest": ""}
    same(contents(tmp_path / "one"), contents(tmp_path / "two"))


def test_a_part_whose_file_is_gone_is_made_again(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 5)
    straight = encoding(clips)(str(tmp_path / "one"))
    encoding(clips)(str(tmp_path / "two"), 1, 2)
    (tmp_path / "two" / "latents-000001.array_record").unlink()
    resumed = encoding(clips)(str(tmp_path / "two"))
    assert resumed["digest"] == straight["digest"]


def test_the_seed_decides_and_company_does_not(clips, tmp_path):
    encoding(clips, **DRAWN)(str(tmp_path / "one"))
    encoding(clips, **DRAWN, seed=1)(str(tmp_path / "other"))
    some = Source(manifest=str(clips / "manifest"), where="frames > 1")
    encoding(clips, **DRAWN, sources=(some,))(str(tmp_path / "some"))
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    films = contents(tmp_path / "some")
    assert 0 < len(films) < CLIPS
    same({name: one[name] for name in films}, films)
    differing = [
        one[name]["mean"].shape != other[name]["mean"].shape
        or not np.array_equal(one[name]["mean"], other[name]["mean"])
        for name in one
    ]
    assert sum(differing) > CLIPS / 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codec": Pool(scale=0.5)}, "another encoder"),
        ({"codec": Pool(stride=(2, 2, 2))}, "another encoder"),
        ({"seed": 1}, "other views"),
        ({"size": Area(low=256.0, high=1024.0)}, "other views"),
        ({"views": 2}, "other views"),
        ({"tokens": 64}, "other views"),
        ("clips", "other clips"),
    ],
)
def test_stale_latents_are_refused(clips, tmp_path, change, said):
    """Nothing is read, made or lost."""
    folder = tmp_path / "data"
    shutil.copytree(clips, folder)
    encoding(folder)(str(tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    if change == "clips":
        generate(str(folder / "clips"), CLIPS, 7)  # other files of the same names
        index(str(folder / "clips"), str(folder / "manifest"))
        change = {}
    with pytest.raises(DataError) as error:
        encoding(folder, **change)(str(tmp_path / "out"))
    assert error.value.code == 3
    assert said in str(error.value) and AGAIN in str(error.value)
    for other in {"another encoder", "other views", "other clips"} - {said}:
        # Another grid of cells is another encoder, and other views too.
        assert other not in str(error.value) or "stride" in repr(change)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_captions_may_change(clips, tmp_path):
    """No latent depends on them."""
    folder = tmp_path / "data"
    shutil.copytree(clips, folder)
    told = encoding(folder)(str(tmp_path / "out"))
    found = manifest.read(folder / "manifest")
    named = found.table.to_pylist()
    new = manifest.table_of([row | {"captions": ["something else"]} for row in named])
    manifest.write(folder / "manifest", new, found.root)
    assert encoding(folder)(str(tmp_path / "out")) == told


def test_a_record_of_something_else_is_refused(clips, tmp_path):
    told = encoding(clips)(str(tmp_path / "out"))
    key = latents.Key(**told["key"])
    found = Latents.open(str(tmp_path / "out"), key, AGAIN)
    record = latents.pack(found.read(0), dataclasses.replace(key, encoder="0" * 64), {})
    foreign = tmp_path / "out" / "foreign.array_record"
    latents.write_records(foreign, [record, b"no record"])

    def read(number, **row):
        first = found.manifest.table.to_pylist()[0]
        uri = f"record://{foreign.name}#{number}"
        table = manifest.table_of([first | {"uri": uri} | row])
        named = dataclasses.replace(found.manifest, table=table)
        return dataclasses.replace(found, manifest=named).read(0)

    for number, row, reason in (
        (0, {}, "changed"),
        (0, {"sha256": latents.sha256(record).hexdigest()}, "stale"),
        (1, {"sha256": latents.sha256(b"no record").hexdigest()}, "record"),
    ):
        with pytest.raises(BadClip) as bad:
            read(number, **row)
        assert bad.value.reason == reason


def test_bad_clips_are_counted_by_reason(clips, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(clips, folder)
    uris = manifest.read(folder / "manifest").table["uri"].to_pylist()
    (folder / "clips" / uris[0]).unlink()
    (folder / "clips" / uris[1]).write_bytes(b"grown")
    told = encoding(folder, Pool(scale=1.0))(str(tmp_path / "out"))
    assert told["clips"] == CLIPS - 2
    assert sum(told["skipped"].values()) == 2 and told["skipped"]["changed"] == 1
    assert len((tmp_path / "out" / "skipped.jsonl").read_text().splitlines()) == 2
    # Beyond the range of float16: nothing is left.
    with pytest.raises(DataError, match="not_finite"):
        encoding(clips, Pool(scale=1e6))(str(tmp_path / "none"))


def test_mistakes_are_said_before_anything_is_decoded(clips, tmp_path):
    encoding(clips)(str(tmp_path / "out"))
    twice = (Source(manifest=str(clips / "manifest")),) * 2
    for wrong, said in (
        (encoding(clips, sources=twice), "same name"),
        (encoding(clips, Pool(channels=4)), "channels"),
        (encoding(clips, Pool(stride=(1, 512, 512))), "patch"),
        (encoding(tmp_path, sources=(Source(manifest=str(tmp_path / "out")),)), "hold latents"),
    ):
        with pytest.raises(DataError, match=said) as error:
            wrong(str(tmp_path / "new"))
        assert error.value.code == 2
    with pytest.raises(DataError, match="of clips, not of latents"):
        encoding(clips)(str(clips / "manifest"))
    folder, found = tmp_path / "bare", manifest.read(clips / "manifest")
    shutil.copytree(clips, folder)
    bare = [row | {"sha256": None} for row in found.table.to_pylist()]
    manifest.write(folder / "manifest", manifest.table_of(bare), folder / "clips")
    with pytest.raises(DataError, match=f"{CLIPS} clips have no sha256"):
        encoding(folder)(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


KILLED = """
import sys
from pathlib import Path
from tests import test_features as t
t.features.PART = 5
t.encoding(Path(sys.argv[1]), **t.DRAWN)(sys.argv[2])
"""


def test_what_was_killed_goes_on(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 5)
    words = [sys.executable, "-c", KILLED, clips, tmp_path / "two"]
    # On as many devices: another program may round otherwise.
    flags = os.environ["XLA_FLAGS"]
    killed = environment(VDM_FAILPOINT="decode.read:kill@8", XLA_FLAGS=flags)
    done = subprocess.run(words, env=killed, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list((tmp_path / "two" / "parts").iterdir())
    assert not (tmp_path / "two" / manifest.TABLE).exists()
    straight = encoding(clips, **DRAWN)(str(tmp_path / "one"))
    resumed = encoding(clips, **DRAWN)(str(tmp_path / "two"))
    assert resumed | {"manifest": ""} == straight | {"manifest": ""}
    same(contents(tmp_path / "one"), contents(tmp_path / "two"))


def test_hosts_of_a_run_share_the_work(clips, tmp_path, monkeypatch, capsys):
    """Without --shard a process takes its own part."""
    words = ["encode", SMOKE, f"--config.knobs.manifest={clips / 'manifest'}", "--json"]
    monkeypatch.setattr(features, "PART", 5)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    # One after the other, so that neither waits (together: tests/laws/test_several_hosts.py).
    monkeypatch.setattr(Hosts, "agree", lambda self, name, work: [work()])
    for host in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        assert main([*words, f"--out={tmp_path / 'out'}"]) == 0
        said = capsys.readouterr().out
        assert not said if host else json.loads(said)["missing"] == 1
        assert (tmp_path / "out" / manifest.TABLE).exists() == (host == 1)


def test_the_command(clips, tmp_path):
    words = ["encode", SMOKE, f"--config.knobs.manifest={clips / 'manifest'}", "--json"]
    words.append(f"--out={tmp_path / 'out'}")
    told = json.loads(vdm(*words).stdout)
    assert told["clips"] == CLIPS and told["manifest"] == str(tmp_path / "out")
    assert told["key"].keys() == {"content", "encoder", "transform"}
    done = call(*words, "--config.knobs.seed=1")
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "other views" in done.stderr and "--config.knobs.seed=1" in done.stderr
    done = call(*words, "--shard=2/2")
    assert done.returncode == 2 and "--shard is '2/2'" in done.stderr
