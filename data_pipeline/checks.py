"""Is a setting the number it should be? Configs are written by people and come from JSON."""

from __future__ import annotations

import math
from typing import Any, TypeGuard


def whole(value: Any, least: int = 1) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def real(value: Any) -> TypeGuard[float]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(float(value))


def share(value: Any) -> TypeGuard[float]:
    """A number of at least 0 and below 1."""
    return real(value) and 0 <= value < 1


def range_problems(what: str, low: Any, high: Any, unit: str) -> list[str]:
    """A sentence where `low` and `high` are not the ends of a range of positive numbers."""
    if real(low) and real(high) and 0 < low <= high:
        return []
    return [f"{what} between {low!r} and {high!r}; it needs 0 < low <= high, finite, in {unit}."]
