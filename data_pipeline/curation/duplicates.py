"""Clips that show what another one shows: re-encoded, resized, or the same file under two names.

A clip's print is 512 bits, 64 of each of eight frames: which of the lowest 8 x 8 frequencies of the
frame are above their median (pHash, Zauner 2010). Prints that differ in few bits are one clip's.

To compare all with all would take a year for ten million clips. The bits are cut into 16 bands of
four bytes: two prints that differ in 31 bits or fewer differ in at most one bit of some band, and
so agree in three of its bytes. Only those that share three bytes of a band are compared, and none
within that distance is missed (multi-index hashing: Norouzi, Punjani, Fleet 2012).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import cv2
import numpy as np

from data_pipeline.curation.motion import grey
from data_pipeline.curation.stage import FINE, MARK, Found, Row, Spread

FRAMES, SIDE, LOW = 8, 32, 8
BANDS = 16  # of 32 bits
LIMIT = 2 * BANDS  # bits: as soon as so many differ, two may in each band
BYTES = [np.uint32(0xFF << shift) for shift in range(0, 32, 8)]  # of a band
FLAT = 4.0  # grey levels: the deviation below which a picture has nothing to compare


@dataclasses.dataclass(frozen=True, kw_only=True)
class Print:
    """`MARK`: the print; None where there is nothing in the pictures to compare."""

    sees: Spread
    finds: ClassVar[tuple[str, ...]] = (MARK,)

    def __call__(self, shown: np.ndarray, row: Row) -> Found:
        some = grey(shown)[np.linspace(0, len(shown) - 1, FRAMES).round().astype(int)]
        small = [cv2.resize(one, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for one in some]
        if np.median(np.std(small, axis=(1, 2))) < FLAT:
            return {MARK: None}
        low = np.stack([cv2.dct(one.astype(np.float32))[:LOW, :LOW].reshape(-1) for one in small])
        # The mean, the first of them, says how bright a picture is and not what it shows.
        bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
        return {MARK: np.packbits(bits).tobytes()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Of clips whose prints differ in up to `distance` bits of 512 the first by name is kept."""

    sees: Spread = FINE
    distance: int = 31

    @property
    def stage(self) -> Print:
        return Print(sees=self.sees)

    def of(self, names: Sequence[str], prints: Sequence[bytes | None]) -> Mapping[int, int]:
        """{clip that is left out: the clip, kept, that it repeats}, as places in `names`.

        No two clips that are kept are within `distance`, and each that is left out is within it of
        the one named.
        """
        order = sorted(
            (i for i, one in enumerate(prints) if one is not None), key=names.__getitem__
        )
        first: dict[bytes, int] = {}
        # A clip that is there a thousand times would be half a million pairs.
        alike = {i: of for i in order if (of := first.setdefault(prints[i] or b"", i)) != i}
        some = list(first.values())
        table = np.array([np.frombuffer(one, np.uint8) for one in first], np.uint8)
        near: dict[int, set[int]] = {}
        for one, other in pairs(table.reshape(-1, FRAMES * LOW), self.distance):
            near.setdefault(other, set()).add(one)
        out: dict[int, int] = {}
        for other in sorted(near):
            kept = [one for one in near[other] if some[one] not in out]
            if kept:
                out[some[other]] = some[min(kept)]
        return out | {i: out.get(of, of) for i, of in alike.items()}

    def problems(self) -> list[str]:
        if 0 <= self.distance < LIMIT:
            return []
        return [f"Duplicates.distance is {self.distance}; it must be from 0 to {LIMIT - 1} bits."]


def pairs(prints: np.ndarray, distance: int) -> Iterator[tuple[int, int]]:
    """All (i, j), i < j, of uint8 (n, 64) prints that differ in up to `distance` bits, some of them
    several times."""
    words = prints.view(np.uint64)
    for band, byte in itertools.product(prints.view(np.uint32).T, BYTES):
        shared = band & ~byte
        order = np.argsort(shared, kind="stable")
        same = shared[order]
        # Those that share it lie side by side: each is compared with the next, the one after...
        left = np.arange(len(order))
        for step in range(1, len(order)):
            left = left[left + step < len(order)]
            left = left[same[left] == same[left + step]]
            if not len(left):
                break
            one, other = order[left], order[left + step]
            # A quarter of the bits tells most of them apart.
            for part in (slice(2), slice(None)):
                differ = np.bitwise_count(words[one, part] ^ words[other, part])
                near = differ.sum(axis=1, dtype=np.int64) <= distance
                one, other = one[near], other[near]
            yield from zip(one.tolist(), other.tolist(), strict=True)
