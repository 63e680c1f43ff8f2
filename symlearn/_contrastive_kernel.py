"""Eigenmodes of the contrastive kernel, the cross-view correlation of a kernel's features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from symlearn._checks import invalid

_NEGATIVE = 1e-8


@dataclass(frozen=True)
class ContrastiveModes:
    r"""Spectrum of the cross-view correlation on the range of a kernel.

    Attributes
    ----------
    gamma : ndarray, shape (r,)
        Eigenvalues, descending.
    dual : ndarray, shape (2n, r)
        Column j holds the :math:`a_j` with :math:`v_j=\sum_ia_{ij}\phi(z_i)` for unit eigenvectors :math:`v_j`.
    """

    gamma: np.ndarray
    dual: np.ndarray


def contrastive_modes(kernel: np.ndarray, rcond: float, name: str = "kernel") -> ContrastiveModes:
    """Modes of a positive semidefinite kernel (2n, 2n) of stacked views; row i and row n + i are a pair."""
    n_views = len(kernel)
    values, vectors = eigh(kernel)
    largest = float(values[-1])
    if values[0] < -_NEGATIVE * max(largest, 0.0) or largest < 0:
        raise invalid(name, "positive semidefinite", f"an eigenvalue of {values[0]:.3g}")
    if not largest:
        raise invalid(name, "nonzero somewhere", "only zeros")
    kept = values > rcond * largest
    root = np.sqrt(values[kept])
    features = vectors[:, kept] * root  # (2n, r), K = features @ features.T
    product = features.T @ np.roll(features, n_views // 2, axis=0) / n_views
    gamma, modes = eigh((product + product.T) / 2)
    return ContrastiveModes(gamma[::-1].copy(), (vectors[:, kept] / root) @ modes[:, ::-1])


def center_views(kernel: np.ndarray) -> np.ndarray:
    """Kernel of the features minus their mean, for each of the two views separately."""
    n_pairs = len(kernel) // 2
    blocks = kernel.reshape(2, n_pairs, 2, n_pairs)
    rows = blocks - blocks.mean(axis=1, keepdims=True)
    centered = (rows - rows.mean(axis=3, keepdims=True)).reshape(kernel.shape)
    return (centered + centered.T) / 2
