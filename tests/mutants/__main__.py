"""Apply each mutant to a copy of the tree and require that its test fails there.

    python -m tests.mutants [NAME ...]

First every named test must pass on the unbroken tree, or its failing would prove nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from rich.console import Console
from rich.progress import track

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDERS = ("vdm_jax", "data_pipeline", "experiments", "tests")


def main(names: list[str]) -> int:
    console = Console(stderr=True)
    chosen = [p for p in sorted(HERE.glob("*.toml")) if not names or p.stem in names]
    mutants = {path.stem: tomllib.loads(path.read_text()) for path in chosen}
    with tempfile.TemporaryDirectory() as copy:
        tree = Path(copy)
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, tree / folder)
        shutil.copy(ROOT / "pyproject.toml", tree)
        tests = sorted({mutant["test"] for mutant in mutants.values()})
        unbroken = run(tree, tests, "-n", "auto", "--dist", "loadfile")
        if unbroken.returncode:
            console.print(unbroken.stdout, markup=False, highlight=False)
            console.print("the named tests do not pass on the unbroken tree")
            return 1
        survivors = []
        for name, mutant in track(mutants.items(), "mutants", console=console):
            file = tree / mutant["file"]
            whole = file.read_text()
            if whole.count(mutant["old"]) != 1:
                survivors.append(f"{name}: its text occurs {whole.count(mutant['old'])} times")
                continue
            file.write_text(whole.replace(mutant["old"], mutant["new"]))
            if run(tree, [mutant["test"]], "-x").returncode == 0:
                survivors.append(f"{name}: {mutant['why']}")
            file.write_text(whole)
    for line in survivors:
        console.print(f"survived: {line}")
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants caught")
    return 1 if survivors else 0


def run(tree: Path, tests: list[str], *how: str) -> subprocess.CompletedProcess[str]:
    # A fresh bytecode cache each time: two edits within a second would share a time stamp.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", *how, *tests]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, env=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
