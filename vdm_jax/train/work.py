"""What the rows of a step ask for: multiply-adds of each example, counted where it is decoded.

A row's account is a few numbers; those of all rows, gathered from every process, say how full, how
large and how even a step was. Only models whose work `nets/cost.py` can count have any.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import UInt

from vdm_jax.nets import cost
from vdm_jax.nets.dit import DiT
from vdm_jax.stage import Stage

REMEMBERED = 1 << 16  # sizes of examples
PASSES = 3  # a training step's forward passes' worth: one forwards, two backwards
ACCOUNT = np.dtype(
    [
        ("slots", "<u4"),
        ("tokens", "<u4"),  # of examples that could be decoded
        ("examples", "<u4"),
        ("useful", "<f4"),  # multiply-adds of those examples, forward
        ("load", "<f4"),  # and of those that are computed without being learnt from
        ("name", "<u4", 2),  # a digest of (id, visit, valid)
        ("waited", "<f4"),  # seconds that its process waited for data
    ]
)
WORDS = ACCOUNT.itemsize // 4


@dataclasses.dataclass(frozen=True)
class Work:
    """Multiply-adds of a packed transformer's forward pass.

    Attributes:
      features: of a token of each condition in `dit.cross`.
    """

    dit: DiT
    features: Mapping[str, int]

    @classmethod
    def of(cls, stage: Stage, features: Mapping[str, int]) -> Work | None:
        """None where nobody can count it."""
        backbone = stage.denoiser.backbone
        return cls(backbone, features) if isinstance(backbone, DiT) else None

    @functools.cached_property
    def example(self):
        """(grid, tokens that stay of it, words of its text) -> multiply-adds; remembered."""
        return functools.lru_cache(REMEMBERED)(self._example)

    @functools.cached_property
    def slot(self) -> int:
        """Of one token in the layers that know nothing of its neighbours: what padding costs."""
        one, two = (self._linear(n) for n in (1, 2))
        return two - one

    def _example(self, grid: tuple[int, int, int], stay: int, words: int) -> float:
        whole = self._alone(grid, words)
        tokens = grid[0] * grid[1] * grid[2]
        if stay == tokens:
            return float(whole)
        # Of tokens that are left out, so are the pairs that they would make.
        share = stay / tokens
        linear = self.slot * tokens
        return linear * share + max(whole - linear, 0) * share**2

    def _alone(self, grid: tuple[int, int, int], words: int) -> int:
        context = {name: [(words, self.features[name])] for name in self.dit.cross}
        return cost.multiply_adds(self.dit, [grid], context=context)[0]

    def _linear(self, tokens: int) -> int:
        """Of tokens that are frames by themselves, less what their pairs cost."""
        context = {name: [(0, self.features[name])] for name in self.dit.cross}
        found = cost.multiply_adds(self.dit, [(1, 1, tokens)], context=context)[0]
        pairs = sum(
            self.dit.patterns[i % len(self.dit.patterns)].pairs((1, 1, tokens), self.dit.registers)
            for i in range(self.dit.depth)
        )
        return found - 2 * pairs * self.dit.width


def accounts(
    arrays: Mapping[str, np.ndarray], work: Work | None, waited: float = 0.0
) -> UInt[np.ndarray, "m b w"]:
    """Of every row of a batch, leaves (microbatches, rows, ...), an `ACCOUNT` as uint32."""
    segment, valid = arrays["segment"], arrays["valid"]
    names = np.concatenate([_bytes_of(arrays[name]) for name in ("id", "visit", "valid")], axis=-1)
    found = np.zeros(segment.shape[:2], ACCOUNT)
    found["slots"], found["waited"] = segment.shape[-1], waited
    found["examples"] = valid.sum(-1)
    for place in np.ndindex(found.shape):
        stay = _lengths(segment[place], valid.shape[-1])
        found["tokens"][place] = stay[valid[place]].sum()
        digest = hashlib.sha256(names[place].tobytes()).digest()
        found["name"][place] = np.frombuffer(digest[:8], "<u4")
        if work is not None:
            words = _lengths(arrays["text_segment"][place], valid.shape[-1])
            each = np.array(
                [
                    work.example(tuple(map(int, grid)), int(n), int(w)) if n else 0.0
                    for grid, n, w in zip(arrays["grid"][place], stay, words, strict=True)
                ]
            )
            found["useful"][place] = each[valid[place]].sum()
            found["load"][place] = each.sum()
    return found.view(np.uint32).reshape(*found.shape, WORDS)


def _lengths(segment: np.ndarray, segments: int) -> np.ndarray:
    """How many of a row's tokens each example has."""
    return np.bincount(segment, minlength=segments + 1)[1:]


def _bytes_of(leaf: np.ndarray) -> np.ndarray:
    """(m b ...) -> (m b bytes)."""
    return np.ascontiguousarray(leaf.reshape(*leaf.shape[:2], -1)).view(np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Totals:
    """Of a whole step, over all processes. `straggler` is the most loaded device's work over the
    mean, microbatch by microbatch; `batch` a digest of which examples it holds, whatever row or
    device they lie in. Works are multiply-adds of training, None where nobody can count them.
    """

    slots: int
    tokens: int
    examples: int
    useful: float | None
    raw: float | None
    straggler: float
    waited: float
    batch: str


def total(said: UInt[np.ndarray, "m b w"], devices: int, work: Work | None) -> Totals:
    """Of the accounts of all rows, in the order of the `devices` they lie on."""
    rows = np.ascontiguousarray(said).view(ACCOUNT)[..., 0]
    load = rows["load"] if work is not None else np.square(rows["tokens"], dtype=np.float64)
    of_device = load.reshape(len(rows), devices, -1).sum(-1, dtype=np.float64)
    slowest, mean = of_device.max(1).sum(), of_device.mean(1).sum()
    names = np.sort(np.ascontiguousarray(rows["name"]).view("<u8").reshape(-1))
    slots, tokens = int(rows["slots"].sum()), int(rows["tokens"].sum())
    useful = None if work is None else PASSES * float(rows["useful"].sum(dtype=np.float64))
    raw = None
    if work is not None and useful is not None:
        raw = useful + PASSES * float(work.slot) * (slots - tokens)
    return Totals(
        slots=slots, tokens=tokens, examples=int(rows["examples"].sum()), useful=useful, raw=raw,
        straggler=float(slowest / mean) if mean else 1.0,
        waited=float(rows["waited"].max()),
        batch=hashlib.sha256(names.tobytes()).hexdigest()[:16],
    )  # fmt: skip


class Gather:
    """Accounts of this process's rows -> those of all, where each process can read them.

    Among several it returns before they are there, and all must call it in the same order.
    """

    def __init__(self, sharding: jax.sharding.NamedSharding):
        self.sharding = sharding
        whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        self._gather = jax.jit(lambda x: x, out_shardings=whole)

    def __call__(self, said: np.ndarray) -> np.ndarray | jax.Array:
        if jax.process_count() == 1:
            return said
        return self._gather(jax.make_array_from_process_local_data(self.sharding, said))
