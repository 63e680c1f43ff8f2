"""Learning rules on one network: a chain of torch layers whose backward pass may use weights of its own.

A layer with feedback computes ``f(z.detach(), W) + f(z - z.detach(), F)``: the value and the gradient of ``W`` are
those of the layer, and the gradient of ``z`` passes through ``F``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from symlearn._checks import check_generator, invalid, wrong_type

RULES = ("sgd_momentum", "adam", "feedback_alignment", "information_alignment")
WITH_FEEDBACK = RULES[2:]


@dataclass(frozen=True, eq=False)
class RuleState:
    """Where a network stands under a learning rule; made by ``rule.init`` and ``rule.step``, never changed.

    Attributes
    ----------
    params : dict of str to Tensor
        Parameters by the model's own names.
    feedback : dict of str to Tensor
        By the name of a weight, a tensor of its shape: the errors pass down through it. Empty for rules without.
    n_steps : int
        Steps made.
    """

    params: dict[str, Tensor]
    feedback: dict[str, Tensor]
    n_steps: int = 0
    _moments: dict[str, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)
    _buffers: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _network: nn.Sequential = field(default_factory=nn.Sequential, repr=False)

    def network(self) -> nn.Sequential:
        """A copy of the model with these parameters."""
        model = copy.deepcopy(self._network)
        model.load_state_dict({**self.params, **self._buffers}, strict=False)
        return model


@dataclass(frozen=True)
class Rule:
    """One of the four rules with its hyperparameters."""

    name: str
    lr: float
    momentum: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    feedback_lr: float
    amplify: float
    decay: float
    null: float

    @torch.no_grad()
    def init(self, model: nn.Sequential, generator: torch.Generator | None = None) -> RuleState:
        """The state before the first step; feedback is normal with variance one over the fan-out.

        Parameters
        ----------
        model : nn.Sequential
            A chain of layers, nested or not; it is copied.
        generator : torch.Generator, optional
            Source of the feedback; torch's global one by default.

        Returns
        -------
        RuleState
        """
        layers = chain(model)
        check_generator(generator)
        network = copy.deepcopy(model)
        params = {name: value.detach().clone() for name, value in network.named_parameters()}
        buffers = {name: value.detach().clone() for name, value in network.named_buffers()}
        feedback = {}
        if self.name in WITH_FEEDBACK:
            for name, layer in [each for each in layers if has_feedback(each[1])][1:]:
                weight = layer.weight
                fan_out = weight.shape[0] * math.prod(weight.shape[2:])
                noise = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=weight.dtype)
                feedback[f"{name}.weight"] = noise / math.sqrt(fan_out)
        return RuleState(params, feedback, 0, {}, buffers, network)

    def step(self, state: RuleState, x: Tensor, y: Tensor) -> tuple[RuleState, float]:
        """One update on a batch.

        Parameters
        ----------
        state : RuleState
            Of a rule of the same name; it is not changed.
        x : Tensor, shape (batch, ...)
            Inputs, converted to the dtype and the device of the parameters.
        y : Tensor of int, shape (batch,)
            Labels.

        Returns
        -------
        state : RuleState
            After the step.
        loss : float
            Mean cross-entropy of the batch before the step.
        """
        inputs, labels = _check_batch(self, state, x, y)
        with torch.enable_grad():
            weights = {name: value.detach().clone().requires_grad_() for name, value in state.params.items()}
            buffers = {name: value.clone() for name, value in state._buffers.items()}
            logits, seen = _forward(state, weights, buffers, inputs)
            loss = F.cross_entropy(logits, _check_labels(logits, labels, inputs))
            slopes = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(value) if slope is None else slope
            for (name, value), slope in zip(weights.items(), slopes, strict=True)
        }
        with torch.no_grad():
            params, moments = self._descend(state, gradients)
        feedback = state.feedback
        if self.name == "information_alignment":
            feedback = {name: self._align(state, name, *seen[name]) for name in feedback}
        return RuleState(params, feedback, state.n_steps + 1, moments, buffers, state._network), float(loss.detach())

    def _descend(
        self, state: RuleState, gradients: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, ...]]]:
        """Parameters and moments after the optimizer's step, with torch's conventions."""
        update = self._adam if self.name == "adam" else self._momentum
        params, moments = {}, {}
        for name, value in state.params.items():
            gradient = gradients[name] + self.weight_decay * value
            step, moments[name] = update(gradient, state._moments.get(name), state.n_steps + 1)
            params[name] = value - self.lr * step
        return params, moments

    def _momentum(
        self, gradient: Tensor, old: tuple[Tensor, ...] | None, count: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        velocity = gradient if old is None else self.momentum * old[0] + gradient
        return velocity, (velocity,)

    def _adam(self, gradient: Tensor, old: tuple[Tensor, ...] | None, count: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        first, second = old if old is not None else (torch.zeros_like(gradient), torch.zeros_like(gradient))
        beta1, beta2 = self.betas
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        size = (second / (1 - beta2**count)).sqrt() + self.eps
        return first / (1 - beta1**count) / size, (first, second)

    def _align(self, state: RuleState, name: str, layer: Any, arriving: Tensor) -> Tensor:
        """Feedback after amplify, decay and null, with means over the batch (and over positions of a convolution)."""
        apply, old = bare(layer), state.feedback[name]
        weight = state.params[name]
        with torch.enable_grad():
            source = arriving.detach().requires_grad_()
            leaf = old.detach().clone().requires_grad_()
            response = apply(source.detach(), weight)
            (returned,) = torch.autograd.grad(apply(source, old), source, response)
            driven = apply(self.amplify * source.detach() - self.null * returned, leaf)
            (change,) = torch.autograd.grad(driven, leaf, response)
        patterns = response.numel() // weight.shape[0]
        return old + self.feedback_lr * (change / patterns - self.decay * old)


def chain(model: Any) -> list[tuple[str, Any]]:
    """Names and layers of a Sequential, those of nested ones in place, refused where errors could take another way."""
    if not isinstance(model, nn.Sequential):
        raise wrong_type("model", "a torch.nn.Sequential", model)
    layers = list(_leaves(model, ""))
    if not any(has_feedback(layer) for _, layer in layers):
        raise invalid("model", "a chain with at least one Linear or Conv2d layer", "none")
    modules = [id(layer) for _, layer in layers if any(True for _ in layer.parameters())]
    tensors = [id(value) for _, layer in layers for value in layer.parameters()]
    if len(set(modules)) < len(modules) or len(set(tensors)) < len(tensors):
        raise invalid("model", "a chain of layers with weights of their own", "shared weights")
    for name, layer in layers:
        described = f"{type(layer).__name__} at {name!r}"
        if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
            raise invalid("model", "without dropout in training mode", described)
        if any(isinstance(value, nn.UninitializedParameter) for value in layer.parameters()):
            raise invalid("model", "initialised", f"lazy {described}")
        if has_feedback(layer):
            if "weight" not in layer._parameters:
                raise invalid("model", "of plain weights", f"a parametrized {described}")
            if not layer.weight.is_floating_point():
                raise invalid("model", "of real floating-point weights", described)
        elif any(has_feedback(inner) for inner in layer.modules()):
            raise invalid("model", "a chain of layers", f"{described}, with layers inside")
    return layers


def has_feedback(layer: Any) -> bool:
    """Whether errors pass down through a matrix of this layer."""
    return isinstance(layer, (nn.Linear, nn.Conv2d))


def bare(layer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The layer as a function of its input and its weight, without bias."""
    if isinstance(layer, nn.Linear):
        return F.linear
    return lambda inputs, weight: layer._conv_forward(inputs, weight, None)


def _leaves(model: nn.Sequential, prefix: str) -> Any:
    for name, layer in model._modules.items():  # named_children leaves out what comes again
        if isinstance(layer, nn.Sequential):
            yield from _leaves(layer, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", layer


def _forward(
    state: RuleState, weights: Mapping[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor
) -> tuple[Tensor, dict[str, tuple[Any, Tensor]]]:
    """Logits, and each feedback layer with its input."""
    values, seen = inputs, {}
    for name, layer in _leaves(state._network, ""):
        weight = f"{name}.weight"
        try:
            if weight in state.feedback:
                seen[weight] = (layer, values)
                still, apply = values.detach(), bare(layer)
                values = _with_bias(layer, apply(still, weights[weight]), weights.get(f"{name}.bias"))
                values = values + apply(seen[weight][1] - still, state.feedback[weight])
            else:
                inside = {key[len(name) + 1 :]: value for key, value in _own(name, weights, buffers).items()}
                values = functional_call(layer, inside, (values,))
        except (RuntimeError, ValueError) as error:
            shape = f"shape {tuple(inputs.shape)} ({error})"
            raise invalid("x", "a batch that the model accepts", shape) from error
    return values, seen


def _own(name: str, *sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for source in sources for key, value in source.items() if key.startswith(f"{name}.")}


def _with_bias(layer: Any, values: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return values
    return values + (bias if isinstance(layer, nn.Linear) else bias[:, None, None])


def _check_batch(rule: Rule, state: Any, x: Any, y: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(state, RuleState):
        raise wrong_type("state", "a RuleState", state)
    if bool(state.feedback) and rule.name not in WITH_FEEDBACK:
        raise invalid("state", f"one that {rule.name!r} has made", "one with feedback")
    if not isinstance(x, Tensor):
        raise wrong_type("x", "a tensor", x)
    if x.ndim < 2 or x.numel() == 0:
        raise invalid("x", "of shape (batch, ...) with at least one sample", f"shape {tuple(x.shape)}")
    if x.is_complex() or not bool(x.isfinite().all()):
        raise invalid("x", "finite real numbers", "complex numbers" if x.is_complex() else "inf or nan")
    if not isinstance(y, Tensor):
        raise wrong_type("y", "a tensor of integers", y)
    if y.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"y must be a tensor of integers, got dtype {y.dtype}")
    if tuple(y.shape) != (len(x),):
        raise invalid("y", f"of shape ({len(x)},)", f"shape {tuple(y.shape)}")
    reference = next(iter(state.params.values()))
    return x.detach().to(reference.device, reference.dtype), y.to(reference.device, torch.int64)


def _check_labels(logits: Tensor, y: Tensor, x: Tensor) -> Tensor:
    if logits.ndim != 2:
        raise invalid("model", "one with outputs of shape (batch, classes)", f"shape {tuple(logits.shape)}")
    if int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        raise invalid("y", f"labels in [0, {logits.shape[1]})", f"{int(y.min())} to {int(y.max())}")
    return y
