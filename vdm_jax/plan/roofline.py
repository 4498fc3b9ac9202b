"""From operations, bytes and peaks to seconds: two bounds, and a guess between them.

Of one device, with F operations in products, A in attention's kernels, M bytes of memory, and
collectives c of V_c bytes in groups of n chips that vary along a of the torus's axes,

    compute = F / (e_F P) + s A / (e_A P)            P peak, s straggler of attention
    memory  = M / (e_M B)
    links   = sum_c t_c,    t_c = V_c (n - 1) / n / (2 a e_L W)     all-gather, reduce-scatter
                            twice that                              all-reduce
                            V_c L / 4 / (2 a e_L W)                 all-to-all, L the longest axis
                            V_c / (e_L W)                           permute, to a neighbour

(Austin et al. 2025, "How to scale your model", sections 1 to 3). What is said to overlap does:

    lower    everything at its peak (e = 1) and overlapped: the largest of the three
    upper    everything at what is usually reached, one after another: their sum
    guess    at what is usually reached; links overlap with computing, memory does not overlap with
             the kernels of attention

Memory traffic of fused products overlaps with computing them, so the guess takes, besides
attention, the larger of products and memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from vdm_jax.parallel.chips import Chip
from vdm_jax.plan.traffic import Collective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reached:
    """Shares of the peaks that are usually reached: round numbers, not fitted.

    Large bf16 products on TPUs run at three quarters of the peak or more; a flash kernel whose
    exponentials share the core with its products at about half.
    """

    products: float = 0.8
    attention: float = 0.5
    memory: float = 0.8
    links: float = 0.8


PEAK = Reached(products=1.0, attention=1.0, memory=1.0, links=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """What one device does in a step: FLOPs, bytes, and seconds of links at their peak."""

    products: float
    attention: float
    straggler: float
    memory: float
    links: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seconds:
    """Of one step."""

    products: float
    attention: float
    memory: float
    links: float
    lower: float
    upper: float
    guess: float


def predict(load: Load, chip: Chip, reached: Reached | None = None) -> Seconds:
    usual, best = _times(load, chip, reached or Reached()), _times(load, chip, PEAK)
    return Seconds(
        **usual,
        lower=max(best["products"] + best["attention"], best["memory"], best["links"]),
        upper=sum(usual.values()),
        guess=max(usual["attention"] + max(usual["products"], usual["memory"]), usual["links"]),
    )


def _times(load: Load, chip: Chip, at: Reached) -> dict[str, float]:
    return {
        "products": load.products / (at.products * chip.device_flops),
        "attention": load.straggler * load.attention / (at.attention * chip.device_flops),
        "memory": load.memory / (at.memory * chip.device_bandwidth),
        "links": load.links / at.links,
    }


def link_seconds(found: Iterable[Collective], chip: Chip, devices: Sequence[Any]) -> float:
    """Seconds of all collectives at the links' peak, one after another.

    Args:
      devices: those of the mesh, in its order; where they have `coords`, of the torus.
    """
    return sum(one.times * seconds(one, chip, devices) for one in found)


def seconds(one: Collective, chip: Chip, devices: Sequence[Any]) -> float:
    """Of one execution."""
    places = [tuple(devices[i].coords) for i in one.group if i < len(devices)]
    lengths = [len(set(axis)) for axis in zip(*places, strict=True)]
    chips = len(set(places))
    if chips < 2:
        return 0.0  # between the cores of a chip
    axes = min(sum(length > 1 for length in lengths), chip.links)
    # The devices of a chip share its links.
    way = chip.link / chip.devices
    if one.kind == "collective-permute":
        return one.bytes / way
    if one.kind.endswith("all-to-all"):
        return one.bytes * max(lengths) / 4 / (2 * axes * way)
    ring = one.bytes * (chips - 1) / chips / (2 * axes * way)
    return 2 * ring if one.kind == "all-reduce" else ring


def assumptions(chip: Chip, reached: Reached | None = None) -> list[str]:
    """What a prediction rests on, a line each."""
    at = reached or Reached()
    return [
        f"peaks of a {chip.name} chip: {chip.flops / 1e12:g} TFLOP/s bf16, "
        f"{chip.hbm_bandwidth / 1e9:g} GB/s of memory, {chip.links} axes of two links of "
        f"{chip.link / 1e9:g} GB/s each way ({chip.source})",
        f"reached of them: {at.products:g} in products, {at.attention:g} in attention's kernels, "
        f"{at.memory:g} of memory, {at.links:g} of links",
        "collectives overlap with computing, and memory traffic with products",
        "lower bound: peaks, everything overlaps; upper bound: as reached, nothing overlaps",
    ]
