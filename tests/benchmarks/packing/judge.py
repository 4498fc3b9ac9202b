"""From curves of held-out loss to the time each arm needs for the same loss."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from tests.benchmarks.packing.race import PACKED, Runner


def decreasing(values: Sequence[float]) -> list[float]:
    """The non-increasing sequence nearest in squares."""
    return isotonic_regression(values, increasing=False).x.tolist()


def time_to(times: Sequence[float], losses: Sequence[float], target: float) -> float:
    """When the smoothed curve first reaches `target`, by linear interpolation; inf if never."""
    smooth = decreasing(losses)
    at = next((i for i, loss in enumerate(smooth) if loss <= target), None)
    if at is None:
        return float("inf")
    if at == 0:
        return times[0]
    share = (smooth[at - 1] - target) / (smooth[at - 1] - smooth[at])
    return times[at - 1] + share * (times[at] - times[at - 1])


def verdict(runners: Sequence[Runner], measure: int) -> dict[str, Any]:
    """Of one seed; `measure` 1: loss by examples, 2: by tokens.

    `all`: the target is the worst of all arms' last smoothed losses, so that every arm reaches it.
    `pairs`: each rival against packed alone, at the worse one's last loss. A slow third arm would
    set a target that the two reach when they have hardly begun.
    """
    curves = {r.arm.name: ([c[0] for c in r.curve], [c[measure] for c in r.curve]) for r in runners}
    compiling = {r.arm.name: r.arm.compile_seconds for r in runners}
    final = {name: decreasing(losses)[-1] for name, (_, losses) in curves.items()}

    def compare(names: Sequence[str]) -> dict[str, Any]:
        target = max(final[name] for name in names)
        seconds = {name: time_to(*curves[name], target) for name in names}
        compiled = {name: seconds[name] + compiling[name] for name in names}
        return {
            "target": target,
            "seconds": seconds,
            "seconds_with_compile": compiled,
            "ratio": _to_packed(seconds),
            "ratio_with_compile": _to_packed(compiled),
        }

    rivals = [name for name in curves if name != PACKED]
    return {
        "final": final,
        "all": compare(list(curves)),
        "pairs": {name: compare([PACKED, name]) for name in rivals},
    }


def _to_packed(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: value / seconds[PACKED] for name, value in seconds.items()}


def medians(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over seeds, of every ratio to packed: {'all' or 'pairs': {ratio: {rival: number}}}."""
    ratios = ("ratio", "ratio_with_compile")

    def middle(read) -> dict[str, dict[str, float]]:
        return {
            ratio: {
                name: statistics.median(read(one, name)[ratio][name] for one in verdicts)
                for name in verdicts[0]["pairs"]
            }
            for ratio in ratios
        }

    return {
        "all": middle(lambda one, name: one["all"]),
        "pairs": middle(lambda one, name: one["pairs"][name]),
    }


def throughput(runners: Sequence[Runner]) -> dict[str, Any]:
    """One arm over all its seeds."""
    arm = runners[0].arm
    kind, seconds, tokens, examples, images = np.array([s for r in runners for s in r.log]).T
    slots = np.array([one.kind.slots for one in arm.compiled])[kind.astype(int)]
    clock, share = seconds.sum(), images / examples
    kinds = []
    for number, one in enumerate(arm.compiled):
        mine = kind == number
        kinds.append(
            dict(
                tokens=one.kind.capacity.tokens, rows=one.kind.rows, mebibytes=one.bytes / 2**20,
                compile_seconds=one.seconds, attention=one.attention, steps=int(mine.sum()),
                fill=float(tokens[mine].sum() / max(slots[mine].sum(), 1)),
                milliseconds=float(1e3 * np.median(seconds[mine])) if mine.any() else None,
                share_of_time=float(seconds[mine].sum() / clock),
            )
        )  # fmt: skip
    return {
        "compilations": len(arm.compiled),
        "compile_seconds": arm.compile_seconds,
        "steps": len(seconds) / len(runners),
        "milliseconds_per_step": 1e3 * clock / len(seconds),
        "fill": float(tokens.sum() / slots.sum()),
        "slots_per_second": float(slots.sum() / clock),
        "useful_tokens_per_second": float(tokens.sum() / clock),
        "examples_per_second": float(examples.sum() / clock),
        "examples_per_step": float(examples.mean()),
        "host_share": sum(r.host for r in runners) / clock,
        "images": float(images.sum() / examples.sum()),
        "images_std_between_steps": float(share.std()),
        "tokens_variation_between_steps": float(tokens.std() / tokens.mean()),
        "examples_variation_between_steps": float(examples.std() / examples.mean()),
        "kinds": kinds,
    }
