"""Image prompts: what a stage is told of one picture, its embedding by a frozen encoder.

    training   truth --reduce--> what the stage below would have made --middle frame--encoder-> raw
    sampling   the video that the stage below made ---------------------middle frame--encoder-> raw
               the embedding that the stage below, a prior, made ------------------------------> raw

`raw["image"]` (b e d) is 0 where an example has no frame below: `signals.Vector` takes that for
nothing told.

The middle frame is the one least far from all others, the only one of a still, and needs no draw:
in sampling it is the same one as in training.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdm_jax.batch import Frames
from vdm_jax.codecs import Embedding, Pixels
from vdm_jax.config import UserError
from vdm_jax.types import Params

IMAGE = "image"  # the raw value, and the encoder's weights among those that are frozen
AT_ONCE = 16  # pictures that are embedded together


def of_batch(codec: Embedding, params: Params, below: Frames) -> Float[Array, "b e d"]:
    """Of a batch of what is below: its pixels are in [-1, 1]."""
    pictures, there = middle(below)
    b, e = there.shape
    found = codec.embed(params, pictures.reshape(b * e, *pictures.shape[2:])).reshape(b, e, -1)
    return jnp.where(there[..., None], found, 0)


def of_videos(codec: Embedding, made: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(d) of each of what the stage below made: uint8 videos, or embeddings (1 1 1 d).

    Raises: UserError, embeddings of another width.
    """
    found: list[np.ndarray] = [np.zeros(0)] * len(made)
    films: dict[tuple[int, ...], list[int]] = {}
    for index, one in enumerate(made):
        if one.dtype == np.uint8:
            films.setdefault(one.shape[1:], []).append(index)
        elif one.size == codec.channels:
            found[index] = one.reshape(-1)
        else:
            raise UserError(
                f"an embedding of {one.size} numbers was made for a stage that is told of "
                f"{codec.channels}; use one image encoder for both."
            )
    for shape, mine in films.items():
        for first in range(0, len(mine), AT_ONCE):
            some = mine[first : first + AT_ONCE]
            pictures = np.zeros((AT_ONCE, *shape), np.uint8)
            for place, index in enumerate(some):
                pictures[place] = made[index][len(made[index]) // 2]
            rows = np.asarray(_embed(codec, codec.weights(), pictures))
            for place, index in enumerate(some):
                found[index] = rows[place]
    return found


def middle(batch: Frames) -> tuple[Float[Array, "b e h w c"], Bool[Array, "b e"]]:
    """The middle frame of each example, and whether it has any."""
    member = batch.membership() > 0
    place = member.sum(-1) // 2
    mine = member & (batch.position[:, None] == place[..., None])
    # By rows: indexed all at once, rows would be gathered onto every device.
    pictures = jax.vmap(lambda frames, i: frames[i])(batch.x, jnp.argmax(mine, axis=-1))
    return pictures, mine.any(-1)


@functools.partial(jax.jit, static_argnums=0)
def _embed(codec: Embedding, weights: Params, pictures: Array) -> Array:
    return codec.embed(weights, Pixels().encode({}, pictures))
