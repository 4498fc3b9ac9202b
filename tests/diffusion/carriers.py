"""Small carriers, exact denoisers and exact paths that the tests of diffusion share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.batch import Examples, Frames, Packed
from vdm_jax.diffusion.parameterization import Prediction


def packed(
    rows=(((1, 2, 2), (3, 2, 1)), ((2, 2, 1),)), tokens=12, d=2, patch=(1, 1, 1), slots=2, ids=None
):
    """Rows of examples of the given grids; ids count up from 1 unless given per row."""
    b = len(rows)
    segment = np.zeros((b, tokens), np.int32)
    position = np.zeros((b, tokens, 3), np.int32)
    raster = np.zeros((b, tokens), np.int32)
    identity = np.zeros((b, slots, 2), np.uint32)
    valid = np.zeros((b, slots), bool)
    extent = np.zeros((b, slots, 3), np.int32)
    counter = 0
    for row, grids in enumerate(rows):
        at = 0
        for slot, grid in enumerate(grids):
            n = int(np.prod(grid))
            segment[row, at : at + n] = slot + 1
            position[row, at : at + n] = np.indices(grid).reshape(3, -1).T
            raster[row, at : at + n] = np.arange(n)
            counter += 1
            identity[row, slot] = (0, counter if ids is None else ids[row][slot])
            valid[row, slot] = True
            extent[row, slot] = grid
            at += n
    return Packed(
        x=jnp.asarray(np.zeros((b, tokens, d), np.float32)),
        segment=jnp.asarray(segment),
        position=jnp.asarray(position),
        raster=jnp.asarray(raster),
        examples=examples(identity, valid, extent),
        patch=patch,
    )


def frames(b=2, f=3, h=2, w=2, c=1, ids=None):
    """One example of f frames per row."""
    identity = np.zeros((b, 1, 2), np.uint32)
    identity[:, 0, 1] = np.arange(b) + 1 if ids is None else ids
    return Frames(
        x=jnp.asarray(np.zeros((b, f, h, w, c), np.float32)),
        segment=jnp.asarray(np.ones((b, f), np.int32)),
        position=jnp.asarray(np.tile(np.arange(f, dtype=np.int32), (b, 1))),
        examples=examples(
            identity, np.ones((b, 1), bool), np.broadcast_to(np.array([f, h, w]), (b, 1, 3))
        ),
    )


def examples(identity, valid, extent):
    # Made in numpy: every eager operation of jax would be compiled.
    zero = jnp.asarray(np.zeros(valid.shape, np.int32))
    ordinal = np.cumsum(valid.reshape(-1)).reshape(valid.shape) - 1
    return Examples(
        id=jnp.asarray(identity),
        visit=zero,
        ordinal=jnp.asarray(ordinal.astype(np.int32)),
        valid=jnp.asarray(valid),
        grid=jnp.asarray(np.asarray(extent, np.int32)),
        fps=jnp.asarray(np.full(valid.shape, 8, np.float32)),
    )


def gaussian(mean, std):
    """The exact denoiser of data N(mean, std^2), elementwise."""

    def denoise(batch, at, cond=None):
        a, s = (batch.spread(leaf) for leaf in (at.alpha, at.sigma))
        variance = jnp.maximum((a * std) ** 2 + s**2, 1e-30)
        residual = batch.x - a * mean
        return Prediction(mean + a * std**2 / variance * residual, s / variance * residual)

    return denoise


def two_modes(centre, std):
    """The exact denoiser of an even mixture of N(centre, std^2) and N(-centre, std^2)."""

    def denoise(batch, at, cond=None):
        a, s = (batch.spread(leaf) for leaf in (at.alpha, at.sigma))
        variance = jnp.maximum((a * std) ** 2 + s**2, 1e-30)
        side = jnp.tanh(a * centre * batch.x / variance)
        x0 = side * centre + a * std**2 / variance * (batch.x - a * side * centre)
        # Through the posterior, not (x - a x0) / s: exact where s is 0 too.
        return Prediction(x0, s / variance * (batch.x - a * side * centre))

    return denoise


def exact_path(x, mean, std, now, nxt):
    """Where the deterministic path of Gaussian data carries x, levels given as (alpha, sigma)."""
    (a, s), (b, r) = now, nxt
    return b * mean + np.sqrt((b * std) ** 2 + r**2) / np.sqrt((a * std) ** 2 + s**2) * (
        x - a * mean
    )


def spread(batch, at):
    return jax.tree.map(batch.spread, at)


def quick(function):
    """`jax.jit` to numpy that spends little on optimisation: small programs that run once."""
    compiled = jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
    return lambda *args: jax.tree.map(np.asarray, compiled(*args))
