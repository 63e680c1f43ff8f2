"""How every operation relates the units that go in to those that come out, for scalings, signs and permutations.

One pass runs the graph on numbers and on tags side by side. Operations that only move numbers are run on the tags
themselves; only arithmetic needs the rules of this module, and those of ``symlearn._audit_layers`` for products with
parameters. What no rule knows is held fixed and named as a barrier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from symlearn._audit_graph import Program, called, last_uses, live, operation
from symlearn._audit_layers import LAYERS, norm_rule
from symlearn._audit_tags import Ledger, Source, Value, compact, squeezed

EPS = 1e-2  # constants up to this size are taken for a guard against division by zero
_SAME = {
    "alias",
    "clone",
    "contiguous",
    "detach",
    "dropout",
    "alpha_dropout",
    "feature_dropout",
    "feature_alpha_dropout",
    "lift_fresh",
    "lift_fresh_copy",
    "_to_copy",
    "to",
    "type_as",
    "positive",
    "real",
    "conj",
    "resolve_conj",
    "requires_grad",
}
_MOVE = {
    "view",
    "_unsafe_view",
    "reshape",
    "permute",
    "transpose",
    "t",
    "numpy_T",
    "mT",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "expand",
    "expand_as",
    "broadcast_to",
    "slice",
    "select",
    "split",
    "split_with_sizes",
    "chunk",
    "unsafe_chunk",
    "unsafe_split",
    "tensor_split",
    "unbind",
    "narrow",
    "squeeze",
    "unsqueeze",
    "flatten",
    "unflatten",
    "cat",
    "concat",
    "stack",
    "hstack",
    "vstack",
    "repeat",
    "repeat_interleave",
    "tile",
    "flip",
    "roll",
    "index_select",
    "gather",
    "index",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "constant_pad_nd",
    "pad",
    "reflection_pad1d",
    "reflection_pad2d",
    "replication_pad1d",
    "replication_pad2d",
    "tril",
    "triu",
    "diagonal",
    "unfold",
    "im2col",
    "view_as",
}
_ADD = {"add", "sub", "rsub", "maximum", "minimum", "max", "min"}
_MULTIPLY = {"mul", "div", "multiply", "divide", "true_divide"}
# Functions of one number that torch does not mark as such.
_POINTWISE = {"hardswish", "hardsigmoid", "hardtanh", "relu6", "log_sigmoid", "selu", "celu", "mish", "softsign"}
_REDUCE = {"mean": 1, "sum": 1, "amax": 1, "amin": 1, "linalg_vector_norm": 1, "norm": 1, "std": 1, "var": 2}
_SOFTMAX = {"softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax", "softmin"}
_FREE = {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "size", "sym_size"}


@dataclass(frozen=True)
class Shape:
    """What a function of one number does when its argument is scaled or changes sign."""

    degree: float | None
    parity: int  # 1 even, -1 odd, 0 neither
    linear: bool
    passes: bool  # zero at zero: homogeneous to first order


class Pass:
    """One run of the graph in one mode. ``shapes`` remembers measured functions from one pass to the next."""

    def __init__(self, program: Program, mode: str, shapes: dict[str, Shape]) -> None:
        self.program, self.mode, self.measured = program, mode, shapes
        tensors = {name: program.state[place] for place, name in program.names.items()}
        self.ledger = Ledger(mode, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        self.env: dict[fx.Node, Any] = {}
        self.live = live(program.graph)

    def run(self) -> Ledger:
        """Fill the ledger."""
        last = last_uses(self.program.graph)
        with torch.no_grad():
            for node in self.program.graph.nodes:
                if node.op == "output":
                    for value in _values(fx.node.map_arg(node.args, self.env.__getitem__)):
                        self.ledger.hold(value, node.name)
                    break
                self.env[node] = self._given(node) if node.op != "call_function" else self._called(node)
                for dead in last.get(node, ()):
                    self.env.pop(dead, None)
        return self.ledger

    def _given(self, node: fx.Node) -> Any:
        program = self.program
        if node.name in program.names:
            name = program.names[node.name]
            return Value(program.state[node.name], source=Source(name))
        if node.op == "get_attr" or node.name in program.state:
            value = program.state[node.name]
            return Value(value.clone(), literal=True) if isinstance(value, Tensor) else value
        value = program.inputs[node.name]
        return Value(value.clone()) if isinstance(value, Tensor) else value

    def _called(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.env.__getitem__)
        name = operation(node)
        values = _values((args, kwargs))
        changes = name.endswith("_") and not name.startswith("_") and bool(values)
        if changes:
            name = name[:-1]
            values[0].x = values[0].x.clone() if values[0].source is not None else values[0].x
            self._hold_aliases(node, values[0])
        out = called(node)(*_numbers(args), **_numbers(kwargs))
        try:
            result = self._tagged(node, name, list(args), dict(kwargs), values, out)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError):
            # Arguments that no rule expects: as honest as an operation without a rule.
            result = _wrapped(out, self.unknown(node, name, values))
        if changes and isinstance(node.args[0], fx.Node):
            self.env[node.args[0]] = result
        return result

    def _hold_aliases(self, node: fx.Node, changed: Value) -> None:
        place = changed.x.untyped_storage().data_ptr()
        for other in _values(list(self.env.values())):
            if other is not changed and isinstance(other.x, Tensor) and other.x.untyped_storage().data_ptr() == place:
                for value in (other, changed):
                    self.ledger.hold(value, node.name)
                    value.tag = None

    def _tagged(self, node: fx.Node, name: str, args: list, kwargs: dict, values: list[Value], out: Any) -> Any:
        tagged = any(value.tag is not None or value.source is not None for value in values)
        if name in _FREE:
            return _wrapped(out, None, literal=True)
        if not tagged or node not in self.live:
            return _wrapped(out, None, literal=all(value.literal for value in values))
        if not _has_floats(out):
            tag = self._compared(node, name, args, values, out)
            return _wrapped(out, tag)
        if name in _SAME:
            value = values[0]
            return Value(out, value.tag, value.source if value.x.shape == out.shape else None)
        if name == "getitem":
            return args[0][args[1]]
        if name in _MOVE:
            return self._moved(node, name, args, kwargs, out)
        if name in LAYERS:
            return _wrapped(out, LAYERS[name](self, node, name, args, kwargs, out))
        if name.endswith("_norm") and (rule := norm_rule(name)) is not None:
            return _wrapped(out, rule(self, node, args, kwargs))
        return _wrapped(out, self._arithmetic(node, name, args, kwargs, values, out))

    def _arithmetic(self, node: fx.Node, name: str, args: list, kwargs: dict, values: list[Value], out: Any) -> Any:
        if name in ("max", "min") and len(args) > 1 and isinstance(args[1], int) and len(out) == 2:
            return [self._reduced(node, "a" + name, args, kwargs, out[0]), None]
        if name in _REDUCE:
            return self._reduced(node, name, args, kwargs, out)
        if name in _SOFTMAX:
            return self._softmax(node, args)
        if "pool" in name or name.startswith(("upsample", "_upsample")):
            return self._pooled(node, name, args, out)
        if name == "cumsum":
            return self.ledger.merged(self.ledger.raw(args[0], node.name), [args[1]])
        if name in ("masked_fill", "where"):
            return self._chosen(node, name, args, out)
        if name == "glu":
            return self._gated(node, args, kwargs)
        if isinstance(out, Tensor) and isinstance(args[0], Value | int | float):
            if name in _ADD and len(args) >= 2 and (name not in ("max", "min") or isinstance(args[1], Value)):
                return self._sum(node, args, out)
            if name in _MULTIPLY and isinstance(args[0], Value):
                if (parameter := _times_constant(name, args, kwargs, out)) is not None:
                    return self._masked(node, parameter, args, out)
                return self._product(node, name, args, kwargs, out)
            if len(values) == 1 and (name in _POINTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ())):
                return self._function(node, name, args, kwargs, values[0])
        return self.unknown(node, name, values)

    def unknown(self, node: fx.Node, name: str, values: Sequence[Value]) -> Any:
        """Nothing is known: everything that it reads is held fixed, and so is the result."""
        self.ledger.barriers[name] = None
        for value in values:
            self.ledger.hold(value, node.name)
        return None

    def uniform(self, value: Any, tag: Tensor) -> bool:
        """Whether a constant is the same for all units of a tag."""
        x = value.x if isinstance(value, Value) else torch.as_tensor(value)
        for axis in range(1, x.ndim + 1):
            varies = axis <= tag.ndim and tag.shape[-axis] > 1 and x.shape[-axis] > 1
            if varies and not bool((x == x.narrow(-axis, 0, 1)).all()):
                return False
        return True

    def joined(self, node: fx.Node, operands: Sequence[Any], out: Any) -> Tensor | None:
        """The tag of a sum: equal units in all operands, and in permutations constants that are equal for all units."""
        tags = [self._operand(node, operand) for operand in operands]
        present = [tag for tag in tags if tag is not None]
        if not present:
            return None
        shape = tuple(out.shape)
        if self.mode in ("permutation", "heads"):
            present, tags = self._without_single(present, tags)
        whole = present[0] if len(present) == 1 else _first_unit(present)
        for operand, tag in zip(operands, tags, strict=True):
            if tag is not None:
                self.ledger.equal(whole, tag)
            elif (self.mode == "permutation" and not self.uniform(operand, whole)) or self.mode in ("scale", "sign"):
                self.ledger.fix(whole)
        return whole.reshape((1,) * (len(shape) - whole.ndim) + tuple(whole.shape))

    def _without_single(self, present: list[Tensor], tags: list[Tensor | None]) -> tuple[list[Tensor], list]:
        """Without a single unit that meets all units of another operand: it stays in its place."""
        if all(tag.numel() == 1 for tag in present):
            return present, tags
        kept: list[Tensor | None] = []
        for tag in tags:
            single = tag is not None and tag.numel() == 1
            if single and self.mode == "permutation":
                self.ledger.fix(tag)
            kept.append(torch.full((), -1) if single else tag)
        return [tag for tag in present if tag.numel() > 1], kept

    def _operand(self, node: fx.Node, operand: Any) -> Tensor | None:
        if not isinstance(operand, Value):
            return torch.full((), -1) if operand == 0 and self.mode in ("scale", "sign") else None
        if operand.tag is None and operand.source is None and operand.literal and self.mode in ("scale", "sign"):
            return squeezed(torch.where(operand.x == 0, -1, 0)) if bool((operand.x == 0).any()) else None
        return self.ledger.raw(operand, node.name)

    def _sum(self, node: fx.Node, args: list, out: Tensor) -> Tensor | None:
        constants = [arg for arg in args[:2] if not isinstance(arg, Value) and arg != 0]
        if constants and self.mode == "scale":
            value = next(arg for arg in args[:2] if isinstance(arg, Value))
            tag = self.ledger.raw(value, node.name)
            self.ledger.relax(node.name, "eps" if abs(constants[0]) <= EPS else "function", tag)
            self.ledger.bend(tag)
            return tag
        if constants and self.mode != "sign":
            return self.ledger.raw(next(arg for arg in args[:2] if isinstance(arg, Value)), node.name)
        if operation(node).startswith(("max", "min")):
            tag = self.joined(node, args[:2], out)
            self.ledger.bend(tag)
            if self.mode == "sign":
                self.ledger.fix(tag)
            return tag
        return self.joined(node, args[:2], out)

    def _product(self, node: fx.Node, name: str, args: list, kwargs: dict, out: Tensor) -> Tensor | None:
        if kwargs.get("rounding_mode") is not None:
            return self.unknown(node, name, _values(args))
        if self.mode in ("permutation", "heads"):
            return self.joined(node, args[:2], out)
        first, second = (self._factor(node, arg) for arg in args[:2])
        if first is not None and second is not None:
            self.ledger.bend(first, second)
        elif (known := first if second is None else second) is not None:
            other = args[1] if second is None else args[0]
            if not self.uniform(other, known):
                self.ledger.bend(known)
        sign = -1 if name in ("div", "divide", "true_divide") else 1
        tag = self.ledger.combined([(first, 1), (second, sign)])
        return None if tag is None else tag.reshape((1,) * (out.ndim - tag.ndim) + tuple(tag.shape))

    def _masked(self, node: fx.Node, parameter: Value, args: list, out: Tensor) -> Value | None:
        """A parameter times a constant: it scales as it did; a mask holds its entries in their places."""
        other = args[1] if args[0] is parameter else args[0]
        moves = self.mode in ("scale", "sign") or not isinstance(other, Value) or other.x.numel() == 1
        if not moves:
            self.ledger.hold(parameter, node.name)
            return None
        return Value(out, source=parameter.source)

    def _factor(self, node: fx.Node, arg: Any) -> Tensor | None:
        return self.ledger.raw(arg, node.name) if isinstance(arg, Value) else None

    def _function(self, node: fx.Node, name: str, args: list, kwargs: dict, value: Value) -> Tensor | None:
        tag = self.ledger.raw(value, node.name)
        if tag is None or self.mode in ("permutation", "heads"):
            return tag
        shape = self.shape_of(node, args, kwargs)
        if self.mode == "sign":
            if shape.parity == 0:
                self.ledger.fix(tag)
            return tag if shape.parity == -1 else None
        if not shape.linear:
            self.ledger.bend(tag)
        if shape.degree is not None:
            return self.ledger.combined([(tag, shape.degree)]) if shape.degree else None
        if not shape.passes:
            self.ledger.fix(tag)
            return None
        bounds = [arg for arg in args[1:] if isinstance(arg, int | float)]
        kind = "eps" if name.startswith("clamp") and bounds and max(map(abs, bounds)) <= EPS else "function"
        self.ledger.relax(node.name, kind, tag)
        return tag

    def shape_of(self, node: fx.Node, args: list, kwargs: dict) -> Shape:
        """Degree and parity of a function, measured once."""
        if node.name not in self.measured:

            def function(x: Tensor) -> Tensor:
                given = [x if isinstance(arg, Value) else arg for arg in args]
                return called(node)(*given, **_numbers(kwargs)).double()

            self.measured[node.name] = measured_shape(function)
        return self.measured[node.name]

    def _compared(self, node: fx.Node, name: str, args: list, values: list[Value], out: Any) -> Any:
        if not isinstance(out, Tensor):
            return self.unknown(node, name, values)
        if self.mode in ("permutation", "heads"):
            if torch.Tag.pointwise in getattr(node.target, "tags", ()):
                return self.joined(node, args[:2], out)
            return self.unknown(node, name, values)
        one = len(values) == 1 and torch.Tag.pointwise in getattr(node.target, "tags", ())
        if one and self.mode == "scale" and self.shape_of(node, args, {}).degree == 0:
            self.ledger.bend(values[0].tag)
            return None
        return self.unknown(node, name, values)

    def _chosen(self, node: fx.Node, name: str, args: list, out: Tensor) -> Tensor | None:
        if name == "masked_fill":
            fill = args[2].x.item() if isinstance(args[2], Value) else args[2]
            empty = fill == 0 or not math.isfinite(fill)
            condition, arms = args[1], [args[0], 0 if empty else fill]
        else:
            condition, arms = args[0], args[1:3]
        if self.mode in ("permutation", "heads"):
            return self.joined(node, [condition, *(arm for arm in arms if isinstance(arm, Value))], out)
        if len(arms) < 2:
            return self.unknown(node, name, _values(args))
        tags = []
        for arm in arms:
            tag = self._operand(node, arm)
            tag = torch.zeros(()).long() if tag is None else tag
            tags.append(tag)
            self.ledger.bend(tag)
        if not condition.literal:
            return self.joined(node, arms, out)
        mask = condition.x if name == "where" else ~condition.x
        return squeezed(torch.where(mask, tags[0], tags[1]).expand(out.shape))

    def _gated(self, node: fx.Node, args: list, kwargs: dict) -> Tensor | None:
        tag = self.ledger.raw(args[0], node.name)
        if tag is None:
            return None
        axis = args[1] if len(args) > 1 else kwargs.get("dim", -1)
        value, gate = tag.expand(args[0].x.shape).chunk(2, axis)
        if self.mode in ("permutation", "heads"):
            self.ledger.equal(value, gate)
        else:
            self.ledger.fix(gate)
            self.ledger.bend(value)
        return squeezed(value)

    def _reduced(self, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> Tensor | None:
        tag = self.ledger.raw(args[0], node.name)
        if tag is None:
            return None
        place = 2 if name in ("linalg_vector_norm", "norm") else 1
        axes = args[place] if len(args) > place else kwargs.get("dim")
        n_axes = args[0].x.ndim
        axes = list(range(n_axes)) if axes is None or axes == [] else [axes] if isinstance(axes, int) else list(axes)
        axes = [axis % n_axes for axis in axes] if n_axes else []
        tag = compact(tag)
        varies = any(tag.shape[axis] > 1 for axis in axes)
        if not isinstance(out, Tensor):
            return self.unknown(node, name, _values(args))
        if varies and self.mode in ("permutation", "heads"):
            self.ledger.label(node.name, "sum", tag, positions(tag, axes))
            return None
        if self.mode == "sign":
            if name in ("amax", "amin"):
                self.ledger.fix(tag)
                return None
            if name in ("linalg_vector_norm", "norm"):
                return None
        if varies or name not in ("mean", "sum"):
            self.ledger.bend(tag)
        tag = self.ledger.merged(tag, axes)
        if self.mode == "sign" and name in ("std", "var"):
            return None
        tag = self.ledger.combined([(tag, _REDUCE[name])]) if self.mode == "scale" else tag
        return tag if tag is None or out.ndim == n_axes else _dropped(tag, axes)

    def _softmax(self, node: fx.Node, args: list) -> Tensor | None:
        tag = self.ledger.raw(args[0], node.name)
        if tag is None or self.mode == "heads":
            return tag
        if self.mode == "permutation":
            axis = args[1] % tag.ndim
            if tag.shape[axis] > 1:
                self.ledger.label(node.name, "sum", tag, positions(tag, [axis]))
            return tag
        self.ledger.fix(tag)
        return None

    def _pooled(self, node: fx.Node, name: str, args: list, out: Any) -> Any:
        digits = [int(character) for character in name if character in "123"]
        tag = self.ledger.raw(args[0], node.name)
        if tag is None or not digits:
            return self.unknown(node, name, _values(args))
        tag = self.ledger.merged(tag, range(-digits[0], 0))
        if "max" in name or "bicubic" in name:
            self.ledger.bend(tag)
            if self.mode == "sign" and "max" in name:
                self.ledger.fix(tag)
                tag = None
        return tag if isinstance(out, Tensor) else [tag, *[None] * (len(out) - 1)]

    def _moved(self, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> Any:
        first = args[0]
        indices = _values(args[1:]) + _values(kwargs)
        if any(value.tag is not None for value in indices) and name not in ("expand_as", "view_as"):
            return _wrapped(out, self.unknown(node, name, _values(args)))
        chosen = _chosen_axes(name, args, indices) if isinstance(first, Value) else []
        if chosen:
            tag = self.ledger.merged(self.ledger.raw(first, node.name), chosen)
            first = args[0] = Value(first.x, tag, literal=first.literal)
        if isinstance(first, Value) and first.tag is None and first.source is not None and not first.source.gain:
            source = first.source
            index = torch.arange(first.x.numel()).reshape(first.x.shape) if source.index is None else source.index
            moved = self._replayed(node, name, [index + 1, *args[1:]], kwargs)
            if all(bool((piece > 0).all()) for piece in (moved if isinstance(moved, list | tuple) else [moved])):
                return _sourced(out, moved, source.name)
        tags = []
        for value in [first] if isinstance(first, Value) else first:
            tag = self._operand(node, value)
            tag = torch.zeros(()).long() if tag is None else tag
            tags.append(tag.expand(value.x.shape) + 1)
        if name in ("constant_pad_nd", "pad") and (len(args) > 2 or "value" in kwargs):
            fill = args[-1] if "value" not in kwargs else kwargs["value"]
            if name == "pad" and len(args) > 2 and args[2] != "constant":
                fill = 0
            elif fill:
                tags = [tag.clone() for tag in tags]
                args = [*args[:2], *(["constant"] if name == "pad" else []), 1]
        moved = self._replayed(node, name, [tags[0] if isinstance(first, Value) else tags, *args[1:]], kwargs)
        if isinstance(moved, Tensor):
            return Value(out, _known(squeezed(moved - 1)))
        return [Value(x, _known(squeezed(tag - 1))) for x, tag in zip(out, moved, strict=True)]

    def _replayed(self, node: fx.Node, name: str, args: list, kwargs: dict) -> Any:
        if name in ("view", "_unsafe_view"):
            return args[0].reshape(_numbers(args[1]))
        return called(node)(*_numbers(args), **_numbers(kwargs))


def _times_constant(name: str, args: list, kwargs: dict, out: Tensor) -> Value | None:
    """The parameter in a product of one, as it is, and a constant."""
    pairs = [(args[0], args[1])] + ([(args[1], args[0])] if name in ("mul", "multiply") else [])
    for value, other in pairs if not kwargs.get("rounding_mode") else []:
        constant = other.literal if isinstance(other, Value) else isinstance(other, int | float) and other != 0
        if isinstance(value, Value) and value.source is not None and value.tag is None and constant:
            return value if value.x.shape == out.shape else None
    return None


def _first_unit(tags: Sequence[Tensor]) -> Tensor:
    """The first unit that is not a literal zero, entry by entry."""
    whole = compact(tags[0])
    for tag in tags[1:]:
        whole = torch.where(whole == -1, compact(tag), whole)
    return whole


def positions(tag: Tensor, axes: Sequence[int]) -> Tensor:
    """A number for every position along the other axes of a tag."""
    axes = [axis % tag.ndim for axis in axes]
    shape = [1 if axis in axes else size for axis, size in enumerate(tag.shape)]
    return torch.arange(math.prod(shape)).reshape(shape)


def measured_shape(function: Callable[[Tensor], Tensor]) -> Shape:
    """What a function of one number does when its argument is scaled or changes sign, from 192 points."""
    x = torch.randn(192, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    try:
        at, back, zero = function(x.clone()), function(-x), function(torch.zeros(1, dtype=torch.float64))
    except (RuntimeError, TypeError, ValueError):
        return Shape(None, 0, False, False)
    if at.shape != x.shape:
        return Shape(None, 0, False, False)
    good = at.isfinite()
    both = bool(good.all() and back.isfinite().all())
    parity = 1 if both and _close(at, back) else -1 if both and _close(at, -back) else 0
    degrees, homogeneous = [], bool(good.sum() >= 8)
    for factor in (0.5, 1.7, 3.1):
        scaled = function(factor * x)[good]
        ratio = (scaled / at[good])[at[good] != 0]
        same_zeros = bool(((scaled == 0) == (at[good] == 0)).all()) and bool(scaled.isfinite().all())
        if not same_zeros or not len(ratio) or not bool((ratio > 0).all()) or not _close(ratio, ratio.mean()):
            homogeneous = False
            break
        degrees.append(float(ratio.mean().log()) / math.log(factor))
    if homogeneous and max(degrees) - min(degrees) < 1e-9:
        degree: float | None = round(degrees[0], 9) + 0.0
    else:
        degree = None
    linear = degree == 1 and parity == -1 and _close(at / x, (at / x).mean())
    return Shape(degree, parity, linear, bool(zero.isfinite().all() and zero.abs().max() <= EPS))


def _close(first: Tensor, second: Tensor) -> bool:
    return bool(((first - second).abs() <= 1e-12 * (1 + first.abs())).all())


def _chosen_axes(name: str, args: list, indices: list[Value]) -> list[int]:
    """Axes along which the data choose: other data choose otherwise, so that nothing may vary along them."""
    if all(value.literal for value in indices):
        return []
    if name == "index":
        return [axis for axis, index in enumerate(args[1]) if index is not None]
    if name in ("index_select", "gather"):
        return [args[1]]
    return [] if name in ("expand_as", "view_as") else list(range(args[0].x.ndim))


def _known(tag: Tensor) -> Tensor | None:
    return tag if bool((tag != 0).any()) else None


def _sourced(out: Any, moved: Any, name: str) -> Any:
    if isinstance(out, Tensor):
        return Value(out, source=Source(name, moved - 1))
    return [Value(x, source=Source(name, index - 1)) for x, index in zip(out, moved, strict=True)]


def _dropped(tag: Tensor, axes: Sequence[int]) -> Tensor:
    return tag.reshape([size for axis, size in enumerate(tag.shape) if axis not in axes])


def _values(structure: Any) -> list[Value]:
    """All values in nested lists, tuples and dicts."""
    if isinstance(structure, Value):
        return [structure]
    if isinstance(structure, dict):
        structure = list(structure.values())
    if isinstance(structure, list | tuple):
        return [value for part in structure for value in _values(part)]
    return []


def _numbers(structure: Any) -> Any:
    if isinstance(structure, Value):
        return structure.x
    if isinstance(structure, dict):
        return {key: _numbers(part) for key, part in structure.items()}
    if isinstance(structure, list | tuple):
        return [_numbers(part) for part in structure]
    return structure


def _has_floats(out: Any) -> bool:
    if isinstance(out, list | tuple):
        return any(_has_floats(part) for part in out)
    return isinstance(out, Tensor) and out.is_floating_point()


def _wrapped(out: Any, tag: Any, *, literal: bool = False) -> Any:
    """Numbers and their tags as values, piece by piece."""
    if isinstance(out, Tensor):
        if isinstance(tag, Value):
            return tag
        return Value(out, tag, literal=literal)
    if isinstance(out, list | tuple):
        tags = tag if isinstance(tag, list) else [tag] * len(out)
        return [_wrapped(part, each, literal=literal) for part, each in zip(out, tags, strict=True)]
    return out
