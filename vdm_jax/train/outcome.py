"""What a run leaves for people: `summary.json`, and one picture of its loss and what it can do."""

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
from vdm_jax.train.meter import CompileCounter, Meter
from vdm_jax.train.reconstruct import Reconstruction
from vdm_jax.train.state import TrainState

STEP_PROGRAM = "jit(step)"


def write(
    folder: Path,
    state: TrainState,
    meter: Meter,
    compiled: CompileCounter,
    samples: Mapping[str, np.ndarray],
    reconstructions: Sequence[Reconstruction] = (),
    credit: str = "",
) -> None:
    """Add this start's figures to `summary.json`; draw `loss.png`. Process 0 only."""
    if jax.process_index() != 0:
        return
    losses = loss_curve(folder)
    tenth = max(1, len(losses) // 10)
    figures: dict[str, Any] = dict(meter.summary())
    if figures["steps"]:  # a start that found everything done has nothing to say
        figures |= {
            "step": int(state.step),
            "updates": int(state.guard.updates),
            "skipped": int(state.guard.skipped),
            "compiled_programs": compiled.programs.get(STEP_PROGRAM, 0),
            "found_compiled": compiled.found,
            "first_loss": mean_of([loss for _, loss in losses[:tenth]]),
            "last_loss": mean_of([loss for _, loss in losses[-tenth:]]),
        }
        update_summary(folder, {"train": figures})
    strips = [(prompt, _strip(video)) for prompt, video in samples.items()]
    strips += [(_legend(one), _abreast(one)) for one in reconstructions]
    draw(folder / "loss.png", losses, strips, credit)


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
    path: Path,
    losses: Sequence[tuple[int, float]],
    strips: Sequence[tuple[str, np.ndarray]],
    credit: str = "",
) -> None:
    """The loss, and below it pictures (title, uint8 h w c), one under another; `credit` at last."""
    heights = [3.0] + [0.3 + 7.5 * strip.shape[0] / strip.shape[1] for _, strip in strips]
    figure = plt.figure(figsize=(8, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
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
    for row, (title, strip) in enumerate(strips):
        cell = figure.add_subplot(grid[1 + row])
        cell.imshow(strip, interpolation="nearest")
        cell.set_axis_off()
        cell.set_title(title, fontsize=8, loc="left")
    if credit:
        figure.supxlabel(credit, fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _strip(video: np.ndarray, most: int = 6) -> np.ndarray:
    """Up to `most` frames of a video, evenly in time, side by side with white between them; as
    wide as `most` frames whatever the length, or an image would be drawn that many times larger."""
    times = np.linspace(0, len(video) - 1, min(most, len(video))).round().astype(int)
    missing = most - len(times)
    spaced = np.pad(video[times], ((0, missing), (0, 0), (0, 1), (0, 0)), constant_values=255)
    return np.concatenate(list(spaced), axis=1)


def _legend(one: Reconstruction) -> str:
    tried = ", ".join(f"noised to t = {t:g} and what is made of it" for t, _, _ in one.tries)
    return f"held out: the clip, {tried}"


def _abreast(one: Reconstruction) -> np.ndarray:
    """The clip, then each noised one and its estimate: two frames of each, in columns apart."""
    videos = [one.clip, *(video for _, *pair in one.tries for video in pair)]
    strips = [_strip(video, 2) for video in videos]
    apart = [np.pad(s, ((0, 0), (0, 4), (0, 0)), constant_values=255) for s in strips]
    return np.concatenate(apart, axis=1)
