"""Rules for operations with parameters of their own: products, convolutions, norms, attention and recurrent cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from symlearn._audit_tags import Source, Value, compact, squeezed

Rule = Callable[..., Any]


def _linear(run: Any, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> Tensor | None:
    x, weight = args[:2]
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    letters = _letters(x.x.ndim - 1)
    rows = "o" if weight.x.ndim == 2 else ""
    tag = _multiplied(run, node, x, letters + "i", weight, rows + "i", letters + rows)
    return _with_bias(run, node, tag, bias, out)


def _addmm(run: Any, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> Tensor | None:
    bias, x, weight = args[:3]
    return _with_bias(run, node, _multiplied(run, node, x, "mk", weight, "kn", "mn"), bias, out)


def _matmul(run: Any, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> Tensor | None:
    first, second = args[:2]
    letters = _letters(max(first.x.ndim, second.x.ndim, 2) - 2)
    one = (letters[len(letters) - (first.x.ndim - 2) :] if first.x.ndim > 1 else "") + (
        "mk" if first.x.ndim > 1 else "k"
    )
    two = (letters[len(letters) - (second.x.ndim - 2) :] if second.x.ndim > 1 else "") + (
        "kn" if second.x.ndim > 1 else "k"
    )
    result = letters + ("m" if first.x.ndim > 1 else "") + ("n" if second.x.ndim > 1 else "")
    return _multiplied(run, node, first, one, second, two, result)


def _einsum(run: Any, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> Any:
    equation, operands = args[0].replace(" ", ""), args[1]
    left, _, result = equation.partition("->")
    terms = left.split(",")
    simple = "->" in equation and "." not in equation and all(len(set(term)) == len(term) for term in terms)
    if len(operands) == 2 and simple:
        return _multiplied(run, node, operands[0], terms[0], operands[1], terms[1], result)
    return run.unknown(node, name, operands)


def _multiplied(run: Any, node: fx.Node, a: Value, la: str, b: Value, lb: str, result: str) -> Tensor | None:
    """A product of two tensors with named axes, one of which may be a parameter."""
    if _is_parameter(b):
        return _by_parameter(run, node, a, la, b, lb, result)
    if _is_parameter(a):
        return _by_parameter(run, node, b, lb, a, la, result)
    return contracted(run, node.name, a.tag, la, b.tag, lb, result)


def _by_parameter(run: Any, node: fx.Node, x: Value, lx: str, weight: Value, lw: str, result: str) -> Tensor | None:
    ledger = run.ledger
    lw = "".join(
        letter if weight.x.shape[axis] > 1 or letter not in lx or x.x.shape[lx.index(letter)] == 1 else letter.upper()
        for axis, letter in enumerate(lw)
    )
    shared = [letter for letter in lw if letter in lx]
    batch = [letter for letter in shared if letter in result]
    tag = ledger.raw(x, node.name)
    given = None if tag is None else ledger.kept(tag, [lx.index(letter) for letter in shared])
    sizes = dict(zip(lw, weight.x.shape, strict=True))
    fresh = ledger.new(*(sizes[letter] if letter in lw else 1 for letter in result))
    in_weight, out_weight = _aligned(given, lx, lw), _aligned(fresh, result, lw)
    ledger.label(node.name, "in", in_weight, _fibres(lw, batch, sizes))
    ledger.label(node.name, "out", out_weight, _fibres(lw, batch, sizes))
    use_weight(ledger, _source(weight), node.name, out_weight, in_weight)
    return fresh


def use_weight(ledger: Any, source: Source, node: str, outgoing: Tensor | None, incoming: Tensor | None) -> None:
    """A weight reads from some units and writes into others; with weight normalisation the gain does the writing."""
    if not source.gain:
        ledger.use(source, node, ("out", 1, outgoing), ("in", -1, incoming))
        return
    gain = Source(source.gain)
    shape = ledger.shapes[source.name]
    if ledger.mode in ("permutation", "heads"):
        ledger.use(source, node, ("out", 1, outgoing), ("in", -1, incoming))
        ledger.use(gain, node, ("gain", 1, outgoing))
        return
    rows = ledger.new(shape[0], *(1 for _ in shape[1:]))
    ledger.bend(rows, incoming, outgoing)
    if ledger.mode == "scale":
        merged = None if incoming is None else ledger.merged(incoming, range(incoming.ndim))
        ledger.use(source, node, ("row", 1, rows))
        ledger.use(gain, node, ("gain", 1, outgoing), ("in", -1, merged))
    else:
        ledger.use(source, node, ("row", 1, rows), ("in", -1, incoming))
        ledger.use(gain, node, ("gain", 1, outgoing), ("row", -1, rows))


def contracted(run: Any, node: str, a: Tensor | None, la: str, b: Tensor | None, lb: str, result: str) -> Tensor | None:
    """The tag of a product of two tensors without parameters, axes by letter."""
    ledger, mode = run.ledger, run.mode
    if a is None and b is None:
        return None
    letters = result + "".join(dict.fromkeys(letter for letter in la + lb if letter not in result))
    summed = [letters.index(letter) for letter in letters if letter not in result]
    batch = [letter for letter in la if letter in lb and letter in result]
    a, b = _aligned(a, la, letters), _aligned(b, lb, letters)
    given = [tag for tag in (a, b) if tag is not None]
    sizes = {letter: max(tag.shape[place] for tag in given) for place, letter in enumerate(letters)}
    fibres = _fibres(letters, batch, sizes)
    if a is None or b is None:
        tag = given[0]
        if mode == "permutation" and any(tag.shape[axis] > 1 for axis in summed):
            ledger.fix(tag)
            return None
        ledger.label(node, "right" if a is None else "left", tag, fibres)
        return _dropped(ledger.merged(tag, summed), len(result))
    if mode == "heads":
        kept = [letters.index(letter) for letter in batch]
        first, second = ledger.kept(a, kept), ledger.kept(b, kept)
        ledger.equal(first, second)
        ledger.label(node, "head", first)
        return _dropped(first, len(result))
    if mode == "permutation":
        kept = [*summed, *(letters.index(letter) for letter in batch)]
        first, second = ledger.kept(a, kept), ledger.kept(b, kept)
        ledger.equal(first, second)
        ledger.label(node, "inner", first, fibres)
        if not any(first.shape[axis] > 1 for axis in summed):
            ledger.fix(first)
        return None
    ledger.label(node, "left", a, fibres)
    ledger.label(node, "right", b, fibres)
    shape = torch.broadcast_shapes(a.shape, b.shape)
    fresh = ledger.new(*(1 if axis in summed else size for axis, size in enumerate(shape)))
    ledger.row([(a, 1), (b, 1), (fresh, -1)])
    return _dropped(fresh, len(result))


def _attention(run: Any, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> Tensor | None:
    query, key, value = args[:3]
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    if isinstance(mask, Value):
        run.ledger.hold(mask, node.name)
    tags = [run.ledger.raw(given, node.name) for given in (query, key, value)]
    batch = _letters(query.x.ndim - 2)
    if query.x.ndim > 3 and query.x.shape[-3] != key.x.shape[-3]:
        times = query.x.shape[-3] // key.x.shape[-3]
        tags[1:] = [tag if tag is None or tag.shape[-3] == 1 else tag.repeat_interleave(times, -3) for tag in tags[1:]]
    scores = contracted(run, f"{node.name}.scores", tags[0], batch + "md", tags[1], batch + "kd", batch + "mk")
    if scores is not None and run.mode in ("scale", "sign"):
        run.ledger.fix(scores)
    if run.mode != "heads":
        scores = None
    return contracted(run, f"{node.name}.values", scores, batch + "mk", tags[2], batch + "kd", batch + "md")


def _convolution(run: Any, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> Any:
    x, weight = args[:2]
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    transposed = args[6] if name == "convolution" else "transpose" in name
    groups = args[8] if name == "convolution" else args[6] if len(args) > 6 else kwargs.get("groups", 1)
    if not _is_parameter(weight):
        return run.unknown(node, name, [value for value in (x, weight, bias) if value is not None])
    ledger, n_axes = run.ledger, weight.x.ndim - 2
    tag = ledger.raw(x, node.name)
    channel = x.x.ndim - n_axes - 1
    n_in, n_out = x.x.shape[channel], out.shape[channel]
    given = None if tag is None else _channels(ledger.kept(tag, [channel]).expand(_only(x.x.ndim, channel, n_in)))
    depthwise = n_in == n_out == groups and run.mode in ("permutation", "heads")
    fresh = ledger.new(n_out) if not depthwise else torch.zeros(n_out).long() if given is None else given
    tail = (1,) * n_axes
    if transposed:
        of_in = None if given is None else given.reshape(n_in, 1, *tail)
        of_out = fresh.reshape(groups, 1, -1).expand(groups, n_in // groups, -1).reshape(n_in, -1, *tail)
    else:
        of_in = None
        if given is not None:
            of_in = given.reshape(groups, 1, -1).expand(groups, n_out // groups, -1).reshape(n_out, -1, *tail)
        of_out = fresh.reshape(n_out, 1, *tail)
    if not depthwise:
        ledger.label(node.name, "in", given, torch.arange(n_in) // (n_in // groups))
        ledger.label(node.name, "out", fresh, torch.arange(n_out) // (n_out // groups))
    use_weight(ledger, weight.source, node.name, of_out, None if depthwise else of_in)
    return _with_bias(run, node, fresh.reshape(_only(out.ndim, channel, n_out)), bias, out)


def _embedding(run: Any, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> Any:
    weight, _indices = args[:2]
    if not _is_parameter(weight):
        tag = weight.tag
        if tag is None or tag.shape[0] > 1 or name != "embedding":
            return run.unknown(node, name, [weight])
        return tag[0].expand(out.shape)
    fresh = run.ledger.new(1, weight.x.shape[1])
    run.ledger.label(node.name, "out", fresh)
    run.ledger.use(weight.source, node.name, ("out", 1, fresh))
    if isinstance(out, Tensor):
        return fresh.reshape(_only(out.ndim, -1, fresh.numel()))
    return [fresh, *[None] * (len(out) - 1)]


def _weight_norm(run: Any, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> Any:
    direction, gain = args[:2]
    axis = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    whole = all(_is_parameter(value) and value.source.index is None for value in (direction, gain))
    if not whole or axis != 0 or not isinstance(out, Tensor):
        return run.unknown(node, name, [direction, gain])
    return Value(out, source=Source(direction.source.name, None, gain.source.name))


def _cosine(run: Any, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> None:
    ledger, axis = run.ledger, args[2] if len(args) > 2 else kwargs.get("dim", 1)
    first, second = (ledger.raw(value, node.name) for value in args[:2])
    ledger.bend(first, second)
    if run.mode == "scale":
        ledger.merged(first, [axis])
        ledger.merged(second, [axis])
        return
    ledger.equal(first, second)
    ledger.label(node.name, "inner", first)


def _prelu(run: Any, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> Tensor | None:
    x, weight = args[:2]
    tag = run.ledger.raw(x, node.name)
    if tag is None or not _is_parameter(weight):
        return run.unknown(node, name, [x, weight])
    channel = 1 if x.x.ndim > 1 else 0
    part = None
    if run.mode in ("permutation", "heads") and weight.x.numel() > 1:
        tag = run.ledger.kept(tag, [channel])
        part = _channels(tag.expand(_only(x.x.ndim, channel, weight.x.numel())))
    run.ledger.use(weight.source, node.name, ("slope", 1, part))
    run.ledger.bend(tag)
    if run.mode == "sign":
        run.ledger.fix(tag)
    return tag


def norm_rule(name: str) -> Rule | None:
    """The rule of a normalisation by its name."""
    return {
        "layer_norm": _layer_norm,
        "rms_norm": _rms_norm,
        "batch_norm": _batch_norm,
        "instance_norm": _batch_norm,
        "group_norm": _group_norm,
    }.get(name)


def _layer_norm(run: Any, node: fx.Node, args: list, kwargs: dict) -> Tensor | None:
    x, shape = args[:2]
    weight = args[2] if len(args) > 2 else kwargs.get("weight")
    bias = args[3] if len(args) > 3 else kwargs.get("bias")
    return _normalised(run, node, x, [-1 - axis for axis in range(len(shape))], weight, bias, centred=True)


def _rms_norm(run: Any, node: fx.Node, args: list, kwargs: dict) -> Tensor | None:
    x, shape = args[:2]
    weight = args[2] if len(args) > 2 else kwargs.get("weight")
    return _normalised(run, node, x, [-1 - axis for axis in range(len(shape))], weight, None, centred=False)


def _normalised(
    run: Any, node: fx.Node, x: Value, axes: Sequence[int], weight: Value | None, bias: Value | None, *, centred: bool
) -> Tensor | None:
    ledger, mode, ndim = run.ledger, run.mode, x.x.ndim
    tag = ledger.raw(x, node.name)
    inner = [axis % ndim for axis in axes]
    affine = [value for value in (weight, bias) if value is not None]
    if not all(_is_parameter(value) for value in affine):
        return run.unknown(node, "norm with computed gain", [x, *affine])
    if mode in ("permutation", "heads"):
        if tag is None:
            for value in affine:
                ledger.use(value.source, node.name, ("gain", 1, None))
            return None
        tag = compact(tag)
        spread = any(size > 1 for axis, size in enumerate(tag.shape) if axis not in inner)
        if mode == "permutation" or not spread:
            kept = ledger.kept(tag, inner) if affine else tag
            for value in affine:
                ledger.use(value.source, node.name, ("gain", 1, kept.reshape(kept.shape[-len(axes) :])))
        fibre = torch.arange(tag[tuple(slice(1) if a in inner else slice(None) for a in range(ndim))].numel())
        fibre = fibre.reshape([1 if axis in inner else size for axis, size in enumerate(tag.shape)])
        ledger.label(node.name, "norm", tag, fibre)
        return tag
    ledger.bend(tag)
    common = tag if mode == "sign" and not centred else ledger.merged(tag, axes)
    if weight is None:
        if bias is not None:
            ledger.use(bias.source, node.name, ("gain", 1, None))
        return common if mode == "sign" else None
    fresh = ledger.new(*weight.x.shape)
    ledger.bend(fresh)
    parts = [("gain", 1, fresh)]
    if mode == "sign" and common is not None:
        kept = ledger.kept(common, inner)
        parts.append(("in", -1, kept.reshape(kept.shape[-len(axes) :])))
    ledger.use(weight.source, node.name, *parts)
    if bias is not None:
        ledger.use(bias.source, node.name, ("gain", 1, fresh))
    return fresh.reshape((1,) * (ndim - len(axes)) + tuple(fresh.shape))


def _batch_norm(run: Any, node: fx.Node, args: list, kwargs: dict) -> Tensor | None:
    x, weight, bias, mean, variance, training = args[:6]
    return _by_channel(run, node, x, weight, bias, 1, statistics=None if training else (mean, variance))


def _group_norm(run: Any, node: fx.Node, args: list, kwargs: dict) -> Tensor | None:
    x, groups = args[:2]
    weight = args[2] if len(args) > 2 else kwargs.get("weight")
    bias = args[3] if len(args) > 3 else kwargs.get("bias")
    return _by_channel(run, node, x, weight, bias, x.x.shape[1] // groups, statistics=None)


def _by_channel(
    run: Any, node: fx.Node, x: Value, weight: Any, bias: Any, size: int, *, statistics: tuple[Any, Any] | None
) -> Tensor | None:
    ledger, mode, n = run.ledger, run.mode, x.x.shape[1]
    affine = [value for value in (weight, bias) if value is not None]
    moments = [value for value in statistics or () if value is not None]
    if not all(_is_parameter(value) for value in affine + moments):
        return run.unknown(node, "norm with computed gain", [x, *affine, *moments])
    tag = ledger.raw(x, node.name)
    given = None if tag is None else _channels(ledger.kept(tag, [1]).expand(_only(x.x.ndim, 1, n)))
    shape = _only(x.x.ndim, 1, n)
    if mode in ("permutation", "heads"):
        for value in affine + moments:
            ledger.use(value.source, node.name, ("gain", 1, given))
        if size > 1:
            ledger.label(node.name, "norm", given, torch.arange(n) // size)
        return None if given is None else given.reshape(shape)
    ledger.bend(given)
    if given is not None and size > 1:
        given = ledger.merged(given.reshape(-1, size), [1]).expand(-1, size).reshape(-1)
    for value, exponent in zip(moments, (1, 2) if mode == "scale" else (1, 0), strict=False):
        ledger.use(value.source, node.name, ("moment", exponent, given))
    if weight is None:
        if bias is not None:
            ledger.use(bias.source, node.name, ("gain", 1, None))
        return given.reshape(shape) if mode == "sign" and given is not None and bias is None else None
    fresh = ledger.new(n)
    ledger.bend(fresh)
    ledger.use(weight.source, node.name, ("gain", 1, fresh), *([("in", -1, given)] if mode == "sign" else []))
    if bias is not None:
        ledger.use(bias.source, node.name, ("gain", 1, fresh))
    return fresh.reshape(shape)


def _recurrent(run: Any, node: fx.Node, name: str, args: list, kwargs: dict, out: Any) -> Any:
    """LSTM, GRU and plain recurrent layers and cells: hidden units change sign and place, a ReLU's also scale."""
    kind, cell = name.removesuffix("_cell"), name.endswith("_cell")
    x = args[0]
    states = args[1] if isinstance(args[1], list | tuple) else [args[1]]
    if cell:
        weights, has_bias, layers, two_way = (
            [value for value in args[2:6] if value is not None],
            len(args) > 4,
            1,
            False,
        )
    else:
        weights, has_bias, layers, two_way = list(args[2]), args[3], args[4], args[7]
    per_layer = (4 if has_bias else 2) * (2 if two_way else 1)
    plain = all(_is_parameter(weight) for weight in weights) and len(weights) == layers * per_layer
    if not plain or not isinstance(args[1], list | tuple | Value):
        return run.unknown(node, name, [x, *states, *weights])
    ledger = run.ledger
    tag = ledger.raw(x, node.name)
    given = None if tag is None else _channels(ledger.kept(tag, [-1]).expand(_only(x.x.ndim, -1, x.x.shape[-1])))
    finals: list[Tensor] = []
    for layer in range(layers):
        outputs: list[Tensor] = []
        for direction in range(2 if two_way else 1):
            place = layer * per_layer + direction * (4 if has_bias else 2)
            outputs.append(_direction(run, node, kind, weights[place : place + (4 if has_bias else 2)], given))
        finals += outputs
        given = after = torch.cat(outputs)
    for state in states:
        if state.literal and not bool((state.x != 0).any()):
            continue
        before = ledger.kept(ledger.raw(state, node.name), [-1])
        for units in finals:
            ledger.equal(units, None if before is None or len(finals) > 1 else before.reshape(-1))
    if cell:
        tags = [finals[0].reshape(_only(part.ndim, -1, len(finals[0]))) for part in _listed(out)]
        return tags if isinstance(out, list | tuple) else tags[0]
    hidden = torch.stack(finals).unsqueeze(1) if out[1].ndim == 3 else torch.stack(finals)
    return [after.reshape(_only(out[0].ndim, -1, len(after))), *[hidden] * (len(out) - 1)]


def _direction(run: Any, node: fx.Node, kind: str, weights: Sequence[Value], given: Tensor | None) -> Tensor:
    ledger, mode = run.ledger, run.mode
    n = weights[1].x.shape[1]
    units = ledger.new(n)
    gates = weights[0].x.shape[0] // n
    carries = {"lstm": [2], "gru": [2]}.get(kind, [0])  # the gates that carry the sign of the unit
    if mode in ("permutation", "heads"):
        carries = list(range(gates))
    if mode == "scale" and kind != "rnn_relu":
        ledger.fix(units)
    ledger.bend(units, given)
    rows = torch.cat([units if gate in carries else torch.zeros(n).long() for gate in range(gates)])
    name = f"{node.name}.{_source(weights[0]).name}"
    ledger.label(name, "in", given)
    ledger.label(name, "out", units)
    column = None if given is None else given.reshape(1, -1)
    ledger.use(weights[0].source, node.name, ("out", 1, rows.reshape(-1, 1)), ("in", -1, column))
    ledger.use(weights[1].source, node.name, ("out", 1, rows.reshape(-1, 1)), ("in", -1, units.reshape(1, -1)))
    for bias in weights[2:]:
        ledger.use(bias.source, node.name, ("out", 1, rows))
    return units


def _with_bias(run: Any, node: fx.Node, tag: Tensor | None, bias: Any, out: Tensor) -> Tensor | None:
    if not isinstance(bias, Value):
        return tag
    if not _is_parameter(bias) or bias.x.ndim != 1 or tag is None:
        return run.joined(node, [bias, Value(out, tag)], out)
    units = squeezed(tag)
    channel = next((axis for axis in range(units.ndim) if units.shape[axis] == bias.x.shape[0]), None)
    if channel is None or units.numel() != bias.x.shape[0]:
        return run.joined(node, [bias, Value(out, tag)], out)
    run.ledger.use(bias.source, node.name, ("bias", 1, units.reshape(-1)))
    return tag


def _is_parameter(value: Any) -> bool:
    return isinstance(value, Value) and value.source is not None and value.tag is None


def _source(value: Value) -> Source:
    assert value.source is not None
    return value.source


def _aligned(tag: Tensor | None, letters: str, wanted: str) -> Tensor | None:
    """The axes of a tag in another order, with axes of size 1 for the letters that it lacks."""
    if tag is None:
        return None
    present = [letter for letter in wanted if letter in letters]
    lost = [letter for letter in letters if letter not in wanted]
    tag = tag.permute([letters.index(letter) for letter in present + lost])
    for _ in lost:
        tag = tag[..., 0]
    shape, sizes = [], iter(tag.shape)
    for letter in wanted:
        shape.append(next(sizes) if letter in letters else 1)
    return tag.reshape(shape)


def _fibres(letters: str, batch: Sequence[str], sizes: dict[str, int]) -> Tensor:
    shape = [sizes[letter] if letter in batch else 1 for letter in letters]
    return torch.arange(math.prod(shape)).reshape(shape)


def _dropped(tag: Tensor, n_axes: int) -> Tensor:
    """The first axes of a tag; the others have size 1."""
    return tag.reshape(tag.shape[:n_axes])


def _channels(tag: Tensor) -> Tensor:
    return tag.reshape(-1)


def _only(ndim: int, axis: int, size: int) -> tuple[int, ...]:
    return tuple(size if place == axis % ndim else 1 for place in range(ndim))


def _letters(n: int) -> str:
    return "abcefghpqrst"[:n]


def _listed(out: Any) -> list:
    return list(out) if isinstance(out, list | tuple) else [out]


LAYERS: dict[str, Rule] = (
    {
        "linear": _linear,
        "addmm": _addmm,
        "matmul": _matmul,
        "mm": _matmul,
        "bmm": _matmul,
        "mv": _matmul,
        "dot": _matmul,
        "einsum": _einsum,
        "scaled_dot_product_attention": _attention,
        "embedding": _embedding,
        "embedding_bag": _embedding,
        "_weight_norm": _weight_norm,
        "cosine_similarity": _cosine,
        "prelu": _prelu,
    }
    | dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        _convolution,
    )
    | {f"{kind}{suffix}": _recurrent for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") for suffix in ("", "_cell")}
)
