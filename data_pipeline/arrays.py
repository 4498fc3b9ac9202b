"""Arrays in files: written once, atomically, and mapped into memory from then on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from data_pipeline import storage


def store(array: np.ndarray, file: Path) -> None:
    """Write a file that appears only when it is whole. Raises: OSError."""
    with storage.whole(str(file)) as out:
        np.save(out, array)


def load(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array of a file, mapped; None where there is none, or none of this type and shape, as
    when a full disk cut it short.

    What the file must begin with is known and so compared, not parsed: `np.load` builds a syntax
    tree, which threads of Python before 3.11.9 cannot do at once (CPython issue 106905).
    """
    header = _header(dtype, shape)
    try:
        with file.open("rb") as opened:
            if opened.read(len(header)) != header:
                return None
        return np.memmap(file, dtype, mode="r", offset=len(header), shape=shape)
    except (OSError, ValueError):
        return None


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """What `np.save` writes before the values of a C-ordered array."""
    out = io.BytesIO()
    described = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        out, {"descr": described, "fortran_order": False, "shape": shape}
    )
    return out.getvalue()
