"""`attend`: softmax attention in which a query sees a key iff their group ids are equal.

    out_i = sum_j p_ij v_j,   p_ij = exp(s_ij) [g_i = g_j] / sum_j exp(s_ij) [g_i = g_j],      (1)
    s_ij = q_i . k_j / sqrt(d) + bias_ij.

Group 0 is padding: it sees padding only. A query with no visible key gives exactly 0, with zero
gradients. Full, spatial, temporal, windowed and cross attention are choices of ids, nothing more.

Scores and softmax are fp32 whatever the inputs. Backends differ in time and memory, not in result.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
from collections.abc import Callable, Collection, Iterator

import jax
from jaxtyping import Array, Float, Int

from vdm_jax.axes import TOKEN
from vdm_jax.config import UserError, suggestion
from vdm_jax.kernels import chunked, dense, fused, splash, spread, trial
from vdm_jax.kernels.kernel import Kernel
from vdm_jax.kernels.platform import platform
from vdm_jax.kernels.spread import WAYS, Layout

KERNELS: dict[str, Callable[[], Kernel]] = {
    "chunked": chunked.kernel,
    "splash": splash.kernel,
    "fused": fused.kernel,
}
BACKENDS = ("dense", *KERNELS)

# Measured by tests/benchmarks/attention.py on two CPU cores, forward and backward, five examples in
# a row: as fast as masked dense at 128 tokens, 1.3 to 2.6 times faster at 192, 3 to 5 at 512, more
# than 10 at 2048.
CHUNKED_FROM = 192 * 192
# Within one block nothing is skipped. A judgement: neither a TPU nor a GPU was there to measure on.
SPLASH_FROM, FUSED_FROM = splash.BLOCK**2, (4 * fused.BLOCK) ** 2
# Elsewhere dense runs until its scores, kept for the backward pass, fill this many bytes.
SCORE_BYTES = 2**31

_everywhere: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def everywhere(backend: str) -> Iterator[None]:
    """What is traced inside attends by this backend, where a call names none."""
    before = _everywhere.set(backend)
    try:
        yield
    finally:
        _everywhere.reset(before)


def attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    *,
    q_group: Int[Array, "b n"],
    kv_group: Int[Array, "b m"],
    q_axis: str = TOKEN,
    kv_axis: str = TOKEN,
    bias: Float[Array, "#b #h #n #m"] | None = None,
    backend: str | None = None,
) -> Float[Array, "b n h d"]:
    """Attention within groups, equation (1); the result has the dtype of `q`.

    Args:
      q_group, kv_group: ids >= 0 in any order; contiguous ids let backends skip more.
      q_axis, kv_axis: logical axes of the tokens; where a mesh divides them, see `spread.py`.
      bias: added to the scaled scores; the backend must be 'dense'.
      backend: a name of `BACKENDS`; or one of `WAYS`, to divided keys; None chooses both.

    Raises:
      UserError: no such backend, one that takes no bias is given one, or 'ulysses' for heads that
        do not divide.
    """
    backend = backend or _everywhere.get()
    if backend is not None and backend not in (*BACKENDS, *WAYS):
        raise UserError(
            f"there is no attention '{backend}'.{suggestion(backend, (*BACKENDS, *WAYS))}"
        )
    if bias is not None and backend not in ("dense", None):
        raise UserError(f"attention '{backend}' takes no bias; use 'dense'.")
    b, n, h, _ = q.shape
    way = backend if backend in WAYS else None
    over = spread.layout(b, h, q_axis=q_axis, kv_axis=kv_axis, way=way)
    if backend is None or way:
        backend = _suited(q, keys=k.shape[1])
        if bias is not None:
            backend = "dense"
        elif over.way and backend == "dense":  # which cannot merge what it finds on each device
            backend = "splash" if platform() == "tpu" else "chunked"
        _announce(backend, n, k.shape[1], over)
    if backend == "dense":
        return dense.attend(q, k, v, q_group, kv_group, bias)
    return spread.attend(KERNELS[backend](), q, k, v, q_group, kv_group, over=over)


def choose(
    platform: str,
    *,
    rows: int,
    queries: int,
    keys: int,
    heads: int,
    refused: Collection[str] = (),
) -> str:
    """The backend for a platform ('cpu', 'gpu', 'tpu') and a shape, known when tracing.

    Args:
      refused: backends that were tried and are not right.
    """
    if platform == "cpu":
        return "chunked" if queries * keys >= CHUNKED_FROM else "dense"
    large = 4 * rows * heads * queries * keys > SCORE_BYTES
    if platform == "tpu":
        return "splash" if large or queries * keys > SPLASH_FROM else "dense"
    if platform == "gpu" and "fused" not in refused and (large or queries * keys > FUSED_FROM):
        return "fused"
    return "chunked" if large else "dense"


def _suited(q: Float[Array, "b n h d"], keys: int) -> str:
    """What is chosen here. The GPU's kernel first has to pass a trial, which needs the GPU."""
    b, n, h, width = q.shape
    on = functools.partial(choose, platform(), rows=b, queries=n, keys=keys, heads=h)
    backend = on()
    if backend == "fused":
        here = jax.default_backend() == "gpu"
        if not (here and trial.passes(fused.kernel(), width, q.dtype.name)):
            return on(refused={"fused"})
    return backend


@functools.cache
def _announce(backend: str, queries: int, keys: int, over: Layout) -> None:
    where = f", {over.way} over {' x '.join(over.keys)}" if over.way else ""
    _log.info("attention of %d queries to %d keys: %s%s", queries, keys, backend, where)
