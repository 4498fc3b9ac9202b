"""Held-out clips, noised, and what the model makes of them at one look: is anything learnt yet?

Where samples of a young model tell little, an estimate of x0 from x_t shows what is known: colours
first, then shapes, then detail, at less and less of the noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.batch import unpack
from vdm_jax.parallel.place import whole
from vdm_jax.train.feed import NONE, to_stage
from vdm_jax.train.run import Run
from vdm_jax.types import Params

TIMES = (0.5, 0.8)
MOST = 4  # clips


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """uint8 videos (t h w c); `tries` is (time, noised, estimate) by rising noise."""

    clip: np.ndarray
    tries: tuple[tuple[float, np.ndarray, np.ndarray], ...]


def reconstruct(
    run: Run,
    params: Any,
    arrays: Mapping[str, np.ndarray],
    times: tuple[float, ...] = TIMES,
    most: int = MOST,
    frozen: Params = NONE,
) -> list[Reconstruction]:
    """The first `most` clips of a packed batch (leaves (microbatches, rows, ...)); images are left
    out where there are films. The noise is fixed by the clip; `frozen` are weights by name."""
    first = {name: leaf[0] for name, leaf in arrays.items()}

    @jax.jit
    def look(params, frozen, arrays, t):
        batch, raw = to_stage(arrays, run.stage, frozen=frozen)
        shape = (*batch.examples.valid.shape, 1)
        at = run.stage.learnt_process(params).on(batch).level(jnp.full(shape, t))
        eps = run.stage.prior(batch.keys(run.seed, "reconstruction"), batch)
        x_t = run.stage.process.noise(batch.x, eps, jax.tree.map(batch.spread, at))
        denoiser = run.stage.denoiser
        cond = denoiser.apply(params, raw, batch, {}, method="condition")
        found = denoiser.apply(params, batch.replace(x=x_t), at, cond, method="predict")
        return batch, x_t, found.x0

    def videos(batch, x) -> list[np.ndarray]:
        codec = run.stage.codec
        weights = codec.weights()
        return [np.asarray(codec.decode(weights, video)) for video in unpack(batch.replace(x=x))]

    looks = [whole(look(params, frozen, first, t)) for t in times]
    batch = looks[0][0]
    clips = videos(batch, batch.x)
    tried = [(videos(batch, noised), videos(batch, estimate)) for _, noised, estimate in looks]
    films = [index for index, clip in enumerate(clips) if len(clip) > 1] or list(range(len(clips)))
    return [
        Reconstruction(
            clips[index],
            tuple((t, a[index], b[index]) for t, (a, b) in zip(times, tried, strict=True)),
        )
        for index in films[:most]
    ]
