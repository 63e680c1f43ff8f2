"""Terms of a tangent kernel and their products, layer by layer.

A term is the share of one layer, or of one parameter, in the kernel. Its features have one entry per sample. A linear
layer keeps inputs and output gradients, whose scalar products multiply; convolutions and layers along a sequence keep
the gradients of their weights or, where there are few positions, what the products of all pairs of positions need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from symlearn._kernel_recording import Use

Features = tuple[Tensor, ...]

# Elements of one block of products: what a core keeps close by.
_BLOCK = 2**18
# Multiply-adds in a matrix product that take the time of one elementwise operation.
_ELEMENTWISE = 30


@dataclass(frozen=True)
class Pass:
    """What the terms of a batch are made of.

    Attributes
    ----------
    uses : sequence of Use
        Layers of the forward pass.
    gradients : sequence of Tensor, shape (n, outputs, units, positions)
        Gradients of the outputs of these layers.
    jacobians : dict of Tensor, shape (n, outputs, size)
        Gradients of parameters outside of layers.
    """

    uses: Sequence[Use] = ()
    gradients: Sequence[Tensor] = ()
    jacobians: Mapping[str, Tensor] = field(default_factory=dict)


class Workspace:
    """Buffers for products, used over and over; ``per_output`` keeps the outputs of a sample apart."""

    def __init__(self, like: Tensor, per_output: bool) -> None:
        self.like, self.per_output = like, per_output
        self.buffers: dict[str, Tensor] = {}

    def product(self, name: str, one: Tensor, other: Tensor) -> Tensor:
        """Matrix of the scalar products of the rows; valid until the next of that name."""
        size = len(one) * len(other)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = self.like.new_empty(size)
        return torch.mm(one, other.mT, out=self.buffers[name][:size].view(len(one), len(other)))

    def rows(self, features: Tensor) -> Tensor:
        """Features (n, outputs, size) as a matrix with one row per sample, or per sample and output."""
        return features.flatten(0, 1) if self.per_output else features.flatten(1)


class Term:
    """Share of some parameters in the kernel.

    Attributes
    ----------
    shapes : tuple of tuple of int
        Of the features of one sample.
    output_axes : tuple of (int or None)
        Axis of each feature tensor that runs over outputs.
    """

    n_outputs: int
    shapes: tuple[tuple[int, ...], ...]
    output_axes: tuple[int | None, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters."""
        raise NotImplementedError

    def allocate(self, n_samples: int, like: Tensor) -> Features:
        """Room for the features of so many samples."""
        return tuple(like.new_empty(n_samples, *shape) for shape in self.shapes)

    def destinations(self, features: Features) -> dict[int, Tensor]:
        """Features that are the output gradients of a layer themselves, by index of the use."""
        return {}

    def fill(self, features: Features, batch: Pass) -> None:
        """Write the features of a batch."""
        raise NotImplementedError

    def compared(self, features: Features) -> Features:
        """What shows that one sample with one output has the same gradients in two batches."""
        return features

    def add(self, block: Tensor, one: Features, other: Features, workspace: Workspace) -> None:
        """Add the products of two sets of features to a block of the kernel, a matrix."""
        raise NotImplementedError


@dataclass(frozen=True)
class OuterProducts(Term):
    r"""A linear layer that each sample passes once: :math:`(a\cdot a'+1)\,(g\cdot g')`, the 1 for its bias."""

    use: int
    weight: str
    bias: str
    n_in: int
    n_out: int
    n_outputs: int
    output_axes = (None, 1)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.weight, self.bias) if self.bias else (self.weight,)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:  # type: ignore[override]
        return (self.n_in + bool(self.bias),), (self.n_outputs, self.n_out)

    def destinations(self, features: Features) -> dict[int, Tensor]:
        return {self.use: features[1].unsqueeze(-1)}

    def fill(self, features: Features, batch: Pass) -> None:
        features[0][:, : self.n_in] = batch.uses[self.use].given
        features[0][:, self.n_in :] = 1

    def add(self, block: Tensor, one: Features, other: Features, workspace: Workspace) -> None:
        inputs = workspace.product("inputs", one[0], other[0])
        gradients = workspace.product("gradients", workspace.rows(one[1]), workspace.rows(other[1]))
        if workspace.per_output:
            shape = len(one[0]), self.n_outputs, len(other[0]), self.n_outputs
            block, inputs, gradients = block.view(shape), inputs[:, None, :, None], gradients.view(shape)
        block.addcmul_(inputs, gradients)


@dataclass(frozen=True)
class PositionPairs(Term):
    r"""A layer with few positions :math:`p`: :math:`\sum_{pq}(a_p\cdot a'_q)\,(g_p\cdot g'_q)`."""

    use: int
    weight: str
    n_in: int
    n_out: int
    n_positions: int
    n_outputs: int
    output_axes = (None, 2)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.weight,)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:  # type: ignore[override]
        return (self.n_positions, self.n_in), (self.n_positions, self.n_outputs, self.n_out)

    def fill(self, features: Features, batch: Pass) -> None:
        features[0].copy_(batch.uses[self.use].patches()[:, 0])
        features[1].copy_(batch.gradients[self.use].permute(0, 3, 1, 2))

    def compared(self, features: Features) -> Features:
        # Where positions are equal, a maximum may pass the gradient to either.
        return (features[1][0, :, 0].mT @ features[0][0],)

    def add(self, block: Tensor, one: Features, other: Features, workspace: Workspace) -> None:
        rows = self.n_outputs if workspace.per_output else 1
        step = max(1, _BLOCK // (len(one[0]) * (self.n_positions * rows) ** 2))
        for start in range(0, len(other[0]), step):
            piece = slice(start, start + step)
            inputs = workspace.product("inputs", one[0].flatten(0, 1), other[0][piece].flatten(0, 1))
            # (n, positions) rows, or (n, positions, outputs)
            left, right = (each.flatten(0, 2 if rows > 1 else 1).flatten(1) for each in (one[1], other[1][piece]))
            gradients = workspace.product("gradients", left, right)
            shape = len(one[0]), self.n_positions, rows, -1, self.n_positions, rows
            products = gradients.view(shape).mul_(inputs.view(shape[0], shape[1], 1, -1, shape[4], 1))
            block[:, start * rows : (start + step) * rows] += products.sum((1, 4)).flatten(2).flatten(0, 1)


@dataclass(frozen=True)
class Gradients(Term):
    """Gradients of one parameter, (outputs, size) per sample; here those which no layer explains."""

    name: str
    uses: tuple[int, ...]
    size: int
    n_outputs: int
    output_axes = (1,)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:  # type: ignore[override]
        return ((self.n_outputs, self.size),)

    def fill(self, features: Features, batch: Pass) -> None:
        features[0].copy_(batch.jacobians[self.name])

    def add(self, block: Tensor, one: Features, other: Features, workspace: Workspace) -> None:
        block.addmm_(workspace.rows(one[0]), workspace.rows(other[0]).mT)


@dataclass(frozen=True)
class BiasGradients(Gradients):
    """Of biases: output gradients, summed over positions."""

    def fill(self, features: Features, batch: Pass) -> None:
        torch.sum(batch.gradients[self.uses[0]], -1, out=features[0])
        for use in self.uses[1:]:
            features[0].add_(batch.gradients[use].sum(-1))


@dataclass(frozen=True)
class ScaleGradients(Gradients):
    """Of the weights of normalisations: output gradients times normalised inputs, summed over positions."""

    def fill(self, features: Features, batch: Pass) -> None:
        features[0].zero_()
        for use in self.uses:
            given = batch.uses[use].by_unit(batch.uses[use].given)
            features[0].add_(torch.einsum("ncup,nup->ncu", batch.gradients[use], given.to(features[0].dtype)))


@dataclass(frozen=True)
class WeightGradients(Gradients):
    """Of the weights of convolutions and linear layers: output gradients times patches, summed over positions."""

    def fill(self, features: Features, batch: Pass) -> None:
        for index, use in enumerate(self.uses):
            patches = batch.uses[use].patches().to(features[0].dtype)
            gradients = batch.gradients[use]
            if patches.shape[1] == 1:
                matrix = features[0].view(len(patches), -1, patches.shape[-1])
                matrix.baddbmm_(gradients.flatten(1, 2), patches[:, 0], beta=min(index, 1))
            else:
                self._fill_groups(features[0], gradients, patches, add=index > 0)

    def _fill_groups(self, features: Tensor, gradients: Tensor, patches: Tensor, add: bool) -> None:
        n_samples, n_groups, n_positions, n_in = patches.shape
        # (n, groups, outputs, units of a group, positions)
        grouped = gradients.unflatten(2, (n_groups, -1)).movedim(2, 1)
        product = torch.bmm(grouped.reshape(n_samples * n_groups, -1, n_positions), patches.flatten(0, 1))
        target = features.view(n_samples, self.n_outputs, n_groups, -1, n_in).movedim(2, 1)
        product = product.view(target.shape)
        target.add_(product) if add else target.copy_(product)


def pairs_are_cheaper(
    n_in: int, n_out: int, n_positions: int, n_outputs: int, per_output: bool, n_samples: int, n_passes: int
) -> bool:
    """Whether products of all pairs of positions take less time than gradients of the weight and their products.

    ``n_passes`` is how often the gradients of a sample would have to be made.
    """
    rows = n_outputs if per_output else 1
    pairs = n_positions**2 * (n_in + rows * n_outputs * n_out + _ELEMENTWISE * rows**2)
    weights = n_outputs * n_out * n_in * (rows + 2 * n_passes * n_positions / n_samples)
    return pairs < weights


def add_products(
    block: Tensor, terms: Sequence[Term], one: Sequence[Features], other: Sequence[Features], workspace: Workspace
) -> None:
    """Add the products of all terms to a block of the kernel."""
    for term, left, right in zip(terms, one, other, strict=True):
        term.add(block, left, right, workspace)


def rectangle(
    matrix: Tensor, terms: Sequence[Term], one: Sequence[Features], other: Sequence[Features], workspace: Workspace
) -> None:
    """Fill a zero matrix with the products of two sets of samples."""
    rows = len(matrix) // len(one[0][0])
    step = max(1, _BLOCK // (matrix.shape[1] * rows))
    for start in range(0, len(one[0][0]), step):
        block = matrix[start * rows : (start + step) * rows]
        add_products(block, terms, _cut(one, slice(start, start + step)), other, workspace)


def triangle(matrix: Tensor, terms: Sequence[Term], features: Sequence[Features], workspace: Workspace) -> None:
    """Fill a zero square matrix with the products of all pairs of samples, each pair once, exactly symmetric."""
    n_samples = len(features[0][0])
    rows = len(matrix) // n_samples
    step = max(1, min(_BLOCK // (len(matrix) * rows), max(32, n_samples // 6)))
    for start in range(0, n_samples, step):
        piece = _cut(features, slice(start, start + step))
        rest = _cut(features, slice(start, None))
        low, high = start * rows, (start + step) * rows
        add_products(matrix[low:high, low:], terms, piece, rest, workspace)
        corner = matrix[low:high, low:high]
        corner.copy_(corner.triu() + corner.triu(1).mT)
        matrix[high:, low:high] = matrix[low:high, high:].mT


def _cut(features: Sequence[Features], piece: slice) -> list[Features]:
    return [tuple(tensor[piece] for tensor in each) for each in features]
