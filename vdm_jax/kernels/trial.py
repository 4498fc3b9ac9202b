"""Whether a kernel is right on this machine: it is tried once, before it is first chosen.

What a GPU's compiler makes of a kernel depends on the chip, the driver and the version of JAX, and
one that ignores groups trains without a word. So it computes a small packed case first, outputs and
gradients, and `dense` says what they should be.
"""

from __future__ import annotations

import concurrent.futures
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.kernels import dense
from vdm_jax.kernels.kernel import Kernel
from vdm_jax.kernels.kernel import attend as run

# In bf16, whose mantissa has eight bits, and TF32; keys of a wrong group are off by the whole.
TOLERANCE = 0.03
HEADS = 2
Q_GROUP = [1] * 90 + [2] * 38 + [5] * 72 + [6] * 20 + [0] * 80
KV_GROUP = [1] * 64 + [2] * 26 + [3] * 30 + [5] * 50 + [0] * 40  # nothing for group 6 to see

_log = logging.getLogger(__name__)


@functools.cache
def passes(kernel: Kernel, width: int, dtype: str) -> bool:
    """Whether it agrees with `dense` on JAX's default device; said once a process, with a reason.

    Args:
      width: features of a head.
      dtype: of queries, keys and values.
    """
    # A thread of its own is inside no trace and under no mesh, as the caller may be.
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        objection = threads.submit(_objection, kernel, width, dtype).result()
    name = type(kernel).__name__.lower()
    if objection:
        _log.warning("attention '%s' is not used on this machine: %s", name, objection)
    else:
        _log.info("attention '%s' agrees with 'dense' on this machine", name)
    return not objection


def _objection(kernel: Kernel, width: int, dtype: str) -> str | None:
    rng = np.random.default_rng(0)
    n, m = len(Q_GROUP), len(KV_GROUP)
    q, k, v, weight = (
        jnp.asarray(rng.normal(size=(2, s, HEADS, width)), dtype) for s in (n, m, m, n)
    )
    q_group, kv_group = (jnp.asarray([ids, ids[::-1]]) for ids in (Q_GROUP, KV_GROUP))

    def answers(on, q, k, v):
        out, pull = jax.vjp(lambda *qkv: on(*qkv, q_group, kv_group), q, k, v)
        return out, *pull(weight.astype(out.dtype))

    try:
        found = jax.jit(functools.partial(answers, functools.partial(run, kernel)))(q, k, v)
        found = [np.asarray(x, np.float32) for x in found]
    except Exception as error:  # whatever a compiler may say
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    with jax.default_matmul_precision("highest"):
        full = (x.astype(jnp.float32) for x in (q, k, v))
        exact = jax.jit(functools.partial(answers, dense.attend))(*full)
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, exact, strict=True):
        # By numpy: where XLA takes a maximum on a CPU, nan may be lost.
        wrong = np.abs(one - np.asarray(other)).max() / np.abs(np.asarray(other)).max()
        if not wrong < TOLERANCE:
            return f"{name} differs from 'dense' by {wrong:.2g} of its largest value"
    return None
