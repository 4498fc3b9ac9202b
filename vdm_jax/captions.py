"""A run's frozen text encoder over its captions, once and beforehand: features in records.

    distinct captions, sorted by hash -> ids of the data's tokenizer -> encoder -> records

In parts, over hosts, and on again after a stop, as latents are (`features.py`). They join a
manifest: that of the latents that were made of the clips, or a new one of the clips as they are.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import latents, manifest, remote, storage, texts
from data_pipeline.errors import BadClip, DataError
from data_pipeline.latents import Key
from data_pipeline.loaders import PackedVideo
from data_pipeline.manifest import Manifest
from data_pipeline.parts import Part, Parts
from data_pipeline.progress import bar
from data_pipeline.texts import Texts
from vdm_jax.features import encoder_hash, spread
from vdm_jax.texts import TextEncoder, encode

PART = 4096  # captions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions:
    """What is encoded, and by what.

    Attributes:
      data: the loader of the clips.
      again: the command that makes it anew.
    """

    encoder: TextEncoder
    data: PackedVideo
    again: str = ""

    def problems(self) -> list[str]:
        """Everything wrong with it, a sentence each; nothing is compiled."""
        found, line = [], jax.ShapeDtypeStruct((1, self.encoder.max_length), jnp.int32)
        if self.encoder.tokenizer != self.data.tokenizer.digest:
            found.append(
                f"stage.text reads the ids of another tokenizer than '{self.data.tokenizer.path}'; "
                "put its file in the place of that one."
            )
        mask = jax.ShapeDtypeStruct(line.shape, bool)
        made = jax.eval_shape(self.encoder.encode, self._weights, line, mask).shape
        if made != (said := (*line.shape, self.encoder.width)):
            found.append(f"stage.text makes {made} of {line.shape} ids; by its width it is {said}.")
        return found

    @cached_property
    def key(self) -> Key:
        """Of the whole set."""
        return Key(
            content=latents.digest(*self._captions),
            encoder=encoder_hash(self.encoder),
            transform=self.data.tokenizer.digest,
        )

    def __call__(
        self, out: str, onto: Manifest | None, shard: int = 0, shards: int = 1
    ) -> dict[str, Any]:
        """Encode this host's parts into the folder `out`, which all hosts share.

        Args:
          onto: the manifest that the features join, written to `out`; None: it is not there yet.

        Returns: `captions` of the whole set and those of them `skipped` {reason: count}, or None
          where other hosts still have `missing` parts to make; `key`.

        Raises:
          DataError: code 2, settings that make no sense; 3, `out` holds features of something
            else; 6, it cannot be written.
        """
        if found := self.problems():
            raise DataError("\n  ".join([f"{len(found)} mistake(s) in the config:", *found]), 2)
        if remote.is_remote(out):
            raise DataError(f"'{out}' is on object storage; features are written to disk.", code=2)
        if any(os.path.realpath(out) == os.path.realpath(m.folder) for m in self.data.manifests):
            raise DataError(f"'{out}' is the manifest itself; take a new folder.", code=2)
        if done := self._done(out, onto):
            return done
        try:
            folder = storage.join(out, texts.FOLDER)
            self._make(folder, shard, shards)
            parts = Parts(folder, repr(self.key))
            kept = [self._kept(folder, parts, n) for n in range(len(self._cut))]
            missing = sum(one is None for one in kept)
            if missing or onto is None:
                return self._done(out, onto) or self._told(None, missing)
            self._finish(out, onto, [one.table for one in kept if one is not None])
            parts.remove()
        except OSError as error:
            raise DataError(f"cannot write text features to '{out}' ({error}).", code=6) from None
        return self._told(Texts.of(manifest.read(out)), 0)

    @cached_property
    def _weights(self) -> Any:
        return self.encoder.weights()

    @cached_property
    def _captions(self) -> dict[bytes, str]:
        return texts.distinct(one.table for one in self.data.manifests)

    @cached_property
    def _cut(self) -> list[Sequence[bytes]]:
        """The hashes of the captions of each part."""
        every = list(self._captions)
        return [every[first : first + PART] for first in range(0, len(every), PART)]

    def _kept(self, folder: str, parts: Parts, number: int) -> Part | None:
        kept = parts.get(number, _names(self._cut[number]))
        return kept if Path(folder, _file(number)).is_file() else None

    def _make(self, folder: str, shard: int, shards: int) -> None:
        """Every part of this host's that is not there."""
        parts, mine = Parts(folder, repr(self.key)), range(shard, len(self._cut), shards)
        with bar("encoding captions", sum(len(self._cut[n]) for n in mine)) as advance:
            for number in mine:
                if self._kept(folder, parts, number) is None:
                    rows: list[dict[str, Any]] = []
                    latents.write_records(Path(folder, _file(number)), self._records(number, rows))
                    table = pa.Table.from_pylist(rows, texts.SCHEMA)
                    parts.put(number, _names(self._cut[number]), Part(table, [], Counter()))
                advance(len(self._cut[number]))

    def _records(self, number: int, rows: list[dict[str, Any]]) -> Iterator[bytes]:
        """The records of a part; their `rows` are added meanwhile."""
        hashes, written = self._cut[number], 0
        ids = [self.data.tokenizer.encode(self._captions[one]) for one in hashes]
        made = encode(self.encoder, self._weights, ids, spread())
        for caption, features in zip(hashes, made, strict=True):
            row: dict[str, Any] = {"caption": caption, "uri": None, "words": len(features)}
            rows.append(row)
            key = dataclasses.replace(self.key, content=caption.hex())
            try:
                record = latents.pack({texts.FEATURES: features}, key, {})
            except BadClip:  # not finite: its clips are masked
                continue
            row["uri"], written = f"record://{_file(number)}#{written}", written + 1
            yield record

    def _finish(self, out: str, onto: Manifest, tables: Sequence[pa.Table]) -> None:
        """Write what is found by hash, and then the manifest that names it."""
        with storage.whole(storage.join(out, texts.FOLDER, texts.TABLE)) as file:
            pq.write_table(pa.concat_tables([texts.SCHEMA.empty_table(), *tables]), file)
        if set(texts.distinct([onto.table])) - set(self._captions):
            raise DataError(
                f"'{onto.folder}' has other captions than the clips it was made of have now; make "
                f"it anew: {self.again}"
            )
        if onto.folder != out:
            for name in (manifest.TOKENIZER, manifest.PROMPTS, manifest.SKIPPED):
                if storage.exists(storage.join(onto.folder, name)):
                    with storage.whole(storage.join(out, name)) as file:
                        file.write(storage.read(storage.join(onto.folder, name)))
        said = texts.described(self.key, self.encoder.width)
        manifest.write(out, onto.table, onto.root, onto.latents, said)

    def _done(self, out: str, onto: Manifest | None) -> dict[str, Any] | None:
        """What is told of features that are there already.

        Raises: DataError, they are of something else, or `out` is another manifest.
        """
        if onto is None or not storage.exists(storage.join(out, manifest.TABLE)):
            return None
        there = manifest.read(out)
        if manifest.digest(there.table) != manifest.digest(onto.table):
            raise DataError(f"'{out}' is a manifest of other clips; take a new folder.", code=2)
        found = Texts.of(there)
        if found is None:
            return None
        if causes := [n for n in texts.CAUSES if getattr(self.key, n) != getattr(found.key, n)]:
            raise DataError(texts.stale(out, causes, self.again))
        return self._told(found, 0)

    def _told(self, found: Texts | None, missing: int) -> dict[str, Any]:
        skipped = found.table["uri"].null_count if found else 0
        return {
            "captions": found.table.num_rows - skipped if found else None,
            "skipped": {"not_finite": skipped} if skipped else {},
            "missing": missing,
            "key": dataclasses.asdict(self.key),
        }


def _file(number: int) -> str:
    return f"texts-{number:06d}.array_record"


def _names(hashes: Sequence[bytes]) -> list[str]:
    """Of the captions of a part, in short."""
    return [sha256(b"".join(hashes)).hexdigest()]
