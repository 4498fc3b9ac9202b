"""`vdm encode`: a config's codec over its clips, beforehand; latents in records, and a manifest."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from vdm_jax.cli import configs, hosts
from vdm_jax.config import UserError, build, problems, refuse

LONGEST_S = 7 * 86400.0  # that one host may be slower than another


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the latents")
    parser.add_argument("--views", type=int, default=1, help="of each clip, drawn by config.data")
    parser.add_argument(
        "--shard", metavar="I/N", help="host I of N, from 0, if hosts shall not wait for each other"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    hosts.add_arguments(parser)
    parser.epilog = "--config=FILE.py[:variant] and --config.a.b=value say what is encoded."


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    if args.views < 1:
        raise UserError(f"--views is {args.views}; it must be at least 1.")
    if args.shard:
        return encode(args, rest, *shard(args.shard))
    with hosts.joined(args):
        import jax

        return encode(args, rest, jax.process_index(), jax.process_count())


def encode(args: argparse.Namespace, rest: Sequence[str], index: int, count: int) -> int:
    """As host `index` of `count`; those that are connected end together, process 0 says of what."""
    config = configs.load(rest)
    refuse(problems(config))
    import jax

    from vdm_jax.features import Encoding
    from vdm_jax.parallel.hosts import Hosts
    from vdm_jax.train.run import Run

    whole = build(config)
    if not isinstance(whole, Run):
        raise UserError("the config is no run; see experiments/demo.py.")
    words = ["python", "-m", "vdm_jax", "encode", *rest, f"--views={args.views}", "--out=NEW"]
    encoding = Encoding(
        codec=whole.stage.codec, data=whole.data, views=args.views, again=shlex.join(words)
    )
    told = encoding(args.out, index, count)
    together = Hosts("encode", timeout_s=LONGEST_S)
    together.agree("parts", lambda: None)
    # Whoever was early found parts missing that are there now; one writes the manifest.
    told = together.agree(
        "told", lambda: encoding(args.out, index, count) if told["missing"] and not index else told
    )[0]
    if jax.process_index() == 0:
        if args.json:
            print(json.dumps(told))
        else:
            show(args.out, told)
    return 0


def shard(text: str) -> tuple[int, int]:
    """'1/4' -> (1, 4)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise UserError(f"--shard is '{text}'; write I/N, such as 0/2 and 1/2.")
    return int(found[1]), int(found[2])


def show(out: str, told: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True, markup=False)
    if told["missing"]:
        console.print(f"{out}: other hosts have {told['missing']} parts to make.")
        return
    skipped = ", ".join(f"{reason} {count}" for reason, count in told["skipped"].items())
    console.print(f"{out}: {told['clips']} views\nleft out: {skipped or 'none'}")
