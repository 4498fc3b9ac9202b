"""What the TPU compiler makes of a train step, with no TPU: slices kept apart, activations put out.

Compiled for machines that are not here, in a process of its own: libtpu is told so before JAX.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.workbench import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"),
]
COMPILE_ONLY = {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3",
}  # fmt: skip
SCRIPT = """
import json, sys
import jax
from jax.experimental import topologies
from experiments import demo
from vdm_jax.config import build
from vdm_jax.train.program import make_program

manifest, slices, remat, mesh = sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
topology = topologies.get_topology_desc("v5e:2x2", "tpu", num_slices=slices)
config = demo.get_config("smoke")
config.knobs.manifest = manifest
config.data.rows = 8
config.rules = "fsdp"
config.mesh.update(mesh)
config.stage.denoiser.backbone.update(remat=remat, layers="scan")
run = build(config)
program = make_program(run, topology.devices)
arrays = {
    name: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype, sharding=program.batch_sharding)
    for name, leaf in run.blank_arrays(8).items()
}
compiled = program.lower(program.abstract, arrays).compile()
memory = compiled.memory_analysis()
print(json.dumps({
    "slices": [[getattr(d, "slice_index", 0) for d in row] for row in
               program.mesh.devices.reshape(program.mesh.shape["data"], -1)],
    "text": compiled.as_text(), "host": memory.host_temp_size_in_bytes,
    "state": sum(
        leaf.dtype.itemsize * int(__import__("math").prod(leaf.sharding.shard_shape(leaf.shape)))
        for leaf in jax.tree.leaves(program.abstract)
    ), "alias": memory.alias_size_in_bytes,
}))
"""


def compiled(manifest, slices, remat, **mesh):
    words = [str(manifest), str(slices), remat, json.dumps(mesh)]
    settings = os.environ | COMPILE_ONLY | {"PYTHONPATH": str(ROOT)}
    settings.pop("JAX_COMPILATION_CACHE_DIR", None)
    settings.pop("XLA_FLAGS", None)
    command = [sys.executable, "-c", SCRIPT, *words]
    done = subprocess.run(command, env=settings, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def groups(line):
    """The devices that a collective joins, in either of XLA's notations."""
    if found := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", line):
        return [list(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, dims = ([int(n) for n in found[k].split(",")] for k in (1, 2))
        order = [int(n) for n in found[3].split(",")] if found[3] else range(len(dims))
        return np.arange(np.prod(dims)).reshape(dims).transpose(order).reshape(shape).tolist()
    return []


def sent(lines):
    """(kind, elements) of what a device sends to another slice."""
    found = [line for line in lines if "xla_megascale_runtime" in line and " send(" in line]
    shapes = [re.search(r"= \(\w+\[([\d,]*)\]", line)[1] for line in found]
    kinds = [re.search(r'_megascale_transfer_type="(\w+)"', line)[1] for line in found]
    return [
        (kind, int(np.prod([int(n) for n in shape.split(",")])))
        for kind, shape in zip(kinds, shapes, strict=True)
    ]


def test_only_gradients_cross_slices(manifest):
    found = compiled(manifest, 2, "none", data=2, fsdp=4)
    assert found["slices"] == [[0] * 4, [1] * 4]
    lines = found["text"].splitlines()
    joined = {tuple(g) for line in lines for g in groups(line)}
    assert (0, 1, 2, 3) in joined and all(len({n // 4 for n in g}) == 1 for g in joined), joined
    crossing = sent(lines)
    assert any(kind == "ALL_REDUCE" for kind, _ in crossing)
    # Besides sums, a few numbers of each example; no parameter, and nothing as large as the tokens
    # (256 of 32 features) of a row.
    assert all(size <= 256 for kind, size in crossing if kind != "ALL_REDUCE"), crossing
    assert found["alias"] >= found["state"]


def test_offloaded_activations_lie_in_the_host_s_memory(manifest):
    kept = compiled(manifest, 1, "attention", data=1, fsdp=4)
    put_out = compiled(manifest, 1, "offload", data=1, fsdp=4)
    assert kept["host"] == 0 and "S(5)" not in kept["text"]
    # Of each of two blocks: its input and its attention, (2 rows, 256 tokens, 32 wide), fp32.
    assert put_out["host"] >= 2 * 2 * (2 * 256 * 32) * 4 and "S(5)" in put_out["text"]
