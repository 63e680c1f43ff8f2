"""Numerics of the effective ridge: sums over a covariance spectrum, the root of their equation, its critical points.

Used by :mod:`symlearn.anisotropic_ridge`, which documents the equations and checks the arguments. Here ``n`` is the
number of samples, ``ridge`` is per sample, and ``kappa`` solves ``ridge = kappa (1 - df1(kappa) / n)`` right of the
critical point ``kappa_c``, the largest root of ``df2(kappa) = n``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.polynomial import chebyshev

# Takes effective ridges, shape (n,), and returns the first `count` sums of _TERMS, shape (count, n).
Sums = Callable[[np.ndarray, int], np.ndarray]

# Every sum of the theory is a weighted sum over the spectrum of one of these, r = s/(s + kappa), q = kappa/(s + kappa).
_TERMS: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda r, q: q,  # features - df1
    lambda r, q: r,  # df1
    lambda r, q: r * q,  # df1 - df2
    lambda r, q: r * r,  # df2
    lambda r, q: q * q,  # bias, weighted by the signal
    lambda r, q: r * r * q,  # minus half the slope of df2 in log(kappa)
    lambda r, q: r * q * q,  # half the slope of the bias in log(kappa), weighted by the signal
)
_SIGNAL_TERMS = (4, 6)
_EPSILON = float(np.finfo(np.float64).eps)
# Entries of a temporary array: small enough for the cache, large enough to hide the cost of a call.
_CHUNK = 200_000


class Spectrum(NamedTuple):
    """Distinct positive eigenvalues in descending order, how many features share each, and all features together."""

    values: np.ndarray
    counts: np.ndarray
    n_features: float


class Edge(NamedTuple):
    """Critical points kappa = anchor + offset and their ridges; at a pole the offset keeps the digits of s + kappa."""

    anchor: np.ndarray
    offset: np.ndarray
    ridge: np.ndarray


def risk_terms(
    spectrum: Spectrum, signal: np.ndarray, noise: float, n: np.ndarray, ridge: np.ndarray, lowest: Edge
) -> tuple[np.ndarray, ...]:
    """Test error, train error, bias, variance, df1, df2 and kappa; ``lowest`` matters where the ridge is negative."""
    # Ridge 0 with enough samples: kappa = 0. The other three cases overwrite it.
    kappa, bias = np.zeros((2, n.size))
    df1, df2 = np.full((2, n.size), spectrum.n_features)
    shrink, slack = np.tile((n - spectrum.n_features) / n, (2, 1))  # ridge / kappa = 1 - df1/n, and 1 - df2/n

    infinite = np.isinf(ridge)
    kappa[infinite], df1[infinite], df2[infinite] = np.inf, 0.0, 0.0
    bias[infinite], shrink[infinite], slack[infinite] = signal.sum(), 1.0, 1.0

    edge = ridge < lowest.ridge / 2
    solution = _near_lowest(spectrum, signal, n[edge], ridge[edge], Edge(*(field[edge] for field in lowest)))
    kappa[edge], df1[edge], df2[edge], bias[edge], slack[edge] = solution
    shrink[edge] = ridge[edge] / kappa[edge]

    bulk = ~edge & ~infinite & ((ridge != 0) | (n < spectrum.n_features))
    if bulk.any():
        kappa[bulk], sums = _effective_ridge(spectrum, signal, n[bulk], ridge[bulk])
        _, df1[bulk], spread, df2[bulk], bias[bulk] = sums
        shrink[bulk] = ridge[bulk] / kappa[bulk]
        slack[bulk] = shrink[bulk] + spread / n[bulk]

    error = bias + noise
    test = np.divide(error, slack, where=slack > 0, out=np.where(error > 0, np.inf, 0.0))
    train = np.multiply(shrink**2, test, where=shrink != 0, out=np.zeros(n.shape))
    return test, train, bias, df2 / n * test, df1, df2, kappa


def lowest_edge(spectrum: Spectrum, n: np.ndarray) -> Edge:
    """Critical points kappa_c and the lowest ridges, for every number of samples in ``n``."""
    values, counts, n_features = spectrum
    # Anchor at the pole -s of the smallest eigenvalue where kappa_c is nearer to it than to 0.
    anchor = np.where(n > counts @ (values / (values - values[-1] / 2)) ** 2, -values[-1], 0.0)
    larger, smaller = np.append(0.0, np.cumsum(counts)[:-1]), np.append(np.cumsum(counts[:0:-1])[::-1], 0.0)
    offset = np.empty(n.shape)
    for rows in _chunks(n.size, values.size):
        size, base = n[rows, None], anchor[rows]
        # df2 >= M (s / (s + kappa))**2, M directions having eigenvalues from s upwards (downwards, if kappa < 0): the
        # surplus is M / n - 1. The small term covers the rounding of a cumulative sum.
        others = np.where(size < n_features, (1 + 1e-10) * smaller, larger)
        surplus = (n_features - size - others) / size
        start = (values * surplus / (np.sqrt(np.maximum(1 + surplus, 0.0)) + 1)).max(axis=1) - base
        start = np.where(base == 0, start, np.maximum(start, values[-1] * np.sqrt(counts[-1] / n[rows])))
        offset[rows] = _critical_offset(spectrum, n[rows], base, start, np.inf, 1)
    offset[n == n_features] = 0.0
    return Edge(anchor, offset, _ridge_at(spectrum, n, anchor, offset))


def optimal_ridge(spectrum: Spectrum, signal: np.ndarray, noise: float, n: np.ndarray) -> np.ndarray:
    """Global minimisers of the test error over all admissible ridges, for every number of samples in ``n``."""
    if not signal.any():
        return np.full(n.shape, np.inf)
    optimum = np.zeros(n.shape)
    solve = (n < spectrum.n_features) | (noise > 0)
    if solve.any():
        optimum[solve] = _best_ridge(spectrum, signal, noise, n[solve])
    negative = optimum < 0
    # Rounding must not carry an optimum next to the lowest ridge past it.
    optimum[negative] = np.maximum(optimum[negative], lowest_edge(spectrum, n[negative]).ridge * (1 - 1e-12))
    return optimum


def bands(spectrum: Spectrum, n: float) -> tuple[np.ndarray, np.ndarray]:
    """Bands of the spectrum, in ascending x: the two kappas of every band, and its two edges, shapes (n_bands, 2)."""
    values, counts, _ = spectrum
    own, distance = values * np.sqrt(counts / n), values[:-1] - values[1:]
    # Two neighbours alone keep the gap between them closed unless n exceeds this bound.
    cubes = np.cbrt(counts * values**2)
    above = np.flatnonzero((cubes[:-1] + cubes[1:]) ** 3 < n * distance**2)
    left, right = np.empty(above.size), np.empty(above.size)
    for rows in _chunks(above.size, values.size):
        upper, lower = above[rows], above[rows] + 1
        size, reach = np.full(upper.shape, n), distance[upper]
        left[rows] = _critical_offset(spectrum, size, -values[upper], own[upper], reach, 1)
        right[rows] = _critical_offset(spectrum, size, -values[lower], -own[lower], reach, -1)
    is_open = left - right < distance[above]  # false for NaN
    above, left, right = above[is_open], left[is_open], right[is_open]

    # df2 >= M (s / (s + kappa))**2 for the M directions with eigenvalues from s upwards.
    start = ((values[0] - values) - values * np.sqrt(np.cumsum(counts) / n)).min(keepdims=True)
    top = _critical_offset(spectrum, np.array([n]), -values[:1], start, np.inf, -1)
    lowest = lowest_edge(spectrum, np.array([n]))
    poles = -np.stack([values[above], values[above + 1]], axis=1)
    anchor = np.concatenate([-values[:1], poles.ravel(), lowest.anchor])
    offset = np.concatenate([top, np.stack([left, right], axis=1).ravel(), lowest.offset])
    x = 0.0 - _ridge_at(spectrum, np.full(anchor.shape, n), anchor, offset)
    return (anchor + offset).reshape(-1, 2)[::-1], np.maximum.accumulate(x[::-1]).reshape(-1, 2)


def density_at(x: np.ndarray, spectrum: Spectrum, n: float, limits: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Density of the spectrum at any points, for the bands with these kappas (``limits``) and edges (``ends``)."""
    borders, density = ends.ravel(), np.zeros(x.shape)
    position = np.searchsorted(borders, x)
    inside = np.flatnonzero((position % 2 == 1) & (x < np.append(borders, np.inf)[position]))
    for rows in _chunks(inside.size, spectrum.values.size):
        chosen = inside[rows]
        band = position[chosen] // 2
        density[chosen] = _density_inside(x[chosen], spectrum, n, limits[band], ends[band])
    return density


def _near_lowest(spectrum: Spectrum, signal: np.ndarray, n: np.ndarray, ridge: np.ndarray, edge: Edge) -> np.ndarray:
    r"""Effective ridge, df1, df2, bias and 1 - df2/n near the lowest ridge, shape (5, n), free of cancellation.

    With :math:`t=s+\kappa_c`, :math:`\delta=\kappa-\kappa_c` and weights :math:`w=\frac mN(s/t)^2` of sum 1, the
    equation is :math:`\lambda-\lambda_c=\delta^2\sum w/(t+\delta)`. Its slope in delta is :math:`1-\mathrm{df}_2/N`.
    """
    solution = np.empty((5, n.size))
    for rows in _chunks(n.size, spectrum.values.size):
        anchor, offset, lowest = (field[rows, None] for field in edge)
        t = spectrum.values + anchor + offset
        weight = spectrum.counts / n[rows, None] * (spectrum.values / t) ** 2
        weight /= weight.sum(axis=1, keepdims=True)
        excess = ridge[rows, None] - lowest
        # Jensen's inequality bounds delta from above; the equation is convex, so Newton's method descends.
        delta = (excess + np.sqrt(excess * (excess + 4 * (weight * t).sum(axis=1, keepdims=True)))) / 2 * (1 + 1e-7)
        moving = np.array(True)
        while moving.any():
            share = weight / (t + delta) ** 2
            slack = delta * (share * (2 * t + delta)).sum(axis=1, keepdims=True)
            following = (excess + delta**2 * (share * t).sum(axis=1, keepdims=True)) / slack
            moving = following < delta - 4 * _EPSILON * delta
            delta = np.where(moving, following, delta)
        kappa, learned = anchor + offset + delta, spectrum.values / (t + delta)
        bias = (kappa / (t + delta)) ** 2 @ signal
        solution[:, rows] = kappa[:, 0], learned @ spectrum.counts, learned**2 @ spectrum.counts, bias, slack[:, 0]
    return solution


def _effective_ridge(
    spectrum: Spectrum, signal: np.ndarray, n: np.ndarray, ridge: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Effective ridges and the five sums of the risk, shapes (n,) and (5, n); not for ridge 0 with n >= features."""
    sums = _direct_sums(spectrum, signal)
    start = _upper_bound(spectrum, n, ridge)
    if not (ridge < 0).any():
        # kappa grows with the ridge and falls with n, so three corners bound it.
        groups = [group for group in (ridge > 0, ridge == 0) if group.any()]
        corner_n = np.array([n.min(), *(n[group].max() for group in groups)])
        corner_ridge = np.array([ridge.max(), *(ridge[group].min() for group in groups)])
        corners = _descend(sums, spectrum, corner_n, corner_ridge, _upper_bound(spectrum, corner_n, corner_ridge))
        sums = _series_sums(sums, corners.min(), corners.max(), 5, min(n.size, spectrum.values.size))
        start = np.minimum(start, corners.max() * (1 + 1e-7))
    kappa = _descend(sums, spectrum, n, ridge, start)
    return kappa, sums(kappa, 5)


def _direct_sums(spectrum: Spectrum, signal: np.ndarray) -> Sums:
    """The sums of _TERMS, term by term."""

    def sums(kappa: np.ndarray, count: int) -> np.ndarray:
        totals = np.empty((count, kappa.size))
        for rows in _chunks(kappa.size, spectrum.values.size):
            denominator = kappa[rows, None] + spectrum.values
            r, q = spectrum.values / denominator, kappa[rows, None] / denominator
            for index, term in enumerate(_TERMS[:count]):
                totals[index, rows] = term(r, q) @ (signal if index in _SIGNAL_TERMS else spectrum.counts)
        return totals

    return sums


def _series_sums(direct: Sums, low: float, high: float, count: int, size: int) -> Sums:
    r"""Chebyshev series of the logarithms of the sums in log(kappa) on [low, high]; direct where that is no dearer.

    As functions of a complex :math:`u=\log\kappa` the sums have neither zeros nor poles for :math:`|\mathrm{Im}\,u|`
    below :math:`\pi/2` (:math:`\pi/3` for the last two), so 12 (16) terms per e-fold reach the rounding of float64.
    ``size`` is the smaller one of the numbers of points and eigenvalues.
    """
    middle, half = (math.log(low) + math.log(high)) / 2, (math.log(high) - math.log(low)) / 2 + 0.1
    degree = math.ceil((12 if count <= 5 else 16) * (2 * half + 1))
    if 2 * degree > size:
        return direct
    points = chebyshev.chebpts1(degree + 1)
    nodes = direct(np.exp(middle + half * points), count)
    fitted = np.any(nodes, axis=1)  # all but the bias of a target without signal
    if not (nodes[fitted] > np.finfo(np.float64).tiny).all():
        return direct
    coefficients = 2 / points.size * chebyshev.chebvander(points, degree).T @ np.log(nodes[fitted]).T
    coefficients[0] /= 2

    def sums(kappa: np.ndarray, count: int) -> np.ndarray:
        totals = np.zeros((count, kappa.size))
        kept = np.flatnonzero(fitted[:count])
        position = (np.log(kappa) - middle) / half
        for part in _chunks(kappa.size, degree // 4):
            polynomials = chebyshev.chebvander(position[part], degree)
            totals[kept, part] = np.exp(polynomials @ coefficients[:, : kept.size]).T
        return totals

    return sums


def _density_inside(x: np.ndarray, spectrum: Spectrum, n: float, limits: np.ndarray, ends: np.ndarray) -> np.ndarray:
    r"""Density at points inside bands, whose kappas (``limits``) and edges (``ends``) have shape (n, 2).

    On the curve :math:`\kappa=a-ib` that carries a band, :math:`\sum w/((s+a)^2+b^2)=1` with :math:`w=\frac mNs^2`:
    every a has exactly one b. Along it x falls as a rises, :math:`-da/dx=\frac12g/(g^2+h^2)` with
    :math:`g=b^2\sum w/|s+\kappa|^4` and :math:`h=b\sum w(s+a)/|s+\kappa|^4`: Newton's method in a, in a bracket.
    """
    share, n_features = spectrum.counts / n, spectrum.n_features
    weight, (low, high) = share * spectrum.values**2, limits.T.copy()
    a, square = high - (high - low) * (x - ends[:, 0]) / (ends[:, 1] - ends[:, 0]), np.zeros(x.shape)
    active = np.arange(x.size)
    while active.size:
        real, low_end, high_end = a[active], low[active], high[active]
        shifted = spectrum.values + real[:, None]
        squared = _squared_imaginary(shifted**2, weight, square[active])
        modulus = shifted**2 + squared[:, None]  # |s + kappa|**2
        # x = -Re(kappa (1 - df1/n)) from the real part of kappa/(s + kappa), by the form that cancels less.
        missed = (real[:, None] * shifted + squared[:, None]) / modulus
        if 2 * n < n_features:
            error = missed @ (share * spectrum.values) - real - x[active]
        else:
            error = squared * ((spectrum.values / modulus) @ share) - x[active]
            error -= real * ((n - n_features) / n + missed @ share)
        ratio = weight / modulus
        g, h = squared * (ratio / modulus).sum(axis=1), np.sqrt(squared) * (ratio * shifted / modulus).sum(axis=1)
        norm = g**2 + h**2
        following = real + np.divide(error * g, 2 * norm, where=norm > 0, out=np.full(norm.shape, np.nan))
        low_end, high_end = np.where(error > 0, real, low_end), np.where(error > 0, high_end, real)
        inside = (low_end < following) & (following < high_end)  # false for NaN
        following = np.where(inside, following, (low_end + high_end) / 2)
        a[active], square[active], low[active], high[active] = following, squared, low_end, high_end
        active = active[np.abs(following - real) > 4 * _EPSILON * np.sqrt(real**2 + squared)]
    return n / n_features / np.pi * np.sqrt(square) / (a**2 + square)


def _descend(sums: Sums, spectrum: Spectrum, n: np.ndarray, ridge: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Newton's method from above the root: the equation is convex right of the critical point, so it descends."""
    kappa, active, n_features = start.copy(), np.arange(n.size), spectrum.n_features
    while active.size:
        current, size = kappa[active], n[active]
        missed, df1, spread = sums(current, 3)
        slack = _one_minus(df1, missed, size, n_features) + spread / size  # 1 - df2/n
        following = (ridge[active] + current * spread / size) / slack
        moving = following < current - 4 * _EPSILON * np.abs(current)
        kappa[active] = np.where(moving, following, current)
        active = active[moving]
    return kappa


def _upper_bound(spectrum: Spectrum, n: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """Bound by Jensen's inequality: keep the smallest eigenvalues only, replaced by their mean; solve the quadratic."""
    values, counts = spectrum.values[::-1], spectrum.counts[::-1]
    means = np.cumsum(counts * values) / np.cumsum(counts)
    larger = np.append(np.cumsum(spectrum.counts)[-2::-1], 0.0)  # how many are not kept
    steps = np.geomspace(1, values.size, 32).astype(int)
    positive = np.maximum(ridge, 0.0)
    bound = np.where((ridge < 0) & (n > spectrum.n_features), 0.0, np.inf)
    for index in np.union1d(steps - 1, values.size - steps):
        square = np.maximum((n - larger[index]) / n, 0.0)
        linear = (n - spectrum.n_features) / n * means[index] - positive
        root = np.hypot(linear, 2 * np.sqrt(square) * np.sqrt(positive) * np.sqrt(means[index]))
        numerator = np.where(linear > 0, 2 * means[index], root - linear)
        denominator = np.where(linear > 0, root + linear, 2 * square)
        quotient = np.divide(numerator, denominator, where=denominator > 0, out=np.full(n.shape, np.inf))
        bound = np.minimum(bound, quotient * np.where(linear > 0, positive, 1.0))
    return bound * (1 + 1e-7)  # rounding must not put it below the root


def _best_ridge(spectrum: Spectrum, signal: np.ndarray, noise: float, n: np.ndarray) -> np.ndarray:
    """Every sign change of the slope of the test error along kappa, then the one with the lowest error."""
    low, high = _optimum_bounds(spectrum, signal, noise, n)
    sums = _series_sums(_direct_sums(spectrum, signal), low, high, 7, spectrum.values.size)
    ends = math.log(low), math.log(high)
    grid = np.linspace(*ends, math.ceil(16 * (ends[1] - ends[0])) + 2)
    totals = sums(np.exp(grid), 7)[:, None, :]
    best = np.empty(n.shape)
    for rows in _chunks(n.size, grid.size):
        size = n[rows]
        falling = _risk_slope(totals, noise, size[:, None], spectrum.n_features) < 0
        falling[:, -1] = False  # a minimum beyond the grid counts as one at its end
        ridge = np.zeros(size.shape)
        row, cell = np.nonzero(falling[:, :-1] & ~falling[:, 1:])
        left, right = grid[cell], grid[cell + 1]
        for _ in range(50):
            middle = (left + right) / 2
            below = _risk_slope(sums(np.exp(middle), 7), noise, size[row], spectrum.n_features) < 0
            left, right = np.where(below, middle, left), np.where(below, right, middle)
        kappa = np.exp((left + right) / 2)
        missed, df1, spread, df2, bias = sums(kappa, 5)
        risk = (bias + noise) / _one_minus(df2, missed + spread, size[row], spectrum.n_features)
        order = np.lexsort((risk, row))
        first = order[np.unique(row[order], return_index=True)[1]]
        ridge[row[first]] = (kappa * _one_minus(df1, missed, size[row], spectrum.n_features))[first]
        best[rows] = ridge
    return best


def _risk_slope(totals: np.ndarray, noise: float, n: np.ndarray, n_features: float) -> np.ndarray:
    """A number with the sign of the slope of the test error; negative below the critical point, where there is none."""
    missed, _, spread, df2, bias, df2_fall, bias_rise = totals
    return bias_rise * _one_minus(df2, missed + spread, n, n_features) - (bias + noise) * df2_fall / n


def _optimum_bounds(spectrum: Spectrum, signal: np.ndarray, noise: float, n: np.ndarray) -> tuple[float, float]:
    """Effective ridges between which every minimum of the test error lies, for all of ``n``."""
    values, counts, n_features = spectrum
    few, many = n[n < n_features], n[n >= n_features]
    low = []
    if few.size:  # a bound on kappa_c, as in lowest_edge
        low.append(float((values * (np.sqrt(np.cumsum(counts) / few.max()) - 1)).max()))
    if many.size:  # below it the bias rises more slowly than the variance falls
        carrying = signal > 0
        ratio = (counts * values)[carrying] / signal[carrying]
        low.append(min(float(values[-1]), noise * float(ratio.min()) / (8 * many.max())))
    square, slope = float(counts @ values**2 / n.min()), max(float(signal @ values), 1e-200)
    high = max(values[0], math.sqrt(2 * square), 16 * (float(signal.sum()) + noise) * square / slope)
    return max(min(low), 1e-250), min(float(high), 1e250)


def _critical_offset(
    spectrum: Spectrum, n: np.ndarray, anchor: np.ndarray, start: np.ndarray, reach: np.ndarray | float, side: int
) -> np.ndarray:
    """Roots anchor + offset of df2 = n by Newton's method on df2**(-1/2) from ``start``; NaN where there is none.

    Between poles the function is concave, so the steps approach from the side of the pole: upwards (``side`` 1) or
    downwards (-1). A slope of the other sign, or an offset beyond ``reach``, means that there was no root on the way.
    """
    gap, weight = spectrum.values + anchor[:, None], spectrum.counts / n[:, None]
    offset = start - side * 1e-7 * np.abs(start)
    moving = np.full(n.shape, True)
    while True:
        total = gap + offset[:, None]
        r, q = spectrum.values / total, (anchor + offset)[:, None] / total
        ratio = (weight * r**2).sum(axis=1)  # df2 / n
        slope = (weight * r**2 / total).sum(axis=1)
        excess = -_one_minus(ratio * n, (spectrum.counts * q * (1 + r)).sum(axis=1), n, spectrum.n_features)
        valid = side * slope > 0
        moving &= valid
        step = np.divide(ratio * excess, (np.sqrt(ratio) + 1) * slope, where=valid, out=np.zeros(n.shape))
        moving &= side * step > 4 * _EPSILON * np.abs(offset)
        if not moving.any():
            return np.where(valid, offset, np.nan)
        offset = np.where(moving, offset + step, offset)
        offset[~(np.abs(offset) < reach)] = np.nan


def _ridge_at(spectrum: Spectrum, n: np.ndarray, anchor: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The ridge kappa (1 - df1/n) at kappa = anchor + offset."""
    ridge = np.empty(offset.shape)
    for rows in _chunks(offset.size, spectrum.values.size):
        total = spectrum.values + anchor[rows, None] + offset[rows, None]
        kappa = anchor[rows] + offset[rows]
        learned, missed = (spectrum.values / total) @ spectrum.counts, (kappa[:, None] / total) @ spectrum.counts
        ridge[rows] = kappa * _one_minus(learned, missed, n[rows], spectrum.n_features)
    return ridge


def _squared_imaginary(distance: np.ndarray, weight: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Roots of sum(weight / (distance + square)) = 1, one per row of ``distance``.

    The inverse of the sum is concave in the square: Newton's first step ends below the root, and the others ascend.
    """
    lowest = np.maximum((weight - distance).max(axis=1), 0.0)
    square, moving, first = np.maximum(start, lowest), np.array(True), True
    while moving.any():
        ratio = weight / (distance + square[:, None])
        total = ratio.sum(axis=1)
        step = total * (total - 1) / (ratio / (distance + square[:, None])).sum(axis=1)
        moving = (step > 4 * _EPSILON * square) | (first & (step < 0))
        square, first = np.where(moving, np.maximum(square + step, lowest), square), False
    return square


def _one_minus(learned: np.ndarray, missed: np.ndarray, n: np.ndarray, n_features: float) -> np.ndarray:
    """1 - learned/n where learned + missed = n_features, by the form that cancels less."""
    return np.where(learned < missed, 1 - learned / n, ((n - n_features) + missed) / n)


def _chunks(n_rows: int, width: int) -> Iterator[slice]:
    """Slices of rows of the given width that fit the cache."""
    step = max(1, _CHUNK // width)
    return (slice(start, start + step) for start in range(0, n_rows, step))
