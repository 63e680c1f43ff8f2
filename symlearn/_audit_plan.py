"""Which units of which spaces may be removed together: read off the index tensors of an audit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from symlearn._audit_report import AuditReport, Finding
from symlearn._audit_surgery import (
    CONVOLUTIONS,
    TRANSPOSED,
    Plan,
    Space,
    owner_of,
    ratio,
    roles_of,
    tensors_of,
    unit_entries,
)
from symlearn._unit_symmetry import UnitPermutation, occurrences

NOT_READ = "no linear layer reads these units, so that copies cannot be merged"
DIFFERENT = "copies have other gains, slopes or statistics"
SLIGHT = 1e-5  # difference of units that are equal: above the rounding of float32 and what counts as a duplicate
INSIDE_A_HEAD = "units inside a head: only whole heads are removed"
UNEQUAL = "groups, layers or directions of one module lose equally many units or none"
NORMALISED = "a norm takes its statistics over these units"

Groups = list[list[tuple[int, int]]]  # of every group its units, each as space and number
Sides = tuple[Groups, Groups]


def idle_heads(report: AuditReport, tensors: dict[str, Tensor]) -> list[Space]:
    """Heads of which no output is read, or whose values are all 0: all their columns belong to dead units."""
    dead: dict[str, Tensor] = {}
    for health in report.units:
        for name, _, index in health.symmetry.terms if health.symmetry is not None and health.dead else ():
            if _is_along_columns(index):
                gone = torch.isin(index.reshape(-1), torch.tensor(health.dead))
                dead[name] = dead[name] | gone if name in dead else gone
    found = []
    for finding in report.symmetries + report.broken:
        symmetry = finding.symmetry
        if finding.kind != "heads" or not isinstance(symmetry, UnitPermutation):
            continue
        idle = torch.ones(symmetry.units, dtype=torch.bool)
        readers = [term for term in symmetry.terms if term[0] in finding.outgoing and _is_along_columns(term[2])]
        for name, _, index in readers:
            unread = (tensors[name].detach() == 0).transpose(0, 1).flatten(1).all(1).cpu()
            unread = unread | dead[name] if name in dead else unread
            idle &= torch.stack([unread[index.reshape(-1) == head].all() for head in range(symmetry.units)])
        if readers and bool(idle.any()):
            reading = tuple(name in finding.outgoing for name, _, _ in symmetry.terms)
            name = next(name for name, _, _ in symmetry.terms if name in finding.incoming)
            which = tuple(idle.nonzero()[:, 0].tolist())
            found.append(Space(f"heads of {name}", symmetry, reading, which, {}, {}, heads=True))
    return found


def _is_along_columns(index: Tensor) -> bool:
    return index.ndim > 1 and index.shape[1] == index.numel()


def open_spaces(
    report: AuditReport, tensors: dict[str, Tensor], *, duplicates: bool
) -> tuple[list[Space], dict[str, str]]:
    """All spaces with what may go; and those whose copies cannot be merged, with the reason."""
    roles = {each.symmetry: each for each in report.symmetries + report.broken if each.kind == "permutation"}
    found, kept = [], {}
    for health in report.units:
        symmetry = health.symmetry
        if symmetry is None or symmetry not in roles:
            continue
        reading = tuple(_reads(roles[symmetry], name, index) for name, _, index in symmetry.terms)
        space = Space(health.space, symmetry, reading, health.dead, {}, _powers(report, symmetry, reading))
        pairs = [pair for pair in health.duplicates if duplicates and not set(pair) & set(health.dead)]
        good = [pair for pair in pairs if any(reading) and _same_function(tensors, space, *pair)]
        if len(good) < len(pairs):
            kept[health.space] = DIFFERENT if any(reading) else NOT_READ
        if good:
            space = replace(space, copies=_copies(good))
        found.append(space)
    return found, kept


def _reads(finding: Finding, name: str, index: Tensor) -> bool:
    """Whether a term reads the units; a square parameter that also writes them reads along its second axis."""
    return name in finding.outgoing and not (name in finding.incoming and index.shape[0] > 1)


def _same_function(tensors: dict[str, Tensor], space: Space, stays: int, goes: int) -> bool:
    """Whether gains, slopes and statistics of equal units are equal too; with parallel ones the outputs decide."""
    if abs(ratio(tensors, space, stays, goes) - 1) > SLIGHT:
        return True
    for (name, _, index), reads in roles_of(space):
        if not reads:
            one, other = (unit_entries(tensors[name], index, unit) for unit in (stays, goes))
            if float((one - other).norm()) > SLIGHT * float(one.norm()):
                return False
    return True


def _copies(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    copies: dict[int, int] = {}
    for stays, goes in sorted(pairs):
        if goes not in copies:
            copies[goes] = copies.get(stays, stays)
    return copies


def _powers(report: AuditReport, symmetry: UnitPermutation, reading: Sequence[bool]) -> dict[str, float]:
    """From the rescalings of these units: with which power of the incoming weights the outgoing ones must grow.

    The incoming parameters to compare are listed with power 1.
    """
    own = {name: index for (name, _, index), reads in zip(symmetry.terms, reading, strict=True) if not reads}
    readers = {name for (name, _, _), reads in zip(symmetry.terms, reading, strict=True) if reads}
    powers: dict[str, float] = {}
    for finding in report.symmetries:
        terms = getattr(finding.symmetry, "terms", ()) if finding.kind == "rescaling" else ()
        writers = [
            (name, exponent)
            for name, exponent, index in terms
            if exponent > 0 and name in own and name not in readers and _overlap(index, own[name])
        ]
        if writers:
            unit = writers[0][1]
            powers |= {name: 1.0 for name, exponent in writers if exponent == unit}
            for name, exponent, _ in terms:
                if name in readers and exponent < 0:
                    powers[name] = powers.get(name, 0.0) - exponent / unit
    return powers


def _overlap(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one >= 0) & (other >= 0)).any())


def refusal(model: nn.Module, space: Space, report: AuditReport) -> str:
    """Why the units of a space are not even tried; empty if they are."""
    norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    if any(isinstance(owner_of(model, name), norms) for name in space.symmetry.names):
        return NORMALISED
    heads = [each.symmetry for each in report.symmetries + report.broken if each.kind == "heads"]
    for name, _, index in space.symmetry.terms:
        for family in heads:
            for other, _, whole in getattr(family, "terms", ()):
                if name == other and index.shape == whole.shape:
                    return INSIDE_A_HEAD
    return ""


def capped(spaces: Iterable[Space]) -> Plan:
    """At least one unit stays in every space."""
    plan = []
    for space in spaces:
        units = space.candidates
        plan.append((space, units[1:] if len(units) == space.symmetry.units else units))
    return plan


def legal(model: nn.Module, spaces: Sequence[Space]) -> Plan:
    """The units that may go together: of a grouped convolution whole groups, or equally many of every group."""
    wanted = [set(space.candidates) for space in spaces]
    layers = _grouped_layers(model, spaces)
    whole = {name: _whole_groups(name, sides, spaces, wanted) for name, sides in layers.items()}
    entire = {each for name, (ins, outs) in layers.items() for g in whole[name] for each in ins[g] + outs[g]}
    for place, space in enumerate(spaces):
        others = [unit for unit in wanted[place] if (place, unit) not in entire]
        if len(wanted[place]) == space.symmetry.units and others:
            wanted[place].discard(min(others))
    layers |= {name: (groups, groups) for name, groups in _recurrent_layers(model, spaces).items()}
    changed = True
    while changed:
        changed = False
        for name, sides in layers.items():
            for side in sides:
                going = [
                    [each for each in group if each[1] in wanted[each[0]]]
                    for number, group in enumerate(side)
                    if number not in whole.get(name, ())
                ]
                least = min(map(len, going), default=0)
                for place, unit in (each for group in going for each in group[least:]):
                    wanted[place].discard(unit)
                    changed = True
    return [(space, sorted(units)) for space, units in zip(spaces, wanted, strict=True) if units]


def _whole_groups(name: str, sides: Sides, spaces: Sequence[Space], wanted: list[set[int]]) -> set[int]:
    """Groups of a convolution that nothing reads; what only they read is wanted, too. One group stays."""
    whole = set()
    sizes = [max(map(len, side)) for side in sides]
    for number, (ins, outs) in enumerate(zip(*sides, strict=True)):
        if [len(ins), len(outs)] != sizes or not ins or any(unit not in wanted[place] for place, unit in outs):
            continue
        unread = [place for place, unit in ins if unit not in wanted[place]]
        if all({n for (n, _, _), reads in roles_of(spaces[place]) if reads} == {name} for place in unread):
            whole.add(number)
    if len(whole) == len(sides[0]):
        whole.discard(min(whole))
    for number in whole:
        for place, unit in sides[0][number]:
            wanted[place].add(unit)
    return whole


def _grouped_layers(model: nn.Module, spaces: Sequence[Space]) -> dict[str, Sides]:
    """Units that go into, and that come out of, each group of the convolutions with groups of several channels."""
    found: dict[str, Sides] = {}
    for place, space in enumerate(spaces):
        for name, _, index in space.symmetry.terms:
            layer: Any = owner_of(model, name)
            if not isinstance(layer, CONVOLUTIONS) or index.ndim < 3 or layer.groups == 1:
                continue
            if layer.in_channels == layer.groups == layer.out_channels:
                continue
            sides = found.setdefault(name, ([[] for _ in range(layer.groups)], [[] for _ in range(layer.groups)]))
            along_rows = index.shape[1] == 1
            side = sides[along_rows != isinstance(layer, TRANSPOSED)]
            rows = index.reshape(index.shape[:2]).expand(tensors_of(model)[name].shape[0], -1)
            for number, group in enumerate(rows.reshape(layer.groups, -1, rows.shape[1])):
                units = group[:, 0] if along_rows else group[0]
                side[number] += [(place, unit) for unit in units.tolist() if unit >= 0]
    return found


def shares_sizes(model: nn.Module, space: Space) -> bool:
    """Whether a module with groups, layers or directions holds one number for these units and others."""
    owners: list[Any] = [owner_of(model, name) for name in space.symmetry.names]
    return any(isinstance(each, nn.RNNBase) or getattr(each, "groups", 1) > 1 for each in owners)


def _recurrent_layers(model: nn.Module, spaces: Sequence[Space]) -> dict[str, Groups]:
    """Hidden units of every layer and direction of a recurrent module: it has one number for all of them."""
    found: dict[str, Groups] = {}
    for place, space in enumerate(spaces):
        for name in dict.fromkeys(space.symmetry.names):
            module: Any = owner_of(model, name)
            path, _, parameter = name.rpartition(".")
            if isinstance(module, nn.RNNBase) and parameter.startswith("weight_hh_") and not module.proj_size:
                units = [(place, unit) for unit in range(space.symmetry.units)]
                found.setdefault(path, []).append(units)
    for path, groups in found.items():
        module = model.get_submodule(path)
        parts = module.num_layers * (2 if module.bidirectional else 1)
        groups += [[] for _ in range(parts - len(groups))]
    return found


def bundles(model: nn.Module, plan: Plan) -> list[Plan]:
    """Spaces that share a grouped convolution or a recurrent layer belong together."""
    layers = _grouped_layers(model, [space for space, _ in plan])
    found: list[tuple[set[Any], Plan]] = []
    for space, units in plan:
        coupled: set[Any] = set(space.symmetry.names) & set(layers)
        coupled |= {
            owner for owner in (owner_of(model, name) for name in space.symmetry.names) if isinstance(owner, nn.RNNBase)
        }
        near = [bundle for bundle in found if bundle[0] & coupled]
        found = [bundle for bundle in found if not bundle[0] & coupled]
        keys = coupled.union(*(keys for keys, _ in near))
        found.append((keys, [pair for _, several in near for pair in several] + [(space, units)]))
    return [several for _, several in found]


def halves(plan: Plan) -> list[Plan]:
    """Half of the units of every space, and the others; half of the spaces where each has one unit."""
    if all(len(units) == 1 for _, units in plan):
        return [plan[: len(plan) // 2], plan[len(plan) // 2 :]]
    first = [(space, units[: (len(units) + 1) // 2]) for space, units in plan]
    second = [(space, units[(len(units) + 1) // 2 :]) for space, units in plan]
    return [first, [pair for pair in second if pair[1]]]


def joined(first: Plan, second: Plan) -> Plan:
    """The units of both."""
    units: dict[Space, list[int]] = defaultdict(list)
    for space, several in [*first, *second]:
        units[space] += several
    return [(space, sorted(several)) for space, several in units.items()]


def channels(model: nn.Module, space: Space) -> list[int]:
    """Where each unit is along the axis of the parameter that names its space."""
    index = next(
        (index for (name, _, index), reads in roles_of(space) if name == space.name and not reads),
        space.symmetry.terms[0][2],
    )
    places = occurrences(index, space.symmetry.units)
    first = torch.tensor([int(several[0]) if len(several) else unit for unit, several in enumerate(places)])
    if index.ndim > 1 and index.shape[0] > 1 and index.shape[1] > 1:  # a transposed convolution with groups
        groups = getattr(owner_of(model, space.name), "groups", 1)
        row, column = first // index.shape[1], first % index.shape[1]
        first = row * groups // index.shape[0] * index.shape[1] + column
    return first.tolist()
