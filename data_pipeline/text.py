"""Captions to numbers: byte-level BPE, trained on the captions of a manifest when it is made.

Id 0 is the null token: no text at all. It cannot be written: a caption that spells it is spelt out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property

import tokenizers

from data_pipeline import storage
from data_pipeline.errors import DataError

NULL = "<null>"
LONGEST = 4096  # characters of a caption that are looked at
MOST_WORDS = 1 << 18  # whose number of ids is remembered


def clean(text: str) -> str:
    """A caption on one line: control characters and broken surrogates out, spaces single."""
    said = whole(text[: 4 * LONGEST])
    if not said.isprintable():
        said = "".join(c if c.isprintable() else " " for c in said)
    return " ".join(said.split())[:LONGEST]


def whole(text: str) -> str:
    """Half a surrogate pair, which JSON may hold and UTF-8 may not, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def train(captions: Iterable[str], path: str, size: int = 2048) -> None:
    """Train on captions and write `path`, which appears only when whole. Every byte has a token.

    Raises:
      OSError: it cannot be written.
    """
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[NULL],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(sorted(clean(caption) for caption in captions), trainer)
    with storage.whole(path) as file:
        file.write(model.to_str(pretty=True).encode())


class Tokenizer:
    """`Tokenizer(path).encode(caption)` -> ids; `.size` is how many there are.

    Raises:
      DataError: code 2, no such file, or not a tokenizer.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        try:
            self.content = storage.read(self.path)
            self._model = tokenizers.Tokenizer.from_buffer(self.content)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"'{path}' is not a tokenizer ({error}).", code=2) from None
        self._model.encode_special_tokens = True
        self._counts: dict[str, int] = {}  # of the ids of words

    @property
    def size(self) -> int:
        return self._model.get_vocab_size()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a caption, at least one: an empty caption is the null token."""
        return self._model.encode(clean(text)).ids or [0]

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """How many ids each caption has."""
        cleaned = [clean(caption) for caption in captions]
        if not self._apart:
            return [max(1, len(one.ids)) for one in self._model.encode_batch(cleaned)]
        words = [caption.split(" ") for caption in cleaned]
        if len(self._counts) > MOST_WORDS:
            self._counts.clear()
        new = list({word for some in words for word in some} - self._counts.keys())
        found = self._model.encode_batch(new)
        self._counts.update((word, len(one.ids)) for word, one in zip(new, found, strict=True))
        count = self._counts.__getitem__
        return [max(1, sum(map(count, some))) for some in words]

    @cached_property
    def _apart(self) -> bool:
        """Whether no id is of more than one word, as in what `train` makes: the words of ten
        million captions are few, and need to be looked at only once."""
        made = json.loads(self._model.to_str())
        before = made["pre_tokenizer"] or {}
        by_word = before.get("type") == "ByteLevel" and before["use_regex"]
        others = ("normalizer", "post_processor", "truncation", "padding")
        return by_word and before["add_prefix_space"] and not any(made[name] for name in others)
