r"""Lyapunov exponents of products of random factors: the rates at which SGD contracts or expands.

Near a point where all per-sample gradients vanish, an SGD step multiplies the deviation by a random factor; the point
attracts in probability if and only if the mean log growth per step is negative, whatever the moments do (chapter
:doc:`/chapters/probabilistic_stability`). Exponents are in nats per step. NumPy only: the exponents of SGD on a torch
model are in `symlearn.probabilistic_stability`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import Chebyshev
from numpy.typing import ArrayLike
from scipy.special import dawsn

from symlearn._batch_mean import batch_mean, check_decay, check_vector, check_weights, log_distance_to_one, log_factors
from symlearn._checks import check_broadcast, check_finite, check_int, check_nonnegative, check_positive, invalid
from symlearn._growth import log_growth, mean_growth

__all__ = [
    "LyapunovEstimate",
    "LyapunovSpectrum",
    "gaussian_lyapunov_exponent",
    "lyapunov_exponent_1d",
    "matrix_lyapunov_exponents",
]

# Beyond this ratio of mean to standard deviation the asymptotic series is exact to 1e-14.
_LARGE_RATIO = 40.0
_DAWSON_INTEGRAL = Chebyshev.interpolate(dawsn, 250, domain=[0.0, _LARGE_RATIO / np.sqrt(2)]).integ(lbnd=0.0)


@dataclass(frozen=True)
class LyapunovEstimate:
    """A Lyapunov exponent for every learning rate.

    Attributes
    ----------
    value : ndarray
        Exponents in nats per step, in the shape of ``lr``.
    stderr : ndarray
        Standard errors, same shape; 0 when exact, ``inf`` where a sampled factor is exactly 0.
    exact : bool
        Whether all batches were enumerated, as opposed to sampled.
    """

    value: np.ndarray
    stderr: np.ndarray
    exact: bool


@dataclass(frozen=True)
class LyapunovSpectrum:
    """Leading Lyapunov exponents of a product of random matrices.

    Attributes
    ----------
    exponents : ndarray, shape (k,)
        Exponents in nats per step, descending; ``-inf`` for directions that a singular factor removes.
    stderr : ndarray, shape (k,)
        Standard errors; ``inf`` where they cannot be estimated. They do not see a bias of too short a burn-in.
    n_steps : int
        Counted steps, over all chains.
    """

    exponents: np.ndarray
    stderr: np.ndarray
    n_steps: int


def lyapunov_exponent_1d(
    h: ArrayLike,
    lr: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    batch_size: int = 1,
    weight_decay: float = 0.0,
    max_terms: int = 100_000,
    n_samples: int = 100_000,
    rng: int | np.random.Generator | None = None,
) -> LyapunovEstimate:
    r"""Lyapunov exponent of one-dimensional SGD for any law of the curvature and any batch size.

    With :math:`\hat h` the mean of ``batch_size`` independent draws,

    .. math:: \Lambda = \mathbb E\log|1 - \eta\lambda - \eta\hat h|, \qquad \tfrac1t\log|\theta_t|\to\Lambda .

    Parameters
    ----------
    h : array_like, shape (K,)
        Curvatures of the samples (second derivatives of their losses), of any sign.
    lr : array_like
        Learning rates :math:`\eta`, > 0, of any shape.
    weights : array_like, shape (K,), optional
        Probabilities of the curvatures up to a factor, >= 0; uniform by default.
    batch_size : int
        Samples per step, drawn with replacement.
    weight_decay : float
        Torch's weight decay :math:`\lambda`, >= 0: the gradient gets ``+ weight_decay * theta``.
    max_terms : int
        Batches are enumerated (as multisets) if there are at most so many, and always for ``batch_size=1``.
    n_samples : int
        Number of sampled batches otherwise, at least 2. All learning rates see the same batches.
    rng : int, numpy.random.Generator or None
        Source of the sampled batches.

    Returns
    -------
    LyapunovEstimate
        Values and standard errors in the shape of ``lr``. A factor of exactly 0 with positive probability gives
        ``-inf``: such a run ends at the point after finitely many steps.

    Raises
    ------
    ValueError
        For ``h`` empty, not one-dimensional or not finite, ``lr`` not positive or not finite, weights that are
        negative, of zero sum or of another length, a negative weight decay, counts below their minimum, or a product
        ``lr * (h + weight_decay)`` beyond the range of float64.
    TypeError
        For counts that are not integers, or another ``rng``.

    References
    ----------
    Ziyin, Li, Galanti and Ueda, arXiv:2303.13093; chapter :doc:`/chapters/probabilistic_stability`.

    Examples
    --------
    A saddle: the mean curvature is negative, so gradient descent escapes, but a large step makes noisy SGD stay.

    >>> lyapunov_exponent_1d([-2.0, 1.6], [0.1, 0.4], weights=[0.6, 0.4]).value.round(4)
    array([ 0.0397, -0.056 ])

    Larger batches have less noise, and the saddle repels again:

    >>> lyapunov_exponent_1d([-2.0, 1.6], [0.1, 0.4], weights=[0.6, 0.4], batch_size=8).value.round(4)
    array([0.0527, 0.1795])
    """
    curvatures = check_vector("h", h)
    shares = check_weights(weights, curvatures.size)
    rates, decay = check_positive("lr", lr), check_decay(weight_decay)
    means, probabilities, exact = batch_mean(curvatures, shares, batch_size, max_terms, n_samples, rng)
    value, stderr = np.empty(rates.size), np.zeros(rates.size)
    for part, logs in log_factors(means, rates.ravel(), decay):
        value[part] = logs @ probabilities
        if not exact:
            stderr[part] = _stderr(logs)
    return LyapunovEstimate(value.reshape(rates.shape), stderr.reshape(rates.shape), exact)


def gaussian_lyapunov_exponent(
    mean: ArrayLike, std: ArrayLike, lr: ArrayLike, *, weight_decay: ArrayLike = 0.0
) -> np.ndarray | float:
    r"""Lyapunov exponent of one-dimensional SGD with Gaussian curvature, in closed form.

    For :math:`\hat h\sim\mathcal N(\mu,\sigma^2)`, with :math:`a=1-\eta(\mu+\lambda)`, :math:`b=\eta\sigma`,
    :math:`r=|a|/b` and Dawson's function :math:`D`,

    .. math:: \Lambda = \mathbb E\log|1-\eta(\hat h+\lambda)|
        = \log b - \tfrac12(\gamma_E+\log 2) + 2\int_0^{r/\sqrt2}D(s)\,ds .

    Parameters
    ----------
    mean : array_like
        Mean curvature :math:`\mu` of a batch.
    std : array_like
        Standard deviation :math:`\sigma` of the curvature **of a batch**, >= 0: that of one sample over
        :math:`\sqrt{\text{batch\_size}}`.
    lr : array_like
        Learning rates :math:`\eta`, > 0.
    weight_decay : array_like
        Torch's weight decay :math:`\lambda`, >= 0. All four arguments broadcast against each other.

    Returns
    -------
    ndarray or float
        Exponents in nats per step, a float for scalar arguments; exact to about 1e-13. Without noise
        :math:`\log|1-\eta(\mu+\lambda)|`, which is ``-inf`` where the factor is 0.

    Raises
    ------
    ValueError
        For non-finite numbers, a negative ``std`` or ``weight_decay``, ``lr <= 0``, shapes that do not broadcast, or
        factors beyond the range of float64.

    References
    ----------
    Ziyin, Li, Galanti and Ueda, arXiv:2303.13093; chapter :doc:`/chapters/probabilistic_stability`.

    Examples
    --------
    Noise turns the exponent of a saddle (negative mean curvature) from positive to negative:

    >>> gaussian_lyapunov_exponent(-0.5, [0.0, 1.0, 4.0], 0.3).round(4)
    array([ 0.1398,  0.1009, -0.0561])
    """
    arguments = {
        "mean": check_finite("mean", mean),
        "std": check_nonnegative("std", std),
        "lr": check_positive("lr", lr),
        "weight_decay": check_nonnegative("weight_decay", weight_decay),
    }
    mu, sigma, eta, decay = check_broadcast(**arguments)
    with np.errstate(over="ignore"):
        shift, b = eta * (mu + decay), eta * sigma
    if not (np.isfinite(shift).all() and np.isfinite(b).all()):
        raise invalid("lr", "such that lr * (mean + weight_decay) and lr * std are finite", float(eta.max()))
    value = _gaussian_mean_log(shift, b)
    return value if value.ndim else float(value)


def matrix_lyapunov_exponents(matrices: ArrayLike, k: int | None = None, *, burn_in: int = 0) -> LyapunovSpectrum:
    r"""Lyapunov exponents of a product of given matrices, by repeated QR decomposition.

    A frame of ``k`` orthonormal vectors, at first the unit vectors, is multiplied by one factor after another and
    re-orthonormalised each time; the exponents are the mean logs of the diagonal of R. All of them together sum to the
    mean :math:`\log|\det M_t|` exactly.

    Parameters
    ----------
    matrices : array_like, shape (T, n, n) or (C, T, n, n)
        The factors themselves, in the order in which they act, of one chain or of C independent ones. For SGD they are
        ``(1 - lr * weight_decay) * I - lr * hessian_of_batch``, not the Hessians.
    k : int, optional
        Number of leading exponents, n by default.
    burn_in : int
        The first factors of each chain turn the frame but are not counted. They should be several
        :math:`1/(\Lambda_k-\Lambda_{k+1})`: a shorter burn-in leaves a bias that no standard error shows.

    Returns
    -------
    LyapunovSpectrum
        Standard errors are those over chains if there are at least 8, else over 20 blocks of time. A factor that is
        singular to rounding gives ``-inf``.

    Raises
    ------
    ValueError
        For ``matrices`` empty, not square, not of three or four dimensions or not finite, ``k`` not between 1 and n,
        or ``burn_in`` not between 0 and T - 1.
    TypeError
        For counts that are not integers.

    References
    ----------
    Benettin, Galgani, Giorgilli and Strelcyn, Meccanica 15 (1980); chapter :doc:`/chapters/probabilistic_stability`.

    Examples
    --------
    SGD on one sample of a three-dimensional Gaussian per step, loss :math:`(x\cdot\theta)^2/2` and learning rate 0.9:
    the largest exponent is positive (its exact value is 0.1806), so no direction is safe.

    >>> x = np.random.default_rng(0).normal(size=(16, 1000, 3, 1))
    >>> spectrum = matrix_lyapunov_exponents(np.eye(3) - 0.9 * x * x.swapaxes(-1, -2), burn_in=50)
    >>> spectrum.exponents.round(1), spectrum.n_steps
    (array([ 0.2,  0. , -0.2]), 15200)
    """
    factors = check_finite("matrices", matrices)
    if factors.ndim not in (3, 4):
        raise invalid("matrices", "of shape (T, n, n) or (C, T, n, n)", f"shape {factors.shape}")
    if not factors.size or factors.shape[-1] != factors.shape[-2]:
        raise invalid("matrices", "square matrices, at least one", f"shape {factors.shape}")
    factors = factors.reshape(-1, *factors.shape[-3:])
    n_chains, n_steps, n = factors.shape[:3]
    k = n if k is None else check_int("k", k, 1, n)
    burn_in = check_int("burn_in", burn_in, 0, n_steps - 1)
    exponents, stderr = mean_growth(_frame_growth(factors, k)[:, burn_in:])
    return LyapunovSpectrum(exponents, stderr, n_chains * (n_steps - burn_in))


def _stderr(logs: np.ndarray) -> np.ndarray:
    known = np.isfinite(logs).all(1)
    result = np.full(len(logs), np.inf)
    result[known] = logs[known].std(1, ddof=1) / np.sqrt(logs.shape[1])
    return result


def _gaussian_mean_log(shift: np.ndarray, b: np.ndarray) -> np.ndarray:
    """E log|1 - shift + b Z| for a standard normal Z."""
    a = np.abs(1 - shift)
    noisy = a < _LARGE_RATIO * b
    r = np.divide(a, b, where=noisy, out=np.zeros(a.shape))
    inverse = np.divide(b, a, where=~noisy & (a > 0), out=np.zeros(a.shape)) ** 2
    logs = np.log(b, where=noisy, out=np.zeros(a.shape))
    inner = logs - (np.euler_gamma + np.log(2)) / 2 + 2 * _DAWSON_INTEGRAL(r / np.sqrt(2))
    series = inverse * (1 / 2 + inverse * (3 / 4 + inverse * (5 / 2 + inverse * 105 / 8)))
    return np.where(noisy, inner, log_distance_to_one(shift) - series)


def _frame_growth(factors: np.ndarray, k: int) -> np.ndarray:
    """Log growth of each frame vector in each step, (C, T, k)."""
    n_chains, n_steps, n = factors.shape[:3]
    # Powers of two are divided out exactly, so that no product over- or underflows.
    exponent = np.frexp(np.abs(factors).max((2, 3)))[1]
    frame = np.broadcast_to(np.eye(n, k), (n_chains, n, k))
    diagonal, lengths = np.empty((2, n_chains, n_steps, k))
    for t in range(n_steps):
        product = np.ldexp(factors[:, t], -exponent[:, t, None, None]) @ frame
        frame, triangle = np.linalg.qr(product)
        diagonal[:, t] = np.diagonal(triangle, axis1=1, axis2=2)
        lengths[:, t] = np.linalg.norm(product, axis=1)
    growth = log_growth(diagonal, lengths, n, float(np.finfo(np.float64).eps))
    return growth + exponent[..., None] * np.log(2)
