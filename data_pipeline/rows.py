"""One row: members in, packed arrays out. The numpy twin of `vdm_jax.batch`.

Per token (L): `patches` uint8 (L, P), or latents (`latents.py`); `segment` 1..E contiguous and
rising, 0 padding; `position` (L, 3) place in the grid (t, y, x); `raster` index in the grid; and
where patches span time `cells` (L, P): false on cells that only pad it. Per text token (Lt):
`text`, `text_segment`, `text_position`, and `text_features` (Lt, width) of a frozen encoder, where
there is one (`texts.py`). Per segment (E): `id` (E, 2), `visit`, `ordinal`, `valid`,
`grid` (E, 3), `fps`, `source`. Tokens are in raster order, t-major; a flattened patch is
(pt, ph, pw, c), c fastest.

Time that does not divide is padded at the FRONT by repeating the first frame: a causal codec's
first frame stands alone.

Where tokens are dropped, those that stay keep their order, position and raster index; `grid` is
that of the whole example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipeline import keys
from data_pipeline.blocks import PIXELS, Capacity

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One example of a row; `video` (frames, height, width, numbers of a cell), None where it is
    bad; `stay` the raster indices of its tokens, rising, None where all are there; `features`
    (words, width) of its first words, None where there are none."""

    video: np.ndarray | None
    frames: int
    grid: tuple[int, int, int]
    text: Sequence[int]
    id: tuple[int, int]
    visit: int = 0
    ordinal: int = 0
    fps: float = 0.0
    source: int = 0
    stay: np.ndarray | None = None
    features: np.ndarray | None = None


def staying(
    seed: int, identity: int, visit: int, grid: tuple[int, int, int], tokens: int
) -> np.ndarray | None:
    """Which `tokens` of a grid stay, every choice as likely: a pure function of the arguments, so
    that it does not depend on a row or its neighbours. None: all of them."""
    whole = int(np.prod(grid))
    if tokens >= whole:
        return None
    mixed = keys.words(seed, f"stay/{identity}/{visit}", np.arange(whole))
    return np.sort(np.argsort(mixed, kind="stable")[:tokens])


def patchify(video: np.ndarray, patch: tuple[int, int, int]) -> np.ndarray:
    """(t, h, w, c) -> (tokens, pt ph pw c); extents must divide by the patch."""
    t, h, w, c = video.shape
    pt, ph, pw = patch
    cut = video.reshape(t // pt, pt, h // ph, ph, w // pw, pw, c)
    return cut.transpose(0, 2, 4, 1, 3, 5, 6).reshape(-1, pt * ph * pw * c)


def unpatchify(
    tokens: np.ndarray, grid: tuple[int, int, int], patch: tuple[int, int, int]
) -> np.ndarray:
    """The inverse of `patchify`: (tokens, d) -> (t, h, w, c)."""
    (t, h, w), (pt, ph, pw) = grid, patch
    whole = tokens.reshape(t, h, w, pt, ph, pw, -1).transpose(0, 3, 1, 4, 2, 5, 6)
    return whole.reshape(t * pt, h * ph, w * pw, -1)


def blank(capacity: Capacity) -> Arrays:
    """A row of padding alone, which is legal."""
    n, l, e = capacity.tokens, capacity.text_tokens, capacity.segments
    arrays: Arrays = {
        capacity.content.name: np.zeros((n, capacity.features), capacity.content.dtype),
        "segment": np.zeros(n, np.int32),
        "position": np.zeros((n, 3), np.int32),
        "raster": np.zeros(n, np.int32),
        "text": np.zeros(l, np.int32),
        "text_segment": np.zeros(l, np.int32),
        "text_position": np.zeros(l, np.int32),
        "id": np.zeros((e, 2), np.uint32),
        "visit": np.zeros(e, np.int32),
        "ordinal": np.zeros(e, np.int32),
        "valid": np.zeros(e, bool),
        "grid": np.zeros((e, 3), np.int32),
        "fps": np.zeros(e, np.float32),
        "source": np.zeros(e, np.int32),
    }
    if capacity.patch[0] > 1:
        arrays["cells"] = np.zeros((n, capacity.features), bool)
    if capacity.text_width:
        arrays["text_features"] = np.zeros((l, capacity.text_width), np.float16)
    return arrays


def pack(members: Sequence[Member], capacity: Capacity) -> Arrays:
    """Members in their order, as one row.

    Raises:
      ValueError: they do not fit, or a video is not of its grid.
    """
    out = blank(capacity)
    start = word = 0
    for slot, member in enumerate(members):
        stay = np.arange(np.prod(member.grid)) if member.stay is None else member.stay
        stop = start + len(stay)
        last = word + len(member.text)
        if stop > capacity.tokens or last >= capacity.text_tokens or slot >= capacity.segments:
            raise ValueError(f"member {slot} does not fit into the row")
        here, there = slice(start, stop), slice(word, last)
        out["segment"][here] = slot + 1
        out["position"][here] = np.stack(np.unravel_index(stay, member.grid), axis=1)
        out["raster"][here] = stay
        padding = member.grid[0] * capacity.patch[0] - member.frames
        if member.video is not None:
            front = np.repeat(member.video[:1], padding, axis=0)
            patches = patchify(np.concatenate([front, member.video]), capacity.patch)
            out[capacity.content.name][here] = patches if member.stay is None else patches[stay]
        if "cells" in out:
            out["cells"][here] = _cells(padding, member.grid, capacity)[stay]
        out["text"][there] = member.text
        out["text_segment"][there] = slot + 1
        out["text_position"][there] = np.arange(last - word)
        if member.features is not None:
            some = member.features[: last - word]
            out["text_features"][word : word + len(some)] = some
        for name in ("id", "visit", "ordinal", "grid", "fps", "source"):
            out[name][slot] = getattr(member, name)
        out["valid"][slot] = member.video is not None
        start, word = stop, last
    return out


def _cells(padding: int, grid: tuple[int, int, int], capacity: Capacity) -> np.ndarray:
    """bool (tokens, P): false on the first `padding` frames of the first layer."""
    pt = capacity.patch[0]
    cells = np.ones((int(np.prod(grid)), pt, capacity.features // pt), bool)
    cells[: grid[1] * grid[2], :padding] = False
    return cells.reshape(len(cells), -1)


def unpack(row: Arrays, patch: tuple[int, int, int], name: str = PIXELS.name) -> list[np.ndarray]:
    """The videos, or what else is called `name`, of a row's valid segments, in order; frames that
    only pad time are cut off.

    Dropped tokens come back as zeros. Padding is known by the first tokens that stay: where a
    whole layer was dropped, it stays, black.
    """
    videos = []
    for slot in np.flatnonzero(row["valid"]):
        inside = row["segment"] == slot + 1
        t, h, w = (int(extent) for extent in row["grid"][slot])
        grid = t, h, w
        tokens = np.zeros((t * h * w, row[name].shape[1]), row[name].dtype)
        tokens[row["raster"][inside]] = row[name][inside]
        video = unpatchify(tokens, grid, patch)
        if "cells" in row:
            cells = np.ones(tokens.shape, bool)
            cells[row["raster"][inside]] = row["cells"][inside]
            video = video[unpatchify(cells, grid, patch).all(axis=(1, 2, 3))]
        videos.append(video)
    return videos
