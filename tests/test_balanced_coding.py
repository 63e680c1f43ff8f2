"""Tests of balanced predictive coding: closed forms, mean-field theory against quadrature, simulations, refusals."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq

from symlearn.balanced_coding import (
    BalancedNetwork,
    critical_delay,
    critical_gain,
    delayed_variance,
    mean_field,
    optimal_balance,
    simulate_ensemble,
    tracking_error,
)

NAN, INF = float("nan"), float("inf")
DOTTIE = 0.7390851332151607  # the fixed point of the cosine

gains = st.floats(0, 60)
delays = st.floats(1e-4, 30)


def kernel(w, gain, delay):
    """What the closed loop leaves of a fluctuation of angular frequency w."""
    return (1 + w**2) / np.abs(1 + 1j * w + gain * np.exp(-1j * w * delay)) ** 2


def over_frequencies(function, scale=1.0):
    """Integral over all angular frequencies over 2 pi, of an even function that falls at least as w**-2."""
    edges = np.concatenate([np.linspace(0, 200, 401), np.geomspace(200, 1e6, 40)[1:]]) * scale
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    w = edges[:-1, None] + half * (1 + nodes)
    return float((half * weights * function(w)).sum() / np.pi)


def normal_mean(function, variance, order=160):
    z, weights = np.polynomial.hermite_e.hermegauss(order)
    return float(weights @ function(math.sqrt(variance) * z)) / math.sqrt(2 * math.pi)


def rate_covariance(m, variance, covariance, order=90):
    """E[tanh tanh] for two Gaussian inputs, by quadrature of the shared and the private part."""
    z, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / math.sqrt(2 * math.pi)
    inside = math.sqrt(covariance) * z[:, None] + math.sqrt(max(variance - covariance, 0)) * z
    return float(weights @ (np.tanh(m + inside) @ weights) ** 2)


def delay_equation(gain, delay, steps_per_delay, total):
    """The response of u' = -u - gain u(t - delay) to a kick, by Heun's method."""
    dt = delay / steps_per_delay
    u = np.zeros(round(total / dt) + 1)
    u[0] = 1.0
    for k in range(len(u) - 1):
        before = u[k - steps_per_delay] if k >= steps_per_delay else 0.0
        after = u[k + 1 - steps_per_delay] if k + 1 >= steps_per_delay else 0.0
        u[k + 1] = (u[k] * (1 - dt / 2) - dt / 2 * gain * (before + after)) / (1 + dt / 2)
    return dt * np.arange(len(u)), u


# Stability


@pytest.mark.parametrize(
    ("gain", "delay"),
    [(1.5, 2.0576512), (2, 1.2091996), (5, 0.3617395), (10, 0.1679382), (50, 0.0318223)],
)
def test_critical_delays_are_known(gain, delay):
    assert critical_delay(gain) == pytest.approx(delay, abs=6e-8)


@pytest.mark.parametrize(
    ("delay", "gain"),
    [(0.05, 32.055546), (0.1, 16.350554), (0.2, 8.502425), (1, 2.261826), (5, 1.132112)],
)
def test_critical_gains_are_known(delay, gain):
    assert critical_gain(delay) == pytest.approx(gain, abs=6e-7)


@given(delay=st.floats(1e-8, 1e6))
@settings(max_examples=100, deadline=None)
def test_critical_gain_and_delay_are_inverses(delay):
    gain = critical_gain(delay)
    # Next to a gain of 1 the delay is the ill-conditioned side.
    assert float(critical_delay(gain)) == pytest.approx(delay, rel=1e-9 + 1e-16 * delay**2)
    assert gain > 1 or delay > 1e5


@given(gain=st.floats(1.001, 1e6))
@settings(max_examples=50, deadline=None)
def test_at_the_critical_delay_a_root_of_the_characteristic_equation_is_imaginary(gain):
    d, w = critical_delay(gain), math.sqrt((gain - 1) * (gain + 1))
    assert abs(1 + 1j * w + gain * np.exp(-1j * w * d)) < 1e-9 * gain


def test_a_gain_of_at_most_one_is_stable_at_any_delay():
    assert critical_delay([0.0, 0.5, 1.0]).tolist() == [INF, INF, INF]
    assert critical_delay(1 + 1e-12) < INF


def test_limits_of_the_stability_line():
    assert critical_delay(1e8) * 1e8 == pytest.approx(math.pi / 2, rel=1e-7)
    assert critical_gain(1e-8) * 1e-8 == pytest.approx(math.pi / 2, rel=1e-7)
    assert critical_gain(1e8) == pytest.approx(1, abs=1e-12)
    assert critical_delay(1e300) > 0


@pytest.mark.parametrize("delay", [0.1, 0.5])
def test_the_delay_equation_grows_above_and_decays_below_the_critical_gain(delay):
    critical = critical_gain(delay)
    for factor, grows in ((0.97, False), (1.03, True)):
        _, u = delay_equation(factor * critical, delay, 200, 60 * delay)
        first, last = np.abs(u[len(u) // 4 : len(u) // 2]).max(), np.abs(u[-len(u) // 4 :]).max()
        assert (last > first) == grows


def test_stability_broadcasts_and_scalars_stay_scalars():
    grid = np.array([[0.5, 2.0], [5.0, 10.0]])
    assert critical_delay(grid).shape == (2, 2)
    assert critical_delay(grid)[1, 0] == critical_delay(5.0)
    assert isinstance(critical_delay(5), float)
    assert isinstance(critical_gain(0.5), float)
    assert critical_gain(np.array([0.1, 1.0]))[1] == critical_gain(1)


# Noise and delay


@pytest.mark.parametrize(
    ("gain", "delay", "expected"),
    [
        (0.5, 1, 0.46039179),
        (1, 1, 0.5),
        (2, 0.3, 0.28752747),
        (5, 0.2, 0.24399448),
        (5, 0.35, 3.5483014),
        (20, 0.05, 0.07786564),
    ],
)
def test_the_noise_that_a_delayed_loop_leaves_is_known(gain, delay, expected):
    # The last printed digit; one entry was computed by another method, to 7 digits.
    assert delayed_variance(gain, delay) == pytest.approx(expected, rel=1e-7)


@given(gain=gains, delay=delays)
@settings(max_examples=60, deadline=None)
def test_the_delayed_variance_is_the_textbook_formula(gain, delay):
    found = delayed_variance(gain, delay)
    if delay >= critical_delay(gain):
        assert found == INF
        return
    root = math.sqrt(abs(gain**2 - 1))
    if root < 1e-3 or (gain < 1 and root * delay > 15):
        return  # where the formula loses its digits
    sine, cosine = (np.sin, np.cos) if gain > 1 else (np.sinh, np.cosh)
    bottom = 1 + gain * cosine(root * delay)
    expected = (1 + gain / root * sine(root * delay)) / (2 * bottom)
    assert found == pytest.approx(float(expected), rel=1e-10 * (1 + 1 / abs(bottom)))


@pytest.mark.parametrize(("gain", "delay"), [(0.5, 1.0), (2.0, 0.3), (5.0, 0.2), (10.0, 0.12)])
def test_the_delayed_variance_is_the_squared_response_and_the_frequency_integral(gain, delay):
    found = delayed_variance(gain, delay)
    t, u = delay_equation(gain, delay, 400, 60)
    # Heun's method with 400 steps per delay.
    assert np.trapezoid(u**2, t) == pytest.approx(found, rel=1e-3)
    assert over_frequencies(lambda w: kernel(w, gain, delay) / (1 + w**2)) == pytest.approx(found, rel=1e-5)


def test_limits_of_the_delayed_variance():
    balances = np.array([0.0, 0.3, 1.0, 7.0, 1e5])
    np.testing.assert_allclose(delayed_variance(balances, 0), 1 / (2 + 2 * balances), rtol=1e-14)
    np.testing.assert_allclose(delayed_variance(1, [0.0, 1.0, 3.0]), [0.25, 0.5, 1.0], rtol=1e-14)
    # A very late feedback is independent of what it should correct: the variance only grows.
    assert delayed_variance(0.6, 1e9) == pytest.approx(0.5 / 0.8, rel=1e-12)
    for side in (1 - 1e-9, 1 + 1e-9):
        assert delayed_variance(side, 2.0) == pytest.approx(0.75, rel=1e-8)
    assert delayed_variance(5.0, critical_delay(5.0)) == INF
    assert delayed_variance(5.0, 0.9999 * critical_delay(5.0)) > 1000
    assert delayed_variance([[1.0], [2.0]], [0.1, 0.2, 0.3]).shape == (2, 3)


@pytest.mark.parametrize(
    ("delay", "balance", "least"),
    [
        (0.02, 36.69049, 0.02954881),
        (0.05, 14.51811, 0.07006928),
        (0.1, 7.127568, 0.12879432),
        (0.2, 3.432883, 0.22027592),
        (0.5, 1.218772, 0.37219429),
    ],
)
def test_the_optimal_balance_without_a_signal_is_known(delay, balance, least):
    found = optimal_balance(delay)
    assert found == pytest.approx(balance, rel=3e-7)
    assert delayed_variance(found, delay) == pytest.approx(least, abs=6e-9)


@pytest.mark.parametrize(
    ("delay", "noise", "n", "power", "balance", "least"),
    [
        (0.1, 1, 100, 0.25, 11.7002, 3.263153e-3),
        (0.1, 1, 1000, 0.25, 14.3082, 1.393850e-3),
        (0.05, 0.5, 400, 1, 29.7077, 1.235811e-3),
    ],
)
def test_the_optimal_balance_with_a_signal_is_known(delay, noise, n, power, balance, least):
    found = optimal_balance(delay, noise=noise, n=n, signal_power=power)
    assert found == pytest.approx(balance, abs=6e-5)
    error = power / (1 + found) ** 2 + noise**2 / n * delayed_variance(found, delay)
    assert error == pytest.approx(least, abs=6e-10)


@given(delay=st.floats(1e-3, 5), noise=st.floats(0.1, 3), n=st.integers(1, 10_000), power=st.floats(0, 4))
@settings(max_examples=40, deadline=None)
def test_no_balance_beats_the_optimal_one(delay, noise, n, power):
    best = optimal_balance(delay, noise=noise, n=n, signal_power=power)

    def error(b):
        return power / (1 + b) ** 2 + noise**2 / n * delayed_variance(b, delay)

    others = np.append(np.linspace(0, 0.999, 200) * critical_gain(delay), best * np.array([0.99, 1.005]))
    assert (error(others) >= error(best) * (1 - 1e-12)).all()
    assert 0 < best < critical_gain(delay)


def test_short_delays_have_the_dottie_number_as_their_optimum():
    assert optimal_balance(0.01) * 0.01 == pytest.approx(0.736447, abs=6e-7)
    assert optimal_balance(0.001) * 0.001 == pytest.approx(0.738821, abs=6e-7)
    d = 1e-6
    assert optimal_balance(d) * d == pytest.approx(DOTTIE, rel=1e-5)
    assert optimal_balance(d) / critical_gain(d) == pytest.approx(0.4705, abs=1e-4)
    floor = (1 + math.sin(DOTTIE)) / (2 * DOTTIE**2)
    assert delayed_variance(optimal_balance(d), d) / d == pytest.approx(floor, rel=1e-5)
    assert floor == pytest.approx(1.53192, abs=6e-6)


def test_the_optimal_balance_ignores_the_scale_and_tends_to_the_critical_gain():
    assert optimal_balance(0.3, noise=5.0, n=7) == optimal_balance(0.3)
    assert optimal_balance(0.3, noise=2.0, n=4, signal_power=3.0) == pytest.approx(
        optimal_balance(0.3, signal_power=3.0), rel=1e-12
    )
    found = [optimal_balance(0.1, n=n, signal_power=1.0) for n in (10, 1000, 10**5, 10**8)]
    assert np.all(np.diff([*found, critical_gain(0.1)]) > 0)
    assert optimal_balance(0.1, noise=0.0, signal_power=1.0) == critical_gain(0.1)
    assert 0 <= optimal_balance(1e50) < 1e-10
    assert optimal_balance(1e-50) * 1e-50 == pytest.approx(DOTTIE, rel=1e-9)


# Mean field: known numbers


@pytest.mark.parametrize(
    ("arguments", "readout", "drive", "variance", "frozen", "gain", "readout_variance"),
    [
        ((0.5, 10, 500, 0.75, 0), 0.44200039, 0.57999607, 0.28125, 0, 6.6967150, 3.6919438e-5),
        ((0.3, 50, 1000, 1.5, 0), 0.28984041, 0.50797926, 1.125, 0, 27.193016, 1.5709379e-5),
        ((0, 10, 500, 0, 2.5), 0, 0, 3.4953424, 0, 3.8581403, 5.9240e-5),
        ((0, 30, 500, 0, 1.6), 0, 0, 0.9505444, 0, 18.447351, 2.12447e-6),
        ((0.2, 10, 500, 0.75, 0.8), 0.17675909, 0.23241, 0.3840701, 0.0311118, 7.46791, 4.26094e-5),
        ((0, 10, 500, 0.75, 1.5), 0, 0, 0.9048432, 0, 6.238228, 4.92931e-5),
    ],
)
def test_mean_field_theory_has_known_values(arguments, readout, drive, variance, frozen, gain, readout_variance):
    x, balance, n, noise, disorder = arguments
    found = mean_field(x, balance, n=n, noise=noise, disorder=disorder)
    # The printed digits; those of chaos have an error of 1e-7.
    assert found.readout == pytest.approx(readout, abs=6e-9)
    assert found.bias == pytest.approx(x - readout, abs=6e-9)
    assert found.drive == pytest.approx(drive, abs=6e-6)
    assert found.variance == pytest.approx(variance, abs=1.5e-7)
    assert found.frozen_variance == pytest.approx(frozen, abs=6e-8)
    assert found.gain == pytest.approx(gain, rel=1e-6)
    assert found.readout_variance == pytest.approx(readout_variance, rel=1e-5)
    assert found.error == pytest.approx(math.hypot(found.bias, math.sqrt(found.readout_variance)), rel=1e-14)
    assert found.chaotic == (noise == 0)


@pytest.mark.parametrize(
    ("x", "balance", "options", "expected", "tolerance"),
    [
        (0.5, 5, {"noise": 0.75}, 200 * 1.672e-4, 5e-4),
        (0.5, 50, {"noise": 0.75}, 200 * 2.039e-5, 5e-4),
        (0.2, 20, {"noise": 1.5}, 400 * 9.22e-5, 5e-4),
        (0, 5, {"noise": 1, "delay": 0.1, "activation": "linear"}, 0.1368, 5e-4),
        (0, 3, {"noise": 1, "delay": 0.5, "activation": "linear"}, 0.6975, 5e-4),
        (0, 0.6, {"noise": 1, "delay": 1.0, "activation": "linear"}, 0.4622, 5e-4),
        (0, 6, {"noise": 0.75, "delay": 0.1}, 0.0533, 1e-3),
        (0.3, 8, {"noise": 1.5, "delay": 0.1}, 0.1225, 1e-3),
        (0, 5, {"disorder": 2.5}, 0.0801, 1e-3),
        (0, 40, {"disorder": 2.5}, 0.00262, 2e-3),
        (0, 10, {"disorder": 1.8}, 0.01171, 1e-3),
        (0, 10, {"disorder": 2.5, "delay": 0.1}, 0.0299, 1e-3),
        (0, 25, {"disorder": 2.5, "delay": 0.1}, 0.0063, 8e-3),
        (0.4, 20, {"disorder": 2.5}, 500 * 2.04e-5, 5e-3),
    ],
)
def test_the_readout_variance_has_known_values(x, balance, options, expected, tolerance):
    # Half of the last printed digit.
    assert mean_field(x, balance, n=1, **options).readout_variance == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(
    ("options", "power", "expected"),
    [
        ({"noise": 0.75}, 1, (0.105, 0.212, 0.238, 0.241)),
        ({"disorder": 2.5}, 2, (0.336, 2.96, 4.52, 4.73)),
    ],
)
def test_noise_falls_with_the_balance_and_chaos_with_its_square(options, power, expected):
    for balance, value in zip((1, 10, 100, 1000), expected, strict=True):
        found = mean_field(0, balance, n=1, **options).readout_variance * balance**power
        assert found == pytest.approx(value, rel=2.5e-3)


# Mean field: against quadrature


@pytest.mark.parametrize(("x", "balance", "noise"), [(0.5, 10, 0.75), (0.3, 50, 1.5), (-0.7, 3, 0.3), (0.0, 8, 2.0)])
def test_the_drive_solves_its_equation(x, balance, noise):
    found = mean_field(x, balance, n=10, noise=noise)

    def readout(m):
        return normal_mean(lambda eta: np.tanh(m + eta), noise**2 / 2)

    m = brentq(lambda m: m - balance * (x - readout(m)), -20, 20, xtol=1e-13)
    assert found.drive == pytest.approx(m, abs=1e-10)
    assert found.readout == pytest.approx(readout(m), abs=1e-10)
    slope = normal_mean(lambda eta: 1 / np.cosh(m + eta) ** 2, noise**2 / 2)
    assert found.gain == pytest.approx(balance * slope, rel=1e-9)


@pytest.mark.parametrize(
    ("m", "balance", "noise", "delay"), [(0.0, 6, 0.75, 0.0), (0.4, 8, 1.5, 0.1), (0.3, 1.5, 2.5, 0.7), (0.2, 40, 1, 0)]
)
def test_the_readout_variance_of_noise_is_the_frequency_integral(m, balance, noise, delay):
    variance = noise**2 / 2
    x = m / balance + normal_mean(lambda eta: np.tanh(m + eta), variance)
    found = mean_field(x, balance, n=1, noise=noise, delay=delay)
    assert found.drive == pytest.approx(m, abs=1e-8)
    mean = found.readout
    # Order k of the Hermite series decorrelates as exp(-k lag).
    z, weights = np.polynomial.hermite_e.hermegauss(150)
    weights = weights / math.sqrt(2 * math.pi)
    before, current, total, order = np.zeros_like(z), np.ones_like(z), 0.0, 0
    for order in range(100):
        if order:
            size = float(weights @ (np.tanh(m + math.sqrt(variance) * z) * current)) ** 2

            def spectrum(w, k=order):
                return 2 * k / (k**2 + w**2) * kernel(w, found.gain, delay)

            total += size * over_frequencies(spectrum, 1.0)
        before, current = current, (z * current - math.sqrt(order) * before) / math.sqrt(order + 1)
    assert mean == pytest.approx(x - m / balance, abs=1e-8)
    # The integral is cut off at a frequency of a million.
    assert found.readout_variance == pytest.approx(total, rel=3e-5)


@pytest.mark.parametrize(
    ("x", "noise", "disorder"), [(0, 0, 2.5), (0, 0.75, 1.5), (0.2, 0.75, 0.8), (0.4, 0, 2.5), (0.3, 0.1, 1.5)]
)
def test_the_autocovariance_conserves_energy_and_its_frozen_part_is_a_fixed_point(x, noise, disorder):
    found = mean_field(x, 10, n=1, noise=noise, disorder=disorder)
    m, top, bottom = found.drive, found.variance, found.frozen_variance

    def force(covariance):
        return disorder**2 * rate_covariance(m, top, covariance) - covariance

    assert force(bottom) == pytest.approx(0, abs=1e-6)
    work, _ = quad(force, bottom, top, epsabs=1e-9)
    assert noise**4 / 8 + work == pytest.approx(0, abs=1e-6)
    # From lag 0 on the covariance falls: it never needs more energy than it has.
    for part in (0.2, 0.5, 0.8):
        assert noise**4 / 8 + quad(force, top - part * (top - bottom), top)[0] > 0


def test_noise_disorder_and_delay_together_are_the_integral_over_lags():
    noise, disorder, balance, delay = 0.75, 1.5, 8, 0.1
    found = mean_field(0, balance, n=1, noise=noise, disorder=disorder, delay=delay)
    # The covariance by Newton's equation as a first-order one, with forces from quadrature.
    grid = np.linspace(0, found.variance, 400)
    rates = np.array([rate_covariance(0, found.variance, each, order=60) for each in grid])
    force = disorder**2 * rates - grid
    work = np.concatenate([[0], np.cumsum((force[1:] + force[:-1]) / 2 * np.diff(grid))])
    h = 0.002
    lags = h * np.arange(15_000)
    covariance = np.empty(len(lags))
    covariance[0] = found.variance
    start = noise**4 / 8
    for k in range(len(lags) - 1):
        speeds, value = [], covariance[k]
        for _ in range(2):
            energy = start + work[-1] - np.interp(value, grid, work)
            speeds.append(math.sqrt(2 * max(energy, 0)))
            value = covariance[k] - h * speeds[0]
        covariance[k + 1] = max(covariance[k] - h * sum(speeds) / 2, 0)
    c = np.interp(covariance, grid, rates)
    _, u = delay_equation(found.gain, delay, round(delay / h), lags[-1])
    # The loop's own covariance is the correlation of its response with itself.
    size = 1 << (2 * len(u)).bit_length()
    k = np.fft.irfft(np.abs(np.fft.rfft(u, size)) ** 2)[: len(u)] * h
    total = 2 * np.trapezoid(c * k + np.gradient(c, h) * np.gradient(k, h, edge_order=2), dx=h)
    # Steps of 1/50 of the delay. An earlier value, 0.0458, is outside.
    assert found.readout_variance == pytest.approx(total, rel=2.5e-3)
    assert found.readout_variance == pytest.approx(0.0460027, abs=1e-6)


@pytest.mark.parametrize(("noise", "disorder"), [(0.0, 2.5), (0.75, 1.5), (0.4, 0.9)])
def test_a_short_delay_is_no_delay_and_a_gain_just_below_the_critical_one_is_large(noise, disorder):
    options = {"n": 1, "noise": noise, "disorder": disorder}
    without = mean_field(0, 8, **options).readout_variance
    slopes = [(mean_field(0, 8, **options, delay=d).readout_variance - without) / d for d in (1e-5, 1e-4)]
    # A first-order effect: the same slope at both delays, to what the second order adds.
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-2)
    assert slopes[0] > 0


def test_weak_disorder_is_none():
    for delay in (0.0, 0.15):
        plain = mean_field(0.3, 6, n=1, noise=0.8, delay=delay)
        weak = mean_field(0.3, 6, n=1, noise=0.8, disorder=1e-5, delay=delay)
        assert weak.readout_variance == pytest.approx(plain.readout_variance, rel=1e-8)
        assert weak.variance == pytest.approx(plain.variance, rel=1e-8)


def test_linear_rates_have_closed_forms():
    found = mean_field(0.4, 9.0, n=50, noise=1.2, activation="linear")
    assert dataclasses.astuple(found) == pytest.approx(
        (0.36, 0.04, 0.36, 0.72, 0, 9, 1.44 / (2 * 10 * 50), math.sqrt(0.0016 + 1.44 / 1000), False), rel=1e-13
    )
    # Disorder: an Ornstein-Uhlenbeck process of rate sqrt(1 - g**2) = 0.8 about a frozen pattern.
    found = mean_field(0.4, 9.0, n=1, noise=1.2, disorder=0.6, activation="linear")
    assert found.frozen_variance == pytest.approx(0.36 * 0.36**2 / 0.64, rel=1e-13)
    assert found.variance - found.frozen_variance == pytest.approx(1.44 / 1.6, rel=1e-13)
    moving = 1.44 / 1.6 * (1 + 0.8 * 10) / (10 * 10.8)
    assert found.readout_variance == pytest.approx(moving + found.frozen_variance / 100, rel=1e-12)
    delayed = mean_field(0.4, 9.0, n=1, noise=1.2, disorder=0.6, delay=0.1, activation="linear")
    spectrum = over_frequencies(lambda w: 1.44 / (0.64 + w**2) * kernel(w, 9.0, 0.1))
    assert delayed.readout_variance == pytest.approx(spectrum + found.frozen_variance / 100, rel=1e-5)


def test_small_noise_with_tanh_is_linear():
    for delay, disorder in itertools.product((0.0, 0.2), (0.0, 0.5)):
        options = {"n": 1, "noise": 1e-3, "disorder": disorder, "delay": delay}
        curved, straight = mean_field(0, 5, **options), mean_field(0, 5, **options, activation="linear")
        assert curved.readout_variance == pytest.approx(straight.readout_variance, rel=1e-5)
        assert curved.variance == pytest.approx(straight.variance, rel=1e-5)


def test_the_theory_scales_with_n_and_is_odd_in_the_signal():
    small, large = (mean_field(0.3, 7, n=n, noise=0.5, disorder=0.7) for n in (10, 1000))
    assert small.readout_variance == pytest.approx(100 * large.readout_variance, rel=1e-13)
    assert small.bias == large.bias
    mirrored = mean_field(-0.3, 7, n=10, noise=0.5, disorder=0.7)
    assert (mirrored.readout, mirrored.bias, mirrored.drive) == (-small.readout, -small.bias, -small.drive)
    assert mirrored.readout_variance == small.readout_variance


def test_without_balance_nothing_is_read_out():
    found = mean_field(0.5, 0, n=4, noise=0.75)
    second = normal_mean(lambda eta: np.tanh(eta) ** 2, 0.28125)
    assert (found.readout, found.bias, found.gain) == (0, 0.5, 0)
    assert found.readout_variance == pytest.approx(second / 4, rel=1e-10)


def test_without_noise_and_disorder_the_code_is_deterministic():
    found = mean_field(0.5, 20, n=10)
    assert found.readout == pytest.approx(math.tanh(found.drive), rel=1e-12)
    assert (found.variance, found.readout_variance, found.error) == (0, 0, found.bias)
    assert not found.chaotic


def test_a_quiet_network_without_signal_is_silent_and_chaos_starts_at_disorder_one():
    for disorder in (0.0, 0.5, 1.0):
        found = mean_field(0, 10, n=10, disorder=disorder)
        assert (found.variance, found.readout_variance, found.error, found.gain) == (0, 0, 0, 10)
        assert not found.chaotic
    # Near the onset the variance grows as disorder - 1.
    for above in (1e-3, 1e-2):
        found = mean_field(0, 10, n=10, disorder=1 + above)
        assert found.chaotic
        assert found.variance == pytest.approx(above, rel=2 * above)


def test_a_signal_raises_the_threshold_of_chaos():
    assert mean_field(0.0, 10, n=1, disorder=1.5).chaotic
    quiet = mean_field(0.5, 10, n=1, disorder=1.5)
    assert not quiet.chaotic
    assert quiet.frozen_variance == quiet.variance > 0
    # All is frozen: feedback divides the spread of the rates by the squared loop gain.
    rates = normal_mean(lambda eta: np.tanh(quiet.drive + eta) ** 2, quiet.variance) - quiet.readout**2
    assert quiet.readout_variance == pytest.approx(rates / (1 + quiet.gain) ** 2, rel=1e-9)
    assert mean_field(0.5, 10, n=1, disorder=3.0).chaotic


def test_vanishing_noise_joins_chaos_and_the_frozen_state():
    for x, disorder in ((0.0, 1.5), (0.5, 3.0), (0.3, 1.5)):
        still, noisy = (mean_field(x, 10, n=1, noise=s, disorder=disorder) for s in (0.0, 1e-3))
        assert noisy.variance == pytest.approx(still.variance, rel=1e-5)
        assert noisy.readout_variance == pytest.approx(still.readout_variance, rel=1e-4)
        assert not noisy.chaotic


def test_large_balances_have_the_known_limits():
    for b in (1e3, 1e6, 1e9):
        found = mean_field(0.5, b, n=1, noise=0.75)
        slope = found.gain / b
        limit = 0.28125 * normal_mean(lambda eta, m=found.drive: 1 / np.cosh(m + eta) ** 4, 0.28125) / slope
        assert found.readout_variance * b == pytest.approx(limit, rel=3 / b + 1e-9)
        assert found.bias * b == pytest.approx(found.drive, rel=1e-12)
        assert found.readout + found.bias == pytest.approx(0.5, rel=1e-14)


def test_extreme_arguments_stay_finite():
    for arguments, options in [
        ((0.5, 10), {"noise": 30}),
        ((1.5, 10), {"noise": 0.5}),
        ((1e50, 1e10), {"noise": 0.1}),
        ((0.999999, 1e8), {"noise": 0.3, "disorder": 2}),
        ((0.5, 0.9), {"noise": 0.5, "delay": 1e6}),
        ((0, 0.9), {"noise": 0.5, "disorder": 0.3, "delay": 4000}),
        ((0, 20), {"noise": 0.5, "disorder": 0.3, "delay": 1e-9}),
        ((0, 0), {}),
    ]:
        assert np.isfinite(dataclasses.astuple(mean_field(*arguments, n=1, **options))).all()


# Tracking


def test_the_tracking_error_is_known():
    assert tracking_error(10, 0, 2) == pytest.approx(0.14142, abs=6e-6)
    assert tracking_error(6, 0.1, 3) == pytest.approx(0.14763, abs=6e-6)
    # Slow signals: the error of a static one; open loop: all of the signal is missed.
    assert tracking_error(9, 0.1, 0) == pytest.approx(math.sqrt(0.5) / 10, rel=1e-13)
    assert tracking_error(0, 0.1, 5) == pytest.approx(math.sqrt(0.5), rel=1e-13)
    assert tracking_error(5, [0.1, 0.4], 1).tolist()[1] == INF


@pytest.mark.parametrize(("balance", "delay", "frequency"), [(10.0, 0.0, 2.0), (6.0, 0.1, 3.0)])
def test_a_simulated_network_tracks_a_cosine_as_predicted(balance, delay, frequency):
    dt = 0.001
    t = dt * np.arange(round(10 / dt + 8 * math.pi / frequency / dt))
    network = BalancedNetwork(20, balance, delay=delay, activation="linear", rng=0)
    result = network.simulate(np.cos(frequency * t), dt)
    late = result.error[t > t[-1] - 4 * math.pi / frequency, 0]
    # Second order in the step, and a period that is not a whole number of steps.
    assert math.sqrt((late**2).mean()) == pytest.approx(float(tracking_error(balance, delay, frequency)), rel=5e-4)


# Simulations


def check_against_theory(x, dt, total, n_networks, n, balance, tolerance, rng=0, **options):
    """Bias and variance of an ensemble within four standard errors, or the tolerance where that is smaller."""
    signal = np.full(round(total / dt), x)
    ensemble = simulate_ensemble(signal, dt, n=n, balance=balance, n_networks=n_networks, rng=rng, **options)
    found, theory = ensemble.statistics(discard=5.0), mean_field(x, balance, n=n, **options)
    assert abs(found.bias - theory.bias) < 4 * found.bias_stderr + 0.01 * abs(theory.bias)
    relative = float(found.variance_stderr) / theory.readout_variance
    assert relative < tolerance  # the test means something
    assert float(found.variance) == pytest.approx(theory.readout_variance, rel=4 * relative)
    assert float(found.rms) == pytest.approx(theory.error, rel=4 * tolerance)


@pytest.mark.parametrize(
    ("x", "n", "balance", "options"),
    [
        (0.5, 200, 5, {"noise": 0.75}),
        (0.5, 200, 50, {"noise": 0.75}),
        (0.2, 400, 20, {"noise": 1.5}),
        (0.0, 100, 5, {"noise": 1.0, "delay": 0.1, "activation": "linear"}),
        (0.0, 100, 3, {"noise": 1.0, "delay": 0.5, "activation": "linear"}),
        (0.0, 100, 0.6, {"noise": 1.0, "delay": 1.0, "activation": "linear"}),
        (0.0, 400, 6, {"noise": 0.75, "delay": 0.1}),
        (0.3, 400, 8, {"noise": 1.5, "delay": 0.1}),
        (0.3, 100, 6, {"noise": 1.0, "disorder": 0.5, "activation": "linear"}),
        (0.2, 200, 10, {"noise": 0.75, "disorder": 0.8}),
    ],
)
def test_simulations_have_the_predicted_bias_and_variance(x, n, balance, options):
    check_against_theory(x, min(0.04, 0.6 / (1 + balance)), 25, 24, n, balance, 0.08, **options)


def test_chaos_has_the_predicted_variance():
    # Slow fluctuations and an effect of finite size of 5 to 10 per cent.
    result = simulate_ensemble(np.zeros(1000), 0.05, n=400, balance=5.0, disorder=2.5, n_networks=20, rng=2)
    found, theory = result.statistics(discard=10.0), mean_field(0, 5, n=400, disorder=2.5)
    assert found.variance / theory.readout_variance == pytest.approx(0.95, abs=0.3)
    network = BalancedNetwork(600, 5.0, disorder=2.5, rng=0)
    rates = network.simulate(np.zeros(400), 0.05, n_runs=10, rng=0).rates
    # Rates of 600 neurons, ten states.
    assert (rates**2).mean() == pytest.approx(0.6142, abs=0.03)


def test_disorder_with_delay_has_the_predicted_variance():
    options = {"noise": 0.75, "disorder": 1.5, "delay": 0.1}
    result = simulate_ensemble(np.zeros(700), 0.04, n=200, balance=8.0, n_networks=24, rng=1, **options)
    found, theory = result.statistics(discard=5.0), mean_field(0, 8, n=200, **options)
    # Standard error 3 %, effects of finite size a few.
    assert found.variance / theory.readout_variance == pytest.approx(1, abs=0.15)


def test_tight_balance_is_superclassical_and_loose_balance_is_not():
    sizes, slopes = np.array([50, 100, 200, 400]), {}
    for name, balances in (("tight", 0.2 * sizes), ("loose", 9.0 + 0 * sizes)):
        errors = []
        for n, b in zip(sizes, balances, strict=True):
            dt = 0.6 / (1 + b)
            result = simulate_ensemble(np.full(round(15 / dt), 0.3), dt, n=n, balance=b, noise=1.0, rng=n)
            found = result.statistics(discard=5.0)
            errors.append(found.rms if name == "tight" else math.sqrt(found.variance))
            theory = mean_field(0.3, b, n=int(n), noise=1.0)
            assert float(found.rms) == pytest.approx(theory.error, rel=0.06)
        slopes[name] = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    theory = [mean_field(0.3, 0.2 * n, n=int(n), noise=1.0).error for n in sizes]
    assert slopes["tight"] == pytest.approx(np.polyfit(np.log(sizes), np.log(theory), 1)[0], abs=0.05)
    assert slopes["tight"] == pytest.approx(-1, abs=0.12)
    assert slopes["loose"] == pytest.approx(-0.5, abs=0.06)


def test_the_trapezoidal_step_has_no_bias_where_eulers_would_be_tens_of_per_cent():
    # gain * dt / 2 = 0.4.
    result = simulate_ensemble(
        np.zeros(20_000), 0.04, n=20, balance=19.0, noise=1.0, activation="linear", n_networks=32, rng=0
    )
    found = result.statistics(discard=5.0)
    assert float(found.variance) * 20 == pytest.approx(1 / 40, rel=0.02)


@pytest.mark.parametrize("delay", [0.1, 0.13])
def test_delays_between_steps_are_interpolated(delay):
    signal = np.sin(3 * 0.02 * np.arange(500))
    coarse = BalancedNetwork(10, 5, delay=delay, activation="linear", rng=0).simulate(signal, 0.02)
    fine_signal = np.sin(3 * 0.001 * np.arange(9981))
    fine = BalancedNetwork(10, 5, delay=delay, activation="linear", rng=0).simulate(fine_signal, 0.001)
    # Second order: (3 * 0.02)**2, next to the error of a whole step, 3 * 0.02.
    np.testing.assert_allclose(coarse.readout[:, 0], fine.readout[::20, 0], atol=4e-3)


def test_time_is_measured_in_time_constants():
    signal = np.linspace(0, 0.5, 200)
    options = {"noise": 0.5, "disorder": 0.7}
    unit = BalancedNetwork(30, 4, delay=0.2, rng=1, **options).simulate(signal, 0.05, n_runs=3, rng=2)
    slow = BalancedNetwork(30, 4, delay=2.0, tau=10.0, rng=1, **options).simulate(signal, 0.5, n_runs=3, rng=2)
    np.testing.assert_allclose(slow.readout, unit.readout, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(slow.t, 10 * unit.t)


def test_beyond_the_critical_delay_the_linear_network_oscillates_and_grows():
    signal = np.full(4000, 0.3)
    below, above = (
        BalancedNetwork(10, b, delay=0.2, activation="linear", rng=0).simulate(signal, 0.005).error[-800:]
        for b in np.array([0.9, 1.1]) * critical_gain(0.2)
    )
    assert np.ptp(below) < 0.01
    assert np.abs(above).max() > 10
    # tanh limits the growth to a cycle.
    cycle = BalancedNetwork(10, 2 * critical_gain(0.2), delay=0.2, rng=0).simulate(signal, 0.005).readout[-800:]
    assert 0.5 < np.ptp(cycle) <= 2


def test_results_have_the_promised_shapes_and_consistent_parts():
    signal = np.linspace(-0.5, 0.5, 60)
    network = BalancedNetwork(25, 3.0, noise=0.3, disorder=1.2, rng=0)
    result = network.simulate(signal, 0.1, n_runs=4, rng=0)
    assert result.t.shape == (60,)
    assert (result.readout.shape, result.error.shape, result.rates.shape) == ((60, 4), (60, 4), (4, 25))
    np.testing.assert_allclose(result.t[[0, 1, -1]], [0, 0.1, 5.9])
    np.testing.assert_allclose(result.error, signal[:, None] - result.readout)
    assert np.abs(result.rates).max() <= 1
    ensemble = simulate_ensemble(
        np.zeros((3, 1, 40)), 0.1, n=[[10], [20], [10]], balance=[1.0, 2.0], noise=0.5, n_networks=5, rng=0
    )
    assert ensemble.error.shape == ensemble.readout.shape == (3, 2, 5, 40)
    assert ensemble.statistics(1.0).variance.shape == (3, 2)


def test_settings_side_by_side_are_what_they_are_alone():
    # Deterministic networks: whatever the order and the company.
    signals = np.stack([np.full(80, 0.4), np.sin(0.1 * np.arange(80))])
    together = simulate_ensemble(
        signals[:, None], 0.05, n=8, balance=[2.0, 6.0, 9.0], delay=[0.0, 0.1, 0.15], n_networks=2, rng=0
    )
    for (i, signal), (j, (b, d)) in itertools.product(enumerate(signals), enumerate([(2, 0), (6, 0.1), (9, 0.15)])):
        alone = BalancedNetwork(8, b, delay=d, rng=5).simulate(signal, 0.05)
        np.testing.assert_allclose(together.readout[i, j, 1], alone.readout[:, 0], atol=1e-13)


def test_the_same_seed_gives_the_same_network_and_runs():
    signal = np.zeros(50)
    options = {"noise": 0.5, "disorder": 1.0}
    one, two, other = (
        BalancedNetwork(20, 3.0, rng=seed, **options).simulate(signal, 0.1, rng=7).readout for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    first, second = (
        simulate_ensemble(signal, 0.1, n=20, balance=3.0, rng=np.random.default_rng(3), **options).readout
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_a_callable_activation_is_that_function_and_arguments_are_left_alone():
    signal = np.linspace(0, 0.6, 100)
    before = signal.copy()
    named = BalancedNetwork(40, 12.0, noise=0.5, rng=0).simulate(signal, 0.05, n_runs=3, rng=1)
    own = BalancedNetwork(40, 12.0, noise=0.5, activation=lambda h: np.tanh(h), rng=0)
    # The slope of a callable is a finite difference; it steers the step, not the rates.
    np.testing.assert_allclose(own.simulate(signal, 0.05, n_runs=3, rng=1).readout, named.readout, atol=1e-6)
    np.testing.assert_array_equal(signal, before)
    saturating = BalancedNetwork(40, 12.0, activation=lambda h: np.clip(h, -1, 1), rng=0).simulate(signal, 0.05)
    assert abs(saturating.error[-1, 0]) < 0.1


def test_the_statistics_are_those_of_the_errors():
    result = simulate_ensemble(np.full(400, 0.2), 0.05, n=30, balance=4.0, noise=0.8, n_networks=6, rng=0)
    found, late = result.statistics(discard=5.0), result.error[:, result.t >= 5.0]
    assert found.bias == pytest.approx(late.mean(), rel=1e-12)
    assert found.bias_stderr == pytest.approx(late.mean(1).std(ddof=1) / math.sqrt(6), rel=1e-12)
    assert found.rms == pytest.approx(math.sqrt((late**2).mean()), rel=1e-12)
    between = late.mean(1).var(ddof=1)
    assert found.variance == pytest.approx(late.var(1).mean() + between, rel=1e-12)
    assert found.rms**2 == pytest.approx(found.bias**2 + late.var(), rel=1e-12)


def test_frozen_errors_differ_between_networks_and_count():
    # All is frozen with a strong signal: no variance in time, but one across networks.
    x, options = 0.5, {"disorder": 1.1}
    result = simulate_ensemble(np.full(3000, x), 0.05, n=200, balance=10.0, n_networks=60, rng=0, **options)
    found, theory = result.statistics(discard=100.0), mean_field(x, 10.0, n=200, **options)
    assert result.error[:, -200:].std(1).max() < 1e-3 * math.sqrt(theory.readout_variance)
    # Sixty networks: a standard error of 18 %. The theory neglects the modulation of the variance by the drive.
    assert float(found.variance) == pytest.approx(theory.readout_variance, rel=0.5)


def test_many_networks_are_run_in_blocks():
    # 40 networks of 600 neurons with disorder exceed the working memory: more than one block, the same law.
    result = simulate_ensemble(np.zeros(30), 0.1, n=600, balance=2.0, noise=0.5, disorder=0.5, n_networks=60, rng=0)
    assert result.readout.shape == (60, 30)
    assert len(np.unique(result.readout[:, -1])) == 60


def test_a_single_step_is_the_start():
    result = BalancedNetwork(5, 1.0, noise=1.0, rng=0).simulate([0.3], 0.1, n_runs=2, rng=0)
    assert result.readout.shape == (1, 2)
    np.testing.assert_array_equal(result.t, [0.0])


# Refusals


def network(**options):
    return BalancedNetwork(**{"n": 5, "balance": 2.0, "rng": 0, **options})


def simulate(signal=(0.0, 0.0), dt=0.1, options=None, **kwargs):
    return network(**(options or {})).simulate(signal, dt, rng=0, **kwargs)


def ensemble(signal=(0.0, 0.0), dt=0.1, **options):
    return simulate_ensemble(signal, dt, **{"n": 5, "balance": 2.0, "n_networks": 2, "rng": 0, **options})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: critical_delay(-0.1), "gain must be >= 0, got -0.1"),
        (lambda: critical_delay([1.0, NAN]), "gain must be finite, got nan at index 1"),
        (lambda: critical_delay(INF), "gain must be finite, got inf"),
        (lambda: critical_gain(0), "delay must be > 0, got 0"),
        (lambda: critical_gain([0.1, -1.0]), "delay must be > 0, got -1 at index 1"),
        (lambda: critical_gain(1e-70), "delay must be at least 1e-60, got 1e-70"),
        (lambda: delayed_variance(-1, 0.1), "gain must be >= 0, got -1"),
        (lambda: delayed_variance(1, -0.1), "delay must be >= 0, got -0.1"),
        (
            lambda: delayed_variance([1, 2], [1, 2, 3]),
            r"gain, delay must be of shapes that broadcast, got shapes",
        ),
        (lambda: delayed_variance(1e61, 0), "gain must be at most 1e\\+60 in modulus"),
        (lambda: tracking_error(-1, 0, 1), "balance must be >= 0, got -1"),
        (lambda: tracking_error(1, 0, NAN), "frequency must be finite, got nan"),
        (lambda: optimal_balance(0.0), "delay must be > 0, got 0"),
        (lambda: optimal_balance(-1.0), "delay must be > 0, got -1"),
        (lambda: optimal_balance([0.1, 0.2]), "delay must be a single number, got shape"),
        (lambda: optimal_balance(0.1, noise=-1), "noise must be >= 0, got -1"),
        (lambda: optimal_balance(0.1, noise=0), "noise must be > 0 without a signal, got 0"),
        (lambda: optimal_balance(0.1, n=0), "n must be >= 1, got 0"),
        (lambda: optimal_balance(0.1, signal_power=-0.1), "signal_power must be >= 0, got -0.1"),
        (lambda: mean_field(NAN, 1, n=1), "x must be finite, got nan"),
        (lambda: mean_field(0, -1, n=1), "balance must be >= 0, got -1"),
        (lambda: mean_field(0, INF, n=1), "balance must be finite, got inf"),
        (lambda: mean_field(0, 1, n=0), "n must be >= 1, got 0"),
        (lambda: mean_field(0, 1, n=1, noise=-0.5), "noise must be >= 0, got -0.5"),
        (lambda: mean_field(0, 1, n=1, disorder=-0.5), "disorder must be >= 0, got -0.5"),
        (lambda: mean_field(0, 1, n=1, delay=-0.5), "delay must be >= 0, got -0.5"),
        (lambda: mean_field(0, 1, n=1, activation="relu"), "activation must be one of 'linear', 'tanh', got 'relu'"),
        (lambda: mean_field(0, 1, n=1, disorder=1.0, activation="linear"), "disorder must be < 1 with linear rates"),
        (lambda: mean_field(0, 17, n=1, delay=0.1), "no stationary state"),
        (lambda: mean_field(0, 3, n=1, noise=1, delay=1, activation="linear"), "got balance 3 of gain 3"),
        (lambda: mean_field(0, 1, n=1, noise=50), "noise must be such that noise\\*\\*2 / 2"),
        (lambda: mean_field(0, 1, n=1, disorder=30), "disorder must be such that noise\\*\\*2 / 2"),
        (lambda: network(n=0), "n must be >= 1, got 0"),
        (lambda: network(balance=-1), "balance must be >= 0, got -1"),
        (lambda: network(noise=-1), "noise must be >= 0, got -1"),
        (lambda: network(disorder=-1), "disorder must be >= 0, got -1"),
        (lambda: network(delay=-1), "delay must be >= 0, got -1"),
        (lambda: network(tau=0), "tau must be > 0, got 0"),
        (lambda: network(activation="sigmoid"), "activation must be one of"),
        (lambda: network(activation="linear", disorder=1.5), "disorder must be < 1 with linear rates"),
        (lambda: network(rng=-1), "rng must be >= 0, got -1"),
        (lambda: simulate(dt=0), "dt must be > 0, got 0"),
        (lambda: simulate(dt=-0.1), "dt must be > 0, got -0.1"),
        (lambda: simulate(dt=0.34), "dt must be < tau / \\(1 \\+ balance\\) = 0.333333, got 0.34"),
        (lambda: simulate(dt=1 / 3), "dt must be < tau"),
        (lambda: simulate(options={"delay": 0.05}), "dt must be <= delay = 0.05, got 0.1"),
        (lambda: simulate(np.zeros((3, 2))), "signal must be of shape \\(n,\\), got shape \\(3, 2\\)"),
        (lambda: simulate(0.5), "signal must be of shape \\(n,\\), got shape \\(\\)"),
        (lambda: simulate([]), "signal must be of at least one number"),
        (lambda: simulate([0.0, NAN]), "signal must be finite, got nan at index 1"),
        (lambda: simulate(n_runs=0), "n_runs must be >= 1, got 0"),
        (
            lambda: simulate(options={"activation": lambda h: h / 0 * NAN if h.size < 0 else np.full_like(h, NAN)}),
            "finite",
        ),
        (lambda: simulate(options={"activation": lambda h: h[..., :2]}), "of the shape of the inputs"),
        (lambda: ensemble(signal=0.0), "signal must be of at least one number on its last axis"),
        (lambda: ensemble(n=0), "n must be >= 1, got 0"),
        (lambda: ensemble(balance=[1.0, -1.0]), "balance must be >= 0, got -1 at index 1"),
        (
            lambda: ensemble(balance=[1.0, 2.0], noise=[1, 2, 3]),
            "n, balance, noise, disorder, delay, signal must be of shapes that broadcast",
        ),
        (lambda: ensemble(balance=[]), "balance must be at least one setting"),
        (lambda: ensemble(balance=[1.0, 9.0]), "dt must be < tau / \\(1 \\+ balance\\) = 0.1"),
        (lambda: ensemble(delay=[0.0, 0.05]), "dt must be <= delay = 0.05"),
        (lambda: ensemble(n_networks=0), "n_networks must be >= 1, got 0"),
        (lambda: ensemble(disorder=[0.5, 1.0], activation="linear"), "disorder must be < 1"),
        (lambda: ensemble(n_networks=1).statistics(0), "n_networks must be at least 2"),
        (lambda: ensemble().statistics(1.0), "discard must be at most the last time 0.1, got 1"),
        (lambda: ensemble().statistics(-1.0), "discard must be >= 0, got -1"),
    ],
)
def test_values_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: critical_delay("2"), "gain must be"),
        (lambda: critical_delay(None), "gain must be"),
        (lambda: critical_delay(True), "gain must be real numbers"),
        (lambda: critical_gain(1j), "delay must be real numbers"),
        (lambda: optimal_balance("0.1"), "delay must be"),
        (lambda: optimal_balance(0.1, n=1.5), "n must be an integer"),
        (lambda: optimal_balance(0.1, noise=None), "noise must be"),
        (lambda: mean_field("0", 1, n=1), "x must be"),
        (lambda: mean_field(0, None, n=1), "balance must be"),
        (lambda: mean_field(0, True, n=1), "balance must be"),
        (lambda: mean_field(0, 1, n=True), "n must be an integer"),
        (lambda: mean_field(0, 1, n=1, activation=np.tanh), "activation must be one of"),
        (lambda: network(n=2.0), "n must be an integer"),
        (lambda: network(activation=3), "activation must be 'linear', 'tanh' or a callable"),
        (lambda: network(rng="0"), "rng must be an int"),
        (lambda: simulate(dt="0.1"), "dt must be"),
        (lambda: simulate(n_runs=1.0), "n_runs must be an integer"),
        (lambda: simulate("abc"), "signal must be"),
        (lambda: simulate(options={"activation": lambda h: "x"}), "must be real numbers"),
        (lambda: ensemble(n=[5.0, 6.0]), "n must be integers"),
        (lambda: ensemble(n=5.0), "n must be integers"),
        (lambda: ensemble(noise="1"), "noise must be"),
        (lambda: ensemble(n_networks=2.5), "n_networks must be an integer"),
    ],
)
def test_values_of_another_type_are_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()
