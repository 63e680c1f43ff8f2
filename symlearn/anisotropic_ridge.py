"""Ridge regression in high dimension with any input covariance and any target, in closed form.

Learning curves, the best ridge, the lowest admissible ridge and the spectrum of the Hessian all follow from one number,
the effective ridge ``kappa``; nothing is fitted and nothing is sampled (chapter :doc:`/chapters/anisotropic_ridge`).
Source: Mel and Ganguli, "A theory of high dimensional regression with arbitrary correlations between input features and
target functions", ICML 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import svd
from scipy.optimize import brentq

from symlearn._checks import (
    check_choice,
    check_finite,
    check_int,
    check_nonnegative,
    check_positive,
    check_rng,
    check_scalar,
    invalid,
)
from symlearn._effective_ridge import (
    bands,
    density_at,
    lowest_edge,
    optimal_ridge,
    risk_terms,
)
from symlearn._ridge_arguments import (
    LARGEST,
    broadcast,
    check_above_lowest,
    check_data,
    check_grid,
    check_noise,
    check_power,
    check_samples,
    check_spectrum,
    check_stages,
    merge,
)
from symlearn._ridge_simulation import simulated_errors

_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class RidgeRisk:
    """Expected errors of ridge regression; every field has the shape of ``n_samples`` broadcast against ``ridge``.

    Attributes
    ----------
    test : ndarray
        Mean squared error on new data; **includes** the irreducible noise: bias + variance + noise variance.
    train : ndarray
        Mean squared error on the training data, without the penalty.
    bias : ndarray
        Error of the mean predictor, where the mean runs over training inputs and training noise.
    variance : ndarray
        Scatter of the predictor around that mean. Inputs contribute to it even without noise.
    df1, df2 : ndarray
        Degrees of freedom ``sum(m s / (s + kappa))`` and ``sum(m s**2 / (s + kappa)**2)``.
    kappa : ndarray
        Effective ridge, in units of the eigenvalues.
    """

    test: np.ndarray
    train: np.ndarray
    bias: np.ndarray
    variance: np.ndarray
    df1: np.ndarray
    df2: np.ndarray
    kappa: np.ndarray


@dataclass(frozen=True)
class RidgeSimulation:
    """Errors of simulated fits, one row per training set.

    Attributes
    ----------
    test : ndarray, shape (n_sets, ...), then that of ``ridge``
        Mean squared error on new data, noise included: exact for the fitted weights.
    train : ndarray, shape (n_sets, ...), then that of ``ridge``
        Mean squared error on the training set, without the penalty.
    """

    test: np.ndarray
    train: np.ndarray


class RidgeTheory:
    r"""Exact high-dimensional theory of ridge regression for one data distribution.

    Inputs have covariance eigenvalues :math:`s_d` with multiplicities :math:`m_d`, the target is
    :math:`y = x^\top w^* + \varepsilon`, and the estimator minimises
    :math:`\frac1N\|y - Xw\|^2 + \lambda\|w\|^2`. There is no intercept and no factor 1/2:
    ``sklearn.linear_model.Ridge(alpha=N * ridge, fit_intercept=False)`` is the same estimator (`sklearn_alpha`).
    With the effective ridge :math:`\kappa` that solves

    .. math:: \lambda = \kappa\Bigl(1 - \tfrac1N\sum_d \tfrac{m_d s_d}{s_d+\kappa}\Bigr),

    the test error is
    :math:`\bigl(\sum_d p_d\kappa^2/(s_d+\kappa)^2 + \sigma^2\bigr)/(1 - \mathrm{df}_2/N)`. This is the leading order
    for large :math:`N` and :math:`P=\sum_d m_d` at a fixed ratio; corrections are of relative order :math:`1/m_d`.

    Parameters
    ----------
    eigenvalues : array_like, shape (D,)
        Eigenvalues :math:`s_d` of the input covariance (variances, not standard deviations), >= 0.
        Zeros are dropped and equal ones are merged: neither changes a prediction.
    signal : array_like, shape (D,)
        Signal power :math:`p_d = s_d\|w^*_d\|^2`: the variance of the target which the direction explains, summed over
        the ``multiplicities[d]`` directions of the group.
    noise_variance : float, default 0
        Variance :math:`\sigma^2` of the part of the target that no direction explains.
    multiplicities : array_like, shape (D,), optional
        Number of directions that share the eigenvalue, > 0, default 1. Fractions are allowed: only their ratio to
        ``n_samples`` matters.

    Raises
    ------
    ValueError
        For negative or non-finite numbers, other shapes, power on a zero eigenvalue, no positive eigenvalue at all, or
        magnitudes beyond 1e100 (eigenvalues and powers; eigenvalues below 1e-100 too) or 1e50 (multiplicities).

    References
    ----------
    Mel and Ganguli, ICML 2021; chapter :doc:`/chapters/anisotropic_ridge`.

    Examples
    --------
    Fifty strong and 450 weak directions. A target that lies in the strong ones is learned from few samples:

    >>> aligned = RidgeTheory([1.0, 0.01], [0.98, 0.02], noise_variance=0.01, multiplicities=[50, 450])
    >>> spread = RidgeTheory([1.0, 0.01], [0.02, 0.98], noise_variance=0.01, multiplicities=[50, 450])
    >>> aligned.learning_curve([50, 100, 400], "optimal").test.round(3)
    array([0.193, 0.06 , 0.025])
    >>> spread.learning_curve([50, 100, 400], "optimal").test.round(3)
    array([1.009, 1.008, 0.293])
    """

    def __init__(
        self,
        eigenvalues: ArrayLike,
        signal: ArrayLike,
        noise_variance: float = 0.0,
        multiplicities: ArrayLike | None = None,
    ) -> None:
        values, counts = check_spectrum(eigenvalues, multiplicities)
        power = check_power(signal, values.shape)
        for index in np.flatnonzero((values == 0) & (power > 0))[:1]:
            raise invalid("signal", "0 where the eigenvalue is 0", f"{power[index]:g} at index {index}")
        if not values.any():
            raise invalid("eigenvalues", "> 0 in at least one direction", "only zeros")
        self._noise_variance = check_noise(noise_variance)
        self._spectrum, self._signal = merge(values, counts, power)

    @property
    def eigenvalues(self) -> np.ndarray:
        """Distinct positive eigenvalues in descending order, read-only, shape (D,)."""
        return self._spectrum.values

    @property
    def signal(self) -> np.ndarray:
        """Power of the target in the directions of each distinct eigenvalue, read-only."""
        return self._signal

    @property
    def noise_variance(self) -> float:
        """Variance of the target that no direction explains."""
        return self._noise_variance

    @property
    def multiplicities(self) -> np.ndarray:
        """Number of directions of each distinct eigenvalue, read-only."""
        return self._spectrum.counts

    def __repr__(self) -> str:
        return (
            f"RidgeTheory({self.eigenvalues.size} distinct eigenvalues, {self._spectrum.n_features:g} features, "
            f"signal {self.signal.sum():.4g}, noise_variance {self.noise_variance:.4g})"
        )

    def risk(self, n_samples: ArrayLike, ridge: ArrayLike) -> RidgeRisk:
        r"""Errors of ridge regression for given numbers of samples and ridges.

        Parameters
        ----------
        n_samples : array_like
            Numbers of training samples, > 0; fractions are allowed, since only ratios matter.
        ridge : array_like
            Ridges :math:`\lambda` per sample, in units of the eigenvalues; broadcasts against ``n_samples``.
            0 is the minimum-norm interpolator or least squares. Negative ridges are allowed above `min_ridge`.

        Returns
        -------
        RidgeRisk
            Float64 arrays of the broadcast shape. At ``ridge=0`` and ``n_samples`` equal to the number of features
            ``test`` and ``variance`` are infinite (0 without noise) and ``train`` is 0. A large grid over a large
            spectrum goes through a Chebyshev series in :math:`\log\kappa`, to a relative accuracy of about 1e-12.

        Raises
        ------
        ValueError
            For shapes that do not broadcast, ``n_samples <= 0``, non-finite numbers, or a negative ridge at or below
            ``min_ridge(n_samples)``.

        Examples
        --------
        Without a ridge the error explodes where samples and features are equally many:

        >>> theory = RidgeTheory([1.0], [1.0], noise_variance=0.25, multiplicities=[100])
        >>> theory.risk([50, 99, 100, 200], 0.0).test.round(2)
        array([ 1.  , 25.01,   inf,  0.5 ])
        """
        n, lambdas = check_grid(n_samples, ridge)
        return self._risk(n, lambdas)

    def optimal_ridge(self, n_samples: ArrayLike) -> np.ndarray:
        """Ridge with the lowest test error among all admissible ones, negative ones included.

        The test error can have several local minima in the ridge; this is the global one, so it jumps where two of
        them exchange their order (chapter :doc:`/chapters/anisotropic_ridge`).

        Parameters
        ----------
        n_samples : array_like
            Numbers of training samples, > 0.

        Returns
        -------
        ndarray, shape of ``n_samples``
            Optimal ridges per sample; ``inf`` if there is no signal, or so little that the optimum exceeds 1e100.
            Negative for strongly aligned targets with little noise and fewer samples than features.

        Raises
        ------
        ValueError
            For ``n_samples <= 0`` or not finite.

        Examples
        --------
        In the isotropic model it is the number of features over samples, times noise variance over squared weights:

        >>> theory = RidgeTheory([1.0], [1.0], noise_variance=0.25, multiplicities=[100])
        >>> theory.optimal_ridge([50, 100, 200]).round(6)
        array([0.5  , 0.25 , 0.125])
        """
        n = check_samples(n_samples)
        distinct, inverse = np.unique(n, return_inverse=True)
        optimum = optimal_ridge(self._spectrum, self.signal, self.noise_variance, distinct)
        return np.where(optimum > LARGEST, np.inf, optimum)[inverse].reshape(n.shape)

    def min_ridge(self, n_samples: ArrayLike) -> np.ndarray:
        """Lowest ridge of the theory (excluded): minus the lower edge of the nonzero spectrum of ``X.T @ X / N``.

        Parameters
        ----------
        n_samples : array_like
            Numbers of training samples, > 0.

        Returns
        -------
        ndarray, shape of ``n_samples``
            Negative numbers, 0 where samples and features are equally many.

        Raises
        ------
        ValueError
            For ``n_samples <= 0`` or not finite.

        Examples
        --------
        >>> RidgeTheory([1.0], [1.0], multiplicities=[100]).min_ridge([25, 100, 400])
        array([-1.  ,  0.  , -0.25])
        """
        n = check_samples(n_samples)
        distinct, inverse = np.unique(n, return_inverse=True)
        return lowest_edge(self._spectrum, distinct).ridge[inverse].reshape(n.shape)

    def learning_curve(self, n_samples: ArrayLike, ridge: ArrayLike | Literal["optimal"]) -> RidgeRisk:
        """Errors along a learning curve, at given ridges or at the optimal one for each number of samples.

        Parameters
        ----------
        n_samples : array_like
            Numbers of training samples, > 0.
        ridge : array_like or "optimal"
            Ridges per sample as in `risk`, or ``"optimal"`` for `optimal_ridge` at each number of samples.

        Returns
        -------
        RidgeRisk
            As from `risk`. Where the optimal ridge is infinite (no signal), the values of the zero predictor.

        Raises
        ------
        ValueError
            As `risk`, or for another word.

        Examples
        --------
        >>> theory = RidgeTheory([1.0], [1.0], noise_variance=0.25, multiplicities=[100])
        >>> theory.learning_curve([50, 100, 200], "optimal").test.round(3)
        array([0.89 , 0.64 , 0.425])
        """
        if not isinstance(ridge, str):
            return self.risk(n_samples, ridge)
        check_choice("ridge", ridge, ("optimal",))
        n = check_samples(n_samples)
        return self._risk(n, self.optimal_ridge(n))

    def simulate(
        self,
        n_samples: int,
        ridge: ArrayLike,
        *,
        n_sets: int = 30,
        rng: int | np.random.Generator | None = None,
    ) -> RidgeSimulation:
        """Fit Gaussian training sets of this distribution, to see how good the theory is at a finite size.

        Inputs have the given spectrum; the power of a group is spread evenly over its directions.

        Parameters
        ----------
        n_samples : int
            Number of training samples.
        ridge : array_like
            Ridges per sample, above ``min_ridge(n_samples)``; all are fitted to the same training sets.
        n_sets : int
            Number of independent training sets.
        rng : int, numpy.random.Generator or None
            Source of the training sets.

        Returns
        -------
        RidgeSimulation
            Test and train error of every fit.

        Raises
        ------
        ValueError
            For a ridge at or below ``min_ridge(n_samples)`` or not finite, counts below 1, or multiplicities that are
            not whole numbers.
        TypeError
            For counts that are not integers, or another ``rng``.

        Examples
        --------
        >>> theory = RidgeTheory([1.0, 0.1], [0.5, 0.5], 0.25, [50, 150])
        >>> fits = theory.simulate(100, [0.0, 0.1], n_sets=200, rng=0)
        >>> theory.risk(100, [0.0, 0.1]).test.round(1), fits.test.mean(0).round(1)
        (array([1.1, 0.9]), array([1.1, 0.9]))
        """
        n, sets = check_int("n_samples", n_samples, 1), check_int("n_sets", n_sets, 1)
        generator = check_rng(rng)
        _, lambdas = check_grid(float(n), ridge)
        check_above_lowest(self._spectrum, np.full(lambdas.size, float(n)), lambdas.ravel())
        counts = np.minimum(self.multiplicities, 1e9).astype(int)
        if (counts != self.multiplicities).any():
            raise invalid("multiplicities", "whole numbers up to 1e9 to be simulated", "others")
        weights = np.repeat(np.sqrt(self.signal / counts / self.eigenvalues), counts)
        spectrum = np.repeat(self.eigenvalues, counts)
        errors = simulated_errors(spectrum, weights, self.noise_variance, n, lambdas.ravel(), sets, generator)
        return RidgeSimulation(*(error.reshape(sets, *lambdas.shape) for error in errors))

    @classmethod
    def from_data(cls, X: ArrayLike, y: ArrayLike) -> RidgeTheory:
        r"""Theory of the distribution that a sample came from: its eigenvalues, signal power and noise.

        Both arrays are centred. Eigenvalues are those of the sample covariance (divided by M), the noise variance is
        the residual sum of squares of least squares over ``M - rank - 1``, and the power that noise adds to every
        direction, noise variance over M, is taken off. Without that correction predicted errors are far too low.

        Parameters
        ----------
        X : array_like, shape (M, P)
            Features, one row per sample; far more rows than the learning curves to be predicted, if possible.
        y : array_like, shape (M,)
            Targets.

        Returns
        -------
        RidgeTheory
            Its attributes hold the estimates. The number of features is the rank of the centred ``X``.

        Raises
        ------
        ValueError
            For non-finite numbers, other shapes, constant features or targets, or ``M <= rank + 1``.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((4000, 20))
        >>> y = X @ np.full(20, 0.2) + 0.5 * rng.standard_normal(4000)
        >>> theory = RidgeTheory.from_data(X, y)
        >>> round(theory.noise_variance, 2), round(float(theory.signal.sum()), 1)
        (0.25, 0.8)
        """
        features, target = check_data(X, y)
        n_rows = len(features)
        # The triangular factor of [X, y] has the singular values, projections and residual of the data.
        factor = np.asarray(np.linalg.qr(np.column_stack([features, target]), mode="r"))
        left, singular, _ = svd(factor[:, :-1], full_matrices=False, check_finite=False)
        rank = int((singular > max(features.shape) * _EPSILON * singular[0]).sum())
        if n_rows <= rank + 1:
            raise invalid("X", f"of more than rank + 1 = {rank + 1} rows", f"{n_rows} rows")
        projections = left[:, :rank].T @ factor[:, -1]
        residual = factor[:, -1] - left[:, :rank] @ projections
        noise = float(residual @ residual) / (n_rows - rank - 1)
        raw = projections**2 / n_rows
        signal = np.maximum(raw - noise / n_rows, 0.0)
        signal *= max(raw.sum() - rank * noise / n_rows, 0.0) / (signal.sum() or 1.0)
        return cls(singular[:rank] ** 2 / n_rows, signal, noise)

    def _risk(self, n: np.ndarray, ridge: np.ndarray) -> RidgeRisk:
        flat_n, flat_ridge = n.ravel(), ridge.ravel()
        lowest = check_above_lowest(self._spectrum, flat_n, flat_ridge)
        fields = risk_terms(self._spectrum, self.signal, self.noise_variance, flat_n, flat_ridge, lowest)
        return RidgeRisk(*(field.reshape(n.shape) for field in fields))


@dataclass(frozen=True)
class RidgeSpectrum:
    """Limiting eigenvalue distribution of ``X.T @ X / n_samples``.

    Attributes
    ----------
    x : ndarray
        Points of the density, in units of the eigenvalues.
    density : ndarray, shape of ``x``
        Density of the continuous part, as a fraction of all eigenvalues per unit of ``x``; it integrates to
        ``min(1, n_samples / n_features)``. At the edges and outside the bands it is 0.
    edges : ndarray, shape (n_bands, 2)
        Lower and upper edge of every band, ascending.
    zero_mass : float
        Fraction of eigenvalues that are exactly 0: ``max(0, 1 - n_samples / n_features)``.
    """

    x: np.ndarray
    density: np.ndarray
    edges: np.ndarray
    zero_mass: float


def ridge_spectrum(
    eigenvalues: ArrayLike,
    n_samples: float,
    multiplicities: ArrayLike | None = None,
    grid: ArrayLike | None = None,
    n_points: int = 400,
) -> RidgeSpectrum:
    r"""Spectrum of :math:`\hat\Sigma = X^\top X/N`; add the ridge for the Hessian of half the mean squared loss.

    With :math:`\kappa(x)` the root in the lower half-plane of
    :math:`-x = \kappa\,(1 - \frac1N\sum_d\frac{m_ds_d}{s_d+\kappa})`, the density is
    :math:`\frac{N}{P}\frac1\pi\mathrm{Im}\frac1\kappa`; the edges belong to the real roots of
    :math:`\mathrm{df}_2(\kappa)=N`.

    Parameters
    ----------
    eigenvalues : array_like, shape (D,)
        Eigenvalues of the input covariance, > 0. Equal ones are merged.
    n_samples : float
        Number of samples, > 0.
    multiplicities : array_like, shape (D,), optional
        Directions that share the eigenvalue, > 0, default 1; fractions are allowed.
    grid : array_like, optional
        Points at which to evaluate the density. By default ``n_points`` per band, cosine-spaced, edges included.
    n_points : int, default 400
        Points per band of the default grid, >= 2.

    Returns
    -------
    RidgeSpectrum
        Density, band edges and the mass at zero. With equally many samples and features the lowest edge is 0; the
        density diverges there like :math:`x^{-1/2}`, and the value stored at the edge itself is 0 all the same.

    Raises
    ------
    ValueError
        For zero, negative or non-finite eigenvalues, other shapes, magnitudes as refused by `RidgeTheory`,
        ``n_samples <= 0`` or ``n_points < 2``.

    References
    ----------
    Mel and Ganguli, ICML 2021; chapter :doc:`/chapters/anisotropic_ridge`.

    Examples
    --------
    Two well separated scales split into two bands once there are enough samples:

    >>> ridge_spectrum([1.0, 0.05], 900, multiplicities=[180, 420]).edges.round(4)
    array([[0.0022, 0.1227],
           [0.3312, 2.1186]])
    >>> ridge_spectrum([1.0, 0.05], 300, multiplicities=[180, 420]).edges.round(4)
    array([[0.0142, 3.2212]])
    """
    values, counts = check_spectrum(eigenvalues, multiplicities)
    check_positive("eigenvalues", values)
    n = check_scalar("n_samples", check_samples(n_samples))
    check_int("n_points", n_points, 2)
    spectrum, _ = merge(values, counts, counts)
    limits, ends = bands(spectrum, n)
    if grid is None:
        phase = np.linspace(0.0, np.pi, n_points)
        x = (ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * np.sin(phase / 2) ** 2).ravel()
    else:
        x = check_finite("grid", grid)
    density = density_at(x.ravel(), spectrum, n, limits, ends).reshape(x.shape)
    return RidgeSpectrum(x, density, ends, max(0.0, 1 - n / spectrum.n_features))


def gap_density(ratio: ArrayLike, fraction: ArrayLike) -> np.ndarray:
    r"""Measurement density above which the Hessian of a two-scale model has a gap.

    For eigenvalues :math:`s_1 > s_2` shared by the fractions :math:`f` and :math:`1-f` of the features, a gap exists if
    and only if

    .. math:: \frac NP > \alpha_\mathrm{gap}
        = \frac{\bigl(f^{1/3} + (1-f)^{1/3}\rho^{2/3}\bigr)^3}{(1-\rho)^2}, \qquad \rho = s_2/s_1 .

    Parameters
    ----------
    ratio : array_like
        Ratio :math:`\rho` of the smaller eigenvalue to the larger one, >= 0 and < 1.
    fraction : array_like
        Fraction :math:`f` of the features that have the larger eigenvalue, > 0 and < 1; broadcasts against ``ratio``.

    Returns
    -------
    ndarray
        Densities ``n_samples / n_features`` of the transition; ``fraction`` at ``ratio=0``.

    Raises
    ------
    ValueError
        For numbers outside their interval or shapes that do not broadcast.

    References
    ----------
    Mel and Ganguli, ICML 2021; chapter :doc:`/chapters/anisotropic_ridge`.

    Examples
    --------
    >>> gap_density([0.0, 0.05, 0.5], 0.3).round(4)
    array([0.3   , 0.5462, 7.4213])
    """
    rho, f = check_nonnegative("ratio", ratio), check_positive("fraction", fraction)
    for name, values in (("ratio", rho), ("fraction", f)):
        for value in values[values >= 1][:1]:
            raise invalid(name, "< 1", float(value))
    rho, f = broadcast("ratio", rho, "fraction", f)
    return np.asarray((np.cbrt(f) + np.cbrt((1 - f) * rho**2)) ** 3 / (1 - rho) ** 2)


def stage_risk(density: ArrayLike, fractions: ArrayLike, signal: ArrayLike, noise_variance: float = 0.0) -> np.ndarray:
    r"""Test error of every learning stage at its own best ridge, for infinitely separated scales.

    Stage :math:`d` has learned the larger scales, is learning scale :math:`d`, and takes the smaller ones as noise.
    With :math:`F=\sum_{e<d}f_e`, :math:`\sigma_d^2=\sigma^2+\sum_{e>d}p_e` and :math:`\gamma=f_d/(\alpha-F)`,

    .. math:: E_d = \frac{\alpha}{\alpha-F}\,\frac{c+\sqrt{c^2+4p_d\sigma_d^2/\gamma}}2, \qquad
        c = \sigma_d^2+p_d-p_d/\gamma .

    The smallest of them is the test error at the optimal ridge.

    Parameters
    ----------
    density : array_like
        Measurement densities :math:`\alpha` = ``n_samples / n_features``, > 0.
    fractions : array_like, shape (D,)
        Fraction :math:`f_d` of the features at every scale, from the largest eigenvalue to the smallest; sums to 1.
    signal : array_like, shape (D,)
        Power :math:`p_d` of the target at every scale.
    noise_variance : float, default 0
        Irreducible noise.

    Returns
    -------
    ndarray, shape (..., D)
        Test errors, noise included; ``inf`` where a stage has not begun (:math:`\alpha\le F`).

    Raises
    ------
    ValueError
        For negative or non-finite numbers, other shapes, or fractions that do not sum to 1.

    References
    ----------
    Mel and Ganguli, ICML 2021; chapter :doc:`/chapters/anisotropic_ridge`.

    Examples
    --------
    >>> stage_risk([0.5, 1.0], [0.2, 0.8], [0.5, 0.5], noise_variance=0.01).round(6)
    array([[0.687403, 0.547021],
           [0.607784, 0.094859]])
    """
    alpha = check_positive("density", density)[..., None]
    f, p, noise = check_stages(fractions, signal, noise_variance)
    unlearned = noise + np.append(np.cumsum(p[::-1])[-2::-1], 0.0)
    available = alpha - np.append(0.0, np.cumsum(f)[:-1])
    begun = available > 0
    available = np.where(begun, available, 1.0)
    learned = p * available / f
    linear = unlearned + p - learned
    root = np.hypot(linear, 2 * np.sqrt(learned * unlearned))
    small = np.divide(2 * learned * unlearned, root - linear, where=linear < 0, out=np.zeros(root.shape))
    isotropic = np.where(linear < 0, small, (linear + root) / 2)
    return np.where(begun, alpha / available * isotropic, np.inf)


def jump_density(fractions: ArrayLike, signal: ArrayLike, noise_variance: float = 0.0) -> np.ndarray:
    r"""Measurement densities at which the optimal ridge jumps down to the next scale, for infinitely separated scales.

    The jump from stage :math:`d` to :math:`d+1` is where :math:`E_d(\alpha)=E_{d+1}(\alpha)` (`stage_risk`): the test
    error at the optimal ridge is continuous with a kink there, the ridge itself is discontinuous.

    Parameters
    ----------
    fractions, signal, noise_variance
        As for `stage_risk`.

    Returns
    -------
    ndarray, shape (D - 1,)
        Densities ``n_samples / n_features`` of the jumps, from the largest scale on; ``inf`` if the next stage never
        gains because its scale carries no signal.

    Raises
    ------
    ValueError
        As `stage_risk`.

    References
    ----------
    Mel and Ganguli, ICML 2021; chapter :doc:`/chapters/anisotropic_ridge`.

    Examples
    --------
    >>> jump_density([0.2, 0.8], [0.5, 0.5], noise_variance=0.01).round(6)
    array([0.422595])
    """
    f, p, noise = check_stages(fractions, signal, noise_variance)

    def advantage(log_excess: float, stage: int) -> float:
        current, following = stage_risk(begin[stage] + math.exp(log_excess), f, p, noise)[stage : stage + 2]
        return float(following - current)

    begin = np.cumsum(f)
    jumps = np.full(f.size - 1, np.inf)
    for stage in range(f.size - 1):
        if advantage(30.0, stage) < 0:
            low = math.log(_EPSILON * begin[stage]) + 1
            root = brentq(advantage, low, 30.0, args=(stage,), xtol=1e-14, rtol=4 * _EPSILON)
            jumps[stage] = begin[stage] + math.exp(root)
    return jumps


def sklearn_alpha(ridge: ArrayLike, n_samples: ArrayLike) -> np.ndarray:
    """The ``alpha`` of ``sklearn.linear_model.Ridge`` for a ridge per sample: ``ridge * n_samples``.

    Scikit-learn minimises the *sum* of squared errors plus ``alpha`` times the squared weights, this module the *mean*
    plus ``ridge`` times the squared weights. A curve at fixed ``alpha`` is one at a ridge that falls like 1/N.

    Parameters
    ----------
    ridge : array_like
        Ridges per sample, >= 0; scikit-learn refuses negative ones.
    n_samples : array_like
        Numbers of training samples, > 0; broadcasts against ``ridge``.

    Returns
    -------
    ndarray
        Values for ``Ridge(alpha=..., fit_intercept=False)``.

    Raises
    ------
    ValueError
        For a negative ridge, ``n_samples <= 0``, non-finite numbers or shapes that do not broadcast.

    Examples
    --------
    >>> sklearn_alpha(0.01, [50, 100])
    array([0.5, 1. ])
    """
    n, per_sample = check_grid(n_samples, check_nonnegative("ridge", ridge))
    return np.asarray(per_sample * n)
