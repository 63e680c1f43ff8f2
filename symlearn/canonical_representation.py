"""Six alignments between the representations, weights and gradients of each layer, and the power laws between them.

After training with SGD and weight decay, the second moment of the activations, that of the back-propagated gradients
and the Gram matrix of the weight are close to proportional on each side of a layer: the canonical representation
hypothesis. This module measures them, the exponents that remain where it fails, and a layer that can be solved. Chapter
:doc:`/chapters/canonical_representation`; Ziyin, Chuang, Galanti and Poggio, ICLR 2025 (arXiv:2410.03006).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import theilslopes
from torch import Tensor, nn

from symlearn._checks import (
    check_bool,
    check_choice,
    check_finite,
    check_int,
    check_module,
    check_pair,
    check_scalar,
    check_shape,
    check_square,
    check_symmetric,
    invalid,
    wrong_type,
)
from symlearn._layer_moments import LayerSums, Recorder, all_layers, blaming, named_layers, undisturbed

__all__ = [
    "AlignmentProbe",
    "CRHReport",
    "LayerMoments",
    "LinearLayerMoments",
    "PowerLawFit",
    "alignment",
    "crh_report",
    "linear_layer_moments",
    "power_law_exponent",
]

_EPSILON = float(np.finfo(np.float64).eps)
_ASYMMETRY = 1e-6  # what float32 products leave
_LARGEST_BATCH = 10**15
_MEASURES = ("pearson", "cosine")

Measure = Literal["pearson", "cosine"]
LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LayerMoments:
    r"""The six matrices of one layer :math:`h_b = W h_a + \beta`, all float64 and symmetric.

    The gradients are :math:`g_b = \nabla_{h_b}\ell` of the loss of one sample and :math:`g_a = W^\top g_b`, the
    gradient with respect to the input *through this layer* (not through a skip branch that also reads it).

    Attributes
    ----------
    H_in, H_out : ndarray, shape (d_a, d_a) and (d_b, d_b)
        Second moments of :math:`h_a` and :math:`h_b`.
    G_in, G_out : ndarray, shape (d_a, d_a) and (d_b, d_b)
        Second moments of :math:`g_a` and :math:`g_b`.
    Z_in, Z_out : ndarray, shape (d_a, d_a) and (d_b, d_b)
        :math:`W^\top W` and :math:`W W^\top`.
    n_samples : int
        Number of vectors averaged over: samples times positions.
    """

    H_in: np.ndarray
    H_out: np.ndarray
    G_in: np.ndarray
    G_out: np.ndarray
    Z_in: np.ndarray
    Z_out: np.ndarray
    n_samples: int


class AlignmentProbe:
    r"""Measures the second moments of activations, gradients and weights of a model's layers, batch by batch.

    ``with AlignmentProbe(model) as probe: probe.update(inputs, targets, loss_fn)``, then ``probe.moments()``, inside
    the block or after it.

    Parameters
    ----------
    model : nn.Module
        Any module; only read. It runs in evaluation mode (no dropout, batch norm with its running statistics). Of a
        data-parallel or compiled model pass the module inside.
    layers : sequence of str, optional
        Names from ``model.named_modules()``. By default every ``nn.Linear`` and every ``nn.Conv2d`` with ``groups=1``
        that the forward pass calls.
    centered : bool, default False
        Covariances instead of second moments about the origin, for activations and gradients. Essential for activations
        after a ReLU, where the mean hides everything else.
    normalized : bool, default False
        Divide each vector by its Euclidean norm first (zero vectors stay zero). Published measurements are centred and
        normalised.

    Raises
    ------
    ValueError
        If a name is unknown or given twice, a named convolution has groups, or the model has no layer to measure.
    TypeError
        If an argument has the wrong type, or a named layer is not an ``nn.Linear`` or ``nn.Conv2d``. A subclass with a
        ``forward`` of its own is none, because its weight is not what multiplies the input; by default it is left out.

    Notes
    -----
    - *What is a sample.* For Linear each leading index of its input (a token, for instance); for Conv2d each position
      of each image, with the im2col patch (in the order of ``weight.flatten(1)``, padding included) as :math:`h_a`. A
      layer that is called several times in a forward pass sees the vectors of all calls. Samples of a batch must not
      interact, which a batch norm without running statistics would make them do.
    - *Layers without data.* A layer that forward does not call as a module is left out of ``moments`` by default, and
      is an error when it was named: ``out_proj`` of ``nn.MultiheadAttention`` is one, whose weight is used directly
      (its query, key and value weights are no modules at all). An output that the loss does not depend on, or that
      forward cuts off with ``detach`` or ``no_grad``, has gradient zero.
    - *Left as it was.* Parameters (trainable or frozen), ``.grad``, buffers, modes, hooks and torch's random state.
      Hooks exist only while `update` runs, and it works under ``torch.no_grad``. An update that fails adds nothing.
    - *Accuracy and memory.* Sums are float64 and pooled around running means, so a mean far larger than the standard
      deviation does no harm. Without ``normalized``, only :math:`h_a` and :math:`g_b` are summed, and the other two
      moments follow from :math:`h_b = Wh_a+\beta` and :math:`g_a = W^\top g_b`. The probe holds
      :math:`8(d_a^2 + d_b^2 + d_ad_b)` bytes per layer, during an update twice as much (``normalized``:
      :math:`16(d_a^2+d_b^2) + 8d_ad_b`), and one block of 1 MiB or :math:`2048\,d` bytes, however many the batches;
      add the forward and backward pass of one batch.
    - *Several workers.* Raw moments (``centered=False``) of different data are combined by their mean weighted with
      ``n_samples``.

    References
    ----------
    Ziyin et al., ICLR 2025; chapter :doc:`/chapters/canonical_representation`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Linear(3, 2, bias=False)
    >>> with torch.no_grad():
    ...     _ = model.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    >>> def loss_fn(output, target):
    ...     return (output - target).square().sum(1) / 2
    >>> x, y = torch.eye(3), torch.zeros(3, 2)
    >>> with AlignmentProbe(model) as probe:
    ...     probe.update(x, y, loss_fn)
    >>> layer = probe.moments()[""]
    >>> (layer.H_out * 3).diagonal().round(6)
    array([1., 4.])
    >>> (layer.G_in * 3).diagonal().round(6)
    array([ 1., 16.,  0.])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None = None,
        *,
        centered: bool = False,
        normalized: bool = False,
    ) -> None:
        self._model = check_module(model)
        self._named = layers is not None
        self._layers = all_layers(model) if layers is None else named_layers(model, layers)
        self._centered = check_bool("centered", centered)
        self._normalized = check_bool("normalized", normalized)
        self._sums: dict[str, LayerSums] = {}
        self._open = False

    def __enter__(self) -> AlignmentProbe:
        self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False

    def update(self, inputs: Tensor, targets: Tensor, loss_fn: LossFunction) -> None:
        """Add one batch: one forward and one backward pass.

        Parameters
        ----------
        inputs : Tensor, shape (n, ...)
            What the model is called with.
        targets : Tensor, shape (n, ...)
            Second argument of ``loss_fn``.
        loss_fn : callable
            ``loss_fn(model(inputs), targets)``: one loss per sample, shape (n,), as with ``reduction="none"``.

        Raises
        ------
        ValueError
            Outside the ``with`` block; if inputs and targets differ in length or do not fit the model; if the losses
            are a scalar or not of shape (n,), not finite, or cannot be differentiated; if activations or gradients are
            not finite; if a weight is not the one of earlier updates (moments of different networks do not mix: use a
            new probe).
        TypeError
            If an argument has the wrong type.
        """
        if not self._open:
            raise invalid("update", "called inside the `with` block of the probe", "a call outside of it")
        for name, value in (("inputs", inputs), ("targets", targets)):
            if not isinstance(value, Tensor):
                raise wrong_type(name, "a tensor", value)
        check_pair(inputs, targets)
        if not callable(loss_fn):
            raise wrong_type("loss_fn", "a function", loss_fn)
        with undisturbed(self._model), Recorder(self._layers, self._normalized) as recorder:
            inputs, targets = (part.clone() if part.is_inference() else part for part in (inputs, targets))
            with blaming("inputs", "accepted by the model", f"shape {tuple(inputs.shape)} and dtype {inputs.dtype}"):
                output = self._model(inputs)
            with blaming("targets", "accepted by loss_fn", f"shape {tuple(targets.shape)} and dtype {targets.dtype}"):
                losses = loss_fn(output, targets)
            _check_finite_sums(recorder.sums, "activations")
            losses = _check_losses(losses, len(inputs))
            with blaming("model", "differentiable", "a backward pass"):
                recorder.backward(losses)
        _check_finite_sums(recorder.sums, "gradients")
        self._commit(recorder.sums)

    def moments(self) -> dict[str, LayerMoments]:
        """The moments over all data so far.

        Returns
        -------
        dict of str to LayerMoments
            By layer name, in the order of ``named_modules()`` or of ``layers``. Weights are those of the updates, also
            if the model has been trained since.

        Raises
        ------
        ValueError
            If there has been no update, a layer that was named has received no data, or a moment overflows.
        """
        if not self._sums:
            raise invalid("update", "called before moments, with data for at least one layer", "no data")
        result = {}
        for name in self._layers:
            sums = self._sums.get(name)
            if sums is not None and sums.n_samples:
                result[name] = _layer_moments(name, sums, self._centered)
            elif self._named:
                raise invalid("layers", "names of modules that the forward pass calls", f"{name!r}, without data")
        return result

    def _commit(self, new: dict[str, LayerSums]) -> None:
        for name, sums in new.items():
            if name in self._sums and not self._sums[name].same_layer(sums):
                raise invalid("model", "the same in all updates of a probe", f"another weight in layer {name!r}")
        for name, sums in new.items():
            if name in self._sums:
                self._sums[name].pool(sums)
            else:
                self._sums[name] = sums


def alignment(A: ArrayLike, B: ArrayLike, *, measure: Measure = "pearson") -> float:
    r"""Alignment of two square matrices: the correlation of their entries, diagonal and off-diagonal together.

    Parameters
    ----------
    A, B : array_like, shape (d, d)
        Matrices of one size.
    measure : {"pearson", "cosine"}
        ``"pearson"`` removes the mean over the :math:`d^2` entries of each matrix, ``"cosine"`` does not.

    Returns
    -------
    float
        In [-1, 1]. It is 1 if and only if :math:`A = cB` with :math:`c>0` (cosine), or :math:`A = cB` up to a constant
        added to all entries (Pearson).

    Raises
    ------
    ValueError
        For matrices that are not square, not finite or of different sizes; for a zero matrix (cosine), one with equal
        entries (Pearson; every 1 x 1 matrix), or an unknown measure.
    TypeError
        If an argument has the wrong type.

    References
    ----------
    Ziyin et al., ICLR 2025; chapter :doc:`/chapters/canonical_representation`.

    Examples
    --------
    >>> A, B = [[2, 1], [1, 3]], [[1, -1], [-1, 5]]
    >>> round(alignment(A, B), 8), round(alignment(A, B, measure="cosine"), 8)
    (0.98473193, 0.73192505)
    """
    check_choice("measure", measure, _MEASURES)
    return _alignment({"A": check_square("A", A), "B": check_square("B", B)}, measure)


@dataclass(frozen=True)
class CRHReport:
    """The six alignments of one layer, each in [-1, 1]; R, G, W, A: representation, gradient, weight, alignment.

    Attributes
    ----------
    forward_RGA, forward_RWA, forward_GWA : float
        Output side: ``H_out`` with ``G_out``, ``H_out`` with ``Z_out``, ``G_out`` with ``Z_out``.
    backward_RGA, backward_RWA, backward_GWA : float
        Input side: ``H_in`` with ``G_in``, ``H_in`` with ``Z_in``, ``G_in`` with ``Z_in``.
    """

    forward_RGA: float
    forward_RWA: float
    forward_GWA: float
    backward_RGA: float
    backward_RWA: float
    backward_GWA: float


def crh_report(moments: Mapping[str, LayerMoments], *, measure: Measure = "pearson") -> dict[str, CRHReport]:
    """The six alignments of the canonical representation hypothesis, layer by layer.

    They are not zero at initialisation (a wide layer has a Gram matrix close to a multiple of the identity): compare
    with the values before training.

    Parameters
    ----------
    moments : mapping of str to LayerMoments
        From `AlignmentProbe.moments`.
    measure : {"pearson", "cosine"}
        As in `alignment`.

    Returns
    -------
    dict of str to CRHReport
        With the keys of ``moments``.

    Raises
    ------
    ValueError
        For no layers, an unknown measure, or a matrix that `alignment` refuses; the message names it. One unit has no
        Pearson correlation, and a layer that the loss does not depend on has no alignment at all: leave them out.
    TypeError
        If ``moments`` is not a dict of LayerMoments.

    References
    ----------
    Ziyin et al., ICLR 2025; chapter :doc:`/chapters/canonical_representation`.

    Examples
    --------
    >>> Z = np.diag([1.0, 2.0, 4.0])
    >>> layer = LayerMoments(H_in=Z, H_out=Z @ Z, G_in=Z @ Z @ Z, G_out=Z @ Z, Z_in=Z, Z_out=Z, n_samples=100)
    >>> report = crh_report({"hidden": layer})["hidden"]
    >>> round(report.forward_RGA, 3), round(report.backward_GWA, 3)
    (1.0, 0.918)
    """
    check_choice("measure", measure, _MEASURES)
    if not isinstance(moments, Mapping):
        raise wrong_type("moments", "a dict of LayerMoments", moments)
    if not moments:
        raise invalid("moments", "of at least one layer", "none")
    return {name: _report(f"moments[{name!r}]", layer, measure) for name, layer in moments.items()}


@dataclass(frozen=True)
class PowerLawFit:
    """A power law between the spectra of two matrices, ``B ~ exp(log_prefactor) * A**exponent``.

    Attributes
    ----------
    exponent : float
        Theil-Sen slope of the logarithms.
    log_prefactor : float
        Natural logarithm of the factor: ``median(y) - exponent * median(x)``.
    r2 : float
        Squared Pearson correlation of the logarithms; 0 where those of B are all equal, which has exponent 0.
    n_modes : int
        Number of modes in the fit. Fits over few modes are not evidence.
    off_diagonal : float
        Fraction of the Frobenius norm of B that is off the diagonal in the basis of A, 0 to 1: how far the two are from
        having the same eigenvectors, which the power law presupposes.
    """

    exponent: float
    log_prefactor: float
    r2: float
    n_modes: int
    off_diagonal: float


def power_law_exponent(A: ArrayLike, B: ArrayLike, *, rtol: float = 1e-6, max_modes: int | None = None) -> PowerLawFit:
    r"""Exponent of :math:`B \sim A^{e}`, fitted in the eigenbasis of A.

    With eigenvectors :math:`u_i` and eigenvalues :math:`\lambda_i` of A, a robust line through the points
    :math:`(\log\lambda_i, \log u_i^\top B u_i)`. Take the Gram matrix of the weight as A: off-diagonal parts flatten
    the slope in another basis.

    Parameters
    ----------
    A, B : array_like, shape (d, d)
        Symmetric matrices of one size; both are meant to be positive semi-definite.
    rtol : float, default 1e-6
        A mode counts if :math:`\lambda_i` and :math:`u_i^\top B u_i` exceed ``rtol`` times their largest values.
        Below 1e-6 it is meaningless for moments of float32 numbers.
    max_modes : int, optional
        Only so many usable modes, those with the largest :math:`\lambda_i`; at least 3. Time and memory grow with the
        square of the number of modes.

    Returns
    -------
    PowerLawFit
        Exponent, prefactor, quality.

    Raises
    ------
    ValueError
        For matrices that are not square, not symmetric, not finite or of different sizes; if fewer than 3 modes are
        usable or all their eigenvalues are equal; if ``rtol`` is not in [0, 1) or ``max_modes`` is below 3.
    TypeError
        If an argument has the wrong type.

    References
    ----------
    Ziyin et al., ICLR 2025; chapter :doc:`/chapters/canonical_representation`.

    Examples
    --------
    >>> Z = np.diag([1.0, 2.0, 4.0, 8.0])
    >>> fit = power_law_exponent(Z, 5 * Z @ Z @ Z)
    >>> round(fit.exponent, 6), round(float(np.exp(fit.log_prefactor)), 6), fit.n_modes
    (3.0, 5.0, 4)
    """
    basis, other = check_symmetric("A", A, _ASYMMETRY), check_symmetric("B", B, _ASYMMETRY)
    _check_same_size({"A": basis, "B": other})
    rtol = check_scalar("rtol", rtol)
    if not 0 <= rtol < 1:
        raise invalid("rtol", ">= 0 and < 1", rtol)
    if max_modes is not None:
        check_int("max_modes", max_modes, 3)
    scale_a, scale_b = (float(np.abs(matrix).max()) or 1.0 for matrix in (basis, other))
    eigenvalues, vectors = np.linalg.eigh((basis / scale_a + basis.T / scale_a) / 2)
    rotated = vectors.T @ ((other / scale_b + other.T / scale_b) / 2) @ vectors
    weights = rotated.diagonal()
    usable = (eigenvalues > rtol * max(eigenvalues.max(), 0)) & (weights > rtol * max(weights.max(), 0))
    modes = np.flatnonzero(usable)[::-1][:max_modes]
    if modes.size < 3:
        raise invalid("A and B", "matrices with at least 3 usable modes", f"{modes.size}")
    x = np.log(_tied(eigenvalues[modes], len(eigenvalues)))
    if x[0] == x[-1]:
        raise invalid("A", "of at least two different eigenvalues", "equal ones")
    y = np.log(weights[modes])
    slope = float(theilslopes(y, x).slope)
    flat = float(np.ptp(weights[modes])) <= _resolution(len(eigenvalues)) * float(weights.max())
    return PowerLawFit(
        exponent=slope,
        log_prefactor=float(np.median(y) + np.log(scale_b) - slope * (np.median(x) + np.log(scale_a))),
        r2=0.0 if flat else float(np.corrcoef(x, y)[0, 1] ** 2),
        n_modes=int(modes.size),
        off_diagonal=float(np.linalg.norm(rotated - np.diag(weights)) / np.linalg.norm(rotated)),
    )


@dataclass(frozen=True, eq=False)
class LinearLayerMoments:
    r"""Stationary state of SGD on a linear layer that can be solved.

    Attributes
    ----------
    H_out, G_out, Z_out : ndarray, shape (p, p)
        Second moments of outputs and of gradients, and :math:`\mathbb E[WW^\top]`; ``H_out`` equals ``Z_out``.
    mean_weight : ndarray, shape (p, d)
        :math:`\bar W = V/(1+\lambda)`.
    fluctuation : ndarray, shape (p, p)
        :math:`M = \mathbb E[(W-\bar W)(W-\bar W)^\top]`.
    max_lr : float
        Learning rate at which the fluctuation diverges.
    """

    H_out: np.ndarray
    G_out: np.ndarray
    Z_out: np.ndarray
    mean_weight: np.ndarray
    fluctuation: np.ndarray
    max_lr: float


def linear_layer_moments(
    target: ArrayLike, noise_cov: ArrayLike, *, lr: float, weight_decay: float, batch_size: int = 1
) -> LinearLayerMoments:
    r"""Moments of a linear layer at the stationary state of SGD, exact for every learning rate.

    Inputs are uniform on the sphere :math:`\|x\|^2 = d`, targets :math:`y = Vx + \epsilon`, the loss
    :math:`\frac12\|y - Wx\|^2`, and SGD draws batches of size :math:`B` with replacement. With
    :math:`A=\bar W\bar W^\top`,

    .. math:: M = c\,[(d-1)\lambda^2 A + d\,\Sigma],

    .. math:: c = \frac{\eta}{B[2(1+\lambda)-\eta(1+\lambda)^2] - \eta(d-1)},

    :math:`Z_b = H_b = A + M` and :math:`G_b = \lambda^2 A + M + \Sigma`.

    Parameters
    ----------
    target : array_like, shape (p, d)
        The map :math:`V`.
    noise_cov : array_like, shape (p, p), or float
        Covariance :math:`\Sigma` of :math:`\epsilon`, positive semi-definite; a number stands for its multiple of the
        identity.
    lr : float
        Learning rate :math:`\eta`, > 0 and below ``max_lr``: :math:`2(1+\lambda)B` over
        :math:`B(1+\lambda)^2 + d - 1`.
    weight_decay : float
        :math:`\lambda` >= 0 as in ``torch.optim.SGD``: the penalty is :math:`\frac\lambda2\|W\|^2`.
    batch_size : int, default 1
        :math:`B`.

    Returns
    -------
    LinearLayerMoments
        Float64 arrays.

    Raises
    ------
    ValueError
        For non-finite numbers or other shapes, a ``noise_cov`` that is not positive semi-definite, ``lr <= 0`` or
        ``lr >= max_lr``, a negative ``weight_decay``, ``batch_size < 1``, or moments that overflow.
    TypeError
        If an argument has the wrong type.

    References
    ----------
    Ziyin et al., ICLR 2025; chapter :doc:`/chapters/canonical_representation`.

    Examples
    --------
    A higher learning rate aligns gradients with weights:

    >>> target, noise = [[1, 0, 0], [0, 0.5, 0]], np.diag([0.2, 1.0])
    >>> for lr in (0.1, 0.4):
    ...     layer = linear_layer_moments(target, noise, lr=lr, weight_decay=0.2)
    ...     print(layer.Z_out.diagonal().round(4), round(alignment(layer.G_out, layer.Z_out), 4))
    [0.7263 0.3202] 0.3326
    [0.9505 1.3509] 0.8813
    """
    v = check_shape("target", target, (None, None))
    if not v.size:
        raise invalid("target", "a matrix with at least one entry", f"shape {v.shape}")
    n_out, d = v.shape
    noise = _check_covariance(noise_cov, n_out)
    decay = check_scalar("weight_decay", weight_decay)
    if decay < 0:
        raise invalid("weight_decay", ">= 0", decay)
    if check_int("batch_size", batch_size, 1) > _LARGEST_BATCH:
        raise invalid("batch_size", f"at most {_LARGEST_BATCH:g}", batch_size)
    rate = check_scalar("lr", lr)
    max_lr = 2 / (1 + decay + (d - 1) / (batch_size * (1 + decay)))
    curvature = batch_size * (1 + decay) * (2 - rate * (1 + decay)) - rate * (d - 1)
    if not (0 < rate < max_lr and curvature > 0):
        raise invalid("lr", f"> 0 and < max_lr = {max_lr:g}", rate)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = v / (1 + decay)
        signal = mean @ mean.T
        fluctuation = rate / curvature * ((d - 1) * decay * decay * signal + d * noise)
        gram = signal + fluctuation
        gradient = decay * decay * signal + fluctuation + noise
    if not (np.isfinite(gram).all() and np.isfinite(gradient).all()):
        raise invalid("target, noise_cov and weight_decay", "small enough for finite moments", "an overflow")
    return LinearLayerMoments(gram.copy(), gradient, gram, mean, fluctuation, max_lr)


def _check_losses(losses: Any, n_samples: int) -> Tensor:
    if not isinstance(losses, Tensor):
        raise wrong_type("loss_fn(output, targets)", "a tensor", losses)
    if losses.shape != (n_samples,):
        shape = f'one loss per sample, shape ({n_samples},), as with reduction="none"'
        raise invalid("loss_fn(output, targets)", shape, f"shape {tuple(losses.shape)}")
    if not losses.requires_grad:
        raise invalid("loss_fn(output, targets)", "differentiable in a measured layer", "a constant")
    for index in (~losses.detach().isfinite()).nonzero()[:1].flatten().tolist():
        raise invalid("loss_fn(output, targets)", "finite", f"{losses[index].item()} at index {index}")
    return losses


def _check_finite_sums(sums: Mapping[str, LayerSums], side: str) -> None:
    for name, layer in sums.items():
        if not layer.is_finite(side):
            raise invalid(side, "finite", f"others in layer {name!r}")


def _layer_moments(name: str, sums: LayerSums, centered: bool) -> LayerMoments:
    matrices = {key: matrix.numpy(force=True) for key, matrix in sums.matrices(centered).items()}
    for key, matrix in matrices.items():
        if not np.isfinite(matrix).all():
            raise invalid(f"{key} of layer {name!r}", "finite", "an overflow")
    return LayerMoments(**matrices, n_samples=sums.n_samples)


def _report(name: str, layer: Any, measure: Measure) -> CRHReport:
    if not isinstance(layer, LayerMoments):
        raise wrong_type(name, "a LayerMoments", layer)
    matrices = {field.name: getattr(layer, field.name) for field in fields(layer) if field.name != "n_samples"}
    checked = {key: check_square(f"{name}.{key}", matrix) for key, matrix in matrices.items()}

    def aligned(first: str, second: str) -> float:
        return _alignment({f"{name}.{key}": checked[key] for key in (first, second)}, measure)

    pairs = (("H_{}", "G_{}"), ("H_{}", "Z_{}"), ("G_{}", "Z_{}"))
    return CRHReport(*(aligned(a.format(side), b.format(side)) for side in ("out", "in") for a, b in pairs))


def _alignment(matrices: dict[str, np.ndarray], measure: Measure) -> float:
    _check_same_size(matrices)
    directions = []
    for name, matrix in matrices.items():
        largest = np.abs(matrix).max()
        if measure == "cosine" and not largest:
            raise invalid(name, "a matrix other than zero", "zeros")
        if measure == "pearson" and matrix.min() == matrix.max():
            raise invalid(name, "a matrix with different entries (Pearson)", f"only {matrix.flat[0]:g}")
        entries = matrix / largest  # products of entries near 1e-200 would vanish
        if measure == "pearson":
            entries = entries - entries.mean()
        directions.append(entries / np.linalg.norm(entries))
    return float(np.clip(np.vdot(*directions), -1.0, 1.0))


def _check_same_size(matrices: dict[str, np.ndarray]) -> None:
    (first, A), (second, B) = matrices.items()
    if A.shape != B.shape:
        raise invalid(second, f"of the shape of {first}, {A.shape}", f"shape {B.shape}")


def _check_covariance(noise_cov: ArrayLike, size: int) -> np.ndarray:
    values = check_finite("noise_cov", noise_cov)
    if not values.ndim:
        values = float(values) * np.eye(size)
    values = check_symmetric("noise_cov", check_shape("noise_cov", values, (size, size)))
    smallest = float(np.linalg.eigvalsh(values)[0])
    if smallest < -_resolution(size) * float(np.abs(values).max()):
        raise invalid("noise_cov", "positive semi-definite", f"an eigenvalue {smallest:.3g}")
    return (values + values.T) / 2


def _tied(eigenvalues: np.ndarray, size: int) -> np.ndarray:
    """Descending eigenvalues, with those that differ by no more than rounding set to their mean."""
    apart = -np.diff(eigenvalues) > _resolution(size) * eigenvalues[0]
    group = np.append(0, np.cumsum(apart))
    return (np.bincount(group, eigenvalues) / np.bincount(group))[group]


def _resolution(size: int) -> float:
    """Relative error up to which eigenvalues are known."""
    return 10 * _EPSILON * size
