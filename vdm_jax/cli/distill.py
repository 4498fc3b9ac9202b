"""`vdm distill`: students of a run, each of half as many steps, or what is left of that to do."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from vdm_jax.config import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="a folder for the rounds' runs")
    parser.add_argument("--teacher", required=True, metavar="DIR", help="a run directory")
    parser.add_argument(
        "--from", dest="begin", type=int, required=True, help="evaluations the teacher samples with"
    )
    parser.add_argument(
        "--to", dest="end", type=int, required=True, help="evaluations of the last student"
    )
    parser.add_argument(
        "--guide", metavar="LOW,HIGH", help="first distil guidance of scales in this range"
    )
    parser.add_argument("--steps", type=int, required=True, help="training steps of each round")
    parser.epilog = "Each round is a run: DIR/guided, then DIR/COUNT of evaluations. One process."


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    if rest:
        raise UserError(f"unknown argument '{rest[0]}'; see vdm distill --help.")
    if args.steps < 1:
        raise UserError(f"--steps is {args.steps}; it must be at least 1.")
    guide = scales(args.guide) if args.guide else None
    from rich.console import Console

    from vdm_jax import compiled
    from vdm_jax.train.distill import Distillation

    distillation = Distillation(
        teacher=args.teacher, workdir=args.workdir, begin=args.begin, end=args.end,
        steps=args.steps, guide=guide,
    )  # fmt: skip
    compiled.remember()
    return distillation(Console(stderr=True))


def scales(text: str) -> tuple[float, float]:
    """'1,8' -> (1.0, 8.0). Raises: UserError, anything else."""
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not 0 < low <= high < math.inf:
        raise UserError(f"--guide is '{text}'; write two scales above 0, the lower first: 1,8.")
    return low, high
