"""Days, chip-hours and money of a run, from the time of a step."""

from __future__ import annotations

import dataclasses

from vdm_jax.config import UserError

HOUR, DAY = 3600.0, 86400.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a whole run; `money` in the unit of the price, None without one."""

    steps: float
    tokens: float
    days: float
    chip_hours: float
    money: float | None


def cost(
    *,
    step_seconds: float,
    tokens_per_step: float,
    chips: int,
    steps: float | None = None,
    tokens: float | None = None,
    price: float | None = None,
) -> Cost:
    """Of so many `steps`, or `tokens` of examples (padding does not count).

    Args:
      price: of one chip for one hour.

    Raises:
      UserError: both or neither of steps and tokens, or a number that is not above 0.
    """
    if (steps is None) == (tokens is None):
        raise UserError("say --steps or --tokens, not both: they are two names for one length.")
    for name, value in (("--steps", steps), ("--tokens", tokens), ("--price", price)):
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value:g}; it must be above 0.")
    steps = tokens / tokens_per_step if steps is None else steps  # type: ignore[operator]
    seconds = steps * step_seconds
    chip_hours = seconds / HOUR * chips
    return Cost(
        steps=steps,
        tokens=steps * tokens_per_step,
        days=seconds / DAY,
        chip_hours=chip_hours,
        money=None if price is None else chip_hours * price,
    )
