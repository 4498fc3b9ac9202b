"""Text features made beforehand: those of the encoder, whoever makes them, and never others."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline import latents, manifest, texts
from data_pipeline.errors import BadClip, DataError
from data_pipeline.loaders import Source
from data_pipeline.texts import Texts
from tests.rows import example, pack
from tests.test_features import AGAIN, Pool, clips, encoding, loader
from tests.train.test_step import make_stage
from tests.workbench import SMOKE, call, vdm
from vdm_jax import captions
from vdm_jax.captions import Captions
from vdm_jax.cli import configs
from vdm_jax.cli.check import examine
from vdm_jax.codecs import Pixels
from vdm_jax.config import UserError, build
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.nets.encoders import TextEmbedding
from vdm_jax.pipeline import Pipeline
from vdm_jax.requests import Capacity, Request
from vdm_jax.signals import FrozenText, PackedText, Signal
from vdm_jax.texts import Module, _run, encode
from vdm_jax.train.feed import to_carrier

__all__ = ["clips"]  # a fixture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spelt:
    """The vector of an id is (the id, its place in the text), which float16 holds exactly."""

    tokenizer: str
    width: int = 2
    max_length: int = 8
    scale: float = dataclasses.field(default=1.0, repr=False, compare=False)  # its weights
    hole: int = -1  # an id without a finite vector

    def weights(self):
        return {"scale": jnp.float32(self.scale)}

    def encode(self, params, ids, mask):
        place = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        vectors = jnp.stack([jnp.where(ids == self.hole, jnp.inf, ids), place], -1)
        return jnp.where(mask[..., None], params["scale"] * vectors, 0)


def spelt(folder, **changes):
    return Spelt(tokenizer=loader(folder).tokenizer.digest, **changes)


def make(folder, out, encoder=None, shard=(0, 1), **changes):
    data = loader(folder, **changes)
    work = Captions(encoder=encoder or spelt(folder), data=data, again=AGAIN)
    return work(str(out), data.manifests[0], *shard)


def over(folder, **changes):
    source = Source(manifest=str(folder))
    return loader(folder, **{"sources": (source,), "cache": str(folder / "p")} | changes)


@pytest.fixture(scope="module")
def made(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    make(clips, folder)
    return folder


def files(folder):
    """Every file below a folder."""
    return {p.name: p.read_bytes() for p in sorted((folder / "texts").rglob("*")) if p.is_file()}


def test_rows_hold_what_the_encoder_makes_and_nothing_else_changes(clips, made):
    """Rows, texts and pixels are those of the clips without features."""
    streams = over(made).batches(), loader(clips).batches()
    words = 0
    for _, found, plain in zip(range(12), *streams, strict=False):
        arrays, features = found.arrays, found.arrays["text_features"].astype(np.float32)
        assert set(arrays) == set(plain.arrays) | {"text_features"} and not found.bad
        for name, leaf in plain.arrays.items():
            assert np.array_equal(arrays[name], leaf), name
        inside = (arrays["text_segment"] > 0) & (arrays["text_position"] < 8)
        assert np.array_equal(features[..., 0], np.where(inside, arrays["text"], 0))
        assert np.array_equal(features[..., 1], np.where(inside, arrays["text_position"], 0))
        words += inside.sum()
    assert words > 100


def test_each_distinct_caption_is_kept_once(clips, made):
    named = [c for some in manifest.read(clips / "manifest").table["captions"] for c in some]
    found = Texts.of(manifest.read(made))
    assert found.table.num_rows == len({str(c) for c in named})
    assert found.rows(["", "  ", "never said"]).tolist() == [texts.EMPTY] * 2 + [texts.MISSING]
    assert found.read(texts.EMPTY, "").shape == (0, 2)


def trained_along():
    module = TextEmbedding(vocab=32, width=6, max_length=8, depth=1, heads=2)
    ids, mask = jnp.zeros((1, 8), int), jnp.ones((1, 8), bool)
    start = jax.jit(lambda: module.init(jax.random.key(1), ids, mask))
    params = jax.tree.map(lambda x: jnp.asarray(9 * np.asarray(x)), unboxed(start()))
    return Module(module=module, params=params, tokenizer="")


def test_a_text_s_features_are_those_of_it_alone():
    """Whatever it is encoded with, and however it is padded."""
    encoder = trained_along()
    lines = [[1, 2, 3], list(range(5, 14)), [2, 3, 1], [7] * 8]
    apply = jax.jit(encoder.module.apply)
    for ids, found in zip(lines, encode(encoder, encoder.weights(), lines), strict=True):
        cut = jnp.asarray([ids[:8]])
        alone = apply(encoder.params, cut, jnp.ones(cut.shape, bool))[0]
        assert found.dtype == np.float16 and found.shape == (min(len(ids), 8), 6)
        # To the half of a digit that float16 keeps.
        np.testing.assert_allclose(found, alone, rtol=2**-10, atol=2**-10)


def test_weights_are_an_argument():
    """Law 8: of a table of 4096 numbers there is nothing in the program."""
    module = TextEmbedding(vocab=1024, width=4, max_length=4)
    ids, mask = jnp.zeros((2, 4), int), jnp.ones((2, 4), bool)
    params = jax.eval_shape(module.init, jax.random.key(0), ids, mask)
    encoder = Module(module=module, params=params, tokenizer="")
    lines = _run.lower(encoder, encoder.weights(), ids, mask).as_text().splitlines()
    assert max((len(line) for line in lines if "constant" in line), default=0) < 4096


ONE, TWO = example(1, (2, 2, 2), (5, 6, 7)), example(2, (1, 2, 3), (8, 9, 10, 11, 12))
EMPTY = example(3, (1, 1, 1), (0,))


def test_embedded_features_are_those_of_the_encoder_trained_along():
    """Packed, against the encoder run on each text alone; the null vector where there is none."""
    encoder, rows = trained_along(), [[ONE, TWO, EMPTY]]
    arrays = pack(rows, tokens=24, text=12, segments=4)
    width = encoder.width
    arrays["text_features"] = np.full((1, 12, width), 3, np.float16)  # of padding and no text, too
    for start, member in ((0, ONE), (3, TWO)):
        (found,) = encode(encoder, encoder.weights(), [member["text"]])
        arrays["text_features"][0, start : start + len(found)] = found
    batch, raw = to_carrier(jax.tree.map(jnp.asarray, arrays), Pixels(), (1, 2, 2))
    along = PackedText(encoder=encoder.module, max_length=4)
    module = FrozenText(width=5, max_length=4)
    kept = jnp.zeros((1, 4), bool)

    @jax.jit
    def run(dropped):
        params = unboxed(module.init(jax.random.key(0), raw["text"], batch, dropped)["params"])
        params = jax.tree.map(lambda x: x + 0.5, params)
        known = {"params": {"encoder": encoder.params["params"]}}
        truth = along.apply(known, raw["text"], batch, kept)
        return params, truth, module.apply({"params": params}, raw["text"], batch, dropped)

    params, truth, tokens = run(kept)
    assert tokens.segment[0].tolist() == [1] * 3 + [2] * 4 + [0, 3, 0, 0, 0]
    wanted = truth.x[0, :7] @ params["in"]["kernel"] + params["in"]["bias"]
    np.testing.assert_allclose(tokens.x[0, :7], wanted, atol=0.02)
    np.testing.assert_array_equal(tokens.x[0, 8], params["null"])
    assert not tokens.x[0, 9:].any()
    hidden = run(kept.at[0, 0].set(True))[2]
    assert hidden.segment[0].tolist() == [1, 0, 0] + [2] * 4 + [0, 3, 0, 0, 0]
    np.testing.assert_array_equal(hidden.x[0, 0], params["null"])
    np.testing.assert_array_equal(hidden.x[0, 3:], tokens.x[0, 3:])


def unboxed(tree):
    from flax.core import meta

    return meta.unbox(tree)


def test_hosts_and_stops_change_no_byte(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "PART", 3)
    one = make(clips, tmp_path / "one")
    first = make(clips, tmp_path / "two", shard=(1, 2))
    assert first["captions"] is None and first["missing"] > 0
    assert not (tmp_path / "two" / manifest.TABLE).exists()
    assert make(clips, tmp_path / "two", shard=(0, 2)) == one
    written, real = [], latents.write_records

    def write(file, records):
        written.append(file.name)
        if len(written) == 2:
            next(iter(records))
            raise KeyboardInterrupt
        real(file, records)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(latents, "write_records", write)
        make(clips, tmp_path / "three")
    kept = (tmp_path / "three" / "texts" / written[0]).stat().st_mtime_ns
    assert make(clips, tmp_path / "three") == one == make(clips, tmp_path / "three")
    assert (tmp_path / "three" / "texts" / written[0]).stat().st_mtime_ns == kept
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")


def recaptioned(folder, tmp_path):
    """A copy of the clips, the first of which is called something else."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    found = manifest.read(copy / "manifest" if (copy / "manifest").exists() else copy)
    said = found.table.to_pylist()
    said[0] |= {"captions": ["a caption nobody has read"], "caption_weights": None}
    table = manifest.table_of(said)
    manifest.write(found.folder, table, found.root, found.latents, found.texts)
    return copy


def other_tokenizer(folder):
    """A word more, so other ids."""
    path = folder / "tokenizer.json"
    said = json.loads(path.read_text())
    said["added_tokens"][0]["lstrip"] = True
    path.write_text(json.dumps(said))


@pytest.mark.parametrize("what", ["encoder", "weights", "tokenizer", "captions"])
def test_what_is_stale_is_refused_and_nothing_is_lost(clips, made, tmp_path, what):
    out = shutil.copytree(made, tmp_path / "out")
    before, folder, encoder = files(out), clips, None
    if what == "captions":
        folder, said = recaptioned(clips, tmp_path), "a manifest of other clips"
    elif what == "tokenizer":
        folder, said = shutil.copytree(clips, tmp_path / "copy"), "with another tokenizer"
        other_tokenizer(folder / "manifest")
    else:
        change = {"scale": 2.0} if what == "weights" else {"max_length": 4}
        encoder, said = spelt(clips, **change), "by another encoder"
    with pytest.raises(DataError, match=said) as error:
        make(folder, out, encoder)
    assert files(out) == before
    if what != "captions":
        assert error.value.code == 3 and AGAIN in str(error.value)


def frozen(encoder, folder):
    """A smoke run on a manifest that reads the features of an encoder."""
    config = configs.load([SMOKE, f"--config.knobs.manifest={folder}"])
    run = build(config)
    embed = FrozenText(width=8, max_length=4)
    signal = Signal(key="text", slot="tokens.text", embed=embed, drop=0.1)
    denoiser = run.stage.denoiser.clone(signals=(signal,))
    return dataclasses.replace(
        run, stage=dataclasses.replace(run.stage, denoiser=denoiser, text=encoder)
    )


def test_a_run_says_what_is_wrong_before_it_starts(clips, made, tmp_path):
    assert frozen(spelt(clips), made).problems(1) == []
    tokenizer = shutil.copytree(made, tmp_path / "tokenizer")
    other_tokenizer(tokenizer)
    for encoder, folder, said in (
        (spelt(clips), clips / "manifest", "has no text features; encode them first"),
        (spelt(clips, scale=2.0), made, "by another encoder"),
        (spelt(clips, width=3), made, "have a width of 2, stage.text has 3"),
        (spelt(clips, max_length=3), made, "stage.text reads 3 ids at most"),
        (None, made, "stage.text is None"),
        (spelt(clips), tokenizer, "with another tokenizer"),
        (spelt(clips), recaptioned(made, tmp_path), "1 captions in"),
    ):
        run = frozen(encoder, folder)
        (found,) = run.problems(1)
        assert said in found
    both = (Source(manifest=str(made)), Source(manifest=str(clips / "manifest")))
    assert "of several encoders, or none" in over(made, sources=both).problems()[0]


def test_what_cannot_be_encoded_is_said(clips, tmp_path):
    class Short(Spelt):
        def encode(self, params, ids, mask):
            return super().encode(params, ids, mask)[..., :1]

    digest = loader(clips).tokenizer.digest
    for encoder, said in (
        (Spelt(tokenizer="of something else"), "the ids of another tokenizer"),
        (Short(tokenizer=digest), "by its width it is"),
    ):
        with pytest.raises(DataError, match=said) as error:
            make(clips, tmp_path / "new", encoder)
        assert error.value.code == 2
    with pytest.raises(DataError, match="is the manifest itself"):
        make(clips, clips / "manifest")
    assert not (tmp_path / "new").exists()


def test_a_caption_without_a_finite_vector_masks_its_clips(clips, tmp_path):
    found = manifest.read(clips / "manifest")
    first = str(found.table["captions"][0][0])
    data = loader(clips)
    hole = max(data.tokenizer.encode(first), key=lambda i: -sum(
        i in data.tokenizer.encode(str(c)) for some in found.table["captions"] for c in some
    ))  # fmt: skip
    told = make(clips, tmp_path, spelt(clips, hole=hole))
    assert told["skipped"]["not_finite"] > 0 and told["captions"] > 0
    batches, bad = over(tmp_path, max_bad=1.0).batches(), {}
    for _, batch in zip(range(12), batches, strict=False):
        assert np.isfinite(batch.arrays["text_features"]).all()
        ids = np.where(batch.arrays["text_position"] < 8, batch.arrays["text"], 0)
        for row in zip(*(batch.arrays[n].reshape(2, -1) for n in ("text_segment", "valid")),
                       ids.reshape(2, -1), strict=True):  # fmt: skip
            segment, valid, words = row
            for slot in range(segment.max()):
                assert valid[slot] == (hole not in words[segment == slot + 1])
        bad |= {name: reason for name, _, reason in batch.bad}
    assert set(bad.values()) == {"not_finite"} and len(bad) < len(found)


@pytest.mark.parametrize(
    ("field", "reason"), [("encoder", "stale"), ("content", "stale"), ("nan", "not_finite")]
)
def test_a_record_of_something_else_is_refused(made, tmp_path, field, reason):
    """Written by somebody else, in the place that the table names."""
    there = manifest.read(shutil.copytree(made, tmp_path / "copy"))
    found = Texts.of(there)
    name, said = next(iter(texts.distinct([there.table]).items()))  # the first by hash
    key = dataclasses.replace(found.key, content=name.hex())
    features = found.read(0, said)
    with pytest.raises(BadClip, match="another content"):
        found.read(1, said)
    if field == "nan":
        features = features.copy()
        features[0] = np.nan
    else:
        key = dataclasses.replace(key, **{field: "0" * 64})
    about = {latents.ABOUT: json.dumps(dataclasses.asdict(key))}
    record = latents.safetensors.numpy.save({"features": features}, metadata=about)
    file = tmp_path / "copy" / "texts" / "texts-000000.array_record"
    latents.write_records(file, [record])
    with pytest.raises(BadClip) as bad:
        found.read(0, said)
    assert bad.value.reason == reason


def test_they_join_latents_of_the_same_clips(clips, tmp_path):
    out = str(tmp_path / "out")
    told = encoding(clips, Pool())(out)
    data = loader(clips)
    work = Captions(encoder=spelt(clips), data=data, again=AGAIN)
    early = work(str(tmp_path / "early"), None)  # before another host has made its latents
    assert early["captions"] is None and not (tmp_path / "early" / manifest.TABLE).exists()
    done = work(out, manifest.read(out))
    assert work(out, manifest.read(out)) == done and encoding(clips, Pool())(out) == told
    batch = next(over(tmp_path / "out", tokens=4096).batches())
    assert batch.arrays["moments"].any() and batch.arrays["text_features"].any()


def test_prompts_are_read_by_the_encoder_and_no_text_by_none(clips):
    """The seed is the same: what differs is what the encoder made of the prompt."""
    tokenizer = loader(clips).tokenizer
    signal = Signal(
        key="text", slot="tokens.text", embed=FrozenText(width=16, max_length=4), drop=0.3
    )
    plain = make_stage()
    small = plain.denoiser.backbone.clone(depth=1)
    denoiser = plain.denoiser.clone(signals=(signal,), backbone=small)
    stage = dataclasses.replace(plain, denoiser=denoiser, sampler=Sampler(steps=1))
    arrays = pack([[example(1, (1, 2, 2), (5,))]], tokens=64, text=8, segments=2)
    arrays["text_features"] = np.zeros((1, 8, 2), np.float16)
    batch, raw = to_carrier(jax.tree.map(jnp.asarray, arrays), Pixels(), stage.patch)
    at = stage.process.level(jnp.full((1, 2, 1), 0.5))
    fresh = jax.jit(lambda: denoiser.init(jax.random.key(0), batch, at, raw, method="start"))()
    leaves, tree = jax.tree.flatten(unboxed(fresh))
    keys = jax.random.split(jax.random.key(2), len(leaves))  # the last layer begins at 0
    drawn = [x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(tree, drawn)
    room = Capacity(rows=1, tokens=96, text_tokens=32, segments=4)

    def videos(encoder):
        whole = Pipeline(dataclasses.replace(stage, text=encoder), params, tokenizer, room)
        asked = [Request(prompt=p, frames=2, height=8, width=8) for p in ("a red circle", "")]
        return dict(whole(asked))

    one, again, other = (videos(spelt(clips, scale=s)) for s in (0.01, 0.01, 0.03))
    assert np.array_equal(one[0], again[0]) and np.any(one[0] != other[0])
    assert np.array_equal(one[1], other[1]) and np.any(one[0] != one[1])


EXPERIMENT = """
from experiments import demo
from vdm_jax.config import spec
from vdm_jax.signals import FrozenText, Signal
from vdm_jax.train.frozen import of_run

def get_config(arg=None):
    config = demo.get_config("smoke")
    embed = spec(FrozenText, width=16, max_length=24)
    signal = spec(Signal, key="text", slot="tokens.text", embed=embed, drop=0.1)
    config.stage.denoiser.signals = (signal,)
    config.stage.denoiser.backbone.cross = ("text",)
    config.stage.text = spec(of_run, run={run!r})
    return config
"""


@pytest.mark.slow
def test_a_run_on_the_text_encoder_of_another(trained, manifest, tmp_path):
    """Encoded, trained and sampled from the command line; the other's weights must stay."""
    base = shutil.copytree(trained, tmp_path / "base")
    (tmp_path / "second.py").write_text(EXPERIMENT.format(run=str(base)))
    config, out = f"--config={tmp_path / 'second.py'}", tmp_path / "out"
    clips = f"--config.knobs.manifest={manifest}"
    (said,) = examine(configs.load([config, clips, "--config.data.rows=8"]))["errors"]
    assert "has no text features; encode them first" in said
    told = json.loads(vdm("encode", config, clips, f"--out={out}", "--json").stdout)
    assert told["texts"]["captions"] > 0 and not told["texts"]["skipped"]
    run = tmp_path / "run"
    vdm("train", config, f"--config.knobs.manifest={out}", f"--workdir={run}", "--steps=2",
        "--config.validate_every=2")  # fmt: skip
    sample = ("sample", run, "--prompt=a red circle", "--frames=4", f"--out={tmp_path / 'videos'}")
    vdm(*sample)
    newest = max(base.glob("checkpoints/*/"), key=lambda folder: folder.name)
    shutil.rmtree(newest)  # other weights
    done = call(*sample)
    assert done.returncode == 4 and "features of another text encoder" in done.stderr
    (base / "config.json").unlink()
    with pytest.raises(UserError, match="is no run directory"):
        build(configs.load([config, clips]))
