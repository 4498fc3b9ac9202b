"""Law 10: imports obey the layers, files and functions stay small, the twins agree to the bit."""

import ast
import tomllib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
LAYERS = (
    {"types", "axes", "config"},
    {"batch", "cond", "kernels"},
    {"diffusion", "nets", "parallel"},
    {"signals", "codecs", "texts", "images", "denoiser"},
    {"objectives", "stage", "links", "image_prompt", "windows", "requests", "cascade"},
    {"train", "evals", "interop", "pipeline", "gallery", "features", "captions", "compiled"}
    | {"plan"},
    {"cli", "__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
BLIND = LAYERS[2]
SOURCES = sorted(
    path
    for folder in ("vdm_jax", "data_pipeline", "experiments", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def imported(path: Path) -> list[str]:
    """Every module a file imports, `from package import name` as package.name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def breaches(path: Path) -> list[str]:
    parts = path.relative_to(ROOT).parts
    found = []
    mine = parts[1].removesuffix(".py") if len(parts) > 1 else ""
    for module in imported(path):
        target = module.split(".")
        if parts[0] in ("vdm_jax", "data_pipeline") and target[0] in ("experiments", "tests"):
            found.append(module)
        if parts[0] == "data_pipeline" and target[0] in ("jax", "flax", "optax", "vdm_jax"):
            found.append(module)
        if parts[:2] == ("vdm_jax", "diffusion") and module in ("flax.linen", "flax.nnx"):
            found.append(module)
        if parts[0] == "experiments" and target[0] == "experiments" and len(target) > 1:
            found += [module] if target[1] != "base" else []
        if parts[0] != "vdm_jax" or target[0] != "vdm_jax" or len(target) < 2 or mine == "__init__":
            continue
        theirs = target[1]
        assert mine in LEVEL, f"{mine} belongs to no layer"
        if theirs not in LEVEL:
            continue
        upward = LEVEL[theirs] > LEVEL[mine]
        blind = mine != theirs and mine in BLIND and theirs in BLIND
        found += [module] if upward or blind else []
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers_and_sizes(path):
    text = path.read_text()
    assert not breaches(path)
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 80, node.name


def test_no_cycles():
    """Module-level imports inside the packages form no circle."""
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in SOURCES}
    graph = {
        name: {m for m in imported(path) if m in names and m != name}
        for name, path in names.items()
        if not name.startswith("tests")
    }
    done: set[str] = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "mutants").glob("*.toml")), ids=lambda path: path.stem
)
def test_mutants_break_what_is_there(path):
    """What a mutant changes occurs once, and the test that must fail exists."""
    mutant = tomllib.loads(path.read_text())
    assert (ROOT / mutant["file"]).read_text().count(mutant["old"]) == 1
    file, _, test = mutant["test"].partition("::")
    assert f"def {test.split('[')[0]}(" in (ROOT / file).read_text() if test else True


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 4, 4), (3, 1, 5)])
def test_twins_agree_to_the_bit(patch):
    from data_pipeline import rows
    from vdm_jax import batch

    grid = (2, 3, 4)
    size = tuple(g * p for g, p in zip(grid, patch, strict=True))
    video = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    ours = np.asarray(batch.patchify(jnp.asarray(video), patch))
    theirs = rows.patchify(video, patch)
    assert ours.tobytes() == np.ascontiguousarray(theirs).tobytes()
    assert np.array_equal(batch.unpatchify(jnp.asarray(theirs), grid, patch), video)
    # Order, by hand: token 1 is the next patch along x, feature 1 the next channel.
    assert np.array_equal(ours[1, :3], video[0, 0, patch[2]])
    assert ours[0, 1] == video[0, 0, 0, 1]
