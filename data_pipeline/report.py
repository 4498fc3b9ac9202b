"""What a plan would do, before anything is decoded: how full, how even, what was cut."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipeline import sizes
from data_pipeline.balance import balance, straggler
from data_pipeline.plan import TEXT_CUT, Capacity
from data_pipeline.serve import Steps

CHANGES = {
    "trimmed": sizes.TRIMMED,
    "shrunk": sizes.SHRUNK,
    "dropped": sizes.DROPPED,
    "text_cut": TEXT_CUT,
}


def summarise(steps: Steps, capacity: Capacity, count: int, devices: int) -> dict[str, Any]:
    """The first `count` steps, and the blocks they come from.

    Returns: `steps`, `fill` and `text_fill` (share of a row's tokens in use), `tokens_per_step`
    (useful ones, mean), `examples_per_step`, `examples_per_row` and `examples_per_row_max`,
    `images` (share of examples), `straggler` (work of the slowest device over the mean one's, mean
    over steps) and `straggler_unbalanced`, `empty_rows` (share), `changed` {reason: examples}.
    """
    read = [steps.examples(step) for step in range(count)]
    members = [len(row) for examples, _ in read for row in examples]
    every = np.concatenate([row for examples, _ in read for row in examples])
    places = len(members)
    in_order = np.arange(steps.rows).reshape(devices, -1)
    last, _ = steps.locate(count - 1)
    changed = np.concatenate([steps.plans.block(k).examples["changed"] for k in range(last + 1)])
    return {
        "steps": count,
        "fill": float(every["tokens"].sum() / (places * capacity.tokens)),
        "text_fill": float(every["words"].sum() / (places * capacity.text_tokens)),
        "tokens_per_step": float(every["tokens"].sum() / count),
        "examples_per_step": len(every) / count,
        "examples_per_row": len(every) / places,
        "examples_per_row_max": max(members),
        "images": float(np.mean(every["rate"] == 0)),
        "straggler": float(np.mean([straggler(c, balance(c, devices)) for _, c in read])),
        "straggler_unbalanced": float(np.mean([straggler(c, in_order) for _, c in read])),
        "empty_rows": members.count(0) / places,
        "changed": {name: int((changed & bit > 0).sum()) for name, bit in CHANGES.items()},
    }
