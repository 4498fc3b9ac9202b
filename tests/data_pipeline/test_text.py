"""Captions and their numbers."""

import random

import pytest
from tokenizers import Tokenizer as Reference
from tokenizers.processors import TemplateProcessing

from data_pipeline.errors import DataError
from data_pipeline.text import NULL, Tokenizer, clean, train

WORDS = ["a red circle moving left", "a blue square moving right over light stripes"] * 10


@pytest.fixture
def tokenizer(tmp_path):
    train(WORDS, tmp_path / "tokenizer.json")
    return Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ["a red circle", "Ünknown wörds 你好 🎬", "א ב ג", "x" * 500])
def test_what_was_said_can_be_read_back(tokenizer, text):
    reference = Reference.from_file(tokenizer.path)
    assert reference.decode(tokenizer.encode(text)).strip() == text
    assert all(0 < i < tokenizer.size for i in tokenizer.encode(text))


def test_the_null_token_cannot_be_written(tokenizer):
    assert tokenizer.encode("") == tokenizer.encode(" \n\0") == [0]
    assert 0 not in tokenizer.encode(f"a {NULL} b")
    assert tokenizer.lengths(["", "a red circle"]) == [1, len(tokenizer.encode("a red circle"))]


def test_lengths_are_those_of_encoding(tokenizer):
    """Words are counted one by one; spaces, apostrophes and accents are where that could differ."""
    rng = random.Random(0)
    words = ["a", "it's", "7up", "3,000", "km/h", "naïve", "日本語", "😀", "<null>", "'t", "__x__"]
    parts = [*words, " ", " ", "\t", "'", "é", "\u0301"]
    captions = ["".join(rng.choices(parts, k=rng.randrange(30))) for _ in range(400)]
    assert tokenizer.lengths(captions) == [len(tokenizer.encode(text)) for text in captions]


def test_lengths_of_a_tokenizer_that_adds_to_every_caption(tokenizer, tmp_path):
    """A foreign one may begin and end each caption: it is asked for whole captions."""
    other = Reference.from_file(tokenizer.path)
    other.post_processor = TemplateProcessing(
        single="<null> $A <null>", special_tokens=[("<null>", 0)]
    )
    other.save(str(tmp_path / "other.json"))
    found = Tokenizer(tmp_path / "other.json").lengths(["a red circle", "a red circle moving"])
    assert found == [n + 2 for n in tokenizer.lengths(["a red circle", "a red circle moving"])]


def test_common_words_are_short(tokenizer):
    assert len(tokenizer.encode("a red circle moving left")) == 5


def test_training_does_not_depend_on_order(tmp_path):
    train(WORDS, tmp_path / "a.json")
    train(WORDS[::-1], tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_caption_becomes_one_clean_line():
    assert clean(" two\twords\r\nand\x1b[31m a\0b \ud800") == "two words and [31m a b ?"
    assert len(clean("long " * 1_000_000)) <= 4096


def test_what_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    for name in ("t.json", "none.json"):
        with pytest.raises(DataError, match=name) as error:
            Tokenizer(tmp_path / name)
        assert error.value.code == 2
