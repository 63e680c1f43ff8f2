"""From the ledger of a pass to families of units: components of equalities, elimination of sums, common roles.

Equal units are one component; the sums are solved by exact elimination, over fractions for scalings and modulo 2 for
signs. Free components that occur in the same places with the same exponents form one family.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from symlearn._audit_tags import LARGEST_PRODUCT, Ledger, Use, squeezed

Expression = dict[int, Any]
Key = tuple[str, str, str, Any]  # parameter, operation, role, exponent


@dataclass
class Solution:
    """The solved ledger.

    Attributes
    ----------
    component : ndarray of int
        Component of every unit, named by its smallest unit; 0 for what is held fixed.
    solved : dict
        Components that are a sum of coefficient times free component.
    """

    ledger: Ledger
    component: np.ndarray
    solved: dict[int, Expression]

    def expression(self, component: int) -> Expression:
        """A component in terms of free ones."""
        return {} if component <= 0 else self.solved.get(component, {component: 1})

    def components(self, tag: Tensor) -> np.ndarray:
        """Components of a tag; -1 stays."""
        units = tag.numpy()
        return np.where(units < 0, -1, self.component[units])

    def touched(self, tags: Iterable[Tensor]) -> set[int]:
        """Free components that the units of these tags depend on."""
        found: set[int] = set()
        for tag in tags:
            for component in np.unique(self.components(tag)):
                found |= set(self.expression(int(component)))
        return found


@dataclass
class Family:
    """Free components with one role.

    Attributes
    ----------
    free : list of int
    terms : list of (name, exponent, index)
        As in ``symmetry.UnitSymmetry``.
    keys : frozenset
        Parameter, operation, role and exponent of every term.
    """

    free: list[int]
    terms: list[tuple[str, Any, Tensor]]
    keys: frozenset[Key]

    @property
    def places(self) -> frozenset[tuple[str, str, str]]:
        """The keys without exponents."""
        return frozenset(key[:3] for key in self.keys)


def solve(ledger: Ledger, closed: set[str]) -> Solution:
    """Solve a ledger with the strict rule at the sites named in ``closed``, and the relaxed one at all others."""
    edges = [*ledger.edges, *_ties(ledger)]
    for name in closed:
        for tag in ledger.sites[name].tags:
            units = np.unique(tag.clamp_min(0).numpy())
            edges.append(np.stack([units, np.zeros_like(units)], 1))
    component = _components(ledger.count, edges)
    return Solution(ledger, component, _eliminated(ledger, component))


def families(solution: Solution) -> list[Family]:
    """Free components grouped by the places and exponents of what they move."""
    places: dict[int, set[Key]] = defaultdict(set)
    slots: list[tuple[Key, np.ndarray, Use]] = []
    for use, parts in _covering(solution.ledger):
        for role, exponent, tag in parts:
            for coefficient, free in _slots(solution, solution.components(tag)):
                key = (use.name, use.node, role, _plain(exponent * coefficient))
                slots.append((key, free, use))
                for each in np.unique(free[free > 0]).tolist():
                    places[each].add(key)
    grouped: dict[frozenset[Key], list[int]] = defaultdict(list)
    for each in sorted(places):
        grouped[frozenset(places[each])].append(each)
    found = [Family(free, _terms(keys, free, slots, solution.ledger.mode), keys) for keys, free in grouped.items()]
    return sorted((family for family in found if family.terms), key=lambda family: family.free[0])


def labels_of(solution: Solution, keep: Iterable[str] | None = None) -> dict[int, set[tuple[Any, int]]]:
    """Operation, role and fibre of everything that each free component meets."""
    met: dict[int, set[tuple[Any, int]]] = defaultdict(set)
    for key, pairs in solution.ledger.labels:
        if keep is not None and key[1] not in keep:
            continue
        components = solution.component[pairs[:, 0]]
        for component, fibre in zip(components.tolist(), pairs[:, 1].tolist(), strict=True):
            for free in solution.expression(component):
                met[free].add((key, fibre))
    return met


def linear_blocks(solution: Solution, family: Family, met: dict[int, set[tuple[Any, int]]]) -> list[list[int]]:
    """The units of a family cut into blocks that every matrix may mix; blocks of one unit are left out."""
    if {key[3] for key in family.keys} != {1, -1}:
        return []
    free = set(family.free)
    bent = solution.touched(torch.from_numpy(units) for units in solution.ledger.bent)
    mixed = {each for expression in solution.solved.values() if len(free & set(expression)) > 1 for each in expression}
    blocks: dict[Any, list[int]] = defaultdict(list)
    for place, each in enumerate(family.free):
        if each in free - bent - mixed:
            blocks[frozenset(met[each])].append(place)
    return [block for block in blocks.values() if len(block) > 1]


def spaces(solution: Solution) -> list[Family]:
    """In a pass over permutations: components that meet the same operations and may be exchanged."""
    met = labels_of(solution)
    found = []
    for family in families(solution):
        alike: dict[Any, list[int]] = defaultdict(list)
        for each in family.free:
            alike[frozenset(met[each])].append(each)
        for free in alike.values():
            if len(free) > 1:
                found.append(restricted(family, [family.free.index(each) for each in free]))
    return sorted(found, key=lambda family: family.free[0])


def heads(solution: Solution) -> list[Family]:
    """In a pass over heads: components that take part in one contraction each, and may be exchanged."""
    taking: dict[str, set[int]] = defaultdict(set)
    for (node, role), pairs in solution.ledger.labels:
        if role == "head":
            taking[node] |= set(solution.component[pairs[:, 0]].tolist()) - {0}
    of_component = {each: (family, place) for family in families(solution) for place, each in enumerate(family.free)}
    found, seen = [], set()
    for each in taking.values():
        known = [of_component[unit] for unit in sorted(each) if unit in of_component]
        for family in {id(family): family for family, _ in known}.values():
            units = [place for other, place in known if other is family]
            key = tuple(family.free[place] for place in units)
            if len(units) > 1 and key not in seen:
                seen.add(key)
                found.append(restricted(family, units))
    return found


def restricted(family: Family, units: list[int]) -> Family:
    """The family with these of its units only."""
    rename = torch.full((len(family.free) + 1,), -1)
    rename[units] = torch.arange(len(units))
    terms = [(name, exponent, rename[index]) for name, exponent, index in family.terms]
    terms = [term for term in terms if bool((term[2] >= 0).any())]
    return Family([family.free[unit] for unit in units], terms, family.keys)


def _covering(ledger: Ledger) -> list[tuple[Use, list[tuple[str, int, Tensor]]]]:
    """The uses with their parts, each entry of a parameter once: further uses of it say the same again."""
    covered: dict[str, Tensor | None] = {}
    found = []
    for use in ledger.uses:
        parts = [part for part in use.parts if part[1]]
        reached = _reached(use)
        if use.name in covered:
            before = covered[use.name]
            if before is None or bool(before.all()):
                continue
            if bool((before & reached).any()):
                parts = [(role, exponent, torch.where(before, -1, tag)) for role, exponent, tag in parts]
            reached = before | reached
        covered[use.name] = None if bool(reached.all()) else reached
        found.append((use, parts))
    return found


def _reached(use: Use) -> Tensor:
    """The entries that a use reaches."""
    return functools.reduce(torch.logical_and, (tag >= 0 for _, _, tag in use.parts), torch.tensor(True))


def _slots(solution: Solution, components: np.ndarray) -> list[tuple[Any, np.ndarray]]:
    """Coefficient and free component of every entry, as many times as entries depend on several."""
    kinds, place = np.unique(components, return_inverse=True)
    columns: dict[tuple[int, Any], np.ndarray] = {}
    for position, component in enumerate(kinds.tolist()):
        for slot, (free, coefficient) in enumerate(solution.expression(component).items()):
            column = columns.setdefault((slot, coefficient), np.full(len(kinds), -1))
            column[position] = free
    return [(coefficient, column[place].reshape(components.shape)) for (_, coefficient), column in columns.items()]


def _terms(
    keys: frozenset[Key], free: list[int], slots: list[tuple[Key, np.ndarray, Use]], mode: str
) -> list[tuple[str, Any, Tensor]]:
    order = np.array(free)
    merged: dict[tuple[str, tuple[int, ...], bytes], tuple[Any, Tensor]] = {}
    for key, components, _ in slots:
        if key not in keys:
            continue
        place = np.searchsorted(order, components).clip(0, len(order) - 1)
        index = squeezed(torch.from_numpy(np.where(order[place] == components, place, -1))).numpy()
        if (index < 0).all():
            continue
        identity = (key[0], index.shape, index.tobytes())
        already = merged.get(identity, (0, None))[0]
        if mode in ("scale", "sign"):
            total = already + key[3]
            merged[identity] = (total % 2 if mode == "sign" else total, torch.from_numpy(index))
        else:
            merged[identity] = (1, torch.from_numpy(index))
    return [(name, exponent, index) for (name, _, _), (exponent, index) in merged.items() if exponent]


def _plain(value: Any) -> Any:
    """An integer where the number is one."""
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    return int(value) if float(value).is_integer() else float(value)


def _components(count: int, edges: list[np.ndarray]) -> np.ndarray:
    pairs = np.concatenate([*edges, np.zeros((1, 2), dtype=np.int64)])
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    number, label = connected_components(graph, directed=False)
    smallest = np.full(number, count)
    np.minimum.at(smallest, label, np.arange(count))
    return smallest[label]


def _eliminated(ledger: Ledger, component: np.ndarray) -> dict[int, Expression]:
    """Solve each sum for its rarest, then newest component; an empty expression is a component that is fixed."""
    modulo = 2 if ledger.mode == "sign" else 0
    solved: dict[int, Expression] = {}
    rank: dict[int, int] = {}

    def reduced(expression: Expression) -> Expression:
        # An expression holds only components which were solved for later, so that each is replaced at most once.
        result: Expression = defaultdict(int, expression)
        while known := [each for each in result if each in solved]:
            first = min(known, key=rank.__getitem__)
            factor = result.pop(first)
            for other, coefficient in solved[first].items():
                result[other] += factor * coefficient
        result = {each: value % 2 if modulo else value for each, value in result.items()}
        return {each: value for each, value in result.items() if value}

    sums = [(np.unique(component[columns], axis=0), coefficients) for columns, coefficients in ledger.rows]
    often = np.zeros(len(component), dtype=np.int64)
    for rows, _ in sums:
        np.add.at(often, rows.reshape(-1), 1)
    for rows, coefficients in sums:
        fractions = [Fraction(value).limit_denominator(10**6) for value in coefficients]
        exact = [value.numerator if value.denominator == 1 else value for value in fractions]
        for row in rows.tolist():
            total: Expression = defaultdict(int)
            for each, value in zip(row, exact, strict=True):
                if each:
                    total[each] += value
            left = reduced(total)
            if left:
                chosen = min(left, key=lambda each: (often[each], -each))
                pivot = left.pop(chosen)
                rank[chosen] = len(rank)
                solved[chosen] = {each: _quotient(-value, pivot) for each, value in left.items()}
    return {each: reduced(expression) for each, expression in list(solved.items())}


def _quotient(value: Any, pivot: Any) -> Any:
    return value * pivot if pivot in (1, -1) else Fraction(value) / pivot


def _ties(ledger: Ledger) -> list[np.ndarray]:
    """Equalities and sums that follow where one parameter is used several times."""
    uses: dict[str, list[Use]] = defaultdict(list)
    for use in ledger.uses:
        uses[use.name].append(use)
    before = len(ledger.edges)
    for name, several in uses.items():
        if ledger.tied:
            break
        partial = any(bool((tag == -1).any()) for use in several for _, _, tag in use.parts)
        for one, other in combinations(several, 2) if partial else pairwise(several):
            _tie(ledger, ledger.shapes[name], one, other)
    ledger.tied = True
    return ledger.edges[before:]


def _tie(ledger: Ledger, shape: tuple[int, ...], one: Use, other: Use) -> None:
    parts = [(exponent, tag) for _, exponent, tag in one.parts] + [(-exponent, tag) for _, exponent, tag in other.parts]
    absent = any(bool((tag == -1).any()) for _, tag in parts)
    axes = [[axis for axis in range(len(shape)) if tag.shape[axis] > 1] for _, tag in parts]
    if absent and not bool((_reached(one) & _reached(other)).any()):
        return
    if ledger.mode in ("permutation", "heads"):
        _tie_places(ledger, one, other, absent)
    elif not absent and all(len(each) <= 1 for each in axes):
        balances = []
        for axis in range(len(shape)):
            along = [
                (tag.reshape(-1), exponent) for (exponent, tag), each in zip(parts, axes, strict=True) if each == [axis]
            ]
            if along:
                balance = ledger.new(1)
                ledger.row([*along, (balance, -1)])
                balances.append((balance, 1))
        constant = [(tag.reshape(1), exponent) for (exponent, tag), each in zip(parts, axes, strict=True) if not each]
        if balances or constant:
            ledger.row([*balances, *constant])
    else:
        _tie_entries(ledger, shape, parts)


def _tie_entries(ledger: Ledger, shape: tuple[int, ...], parts: list[tuple[int, Tensor]]) -> None:
    if int(np.prod(shape)) > LARGEST_PRODUCT // 4:
        for _, tag in parts:
            ledger.fix(tag.clamp_min(0))
        return
    ledger.row([(tag, exponent) for exponent, tag in parts])  # entries that one use does not reach carry -1


def _tie_places(ledger: Ledger, one: Use, other: Use, absent: bool) -> None:
    """In permutations both uses must give the same order along every axis."""
    for _, _, tag in one.parts:
        for _, _, also in other.parts:
            same = [size > 1 for size in tag.shape] == [size > 1 for size in also.shape]
            if same:
                ledger.equal(tag, also)
    if ledger.mode == "heads" or absent:
        return
    for use, against in ((one, other), (other, one)):
        for _, _, tag in use.parts:
            varied = [size > 1 for size in squeezed(tag).shape]
            if any(varied) and not any(varied == [size > 1 for size in also.shape] for _, _, also in against.parts):
                ledger.fix(tag)
