"""Where numbers, words and pictures of a run go: one `Writer`, several places behind it.

Only process 0 writes (`only_first`). Scalars may be numbers or short strings (a digest); places
that can draw only numbers leave strings out.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from PIL import Image

from vdm_jax.config import UserError

Scalar = float | int | str | bool
VIDEO_FPS = 8


class Writer(Protocol):
    """`step` is the number of finished steps; dicts go from name to value."""

    def scalars(self, step: int, values: Mapping[str, Scalar]) -> None: ...

    def text(self, step: int, values: Mapping[str, Any]) -> None:
        """Words, or anything JSON can hold."""

    def images(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """uint8 (h w c), c of 1 or 3."""

    def videos(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """uint8 (f h w c), c of 1 or 3."""

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, appended and flushed: `{"step": ..., name: value, ...}`.

    A line is written by a single call of the system, so a killed process leaves at most one half
    line, the last; opening the file again cuts it off. Numbers that are not finite are written as
    the strings "nan", "inf", "-inf", since JSON has none. Pictures are left out.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _repair(self.path)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  (closed by close())

    def scalars(self, step: int, values: Mapping[str, Scalar]) -> None:
        self._line(step, values)

    def text(self, step: int, values: Mapping[str, Any]) -> None:
        self._line(step, values)

    def images(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        del step, values

    def videos(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        del step, values

    def close(self) -> None:
        self._file.close()

    def _line(self, step: int, values: Mapping[str, Any]) -> None:
        record = {"step": step} | {name: _plain(value) for name, value in values.items()}
        # ASCII only: line separators of Unicode would otherwise break lines for some readers.
        self._file.write(json.dumps(record, allow_nan=False).encode("ascii") + b"\n")


class TensorBoard:
    """Event files for TensorBoard. Videos are animated GIFs, which it plays."""

    def __init__(self, folder: str | os.PathLike[str]):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def scalars(self, step: int, values: Mapping[str, Scalar]) -> None:
        for name, value in values.items():
            if not isinstance(value, str):
                self._writer.add_scalar(name, float(value), step)

    def text(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._writer.add_text(
                name, value if isinstance(value, str) else json.dumps(value), step
            )

    def images(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        for name, value in values.items():
            self._picture(name, step, value.shape, _encode(value[None], "PNG"))

    def videos(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        for name, value in values.items():
            self._picture(name, step, value.shape[1:], _encode(value, "GIF"))

    def close(self) -> None:
        self._writer.close()

    def _picture(self, name: str, step: int, shape: tuple[int, ...], encoded: bytes) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        image = Summary.Image(
            height=shape[0], width=shape[1], colorspace=shape[2], encoded_image_string=encoded
        )
        tag = re.sub(r"[^-/\w.]", "_", name)  # as the library does with the tags of scalars
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._writer.file_writer.add_summary(summary, step)


class Wandb:
    """Weights & Biases; needs the extra `vdm_jax[wandb]`. `init` goes to `wandb.init`.

    Raises:
      UserError: the package is not installed.
    """

    def __init__(self, **init: Any):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "logging to Weights & Biases needs a package that is not installed; "
                "run pip install 'vdm_jax[wandb]'."
            ) from error
        self._wandb = wandb
        self._run = wandb.init(**init)

    def scalars(self, step: int, values: Mapping[str, Scalar]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values), step=step)

    def images(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        found = {name: self._wandb.Image(value) for name, value in values.items()}
        self._run.log(found, step=step)

    def videos(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        found = {
            name: self._wandb.Video(np.moveaxis(value, -1, 1), fps=VIDEO_FPS)
            for name, value in values.items()
        }
        self._run.log(found, step=step)

    def close(self) -> None:
        self._run.finish()


class Many:
    """Every writer in turn; with none, silence."""

    def __init__(self, writers: Sequence[Writer] = ()):
        self.writers = tuple(writers)

    def scalars(self, step: int, values: Mapping[str, Scalar]) -> None:
        for writer in self.writers:
            writer.scalars(step, values)

    def text(self, step: int, values: Mapping[str, Any]) -> None:
        for writer in self.writers:
            writer.text(step, values)

    def images(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        for writer in self.writers:
            writer.images(step, values)

    def videos(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        for writer in self.writers:
            writer.videos(step, values)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a `JsonLines` file; a half line at its end is left out."""
    if not Path(path).is_file():
        return []
    whole = Path(path).read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def only_first(make: Callable[[], Writer]) -> Writer:
    """`make()` on process 0; silence, with no file opened, on the others."""
    return make() if jax.process_index() == 0 else Many()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | dict | list | tuple):
        return value
    number = value.item() if isinstance(value, np.generic | np.ndarray | jax.Array) else value
    if isinstance(number, float) and not math.isfinite(number):
        return str(number)
    return number


def _repair(path: Path) -> None:
    """Cut off what follows the last newline: the half line of a killed process."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        kept, block = end, 4096
        while kept > 0:
            start = max(0, kept - block)
            file.seek(start)
            found = file.read(kept - start).rfind(b"\n")
            if found >= 0:
                kept = start + found + 1
                break
            kept = start
        if kept < end:
            file.truncate(kept)


def _encode(frames: np.ndarray, kind: str) -> bytes:
    """uint8 (f h w c) -> the bytes of a PNG (first frame) or an animated GIF."""
    pictures = [Image.fromarray(f[..., 0] if f.shape[-1] == 1 else f) for f in frames]
    stream = io.BytesIO()
    if kind == "GIF":
        rest, pause = pictures[1:], 1000 // VIDEO_FPS
        pictures[0].save(stream, kind, save_all=True, append_images=rest, duration=pause, loop=0)
    else:
        pictures[0].save(stream, kind)
    return stream.getvalue()
