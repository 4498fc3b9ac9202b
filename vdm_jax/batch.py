"""Two carriers of video, `Frames` (b f h w c) and `Packed` (b n d), that answer the same questions.

Both hold a table of `examples` (b e) and say which example each cell (frame or token) belongs to by
`segment`: 0 is padding, i + 1 is example i of the row. Losses, samplers and guides ask

    .x                      the values
    .spread(values)         (b e) or (b e k) per example -> per cell, broadcastable to x
    .reduce(values, how)    like x -> (b e)
    .keys(seed, purpose)    one counter-based random key per example (b e)
    .white(keys, frame)     standard normal noise like x, keyed by (example, cell)
    .total(values)          weighted sum and weight over every cell that is to be learnt

and never mention layout. Because noise is keyed by example and cell, it does not depend on an
example's row, its neighbours, the batch or the mesh.

Tokens are in raster order, t-major; a flattened patch is (pt, ph, pw, c) with c fastest.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from vdm_jax.types import ExampleKeys

Reduction = Literal["mean", "var"] | float
AnyArray = Array | np.ndarray


@struct.dataclass
class Examples:
    """What is known of each example of a row; leaves (b e ...)."""

    id: UInt32[Array, "b e 2"]  # 64 bits that name the clip, or the request when sampling
    visit: Int[Array, "b e"]  # how often this clip was seen before
    ordinal: Int[Array, "b e"]  # its place in the stream of examples
    valid: Bool[Array, "b e"]  # false: no example, or one that could not be decoded
    grid: Int[Array, "b e 3"]  # extent in cells (t, y, x)
    fps: Float[Array, "b e"]  # frames a second; 0 for a still image


class _Carrier:
    """The questions both carriers answer alike."""

    x: Array
    segment: Array
    examples: Examples
    mask: Array | None
    level: Array | None
    known: Array | None
    given: Array | None

    if TYPE_CHECKING:

        def replace(self, **changes: Any) -> Self: ...

    def keys(self, seed: int | Array, purpose: str) -> ExampleKeys:
        """One key per example, a pure function of (seed, purpose, example id, visit)."""
        root = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))

        def one(identity, visit):
            high, low = identity
            return jax.random.fold_in(
                jax.random.fold_in(jax.random.fold_in(root, high), low), visit
            )

        return jax.vmap(jax.vmap(one))(self.examples.id, self.examples.visit)

    def lookup(self, table: Float[Array, "b e k d"]) -> Float[Array, "b cells d"]:
        """Each cell's row of a per-example, per-level table; zeros on padding.

        A one-hot product rather than a gather: its transpose is a product too, and it runs on a
        matrix unit.
        """
        b, e, k, d = table.shape
        level = self.level if self.level is not None else jnp.zeros_like(self.segment)
        # Padding has segment 0, so its index is negative: one_hot gives it a row of zeros.
        index = (self.segment - 1) * k + jnp.where(self.segment > 0, jnp.minimum(level, k - 1), 0)
        onehot = jax.nn.one_hot(index, e * k, dtype=table.dtype)
        flat = table.reshape(b, e * k, d)
        return jnp.einsum("bnm,bmd->bnd", onehot, flat, precision=jax.lax.Precision.HIGHEST)

    def spread(self, values: Array) -> Array:
        """Per example (b e) or per example and level (b e k) -> per cell; 0 on padding."""
        b, e = values.shape[:2]
        k = values.shape[2] if values.ndim == 3 else 1
        level = jnp.zeros_like(self.segment) if k == 1 or self.level is None else self.level
        index = jnp.where(self.segment > 0, (self.segment - 1) * k + level, e * k)
        table = jnp.concatenate([values.reshape(b, e * k), jnp.zeros((b, 1), values.dtype)], axis=1)
        cells = jnp.take_along_axis(table, index, axis=1)
        return cells.reshape(cells.shape + (1,) * (self.x.ndim - 2))

    def membership(self) -> Float[Array, "b e cells"]:
        """1 where a cell belongs to an example."""
        examples = jnp.arange(1, self.examples.valid.shape[1] + 1)
        return (self.segment[:, None, :] == examples[None, :, None]).astype(jnp.float32)

    def reduce(self, values: Array, how: Reduction) -> Float[Array, "b e"]:
        """Statistic of each example over its cells and features; 0 for an absent example.

        Args:
          how: 'mean', 'var' (population), or a number in [0, 1]: that quantile.
        """
        flat = values.reshape(*values.shape[:2], -1).astype(jnp.float32)
        member = self.membership()
        if isinstance(how, float | int):
            inside = jnp.where(member[..., None] > 0, flat[:, None], jnp.nan)
            found = jnp.nanquantile(inside.reshape(*member.shape[:2], -1), how, axis=-1)
            return jnp.nan_to_num(found)
        count = jnp.maximum(member.sum(-1), 1) * flat.shape[-1]
        mean = jnp.einsum("bec,bcd->be", member, flat) / count
        if how == "mean":
            return mean
        centred = jnp.square(flat - self.spread(mean).reshape(*self.segment.shape, 1))
        return jnp.einsum("bec,bcd->be", member, centred) / count

    @property
    def learnt(self) -> Bool[Array, "b cells"]:
        """Cells that count in a loss: of a valid example and not given as a condition."""
        valid = self.spread(self.examples.valid.astype(jnp.float32))
        inside = valid.reshape(self.segment.shape) > 0
        return inside if self.known is None else inside & ~self.known

    def total(self, values: Array, power: float = 1.0) -> tuple[Array, Array]:
        """(sum, weight): divide once, after summing both over microbatches and devices.

        Each cell's value is its mean over features (over unmasked ones where `mask` is given); an
        example of n cells counts n ** (1 - power): power 1 is the mean over examples, 0 the mean
        over cells, and between them a compromise for mixed images and video.
        """
        values = values.astype(jnp.float32).reshape(*self.segment.shape, -1)
        learnt = self.learnt.astype(jnp.float32)
        if self.mask is None:
            per_cell = values.mean(-1)
        else:
            mask = self.mask.reshape(values.shape).astype(jnp.float32)
            per_cell = (values * mask).sum(-1) / jnp.maximum(mask.sum(-1), 1)
            learnt = learnt * (mask.sum(-1) > 0)
        cells = jnp.einsum("bec,bc->be", self.membership(), learnt)
        weight = self.spread(jnp.maximum(cells, 1) ** -power).reshape(learnt.shape) * learnt
        return (jnp.where(learnt > 0, per_cell, 0) * weight).sum(), weight.sum()

    def insert_known(self, x: Array) -> Array:
        """`x` with the cells that are given as conditions put in their place."""
        if self.known is None:
            return x
        known = self.known.reshape(self.known.shape + (1,) * (x.ndim - 2))
        return jnp.where(known, cast(Array, self.given), x)

    def _cell_keys(self, keys: ExampleKeys, counter: Int[Array, "b cells"]) -> Key[Array, "b c"]:
        data = jax.random.key_data(keys)
        padded = jnp.pad(data, ((0, 0), (1, 0), (0, 0)))  # padding cells read the dummy row 0
        per_cell = jnp.take_along_axis(padded, self.segment[..., None], axis=1)
        return jax.vmap(jax.vmap(jax.random.fold_in))(jax.random.wrap_key_data(per_cell), counter)


@struct.dataclass
class Packed(_Carrier):
    """Patches of many videos of any size in static rows; see the module's docstring.

    `mask` is false on features that are padding inside a patch (time that does not divide).
    `level` picks, per token, one of its example's k noise levels; absent means level 0.
    `known` tokens are conditions: they carry `given` and are not learnt.
    """

    x: Float[Array, "b n d"]
    segment: Int[Array, "b n"]
    position: Int[Array, "b n 3"]
    raster: Int[Array, "b n"]
    examples: Examples
    mask: Bool[Array, "b n d"] | None = None
    level: Int[Array, "b n"] | None = None
    known: Bool[Array, "b n"] | None = None
    given: Float[Array, "b n d"] | None = None
    patch: tuple[int, int, int] = struct.field(pytree_node=False, default=(1, 1, 1))

    def white(self, keys: ExampleKeys, frame: Array | int | None = None) -> Float[Array, "b n d"]:
        """Standard normal noise, keyed by (example, raster index); zeros on padding.

        With `frame`, the noise of the cell at the same place in that time slice of the grid: what a
        prior that correlates frames mixes.
        """
        counter = self.raster
        if frame is not None:
            plane = self.spread(self.examples.grid[..., 1] * self.examples.grid[..., 2])[..., 0]
            counter = self.raster + (frame - self.position[..., 0]) * plane
        normal = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, self.x.shape[-1:])))
        noise = normal(self._cell_keys(keys, counter))
        return jnp.where(self.segment[..., None] > 0, noise, 0)


@struct.dataclass
class Frames(_Carrier):
    """Whole frames; `segment` (b f) lets clips and images share one row, apart in time."""

    x: Float[Array, "b f h w c"]
    segment: Int[Array, "b f"]
    position: Int[Array, "b f"]
    examples: Examples
    mask: Bool[Array, "b f h w c"] | None = None
    level: Int[Array, "b f"] | None = None
    known: Bool[Array, "b f"] | None = None
    given: Float[Array, "b f h w c"] | None = None

    def white(self, keys: ExampleKeys, frame: Array | int | None = None) -> Array:
        """Standard normal noise, keyed by (example, frame index); zeros on padding."""
        counter = self.position if frame is None else jnp.full_like(self.position, frame)
        normal = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, self.x.shape[2:])))
        noise = normal(self._cell_keys(keys, counter))
        return jnp.where(self.segment[..., None, None, None] > 0, noise, 0)


def as_frames(batch: Packed) -> Frames:
    """Tokens that are whole frames, of patches (1, h, w), as frames."""
    _, h, w = batch.patch

    def pictures(leaf: Array | None) -> Array | None:
        if leaf is None:
            return None
        return rearrange(leaf, "b f (h w c) -> b f h w c", h=h, w=w)

    return Frames(
        x=cast(Array, pictures(batch.x)), segment=batch.segment, position=batch.raster,
        examples=_of_grid(batch.examples, batch.examples.grid * jnp.array([1, h, w])),
        mask=pictures(batch.mask), level=batch.level, known=batch.known,
        given=pictures(batch.given),
    )  # fmt: skip


def as_packed(batch: Frames) -> Packed:
    """The inverse of `as_frames`: a token a frame."""
    h, w = batch.x.shape[2:4]

    def tokens(leaf: Array | None) -> Array | None:
        return None if leaf is None else rearrange(leaf, "b f h w c -> b f (h w c)")

    zero = jnp.zeros_like(batch.position)
    return Packed(
        x=cast(Array, tokens(batch.x)), segment=batch.segment,
        position=jnp.stack([batch.position, zero, zero], axis=-1), raster=batch.position,
        examples=_of_grid(batch.examples, batch.examples.grid // jnp.array([1, h, w])),
        mask=tokens(batch.mask), level=batch.level, known=batch.known, given=tokens(batch.given),
        patch=(1, h, w),
    )  # fmt: skip


def _of_grid(examples: Examples, grid: Int[Array, "b e 3"]) -> Examples:
    return cast(Any, examples).replace(grid=grid.astype(examples.grid.dtype))


def patchify(video: AnyArray, patch: tuple[int, int, int]) -> AnyArray:
    """(..., t, h, w, c) -> (..., tokens, pt ph pw c); extents must divide by the patch."""
    pt, ph, pw = patch
    return rearrange(
        video, "... (t pt) (h ph) (w pw) c -> ... (t h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw
    )


def unpatchify(
    tokens: AnyArray, grid: tuple[int, int, int], patch: tuple[int, int, int]
) -> AnyArray:
    """The inverse of `patchify`: (..., tokens, d) -> (..., t, h, w, c)."""
    (t, h, w), (pt, ph, pw) = grid, patch
    return rearrange(
        tokens,
        "... (t h w) (pt ph pw c) -> ... (t pt) (h ph) (w pw) c",
        t=t, h=h, w=w, pt=pt, ph=ph, pw=pw,
    )  # fmt: skip


def unpack(batch: Frames | Packed) -> list[np.ndarray]:
    """The videos (t h w c) of a batch, on the host, row by row in order of segment.

    Dropped tokens come back as zeros; frames that only pad a patch in time are cut off, unless no
    token of theirs is there to say so.
    """
    batch = as_packed(batch) if isinstance(batch, Frames) else batch
    rows, segments = np.nonzero(np.asarray(batch.examples.valid))
    x, segment, raster = (np.asarray(leaf) for leaf in (batch.x, batch.segment, batch.raster))
    mask = None if batch.mask is None else np.asarray(batch.mask)
    videos = []
    for row, index in zip(rows, segments, strict=True):
        t, h, w = (int(extent) for extent in np.asarray(batch.examples.grid)[row, index])
        grid = (t, h, w)
        inside = segment[row] == index + 1
        tokens = np.zeros((int(np.prod(grid)), x.shape[-1]), x.dtype)
        tokens[raster[row, inside]] = x[row, inside]
        video = cast(np.ndarray, unpatchify(tokens, grid, batch.patch))
        if mask is not None:
            cells = np.ones(tokens.shape, bool)
            cells[raster[row, inside]] = mask[row, inside]
            kept = unpatchify(cells, grid, batch.patch).reshape(len(video), -1).all(axis=1)
            video = video[kept]
        videos.append(video)
    return videos
