"""How time and condition enter a block: shift, scale and gate vectors, computed per example.

With c = time embedding + condition vector, per (example, level), a block has six vectors

    b_1, s_1, g_1, b_2, s_2, g_2 :  x += g_1 Attention(LN(x) (1 + s_1) + b_1),                   (1)
                                    x += g_2 Mlp(LN(x) (1 + s_2) + b_2),

and the last layer two, b and s. They are tables with a row per (example, level), in fp32; tokens
look their row up inside the block (`Packed.lookup`), so nothing of (tokens, 6 width) outlives it.

    PerBlock   every block maps SiLU(c) to its six by its own linear layer that starts at 0, so a
               fresh block is the identity (Peebles & Xie 2023, adaLN-zero)
    Shared     one linear layer for all blocks, and a table of six vectors per block added to what
               it gives (Chen et al. 2023, adaLN-single): a third of the parameters
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.axes import EMBED, MODULATION
from vdm_jax.nets.layers import XAVIER, ZERO, dense, parameter

Table = Float[Array, "b e k d"]
BLOCK = 6
LAST = 2


class Modulation(Protocol):
    """Makes its layers in the module that calls it."""

    def shared(self, c: Table, width: int) -> Table:
        """Once per network: what every block is given."""

    def block(self, shared: Table, width: int) -> Float[Array, "b e k six*d"]:
        """In each block: its six vectors, side by side."""

    def last(self, c: Table, width: int) -> Float[Array, "b e k two*d"]:
        """In the last layer: shift and scale."""

    def kernel_count(self, blocks: int) -> int:
        """Of maps from width to width, for all blocks and the last layer."""


@dataclasses.dataclass(frozen=True)
class PerBlock:
    """A map of c in every block."""

    def shared(self, c: Table, width: int) -> Table:
        return nn.silu(c)

    def block(self, shared, width):
        return dense(BLOCK * width, (EMBED, MODULATION), name="modulation", init=ZERO)(shared)

    def last(self, c, width):
        return dense(LAST * width, (EMBED, MODULATION), name="modulation", init=ZERO)(nn.silu(c))

    def kernel_count(self, blocks: int) -> int:
        return BLOCK * blocks + LAST


@dataclasses.dataclass(frozen=True)
class Shared:
    """One map of c, and a table in every block."""

    def shared(self, c: Table, width: int) -> Float[Array, "b e k six*d"]:
        kernel = dense(BLOCK * width, (EMBED, MODULATION), name="modulation", init=XAVIER)
        return kernel(nn.silu(c))

    def block(self, shared, width):
        return AddTable(BLOCK, name="modulation")(shared)

    def last(self, c, width):
        return AddTable(LAST, name="modulation")(jnp.tile(c, LAST))

    def kernel_count(self, blocks: int) -> int:
        return BLOCK


class AddTable(nn.Module):
    """x + table: `parts` learnt vectors, drawn with variance 1 / width."""

    parts: int

    @nn.compact
    def __call__(self, x: Float[Array, "b e k pd"]) -> Float[Array, "b e k pd"]:
        width = x.shape[-1] // self.parts
        init = nn.initializers.normal(width**-0.5)
        return x + parameter(self, "table", init, (None, EMBED), (self.parts, width)).reshape(-1)
