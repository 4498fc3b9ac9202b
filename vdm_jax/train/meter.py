"""How fast a run goes, how much of that is useful, and what it waits for, step by step."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vdm_jax.train.work import Totals, Work, accounts, total

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
FOUND_EVENT = "/jax/compilation_cache/cache_hits"
RECENT = 100  # steps that the percentiles of a line are of
FLOPS = 2  # of a multiply-add


@dataclasses.dataclass
class Meter:
    """Times steps and waiting, and owns the progress bar.

    `useful` tokens belong to a valid example; `fill` is their share of the rows; `input_bound` the
    share of time that the process that waited longest for its loader waited; `straggler` the most
    loaded device's work over the mean. Utilisation is model FLOPs over what the devices could do:
    `useful` of valid examples, recomputation never counted (Chowdhery et al. 2022, appendix B),
    `raw` with padding's linear layers.

    Attributes:
      work: what examples cost, None where nobody can count it.
      peak: FLOP/s of one device, None where it is not known.
      devices: of all processes; rows: those that a microbatch's rows are spread over.
    """

    console: Console = dataclasses.field(default_factory=lambda: Console(stderr=True))
    work: Work | None = None
    peak: float | None = None
    devices: int = dataclasses.field(default_factory=jax.device_count)
    rows: int = 1
    started: float = dataclasses.field(default_factory=time.perf_counter)
    last: float = 0.0
    memory: int = 0
    _waited: float = 0.0
    # Of all steps but the first, which compiles.
    _spans: array.array = dataclasses.field(default_factory=lambda: array.array("f"))
    _sums: Counter[str] = dataclasses.field(default_factory=Counter)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def account(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Of this process's rows (`work.accounts`), with what was waited for since the last."""
        waited, self._waited = self._waited, 0.0
        return accounts(arrays, self.work, waited)

    def measure(self, said: np.ndarray | jax.Array) -> dict[str, float | str]:
        """Numbers of the step whose rows' accounts these are, timed since the last call."""
        now = time.perf_counter()
        span = now - (self.last or self.started)
        step = total(np.asarray(said), self.rows, self.work)
        if self.last:
            self._spans.append(span)
            self._sums.update(_counts(step))
        self.last = now
        memory = memory_bytes()
        self.memory = max(self.memory, memory)
        found: dict[str, float | str] = {
            "batch": step.batch, "tokens": float(step.tokens), "examples": float(step.examples),
            "fill": step.tokens / step.slots, "seconds": span,
            "useful_tokens_per_second": step.tokens / span,
            "useful_tokens_per_second_per_device": step.tokens / span / self.devices,
            "input_bound": min(1.0, step.waited / span), "straggler": step.straggler,
            "memory_bytes": float(memory),
        }  # fmt: skip
        if self._spans:
            found |= percentiles(self._spans[-RECENT:])
        utilisation = self._utilisation(_counts(step), span)
        return found | {name: x for name, x in utilisation.items() if x is not None}

    def summary(self) -> dict[str, Any]:
        """Over every step but the first, which compiles; None for what is not known."""
        count, sums = len(self._spans), self._sums
        seconds = max(sum(self._spans), 1e-9)
        rate = sums["tokens"] / seconds
        return {
            "steps": count + (1 if self.last else 0),
            "seconds": round(sum(self._spans), 2),
            "seconds_per_step": seconds / max(count, 1),
            **(percentiles(self._spans) if count else {}),
            "useful_tokens_per_second": rate,
            "useful_tokens_per_second_per_device": rate / self.devices,
            "fill": sums["tokens"] / max(sums["slots"], 1),
            "input_bound": min(1.0, sums["waited"] / seconds),
            "straggler": sums["straggler"] / count if count else 1.0,
            "devices": self.devices,
            "device_kind": jax.devices()[0].device_kind,
            "memory_bytes": self.memory,
            **self._utilisation(sums, seconds),
        }

    def _utilisation(self, sums: Mapping[str, float], seconds: float) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for name in ("useful", "raw"):
            rate = FLOPS * sums[name] / seconds if name in sums else None
            used = None if rate is None or self.peak is None else rate / self.peak / self.devices
            found[f"{name}_flops_per_second"], found[f"{name}_utilisation"] = rate, used
        return found

    @contextlib.contextmanager
    def progress(self, done: int, total: int) -> Iterator[Any]:
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("training", total=total, completed=done, numbers="compiling")
            yield progress, task

    def show(self, bar: Any, step: int, numbers: Mapping[str, Any]) -> None:
        progress, task = bar
        line = (
            f"loss {numbers['loss']:.4f}  {numbers['useful_tokens_per_second']:,.0f} tokens/s  "
            f"fill {numbers['fill']:.0%}  waiting {numbers['input_bound']:.0%}"
        )
        if "useful_utilisation" in numbers:
            line += f"  used {numbers['useful_utilisation']:.0%}"
        progress.update(task, completed=step, numbers=line)


def _counts(step: Totals) -> dict[str, float]:
    """The numbers of a step that add up, less those that nobody can count."""
    names = ("slots", "tokens", "useful", "raw", "straggler", "waited")
    values = {name: getattr(step, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def percentiles(spans: Sequence[float]) -> dict[str, float]:
    """Seconds of a step that half, nine tenths and all but one in a hundred kept within."""
    found = np.percentile(np.asarray(spans), (50, 90, 99))
    return {f"seconds_p{q}": float(x) for q, x in zip((50, 90, 99), found, strict=True)}


def memory_bytes() -> int:
    """The most that one of this process's devices holds; on a CPU, what the process itself does."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    held = max(int(one.get("bytes_in_use", 0)) for one in stats)
    return held or psutil.Process().memory_info().rss


class CompileCounter:
    """Counts the programs XLA makes while it is open, by the name of the traced function, and how
    many of all were found compiled."""

    def __init__(self) -> None:
        self.programs: dict[str, int] = {}
        self.found = 0

    def __enter__(self) -> CompileCounter:
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        jax.monitoring.register_event_listener(self._found)
        return self

    def __exit__(self, *exception: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)
        jax.monitoring.unregister_event_listener(self._found)

    def _heard(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILE_EVENT:
            name = str(kwargs.get("fun_name", "unnamed"))
            self.programs[name] = self.programs.get(name, 0) + 1

    def _found(self, event: str, **kwargs: str | int) -> None:
        self.found += event == FOUND_EVENT
