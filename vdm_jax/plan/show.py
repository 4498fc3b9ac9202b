"""A plan as tables, each figure with where it is from: counted, compiler, predicted."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vdm_jax.plan.cost import Cost
from vdm_jax.plan.machine import Plan
from vdm_jax.plan.roofline import assumptions
from vdm_jax.plan.search import Found

TILE = 16  # rows of a bf16 tile of a TPU's memory
COUNTED, COMPILER, PREDICTED = "counted", "compiler", "predicted"


def show(plan: Plan, console: Console | None = None) -> None:
    console = console or Console()
    console.print(_summary(plan))
    console.print(_memory(plan))
    console.print(_operations(plan))
    console.print(_collectives(plan))
    if plan.seconds:
        console.print(_time(plan))
    for line in notes(plan):
        console.print(f"- {line}", soft_wrap=True, markup=False, highlight=False)


def _summary(plan: Plan) -> Table:
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    table = _table("the run", ("", "value", "from"), width=1)
    table.add_row("what", f"{plan.what} on {plan.topology.name}", "")
    table.add_row("mesh", f"{mesh or 'one device'} ({len(plan.topology.devices)} devices)", "")
    table.add_row("parameters", f"{plan.parameters:,}", COUNTED)
    table.add_row("rows of a step", f"{plan.rows:,}", "")
    table.add_row("tokens of a step", f"{plan.tokens:,} in {plan.mix.examples:,} examples", COUNTED)
    table.add_row("lengths", plan.mix.source, "")
    table.add_row("compiled in", f"{plan.compiled.seconds:.0f} s", "")
    return table


def _memory(plan: Plan) -> Table:
    table = _table("memory of a device", ("", "GiB", "from"))
    memory = plan.compiled.memory
    if memory:
        for name in ("arguments", "outputs", "aliased", "temporaries", "code"):
            table.add_row(name, gib(getattr(memory, name)), COMPILER)
    else:
        table.add_row("arguments", gib(plan.arguments), COUNTED)
    table.add_row("in all", gib(plan.bytes), COMPILER)
    if plan.limit:
        table.add_row("there is", gib(plan.limit), COMPILER)
    return table


def _operations(plan: Plan) -> Table:
    work = plan.work
    table = _table("a step on all devices", ("", "value", "from"))
    table.add_row("useful FLOPs", f"{work.useful:.4g}", COUNTED)
    table.add_row("executed: products", f"{work.products:.4g}", COUNTED)
    table.add_row("executed: attention", f"{work.attention:.4g}", COUNTED)
    if work.blocks is not None:
        table.add_row("attention, blocks visited over needed", f"{work.blocks:.3f}", COUNTED)
        table.add_row("attention, pairs computed over useful", f"{work.pairs:.3f}", COUNTED)
    table.add_row("slowest device over mean", f"{work.straggler:.3f}", COUNTED)
    table.add_row("memory traffic of a device", f"{plan.traffic / 1e9:,.1f} GB", COMPILER)
    if plan.cycles:
        table.add_row("estimated cycles (no kernels)", f"{plan.cycles:.4g}", COMPILER)
    return table


def _collectives(plan: Plan) -> Table:
    table = _table("collectives of a step", ("", "executions", "GB", "from"))
    for kind, found in plan.collectives.items():
        row = (kind, f"{found['count']:,.0f}", f"{found['bytes'] / 1e9:,.2f}", COMPILER)
        table.add_row(*row)
    return table


def _time(plan: Plan) -> Table:
    seconds = plan.seconds
    assert seconds is not None
    table = _table("time of a step", ("", "seconds", "from"))
    for name in ("products", "attention", "memory", "links"):
        table.add_row(name, f"{getattr(seconds, name):.3f}", PREDICTED)
    table.add_row("lower bound: all overlaps", f"{seconds.lower:.3f}", PREDICTED)
    table.add_row("upper bound: nothing does", f"{seconds.upper:.3f}", PREDICTED)
    table.add_row("step", f"{seconds.guess:.3f}", PREDICTED)
    table.add_row("model FLOPs utilisation", f"{plan.mfu or 0:.3f}", PREDICTED)
    table.add_row("tokens a second", f"{plan.tokens_per_second or 0:,.0f}", PREDICTED)
    return table


def notes(plan: Plan) -> list[str]:
    """Whether it fits, and what the figures rest on."""
    found = []
    if plan.limit and not plan.fits:
        over = (plan.bytes - plan.limit) / 2**30
        found.append(
            f"it does NOT fit: {over:.2f} GiB too much for each device; more recomputation "
            "(remat), microbatches or devices of fsdp make it smaller, and --search tries them."
        )
    elif plan.limit:
        found.append(f"it fits, {(plan.limit - plan.bytes) / 2**30:.2f} GiB of a device are left.")
    uneven = plan.share % TILE or not plan.share
    if plan.what == "train" and plan.mesh["fsdp"] > 1 and uneven:
        found.append(
            f"fsdp {plan.mesh['fsdp']} leaves {plan.share or 'an uneven number of'} rows of a "
            f"kernel on each device: only where they are a multiple of {TILE} are gradients "
            "scattered instead of summed whole; divide less by fsdp and more by data."
        )
    if plan.unknown:
        found.append(
            f"{plan.unknown} loops have a length that is data: what they move was counted once."
        )
    if plan.topology.chip:
        found += assumptions(plan.topology.chip)
    return found


def show_cost(cost: Cost, console: Console | None = None) -> None:
    table = _table("the whole run", ("", "value", "from"))
    table.add_row("steps", f"{cost.steps:,.0f}", "")
    table.add_row("tokens", f"{cost.tokens:,.0f}", "")
    table.add_row("days", f"{cost.days:,.2f}", PREDICTED)
    table.add_row("chip-hours", f"{cost.chip_hours:,.0f}", PREDICTED)
    if cost.money is not None:
        table.add_row("money", f"{cost.money:,.0f}", PREDICTED)
    (console or Console()).print(table)


def show_search(found: Sequence[Found], console: Console | None = None) -> None:
    table = _table("best first", ("choice", "fits", "GiB", "s a step", "MFU", "tokens a second"))
    for one in found:
        plan = one.plan
        if plan is None:
            table.add_row(str(one.choice), one.why, "", "", "", "")
            continue
        step = plan["predicted_step_seconds"]
        numbers = ("", "", "")
        if step:
            rate = plan["predicted_tokens_per_second"]
            numbers = (f"{step:.3g}", f"{plan['predicted_mfu']:.3f}", f"{rate:,.0f}")
        fits = "yes" if plan["fits"] else "no"
        table.add_row(str(one.choice), fits, gib(plan["hbm_bytes"]), *numbers)
    (console or Console()).print(table)


def gib(number: int) -> str:
    return f"{number / 2**30:,.2f}"


def _table(title: str, columns: Sequence[str], width: int = 0) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        plain = index == 0 or name in ("from", "fits", "choice") or width
        table.add_column(name, justify="left" if plain else "right")
    return table
