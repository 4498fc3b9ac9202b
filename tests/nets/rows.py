"""Rows put together by hand from examples, and the same examples apart: for tests of networks."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.batch import Examples, Packed
from vdm_jax.cond import Cond, Tokens

WIDTH, PATCH, TEXT, LEVELS = 16, 5, 7, 2
SHAPE = dict(tokens=30, text=8, slots=2)
REGISTERS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One video's tokens, and all it is conditioned on."""

    grid: tuple[int, int, int]
    x: np.ndarray  # (n, PATCH)
    text: np.ndarray  # (l, TEXT)
    frame: np.ndarray  # (l,)
    time: np.ndarray  # (LEVELS,)
    vector: np.ndarray  # (WIDTH,)
    level: np.ndarray  # (n,)
    fps: float


def example(seed: int, grid: tuple[int, int, int], text: int = 3) -> Example:
    rng = np.random.default_rng(seed)
    n = int(np.prod(grid))
    return Example(
        grid=grid,
        x=rng.normal(size=(n, PATCH)),
        text=rng.normal(size=(text, TEXT)),
        frame=np.arange(text) % grid[0],
        time=rng.uniform(0, 1000, LEVELS),
        vector=rng.normal(size=WIDTH),
        level=rng.integers(0, LEVELS, n),
        fps=float(rng.integers(1, 30)),
    )


def pack(
    rows: list[list[Example]],
    *,
    tokens: int,
    text: int,
    slots: int,
    framed: bool = False,
    filler: float = 0.0,
) -> tuple[Packed, jax.Array, Cond]:
    """(batch, time, condition); padding tokens and padding text hold `filler`."""
    b = len(rows)
    x = np.full((b, tokens, PATCH), filler)
    segment, raster, level = (np.zeros((b, tokens), np.int32) for _ in range(3))
    position = np.zeros((b, tokens, 3), np.int32)
    words = np.full((b, text, TEXT), filler)
    owner, frame = np.zeros((b, text), np.int32), np.zeros((b, text), np.int32)
    grid, fps = np.zeros((b, slots, 3), np.int32), np.zeros((b, slots))
    time, vector = np.zeros((b, slots, LEVELS)), np.zeros((b, slots, WIDTH))
    valid = np.zeros((b, slots), bool)
    for r, row in enumerate(rows):
        at, word = 0, 0
        for e, one in enumerate(row):
            here, there = slice(at, at + len(one.x)), slice(word, word + len(one.text))
            x[r, here], segment[r, here], level[r, here] = one.x, e + 1, one.level
            position[r, here] = np.indices(one.grid).reshape(3, -1).T
            raster[r, here] = np.arange(len(one.x))
            words[r, there], owner[r, there], frame[r, there] = one.text, e + 1, one.frame
            grid[r, e], fps[r, e], valid[r, e] = one.grid, one.fps, True
            time[r, e], vector[r, e] = one.time, one.vector
            at, word = here.stop, there.stop
    count = jnp.zeros((b, slots), jnp.int32)
    examples = Examples(
        id=jnp.zeros((b, slots, 2), jnp.uint32), visit=count, ordinal=count,
        valid=jnp.asarray(valid), grid=jnp.asarray(grid), fps=jnp.asarray(fps, jnp.float32),
    )  # fmt: skip
    batch = Packed(
        x=jnp.asarray(x, jnp.float32), segment=jnp.asarray(segment),
        position=jnp.asarray(position), raster=jnp.asarray(raster),
        level=jnp.asarray(level), examples=examples,
    )  # fmt: skip
    text_tokens = Tokens(
        x=jnp.asarray(words, jnp.float32),
        segment=jnp.asarray(owner),
        frame=jnp.asarray(frame) if framed else None,
    )
    cond = Cond(vector=jnp.asarray(vector, jnp.float32), tokens={"text": text_tokens})
    return batch, jnp.asarray(time, jnp.float32), cond


def alone(one: Example, *, framed: bool = False) -> tuple[Packed, jax.Array, Cond]:
    """A row that holds this example and nothing else."""
    return pack([[one]], tokens=len(one.x), text=len(one.text), slots=1, framed=framed)


def quick(function):
    """`function` compiled in the least time rather than to the fastest program."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def random_like(params, seed: int = 0):
    """Parameters drawn afresh, so that nothing that starts at 0 hides anything."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    fan = [leaf.shape[-2] if leaf.ndim > 1 else 4 for leaf in leaves]
    drawn = [rng.normal(size=leaf.shape) * n**-0.5 for leaf, n in zip(leaves, fan, strict=True)]
    return jax.tree.unflatten(tree, [jnp.asarray(d, jnp.float32) for d in drawn])
