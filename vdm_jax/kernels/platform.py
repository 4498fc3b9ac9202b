"""The platform a program is being traced for, which need not be the one that traces it."""

from __future__ import annotations

import jax


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': of the ambient mesh's devices, and without a mesh JAX's default.

    A machine without a TPU compiles for one under a mesh of devices that are only described.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
