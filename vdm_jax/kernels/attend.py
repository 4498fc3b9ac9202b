"""`attend`: softmax attention in which a query sees a key iff their group ids are equal.

    out_i = sum_j p_ij v_j,   p_ij = exp(s_ij) [g_i = g_j] / sum_j exp(s_ij) [g_i = g_j],      (1)
    s_ij = q_i . k_j / sqrt(d) + bias_ij.

Group 0 is padding: it sees padding only. A query with no visible key gives exactly 0, with zero
gradients. Full, spatial, temporal, windowed and cross attention are choices of ids, nothing more.

Scores and softmax are fp32 whatever the inputs. Backends differ in time and memory, not in result.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from jaxtyping import Array, Float, Int

from vdm_jax.config import UserError, suggestion
from vdm_jax.kernels import chunked, dense, splash
from vdm_jax.kernels.platform import platform

BACKENDS: dict[str, Callable[..., Array]] = {
    "dense": dense.attend,
    "chunked": chunked.attend,
    "splash": splash.attend,
}
BIASED = frozenset({"dense"})  # backends that take a bias

# Measured by tests/benchmarks/attention.py on two CPU cores, forward and backward, five examples in
# a row: as fast as masked dense at 128 tokens, 1.3 to 2.6 times faster at 192, 3 to 5 at 512, more
# than 10 at 2048.
CHUNKED_FROM = 192 * 192
# Within one block nothing is skipped.
SPLASH_FROM = splash.BLOCK**2
# Elsewhere dense runs until its scores, kept for the backward pass, fill this many bytes.
SCORE_BYTES = 2**31

_log = logging.getLogger(__name__)


def attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    *,
    q_group: Int[Array, "b n"],
    kv_group: Int[Array, "b m"],
    bias: Float[Array, "#b #h #n #m"] | None = None,
    backend: str | None = None,
) -> Float[Array, "b n h d"]:
    """Attention within groups, equation (1); the result has the dtype of `q`.

    Args:
      q_group, kv_group: ids >= 0 in any order; contiguous ids let backends skip more.
      bias: added to the scaled scores.
      backend: a name of `BACKENDS`; None chooses by platform and shape.

    Raises:
      UserError: no such backend, or one that takes no bias is given one.
    """
    b, n, h, _ = q.shape
    m = k.shape[1]
    if backend is None:
        backend = choose(platform(), rows=b, queries=n, keys=m, heads=h)
        backend = backend if bias is None or backend in BIASED else "dense"
        _announce(backend, n, m)
    if backend not in BACKENDS:
        raise UserError(f"there is no attention '{backend}'.{suggestion(backend, BACKENDS)}")
    if bias is None:
        return BACKENDS[backend](q, k, v, q_group, kv_group)
    if backend not in BIASED:
        raise UserError(f"attention '{backend}' takes no bias; use 'dense'.")
    return BACKENDS[backend](q, k, v, q_group, kv_group, bias)


def choose(platform: str, *, rows: int, queries: int, keys: int, heads: int) -> str:
    """The backend for a platform ('cpu', 'gpu', 'tpu') and a shape, known when tracing."""
    if platform == "cpu":
        return "chunked" if queries * keys >= CHUNKED_FROM else "dense"
    large = 4 * rows * heads * queries * keys > SCORE_BYTES
    if platform == "tpu":
        return "splash" if large or queries * keys > SPLASH_FROM else "dense"
    return "chunked" if large else "dense"


@functools.cache
def _announce(backend: str, queries: int, keys: int) -> None:
    _log.info("attention of %d queries to %d keys: %s", queries, keys, backend)
