"""Attention on a GPU: scores never leave the chip, and blocks that cannot meet cost nothing.

The loops of `chunked.py`, one program for each block of a head and all of them at once (Pallas,
through Triton; Dao 2023, FlashAttention-2, algorithms 1 and 2). A program runs down the list of the
blocks its own meets: over keys for the output and for dq, over queries for dk and dv. Numbered
equations are those of `chunked.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from vdm_jax.kernels.blocks import NO_KEY, NO_QUERY, fill, meets, worklist
from vdm_jax.kernels.kernel import HIDDEN, Saved
from vdm_jax.kernels.platform import platform

# A tile of queries, one of keys and their scores fit the registers of four warps at 128 features.
BLOCK = 64
WARPS, STAGES = 4, 2
NARROWEST = 16  # what a matrix unit multiplies at least


@dataclasses.dataclass(frozen=True)
class Fused:
    """The kernel.

    Attributes:
      block: tokens in a block, a power of 2 and at least 16.
      interpret: run by JAX's interpreter, on any platform, as slowly as it gets.
    """

    block: int
    interpret: bool

    def forward(
        self, q: Array, k: Array, v: Array, q_group: Array, kv_group: Array
    ) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
        b, n, h, d = q.shape
        lists, lengths = worklist(meets(q_group, kv_group, self.block))
        q, k, v = (_fill(x, self.block) for x in (q, k, v))
        ids = fill(q_group, self.block, NO_QUERY), fill(kv_group, self.block, NO_KEY)
        to = _Specs(self.block, q.shape[-1])
        out, lse = self._call(
            functools.partial(_output, scale=d**-0.5),
            (lists.shape[1], h, b),
            (lists, lengths, *ids, q, k, v),
            (*to.lists(lists), to.ids_of(), to.ids(ids[1]), to.of(), to.all(k), to.all(v)),
            (to.of(), to.numbers_of()),
            (q, jax.ShapeDtypeStruct((b, h, q.shape[1]), jnp.float32)),
        )
        return out[:, :n, :, :d], lse[..., :n]

    def backward(self, saved: Saved, d_out: Float[Array, "b n h d"]) -> tuple[Array, Array, Array]:
        q, k, v, q_group, kv_group, out, lse = saved
        (b, n, h, d), m = q.shape, k.shape[1]
        met = meets(q_group, kv_group, self.block)
        delta = jnp.einsum("bnhd,bnhd->bhn", d_out, out, preferred_element_type=jnp.float32)
        rest = ((0, 0), (0, 0), (0, -n % self.block))
        lse, delta = jnp.pad(lse, rest), jnp.pad(delta, rest)
        q, k, v, d_out = (_fill(x, self.block) for x in (q, k, v, d_out.astype(q.dtype)))
        ids = fill(q_group, self.block, NO_QUERY), fill(kv_group, self.block, NO_KEY)
        to = _Specs(self.block, q.shape[-1])
        lists, lengths = worklist(met)
        (d_q,) = self._call(
            functools.partial(_query_gradient, scale=d**-0.5),
            (lists.shape[1], h, b),
            (lists, lengths, *ids, q, k, v, d_out, lse, delta),
            (
                *to.lists(lists), to.ids_of(), to.ids(ids[1]),
                to.of(), to.all(k), to.all(v), to.of(), to.numbers_of(), to.numbers_of(),
            ),
            (to.of(),),
            (q,),
        )  # fmt: skip
        lists, lengths = worklist(met.swapaxes(1, 2))
        d_k, d_v = self._call(
            functools.partial(_key_gradients, scale=d**-0.5),
            (lists.shape[1], h, b),
            (lists, lengths, *ids, q, k, v, d_out, lse, delta),
            (
                *to.lists(lists), to.ids(ids[0]), to.ids_of(),
                to.all(q), to.of(), to.of(), to.all(d_out), to.numbers(lse), to.numbers(delta),
            ),
            (to.of(), to.of()),
            (k, v),
        )  # fmt: skip
        return d_q[:, :n, :, :d], d_k[:, :m, :, :d], d_v[:, :m, :, :d]

    def _call(self, kernel, grid, arguments, in_specs, out_specs, likes) -> Any:
        return pl.pallas_call(
            kernel,
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in likes),
            compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
            interpret=self.interpret,
        )(*arguments)


def kernel() -> Fused:
    """In blocks that suit a GPU; on other platforms it is interpreted."""
    return Fused(block=BLOCK, interpret=platform() != "gpu")


@dataclasses.dataclass(frozen=True)
class _Specs:
    """What of an array the program of (block i, head j, row r) is given: its block, or all."""

    block: int
    width: int

    def of(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.block, None, self.width), lambda i, j, r: (r, i, j, 0))

    def all(self, x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, x.shape[1], None, self.width), lambda i, j, r: (r, 0, j, 0))

    def numbers_of(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, self.block), lambda i, j, r: (r, j, i))

    def numbers(self, x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, x.shape[2]), lambda i, j, r: (r, j, 0))

    def ids_of(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.block), lambda i, j, r: (r, i))

    def ids(self, group: Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, group.shape[1]), lambda i, j, r: (r, 0))

    def lists(self, lists: Array) -> tuple[pl.BlockSpec, pl.BlockSpec]:
        """Its list, and its length."""
        one = pl.BlockSpec((None, None, lists.shape[2]), lambda i, j, r: (r, i, 0))
        return one, pl.BlockSpec((None, 1), lambda i, j, r: (r, i))


def _output(lists, length, q_ids, k_ids, q, k, v, out, lse, *, scale):
    """Equations (1)."""
    block, width = q.shape
    q_tile, ids = q[...], q_ids[...]

    def turn(i, state):
        mu, norm, total = state
        there = pl.ds(lists[i] * block, block)
        visible = ids[:, None] == k_ids[there][None, :]
        scores = jnp.where(visible, triton.dot(q_tile, k[there, :].T) * scale, HIDDEN)
        top = jnp.maximum(mu, scores.max(-1))
        p = jnp.where(visible, jnp.exp(scores - top[:, None]), 0)
        shrink = jnp.exp(mu - top)
        v_tile = v[there, :]
        total = total * shrink[:, None] + triton.dot(p.astype(v_tile.dtype), v_tile)
        return top, norm * shrink + p.sum(-1), total

    start = jnp.full(block, HIDDEN), jnp.zeros(block), jnp.zeros((block, width))
    mu, norm, total = jax.lax.fori_loop(0, length[0], turn, start)
    blind = norm == 0
    norm = jnp.where(blind, 1, norm)
    out[...] = (total / norm[:, None]).astype(out.dtype)
    lse[...] = jnp.where(blind, HIDDEN, mu + jnp.log(norm))


def _query_gradient(
    lists, length, q_ids, k_ids, q, k, v, d_out, lse, delta, d_q, *, scale
):  # fmt: skip
    """Of equations (2), dq."""
    block, width = q.shape
    q_tile, do_tile, ids = q[...], d_out[...], q_ids[...]
    lse_tile, delta_tile = lse[...], delta[...]

    def turn(i, d_q):
        there = pl.ds(lists[i] * block, block)
        k_tile, visible = k[there, :], ids[:, None] == k_ids[there][None, :]
        scores = jnp.where(visible, triton.dot(q_tile, k_tile.T) * scale, HIDDEN)
        p = jnp.where(visible, jnp.exp(scores - lse_tile[:, None]), 0)
        ds = p * (triton.dot(do_tile, v[there, :].T) - delta_tile[:, None])
        return d_q + triton.dot(ds.astype(k_tile.dtype), k_tile)

    found = jax.lax.fori_loop(0, length[0], turn, jnp.zeros((block, width)))
    d_q[...] = (found * scale).astype(d_q.dtype)


def _key_gradients(
    lists, length, q_ids, k_ids, q, k, v, d_out, lse, delta, d_k, d_v, *, scale
):  # fmt: skip
    """Of equations (2), dk and dv; scores lie transposed."""
    block, width = k.shape
    k_tile, v_tile, ids = k[...], v[...], k_ids[...]

    def turn(i, state):
        d_k, d_v = state
        there = pl.ds(lists[i] * block, block)
        q_tile, do_tile = q[there, :], d_out[there, :]
        visible = ids[:, None] == q_ids[there][None, :]
        scores = jnp.where(visible, triton.dot(k_tile, q_tile.T) * scale, HIDDEN)
        p = jnp.where(visible, jnp.exp(scores - lse[there][None, :]), 0)
        ds = p * (triton.dot(v_tile, do_tile.T) - delta[there][None, :])
        d_v = d_v + triton.dot(p.astype(do_tile.dtype), do_tile)
        return d_k + triton.dot(ds.astype(q_tile.dtype), q_tile), d_v

    zeros = jnp.zeros((block, width))
    found_k, found_v = jax.lax.fori_loop(0, length[0], turn, (zeros, zeros))
    d_k[...], d_v[...] = (found_k * scale).astype(d_k.dtype), found_v.astype(d_v.dtype)


def _fill(x: Float[Array, "b n h d"], block: int) -> Float[Array, "b m h e"]:
    """Tokens up to the end of the last block, features up to a power of 2."""
    width = max(NARROWEST, pl.next_power_of_2(x.shape[-1]))
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, width - x.shape[-1])))
