"""What is logged can be read back, by line, after any death of the process."""

import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX import proto
from tensorboardX.record_writer import masked_crc32c

from vdm_jax.config import UserError
from vdm_jax.train.log import JsonLines, Many, TensorBoard, Wandb, only_first


def records(path):
    return [json.loads(line) for line in Path(path).read_text().split("\n") if line]


def test_lines_hold_what_was_written(tmp_path):
    writer = JsonLines(tmp_path / "new" / "metrics.jsonl")
    writer.scalars(1, {"loss": np.float32(0.5), "batch": "ab", "n": np.int32(3), "ok": True})
    writer.scalars(2, {"loss": float("nan"), "top": jax.numpy.float32(np.inf), "low": -math.inf})
    writer.close()
    assert records(tmp_path / "new" / "metrics.jsonl") == [
        {"step": 1, "loss": 0.5, "batch": "ab", "n": 3, "ok": True},
        {"step": 2, "loss": "nan", "top": "inf", "low": "-inf"},
    ]


def test_no_text_breaks_a_line(tmp_path):
    words = {"a": 'x\n\r\x00\x1b[31m"\\', "line\nname": "\u2028\u2029\x85 é 日本"}
    writer = JsonLines(tmp_path / "m")
    writer.text(1, words)
    writer.close()
    content = (tmp_path / "m").read_text()
    assert len(content.splitlines()) == 1 and content.isascii()
    assert "\x1b" not in content
    assert records(tmp_path / "m") == [{"step": 1} | words]


@pytest.mark.parametrize("tail", ["", '{"step": 3, "lo', "x" * 10_000, "\n" * 2])
def test_a_half_line_is_cut_off_at_opening(tmp_path, tail):
    path = tmp_path / "m"
    first = JsonLines(path)
    first.scalars(1, {"a": 1})
    first.scalars(2, {"a": 2})
    first.close()
    with open(path, "a") as file:
        file.write(tail)
    second = JsonLines(path)
    second.scalars(3, {"a": 3})
    second.close()
    assert records(path) == [{"step": n, "a": n} for n in (1, 2, 3)]


def test_a_file_of_one_half_line(tmp_path):
    (tmp_path / "m").write_text('{"st')
    writer = JsonLines(tmp_path / "m")
    writer.scalars(1, {"a": 1})
    writer.close()
    assert records(tmp_path / "m") == [{"step": 1, "a": 1}]


def test_every_line_is_there_after_a_kill(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from vdm_jax.train.log import JsonLines\n"
        "writer = JsonLines(sys.argv[1])\n"
        "for step in range(100): writer.scalars(step, {'a': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")], cwd=Path(__file__).parents[2]
    )
    assert done.returncode == -signal.SIGKILL
    assert records(tmp_path / "m") == [{"step": n, "a": n} for n in range(100)]


def events(folder):
    """TFRecord framing by its description: length, its checksum, data, its checksum."""
    found = []
    for path in Path(folder).iterdir():
        stream = io.BytesIO(path.read_bytes())
        while header := stream.read(12):
            data = stream.read(int.from_bytes(header[:8], "little"))
            assert int.from_bytes(stream.read(4), "little") == masked_crc32c(data)
            found.append(proto.event_pb2.Event.FromString(data))
    return [(event.step, value) for event in found for value in event.summary.value]


def test_tensorboard_gets_numbers_words_and_moving_pictures(tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    writer = TensorBoard(tmp_path)
    writer.scalars(3, {"loss": 0.25, "batch": "abc"})
    writer.text(3, {"words": "hello"})
    writer.videos(4, {"a red, ball": video})
    writer.images(5, {"still": video[0], "gray": video[0, ..., :1]})
    writer.close()
    found = {value.tag: (step, value) for step, value in events(tmp_path)}
    assert found["loss"][0] == 3 and found["loss"][1].simple_value == 0.25
    assert "batch" not in found
    assert b"hello" in found["words/text_summary"][1].tensor.string_val[0]
    moving = Image.open(io.BytesIO(found["a_red__ball"][1].image.encoded_image_string))
    assert (moving.format, moving.n_frames, moving.size) == ("GIF", 5, (6, 8))
    still = Image.open(io.BytesIO(found["still"][1].image.encoded_image_string))
    assert np.array_equal(np.asarray(still), video[0])
    gray = Image.open(io.BytesIO(found["gray"][1].image.encoded_image_string))
    assert np.array_equal(np.asarray(gray), video[0, ..., 0])


def test_wandb_absent_is_said_clearly(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'vdm_jax\[wandb\]'"):
        Wandb(project="x")


def test_wandb_gets_what_it_can_draw(monkeypatch):
    """Against a recording stand-in with the documented names: init, Image, Video, log, finish."""
    logged = []

    class Run:
        def log(self, values, step):
            logged.append((step, values))

        def finish(self):
            logged.append("finished")

    class Module:
        Image = staticmethod(lambda value: ("image", value.shape))
        Video = staticmethod(lambda value, fps: ("video", value.shape, fps))
        init = staticmethod(lambda **keywords: logged.append(keywords) or Run())

    monkeypatch.setitem(sys.modules, "wandb", Module)
    writer = Wandb(project="p")
    writer.scalars(1, {"a": 1.0})
    writer.text(2, {"b": "c"})
    writer.images(3, {"i": np.zeros((4, 6, 3), np.uint8)})
    writer.videos(4, {"v": np.zeros((5, 4, 6, 3), np.uint8)})
    writer.close()
    assert logged == [
        {"project": "p"},
        (1, {"a": 1.0}),
        (2, {"b": "c"}),
        (3, {"i": ("image", (4, 6, 3))}),
        (4, {"v": ("video", (5, 3, 4, 6), 8)}),
        "finished",
    ]


def test_many_and_only_the_first_process(tmp_path, monkeypatch):
    writer = Many((JsonLines(tmp_path / "a"), JsonLines(tmp_path / "b")))
    writer.scalars(1, {"x": 1})
    writer.text(1, {"y": "z"})
    writer.images(1, {"p": np.zeros((2, 2, 3), np.uint8)})
    writer.videos(1, {"p": np.zeros((1, 2, 2, 3), np.uint8)})
    writer.close()
    assert (
        records(tmp_path / "a")
        == records(tmp_path / "b")
        == [
            {"step": 1, "x": 1},
            {"step": 1, "y": "z"},
        ]
    )
    assert isinstance(only_first(lambda: JsonLines(tmp_path / "c")), JsonLines)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    only_first(lambda: JsonLines(tmp_path / "d")).scalars(1, {"x": 1})
    assert os.path.exists(tmp_path / "c") and not os.path.exists(tmp_path / "d")
