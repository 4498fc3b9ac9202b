"""Arrays in files, against what numpy itself writes."""

import ast

import numpy as np
import pytest

from data_pipeline import arrays

RECORD = np.dtype([("row", "<i4"), ("size", "<i4", (3,)), ("weight", "<f8")])


@pytest.mark.parametrize(("dtype", "shape"), [("<i8", (5,)), ("<f4", (0, 3)), (RECORD, (2, 7))])
def test_what_is_stored_is_loaded_and_numpy_reads_it(tmp_path, dtype, shape):
    made = np.zeros(shape, dtype)
    made.view(np.uint8)[...] = np.arange(made.nbytes, dtype=np.uint8).reshape(
        made.view(np.uint8).shape
    )
    arrays.store(made, tmp_path / "a.npy")
    for found in (arrays.load(tmp_path / "a.npy", made.dtype, shape), np.load(tmp_path / "a.npy")):
        assert found.dtype == made.dtype
        assert found.tobytes() == made.tobytes()


@pytest.mark.parametrize("left", [0, 7, 60, 1015])
def test_what_was_cut_short_is_none(tmp_path, left):
    file = tmp_path / "a.npy"
    arrays.store(np.arange(111), file)
    file.write_bytes(file.read_bytes()[:left])
    assert arrays.load(file, np.dtype(int), (111,)) is None


@pytest.mark.parametrize(("dtype", "shape"), [("<i8", (4,)), ("<i4", (5,)), ("<i8", (5, 1))])
def test_another_type_or_shape_is_none(tmp_path, dtype, shape):
    arrays.store(np.arange(5), tmp_path / "a.npy")
    assert arrays.load(tmp_path / "a.npy", np.dtype(dtype), shape) is None


def test_no_file_is_none(tmp_path):
    assert arrays.load(tmp_path / "a.npy", np.dtype(int), (1,)) is None


def test_nothing_is_parsed(tmp_path, monkeypatch):
    """Threads that build syntax trees at once fail on Python before 3.11.9."""
    arrays.store(np.arange(5), tmp_path / "a.npy")
    monkeypatch.setattr(ast, "parse", None)
    assert arrays.load(tmp_path / "a.npy", np.dtype(int), (5,)).sum() == 10
