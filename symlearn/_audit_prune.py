"""Physical removal of the units that an audit found dead or duplicate, each removal verified by a forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from symlearn._audit_attention import AttentionOfFewerHeads
from symlearn._audit_plan import (
    UNEQUAL,
    bundles,
    capped,
    channels,
    halves,
    idle_heads,
    joined,
    legal,
    open_spaces,
    refusal,
    shares_sizes,
)
from symlearn._audit_report import AuditReport
from symlearn._audit_surgery import (
    Plan,
    Refused,
    Space,
    apply_guesses,
    constant_inputs,
    cut,
    detached_copy,
    fold,
    kept_entries,
    merge,
    owner_of,
    roles_of,
    subsets,
    tensors_of,
)
from symlearn._audit_verify import Bench, floating, private_copy, relative
from symlearn._checks import invalid

MOST_TRIALS = 32  # forward passes that may be spent on one space in finding out which units cannot go


@dataclass(frozen=True)
class PruneOutcome:
    """A smaller model with the same function.

    Attributes
    ----------
    model : nn.Module
        A copy without the removed units: dtype, device, mode and ``requires_grad`` as in the original.
    removed : dict of str to tuple of int
        Removed units by space: the first parameter that writes into the units, and places along its axis of units in
        the original model. Of heads "heads of" that parameter, and numbers of heads or of key/value groups.
    merged : dict of str to tuple of (int, int)
        The copies among them: the unit which stayed, and the removed one.
    parameters : (int, int)
        Number of parameters before and after.
    violation : float
        Largest change of the outputs over the largest output, in float64.
    kept_back : dict of str to str
        Spaces with dead or duplicate units that stay, and why.
    """

    model: nn.Module
    removed: dict[str, tuple[int, ...]]
    merged: dict[str, tuple[tuple[int, int], ...]]
    parameters: tuple[int, int]
    violation: float
    kept_back: dict[str, str]


def prune(
    model: nn.Module,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    report: AuditReport,
    audit: Callable[[nn.Module], AuditReport],
    duplicates: bool,
    tol: float,
) -> PruneOutcome:
    """Remove dead units, duplicates and heads until none is left that can go."""
    state = _Surgery(model, inputs, kwargs, tol)
    while state.round(report, duplicates):
        report = audit(state.model)
    after = count(state.model)
    merged = {name: tuple(sorted(pairs)) for name, pairs in state.merged.items()}
    return PruneOutcome(
        model=state.model,
        removed={name: tuple(sorted(units)) for name, units in state.removed.items()},
        merged=merged,
        parameters=(count(model), after),
        violation=state.violation,
        kept_back={name: "; ".join(sorted(several)) for name, several in state.reasons.items()},
    )


def predicted_parameters(model: nn.Module, report: AuditReport) -> tuple[int, int, bool]:
    """Parameters before, and after `prune`: a count from the report alone, with no surgery and no forward pass.

    What goes in the first round: units that thereby lose their last reader would go too. The count is uncertain, False,
    where heads belong to code that may not work with fewer of them.
    """
    tensors = dict(model.named_parameters())
    heads, spaces = idle_heads(report, tensors_of(model)), open_spaces(report, tensors_of(model), duplicates=True)[0]
    plan = [(space, units) for space, units in capped(heads) if units]
    plan += legal(model, [space for space in spaces if not refusal(model, space, report)])
    dropped: dict[str, list[tuple[Tensor, list[int]]]] = defaultdict(list)
    for space, units in plan:
        for name, _, index in space.symmetry.terms:
            if name in tensors:
                dropped[name].append((index, units))
    before = after = count(model)
    for name, terms in dropped.items():
        try:
            after -= tensors[name].numel() - kept_entries(tensors[name].shape, terms)
        except Refused:
            continue
    known = (nn.MultiheadAttention, AttentionOfFewerHeads)
    return (
        before,
        after,
        all(any(isinstance(owner_of(model, name), known) for name in space.symmetry.names) for space in heads),
    )


def check_fit(report: AuditReport, model: nn.Module) -> None:
    """Refuse the report of another model."""
    tensors = tensors_of(model)
    symmetries = [space.symmetry for space in report.units] + [each.symmetry for each in report.symmetries]
    for symmetry in symmetries:
        for name, _, index in getattr(symmetry, "terms", ()):
            if name not in tensors:
                raise invalid("report", "the audit of this model", f"one with a parameter {name!r}")
            shape = tuple(tensors[name].shape)
            if len(shape) != index.ndim or any(a not in (1, b) for a, b in zip(index.shape, shape, strict=True)):
                raise invalid("report", "the audit of this model", f"one where {name!r} has another shape")


def count(model: nn.Module) -> int:
    """Number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


class _Surgery:
    """The model as far as it is pruned, and what was removed, refused and measured on the way."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], tol: float) -> None:
        self.model = detached_copy(model)
        bench = Bench(model, inputs, kwargs)
        bench.restore()
        self.inputs, self.kwargs, self.outputs = bench.inputs, bench.kwargs, bench.outputs
        self.tol, self.violation = tol, 0.0
        self.removed: dict[str, list[int]] = {}
        self.merged: dict[str, list[tuple[int, int]]] = {}
        self.reasons: dict[str, set[str]] = {}
        self.places: dict[str, list[int]] = {}  # where the units that a space still has were in the original
        self.refused: set[tuple[str, int]] = set()

    def round(self, report: AuditReport, duplicates: bool) -> bool:
        """One pass over heads, or over units where no head goes; whether anything was removed."""
        heads = [self._without_refused(space) for space in idle_heads(report, tensors_of(self.model))]
        gone = [self._fits(pair) and self._remove([pair]) for pair in capped(heads) if pair[1]]
        if any(gone):
            return True
        spaces, kept = open_spaces(report, tensors_of(self.model), duplicates=duplicates)
        for name, reason in kept.items():
            self.reasons.setdefault(name, set()).add(reason)
        open_to = []
        for space in spaces:
            reason = refusal(self.model, space, report)
            if reason and space.candidates:
                self._note(space, reason)
            elif not reason:
                open_to.append(self._without_refused(space))
        plan = legal(self.model, open_to)
        planned = dict(plan)
        for space in open_to:
            held = set(space.candidates) - set(planned.get(space, ()))
            if held and len(held) < space.symmetry.units and shares_sizes(self.model, space):
                self._note(space, UNEQUAL)
        if not plan:
            return False
        constants = self._constants(plan)
        if self._remove(plan, constants, final=False):
            return True
        gone = [self._fits(*part) and self._part(part, constants) for part in bundles(self.model, plan)]
        return any(gone)

    def _fits(self, *plan: tuple[Space, list[int]]) -> bool:
        """Whether nothing that was removed in this round has changed what the indices of these spaces are for."""
        tensors = tensors_of(self.model)
        terms = [term for space, _ in plan for term in space.symmetry.terms]
        return all(
            a in (1, b) for name, _, index in terms for a, b in zip(index.shape, tensors[name].shape, strict=True)
        )

    def _part(self, plan: Plan, constants: dict[str, Tensor]) -> bool:
        """As many of these units as can go, by halving what cannot."""
        done: Plan = []
        waiting, trials = [plan], 0
        while waiting and trials < MOST_TRIALS:
            part = waiting.pop(0)
            trials += 1
            single = sum(len(units) for _, units in part) == 1
            if self._accepted(joined(done, part), constants) is not None:
                done = joined(done, part)
            elif self.failed and len(part) > 1:  # a size that does not fit: perhaps of one of the spaces only
                waiting += [part[: len(part) // 2], part[len(part) // 2 :]]
            elif not single and not self.failed:
                waiting += halves(part)
            else:
                for space, units in part:
                    self._refuse(space, units)
        return bool(done) and self._remove(done, constants)

    def _remove(self, plan: Plan, constants: dict[str, Tensor] | None = None, *, final: bool = True) -> bool:
        found = self._accepted(plan, constants or {})
        if found is None:
            for space, units in plan if final else []:
                self._refuse(space, units)
            return False
        places = {space: self._places(space) for space, _ in plan}
        for space, units in plan:
            name, where = space.name, places[space]
            self.removed.setdefault(name, []).extend(where[unit] for unit in units)
            pairs = [(space.copies[unit], unit) for unit in units if unit in space.copies]
            if pairs:
                self.merged.setdefault(name, []).extend((where[a], where[b]) for a, b in pairs)
        for name in {space.name for space, _ in plan}:
            gone = set(self.removed[name])
            self.places[name] = [place for place in self.places[name] if place not in gone]
        self.model, self.violation = found
        return True

    def _accepted(self, plan: Plan, constants: dict[str, Tensor]) -> tuple[nn.Module, float] | None:
        """The model without these units and its violation, or None; ``reason`` and ``failed`` say why."""
        trial = detached_copy(self.model)
        self.reason, self.failed = "", True
        try:
            for space, units in plan:
                merge(trial, space, units)
            fold(trial, plan, constants)
            guesses = cut(trial, plan)
        except Refused as error:
            self.reason = str(error)
            return None
        except Exception as error:  # tensors that are not what the index tensors say
            self.reason = f"the parameters cannot be cut: {type(error).__name__}"
            return None
        work = private_copy(trial)
        violation = self._violation(work)
        if violation <= self.tol:
            return trial, violation
        for chosen in subsets(guesses):
            before = apply_guesses(work, chosen)
            if self._violation(work, quiet=True) <= self.tol:
                apply_guesses(trial, chosen)
                return trial, self._violation(work)
            apply_guesses(work, before)
        return None

    def _violation(self, work: nn.Module, *, quiet: bool = False) -> float:
        try:
            outputs = self._run(work)
        except Exception as error:  # whatever the model's own code makes of its new sizes
            if not quiet:
                self.reason = "the forward pass fails: " + " ".join(str(error).split())[:160]
            return float("inf")
        violation = relative(self.outputs, outputs)
        if not quiet:
            self.failed = violation == float("inf")
            self.reason = f"the outputs would change by more than {self.tol:.0e}"
        return violation

    def _run(self, work: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            args, keywords = pytree.tree_map(_fresh_copy, (self.inputs, self.kwargs))
            return floating(work(*args, **keywords))

    def _constants(self, plan: Plan) -> dict[str, Tensor]:
        reading = [
            name
            for space, units in plan
            if any(unit in space.dead for unit in units)
            for (name, _, _), reads in roles_of(space)
            if reads
        ]
        return constant_inputs(private_copy(self.model), list(dict.fromkeys(reading)), self._run)

    def _places(self, space: Space) -> list[int]:
        """Where each unit is in the original model, along the axis of the parameter that names the space."""
        now = list(range(space.symmetry.units)) if space.heads else channels(self.model, space)
        self.places.setdefault(space.name, list(range(max(self._length(space), max(now) + 1))))
        return [self.places[space.name][place] for place in now]

    def _length(self, space: Space) -> int:
        if space.heads:
            return space.symmetry.units
        rows, *columns = tensors_of(self.model)[space.name].shape
        return max([rows, *(size * getattr(owner_of(self.model, space.name), "groups", 1) for size in columns[:1])])

    def _without_refused(self, space: Space) -> Space:
        where = self._places(space)
        refused = {unit for unit in space.candidates if (space.name, where[unit]) in self.refused}
        copies = {unit: stays for unit, stays in space.copies.items() if unit not in refused}
        return replace(space, dead=tuple(unit for unit in space.dead if unit not in refused), copies=copies)

    def _refuse(self, space: Space, units: Iterable[int]) -> None:
        where = self._places(space)
        self.refused |= {(space.name, where[unit]) for unit in units}
        self._note(space, self.reason)

    def _note(self, space: Space, reason: str) -> None:
        self.reasons.setdefault(space.name, set()).add(reason)


def _fresh_copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
