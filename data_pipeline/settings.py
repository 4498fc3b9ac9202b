"""What is wrong with a loader's own numbers, before any manifest is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.blocks import PIXELS
from data_pipeline.checks import real, share, whole
from data_pipeline.latents import Latents
from data_pipeline.manifest import Manifest
from data_pipeline.sizes import Native

LARGEST_BLOCK = 1 << 20
VERIFY = ("size", "sha256")
SIDES = ("height", "width")


def number_problems(data: Any, devices: int, microbatches: int) -> list[str]:
    """One sentence for each number of a `PackedVideo` that is not what it must be."""
    least = {"tokens": 1, "text_tokens": 2, "segments": 1, "rows": 1, "seed": 0, "block": 1}
    least |= {"threads": 1, "prefetch_mib": 1, "memory_mib": 0}
    found = [
        f"{name} is {getattr(data, name)!r}; it must be a whole number of at least {low}."
        for name, low in least.items()
        if not whole(getattr(data, name), low)
    ]
    if len(data.patch) != 3 or not all(whole(side) for side in data.patch):
        found.append(f"patch is {data.patch!r}; it must be three whole numbers of at least 1.")
    if not (real(data.pairs) and 0 < data.pairs <= 1):
        found.append(f"pairs is {data.pairs!r}; it must be above 0 and at most 1.")
    if not share(data.holdout):
        found.append(f"holdout is {data.holdout!r}; it must be at least 0 and below 1.")
    if not (real(data.max_bad) and 0 <= data.max_bad <= 1):
        found.append(f"max_bad is {data.max_bad!r}; it must be between 0 and 1.")
    if data.max_bad_examples is not None and not whole(data.max_bad_examples, 0):
        found.append(
            f"max_bad_examples is {data.max_bad_examples!r}; it must be a whole number of at "
            "least 0, or None."
        )
    if data.verify not in VERIFY:
        found.append(f"verify is {data.verify!r}; it must be one of {', '.join(VERIFY)}.")
    found += [
        f"the weight of source '{source.manifest}' is {source.weight!r}; it must be above 0."
        for source in data.sources
        if not (real(source.weight) and source.weight > 0)
    ]
    if found:
        return found
    if data.rows % (unit := devices * microbatches):
        low = data.rows // unit * unit
        near = f"{low} or {low + unit}" if low else str(unit)
        found.append(
            f"rows is {data.rows}, which does not divide by {devices} devices x "
            f"{microbatches} microbatches; take a multiple of {unit}, such as {near}."
        )
    if not data.rows <= data.block <= LARGEST_BLOCK:
        found.append(
            f"block is {data.block}; it must be between rows ({data.rows}) and {LARGEST_BLOCK}."
        )
    if (most := data.size.most) and any(a % b for a, b in zip(most, data.patch[1:], strict=True)):
        found.append(
            f"size crops to {most[0]} x {most[1]}, which patches of {data.patch[1]} x "
            f"{data.patch[2]} do not divide; take whole multiples."
        )
    if data.capacity.longest < 1:
        found.append(f"pairs is {data.pairs}, too little for a single token; raise it.")
    return found


def latent_problems(data: Any, manifests: Sequence[Manifest]) -> list[str]:
    """What cannot be asked of latents, which have one size and rate, one sentence each.

    Raises: DataError, a manifest does not say what its latents are.
    """
    held = [Latents.of(one) for one in manifests]
    contents = {PIXELS if one is None else one.content for one in held}
    if contents <= {PIXELS}:
        return []
    keys = {(one.key.encoder if one else "") for one in held}
    if len(contents) > 1 or len(keys) > 1:
        return ["sources hold latents of several encoders, or clips too; encode all of them alike."]
    found = []
    if not isinstance(data.size, Native):
        found.append("size is a law, but latents have the size they were made with; take Native.")
    if data.fps is not None:
        found.append(f"fps is {data.fps!r}, but latents have the rate they were made with.")
    if found:
        return found
    for one in manifests:
        cells = [one.column(name) // side for name, side in zip(SIDES, data.patch[1:], strict=True)]
        wrong = int(
            np.sum((cells[0] * cells[1] > data.capacity.longest) | (cells[0] * cells[1] < 1))
        )
        if wrong:
            found.append(
                f"{wrong} frames of latents in '{one.folder}' are smaller than a patch, or have "
                "more tokens than a row; encode them with the patch and tokens of this config."
            )
    return found
