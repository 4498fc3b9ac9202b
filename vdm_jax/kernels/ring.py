"""Ring attention: queries stay, keys go round the devices of a row (Liu, Zaharia & Abbeel 2023).

Each of S devices holds n / S tokens of every row. At hop t = 0 .. S - 1 it has the keys, values and
group ids of the device t places before it; what its queries take from them is merged by equation
(1) of `kernel.py`. In the backward pass every hop is given the (out, lambda) of all keys, and the
gradients of keys and values travel with them, one place behind, until they are home.

A hop at which no id of the queries' range lies in the keys' range computes nothing: in packed rows,
whose segments are mostly shorter than a device's share, that is most hops. The keys still pass
through. What is sent at the beginning of a hop is not needed before the next, so that it may travel
while the hop computes.

Sent by a device in a layer, in units of its own n / S tokens of width D: 2 (S - 1) forwards in the
dtype of the keys; backwards as many again and 2 S in fp32.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.kernels.blocks import meets
from vdm_jax.kernels.kernel import HIDDEN, Kernel, Saved, merge
from vdm_jax.kernels.kernel import attend as run

T = TypeVar("T")


def attend(
    kernel: Kernel,
    axes: tuple[str, ...],
    q: Float[Array, "b n h d"],
    k: Float[Array, "b n h d"],
    v: Float[Array, "b n h d"],
    q_group: Int[Array, "b n"],
    kv_group: Int[Array, "b n"],
) -> Float[Array, "b n h d"]:
    """Inside a `shard_map` that divides tokens over `axes`: attention to the keys of all."""
    return run(Ring(kernel, axes), q, k, v, q_group, kv_group)


@dataclasses.dataclass(frozen=True)
class Ring:
    """A kernel made of one `kernel` call a hop; fp32 between hops."""

    kernel: Kernel
    axes: tuple[str, ...]

    def forward(
        self, q: Array, k: Array, v: Array, q_group: Array, kv_group: Array
    ) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
        def visit(seen, keys):
            k, v, kv_group = keys
            return lax.cond(
                touch(q_group, kv_group),
                lambda: merge(seen, self.kernel.forward(q, k, v, q_group, kv_group)),
                lambda: seen,
            )

        def hop(carry, _):
            keys, seen = carry
            following = self._pass(keys)
            return (following, visit(seen, keys)), None

        b, n, h, _ = q.shape
        nothing = jnp.zeros(q.shape, jnp.float32), jnp.full((b, h, n), HIDDEN, jnp.float32)
        (keys, seen), _ = lax.scan(hop, ((k, v, kv_group), nothing), length=self._devices - 1)
        out, lse = visit(seen, keys)
        return out.astype(q.dtype), lse

    def backward(self, saved: Saved, d_out: Float[Array, "b n h d"]) -> tuple[Array, Array, Array]:
        def visit(keys):
            """What this hop adds to the gradients of q, k and v."""
            k, v, kv_group = keys
            here = saved._replace(k=k, v=v, kv_group=kv_group)
            return lax.cond(
                touch(saved.q_group, kv_group),
                lambda: _full(self.kernel.backward(here, d_out)),
                lambda: _full((jnp.zeros_like(saved.q), jnp.zeros_like(k), jnp.zeros_like(v))),
            )

        def hop(carry, _):
            keys, d_q, d_keys = carry
            # Sent before the hop computes: neither waits for it.
            following, arrived = self._pass((keys, d_keys))
            more, *parts = visit(keys)
            return (following, d_q + more, _add(arrived, parts)), None

        keys = saved.k, saved.v, saved.kv_group
        following = self._pass(keys)
        d_q, *d_keys = visit(keys)
        first = following, d_q, d_keys
        (keys, d_q, d_keys), _ = lax.scan(hop, first, length=self._devices - 2)
        arrived = self._pass(d_keys)
        more, *parts = visit(keys)
        d_k, d_v = self._pass(_add(arrived, parts))  # home
        q, k, v = saved.q, saved.k, saved.v
        return (d_q + more).astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)

    @property
    def _devices(self) -> int:
        return lax.axis_size(self.axes)

    def _pass(self, tree: T) -> T:
        """To the next device."""
        places = [(i, (i + 1) % self._devices) for i in range(self._devices)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axes, places), tree)


def touch(q_group: Int[Array, "b n"], kv_group: Int[Array, "b m"]) -> Bool[Array, ""]:
    """Whether in any row the queries' range of ids overlaps the keys'; padding is the largest."""
    return meets(q_group, kv_group, max(q_group.shape[1], kv_group.shape[1])).any()


def _full(tree: T) -> T:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _add(one: T, other: T) -> T:
    return jax.tree.map(jnp.add, one, other)
