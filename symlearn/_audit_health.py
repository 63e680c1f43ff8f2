"""Units that do nothing or the same as another, and parameters without a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from symlearn._audit_solve import Family
from symlearn._audit_verify import Bench
from symlearn._unit_symmetry import UnitPermutation, UnitSymmetry, occurrences, sums_by_unit

PARALLEL = 1e-6  # largest sine of the angle between duplicates: above the rounding of float32


def imbalance(symmetry: UnitSymmetry, bench: Bench) -> float:
    """Mean over units of |in - out| / (in + out), the sums of squares with positive and with negative exponent."""
    squares = {name: bench.values[name].square() for name in symmetry.names if name not in bench.buffers}
    signs = [(name, 1 if exponent > 0 else -1, index) for name, exponent, index in symmetry.terms if name in squares]
    difference = sums_by_unit(signs, symmetry.units, squares)
    total = sums_by_unit([(name, 1, index) for name, _, index in signs], symmetry.units, squares)
    return float(torch.where(total > 0, difference.abs() / total, 0.0).mean())


def measure(symmetry: UnitSymmetry, bench: Bench, gradients: Mapping[str, Tensor]) -> tuple[float, float]:
    """Largest charge of a unit, and how far synaptic saliency is from conserved: both relative for the latter."""
    if all(name in bench.buffers for name in symmetry.names):
        return math.nan, math.nan
    charge = symmetry.charge(bench.values)
    largest = float((torch.linalg.eigvalsh(charge) if charge.ndim == 3 else charge).abs().max())
    terms = [term for term in symmetry.terms if term[0] in gradients]
    if not terms or symmetry.buffers:
        return largest, math.nan
    saliency = {name: bench.values[name] * gradients[name] for name, _, _ in terms}
    net = sums_by_unit(terms, symmetry.units, saliency).abs()
    sizes = {name: each.abs() for name, each in saliency.items()}
    gross = sums_by_unit([(name, abs(exponent), index) for name, exponent, index in terms], symmetry.units, sizes)
    return largest, float(net.max() / gross.max()) if float(gross.max()) else math.nan


def unit_health(
    bench: Bench,
    found: list[tuple[Family, UnitPermutation]],
    rescaled: set[str],
    homogeneous: set[str],
    gradients: Mapping[str, Tensor],
) -> list[tuple[Any, ...]]:
    """The fields of ``UnitHealth`` for every space, in their order.

    ``rescaled`` has the parameters that write into units which can be rescaled, ``homogeneous`` those among them where
    incoming and outgoing weights have exponents 1 and -1.
    """
    health = []
    for family, symmetry in found:
        roles = {key[0]: key[2] for key in family.keys}
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {"in": [], "out": [], "gain": []}
        for name, _, index in symmetry.terms:
            if name in bench.buffers:
                continue
            role = roles.get(name, "out")
            side = "in" if role == "in" else "gain" if role in ("gain", "slope") else "out"
            if role in ("in", "out") and {key[2] for key in family.keys if key[0] == name} == {"in", "out"}:
                side = "out" if index.shape[0] > 1 else "in"
            tensor = bench.tensors[name].detach()
            gradient = gradients.get(name, torch.zeros_like(tensor))
            parts[side].append((_rows(tensor, index, symmetry.units), _rows(gradient, index, symmetry.units)))
        if not parts["out"]:
            continue
        incoming = torch.cat([rows for rows, _ in parts["out"]], 1)
        n = symmetry.units
        no_reader = torch.zeros(n, dtype=torch.bool)
        silent = torch.zeros(n, dtype=torch.bool)
        if parts["in"]:
            no_reader = torch.cat([rows for rows, _ in parts["in"]], 1).abs().amax(1) == 0
            silent = torch.cat([rows for _, rows in parts["in"]], 1).abs().amax(1) == 0
        dead = no_reader | (incoming.abs().amax(1) == 0)
        if parts["gain"]:
            dead |= silent & (parts["gain"][0][0].abs().amax(1) == 0)
        writers = [name for name, _, _ in symmetry.terms if roles.get(name, "out") not in ("in",)]
        parallel = any(name in rescaled for name in writers)
        pairs = _duplicates(incoming, parallel=parallel)
        whole = torch.cat([rows for side in parts.values() for rows, _ in side], 1)
        trapped = _trapped(whole, pairs, parallel=any(name in homogeneous for name in writers))
        rank, effective_rank = _ranks(incoming, bench.resolution)
        space = writers[0] if writers else symmetry.names[0]
        quiet = _which(silent & ~dead)
        health.append((space, n, _which(dead), pairs, quiet, trapped, rank, effective_rank, symmetry))
    return health


def random_gradients(bench: Bench) -> dict[str, Tensor]:
    """Gradient of the outputs times random numbers, for every parameter that has one."""
    parameters = dict(bench.model.named_parameters())
    flags = {name: tensor.requires_grad for name, tensor in parameters.items()}
    generator = torch.Generator().manual_seed(1)
    try:
        for tensor in parameters.values():
            tensor.requires_grad_(tensor.is_floating_point())
        with torch.enable_grad():
            leaves = pytree.tree_leaves(bench.model(*bench.inputs, **bench.kwargs))
            outputs = [
                leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.requires_grad
            ]
            if not outputs:
                return {}
            total = torch.stack(
                [(leaf * torch.randn(leaf.shape, dtype=leaf.dtype, generator=generator)).sum() for leaf in outputs]
            ).sum()
            gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    except RuntimeError:  # a forward pass without derivatives
        return {}
    finally:
        for name, tensor in parameters.items():
            tensor.requires_grad_(flags[name])
    return {name: gradient for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def inert_entries(bench: Bench, gradients: Mapping[str, Tensor]) -> dict[str, int]:
    """Trained parameters with entries that have no gradient, to rounding, and how many."""
    largest = max((float(gradient.abs().max()) for gradient in gradients.values()), default=0.0)
    inert = {}
    for name, gradient in gradients.items():
        count = int((gradient.abs() <= 1e-13 * largest).sum())
        if count and name in bench.trainable:
            inert[name] = count
    return inert


def _rows(tensor: Tensor, index: Tensor, units: int) -> Tensor:
    """All entries of each unit, one row per unit."""
    axes = [axis for axis in range(index.ndim) if index.shape[axis] > 1] or list(range(min(1, index.ndim)))
    flat = tensor.movedim(axes, list(range(len(axes)))).flatten(0, max(len(axes) - 1, 0))
    return torch.stack([flat[place].reshape(-1) for place in occurrences(index, units)])


def _duplicates(rows: Tensor, *, parallel: bool) -> tuple[tuple[int, int], ...]:
    norms = rows.norm(dim=1)
    scaled = rows / norms.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
    product = scaled @ scaled.T
    alike = (product > 1 - 1e-12).triu(1) & (norms > 0)[:, None] & (norms > 0)
    pairs = []
    for one, two in alike.nonzero().tolist():
        distance = (scaled[one] - scaled[two]).norm() if parallel else (rows[one] - rows[two]).norm() / norms[one]
        if float(distance) <= PARALLEL:
            pairs.append((one, two))
    return tuple(pairs)


def _trapped(whole: Tensor, pairs: Iterable[tuple[int, int]], *, parallel: bool) -> tuple[tuple[int, int], ...]:
    """Pairs with all weights equal, or parallel where units can be rescaled: their gradients are so too."""
    found = []
    for one, two in pairs:
        first, second = whole[one], whole[two]
        factor = second.norm() / first.norm() if parallel else 1.0
        if bool((factor * first - second).norm() <= PARALLEL * second.norm()):
            found.append((one, two))
    return tuple(found)


def _ranks(rows: Tensor, resolution: float) -> tuple[int, float]:
    """Numerical rank, and the exponential of the entropy of the singular values (Roy and Vetterli, 2007)."""
    if resolution > 1e-9:  # squares of the singular values resolve what float32 and coarser types can hold
        gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
        values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    else:
        values = torch.linalg.svdvals(rows)
    largest = float(values.max()) if values.numel() else 0.0
    if not largest:
        return 0, 0.0
    share = values / values.sum()
    entropy = -torch.xlogy(share, share).sum()
    return int((values > max(rows.shape) * resolution * largest).sum()), float(entropy.exp())


def _which(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().reshape(-1).tolist())
