"""Argument validation: the one place where the text of an error about an argument is made.

Every message reads "<argument> must be <condition>, got <value>". Bad values and shapes raise ``ValueError``,
wrong types ``TypeError``; a bool is not an int. Each check returns its value converted. Needs no torch: tensors are
recognised by their module.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def invalid(name: str, condition: str, got: Any) -> ValueError:
    """The error for a value that breaks a condition; ``got`` may be a string that already says it in words."""
    return ValueError(f"{name} must be {condition}, got {got if isinstance(got, str) else _describe(got)}")


def wrong_type(name: str, expected: str, value: Any) -> TypeError:
    """The error for a value of the wrong type."""
    return TypeError(f"{name} must be {expected}, got {type(value).__name__}")


def wrong_dtype(name: str, expected: str, array: Any) -> TypeError:
    """The error for an array or a tensor of the wrong dtype."""
    return TypeError(f"{name} must be {expected}, got dtype {array.dtype}")


def check_real(name: str, value: ArrayLike) -> np.ndarray:
    """Any real numbers, as a float64 array; NaN and infinities pass."""
    try:
        array = _tensor_to_array(value) if _is_tensor(value) else np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        raise wrong_type(name, "an array of real numbers", value) from None
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be real numbers, got {_dtype_or_type(value, array)}")
    return array.astype(np.float64)


def check_finite(name: str, value: ArrayLike) -> np.ndarray:
    """Finite real numbers, as a float64 array."""
    array = check_real(name, value)
    _require(name, array, np.isfinite(array), "finite")
    return array


def check_positive(name: str, value: ArrayLike) -> np.ndarray:
    """Finite numbers > 0, as a float64 array."""
    array = check_finite(name, value)
    _require(name, array, array > 0, "> 0")
    return array


def check_nonnegative(name: str, value: ArrayLike) -> np.ndarray:
    """Finite numbers >= 0, as a float64 array."""
    array = check_finite(name, value)
    _require(name, array, array >= 0, ">= 0")
    return array


def check_scalar(name: str, value: ArrayLike) -> float:
    """One finite real number, as a float."""
    array = check_finite(name, value)
    if array.ndim:
        raise invalid(name, "a single number", f"shape {array.shape}")
    return float(array)


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """An integer in [low, high], as an int."""
    if isinstance(value, (bool, np.bool_)) or str(getattr(value, "dtype", "")) == "torch.bool":
        raise wrong_type(name, "an integer", value)
    try:
        number = operator.index(value)
    except TypeError:
        raise wrong_type(name, "an integer", value) from None
    if number < low or (high is not None and number > high):
        raise invalid(name, f">= {low}" if high is None else f"between {low} and {high}", number)
    return number


def check_bool(name: str, value: Any) -> bool:
    """True or False, as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise wrong_type(name, "True or False", value)
    return bool(value)


def check_str(name: str, value: Any) -> str:
    """A string, unchanged."""
    if not isinstance(value, str):
        raise wrong_type(name, "a string", value)
    return value


def check_fraction(name: str, value: ArrayLike) -> float:
    """A number in [0, 1)."""
    number = check_scalar(name, value)
    if not 0 <= number < 1:
        raise invalid(name, "in [0, 1)", number)
    return number


def check_broadcast(**arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays in their common shape."""
    try:
        return list(np.broadcast_arrays(*arrays.values()))
    except ValueError:
        shapes = ", ".join(f"{array.shape}" for array in arrays.values())
        raise invalid(", ".join(arrays), "of shapes that broadcast", f"shapes {shapes}") from None


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """One of the given words."""
    if not isinstance(value, str):
        raise wrong_type(name, f"one of {_words(choices)}", value)
    if value not in choices:
        raise invalid(name, f"one of {_words(choices)}", repr(value))
    return value


def check_shape(name: str, array: Any, shape: Sequence[int | None]) -> np.ndarray:
    """Finite real numbers of the given shape (None: any length), as a float64 array."""
    values = check_finite(name, array)
    if values.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, values.shape, strict=True)):
        wanted = ", ".join("n" if size is None else str(size) for size in shape)
        raise invalid(name, f"of shape ({wanted}{',' if len(shape) == 1 else ''})", f"shape {values.shape}")
    return values


def check_square(name: str, array: Any) -> np.ndarray:
    """A finite, non-empty square matrix, as a float64 array."""
    values = check_shape(name, array, (None, None))
    if values.shape[0] != values.shape[1] or not values.size:
        raise invalid(name, "a square matrix", f"shape {values.shape}")
    return values


def check_symmetric(name: str, array: Any, rtol: float = 1e-8) -> np.ndarray:
    """A finite symmetric matrix, up to ``rtol`` times its largest entry, as a float64 array."""
    values = check_square(name, array)
    asymmetry = float(np.abs(values - values.T).max())
    if asymmetry > rtol * float(np.abs(values).max()):
        raise invalid(name, "symmetric", f"an asymmetry of {asymmetry:.3g}")
    return values


def check_params(params: Any, names: Collection[str]) -> Mapping[str, Any]:
    """A mapping from parameter names to tensors that has all the given names."""
    if not isinstance(params, Mapping):
        raise wrong_type("params", "a dict of tensors", params)
    for name in names:
        if name not in params:
            raise invalid("params", f"a dict with the name {name!r}", _words(params) or "no names")
        if not _is_tensor(params[name]):
            raise wrong_type(f"params[{name!r}]", "a tensor", params[name])
    return params


def check_pair(inputs: Any, targets: Any, *, names: tuple[str, str] = ("inputs", "targets")) -> tuple[Any, Any]:
    """Two non-empty tensors or arrays with the same number of samples on axis 0, unchanged."""
    for name, value in zip(names, (inputs, targets), strict=True):
        if not hasattr(value, "shape"):
            raise wrong_type(name, "a tensor or an array", value)
        if len(value.shape) == 0 or value.shape[0] == 0:
            raise invalid(name, "of at least one sample", f"shape {tuple(value.shape)}")
    if len(inputs) != len(targets):
        raise invalid(names[1], f"as long as {names[0]} ({len(inputs)})", f"length {len(targets)}")
    return inputs, targets


def check_samples(name: str, value: Any) -> Any:
    """A tensor of at least one sample on axis 0, unchanged."""
    if not _is_tensor(value):
        raise wrong_type(name, "a tensor", value)
    if value.ndim == 0 or len(value) == 0:
        raise invalid(name, "of at least one sample", f"shape {tuple(value.shape)}")
    return value


def check_generator(generator: Any) -> Any:
    """A ``torch.Generator`` or None, unchanged."""
    if generator is not None and not (_is_torch(generator) and type(generator).__name__ == "Generator"):
        raise wrong_type("generator", "a torch.Generator or None", generator)
    return generator


def check_rng(rng: Any) -> np.random.Generator:
    """An int seed, a ``numpy.random.Generator`` or None, as a Generator."""
    if rng is None or isinstance(rng, np.random.Generator):
        return np.random.default_rng(rng)
    if isinstance(rng, (bool, np.bool_)) or not isinstance(rng, (int, np.integer)):
        raise wrong_type("rng", "an int, a numpy Generator or None", rng)
    return np.random.default_rng(check_int("rng", rng, 0))


def check_module(model: Any, name: str = "model") -> Any:
    """A ``torch.nn.Module``, unchanged."""
    from torch import nn

    if not isinstance(model, nn.Module):
        raise wrong_type(name, "a torch.nn.Module", model)
    return model


def _require(name: str, array: np.ndarray, good: np.ndarray, condition: str) -> None:
    if not good.all():
        index = tuple(int(i) for i in np.argwhere(~good)[0])
        value = _describe(array[index])
        raise invalid(name, condition, f"{value} at index {index[0] if len(index) == 1 else index}" if index else value)


def _describe(value: Any) -> str:
    if hasattr(value, "shape") and value.shape != ():
        return f"shape {tuple(value.shape)}"
    if isinstance(value, (np.generic, np.ndarray)) or (_is_tensor(value) and value.numel() == 1):
        value = value.item()
    if isinstance(value, float) and float(f"{value:g}") == value:  # not where rounding would hide the fault
        return f"{value:g}"
    return repr(value)


def _dtype_or_type(value: Any, array: np.ndarray) -> str:
    return f"dtype {array.dtype}" if hasattr(value, "dtype") else type(value).__name__


def _words(words: Collection[str]) -> str:
    return ", ".join(sorted(map(repr, words)))


def _tensor_to_array(tensor: Any) -> np.ndarray:
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy(force=True)


def _is_torch(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "torch"


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "numel")
