"""How bright a clip is and how much changes in it; clips that are black, or in which nothing does.

These two are refused and not only scored: nothing can be learnt from them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from data_pipeline.curation.motion import grey
from data_pipeline.curation.stage import COARSE, AtRate, Found, Row
from data_pipeline.errors import BadClip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Light:
    """`brightness`, the mean luma, 0 black to 1 white; `change`, the mean absolute difference of
    luma from a frame to the next one that is seen, 0 to 1, None where there is no next one.

    Attributes:
      black: a clip none of whose frames is as bright is refused; 0 refuses none.
      static: a film none of whose pixels, 16 on the shorter side, changes by as much is refused; 0
        refuses none. One picture, encoded as a film, was seen to change by 3 grey levels of 255; a
        rabbit that holds its breath, by 9.
    """

    sees: AtRate = COARSE
    black: float = 0.02
    static: float = 0.016
    finds: ClassVar[tuple[str, ...]] = ("brightness", "change")

    def __call__(self, shown: np.ndarray, row: Row) -> Found:
        luma = grey(shown) / 255
        brightest = luma.mean(axis=(1, 2)).max()
        if brightest < self.black:
            raise BadClip("black", f"no frame is brighter than {brightest:.4f}")
        if len(luma) < 2:
            return {"brightness": float(luma.mean()), "change": None}
        change = np.abs(np.diff(luma, axis=0))
        if change.max() < self.static:
            raise BadClip("static", f"no pixel changes by more than {change.max():.4f}")
        return {"brightness": float(luma.mean()), "change": float(change.mean())}
