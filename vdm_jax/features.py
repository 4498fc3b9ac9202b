"""A run's codec over its clips, once and beforehand: latents in records, with a manifest.

    views of clips, drawn by the data's laws -> decoded -> codec, batch by batch -> records

Views of one size are encoded together, in parts of `PART`: a part is one ArrayRecord file. Host i
of n takes every n-th part, whatever the others do; parts that are there are not made again; who
finds all of them writes the manifest. So neither stops nor the number of hosts change a bit of what
comes out; other devices, or another number of them a host, may round otherwise.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import index, latents, manifest, remote, storage
from data_pipeline.blocks import PIXELS
from data_pipeline.errors import BadClip, DataError, printable
from data_pipeline.latents import Key, Latents
from data_pipeline.layouts import Packed
from data_pipeline.loaders import PackedVideo
from data_pipeline.parts import Part, Parts
from data_pipeline.progress import bar
from data_pipeline.views import Views
from vdm_jax.codecs import Codec
from vdm_jax.texts import TextEncoder
from vdm_jax.train.digest import digest

SCHEME = 1  # of what becomes of a view before it meets the codec; another number: other latents
PART = 512  # views
AT_ONCE, MOST = 1 << 24, 32  # values of pixels, and views, that are encoded together
# What of a clip's row decides which pixels it has.
CONTENT = (
    "clip_id", "still", "start_s", "end_s", "fps_num", "fps_den", "height", "width", "n_frames",
    "rotation", "sha256",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """What is encoded, and by what.

    Attributes:
      data: the loader of the clips; its patch counts cells of the codec's grid.
      views: of each clip.
      again: the command that makes it anew.
    """

    codec: Codec
    data: PackedVideo
    views: int = 1
    again: str = ""

    def problems(self) -> list[str]:
        """Everything wrong with it, a sentence each; opens no video."""
        if self.data.content is not PIXELS:
            return ["sources hold latents; name the manifests that they were made of."]
        found = self._pixels.problems()
        if not found:
            ids = pa.chunked_array([table["clip_id"].combine_chunks() for table in self._tables])
            if pc.count_distinct(ids).as_py() < len(ids):
                found.append("two sources have clips of the same name; encode each alone.")
            hashes = [pc.fill_null(table["sha256"], "") for table in self._tables]
            if bare := sum(pc.sum(pc.equal(column, "")).as_py() for column in hashes):
                found.append(f"{bare} clips have no sha256 in their manifest; index them again.")
            found += self._codec_problems()
        return found

    def _codec_problems(self) -> list[str]:
        """Whether the codec makes what it says, of one patch; nothing is compiled."""
        said = (1, *self.data.patch, self.codec.channels)
        return [
            f"stage.codec makes {name} of {one.shape} of a video of {self._pixels.patch}; by its "
            f"stride and channels it should be {said}."
            for name, one in self._made.items()
            if one.shape != said
        ]

    @cached_property
    def key(self) -> Key:
        """Of the whole set."""
        return Key(
            content=latents.digest(*(manifest.digest(table, CONTENT) for table in self._tables)),
            encoder=encoder_hash(self.codec),
            transform=latents.digest(f"{SCHEME}", self._views.settings),
        )

    def __call__(self, out: str, shard: int = 0, shards: int = 1) -> dict[str, Any]:
        """Encode this host's parts into the folder `out`, which all hosts share.

        Returns: `clips` and `skipped` {reason: count} of the whole set, its `manifest` and
        `digest`, or None where other hosts still have `missing` parts to make; `key`.

        Raises:
          DataError: code 2, settings that make no sense; 3, `out` holds latents of something else,
            or nothing can be encoded; 6, it cannot be written.
        """
        if found := self.problems():
            raise DataError("\n  ".join([f"{len(found)} mistake(s) in the config:", *found]), 2)
        if remote.is_remote(out):
            raise DataError(f"'{out}' is on object storage; latents are written to disk.", code=2)
        if done := self._done(out):
            return done
        try:
            self._make(out, shard, shards)
            parts = Parts(out, self._settings)
            kept = [self._kept(out, parts, n) for n in range(len(self._cut))]
            missing = sum(one is None for one in kept)
            # Another host may have found all of them first, and have cleared them away.
            if missing:
                return self._done(out) or self._told(None, {}, missing)
            return self._finish(out, parts, [one for one in kept if one is not None])
        except OSError as error:
            raise DataError(f"cannot write latents to '{out}' ({error}).", code=6) from None

    @cached_property
    def _pixels(self) -> PackedVideo:
        """The loader, its patch in pixels: what a row holds is counted as training will."""
        t, h, w = (a * b for a, b in zip(self.codec.stride, self.data.patch, strict=True))
        return dataclasses.replace(self.data, patch=(t, h, w), layout=Packed())

    @cached_property
    def _views(self) -> Views:
        return self._pixels.views(self.views)

    @property
    def _tables(self) -> list[pa.Table]:
        """The clips of each source."""
        return [clips.manifest.table for clips in self._views.planner.sources]

    @cached_property
    def _weights(self) -> Any:
        return self.codec.weights()

    @cached_property
    def _made(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """What the codec makes of one patch."""
        video = jax.ShapeDtypeStruct((1, *self._pixels.patch, 3), jnp.uint8)
        return jax.eval_shape(self.codec.moments, self._weights, video)

    @cached_property
    def _cut(self) -> list[np.ndarray]:
        """The views of each part."""
        every = self._views.examples
        return [every[first : first + PART] for first in range(0, len(every), PART)]

    @cached_property
    def _settings(self) -> str:
        """All that parts depend on: rows carry captions too, on which no latent depends."""
        return repr([self.key, *map(manifest.digest, self._tables)])

    def _kept(self, out: str, parts: Parts, number: int) -> Part | None:
        kept = parts.get(number, _names(self._cut[number]))
        return kept if Path(out, _file(number)).is_file() else None

    def _make(self, out: str, shard: int, shards: int) -> None:
        """Every part of this host's that is not there."""
        parts, mine = Parts(out, self._settings), range(shard, len(self._cut), shards)
        with bar("encoding", sum(len(self._cut[n]) for n in mine)) as advance:
            for number in mine:
                if self._kept(out, parts, number) is None:
                    rows: list[dict[str, Any]] = []
                    skipped: list[dict[str, str]] = []
                    records = self._records(number, rows, skipped)
                    latents.write_records(Path(out, _file(number)), records)
                    part = Part(manifest.table_of(rows), skipped, collections.Counter())
                    parts.put(number, _names(self._cut[number]), part)
                advance(len(self._cut[number]))

    def _records(
        self, number: int, rows: list[dict[str, Any]], skipped: list[dict[str, str]]
    ) -> Iterator[bytes]:
        """The records of a part; their `rows`, and what is `skipped`, are added meanwhile."""
        for view, found in self._encoded(self._cut[number]):
            clip = self._views.clip(view)
            name = latents.view_name(clip["clip_id"], int(view["visit"]))
            try:
                if isinstance(found, BadClip):
                    raise found
                key = dataclasses.replace(self.key, content=clip["sha256"])
                record = latents.pack(found, key, _said(clip, view))
            except BadClip as bad:
                line = {"file": name, "reason": bad.reason, "detail": str(bad)}
                skipped.append({word: printable(value) for word, value in line.items()})
                continue
            where = {"clip_id": name, "uri": f"record://{_file(number)}#{len(rows)}"}
            file = {"sha256": sha256(record).hexdigest(), "bytes": len(record)}
            rows.append(clip | where | file | self._grid(found, view))
            yield record

    def _grid(self, arrays: Mapping[str, np.ndarray], view: np.void) -> dict[str, Any]:
        """The columns of a row that the codec changes."""
        frames, height, width, _ = next(iter(arrays.values())).shape
        rate = Fraction(float(view["rate"])).limit_denominator(1 << 20) / self.codec.stride[0]
        return {
            "n_frames": frames, "height": height, "width": width, "rotation": 0,
            "fps_num": rate.numerator, "fps_den": rate.denominator,
            "start_s": 0.0, "end_s": float(frames / rate) if rate else 0.0,
        }  # fmt: skip

    def _encoded(
        self, views: np.ndarray
    ) -> Iterator[tuple[np.void, Mapping[str, np.ndarray] | BadClip]]:
        for view in views[views["tokens"] == 0]:
            yield view, BadClip("dropped", "too thin for a row")
        batches = list(self._batches(views[views["tokens"] > 0]))
        decoded = self._views.decoded(batches)
        for batch, videos in zip(batches, decoded, strict=True):
            good = [video for video in videos if not isinstance(video, BadClip)]
            arrays = iter(self._encode(good, self._room(batch[0])) if good else ())
            for view, video in zip(batch, videos, strict=True):
                yield view, video if isinstance(video, BadClip) else next(arrays)

    def _batches(self, views: np.ndarray) -> Iterator[np.ndarray]:
        """Views of one size, as many as are encoded together."""
        shape = np.column_stack([self._frames(views["frames"]), views["size"]])
        borders = np.flatnonzero(np.diff(shape, axis=0).any(axis=1)) + 1
        for run in np.split(views, borders):
            room = self._room(run[0]) if len(run) else 1
            yield from (run[first : first + room] for first in range(0, len(run), room))

    def _frames(self, frames: Any) -> Any:
        """As many as the codec takes."""
        stride = self.codec.stride[0]
        return -(-frames // stride) * stride

    def _room(self, view: np.void) -> int:
        """How many views of this size are encoded together."""
        pixels = 3 * int(self._frames(view["frames"])) * int(np.prod(view["size"]))
        devices = jax.local_device_count()
        return -(-min(max(AT_ONCE // pixels, 1), MOST) // devices) * devices

    def _encode(self, videos: Sequence[np.ndarray], room: int) -> list[dict[str, np.ndarray]]:
        """Videos of one size; a short batch is filled, so that each size is compiled once."""
        frames = int(self._frames(len(videos[0])))
        batch = np.zeros((room, frames, *videos[0].shape[1:]), np.uint8)
        for place, video in enumerate(videos):
            # At the front, by the first frame, as rows of patches are (`data_pipeline/rows.py`).
            batch[place] = np.concatenate([video[:1].repeat(frames - len(video), 0), video])
        found = jax.device_get(self._run(self._weights, jax.device_put(batch, spread())))
        return [{name: x[place] for name, x in found.items()} for place in range(len(videos))]

    @cached_property
    def _run(self) -> Any:
        def run(weights: Any, video: Any) -> Any:
            found = self.codec.moments(weights, video)
            return {name: x.astype(jnp.dtype(latents.DTYPE)) for name, x in found.items()}

        return jax.jit(run)

    def _finish(self, out: str, parts: Parts, kept: Sequence[Part]) -> dict[str, Any]:
        """Write the manifest; the table, which says that it is whole, comes last."""
        table = pa.concat_tables([part.table for part in kept]).sort_by("clip_id")
        skipped = [line for part in kept for line in part.skipped]
        reasons = collections.Counter(line["reason"] for line in skipped)
        if not table.num_rows:
            said = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
            raise DataError(f"not one view can be encoded: {said}.")
        manifest.check(table, out)
        first = self._views.planner.sources[0].manifest
        with storage.whole(storage.join(out, manifest.TOKENIZER)) as file:
            file.write(storage.read(first.tokenizer))
        index.tell(out, table, skipped)
        manifest.write(
            out, table, out, latents.described(self.key, self.codec.channels, self._made)
        )
        parts.remove()
        return self._told(Latents.open(out, self.key, self.again), reasons, 0)

    def _done(self, out: str) -> dict[str, Any] | None:
        """What is told of latents that are there already.

        Raises: DataError, they are of something else.
        """
        if not storage.exists(storage.join(out, manifest.TABLE)):
            return None
        found = Latents.open(out, self.key, self.again)
        lines = storage.read(storage.join(out, manifest.SKIPPED)).splitlines()
        return self._told(found, collections.Counter(json.loads(x)["reason"] for x in lines), 0)

    def _told(
        self, found: Latents | None, reasons: Mapping[str, int], missing: int
    ) -> dict[str, Any]:
        return {
            "manifest": found.manifest.folder if found else None,
            "digest": manifest.digest(found.manifest.table) if found else None,
            "clips": len(found.manifest) if found else None,
            "skipped": dict(sorted(reasons.items())),
            "missing": missing,
            "key": dataclasses.asdict(self.key),
        }


def encoder_hash(encoder: Codec | TextEncoder) -> str:
    """`Key.encoder`: of its class, its fields and its weights."""
    kind, weights = type(encoder), digest({"codec": encoder.weights()})
    return latents.digest(f"{kind.__module__}:{kind.__qualname__}", repr(encoder), weights)


def spread() -> jax.sharding.Sharding:
    """A batch over this host's devices: hosts have nothing to tell each other."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("data",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


def _file(number: int) -> str:
    return f"latents-{number:06d}.array_record"


def _names(views: np.ndarray) -> list[str]:
    """Of the views of a part, in short."""
    return [sha256(views.tobytes()).hexdigest()]


def _said(clip: Mapping[str, Any], view: np.void) -> dict[str, Any]:
    """What a record says of its view: enough to decode it again."""
    return {
        "clip_id": clip["clip_id"], "number": int(view["visit"]), "first": clip["start_s"],
        "offset": float(view["offset"]), "rate": float(view["rate"]),
        "frames": int(view["frames"]), "resized": view["resized"].tolist(),
        "size": view["size"].tolist(),
    }  # fmt: skip
