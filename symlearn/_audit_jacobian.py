"""The Jacobian of all outputs with respect to all trained parameters, and its rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from symlearn._audit_verify import Bench
from symlearn._checks import invalid

LARGEST = 2**30  # bytes


def jacobian_rank(bench: Bench, rtol: float) -> int:
    """Number of singular values above ``rtol`` times the largest one."""
    parameters = [parameter for parameter in bench.model.parameters() if parameter.requires_grad]
    n_parameters, n_outputs = (sum(part.numel() for part in parts) for parts in (parameters, bench.outputs))
    if not n_outputs:
        raise invalid("model", "one that returns floating point tensors", "none")
    if any(not bool(part.isfinite().all()) for part in bench.outputs):
        raise invalid("model", "one with finite outputs on these inputs", "inf or nan")
    if (n_bytes := 8 * n_outputs * n_parameters) > LARGEST:
        size = f"{n_outputs:,} outputs and {n_parameters:,} parameters, {n_bytes / LARGEST:.1f} GiB"
        raise invalid("inputs", "few enough, and model small enough, for a Jacobian of 1 GiB", size)
    with torch.enable_grad():
        leaves = pytree.tree_leaves(bench.model(*bench.inputs, **bench.kwargs))
        outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        outputs = [leaf.reshape(-1) for leaf in outputs if leaf.requires_grad]
        if not outputs:
            raise invalid("model", "one whose outputs have derivatives", "outputs that depend on no trained parameter")
        rows = torch.cat([_rows(leaf, parameters) for leaf in outputs])
    singular = torch.linalg.svdvals(rows)
    return int((singular > rtol * singular[0]).sum())


def _rows(outputs: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Derivatives of every output, shape (outputs, parameters)."""

    def derivatives(place: int) -> Tensor:
        found = torch.autograd.grad(outputs[place], parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in found])

    return torch.stack([derivatives(place) for place in range(len(outputs))])
