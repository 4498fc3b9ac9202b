"""From the loader's dicts of numpy arrays to global carriers on the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.core import FrozenDict
from jaxtyping import Array

from vdm_jax.batch import Examples, Frames, Packed
from vdm_jax.codecs import Codec
from vdm_jax.cond import Text
from vdm_jax.image_prompt import IMAGE, of_batch
from vdm_jax.stage import Stage
from vdm_jax.types import Params

NONE: Params = FrozenDict()
EXAMPLE_FIELDS = ("id", "visit", "ordinal", "valid", "grid", "fps")


def to_device(arrays: Mapping[str, np.ndarray], sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """This host's share (microbatches, rows, ...) -> global arrays, rows over the mesh."""
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(leaf))
        for name, leaf in arrays.items()
    }


def to_stage(
    arrays: Mapping[str, Any], stage: Stage, seed: int | None = None, frozen: Params = NONE
) -> tuple[Frames | Packed, dict[str, Any]]:
    """One microbatch -> the batch as the stage's backbone reads it, and the raw values of its
    conditions, what it is told of the stage below among them. Runs inside jit.

    Args:
      seed: of what is drawn by example; None draws nothing of the latents, and fixes the rest.
      frozen: weights by name, those of `stage.encoders` among them.
    """
    packed, raw = to_carrier(arrays, stage.codec, stage.patch, seed)
    batch = stage.carry(packed)
    if stage.first:
        return batch, raw
    frames = cast(Frames, batch)
    if stage.image is not None:
        below = frames if stage.link is None else stage.link.reduce(frames)
        raw[IMAGE] = of_batch(stage.image, {"params": frozen[IMAGE]}, below)
    if stage.link is not None and stage.told_below:
        told = stage.link.train(frames, seed or 0)
        return stage.link.apart(frames, told), {**raw, **told}
    return batch, raw


def to_carrier(
    arrays: Mapping[str, Any],
    codec: Codec,
    patch: tuple[int, int, int],
    seed: int | None = None,
) -> tuple[Packed, dict[str, Any]]:
    """One microbatch -> the packed batch and the raw values of its conditions. Runs inside jit.

    A codec that is run here has no weights: packed rows hold pixels, or latents made beforehand.

    Args:
      seed: of the draw from the latents' posterior, by example; None takes the mean.
    """
    segment, mask, logvar = arrays["segment"], arrays.get("cells"), None
    if "moments" in arrays:
        x, logvar = _halves(arrays["moments"].astype(jnp.float32), codec.channels)
        mask = None if mask is None else _halves(mask, codec.channels)[0]
    elif "latent" in arrays:
        x = arrays["latent"].astype(jnp.float32)
    else:
        x = codec.encode({}, arrays["patches"])
    batch = Packed(
        x=jnp.where(segment[..., None] > 0, x, 0),
        segment=segment,
        position=arrays["position"],
        raster=arrays["raster"],
        examples=Examples(**{field: arrays[field] for field in EXAMPLE_FIELDS}),
        mask=mask,
        patch=patch,
    )
    if logvar is not None and seed is not None:
        noise = batch.white(batch.keys(seed, "posterior"))
        batch = batch.replace(x=batch.x + jnp.exp(logvar / 2) * noise)
    text = Text(
        ids=arrays["text"], segment=arrays["text_segment"], position=arrays["text_position"],
        features=arrays.get("text_features"),
    )  # fmt: skip
    # Data are what no guidance makes; a student that is told of guidance hears of it elsewhere.
    raw = {"text": text, "fps": arrays["fps"], "guidance": jnp.ones_like(arrays["fps"])}
    return batch, raw


def _halves(patches: Array, channels: int) -> tuple[Array, Array]:
    """(b n, cells of a patch x 2 channels) -> the first channels of each cell, and the second."""
    first, second = rearrange(patches, "b n (cell two c) -> two b n (cell c)", two=2, c=channels)
    return first, second
