"""The index command: probe every file of a folder in parallel and write its manifest."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipeline import manifest, text
from data_pipeline.errors import BadClip, DataError, printable
from data_pipeline.probe import probe
from data_pipeline.sources import Entry, describe, walk


def index(source: str, out: str, *, threads: int | None = None) -> dict[str, Any]:
    """Index a folder into the manifest folder `out`.

    Returns: `manifest`, `digest`, `clips`, `videos`, `images`, `frames`, `seconds`, and `skipped`
    {reason: count}; which file was skipped why is in `out/skipped.jsonl`.

    Raises:
      DataError: code 2, no such folder; 3, nothing in it can be used; 6, `out` cannot be written.
    """
    entries = list(walk(source))
    console = Console(stderr=True)
    columns = (TextColumn("probing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    with (
        Progress(*columns, console=console, transient=True) as progress,
        ThreadPoolExecutor(threads or 2 * (os.cpu_count() or 1)) as pool,
    ):
        for entry, found in progress.track(
            zip(entries, pool.map(look, entries), strict=True), total=len(entries)
        ):
            if isinstance(found, BadClip):
                why = {"reason": found.reason, "detail": printable(str(found))}
                skipped.append({"file": printable(entry.uri)} | why)
            else:
                rows.append(found)
    reasons = dict(sorted(collections.Counter(line["reason"] for line in skipped).items()))
    if not rows:
        said = f": {', '.join(f'{n} {r}' for r, n in reasons.items())}" if reasons else ""
        raise DataError(f"'{source}' holds no video or image that can be used{said}.")
    table = _write(Path(out), rows, skipped, Path(source))
    images = sum(row["fps_num"] == 0 for row in rows)
    return {
        "manifest": str(out),
        "digest": manifest.digest(table),
        "clips": len(rows),
        "videos": len(rows) - images,
        "images": images,
        "frames": sum(row["n_frames"] for row in rows),
        "seconds": round(sum(row["end_s"] - row["start_s"] for row in rows), 3),
        "skipped": reasons,
    }


def look(entry: Entry) -> dict[str, Any] | BadClip:
    """One row of the manifest, or why there is none."""
    try:
        if not entry.uri.isprintable():
            raise BadClip("name", "not printable")
        found = probe(entry.path, still=entry.still)
        captions, label = describe(entry)
    except BadClip as bad:
        return bad
    row = {"clip_id": entry.uri, "uri": entry.uri, "captions": captions, "label": label}
    return row | dataclasses.asdict(found) | {"split": "", "source": "folder", "licence": ""}


def _write(out: Path, rows: list[dict[str, Any]], skipped: list[dict[str, str]], root: Path):
    try:
        out.mkdir(parents=True, exist_ok=True)
        captions = [caption for row in rows for caption in row["captions"]]
        text.train(captions, out / manifest.TOKENIZER)
        lines = "".join(json.dumps(line) + "\n" for line in skipped)
        (out / manifest.SKIPPED).write_text(lines)
        return manifest.write(out, rows, root)
    except OSError as error:
        raise DataError(f"cannot write the manifest '{out}' ({error}).", code=6) from None
