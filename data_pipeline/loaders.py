"""The loader: sources and capacities in, the same global batches out on any number of hosts.

    plan rows -> decode, `threads` at once -> stack into this host's share of a step

Row r of a step is decoded where it is needed: what comes out does not depend on threads, prefetch
or hosts, and to resume at a cursor opens nothing before it. Steps never straddle blocks: the last
of a block is filled with empty rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Generator, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import grain
import numpy as np

from data_pipeline import manifest, remote, rows
from data_pipeline.collection import Clips, gather, split
from data_pipeline.decode import decode, read_view
from data_pipeline.errors import DataError
from data_pipeline.order import Drawn
from data_pipeline.plan import SCHEME, Capacity, Planner, Plans, lay_out, plan_name
from data_pipeline.report import summarise
from data_pipeline.serve import Batch, ErrorBudget, Reader, Served, Share, Steps, remembering, stack
from data_pipeline.sizes import Area, Native
from data_pipeline.text import Tokenizer
from data_pipeline.workers import DEFAULT, Decoder

VALIDATION_SEED = 0  # not the run's: every run of the same data is judged on the same batch
MOST_VALIDATION = 1 << 14
LARGEST_BLOCK = 1 << 20
VERIFY = ("size", "sha256")
STEPS_AHEAD = 4  # more would be decoded in vain by whoever stops early

__all__ = ["Batch", "PackedVideo", "Source"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A manifest, and its share of the examples in relation to the other sources'."""

    manifest: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedVideo:
    """Videos and images of any size in rows of one static shape.

    Attributes:
      patch: frames, height, width of a patch.
      tokens, text_tokens, segments: what a row holds; one text token stays free.
      rows: of one global step, over all hosts and microbatches.
      fps: frames a second that clips are sampled at; None is as they are.
      holdout: share of clips kept for `validation`, chosen by their names.
      block: examples that are planned together.
      threads: decoders at work at once; prefetch_mib: bound of what waits decoded; memory_mib: of
        decoded clips that are kept for their next visit, 0 keeps none.
      cache: folder for plans; None is beside the first manifest, or below `$VDM_CACHE` where that
        is on object storage.
      max_bad: more than this share of at least 64 examples bad ends the run with code 3, and so do
        more than `max_bad_examples` of a host since its start.
      decoder: where files are decoded, and what they may cost (`workers.py`).
      verify: what of a file must be as its manifest says: its "size" or its "sha256".
    """

    sources: tuple[Source, ...]
    patch: tuple[int, int, int]
    tokens: int
    text_tokens: int
    segments: int
    rows: int
    seed: int
    size: Native | Area
    fps: float | None = None
    holdout: float = 0.0
    block: int = 4096
    threads: int = 4
    prefetch_mib: int = 256
    memory_mib: int = 256
    cache: str | None = None
    max_bad: float = 0.5
    max_bad_examples: int | None = None
    decoder: Decoder = DEFAULT
    verify: str = "size"

    def problems(self, devices: int = 1, microbatches: int = 1) -> list[str]:
        """Everything wrong with these settings, one sentence each; opens no video."""
        found = self._number_problems(devices, microbatches)
        if not self.sources:
            found.append("sources is empty; name at least one manifest.")
        for source in self.sources:
            try:
                manifest.read(source.manifest)
            except DataError as error:
                found.append(f"sources: {error}")
        if self.sources and not found:
            found += self._clip_problems()
        return found

    def _number_problems(self, devices: int, microbatches: int) -> list[str]:
        least = {"tokens": 1, "text_tokens": 2, "segments": 1, "rows": 1, "seed": 0, "block": 1}
        least |= {"threads": 1, "prefetch_mib": 1, "memory_mib": 0}
        found = [
            f"{name} is {getattr(self, name)!r}; it must be a whole number of at least {low}."
            for name, low in least.items()
            if not _whole(getattr(self, name), low)
        ]
        if len(self.patch) != 3 or not all(_whole(side, 1) for side in self.patch):
            found.append(f"patch is {self.patch!r}; it must be three whole numbers of at least 1.")
        if self.fps is not None and not (_real(self.fps) and self.fps > 0):
            found.append(f"fps is {self.fps!r}; it must be above 0, or None for each clip's own.")
        if not (_real(self.holdout) and 0 <= self.holdout < 1):
            found.append(f"holdout is {self.holdout!r}; it must be at least 0 and below 1.")
        if not (_real(self.max_bad) and 0 <= self.max_bad <= 1):
            found.append(f"max_bad is {self.max_bad!r}; it must be between 0 and 1.")
        found += [
            f"the weight of source '{source.manifest}' is {source.weight!r}; it must be above 0."
            for source in self.sources
            if not (_real(source.weight) and source.weight > 0)
        ]
        if self.max_bad_examples is not None and not _whole(self.max_bad_examples, 0):
            found.append(
                f"max_bad_examples is {self.max_bad_examples!r}; it must be a whole number of at "
                "least 0, or None."
            )
        if self.verify not in VERIFY:
            found.append(f"verify is {self.verify!r}; it must be one of {', '.join(VERIFY)}.")
        found += self.decoder.problems()
        found += self.size.problems()
        if found:
            return found
        if self.rows % (devices * microbatches):
            found.append(
                f"rows is {self.rows}, which does not divide by {devices} devices x "
                f"{microbatches} microbatches; take a multiple of {devices * microbatches}."
            )
        if not self.rows <= self.block <= LARGEST_BLOCK:
            found.append(
                f"block is {self.block}; it must be between rows ({self.rows}) and {LARGEST_BLOCK}."
            )
        return found

    def _clip_problems(self) -> list[str]:
        try:
            sources, train = self._sources, self._split[0]
        except DataError as error:
            return [f"sources: {error}"]
        found = [
            f"holdout {self.holdout} leaves no clip of '{source.manifest}' to train on; lower it."
            for source, mine in zip(self.sources, train, strict=True)
            if not len(mine)
        ]
        for axis, side in enumerate(("frames", "height", "width")):
            largest = max(int(getattr(clips, side).max()) for clips in sources)
            if self.patch[axis] > largest:
                found.append(
                    f"patch is {self.patch}, but no clip has more than {largest} {side}; "
                    "take a smaller patch."
                )
        return found

    @cached_property
    def capacity(self) -> Capacity:
        patch = (self.patch[0], self.patch[1], self.patch[2])
        return Capacity(
            patch=patch, tokens=self.tokens, text_tokens=self.text_tokens, segments=self.segments
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """That of all captions lies beside the first manifest."""
        return Tokenizer(self._manifests[0].tokenizer)

    @cached_property
    def _manifests(self) -> tuple[manifest.Manifest, ...]:
        return tuple(manifest.read(source.manifest) for source in self.sources)

    @cached_property
    def _sources(self) -> tuple[Clips, ...]:
        return tuple(gather(found, self.tokenizer) for found in self._manifests)

    @cached_property
    def _split(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return split(self._sources, self.holdout)

    @property
    def held_out(self) -> int:
        """How many clips are held out: none of a single one, whatever `holdout` says."""
        return sum(map(len, self._split[1]))

    @cached_property
    def _planner(self) -> Planner:
        """Raises: DataError, code 2, for every problem with the settings."""
        found = self.problems()
        if found:
            raise DataError(" ".join(found), code=2)
        return Planner(
            sources=self._sources,
            train=tuple(self._split[0]),
            weights=tuple(float(source.weight) for source in self.sources),
            seed=self.seed,
            capacity=self.capacity,
            size=self.size,
            fps=self.fps,
            block=self.block,
        )

    @cached_property
    def _plans(self) -> Plans:
        return Plans(self._planner, self._cache / plan_name(self.fingerprint()))

    @property
    def _cache(self) -> Path:
        if self.cache is not None:
            return Path(self.cache)
        folder = self._manifests[0].folder
        beside = None if remote.is_remote(folder) else Path(folder)
        return (beside or remote.cache_folder()) / "plans"

    @cached_property
    def _reader(self) -> Reader:
        run = self.decoder.start(read_view)
        guarded = partial(decode, limits=self.decoder.limits, run=run)
        recall = remembering(guarded, self.memory_mib)
        return Reader(self._sources, self.capacity, self.tokenizer, recall, self.verify)

    def fingerprint(self) -> dict[str, Any]:
        """What must stay as it is when a run resumes, as JSON would return it."""
        size = {"law": type(self.size).__name__, **dataclasses.asdict(self.size)}
        return {
            "scheme": SCHEME,
            "manifests": [manifest.digest(s.manifest.table) for s in self._sources],
            "weights": [float(source.weight) for source in self.sources],
            "tokenizer": self.tokenizer.digest,
            "patch": list(self.patch),
            "size": size,
            **{name: getattr(self, name) for name in _KEPT},
        }

    def batches(
        self,
        cursor: int = 0,
        *,
        shard: int = 0,
        shards: int = 1,
        devices: int = 1,
        microbatches: int = 1,
        known_bad: Iterable[tuple[str, int]] = (),
    ) -> Generator[Batch]:
        """The steps from `cursor` on, without end; leaves (microbatches, rows of this shard, ...).

        Args:
          shard, shards: this host among how many; devices: of all hosts together, in their order.
          known_bad: (clip, ordinal) of examples that are masked without being opened.

        Raises:
          DataError: code 2 for settings that do not go together; code 3 (while iterating) when too
            many examples are bad; code 6 when the plan cannot be cached.
        """
        found = self.problems(devices, microbatches)
        if not 0 <= shard < shards or devices % shards:
            found.append(f"shard {shard} of {shards} does not fit {devices} devices.")
        if cursor < 0:
            found.append(f"cursor is {cursor}; it must be at least 0.")
        if found:
            raise DataError(" ".join(found), code=2)
        share = Share(
            rows=self.rows, shard=shard, shards=shards, devices=devices, microbatches=microbatches
        )
        return self._serve(Steps(self._plans, cursor, self.rows), share, frozenset(known_bad))

    def _serve(
        self, steps: Steps, share: Share, known_bad: Collection[tuple[str, int]]
    ) -> Generator[Batch]:
        budget = ErrorBudget(self.max_bad, self.max_bad_examples)
        row_bytes = sum(leaf.nbytes for leaf in rows.blank(self.capacity).values())
        ahead = max(self.threads, STEPS_AHEAD * share.rows_per_step)
        waiting = max(1, min(ahead, (self.prefetch_mib << 20) // row_bytes))
        options = grain.ReadOptions(
            num_threads=min(self.threads, waiting), prefetch_buffer_size=waiting
        )
        served = Served(steps, share, self._reader, known_bad)
        # Threads, not grain's processes: each waits for a decoder, which `self.decoder` may put
        # into a process that can be replaced.
        data = grain.MapDataset.source(served).to_iter_dataset(options)
        iterator = iter(data.batch(share.rows_per_step, batch_fn=tuple))
        try:
            for step in itertools.count():
                read = next(iterator)
                budget.count(read)
                yield stack(read, steps.after(step), share)
        finally:
            iterator.close()

    def validation(self, rows: int) -> Batch:
        """Held-out clips, each once in an order of its own, in `rows` rows: leaves (1, rows, ...).

        The same whatever the seed of the run.

        Raises:
          DataError: code 2, nothing is held out.
        """
        held = self._split[1]
        source = np.repeat(np.arange(len(held)), [len(mine) for mine in held])
        clip = np.concatenate(held) if held else np.zeros(0, np.int64)
        if not len(clip):
            raise DataError(
                f"holdout {self.holdout} of {sum(map(len, self._sources))} clips holds out none; "
                "raise it, or set validate_every to 0.",
                code=2,
            )
        identity = np.array(
            [self._sources[s].id[c, 1] for s, c in zip(source, clip, strict=True)], np.uint64
        )
        order = np.argsort(identity, kind="stable")[:MOST_VALIDATION]
        drawn = Drawn(source[order], clip[order], np.zeros(len(order), np.int64))
        examples = self._planner.describe(drawn, np.arange(len(order)), VALIDATION_SEED)
        block = lay_out(examples, self.capacity, VALIDATION_SEED, 0)
        share = Share(rows=rows)
        chosen = [block.row(row) if row < len(block) else block.examples[:0] for row in range(rows)]
        batch = stack([self._reader.read(row) for row in chosen], 0, share)
        if not batch.arrays["valid"].any():
            raise DataError("not one of the held-out clips can be decoded; index them again.")
        return batch

    def report(self, steps: int = 64, devices: int = 1) -> dict[str, Any]:
        """What the first steps will be like, from the plan alone; see `report.summarise`."""
        return summarise(Steps(self._plans, 0, self.rows), self.capacity, steps, devices)


_KEPT = ("seed", "tokens", "text_tokens", "segments", "fps", "block", "holdout")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _real(value: object) -> bool:
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return whole and math.isfinite(float(value))  # type: ignore[arg-type]
