r"""A two-layer linear network of any width solved exactly, and how far training moves the tangent kernel of any model.

On data along one direction the network learns by one hyperbolic rotation of its two layers. Whether it learns features
follows from four numbers before any training, and so do the widths, learning rates and scales at which it does (chapter
:doc:`/chapters/feature_learning`). Source: Xu and Ziyin, "Three mechanisms of feature learning in a linear network",
ICLR 2025.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from symlearn._checks import (
    check_finite,
    check_int,
    check_module,
    check_nonnegative,
    check_positive,
    check_real,
    check_rng,
    check_samples,
    check_scalar,
    invalid,
    wrong_type,
)
from symlearn._hyperbolic_flow import Modes, angle_share, least_rounding, mix
from symlearn.tangent_kernel import empirical_ntk, kernel_distance

__all__ = [
    "PARAMETRIZATIONS",
    "Mechanism",
    "NtkChange",
    "ScalingPhase",
    "SolvableModel",
    "SolvableTrajectory",
    "mechanism",
    "ntk_change",
    "scaling_phase",
]

# Numbers beyond these would leave the range of float64 in products.
_LARGEST, _SMALLEST = 1e30, 1e-30
_LARGEST_POWER, _LARGEST_EXPONENT = 29, 100.0
_SLACK = 1e-9
_EXPONENTS = ("output", "lr_in", "lr_out", "var_in", "var_out")

PARAMETRIZATIONS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        name: MappingProxyType(dict(zip(_EXPONENTS, exponents, strict=True)))
        for name, exponents in {
            "ntk": (-0.5, 0.0, 0.0, 0.0, 0.0),
            "standard": (0.0, 0.0, 0.0, 0.0, -1.0),
            "standard, small steps": (0.0, -1.0, -1.0, 0.0, -1.0),
            "mean field": (-1.0, 1.0, 1.0, 0.0, 0.0),
            "mup": (0.0, 1.0, -1.0, 0.0, -2.0),
            "xavier": (0.0, 0.0, 0.0, -1.0, -1.0),
            "tiny": (0.0, 0.0, 0.0, -2.0, -2.0),
            "tiny readout": (0.0, 0.0, 0.0, 0.0, -4.0),
        }.items()
    }
)
"""Exponents of the width in eight ways to scale a network with it: arguments of `scaling_phase`."""


@dataclass(frozen=True, eq=False)
class SolvableTrajectory:
    r"""A solvable model at :math:`T` times; leading axes are the batch of models.

    Attributes
    ----------
    t : ndarray, shape (T,)
        Times, in steps.
    w, u : ndarray, shape (..., T, d)
        Input weights along the data, and readout.
    output : ndarray, shape (..., T)
        :math:`f=\gamma\,u\cdot w`, the output at an input of unit amplitude.
    kernel : ndarray, shape (..., T)
        :math:`k=\gamma^2(\eta_u\|w\|^2+\eta_w\|u\|^2)`, the tangent kernel weighted by learning rates, per step.
    alignment : ndarray, shape (..., T)
        :math:`\cos\zeta` of the angle between :math:`u` and :math:`w`; 0 where a layer vanishes.
    norm_product : ndarray, shape (..., T)
        :math:`N=\gamma\|u\|\|w\|`, so that :math:`f=N\cos\zeta`.
    loss : ndarray, shape (..., T)
        Excess loss :math:`\frac12\mathbb E[a^2](f-f_*)^2`, relatively accurate however small.
    """

    t: np.ndarray
    w: np.ndarray
    u: np.ndarray
    output: np.ndarray
    kernel: np.ndarray
    alignment: np.ndarray
    norm_product: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True, eq=False, init=False)
class SolvableModel:
    r"""Gradient flow of :math:`f(x)=\gamma\sum_iu_i(Wx)_i` on inputs :math:`x=a\hat n` along one direction.

    Only :math:`w_i=(W\hat n)_i` matters. The loss is :math:`\frac12\mathbb E[(f(x)-y)^2]`, **with** the factor 1/2, and
    the layers have their own learning rates: :math:`\dot u=\eta_u\gamma rw`, :math:`\dot w=\eta_w\gamma ru` with
    :math:`r=\mathbb E[ay]-\mathbb E[a^2]f`. Time is counted in steps of gradient descent with these rates.

    Parameters
    ----------
    w0, u0 : array_like, shape (..., d)
        Weights at time 0, of one shape; leading axes are a batch of models.
    lr_in, lr_out : array_like
        Learning rates :math:`\eta_w` of ``w`` and :math:`\eta_u` of ``u``, > 0; they broadcast to the batch, as do
        ``scale``, ``x2`` and ``xy``.
    scale : array_like
        Output scale :math:`\gamma`, > 0.
    x2 : array_like
        Second moment of the amplitudes :math:`\mathbb E[a^2]`, > 0.
    xy : array_like
        :math:`\mathbb E[ay]`, of either sign; the target is ``xy / x2``.

    Raises
    ------
    ValueError, TypeError
        For weights of different shapes or of no width, anything not finite or beyond 1e30, rates, scale or ``x2`` not
        positive or below 1e-30, numbers that do not broadcast to the batch, or anything but real numbers.

    Notes
    -----
    With :math:`\hat u=u/\sqrt{\eta_u}`, :math:`\hat w=w/\sqrt{\eta_w}` the modes :math:`p=(\hat u+\hat w)/2` and
    :math:`q=(\hat u-\hat w)/2` are multiplied by :math:`e^{s}` and :math:`e^{-s}`, and :math:`z=e^{2s}` obeys a Riccati
    equation with constant coefficients. It is solved in sums of positive terms on a logarithmic scale, so that tiny
    weights keep their digits. Outputs below 1e-308 are 0.

    Gradient descent follows while ``kernel * x2`` is well below 2, also at the end of training.

    References
    ----------
    Xu and Ziyin, ICLR 2025, arXiv:2401.07085; chapter :doc:`/chapters/feature_learning`.

    Examples
    --------
    >>> model = SolvableModel([1.0, 0.5], [0.2, -0.3])
    >>> model.trajectory([0.0, 0.5, 1.0, 2.0]).output.round(8)
    array([0.05      , 0.56180159, 0.83816582, 0.98416096])

    The kernel grows by three quarters, while the layers turn towards each other:

    >>> round(float(model.limit().kernel[0] / model.initial_kernel), 4)
    1.7593
    >>> mechanism(model).label
    'alignment'
    """

    w0: np.ndarray
    u0: np.ndarray
    lr_in: np.ndarray
    lr_out: np.ndarray
    scale: np.ndarray
    x2: np.ndarray
    xy: np.ndarray

    def __init__(
        self,
        w0: ArrayLike,
        u0: ArrayLike,
        *,
        lr_in: ArrayLike = 1.0,
        lr_out: ArrayLike = 1.0,
        scale: ArrayLike = 1.0,
        x2: ArrayLike = 1.0,
        xy: ArrayLike = 1.0,
    ) -> None:
        inner, outer = (_check_size(name, check_finite(name, value)) for name, value in (("w0", w0), ("u0", u0)))
        if not inner.ndim or not inner.shape[-1]:
            raise invalid("w0", "of shape (..., d) with d >= 1", f"shape {inner.shape}")
        if outer.shape != inner.shape:
            raise invalid("u0", f"of the shape of w0 {inner.shape}", f"shape {outer.shape}")
        arrays = {"w0": inner, "u0": outer, "xy": _check_size("xy", check_finite("xy", xy))}
        for name, value in (("lr_in", lr_in), ("lr_out", lr_out), ("scale", scale), ("x2", x2)):
            arrays[name] = _check_size(name, check_positive(name, value))
            if (arrays[name] < _SMALLEST).any():
                raise invalid(name, f"at least {_SMALLEST:g}", arrays[name].min())
        for name, array in arrays.items():
            own = np.array(array if name in ("w0", "u0") else _broadcast(name, array, inner.shape[:-1]))
            own.setflags(write=False)
            object.__setattr__(self, name, own)

    @classmethod
    def random(
        cls,
        width: int,
        *,
        output: float = 0.0,
        lr_in: float = 0.0,
        lr_out: float = 0.0,
        var_in: float = 0.0,
        var_out: float = 0.0,
        x2: float = 1.0,
        xy: float = 1.0,
        size: int | tuple[int, ...] = (),
        rng: int | np.random.Generator | None = None,
    ) -> SolvableModel:
        r"""Models with independent Gaussian weights, scaled by powers of the width as in `scaling_phase`.

        Parameters
        ----------
        width : int
            Width :math:`d`.
        output, lr_in, lr_out, var_in, var_out : float
            Exponents: the scale is :math:`d^c` with c the ``output``, and so on. See `PARAMETRIZATIONS`.
        x2, xy : float
            Moments of the data.
        size : int or tuple of int
            Batch shape: so many independent draws.
        rng : int, numpy.random.Generator or None
            Source of the weights.

        Returns
        -------
        SolvableModel
            A batch of models of shape ``size``.

        Raises
        ------
        ValueError, TypeError
            For numbers out of range or of the wrong type.

        Examples
        --------
        >>> models = SolvableModel.random(1000, **PARAMETRIZATIONS["mean field"], size=200, rng=0)
        >>> ratio = models.limit().kernel[:, 0] / models.initial_kernel
        >>> round(float(ratio.mean()), 2)  # the square root of 2 for a target of 1
        1.41
        """
        d = check_int("width", width, 1)
        lengths = size if isinstance(size, tuple) else (size,)
        shape = tuple(check_int("size", length, 0) for length in lengths)
        exponents = _check_exponents((output, lr_in, lr_out, var_in, var_out))
        for name, exponent in zip(_EXPONENTS, exponents, strict=True):
            if abs(exponent) * np.log10(d) > _LARGEST_POWER:
                condition = f"such that this power of the width is between 1e-{_LARGEST_POWER} and 1e{_LARGEST_POWER}"
                raise invalid(name, condition, exponent)
        scale, rate_in, rate_out, variance_in, variance_out = (float(d) ** exponent for exponent in exponents)
        source = check_rng(rng)
        w0 = np.sqrt(variance_in) * source.normal(size=(*shape, d))
        u0 = np.sqrt(variance_out) * source.normal(size=(*shape, d))
        return cls(w0, u0, lr_in=rate_in, lr_out=rate_out, scale=scale, x2=x2, xy=xy)

    @property
    def target(self) -> np.ndarray:
        """Where the output is driven to, ``xy / x2``, of the batch shape."""
        return (self.xy / self.x2)[()]

    @property
    def area(self) -> np.ndarray:
        r"""Conserved area :math:`n=\gamma\|u\|\|w\||\sin\zeta|` that the two layers span, of the batch shape."""
        return self._modes.area[()]

    @property
    def imbalance(self) -> np.ndarray:
        r"""Conserved :math:`b=\frac\gamma2(\sqrt{\eta_w/\eta_u}\|u\|^2-\sqrt{\eta_u/\eta_w}\|w\|^2)`.

        Of the batch shape; positive where the readout dominates.
        """
        return self._modes.imbalance[()]

    @property
    def initial_kernel(self) -> np.ndarray:
        r"""Tangent kernel at time 0, :math:`\gamma^2(\eta_u\|w_0\|^2+\eta_w\|u_0\|^2)`, of the batch shape."""
        modes = self._modes
        return (2 * modes.gain**2 * (modes.size_growing**2 + modes.size_falling**2))[()]

    def trajectory(self, t: ArrayLike) -> SolvableTrajectory:
        r"""The exact solution at any times.

        Parameters
        ----------
        t : array_like, shape (T,)
            Times in steps, >= 0 and in any order; ``inf`` is the limit. A number counts as one time.

        Returns
        -------
        SolvableTrajectory
            Weights, output, kernel, alignment, norms and loss.

        Raises
        ------
        ValueError, TypeError
            For negative times, NaN, more than one axis, or anything but real numbers.
        """
        times, modes = _check_times(t), self._modes
        half, residual = modes.rotation(times)  # (..., T), as all that follows
        grow, decay, turn = np.exp(half), np.exp(-2 * half), -np.expm1(-4 * half)
        # The product of the three may be finite where the square of grow is not.
        size = modes.size_growing[..., None] * grow * grow
        sign, gain = modes.direction[..., None], modes.gain[..., None]
        u = mix(self.u0, decay, modes.unit_growing, np.sqrt(self.lr_out)[..., None] * size * turn)
        w = mix(self.w0, decay, modes.unit_growing, sign * np.sqrt(self.lr_in)[..., None] * size * turn)
        raised, fallen = size**2, modes.size_falling[..., None] ** 2
        change, left = sign * gain * turn * (raised + fallen), modes.gap[..., None] * residual
        output = least_rounding(
            ((self.xy / self.x2)[..., None], left),
            (modes.output[..., None], change),
            (sign * gain * raised, -sign * gain * fallen * decay**2),
        )
        norm_product = np.hypot(output, modes.area[..., None])
        alignment = np.divide(output, norm_product, out=np.zeros_like(output), where=norm_product > 0)
        kernel = 2 * gain**2 * (raised + fallen * decay**2)
        loss = self.x2[..., None] / 2 * left**2
        return SolvableTrajectory(times, w, u, output, kernel, alignment, norm_product, loss)

    def limit(self) -> SolvableTrajectory:
        r"""The solution for infinite time, a trajectory whose one time is ``inf``.

        The output is the target, unless the flow ends in the saddle at the origin: for a positive target only from
        layers with exactly :math:`u/\sqrt{\eta_u}=-w/\sqrt{\eta_w}`, for a negative one only from equal ones.
        """
        return self.trajectory([np.inf])

    @cached_property
    def _modes(self) -> Modes:
        return Modes.of(self.w0, self.u0, self.lr_in, self.lr_out, self.scale, self.x2, self.xy)


@dataclass(frozen=True)
class Mechanism:
    """How the layers of a solvable model learn; numbers and a word, or arrays of the batch shape.

    Attributes
    ----------
    label : str
        ``"kernel"``, ``"alignment"``, ``"disalignment"`` or ``"rescaling"``.
    kernel_ratio : float
        Kernel at the end over kernel at the start; 1 if there is none, ``inf`` beyond the range of float64.
    alignment_before, alignment_after : float
        Cosine of the angle between the layers.
    norm_before, norm_after : float
        Product of the norms of the layers, times the output scale.
    angle_share : float
        Share of the change of the output, on a logarithmic scale, that the angle makes; the norms make the rest.
    """

    label: str | np.ndarray
    kernel_ratio: float | np.ndarray
    alignment_before: float | np.ndarray
    alignment_after: float | np.ndarray
    norm_before: float | np.ndarray
    norm_after: float | np.ndarray
    angle_share: float | np.ndarray


def mechanism(model: SolvableModel, *, kernel_tol: float = 0.1, angle_tol: float = 0.25) -> Mechanism:
    r"""Which of the mechanisms of feature learning a solvable model uses, or that its kernel stays.

    As :math:`f=N\cos\zeta`, the change of :math:`\log|f|` is the sum of an angle's and a norm's, of the same sign.

    Parameters
    ----------
    model : SolvableModel
        One model or a batch.
    kernel_tol : float
        Relative change of the kernel below which the label is ``"kernel"``, >= 0.
    angle_tol : float
        Share of the angle below which the label is ``"rescaling"``, from 0 to 1; else it is ``"alignment"`` where the
        output grows in modulus and ``"disalignment"`` where it shrinks.

    Returns
    -------
    Mechanism
        Where the output starts or ends at 0, the share of the angle is 1; of layers that stay parallel it is 0.

    Raises
    ------
    ValueError, TypeError
        For tolerances out of range, or arguments of another type.

    References
    ----------
    Xu and Ziyin, ICLR 2025; chapter :doc:`/chapters/feature_learning`, step 6.

    Examples
    --------
    One unit can only rescale:

    >>> how = mechanism(SolvableModel([0.1], [0.2], xy=2.0))
    >>> how.label, how.angle_share, round(how.kernel_ratio, 2)
    ('rescaling', 0.0, 80.0)
    """
    if not isinstance(model, SolvableModel):
        raise wrong_type("model", "a SolvableModel", model)
    least = float(check_nonnegative("kernel_tol", check_scalar("kernel_tol", kernel_tol)))
    little = float(check_nonnegative("angle_tol", check_scalar("angle_tol", angle_tol)))
    if little > 1:
        raise invalid("angle_tol", "at most 1", little)
    path = model.trajectory([0.0, np.inf])
    before, after = path.output[..., 0], path.output[..., 1]
    kernel, final = path.kernel[..., 0], path.kernel[..., 1]
    with np.errstate(over="ignore"):
        ratio = np.divide(final, kernel, out=np.where(final > 0, np.inf, 1.0), where=kernel > 0)
    share = angle_share(before, after, model._modes.area)
    turned = np.where(np.abs(after) > np.abs(before), "alignment", "disalignment")
    label = np.where(np.abs(ratio - 1) < least, "kernel", np.where(share < little, "rescaling", turned))
    angles, norms = path.alignment, path.norm_product
    values = (label, ratio, angles[..., 0], angles[..., 1], norms[..., 0], norms[..., 1], share)
    return Mechanism(*(value if value.ndim else value.item() for value in map(np.asarray, values)))


@dataclass(frozen=True)
class ScalingPhase:
    r"""What a rule for scaling networks with their width leads to.

    Attributes
    ----------
    phase : str
        ``"kernel"``: the kernel stops moving for large widths; ``"feature"``: it does not.
    stability : str
        ``"stable"``, ``"unstable"`` (gradient descent diverges) or ``"frozen"`` (nothing happens in a fixed number of
        steps).
    kernel_exponent : float
        Of the size :math:`M` of the initial network, half its kernel over :math:`\gamma\sqrt{\eta_u\eta_w}`; for a
        negative one the kernel grows by the opposite power of the width.
    rate_exponent : float
        Of the larger of the kernels at the start and the end, per step.
    alignment_exponent : float
        Of the area between the layers: in the end they are aligned for a negative one, partly for 0, else not.
    """

    phase: str
    stability: str
    kernel_exponent: float
    rate_exponent: float
    alignment_exponent: float


def scaling_phase(
    *, output: float = 0.0, lr_in: float = 0.0, lr_out: float = 0.0, var_in: float = 0.0, var_out: float = 0.0
) -> ScalingPhase:
    r"""Phase of a wide network whose scales are powers of its width :math:`d`.

    Parameters
    ----------
    output : float
        Exponent :math:`c` of the output scale, :math:`\gamma\sim d^c`.
    lr_in, lr_out : float
        Exponents :math:`a_w`, :math:`a_u` of the learning rates of the input weights and the readout.
    var_in, var_out : float
        Exponents :math:`v_w`, :math:`v_u` of the variances of the weights, which are independent. Data and target
        are of order 1.

    Returns
    -------
    ScalingPhase
        Phase, stability and exponents. Exponents within 1e-9 of 0 count as 0.

    Raises
    ------
    ValueError, TypeError
        For exponents that are not finite numbers, or beyond 100.

    Notes
    -----
    The output is a sum over units, not a mean, and the loss has the factor 1/2. `PARAMETRIZATIONS` has eight examples.

    References
    ----------
    Chapter :doc:`/chapters/feature_learning`, step 7.

    Examples
    --------
    >>> scaling_phase(**PARAMETRIZATIONS["mup"])
    ScalingPhase(phase='feature', stability='stable', kernel_exponent=0.0, rate_exponent=0.0, alignment_exponent=0.0)
    >>> scaling_phase(**PARAMETRIZATIONS["ntk"]).phase
    'kernel'
    """
    c, a_in, a_out, v_in, v_out = _check_exponents((output, lr_in, lr_out, var_in, var_out))
    kernel = c + 1 + max((a_in - a_out) / 2 + v_out, (a_out - a_in) / 2 + v_in)
    rate = c + (a_in + a_out) / 2 + max(0.0, kernel)
    alignment = c + 1 + (v_in + v_out) / 2
    stability = "unstable" if rate > _SLACK else "frozen" if rate < -_SLACK else "stable"
    return ScalingPhase("kernel" if kernel > _SLACK else "feature", stability, kernel, rate, alignment)


@dataclass(frozen=True)
class NtkChange:
    r"""How far training moved a tangent kernel :math:`K`, from :math:`K_0` to :math:`K_1`.

    Attributes
    ----------
    relative : float
        :math:`\|K_1-K_0\|_F/\|K_0\|_F`.
    distance : float
        :math:`1-\langle K_0,K_1\rangle/(\|K_0\|_F\|K_1\|_F)`, blind to a change of scale.
    trace_ratio : float
        :math:`\operatorname{Tr}K_1/\operatorname{Tr}K_0`.
    """

    relative: float
    distance: float
    trace_ratio: float


def ntk_change(
    model: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor], inputs: Tensor
) -> NtkChange:
    """Change of the tangent kernel of any module between two sets of parameters.

    Parameters
    ----------
    model : nn.Module
        Any module in eval mode, never changed: a copy is used. Its own parameters do not matter, its buffers do.
    before, after : dict of Tensor
        Parameters with the names and shapes of ``model.named_parameters()``; all count, also those that do not require
        gradients. They are taken in the dtype and on the device of the model.
    inputs : Tensor, shape (B, ...)
        Inputs on which the kernels are compared. The kernel has the side B C with C outputs per input.

    Returns
    -------
    NtkChange
        Relative change, distance and ratio of traces.

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        For names or shapes that differ, values that are not finite, no inputs or inputs that the model does not accept,
        kernels that are 0 everywhere, a model that cannot be copied, or one without a tangent kernel: see
        `symlearn.tangent_kernel.empirical_ntk`.

    References
    ----------
    Chapter :doc:`/chapters/feature_learning`.

    Examples
    --------
    Twice the weights of a product of two layers make a kernel of four times the size and the same shape:

    >>> model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False))
    >>> before = {name: value.detach().clone() for name, value in model.named_parameters()}
    >>> change = ntk_change(model, before, {name: 2 * value for name, value in before.items()}, torch.eye(3))
    >>> round(change.relative, 4), round(change.trace_ratio, 4), change.distance < 1e-10
    (3.0, 4.0, True)
    """
    check_module(model)
    points = {name: _check_point(name, point, model) for name, point in (("before", before), ("after", after))}
    _check_batch(inputs, model)
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise invalid("model", "a module that copy.deepcopy can copy", f"{type(error).__name__}: {error}") from error
    first, second = (_kernel_at(twin, name, point, inputs) for name, point in points.items())
    return NtkChange(
        relative=float((second - first).norm() / first.norm()),
        distance=kernel_distance(first, second),
        trace_ratio=float(torch.einsum("iicc->", second) / torch.einsum("iicc->", first)),
    )


def _kernel_at(twin: nn.Module, name: str, point: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """The kernel between all outputs, in double precision."""
    with torch.no_grad():
        for key, parameter in twin.named_parameters():
            parameter.copy_(point[key])
            parameter.requires_grad_()
    try:
        kernel = empirical_ntk(twin, inputs, outputs="full").double()
    except ValueError as error:  # there the inputs are called x1
        raise ValueError(str(error).replace("x1 must", "inputs must", 1)) from error
    if not bool(kernel.any()):
        raise invalid(name, "parameters at which the tangent kernel is not 0 everywhere", "only zeros")
    return kernel


def _check_point(argument: str, point: Any, model: nn.Module) -> dict[str, Tensor]:
    """Parameters that fit the model."""
    if not isinstance(point, Mapping):
        raise wrong_type(argument, "a dict of tensors", point)
    names = dict(model.named_parameters())
    if odd := sorted(map(repr, set(point) ^ set(names))):
        where = "missing" if odd[0] in map(repr, names) else "unknown"
        raise invalid(argument, "a dict with the names of model.named_parameters()", f"{where} {odd[0]}")
    for name, parameter in names.items():
        value = point[name]
        if not isinstance(value, Tensor):
            raise wrong_type(f"{argument}[{name!r}]", "a tensor", value)
        if isinstance(parameter, nn.parameter.UninitializedParameter) or not parameter.is_floating_point():
            raise invalid("model", "one with real, initialised parameters", f"others in {name!r}")
        if value.shape != parameter.shape:
            raise invalid(f"{argument}[{name!r}]", f"of shape {tuple(parameter.shape)}", f"shape {tuple(value.shape)}")
        if not (value.is_floating_point() and bool(value.isfinite().all())):
            raise invalid(f"{argument}[{name!r}]", "finite real numbers", f"nan, inf or others ({value.dtype})")
    return {name: point[name].detach() for name in names}


def _check_batch(inputs: Any, model: nn.Module) -> None:
    check_samples("inputs", inputs)
    device = next((each.device for each in model.parameters()), inputs.device)
    if inputs.device != device:
        raise invalid("inputs", f"on the device of the model ({device})", str(inputs.device))


def _check_size(name: str, values: np.ndarray) -> np.ndarray:
    if (np.abs(values) > _LARGEST).any():
        raise invalid(name, f"at most {_LARGEST:g} in modulus", values[np.abs(values) > _LARGEST][0])
    return values


def _broadcast(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        raise invalid(name, f"a number, or of a shape that broadcasts to the batch {shape}", values) from None


def _check_times(t: ArrayLike) -> np.ndarray:
    times = np.atleast_1d(check_real("t", t))
    if times.ndim > 1:
        raise invalid("t", "of shape (T,)", f"shape {times.shape}")
    if not (times >= 0).all():
        raise invalid("t", ">= 0 steps", times[~(times >= 0)][0])
    return times


def _check_exponents(values: tuple[float, ...]) -> tuple[float, ...]:
    exponents = [check_scalar(name, value) for name, value in zip(_EXPONENTS, values, strict=True)]
    for name, exponent in zip(_EXPONENTS, exponents, strict=True):
        if abs(exponent) > _LARGEST_EXPONENT:
            raise invalid(name, f"at most {_LARGEST_EXPONENT:g} in modulus", exponent)
    return tuple(exponents)
