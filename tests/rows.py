"""Loader arrays made by hand: rows of examples given as (id, grid, text), patches by their id."""

from __future__ import annotations

import numpy as np

FEATURES = 12


def example(identity: int, grid: tuple[int, int, int], text: tuple[int, ...]) -> dict:
    pixels = np.random.default_rng(identity).integers(0, 256, (int(np.prod(grid)), FEATURES))
    return {"id": identity, "grid": grid, "text": text, "patches": pixels.astype(np.uint8)}


def pack(rows: list[list[dict]], *, tokens: int, text: int, segments: int) -> dict[str, np.ndarray]:
    """The arrays of one microbatch, as `data_pipeline` yields them."""
    b = len(rows)
    out = {
        "patches": np.zeros((b, tokens, FEATURES), np.uint8),
        "segment": np.zeros((b, tokens), np.int32),
        "position": np.zeros((b, tokens, 3), np.int32),
        "raster": np.zeros((b, tokens), np.int32),
        "text": np.zeros((b, text), np.int32),
        "text_segment": np.zeros((b, text), np.int32),
        "text_position": np.zeros((b, text), np.int32),
        "id": np.zeros((b, segments, 2), np.uint32),
        "visit": np.zeros((b, segments), np.int32),
        "ordinal": np.zeros((b, segments), np.int32),
        "valid": np.zeros((b, segments), bool),
        "grid": np.zeros((b, segments, 3), np.int32),
        "fps": np.zeros((b, segments), np.float32),
        "source": np.zeros((b, segments), np.int32),
    }
    for row, members in enumerate(rows):
        at = words = 0
        for slot, member in enumerate(members):
            n, l = len(member["patches"]), len(member["text"])
            here, there = (row, slice(at, at + n)), (row, slice(words, words + l))
            out["patches"][here] = member["patches"]
            out["segment"][here] = slot + 1
            out["position"][here] = np.indices(member["grid"]).reshape(3, -1).T
            out["raster"][here] = np.arange(n)
            out["text"][there] = member["text"]
            out["text_segment"][there] = slot + 1
            out["text_position"][there] = np.arange(l)
            out["id"][row, slot] = (0, member["id"])
            out["ordinal"][row, slot] = member["id"]
            out["valid"][row, slot] = True
            out["grid"][row, slot] = member["grid"]
            out["fps"][row, slot] = 8 if member["grid"][0] > 1 else 0
            at, words = at + n, words + l
    return out


def steps(*microbatches: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With the leading axis of microbatches."""
    return {name: np.stack([m[name] for m in microbatches]) for name in microbatches[0]}
