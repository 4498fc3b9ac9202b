"""The index command: probe every file of a folder in parallel and write its manifest."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipeline import captions, keys, manifest, shots, text
from data_pipeline import probe as probing
from data_pipeline.copies import Copies, shrink
from data_pipeline.errors import BadClip, DataError, printable
from data_pipeline.files import Limits
from data_pipeline.runner import HERE, Runner
from data_pipeline.sources import ORIGINS, Entry, describe, is_still, walk
from data_pipeline.workers import DEFAULT, Decoder

MOST_PROMPTS = 8  # captions that are written down to sample with


def index(
    source: str,
    out: str,
    *,
    cut: bool = False,
    side: int | None = None,
    threads: int | None = None,
    decoder: Decoder = DEFAULT,
) -> dict[str, Any]:
    """Index a folder into the manifest folder `out`; with `cut`, each shot of a film is a clip.

    With `side`, small copies are made in `out/copies-SIDE`, their shorter side of so many pixels,
    and are what is indexed; captions are those of the files themselves. Files are looked at where
    `decoder` says.

    Returns: `manifest`, `digest`, `clips`, `files`, `videos`, `images`, `frames`, `seconds`,
    `captions` {where from: clips}, `skipped` {reason: count} (each in `out/skipped.jsonl`), and
    `problems`, a sentence each, with tables of captions.

    Raises:
      DataError: code 2, no such folder, or wrong settings; 3, nothing in it can be used; 6, `out`
        cannot be written.
    """
    if found := decoder.problems():
        raise DataError(" ".join(found), code=2)
    entries, tables = walk(source)
    told = captions.read(Path(source), tables, [entry.uri for entry in entries])
    how: dict[str, Any] = {
        "limits": decoder.limits,
        "run": decoder.start(probing.look, *[shots.watch] * cut, *[shrink] * bool(side)),
    }
    store = Copies(Path(out) / f"copies-{side}", side, **how) if side else None
    look_at = functools.partial(look, tables=told, cut=cut, store=store, **how)
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    try:
        for looked in _tracked(entries, look_at, threads):
            rows += looked.rows
            skipped += looked.skipped
    except OSError as error:
        raise DataError(f"cannot write small copies below '{out}' ({error}).", code=6) from None
    reasons = dict(sorted(collections.Counter(line["reason"] for line in skipped).items()))
    if not rows:
        said = f": {', '.join(f'{n} {r}' for r, n in reasons.items())}" if reasons else ""
        raise DataError(f"'{source}' holds no video or image that can be used{said}.")
    origins = collections.Counter(row.pop("origin") for row in rows)
    table = _write(Path(out), rows, skipped, store.folder if store else Path(source))
    images = sum(is_still(row["uri"]) for row in rows)
    return {
        "manifest": str(out),
        "digest": manifest.digest(table),
        "clips": len(rows),
        "files": len({row["uri"] for row in rows}),
        "videos": len(rows) - images,
        "images": images,
        "frames": sum(row["n_frames"] for row in rows),
        "seconds": round(sum(row["end_s"] - row["start_s"] for row in rows), 3),
        "captions": {origin: origins[origin] for origin in ORIGINS if origins[origin]},
        "skipped": reasons,
        "problems": list(told.problems),
    }


class Looked(NamedTuple):
    """Rows of the manifest, each with the `origin` of its captions; what was left out, and why."""

    rows: list[dict[str, Any]]
    skipped: list[dict[str, str]]


def _tracked(
    entries: list[Entry], look_at: Callable[[Entry], Looked], threads: int | None
) -> Iterator[Looked]:
    console = Console(stderr=True)
    columns = (TextColumn("probing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=console, transient=True) as progress,
        ThreadPoolExecutor(threads or 2 * (os.cpu_count() or 1)) as pool,
    ):
        yield from progress.track(pool.map(look_at, entries), total=len(entries))


def look(
    entry: Entry,
    *,
    tables: captions.Tables | None = None,
    cut: bool = False,
    store: Copies | None = None,
    limits: Limits | None = None,
    run: Runner = HERE,
) -> Looked:
    """The clips of one file, or why there is none."""
    try:
        if not entry.uri.isprintable():
            raise BadClip("name", "not printable")
        file = store.make(entry) if store else entry
        if cut and not file.still:
            parts = shots.shots(file.path, limits=limits, run=run)
        else:
            parts = [probing.probe(file.path, still=file.still, limits=limits, run=run)]
    except BadClip as bad:
        return Looked([], [_skip(entry.uri, bad)])
    rows, skipped = [], []
    for number, part in enumerate(parts):
        name = f"{entry.uri}#{number:04d}" if len(parts) > 1 else entry.uri
        if len(parts) > 1 and shots.is_short(part):
            skipped.append(_skip(name, BadClip("short", f"below {shots.SHORTEST_S} seconds")))
            continue
        listed = tables.of(entry.uri, part.start_s, part.end_s) if tables else []
        row = {"clip_id": name, "uri": file.uri} | describe(entry, listed)._asdict()
        rows.append(row | dataclasses.asdict(part) | {"split": "", "source": "folder"})
    return Looked([row | {"licence": ""} for row in rows], skipped)


def _skip(name: str, bad: BadClip) -> dict[str, str]:
    return {"file": printable(name), "reason": bad.reason, "detail": printable(str(bad))}


def prompts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The captions that most clips have; of those alike in that, any, but the same each time."""
    count = collections.Counter(caption for row in rows for caption in set(row["captions"]))
    return sorted(count, key=lambda caption: (-count[caption], keys.identity(caption)))[
        :MOST_PROMPTS
    ]


def _write(out: Path, rows: list[dict[str, Any]], skipped: list[dict[str, str]], root: Path):
    try:
        out.mkdir(parents=True, exist_ok=True)
        said = [caption for row in rows for caption in row["captions"]]
        text.train(said, out / manifest.TOKENIZER)
        (out / manifest.PROMPTS).write_text("".join(line + "\n" for line in prompts(rows)))
        lines = "".join(json.dumps(line) + "\n" for line in skipped)
        (out / manifest.SKIPPED).write_text(lines)
        return manifest.write(out, rows, root)
    except OSError as error:
        raise DataError(f"cannot write the manifest '{out}' ({error}).", code=6) from None
