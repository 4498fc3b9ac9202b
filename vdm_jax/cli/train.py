"""`vdm train`: start a run, or go on with one that stopped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vdm_jax.cli import configs, hosts
from vdm_jax.config import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir", required=True, help="the run's directory, new or to go on with"
    )
    parser.add_argument("--steps", type=int, help="train up to this step (config.steps)")
    parser.add_argument(
        "--minutes", type=float, help="time twenty steps, then fix config.steps to fill the minutes"
    )
    parser.add_argument("--init", metavar="DIR", help="start from the weights of another run")
    parser.add_argument(
        "--fork", metavar="DIR@STEP[:ema]", help="go on from another run's checkpoint in a new run"
    )
    parser.add_argument("--profile", metavar="A:B", help="trace steps A to B with jax.profiler")
    hosts.add_arguments(parser)
    parser.epilog = "--config=FILE.py[:variant] and --config.a.b=value say what to train."


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    if args.steps is not None and args.steps < 1:
        raise UserError(f"--steps is {args.steps}; it must be at least 1.")
    if args.minutes is not None and not args.minutes > 0:
        raise UserError(f"--minutes is {args.minutes}; it must be above 0.")
    with hosts.joined(args):
        config = configs.load(rest)
        if args.steps is not None:
            config.steps = args.steps
        from vdm_jax.train.start import Start

        hosts.remember(args.workdir)
        start = Start(
            workdir=args.workdir,
            init=args.init,
            fork=args.fork,
            minutes=args.minutes,
            profile=args.profile,
        )
        return start(config)
