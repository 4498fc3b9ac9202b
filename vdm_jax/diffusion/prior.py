"""The noise of a video: Gaussian, correlated over frames by a lower Cholesky factor.

    eps_f = sum over g <= f of L[f, g] white_g,        rows of L have unit norm           (1)

so every frame alone is standard normal whatever the factor. A factor is a function of two frame
indices, not a matrix: examples of any length share one program, and the noise of a clip's first
frames does not depend on how many follow. White noise is keyed by (example, cell), hence eps is.
`Iid` costs one draw, `Shared` one, the others one per frame.

`offset` adds one number per frame and channel, constant over space, which lets a network move the
mean brightness (it is not part of the unit norm).
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Float, Int

from vdm_jax.batch import Frames, Packed
from vdm_jax.types import ExampleKeys, Fraction, NonNegative


@runtime_checkable
class Factor(Protocol):
    """Whose white noise is needed by `columns`: 0 the own frame's, 1 the first's, None all."""

    @property
    def columns(self) -> int | None: ...

    def __call__(self, f: Int[Array, "..."], g: Int[Array, "..."]) -> Float[Array, "..."]:
        """L[f, g] of (1)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Iid:
    """Every frame on its own."""

    @property
    def columns(self):
        return 0

    def __call__(self, f, g):
        return jnp.where(f == g, 1.0, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """The same noise in every frame."""

    @property
    def columns(self):
        return 1

    def __call__(self, f, g):
        return jnp.where(g == 0, 1.0, 0.0)


def _exchangeable(correlation: float, f: Array, g: Array) -> Array:
    """The factor of a matrix with 1 on the diagonal and one value off it, in closed form."""
    before = 1 + (g - 1) * correlation
    diagonal = jnp.sqrt((1 - correlation) * (1 + g * correlation) / before)
    below = correlation * (1 - correlation) / (before * diagonal)
    return jnp.where(f == g, diagonal, jnp.where(f > g, below, 0.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed:
    """A shared part of variance alpha^2 / (1 + alpha^2), the rest own (Ge et al. 2023, eq. 2)."""

    alpha: NonNegative = 1.0

    @property
    def columns(self):
        return None

    def __call__(self, f, g):
        return _exchangeable(self.alpha**2 / (1 + self.alpha**2), f, g)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progressive:
    """Each frame continues the one before (Ge et al. 2023, eq. 3): correlation r^|f - g|,

    r = alpha / sqrt(1 + alpha^2).
    """

    alpha: NonNegative = 2.0

    @property
    def columns(self):
        return None

    def __call__(self, f, g):
        square = self.alpha**2 / (1 + self.alpha**2)
        innovation = jnp.where(g == 0, 1.0, (1 - square) ** 0.5)
        decay = jnp.power(square**0.5, jnp.maximum(f - g, 0).astype(innovation.dtype))
        return jnp.where(f >= g, decay * innovation, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """A base noise of variance `share` in all frames and a residual (Luo et al. 2023, eq. 4)."""

    share: Fraction = 0.5

    @property
    def columns(self):
        return 1 if self.share == 1 else None

    def __call__(self, f, g):
        if self.share == 1:
            return Shared()(f, g)
        return _exchangeable(self.share, f, g)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior:
    """`prior(keys, batch)`: noise like batch.x; zeros on padding."""

    factor: Factor = Iid()
    offset: NonNegative = 0.0

    def __call__(self, keys: ExampleKeys, batch: Frames | Packed) -> Array:
        noise = self._correlated(keys, batch)
        if self.offset == 0:
            return noise
        return noise + self.offset * _per_frame_and_channel(keys, batch)

    def _correlated(self, keys: ExampleKeys, batch: Frames | Packed) -> Array:
        depth = _depth(batch)
        columns = self.factor.columns
        if columns == 0:
            return batch.white(keys)
        slices = _slice_of_cell(batch)
        inner = jnp.arange(depth)
        rows = (slices[..., None] * depth + inner)[..., :, None]

        def add(g, total):
            white = batch.white(keys, frame=g).reshape(*slices.shape, depth, -1)
            factor = self.factor(rows, (g * depth + inner)[None, None, None, :])
            part = jnp.einsum("bnij,bnjd->bnid", factor, white, precision="highest")
            return total + part.reshape(total.shape)

        start = jnp.zeros(batch.x.shape, jnp.result_type(float))
        if columns is None:
            # The bound is data: padding and shorter clips only ever meet zeros of the factor.
            return jax.lax.fori_loop(0, jnp.max(slices) + 1, add, start)
        return add(jnp.int32(0), start)


def _depth(batch: Frames | Packed) -> int:
    """Frames inside one cell."""
    return batch.patch[0] if isinstance(batch, Packed) else 1


def _slice_of_cell(batch: Frames | Packed) -> Int[Array, "b cells"]:
    return batch.position[..., 0] if isinstance(batch, Packed) else batch.position


def _per_frame_and_channel(keys: ExampleKeys, batch: Frames | Packed) -> Array:
    """Standard normal, one number per (example, frame, channel)."""
    depth = _depth(batch)
    area = batch.patch[1] * batch.patch[2] if isinstance(batch, Packed) else 1
    channels = batch.x.shape[-1] // (depth * area)
    data = jax.random.key_data(keys)
    words = [batch.spread(data[..., i]) for i in range(data.shape[-1])]
    shape = batch.segment.shape
    cell_keys = jax.random.wrap_key_data(jnp.stack([w.reshape(shape) for w in words], axis=-1))

    def one(key, t):
        frames = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, 1), t * depth + i))
        return jax.vmap(lambda k: jax.random.normal(k, (channels,)))(frames(jnp.arange(depth)))

    normal = jax.vmap(jax.vmap(one))(cell_keys, _slice_of_cell(batch))
    normal = jnp.where(batch.segment[..., None, None] > 0, normal, 0)
    if isinstance(batch, Packed):
        return repeat(normal, "b n t c -> b n (t area c)", area=area)
    return rearrange(normal, "b f 1 c -> b f 1 1 c")
