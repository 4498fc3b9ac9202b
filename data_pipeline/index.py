"""The index command: probe every file of a source in parallel and write its manifest."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import keys, manifest, remote, shots, storage, text
from data_pipeline.copies import Copies, shrink
from data_pipeline.errors import BadClip, DataError, printable
from data_pipeline.files import Limits
from data_pipeline.parts import ENTRIES, Part, Parts
from data_pipeline.places import Place
from data_pipeline.probe import Found, look_at, probe, probe_spans
from data_pipeline.probe import look as look_whole
from data_pipeline.progress import bar
from data_pipeline.runner import HERE, Runner, Task
from data_pipeline.sources.choose import choose
from data_pipeline.sources.entry import ORIGINS, Entry, Said, Source
from data_pipeline.workers import DEFAULT, Decoder

MOST_PROMPTS = 8  # captions that are written down to sample with
MOST_READ = 1 << 20  # captions that the tokenizer learns from


def index(
    source: str,
    out: str,
    *,
    form: str | None = None,
    media: str | None = None,
    fps: Fraction | None = None,
    cut: bool = False,
    side: int | None = None,
    threads: int | None = None,
    decoder: Decoder = DEFAULT,
) -> dict[str, Any]:
    """Index a source into the manifest folder `out`; with `cut`, each shot of a film is a clip.

    Args:
      source: a folder, a file of annotations, or the URL of either; form: what it is, one of
        `choose.FORMS`, None tells by its looks; media: where the files of annotations lie; fps: of
        films that are stored as pictures.
      side: small copies are made in `out/copies-SIDE`, their shorter side of so many pixels, and
        are what is indexed; captions are those of the files themselves.
      decoder: where files are looked at.

    An index that was stopped goes on where it was when it is started again.

    Returns: `manifest`, `digest`, `clips`, `files`, `videos`, `images`, `frames`, `seconds`,
    `captions` {where from: clips}, `skipped` {reason: count} (each in `out/skipped.jsonl`), and
    `problems`, a sentence each, with annotations.

    Raises:
      DataError: code 2, no such source, or wrong settings; 3, nothing in it can be used; 6, `out`
        cannot be written.
    """
    if wrong := decoder.problems():
        raise DataError(" ".join(wrong), code=2)
    chosen = choose(source, form, media, fps)
    if side and remote.is_remote(out):
        raise DataError(f"small copies are written to disk, not to '{out}'; copy them.", code=2)
    tasks: list[Task] = [look_whole, look_at, *[shots.watch] * cut, *[shrink] * bool(side)]
    how: dict[str, Any] = {"limits": decoder.limits, "run": decoder.start(*tasks)}
    store = Copies(Path(out) / f"copies-{side}", side, **how) if side else None
    look_at_one = functools.partial(look, source=chosen, cut=cut, store=store, **how)
    parts = Parts(out, json.dumps([manifest.SCHEMA.to_string(), chosen.root, cut, side]))
    try:
        with ThreadPoolExecutor(threads or 2 * (os.cpu_count() or 1)) as pool:
            found = _unique(_join(_tracked(chosen, parts, look_at_one, pool)))
        reasons = collections.Counter(line["reason"] for line in found.skipped)
        if not found.table.num_rows:
            said = f": {', '.join(f'{n} {r}' for r, n in sorted(reasons.items()))}"
            raise DataError(
                f"'{source}' holds no video or image that can be used{said if reasons else ''}."
            )
        table = write(out, found, str(store.folder) if store else chosen.root)
        parts.remove()
    except OSError as error:
        raise DataError(f"cannot write the manifest '{out}' ({error}).", code=6) from None
    images = pc.sum(table["still"]).as_py()
    seconds = pc.sum(pc.subtract(table["end_s"], table["start_s"])).as_py()
    return {
        "manifest": out,
        "digest": manifest.digest(table),
        "clips": table.num_rows,
        "files": pc.count_distinct(table["uri"]).as_py(),
        "videos": table.num_rows - images,
        "images": images,
        "frames": pc.sum(table["n_frames"]).as_py(),
        "seconds": round(seconds, 3),
        "captions": {origin: found.origins[origin] for origin in ORIGINS if found.origins[origin]},
        "skipped": dict(sorted(reasons.items())),
        "problems": list(chosen.problems),
    }


class Looked(NamedTuple):
    """Rows of the manifest, each with the `origin` of its captions; what was left out, and why."""

    rows: list[dict[str, Any]]
    skipped: list[dict[str, str]]


def _tracked(source: Source, parts: Parts, look_at_one, pool: Executor) -> Iterator[Part]:
    """Part by part, from disk where it was found before."""
    entries = source.entries()
    total = len(entries) if isinstance(entries, list) else None  # a stream has no known end
    with bar("probing", total) as advance:
        every = iter(entries)
        for number in itertools.count():
            some = list(itertools.islice(every, ENTRIES))
            if not some:
                return
            part = parts.get(number, some)
            if part is None:
                rows, skipped = [], []
                for looked in pool.map(look_at_one, some):
                    rows += looked.rows
                    skipped += looked.skipped
                    advance(1)
                origins = collections.Counter(row.pop("origin") for row in rows)
                part = Part(manifest.table_of(rows), skipped, origins)
                parts.put(number, some, part)
            else:
                advance(len(some))
            yield part


def _join(parts: Iterator[Part]) -> Part:
    tables, skipped, origins = [manifest.table_of([])], [], collections.Counter[str]()
    for part in parts:
        tables.append(part.table)
        skipped += part.skipped
        origins += part.origins
    return Part(pa.concat_tables(tables), skipped, origins)


def _unique(found: Part) -> Part:
    """Of clips that are called alike, the first."""
    names = found.table["clip_id"].combine_chunks()
    order = pc.sort_indices(names)  # stable
    ordered = names.take(order)
    alike = pc.equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)
    again = np.zeros(len(names), bool)
    again[order.to_numpy()[1:]] = alike
    twice = [
        _skip(name.as_py(), BadClip("duplicate", "another clip is called so"))
        for name in names.filter(pa.array(again))
    ]
    return Part(found.table.filter(pa.array(~again)), found.skipped + twice, found.origins)


def look(
    entry: Entry,
    *,
    source: Source,
    cut: bool = False,
    store: Copies | None = None,
    limits: Limits | None = None,
    run: Runner = HERE,
) -> Looked:
    """The clips of one file, or why there is none."""
    rows, skipped = [], []
    try:
        if not entry.name.isprintable() or not entry.place.uri.isprintable():
            raise BadClip("name", "not printable")
        place = _copied(store, entry) if store else entry.place
        for name, found, said in _clips(entry, place, source, cut, limits=limits, run=run):
            if not name.isprintable():
                found = BadClip("name", "not printable")
            if isinstance(found, BadClip):
                skipped.append(_skip(name, found))
            else:
                rows.append(_row(name, place, entry.still, found, said, source.name))
    except BadClip as bad:
        return Looked([], [_skip(entry.name, bad)])
    return Looked(rows, skipped)


def _copied(store: Copies, entry: Entry) -> Place:
    try:
        return store.make(entry.place, still=entry.still)
    except OSError as error:
        raise DataError(
            f"cannot write small copies to '{store.folder}' ({error}).", code=6
        ) from None


def _clips(
    entry: Entry, place: Place, source: Source, cut: bool, **how: Any
) -> Iterator[tuple[str, Found | BadClip, Said]]:
    """(name, what was found, what is said) of every clip of a file."""
    if entry.parts:
        spans = [(part.start, part.end) for part in entry.parts]
        for part, found in zip(entry.parts, probe_spans(place, spans, **how), strict=True):
            yield part.name, found, part.said
        return
    films = cut and not entry.still
    shown = shots.shots(place, **how) if films else [probe(place, still=entry.still, **how)]
    for number, shot in enumerate(shown):
        name = f"{entry.name}#{number:04d}" if len(shown) > 1 else entry.name
        if len(shown) > 1 and shots.is_short(shot):
            yield name, BadClip("short", f"below {shots.SHORTEST_S} seconds"), Said()
        else:
            yield name, shot, source.said(entry, shot.start_s, shot.end_s)


def _row(
    name: str, place: Place, still: bool, found: Found, said: Said, source: str
) -> dict[str, Any]:
    known = {word: text.clean(getattr(said, word)) for word in ("label", "split", "licence")}
    where = {"clip_id": name, "uri": place.uri, "still": still, "source": source}
    told = {"captions": list(said.captions), "caption_weights": list(said.weights) or None}
    scored = {"scores": dict(said.scores) or None}
    return where | known | told | scored | dataclasses.asdict(found) | {"origin": said.origin}


def _skip(name: str, bad: BadClip) -> dict[str, str]:
    return {"file": printable(name), "reason": bad.reason, "detail": printable(str(bad))}


def prompts(table: pa.Table) -> list[str]:
    """The captions that most clips have; of those alike in that, any, but the same each time."""
    counts = table["captions"].combine_chunks().flatten().value_counts()
    if not len(counts):
        return []
    values, times = counts.field("values"), counts.field("counts").to_numpy()
    least = np.sort(times)[-MOST_PROMPTS:][0]
    often = np.flatnonzero(times >= least)
    order = sorted(
        (-times[place], keys.identity(caption), caption)
        for place, caption in zip(often, values.take(pa.array(often)).to_pylist(), strict=True)
    )
    return [caption for _, _, caption in order[:MOST_PROMPTS]]


def write(out: str, found: Part, root: str) -> pa.Table:
    """All files of a manifest of clips, in order of their names; the table, which says that it is
    whole, comes last.

    Raises: OSError, they cannot be written.
    """
    table = found.table.sort_by("clip_id")
    said = table["captions"].combine_chunks().flatten()
    every = -(-len(said) // MOST_READ) or 1  # of very many, as many as are enough
    learnt = said.take(pa.array(np.arange(0, len(said), every)))
    text.train(learnt.to_pylist(), storage.join(out, manifest.TOKENIZER))
    tell(out, table, found.skipped)
    return manifest.write(out, table, root)


def tell(out: str, table: pa.Table, skipped: Sequence[Mapping[str, str]]) -> None:
    """What people read beside a table: what to sample with, and what was left out.

    Raises: OSError, it cannot be written.
    """
    with storage.whole(storage.join(out, manifest.PROMPTS)) as file:
        file.write("".join(line + "\n" for line in prompts(table)).encode())
    with storage.whole(storage.join(out, manifest.SKIPPED)) as file:
        file.writelines(json.dumps(line).encode() + b"\n" for line in skipped)
