"""Translations: parameters whose common shift along one axis every layer norm that follows removes.

One run of the graph follows what each writer (linear layer, convolution, embedding, bias, raw parameter) adds to. A
writer stays as long as only sums, movements and layer norms over exactly its units read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from symlearn._audit_graph import Program, called, last_uses, live, operation
from symlearn._audit_rules import _MOVE, _SAME, _has_floats, _numbers, _values, _wrapped
from symlearn._audit_tags import Source, Value, squeezed


@dataclass
class Shifted(Value):
    """A value, the place of each entry among the units that are shifted together, and who wrote it."""

    place: Tensor | None = None
    writers: frozenset[tuple[str, tuple[int, ...]]] = field(default_factory=frozenset)


def translations(program: Program) -> dict[str, tuple[int, ...]]:
    """Parameter to the axes along which a shift by a constant changes nothing."""
    run = _Run(program)
    run.go()
    found: dict[str, tuple[int, ...]] = {}
    for name, axes in run.written.items():
        if name not in run.dead and len(axes) == 1:
            found[name] = next(iter(axes))
    return found


class _Run:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.dead: set[str] = set()
        self.written: dict[str, set[tuple[int, ...]]] = {}
        self.env: dict[fx.Node, Any] = {}
        self.live = live(program.graph)

    def go(self) -> None:
        last = last_uses(self.program.graph)
        with torch.no_grad():
            for node in self.program.graph.nodes:
                if node.op == "output":
                    self.kill(*_values(fx.node.map_arg(node.args, self.env.__getitem__)))
                    return
                self.env[node] = self._given(node) if node.op != "call_function" else self._called(node)
                for dead in last.get(node, ()):
                    self.env.pop(dead, None)

    def kill(self, *values: Any) -> None:
        for value in values:
            if isinstance(value, Shifted):
                self.dead |= {name for name, _ in value.writers}
                if value.source is not None:
                    self.dead.add(value.source.name)

    def _given(self, node: fx.Node) -> Any:
        program = self.program
        name = program.names.get(node.name)
        value = program.state[node.name] if node.name in program.state else program.inputs.get(node.name)
        if not isinstance(value, Tensor):
            return value
        return Shifted(value if name else value.clone(), source=Source(name) if name else None)

    def _called(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.env.__getitem__)
        name = operation(node)
        values = _values((args, kwargs))
        changes = name.endswith("_") and not name.startswith("_") and bool(values)
        if changes:
            name = name[:-1]
            if values[0].source is not None:
                values[0].x = values[0].x.clone()
            self.kill(values[0])
        out = called(node)(*_numbers(args), **_numbers(kwargs))
        try:
            result = self._followed(node, name, list(args), dict(kwargs), values, out)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
            self.kill(*values)  # arguments that no rule expects
            result = _shifted(out)
        if changes and isinstance(node.args[0], fx.Node):
            self.env[node.args[0]] = result
        return result

    def _followed(self, node: fx.Node, name: str, args: list, kwargs: dict, values: list, out: Any) -> Any:
        if name == "getitem":
            return args[0][args[1]]
        if node not in self.live:  # it only looks, as an assertion does
            return _shifted(out)
        if not any(value.writers or value.source is not None for value in values) or not _has_floats(out):
            self.kill(*values)
            return _shifted(out)
        if name in ("linear", "conv1d", "conv2d", "conv3d"):
            self.kill(args[0])
            full = name == "linear" or (len(args) < 7 or args[6] == 1)
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            axis = out.ndim - 1 if name == "linear" else out.ndim - args[1].x.ndim + 1
            n = out.shape[axis]
            return self._written(out, axis, n, [(args[1], (0,)) if full else (None, ()), (bias, (0,))], args[1])
        if name == "addmm":
            self.kill(args[1])
            return self._written(out, 1, out.shape[1], [(args[2], (1,)), (args[0], (0,))], None)
        if name == "embedding":
            return self._written(out, out.ndim - 1, out.shape[-1], [(args[0], (1,))], None)
        if name == "layer_norm":
            return self._normalised(args, kwargs, out)
        if name in ("softmax", "log_softmax") and self._covers(args[0], [args[1] % out.ndim]):
            return Shifted(out)
        if name in ("add", "sub") and isinstance(args[0], Value) and isinstance(args[1], Value):
            return self._sum(args[:2], out)
        if name in ("mul", "div") and isinstance(args[0], Value) and isinstance(args[1], int | float):
            return self._copied(args[0], out)
        if name in _SAME:
            return self._copied(args[0], out)
        if name in ("cat", "concat") and all(isinstance(value, Shifted) for value in args[0]):
            return self._sum(args[0], out, along=(args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim)
        if name in _MOVE and isinstance(args[0], Shifted) and len(values) == 1:
            return self._moved(node, name, args, kwargs, out)
        self.kill(*values)
        return _shifted(out)

    def _copied(self, value: Any, out: Tensor) -> Shifted:
        if value.source is not None:
            self.kill(value)
            return Shifted(out)
        return Shifted(out, place=value.place, writers=value.writers)

    def _written(self, out: Any, axis: int, n: int, given: list, other: Any) -> Shifted:
        writers = set()
        for value, axes in given:
            if isinstance(value, Shifted):
                if value.source is not None and value.source.index is None and not value.writers:
                    writers.add((value.source.name, axes))
                    self.written.setdefault(value.source.name, set()).add(axes)
                else:
                    self.kill(value)
        if isinstance(other, Shifted) and not any(value is other for value, _ in given):
            self.kill(other)
        place = torch.arange(n).reshape([-1 if position == axis else 1 for position in range(out.ndim)])
        return Shifted(out, place=place, writers=frozenset(writers))

    def _normalised(self, args: list, kwargs: dict, out: Tensor) -> Shifted:
        x, shape = args[:2]
        if not self._covers(x, range(out.ndim - len(shape), out.ndim)):
            self.kill(x)
        weight = args[2] if len(args) > 2 else kwargs.get("weight")
        bias = args[3] if len(args) > 3 else kwargs.get("bias")
        self.kill(weight)
        if len(shape) != 1:
            self.kill(bias)
            return Shifted(out)
        return self._written(out, out.ndim - 1, out.shape[-1], [(bias, (0,))], None)

    def _covers(self, x: Any, axes: Iterable[int]) -> bool:
        """Whether the units that are shifted together lie exactly along these axes."""
        if x.place is None or x.source is not None:
            return False
        sizes = [x.x.shape[axis] if axis in set(axes) else 1 for axis in range(x.x.ndim)]
        return list(x.place.shape) == sizes and len(x.place.unique()) == x.place.numel()

    def _sum(self, operands: list, out: Tensor, along: int | None = None) -> Shifted:
        """A sum, or a concatenation along an axis: the same units in all operands, along another axis."""
        place = next((value.place for value in operands if value.place is not None), None)
        axis = out.ndim - 1
        if place is not None:
            axis = out.ndim - place.ndim + next((a for a in range(place.ndim) if place.shape[a] > 1), place.ndim - 1)
        writers: set[tuple[str, tuple[int, ...]]] = set()
        if axis == along:
            self.kill(*operands)
            return Shifted(out)
        for value in operands:
            if value.source is not None:
                own = axis - (out.ndim - value.x.ndim)
                if value.source.index is not None or own < 0 or value.x.shape[own] != out.shape[axis]:
                    self.kill(value)
                else:
                    writers.add((value.source.name, (own,)))
                    self.written.setdefault(value.source.name, set()).add((own,))
            elif value.place is not None and place is not None and not _same(value.place, place):
                self.kill(*operands)
            writers |= value.writers
        if place is None:
            place = torch.arange(out.shape[axis])
        return Shifted(out, place=_padded(place, out.ndim), writers=frozenset(writers))

    def _moved(self, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> Any:
        value = args[0]
        whole_parameter = value.source is not None and value.source.index is None
        if whole_parameter and name in ("expand", "expand_as") and out.ndim == value.x.ndim:
            return Shifted(out, source=value.source)
        if value.place is None or value.source is not None:
            self.kill(value)
            return _shifted(out)
        whole = value.place.expand(value.x.shape)
        if name in ("view", "_unsafe_view"):
            moved = whole.reshape(_numbers(args[1]))
        else:
            moved = called(node)(whole, *_numbers(args[1:]), **_numbers(kwargs))
        if isinstance(out, Tensor):
            return Shifted(out, place=squeezed(moved), writers=value.writers)
        return [Shifted(x, place=squeezed(place), writers=value.writers) for x, place in zip(out, moved, strict=True)]


def _padded(place: Tensor, ndim: int) -> Tensor:
    return place.reshape((1,) * (ndim - place.ndim) + tuple(place.shape))


def _same(one: Tensor, other: Tensor) -> bool:
    ndim = max(one.ndim, other.ndim)
    return torch.equal(_padded(one, ndim), _padded(other, ndim))


def _shifted(out: Any) -> Any:
    wrapped = _wrapped(out, None)
    if isinstance(wrapped, Value):
        return Shifted(wrapped.x)
    if isinstance(wrapped, list):
        return [Shifted(part.x) if isinstance(part, Value) else part for part in wrapped]
    return wrapped
