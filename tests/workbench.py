"""A small real data set, a run trained on it, and `vdm` as a process: shared by several tests."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from vdm_jax.__main__ import main

ROOT = Path(__file__).parents[1]
SMOKE = "--config=experiments/demo.py:smoke"


def environment(**extra: str) -> dict[str, str]:
    """One CPU device, whatever the tests themselves run on."""
    one = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return os.environ | one | {"PYTHONPATH": str(ROOT)} | extra


def call(*words: object, module: str = "vdm_jax") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)


def here(*words: object) -> subprocess.CompletedProcess[str]:
    """`vdm` in this process: what is refused before anything begins needs none of its own."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:  # of argparse
            code = end.code
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def vdm(*words: object) -> subprocess.CompletedProcess[str]:
    """The command, which must succeed."""
    done = call(*words)
    assert done.returncode == 0, done.stderr
    return done


def make_data(folder: Path, clips: int = 40, holdout: int | None = None) -> Path:
    """Generated clips and their manifest; returns the manifest."""
    without = () if holdout is None else ("--holdout", holdout)
    for words in (
        ("generate", folder / "clips", "--clips", clips, "--seed", 0, *without),
        ("index", folder / "clips", "--out", folder / "manifest"),
    ):
        done = call(*words, module="data_pipeline")
        assert done.returncode == 0, done.stderr
    return folder / "manifest"


def train(workdir: Path, manifest: Path, *more: str) -> tuple[str, ...]:
    """The words of a smoke run."""
    return ("train", SMOKE, f"--workdir={workdir}", f"--config.knobs.manifest={manifest}", *more)


def digest(workdir: Path) -> dict[str, object]:
    return json.loads(vdm("digest", workdir, "--json").stdout)


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder that the first of pytest's workers to ask for it makes, and the others share."""
    made = folder.with_suffix(".made")
    with FileLock(folder.with_suffix(".lock")):
        if not made.exists():
            make(folder)
            made.touch()
    return folder
