"""One SHA-256 over a state: two runs are the same run if and only if their digests are.

Every leaf enters with its item, path, dtype, shape and bytes, in the order of (item, path), so the
digest knows nothing of dict order, container types, sharding or mesh, and a checkpoint read back
without knowing its tree has the digest of the live state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

PyTree = Any
Path = tuple[str, ...]


def digest(items: Mapping[str, PyTree]) -> str:
    """SHA-256 in hexadecimal of every leaf of every item.

    Leaves are arrays (global ones are gathered, so with several processes all must call) or plain
    JSON scalars: numbers, strings, booleans.
    """
    found = hashlib.sha256()
    for item in sorted(items):
        for path, leaf in sorted(named_leaves(items[item]), key=lambda pair: pair[0]):
            for part in _parts(item, path, leaf):
                # Lengths first: no two different lists of parts have the same concatenation.
                found.update(len(part).to_bytes(8, "little"))
                found.update(part)
    return found.hexdigest()


def named_leaves(tree: PyTree) -> Iterator[tuple[Path, Any]]:
    """(path, leaf) of every leaf; a path is its keys, attribute names and indices as strings."""
    seen = set()
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)
        if path in seen:
            raise ValueError(f"two leaves are called {'/'.join(path)}.")
        seen.add(path)
        yield path, leaf


def to_numpy(leaf: Any) -> np.ndarray:
    """The whole value on this host."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _parts(item: str, path: Path, leaf: Any) -> Iterator[Any]:
    if isinstance(leaf, bool | int | float | str):
        yield json.dumps([item, path, "scalar", leaf]).encode()
        return
    value = to_numpy(leaf)
    yield json.dumps([item, path, value.dtype.name, value.shape]).encode()
    yield np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
