r"""Predictive coding in balanced networks: noisy, chaotic and delayed neurons that correct each other's errors.

A population reports a signal through a fixed readout and feeds its own coding error back with strength b. Mean-field
theory gives bias and variance, and the balance at which delays destroy the code; a batched simulator checks it (chapter
:doc:`/chapters/balanced_coding`). Source: Kadmon, Timcheck and Ganguli, "Predictive coding in balanced neural networks
with noise, chaos and delays", NeurIPS 2020, arXiv:2006.14178.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from symlearn._balanced_arguments import (
    FUNCTIONS,
    SMALLEST,
    check_counts,
    check_rates,
    check_size,
    check_step,
    check_strength,
    check_time_constant,
    refuse_linear_disorder,
)
from symlearn._balanced_mean_field import fluctuations, linear_loop, response, solve_drive
from symlearn._balanced_results import CodingResult, CodingStatistics, EnsembleResult, MeanField
from symlearn._balanced_simulation import Settings, block_size, draw_weights, run
from symlearn._checks import (
    check_broadcast,
    check_choice,
    check_finite,
    check_int,
    check_nonnegative,
    check_positive,
    check_rng,
    check_scalar,
    check_shape,
    invalid,
)

__all__ = [
    "BalancedNetwork",
    "CodingResult",
    "CodingStatistics",
    "EnsembleResult",
    "MeanField",
    "critical_delay",
    "critical_gain",
    "delayed_variance",
    "mean_field",
    "optimal_balance",
    "simulate_ensemble",
    "tracking_error",
]

# The series of tanh in Hermite polynomials of an input of larger variance is too long.
_LARGEST_VARIANCE = 800.0


def mean_field(
    x: float,
    balance: float,
    *,
    n: int,
    noise: float = 0.0,
    disorder: float = 0.0,
    delay: float = 0.0,
    activation: str = "tanh",
) -> MeanField:
    r"""Bias and variance of the readout of a static signal, to leading order in 1/n.

    The network is that of `BalancedNetwork`, with times in units of its time constant. The drive solves
    :math:`m=b(x-\langle\hat x\rangle)`, and the readout's variance is what the loop leaves of the fluctuations of the
    rates: about 1/b of those that noise makes, and 1/b**2 of those of chaos and of what is frozen.

    Parameters
    ----------
    x : float
        Static signal. With tanh the bias does not vanish at any balance for a modulus of 1 or more.
    balance : float
        Strength :math:`b\ge0` of the feedback.
    n : int
        Number of neurons.
    noise : float
        Strength :math:`\sigma\ge0` of the noise; an isolated neuron has the variance :math:`\sigma^2/2`.
    disorder : float
        Strength :math:`g\ge0` of the random weights, whose variance is :math:`g^2/n`.
    delay : float
        Synaptic delay :math:`d\ge0`, in time constants.
    activation : {"tanh", "linear"}
        Rates as a function of the inputs.

    Returns
    -------
    MeanField
        Means, variances, and the coding error.

    Raises
    ------
    ValueError
        For a negative or non-finite number, ``n`` below 1, an unknown activation, disorder of 1 or more with linear
        rates, a gain at or beyond ``critical_gain(delay)``: there is no stationary state then, and, with tanh,
        ``noise**2 / 2 + disorder**2`` above 800.
    TypeError
        For anything but numbers.

    Notes
    -----
    Exact for large n but for one case: with disorder and a signal, it neglects that the readout's fluctuations
    modulate the variance of the inputs. With disorder the state is only locally stable if the *balance* exceeds the
    critical gain.

    References
    ----------
    Kadmon, Timcheck and Ganguli, arXiv:2006.14178; chapter :doc:`/chapters/balanced_coding`.

    Examples
    --------
    >>> found = mean_field(0.5, 10.0, n=500, noise=0.75)
    >>> round(found.readout, 6), round(found.gain, 6), round(found.readout_variance * 1e5, 6)
    (0.442, 6.696715, 3.691944)

    Chaos without noise, at a strength of the random weights above 1:

    >>> mean_field(0.0, 10.0, n=500, disorder=2.5).chaotic
    True
    """
    signal = check_size("x", check_scalar("x", x))
    b, count = check_strength("balance", balance), check_int("n", n, 1)
    sigma, g, d = check_strength("noise", noise), check_strength("disorder", disorder), check_strength("delay", delay)
    if check_choice("activation", activation, tuple(FUNCTIONS)) == "linear":
        refuse_linear_disorder(g)
        drive = b * signal / (1 + b)
        gain, mean, variance, frozen = b, drive, *_linear_variances(drive, sigma, g)
    else:
        if (largest := sigma**2 / 2 + g**2) > _LARGEST_VARIANCE:
            name = "noise" if sigma > g else "disorder"
            condition = f"such that noise**2 / 2 + disorder**2 <= {_LARGEST_VARIANCE:g} with tanh"
            raise invalid(name, condition, f"{largest:g}")
        drive, found = solve_drive(abs(signal), b, sigma, g)
        gain, mean, variance, frozen = b * found.slope, found.mean, found.variance, found.frozen
    if d and gain >= float(critical_gain(d)):
        condition = (
            f"such that the gain is < critical_gain({d:g}) = {float(critical_gain(d)):.6g} (else no stationary state)"
        )
        raise invalid("balance", condition, f"balance {b:g} of gain {gain:.6g}")
    if activation == "linear":
        rate = math.sqrt((1 - g) * (1 + g))
        moving = (variance - frozen) * float(response(np.array([rate]), gain, d)[0])
        still = frozen
    else:
        moving, still = fluctuations(found, sigma, g, gain, d), _frozen_rates(found.weights, variance, frozen)
        drive, mean = math.copysign(drive, signal), math.copysign(mean, signal)
    bias = drive / b if b else signal
    total = (still / (1 + gain) ** 2 + moving) / count
    chaotic = not sigma and frozen < variance
    return MeanField(mean, bias, drive, variance, frozen, gain, total, math.sqrt(bias**2 + total), bool(chaotic))


def critical_delay(gain: ArrayLike) -> np.ndarray | float:
    r"""Delay at which a loop of this gain starts to oscillate, :math:`\arccos(-1/G)/\sqrt{G^2-1}`.

    Parameters
    ----------
    gain : array_like
        Loop gains :math:`G\ge0`: the balance times the mean slope of the rates.

    Returns
    -------
    ndarray or float
        In time constants; ``inf`` for a gain of at most 1, which is stable at any delay.

    Raises
    ------
    ValueError
        For a negative or non-finite gain.
    TypeError
        For anything but real numbers.

    References
    ----------
    Kadmon, Timcheck and Ganguli, arXiv:2006.14178; chapter :doc:`/chapters/balanced_coding`.

    Examples
    --------
    >>> critical_delay([0.5, 2.0, 10.0])
    array([       inf, 1.20919958, 0.16793818])
    """
    gains = check_nonnegative("gain", gain)
    loud = np.where(gains > 1, gains, 2.0)
    delays = np.arccos(-1 / loud) / (np.sqrt(loud - 1) * np.sqrt(loud + 1))
    return _unwrapped(np.where(gains > 1, delays, np.inf))


def critical_gain(delay: ArrayLike) -> np.ndarray | float:
    r"""Loop gain at which a delay starts to make the network oscillate: the inverse of `critical_delay`.

    Parameters
    ----------
    delay : array_like
        Delays, > 0, in time constants.

    Returns
    -------
    ndarray or float
        Gains above 1; about :math:`\pi/(2d)` for a short delay.

    Raises
    ------
    ValueError
        For a delay that is not positive or not finite.
    TypeError
        For anything but real numbers.

    References
    ----------
    Kadmon, Timcheck and Ganguli, arXiv:2006.14178; chapter :doc:`/chapters/balanced_coding`.

    Examples
    --------
    >>> critical_gain([0.1, 1.0])
    array([16.35055393,  2.26182633])
    """
    delays = check_positive("delay", delay)
    if (delays < SMALLEST).any():
        raise invalid("delay", f"at least {SMALLEST:g}", float(delays.min()))
    # The phase of the loop beyond a quarter of a turn, tan(phase) = delay / (pi / 2 + phase): contracts by a third.
    phase = np.zeros_like(delays)
    for _ in range(40):
        phase = np.arctan2(delays, np.pi / 2 + phase)
    return _unwrapped(1 / np.sin(phase))


def delayed_variance(gain: ArrayLike, delay: ArrayLike) -> np.ndarray | float:
    r"""What noise leaves in a delayed loop: N Var of the readout over :math:`\sigma^2`, for linear rates.

    :math:`A(G,d)=\frac{1+G\sin(\ell d)/\ell}{2(1+G\cos\ell d)}` with :math:`\ell=\sqrt{G^2-1}`, and
    :math:`1/(2+2G)` without delay.

    Parameters
    ----------
    gain : array_like
        Loop gains :math:`G\ge0`; the balance, for linear rates.
    delay : array_like
        Delays :math:`d\ge0` in time constants; broadcasts with ``gain``.

    Returns
    -------
    ndarray or float
        ``inf`` at and beyond the critical delay, where no stationary state exists.

    Raises
    ------
    ValueError
        For a negative or non-finite number, or shapes that do not broadcast.
    TypeError
        For anything but real numbers.

    References
    ----------
    Kadmon, Timcheck and Ganguli, arXiv:2006.14178; chapter :doc:`/chapters/balanced_coding`.

    Examples
    --------
    >>> delayed_variance([1.0, 5.0, 5.0], [1.0, 0.2, 0.4])
    array([0.5       , 0.24399448,        inf])
    """
    given = {"gain": check_nonnegative("gain", gain), "delay": check_nonnegative("delay", delay)}
    for name, values in given.items():
        check_size(name, values)
    gains, delays = check_broadcast(**given)
    stable = delays < critical_delay(gains)
    found = linear_loop(np.where(stable, gains, 0.0), np.where(stable, delays, 0.0)).real
    return _unwrapped(np.where(stable, found, np.inf))


def optimal_balance(delay: float, *, noise: float = 1.0, n: int = 1, signal_power: float = 0.0) -> float:
    r"""The balance at which linear neurons with delayed feedback report a static signal best.

    Minimises :math:`P/(1+b)^2+\frac{\sigma^2}NA(b,d)`; without a signal it is :math:`0.739/d` for a short delay, about
    half of the critical balance, and with one it moves up towards it as N grows.

    Parameters
    ----------
    delay : float
        Synaptic delay, > 0, in time constants.
    noise : float
        Strength :math:`\sigma\ge0` of the noise.
    n : int
        Number :math:`N` of neurons.
    signal_power : float
        Mean square :math:`P\ge0` of the static signal.

    Returns
    -------
    float
        For ``noise`` 0 the limit, ``critical_gain(delay)``.

    Raises
    ------
    ValueError
        For a ``delay`` that is not positive, a negative or non-finite number, ``n`` below 1, or neither noise nor
        signal.
    TypeError
        For anything but numbers.

    References
    ----------
    Kadmon, Timcheck and Ganguli, arXiv:2006.14178; chapter :doc:`/chapters/balanced_coding`.

    Examples
    --------
    >>> round(optimal_balance(0.1), 6), round(optimal_balance(0.1, n=1000, signal_power=0.25), 6)
    (7.127568, 14.308249)
    """
    d = float(check_positive("delay", check_scalar("delay", delay)))
    sigma, count = check_strength("noise", noise), check_int("n", n, 1)
    power = check_strength("signal_power", signal_power)
    critical = float(critical_gain(check_size("delay", d)))
    if not sigma:
        if not power:
            raise invalid("noise", "> 0 without a signal", sigma)
        return critical
    ratio = 2 * power * count / sigma / sigma

    def slope(b: float) -> float:
        # A complex step: exact to rounding.
        change = 1e-30 * (1 + b)
        return float(linear_loop(complex(b, change), d).imag) / change - ratio / (1 + b) ** 3

    low, high = 0.0, critical * (1 - 1e-12)
    if slope(low) >= 0:
        return low
    if slope(high) <= 0:
        return high
    return float(brentq(slope, low, high, xtol=1e-300, rtol=1e-14))


def tracking_error(balance: ArrayLike, delay: ArrayLike, frequency: ArrayLike) -> np.ndarray | float:
    r"""Root mean square error for the signal :math:`\cos\omega t`, for linear rates without noise.

    :math:`\frac1{\sqrt2}\left|\frac{1+i\omega+be^{-i\omega d}-b}{1+i\omega+be^{-i\omega d}}\right|`: the feedback is
    delayed, the signal is not.

    Parameters
    ----------
    balance : array_like
        Balances :math:`b\ge0`.
    delay : array_like
        Delays :math:`d\ge0`, in time constants.
    frequency : array_like
        Angular frequencies :math:`\omega`, in radians per time constant.

    Returns
    -------
    ndarray or float
        ``inf`` at and beyond the critical delay.

    Raises
    ------
    ValueError
        For a negative balance or delay, a non-finite number, or shapes that do not broadcast.
    TypeError
        For anything but real numbers.

    References
    ----------
    Kadmon, Timcheck and Ganguli, arXiv:2006.14178; chapter :doc:`/chapters/balanced_coding`.

    Examples
    --------
    >>> tracking_error([10.0, 6.0], [0.0, 0.1], [2.0, 3.0])
    array([0.14142136, 0.14763014])
    """
    given = {
        "balance": check_nonnegative("balance", balance),
        "delay": check_nonnegative("delay", delay),
        "frequency": check_finite("frequency", frequency),
    }
    for name, values in given.items():
        check_size(name, values)
    b, d, w = check_broadcast(**given)
    stable = d < critical_delay(b)
    loop = 1 + 1j * w + b * np.exp(-1j * w * d)
    return _unwrapped(np.where(stable, np.abs((loop - b) / np.where(stable, loop, 1)) / math.sqrt(2), np.inf))


class BalancedNetwork:
    r"""A network that reports a signal and feeds its coding error back, with random weights drawn once.

    .. math::

        \tau\,dh_i=\Bigl[-h_i+b\,w_i\bigl(x(t)-\hat x(t-d)\bigr)+g\sum_jJ_{ij}\phi(h_j(t-d))\Bigr]dt
        +\sqrt\tau\,\sigma\,dW_i,\qquad\hat x=\frac1N\sum_iw_i\phi(h_i)

    Parameters
    ----------
    n : int
        Number N of neurons.
    balance : float
        Strength :math:`b\ge0` of the feedback.
    disorder : float
        Strength :math:`g\ge0` of the random weights :math:`J_{ij}`, Gaussian of variance 1/N. Costs memory of
        :math:`N^2` numbers.
    noise : float
        Strength :math:`\sigma\ge0` of the noise; an isolated linear neuron has the variance :math:`\sigma^2/2`.
    delay : float
        Synaptic delay :math:`d\ge0`, in the units of ``tau``.
    tau : float
        Membrane time constant, > 0.
    activation : {"tanh", "linear"} or callable
        Rates :math:`\phi`; a callable maps an array to an array of the same shape.
    rng : int, numpy.random.Generator or None
        Source of the signs :math:`w_i=\pm1` and of :math:`J`.

    Raises
    ------
    ValueError
        For a negative or non-finite number, ``n`` below 1, ``tau`` not positive, an unknown activation, or disorder
        of 1 or more with linear rates.
    TypeError
        For arguments of another type.

    References
    ----------
    Kadmon, Timcheck and Ganguli, arXiv:2006.14178; chapter :doc:`/chapters/balanced_coding`.

    Examples
    --------
    >>> network = BalancedNetwork(200, 20.0, noise=0.5, rng=0)
    >>> result = network.simulate(np.full(1000, 0.4), dt=0.02, n_runs=8, rng=1)
    >>> result.readout.shape, bool(abs(result.error[500:].mean() - mean_field(0.4, 20.0, n=200, noise=0.5).bias) < 1e-3)
    ((1000, 8), True)
    """

    def __init__(
        self,
        n: int,
        balance: float,
        *,
        disorder: float = 0.0,
        noise: float = 0.0,
        delay: float = 0.0,
        tau: float = 1.0,
        activation: str | Callable[[np.ndarray], np.ndarray] = "tanh",
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self.n, self.balance = check_int("n", n, 1), check_strength("balance", balance)
        self.disorder, self.noise = check_strength("disorder", disorder), check_strength("noise", noise)
        self.delay, self.tau = check_strength("delay", delay), check_time_constant(tau)
        self.activation = activation
        self._rates = check_rates(activation)
        if self._rates.name == "linear":
            refuse_linear_disorder(self.disorder)
        self._encoding, self._mixing = draw_weights(1, self.n, self.disorder > 0, check_rng(rng))

    def simulate(
        self,
        signal: ArrayLike,
        dt: float,
        *,
        n_runs: int = 1,
        rng: int | np.random.Generator | None = None,
    ) -> CodingResult:
        """Run the network on a signal, several times side by side.

        The runs share the network and differ in their noise and their start: no drive, inputs of variance
        ``noise**2 / 2``, and of 1 more with disorder, so that chaos can start. Before time 0 the state was constant.

        Parameters
        ----------
        signal : array_like, shape (T,)
            The signal at times 0, dt, 2 dt, ...
        dt : float
            Time step, > 0, in the units of ``tau``; with a delay at most the delay.
        n_runs : int
            Number of runs.
        rng : int, numpy.random.Generator or None
            Source of noise and start.

        Returns
        -------
        CodingResult
            Readouts, errors, and the rates at the end.

        Raises
        ------
        ValueError
            For a signal that is not a non-empty series of finite numbers, ``dt`` not positive, above the delay, or
            with ``dt / tau * (1 + balance) >= 1``: feedback would act within less than a step. Also for a callable
            activation of results that are not finite, or of another shape.
        TypeError
            For arguments of another type.

        Notes
        -----
        The noise is exact at any step. The drive moves by the trapezoidal rule, so that the variance does not have the
        bias of about ``gain * dt / 2`` of Euler's scheme. Delays that are no multiple of ``dt`` are interpolated.
        """
        series = check_shape("signal", signal, (None,))
        if not series.size:
            raise invalid("signal", "of at least one number", "none")
        check_size("signal", series)
        runs = check_int("n_runs", n_runs, 1)
        step = check_step(dt, self.tau, self.balance, self.delay)
        same = np.ones(runs)
        settings = Settings(
            self.balance * same, self.noise * same, self.disorder * same, self.delay / self.tau, self._rates
        )
        long = np.broadcast_to(series[:, None], (len(series), runs))
        readouts, rates = run(long, step, self._encoding, self._mixing, settings, check_rng(rng))
        readout = readouts[:, 0]
        return CodingResult(float(dt) * np.arange(len(series)), readout, series[:, None] - readout, rates[0])


def simulate_ensemble(
    signal: ArrayLike,
    dt: float,
    *,
    n: ArrayLike,
    balance: ArrayLike,
    noise: ArrayLike = 0.0,
    disorder: ArrayLike = 0.0,
    delay: ArrayLike = 0.0,
    tau: float = 1.0,
    activation: str | Callable[[np.ndarray], np.ndarray] = "tanh",
    n_networks: int = 16,
    rng: int | np.random.Generator | None = None,
) -> EnsembleResult:
    """Simulate many networks at many settings side by side.

    The settings ``n``, ``balance``, ``noise``, ``disorder`` and ``delay`` broadcast. Settings of one size and one delay
    run as one array and share the weights of their networks, with noise of their own. Beside the readouts, at most
    about 128 MiB are held, or what a single network needs.

    Parameters
    ----------
    signal : array_like, shape (T,) or (..., T)
        The signal at times 0, dt, ...; leading axes broadcast with the settings.
    dt : float
        Time step, > 0, as for `BalancedNetwork.simulate`, for the largest balance.
    n : array_like of int
        Numbers of neurons.
    balance, noise, disorder, delay : array_like
        Settings, >= 0.
    tau : float
        Membrane time constant, > 0.
    activation : {"tanh", "linear"} or callable
        Rates as a function of the inputs.
    n_networks : int
        Independent networks per setting.
    rng : int, numpy.random.Generator or None
        Source of weights, start and noise.

    Returns
    -------
    EnsembleResult
        Readouts and errors of shape (settings..., n_networks, T); see its ``statistics``.

    Raises
    ------
    ValueError
        As `BalancedNetwork`, and for shapes that do not broadcast.
    TypeError
        For arguments of another type.

    References
    ----------
    Kadmon, Timcheck and Ganguli, arXiv:2006.14178; chapter :doc:`/chapters/balanced_coding`.

    Examples
    --------
    Four balances of ten networks, against mean-field theory:

    >>> balances = [1.0, 3.0, 10.0, 30.0]
    >>> ensemble = simulate_ensemble(np.zeros(1500), 0.03, n=100, balance=balances, noise=1.0, n_networks=10, rng=0)
    >>> found = ensemble.statistics(discard=5.0)
    >>> theory = np.array([mean_field(0.0, b, n=100, noise=1.0).readout_variance for b in balances])
    >>> found.variance.shape, bool((abs(found.variance / theory - 1) < 0.2).all())
    ((4,), True)
    """
    series = check_finite("signal", signal)
    if not series.ndim or not series.shape[-1]:
        raise invalid("signal", "of at least one number on its last axis", f"shape {series.shape}")
    check_size("signal", series)
    given = {
        "n": check_counts(n),
        "balance": check_nonnegative("balance", balance),
        "noise": check_nonnegative("noise", noise),
        "disorder": check_nonnegative("disorder", disorder),
        "delay": check_nonnegative("delay", delay),
    }
    for name, values in given.items():
        check_size(name, values)
    rates, constant, networks = (
        check_rates(activation),
        check_time_constant(tau),
        check_int("n_networks", n_networks, 1),
    )
    if rates.name == "linear":
        refuse_linear_disorder(float(given["disorder"].max(initial=0)))
    *columns, rows = check_broadcast(**given, signal=series[..., 0])
    shape, length = rows.shape, series.shape[-1]
    if not rows.size:
        raise invalid("balance", "at least one setting", f"shape {shape}")
    n_each, b, sigma, g, d = (column.ravel() for column in columns)
    positive = d[d > 0]
    step = check_step(dt, constant, float(b.max()), float(positive.min()) if positive.size else 0.0)
    signals = np.broadcast_to(series, (*shape, length)).reshape(-1, length)
    readout = np.empty((rows.size, networks, length))
    generator = check_rng(rng)
    for count, lag in sorted({(int(count), float(lag)) for count, lag in zip(n_each, d, strict=True)}):
        chosen = np.flatnonzero((n_each == count) & (d == lag))
        settings = Settings(b[chosen], sigma[chosen], g[chosen], lag / constant, rates)
        size = block_size(count, len(chosen), settings, step)
        for first in range(0, networks, size):
            block = slice(first, min(first + size, networks))
            weights = draw_weights(block.stop - first, count, bool(g[chosen].any()), generator)
            found, _ = run(signals[chosen].T, step, *weights, settings, generator)
            readout[chosen, block] = np.moveaxis(found, 0, -1).swapaxes(0, 1)
            del weights, found  # before the next block is drawn
    error = signals[:, None] - readout
    whole = (*shape, networks, length)
    return EnsembleResult(float(dt) * np.arange(length), readout.reshape(whole), error.reshape(whole))


def _linear_variances(drive: float, noise: float, disorder: float) -> tuple[float, float]:
    """Variance and its frozen part with linear rates: an Ornstein-Uhlenbeck process, slowed down by the disorder."""
    room = (1 - disorder) * (1 + disorder)
    frozen = (disorder * drive) ** 2 / room
    return noise**2 / (2 * math.sqrt(room)) + frozen, frozen


def _frozen_rates(weights: np.ndarray, variance: float, frozen: float) -> float:
    """Variance of the frozen part of the rates."""
    if not frozen:
        return 0.0
    return float(weights[1:] @ (frozen / variance) ** np.arange(1, len(weights)))


def _unwrapped(values: np.ndarray) -> np.ndarray | float:
    return values if values.ndim else float(values)
