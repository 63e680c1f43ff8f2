"""Arguments of :mod:`symlearn.anisotropic_ridge`: what its functions accept, and the one form of a spectrum."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from symlearn._checks import check_finite, check_nonnegative, check_positive, check_scalar, check_shape, invalid
from symlearn._effective_ridge import Edge, Spectrum, lowest_edge

# Beyond these magnitudes arguments are refused: squares, products with counts and their quotients stay inside float64.
LARGEST, MOST = 1e100, 1e50


def check_spectrum(eigenvalues: ArrayLike, multiplicities: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues >= 0 and multiplicities > 0 of the same length."""
    values = check_nonnegative("eigenvalues", check_shape("eigenvalues", eigenvalues, (None,)))
    if not values.size:
        raise invalid("eigenvalues", "of at least one direction", "an empty array")
    _check_magnitude("eigenvalues", values, 1 / LARGEST, LARGEST)
    if multiplicities is None:
        return values, np.ones(values.shape)
    counts = check_positive("multiplicities", check_shape("multiplicities", multiplicities, values.shape))
    _check_magnitude("multiplicities", counts, 1 / MOST, MOST)
    if counts.max() > 1e12 * counts.min():
        raise invalid("multiplicities", "within a factor 1e12 of each other", f"{counts.min():g} and {counts.max():g}")
    return values, counts


def check_samples(n_samples: ArrayLike) -> np.ndarray:
    """Numbers of samples, > 0."""
    n = check_positive("n_samples", n_samples)
    _check_magnitude("n_samples", n, 1 / MOST, MOST)
    return n


def check_grid(n_samples: ArrayLike, ridge: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of samples and finite ridges, broadcast against each other."""
    n, ridges = check_samples(n_samples), check_finite("ridge", ridge)
    _check_magnitude("ridge", ridges, 0.0, LARGEST)
    return broadcast("n_samples", n, "ridge", ridges)


def check_above_lowest(spectrum: Spectrum, n: np.ndarray, ridge: np.ndarray) -> Edge:
    """Ridges above the lowest one; returns the lowest edges where the ridge is negative, zeros elsewhere."""
    edges = Edge(*np.zeros((3, n.size)))
    negative = np.flatnonzero(ridge < 0)
    distinct, inverse = np.unique(n[negative], return_inverse=True)
    for field, values in zip(edges, lowest_edge(spectrum, distinct), strict=True):
        field[negative] = values[inverse]
    for index in negative[ridge[negative] <= edges.ridge[negative]][:1]:
        raise invalid("ridge", f"> min_ridge({n[index]:g}) = {edges.ridge[index]:.9g}", f"{ridge[index]:.9g}")
    return edges


def check_power(signal: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Signal powers >= 0 of the given shape."""
    power = check_nonnegative("signal", check_shape("signal", signal, shape))
    _check_magnitude("signal", power, 0.0, LARGEST)
    return power


def check_noise(noise_variance: float) -> float:
    """A noise variance >= 0."""
    noise = check_scalar("noise_variance", noise_variance)
    check_nonnegative("noise_variance", noise)
    _check_magnitude("noise_variance", np.asarray(noise), 0.0, LARGEST)
    return noise


def check_stages(
    fractions: ArrayLike, signal: ArrayLike, noise_variance: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fractions that sum to 1, the power of every stage, and the noise variance."""
    f = check_positive("fractions", check_shape("fractions", fractions, (None,)))
    if not math.isclose(f.sum(), 1, rel_tol=1e-9):
        raise invalid("fractions", "of sum 1", f"a sum of {f.sum():.9g}")
    return f, check_power(signal, f.shape), check_noise(noise_variance)


def check_data(X: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays, centred; a constant column is exactly 0 afterwards."""
    features, target = check_shape("X", X, (None, None)), check_shape("y", y, (None,))
    if len(target) != len(features):
        raise invalid("y", f"as long as X ({len(features)})", f"length {len(target)}")
    if not features.size:
        raise invalid("X", "of at least one sample and one feature", f"shape {features.shape}")
    for name, array in (("X", features), ("y", target)):
        _check_magnitude(name, array, 0.0, 1e45)
        constant = np.ptp(array, axis=0) == 0
        if np.all(constant):
            raise invalid(name, "not constant", "only constant " + ("columns" if array.ndim > 1 else "targets"))
        array -= array.mean(axis=0)
        array[..., constant] = 0.0
        if np.abs(array).max() < 1e-30:
            raise invalid(name, "of deviations from the mean above 1e-30", float(np.abs(array).max()))
    return features, target


def broadcast(name: str, values: np.ndarray, other_name: str, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of one shape; the error names the second one."""
    try:
        first, second = np.broadcast_arrays(values, others)
    except ValueError:
        condition = f"of a shape that broadcasts with {name} of shape {values.shape}"
        raise invalid(other_name, condition, f"shape {others.shape}") from None
    return first, second


def merge(values: np.ndarray, counts: np.ndarray, power: np.ndarray) -> tuple[Spectrum, np.ndarray]:
    """Distinct positive eigenvalues in descending order, with the counts and the power of each; read-only."""
    positive = values > 0
    distinct, group = np.unique(values[positive], return_inverse=True)
    totals = (np.bincount(group, weights=weights[positive]) for weights in (counts, power))
    arrays = [np.ascontiguousarray(array[::-1]) for array in (distinct, *totals)]
    for array in arrays:
        array.flags.writeable = False
    return Spectrum(arrays[0], arrays[1], math.fsum(arrays[1])), arrays[2]


def _check_magnitude(name: str, values: np.ndarray, low: float, high: float) -> None:
    for index in np.argwhere((values != 0) & ((np.abs(values) < low) | (np.abs(values) > high)))[:1]:
        condition = f"between {low:g} and {high:g}" if low else f"at most {high:g}"
        raise invalid(name, condition, float(values[tuple(index)]))
