"""What is looked at while training: held-out loss by noise, size and source; sampled videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from data_pipeline.text import Tokenizer
from vdm_jax.parallel.place import whole
from vdm_jax.pipeline import Pipeline, capacity_of
from vdm_jax.requests import Request
from vdm_jax.train.feed import NONE, to_stage
from vdm_jax.train.log import Writer
from vdm_jax.train.run import Run
from vdm_jax.train.state import TrainState
from vdm_jax.types import Params

NOISE_BINS = (0.1, 0.3, 0.5, 0.7, 0.9)


class Observers(Protocol):
    def __call__(self, step: int, state: TrainState, writer: Writer) -> None:
        """Look at the state after `step`, if it is time to."""


@dataclasses.dataclass(frozen=True)
class Many:
    observers: tuple[Observers, ...] = ()

    def __call__(self, step, state, writer):
        for observer in self.observers:
            observer(step, state, writer)


@dataclasses.dataclass
class Validation:
    """Loss of the first EMA on one held-out batch, its noise fixed by example and noise bin.

    Written as `validation/loss` and, apart, per noise time, per size class (tokens of the example,
    rounded up to a power of two; images by themselves) and per data source.
    """

    run: Run
    arrays: Mapping[str, np.ndarray]
    frozen: Params = NONE  # weights of frozen networks by name
    errors: Callable[..., Any] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        run = self.run

        @jax.jit
        def errors(params, frozen, arrays, t):
            batch, raw = to_stage(arrays, run.stage, frozen=frozen)
            return run.objective.errors(run.stage, params, batch, raw, run.seed, t)

        self.errors = errors

    def __call__(self, step: int, state: TrainState, writer: Writer) -> None:
        if self.run.validate_every and step % self.run.validate_every == 0:
            writer.scalars(step, self.measure(state.ema[str(self.run.ema[0])]))

    def measure(self, params: Any) -> dict[str, float]:
        first = {name: leaf[0] for name, leaf in self.arrays.items()}
        errors = [whole(self.errors(params, self.frozen, first, t)) for t in NOISE_BINS]
        found = np.stack([np.asarray(one) for one in errors])
        valid = np.asarray(first["valid"])
        tokens = np.prod(np.asarray(first["grid"]), axis=-1)
        sizes = np.where(np.asarray(first["fps"]) > 0, size_class(tokens), 0)
        sources = np.asarray(first["source"])
        numbers = {"validation/loss": float(found[:, valid].mean())}
        for t, values in zip(NOISE_BINS, found, strict=True):
            numbers[f"validation/noise_{t:g}"] = float(values[valid].mean())
        for label in np.unique(sizes[valid]):
            name = f"tokens_{label}" if label else "images"
            numbers[f"validation/{name}"] = float(found[:, valid & (sizes == label)].mean())
        for label in np.unique(sources[valid]):
            inside = valid & (sources == label)
            numbers[f"validation/source_{label}"] = float(found[:, inside].mean())
        return numbers


def size_class(tokens: np.ndarray) -> np.ndarray:
    """The least power of two that is at least `tokens`."""
    return 2 ** np.ceil(np.log2(np.maximum(tokens, 1))).astype(int)


@dataclasses.dataclass
class Samples:
    """Videos of the run's prompts, by the first EMA, in the writer."""

    run: Run
    tokenizer: Tokenizer

    def __call__(self, step: int, state: TrainState, writer: Writer) -> None:
        if self.run.sample_every and step % self.run.sample_every == 0:
            self.make(step, state.ema[str(self.run.ema[0])], writer)

    def make(self, step: int, params: Any, writer: Writer) -> dict[str, np.ndarray]:
        pipeline = Pipeline(self.run.stage, params, self.tokenizer, capacity_of(self.run.data, 1))
        requests = [
            Request(
                prompt=p.text, frames=p.frames, height=p.height, width=p.width, fps=p.fps, seed=i
            )
            for i, p in enumerate(self.run.prompts)
        ]
        made = pipeline(requests)
        videos = {requests[i].prompt: video for i, video in made if video is not None}
        writer.videos(step, videos)
        return videos
