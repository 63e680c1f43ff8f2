"""Arguments of `symlearn.balanced_coding`: what its functions accept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from symlearn._balanced_simulation import Rates
from symlearn._checks import (
    check_choice,
    check_nonnegative,
    check_positive,
    check_real,
    check_scalar,
    invalid,
    wrong_type,
)

# Numbers beyond these would leave the range of float64 in products.
_LARGEST, SMALLEST = 1e60, 1e-60
FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"tanh": np.tanh, "linear": np.array}


def check_rates(activation: Any) -> Rates:
    if callable(activation):
        return Rates(_checked(activation), "callable")
    if not isinstance(activation, str):
        raise wrong_type("activation", "'linear', 'tanh' or a callable", activation)
    return Rates(FUNCTIONS[check_choice("activation", activation, tuple(FUNCTIONS))], activation)


def _checked(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    def rates(inputs: np.ndarray) -> np.ndarray:
        values = check_real("activation(inputs)", function(inputs))
        if values.shape != inputs.shape:
            raise invalid("activation(inputs)", f"of the shape of the inputs {inputs.shape}", f"shape {values.shape}")
        if not np.isfinite(values).all():
            raise invalid("activation(inputs)", "finite", "a number that is not")
        return values

    return rates


def check_step(dt: float, tau: float, balance: float, delay: float) -> float:
    """The time step in time constants."""
    size = float(check_positive("dt", check_scalar("dt", dt)))
    if size / tau * (1 + balance) >= 1:
        raise invalid("dt", f"< tau / (1 + balance) = {tau / (1 + balance):g}", size)
    if delay and size > delay * (1 + 1e-9):
        raise invalid("dt", f"<= delay = {delay:g}", size)
    return size / tau


def check_time_constant(tau: float) -> float:
    return float(check_size("tau", check_positive("tau", check_scalar("tau", tau))))


def check_counts(n: ArrayLike) -> np.ndarray:
    counts = check_real("n", n)
    if np.asarray(n).dtype.kind not in "iu":
        raise wrong_type("n", "integers", n if np.ndim(n) == 0 else np.asarray(n).flat[0])
    if (counts < 1).any():
        raise invalid("n", ">= 1", int(counts.min()))
    return counts


def refuse_linear_disorder(disorder: float) -> None:
    if disorder >= 1:
        raise invalid("disorder", "< 1 with linear rates (else no stationary state)", disorder)


def check_strength(name: str, value: float) -> float:
    return float(check_size(name, check_nonnegative(name, check_scalar(name, value))))


def check_size(name: str, values: Any) -> Any:
    if (largest := np.abs(values).max(initial=0)) > _LARGEST:
        raise invalid(name, f"at most {_LARGEST:g} in modulus", float(largest))
    return values
