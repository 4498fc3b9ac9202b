"""Which mesh, remat and rows per device: every choice compiled, ranked by useful tokens a second.

    mesh    data x fsdp, and with the rules for it tensor or seq, in powers of two
    remat   the names of `nets/remat.py`
    rows    of a microbatch on each device; the rows of a step stay as the config has them

Each choice is compiled in a process of its own: a compiler that dies takes one choice with it.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from vdm_jax.nets.remat import REMAT
from vdm_jax.train.run import Run

MOST = 24  # choices; each costs a compilation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Overrides of a config that say how a run lies on a machine."""

    mesh: tuple[tuple[str, int], ...]
    remat: str
    microbatches: int

    def overrides(self) -> list[str]:
        axes = [f"--config.mesh.{axis}={size}" for axis, size in self.mesh]
        remat = f"--config.stage.denoiser.backbone.remat={self.remat}"
        return [*axes, remat, f"--config.microbatches={self.microbatches}"]

    def __str__(self) -> str:
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.mesh if size > 1) or "one device"
        return f"{mesh}, remat {self.remat}, {self.microbatches} microbatch(es)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A choice and its plan's JSON, or why there is none."""

    choice: Choice
    plan: dict[str, Any] | None
    why: str = ""


def choices(run: Run, devices: int) -> list[Choice]:
    """Those that divide, most promising first: little recomputed, few devices to gather from."""
    found = []
    for mesh in _meshes(run.rules, devices):
        sizes = dict(mesh)
        row_devices = sizes["data"] * sizes["fsdp"]
        for microbatches in _divisors(run.data.rows // row_devices, run.data.rows, row_devices):
            for remat in REMAT:
                found.append(Choice(mesh=mesh, remat=remat, microbatches=microbatches))
    order = list(REMAT)
    found.sort(key=lambda c: (c.microbatches, abs(dict(c.mesh)["fsdp"] - 64), order.index(c.remat)))
    return found


def _meshes(rules: str, devices: int) -> Iterator[tuple[tuple[str, int], ...]]:
    inner = [1]
    axis = {"fsdp_tp": "tensor", "fsdp_seq": "seq", "all": "seq"}.get(rules)
    if axis:
        inner = [size for size in (1, 2, 4, 8, 16) if devices % size == 0]
    for size in inner:
        rest = devices // size
        for fsdp in [1] if rules == "dp" else [2**k for k in range(rest.bit_length())]:
            if rest % fsdp == 0 and (rules == "dp" or fsdp >= min(8, rest)):
                sizes = {"data": rest // fsdp, "fsdp": fsdp, "seq": 1, "tensor": 1}
                yield tuple((sizes | ({axis: size} if axis else {})).items())


def _divisors(most: int, rows: int, row_devices: int) -> list[int]:
    if most < 1 or rows % row_devices:
        return []
    return [n for n in range(1, most + 1) if most % n == 0]


def search(candidates: Iterable[Choice], compile_one: Callable[[Choice], Found]) -> list[Found]:
    """All candidates, best first: those that fit by predicted tokens a second, then the others by
    how little they lack, then those without a plan."""
    found = [compile_one(choice) for choice in candidates]
    return sorted(found, key=_rank)


def _rank(found: Found) -> tuple[int, float]:
    if found.plan is None:
        return 2, 0.0
    if not found.plan["fits"]:
        return 1, float(found.plan["hbm_bytes"])
    return 0, -float(found.plan["predicted_tokens_per_second"] or 0)


def in_process(words: Sequence[str]) -> Callable[[Choice], Found]:
    """Compiles a choice by `vdm plan --json WORDS OVERRIDES`."""

    def compile_one(choice: Choice) -> Found:
        command = [sys.executable, "-m", "vdm_jax", "plan", "--json", *words, *choice.overrides()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode in (0, 1) and done.stdout.strip():
            return Found(choice=choice, plan=json.loads(done.stdout))
        said = done.stderr.strip().splitlines()
        return Found(choice=choice, plan=None, why=said[-1] if said else "the compiler died")

    return compile_one
