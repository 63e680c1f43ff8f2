"""The fast SynFlow loop of :mod:`symlearn.pruning`: rounds of scoring and pruning in a chosen precision.

The scores are never stored: each layer keeps the block of its living rows and columns and the two factors of its
gradient; the scores are formed in tiles that fit the cache, compared with a bound estimated from a sample, and
forgotten. Modules that are not plain Linear or Conv2d layers run as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from symlearn._saliency import OutOfRange, flow, flow_replica, prunable_layers, weight_of

_SAMPLE = 2**14  # scores looked at to bound the threshold
_TILE = 2**16  # scores formed at a time
_LARGE_MAP = 200  # positions from which conv2d beats unfolding and a matrix product
_COMPACT_EVERY = 3  # rounds
_COMPACT_BELOW = 0.85  # size of the new block relative to the old
_DRIFT = 30  # binary orders of magnitude that a chain's flow may move before its layers are rescaled
_SAME = 1e-4  # relative difference of flows that are taken for equal: far above rounding


@contextmanager
def one_thread() -> Iterator[None]:
    """For many short operations: threads gain little on an idle machine, and on a busy one they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class SynFlowLoop:
    """SynFlow on a private copy of a model, one round per call of :meth:`keep`.

    Parameters
    ----------
    model : nn.Module
        The user's model; only read.
    alive : mapping from layer names to bool tensors
        Weights not pruned yet. Every one of them must be non-zero.
    inputs : Tensor, shape (1, ...)
        Ones, of the dtype and device to compute with.
    """

    def __init__(self, model: nn.Module, alive: Mapping[str, Tensor], inputs: Tensor) -> None:
        self._inputs = inputs
        self._build(model, alive, may_be_blocks=True)
        try:
            self._calibrate()
        except OutOfRange:
            # a weight that is used outside its layer's forward meets the placeholder there: not a number
            self._build(model, alive, may_be_blocks=False)
            self._calibrate()

    def keep(self, count: int | Mapping[str, int]) -> None:
        """Score the masked network, keep the ``count`` best weights: in all, or per layer."""
        self._round += 1
        if self._round % _COMPACT_EVERY == 0:
            for layer in self._layers.values():
                layer.compact()
        self._balance()
        self._flow()
        layers = list(self._layers.values())
        with one_thread():
            if isinstance(count, Mapping):
                for key, layer in self._layers.items():
                    self._remove([layer], layer.n_alive - count[key])
            else:
                self._remove(layers, sum(layer.n_alive for layer in layers) - count)

    def masks(self) -> dict[str, Tensor]:
        """The weights that are left, as bool tensors of the shape of the weights."""
        return {key: layer.mask() for key, layer in self._layers.items()}

    def _build(self, model: nn.Module, alive: Mapping[str, Tensor], *, may_be_blocks: bool) -> None:
        self._model = flow_replica(model, self._inputs.dtype)
        self._layers: dict[str, _Layer] = {}
        anchor = torch.zeros((), dtype=self._inputs.dtype, device=self._inputs.device, requires_grad=True)
        for key, modules in prunable_layers(self._model).items():
            weight = weight_of(modules[0]).detach().mul_(alive[key])
            if may_be_blocks and len(modules) == 1 and _fits_a_block(modules[0]):
                self._layers[key] = _BlockLayer(modules[0], weight, anchor)
            else:
                self._layers[key] = _WholeLayer(modules, weight)
            if self._layers[key].n_alive != int(alive[key].sum()) or not torch.isfinite(weight).all():
                raise OutOfRange
        self._round = 0
        self._chain = False
        self._homogeneous = False
        self._exponent = 0  # ones enter as 2**exponent, at both ends
        self._value = 0.0
        self._generator = torch.Generator().manual_seed(0)

    def _calibrate(self) -> None:
        """Find out what may be rescaled without a change of the ranking, and check that the flow is finite.

        In a chain of layers the flow has degree one in each weight tensor, so all totals are equal, and each tensor
        may be divided by a power of two. With skips, inputs and outputs may be rescaled together.
        """
        totals = self._totals()
        if totals is None or _all_same(totals):
            factors = [layer.rescale() for layer in self._layers.values()]
            totals = self._totals()
            self._chain = totals is not None and _all_same(totals)
            if self._chain:
                return
            for layer, factor in zip(self._layers.values(), factors, strict=True):
                layer.multiply(factor)
        limit = math.log2(torch.finfo(self._inputs.dtype).max)
        for exponent in (0, round(-limit / 2), round(limit / 2)):
            total = self._total(exponent)
            if 0 < total < math.inf:
                balanced = round((exponent - math.log2(total)) / 2)
                others = [self._total(other) * 2.0 ** (exponent - other) for other in (balanced, exponent - 10)]
                self._homogeneous = _all_same([total, *others])
                break
        if self._homogeneous:
            self._exponent, self._value = exponent, total
        elif not 2.0 ** (-limit / 2) < abs(self._total(0)) < 2.0 ** (limit / 2):
            raise OutOfRange

    def _total(self, exponent: int) -> float:
        """The flow of inputs of 2**exponent."""
        with torch.no_grad():
            return flow(self._model, self._inputs * 2.0**exponent).item()

    def _totals(self) -> list[float] | None:
        """Sum of the scores of each layer; None when there is no flow or it is out of range."""
        try:
            self._flow()
        except OutOfRange:
            return None
        return [layer.total() for layer in self._layers.values()] if self._value else None

    def _balance(self) -> None:
        """Bring the scale of the flow back to the middle of the range, as far as the ranking allows."""
        if self._homogeneous and self._value > 0:
            self._exponent = round((self._exponent - math.log2(self._value)) / 2)
        elif self._chain and not 2.0**-_DRIFT < self._value < 2.0**_DRIFT:
            for layer in self._layers.values():
                layer.rescale()

    def _flow(self) -> None:
        for layer in self._layers.values():
            layer.forget()
        scale = 2.0**self._exponent
        total = flow(self._model, self._inputs * scale)
        value = total.item()
        if not math.isfinite(value) or (value == 0 and self._inputs.dtype != torch.float64):
            raise OutOfRange
        if total.requires_grad:
            total.backward(torch.full_like(total, scale))
        self._value = value

    def _remove(self, layers: Sequence[_Layer], n_remove: int) -> None:
        """Remove the lowest scores; of equal ones those with the highest index."""
        if n_remove <= 0:
            return
        bound = self._bound(layers, n_remove)
        found = [layer.scores_up_to(bound) for layer in layers]
        if sum(len(scores) for _, scores in found) < n_remove:
            found = [layer.scores_up_to(math.inf) for layer in layers]
        scores = torch.cat([scores for _, scores in found])
        if len(scores) < n_remove:
            raise OutOfRange
        threshold = torch.kthvalue(scores, n_remove).values
        removed = scores < threshold
        ties = (scores == threshold).nonzero().squeeze(1)
        removed[ties[len(ties) - (n_remove - int(removed.sum())) :]] = True
        sizes = [len(scores) for _, scores in found]
        for layer, (indices, _), chosen in zip(layers, found, removed.split(sizes), strict=True):
            layer.zero(indices[chosen])

    def _bound(self, layers: Sequence[_Layer], n_remove: int) -> float:
        """A value that at least ``n_remove`` scores do not exceed, except once in a billion rounds."""
        size = sum(layer.weights.numel() for layer in layers)
        if size <= _SAMPLE:
            return math.inf
        drawn = [layer.sample(math.ceil(_SAMPLE * layer.weights.numel() / size), self._generator) for layer in layers]
        sample = torch.cat(drawn)
        fraction = n_remove / sum(layer.n_alive for layer in layers)
        deviation = math.sqrt(len(sample) * fraction * (1 - fraction))
        position = math.ceil(len(sample) * fraction + 6 * deviation) + 6
        return torch.kthvalue(sample, position).values.item() if position <= len(sample) else math.inf


class _Layer:
    """One weight tensor: ``weights`` are absolute values, one row per unit, pruned ones 0."""

    weights: Tensor
    n_alive: int

    def forget(self) -> None:
        """Drop the gradient of the last pass."""
        raise NotImplementedError

    def gradient_rows(self, start: int, stop: int) -> Tensor:
        """Gradient of the flow for some rows of ``weights``."""
        raise NotImplementedError

    def gradient_at(self, row: Tensor, column: Tensor) -> Tensor:
        """Gradient of the flow for some entries of ``weights``."""
        raise NotImplementedError

    def mask(self) -> Tensor:
        """What is left, in the shape of the layer's weight."""
        raise NotImplementedError

    def compact(self) -> None:
        """Drop dead rows and columns, where the layer can."""

    def total(self) -> float:
        """Sum of all scores."""
        return sum(scores.sum().item() for _, scores in self._tiles())

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Scores of random living weights: at most ``count``."""
        row, column = (
            torch.randint(size, (count,), generator=generator).to(self.weights.device) for size in self.weights.shape
        )
        values = self.weights[row, column]
        return (self.gradient_at(row, column) * values)[values > 0]

    def scores_up_to(self, bound: float) -> tuple[Tensor, Tensor]:
        """Ascending indices of living weights with a score of at most ``bound``, and their scores."""
        indices, scores = [], []
        for start, tile in self._tiles():
            chosen = _alive_up_to(tile, self.weights[start : start + len(tile)], bound)
            scores.append(tile.flatten()[chosen])
            indices.append(chosen + start * self.weights.shape[1])
        return torch.cat(indices), torch.cat(scores)

    def zero(self, indices: Tensor) -> None:
        """Prune these entries of the flattened ``weights``."""
        self.weights.view(-1).index_fill_(0, indices, 0)
        self.n_alive -= len(indices)

    def rescale(self) -> float:
        """Divide the weights by the power of two next to their mean row sum; returns it."""
        rows = int(self.weights.any(dim=1).sum())
        factor = 2.0 ** round(math.log2(self.weights.sum(dtype=torch.float64).item() / rows)) if rows else 1.0
        self.multiply(1 / factor)
        return factor

    def multiply(self, factor: float) -> None:
        """Scale all weights."""
        self.weights.mul_(factor)
        if int(self.weights.count_nonzero()) != self.n_alive:
            raise OutOfRange

    def _tiles(self) -> Iterator[tuple[int, Tensor]]:
        rows, columns = self.weights.shape
        step = max(1, _TILE // columns)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            yield start, self.gradient_rows(start, stop) * self.weights[start:stop]


class _WholeLayer(_Layer):
    """A layer of any kind, or several that share one weight: they compute themselves, autograd finds the gradient."""

    def __init__(self, modules: Sequence[nn.Module], weight: Tensor) -> None:
        self._weight = nn.Parameter(weight)
        for module in modules:
            module.weight = self._weight
        self.weights = weight.view(len(weight), -1)
        self.n_alive = int(weight.count_nonzero())

    def forget(self) -> None:
        self._weight.grad = None

    def gradient_rows(self, start: int, stop: int) -> Tensor:
        return self._gradient()[start:stop]

    def gradient_at(self, row: Tensor, column: Tensor) -> Tensor:
        return self._gradient()[row, column]

    def mask(self) -> Tensor:
        return self._weight.detach() > 0

    def _gradient(self) -> Tensor:
        if self._weight.grad is None:
            self._weight.grad = torch.zeros_like(self._weight)
        return self._weight.grad.reshape(self.weights.shape)


class _BlockLayer(_Layer):
    """A Linear or plain Conv2d, reduced to its living rows and input columns.

    The gradient stays in factors: outputs' gradients (positions, rows) and unfolded inputs (positions, columns) of each
    pass through the layer. Convolutions over large maps have few weights: their gradient is kept as it is.
    """

    def __init__(self, module: nn.Module, weight: Tensor, anchor: Tensor) -> None:
        self._shape = weight.shape
        self._anchor = anchor
        self._rows = torch.arange(weight.shape[0], device=weight.device)
        self._columns = torch.arange(weight.shape[1], device=weight.device)
        self._factors: list[tuple[Tensor, Tensor]] = []
        self._gradients: list[Tensor] = []
        self.weights = weight.view(len(weight), -1)
        self.n_alive = int(weight.count_nonzero())
        placeholder = torch.full((), math.nan, dtype=weight.dtype, device=weight.device).expand(self._shape)
        module.weight = nn.Parameter(placeholder, requires_grad=False)
        if isinstance(module, nn.Conv2d):
            self._kernel_size = module.kernel_size
            self._settings: dict[str, Any] = {
                "stride": module.stride,
                "padding": module.padding,
                "dilation": module.dilation,
            }
        module.forward = self._convolution if isinstance(module, nn.Conv2d) else self._linear

    def forget(self) -> None:
        self._factors.clear()
        self._gradients.clear()

    def gradient_rows(self, start: int, stop: int) -> Tensor:
        terms = [outputs[:, start:stop].t() @ inputs for outputs, inputs in self._factors]
        terms += [gradient[start:stop] for gradient in self._gradients]
        return sum(terms[1:], terms[0]) if terms else self.weights.new_zeros(stop - start, self.weights.shape[1])

    def gradient_at(self, row: Tensor, column: Tensor) -> Tensor:
        values = self.weights.new_zeros(len(row))
        for outputs, inputs in self._factors:
            values += (outputs.t()[row] * inputs.t()[column]).sum(dim=1)
        for gradient in self._gradients:
            values += gradient[row, column]
        return values

    def mask(self) -> Tensor:
        mask = torch.zeros(self._shape, dtype=torch.bool, device=self.weights.device)
        mask[self._rows[:, None], self._columns] = self._kernels() > 0
        return mask

    def compact(self) -> None:
        if 2 * self.n_alive > self.weights.numel():
            return
        rows = self.weights.sum(dim=1).nonzero().squeeze(1)
        columns = self.weights.sum(dim=0).view(len(self._columns), -1).sum(dim=1).nonzero().squeeze(1)
        if not len(rows):
            rows, columns = rows.new_zeros(1), columns.new_zeros(1)
        if len(rows) * len(columns) < _COMPACT_BELOW * len(self._rows) * len(self._columns):
            self.weights = self._kernels()[rows][:, columns].view(len(rows), -1)
            self._rows, self._columns = self._rows[rows], self._columns[columns]

    def _linear(self, inputs: Tensor) -> Tensor:
        living = self._living(inputs.flatten(0, -2) if inputs.dim() > 1 else inputs[None])
        return self._all(_Product.apply(living, self._anchor, self)).view(*inputs.shape[:-1], self._shape[0])

    def _convolution(self, inputs: Tensor) -> Tensor:
        maps = self._living(inputs if inputs.dim() == 4 else inputs[None])
        size = [
            (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for length, kernel, stride, padding, dilation in zip(
                maps.shape[2:], self._kernel_size, *self._settings.values(), strict=True
            )
        ]
        if math.prod(size) >= _LARGE_MAP:
            outputs = _LargeConvolution.apply(maps, self._anchor, self)
        else:
            columns = F.unfold(maps, self._kernel_size, **self._settings).transpose(1, 2)
            product = _Product.apply(columns.flatten(0, 1), self._anchor, self)
            outputs = product.view(len(maps), -1, len(self._rows)).transpose(1, 2).reshape(len(maps), -1, *size)
        outputs = self._all(outputs)
        return outputs if inputs.dim() == 4 else outputs[0]

    def _living(self, inputs: Tensor) -> Tensor:
        return inputs if len(self._columns) == self._shape[1] else inputs.index_select(1, self._columns)

    def _all(self, outputs: Tensor) -> Tensor:
        if len(self._rows) == self._shape[0]:
            return outputs
        zeros = outputs.new_zeros(len(outputs), self._shape[0], *outputs.shape[2:])
        return zeros.index_copy(1, self._rows, outputs)

    def _kernels(self) -> Tensor:
        return self.weights.view(len(self._rows), len(self._columns), *self._shape[2:])


class _Product(torch.autograd.Function):
    """(positions, columns) times the transposed block; leaves the factors of the weights' gradient with the layer."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, anchor: Tensor, layer: _BlockLayer) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(columns)
        return columns @ layer.weights.t()

    @staticmethod
    def backward(ctx: Any, outputs: Tensor) -> tuple[Tensor | None, None, None]:
        ctx.layer._factors.append((outputs, ctx.saved_tensors[0].detach()))
        return outputs @ ctx.layer.weights if ctx.needs_input_grad[0] else None, None, None


class _LargeConvolution(torch.autograd.Function):
    """``conv2d`` with the block; leaves the weights' gradient with the layer."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, anchor: Tensor, layer: _BlockLayer) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(maps)
        return F.conv2d(maps, layer._kernels(), **layer._settings)

    @staticmethod
    def backward(ctx: Any, outputs: Tensor) -> tuple[Tensor | None, None, None]:
        layer, (maps,), kernels = ctx.layer, ctx.saved_tensors, ctx.layer._kernels()
        gradient = conv2d_weight(maps, kernels.shape, outputs, **layer._settings)
        layer._gradients.append(gradient.view_as(layer.weights))
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return conv2d_input(maps.shape, kernels, outputs, **layer._settings), None, None


def _fits_a_block(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and "forward" not in vars(module)
    return type(module) is nn.Linear and "forward" not in vars(module)


def _alive_up_to(scores: Tensor, weights: Tensor, bound: float) -> Tensor:
    if scores.device.type == "cpu":  # NumPy compares and searches several times faster
        chosen = scores.numpy() <= bound
        chosen &= weights.numpy() > 0
        return torch.from_numpy(np.flatnonzero(chosen))
    return ((scores <= bound) & (weights > 0)).flatten().nonzero().squeeze(1)


def _all_same(totals: Sequence[float]) -> bool:
    return all(0 < total < math.inf for total in totals) and max(totals) - min(totals) <= _SAME * max(totals)
