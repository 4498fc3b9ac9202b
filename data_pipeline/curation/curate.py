"""The curate command: look at every clip of a manifest and write another one, with scores.

The new manifest lists the same files in the same places. It keeps every clip, whatever its scores:
what is trained on is for a run to say. Left out, and listed in `skipped.jsonl`, are only clips that
nobody should train on: those that cannot be decoded, which training would mask; black and static
ones, if the chain has `Light`; and repetitions, if it has `Duplicates`.
"""

from __future__ import annotations

import collections
import os
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import index, manifest, remote, storage
from data_pipeline.card import scores
from data_pipeline.curation.chain import FOUND, WIDEN, Chain, Look
from data_pipeline.curation.processes import Engine
from data_pipeline.curation.stage import MARK, Stage
from data_pipeline.curation.watermark import Marked, Watermark
from data_pipeline.errors import DataError, printable
from data_pipeline.parts import FOLDER, Part, Parts
from data_pipeline.progress import bar


class Skip(NamedTuple):
    """A clip that is left out."""

    file: str
    reason: str
    detail: str


def curate(source: str, out: str, chain: Chain, engine: Engine) -> dict[str, Any]:
    """Score the manifest in `source`, a folder, and write the new one to the folder `out`.

    A curation that was stopped goes on where it was when it is started again.

    Returns: `manifest`, `digest`, `clips`, `skipped` {reason: count} and `scores` {name: {scored,
    the share of clips that have it, p10, p50, p90}}.

    Raises:
      DataError: code 2, settings that make no sense, no manifest, or the same folder; 3, no clip is
        left, or a model fails; 6, `out` cannot be written.
    """
    problems = [*chain.problems(), *engine.problems()]
    if problems:
        raise DataError("\n  ".join([f"{len(problems)} mistake(s) in the chain:", *problems]), 2)
    clips = manifest.read(source)
    if not remote.is_remote(out) and os.path.realpath(out) == os.path.realpath(clips.folder):
        raise DataError(f"'{out}' is the manifest itself; name another folder.", code=2)
    stages: list[Stage] = [*chain.stages]
    try:
        if chain.watermark is not None:
            stages.append(_learnt(clips, chain.watermark, engine, out))
        if chain.duplicates is not None:
            stages.append(chain.duplicates.stage)
        look = Look(root=clips.root, stages=tuple(stages), models=chain.models)
        parts = _parts(out, look)
        found = _found("looking", clips.table, look, engine, parts)
        table, skipped = _judged(clips.table, found, chain)
        reasons = collections.Counter(skip.reason for skip in skipped)
        if not table.num_rows:
            said = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
            raise DataError(f"no clip of '{source}' is left: {said}.")
        lines = [skip._asdict() for skip in skipped]
        table = index.write(out, Part(table, lines, collections.Counter()), clips.root)
        parts.remove()
    except OSError as error:
        raise DataError(f"cannot write the manifest '{out}' ({error}).", code=6) from None
    return {
        "manifest": out,
        "digest": manifest.digest(table),
        "clips": table.num_rows,
        "skipped": dict(sorted(reasons.items())),
        "scores": {name: told for name, told in scores(table).items() if name in chain.finds},
    }


def _parts(out: str, look: Look) -> Parts:
    return Parts(out, sha256(f"{look!r}{FOUND}".encode()).hexdigest())


def _learnt(clips: manifest.Manifest, watermark: Watermark, engine: Engine, out: str) -> Marked:
    """The stage that knows each source's mark."""
    some = watermark.sample(clips.table)
    look = Look(root=clips.root, stages=(watermark.stage,))
    inside = storage.join(out, FOLDER, "marks")  # goes when the other parts go
    found = _found("learning watermarks", some, look, engine, _parts(inside, look))
    return watermark.learn(some, found[MARK].to_pylist())


def _found(doing: str, clips: pa.Table, look: Look, engine: Engine, parts: Parts) -> pa.Table:
    """What is found of every clip, in the order of the clips; part by part, from disk where it was
    found before."""
    tables = [FOUND.empty_table()]
    with bar(doing, len(clips)) as advance, engine.running(look) as run:
        for number, first in enumerate(range(0, len(clips), engine.part)):
            some = clips.slice(first, engine.part)
            of = [manifest.digest(some)]
            kept = parts.get(number, of)
            if kept is not None:
                tables.append(kept.table)
                advance(len(some))
                continue
            new = [FOUND.empty_table()]
            for one in run(some):
                new.append(one)
                advance(len(one))
            # They may come in any order from a cluster.
            joined = pa.concat_tables(new, **WIDEN)
            joined = joined.take(pc.index_in(some["clip_id"], joined["clip_id"]))
            parts.put(number, of, Part(joined, [], collections.Counter()))
            tables.append(joined)
    return pa.concat_tables(tables)


def _judged(clips: pa.Table, found: pa.Table, chain: Chain) -> tuple[pa.Table, list[Skip]]:
    """(the clips that are kept, with their scores; those that are left out)."""
    names = clips["clip_id"].to_pylist()
    skipped = {
        place: Skip(printable(names[place]), reason, printable(detail or ""))
        for place, (reason, detail) in enumerate(
            zip(found["reason"].to_pylist(), found["detail"].to_pylist(), strict=True)
        )
        if reason is not None
    }
    if chain.duplicates is not None:
        prints = found[MARK].to_pylist()
        fit = [None if place in skipped else one for place, one in enumerate(prints)]
        for place, of in chain.duplicates.of(names, fit).items():
            detail = f"repeats {printable(names[of])}"
            skipped[place] = Skip(printable(names[place]), "duplicate", detail)
    kept = np.ones(len(clips), bool)
    kept[list(skipped)] = False
    scored = clips.set_column(
        clips.schema.get_field_index("scores"), "scores", _scores(clips, found, chain.finds)
    )
    return scored.filter(pa.array(kept)), [skipped[place] for place in sorted(skipped)]


def _scores(clips: pa.Table, found: pa.Table, measured: tuple[str, ...]) -> pa.Array:
    """The scores of all clips: those that the chain measures are its own, for every clip, so that
    no column mixes two measures; the others stay."""
    before = clips["scores"].combine_chunks()
    after = [
        (found[name] if name in measured else pc.struct_field(before, name))
        for name in manifest.SCORES
    ]
    flat = [one.combine_chunks() if isinstance(one, pa.ChunkedArray) else one for one in after]
    return pa.StructArray.from_arrays(flat, names=list(manifest.SCORES))
