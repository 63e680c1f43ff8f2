"""Tests of the ridge theory: known numbers, limits, invariances, simulation, and refusals."""

import pickle
import subprocess
import sys
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

from symlearn.anisotropic_ridge import (
    RidgeTheory,
    gap_density,
    jump_density,
    ridge_spectrum,
    sklearn_alpha,
    stage_risk,
)

FIELDS = ("test", "train", "bias", "variance", "df1", "df2", "kappa")
# What a published digit string can promise: half a unit of its last digit.
SIX_DIGITS, TEN_DIGITS = 2e-5, 2e-9


@pytest.fixture(scope="module")
def three_scales():
    return RidgeTheory([1, 0.1, 0.01], [0.5, 0.3, 0.2], 0.25, [40, 120, 240])


@pytest.fixture(scope="module")
def power_law():
    index = np.arange(1.0, 301)
    return RidgeTheory(index**-1.5, index**-2, 0.05)


@pytest.fixture(scope="module")
def descent():
    return RidgeTheory([1, 1e-2, 1e-4], [0.6, 0.3, 0.1], 1e-3, [50, 150, 400])


@pytest.fixture(scope="module")
def aligned():
    return RidgeTheory([1, 0.05], [0.98, 0.02], 0.0, [20, 380])


def two_scales(ratio, n_features=1.0):
    return RidgeTheory([1, ratio], [0.5, 0.5], 0.01, np.array([0.2, 0.8]) * n_features)


def local_minima(values):
    inner = values[1:-1]
    return 1 + np.flatnonzero((inner < values[:-2]) & (inner < values[2:]))


# Known numbers


@pytest.mark.parametrize(
    ("n_samples", "ridge", "kappa", "test", "train", "bias", "variance", "df1"),
    [
        (60, 0.05, 0.465582, 1.11210, 0.012826, 0.44543, 0.41667, 53.556),
        (200, 0.02, 0.067122, 0.76670, 0.068069, 0.20187, 0.31483, 140.407),
        (200, 0.001, 0.029129, 1.00953, 0.001190, 0.12650, 0.63303, 193.134),
        (200, 0, 0.026339, 1.07304, 0, 0.11844, 0.70460, 200),
        (200, -0.001, 0.023262, 1.17387, 0.002169, 0.10876, 0.81510, 208.598),
        (600, 0.01, 0.016370, 0.45620, 0.170229, 0.08314, 0.12306, 233.486),
        (600, 0, 0, 0.75, 0.083333, 0, 0.5, 400),
        (600, -0.0004, -0.001563, 1.5588, 0.10213, 0.00694, 1.302, 446.42),
        (400, 0.003, 0.009433, 0.60795, 0.061493, 0.04940, 0.30856, 272.785),
    ],
)
def test_three_scales_have_the_known_errors(three_scales, n_samples, ridge, kappa, test, train, bias, variance, df1):
    risk = three_scales.risk(n_samples, ridge)
    # Absolute terms: half a unit of the last printed digit.
    assert risk.kappa == pytest.approx(kappa, abs=6e-7)
    assert risk.test == pytest.approx(test, rel=3e-5)
    assert risk.train == pytest.approx(train, rel=3e-5, abs=6e-7)
    assert risk.bias == pytest.approx(bias, abs=6e-6)
    assert risk.variance == pytest.approx(variance, rel=2e-4, abs=6e-6)
    assert risk.df1 == pytest.approx(df1, rel=SIX_DIGITS)


@pytest.mark.parametrize(
    ("n_samples", "ridge", "kappa", "df1", "df2", "bias", "test", "train"),
    [
        (50, 0, 0.006807215096, 50, 21.82825921, 0.02569623687, 0.1343478158, 0),
        (50, 1e-3, 0.008486370688, 44.10819986, 18.80125108, 0.03026453286, 0.1286342172, 0.001786127725),
        (200, 1e-4, 0.0005600408791, 164.2883212, 105.5696685, 0.002841577771, 0.1119165356, 0.003568246107),
        (500, 0, 0, 300, 300, 0, 0.125, 0.02),
        (500, 1e-3, 0.001304250208, 116.6379758, 64.24947056, 0.00663967197, 0.06499093879, 0.03820594804),
    ],
)
def test_a_power_law_has_the_known_errors(power_law, n_samples, ridge, kappa, df1, df2, bias, test, train):
    risk = power_law.risk(n_samples, ridge)
    expected = {"kappa": kappa, "df1": df1, "df2": df2, "bias": bias, "test": test, "train": train}
    for name, value in expected.items():
        assert getattr(risk, name) == pytest.approx(value, rel=TEN_DIGITS), name


def test_the_optimal_ridge_of_a_power_law_is_known(power_law):
    expected = [0.0028061569, 0.0016008233, 0.0008599992]
    np.testing.assert_allclose(power_law.optimal_ridge([50, 200, 500]), expected, rtol=1e-7)


def test_the_lowest_ridge_is_known_and_zero_at_the_interpolation_threshold(three_scales):
    expected = [-0.097539, -0.003436, -0.000487, 0]
    np.testing.assert_allclose(three_scales.min_ridge([60, 200, 600, 400]), expected, atol=6e-7)
    assert three_scales.min_ridge(400) == 0


def test_an_aligned_noiseless_target_is_best_learned_with_a_negative_ridge(aligned):
    best = aligned.optimal_ridge([40, 100, 150, 200])
    np.testing.assert_allclose(best, [-0.24253, -0.0415309, -0.0131290, -0.0040941], rtol=2e-5)
    curve = aligned.learning_curve([40, 100], "optimal").test
    np.testing.assert_allclose(curve, [0.127400, 0.0408623], rtol=SIX_DIGITS)
    np.testing.assert_allclose(aligned.risk([40, 100], 0).test, [0.216277, 0.0515326], rtol=SIX_DIGITS)


def test_three_separated_scales_give_three_descents(descent):
    n_samples = np.arange(1, 900)
    errors = descent.risk(n_samples, 1e-8).test
    peaks, valleys = local_minima(-errors), local_minima(errors)
    assert n_samples[peaks].tolist() == [50, 182, 600]
    assert n_samples[valleys].tolist()[:3] == [13, 160, 563]
    np.testing.assert_allclose(errors[peaks], [1.36996, 0.50235, 0.06278], atol=6e-6)
    known = [0.657071548674, 0.101182816835, 0.003993658935]
    np.testing.assert_allclose(descent.risk([100, 400, 800], 1e-8).test, known, rtol=1e-9)


def test_the_optimal_ridge_jumps_from_scale_to_scale_and_its_curve_has_no_peak(descent):
    best = descent.optimal_ridge([25, 50, 100, 150, 200, 300, 400, 600])
    expected = [1.24031, 0.602620, 0.254435, 3.15951e-3, 2.16977e-3, 1.90129e-5, 1.40046e-6, 6.70036e-7]
    np.testing.assert_allclose(best, expected, rtol=SIX_DIGITS)
    curve = descent.learning_curve(np.geomspace(5, 2000, 300), "optimal").test
    assert (np.diff(curve) < 0).all()


def test_a_gap_opens_at_the_known_density():
    transition = gap_density(0.05, 0.3)
    assert transition == pytest.approx(0.5461792676, rel=TEN_DIGITS)
    assert len(ridge_spectrum([1, 0.05], 0.999 * transition, [0.3, 0.7]).edges) == 1
    above = ridge_spectrum([1, 0.05], 1.001 * transition, [0.3, 0.7]).edges
    np.testing.assert_allclose(above, [[0.0100001, 0.1481682], [0.1481766, 3.0961467]], atol=6e-8)


@given(ratio=st.floats(1e-6, 0.9), fraction=st.floats(0.01, 0.99))
@settings(max_examples=50, deadline=None)
def test_a_gap_exists_exactly_above_the_gap_density(ratio, fraction):
    transition = gap_density(ratio, fraction)
    bands = [
        len(ridge_spectrum([1, ratio], n, [fraction, 1 - fraction]).edges)
        for n in (transition * (1 - 1e-6), transition * (1 + 1e-6))
    ]
    assert bands == [1, 2]


def test_the_gap_density_tends_to_the_fraction_of_strong_directions():
    assert gap_density(0, 0.3) == pytest.approx(0.3, rel=1e-15)
    # The correction is 3 f**(2/3) (1 - f)**(1/3) ratio**(2/3), 1.2e-6 here.
    correction = 3 * 0.3 ** (2 / 3) * 0.7 ** (1 / 3) * 1e-6
    assert gap_density(1e-9, 0.3) - 0.3 == pytest.approx(correction, rel=1e-2)


def test_band_edges_are_known():
    edges = ridge_spectrum([1, 0.05], 900, [180, 420]).edges
    np.testing.assert_allclose(edges, [[0.0022044, 0.1227081], [0.3312289, 2.1185955]], atol=6e-8)
    np.testing.assert_allclose(ridge_spectrum([1, 0.05], 300, [180, 420]).edges, [[0.0141961, 3.2212225]], atol=6e-8)


def test_stage_energies_are_known_and_equal_the_minima_of_the_full_theory():
    known = [[0.687403, 0.547021], [0.607784, 0.094859]]
    energies = stage_risk([0.5, 1.0], [0.2, 0.8], [0.5, 0.5], 0.01)
    np.testing.assert_allclose(energies, known, atol=6e-7)
    ridges = np.geomspace(1e-12, 1e3, 6001)
    for density, stages in zip((0.5, 1.0), energies, strict=True):
        errors = two_scales(1e-7).risk(density, ridges).test
        minima = np.sort(errors[local_minima(errors)])
        # The grid of 400 ridges per decade misses a minimum by 1e-6 at most; finite separation costs as much.
        np.testing.assert_allclose(minima, np.sort(stages), rtol=3e-6)


def test_stage_energies_have_their_limits():
    energies = stage_risk([0.1, 0.2, 1e9], [0.2, 0.8], [0.5, 0.5], 0.01)
    assert np.isinf(energies[:2, 1]).all()  # the second scale waits until the first is learned
    np.testing.assert_allclose(energies[2], [0.51, 0.01], rtol=1e-6)  # many samples: only what a stage does not learn
    # A scale without signal leaves a pure variance: alpha/(alpha - F) times the noise.
    assert stage_risk(1.0, [0.2, 0.8], [0.5, 0], 0.01)[1] == pytest.approx(0.01 / 0.8, rel=1e-14)
    # Without noise one scale is learned exactly once there are as many samples as features.
    np.testing.assert_allclose(stage_risk([0.5, 1, 2], [1.0], [1.0])[:, 0], [0.5, 0, 0], atol=1e-15)


def test_jumps_are_at_the_known_density():
    assert jump_density([0.2, 0.8], [0.5, 0.5], 0.01) == pytest.approx([0.422595], abs=6e-7)
    assert jump_density([1.0], [1.0]).shape == (0,)
    assert np.isinf(jump_density([0.2, 0.8], [0.5, 0.0], 0.01)).all()


def test_stages_cross_at_every_jump():
    fractions, signal = [0.1, 0.3, 0.6], [0.5, 0.3, 0.2]
    jumps = jump_density(fractions, signal, 1e-3)
    energies = stage_risk(jumps, fractions, signal, 1e-3)
    np.testing.assert_allclose(energies[[0, 1], [0, 1]], energies[[0, 1], [1, 2]], rtol=1e-10)


@pytest.mark.parametrize(("ratio", "jump", "precision"), [(1e-3, 0.4222, 1e-3), (1e-2, 0.409962, 1e-6)])
def test_the_optimal_ridge_jumps_where_two_minima_are_equal(ratio, jump, precision):
    below, above = two_scales(ratio).optimal_ridge([jump - precision, jump + precision])
    assert below > 50 * above


def test_at_the_jump_two_minima_are_equal_and_far_apart():
    theory = two_scales(1e-2, 500)
    ridges = np.geomspace(1e-4, 10, 4001)
    errors = theory.risk(204.981, ridges).test
    minima, barrier = local_minima(errors), local_minima(-errors)
    np.testing.assert_allclose(ridges[minima], [0.001752, 0.376277], rtol=3e-3)
    np.testing.assert_allclose(errors[minima], 0.697206, atol=2e-6)
    assert errors[barrier] == pytest.approx(0.736885, abs=2e-6)
    assert ridges[barrier] == pytest.approx(0.0477, rel=3e-3)


def test_two_minima_end_between_ratios_of_2_and_3_percent():
    ridges, densities = np.geomspace(1e-4, 10, 800), np.linspace(0.3, 0.6, 301)

    def coexist(ratio):
        errors = two_scales(ratio).risk(densities[:, None], ridges).test
        return any(len(local_minima(row)) == 2 for row in errors)

    assert coexist(0.02)
    assert not coexist(0.03)


def test_alignment_with_strong_directions_cuts_the_sample_complexity():
    n_samples = np.arange(1, 600)

    def needed(eigenvalues, signal, multiplicities):
        theory = RidgeTheory(eigenvalues, signal, 0.01, multiplicities)
        return n_samples[theory.learning_curve(n_samples, "optimal").test <= 0.1][0]

    # The known numbers were read off a grid with 2 % steps.
    for signal, expected in (((0.98, 0.02), 69), ((0.5, 0.5), 479), ((0.02, 0.98), 516)):
        assert needed([1, 0.01], signal, [50, 450]) == pytest.approx(expected, rel=0.02)
    assert needed([1], [1], [500]) == pytest.approx(506, rel=0.02)


# Against simulation


def simulated(theory, n_samples, ridge, n_sets, seed):
    """Test and train errors of direct solves, one line of algebra each and nothing of the library."""
    rng = np.random.default_rng(seed)
    counts = theory.multiplicities.astype(int)
    eigenvalues = np.repeat(theory.eigenvalues, counts)
    weights = np.repeat(np.sqrt(theory.signal / counts / theory.eigenvalues), counts)
    errors = np.empty((n_sets, 2))
    for row in errors:
        x = rng.standard_normal((n_samples, eigenvalues.size)) * np.sqrt(eigenvalues)
        y = x @ weights + np.sqrt(theory.noise_variance) * rng.standard_normal(n_samples)
        if n_samples < eigenvalues.size:
            fit = x.T @ np.linalg.solve(x @ x.T + n_samples * ridge * np.eye(n_samples), y)
        else:
            fit = np.linalg.solve(x.T @ x + n_samples * ridge * np.eye(eigenvalues.size), x.T @ y)
        row[:] = eigenvalues @ (fit - weights) ** 2 + theory.noise_variance, np.mean((y - x @ fit) ** 2)
    return errors.mean(0), errors.std(0, ddof=1) / np.sqrt(n_sets)


@pytest.mark.parametrize(("n_samples", "ridge"), [(200, 0.02), (600, 0.01), (200, -0.001)])
def test_simulated_fits_have_the_predicted_errors(three_scales, n_samples, ridge):
    mean, error = simulated(three_scales, n_samples, ridge, 60, 1)
    risk = three_scales.risk(n_samples, ridge)
    predicted = np.array([risk.test, risk.train])
    # Four standard errors, and the finite size: relative corrections of order 1/40, the smallest multiplicity.
    assert (np.abs(mean - predicted) < 4 * error + 0.02 * predicted).all()


def test_the_library_simulates_what_it_predicts(three_scales):
    ridges = np.array([[0.001, 0.02], [0.1, -0.001]])
    fits, risk = three_scales.simulate(200, ridges, n_sets=40, rng=0), three_scales.risk(200, ridges)
    for name in ("test", "train"):
        runs = getattr(fits, name)
        assert runs.shape == (40, 2, 2)
        predicted, error = getattr(risk, name), runs.std(0, ddof=1) / np.sqrt(40)
        assert (np.abs(runs.mean(0) - predicted) < 4 * error + 0.02 * predicted).all()


def test_simulated_fits_are_those_of_scikit_learn():
    theory = RidgeTheory([1.0, 0.1], [0.5, 0.5], 0.1, [5, 10])
    train = theory.simulate(30, 0.05, n_sets=1, rng=3).train
    rng = np.random.default_rng(3)
    eigenvalues = np.repeat([1.0, 0.1], [5, 10])
    weights = np.sqrt(np.repeat([0.1, 0.05], [5, 10]) / eigenvalues)
    x = rng.standard_normal((30, 15)) * np.sqrt(eigenvalues)
    y = x @ weights + np.sqrt(0.1) * rng.standard_normal(30)
    fit = Ridge(alpha=float(sklearn_alpha(0.05, 30)), fit_intercept=False).fit(x, y)
    assert train[0] == pytest.approx(np.mean((y - fit.predict(x)) ** 2), rel=1e-10)


def test_simulation_leaves_the_global_random_state_alone_and_repeats(three_scales):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (three_scales.simulate(20, 0.1, n_sets=2, rng=5).test for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(("n_samples", "counts"), [(900, [420, 180]), (300, None)])
def test_eigenvalues_of_a_sample_lie_in_the_bands(n_samples, counts):
    rng = np.random.default_rng(0)
    scales = np.sqrt(np.repeat([1, 0.05], [180, 420]))
    x = rng.standard_normal((n_samples, 600)) * scales
    measured = np.linalg.eigvalsh(x.T @ x / n_samples)
    spectrum = ridge_spectrum([1, 0.05], n_samples, [180, 420])
    # Edges fluctuate by N**(-2/3) of the width of a band.
    margin = 3 * n_samples ** (-2 / 3) * np.diff(spectrum.edges, axis=1)[:, 0]
    inside = [
        ((measured > max(low - slack, 1e-9)) & (measured < high + slack)).sum()
        for (low, high), slack in zip(spectrum.edges, margin, strict=True)
    ]
    assert inside == (counts or [300])
    assert spectrum.zero_mass == pytest.approx(1 - sum(inside) / 600, abs=1e-12)


def test_the_density_has_the_quantiles_of_a_sample():
    spectrum = ridge_spectrum([1, 0.05], 300, [180, 420], n_points=4000)
    mass = np.append(0, np.cumsum(np.diff(spectrum.x) * (spectrum.density[1:] + spectrum.density[:-1]) / 2))
    quantiles = np.interp([0.1, 0.5, 0.9], mass / mass[-1], spectrum.x)
    np.testing.assert_allclose(quantiles, [0.0357, 0.307, 1.94], rtol=3e-3)


# Identities and limits


positive, loud = st.floats(1e-3, 1e3), st.floats(1e-3, 1.0)


@st.composite
def theories(draw, noise=loud):
    size = draw(st.integers(1, 6))
    numbers = st.lists(positive, min_size=size, max_size=size)
    return RidgeTheory(draw(numbers), draw(numbers), draw(noise), draw(numbers))


def assert_same_risk(first, second, rtol=1e-9, **factors):
    for name in FIELDS:
        expected = getattr(second, name) * factors.get(name, 1)
        np.testing.assert_allclose(getattr(first, name), expected, rtol=rtol, atol=1e-300, err_msg=name)


@given(theory=theories(), n=positive, ridge=st.floats(1e-6, 1e3))
@settings(max_examples=100, deadline=None)
def test_the_risk_satisfies_its_defining_equations(theory, n, ridge):
    risk = theory.risk(n, ridge)
    assert risk.kappa * (1 - risk.df1 / n) == pytest.approx(ridge, rel=1e-8, abs=1e-12 * float(risk.kappa))
    assert risk.test == pytest.approx(risk.bias + risk.variance + theory.noise_variance, rel=1e-8)
    shrunk = theory.eigenvalues / (theory.eigenvalues + risk.kappa)
    assert risk.df1 == pytest.approx(theory.multiplicities @ shrunk, rel=1e-12)
    assert risk.df2 == pytest.approx(theory.multiplicities @ shrunk**2, rel=1e-12)
    assert risk.bias == pytest.approx(theory.signal @ (1 - shrunk) ** 2, rel=1e-6)


def test_generalised_cross_validation_is_exact(three_scales):
    risk = three_scales.risk(np.array([60, 200, 600])[:, None], [1e-3, 0.1, 1.0])
    n = np.array([60, 200, 600])[:, None]
    np.testing.assert_allclose(risk.train / (1 - risk.df1 / n) ** 2, risk.test, rtol=1e-10)


@given(scale=positive, signal=positive, noise=positive, gamma=st.floats(0.01, 100), ridge=st.floats(1e-9, 1e3))
@settings(max_examples=200, deadline=None)
def test_one_scale_has_its_closed_form(scale, signal, noise, gamma, ridge):
    theory = RidgeTheory([scale], [signal], noise, [gamma])
    linear = ridge - scale * (1 - gamma)
    root = np.hypot(linear, 2 * np.sqrt(ridge * scale))
    kappa = (linear + root) / 2 if linear > 0 else 2 * ridge * scale / (root - linear)
    risk = theory.risk(1, ridge)
    assert risk.kappa == pytest.approx(kappa, rel=1e-9)
    bias = signal * (kappa / (scale + kappa)) ** 2
    # lambda/kappa + ... avoids the cancellation of 1 - df2/N near the threshold.
    slack = ridge / kappa + gamma * scale * kappa / (scale + kappa) ** 2
    assert risk.test == pytest.approx((bias + noise) / slack, rel=1e-8)
    best = gamma * scale * noise / signal
    assert theory.optimal_ridge(1) == pytest.approx(best, rel=1e-8)
    ratio = gamma * noise / signal
    x = (ratio - 1 + gamma + np.hypot(ratio - 1 + gamma, 2 * np.sqrt(ratio))) / 2
    if ratio - 1 + gamma < 0:
        x = 2 * ratio / (np.hypot(ratio - 1 + gamma, 2 * np.sqrt(ratio)) - (ratio - 1 + gamma))
    assert theory.learning_curve(1, "optimal").test == pytest.approx(signal / gamma * x, rel=1e-8)
    assert theory.min_ridge(1) == pytest.approx(-scale * (1 - np.sqrt(gamma)) ** 2, rel=1e-8, abs=1e-13 * scale)


@given(theory=theories(), n=positive, ridge=st.floats(1e-6, 1e3), factor=st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_units_do_not_matter(theory, n, ridge, factor):
    parts = theory.signal, theory.noise_variance, theory.multiplicities
    scaled = RidgeTheory(factor * theory.eigenvalues, *parts)
    assert_same_risk(scaled.risk(n, factor * ridge), theory.risk(n, ridge), kappa=factor)
    louder = RidgeTheory(theory.eigenvalues, factor * parts[0], factor * parts[1], parts[2])
    errors = dict.fromkeys(("test", "train", "bias", "variance"), factor)
    assert_same_risk(louder.risk(n, ridge), theory.risk(n, ridge), **errors)
    larger = RidgeTheory(theory.eigenvalues, *parts[:2], factor * parts[2])
    assert_same_risk(larger.risk(factor * n, ridge), theory.risk(n, ridge), df1=factor, df2=factor)
    assert scaled.optimal_ridge(n) == pytest.approx(factor * theory.optimal_ridge(n), rel=1e-6, abs=1e-9 * factor)


@given(theory=theories(), n=positive, ridge=st.floats(1e-6, 1e3), data=st.data())
@settings(max_examples=60, deadline=None)
def test_order_grouping_and_zero_eigenvalues_do_not_matter(theory, n, ridge, data):
    columns = np.stack([theory.eigenvalues, theory.signal, theory.multiplicities])
    order = data.draw(st.permutations(range(columns.shape[1])))
    share = data.draw(st.floats(0.1, 0.9))
    split = np.concatenate([columns * [[1], [share], [1 - share]], columns * [[1], [1 - share], [share]]], axis=1)
    with_zeros = np.concatenate([split, [[0], [0], [7]]], axis=1)
    for eigenvalues, signal, multiplicities in (columns[:, order], split, with_zeros):
        same = RidgeTheory(eigenvalues, signal, theory.noise_variance, multiplicities)
        assert_same_risk(same.risk(n, ridge), theory.risk(n, ridge))
        assert same.min_ridge(n) == pytest.approx(theory.min_ridge(n), rel=1e-8)


def test_multiplicities_are_repeated_eigenvalues():
    grouped = RidgeTheory([2.0, 0.5], [1.0, 0.6], 0.1, [2, 3])
    single = RidgeTheory([2, 0.5, 2, 0.5, 0.5], [0.5, 0.2, 0.5, 0.2, 0.2], 0.1)
    assert_same_risk(single.risk([2, 5, 9], 0.3), grouped.risk([2, 5, 9], 0.3), rtol=1e-13)
    np.testing.assert_array_equal(single.eigenvalues, [2.0, 0.5])
    np.testing.assert_array_equal(single.multiplicities, [2, 3])


def test_least_squares_sees_neither_covariance_nor_target(three_scales, power_law):
    for theory, n_features in ((three_scales, 400), (power_law, 300)):
        risk = theory.risk([500, 1000], 0)
        slack = 1 - n_features / np.array([500, 1000])
        np.testing.assert_allclose(risk.test, theory.noise_variance / slack, rtol=1e-14)
        np.testing.assert_allclose(risk.train, theory.noise_variance * slack, rtol=1e-14)
        assert not risk.bias.any()
        assert not risk.kappa.any()


def test_the_interpolation_threshold_is_infinitely_bad_with_noise_and_perfect_without(three_scales):
    risk = three_scales.risk(400, 0)
    assert risk.test == risk.variance == np.inf
    assert risk.train == risk.bias == 0
    silent = RidgeTheory([1, 0.1], [0.5, 0.5], 0.0, [3, 4]).risk(7, 0)
    assert silent.test == silent.variance == silent.train == 0


def test_interpolation_has_no_training_error_and_as_many_degrees_of_freedom_as_samples(power_law):
    n = np.array([0.5, 1, 10, 299, 300 - 1e-9])
    risk = power_law.risk(n, 0)
    assert not risk.train.any()
    np.testing.assert_allclose(risk.df1, n, rtol=1e-13)


def test_small_ridges_tend_to_no_ridge(three_scales):
    n = np.array([60, 390, 410, 2000])
    for name in ("test", "df1", "df2", "variance"):
        small, none = (getattr(three_scales.risk(n, ridge), name) for ridge in (1e-13, 0))
        np.testing.assert_allclose(small, none, rtol=1e-7, err_msg=name)


def test_a_huge_ridge_predicts_nothing(three_scales):
    risk = three_scales.risk([10, 1000], 1e9)
    np.testing.assert_allclose(risk.test, 1.25, rtol=1e-8)
    np.testing.assert_allclose(risk.train, 1.25, rtol=2e-8)  # less 2 * trace / (n * ridge)
    np.testing.assert_allclose(risk.kappa, 1e9, rtol=1e-8)


def test_many_samples_leave_only_the_noise(three_scales):
    assert three_scales.risk(1e40, 0.0).test == pytest.approx(0.25, rel=1e-14)
    assert three_scales.risk(1e40, 1e-30).train == pytest.approx(0.25, rel=1e-14)
    assert three_scales.risk(1e-40, 0.1).test == pytest.approx(1.25, rel=1e-14)
    assert three_scales.min_ridge(1e40) == pytest.approx(-0.01, rel=1e-12)


def test_the_best_prediction_without_signal_is_none():
    theory = RidgeTheory([1.0, 2.0], [0.0, 0.0], 0.5)
    assert theory.optimal_ridge(1) == np.inf
    risk = theory.learning_curve([1, 2, 3], "optimal")
    np.testing.assert_array_equal(risk.test, 0.5)
    np.testing.assert_array_equal(risk.train, 0.5)
    for name in ("df1", "df2", "bias", "variance"):
        assert not getattr(risk, name).any()
    assert np.isinf(risk.kappa).all()


def test_without_noise_and_with_enough_samples_no_ridge_is_best():
    assert not RidgeTheory([1.0, 0.1], [0.5, 0.5]).optimal_ridge([2, 3, 100]).any()


@given(theory=theories(noise=st.sampled_from([0.0, 1e-6, 0.1])), n=positive)
@settings(max_examples=60, deadline=None)
def test_no_admissible_ridge_beats_the_optimal_one(theory, n):
    lowest, best = float(theory.min_ridge(n)), theory.learning_curve(n, "optimal").test
    ridges = np.concatenate([np.geomspace(1e-9, 1e6, 300), [0.0], lowest * np.array([0.999, 0.9, 0.5, 0.1])])
    assert best <= theory.risk(n, ridges).test.min() * (1 + 1e-9) + 1e-300


def test_moving_power_to_stronger_directions_lowers_the_error():
    shares = np.linspace(0, 1, 11)
    curves = [
        RidgeTheory([1, 0.1, 0.01], [0.3, 0.7 * share, 0.7 * (1 - share)], 0.05, [10, 20, 70]).learning_curve(
            [20, 60, 150], "optimal"
        )
        for share in shares
    ]
    assert (np.diff([curve.test for curve in curves], axis=0) < 0).all()


# Numerics


def exact_risk(theory, n, ridge, guess):
    """The risk in 60 digits, by Newton's method from the library's kappa on the branch right of kappa_c."""
    with localcontext() as context:
        context.prec = 60
        values, counts, power = (
            [Decimal(float(x)) for x in array] for array in (theory.eigenvalues, theory.multiplicities, theory.signal)
        )
        n, ridge, kappa = Decimal(n), Decimal(ridge), Decimal(float(guess))
        for _ in range(200):
            df1 = sum(m * s / (s + kappa) for m, s in zip(counts, values, strict=True))
            df2 = sum(m * (s / (s + kappa)) ** 2 for m, s in zip(counts, values, strict=True))
            step = (kappa * (1 - df1 / n) - ridge) / (1 - df2 / n)
            kappa -= step
            if abs(step) < abs(kappa) * Decimal(10) ** -40:
                break
        assert df2 < n  # the branch
        bias = sum(p * (kappa / (s + kappa)) ** 2 for p, s in zip(power, values, strict=True))
        test = (bias + Decimal(theory.noise_variance)) / (1 - df2 / n)
        exact = (test, (ridge / kappa) ** 2 * test, bias, df2 / n * test, df1, df2, kappa)
        return {name: float(value) for name, value in zip(FIELDS, exact, strict=True)}


NASTY = [
    RidgeTheory([1, 0.1, 0.01], [0.5, 0.3, 0.2], 0.25, [40, 120, 240]),
    RidgeTheory([1, 1e-6, 1e-12], [1, 1, 1], 1e-3),
    RidgeTheory([1e10, 1, 1e-10], [0, 1, 0], 1.0, [0.5, 2.5, 7]),
    RidgeTheory(np.arange(1.0, 41) ** -2, np.arange(1.0, 41) ** -1, 1e-4),
    RidgeTheory([1e-90, 1e-95], [1e50, 1e-50], 1e-60, [3, 5]),
]


@pytest.mark.parametrize("theory", NASTY, ids=repr)
@pytest.mark.parametrize("density", [1e-6, 0.01, 0.5, 1 - 1e-9, 1, 1 + 1e-9, 1.5, 1e3, 1e20])
def test_the_numbers_are_exact_wherever_the_problem_is_well_posed(theory, density):
    n = density * theory.multiplicities.sum()
    unit, lowest = theory.eigenvalues[-1], float(theory.min_ridge(n))
    ridges = [1e-20 * unit, 1e-6 * unit, unit, 1e6 * unit, *(lowest * np.array([1e-9, 0.3, 0.4999, 0.5001, 0.9]))]
    for ridge in ridges if lowest else ridges[:4]:
        risk = theory.risk(n, ridge)
        for name, value in exact_risk(theory, n, ridge, risk.kappa).items():
            # A million times the rounding of float64: room for the condition of the problem, not for a formula.
            assert getattr(risk, name) == pytest.approx(value, rel=1e-10, abs=1e-300), (name, ridge)


@pytest.mark.parametrize("theory", NASTY, ids=repr)
@pytest.mark.parametrize("density", [0.01, 0.5, 1 - 1e-9, 1 + 1e-9, 1.5, 1e3])
def test_the_error_diverges_towards_the_lowest_ridge_like_an_inverse_square_root(theory, density):
    n = density * theory.multiplicities.sum()
    distance = np.array([1e-9, 1e-10, 1e-11])
    test = theory.risk(n, theory.min_ridge(n) * (1 - distance)).test
    # The last one has lost five digits of its distance to rounding.
    np.testing.assert_allclose(test[1:] / test[:-1], np.sqrt(10), rtol=1e-3)


@pytest.mark.parametrize("theory", NASTY, ids=repr)
def test_errors_stay_finite_and_positive_up_to_the_last_ridge_above_the_lowest_one(theory):
    # A sweep, because rounding decides at which densities a careless formula divides by zero: 1 in 100 here.
    # Density 1 itself is left out: the lowest ridge is 0 there, and the error infinite as documented.
    densities = np.concatenate([np.geomspace(1.1e-3, 1e6, 400), [1e-20, 1 - 1e-9, 1 + 1e-9, 1e20, 1e45]])
    assert 1 not in densities
    distance = np.array([1e-12, 1e-13, 1e-14, 1e-15])
    for n in densities * theory.multiplicities.sum():
        risk = theory.risk(n, theory.min_ridge(n) * (1 - distance))
        for name in set(FIELDS) - {"kappa"}:
            values = getattr(risk, name)
            assert (np.isfinite(values) & (values > 0)).all(), (name, n)


def smooth_spectrum():
    index = np.arange(1.0, 4001)
    return RidgeTheory(index**-1.5, index**-2 * (1 + np.sin(index)), 0.05)


def clustered_spectrum():
    clusters = np.repeat([1.0, 1e-3], 2000) * np.linspace(1, 1.01, 4000)
    return RidgeTheory(clusters, np.repeat([1e-6, 1e-3], 2000), 0.05)


@pytest.mark.parametrize("make", [smooth_spectrum, clustered_spectrum])
def test_a_large_grid_agrees_with_its_points(make):
    theory = make()
    n, ridges = np.geomspace(10, 2e5, 60)[:, None], np.append(0, np.geomspace(1e-8, 10, 40))
    grid = theory.risk(n, ridges)
    rng = np.random.default_rng(0)
    for row, column in [*rng.integers(0, (60, 41), (40, 2)), (0, 0), (59, 0), (0, 40), (59, 40)]:
        point = theory.risk(n[row, 0], ridges[column])  # a single point takes the direct sums
        for name in FIELDS:
            expected = getattr(point, name)
            assert getattr(grid, name)[row, column] == pytest.approx(expected, rel=1e-10, abs=1e-300), name


def test_a_large_grid_without_signal_has_no_bias():
    index = np.arange(1.0, 2001)
    theory = RidgeTheory(1 / index, np.zeros(2000), 0.5)
    n, ridges = np.geomspace(100, 1e4, 40)[:, None], np.geomspace(1e-3, 1, 40)
    risk = theory.risk(n, ridges)
    assert not risk.bias.any()
    assert risk.test[3, 4] == pytest.approx(theory.risk(n[3, 0], ridges[4]).test, rel=1e-10)


def test_the_optimal_ridge_of_a_large_spectrum_is_stationary():
    index = np.arange(1.0, 5001)
    theory = RidgeTheory(index**-1.5, index**-2, 0.05)
    for n in (100.0, 20000.0):
        best = float(theory.optimal_ridge(n))
        test = theory.risk(n, best * np.array([0.99, 1, 1.01])).test
        assert test[1] < min(test[0], test[2])
        # A minimum off by 1e-4 of itself would tilt the two sides against each other by 4e-4 of their rise.
        assert test[0] - test[2] == pytest.approx(0, abs=0.05 * (test[0] + test[2] - 2 * test[1]))


def test_two_bands_of_a_spectrum_hold_the_mass_and_the_mean():
    spectrum = ridge_spectrum([1, 0.05], 900, [180, 420])
    assert spectrum.x.shape == spectrum.density.shape == (800,)
    assert np.trapezoid(spectrum.density, spectrum.x) == pytest.approx(1, abs=2e-5)
    assert np.trapezoid(spectrum.density * spectrum.x, spectrum.x) == pytest.approx(0.335, abs=2e-5)
    assert np.trapezoid(spectrum.density[:400], spectrum.x[:400]) == pytest.approx(0.7, abs=2e-5)
    np.testing.assert_array_equal(spectrum.x[[0, 399, 400, 799]], spectrum.edges.ravel())


@given(gamma=st.floats(0.05, 20), scale=st.floats(0.01, 100))
@settings(max_examples=60, deadline=None)
def test_one_scale_has_the_marchenko_pastur_law(gamma, scale):
    spectrum = ridge_spectrum([scale], 1, [gamma], n_points=51)
    low, high = scale * (1 - np.sqrt(gamma)) ** 2, scale * (1 + np.sqrt(gamma)) ** 2
    np.testing.assert_allclose(spectrum.edges, [[low, high]], rtol=1e-9, atol=1e-14 * scale)
    x = spectrum.x[1:-1]
    law = np.sqrt((high - x) * (x - low)) / (2 * np.pi * gamma * scale * x)
    np.testing.assert_allclose(spectrum.density[1:-1], law, rtol=1e-6)
    assert spectrum.zero_mass == pytest.approx(max(0, 1 - 1 / gamma))


def test_the_lowest_edge_is_minus_the_lowest_ridge(power_law, descent):
    for theory in (power_law, descent):
        for n in (10, 100, 299, 301, 601, 5000):
            edges = ridge_spectrum(theory.eigenvalues, n, theory.multiplicities).edges
            assert edges[0, 0] == pytest.approx(-theory.min_ridge(n), rel=1e-9)


def test_thousands_of_eigenvalues_have_a_spectrum_with_the_right_mass():
    rng = np.random.default_rng(0)
    eigenvalues = np.append(rng.uniform(0.5, 1.5, 2000), [10.0, 30.0])
    for n in (500, 4000):
        spectrum = ridge_spectrum(eigenvalues, n, n_points=300)
        assert len(spectrum.edges) == 3  # the bulk and two outliers
        assert np.trapezoid(spectrum.density, spectrum.x) == pytest.approx(min(1, n / 2002), rel=1e-4)


def test_the_density_is_evaluated_where_the_user_asks():
    grid = np.array([[2.0, -1.0, 0.0], [0.2, 0.05, 100.0]])
    spectrum = ridge_spectrum([1, 0.05], 900, [180, 420], grid=grid)
    assert spectrum.density.shape == grid.shape
    assert (spectrum.density > 0).tolist() == [[True, False, False], [False, True, False]]
    reference = ridge_spectrum([1, 0.05], 900, [180, 420], n_points=2000)
    expected = np.interp([2.0, 0.05], reference.x, reference.density)
    np.testing.assert_allclose(spectrum.density[[0, 1], [0, 1]], expected, rtol=1e-4)


def test_a_hard_edge_is_finite_on_the_grid():
    spectrum = ridge_spectrum([1.0], 50, [50])
    assert spectrum.edges[0, 0] == spectrum.density[0] == 0
    assert spectrum.density[1] == spectrum.density.max()


# From data


def test_data_give_back_the_theory_they_came_from():
    rng = np.random.default_rng(0)
    truth = RidgeTheory([1.0, 0.1], [0.5, 0.3], 0.2, [10, 40])
    scales = np.sqrt(np.repeat([1.0, 0.1], [10, 40]))
    x = rng.standard_normal((20000, 50)) * scales + 3.0
    y = x @ (np.sqrt(np.repeat([0.05, 0.0075], [10, 40])) / scales) + np.sqrt(0.2) * rng.standard_normal(20000) - 7.0
    theory = RidgeTheory.from_data(x, y)
    # 20000 samples: the noise variance has a standard error of 1 %, the signal of 1.1 %, curves follow within 3 %.
    assert theory.noise_variance == pytest.approx(0.2, rel=0.04)
    assert theory.signal.sum() == pytest.approx(0.8, rel=0.045)
    n, ridge = np.array([10, 30, 100, 400]), 0.02
    np.testing.assert_allclose(theory.risk(n, ridge).test, truth.risk(n, ridge).test, rtol=0.03)


def test_the_power_of_pure_noise_is_taken_off():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((400, 200)), rng.standard_normal(400)
    theory = RidgeTheory.from_data(x, y)
    assert theory.noise_variance == pytest.approx(1, rel=0.3)  # three standard errors of 199 degrees of freedom
    # Raw projections would carry a power of 200/400; what is left has a standard error of 0.06.
    assert theory.signal.sum() < 0.2


def test_digits_are_predicted_without_a_fit():
    x, labels = load_digits(return_X_y=True)
    x, y = x / 16, np.where(labels % 2, 1.0, -1.0)
    theory = RidgeTheory.from_data(x, y)
    assert theory.eigenvalues.size == 61
    assert theory.noise_variance == pytest.approx(0.3027, abs=6e-5)
    predicted = theory.risk([20, 40, 80, 160, 400], 0.01).test
    np.testing.assert_allclose(predicted, [0.7028, 0.5807, 0.4448, 0.3755, 0.3379], atol=6e-5)
    rng = np.random.default_rng(0)
    x, y, errors = x - x.mean(0), y - y.mean(), []
    for _ in range(40):
        order = rng.permutation(len(x))
        train, held_out = order[:160], order[160:]
        fit = Ridge(alpha=float(sklearn_alpha(0.01, 160)), fit_intercept=False).fit(x[train], y[train])
        errors.append(np.mean((fit.predict(x[held_out]) - y[held_out]) ** 2))
    # Pixels are not Gaussian: within 2 %, beyond four standard errors.
    assert np.mean(errors) == pytest.approx(predicted[3], abs=4 * np.std(errors) / np.sqrt(40) + 0.02 * predicted[3])


def test_redundant_constant_and_shifted_columns_change_nothing():
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((60, 4)), rng.standard_normal(60)
    y = x @ [1.0, -1.0, 0.5, 0.0] + noise
    plain = RidgeTheory.from_data(x, y)
    padded = RidgeTheory.from_data(np.column_stack([x, np.full(60, 0.1), np.full(60, 1e6)]), y + 5)
    rotated = RidgeTheory.from_data(x @ np.linalg.qr(rng.standard_normal((9, 9)))[0][:4], y)
    for theory in (padded, rotated):
        np.testing.assert_allclose(theory.eigenvalues, plain.eigenvalues, rtol=1e-10)
        np.testing.assert_allclose(theory.signal, plain.signal, rtol=1e-8, atol=1e-12)
        assert theory.noise_variance == pytest.approx(plain.noise_variance, rel=1e-10)


def test_fewer_rows_than_columns_do_when_the_rank_is_low():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 5)) @ rng.standard_normal((5, 80))
    assert RidgeTheory.from_data(x, rng.standard_normal(30)).eigenvalues.size == 5


class Frame:
    """What pandas offers to NumPy."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


def test_lists_frames_and_narrow_types_are_data_and_stay_as_they_are():
    rng = np.random.default_rng(0)
    x, y = rng.integers(-9, 9, (40, 3)), rng.integers(-9, 9, 40)
    kept = x.copy(), y.copy()
    expected = RidgeTheory.from_data(x, y)
    for kind in (np.ndarray.tolist, Frame, np.float32, np.asfortranarray):
        theory = RidgeTheory.from_data(kind(x), kind(y))
        np.testing.assert_allclose(theory.signal, expected.signal, rtol=1e-12)
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(y, kept[1])


# Shapes, immutability, cost


def test_samples_and_ridges_broadcast(three_scales):
    risk = three_scales.risk(np.array([[60], [600]]), [0.0, 0.01, 0.1])
    for name in FIELDS:
        field = getattr(risk, name)
        assert field.shape == (2, 3)
        assert field.dtype == np.float64
    scalar = three_scales.risk(60, 0.01)
    assert scalar.test.shape == ()
    assert scalar.test == pytest.approx(risk.test[0, 1], rel=1e-14)
    assert three_scales.risk([], 0.1).test.shape == (0,)
    assert three_scales.optimal_ridge(np.ones((2, 0))).shape == (2, 0)
    assert three_scales.optimal_ridge([[60, 600]]).shape == three_scales.min_ridge([[60, 600]]).shape == (1, 2)
    assert three_scales.learning_curve([60, 600], [[0.1], [1]]).test.shape == (2, 2)


def test_a_learning_curve_at_given_ridges_is_the_risk(three_scales):
    assert_same_risk(three_scales.learning_curve([60, 600], 0.1), three_scales.risk([60, 600], 0.1), rtol=0)


def test_a_theory_cannot_be_changed_and_keeps_its_arguments(three_scales):
    eigenvalues = np.array([1.0, 3.0, 2.0])
    theory = RidgeTheory(eigenvalues, np.ones(3))
    eigenvalues[:] = 7
    np.testing.assert_array_equal(theory.eigenvalues, [3.0, 2.0, 1.0])
    for name in ("eigenvalues", "signal", "multiplicities"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(three_scales, name)[0] = 1
        with pytest.raises(AttributeError):
            setattr(three_scales, name, 1)
    copy = pickle.loads(pickle.dumps(three_scales))
    assert copy.risk(60, 0.1).test == three_scales.risk(60, 0.1).test
    assert repr(copy) == "RidgeTheory(3 distinct eigenvalues, 400 features, signal 1, noise_variance 0.25)"


def test_arguments_are_left_unchanged(three_scales):
    n, ridge = np.array([60.0, 600.0]), np.array([0.1, -1e-4])
    three_scales.risk(n, ridge)
    three_scales.optimal_ridge(n)
    assert (n.tolist(), ridge.tolist()) == ([60.0, 600.0], [0.1, -1e-4])


def test_the_ridge_of_scikit_learn_is_a_sum_over_samples():
    np.testing.assert_allclose(sklearn_alpha([0.01, 0.1], [[50], [100]]), [[0.5, 5], [1, 10]])
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 3)), rng.standard_normal(20)
    weights = np.linalg.solve(x.T @ x / 20 + 0.3 * np.eye(3), x.T @ y / 20)
    fit = Ridge(alpha=float(sklearn_alpha(0.3, 20)), fit_intercept=False).fit(x, y)
    np.testing.assert_allclose(fit.coef_, weights, rtol=1e-10)


def test_the_theory_needs_no_torch():
    code = "import sys, symlearn.anisotropic_ridge; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Refusals

ONE = RidgeTheory([1.0], [1.0], 0.1, [10])
DATA = np.random.default_rng(0).standard_normal((10, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RidgeTheory([1, -1], [1, 1]), r"eigenvalues must be >= 0, got -1 at index 1"),
        (lambda: RidgeTheory([1, np.nan], [1, 1]), r"eigenvalues must be finite, got nan at index 1"),
        (lambda: RidgeTheory([np.inf], [1]), r"eigenvalues must be finite, got inf at index 0"),
        (lambda: RidgeTheory([], []), r"eigenvalues must be of at least one direction, got an empty array"),
        (lambda: RidgeTheory([0, 0], [0, 0]), r"eigenvalues must be > 0 in at least one direction, got only zeros"),
        (lambda: RidgeTheory([[1.0]], [1]), r"eigenvalues must be of shape \(n,\), got shape \(1, 1\)"),
        (lambda: RidgeTheory(1.0, 1.0), r"eigenvalues must be of shape \(n,\), got shape \(\)"),
        (lambda: RidgeTheory([1, 1e-300], [1, 0]), r"eigenvalues must be between 1e-100 and 1e\+100, got 1e-300"),
        (lambda: RidgeTheory([1e300], [1]), r"eigenvalues must be between 1e-100 and 1e\+100, got 1e\+300"),
        (lambda: RidgeTheory([1, 1], [1, -0.5]), r"signal must be >= 0, got -0\.5 at index 1"),
        (lambda: RidgeTheory([1, 1], [1, np.nan]), r"signal must be finite, got nan at index 1"),
        (lambda: RidgeTheory([1, 1], [1]), r"signal must be of shape \(2,\), got shape \(1,\)"),
        (lambda: RidgeTheory([1, 0], [1, 0.5]), r"signal must be 0 where the eigenvalue is 0, got 0\.5 at index 1"),
        (lambda: RidgeTheory([1], [1e200]), r"signal must be at most 1e\+100, got 1e\+200"),
        (lambda: RidgeTheory([1], [1], -0.1), r"noise_variance must be >= 0, got -0\.1"),
        (lambda: RidgeTheory([1], [1], np.nan), r"noise_variance must be finite, got nan"),
        (lambda: RidgeTheory([1], [1], [0.1]), r"noise_variance must be a single number, got shape \(1,\)"),
        (lambda: RidgeTheory([1], [1], 0, [0]), r"multiplicities must be > 0, got 0 at index 0"),
        (lambda: RidgeTheory([1], [1], 0, [1, 2]), r"multiplicities must be of shape \(1,\), got shape \(2,\)"),
        (lambda: RidgeTheory([1], [1], 0, [np.inf]), r"multiplicities must be finite, got inf at index 0"),
        (
            lambda: RidgeTheory([1, 2], [1, 1], 0, [1, 1e13]),
            r"multiplicities must be within a factor 1e12 of each other",
        ),
        (lambda: ONE.risk(0, 0.1), r"n_samples must be > 0, got 0"),
        (lambda: ONE.risk([5, -3], 0.1), r"n_samples must be > 0, got -3 at index 1"),
        (lambda: ONE.risk(np.inf, 0.1), r"n_samples must be finite, got inf"),
        (lambda: ONE.risk(1e60, 0.1), r"n_samples must be between 1e-50 and 1e\+50, got 1e\+60"),
        (lambda: ONE.risk(5, np.nan), r"ridge must be finite, got nan"),
        (lambda: ONE.risk(5, np.inf), r"ridge must be finite, got inf"),
        (lambda: ONE.risk(5, 1e200), r"ridge must be at most 1e\+100, got 1e\+200"),
        (lambda: ONE.risk(40, -0.25), r"ridge must be > min_ridge\(40\) = -0\.25, got -0\.25"),
        (lambda: ONE.risk([40, 10], [0.1, -1e-9]), r"ridge must be > min_ridge\(10\) = -?0, got -1e-09"),
        (
            lambda: ONE.risk([1, 2], [1, 2, 3]),
            r"ridge must be of a shape that broadcasts with n_samples of shape \(2,\)",
        ),
        (lambda: ONE.optimal_ridge(0), r"n_samples must be > 0, got 0"),
        (lambda: ONE.min_ridge(np.nan), r"n_samples must be finite, got nan"),
        (lambda: ONE.learning_curve(5, "best"), r"ridge must be one of 'optimal', got 'best'"),
        (lambda: ONE.learning_curve([5, 0], "optimal"), r"n_samples must be > 0, got 0 at index 1"),
        (lambda: ONE.simulate(0, 0.1), r"n_samples must be >= 1, got 0"),
        (lambda: ONE.simulate(5, 0.1, n_sets=0), r"n_sets must be >= 1, got 0"),
        (lambda: ONE.simulate(40, -0.3), r"ridge must be > min_ridge\(40\) = -0\.25, got -0\.3"),
        (lambda: RidgeTheory([1], [1], 0, [1.5]).simulate(5, 0.1), r"multiplicities must be whole numbers"),
        (lambda: RidgeTheory.from_data(DATA, DATA[:9, 0]), r"y must be as long as X \(10\), got length 9"),
        (lambda: RidgeTheory.from_data(DATA[:, 0], DATA[:, 0]), r"X must be of shape \(n, n\), got shape \(10,\)"),
        (lambda: RidgeTheory.from_data(DATA, DATA), r"y must be of shape \(n,\), got shape \(10, 3\)"),
        (
            lambda: RidgeTheory.from_data(DATA[:4], DATA[:4, 0]),
            r"X must be of more than rank \+ 1 = 4 rows, got 4 rows",
        ),
        (lambda: RidgeTheory.from_data(DATA.T, DATA[:3, 0]), r"X must be of more than rank \+ 1 = 3 rows, got 3 rows"),
        (lambda: RidgeTheory.from_data(DATA * np.nan, DATA[:, 0]), r"X must be finite, got nan at index \(0, 0\)"),
        (lambda: RidgeTheory.from_data(DATA, np.append(DATA[:9, 0], np.inf)), r"y must be finite, got inf at index 9"),
        (
            lambda: RidgeTheory.from_data(np.full((10, 2), 0.1), DATA[:, 0]),
            r"X must be not constant, got only constant",
        ),
        (lambda: RidgeTheory.from_data(DATA, np.full(10, 0.1)), r"y must be not constant, got only constant targets"),
        (lambda: RidgeTheory.from_data(np.empty((0, 3)), []), r"X must be of at least one sample and one feature"),
        (
            lambda: RidgeTheory.from_data(np.empty((3, 0)), [1, 2, 3]),
            r"X must be of at least one sample and one feature",
        ),
        (lambda: RidgeTheory.from_data(1e60 * DATA, DATA[:, 0]), r"X must be at most 1e\+45, got"),
        (lambda: RidgeTheory.from_data(1e-60 * DATA, DATA[:, 0]), r"X must be of deviations from the mean above 1e-30"),
        (lambda: ridge_spectrum([1, 0], 5), r"eigenvalues must be > 0, got 0 at index 1"),
        (lambda: ridge_spectrum([1, -2], 5), r"eigenvalues must be >= 0, got -2 at index 1"),
        (lambda: ridge_spectrum([], 5), r"eigenvalues must be of at least one direction"),
        (lambda: ridge_spectrum([1], 0), r"n_samples must be > 0, got 0"),
        (lambda: ridge_spectrum([1], [5, 6]), r"n_samples must be a single number, got shape \(2,\)"),
        (lambda: ridge_spectrum([1], 5, n_points=1), r"n_points must be >= 2, got 1"),
        (lambda: ridge_spectrum([1], 5, grid=[0.1, np.nan]), r"grid must be finite, got nan at index 1"),
        (lambda: ridge_spectrum([1], 5, [1, 2]), r"multiplicities must be of shape \(1,\), got shape \(2,\)"),
        (lambda: gap_density(1.0, 0.5), r"ratio must be < 1, got 1"),
        (lambda: gap_density(-0.1, 0.5), r"ratio must be >= 0, got -0\.1"),
        (lambda: gap_density(0.1, 0.0), r"fraction must be > 0, got 0"),
        (lambda: gap_density(0.1, 1.5), r"fraction must be < 1, got 1\.5"),
        (lambda: gap_density([0.1, 0.2], [0.1, 0.2, 0.3]), r"fraction must be of a shape that broadcasts with ratio"),
        (lambda: stage_risk(0, [1.0], [1.0]), r"density must be > 0, got 0"),
        (lambda: stage_risk(1, [0.5, 0.6], [1, 1]), r"fractions must be of sum 1, got a sum of 1\.1"),
        (lambda: stage_risk(1, [], []), r"fractions must be of sum 1, got a sum of 0"),
        (lambda: stage_risk(1, [0.5, 0.5], [1]), r"signal must be of shape \(2,\), got shape \(1,\)"),
        (lambda: jump_density([0.5, 0.5], [1, -1]), r"signal must be >= 0, got -1 at index 1"),
        (lambda: jump_density([0.5, 0.5], [1, 1], -1), r"noise_variance must be >= 0, got -1"),
        (lambda: sklearn_alpha(-0.1, 5), r"ridge must be >= 0, got -0\.1"),
        (lambda: sklearn_alpha(0.1, 0), r"n_samples must be > 0, got 0"),
    ],
)
def test_a_bad_value_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RidgeTheory(["a"], [1]), r"eigenvalues must be real numbers"),
        (lambda: RidgeTheory([1j], [1]), r"eigenvalues must be real numbers"),
        (lambda: RidgeTheory([1], None), r"signal must be real numbers"),
        (lambda: RidgeTheory([1], [True]), r"signal must be real numbers"),
        (lambda: RidgeTheory([[1], [1, 2]], [1]), r"eigenvalues must be an array of real numbers, got list"),
        (lambda: ONE.risk("5", 0.1), r"n_samples must be real numbers"),
        (lambda: ONE.risk(5, "optimal"), r"ridge must be real numbers"),
        (lambda: ONE.simulate(5.5, 0.1), r"n_samples must be an integer, got float"),
        (lambda: ONE.simulate(5, 0.1, rng="seed"), r"rng must be an int, a numpy Generator or None, got str"),
        (lambda: ridge_spectrum([1], 5, n_points=2.5), r"n_points must be an integer, got float"),
        (lambda: RidgeTheory.from_data(DATA.astype(object), DATA[:, 0]), r"X must be real numbers, got dtype object"),
    ],
)
def test_a_wrong_type_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()
