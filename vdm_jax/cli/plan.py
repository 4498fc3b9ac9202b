"""`vdm plan`: what a config would be on a TPU that is not here, or on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from vdm_jax.config import UserError

LOCAL = "local"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", required=True, metavar="CHIP:AxB|local")
    parser.add_argument("--mesh", metavar="AXIS=N,...", help="instead of the config's")
    parser.add_argument("--what", default="train", metavar="train|sample")
    parser.add_argument(
        "--effort",
        default="full",
        metavar="full|low",
        help="low: rougher, in a quarter of the time",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--search", action="store_true", help="try meshes, remat and microbatches")
    parser.add_argument("--most", type=int, metavar="N", help="compile at most N in a search")
    parser.add_argument("--steps", type=float, metavar="N", help="how long the whole run is")
    parser.add_argument("--tokens", type=float, metavar="N", help="the same, in tokens of examples")
    parser.add_argument("--price", type=float, metavar="X", help="of a chip for an hour")
    parser.epilog = "--config=FILE.py[:variant] and --config.a.b=value say what to plan."


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from vdm_jax.plan import compiled, topology

    compiled.options_of(args.effort)
    if args.topology != LOCAL:
        topology.split(args.topology)  # a misspelt name is said before anything starts
        topology.prepare()
    if args.price is not None and args.steps is None and args.tokens is None:
        raise UserError("--price needs --steps or --tokens: the price of how long a run?")
    words = [*rest, *mesh_overrides(args.mesh)]
    if args.search:
        return _search(args, words)

    from vdm_jax.cli import configs
    from vdm_jax.config import build, problems, refuse
    from vdm_jax.plan.cost import cost
    from vdm_jax.plan.machine import make_plan

    config = configs.load(words)
    refuse(problems(config))
    made = build(config)
    machine = topology.topology(args.topology)
    plan = make_plan(
        made, machine, args.what, effort=args.effort, say=lambda line: print(line, file=sys.stderr)
    )
    found: dict[str, Any] = plan.json()
    step = plan.seconds.guess if plan.seconds else None
    measured = None
    if machine.name == LOCAL and args.what == "train":
        from vdm_jax.plan.local import measure

        measured = measure(made, plan)
        found |= measured.json()
        step = measured.step_seconds
    whole = None
    if step is not None and (args.steps is not None or args.tokens is not None):
        whole = cost(
            step_seconds=step, tokens_per_step=plan.tokens, chips=machine.chips,
            steps=args.steps, tokens=args.tokens, price=args.price,
        )  # fmt: skip
        found |= {"days": whole.days, "chip_hours": whole.chip_hours, "money": whole.money}
    if args.json:
        print(json.dumps(found))
    else:
        from vdm_jax.plan import show

        show.show(plan)
        if measured:
            measured.show()
        if whole:
            show.show_cost(whole)
    return 0 if found["fits"] else 1


def mesh_overrides(mesh: str | None) -> list[str]:
    """`data=2,fsdp=-1` as overrides of a config; axes that are not named have size 1.

    Raises:
      UserError: no such form.
    """
    if mesh is None:
        return []
    sizes = {"data": "1", "fsdp": "1", "seq": "1", "tensor": "1"}
    for part in mesh.split(","):
        axis, equals, size = part.partition("=")
        if not equals or axis not in sizes or not size.lstrip("-").isdigit():
            raise UserError(
                f"--mesh has '{part}'; write it as data=1,fsdp=-1 with axes {', '.join(sizes)}."
            )
        sizes[axis] = size
    return [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]


def _search(args: argparse.Namespace, words: Sequence[str]) -> int:
    from rich.console import Console
    from rich.progress import track

    from vdm_jax.cli import configs
    from vdm_jax.config import build, problems, refuse
    from vdm_jax.plan import search, show
    from vdm_jax.plan.topology import topology

    if args.topology == LOCAL:
        raise UserError("--search is for a TPU's topology; local itself says what would fit.")
    config = configs.load(words)
    refuse(problems(config))
    machine = topology(args.topology)
    candidates = search.choices(build(config), len(machine.devices))[: args.most or search.MOST]
    if not candidates:
        raise UserError(
            f"data.rows {config.data.rows} divide among no mesh of {len(machine.devices)} devices; "
            "take a multiple."
        )
    choice = {name: getattr(args, name) for name in ("topology", "what", "effort")}
    plain = [*(f"--{name}={value}" for name, value in choice.items()), *words]
    waiting = track(candidates, "compiling", console=Console(stderr=True))
    found = search.search(waiting, search.in_process(plain))
    if args.json:
        lines = [
            {"choice": one.choice.overrides(), "plan": one.plan, "why": one.why} for one in found
        ]
        print(json.dumps({"ranked": lines}))
    else:
        show.show_search(found)
    return 0 if found and found[0].plan and found[0].plan["fits"] else 1
