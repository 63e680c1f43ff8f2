"""L1 through a redundant parametrisation: weight decay on two factors of a weight is exactly an L1 penalty.

For any torch module, weight by weight or in groups; and as a lasso regressor for scikit-learn, which solves the same
factorised problem by blocks and certifies its exact zeros (chapter :doc:`/chapters/spred`). Source: Ziyin and Wang,
"spred: Solving L1 Penalty with SGD", ICML 2023.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn.utils.parametrize import (
    ParametrizationList,
    is_parametrized,
    register_parametrization,
    remove_parametrizations,
)

from symlearn._checks import (
    check_bool,
    check_finite,
    check_int,
    check_module,
    check_nonnegative,
    check_positive,
    check_scalar,
    check_shape,
    check_str,
    invalid,
    wrong_dtype,
    wrong_type,
)
from symlearn._spred_network import leaves, remove_dead_units
from symlearn._spred_solver import kkt_violation, solve

__all__ = [
    "SpredRegressor",
    "lasso_kkt_violation",
    "parametrize",
    "penalty",
    "prune_to_support",
    "smaller_network",
]


def parametrize(
    module: nn.Module, name: str = "weight", *, groups: int | Tensor | None = None, imbalance: float = 0.1
) -> nn.Module:
    r"""Write a weight of a module as gate times direction, so that weight decay on both is an L1 penalty.

    The weight becomes :math:`w_i=u_iv_i`, or :math:`w_g=s_gv_g` with one gate per group, and keeps its value. The L2
    penalty :math:`\frac\alpha2(\|u\|^2+\|v\|^2)` on the factors has the same minima as :math:`\alpha\|w\|_1`, or
    :math:`\alpha\sum_g\|w_g\|_2`, on the weight. Build the optimizer afterwards: the parameters are new ones.

    Parameters
    ----------
    module : nn.Module
        The layer that owns the weight; it is changed, with :func:`torch.nn.utils.parametrize.register_parametrization`.
    name : str, default "weight"
        Which parameter of the module.
    groups : None, int or LongTensor, optional
        None: every entry by itself. An int d: each slice ``weight.select(d, i)`` is a group, so 0 means output units or
        channels and 1 means inputs. A tensor of the weight's shape: the group of every entry, numbered from 0 without
        gaps.
    imbalance : float, default 0.1
        The factors start at :math:`u^2-\|v\|^2=2\kappa` with :math:`\kappa` = ``imbalance`` times the root mean square
        of the magnitudes :math:`|w_i|` or :math:`\|w_g\|`, or ``imbalance`` itself where all are zero. It must be
        positive: balanced factors could never change the sign of a weight.

    Returns
    -------
    nn.Module
        The same module. ``module.parametrizations[name].original0`` is the gate, ``original1`` the direction, with the
        dtype and the device of the weight.

    Raises
    ------
    ValueError
        If the module has no such parameter, the parameter is parametrized already, empty or not finite, ``groups`` is
        out of range, of another shape or has gaps, or ``imbalance`` is not positive.
    TypeError
        If an argument has the wrong type, or the parameter is not of real floating-point numbers.

    See Also
    --------
    penalty : The L2 penalty on the factors, to be added to a loss.

    Notes
    -----
    The ``weight_decay`` of ``torch.optim.SGD`` or ``Adam`` on the two factors *is* the L1 strength, without a factor 2.
    ``AdamW`` decouples the decay from the gradient and has other fixed points; give it :func:`penalty` in the loss
    and ``weight_decay=0``. The group penalty is not weighted by the sizes of the groups.

    References
    ----------
    L. Ziyin and Z. Wang, *spred: Solving L1 Penalty with SGD*, ICML 2023; chapter :doc:`/chapters/spred`.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(8, 4)
    >>> before = layer.weight.detach().clone()
    >>> layer = parametrize(layer, groups=1)
    >>> bool(torch.allclose(layer.weight, before))
    True
    >>> factors = layer.parametrizations.weight
    >>> tuple(factors.original0.shape), tuple(factors.original1.shape)
    ((8,), (4, 8))
    """
    check_module(module, "module")
    name = check_str("name", name)
    imbalance = check_scalar("imbalance", check_positive("imbalance", imbalance))
    weight = _check_weight(module, name)
    register_parametrization(module, name, _GatedWeight(_check_groups(groups, weight), imbalance))
    return module


def penalty(module: nn.Module, alpha: float) -> Tensor:
    r"""L2 penalty on all factors in a module, :math:`\frac\alpha2\sum(\|u\|^2+\|v\|^2)`: the L1 penalty in disguise.

    Minimised over the factors at fixed weights it equals :math:`\alpha\sum|w|`, or :math:`\alpha\sum_g\|w_g\|_2` with
    groups. Right after :func:`parametrize` it is :math:`\alpha\sum\sqrt{\kappa^2+m^2}` for magnitudes m.

    Parameters
    ----------
    module : nn.Module
        Contains at least one weight that was parametrized by :func:`parametrize`, at any depth.
    alpha : float
        Strength of the L1 norm, > 0.

    Returns
    -------
    Tensor
        A differentiable scalar, to be added to the loss.

    Raises
    ------
    ValueError
        If ``alpha`` is not positive and finite, or the module has no such weight.
    TypeError
        If an argument has the wrong type.

    References
    ----------
    Chapter :doc:`/chapters/spred`.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(2, 1).double()
    >>> layer.weight.data = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    >>> float(penalty(parametrize(layer, imbalance=1e-6), alpha=0.5).detach())
    3.500000000...
    """
    check_module(module, "module")
    alpha = check_scalar("alpha", check_positive("alpha", alpha))
    factors = {id(factor): factor for part in module.modules() if _is_gated(part) for factor in _factors(part)}
    if not factors:
        raise invalid("module", "a module with a weight from parametrize", f"a {type(module).__name__} without one")
    first = next(iter(factors.values()))
    total = sum((factor.square().sum().to(first) for factor in factors.values()), start=first.new_zeros(()))
    return alpha / 2 * total


def prune_to_support(module: nn.Module, name: str = "weight", *, tol: float = 1e-6) -> float:
    """Turn gate and direction back into one weight, with exact zeros where it is negligible.

    Parameters
    ----------
    module : nn.Module
        The layer whose weight was given to :func:`parametrize`; it is changed. Build a new optimizer if training goes
        on: the weight is a new parameter.
    name : str, default "weight"
        Which parameter of the module.
    tol : float, default 1e-6
        An entry with ``|w| <= tol``, or a group whose Euclidean norm is at most ``tol``, becomes exactly 0.

    Returns
    -------
    float
        Fraction of the weight's entries that are kept.

    Raises
    ------
    ValueError
        If this weight was not parametrized by :func:`parametrize`, or ``tol`` is negative or not finite.
    TypeError
        If an argument has the wrong type.

    See Also
    --------
    smaller_network : Removes units that groups of zeros have made superfluous.

    Notes
    -----
    A network has no certificate for its zeros as the lasso has. Choose ``tol`` within the gap of the histogram of
    magnitudes: under the penalty superfluous weights decay exponentially and never reach zero.

    References
    ----------
    Chapter :doc:`/chapters/spred`.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(4, 1)
    >>> layer.weight.data = torch.tensor([[1.0, 1e-9, -2.0, 0.0]])
    >>> prune_to_support(parametrize(layer))
    0.5
    >>> layer.weight.tolist()
    [[1.0, 0.0, -2.0, 0.0]]
    """
    check_module(module, "module")
    name = check_str("name", name)
    tol = check_scalar("tol", check_nonnegative("tol", tol))
    parametrization = _parametrization(module, name)
    gated, (gate, direction) = parametrization[0], _factors(parametrization)
    trainable = gate.requires_grad or direction.requires_grad
    with torch.no_grad():
        weight = gated(gate, direction)
        kept = gated.spread(gated.magnitude(weight) > tol, weight)
    remove_parametrizations(module, name)
    delattr(module, name)
    setattr(module, name, nn.Parameter(torch.where(kept, weight, 0), requires_grad=trainable))
    return float(kept.double().mean())


def smaller_network(model: nn.Sequential) -> nn.Sequential:
    """A copy of a chain of layers without its superfluous units: the same function from smaller matrices.

    A unit or channel is superfluous if all its incoming weights are zero, or the scale that a batch norm gives it is
    zero, so that no input changes it; or if all its outgoing weights are zero, so that nothing reads it. What a
    constant unit contributed goes into the bias of the next layer. Units that lose their last reader this way are
    removed too. Every layer keeps at least one unit, and the network keeps its inputs and outputs.

    Parameters
    ----------
    model : nn.Sequential
        Chain of ``Linear`` and ``Conv1d`` to ``Conv3d`` layers, nested or not, for batched inputs. Between two layers
        there may be activations, batch norms, pooling, dropout and ``nn.Flatten()``. Where anything else stands
        (skip connections, attention, grouped convolutions, modules with forward hooks), the units around it are kept.

    Returns
    -------
    nn.Sequential
        Same names of modules, dtype, device, mode and ``requires_grad``. ``model`` itself is not changed.

    Raises
    ------
    ValueError
        If the model is still parametrized by :func:`parametrize` (call :func:`prune_to_support` first), or uses a
        module or a parameter twice.
    TypeError
        If ``model`` is not an ``nn.Sequential``.

    Notes
    -----
    The function is the same in evaluation mode up to rounding. While training, batch norm in front of a removed
    constant would have used the statistics of the batch. Where the next convolution pads with zeros a constant channel
    is not a bias, near the border: there one constant channel is kept to stand for all of them.

    References
    ----------
    Chapter :doc:`/chapters/spred`.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> model[0].weight.data[3:] = 0
    >>> smaller = smaller_network(model)
    >>> smaller[0].weight.shape, smaller[2].weight.shape
    (torch.Size([3, 5]), torch.Size([2, 3]))
    >>> x = torch.ones(7, 5)
    >>> bool(torch.allclose(model(x), smaller(x), atol=1e-6))
    True
    """
    if not isinstance(model, nn.Sequential):
        raise wrong_type("model", "a torch.nn.Sequential", model)
    if any(_is_gated(part) for part in model.modules()):
        raise invalid("model", "without weights from parametrize", "one: call prune_to_support on its layer first")
    _check_used_once("module", [part for part in leaves(model) if any(True for _ in part.parameters())])
    _check_used_once("parameter", [value for _, value in model.named_parameters(remove_duplicate=False)])
    smaller = copy.deepcopy(model)
    remove_dead_units(smaller)
    return smaller


class SpredRegressor(RegressorMixin, BaseEstimator):
    r"""Lasso regression through the factorised problem, with exact zeros and a certificate.

    Minimises :math:`\frac1{2n}\|y-Xw-b\|^2+\alpha\|w\|_1`, the objective of ``sklearn.linear_model.Lasso``, as
    :math:`\frac1{2n}\|y-X(u\odot v)-b\|^2+\frac\alpha2(\|u\|^2+\|v\|^2)`: with v fixed the best u solves a linear
    system, with their product fixed the best pair is balanced, and neither step needs a step size. On the support the
    ratio u / v tends to 1 in size, off it to less; once the support is known, the solution on it is computed exactly.

    Parameters
    ----------
    alpha : float, default 1.0
        Strength of the L1 norm, > 0, in the scaling of scikit-learn.
    fit_intercept : bool, default True
        Whether to fit the constant b, which is not penalised.
    tol : float, default 1e-10
        The fit ends when the duality gap is at most ``tol`` times :math:`\|y-\bar y\|^2/n` (without an intercept
        :math:`\|y\|^2/n`).
    max_iter : int, default 50
        Largest number of outer rounds. Each solves a subset of the features and then looks at all.

    Attributes
    ----------
    coef_ : ndarray, shape (n_features,)
        Coefficients; exactly 0 off the support.
    intercept_ : float
        The constant b; 0 without an intercept.
    dual_gap_ : float
        Upper bound of how far the objective is above its minimum.
    n_iter_ : int
        Outer rounds.
    n_features_in_ : int
        Features seen by ``fit``.

    Raises
    ------
    ValueError
        In ``fit``: for parameters out of range, data that are not finite or of mismatched shapes.
    TypeError
        In ``fit``: for parameters of the wrong type.

    Warns
    -----
    ConvergenceWarning
        If the gap is above its bound after ``max_iter`` rounds.

    Notes
    -----
    Data may be dense or sparse and are not changed; everything is computed in float64. Where columns depend on each
    other the fit is unique and the coefficients may not be.

    References
    ----------
    L. Ziyin and Z. Wang, *spred: Solving L1 Penalty with SGD*, ICML 2023; C. Poon and G. Peyre, *Smooth bilevel
    programming for sparse regularization*, NeurIPS 2021; H. Lee et al., *Efficient sparse coding algorithms*, NIPS
    2006 (finish on the support); chapter :doc:`/chapters/spred`.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.eye(4)
    >>> SpredRegressor(alpha=0.25, fit_intercept=False).fit(X, [3.0, -2.0, 0.5, 0.0]).coef_
    array([ 2., -1.,  0.,  0.])
    """

    def __init__(
        self, alpha: float = 1.0, *, fit_intercept: bool = True, tol: float = 1e-10, max_iter: int = 50
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: ArrayLike, y: ArrayLike) -> SpredRegressor:
        """Fit the coefficients.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n_samples, n_features)
            Features.
        y : array_like, shape (n_samples,)
            Targets.

        Returns
        -------
        SpredRegressor
            The fitted estimator itself.
        """
        alpha = check_scalar("alpha", check_positive("alpha", self.alpha))
        tol = check_scalar("tol", check_positive("tol", self.tol))
        max_iter = check_int("max_iter", self.max_iter, 1)
        intercept = check_bool("fit_intercept", self.fit_intercept)
        X, y = validate_data(self, X, y, accept_sparse="csc", dtype=np.float64, y_numeric=True)
        found = solve(X, np.asarray(y, dtype=np.float64), alpha, intercept=intercept, tol=tol, max_iter=max_iter)
        self.coef_, self.intercept_ = found.coef, found.intercept
        self.dual_gap_, self.n_iter_ = found.gap, found.n_rounds
        if not found.converged:
            warnings.warn(
                f"The duality gap {found.gap:.2e} is above its bound {found.bound:.2e} after {found.n_rounds} rounds.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Predict targets.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n_samples, n_features)
            Features.

        Returns
        -------
        ndarray, shape (n_samples,)
            Predicted targets.
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return X @ self.coef_ + self.intercept_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def lasso_kkt_violation(X: ArrayLike, y: ArrayLike, coef: ArrayLike, alpha: float) -> float:
    r"""How far coefficients are from solving the lasso: the largest violation of its optimality conditions.

    With :math:`c=X^\top(y-Xw)/n` these are :math:`c_j=\alpha\,\mathrm{sign}(w_j)` where :math:`w_j\ne0` and
    :math:`|c_j|\le\alpha` elsewhere. They are necessary and sufficient.

    Parameters
    ----------
    X : array_like or sparse matrix, shape (n, p)
        Features. With an intercept, pass centred X and y.
    y : array_like, shape (n,)
        Targets.
    coef : array_like, shape (p,)
        Coefficients to be judged.
    alpha : float
        Strength of the L1 norm, > 0, for the objective :math:`\frac1{2n}\|y-Xw\|^2+\alpha\|w\|_1`.

    Returns
    -------
    float
        In units of ``alpha``'s, not relative to it; 0 for an exact solution.

    Raises
    ------
    ValueError
        If shapes disagree, numbers are not finite, or ``alpha`` is not positive.
    TypeError
        If an argument has the wrong type.

    References
    ----------
    Chapter :doc:`/chapters/spred`.

    Examples
    --------
    >>> lasso_kkt_violation([[1, 0], [0, 1]], [3, 0.5], [2.5, 0], alpha=0.25)
    0.0
    >>> lasso_kkt_violation([[1, 0], [0, 1]], [3, 0.5], [3, 0], alpha=0.25)
    0.25
    """
    alpha = check_scalar("alpha", check_positive("alpha", alpha))
    if issparse(X):
        check_finite("X", X.data)
        X = X.astype(np.float64)
    else:
        X = check_shape("X", X, (None, None))
    if X.ndim != 2 or not X.shape[0]:
        raise invalid("X", "of shape (n, p) with n >= 1", f"shape {X.shape}")
    return kkt_violation(X, check_shape("y", y, X.shape[:1]), check_shape("coef", coef, X.shape[1:]), alpha)


class _GatedWeight(nn.Module):
    """Gate times direction; ``groups`` is None, an axis, or the group of every entry."""

    groups: Tensor | None

    def __init__(self, groups: int | Tensor | None, imbalance: float) -> None:
        super().__init__()
        self.axis = groups if isinstance(groups, int) else None
        self.register_buffer("groups", groups if isinstance(groups, Tensor) else None)
        self.n_groups = int(groups.max()) + 1 if isinstance(groups, Tensor) else 0
        self.imbalance = imbalance

    def forward(self, gate: Tensor, direction: Tensor) -> Tensor:
        return self.spread(gate, direction) * direction

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        magnitude = self.magnitude(weight)
        largest = magnitude.max()
        scale = torch.where(largest > 0, largest, 1)
        rms = scale * (magnitude / scale).square().mean().sqrt()
        kappa = self.imbalance * torch.where(largest > 0, rms, 1)
        gate = (kappa + torch.hypot(kappa, magnitude)).sqrt()
        return gate, weight / self.spread(gate, weight)

    def magnitude(self, weight: Tensor) -> Tensor:
        """|w| of the entries, or the Euclidean norms of the groups."""
        if self.axis is not None:
            return torch.linalg.vector_norm(weight.movedim(self.axis, 0).flatten(1), dim=1)
        if self.groups is None:
            return weight.abs()
        squares = weight.new_zeros(self.n_groups).index_add(0, self.groups.flatten(), weight.flatten().square())
        return squares.sqrt()

    def spread(self, gate: Tensor, weight: Tensor) -> Tensor:
        """One value per group to the shape of the weight."""
        if self.axis is not None:
            return gate.view([-1 if axis == self.axis else 1 for axis in range(weight.ndim)]).expand_as(weight)
        return gate if self.groups is None else gate[self.groups]


def _is_gated(module: Any) -> bool:
    return isinstance(module, ParametrizationList) and isinstance(module[0], _GatedWeight)


def _factors(parametrization: nn.Module) -> tuple[Tensor, Tensor]:
    return parametrization.original0, parametrization.original1  # type: ignore[return-value]


def _parametrization(module: nn.Module, name: str) -> Any:
    if not is_parametrized(module, name):
        raise invalid("name", "a weight from parametrize", repr(name))
    parametrization = module.parametrizations[name]  # type: ignore[index]
    if not _is_gated(parametrization):
        raise invalid("name", "a weight from parametrize", f"{name!r} with another parametrization")
    if len(parametrization) != 1:
        raise invalid("name", "a weight with no other parametrization on top", f"{len(parametrization)} of them")
    return parametrization


def _check_weight(module: nn.Module, name: str) -> Tensor:
    if is_parametrized(module, name):
        raise invalid("name", "a parameter that is not parametrized yet", repr(name))
    weight = module._parameters.get(name)
    if weight is None:
        names = ", ".join(sorted(repr(key) for key, value in module._parameters.items() if value is not None))
        raise invalid("name", f"a parameter of the {type(module).__name__} ({names or 'it has none'})", repr(name))
    if isinstance(weight, nn.UninitializedParameter):
        raise invalid("name", "an initialised parameter (run the lazy module once)", repr(name))
    if not weight.is_floating_point():
        raise wrong_dtype(name, "real floating-point numbers", weight)
    if not weight.numel():
        raise invalid(name, "of at least one entry", f"shape {tuple(weight.shape)}")
    if not torch.isfinite(weight).all():
        raise invalid(name, "finite", "NaN or infinity")
    return weight.detach()


def _check_groups(groups: Any, weight: Tensor) -> int | Tensor | None:
    if groups is None:
        return None
    if not isinstance(groups, Tensor) or groups.ndim == 0:
        axis = check_int("groups", groups, -weight.ndim, weight.ndim - 1)
        return axis % weight.ndim
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise wrong_dtype("groups", "a LongTensor, an int or None", groups)
    if groups.shape != weight.shape:
        raise invalid("groups", f"of the weight's shape {tuple(weight.shape)}", f"shape {tuple(groups.shape)}")
    groups = groups.detach().to(weight.device, torch.long, copy=True)
    low, high = int(groups.min()), int(groups.max())
    if low < 0 or high >= weight.numel() or len(torch.unique(groups)) != high + 1:
        raise invalid("groups", "numbered from 0 without gaps", f"numbers from {low} to {high}")
    return groups


def _check_used_once(kind: str, parts: list[Any]) -> None:
    if len({id(part) for part in parts}) != len(parts):
        raise invalid("model", f"a chain that uses every {kind} once", f"a {kind} used twice")
