"""Removing symmetries with a random anchor: decay towards a small random point instead of towards zero.

A symmetry makes low-capacity states (dead, identical or rank-deficient units) that training cannot leave. Weight decay
towards a fixed random point puts a constant force on all of them at once, without knowing the symmetries of the model,
with any optimizer and no change of architecture. :func:`low_capacity_report` says whether a network is in such a state.
Derived in the chapter of the same name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import gammaln
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from symlearn._checks import (
    check_broadcast,
    check_finite,
    check_int,
    check_module,
    check_nonnegative,
    check_positive,
    check_scalar,
    check_shape,
    invalid,
    wrong_dtype,
    wrong_type,
)
from symlearn.symmetry import MirrorSymmetry

__all__ = [
    "CapacityReport",
    "LayerCapacity",
    "Syre",
    "biased_fixed_point",
    "escape_force",
    "low_capacity_report",
    "min_escape_force",
    "reflection_gap",
]


class Syre:
    r"""Decay of a model's parameters towards a random anchor.

    Adds :math:`\frac\lambda2\sum_iD_i(\theta_i-\theta_{0,i})^2` to the loss, with an anchor
    :math:`\theta_0\sim\mathcal N(0,\text{std}^2)` that is drawn once and never trained. Almost surely no reflection
    symmetry of the loss survives; with ``spread > 0`` no linear orthogonal symmetry does. Use :meth:`attach` with any
    optimizer whose own ``weight_decay`` is 0, or add :meth:`penalty` to the loss.

    Parameters
    ----------
    params : nn.Module, dict of Tensor, or iterable of Tensor
        The parameters; an iterable is named ``"0"``, ``"1"``, and so on. A shared parameter counts once. Not changed by
        the constructor.
    weight_decay : float
        :math:`\lambda\ge0` in the convention of ``torch.optim``: the gradient gets ``weight_decay * (p - anchor)``.
    std : float, optional
        Standard deviation of the anchor, > 0. By default :math:`0.01/\sqrt{\text{fan-in}}` of each tensor: a hundredth
        of the usual initialisation. Fan-in is the size of ``p[0]``, or of ``p`` for vectors.
    spread : float, default 0
        In [0, 1). Decay rates differ between coordinates, :math:`D_i` uniform in 1 plus or minus ``spread``, which also
        removes continuous symmetries. Keep it well below one.
    seed : int, default 0
        The anchor depends on the seed, on the names and on the shapes; not on dtype, device, order, or on other
        parameters, so that every rank of a distributed run draws its own part without communication.

    Attributes
    ----------
    anchors : dict of str to Tensor
        :math:`\theta_0`, in the dtype and on the device of the parameters.
    scales : dict of str to Tensor
        :math:`D`; ones without ``spread``.

    Raises
    ------
    ValueError
        If ``weight_decay`` is negative, ``std`` not positive, ``spread`` outside [0, 1), or there are no parameters.
    TypeError
        If a parameter is not a floating-point tensor, or ``seed`` not an integer.

    Notes
    -----
    The parameters themselves are held, not copied: after ``load_state_dict`` nothing needs to be done. After
    ``model.to(...)`` build it anew, with the same seed the anchor is the same; :meth:`state_dict` stores it with a
    checkpoint. In half precision the difference to a small anchor is lost in rounding: keep master weights in float32.

    References
    ----------
    Ziyin, Xu and Chuang, *Remove Symmetries to Control Model Expressivity and Improve Optimization*, ICLR 2025
    (arXiv:2408.15495); chapter :doc:`/chapters/syre`.

    Examples
    --------
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    >>> handle = Syre(model, weight_decay=0.01).attach(optimizer)  # handle.remove() ends it
    """

    anchors: dict[str, Tensor]
    scales: dict[str, Tensor]

    def __init__(
        self,
        params: nn.Module | Mapping[str, Tensor] | Iterable[Tensor],
        *,
        weight_decay: float,
        std: float | None = None,
        spread: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.weight_decay = check_scalar("weight_decay", check_nonnegative("weight_decay", weight_decay))
        if std is not None:
            std = check_scalar("std", check_positive("std", std))
        spread = check_scalar("spread", check_nonnegative("spread", spread))
        if spread >= 1:
            raise invalid("spread", "in [0, 1)", spread)
        seed = check_int("seed", seed, 0)
        self._params = _named(params)
        self._uneven = spread > 0
        self.anchors, self.scales = {}, {}
        for name, param in self._params.items():
            generator = _generator(seed, name)
            width = 0.01 / math.sqrt(_fan_in(param)) if std is None else std
            normal = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            uniform = torch.rand(param.shape, generator=generator, dtype=torch.float64)
            self.anchors[name] = (width * normal).to(param)
            self.scales[name] = (1 + spread * (2 * uniform - 1)).to(param)

    def penalty(self) -> Tensor:
        r"""The penalty :math:`\frac\lambda2\sum_iD_i(\theta_i-\theta_{0,i})^2`, a differentiable scalar."""
        terms = [
            (self.scales[name] * (param - self.anchors[name]).square()).sum() for name, param in self._params.items()
        ]
        return self.weight_decay / 2 * torch.stack(terms).sum()

    @torch.no_grad()
    def apply_decay_(self, lr: float) -> None:
        """One step of decoupled decay in place, ``p -= lr * weight_decay * D * (p - anchor)``.

        Parameters
        ----------
        lr : float
            Learning rate, not negative.
        """
        self._decay(list(self._params), check_scalar("lr", check_nonnegative("lr", lr)))

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Apply the decay after every step of an optimizer, with the learning rate of each parameter's group.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            Holds some or all of the parameters (the others are left alone), with a ``weight_decay`` of 0.

        Returns
        -------
        RemovableHandle
            ``handle.remove()`` ends it.

        Raises
        ------
        ValueError
            If the optimizer has none of the parameters, or decays them itself: two decays would pull both ways.
        TypeError
            If ``optimizer`` is not a ``torch.optim.Optimizer``.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise wrong_type("optimizer", "a torch.optim.Optimizer", optimizer)
        names = {id(param): name for name, param in self._params.items()}
        held = [group for group in optimizer.param_groups if any(id(p) in names for p in group["params"])]
        if not held:
            raise invalid("optimizer", "an optimizer of the anchored parameters", "none of them")
        for group in held:
            if group.get("weight_decay"):
                raise invalid("optimizer", "without weight_decay of its own", f"weight_decay {group['weight_decay']}")

        def decay(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                mine = [names[id(p)] for p in group["params"] if id(p) in names]
                if mine:
                    self._decay(mine, group["lr"])

        return optimizer.register_step_post_hook(decay)

    def state_dict(self) -> dict[str, Any]:
        """Anchors, scales and weight decay, for a checkpoint."""
        return {"weight_decay": self.weight_decay, "anchors": dict(self.anchors), "scales": dict(self.scales)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take anchors, scales and weight decay from a checkpoint.

        Parameters
        ----------
        state : mapping
            From :meth:`state_dict` of an object with parameters of the same names and shapes.
        """
        if not isinstance(state, Mapping) or not {"weight_decay", "anchors", "scales"} <= set(state):
            raise invalid("state", "a state_dict of a Syre", type(state).__name__)
        decay = check_scalar("state['weight_decay']", check_nonnegative("state['weight_decay']", state["weight_decay"]))
        new: dict[str, dict[str, Tensor]] = {}
        for part in ("anchors", "scales"):
            if set(state[part]) != set(self._params):
                raise invalid(
                    f"state[{part!r}]", f"of the parameters {', '.join(self._params)}", ", ".join(state[part])
                )
            for name, param in self._params.items():
                if state[part][name].shape != param.shape:
                    shape = tuple(state[part][name].shape)
                    raise invalid(f"state[{part!r}][{name!r}]", f"of shape {tuple(param.shape)}", f"shape {shape}")
            new[part] = {name: state[part][name].detach().clone().to(p) for name, p in self._params.items()}
        self.weight_decay, self.anchors, self.scales = decay, new["anchors"], new["scales"]
        self._uneven = any(bool((scale != 1).any()) for scale in self.scales.values())

    @torch.no_grad()
    def _decay(self, names: list[str], lr: Any) -> None:
        params = [self._params[name] for name in names]
        pulls = torch._foreach_sub([self.anchors[name] for name in names], params)
        if self._uneven:
            torch._foreach_mul_(pulls, [self.scales[name] for name in names])
        if isinstance(lr, Tensor):
            lr = lr.item()
        torch._foreach_add_(params, pulls, alpha=lr * self.weight_decay)


def escape_force(symmetry: MirrorSymmetry | ArrayLike, anchor: ArrayLike | Tensor, weight_decay: float) -> float:
    r"""Force off a mirror that an anchor exerts, the same at every point of it: :math:`\lambda\|O^\top\theta_0\|`.

    Parameters
    ----------
    symmetry : MirrorSymmetry or array_like, shape (n, k)
        The mirror, or its orthonormal normal directions.
    anchor : array_like or Tensor, shape (n,)
        The anchor of all parameters.
    weight_decay : float
        Not negative. Without ``spread``.

    Returns
    -------
    float
        In units of the gradient. For a random anchor it is ``weight_decay * std`` times a chi variable with k degrees
        of freedom.

    Raises
    ------
    ValueError
        If a shape does not fit, something is not finite, or ``weight_decay`` is negative.

    References
    ----------
    Step 1 of the chapter :doc:`/chapters/syre`.

    Examples
    --------
    >>> escape_force([[0.0], [1.0]], [3.0, 0.5], weight_decay=0.1)
    0.05
    """
    mirror = _mirror(symmetry)
    decay = check_scalar("weight_decay", check_nonnegative("weight_decay", weight_decay))
    return decay * float(mirror.distance(check_shape("anchor", anchor, (mirror.n,))))


def reflection_gap(
    symmetry: MirrorSymmetry | ArrayLike,
    theta: ArrayLike | Tensor,
    anchor: ArrayLike | Tensor,
    weight_decay: float,
    scale: ArrayLike | Tensor = 1.0,
) -> float:
    r"""How much an anchor breaks a mirror symmetry: regularised loss at the reflected point minus that at the point.

    Exact for every :math:`\theta`, whatever the symmetric loss: :math:`2\lambda\,(O^\top\theta)\cdot(O^\top\theta_0)`
    for equal decay rates.

    Parameters
    ----------
    symmetry : MirrorSymmetry or array_like, shape (n, k)
    theta, anchor : array_like or Tensor, shape (n,)
    weight_decay : float
        Not negative.
    scale : float or array_like, shape (n,), default 1
        Decay rates :math:`D` relative to ``weight_decay``, not negative.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If a shape does not fit, something is not finite, or ``weight_decay`` or ``scale`` is negative.

    References
    ----------
    Step 2 of the chapter :doc:`/chapters/syre`.

    Examples
    --------
    >>> reflection_gap([[0.0], [1.0]], [3.0, 2.0], [1.0, 0.5], weight_decay=0.1)
    0.2
    """
    mirror = _mirror(symmetry)
    point, centre = (check_shape(n, v, (mirror.n,)) for n, v in (("theta", theta), ("anchor", anchor)))
    decay = check_scalar("weight_decay", check_nonnegative("weight_decay", weight_decay))
    rates = check_nonnegative("scale", scale)
    if rates.shape not in ((), (mirror.n,)):
        raise invalid("scale", f"a number or of shape ({mirror.n},)", rates)
    image = mirror.reflect(point)
    # (image - centre)^2 - (point - centre)^2, factored so that near points do not cancel
    return float(decay / 2 * (rates * (image - point) * (image + point - 2 * centre)).sum())


def biased_fixed_point(curvature: ArrayLike, anchor: ArrayLike, weight_decay: ArrayLike) -> np.ndarray | float:
    r"""Where a coordinate that would collapse to zero ends instead, :math:`\lambda\theta_0/(h+\lambda)`.

    Parameters
    ----------
    curvature : array_like
        Curvature :math:`h` of the data loss at zero, of either sign.
    anchor : array_like
        Anchor of the coordinate.
    weight_decay : array_like
        Not negative, with ``curvature + weight_decay > 0``. All three broadcast.

    Returns
    -------
    ndarray or float

    Raises
    ------
    ValueError
        If ``curvature + weight_decay`` is not positive (then zero is a saddle and the coordinate leaves), or
        something is not finite or does not broadcast.

    References
    ----------
    Step 4 of the chapter :doc:`/chapters/syre`.

    Examples
    --------
    >>> round(biased_fixed_point(1.0, 0.1, 0.5), 6)
    0.033333
    """
    h, x, decay = (
        check_finite("curvature", curvature),
        check_finite("anchor", anchor),
        check_nonnegative("weight_decay", weight_decay),
    )
    h, x, decay = check_broadcast(curvature=h, anchor=x, weight_decay=decay)
    stiffness = h + decay
    if not (stiffness > 0).all():
        raise invalid("curvature + weight_decay", "> 0", float(stiffness.min()))
    return _plain(decay * x / stiffness)


def min_escape_force(
    n_mirrors: ArrayLike, rank: ArrayLike, std: ArrayLike, weight_decay: ArrayLike, delta: ArrayLike = 0.05
) -> np.ndarray | float:
    r"""Force that all of many mirrors exceed with probability at least ``1 - delta``, for a random anchor.

    :math:`\lambda\sigma_0\sqrt2\,[\frac\delta N\Gamma(\frac k2+1)]^{1/k}`. The mirrors may be anything and depend on
    each other.

    Parameters
    ----------
    n_mirrors : array_like of int
        Number N of mirrors, at least 1.
    rank : array_like of int
        Number k of normal directions of each mirror, at least 1: for the exchange of two units the parameters of one.
    std : array_like
        Standard deviation of the anchor, > 0.
    weight_decay : array_like
        Not negative.
    delta : array_like, default 0.05
        In (0, 1). All five broadcast.

    Returns
    -------
    ndarray or float

    Raises
    ------
    ValueError
        If an argument is outside its range.

    References
    ----------
    Step 3 of the chapter :doc:`/chapters/syre`.

    Examples
    --------
    >>> round(min_escape_force(200, 10, 1.0, 1.0), 7)
    0.9959261
    """
    count, k = _check_counts("n_mirrors", n_mirrors), _check_counts("rank", rank)
    width, decay = check_positive("std", std), check_nonnegative("weight_decay", weight_decay)
    risk = check_positive("delta", delta)
    if not (risk < 1).all():
        raise invalid("delta", "in (0, 1)", float(risk.max()))
    count, k, width, decay, risk = check_broadcast(n_mirrors=count, rank=k, std=width, weight_decay=decay, delta=risk)
    logs = (np.log(risk) - np.log(count) + gammaln(k / 2 + 1)) / k
    return _plain(decay * width * math.sqrt(2) * np.exp(logs))


@dataclass(frozen=True)
class LayerCapacity:
    """What one layer uses of its capacity.

    Attributes
    ----------
    name : str
        As in ``named_modules()``.
    units : int
        Rows of the weight: units, or channels of a convolution.
    dead : int
        Units whose incoming weights and bias are negligible.
    duplicates : int
        Live units that repeat another one: live units minus distinct ones.
    rank, max_rank : int
        Numerical rank of the weight as a matrix (out, in), and the largest it can be.
    effective_rank : float
        Exponential of the entropy of the normalised singular values; 0 for a zero weight.
    """

    name: str
    units: int
    dead: int
    duplicates: int
    rank: int
    max_rank: int
    effective_rank: float


@dataclass(frozen=True)
class CapacityReport:
    """Capacity of every linear and convolutional layer; printed as a table.

    Attributes
    ----------
    layers : tuple of LayerCapacity
        In the order of ``named_modules()``.
    """

    layers: tuple[LayerCapacity, ...]

    def __str__(self) -> str:
        width = max([5, *(len(layer.name) for layer in self.layers)])
        head = f"{'layer':<{width}}  units  dead  duplicates  rank  of  effective"
        rows = [
            f"{layer.name:<{width}}{layer.units:7d}{layer.dead:6d}{layer.duplicates:12d}{layer.rank:6d}"
            f"{layer.max_rank:4d}{layer.effective_rank:11.1f}"
            for layer in self.layers
        ]
        return "\n".join([head, *rows])


@torch.no_grad()
def low_capacity_report(module: nn.Module, *, tol: float = 1e-3) -> CapacityReport:
    """Dead units, duplicate units and rank of every ``Linear`` and ``Conv`` layer of a module.

    Parameters
    ----------
    module : nn.Module
        Not changed. A unit is a row of the weight with its bias appended.
    tol : float, default 1e-3
        In (0, 1). A unit is dead if its norm is at most ``tol`` times the largest in its layer; two are the same if
        they differ by at most ``tol`` times the larger of the two; a singular value counts above ``tol`` times the
        largest.

    Returns
    -------
    CapacityReport

    Raises
    ------
    ValueError
        If ``tol`` is not in (0, 1), the module has no such layer, or a weight is not finite.
    TypeError
        If ``module`` is not an ``nn.Module``.

    Notes
    -----
    Outgoing weights are not looked at: two units with equal incoming weights compute the same number.

    Examples
    --------
    >>> layer = torch.nn.Linear(3, 4, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 1]]))
    >>> print(low_capacity_report(layer))
    layer  units  dead  duplicates  rank  of  effective
               4     1           1     2   3        2.0
    """
    check_module(module, "module")
    tol = check_scalar("tol", check_positive("tol", tol))
    if tol >= 1:
        raise invalid("tol", "in (0, 1)", tol)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = [(name, part) for name, part in module.named_modules() if isinstance(part, kinds)]
    if not layers:
        raise invalid("module", "a module with a Linear or Conv layer", f"a {type(module).__name__} without one")
    return CapacityReport(tuple(_capacity(name, part, tol) for name, part in layers))


def _named(params: nn.Module | Mapping[str, Tensor] | Iterable[Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor]
    if isinstance(params, nn.Module):
        named = dict(params.named_parameters())
    elif isinstance(params, Mapping):
        named = dict(params)
    elif isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise wrong_type("params", "a module, a dict or an iterable of tensors", params)
    else:
        named = {str(index): param for index, param in enumerate(params)}
    if not named:
        raise invalid("params", "at least one parameter", "none")
    for name, param in named.items():
        if not isinstance(param, Tensor):
            raise wrong_type(f"params[{name!r}]", "a tensor", param)
        if not param.is_floating_point():
            raise wrong_dtype(f"params[{name!r}]", "a floating-point tensor", param)
    first = {id(param): name for name, param in reversed(named.items())}  # a shared parameter: its first name
    return {name: param for name, param in named.items() if first[id(param)] == name}


def _generator(seed: int, name: str) -> torch.Generator:
    """A generator of its own for every name: the same numbers whatever the other parameters are."""
    entropy = np.random.SeedSequence([seed, *name.encode()]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(entropy[0]) << 31 ^ int(entropy[1]))


def _fan_in(param: Tensor) -> int:
    return max(1, param[0].numel() if param.ndim > 1 and len(param) else param.numel())


def _mirror(symmetry: MirrorSymmetry | ArrayLike) -> MirrorSymmetry:
    if isinstance(symmetry, MirrorSymmetry):
        return symmetry
    directions = check_finite("symmetry", symmetry)
    if directions.ndim not in (1, 2) or not directions.size:
        raise invalid("symmetry", "a MirrorSymmetry or of shape (n, k)", directions)
    columns = directions if directions.ndim == 2 else directions[:, None]
    error = float(np.abs(columns.T @ columns - np.eye(columns.shape[1])).max())
    if not error <= 1e-8:
        raise invalid("symmetry", "orthonormal in its columns", f"an error of {error:.3g}")
    return MirrorSymmetry(columns)


def _check_counts(name: str, value: ArrayLike) -> np.ndarray:
    counts = check_finite(name, value)
    for count in counts[counts != np.round(counts)].flat:
        raise wrong_type(name, "integers", count)
    if (counts < 1).any():
        raise invalid(name, ">= 1", float(counts.min()))
    return counts


def _plain(array: np.ndarray) -> np.ndarray | float:
    return array if array.ndim else float(array)


def _capacity(name: str, layer: Any, tol: float) -> LayerCapacity:
    weight = layer.weight.detach().to("cpu", torch.float64).flatten(1)
    rows = weight if layer.bias is None else torch.cat([weight, layer.bias.detach().to(weight)[:, None]], 1)
    if not torch.isfinite(rows).all():
        raise invalid("module", "of finite weights", f"NaN or infinity in layer {name!r}")
    norms = rows.norm(dim=1)
    live = norms > tol * norms.max()
    singular = torch.linalg.svdvals(weight)
    largest = float(singular[0]) if len(singular) else 0.0
    share = singular[singular > 0] / singular.sum() if largest else singular[:0]
    return LayerCapacity(
        name=name,
        units=len(rows),
        dead=int((~live).sum()),
        duplicates=int(live.sum()) - _n_clusters(rows[live], norms[live], tol),
        rank=int((singular > tol * largest).sum()),
        max_rank=min(weight.shape),
        effective_rank=float(torch.exp(-(share * share.log()).sum())) if largest else 0.0,
    )


def _n_clusters(rows: Tensor, norms: Tensor, tol: float) -> int:
    """Connected components of the units that are the same up to tol, by spreading labels row by row."""
    label = torch.arange(len(rows))
    for index in range(len(rows)):
        distance = (rows[index:] - rows[index]).norm(dim=1)
        same = torch.nonzero(distance <= tol * torch.maximum(norms[index:], norms[index])).flatten() + index
        linked = torch.isin(label, label[same])
        label[linked] = label[index]
    return int(label.unique().numel())
