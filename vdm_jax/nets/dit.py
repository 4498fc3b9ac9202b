"""A diffusion transformer on packed rows (Peebles & Xie 2023, with the parts the years added).

    tokens -> linear + position (+ registers) -> blocks -> norm, modulated -> linear -> tokens

    block:  x += g_1 Attention(LN(x) (1 + s_1) + b_1)        within the pattern's groups
            x += CrossAttention_name(x)                      for each condition in `cross`
            x += g_2 Mlp(LN(x) (1 + s_2) + b_2)

Shifts, scales and gates come from one table per block with a row per (example, noise level), see
`modulation.py`: a row of tokens may hold videos at different times, and a video tokens at different
levels. Tokens of different examples never meet, padding gives exactly 0 and touches nothing, and a
fresh network outputs exactly 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vdm_jax.axes import EMBED, LAYER, PATCH, ROW, TOKEN
from vdm_jax.batch import Packed
from vdm_jax.cond import Cond
from vdm_jax.config import UserError
from vdm_jax.nets.attention import CrossAttention, SelfAttention
from vdm_jax.nets.context import Context, contexts
from vdm_jax.nets.layers import ZERO, Activation, Gelu, LayerNorm, Mlp, TimeEmbedding, dense
from vdm_jax.nets.modulation import Modulation, PerBlock
from vdm_jax.nets.patterns import Full, Groups, Pattern
from vdm_jax.nets.positions import Position, Sincos
from vdm_jax.nets.registers import Registers, remove
from vdm_jax.nets.remat import remembered
from vdm_jax.types import Count, Natural, PerExample, Positive

BY = (ROW, TOKEN)  # of every activation of the trunk


@struct.dataclass
class Around:
    """What every block is given besides the tokens."""

    batch: Packed
    shared: Float[Array, "b e k d"]
    angles: Float[Array, "b n half"] | None
    groups: tuple[Groups, ...]  # one for each place in a unit of blocks
    context: Mapping[str, Context]


class Block(nn.Module):
    """One block; `place` is its place in the unit of blocks that is repeated."""

    heads: Count
    hidden: Count
    activation: Activation
    modulation: Modulation
    qk_norm: str
    cross: tuple[str, ...]
    dtype: str
    backend: str | None
    place: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], around: Around) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        x = checkpoint_name(x, "block")
        groups, batch = around.groups[self.place], around.batch
        first, second = jnp.split(self.modulation.block(around.shared, width), 2, axis=-1)
        attention: dict[str, Any] = dict(
            heads=self.heads, qk_norm=self.qk_norm, dtype=self.dtype, backend=self.backend
        )

        start = x
        shift, scale, gate = jnp.split(batch.lookup(first), 3, axis=-1)
        inner = modulate(LayerNorm()(x), shift, scale)
        layer = SelfAttention(**attention, name="attention")
        x = add(x, layer(inner, groups, around.angles), gate)
        for name in self.cross:
            context = around.context[name]
            cross = CrossAttention(**attention, name=f"cross_{name}")
            x = x + cross(x, context.x, context.q_group, context.kv_group)
        shift, scale, gate = jnp.split(batch.lookup(second), 3, axis=-1)
        inner = modulate(LayerNorm()(x), shift, scale)
        mlp = Mlp(hidden=self.hidden, activation=self.activation, dtype=self.dtype, name="mlp")
        x = add(x, mlp(inner), gate)
        if groups.active is not None:
            x = jnp.where(groups.active[..., None], x, start)
        return nn.with_logical_constraint(x, (*BY, EMBED))


class Unit(nn.Module):
    """One block for each pattern, in order: what a scan over layers repeats."""

    places: int
    remat: str
    block: Mapping[str, Any]

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], around: Around) -> tuple[Array, None]:
        made = remembered(Block, self.remat, prevent_cse=False)
        for place in range(self.places):
            x = made(**self.block, place=place, name=f"block_{place}")(x, around)
        return x, None


class DiT(nn.Module):
    """Packed tokens, a time per (example, level) and conditions -> packed tokens.

    Attributes:
      patch_features: of a token, in and out; `out_features` differs where variance is learnt too.
      mlp_ratio: hidden units of the feed-forward layers over `width`.
      positions: all that add are added; at most one rotates.
      registers: learnt tokens per example (`registers.py`).
      cross: names of the condition's token sets that every block attends to, in this order.
      patterns: of attention; block i has the one at i modulo their number.
      remat: a name of `remat.REMAT`, for each block.
      layers: 'scan' stacks the parameters of all units and compiles one; 'loop' keeps them apart.
      dtype: of the trunk's products; parameters and output are fp32.
      backend: of `kernels.attend`; None chooses.
    """

    width: Count
    depth: Count
    heads: Count
    patch_features: Count
    out_features: Count | None = None
    mlp_ratio: Positive = 4.0
    activation: Activation = Gelu()
    modulation: Modulation = PerBlock()
    positions: tuple[Position, ...] = (Sincos(axes="xy"), Sincos(axes="t"))
    qk_norm: Literal["rms", "none"] = "rms"
    registers: Natural = 0
    cross: tuple[str, ...] = ()
    patterns: tuple[Pattern, ...] = (Full(),)
    remat: str = "none"
    layers: Literal["scan", "loop"] = "scan"
    dtype: str = "float32"
    backend: str | None = None

    @property
    def hidden(self) -> int:
        """Units of a feed-forward layer."""
        return round(self.mlp_ratio * self.width)

    @property
    def features_out(self) -> int:
        return self.out_features or self.patch_features

    @nn.compact
    def __call__(
        self, batch: Packed, time: PerExample, cond: Cond, *, train: bool = False
    ) -> Float[Array, "b n out"]:
        """The network's raw output for x_t = `batch.x`, 0 on padding, in fp32.

        Args:
          time: what the denoiser's time input makes of the noise levels.
          train: nothing here depends on it.

        Raises:
          UserError: sizes that do not divide, an unknown choice, or conditions that do not match
            `cross`.
        """
        del train
        self._check(batch)
        x = self._embed(batch, cond)
        row, register = batch, None
        if self.registers:
            extended, x = Registers(self.registers, name="registers")(batch, x)
            row, register = extended.batch, extended.register
        c = TimeEmbedding(self.width, name="time")(time, cond.pre_time)
        if cond.vector is not None:
            c = c + cond.vector.astype(jnp.float32)[:, :, None]
        around = Around(
            # Blocks ask it who is who, never for values.
            batch=row.replace(x=row.x[..., :0], mask=None, given=None),
            shared=self.modulation.shared(c, self.width),
            angles=self._angles(row),
            groups=tuple(pattern.groups(row, register) for pattern in self.patterns),
            context=contexts(self.cross, row, cond, register),
        )
        x = self._blocks(nn.with_logical_constraint(x, (*BY, EMBED)), around)
        if self.registers:
            x = remove(extended, x)
        return Head(self.features_out, self.modulation, name="head")(x, batch, c)

    def _check(self, batch: Packed) -> None:
        if self.width % self.heads:
            raise UserError(f"width {self.width} does not divide into {self.heads} heads.")
        if not self.patterns or self.depth % len(self.patterns):
            raise UserError(
                f"depth {self.depth} is no multiple of the {len(self.patterns)} patterns."
            )
        if self.layers not in ("scan", "loop"):
            raise UserError(f"layers is '{self.layers}'; use 'scan' or 'loop'.")
        if batch.x.shape[-1] != self.patch_features:
            raise UserError(
                f"tokens have {batch.x.shape[-1]} features, the network takes "
                f"{self.patch_features}; patch_features is patch volume times channels."
            )

    def _embed(self, batch: Packed, cond: Cond) -> Float[Array, "b n d"]:
        x = batch.x if cond.channels is None else jnp.concatenate([batch.x, cond.channels], axis=-1)
        # Padding may hold anything, and 0 times nan is nan: it is put out before it meets a sum.
        x = jnp.where(batch.segment[..., None] > 0, x, 0)
        x = dense(self.width, (PATCH, EMBED), name="patch", dtype=self.dtype, by=BY)(x)
        for position in self.positions:
            added = position.add(batch, self.width)
            if added is not None:
                x = x + added.astype(x.dtype)
        return x

    def _angles(self, row: Packed) -> Float[Array, "b n half"] | None:
        found = [position.angles(row, self.width // self.heads) for position in self.positions]
        found = [angles for angles in found if angles is not None]
        if len(found) > 1:
            raise UserError(f"{len(found)} of the positions rotate; a head can be turned once.")
        return found[0] if found else None

    def _blocks(self, x: Float[Array, "b n d"], around: Around) -> Float[Array, "b n d"]:
        block: dict[str, Any] = dict(
            heads=self.heads,
            hidden=self.hidden,
            activation=self.activation,
            modulation=self.modulation,
            qk_norm=self.qk_norm,
            cross=self.cross,
            dtype=self.dtype,
            backend=self.backend,
        )
        fields: dict[str, Any] = dict(places=len(self.patterns), remat=self.remat, block=block)
        count = self.depth // len(self.patterns)
        if self.layers == "loop":
            for index in range(count):
                x, _ = Unit(**fields, name=f"unit_{index}")(x, around)
            return x
        stacked = nn.scan(
            Unit,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=count,
            metadata_params={nn.PARTITION_NAME: LAYER},
        )
        return stacked(**fields, name="units")(x, around)[0]


class Head(nn.Module):
    """The last norm, modulated, and a linear layer that starts at 0; fp32; 0 on padding."""

    features: Count
    modulation: Modulation

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], batch: Packed, c: Float[Array, "b e k d"]
    ) -> Float[Array, "b n out"]:
        table = self.modulation.last(c, x.shape[-1])
        shift, scale = jnp.split(batch.lookup(table), 2, axis=-1)
        x = modulate(LayerNorm()(x.astype(jnp.float32)), shift, scale)
        x = dense(self.features, (EMBED, PATCH), name="out", init=ZERO, by=BY)(x)
        return jnp.where(batch.segment[..., None] > 0, x, 0)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """x (1 + scale) + shift, in fp32."""
    return (x.astype(jnp.float32) * (1 + scale) + shift).astype(x.dtype)


def add(x: Array, change: Array, gate: Array) -> Array:
    """x + gate change, the gate in fp32."""
    return x + (gate * change.astype(jnp.float32)).astype(x.dtype)
