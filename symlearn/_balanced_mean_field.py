r"""Mean-field theory behind `symlearn.balanced_coding`: Hermite coefficients, autocovariance, and the loop's memory.

All times are in units of the membrane time constant. A rate is :math:`\phi(m+\eta)` with a Gaussian :math:`\eta` of
autocovariance :math:`\Delta(\tau)`, from :math:`\Delta_0` down to the frozen part :math:`\Delta_\infty`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.polynomial import legendre
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq

# Hermite coefficients of tanh fall as exp(-pi (k / 2 Delta_0)**0.5): so many per unit of variance reach 1e-14.
_COEFFICIENTS_PER_VARIANCE, _FEWEST, _MOST = 56, 96, 10_000
# Half the range of a standard normal variable under the weight exp(-z**2 / 4).
_RANGE = 12.5
_ORDER = 16
_MOST_PANELS = 200_000


@dataclass(frozen=True, eq=False)
class Covariance:
    """What a population drive leaves: the two variances and, unless all is frozen, the series of the rates' covariance.

    ``weights`` are the squared Hermite coefficients, from order 0; ``mean`` and ``slope`` are those of the rates.
    """

    variance: float
    frozen: float
    mean: float
    slope: float
    weights: np.ndarray


def linear_loop(gain: np.ndarray | complex, delay: np.ndarray | float) -> np.ndarray:
    r"""Stationary variance of u' = -u - gain u(t - delay) + white noise of strength 1, analytic in the gain.

    :math:`\tanh\frac12(\operatorname{artanh}\ell+\ell d)/2\ell` with :math:`\ell=\sqrt{1-G^2}`, written in real
    functions on both sides of a gain of 1. Complex gains, next to the real axis, are for differentiation.
    """
    gain, square = np.asarray(gain), np.asarray((1 - gain) * (1 + gain), dtype=complex)
    near = np.abs(square) * (1 + delay) ** 2 < 1e-6
    small = np.where(near, square, 0)
    short = 1 + small / 3 + delay
    series = short / 4 * (1 - small * short**2 / 12)
    loud = gain.real > 1
    wave = np.sqrt(np.where(loud & ~near, -square, 1))
    above = (1 + gain * np.sin(wave * delay) / wave) / (2 * (1 + gain * np.cos(wave * delay)))
    root = np.sqrt(np.where(loud | near, 1, square))
    echo = gain / (1 + root) * np.exp(-root * delay)
    below = (1 - echo) / (2 * root * (1 + echo))
    return np.where(near, series, np.where(loud, above, below))


def response(rate: np.ndarray, gain: float, delay: float) -> np.ndarray:
    r"""Variance that the loop leaves of a unit signal of covariance :math:`e^{-k|\tau|}`, for rates k > 0."""
    if not delay:
        return (1 + rate * (1 + gain)) / ((1 + gain) * (1 + gain + rate))
    start = float(linear_loop(gain, delay).real)
    nodes, weights = _panel_nodes(delay * _GRADED)
    past = weights * _first_interval(nodes, gain, delay)[0]
    # exp(-k (delay - s)) against the covariance: the Laplace transform of u' = -u - gain u(t - delay).
    history = np.exp(-rate[:, None] * (delay - nodes)) @ past
    transform = (start - gain * history) / (1 + rate + gain * np.exp(-rate * delay))
    return 2 * ((1 - rate**2) * transform + rate * start)


def hermite_weights(m: float, variance: float) -> np.ndarray:
    """Squared coefficients of tanh(m + sqrt(variance) z) in orthonormal Hermite polynomials of z."""
    n_coefficients = min(_MOST, max(_FEWEST, math.ceil(_COEFFICIENTS_PER_VARIANCE * variance)))
    z, density = _normal_grid(variance)
    weighted = density * np.tanh(m + math.sqrt(variance) * z)
    found = np.empty(n_coefficients)
    before, current = np.zeros_like(z), np.ones_like(z)
    for k in range(n_coefficients):
        found[k] = weighted @ current
        before, current = current, (z * current - math.sqrt(k) * before) / math.sqrt(k + 1)
    return found**2


def rate_moments(m: float, variance: float) -> tuple[float, float, float, float]:
    """Means of tanh, its square, its derivative and the square of that, at m + sqrt(variance) z."""
    z, density = _normal_grid(variance)
    rates = np.tanh(m + math.sqrt(variance) * z)
    slopes = 1 - rates**2
    mean, square, slope, squared_slope = (float(density @ each) for each in (rates, rates**2, slopes, slopes**2))
    return mean, square, slope, squared_slope


def solve_drive(x: float, balance: float, noise: float, disorder: float) -> tuple[float, Covariance]:
    """The drive m >= 0 for a signal x >= 0, and the covariance that goes with it."""
    if not x or not balance:
        return 0.0, _covariance(0.0, noise, disorder)

    def excess(m: float) -> float:
        variance = noise**2 / 2 if not disorder else _variances(m, noise, disorder)[0]
        return m / balance - x + rate_moments(m, variance)[0]

    m = brentq(excess, 0.0, balance * x, xtol=1e-300, rtol=1e-14)
    return m, _covariance(m, noise, disorder)


def fluctuations(found: Covariance, noise: float, disorder: float, gain: float, delay: float) -> float:
    """What the loop leaves of the part of the rates that changes in time, times the number of neurons."""
    if found.frozen == found.variance:
        return 0.0
    if not disorder:
        return float(found.weights[1:] @ response(np.arange(1.0, len(found.weights)), gain, delay))
    path = _Path(found, noise, disorder)
    nodes, weights, time = path.times(_GRADED[:-1])
    if delay:
        # The loop's memory has kinks at multiples of the delay.
        kinks = delay * np.arange(1, 5)
        kinks = PchipInterpolator(np.concatenate([[0], time]), np.concatenate([[0], nodes]))(kinks[kinks < time[-1]])
        nodes, weights, time = path.times(np.unique(np.concatenate([_GRADED[:-1], kinks])))
        memory = _loop_memory(time, gain, delay)
    else:
        memory = (1 + (gain * (2 + gain)) * np.exp(-(1 + gain) * time)) / (1 + gain) ** 2
    return float(weights @ (path.slope(nodes) * memory))


class _Path:
    r"""The fall of the covariance from :math:`\Delta_0` (u = 0) to :math:`\Delta_\infty` (u = 1), where
    :math:`\Delta=\Delta_\infty+(\Delta_0-\Delta_\infty)(1-u^2)`.
    """

    def __init__(self, found: Covariance, noise: float, disorder: float) -> None:
        self.found, self.noise, self.disorder = found, noise, disorder
        self.fall = found.variance - found.frozen
        orders = np.arange(1, len(found.weights))
        self.powers, self.weights = orders - 1, orders * found.weights[1:] / found.variance

    def slope(self, u: np.ndarray) -> np.ndarray:
        """Minus dC / du."""
        return self._derivative(self.found.frozen + self.fall * (1 - u) * (1 + u)) * 2 * u * self.fall

    def times(self, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gauss-Legendre nodes and weights between the edges, and the time lag at each node."""
        nodes, weights = _panel_nodes(edges)
        speed = (2 * nodes * self.fall / np.sqrt(2 * self._energy(nodes))).reshape(-1, _ORDER)
        widths = np.diff(edges)[:, None] / 2
        inside = widths * (speed @ _INTEGRATION.T)
        before = np.concatenate([[0], np.cumsum((weights.reshape(-1, _ORDER) * speed).sum(1))[:-1]])
        return nodes, weights, (before[:, None] + inside).ravel()

    def _derivative(self, covariance: np.ndarray) -> np.ndarray:
        return np.power.outer(covariance / self.found.variance, self.powers) @ self.weights

    def _energy(self, u: np.ndarray) -> np.ndarray:
        r"""Half of the squared speed, :math:`V(\Delta_\infty)-V(\Delta)`, accurate at both ends.

        Upper half: from the frozen end, where it starts as a square. Lower half: from the known speed at lag 0.
        """
        s, weight = (_GAUSS[0] + 1) / 2, _GAUSS[1] / 2
        late = u > 0.5
        fall = self.fall * (1 - u) * (1 + u)
        rise = self.fall * u**2
        energy = np.empty_like(u)
        if late.any():
            curvature = 1 - self.disorder**2 * self._derivative(self.found.frozen + fall[late, None] * s)
            energy[late] = fall[late] ** 2 * (curvature @ (weight * (1 - s)))
        early = rise[~late, None]
        force = self.disorder**2 * self._value(self.found.variance - early * s) - (self.found.variance - early * s)
        energy[~late] = self.noise**4 / 8 + rise[~late] * (force @ weight)
        return energy

    def _value(self, covariance: np.ndarray) -> np.ndarray:
        orders = np.arange(len(self.found.weights))
        return np.power.outer(covariance / self.found.variance, orders) @ self.found.weights


@lru_cache(maxsize=256)
def _covariance(m: float, noise: float, disorder: float) -> Covariance:
    variance, frozen = _variances(m, noise, disorder) if disorder else (noise**2 / 2, 0.0)
    mean, _, slope, _ = rate_moments(m, variance)
    mean = mean if m else 0.0
    if not variance:
        return Covariance(0.0, 0.0, mean, slope, np.array([mean**2]))
    return Covariance(variance, frozen, mean, slope, hermite_weights(m, variance))


def _variances(m: float, noise: float, disorder: float) -> tuple[float, float]:
    """Both ends of the autocovariance, for disorder > 0: energy conservation in Newton's equation."""
    squared = disorder**2
    if not m and not noise and disorder <= 1:
        return 0.0, 0.0
    low, high = noise**2 / 2, noise**2 / 2 + squared
    if not noise:
        if m:
            high = brentq(lambda v: squared * rate_moments(m, v)[1] - v, 0, squared, xtol=1e-300, rtol=1e-14)
            if squared * rate_moments(m, high)[3] <= 1:
                return high, high
        # Far below the variance of chaos, which is about (disorder**2 - 1) / 2 near its onset.
        low = 1e-4 * min(high, squared - 1) if disorder > 1 else 1e-4 * high

    def excess(variance: float) -> float:
        weights = hermite_weights(m, variance)
        q = _smallest_fixed_point(weights, squared / variance)
        if q is None:
            return 1.0
        orders = np.arange(1, len(weights) + 1)
        work = float((weights / orders) @ (1 - q**orders)) * squared / variance
        return noise**4 / (8 * variance**2) + work - (1 - q) * (1 + q) / 2

    variance = brentq(excess, low, high, xtol=1e-300, rtol=1e-13)
    q = _smallest_fixed_point(hermite_weights(m, variance), squared / variance)
    return variance, (1.0 if q is None else q) * variance


def _smallest_fixed_point(weights: np.ndarray, factor: float) -> float | None:
    """Smallest q in [0, 1) with q = factor * sum(weights q**k), or None: Newton's method on a convex function."""
    orders = np.arange(len(weights))
    q = 0.0
    if factor * weights[0] < 1e-28:
        return q
    for _ in range(200):
        value = factor * (weights @ q**orders) - q
        slope = factor * ((orders[1:] * weights[1:]) @ q ** orders[:-1]) - 1
        if slope >= 0:
            return None
        step = -value / slope
        q += step
        if q >= 1:
            return None
        if abs(step) <= 1e-15 * q:
            break
    return q


def _normal_grid(variance: float) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of the trapezoidal rule for a standard normal mean; tanh has poles at i pi / 2."""
    step = min(0.25, 0.19 / math.sqrt(variance) if variance else 0.25)
    last = math.ceil(_RANGE / step)
    z = step * np.arange(-last, last + 1)
    return z, step * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def _panel_nodes(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    widths = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + widths * (1 + _GAUSS[0])).ravel(), (widths * _GAUSS[1]).ravel()


def _first_interval(lag: np.ndarray, gain: float, delay: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Covariance of the delayed loop at lags up to the delay, its integral from 0, and minus its derivative."""
    square = (1 - gain) * (1 + gain)
    if abs(square) * (1 + delay) ** 2 < 1e-6:
        start = float(linear_loop(gain, delay).real)
        sine, cosine = lag * (1 + square * lag**2 / 6), 1 + square * lag**2 / 2
        integral = start * sine - lag**2 / 4 * (1 + square * lag**2 / 12)
        return start * cosine - sine / 2, integral, cosine / 2 - start * square * sine
    root = np.sqrt(complex(square))
    forth = 1 / (2 * root * (1 + gain / (1 + root) * np.exp(-root * delay)))
    back = -forth * gain / (1 + root)
    falling, rising = forth * np.exp(-root * lag), back * np.exp(-root * (delay - lag))
    integral = (forth - falling + rising - back * np.exp(-root * delay)) / root
    return (falling + rising).real, integral.real, (root * (falling - rising)).real


def _loop_memory(lag: np.ndarray, gain: float, delay: float) -> np.ndarray:
    r"""Twice :math:`\int_0^\tau K-\dot K(\tau)` of the delayed loop's covariance K, at ascending lags, by steps.

    Panels of at most one delay carry Legendre series; a panel follows from the ones before it by
    :math:`\dot K=-K-GK(\tau-d)`. From where one exponential is left, the panels repeat up to a factor.
    """
    start = float(linear_loop(gain, delay).real)
    per_delay = math.ceil(2 * delay)
    width = delay / per_delay
    s = width * (_GAUSS[0] + 1) / 2
    decayed, passed = np.exp(-s), math.exp(-width)
    # (order, order): the integral of exp(-(s - s')) f(s') ds' from 0 to each node.
    convolve = width / 2 * _INTEGRATION * np.exp(s[None, :] - s[:, None])
    to_end = width / 2 * _GAUSS[1] * np.exp(s - width)
    panels: list[np.ndarray] = []
    integrals, falls, total = [], [], 0.0
    value, last = start, int(lag[-1] / width)
    for j in range(min(last, _MOST_PANELS) + 1):
        if j < per_delay:
            covariance, _, fall = _first_interval(j * width + s, gain, delay)
            value = float(_first_interval(np.array([(j + 1) * width]), gain, delay)[0][0])
        else:
            past = panels[j - per_delay]
            covariance = value * decayed - gain * (convolve @ past)
            value = float(value * passed - gain * (to_end @ past))
            fall = covariance + gain * past
        panels.append(covariance)
        falls.append(fall)
        integrals.append(total + width / 2 * (_INTEGRATION @ covariance))
        total += width / 2 * float(_GAUSS[1] @ covariance)
        if np.abs(covariance).max() + np.abs(fall).max() < 1e-17:
            break
        if j > 8 * per_delay and not j % 64:
            factor = covariance[0] / panels[-2][0]
            if np.abs(covariance - factor * panels[-2]).max() < 1e-13 * np.abs(covariance).max():
                break
    values = np.array(integrals) + np.array(falls)
    index = np.minimum((lag / width).astype(int), len(values) - 1)
    series = values @ _TO_SERIES.T
    inside = legendre.legval(2 * (lag / width - index) - 1, series[index].T, tensor=False)
    late = lag > len(values) * width
    if late.any():
        inside[late] = _tail(lag[late] - len(values) * width, panels, total, value, width)
    return 2 * inside


def _tail(lag: np.ndarray, panels: list[np.ndarray], total: float, value: float, width: float) -> np.ndarray:
    """What follows the last panel: one exponential, or nothing."""
    factor = panels[-1][0] / panels[-2][0] if panels[-2][0] else 0.0
    if not 0 < factor < 1 or not value:
        return np.full_like(lag, total)
    rate = -math.log(factor) / width
    return total + value * (-np.expm1(-rate * lag) / rate + rate * np.exp(-rate * lag))


def _integration_matrix() -> np.ndarray:
    """From values at the Gauss-Legendre nodes to the integral from -1 to each of them."""
    return np.stack([legendre.legval(_GAUSS[0], legendre.legint(column, lbnd=-1)) for column in _TO_SERIES.T], axis=1)


# From 0 to 1, ever finer towards both.
_GRADED = np.concatenate([[0.0], 0.5 ** np.arange(40, 0, -1), 1 - 0.5 ** np.arange(2, 40), [1.0]])
_GAUSS: tuple[np.ndarray, np.ndarray] = legendre.leggauss(_ORDER)
_TO_SERIES = (
    (np.arange(_ORDER) + 0.5)[:, None] * legendre.legvander(_GAUSS[0], _ORDER - 1).T * _GAUSS[1]
)  # (order, order): values at the nodes to a Legendre series
_INTEGRATION = _integration_matrix()
