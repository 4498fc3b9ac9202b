"""The device mesh: four named axes, always all of them, in this order.

    data    rows of the batch, parameters copied         (the slowest network lies here)
    fsdp    rows of the batch, parameters divided
    seq     tokens of a row, or its frames
    tensor  heads and hidden units                       (the fastest network lies here)

Axes have type `Auto`: the compiler places collectives, and `with_sharding_constraint` constrains
(on explicit axes it would only assert, and `jax.make_mesh` makes explicit ones by default). Enter
a mesh with `jax.set_mesh`; under the older `with mesh:` Flax's constraints silently do nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vdm_jax.config import UserError, suggestion

AXES = ("data", "fsdp", "seq", "tensor")


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices (or those given); axes not named have size 1, one may be -1.

    Where devices belong to several slices joined by a slower network, axis `data` crosses it.

    Raises:
      UserError: an unknown axis, a size that is no size, or sizes that do not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = sizes_of(shape, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        if sizes[0] % slices:
            raise UserError(
                f"mesh axis data is {sizes[0]}; it must be a multiple of the {slices} slices, "
                "which are joined along it."
            )
        inner = (sizes[0] // slices, *sizes[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, (slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(np.asarray(grid), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sizes_of(shape: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """The sizes of `AXES` for so many devices."""
    for name, size in shape.items():
        if name not in AXES:
            raise UserError(f"mesh has no axis '{name}'.{suggestion(name, AXES)}")
        if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
            raise UserError(f"mesh axis {name} is {size!r}; it must be at least 1, or -1.")
    sizes = [shape.get(name, 1) for name in AXES]
    if sizes.count(-1) > 1:
        raise UserError("mesh has more than one axis of size -1; only one can take the rest.")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) != devices:
        asked = ", ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
        legal = ", ".join(str(n) for n in range(1, devices + 1) if devices % n == 0)
        raise UserError(
            f"mesh ({asked}) does not fit {devices} device{'s' * (devices > 1)}: the product "
            f"must be their number, so each size is one of {legal}; set one axis to -1 to take "
            "the rest."
        )
    return tuple(sizes)
