"""Losses of joint-embedding methods: Barlow Twins, SimCLR and VICReg, with every convention written out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from symlearn._checks import (
    check_bool,
    check_choice,
    check_nonnegative,
    check_positive,
    check_scalar,
    invalid,
    wrong_dtype,
    wrong_type,
)


def barlow_twins_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    off_diag_weight: float = 5e-3,
    normalization: Literal["standardize", "center", "none"] = "standardize",
    symmetrize: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    r"""Barlow Twins loss, :math:`\sum_i(1-C_{ii})^2+w\sum_{i\ne j}C_{ij}^2` with :math:`C=\hat z_1^\top\hat z_2/N`.

    With ``off_diag_weight=1, normalization="none", symmetrize=True`` it is the linearised loss
    :math:`\|C-I\|_F^2` whose dynamics :class:`LinearBarlowTwins` solves.

    Parameters
    ----------
    z1, z2 : Tensor, shape (N, d)
        Embeddings of two views, row i of both a positive pair; N at least 2.
    off_diag_weight : float, default 5e-3
        The weight w >= 0, for each entry off the diagonal.
    normalization : {"standardize", "center", "none"}
        Of each view and dimension over the batch: subtract the mean and divide by :math:`\sqrt{\mathrm{var}+\epsilon}`
        with the variance divided by N; subtract the mean only; or nothing.
    symmetrize : bool, default False
        Replace C by :math:`(C+C^\top)/2`.
    eps : float, default 1e-5
        The :math:`\epsilon\ge0` of the standardisation.

    Returns
    -------
    Tensor
        A differentiable scalar, not averaged over dimensions; float32 for embeddings of lower precision.

    Raises
    ------
    ValueError
        For embeddings of different shapes, dtypes or devices, fewer than 2 pairs, negative weights, or an unknown
        normalization.
    TypeError
        If an embedding is not a tensor of real floating-point numbers, or another argument has the wrong type.

    Notes
    -----
    Not a mean over samples: under ``DistributedDataParallel`` gather the embeddings of all devices, with gradients,
    before any of the three losses. Embeddings that are not finite give a loss that is not.

    References
    ----------
    Zbontar, Jing, Misra, LeCun and Deny, *Barlow Twins*, ICML 2021; chapter :doc:`/chapters/stepwise_ssl`, eq. 2.

    Examples
    --------
    >>> z1 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0], [-1.0, 0.5]])
    >>> z2 = torch.tensor([[0.5, 0.5], [0.0, 2.0], [1.0, 1.0], [-2.0, 0.0]])
    >>> barlow_twins_loss(z1, z2)
    tensor(0.3294)
    >>> barlow_twins_loss(z1, z2, off_diag_weight=1, normalization="none", symmetrize=True)
    tensor(0.2109)
    """
    weight = _check_weight("off_diag_weight", off_diag_weight)
    check_choice("normalization", normalization, ("standardize", "center", "none"))
    eps = _check_weight("eps", eps)
    symmetric = check_bool("symmetrize", symmetrize)
    views = []
    for view in _check_embeddings(z1, z2):
        if normalization != "none":
            view = view - view.mean(0)
        if normalization == "standardize":
            view = view / (view.square().mean(0) + eps).sqrt()
        views.append(view)
    with _no_autocast(z1):
        correlation = views[0].T @ views[1] / len(z1)
    if symmetric:
        correlation = (correlation + correlation.T) / 2
    return (1 - correlation.diagonal()).square().sum() + weight * _off_diagonal(correlation)


def nt_xent_loss(z1: Tensor, z2: Tensor, *, temperature: float = 0.5) -> Tensor:
    r"""SimCLR's loss, the normalised temperature-scaled cross-entropy.

    Each of the 2N views is an anchor. Its partner is to be told from the other :math:`2N-1` views (not itself, and
    both views of the other samples) by the cosine over the temperature:

    .. math:: L=-\frac1{2N}\sum_{i=1}^{2N}\log\frac{e^{\cos(z_i,z_{i'})/T}}{\sum_{k\ne i}e^{\cos(z_i,z_k)/T}}.

    Parameters
    ----------
    z1, z2 : Tensor, shape (N, d)
        Embeddings of two views, row i of both a positive pair; N at least 2. Rows are divided by their length here.
    temperature : float, default 0.5
        T > 0.

    Returns
    -------
    Tensor
        A differentiable scalar in nats, :math:`\log(2N-1)` for an embedding that is the same everywhere; float32 for
        embeddings of lower precision.

    Raises
    ------
    ValueError
        For embeddings of different shapes, dtypes or devices, fewer than 2 pairs, or a temperature that is not
        positive.
    TypeError
        If an embedding is not a tensor of real floating-point numbers.

    References
    ----------
    Chen, Kornblith, Norouzi and Hinton, *A simple framework for contrastive learning of visual representations*, ICML
    2020; chapter :doc:`/chapters/stepwise_ssl`, eq. 14.

    Examples
    --------
    >>> z1 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0], [-1.0, 0.5]])
    >>> z2 = torch.tensor([[0.5, 0.5], [0.0, 2.0], [1.0, 1.0], [-2.0, 0.0]])
    >>> nt_xent_loss(z1, z2)
    tensor(1.2038)
    """
    scale = check_scalar("temperature", check_positive("temperature", temperature))
    views = F.normalize(torch.cat(_check_embeddings(z1, z2)), dim=1)
    with _no_autocast(z1):
        logits = views @ views.T / scale
    logits = logits.masked_fill(torch.eye(len(views), dtype=torch.bool, device=views.device), -torch.inf)
    partners = torch.arange(len(views), device=views.device).roll(len(z1))
    return F.cross_entropy(logits, partners)


def vicreg_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    target_std: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    r"""VICReg's loss: invariance to the view, variance in each dimension, no covariance between dimensions.

    The sum of

    - ``invariance`` times the mean over the N x d entries of :math:`(z_1-z_2)^2`;
    - ``variance`` times the mean over the d dimensions of :math:`\max(0,\sigma^*-\sqrt{\mathrm{var}_j+\epsilon})`,
      averaged over the two views, with the variance divided by N - 1;
    - ``covariance`` times :math:`\frac1d\sum_{i\ne j}\mathrm{Cov}_{ij}^2`, summed over the two views, with the
      covariance divided by N - 1.

    Parameters
    ----------
    z1, z2 : Tensor, shape (N, d)
        Embeddings of two views, row i of both a positive pair; N at least 2.
    invariance, variance, covariance : float
        Weights >= 0 of the three terms.
    target_std : float, default 1.0
        The :math:`\sigma^*\ge0`.
    eps : float, default 1e-4
        The :math:`\epsilon\ge0` under the root.

    Returns
    -------
    Tensor
        A differentiable scalar; float32 for embeddings of lower precision.

    Raises
    ------
    ValueError
        For embeddings of different shapes, dtypes or devices, fewer than 2 pairs, or negative weights.
    TypeError
        If an embedding is not a tensor of real floating-point numbers.

    References
    ----------
    Bardes, Ponce and LeCun, *VICReg*, ICLR 2022; chapter :doc:`/chapters/stepwise_ssl`, eq. 15.

    Examples
    --------
    >>> z1 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0], [-1.0, 0.5]])
    >>> z2 = torch.tensor([[0.5, 0.5], [0.0, 2.0], [1.0, 1.0], [-2.0, 0.0]])
    >>> vicreg_loss(z1, z2)
    tensor(14.1697)
    """
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    weights = {name: _check_weight(name, value) for name, value in weights.items()}
    target, eps = _check_weight("target_std", target_std), _check_weight("eps", eps)
    first, second = _check_embeddings(z1, z2)
    hinge = correlated = first.new_zeros(())
    for view in (first, second):
        centered = view - view.mean(0)
        with _no_autocast(z1):
            moments = centered.T @ centered / (len(view) - 1)
        hinge = hinge + F.relu(target - (moments.diagonal() + eps).sqrt()).mean() / 2
        correlated = correlated + _off_diagonal(moments) / view.shape[1]
    distance = (first - second).square().mean()
    return weights["invariance"] * distance + weights["variance"] * hinge + weights["covariance"] * correlated


def _check_weight(name: str, value: float) -> float:
    return check_scalar(name, check_nonnegative(name, value))


def _check_embeddings(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """Both views, in float32 at least."""
    for name, view in (("z1", z1), ("z2", z2)):
        if not isinstance(view, Tensor):
            raise wrong_type(name, "a tensor", view)
        if not view.is_floating_point():
            raise wrong_dtype(name, "of real floating-point numbers", view)
    if z1.ndim != 2 or len(z1) < 2 or not z1.shape[1]:
        raise invalid("z1", "of shape (N, d) with at least 2 samples", f"shape {tuple(z1.shape)}")
    for what, here, other in (
        ("shape", tuple(z1.shape), tuple(z2.shape)),
        ("dtype", z1.dtype, z2.dtype),
        ("device", z1.device, z2.device),
    ):
        if here != other:
            raise invalid("z2", f"of the {what} of z1 ({here})".replace("((", "(").replace("))", ")"), str(other))
    dtype = torch.promote_types(z1.dtype, torch.float32)
    return z1.to(dtype), z2.to(dtype)


def _no_autocast(view: Tensor) -> AbstractContextManager:
    """Products of matrices stay in their precision within an autocast region."""
    kind = view.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _off_diagonal(matrix: Tensor) -> Tensor:
    """Sum of the squares off the diagonal."""
    return matrix.square().sum() - matrix.diagonal().square().sum()
