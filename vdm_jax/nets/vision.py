"""Vision towers: a picture in, one vector out, as CLIP's image encoder (Radford et al. 2021).

    patches -> linear -> class token and these, + place -> norm -> pre-norm transformer blocks
    the class token -> norm -> linear

Both linear layers have no bias. Weights of others fit by `images.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.axes import EMBED, PATCH
from vdm_jax.batch import patchify
from vdm_jax.config import UserError
from vdm_jax.nets.encoders import blocks, by_lines
from vdm_jax.nets.layers import SMALL, LayerNorm, dense, parameter
from vdm_jax.types import Count, Positive

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class Plain:
    """A function of each hidden unit, by its name in `ACTIVATIONS`."""

    name: str

    def hidden(self, x, layer):
        return ACTIVATIONS[self.name](layer(name="up")(x))

    def kernels(self) -> int:
        return 1


class VisionTower(nn.Module):
    """Square pictures of `side` pixels -> vectors of `features`, not of unit length.

    Attributes:
      patch: side of a patch; hidden: units of a feed-forward layer.
      eps: of the norms.
    """

    side: Count
    patch: Count
    width: Count
    depth: Count
    heads: Count
    hidden: Count
    features: Count
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    eps: Positive = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, pictures: Float[Array, "m side side c"]) -> Float[Array, "m features"]:
        """Raises: UserError, sizes that do not divide or an unknown activation."""
        if self.side % self.patch or self.width % self.heads:
            raise UserError(
                f"a tower of side {self.side} and width {self.width} needs a patch and a number of "
                f"heads that divide them, not {self.patch} and {self.heads}."
            )
        if self.activation not in ACTIVATIONS:
            known = "' or '".join(ACTIVATIONS)
            raise UserError(f"a tower's activation is '{self.activation}'; use '{known}'.")
        patches = jnp.asarray(patchify(pictures[:, None], (1, self.patch, self.patch)))
        embed = dense(self.width, (PATCH, EMBED), name="patch", dtype=self.dtype, bias=False)
        x = embed(patches)
        first = parameter(self, "class", SMALL, (EMBED,), (self.width,)).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, self.width)), x], axis=1)
        place = parameter(self, "place", SMALL, (None, EMBED), (x.shape[1], self.width))
        x = LayerNorm(self.eps, affine=True, name="norm_in")(x + place.astype(x.dtype))
        made = blocks(self.depth)(
            self.heads, self.hidden, self.dtype, Plain(self.activation), self.eps, name="blocks"
        )
        x, _ = made(by_lines(x), jnp.ones(x.shape[:2], bool))
        x = LayerNorm(self.eps, affine=True, name="norm_out")(x[:, 0].astype(jnp.float32))
        return dense(self.features, (EMBED, None), name="out", bias=False)(x)
