"""The integrator of `symlearn.balanced_coding`: networks and settings side by side, in steps of a time constant.

The inputs are split exactly into h = w m + eta. Noise enters eta by the exact step of an Ornstein-Uhlenbeck process;
the drive m takes trapezoidal steps, implicit in the readout without delay, so that strong feedback leaves no bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

# Neurons, weights and delayed rates that are held at once.
_WORKING_BYTES = 128 * 2**20
_Inputs = Generator[np.ndarray, np.ndarray, None]


@dataclass(frozen=True, eq=False)
class Rates:
    """A rate nonlinearity and how the readout's slope follows from it."""

    function: Callable[[np.ndarray], np.ndarray]
    name: str

    def readout(self, encoding: np.ndarray, m: np.ndarray, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rates (R, S, n) and readouts (R, S)."""
        rates = self.function(encoding[:, None, :] * m[..., None] + eta)
        return rates, (rates @ encoding[:, :, None])[..., 0] / encoding.shape[1]

    def slope(self, encoding: np.ndarray, m: np.ndarray, eta: np.ndarray, rates: np.ndarray) -> np.ndarray | float:
        """Slope of the readout in m, shape (R, S); it steers the implicit step only."""
        if self.name == "linear":
            return 1.0
        if self.name == "tanh":
            return 1 - np.einsum("rsn,rsn->rs", rates, rates) / rates.shape[-1]
        near = 1e-4 * (1 + np.abs(m))
        up, down = self.readout(encoding, m + near, eta)[1], self.readout(encoding, m - near, eta)[1]
        return np.maximum((up - down) / (2 * near), 0)


@dataclass(frozen=True, eq=False)
class Settings:
    """S settings of networks of one size and one delay; times in units of the time constant."""

    balance: np.ndarray  # (S,)
    noise: np.ndarray  # (S,)
    disorder: np.ndarray  # (S,)
    delay: float
    rates: Rates


def block_size(n: int, n_settings: int, settings: Settings, step: float) -> int:
    """How many networks fit into the working memory."""
    held = 8.0
    if settings.disorder.any() and settings.delay:
        held += settings.delay / step + 2
    numbers = held * n_settings * n + (n * n if settings.disorder.any() else 0)
    return max(1, int(_WORKING_BYTES / (8 * numbers)))


def draw_weights(
    n_networks: int, n: int, disordered: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Signs (R, n), and the transposed disorder (R, n, n) of variance 1 / n."""
    encoding = 2.0 * rng.integers(0, 2, (n_networks, n)) - 1
    if not disordered:
        return encoding, None
    mixing = rng.standard_normal((n_networks, n, n))
    mixing /= math.sqrt(n)
    return encoding, mixing


def run(
    signal: np.ndarray,
    step: float,
    encoding: np.ndarray,
    mixing: np.ndarray | None,
    settings: Settings,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Readouts (T, R, S) for a signal (T, S), and the rates (R, S, n) at the end."""
    n_networks, n = encoding.shape
    shape = (n_networks, len(settings.balance), n)
    spread = np.sqrt(settings.noise**2 / 2 + (settings.disorder > 0))[:, None]
    eta, m = spread * rng.standard_normal(shape), np.zeros(shape[:2])
    rates, readout = settings.rates.readout(encoding, m, eta)
    readouts = np.empty((len(signal), *shape[:2]))
    readouts[0] = readout
    decay, gained = math.exp(-step), -math.expm1(-step)
    kick = settings.noise[:, None] * math.sqrt(-math.expm1(-2 * step) / 2)
    noisy = bool(settings.noise.any())
    recurrent = _recurrent(mixing, settings, step, rates)
    feedback = _Delayed(readouts, settings.delay / step)
    for k in range(1, len(signal)):
        eta *= decay
        if noisy:
            eta += kick * rng.standard_normal(shape)
        if recurrent is not None:
            eta += gained * recurrent.send(rates)
        before = settings.balance * (signal[k - 1] - feedback.at(k - 1)) - m
        if settings.delay:
            m = (m + step / 2 * (before + settings.balance * (signal[k] - feedback.at(k)))) / (1 + step / 2)
        else:
            m = _implicit(m, before, signal[k], step, encoding, eta, settings)
        rates, readouts[k] = settings.rates.readout(encoding, m, eta)
    return readouts, rates


def _implicit(
    m: np.ndarray,
    before: np.ndarray,
    signal: np.ndarray,
    step: float,
    encoding: np.ndarray,
    eta: np.ndarray,
    settings: Settings,
) -> np.ndarray:
    """Half a step forward and half a step backward, by one Newton step in the readout."""
    rates, readout = settings.rates.readout(encoding, m, eta)
    slope = settings.rates.slope(encoding, m, eta, rates)
    after = settings.balance * (signal - readout + slope * m)
    return (m + step / 2 * (before + after)) / (1 + step / 2 * (1 + settings.balance * slope))


class _Delayed:
    """Readouts some steps ago, linear between the steps, constant before the first."""

    def __init__(self, readouts: np.ndarray, lag: float) -> None:
        self.readouts, self.whole, self.part = readouts, *_split(lag)

    def at(self, k: int) -> np.ndarray:
        """The readouts that arrive at step k."""
        near, far = max(k - self.whole, 0), max(k - self.whole - 1, 0)
        if not self.part:
            return self.readouts[near]
        return (1 - self.part) * self.readouts[near] + self.part * self.readouts[far]


def _recurrent(mixing: np.ndarray | None, settings: Settings, step: float, rates: np.ndarray) -> _Inputs | None:
    """Input through the disorder during the next step; `send` it the rates of every step in turn."""
    if mixing is None:
        return None
    strength = settings.disorder[:, None]
    inputs = _delayed_inputs(mixing, strength, settings.delay / step, rates)
    if not settings.delay:
        inputs = _extrapolated_inputs(mixing, strength)
    next(inputs)
    return inputs


def _extrapolated_inputs(mixing: np.ndarray, strength: np.ndarray) -> _Inputs:
    """Second order of Adams and Bashforth: the mean over the next step from the last two inputs."""
    rates = yield np.empty(0)
    last = strength * (rates @ mixing)
    mean = last
    while True:
        rates = yield mean
        now = strength * (rates @ mixing)
        mean, last = 1.5 * now - 0.5 * last, now


def _delayed_inputs(mixing: np.ndarray, strength: np.ndarray, lag: float, rates: np.ndarray) -> _Inputs:
    """The mean of the delayed inputs at both ends of the next step, from a ring of rates."""
    whole, part = _split(lag)
    ring = np.repeat(rates[None], whole + 2, axis=0)
    last = strength * (rates @ mixing)
    k = -1
    mean = last
    while True:
        rates = yield mean
        k += 1
        ring[k % len(ring)] = rates
        # The next step ends at k + 1.
        near, far = (k + 1 - whole) % len(ring), (k - whole) % len(ring)
        now = strength * (((1 - part) * ring[near] + part * ring[far]) @ mixing)
        mean, last = (last + now) / 2, now


def _split(lag: float) -> tuple[int, float]:
    """Whole steps and the rest of a lag; a lag of a whole number of steps has no rest, whatever rounding says."""
    nearest = round(lag)
    if abs(lag - nearest) < 1e-6:
        return nearest, 0.0
    return math.floor(lag), lag - math.floor(lag)
