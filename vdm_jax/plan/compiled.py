"""The real step through the real compiler: what it needs of a device's memory, and its HLO.

The HLO is read from the compiler's dump and not from the executable: on large meshes of some chips
an executable cannot print its asynchronous collectives, and a program that does not fit has none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vdm_jax.config import UserError, suggestion
from vdm_jax.plan.hlo import Module, parse

# Options of the TPU's compiler. `low` fuses less and schedules quickly: of the flagship on
# v5e:16x16 it took a quarter of the time, and said 5 % less memory and 23 % more traffic of it.
EFFORT: dict[str, dict[str, Any]] = {"full": {}, "low": {"xla_optimization_level": "EFFORT_O0"}}
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


def compile_step(
    lowered: Any,
    *,
    arguments: int,
    tpu: bool,
    effort: str = "full",
    say: Callable[[str], None] = lambda line: None,
) -> Compiled:
    """Compile a `jax.stages.Lowered`.

    Args:
      arguments: bytes of its arguments on one device, to add to what a refusal names.
      effort: a name of `EFFORT`; the CPU's compiler knows one only.
      say: told how far the TPU's compiler has come.

    Raises:
      UserError: no such effort.
    """
    began, chosen = time.monotonic(), options_of(effort)
    with tempfile.TemporaryDirectory() as folder:
        options = chosen | {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            with _watched(folder, say):
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


def options_of(effort: str) -> dict[str, Any]:
    """Raises: UserError, no such effort."""
    if effort not in EFFORT:
        raise UserError(f"there is no --effort '{effort}'.{suggestion(effort, EFFORT)}")
    return EFFORT[effort]


@contextlib.contextmanager
def _watched(folder: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say so when the optimised HLO has been dumped: most of the time is still to come."""
    began, ended = time.monotonic(), threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            if any(Path(folder).glob(DUMPED)):
                passed = time.monotonic() - began
                return say(f"optimised after {passed:.0f} s; generating code takes the longest")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


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
