"""Saliency scores of any module's weights, computed on private copies: the engine room of :mod:`symlearn.pruning`.

``replica`` and ``flow_replica`` copy a module so that scoring never touches the user's, whatever reparametrises its
weights; ``make_scorer`` turns the arguments of ``score`` into a function from masks to scores. A *layer* is a Linear or
convolution, keyed by the name of its weight; several modules that hold one weight tensor are one layer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from symlearn._checks import check_choice, check_generator, check_int, check_module, check_pair, invalid, wrong_type

PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

Layers = dict[str, list[nn.Module]]
LossFunction = Callable[[Tensor, Tensor], Tensor]
Scorer = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

_METHODS = ("random", "magnitude", "snip", "grasp", "synflow")
_SMALLEST_FLOW = 1e-292  # below, scores are subnormal in float64


class OutOfRange(Exception):
    """The flow over- or underflows; the text says where."""


def make_scorer(
    model: nn.Module, method: str, input_shape: Any, data: Any, loss_fn: Any, generator: Any
) -> Callable[[], Scorer]:
    """Check the arguments of scoring; returns what builds the function from masks to scores.

    Each call of that function masks the weights for good: later masks are to lie within earlier ones.
    """
    check_choice("method", method, _METHODS)
    shape, batch, criterion = check_input_shape(input_shape), check_data(data), check_loss_fn(loss_fn)
    check_generator(generator)
    if method == "random":
        return partial(_random_scorer, generator)
    if method == "magnitude":
        return partial(_magnitude_scorer, model)
    if method == "synflow":
        if shape is None:
            raise invalid("input_shape", "given for method 'synflow'", "None")
        return partial(_flow_scorer, model, shape)
    if batch is None:
        raise invalid("data", f"given as (inputs, targets) for method {method!r}", "None")
    return partial(_loss_scorer, model, method, batch, criterion)


def prunable_layers(model: nn.Module) -> Layers:
    """The modules of each layer, in ``named_modules()`` order."""
    layers: Layers = {}
    keys: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, PRUNABLE):
            weight = _stored_weight(module)
            key = keys.setdefault(id(module if weight is None else weight), f"{name}.weight" if name else "weight")
            layers.setdefault(key, []).append(module)
    return layers


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """Shape of a layer's weight, without computing the weight."""
    weight = _stored_weight(module)
    if weight is not None:
        return tuple(weight.shape)
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)


def weight_of(module: nn.Module) -> nn.Parameter:
    """The weight of a layer of a replica."""
    return module.get_parameter("weight")


def device_of(layers: Layers) -> torch.device:
    """Where the first layer is."""
    return next(next(iter(layers.values()))[0].parameters()).device


def alive_masks(layers: Layers) -> dict[str, Tensor]:
    """What ``torch.nn.utils.prune`` has left of each layer."""
    alive = {}
    for key, modules in layers.items():
        alive[key] = torch.ones(weight_shape(modules[0]), dtype=torch.bool, device=device_of({key: modules}))
        for module in modules:
            if module._buffers.get("weight_mask") is not None:
                alive[key] &= module.get_buffer("weight_mask") != 0
    return alive


def replica(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Copy in eval mode and the given precision, without gradients, that shares no tensor with ``model``.

    Its layers hold their effective weight as a plain parameter of their own, whatever computes it in ``model``.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor):
                memo[id(value)] = _copied(value, dtype)
    try:
        twin = copy.deepcopy(model, memo).eval()
    except Exception as error:
        raise invalid("model", "a module that copy.deepcopy can copy", f"{type(error).__name__}: {error}") from error
    del memo
    for key, modules in prunable_layers(twin).items():
        values = [_make_plain(module) for module in modules]
        # one parameter for all modules of the layer, but not for other holders of the tensor: they are not pruned
        weight = nn.Parameter(values[0].clone(), requires_grad=False)
        if not weight.isfinite().all():
            raise invalid("model", "a module with finite weights", f"nan or inf in {key!r}")
        for module in modules:
            module.weight = weight
    return twin


def flow_replica(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy that computes the synaptic flow: absolute weights, no biases and shifts, batch norm as a positive factor."""
    twin = replica(model, dtype)
    with torch.no_grad():
        for name, parameter in twin.named_parameters(remove_duplicate=False):
            if "bias" in name.rpartition(".")[2]:
                parameter.zero_()
            else:
                parameter.abs_()
        for module in twin.modules():
            if isinstance(module, _BatchNorm):
                _make_scale_only(module, dtype)
    return twin


def flow(model: nn.Module, inputs: Tensor) -> Tensor:
    """Sum of the outputs of a flow replica."""
    try:
        output = model(inputs)
    except Exception as error:
        raise invalid(
            "input_shape",
            "a shape that the model accepts (without the batch axis)",
            f"{tuple(inputs.shape[1:])}, which fails with {type(error).__name__}: {error}",
        ) from error
    if not isinstance(output, Tensor):
        raise invalid("model", "a module that returns one tensor", f"a {type(output).__name__}")
    return output.sum()


def is_connected(model: nn.Module, masks: Mapping[str, Tensor], input_shape: Sequence[int]) -> bool:
    """Whether synaptic flow reaches the outputs; decided in yes or no at each layer, so that no scale matters."""
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    twin = flow_replica(model, dtype)
    layers = prunable_layers(twin)
    with torch.no_grad():
        for key, modules in layers.items():
            weight_of(modules[0]).gt_(0).mul_(masks[key])
            for module in modules:
                module.register_forward_hook(lambda _module, _inputs, output: (output > 0).to(output.dtype))
        return bool(flow(twin, torch.ones(1, *input_shape, dtype=dtype, device=device_of(layers))) > 0)


def loss(model: nn.Module, data: tuple[Tensor, Tensor], loss_fn: LossFunction, like: Tensor) -> Tensor:
    """Loss of a batch, moved to the dtype and device of ``like``."""
    inputs, targets = (part.to(like) if part.is_floating_point() else part.to(like.device) for part in data)
    try:
        value = loss_fn(model(inputs), targets)
    except Exception as error:
        raise invalid(
            "data",
            "inputs and targets that the model and loss_fn accept",
            f"shapes {tuple(inputs.shape)} and {tuple(targets.shape)}, which fail with {type(error).__name__}: {error}",
        ) from error
    if not isinstance(value, Tensor):
        raise wrong_type("loss_fn", "a function that returns a scalar tensor", value)
    if value.numel() != 1:
        raise invalid("loss_fn", "a function that returns a scalar tensor", f"one of shape {tuple(value.shape)}")
    if not value.isfinite().all():
        raise invalid("data", "of finite loss", value.item())
    return value.reshape(())


def gradients(objective: Tensor, leaves: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Gradient of a scalar, zeros where it does not depend on a leaf."""
    if not objective.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    try:
        return list(torch.autograd.grad(objective, leaves, create_graph=create_graph, materialize_grads=True))
    except RuntimeError as error:
        raise invalid("model", "as often differentiable as the method needs", f"{error}") from error


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Gradients on, autocast off, and torch's global generators as before at the end."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.random.fork_rng([] if device.type == "cpu" else [device]))
        yield


def _random_scorer(generator: torch.Generator | None) -> Scorer:
    def scores(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        drawn = {}
        for key, mask in masks.items():
            device = mask.device if generator is None else generator.device
            values = torch.rand(mask.shape, generator=generator, dtype=torch.float64, device=device)
            drawn[key] = values.to(mask.device) * mask
        return drawn

    return scores


def _magnitude_scorer(model: nn.Module) -> Scorer:
    layers = prunable_layers(replica(model))
    return lambda masks: {key: weight_of(modules[0]).detach().abs() * masks[key] for key, modules in layers.items()}


def _flow_scorer(model: nn.Module, input_shape: tuple[int, ...]) -> Scorer:
    twin = flow_replica(model, torch.float64)
    layers = prunable_layers(twin)
    inputs = torch.ones(1, *input_shape, dtype=torch.float64, device=device_of(layers))

    def scores(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = _masked_weights(layers, masks)
        total = flow(twin, inputs.clone())
        if not total.isfinite():
            raise OutOfRange(_place_of_overflow(twin, inputs))
        if total.abs() < _SMALLEST_FLOW and is_connected(model, masks, input_shape):
            raise OutOfRange(f"{total.item():.3g}")
        return _saliencies(weights, gradients(total, list(weights.values())))

    return scores


def _loss_scorer(model: nn.Module, method: str, data: tuple[Tensor, Tensor], loss_fn: LossFunction) -> Scorer:
    twin = replica(model)
    layers = prunable_layers(twin)

    def scores(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = _masked_weights(layers, masks)
        leaves = list(weights.values())
        with sdpa_kernel(SDPBackend.MATH):  # the only attention kernel with a second derivative
            value = loss(twin, data, loss_fn, leaves[0])
            if method == "snip":
                return {key: s.abs() for key, s in _saliencies(weights, gradients(value, leaves)).items()}
            slopes = gradients(value, leaves, create_graph=True)
            half_square = torch.stack([(slope * slope.detach()).sum() for slope in slopes]).sum()
            return _saliencies(weights, gradients(half_square, leaves))

    return scores


def _masked_weights(layers: Layers, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {key: weight_of(modules[0]).requires_grad_().mul_(masks[key]) for key, modules in layers.items()}


def _saliencies(weights: Mapping[str, Tensor], slopes: Sequence[Tensor]) -> dict[str, Tensor]:
    return {
        key: check_finite_scores(key, (weight * slope).detach())
        for (key, weight), slope in zip(weights.items(), slopes, strict=True)
    }


def _place_of_overflow(model: nn.Module, inputs: Tensor) -> str:
    places: list[str] = []

    def record(key: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if not output.isfinite().all():
            places.append(key)

    for key, modules in prunable_layers(model).items():
        for module in modules:
            module.register_forward_hook(partial(record, key))
    with torch.no_grad():
        flow(model, inputs.clone())
    return f"inf or nan at {places[0]!r}" if places else "inf or nan behind the last layer"


def _stored_weight(module: nn.Module) -> nn.Parameter | None:
    return module._parameters.get("weight", module._parameters.get("weight_orig"))


def _copied(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    kind = dtype if tensor.is_floating_point() else None
    values = tensor.detach().to(dtype=kind, copy=True, memory_format=torch.contiguous_format)
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


def _make_plain(module: nn.Module) -> Tensor:
    """Take out what computes the weight (pruning, weight and spectral norm, parametrizations); returns its value."""
    with torch.no_grad():
        for key, hook in list(module._forward_pre_hooks.items()):
            if "weight" in (getattr(hook, "_tensor_name", None), getattr(hook, "name", None)):
                hook(module, ())
                del module._forward_pre_hooks[key]
        weight: Any = module.weight
        if parametrize.is_parametrized(module):
            values = {
                name: getattr(module, name).detach() for name in module.get_submodule("parametrizations")._modules
            }
            # not remove_parametrizations: it changes the class, which the user's module shares
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module._modules["parametrizations"]
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    vars(module).pop("weight", None)
    return weight.detach()


def _make_scale_only(module: _BatchNorm, dtype: torch.dtype) -> None:
    variance = torch.ones((), dtype=dtype) if module.running_var is None else module.running_var
    factor = 1 / (variance + module.eps).sqrt()
    if module.weight is not None:
        factor = module.weight * factor
    if module.running_mean is not None:
        module.running_mean.zero_()
    module.forward = partial(_scaled, factor=factor)  # type: ignore[method-assign]


def _scaled(inputs: Tensor, factor: Tensor) -> Tensor:
    return inputs * factor.reshape(-1, *[1] * (inputs.dim() - 2))


def check_layers(model: nn.Module) -> Layers:
    """The layers of a module that has some, with data in them."""
    layers = prunable_layers(check_module(model))
    if not layers:
        raise invalid("model", "a module with Linear or convolutional layers", "none")
    for key, modules in layers.items():
        parameters = list(modules[0].parameters())
        if any(is_lazy(parameter) for parameter in parameters):
            raise invalid("model", "initialised (run it once)", f"a lazy layer at {key!r}")
        if any(parameter.is_meta for parameter in parameters):
            raise invalid("model", "on a device that holds data", f"{key!r} on meta")
        if not math.prod(weight_shape(modules[0])):
            raise invalid("model", "made of layers with weights", f"{key!r} of shape {weight_shape(modules[0])}")
    return layers


def check_input_shape(input_shape: Any) -> tuple[int, ...] | None:
    """A tuple of sizes, or None."""
    if input_shape is None:
        return None
    if not isinstance(input_shape, (tuple, list)):
        raise wrong_type("input_shape", "a tuple of integers or None", input_shape)
    if not input_shape:
        raise invalid("input_shape", "at least one size", "()")
    return tuple(check_int(f"input_shape[{i}]", size, 1) for i, size in enumerate(input_shape))


def check_data(data: Any) -> tuple[Tensor, Tensor] | None:
    """Two tensors with as many samples, or None."""
    if data is None:
        return None
    if not isinstance(data, (tuple, list)):
        raise wrong_type("data", "a pair (inputs, targets) of tensors", data)
    if len(data) != 2:
        raise invalid("data", "a pair (inputs, targets) of tensors", f"{len(data)} items")
    for i, part in enumerate(data):
        if not isinstance(part, Tensor):
            raise wrong_type(f"data[{i}]", "a tensor", part)
    return check_pair(*data, names=("data[0]", "data[1]"))


def check_loss_fn(loss_fn: Any) -> LossFunction:
    """A callable; None is the mean cross-entropy."""
    if loss_fn is not None and not callable(loss_fn):
        raise wrong_type("loss_fn", "callable or None", loss_fn)
    return F.cross_entropy if loss_fn is None else loss_fn


def check_masks(masks: Any, alive: dict[str, Tensor]) -> dict[str, Tensor]:
    """The given masks and what is still alive, together."""
    if masks is None:
        return alive
    if not isinstance(masks, Mapping):
        raise wrong_type("masks", "a mapping from names to tensors", masks)
    for key, mask in masks.items():
        if key not in alive:
            raise invalid("masks", f"named after the layers ({', '.join(map(repr, alive))})", key)
        if not isinstance(mask, Tensor):
            raise wrong_type(f"masks[{key!r}]", "a tensor", mask)
        if mask.shape != alive[key].shape:
            raise invalid(f"masks[{key!r}]", f"of shape {tuple(alive[key].shape)}", f"shape {tuple(mask.shape)}")
        if not ((mask == 0) | (mask == 1)).all():
            raise invalid(f"masks[{key!r}]", "0 or 1 everywhere", "other values")
    return {key: mask & (masks[key].to(mask.device) == 1) if key in masks else mask for key, mask in alive.items()}


def check_finite_scores(name: str, scores: Tensor) -> Tensor:
    """Finite scores, unchanged."""
    if not scores.isfinite().all():
        raise invalid(f"the scores of {name!r}", "finite", "nan or inf")
    return scores
