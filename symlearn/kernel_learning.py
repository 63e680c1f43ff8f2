r"""Networks as kernel machines: linearised networks, kernel regression, infinite width, and paths between minima.

A network whose tangent kernel stood still would be a kernel machine (chapter :doc:`/chapters/kernel_learning`). These
are the tools that tell how far a real one is from that. Kernels of models come from
:func:`~symlearn.tangent_kernel.empirical_ntk`. Source: Fort, Dziugaite, Paul, Kharaghani, Roy and Ganguli, "Deep
learning versus kernel learning", NeurIPS 2020.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from symlearn._checks import (
    check_finite,
    check_int,
    check_module,
    check_real,
    check_samples,
    check_scalar,
    check_shape,
    check_square,
    invalid,
    wrong_type,
)
from symlearn.tangent_kernel import kernel_distance

__all__ = [
    "ErrorBarrier",
    "LinearizedModel",
    "activation_distance",
    "disagreement",
    "error_barrier",
    "infinite_ntk_relu",
    "kernel_regression",
    "kernel_velocity",
    "linearize",
]

_ASYMMETRY = 1e-3  # relative; a kernel in float32 is far below


def kernel_regression(
    k_train: ArrayLike,
    targets: ArrayLike,
    k_test: ArrayLike | None = None,
    *,
    time: float = math.inf,
    ridge: float = 0.0,
    f0_train: ArrayLike | None = None,
    f0_test: ArrayLike | None = None,
) -> np.ndarray:
    r"""Predictions of a linearised network after gradient flow for any time, in closed form.

    Flow on :math:`\frac12\sum_n\|f(x_n)-y_n\|^2+\frac r2\|\theta-\theta_0\|^2` with a constant kernel
    :math:`\Theta=V\,\mathrm{diag}(\mu)\,V^\top` gives :math:`f_*(t)=f_{0,*}+\Theta_*V\,\mathrm{diag}(\phi_t)V^\top
    (y-f_0)` with :math:`\phi_t=(1-e^{-(\mu+r)t})/(\mu+r)`. At :math:`t=\infty` this is kernel ridge regression.

    Parameters
    ----------
    k_train : array_like, shape (N, N)
        Kernel of the training inputs, symmetric and positive semidefinite up to rounding (its symmetric part is used,
        negative eigenvalues count as 0).
    targets : array_like, shape (N,) or (N, C)
        What to fit. Several outputs share the kernel.
    k_test : array_like, shape (M, N), optional
        Kernel between test and training inputs. By default predictions are those on the training inputs.
    time : float
        Flow time, 0 to inf. Gradient descent with rate ``lr`` on the *mean* :math:`\frac1{2N}\sum_n` has reached
        ``lr * steps / N``.
    ridge : float
        :math:`r\ge0`. The trace kernel of ``empirical_ntk`` is a mean over outputs: so is its natural ridge.
    f0_train, f0_test : array_like, shapes (N,) or (N, C), and (M,) or (M, C), optional
        Outputs of the network where the flow starts; 0 by default.

    Returns
    -------
    ndarray of float64, shape (M,) or (M, C)
        With ``k_test=None``, (N,) or (N, C).

    Raises
    ------
    TypeError
        If an argument is not real numbers.
    ValueError
        For shapes that do not fit, entries that are not finite, an asymmetric ``k_train``, ``time`` or ``ridge`` that
        is negative or NaN; ``f0_test`` without ``k_test``, or ``f0_train`` and ``k_test`` without ``f0_test``.

    Notes
    -----
    One eigendecomposition in float64. Without ridge and at infinite time, directions with eigenvalues at most
    :math:`N\epsilon\mu_{\max}` are left where they start: the result of the pseudo-inverse.

    References
    ----------
    Lee, Xiao, Schoenholz, Bahri, Novak, Sohl-Dickstein and Pennington, "Wide neural networks of any depth evolve as
    linear models under gradient descent", NeurIPS 2019; chapter :doc:`/chapters/kernel_learning`.

    Examples
    --------
    A mode with eigenvalue 2 has lost all but :math:`e^{-2t}` of its residual:

    >>> kernel_regression([[2.0, 0.0], [0.0, 1.0]], [1.0, 1.0], time=1.0).round(4)
    array([0.8647, 0.6321])
    >>> kernel_regression([[2.0, 0.0], [0.0, 1.0]], [1.0, 1.0], [[1.0, 1.0]])
    array([1.5])
    """
    kernel = check_square("k_train", k_train)
    n = len(kernel)
    scale = float(np.abs(kernel).max())
    asymmetry = float(np.abs(kernel - kernel.T).max())
    if asymmetry > _ASYMMETRY * scale:
        raise invalid("k_train", "symmetric", f"an asymmetry of {asymmetry:.3g}")
    y = check_finite("targets", targets)
    if y.ndim not in (1, 2) or len(y) != n:
        raise invalid("targets", f"of shape ({n},) or ({n}, C)", f"shape {y.shape}")
    start, cross, start_test = _flow_start(n, y.shape, k_test, f0_train, f0_test)
    t = _check_time(time)
    ridge = check_scalar("ridge", ridge)
    if ridge < 0:
        raise invalid("ridge", ">= 0", ridge)
    eigenvalues, vectors = np.linalg.eigh((kernel + kernel.T) / 2)
    eigenvalues = eigenvalues.clip(min=0)
    filtered = _spectral_filter(eigenvalues, t, ridge)
    residual = vectors.T @ (y - start)
    if cross is None:
        gain = (eigenvalues * filtered).reshape(-1, *[1] * (y.ndim - 1))
        return np.asarray(start + vectors @ (gain * residual))
    return np.asarray(start_test + cross @ (vectors @ (filtered.reshape(-1, *[1] * (y.ndim - 1)) * residual)))


def infinite_ntk_relu(
    x1: ArrayLike, x2: ArrayLike | None = None, depth: int = 1, sigma_w2: float = 2.0, sigma_b2: float = 0.0
) -> np.ndarray:
    r"""Tangent kernel of an infinitely wide ReLU perceptron in NTK parameterisation.

    Layers are :math:`h^{l+1}=\sigma_wW\,\mathrm{relu}(h^l)/\sqrt{n_l}+\sigma_bb` with standard normal :math:`W` and
    :math:`b`; the first takes :math:`x/\sqrt d` in place of the hidden units.

    Parameters
    ----------
    x1 : array_like, shape (N1, d)
        Inputs.
    x2 : array_like, shape (N2, d), optional
        Other inputs; by default the same, and then the diagonal is exact.
    depth : int
        Number of hidden layers; 0 is the linear model, whose kernel is :math:`\sigma_w^2x\cdot x'/d+\sigma_b^2`.
    sigma_w2, sigma_b2 : float
        Variances :math:`\sigma_w^2>0` and :math:`\sigma_b^2\ge0`.

    Returns
    -------
    ndarray of float64, shape (N1, N2)
        The kernel of one output; different outputs are independent.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        For inputs that are not 2-d, empty, not finite or of different ``d``; ``depth < 0``; a variance out of its
        range; a kernel beyond the range of floats.

    Notes
    -----
    Angles come from an arc cosine: entries of nearly parallel inputs are right to about 1e-8, relative.

    References
    ----------
    Jacot, Gabriel and Hongler, NeurIPS 2018; the Gaussian integrals are those of Cho and Saul, NeurIPS 2009; chapter
    :doc:`/chapters/kernel_learning`.

    Examples
    --------
    With :math:`\sigma_w^2=2` and no biases each hidden layer adds :math:`2\|x\|^2/d` on the diagonal, and orthogonal
    inputs share :math:`2/(\pi d)` after one:

    >>> infinite_ntk_relu([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).round(6)
    array([[1.333333, 0.212207],
           [0.212207, 1.333333]])
    """
    first = _check_points("x1", x1)
    second = first if x2 is None else _check_points("x2", x2)
    d = first.shape[1]
    if second.shape[1] != d:
        raise invalid("x2", f"of shape (n, {d}), as x1", f"shape {second.shape}")
    n_layers = check_int("depth", depth, 0)
    weight, bias = check_scalar("sigma_w2", sigma_w2), check_scalar("sigma_b2", sigma_b2)
    if weight <= 0:
        raise invalid("sigma_w2", "> 0", weight)
    if bias < 0:
        raise invalid("sigma_b2", ">= 0", bias)
    with np.errstate(over="ignore", invalid="ignore"):
        tangent = _ntk_recursion(first, second, n_layers, weight, bias, same=x2 is None)
    if not np.isfinite(tangent).all():
        raise invalid("x1, depth, sigma_w2 and sigma_b2", "such that the kernel is finite", "an overflow")
    return tangent


def linearize(model: nn.Module) -> LinearizedModel:
    r"""The model's first-order Taylor expansion in its trainable parameters, as a module that can be trained.

    Parameters
    ----------
    model : nn.Module
        Any module that returns a tensor. It is copied, and never changed.

    Returns
    -------
    LinearizedModel
        :math:`f(x;\theta_0)+J(x)(\theta-\theta_0)`, at :math:`\theta=\theta_0` now.

    Raises
    ------
    TypeError
        If ``model`` is not a module.
    ValueError
        If it has no trainable parameters, or uninitialised ones.

    References
    ----------
    Fort et al., NeurIPS 2020; chapter :doc:`/chapters/kernel_learning`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> linear, x = linearize(model), torch.ones(1, 2)
    >>> torch.equal(linear(x), model(x))
    True
    >>> optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    """
    return LinearizedModel(model)


class LinearizedModel(nn.Module):
    """A model linearised in its parameters; made by :func:`linearize`.

    ``parameters()`` are the trainable parameters of the model, in its order, and start at their values there. Those
    values stay as buffers, and so do frozen parameters; so ``state_dict``, ``to`` and ``deepcopy`` work as ever.
    The function that is linearised is that of the model in eval mode, whatever ``train()`` is called with: batch norm
    uses its running statistics, dropout does nothing.

    Parameters
    ----------
    model : nn.Module
        What to linearise; copied.

    Notes
    -----
    One call costs about two of the model: output and directional derivative are computed together in forward mode,
    or, where an operation has no forward mode, through two reverse passes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(check_module(model))
        for name, parameter in self.model.named_parameters():
            if isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.is_meta:
                raise invalid("model", "initialised", f"no values in {name!r}")
        _freeze(self.model)
        self._names = tuple(name for name, _ in self.model.named_parameters())
        if not self._names:
            raise invalid("model", "one with trainable parameters", "none that require gradients")
        for index, parameter in enumerate(self.model.parameters()):
            parameter.grad = None
            self.register_buffer(f"theta_0_{index}", parameter.detach().clone())
        self.model.eval()

    def train(self, mode: bool = True) -> LinearizedModel:
        """Set the mode of this module alone: the linearised function is that of eval mode."""
        self.training = mode
        return self

    def forward(self, x: Any) -> Tensor:
        """The linearised outputs for a batch of inputs."""
        theta = dict(self.model.named_parameters())
        origin = {name: getattr(self, f"theta_0_{index}") for index, name in enumerate(self._names)}
        step = {name: theta[name] - origin[name] for name in self._names}

        def outputs(params: dict[str, Tensor]) -> Tensor:
            found = functional_call(self.model, params, (x,))
            if not isinstance(found, Tensor):
                raise wrong_type("model", "a module that returns a tensor", found)
            return found

        # The mathematical form of attention is the one that has a forward mode.
        with sdpa_kernel(SDPBackend.MATH):
            try:
                value, change = jvp(outputs, (origin,), (step,))[:2]
            except NotImplementedError:
                value, change = _reverse_twice(outputs, origin, step)
        return value + change


@dataclass(frozen=True, eq=False)
class ErrorBarrier:
    """A metric along the straight line between two models.

    Attributes
    ----------
    t : ndarray, shape (n_points,)
        Position, from 0 (the first model) to 1 (the second).
    values : ndarray, shape (n_points,)
        The metric at ``(1 - t) * a + t * b``.
    barrier : float
        Largest value less the mean of the two ends.
    t_max : float
        Where the largest value is.
    """

    t: np.ndarray
    values: np.ndarray
    barrier: float
    t_max: float


@torch.no_grad()
def error_barrier(
    model_a: nn.Module, model_b: nn.Module, metric: Callable[[nn.Module], float], *, n_points: int = 25
) -> ErrorBarrier:
    r"""How much a metric rises on the straight line between two models of one architecture.

    No barrier means that the two are in one linearly connected basin: their average is as good as they are.

    Parameters
    ----------
    model_a, model_b : nn.Module
        The ends. Neither is changed.
    metric : callable
        From a module to a number; called without gradients, with a copy of ``model_a`` that has the mixed parameters
        and floating-point buffers (other buffers are those of ``model_a``). It may change that copy, for instance to
        measure the statistics of batch norm again, as it should where there is batch norm.
    n_points : int
        Points on the line, the ends included; at least 3.

    Returns
    -------
    ErrorBarrier

    Raises
    ------
    TypeError
        If a model is not a module, ``metric`` is not callable or returns something other than a number.
    ValueError
        For models with different names or shapes, ``n_points < 3``, or a metric that is not finite.

    References
    ----------
    Frankle, Dziugaite, Roy and Carbin, "Linear mode connectivity and the lottery ticket hypothesis", ICML 2020; Fort
    et al., NeurIPS 2020; chapter :doc:`/chapters/kernel_learning`.

    Examples
    --------
    >>> one, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(one.weight, -1.0), nn.init.constant_(other.weight, 1.0)
    >>> error_barrier(one, other, lambda model: 1 - float(model.weight) ** 2, n_points=5).barrier
    1.0
    """
    start, end = _states(model_a, model_b)
    if not callable(metric):
        raise wrong_type("metric", "callable", metric)
    t = np.linspace(0, 1, check_int("n_points", n_points, 3))
    mixed = copy.deepcopy(model_a)
    values = np.empty(len(t))
    for index, position in enumerate(t):
        for name, value in _tensors(mixed).items():
            if value.is_floating_point() or value.is_complex():
                value.copy_(torch.lerp(start[name], end[name], float(position)))
            else:
                value.copy_(start[name])
        values[index] = _check_metric(metric(mixed))
    return ErrorBarrier(t, values, float(values.max() - (values[0] + values[-1]) / 2), float(t[values.argmax()]))


def kernel_velocity(kernels: ArrayLike, times: ArrayLike) -> np.ndarray:
    r"""Speed of a kernel's change of shape, :math:`S(K_t,K_{t+\delta})/\delta`.

    Parameters
    ----------
    kernels : array_like, shape (T, N1, N2)
        Kernels, T at least 2.
    times : array_like, shape (T,)
        Increasing times, in epochs for instance. The distance :math:`S` is quadratic in small changes, so the
        velocity of a smooth motion is proportional to :math:`\delta`: say which one was used.

    Returns
    -------
    ndarray, shape (T - 1,)
        One over the unit of ``times``.

    Raises
    ------
    TypeError
        If an argument is not real numbers.
    ValueError
        For other shapes, entries that are not finite, times that do not increase, or a kernel of zeros.

    References
    ----------
    Fort et al., NeurIPS 2020; chapter :doc:`/chapters/kernel_learning`.

    Examples
    --------
    >>> kernel_velocity([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 3.0]]], [0.0, 0.5, 1.0])
    array([2., 0.])
    """
    t = check_shape("times", times, (None,))
    if len(t) < 2 or not (np.diff(t) > 0).all():
        raise invalid("times", "at least two increasing numbers", np.array2string(t, threshold=6))
    values = check_shape("kernels", kernels, (len(t), None, None))
    for index, kernel in enumerate(values):
        if not kernel.any():
            raise invalid("kernels", "nonzero somewhere, each", f"only zeros at {index}")
    return np.array([kernel_distance(one, other) for one, other in pairwise(values)]) / np.diff(t)


@torch.no_grad()
def disagreement(model_a: nn.Module, model_b: nn.Module, inputs: Tensor) -> float:
    """Fraction of inputs that two classifiers put into different classes.

    Parameters
    ----------
    model_a, model_b : nn.Module
        Modules that return scores of shape (N, C); run in eval mode, and left as they were.
    inputs : Tensor, shape (N, ...)
        Inputs.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    TypeError
        For a model or inputs of the wrong type.
    ValueError
        For no inputs, or scores that are not (N, C).

    References
    ----------
    Fort et al., NeurIPS 2020, "function distance"; chapter :doc:`/chapters/kernel_learning`.

    Examples
    --------
    >>> model = nn.Linear(2, 3)
    >>> disagreement(model, model, torch.eye(2))
    0.0
    """
    check_samples("inputs", inputs)
    classes = []
    for name, model in (("model_a", model_a), ("model_b", model_b)):
        with _eval_mode(check_module(model, name)):
            scores = model(inputs)
        if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(inputs):
            got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise invalid(name, f"a module whose scores have shape ({len(inputs)}, C)", got)
        classes.append(scores.argmax(1))
    return float((classes[0] != classes[1]).double().mean())


@torch.no_grad()
def activation_distance(model_a: nn.Module, model_b: nn.Module, inputs: Tensor) -> float:
    """Fraction of pairs of a hidden ReLU unit and an input whose on/off state differs between two networks.

    Parameters
    ----------
    model_a, model_b : nn.Module
        Networks of one architecture whose hidden units are ``nn.ReLU`` modules; run in eval mode, and left as they
        were.
    inputs : Tensor, shape (N, ...)
        Inputs.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    TypeError
        For a model or inputs of the wrong type.
    ValueError
        For no inputs, networks without ``nn.ReLU`` modules, or with other numbers of units.

    References
    ----------
    Fort et al., NeurIPS 2020, "ReLU distance"; chapter :doc:`/chapters/kernel_learning`.

    Examples
    --------
    >>> one = nn.Sequential(nn.Linear(1, 2), nn.ReLU())
    >>> activation_distance(one, one, torch.ones(3, 1))
    0.0
    """
    check_samples("inputs", inputs)
    patterns = [_pattern(name, model, inputs) for name, model in (("model_a", model_a), ("model_b", model_b))]
    shapes = [[tuple(each.shape) for each in pattern] for pattern in patterns]
    if shapes[0] != shapes[1]:
        raise invalid("model_b", f"a network with the units of model_a {shapes[0]}", str(shapes[1]))
    different = sum(int((one != other).sum()) for one, other in zip(*patterns, strict=True))
    return different / sum(each.numel() for each in patterns[0])


def _flow_start(
    n: int, shape: tuple[int, ...], k_test: Any, f0_train: Any, f0_test: Any
) -> tuple[np.ndarray | float, np.ndarray | None, np.ndarray | float]:
    """Initial outputs on the training inputs, the kernel of the test inputs, and initial outputs there."""
    start: np.ndarray | float = 0.0 if f0_train is None else check_shape("f0_train", f0_train, shape)
    if k_test is None:
        if f0_test is not None:
            raise invalid("f0_test", "left out where there is no k_test", f0_test)
        return start, None, 0.0
    cross = check_shape("k_test", k_test, (None, n))
    if f0_test is None:
        if f0_train is not None:
            raise invalid("f0_test", "given along with f0_train and k_test", f0_test)
        return start, cross, 0.0
    return start, cross, check_shape("f0_test", f0_test, (len(cross), *shape[1:]))


def _check_time(time: Any) -> float:
    value = check_real("time", time)
    if value.ndim:
        raise invalid("time", "a single number", f"shape {value.shape}")
    if not value >= 0:
        raise invalid("time", ">= 0", float(value))
    return float(value)


def _spectral_filter(eigenvalues: np.ndarray, time: float, ridge: float) -> np.ndarray:
    """phi_t(mu), with its limits where mu + r or t are extreme."""
    rates = eigenvalues + ridge
    if math.isinf(time):
        null = rates <= (len(rates) * np.finfo(float).eps * rates[-1] if ridge == 0 else 0.0)
        return np.where(null, 0.0, 1 / np.where(null, 1.0, rates))
    with np.errstate(over="ignore"):
        decay = -np.expm1(-rates * time)
    slow = rates * time < 1e-12
    return np.where(slow, time, decay / np.where(slow, 1.0, rates))


def _ntk_recursion(
    first: np.ndarray, second: np.ndarray, depth: int, weight: float, bias: float, same: bool
) -> np.ndarray:
    d = first.shape[1]
    covariance = weight * (first @ second.T) / d + bias
    left = weight * np.square(first).sum(1) / d + bias
    right = weight * np.square(second).sum(1) / d + bias
    tangent = covariance.copy()
    if same:
        np.fill_diagonal(tangent, left)
    for _ in range(depth):
        norm = np.sqrt(left)[:, None] * np.sqrt(right)
        cosine = (covariance / np.where(norm > 0, norm, 1.0)).clip(-1, 1)
        if same:
            np.fill_diagonal(cosine, 1.0)
        angle = np.arccos(cosine)
        opening = np.pi - angle
        covariance = weight / (2 * np.pi) * norm * (np.sin(angle) + opening * cosine) + bias
        left, right = weight / 2 * left + bias, weight / 2 * right + bias
        tangent = covariance + weight / (2 * np.pi) * opening * tangent
    return tangent


def _check_points(name: str, x: Any) -> np.ndarray:
    values = check_shape(name, x, (None, None))
    if not values.size:
        raise invalid(name, "of at least one row and column", f"shape {values.shape}")
    return values


def _freeze(model: nn.Module) -> None:
    """Frozen parameters become buffers."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not parameter.requires_grad:
                del module._parameters[name]
                module.register_buffer(name, parameter.detach())


def _reverse_twice(
    function: Callable[[dict[str, Tensor]], Tensor], origin: dict[str, Tensor], step: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Value and directional derivative, from the derivative of the pullback, which is linear in the cotangent."""
    with torch.enable_grad():
        at = {name: value.detach().requires_grad_() for name, value in origin.items()}
        value = function(at)
        cotangent = torch.zeros_like(value, requires_grad=True)
        pulled = torch.autograd.grad(value, list(at.values()), cotangent, create_graph=True, allow_unused=True)
        used = [(pull, step[name]) for name, pull in zip(at, pulled, strict=True) if pull is not None]
        pulls, steps = zip(*used, strict=True)
        (change,) = torch.autograd.grad(pulls, cotangent, steps, create_graph=True)
    return value.detach(), change


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, persistent or not; shared tensors once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _states(model_a: Any, model_b: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of the tensors of two models, the second's on the device and in the dtype of the first's."""
    start = {name: value.detach().clone() for name, value in _tensors(check_module(model_a, "model_a")).items()}
    end = _tensors(check_module(model_b, "model_b"))
    if start.keys() != end.keys():
        odd = sorted(start.keys() ^ end.keys())[0]
        raise invalid("model_b", "of the architecture of model_a", f"{odd!r} in one of them only")
    for name, value in start.items():
        if value.shape != end[name].shape:
            raise invalid(
                "model_b", f"of the architecture of model_a, {name!r} {tuple(value.shape)}", str(tuple(end[name].shape))
            )
    return start, {name: end[name].detach().to(value) for name, value in start.items()}


def _check_metric(value: Any) -> float:
    if isinstance(value, (bool, str)) or value is None:
        raise wrong_type("metric", "a function that returns a number", value)
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise wrong_type("metric", "a function that returns a number", value) from None
    if not math.isfinite(number):
        raise invalid("metric", "finite on the whole line", str(number))
    return number


def _pattern(name: str, model: Any, inputs: Tensor) -> list[Tensor]:
    """Which units are on, for each use of a ReLU."""
    found: list[Tensor] = []
    units = [module for module in check_module(model, name).modules() if isinstance(module, nn.ReLU)]
    if not units:
        raise invalid(name, "a network with nn.ReLU modules", type(model).__name__)
    handles = [unit.register_forward_hook(lambda *call: found.append(call[2] > 0)) for unit in units]
    try:
        with _eval_mode(model):
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
