"""What was measured, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.packing.race import PACKED

WIDTH = 130
AIMS = {"all": "worst of all", "pairs": "worse of two"}


def show(found: Mapping[str, Any]) -> None:
    console = Console(width=WIDTH)
    console.print(_throughput(found))
    for arm, facts in found["throughput"].items():
        if len(facts["kinds"]) > 1:
            console.print(_kinds(arm, facts["kinds"]))
    for measure, title in (("examples", "headline: mean over examples"), ("tokens", "over tokens")):
        console.print(_times(found, measure, title))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _throughput(found: Mapping[str, Any]) -> Table:
    arms = found["throughput"]
    table = _table("per arm, over all seeds", "", *arms)
    first = {name: facts["kinds"] for name, facts in arms.items()}

    def line(name: str, show) -> None:
        table.add_row(name, *(show(arms[arm]) for arm in arms))

    table.add_row("rows x tokens", *(_shapes(kinds) for kinds in first.values()))
    line("most memory, MiB", lambda a: f"{max(k['mebibytes'] for k in a['kinds']):.0f}")
    line("attention", lambda a: ", ".join(sorted({k["attention"] for k in a["kinds"]})))
    line("programs", lambda a: f"{a['compilations']} in {a['compile_seconds']:.0f} s")
    table.add_row("learning rate", *(f"{found['learning_rates'][arm]:g}" for arm in arms))
    line("fill", lambda a: f"{a['fill']:.1%}")
    line("tokens/s, with padding", lambda a: f"{a['slots_per_second']:,.0f}")
    line("useful tokens/s", lambda a: f"{a['useful_tokens_per_second']:,.0f}")
    line("examples/s", lambda a: f"{a['examples_per_second']:.1f}")
    line("steps a seed", lambda a: f"{a['steps']:.0f}")
    line("ms a step", lambda a: f"{a['milliseconds_per_step']:.0f}")
    line("laying out, share of time", lambda a: f"{a['host_share']:.1%}")
    line("examples a step (cv)", lambda a: _varied(a, "examples"))
    line("useful tokens a step (cv)", lambda a: f"({a['tokens_variation_between_steps']:.2f})")
    line("images (std over steps)", _images)
    return table


def _shapes(kinds) -> str:
    ends = kinds if len(kinds) == 1 else (kinds[0], kinds[-1])
    return " .. ".join(f"{kind['rows']} x {kind['tokens']}" for kind in ends)


def _varied(arm: Mapping[str, Any], what: str) -> str:
    return f"{arm[f'{what}_per_step']:.1f} ({arm[f'{what}_variation_between_steps']:.2f})"


def _images(arm: Mapping[str, Any]) -> str:
    return f"{arm['images']:.2f} ({arm['images_std_between_steps']:.2f})"


def _kinds(arm: str, kinds) -> Table:
    columns = ("tokens", "rows", "MiB", "compile s", "attention", "steps", "fill", "ms", "time")
    table = _table(f"programs of {arm}", *columns)
    for kind in kinds:
        milliseconds = "-" if kind["milliseconds"] is None else f"{kind['milliseconds']:.0f}"
        table.add_row(
            str(kind["tokens"]), str(kind["rows"]), f"{kind['mebibytes']:.0f}",
            f"{kind['compile_seconds']:.1f}", kind["attention"], str(kind["steps"]),
            f"{kind['fill']:.0%}", milliseconds, f"{kind['share_of_time']:.0%}",
        )  # fmt: skip
    return table


def _times(found: Mapping[str, Any], measure: str, title: str) -> Table:
    """One line for each seed and rival: the target of all arms, then of the pair alone."""
    table = _table(
        f"seconds to the same held-out loss ({title}); with + compiling counts",
        "seed", "aim", "loss", "rival", "packed s", "rival s", "ratio", "packed s+", "rival s+",
        "ratio+",
    )  # fmt: skip
    rivals = [arm for arm in found["throughput"] if arm != PACKED]
    medians = found["medians"][measure]
    for aim in ("all", "pairs"):
        for seed, one in zip(found["seeds"], found["verdicts"][measure], strict=True):
            for rival in rivals:
                table.add_row(str(seed), AIMS[aim], *_line(one, aim, rival))
        for rival in rivals:
            ratio, compiled = (
                f"{medians[aim][name][rival]:.2f}" for name in ("ratio", "ratio_with_compile")
            )
            table.add_row(
                "median", AIMS[aim], "", rival, "", "", ratio, "", "", compiled, style="bold"
            )
    return table


def _line(verdict: Mapping[str, Any], aim: str, rival: str) -> list[str]:
    one = verdict["all"] if aim == "all" else verdict["pairs"][rival]
    cells = [f"{one['target']:.4f}", rival]
    for seconds, ratio in (("seconds", "ratio"), ("seconds_with_compile", "ratio_with_compile")):
        cells += [f"{one[seconds][PACKED]:.1f}", f"{one[seconds][rival]:.1f}"]
        cells.append(f"{one[ratio][rival]:.2f}")
    return cells
