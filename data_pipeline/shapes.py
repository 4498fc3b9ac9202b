"""The demo's shapes as a data set of tensorflow-datasets: ArrayRecord files, without TensorFlow.

    generate DIRECTORY --clips=N --as=tfds    ->  DIRECTORY/shapes/N-.../1.0.0

An example holds the bytes of one file that `generated.py` writes: `video` (an mp4 or a png),
`caption`, `label` (its attributes as JSON) and `clip_id`, the file's name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_pipeline import generated
from data_pipeline.errors import DataError


@dataclasses.dataclass(kw_only=True)
class Drawn(tfds.core.BuilderConfig):
    """Which clips: as `generated.generate` takes them."""

    clips: int = 1
    seed: int = 0
    holdout: int | None = None


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Captioned videos and images of moving shapes."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is fetched; to find that out, tfds 4.9.10 would import a package it does not ask for.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        names = ("video", "caption", "label", "clip_id")
        features = tfds.features.FeaturesDict({name: text for name in names})
        return tfds.core.DatasetInfo(builder=self, description=__doc__, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is fetched
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        drawn = self.builder_config
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:

            def make(index: int) -> generated.Scene:
                one = generated.scene(drawn.seed, index, holdout=drawn.holdout)
                return generated.write(Path(folder), one, drawn.seed)

            for one in pool.map(make, range(drawn.clips)):
                file = Path(folder, generated.file_name(one))
                yield (
                    one.index,
                    {
                        "video": file.read_bytes(),
                        "caption": one.caption,
                        "label": json.dumps(dataclasses.asdict(one), sort_keys=True),
                        "clip_id": file.name,
                    },
                )
                file.unlink()


def prepare(directory: str, clips: int, seed: int, *, holdout: int | None = None) -> dict[str, Any]:
    """Write the data set below a directory, unless it is there.

    Returns: `directory`, the one to read it from, and `clips`.

    Raises:
      DataError: code 6, it cannot be written.
    """
    name = f"{clips}-{seed}" if holdout is None else f"{clips}-{seed}-{holdout}"
    try:
        builder = Shapes(
            data_dir=directory,
            config=Drawn(name=name, clips=clips, seed=seed, holdout=holdout),
            file_format="array_record",
        )
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(sys.stderr):  # what it tells is no result
            builder.download_and_prepare()
    except OSError as error:
        raise DataError(f"cannot write the data set to '{directory}' ({error}).", code=6) from None
    return {"directory": os.fspath(builder.data_path), "clips": clips}
