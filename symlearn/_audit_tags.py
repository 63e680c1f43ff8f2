"""The ledger of an audit: which units a model has, and how its operations relate them.

A tag is an integer tensor of as many axes as the numbers it belongs to, of size 1 wherever it does not vary: the unit
of every entry, 0 for one that must not change, -1 for a literal zero, which is compatible with everything. Operations
write equalities, sums and the places of parameters into the ledger; ``symlearn._audit_solve`` solves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST_PRODUCT = 4_000_000  # entries of one relation; beyond it the units are held fixed


@dataclass(frozen=True)
class Source:
    """A parameter or buffer, or a view of one.

    Attributes
    ----------
    name : str
    index : Tensor or None
        Which flat entry of the parameter each entry is; None for the parameter as it is.
    gain : str
        Parameter that weight normalisation multiplies each row by, "" without one.
    """

    name: str
    index: Tensor | None = None
    gain: str = ""


@dataclass
class Value:
    """A number of the graph with its tag (None: all fixed), and where it comes from."""

    x: Any
    tag: Tensor | None = None
    source: Source | None = None
    literal: bool = False  # depends on neither inputs nor parameters


@dataclass(frozen=True)
class Use:
    """One use of a parameter: its entries change by the sum of exponent times unit over the parts."""

    name: str
    node: str
    parts: tuple[tuple[str, int, Tensor], ...]  # role, exponent, tag with the axes of the parameter


@dataclass
class Site:
    """A place where a rule was relaxed, and the units which the strict rule would hold fixed there."""

    kind: str  # "function" or "eps"
    tags: list[Tensor] = field(default_factory=list)


class Ledger:
    """Everything that one pass over the graph has found; ``mode`` is scale, sign, permutation or heads."""

    def __init__(self, mode: str, shapes: dict[str, tuple[int, ...]]) -> None:
        self.mode = mode
        self.shapes = shapes
        self.count = 1
        self.edges: list[np.ndarray] = []
        self.rows: list[tuple[np.ndarray, tuple[float, ...]]] = []
        self.uses: list[Use] = []
        self.labels: list[tuple[tuple[str, str], np.ndarray]] = []
        self.bent: list[np.ndarray] = []
        self.sites: dict[str, Site] = {}
        self.barriers: dict[str, None] = {}
        self.tied = False  # whether the relations between the uses of one parameter are in already

    def new(self, *shape: int) -> Tensor:
        """Fresh units in a tensor of this shape."""
        size = math.prod(shape)
        self.count += size
        return torch.arange(self.count - size, self.count).reshape(shape)

    def equal(self, first: Tensor | None, second: Tensor | None) -> None:
        """Equal units, entry by entry; literal zeros equal everything."""
        first, second = (torch.zeros(()).long() if tag is None else tag for tag in (first, second))
        first, second = torch.broadcast_tensors(compact(first), compact(second))
        different = (first != second) & (first >= 0) & (second >= 0)
        if different.any():
            self.edges.append(distinct(torch.stack([first[different], second[different]], 1)))

    def fix(self, tag: Tensor | None) -> None:
        """Hold these units fixed."""
        if tag is not None:
            self.equal(tag, None)

    def row(self, terms: Sequence[tuple[Tensor | None, float]]) -> None:
        """Relations: sum of coefficient times unit is 0, entry by entry."""
        given = [(compact(tag), coefficient) for tag, coefficient in terms if tag is not None]
        shape = torch.broadcast_shapes(*(tag.shape for tag, _ in given))
        if math.prod(shape) > LARGEST_PRODUCT:
            for tag, _ in given:
                self.fix(tag)
            return
        columns = torch.stack([tag.expand(shape).reshape(-1) for tag, _ in given], 1)
        columns = columns[(columns >= 0).all(1)]
        if len(columns):
            self.rows.append((distinct(columns), tuple(coefficient for _, coefficient in given)))

    def combined(self, terms: Sequence[tuple[Tensor | None, float]]) -> Tensor | None:
        """The units which the sum of coefficient times unit is, entry by entry."""
        given = [
            (compact(tag), coefficient) for tag, coefficient in terms if tag is not None and bool((tag != 0).any())
        ]
        if not given:
            return None
        if len(given) == 1 and given[0][1] == 1:
            return given[0][0]
        shape = torch.broadcast_shapes(*(tag.shape for tag, _ in given))
        if math.prod(shape) > LARGEST_PRODUCT:
            for tag, _ in given:
                self.fix(tag)
            return None
        columns = torch.stack([tag.expand(shape).reshape(-1) for tag, _ in given], 1)
        kinds, place = columns.unique(dim=0, return_inverse=True)
        fresh = self.new(len(kinds))
        fresh[(kinds == -1).any(1)] = -1
        self.row([*((kinds[:, i], coefficient) for i, (_, coefficient) in enumerate(given)), (fresh, -1.0)])
        return compact(fresh[place].reshape(shape))

    def merged(self, tag: Tensor | None, axes: Sequence[int]) -> Tensor | None:
        """The tag with all units equal along these axes, which then have size 1."""
        if tag is None:
            return None
        tag = compact(tag)
        axes = [axis % tag.ndim for axis in axes if tag.shape[axis] > 1] if tag.ndim else []
        if axes:
            largest = tag.amax(axes, keepdim=True)
            self.equal(largest, tag)
            tag = largest
        return tag.clamp_min(0)

    def kept(self, tag: Tensor | None, axes: Sequence[int]) -> Tensor | None:
        """The tag with all units equal along all but these axes."""
        if tag is None:
            return None
        keep = {axis % tag.ndim for axis in axes}
        return self.merged(tag, [axis for axis in range(tag.ndim) if axis not in keep])

    def label(self, node: str, role: str, tag: Tensor | None, fibre: Tensor | None = None) -> None:
        """These units meet this operation in this role, and in this fibre of it."""
        if tag is None:
            return
        fibre = torch.zeros(()).long() if fibre is None else fibre
        units, fibres = torch.broadcast_tensors(compact(tag), fibre)
        pairs = torch.stack([units.reshape(-1), fibres.reshape(-1)], 1)
        pairs = pairs[pairs[:, 0] > 0]
        if len(pairs):
            self.labels.append(((node, role), distinct(pairs)))

    def bend(self, *tags: Tensor | None) -> None:
        """These units go through something that is not linear."""
        for tag in tags:
            if tag is not None:
                self.bent.append(distinct(compact(tag).reshape(-1, 1))[:, 0])

    def relax(self, node: str, kind: str, *tags: Tensor | None) -> None:
        """The strict rule would hold these units fixed here."""
        site = self.sites.setdefault(node, Site(kind))
        site.tags += [compact(tag) for tag in tags if tag is not None]

    def use(self, source: Source, node: str, *parts: tuple[str, int, Tensor | None]) -> None:
        """A use of a parameter, with tags in the axes of the view that was used."""
        placed = []
        for role, exponent, tag in parts:
            tag = torch.zeros(()).long() if tag is None else tag.clamp_min(0)
            whole = in_parameter(tag, source.index, self.shapes[source.name])
            if source.index is not None:  # a view may show one entry several times
                shown = whole.expand(self.shapes[source.name]).reshape(-1)[source.index]
                self.equal(tag.expand(source.index.shape), shown)
            placed.append((role, exponent, whole))
        self.uses.append(Use(source.name, node, tuple(placed)))

    def raw(self, value: Value, node: str) -> Tensor | None:
        """The tag of a value; a parameter in arithmetic gets one unit per entry."""
        if value.tag is None and value.source is not None:
            if value.x.numel() > LARGEST_PRODUCT:
                self.hold(value, node)
                return None
            value.tag = self.new(*value.x.shape)
            self.use(value.source, node, ("entry", 1, value.tag))
        return value.tag

    def hold(self, value: Value, node: str) -> None:
        """Fix a value, and the parameter if it is one."""
        self.fix(value.tag)
        if value.source is not None:
            self.use(value.source, node, ("entry", 1, None))


def compact(tag: Tensor) -> Tensor:
    """The same tag, of size 1 along every axis that it was only expanded along."""
    for axis in range(tag.ndim):
        if tag.shape[axis] > 1 and tag.stride(axis) == 0:
            tag = tag.narrow(axis, 0, 1)
    return tag


def squeezed(tag: Tensor) -> Tensor:
    """The same tag, of size 1 along every axis that it does not vary along."""
    tag = compact(tag)
    for axis in range(tag.ndim):
        if tag.shape[axis] > 1 and bool((tag == tag.narrow(axis, 0, 1)).all()):
            tag = tag.narrow(axis, 0, 1)
    return tag


def distinct(columns: Tensor) -> np.ndarray:
    """The different rows, as an array."""
    return (columns if len(columns) < 2 else columns.unique(dim=0)).numpy()


def in_parameter(tag: Tensor, index: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """A tag in the axes of a parameter, from one in the axes of a view of it; -1 where the view does not reach."""
    if index is None:
        return squeezed(tag.reshape((1,) * (len(shape) - tag.ndim) + tuple(tag.shape)))
    whole = torch.full((math.prod(shape),), -1)
    whole[index.reshape(-1)] = tag.expand(index.shape).reshape(-1)
    return squeezed(whole.reshape(shape))
