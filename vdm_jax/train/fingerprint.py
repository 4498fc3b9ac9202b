"""The fingerprint of a tree - path, shape and dtype of every leaf - and what fits it.

Storage casts dtypes without a word and names leaves by containers that may change, so both sides
of a restore are compared as fingerprints, before anything is read. Also what the stored arrays say
of themselves: an envelope can be whole and its maker hostile, and an array that claims to be huge
ends the process that reads it (`std::bad_alloc`, which nobody can catch).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from etils import epath

from vdm_jax.config import UserError
from vdm_jax.train.digest import Path, PyTree, named_leaves
from vdm_jax.train.envelope import Damaged, is_local

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


def check_stored(step: int, folder: epath.Path, shapes: Mapping[Path, tuple[int, ...]]) -> None:
    """Compare the headers of stored arrays (Zarr 2 in OCDBT, one item's folder) with `shapes`.

    Raises:
      Damaged: an array is missing, of other shape, or cut into blocks larger than itself.
    """
    base = f"{'file://' if is_local(folder) else ''}{folder}/"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    reads = {path: store.read(f"{'.'.join(path)}/.zarray") for path in shapes}
    for path, shape in shapes.items():
        name = "/".join((folder.name, *path))
        try:
            header = json.loads(reads[path].result().value)
            stored, blocks = header["shape"], header["chunks"]
            fits = stored == list(shape) and len(blocks) == len(shape)
            fits = fits and all(0 < b <= max(n, 1) for b, n in zip(blocks, shape, strict=True))
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(str(step), name, "header", "its stored header is missing") from error
        if not fits:
            detail = f"stored as {stored} in blocks of {blocks} instead of {list(shape)}"
            raise Damaged(str(step), name, "header", detail)


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
