"""Sets that programs cut and captioned from films of the web, too large for people.

    hdvila      HD-VILA-100M    JSONL, no captions
    internvid   InternVid       JSONL, CSV or Parquet
    panda70m    Panda-70M       CSV with lists in its cells

Each may be one file or a folder of its parts.
"""

from __future__ import annotations

import posixpath
from ast import literal_eval
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.sources.annotated import Lines, Told, Unread
from data_pipeline.sources.annotations.gather import by_file
from data_pipeline.sources.annotations.reading import (
    moment,
    name_of,
    rows,
    several,
    split_of,
    told,
)
from data_pipeline.sources.entry import Said, cleaned, number


def hdvila(path: str) -> Iterator[Told | Unread]:
    """`{video_id, url, clip: [{clip_id, span: ["hh:mm:ss.mmm", ...]}]}`, for each film a line.

    Films are `{video_id}.mp4`, what was cut from them `video_clips/{video_id}/{clip_id}`; either
    will do. What is said in a clip is not part of the set: clips have no captions.

    Source: microsoft/XPretrain, hd-vila-100m/README.md and src/cut_videos.py.
    """

    def read(line: Mapping[str, Any]) -> Lines:
        film = name_of(line["video_id"])

        def part(clip: Mapping[str, Any]) -> list[Told]:
            name = name_of(clip["clip_id"])
            return [moment(film, clip["span"], Said(), id=name, cut=name)]

        return told(several(repr(film), line["clip"]), part)

    return told(rows(path), read)


def internvid(path: str) -> Iterator[Told | Unread]:
    """`YoutubeID, Start_timestamp, End_timestamp, Caption, Aesthetic_Score, UMT_Score`; the last,
    how well caption and clip agree, is the clip's `clip` score. Files are `{YoutubeID}.mp4`.

    Source: OpenGVLab/InternVideo, Data/InternVid; columns as loaders of its JSONL name them.
    """

    def read(line: Mapping[str, Any]) -> list[Told]:
        scores = _scores(aesthetic=line.get("aesthetic_score"), clip=line.get("umt_score"))
        said = Said(captions=cleaned([line["caption"]]), scores=scores)
        times = line["start_timestamp"], line["end_timestamp"]
        return [moment(name_of(line["youtubeid"]), times, said)]

    return by_file(told(rows(path), read))


def panda70m(path: str) -> Iterator[Told | Unread]:
    """`videoID,url,timestamp,caption,matching_score`, the last three lists as Python writes them.

    How well caption and clip agree, the last, is the clip's `clip` score. Films are
    `{videoID}.mp4`; what the set's own downloader cut is a folder with captions beside its files.

    Source: snap-research/Panda-70M, dataset_dataloading.
    """
    split = split_of(posixpath.basename(path))

    def read(line: Mapping[str, Any]) -> Lines:
        film = name_of(line["videoid"])
        columns = (literal_eval(line[name]) for name in ("timestamp", "caption", "matching_score"))

        def part(clip: tuple[Any, Any, Any]) -> list[Told]:
            times, caption, score = clip
            said = Said(captions=cleaned([caption]), split=split, scores=_scores(clip=score))
            return [moment(film, times, said)]

        return told(several(repr(film), list(zip(*columns, strict=True))), part)

    return told(rows(path), read)


def _scores(**said: Any) -> dict[str, float]:
    known = {name: number(score) for name, score in said.items()}
    return {name: score for name, score in known.items() if score is not None}
