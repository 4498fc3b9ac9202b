"""Sets that name parts of films, by times, which people described.

didemo        DiDeMo                  a JSON document
youcook2      YouCook II              a JSON document
activitynet   ActivityNet Captions    a JSON document
how2          How2                    Kaldi's files in a folder
howto100m     HowTo100M               a JSON document of gigabytes
"""

from __future__ import annotations

import collections
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import DataError
from data_pipeline.sources.annotated import Lines, Told, Unread
from data_pipeline.sources.annotations.gather import by_file
from data_pipeline.sources.annotations.reading import (
    document,
    members,
    moment,
    name_of,
    rows,
    several,
    split_of,
    texts,
    told,
)
from data_pipeline.sources.entry import Said, cleaned

CHUNK_S = 5  # seconds that DiDeMo counts in
CATEGORIES = "HowTo100M_v1.csv"


def didemo(path: str) -> Iterator[Told | Unread]:
    """`[{video, description, times: [[first, last], ...]}]`, a pair from each annotator: numbers of
    pieces of five seconds, the last one included, so that [1, 4] is from 5 to 25 seconds.

    Of what annotators say, the pair named most often counts, of those alike the first. The split is
    in the file's name, as in `train_data.json`.

    Source: LisaAnne/LocalizingMoments, README.md and utils/eval.py.
    """
    found, split = document(path), split_of(posixpath.basename(path))
    if not isinstance(found, list):
        raise DataError(f"'{path}' is not of the form 'didemo': it is no list.")

    def read(line: Mapping[str, Any]) -> list[Told]:
        pairs = collections.Counter((int(first), int(last)) for first, last in line["times"])
        first, last = pairs.most_common(1)[0][0]
        said = Said(captions=cleaned([line["description"]]), split=split)
        times = CHUNK_S * first, CHUNK_S * (last + 1)
        return [moment(name_of(line["video"]), times, said)]

    return by_file(told(several("the list", found), read))


def youcook2(path: str) -> Iterator[Told | Unread]:
    """`{database: {video: {subset, recipe_type, annotations: [{id, segment, sentence}]}}}`; the
    type of recipe becomes the label.

    Source: LuoweiZhou/ProcNets-YouCook2, script/eval_recall_precision.py; nlab-mpg/YouCook2-JP.
    """
    found = document(path)
    if not isinstance(found, dict) or not isinstance(found.get("database"), dict):
        raise DataError(f"'{path}' is not of the form 'youcook2': it has no 'database'.")

    def read(video: tuple[str, Mapping[str, Any]]) -> Lines:
        name, film = video
        label, split = str(film.get("recipe_type", "")), split_of(film["subset"])

        def part(line: Mapping[str, Any]) -> list[Told]:
            said = Said(captions=cleaned([line["sentence"]]), label=label, split=split)
            return [moment(name, line["segment"], said)]

        return told(several(repr(name), film["annotations"]), part)

    yield from told(((repr(name), (name, film)) for name, film in found["database"].items()), read)


def activitynet(path: str) -> Iterator[Told | Unread]:
    """`{v_...: {duration, timestamps: [[start, end]], sentences: [...]}}`; parts may overlap, and
    each is a clip. The split is in the file's name, as in `val_1.json`.

    Source: ranjaykrishna/densevid_eval, evaluate.py.
    """
    split = split_of(posixpath.basename(path))

    def read(video: tuple[str, Mapping[str, Any]]) -> Lines:
        name, film = video
        lines = list(zip(film["timestamps"], film["sentences"], strict=True))

        def part(line: tuple[Any, Any]) -> list[Told]:
            return [moment(name, line[0], Said(captions=cleaned([line[1]]), split=split))]

        return told(several(repr(name), lines), part)

    return told(members(path), read)


def how2(path: str) -> Iterator[Told | Unread]:
    """The folder of a split with Kaldi's `segments`, lines `utterance video start end`, and what is
    said, lines `utterance words ...`, in `text.id.en` or `text`.

    Source: srvk/how2-dataset, reproduce/300h; espnet, egs/how2/st1/local/data_prep.sh.
    """
    folder = path.rstrip("/")
    names = (f"{folder}/text.id.en", f"{folder}/text")
    spoken = next((name for name in names if storage.exists(name)), None)
    if spoken is None:
        raise DataError(f"'{path}' is not of the form 'how2': it has no 'text.id.en' or 'text'.")
    pairs = (line.partition(" ") for _, line in texts(spoken))
    words = {utterance: said for utterance, _, said in pairs}
    split = split_of(posixpath.basename(folder))

    def read(line: str) -> list[Told]:
        utterance, video, start, end = line.split()
        said = Said(captions=cleaned([words[utterance]]), split=split)
        return [moment(video, (start, end), said, id=utterance)]

    return by_file(told(texts(f"{folder}/segments"), read))


def howto100m(path: str) -> Iterator[Told | Unread]:
    """`{video: {text: [...], start: [...], end: [...]}}`, of gigabytes, as a stream. A text that is
    no string, such as NaN, is no caption.

    Where `HowTo100M_v1.csv` lies beside, its `category_1` and `category_2` become the label.

    Source: the read-me of HowTo100M; antoine77340/howto100m, youtube_dataloader.py.
    """
    beside = f"{posixpath.dirname(path) or '.'}/{CATEGORIES}"
    labels = _categories(beside) if storage.exists(beside) else {}

    def read(video: tuple[str, Mapping[str, Any]]) -> Lines:
        name, film = video
        lines = list(zip(film["text"], film["start"], film["end"], strict=True))
        label = labels.get(name, "")

        def part(line: tuple[Any, Any, Any]) -> list[Told]:
            said = Said(captions=cleaned([line[0]]), label=label)
            return [moment(name, line[1:], said)]

        return told(several(repr(name), lines), part)

    return told(members(path), read)


def _categories(path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    same: dict[str, str] = {}
    for _, cells in rows(path):
        label = "/".join(filter(None, (cells.get("category_1"), cells.get("category_2"))))
        # One string for all videos of a category: there are a million of them.
        found[str(cells.get("video_id"))] = same.setdefault(label, label)
    return found
