"""Arrays in files: written once, atomically, and mapped into memory from then on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipeline import storage


def store(array: np.ndarray, file: Path) -> None:
    """Write a file that appears only when it is whole. Raises: OSError."""
    with storage.whole(str(file)) as out:
        np.save(out, array)


def load(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array of a file, mapped; None where there is none, or none of this type and shape, as
    when a full disk cut it short."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == dtype and found.shape == shape else None
