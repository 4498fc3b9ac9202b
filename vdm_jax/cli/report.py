"""`vdm report`: what the data of a config would be like, before a run; `data_pipeline` finds it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.loaders import PackedVideo
from vdm_jax.cli import configs
from vdm_jax.config import UserError, build, problems, refuse

EACH = 4  # rows a device has, unless --devices says otherwise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--manifest", metavar="DIR", help="in place of the config's manifests")
    parser.add_argument("--steps", type=int, default=64, help="how many are looked at")
    parser.add_argument(
        "--devices", type=int, help=f"of the run; by default as many as have {EACH} rows of a step"
    )
    parser.add_argument("--out", metavar="DIR", help="write report.json and report.png there")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.epilog = "--config=FILE.py[:variant] and --config.a.b=value say what of."


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    data = loader(args, rest)
    found = examine(data, args.steps, args.devices or max(1, data.rows // EACH))
    if args.out:
        write(Path(args.out), data, found)
    if args.json:
        print(json.dumps(found))
        return 0
    from rich.console import Console

    from data_pipeline.tables import tables

    Console().print(tables(found))
    return 0


def loader(args: argparse.Namespace, rest: Sequence[str]) -> PackedVideo:
    """The config's loader.

    Raises:
      UserError: every mistake in the numbers of the config's data, or on the command line.
    """
    for name in ("steps", "devices"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1.")
    if args.manifest and not any(word.startswith("--config=") for word in rest):
        raise UserError(
            "a report needs a --config=FILE.py; what the clips are without one is said by "
            f"`python -m data_pipeline card {args.manifest}`."
        )
    config = configs.load(rest)
    refuse(problems(config.data, "config.data"))
    data = build(config.data)
    if args.manifest:
        first = dataclasses.replace(data.sources[0], manifest=args.manifest)
        data = dataclasses.replace(data, sources=(first,))
    return data


def examine(data: PackedVideo, steps: int, devices: int) -> dict[str, Any]:
    """Raises: UserError, for every mistake in the settings."""
    refuse(data.problems(devices=devices), "config.data")
    return {**data.report(steps, devices), "card": data.card()}


def write(folder: Path, data: PackedVideo, found: Mapping[str, Any]) -> None:
    """Raises: UserError, code 6, where the folder cannot be written."""
    from data_pipeline.picture import draw

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(found, indent=1))
        draw(found, data.rows_of_step(), folder / "report.png")
    except OSError as error:
        raise UserError(f"cannot write the report to '{folder}' ({error}).", code=6) from None
