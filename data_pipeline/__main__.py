"""`python -m data_pipeline VERB`: `index` a source; `card` says what is in a manifest; `curate` it,
write `requests` for new captions, `recaption` by the answers; `report` on a config's data;
`generate` shapes, `judge` samples of them."""

from __future__ import annotations

import argparse
import json
import math
import runpy
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipeline.errors import DataError


def main(words: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] in (["report"], ["curate"]):
        # A config is made of the library's parts, of which this tower knows nothing: its program
        # reads the config, and calls this package for all that it asks for.
        sys.argv = ["vdm", *words]
        runpy.run_module("vdm_jax", run_name="__main__", alter_sys=True)
    args = _parser().parse_args(words)
    try:
        found = _run(args)
    except DataError as error:
        print(f"data_pipeline: {error}", file=sys.stderr)
        return error.code
    if args.json:
        print(json.dumps(found))
    elif args.verb == "judge":
        from data_pipeline.exam import table

        Console(stderr=True).print(table(found))
    elif args.verb == "card":
        from data_pipeline.tables import cards

        Console().print(cards({"all": found}))
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

        return index(
            args.source,
            args.out,
            form=args.form,
            media=args.media,
            fps=args.fps,
            cut=args.shots,
            side=args.copies,
            threads=args.threads,
        )
    if args.verb == "card":
        from data_pipeline.card import card
        from data_pipeline.manifest import read

        return card([read(folder).table for folder in args.manifest])
    if args.verb == "requests":
        from data_pipeline.curation.processes import Processes
        from data_pipeline.curation.recaption import request
        from data_pipeline.curation.stage import AtRate

        sees = AtRate(fps=args.fps, side=args.side, most=args.frames)
        return request(args.manifest, args.out, sees, Processes(count=args.processes))
    if args.verb == "recaption":
        from data_pipeline.curation.recaption import recaption

        return recaption(args.manifest, args.answers, args.out, share=args.share)
    if args.verb == "judge":
        from data_pipeline.exam import examine

        found = examine(args.samples, args.truth, args.trained_on)
        if args.into:
            _merge(found, Path(args.into))
        return found
    from data_pipeline.generated import SMALL, Extent, generate

    extent = Extent(
        frames=tuple(args.frames or SMALL.frames),
        sides=tuple(args.sides or SMALL.sides),
        radius=tuple(sorted(args.radius or SMALL.radius)),
    )
    if args.as_ == "tfds":
        if args.unseen:
            raise DataError("--unseen comes with requests, as files; leave out --as.", code=2)
        if extent != SMALL:
            raise DataError("--frames, --sides and --radius are of files; leave out --as.", code=2)
        from data_pipeline.shapes import prepare

        return prepare(args.directory, args.clips, args.seed, holdout=args.holdout)
    return generate(
        args.directory, args.clips, args.seed, holdout=args.holdout, unseen=args.unseen,
        extent=extent,
    )  # fmt: skip


def _merge(found: dict[str, Any], path: Path) -> None:
    try:
        old = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(old | found, indent=2, sort_keys=True) + "\n")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot add the report to '{path}' ({error}).", code=6) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_pipeline", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    index = verbs.add_parser("index", help="probe a folder of videos and images; write a manifest")
    index.add_argument("source", help="a folder, a file of annotations, or the URL of either")
    index.add_argument("--form", help="what the source is, where it does not look like it")
    index.add_argument("--media", help="the folder or URL of the files that annotations name")
    index.add_argument(
        "--fps", type=_rate, help="frames a second of films that are stored as pictures"
    )
    index.add_argument("--out", required=True, help="the folder of the manifest")
    index.add_argument("--shots", action="store_true", help="cut films: each shot is a clip")
    index.add_argument(
        "--copies",
        metavar="SIDE",
        type=_count,
        help="index small copies, which decode fast, of so many pixels at the shorter side",
    )
    index.add_argument("--threads", type=_count, default=None, help="files probed at once")
    look = verbs.add_parser("card", help="say what the clips of manifests are")
    look.add_argument("manifest", nargs="+", help="the folder of a manifest")
    verbs.add_parser("report", help="say what the data of a config would be like", add_help=False)
    verbs.add_parser("curate", help="score the clips of a manifest", add_help=False)
    ask = verbs.add_parser("requests", help="write frames for a captioner, as JSONL")
    ask.add_argument("manifest", help="the folder of the manifest")
    ask.add_argument("--out", required=True, help="the folder to write to")
    ask.add_argument("--fps", type=float, default=1.0, help="frames a second that are sent")
    ask.add_argument("--frames", type=_count, default=16, help="and how many at most")
    ask.add_argument("--side", type=_count, default=336, help="pixels of their shorter side")
    ask.add_argument("--processes", type=_count, help="by default one a core")
    answer = verbs.add_parser("recaption", help="a manifest with a captioner's answers")
    answer.add_argument("manifest", help="the folder of the manifest")
    answer.add_argument("answers", nargs="+", help="JSONL files: id and text, line by line")
    answer.add_argument("--out", required=True, help="the folder of the new manifest")
    answer.add_argument(
        "--share", type=float, default=0.95, help="of a clip's draws that answers get together"
    )
    make = verbs.add_parser("generate", help="write captioned videos of moving shapes")
    make.add_argument("directory", help="the folder to write to")
    make.add_argument("--clips", type=_count, required=True)
    make.add_argument("--seed", type=_natural, default=0)
    make.add_argument("--holdout", type=_natural, help="the draw of what is never shown")
    make.add_argument(
        "--as",
        dest="as_",
        choices=("files", "tfds"),
        default="files",
        help="files in a folder, or a data set of tensorflow-datasets below it",
    )
    make.add_argument("--frames", type=_count, nargs="+", help="that a video may have (4 to 8)")
    make.add_argument("--sides", type=_side, nargs="+", help="even pixels a side (16 20)")
    make.add_argument(
        "--radius",
        type=_share,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="of the shapes, of the shorter side (0.33 0.38)",
    )
    make.add_argument("--unseen", action="store_true", help="show only what --holdout holds out")
    judge = verbs.add_parser("judge", help="do sampled videos show what was asked?")
    judge.add_argument("samples", help="the folder that `vdm sample --requests` wrote")
    judge.add_argument("--truth", required=True, help="the folder of unseen clips asked for")
    judge.add_argument("--trained-on", required=True, help="the folder of clips trained on")
    judge.add_argument("--into", metavar="FILE", help="a JSON object to add the report to")
    for verb in (index, look, ask, answer, make, judge):
        verb.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


def _count(word: str) -> int:
    return _at_least(word, 1)


def _side(text: str) -> int:
    side = _count(text)
    if side % 2:
        raise argparse.ArgumentTypeError("must be even, as the video format is")
    return side


def _share(word: str) -> float:
    """Raises: argparse.ArgumentTypeError, which argparse says in one line."""
    try:
        share = float(word)
    except ValueError:
        share = math.nan
    if not 0.05 <= share <= 0.38:
        raise argparse.ArgumentTypeError(f"a radius is from 0.05 to 0.38 of the side, not '{word}'")
    return share


def _natural(word: str) -> int:
    return _at_least(word, 0)


def _rate(word: str) -> Fraction:
    try:
        rate = Fraction(word).limit_denominator(1001)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise argparse.ArgumentTypeError(f"'{word}' must be a number above 0, 1000 at most")
    return rate


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
