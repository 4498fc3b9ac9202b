"""`vdm check`: the dry run. Parameters, tokens, memory, fill, every mistake; nothing compiled."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vdm_jax.cli import configs

LENGTHY = ("layouts", "histograms", "by_step")  # `vdm report` shows these


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.epilog = "--config=FILE.py[:variant] and --config.a.b=value say what to check."


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    try:
        found = examine(configs.load(rest))
    except ValueError as error:
        if not args.json or not hasattr(error, "code"):
            raise
        found = {"errors": [str(error)]}
    if args.json:
        print(json.dumps(found))
    else:
        show(found)
    return 2 if found["errors"] else 0


def examine(config: ConfigDict) -> dict[str, Any]:
    """What a config would do on this machine's devices.

    `memory_bytes` counts, per device, what must be there at once: parameters, EMA, optimizer state
    and gradients as they are sharded, the weights of frozen networks, and one microbatch;
    activations are the compiler's affair.
    """
    import jax

    from vdm_jax.config import build, problems
    from vdm_jax.train.program import initialise, make_program, parameter_count

    errors = problems(config)
    if errors:
        return {"errors": errors}
    run = build(config)
    found: dict[str, Any] = {"errors": run.problems(jax.device_count())}
    if found["errors"]:
        state = jax.eval_shape(lambda: initialise(run)) if not run.stage.problems() else None
        return found | ({"parameters": parameter_count(state.params)} if state else {})
    program = make_program(run)
    state = program.abstract
    arrays = run.blank_arrays(run.data.rows // run.microbatches)
    rows = sum(leaf.nbytes for leaf in arrays.values()) // program.row_devices
    held = shard_bytes(state) + shard_bytes(program.frozen)
    report = run.data.report(devices=program.row_devices)
    return found | {
        "parameters": parameter_count(state.params),
        "tokens_per_step": run.data.rows * run.data.tokens,
        "useful_tokens_per_step": report["tokens_per_step"],
        "memory_bytes": held + shard_bytes(state.params) + rows,
        "fill": report["fill"],
        "devices": jax.device_count(),
        "data": {name: value for name, value in report.items() if name not in LENGTHY},
    }


def shard_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device, as they are sharded."""
    import jax
    import numpy as np

    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def show(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(show_header=False, box=None)
    for name, value in found.items():
        if name == "errors":
            continue
        if isinstance(value, float):
            value = f"{value:,.3f}"
        elif isinstance(value, int):
            value = f"{value:,}"
        table.add_row(name, str(value))
    console.print(table)
    for error in found["errors"] or ["no mistake found."]:
        console.print(f"- {error}", soft_wrap=True, markup=False)
