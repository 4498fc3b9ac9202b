"""Parts in time that act on channels: some moved between frames, or each scaled by its frame."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from vdm_jax.axes import EMBED
from vdm_jax.config import UserError
from vdm_jax.nets.clip import Clip, moved
from vdm_jax.nets.gathered import lookup
from vdm_jax.nets.layers import ONE, ZERO, parameter
from vdm_jax.types import Count, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """Channels from other frames, without a parameter (Lin et al. 2019; An et al. 2023).

    Attributes:
      by: channels are as many equal portions; each moves so many frames on, and zeros move in.
        (1, -1, 0, 0) moves a quarter each way.
    """

    by: tuple[int, ...] = (1, -1, 0, 0)

    def __call__(self, x, clip, *, name, dtype):
        """Raises: UserError, channels that do not divide into portions."""
        channels = x.shape[-1]
        if not self.by or channels % len(self.by):
            raise UserError(
                f"{channels} channels do not divide into the {len(self.by)} portions of a shift."
            )
        portions = jnp.split(x, len(self.by), axis=-1)
        pairs = zip(portions, self.by, strict=True)
        return jnp.concatenate([moved(part, clip.segment, -by) for part, by in pairs], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine:
    """Each frame's own scale and shift of every channel (Zhou et al. 2022); fresh, no change.

    Attributes:
      frames: how many frames have their own; later ones share the last.
    """

    frames: Count

    def __call__(self, x, clip, *, name, dtype):
        return _Affine(self.frames, name=name)(x, clip)


class _Affine(nn.Module):
    frames: int

    @nn.compact
    def __call__(self, x: Video, clip: Clip) -> Video:
        shape, axes = (self.frames, x.shape[-1]), (None, EMBED)
        at = jnp.clip(clip.frames.raster, 0, self.frames - 1)
        scale, bias = (
            lookup(parameter(self, name, init, axes, shape), at, axes)[:, :, None, None]
            for name, init in (("scale", ONE), ("bias", ZERO))
        )
        return (x * scale + bias).astype(x.dtype)
