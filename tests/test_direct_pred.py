import copy
import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import nn

from symlearn.direct_pred import (
    ByolDynamics,
    DirectPredictor,
    byol_loss,
    critical_weight_decay,
    direct_predictor_weight,
    eigenspace_alignment,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


# --- the reduced dynamics ---

P0, S0, TIMES = [0.5, 0.1, -0.1], [0.36, 0.16, 0.04], [1.0, 5.0, 20.0]
KNOWN_P = {
    math.inf: [
        [0.66432863, 0.34283980, -0.02080943],
        [0.74988991, 0.73327666, 0.21845035],
        [0.74489432, 0.74295639, 0.73914359],
    ],
    0.4: [
        [0.63879768, 0.32786874, -0.01759911],
        [0.73057114, 0.63885008, 0.21978840],
        [0.75883766, 0.74838099, 0.68889912],
    ],
}
KNOWN_S = {
    math.inf: [
        [0.44198093, 0.20474307, 0.03317827],
        [0.45525972, 0.38367416, 0.04978891],
        [0.34821441, 0.32267720, 0.28370842],
    ],
    0.4: [
        [0.42534590, 0.19972246, 0.03311662],
        [0.44095937, 0.31889154, 0.05008211],
        [0.35869793, 0.32672215, 0.24783279],
    ],
}
KNOWN_TAU = [
    [0.93670851, 0.91145850, 1.07868562],
    [0.98526175, 0.90489543, 0.88613183],
    [1.01747735, 1.00798248, 0.95493591],
]


@pytest.mark.parametrize("ema_rate", [math.inf, 0.4])
def test_three_modes_follow_the_trajectories_of_the_full_matrix_flow(ema_rate):
    """Computed once by an 8th-order integration of the matrices, to the eight digits given."""
    run = ByolDynamics(2.0, 0.03, 0.3, ema_rate).integrate(P0, S0, TIMES)
    np.testing.assert_allclose(run.p, KNOWN_P[ema_rate], rtol=0, atol=6e-9)
    np.testing.assert_allclose(run.s, KNOWN_S[ema_rate], rtol=0, atol=6e-9)
    tau = np.ones((3, 3)) if math.isinf(ema_rate) else KNOWN_TAU
    np.testing.assert_allclose(run.tau, tau, rtol=0, atol=6e-9)


def descend_by_autograd(W, Wp, *, n_steps, dt, alpha_p, weight_decay, variance, ema_rate):
    """Runge-Kutta on the gradient of the loss written with covariances: no formula of the flow enters."""

    def velocity(state):
        W, Wp, Wa = (part.detach().clone().requires_grad_() for part in state)
        target = (W if math.isinf(ema_rate) else Wa).detach()
        product = Wp @ W
        loss = (1 + variance) * product.square().sum() / 2 - (product * target).sum()
        grad_w, grad_p = torch.autograd.grad(loss, (W, Wp))
        drift = torch.zeros_like(Wa) if math.isinf(ema_rate) else ema_rate * (W - Wa)
        slopes = -grad_w - weight_decay * W, -alpha_p * grad_p - weight_decay * Wp, drift
        return [slope.detach() for slope in slopes]

    state = [W, Wp, W]
    for _ in range(n_steps):
        k1 = velocity(state)
        k2 = velocity([s + dt / 2 * k for s, k in zip(state, k1, strict=True)])
        k3 = velocity([s + dt / 2 * k for s, k in zip(state, k2, strict=True)])
        k4 = velocity([s + dt * k for s, k in zip(state, k3, strict=True)])
        state = [s + dt / 6 * (a + 2 * b + 2 * c + d) for s, a, b, c, d in zip(state, k1, k2, k3, k4, strict=True)]
    return state


@pytest.mark.parametrize("ema_rate", [math.inf, 0.4])
def test_modes_are_the_eigenvalues_of_matrices_trained_by_autograd(ema_rate):
    U, V = (torch.linalg.qr(normal(3, 3, seed=seed))[0] for seed in (1, 2))
    W, Wp = U @ torch.diag(torch.tensor(S0).double().sqrt()) @ V.T, U @ torch.diag(torch.tensor(P0).double()) @ U.T
    rates = {"alpha_p": 2.0, "weight_decay": 0.03, "ema_rate": ema_rate}
    W, Wp, Wa = descend_by_autograd(W, Wp, n_steps=200, dt=0.025, variance=0.3, **rates)
    run = ByolDynamics(augmentation_variance=0.3, **rates).integrate(P0, S0, [5.0])
    rotated = U.T @ W @ V
    np.testing.assert_allclose(run.p[0], (U.T @ Wp @ U).diagonal(), rtol=0, atol=5e-8)
    np.testing.assert_allclose(run.s[0], rotated.diagonal().square(), rtol=0, atol=5e-8)
    if not math.isinf(ema_rate):
        np.testing.assert_allclose(run.tau[0], (U.T @ Wa @ V).diagonal() / rotated.diagonal(), rtol=2e-7)


def test_the_charge_of_unaligned_matrices_decays_under_any_predictor():
    W, Wp = normal(4, 6, seed=3), normal(4, 4, seed=4)
    rates = {"alpha_p": 1.5, "weight_decay": 0.05}
    start = W @ W.T - Wp.T @ Wp / 1.5
    W, Wp, _ = descend_by_autograd(W, Wp, n_steps=2000, dt=0.0075, variance=0.2, ema_rate=0.5, **rates)
    end = W @ W.T - Wp.T @ Wp / 1.5
    torch.testing.assert_close(end, start * math.exp(-2 * 0.05 * 15), rtol=0, atol=1e-5)


def reference(dynamics, p0, s0, t, tau0=1.0):
    """One mode in the variables p, log s, tau, by another method at another tolerance."""
    k, a, decay, beta = (
        1 + dynamics.augmentation_variance,
        dynamics.alpha_p,
        dynamics.weight_decay,
        dynamics.ema_rate,
    )

    def velocity(_, state):
        p, log_s, tau = state
        tau = 1.0 if math.isinf(beta) else tau
        growth = p * (tau - k * p) - decay
        drift = 0.0 if math.isinf(beta) else beta * (1 - tau) - tau * growth
        return [a * math.exp(log_s) * (tau - k * p) - decay * p, 2 * growth, drift]

    run = solve_ivp(velocity, (0, t[-1]), [p0, math.log(s0), tau0], method="Radau", t_eval=t, rtol=1e-10, atol=1e-13)
    return run.y[0], np.exp(run.y[1]), run.y[2]


@given(
    st.floats(0.1, 10),
    st.floats(0, 0.3),
    st.floats(0, 2),
    st.one_of(st.just(math.inf), st.floats(0.05, 20)),
    st.floats(0.05, 2),
    st.floats(1e-4, 5),
    st.floats(0.5, 1.5),
)
@settings(deadline=None, max_examples=25)
def test_the_integration_is_accurate_to_a_millionth(alpha_p, decay, variance, beta, p0, s0, tau0):
    dynamics = ByolDynamics(alpha_p, decay, variance, beta)
    run = dynamics.integrate(p0, s0, [0.3, 3.0, 30.0], tau0)
    p, s, tau = reference(dynamics, p0, s0, [0.3, 3.0, 30.0], tau0)
    np.testing.assert_allclose(run.p, p, rtol=1e-6, atol=1e-11)
    np.testing.assert_allclose(run.s, s, rtol=1e-6, atol=1e-14)
    np.testing.assert_allclose(run.tau, np.ones(3) if math.isinf(beta) else tau, rtol=2e-6, atol=1e-9)


def test_a_collapsing_mode_keeps_its_relative_accuracy_over_many_decades():
    """Late in a collapse p and s decay alone, with rates decay and 2 decay."""
    run = ByolDynamics(1.0, 0.2, 0.5).integrate(-0.3, 0.01, [80.0, 90.0])
    assert run.s[0] < 1e-13
    assert run.s[1] / run.s[0] == pytest.approx(math.exp(-4), rel=1e-4)
    assert run.p[1] / run.p[0] == pytest.approx(math.exp(-2), rel=1e-4)


@pytest.mark.parametrize("ema_rate", [math.inf, 0.4, 50.0])
def test_the_charge_decays_at_twice_the_weight_decay_whatever_the_target_does(ema_rate):
    dynamics = ByolDynamics(2.0, 0.03, 0.3, ema_rate)
    run = dynamics.integrate(P0, S0, [0.0, 20.0], tau0=0.7)
    charge = dynamics.invariant(run.p, run.s)
    np.testing.assert_allclose(charge[0], [0.235, 0.155, 0.035], rtol=1e-12)
    np.testing.assert_allclose(charge[1], [0.07078064, 0.0466851, 0.0105418], rtol=1e-6)
    np.testing.assert_allclose(charge[1], charge[0] * math.exp(-1.2), rtol=1e-8)


def test_the_state_at_time_zero_is_the_start_even_if_it_is_not_asked_for():
    dynamics = ByolDynamics(1.0, 0.05, 0.2, 0.3)
    whole, later = dynamics.integrate(0.3, 0.1, [0.0, 2.0], 0.5), dynamics.integrate(0.3, 0.1, [2.0], 0.5)
    assert (whole.p[0], whole.s[0], whole.tau[0]) == pytest.approx((0.3, 0.1, 0.5), rel=1e-14)
    assert later.p[0] == pytest.approx(whole.p[1], rel=1e-9)
    only = dynamics.integrate([0.3, 0.4], 0.1, [0.0])
    np.testing.assert_allclose(only.p, [[0.3, 0.4]])


def test_modes_broadcast_and_do_not_feel_each_other():
    dynamics = ByolDynamics(1.0, 0.05, 0.2)
    grid = dynamics.integrate(np.array([[-0.2], [0.1], [5.0]]), [0.01, 2.0], [0.0, 1.0, 10.0])
    assert grid.p.shape == grid.s.shape == grid.tau.shape == (3, 3, 2)
    alone = dynamics.integrate(0.1, 2.0, [10.0])
    assert grid.p[2, 1, 1] == pytest.approx(alone.p[0], rel=1e-8)
    assert dynamics.integrate(0.1, 2.0, [1.0, 2.0]).p.shape == (2,)
    assert dynamics.integrate(np.zeros((0, 2)), 1.0, [1.0]).s.shape == (1, 0, 2)


def test_an_empty_mode_stays_empty_and_its_predictor_decays():
    run = ByolDynamics(1.0, 0.1, 0.2, 0.5).integrate(0.7, 0.0, [0.0, 5.0], tau0=0.9)
    np.testing.assert_array_equal(run.s, 0)
    np.testing.assert_allclose(run.p, [0.7, 0.7 * math.exp(-0.5)], rtol=1e-9)
    np.testing.assert_array_equal(run.tau, 0.9)


def test_a_slow_target_turns_the_sign_of_the_weight_and_s_stays_positive():
    """With p < 0 and a frozen target, w crosses zero: tau has a pole, s = w^2 touches 0."""
    dynamics = ByolDynamics(1.0, 0.01, 0.2, 0.01)
    run = dynamics.integrate(-2.0, 0.01, np.linspace(0, 1, 200))
    assert (run.s >= 0).all()
    assert (np.diff(np.sign(run.tau)) != 0).any()
    charge = dynamics.invariant(run.p, run.s)
    np.testing.assert_allclose(charge, charge[0] * np.exp(-0.02 * run.t), rtol=1e-8)


def test_a_fast_target_is_no_target_at_all():
    """The first correction is of order 1 / rate."""
    gaps = []
    for rate in (1e3, 1e4, 1e6):
        run = ByolDynamics(2.0, 0.03, 0.3, rate).integrate(P0, S0, TIMES)
        gaps.append(np.abs(run.p - KNOWN_P[math.inf]).max())
    assert gaps[0] < 1e-3
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.1)
    assert gaps[2] < 1e-6


def test_the_learning_rate_ratio_only_rescales_the_features():
    slow, fast = ByolDynamics(0.1, 0.05, 0.2, 0.5), ByolDynamics(10.0, 0.05, 0.2, 0.5)
    first, second = slow.integrate(0.2, 3.0, [4.0]), fast.integrate(0.2, 0.03, [4.0])
    assert first.p[0] == pytest.approx(second.p[0], rel=1e-9)
    assert first.s[0] == pytest.approx(100 * second.s[0], rel=1e-9)


# --- fixed points ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1, 0.05, 0.2), (0.05342508804, 0.7799082453, 0.002854240032, 0.6082568711, 0.2083333333)),
        ((2, 0.03, 0.3), (0.03127125914, 0.7379595101, 0.000488945824, 0.2722921193, 0.1923076923)),
        ((1, 0.1, 0), (0.1127016654, 0.8872983346, 0.01270166538, 0.7872983346, 0.25)),
        ((1, 0.25, 0), (0.5, 0.5, 0.25, 0.25, 0.25)),
    ],
)
def test_fixed_points_as_computed_before(arguments, expected):
    points = ByolDynamics(*arguments).fixed_points()
    found = (points.p_unstable, points.p_stable, points.s_unstable, points.s_stable, points.critical_weight_decay)
    np.testing.assert_allclose(found, expected, rtol=2e-9)
    assert not points.collapse_only
    assert all(type(value) is float for value in found)


def test_above_the_critical_weight_decay_there_is_only_collapse():
    points = ByolDynamics(1.0, 0.2501).fixed_points()
    assert points.collapse_only
    assert points.p_unstable is points.p_stable is points.s_unstable is points.s_stable is None
    assert points.critical_weight_decay == 0.25
    assert not ByolDynamics(1.0, 0.2501).basin([0.5, 0.9], [0.3, 0.8]).any()


@pytest.mark.parametrize("ema_rate", [math.inf, 0.3])
def test_nothing_moves_at_a_fixed_point(ema_rate):
    dynamics = ByolDynamics(3.0, 0.04, 0.5, ema_rate)
    points = dynamics.fixed_points()
    p, s = [points.p_stable, points.p_unstable], [points.s_stable, points.s_unstable]
    run = dynamics.integrate(p, s, [3.0])
    np.testing.assert_allclose(run.p[0], p, rtol=1e-7)
    np.testing.assert_allclose(run.s[0], s, rtol=1e-7)


def test_the_small_fixed_point_does_not_cancel():
    """p_- = decay (1 + decay k + ...) for small decay."""
    assert ByolDynamics(1.0, 1e-9, 0.2).fixed_points().p_unstable == pytest.approx(1e-9 * (1 + 1.2e-9), rel=1e-15)


def test_without_weight_decay_the_end_is_one_over_the_correlation_and_the_charge_says_which_variance():
    dynamics = ByolDynamics(2.0, 0.0, 0.3)
    assert dynamics.fixed_points().p_stable == pytest.approx(1 / 1.3, rel=1e-15)
    assert dynamics.fixed_points().p_unstable == 0
    run = dynamics.integrate(P0, S0, [300.0])
    np.testing.assert_allclose(run.p[0], 1 / 1.3, rtol=1e-8)
    np.testing.assert_allclose(run.s[0], dynamics.invariant(P0, S0) + 1 / (2 * 1.3**2), rtol=1e-8)


# --- basins ---


@pytest.mark.parametrize(
    ("ema_rate", "edges"),
    [
        (math.inf, [0.1098, -0.0278, -0.1840, -0.4254, -0.6928]),
        (1.0, [0.1138, -0.0304, -0.1876, -0.4287, -0.6957]),
        (0.3, [0.1220, -0.0359, -0.1957, -0.4366, -0.7028]),
        (0.1, [0.1422, -0.0479, -0.2105, -0.4457, -0.7070]),
    ],
)
def test_the_basin_ends_where_bisection_found_its_edge(ema_rate, edges):
    dynamics = ByolDynamics(1.0, 0.05, 0.2, ema_rate)
    variances = np.array([1e-3, 0.01, 0.05, 0.2, 0.5])
    inside = dynamics.basin(np.array(edges) + 2e-4, variances)
    outside = dynamics.basin(np.array(edges) - 2e-4, variances)
    assert inside.all()
    assert not outside.any()


@pytest.mark.parametrize("ema_rate", [math.inf, 0.5])
def test_on_the_balanced_curve_the_edge_is_the_saddle(ema_rate):
    dynamics = ByolDynamics(1.0, 0.05, 0.2, ema_rate)
    p = np.array([0.9, 0.99, 1.01, 1.1]) * dynamics.fixed_points().p_unstable
    if math.isinf(ema_rate):
        assert dynamics.basin(p, p**2).tolist() == [False, False, True, True]
    end = dynamics.integrate(p, p**2, [400.0])
    assert (end.s[0] > 0.5).tolist() == dynamics.basin(p, p**2).tolist()


@pytest.mark.parametrize("ema_rate", [math.inf, 2.0, 0.2])
@pytest.mark.parametrize("decay", [0.01, 0.05, 0.15])
def test_the_basin_says_what_a_long_integration_ends_in(ema_rate, decay):
    rng = np.random.default_rng(0)
    dynamics = ByolDynamics(2.0, decay, 0.2, ema_rate)
    p, s = rng.uniform(-1.5, 3, 100), 10 ** rng.uniform(-4, 1, 100)
    end = dynamics.integrate(p, s, [100 / decay], tau0=0.8).s[0]
    alive = dynamics.basin(p, s, tau0=0.8)
    assert 10 < alive.sum() < 90
    np.testing.assert_array_equal(alive, end > 1e-3)


@pytest.mark.parametrize("ema_rate", [math.inf, 1.0, 0.05])
def test_without_weight_decay_the_conserved_charge_decides(ema_rate):
    """The rule, written out independently, and the end of the flow, with any target."""
    rng = np.random.default_rng(1)
    alpha_p, k = 1.7, 1.4
    dynamics = ByolDynamics(alpha_p, 0.0, 0.4, ema_rate)
    p, s = rng.uniform(-2, 2, 90), rng.uniform(0, 2, 90)
    charge = s - p**2 / alpha_p
    rule = (charge > 0) | ((p > 0) & (np.sqrt(np.maximum(-alpha_p * charge, 0)) < 1 / k))
    np.testing.assert_array_equal(dynamics.basin(p, s), rule)
    clear = np.abs(np.sqrt(np.abs(alpha_p * charge)) - 1 / k) > 0.02
    end = dynamics.integrate(p, s, [4000.0]).s[0]
    np.testing.assert_array_equal(rule[clear], end[clear] > 1e-6)
    assert 15 < rule.sum() < 80


def test_a_mode_without_variance_is_collapsed():
    for dynamics in (ByolDynamics(), ByolDynamics(1.0, 0.05), ByolDynamics(1.0, 0.05, 0.2, 0.5)):
        assert dynamics.basin([-1.0, 0.0, 0.5], 0.0).tolist() == [False] * 3
        assert dynamics.basin(0.5, 0.3).shape == ()
        assert dynamics.basin(np.zeros((0, 3)), 1.0).shape == (0, 3)
    assert ByolDynamics().basin([0.0, -0.5, 0.5], [1e-9, 0.25, 0.25]).tolist() == [True, False, True]


def test_too_large_a_predictor_collapses_as_well():
    dynamics = ByolDynamics(1.0, 0.05, 0.2)
    assert dynamics.basin([0.05, 0.5, 1.0, 3.0], 1e-3).tolist() == [False, True, True, False]


@pytest.mark.parametrize("decay", [0.003, 0.05, 0.2])
def test_the_threshold_is_the_edge_of_the_basin(decay):
    dynamics = ByolDynamics(3.0, decay, 0.2)
    p = np.array([[-2.0, -0.3, 0.0], [0.3 * decay, 1.9, 2.5]])
    edge = dynamics.threshold(p)
    assert edge.shape == p.shape
    assert dynamics.basin(p, edge * 1.001).all()
    assert not dynamics.basin(p, edge * 0.999).any()
    end = dynamics.integrate(np.stack([p, p]), np.stack([edge * 1.001, edge * 0.999]), [60 / decay]).s[0]
    assert (end[0] > 1e-2).all()
    assert (end[1] < 1e-4).all()
    points = dynamics.fixed_points()
    assert dynamics.threshold(points.p_unstable) == pytest.approx(points.s_unstable, rel=1e-12)


def test_thresholds_at_the_ends_of_the_range():
    dynamics = ByolDynamics(1.0, 1e-9, 0.2)
    assert dynamics.threshold(0.5) == 0  # exp of minus a billion
    assert dynamics.threshold(-1e3) == pytest.approx(1e6, rel=1e-5)
    assert ByolDynamics(1.0, 0.05, 0.2).threshold(1e3) == pytest.approx(1e6, rel=1e-5)
    assert np.isinf(ByolDynamics(1.0, 0.9).threshold(0.5))
    np.testing.assert_allclose(ByolDynamics(2.0, 0.0, 0.0, 0.5).threshold([-1.0, 0.5, 2.0]), [0.5, 0, 1.5])


def test_at_the_critical_weight_decay_the_upper_side_survives():
    dynamics = ByolDynamics(1.0, 0.25)
    assert dynamics.basin([0.4, 0.6, 0.6], [0.16, 0.36, 0.5]).tolist() == [False, True, True]


def test_the_parameters_are_kept_as_floats_and_cannot_change():
    dynamics = ByolDynamics(2, np.float32(0.5), torch.tensor(0.25), 3)
    assert dataclasses.astuple(dynamics) == (2.0, 0.5, 0.25, 3.0)
    assert all(type(value) is float for value in dataclasses.astuple(dynamics))
    with pytest.raises(dataclasses.FrozenInstanceError):
        dynamics.alpha_p = 3.0


def test_inputs_are_left_as_they_were():
    p0, s0 = np.array(P0), np.array(S0)
    dynamics = ByolDynamics(2.0, 0.03, 0.3, 0.4)
    dynamics.integrate(p0, s0, [1.0]).p[:] = 7
    dynamics.basin(p0, s0)
    assert p0.tolist() == P0
    assert s0.tolist() == S0


# --- weight decay selects features ---


def test_a_feature_survives_exactly_below_its_critical_weight_decay():
    """Integrates the amplitudes of one direction with signal x and augmentation e."""
    x, extra = np.array([2.0, 1.0, 0.6, 0.3]), np.array([0.5, 0.2, 0.9, 0.3])
    critical = critical_weight_decay(x, extra)
    np.testing.assert_allclose(critical, [0.4, 0.20833333, 0.06, 0.0375], rtol=1e-7)
    for factor, expected in ((0.98, True), (1.02, False)):

        def velocity(_, state, decay=factor * critical):
            w, p = state.reshape(2, -1)
            error = p * 0 + x * w - (x + extra) * p * w
            return np.concatenate([p * error - decay * w, w * error - decay * p])

        end = solve_ivp(velocity, (0, 4000), np.full(8, 0.8), method="LSODA", rtol=1e-9, atol=1e-12).y[:, -1]
        assert ((end > 0.05) == expected).all()


def test_a_direction_without_signal_tolerates_no_weight_decay():
    assert critical_weight_decay([0.0, 0.0, 1.0], [0.0, 1.0, 0.0]).tolist() == [0, 0, 0.25]
    assert critical_weight_decay(1.0, 0.2) == pytest.approx(
        ByolDynamics(augmentation_variance=0.2).fixed_points().critical_weight_decay
    )


# --- the predictor in closed form ---


def test_the_weight_of_a_diagonal_correlation():
    corr = torch.diag(torch.tensor([4.0, 1.0, 0.25, 0.0], dtype=torch.float64))
    expected = torch.diag(torch.tensor([1.1, 0.6, 0.35, 0.1], dtype=torch.float64))
    torch.testing.assert_close(direct_predictor_weight(corr), expected, rtol=1e-12, atol=1e-15)
    copied = direct_predictor_weight(corr, exponent=1.0, eps=0.3)
    torch.testing.assert_close(copied.diagonal().tolist(), [1.3, 0.55, 0.3625, 0.3], rtol=1e-12, atol=0)
    raw = direct_predictor_weight(corr, normalize=False)
    torch.testing.assert_close(raw.diagonal().tolist(), [2.4, 1.4, 0.9, 0.4], rtol=1e-12, atol=1e-15)


def test_directcopy_is_the_correlation_over_its_norm():
    z = normal(50, 6)
    corr = z.T @ z / 50
    eye = torch.eye(6, dtype=torch.float64)
    expected = corr / torch.linalg.matrix_norm(corr, 2) + 0.3 * eye
    torch.testing.assert_close(direct_predictor_weight(corr, exponent=1.0, eps=0.3), expected, rtol=1e-12, atol=1e-13)


@given(st.integers(0, 10**6), st.floats(0, 0.5), st.booleans())
@settings(deadline=None, max_examples=30)
def test_the_weight_is_the_matrix_root_in_any_basis(seed, eps, scaled):
    z = normal(20, 5, seed=seed) * torch.tensor([3.0, 1, 1, 0.3, 0.01]).double()
    corr = z.T @ z / 20
    weight = direct_predictor_weight(corr, eps=eps, normalize=scaled)
    top = 1.0 if scaled else float(torch.linalg.eigvalsh(corr)[-1])
    root = weight - eps * top * torch.eye(5, dtype=torch.float64)
    expected = corr / torch.linalg.eigvalsh(corr)[-1] if scaled else corr
    torch.testing.assert_close(root @ root, expected, rtol=1e-9, atol=1e-9)
    Q = torch.linalg.qr(normal(5, 5, seed=seed + 1))[0]
    turned = direct_predictor_weight(Q @ corr @ Q.T, eps=eps, normalize=scaled)
    torch.testing.assert_close(turned, Q @ weight @ Q.T, rtol=1e-7, atol=1e-7)


def test_negative_eigenvalues_count_as_zero_and_only_the_symmetric_part_counts():
    corr = torch.tensor([[1.0, 3.0], [-3.0, -0.5]], dtype=torch.float64)
    expected = torch.diag(torch.tensor([1.1, 0.1], dtype=torch.float64))
    torch.testing.assert_close(direct_predictor_weight(corr), expected, rtol=1e-12, atol=1e-14)


def test_a_stack_of_correlations_gives_a_stack_of_weights():
    z = normal(3, 20, 4)
    corr = z.mT @ z
    stack = direct_predictor_weight(corr)
    for one, expected in zip(corr, stack, strict=True):
        torch.testing.assert_close(direct_predictor_weight(one), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 0.02), (torch.half, 2e-3)]
)
def test_the_weight_keeps_the_dtype_of_the_correlation(dtype, tolerance):
    z = normal(40, 5)
    corr = (z.T @ z / 40).to(dtype)
    weight = direct_predictor_weight(corr)
    assert weight.dtype == dtype
    exact = direct_predictor_weight(corr.double())
    assert float((weight.double() - exact).abs().max()) < tolerance


def test_the_weight_carries_no_gradient_and_leaves_the_correlation_alone():
    corr = torch.eye(3, requires_grad=True)
    assert not direct_predictor_weight(corr).requires_grad
    assert torch.equal(corr, torch.eye(3))


def test_tiny_and_huge_correlations_give_the_same_normalised_weight():
    z = normal(30, 4, dtype=torch.float32)
    corr = z.T @ z / 30
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(
            direct_predictor_weight(corr * scale), direct_predictor_weight(corr), rtol=1e-4, atol=1e-5
        )


# --- the module ---


def test_the_running_correlation_starts_at_the_first_batch_and_forgets_exponentially():
    predictor, batches = DirectPredictor(4, ema=0.7).double(), [normal(6, 4, seed=s) for s in range(4)]
    expected = batches[0].T @ batches[0] / 6
    for i, z in enumerate(batches):
        predictor.update(z)
        expected = expected if i == 0 else 0.7 * expected + 0.3 * z.T @ z / 6
    torch.testing.assert_close(predictor.correlation, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(predictor.weight, direct_predictor_weight(expected), rtol=1e-9, atol=1e-10)
    assert predictor.num_updates.item() == 4
    assert predictor.num_updates.dtype == torch.int64


def test_the_output_is_the_input_times_the_weight_of_the_same_step():
    predictor, z = DirectPredictor(4, eps=0.2, exponent=0.7).double(), normal(9, 4)
    assert torch.equal(predictor.weight, torch.eye(4, dtype=torch.float64))
    out = predictor(z)
    weight = direct_predictor_weight(z.T @ z / 9, eps=0.2, exponent=0.7)
    torch.testing.assert_close(out, z @ weight.T, rtol=1e-10, atol=1e-11)


def test_only_training_updates_unless_told_otherwise():
    predictor, z = DirectPredictor(3), normal(5, 3, dtype=torch.float32)
    predictor(z, update=False)
    assert predictor.num_updates == 0
    assert torch.equal(predictor(z, update=False), z)
    predictor(z)
    predictor.eval()
    predictor(z)
    assert predictor.num_updates == 1
    predictor(z, update=True)
    assert predictor.num_updates == 2


def test_the_weight_is_computed_on_every_freq_th_update_beginning_with_the_first():
    predictor, seen = DirectPredictor(3, freq=3), []
    for seed in range(8):
        before = predictor.weight.clone()
        predictor.update(normal(5, 3, seed=seed, dtype=torch.float32))
        seen.append(not torch.equal(before, predictor.weight))
    assert seen == [True, False, False, True, False, False, True, False]


def test_a_gradient_flows_through_the_input_alone():
    predictor, z = DirectPredictor(4).double(), normal(6, 4).requires_grad_()
    cost = normal(6, 4, seed=1)
    (predictor(z) * cost).sum().backward()
    torch.testing.assert_close(z.grad, cost @ predictor.weight, rtol=1e-12, atol=1e-14)
    assert list(predictor.parameters()) == []
    assert not any(buffer.requires_grad for buffer in predictor.buffers())
    small = DirectPredictor(3).double().eval()
    small.update(normal(5, 3))
    assert torch.autograd.gradcheck(small, normal(4, 3).requires_grad_())


def test_a_later_update_does_not_disturb_an_earlier_forward_pass():
    predictor, z1, z2 = DirectPredictor(3).double(), normal(5, 3).requires_grad_(), normal(5, 3, seed=1)
    first = predictor(z1)
    weight = predictor.weight.clone()
    predictor(z2)
    first.sum().backward()
    torch.testing.assert_close(z1.grad, torch.ones(5, 3).double() @ weight, rtol=1e-12, atol=1e-14)
    assert not torch.equal(weight, predictor.weight)


def test_it_draws_no_random_numbers_and_does_not_touch_its_input():
    z = normal(5, 3, dtype=torch.float32)
    kept, state = z.clone(), torch.random.get_rng_state()
    DirectPredictor(3)(z)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(z, kept)


def trained_predictor(**options):
    predictor = DirectPredictor(3, **options)
    for seed in range(3):
        predictor.update(normal(5, 3, seed=seed, dtype=torch.float32))
    return predictor


def test_a_checkpoint_continues_as_if_nothing_had_happened():
    first = trained_predictor(freq=2)
    memory = io.BytesIO()
    torch.save(first.state_dict(), memory)
    memory.seek(0)
    second = DirectPredictor(3, freq=2)
    second.load_state_dict(torch.load(memory, weights_only=True))
    assert sorted(first.state_dict()) == ["correlation", "num_updates", "weight"]
    for predictor in (first, second):
        for seed in (7, 8):
            predictor.update(normal(5, 3, seed=seed, dtype=torch.float32))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_a_deep_copy_goes_its_own_way():
    first = trained_predictor()
    second = copy.deepcopy(first)
    second.update(normal(5, 3, seed=9, dtype=torch.float32))
    assert first.num_updates == 3
    assert not torch.equal(first.correlation, second.correlation)
    assert "3, ema=0.3, eps=0.1, exponent=0.5, freq=1" in repr(first)


def test_the_optimizer_and_its_weight_decay_do_not_see_it():
    model = nn.Sequential(nn.Linear(4, 3), DirectPredictor(3))
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.half, 0.01)]
)
def test_inputs_of_any_precision_come_back_in_it(dtype, tolerance):
    z = normal(20, 4)
    predictor, exact = DirectPredictor(4), DirectPredictor(4).double()
    if dtype == torch.float64:
        predictor = predictor.double()
    out = predictor(z.to(dtype))
    assert out.dtype == dtype
    assert float((out.double() - exact(z)).abs().max()) < tolerance * float(z.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
def test_buffers_in_half_precision_are_decomposed_in_single(dtype):
    predictor, z = DirectPredictor(4).to(dtype), normal(20, 4, dtype=torch.float32).to(dtype)
    predictor.update(z)
    exact = direct_predictor_weight((z.double().T @ z.double()) / 20)
    assert predictor.weight.dtype == predictor.correlation.dtype == dtype
    assert predictor.num_updates.dtype == torch.int64
    assert float((predictor.weight.double() - exact).abs().max()) < torch.finfo(dtype).eps


def test_in_double_precision_nothing_is_rounded_to_single():
    predictor, z = DirectPredictor(4).double(), normal(20, 4)
    predictor.update(z)
    exact = direct_predictor_weight(z.T @ z / 20)
    assert float((predictor.weight - exact).abs().max()) < 1e-13


def test_autocast_lowers_the_product_and_nothing_else():
    z = normal(64, 8, dtype=torch.float32)
    plain, mixed = DirectPredictor(8), DirectPredictor(8)
    expected = plain(z)
    with torch.autocast("cpu", torch.bfloat16):
        out = mixed(z)
        low = mixed(z.bfloat16(), update=False)
    assert out.dtype == low.dtype == torch.bfloat16
    assert torch.equal(plain.correlation, mixed.correlation)
    assert torch.equal(plain.weight, mixed.weight)
    assert float((out.float() - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_it_trains_under_autocast_with_a_gradient_scaler_free_bfloat16_step():
    model, predictor = nn.Linear(6, 4), DirectPredictor(4)
    x = normal(16, 6, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        z = model(x)
        loss = byol_loss(predictor(z), model(x + 0.1))
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(model.weight.grad).all()


def test_inference_mode_and_no_grad_are_welcome():
    z = normal(5, 3, dtype=torch.float32)
    expected = DirectPredictor(3)(z)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(DirectPredictor(3)(z), expected, rtol=0, atol=0)


def test_an_error_leaves_every_buffer_as_it_was():
    predictor = trained_predictor()
    before = copy.deepcopy(predictor.state_dict())
    for z in (torch.full((2, 3), math.nan), torch.zeros(0, 3), torch.full((2, 3), 1e30)):
        with pytest.raises(ValueError, match="z must be"):
            predictor.update(z)
    fresh = DirectPredictor(3)
    with pytest.raises(ValueError, match="corr must be with a positive eigenvalue, got none"):
        fresh.update(torch.zeros(4, 3))
    assert fresh.num_updates == 0
    assert not fresh.correlation.any()
    assert all(torch.equal(before[name], value) for name, value in predictor.state_dict().items())


def start_gloo(rank, n_ranks, store):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n_ranks)


def in_two_processes(work, folder):
    """What each of two gloo processes puts into the queue, by rank."""
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=work, args=(rank, 2, folder / "store", queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    results = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    return [results[rank] for rank in range(2)]


SHARDS = ((5, 7), (2, 10), (12, 0))  # of twelve rows


def update_on_rank(rank, n_ranks, store, queue):
    start_gloo(rank, n_ranks, store)
    predictor, alone = DirectPredictor(4).double(), DirectPredictor(4, sync=False).double()
    for seed, shards in enumerate(SHARDS):
        rows = normal(12, 4, seed=seed).split(shards)[rank]
        predictor.update(rows)
        if len(rows):
            alone.update(rows)
    refused = []
    for bad in (torch.full((2, 4), math.nan) if rank else torch.ones(2, 4), torch.ones(0, 4)):
        try:
            predictor.update(bad.double())
        except ValueError as error:
            refused.append(str(error))
    states = [{name: value.numpy() for name, value in p.state_dict().items()} for p in (predictor, alone)]
    queue.put((rank, (*states, refused)))
    torch.distributed.destroy_process_group()


def test_two_processes_with_uneven_shards_see_the_correlation_of_the_whole_batch(tmp_path):
    (first, lonely, refused), (second, other, also_refused) = in_two_processes(update_on_rank, tmp_path)
    whole = DirectPredictor(4).double()
    for seed in range(len(SHARDS)):
        whole.update(normal(12, 4, seed=seed))
    for name, value in whole.state_dict().items():
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], value, rtol=1e-12, atol=1e-14)
    assert not np.allclose(lonely["correlation"], other["correlation"])
    assert refused == also_refused  # a fault on one rank is an error on all, and none hangs
    assert [error.split(",")[0] for error in refused] == ["z must be finite", "z must be of at least one row"]


def siamese():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double(), DirectPredictor(4).double()


class Online(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.predictor = siamese()

    def forward(self, views):
        z = self.encoder(views)
        return self.predictor(z), z.detach()


def train_siamese(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(4):
        x = normal(12, 6, seed=seed)[rows]
        optimizer.zero_grad()
        prediction, z = model(torch.cat([x, x + 0.1]))
        (n := len(x))
        byol_loss(prediction[:n], z[n:], normalize=False).backward()
        optimizer.step()


def train_on_rank(rank, n_ranks, store, queue):
    start_gloo(rank, n_ranks, store)
    with torch.random.fork_rng():
        model = Online()
    parallel = nn.parallel.DistributedDataParallel(model)
    train_siamese(parallel, slice(rank, None, n_ranks))
    queue.put((rank, {name: value.numpy() for name, value in model.state_dict().items()}))
    torch.distributed.destroy_process_group()


def test_a_model_under_distributed_data_parallel_trains_as_on_one_process(tmp_path):
    first, second = in_two_processes(train_on_rank, tmp_path)
    with torch.random.fork_rng():
        alone = Online()
    train_siamese(alone, slice(None))
    for name, value in alone.state_dict().items():
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], value, rtol=1e-9, atol=1e-12)


# --- alignment ---


def test_alignment_of_a_known_pair():
    found = eigenspace_alignment([[1.0, 0.5], [0.0, 2.0]], np.diag([2.0, 1.0]))
    assert found.eigenvalues.tolist() == [2, 1]
    np.testing.assert_allclose(found.cosine, [1, 0.9701425], rtol=1e-7)
    assert found.commutator == pytest.approx(0.0975900073, rel=1e-9)
    assert found.asymmetry == pytest.approx(0.154303350, rel=1e-8)
    assert type(found.commutator) is type(found.asymmetry) is float


def test_a_function_of_the_correlation_is_aligned_with_it_whatever_its_signs():
    z = normal(40, 5).numpy()
    corr = z.T @ z / 40
    values, vectors = np.linalg.eigh(corr)
    found = eigenspace_alignment((vectors * np.array([1.0, -2.0, 0.5, 3.0, -0.1])) @ vectors.T, corr)
    np.testing.assert_allclose(found.eigenvalues, values[::-1], rtol=1e-12)
    np.testing.assert_allclose(found.cosine, 1, rtol=1e-12)
    assert found.commutator < 1e-14
    assert found.asymmetry < 1e-14


def test_a_direction_that_the_predictor_kills_has_cosine_zero_and_a_rotation_is_all_asymmetry():
    found = eigenspace_alignment(np.diag([1.0, 0.0]), np.diag([1.0, 2.0]))
    assert found.cosine.tolist() == [0, 1]
    turned = eigenspace_alignment([[0.0, 1.0], [-1.0, 0.0]], np.diag([1.0, 2.0]))
    assert turned.asymmetry == pytest.approx(1)
    assert turned.cosine.tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1e-150, 1e-3, 1e150])
def test_alignment_does_not_depend_on_units(scale):
    wp, corr = normal(4, 4).numpy(), normal(9, 4, seed=1).numpy()
    corr = corr.T @ corr
    base, scaled = eigenspace_alignment(wp, corr), eigenspace_alignment(wp * scale, corr / scale)
    np.testing.assert_allclose(scaled.cosine, base.cosine, rtol=1e-9)
    assert scaled.commutator == pytest.approx(base.commutator, rel=1e-9)
    np.testing.assert_allclose(scaled.eigenvalues, base.eigenvalues / scale, rtol=1e-9)


def test_alignment_takes_tensors_in_the_precision_they_have():
    z = normal(1000, 16, dtype=torch.float32)
    weight = nn.Linear(16, 16, bias=False).weight
    found = eigenspace_alignment(weight, z.T @ z / 1000)
    exact = eigenspace_alignment(weight.detach().double().numpy(), (z.double().T @ z.double() / 1000).numpy())
    assert found.commutator == pytest.approx(exact.commutator, rel=1e-4)
    predictor = trained_predictor()
    assert eigenspace_alignment(predictor.weight, predictor.correlation).commutator < 1e-6


# --- the loss ---


def test_the_normalised_loss_is_two_minus_twice_the_cosine():
    p, t = normal(7, 5), normal(7, 5, seed=1)
    cosine = (p * t).sum(1) / p.norm(dim=1) / t.norm(dim=1)
    assert byol_loss(p, t).item() == pytest.approx(float((2 - 2 * cosine).mean()), rel=1e-12)
    unit = p / p.norm(dim=1, keepdim=True) - t / t.norm(dim=1, keepdim=True)
    assert byol_loss(3 * p, t / 5).item() == pytest.approx(float(unit.square().sum(1).mean()), rel=1e-12)


def test_the_other_loss_is_half_the_squared_distance_of_the_theory():
    p, t = normal(7, 5), normal(7, 5, seed=1)
    expected = 0.5 * float((p - t).square().sum(1).mean())
    assert byol_loss(p, t, normalize=False).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_targets_get_no_gradient(normalize):
    p, t = normal(4, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()
    byol_loss(p, t, normalize=normalize).backward()
    assert t.grad is None
    assert p.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda p: byol_loss(p, t, normalize=normalize), p)


def test_a_collapsed_row_costs_two_and_has_a_finite_gradient():
    p = torch.zeros(2, 3, requires_grad=True)
    loss = byol_loss(p, torch.ones(2, 3))
    loss.backward()
    assert loss.item() == 2
    assert torch.isfinite(p.grad).all()


def test_losses_of_low_precision_are_computed_in_single():
    p, t = normal(50, 8), normal(50, 8, seed=1)
    low = byol_loss(p.bfloat16(), t.bfloat16())
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(byol_loss(p, t).item(), rel=0.01)
    assert byol_loss(p, t.float()).dtype == torch.float64


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alpha_p": 0}, ValueError, "alpha_p must be > 0, got 0"),
        ({"alpha_p": -1.0}, ValueError, "alpha_p must be > 0, got -1"),
        ({"alpha_p": math.nan}, ValueError, "alpha_p must be finite, got nan"),
        ({"alpha_p": 1e-13}, ValueError, "alpha_p must be at least 1e-12, got 1e-13"),
        ({"alpha_p": 1e7}, ValueError, r"alpha_p must be at most 1e\+06 in modulus, got 1e\+07"),
        ({"alpha_p": "1"}, TypeError, "alpha_p must be real numbers, got str"),
        ({"alpha_p": True}, TypeError, "alpha_p must be real numbers, got bool"),
        ({"alpha_p": [1.0, 2.0]}, ValueError, r"alpha_p must be a single number, got shape \(2,\)"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be >= 0, got -0.1"),
        ({"weight_decay": math.nan}, ValueError, "weight_decay must be finite, got nan"),
        ({"weight_decay": math.inf}, ValueError, "weight_decay must be finite, got inf"),
        ({"weight_decay": None}, TypeError, "weight_decay must be real numbers, got NoneType"),
        ({"augmentation_variance": -1e-9}, ValueError, "augmentation_variance must be >= 0"),
        ({"augmentation_variance": math.nan}, ValueError, "augmentation_variance must be finite"),
        ({"ema_rate": 0}, ValueError, "ema_rate must be > 0, got 0"),
        ({"ema_rate": -math.inf}, ValueError, "ema_rate must be > 0, got -inf"),
        ({"ema_rate": math.nan}, ValueError, "ema_rate must be > 0, got nan"),
        ({"ema_rate": [1.0]}, ValueError, r"ema_rate must be a single number, got shape \(1,\)"),
        ({"ema_rate": False}, TypeError, "ema_rate must be real numbers, got bool"),
    ],
)
def test_dynamics_are_refused_with(arguments, error, message):
    with pytest.raises(error, match=message):
        ByolDynamics(**arguments)


DYNAMICS = ByolDynamics(1.0, 0.05, 0.2, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([math.nan], 0.1, [1.0]), "p0 must be finite, got nan at index 0"),
        ((math.inf, 0.1, [1.0]), "p0 must be finite, got inf"),
        ((2e6, 0.1, [1.0]), r"p0 must be at most 1e\+06 in modulus"),
        ((0.1, -0.1, [1.0]), "s0 must be >= 0, got -0.1"),
        ((0.1, math.nan, [1.0]), "s0 must be finite, got nan"),
        ((0.1, 1e13, [1.0]), r"s0 must be at most 1e\+12 / alpha_p, got 1e\+13"),
        (([0.1, 0.2], [0.1, 0.2, 0.3], [1.0]), r"p0, s0 must be of shapes that broadcast, got shapes \(2,\), \(3,\)"),
        ((0.1, 0.1, 1.0), r"t must be of shape \(n,\), got shape \(\)"),
        ((0.1, 0.1, [[1.0]]), r"t must be of shape \(n,\), got shape \(1, 1\)"),
        ((0.1, 0.1, []), "t must be at least one time, got none"),
        ((0.1, 0.1, [-1.0, 1.0]), "t must be >= 0, got -1"),
        ((0.1, 0.1, [0.0, 1.0, 1.0]), "t must be strictly increasing, got 1 before 1"),
        ((0.1, 0.1, [2.0, 1.0]), "t must be strictly increasing, got 2 before 1"),
        ((0.1, 0.1, [0.0, math.nan]), "t must be finite"),
        ((0.1, 0.1, [1.0], math.nan), "tau0 must be finite, got nan"),
        ((0.1, 0.1, [1.0], [1.0, 1.0]), "tau0 must be a single number"),
        ((0.1, 0.1, [1.0], 1e7), r"tau0 must be at most 1e\+06 in modulus"),
    ],
)
def test_an_integration_is_refused_for(arguments, message):
    with pytest.raises(ValueError, match=message):
        DYNAMICS.integrate(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DYNAMICS.basin(0.1, -1.0), "s0 must be >= 0, got -1"),
        (lambda: DYNAMICS.basin([0.1, 0.2], [1.0, 2.0, 3.0]), "p0, s0 must be of shapes that broadcast"),
        (lambda: DYNAMICS.basin(0.1, 1.0, math.inf), "tau0 must be finite"),
        (lambda: DYNAMICS.invariant(0.1, -1.0), "s must be >= 0, got -1"),
        (lambda: DYNAMICS.invariant(math.nan, 1.0), "p must be finite"),
        (lambda: DYNAMICS.threshold(0.1), "ema_rate must be inf, or weight_decay 0, for a threshold, got 0.5"),
        (lambda: ByolDynamics().threshold([math.nan]), "p0 must be finite"),
        (lambda: critical_weight_decay(-1.0, 0.1), "signal must be >= 0, got -1"),
        (lambda: critical_weight_decay(1.0, math.inf), "augmentation must be finite"),
        (lambda: critical_weight_decay([1.0, 2.0], [1.0] * 3), "signal, augmentation must be of shapes that broadcast"),
        (lambda: eigenspace_alignment(np.ones((2, 3)), np.eye(2)), r"wp must be a square matrix, got shape \(2, 3\)"),
        (lambda: eigenspace_alignment(np.eye(2), np.eye(3)), r"corr must be of the shape of wp \(2, 2\)"),
        (lambda: eigenspace_alignment(np.eye(2), np.ones(2)), "corr must be of shape"),
        (lambda: eigenspace_alignment(np.full((2, 2), math.nan), np.eye(2)), "wp must be finite"),
        (lambda: eigenspace_alignment(np.zeros((2, 2)), np.eye(2)), "wp must be nonzero, got a matrix of zeros"),
        (lambda: eigenspace_alignment(np.eye(2), np.zeros((2, 2))), "corr must be nonzero, got a matrix of zeros"),
        (lambda: eigenspace_alignment(np.eye(2), [[1.0, 0.5], [0.0, 1.0]]), "corr must be symmetric, got an asymmetry"),
        (lambda: eigenspace_alignment(np.zeros((0, 0)), np.zeros((0, 0))), "wp must be a square matrix"),
        (lambda: direct_predictor_weight(torch.ones(2, 3)), r"corr must be of shape \(..., d, d\), got shape \(2, 3\)"),
        (lambda: direct_predictor_weight(torch.ones(0, 0)), r"corr must be of shape \(..., d, d\)"),
        (lambda: direct_predictor_weight(torch.ones(3)), r"corr must be of shape \(..., d, d\), got shape \(3,\)"),
        (lambda: direct_predictor_weight(-torch.eye(2)), "corr must be with a positive eigenvalue, got none"),
        (lambda: direct_predictor_weight(torch.full((2, 2), math.inf)), "corr must be finite, got NaN or infinity"),
        (lambda: direct_predictor_weight(torch.eye(2), eps=-0.1), "eps must be >= 0, got -0.1"),
        (lambda: direct_predictor_weight(torch.eye(2), exponent=0), "exponent must be > 0, got 0"),
        (lambda: byol_loss(torch.ones(2, 3), torch.ones(3, 2)), r"target must be of the shape of prediction \(2, 3\)"),
        (
            lambda: byol_loss(torch.ones(3), torch.ones(3)),
            r"prediction must be of shape \(n, d\)",
        ),
        (lambda: byol_loss(torch.ones(0, 3), torch.ones(0, 3)), "prediction must be of shape"),
    ],
)
def test_a_value_is_refused_for(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DYNAMICS.integrate("a", 0.1, [1.0]), "p0 must be real numbers, got str"),
        (lambda: DYNAMICS.integrate(0.1, 0.1, None), "t must be real numbers, got NoneType"),
        (lambda: DYNAMICS.basin(0.1, 1j), "s0 must be real numbers"),
        (lambda: eigenspace_alignment("w", np.eye(2)), "wp must be real numbers, got str"),
        (lambda: direct_predictor_weight(np.eye(2)), "corr must be a tensor, got ndarray"),
        (lambda: direct_predictor_weight(torch.eye(2, dtype=torch.long)), "corr must be a floating-point tensor"),
        (lambda: direct_predictor_weight(torch.eye(2), normalize=1), "normalize must be True or False, got int"),
        (lambda: byol_loss(np.ones((2, 2)), torch.ones(2, 2)), "prediction must be a tensor, got ndarray"),
        (lambda: byol_loss(torch.ones(2, 2), torch.ones(2, 2).int()), "target must be a floating-point tensor"),
        (lambda: byol_loss(torch.ones(2, 2), torch.ones(2, 2), normalize="yes"), "normalize must be True or False"),
    ],
)
def test_a_wrong_type_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("dim", "options", "error", "message"),
    [
        (0, {}, ValueError, "dim must be >= 1, got 0"),
        (2.0, {}, TypeError, "dim must be an integer, got float"),
        (True, {}, TypeError, "dim must be an integer, got bool"),
        (2, {"ema": 1.0}, ValueError, r"ema must be in \[0, 1\), got 1"),
        (2, {"ema": -0.1}, ValueError, r"ema must be in \[0, 1\), got -0.1"),
        (2, {"ema": math.nan}, ValueError, "ema must be finite"),
        (2, {"ema": "0.3"}, TypeError, "ema must be real numbers"),
        (2, {"eps": -1e-3}, ValueError, "eps must be >= 0, got -0.001"),
        (2, {"eps": math.inf}, ValueError, "eps must be finite"),
        (2, {"exponent": 0}, ValueError, "exponent must be > 0, got 0"),
        (2, {"exponent": [0.5]}, ValueError, "exponent must be a single number"),
        (2, {"freq": 0}, ValueError, "freq must be >= 1, got 0"),
        (2, {"freq": 1.5}, TypeError, "freq must be an integer, got float"),
        (2, {"normalize": 1}, TypeError, "normalize must be True or False, got int"),
        (2, {"sync": None}, TypeError, "sync must be True or False, got NoneType"),
    ],
)
def test_a_predictor_is_refused_for(dim, options, error, message):
    with pytest.raises(error, match=message):
        DirectPredictor(dim, **options)


@pytest.mark.parametrize("method", ["update", "forward"])
@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (torch.ones(2, 4), ValueError, r"z must be of shape \(n, 3\), got shape \(2, 4\)"),
        (torch.ones(3), ValueError, r"z must be of shape \(n, 3\), got shape \(3,\)"),
        (torch.ones(2, 5, 3), ValueError, r"z must be of shape \(n, 3\), got shape \(2, 5, 3\)"),
        (torch.ones(0, 3), ValueError, r"z must be of at least one row, got shape \(0, 3\)"),
        (torch.full((2, 3), math.nan), ValueError, "z must be finite"),
        (torch.tensor([[1.0, math.inf, 0.0]]), ValueError, "z must be finite"),
        (torch.full((2, 3), 1e25), ValueError, "z must be finite, and its squares in torch.float32"),
        (torch.ones(2, 3, dtype=torch.long), TypeError, "z must be a floating-point tensor, got dtype torch.int64"),
        (torch.ones(2, 3, dtype=torch.cfloat), TypeError, "z must be a floating-point tensor"),
        (np.ones((2, 3)), TypeError, "z must be a tensor, got ndarray"),
        (torch.ones(2, 3, device="meta"), ValueError, r"z must be on the device of the predictor \(cpu\), got meta"),
    ],
)
def test_an_input_is_refused_for(method, z, error, message):
    with pytest.raises(error, match=message):
        getattr(DirectPredictor(3), method)(z)


def test_the_update_flag_is_true_false_or_none():
    with pytest.raises(TypeError, match="update must be True or False, got int"):
        DirectPredictor(3)(torch.ones(2, 3), update=1)
