"""Tests of the Lyapunov exponents: known numbers, limits, enumeration against sampling, sum rules, and refusals."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq

from symlearn.lyapunov import (
    LyapunovEstimate,
    LyapunovSpectrum,
    gaussian_lyapunov_exponent,
    lyapunov_exponent_1d,
    matrix_lyapunov_exponents,
)

TEN_DIGITS, SEVEN_DIGITS = 6e-11, 6e-8


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def isotropic_factors(lr, dimension, n_chains, n_steps, rng):
    """Factors of SGD on (x . theta)^2 / 2 with one Gaussian sample per step."""
    x = rng.normal(size=(n_chains, n_steps, dimension, 1))
    return np.eye(dimension) - lr * x * x.swapaxes(-1, -2)


# One dimension


def test_a_two_point_saddle_has_the_known_exponents():
    estimate = lyapunov_exponent_1d([-2, 1.6], [0.02, 0.1, 0.2, 0.3, 0.4], weights=[0.6, 0.4])
    expected = [0.0105232, 0.0396516, 0.0476183, 0.0204316, -0.0559885]
    np.testing.assert_allclose(estimate.value, expected, rtol=0, atol=SEVEN_DIGITS)
    assert estimate.exact
    assert not estimate.stderr.any()


def test_the_known_weight_decay_makes_a_saddle_neutral():
    value = lyapunov_exponent_1d([-2, 1.6], 0.1, weights=[0.6, 0.4], weight_decay=0.397980).value
    assert value == pytest.approx(4e-8, abs=1e-8)  # six digits of the weight decay times the learning rate
    root = brentq(lambda k: lyapunov_exponent_1d([-2, 1.6], 0.1, weights=[0.6, 0.4], weight_decay=k).value, 0, 1)
    assert root == pytest.approx(0.397980, abs=6e-7)


def test_batches_of_four_have_the_known_exponent():
    value = lyapunov_exponent_1d([1, 3, -0.5], 0.4, batch_size=4, weight_decay=0.1).value
    assert value == pytest.approx(-0.9074429806, abs=TEN_DIGITS)


def test_exponents_at_the_origin_of_a_two_layer_network_are_known():
    product = np.array([1, 1, 2]) * [1, -0.7, 0.3]
    for h, expected in ((-2 * product, 0.143695), (2 * product, -0.448801)):
        assert lyapunov_exponent_1d(h, 0.4, batch_size=2).value == pytest.approx(expected, abs=6e-7)


def test_a_factor_of_exactly_zero_ends_the_run():
    estimate = lyapunov_exponent_1d([2, 1], [0.5, 0.4])
    assert estimate.value[0] == -np.inf
    assert estimate.stderr[0] == 0
    assert np.isfinite(estimate.value[1])
    assert np.isfinite(lyapunov_exponent_1d([2, 1], 0.5, weights=[0, 1]).value)  # it never occurs
    assert lyapunov_exponent_1d([1, 3], 0.5, batch_size=2).value == -np.inf  # the mean of both


def test_a_sampled_factor_of_zero_has_no_standard_error():
    estimate = lyapunov_exponent_1d([2, 1], 0.5, batch_size=2, max_terms=1, n_samples=100, rng=0)
    assert not estimate.exact
    assert estimate.value == -np.inf
    assert estimate.stderr == np.inf


def test_a_zero_factor_of_negligible_probability_leaves_no_nan():
    value = lyapunov_exponent_1d([2.0, 1.0], 0.5, weights=[1e-10, 1], batch_size=100).value
    assert value == pytest.approx(np.log(0.5), rel=1e-7)


@given(
    h=st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    lr=st.floats(0.01, 1),
    batch_size=st.integers(1, 4),
    weight_decay=st.floats(0, 1),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_counting_multisets_equals_running_through_all_sequences(h, lr, batch_size, weight_decay, data):
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=len(h), max_size=len(h)))
    shares = np.array(weights) / sum(weights)
    sequences = np.array(list(itertools.product(range(len(h)), repeat=batch_size)))
    factors = np.abs(1 - lr * weight_decay - lr * np.array(h)[sequences].mean(1))
    if factors.min() < 1e-6:  # where rounding decides the value of the logarithm
        return
    expected = shares[sequences].prod(1) @ np.log(factors)
    value = lyapunov_exponent_1d(h, lr, weights=weights, batch_size=batch_size, weight_decay=weight_decay).value
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("batch_size", "n_points"), [(3, 6), (6, 3)])
def test_sampling_agrees_with_enumeration_within_its_standard_error(batch_size, n_points):
    rng = np.random.default_rng(1)
    h, weights, lr = rng.normal(0.5, 2, n_points), rng.random(n_points), [0.1, 0.3, 0.6]
    exact = lyapunov_exponent_1d(h, lr, weights=weights, batch_size=batch_size)
    sampled = lyapunov_exponent_1d(h, lr, weights=weights, batch_size=batch_size, max_terms=1, rng=2)
    assert exact.exact
    assert not sampled.exact
    # Four standard errors: one chance in 10^4. The scatter over 40 repetitions must be that error too, within 45 %.
    assert (np.abs(sampled.value - exact.value) < 4 * sampled.stderr).all()
    few = [
        lyapunov_exponent_1d(h, lr, weights=weights, batch_size=batch_size, max_terms=1, n_samples=2000, rng=seed)
        for seed in range(40)
    ]
    scatter = np.std([estimate.value for estimate in few], axis=0, ddof=1)
    np.testing.assert_allclose(scatter, np.mean([estimate.stderr for estimate in few], axis=0), rtol=0.45)


def test_enumeration_stops_at_the_number_of_multisets():
    h = [0.1, 0.2, 0.3]  # batches of 4: comb(6, 2) = 15 multisets
    assert lyapunov_exponent_1d(h, 0.1, batch_size=4, max_terms=15).exact
    assert not lyapunov_exponent_1d(h, 0.1, batch_size=4, max_terms=14, n_samples=10, rng=0).exact
    assert lyapunov_exponent_1d(np.linspace(0, 1, 1000), 0.1, max_terms=1).exact  # one sample per step


def test_sampled_exponents_depend_on_the_seed_alone():
    h = np.random.default_rng(0).normal(size=50)
    first, again, other = (lyapunov_exponent_1d(h, [0.1, 0.2], batch_size=30, rng=rng).value for rng in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    generator = np.random.default_rng(1)
    np.testing.assert_array_equal(lyapunov_exponent_1d(h, [0.1, 0.2], batch_size=30, rng=generator).value, first)


def test_weights_are_repetitions_and_their_scale_is_free():
    repeated = lyapunov_exponent_1d([1, 1, 1, -2], [0.1, 0.7], batch_size=3).value
    np.testing.assert_allclose(
        lyapunov_exponent_1d([1, -2], [0.1, 0.7], weights=[3, 1], batch_size=3).value, repeated, rtol=1e-13
    )
    for weights in ([3e300, 1e300], [3e-300, 1e-300], [1.5e308, 5e307]):
        np.testing.assert_allclose(
            lyapunov_exponent_1d([1, -2], [0.1, 0.7], weights=weights, batch_size=3).value, repeated, rtol=1e-13
        )


def test_small_learning_rates_have_the_gradient_descent_limit_and_its_noise_correction():
    h, lr = np.array([-2.0, 1.6, 0.1]), 1e-4
    second = (h.mean() ** 2 + h.var() / 2) / 2
    value = lyapunov_exponent_1d(h, lr, batch_size=2).value
    # The next order is lr^3 times a third moment of about 3; the correction itself is 1e-8.
    assert value == pytest.approx(-lr * h.mean() - lr**2 * second, abs=3e-12)
    assert lyapunov_exponent_1d([3.0], 1e-300).value == pytest.approx(-3e-300, rel=1e-12)


def test_large_batches_tend_to_gradient_descent():
    values = [lyapunov_exponent_1d([-2, 1.6], 0.4, weights=[0.6, 0.4], batch_size=s).value for s in (10, 1000, 99_999)]
    distance = np.log(1 + 0.4 * 0.56) - np.array(values)
    assert (np.diff(distance) < 0).all()
    assert distance[-1] == pytest.approx(0.4**2 * 0.6 * 0.4 * 3.6**2 / (2 * 1.224**2 * 99_999), rel=1e-3)


def test_the_estimate_has_the_shape_of_the_learning_rates():
    lr = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    grid = lyapunov_exponent_1d([1, -2], lr)
    assert grid.value.shape == grid.stderr.shape == (2, 3)
    assert grid.value[1, 0] == lyapunov_exponent_1d([1, -2], 0.4).value
    assert lyapunov_exponent_1d([1, -2], 0.4).value.shape == ()
    assert lyapunov_exponent_1d([1, -2], []).value.shape == (0,)


def test_many_learning_rates_and_many_batches_are_computed_in_pieces_with_the_same_result():
    h = np.linspace(-1, 2, 440)  # 97 020 multisets of two: ten learning rates per piece
    lr = np.linspace(0.1, 1, 25)
    whole = lyapunov_exponent_1d(h, lr, batch_size=2).value
    parts = [lyapunov_exponent_1d(h, rate, batch_size=2).value for rate in lr[::8]]
    np.testing.assert_allclose(whole[::8], parts, rtol=1e-11, atol=1e-13)


def test_tensors_are_arrays():
    value = lyapunov_exponent_1d(torch.tensor([-2.0, 1.6]), torch.tensor([0.1]), weights=torch.tensor([0.6, 0.4])).value
    assert value == pytest.approx([0.0396516], abs=1e-6)  # float32 input


# Gaussian curvature


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1, 0.2, -0.0214106945),
        (1, 0.5, -0.1727953195),
        (0.3, 1, -0.5908484002),
        (0, 2, 0.0579657578),
        (-2, 0.7, 0.6126714697),
    ],
)
def test_gaussian_factors_have_the_known_mean_log(a, b, expected):
    assert gaussian_lyapunov_exponent(1 - a, b, 1.0) == pytest.approx(expected, abs=TEN_DIGITS)
    assert gaussian_lyapunov_exponent((1 - a) / 0.1, b / 0.1, 0.1) == pytest.approx(expected, abs=TEN_DIGITS)


@pytest.mark.parametrize(
    ("c", "expected"), [(0, -0.635181), (0.3, -0.590848), (1, -0.208496), (2.5, 0.805243), (6, 1.777228)]
)
def test_the_mean_log_distance_of_a_gaussian_from_a_point_is_known(c, expected):
    assert gaussian_lyapunov_exponent(1 - c, 1.0, 1.0) == pytest.approx(expected, abs=6e-7)


def test_a_noisy_saddle_with_weight_decay_has_the_known_exponent():
    assert gaussian_lyapunov_exponent(-0.5, 2, 0.3, weight_decay=0.2) == pytest.approx(-0.1123919, abs=SEVEN_DIGITS)


def test_least_squares_with_a_gaussian_input_has_the_known_exponents_and_critical_step():
    # log|1 - a x^2| = log a + log|x - c| + log|x + c| with c = 1 / sqrt(a).
    def exponent(a):
        return np.log(a) + 2 * gaussian_lyapunov_exponent(1 - a**-0.5, 1.0, 1.0)

    known = [-0.394617, -0.416992, -0.116247, 0.143859]
    np.testing.assert_allclose([exponent(a) for a in (0.3, 1, 2, 3)], known, atol=6e-7)
    assert brentq(exponent, 2, 3) == pytest.approx(2.42125, abs=6e-6)


@pytest.mark.parametrize("ratio", [0.0, 1e-9, 0.1, 1.0, 5.0, 20.0, 39.999, 40.0, 40.001, 1e3, 1e8, 1e200])
def test_the_gaussian_formula_equals_its_integral_on_both_branches(ratio):
    value = gaussian_lyapunov_exponent(1 - ratio, 1.0, 1.0)

    def density(z):
        return np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)

    ratio = 1 - (1 - ratio)  # what the subtraction has left of it
    if ratio < 12:
        integral = quad(
            lambda z: density(z) * np.log(abs(ratio + z)), -12, 12, points=[-ratio], epsabs=1e-12, limit=500
        )
        expected = integral[0]
    else:
        integral = quad(lambda z: density(z) * np.log1p(z / ratio), -12, 12, epsabs=1e-15)
        expected = np.log(ratio) + integral[0]
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-11)


def test_the_two_branches_of_the_gaussian_formula_meet():
    below, above = (gaussian_lyapunov_exponent(1 - r, 1.0, 1.0) for r in (40 * (1 - 1e-13), 40 * (1 + 1e-13)))
    # The slope accounts for 2e-13 of the step.
    assert above - below == pytest.approx(2e-13, abs=1e-13)


def test_curvature_without_noise_has_the_exponent_of_gradient_descent():
    value = gaussian_lyapunov_exponent([-1.0, 0.5, 10.0, 30.0], 0, 0.1, weight_decay=0.5)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(value, np.log(np.abs([1.05, 0.9, -0.05, -2.05])), rtol=1e-12)
    assert gaussian_lyapunov_exponent(10.0, 0.0, 0.1) == -np.inf
    assert gaussian_lyapunov_exponent(3.0, 0.0, 1e-300) == pytest.approx(-3e-300, rel=1e-12)
    assert gaussian_lyapunov_exponent(3.0, 1e-300, 1e-100) == pytest.approx(-3e-100, rel=1e-12)


@given(mean=st.floats(-5, 5), std=st.floats(0.01, 5), lr=st.floats(0.01, 1))
@settings(max_examples=50, deadline=None)
def test_only_the_product_of_step_and_curvature_counts(mean, std, lr):
    value = gaussian_lyapunov_exponent(mean, std, lr)
    assert gaussian_lyapunov_exponent(2 * mean, 2 * std, lr / 2) == pytest.approx(value, rel=1e-10, abs=1e-12)
    assert gaussian_lyapunov_exponent(mean + 1, std, lr) == pytest.approx(
        gaussian_lyapunov_exponent(mean, std, lr, weight_decay=1), rel=1e-8, abs=1e-10
    )
    # Mirror: the factor 1 - lr h and its negative have the same modulus.
    assert gaussian_lyapunov_exponent(2 / lr - mean, std, lr) == pytest.approx(value, rel=1e-8, abs=1e-10)


def test_gaussian_arguments_broadcast():
    grid = gaussian_lyapunov_exponent(np.zeros((3, 1)), [0.5, 1.0], 0.1, weight_decay=np.full((2, 1, 1), 0.2))
    assert grid.shape == (2, 3, 2)
    assert grid[1, 2, 1] == gaussian_lyapunov_exponent(0, 1.0, 0.1, weight_decay=0.2)
    assert isinstance(gaussian_lyapunov_exponent(0, 1, 0.1), float)


def test_the_gaussian_formula_agrees_with_the_enumeration_of_a_fine_law():
    h = np.linspace(-8, 8, 20_001)
    weights = np.exp(-(h**2) / 2)
    value = lyapunov_exponent_1d(0.3 + 2 * h, 0.2, weights=weights).value
    # The grid misses the logarithmic singularity by about its spacing times its weight: 1e-3 times 0.01.
    assert value == pytest.approx(gaussian_lyapunov_exponent(0.3, 2, 0.2), abs=2e-5)


# Matrices


def test_commuting_diagonal_matrices_have_the_mean_logs_of_their_entries():
    spectrum = matrix_lyapunov_exponents([np.diag([2, 0.5]), np.diag([0.5, 3])])
    np.testing.assert_allclose(spectrum.exponents, [0.2027326, 0], atol=SEVEN_DIGITS)
    assert spectrum.n_steps == 2
    rng = np.random.default_rng(0)
    entries = rng.normal(size=(10, 40, 3)) * [1, 5, 0.3]
    chains = matrix_lyapunov_exponents(entries[..., None] * np.eye(3))
    logs = np.log(np.abs(entries)).mean(1)[:, [1, 0, 2]]
    np.testing.assert_allclose(chains.exponents, logs.mean(0), rtol=1e-12)
    np.testing.assert_allclose(chains.stderr, logs.std(0, ddof=1) / np.sqrt(10), rtol=1e-12)


def test_scalars_have_the_mean_log_as_their_exponent():
    factors = np.random.default_rng(0).normal(size=(500, 1, 1))
    spectrum = matrix_lyapunov_exponents(factors, burn_in=100)
    assert spectrum.exponents == pytest.approx([np.log(np.abs(factors[100:])).mean()], rel=1e-12)
    assert spectrum.n_steps == 400


def test_repeated_factors_have_the_logs_of_their_eigenvalues():
    shear = matrix_lyapunov_exponents([[[2, 1], [0, 0.5]]] * 50)
    np.testing.assert_allclose(shear.exponents, [np.log(2), -np.log(2)], rtol=1e-14)
    turning = matrix_lyapunov_exponents([1.1 * rotation(0.7)] * 50)
    np.testing.assert_allclose(turning.exponents, np.log(1.1), rtol=1e-13)


def test_isotropic_least_squares_has_the_known_spectrum():
    factors = isotropic_factors(0.5, 3, 32, 2200, np.random.default_rng(0))
    spectrum = matrix_lyapunov_exponents(factors, burn_in=200)
    exact = np.array([-0.0536, -0.1570, -0.4257])
    np.testing.assert_allclose(spectrum.stderr, [0.0016, 0.0022, 0.0034], atol=1e-4)
    assert (np.abs(spectrum.exponents - exact) < 3.5 * spectrum.stderr).all()
    assert spectrum.n_steps == 64_000
    assert (np.abs(matrix_lyapunov_exponents(factors, 1, burn_in=200).exponents - exact[0]) < 0.006).all()


@pytest.mark.parametrize(
    ("dimension", "lr", "exact", "k"), [(3, 0.9, [0.1806, 0.0170, -0.1978], 3), (10, 0.1, [-0.0462], 1)]
)
def test_isotropic_least_squares_has_the_known_exponents_elsewhere(dimension, lr, exact, k):
    factors = isotropic_factors(lr, dimension, 10, 600, np.random.default_rng(3))
    spectrum = matrix_lyapunov_exponents(factors, k, burn_in=100)
    assert (np.abs(spectrum.exponents - exact) < 4.5 * spectrum.stderr).all()  # ten chains: Student, nine degrees
    assert (spectrum.stderr < 0.015).all()


def test_the_exponents_sum_to_the_mean_log_determinant():
    factors = np.random.default_rng(0).normal(size=(3, 60, 4, 4))
    spectrum = matrix_lyapunov_exponents(factors, burn_in=10)
    expected = np.linalg.slogdet(factors[:, 10:])[1].mean()
    assert spectrum.exponents.sum() == pytest.approx(expected, rel=1e-12)


def test_fewer_exponents_are_the_head_of_more():
    factors = np.random.default_rng(0).normal(size=(200, 5, 5))
    full = matrix_lyapunov_exponents(factors, burn_in=20)
    for k in (1, 2, 4):
        part = matrix_lyapunov_exponents(factors, k, burn_in=20)
        np.testing.assert_allclose(part.exponents, full.exponents[:k], rtol=1e-11)
        np.testing.assert_allclose(part.stderr, full.stderr[:k], rtol=1e-9)
    assert (np.diff(full.exponents) < 0).all()


def test_standard_errors_over_chains_and_over_time_both_measure_the_scatter():
    rng = np.random.default_rng(0)
    repeats = [isotropic_factors(0.5, 2, 8, 400, rng) for _ in range(30)]
    over_chains = [matrix_lyapunov_exponents(factors, burn_in=40) for factors in repeats]
    over_time = [matrix_lyapunov_exponents(factors[:4], burn_in=40) for factors in repeats]
    for spectra in (over_chains, over_time):
        scatter = np.std([spectrum.exponents for spectrum in spectra], axis=0, ddof=1)
        typical = np.mean([spectrum.stderr for spectrum in spectra], axis=0)
        np.testing.assert_allclose(typical, scatter, rtol=0.4)  # 30 repeats: scatter known within 13 %


def test_time_blocks_give_the_standard_error_of_one_chain():
    factors = np.exp(np.random.default_rng(0).normal(size=(103, 1, 1)))
    blocks = np.log(factors).ravel()[:100].reshape(20, 5).mean(1)
    spectrum = matrix_lyapunov_exponents(factors)
    assert spectrum.stderr == pytest.approx([blocks.std(ddof=1) / np.sqrt(20)], rel=1e-12)
    assert spectrum.exponents == pytest.approx([np.log(factors).mean()], rel=1e-12)  # the rest still counts here


def test_one_step_has_no_standard_error_unless_there_are_chains():
    factors = np.random.default_rng(0).normal(size=(8, 1, 2, 2))
    assert (matrix_lyapunov_exponents(factors[:7]).stderr == np.inf).all()
    assert np.isfinite(matrix_lyapunov_exponents(factors).stderr).all()


def test_singular_factors_remove_directions_and_leave_the_others():
    # A projection onto a line in a rotated basis: its second growth is rounding, not zero.
    line = rotation(0.3) @ np.diag([1.0, 0.0]) @ rotation(0.8)
    spectrum = matrix_lyapunov_exponents([rotation(0.1), line, 2 * np.eye(2)])
    assert spectrum.exponents[1] == -np.inf
    assert spectrum.stderr[1] == np.inf
    assert spectrum.exponents[0] == pytest.approx((np.log(2) + np.log(abs(np.cos(0.9)))) / 3, rel=1e-12)
    zero = matrix_lyapunov_exponents(np.zeros((3, 2, 2)))
    assert (zero.exponents == -np.inf).all()


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
def test_the_scale_of_the_factors_only_shifts_the_exponents(scale):
    factors = np.random.default_rng(0).normal(size=(9, 30, 3, 3))
    plain, scaled = matrix_lyapunov_exponents(factors), matrix_lyapunov_exponents(scale * factors)
    np.testing.assert_allclose(scaled.exponents, plain.exponents + np.log(scale), rtol=1e-13)
    np.testing.assert_allclose(scaled.stderr, plain.stderr, rtol=1e-9)


def test_long_products_do_not_over_or_underflow():
    factors = np.tile(np.diag([1e3, 1.0, 1e-3]), (500, 1, 1))
    np.testing.assert_allclose(matrix_lyapunov_exponents(factors).exponents, np.log([1e3, 1, 1e-3]), atol=1e-12)


def test_a_rotated_basis_has_the_same_exponents_after_the_burn_in():
    factors = np.random.default_rng(0).normal(size=(400, 3, 3))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    plain = matrix_lyapunov_exponents(factors, burn_in=200)
    turned = matrix_lyapunov_exponents(turn @ factors @ turn.T, burn_in=200)
    np.testing.assert_allclose(turned.exponents, plain.exponents, rtol=1e-9)


def test_inputs_are_left_alone():
    h, lr, weights = np.array([1.0, -2.0]), np.array([0.1]), np.array([3.0, 1.0])
    factors = np.random.default_rng(0).normal(size=(5, 2, 2))
    copies = [array.copy() for array in (h, lr, weights, factors)]
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    lyapunov_exponent_1d(h, lr, weights=weights, batch_size=2)
    lyapunov_exponent_1d(h, lr, weights=weights, batch_size=2, max_terms=1, n_samples=10)
    matrix_lyapunov_exponents(factors)
    for array, copy in zip((h, lr, weights, factors), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_results_cannot_be_overwritten():
    estimate, spectrum = lyapunov_exponent_1d([1.0], 0.1), matrix_lyapunov_exponents([[[2.0]]])
    assert isinstance(estimate, LyapunovEstimate)
    assert isinstance(spectrum, LyapunovSpectrum)
    with pytest.raises(AttributeError):
        estimate.value = 0
    with pytest.raises(AttributeError):
        spectrum.n_steps = 0


def test_the_module_needs_no_torch():
    code = "import sys, symlearn.lyapunov; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Refusals

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"h": []}, r"h must be one-dimensional and not empty, got shape \(0,\)"),
        ({"h": 1.0}, r"h must be one-dimensional and not empty, got shape \(\)"),
        ({"h": [[1.0]]}, r"h must be one-dimensional and not empty, got shape \(1, 1\)"),
        ({"h": [1.0, NAN]}, "h must be finite, got nan at index 1"),
        ({"h": [INF, 1.0]}, "h must be finite, got inf at index 0"),
        ({"lr": 0.0}, "lr must be > 0, got 0"),
        ({"lr": [0.1, -0.1]}, "lr must be > 0, got -0.1 at index 1"),
        ({"lr": NAN}, "lr must be finite, got nan"),
        ({"lr": INF}, "lr must be finite, got inf"),
        ({"lr": 1e300, "h": [1e300, 1]}, r"lr must be such that lr \* \(h \+ weight_decay\) is finite, got 1e\+300"),
        ({"weights": [1.0]}, r"weights must be of shape \(2,\), got shape \(1,\)"),
        ({"weights": [[1.0, 1.0]]}, r"weights must be of shape \(2,\), got shape \(1, 2\)"),
        ({"weights": [1.0, -1.0]}, "weights must be >= 0, got -1 at index 1"),
        ({"weights": [0.0, 0.0]}, "weights must be of positive sum, got 0"),
        ({"weights": [NAN, 1.0]}, "weights must be finite, got nan at index 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0, got -0.1"),
        ({"weight_decay": NAN}, "weight_decay must be finite, got nan"),
        ({"weight_decay": [0.1, 0.2]}, r"weight_decay must be a single number, got shape \(2,\)"),
        ({"max_terms": 0}, "max_terms must be >= 1, got 0"),
        ({"n_samples": 1}, "n_samples must be >= 2, got 1"),
        ({"rng": -1}, "rng must be >= 0, got -1"),
    ],
)
def test_bad_one_dimensional_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        lyapunov_exponent_1d(**{"h": [1.0, -2.0], "lr": 0.1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"h": ["a"]}, "h must be real numbers, got list"),
        ({"h": [1j]}, "h must be real numbers, got list"),
        ({"h": [[1.0], [1.0, 2.0]]}, "h must be an array of real numbers, got list"),
        ({"h": None}, "h must be real numbers, got NoneType"),
        ({"lr": "fast"}, "lr must be real numbers, got str"),
        ({"lr": True}, "lr must be real numbers, got bool"),
        ({"weights": "uniform"}, "weights must be real numbers, got str"),
        ({"batch_size": 2.0}, "batch_size must be an integer, got float"),
        ({"batch_size": True}, "batch_size must be an integer, got bool"),
        ({"weight_decay": None}, "weight_decay must be real numbers, got NoneType"),
        ({"max_terms": 1e5}, "max_terms must be an integer, got float"),
        ({"n_samples": "many"}, "n_samples must be an integer, got str"),
        ({"rng": 0.5}, "rng must be an int, a numpy Generator or None, got float"),
    ],
)
def test_one_dimensional_arguments_of_a_wrong_type_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        lyapunov_exponent_1d(**{"h": [1.0, -2.0], "lr": 0.1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"std": -0.1}, "std must be >= 0, got -0.1"),
        ({"std": NAN}, "std must be finite, got nan"),
        ({"mean": INF}, "mean must be finite, got inf"),
        ({"lr": 0}, "lr must be > 0, got 0"),
        ({"lr": [0.1, NAN]}, "lr must be finite, got nan at index 1"),
        ({"weight_decay": -1}, "weight_decay must be >= 0, got -1"),
        (
            {"mean": [1, 2], "std": [1, 2, 3]},
            r"mean, std, lr, weight_decay must be of shapes that broadcast, got shapes \(2,\), \(3,\)",
        ),
        ({"mean": 1e300, "lr": 1e300}, r"lr must be such that lr \* \(mean \+ weight_decay\) and lr \* std are finite"),
        ({"std": 1e300, "lr": 1e300}, r"lr must be such that lr \* \(mean \+ weight_decay\) and lr \* std are finite"),
    ],
)
def test_bad_gaussian_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        gaussian_lyapunov_exponent(**{"mean": 0.5, "std": 1.0, "lr": 0.1, **arguments})


@pytest.mark.parametrize(
    ("matrices", "arguments", "message"),
    [
        (np.eye(2), {}, r"matrices must be of shape \(T, n, n\) or \(C, T, n, n\), got shape \(2, 2\)"),
        (np.zeros((1, 1, 1, 2, 2)), {}, r"matrices must be of shape \(T, n, n\) or \(C, T, n, n\), got shape"),
        (np.zeros((5, 2, 3)), {}, r"matrices must be square matrices, at least one, got shape \(5, 2, 3\)"),
        (np.zeros((0, 2, 2)), {}, r"matrices must be square matrices, at least one, got shape \(0, 2, 2\)"),
        (np.zeros((2, 0, 2, 2)), {}, r"matrices must be square matrices, at least one, got shape \(2, 0, 2, 2\)"),
        (np.full((5, 2, 2), NAN), {}, r"matrices must be finite, got nan at index \(0, 0, 0\)"),
        (np.ones((5, 2, 2)), {"k": 0}, "k must be between 1 and 2, got 0"),
        (np.ones((5, 2, 2)), {"k": 3}, "k must be between 1 and 2, got 3"),
        (np.ones((5, 2, 2)), {"burn_in": -1}, "burn_in must be between 0 and 4, got -1"),
        (np.ones((5, 2, 2)), {"burn_in": 5}, "burn_in must be between 0 and 4, got 5"),
    ],
)
def test_bad_matrices_are_refused(matrices, arguments, message):
    with pytest.raises(ValueError, match=message):
        matrix_lyapunov_exponents(matrices, **arguments)


@pytest.mark.parametrize(
    ("matrices", "arguments", "message"),
    [
        ("identity", {}, "matrices must be real numbers, got str"),
        (np.ones((5, 2, 2), dtype=complex), {}, "matrices must be real numbers, got dtype complex128"),
        ([np.eye(2), np.eye(3)], {}, "matrices must be an array of real numbers, got list"),
        (np.ones((5, 2, 2)), {"k": 1.0}, "k must be an integer, got float"),
        (np.ones((5, 2, 2)), {"burn_in": "long"}, "burn_in must be an integer, got str"),
    ],
)
def test_matrices_of_a_wrong_type_are_refused(matrices, arguments, message):
    with pytest.raises(TypeError, match=message):
        matrix_lyapunov_exponents(matrices, **arguments)
