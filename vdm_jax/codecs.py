"""Codecs turn stored video into what a diffusion model sees, and back.

A codec says how much smaller its latents are (`stride`) and encodes and decodes. `Pixels` is the
codec of models that work on pixels: it only changes the range. What a codec makes of videos can be
kept (`features.py`): its posterior's moments, where it has a posterior.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vdm_jax.types import Params


class Codec(Protocol):
    @property
    def stride(self) -> tuple[int, int, int]: ...

    @property
    def channels(self) -> int: ...

    def encode(self, params: Params, video: Any) -> Any:
        """Stored values (any layout, channels last) -> model values; asked of codecs whose stride
        is 1 and that have no weights. Of others, videos are encoded beforehand."""

    def decode(self, params: Params, latent: Any) -> Any:
        """Model values (t y x d) -> uint8 pixels (f h w c)."""

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
