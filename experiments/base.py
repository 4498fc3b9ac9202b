"""What experiments share: how a variant is chosen, and the text condition most of them have."""

from __future__ import annotations

from ml_collections import ConfigDict

from vdm_jax.config import UserError, spec, suggestion
from vdm_jax.nets.encoders import TextEmbedding
from vdm_jax.signals import PackedText, PooledText, Signal


def variant(arg: str | None, known: tuple[str, ...]) -> str:
    """The part after the colon of `--config=FILE.py:variant`; '' is the full size.

    Raises:
      UserError: a variant the file does not have.
    """
    if (arg or "") not in ("", *known):
        raise UserError(f"there is no variant '{arg}'.{suggestion(arg or '', known)}")
    return arg or ""


def text_signals(
    *, vocab: int, width: int, length: int, drop: float, pooled: bool, **encoder
) -> tuple[ConfigDict, ...]:
    """Captions, through a small encoder trained along, as the token set 'text'.

    With `pooled` also, through an encoder of its own, as a vector that joins the time embedding.
    """

    def embedding() -> ConfigDict:
        return spec(TextEmbedding, vocab=vocab, width=width, max_length=length, **encoder)

    tokens = spec(PackedText, max_length=length, encoder=embedding())
    signals = (spec(Signal, key="text", slot="tokens.text", drop=drop, embed=tokens),)
    if pooled:
        vector = spec(PooledText, max_length=length, width=width, encoder=embedding())
        signals += (spec(Signal, key="text", slot="vector", drop=drop, embed=vector),)
    return signals
