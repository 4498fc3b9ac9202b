"""Conditions by name, as a network receives them.

Slots are named, never told apart by rank: a per-example `vector` added to the time embedding,
`pre_time` added before its MLP, named sets of `tokens` to attend to, `channels` concatenated to the
input, and `hints` for control branches.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int


@struct.dataclass
class Tokens:
    """One packed set of keys and values: `x` (b l d), `segment` (b l) with 0 for padding.

    `frame` (b l), where given, says which frame of its example a token belongs to.
    """

    x: Float[Array, "b l d"]
    segment: Int[Array, "b l"]
    frame: Int[Array, "b l"] | None = None


@struct.dataclass
class Cond:
    """Everything a backbone is conditioned on besides time; every leaf leads with the row axis."""

    vector: Float[Array, "b e d"] | None = None
    pre_time: Float[Array, "b e d"] | None = None
    tokens: Mapping[str, Tokens] = struct.field(default_factory=dict)
    channels: Array | None = None
    hints: Mapping[str, Array] = struct.field(default_factory=dict)


def concat(*trees):
    """Join equal carriers or conditions along the row axis (so guidance runs its branches)."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=0), *trees)


@struct.dataclass
class Text:
    """Token ids as the loader packs them, before any encoder: all (b l).

    `segment` is 0 on padding; `position` counts within one example's text. Id 0 is the null token,
    which stands for an empty or dropped text. `features` (b l w), where given, are what a frozen
    encoder made of each id (`texts.py`).
    """

    ids: Int[Array, "b l"]
    segment: Int[Array, "b l"]
    position: Int[Array, "b l"]
    features: Float[Array, "b l w"] | None = None
