"""`vdm encode`: a config's codec and text encoder over its clips, beforehand, and a manifest."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vdm_jax.cli import configs
from vdm_jax.config import UserError, build, problems, refuse

if TYPE_CHECKING:
    from vdm_jax.train.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of what is made")
    parser.add_argument("--views", type=int, default=1, help="of each clip, drawn by config.data")
    parser.add_argument(
        "--shard", metavar="I/N", help="host I of N, from 0; by default as jax.distributed says"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.epilog = "--config=FILE.py[:variant] and --config.a.b=value say what is encoded."


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    if args.views < 1:
        raise UserError(f"--views is {args.views}; it must be at least 1.")
    mine = shard(args.shard) if args.shard else None
    config = configs.load(rest)
    refuse(problems(config))
    from vdm_jax.train.run import Run

    whole = build(config)
    if not isinstance(whole, Run):
        raise UserError("the config is no run; see experiments/demo.py.")
    words = ["python", "-m", "vdm_jax", "encode", *rest, f"--views={args.views}", "--out=NEW"]
    told = encode(whole, args.out, args.views, shlex.join(words), mine)
    if args.json:
        print(json.dumps(told))
    else:
        show(args.out, told)
    return 0


def encode(
    run: Run, out: str, views: int, again: str, mine: tuple[int, int] | None
) -> dict[str, Any]:
    """Clips to latents, and captions to features where the stage has a frozen text encoder.

    With one, clips that can be trained on as they are, pixels or latents, stay as they are.
    """
    import jax

    from data_pipeline import manifest
    from vdm_jax.captions import Captions
    from vdm_jax.features import Encoding

    mine = mine or (jax.process_index(), jax.process_count())
    text = run.stage.text
    told: dict[str, Any] = {}
    if text is None or run.codec_problems():
        encoding = Encoding(codec=run.stage.codec, data=run.data, views=views, again=again)
        told = encoding(out, *mine)
        onto = manifest.read(out) if told["manifest"] else None
    elif len(run.data.sources) > 1:
        raise UserError("clips that stay as they are have one manifest; encode each source alone.")
    else:
        onto = run.data.manifests[0]
    if text is not None:
        told["texts"] = Captions(encoder=text, data=run.data, again=again)(out, onto, *mine)
    return told


def shard(text: str) -> tuple[int, int]:
    """'1/4' -> (1, 4)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise UserError(f"--shard is '{text}'; write I/N, such as 0/2 and 1/2.")
    return int(found[1]), int(found[2])


def show(out: str, told: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True, markup=False)
    for what, part in (("clips", told), ("captions", told.get("texts", {}))):
        if part.get("missing"):
            console.print(f"{out}: other hosts have {part['missing']} parts to make.")
        elif part.get(what) is not None:
            skipped = ", ".join(f"{reason} {count}" for reason, count in part["skipped"].items())
            kind = "views" if what == "clips" else what
            console.print(f"{out}: {part[what]} {kind}\nleft out: {skipped or 'none'}")
