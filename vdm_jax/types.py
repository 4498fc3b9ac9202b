"""Names for array shapes and for the ranges of configured numbers, used by every layer.

Axes: b rows, e examples (segments) of a row, k noise levels of an example, n tokens, d features,
f frames, h height, w width, c channels, l text tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

from jaxtyping import Array, Float, Key

Video = Float[Array, "b f h w c"]
PerExample = Float[Array, "b e k"]
ExampleKeys = Key[Array, "b e"]
Params = Mapping[str, Any]
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Range:
    """What a configured number may be: `low <= value <= high` (`low <` where `above`), finite."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        floor_held = value > self.low if self.above else value >= self.low
        return math.isfinite(value) and floor_held and value <= self.high

    def __str__(self) -> str:
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.above else 'at least'} {self.low:g}")
        if self.high < math.inf:
            bounds.append(f"at most {self.high:g}")
        return " and ".join(bounds) or "finite"


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Finite = Annotated[float, Range()]
