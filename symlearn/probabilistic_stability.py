r"""Stability of SGD in probability: Lyapunov exponents, tails, and the phases of learning at a saddle.

A point attracts SGD in probability if and only if the Lyapunov exponent of its random linear dynamics is negative,
whether or not the moments diverge; at the origin of a two-layer network this gives four phases (chapter
:doc:`/chapters/probabilistic_stability`). Source: Ziyin, Li, Galanti and Ueda, "The Probabilistic Stability of
Stochastic Gradient Descent", arXiv:2303.13093.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from symlearn._batch_mean import batch_mean, check_decay, check_vector, check_weights, log_factors
from symlearn._checks import (
    check_choice,
    check_finite,
    check_generator,
    check_int,
    check_nonnegative,
    check_positive,
    check_rng,
    check_scalar,
    invalid,
    wrong_type,
)
from symlearn._growth import ENOUGH_CHAINS, log_growth, mean_growth
from symlearn._phase_kernel import Cells, Runs, count_outcomes
from symlearn._sgd_frames import FlatLoss, growth_of_frames, hessian_product, named_tensors, undisturbed
from symlearn.lyapunov import LyapunovEstimate, LyapunovSpectrum, lyapunov_exponent_1d

__all__ = [
    "PhaseDiagram",
    "SaddleExponents",
    "phase_diagram",
    "saddle_exponents",
    "sgd_lyapunov_exponents",
    "tail_exponent",
]

_NEWTON_STEPS = 300
_DRIFT_WARNING = 4.0
_LARGEST_BATCH = 1000


@dataclass(frozen=True)
class SaddleExponents:
    r"""Lyapunov exponents at the origin of a scalar two-layer network, and the phase they imply.

    Attributes
    ----------
    symmetric : LyapunovEstimate
        Along :math:`u=w`, where the product :math:`uw` is positive.
    antisymmetric : LyapunovEstimate
        Along :math:`u=-w`, where the product is negative.
    phase : ndarray of str
        ``"correct"`` (only the direction with the sign of :math:`\mathbb E[xy]` grows), ``"incorrect"`` (only the
        other one does), ``"saddle"`` (neither) or ``"unstable"`` (both), in the shape of ``lr``.
    """

    symmetric: LyapunovEstimate
    antisymmetric: LyapunovEstimate
    phase: np.ndarray


@dataclass(frozen=True)
class PhaseDiagram:
    """Outcomes of simulated training on a grid of shape G.

    Attributes
    ----------
    lr : ndarray, shape G
        Learning rates of the cells.
    fractions : ndarray, shape G + (4,)
        Fractions of the runs of each cell that ended in each phase, in the order of ``names``.
    labels : ndarray of int, shape G
        Index of the most frequent phase.
    names : tuple of str
        ``("correct", "incorrect", "saddle", "unstable")``.
    """

    lr: np.ndarray
    fractions: np.ndarray
    labels: np.ndarray
    names: tuple[str, str, str, str] = ("correct", "incorrect", "saddle", "unstable")


def tail_exponent(
    h: ArrayLike,
    lr: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    batch_size: int = 1,
    weight_decay: float = 0.0,
    max_terms: int = 100_000,
    n_samples: int = 100_000,
    rng: int | np.random.Generator | None = None,
) -> np.ndarray:
    r"""Exponent :math:`p_*` of the power laws that one-dimensional SGD follows at a point it converges to.

    The positive root of :math:`\mathbb E|1-\eta\lambda-\eta\hat h|^{p_*}=1`. Moments of order :math:`p<p_*` shrink,
    those beyond explode. With additive noise :math:`\Pr(|\theta|>r)\sim r^{-p_*}` in the stationary law (whose density
    falls as :math:`r^{-(p_*+1)}`); without it a run from distance :math:`\epsilon` ever escapes with a chance
    :math:`\propto\epsilon^{p_*}`.

    Parameters
    ----------
    h : array_like, shape (K,)
        Curvatures of the samples, of any sign.
    lr : array_like
        Learning rates :math:`\eta`, > 0, of any shape.
    weights, batch_size, weight_decay, max_terms, n_samples, rng
        As for `symlearn.lyapunov.lyapunov_exponent_1d`. Where batches are sampled, a tail that rests on rarer batches
        than one in ``n_samples`` is overlooked.

    Returns
    -------
    ndarray
        :math:`p_*` in the shape of ``lr``: 0 where the Lyapunov exponent is not negative, ``inf`` where no factor
        exceeds 1 in modulus.

    Raises
    ------
    ValueError, TypeError
        As `symlearn.lyapunov.lyapunov_exponent_1d`.

    References
    ----------
    Kesten, Acta Mathematica 131 (1973); chapter :doc:`/chapters/probabilistic_stability`.

    Examples
    --------
    With growing step all moments shrink, then only some (at 1.0 the variance does not), then none:

    >>> tail_exponent([1.0, 2.5], [0.6, 0.9, 1.0, 1.5]).round(3)
    array([  inf, 3.105, 1.71 , 0.   ])
    """
    curvatures = check_vector("h", h)
    shares = check_weights(weights, curvatures.size)
    rates, decay = check_positive("lr", lr), check_decay(weight_decay)
    means, probabilities, _ = batch_mean(curvatures, shares, batch_size, max_terms, n_samples, rng)
    result = np.empty(rates.size)
    for part, logs in log_factors(means, rates.ravel(), decay):
        result[part] = _moment_root(logs, probabilities)
    return result.reshape(rates.shape)


def saddle_exponents(
    x: ArrayLike,
    y: ArrayLike,
    lr: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    batch_size: int = 1,
    weight_decay: float = 0.0,
    max_terms: int = 100_000,
    n_samples: int = 100_000,
    rng: int | np.random.Generator | None = None,
) -> SaddleExponents:
    r"""Lyapunov exponents at the saddle :math:`u=w=0` of :math:`f(x)=u\,w\,x`, and the phase of learning.

    For the loss :math:`(uwx-y)^2` (no factor 1/2) and :math:`\hat C` the mean of :math:`xy` over a batch,

    .. math:: \Lambda_\pm = \mathbb E\log|1-\eta\lambda\pm2\eta\hat C| .

    Any width has the same exponents. This is the local theory: where the saddle repels, the run may still diverge,
    which `phase_diagram` simulates.

    Parameters
    ----------
    x, y : array_like, shape (K,)
        Inputs and labels of the data points.
    lr : array_like
        Learning rates :math:`\eta`, > 0, of any shape.
    weights, batch_size, weight_decay, max_terms, n_samples, rng
        As for `symlearn.lyapunov.lyapunov_exponent_1d`, of which this is the case :math:`h=\mp2xy`. Sampled batches are
        the same for both exponents.

    Returns
    -------
    SaddleExponents
        Both exponents and the phase for every learning rate.

    Raises
    ------
    ValueError, TypeError
        As `symlearn.lyapunov.lyapunov_exponent_1d`, and for ``y`` of another length than ``x``.

    References
    ----------
    Ziyin, Li, Galanti and Ueda, arXiv:2303.13093; chapter :doc:`/chapters/probabilistic_stability`.

    Examples
    --------
    Labels 1 and -0.8 with equal chance: small steps learn the mean, larger ones collapse to zero.

    >>> exponents = saddle_exponents([1.0, 1.0], [1.0, -0.8], [0.05, 0.3, 0.9])
    >>> exponents.symmetric.value.round(4)
    array([ 0.006 , -0.092 ,  0.1043])
    >>> exponents.phase
    array(['correct', 'saddle', 'unstable'], dtype='<U9')
    """
    inputs, labels = check_vector("x", x), check_vector("y", y)
    if labels.shape != inputs.shape:
        raise invalid("y", f"as long as x ({inputs.size})", f"length {labels.size}")
    with np.errstate(over="ignore"):
        correlation = 2 * inputs * labels
    if not np.isfinite(correlation).all():
        raise invalid("x", "such that x * y is finite", float(np.abs(inputs).max()))
    seed = int(check_rng(rng).integers(2**63))
    options: dict[str, Any] = {
        "weights": weights,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "max_terms": max_terms,
        "n_samples": n_samples,
        "rng": seed,
    }
    symmetric = lyapunov_exponent_1d(-correlation, lr, **options)
    antisymmetric = lyapunov_exponent_1d(correlation, lr, **options)
    right, wrong = symmetric.value > 0, antisymmetric.value > 0
    if check_weights(weights, inputs.size) @ correlation < 0:
        right, wrong = wrong, right
    names = np.array([["saddle", "incorrect"], ["correct", "unstable"]])
    return SaddleExponents(symmetric, antisymmetric, names[right.astype(int), wrong.astype(int)])


def sgd_lyapunov_exponents(
    batch_loss: Callable[..., Tensor],
    params: Mapping[str, Tensor] | nn.Module,
    data: Tensor | tuple[Tensor, ...],
    lr: float,
    batch_size: int,
    *,
    k: int = 1,
    n_steps: int = 500,
    n_chains: int = 16,
    burn_in: int = 50,
    weight_decay: float = 0.0,
    method: Literal["auto", "dense", "hvp"] = "auto",
    generator: torch.Generator | None = None,
) -> LyapunovSpectrum:
    r"""Leading Lyapunov exponents of SGD at a point of any torch model.

    Random frames of ``k`` tangent vectors are multiplied by
    :math:`M_t=(1-\eta\lambda)I-\eta\hat H_t`, with :math:`\hat H_t` the Hessian of a fresh batch at the fixed point
    ``params``, and re-orthonormalised after every step. At a point where all per-sample gradients vanish, SGD converges
    to it in probability if the first exponent is negative and leaves it if it is positive. Elsewhere the exponent
    describes perturbations, not convergence.

    Parameters
    ----------
    batch_loss : callable
        ``batch_loss(params, *batch)`` with a dict of tensors and a batch of the data, which keeps its leading axis even
        with one sample; returns the scalar **mean** loss over the batch, and the same one every time (no dropout).
    params : dict of Tensor, or torch.nn.Module
        The point; only the tensors whose stability is asked, D numbers in all, float32 or float64. Everything else may
        be closed over by ``batch_loss``. Never modified.
    data : Tensor or tuple of Tensor
        The samples, N on axis 0 of each tensor.
    lr : float
        Learning rate :math:`\eta`, > 0.
    batch_size : int
        Samples per step, drawn with replacement.
    k : int
        Number of exponents, at most D.
    n_steps : int
        Counted steps of each chain.
    n_chains : int
        Independent chains, computed side by side.
    burn_in : int
        Steps of each chain that are not counted. It should be several :math:`1/(\Lambda_1-\Lambda_2)`: a bias from a
        frame that still turns is not in the standard error.
    weight_decay : float
        Torch's weight decay :math:`\lambda`, >= 0.
    method : {"auto", "dense", "hvp"}
        ``"dense"`` computes the Hessians of all samples once (N D^2 numbers) and multiplies matrices, ``"hvp"`` takes
        Hessian-vector products of every batch. ``"auto"`` is dense up to 2e7 numbers. Both see the same batches.
    generator : torch.Generator, optional
        Source of the frames and batches. None: the state of torch's global generator, which is left as it was.

    Returns
    -------
    LyapunovSpectrum
        Exponents in nats per step. Standard errors are those over chains if there are at least 8, else over 20 blocks
        of time.

    Warns
    -----
    UserWarning
        If an exponent differs between the first and the second half of the counted steps by more than four standard
        errors: then ``burn_in`` is too short. Checked with 8 chains or more.

    Raises
    ------
    ValueError
        For ``lr`` not positive or not finite, a negative weight decay, counts below 1 (``burn_in`` below 0), ``k``
        above the number of parameters, ``params`` that are empty, not finite or of several dtypes or devices, ``data``
        of different or zero length, an unknown ``method``, or a loss that is not scalar, finite, deterministic or twice
        differentiable (for ``"dense"`` also: not a mean).
    TypeError
        For counts that are not integers, ``params`` that are neither dict nor module, ``data`` that are not tensors, or
        a ``batch_loss`` that cannot be called or returns no tensor.

    References
    ----------
    Ziyin, Li, Galanti and Ueda, arXiv:2303.13093; chapter :doc:`/chapters/probabilistic_stability`.

    Examples
    --------
    The two-layer network of `saddle_exponents`, at its saddle:

    >>> def batch_loss(params, x, y):
    ...     return (params["u"] * params["w"] * x - y).square().mean()
    >>> saddle = {"u": torch.zeros((), dtype=torch.float64), "w": torch.zeros((), dtype=torch.float64)}
    >>> data = torch.ones(2, dtype=torch.float64), torch.tensor([1.0, -0.8], dtype=torch.float64)
    >>> generator = torch.Generator().manual_seed(0)
    >>> spectrum = sgd_lyapunov_exponents(batch_loss, saddle, data, 0.3, 1, k=2, generator=generator)
    >>> exact = saddle_exponents([1.0, 1.0], [1.0, -0.8], 0.3)
    >>> bool(abs(spectrum.exponents[0] - exact.symmetric.value) < 4 * spectrum.stderr[0])
    True
    """
    rate = float(check_positive("lr", check_scalar("lr", lr)))
    size = check_int("batch_size", batch_size, 1)
    steps, chains = check_int("n_steps", n_steps, 1), check_int("n_chains", n_chains, 1)
    skipped, decay = check_int("burn_in", burn_in, 0), check_decay(weight_decay)
    check_choice("method", method, ("auto", "dense", "hvp"))
    source = _source(generator)
    named = named_tensors(params)
    with undisturbed(params, next(iter(named.values())).device):
        loss = FlatLoss(batch_loss, named, data)
        n_params, theta = loss.theta.numel(), loss.theta
        k = check_int("k", k, 1, n_params)
        frames = torch.randn(chains, n_params, k, generator=source, dtype=theta.dtype, device=source.device)
        batches = (
            torch.randint(loss.n_samples, (chains, size), generator=source, device=source.device)
            for _ in range(skipped + steps)
        )
        product = hessian_product(loss, method)
        diagonal, lengths = growth_of_frames(product, frames.to(theta.device), batches, rate, 1 - rate * decay)
    epsilon = torch.finfo(theta.dtype).eps
    growth = log_growth(diagonal[:, skipped:].numpy(), lengths[:, skipped:].numpy(), n_params, epsilon)
    _warn_of_drift(growth)
    return LyapunovSpectrum(*mean_growth(growth), chains * steps)


def phase_diagram(
    x: ArrayLike,
    y: ArrayLike,
    lr: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    noise_std: ArrayLike = 0.0,
    batch_size: int = 1,
    weight_decay: ArrayLike = 0.0,
    n_runs: int = 1000,
    n_steps: int = 2000,
    init_std: float = 0.01,
    width: int = 1,
    saddle_tol: float = 1e-3,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    chunk_elements: int = 1_000_000,
    generator: torch.Generator | None = None,
) -> PhaseDiagram:
    r"""Where SGD on a two-layer network :math:`f(x)=\sum_j u_jw_j\,x` ends, simulated on a grid of cells.

    The full nonlinear dynamics of the loss :math:`(f(x)-y)^2` (no factor 1/2), from
    :math:`u_j,w_j\sim\mathcal N(0,\text{init\_std}^2)`. In the coordinates :math:`u\pm w` any width is as cheap as
    width one. After the last step a run is *unstable* if :math:`\|u\|^2+\|w\|^2` is not finite or above 1e12, else at
    the *saddle* if it is below ``saddle_tol**2``, else *correct* if :math:`\sum_ju_jw_j` has the sign of
    :math:`\mathbb E[xy]` (0 counts as positive), else *incorrect*.

    Parameters
    ----------
    x, y : array_like, shape G + (K,)
        Inputs and labels of the K data points of each cell; all arguments broadcast against each other.
    lr : array_like, shape G
        Learning rates, > 0.
    weights : array_like, shape G + (K,), optional
        Probabilities of the data points up to a factor, >= 0; uniform by default. Cells that share them are much
        faster.
    noise_std : array_like, shape G
        Standard deviation of Gaussian noise that is added to the label of every sample anew, >= 0.
    batch_size : int
        Samples per step, drawn with replacement; at most 1000 where ``weights`` differ between cells.
    weight_decay : array_like, shape G
        Torch's weight decay, >= 0.
    n_runs : int
        Runs per cell. All cells see the same random numbers: boundaries are smooth, fractions of different cells are
        dependent, and each fraction by itself has the binomial standard error.
    n_steps : int
        Steps per run.
    init_std : float
        Standard deviation of the initial weights, > 0.
    width : int
        Number of hidden units.
    saddle_tol : float
        Distance from the origin below which a run counts as at the saddle, > 0.
    dtype : torch.float32 or torch.float64
        Precision. In float32 a run that comes within 1e-38 of the saddle stays there, even if the saddle repels.
    device : str or torch.device
        Where to simulate.
    chunk_elements : int
        About how many runs of cells to simulate at once (at least one cell with up to 16384 runs). Changes memory and
        speed, never the result.
    generator : torch.Generator, optional
        Source of the seed. None: the state of torch's global generator, which is left as it was.

    Returns
    -------
    PhaseDiagram
        Fractions of outcomes and the most frequent one for each cell.

    Raises
    ------
    ValueError
        For shapes that do not broadcast, empty or non-finite ``x`` or ``y``, ``lr``, ``init_std`` or ``saddle_tol`` not
        positive, negative ``weights``, ``noise_std`` or ``weight_decay``, weights of zero sum, counts below 1, another
        dtype, a device that is not there, or steps beyond the range of ``dtype``.
    TypeError
        For counts that are not integers, or another ``dtype``, ``device`` or ``generator``.

    Notes
    -----
    One thread. On several cores give blocks of cells to `symlearn.sweep.sweep`, as below.

    References
    ----------
    Ziyin, Li, Galanti and Ueda, arXiv:2303.13093; chapter :doc:`/chapters/probabilistic_stability`.

    Examples
    --------
    Labels 1 and -0.8: with a growing step the network learns the mean, collapses to zero, and diverges.

    >>> diagram = phase_diagram([1.0, 1.0], [1.0, -0.8], [0.02, 0.3, 0.9], n_runs=200, n_steps=1000)
    >>> [diagram.names[label] for label in diagram.labels]
    ['correct', 'saddle', 'unstable']

    Blocks of cells in parallel (``n_jobs=-1``), one row of the diagram per call:

    >>> from symlearn.sweep import grid, sweep
    >>> def row(asymmetry):
    ...     generator = torch.Generator().manual_seed(0)
    ...     y = [1.0, asymmetry - 1.0]
    ...     return phase_diagram([1.0, 1.0], y, [0.02, 0.3, 0.9], n_runs=200, n_steps=500, generator=generator).labels
    >>> sweep(row, grid(asymmetry=[0.2, 0.6])).values["value"][:, 0]
    array([[0, 2, 3],
           [0, 0, 3]])
    """
    runs = Runs(
        batch_size=check_int("batch_size", batch_size, 1),
        n_runs=check_int("n_runs", n_runs, 1),
        n_steps=check_int("n_steps", n_steps, 1),
        init_std=float(check_positive("init_std", check_scalar("init_std", init_std))),
        width=check_int("width", width, 1),
        saddle_tol=float(check_positive("saddle_tol", check_scalar("saddle_tol", saddle_tol))),
        dtype=_check_dtype(dtype),
        device=_check_device(device),
    )
    chunk = check_int("chunk_elements", chunk_elements, 1)
    cells, shape = _check_cells(x, y, lr, weights, noise_std, weight_decay)
    if len(cells.weights) > 1 and runs.batch_size > _LARGEST_BATCH:
        raise invalid("batch_size", f"<= {_LARGEST_BATCH} where weights differ between cells", runs.batch_size)
    source = _source(generator)
    seed = int(torch.randint(2**62, (), generator=source, device=source.device))
    fractions = count_outcomes(cells, runs, chunk, seed).reshape(*shape, 4) / runs.n_runs
    return PhaseDiagram(cells.lr.reshape(shape), fractions, fractions.argmax(-1))


def _moment_root(logs: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    r"""Positive root of :math:`\log\sum_i w_i e^{pL_i}` for every row of logs: Newton's method from the right."""
    result, largest = np.zeros(len(logs)), logs.max(1)
    attracts = logs @ probabilities < 0
    result[attracts & (largest <= 0)] = np.inf
    rows = np.flatnonzero(attracts & (largest > 0))
    logs = logs[rows]
    slopes = np.where(np.isfinite(logs), logs, 0.0)
    # The term of the largest factor alone reaches 1 here, and the function is convex: no step overshoots the root.
    p = -np.log(probabilities[logs.argmax(1)]) / largest[rows]
    for _ in range(_NEWTON_STEPS):
        exponents = p[:, None] * logs + np.log(probabilities)
        top = exponents.max(1)
        terms = np.exp(exponents - top[:, None])
        total = terms.sum(1)
        step = (top + np.log(total)) * total / (terms * slopes).sum(1)
        p = np.maximum(p - step, 0.0)
        if (np.abs(step) <= 1e-13 * p).all():
            break
    result[rows] = p
    return result


def _warn_of_drift(growth: np.ndarray) -> None:
    half = growth.shape[1] // 2
    if len(growth) < ENOUGH_CHAINS or not half or not np.isfinite(growth).all():
        return
    change = growth[:, half:].mean(1) - growth[:, :half].mean(1)
    stderr = change.std(0, ddof=1) / np.sqrt(len(change))
    drift = np.abs(change.mean(0))
    if (drift > _DRIFT_WARNING * stderr + 1e-6).any():
        worst = int(np.argmax(drift - _DRIFT_WARNING * stderr))
        warnings.warn(
            f"exponent {worst} changed by {drift[worst]:.2g} between the two halves of the counted steps, with a "
            f"standard error of {stderr[worst]:.2g}: increase burn_in",
            stacklevel=3,
        )


def _source(generator: torch.Generator | None) -> torch.Generator:
    """The generator itself, or a copy of the global one."""
    if check_generator(generator) is not None:
        return generator  # type: ignore[return-value]
    copy = torch.Generator()
    copy.set_state(torch.get_rng_state())
    return copy


def _check_dtype(dtype: Any) -> torch.dtype:
    if not isinstance(dtype, torch.dtype):
        raise wrong_type("dtype", "torch.float32 or torch.float64", dtype)
    if dtype not in (torch.float32, torch.float64):
        raise invalid("dtype", "torch.float32 or torch.float64", f"{dtype}")
    return dtype


def _check_device(device: Any) -> torch.device:
    if not isinstance(device, (str, torch.device)):
        raise wrong_type("device", "a device or its name", device)
    try:
        torch.zeros(1, device=device).cpu()
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise invalid("device", "a device of this machine", repr(str(device))) from None


def _check_cells(
    x: ArrayLike, y: ArrayLike, lr: ArrayLike, weights: ArrayLike | None, noise_std: ArrayLike, weight_decay: ArrayLike
) -> tuple[Cells, tuple[int, ...]]:
    """All cells on one flat axis, and the shape of the grid."""
    points = {"x": check_finite("x", x), "y": check_finite("y", y)}
    points["weights"] = np.ones(1) if weights is None else check_nonnegative("weights", weights)
    for name, array in points.items():
        if not array.ndim or not array.shape[-1]:
            raise invalid(name, "of shape G + (K,) with at least one data point", f"shape {array.shape}")
    cells = {
        "lr": check_positive("lr", lr),
        "noise_std": check_nonnegative("noise_std", noise_std),
        "weight_decay": check_nonnegative("weight_decay", weight_decay),
    }
    try:
        n_points = np.broadcast_shapes(*(array.shape[-1:] for array in points.values()))[0]
        shape = np.broadcast_shapes(
            *(array.shape for array in cells.values()), *(array.shape[:-1] for array in points.values())
        )
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in {**points, **cells}.items())
        raise invalid("x", "of a shape that broadcasts against the others", f"shapes {shapes}") from None
    flat = {name: np.broadcast_to(array, shape).ravel() for name, array in cells.items()}
    rows = {name: np.broadcast_to(points[name], (*shape, n_points)).reshape(-1, n_points) for name in ("x", "y")}
    shares = np.broadcast_to(points["weights"], (*points["weights"].shape[:-1], n_points))
    return Cells(**flat, **rows, weights=_shares(shares, shape)), shape


def _shares(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Probabilities (1, K) if they are the same in all cells, else (cells, K)."""
    largest = weights.max(-1, keepdims=True)
    if not largest.all():
        raise invalid("weights", "of positive sum", 0)
    shares = weights / largest
    shares = shares / shares.sum(-1, keepdims=True)
    rows = shares.reshape(-1, shares.shape[-1])
    if (rows == rows[:1]).all():
        return rows[:1]
    return np.broadcast_to(shares, (*shape, shares.shape[-1])).reshape(-1, shares.shape[-1])
