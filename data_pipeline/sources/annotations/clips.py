"""Sets that are passed on as clips: one file, one clip.

webvid    WebVid-2M, -10M     a CSV
openvid   OpenVid-1M          a CSV
msrvtt    MSR-VTT             a JSON document
ucf101    UCF-101             lists in a folder
lsmdc     LSMDC               tables without a header
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.sources.annotated import Told, Unread
from data_pipeline.sources.annotations.gather import by_file
from data_pipeline.sources.annotations.reading import (
    document,
    moment,
    name_of,
    rows,
    split_of,
    texts,
    told,
)
from data_pipeline.sources.entry import Said, cleaned, number

CATEGORIES = (
    "music", "people", "gaming", "sports", "news", "education", "tv", "movie", "animation",
    "vehicles", "howto", "travel", "science", "animals", "kids", "documentary", "food", "cooking",
    "beauty", "advertisement",
)  # fmt: skip


def webvid(path: str) -> Iterator[Told | Unread]:
    """`videoid,contentUrl,duration,page_dir,name`; files are `videos/{page_dir}/{videoid}.mp4`.

    Ids are text: 007 is not 7. Each is of one video alone, which is found in any folder. The
    split is in the file's name, as in `results_2M_train.csv`.

    Source: the builder of `webvid` in tensorflow-datasets.
    """
    split = split_of(posixpath.basename(path))

    def read(line: Mapping[str, Any]) -> list[Told]:
        return [Told(name_of(line["videoid"]), Said(captions=cleaned([line["name"]]), split=split))]

    return by_file(told(rows(path), read))


def openvid(path: str) -> Iterator[Told | Unread]:
    """`video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,
    fps,seconds`; the camera's motion becomes the label.

    Source: NJU-PCALab/OpenVid-1M; columns as loaders of `OpenVid-1M.csv` quote them.
    """

    def read(line: Mapping[str, Any]) -> list[Told]:
        scores = {name: number(line.get(f"{name} score")) for name in ("aesthetic", "motion")}
        said = Said(
            captions=cleaned([line["caption"]]),
            label=str(line.get("camera motion") or ""),
            scores={name: score for name, score in scores.items() if score is not None},
        )
        return [Told(name_of(line["video"]), said)]

    return by_file(told(rows(path), read))


def msrvtt(path: str) -> Iterator[Told | Unread]:
    """`{videos: [{video_id, category, split}], sentences: [{video_id, caption}]}`, twenty sentences
    a video; files are `video0.mp4` and so on, cut already, whatever times the document says.

    Source: the read-me of MSR-VTT; ArrowLuo/CLIP4Clip, dataloaders/dataloader_msrvtt_retrieval.py.
    """
    found = document(path)
    if not isinstance(found, dict) or not isinstance(found.get("videos"), list):
        raise DataError(f"'{path}' is not of the form 'msrvtt': it has no list of 'videos'.")
    captions: dict[Any, list[Any]] = {}

    def hear(sentence: Mapping[str, Any]) -> list[Told]:
        captions.setdefault(name_of(sentence["video_id"]), []).append(sentence["caption"])
        return []

    def read(video: Mapping[str, Any]) -> list[Told]:
        name, kind = name_of(video["video_id"]), video.get("category")
        label = CATEGORIES[kind] if isinstance(kind, int) and 0 <= kind < len(CATEGORIES) else ""
        split = split_of(video.get("split"))
        return [
            Told(name, Said(captions=cleaned(captions.pop(name, [])), label=label, split=split))
        ]

    sentences = found.get("sentences") or []
    yield from told(((f"sentence {n}", one) for n, one in enumerate(sentences)), hear)
    yield from told(((f"video {n}", one) for n, one in enumerate(found["videos"])), read)
    yield from (Unread(f"a sentence on {name!r}", "is not in the list") for name in captions)


def ucf101(path: str) -> Iterator[Told | Unread]:
    """Folder `ucfTrainTestlist`: `classInd.txt` with lines `1 ApplyEyeMakeup`, `trainlist01.txt`
    with `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`, `testlist01.txt` with files alone.

    A clip's caption is its class in words. Of the three ways to split, the folder stands for the
    first, and one of its lists for its own.

    Source: `video/ucf101.py` in tensorflow-datasets; torchvision/datasets/ucf101.py.
    """
    named = re.fullmatch(r"(?:train|test)list(\d\d)\.txt", posixpath.basename(path))
    folder = posixpath.dirname(path) or "." if named else path.rstrip("/")
    classes = {line.split()[-1] for _, line in texts(f"{folder}/classInd.txt")}

    def read(line: str, split: str) -> list[Told]:
        file = line.split()[0]
        label, name = file.split("/")
        if label not in classes:
            raise ValueError(label)
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).lower()
        # Found in any folder, and also where it was stored anew in another container.
        return [Told(name, Said(captions=(words,), label=label, split=split))]

    for split in ("train", "test"):
        listed = texts(f"{folder}/{split}list{named[1] if named else '01'}.txt")
        yield from told(listed, lambda line, split=split: read(line, split))  # type: ignore[misc]


def lsmdc(path: str) -> Iterator[Told | Unread]:
    """`clip id, start and end aligned, start and end extracted, sentence`, separated by TAB; times
    are `hh.mm.ss.mmm`. Files are `{film}/{clip id}.avi`, from which the extracted times were cut;
    a whole film, `{film}`, will do. A clip may have several lines. Quotes are what they look like.

    Source: LSMDC 2016's read-me; ArrowLuo/CLIP4Clip, dataloaders/dataloader_lsmdc_retrieval.py.
    """
    split = split_of(posixpath.basename(path))

    def read(line: str) -> list[Told]:
        clip, _, _, start, end, *sentence = line.split("\t")
        times = (time.replace(".", ":", 2) for time in (start, end))
        film = re.sub(r"_\d\d\.\d\d\.\d\d\.\d+-\d\d\.\d\d\.\d\d\.\d+$", "", clip)
        said = Said(captions=cleaned(sentence), split=split)
        return [moment(name_of(film), times, said, id=name_of(clip), cut=clip)]

    return by_file(told(texts(path), read))
