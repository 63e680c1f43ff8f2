"""Simulated ridge regression: Gaussian training sets of a given spectrum, fitted in batches.

The measurement beside the theory of :mod:`symlearn.anisotropic_ridge`.
"""

from __future__ import annotations

import numpy as np

# Entries of one batch of training sets: 64 MB, with as much again for products.
_BATCH = 8_000_000


def simulated_errors(
    eigenvalues: np.ndarray,
    weights: np.ndarray,
    noise_variance: float,
    n_samples: int,
    ridge: np.ndarray,
    n_sets: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Test and train errors of independent fits, each (n_sets, R), for a target with the given weights (P,)."""
    test, train = np.empty((2, n_sets, ridge.size))
    size = max(1, _BATCH // (n_samples * eigenvalues.size))
    for start in range(0, n_sets, size):
        batch = slice(start, min(start + size, n_sets))
        x = rng.standard_normal((batch.stop - start, n_samples, eigenvalues.size)) * np.sqrt(eigenvalues)
        y = x @ weights + np.sqrt(noise_variance) * rng.standard_normal(x.shape[:2])
        fitted = ridge_path(x, y, ridge)
        test[batch] = ((fitted - weights[:, None]) ** 2 * eigenvalues[:, None]).sum(1) + noise_variance
        train[batch] = ((y[..., None] - x @ fitted) ** 2).mean(1)
    return test, train


def ridge_path(x: np.ndarray, y: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """Ridge solutions (sets, P, R) of a stack of problems, x (sets, N, P), y (sets, N), at all ridges (R,).

    One eigendecomposition per problem, of the smaller Gram matrix. With fewer samples than features the solution lies
    in the span of the samples, at negative ridges too.
    """
    n_samples, n_features = x.shape[1:]
    transposed = x.swapaxes(1, 2)
    dual = n_samples <= n_features
    eigenvalues, vectors = np.linalg.eigh((x @ transposed if dual else transposed @ x) / n_samples)
    target = y[..., None] if dual else transposed @ y[..., None]
    coefficients = vectors.swapaxes(1, 2) @ target / n_samples / (eigenvalues[..., None] + ridge)
    return (transposed @ vectors if dual else vectors) @ coefficients
