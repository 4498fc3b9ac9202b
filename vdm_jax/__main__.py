"""`python -m vdm_jax VERB ...`, also installed as `vdm`: thin over the library."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

VERBS = {
    "train": "train a model, or go on with a run that was stopped",
    "distill": "train students of a run that need fewer evaluations to sample",
    "sample": "make videos with a trained model",
    "check": "say what a config would do, and everything wrong with it, without compiling",
    "plan": "compile for a TPU that is not here: does it fit, what does it move, how long",
    "report": "say what the data of a config would be like: fill, balance, what is cut, a card",
    "curate": "score the clips of a manifest by a config's chain of stages",
    "encode": "run a config's codec over its clips beforehand: latents with a manifest",
    "digest": "a SHA-256 of a run's newest checkpoint",
    "doctor": "versions, devices and disk, and what is wrong with them",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code (README lists them)."""
    parser = argparse.ArgumentParser(prog="vdm", description=__doc__)
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    words = list(sys.argv[1:] if argv is None else argv)
    for verb, line in VERBS.items():
        sub = subparsers.add_parser(verb, help=line, description=line, allow_abbrev=False)
        if words[:1] == [verb]:  # import the verb that runs, not jax for every --help
            import_module(f"vdm_jax.cli.{verb}").add_arguments(sub)
    args, rest = parser.parse_known_args(words)
    return run(args, rest)


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """The verb's own exit code; a user's mistake is one sentence on stderr and its code."""
    module = import_module(f"vdm_jax.cli.{args.verb}")
    try:
        return module.run(args, rest)
    except ValueError as error:
        code = getattr(error, "code", None)
        if not isinstance(code, int):
            raise
        print(f"vdm {args.verb}: {error}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print(f"vdm {args.verb}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
