"""Which clips are trained on, how often each source and each caption has its turn."""

import os

import numpy as np
import pytest

from data_pipeline import collection, keys, text
from data_pipeline.errors import DataError
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.manifest import read
from data_pipeline.mixture import ByExamples, ByTokens
from data_pipeline.sizes import Native
from data_pipeline.text import Tokenizer
from tests.data_pipeline import synthetic


def loader(*sources, **changes):
    settings = {
        "sources": sources, "patch": (2, 8, 8), "tokens": 600, "text_tokens": 64, "segments": 32,
        "rows": 4, "seed": 0, "size": Native(), "block": 4096,
    }  # fmt: skip
    return PackedVideo(**settings | changes)


def arrivals(data, blocks=2):
    return np.concatenate([data._plans.block(k).examples for k in range(blocks)])


@pytest.fixture(scope="module")
def unlike(tmp_path_factory):
    """A source of long films and one of small images."""
    folder = tmp_path_factory.mktemp("unlike")
    film = {"n_frames": 32, "fps_num": 8, "end_s": 4.0, "height": 48, "width": 48}
    image = {"n_frames": 1, "fps_num": 0, "height": 24, "width": 32}
    long = synthetic.write(folder / "long", 60, 1, **film, split=lambda i: ("train", "test")[i % 2])
    small = synthetic.write(folder / "small", 90, 2, **image, scores=lambda i: {"motion": i / 90})
    return str(long), str(small)


@pytest.mark.parametrize(("mix", "what"), [(ByExamples(), "examples"), (ByTokens(), "tokens")])
def test_weights_are_shares_of_what_is_named(unlike, mix, what):
    """1 to 3: of the examples, or of the tokens, of which a film has 48 times as many."""
    long, small = unlike
    data = loader(Source(manifest=long), Source(manifest=small, weight=3.0), mix=mix)
    seen = arrivals(data)
    counted = np.ones(len(seen)) if what == "examples" else seen["tokens"]
    share = counted[seen["source"] == 0].sum() / counted.sum()
    assert share == pytest.approx(0.25, abs=0.005)


def test_tokens_are_measured_under_the_laws_in_force(unlike):
    """Half of the tokens of all: the shares stay as they are, though half as many are there."""
    from data_pipeline.dropping import Constant

    long, small = unlike
    both = Source(manifest=long), Source(manifest=small)
    found = []
    for share in (0.0, 0.5):
        data = loader(*both, mix=ByTokens(), dropping=Constant(share=share))
        seen = arrivals(data, 1)
        assert seen["tokens"].sum() == pytest.approx(
            (1 - share) * seen["grid"].astype(int).prod(axis=1).sum(), rel=0.01
        )
        found.append(seen["tokens"][seen["source"] == 0].sum() / seen["tokens"].sum())
    assert found[0] == pytest.approx(0.5, abs=0.01) and found[1] == pytest.approx(0.5, abs=0.01)


def test_splits_and_conditions_choose_the_clips(unlike):
    long, small = unlike
    data = loader(
        Source(manifest=long, split="test", where="seconds > 3"),
        Source(manifest=small, where="motion >= 0.5"),
    )
    seen = arrivals(data)
    names = {
        clips.names[clip] for s, clips in enumerate(data._sources)
        for clip in seen["clip"][seen["source"] == s]
    }  # fmt: skip
    wanted = {f"1/{i:06d}" for i in range(1, 60, 2)} | {f"2/{i:06d}" for i in range(45, 90)}
    assert names == wanted
    card = data.card()
    assert card["before"]["clips"] == 150 and card["after"]["clips"] == len(wanted)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"split": "trian"}, ("trian", "Did you mean 'train'?")),
        ({"split": "validation"}, ("validation", "Known: test, train.")),
        ({"where": "heigth > 3"}, ("heigth", "Did you mean 'height'?")),
        ({"where": "height > 480"}, ("height > 480", "none of the 60 clips")),
        ({"where": "motion > 0"}, ("motion > 0", "none of the 60 clips")),
        ({"split": "test", "where": "seconds > 9"}, ("none of the 30 clips",)),
    ],
)
def test_a_choice_that_leaves_nothing_is_said(unlike, part, said):
    data = loader(Source(manifest=unlike[0], **part), Source(manifest=unlike[1]))
    found = data.problems()
    assert len(found) == 1
    for word in said:
        assert word in found[0]
    with pytest.raises(DataError) as error:
        next(data.batches())
    assert error.value.code == 2


def test_a_set_without_splits_says_so(unlike):
    (found,) = loader(Source(manifest=unlike[1], split="train")).problems()
    assert "have no split" in found


def caption_shares(folder, count=6000):
    """How often each caption of each clip is drawn."""
    clips = gathered(folder)
    drawn = clips.caption(
        np.repeat(np.arange(len(clips)), count),
        np.tile((np.arange(count) + 0.5) / count, len(clips)),
    ).reshape(len(clips), count)
    return clips, [
        [float((mine == c).mean()) for c in range(clips.starts[i], clips.starts[i + 1])]
        for i, mine in enumerate(drawn)
    ]


def gathered(folder, cache=None):
    found = read(folder)
    return collection.gather(found, Tokenizer(found.tokenizer), cache or folder / "plans")


def test_captions_are_drawn_by_weight(tmp_path):
    weights = [None, [1.0], [3.0, 1.0], [0.0, 2.0, 0.0], [0.1, 0.2, 0.7], None, None]
    counts = [0, 1, 2, 3, 3, 2, 3]
    folder = synthetic.write(
        tmp_path / "m", 7, captions=lambda i: [f"c{n}" for n in range(counts[i])],
        caption_weights=lambda i: weights[i],
    )  # fmt: skip
    _, found = caption_shares(folder)
    wanted = [[], [1], [0.75, 0.25], [0, 1, 0], [0.1, 0.2, 0.7], [0.5, 0.5], [1 / 3] * 3]
    for mine, its in zip(found, wanted, strict=True):
        assert mine == pytest.approx(its, abs=1e-3)
    clips = gathered(folder)
    none = clips.caption(np.zeros(3, int), np.array([0.0, 0.5, 0.999]))
    assert none.tolist() == [-1, -1, -1]
    edge = clips.caption(np.array([3, 4, 6]), np.full(3, np.nextafter(1, 0)))
    assert edge.tolist() == (clips.starts[[3, 4, 6]] + [1, 2, 2]).tolist()


def test_without_weights_all_captions_are_alike(tmp_path):
    _, found = caption_shares(synthetic.write(tmp_path / "m", 6))
    assert found == [[], [1], [0.5, 0.5]] * 2


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "weights",
    [[1.0], [1.0, 2.0, 3.0], [0.0, 0.0], [-1.0, 2.0], [NAN, 1.0], [INF, 1.0], [None, 1.0], []],
)
def test_weights_that_are_none_name_the_clip(tmp_path, weights):
    folder = synthetic.write(
        tmp_path / "m", 6, captions=["a", "b"],
        caption_weights=lambda i: weights if i == 4 else None,
    )  # fmt: skip
    with pytest.raises(DataError, match="'0/000004' are no weights") as error:
        gathered(folder)
    assert error.value.code == 3
    assert "caption_weights" in loader(Source(manifest=str(folder))).problems()[0]


def test_what_was_measured_is_kept_under_its_digest(tmp_path, monkeypatch):
    folder = synthetic.write(tmp_path / "m", 30)
    first = gathered(folder)
    assert first.id.tolist() == [list(keys.identity(name)) for name in first.names]
    encode = Tokenizer(folder / "tokenizer.json").encode
    assert first.words.tolist() == [len(encode(caption)) for caption in first.captions]
    monkeypatch.setattr(Tokenizer, "lengths", None)
    monkeypatch.setattr(keys, "identities", None)
    again = gathered(folder)
    assert np.array_equal(first.id, again.id) and np.array_equal(first.words, again.words)
    text.train(["quite different words", "a"], folder / "tokenizer.json", size=300)
    with pytest.raises(TypeError):
        gathered(folder)  # another tokenizer counts anew
    monkeypatch.undo()
    assert gathered(folder).words.tolist() != first.words.tolist()


def test_where_nothing_can_be_kept_it_is_measured_anew(tmp_path):
    folder = synthetic.write(tmp_path / "m", 10)
    (tmp_path / "file").write_text("")
    found = gathered(folder, tmp_path / "file" / "below")
    assert np.array_equal(found.words, gathered(folder).words)
    for file in (folder / "plans").iterdir():
        os.truncate(file, 90)
    assert np.array_equal(found.id, gathered(folder).id)
