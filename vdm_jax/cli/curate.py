"""`vdm curate`: score the clips of a manifest by a config's chain; `data_pipeline` does it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.curation.chain import Chain
from data_pipeline.curation.curate import curate
from data_pipeline.curation.processes import Processes
from data_pipeline.curation.ray_data import RayData
from vdm_jax.cli import configs
from vdm_jax.config import UserError, build, problems, refuse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="the folder of the manifest")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the new one")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--processes", type=int, help="of this machine; by default one a core")
    where.add_argument("--ray", action="store_true", help="on the Ray cluster that is in reach")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.epilog = "--config=FILE.py[:variant] and --config.a.b=value say what is looked for."


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    config = configs.load(rest)
    refuse(problems(config))
    chain = build(config)
    if not isinstance(chain, Chain):
        raise UserError("the config is no chain of stages; see experiments/curation.py.")
    engine = RayData() if args.ray else Processes(count=args.processes)
    told = curate(args.manifest, args.out, chain, engine)
    if args.json:
        print(json.dumps(told))
    else:
        show(told)
    return 0


def show(told: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    skipped = ", ".join(f"{reason} {count}" for reason, count in told["skipped"].items())
    console.print(f"{told['manifest']}: {told['clips']} clips", soft_wrap=True, markup=False)
    console.print(f"left out: {skipped or 'none'}", soft_wrap=True, markup=False)
    table = Table("score", "of clips", "10 %", "median", "90 %", box=None)
    for name, one in told["scores"].items():
        parts = (f"{one[part]:.4g}" for part in ("p10", "p50", "p90"))
        table.add_row(name, f"{one['scored']:.0%}", *parts)
    console.print(table)
