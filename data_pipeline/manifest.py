"""The canonical table of clips: one row per clip in Parquet, with a digest of its content.

| column | type | meaning |
| --- | --- | --- |
| clip_id | string | names the clip for ever: noise, order and hold-out hang on it |
| uri | string | path relative to the root of the source |
| start_s, end_s | float64 | presentation times: first frame, the file's next one after the last |
| fps_num, fps_den | int64 | measured frame rate; 0/1 for a still image |
| height, width | int32 | pixels, after rotation |
| n_frames | int32 | counted, not read from a header |
| rotation | int32 | degrees counter-clockwise that the decoder turns the stored frames |
| captions | list(string) | any number, none too |
| caption_weights | list(float32) | how often each is drawn; null where all are alike |
| label, split, source, licence | string | what is known beside; may be empty |
| scores | struct of float32 | motion, aesthetic, clip, text_area; null where not measured |
| sha256 | string | of the file |
| bytes | int64 | of the file: a file that changed later is noticed without hashing it |

Several rows may be parts of one file: its shots.

A manifest is a folder: `clips.parquet`, `tokenizer.json`, `skipped.jsonl`, and `captions.txt`, the
most frequent captions, to sample with. The path from it to the root of the source is kept in the
table's metadata, so that both can be moved together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.errors import DataError

TABLE = "clips.parquet"
TOKENIZER = "tokenizer.json"
SKIPPED = "skipped.jsonl"
PROMPTS = "captions.txt"
ROOT = b"root"
SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("uri", pa.string()),
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
        (
            "scores",
            pa.struct([(n, pa.float32()) for n in ("motion", "aesthetic", "clip", "text_area")]),
        ),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A table that was read, and where its files lie."""

    table: pa.Table
    folder: Path
    root: Path

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER

    def column(self, name: str) -> Any:
        return self.table[name].to_numpy(zero_copy_only=False)

    def path(self, row: int) -> Path:
        """Where the file of a row lies."""
        return self.root / self.table["uri"][row].as_py()


def write(folder: Path, rows: Sequence[Mapping[str, Any]], root: Path) -> pa.Table:
    """Write rows, sorted by clip id, as `folder/clips.parquet`; it appears only when whole."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(rows, key=lambda row: row["clip_id"])
    blank = {name: None for name in SCHEMA.names}
    table = pa.Table.from_pylist([blank | dict(row) for row in ordered], schema=SCHEMA)
    where = os.path.relpath(root.resolve(), folder.resolve())
    table = table.replace_schema_metadata({ROOT: where.encode("utf-8", "surrogateescape")})
    partial = folder / f"{TABLE}.{os.getpid()}.part"
    try:
        pq.write_table(table, partial)
        os.replace(partial, folder / TABLE)
    finally:
        partial.unlink(missing_ok=True)
    return table


def read(path: str | os.PathLike) -> Manifest:
    """Read the manifest in a folder (or its `clips.parquet` itself).

    Raises:
      DataError: code 2 where there is none; code 3 where it is empty, not ours, or names a file
        outside its root.
    """
    file = Path(path)
    file = file / TABLE if file.is_dir() else file
    if not file.is_file():
        raise DataError(
            f"there is no manifest at '{path}'; make one with "
            f"`python -m data_pipeline index SOURCE --out {path}`.",
            code=2,
        )
    try:
        table = pq.read_table(file)
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
    check(table, str(file))
    root = metadata.get(ROOT, b".").decode("utf-8", "surrogateescape")
    return Manifest(table, file.parent, Path(os.path.normpath(file.parent / root)))


def check(table: pa.Table, name: str) -> None:
    """Raises DataError for a row no plan may be made of: a stranger's table is data to judge."""
    for uri in table["uri"].to_pylist():
        path = PurePosixPath(uri or "/")
        if path.is_absolute() or ".." in path.parts or "\0" in uri:
            raise DataError(f"'{name}' names {uri!r}, which is not inside its source.")
    ids = table["clip_id"].to_pylist()
    if None in ids or len(set(ids)) != len(ids):
        raise DataError(f"'{name}' has clips without an id, or with the same one.")
    for column, least in (
        ("n_frames", 1), ("height", 1), ("width", 1), ("fps_num", 0), ("fps_den", 1)
    ):  # fmt: skip
        values = table[column]
        if values.null_count or min(values.to_pylist()) < least:
            raise DataError(f"'{name}' has a clip whose {column} is below {least}.")


def digest(table: pa.Table) -> str:
    """SHA-256 over what the table says, whatever file wrote it and wherever it lies."""
    found = hashlib.sha256()
    for name in SCHEMA.names:
        found.update(name.encode() + b"\0")
        for value in table[name].to_pylist():
            found.update(repr(value).encode("utf-8", "surrogateescape") + b"\n")
    return found.hexdigest()
