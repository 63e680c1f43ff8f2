"""From a traced model to verified findings: the passes over its graph, the candidates, and their verdicts."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from symlearn._audit_graph import Program
from symlearn._audit_health import imbalance, inert_entries, measure, random_gradients, unit_health
from symlearn._audit_rules import Pass, Shape
from symlearn._audit_shift import translations
from symlearn._audit_solve import Family, families, heads, labels_of, linear_blocks, restricted, solve, spaces
from symlearn._audit_verify import Bench, SmallEps
from symlearn.symmetry import Symmetry, UnitMirror, UnitPermutation, UnitSymmetry


@dataclass
class Candidate:
    """The fields of a finding."""

    kind: str
    units: int
    dimension: int
    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]
    violation: float
    status: str
    note: str
    imbalance: float
    symmetry: Symmetry | None
    charge: float = math.nan
    conservation: float = math.nan
    noise_distance: float = math.nan
    amounts: Any = None
    verified: str = "exact up to eps"  # the status of a broken candidate which turns out to hold up to eps


FIRST_ORDER = "holds to first order only"
SLIGHT = 1e-3  # violations from eps are smaller, as a rule
FAR = 10.0  # times the usual amounts
REACH = 0.7  # before that factor, whatever was drawn: a factor of a thousand for every unit
ROUNDING = 1e-11  # and those from rounding in float64 smaller still


@dataclass
class Found:
    """Everything that a search finds."""

    findings: list[Candidate]
    health: list[tuple[Any, ...]]
    barriers: list[str]
    inert: dict[str, int]

    @classmethod
    def nothing(cls) -> Found:
        """The result for a model that cannot be traced."""
        return cls([], [], ["whole model"], {})


@dataclass
class Search:
    """What the steps of one search share."""

    bench: Bench
    program: Program
    tol: float
    amount: float
    generator: torch.Generator
    shapes: dict[str, Shape] = field(default_factory=dict)
    small: SmallEps | None = None
    eps_sites: set[str] = field(default_factory=set)

    def normal(self, *shape: int) -> Tensor:
        return self.amount * torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def run(self, mode: str) -> Any:
        return Pass(self.program, mode, self.shapes).run()

    def judge(self, symmetry: Symmetry, amounts: Any) -> tuple[float, str] | None:
        """Violation and status of a candidate; None if it moves no parameter or cannot be applied."""
        try:
            violation, moved = self.bench.move(lambda tensors: symmetry.act(tensors, amounts))
        except ValueError:
            return None
        if not moved:
            return None
        if violation <= self.tol:
            return violation, "exact"
        return violation, "broken"

    def push(self, candidates: Sequence[Candidate]) -> None:
        """Move exact candidates far up and down: what saturates, such as ReLU6, looks homogeneous until it does."""
        for each in candidates:
            for direction in (FAR, -FAR):
                exact = each.status == "exact" and each.kind != "gl"  # matrices mix what linear operations read only
                far = direction * each.amounts.abs().clamp_min(REACH)
                verdict = self.judge(each.symmetry, far) if exact and each.symmetry else None
                if verdict is not None and verdict[1] == "broken":
                    each.violation, each.status, each.note = verdict[0], "broken", FIRST_ORDER
                    each.amounts = far

    def blame_eps(self, candidates: Sequence[Candidate]) -> None:
        """Mark candidates whose violation comes from eps: it falls when every eps is 1e8 times smaller."""
        doubtful = [each for each in candidates if ROUNDING < each.violation < math.inf]
        slight = [each for each in doubtful if each.violation < SLIGHT]
        together = self._with_small_eps(slight) if len(slight) > 1 else math.inf
        for each in doubtful:
            most = min(self.tol, each.violation / 100)
            if (each.violation < SLIGHT and together <= most) or self._with_small_eps([each]) <= most:
                each.status, each.note = each.verified, each.note.removeprefix(FIRST_ORDER)

    def _with_small_eps(self, candidates: Sequence[Candidate]) -> float:
        def moved(tensors: Any) -> Any:
            for each in candidates:
                tensors = each.symmetry.act(tensors, each.amounts) if each.symmetry is not None else tensors
            return tensors

        try:
            if self.small is None:
                self.small = SmallEps(self.program, self.bench.tensors, self.eps_sites)
            return self.small.move(moved)
        except Exception:  # a graph that runs with its own eps only: nothing is claimed
            return math.inf


def search(bench: Bench, program: Program, *, kinds: Sequence[str], tol: float, amount: float, seed: int) -> Found:
    """All passes over the graph of a model, each candidate verified on the bench."""
    state = Search(bench, program, tol, amount, torch.Generator().manual_seed(seed))
    ledger = state.run("scale")
    findings, blocks = _scalings(state, ledger)
    if "rescaling" in kinds:
        findings += _translations(state)
    else:
        findings = []
    if "mirror" in kinds:
        findings += _mirrors(state, blocks)
    health: list[tuple[Any, ...]] = []
    if "permutation" in kinds:
        found, kept = _permutations(state)
        findings += found + _heads(state)
    bench.restore()
    gradients = random_gradients(bench)
    for each in findings:
        if isinstance(each.symmetry, UnitSymmetry):
            each.charge, each.conservation = measure(each.symmetry, bench, gradients)
    if "permutation" in kinds:
        rescaled = [each for each in findings if each.kind == "rescaling" and each.status != "broken"]
        linear = [each for each in rescaled if {abs(a) for _, a, _ in getattr(each.symmetry, "terms", ())} == {1}]
        written, homogeneous = ({name for each in some for name in each.incoming} for some in (rescaled, linear))
        health = unit_health(bench, kept, written, homogeneous, gradients)
    return Found(findings, health, list(ledger.barriers), inert_entries(bench, gradients))


def _scalings(state: Search, ledger: Any) -> tuple[list[Candidate], set[Any]]:
    """Scaling families: relaxed at first, with the strict rule wherever a family that goes through it is broken."""
    state.eps_sites = {name for name, site in ledger.sites.items() if site.kind == "eps"}
    closed: set[str] = set()
    known: dict[Any, list[Candidate]] = {}
    near: dict[Any, list[Candidate]] = {}
    while True:
        solution = solve(ledger, closed)
        met = labels_of(solution)
        functions = [site for name, site in ledger.sites.items() if site.kind == "function" and name not in closed]
        relaxed = solution.touched(tag for site in functions for tag in site.tags)
        verdicts: list[tuple[Family, list[Candidate]]] = []
        for family in families(solution):
            identity = _identity(family)
            if identity not in known:
                known[identity] = _family_candidates(state, family, linear_blocks(solution, family, met))
                if set(family.free) & relaxed:
                    state.push(known[identity])
            verdicts.append((family, known[identity]))
        fresh = [each for _, candidates in verdicts for each in candidates if each.amounts is not None]
        state.blame_eps(fresh)
        for each in fresh:
            each.amounts = None
        closing: set[str] = set()
        for family, candidates in verdicts:
            if any(each.status == "broken" for each in candidates):
                near[family.places] = [each for each in candidates if each.status == "broken"]
                through = {
                    name for name, site in ledger.sites.items() if solution.touched(site.tags) & set(family.free)
                } - closed
                closing |= {name for name in through if ledger.sites[name].kind == "function"} or through
        if not closing:
            break
        closed |= closing
    good = [each for _, candidates in verdicts for each in candidates if each.status != "broken"]
    found = {family.places for family, candidates in verdicts if any(each.status != "broken" for each in candidates)}
    blocks = {
        family.places
        for family, candidates in verdicts
        if any(each.kind == "gl" and each.status != "broken" for each in candidates)
    }
    missed = [each for places, candidates in near.items() if places not in found for each in candidates]
    return good + missed, blocks


def _family_candidates(state: Search, family: Family, blocks: list[list[int]]) -> list[Candidate]:
    found: list[Candidate] = []
    inside: list[int] = []
    sizes = sorted({len(block) for block in blocks}, reverse=True)
    for size in sizes:
        same = [block for block in blocks if len(block) == size]
        units = [unit for block in same for unit in block]
        candidate = _scaling(
            state, restricted(family, units), [list(range(i, i + size)) for i in range(0, len(units), size)]
        )
        if candidate is not None and candidate.status != "broken":
            found.append(candidate)
            inside += units
    rest = [unit for unit in range(len(family.free)) if unit not in set(inside)]
    if rest:
        candidate = _scaling(state, restricted(family, rest) if inside else family, None)
        if candidate is not None:
            found.append(candidate)
    return found


def _scaling(state: Search, family: Family, blocks: list[list[int]] | None) -> Candidate | None:
    bench, units = state.bench, len(family.free)
    terms = family.terms
    trained = [(name, exponent) for name, exponent, _ in terms if name not in bench.buffers]
    if not trained:
        return None
    buffers = tuple(dict.fromkeys(name for name, _, _ in terms if name in bench.buffers))
    try:
        symmetry = UnitSymmetry(terms, units, blocks=blocks, buffers=buffers)
    except ValueError:
        return None
    if blocks is None:
        amounts = state.normal(units)
    else:
        size = len(blocks[0])
        amounts = state.normal(len(blocks), size, size) / math.sqrt(size)
    verdict = state.judge(symmetry, amounts)
    if verdict is None:
        return None
    violation, status = verdict
    frozen = [name for name, _ in trained if name not in bench.trainable]
    shape = "" if blocks is None else f"{len(blocks)} blocks of {len(blocks[0])}"
    note = f"moves frozen {', '.join(dict.fromkeys(frozen))}" if frozen else ""
    positive = tuple(dict.fromkeys(name for name, exponent in trained if exponent > 0))
    negative = tuple(dict.fromkeys(name for name, exponent in trained if exponent < 0))
    both = bool(positive and negative)
    kind = "gl" if blocks is not None else "rescaling" if both else "scale"
    return Candidate(
        kind=kind,
        units=units,
        dimension=units * len(blocks[0]) if blocks is not None else units,
        incoming=positive or negative,
        outgoing=negative if positive else (),
        violation=violation,
        status="frozen" if frozen and status != "broken" else status,
        note=note or (FIRST_ORDER if status == "broken" else shape),
        imbalance=imbalance(symmetry, bench) if both else math.nan,
        symmetry=symmetry,
        amounts=amounts,
        verified="frozen" if frozen else "exact up to eps",
    )


def _mirrors(state: Search, blocks: set[Any]) -> list[Candidate]:
    """Sign flips, all families at once; one by one only if that fails. Those inside a matrix block are part of it."""
    symmetries: list[tuple[UnitMirror, Family]] = []
    for family in families(solve(state.run("sign"), set())):
        if family.places not in blocks and any(name not in state.bench.buffers for name, _, _ in family.terms):
            symmetries.append((UnitMirror(family.terms, len(family.free)), family))
    masks = [torch.randint(2, (symmetry.units,), generator=state.generator) for symmetry, _ in symmetries]

    def flipped(wanted: Sequence[int], other: bool) -> float:
        def move(tensors: Any) -> Any:
            for place in wanted:
                tensors = symmetries[place][0].act(tensors, 1 - masks[place] if other else masks[place])
            return tensors

        return state.bench.move(move)[0]

    def violation(wanted: Sequence[int]) -> float:
        """Some units and then all others, so that every unit is flipped once."""
        return max(flipped(wanted, False), flipped(wanted, True))

    together = violation(range(len(symmetries))) if symmetries else 0.0
    found = []
    for place, (symmetry, family) in enumerate(symmetries):
        size = together if together <= state.tol else violation([place])
        if size <= state.tol:
            found.append(_discrete(state, "mirror", symmetry, family, size))
    return found


def _permutations(state: Search) -> tuple[list[Candidate], list[tuple[Family, UnitPermutation]]]:
    """Exchanges of units, all at once, by a shift and at random; one by one only if that fails."""
    kept = []
    for family in spaces(solve(state.run("permutation"), set())):
        try:
            kept.append((family, UnitPermutation(family.terms, len(family.free))))
        except ValueError:
            continue
    kept = [pair for pair in kept if _applies(state, pair[1])]

    def shuffled(tensors: Any, *, shift: bool) -> Any:
        for _, symmetry in kept:
            order = None if shift else torch.randperm(symmetry.units, generator=state.generator)
            tensors = symmetry.act(tensors, order)
        return tensors

    draws = [functools.partial(shuffled, shift=shift) for shift in (True, False)]
    together = max(state.bench.move(draw)[0] for draw in draws) if kept else 0.0
    found, verified = [], []
    for family, symmetry in kept:
        violation = together if together <= state.tol else _exchange(state, symmetry)
        if violation <= state.tol:
            found.append(_discrete(state, "permutation", symmetry, family, violation))
            verified.append((family, symmetry))
    return found, verified


def _heads(state: Search) -> list[Candidate]:
    found = []
    for family in heads(solve(state.run("heads"), set())):
        symmetry = UnitPermutation(family.terms, len(family.free))
        if _applies(state, symmetry):
            violation = _exchange(state, symmetry)
            if violation <= state.tol:
                found.append(_discrete(state, "heads", symmetry, family, violation))
    return found


def _applies(state: Search, symmetry: UnitPermutation) -> bool:
    """Whether every unit occurs equally often, and a shift by one moves something."""
    try:
        tensors = {name: tensor.detach() for name, tensor in state.bench.tensors.items()}
        after = symmetry.act(tensors)
    except ValueError:
        return False
    return any(
        name not in state.bench.buffers and bool((after[name] != tensors[name]).any()) for name in symmetry.names
    )


def _exchange(state: Search, symmetry: UnitPermutation) -> float:
    """The larger violation of a shift by one and of a random order."""
    orders = (None, torch.randperm(symmetry.units, generator=state.generator))
    return max(state.bench.move(functools.partial(symmetry.act, amount=order))[0] for order in orders)


def _discrete(state: Search, kind: str, symmetry: Symmetry, family: Family, violation: float) -> Candidate:
    trained = [name for name in symmetry.names if name not in state.bench.buffers]
    reading = {key[0] for key in family.keys if key[2] == "in"}
    writing = {key[0] for key in family.keys if key[2] != "in"}
    frozen = [name for name in trained if name not in state.bench.trainable]
    return Candidate(
        kind=kind,
        units=len(family.free),
        dimension=0,
        incoming=tuple(name for name in trained if name in writing),
        outgoing=tuple(name for name in trained if name in reading),
        violation=violation,
        status="frozen" if frozen else "exact",
        note=f"moves frozen {', '.join(frozen)}" if frozen else "",
        imbalance=math.nan,
        symmetry=symmetry,
    )


def _translations(state: Search) -> list[Candidate]:
    """Shifts along the axis that a layer norm centres, all at once; one by one only if that fails."""
    bench = state.bench
    axes = {name: axis for name, axis in translations(state.program).items() if name not in bench.buffers}
    shifts = {}
    for name, (axis,) in ((name, (axis[0],)) for name, axis in axes.items()):
        shape = list(bench.tensors[name].shape)
        shape[axis] = 1
        shifts[name] = state.normal(*shape)

    def shifted(names: Iterable[str]) -> Any:
        return lambda tensors: {**tensors, **{name: tensors[name] + shifts[name] for name in names}}

    together = bench.move(shifted(shifts))[0] if shifts else 0.0
    found = []
    for name, shift in shifts.items():
        violation = together if together <= state.tol else bench.move(shifted([name]))[0]
        if violation > state.tol:
            continue
        frozen = name not in bench.trainable
        found.append(
            Candidate(
                kind="translation",
                units=shift.numel(),
                dimension=shift.numel(),
                incoming=(name,),
                outgoing=(),
                violation=violation,
                status="frozen" if frozen else "exact",
                note=f"the same number added along axis {axes[name][0]}",
                imbalance=math.nan,
                symmetry=None,
                charge=float(bench.values[name].sum(axes[name][0]).abs().max()),
            )
        )
    return found


def _identity(family: Family) -> Any:
    return tuple(
        (name, exponent, tuple(index.shape), index.numpy().tobytes()) for name, exponent, index in family.terms
    )
