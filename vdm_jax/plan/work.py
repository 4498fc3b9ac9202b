"""Floating-point operations of a step: what is useful of them, and what is executed.

    useful     of each example alone, whatever row it shares: `nets/cost.py`, backward twice the
               forward pass, nothing computed twice, no padding and no text encoder
    executed   every matrix product of the traced step (padding, text, the optimizer and whatever
               is recomputed with it), and attention block by block as the kernel visits them

Of a backbone whose work is not written down, a UNet, a forward pass is traced twice, with
attention's kernels and with dense attention instead: `useful` is the share of the latter that is
no padding, and attention's is the difference, whole, as no block is skipped.

A visited block of b x c tokens costs a product of 2 b c d operations per head, two in the forward
pass, and in the backward pass as many as the kernel computes (its own file says: five, or seven
where dq and (dk, dv) are found apart).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.batch import Examples, Packed
from vdm_jax.config import UserError
from vdm_jax.kernels import everywhere
from vdm_jax.kernels.blocks import meets
from vdm_jax.nets.cost import multiply_adds
from vdm_jax.nets.dit import DiT
from vdm_jax.nets.patterns import cross_groups
from vdm_jax.nets.registers import insert
from vdm_jax.nets.unet3d import UNet3D
from vdm_jax.plan.mix import Mix
from vdm_jax.plan.products import products
from vdm_jax.train.feed import to_stage
from vdm_jax.train.program import Program
from vdm_jax.train.run import Run

FORWARD = 2
BACKWARD = 7  # of the kernel for TPUs, `kernels/splash.py`
# How often attention's forward pass runs in a training step under each `nets.remat.REMAT`.
FORWARDS = {"none": 1, "attention": 1, "offload": 1, "dots": 2, "full": 2}
LOOKED_AT = 32  # rows whose blocks are counted; the others are like them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
    """Of the rows that were looked at, all heads and layers alike.

    Attributes:
      seen: query-key pairs of examples; computed: pairs of the visited blocks; whole: of the rows.
      visited: blocks; needed: those that hold a pair which is seen.
    """

    seen: float = 0
    computed: float = 0
    whole: float = 0
    visited: int = 0
    needed: int = 0

    def __add__(self, other: Attention) -> Attention:
        names = [field.name for field in dataclasses.fields(self)]
        return Attention(**{n: getattr(self, n) + getattr(other, n) for n in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Of one step on the whole machine.

    Attributes:
      useful: FLOPs; products, attention: executed FLOPs.
      pairs, blocks: of self-attention, executed over ideal: pairs of the visited blocks over
        those of the examples, and visited blocks over those that hold a pair; None where
        attention was counted whole.
      straggler: attention of the slowest device over the mean.
    """

    useful: float
    products: float
    attention: float
    pairs: float | None
    blocks: float | None
    straggler: float

    @property
    def executed(self) -> float:
        return self.products + self.attention


class Forward(NamedTuple):
    """FLOPs of a step's forward pass: useful; of one of attention's two products, executed; and
    the blocks of self-attention, where they were counted."""

    useful: float
    product: float
    blocks: Attention | None


def backbone(run: Run) -> DiT | UNet3D:
    """Raises: UserError, a backbone that cannot be counted."""
    found = run.stage.denoiser.backbone
    if not isinstance(found, DiT | UNet3D):
        raise UserError(
            "plan counts the work of a DiT or a UNet3D, but the backbone is a "
            f"{type(found).__name__}."
        )
    return found


def forward(run: Run, mix: Mix, program: Program, block: int) -> Forward:
    """Args: block, tokens of the blocks of attention's kernel."""
    if isinstance(backbone(run), DiT):
        return Forward(useful(run, mix), *attention(run, mix, block))
    whole, product = traced(run, program)
    rows = len(mix.rows)
    return Forward(whole * mix.tokens / run.data.tokens, product * rows, None)


def traced(run: Run, program: Program) -> tuple[float, float]:
    """FLOPs of one row's forward pass, its encoders left out: (all, those of one of the two
    products of attention's kernels)."""
    rows, denoiser = run.data.rows // run.microbatches, run.stage.denoiser
    arrays = {
        name: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in run.blank_arrays(1).items()
    }
    params, frozen = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        (program.abstract.params, program.frozen),
    )

    def given(arrays: Mapping[str, Any], params: Any, frozen: Any) -> tuple[Any, Any, Any]:
        batch, raw = to_stage(arrays, run.stage, frozen=frozen)
        at = run.stage.process.on(batch).level(jnp.full((*batch.examples.valid.shape, 1), 0.5))
        return batch, at, denoiser.apply(params, raw, batch, {}, method="condition")

    def network(arrays: Mapping[str, Any], params: Any, frozen: Any) -> Any:
        return denoiser.apply(params, *given(arrays, params, frozen))

    def flops(function: Any) -> int:
        return products(jax.make_jaxpr(function)(arrays, params, frozen))

    with everywhere("dense"):
        whole, text = flops(network), flops(given)
    with program.ambient():
        without = flops(network)
    return (whole - text) / rows, (whole - without) / 2 / rows


def _dit(run: Run) -> DiT:
    found = backbone(run)
    assert isinstance(found, DiT)
    return found


def useful(run: Run, mix: Mix) -> float:
    """FLOPs of the forward pass of every example of a step."""
    dit = _dit(run)
    grids, words = [], []
    for row in mix.rows:
        for one in row:
            # A plan may leave tokens out; what stays counts as a grid of one frame.
            whole = int(np.prod(one["grid"])) <= one["tokens"]
            t, y, x = map(int, one["grid"]) if whole else (1, 1, int(one["tokens"]))
            grids.append((t, y, x))
            words.append((max(int(one["words"]), 1), text_features(run)))
    context = {name: words for name in dit.cross}
    return 2.0 * sum(multiply_adds(dit, grids, context=context))


def text_features(run: Run) -> int:
    encoders = [getattr(s.embed, "encoder", None) for s in run.stage.denoiser.signals]
    return next((e.width for e in encoders if e is not None and hasattr(e, "width")), 0)


def attention(run: Run, mix: Mix, block: int) -> tuple[float, Attention]:
    """(FLOPs of one product in the blocks visited by all layers' attention in a step, the blocks
    of self-attention).

    Args:
      block: tokens of the kernel's blocks.
    """
    dit = _dit(run)
    step = max(len(mix.rows) // LOOKED_AT, 1)
    looked = mix.rows[::step]
    totals, product = Attention(), 0.0
    for row in looked:
        queries, kept = _carriers(run, row)
        for pattern in dit.patterns:
            groups = pattern.groups(queries, kept.register)
            mine = _blocks(groups.id, groups.id, block)
            totals += mine
            share = dit.depth / len(dit.patterns)
            product += share * 2 * mine.computed * dit.width
        for _ in dit.cross:
            ids = cross_groups(queries, _text(run, row), None, None)
            product += dit.depth * 2 * _blocks(*ids, block).computed * dit.width
    return product * len(mix.rows) / len(looked), totals


def _blocks(q_group: Any, kv_group: Any, block: int) -> Attention:
    q, k = np.asarray(q_group)[0], np.asarray(kv_group)[0]
    sizes = [min(block, -(-len(ids) // 128) * 128) for ids in (q, k)]
    met = np.asarray(meets(q_group, kv_group, *sizes))[0]
    held = [
        [set(np.unique(ids[at : at + size])) - {0} for at in range(0, len(ids), size)]
        for ids, size in zip((q, k), sizes, strict=True)
    ]
    needed = sum(not a.isdisjoint(b) for a in held[0] for b in held[1])
    counts = [np.bincount(ids, minlength=int(max(q.max(), k.max())) + 1) for ids in (q, k)]
    seen = float((counts[0][1:].astype(float) * counts[1][1:]).sum())
    computed = float(met.sum()) * sizes[0] * sizes[1]
    return Attention(
        seen=seen, computed=computed, whole=float(len(q)) * len(k), visited=int(met.sum()),
        needed=needed,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Kept:
    register: Any


def _carriers(run: Run, row: np.ndarray) -> tuple[Packed, _Kept]:
    """One row's tokens without their values, with the network's registers."""
    data, dit = run.data, _dit(run)
    n, e = data.tokens, data.segments
    segment, position = np.zeros((1, n), np.int32), np.zeros((1, n, 3), np.int32)
    grid, valid = np.zeros((1, e, 3), np.int32), np.zeros((1, e), bool)
    start = 0
    for slot, one in enumerate(row):
        stop = start + int(one["tokens"])
        segment[0, start:stop] = slot + 1
        cells = np.stack(np.unravel_index(np.arange(stop - start), tuple(one["grid"])), axis=1)
        position[0, start:stop] = cells
        grid[0, slot], valid[0, slot] = one["grid"], True
        start = stop
    zeros = jnp.zeros((1, e), jnp.int32)
    examples = Examples(
        id=jnp.zeros((1, e, 2), jnp.uint32), visit=zeros, ordinal=zeros,
        valid=jnp.asarray(valid), grid=jnp.asarray(grid), fps=jnp.zeros((1, e)),
    )  # fmt: skip
    batch = Packed(
        x=jnp.zeros((1, n, 0)), segment=jnp.asarray(segment), position=jnp.asarray(position),
        raster=jnp.zeros((1, n), jnp.int32), examples=examples, patch=run.stage.patch,
    )  # fmt: skip
    if not dit.registers:
        return batch, _Kept(None)
    extended = insert(batch, dit.registers)
    return extended.batch, _Kept(extended.register)


def _text(run: Run, row: np.ndarray) -> Any:
    segment = np.zeros((1, run.data.text_tokens), np.int32)
    words = np.maximum(row["words"], 1)
    ids = np.repeat(np.arange(1, len(row) + 1), words)[: run.data.text_tokens]
    segment[0, : len(ids)] = ids
    return jnp.asarray(segment)


def straggler(costs: np.ndarray, devices: int, microbatches: int) -> float:
    """Attention of the slowest device over the mean, rows balanced as the loader does."""
    from data_pipeline.balance import balance
    from data_pipeline.balance import straggler as ratio

    parts: Sequence[np.ndarray] = np.split(costs, microbatches)
    return float(np.mean([ratio(part, balance(part, devices)) for part in parts]))


def of_training(
    run: Run, mix: Mix, once: Forward, *, products: int, devices: int, remat: str
) -> Work:
    """A training step on `devices` devices of rows; `products` of the traced step."""
    return _work(
        run, mix, once, devices,
        useful=3 * once.useful, products=products,
        attention=once.product * (FORWARD * FORWARDS[remat] + BACKWARD),
    )  # fmt: skip


def of_sampling(
    run: Run, mix: Mix, once: Forward, *, products: int, devices: int, evaluations: int
) -> Work:
    """A call of the sampler that evaluates the network so many times."""
    return _work(
        run, mix, once, devices,
        useful=evaluations * once.useful, products=products,
        attention=once.product * FORWARD * evaluations,
    )  # fmt: skip


def _work(run: Run, mix: Mix, once: Forward, devices: int, **flops: float) -> Work:
    blocks = once.blocks
    return Work(
        **flops,
        pairs=blocks.computed / blocks.seen if blocks else None,
        blocks=blocks.visited / blocks.needed if blocks else None,
        straggler=straggler(mix.squares, devices, run.microbatches) if blocks else 1.0,
    )
