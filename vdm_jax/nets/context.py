"""The token sets of a condition, as blocks attend to them: whose they are; 0 on padding."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.batch import Packed
from vdm_jax.cond import Cond
from vdm_jax.config import UserError
from vdm_jax.nets.patterns import cross_groups


@struct.dataclass
class Context:
    """One condition's tokens, and who of a row's n tokens or frames may see them."""

    x: Float[Array, "b l c"]
    q_group: Int[Array, "b n"]
    kv_group: Int[Array, "b l"]


def contexts(
    names: Sequence[str], row: Packed, cond: Cond, register: Bool[Array, "b n"] | None = None
) -> dict[str, Context]:
    """Of each token set in `names`.

    Raises:
      UserError: the condition has others.
    """
    if set(names) != set(cond.tokens):
        raise UserError(
            f"the network attends to token sets {sorted(names)}, the condition has "
            f"{sorted(cond.tokens)}; `cross` and the signals' slots must name the same."
        )
    found = {}
    for name in names:
        tokens = cond.tokens[name]
        # Padding may hold anything, and 0 times nan is nan.
        x = jnp.where(tokens.segment[..., None] > 0, tokens.x, 0)
        found[name] = Context(x, *cross_groups(row, tokens.segment, tokens.frame, register))
    return found
