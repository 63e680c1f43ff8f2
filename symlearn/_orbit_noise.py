"""Gradient noise along the orbit of a symmetry: measured once, moved by algebra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from symlearn._checks import invalid
from symlearn.gradients import per_sample_gradients
from symlearn.symmetry import GL, ContinuousSymmetry, Rescaling


def entry_statistics(
    sample_loss: Callable[..., Tensor],
    params: Mapping[str, Tensor],
    names: Sequence[str],
    inputs: Tensor,
    targets: Tensor,
    chunk_size: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Variance of the gradient and square of every entry of the named parameters, float64."""
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    for deviations in _deviations(sample_loss, params, names, inputs, targets, chunk_size):
        for name, deviation in deviations.items():
            first[name] = first.get(name, 0) + deviation.sum(0)
            second[name] = second.get(name, 0) + deviation.square().sum(0)
    n = len(inputs)
    noise = {name: (second[name] / n - (first[name] / n).square()).clamp_min(0) for name in names}
    squares = {name: params[name].detach().double().square() for name in names}
    return _arrays(noise), _arrays(squares)


def matrix_statistics(
    sample_loss: Callable[..., Tensor],
    params: Mapping[str, Tensor],
    symmetry: GL,
    inputs: Tensor,
    targets: Tensor,
    chunk_size: int,
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Noise and Gram matrices of the left and the right factor, shape (heads, d, d) each."""

    def parts(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Left and right part of the charge, which is right minus left."""
        left_names = {symmetry.left, symmetry.left_bias}
        left = {name: t if name in left_names else torch.zeros_like(t) for name, t in tensors.items()}
        right = {name: torch.zeros_like(t) if name in left_names else t for name, t in tensors.items()}
        return -symmetry.charge(left), symmetry.charge(right)

    names, n = symmetry.names, len(inputs)
    first: dict[str, Tensor] = {}
    second: list[Tensor] = []
    for deviations in _deviations(sample_loss, params, names, inputs, targets, chunk_size):
        for name, deviation in deviations.items():
            first[name] = first.get(name, 0) + deviation.sum(0)
        sums = [part.sum(0) for part in torch.func.vmap(parts)(deviations)]
        second = [old + new for old, new in zip(second, sums, strict=True)] if second else sums
    mean = parts({name: tensor / n for name, tensor in first.items()})
    noise = [total / n - part for total, part in zip(second, mean, strict=True)]
    grams = parts({name: params[name].detach().double() for name in names})

    def blocks(matrix: Tensor) -> np.ndarray:
        stacked = matrix if symmetry.heads > 1 else matrix[None]
        return ((stacked + stacked.mT) / 2).cpu().numpy()

    return (blocks(noise[0]), blocks(noise[1])), (blocks(grams[0]), blocks(grams[1]))


@dataclass
class _Side:
    """One side of a symmetry in one tensor: sign of the generator, and the axis of the compact array with the units."""

    name: str
    sign: int
    axis: int | None


class Orbit:
    """Noise and squares summed over what no symmetry distinguishes, and the amounts moved so far.

    A sweep minimises total noise plus decay over the amounts of one symmetry after the other, each in closed form.
    """

    def __init__(
        self,
        symmetries: Sequence[ContinuousSymmetry],
        params: Mapping[str, Tensor],
        noise: Mapping[str, np.ndarray],
        squares: Mapping[str, np.ndarray],
        temperature: float,
        weight_decay: float,
    ) -> None:
        self._temperature, self._decay = temperature, weight_decay
        self._device = {id(each): params[each.names[0]].device for each in symmetries}
        self._symmetries = symmetries
        used: dict[str, set[int]] = {name: set() for name in noise}
        for each in symmetries:
            for name, _, axis in _units(each, noise):
                used[name] |= set() if axis is None else {axis}
        self._noise = {name: _marginal(array, used[name]) for name, array in noise.items()}
        self._squares = {name: _marginal(array, used[name]) for name, array in squares.items()}
        self._sides: list[list[_Side]] = []
        self._amounts: list[np.ndarray] = []
        for each in symmetries:
            sides = []
            for name, sign, axis in _units(each, noise):
                compact = None if axis is None else sorted(used[name]).index(axis)
                sides.append(_Side(name, sign, compact))
            self._sides.append(sides)
            self._amounts.append(np.zeros(self._totals(self._noise, sides, 1).shape))

    def sweep(self) -> float:
        """One pass over the symmetries; the largest change of an amount."""
        largest = 0.0
        for index, sides in enumerate(self._sides):
            up, down = self._pushes(sides)
            idle = (up == 0) & (down == 0)
            if ((up == 0) ^ (down == 0)).any():
                condition = "> 0 for a one-sided symmetry (no finite noise equilibrium)"
                raise invalid("weight_decay", condition, float(self._decay))
            change = np.zeros(up.shape)
            change[~idle] = 0.25 * (np.log(up[~idle]) - np.log(down[~idle]))
            self._amounts[index] = self._amounts[index] + change
            self._move(sides, change)
            largest = max(largest, float(np.abs(change).max()))
        return largest

    def amounts(self) -> list[Tensor]:
        """How far each symmetry has been moved, in the shape that ``act`` takes."""
        return [
            torch.from_numpy(np.array(amount)).to(self._device[id(each)])
            for each, amount in zip(self._symmetries, self._amounts, strict=True)
        ]

    def residual(self) -> float:
        """Largest drift of a charge over the total noise and decay of what is touched."""
        drift = max(float(np.abs(np.subtract(*self._pushes(sides))).max()) for sides in self._sides)
        noise = self._temperature * sum(float(array.sum()) for array in self._noise.values())
        decay = 2 * self._decay * sum(float(array.sum()) for array in self._squares.values())
        return drift / max(noise, decay) if max(noise, decay) else 0.0

    def _pushes(self, sides: list[_Side]) -> tuple[np.ndarray, np.ndarray]:
        """What drives the charges up and what drives them down."""
        up = self._temperature * self._totals(self._noise, sides, 1) + 2 * self._decay * self._totals(
            self._squares, sides, -1
        )
        down = self._temperature * self._totals(self._noise, sides, -1) + 2 * self._decay * self._totals(
            self._squares, sides, 1
        )
        return up, down

    @staticmethod
    def _totals(arrays: Mapping[str, np.ndarray], sides: list[_Side], sign: int) -> np.ndarray:
        """Sum per unit over the tensors of one sign; zeros of the right shape if there are none."""
        total: np.ndarray | None = None
        for side in sides:
            array = arrays[side.name]
            others = tuple(axis for axis in range(array.ndim) if axis != side.axis)
            part = array.sum(axis=others) * (side.sign == sign)
            total = part if total is None else total + part
        assert total is not None
        return np.asarray(total)

    def _move(self, sides: list[_Side], change: np.ndarray) -> None:
        for side in sides:
            array = self._noise[side.name]
            factor = np.exp(2 * side.sign * change)
            if side.axis is not None:
                factor = factor.reshape([-1 if axis == side.axis else 1 for axis in range(array.ndim)])
            self._noise[side.name] = array / factor
            self._squares[side.name] = self._squares[side.name] * factor


def _units(symmetry: ContinuousSymmetry, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, int, int | None]]:
    """Name, sign and unit axis of each tensor that a symmetry touches; no axis if all entries move together."""
    outgoing = symmetry.outgoing if isinstance(symmetry, Rescaling) else ()
    for name in symmetry.names:
        reads = name in outgoing
        axis = int(reads and arrays[name].ndim >= 2)
        yield name, -1 if reads else 1, axis if symmetry.per_unit else None  # type: ignore[attr-defined]


def _marginal(array: np.ndarray, axes: set[int]) -> np.ndarray:
    if array.ndim == 0 and axes:
        return array.reshape(1)
    return np.asarray(array.sum(axis=tuple(axis for axis in range(array.ndim) if axis not in axes)))


def _deviations(
    sample_loss: Callable[..., Tensor],
    params: Mapping[str, Tensor],
    names: Sequence[str],
    inputs: Tensor,
    targets: Tensor,
    chunk_size: int,
) -> Iterator[dict[str, Tensor]]:
    """Per-sample gradients less their mean over the first chunk, float64, chunk by chunk."""
    touched = {name: params[name].detach() for name in names}
    fixed = {name: tensor.detach() for name, tensor in params.items() if name not in touched}

    def loss(some: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return sample_loss({**fixed, **some}, x, y)

    shift: dict[str, Tensor] = {}
    for start in range(0, len(inputs), chunk_size):
        rows = slice(start, start + chunk_size)
        chunk = per_sample_gradients(loss, touched, inputs[rows], targets[rows], chunk_size=chunk_size)
        shift = shift or {name: gradient.double().mean(0) for name, gradient in chunk.items()}
        yield {name: chunk.pop(name).double() - shift[name] for name in names}


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
