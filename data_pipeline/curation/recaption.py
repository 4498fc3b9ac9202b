"""Captions by a model that is not ours: frames out to it as JSONL, its answers back as JSONL.

A request is what servers of vision models are sent, frames as JPEG in data URLs, so that a file of
requests is all that needs to be copied to where the captioner is:

    {"id": clip, "source": its set, "fps": 1.0, "frames": ["data:image/jpeg;base64,...", ...]}

An answer is a line of

    {"id": clip, "text": caption, "model": which captioner, "source": ..., "fps": ..., "frames": n}

of which `id` and `text` are read, and `weight`, if it has one: how often this answer of several to
one clip is drawn beside the others. How often any answer is drawn, and not what the clip was called
before, is one number: DALL-E 3 was trained on 95 % answers, Stable Diffusion 3 on half and half.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import io
import json
import os
import posixpath
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import PIL.Image
import pyarrow as pa

from data_pipeline import index, manifest, remote, storage
from data_pipeline.curation.chain import LEFT_OUT, WIDEN
from data_pipeline.curation.processes import Engine
from data_pipeline.curation.stage import AtRate, Row
from data_pipeline.errors import BadClip, DataError, printable
from data_pipeline.files import Limits
from data_pipeline.lines import lines
from data_pipeline.parts import Part
from data_pipeline.places import Place
from data_pipeline.progress import bar
from data_pipeline.sources.entry import number
from data_pipeline.text import LONGEST, clean

QUALITY = 90  # of JPEG
ANSWERS = Limits(bytes=1 << 40)
REQUEST = pa.schema([*LEFT_OUT, ("request", pa.string())])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requests:
    """(clips, as rows of a manifest) -> a request each, or why there is none."""

    root: str
    sees: AtRate

    def __call__(self, clips: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._of(row) for row in clips.to_pylist()], schema=REQUEST)

    def _of(self, row: Row) -> dict[str, str]:
        try:
            frames = self.sees.take(Place(self.root, row["uri"]), row)
        except BadClip as bad:
            return {"clip_id": row["clip_id"], "reason": bad.reason, "detail": str(bad)}
        asked = {
            "id": row["clip_id"],
            "source": row["source"],
            "fps": self.sees.view(row).rate,
            "frames": [url(frame) for frame in frames],
        }
        return {"clip_id": row["clip_id"], "request": json.dumps(asked)}


def url(frame: Any) -> str:
    """uint8 (h w 3) as a data URL."""
    out = io.BytesIO()
    PIL.Image.fromarray(frame).save(out, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def request(source: str, out: str, sees: AtRate, engine: Engine) -> dict[str, Any]:
    """Write the requests of all clips of a manifest as `out/requests-*.jsonl`, a file for every
    `engine.part` clips. Files that are there already are kept; what was stopped goes on.

    Returns: `files`, `requests`, and `skipped` {reason: count}, of the files written now.

    Raises: DataError, code 2, settings that make no sense, no manifest, or `out` holds requests of
      other clips or frames; 6, `out` cannot be written.
    """
    problems = [*sees.problems(), *engine.problems()]
    if problems:
        raise DataError("; ".join(problems), code=2)
    clips = manifest.read(source)
    task = Requests(root=clips.root, sees=sees)
    parts = [clips.table.slice(first, engine.part) for first in range(0, len(clips), engine.part)]
    names = [f"requests-{n:06d}-{_key(task, some)}.jsonl" for n, some in enumerate(parts)]
    count, reasons = 0, collections.Counter[str]()
    try:
        _refuse_others(out, names)
        with bar("asking", len(clips)) as advance, engine.running(task) as run:
            for name, some in zip(names, parts, strict=True):
                if storage.exists(storage.join(out, name)):
                    advance(len(some))
                    continue
                with storage.whole(storage.join(out, name)) as file:
                    for one in run(some):
                        found = pa.concat_tables([REQUEST.empty_table(), one], **WIDEN)
                        reasons.update(one for one in found["reason"].to_pylist() if one)
                        asked = [one for one in found["request"].to_pylist() if one]
                        file.writelines(one.encode() + b"\n" for one in asked)
                        count += len(asked)
                        advance(len(found))
    except OSError as error:
        raise DataError(f"cannot write requests to '{out}' ({error}).", code=6) from None
    skipped = dict(sorted(reasons.items()))
    return {"files": len(names), "requests": count, "skipped": skipped}


def _key(task: Requests, clips: pa.Table) -> str:
    return sha256(f"{task!r}\0{manifest.digest(clips)}".encode()).hexdigest()[:8]


def _refuse_others(out: str, names: Sequence[str]) -> None:
    if not remote.is_remote(out) and not os.path.isdir(out):
        return
    there = remote.find(out) if remote.is_remote(out) else os.listdir(out)
    others = [n for n in there if n.startswith("requests-") and n.endswith(".jsonl")]
    foreign = sorted(set(others) - set(names))
    if foreign:
        raise DataError(
            f"'{out}' holds requests of other clips or frames, such as '{printable(foreign[0])}'; "
            "name another folder.",
            code=2,
        )


def recaption(source: str, answers: Sequence[str], out: str, *, share: float) -> dict[str, Any]:
    """Write the manifest in `source` to `out` with the captions of files of answers added.

    Args:
      share: of the draws of a clip that has answers, how many fall on them, in (0, 1]; the captions
        that it had keep the rest, in their old proportion. At 1 they are dropped.

    Returns: `manifest`, `digest`, `clips`, `answered` (clips that have an answer), `added`
    (captions), and `problems` {kind: lines}: `broken` (no JSON with an id and a text, as the last
    line of a captioner that was stopped), `unknown` (no such clip), `empty` (no word in it) and
    `truncated` (longer than is read; what is read is added).

    Raises: DataError, code 2, a share that is none, or no manifest; 3, a file that cannot be read,
      or no answer at all; 6, `out` cannot be written.
    """
    if not 0 < share <= 1:
        raise DataError(f"the share of the answers is {share}; it must be above 0, at most 1.", 2)
    clips = manifest.read(source)
    told, problems = _answers(answers, frozenset(clips.table["clip_id"].to_pylist()))
    if not told:
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(problems.items()))
        raise DataError(f"no line of {', '.join(answers)} answers for a clip: {said or 'empty'}.")
    columns: dict[str, list[Any]] = {"captions": [], "caption_weights": []}
    for row in clips.table.select(["clip_id", *columns]).to_pylist():
        captions, weights = row["captions"] or [], row["caption_weights"]
        if row["clip_id"] in told:
            captions, weights = mixed(captions, weights, told[row["clip_id"]], share)
        columns["captions"].append(captions)
        columns["caption_weights"].append(weights)
    table = clips.table
    for name, values in columns.items():
        field = manifest.SCHEMA.field(name)
        place = table.schema.get_field_index(name)
        table = table.set_column(place, field, pa.array(values, field.type))
    try:
        table = index.write(out, Part(table, [], collections.Counter()), clips.root)
    except OSError as error:
        raise DataError(f"cannot write the manifest '{out}' ({error}).", code=6) from None
    return {
        "manifest": out,
        "digest": manifest.digest(table),
        "clips": table.num_rows,
        "answered": len(told),
        "added": sum(len(one) for one in told.values()),
        "problems": dict(sorted(problems.items())),
    }


def mixed(
    captions: Sequence[str],
    weights: Sequence[float] | None,
    answers: dict[str, float],
    share: float,
) -> tuple[list[str], list[float] | None]:
    """(captions, their weights) of a clip: those it had and its answers {text: weight} together.

    The weights are None where all are alike.
    """
    parts = [(answers, share)]
    if captions and share < 1:
        before = dict(zip(captions, weights or [1.0] * len(captions), strict=True))
        parts.insert(0, (before, 1 - share))
    found: dict[str, float] = {}
    for part, of_all in parts:
        whole = sum(part.values())
        for text, weight in part.items():
            # A caption that an answer repeats is drawn as often as both.
            found[text] = found.get(text, 0.0) + (of_all * weight / whole if whole else 0.0)
    alike = len(set(found.values())) < 2
    return list(found), None if alike else list(found.values())


def _answers(
    files: Sequence[str], known: frozenset[str]
) -> tuple[dict[str, dict[str, float]], collections.Counter[str]]:
    """({clip: {text: weight}}, how many lines are wrong, and how)."""
    found: dict[str, dict[str, float]] = {}
    problems = collections.Counter[str]()
    for file in files:
        folder, name = posixpath.split(file)
        try:
            for _, cells in lines(Place(folder or ".", name), ANSWERS):
                id_, text = (cells or {}).get("id"), (cells or {}).get("text")
                if not isinstance(id_, str) or not isinstance(text, str):
                    problems["broken"] += 1
                elif id_ not in known:
                    problems["unknown"] += 1
                elif not (said := clean(text)):
                    problems["empty"] += 1
                else:
                    problems["truncated"] += len(text) > LONGEST
                    given = number((cells or {}).get("weight"))
                    weight = given if given is not None and given > 0 else 1.0
                    one = found.setdefault(id_, {})
                    one[said] = one.get(said, 0.0) + weight
        except BadClip as bad:
            raise DataError(f"'{file}' cannot be read ({bad}).") from None
    return found, +problems
