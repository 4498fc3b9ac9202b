"""`vdm doctor`: versions, devices and disk, one sentence for each thing that is wrong."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from vdm_jax.config import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "av", "numpy")
NEEDED_GIB = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--need", metavar="cpu|gpu|tpu", help="a problem unless JAX runs on it")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    if rest:
        raise UserError(f"unknown argument '{rest[0]}'; see vdm doctor --help.")
    if args.need not in (None, "cpu", "gpu", "tpu"):
        raise UserError(f"--need is '{args.need}'; it must be cpu, gpu or tpu.")
    found = examine(args.need)
    if args.json:
        print(json.dumps(found))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(show_header=False, box=None)
        for name, value in found.items():
            if name != "problems":
                table.add_row(name, json.dumps(value) if isinstance(value, dict) else str(value))
        console = Console()
        console.print(table)
        for problem in found["problems"] or ["no problem found."]:
            console.print(f"- {problem}")
    return 70 if found["problems"] else 0


def examine(need: str | None = None) -> dict[str, Any]:
    """What there is, and `problems`: one sentence each."""
    problems: list[str] = []
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            problems.append(f"{package} is not installed; run pip install -r requirements.txt.")
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    if free < NEEDED_GIB:
        problems.append(
            f"{free:.1f} GiB of disk are free; checkpoints want {NEEDED_GIB:g} or more."
        )
    devices = _devices(problems, need)
    return {
        "versions": versions,
        "devices": devices,
        "cores": os.cpu_count(),
        "disk_free_gib": round(free, 1),
        "problems": problems,
    }


def _devices(problems: list[str], need: str | None) -> dict[str, int]:
    if any("jax" in line for line in problems):
        return {}
    import jax

    try:
        found = jax.devices()
    except RuntimeError as error:
        problems.append(f"JAX finds no device: {str(error).splitlines()[0]}")
        return {}
    kinds: dict[str, int] = {}
    for device in found:
        kinds[device.device_kind] = kinds.get(device.device_kind, 0) + 1
    if need and jax.default_backend() != need:
        problems.append(f"JAX runs on the {jax.default_backend()}, not on a {need}.")
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        problems.append(
            "there is an NVIDIA driver but JAX runs on the CPU; install requirements-gpu.txt."
        )
    return kinds
