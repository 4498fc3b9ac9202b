"""A report as one picture: rows as they are packed, fill, steps, what arrives and is emitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

FILM, IMAGE, EMPTY = ("#2a6f97", "#61a5c2"), ("#e07a1f", "#f4a259"), "#e6e6e6"
TEXT, ARRIVED, EMITTED = "#8d99ae", "#b0b0b0", FILM[0]
# Ticks of a logarithmic axis: {its end over its beginning, at most: multiples of a power of ten}.
ROUND = {10: (1, 1.5, 2, 3, 5, 7), 200: (1, 2, 5), np.inf: (1,)}
ROWS = 24
TITLES = {
    "side": "side of a square of the same area, pixels",
    "seconds": "seconds of a film",
    "tokens": "tokens of an example",
}


def draw(found: Mapping[str, Any], rows: Sequence[np.ndarray], path: Path) -> None:
    """Write a PNG.

    Args:
      found: what `report.summarise` found; rows: the examples of some rows of a step.
    """
    figure, places = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")
    _rows(places[0, 0], rows[:ROWS], found["row_tokens"])
    _fill(places[0, 1], found["layouts"])
    _steps(places[0, 2], found["by_step"], found["spread"])
    for place, name in zip(places[1], TITLES, strict=True):
        _histogram(place, name, found["histograms"].get(name))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _rows(axes: Axes, rows: Sequence[np.ndarray], tokens: int) -> None:
    axes.set_title(f"rows of the first step ({tokens:,} tokens)", pad=24)
    for place, examples in enumerate(rows):
        ends = np.cumsum(examples["tokens"])
        colours = [
            (FILM if example["rate"] > 0 else IMAGE)[slot % 2]
            for slot, example in enumerate(examples)
        ]
        axes.barh(place, tokens, color=EMPTY, height=0.9)
        axes.barh(
            [place] * len(examples), examples["tokens"], left=ends - examples["tokens"],
            color=colours, height=0.9,
        )  # fmt: skip
    axes.set(xlim=(0, tokens), ylim=(len(rows) - 0.5, -0.5), xlabel="tokens", ylabel="row")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    named = ((FILM[0], "film"), (IMAGE[0], "image"), (EMPTY, "padding"))
    _legend(axes, [Patch(color=colour, label=name) for colour, name in named])


def _fill(axes: Axes, layouts: Mapping[str, Mapping[str, Any]]) -> None:
    axes.set_title("fill: tokens of a row that are an example's", pad=24)
    for kind, offset, colour in (("fill", -0.2, FILM[0]), ("text_fill", 0.2, TEXT)):
        values = [one[kind] for one in layouts.values()]
        bars = axes.bar(np.arange(len(layouts)) + offset, values, 0.4, color=colour)
        axes.bar_label(bars, [f"{value:.1%}" for value in values])
    axes.set_xticks(range(len(layouts)), list(layouts))
    axes.set_ylim(0, 1.08)
    _legend(axes, [Patch(color=FILM[0], label="video"), Patch(color=TEXT, label="text")])


def _steps(axes: Axes, by_step: Mapping[str, Sequence[float]], spread: Mapping[str, float]) -> None:
    axes.set_title("work and images of the steps, over their means", pad=24)
    for name, colour in (("work", FILM[0]), ("images", IMAGE[0])):
        values = np.array(by_step[name])
        if values.any():
            axes.plot(values / values.mean(), color=colour, label=name)
            wide = spread[f"{name}_at_random"]
            axes.axhspan(1 - wide, 1 + wide, color=colour, alpha=0.12, label="at random")
    axes.set(xlabel="step")
    _legend(axes, axes.get_legend_handles_labels()[0])


def _histogram(axes: Axes, name: str, found: Mapping[str, Sequence[float]] | None) -> None:
    axes.set_title(TITLES[name], pad=24)
    if found is None:
        axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
        return
    axes.stairs(found["arrived"], found["edges"], color=ARRIVED, fill=True, label="arrives")
    axes.stairs(found["emitted"], found["edges"], color=EMITTED, lw=2, label="is emitted")
    axes.set_xscale("log")
    reach = found["edges"][-1] / found["edges"][0]
    digits = next(digits for most, digits in ROUND.items() if reach <= most)
    axes.xaxis.set_major_locator(LogLocator(subs=digits))
    axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:,.10g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(ylabel="share of examples")
    _legend(axes, axes.get_legend_handles_labels()[0])


def _legend(axes: Axes, handles: Sequence[Any]) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.99), ncols=len(handles),
        columnspacing=1.0, frameon=False,
    )  # fmt: skip
