"""Codecs turn stored video into what a diffusion model sees, and back.

A codec says how much smaller its latents are (`stride`) and encodes and decodes. `Pixels` is the
codec of models that work on pixels: it only changes the range. What a codec makes of videos can be
kept (`features.py`): its posterior's moments, where it has a posterior. What `Embedding` makes
becomes no pixels again: a model of it is a prior (Ramesh et al. 2022), of which others are told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vdm_jax.images import ImageEncoder
from vdm_jax.types import Count, Params

TINY = 1e-12


class Codec(Protocol):
    @property
    def stride(self) -> tuple[int, int, int]: ...

    @property
    def channels(self) -> int: ...

    def encode(self, params: Params, video: Any) -> Any:
        """Stored values (any layout, channels last) -> model values; asked of codecs whose stride
        is 1 and that have no weights. Of others, videos are encoded beforehand."""

    def decode(self, params: Params, latent: Any) -> Any:
        """Model values (t y x d) -> uint8 pixels (f h w c), or what another model is told."""

    def weights(self) -> Params:
        """Its weights, which are not trained; {} where it has none."""

    def moments(
        self, params: Params, video: UInt8[Array, "b f h w c"]
    ) -> Mapping[str, Float[Array, "b t y x d"]]:
        """What is kept of videos that are encoded beforehand, on the codec's grid: the posterior's
        'mean' and 'logvar', or the 'latent' of a codec that has none. `f` divides by the stride."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    """uint8 in 0..255 <-> float in [-1, 1], elementwise, so that it serves packed patches too."""

    channels: int = 3
    stride: tuple[int, int, int] = (1, 1, 1)

    def encode(self, params: Params, video: UInt8[Array, "..."]) -> Float[Array, "..."]:
        del params
        return video.astype(jnp.float32) / 127.5 - 1

    def decode(self, params: Params, latent: Float[Array, "..."]) -> UInt8[Array, "..."]:
        del params
        return jnp.clip(jnp.round((latent + 1) * 127.5), 0, 255).astype(jnp.uint8)

    def weights(self) -> Params:
        return {}

    def moments(
        self, params: Params, video: UInt8[Array, "b f h w c"]
    ) -> Mapping[str, Float[Array, "b f h w c"]]:
        return {"latent": self.encode(params, video)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding:
    """Pictures of `side` x `side` pixels -> one cell each: their embedding by a frozen encoder.

    Embeddings have a length of sqrt(channels), so that their entries vary as noise does. Nothing
    makes pixels of them again: what is decoded is the embedding, brought back to that length.
    """

    encoder: ImageEncoder
    side: Count

    @property
    def stride(self) -> tuple[int, int, int]:
        return 1, self.side, self.side

    @property
    def channels(self) -> int:
        return self.encoder.features

    def embed(self, params: Params, pictures: Float[Array, "m h w c"]) -> Float[Array, "m d"]:
        """Of pictures of any size, values in [-1, 1]."""
        return self._long(self.encoder.encode(params, pictures).astype(jnp.float32))

    def encode(self, params: Params, video: UInt8[Array, "b f h w c"]) -> Float[Array, "b f 1 1 d"]:
        b, f = video.shape[:2]
        pictures = Pixels().encode({}, video).reshape(b * f, *video.shape[2:])
        return self.embed(params, pictures).reshape(b, f, 1, 1, -1)

    def decode(self, params: Params, latent: Float[Array, "f 1 1 d"]) -> Float[Array, "f 1 1 d"]:
        del params
        return self._long(latent)

    def weights(self) -> Params:
        return self.encoder.weights()

    def moments(
        self, params: Params, video: UInt8[Array, "b f h w c"]
    ) -> Mapping[str, Float[Array, "b f 1 1 d"]]:
        return {"latent": self.encode(params, video)}

    def _long(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + TINY)
