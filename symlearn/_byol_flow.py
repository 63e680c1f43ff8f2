"""Integration of the reduced BYOL dynamics: many modes in one call, and the separatrix of the basin.

In amplitudes ``v = sqrt(alpha_p) w``, ``u = sqrt(alpha_p) a`` the learning-rate ratio drops out:
``v' = p (u - k p v) - eta v``, ``u' = beta (v - u)``, ``p' = v (u - k p v) - eta p``, polynomial and without division.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp

from symlearn._checks import (
    check_broadcast,
    check_finite,
    check_nonnegative,
    check_positive,
    check_real,
    check_scalar,
    check_shape,
    invalid,
)

LARGEST = 1e6  # of amplitudes and parameters: far beyond, the integration meets the range of float64
_LONGEST = 500.0


def bounded(name: str, values: np.ndarray) -> np.ndarray:
    """The values, if none is too large for the integration."""
    if (np.abs(values) > LARGEST).any():
        raise invalid(name, f"at most {LARGEST:g} in modulus", float(np.abs(values).max()))
    return values


def check_rates(
    alpha_p: float, weight_decay: float, augmentation_variance: float, ema_rate: float
) -> Iterator[tuple[str, float]]:
    """The parameters of the dynamics as (name, float)."""
    for name, value in (
        ("alpha_p", check_positive("alpha_p", alpha_p)),
        ("weight_decay", check_nonnegative("weight_decay", weight_decay)),
        ("augmentation_variance", check_nonnegative("augmentation_variance", augmentation_variance)),
    ):
        yield name, check_scalar(name, bounded(name, value))
    if alpha_p < 1 / LARGEST**2:
        raise invalid("alpha_p", f"at least {1 / LARGEST**2:g}", alpha_p)
    rate = check_real("ema_rate", ema_rate)
    if rate.ndim:
        raise invalid("ema_rate", "a single number", rate)
    if not rate > 0:
        raise invalid("ema_rate", "> 0", rate)
    yield "ema_rate", float(rate)


def check_start(p0: ArrayLike, s0: ArrayLike, tau0: float, alpha_p: float) -> tuple[np.ndarray, tuple[int, ...]]:
    """The start as states (n, 3) of v, u, p, and the shape of the modes."""
    p, s = check_broadcast(p0=check_finite("p0", p0), s0=check_nonnegative("s0", s0))
    v, ratio = math.sqrt(alpha_p) * np.sqrt(s), check_scalar("tau0", tau0)
    if (v > LARGEST).any():
        raise invalid("s0", f"at most {LARGEST**2:g} / alpha_p", float(s.max()))
    bounded("tau0", np.array(ratio))
    return np.stack([v, ratio * v, bounded("p0", p)], -1).reshape(-1, 3), p.shape


def check_times(t: ArrayLike) -> np.ndarray:
    """Strictly increasing times >= 0, at least one."""
    times = check_shape("t", t, (None,))
    if not len(times):
        raise invalid("t", "at least one time", "none")
    if times[0] < 0:
        raise invalid("t", ">= 0", float(times[0]))
    steps = np.diff(times)
    if (steps <= 0).any():
        index = int(np.argmax(steps <= 0))
        raise invalid("t", "strictly increasing", f"{times[index]:g} before {times[index + 1]:g}")
    return times


def amplitudes(
    start: np.ndarray, t: np.ndarray, *, correlation: float, weight_decay: float, ema_rate: float, rtol: float = 1e-11
) -> np.ndarray:
    """States (n, 3) of v, u, p at the times t >= 0 (T,), from a start (n, 3): an array (T, n, 3).

    One call of LSODA for all modes, whose error control is the largest relative error of any component. The Jacobian is
    a band, so that the cost is linear in n.
    """
    fast = math.isinf(ema_rate)
    size = 2 if fast else 3

    def velocity(_: float, state: np.ndarray) -> np.ndarray:
        modes = state.reshape(-1, size)
        v, u, p = modes[:, 0], modes[:, 0 if fast else 1], modes[:, -1]
        error = u - correlation * p * v
        out = np.empty_like(modes)
        out[:, 0] = p * error - weight_decay * v
        if not fast:
            out[:, 1] = ema_rate * (v - u)
        out[:, -1] = v * error - weight_decay * p
        return out.ravel()

    free = start[:, [0, 2]] if fast else start
    if t[-1] == 0 or not len(start):
        states = np.broadcast_to(free, (len(t), *free.shape))
    else:
        band = size - 1
        # Weights that fall by any factor grow again from there: only p, which crosses 0, has an absolute tolerance.
        floor = np.tile([1e-150] * band + [1e-15], len(start))
        with np.errstate(over="ignore", invalid="ignore"):
            run = solve_ivp(
                velocity,
                (0.0, t[-1]),
                free.ravel(),
                method="LSODA",
                t_eval=t,
                rtol=rtol,
                atol=floor,
                lband=band,
                uband=band,
            )
        if not run.success or not np.isfinite(run.y).all():
            raise invalid("p0, s0, t", "such that the flow can be integrated", f"a failure ({run.message})")
        states = run.y.T.reshape(len(t), len(start), size)
    return states[:, :, [0, 0, 1]] if fast else states


def log_separatrix(p: np.ndarray, *, correlation: float, weight_decay: float, unstable: float) -> np.ndarray:
    r"""Logarithm of :math:`v^2` on the stable manifold of the saddle, at the predictor values p (any order, 1-d).

    For an infinite EMA rate. The manifold is a graph over all p: along it :math:`\dot p` has no zero but the saddle,
    ``unstable``. Integrated away from the saddle, where the flow backwards in time contracts towards it. Without decay,
    for any EMA rate, it is where the conserved charge lets p be neither 0 nor 1/k.
    """
    k, decay = correlation, weight_decay
    if not decay:
        edge = np.where(p > 0, np.sqrt(np.maximum(p - 1 / k, 0) * (p + 1 / k)), -p)
        with np.errstate(divide="ignore"):
            return 2 * np.log(edge)

    def slope(p: float, y: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return (2 * p * (1 - k * p) - 2 * decay) / (np.exp(y) * (1 - k * p) - decay * p)

    growth = unstable * math.sqrt(max(0.0, 1 - 4 * decay * k))
    tangent = (2 * unstable - (growth + 2 * decay) / (1 - k * unstable)) / unstable**2
    out = np.full(p.shape, 2 * math.log(unstable))
    out += tangent * (p - unstable)
    for side in (-1.0, 1.0):
        near = side * 1e-5 * unstable
        beyond = side * (p - unstable) > abs(near)
        if beyond.any():
            targets = np.unique(p[beyond])[:: int(side)]
            begin = unstable + near
            run = solve_ivp(
                slope,
                (begin, targets[-1]),
                [2 * math.log(unstable) + tangent * near],
                method="LSODA",
                t_eval=targets,
                rtol=1e-11,
                atol=1e-12,
            )
            if not run.success or not np.isfinite(run.y).all():
                raise invalid("p0", "such that the separatrix can be integrated", f"a failure ({run.message})")
            out[beyond] = run.y[0][np.searchsorted(side * targets, side * p[beyond])]
    return out


def survives(
    start: np.ndarray, *, correlation: float, weight_decay: float, ema_rate: float, unstable: float, stable: float
) -> np.ndarray:
    """Which starts (n, 3) of v, u, p do not collapse, for positive weight decay and a finite EMA rate, as bool (n,).

    Where all three are smaller than the weight decay the flow shrinks them for ever; near the stable point it stays.
    Starts that have done neither after a long time sit next to the separatrix and count as not collapsed.
    """
    alive = np.ones(len(start), bool)
    state, open_modes = start.copy(), np.arange(len(start))
    slowest = min(weight_decay, ema_rate)
    radius = 0.1 * (stable - unstable)
    span, elapsed = 2.0 / slowest, 0.0
    while len(open_modes) and elapsed < _LONGEST / slowest:
        end = np.array([span])
        state = amplitudes(
            state, end, correlation=correlation, weight_decay=weight_decay, ema_rate=ema_rate, rtol=1e-7
        )[-1]
        elapsed, span = elapsed + span, 2 * span
        collapsed = np.abs(state).max(1) < weight_decay
        alive[open_modes[collapsed]] = False
        sign = np.where(state[:, :1] < 0, -1.0, 1.0)
        aligned = state * np.concatenate([sign, sign, np.ones_like(sign)], 1)  # (w, a) and (-w, -a) are the same
        undecided = ~collapsed & ~(np.abs(aligned - stable).max(1) < radius)
        state, open_modes = state[undecided], open_modes[undecided]
    return alive
