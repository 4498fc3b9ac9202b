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

import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.kernels import spread
from vdm_jax.kernels.blocks import NO_KEY, NO_QUERY, fill, meets, worklist
from vdm_jax.kernels.kernel import HIDDEN, Saved
from vdm_jax.kernels.platform import platform

LANES = 128  # what a TPU's vector register holds; the kernel's blocks are multiples of it
# Four matrix units' worth of queries and of keys amortise a turn of the grid; larger blocks skip
# less, and from 1,024 on the scores of the backward pass overflow the vector memory of v5e.
BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Splash:
    """The kernel.

    Attributes:
      q_block, kv_block: tokens in a block of queries and of keys, multiples of 128.
      interpret: run by JAX's interpreter, on any platform, as slowly as it gets.
    """

    q_block: int
    kv_block: int
    interpret: bool

    def forward(
        self, q: Array, k: Array, v: Array, q_group: Array, kv_group: Array
    ) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
        b, n, _, _ = q.shape
        out, (lse,) = splash._splash_attention_forward(
            block_map(meets(q_group, kv_group, self.q_block, self.kv_block)),
            *self._sequences(q, k, v),
            self._ids(q_group, kv_group),
            sinks=None,
            save_residuals=True,
            **self._options(),
        )
        lse = _split(lse, b)[..., :n].swapaxes(0, 1)
        # A query without a visible key averages what it was given to see, with weight exp(HIDDEN);
        # one whose list was empty divides 0 by 0.
        seen = lse > HIDDEN
        out = jnp.where(seen.swapaxes(1, 2)[..., None], _rows(out, b)[:, :n], 0)
        return out, jnp.where(seen, lse, HIDDEN)

    def backward(self, saved: Saved, d_out: Float[Array, "b n h d"]) -> tuple[Array, Array, Array]:
        q, k, v, q_group, kv_group, out, lse = saved
        b, n, _, d = q.shape
        m = k.shape[1]
        met = meets(q_group, kv_group, self.q_block, self.kv_block)
        # exp(HIDDEN - 0) = 0: so a query that saw nothing gives nothing.
        lse = jnp.where(lse > HIDDEN, lse, 0).swapaxes(0, 1)
        lse = jnp.pad(lse, ((0, 0), (0, 0), (0, -n % self.q_block)))
        *_, dq, dk, dv, _, _ = splash._splash_attention_bwd(
            save_residuals=False,
            res=(
                *self._sequences(q, k, v),
                self._ids(q_group, kv_group),
                None,
                _sequence(out, self.q_block),
                lse.reshape(lse.shape[0], -1),
                block_map(met),
                block_map(met.swapaxes(1, 2), transposed=True),
            ),
            do=_sequence(d_out.astype(out.dtype), self.q_block),
            **self._options(),
        )
        dq = (_rows(dq, b)[:, :n].astype(jnp.float32) * d**-0.5).astype(q.dtype)
        return dq, _rows(dk, b)[:, :m], _rows(dv, b)[:, :m]

    def _sequences(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        # The kernel does not scale. In bf16 the product is one more rounding of the kind q has had.
        q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
        blocks = (self.q_block, self.kv_block, self.kv_block)
        q, k, v = (_sequence(x, size) for x, size in zip((q, k, v), blocks, strict=True))
        return q, k, v

    def _ids(self, q_group: Array, kv_group: Array) -> splash.SegmentIds:
        return splash.SegmentIds(
            q=fill(q_group, self.q_block, NO_QUERY).reshape(-1),
            kv=fill(kv_group, self.kv_block, NO_KEY).reshape(-1),
        )

    def _options(self) -> dict[str, object]:
        q, kv = self.q_block, self.kv_block
        return dict(
            mask_value=HIDDEN,
            is_mqa=False,
            block_sizes=splash.BlockSizes(
                block_q=q, block_kv=kv,
                block_q_dkv=q, block_kv_dkv=kv,
                block_q_dq=q, block_kv_dq=kv,
            ),
            residual_checkpoint_name=None,
            mask_function=None,
            attn_logits_soft_cap=None,
            interpret=self.interpret,
        )  # fmt: skip


def attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    q_group: Int[Array, "b n"],
    kv_group: Int[Array, "b m"],
) -> Float[Array, "b n h d"]:
    """The result of `dense.attend`; off a TPU the kernel is interpreted."""
    kernel = Splash(
        q_block=block_for(q.shape[1]),
        kv_block=block_for(k.shape[1]),
        interpret=platform() != "tpu",
    )
    return spread.attend(kernel, q, k, v, q_group, kv_group)


def block_for(length: int) -> int:
    """Tokens in a block of a row that long."""
    return min(BLOCK, -(-length // LANES) * LANES)


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
    # The arrays lie in scalar memory, which is small: as few bytes as hold their numbers.
    small = next(t for t in (jnp.int8, jnp.int16, jnp.int32) if b * k <= jnp.iinfo(t).max + 1)
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


def _sequence(x: Float[Array, "b n h d"], block: int) -> Float[Array, "h s d"]:
    b, n, h, d = x.shape
    x = jnp.pad(x, ((0, 0), (0, -n % block), (0, 0), (0, 0)))
    return x.reshape(-1, h, d).swapaxes(0, 1)


def _rows(x: Float[Array, "h s d"], b: int) -> Float[Array, "b n h d"]:
    return x.swapaxes(0, 1).reshape(b, -1, x.shape[0], x.shape[2])


def _split(x: Float[Array, "h s"], b: int) -> Float[Array, "h b n"]:
    return x.reshape(x.shape[0], b, -1)
