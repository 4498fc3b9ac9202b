"""Blocks of tokens: which block of queries can meet which block of keys, and what is run through.

Tokens are cut into blocks. A block of queries and one of keys meet iff their ranges of group ids
overlap, [min, max] against [min, max], with padding (id 0) counted as the largest id: where ids
rise along the row, as the packer makes them, nearly every pair that does not meet is found so, and
in any other order the test only errs towards meeting.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

LARGEST = jnp.iinfo(jnp.int32).max
NO_QUERY, NO_KEY = -2, -1  # ids of the slots that fill up the last block; no token has them


def meets(
    q_group: Int[Array, "b n"],
    kv_group: Int[Array, "b m"],
    block: int,
    kv_block: int | None = None,
) -> Bool[Array, "b q k"]:
    """Which blocks of queries and keys are computed: those whose ranges of ids overlap.

    Args:
      block: tokens in a block of queries, and of keys unless `kv_block` says otherwise.
    """
    q_low, q_high = _ranges(q_group, block)
    k_low, k_high = _ranges(kv_group, kv_block or block)
    return (q_low[:, :, None] <= k_high[:, None]) & (k_low[:, None] <= q_high[:, :, None])


def executed(
    q_group: Int[Array, "b n"],
    kv_group: Int[Array, "b m"],
    block: int,
    kv_block: int | None = None,
) -> Int[Array, " b"]:
    """How many pairs of blocks each row computes, of ceil(n / block) ceil(m / kv_block)."""
    return meets(q_group, kv_group, block, kv_block).sum((1, 2))


def worklist(met: Bool[Array, "b q k"]) -> tuple[Int[Array, "b q k"], Int[Array, "b q"]]:
    """For each block the blocks it meets, in order and first, and how many they are."""
    return jnp.argsort(~met, axis=-1, stable=True), met.sum(-1)


def fill(group: Int[Array, "b n"], block: int, value: int) -> Int[Array, "b filled"]:
    """Ids up to the end of the last block."""
    return jnp.pad(group, ((0, 0), (0, -group.shape[1] % block)), constant_values=value)


def _ranges(group: Int[Array, "b n"], block: int) -> tuple[Array, Array]:
    ids = jnp.where(group == 0, LARGEST, group)
    # The slots that fill up the last block belong to no range.
    cut = (ids.shape[0], -1, block)
    low, high = fill(ids, block, LARGEST), fill(ids, block, -1)
    return low.reshape(cut).min(-1), high.reshape(cut).max(-1)
