"""Flags of the verbs that several processes run together."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from vdm_jax.config import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several hosts", "needed where no cluster says it: docs/launch.md"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is to be found")
    group.add_argument("--process", metavar="I/N", help="process I of N, from 0")
    group.add_argument(
        "--wait", type=float, default=300.0, metavar="SECONDS", help="for all to come (300)"
    )


def joined(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Be one of the processes that were started together, if this one is.

    Raises:
      UserError: flags or variables that make no sense. HostError: code 77, others did not come.
    """
    if not 0 < args.wait < 1e6:
        raise UserError(f"--wait is {args.wait:g}; it must be above 0 seconds.")
    from vdm_jax.parallel import launch

    return launch.joined(launch.settle(args.coordinator, args.process, args.wait), args.wait)


def remember(workdir: str) -> None:
    """Keep what is compiled for the next start: of several processes, where all of them see it."""
    import jax

    from vdm_jax import compiled

    compiled.remember(shared=Path(workdir) if jax.process_count() > 1 else None)
