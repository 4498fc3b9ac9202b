"""Every output means what its definition says, on every path; weights agree across outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.carriers import quick
from vdm_jax.diffusion import parameterization as params
from vdm_jax.diffusion import schedule as sch
from vdm_jax.diffusion import weights
from vdm_jax.diffusion.process import Level, Process

HUBS = {
    "eps": params.Eps(),
    "x0": params.X0(),
    "v": params.V(),
    "flow": params.Flow(),
    "edm": params.Edm(sigma_data=0.5),
}
PROCESS = Process(schedule=sch.LinearLogSNR(logsnr_min=-6.0, logsnr_max=6.0))
RNG = np.random.default_rng(0)
X0, EPS = (jnp.asarray(RNG.normal(size=(7, 4)), jnp.float32) for _ in range(2))


def levels(path):
    t = np.linspace(0.1, 1, 7, dtype=np.float32)[:, None]
    level = quick(Process(schedule=PROCESS.schedule, path=path).level)(t)
    return jax.tree.map(jnp.asarray, level)


@pytest.mark.parametrize("path", ["vp", "ve", "linear"])
@pytest.mark.parametrize("name", HUBS)
def test_split_undoes_target(name, path):
    hub, at = HUBS[name], levels(path)
    x_t = at.alpha * X0 + at.sigma * EPS
    pair = hub.split(hub.target(X0, EPS, at), x_t, at)
    np.testing.assert_allclose(pair.x0, X0, atol=2e-4)
    np.testing.assert_allclose(pair.eps, EPS, atol=2e-4)


@pytest.mark.parametrize("name", HUBS)
def test_finite_where_there_is_no_signal_no_noise_or_nothing(name):
    """The last column is padding: alpha and sigma are both 0 there."""
    alpha, sigma = jnp.array([[0.0, 1.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0]])
    at = Level(sigma, jnp.log(alpha) - jnp.log(sigma), alpha, sigma)
    x0, eps = jnp.array([[0.3, 0.4, 0.0]]), jnp.array([[2.0, 3.0, 0.0]])
    hub, x_t = HUBS[name], alpha * x0 + sigma * eps
    pair = hub.split(hub.target(x0, eps, at), x_t, at)
    assert np.all(np.isfinite([pair.x0, pair.eps, hub.scale(x_t, at)]))
    if name != "eps":
        np.testing.assert_allclose(pair.x0[0, :2], [0.3, 0.4], rtol=1e-6)
    if name != "x0":
        np.testing.assert_allclose(pair.eps[0, :2], [2, 3], rtol=1e-6)


def test_definitions_on_their_own_paths():
    vp, linear = levels("vp"), levels("linear")
    np.testing.assert_allclose(
        HUBS["v"].target(X0, EPS, vp), vp.alpha * EPS - vp.sigma * X0, atol=1e-6
    )
    # The velocity of a straight path is what x_t gains per unit of t.
    move = (0.6 * X0 + 0.4 * EPS) - (0.7 * X0 + 0.3 * EPS)
    np.testing.assert_allclose(HUBS["flow"].target(X0, EPS, linear), move / 0.1, atol=1e-5)


def test_edm_in_its_published_form():
    """D = c_skip z + c_out F(c_in z) with the coefficients of Karras et al. 2022, table 1."""
    at, d = levels("ve"), 0.5
    sigma = at.sigma
    z = X0 + sigma * EPS
    out = jnp.asarray(RNG.normal(size=z.shape), jnp.float32)
    total = sigma**2 + d**2
    want = d**2 / total * z + sigma * d / jnp.sqrt(total) * out
    hub = HUBS["edm"]
    np.testing.assert_allclose(hub.split(out, z, at).x0, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(hub.scale(z, at), z / jnp.sqrt(total), rtol=1e-5)


def test_edm_with_unit_data_is_minus_v():
    """So one v head expresses the video model that trains on sigma: c_out = -sigma / sqrt(...)."""
    at = levels("ve")
    edm, v = params.Edm(sigma_data=1.0), HUBS["v"]
    np.testing.assert_allclose(edm.target(X0, EPS, at), -v.target(X0, EPS, at), atol=1e-5)
    np.testing.assert_allclose(edm.scale(X0, at), v.scale(X0, at), rtol=1e-5)


def test_learnt_variance_rides_along():
    at = levels("vp")
    out = jnp.concatenate([EPS, jnp.full_like(EPS, -0.5)], axis=-1)
    for hub in HUBS.values():
        pair, plain = hub.split(out, X0, at), hub.split(EPS, X0, at)
        np.testing.assert_allclose(pair.var_frac, 0.25)
        np.testing.assert_array_equal(pair.x0, plain.x0)
        assert plain.var_frac is None


LAWS = {
    "snr": weights.Snr(),
    "min_snr": weights.MinSnr(),
    "truncated": weights.TruncatedSnr(),
    "edm": weights.EdmWeight(),
    "vlb": weights.Vlb(),
    "sigmoid": weights.Sigmoid(bias=-1.0),
}


@pytest.mark.parametrize("law", LAWS)
def test_one_loss_whatever_is_predicted(law):
    """The same mistake, told in any parameterization, costs the same."""
    at = levels("vp")
    mistake = X0 + 0.1  # a wrong x0 and the eps that goes with it
    x_t = at.alpha * X0 + at.sigma * EPS
    wrong = params.from_x0(mistake, x_t, at)
    costs = []
    for hub in HUBS.values():
        error = hub.target(wrong.x0, wrong.eps, at) - hub.target(X0, EPS, at)
        costs.append(LAWS[law](at, hub, PROCESS) * error**2)
    for cost in costs[1:]:
        np.testing.assert_allclose(cost, costs[0], rtol=2e-2)


def test_published_table_of_min_snr():
    vp, linear = levels("vp"), levels("linear")
    snr = np.exp(np.asarray(vp.logsnr))
    capped = np.minimum(snr, 5.0)
    law = weights.MinSnr(gamma=5.0)
    for name, at, want in (
        ("eps", vp, capped / snr), ("x0", vp, capped), ("v", vp, capped / (snr + 1)),
        ("flow", linear, capped * np.asarray(linear.sigma) ** 2),
    ):  # fmt: skip
        np.testing.assert_allclose(law(at, HUBS[name], PROCESS), want, rtol=1e-4)


def test_a_floor_keeps_x0_in_the_loss_where_noise_hides_it():
    at = levels("vp")
    law = weights.MinSnr(gamma=5.0, floor=1.0)
    want = np.clip(np.exp(np.asarray(at.logsnr)), 1.0, 5.0)
    np.testing.assert_allclose(law(at, HUBS["x0"], PROCESS), want, rtol=1e-4)
    assert want.min() == 1.0 and want.max() == 5.0


def test_edm_weight_makes_its_own_target_plain():
    at = levels("ve")
    np.testing.assert_allclose(weights.EdmWeight()(at, HUBS["edm"], PROCESS), 1, rtol=1e-4)
    sigma = np.asarray(at.sigma)
    want = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    np.testing.assert_allclose(weights.EdmWeight()(at, HUBS["x0"], PROCESS), want, rtol=1e-4)


def test_bound_on_a_line_of_log_snr_is_constant():
    """d logsnr / dt is -12 everywhere, so the bound weighs every eps error by 6."""
    at = levels("vp")
    bound = weights.Vlb()(at, HUBS["eps"], PROCESS)
    np.testing.assert_allclose(bound, 6.0, rtol=1e-3)
    sigmoid = weights.Sigmoid(bias=2.0)(at, HUBS["eps"], PROCESS)
    np.testing.assert_allclose(sigmoid, 6 / (1 + np.exp(np.asarray(at.logsnr) - 2)), rtol=1e-3)
    straight = Process(schedule=sch.Straight())
    middle = straight.level(jnp.array([0.5]))
    np.testing.assert_allclose(weights.Vlb()(middle, HUBS["eps"], straight), 4.0, rtol=1e-3)


@pytest.mark.parametrize("law", LAWS)
def test_weights_are_finite_at_both_ends(law):
    process = Process(schedule=sch.Straight(), path="linear")
    at = process.level(jnp.array([0.0, 1.0]))
    for hub in HUBS.values():
        assert np.all(np.isfinite(LAWS[law](at, hub, process)))
    if law == "min_snr":  # the limits without signal: 1 on eps
        assert float(LAWS[law](at, HUBS["eps"], process)[1]) == pytest.approx(1, rel=1e-3)
    assert np.all(weights.Uniform()(at, HUBS["v"], process) == 1)
