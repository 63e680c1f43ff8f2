r"""Densities given by the slope of their logarithm, and the stationary densities of one SGD product in this form.

The logarithm is integrated outwards from its maximum on panels of Gauss-Legendre nodes, in a coordinate in which both
tails are smooth: :math:`\log|v|` on a branch, the inverse hyperbolic sine of the deviation on the whole line. Closed
forms subtract numbers of the size 1 / temperature; this does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.polynomial import legendre
from scipy.optimize import brentq

_N_NODES = 16
_NODES, _WEIGHTS = legendre.leggauss(_N_NODES)
_FIT = (np.arange(_N_NODES)[:, None] + 0.5) * legendre.legvander(_NODES, _N_NODES - 1).T * _WEIGHTS
_INTEGRATE = legendre.legint(np.eye(_N_NODES), lbnd=-1)
_AT_NODES = legendre.legvander(_NODES, _N_NODES)
# Panels on which the logarithm changes by 2 at most are fitted to 1e-16; those 100 below the maximum are left alone.
_LARGEST_CHANGE, _DEPTH = 2.0, 100.0
_NARROWEST = 1e-11
_WIDEST, _CORE = 0.5, 40.0
# The logarithms of the smallest and the largest number, roughly.
_SMALLEST, _LARGEST = -746.0, 710.0
_POINTS_PER_CHUNK = 1 << 16


class Table:
    """A density in the coordinate u from the slope of its logarithm.

    Parameters
    ----------
    slope : callable
        Derivative of the log density, vectorised.
    edges : ndarray
        Panels on which the slope is a polynomial to rounding. They cover the support.
    orders : sequence of int
        The integrals of ``exp(order * u)`` under the density that are to be accurate.

    Attributes
    ----------
    resolved : bool
        Whether float64 is fine enough for the highest slopes; if not, there is no table.
    """

    def __init__(self, slope: Callable[[np.ndarray], np.ndarray], edges: np.ndarray, orders: Sequence[int]) -> None:
        self.slope = slope
        while True:
            middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
            points = middle[:, None] + half[:, None] * _NODES
            steepness = slope(points)
            self.edges, self.middle, self.half, self.points = edges, middle, half, points
            self._integrate(steepness)
            change = 2 * half * np.abs(steepness).max(1)
            relevant = np.zeros(half.size, dtype=bool)
            for order in orders:
                level = self.logs + order * points
                relevant |= level.max(1) + change / 4 > level.max() - _DEPTH
            steep = relevant & (change > _LARGEST_CHANGE)
            wide = half > _NARROWEST * np.maximum(np.abs(middle), 1)
            if not (steep & wide).any():
                break
            edges = _cut(
                edges, np.where(steep & wide, np.clip(np.ceil(change / _LARGEST_CHANGE), 1, 16), 1).astype(int)
            )
        self.resolved = not steep.any() and abs(float(self.logs.max())) < _LARGEST_CHANGE
        if not self.resolved:
            return
        density = np.exp(self.logs)
        masses = half * (density @ _WEIGHTS)
        self.total = math.fsum(masses)
        self.masses = density * half[:, None] * _WEIGHTS / self.total
        self._below = np.append(0.0, np.cumsum(masses)) / self.total
        self._above = np.append(np.cumsum(masses[::-1])[::-1], 0.0) / self.total
        self._density = (_FIT @ density.T) * half / self.total
        self._mass = _INTEGRATE @ self._density

    def _integrate(self, steepness: np.ndarray) -> None:
        """Log density at edges and nodes, 0 at the highest edge."""
        rise = _INTEGRATE @ (_FIT @ steepness.T) * self.half
        jumps = self.half * (steepness @ _WEIGHTS)
        start = int(np.abs(self.edges).argmin())
        for _ in range(20):  # what appears as the highest edge from far away may be another one from near by
            right, left = np.cumsum(jumps[start:]), -np.cumsum(jumps[:start][::-1])[::-1]
            heights = np.concatenate([left, [0.0], right])
            if heights[start] == heights.max():
                break
            start = int(heights.argmax())
        self._log = rise
        self._log[0] += heights[:-1]
        self.logs = (_AT_NODES @ self._log).T

    def log_density(self, u: np.ndarray) -> np.ndarray:
        """Logarithm of the normalised density; -inf outside of the panels."""
        result = np.full(u.shape, -np.inf)
        inside = (u >= self.edges[0]) & (u <= self.edges[-1])
        panel, x = self._locate(u[inside])
        result[inside] = legendre.legval(x, self._log[:, panel], tensor=False) - math.log(self.total)
        return result

    def below(self, u: np.ndarray, *, upper: bool = False) -> np.ndarray:
        """Mass below u, or above it."""
        panel, x = self._locate(np.clip(u, self.edges[0], self.edges[-1]))
        part = legendre.legval(x, self._mass[:, panel], tensor=False)
        found = self._above[panel] - part if upper else self._below[panel] + part
        return np.clip(found, 0.0, 1.0)

    def quantile(self, q: np.ndarray, *, upper: bool = False) -> np.ndarray:
        """The u with the mass q below it, or above it."""
        result = np.empty(q.shape)
        for start in range(0, q.size, _POINTS_PER_CHUNK):
            part = slice(start, start + _POINTS_PER_CHUNK)
            result[part] = self._quantile(q[part], upper)
        return result

    def _quantile(self, q: np.ndarray, upper: bool) -> np.ndarray:
        last = self.half.size - 1
        if upper:
            panel = np.clip(np.searchsorted(-self._above, -q, "right") - 1, 0, last)
            wanted = self._above[panel] - q
        else:
            panel = np.clip(np.searchsorted(self._below, q, "right") - 1, 0, last)
            wanted = q - self._below[panel]
        mass, density = self._mass[:, panel], self._density[:, panel]
        whole = mass[0] + mass[1:].sum(0)
        x = 2 * np.divide(wanted, whole, where=whole > 0, out=np.zeros(q.size)) - 1
        for _ in range(8):  # Newton's method: the density changes by a factor of 8 at most
            np.clip(x, -1.0, 1.0, out=x)
            error = legendre.legval(x, mass, tensor=False) - wanted
            rate = legendre.legval(x, density, tensor=False)
            x -= np.divide(error, rate, where=rate > 0, out=np.zeros(q.size))
        return self.middle[panel] + self.half[panel] * np.clip(x, -1.0, 1.0)

    def _locate(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Panels, and positions in them from -1 to 1."""
        panel = np.clip(np.searchsorted(self.edges, u, "right") - 1, 0, self.half.size - 1)
        return panel, (u - self.middle[panel]) / self.half[panel]


class LineDensity:
    r"""Depth 1: Pearson's type IV on the whole line, with the Gaussian as its limit; v = mode + scale * sinh(u).

    ``rho`` is :math:`\alpha_2/\sqrt{\alpha_1\alpha_3}` and ``pull`` is :math:`\beta_1+\lambda/2`.
    """

    def __init__(self, alpha1: float, alpha3: float, rho: float, pull: float, beta2: float, temperature: float) -> None:
        root1, root3 = math.sqrt(alpha1), math.sqrt(alpha3)
        floor = alpha1 * (1 - rho) * (1 + rho)  # the lowest noise, if alpha3 is not 0
        steepness = 2 * alpha3 + pull / temperature
        self._mean, self._mode = beta2 / pull, (beta2 / temperature + 2 * rho * root1 * root3) / steepness
        spread = ((root3 * self._mean - rho * root1) ** 2 + floor) * temperature / pull
        excess = alpha3 * temperature / pull
        self._var = spread / (1 - excess) if excess < 1 else math.inf
        offset = root3 * self._mode - rho * root1
        noise = offset**2 + floor
        self._scale = math.sqrt(noise / steepness)
        # The noise over that at the mode is 1 + linear * sinh(u) + square * sinh(u)**2.
        self._linear, square = 2 * root3 * offset * self._scale / noise, alpha3 / steepness
        self._rest = square * floor / noise
        edges = _edges(np.pi / 2, -340.0, 340.0)
        if square > 0:
            pole = np.arcsinh((-self._linear / 2 + 1j * math.sqrt(self._rest)) / square)
            reach = _LARGEST + abs(math.log(self._scale)) + _CORE
            around = _edges(abs(pole.imag), -reach, reach, float(pole.real))
            edges = np.union1d(_edges(np.pi / 2, -reach, reach), around)
        self.table = Table(self._slope, edges, (0,))

    def _slope(self, u: np.ndarray) -> np.ndarray:
        t, q = np.tanh(u), 1 / np.cosh(np.clip(u, -_LARGEST, _LARGEST))
        return t - t / ((q + self._linear / 2 * t) ** 2 + self._rest * t**2)

    def logpdf(self, v: np.ndarray) -> np.ndarray:
        u = self._coordinate(v)
        with np.errstate(invalid="ignore"):  # at infinity, where the density is 0
            found = self.table.log_density(u) - math.log(self._scale) - np.logaddexp(u, -u) + math.log(2)
        return np.where(np.isinf(u), -np.inf, found)

    def cdf(self, v: np.ndarray) -> np.ndarray:
        return np.where(np.isinf(v), v > 0, self.table.below(self._coordinate(v)))

    def ppf(self, q: np.ndarray) -> np.ndarray:
        inner = self._mode + self._scale * np.sinh(np.clip(self.table.quantile(q), -_LARGEST, _LARGEST))
        return np.where(q <= 0, -np.inf, np.where(q >= 1, np.inf, inner))

    def mean(self) -> float:
        return self._mean

    def var(self) -> float:
        return self._var

    def mode(self) -> float:
        return self._mode

    def _coordinate(self, v: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.arcsinh((v - self._mode) / self._scale)


class BranchDensity:
    r"""Depth 2 or more, v > 0, in the coordinate u = log(v / unit).

    With the unit :math:`\sqrt{\alpha_1/\alpha_3}` the noise is :math:`\alpha_1(1-2\rho e^u+e^{2u})`. ``beta2`` is what
    pulls away from 0: for depth 2 less half of the weight decay.
    """

    def __init__(
        self, alpha1: float, alpha3: float, rho: float, beta1: float, beta2: float, temperature: float, depth: int
    ) -> None:
        self._depth, self._noisy_slope = depth, alpha3 > 0
        self._gap = 1 - rho
        log_beta1, log_beta2 = math.log(beta1), math.log(beta2)
        self._log_unit = (math.log(alpha1) - math.log(alpha3)) / 2 if alpha3 > 0 else log_beta2 - log_beta1
        log_size = math.log(depth) + math.log(temperature) + math.log(alpha1)
        self._log_slope = log_beta1 + 2 / depth * self._log_unit - log_size
        self._log_drive = log_beta2 + (2 / depth - 1) * self._log_unit - log_size
        # At v = 0 the density is v to this power, less 1; exact where the critical temperature is near.
        self.power = (beta2 / alpha1 - temperature) / (2 * temperature) if depth == 2 else math.inf
        pole = math.acos(max(rho, -1.0)) if alpha3 > 0 else math.inf
        low, high = _SMALLEST - self._log_unit, _LARGEST - self._log_unit
        if depth > 2:  # left of this the density has its essential zero
            low = min(low, depth / (depth - 2) * (self._log_drive - 6))
        edges = _edges(pole, min(low, -_CORE), max(high, _CORE))
        if depth == 2:
            edges = np.append(_doubling(edges[0], -2 * _DEPTH / self.power), edges)
        self.table = Table(self._slope, edges, (0, 1, 2))

    def _slope(self, u: np.ndarray) -> np.ndarray:
        n = self._depth
        log_noise, steepness = self._log_noise(u)
        downhill = _exp(self._log_slope + 2 / n * u - log_noise)
        if n > 2:
            uphill = _exp(self._log_drive + (2 / n - 1) * u - log_noise)
            return 3 / n - 2 - steepness + uphill - downhill
        # 1 / c - 1 goes to 0 on the left, so that the slope there is the exact power.
        excess = -np.expm1(-log_noise)
        return self.power - steepness - math.exp(self._log_drive) * excess - downhill

    def _log_noise(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithm of the noise over alpha1, and its derivative."""
        if not self._noisy_slope:
            return np.zeros(u.shape), np.zeros(u.shape)
        inner = np.clip(u, -300.0, 300.0)
        even = 4 * np.sinh(inner / 2) ** 2 + 2 * self._gap  # noise times exp(-u)
        small = np.exp(np.minimum(u, -1.0))
        log_noise = np.where(u < -1, np.log1p(small * (small + 2 * self._gap - 2)), u + np.log(even))
        log_noise = np.where(u > 300.0, 2 * u, log_noise)
        return log_noise, 1 + 2 * np.sinh(inner) / even

    def logpdf(self, z: np.ndarray) -> np.ndarray:
        """At z >= 0; at 0 the limit."""
        with np.errstate(divide="ignore"):
            u = np.log(z) - self._log_unit
        if self.power == 1:
            u = np.maximum(u, self.table.edges[0])
        elif self.power < 1:
            return np.where(z == 0, np.inf, self._log_density_of_v(u))
        return self._log_density_of_v(u)

    def _log_density_of_v(self, u: np.ndarray) -> np.ndarray:
        found = self.table.log_density(u)
        return np.where(np.isfinite(u), found - np.where(np.isfinite(u), u, 0.0) - self._log_unit, -np.inf)

    def cdf(self, z: np.ndarray, *, upper: bool = False) -> np.ndarray:
        with np.errstate(divide="ignore"):
            u = np.log(np.maximum(z, 0.0)) - self._log_unit
        outside = 1.0 if upper else 0.0
        return np.where(z <= 0, outside, np.where(np.isinf(z), 1 - outside, self.table.below(u, upper=upper)))

    def ppf(self, q: np.ndarray, *, upper: bool = False) -> np.ndarray:
        inner = _exp(self._log_unit + self.table.quantile(q, upper=upper))
        lowest, highest = (1.0, 0.0) if upper else (0.0, 1.0)
        return np.where(q == lowest, 0.0, np.where(q == highest, np.inf, inner))

    def mean(self) -> float:
        return math.exp(self._log_unit) * self._scaled_mean()

    def var(self) -> float:
        deviation = _exp(self.table.points) - self._scaled_mean()
        return math.exp(2 * self._log_unit) * float((self.table.masses * deviation**2).sum())

    def mode(self) -> float:
        """The highest point of the density of v."""
        if self.power <= 1:
            return 0.0
        points = self.table.points.ravel()
        best = int((self.table.logs.ravel() - points).argmax())
        left, right = points[max(best - 1, 0)], points[min(best + 1, points.size - 1)]

        def slope(u: float) -> float:
            return float(self._slope(np.array(u))) - 1

        if slope(left) <= 0:  # at the transition: the density falls from the first point on
            return 0.0
        top = brentq(slope, left, right, xtol=1e-15, rtol=1e-15) if slope(right) < 0 else right
        return math.exp(self._log_unit + top)

    def _scaled_mean(self) -> float:
        return float((self.table.masses * _exp(self.table.points)).sum())


def _exp(x: np.ndarray) -> np.ndarray:
    """Bounded, so that no sum or product is undefined."""
    return np.exp(np.minimum(x, 350.0))


def _edges(height: float, low: float, high: float, center: float = 0.0) -> np.ndarray:
    """Edges of panels for a function with poles at ``center +- 1j * height``: at most half the distance wide."""
    offsets, height = [0.0], max(height, _NARROWEST)
    while offsets[-1] < max(high - center, center - low):
        distance = math.hypot(offsets[-1], height)
        offsets.append(offsets[-1] + (min(_WIDEST, distance / 2) if offsets[-1] < _CORE else 4 * _WIDEST))
    right = np.array(offsets)
    return np.unique(np.concatenate([center - right, center + right]))


def _doubling(first: float, last: float) -> np.ndarray:
    """Edges further and further to the left of ``first``, which is not one of them, at least to ``last``."""
    steps = max(1, math.ceil(math.log2(max(last / first, 1.0))) + 1)
    return first * 2.0 ** np.arange(steps, 0, -1)


def _cut(edges: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """Each panel cut into so many equal ones."""
    panel = np.repeat(np.arange(pieces.size), pieces)
    index = np.arange(panel.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return np.append(edges[panel] + np.diff(edges)[panel] * index / pieces[panel], edges[-1])
