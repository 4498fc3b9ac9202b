"""Floating-point operations of the matrix products in a traced program, whatever it computes.

A product of (m, k) and (k, n) is 2 m k n. Loops of known length count as often as they turn, and a
program mapped over devices once for each; of branches the larger counts. What lies in a loop whose
length is data, or in a kernel of its own, is attention, which `work.py` counts block by block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

ATTENTION = frozenset(("while", "pallas_call"))


def products(jaxpr: Any) -> int:
    """FLOPs of a `jax.core.Jaxpr`, closed or open."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_cost(eqn) for eqn in jaxpr.eqns)


def kernels(jaxpr: Any) -> int:
    """How many loops of unknown length and kernels run, those in loops as often as these turn."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ATTENTION:
            total += 1
        else:
            total += _turns(eqn) * sum(map(kernels, _inner(eqn)))
    return total


def _cost(eqn: Any) -> int:
    name = eqn.primitive.name
    if name in ATTENTION:
        return 0
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
        return (
            2
            * math.prod(eqn.outvars[0].aval.shape)
            * (math.prod(kernel) // kernel[numbers.rhs_spec[0]])
        )
    if name == "cond":
        return max(map(products, _inner(eqn)))
    return _turns(eqn) * sum(map(products, _inner(eqn)))


def _turns(eqn: Any) -> int:
    if eqn.primitive.name == "scan":
        return int(eqn.params["length"])
    if eqn.primitive.name == "shard_map":
        mesh, params = eqn.params["mesh"], eqn.params
        # Called so from JAX 0.10 on, and otherwise before.
        mapped = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]
        return math.prod(mesh.shape[axis] for axis in mapped)
    return 1


def _inner(eqn: Any) -> Iterator[Any]:
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if hasattr(one, "eqns") or hasattr(one, "jaxpr"):
                yield one
