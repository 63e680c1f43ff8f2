"""What to do about what an audit found: the action as a line of code, its predicted effect, and where it is proved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from symlearn._audit_report import Finding, Recommendation, UnitHealth, listed
from symlearn._audit_verify import Bench
from symlearn._unit_symmetry import UnitSymmetry, sums_by_unit

LARGE_IMBALANCE = 0.5
LARGE_EPS = 0.01  # share of the variance in a norm
FAR = 0.05  # logarithm of a factor to the noise equilibrium

Predicted = tuple[float, float]  # before and after


def recommend(
    bench: Bench,
    symmetries: Sequence[Finding],
    units: Sequence[UnitHealth],
    inert: dict[str, int],
    *,
    balanced: Callable[[], Predicted],
    pruned: Callable[[], tuple[float, float, bool]],
    objective: Predicted | None,
    weight_decay: float,
) -> tuple[Recommendation, ...]:
    """One recommendation per kind of finding, with the numbers of this model in it."""
    advice = [
        _about_scale(bench, symmetries, weight_decay),
        _about_eps(bench),
        _about_imbalance(symmetries, balanced),
        _about_noise(symmetries, objective),
        _about_idle_units(units, pruned),
        _about_trapped_units(units),
        _about_inert_biases(bench, inert),
    ]
    return tuple(each for each in advice if each is not None)


def eps_shares(bench: Bench) -> dict[str, float]:
    """Share of eps in the variance that each norm divides by, by module."""
    shares: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            variance = _variance(module, args[0]) if args and isinstance(args[0], Tensor) else None
            if variance is not None and variance.numel() and module.eps is not None:
                shares[name] = float((module.eps / (variance + module.eps)).mean())

        return hook

    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    handles = [
        module.register_forward_pre_hook(watch(name))
        for name, module in bench.model.named_modules()
        if isinstance(module, norms)
    ]
    try:
        bench.run()
    finally:
        for handle in handles:
            handle.remove()
    return shares


def _variance(module: Any, x: Tensor) -> Tensor | None:
    """What the module divides by, squared, without eps."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if module.running_var is not None:
            return module.running_var
        return x.transpose(0, 1).flatten(1).var(1, correction=0)
    if isinstance(module, nn.GroupNorm):
        return x.reshape(len(x), module.num_groups, -1).var(-1, correction=0)
    flat = x.flatten(x.ndim - len(module.normalized_shape))
    return flat.var(-1, correction=0) if isinstance(module, nn.LayerNorm) else flat.square().mean(-1)


def _about_scale(bench: Bench, symmetries: Sequence[Finding], weight_decay: float) -> Recommendation | None:
    found = [each for each in symmetries if each.kind == "scale"]
    if not found or weight_decay > 0:
        return None
    moving = [each.symmetry for each in found if isinstance(each.symmetry, UnitSymmetry)]
    squares = torch.cat([_squared_norms(bench, symmetry) for symmetry in moving])
    median = float(squares.median())
    return Recommendation(
        f"{_counted(len(squares), 'scale-invariant unit')} ({_names(found)}): no loss sees the norm of their weights, "
        f"|w|^2 = {median:.3g} in the median",
        "optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)",
        f"without weight decay the norm only grows and the effective rate, now {1 / median:.3g} lr, only falls; "
        "with it every step turns the weights by sqrt(2 lr weight_decay) after about 1 / (4 lr weight_decay) steps"
        if median
        else "without weight decay the norm only grows and the effective rate lr / |w|^2 only falls",
        "noise_equilibrium",
    )


def _squared_norms(bench: Bench, symmetry: UnitSymmetry) -> Tensor:
    terms = [(name, 1, index) for name, _, index in symmetry.terms if name not in bench.buffers]
    return sums_by_unit(terms, symmetry.units, {name: bench.values[name].square() for name, _, _ in terms})


def _about_eps(bench: Bench) -> Recommendation | None:
    large = {name: share for name, share in eps_shares(bench).items() if share > LARGE_EPS}
    if not large:
        return None
    worst = max(large, key=large.__getitem__)
    return Recommendation(
        f"eps is {large[worst]:.0%} of the variance in {worst or 'the model'}, and above {LARGE_EPS:.0%} in "
        f"{_counted(len(large), 'norm')}: weight decay has shrunk what they read",
        f"model.get_submodule({worst!r}).eps /= 1000  # or a smaller weight_decay",
        "the norm then divides by the data alone; the scale of what it reads becomes an exact symmetry",
        "audit",
    )


def _about_imbalance(symmetries: Sequence[Finding], balanced: Callable[[], Predicted]) -> Recommendation | None:
    found = [each for each in symmetries if each.status == "exact" and each.imbalance > LARGE_IMBALANCE]
    if not found:
        return None
    before, after = balanced()
    if not after < before * (1 - 1e-3):
        return None
    return Recommendation(
        f"{sum(each.units for each in found):,} units, out of balance by more than {LARGE_IMBALANCE} on average "
        f"({_names(found)})",
        "balanced = rebalance(model, inputs, report=report).model",
        f"|theta|^2 from {before:.4g} to {after:.4g} ({after / before - 1:+.1%}), the same function",
        "law_of_balance",
    )


def _about_noise(symmetries: Sequence[Finding], objective: Predicted | None) -> Recommendation | None:
    found = [each for each in symmetries if each.status == "exact" and each.noise_distance > FAR]
    if not found or objective is None:
        return None
    before, after = objective
    farthest = max(each.noise_distance for each in found)
    return Recommendation(
        f"{sum(each.units for each in found):,} units are up to a factor {math.exp(farthest):.3g} away from the noise "
        f"equilibrium ({_names(found)})",
        'rebalance(model, inputs, report=report, target="noise_equilibrium", loss_fn=loss_fn, targets=targets, '
        "temperature=temperature, weight_decay=weight_decay)",
        f"temperature Tr Sigma + 2 weight_decay |theta|^2 from {before:.4g} to {after:.4g}, the same function",
        "noise_equilibrium",
    )


def _about_idle_units(
    units: Sequence[UnitHealth], pruned: Callable[[], tuple[float, float, bool]]
) -> Recommendation | None:
    dead, pairs = sum(len(each.dead) for each in units), sum(len(each.duplicates) for each in units)
    if not dead + pairs:
        return None
    before, after, certain = pruned()
    where = "" if certain else ", where the code of the attention runs with fewer heads"
    spaces = tuple(each.space for each in units if each.dead or each.duplicates)
    return Recommendation(
        f"{_counted(dead, 'dead unit')} and {_counted(pairs, 'pair')} of duplicates (written by {listed(spaces)})",
        "smaller = physical_prune(model, inputs, report=report).model",
        f"parameters from {before:,.0f} to {after:,.0f}{where}, the same function; to train on with all units instead: "
        "Syre(model, weight_decay=weight_decay).attach(optimizer)",
        "syre",
    )


def _about_trapped_units(units: Sequence[UnitHealth]) -> Recommendation | None:
    count = sum(len(each.trapped) for each in units)
    if not count:
        return None
    spaces = tuple(each.space for each in units if each.trapped)
    return Recommendation(
        f"{_counted(count, 'pair')} of units with all weights equal or parallel (of {listed(spaces)}): no gradient "
        "separates them",
        "Syre(model, weight_decay=weight_decay).attach(optimizer)  # or fresh noise on one unit of each pair",
        "otherwise copies for ever; with it a force of weight_decay * std * sqrt(k), k weights per unit",
        "mirror_symmetry",
    )


def _about_inert_biases(bench: Bench, inert: dict[str, int]) -> Recommendation | None:
    whole = tuple(
        name for name, count in inert.items() if name.endswith("bias") and count == bench.tensors[name].numel()
    )
    if not whole:
        return None
    count = sum(inert[name] for name in whole)
    return Recommendation(
        f"nothing depends on {listed(whole)} ({count:,} entries without a gradient)",
        f"model.get_submodule({whole[0].rpartition('.')[0]!r}).bias = None  # or bias=False where it is made",
        f"{count:,} parameters fewer, the same function on these inputs",
        "audit",
    )


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def _names(findings: Sequence[Finding]) -> str:
    return listed(tuple(each.incoming[0] for each in findings))
