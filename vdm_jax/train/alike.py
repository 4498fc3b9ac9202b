"""Are all processes about to do the same? Found out before anything compiles.

Processes with unlike configs, code, data or seeds would hang in a collective, or worse, train. Each
says one digest of all it is about to do; only where digests differ are the particulars compared.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vdm_jax.compiled import code_digest
from vdm_jax.config import UserError, from_json, leaves, to_json
from vdm_jax.parallel.hosts import Hosts

MOST = 5  # differences that are named


def particulars(
    config: ConfigDict, fingerprint: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, str]:
    """All that must be the same on every process, by name.

    Args:
      fingerprint: of the data (`PackedVideo.fingerprint`).
    """
    devices = jax.local_devices()
    return {
        **{f"config.{path}": repr(value) for path, value in leaves(from_json(to_json(config)))},
        **{f"data.{name}": json.dumps(value) for name, value in fingerprint.items()},
        **{f"the version of {name}": version for name, version in versions.items()},
        "the code": code_digest(),
        "the devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def check(hosts: Hosts, mine: Mapping[str, str]) -> None:
    """Raises: UserError on every process, naming what differs and where."""
    said = json.dumps(mine, sort_keys=True).encode()
    digests = hosts.agree("alike", lambda: sha256(said).hexdigest())
    if len(set(digests)) > 1:
        found = differences(hosts.agree("unlike", lambda: dict(mine)))
        raise UserError(
            f"the {hosts.count} processes of this run are not alike: {'; '.join(found)}. Start all "
            "of them with the same command, code and data."
        )


def differences(all_of: Sequence[Mapping[str, str]]) -> list[str]:
    """'config.seed is 0 on process 0, 2 and 1 on process 1', for each name that differs."""
    found = []
    for name in sorted({name for one in all_of for name in one}):
        where: dict[str, list[int]] = {}
        for process, one in enumerate(all_of):
            where.setdefault(one.get(name, "missing"), []).append(process)
        if len(where) > 1:
            told = [f"{value[:80]} on process {_listed(p)}" for value, p in where.items()]
            found.append(f"{name} is {' and '.join(told)}")
    more = [f"and {len(found) - MOST} more"] if len(found) > MOST else []
    return found[:MOST] + more


def check_shared(hosts: Hosts, folder: Path, patience_s: float = 10.0) -> None:
    """Whether all processes see one folder, which is made: what one saves, another must restore.

    Raises:
      UserError: what process 0 writes there, others cannot see within `patience_s` seconds, as long
        as a network's file system may remember that a file was not there.
    """
    first = hosts.index == 0

    def write() -> str:
        if not first:
            return ""
        folder.mkdir(parents=True, exist_ok=True)
        name = f".seen-{secrets.token_hex(8)}"
        (folder / name).touch()
        return name

    path = folder / hosts.agree("written", write)[0]
    try:
        seen = hosts.agree("seen", lambda: _appears(path, patience_s))
    finally:
        if first:
            path.unlink(missing_ok=True)
    blind = [process for process, saw in enumerate(seen) if not saw]
    if blind:
        raise UserError(
            f"'{folder}' is not the same folder everywhere: process {_listed(blind)} cannot see "
            "what process 0 writes there; take a --workdir on a file system that all hosts share."
        )


def _appears(path: Path, patience_s: float) -> bool:
    until = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _listed(processes: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(map(str, processes[:most]))
    return shown + (" ..." if len(processes) > most else "")
