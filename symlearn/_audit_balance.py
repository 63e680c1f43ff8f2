r"""The minimum of a sum of squares over the orbits of many commuting families at once.

Scalings multiply a square by :math:`e^{2a\mu}`, so that the sum is convex in the amounts; blocks of units that a matrix
may mix have their minimum at a geometric mean. Gradient noise moves with the opposite exponent. Derived in the chapter
``audit``, steps 8 and 9.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from symlearn._unit_symmetry import UnitSymmetry

RANK = 1e-10  # a block whose eigenvalues spread further has no balanced point, or none that can be reached
NEAR = 0.5  # amounts closer than this to the minimum are left to Newton's method
ROUNDING = 1e-8  # residuals below that may be as small as they can get
MOST_STEPS = 2000

Exponents = list[tuple[float, Tensor]]


class Energy:
    r"""A sum of weights times :math:`e^{2a\cdot\mu}`, one amount :math:`\mu` per unit of each of several symmetries.

    Entries that always move together are added up first, so that a matrix between two families of units is as large as
    they are, and one with a single family on it is a vector.
    """

    def __init__(self, symmetries: Sequence[UnitSymmetry]) -> None:
        self.symmetries = list(symmetries)
        self.sizes = [each.units for each in symmetries]
        self.n = sum(self.sizes)
        self._terms: dict[str, Exponents] = {}
        start = 0
        for each in symmetries:
            for name, exponent, index in each.terms:
                if name not in each.buffers:
                    place = torch.where(index < 0, self.n, index + start)
                    self._terms.setdefault(name, []).append((exponent, place))
            start += each.units
        self._pools: dict[tuple[str, int], _Pool] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors whose entries count."""
        return tuple(self._terms)

    def set(self, name: str, weights: Tensor, sign: int = 1) -> None:
        """Weights of the entries of a tensor, >= 0; they move like its squares, or inversely for sign -1."""
        self._pools[name, sign] = _pooled(weights, [(sign * a, index) for a, index in self._terms[name]], self.n)

    def value(self, amounts: Tensor) -> float:
        """The sum, without entries that never move."""
        return self._at(amounts).value

    def pushes(self, amounts: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of every unit's entries that grow and that fall with its amount, shape (units,)."""
        state = self._at(amounts)
        return state.up, state.down

    def movable(self) -> Tensor:
        """Units for which growing and falling entries hold each other; without both there is no minimum.

        Of units that nothing holds together, those of the smallest symmetry stay, and the others have something to
        lean on.
        """
        up, down = self.pushes(torch.zeros(self.n, dtype=torch.float64))
        free = (up > 0) & (down > 0) & up.isfinite() & down.isfinite()
        while True:
            adrift = free & ~(self._anchored(free, 1) & self._anchored(free, -1))
            counts = [int(part.sum()) for part in self.split(adrift)]
            if not any(counts):
                return free
            smallest = min((count, place) for place, count in enumerate(counts) if count)[1]
            start = sum(self.sizes[:smallest])
            free[start : start + self.sizes[smallest]] &= ~self.split(adrift)[smallest]

    def minimum(self, start: Tensor, free: Tensor, tol: float) -> tuple[Tensor, int]:
        """Amounts at the minimum over the free units, and steps taken; charges relative to their parts below ``tol``.

        Far away every unit takes the closed form for itself, shortened by the number of units that an entry belongs
        to: the inequality of the means then makes the sum fall. After that it is Newton's method, shortened by the
        change r of the exponents to log(1 + r) / r while full steps do not help.
        """
        overlap = max((sum(map(len, pool.axes)) for pool in self._pools.values()), default=1)
        state = self._at(start)
        for step in range(MOST_STEPS):
            residual = state.residual(free)
            if residual <= tol:
                return state.amounts, step
            closed = torch.where(free, (state.down / state.up).log() / (4 * overlap), 0.0)
            state_closed = self._at(state.amounts + closed)
            if overlap * float(closed.abs().max()) > NEAR:
                state = state_closed
                continue
            direction = self._newton(state, free)
            reach = max(2 * float(direction.abs().max()) * overlap, 1e-300)
            full = self._at(state.amounts + direction)
            short = self._at(state.amounts + math.log1p(reach) / reach * direction)
            if full.residual(free) < residual and full.value <= state.value * (1 + 1e-13):
                state = full
            else:
                state = min(state_closed, short, key=lambda each: each.value)
                if residual < ROUNDING and state.residual(free) >= residual:
                    return state.amounts, step
        return state.amounts, MOST_STEPS

    def split(self, values: Tensor) -> list[Tensor]:
        """Values of all units, symmetry by symmetry."""
        return list(values.split(self.sizes))

    def _at(self, amounts: Tensor) -> _State:
        padded = torch.cat([amounts, amounts.new_zeros(1)])
        up, down = (torch.zeros(self.n + 1, dtype=torch.float64) for _ in range(2))
        state = _State(amounts, 0.0, up, down)
        for pool in self._pools.values():
            factors = [(2 * log).exp() for log in pool.logs(padded)]
            marginals = pool.marginals(factors)
            state.factors.append(factors)
            state.marginals.append(marginals)
            state.value += float(marginals[0].sum())
            for axis, marginal in zip(pool.axes, marginals, strict=True):
                for exponent, index in axis:
                    (up if exponent > 0 else down).index_add_(0, index, abs(exponent) * marginal)
        state.up, state.down = up[:-1], down[:-1]
        return state

    def _newton(self, state: _State, free: Tensor) -> Tensor:
        """Newton's step by conjugate gradients, preconditioned with the diagonal."""

        def curvature(direction: Tensor) -> Tensor:
            padded = torch.cat([direction, direction.new_zeros(1)])
            result = torch.zeros(self.n + 1, dtype=torch.float64)
            for pool, factors, marginals in zip(self._pools.values(), state.factors, state.marginals, strict=True):
                for axis, part in zip(pool.axes, pool.tilted(factors, marginals, pool.logs(padded)), strict=True):
                    for exponent, index in axis:
                        result.index_add_(0, index, exponent * part)
            return torch.where(free, result[:-1], 0.0)

        scale = torch.where(free, state.up + state.down, 1.0)
        rest = torch.where(free, state.down - state.up, 0.0) / 2
        solution = torch.zeros_like(rest)
        scaled = rest / scale
        direction, size = scaled, float(rest @ scaled)
        goal = size * min(0.01, state.residual(free)) ** 2
        for _ in range(min(10 * self.n, 500)):
            product = curvature(direction)
            along = float(direction @ product)
            if not along > 0:
                break
            solution = solution + size / along * direction
            rest = rest - size / along * product
            scaled = rest / scale
            before, size = size, float(rest @ scaled)
            if size <= goal:
                break
            direction = scaled + size / before * direction
        return solution

    def _anchored(self, free: Tensor, sign: int) -> Tensor:
        """Units that can be reached from what does not move: through entries that grow with them, for sign 1."""
        reached = torch.cat([~free, torch.ones(1, dtype=torch.bool)])
        while True:
            before = reached.clone()
            for pool in self._pools.values():
                factors = []
                for axis, size in zip(pool.axes, pool.weights.shape, strict=True):
                    open_ = torch.ones(size, dtype=torch.bool)
                    for exponent, index in axis:
                        open_ &= reached[index] if sign * exponent < 0 else True
                    factors.append(open_.double())
                for axis, marginal in zip(pool.axes, pool.marginals(factors), strict=True):
                    for exponent, index in axis:
                        if sign * exponent > 0:
                            reached[index[marginal > 0]] = True
            if torch.equal(before, reached):
                return reached[:-1]


@dataclass
class _State:
    """The sum at some amounts, and the parts of it that belong to each unit."""

    amounts: Tensor
    value: float
    up: Tensor
    down: Tensor
    factors: list[list[Tensor]] = field(default_factory=list)
    marginals: list[list[Tensor]] = field(default_factory=list)

    def residual(self, free: Tensor) -> float:
        if not bool(free.any()):
            return 0.0
        up, down = self.up[free], self.down[free]
        return float(((up - down).abs() / (up + down)).max())


@dataclass
class _Pool:
    """Weights with one axis for each group of exponents that move independently; unit n stands for none."""

    weights: Tensor
    axes: list[Exponents]

    def logs(self, padded: Tensor) -> list[Tensor]:
        return [torch.stack([a * padded[index] for a, index in axis]).sum(0) for axis in self.axes]

    def marginals(self, factors: list[Tensor]) -> list[Tensor]:
        """Sum over all other axes, weighted with the factors of each axis."""
        if len(factors) == 1:
            return [self.weights * factors[0]]
        if len(factors) == 2:
            rows, columns = factors
            return [rows * (self.weights @ columns), columns * (self.weights.T @ rows)]
        return _sums(_spread(self.weights, factors))

    def tilted(self, factors: list[Tensor], marginals: list[Tensor], logs: list[Tensor]) -> list[Tensor]:
        """The same with every entry times the sum of its logs."""
        if len(factors) == 1:
            return [marginals[0] * logs[0]]
        if len(factors) == 2:
            rows, columns = (factor * log for factor, log in zip(factors, logs, strict=True))
            return [
                marginals[0] * logs[0] + factors[0] * (self.weights @ columns),
                marginals[1] * logs[1] + factors[1] * (self.weights.T @ rows),
            ]
        total = _spread(self.weights, factors)
        shape = [[-1 if axis == place else 1 for axis in range(total.ndim)] for place in range(total.ndim)]
        return _sums(total * sum(log.reshape(one) for log, one in zip(logs, shape, strict=True)))


def _spread(weights: Tensor, factors: list[Tensor]) -> Tensor:
    for place, factor in enumerate(factors):
        weights = weights * factor.reshape([-1 if axis == place else 1 for axis in range(weights.ndim)])
    return weights


def _sums(total: Tensor) -> list[Tensor]:
    return [total.sum([axis for axis in range(total.ndim) if axis != place]) for place in range(total.ndim)]


def _pooled(values: Tensor, terms: Exponents, n: int) -> _Pool:
    """Entries of a tensor added up wherever they belong to the same units in all terms."""
    groups = _axis_groups(terms)
    rest = [axis for axis in range(values.ndim) if not any(axis in group for group in groups)]
    order = [axis for group in groups for axis in group] + rest
    sizes = [math.prod(values.shape[axis] for axis in group) for group in groups]
    total = values.double().permute(order).reshape(*sizes, -1).sum(-1) if order else values.double()
    total = total if groups else total.reshape(1)
    axes: list[Exponents] = []
    for place, group in enumerate(groups or [[]]):
        mine = [(a, index) for a, index in terms if _varied(index) and _varied(index)[0] in group]
        if not place:
            mine += [(a, index) for a, index in terms if not _varied(index)]
        shape = [values.shape[axis] for axis in group]
        columns = [
            (index.permute(order)[(...,) + (0,) * len(rest)] if order else index)
            .reshape([index.shape[axis] for axis in group] or [1])
            .expand(shape or [1])
            .reshape(-1)
            for _, index in mine
        ]
        key = torch.zeros_like(columns[0])
        for column in columns:
            key = torch.unique(key * (n + 1) + column, return_inverse=True)[1]
        count = int(key.max()) + 1
        first = torch.full((count,), len(key)).scatter_reduce(0, key, torch.arange(len(key)), "amin")
        if count < len(key):
            pooled = total.new_zeros([count if axis == place else size for axis, size in enumerate(total.shape)])
            total = pooled.index_add(place, key, total)
        else:
            total = total.index_select(place, first)
        axes.append([(a, column[first]) for (a, _), column in zip(mine, columns, strict=True)])
    fixed = [torch.stack([index == n for _, index in axis]).all(0).double() for axis in axes]
    return _Pool(total - _spread(total, fixed), axes)


def _varied(index: Tensor) -> list[int]:
    return [axis for axis, size in enumerate(index.shape) if size > 1]


def _axis_groups(terms: Exponents) -> list[list[int]]:
    """Axes that an index varies along, together with the others that it varies along."""
    groups: list[set[int]] = []
    for _, index in terms:
        joined = set(_varied(index))
        if joined:
            apart = [group for group in groups if not group & joined]
            groups = [*apart, joined.union(*(group for group in groups if group & joined))]
    return [sorted(group) for group in sorted(groups, key=min)]


@dataclass
class Balance:
    """Amounts of each scaling and matrix symmetry, which units and blocks could be moved, and sweeps taken."""

    amounts: list[Tensor]
    movable: list[Tensor]
    sweeps: int


def balance(tensors: Mapping[str, Tensor], symmetries: Sequence[UnitSymmetry], tol: float, most: int) -> Balance:
    """Amounts at the least sum of squares, all symmetries together; charges relative to their parts below ``tol``.

    Amounts of blocks are symmetric matrices: the rotation that is left free is taken to be none.
    """
    scalings = [each for each in symmetries if each.blocks is None]
    mixings = [_Mixing(each) for each in symmetries if each.blocks is not None]
    energy = Energy(scalings)
    mixed = {name: tensors[name].double() for each in mixings for name in each.names}
    for name in energy.names:
        energy.set(name, tensors[name].double().square())
    movable = energy.movable()
    amounts = torch.zeros(energy.n, dtype=torch.float64)
    shared = [name for name in energy.names if name in mixed]
    sweep, previous = 0, math.inf
    for sweep in range(most):
        amounts, steps = energy.minimum(amounts, movable, tol)
        current = _scaled(mixed, scalings, energy.split(amounts), shared)
        if not mixings:
            sweep = steps
            break
        residual = 0.0
        for mixing in mixings:
            residual = max(residual, mixing.step(current, tol))
        if residual <= tol or previous <= residual < ROUNDING:
            break
        previous = residual
        mixed = _scaled(current, scalings, energy.split(-amounts), shared)
        for name in shared:
            energy.set(name, mixed[name].square())
    parts, flags = iter(energy.split(amounts)), iter(energy.split(movable))
    matrices = iter(mixings)
    found = Balance([], [], sweep)
    for each in symmetries:
        if each.blocks is None:
            found.amounts.append(next(parts))
            found.movable.append(next(flags))
        else:
            mixing = next(matrices)
            found.amounts.append(mixing.amount())
            found.movable.append(mixing.movable)
    return found


def _scaled(
    tensors: Mapping[str, Tensor], scalings: Sequence[UnitSymmetry], amounts: Sequence[Tensor], names: Sequence[str]
) -> dict[str, Tensor]:
    """The named tensors moved by all scalings."""
    moved = dict(tensors)
    for symmetry, amount in zip(scalings, amounts, strict=True):
        padded = torch.cat([amount, amount.new_zeros(1)])
        for name, exponent, index in symmetry.terms:
            if name in names and name not in symmetry.buffers:
                moved[name] = moved[name] * (exponent * padded[index]).exp()
    return moved


class _Mixing:
    """A symmetry of blocks on its way to the balanced point: what has been done to each block so far."""

    def __init__(self, symmetry: UnitSymmetry) -> None:
        assert symmetry.blocks is not None
        n, d = symmetry.blocks.shape
        self.symmetry = symmetry
        self.total = torch.eye(d, dtype=torch.float64).expand(n, d, d)
        self.movable = torch.ones(n, dtype=torch.bool)
        counted = [term for term in symmetry.terms if term[0] not in symmetry.buffers]
        self.names = tuple(dict.fromkeys(name for name, _, _ in counted))
        blocks = symmetry.blocks.tolist()
        self._sides = [
            UnitSymmetry(
                [(name, 1, index) for name, a, index in counted if sign * a > 0], symmetry.units, blocks=blocks
            )
            for sign in (1, -1)
        ]
        self._overlap = any(
            bool(((one >= 0) & (other >= 0)).any())
            for place, (name, _, one) in enumerate(counted)
            for other_name, _, other in counted[:place]
            if name == other_name
        )
        self._fresh = True

    def step(self, tensors: dict[str, Tensor], tol: float) -> float:
        """Bring every block to its own minimum, in place; how far the worst one was from it."""
        incoming, outgoing = (side.charge(tensors) for side in self._sides)
        if self._fresh:
            for side in (incoming, outgoing):
                finite = side.isfinite().all(2).all(1)
                values = torch.linalg.eigvalsh(torch.where(finite[:, None, None], side, 0.0))
                self.movable &= finite & (values[:, 0] > RANK * values[:, -1])
            self._fresh = False
        which = self.movable
        if not bool(which.any()):
            return 0.0
        size = (incoming + outgoing).diagonal(dim1=1, dim2=2).amax(1)
        residual = float(((incoming - outgoing).abs().amax((1, 2)) / size)[which].max())
        if residual <= tol:
            return residual
        step = torch.zeros_like(incoming)
        step[which] = _to_balance(incoming[which], outgoing[which])
        norm = self._squared_norm(tensors)
        # A tensor that is moved from both sides needs a shorter step: along a straight one its norm is convex.
        share = 0.5 if self._overlap else 1.0
        moved = self.symmetry.act(tensors, share * step)
        while self._squared_norm(moved) > norm * (1 + 1e-13) and share > 1e-6:
            share /= 2
            moved = self.symmetry.act(tensors, share * step)
        tensors.update({name: moved[name] for name in self.names})
        self.total = torch.matrix_exp(share * step) @ self.total
        return residual

    def amount(self) -> Tensor:
        """The symmetric logarithm of the total, without its rotation."""
        _, singular, right = torch.linalg.svd(self.total)
        return (right.mT * singular.log()[:, None, :]) @ right

    def _squared_norm(self, tensors: Mapping[str, Tensor]) -> float:
        return sum(float(tensors[name].square().sum()) for name in self.names)


def _to_balance(incoming: Tensor, outgoing: Tensor) -> Tensor:
    """Half the logarithm of the P with P X P = Y: the geometric mean of the inverse of X and Y."""
    values, vectors = _positive(incoming)
    root = (vectors * values.sqrt()[:, None, :]) @ vectors.mT
    inverse = (vectors * values.rsqrt()[:, None, :]) @ vectors.mT
    values, vectors = _positive(root @ outgoing @ root)
    # P is this half times its transpose: the logarithm is best taken from singular values, which are not squared.
    half = inverse @ (vectors * values.sqrt().sqrt()[:, None, :])
    left, singular, _ = torch.linalg.svd(half)
    return (left * singular.log()[:, None, :]) @ left.mT


def _positive(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, not below rounding, and eigenvectors."""
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    return values.clamp_min(torch.finfo(values.dtype).eps * values[:, -1:]), vectors
