"""`python -m data_pipeline index SOURCE --out DIR [--shots]`, `generate DIR --clips N --seed S`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from data_pipeline.errors import DataError


def main(words: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(words)
    try:
        found = _run(args)
    except DataError as error:
        print(f"data_pipeline: {error}", file=sys.stderr)
        return error.code
    if args.json:
        print(json.dumps(found))
    else:
        console = Console(stderr=True)
        for name, value in found.items():
            if isinstance(value, dict):
                value = ", ".join(f"{key} {count}" for key, count in value.items())
            for line in value if isinstance(value, list) else [value or "none"]:
                console.print(f"{name}: {line}", soft_wrap=True, markup=False)
    return 0


def _run(args: argparse.Namespace) -> dict[str, Any]:
    # Imported late, so that a misspelt word is answered at once.
    if args.verb == "index":
        from data_pipeline.index import index

        return index(args.source, args.out, cut=args.shots, threads=args.threads)
    from data_pipeline.generated import generate

    return generate(args.directory, args.clips, args.seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_pipeline", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    index = verbs.add_parser("index", help="probe a folder of videos and images; write a manifest")
    index.add_argument("source", help="the folder")
    index.add_argument("--out", required=True, help="the folder of the manifest")
    index.add_argument("--shots", action="store_true", help="cut films: each shot is a clip")
    index.add_argument("--threads", type=_count, default=None, help="files probed at once")
    make = verbs.add_parser("generate", help="write captioned videos of moving shapes")
    make.add_argument("directory", help="the folder to write to")
    make.add_argument("--clips", type=_count, required=True)
    make.add_argument("--seed", type=_natural, default=0)
    for verb in (index, make):
        verb.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


def _count(word: str) -> int:
    return _at_least(word, 1)


def _natural(word: str) -> int:
    return _at_least(word, 0)


def _at_least(word: str, least: int) -> int:
    try:
        value = int(word)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"'{word}' must be a whole number of at least {least}")
    return value


if __name__ == "__main__":
    sys.exit(main())
