"""A report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

MANY_EMPTY = 0.01  # of the rows


def tables(found: Mapping[str, Any]) -> Group:
    """What `report.summarise` found, and the data card beside it."""
    before, after = (found["card"][name] for name in ("before", "after"))
    chosen = {"all": before} if before == after else {"before": before, "after": after}
    return Group(_layouts(found), _plan(found), cards(chosen))


def _layouts(found: Mapping[str, Any]) -> Table:
    """One column for each way of laying out the same examples."""
    layouts = found["layouts"]
    table = Table(title=f"the first {found['steps']} steps on {found['devices']} device(s)")
    for name in ("", *layouts):
        table.add_column(name, justify="right" if name else "left")

    def line(name: str, show) -> None:
        table.add_row(name, *(show(one) for one in layouts.values()))

    line("fill", lambda one: f"{one['fill']:.2%}")
    line("padding of video", lambda one: f"{one['padding']['video']:.2%}")
    line("padding of text", lambda one: f"{one['padding']['text']:.1%}")
    line("query-key pairs, of all of a row's", lambda one: f"{one['pairs']:.1%}")
    line("shapes compiled", lambda one: f"{one['shapes']}")
    line("examples a row (most)", _members)
    line("examples a step", lambda one: f"{one['examples_per_step']:,.1f}")
    line("useful tokens a step", lambda one: f"{one['tokens_per_step']:,.0f}")
    line("empty rows", lambda one: f"{one['empty_rows']:.2%}")
    line("slowest device / mean", lambda one: f"{one['straggler_ratio']:.3f}")
    line("... rows as they come", lambda one: f"{one['straggler_unbalanced']:.3f}")
    line("spread of images (at random)", lambda one: _spread(one, "images"))
    line("spread of work (at random)", lambda one: _spread(one, "work"))
    if next(iter(layouts.values()))["empty_rows"] > MANY_EMPTY:
        table.caption = "The last step of a block is filled up with empty rows: raise data.block."
    return table


def _members(one: Mapping[str, Any]) -> str:
    return f"{one['examples_per_row']:.2f} ({one['examples_per_row_max']})"


def _spread(one: Mapping[str, Any], what: str) -> str:
    return f"{one['spread'][what]:.3f} ({one['spread'][f'{what}_at_random']:.3f})"


def _plan(found: Mapping[str, Any]) -> Table:
    table = Table(title="the plan", show_header=False)
    epochs = ", ".join(f"{steps:,.1f}" for steps in found["epochs"])
    table.add_row("steps an epoch", f"{found['steps_per_epoch']:,.1f}")
    if len(found["epochs"]) > 1:
        table.add_row("... of each source", epochs)
    table.add_row("images, of the examples", f"{found['images']:.1%}")
    shares = {name: count / found["arrived"] for name, count in found["drops"].items()}
    changed = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    table.add_row("changed to fit, of the examples", changed)
    table.add_row("tokens left out", f"{found['tokens_left_out']:.1%}")
    cost = found["decode_cost"]
    frames = f"{cost['least']:.2f} to {cost['most']:.2f}"
    table.add_row("frames decoded / frames used", f"{frames}, by where key frames are")
    bias = found["bias"]
    steps = f"tokens {bias['tokens']:+.1%}, images {100 * bias['images']:+.1f} points"
    table.add_row("in these steps more than arrived", steps)
    return table


def cards(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Data cards side by side: of a set as it is, and of what splits and conditions leave of it."""
    table = Table(title="the data")
    for name in ("", *found):
        table.add_column(name, justify="right" if name else "left")
    for name, cells in _facts(list(found.values())):
        table.add_row(name, *cells)
    return table


def _facts(cards: list[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    def line(name: str, show) -> tuple[str, list[str]]:
        return name, [show(card) for card in cards]

    yield line("clips (images)", lambda c: f"{c['clips']:,} ({c['images']:,})")
    yield line("files", lambda c: f"{c['files']:,}")
    yield line("sentences", lambda c: f"{c['sentences']:,}")
    yield line("words of a sentence", lambda c: f"{c['words']:.1f}")
    yield line("seconds of a film", lambda c: f"{c['seconds']:.2f}")
    yield line("hours", lambda c: f"{c['hours']:,.2f}")
    yield line("frames a second, median", lambda c: f"{c['fps']:g}")
    yield line("resolutions", lambda c: _listed(c["resolutions"]))
    yield line("categories", lambda c: f"{c['categories']:,}")
    if any(card["splits"] for card in cards):
        yield line("splits", lambda c: _listed(c["splits"]))
    for score in {name: None for card in cards for name in card["scores"]}:
        yield line(score, lambda c, score=score: _score(c["scores"].get(score)))


def _score(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    quantiles = f"{found['p10']:.3g} / {found['p50']:.3g} / {found['p90']:.3g}"
    return f"{found['mean']:.3g} ({quantiles}), of {found['scored']:.0%}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "-"
