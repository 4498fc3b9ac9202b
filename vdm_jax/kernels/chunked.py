"""Attention in blocks: little memory, and pairs of blocks whose groups cannot meet cost nothing.

For each block of queries the blocks of keys it meets (`blocks.py`) are listed, and a loop whose
length is data runs down the list with the online softmax (Milakov & Gimelshein 2018; Dao et al.
2022, algorithm 1): with running maximum mu, normaliser l and sum a,

    mu' = max(mu, max_j s_ij),  c = exp(mu - mu'),  p_j = exp(s_ij - mu') [g_i = g_j],        (1)
    l' = c l + sum_j p_j,       a' = c a + sum_j p_j v_j,     out_i = a / l.

Kept for the backward pass are out and lambda_i = mu + log l; it runs over blocks of keys and
recomputes p_ij = exp(s_ij - lambda_i). With delta_i = dout_i . out_i (ibid., algorithm 4),

    dv_j = sum_i p_ij dout_i,   ds_ij = p_ij (dout_i . v_j - delta_i),                        (2)
    dq_i = sum_j ds_ij k_j,     dk_j = sum_i ds_ij q_i.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.lax import dynamic_slice, dynamic_update_slice
from jaxtyping import Array, Float, Int

from vdm_jax.kernels.blocks import NO_KEY, NO_QUERY, fill, meets, worklist
from vdm_jax.kernels.kernel import HIDDEN, Saved
from vdm_jax.kernels.platform import platform

# Measured on CPU (tests/benchmarks/attention.py): 64 skips most and its scores stay in the cache.
# Elsewhere the cost of a turn of the loop counts, and blocks are larger.
BLOCKS = {"cpu": 64}
BLOCK_ELSEWHERE = 512


@dataclasses.dataclass(frozen=True)
class Chunked:
    """The kernel; `block` tokens a block."""

    block: int

    def forward(
        self, q: Array, k: Array, v: Array, q_group: Array, kv_group: Array
    ) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
        return _forward(self.block, q, k, v, q_group, kv_group)

    def backward(self, saved: Saved, d_out: Float[Array, "b n h d"]) -> tuple[Array, Array, Array]:
        return _backward(self.block, saved, d_out)


def kernel() -> Chunked:
    """In blocks that suit the platform."""
    return Chunked(BLOCKS.get(platform(), BLOCK_ELSEWHERE))


def _forward(block, q, k, v, q_group, kv_group):
    """(out (b n h d), lambda (b h n)) by equation (1)."""
    b, n, h, d = q.shape
    lists, lengths = worklist(meets(q_group, kv_group, block))
    blocks = lists.shape[1]
    scale, dtype = d**-0.5, q.dtype
    q, k, v = (_heads_first(x, block) for x in (q, k, v))
    q_group, kv_group = fill(q_group, block, NO_QUERY), fill(kv_group, block, NO_KEY)

    def one(at):
        row, here = at // blocks, at % blocks
        q_tile, q_ids = _tile(q, row, here, block), _ids(q_group, row, here, block)

        def turn(state):
            i, mu, norm, total = state
            there = lists[row, here, i]
            k_tile, v_tile = _tile(k, row, there, block), _tile(v, row, there, block)
            visible = q_ids[:, None] == _ids(kv_group, row, there, block)
            scores = jnp.where(visible, _scores(q_tile, k_tile) * scale, HIDDEN)
            top = jnp.maximum(mu, scores.max(-1))
            # `where` again: in a row with nothing visible yet, HIDDEN - HIDDEN is 0, not hidden.
            p = jnp.where(visible, jnp.exp(scores - top[..., None]), 0)
            shrink = jnp.exp(mu - top)
            norm = norm * shrink + p.sum(-1)
            return i + 1, top, norm, total * shrink[..., None] + _product("hqk,hkd->hqd", p, v_tile)

        zeros = jnp.zeros((h, block))
        start = (0, jnp.full((h, block), HIDDEN), zeros, jnp.zeros((h, block, d)))
        _, mu, norm, total = jax.lax.while_loop(lambda s: s[0] < lengths[row, here], turn, start)
        seen = norm > 0
        norm = jnp.where(seen, norm, 1)
        return (total / norm[..., None]).astype(dtype), jnp.where(seen, mu + jnp.log(norm), HIDDEN)

    out, lse = jax.lax.map(one, jnp.arange(b * blocks))
    return _heads_last(out, b)[:, :n], _tokens_last(lse, b)[..., :n]


def _backward(block, saved, d_out):
    """Gradients of q, k and v by equations (2)."""
    q, k, v, q_group, kv_group, out, lse = saved
    b, n, h, d = q.shape
    m, scale, types = k.shape[1], d**-0.5, (q.dtype, k.dtype, v.dtype)
    lists, lengths = worklist(meets(q_group, kv_group, block).swapaxes(1, 2))
    blocks = lists.shape[1]
    delta = jnp.einsum("bnhd,bnhd->bhn", d_out, out, preferred_element_type=jnp.float32)
    rest = ((0, 0), (0, 0), (0, -n % block))
    delta, lse = jnp.pad(delta, rest), jnp.pad(lse, rest)
    q, k, v, d_out = (_heads_first(x, block) for x in (q, k, v, d_out))
    q_group, kv_group = fill(q_group, block, NO_QUERY), fill(kv_group, block, NO_KEY)

    def one(dq, at):
        row, here = at // blocks, at % blocks
        k_tile, v_tile = _tile(k, row, here, block), _tile(v, row, here, block)
        k_ids = _ids(kv_group, row, here, block)

        def turn(state):
            i, dq, dk, dv = state
            there = lists[row, here, i]
            q_tile, do_tile = _tile(q, row, there, block), _tile(d_out, row, there, block)
            # Keys by queries: two of the three products then read their matrix along its rows. For
            # the third it is turned first, behind a barrier, or the compiler undoes that: a CPU
            # multiplies rows by columns faster than columns by columns.
            lse_tile, delta_tile = (
                dynamic_slice(x, (row, 0, there * block), (1, h, block))[0, :, None]
                for x in (lse, delta)
            )
            visible = k_ids[:, None] == _ids(q_group, row, there, block)
            p = jnp.where(visible, jnp.exp(_scores(k_tile, q_tile) * scale - lse_tile), 0)
            ds = p * (_scores(v_tile, do_tile) - delta_tile)
            dv = dv + _product("hkq,hqd->hkd", p, do_tile)
            dk = dk + _product("hkq,hqd->hkd", ds, q_tile)
            turned = jax.lax.optimization_barrier(ds.swapaxes(1, 2))
            new = _tile(dq, row, there, block) + _product("hqk,hkd->hqd", turned, k_tile)
            dq = dynamic_update_slice(dq, new[None], (row, 0, there * block, 0))
            return i + 1, dq, dk, dv

        zeros = jnp.zeros((h, block, d))
        start = (0, dq, zeros, zeros)
        _, dq, dk, dv = jax.lax.while_loop(lambda s: s[0] < lengths[row, here], turn, start)
        return dq, (dk, dv)

    dq, (dk, dv) = jax.lax.scan(one, jnp.zeros(q.shape, jnp.float32), jnp.arange(b * blocks))
    dq = dq.swapaxes(1, 2)[:, :n] * scale
    dk, dv = _heads_last(dk, b)[:, :m] * scale, _heads_last(dv, b)[:, :m]
    dq, dk, dv = (x.astype(dtype) for x, dtype in zip((dq, dk, dv), types, strict=True))
    return dq, dk, dv


def _heads_first(x: Float[Array, "b n h d"], block: int) -> Float[Array, "b h n d"]:
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % block), (0, 0)))


def _heads_last(tiles: Float[Array, "t h q d"], rows: int) -> Float[Array, "b n h d"]:
    _, h, block, d = tiles.shape
    return tiles.reshape(rows, -1, h, block, d).swapaxes(2, 3).reshape(rows, -1, h, d)


def _tokens_last(tiles: Float[Array, "t h q"], rows: int) -> Float[Array, "b h n"]:
    _, h, block = tiles.shape
    return tiles.reshape(rows, -1, h, block).swapaxes(1, 2).reshape(rows, h, -1)


def _tile(x: Float[Array, "b h n d"], row: Array, at: Array, block: int) -> Float[Array, "h q d"]:
    _, h, _, d = x.shape
    return dynamic_slice(x, (row, 0, at * block, 0), (1, h, block, d))[0]


def _ids(group: Int[Array, "b n"], row: Array, at: Array, block: int) -> Int[Array, " q"]:
    return dynamic_slice(group, (row, at * block), (1, block))[0]


def _scores(q: Float[Array, "h q d"], k: Float[Array, "h k d"]) -> Float[Array, "h q k"]:
    return jnp.einsum("hqd,hkd->hqk", q, k, preferred_element_type=jnp.float32)


def _product(equation: str, p: Array, x: Array) -> Array:
    """A product of fp32 weights and a tile, in the tile's dtype, summed in fp32."""
    return jnp.einsum(equation, p.astype(x.dtype), x, preferred_element_type=jnp.float32)
