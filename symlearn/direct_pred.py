r"""Why self-supervised learning without negatives does not collapse, and a predictor in closed form.

In a linear model of BYOL and SimSiam each feature is three scalars with a conserved charge, a collapsed and a healthy
fixed point; the charge aligns the predictor with the features, so that it can be computed instead of trained (chapter
:doc:`/chapters/direct_pred`). Source: Tian, Chen and Ganguli, "Understanding Self-Supervised Learning Dynamics without
Contrastive Pairs", arXiv:2102.06810.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from symlearn._byol_flow import (
    amplitudes,
    bounded,
    check_rates,
    check_start,
    check_times,
    log_separatrix,
    survives,
)
from symlearn._checks import (
    check_bool,
    check_broadcast,
    check_finite,
    check_fraction,
    check_int,
    check_nonnegative,
    check_positive,
    check_scalar,
    check_square,
    check_symmetric,
    invalid,
    wrong_dtype,
    wrong_type,
)
from symlearn._feature_correlation import batch_correlation, spectral_weight, symmetry_rtol

__all__ = [
    "ByolDynamics",
    "ByolFixedPoints",
    "ByolTrajectory",
    "DirectPredictor",
    "EigenspaceAlignment",
    "byol_loss",
    "critical_weight_decay",
    "direct_predictor_weight",
    "eigenspace_alignment",
]


@dataclass(frozen=True)
class ByolTrajectory:
    """Modes along time, of any shape.

    Attributes
    ----------
    t : ndarray, shape (T,)
        Learning rate times step.
    p : ndarray, shape (T, ...)
        Eigenvalues of the predictor.
    s : ndarray, shape (T, ...)
        Eigenvalues of the feature correlation.
    tau : ndarray, shape (T, ...)
        Target weight over online weight; all ones for an infinite EMA rate.
    """

    t: np.ndarray
    p: np.ndarray
    s: np.ndarray
    tau: np.ndarray


@dataclass(frozen=True)
class ByolFixedPoints:
    """Fixed points without collapse; None where there are none.

    Attributes
    ----------
    p_unstable, s_unstable : float or None
        The saddle: its stable manifold bounds the basin of collapse.
    p_stable, s_stable : float or None
        The healthy fixed point.
    critical_weight_decay : float
        ``1 / (4 (1 + augmentation_variance))``.
    collapse_only : bool
        Whether the weight decay exceeds the critical one.
    """

    p_unstable: float | None
    p_stable: float | None
    s_unstable: float | None
    s_stable: float | None
    critical_weight_decay: float
    collapse_only: bool


@dataclass(frozen=True)
class ByolDynamics:
    r"""Learning dynamics of one mode of linear BYOL or SimSiam, on data of identity covariance.

    With :math:`k=1+\sigma^2`, predictor eigenvalue :math:`p`, feature variance :math:`s`, target ratio :math:`\tau`,

    .. math::
        \dot p=\alpha_ps(\tau-kp)-\lambda p,\quad\dot s=2ps(\tau-kp)-2\lambda s,\quad
        \dot\tau=\beta(1-\tau)-\tau\,\dot s/2s .

    The loss is :math:`\frac12\|W_pWx_1-W_ax_2\|^2`, with the factor 1/2; time is learning rate times step. Modes do not
    interact, so that arrays of modes are integrated together.

    Parameters
    ----------
    alpha_p : float, default 1.0
        Learning rate of the predictor over that of the encoder, > 0. It multiplies the gradient only, not the decay.
    weight_decay : float, default 0.0
        :math:`\lambda\ge0`, the same for encoder and predictor.
    augmentation_variance : float, default 0.0
        Variance :math:`\sigma^2\ge0` that the augmentation adds in every direction, in units of the signal.
    ema_rate : float, default inf
        :math:`\beta>0`: a momentum m per step is ``(1 - m) / lr``. ``inf``: the target is the online network (SimSiam).

    Raises
    ------
    ValueError
        For arguments outside their range or not finite (but for ``ema_rate``).
    TypeError
        For anything but single real numbers.

    References
    ----------
    Tian, Chen and Ganguli, arXiv:2102.06810; steps 3 to 5 of the chapter :doc:`/chapters/direct_pred`.

    Examples
    --------
    >>> dynamics = ByolDynamics(weight_decay=0.05, augmentation_variance=0.2)
    >>> points = dynamics.fixed_points()
    >>> round(points.p_unstable, 4), round(points.p_stable, 4), round(points.critical_weight_decay, 4)
    (0.0534, 0.7799, 0.2083)
    >>> dynamics.basin(p0=[0.0, 0.2], s0=[1e-3, 1e-3])
    array([False,  True])
    >>> dynamics.integrate(p0=[0.0, 0.2], s0=[1e-3, 1e-3], t=[0.0, 400.0]).p.round(3)
    array([[0.  , 0.2 ],
           [0.  , 0.78]])
    """

    alpha_p: float = 1.0
    weight_decay: float = 0.0
    augmentation_variance: float = 0.0
    ema_rate: float = math.inf

    def __post_init__(self) -> None:
        for name, value in check_rates(self.alpha_p, self.weight_decay, self.augmentation_variance, self.ema_rate):
            object.__setattr__(self, name, value)

    def integrate(self, p0: ArrayLike, s0: ArrayLike, t: ArrayLike, tau0: float = 1.0) -> ByolTrajectory:
        r"""Solve the mode equations, with a relative accuracy of 1e-6 or better.

        Parameters
        ----------
        p0 : array_like
            Predictor eigenvalues at t = 0, of any sign; at most 1e6 in modulus.
        s0 : array_like
            Feature variances at t = 0, >= 0; broadcasts with ``p0``.
        t : array_like, shape (T,)
            Strictly increasing times >= 0, counted from the start.
        tau0 : float, default 1.0
            Target ratio at t = 0. Without effect for an infinite ``ema_rate``, where the target is the online network.

        Returns
        -------
        ByolTrajectory
            A mode with ``s0 = 0`` keeps ``tau0``, its target weight being zero as well. Where a slow target makes the
            online weight change its sign, s touches 0 and :math:`\tau` has a pole.

        Raises
        ------
        ValueError
            If something is not finite or outside its range, shapes do not broadcast, or t does not increase.
        TypeError
            For anything but real numbers.

        Notes
        -----
        Integrated in amplitudes, where the right-hand side is a polynomial, by one call of LSODA for all modes.
        """
        start, shape = check_start(p0, s0, tau0, self.alpha_p)
        times = check_times(t)
        states = amplitudes(start, times, **self._rates)
        v, u, p = (states[:, :, i].reshape(len(times), *shape) for i in range(3))
        rest = np.ones_like(v) if math.isinf(self.ema_rate) else np.full_like(v, tau0)
        tau = np.divide(u, v, out=rest, where=v != 0)
        return ByolTrajectory(times, p, v**2 / self.alpha_p, tau)

    def fixed_points(self) -> ByolFixedPoints:
        r"""The saddle and the healthy point, :math:`p_\pm=(1\pm\sqrt{1-4\lambda k})/2k` and :math:`s=p^2/\alpha_p`.

        Returns
        -------
        ByolFixedPoints
            The same for every EMA rate. Without weight decay the saddle is at 0, and the healthy point stands for a
            line of them: ``p = p_stable`` with any s.
        """
        critical = 0.25 / self._correlation
        if self.weight_decay > critical:
            return ByolFixedPoints(None, None, None, None, critical, True)
        root = math.sqrt(max(0.0, 1 - 4 * self.weight_decay * self._correlation))
        low, high = 2 * self.weight_decay / (1 + root), (1 + root) / (2 * self._correlation)
        return ByolFixedPoints(low, high, low**2 / self.alpha_p, high**2 / self.alpha_p, critical, False)

    def invariant(self, p: ArrayLike, s: ArrayLike) -> np.ndarray:
        r"""The charge :math:`c=s-p^2/\alpha_p`, which is :math:`c(0)\,e^{-2\lambda t}` for every target.

        Parameters
        ----------
        p, s : array_like
            Broadcast.

        Returns
        -------
        ndarray

        Raises
        ------
        ValueError
            If s is negative, something is not finite, or shapes do not broadcast.
        """
        predictor, variance = check_broadcast(p=check_finite("p", p), s=check_nonnegative("s", s))
        return np.asarray(variance - (predictor / math.sqrt(self.alpha_p)) ** 2)

    def basin(self, p0: ArrayLike, s0: ArrayLike, tau0: float = 1.0) -> np.ndarray:
        r"""Which starts do not collapse.

        Parameters
        ----------
        p0, s0 : array_like
            As in `integrate`.
        tau0 : float, default 1.0
            As in `integrate`.

        Returns
        -------
        ndarray of bool
            True where the mode stays away from 0; False for ``s0 = 0``. Undefined on the separatrix itself.

        Raises
        ------
        ValueError, TypeError
            As from `integrate`.

        Notes
        -----
        A comparison with :meth:`threshold` where that exists; for a finite EMA rate with weight decay the flow is
        integrated until every mode has entered one of the two basins.
        """
        start, shape = check_start(p0, s0, tau0, self.alpha_p)
        points = self.fixed_points()
        if points.collapse_only:
            return np.zeros(shape, bool)
        v, p = start[:, 0], start[:, 2]
        if self._has_threshold:
            with np.errstate(divide="ignore"):
                return (2 * np.log(v) > self._log_threshold(p)).reshape(shape)
        low, high = points.p_unstable or 0.0, points.p_stable or 0.0
        return (survives(start, unstable=low, stable=high, **self._rates) & (v > 0)).reshape(shape)

    def threshold(self, p0: ArrayLike) -> np.ndarray:
        r"""Feature variance above which a mode does not collapse, for an infinite EMA rate or no weight decay.

        The basin boundary is the stable manifold of the saddle, which is a graph over all predictor eigenvalues.

        Parameters
        ----------
        p0 : array_like
            Predictor eigenvalues at the start, of any sign.

        Returns
        -------
        ndarray
            ``inf`` above the critical weight decay.

        Raises
        ------
        ValueError
            If ``p0`` is not finite or beyond 1e6, or for a finite EMA rate with weight decay.

        Examples
        --------
        >>> ByolDynamics(weight_decay=0.05, augmentation_variance=0.2).threshold([-0.5, 0.0, 0.5, 2.0]).round(6)
        array([2.694190e-01, 6.758000e-03, 1.000000e-06, 1.453121e+00])
        """
        p = bounded("p0", check_finite("p0", p0))
        if not self._has_threshold:
            raise invalid("ema_rate", "inf, or weight_decay 0, for a threshold", self.ema_rate)
        if self.fixed_points().collapse_only:
            return np.full(p.shape, np.inf)
        return np.exp(self._log_threshold(p.ravel())).reshape(p.shape) / self.alpha_p

    @property
    def _correlation(self) -> float:
        return 1 + self.augmentation_variance

    @property
    def _rates(self) -> dict[str, float]:
        return {"correlation": self._correlation, "weight_decay": self.weight_decay, "ema_rate": self.ema_rate}

    @property
    def _has_threshold(self) -> bool:
        return not self.weight_decay or math.isinf(self.ema_rate)

    def _log_threshold(self, p: np.ndarray) -> np.ndarray:
        low = self.fixed_points().p_unstable or 0.0
        return log_separatrix(p, correlation=self._correlation, weight_decay=self.weight_decay, unstable=low)


def critical_weight_decay(signal: ArrayLike, augmentation: ArrayLike) -> np.ndarray:
    r"""Largest weight decay at which a feature can survive, :math:`x^2/4(x+x')`.

    Weak features, and those that the augmentation dominates, are removed first.

    Parameters
    ----------
    signal : array_like
        Variance :math:`x\ge0` of the feature's direction that both views of a datum share.
    augmentation : array_like
        Variance :math:`x'\ge0` that the augmentation adds there; broadcasts with ``signal``.

    Returns
    -------
    ndarray
        0 where there is no signal.

    Raises
    ------
    ValueError
        If a variance is negative or not finite, or shapes do not broadcast.

    References
    ----------
    Step 6 of the chapter :doc:`/chapters/direct_pred`.

    Examples
    --------
    >>> critical_weight_decay([2.0, 1.0, 0.6, 0.3], [0.5, 0.2, 0.9, 0.3]).round(4)
    array([0.4   , 0.2083, 0.06  , 0.0375])
    """
    x, extra = check_broadcast(
        signal=check_nonnegative("signal", signal), augmentation=check_nonnegative("augmentation", augmentation)
    )
    share = np.divide(x, x + extra, out=np.zeros_like(x), where=x > 0)
    return np.asarray(x * share / 4)


class DirectPredictor(nn.Module):
    r"""A linear predictor computed from the correlation of its inputs, instead of trained.

    Keeps :math:`\hat F\leftarrow\rho\hat F+(1-\rho)\frac1N\sum zz^\top` and sets
    :math:`W_p=U\,\mathrm{diag}(\hat s^{\,\nu}+\epsilon\max\hat s)\,U^\top` from its eigenvalues and eigenvectors. A
    drop-in for the predictor of BYOL or SimSiam: it has no parameters, no learning rate and no bias.

    Parameters
    ----------
    dim : int
        Size of the embedding, >= 1.
    ema : float, default 0.3
        The :math:`\rho` of the running correlation, in [0, 1).
    eps : float, default 0.1
        Boost :math:`\epsilon\ge0` of small eigenvalues, in units of the largest.
    exponent : float, default 0.5
        The :math:`\nu>0`: 1/2 is DirectPred, 1 is DirectCopy (which needs ``eps`` of about 0.3).
    freq : int, default 1
        The weight is computed anew on updates 1, 1 + freq, 1 + 2 freq, ...
    normalize : bool, default True
        Divide the eigenvalues by the largest one first.
    sync : bool, default True
        Sum over all ranks of ``torch.distributed`` where it is in use; each rank then has to update as often.

    Attributes
    ----------
    correlation : Tensor, shape (dim, dim)
        Buffer: the running correlation, not centred; zeros before the first update.
    weight : Tensor, shape (dim, dim)
        Buffer: the predictor; the identity before the first update.
    num_updates : Tensor, shape ()
        Buffer: number of updates, int64.

    Raises
    ------
    ValueError
        For numbers outside their range.
    TypeError
        For a ``dim`` or ``freq`` that is not an integer, flags that are not bool, or other numbers.

    Notes
    -----
    In a training loop with two views: ``predictor.update(torch.cat([z1, z2]))`` once per step, then
    ``predictor(z1, update=False)`` and ``predictor(z2, update=False)``. The eigenvalues are computed in the dtype of
    the buffers, at least float32, outside of autocast. Cost :math:`O(N d^2+d^3)`: raise ``freq`` for a large ``dim``.
    Ranks add sums and counts, so that shards of unequal size, empty ones included, give the result of the whole batch.

    References
    ----------
    Tian, Chen and Ganguli, arXiv:2102.06810; Wang, Chen, Du and Tian, arXiv:2110.04947; step 8 of the chapter
    :doc:`/chapters/direct_pred`.

    Examples
    --------
    >>> predictor = DirectPredictor(2)
    >>> z = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> predictor(z)
    tensor([[2.2000, 0.0000],
            [0.0000, 0.6000]])
    >>> predictor.eval()(z).equal(predictor(z, update=False)), int(predictor.num_updates)
    (True, 1)
    """

    correlation: Tensor
    weight: Tensor
    num_updates: Tensor

    def __init__(
        self,
        dim: int,
        *,
        ema: float = 0.3,
        eps: float = 0.1,
        exponent: float = 0.5,
        freq: int = 1,
        normalize: bool = True,
        sync: bool = True,
    ) -> None:
        super().__init__()
        self.dim = check_int("dim", dim, 1)
        self.ema = check_fraction("ema", ema)
        self.eps, self.exponent = _check_spectrum(eps, exponent)
        self.freq = check_int("freq", freq, 1)
        self.normalize = check_bool("normalize", normalize)
        self.sync = check_bool("sync", sync)
        self.register_buffer("correlation", torch.zeros(self.dim, self.dim))
        self.register_buffer("weight", torch.eye(self.dim))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, z: Tensor) -> None:
        """Take a batch into the running correlation, and compute the weight when its turn has come.

        Parameters
        ----------
        z : Tensor, shape (N, dim)
            Inputs of the predictor, of all views. No gradient flows.

        Raises
        ------
        ValueError
            If z is of another shape or device, empty, not finite, or the correlation has no positive eigenvalue. Then
            nothing has changed.
        TypeError
            If z is not a floating-point tensor.
        """
        self._check_input(z)
        with torch.autocast(z.device.type, enabled=False):
            dtype = torch.promote_types(self.correlation.dtype, torch.float32)
            batch = batch_correlation(z, dtype, sync=self.sync)
            count = int(self.num_updates)
            running = batch.lerp(self.correlation.to(batch.dtype), self.ema) if count else batch
            if count % self.freq == 0:
                weight = direct_predictor_weight(
                    running, eps=self.eps, exponent=self.exponent, normalize=self.normalize
                )
                self.weight.copy_(weight)
            self.correlation.copy_(running)
            self.num_updates.add_(1)

    def forward(self, z: Tensor, *, update: bool | None = None) -> Tensor:
        """Predictions ``z @ weight.T``, differentiable in z only.

        Parameters
        ----------
        z : Tensor, shape (N, dim)
            Embeddings.
        update : bool, optional
            Whether to `update` from z first. Default: in training mode only.

        Returns
        -------
        Tensor, shape (N, dim)
            In the dtype of z, or that of autocast.

        Raises
        ------
        ValueError, TypeError
            If z is of another shape, device or type; as from `update` otherwise.
        """
        if update is not None:
            check_bool("update", update)
        self._check_input(z)
        if self.training if update is None else update:
            self.update(z)
        # A copy: a later update must not change what an earlier forward pass has saved for its backward pass.
        return F.linear(z, self.weight.to(z.dtype, copy=True))

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"{self.dim}, ema={self.ema:g}, eps={self.eps:g}, exponent={self.exponent:g}, freq={self.freq}"

    def _check_input(self, z: Any) -> None:
        _check_tensor("z", z)
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise invalid("z", f"of shape (n, {self.dim})", z)
        if z.device != self.weight.device:
            raise invalid("z", f"on the device of the predictor ({self.weight.device})", str(z.device))


def direct_predictor_weight(corr: Tensor, *, eps: float = 0.1, exponent: float = 0.5, normalize: bool = True) -> Tensor:
    r"""The predictor :math:`U\,\mathrm{diag}(s^\nu+\epsilon\max s)\,U^\top` of a feature correlation.

    Parameters
    ----------
    corr : Tensor, shape (..., d, d)
        Correlation of the predictor's inputs; its symmetric part is used, and negative eigenvalues count as 0.
    eps, exponent, normalize
        As in :class:`DirectPredictor`.

    Returns
    -------
    Tensor, shape (..., d, d)
        In the dtype of ``corr``, computed in float32 or better. No gradient flows.

    Raises
    ------
    ValueError
        If ``corr`` is not square, not finite, or without a positive eigenvalue, or a number is outside its range.
    TypeError
        If ``corr`` is not a floating-point tensor.

    References
    ----------
    Step 8 of the chapter :doc:`/chapters/direct_pred`.

    Examples
    --------
    >>> direct_predictor_weight(torch.diag(torch.tensor([4.0, 1.0, 0.25, 0.0]))).diagonal()
    tensor([1.1000, 0.6000, 0.3500, 0.1000])
    """
    _check_tensor("corr", corr)
    if corr.ndim < 2 or corr.shape[-1] != corr.shape[-2] or not corr.numel():
        raise invalid("corr", "of shape (..., d, d)", corr)
    boost, power = _check_spectrum(eps, exponent)
    scaled = check_bool("normalize", normalize)
    with torch.no_grad(), torch.autocast(corr.device.type, enabled=False):
        return spectral_weight(corr, eps=boost, exponent=power, normalize=scaled)


@dataclass(frozen=True)
class EigenspaceAlignment:
    r"""How far a predictor shares eigenvectors with the correlation of its inputs.

    Attributes
    ----------
    eigenvalues : ndarray, shape (d,)
        Of the correlation, descending.
    cosine : ndarray, shape (d,)
        :math:`|v^\top W_pv|/\|W_pv\|` of each eigenvector, 1 where the predictor has it too; 0 where :math:`W_pv`
        vanishes. Meaningless among equal eigenvalues: read ``commutator``.
    commutator : float
        :math:`\|W_pF-FW_p\|/\|W_p\|\|F\|` in Frobenius norms; 0 if the two are aligned.
    asymmetry : float
        :math:`\|W_p-W_p^\top\|/2\|W_p\|`, from 0 (symmetric) to 1.
    """

    eigenvalues: np.ndarray
    cosine: np.ndarray
    commutator: float
    asymmetry: float


def eigenspace_alignment(wp: ArrayLike | Tensor, corr: ArrayLike | Tensor) -> EigenspaceAlignment:
    """Alignment of any linear predictor with the correlation of its inputs.

    Parameters
    ----------
    wp : array_like or Tensor, shape (d, d)
        Weight of the predictor, as in ``z @ wp.T``.
    corr : array_like or Tensor, shape (d, d)
        Symmetric, up to the rounding of its dtype.

    Returns
    -------
    EigenspaceAlignment

    Raises
    ------
    ValueError
        If a matrix is not square, not finite or zero, ``corr`` not symmetric, or shapes differ.
    TypeError
        For anything but real numbers.

    References
    ----------
    Step 2 of the chapter :doc:`/chapters/direct_pred`.

    Examples
    --------
    >>> found = eigenspace_alignment([[1.0, 0.5], [0.0, 2.0]], np.diag([2.0, 1.0]))
    >>> found.cosine.round(4), round(found.commutator, 4), round(found.asymmetry, 4)
    (array([1.    , 0.9701]), 0.0976, 0.1543)
    """
    weight = check_square("wp", wp)
    correlation = check_symmetric("corr", corr, rtol=symmetry_rtol(corr))
    if weight.shape != correlation.shape:
        raise invalid("corr", f"of the shape of wp {weight.shape}", correlation)
    for name, matrix in (("wp", weight), ("corr", correlation)):
        if not matrix.any():
            raise invalid(name, "nonzero", "a matrix of zeros")
    weight, scale = weight / np.abs(weight).max(), np.abs(correlation).max()
    correlation = (correlation + correlation.T) / (2 * scale)
    values, vectors = np.linalg.eigh(correlation)
    values, vectors = values[::-1], vectors[:, ::-1]
    images, size = weight @ vectors, np.linalg.norm(weight)
    lengths = np.linalg.norm(images, axis=0)
    overlap = np.abs((vectors * images).sum(0))
    cosine = np.divide(overlap, lengths, out=np.zeros_like(lengths), where=lengths >= 1e-12 * size)
    gap = np.linalg.norm(weight @ correlation - correlation @ weight)
    return EigenspaceAlignment(
        eigenvalues=values * scale,
        cosine=np.minimum(cosine, 1.0),
        commutator=float(gap / (size * np.linalg.norm(correlation))),
        asymmetry=float(np.linalg.norm(weight - weight.T) / (2 * size)),
    )


def byol_loss(prediction: Tensor, target: Tensor, *, normalize: bool = True) -> Tensor:
    r"""Distance of predictions to targets, with the stop-gradient on the targets inside.

    Parameters
    ----------
    prediction, target : Tensor, shape (..., d)
        Of the same shape; the mean is over all but the last axis. ``target`` is detached.
    normalize : bool, default True
        True: :math:`2-2\cos`, as in BYOL. False: :math:`\frac12\|\cdot\|^2`, the loss of the linear theory.

    Returns
    -------
    Tensor, shape ()
        In float32 or better; differentiable in ``prediction`` only. Not finite where the predictions are not.

    Raises
    ------
    ValueError
        If shapes differ, or there is no row.
    TypeError
        If one is not a floating-point tensor.

    Notes
    -----
    For SimSiam and BYOL add the loss of the two views exchanged. The value says nothing about collapse: a collapsed
    network has the lowest.

    Examples
    --------
    >>> byol_loss(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 1.0]])).item()
    0.585786...
    """
    _check_tensor("prediction", prediction)
    _check_tensor("target", target)
    if prediction.shape != target.shape:
        raise invalid("target", f"of the shape of prediction {tuple(prediction.shape)}", target)
    if prediction.ndim < 2 or not prediction.numel():
        raise invalid("prediction", "of shape (n, d) with at least one row", prediction)
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    online, fixed = prediction.to(dtype), target.detach().to(dtype)
    if check_bool("normalize", normalize):
        return 2 - 2 * F.cosine_similarity(online, fixed, dim=-1).mean()
    return (online - fixed).square().sum(-1).mean() / 2


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise wrong_type(name, "a tensor", value)
    if not value.is_floating_point():
        raise wrong_dtype(name, "a floating-point tensor", value)


def _check_spectrum(eps: float, exponent: float) -> tuple[float, float]:
    boost = check_scalar("eps", check_nonnegative("eps", eps))
    return boost, check_scalar("exponent", check_positive("exponent", exponent))
