"""Where the time of a training step goes, by part of the model, from a trace of real steps.

    python -m tests.benchmarks.step [--config=experiments/demo.py] [--manifest=DIR] [--steps=8]
                                    [--json] [--config.a.b=value ...]

Every operation that XLA ran is charged with its self time (its own, without what it called) to the
part of the program that its metadata names. Shares are of the busy time of all threads, so they do
not depend on how many cores there are; milliseconds are busy time a step. Steps run on two CPU
devices, as the demo's do, unless XLA_FLAGS says otherwise.
"""

from __future__ import annotations

import argparse
import collections
import glob
import json
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

from tests.benchmarks.devices import two_cpu_devices

if __name__ == "__main__":  # before JAX starts
    two_cpu_devices()

import jax
from rich.console import Console
from rich.table import Table

from vdm_jax.cli import configs
from vdm_jax.config import build
from vdm_jax.train.feed import to_device
from vdm_jax.train.program import make_program

# (part, pattern of an operation's path); the first that matches counts.
PARTS = (
    ("in time", r"/after_\w+_\d+_\d+/"),
    ("convolutions, norms", r"/res_\d+/|/(down|up|conv_in|conv_out|norm_out)/"),
    ("attention in space", r"/follow_\d+/"),
    ("cross-attention", r"/cross_\w+/"),
    ("self-attention", r"/attention/"),
    ("feed-forward", r"/mlp/"),
    ("modulation, norms, residuals", r"/unit"),
    ("head", r"/head/"),
    ("text encoder", r"/signals_\d"),
    ("embedding, time, positions", r"Denoiser"),
    ("noise, loss, carrier", r"while/body"),
    ("muon's orthogonalisation", r"vmap\(\)|newton"),
    ("optimizer, averages, norms of gradients", r"jit\(step\)"),
)
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{.*?op_name=\"([^\"]*)\"")


def part_of(path: str) -> str:
    """The part that an operation of this path belongs to."""
    return next((name for name, pattern in PARTS if re.search(pattern, path)), "unnamed")


def self_times(events: Iterable[tuple[float, float, str]]) -> Mapping[str, float]:
    """Self time by name of (start, duration, name) of one thread, nested by time."""
    found: dict[str, float] = collections.defaultdict(float)
    open_events: list[tuple[float, str]] = []  # (end, name)
    for start, duration, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while open_events and open_events[-1][0] <= start:
            open_events.pop()
        found[name] += duration
        if open_events:
            found[open_events[-1][1]] -= duration
        open_events.append((start + duration, name))
    return found


def measure(config: Any, steps: int) -> dict[str, Any]:
    run = build(config)
    program = make_program(run)
    state = program.init()
    batches = run.data.batches(devices=program.row_devices, microbatches=run.microbatches)
    fed = [to_device(next(batches).arrays, program.batch_sharding) for _ in range(steps)]
    batches.close()
    text = program.lower(state, fed[0]).compile().as_text()
    paths = dict(found.groups() for found in map(INSTRUCTION.match, text.splitlines()) if found)
    state, metrics = program.step(state, fed[0])
    jax.block_until_ready(metrics)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            started = time.perf_counter()
            for arrays in fed:
                state, metrics = program.step(state, arrays)
                jax.block_until_ready(metrics)
            span = time.perf_counter() - started
        (trace,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        busy = _busy(jax.profiler.ProfileData.from_file(trace), paths)
    total = sum(busy.values())
    parts = [
        {"part": name, "share": value / total, "busy_ms": value / 1e6 / steps}
        for name, value in sorted(busy.items(), key=lambda item: -item[1])
    ]
    return {"seconds_per_step": span / steps, "devices": jax.device_count(), "parts": parts}


def _busy(profile: Any, paths: Mapping[str, str]) -> dict[str, float]:
    """{part: nanoseconds} over all threads of a trace."""
    busy: dict[str, float] = collections.defaultdict(float)
    for plane in profile.planes:
        for line in plane.lines:
            events = []
            for event in line.events:
                name = dict(event.stats).get("hlo_op", event.name)
                if name in paths or name != event.name:
                    events.append((event.start_ns, event.duration_ns, name))
            for name, value in self_times(events).items():
                collective = name.startswith(("all-reduce", "all-gather", "reduce-scatter"))
                busy["between devices" if collective else part_of(paths.get(name, ""))] += value
    return busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="experiments/demo.py")
    parser.add_argument("--manifest", default="data/demo/manifest")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options, rest = parser.parse_known_args()
    words = [f"--config={options.config}", f"--config.knobs.manifest={options.manifest}", *rest]
    found = measure(configs.load(words), options.steps)
    if options.json:
        print(json.dumps(found))
        return
    table = Table(title=f"{1e3 * found['seconds_per_step']:.0f} ms a step, traced")
    for column in ("part", "share", "busy ms"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for row in found["parts"]:
        table.add_row(row["part"], f"{row['share']:.1%}", f"{row['busy_ms']:.1f}")
    Console(width=80).print(table)


if __name__ == "__main__":
    main()
