"""Captions to numbers: byte-level BPE, trained on the captions of a manifest when it is made.

Id 0 is the null token: no text at all. It cannot be written: a caption that spells it is spelt out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence

import tokenizers

from data_pipeline import storage
from data_pipeline.errors import DataError

NULL = "<null>"
LONGEST = 4096  # characters of a caption that are looked at


def clean(text: str) -> str:
    """A caption on one line: control characters and broken surrogates out, spaces single."""
    whole = text[: 4 * LONGEST].encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(c if c.isprintable() else " " for c in whole).split())[:LONGEST]


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
        encoded = self._model.encode_batch([clean(caption) for caption in captions])
        return [max(1, len(one.ids)) for one in encoded]
