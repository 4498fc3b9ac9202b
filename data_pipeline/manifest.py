"""The canonical table of clips: one row per clip in Parquet, with a digest of its content.

| column | type | meaning |
| --- | --- | --- |
| clip_id | string | names the clip for ever: noise, order and hold-out hang on it |
| uri | string | where its bytes are, from the root of the source (`places.py`) |
| still | bool | an image, not a film of one frame |
| start_s, end_s | float64 | presentation times: first frame, the file's next one after the last |
| fps_num, fps_den | int64 | measured frame rate; 0/1 for a still image |
| height, width | int32 | pixels, after rotation |
| n_frames | int32 | counted, not read from a header |
| rotation | int32 | degrees counter-clockwise that the decoder turns the stored frames |
| captions | list(string) | any number, none too |
| caption_weights | list(float32) | how often each is drawn; null where all are alike |
| label, split, source, licence | string | what is known beside; may be empty |
| scores | struct of float32 | those of `SCORES`; null where not measured |
| sha256 | string | of the file |
| bytes | int64 | of the file: a file that changed later is noticed without hashing it |

Several rows may be parts of one file: its shots.

A manifest is a folder, on disk or on object storage: `clips.parquet`, `tokenizer.json`,
`skipped.jsonl`, and `captions.txt`, the most frequent captions, to sample with. The path from it to
the root of the source is kept in the table's metadata, so that both can be moved together; where
either is on object storage it is the root's whole name. Where the files hold what an encoder made
of clips, not clips, the metadata says of what (`latents.py`); sizes and rates are then those of the
latents. It also says what was made of the captions, if anything was (`texts.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline import remote, storage
from data_pipeline.errors import DataError
from data_pipeline.places import OURS, OUTSIDE, SCHEME, Place

TABLE = "clips.parquet"
TOKENIZER = "tokenizer.json"
SKIPPED = "skipped.jsonl"
PROMPTS = "captions.txt"
ROOT, LATENTS, TEXTS = b"root", b"latents", b"texts"
HASHED = 1 << 16  # rows that are hashed together
# Fields of `scores`. `curation/` measures them, aesthetic and clip by models of the user's.
SCORES = (
    "motion",  # shorter sides per second
    "aesthetic",
    "clip",  # likeness of picture and caption
    "text_area",  # share of the picture
    "brightness",  # 0 black, 1 white
    "change",  # of luma from one frame seen to the next, 0 to 1
    "watermark",  # 0, or up to 1 where a clip bears its source's mark
)
SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("uri", pa.string()),
        ("still", pa.bool_()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("fps_num", pa.int64()),
        ("fps_den", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("n_frames", pa.int32()),
        ("rotation", pa.int32()),
        ("captions", pa.list_(pa.string())),
        ("caption_weights", pa.list_(pa.float32())),
        ("label", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("scores", pa.struct([(name, pa.float32()) for name in SCORES])),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A table that was read, where its files lie, and what its latents and text features are of."""

    table: pa.Table
    folder: str
    root: str
    latents: str | None = None
    texts: str | None = None

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def tokenizer(self) -> str:
        return storage.join(self.folder, TOKENIZER)

    def column(self, name: str) -> Any:
        return self.table[name].to_numpy(zero_copy_only=False)

    def place(self, row: int) -> Place:
        """Where the bytes of a row are."""
        return Place(self.root, self.table["uri"][row].as_py())


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table; what a row does not say is null."""
    blank = {name: None for name in SCHEMA.names}
    return pa.Table.from_pylist([blank | dict(row) for row in rows], schema=SCHEMA)


def write(
    folder: str | os.PathLike,
    table: pa.Table,
    root: str | os.PathLike,
    latents: str | None = None,
    texts: str | None = None,
) -> pa.Table:
    """Write a table as `folder/clips.parquet`; it appears only when whole.

    Args:
      latents: what its files hold, where they hold no clips; texts: what its captions' features
        are of, where they have any.

    Raises:
      OSError: it cannot be written.
    """
    folder, root = os.fspath(folder), os.fspath(root)
    if not (remote.is_remote(folder) or remote.is_remote(root)):
        root = os.path.relpath(Path(root).resolve(), Path(folder).resolve())
    said = {ROOT: root.encode("utf-8", "surrogateescape")}
    said |= {name: more.encode() for name, more in ((LATENTS, latents), (TEXTS, texts)) if more}
    table = table.replace_schema_metadata(said)
    with storage.whole(storage.join(folder, TABLE)) as file:
        pq.write_table(table, file)
    return table


def read(path: str | os.PathLike) -> Manifest:
    """Read the manifest in a folder (or its `clips.parquet` itself).

    Raises:
      DataError: code 2 where there is none; code 3 where it is empty, not ours, or names a file
        outside its root.
    """
    name = os.fspath(path)
    file = name if name.endswith(f"/{TABLE}") else storage.join(name, TABLE)
    try:
        content = _content(file)
    except OSError as error:
        raise DataError(f"'{file}' cannot be reached ({error}).", code=6) from None
    if content is None:
        raise DataError(
            f"there is no manifest at '{path}'; make one with "
            f"`python -m data_pipeline index SOURCE --out {path}`.",
            code=2,
        )
    try:
        table = pq.read_table(content)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"'{file}' is not a Parquet file ({str(error).splitlines()[0]}).") from None
    missing = sorted(set(SCHEMA.names) - set(table.schema.names))
    if missing:
        raise DataError(f"'{file}' lacks the columns {', '.join(missing)}; index the source again.")
    metadata = table.schema.metadata or {}
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except pa.ArrowException as error:
        raise DataError(f"'{file}' has a column of another type ({error}).") from None
    if table.num_rows == 0:
        raise DataError(f"the manifest '{path}' lists no clip.")
    check(table, file)
    folder = file[: -len(TABLE) - 1]
    root = metadata.get(ROOT, b".").decode("utf-8", "surrogateescape")
    if remote.is_remote(root):
        remote.file_system(root)  # one that may be read
    elif not remote.is_remote(folder):
        root = os.path.normpath(os.path.join(folder, root))
    latents, texts = (
        metadata[name].decode("utf-8", "replace") if name in metadata else None
        for name in (LATENTS, TEXTS)
    )
    return Manifest(table, folder, root, latents, texts)


def _content(file: str) -> str | pa.BufferReader | None:
    """What Arrow reads a table from: its name, where it lies on disk; None where there is none."""
    if not storage.exists(file):
        return None
    return pa.BufferReader(storage.read(file)) if remote.is_remote(file) else file


def check(table: pa.Table, name: str) -> None:
    """Raises DataError for a row no plan may be made of: a stranger's table is data to judge."""
    uris = table["uri"].fill_null("")
    foreign = pc.and_not(
        pc.match_substring_regex(uris, SCHEME), pc.match_substring_regex(uris, OURS)
    )
    outside = pc.or_(pc.match_substring_regex(uris, OUTSIDE), foreign)
    first = pc.index(outside, True).as_py()
    if first >= 0:
        raise DataError(f"'{name}' names {uris[first].as_py()!r}, which is not inside its source.")
    ids = table["clip_id"]
    if ids.null_count or pc.count_distinct(ids).as_py() != len(ids):
        raise DataError(f"'{name}' has clips without an id, or with the same one.")
    for column, least in (
        ("n_frames", 1), ("height", 1), ("width", 1), ("fps_num", 0), ("fps_den", 1), ("still", 0),
        ("bytes", 0),
    ):  # fmt: skip
        values = table[column]
        if values.null_count or pc.min(values).as_py() < least:
            raise DataError(f"'{name}' has a clip whose {column} is below {least}.")
    for column in ("start_s", "end_s"):
        if not pc.all(pc.is_finite(table[column]).fill_null(False)).as_py():
            raise DataError(f"'{name}' has a clip whose {column} is no number.")


def digest(table: pa.Table, columns: Sequence[str] = SCHEMA.names) -> str:
    """SHA-256 over what the table says, whatever file wrote it and wherever it lies."""
    found = hashlib.sha256()
    for name in columns:
        found.update(name.encode() + b"\0")
        column = table[name]
        for first in range(0, len(column), HASHED):
            _feed(found, pa.concat_arrays(column.slice(first, HASHED).chunks))
    return found.hexdigest()


def _feed(found: Any, values: pa.Array) -> None:
    """What an array says, as bytes that do not depend on how Arrow happens to hold it."""
    found.update(np.packbits(values.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_struct(values.type):
        for number in range(values.type.num_fields):
            _feed(found, pc.struct_field(values, number))
    elif pa.types.is_list(values.type):
        found.update(pc.list_value_length(values).fill_null(0).to_numpy().tobytes())
        _feed(found, values.flatten())
    elif pa.types.is_string(values.type):
        said = values.fill_null("")
        found.update(pc.binary_length(said).to_numpy().tobytes())
        found.update("".join(said.to_pylist()).encode())
    else:
        zero = pa.scalar(0).cast(values.type)
        found.update(values.fill_null(zero).to_numpy(zero_copy_only=False).tobytes())
