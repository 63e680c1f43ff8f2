"""What `symlearn.balanced_coding` returns: theory, simulations, and their statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from symlearn._checks import check_nonnegative, check_scalar, invalid


@dataclass(frozen=True)
class MeanField:
    """Mean-field theory of a balanced network with a static signal; see `mean_field`.

    Attributes
    ----------
    readout : float
        Mean readout.
    bias : float
        Signal less mean readout.
    drive : float
        Population drive m.
    variance : float
        Variance of a neuron's input about the drive.
    frozen_variance : float
        The part of ``variance`` that does not change in time.
    gain : float
        Loop gain, the balance times the mean slope of the rates.
    readout_variance : float
        Variance of the readout in time and across networks; contains the factor 1/n.
    error : float
        Root of squared bias plus ``readout_variance``.
    chaotic : bool
        Whether the rates fluctuate without noise.
    """

    readout: float
    bias: float
    drive: float
    variance: float
    frozen_variance: float
    gain: float
    readout_variance: float
    error: float
    chaotic: bool


@dataclass(frozen=True, eq=False)
class CodingResult:
    """A simulation of one network.

    Attributes
    ----------
    t : ndarray, shape (T,)
        Times, from 0.
    readout : ndarray, shape (T, n_runs)
        Readouts; the first is that of the state at the start.
    error : ndarray, shape (T, n_runs)
        Signal less readout.
    rates : ndarray, shape (n_runs, n)
        Rates of the neurons at the end.
    """

    t: np.ndarray
    readout: np.ndarray
    error: np.ndarray
    rates: np.ndarray


@dataclass(frozen=True, eq=False)
class CodingStatistics:
    """Coding errors over time and networks, one per setting, with standard errors from the spread between networks.

    Attributes
    ----------
    bias, bias_stderr : ndarray
        Mean error: signal less readout.
    variance, variance_stderr : ndarray
        Variance of the error about ``bias``, in time and across networks.
    rms, rms_stderr : ndarray
        Root mean square error.
    """

    bias: np.ndarray
    bias_stderr: np.ndarray
    variance: np.ndarray
    variance_stderr: np.ndarray
    rms: np.ndarray
    rms_stderr: np.ndarray


@dataclass(frozen=True, eq=False)
class EnsembleResult:
    """Simulations of many networks at many settings.

    Attributes
    ----------
    t : ndarray, shape (T,)
        Times, from 0.
    readout, error : ndarray, shape (..., n_networks, T)
        Readout, and signal less readout; the leading axes are those of the settings.
    """

    t: np.ndarray
    readout: np.ndarray
    error: np.ndarray

    def statistics(self, discard: float) -> CodingStatistics:
        """Bias, variance and root mean square of the error.

        Parameters
        ----------
        discard : float
            Time at the start that is left out, >= 0. A transient lasts some time constants of a neuron.

        Returns
        -------
        CodingStatistics
            Arrays of the shape of the settings.

        Raises
        ------
        ValueError
            If nothing is left after ``discard``, or for a single network, whose spread is unknown.
        """
        first = float(check_nonnegative("discard", check_scalar("discard", discard)))
        if first > self.t[-1]:
            raise invalid("discard", f"at most the last time {self.t[-1]:g}", first)
        if (n_networks := self.error.shape[-2]) < 2:
            raise invalid("n_networks", "at least 2 for standard errors", n_networks)
        error = self.error[..., self.t >= first]
        means = error.mean(-1)
        bias = means.mean(-1)
        # Networks are independent: the spread of their means is too small by 1 / n_networks.
        frozen = (means - bias[..., None]) ** 2 * n_networks / (n_networks - 1)
        variances, squares = error.var(-1) + frozen, (error**2).mean(-1)
        rms = np.sqrt(squares.mean(-1))
        half = _stderr(squares) / 2
        rms_stderr = np.divide(half, rms, out=np.zeros_like(half), where=rms > 0)
        return CodingStatistics(bias, _stderr(means), variances.mean(-1), _stderr(variances), rms, rms_stderr)


def _stderr(values: np.ndarray) -> np.ndarray:
    return values.std(-1, ddof=1) / math.sqrt(values.shape[-1])
