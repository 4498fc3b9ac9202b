"""Parts every network shares: norms, feed-forward layers, time embedding, dense layers with names.

Statistics of norms and the time embedding are fp32 whatever `dtype` is; the result is cast back.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from vdm_jax.axes import EMBED, MLP, ROW, TOKEN
from vdm_jax.nets.gathered import Names, product
from vdm_jax.types import Count, Positive

XAVIER = nn.initializers.xavier_uniform()
SMALL = nn.initializers.normal(0.02)
ZERO = nn.initializers.zeros_init()
ONE = nn.initializers.ones_init()

AxisNames = tuple[str | None, str | None]  # of a kernel: in, out


class Dense(nn.Module):
    """x W + b, the product in `dtype`; parameters are fp32.

    Attributes:
      axes: logical names of the axes of W; by: of those of x, as far as each entry along them is
        treated by itself (`gathered.apply`).
    """

    features: int
    axes: AxisNames
    dtype: str = "float32"
    kernel_init: Initializer = XAVIER
    bias: bool = True
    by: Names = (ROW,)

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"]) -> Float[Array, "b ... d"]:
        kernel = parameter(
            self, "kernel", self.kernel_init, self.axes, (x.shape[-1], self.features)
        )
        out = product(x.astype(self.dtype), kernel.astype(self.dtype), self.axes, self.by)
        if not self.bias:
            return out
        return out + parameter(self, "bias", ZERO, self.axes[1:], (self.features,)).astype(
            out.dtype
        )


def dense(
    features: int,
    axes: AxisNames,
    *,
    name: str,
    dtype: str = "float32",
    init: Initializer = XAVIER,
    bias: bool = True,
    by: Names = (ROW,),
) -> Dense:
    """A linear layer whose kernel (in, out) has the logical axes `axes`; the bias starts at 0."""
    return Dense(
        features=features, axes=axes, dtype=dtype, kernel_init=init, bias=bias, by=by, name=name
    )


def parameter(
    module: nn.Module,
    name: str,
    init: Initializer,
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
) -> Array:
    """A parameter of `module` with logical axes, fp32."""
    value: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape)
    return value


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) over the last axis; `affine` gives it a learnt scale and shift.

    Without `affine` it has no parameters: an adaptive norm brings its own.
    """

    eps: Positive = 1e-6
    affine: bool = False
    axis: str | None = EMBED

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        out = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        if self.affine:
            out = out * parameter(self, "scale", ONE, (self.axis,), x.shape[-1:])
            out = out + parameter(self, "bias", ZERO, (self.axis,), x.shape[-1:])
        return out.astype(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) times a learnt scale, over the last axis."""

    eps: Positive = 1e-6
    axis: str | None = EMBED

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        wide = x.astype(jnp.float32)
        out = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        scale = parameter(self, "scale", ONE, (self.axis,), x.shape[-1:])
        return (out * scale).astype(x.dtype)


class Activation(Protocol):
    """What a feed-forward layer does between its two products."""

    def hidden(self, x: Array, layer: Callable[..., Dense]) -> Array:
        """(... d) -> (... width); `layer(name=...)` is a linear layer in the calling module."""

    def kernels(self) -> int:
        """How many (d, width) products `hidden` does."""


@dataclasses.dataclass(frozen=True)
class Gelu:
    """GELU by the tanh approximation."""

    def hidden(self, x, layer):
        return nn.gelu(layer(name="up")(x), approximate=True)

    def kernels(self) -> int:
        return 1


@dataclasses.dataclass(frozen=True)
class SwiGlu:
    """silu(x A) * (x B) (Shazeer 2020): a gate, so a third product for the same width."""

    def hidden(self, x, layer):
        return nn.silu(layer(name="gate", bias=False)(x)) * layer(name="up", bias=False)(x)

    def kernels(self) -> int:
        return 2


@dataclasses.dataclass(frozen=True)
class GeGlu:
    """(x A + a) gelu(x B + b), the exact GELU (Shazeer 2020; Rombach et al. 2022)."""

    def hidden(self, x, layer):
        gate = nn.gelu(layer(name="gate")(x), approximate=False)
        return layer(name="up")(x) * gate

    def kernels(self) -> int:
        return 2


class Mlp(nn.Module):
    """The feed-forward layer of a block: up, `activation`, down to the width it came from.

    Attributes:
      tokens: logical names of the axes of x between rows and features.
    """

    hidden: Count
    activation: Activation = Gelu()
    dtype: str = "float32"
    tokens: tuple[str | None, ...] = (TOKEN,)

    @nn.compact
    def __call__(self, x: Float[Array, "b *n d"]) -> Float[Array, "b *n d"]:
        common: dict[str, Any] = dict(dtype=self.dtype, by=(ROW, *self.tokens))
        layer = functools.partial(dense, self.hidden, (EMBED, MLP), **common)
        inner = self.activation.hidden(x, layer)
        inner = nn.with_logical_constraint(inner, (ROW, *self.tokens, MLP))
        return dense(x.shape[-1], (MLP, EMBED), name="down", **common)(inner)


def sinusoid(value: Float[Array, "..."], features: int) -> Float[Array, "... features"]:
    """[cos(value f), sin(value f)] with f_i = 10000^(-i / half) (DiT's order), in fp32."""
    half = features // 2
    rates = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = value.astype(jnp.float32)[..., None] * rates
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbedding(nn.Module):
    """Number -> sinusoid of `frequencies` features -> Linear, SiLU, Linear of `width`; fp32.

    `early`, a condition's `pre_time`, is mapped by a linear layer without bias, which starts at 0,
    and added to the sinusoid (Luo et al. 2023, the guidance embedding of a consistency model).
    """

    width: Count
    frequencies: Count = 256

    @nn.compact
    def __call__(
        self, time: Float[Array, "b e k"], early: Float[Array, "b e c"] | None = None
    ) -> Float[Array, "b e k d"]:
        x = sinusoid(time, self.frequencies)
        if early is not None:
            early = dense(self.frequencies, (None, None), name="early", init=ZERO, bias=False)(
                early.astype(jnp.float32)
            )
            x = x + early[:, :, None]
        x = dense(self.width, (None, EMBED), name="in", init=SMALL)(x)
        return dense(self.width, (None, EMBED), name="out", init=SMALL)(nn.silu(x))
