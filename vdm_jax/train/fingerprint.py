"""The fingerprint of a tree - path, shape and dtype of every leaf - and what fits it.

Storage casts dtypes without a word and names leaves by containers that may change, so both sides
of a restore are compared as fingerprints, before anything is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.config import UserError
from vdm_jax.train.digest import Path, PyTree, named_leaves

Leaves = list[dict[str, Any]]  # each {"path": [...], "shape": [...], "dtype": "..."}


def fingerprint_of(leaves: Mapping[Path, Any]) -> Leaves:
    """Path, shape and dtype of every leaf, in order of path."""
    return [
        {"path": list(path), "shape": list(np.shape(leaf)), "dtype": np.dtype(leaf.dtype).name}
        for path, leaf in sorted(leaves.items(), key=lambda pair: pair[0])
    ]


def nest(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """{path: leaf} -> dicts in dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if not path or any("/" in key or not key for key in path):
            raise ValueError(
                f"a leaf called {path} cannot be saved: each needs a name without '/'."
            )
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def check_item(step: int, item: str, fingerprint: Mapping[str, Leaves]) -> None:
    """Raises UserError where the checkpoint has no such item."""
    if item not in fingerprint:
        known = ", ".join(sorted(fingerprint))
        raise UserError(f"checkpoint {step} has no '{item}'; it has {known}.")


def check_fits(step: int, item: str, fingerprint: Mapping[str, Leaves], wanted: Leaves) -> None:
    """Raises UserError with the first leaf that is missing, left over, or of other shape, dtype."""
    check_item(step, item, fingerprint)
    saved = {tuple(leaf["path"]): leaf for leaf in fingerprint[item]}
    asked = {tuple(leaf["path"]): leaf for leaf in wanted}
    for path in sorted(saved.keys() | asked.keys()):
        name = "/".join((item, *path))
        if path not in saved:
            raise UserError(f"checkpoint {step} has no {name}, which this model needs.")
        if path not in asked:
            raise UserError(f"checkpoint {step} holds {name}, which this model does not have.")
        for field in ("shape", "dtype"):
            old, new = saved[path][field], asked[path][field]
            if old != new:
                raise UserError(
                    f"checkpoint {step} holds {name} with {field} {old}; this model needs {new}."
                )


def check_finite(step: int, item: str, tree: PyTree) -> None:
    """Raises UserError (code 5) with the first floating-point leaf that holds a nan or infinity."""
    floats = {p: x for p, x in named_leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)}
    for path, finite in zip(floats, _finite(list(floats.values())), strict=True):
        if not bool(finite):
            raise UserError(
                f"step {step} is not saved: {'/'.join((item, *path))} holds a nan or an infinity. "
                "Earlier checkpoints are intact; lower the learning rate and resume.",
                code=5,
            )


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]
