"""One line of conditioning in a config: which raw value, through which embedding, into which slot.

    Signal(key="text", embed=PackedText(encoder=...), slot="tokens.text", drop=0.1)

`drop` is the probability with which training hides the signal, for classifier-free guidance;
signals of one `group` are hidden together. A hidden text is the null token alone, exactly what
sampling with an empty prompt sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vdm_jax.axes import EMBED
from vdm_jax.batch import Frames, Packed
from vdm_jax.cond import Cond, Text, Tokens
from vdm_jax.config import UserError
from vdm_jax.nets.layers import SMALL, TimeEmbedding, dense, parameter
from vdm_jax.types import Count, Fraction, Positive

NULL_TOKEN = 0
GUIDANCE = "guidance"  # the raw value of a network whose guidance was distilled: its scale (b e)
Dropped = Mapping[str, Bool[Array, "b e"]]


class Signal(nn.Module):
    """A raw value `key`, embedded, in the condition slot `slot`.

    Attributes:
      embed: module (raw value, batch, dropped (b e)) -> the slot's value.
      slot: 'vector', 'pre_time', 'channels' or 'tokens.NAME'.
    """

    key: str
    embed: nn.Module
    slot: str
    drop: Fraction = 0.0
    group: str = ""

    @property
    def choice(self) -> str:
        """The name under which this signal is kept or dropped."""
        return self.group or self.key

    def __call__(self, raw: Mapping[str, Any], batch: Frames | Packed, dropped: Dropped) -> Any:
        valid = batch.examples.valid
        hidden = dropped.get(self.choice, jnp.zeros_like(valid))
        return self.embed(raw[self.key], batch, hidden)


def draw_dropped(signals: tuple[Signal, ...], batch: Frames | Packed, seed: int) -> Dropped:
    """Which examples lose which signals in training: a pure function of (seed, example)."""
    rates = {signal.choice: signal.drop for signal in signals}
    uniform = jax.vmap(jax.vmap(jax.random.uniform))
    return {
        choice: uniform(batch.keys(seed, f"drop:{choice}")) < rate for choice, rate in rates.items()
    }


def drop_all(signals: tuple[Signal, ...], batch: Frames | Packed) -> Dropped:
    """Hide every signal that training ever hides: the unconditional branch of guidance."""
    hidden = jnp.ones_like(batch.examples.valid)
    return {signal.choice: hidden for signal in signals if signal.drop > 0}


def gather(signals: tuple[Signal, ...], raw: Mapping[str, Any], batch, dropped: Dropped) -> Cond:
    """Run every signal and put its value in its slot: vectors of one slot add, channels join."""
    vectors: dict[str, Array] = {}
    tokens: dict[str, Tokens] = {}
    channels: list[Array] = []
    for signal in signals:
        value = signal(raw, batch, dropped)
        if signal.slot.startswith("tokens."):
            tokens[signal.slot.removeprefix("tokens.")] = value
        elif signal.slot == "channels":
            channels.append(value)
        else:
            vectors[signal.slot] = vectors[signal.slot] + value if signal.slot in vectors else value
    return Cond(
        vector=vectors.get("vector"),
        pre_time=vectors.get("pre_time"),
        tokens=tokens,
        channels=jnp.concatenate(channels, axis=-1) if channels else None,
    )


class PackedText(nn.Module):
    """`Text` -> `Tokens`, through an encoder that knows nothing of packing.

    The encoder maps (ids (m l), mask (m l)) to (m l d); it is run on one line per example and its
    outputs are packed again, so that any encoder of plain sentences serves.
    """

    encoder: nn.Module
    max_length: Count

    def __call__(self, text: Text, batch: Frames | Packed, dropped: Bool[Array, "b e"]) -> Tokens:
        sentences = unpack_text(text, dropped, self.max_length)
        b, e = dropped.shape
        out = self.encoder(sentences.ids, sentences.mask).reshape(b, e, self.max_length, -1)
        inside = (sentences.segment > 0) & (text.position < self.max_length)
        place = jnp.minimum(text.position, self.max_length - 1)
        line = jnp.maximum(sentences.segment - 1, 0)
        # By rows, here and below: indexed all at once, rows would be gathered onto every device.
        x = jax.vmap(lambda lines, i, j: lines[i, j])(out, line, place)
        segment = jnp.where(inside, sentences.segment, 0)
        return Tokens(x=jnp.where(inside[..., None], x, 0), segment=segment)


class PooledText(nn.Module):
    """`Text` -> one vector per example: the encoder's outputs averaged, then two linear layers.

    What a whole sentence says reaches every token at once, through the modulation, before attention
    has learnt to look anything up (Saharia et al. 2022, section 2.4; Esser et al. 2024, section 4).
    """

    encoder: nn.Module
    max_length: Count
    width: Count

    @nn.compact
    def __call__(self, text: Text, batch: Frames | Packed, dropped: Bool[Array, "b e"]) -> Array:
        sentences = unpack_text(text, dropped, self.max_length)
        out = self.encoder(sentences.ids, sentences.mask)
        count = jnp.maximum(sentences.mask.sum(-1, keepdims=True), 1)
        pooled = (out.sum(1) / count).reshape(*dropped.shape, -1)  # outputs are 0 beyond the mask
        pooled = nn.silu(dense(self.width, (None, EMBED), name="in")(pooled))
        return dense(self.width, (None, EMBED), name="out", init=SMALL)(pooled)


class FrozenText(nn.Module):
    """`Text` -> `Tokens`: what a frozen encoder made of each id, through one linear map.

    The null token, an empty or hidden text, is a vector of its own, learnt: no encoder is asked
    what no text means.

    Attributes:
      max_length: of an example's text; what is longer is cut.
    """

    width: Count
    max_length: Count

    @nn.compact
    def __call__(self, text: Text, batch: Frames | Packed, dropped: Bool[Array, "b e"]) -> Tokens:
        """Raises: UserError, the text has no features."""
        if text.features is None:
            raise UserError("FrozenText reads features, but stage.text is None; name an encoder.")
        hidden = batch_lookup(dropped, text.segment)
        beyond = (text.position >= self.max_length) | (hidden & (text.position > 0))
        segment = jnp.where(beyond, 0, text.segment)
        null = parameter(self, "null", SMALL, (EMBED,), (self.width,))
        features = text.features.astype(jnp.float32)
        x = dense(self.width, (None, EMBED), name="in")(features)
        x = jnp.where((hidden | (text.ids == NULL_TOKEN))[..., None], null, x)
        return Tokens(x=jnp.where(segment[..., None] > 0, x, 0), segment=segment)


class Sentences(NamedTuple):
    """One line per example, as an encoder wants it; `segment` leaves hidden texts out."""

    ids: Int[Array, "be l"]
    mask: Bool[Array, "be l"]
    segment: Int[Array, "b n"]


def unpack_text(text: Text, dropped: Bool[Array, "b e"], length: int) -> Sentences:
    """Packed ids -> one line of `length` per example; a hidden text is the null token alone."""
    b, e = dropped.shape
    hidden = batch_lookup(dropped, text.segment)
    ids = jnp.where(hidden, NULL_TOKEN, text.ids)
    segment = jnp.where(hidden & (text.position > 0), 0, text.segment)

    # Line 0 of each row collects the padding and is thrown away.
    def spread(values: Array, segment: Array, position: Array) -> Array:
        lines = jnp.zeros((e + 1, length), values.dtype)
        return lines.at[segment, position].set(values, mode="drop")[1:]

    lines = jax.vmap(spread)(ids, segment, text.position).reshape(b * e, length)
    mask = jax.vmap(spread)(jnp.ones_like(ids, bool), segment, text.position)
    return Sentences(lines, mask.reshape(b * e, length), segment)


class Sinusoid(nn.Module):
    """A positive number per example (frame rate, size) -> vector; 0 and hidden read a learnt null.

    The logarithm is embedded: frame rates of 6 and 12 differ as 30 and 60 do.
    """

    width: Count
    frequencies: Count = 64
    scale: Positive = 100.0

    @nn.compact
    def __call__(self, value: Array, batch: Frames | Packed, dropped: Bool[Array, "b e"]) -> Array:
        half = self.frequencies // 2
        rates = jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / half)
        angle = self.scale * jnp.log(jnp.maximum(value, 1e-3))[..., None] * rates
        wave = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        kernel_init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, EMBED))
        out = nn.Dense(self.width, kernel_init=kernel_init, use_bias=False, name="out")(wave)
        null_init = nn.with_logical_partitioning(nn.initializers.zeros_init(), (EMBED,))
        null = jnp.asarray(self.param("null", null_init, (self.width,)))
        return jnp.where((dropped | (value <= 0))[..., None], null, out)


class NoiseTime(nn.Module):
    """The time of the noise on a condition, in [0, 1] -> vector, as a network is told of its own
    noise; 0, no noise at all, is a time like others. Zeros where it is hidden."""

    width: Count

    @nn.compact
    def __call__(self, value: Array, batch: Frames | Packed, dropped: Bool[Array, "b e"]) -> Array:
        vector = TimeEmbedding(self.width, name="time")(1000 * value[..., None])[..., 0, :]
        return jnp.where(dropped[..., None], 0, vector)


class Vector(nn.Module):
    """A vector per example (an image's embedding), through one linear map; zeros and hidden read a
    learnt null."""

    width: Count

    @nn.compact
    def __call__(self, value: Array, batch: Frames | Packed, dropped: Bool[Array, "b e"]) -> Array:
        out = dense(self.width, (None, EMBED), name="in")(value.astype(jnp.float32))
        null = parameter(self, "null", SMALL, (EMBED,), (self.width,))
        none = dropped | ~jnp.any(value, axis=-1)
        return jnp.where(none[..., None], null, out)


class Channels(nn.Module):
    """A video like the batch's (b f h w c) -> itself; zeros where it is hidden."""

    @nn.compact
    def __call__(self, value: Array, batch: Frames | Packed, dropped: Bool[Array, "b e"]) -> Array:
        return jnp.where(batch.spread(dropped), 0, value)


def batch_lookup(values: Array, segment: Array) -> Array:
    """(b e) per example -> (b l) per token of another packed sequence; zeros (False) on padding."""
    padded = jnp.pad(values, ((0, 0), (1, 0)))
    return jnp.take_along_axis(padded, segment, axis=1)
