"""May this config go on with that run? What changed, and what a new run takes from an old one.

A run directory holds its resolved config. On resume, fields of `FREE` may change and are logged;
any other change means another model or other data, and is refused with the fields named.
"""

from __future__ import annotations

import re
from typing import Any

import jax
from ml_collections import ConfigDict

from vdm_jax.config import UserError, leaves
from vdm_jax.train.optim import path_name
from vdm_jax.types import Params

# What does not change what is learnt from what: how long, how fast, how loudly, on which machines.
FREE = (
    r"^steps$",
    r"^optimizer\..*learning_rate$",
    r"^optimizer\.schedule\.",
    r"^optimizer\.clip$",
    r"^(save|validate|sample)_every$",
    r"^(keep|prompts|skip_limit|credit|mesh|rules)\b",
    r"^stage\.sampler\.",
    r"^stage\.denoiser\.backbone\.(remat|attention)\b",
    r"^data\.(threads|prefetch_mib|memory_mib|cache|max_bad|max_bad_examples|verify)$",
    r"^data\.decoder\b",
    r"^data\.sources\[\d+\]\.manifest$",  # may move; its digest is compared instead
    r"^knobs\.",
)


def changes(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old value, new value) of every leaf that differs; None where absent."""
    before, after = dict(leaves(old)), dict(leaves(new))
    return {
        path: (before.get(path), after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    }


def check_resume(old: ConfigDict, new: ConfigDict, workdir: str) -> dict[str, tuple[Any, Any]]:
    """The free changes, to be logged.

    Raises:
      UserError: architecture, objective or data differ.
    """
    changed = changes(old, new)
    refused = [path for path in changed if not any(re.search(free, path) for free in FREE)]
    if refused:
        raise UserError(
            f"{workdir} holds a run with another {_listed(refused, changed)}. Take a new --workdir "
            f"(with --init={workdir} to start from its weights), or put the fields back."
        )
    return changed


def check_data(old: dict[str, Any], new: dict[str, Any], workdir: str) -> None:
    """Refuse to go on with data whose order would differ; compares fingerprints."""
    changed = {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }
    if changed:
        raise UserError(
            f"{workdir} was trained on other data: {_listed(list(changed), changed)}. Restore the "
            f"data, or take a new --workdir with --init={workdir}."
        )


def take_matching(target: Params, source: Params) -> tuple[Params, str]:
    """Warm start: leaves of `source` whose path and shape fit, and a strict report of them.

    Raises:
      UserError: not one leaf fits.
    """
    offered = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source)}
    taken, missing, misfit = [], [], []

    def choose(path, leaf):
        name = path_name(path)
        if name not in offered:
            missing.append(name)
            return leaf
        if offered[name].shape != leaf.shape:
            misfit.append(f"{name} {offered[name].shape} -> {leaf.shape}")
            return leaf
        taken.append(name)
        return offered[name].astype(leaf.dtype)

    params = jax.tree_util.tree_map_with_path(choose, target)
    if not taken:
        raise UserError("not one parameter of the --init run fits this model by name and shape.")
    unused = sorted(offered.keys() - set(taken) - {line.split(" ")[0] for line in misfit})
    lines = [f"taken: {len(taken)} of {len(taken) + len(missing) + len(misfit)} parameters"]
    for title, names in (("new", missing), ("other shape", misfit), ("left over", unused)):
        lines += [f"{title}: {name}" for name in names]
    return params, "\n".join(lines)


def _listed(paths: list[str], changed: dict[str, tuple[Any, Any]], most: int = 5) -> str:
    shown = [f"{path} ({changed[path][0]!r} there, {changed[path][1]!r} here)" for path in paths]
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(shown[:most]) + more
