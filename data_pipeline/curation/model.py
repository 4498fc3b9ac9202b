"""Scores by a model of the user's: any function that is named by where it can be imported from.

    def similarity(frames, captions):
        '''frames: a list of uint8 (t h w 3), one a clip; captions: the first of each, or "".
        Returns a number, or None, for each clip.'''

What the function keeps between calls, such as the model, is kept once in each process. The package
brings no weights. A config names the function, and so runs it: use your own configs only.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipeline.curation.stage import Found, Row, Sampling, Spread
from data_pipeline.errors import DataError

FEW = Spread(frames=3, side=224)  # first, middle and last, as Stable Video Diffusion has them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """`score`, a score of the manifest, by `function`, called as 'package.module:function' with the
    frames and captions of up to `batch` clips at a time."""

    score: str
    function: str
    sees: Sampling = FEW
    batch: int = 8

    def __call__(self, shown: Sequence[np.ndarray], rows: Sequence[Row]) -> list[Found]:
        """What is found of each clip.

        Raises: DataError, code 2, no such function; 3, it failed, or does not give a number each.
        """
        captions = [(row["captions"] or [""])[0] for row in rows]
        found: list[Found] = []
        for first in range(0, len(shown), self.batch):
            some = slice(first, first + self.batch)
            found += [{self.score: one} for one in self._scores(list(shown[some]), captions[some])]
        return found

    def _scores(self, frames: list[np.ndarray], captions: list[str]) -> list[float | None]:
        function = named(self.function)
        try:
            found = [None if one is None else float(one) for one in function(frames, captions)]
        except Exception as error:  # of a stranger's function; it would fail on all clips
            what = f"{type(error).__name__}: {error}"
            raise DataError(f"the model '{self.function}' failed ({what}).") from error
        if len(found) != len(frames):
            raise DataError(
                f"the model '{self.function}' gave {len(found)} scores for {len(frames)} clips."
            )
        return [one if one is not None and math.isfinite(one) else None for one in found]

    def problems(self) -> list[str]:
        found = [] if self.batch >= 1 else [f"Model.batch is {self.batch}; it must be at least 1."]
        try:
            named(self.function)
        except DataError as error:
            found.append(str(error))
        return found


@functools.cache
def named(where: str) -> Callable[..., Any]:
    """The function called 'package.module:function'.

    Raises: DataError, code 2, there is none.
    """
    module, _, name = where.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module is code: anything may come out of it
        raise DataError(
            f"there is no model '{where}' ({type(error).__name__}: {error}); name it as "
            "package.module:function.",
            code=2,
        ) from error
    if not callable(function):
        raise DataError(f"'{where}' is not a function.", code=2)
    return function
