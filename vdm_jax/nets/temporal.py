"""Parts of a video UNet that act in time, and the places where they may stand.

A `Temporal` puts a part at a place; a video UNet is an image UNet and a tuple of them:

    after_conv_in                     of the UNet
    after_conv, after_res             of a residual block
    after_sa, after_ca, after_ff      within a block's attention, after_block at its end
    after_attention                   after all of it
    after_level                       at the end of a level

Parts keep the shape. They see each place of the picture through the frames of its example; frames
of examples that have only one are left as they are, unless `on_single` is 'attend'. What a fresh
part does (`init`) is data: nothing at all, where an image model is to be inflated.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from vdm_jax.axes import EMBED
from vdm_jax.config import UserError, suggestion
from vdm_jax.kernels import attend
from vdm_jax.nets.attention import MultiHead
from vdm_jax.nets.clip import Clip, Heads, TimeConvolution, identity
from vdm_jax.nets.folded import BY_PLACE, Flat, by_frame, by_place, through_time
from vdm_jax.nets.layers import XAVIER, ZERO, GeGlu, LayerNorm, Mlp, dense, parameter
from vdm_jax.nets.positions import Position, rotate
from vdm_jax.nets.relative import Relative
from vdm_jax.nets.spatial import Norm, ResBlock
from vdm_jax.types import Count, Fraction, Natural, Video

Place = Literal[
    "after_conv_in",
    "after_conv",
    "after_res",
    "after_sa",
    "after_ca",
    "after_ff",
    "after_block",
    "after_attention",
    "after_level",
]
MIDDLE = -1  # the level between the two ways; as wide as the last
BY_CLIP = Norm(scope="clip")
FINE_BY_CLIP = Norm(eps=1e-6, scope="clip")
INIT: dict[str, Initializer] = {"zero": ZERO, "random": XAVIER}


class Part(Protocol):
    """A record of something that acts in time."""

    def __call__(self, x: Video, clip: Clip, *, name: str, dtype: str) -> Video:
        """Applies the part, its layers made in the calling module under `name`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Temporal:
    """A part at a place.

    Attributes:
      levels: numbers of the levels, from 0, at which it stands; None is all.
      middle: whether it stands in the middle too.
      on_single: what it does to examples of one frame: 'skip' or 'attend'.
    """

    part: Part
    at: Place
    levels: tuple[int, ...] | None = None
    middle: bool = True
    on_single: Literal["skip", "attend"] = "skip"

    def stands(self, place: str, level: int) -> bool:
        """Whether it acts at this place of a level, or of the `MIDDLE`.

        Raises: UserError, there is no such place.
        """
        if self.at not in get_args(Place):
            raise UserError(f"there is no place '{self.at}'.{suggestion(self.at, get_args(Place))}")
        if place != self.at:
            return False
        return self.middle if level == MIDDLE else self.levels is None or level in self.levels


def insert(
    temporal: Sequence[Temporal],
    clip: Clip,
    level: int,
    dtype: str,
    place: str,
    x: Video,
    nth: int = 0,
) -> Video:
    """Lets the parts act that stand at the `nth` place of this kind in the calling module."""
    standing = [one for one in temporal if one.stands(place, level)]
    for index, one in enumerate(standing):
        y = one.part(x, clip, name=f"{place}_{nth}_{index}", dtype=dtype)
        if one.on_single == "skip":
            y = jnp.where(clip.moving[..., None, None, None], y, x)
        elif one.on_single != "attend":
            raise UserError(f"on_single is '{one.on_single}'; use 'skip' or 'attend'.")
        x = y
    return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pseudo3d:
    """A convolution in time after one in space (Singer et al. 2022, section 3.2.1).

    Its 'identity' start changes nothing.
    """

    size: Count = 3
    init: Literal["identity", "random"] = "identity"

    def __call__(self, x, clip, *, name, dtype):
        init = {"identity": identity, "random": XAVIER}[self.init]
        axes = (EMBED, None)
        return TimeConvolution(x.shape[-1], axes, self.size, init, dtype, name=name)(x, clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolutions:
    """`count` x [norm, SiLU, convolution in time] and a way around them (Wang et al. 2023)."""

    count: Count = 4
    size: Count = 3
    norm: Norm = BY_CLIP
    init: Literal["zero", "random"] = "zero"

    def __call__(self, x, clip, *, name, dtype):
        return _Convolutions(self, dtype, name=name)(x, clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Residual:
    """A residual block whose convolutions are in time; it reads the noise level (Blattmann et al.
    2023)."""

    size: Count = 3
    norm: Norm = BY_CLIP
    init: Literal["zero", "random"] = "zero"

    def __call__(self, x, clip, *, name, dtype):
        convolution = functools.partial(TimeConvolution, size=self.size)
        block = ResBlock(
            x.shape[-1], self.norm, dtype=dtype, convolution=convolution, start=INIT[self.init],
            name=name,
        )  # fmt: skip
        return block(x, clip, lambda place, x, nth=0: x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed:
    """a x + (1 - a) part(x): a learnt number says how much of the image model stays (ibid.).

    Attributes:
      weight: a is the 'sigmoid' of what is learnt, or that number itself held in [0, 1] ('held').
      start: of a. Held, from 1, it lets nothing but itself learn until it has moved.
    """

    part: Part
    weight: Literal["sigmoid", "held"] = "sigmoid"
    start: Fraction = 0.5

    def __call__(self, x, clip, *, name, dtype):
        return _Mixed(self, dtype, name=name)(x, clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
    """Each place attends to itself in the frames of its example.

    Attributes:
      position: added to what is projected, or turning queries and keys.
      relative: what scores and values are told of the distance between two frames.
      init: of the output layer.
    """

    heads: Heads
    position: Position | None = None
    relative: Relative | None = None
    init: Literal["zero", "random"] = "zero"

    def __call__(self, x, clip, *, name, dtype):
        return _Attention(self, dtype, name=name)(x, clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer:
    """A transformer over time: norm, in, attention twice, GEGLU, out, + input (Wang et al. 2023).

    Attributes:
      inner: features within; None is those of the input.
    """

    heads: Heads
    inner: Natural | None = None
    norm: Norm = FINE_BY_CLIP
    position: Position | None = None
    relative: Relative | None = None
    init: Literal["zero", "random"] = "zero"

    def __call__(self, x, clip, *, name, dtype):
        return _Transformer(self, dtype, name=name)(x, clip)


class _Convolutions(nn.Module):
    record: Convolutions
    dtype: str

    @nn.compact
    def __call__(self, x: Video, clip: Clip) -> Video:
        record, inner = self.record, x
        for i in range(record.count):
            last = i == record.count - 1
            init = INIT[record.init] if last else XAVIER
            inner = nn.silu(record.norm(f"norm_{i}")(inner, clip))
            layer = TimeConvolution(
                x.shape[-1], (EMBED, None), record.size, init, self.dtype, name=f"conv_{i}"
            )
            inner = layer(inner, clip)
        return x + inner


class _Mixed(nn.Module):
    record: Mixed
    dtype: str

    @nn.compact
    def __call__(self, x: Video, clip: Clip) -> Video:
        """Raises: UserError, an unknown weight, or a start that no sigmoid has."""
        record, start = self.record, self.record.start
        if record.weight not in ("sigmoid", "held"):
            raise UserError(f"a mixture's weight is '{record.weight}'; use 'sigmoid' or 'held'.")
        sigmoid = record.weight == "sigmoid"
        if sigmoid and not 0 < start < 1:
            raise UserError(f"a mixture starts at {start}, which no sigmoid gives; use 'held'.")
        learnt = math.log(start / (1 - start)) if sigmoid else start
        a = parameter(self, "weight", nn.initializers.constant(learnt), (None,), (1,))
        a = jax.nn.sigmoid(a) if sigmoid else held(a)
        y = record.part(x, clip, name="part", dtype=self.dtype)
        return (a * x + (1 - a) * y).astype(x.dtype)


def held(a: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """a in [0, 1], with the slope of a everywhere: what has left can come back."""
    return a + jax.lax.stop_gradient(jnp.clip(a, 0, 1) - a)


class _Attention(nn.Module):
    record: Attention
    dtype: str

    @nn.compact
    def __call__(self, x: Video, clip: Clip) -> Video:
        record, flat = self.record, flattened(x)
        inner = LayerNorm(eps=1e-5, affine=True, name="norm")(flat)
        heads = record.heads(x.shape[-1])
        out = flat + attention(self, inner, clip, heads, INIT[record.init], "self")
        return by_frame(out.reshape(x.shape))


class _Transformer(nn.Module):
    record: Transformer
    dtype: str

    @nn.compact
    def __call__(self, x: Video, clip: Clip) -> Video:
        record, width = self.record, x.shape[-1]
        features = record.inner or width
        heads = record.heads(features)
        inner = flattened(record.norm("norm")(x, clip))
        inner = dense(features, (EMBED, None), name="in", dtype=self.dtype)(inner)
        for i in range(2):
            normed = LayerNorm(eps=1e-5, affine=True, name=f"norm_{i}")(inner)
            inner = inner + attention(self, normed, clip, heads, XAVIER, f"self_{i}")
        layer = LayerNorm(eps=1e-5, affine=True, name="norm_mlp")
        mlp = Mlp(4 * features, GeGlu(), self.dtype, BY_PLACE, name="mlp")
        inner = by_place(inner + mlp(layer(inner)))
        init = INIT[record.init]
        out = dense(width, (None, EMBED), name="out", dtype=self.dtype, init=init)(inner)
        return by_frame(x + out.reshape(x.shape))


def flattened(x: Video) -> Flat:
    """Places in a row, each device having its own in all frames."""
    return by_place(rearrange(x, "b f h w c -> b f (h w) c"))


def attention(
    module: _Attention | _Transformer,
    x: Flat,
    clip: Clip,
    heads: int,
    init: Initializer,
    name: str,
) -> Flat:
    """Attention of each place to itself in other frames, by a layer of `module` called `name`."""
    record, width = module.record, x.shape[-1] // heads
    angles = tables = None
    if record.position is not None:
        added = record.position.add(clip.frames, x.shape[-1])
        x = x if added is None else x + added.astype(x.dtype)[:, :, None]
        angles = record.position.angles(clip.frames, width)
    if record.relative is not None:
        at = clip.frames.position[..., 0]
        tables = record.relative.tables(module, name, heads, width, at)

    def meet(q: Array, k: Array, v: Array, ids: Array, told: Any) -> Array:
        angles, tables = told
        if angles is not None:
            turn = jnp.repeat(angles, len(q) // len(angles), axis=0)
            q, k = rotate(q, turn), rotate(k, turn)
        if record.relative is None:
            return attend(q, k, v, q_group=ids, kv_group=ids)
        return record.relative.meet(q, k, v, ids, tables)

    through = functools.partial(
        through_time, segment=clip.segment, meet=meet, told=(angles, tables)
    )
    return MultiHead(heads, module.dtype, init, BY_PLACE, name=name)(x, x, through)
