"""Attention on a TPU: JAX's splash kernel, run through a map of blocks made of the group ids.

The kernel (Pallas, online softmax; Dao et al. 2022) takes for each block of queries the blocks of
keys to fetch and a flag for each whether to compute. Its own maps are made of masks known before
compiling and its segment ids only mask. Here the map is data: the list of the blocks that a block
meets (`blocks.py`), the same for the forward pass and dq, transposed for dk and dv. What does not
meet is neither fetched nor computed, and one compiled program serves every packing.

Rows are laid end to end: (b, n, h, d) becomes one sequence (h, b n, d), whose map lists for each
block of queries only blocks of its own row. So no row waits in a loop, and the kernel's grid, heads
times blocks of queries times the longest possible list, does not grow with b squared. An idle slot
of a list still costs its turn of the grid.

All that is private to JAX is in this file.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jaxtyping import Array, Bool, Float

from vdm_jax.kernels.blocks import NO_KEY, NO_QUERY, fill, meets, worklist
from vdm_jax.kernels.kernel import HIDDEN, Saved
from vdm_jax.kernels.platform import platform

LANES = 128  # what a TPU's vector register holds; the kernel's blocks are multiples of it
# A block of keys and values, fetched for so many queries, gives 512 operations a byte; v5e, v5p and
# v7x need 170 to 310 to be kept busy, v6e 560. Larger blocks would skip less.
BLOCK = 512
# Bytes of the map; a TPU's scalar memory, where it lies, has 2^20, and some are the compiler's.
MAP_BYTES = 3 * 2**18


@dataclasses.dataclass(frozen=True)
class Splash:
    """The kernel.

    Attributes:
      block: tokens in a block of queries and of keys, a multiple of 128. Short rows have smaller
        ones, and rows so long that their map is too large, larger.
      interpret: run by JAX's interpreter, on any platform, as slowly as it gets.
    """

    block: int
    interpret: bool

    def forward(
        self, q: Array, k: Array, v: Array, q_group: Array, kv_group: Array
    ) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
        b, n, _, _ = q.shape
        sizes = self._sizes(q, k)
        out, (lse,) = splash._splash_attention_forward(
            block_map(meets(q_group, kv_group, *sizes)),
            *_sequences(q, k, v, sizes),
            _ids(q_group, kv_group, sizes),
            sinks=None,
            save_residuals=True,
            **self._options(sizes),
        )
        lse = lse.reshape(lse.shape[0], b, -1)[..., :n].swapaxes(0, 1)
        # A query without a visible key averages what it was given to see, with weight exp(HIDDEN);
        # one whose list was empty divides 0 by 0. But what came in as nan goes out as nan.
        blind = lse <= HIDDEN
        out = jnp.where(blind.swapaxes(1, 2)[..., None], 0, _rows(out, b)[:, :n])
        return out, jnp.where(blind, HIDDEN, lse)

    def backward(self, saved: Saved, d_out: Float[Array, "b n h d"]) -> tuple[Array, Array, Array]:
        q, k, v, q_group, kv_group, out, lse = saved
        (b, n, h, d), m = q.shape, k.shape[1]
        sizes = self._sizes(q, k)
        met = meets(q_group, kv_group, *sizes)
        # exp(HIDDEN - 0) = 0: so a query that saw nothing gives nothing.
        lse = jnp.where(lse <= HIDDEN, 0, lse).swapaxes(0, 1)
        lse = jnp.pad(lse, ((0, 0), (0, 0), (0, -n % sizes[0]))).reshape(h, -1)
        *_, dq, dk, dv, _, _ = splash._splash_attention_bwd(
            save_residuals=False,
            res=(
                *_sequences(q, k, v, sizes),
                _ids(q_group, kv_group, sizes),
                None,  # sinks
                _sequence(out, sizes[0]),
                lse,
                block_map(met),
                block_map(met.swapaxes(1, 2), transposed=True),
            ),
            do=_sequence(d_out.astype(out.dtype), sizes[0]),
            **self._options(sizes),
        )
        dq = (_rows(dq, b)[:, :n].astype(jnp.float32) * d**-0.5).astype(q.dtype)
        return dq, _rows(dk, b)[:, :m], _rows(dv, b)[:, :m]

    def _sizes(self, q: Array, k: Array) -> tuple[int, int]:
        """Tokens in a block of queries and in one of keys."""
        b, block = q.shape[0], self.block
        lengths = [-(-x.shape[1] // LANES) * LANES for x in (q, k)]
        while map_bytes(b, *(-(-length // block) for length in lengths)) > MAP_BYTES:
            block *= 2
        queries, keys = (min(block, length) for length in lengths)
        return queries, keys

    def _options(self, sizes: tuple[int, int]) -> dict[str, Any]:
        queries, keys = sizes
        blocks = splash.BlockSizes(
            block_q=queries, block_kv=keys,
            block_q_dkv=queries, block_kv_dkv=keys,
            block_q_dq=queries, block_kv_dq=keys,
        )  # fmt: skip
        return dict(
            mask_value=HIDDEN,
            is_mqa=False,
            block_sizes=blocks,
            residual_checkpoint_name=None,
            mask_function=None,
            attn_logits_soft_cap=None,
            interpret=self.interpret,
        )


def kernel() -> Splash:
    """In blocks that suit a TPU; on other platforms it is interpreted."""
    return Splash(block=BLOCK, interpret=platform() != "tpu")


def block_map(met: Bool[Array, "b q k"], *, transposed: bool = False) -> MaskInfo:
    """The kernel's two arrays (1, b q, k): which block to fetch, and whether to compute.

    For dk and dv `met` is (b k q), and the arrays, (1, q, b k), run through queries.
    """
    b, q, k = met.shape
    lists, lengths = worklist(met)
    slots = jnp.arange(k)
    compute = slots < lengths[..., None]
    # Slots behind the end of a list name its last block again, which is there already.
    slots = jnp.minimum(slots, jnp.maximum(lengths - 1, 0)[..., None])
    fetch = jnp.take_along_axis(lists, slots, -1) + k * jnp.arange(b)[:, None, None]
    small = _integer(b * k)
    fetch, compute = fetch.reshape(b * q, k).astype(small), compute.reshape(b * q, k)
    compute = compute.astype(jnp.int8)
    if transposed:
        fetch, compute = fetch.T, compute.T
    return MaskInfo(
        data_next=fetch[None],
        block_mask=compute[None],
        mask_next=None,
        partial_mask_blocks=None,
        q_sequence=None,
    )


def map_bytes(b: int, q: int, k: int) -> int:
    """Of the larger map, the one whose lists are longer or whose indices are."""
    return b * q * k * (1 + _integer(b * max(q, k))(0).itemsize)


def _integer(count: int) -> type[np.signedinteger]:
    """The smallest that counts so far."""
    return next(t for t in (np.int8, np.int16, np.int32) if count <= np.iinfo(t).max + 1)


def _sequences(q: Array, k: Array, v: Array, sizes: tuple[int, int]) -> tuple[Array, Array, Array]:
    # The kernel does not scale. In bf16 the product is one more rounding of the kind q has had.
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    return _sequence(q, sizes[0]), _sequence(k, sizes[1]), _sequence(v, sizes[1])


def _ids(q_group: Array, kv_group: Array, sizes: tuple[int, int]) -> splash.SegmentIds:
    return splash.SegmentIds(
        q=fill(q_group, sizes[0], NO_QUERY).reshape(-1),
        kv=fill(kv_group, sizes[1], NO_KEY).reshape(-1),
    )


def _sequence(x: Float[Array, "b n h d"], block: int) -> Float[Array, "h s d"]:
    _, n, h, d = x.shape
    x = jnp.pad(x, ((0, 0), (0, -n % block), (0, 0), (0, 0)))
    return x.reshape(-1, h, d).swapaxes(0, 1)


def _rows(x: Float[Array, "h s d"], b: int) -> Float[Array, "b n h d"]:
    return x.swapaxes(0, 1).reshape(b, -1, x.shape[0], x.shape[2])
