"""The data card: what a set of clips consists of, as surveys of data sets tell it.

Everything is found in Arrow, column by column: a set of ten million clips makes no Python objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MOST = 8  # resolutions, labels and splits that are named
QUANTILES = (0.1, 0.5, 0.9)


def card(tables: Sequence[pa.Table]) -> dict[str, Any]:
    """Of all tables together.

    Returns: `clips`, of which `images`; `files`; `sentences` and their mean number of `words`;
    `hours`, mean `seconds` and median `fps` of the films; `resolutions`, `labels` and `splits`
    {name: clips}, the most frequent ones, and how many `categories` (labels) there are; `scores`
    {name: scored (share of clips), mean, p10, p50, p90}, of those that were measured.
    """
    columns = [name for name in tables[0].column_names if name not in ("sha256", "licence")]
    table = pa.concat_tables([one.select(columns) for one in tables])
    film = pc.greater(table["fps_num"], 0)
    films = table.filter(film)
    seconds = pc.subtract(films["end_s"], films["start_s"])
    words = np.concatenate([np.zeros(0, int), *(_words(one) for one in table["captions"].chunks)])
    fps = films["fps_num"].to_numpy() / films["fps_den"].to_numpy()
    sides = zip(table["width"].chunks, table["height"].chunks, strict=True)
    shape = pa.chunked_array(
        [
            pc.binary_join_element_wise(*(side.cast(pa.string()) for side in one), "x")
            for one in sides
        ],
        pa.string(),
    )
    # What is left of a sidecar is kept as a label, too: an object of JSON, and no category.
    labels = {name: n for name, n in _counts(table["label"]).items() if not name.startswith("{")}
    return {
        "clips": len(table),
        "images": len(table) - len(films),
        "files": sum(len(pc.unique(one["uri"])) for one in tables),  # named from its own root each
        "sentences": len(words),
        "words": _mean(words),
        "hours": float(pc.sum(seconds).as_py() or 0) / 3600,
        "seconds": _mean(seconds.to_numpy()),
        "fps": float(np.median(fps)) if len(fps) else 0.0,
        "resolutions": _most(_counts(shape)),
        "categories": len(labels),
        "labels": _most(labels),
        "splits": _most(_counts(table["split"])),
        "scores": scores(table),
    }


def scores(table: pa.Table) -> dict[str, dict[str, float]]:
    """Each score that some clip has."""
    found = {}
    for name in [field.name for field in table.schema.field("scores").type]:
        values = pc.struct_field(table["scores"], name).drop_null().to_numpy()
        values = values[np.isfinite(values)].astype(np.float64)
        if len(values):
            quantiles = np.quantile(values, QUANTILES)
            parts = {f"p{100 * q:.0f}": float(v) for q, v in zip(QUANTILES, quantiles, strict=True)}
            found[name] = {"scored": len(values) / len(table), "mean": _mean(values), **parts}
    return found


def _words(captions: pa.ListArray) -> np.ndarray:
    """Of each caption of each clip."""
    flat = pc.fill_null(captions.flatten(), "")
    return pc.count_substring_regex(flat, r"\S+").to_numpy(zero_copy_only=False)


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """How many clips say what, the most frequent first; nothing is nothing."""
    values, counts = column.value_counts().flatten()
    pairs = zip(values.to_pylist(), counts.to_pylist(), strict=True)
    return dict(sorted(((v, n) for v, n in pairs if v), key=lambda pair: (-pair[1], pair[0])))


def _most(counts: dict[str, int]) -> dict[str, int]:
    return dict(list(counts.items())[:MOST])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
