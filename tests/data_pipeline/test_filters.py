"""Conditions over a manifest: they mean what Python means, and what is wrong is said at once."""

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline import filters
from data_pipeline.errors import DataError
from data_pipeline.manifest import SCHEMA

RNG = np.random.default_rng(0)
ROWS = [
    {
        "clip_id": str(i), "uri": f"{i}.mp4", "start_s": 1.0, "end_s": 1.0 + i / 8,
        "fps_num": 24 * (i % 5 > 0), "fps_den": 1 + i % 2, "height": int(RNG.integers(90, 500)),
        "width": int(RNG.integers(90, 500)), "n_frames": 1 + i % 7,
        "split": ("train", "val", "")[i % 3], "label": "it's" if i % 4 else None,
        "scores": {"motion": i / 40, "aesthetic": None} if i % 2 else None,
    }
    for i in range(40)
]  # fmt: skip
TABLE = pa.Table.from_pylist(ROWS, schema=SCHEMA)


def chosen(condition):
    found = TABLE.filter(filters.parse(condition, TABLE.schema))
    return [int(name) for name in found["clip_id"].to_pylist()]


def names(row):
    """What Python would see; a missing value is told apart by the test itself."""
    scores = row["scores"] or {}
    rate = row["fps_num"] / row["fps_den"]
    return row | {
        "motion": scores.get("motion"), "aesthetic": scores.get("aesthetic"), "fps": rate,
        "seconds": row["end_s"] - row["start_s"] if rate else 0.0, "frames": row["n_frames"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "condition",
    [
        "height >= 256 and width < 400",
        "height >= 256 or not width < 400",
        "100 < height <= 300 != width",
        "height / width > 1.2",
        "width - height * 2 + 3 > -(height)",
        "height * width >= 250 * 250",
        "split == 'train'",
        "split in ('train', '') and frames not in [1, 2, 3]",
        "seconds > 2.5 and fps == 12",
        "n_frames / 2 == 2.5",
        "-height < -256",
        "(height > 300) == (width > 300)",
        "True and height > 100",
        '"va" < split',
    ],
)
def test_a_condition_means_what_python_means(condition):
    wanted = [i for i, row in enumerate(ROWS) if eval(condition, {}, names(row))]
    assert chosen(condition) == wanted and 0 < len(wanted) < 40


def test_what_is_missing_satisfies_neither_a_condition_nor_its_opposite():
    odd = [i for i in range(40) if i % 2]
    high, low = chosen("motion > 0.5"), chosen("not motion > 0.5")
    assert sorted(high + low) == odd and min(high) > max(low)
    assert chosen("motion is not None") == odd
    assert chosen("motion is None") == [i for i in range(40) if not i % 2]
    assert sorted(chosen("motion in (0.125,)") + chosen("motion not in (0.125,)")) == odd
    assert chosen("aesthetic > 0 and height > 0") == []
    assert len(chosen("aesthetic > 0 or height > 0")) == 40  # the one is unknown, the other true
    assert len(chosen("aesthetic is None or aesthetic > 0")) == 40


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("heigth > 2", "no column 'heigth'. Did you mean 'height'?"),
        ("colour == 'red'", "Known: aesthetic, "),
        ("captions == 'a'", "no column 'captions'"),
        ("height > 'tall'", "height is a number and 'tall' is text"),
        ("split < 3", "split is text and 3 is a number"),
        ("height", "it is a number"),
        ("height + 1", "it is a number"),
        ("height and width > 3", "height is a number"),
        ("not split", "split is text"),
        ("split + 'a' == 'b'", "split is text"),
        ("height is 256", "==."),
        ("split in 'train'", "is no list of values"),
        ("split in ('train', 3)", "3 is not text as split is"),
        ("split in (label,)", "label is not text"),
        ("height in ()", "is no list"),
        ("True < False", "neither less nor more"),
        ("height ** 2 > 4", "height ** 2 is nothing"),
        ("height.real > 2", "height.real is nothing"),
        ("__import__('os').system('true')", "nothing that a condition can have"),
        ("[height for height in (1, 2)]", "nothing that a condition can have"),
        ("lambda: height > 2", "nothing that a condition can have"),
        ("(height := 3) > 2", "nothing that a condition can have"),
        ("height >", "cannot be read"),
        ("height > 2; width > 3", "cannot be read"),
        ("height > " + "9" * 400, "cannot be read"),
        ("(" * 300 + "height" + ")" * 300 + " > 2", "cannot be read"),
        ("height > 2" + " and height > 2" * 400, "longer than"),
        ("  ", "cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence_of_code_2(condition, said):
    with pytest.raises(DataError) as error:
        filters.parse(condition, TABLE.schema)
    assert said in str(error.value) and "where is" in str(error.value)
    assert error.value.code == 2
    assert len(str(error.value)) < 700 and "\n" not in str(error.value)


def test_whole_numbers_do_not_overflow():
    assert len(chosen("height * 100000 * 100000 * 100000 * 100000 > 0")) == 40
    assert chosen("height > 1e400") == []
