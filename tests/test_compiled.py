"""What was traced and compiled once is neither again, whatever a killed process left behind."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.workbench import ROOT, environment
from vdm_jax import compiled
from vdm_jax.compiled import Traced, sweep
from vdm_jax.train.meter import CompileCounter

TWICE = """
import json, sys
import jax, jax.numpy as jnp
from pathlib import Path
from vdm_jax import compiled
from vdm_jax.train.meter import CompileCounter
compiled.remember()
traces = []

def slow(w, x):
    traces.append(1)
    return {"y": jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ w["w"]), x)}

arguments = {"w": jnp.ones((64, 64)) / 64}, jnp.ones((8, 64))
with CompileCounter() as counter:
    run = compiled.Traced(Path(sys.argv[1]))("slow", slow, *arguments)
    out = run(*arguments)
print(json.dumps({
    "traces": len(traces), "found": counter.found, "out": float(out["y"].sum()),
    "made": sum(counter.programs.values()), "folder": jax.config.jax_compilation_cache_dir,
}))
"""


def start(tmp_path, **extra):
    settings = environment(VDM_CACHE=str(tmp_path / "cache"), **extra)
    if "JAX_COMPILATION_CACHE_DIR" not in extra:
        del settings["JAX_COMPILATION_CACHE_DIR"]
    command = [sys.executable, "-c", TWICE, str(tmp_path / "traced")]
    done = subprocess.run(command, env=settings, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_second_start_neither_traces_nor_compiles(tmp_path):
    every = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    first = start(tmp_path, **every)
    assert first["traces"] == 1 and first["found"] == 0
    folder = tmp_path / "cache" / "compiled"
    assert first["folder"] == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((tmp_path / "traced").stat().st_mode)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    second = start(tmp_path, **every)
    assert second["traces"] == 0 and second["found"] == second["made"] > 0
    assert second["out"] == first["out"]


def test_a_user_s_own_cache_is_left_alone(tmp_path):
    own = tmp_path / "own"
    assert start(tmp_path, JAX_COMPILATION_CACHE_DIR=str(own))["folder"] == str(own)
    assert not (tmp_path / "cache").exists()


class Twice:
    """Functions that double, each new to JAX, and how often one was traced."""

    def __init__(self):
        self.traced = 0

    def __call__(self):
        def double(x):
            self.traced += 1
            return 2 * x

        return double


def test_what_a_function_depends_on_is_in_its_name(tmp_path, monkeypatch):
    traced, twice = Traced(tmp_path), Twice()
    x = jnp.arange(3.0)
    for _ in range(2):
        assert np.array_equal(traced("a", twice(), x)(x), [0, 2, 4])
    assert twice.traced == 1
    traced("b", twice(), x)
    traced("a", twice(), jnp.arange(4.0))
    traced("a", twice(), jnp.arange(3))
    assert twice.traced == 4
    monkeypatch.setattr(compiled, "code_digest", lambda: "other")
    traced("a", twice(), x)
    assert twice.traced == 5


def test_a_program_is_compiled_once_however_often_it_is_asked_for(tmp_path):
    """Traced here, and found: each call of a sampler asks anew."""
    x = jnp.arange(5.0)
    for traced in (Traced(tmp_path), Traced(tmp_path)):
        with CompileCounter() as counter:
            for _ in range(3):
                assert np.array_equal(traced("once", Twice()(), x)(x), 2 * np.arange(5))
        assert sum(counter.programs.values()) == 1


def test_a_program_of_a_mesh_is_not_taken_for_one_of_none(tmp_path):
    """What a function does may depend on the mesh it is traced under."""
    traced, x = Traced(tmp_path), jnp.arange(3.0)

    def devices(x):
        return x * (jax.sharding.get_abstract_mesh().size or 1)

    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    for _ in range(2):
        assert np.array_equal(traced("a", devices, x)(x), [0, 1, 2])
        with jax.set_mesh(mesh):
            assert np.array_equal(traced("a", devices, x)(x), [0, 2, 4])


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"half"])
def test_a_broken_file_is_made_anew(tmp_path, content):
    traced, twice, x = Traced(tmp_path), Twice(), jnp.arange(3.0)
    traced("a", twice(), x)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100] if content == b"half" else content)
    later = Traced(tmp_path)
    assert np.array_equal(later("a", twice(), x)(x), [0, 2, 4])
    assert twice.traced == 2 and len(path.read_bytes()) > 100
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_kept_runs_all_the_same(tmp_path):
    (tmp_path / "file").write_text("")
    x = jnp.arange(3.0)
    assert np.array_equal(Traced(tmp_path / "file" / "x")("a", Twice()(), x)(x), [0, 2, 4])

    def shows(x):
        jax.debug.callback(lambda _: None, x)
        return 2 * x

    assert np.array_equal(Traced(tmp_path)("c", shows, x)(x), [0, 2, 4])


def test_half_an_entry_is_swept_away(tmp_path):
    for name in ("a-cache", "a-atime", "b-cache"):
        (tmp_path / name).write_bytes(b"x")
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*-*")) == ["a-atime", "a-cache"]


def test_sampling_a_second_time_traces_nothing(tmp_path, trained):
    """Of two processes: the first writes what it traced, the second finds it."""
    words = ["--prompt=a red circle", "--frames=2", "--height=8", "--width=8", "--steps=2"]
    videos = []
    for number in range(2):
        settings = environment(VDM_CACHE=str(tmp_path / "cache"), JAX_LOG_COMPILES="1")
        command = [sys.executable, "-m", "vdm_jax", "sample", str(trained), *words]
        out = tmp_path / f"{number}"
        done = subprocess.run(
            [*command, f"--out={out}"], env=settings, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        traced = [x for x in done.stderr.splitlines() if "tracing" in x and "_generate" in x]
        assert bool(traced) == (number == 0), traced
        videos.append(next(out.glob("*.mp4")).read_bytes())
        (kept,) = (tmp_path / "cache" / "traced").iterdir()
        assert kept.suffix == ".stablehlo"
    assert videos[0] == videos[1]


def test_nothing_is_unpickled():
    """No reader of pickles in the file; JAX's own pickling of executables is not used."""
    text = Path(compiled.__file__).read_text()
    assert "serialize_executable" not in text and "import pickle" not in text
    assert os.environ.get("JAX_COMPILATION_CACHE_DIR")  # tests share one
