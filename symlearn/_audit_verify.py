"""Every candidate is applied with random amounts in float64: what changes the outputs is no symmetry."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from symlearn._audit_graph import Program, evaluate

Move = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Bench:
    """A float64 copy of a model, its outputs on some inputs, and how much they change when parameters are moved.

    Constant parameters and fresh running statistics are shaken first: behind a layer of zeros everything looks exact.
    ``values`` has the parameters and buffers as they were, and `restore` puts them back.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model = private_copy(model)
        self.inputs, self.kwargs = _wide(inputs), _wide(kwargs)
        self.tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        self.trainable = {name for name, tensor in self.model.named_parameters() if tensor.requires_grad}
        self.buffers = {name for name, _ in self.model.named_buffers()}
        self.values = {name: tensor.detach() for name, tensor in self.tensors.items()}
        precisions = [torch.finfo(tensor.dtype).eps for tensor in model.parameters() if tensor.is_floating_point()]
        self.resolution = max(precisions, default=torch.finfo(torch.float64).eps)
        self._shake()
        self.outputs = self.run()

    def restore(self) -> None:
        """Undo the shaking."""
        with torch.no_grad():
            for name, tensor in self.values.items():
                self.tensors[name].copy_(tensor)
        self.outputs = self.run()

    def _shake(self) -> None:
        generator = torch.Generator().manual_seed(0)
        fresh = {name for name in self.buffers if name.endswith(("running_mean", "running_var"))}
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                known = name in fresh or name not in self.buffers
                if known and tensor.is_floating_point() and bool((tensor == tensor.reshape(-1)[0]).all()):
                    self.values[name] = tensor.detach().clone()
                    noise = torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator)
                    tensor.add_(0.1 * (noise.abs() if name.endswith("running_var") else noise))

    def run(self) -> list[Tensor]:
        """The floating point outputs of the model as it is."""
        with torch.no_grad():
            given = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, self.inputs)
            return floating(self.model(*given, **self.kwargs))

    def move(self, move: Move) -> tuple[float, bool]:
        """Relative change of the outputs, and whether any parameter was moved."""
        with torch.no_grad():
            before = {name: tensor.detach() for name, tensor in self.tensors.items()}
            after = {name: tensor for name, tensor in move(before).items() if tensor is not before[name]}
            kept = {name: self.tensors[name].detach().clone() for name in after}
            moved = any(name not in self.buffers and bool((after[name] != kept[name]).any()) for name in after)
            try:
                for name, tensor in after.items():
                    self.tensors[name].copy_(tensor)
                return relative(self.outputs, self.run()), moved
            finally:
                for name, tensor in kept.items():
                    self.tensors[name].copy_(tensor)


class SmallEps:
    """The same with every eps of the traced graph made 1e8 times smaller."""

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], sites: set[str]) -> None:
        self.program, self.sites = program, sites
        self.tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self.outputs = self._run(self.tensors)

    def move(self, move: Move) -> float:
        """Relative change of the outputs; infinite where the graph cannot be evaluated."""
        return relative(self.outputs, self._run(move(self.tensors)))

    def _run(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return floating(evaluate(self.program, tensors, self.sites))


def private_copy(model: nn.Module) -> nn.Module:
    """A float64 copy on the CPU in evaluation mode, without the user's hooks."""
    # What a hook computed from parameters, such as the weight of nn.utils.weight_norm, is no leaf and has no deep copy.
    computed = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo = {id(value): value.detach().clone() for value in computed if not value.is_leaf}
    other = copy.deepcopy(model, memo).cpu().double().eval()
    for module in other.modules():
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            for key in [key for key, hook in hooks.items() if not type(hook).__module__.startswith("torch.")]:
                del hooks[key]
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
    for parameter in other.parameters():
        parameter.grad = None
    return other


def hooked(model: nn.Module) -> list[str]:
    """Modules with forward hooks of the user's: they are not called, so what they change is not seen."""
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if not type(hook).__module__.startswith("torch.")
    ]


def floating(structure: Any) -> list[Tensor]:
    """All floating point tensors of nested outputs."""
    leaves = pytree.tree_leaves(structure)
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def relative(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest change over largest value; infinite for outputs that are not finite or of another shape."""
    if len(before) != len(after) or any(one.shape != two.shape for one, two in zip(before, after, strict=True)):
        return float("inf")
    scale = max((float(part.abs().max()) for part in before if part.numel()), default=0.0)
    change = 0.0
    for one, two in zip(before, after, strict=True):
        same = one == two  # infinities at the same places are no change
        difference = torch.where(same, 0.0, (one - two).abs())
        if not bool(difference.isfinite().all()):
            return float("inf")
        change = max(change, float(difference.max()) if difference.numel() else 0.0)
    return change / scale if scale else (0.0 if change == 0 else float("inf"))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Float64 as the default, no graph, no autocast; the caller's random state, mode and default come back."""
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def _wide(structure: Any) -> Any:
    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().cpu()
        return leaf.double() if leaf.is_floating_point() else leaf.clone()

    return pytree.tree_map(convert, structure)
