"""Multiply-adds of a diffusion transformer, per example: what was useful of the work done.

    block:  n (4 + m r) D^2 + 2 p D,       n tokens, p query-key pairs, m products of the MLP
    cross:  2 n D^2 + 2 l D C + 2 n l D,   l condition tokens of C features

and once: patch and output layers, time embedding, and the modulation maps, which run per (example,
level) and not per token. Published tables call these "Gflops"; FLOPs are twice as many. A training
step costs three times the forward pass, four with full recomputation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vdm_jax.nets.dit import DiT
from vdm_jax.nets.patterns import Grid


def multiply_adds(
    dit: DiT,
    grids: Sequence[Grid],
    *,
    context: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    levels: int = 1,
) -> list[int]:
    """Of the forward pass of each example alone, whatever row it is packed in.

    Args:
      grids: extent in tokens (t, y, x) of each example.
      context: by name of a token set, (tokens, features) for each example.
      levels: noise levels per example.
    """
    found = []
    for index, grid in enumerate(grids):
        context_of = {name: sizes[index] for name, sizes in (context or {}).items()}
        found.append(_trunk(dit, grid, context_of) + _once(dit, grid, levels))
    return found


def _trunk(dit: DiT, grid: Grid, context: Mapping[str, tuple[int, int]]) -> int:
    width, tokens = dit.width, grid[0] * grid[1] * grid[2] + dit.registers
    total = 0
    for index in range(dit.depth):
        pattern = dit.patterns[index % len(dit.patterns)]
        pairs = pattern.pairs(grid, dit.registers)
        if pairs == 0:
            continue  # the block leaves the example as it is
        products = 4 * width**2 + (1 + dit.activation.kernels()) * dit.hidden * width
        total += tokens * products + 2 * pairs * width
        for name in dit.cross:
            length, features = context[name]
            total += 2 * tokens * width**2 + 2 * length * width * features
            total += 2 * tokens * length * width
    return total


def _once(dit: DiT, grid: Grid, levels: int) -> int:
    width, tokens = dit.width, grid[0] * grid[1] * grid[2]
    ends = tokens * width * (dit.patch_features + dit.features_out)
    time = 256 * width + width**2
    return ends + levels * (time + dit.modulation.kernel_count(dit.depth) * width**2)
