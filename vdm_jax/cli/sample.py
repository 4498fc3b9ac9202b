"""`vdm sample DIR [DIR ...] --prompt ...`: videos, an index of them, and one animated sheet."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdm_jax.config import UserError, suggestion

MAX_SEED = 2**63


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workdir", nargs="+", help="a run directory, or those of a cascade's stages, first to last"
    )
    parser.add_argument("--prompt", action="append", default=[], help="may be given again")
    parser.add_argument("--prompts", metavar="FILE", help="a text file, one prompt a line")
    parser.add_argument(
        "--requests",
        metavar="FILE",
        help="a JSON object a line: prompt, frames, height, width, and fps, seed, negative",
    )
    parser.add_argument("--negative", default="", help="what to steer away from")
    parser.add_argument("--frames", default="8", help="one number, or several: 1,8,16")
    parser.add_argument("--height", default="24", help="pixels; several are matched with --frames")
    parser.add_argument("--width", default="24", help="pixels")
    parser.add_argument("--fps", type=float, default=8)
    parser.add_argument("--num", type=int, default=1, help="videos of each prompt and size")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first; the next are seed + 1 ..."
    )
    parser.add_argument("--steps", type=int, help="sampler steps (the run's own)")
    parser.add_argument("--guidance", type=float, help="strength; 1 is none (the run's own)")
    parser.add_argument(
        "--augmentation", type=float, metavar="T",
        help="time, from 0 to 1, of the noise on what a stage is told of the one below (its own)",
    )  # fmt: skip
    parser.add_argument(
        "--place", choices=("turns", "apart"), default="turns",
        help="stages of a cascade take turns on the devices, or each has its own",
    )  # fmt: skip
    parser.add_argument(
        "--below", metavar="DIR",
        help="videos of the stage below, written with --arrays: prompts and seeds are theirs",
    )  # fmt: skip
    parser.add_argument("--arrays", action="store_true", help="write .npy too, for --below")
    parser.add_argument("--step", type=int, help="which checkpoint (the newest that verifies)")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    if rest:
        raise UserError(f"unknown argument '{rest[0]}'; see vdm sample --help.")
    requests = [] if args.below else plan(args)
    from vdm_jax import compiled
    from vdm_jax.cascade import PLACEMENTS
    from vdm_jax.gallery import write_all
    from vdm_jax.pipeline import load_all

    compiled.remember()
    made = load_all(args.workdir, step=args.step, placement=PLACEMENTS[args.place])
    made = made.override(steps=args.steps, guidance=args.guidance, augmentation=args.augmentation)
    below = None
    if args.below:
        requests, below = above(args, made)
    found = write_all(made, requests, Path(args.out), below=below, arrays=args.arrays)
    if args.json:
        print(json.dumps(found))
    else:
        print("\n".join([*found["files"], found["sheet"]]))
    if found["failed"]:
        print(f"vdm sample: not finite, not written: {found['failed']}", file=sys.stderr)
    return 5 if found["failed"] else 0


def above(args: argparse.Namespace, made: Any) -> tuple[list[Any], list[Any]]:
    """(requests, videos below) of --below.

    Raises:
      UserError: prompts of one's own, a cascade, a stage that has none below it.
    """
    from vdm_jax.gallery import read_all

    if args.prompt or args.prompts or args.requests:
        raise UserError("--below brings its own prompts; leave out --prompt and --requests.")
    if len(args.workdir) > 1:
        raise UserError("--below is for one stage; name one run.")
    if made.stage.link is None:
        raise UserError(f"'{args.workdir[0]}' has no stage below it; leave out --below.")
    requests, videos = [], []
    for request, video in read_all(Path(args.below)):
        frames, height, width = made.stage.link.above(*video.shape[:3])
        frames = sizes(args.frames, "1", "1")[0][0] if frames is None else frames
        fps = request.fps * frames / len(video)
        requests.append(
            dataclasses.replace(request, frames=frames, height=height, width=width, fps=fps)
        )
        videos.append(video)
    return requests, videos


def plan(args: argparse.Namespace) -> list[Any]:
    """Every request of the command line: those of --requests, then prompts x sizes x num.

    Raises:
      UserError: no prompt, a missing or empty prompt file, a number that cannot be.
    """
    from vdm_jax.requests import Request

    told = read_requests(args.requests) if args.requests else []
    prompts = list(args.prompt)
    if args.prompts:
        if not Path(args.prompts).is_file():
            raise UserError(f"there is no prompt file '{args.prompts}'.")
        lines = Path(args.prompts).read_text(errors="replace").splitlines()
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts and not told:
        raise UserError(
            "say what to make: --prompt='...' or --prompts=FILE with a prompt a line, "
            "or --requests=FILE with a JSON object a line."
        )
    for name, value, low in (("num", args.num, 1), ("steps", args.steps, 1)):
        if value is not None and value < low:
            raise UserError(f"--{name} is {value}; it must be at least {low}.")
    if not 0 <= args.seed <= MAX_SEED - args.num:
        raise UserError(f"--seed is {args.seed}; it must be from 0 to 2^63.")
    if not 0 < args.fps < 1000:
        raise UserError(f"--fps is {args.fps}; it must be above 0 and below 1000.")
    if args.guidance is not None and not abs(args.guidance) < 1e4:
        raise UserError(f"--guidance is {args.guidance}; it must be a finite number.")
    return told + [
        Request(
            prompt=prompt, negative=args.negative, frames=frames, height=height, width=width,
            fps=args.fps, seed=args.seed + index,
        )
        for prompt in prompts
        for frames, height, width in sizes(args.frames, args.height, args.width)
        for index in range(args.num)
    ]  # fmt: skip


def read_requests(file: str) -> list[Any]:
    """The requests of a file, a JSON object a line with the fields of `pipeline.Request`.

    Raises:
      UserError: no such file, or a line that is no request, by its number.
    """
    from vdm_jax.requests import Request

    if not Path(file).is_file():
        raise UserError(f"there is no file of requests '{file}'.")
    known = [field.name for field in dataclasses.fields(Request)]
    found = []
    for number, line in enumerate(Path(file).read_text(errors="replace").splitlines(), 1):
        where = f"'{file}', line {number}"
        try:
            said = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is no JSON object ({error}).") from None
        if not isinstance(said, dict):
            raise UserError(f"{where} is no JSON object.")
        for name in said:
            if name not in known:
                raise UserError(f"{where}: unknown '{name}'.{suggestion(name, known)}")
        missing = sorted({"prompt", "frames", "height", "width"} - said.keys())
        if missing:
            raise UserError(f"{where} lacks {', '.join(missing)}.")
        for name, value in said.items():
            if not _fits(name, value):
                raise UserError(
                    f"{where}: {name} is {value!r}; {WANTED.get(name, 'write a text')}."
                )
        found.append(Request(**said))
    if not found:
        raise UserError(f"'{file}' holds no request.")
    return found


WANTED = {
    **dict.fromkeys(("frames", "height", "width"), "write a whole number of at least 1"),
    "fps": "write a number above 0 and below 1000",
    "seed": "write a whole number from 0 to 2^63",
}


def _fits(name: str, value: object) -> bool:
    if name in ("prompt", "negative"):
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    if name == "fps":
        return isinstance(value, int | float) and 0 < value < 1000
    return isinstance(value, int) and (0 <= value < MAX_SEED if name == "seed" else value >= 1)


def sizes(frames: str, height: str, width: str) -> list[tuple[int, int, int]]:
    """'1,8' x '24' x '24,32' -> [(1, 24, 24), (8, 24, 32)]: lists of one length, or single."""
    lists = []
    for name, text in (("frames", frames), ("height", height), ("width", width)):
        try:
            values = [int(word) for word in text.split(",")]
        except ValueError:
            raise UserError(f"--{name} is '{text}'; write whole numbers, such as 8,16.") from None
        if min(values) < 1:
            raise UserError(f"--{name} is '{text}'; it must be at least 1.")
        lists.append(values)
    longest = max(len(values) for values in lists)
    if any(len(values) not in (1, longest) for values in lists):
        raise UserError("--frames, --height and --width list different numbers of sizes.")
    return list(zip(*(v * longest if len(v) == 1 else v for v in lists), strict=True))
