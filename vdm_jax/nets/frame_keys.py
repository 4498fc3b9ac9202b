"""Self-attention of pictures whose keys and values come from other frames of their example.

    ('first', 'before')   frame f asks frame 0 and frame f - 1, frame 0 itself
    ('before', 'own')     ... with every frame shifted before, place by place:

        shifted[f, y, x] = frame[f - k, y, x],   k = tile[y mod 4][x mod 4],

    and frame[f, y, x] where there is no frame f - k

No weights: those of the image model serve. A still asks itself, so often as there are names, which
is attention as it was.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from vdm_jax.config import UserError
from vdm_jax.nets.clip import Clip
from vdm_jax.types import Video

Frame = Literal["own", "first", "before"]
Tile = tuple[tuple[int, ...], ...]
# How far back each place of a tile looks (Xing et al. 2023, latent-shift attention).
LOCAL: Tile = ((4, 3, 2, 1), (3, 2, 1, 0), (2, 1, 0, 0), (1, 2, 3, 4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameKeys:
    """Attributes:
      frames: whose places are keys, one after another.
      tile: how many frames back each place is taken from, repeated over the picture.

    Raises:
      UserError: no frames, a name that is none, a tile that looks ahead.
    """

    frames: tuple[Frame, ...] = ("first", "before")
    tile: Tile | None = None

    def __post_init__(self):
        known = get_args(Frame)
        if not self.frames or not set(self.frames) <= set(known):
            raise UserError(f"FrameKeys.frames is {self.frames}; name some of {', '.join(known)}.")
        if self.tile is not None and min(map(min, self.tile)) < 0:
            raise UserError(f"FrameKeys.tile is {self.tile}; it looks back, by 0 or more.")

    def __call__(self, x: Video, clip: Clip) -> Float[Array, "b f places c"]:
        """The places that each frame asks."""
        place = clip.frames.position[..., 0]
        if self.tile is not None:
            x = _shifted(x, place, self.tile)
        where = {"own": place, "first": 0 * place, "before": jnp.maximum(place - 1, 0)}
        found = [_frames(x, where[name] - place) for name in self.frames]
        return jnp.concatenate([rearrange(one, "b f h w c -> b f (h w) c") for one in found], 2)


def _frames(x: Array, by: Int[Array, "b f"]) -> Array:
    """Frame f + by of every frame; an example's frames lie side by side in their order."""
    index = jnp.clip(jnp.arange(x.shape[1]) + by, 0, x.shape[1] - 1)
    return jnp.take_along_axis(x, index[..., None, None, None], axis=1)


def _shifted(x: Video, place: Int[Array, "b f"], tile: Tile) -> Video:
    h, w = x.shape[2:4]
    back = jnp.asarray(tile)
    back = jnp.tile(back, (-(-h // len(tile)), -(-w // len(tile[0]))))[:h, :w]
    out = x
    for k in range(1, max(map(max, tile)) + 1):
        there = (back == k) & (place >= k)[..., None, None]
        out = jnp.where(there[..., None], _frames(x, 0 * place - k), out)
    return out
