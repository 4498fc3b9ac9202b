"""How fast a run goes and how much of that is useful, counted from the packed batches."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass
class Meter:
    """Times steps, waiting for data, and tokens; owns the progress bar.

    `useful` tokens belong to a valid example; `fill` is their share of the row; `input_bound` is
    the share of time spent waiting for the loader.
    """

    console: Console = dataclasses.field(default_factory=lambda: Console(stderr=True))
    started: float = dataclasses.field(default_factory=time.perf_counter)
    last: float = 0.0
    waited: float = 0.0
    steps: int = 0
    seconds: float = 0.0  # of all steps but the first, which compiles
    useful: int = 0
    slots: int = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def measure(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Numbers of the step whose batch this is, since the last call. Counts this host's share,
        scaled to all hosts."""
        now = time.perf_counter()
        span = now - (self.last or self.started)
        hosts = jax.process_count()
        tokens = useful_tokens(arrays) * hosts
        slots = arrays["segment"].size * hosts
        if self.last:
            self.seconds += span
            self.useful += tokens
            self.steps += 1
            self.slots += slots
        found = {
            "tokens": float(tokens),
            "examples": float(arrays["valid"].sum() * hosts),
            "fill": tokens / slots,
            "seconds": span,
            "useful_tokens_per_second": tokens / span,
            "input_bound": min(1.0, self.waited / span),
        }
        self.last, self.waited = now, 0.0
        return found

    def summary(self) -> dict[str, float]:
        """Over every step but the first, which compiles."""
        return {
            "steps": self.steps + (1 if self.last else 0),
            "seconds": round(self.seconds, 2),
            "seconds_per_step": self.seconds / max(self.steps, 1),
            "useful_tokens_per_second": self.useful / max(self.seconds, 1e-9),
            "fill": self.useful / max(self.slots, 1),
        }

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

    def show(self, bar: Any, step: int, numbers: Mapping[str, float]) -> None:
        progress, task = bar
        line = (
            f"loss {numbers['loss']:.4f}  {numbers['useful_tokens_per_second']:,.0f} tokens/s  "
            f"fill {numbers['fill']:.0%}  waiting {numbers['input_bound']:.0%}"
        )
        progress.update(task, completed=step, numbers=line)


def useful_tokens(arrays: Mapping[str, np.ndarray]) -> int:
    """Tokens of examples that are there and could be decoded."""
    segment, valid = arrays["segment"], arrays["valid"]
    padded = np.concatenate([np.zeros((*valid.shape[:-1], 1), bool), valid], axis=-1)
    return int(np.take_along_axis(padded, segment, axis=-1).sum())


class CompileCounter:
    """Counts the programs XLA compiles while it is open, by the name of the traced function."""

    def __init__(self) -> None:
        self.programs: dict[str, int] = {}

    def __enter__(self) -> CompileCounter:
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *exception: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILE_EVENT:
            name = str(kwargs.get("fun_name", "unnamed"))
            self.programs[name] = self.programs.get(name, 0) + 1
