"""What a model does with its parameters: every linear, convolutional and normalisation layer of one forward pass.

A watch over all torch functions sees each operation that a parameter takes part in. Layers keep their input and the
place in the graph where the gradient of their output arrives; parameters that are used in any other way are named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from symlearn._layer_gradients import _DATA_DEPENDENT, _METADATA, _METADATA_METHODS, _tensors


class NotLayerwiseError(Exception):
    """The layers alone do not say what the gradients are."""


@dataclass(frozen=True)
class Use:
    """One layer of a forward pass; the names of its weight and bias are "" where they are not trainable.

    Attributes
    ----------
    kind : {"linear", "convolution", "normalisation"}
        A normalisation multiplies its ``given``, which is normalised, by the weight and adds the bias.
    given : Tensor
        Input, samples on axis 0; ``version`` is that of its values when they were used.
    edge : GradientEdge
        Where the gradient of the output arrives.
    shape : tuple of int
        Of the output.
    geometry : tuple
        Of a convolution: kernel, stride, padding (as of ``torch.nn.functional.pad``), dilation, groups. Of a
        normalisation: the number of last axes that have their own weights, 0 if that is axis 1.
    """

    kind: str
    weight: str
    bias: str
    given: Tensor
    version: int
    edge: GradientEdge
    shape: tuple[int, ...]
    geometry: tuple[Any, ...]

    @property
    def signature(self) -> tuple[Any, ...]:
        """What two passes have in common whatever their number of samples."""
        return self.kind, self.weight, self.bias, tuple(self.given.shape[1:]), self.shape[1:], self.geometry

    @property
    def groups(self) -> int:
        """Groups of channels that do not mix."""
        return int(self.geometry[4]) if self.kind == "convolution" else 1

    @property
    def units(self) -> tuple[int, int]:
        """Units and positions of the output."""
        last = {"linear": 1, "convolution": 0}.get(self.kind, self.geometry[0] if self.geometry else 0)
        n_units = math.prod(self.shape[-last:]) if last else self.shape[1]
        return n_units, math.prod(self.shape[1:]) // n_units

    def by_unit(self, tensor: Tensor) -> Tensor:
        """The output, its gradient, or the input of a normalisation, as (n, units, positions)."""
        if self.kind == "linear":
            return tensor.reshape(len(tensor), -1, tensor.shape[-1]).mT
        last = self.geometry[0] if self.kind == "normalisation" else 0
        if last:
            return tensor.flatten(-last).reshape(len(tensor), -1, math.prod(self.shape[-last:])).mT
        return tensor.flatten(2) if tensor.ndim > 2 else tensor.unsqueeze(2)

    def patches(self) -> Tensor:
        """What each position of a linear layer or a convolution sees, as (n, groups, positions, inputs)."""
        if self.kind == "linear":
            return self.given.reshape(len(self.given), 1, -1, self.given.shape[-1])
        kernel, stride, padding, dilation, groups = self.geometry
        image = self.given if self.given.ndim == 4 else self.given.unsqueeze(2)
        if any(padding):
            image = F.pad(image, padding)
        columns = F.unfold(image, kernel, dilation=dilation, stride=stride) if kernel != (1, 1) else None
        if columns is None:
            columns = image[:, :, :: stride[0], :: stride[1]].flatten(2)
        return columns.unflatten(1, (groups, -1)).mT


@dataclass(frozen=True)
class Recording:
    """One forward pass: its layers, the parameters that were used in other ways too, and the output.

    ``uses`` is None where the pass was not watched.
    """

    uses: list[Use] | None
    others: set[str]
    output: Any


def record(model: nn.Module, x: Tensor, names: Mapping[int, str]) -> Recording:
    """Run the model on a batch and watch the parameters with the given names by identity."""
    watch = _Watch(names, len(x))
    with watch:
        output = run(model, x)
    return Recording(watch.uses, watch.others, output)


def misused(recording: Recording, names: Mapping[int, str]) -> tuple[set[str], set[str]]:
    """Parameters that the graph of the output uses in other ways than the layers do, and those that it does not use."""
    counts = dict.fromkeys(names.values(), 0)
    seen, waiting = set(), [recording.output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            name = names.get(id(getattr(following, "variable", None)))
            if name:
                counts[name] += 1
            waiting.append(following)
    for use in recording.uses or []:
        for name in (use.weight, use.bias):
            if name and use.edge.node in seen:
                counts[name] -= 1
    used = {name for use in recording.uses or [] for name in (use.weight, use.bias)} | recording.others
    wrong = {name for name, count in counts.items() if count} | recording.others
    return wrong, set(counts) - wrong - used


def run(model: nn.Module, x: Tensor) -> Any:
    """The output of the model, whose buffers stay as they are."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    return functional_call(model, buffers, (x,)) if buffers else model(x)


@contextmanager
def ordinary_autograd(device: torch.device) -> Iterator[None]:
    """Within it, gradients are recorded in full precision, whatever the caller's mode."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


class _Watch(TorchFunctionMode):
    """Sees every operation; notes the layers, and whatever else happens to the parameters."""

    def __init__(self, names: Mapping[int, str], n_samples: int) -> None:
        super().__init__()
        self.names, self.n_samples = names, n_samples
        self.uses: list[Use] = []
        self.others: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _DATA_DEPENDENT:
            raise NotLayerwiseError
        layer = _LAYERS.get(name)
        if layer is not None and func is layer.function:
            bound = dict(zip(layer.arguments, args, strict=False)) | kwargs
            weight, bias = (self.names.get(id(bound.get(each)), "") for each in ("weight", "bias"))
            if (weight or bias) and id(bound["input"]) not in self.names:
                return self._note(layer, bound, weight, bias, func(*args, **kwargs))
        is_getter = name == "__get__" and getattr(getattr(func, "__self__", None), "__name__", "") in _METADATA
        if not is_getter and name not in _METADATA_METHODS:
            self.others |= {self.names[id(each)] for each in _tensors((args, kwargs)) if id(each) in self.names}
        return func(*args, **kwargs)

    def _note(self, layer: _Layer, bound: dict[str, Any], weight: str, bias: str, output: Tensor) -> Tensor:
        found = layer.read(bound) if output.requires_grad and len(bound["input"]) == self.n_samples else None
        if found is None:
            self.others |= {name for name in (weight, bias) if name}
            return output
        if output._is_view():  # an operation in place on a view would cut the edge off the graph
            output = output.clone()
        given, geometry = found
        edge = get_gradient_edge(output)
        self.uses.append(
            Use(layer.kind, weight, bias, given.detach(), given._version, edge, tuple(output.shape), geometry)
        )
        return output


@dataclass(frozen=True)
class _Layer:
    """A torch function that is a layer; ``read`` gives what its gradients need, or None where that is not covered."""

    kind: str
    function: Callable[..., Tensor]
    arguments: Sequence[str]
    read: Callable[[dict[str, Any]], tuple[Tensor, tuple[Any, ...]] | None]


def _read_linear(bound: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...]] | None:
    given = bound["input"]
    return (given, ()) if given.ndim >= 2 and bound["weight"].ndim == 2 else None


def _read_convolution(bound: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...]] | None:
    given, weight = bound["input"], bound["weight"]
    n_axes = weight.ndim - 2
    if given.ndim != weight.ndim or n_axes > 2:
        return None
    stride, dilation = (_repeated(bound.get(name, 1), n_axes) for name in ("stride", "dilation"))
    kernel, padding = tuple(weight.shape[2:]), bound.get("padding", 0)
    if padding == "same":
        totals = [d * (size - 1) for d, size in zip(dilation, kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(each, each) for each in _repeated(0 if padding == "valid" else padding, n_axes)]
    if n_axes == 1:  # an image of height 1
        kernel, stride, dilation, sides = (1, *kernel), (1, *stride), (1, *dilation), [(0, 0), *sides]
    return given, (kernel, stride, (*sides[1], *sides[0]), dilation, bound.get("groups", 1))


def _repeated(value: Any, n_axes: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * n_axes if len(values) == 1 else values


def _read_batch_norm(bound: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...]] | None:
    if bound.get("training") or bound.get("running_mean") is None:
        return None
    statistics = bound["running_mean"], bound["running_var"]
    with torch.no_grad():
        return F.batch_norm(bound["input"], *statistics, eps=bound.get("eps", 1e-5)), (0,)


def _read_group_norm(bound: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...]] | None:
    with torch.no_grad():
        return F.group_norm(bound["input"], bound["num_groups"], eps=bound.get("eps", 1e-5)), (0,)


def _read_layer_norm(bound: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...]] | None:
    shape = tuple(bound["normalized_shape"])
    if bound["input"].ndim <= len(shape):
        return None
    with torch.no_grad():
        return F.layer_norm(bound["input"], shape, eps=bound.get("eps", 1e-5)), (len(shape),)


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_LAYERS = {
    "linear": _Layer("linear", F.linear, ("input", "weight", "bias"), _read_linear),
    "conv1d": _Layer("convolution", torch.conv1d, _CONVOLUTION, _read_convolution),
    "conv2d": _Layer("convolution", torch.conv2d, _CONVOLUTION, _read_convolution),
    "batch_norm": _Layer(
        "normalisation",
        F.batch_norm,
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        _read_batch_norm,
    ),
    "group_norm": _Layer(
        "normalisation", F.group_norm, ("input", "num_groups", "weight", "bias", "eps"), _read_group_norm
    ),
    "layer_norm": _Layer(
        "normalisation", F.layer_norm, ("input", "normalized_shape", "weight", "bias", "eps"), _read_layer_norm
    ),
}
