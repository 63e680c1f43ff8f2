"""One graph of ATen operations for any model that torch can trace, and its evaluation with replaced parameters."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

EPS_FACTOR = 1e-8
# Position of eps among the arguments of an operation that normalises.
_EPS_POSITION = {"batch_norm": 7, "layer_norm": 4, "group_norm": 4, "instance_norm": 7, "rms_norm": 3}


@dataclass(frozen=True)
class Program:
    """A traced model.

    Attributes
    ----------
    graph : fx.Graph
    state : dict of str to Tensor
        What each placeholder of a parameter, buffer or constant holds, by placeholder.
    names : dict of str to str
        Placeholder to the name of its parameter or running statistic; tensors with several names have the first one.
        Other buffers are constants: nothing trains them, so no symmetry may move them.
    inputs : dict of str to Tensor
        Placeholder to what the user gave.
    tracer : str
        Which tracer it was.
    """

    graph: fx.Graph
    state: dict[str, Any]
    names: dict[str, str]
    inputs: dict[str, Any]
    tracer: str


def trace(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
    """The graph of a model in evaluation mode; whatever torch raises when it cannot be traced."""
    with _quiet():
        try:
            return _without_constants(_exported(model, inputs, kwargs), model)
        except Exception as error:  # torch raises many kinds here, and each one means the same
            first = error
        try:
            return _without_constants(_recorded(model, inputs, kwargs), model)
        except Exception as error:
            raise RuntimeError(f"{_one_line(first)}; {_one_line(error)}") from None


def evaluate(program: Program, tensors: Mapping[str, Tensor], eps_sites: set[str]) -> Any:
    """The outputs of the graph for these parameters and buffers, with every eps made 1e8 times smaller."""
    env: dict[fx.Node, Any] = {}
    last = last_uses(program.graph)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = program.names.get(node.name)
            value = tensors[name] if name is not None else program.state.get(node.name, program.inputs.get(node.name))
            env[node] = value.clone() if isinstance(value, Tensor) and name is None else value
        elif node.op == "get_attr":
            env[node] = program.state[node.name]
        elif node.op == "output":
            return fx.node.map_arg(node.args[0], env.__getitem__)
        else:
            args = list(fx.node.map_arg(node.args, env.__getitem__))
            kwargs = dict(fx.node.map_arg(node.kwargs, env.__getitem__))
            _lower_eps(node, args, kwargs, node.name in eps_sites)
            env[node] = called(node)(*args, **kwargs)
        for dead in last.get(node, ()):
            env.pop(dead, None)
    raise RuntimeError("the graph has no output")


def last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For every node those which no later node reads."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    last: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        final = max(node.users, key=order.__getitem__, default=node)
        last.setdefault(final, []).append(node)
    return last


def live(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that the output depends on, and all that change a tensor in place."""
    found: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output" or operation(node).endswith("_")]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def operation(node: fx.Node) -> str:
    """Name of an operation without its overload: "linear", "relu_", "getitem"."""
    if node.target is operator.getitem:
        return "getitem"
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet, "__name__", getattr(node.target, "__name__", node.target)))


def called(node: fx.Node) -> Callable[..., Any]:
    """The function that a node calls."""
    assert callable(node.target)
    return node.target


def _exported(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
    exported = torch.export.export(model, inputs, kwargs=kwargs or None, strict=False)
    signature = exported.graph_signature
    named = dict(signature.inputs_to_parameters) | dict(signature.inputs_to_buffers)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    first = _first_names(model)
    constants = {**exported.constants, **dict(exported.state_dict.items())}
    state: dict[str, Any] = {}
    names: dict[str, str] = {}
    for placeholder, target in named.items():
        tensor = tensors.get(target, constants.get(target))
        state[placeholder] = tensor
        if id(tensor) in first:
            names[placeholder] = first[id(tensor)]
    for placeholder, target in dict(signature.inputs_to_lifted_tensor_constants).items():
        tensor = constants[target]
        state[placeholder] = tensor
        if id(tensor) in first:
            names[placeholder] = first[id(tensor)]
    leaves = list(pytree.tree_leaves((inputs, kwargs)))
    placeholders = [node for node in exported.graph.nodes if node.op == "placeholder" and node.name not in state]
    given = dict(zip((node.name for node in placeholders), leaves, strict=True))
    for node in exported.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
            raise RuntimeError(f"it contains {node.target}")
        if node.op == "get_attr":
            state[node.name] = _attribute(exported.graph_module, str(node.target))
    return Program(exported.graph, state, names, given, "torch.export")


def _recorded(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
    first = _first_names(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors = {name: tensor for name, tensor in tensors.items() if name in first.values()}
    keys = list(tensors)
    leaves, structure = pytree.tree_flatten((inputs, kwargs))

    def run(*flat: Any) -> Any:
        args, keywords = pytree.tree_unflatten(list(flat[len(keys) :]), structure)
        return functional_call(model, dict(zip(keys, flat, strict=False)), args, keywords)

    tracer = make_fx(run, pre_dispatch=True, tracing_mode="real", _error_on_data_dependent_ops=False)
    module = tracer(*tensors.values(), *leaves)
    placeholders = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    names = dict(zip(placeholders, keys, strict=False))
    state: dict[str, Any] = {placeholder: tensors[name] for placeholder, name in names.items()}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            state[node.name] = _attribute(module, str(node.target))
    given = dict(zip(placeholders[len(keys) :], leaves, strict=True))
    return Program(module.graph, state, names, given, "make_fx, the path taken by these inputs")


def _without_constants(program: Program, model: nn.Module) -> Program:
    """The program with names for parameters and running statistics only."""
    statistics = {node.name for norm in program.graph.nodes for node in _statistics(norm)}
    trained = {name for name, _ in model.named_parameters()}
    names = {
        place: name
        for place, name in program.names.items()
        if name in trained or place in statistics or name.endswith(("running_mean", "running_var"))
    }
    return replace(program, names=names)


def _statistics(node: fx.Node) -> list[fx.Node]:
    if node.op != "call_function" or operation(node) not in ("batch_norm", "instance_norm"):
        return []
    return [arg for arg in node.args[3:5] if isinstance(arg, fx.Node)]


def _first_names(model: nn.Module) -> dict[int, str]:
    """Identity of each parameter and buffer to its name; a tensor with several names keeps the first."""
    return {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    if isinstance(value, nn.Module):
        raise RuntimeError(f"it contains the subgraph {path}")
    return value


def _lower_eps(node: fx.Node, args: list[Any], kwargs: dict[str, Any], is_site: bool) -> None:
    name = operation(node)
    place = _EPS_POSITION.get(name)
    if place is not None:
        if len(args) > place:
            args[place] = EPS_FACTOR * (args[place] if args[place] is not None else 1e-16)
        elif "eps" in kwargs:
            kwargs["eps"] = EPS_FACTOR * (kwargs["eps"] if kwargs["eps"] is not None else 1e-16)
        elif name != "rms_norm":
            kwargs["eps"] = EPS_FACTOR * 1e-5
    elif is_site:
        for position, arg in enumerate(args):
            if isinstance(arg, float):
                args[position] = EPS_FACTOR * arg


@contextmanager
def _quiet() -> Iterator[None]:
    """No fused attention, no warnings and no log lines while tracing."""
    fast = torch.backends.mha.get_fastpath_enabled()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            stack.enter_context(torch.no_grad())
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(fast)


def _one_line(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text[:120]}"
