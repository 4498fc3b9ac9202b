"""`vdm encode`: a config's codec and text encoder over its clips, beforehand, and a manifest."""

from __future__ import annotations

import argparse
import functools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vdm_jax.cli import configs, hosts
from vdm_jax.config import UserError, build, problems, refuse

if TYPE_CHECKING:
    from vdm_jax.train.run import Run

LONGEST_S = 7 * 86400.0  # that one host may be slower than another


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of what is made")
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

    from vdm_jax.parallel.hosts import Hosts
    from vdm_jax.train.run import Run

    whole = build(config)
    if not isinstance(whole, Run):
        raise UserError("the config is no run; see experiments/demo.py.")
    words = ["python", "-m", "vdm_jax", "encode", *rest, f"--views={args.views}", "--out=NEW"]
    work = functools.partial(make, whole, args.out, args.views, shlex.join(words), index, count)
    told = work()
    together = Hosts("encode", timeout_s=LONGEST_S)
    together.agree("parts", lambda: None)
    # Whoever was early found parts missing that are there now; one writes the manifest.
    told = together.agree("told", lambda: work() if told["missing"] and not index else told)[0]
    if jax.process_index() == 0:
        if args.json:
            print(json.dumps(told))
        else:
            show(args.out, told)
    return 0


def make(run: Run, out: str, views: int, again: str, index: int, count: int) -> dict[str, Any]:
    """Clips to latents, and captions to features where the stage has a frozen text encoder.

    With one, clips that can be trained on as they are, pixels or latents, stay as they are.
    """
    from data_pipeline import manifest
    from vdm_jax.captions import Captions
    from vdm_jax.features import Encoding

    text, told, onto = run.stage.text, {}, None
    if text is None or run.codec_problems():
        encoding = Encoding(codec=run.stage.codec, data=run.data, views=views, again=again)
        told = encoding(out, index, count)
        onto = manifest.read(out) if told["manifest"] else None
    elif len(run.data.sources) > 1:
        raise UserError("clips that stay as they are have one manifest; encode each source alone.")
    else:
        onto = run.data.manifests[0]
    if text is None:
        return told
    made = Captions(encoder=text, data=run.data, again=again)(out, onto, index, count)
    missing = told.get("missing", 0) + made["missing"]
    return told | {"manifest": None if missing else out, "missing": missing, "texts": made}


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
    for name, what, part in (("clips", "views", told), ("captions", "captions", told.get("texts"))):
        if part and name in part:
            skipped = ", ".join(f"{reason} {count}" for reason, count in part["skipped"].items())
            console.print(f"{out}: {part[name]} {what}\nleft out: {skipped or 'none'}")
