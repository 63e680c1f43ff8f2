"""The law of a batch mean of scalar curvatures, and the factors by which it multiplies a parameter in one SGD step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from symlearn._checks import check_finite, check_int, check_nonnegative, check_rng, check_scalar, invalid

_CHUNK = 1_000_000


class BatchMean(NamedTuple):
    """Values of a batch mean with their probabilities; equal probabilities of samples if not ``exact``."""

    values: np.ndarray
    probabilities: np.ndarray
    exact: bool


def check_vector(name: str, value: ArrayLike) -> np.ndarray:
    """A non-empty one-dimensional array of finite numbers."""
    array = check_finite(name, value)
    if array.ndim != 1 or not array.size:
        raise invalid(name, "one-dimensional and not empty", f"shape {array.shape}")
    return array


def check_weights(weights: ArrayLike | None, size: int) -> np.ndarray:
    """Probabilities of ``size`` values: non-negative weights divided by their sum, uniform for None."""
    if weights is None:
        return np.full(size, 1 / size)
    array = check_nonnegative("weights", weights)
    if array.shape != (size,):
        raise invalid("weights", f"of shape ({size},)", f"shape {array.shape}")
    if not array.any():
        raise invalid("weights", "of positive sum", 0)
    array = array / array.max()
    return array / array.sum()


def check_decay(weight_decay: ArrayLike) -> float:
    """One weight decay >= 0."""
    return float(check_nonnegative("weight_decay", check_scalar("weight_decay", weight_decay)))


def batch_mean(
    h: np.ndarray,
    weights: np.ndarray,
    batch_size: int,
    max_terms: int,
    n_samples: int,
    rng: int | np.random.Generator | None,
) -> BatchMean:
    """Law of the mean of ``batch_size`` independent draws from ``h``: all multisets, or samples when they are many."""
    size = check_int("batch_size", batch_size, 1)
    limit, samples = check_int("max_terms", max_terms, 1), check_int("n_samples", n_samples, 2)
    generator = check_rng(rng)
    values, inverse = np.unique(h[weights > 0], return_inverse=True)
    shares = np.bincount(inverse, weights[weights > 0])
    if size == 1 or values.size == 1:
        return BatchMean(values, shares, True)
    if math.comb(size + values.size - 1, size) <= limit:
        return _all_multisets(values, shares, size)
    means = _sampled_means(values, shares, size, samples, generator)
    return BatchMean(means, np.full(samples, 1 / samples), False)


def log_factors(means: np.ndarray, lr: np.ndarray, weight_decay: float) -> Iterator[tuple[slice, np.ndarray]]:
    r"""Slices of the flat ``lr`` with :math:`\log|1-\eta(\lambda+\hat h)|`, (slice, means); -inf where it is log 0."""
    with np.errstate(over="ignore"):
        largest = lr.max(initial=0.0) * np.abs(means + weight_decay).max()
    if not np.isfinite(largest):
        raise invalid("lr", "such that lr * (h + weight_decay) is finite", float(lr.max()))
    rows = max(1, _CHUNK // means.size)
    for start in range(0, lr.size, rows):
        part = slice(start, start + rows)
        yield part, log_distance_to_one(lr[part, None] * (means + weight_decay))


def log_distance_to_one(z: np.ndarray) -> np.ndarray:
    """``log|1 - z|``, accurate for small ``z`` too; -inf at 1."""
    with np.errstate(divide="ignore"):
        return np.where(z < 1, np.log1p(-np.minimum(z, 1.0)), np.log(np.maximum(z - 1, 0.0)))


def _all_multisets(values: np.ndarray, shares: np.ndarray, size: int) -> BatchMean:
    remaining, total, log_probability = np.array([size]), np.zeros(1), np.full(1, gammaln(size + 1))
    for value, share in zip(values[:-1], shares[:-1], strict=True):
        parent = np.repeat(np.arange(remaining.size), remaining + 1)
        count = np.arange(parent.size) - np.repeat(np.cumsum(remaining + 1) - remaining - 1, remaining + 1)
        remaining, total = remaining[parent] - count, total[parent] + count * value
        log_probability = log_probability[parent] + count * np.log(share) - gammaln(count + 1)
    total += remaining * values[-1]
    log_probability += remaining * np.log(shares[-1]) - gammaln(remaining + 1)
    probability = np.exp(log_probability)
    possible = probability > 0
    return BatchMean(total[possible] / size, probability[possible] / probability.sum(), True)


def _sampled_means(
    values: np.ndarray, shares: np.ndarray, size: int, n_samples: int, rng: np.random.Generator
) -> np.ndarray:
    rows = max(1, _CHUNK // min(size, values.size))
    means = np.empty(n_samples)
    for start in range(0, n_samples, rows):
        part = means[start : start + rows]
        if size <= values.size:
            part[:] = rng.choice(values, (part.size, size), p=shares).mean(1)
        else:
            part[:] = rng.multinomial(size, shares, part.size) @ values / size
    return means
