"""Ulysses attention: devices exchange tokens for heads, and back (Jacobs et al. 2023).

Each of S devices holds n / S tokens of every head. One all-to-all gives it all n tokens of h / S
heads, among which any kernel runs as if there were no mesh; another brings the result back. The
moves are linear and JAX transposes them, so what the kernel saves stays divided by heads and is
never sent again. Every device has all pairs of tokens, hence the same work, whatever is packed.

Sent by a device in a layer, in units of its own n / S tokens of width D: 4 (S - 1) / S forwards, as
much backwards.
"""

from __future__ import annotations

from jax import lax
from jaxtyping import Array, Float, Int

from vdm_jax.kernels.kernel import Kernel
from vdm_jax.kernels.kernel import attend as run


def attend(
    kernel: Kernel,
    axes: tuple[str, ...],
    q: Float[Array, "b n h d"],
    k: Float[Array, "b n h d"],
    v: Float[Array, "b n h d"],
    q_group: Int[Array, "b n"],
    kv_group: Int[Array, "b n"],
) -> Float[Array, "b n h d"]:
    """Inside a `shard_map` that divides tokens over `axes`: attention to the keys of all.

    The devices of `axes` must divide the heads at hand.
    """
    q, k, v = (lax.all_to_all(x, axes, split_axis=2, concat_axis=1, tiled=True) for x in (q, k, v))
    q_group, kv_group = (
        lax.all_gather(ids, axes, axis=1, tiled=True) for ids in (q_group, kv_group)
    )
    out = run(kernel, q, k, v, q_group, kv_group)
    return lax.all_to_all(out, axes, split_axis=1, concat_axis=2, tiled=True)


def refusal(heads: int, tensor: int, seq: int) -> str | None:
    """Why so many heads cannot be divided over `tensor` and then `seq` devices, in a sentence."""
    tensor = tensor if heads % tensor == 0 else 1  # heads that do not divide are whole
    if heads // tensor % seq == 0:
        return None
    return (
        f"attention 'ulysses' divides heads: {heads} of them do not divide over {tensor * seq} "
        f"devices (tensor {tensor} x seq {seq}); take the backend 'ring', or other heads or mesh."
    )
