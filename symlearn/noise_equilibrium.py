"""The noise equilibrium: where gradient noise and weight decay drive a network along a symmetry of its loss.

The loss is flat along the orbit of a continuous symmetry, gradient noise is not: it makes the Noether charge drift at
the rate T Tr[Sigma A] - 2 lambda C, and on each orbit there is at most one point where the drift ends. This module
finds it in closed form or by a convex problem, for any model and any symmetry of :mod:`symlearn.symmetry`, and moves
the model there without changing its function. Derived in the chapter of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import logsumexp
from torch import Tensor

from symlearn._checks import (
    check_finite,
    check_int,
    check_nonnegative,
    check_pair,
    check_params,
    check_positive,
    check_real,
    check_scalar,
    check_symmetric,
    invalid,
    wrong_type,
)
from symlearn._orbit_noise import Orbit, entry_statistics, matrix_statistics
from symlearn.symmetry import GL, ContinuousSymmetry, Rescaling, Scale

__all__ = ["NoiseEquilibrium", "charge_rate", "equilibrium", "equilibrium_amount", "gl_equilibrium"]

Number = TypeVar("Number")


def charge_rate(noise_trace: Number, charge: Number, *, temperature: float, weight_decay: float = 0.0) -> Number:
    r"""Drift of a Noether charge under SGD, :math:`\dot C=T\operatorname{Tr}[\Sigma A]-2\lambda C`.

    Parameters
    ----------
    noise_trace, charge : float, array_like or Tensor
        :math:`\operatorname{Tr}[\Sigma A]` from `symlearn.gradients.noise_covariance_trace`, and the charge
        :math:`C=\theta^\top A\theta` of the same symmetry; shapes broadcast.
    temperature : float
        :math:`T`, learning rate over batch size, not negative.
    weight_decay : float
        :math:`\lambda` of ``torch.optim.SGD``, not negative.

    Returns
    -------
    float, ndarray or Tensor
        Of the kind of the input; per unit of time, a step being a time of one learning rate.

    Raises
    ------
    ValueError
        If ``temperature`` or ``weight_decay`` is negative, or something is not finite.

    References
    ----------
    L. Ziyin, M. Wang, H. Li and L. Wu, *Parameter Symmetry and Noise Equilibrium of Stochastic Gradient Descent*,
    NeurIPS 2024 (arXiv:2402.07193); step 2 of the chapter :doc:`/chapters/noise_equilibrium`.

    Examples
    --------
    >>> round(charge_rate(2.0, -3.0, temperature=0.1, weight_decay=0.01), 12)
    0.26
    """
    rate = check_scalar("temperature", check_nonnegative("temperature", temperature))
    decay = check_scalar("weight_decay", check_nonnegative("weight_decay", weight_decay))
    values: list[Any] = []
    for name, value in (("noise_trace", noise_trace), ("charge", charge)):
        array = check_finite(name, value)  # type: ignore[arg-type]
        values.append(value if isinstance(value, Tensor) else array if array.ndim else float(array))
    try:
        return rate * values[0] - 2 * decay * values[1]
    except (RuntimeError, ValueError):
        shapes = " and ".join(str(tuple(np.shape(value))) for value in values)
        raise invalid("noise_trace, charge", "of shapes that broadcast", f"shapes {shapes}") from None


def equilibrium_amount(
    eigenvalues: ArrayLike,
    noise: ArrayLike,
    squared_params: ArrayLike,
    *,
    temperature: float,
    weight_decay: float = 0.0,
) -> float:
    r"""Where the drift of a charge ends on its orbit :math:`e^{\mu A}\theta`, from the spectrum of the generator.

    The root of :math:`J(\mu)=\sum_iTa_is_ie^{-2\mu a_i}-2\lambda\sum_ia_iq_ie^{2\mu a_i}`, which decreases.

    Parameters
    ----------
    eigenvalues : array_like, shape (n,)
        Eigenvalues :math:`a_i` of the generator :math:`A`.
    noise : array_like, shape (n,)
        Variances :math:`s_i\ge0` of the per-sample gradient along the eigenvectors.
    squared_params : array_like, shape (n,)
        Squares :math:`q_i\ge0` of the parameters along the eigenvectors.
    temperature : float
        Learning rate over batch size, > 0.
    weight_decay : float
        Not negative.

    Returns
    -------
    float
        The amount :math:`\mu^*`; ``inf`` or ``-inf`` if everything pushes to one side and nothing holds.

    Raises
    ------
    ValueError
        If the arrays are not one-dimensional, of one length, not empty and finite; if ``noise`` or ``squared_params``
        is negative; if ``temperature`` is not positive or ``weight_decay`` negative; if no term pushes, so that every
        point is stationary.

    References
    ----------
    Step 3 of the chapter :doc:`/chapters/noise_equilibrium`.

    Examples
    --------
    >>> a, s, q = [2, 1, -1, -3], [0.5, 1, 2, 0.3], [0.2, 0.4, 0.1, 0.6]
    >>> round(equilibrium_amount(a, s, q, temperature=0.1, weight_decay=0.05), 10)
    0.0069741478
    >>> equilibrium_amount([1, 1], [2, 3], [1, 1], temperature=0.1)  # scale invariance without weight decay
    inf
    """
    rate, decay = _check_rates(temperature, weight_decay)
    a = check_finite("eigenvalues", eigenvalues)
    s, q = check_nonnegative("noise", noise), check_nonnegative("squared_params", squared_params)
    for name, array in (("eigenvalues", a), ("noise", s), ("squared_params", q)):
        if array.ndim != 1 or not array.size:
            raise invalid(name, "of shape (n,), n >= 1", f"shape {array.shape}")
        if array.size != a.size:
            raise invalid(name, f"as long as eigenvalues ({a.size})", f"length {array.size}")
    # J / T is a sum of coefficient * exp(exponent * mu): what pushes up falls with mu, what pushes down rises.
    coefficient = np.concatenate([a * s, -2 * (decay / rate) * a * q])
    exponent = np.concatenate([-2 * a, 2 * a])
    up, down = coefficient > 0, coefficient < 0
    if not (up | down).any():
        raise invalid("noise, squared_params", "such that some term pushes along the orbit", "no drift anywhere")
    if not down.any():
        return float("inf")
    if not up.any():
        return float("-inf")
    size = np.log(np.abs(coefficient, where=up | down, out=np.ones_like(coefficient)))

    def balance(amount: float) -> float:
        logs = size + exponent * amount
        return float(logsumexp(logs[up]) - logsumexp(logs[down]))

    reach = 1.0 / np.abs(a[a != 0]).max()
    while balance(-reach) < 0 or balance(reach) > 0:
        reach *= 2
    return float(brentq(balance, -reach, reach, xtol=1e-300, rtol=4 * np.finfo(float).eps, maxiter=1000))


def gl_equilibrium(
    noise_left: ArrayLike,
    noise_right: ArrayLike,
    gram_left: ArrayLike,
    gram_right: ArrayLike,
    *,
    temperature: float,
    weight_decay: float = 0.0,
) -> np.ndarray:
    r"""Noise equilibrium of a product of two matrices :math:`UW`: the symmetric positive root of :math:`PXP=Y`.

    With :math:`X=TN_U+2\lambda WW^\top` and :math:`Y=TN_W+2\lambda U^\top U` the new factors are :math:`P^{1/2}W` and
    :math:`UP^{-1/2}`; :math:`P` is the geometric mean of :math:`X^{-1}` and :math:`Y`.

    Parameters
    ----------
    noise_left : array_like, shape (d, d)
        :math:`N_U=\mathbb E[\tilde g_U^\top\tilde g_U]`, centred gradients of the left factor.
    noise_right : array_like, shape (d, d)
        :math:`N_W=\mathbb E[\tilde g_W\tilde g_W^\top]`, of the right factor.
    gram_left, gram_right : array_like, shape (d, d)
        :math:`U^\top U` and :math:`WW^\top`.
    temperature : float
        Learning rate over batch size, > 0.
    weight_decay : float
        Not negative.

    Returns
    -------
    ndarray, shape (d, d)
        :math:`P`, symmetric positive definite. ``GL.act`` reaches it with the amount ``logm(P) / 2``.

    Raises
    ------
    ValueError
        If the matrices are not square, symmetric, finite and of one shape; if :math:`X` or :math:`Y` is not positive
        definite (then there is no unique equilibrium); if a rate is out of range.

    References
    ----------
    Step 5 of the chapter :doc:`/chapters/noise_equilibrium`.

    Examples
    --------
    >>> gl_equilibrium(np.diag([1, 4]), np.diag([16, 1]), np.diag([2, 1]), np.diag([1, 3]), temperature=0.1).round(12)
    array([[4. , 0. ],
           [0. , 0.5]])
    """
    rate, decay = _check_rates(temperature, weight_decay)
    named = {
        "noise_left": noise_left,
        "noise_right": noise_right,
        "gram_left": gram_left,
        "gram_right": gram_right,
    }
    matrices = {name: check_symmetric(name, value, rtol=1e-6) for name, value in named.items()}
    shape = matrices["noise_left"].shape
    for name, matrix in matrices.items():
        if matrix.shape != shape:
            raise invalid(name, f"of shape {shape} like noise_left", f"shape {matrix.shape}")
    X = rate * matrices["noise_left"] + 2 * decay * matrices["gram_right"]
    Y = rate * matrices["noise_right"] + 2 * decay * matrices["gram_left"]
    for name, matrix in (("temperature * noise_left + 2 * weight_decay * gram_right", X),
                         ("temperature * noise_right + 2 * weight_decay * gram_left", Y)):  # fmt: skip
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
        if not values[0] > len(values) * np.finfo(float).eps * values[-1]:
            raise invalid(name, "positive definite", f"eigenvalues from {values[0]:.3g} to {values[-1]:.3g}")
    root = _power(X, 0.5)
    inverse = _power(X, -0.5)
    P = inverse @ _power(root @ Y @ root, 0.5) @ inverse
    return (P + P.T) / 2


@dataclass(frozen=True, eq=False)
class NoiseEquilibrium:
    """A model moved to the noise equilibrium of its orbit.

    Attributes
    ----------
    params : dict of str to Tensor
        The same function at another point of the orbit; detached, in the dtype of the input. Parameters that the
        symmetry does not touch are the same tensors.
    amount : Tensor, or list of Tensor
        How far along the orbit, in the shape of ``symmetry.act``; a list for a sequence of symmetries.
    charge : Tensor, or list of Tensor
        Charges at the equilibrium.
    residual : float
        Largest remaining drift, relative to the total noise and decay of the parameters that are touched.
    """

    params: dict[str, Tensor]
    amount: Tensor | list[Tensor]
    charge: Tensor | list[Tensor]
    residual: float


def equilibrium(
    sample_loss: Callable[..., Tensor],
    params: Mapping[str, Tensor],
    symmetry: Rescaling | Scale | GL | Sequence[Rescaling | Scale],
    inputs: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    weight_decay: float = 0.0,
    chunk_size: int = 256,
    tol: float = 1e-12,
    max_iter: int = 10_000,
) -> NoiseEquilibrium:
    r"""Move a model to the noise equilibrium of its orbit, with its function unchanged.

    Of all points that the symmetry reaches, the one with the least total gradient noise and weight decay,
    :math:`T\operatorname{Tr}\Sigma+2\lambda\|\theta\|^2`: a convex problem. The gradients are taken once, at the
    starting point; along the orbit the noise follows by algebra.

    Parameters
    ----------
    sample_loss : callable
        ``sample_loss(params, x, y)``, the scalar loss of one sample; `symlearn.gradients.make_sample_loss` makes one.
    params : dict of Tensor
        The starting point. Not changed.
    symmetry : Rescaling, Scale, GL, or a sequence of Rescaling and Scale
        A sequence is brought to its joint equilibrium, for instance one Rescaling per hidden layer.
    inputs, targets : Tensor
        Samples on axis 0, at least two.
    temperature : float
        :math:`T`, learning rate over batch size, > 0. Without weight decay it does not matter.
    weight_decay : float
        Not negative; must be positive for a Scale, whose norm otherwise grows for ever.
    chunk_size : int
        Samples at once: memory is about that many gradients of the touched parameters.
    tol : float
        Largest change of an amount in the last sweep over a sequence.
    max_iter : int
        Largest number of sweeps.

    Returns
    -------
    NoiseEquilibrium

    Raises
    ------
    ValueError
        For rates out of range, unequal or too short data, unknown parameter names; for a unit on which everything
        pushes to one side; if the sweeps do not converge; for GL, if there is no unique equilibrium.
    TypeError
        For a symmetry without a charge, or ``params`` that is not a dict.

    Notes
    -----
    A unit without noise and without decay on both sides (a dead ReLU) is left where it is. The equilibrium is that of
    the current function: while training changes the function, its target moves. At finite temperature there are
    corrections of order T. Momentum and adaptive optimizers have other equilibria.

    References
    ----------
    Steps 3 to 5 of the chapter :doc:`/chapters/noise_equilibrium`.

    Examples
    --------
    Two scalars with :math:`(uwx-y)^2`: the equilibrium is :math:`u=w=1`.

    >>> def sample_loss(params, x, y):
    ...     return (params["u"] * params["w"] * x - y) ** 2
    >>> params = {"u": torch.tensor(2.0), "w": torch.tensor(0.5)}
    >>> x, y = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 1.0, 1.0])
    >>> result = equilibrium(sample_loss, params, Rescaling("u", "w"), x, y, temperature=0.1)
    >>> result.params
    {'u': tensor(1.), 'w': tensor(1.)}
    """
    rate, decay = _check_rates(temperature, weight_decay)
    if not callable(sample_loss):
        raise wrong_type("sample_loss", "a function of params, x and y", sample_loss)
    chunk_size, max_iter = check_int("chunk_size", chunk_size, 1), check_int("max_iter", max_iter, 1)
    tol = check_scalar("tol", check_positive("tol", tol))
    symmetries = _check_symmetries(symmetry)
    names = tuple(dict.fromkeys(name for each in symmetries for name in each.names))
    check_params(params, names)
    check_pair(inputs, targets)
    if len(inputs) < 2:
        raise invalid("inputs", "at least 2 samples", str(len(inputs)))
    for each in symmetries:
        each.charge(params)  # shapes and names
    if isinstance(symmetry, GL):
        return _matrix_equilibrium(sample_loss, params, symmetry, inputs, targets, rate, decay, chunk_size)
    noise, squares = entry_statistics(sample_loss, params, names, inputs, targets, chunk_size)
    orbit = Orbit(symmetries, params, noise, squares, rate, decay)
    for sweep in range(max_iter):
        change = orbit.sweep()
        if change <= tol or len(symmetries) == 1:
            break
        if sweep == max_iter - 1:
            raise invalid(
                "max_iter", f"enough sweeps for a change below {tol:g}", f"{max_iter}, a change of {change:.2g}"
            )
    moved = {name: tensor.detach() if name in names else tensor for name, tensor in params.items()}
    amounts = orbit.amounts()
    for each, amount in zip(symmetries, amounts, strict=True):
        moved = each.act(moved, amount)
    charges = [each.charge(moved) for each in symmetries]
    if isinstance(symmetry, (Rescaling, Scale)):
        return NoiseEquilibrium(moved, amounts[0], charges[0], orbit.residual())
    return NoiseEquilibrium(moved, amounts, charges, orbit.residual())


def _matrix_equilibrium(
    sample_loss: Callable[..., Tensor],
    params: Mapping[str, Tensor],
    symmetry: GL,
    inputs: Tensor,
    targets: Tensor,
    rate: float,
    decay: float,
    chunk_size: int,
) -> NoiseEquilibrium:
    noise, grams = matrix_statistics(sample_loss, params, symmetry, inputs, targets, chunk_size)
    amounts, drift = [], 0.0
    for noise_left, noise_right, gram_left, gram_right in zip(*noise, *grams, strict=True):
        P = gl_equilibrium(noise_left, noise_right, gram_left, gram_right, temperature=rate, weight_decay=decay)
        root, inverse = _power(P, 0.5), _power(P, -0.5)
        amounts.append(_logarithm(P) / 2)
        up = inverse @ (rate * noise_right + 2 * decay * gram_left) @ inverse
        down = root @ (rate * noise_left + 2 * decay * gram_right) @ root
        drift = max(drift, float(np.abs(up - down).max()) / max(float(np.trace(up)), float(np.trace(down))))
    stacked = np.stack(amounts)
    amount = torch.from_numpy(stacked if symmetry.heads > 1 else stacked[0]).to(params[symmetry.right].device)
    start = {name: tensor.detach() if name in symmetry.names else tensor for name, tensor in params.items()}
    moved = symmetry.act(start, amount)
    return NoiseEquilibrium(moved, amount, symmetry.charge(moved), drift)


def _check_rates(temperature: Any, weight_decay: Any) -> tuple[float, float]:
    if isinstance(temperature, (str, bool)) or temperature is None:
        raise wrong_type("temperature", "a number", temperature)
    check_real("temperature", temperature)
    return (
        check_scalar("temperature", check_positive("temperature", temperature)),
        check_scalar("weight_decay", check_nonnegative("weight_decay", weight_decay)),
    )


def _check_symmetries(symmetry: Any) -> list[ContinuousSymmetry]:
    if isinstance(symmetry, (Rescaling, Scale, GL)):
        return [symmetry]
    if not isinstance(symmetry, Sequence) or isinstance(symmetry, str):
        raise wrong_type("symmetry", "a Rescaling, Scale or GL, or a sequence of Rescaling and Scale", symmetry)
    if not symmetry:
        raise invalid("symmetry", "at least one symmetry", "none")
    for index, each in enumerate(symmetry):
        if not isinstance(each, (Rescaling, Scale)):
            raise wrong_type(f"symmetry[{index}]", "a Rescaling or a Scale", each)
    return list(symmetry)


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values**exponent) @ vectors.T


def _logarithm(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.log(values)) @ vectors.T
