"""What the classes of ``symlearn.symmetry`` share: checks of names, tensors and amounts, and the actions themselves.

Everything works under ``torch.func`` transforms; a check that has to look at values is skipped under ``vmap``, where
values cannot be looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from symlearn._checks import check_finite, check_params, check_str, invalid, wrong_dtype, wrong_type


def check_sides(
    incoming: str | Sequence[str], outgoing: str | Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    sides = {"incoming": check_names("incoming", incoming), "outgoing": check_names("outgoing", outgoing)}
    check_distinct(sides)
    return sides["incoming"], sides["outgoing"]


def check_names(argument: str, names: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        names = (names,)
    if not isinstance(names, Sequence):
        raise wrong_type(argument, "a name or a sequence of names", names)
    if not names:
        raise invalid(argument, "at least one name", "none")
    checked = tuple(check_str(f"{argument}[{index}]", name) for index, name in enumerate(names))
    check_distinct({argument: checked})
    return checked


def check_distinct(named: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """All names of several arguments, each of which may occur only once."""
    seen: dict[str, str] = {}
    for argument, names in named.items():
        for name in names:
            if name in seen:
                where = "twice" if seen[name] == argument else f"in {seen[name]} too"
                raise invalid(argument, "names that occur only once", f"{name!r} {where}")
            seen[name] = argument
    return tuple(seen)


def check_tensors(params: Any, names: Sequence[str], at_least_vectors: bool = False) -> None:
    """The named tensors exist, are real floating point numbers, and lie on one device."""
    check_params(params, names)
    for name in names:
        tensor = params[name]
        if not isinstance(tensor, Tensor):
            raise wrong_type(f"params[{name!r}]", "a tensor", tensor)
        if not tensor.is_floating_point():
            raise wrong_dtype(f"params[{name!r}]", "real floating point numbers", tensor)
        if at_least_vectors and tensor.ndim == 0:
            raise invalid(f"params[{name!r}]", "a vector or a matrix", "shape ()")
    devices = sorted({str(params[name].device) for name in names})
    if len(devices) > 1:
        raise invalid("params", "on one device", " and ".join(devices))


def unit_axis(tensor: Tensor, outgoing: bool) -> int:
    """Axis 0 of what writes into the units and of any vector, axis 1 of what reads from them."""
    return int(outgoing and tensor.ndim >= 2)


def check_sizes(what: str, params: Mapping[str, Tensor], axes: Mapping[str, int]) -> int:
    """The common length of the given axes; a tensor without axes has length 1."""
    sizes = {name: params[name].shape[axis] if params[name].ndim else 1 for name, axis in axes.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{size} from {name!r} of shape {tuple(params[name].shape)}" for name, size in sizes.items())
        raise invalid("params", f"of one {what}", found)
    size = next(iter(sizes.values()))
    if size == 0:
        raise invalid("params", f"of a {what} >= 1", "0")
    return size


def unit_axes(params: Mapping[str, Tensor], signs: Mapping[str, int]) -> dict[str, int]:
    check_tensors(params, tuple(signs))
    return {name: unit_axis(params[name], outgoing=sign < 0) for name, sign in signs.items()}


def check_units(params: Mapping[str, Tensor], signs: Mapping[str, int]) -> int:
    return check_sizes("number of units", params, unit_axes(params, signs))


def stretch(params: Mapping[str, Tensor], signs: Mapping[str, int], per_unit: bool, amount: Any) -> dict[str, Tensor]:
    """Each named tensor times the exponential of its sign times the amount of its unit."""
    axes = unit_axes(params, signs)
    shapes = [(), (check_sizes("number of units", params, axes),)] if per_unit else [()]
    exponent = check_amount("amount", amount, [params[name] for name in signs], shapes)
    moved = dict(params)
    for name, sign in signs.items():
        factor = finite_factor((sign * exponent).exp(), params[name])
        if factor.ndim:
            factor = factor.reshape([-1 if axis == axes[name] else 1 for axis in range(params[name].ndim)])
        moved[name] = params[name] * factor
    return moved


def signed_squares(params: Mapping[str, Tensor], signs: Mapping[str, int], per_unit: bool) -> Tensor:
    """Sum of sign times squares over all entries, or over those of each unit."""
    axes = unit_axes(params, signs)
    if per_unit:
        check_sizes("number of units", params, axes)
    terms = []
    for name, sign in signs.items():
        squares = params[name].square()
        others = [axis for axis in range(squares.ndim) if not per_unit or axis != axes[name]]
        total = squares.sum(others) if others else squares
        terms.append(sign * (total.reshape(-1) if per_unit else total))
    return functools.reduce(torch.add, terms)


def latent_axes(params: Mapping[str, Tensor], names: Sequence[str], readers: Sequence[str | None]) -> dict[str, int]:
    """The axis of each named tensor along which a latent space lies, once all agree on its dimension."""
    check_tensors(params, names, at_least_vectors=True)
    axes = {name: unit_axis(params[name], outgoing=name in readers) for name in names}
    check_sizes("inner dimension", params, axes)
    return axes


def as_blocks(tensor: Tensor, axis: int, heads: int) -> Tensor:
    """The axis first and cut into heads, the others flattened: shape (heads, d, rest)."""
    return tensor.movedim(axis, 0).reshape(heads, tensor.shape[axis] // heads, -1)


def multiplied(tensor: Tensor, axis: int, factor: Tensor, heads: int = 1) -> Tensor:
    """A number, a matrix (d, d) or one matrix per head applied from the left along an axis."""
    factor = finite_factor(factor, tensor)
    if factor.ndim == 0:
        return factor * tensor
    product = factor @ as_blocks(tensor, axis, heads)
    return product.reshape(tensor.movedim(axis, 0).shape).movedim(0, axis)


def check_amount(argument: str, value: Any, touched: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> Tensor:
    """A number or an array as a tensor, in at least single precision, where the touched tensors are."""
    dtype = functools.reduce(torch.promote_types, [tensor.dtype for tensor in touched], torch.float32)
    if not isinstance(value, Tensor):
        value = torch.from_numpy(np.array(check_finite(argument, value)))
    elif value.is_complex() or value.dtype == torch.bool:
        raise wrong_dtype(argument, "real numbers", value)
    if tuple(value.shape) not in shapes:
        allowed = " or ".join("a number" if shape == () else f"of shape {shape}" for shape in dict.fromkeys(shapes))
        raise invalid(argument, allowed, value if value.ndim else "a number")
    amount = value.to(device=touched[0].device, dtype=dtype)
    if not holds(amount.isfinite().all()):
        raise invalid(argument, "finite", "inf or nan")
    return amount


def finite_factor(factor: Tensor, like: Tensor) -> Tensor:
    """The exponential of an amount in the dtype of the tensor that it multiplies."""
    cast = factor.to(like.dtype)
    if not holds(cast.isfinite().all()):
        raise invalid("amount", f"small enough for {like.dtype}", "one whose exponential overflows")
    return cast


def wide(tensor: Tensor) -> Tensor:
    """In float64, or in float32 on devices that have nothing wider."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def holds(condition: Tensor) -> bool:
    """Whether a condition on values holds; where values cannot be looked at (``vmap``) it is taken to hold."""
    try:
        return bool(condition)
    except RuntimeError:
        return True


def check_indices(argument: str, value: Any, size: int) -> np.ndarray:
    """Distinct integers in [0, size), one or several, as an int64 array."""
    if isinstance(value, Tensor):
        value = value.numpy(force=True)
    try:
        indices = np.atleast_1d(np.asarray(value))
    except ValueError:
        raise wrong_type(argument, "a sequence of integers", value) from None
    if indices.ndim != 1 or indices.size == 0:
        raise invalid(argument, "at least one index in one dimension", f"shape {indices.shape}")
    if indices.dtype.kind not in "iu":
        raise wrong_dtype(argument, "integers", indices)
    outside = (indices < 0) | (indices >= size)
    if outside.any():
        raise invalid(argument, f"between 0 and {size - 1}", str(indices[outside][0]))
    if np.unique(indices).size != indices.size:
        raise invalid(argument, "distinct indices", "repeated ones")
    return indices.astype(np.int64)


def on_vector(
    argument: str, value: Any, size: int, function: Callable[[Tensor], Tensor], keep_dict: bool = True
) -> Tensor | np.ndarray | dict[str, Tensor]:
    """A function of vectors along the last axis, applied to an array, a tensor, or the flattened tensors of a dict."""
    if isinstance(value, Mapping):
        moved = function(_flatten(value, size))
        return _unflatten(moved, value) if keep_dict else moved
    vector = value if isinstance(value, Tensor) else torch.from_numpy(np.array(check_finite(argument, value)))
    if not vector.is_floating_point():
        raise wrong_dtype(argument, "real floating point numbers", vector)
    if vector.ndim == 0 or vector.shape[-1] != size:
        raise invalid(argument, f"of shape (..., {size})", f"shape {tuple(vector.shape)}")
    return function(vector) if isinstance(value, Tensor) else function(vector).numpy()[()]


def _flatten(params: Mapping[str, Tensor], size: int) -> Tensor:
    check_tensors(params, tuple(params))
    total = sum(tensor.numel() for tensor in params.values())
    if total != size:
        raise invalid("params", f"of {size} entries in total", str(total))
    return torch.cat([tensor.reshape(-1) for tensor in params.values()])


def _unflatten(flat: Tensor, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pieces = flat.split([tensor.numel() for tensor in params.values()])
    return {
        name: piece.reshape(tensor.shape).to(tensor.dtype)
        for (name, tensor), piece in zip(params.items(), pieces, strict=True)
    }


def relative_change(loss: Callable[[Any], Any], params: Any, transform: Callable[[], Any]) -> float:
    """``max|b - a| / max(max|a|, max|b|)`` of the loss before and after a transformation of the parameters."""
    if not callable(loss):
        raise wrong_type("loss", "a function of params", loss)
    with torch.no_grad():
        transformed = transform()
        before = _loss_values("loss(params)", loss(params))
        after = _loss_values("the loss of the transformed params", loss(transformed))
    if before.shape != after.shape:
        raise invalid("loss", f"of the same shape {before.shape} for transformed params", f"shape {after.shape}")
    scale = max(np.abs(before).max(), np.abs(after).max())
    # A power of two brings the values to order 1 without rounding, so that their difference cannot overflow.
    exponent = -np.frexp(scale)[1]
    before, after, scale = (np.ldexp(values, exponent) for values in (before, after, scale))
    return float(np.abs(after - before).max() / scale) if scale else 0.0


def _loss_values(name: str, values: ArrayLike) -> np.ndarray:
    array = check_finite(name, values)
    if not array.size:
        raise invalid(name, "at least one number", f"shape {array.shape}")
    return array
