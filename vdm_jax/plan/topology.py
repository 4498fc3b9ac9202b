"""A name such as `v5e:16x16` -> the devices of a machine that is not here, to compile for.

libtpu, the TPU compiler, needs no TPU. It must be told so before JAX starts: `prepare`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

from vdm_jax.config import UserError, suggestion
from vdm_jax.parallel.chips import CHIPS, Chip, chip_of

LOCAL = "local"
# What libtpu's own names are called.
PREFIXES = {"v4": "v4", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "v7x": "tpu7x"}
EXAMPLES = {
    "v4": "v4:4x4x8", "v5e": "v5e:16x16", "v5p": "v5p:4x4x8", "v6e": "v6e:16x16",
    "v7x": "v7x:4x4x4",
}  # fmt: skip
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Else it looks for a TPU's hosts, and complains.
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices, and the chip they are parts of; None where the table of chips lacks it."""

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None

    @property
    def chips(self) -> int:
        return len(self.devices) // (self.chip.devices if self.chip else 1)


def prepare() -> None:
    """Settings that libtpu and JAX read when they start: compile only, ask nobody for a TPU."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def topology(name: str) -> Topology:
    """The machine called `name`: CHIP:AxB or CHIP:AxBxC, in chips, or 'local'.

    Raises:
      UserError: a name that is none, a shape the chip does not come in, or no libtpu.
    """
    import jax

    if name == LOCAL:
        devices = tuple(jax.devices())
        return Topology(name, devices, chip_of(devices[0].device_kind))
    chip, shape = split(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "planning for a TPU needs its compiler: pip install -r requirements-tpu.txt "
            "(any Linux machine will do)."
        )
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(f"{PREFIXES[chip.name]}:{shape}", "tpu")
    except Exception as error:  # the compiler's own kind
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{chip.name} does not come as {shape} ({reason}); try {EXAMPLES[chip.name]}."
        ) from error
    return Topology(name, tuple(found.devices), chip)


def split(name: str) -> tuple[Chip, str]:
    """(chip, shape) of a name, before any compiler is asked.

    Raises: UserError.
    """
    kind, _, shape = name.partition(":")
    kind = {"tpu7x": "v7x", "v5litepod": "v5e"}.get(kind, kind)
    if kind not in CHIPS:
        raise UserError(
            f"there is no topology '{name}'.{suggestion(kind, [*CHIPS, LOCAL])} "
            f"Write {', '.join(EXAMPLES.values())} or {LOCAL}."
        )
    axes = CHIPS[kind].links
    if not re.fullmatch(r"x".join([r"[1-9]\d*"] * axes), shape):
        raise UserError(
            f"topology '{name}' needs the number of {kind} chips along {axes} axes, such as "
            f"{EXAMPLES[kind]}."
        )
    return CHIPS[kind], shape
