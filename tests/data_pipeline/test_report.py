"""What a report says against counting by hand, closed forms, and the batches that come."""

import collections
import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest

from data_pipeline import picture, report
from data_pipeline.__main__ import main
from data_pipeline.clips import Strides
from data_pipeline.dropping import Constant
from data_pipeline.layouts import Buckets
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.manifest import read
from data_pipeline.picture import draw
from data_pipeline.sizes import Native
from data_pipeline.tables import tables
from tests.data_pipeline import synthetic
from tests.workbench import SMOKE, call, here

CLIPS = 400


def loader(*folders, **changes):
    settings = {
        "sources": tuple(Source(manifest=str(folder)) for folder in folders), "patch": (2, 4, 4),
        "tokens": 2048, "text_tokens": 96, "segments": 32, "rows": 8, "seed": 0, "size": Native(),
        "block": CLIPS,
    }  # fmt: skip
    return PackedVideo(**settings | changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return synthetic.write(
        tmp_path_factory.mktemp("made") / "m",
        CLIPS,
        label=lambda i: ("cat", "dog", '{"a": 1}', "")[i % 4],
        split=lambda i: "train" if i % 5 else "val",
        scores=lambda i: {"motion": i / CLIPS, "text_area": float("nan")} if i % 2 else None,
    )


def whole_block(data):
    """The report on all steps of the first block, and its examples."""
    block = data._plans.block(0)
    return data.report(-(-len(block) // 8), 4), block.examples


def test_numbers_are_those_of_counting(made):
    found, examples = whole_block(loader(made))
    rows = examples["row"].max() + 1
    steps = -(-rows // 8)
    assert found["steps"] == steps == pytest.approx(found["steps_per_epoch"])
    assert found["epochs"] == [found["steps_per_epoch"]]
    tokens = examples["tokens"].astype(float)
    assert found["fill"] == pytest.approx(tokens.sum() / (steps * 8 * 2048))
    assert found["pairs"] == pytest.approx((tokens**2).sum() / (steps * 8 * 2048**2))
    assert found["padding"] == {
        "video": pytest.approx(1 - found["fill"]), "text": pytest.approx(1 - found["text_fill"])
    }  # fmt: skip
    assert found["examples_per_row"] == pytest.approx(CLIPS / (steps * 8))
    assert (
        found["drops"]["trimmed"]
        == (examples["frames"] < np.array(frames_of(made, examples))).sum()
        > 0
    )
    assert found["tokens_left_out"] == 0
    assert found["bias"] == {"tokens": pytest.approx(0), "images": pytest.approx(0)}
    assert found["decode_cost"]["least"] == 1 < found["decode_cost"]["most"]
    json.dumps(found)


def frames_of(folder, examples):
    return read(folder).column("n_frames")[examples["clip"]]


def test_every_layout_is_judged_on_the_same_stream(made):
    data = loader(made)
    found, examples = whole_block(data)
    layouts = found["layouts"]
    assert list(layouts) == ["packed", "8 buckets", "padded"]
    assert layouts["packed"] == {name: found[name] for name in layouts["packed"]}
    # A row of one example is as full as an example is long.
    many = data.report(CLIPS // 8)["layouts"]["padded"]
    assert many["fill"] == pytest.approx(examples["tokens"].mean() / 2048)
    assert (many["examples_per_row"], many["shapes"]) == (1, 1)
    assert layouts["packed"]["fill"] > layouts["8 buckets"]["fill"] > layouts["padded"]["fill"]
    own = dataclasses.replace(data, layout=Buckets(count=3)).report(9)
    assert list(own["layouts"]) == ["3 buckets", "packed", "8 buckets", "padded"]
    assert own["layouts"]["packed"] == data.report(9)["layouts"]["packed"]


def test_what_random_steps_would_differ_by():
    """Against steps that are drawn at random."""
    rng = np.random.default_rng(0)
    examples = np.zeros(40_000, [("rate", float), ("tokens", int)])
    examples["rate"] = rng.random(40_000) < 0.7
    examples["tokens"] = rng.geometric(0.01, 40_000)
    steps = examples.reshape(400, 100)
    work = [np.square(step["tokens"].astype(float)) for step in steps]
    found = report.spread(report.Look(list(steps), work, [None] * 400))
    for name in ("images", "work"):
        assert found[name] == pytest.approx(found[f"{name}_at_random"], rel=0.15)
    ordered = np.sort(examples, order="tokens").reshape(400, 100)
    work = [np.square(step["tokens"].astype(float)) for step in ordered]
    found = report.spread(report.Look(list(ordered), work, [None] * 400))
    assert found["work"] > 5 * found["work_at_random"]


def test_histograms_hold_all_that_arrives_and_is_emitted(made):
    data = loader(made, tokens=300)
    found, examples = whole_block(data)
    for name, one in found["histograms"].items():
        assert sum(one["arrived"]) == pytest.approx(1) and sum(one["emitted"]) == pytest.approx(1)
        assert len(one["edges"]) == len(one["arrived"]) + 1 and np.all(np.diff(one["edges"]) > 0)
        middle = [np.dot(one[kind], one["edges"][1:]) for kind in ("arrived", "emitted")]
        if name == "tokens":
            assert one["arrived"] == one["emitted"]  # all of the block is in these steps
        else:
            assert middle[1] < middle[0]  # trimmed to 300 tokens, cropped to patches
    assert (examples["changed"] & 4 == 0).all()


def test_images_alone_have_no_seconds(tmp_path):
    still = synthetic.write(tmp_path / "m", 50, n_frames=1, fps_num=0, end_s=0.0)
    data = loader(still, block=50, patch=(1, 4, 4))
    found = data.report(2)
    assert set(found["histograms"]) == {"side", "tokens"} and found["images"] == 1
    assert found["spread"]["images"] == found["spread"]["images_at_random"] == 0
    draw(found, data.rows_of_step(), tmp_path / "report.png")
    assert PIL.Image.open(tmp_path / "report.png").size == (1600, 900)


def test_strides_cost_what_they_skip(tmp_path):
    film = {"n_frames": 31, "fps_num": 10, "end_s": 3.1, "height": 16, "width": 16}
    data = loader(synthetic.write(tmp_path / "m", 40, **film), fps=Strides(choices=(3,)), block=40)
    found = data.report(1)
    # Frames 0, 3, ... 30: eleven, of 31 that must be decoded. All of a clip is seen.
    assert found["decode_cost"] == {"least": pytest.approx(31 / 11), "most": pytest.approx(31 / 11)}


def test_what_is_left_out_is_counted(made):
    found = loader(made, dropping=Constant(share=0.5)).report(4)
    assert found["tokens_left_out"] == pytest.approx(0.5, abs=0.01)


def test_epochs_of_a_mixture(made, tmp_path):
    """Of 400 and 100 clips, in turns of 1 to 3: the small source is seen twelve times as often."""
    small = synthetic.write(tmp_path / "m", 100, 3)
    data = loader(made, small)
    sources = (data.sources[0], dataclasses.replace(data.sources[1], weight=3.0))
    found = dataclasses.replace(data, sources=sources).report(4)
    assert found["epochs"][0] == pytest.approx(12 * found["epochs"][1], rel=1e-3)
    assert found["steps_per_epoch"] == pytest.approx(found["epochs"][0] * 500 / 1600, rel=1e-3)


def test_the_card_counts_what_there_is(made):
    source = Source(manifest=str(made), split="train", where="motion > 0.5")
    cards = loader(made, sources=(source,)).card()
    rows = read(made).table.to_pylist()
    for row in rows:
        row["motion"] = (row["scores"] or {}).get("motion")
    kept = [r for r in rows if r["split"] == "train" and (r["motion"] or 0) > 0.5]
    for card, mine in ((cards["before"], rows), (cards["after"], kept)):
        films = [r for r in mine if r["fps_num"]]
        said = [caption for r in mine for caption in r["captions"]]
        assert card["clips"] == len(mine) and card["images"] == len(mine) - len(films)
        assert card["sentences"] == len(said) and card["files"] == len({r["uri"] for r in mine})
        assert card["words"] == pytest.approx(np.mean([len(c.split()) for c in said]))
        seconds = [r["end_s"] - r["start_s"] for r in films]
        assert card["seconds"] == pytest.approx(np.mean(seconds))
        assert card["hours"] == pytest.approx(sum(seconds) / 3600) and card["fps"] == 8
        shapes = collections.Counter(f"{r['width']}x{r['height']}" for r in mine)
        for name, count in card["resolutions"].items():
            assert shapes[name] == count
        assert max(shapes.values()) == max(card["resolutions"].values())
        labels = collections.Counter(r["label"] for r in mine if r["label"] in ("cat", "dog"))
        assert card["labels"] == labels and card["categories"] == len(labels)
        motion = [r["motion"] for r in mine if r["motion"] is not None]
        assert set(card["scores"]) == {"motion"}  # a text area that is nan was not measured
        assert card["scores"]["motion"]["scored"] == pytest.approx(len(motion) / len(mine))
        assert card["scores"]["motion"]["p50"] == pytest.approx(np.median(motion), rel=1e-5)
    assert cards["after"]["splits"] == {"train": len(kept)}


def test_parts_of_one_set_are_counted_once(made):
    parts = (("train", "n_frames > 1"), ("val", "n_frames > 1"), ("train", "n_frames == 1"))
    sources = tuple(Source(manifest=str(made), split=s, where=w) for s, w in parts)
    cards = loader(made, sources=sources).card()
    assert cards["before"]["clips"] == cards["before"]["files"] == CLIPS
    rows = read(made).table.to_pylist()
    left = sum(row["split"] == "val" and row["n_frames"] == 1 for row in rows)
    assert cards["after"]["clips"] == CLIPS - left


def test_the_card_of_manifests_alone(made, tmp_path, capsys):
    other = synthetic.write(tmp_path / "other", 30, seed=1)
    assert main(["card", str(made), str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == loader(made, other).card()["before"]
    assert found["clips"] == found["files"] == CLIPS + 30  # though some are called alike
    assert main(["card", str(made)]) == 0
    said = capsys.readouterr().out
    assert f"{CLIPS}" in said and "motion" in said and "before" not in said
    assert main(["card", str(tmp_path / "none")]) == 2
    assert "there is no manifest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("low", "high"),
    [(256, 960), (0.208, 1.38), (256, 32768), (16, 24), (20, 20.5), (0.04, 3600), (3, 131072)],
)
def test_numbers_of_a_logarithmic_axis_are_round(low, high):
    """Two at least and few enough to read, of two digits where the range allows it."""
    axes = plt.figure(figsize=(5, 4)).add_subplot()
    found = {"edges": np.geomspace(low, high, 25), "arrived": [1 / 24] * 24}
    picture._histogram(axes, "tokens", found | {"emitted": found["arrived"]})
    inside = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 2 <= len(inside) <= 9
    shown = {label.get_text() for label in axes.get_xticklabels()}
    digits = 2 if high > 1.2 * low else 3
    assert {f"{float(f'{tick:.{digits}g}'):,.10g}" for tick in inside} <= shown
    plt.close("all")


def test_the_command_writes_a_table_json_and_a_picture(tmp_path, made):
    bare = call("report", f"--manifest={made}", module="data_pipeline")
    assert bare.returncode == 2 and f"card {made}" in bare.stderr
    words = ("report", SMOKE, f"--manifest={made}", "--steps=5", "--devices=2")
    done = call(*words, "--json", f"--out={tmp_path / 'out'}", module="data_pipeline")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "out" / "report.json").read_text())
    assert {"fill", "straggler_ratio", "steps_per_epoch", "drops", "card"} <= set(found)
    assert found["steps"] == 5 and found["card"]["before"]["clips"] == CLIPS
    shown = np.asarray(PIL.Image.open(tmp_path / "out" / "report.png"))
    assert shown.shape[:2] == (900, 1600) and len(np.unique(shown)) > 50


def test_the_table_says_what_was_found(made, capsys):
    from rich.console import Console

    data = loader(made)
    found = {**data.report(4), "card": data.card()}
    console = Console(width=120, record=True)
    console.print(tables(found))
    said = console.export_text()
    for word in (f"{found['fill']:.2%}", "8 buckets", "trimmed", f"{CLIPS}", "motion"):
        assert word in said
    first = next(iter(found["layouts"].values()))
    for empty, advised in ((0.02, True), (0.002, False)):
        first["empty_rows"] = empty
        console.print(tables(found))
        assert ("raise data.block" in console.export_text()) is advised


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--steps=0",), 2, ("--steps", "0")),
        (("--devices=3",), 2, ("rows", "3 devices")),
        (("--config.data.tokens=0",), 2, ("tokens", "0")),
        (("--config.data.tokns=9",), 2, ("tokns", "tokens")),
        (("--out=/proc/none",), 6, ("/proc/none",)),
    ],
)
def test_a_mistake_in_the_command(made, words, code, said):
    done = here("report", SMOKE, f"--manifest={made}", "--steps=2", *words)
    assert done.returncode == code and "Traceback" not in done.stderr and done.stdout == ""
    for word in said:
        assert word in done.stderr, done.stderr
