"""Exponents and standard errors from the growth of orthonormal frames, step by step."""

from __future__ import annotations

import numpy as np

N_BLOCKS = 20
ENOUGH_CHAINS = 8


def log_growth(diagonal: np.ndarray, lengths: np.ndarray, dimension: int, epsilon: float) -> np.ndarray:
    """Log of the factors ``|diagonal|`` by which frame vectors grew; -inf where only rounding of ``lengths``."""
    size = np.abs(diagonal)
    alive = size > 4 * np.sqrt(dimension) * epsilon * lengths
    return np.log(size, where=alive, out=np.full(size.shape, -np.inf))


def mean_growth(growth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of (chains, steps, k) log growths and its standard error, in descending order of the mean."""
    n_chains, n_steps, k = growth.shape
    mean, stderr = growth.mean((0, 1)), np.full(k, np.inf)
    if n_chains >= ENOUGH_CHAINS:
        samples = growth.mean(1)
    else:
        n_blocks = min(N_BLOCKS, n_steps)
        length = n_steps // n_blocks
        samples = growth[:, : n_blocks * length].reshape(n_chains * n_blocks, length, k).mean(1)
    known = np.isfinite(mean)
    if n_chains >= ENOUGH_CHAINS or n_steps >= 2:
        stderr[known] = samples[:, known].std(0, ddof=1) / np.sqrt(len(samples))
    order = np.argsort(-mean, kind="stable")
    return mean[order], stderr[order]
