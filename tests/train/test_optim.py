"""Rules over parameter paths, the guard against non-finite steps, the averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from vdm_jax.config import UserError
from vdm_jax.train import state as states
from vdm_jax.train.optim import AdamW, Frozen, Muon, Optimizer, Warmup, WarmupCosine

PARAMS = {
    "trunk": {"kernel": jnp.arange(12.0).reshape(3, 4) / 10 + jnp.eye(3, 4), "bias": jnp.ones(4)},
    "tower": {"kernel": jnp.ones((2, 2))},
}
RULES = (
    ("^tower/", Frozen()),
    ("kernel$", Muon(learning_rate=0.1)),
    (".*", AdamW(learning_rate=0.01)),
)


def grads(scale=1.0):
    return jax.tree.map(lambda leaf: scale * (leaf - 0.3), PARAMS)


def advance(state, found, loss=1.0, optimizer=None):
    transform = (optimizer or Optimizer(rules=RULES, clip=None)).transform()
    return jax.jit(lambda s, g, l: states.advance(s, g, l, transform))(state, found, loss)


def fresh(optimizer=None, rates=(0.9,)):
    return states.create(
        PARAMS, (optimizer or Optimizer(rules=RULES, clip=None)).transform(), rates
    )


def test_first_matching_rule_decides():
    new, _ = advance(fresh(), grads())
    np.testing.assert_array_equal(new.params["tower"]["kernel"], PARAMS["tower"]["kernel"])
    # Adam's first step is the learning rate times the gradient's sign.
    moved = PARAMS["trunk"]["bias"] - new.params["trunk"]["bias"]
    np.testing.assert_allclose(moved, 0.01 * np.ones(4), rtol=1e-5)


def test_muon_steps_are_orthogonal():
    optimizer = Optimizer(rules=(("kernel$", Muon(learning_rate=1.0)), (".*", Frozen())), clip=None)
    found = grads() | {
        "trunk": grads()["trunk"] | {"kernel": jnp.diag(jnp.array([20.0, 5, 1, 0]))[:3]}
    }
    new, _ = advance(fresh(optimizer), found, optimizer=optimizer)
    moved = np.asarray(PARAMS["trunk"]["kernel"] - new.params["trunk"]["kernel"])
    singular = np.linalg.svd(moved, compute_uv=False)
    # Newton-Schulz brings singular values that span 20 to 1 near one common size.
    assert singular.max() / singular.min() < 2


def test_scanned_layers_are_separate_matrices():
    stacked = {"kernel": jnp.stack([PARAMS["trunk"]["kernel"], 5 * jnp.eye(3, 4)])}
    transform = Optimizer(rules=((".*", Muon(learning_rate=1.0)),), clip=None).transform()

    def step(params):
        return transform.update(params, transform.init(params), params)[0]["kernel"]

    one = step({"kernel": stacked["kernel"][:1]})
    np.testing.assert_allclose(step(stacked)[:1], one, atol=1e-5)


def test_every_parameter_must_match_a_rule():
    with pytest.raises(UserError, match="trunk/bias"):
        Optimizer(rules=(("kernel", AdamW(learning_rate=1.0)),)).transform().init(PARAMS)


def test_every_rule_must_decide_a_parameter():
    idle = (("trunk/units/", AdamW(learning_rate=1.0)), *RULES)
    with pytest.raises(UserError, match=r"rule 0 \('trunk/units/'\) decides no parameter"):
        Optimizer(rules=idle).transform().init(PARAMS)


def test_muon_refuses_vectors():
    with pytest.raises(UserError, match="matrices"):
        Optimizer(rules=((".*", Muon(learning_rate=1.0)),)).transform().init(PARAMS)


@pytest.mark.parametrize("bad", ["loss", "grad_nan", "grad_inf"])
def test_non_finite_step_changes_nothing_but_counters(bad):
    optimizer = Optimizer(rules=RULES, clip=1.0)
    state, _ = advance(fresh(optimizer), grads(), optimizer=optimizer)
    found = grads()
    if bad != "loss":
        value = jnp.nan if bad == "grad_nan" else jnp.inf
        found["trunk"]["kernel"] = found["trunk"]["kernel"].at[0, 0].set(value)
    new, taken = advance(state, found, jnp.nan if bad == "loss" else 1.0, optimizer)
    assert not taken
    for name in ("params", "ema", "opt"):
        for a, b in zip(
            jax.tree.leaves(getattr(state, name)), jax.tree.leaves(getattr(new, name)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert (int(new.step), int(new.guard.updates)) == (2, 1)
    assert (int(new.guard.skipped), int(new.guard.consecutive)) == (1, 1)
    again, _ = advance(new, grads(), optimizer=optimizer)
    assert int(again.guard.consecutive) == 0 and int(again.guard.skipped) == 1


def test_a_skipped_step_is_as_if_it_had_not_been():
    """The schedule and Adam's bias correction count accepted updates only."""
    optimizer = Optimizer(rules=RULES, schedule=Warmup(steps=10))
    with_skip, _ = advance(fresh(optimizer), grads(), jnp.inf, optimizer)
    with_skip, _ = advance(with_skip, grads(), 1.0, optimizer)
    without, _ = advance(fresh(optimizer), grads(), 1.0, optimizer)
    for a, b in zip(
        jax.tree.leaves(with_skip.params), jax.tree.leaves(without.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_ema_is_the_hand_computed_average():
    state = fresh(rates=(0.9, 0.05))
    shadows = {rate: np.asarray(PARAMS["trunk"]["bias"], np.float64) for rate in (0.9, 0.05)}
    for count in range(3):
        state, _ = advance(state, grads())
        for rate in shadows:
            decay = min(rate, (1 + count) / (10 + count))
            shadows[rate] = shadows[rate] * decay + np.asarray(state.params["trunk"]["bias"]) * (
                1 - decay
            )
    for rate, expected in shadows.items():
        np.testing.assert_allclose(state.ema[str(rate)]["trunk"]["bias"], expected, rtol=1e-5)


def test_schedules_at_known_points():
    cosine = WarmupCosine(steps=10, total=110, final=0.1)
    found = [float(cosine(jnp.asarray(count))) for count in (0, 9, 60, 110, 500)]
    np.testing.assert_allclose(found, [0.1, 1.0, 0.55, 0.1, 0.1], atol=1e-6)
    assert float(Warmup(steps=4)(jnp.asarray(1))) == 0.5


def test_state_items_round_trip():
    state = fresh()
    again = states.TrainState.of(state.items())
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert optax.global_norm(again.params) == optax.global_norm(state.params)


def test_muon_is_optax_s():
    """One matrix after another as all at once, over three steps with decay of weights."""
    params = {"stack": jnp.ones((3, 8, 16)), "matrix": jnp.ones((12, 5))}

    def numbers(params):
        axes = contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
        return jax.tree.map(lambda _: axes, params)

    ours = Muon(learning_rate=0.1, weight_decay=0.01).transform(lambda count: 1.0)
    theirs = contrib.muon(
        0.1, weight_decay=0.01, muon_weight_dimension_numbers=numbers, consistent_rms=0.2
    )
    states = [ours.init(params), theirs.init(params)]
    for step in range(3):
        key = jax.random.key(step)
        found = jax.tree.map(lambda p, key=key: jax.random.normal(key, p.shape), params)
        updates = []
        for index, transform in enumerate((ours, theirs)):
            update, states[index] = transform.update(found, states[index], params)
            updates.append(update)
        for one, other in zip(*map(jax.tree.leaves, updates), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
