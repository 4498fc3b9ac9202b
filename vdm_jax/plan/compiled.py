"""The real step through the real compiler: what it needs of a device's memory, and its HLO.

The HLO is read from the compiler's dump and not from the executable: on large meshes of some chips
an executable cannot print its asynchronous collectives, and a program that does not fit has none.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from vdm_jax.plan.hlo import Module, parse

DUMPED = "*after_optimizations.txt"
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device, by kind. `aliased` outputs take the place of donated arguments."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """Attributes:
    memory: None where the compiler gave up for want of it.
    wanted: bytes it said it would take then.
    module: the optimised HLO, None where it was not to be had.
    executable: what runs it.
    """

    memory: Memory | None
    wanted: int | None
    module: Module | None
    seconds: float
    executable: Any = None


def compile_step(lowered: Any, *, arguments: int, tpu: bool) -> Compiled:
    """Compile a `jax.stages.Lowered`.

    Args:
      arguments: bytes of its arguments on one device, to add to what a refusal names.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            executable = lowered.compile(compiler_options=options if tpu else None)
        except Exception as error:
            wanted = refusal(str(error), arguments)
            if wanted is None:
                raise
            return Compiled(
                memory=None, wanted=wanted, module=_dumped(folder),
                seconds=time.monotonic() - began,
            )  # fmt: skip
        module = _dumped(folder) if tpu else parse(executable.as_text())
    return Compiled(
        memory=memory_of(executable), wanted=None, module=module, executable=executable,
        seconds=time.monotonic() - began,
    )  # fmt: skip


def memory_of(executable: Any) -> Memory:
    found = executable.memory_analysis()
    return Memory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )


def refusal(message: str, arguments: int) -> int | None:
    """Bytes that a compiler which gave up says a device would need; None for another error."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    used = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    if used:
        return _bytes(*used.groups())
    temporaries = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)", message)
    return arguments + _bytes(*temporaries.groups()) if temporaries else None


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * UNITS[unit])


def _dumped(folder: str) -> Module | None:
    files = sorted(Path(folder).glob(DUMPED), key=lambda file: file.stat().st_size)
    return parse(files[-1].read_text()) if files else None
