"""Law 9 over real processes: 1 x 8, 2 x 4 and 4 x 2 (processes x devices) learn from the same.

`jax.distributed` over loopback. Two sources are mixed, images among them, and one file in twenty is
broken. What is compared is what each device holds of the global arrays, and what training draws
from them: times, noise, dropped captions.
"""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline import manifest
from data_pipeline.generated import generate
from data_pipeline.index import index

ROOT = Path(__file__).parents[2]
DEVICES, STEPS = 8, 4

PROCESS = """
import hashlib, json, os, sys
index, count, port, cursor, steps, *manifests = sys.argv[1:]
index, count = int(index), int(count)
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={8 // count} --xla_backend_optimization_level=0"
)
import jax, jax.numpy as jnp, numpy as np
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, index)
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.sizes import Area
from vdm_jax.codecs import Pixels
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.place import batch_sharding
from vdm_jax.signals import Signal, draw_dropped
from vdm_jax.train.feed import to_carrier, to_device

assert (jax.process_count(), jax.device_count()) == (count, 8)
PATCH = (2, 4, 4)
data = PackedVideo(
    sources=tuple(Source(manifest=m, weight=w) for m, w in zip(manifests, (1.0, 2.0))),
    patch=PATCH, tokens=160, text_tokens=64, segments=6, rows=16, seed=3,
    size=Area(low=100, high=400), block=96, threads=2, prefetch_mib=1 + index,
)
mesh = make_mesh({"data": 8})
signals = (Signal(key="text", slot="vector", drop=0.5, embed=None),)

@jax.jit
def draws(arrays):
    batch, _ = to_carrier({name: leaf[0] for name, leaf in arrays.items()}, Pixels(), PATCH)
    one = lambda draw: jax.vmap(jax.vmap(draw))
    return {
        "time": one(jax.random.uniform)(batch.keys(3, "time")),
        "noise": one(lambda key: jax.random.normal(key, (5,)))(batch.keys(3, "noise")),
        "dropped": draw_dropped(signals, batch, 3)["text"],
        "pixels": jnp.sum(jnp.square(batch.x), axis=(1, 2)),
    }

batches = data.batches(int(cursor), shard=index, shards=count, devices=8)
with jax.set_mesh(mesh):
    for _ in range(int(steps)):
        batch = next(batches)
        arrays = to_device(batch.arrays, batch_sharding(mesh))
        rows = {}
        for name, leaf in (arrays | {k: v[None] for k, v in draws(arrays).items()}).items():
            for shard in leaf.addressable_shards:
                first = shard.index[1].start or 0
                for n, row in enumerate(np.asarray(shard.data)[0]):
                    said = hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()[:16]
                    rows.setdefault(first + n, {})[name] = said
        print(json.dumps({"rows": rows, "cursor": batch.cursor, "bad": sorted(batch.bad)}))
batches.close()
"""


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Two sets of clips; of each some files were broken after they were indexed."""
    found = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp(f"set{seed}")
        generate(str(folder / "clips"), 40, seed)
        index(str(folder / "clips"), str(folder / "manifest"))
        names = manifest.read(folder / "manifest").table["uri"].to_pylist()
        for name in names[::20]:
            (folder / "clips" / name).write_bytes(b"broken")
        found.append(str(folder / "manifest"))
    return found


def run(manifests, count, cursor=0, steps=STEPS):
    """What `count` processes hold together: [{row: {name: hash}}, cursor, bad] of each step."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *map(str, (n, count, port, cursor, steps)), *manifests],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for n in range(count)
    ]  # fmt: skip
    said = []
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-2000:]
        said.append([json.loads(line) for line in out.splitlines()])
    together = []
    for lines in zip(*said, strict=True):
        rows = {}
        for line in lines:
            assert not rows.keys() & line["rows"].keys()  # nobody holds another's rows
            rows |= line["rows"]
        (at,) = {line["cursor"] for line in lines}
        together.append((rows, at, sorted(one for line in lines for one in line["bad"])))
    return together


@pytest.mark.slow
def test_any_number_of_processes_trains_on_the_same(manifests):
    """From the start, and from any step on with another number of them."""
    alone = run(manifests, 1)
    assert all(len(rows) == 16 for rows, *_ in alone)
    assert any(bad for *_, bad in alone)
    for count in (2, 4):
        assert run(manifests, count) == alone
    for step, count in ((1, 4), (2, 2), (3, 1)):
        assert run(manifests, count, alone[step - 1][1], STEPS - step) == alone[step:]
