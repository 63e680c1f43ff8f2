"""Symmetries of units that may sit anywhere in the parameters: scalings with exponents, matrices, signs, exchanges.

The classes of ``symlearn.symmetry`` name an axis of each tensor; here an index tensor says for every entry which unit
it belongs to. Blocks of columns after a flattening, packed projections and exponents other than one need that
(chapter :doc:`/chapters/audit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from symlearn._checks import check_int, check_scalar, check_str, invalid, wrong_dtype, wrong_type
from symlearn._group_actions import check_amount, check_indices, check_tensors, finite_factor
from symlearn._symmetry_bases import ContinuousSymmetry, Symmetry

Term = tuple[str, float, Tensor]


class _OfUnits(Symmetry):
    """What the symmetries of units share: their terms, checked once, and their fit to given parameters."""

    def __init__(self, terms: Sequence[Term], units: int) -> None:
        self.units = check_int("units", units, 1)
        if isinstance(terms, str) or not isinstance(terms, Sequence):
            raise wrong_type("terms", "a sequence of (name, exponent, index)", terms)
        if not terms:
            raise invalid("terms", "at least one term", "none")
        self.terms = tuple(self._term(f"terms[{place}]", term) for place, term in enumerate(terms))
        self.names = tuple(dict.fromkeys(name for name, _, _ in self.terms))

    def _term(self, argument: str, term: Any) -> Term:
        if not isinstance(term, tuple) or len(term) != 3:
            raise wrong_type(argument, "a tuple (name, exponent, index)", term)
        name, exponent, index = term
        check_str(f"{argument}[0]", name)
        exponent = check_scalar(f"{argument}[1]", exponent)
        if exponent == 0:
            raise invalid(f"{argument}[1]", "different from 0", "0")
        if not isinstance(index, Tensor):
            raise wrong_type(f"{argument}[2]", "a tensor of integers", index)
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise wrong_dtype(f"{argument}[2]", "integers", index)
        if not index.numel() or int(index.min()) < -1 or int(index.max()) >= self.units:
            found = "no entries" if not index.numel() else f"{int(index.min())} to {int(index.max())}"
            raise invalid(f"{argument}[2]", f"between -1 and {self.units - 1}", found)
        return name, int(exponent) if exponent.is_integer() else exponent, index.long()

    def _check_fit(self, params: Mapping[str, Tensor], names: Sequence[str]) -> None:
        check_tensors(params, names)
        for name, _, index in self.terms:
            if name not in names:
                continue
            shape = tuple(params[name].shape)
            if len(shape) != index.ndim or any(
                size not in (1, given) for size, given in zip(index.shape, shape, strict=True)
            ):
                raise invalid(f"params[{name!r}]", f"of a shape that an index {tuple(index.shape)} fits", f"{shape}")

    def _signature(self) -> tuple[Any, ...]:
        return self.units, tuple((name, exponent, tuple(index.shape)) for name, exponent, index in self.terms)

    def __eq__(self, other: object) -> bool:
        return (
            type(self) is type(other)
            and isinstance(other, _OfUnits)
            and self._signature() == other._signature()
            and all(torch.equal(one[2], two[2]) for one, two in zip(self.terms, other.terms, strict=True))
        )

    def __hash__(self) -> int:
        return hash((type(self), self._signature()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.names))}; units={self.units})"


class UnitSymmetry(_OfUnits, ContinuousSymmetry):
    r"""Entries times :math:`e^{a\mu_u}`, with an exponent :math:`a` and a unit :math:`u` for every entry.

    `Rescaling` and `Scale` with arbitrary exponents and places: a squared ReLU has exponents 1 and -2, a linear layer
    after a flattening one block of columns per channel, batch norm running statistics that move with the weights. With
    ``blocks`` every block of units is mixed by a matrix, as `GL` does.

    Parameters
    ----------
    terms : sequence of (str, float, Tensor)
        Name, exponent other than 0, and an integer tensor of as many axes as the parameter, of its size or 1 along
        each, which says to which unit an entry belongs; -1 for none. A name may occur in several terms.
    units : int
        Number of units, >= 1.
    blocks : sequence of sequences of int, optional
        Units that a matrix may mix, blocks of one length d. Needs exponents 1 and -1.
    buffers : sequence of str
        Names that move but are not trained: they do not count in `charge`.

    Raises
    ------
    ValueError
        Without terms, for an exponent 0, an index outside the units, or blocks which overlap or differ in length; by
        the methods for parameters whose shape does not fit, and an ``amount`` of another shape, not finite or too
        large.
    TypeError
        For terms, names, or indices of another type.

    Notes
    -----
    ``amount`` is a number or of shape (units,). With blocks it is a number, or of shape (d, d) or (blocks, d, d): a
    term with exponent 1 is multiplied by :math:`e^{B}`, one with exponent -1 by :math:`e^{-B^\top}`.

    The charge of unit u is :math:`\sum_ea\,\theta_e^2` over its entries. With blocks it is
    :math:`\sum_+AA^\top-\sum_-AA^\top`, shape (blocks, d, d), where A has one row per unit.

    References
    ----------
    Ziyin, Wang, Li and Wu, "Parameter Symmetry and Noise Equilibrium of Stochastic Gradient Descent", 2024; chapter
    :doc:`/chapters/audit`.

    Examples
    --------
    One channel of two that become columns 0, 1 and 2, 3 of the next layer:

    >>> terms = [("conv", 1, torch.tensor([[0], [1]])), ("head", -1, torch.tensor([[0, 0, 1, 1]]))]
    >>> symmetry = UnitSymmetry(terms, units=2)
    >>> params = {"conv": torch.tensor([[2.0], [1.0]]), "head": torch.ones(1, 4)}
    >>> symmetry.charge(params)
    tensor([ 2., -1.])
    >>> symmetry.act(params, torch.tensor([2.0, 0.0]).log().nan_to_num(neginf=0.0))["head"]
    tensor([[0.5000, 0.5000, 1.0000, 1.0000]])
    """

    def __init__(
        self,
        terms: Sequence[Term],
        units: int,
        *,
        blocks: Sequence[Sequence[int]] | None = None,
        buffers: Sequence[str] = (),
    ) -> None:
        super().__init__(terms, units)
        self.buffers = tuple(check_str(f"buffers[{place}]", name) for place, name in enumerate(buffers))
        self.blocks = None if blocks is None else self._checked_blocks(blocks)

    def act(self, params: Mapping[str, Tensor], amount: Any) -> dict[str, Tensor]:
        r"""Parameters and buffers moved along the orbit."""
        self._check_fit(params, self.names)
        moved = dict(params)
        if self.blocks is not None:
            matrices = self._matrices(params, amount, "amount")
            forward = finite_factor(torch.matrix_exp(matrices), params[self.names[0]])
            backward = finite_factor(torch.matrix_exp(-matrices.mT), params[self.names[0]])
            for name, exponent, index in self.terms:
                moved[name] = self._mixed(moved[name], index, forward if exponent > 0 else backward)
            return moved
        exponents = self._amounts(params, amount)
        for name, total in self._exponents(params, exponents).items():
            moved[name] = params[name] * finite_factor(total.exp(), params[name])
        return moved

    def generator_product(self, params: Mapping[str, Tensor], direction: Any = None) -> dict[str, Tensor]:
        r"""Derivative of ``act(params, t * direction)`` at t = 0, for the touched names; all units by default."""
        self._check_fit(params, self.names)
        direction = 1.0 if direction is None else direction
        if self.blocks is None:
            totals = self._exponents(params, self._amounts(params, direction))
            return {name: params[name] * total.to(params[name].dtype) for name, total in totals.items()}
        matrices = self._matrices(params, direction, "direction").to(params[self.names[0]].dtype)
        product = {name: torch.zeros_like(params[name]) for name in self.names}
        identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
        for name, exponent, index in self.terms:
            step = matrices if exponent > 0 else -matrices.mT
            product[name] = product[name] + self._mixed(params[name], index, identity + step) - params[name]
        return product

    def charge(self, params: Mapping[str, Tensor]) -> Tensor:
        r"""Exponent times squares, shape (units,), or (blocks, d, d) with blocks; buffers do not count."""
        counted = [term for term in self.terms if term[0] not in self.buffers]
        self._check_fit(params, [name for name, _, _ in counted])
        if not counted:
            raise invalid("buffers", "not all of the names", repr(self.buffers))
        like = params[counted[0][0]]
        if self.blocks is not None:
            n, d = self.blocks.shape
            total = like.new_zeros(n, d, d)
            for name, exponent, index in counted:
                rows = params[name].movedim(*_varied_first(index)).flatten(0, _n_varied(index) - 1)
                for _, which, slots in self._slots(index):
                    picked = rows[slots].reshape(len(which), d, -1)
                    total = total.index_add(0, which.to(like.device), exponent * (picked @ picked.mT))
            return total
        return sums_by_unit(counted, self.units, {name: params[name].square() for name, _, _ in counted})

    def _signs(self) -> dict[str, int]:
        return {name: 1 if exponent > 0 else -1 for name, exponent, _ in self.terms}

    def _checked_blocks(self, blocks: Sequence[Sequence[int]]) -> Tensor:
        rows = [check_indices(f"blocks[{place}]", block, self.units).tolist() for place, block in enumerate(blocks)]
        if len({len(row) for row in rows}) != 1:
            raise invalid("blocks", "of one length", f"lengths {[len(row) for row in rows]}")
        flat = [unit for row in rows for unit in row]
        if len(set(flat)) != len(flat):
            raise invalid("blocks", "disjoint", "a unit in two of them")
        if any(exponent not in (1, -1) for _, exponent, _ in self.terms):
            raise invalid("terms", "of exponents 1 and -1 with blocks", f"{self.terms[0][1]}")
        return torch.tensor(rows)

    def _amounts(self, params: Mapping[str, Tensor], amount: Any) -> Tensor:
        touched = [params[name] for name in self.names]
        checked = check_amount("amount", amount, touched, [(), (self.units,)])
        return torch.cat([checked.expand(self.units), checked.new_zeros(1)])

    def _exponents(self, params: Mapping[str, Tensor], padded: Tensor) -> dict[str, Tensor]:
        totals: dict[str, Tensor] = {}
        for name, exponent, index in self.terms:
            part = exponent * padded[index.to(padded.device)]  # index -1 is the zero at the end
            totals[name] = totals[name] + part if name in totals else part
        return totals

    def _matrices(self, params: Mapping[str, Tensor], amount: Any, argument: str) -> Tensor:
        assert self.blocks is not None
        n, d = self.blocks.shape
        checked = check_amount(argument, amount, [params[name] for name in self.names], [(), (d, d), (n, d, d)])
        if not checked.ndim:
            checked = checked * torch.eye(d, dtype=checked.dtype, device=checked.device)
        return checked.expand(n, d, d)

    def _mixed(self, tensor: Tensor, index: Tensor, matrices: Tensor) -> Tensor:
        """Each block of units multiplied by its matrix from the left."""
        moved = tensor.movedim(*_varied_first(index))
        rows = moved.flatten(0, _n_varied(index) - 1)
        result = rows
        for _, which, slots in self._slots(index):
            picked = rows[slots]
            product = matrices[which] @ picked.reshape(len(which), slots.shape[1], -1)
            result = result.index_copy(0, slots.reshape(-1), product.reshape(-1, *rows.shape[1:]))
        return result.reshape(moved.shape).movedim(*reversed(_varied_first(index)))

    def _slots(self, index: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """How often each block's units occur in a term, which blocks these are, and where: (blocks, d, occurrences)."""
        assert self.blocks is not None
        places = occurrences(index, self.units)
        found: dict[int, list[tuple[int, Tensor]]] = {}
        for number, block in enumerate(self.blocks.tolist()):
            rows = [places[unit] for unit in block]
            if len({len(row) for row in rows}) != 1:
                raise invalid("terms", "with every unit of a block equally often", f"{[len(row) for row in rows]}")
            if len(rows[0]):
                found.setdefault(len(rows[0]), []).append((number, torch.stack(rows)))
        return [
            (count, torch.tensor([number for number, _ in several]), torch.stack([rows for _, rows in several]))
            for count, several in found.items()
        ]


class UnitMirror(_OfUnits):
    """Units that change sign, wherever they are: entries times -1 to the number of flipped units they belong to.

    Parameters
    ----------
    terms : sequence of (str, float, Tensor)
        As in `UnitSymmetry`; the exponents do not matter here.
    units : int
        Number of units.

    Notes
    -----
    ``amount`` is a mask of shape (units,): 1 or True flips a unit, 0 or False leaves it. A number stands for all units.

    Examples
    --------
    >>> terms = [("0.weight", 1, torch.tensor([[0], [1]])), ("2.weight", 1, torch.tensor([[0, 1]]))]
    >>> params = {"0.weight": torch.ones(2, 1), "2.weight": torch.ones(1, 2)}
    >>> UnitMirror(terms, units=2).act(params, [0, 1])["2.weight"]
    tensor([[ 1., -1.]])
    """

    def act(self, params: Mapping[str, Tensor], amount: Any = 1) -> dict[str, Tensor]:
        """Parameters with the masked units flipped."""
        self._check_fit(params, self.names)
        if isinstance(amount, Tensor) and amount.dtype == torch.bool:
            amount = amount.long()
        mask = check_amount("amount", amount, [params[name] for name in self.names], [(), (self.units,)])
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise invalid("amount", "a mask of zeros and ones", "other numbers")
        signs = torch.cat([1 - 2 * mask.expand(self.units), mask.new_ones(1)])
        moved = dict(params)
        for name, _, index in self.terms:
            moved[name] = moved[name] * signs[index.to(signs.device)].to(moved[name].dtype)
        return moved


class UnitPermutation(_OfUnits):
    """Exchange of units that may occupy several entries each, such as heads or channels after a flattening.

    Parameters
    ----------
    terms : sequence of (str, float, Tensor)
        As in `UnitSymmetry`; the exponents do not matter here. Entries of a unit are taken in their order.
    units : int
        Number of units.

    Notes
    -----
    ``amount`` is a permutation of ``range(units)``; unit i of the result is unit ``amount[i]`` of ``params``. None
    stands for the shift by one unit.

    Examples
    --------
    >>> heads = torch.tensor([[0], [0], [1], [1]])
    >>> UnitPermutation([("v", 1, heads)], units=2).act({"v": torch.arange(4.0)[:, None]})["v"].T
    tensor([[2., 3., 0., 1.]])
    """

    def act(self, params: Mapping[str, Tensor], amount: Any = None) -> dict[str, Tensor]:
        """Parameters with the units in the order ``amount``."""
        self._check_fit(params, self.names)
        if amount is None:
            order = torch.arange(self.units).roll(1)
        else:
            checked = check_indices("amount", amount, self.units)
            if checked.size != self.units:
                raise invalid("amount", f"a permutation of {self.units} units", f"length {checked.size}")
            order = torch.from_numpy(checked)
        moved = dict(params)
        for name, _, index in self.terms:
            tensor = moved[name].movedim(*_varied_first(index))
            rows = tensor.flatten(0, _n_varied(index) - 1)
            places = occurrences(index, self.units)
            source = torch.arange(len(rows))
            for unit, other in enumerate(order.tolist()):
                if len(places[unit]) != len(places[other]):
                    raise invalid(
                        "terms", "with every unit equally often", f"{len(places[unit])}, {len(places[other])}"
                    )
                source[places[unit]] = places[other]
            moved[name] = rows[source.to(rows.device)].reshape(tensor.shape).movedim(*reversed(_varied_first(index)))
        return moved


def sums_by_unit(terms: Sequence[Term], units: int, entries: Mapping[str, Tensor]) -> Tensor:
    """Exponent times the entries of each unit, summed over all terms, shape (units,)."""
    total = entries[terms[0][0]].new_zeros(units + 1)
    for name, exponent, index in terms:
        given = entries[name]
        shared = [axis for axis in range(index.ndim) if index.shape[axis] == 1 and given.shape[axis] > 1]
        given = given.sum(shared, keepdim=True) if shared else given
        place = torch.where(index < 0, units, index).to(given.device).reshape(-1)
        total = total.index_add(0, place, exponent * given.reshape(-1))
    return total[:-1]


def occurrences(index: Tensor, units: int) -> list[Tensor]:
    """Where each unit occurs in an index tensor, in order, once the axes along which it varies are flattened."""
    flat = index.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat.clamp_min(-1) + 1, minlength=units + 1)
    return list(order.split(counts.tolist()))[1 : units + 1]


def _varied_first(index: Tensor) -> tuple[list[int], list[int]]:
    """Axes along which an index varies, and where they go: to the front."""
    axes = [axis for axis in range(index.ndim) if index.shape[axis] > 1]
    axes = axes or ([0] if index.ndim else [])
    return axes, list(range(len(axes)))


def _n_varied(index: Tensor) -> int:
    return max(1, sum(size > 1 for size in index.shape))
