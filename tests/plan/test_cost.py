"""Days and money by hand."""

import pytest

from vdm_jax.config import UserError
from vdm_jax.plan.cost import cost


def test_by_steps_and_by_tokens():
    by_steps = cost(step_seconds=2.0, tokens_per_step=1000, chips=256, steps=43200, price=1.5)
    assert by_steps.days == 1.0 and by_steps.chip_hours == 256 * 24
    assert by_steps.money == 256 * 24 * 1.5 and by_steps.tokens == 43_200_000
    by_tokens = cost(step_seconds=2.0, tokens_per_step=1000, chips=256, tokens=43_200_000)
    assert by_tokens.days == 1.0 and by_tokens.steps == 43200 and by_tokens.money is None


@pytest.mark.parametrize(
    "given, said",
    [
        ({}, "--steps or --tokens"),
        ({"steps": 1, "tokens": 1}, "not both"),
        ({"steps": 0}, "--steps is 0"),
        ({"tokens": 5, "price": -2}, "--price is -2"),
    ],
)
def test_mistakes(given, said):
    with pytest.raises(UserError, match=said):
        cost(step_seconds=1.0, tokens_per_step=1, chips=1, **given)
