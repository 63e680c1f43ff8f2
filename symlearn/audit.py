"""Which symmetries a given model has: found in its traced graph, and verified by moving along them.

Every operation of the graph relates the scales, signs and places of the units that go in to those that come out; the
solutions of these relations are candidates, and each candidate is applied with random amounts in float64 and kept only
if the outputs do not change. Derived in the chapter of the same name.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from symlearn._audit_advice import recommend
from symlearn._audit_graph import trace
from symlearn._audit_jacobian import jacobian_rank
from symlearn._audit_prune import PruneOutcome, check_fit, predicted_parameters, prune
from symlearn._audit_rebalance import (
    RebalanceResult,
    balanced_plan,
    balanced_squared_norm,
    carried_out,
    check_noise,
    check_optimizer,
    check_report,
    noise_plan,
)
from symlearn._audit_report import AuditReport, Finding, Recommendation, UnitHealth, listed
from symlearn._audit_search import Found, search
from symlearn._audit_verify import Bench, hooked, undisturbed
from symlearn._checks import (
    check_bool,
    check_choice,
    check_fraction,
    check_int,
    check_module,
    check_nonnegative,
    check_positive,
    check_scalar,
    invalid,
    wrong_type,
)

__all__ = [
    "AuditReport",
    "Finding",
    "PruneOutcome",
    "RebalanceResult",
    "Recommendation",
    "UnitHealth",
    "audit",
    "functional_dimension",
    "physical_prune",
    "rebalance",
]

for _public in (AuditReport, Finding, PruneOutcome, RebalanceResult, Recommendation, UnitHealth):
    _public.__module__ = "symlearn.audit"  # where users import them from

_KINDS = ("rescaling", "mirror", "permutation")


def audit(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    *,
    kwargs: Mapping[str, Any] | None = None,
    tol: float = 1e-7,
    amount: float = 0.3,
    discover: Iterable[str] = _KINDS,
    broken: bool = True,
    seed: int = 0,
    loss_fn: Callable[..., Any] | None = None,
    targets: Tensor | None = None,
    temperature: float | None = None,
    weight_decay: float = 0.0,
) -> AuditReport:
    r"""Find the symmetries of a model, verify every one of them, and say what they imply.

    The model is copied, in float64 and evaluation mode; it is not changed, and neither is the random state. Memory: a
    few copies of the model in float64 and the activations of one forward and backward pass.

    Parameters
    ----------
    model : nn.Module
        Any model that ``torch.export`` or ``make_fx`` can trace; for another one the report says so.
    inputs : Tensor or tuple of Tensor
        Positional arguments: real data, two samples or more. What the inputs do not exercise, verification cannot see.
    kwargs : dict, optional
        Keyword arguments.
    tol : float
        Largest violation of an exact symmetry, relative to the outputs, > 0.
    amount : float
        Standard deviation of the random amounts by which candidates are moved, > 0.
    discover : iterable of {"rescaling", "mirror", "permutation"}
        "rescaling" includes scales, matrices and translations; "permutation" the exchange of heads.
    broken : bool
        Whether to report near-misses: families that would be there if functions like tanh or GELU were homogeneous.
    seed : int
        Of the random amounts.
    loss_fn, targets, temperature : optional
        As in `rebalance`: with them every finding also tells how far it is from the noise equilibrium.
    weight_decay : float, default 0
        The one the model is trained with, in the convention of ``torch.optim``.

    Returns
    -------
    AuditReport

    Raises
    ------
    TypeError
        If ``model`` is not a module or ``inputs`` are not tensors.
    ValueError
        Without parameters, for parameters or inputs that are not finite, or options out of range; if only some of
        ``loss_fn``, ``targets`` and ``temperature`` are given.
    Exception
        What the model itself raises on these inputs.

    Notes
    -----
    A family of :math:`n` commuting one-parameter groups is verified by one random draw: the amounts which preserve the
    function form a closed subgroup of :math:`\mathbb R^n`, which has measure zero unless it is everything, and outside
    it an analytic function differs at almost all parameters and inputs. With kinks that holds for the piece on which
    they lie.

    Parameters are taken as they are, after tensors that are constant (fresh biases, gains, running statistics) have
    been shaken: trained ones count as generic, exact zeros do not. Forward hooks of the user's are not called, as they
    may record; the report names their modules, and what they change is not seen.

    Not searched for: rotations that commute with rotary embeddings, bias shifts, rotations of a stream that only
    norms without gains read, and symmetries which depend on the data.

    References
    ----------
    Kunin et al., "Neural Mechanics: Symmetry and Broken Conservation Laws in Deep Learning Dynamics", 2021; Ainsworth,
    Hayase and Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries", 2023; chapter
    :doc:`/chapters/audit`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> report = audit(model, torch.randn(8, 4))
    >>> [(finding.kind, finding.units, finding.status) for finding in report.symmetries]
    [('rescaling', 3, 'exact'), ('permutation', 3, 'exact')]
    >>> report.flat_dimension
    3
    """
    start = time.perf_counter()
    args, keywords = _check_model_and_inputs(model, inputs, kwargs)
    tol, amount = _check_number("tol", tol), _check_number("amount", amount)
    kinds, seed, broken = _check_discover(discover), check_int("seed", seed, 0), check_bool("broken", broken)
    weight_decay = check_scalar("weight_decay", check_nonnegative("weight_decay", weight_decay))
    noise = None
    if not loss_fn is targets is temperature is None:
        noise = check_noise(loss_fn, targets, temperature, weight_decay, args, keywords)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())

    def report(found: Found, tracer: str) -> AuditReport:
        findings = [
            Finding(**{name: getattr(each, name) for name in Finding.__dataclass_fields__}) for each in found.findings
        ]
        symmetries = tuple(each for each in findings if each.status in ("exact", "exact up to eps"))
        others = tuple(each for each in findings if each.status not in ("exact", "exact up to eps"))
        return AuditReport(
            symmetries=symmetries,
            broken=tuple(each for each in others if broken or each.status == "frozen"),
            units=tuple(UnitHealth(*each) for each in found.health),
            barriers=tuple(found.barriers),
            inert=found.inert,
            n_parameters=n_parameters,
            flat_dimension=sum(each.dimension for each in symmetries),
            tracer=tracer,
            seconds=time.perf_counter() - start,
            model_name=type(model).__name__,
        )

    with undisturbed():
        try:
            bench = Bench(model, args, keywords)
        except Exception as error:
            _reraise_if_it_is_the_models_own(model, args, keywords, error)
            return report(Found.nothing(), f"untraceable: no float64 copy runs ({_one_line(error)})")
        if not bench.outputs:
            return report(Found.nothing(), "untraceable: it returns no floating point tensor")
        if any(not bool(part.isfinite().all()) for part in bench.outputs):
            return report(Found.nothing(), "untraceable: its outputs are not finite")
        if any(not torch.equal(one, two) for one, two in zip(bench.outputs, bench.run(), strict=True)):
            return report(Found.nothing(), "untraceable: its outputs change from call to call")
        try:
            program = trace(bench.model, bench.inputs, bench.kwargs)
        except Exception as error:
            return report(Found.nothing(), f"untraceable: {_one_line(error)}")
        try:
            found = search(bench, program, kinds=kinds, tol=tol, amount=amount, seed=seed)
        except Exception as error:  # a graph that no rule expects must not take the user's session down
            return report(Found.nothing(), f"untraceable: the analysis stopped ({_one_line(error)})")
        with_hooks = hooked(model)
        without = f", without the hooks of {listed(tuple(with_hooks))}" if with_hooks else ""
        plain, objective = report(found, program.tracer + without), None
        if noise is not None:
            plan = noise_plan(bench, plain.symmetries, noise, approximate=False)
            pairs = zip(plan.chosen, plan.amounts, strict=True)
            far = {id(finding): float(amounts.abs().max()) for finding, amounts in pairs}
            findings = (replace(each, noise_distance=far.get(id(each), math.nan)) for each in plain.symmetries)
            plain, objective = replace(plain, symmetries=tuple(findings)), plan.objective
        advice = recommend(
            bench,
            plain.symmetries,
            plain.units,
            plain.inert,
            balanced=lambda: balanced_squared_norm(bench, plain.symmetries),
            pruned=lambda: predicted_parameters(model, plain),
            objective=objective,
            weight_decay=weight_decay,
        )
        return replace(plain, recommendations=advice, seconds=time.perf_counter() - start)


def rebalance(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    *,
    report: AuditReport | None = None,
    target: Literal["balanced", "noise_equilibrium"] = "balanced",
    loss_fn: Callable[[Any, Tensor], Tensor] | None = None,
    targets: Tensor | None = None,
    temperature: float | None = None,
    weight_decay: float = 0.0,
    approximate: bool = False,
    inplace: bool = False,
    kwargs: Mapping[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> RebalanceResult:
    r"""Move a model along its symmetries to the least squared norm, or the least gradient noise; its function stays.

    "balanced" is the zero of all charges: the least :math:`\|\theta\|^2` over all exact rescalings and matrices, unique
    up to rotations inside a matrix block. "noise_equilibrium" is where SGD drifts: the minimum of
    :math:`T\operatorname{Tr}\Sigma+2\lambda\|\theta\|^2` over all exact scalings of single units. Both are convex.

    Parameters
    ----------
    model : nn.Module
        Used in evaluation mode, so that running statistics of batch norm count as they are.
    inputs : Tensor or tuple of Tensor
        Positional arguments, on which the symmetries and then the result are verified. For the noise equilibrium every
        tensor as long as ``targets`` is cut into samples along axis 0, keyword arguments too; others are given whole.
    report : AuditReport, optional
        What ``audit(model, inputs)`` found, to save its time.
    target : {"balanced", "noise_equilibrium"}
    loss_fn : callable
        Ordinary torch criterion ``loss_fn(output, target)`` that returns a scalar. It sees one sample at a time, as a
        batch of one, in float64.
    targets : Tensor, shape (N, ...)
        One for every sample, N >= 2.
    temperature : float
        :math:`T`, learning rate over batch size, > 0.
    weight_decay : float
        :math:`\lambda` as in torch, not negative. If it is positive, one-sided scales have an equilibrium as well, and
        go to it.
    approximate : bool
        Whether to move families that are exact up to eps too. The outputs then change by ``violation``, which is not
        refused however large it is: a norm driven to the size of an eps has its own.
    inplace : bool
        Whether to change ``model`` itself. Its gradients are then moved as gradients of a loss move.
    kwargs : dict, optional
        Keyword arguments.
    optimizer : torch.optim.Optimizer, optional
        With ``inplace``: its state moves along. Known are SGD, Adam, AdamW, NAdam, RAdam, RMSprop and Adagrad.

    Returns
    -------
    RebalanceResult

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        As `audit`; for a model that cannot be traced, a report of another model, rates out of range, missing or unequal
        data; if the outputs would change by more than rounding (1e-10 of the largest in float64, 64 times the machine
        epsilon in other precisions); for an optimizer with other state, or with squares of gradients where
        matrices mix units. The model and the optimizer are then as they were.
    Exception
        What the model itself raises on these inputs.

    Notes
    -----
    The amounts are found in float64 and applied once. Families with a frozen parameter, with exponents other than 1
    and -1, units with nothing on one side, and blocks whose rank is lower than their size stay; ``skipped`` says so.

    Momentum is moved like a gradient, and second moments like squares. That is exact for what comes from the loss, and
    not for weight decay that has been added to the gradients.

    References
    ----------
    Ziyin, Wang, Li and Wu, "Parameter Symmetry and Noise Equilibrium of Stochastic Gradient Descent", 2024; chapter
    :doc:`/chapters/audit`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> x = torch.randn(8, 4)
    >>> result = rebalance(model, x)
    >>> result.squared_norm[1] < result.squared_norm[0]
    True
    >>> torch.allclose(result.model(x), model(x), atol=1e-6)
    True
    """
    args, keywords = _check_model_and_inputs(model, inputs, kwargs)
    check_choice("target", target, ("balanced", "noise_equilibrium"))
    inplace, approximate = check_bool("inplace", inplace), check_bool("approximate", approximate)
    check_scalar("weight_decay", check_nonnegative("weight_decay", weight_decay))
    noise = None
    if target == "noise_equilibrium":
        noise = check_noise(loss_fn, targets, temperature, weight_decay, args, keywords)
    check_optimizer(optimizer, model, inplace)
    _warn_of_hooks(model)
    if inplace and any(parameter.is_inference() for parameter in model.parameters()):
        raise invalid("model", "made outside of inference mode with inplace=True", "inference tensors")
    if report is None:
        report = audit(model, inputs, kwargs=kwargs, discover=("rescaling",), broken=False)
    elif not isinstance(report, AuditReport):
        raise wrong_type("report", "an AuditReport or None", report)
    if report.tracer.startswith("untraceable"):
        raise invalid("model", "one that can be traced", report.tracer)
    findings = report.symmetries + report.broken
    check_report(findings, dict(model.named_parameters()) | dict(model.named_buffers()))
    with undisturbed():
        try:
            bench = Bench(model, args, keywords)
        except Exception as error:
            _reraise_if_it_is_the_models_own(model, args, keywords, error)
            raise invalid("model", "one that runs in float64", _one_line(error)) from error
        bench.restore()
        if noise is None:
            plan = balanced_plan(bench, findings, approximate=approximate)
        else:
            plan = noise_plan(bench, findings, noise, approximate=approximate)
        return carried_out(plan, bench, model, inplace=inplace, approximate=approximate, optimizer=optimizer)


def physical_prune(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    *,
    report: AuditReport | None = None,
    duplicates: bool = True,
    tol: float = 1e-6,
    kwargs: Mapping[str, Any] | None = None,
) -> PruneOutcome:
    """A smaller model with the same function: without dead units, dead heads, and copies of other units.

    Unlike a mask this makes the matrices smaller. A copy of a unit is merged into it: its outgoing weights are added
    to those of the unit that stays. Units that lose their last reader go too. The model itself is not changed.

    Parameters
    ----------
    model : nn.Module
        Used in evaluation mode, so that running statistics of batch norm count as they are.
    inputs : Tensor or tuple of Tensor
        Positional arguments, on which every removal is verified.
    report : AuditReport, optional
        What ``audit(model, inputs)`` found, to save its time.
    duplicates : bool
        Whether to merge copies.
    tol : float
        Largest change of the outputs, relative to the outputs, > 0. A removal that changes more is undone. Merging
        rounds in the precision of the model: 1e-6 is too strict for half precision.
    kwargs : dict, optional
        Keyword arguments.

    Returns
    -------
    PruneOutcome

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        As `audit`; for a model that cannot be traced, and for a report of another model.
    Exception
        What the model itself raises on these inputs.

    See Also
    --------
    symlearn.spred.smaller_network : For chains of layers, without data.

    Notes
    -----
    Exact conditions on the weights decide what is dead, never the data: ``silent`` units stay. A zero that is only the
    initial value of a layer counts like any other, so prune after training. At least one unit of every space stays.

    A space that a layer norm, group norm or root mean square norm reads keeps its units, because they enter the
    statistics. Convolutions with groups lose whole groups, or equally many channels of each. Attention loses heads,
    of grouped queries all that share a key; where hand-written code holds numbers of heads or sizes as integer
    attributes, these are adjusted, and where it has written them down otherwise, the heads stay. An
    ``nn.MultiheadAttention`` becomes a module with the same call and names of parameters.

    References
    ----------
    Chapter :doc:`/chapters/audit`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> with torch.no_grad():
    ...     _ = model[2].weight[:, 1].zero_()
    ...     _ = model[0].weight[5].copy_(2 * model[0].weight[0])
    ...     _ = model[0].bias[5].copy_(2 * model[0].bias[0])
    >>> outcome = physical_prune(model, torch.randn(8, 4))
    >>> outcome.model[0], outcome.removed, outcome.parameters
    (Linear(in_features=4, out_features=4, bias=True), {'0.weight': (1, 5)}, (44, 30))
    """
    args, keywords = _check_model_and_inputs(model, inputs, kwargs)
    duplicates, tol = check_bool("duplicates", duplicates), _check_number("tol", tol)
    _warn_of_hooks(model)
    if report is not None and not isinstance(report, AuditReport):
        raise wrong_type("report", "an AuditReport or None", report)

    def again(smaller: nn.Module) -> AuditReport:
        return audit(smaller, inputs, kwargs=kwargs, discover=("rescaling", "permutation"), broken=False)

    if report is None or not report.units:  # a report may have been made without the search for exchanges
        report = again(model)
    if report.tracer.startswith("untraceable"):
        raise invalid("model", "one that can be traced", report.tracer)
    check_fit(report, model)
    with undisturbed():
        return prune(model, args, keywords, report=report, audit=again, duplicates=duplicates, tol=tol)


def functional_dimension(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    *,
    rtol: float = 1e-9,
    kwargs: Mapping[str, Any] | None = None,
) -> int:
    r"""Rank of the Jacobian of all outputs on all inputs, with respect to the trained parameters.

    The number of directions in which the function changes. What is left, the number of trained parameters minus the
    rank, bounds from above the part of ``flat_dimension`` that is exact, moves no running statistics and has
    independent generators; equality means that the audit has explained every flat direction at these parameters.

    Parameters
    ----------
    model : nn.Module
        Small: the whole Jacobian, in float64, may take 1 GiB. Evaluation mode; a tied parameter counts once.
    inputs : Tensor or tuple of Tensor
        Positional arguments: enough of them for more outputs than parameters.
    rtol : float
        Singular values above this share of the largest count, 0 < rtol < 1.
    kwargs : dict, optional
        Keyword arguments.

    Returns
    -------
    int

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        As `audit`; for a Jacobian of more than 1 GiB, without trained parameters, or outputs which are no floating
        point numbers, not finite or without derivatives.
    Exception
        What the model itself raises on these inputs.

    Notes
    -----
    From the singular values of the Jacobian, not of its Gram matrix: squared, a share of 1e-9 would drown in rounding.

    References
    ----------
    Kunin et al., "Neural Mechanics: Symmetry and Broken Conservation Laws in Deep Learning Dynamics", 2021; chapter
    :doc:`/chapters/audit`.

    Examples
    --------
    Two layers without a function between them make a matrix of rank 2, which has 2 (5 + 4 - 2) dimensions:

    >>> model = nn.Sequential(nn.Linear(5, 2, bias=False), nn.Linear(2, 4, bias=False))
    >>> functional_dimension(model, torch.randn(30, 5))
    14
    """
    args, keywords = _check_model_and_inputs(model, inputs, kwargs)
    share = check_fraction("rtol", check_positive("rtol", check_scalar("rtol", rtol)))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise invalid("model", "one with a parameter that is trained", "frozen parameters only")
    with undisturbed():
        try:
            bench = Bench(model, args, keywords)
        except Exception as error:
            _reraise_if_it_is_the_models_own(model, args, keywords, error)
            raise invalid("model", "one that runs in float64", _one_line(error)) from error
        bench.restore()
        return jacobian_rank(bench, share)


def _check_model_and_inputs(model: Any, inputs: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    check_module(model)
    args = (inputs,) if isinstance(inputs, Tensor) else inputs
    if not isinstance(args, tuple | list):
        raise wrong_type("inputs", "a tensor or a tuple of tensors", inputs)
    if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs)):
        raise wrong_type("kwargs", "a dict of keyword arguments or None", kwargs)
    for place, given in enumerate(args):
        if not isinstance(given, Tensor):
            raise wrong_type(f"inputs[{place}]", "a tensor", given)
    keywords = dict(kwargs or {})
    if not args and not keywords:
        raise invalid("inputs", "at least one tensor", "none")
    named = {f"inputs[{place}]" if len(args) > 1 else "inputs": given for place, given in enumerate(args)}
    named |= {f"kwargs[{name!r}]": given for name, given in keywords.items() if isinstance(given, Tensor)}
    parameters = dict(model.named_parameters())
    if not parameters:
        raise invalid("model", "a module with parameters", f"{type(model).__name__} without any")
    named |= {f"parameter {name!r}": tensor for name, tensor in parameters.items()}
    named |= {f"buffer {name!r}": tensor for name, tensor in model.named_buffers() if not name.endswith("mask")}
    for name, tensor in named.items():
        _check_tensor(name, tensor)
    return tuple(args), keywords


def _warn_of_hooks(model: nn.Module) -> None:
    if found := hooked(model):
        message = f"the forward hooks of {listed(tuple(found))} are not called: what they change is not kept equal"
        warnings.warn(message, UserWarning, stacklevel=3)


def _check_tensor(name: str, tensor: Tensor) -> None:
    if nn.parameter.is_lazy(tensor):
        raise invalid(name, "initialised; run the model once", "a lazy parameter")
    if tensor.is_meta:
        raise invalid(name, "a tensor with values", "one on the meta device")
    if tensor.layout != torch.strided:
        raise invalid(name, "a dense tensor", f"layout {tensor.layout}")
    if not tensor.numel() and not name.startswith("buffer"):
        raise invalid(name, "of at least one entry", f"shape {tuple(tensor.shape)}")
    if tensor.is_floating_point() and not name.startswith("buffer") and not bool(tensor.detach().isfinite().all()):
        raise invalid(name, "finite", "inf or nan")


def _check_number(name: str, value: Any) -> float:
    return float(check_positive(name, check_scalar(name, value)))


def _check_discover(discover: Any) -> tuple[str, ...]:
    if isinstance(discover, str) or not isinstance(discover, Iterable):
        raise wrong_type("discover", f"a sequence of {', '.join(map(repr, _KINDS))}", discover)
    kinds = tuple(discover)
    for kind in kinds:
        if not isinstance(kind, str) or kind not in _KINDS:
            raise invalid("discover", f"some of {', '.join(map(repr, _KINDS))}", repr(kind))
    return kinds


def _reraise_if_it_is_the_models_own(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
) -> None:
    """Raise what the model raises on these inputs in its own precision, if it raises anything."""
    try:
        own = copy.deepcopy(model).eval()
    except Exception:  # a model that cannot be copied can still be reported on
        return
    own_default = torch.float32 if all(p.dtype != torch.float64 for p in model.parameters()) else torch.float64
    torch.set_default_dtype(own_default)
    try:
        with torch.no_grad():
            own(*args, **kwargs)
    finally:
        torch.set_default_dtype(torch.float64)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


if __name__ == "__main__":
    from symlearn._audit_command import main

    raise SystemExit(main(audit))
