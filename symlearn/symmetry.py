"""Symmetries of a loss: group actions on named or flattened parameters, and their Noether charges.

A symmetry moves the parameters and leaves the loss of every sample alone. The continuous ones, with a symmetric
generator ``A``, have a charge ``theta^T A theta`` (no factor 1/2), which gradient flow conserves (chapter
:doc:`/chapters/law_of_balance`); reflections ``I - 2 O O^T`` confine training to a mirror (chapter
:doc:`/chapters/mirror_symmetry`). All functions return new objects and leave their arguments alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from symlearn._checks import check_bool, check_finite, check_int, check_str, invalid
from symlearn._group_actions import (
    as_blocks,
    check_amount,
    check_distinct,
    check_indices,
    check_names,
    check_sides,
    check_units,
    holds,
    latent_axes,
    multiplied,
    on_vector,
    relative_change,
    signed_squares,
    stretch,
    unit_axes,
)
from symlearn._mirror_columns import Dense, Flip, Swap, independent_rows
from symlearn._symmetry_bases import ContinuousSymmetry, Symmetry
from symlearn._unit_symmetry import UnitMirror, UnitPermutation, UnitSymmetry

__all__ = [
    "GL",
    "ContinuousSymmetry",
    "MirrorSymmetry",
    "Permutation",
    "Rescaling",
    "Rotation",
    "Scale",
    "Symmetry",
    "UnitMirror",
    "UnitPermutation",
    "UnitSymmetry",
]

for _public in (ContinuousSymmetry, Symmetry, UnitMirror, UnitPermutation, UnitSymmetry):
    _public.__module__ = __name__  # where users import them from


class Rescaling(ContinuousSymmetry):
    r"""Incoming weights times :math:`e^{\mu}`, outgoing weights times :math:`e^{-\mu}`, unit by unit.

    Exact for units with a positively homogeneous activation (ReLU, LeakyReLU, none), dense or convolutional.

    Parameters
    ----------
    incoming : str or sequence of str
        Tensors that write into the units, biases included. Their axis 0 counts the units.
    outgoing : str or sequence of str
        Tensors that read from the units. Their axis 1 counts the units; axis 0 if they are vectors. A bias of the
        next layer does not belong here.
    per_unit : bool
        True: one amount and one charge per unit, shape (units,). False: one of each for the two whole layers.

    Raises
    ------
    ValueError
        Without names, or with a name used twice. By the methods: a name that is not in ``params``, tensors which
        disagree on the number of units, or an ``amount`` of another shape, not finite or too large for the dtype.
    TypeError
        For names that are not strings, or ``params`` that is not a dict of tensors.

    Notes
    -----
    ``amount`` is a number or of shape (units,). The charge of unit i is
    :math:`\|w^{in}_i\|^2+b_i^2-\|w^{out}_i\|^2`. A tensor without axes counts as one unit. The unit axis is not visible
    in a square outgoing weight: test with `violation`.

    References
    ----------
    Ziyin, Li and Ueda, "Law of Balance and Stationary Distribution of Stochastic Gradient Descent", 2023; chapter
    :doc:`/chapters/law_of_balance`.

    Examples
    --------
    >>> symmetry = Rescaling(("0.weight", "0.bias"), "2.weight")
    >>> params = {"0.weight": torch.eye(2), "0.bias": torch.ones(2), "2.weight": torch.tensor([[1.0, 3.0]])}
    >>> symmetry.charge(params)
    tensor([ 1., -7.])
    >>> symmetry.act(params, [0.0, np.log(2)])["2.weight"]
    tensor([[1.0000, 1.5000]])
    """

    def __init__(self, incoming: str | Sequence[str], outgoing: str | Sequence[str], *, per_unit: bool = True) -> None:
        self.incoming, self.outgoing = check_sides(incoming, outgoing)
        self.per_unit = check_bool("per_unit", per_unit)
        self.names = self.incoming + self.outgoing

    def act(self, params: Mapping[str, Tensor], amount: Any) -> dict[str, Tensor]:
        r"""Parameters with incoming times :math:`e^{\mu}` and outgoing times :math:`e^{-\mu}`."""
        return stretch(params, self._signs(), self.per_unit, amount)

    def generator_product(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Incoming tensors and minus the outgoing ones."""
        unit_axes(params, self._signs())
        return {name: sign * params[name] for name, sign in self._signs().items()}

    def charge(self, params: Mapping[str, Tensor]) -> Tensor:
        """Squared incoming minus squared outgoing weights, shape (units,), or a scalar with ``per_unit=False``."""
        return signed_squares(params, self._signs(), self.per_unit)

    def _signs(self) -> dict[str, int]:
        return dict.fromkeys(self.incoming, 1) | dict.fromkeys(self.outgoing, -1)


class Scale(ContinuousSymmetry):
    r"""Tensors times :math:`e^{\mu}`: weights whose norm does not matter because a normalisation follows.

    Exact for weight normalisation; for torch's batch and layer norm up to their ``eps`` over the variance.

    Parameters
    ----------
    names : str or sequence of str
        Tensors that are scaled together (for batch norm with the layer's own bias). Their axis 0 counts the units.
    per_unit : bool
        True: one amount and one charge per unit (batch or weight norm). False: one of each for all entries.

    Raises
    ------
    ValueError, TypeError
        As `Rescaling`.

    Notes
    -----
    The generator has only positive eigenvalues. Gradient noise therefore makes the norm grow for ever without weight
    decay (chapter :doc:`/chapters/noise_equilibrium`).

    References
    ----------
    Ziyin, Wang, Li and Wu, "Parameter Symmetry and Noise Equilibrium of Stochastic Gradient Descent", 2024; chapter
    :doc:`/chapters/noise_equilibrium`.

    Examples
    --------
    >>> params = {"conv.weight": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}
    >>> Scale("conv.weight").charge(params), Scale("conv.weight", per_unit=True).charge(params)
    (tensor(26.), tensor([25.,  1.]))
    """

    _shows_names = True

    def __init__(self, names: str | Sequence[str], *, per_unit: bool = False) -> None:
        self.names = check_names("names", names)
        self.per_unit = check_bool("per_unit", per_unit)

    def act(self, params: Mapping[str, Tensor], amount: Any) -> dict[str, Tensor]:
        r"""Parameters with the named tensors times :math:`e^{\mu}`."""
        return stretch(params, self._signs(), self.per_unit, amount)

    def generator_product(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named tensors themselves."""
        unit_axes(params, self._signs())
        return {name: params[name].clone() for name in self.names}

    def charge(self, params: Mapping[str, Tensor]) -> Tensor:
        """Squared norm, a scalar, or of shape (units,) with ``per_unit=True``."""
        return signed_squares(params, self._signs(), self.per_unit)

    def _signs(self) -> dict[str, int]:
        return dict.fromkeys(self.names, 1)


class GL(ContinuousSymmetry):
    r"""A product of two matrices, :math:`UW\to(Ue^{-B})(e^{B}W)`, or :math:`Q^\top K\to(e^{-B^\top}Q)^\top(e^{B}K)`.

    Two linear layers in a row, low-rank adapters, and in attention, head by head, queries with keys
    (``transpose_left=True``) and values with the output projection.

    Parameters
    ----------
    left : str
        :math:`U`, whose axis 1 (axis 0 of a vector) is the inner dimension; with ``transpose_left`` :math:`Q`, axis 0.
    right : str
        :math:`W` or :math:`K`, whose axis 0 is the inner dimension. Further axes (convolutions) may follow.
    left_bias : str, optional
        Bias that moves with ``left``, shape (inner,). Needs ``transpose_left=True``.
    right_bias : str, optional
        Bias that moves with ``right``, shape (inner,). A bias left out breaks the symmetry.
    transpose_left : bool
        Whether ``left`` enters transposed, as the query weight of attention does.
    heads : int
        Cuts the inner dimension into this many consecutive blocks of length d, each with a matrix of its own.

    Raises
    ------
    ValueError, TypeError
        As `Rescaling`; also for ``left_bias`` without ``transpose_left``, ``heads < 1``, and inner dimensions that
        disagree or cannot be cut into heads.

    Notes
    -----
    ``amount`` is a number :math:`\mu` (:math:`B=\mu I`), or of shape (d, d), the same for all heads, or
    (heads, d, d). Only the symmetric part of :math:`B` has a charge.

    References
    ----------
    Ziyin, Wang, Li and Wu, "Parameter Symmetry and Noise Equilibrium of Stochastic Gradient Descent", 2024; chapter
    :doc:`/chapters/noise_equilibrium`.

    Examples
    --------
    >>> params = {"U": torch.tensor([[1.0, 2.0]]), "W": torch.tensor([[3.0], [1.0]])}
    >>> GL("U", "W").charge(params)
    tensor([[ 8.,  1.],
            [ 1., -3.]])
    >>> moved = GL("U", "W").act(params, [[0.0, 0.5], [0.0, 0.0]])
    >>> moved["U"], moved["W"].T
    (tensor([[1.0000, 1.5000]]), tensor([[3.5000, 1.0000]]))
    >>> moved["U"] @ moved["W"]
    tensor([[5.]])
    """

    def __init__(
        self,
        left: str,
        right: str,
        *,
        left_bias: str | None = None,
        right_bias: str | None = None,
        transpose_left: bool = False,
        heads: int = 1,
    ) -> None:
        self.left, self.right = check_str("left", left), check_str("right", right)
        self.left_bias = None if left_bias is None else check_str("left_bias", left_bias)
        self.right_bias = None if right_bias is None else check_str("right_bias", right_bias)
        self.transpose_left = check_bool("transpose_left", transpose_left)
        self.heads = check_int("heads", heads, 1)
        if left_bias is not None and not transpose_left:
            raise invalid("left_bias", "None unless transpose_left=True", repr(left_bias))
        named = {"left": left, "right": right, "left_bias": left_bias, "right_bias": right_bias}
        self.names = check_distinct({key: (name,) for key, name in named.items() if name is not None})

    def act(self, params: Mapping[str, Tensor], amount: Any) -> dict[str, Tensor]:
        r"""Parameters with the right side times :math:`e^{B}` and the left one times :math:`e^{-B}`."""
        matrix = self._matrix(params, "amount", amount)
        exponential = torch.matrix_exp if matrix.ndim else torch.exp
        return dict(params) | self._multiplied(params, exponential(matrix), exponential(-matrix))

    def generator_product(self, params: Mapping[str, Tensor], direction: Any = None) -> dict[str, Tensor]:
        r"""Derivative of ``act(params, t * direction)`` at t = 0.

        Parameters
        ----------
        params : dict of Tensor
            Must have `names`.
        direction : optional
            :math:`B`, a number or of shape (d, d) or (heads, d, d); the identity by default.

        Returns
        -------
        dict of Tensor
            :math:`BW` for the right side, :math:`-UB` (or :math:`-B^\top Q`) for the left.
        """
        matrix = self._matrix(params, "direction", 1.0 if direction is None else direction)
        return self._multiplied(params, matrix, -matrix)

    def charge(self, params: Mapping[str, Tensor]) -> Tensor:
        r""":math:`WW^\top-U^\top U` or :math:`KK^\top-QQ^\top` with the biases, shape (d, d), or (heads, d, d).

        Its product with a symmetric :math:`B` is the charge :math:`\theta^\top A_B\theta` of that direction.
        """
        signs, axes = self._signs(), self._axes(params)
        blocks = {name: as_blocks(params[name], axis, self.heads) for name, axis in axes.items()}
        total = functools.reduce(torch.add, (signs[name] * (block @ block.mT) for name, block in blocks.items()))
        return total[0] if self.heads == 1 else total

    def _multiplied(self, params: Mapping[str, Tensor], on_right: Tensor, on_left: Tensor) -> dict[str, Tensor]:
        on_left = on_left.mT if on_left.ndim else on_left
        return {
            name: multiplied(params[name], axis, on_right if self._signs()[name] > 0 else on_left, self.heads)
            for name, axis in self._axes(params).items()
        }

    def _matrix(self, params: Mapping[str, Tensor], argument: str, value: Any) -> Tensor:
        axes = self._axes(params)
        size = params[self.right].shape[axes[self.right]] // self.heads
        touched = [params[name] for name in self.names]
        return check_amount(argument, value, touched, [(), (size, size), (self.heads, size, size)])

    def _axes(self, params: Mapping[str, Tensor]) -> dict[str, int]:
        axes = latent_axes(params, self.names, () if self.transpose_left else (self.left,))
        for name in (self.left_bias, self.right_bias):
            if name is not None and params[name].ndim != 1:
                raise invalid(f"params[{name!r}]", "a vector", params[name])
        if params[self.right].shape[0] % self.heads:
            raise invalid("heads", f"a divisor of the inner dimension {params[self.right].shape[0]}", self.heads)
        return axes

    def _signs(self) -> dict[str, int]:
        return {name: 1 if name in (self.right, self.right_bias) else -1 for name in self.names}


class Rotation(Symmetry):
    r"""Rotation of a latent space, right factor to :math:`e^{K}R`, left factor to :math:`Le^{-K}`, K antisymmetric.

    It has no charge: :math:`\theta^\top A\theta=0` for every antisymmetric generator.

    Parameters
    ----------
    right : str
        Tensor whose axis 0 is the latent dimension; with ``transpose_right`` axis 1, as in an embedding table.
    left : str, optional
        Tensor that reads from the latent space: axis 1, or axis 0 of a vector.
    transpose_right : bool
        Whether the rows of ``right`` are the latent vectors.

    Raises
    ------
    ValueError, TypeError
        As `Rescaling`; also for an ``amount`` that is not antisymmetric.

    Notes
    -----
    ``amount`` is an antisymmetric matrix of shape (d, d). A number stands for the matrix with this number above the
    diagonal and minus this number below it.

    Examples
    --------
    >>> params = {"embedding.weight": torch.tensor([[1.0, 0.0], [0.0, 2.0]]), "next.weight": torch.tensor([[3.0, 1.0]])}
    >>> symmetry = Rotation("embedding.weight", "next.weight", transpose_right=True)
    >>> moved = symmetry.act(params, -np.pi / 2)
    >>> moved["embedding.weight"].round() + 0.0, moved["next.weight"].round()
    (tensor([[ 0.,  1.],
            [-2.,  0.]]), tensor([[-1.,  3.]]))
    """

    def __init__(self, right: str, left: str | None = None, *, transpose_right: bool = False) -> None:
        self.right = check_str("right", right)
        self.left = None if left is None else check_str("left", left)
        self.transpose_right = check_bool("transpose_right", transpose_right)
        named = {"right": right, "left": left}
        self.names = check_distinct({key: (name,) for key, name in named.items() if name is not None})

    def act(self, params: Mapping[str, Tensor], amount: Any) -> dict[str, Tensor]:
        r"""Parameters with the latent space rotated by :math:`e^{K}`."""
        return dict(params) | self._multiplied(params, torch.matrix_exp(self._generator(params, amount)))

    def generator_product(self, params: Mapping[str, Tensor], amount: Any) -> dict[str, Tensor]:
        r"""Derivative of ``act(params, t * amount)`` at t = 0, for the touched names only."""
        return self._multiplied(params, self._generator(params, amount))

    def _multiplied(self, params: Mapping[str, Tensor], matrix: Tensor) -> dict[str, Tensor]:
        # L e^{-K} = (e^{K} L^T)^T and -L K = (K L^T)^T: both sides take the same matrix along their latent axis.
        return {name: multiplied(params[name], axis, matrix) for name, axis in self._axes(params).items()}

    def _generator(self, params: Mapping[str, Tensor], amount: Any) -> Tensor:
        axes = self._axes(params)
        size = params[self.right].shape[axes[self.right]]
        matrix = check_amount("amount", amount, [params[name] for name in self.names], [(), (size, size)])
        if matrix.ndim == 0:
            ones = matrix.new_ones(size, size)
            return matrix * (ones.triu(1) - ones.tril(-1))
        asymmetry = (matrix + matrix.mT).abs().amax()
        if not holds(asymmetry <= 1e-6 * matrix.abs().amax()):
            raise invalid("amount", "antisymmetric", f"a symmetric part of {float(asymmetry) / 2:.3g}")
        return matrix

    def _axes(self, params: Mapping[str, Tensor]) -> dict[str, int]:
        return latent_axes(params, self.names, (self.left, self.right if self.transpose_right else None))


class Permutation(Symmetry):
    """Exchange of units, channels or heads, wherever they appear.

    Exact for any network in which all units of the layer have the same activation. It has no charge.

    Parameters
    ----------
    incoming : str or sequence of str
        Tensors whose axis 0 counts the units: weights and biases that write into them, and their normalisation.
    outgoing : str or sequence of str
        Tensors that read from the units: axis 1, or axis 0 of a vector.

    Raises
    ------
    ValueError, TypeError
        As `Rescaling`; also for an ``amount`` that is not a permutation of the units.

    Notes
    -----
    ``amount`` is a permutation of ``range(units)``; unit i of the result is unit ``amount[i]`` of ``params``.
    `violation` shifts by one unit by default.

    Examples
    --------
    >>> params = {"0.weight": torch.tensor([[1.0], [2.0], [3.0]]), "2.weight": torch.tensor([[4.0, 5.0, 6.0]])}
    >>> symmetry = Permutation("0.weight", "2.weight")
    >>> symmetry.act(params, [0, 2, 1])["2.weight"]
    tensor([[4., 6., 5.]])
    >>> symmetry.distance(params, [0, 2, 1])
    tensor(1.)
    """

    def __init__(self, incoming: str | Sequence[str], outgoing: str | Sequence[str]) -> None:
        self.incoming, self.outgoing = check_sides(incoming, outgoing)
        self.names = self.incoming + self.outgoing

    def act(self, params: Mapping[str, Tensor], amount: Any = None) -> dict[str, Tensor]:
        """Parameters with the units in the order ``amount``; shifted by one unit if it is None."""
        order = self._order(params, amount)
        moved = dict(params)
        for name, axis in unit_axes(params, self._signs()).items():
            if params[name].ndim:
                moved[name] = params[name].index_select(axis, order)
        return moved

    def violation(self, loss: Callable[[Any], Any], params: Mapping[str, Tensor], amount: Any = None) -> float:
        """As `Symmetry.violation`; by default for the shift by one unit."""
        return super().violation(loss, params, amount)

    def distance(self, params: Mapping[str, Tensor], amount: Any = None) -> Tensor:
        """Half the Euclidean distance between the parameters and their permutation, a scalar.

        For an exchange of two units it is the distance from the mirror, as in `MirrorSymmetry.distance`.
        """
        moved = self.act(params, amount)
        return torch.cat([(params[name] - moved[name]).reshape(-1) for name in self.names]).norm() / 2

    def _signs(self) -> dict[str, int]:
        return dict.fromkeys(self.incoming, 1) | dict.fromkeys(self.outgoing, -1)

    def _order(self, params: Mapping[str, Tensor], amount: Any) -> Tensor:
        n_units = check_units(params, self._signs())
        device = params[self.names[0]].device
        if amount is None:
            return torch.arange(n_units, device=device).roll(1)
        order = check_indices("amount", amount, n_units)
        if order.size != n_units:
            raise invalid("amount", f"a permutation of {n_units} units", f"length {order.size}")
        return torch.from_numpy(order).to(device)


@dataclass(frozen=True, eq=False, repr=False)
class MirrorSymmetry:
    r"""Reflection :math:`M=I-2OO^\top` of the flattened parameter vector.

    Neither :math:`M` nor :math:`OO^\top` is ever formed. `swap` and `flip` keep only lists of indices: they cost O(k)
    beyond a copy of the vector. ``theta`` in the methods is an array of shape (..., n), which gives float64 arrays; a
    tensor of shape (..., n), which gives tensors of its dtype and device; or a dict of tensors with n entries in total,
    flattened in its own order. Not-a-number passes through a tensor, and is refused in an array.

    Parameters
    ----------
    O : array_like, shape (n, k) or (n,)
        Orthonormal columns: the directions that are reflected. Kept as a read-only float64 copy; `swap` and `flip`
        build it when somebody asks for it.

    Raises
    ------
    ValueError
        If ``O`` is not one- or two-dimensional, not finite, without columns, with more columns than rows, or
        :math:`\max|O^\top O-I|>10^{-8}`. By the methods: if ``theta`` has another last dimension than n.

    References
    ----------
    Ziyin, "Symmetry Induces Structure and Constraint of Learning", ICML 2024; chapter
    :doc:`/chapters/mirror_symmetry`.

    Examples
    --------
    The mirror that exchanges the first two of three parameters:

    >>> mirror = MirrorSymmetry.swap(3, [0], [1])
    >>> mirror.reflect([1.0, 3.0, 5.0]), mirror.project([1.0, 3.0, 5.0])
    (array([3., 1., 5.]), array([2., 2., 5.]))
    >>> float(mirror.distance([1.0, 3.0, 5.0]).round(6)), mirror.O.shape
    (1.414214, (3, 1))
    """

    O: np.ndarray
    n: int = field(init=False)
    k: int = field(init=False)
    _columns: Dense | Swap | Flip = field(init=False)

    def __post_init__(self) -> None:
        O = check_finite("O", self.O)
        if O.ndim not in (1, 2):
            raise invalid("O", "one- or two-dimensional", f"shape {O.shape}")
        O = np.ascontiguousarray(O if O.ndim == 2 else O[:, None])
        if not 1 <= O.shape[1] <= O.shape[0]:
            raise invalid("O", "of at least one column and no more columns than rows", O)
        error = float(np.abs(O.T @ O - np.eye(O.shape[1])).max())
        if not error <= 1e-8:
            raise invalid("O", "orthonormal in its columns", f"max|O^T O - I| = {error:.3g}")
        columns = Dense(torch.from_numpy(O))
        O.flags.writeable = False
        self._set(O=O, n=O.shape[0], k=O.shape[1], _columns=columns)

    @classmethod
    def from_constraint(cls, A: ArrayLike) -> MirrorSymmetry:
        r"""The mirror whose fixed set is :math:`\{A\theta=0\}`.

        Parameters
        ----------
        A : array_like, shape (m, n) or (n,)
            Linear constraints, one per row; they may depend on each other.

        Returns
        -------
        MirrorSymmetry
            Its ``O`` spans the rows: independent rows orthonormalised in their order (Gram-Schmidt), so that rows
            which are orthogonal already are only normalised.

        Raises
        ------
        ValueError
            If ``A`` is not one- or two-dimensional, not finite, or zero.
        """
        rows = check_finite("A", A)
        if rows.ndim not in (1, 2):
            raise invalid("A", "one- or two-dimensional", f"shape {rows.shape}")
        if not rows.any():
            raise invalid("A", "of rank >= 1", "rank 0")
        return cls(independent_rows(np.atleast_2d(rows)))

    @classmethod
    def swap(cls, n: int, first: ArrayLike, second: ArrayLike) -> MirrorSymmetry:
        """The mirror that exchanges coordinates ``first[a]`` and ``second[a]`` of n, as for two units of a layer.

        Column a of ``O`` is ``(e_first[a] - e_second[a]) / sqrt(2)``. All indices must differ.
        """
        n = check_int("n", n, 1)
        one, other = check_indices("first", first, n), check_indices("second", second, n)
        if one.size != other.size:
            raise invalid("second", f"as long as first ({one.size})", f"length {other.size}")
        common = np.intersect1d(one, other)
        if common.size:
            raise invalid("second", "disjoint from first", f"{common[0]} in both")
        return cls._from_indices(Swap(n, torch.from_numpy(one), torch.from_numpy(other)))

    @classmethod
    def flip(cls, n: int, indices: ArrayLike) -> MirrorSymmetry:
        """The mirror that changes the sign of these coordinates of n. Column a of ``O`` is ``e_indices[a]``."""
        n = check_int("n", n, 1)
        return cls._from_indices(Flip(n, torch.from_numpy(check_indices("indices", indices, n))))

    def reflect(self, theta: ArrayLike | Tensor | Mapping[str, Tensor]) -> Any:
        r""":math:`M\theta=\theta-2O(O^\top\theta)`, of the type and shape of ``theta``."""
        return on_vector("theta", theta, self.n, self._columns.reflected)

    def project(self, theta: ArrayLike | Tensor | Mapping[str, Tensor]) -> Any:
        r"""The nearest point of the mirror, :math:`\theta-O(O^\top\theta)`, of the type and shape of ``theta``."""
        return on_vector("theta", theta, self.n, self._columns.projected)

    def coordinates(self, theta: ArrayLike | Tensor | Mapping[str, Tensor]) -> Any:
        r"""Normal coordinates :math:`O^\top\theta`, shape (..., k); a tensor if ``theta`` is a tensor or a dict."""
        return on_vector("theta", theta, self.n, self._columns.coordinates, keep_dict=False)

    def embed(self, coordinates: ArrayLike | Tensor) -> Any:
        """The vector off the mirror with these normal coordinates, ``O @ coordinates``: shape (..., k) to (..., n)."""
        return on_vector("coordinates", coordinates, self.k, self._columns.embedded, keep_dict=False)

    def distance(self, theta: ArrayLike | Tensor | Mapping[str, Tensor]) -> Any:
        r"""Distance from the mirror, :math:`\|O^\top\theta\|=\|\theta-M\theta\|/2`, shape (...)."""
        return on_vector("theta", theta, self.n, self._columns.distance, keep_dict=False)

    def violation(self, loss: Callable[[Any], Any], params: ArrayLike | Tensor | Mapping[str, Tensor]) -> float:
        """Relative change of the loss under the reflection, defined and refused as in `Symmetry.violation`.

        Parameters
        ----------
        loss : callable
            ``loss(params)``, a scalar or one value per sample.
        params : array_like, shape (n,), Tensor, shape (n,), or dict of Tensor
            What ``loss`` takes, and where to test.

        Returns
        -------
        float
            Relative change of the loss. No graph is built.
        """
        if not isinstance(params, Mapping):
            params = params if isinstance(params, Tensor) else check_finite("params", params)
            if params.ndim != 1:
                raise invalid("params", "one-dimensional", f"shape {tuple(params.shape)}")
        return relative_change(loss, params, lambda: self.reflect(params))

    @classmethod
    def _from_indices(cls, columns: Swap | Flip) -> MirrorSymmetry:
        n, k = columns.shape
        return cls.__new__(cls)._set(n=n, k=k, _columns=columns)

    def _set(self, **values: Any) -> MirrorSymmetry:
        for name, value in values.items():
            object.__setattr__(self, name, value)
        return self

    def __getattr__(self, name: str) -> Any:
        # Only reached for what is not stored: O of a swap or flip, which a large network cannot afford to have built.
        columns = vars(self).get("_columns")
        if name != "O" or columns is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        O = columns.dense()
        O.flags.writeable = False
        return self._set(O=O).O

    def __repr__(self) -> str:
        return f"MirrorSymmetry(n={self.n}, k={self.k})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MirrorSymmetry):
            return NotImplemented
        mine, others = self._columns, other._columns
        if mine.shape != others.shape or (mine.first_rows() != others.first_rows()).any():
            return False
        if isinstance(mine, Swap) and isinstance(others, Swap):
            return torch.equal(mine.first, others.first) and torch.equal(mine.second, others.second)
        return (isinstance(mine, Flip) and isinstance(others, Flip)) or np.array_equal(self.O, other.O)

    def __hash__(self) -> int:
        return hash((self._columns.shape, self._columns.first_rows().tobytes()))
