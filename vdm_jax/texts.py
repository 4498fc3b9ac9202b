"""Frozen text encoders: one vector for each id of the data's own tokenizer, and never trained.

What an encoder makes of the captions is kept before training (`captions.py`); prompts are encoded
when they are sampled. An encoder with a tokenizer of its own brings it: its file is that of the
data. So the plan, which counts ids, knows nothing of encoders.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.types import Params

LINES = 64  # texts that are encoded together, on each device


class TextEncoder(Protocol):
    """Hashable, its weights aside. What `repr` says and the weights are all that it is.

    Attributes:
      width: of a vector; max_length: ids of a text that are read.
      tokenizer: SHA-256 of the file whose ids they are; part of what `repr` says.
    """

    @property
    def width(self) -> int: ...

    @property
    def max_length(self) -> int: ...

    @property
    def tokenizer(self) -> str: ...

    def weights(self) -> Params:
        """Its weights, which are not trained."""

    def encode(
        self, params: Params, ids: Int[Array, "m l"], mask: Bool[Array, "m l"]
    ) -> Float[Array, "m l width"]:
        """A line holds one text, `l` is at most `max_length`; where `mask` is false is padding,
        which decides nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """A text encoder that is a module (ids, mask) -> vectors (`nets/encoders.py`), and its weights.

    `params` are those of `module.apply`.
    """

    module: Any
    params: Params = dataclasses.field(repr=False, compare=False)
    tokenizer: str

    @property
    def width(self) -> int:
        return self.module.width

    @property
    def max_length(self) -> int:
        return self.module.max_length

    def weights(self) -> Params:
        return self.params

    def encode(
        self, params: Params, ids: Int[Array, "m l"], mask: Bool[Array, "m l"]
    ) -> Float[Array, "m l width"]:
        return self.module.apply(params, ids, mask)


def encode(
    encoder: TextEncoder,
    weights: Params,
    texts: Sequence[Sequence[int]],
    place: jax.sharding.Sharding | None = None,
) -> list[np.ndarray]:
    """float16 (words, width) of each text; words beyond `max_length` have no vector.

    Those of one length, rounded up to a power of two, are encoded together, so that there are few
    programs.

    Args:
      place: over which devices lines are spread; None is one.
    """
    lines = LINES * (len(place.device_set) if place else 1)
    cut = [list(ids[: encoder.max_length]) for ids in texts]
    found: list[np.ndarray] = [np.zeros(0)] * len(cut)
    rooms = [min(1 << (len(ids) - 1).bit_length(), encoder.max_length) for ids in cut]
    for room in sorted(set(rooms)):
        alike = [index for index, its in enumerate(rooms) if its == room]
        for first in range(0, len(alike), lines):
            some = alike[first : first + lines]
            ids, mask = np.zeros((lines, room), np.int32), np.zeros((lines, room), bool)
            for line, index in enumerate(some):
                ids[line, : len(cut[index])] = cut[index]
                mask[line, : len(cut[index])] = True
            made = np.asarray(_run(encoder, weights, *jax.device_put((ids, mask), place)))
            for line, index in enumerate(some):
                found[index] = made[line, : len(cut[index])]
    return found


@functools.partial(jax.jit, static_argnums=0)
def _run(encoder: TextEncoder, weights: Params, ids: Array, mask: Array) -> Array:
    return encoder.encode(weights, ids, mask).astype(jnp.float16)
