"""Each published form of annotations, written as it is published, is read for what it says."""

import csv
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.sources.annotated import Told, Unread
from data_pipeline.sources.annotations import ANNOTATIONS
from data_pipeline.sources.entry import Said


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def table(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return path


def document(path, said):
    return text(path, json.dumps(said, ensure_ascii=False))


def told(form, path):
    """{(file, start, end, id, cut): what is said} and the lines that were not read."""
    lines = list(ANNOTATIONS[form](str(path)))
    unread = [line for line in lines if isinstance(line, Unread)]
    said = [line for line in lines if isinstance(line, Told)]
    found = {(t.file, t.start, t.end, t.id, t.cut): t.said for t in said}
    assert len(found) == len(said)
    return found, unread


def part(file, start, end, id="", cut=""):
    return file, start, end, id, cut


def whole(file):
    return file, -math.inf, math.inf, "", ""


def said(*captions, **known):
    return Said(captions=captions, **known)


def test_webvid(tmp_path):
    head = ("videoid", "contentUrl", "duration", "page_dir", "name")
    url, time = "https://x/a.mp4", "PT00H00M15S"
    path = table(
        tmp_path / "results_2M_val.csv",
        head,
        ("007", url, time, "000001_000050", 'An agent, "running"\nin the rain'),
        ("7", url, time, "000001_000050", "Grüße aus Köln"),
        ("31353427", url, time, "000051_000100", "Mérida; méxico - 日本"),
        ("007", url, time, "000001_000050", 'An agent, "running"\nin the rain'),
        ("", url, time, "000001_000050", "nothing"),
    )
    lines = [line for line in ANNOTATIONS["webvid"](str(path)) if isinstance(line, Told)]
    assert [line.file for line in lines] == ["007", "007", "31353427", "7"]
    found = {line.file: line.said for line in lines}
    assert found["007"] == said('An agent, "running" in the rain', split="validation")
    assert found["7"] == said("Grüße aus Köln", split="validation")
    assert found["31353427"].captions == ("Mérida; méxico - 日本",)


def test_openvid(tmp_path):
    head = (
        "video", "caption", "aesthetic score", "motion score", "temporal consistency score",
        "camera motion", "frame", "fps", "seconds",
    )  # fmt: skip
    path = table(
        tmp_path / "OpenVid-1M.csv",
        head,
        ("celebv_-0Qw.mp4", "A man, speaking.", "5.1", "3.25", "0.99", "static", "100", "24", "4"),
        ("b.mp4", "A road.", "4.5", "", "0.98", "pan_left+tilt_up", "10", "24", "0.4"),
    )
    found, unread = told("openvid", path)
    scores = {"aesthetic": 5.1, "motion": 3.25}
    first = said("A man, speaking.", label="static", scores=scores)
    second = said("A road.", label="pan_left+tilt_up", scores={"aesthetic": 4.5})
    assert found == {whole("celebv_-0Qw.mp4"): first, whole("b.mp4"): second}
    assert unread == []


def test_msrvtt(tmp_path):
    def video(number, category, split):
        times = {
            "start time": 137.72,
            "end time": 149.44,
            "url": "https://www.youtube.com/watch?v=x",
        }
        return {"id": number, "video_id": f"video{number}", "category": category} | times | split

    path = document(
        tmp_path / "videodatainfo.json",
        {
            "info": {"year": "2016"},
            "videos": [
                video(0, 9, {"split": "train"}),
                video(1, 16, {"split": "validate"}),
                video(2, 99, {}),
            ],
            "sentences": [
                {"sen_id": 0, "video_id": "video1", "caption": "someone cooks  "},
                {"sen_id": 1, "video_id": "video0", "caption": "a car is shown"},
                {"sen_id": 2, "video_id": "video1", "caption": "une crêpe"},
                {"sen_id": 3, "video_id": "video1", "caption": "someone cooks"},
                {"sen_id": 4, "video_id": "video7", "caption": "of nothing"},
                {"sen_id": 5, "caption": "of nothing"},
            ],
        },
    )
    found, unread = told("msrvtt", path)
    assert found == {
        whole("video0"): said("a car is shown", label="vehicles", split="train"),
        whole("video1"): said("someone cooks", "une crêpe", label="food", split="validation"),
        whole("video2"): said(),
    }
    assert unread == [
        Unread("sentence 5", "has no 'video_id'"),
        Unread("a sentence on 'video7'", "is not in the list"),
    ]


def test_ucf101(tmp_path):
    text(
        tmp_path / "classInd.txt", "1 ApplyEyeMakeup", "2 HandstandPushups", "3 YoYo", "4 TaiChi\r"
    )
    text(
        tmp_path / "trainlist01.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1",
        "HandstandPushups/v_HandStandPushups_g08_c01.avi 2\r",
        "Swimming/v_Swimming_g01_c01.avi 9",
        "ApplyEyeMakeup",
    )
    text(tmp_path / "testlist01.txt", "YoYo/v_YoYo_g01_c01.avi")
    text(tmp_path / "trainlist02.txt", "TaiChi/v_TaiChi_g01_c01.avi 4")
    text(tmp_path / "testlist02.txt", "YoYo/v_YoYo_g01_c02.avi")
    found, unread = told("ucf101", tmp_path)
    assert found == {
        whole("v_ApplyEyeMakeup_g08_c01.avi"): said(
            "apply eye makeup", label="ApplyEyeMakeup", split="train"
        ),
        whole("v_HandStandPushups_g08_c01.avi"): said(
            "handstand pushups", label="HandstandPushups", split="train"
        ),
        whole("v_YoYo_g01_c01.avi"): said("yo yo", label="YoYo", split="test"),
    }
    assert [line.where for line in unread] == [f"line {n} of trainlist01.txt" for n in (3, 4)]
    for name in ("trainlist02.txt", "testlist02.txt"):
        found, unread = told("ucf101", tmp_path / name)
        assert found == {
            whole("v_TaiChi_g01_c01.avi"): said("tai chi", label="TaiChi", split="train"),
            whole("v_YoYo_g01_c02.avi"): said("yo yo", label="YoYo", split="test"),
        }
        assert unread == []


def test_lsmdc(tmp_path):
    american = "0001_American_Beauty_00.00.51.926-00.00.54.129"
    harry = "1014_2012_01.00.05.000-01.00.07.500"
    path = text(
        tmp_path / "LSMDC16_annos_training.csv",
        f'{american}\t00.00.51.926\t00.00.53.900\t00.00.51.926\t00.00.54.129\tHe says "wait, no".',
        f"{harry}\t01.00.05.500\t01.00.07.000\t01.00.05.000\t01.00.07.500\tSOMEONE leaves.",
        f'{american}\t00.00.51.926\t00.00.53.900\t00.00.51.926\t00.00.54.129\tA " alone.',
        f"{harry}\t01.00.05.500",
    )
    lines = list(ANNOTATIONS["lsmdc"](str(path)))
    assert lines[0] == Unread("line 4 of LSMDC16_annos_training.csv", "is of another form")
    first = part("0001_American_Beauty", 51.926, 54.129, american, american)
    second = part("1014_2012", 3605.0, 3607.5, harry, harry)
    assert [(t.file, t.start, t.end, t.id, t.cut) for t in lines[1:]] == [first, first, second]
    assert [line.said.captions[0] for line in lines[1:]] == [
        'He says "wait, no".', 'A " alone.', "SOMEONE leaves."
    ]  # fmt: skip
    assert {line.said.split for line in lines[1:]} == {"train"}


def test_didemo(tmp_path):
    """[1, 4] is from second 5 to 25; of four annotators two agree."""
    name = "54322086@N00_2408598493_274c77d26a.avi"
    line = {"video": name, "num_segments": 6, "annotation_id": 1, "dl_link": "https://x"}
    path = document(
        tmp_path / "val_data.json",
        [
            line | {"description": "the dog turns", "times": [[0, 0], [1, 4], [2, 2], [1, 4]]},
            line | {"description": "a cat", "times": [[5, 5], [0, 1]]},
            line | {"description": "also a dog", "times": [[1, 4]]},
            line | {"description": "never", "times": []},
            line | {"description": "backwards", "times": [[4, 1]]},
        ],
    )
    lines = list(ANNOTATIONS["didemo"](str(path)))
    unread = [line for line in lines if isinstance(line, Unread)]
    assert [line.where for line in unread] == ["the list, number 3", "the list, number 4"]
    assert [(t.file, t.start, t.end, t.said) for t in lines[2:]] == [
        (name, 5.0, 25.0, said("the dog turns", split="validation")),
        (name, 25.0, 30.0, said("a cat", split="validation")),
        (name, 5.0, 25.0, said("also a dog", split="validation")),
    ]


def test_youcook2(tmp_path):
    def film(subset, **more):
        return {"duration": 241.62, "subset": subset, "recipe_type": "212"} | more

    path = document(
        tmp_path / "youcookii_annotations_trainval.json",
        {
            "database": {
                "-d5dN54tH2E": film(
                    "training",
                    annotations=[
                        {"id": 0, "segment": [41, 54], "sentence": "chop the jalapeño"},
                        {"id": 1, "segment": [60, 54], "sentence": "backwards"},
                        {"id": 2, "sentence": "at no time"},
                        {"id": 3, "segment": [50, 93.5], "sentence": "2枚の食パン"},
                    ],
                ),
                "00dWJ4YRRSI": film("validation", annotations=[]),
                "xxxxxxxxxxx": film("testing"),
            }
        },
    )
    found, unread = told("youcook2", path)
    assert found == {
        part("-d5dN54tH2E", 41, 54): said("chop the jalapeño", label="212", split="train"),
        part("-d5dN54tH2E", 50, 93.5): said("2枚の食パン", label="212", split="train"),
    }
    assert unread == [
        Unread("'-d5dN54tH2E', number 1", "is of another form"),
        Unread("'-d5dN54tH2E', number 2", "has no 'segment'"),
        Unread("'xxxxxxxxxxx'", "has no 'annotations'"),
    ]


def test_activitynet(tmp_path):
    film = {"duration": 55.15, "timestamps": [[0.28, 55.15], [13.79, 54.32], [9, 3]]}
    film["sentences"] = [" We see adult men.", "They jump.", "In no time."]
    short = {"duration": 5, "timestamps": [[0, 1]], "sentences": ["a", "b"]}
    path = document(tmp_path / "val_1.json", {"v_uqiMw7tQ1Cc": film, "v_short": short})
    found, unread = told("activitynet", path)
    assert found == {
        part("v_uqiMw7tQ1Cc", 0.28, 55.15): said("We see adult men.", split="validation"),
        part("v_uqiMw7tQ1Cc", 13.79, 54.32): said("They jump.", split="validation"),
    }
    assert [line.where for line in unread] == ["'v_uqiMw7tQ1Cc', number 2", "'v_short'"]


@pytest.mark.parametrize("name", ["text.id.en", "text"])
def test_how2(name, tmp_path):
    text(
        tmp_path / "dev5" / "segments",
        "-d5dN54tH2E_0 -d5dN54tH2E 0.44 8.3",
        "-d5dN54tH2E_1 -d5dN54tH2E 8.30 9.67",
        "00dWJ4YRRSI_0_1 00dWJ4YRRSI 0.41 26.97",
        "00dWJ4YRRSI_2 00dWJ4YRRSI 27.33",
    )
    text(
        tmp_path / "dev5" / name,
        "-d5dN54tH2E_0 Hi, I'm here  to talk.",
        "00dWJ4YRRSI_0_1 Ça va?",
    )
    found, unread = told("how2", tmp_path / "dev5")
    assert found == {
        part("-d5dN54tH2E", 0.44, 8.3, "-d5dN54tH2E_0"): said(
            "Hi, I'm here to talk.", split="test"
        ),
        part("00dWJ4YRRSI", 0.41, 26.97, "00dWJ4YRRSI_0_1"): said("Ça va?", split="test"),
    }
    assert unread == [
        Unread("line 2 of segments", "has no '-d5dN54tH2E_1'"),
        Unread("line 4 of segments", "is of another form"),
    ]


def test_howto100m(tmp_path):
    """With NaN among the texts, as Python writes what pandas calls no text."""
    path = tmp_path / "caption.json"
    film = {
        "text": ["wash hands", math.nan, "ﬁnd 日本"],
        "start": [0.08, 5.5, 7],
        "end": [4, 7, 9.5],
    }
    broken = {"text": ["x"], "start": [1], "end": []}
    document(path, {"-0-Klvh_aLo": film, "00": broken, "__": {"text": [], "start": [], "end": []}})
    found, unread = told("howto100m", path)
    keys = [part("-0-Klvh_aLo", *times) for times in ((0.08, 4), (5.5, 7), (7, 9.5))]
    assert found == {keys[0]: said("wash hands"), keys[1]: said(), keys[2]: said("ﬁnd 日本")}
    assert unread == [Unread("'00'", "is of another form")]
    head = ("video_id", "category_1", "category_2", "rank", "task_id")
    table(tmp_path / "HowTo100M_v1.csv", head, ("-0-Klvh_aLo", "Food", "Drinks", "9", "44"))
    found, _ = told("howto100m", path)
    assert {line.label for line in found.values()} == {"Food/Drinks"}


def test_hdvila(tmp_path):
    name = "QMi8x8o55Ns"
    clips = [
        {"clip_id": f"{name}.1.mp4", "span": ["00:00:17.759", "00:00:23.279"]},
        {"clip_id": f"{name}.2.mp4", "span": ["00:00:17.759"]},
        {"clip_id": f"{name}.16.mp4", "span": ["01:04:52.140", "01:05:03.350"]},
    ]
    line = json.dumps({"video_id": name, "url": "https://x", "clip": clips})
    path = text(tmp_path / "hdvila_part0.jsonl", line, "{half", '{"clip": []}')
    text(tmp_path / "hdvila_part1.jsonl", line.replace(name, "00000000000"))
    found, unread = told("hdvila", path)
    spans = {"1": (17.759, 23.279), "16": (3892.14, 3903.35)}
    assert set(found) == {
        part(name, *spans[n], f"{name}.{n}.mp4", f"{name}.{n}.mp4") for n in spans
    }
    assert all(known == said() for known in found.values())
    assert unread == [
        Unread("'QMi8x8o55Ns', number 1", "is of another form"),
        Unread("line 2 of hdvila_part0.jsonl", "is of another form"),
        Unread("line 3 of hdvila_part0.jsonl", "has no 'video_id'"),
    ]
    assert len(told("hdvila", tmp_path)[0]) == 4  # a folder of parts


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_internvid(suffix, tmp_path):
    lines = [
        {
            "YoutubeID": youtube, "Start_timestamp": start, "End_timestamp": end,
            "Caption": caption, "Aesthetic_Score": 4.25, "UMT_Score": 0.5,
        }
        for youtube, start, end, caption in (
            ("00000000007", "00:00:05.500", "00:00:09.000", "a man, wörking"),
            ("zzz", "00:01:00.000", "00:01:02.000", "later"),
            ("00000000007", "00:00:01.000", "00:00:05.500", "earlier"),
            ("zzz", "00:01:00.000", "00:00:02.000", "backwards"),
        )
    ]  # fmt: skip
    path = tmp_path / f"InternVid-10M-flt.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(lines), path)
    elif suffix == "csv":
        table(path, list(lines[0]), *[list(line.values()) for line in lines])
    else:
        text(path, *map(json.dumps, lines))
    found = list(ANNOTATIONS["internvid"](str(path)))
    assert isinstance(found[0], Unread) and len(found) == 4
    assert [(t.file, t.start, t.end, t.said.captions) for t in found[1:]] == [
        ("00000000007", 5.5, 9.0, ("a man, wörking",)),
        ("00000000007", 1.0, 5.5, ("earlier",)),
        ("zzz", 60.0, 62.0, ("later",)),
    ]
    assert all(t.said.scores == {"aesthetic": 4.25, "clip": 0.5} for t in found[1:])


def test_panda70m(tmp_path):
    times = [["0:00:17.100", "0:00:23.200"], ["1:00:00.000", "1:00:05.5"], ["0:00:09", "0:00:01"]]
    captions = ['It\'s a "red" car,\nmoving.', "a dog", "backwards"]
    path = table(
        tmp_path / "panda70m_training_2m.csv",
        ("videoID", "url", "timestamp", "caption", "matching_score", "desirable_filtering"),
        ("--007", "https://x", times, captions, [0.44, 0.5, 0.6], ["desirable"] * 3),
        ("short", "https://x", times[:1], captions[:2], [0.5], []),
        ("code", "https://x", "__import__('os').abort()", "['x']", "[1]", []),
    )
    found, unread = told("panda70m", path)
    assert found == {
        part("--007", 17.1, 23.2): said(
            'It\'s a "red" car, moving.', split="train", scores={"clip": 0.44}
        ),
        part("--007", 3600.0, 3605.5): said("a dog", split="train", scores={"clip": 0.5}),
    }
    assert [line.where.partition(" of")[0] for line in unread] == [
        "'--007', number 2", "line 3", "line 4"
    ]  # fmt: skip


def test_any_table(tmp_path):
    path = text(
        tmp_path / "own.jsonl",
        json.dumps({"file": "b.mp4", "captions": ["one", "two"], "weights": [1, 3], "motion": 2}),
        json.dumps({"file": "a.mp4", "caption": "x", "start": 0, "end": "1.5", "id": "first"}),
        json.dumps({"file": "b.mp4", "text": "three", "split": "test", "licence": "CC0"}),
        json.dumps({"caption": "of nothing"}),
    )
    lines = list(ANNOTATIONS["table"](str(path)))
    assert lines == [
        Unread("line 4 of own.jsonl", "has no 'file'"),
        Told("a.mp4", said("x"), 0.0, 1.5, "first"),
        Told("b.mp4", said("one", "two", weights=(1.0, 3.0), scores={"motion": 2.0})),
        Told("b.mp4", said("three", split="test", licence="CC0")),
    ]
