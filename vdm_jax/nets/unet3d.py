"""A space-time UNet: an image UNet, and parts that act in time put into it (`temporal.py`).

    pictures -> conv -> levels, each half as large -> middle -> levels back -> norm, SiLU, conv

A level is `blocks` times (residual block, what follows it); on the way back each block also gets
what was kept on the way there. Without temporal parts this is the UNet of Ho et al. (2020), of
Rombach et al. (2022), of Saharia et al. (2022): the image model whose weights a video model
inherits has the same names for the same weights.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vdm_jax.axes import CONDITION, EMBED, PATCH
from vdm_jax.batch import Frames
from vdm_jax.cond import Cond
from vdm_jax.config import UserError
from vdm_jax.nets.clip import Clip, Convolution, as_tokens
from vdm_jax.nets.context import contexts
from vdm_jax.nets.folded import by_frame
from vdm_jax.nets.layers import ZERO, TimeEmbedding, dense
from vdm_jax.nets.remat import remembered
from vdm_jax.nets.spatial import BY_FRAME, Block, Downsample, Insert, Norm, ResBlock, Upsample
from vdm_jax.nets.temporal import MIDDLE, Temporal, insert
from vdm_jax.types import Count, Fraction, PerExample, Positive, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageUNet:
    """The sizes of an image UNet.

    Attributes:
      width: channels of the first level; level i has width x mults[i].
      blocks: residual blocks of each level on the way there; a number is that of all.
      follow: what follows a residual block of each level; None is nothing.
      middle: what stands between the two residual blocks of the middle.
      norm, time, gain: of the residual blocks (`spatial.ResBlock`).
      resample: 'after' the blocks of each level but the last (Ho et al. 2020), or 'before' those
        of every level, the first too, which is cheaper (Saharia et al. 2022, appendix B). The first
        convolution's pictures then join the last one's: noise is as fine as a pixel, and a network
        that is to predict it must be able to pass it on.
      dropout: of the residual blocks, in training.
      channels_out: of what is predicted.
    """

    width: Count
    mults: tuple[int, ...]
    follow: tuple[Block | None, ...]
    middle: Block | None = None
    blocks: int | tuple[int, ...] = 2
    norm: Norm = BY_FRAME
    time: Literal["add", "scale_shift"] = "add"
    gain: Positive = 1.0
    resample: Literal["after", "before"] = "after"
    dropout: Fraction = 0.0
    channels_out: Count = 3

    @property
    def levels(self) -> int:
        return len(self.mults)

    def features(self, level: int) -> int:
        return self.width * self.mults[level]

    def count(self, level: int) -> int:
        return self.blocks if isinstance(self.blocks, int) else self.blocks[level]

    def check(self) -> None:
        """Raises: UserError, fields that do not go together."""
        each = {"follow": self.follow, "mults": self.mults}
        if not isinstance(self.blocks, int):
            each["blocks"] = self.blocks
        for name, values in each.items():
            if len(values) != self.levels:
                raise UserError(
                    f"image.{name} has {len(values)} entries, but mults makes {self.levels} levels."
                )
        if self.resample not in ("after", "before"):
            raise UserError(f"image.resample is '{self.resample}'; use 'after' or 'before'.")


class _Part(nn.Module):
    """What the ways of a UNet have in common."""

    image: ImageUNet
    temporal: tuple[Temporal, ...]
    level: int
    dtype: str

    @property
    def features(self) -> int:
        return self.image.features(self.level)

    def act(self, clip: Clip) -> Insert:
        return functools.partial(insert, self.temporal, clip, self.level, self.dtype)

    def residual(self, x: Video, clip: Clip, nth: int) -> Video:
        image, act = self.image, self.act(clip)
        x = checkpoint_name(x, "block")
        common: dict[str, Any] = dict(norm=image.norm, time=image.time, gain=image.gain)
        block = ResBlock(
            self.features, **common, dropout=image.dropout, dtype=self.dtype, name=f"res_{nth}"
        )
        return act("after_res", block(x, clip, act), nth)

    def following(self, x: Video, clip: Clip, block: Block | None, nth: int) -> Video:
        act = self.act(clip)
        if block is not None:
            x = block(x, clip, act, name=f"follow_{nth}", dtype=self.dtype)
        return act("after_attention", x, nth)


class Down(_Part):
    """A level on the way there, and what it leaves for the way back."""

    @nn.compact
    def __call__(self, x: Video, clip: Clip) -> tuple[Video, tuple[Video, ...]]:
        image, level = self.image, self.level
        if image.resample == "before":
            x, left = Downsample(self.features, self.dtype, name="down")(x), []
        elif level > 0:
            x = Downsample(image.features(level - 1), self.dtype, name="down")(x)
            left = [x]
        else:
            left = [x]
        for i in range(image.count(level)):
            x = self.residual(x, clip, i)
            x = self.following(x, clip, image.follow[level], i)
            left.append(x)
        return self.act(clip)("after_level", x), tuple(left)


class Middle(_Part):
    """Between the two ways."""

    @nn.compact
    def __call__(self, x: Video, clip: Clip) -> Video:
        x = self.residual(x, clip, 0)
        x = self.following(x, clip, self.image.middle, 0)
        return self.residual(x, clip, 1)


class Up(_Part):
    """A level on the way back: a block for everything that was left at its size."""

    @nn.compact
    def __call__(self, x: Video, clip: Clip, left: tuple[Video, ...]) -> Video:
        for i, kept in enumerate(reversed(left)):
            # Both ways weigh the same in what the block sees (Saharia et al. 2022, appendix B).
            x = self.residual(jnp.concatenate([x, kept * self.image.gain], axis=-1), clip, i)
            x = self.following(x, clip, self.image.follow[self.level], i)
        x = self.act(clip)("after_level", x)
        if self.level > 0 or self.image.resample == "before":
            x = Upsample(self.features, self.dtype, name="up")(x)
        return x


class UNet3D(nn.Module):
    """Frames, a time per (example, level) and conditions -> frames.

    Attributes:
      temporal: what acts in time, and where; of several at one place, in this order.
      cross: names of the condition's token sets that blocks attend to.
      waves: n of features sin(2^n pi x) and cos(2^n pi x) of the input, which join it: what shows
        it in fine detail (Kingma et al. 2021, appendix C).
      remat: a name of `remat.REMAT`, for each level of each way.
      dtype: of products; parameters and output are fp32.
    """

    image: ImageUNet
    temporal: tuple[Temporal, ...] = ()
    cross: tuple[str, ...] = ()
    waves: tuple[int, ...] = ()
    remat: str = "none"
    dtype: str = "float32"

    carrier = Frames

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def unit(self) -> int:
        """Height and width are whole multiples of it."""
        return 2 ** (self.image.levels - (self.image.resample == "after"))

    @nn.compact
    def __call__(
        self, batch: Frames, time: PerExample, cond: Cond, *, train: bool = False
    ) -> Float[Array, "b f h w out"]:
        """The network's raw output for x_t = `batch.x`, 0 on padding, in fp32.

        Args:
          time: what the denoiser's time input makes of the noise levels.
          train: features are dropped, by a key of the collection 'dropout' and by example.

        Raises:
          UserError: sizes that do not divide, an unknown choice, or conditions that do not match
            `cross`.
        """
        image = self.image
        image.check()
        clip = self._clip(batch, time, cond, train)
        waves = [f(2.0**n * jnp.pi * batch.x) for n in self.waves for f in (jnp.sin, jnp.cos)]
        given = [] if cond.channels is None else [cond.channels]
        x = jnp.concatenate([batch.x, *waves, *given], axis=-1)
        there = (batch.segment > 0)[..., None, None, None]
        # Padding may hold anything, and 0 times nan is nan: it is put out before it meets a sum.
        x = jnp.where(there, x, 0)
        x = by_frame(Convolution(image.width, (PATCH, EMBED), dtype=self.dtype, name="conv_in")(x))
        x = insert(self.temporal, clip, 0, self.dtype, "after_conv_in", x)
        first, x = x, self._levels(x, clip)
        if image.resample == "before":
            x = jnp.concatenate([x, first * image.gain], axis=-1)
        x = nn.silu(image.norm("norm_out")(x, clip))
        out = Convolution(image.channels_out, (EMBED, PATCH), start=ZERO, name="conv_out")(x)
        return jnp.where(there, out, 0)

    def _levels(self, x: Video, clip: Clip) -> Video:
        image = self.image
        common: dict[str, Any] = dict(image=image, temporal=self.temporal, dtype=self.dtype)
        parts: list[Any] = [remembered(part, self.remat) for part in (Down, Middle, Up)]
        down, middle, up = parts
        left = []
        for level in range(image.levels):
            x, kept = down(**common, level=level, name=f"down_{level}")(x, clip)
            left.append(kept)
        x = middle(**common, level=MIDDLE, name="middle")(x, clip)
        for level in reversed(range(image.levels)):
            x = up(**common, level=level, name=f"up_{level}")(x, clip, left[level])
        return x

    def _clip(self, batch: Frames, time: PerExample, cond: Cond, train: bool) -> Clip:
        frames = as_tokens(batch)
        c = TimeEmbedding(4 * self.image.width, self.image.width, name="time")(time, cond.pre_time)
        if cond.vector is not None:
            vector = dense(c.shape[-1], (CONDITION, None), name="vector", dtype=self.dtype)
            c = c + vector(cond.vector).astype(jnp.float32)[:, :, None]
        moving = batch.spread(batch.examples.grid[..., 0] > 1)[..., 0, 0, 0]
        return Clip(frames, batch.lookup(c), moving, contexts(self.cross, frames, cond), train)
