"""What a run leaves for people: `summary.json`, and one picture of its loss and its samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from vdm_jax.train.log import read_lines
from vdm_jax.train.meter import Meter
from vdm_jax.train.state import TrainState

STEP_PROGRAM = "jit(step)"


def write(
    folder: Path,
    state: TrainState,
    meter: Meter,
    programs: Mapping[str, int],
    samples: Mapping[str, np.ndarray],
) -> None:
    """Add this start's figures to `summary.json`; draw `loss.png`. Process 0 only."""
    if jax.process_index() != 0:
        return
    losses = loss_curve(folder)
    tenth = max(1, len(losses) // 10)
    update_summary(
        folder,
        {
            "train": meter.summary()
            | {
                "step": int(state.step),
                "updates": int(state.guard.updates),
                "skipped": int(state.guard.skipped),
                "compiled_programs": programs.get(STEP_PROGRAM, 0),
                "first_loss": mean_of([loss for _, loss in losses[:tenth]]),
                "last_loss": mean_of([loss for _, loss in losses[-tenth:]]),
            }
        },
    )
    draw(folder / "loss.png", losses, list(samples.items()))


def update_summary(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `found` into `summary.json` and return the whole."""
    path = folder / "summary.json"
    old = json.loads(path.read_text()) if path.is_file() else {}
    new = old | dict(found)
    path.write_text(json.dumps(new, indent=2, sort_keys=True) + "\n")
    return new


def loss_curve(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) from metrics.jsonl; of a step run twice, after a kill, the later line."""
    found = {
        line["step"]: line["loss"]
        for line in read_lines(folder / "metrics.jsonl")
        if "loss" in line
    }
    return sorted(found.items())


def mean_of(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def draw(
    path: Path, losses: Sequence[tuple[int, float]], samples: Sequence[tuple[str, np.ndarray]]
) -> None:
    """The loss, and below it some frames of each sample (prompt, uint8 t h w c) in a row."""
    rows = len(samples)
    figure = plt.figure(figsize=(8, 3 + 1.6 * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, 1, height_ratios=[3] + [1.6] * rows)
    axes = figure.add_subplot(grid[0])
    if losses:
        steps, values = np.array(losses).T
        window = max(1, len(values) // 50)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps, values, alpha=0.25, linewidth=0.8)
        axes.plot(steps[window - 1 :], smooth)
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    for row, (prompt, video) in enumerate(samples):
        cell = figure.add_subplot(grid[1 + row])
        cell.imshow(_strip(video), interpolation="nearest")
        cell.set_axis_off()
        cell.set_title(prompt, fontsize=8, loc="left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _strip(video: np.ndarray, most: int = 6) -> np.ndarray:
    """Up to `most` frames of a video, evenly in time, side by side with white between them."""
    times = np.linspace(0, len(video) - 1, min(most, len(video))).round().astype(int)
    spaced = np.pad(video[times], ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
    return np.concatenate(list(spaced), axis=1)
