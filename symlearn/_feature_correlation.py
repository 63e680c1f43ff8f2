"""Correlations of features over all ranks of a distributed run, and predictors made of their spectrum."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from symlearn._checks import invalid


def batch_correlation(z: Tensor, dtype: torch.dtype, *, sync: bool) -> Tensor:
    """Mean of z zᵀ over the rows (N, d) of all ranks, as (d, d).

    Sums and counts are added, not means. Faults are looked for in the sums, so that every rank sees them and raises the
    same error: none is left waiting.
    """
    rows = z.detach().to(dtype)
    sums = torch.cat([(rows.T @ rows).flatten(), rows.new_tensor([len(rows)])])
    if sync and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(sums)
    total, n_rows = sums[:-1].view(z.shape[1], z.shape[1]), sums[-1]
    if not n_rows:
        raise invalid("z", "of at least one row", z)
    if not torch.isfinite(total).all():
        raise invalid("z", f"finite, and its squares in {dtype}", "NaN or infinity")
    return (total + total.T) / (2 * n_rows)


def spectral_weight(corr: Tensor, *, eps: float, exponent: float, normalize: bool) -> Tensor:
    """U (s**exponent + eps max s) Uᵀ from the symmetric part of correlations (..., d, d)."""
    half = corr.detach().to(torch.promote_types(corr.dtype, torch.float32)) / 2
    if not torch.isfinite(half).all():
        raise invalid("corr", "finite", "NaN or infinity")
    values, vectors = torch.linalg.eigh(half + half.mT)
    values = values.clamp(min=0)
    largest = values[..., -1:]
    if not (largest > 0).all():
        raise invalid("corr", "with a positive eigenvalue", "none")
    if normalize:
        values, largest = values / largest, torch.ones_like(largest)
    spectrum = values**exponent + eps * largest
    return ((vectors * spectrum.unsqueeze(-2)) @ vectors.mT).to(corr.dtype)


def symmetry_rtol(matrix: Any) -> float:
    """Room for the rounding of a product z.T @ z in the dtype of the matrix."""
    if isinstance(matrix, Tensor) and matrix.is_floating_point():
        return max(1e-8, 32 * torch.finfo(matrix.dtype).eps)
    if isinstance(matrix, np.ndarray) and matrix.dtype.kind == "f":
        return max(1e-8, 32 * float(np.finfo(matrix.dtype).eps))
    return 1e-8
