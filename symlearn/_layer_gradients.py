"""Sums of charges of per-sample gradients, layer by layer, without forming the gradients of linear layers.

The gradient of a linear layer for one sample is the outer product of the output gradient and the input. Both are
recorded in one batched pass, by watching every use of the parameters; whatever is not exactly one linear layer per
parameter, which each sample passes once, is left to the general route.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from symlearn._group_actions import wide

# What may be asked of a parameter without using its values.
_METADATA = {"shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_leaf", "is_cuda", "is_sparse"}
_METADATA |= {"grad_fn", "is_nested", "is_quantized", "is_mkldnn", "itemsize", "nbytes"}
_METADATA_METHODS = {"size", "dim", "numel", "is_floating_point", "is_complex", "stride", "is_contiguous", "__len__"}
# What makes the course of a computation, or the shape of a result, depend on the values of all samples.
_DATA_DEPENDENT = {"__bool__", "__float__", "__int__", "__index__", "__contains__", "item", "tolist", "numpy", "equal"}
_DATA_DEPENDENT |= {"allclose", "nonzero", "argwhere", "masked_select", "unique", "is_nonzero", "bincount"}


@dataclass(frozen=True)
class Form:
    """A quadratic form of vectors of units: of each unit, of all together, or all products within each head."""

    heads: int | None
    per_unit: bool

    def of_rows(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum of weight times form over the rows of a matrix (n, units)."""
        if self.heads is not None:
            blocks = rows.unflatten(1, (self.heads, -1)).movedim(0, 1)
            weighted = blocks if weights is None else blocks * weights[:, None]
            return wide(weighted.mT @ blocks)
        # (units, n) or (n,)
        squares = rows.square().mT if self.per_unit else torch.linalg.vector_norm(rows, dim=1).square()
        return wide(squares).sum(-1) if weights is None else wide(squares @ weights)

    def of_pair(self, one: Tensor, other: Tensor) -> Tensor:
        """The symmetric bilinear form of two vectors of units, times two."""
        if self.heads is not None:
            product = one.reshape(self.heads, -1, 1) * other.reshape(self.heads, 1, -1)
            return product + product.mT
        return 2 * one * other if self.per_unit else 2 * (one @ other)


@dataclass(frozen=True)
class Sums:
    """Sums over samples of the gradients less a common shift, in wide precision.

    Attributes
    ----------
    second : Tensor
        Sum of the charges.
    first, shift : dict of Tensor
        Sum of the gradients; the shift.
    """

    second: Tensor
    first: dict[str, Tensor]
    shift: dict[str, Tensor]


def layerwise_sums(
    model_output: Callable[[Mapping[str, Tensor], Tensor], Any],
    sample_loss: Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor],
    output_losses: Callable[[Tensor, Tensor], Tensor],
    params: Mapping[str, Tensor],
    terms: Mapping[str, tuple[int, int]],
    form: Form,
    inputs: Tensor,
    targets: Tensor,
    chunk_size: int,
) -> Sums | None:
    """The sums of the touched parameters, or None where this route does not apply.

    ``terms`` holds the sign and the unit axis of each touched parameter; ``output_losses`` gives the loss of each
    sample of a batch from its output.
    """
    layers: dict[tuple[str, str], _OuterProducts] = {}
    try:
        for x, y in zip(inputs.split(chunk_size), targets.split(chunk_size), strict=True):
            uses, losses = _record(model_output, output_losses, params, terms, x, y)
            if not layers:
                if not _agree(uses, losses, sample_loss, params, terms, x, y):
                    return None
                layers = {use.names: _OuterProducts(use, terms, form) for use in uses}
            if {use.names for use in uses} != set(layers):
                return None
            for use in uses:
                layers[use.names].add(use)
    except Exception:
        # Whatever a model cannot do with a batch: the general route repeats the error if it is a genuine one.
        return None
    first, shift = {}, {}
    for layer in layers.values():
        for name, (total, offset) in layer.totals().items():
            first[name], shift[name] = total, offset
    second = functools.reduce(torch.add, (layer.second() for layer in layers.values()))
    return Sums(second, {name: first[name] for name in terms}, {name: shift[name] for name in terms})


class _NotLayerwise(Exception):
    """A use of the parameters which this module does not cover."""


@dataclass
class _Use:
    """A linear layer whose weight or bias is touched ("" if not): its input and the gradient of its output."""

    names: tuple[str, str]
    given: Tensor
    version: int
    gradients: list[Tensor] = field(default_factory=list)

    @property
    def gradient(self) -> Tensor:
        return self.gradients[0]


class _Watch(torch.autograd.Function):
    """The identity, in place; keeps the gradient that arrives."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, use: _Use) -> Tensor:
        ctx.mark_dirty(output)
        ctx.use = use
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.use.gradients.append(gradients[0])
        return gradients[0], None, None


class _Recorder(TorchFunctionMode):
    """Sees every operation; records those that use the touched parameters as layers do, refuses all others."""

    def __init__(self, touched: Mapping[str, Tensor], n_samples: int) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in touched.items()}
        self.n_samples = n_samples
        self.anchor = next(iter(touched.values())).new_zeros((), requires_grad=True)
        self.uses: list[_Use] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            bound = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            names = self.names.get(id(bound["weight"]), ""), self.names.get(id(bound.get("bias")), "")
            if any(names):
                return self._layer(bound, names)
        name = getattr(func, "__name__", "")
        if name in _DATA_DEPENDENT:
            raise _NotLayerwise
        is_getter = name == "__get__" and getattr(getattr(func, "__self__", None), "__name__", "") in _METADATA
        harmless = is_getter or name in _METADATA_METHODS
        if not harmless and any(id(tensor) in self.names for tensor in _tensors((args, kwargs))):
            raise _NotLayerwise
        return func(*args, **kwargs)

    def _layer(self, bound: dict[str, Tensor], names: tuple[str, str]) -> Tensor:
        given = bound["input"]
        if id(given) in self.names or given.ndim != 2 or len(given) != self.n_samples:
            raise _NotLayerwise
        use = _Use(names, given.detach(), given._version)
        self.uses.append(use)
        output: Tensor = _Watch.apply(F.linear(**bound), self.anchor, use)
        return output


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)


def _record(
    model_output: Callable[[Mapping[str, Tensor], Tensor], Any],
    output_losses: Callable[[Tensor, Tensor], Tensor],
    params: Mapping[str, Tensor],
    touched: Iterable[str],
    x: Tensor,
    y: Tensor,
) -> tuple[list[_Use], Tensor]:
    """One pass over a chunk: every layer with its input and output gradient, and the loss of each sample."""
    recorder = _Recorder({name: params[name] for name in touched}, len(x))
    with torch.enable_grad():
        with recorder:
            output = model_output(params, x)
        if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != len(x):
            raise _NotLayerwise
        losses = output_losses(output, y)
    torch.autograd.grad(losses.sum(), recorder.anchor, allow_unused=True)
    seen = [name for use in recorder.uses for name in use.names if name]
    once = sorted(seen) == sorted(recorder.names.values())
    if not once or any(len(use.gradients) != 1 or use.given._version != use.version for use in recorder.uses):
        raise _NotLayerwise
    return recorder.uses, losses.detach()


def _agree(
    uses: Sequence[_Use],
    losses: Tensor,
    sample_loss: Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor],
    params: Mapping[str, Tensor],
    terms: Mapping[str, tuple[int, int]],
    x: Tensor,
    y: Tensor,
) -> bool:
    """Whether the first and the last sample have the loss and the gradients that each has alone.

    They do not where samples interact, as in a normalisation over the batch.
    """
    epsilon = torch.finfo(losses.dtype).eps
    for index in (0, len(x) - 1):
        loss, alone = gradient_alone(sample_loss, params, tuple(terms), x[index], y[index])
        if not (losses[index] - loss).abs() <= epsilon**0.5 * loss.abs():
            return False
        # The sum that gives a vanishing gradient, such as that of a key bias, still has the rounding of its terms.
        rounding = 1e3 * epsilon * max(gradient.norm() for gradient in alone.values())
        for use in uses:
            delta = use.gradient[index]
            for name, together in zip(use.names, (torch.outer(delta, use.given[index]), delta), strict=True):
                if name and not (together - alone[name]).norm() <= epsilon**0.5 * alone[name].norm() + rounding:
                    return False
    return True


def gradient_alone(
    sample_loss: Callable[..., Tensor], params: Mapping[str, Tensor], names: Sequence[str], x: Tensor, y: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one sample, and its gradients by plain autograd; 0 where the loss does not depend on a parameter."""
    with torch.enable_grad():
        touched = {name: params[name].detach().requires_grad_() for name in names}
        loss = sample_loss({**params, **touched}, x, y)
    if not loss.requires_grad:
        return loss, {name: torch.zeros_like(params[name]) for name in names}
    gradients = torch.autograd.grad(loss, list(touched.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(names, gradients, strict=True))


class _OuterProducts:
    r"""Sums over the gradients :math:`\delta a^\top` of a weight, :math:`\delta` of its bias, and their charges.

    With constant shifts :math:`s,t` of both, :math:`d=\delta-s`, :math:`e=a-t`, the shifted gradient is
    :math:`\delta a^\top-st^\top=da^\top+se^\top`. Its Gram matrix over one side is a sum of Gram matrices of
    :math:`d` and :math:`s` with weights from the other side. Without the shift the result would be a small difference
    of large numbers wherever the noise is small against the mean gradient.
    """

    def __init__(self, use: _Use, terms: Mapping[str, tuple[int, int]], form: Form) -> None:
        self.names, self.form = use.names, form
        self.weight, self.bias = (terms.get(name) for name in use.names)
        dtype = torch.promote_types(use.gradient.dtype, torch.float32)
        self.s, self.t = use.gradient.mean(0, dtype=dtype), use.given.mean(0, dtype=dtype)
        self.sum_d, self.sum_e = torch.zeros_like(wide(self.s)), torch.zeros_like(wide(self.t))
        self.product = self.s.new_zeros((len(self.s), len(self.t)) if self.weight else ())
        self.charges: list[Tensor] = []

    def add(self, use: _Use) -> None:
        d, e = use.gradient - self.s, use.given - self.t
        self.sum_d += d.sum(0)
        self.sum_e += e.sum(0)
        if self.weight:
            self.product.addmm_(d.mT, e)
        if self.weight and self.weight[1] == 0:
            self._add_side(d, self.s, e, self.t, self.weight[0], self.bias[0] if self.bias else 0)
        elif self.bias:
            self.charges.append(self.bias[0] * self.form.of_rows(d))
        if self.weight and self.weight[1] == 1:
            self._add_side(e, self.t, d, self.s, self.weight[0], 0)
        self.charges = [self.second()]

    def _add_side(self, unit: Tensor, unit_shift: Tensor, other: Tensor, shift: Tensor, sign: int, bias: int) -> None:
        lengths = torch.linalg.vector_norm(other, dim=1).square()
        along = other @ shift
        quadratic = sign * (lengths + 2 * along + shift @ shift) + bias
        linear = wide(unit.mT @ (sign * (lengths + along)))
        offset = wide(unit_shift)
        constant = sign * wide(lengths).sum() / 2
        self.charges.append(self.form.of_rows(unit, quadratic) + self.form.of_pair(offset, linear + constant * offset))

    def second(self) -> Tensor:
        """Sum of the charges of the shifted gradients."""
        return functools.reduce(torch.add, self.charges)

    def totals(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum of the shifted gradients, and the shift, of each touched parameter."""
        s, t = wide(self.s), wide(self.t)
        found = {}
        if self.weight:
            total = wide(self.product) + torch.outer(self.sum_d, t) + torch.outer(s, self.sum_e)
            found[self.names[0]] = total, torch.outer(s, t)
        if self.bias:
            found[self.names[1]] = self.sum_d, s
        return found
