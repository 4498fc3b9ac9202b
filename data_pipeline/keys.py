"""Counter-based draws: a uniform number is a pure function of (seed, purpose, counter).

Integer arithmetic alone (splitmix64), so that an order drawn today is the same in every release
of numpy and on every machine; there is no state to save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def scramble(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, a bijection that looks random (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        x = np.asarray(values, np.uint64) + _STEP
        x = (x ^ (x >> np.uint64(30))) * _MIX[0]
        x = (x ^ (x >> np.uint64(27))) * _MIX[1]
        return x ^ (x >> np.uint64(31))


def words(seed: int, purpose: str, counter: np.ndarray) -> np.ndarray:
    """64 random bits per counter."""
    root = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    low, high = np.frombuffer(root[:16], "<u8").astype(np.uint64)
    with np.errstate(over="ignore"):
        return scramble(scramble(np.asarray(counter, np.uint64) + low) ^ high)


def uniform(seed: int, purpose: str, counter: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) per counter."""
    return (words(seed, purpose, counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def identity(name: str) -> tuple[int, int]:
    """The first and second 8 bytes of a name's SHA-256, as integers."""
    found = _hash(name)
    return int.from_bytes(found[:8], "big"), int.from_bytes(found[8:], "big")


def identities(names: Iterable[str]) -> np.ndarray:
    """(names, 2) uint64, `identity` of each."""
    found = np.frombuffer(b"".join(map(_hash, names)), ">u8")
    return found.astype(np.uint64).reshape(-1, 2)


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:16]
