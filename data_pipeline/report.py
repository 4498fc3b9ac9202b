"""What a plan would do, before anything is decoded: how full, how even, what was cut.

A step waits for its slowest device, and what it learns depends on what it holds. Hence of each way
of laying out the same stream (`layouts.py`):

    fill               share of the rows' tokens that belong to an example
    pairs              query-key pairs of the examples, over those of the rows: sum n² / L²
    straggler_ratio    work of the slowest device over that of the mean one, mean over steps
    spread             standard deviation over steps, over the mean, of the share of images and of
                       work, and what both would be if steps were drawn at random: with m examples
                       sqrt((1 - p) / (p m)), p the share of images, and c / sqrt(m), c that of the
                       work of one example

Histograms compare what arrives with what is emitted. A clip arrives with its own side and seconds,
and is emitted as it was resized, cropped and trimmed; the numbers of tokens are compared of all
that arrived in the blocks that were looked at and those that the steps hold, to see whether some
lengths are kept waiting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import sizes
from data_pipeline.balance import balance, straggler
from data_pipeline.blocks import NO_ROW, TEXT_CUT, Block, Kind
from data_pipeline.layouts import Buckets, Layout, Packed
from data_pipeline.order import Drawn
from data_pipeline.plan import Planner, pick
from data_pipeline.serve import Blocks, Steps

CHANGES = {
    "trimmed": sizes.TRIMMED,
    "shrunk": sizes.SHRUNK,
    "dropped": sizes.DROPPED,
    "text_cut": TEXT_CUT,
}
BINS = 24
BESIDE: tuple[Layout, ...] = (Packed(), Buckets(count=8), Buckets(count=1))


class Look(NamedTuple):
    """Some steps of one layout; leaves (steps,), but for `costs`: the work of each step's rows."""

    examples: list[np.ndarray]
    costs: list[np.ndarray]
    kinds: list[Kind]

    @property
    def every(self) -> np.ndarray:
        return np.concatenate(self.examples)


@dataclasses.dataclass(frozen=True)
class Relaid:
    """Blocks of the same examples, laid out in another way."""

    planner: Planner
    blocks: Blocks

    @cached_property
    def block(self) -> Callable[[int], Block]:
        return lru_cache(maxsize=2)(self._block)

    def _block(self, k: int) -> Block:
        examples = self.blocks.block(k).examples
        arrived = examples[np.argsort(examples["ordinal"], kind="stable")]
        return self.planner.layout.lay_out(arrived, self.planner.kinds, self.planner.seed, k)


def summarise(planner: Planner, blocks: Blocks, count: int, devices: int) -> dict[str, Any]:
    """The first `count` steps of a plan, on so many devices.

    Returns: what the module's docstring names, of the plan's own layout, and likewise below
    `layouts` by name; `steps`, `devices`, `row_tokens`, `by_step`; `examples_per_step`,
    `tokens_per_step` (useful ones), `examples_per_row` and `examples_per_row_max`, `text_fill`,
    `images` (share of examples), `empty_rows` (share), `straggler_unbalanced`, `padding` of `video`
    and `text`; `drops` {reason: examples}, of all that `arrived` in the blocks of these steps, and
    `tokens_left_out` (share); `steps_per_epoch`, until there were as many examples as clips, and
    `epochs` of each source; `decode_cost`; `bias`; `histograms`.
    """
    look = look_at(Steps(blocks, 0, planner.kinds), count)
    last = Steps(blocks, 0, planner.kinds).locate(count - 1).block
    arrived = np.concatenate([blocks.block(k).examples for k in range(last + 1)])
    own = judge(look, devices)
    layouts = {name_of(planner.layout): own}
    for layout in BESIDE:
        if name_of(layout) not in layouts:
            other = dataclasses.replace(planner, layout=layout)
            steps = Steps(Relaid(other, blocks), 0, other.kinds)
            layouts[name_of(layout)] = judge(look_at(steps, count), devices)
    return own | {
        "steps": count,
        "devices": devices,
        "row_tokens": planner.capacity.tokens,
        "by_step": by_step(look),
        "layouts": layouts,
        "arrived": len(arrived),
        "drops": {name: int((arrived["changed"] & bit > 0).sum()) for name, bit in CHANGES.items()},
        "tokens_left_out": _left_out(arrived),
        **epochs(planner, blocks),
        "decode_cost": decode_cost(planner, look.every),
        "bias": bias(arrived, look.every),
        "histograms": histograms(planner, arrived, look.every),
    }


def name_of(layout: Layout) -> str:
    if not isinstance(layout, Buckets):
        return "packed"
    return "padded" if layout.count == 1 else f"{layout.count} buckets"


def look_at(steps: Steps, count: int) -> Look:
    look = Look([], [], [])
    for step in range(count):
        place = steps.locate(step)
        block = steps.plans.block(place.block)
        inside = slice(block.offsets[place.first], block.offsets[place.last])
        look.examples.append(np.asarray(block.examples[inside]))
        look.costs.append(steps.examples(step)[1])
        look.kinds.append(place.kind)
    return look


def judge(look: Look, devices: int) -> dict[str, Any]:
    """One layout, from some of its steps."""
    every = look.every
    slots = sum(kind.slots for kind in look.kinds)
    text = sum(kind.rows * kind.capacity.text_tokens for kind in look.kinds)
    rows = sum(kind.rows for kind in look.kinds)
    squares = sum(kind.rows * kind.capacity.tokens**2 for kind in look.kinds)
    members = [np.unique(one["row"], return_counts=True)[1] for one in look.examples]
    held = np.concatenate(members)
    in_order = [np.arange(len(costs)).reshape(devices, -1) for costs in look.costs]
    fill, text_fill = every["tokens"].sum() / slots, every["words"].sum() / text
    return {
        "fill": float(fill),
        "text_fill": float(text_fill),
        "padding": {"video": float(1 - fill), "text": float(1 - text_fill)},
        "pairs": float(sum(costs.sum() for costs in look.costs) / squares),
        "shapes": len({kind.capacity.tokens for kind in look.kinds}),
        "tokens_per_step": float(every["tokens"].sum() / len(look.kinds)),
        "examples_per_step": len(every) / len(look.kinds),
        "examples_per_row": len(every) / rows,
        "examples_per_row_max": int(held.max()),
        "images": float(np.mean(every["rate"] == 0)),
        "empty_rows": 1 - len(held) / rows,
        "straggler_ratio": _mean(straggler(c, balance(c, devices)) for c in look.costs),
        "straggler_unbalanced": _mean(
            straggler(c, rows) for c, rows in zip(look.costs, in_order, strict=True)
        ),
        "spread": spread(look),
    }


def by_step(look: Look) -> dict[str, list[float]]:
    """Of each step the share of `images`, and `work`, the sum of squared lengths."""
    return {
        "images": [float(np.mean(one["rate"] == 0)) for one in look.examples],
        "work": [float(costs.sum()) for costs in look.costs],
    }


def spread(look: Look) -> dict[str, float]:
    """How much steps differ, and would if they were drawn at random; see the module's docstring."""
    images, work = (np.array(values) for values in by_step(look).values())
    every = look.every
    per_step = len(every) / len(look.kinds)
    share = np.mean(every["rate"] == 0)
    squares = every["tokens"].astype(np.float64) ** 2
    return {
        "images": _relative(images),
        "images_at_random": float(np.sqrt((1 - share) / (share * per_step))) if share else 0.0,
        "work": _relative(work),
        "work_at_random": _relative(squares) / per_step**0.5,
    }


def epochs(planner: Planner, blocks: Blocks) -> dict[str, Any]:
    """Steps until there were as many examples as clips, of all sources and of each."""
    per_step = planner.block / Steps(blocks, 0, planner.kinds).in_first_block()
    share = np.array(planner.weights) / sum(planner.weights)
    clips = np.array([len(mine) for mine in planner.train])
    return {
        "steps_per_epoch": float(clips.sum() / per_step),
        "epochs": [float(steps) for steps in clips / (share * per_step)],
    }


def decode_cost(planner: Planner, examples: np.ndarray) -> dict[str, float]:
    """Frames that must be decoded over frames used: `least` if a clip could be entered anywhere,
    `most` if only at its first frame; key frames, which a manifest does not count, are between."""
    native = pick(planner.sources, _drawn(examples), lambda clips, chosen: clips.rate[chosen])
    passed = 1 + (examples["frames"] - 1) * native / _one_for_none(examples["rate"])
    used = max(int(examples["frames"].sum()), 1)
    before = examples["offset"] * native
    return {"least": float(passed.sum() / used), "most": float((passed + before).sum() / used)}


def histograms(
    planner: Planner, arrived: np.ndarray, emitted: np.ndarray
) -> dict[str, dict[str, list[float]]]:
    """By `side`, `seconds` and `tokens`: `edges` (bins + 1,), and the shares of what `arrived` and
    was `emitted` (bins,). Images last no time and are left out of `seconds`."""

    def own(name: str) -> np.ndarray:
        return pick(planner.sources, _drawn(arrived), lambda clips, i: getattr(clips, name)[i])

    # An example of one frame has no rate, whatever film it is from.
    films, shown = (own("rate") > 0) & (own("frames") > 1), emitted[emitted["rate"] > 0]
    seconds = own("frames") / _one_for_none(own("rate"))
    pairs = {
        "side": (
            np.sqrt(own("height").astype(np.float64) * own("width")),
            np.sqrt(emitted["size"].astype(np.float64).prod(axis=1)),
        ),
        "seconds": (seconds[films], shown["frames"] / shown["rate"]),
        "tokens": (arrived["tokens"][arrived["row"] < NO_ROW], emitted["tokens"]),
    }
    return {name: _histogram(*both) for name, both in pairs.items() if all(map(len, both))}


def bias(arrived: np.ndarray, emitted: np.ndarray) -> dict[str, float]:
    """What the steps hold more of than what arrived: relative, of the mean number of tokens; of the
    share of images, the difference."""
    fits = arrived[arrived["row"] < NO_ROW]
    tokens, images = (
        [float(np.mean(read(one))) for one in (emitted, fits)]
        for read in (lambda one: one["tokens"], lambda one: one["rate"] == 0)
    )
    return {"tokens": tokens[0] / tokens[1] - 1, "images": images[0] - images[1]}


def _histogram(arrived: np.ndarray, emitted: np.ndarray) -> dict[str, list[float]]:
    both = np.concatenate([arrived, emitted])
    edges = np.geomspace(both.min(), both.max() * (1 + 1e-9), BINS + 1)
    edges[0], edges[-1] = both.min(), max(both.max(), edges[-1])  # whatever the powers round to
    shares = (np.histogram(one, edges)[0] / len(one) for one in (arrived, emitted))
    first, second = (found.tolist() for found in shares)
    return {"edges": edges.tolist(), "arrived": first, "emitted": second}


def _drawn(examples: np.ndarray) -> Drawn:
    return Drawn(examples["source"], examples["clip"], examples["visit"])


def _left_out(examples: np.ndarray) -> float:
    whole = examples["grid"].astype(np.int64).prod(axis=1).sum()
    return float(1 - examples["tokens"].sum() / max(whole, 1))


def _relative(values: np.ndarray) -> float:
    return float(values.std() / values.mean()) if values.any() else 0.0


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _one_for_none(rate: np.ndarray) -> np.ndarray:
    return np.where(rate > 0, rate, 1)
