"""The exam of a demo run: do its videos show what was asked, and would the judge notice if not?

    judge                 videos made for held-out captions: share right in colour, shape, motion
    judge_on_truth        the same of true clips of those captions: what the judge itself misses
    judge_on_broken       true clips recoloured, reversed, frozen, blob-shaped: share still accepted
    permuted_prompts      the videos against one another's captions; `chance` is what would be
                          expected if a video had nothing to do with its caption
    nearest_training_clip root mean square distance, in grey levels of small copies, to the nearest
                          clip trained on: of the videos, and of the true clips for comparison

Shares come with 95 % intervals (Wilson 1927). Everything is read back from the written files.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import binomtest

from data_pipeline import generated, keys
from data_pipeline.decode import View, decode
from data_pipeline.encode import write_mp4
from data_pipeline.errors import BadClip, DataError
from data_pipeline.generated import STILL, Scene
from data_pipeline.judge import Seen, look
from data_pipeline.places import Place

KINDS = ("colour", "direction", "object")
THUMBNAIL = (4, 12, 12)  # frames, height, width


def examine(samples: str, truth: str, trained_on: str) -> dict[str, Any]:
    """The report of the module's docstring.

    Args:
      samples: what `vdm sample --requests` wrote; truth: the folder of unseen clips whose requests
        they were; trained_on: the folder of clips.

    Raises:
      DataError: code 2, a folder that is not what it should be; code 3, a file that cannot be read.
    """
    scenes = read_scenes(truth)
    records = _records(samples, scenes)
    files = [Path(samples) / record["file"] for record in records]
    asked = [scenes[record["index"]] for record in records]
    videos = [load(file, one) for file, one in zip(files, asked, strict=True)]
    real = [load(Path(truth) / generated.file_name(one), one) for one in asked]
    seen = [look(video) for video in _bar(videos, "judging")]
    return {
        "files": [str(file) for file in files],
        "judge": score(seen, asked),
        "judge_on_truth": score([look(video) for video in _bar(real, "truth")], asked),
        "judge_on_broken": {way: _accepted(way, asked, real) for way in _bar(BROKEN, "broken")},
        "permuted_prompts": permuted(seen, asked),
        "nearest_training_clip": nearest(videos, real, trained_on),
    }


def read_scenes(folder: str) -> list[Scene]:
    """The attributes that lie beside the clips of a folder, in order.

    Raises:
      DataError: code 2, there are none.
    """
    found = [
        Scene(**json.loads(path.read_text())) for path in sorted(Path(folder).glob("clip-*.json"))
    ]
    if not found:
        raise DataError(f"'{folder}' holds no generated clips; make some with `generate`.", code=2)
    return found


def load(path: Path, one: Scene) -> np.ndarray:
    """uint8 (t h w 3) of a file that must show a scene of this length and size."""
    size = (one.height, one.width)
    still = path.suffix == ".png"
    rate = 0 if still else one.fps or 8
    view = View(rate=rate, frames=one.frames, stored=size, resized=size, size=size)
    try:
        return decode(Place.of(path), view, still=still)
    except BadClip as bad:
        raise DataError(f"'{path}' cannot be judged: {bad}.") from bad


def _records(samples: str, scenes: Sequence[Scene]) -> list[dict[str, Any]]:
    """The lines of a folder's index, each of which must be the request for a scene."""
    index = Path(samples) / "index.json"
    if not index.is_file():
        raise DataError(f"'{samples}' holds no index.json; sample into it first.", code=2)
    records = json.loads(index.read_text())
    for record in records:
        number = record["index"]
        if number >= len(scenes) or record["prompt"] != scenes[number].caption:
            raise DataError(
                f"'{samples}' was not made from these requests: its number {number} was asked for "
                f"'{record['prompt']}'.",
                code=2,
            )
    return records


def right(seen: Seen, one: Scene) -> dict[str, bool]:
    """Which of the caption's words are true of a video; direction is not asked of an image."""
    found = {"colour": seen.colour == one.colour, "object": seen.shape == one.shape}
    return found | ({"direction": seen.motion == one.motion} if one.motion else {})


def score(seen: Sequence[Seen], asked: Sequence[Scene]) -> dict[str, Any]:
    """`n` and the share right of each kind, over all and by size class."""
    verdicts = [right(one, scene) for one, scene in zip(seen, asked, strict=True)]
    classes = [size_class(scene) for scene in asked]
    by_size = {
        name: _shares([v for v, c in zip(verdicts, classes, strict=True) if c == name])
        for name in sorted(set(classes))
    }
    return _shares(verdicts) | {"by_size": by_size}


def size_class(one: Scene) -> str:
    """Images by themselves, videos by their shorter side."""
    return f"videos of {min(one.height, one.width)}" if one.motion else "images"


def _shares(verdicts: Sequence[dict[str, bool]]) -> dict[str, Any]:
    told = {kind: [v[kind] for v in verdicts if kind in v] for kind in KINDS}
    return {"n": len(verdicts)} | {kind: share(said) for kind, said in told.items() if said}


def share(said: Sequence[bool]) -> dict[str, float]:
    """How many are true, of how many, with a 95 % interval."""
    bounds = binomtest(sum(said), len(said)).proportion_ci(0.95, method="wilson")
    return {
        "n": len(said), "share": float(np.mean(said)),
        "low": float(bounds.low), "high": float(bounds.high),
    }  # fmt: skip


def permuted(seen: Sequence[Seen], asked: Sequence[Scene]) -> dict[str, Any]:
    """Videos against the captions of others of their kind (film or image), and what is chance."""
    order = np.arange(len(asked))
    kinds = [np.flatnonzero([(one.motion == STILL) == still for one in asked]) for still in (0, 1)]
    for mine in kinds:
        order[mine] = np.roll(mine, 1 + len(mine) // 3)
    others = [asked[int(index)] for index in order]
    verdicts = [right(one, scene) for one, scene in zip(seen, others, strict=True)]
    films = [mine for mine in kinds if len(mine) and asked[mine[0]].motion != STILL]
    chance = {
        "colour": _chance([one.colour for one in seen], [one.colour for one in asked], kinds),
        "direction": _chance([one.motion for one in seen], [one.motion for one in asked], films),
        "object": _chance([one.shape for one in seen], [one.shape for one in asked], kinds),
    }
    return _shares(verdicts) | {"chance": chance}


def _chance(
    seen: Sequence[str | None], asked: Sequence[str], groups: Sequence[np.ndarray]
) -> float:
    """Probability that a thing seen is a thing asked for, each drawn by itself from its group."""
    hits = 0.0
    for mine in groups:
        said, wanted = [seen[int(i)] for i in mine], [asked[int(i)] for i in mine]
        hits += sum(said.count(word) * wanted.count(word) for word in set(wanted)) / max(
            1, len(mine)
        )
    return hits / max(1, sum(map(len, groups)))


def _accepted(way: str, asked: Sequence[Scene], real: Sequence[np.ndarray]) -> dict[str, float]:
    """Share of true clips, broken in one way, of which the judge still says what was true."""
    kind, breaks = BROKEN[way]
    said = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "broken.mp4"
        for one, true in zip(asked, real, strict=True):
            video = breaks(one, true)
            if video is None:
                continue
            write_mp4(path, video, one.fps or 8)
            said.append(right(look(load(path, one)), one)[kind])
    return share(said) if said else {"n": 0}


def _recoloured(one: Scene, video: np.ndarray) -> np.ndarray:
    names = list(generated.COLOURS)
    step = 1 + int(generated.draw(0, one.index, "broken") * (len(names) - 1))
    other = names[(names.index(one.colour) + step) % len(names)]
    return generated.render(dataclasses.replace(one, colour=other), 0)


def _moves(one: Scene) -> bool:
    return any(generated.MOTIONS.get(one.motion, ()))


def _reversed(one: Scene, video: np.ndarray) -> np.ndarray | None:
    return video[::-1] if _moves(one) else None


def _frozen(one: Scene, video: np.ndarray) -> np.ndarray | None:
    return np.repeat(video[:1], len(video), axis=0) if _moves(one) else None


def _blob(one: Scene, video: np.ndarray) -> np.ndarray:
    """The clip with a smooth irregular outline in place of its shape."""
    swing = 0.10 + 0.15 * keys.uniform(0, "exam/swing", 4 * one.index + np.arange(4))
    phase = 2 * np.pi * keys.uniform(0, "exam/phase", 4 * one.index + np.arange(4))

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        angle = np.arctan2(y, x)
        waves = zip(swing, (2, 3, 4, 5), phase, strict=True)
        outline = 0.8 * (1 + sum(a * np.cos(k * angle + p) for a, k, p in waves))
        return np.hypot(x, y) - outline

    return generated.render(one, 0, distance)


# How a true clip is broken, and of what it then no longer speaks the truth.
Breaks = Callable[[Scene, np.ndarray], np.ndarray | None]
BROKEN: dict[str, tuple[str, Breaks]] = {
    "recoloured": ("colour", _recoloured),
    "reversed": ("direction", _reversed),
    "frozen": ("direction", _frozen),
    "blob-shaped": ("object", _blob),
}


def nearest(
    videos: Sequence[np.ndarray], real: Sequence[np.ndarray], trained_on: str
) -> dict[str, Any]:
    """Distances to the nearest training clip; a copy of one would lie nearer than any true clip."""
    scenes = read_scenes(trained_on)
    known = np.stack(
        [
            thumbnail(load(Path(trained_on) / generated.file_name(one), one))
            for one in _bar(scenes, "comparing")
        ]
    )
    found = {
        name: np.array([_distance(thumbnail(video), known) for video in group])
        for name, group in (("samples", videos), ("truth", real))
    }
    medians = {name: float(np.median(values)) for name, values in found.items()}
    least = float(found["truth"].min())
    return medians | {"nearer_than_any_truth": float((found["samples"] < least).mean())}


def thumbnail(video: np.ndarray) -> np.ndarray:
    """float32 of a small copy, whatever the video's length and size."""
    frames, height, width = THUMBNAIL
    times = np.linspace(0, len(video) - 1, frames).round().astype(int)
    small = [
        PIL.Image.fromarray(video[time]).resize((width, height), PIL.Image.Resampling.BOX)
        for time in times
    ]
    return np.stack([np.asarray(one, np.float32) for one in small]).reshape(-1)


def _distance(one: np.ndarray, known: np.ndarray) -> float:
    return float(np.sqrt(np.square(known - one).mean(axis=1).min()))


def table(report: dict[str, Any]) -> Table:
    """What a person wants to see of a report."""
    shown = Table(title="what the videos show of what was asked")
    for column in ("", "videos made", "true clips", "captions exchanged", "chance"):
        shown.add_column(column, justify="left" if not column else "right")
    others = report["permuted_prompts"]
    for kind in KINDS:
        made, true = report["judge"][kind], report["judge_on_truth"][kind]
        shown.add_row(
            kind,
            f"{made['share']:.2f} ({made['low']:.2f} to {made['high']:.2f})",
            f"{true['share']:.2f}",
            f"{others[kind]['share']:.2f}",
            f"{others['chance'][kind]:.2f}",
        )
    return shown


def _bar(values: Iterable[Any], name: str) -> Iterable[Any]:
    return track(list(values), name, console=Console(stderr=True), transient=True)
