"""Meshes have four named axes, fit the devices, and keep slices apart."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from vdm_jax.config import UserError
from vdm_jax.parallel.mesh import AXES, make_mesh
from vdm_jax.parallel.place import row_share


@pytest.mark.parametrize(
    "shape, sizes",
    [
        ({}, None),
        ({"data": -1}, (8, 1, 1, 1)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1, 1)),
        ({"tensor": 2, "data": 2, "seq": 2, "fsdp": 1}, (2, 1, 2, 2)),
        ({"data": 8, "tensor": -1}, (8, 1, 1, 1)),
    ],
)
def test_sizes(shape, sizes):
    if sizes is None:
        assert dict(make_mesh(shape, jax.devices()[:1]).shape) == dict.fromkeys(AXES, 1)
        return
    mesh = make_mesh(shape)
    assert mesh.axis_names == ("data", "fsdp", "seq", "tensor")
    assert mesh.devices.shape == sizes
    assert len(set(mesh.devices.flat)) == 8
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    "shape, words",
    [
        ({"data": 3}, "does not fit 8 devices"),
        ({"data": -1, "fsdp": 3}, "does not fit 8 devices"),
        ({"data": -1, "fsdp": -1}, "more than one axis of size -1"),
        ({"data": 0}, "data is 0"),
        ({"data": 16}, "does not fit 8 devices"),
        ({"date": 8}, "Did you mean 'data'"),
        ({"data": 2.0}, "data is 2.0"),
        ({"data": True}, "data is True"),
    ],
)
def test_mistakes_are_said(shape, words):
    with pytest.raises(UserError, match=words):
        make_mesh(shape)


class Chip:
    """As much of a TPU core as the making of a mesh looks at."""

    platform, device_kind, core_on_chip = "cpu", "cpu", 0

    def __init__(self, number, slice_index, process_index=0):
        self.id, self.slice_index, self.process_index = number, slice_index, process_index

    def __repr__(self):
        return f"chip {self.id} of slice {self.slice_index}"


def test_data_crosses_slices_and_nothing_else_does():
    chips = [Chip(n, n % 2) for n in range(8)]
    mesh = make_mesh({"data": 2, "fsdp": 4}, chips)
    of = np.vectorize(lambda chip: chip.slice_index)(mesh.devices).reshape(2, 4)
    assert (of == of[:, :1]).all() and of[0, 0] != of[1, 0]
    mesh = make_mesh({"data": 4, "tensor": 2}, chips)
    of = np.vectorize(lambda chip: chip.slice_index)(mesh.devices).reshape(4, 2)
    assert (of == of[:, :1]).all() and sorted(of[:, 0]) == [0, 0, 1, 1]
    with pytest.raises(UserError, match="multiple of the 2 slices"):
        make_mesh({"fsdp": 8}, chips)


@pytest.mark.parametrize(
    "shape, processes, shares",
    [
        ({"data": 8}, 4, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ({"data": 2, "fsdp": 4}, 2, [(0, 2), (1, 2)]),
        # A row over all processes, or over two of four: they feed the same.
        ({"seq": 8}, 4, [(0, 1)] * 4),
        ({"data": 2, "tensor": 4}, 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ({"data": 4, "tensor": 2}, 2, [(0, 2), (1, 2)]),
    ],
)
def test_which_rows_a_process_feeds(shape, processes, shares):
    chips = [Chip(n, 0, n * processes // 8) for n in range(8)]
    mesh = make_mesh(shape, chips)
    assert [row_share(mesh, process) for process in range(processes)] == shares


def test_processes_that_share_a_part_of_their_rows_are_refused():
    chips = [Chip(n, 0, n // 4) for n in range(12)]
    mesh = make_mesh({"data": 2, "tensor": 6}, chips)
    with pytest.raises(UserError, match="unevenly over 3 processes"):
        row_share(mesh, 0)
