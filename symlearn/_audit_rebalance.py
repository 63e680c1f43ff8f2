"""A model moved along its symmetries to where its weights, or its gradient noise, are least; its function stays.

The amounts are found in float64 on a copy, the moved model is compared with the original, and only then is anything
written. Gradients and the state of an optimizer follow the parameters. Derived in the chapter ``audit``, step 9.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from symlearn._audit_balance import Energy, balance
from symlearn._audit_report import Finding
from symlearn._audit_verify import Bench
from symlearn._checks import check_nonnegative, check_positive, check_scalar, invalid, wrong_type
from symlearn._orbit_noise import entry_statistics
from symlearn._unit_symmetry import UnitSymmetry

SOLVED = 1e-12  # charges over the squares they are made of
ROUGH = 1e-3  # the same where only the norm is wanted, whose error is the square of it
SWEEPS = 300
CHUNK_BYTES = 2**29  # gradients of the samples that are processed at once

_GRADIENT, _SQUARE, _INVARIANT = 1, 2, 0
# How the state of an optimizer moves: like gradients, like their squares, or like a ratio of the two.
_STATES: dict[type[torch.optim.Optimizer], dict[str, int]] = {
    torch.optim.SGD: {"momentum_buffer": _GRADIENT},
    torch.optim.Adam: {"exp_avg": _GRADIENT, "exp_avg_sq": _SQUARE, "max_exp_avg_sq": _SQUARE},
    torch.optim.AdamW: {"exp_avg": _GRADIENT, "exp_avg_sq": _SQUARE, "max_exp_avg_sq": _SQUARE},
    torch.optim.NAdam: {"exp_avg": _GRADIENT, "exp_avg_sq": _SQUARE},
    torch.optim.RAdam: {"exp_avg": _GRADIENT, "exp_avg_sq": _SQUARE},
    torch.optim.RMSprop: {"grad_avg": _GRADIENT, "square_avg": _SQUARE, "momentum_buffer": _INVARIANT},
    torch.optim.Adagrad: {"sum": _SQUARE},
}


@dataclass(frozen=True, eq=False)
class RebalanceResult:
    """A model moved along its symmetries.

    Attributes
    ----------
    model : nn.Module
        The moved model: a copy, or the given one with ``inplace=True``.
    violation : float
        Largest change of the outputs over the largest output, measured in float64 on the parameters as written.
    charge_before, charge_after : float
        Largest size of a charge that was to vanish: squared norms in less squared norms out, entries of the matrix of
        a block; at the noise equilibrium the largest drift of a charge, predicted.
    squared_norm : (float, float)
        Of the trained parameters, before and after.
    objective : (float, float)
        What was minimised, before and after: the squared norm; or the temperature times the trace of the gradient
        covariance plus twice the weight decay times the squared norm, predicted from gradients taken before.
    moved : tuple of Finding
        The families that were moved.
    amounts : tuple of Tensor
        How far: ``finding.symmetry.act(params_and_buffers, amount)`` repeats the move.
    skipped : tuple of (str, str)
        What was not moved, and why.
    sweeps : int
        Rounds over all families, or steps if there are no matrices.
    """

    model: nn.Module = field(repr=False)
    violation: float
    charge_before: float
    charge_after: float
    squared_norm: tuple[float, float]
    objective: tuple[float, float]
    moved: tuple[Finding, ...] = field(repr=False)
    amounts: tuple[Tensor, ...] = field(repr=False)
    skipped: tuple[tuple[str, str], ...]
    sweeps: int


@dataclass
class Plan:
    """Families to move, and how far: amounts, charges and objectives, and what is left out."""

    chosen: list[Finding]
    skipped: list[tuple[str, str]]
    amounts: list[Tensor] = field(default_factory=list)
    movable: list[Tensor] = field(default_factory=list)
    charge: tuple[float, float] | None = None
    objective: tuple[float, float] | None = None
    sweeps: int = 0


@dataclass(frozen=True)
class Noise:
    """What the gradient noise comes from: the loss of one sample, targets, temperature and weight decay."""

    loss_fn: Callable[..., Any]
    targets: Tensor
    temperature: float
    weight_decay: float


def balanced_plan(bench: Bench, findings: Sequence[Finding], *, approximate: bool, tol: float = SOLVED) -> Plan:
    """The least squared norm over all rescalings and matrices."""
    plan = _chosen(bench, findings, ("rescaling", "gl"), approximate)
    found = balance(bench.values, _symmetries(plan.chosen), tol, SWEEPS)
    plan.amounts, plan.movable, plan.sweeps = found.amounts, found.movable, found.sweeps
    for finding, movable in zip(plan.chosen, found.movable, strict=True):
        held = int((~movable).sum())
        if held and finding.kind == "gl":
            reason = "one side has a lower rank than the block, or overflows: there is no balanced point"
            plan.skipped.append((f"{_name(finding)}: {held} of {len(movable)} blocks", reason))
        elif held:
            reason = "nothing finite holds them on one side: there is no balanced point"
            plan.skipped.append((f"{_name(finding)}: {held} of {len(movable)} units", reason))
    return plan


def balanced_squared_norm(
    bench: Bench, findings: Sequence[Finding], *, approximate: bool = False
) -> tuple[float, float]:
    """Squared norm of the trained parameters now and at the balanced point, which is not gone to."""
    plan = balanced_plan(bench, findings, approximate=approximate, tol=ROUGH)
    return squared_norm(bench, bench.values), squared_norm(bench, moved(bench.values, plan))


def noise_plan(bench: Bench, findings: Sequence[Finding], given: Noise, *, approximate: bool) -> Plan:
    """The least total gradient noise and weight decay over all diagonal families."""
    temperature, weight_decay = given.temperature, given.weight_decay
    kinds = ("rescaling", "scale") if weight_decay else ("rescaling",)
    plan = _chosen(bench, findings, kinds, approximate)
    plan.skipped += [
        (_name(finding), "a matrix symmetry: the noise equilibrium is that of diagonal families")
        for finding in findings
        if finding.kind == "gl" and finding.status != "broken"
    ]
    noise, squares = _gradient_statistics(bench, given.loss_fn, given.targets)
    energy = Energy(_symmetries(plan.chosen))
    for name in energy.names:
        energy.set(name, temperature * noise[name], -1)
        if weight_decay:
            energy.set(name, 2 * weight_decay * squares[name])
    start = torch.zeros(energy.n, dtype=torch.float64)
    movable = energy.movable()
    amounts, plan.sweeps = energy.minimum(start, movable, SOLVED)
    plan.amounts, plan.movable = energy.split(amounts), energy.split(movable)
    before, after = energy.pushes(start), energy.pushes(amounts)
    plan.charge = (_largest((before[0] - before[1])[movable]), _largest((after[0] - after[1])[movable]))
    total = temperature * sum(float(each.sum()) for each in noise.values())
    total += 2 * weight_decay * sum(float(each.sum()) for each in squares.values())
    plan.objective = (total, total + energy.value(amounts) - energy.value(start))
    idle = energy.split((before[0] == 0) & (before[1] == 0))
    for finding, movable, still in zip(plan.chosen, plan.movable, idle, strict=True):
        held = int((~movable & ~still).sum())
        if held:
            reason = "nothing pushes back: there is no finite equilibrium"
            plan.skipped.append((f"{_name(finding)}: {held} of {finding.units} units", reason))
    return plan


def carried_out(
    plan: Plan,
    bench: Bench,
    model: nn.Module,
    *,
    inplace: bool,
    approximate: bool,
    optimizer: torch.optim.Optimizer | None,
) -> RebalanceResult:
    """The plan verified and then written into the model or a copy of it."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    touched = list(dict.fromkeys(name for each in _symmetries(plan.chosen) for name in each.names))
    eps = max((torch.finfo(own[name].dtype).eps for name in touched), default=torch.finfo(torch.float64).eps)
    if all(float(amount.abs().max()) <= 16 * eps for amount in plan.amounts):
        plan.amounts = [torch.zeros_like(amount) for amount in plan.amounts]
        touched = []
    after = moved(bench.values, plan) if touched else bench.values
    written = {name: after[name].to(own[name].dtype) for name in touched}
    violation = _violation(bench, written) if touched else 0.0
    limit = torch.inf if approximate else max(1e-10, 64 * eps)
    if not violation <= limit or violation == torch.inf:
        condition = f"one whose outputs stay the same along its symmetries, to {limit:.1e} of the largest"
        raise invalid("model", condition, f"a change of {violation:.1e}; it is left as it was")
    if inplace:
        follow = _gradients(plan, bench, model) + _states(plan, bench, model, optimizer)
    else:
        model, follow = _copied(model), []
        own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in written.items():
            own[name].copy_(tensor)
        for tensor, value in follow if touched else []:
            tensor.copy_(value)
    final = {**bench.values, **{name: tensor.double() for name, tensor in written.items()}}
    norms = squared_norm(bench, bench.values), squared_norm(bench, final)
    charges = plan.charge or (_largest_charge(plan, bench.values), _largest_charge(plan, final))
    return RebalanceResult(
        model=model,
        violation=violation,
        charge_before=charges[0],
        charge_after=charges[1],
        squared_norm=norms,
        objective=plan.objective or norms,
        moved=tuple(plan.chosen),
        amounts=tuple(plan.amounts),
        skipped=tuple(plan.skipped),
        sweeps=plan.sweeps,
    )


def moved(tensors: Mapping[str, Tensor], plan: Plan, power: float = 1.0) -> dict[str, Tensor]:
    """Tensors moved by all families; gradients of the loss move with the power -1, squares of them with -2."""
    result = dict(tensors)
    for symmetry, amount in zip(_symmetries(plan.chosen), plan.amounts, strict=True):
        result = symmetry.act(result, power * amount)
    return result


def squared_norm(bench: Bench, tensors: Mapping[str, Tensor]) -> float:
    """Sum of squares over the trained parameters."""
    return sum(float(tensors[name].double().square().sum()) for name in sorted(bench.trainable))


def check_report(report: Sequence[Finding], tensors: Mapping[str, Tensor]) -> None:
    """Whether every continuous symmetry of a report fits the parameters and buffers."""
    for finding in report:
        for name, _, index in finding.symmetry.terms if isinstance(finding.symmetry, UnitSymmetry) else ():
            if name not in tensors:
                raise invalid("report", "the audit of this model", f"a symmetry of {name!r}, which it does not have")
            shape = tuple(tensors[name].shape)
            if len(shape) != index.ndim or any(n not in (1, m) for n, m in zip(index.shape, shape, strict=True)):
                fits = f"an index of shape {tuple(index.shape)} for {name!r}, whose shape is {shape}"
                raise invalid("report", "the audit of this model", fits)


def check_noise(
    loss_fn: Any, targets: Any, temperature: Any, weight_decay: Any, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Noise:
    """The arguments of a noise equilibrium, once they are good ones."""
    for name, value in (("loss_fn", loss_fn), ("targets", targets), ("temperature", temperature)):
        if value is None:
            raise invalid(name, "given for the noise equilibrium", "None")
    if not callable(loss_fn):
        raise wrong_type("loss_fn", "a function of output and target", loss_fn)
    if not isinstance(targets, Tensor):
        raise wrong_type("targets", "a tensor", targets)
    rate = check_scalar("temperature", check_positive("temperature", temperature))
    decay = check_scalar("weight_decay", check_nonnegative("weight_decay", weight_decay))
    if not targets.ndim or len(targets) < 2:
        raise invalid("targets", "at least 2 samples", f"shape {tuple(targets.shape)}")
    given = [each for each in (*inputs, *kwargs.values()) if isinstance(each, Tensor)]
    if not given[0].ndim or len(given[0]) != len(targets):
        length = str(len(given[0])) if given[0].ndim else "a single number"
        raise invalid("targets", f"as long as inputs ({length})", f"length {len(targets)}")
    return Noise(loss_fn, targets, rate, decay)


def check_optimizer(optimizer: Any, model: nn.Module, inplace: bool) -> None:
    """An optimizer of the model's own parameters, or None."""
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise wrong_type("optimizer", "a torch.optim.Optimizer or None", optimizer)
    if not inplace:
        raise invalid("optimizer", "None unless inplace=True (a copy has no optimizer yet)", type(optimizer).__name__)
    own = {id(parameter) for parameter in model.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(id(parameter) in own for parameter in held):
        raise invalid("optimizer", "one of the parameters of model", f"{type(optimizer).__name__} of others")


def _chosen(bench: Bench, findings: Iterable[Finding], kinds: tuple[str, ...], approximate: bool) -> Plan:
    plan = Plan([], [])
    for finding in findings:
        symmetry = finding.symmetry
        if finding.kind not in kinds or finding.status == "broken" or not isinstance(symmetry, UnitSymmetry):
            continue
        trained = [(name, exponent) for name, exponent, _ in symmetry.terms if name not in symmetry.buffers]
        frozen = sorted({name for name, _ in trained if name not in bench.trainable})
        exponents = sorted({exponent for _, exponent in trained})
        if frozen:
            plan.skipped.append((_name(finding), f"it moves frozen {', '.join(frozen)}"))
        elif finding.status == "exact up to eps" and not approximate:
            plan.skipped.append((_name(finding), "exact up to eps only (approximate=True moves it)"))
        elif any(abs(exponent) != 1 for exponent in exponents):
            plan.skipped.append((_name(finding), f"exponents {', '.join(f'{each:g}' for each in exponents)}"))
        else:
            plan.chosen.append(finding)
    return plan


def _symmetries(findings: Iterable[Finding]) -> list[UnitSymmetry]:
    return [finding.symmetry for finding in findings if isinstance(finding.symmetry, UnitSymmetry)]


def _name(finding: Finding) -> str:
    return " / ".join(names[0] for names in (finding.incoming, finding.outgoing) if names)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _largest_charge(plan: Plan, tensors: Mapping[str, Tensor]) -> float:
    charges = [each.charge(tensors) for each in _symmetries(plan.chosen)]
    return max((_largest(one[movable]) for one, movable in zip(charges, plan.movable, strict=True)), default=0.0)


def _violation(bench: Bench, tensors: Mapping[str, Tensor]) -> float:
    """Relative change of the outputs with these parameters, in float64."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        return torch.inf
    return bench.move(lambda before: {**before, **tensors})[0]


def _copied(model: nn.Module) -> nn.Module:
    # What a hook computed from parameters, such as the weight of nn.utils.weight_norm, is no leaf and has no deep copy.
    computed = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed if not value.is_leaf})


def _gradients(plan: Plan, bench: Bench, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Gradients of the parameters that move, and what they become."""
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.layout == torch.strided
    }
    return _followed(plan, bench, gradients, _GRADIENT)


def _states(
    plan: Plan, bench: Bench, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> list[tuple[Tensor, Tensor]]:
    """State of the optimizer that moves, and what it becomes."""
    if optimizer is None:
        return []
    kind = type(optimizer).__name__
    laws = _STATES.get(type(optimizer), {})
    parameters = dict(model.named_parameters())
    mixed = {name for each in _symmetries(plan.chosen) if each.blocks is not None for name in each.names}
    entries: dict[tuple[str, int], dict[str, Tensor]] = {}
    for name in dict.fromkeys(name for each in _symmetries(plan.chosen) for name in each.names):
        state = optimizer.state.get(parameters[name], {}) if name in parameters else {}
        for key, value in state.items():
            if key == "step" or not isinstance(value, Tensor) or value.shape != parameters[name].shape:
                continue
            if key not in laws:
                known = ", ".join(each.__name__ for each in _STATES)
                raise invalid("optimizer", f"one whose state has a known law ({known})", f"{kind} with {key!r}")
            if laws[key] != _GRADIENT and name in mixed and bool((value != 0).any()):
                condition = "without squares of gradients where matrices mix units"
                raise invalid("optimizer", condition, f"{kind} with {key!r} of {name!r}")
            entries.setdefault((key, laws[key]), {})[name] = value
    follow = []
    for (_, law), tensors in entries.items():
        follow += _followed(plan, bench, tensors, law) if law else []
    return follow


def _followed(plan: Plan, bench: Bench, tensors: Mapping[str, Tensor], power: int) -> list[tuple[Tensor, Tensor]]:
    """Gradients or squares of them, and what they become."""
    full = {name: torch.zeros_like(tensor) for name, tensor in bench.values.items()}
    full |= {name: tensor.detach().cpu().double() for name, tensor in tensors.items()}
    if power == _SQUARE:
        plan = Plan(
            [each for each in plan.chosen if each.kind != "gl"],
            [],
            [amount for each, amount in zip(plan.chosen, plan.amounts, strict=True) if each.kind != "gl"],
        )
    after = moved(full, plan, -power)
    return [(tensor, after[name]) for name, tensor in tensors.items()]


def _gradient_statistics(
    bench: Bench, loss_fn: Callable[..., Any], targets: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Variance over samples of the gradient of every trained entry, and its square."""
    names = sorted(bench.trainable)
    params = {name: bench.values[name] for name in names}
    n_samples = len(targets)
    targets = targets.detach().cpu()
    targets = targets.double() if targets.is_floating_point() else targets
    loss = copy.deepcopy(loss_fn).cpu().double() if isinstance(loss_fn, nn.Module) else loss_fn

    def sample_loss(some: Mapping[str, Tensor], sample: Tensor, _: Tensor) -> Tensor:
        def one(leaf: Any) -> Any:
            split = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == n_samples
            return leaf.index_select(0, sample.reshape(1)) if split else leaf

        args, kwargs = pytree.tree_map(one, (bench.inputs, bench.kwargs))
        value: Tensor = loss(functional_call(bench.model, dict(some), args, kwargs), one(targets))
        return value

    _check_loss(sample_loss, params)
    samples = torch.arange(n_samples)
    entries = sum(tensor.numel() for tensor in params.values())
    chunk = max(1, min(256, CHUNK_BYTES // (8 * 4 * entries)))
    try:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be batched over samples
            noise, squares = entry_statistics(sample_loss, params, names, samples, samples, chunk)
    except ValueError as error:
        raise ValueError(str(error).replace("sample_loss", "loss_fn")) from None
    found = {name: torch.from_numpy(array).reshape(params[name].shape) for name, array in noise.items()}
    if not all(bool(each.isfinite().all()) for each in found.values()):
        raise invalid("loss_fn", "finite, with finite gradients, at every sample", "inf or nan")
    return found, {name: torch.from_numpy(array).reshape(params[name].shape) for name, array in squares.items()}


def _check_loss(sample_loss: Callable[..., Any], params: Mapping[str, Tensor]) -> None:
    first = torch.tensor(0)
    expected = "a criterion that returns a scalar for the output and the target of one sample"
    try:
        with torch.enable_grad():
            value = sample_loss({name: each.detach().requires_grad_() for name, each in params.items()}, first, first)
    except Exception as error:  # whatever the user's function raises for one sample in float64
        text = " ".join(str(error).split())
        raise invalid("loss_fn", expected, f"{type(error).__name__}: {text[:200]}") from error
    if not isinstance(value, Tensor):
        raise wrong_type("loss_fn", expected, value)
    if value.ndim or not value.is_floating_point():
        raise invalid("loss_fn", expected, f"shape {tuple(value.shape)}, {value.dtype}")
    if params and not value.requires_grad:
        raise invalid("loss_fn", "a criterion with a gradient", "a loss that is detached from the parameters")
