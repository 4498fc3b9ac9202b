"""`vdm digest DIR`: one SHA-256 over everything a run's newest checkpoint holds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vdm_jax.config import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", help="a run directory")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    if rest:
        raise UserError(f"unknown argument '{rest[0]}'; see vdm digest --help.")
    from vdm_jax.train import digest
    from vdm_jax.train.checkpoint import Checkpoints

    folder = Path(args.workdir) / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"'{args.workdir}' is no run directory: it has no checkpoints.", code=4)
    with Checkpoints(folder) as checkpoints:
        step = checkpoints.newest()
        if step is None:
            raise UserError(f"'{args.workdir}' has no checkpoint yet.", code=4)
        items = checkpoints.restore_numpy(step)
        cursor = checkpoints.meta(step)["cursor"]
    found = {"step": step, "digest": digest.digest({**items, "cursor": {"cursor": cursor}})}
    print(json.dumps(found) if args.json else f"step {found['step']}  {found['digest']}")
    return 0
