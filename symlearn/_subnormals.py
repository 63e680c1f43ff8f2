"""Arithmetic without subnormal numbers, which slow down every state that decays to zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_subnormals() -> Iterator[None]:
    """Within it, this thread flushes subnormal results to 0, in NumPy as in torch; after it, as before."""
    flushed = not torch.tensor(1e-38).mul(0.1).item()
    try:
        torch.set_flush_denormal(True)
        yield
    finally:
        torch.set_flush_denormal(flushed)
