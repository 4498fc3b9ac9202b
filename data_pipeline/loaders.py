"""The loader: sources and capacities in, the same global batches out on any number of hosts.

    plan rows -> decode, `threads` at once -> stack into this host's share of a step

Row r of a step is decoded where it is needed: what comes out does not depend on threads, prefetch
or hosts, and to resume at a cursor opens nothing before it. Steps never straddle blocks: the last
of a block is filled with empty rows.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import grain
import numpy as np

from data_pipeline import clips, manifest, remote, rows
from data_pipeline.blocks import PIXELS, Capacity, Content, Kind
from data_pipeline.card import card
from data_pipeline.clips import LogFrames, LogRate, LogSeconds, OwnRate, Rate, Strides, Whole
from data_pipeline.collection import Clips, gather, split
from data_pipeline.decode import decode, read_view
from data_pipeline.dropping import Beta, ByLength, Constant, KeepAll, Scheduled
from data_pipeline.errors import DataError
from data_pipeline.latents import Latents
from data_pipeline.layouts import Buckets, Packed
from data_pipeline.manifest import Manifest
from data_pipeline.mixture import ByExamples, ByTokens, Source, select
from data_pipeline.order import Drawn
from data_pipeline.plan import SCHEME, Planner, Plans, pick, plan_name
from data_pipeline.report import summarise
from data_pipeline.serve import Batch, ErrorBudget, Reader, Served, Share, Steps, remembering, stack
from data_pipeline.settings import latent_problems, number_problems
from data_pipeline.sizes import Area, Crop, Native, NormalSide, Side
from data_pipeline.text import Tokenizer
from data_pipeline.texts import Texts, caption_problems, text_problems
from data_pipeline.views import Views
from data_pipeline.workers import DEFAULT, Decoder

VALIDATION_SEED = 0  # not the run's: every run of the same data is judged on the same batch
MOST_VALIDATION = 1 << 14
STEPS_AHEAD = 4  # more would be decoded in vain by whoever stops early

__all__ = ["Batch", "PackedVideo", "Source"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedVideo:
    """Videos and images of any size in rows of one static shape.

    Attributes:
      mix: what the sources' weights are shares of.
      patch: frames, height, width of a patch.
      tokens, text_tokens, segments: what a row holds; one text token stays free.
      pairs: the largest share of a row's query-key pairs that are its examples' own (`Capacity`).
      rows: of one global step, over all hosts and microbatches.
      size: the law of the clips' size.
      fps: frames a second that clips are sampled at, or a law of it; None is as they are.
      duration: the law of how long a part of a clip is seen.
      dropping: the law of how many tokens of an example are left out, in training.
      layout: `Buckets` where a row is to hold one example.
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
    mix: ByExamples | ByTokens = dataclasses.field(default_factory=ByExamples)
    patch: tuple[int, int, int]
    tokens: int
    text_tokens: int
    segments: int
    pairs: float = 1.0
    rows: int
    seed: int
    size: Native | Area | Side | NormalSide | Crop
    fps: float | LogRate | Strides | None = None
    duration: Whole | LogSeconds | LogFrames = dataclasses.field(default_factory=Whole)
    dropping: KeepAll | Constant | Beta | ByLength | Scheduled = dataclasses.field(
        default_factory=KeepAll
    )
    layout: Packed | Buckets = dataclasses.field(default_factory=Packed)
    holdout: float = 0.0
    block: int = 2**16
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
        found = number_problems(self, devices, microbatches)
        for part in (
            self.size, self._rate, self.duration, self.dropping, self.layout, self.decoder
        ):  # fmt: skip
            found += part.problems()
        if not self.sources:
            found.append("sources is empty; name at least one manifest.")
        found += [f"sources: {one}" for one in self._read if isinstance(one, DataError)]
        if found:
            return found
        try:
            manifests = [one for one in self._read if isinstance(one, Manifest)]
            found += latent_problems(self, manifests)
            found += text_problems(manifests, self.tokenizer)
        except DataError as error:
            found.append(f"sources: {error}")
        if self.sources and not found:
            found += self._clip_problems()
        return found

    def _clip_problems(self) -> list[str]:
        try:
            sources, train = self._sources, self._split[0]
        except DataError as error:
            return [f"sources: {error}"]
        found = caption_problems(sources)
        found += [
            f"holdout {self.holdout} leaves no clip of '{source.manifest}' to train on; lower it."
            for source, mine in zip(self.sources, train, strict=True)
            if not len(mine)
        ]
        for axis, side in enumerate(("frames", "height", "width")):
            largest = max(int(getattr(clips, side).max()) for clips in sources)
            enlarged = axis > 0 and self.size.most is not None
            if self.patch[axis] > largest and not enlarged:
                found.append(
                    f"patch is {self.patch}, but no clip has more than {largest} {side}; "
                    "take a smaller patch."
                )
        return found

    @cached_property
    def capacity(self) -> Capacity:
        """Of a packed row."""
        patch = (self.patch[0], self.patch[1], self.patch[2])
        return Capacity(
            patch=patch, tokens=self.tokens, text_tokens=self.text_tokens, segments=self.segments,
            pairs=self.pairs, content=self.content,
            text_width=self.texts.width if self.texts else 0,
        )  # fmt: skip

    @cached_property
    def latents(self) -> Latents | None:
        """What the clips were encoded to beforehand: of the first source, as all are alike."""
        found = next((one for one in self._read if isinstance(one, Manifest)), None)
        return Latents.of(found) if found is not None else None

    @cached_property
    def texts(self) -> Texts | None:
        """What was made of the captions beforehand: of the first source, as all are alike."""
        found = next((one for one in self._read if isinstance(one, Manifest)), None)
        return Texts.of(found) if found is not None else None

    @property
    def content(self) -> Content:
        """What a row holds."""
        return PIXELS if self.latents is None else self.latents.content

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The shapes of steps: what is compiled."""
        return self._planner.kinds

    @property
    def _rate(self) -> OwnRate | Rate | LogRate | Strides:
        if self.fps is None:
            return OwnRate()
        return self.fps if isinstance(self.fps, LogRate | Strides) else Rate(fps=self.fps)

    @cached_property
    def _read(self) -> tuple[Manifest | DataError, ...]:
        """The clips of each source, or why there are none."""

        def read(source: Source) -> Manifest | DataError:
            try:
                return select(manifest.read(source.manifest), source)
            except DataError as error:
                return error

        return tuple(map(read, self.sources))

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """The clips of each source.

        Raises: DataError, that of the first source that cannot be read.
        """
        for one in self._read:
            if isinstance(one, DataError):
                raise one
        return tuple(one for one in self._read if isinstance(one, Manifest))

    @property
    def _beside(self) -> Path:
        """The folder for what is made of the manifests."""
        if self.cache is not None:
            return Path(self.cache)
        folder = self.manifests[0].folder
        return (remote.cache_folder() if remote.is_remote(folder) else Path(folder)) / "plans"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """That of all captions lies beside the first manifest."""
        return Tokenizer(self.manifests[0].tokenizer)

    @cached_property
    def _sources(self) -> tuple[Clips, ...]:
        return tuple(gather(one, self.tokenizer, self._beside) for one in self.manifests)

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
        weights = tuple(float(source.weight) for source in self.sources)
        planner = Planner(
            sources=self._sources,
            train=tuple(self._split[0]),
            weights=weights,
            seed=self.seed,
            capacity=self.capacity,
            rows=self.rows,
            block=self.block,
            size=self.size,
            rate=self._rate,
            duration=self.duration,
            start=clips.start if self.content is PIXELS else clips.at_first,
            dropping=self.dropping,
            layout=self.layout,
        )
        shares = self.mix.examples(weights, planner.tokens_per_example)
        return dataclasses.replace(planner, weights=shares)

    @cached_property
    def _plans(self) -> Plans:
        return Plans(self._planner, self._beside / plan_name(self._planned))

    @cached_property
    def _reader(self) -> Reader:
        run = self.decoder.start(read_view)
        guarded = partial(decode, limits=self.decoder.limits, run=run)
        recall = remembering(guarded, self.memory_mib)
        return Reader(self._sources, self.tokenizer, self.seed, recall, self.verify)

    @cached_property
    def _digests(self) -> list[str]:
        return [manifest.digest(one.table) for one in self.manifests]

    def fingerprint(self) -> dict[str, Any]:
        """What must stay as it is when a run resumes, as JSON would return it."""
        if self.texts is None:
            return self._planned
        key = self.texts.key
        return self._planned | {"texts": {"encoder": key.encoder, "tokenizer": key.transform}}

    @property
    def _planned(self) -> dict[str, Any]:
        """What decides the plan: of each text its length, whatever is made of it."""
        # Steps of a bucket are laid out in the plan; packed rows are what they are in any step.
        rows_of = self.rows if isinstance(self.layout, Buckets) else None
        return {
            "scheme": SCHEME,
            "manifests": self._digests,
            "parts": [{"split": s.split, "where": s.where} for s in self.sources],
            "weights": [float(source.weight) for source in self.sources],
            "tokenizer": self.tokenizer.digest,
            "rows": rows_of,
            **{name: _recorded(getattr(self, name)) for name in _KEPT},
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
        share = Share(shard=shard, shards=shards, devices=devices, microbatches=microbatches)
        return self._serve(Steps(self._plans, cursor, self.kinds), share, frozenset(known_bad))

    def _serve(
        self, steps: Steps, share: Share, known_bad: Collection[tuple[str, int]]
    ) -> Generator[Batch]:
        budget = ErrorBudget(self.max_bad, self.max_bad_examples)
        blank = (rows.blank(kind.capacity) for kind in steps.kinds)
        row_bytes = max(sum(leaf.nbytes for leaf in row.values()) for row in blank)
        most = max(kind.rows for kind in steps.kinds) // share.shards
        ahead = max(self.threads, STEPS_AHEAD * most)
        waiting = max(1, min(ahead, (self.prefetch_mib << 20) // row_bytes))
        options = grain.ReadOptions(
            num_threads=min(self.threads, waiting), prefetch_buffer_size=waiting
        )
        served = Served(steps, share, self._reader, known_bad)
        # Threads, not grain's processes: each waits for a decoder, which `self.decoder` may put
        # into a process that can be replaced.
        iterator = iter(grain.MapDataset.source(served).to_iter_dataset(options))
        try:
            for step in itertools.count():
                mine = steps.locate(step).kind.rows // share.shards
                read = list(itertools.islice(iterator, mine))
                budget.count(read)
                yield stack(read, steps.after(step), share.microbatches)
        finally:
            iterator.close()

    def validation(self, rows: int) -> Batch:
        """Held-out clips, each once in an order of its own, in `rows` packed rows, no token left
        out: leaves (1, rows, ...).

        The same whatever the seed of the run.

        Raises:
          DataError: code 2, nothing is held out; code 3, none of it can be used.
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
        drawn = Drawn(source, clip, np.zeros(len(clip), np.int64))
        identity = pick(self._sources, drawn, lambda clips, chosen: clips.id[chosen, 1])
        order = np.argsort(identity, kind="stable")[:MOST_VALIDATION]
        planner = dataclasses.replace(self._planner, dropping=KeepAll())
        drawn = Drawn(*(leaf[order] for leaf in drawn))
        examples = planner.describe(drawn, np.arange(len(order)), VALIDATION_SEED)
        kinds = (Kind(self.capacity, rows),)
        block = Packed().lay_out(examples, kinds, VALIDATION_SEED, 0)
        chosen = [block.row(row) if row < len(block) else block.examples[:0] for row in range(rows)]
        with ThreadPoolExecutor(self.threads) as pool:
            read = list(pool.map(partial(self._reader.read, capacity=self.capacity), chosen))
        batch = stack(read, 0, 1)
        if not batch.arrays["valid"].any():
            budget = ErrorBudget(self.max_bad)
            budget.add(read)
            raise DataError(
                f"not one of {budget.seen} held-out clips can be used ({budget.top}); look at "
                f"{budget.worst}."
            )
        return batch

    def views(self, count: int) -> Views:
        """Of every clip, held out or not, `count` views by the laws of size, rate and duration.

        Raises:
          DataError: code 2, for every problem with the settings.
        """
        planner = dataclasses.replace(self._planner, dropping=KeepAll())
        return Views(planner=planner, reader=self._reader, count=count, threads=self.threads)

    def report(self, steps: int = 64, devices: int = 1) -> dict[str, Any]:
        """What the first steps will be like, from the plan alone; see `report.summarise`."""
        return summarise(self._planner, self._plans, steps, devices)

    def card(self) -> dict[str, Any]:
        """The data card of the manifests, `before` and `after` splits and conditions chose."""
        every = dict.fromkeys(source.manifest for source in self.sources)  # parts of one are one
        before = [manifest.read(name).table for name in every]
        return {"before": card(before), "after": card([one.table for one in self.manifests])}

    def rows_of_step(self, step: int = 0) -> list[np.ndarray]:
        """The examples of each row of a step."""
        return Steps(self._plans, 0, self.kinds).examples(step)[0]


_KEPT = (
    "mix", "patch", "tokens", "text_tokens", "segments", "pairs", "seed", "size", "fps", "duration",
    "dropping", "layout", "block", "holdout",
)  # fmt: skip


def _recorded(value: Any) -> Any:
    """A setting as JSON would return it; a law by its name and numbers."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: _recorded(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    return [_recorded(part) for part in value] if isinstance(value, tuple | list) else value
