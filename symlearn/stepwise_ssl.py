r"""Self-supervised learning one dimension at a time: when each embedding dimension is learned, and which ones remain.

A linear or kernel model under the linearised Barlow Twins loss in closed form, the embedding that it ends with as a
scikit-learn transformer, and the three joint-embedding losses in torch with their conventions written out (chapter
:doc:`/chapters/stepwise_ssl`). Source: Simon et al., "On the Stepwise Nature of Self-Supervised Learning", ICML 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh, qr
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from symlearn._checks import (
    check_bool,
    check_choice,
    check_finite,
    check_int,
    check_nonnegative,
    check_positive,
    check_scalar,
    check_shape,
    check_symmetric,
    invalid,
)
from symlearn._contrastive_kernel import center_views, contrastive_modes
from symlearn._embedding_losses import barlow_twins_loss, nt_xent_loss, vicreg_loss

__all__ = [
    "BarlowTrajectory",
    "KernelBarlowTwins",
    "LinearBarlowTwins",
    "barlow_twins_loss",
    "cross_correlation",
    "detect_steps",
    "embedding_spectrum",
    "nt_xent_loss",
    "vicreg_loss",
]

# Beyond it the loss, the square of an eigenvalue of C, would leave the range of float64.
_LARGEST = 1e150


@dataclass(frozen=True, eq=False)
class BarlowTrajectory:
    r"""Embedding dimensions along a run of :class:`LinearBarlowTwins`.

    Attributes
    ----------
    t : ndarray, shape (T,)
        Times of gradient flow, learning rate times step.
    singular_values : ndarray, shape (T, d)
        :math:`s_j(t)`, singular values of the weights.
    eigenvalues : ndarray, shape (T, d)
        :math:`\lambda_j=\gamma_js_j^2`, eigenvalues of the embedding's cross-correlation.
    loss : ndarray, shape (T,)
        :math:`\sum_j(1-\lambda_j)^2`.
    """

    t: np.ndarray
    singular_values: np.ndarray
    eigenvalues: np.ndarray
    loss: np.ndarray


class LinearBarlowTwins:
    r"""Gradient flow of a linear embedding :math:`f(x)=Wx` on the linearised Barlow Twins loss, in closed form.

    The loss is :math:`L=\|W\Gamma W^\top-I_d\|_F^2`: no factor 1/2, no off-diagonal weight, no standardisation.
    From small or aligned weights the eigenmodes of :math:`\Gamma` are learned one by one, each along a logistic curve
    :math:`\lambda_j(t)=\sigma(8\gamma_j(t-\tau_j))`. Time is learning rate times step.

    Parameters
    ----------
    gamma : array_like, shape (m,)
        Eigenvalues of the cross-correlation :math:`\Gamma`, in any order and of either sign.
    dim : int
        Embedding dimensions d, 1 to m. The d largest eigenvalues are the ones in play.
    init : float or array_like, shape (d,)
        Singular values :math:`s_j(0)>0` of the weights; entry j belongs to the j-th largest eigenvalue.

    Attributes
    ----------
    gamma : ndarray, shape (m,)
        All eigenvalues, descending.
    dim : int
        Embedding dimensions.
    init : ndarray, shape (d,)
        Initial singular values.

    Raises
    ------
    ValueError
        For eigenvalues that are not one-dimensional, empty or not finite, ``dim`` out of range, ``init`` that is not
        positive, of another length, or so large that an initial eigenvalue of C exceeds 1e150.
    TypeError
        For a ``dim`` that is not an integer, or anything but real numbers.

    See Also
    --------
    KernelBarlowTwins : Where the flow ends, from data, without training.

    Notes
    -----
    Exact if the right singular vectors of W(0) are the top eigenvectors of :math:`\Gamma`. For any other small start
    see :meth:`from_weights`. Full-batch descent with learning rate h is later by the factor
    :math:`4\gamma_jh/\log(1+4\gamma_jh)`, and stable for :math:`h<1/4\gamma_1`. Momentum and Adam have other times.

    References
    ----------
    Simon et al., *On the Stepwise Nature of Self-Supervised Learning*, ICML 2023; chapter
    :doc:`/chapters/stepwise_ssl`, eqs. 4 to 9.

    Examples
    --------
    >>> model = LinearBarlowTwins([1.0, 0.6, 0.3], dim=3, init=[1e-2, 2e-2, 5e-3])
    >>> model.step_times().round(4)
    array([1.1513, 1.7364, 4.9169])
    >>> run = model.trajectory([0.0, 2.0, 10.0])
    >>> run.eigenvalues[1].round(2)
    array([1.  , 0.78, 0.  ])
    >>> run.loss.round(4)
    array([2.9993, 1.0466, 0.    ])
    """

    gamma: np.ndarray
    dim: int
    init: np.ndarray

    def __init__(self, gamma: ArrayLike, dim: int, init: float | ArrayLike) -> None:
        values = check_shape("gamma", gamma, (None,))
        if not values.size:
            raise invalid("gamma", "of at least one eigenvalue", f"shape {values.shape}")
        self.gamma = np.sort(values)[::-1].copy()
        self.dim = check_int("dim", dim, 1, len(values))
        self.init = _check_init(init, self._top)
        self._frames = np.eye(self.dim), np.eye(len(values))[:, : self.dim]

    @classmethod
    def from_weights(cls, cross_corr: ArrayLike, weights: ArrayLike) -> LinearBarlowTwins:
        r"""The run that starts at given small weights, by the QR rule.

        With the top eigenvectors :math:`V_d` of :math:`\Gamma` and :math:`W(0)V_d=\hat UR`, R upper triangular with a
        positive diagonal, the run tends to the aligned one from :math:`s_j(0)=R_{jj}` as the weights tend to 0. The
        error is of the order of their size to the power :math:`\min_j(1-\gamma_{j+1}/\gamma_j)`.

        Parameters
        ----------
        cross_corr : array_like, shape (m, m)
            The symmetric :math:`\Gamma`, see :func:`cross_correlation`.
        weights : array_like, shape (d, m)
            Initial weights W(0), of rank d on the top eigenvectors.

        Returns
        -------
        LinearBarlowTwins
            Its :meth:`weights` are in the coordinates of ``cross_corr``.

        Raises
        ------
        ValueError
            For matrices that are not finite, not symmetric or of other shapes, or weights of lower rank.

        Examples
        --------
        >>> model = LinearBarlowTwins.from_weights(np.diag([0.5, 2.0]), [[1e-3, 2e-3]])
        >>> model.gamma, model.init
        (array([2. , 0.5]), array([0.002]))
        >>> model.final_weights().round(4)
        array([[0.    , 0.7071]])
        """
        matrix = check_symmetric("cross_corr", cross_corr)
        start = check_shape("weights", weights, (None, len(matrix)))
        _check_rows("weights", start, len(matrix))
        values, vectors = eigh((matrix + matrix.T) / 2)
        right = vectors[:, ::-1][:, : len(start)]
        return cls._from_modes(values, "weights", start @ right, right)

    @classmethod
    def from_kernel(
        cls, kernel: ArrayLike, outputs: ArrayLike, *, center: bool = False, rcond: float = 1e-10
    ) -> LinearBarlowTwins:
        r"""The run of a kernel model, or of a network of fixed tangent kernel, from its small outputs at the start.

        Parameters
        ----------
        kernel : array_like, shape (2n, 2n)
            Positive semidefinite kernel of the stacked views: row i and row n + i are a positive pair. For example
            :func:`symlearn.tangent_kernel.empirical_ntk` of a network at initialisation.
        outputs : array_like, shape (2n, d)
            Initial embedding of the same views.
        center : bool, default False
            Subtract the mean feature and the mean output of each view, as a loss with centred embeddings does.
        rcond : float, default 1e-10
            Eigenvalues of the kernel below ``rcond`` times the largest are dropped.

        Returns
        -------
        LinearBarlowTwins
            Its :meth:`weights` are dual: (d, 2n), with :math:`f(x)=\sum_iw_ik(z_i,x)`; ``gamma`` are the eigenvalues
            of the contrastive kernel on the range of the kernel.

        Raises
        ------
        ValueError
            For a kernel that is not finite, symmetric, positive semidefinite, nonzero and of even size, outputs of
            another length, more outputs than modes, or outputs of lower rank on the top modes; ``rcond`` outside of
            (0, 1).
        TypeError
            For a ``center`` that is not a bool.

        Examples
        --------
        >>> views = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [2.0, 1.0]])
        >>> weights = np.array([[2e-3, 1e-3]])
        >>> by_kernel = LinearBarlowTwins.from_kernel(views @ views.T, views @ weights.T)
        >>> by_weights = LinearBarlowTwins.from_weights(cross_correlation(views[:3], views[3:]), weights)
        >>> bool(np.isclose(by_kernel.step_times(), by_weights.step_times())[0])
        True
        """
        matrix = check_symmetric("kernel", kernel)
        if len(matrix) % 2:
            raise invalid("kernel", "of even size, two views of each sample", f"shape {matrix.shape}")
        start = check_shape("outputs", outputs, (len(matrix), None))
        matrix = (matrix + matrix.T) / 2
        if check_bool("center", center):
            matrix = center_views(matrix)
            start = start - start.reshape(2, -1, start.shape[1]).mean(axis=1).repeat(len(start) // 2, axis=0)
        modes = contrastive_modes(matrix, _check_rcond(rcond))
        _check_rows("outputs", start.T, len(modes.gamma))
        dual = modes.dual[:, : start.shape[1]]
        return cls._from_modes(modes.gamma, "outputs", start.T @ dual, dual)

    def trajectory(self, t: ArrayLike) -> BarlowTrajectory:
        """Singular values, eigenvalues and loss at given times.

        Parameters
        ----------
        t : array_like, shape (T,)
            Times >= 0, in any order; learning rate times step.

        Returns
        -------
        BarlowTrajectory
            For ``dim`` modes, by descending ``gamma``.

        Raises
        ------
        ValueError
            For times that are negative, not finite or not one-dimensional.
        """
        times = _check_times(t)
        log_start, log_ratio, log_rest = self._growth(times)
        eigenvalues = np.sign(self._top) * np.exp(log_start - log_ratio)
        # 1 - lambda without cancellation where lambda tends to 1.
        rest = np.where(self._top > 0, (1 - self._top * self.init**2) * np.exp(log_rest), 1 - eigenvalues)
        values = np.exp(np.log(self.init) - log_ratio / 2)
        return BarlowTrajectory(times, values, eigenvalues, np.square(rest).sum(axis=1))

    def step_times(self) -> np.ndarray:
        r"""Time at which each eigenvalue passes 1/2, :math:`\tau_j=\log(1/\gamma_js_j(0)^2-1)/8\gamma_j`.

        Returns
        -------
        ndarray, shape (d,)
            Negative for a mode that starts above half of its final height; ``-inf`` for one that starts at or above
            all of it, ``inf`` for one with :math:`\gamma_j\le0`, which is never learned.
        """
        positive, start = self._top > 0, self._top * self.init**2
        inside = np.where(positive & (start < 1), start, 0.5)
        with np.errstate(over="ignore", divide="ignore"):
            log_start = np.log(np.where(positive, self._top, 1.0)) + 2 * np.log(self.init)
            times = (np.log1p(-inside) - log_start) / (8 * np.where(positive, self._top, 1.0))
        return np.where(positive, np.where(start < 1, times, -np.inf), np.inf)

    def weights(self, t: ArrayLike) -> np.ndarray:
        r"""The weights :math:`W(t)=\hat U\,\mathrm{diag}(s_j(t))\,V_d^\top`.

        Parameters
        ----------
        t : array_like, shape (T,)
            Times >= 0.

        Returns
        -------
        ndarray, shape (T, d, m)
            In the eigenbasis of :math:`\Gamma`, with :math:`\hat U=I`, if the model was made from eigenvalues alone.

        Raises
        ------
        ValueError
            As by :meth:`trajectory`.
        """
        left, right = self._frames
        return (left * self.trajectory(t).singular_values[:, None, :]) @ right.T

    def final_weights(self) -> np.ndarray:
        r"""Where the weights go, :math:`\hat U\,\mathrm{diag}(\gamma_j^{-1/2})\,V_d^\top`.

        Returns
        -------
        ndarray, shape (d, m)
            Of the weights without loss these have the smallest Frobenius norm. A mode with :math:`\gamma_j<0` ends at
            0, one with :math:`\gamma_j=0` stays where it started.
        """
        left, right = self._frames
        learned = 1 / np.sqrt(np.where(self._top > 0, self._top, 1.0))
        final = np.where(self._top > 0, learned, np.where(self._top < 0, 0.0, self.init))
        return (left * final) @ right.T

    def __repr__(self) -> str:
        return f"LinearBarlowTwins(gamma={self.gamma!r}, dim={self.dim}, init={self.init!r})"

    @property
    def _top(self) -> np.ndarray:
        return self.gamma[: self.dim]

    @classmethod
    def _from_modes(cls, gamma: np.ndarray, name: str, start: np.ndarray, right: np.ndarray) -> LinearBarlowTwins:
        """The run from the initial weights (d, d) on the top modes, whose vectors are the columns of ``right``."""
        left, upper = qr(start)
        diagonal = np.diagonal(upper)
        if (np.abs(diagonal) <= len(start) * np.finfo(float).eps * np.linalg.norm(start, axis=0)).any():
            rank = int(np.linalg.matrix_rank(start))
            raise invalid(name, f"of rank {len(start)} on the top {len(start)} modes", f"rank {rank}")
        model = cls(gamma, len(start), np.abs(diagonal))
        model._frames = left * np.sign(diagonal), right
        return model

    def _growth(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r"""Logarithms of :math:`|x|=|\gamma|s(0)^2`, of :math:`D=E+x(1-E)` with :math:`E=e^{-8\gamma t}`, and of E / D.

        In terms of them :math:`s=s(0)/\sqrt D`, :math:`\lambda=x/D` and :math:`1-\lambda=(1-x)E/D`.
        """
        with np.errstate(over="ignore", divide="ignore"):
            exponent = 8 * self._top * times[:, None]
            log_start = np.log(np.abs(self._top)) + 2 * np.log(self.init)
            saturation = log_start + np.log(-np.expm1(-np.abs(exponent)))
        # What would overflow for negative gamma, 1 / E, is taken out of the sum.
        log_ratio = np.logaddexp(np.minimum(-exponent, 0), saturation) - np.minimum(exponent, 0)
        log_rest = np.where(self._top > 0, -np.maximum(exponent, 0) - np.where(self._top > 0, log_ratio, 0), 0)
        return log_start, log_ratio, log_rest


class KernelBarlowTwins(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""The embedding that a kernel model ends with under the Barlow Twins loss from a small start, without training.

    The embedding consists of the top eigenmodes of the contrastive kernel
    :math:`K_\Gamma=\frac1{2n}K^{1/2}SK^{1/2}`, where K is the kernel of all 2n views and S swaps the two views of
    each sample. On the training pairs its uncentred cross-correlation is the identity.

    Parameters
    ----------
    n_components : int, default 2
        Embedding dimensions d.
    kernel : {"linear", "rbf"} or callable, default "rbf"
        ``"rbf"`` is :math:`e^{-\gamma\|x-y\|^2}`. A callable gets two arrays (a, p) and (b, p) and returns a positive
        semidefinite kernel matrix (a, b).
    gamma : float, optional
        Of the RBF kernel, > 0; by default 1 / p. Not to be confused with the eigenvalues of the contrastive kernel.
    rcond : float, default 1e-10
        Eigenvalues of the kernel, and of the contrastive kernel, below ``rcond`` times the largest do not count.

    Attributes
    ----------
    eigenvalues_ : ndarray, shape (r,)
        All eigenvalues of the contrastive kernel on the range of the kernel, descending: of either sign. A step of the
        flow comes at a time proportional to the inverse, see :class:`LinearBarlowTwins`.
    dual_coef_ : ndarray, shape (2n, n_components)
        ``transform(X) = k(X, X_fit_) @ dual_coef_``.
    X_fit_ : ndarray, shape (2n, p)
        The stacked views.
    n_features_in_ : int
        Features seen by ``fit``.

    Raises
    ------
    ValueError
        In ``fit``: for views that are not finite, not two-dimensional or of different shapes, an unknown kernel, a
        callable that does not return a finite positive semidefinite matrix, or more components than there are positive
        eigenvalues.
    TypeError
        In ``fit``: for parameters of the wrong type.

    Notes
    -----
    If the two views of each sample are the same this is kernel PCA, up to whitening and centring.

    Where to stop the training is the choice of ``n_components``: the flow learns the components in this order. Signs of
    components are arbitrary; here the dual coefficient of the largest modulus is positive. Centre the views to keep
    their mean from being a component. Time is :math:`O((2n)^3)` and memory :math:`O((2n)^2)`; for many samples map
    them by ``sklearn.kernel_approximation`` first and take ``kernel="linear"``.

    ``fit`` takes both views. Within a ``Pipeline`` freeze the fitted transformer (``sklearn.frozen.FrozenEstimator``),
    and apply what comes before it to both views by hand.

    References
    ----------
    Simon et al., *On the Stepwise Nature of Self-Supervised Learning*, ICML 2023; chapter
    :doc:`/chapters/stepwise_ssl`, eq. 12.

    Examples
    --------
    >>> first = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    >>> second = [[1.0, 1.0], [0.0, 1.0], [2.0, 1.0]]
    >>> ssl = KernelBarlowTwins(n_components=2, kernel="linear").fit(first, second)
    >>> ssl.eigenvalues_.round(4)
    array([1.5205, 0.1461])
    >>> ssl.transform([[2.0, -1.0]]).shape
    (1, 2)
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        kernel: str | Callable[[np.ndarray, np.ndarray], ArrayLike] = "rbf",
        gamma: float | None = None,
        rcond: float = 1e-10,
    ) -> None:
        self.n_components = n_components
        self.kernel = kernel
        self.gamma = gamma
        self.rcond = rcond

    def fit(self, X1: ArrayLike, X2: ArrayLike) -> KernelBarlowTwins:
        """Find the top modes of the contrastive kernel.

        Parameters
        ----------
        X1, X2 : array_like, shape (n, p)
            Two views of each sample: row i of both is a positive pair.

        Returns
        -------
        KernelBarlowTwins
            The fitted transformer itself.
        """
        n_components = check_int("n_components", self.n_components, 1)
        rcond = _check_rcond(self.rcond)
        if not callable(self.kernel):
            check_choice("kernel", self.kernel, ("linear", "rbf"))
        first = validate_data(self, X1, dtype=np.float64)
        second = check_array(X2, dtype=np.float64, input_name="X2")
        if second.shape != first.shape:
            raise invalid("X2", f"of the shape of X1 {first.shape}", f"shape {second.shape}")
        self.X_fit_ = np.concatenate([first, second])
        matrix = check_symmetric("kernel", self._kernel_matrix(self.X_fit_, self.X_fit_))
        modes = contrastive_modes((matrix + matrix.T) / 2, rcond)
        gamma = modes.gamma
        n_positive = int((gamma > rcond * max(gamma[0], 0.0)).sum())
        if n_components > n_positive:
            found = f"the number of positive eigenvalues with n_samples={len(first)}, n_features={first.shape[1]}"
            raise invalid("n_components", f"<= {n_positive} ({found})", n_components)
        dual = modes.dual[:, :n_components] / np.sqrt(gamma[:n_components])
        signs = np.sign(dual[np.abs(dual).argmax(axis=0), np.arange(n_components)])
        self.eigenvalues_, self.dual_coef_ = gamma, dual * signs
        return self

    def fit_transform(self, X1: ArrayLike, X2: ArrayLike) -> np.ndarray:
        """Fit to the pairs, and embed the first views: ``fit(X1, X2).transform(X1)``, of shape (n, n_components)."""
        return self.fit(X1, X2).transform(X1)

    def transform(self, X: ArrayLike) -> np.ndarray:
        r"""Embed samples, :math:`f_j(x)=\gamma_j^{-1/2}\,b_j^\top K^{+1/2}k(x)`.

        Parameters
        ----------
        X : array_like, shape (N, p)
            Samples or views.

        Returns
        -------
        ndarray, shape (N, n_components)
            Components by descending eigenvalue.
        """
        check_is_fitted(self)
        rows = np.asarray(validate_data(self, X, dtype=np.float64, reset=False))
        return self._kernel_matrix(rows, self.X_fit_) @ self.dual_coef_

    @property
    def _n_features_out(self) -> int:
        return self.dual_coef_.shape[1]

    def _kernel_matrix(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        if callable(self.kernel):
            return check_shape("kernel(X, Y)", self.kernel(rows, columns), (len(rows), len(columns)))
        with np.errstate(over="ignore", invalid="ignore"):
            if self.kernel == "linear":
                matrix = rows @ columns.T
            else:
                scale = 1 / rows.shape[1] if self.gamma is None else self.gamma
                rate = check_scalar("gamma", check_positive("gamma", scale))
                matrix = np.exp(-rate * cdist(rows, columns, "sqeuclidean"))
        if not np.isfinite(matrix).all():
            raise invalid("X", "of magnitudes whose products are within the range of float64", "larger ones")
        return matrix


def embedding_spectrum(
    z1: ArrayLike | Tensor, z2: ArrayLike | Tensor | None = None, *, center: bool = True
) -> np.ndarray:
    r"""Eigenvalues of an embedding's covariance, or of the symmetrised cross-covariance of two views: the monitor.

    Parameters
    ----------
    z1 : array_like or Tensor, shape (N, d)
        Embedding.
    z2 : array_like or Tensor, shape (N, d), optional
        Embedding of the other views; by default the same.
    center : bool, default True
        Subtract the mean of each view.

    Returns
    -------
    ndarray, shape (d,)
        Eigenvalues of :math:`(C+C^\top)/2` with :math:`C=z_1^\top z_2/N`, descending, in float64.

    Raises
    ------
    ValueError
        For embeddings that are not finite, not two-dimensional, empty or of different shapes.
    TypeError
        For anything but real numbers, or a ``center`` that is not a bool.

    References
    ----------
    Simon et al., ICML 2023; chapter :doc:`/chapters/stepwise_ssl`, eq. 2.

    Examples
    --------
    >>> embedding_spectrum([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    array([2. , 0.5])
    """
    first = _check_view("z1", z1)
    second = first if z2 is None else _check_view("z2", z2)
    if second.shape != first.shape:
        raise invalid("z2", f"of the shape of z1 {first.shape}", f"shape {second.shape}")
    return np.linalg.eigvalsh(_correlate(first, second, check_bool("center", center)))[::-1].copy()


def cross_correlation(X1: ArrayLike | Tensor, X2: ArrayLike | Tensor, *, center: bool = False) -> np.ndarray:
    r"""Cross-view correlation :math:`\Gamma=\frac1{2n}(X_1^\top X_2+X_2^\top X_1)` of features.

    What the views share minus what the augmentation scatters: with mean m and half difference :math:`\delta` of a pair
    it is :math:`\frac1n\sum(mm^\top-\delta\delta^\top)`, so it has negative eigenvalues too.

    Parameters
    ----------
    X1, X2 : array_like or Tensor, shape (n, m)
        Two views of each sample: row i of both is a positive pair.
    center : bool, default False
        Subtract the mean of each view.

    Returns
    -------
    ndarray, shape (m, m)
        Symmetric, in float64.

    Raises
    ------
    ValueError
        For views that are not finite, not two-dimensional, empty or of different shapes.
    TypeError
        For anything but real numbers, or a ``center`` that is not a bool.

    References
    ----------
    Simon et al., ICML 2023; chapter :doc:`/chapters/stepwise_ssl`, eq. 1.

    Examples
    --------
    >>> cross_correlation([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]])
    array([[ 0.5,  0. ],
           [ 0. , -0.5]])
    """
    first, second = _check_view("X1", X1), _check_view("X2", X2)
    if second.shape != first.shape:
        raise invalid("X2", f"of the shape of X1 {first.shape}", f"shape {second.shape}")
    return _correlate(first, second, check_bool("center", center))


def detect_steps(
    t: ArrayLike, eigenvalues: ArrayLike, *, level: float = 0.5, final: ArrayLike | None = None
) -> np.ndarray:
    """When each eigenvalue first reaches a fraction of its final value.

    Parameters
    ----------
    t : array_like, shape (T,)
        Strictly increasing times, or any other coordinate such as their logarithm.
    eigenvalues : array_like, shape (T, d)
        Eigenvalues at these times.
    level : float, default 0.5
        The fraction, between 0 and 1, both excluded.
    final : float or array_like, shape (d,), optional
        Final values; by default those of the last row.

    Returns
    -------
    ndarray, shape (d,)
        Times, linear between those given; the first of them for what begins above the level, ``inf`` for what never
        reaches it or has a final value that is not positive.

    Raises
    ------
    ValueError
        For numbers that are not finite, times that do not increase, shapes that disagree, or a ``level`` outside of
        (0, 1).
    TypeError
        For anything but real numbers.

    References
    ----------
    Chapter :doc:`/chapters/stepwise_ssl`, eq. 6.

    Examples
    --------
    >>> detect_steps([0.0, 1.0, 2.0], [[0.0, 0.0], [1.0, 0.1], [1.0, 0.3]], final=1.0)
    array([0.5, inf])
    """
    times = check_shape("t", t, (None,))
    if not len(times) or (np.diff(times) <= 0).any():
        raise invalid("t", "strictly increasing, at least one number", "a step back or none" if len(times) else "none")
    values = check_shape("eigenvalues", eigenvalues, (len(times), None))
    fraction = check_scalar("level", level)
    if not 0 < fraction < 1:
        raise invalid("level", "between 0 and 1, both excluded", fraction)
    last = values[-1] if final is None else check_finite("final", final)
    if last.shape not in ((), (values.shape[1],)):
        raise invalid("final", f"a number or of shape ({values.shape[1]},)", f"shape {last.shape}")
    last = np.broadcast_to(last, values.shape[1:])
    steps = np.full(values.shape[1], np.inf)
    for j, target in enumerate(fraction * last):
        reached = np.flatnonzero(values[:, j] >= target)
        if target > 0 and len(reached):
            i = reached[0]
            between = slice(max(i - 1, 0), i + 1)
            steps[j] = np.interp(target, values[between, j], times[between])
    return steps


def _check_init(init: ArrayLike, gamma: np.ndarray) -> np.ndarray:
    values = check_positive("init", init)
    if values.shape not in ((), gamma.shape):
        raise invalid("init", f"a number or of shape ({len(gamma)},)", f"shape {values.shape}")
    with np.errstate(over="ignore"):
        largest = float((np.abs(gamma) * values**2).max())
    if largest > _LARGEST:
        raise invalid("init", f"such that gamma * init**2 is at most {_LARGEST:g} in modulus", largest)
    return np.broadcast_to(values, gamma.shape).copy()


def _check_times(t: ArrayLike) -> np.ndarray:
    return check_nonnegative("t", check_shape("t", t, (None,)))


def _check_rcond(rcond: float) -> float:
    value = check_scalar("rcond", check_positive("rcond", rcond))
    if value >= 1:
        raise invalid("rcond", "< 1", value)
    return value


def _check_rows(name: str, start: np.ndarray, n_modes: int) -> None:
    if not 1 <= len(start) <= n_modes:
        raise invalid(name, f"of 1 to {n_modes} embedding dimensions, as many as there are modes", f"{len(start)}")


def _check_view(name: str, view: ArrayLike | Tensor) -> np.ndarray:
    values = check_shape(name, view, (None, None))
    if not values.size:
        raise invalid(name, "of at least one sample and one dimension", f"shape {values.shape}")
    return values


def _correlate(first: np.ndarray, second: np.ndarray, center: bool) -> np.ndarray:
    if center:
        first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    product = first.T @ second / len(first)
    return (product + product.T) / 2
