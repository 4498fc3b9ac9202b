"""May this config go on with that run, and what changed?

A run directory holds its resolved config. On resume, fields of `FREE` may change and are logged;
any other change means another model or other data, and is refused with the fields named.
"""

from __future__ import annotations

import re
from typing import Any

from ml_collections import ConfigDict

from vdm_jax.config import UserError, leaves

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


def _listed(paths: list[str], changed: dict[str, tuple[Any, Any]], most: int = 5) -> str:
    shown = [f"{path} ({changed[path][0]!r} there, {changed[path][1]!r} here)" for path in paths]
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(shown[:most]) + more
