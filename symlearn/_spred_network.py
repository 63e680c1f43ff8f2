"""Networks with constant or unread units, made physically smaller without changing what they compute.

Only chains are rewritten: dense and convolutional layers with what acts on each unit alone in between. Anything else is
left as it is, and so are the layers next to it where they would have to know what it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ELEMENTWISE = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_POOLS = (
    (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d),
    (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    (nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d),
)


@dataclass(frozen=True)
class Link:
    """Two layers, and what lies between them: the units of ``producer`` are inputs of ``consumer``.

    ``constant`` (units,) says which units arrive at the consumer with a value that no input changes; ``value`` (units,)
    is that value in evaluation mode. ``n_places`` is how many inputs of the consumer each unit feeds after flattening.
    """

    producer: Any
    norms: tuple[Any, ...]
    consumer: Any
    constant: Tensor
    value: Tensor
    n_places: int = 1


def leaves(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of nested chains in the order in which they are called."""
    for part in filter(None, model._modules.values()):
        if type(part) is nn.Sequential and not _has_hooks(part):
            yield from leaves(part)
        else:
            yield part


def remove_dead_units(model: nn.Sequential) -> None:
    """Rewrite the layers of a chain in place until no unit is constant or unread, but for one per layer."""
    while sum(_shrink(link) for link in _links(list(leaves(model)))):
        pass


def _links(chain: list[Any]) -> Iterator[Link]:
    for start, producer in enumerate(chain):
        if _is_layer(producer) and (link := _follow(producer, chain[start + 1 :])) is not None:
            yield link


def _follow(producer: Any, rest: list[Any]) -> Link | None:
    """The link that starts at a layer; None if something on the way to the next layer may mix units."""
    weight = producer.weight.detach()
    bias = weight.new_zeros(len(weight)) if producer.bias is None else producer.bias.detach()
    link = Link(producer, (), producer, ~weight.flatten(1).any(dim=1), bias.clone())
    n_axes = _n_axes(producer)
    flattened = False
    for module in rest:
        if _is_layer(module):
            return _closed(link, module, flattened)
        if _has_hooks(module) or is_parametrized(module):
            return None
        if type(module) in _NORMS and type(module) is not _norm_of(n_axes, flattened):
            return None
        if type(module) in _NORMS:
            if not module.track_running_stats or module.num_features != len(weight):
                return None
            link = _normalised(link, module)
        elif type(module) in _ELEMENTWISE:
            link = replace(link, value=module(link.value.clone()))
        elif type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            flattened = True
        elif type(module) not in _DROPOUTS and (flattened or not _keeps_constants(module, n_axes)):
            return None
    return None


def _closed(link: Link, consumer: Any, flattened: bool) -> Link | None:
    n_units, n_axes = len(link.value), _n_axes(link.producer)
    if _n_axes(consumer):
        fits = not flattened and _n_axes(consumer) == n_axes and consumer.in_channels == n_units
        return replace(link, consumer=consumer) if fits else None
    if not n_axes:
        return replace(link, consumer=consumer) if consumer.in_features == n_units else None
    if not flattened or consumer.in_features % n_units:
        return None
    return replace(link, consumer=consumer, n_places=consumer.in_features // n_units)


def _normalised(link: Link, norm: Any) -> Link:
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = torch.zeros_like(scale)
    constant = link.constant
    if norm.affine:
        scale, shift = scale * norm.weight.detach(), norm.bias.detach()
        constant = constant | (norm.weight.detach() == 0)
    value = torch.where(scale == 0, shift, (link.value - norm.running_mean) * scale + shift)
    return replace(link, norms=(*link.norms, norm), constant=constant, value=value)


def _shrink(link: Link) -> bool:
    """Fold constants into the consumer, drop what it does not read; True if a unit was removed."""
    with torch.no_grad():
        weight = link.consumer.weight
        read = weight.detach().transpose(0, 1).reshape(len(link.value), -1)  # (units, consumers x places)
        unread = ~read.any(dim=1)
        silent = link.constant & (link.value == 0)
        speaking = link.constant & ~unread & ~silent & link.value.isfinite()
        if _pads_with_zeros(link.consumer):
            dead = unread | silent | _carried(link, speaking)
        else:
            dead = unread | silent | speaking
            _fold(link, speaking)
        alive = ~dead
        if not alive.any():
            alive[0] = True
        if alive.all():
            return False
        _take_units(link, alive.nonzero().flatten())
    return True


def _fold(link: Link, units: Tensor) -> None:
    """Move the effect of constant units into the consumer's bias."""
    if not units.any():
        return
    layer, values = link.consumer, torch.where(units, link.value, 0).to(link.consumer.weight)
    per_input = values.repeat_interleave(link.n_places)
    effect = torch.einsum("oi...,i->o", layer.weight.detach().double(), per_input.double()).to(layer.weight)
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros_like(effect), requires_grad=layer.weight.requires_grad)
    layer.bias.data = layer.bias.detach() + effect
    keep = (~units).repeat_interleave(link.n_places).to(layer.weight)
    layer.weight.data = layer.weight.detach() * keep.view(1, -1, *[1] * (layer.weight.ndim - 2))


def _carried(link: Link, units: Tensor) -> Tensor:
    """Where zero padding makes a bias impossible: let one constant unit stand for all; the others are dead."""
    if units.sum() < 2:
        return torch.zeros_like(units)
    values = torch.where(units, link.value, 0)
    carrier = values.abs().argmax()
    weight = link.consumer.weight.detach().clone()
    ratio = (values / values[carrier]).to(weight)
    weight[:, carrier] = torch.einsum("oi...,i->o...", weight, ratio)
    link.consumer.weight.data = weight
    dead = units.clone()
    dead[carrier] = False
    return dead


def _take_units(link: Link, units: Tensor) -> None:
    n_units = len(link.value)
    layer, consumer, count = link.producer, link.consumer, len(units)
    for part in (layer, *link.norms):
        for name in ("weight", "bias", "running_mean", "running_var"):
            if getattr(part, name, None) is not None:
                _select(part, name, units, 0)
    for norm in link.norms:
        norm.num_features = count
    places = torch.arange(link.n_places, device=units.device)
    inputs = (units[:, None] * link.n_places + places).flatten()
    assert consumer.weight.shape[1] == n_units * link.n_places
    _select(consumer, "weight", inputs, 1)
    setattr(layer, "out_channels" if _n_axes(layer) else "out_features", count)
    setattr(consumer, "in_channels" if _n_axes(consumer) else "in_features", len(inputs))


def _select(module: nn.Module, name: str, index: Tensor, axis: int) -> None:
    old = getattr(module, name)
    new = old.detach().index_select(axis, index)
    setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _is_layer(module: nn.Module) -> bool:
    """A dense or an ordinary convolutional layer whose weight and bias are plain parameters."""
    if type(module) not in (nn.Linear, *_CONVOLUTIONS) or _has_hooks(module) or is_parametrized(module):
        return False
    return set(module._parameters) <= {"weight", "bias"} and getattr(module, "groups", 1) == 1


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _n_axes(layer: nn.Module) -> int:
    """Axes along which a layer slides; 0 for a dense layer."""
    return 1 + _CONVOLUTIONS.index(type(layer)) if type(layer) in _CONVOLUTIONS else 0


def _norm_of(n_axes: int, flattened: bool) -> type[nn.Module] | None:
    if n_axes == 0:
        return nn.BatchNorm1d
    return None if flattened else _NORMS[n_axes - 1]


def _keeps_constants(module: nn.Module, n_axes: int) -> bool:
    if not n_axes or type(module) not in _POOLS[n_axes - 1]:
        return False
    padding = getattr(module, "padding", 0)
    padded = any(padding) if isinstance(padding, tuple) else bool(padding)
    return not (padded and getattr(module, "count_include_pad", False))


def _pads_with_zeros(layer: Any) -> bool:
    if not _n_axes(layer) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return layer.padding == "same" or any(layer.padding)
