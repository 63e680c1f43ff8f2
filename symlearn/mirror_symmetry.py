"""Mirror symmetries: the weight decay at which they collapse a network, and constraints built from them.

A reflection of the parameters that leaves the loss unchanged makes its mirror a trap: no gradient points off it, and
weight decay above a finite threshold, or gradient noise, pulls training onto it. Turned around, a mirror that is built
in imposes any linear constraint exactly. The reflections themselves are :class:`symlearn.symmetry.MirrorSymmetry`, the
exponents that decide about noise are in :mod:`symlearn.lyapunov`. Derived in the chapter of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from symlearn._checks import (
    check_choice,
    check_finite,
    check_int,
    check_module,
    check_nonnegative,
    check_positive,
    check_scalar,
    check_shape,
    check_symmetric,
    invalid,
    wrong_type,
)
from symlearn.symmetry import MirrorSymmetry

__all__ = ["ConstraintBySymmetry", "critical_weight_decay", "normal_hessian"]


def critical_weight_decay(hessian: ArrayLike, symmetry: MirrorSymmetry) -> float:
    r"""Weight decay above which a mirror attracts locally, :math:`\max\{0,-\lambda_{\min}(O^\top HO)\}`.

    Below it some direction off the mirror lowers the regularised loss. Above it no direction does, to second order; a
    lower minimum may still exist far away from the mirror.

    Parameters
    ----------
    hessian : array_like, shape (n, n)
        Hessian of the data loss, without weight decay, at a point of the mirror; symmetric.
    symmetry : MirrorSymmetry
        A mirror of the same n parameters.

    Returns
    -------
    float
        In the convention of ``torch.optim``: the penalty is ``weight_decay / 2`` times the squared norm.

    Raises
    ------
    ValueError
        If ``hessian`` is not square, finite, symmetric (to 1e-6 of its largest entry) and of the symmetry's size.
    TypeError
        If ``symmetry`` is not a :class:`~symlearn.symmetry.MirrorSymmetry`.

    See Also
    --------
    normal_hessian : The block that matters, for networks whose whole Hessian does not fit.

    References
    ----------
    L. Ziyin, *Symmetry Induces Structure and Constraint of Learning*, ICML 2024; step 3 of the chapter
    :doc:`/chapters/mirror_symmetry`.

    Examples
    --------
    >>> from symlearn.symmetry import MirrorSymmetry
    >>> critical_weight_decay([[2, 1], [1, -3]], MirrorSymmetry([0.5**0.5, -(0.5**0.5)]))
    1.5...
    """
    matrix = check_symmetric("hessian", hessian, rtol=1e-6)
    symmetry = _check_mirror(symmetry)
    if len(matrix) != symmetry.n:
        raise invalid("hessian", f"of shape ({symmetry.n}, {symmetry.n}) like the symmetry", f"shape {matrix.shape}")
    block = symmetry.coordinates(symmetry.coordinates(matrix).T)
    return max(0.0, -float(np.linalg.eigvalsh((block + block.T) / 2)[0]))


def normal_hessian(
    loss: Callable[..., Tensor],
    params: Tensor | Mapping[str, Tensor],
    symmetry: MirrorSymmetry,
    *,
    chunk_size: int = 16,
) -> np.ndarray:
    r"""Curvature of a loss normal to a mirror, :math:`O^\top\nabla^2L\,O`, by k Hessian-vector products.

    Parameters
    ----------
    loss : callable
        ``loss(params)``: a scalar, or one value per sample, of which the mean counts. Without weight decay.
    params : Tensor, shape (n,), or dict of Tensors of total size n
        The point, as ``loss`` takes it; a dict is flattened in its own order. Not modified.
    symmetry : MirrorSymmetry
        A mirror of the same n parameters, with k normal directions.
    chunk_size : int, default 16
        Directions at once: memory is about ``chunk_size`` times that of a gradient.

    Returns
    -------
    ndarray, shape (k, k)
        Symmetric, float64. The local threshold is ``max(0, -numpy.linalg.eigvalsh(block)[0])``.

    Raises
    ------
    ValueError
        If ``params`` has not n entries, or ``loss`` gives something non-finite or empty.
    TypeError
        If an argument has the wrong type.

    References
    ----------
    Step 2 of the chapter :doc:`/chapters/mirror_symmetry`.

    Examples
    --------
    >>> import torch
    >>> from symlearn.symmetry import MirrorSymmetry
    >>> product = lambda theta: (theta[0] * theta[1] - 1.5) ** 2
    >>> normal_hessian(product, torch.zeros(2), MirrorSymmetry.flip(2, [0, 1])).round(6) + 0
    array([[ 0., -3.],
           [-3.,  0.]])
    """
    if not callable(loss):
        raise wrong_type("loss", "a function of the parameters", loss)
    symmetry = _check_mirror(symmetry)
    chunk_size = check_int("chunk_size", chunk_size, 1)
    flat, unflatten = _flattened(params, symmetry.n)

    def gradient(theta: Tensor) -> Tensor:
        return torch.func.grad(lambda point: _mean_loss(loss(unflatten(point))))(theta)

    with torch.enable_grad():
        _mean_loss(loss(unflatten(flat)))
        rows = []
        for start in range(0, symmetry.k, chunk_size):
            count = min(chunk_size, symmetry.k - start)
            unit = torch.zeros(count, symmetry.k, dtype=flat.dtype, device=flat.device)
            unit[torch.arange(count), torch.arange(start, start + count)] = 1
            directions = symmetry.embed(unit)
            product = torch.func.vmap(lambda v: torch.func.jvp(gradient, (flat,), (v,))[1])(directions)
            rows.append(symmetry.coordinates(product.detach()))
    block = torch.cat(rows).to("cpu", torch.float64).numpy()
    if not np.isfinite(block).all():
        raise invalid("loss", "twice differentiable with finite values", "a non-finite curvature")
    return (block + block.T) / 2


class ConstraintBySymmetry(nn.Module):
    r"""Parametrization that imposes a linear constraint exactly, by a mirror and weight decay.

    The weight becomes :math:`\theta=(I-P)w+O(u\odot z)` with :math:`P=OO^\top`, where the columns of :math:`O` span
    the rows of the constraint. L2 on the gates ``u`` and ``z`` acts as an exact penalty on the constraint: from a
    finite ``weight_decay`` on, any gradient method ends with ``constraint @ weight.flatten() == value`` to rounding,
    and ``w`` is left unpenalised. Register it with :func:`torch.nn.utils.parametrize.register_parametrization` and add
    :meth:`penalty` to the loss.

    Parameters
    ----------
    constraint : array_like, shape (m, n) or (n,)
        Rows act on ``weight.flatten()``, which has n entries; k is their rank. Dependent rows are allowed.
    gates : {"element", "group"}
        One gate per constraint direction, L1 of the k violations; or one gate for all, their Euclidean norm.
    imbalance : float, default 0.1
        How far from balance the gates start, relative to the violation: :math:`u^2-z^2=2\kappa` with :math:`\kappa` =
        ``imbalance`` times the root mean square of the violations, or ``imbalance`` where all are zero. Must be
        positive: at balance the gates sit on a mirror of their own and could never change sign.
    value : array_like, shape (m,), optional
        Right-hand side of the constraint, zero by default.

    Attributes
    ----------
    O : Tensor, shape (n, k)
        Orthonormal basis of the row space, equal to ``MirrorSymmetry.from_constraint(constraint).O``; a buffer.
    offset : Tensor, shape (n,)
        The smallest weight that satisfies the constraint; a buffer.

    Raises
    ------
    ValueError
        If ``constraint`` is not finite or of rank 0, ``gates`` unknown, ``imbalance`` not positive, ``value`` not
        attainable; at registration, if the weight has not n entries.

    Notes
    -----
    The parametrized tensor has three originals: ``original0`` is w, ``original1`` is u of shape (k,) or (1,), and
    ``original2`` is z of shape (k,). Minimised over the gates, the penalty is ``weight_decay`` times the L1 norm
    ("element") or the Euclidean norm ("group") of the violation, so the constraint holds exactly from
    ``weight_decay`` = the largest multiplier, or the norm of the multipliers, on.

    References
    ----------
    L. Ziyin, *Symmetry Induces Structure and Constraint of Learning*, ICML 2024; step 6 of the chapter
    :doc:`/chapters/mirror_symmetry`.

    Examples
    --------
    >>> import torch
    >>> from torch.nn.utils import parametrize
    >>> layer = torch.nn.Linear(3, 1)
    >>> before = layer.weight.detach().clone()
    >>> zero_sum = ConstraintBySymmetry([[1, 1, 1]])
    >>> _ = parametrize.register_parametrization(layer, "weight", zero_sum)
    >>> bool(torch.allclose(layer.weight, before))
    True
    >>> loss = layer(torch.ones(3)).square().mean() + ConstraintBySymmetry.penalty(layer, weight_decay=0.1)
    """

    O: Tensor
    offset: Tensor

    def __init__(
        self,
        constraint: ArrayLike,
        *,
        gates: str = "element",
        imbalance: float = 0.1,
        value: ArrayLike | None = None,
    ) -> None:
        super().__init__()
        rows = _check_constraint(constraint)
        mirror = MirrorSymmetry.from_constraint(rows)
        self.gates = check_choice("gates", gates, ("element", "group"))
        self.imbalance = check_scalar("imbalance", check_positive("imbalance", imbalance))
        self.register_buffer("O", torch.from_numpy(np.array(mirror.O, dtype=np.float64)))
        self.register_buffer("offset", torch.from_numpy(_particular_solution(rows, value)))

    def forward(self, w: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """The weight, shaped like ``w``, from its free part and the gates."""
        basis, offset = self._buffers_like(w)
        flat = w.flatten()
        return (flat - basis @ (basis.T @ flat) + basis @ (u * z) + offset).view_as(w)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(w, u, z)`` that reproduce a weight, with the gates out of balance by ``imbalance``."""
        basis, offset = self._buffers_like(weight)
        violation = basis.T @ (weight.flatten() - offset)
        size = violation.abs() if self.gates == "element" else violation.norm().reshape(1)
        scale = size.square().mean().sqrt()
        kappa = self.imbalance * torch.where(scale > 0, scale, torch.ones_like(scale))
        u = (kappa + torch.hypot(kappa, size)).sqrt()
        return weight, u, violation / u

    @staticmethod
    def penalty(module: nn.Module, weight_decay: float) -> Tensor:
        r"""L2 penalty on all gates of a module, ``weight_decay / 2 * sum(|u|^2 + |z|^2)``.

        Parameters
        ----------
        module : nn.Module
            Contains at least one tensor that is parametrized by :class:`ConstraintBySymmetry`.
        weight_decay : float
            Not negative. It is the strength of the L1 (or Euclidean) norm that the penalty amounts to, without a
            factor 2.

        Returns
        -------
        Tensor
            A scalar to be added to the loss. The same as ``weight_decay`` of ``torch.optim.SGD`` on the gates alone.
        """
        weight_decay = check_scalar("weight_decay", check_nonnegative("weight_decay", weight_decay))
        check_module(module, "module")
        gates = {id(gate): gate for part in module.modules() if _is_constraint(part) for gate in _gates(part)}
        if not gates:
            raise invalid("module", "a module with a ConstraintBySymmetry", f"a {type(module).__name__} without one")
        return weight_decay / 2 * sum((gate.square().sum() for gate in gates.values()), start=torch.zeros(()))

    def extra_repr(self) -> str:
        """Rank, size and gates, for the printed module."""
        n, k = self.O.shape
        return f"{k} of {n} directions, gates={self.gates!r}, imbalance={self.imbalance}"

    def _buffers_like(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(weight, Tensor):
            raise wrong_type("weight", "a tensor", weight)
        if not weight.is_floating_point():
            raise invalid("weight", "a tensor of floating-point numbers", f"dtype {weight.dtype}")
        if weight.numel() != len(self.O):
            raise invalid(
                "constraint", f"of {weight.numel()} columns, one per entry of the weight", f"{len(self.O)} columns"
            )
        return self.O.to(weight), self.offset.to(weight)


def _check_mirror(symmetry: MirrorSymmetry) -> MirrorSymmetry:
    if not isinstance(symmetry, MirrorSymmetry):
        raise wrong_type("symmetry", "a MirrorSymmetry", symmetry)
    return symmetry


def _mean_loss(value: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise wrong_type("loss(params)", "a tensor", value)
    if value.numel() == 0 or not value.is_floating_point():
        raise invalid("loss(params)", "a non-empty tensor of real numbers", f"{tuple(value.shape)} of {value.dtype}")
    return value.mean()


def _flattened(params: Tensor | Mapping[str, Tensor], n: int) -> tuple[Tensor, Callable[[Tensor], object]]:
    """The parameters as one detached vector, and the way back to what the loss takes."""
    if isinstance(params, Tensor):
        if params.shape != (n,):
            raise invalid("params", f"of shape ({n},) like the symmetry", f"shape {tuple(params.shape)}")
        tensors = [params]
    elif isinstance(params, Mapping):
        tensors = list(params.values())
        for name, tensor in params.items():
            if not isinstance(tensor, Tensor):
                raise wrong_type(f"params[{name!r}]", "a tensor", tensor)
    else:
        raise wrong_type("params", "a tensor or a dict of tensors", params)
    total = sum(tensor.numel() for tensor in tensors)
    if total != n:
        raise invalid("params", f"of {n} entries in all, like the symmetry", f"{total}")
    if not all(tensor.is_floating_point() for tensor in tensors):
        raise invalid("params", "tensors of floating-point numbers", f"dtypes {[str(t.dtype) for t in tensors]}")
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    if not torch.isfinite(flat).all():
        raise invalid("params", "finite", "NaN or infinity")
    if isinstance(params, Tensor):
        return flat, lambda vector: vector
    names, sizes, shapes = list(params), [t.numel() for t in tensors], [t.shape for t in tensors]

    def unflatten(vector: Tensor) -> dict[str, Tensor]:
        parts = vector.split(sizes)
        return {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}

    return flat, unflatten


def _check_constraint(constraint: ArrayLike) -> np.ndarray:
    rows = check_finite("constraint", constraint)
    if rows.ndim not in (1, 2):
        raise invalid("constraint", "of shape (m, n) or (n,)", f"shape {rows.shape}")
    if not rows.any():
        raise invalid("constraint", "of rank >= 1", "rank 0")
    return np.atleast_2d(rows)


def _particular_solution(matrix: np.ndarray, value: ArrayLike | None) -> np.ndarray:
    if value is None:
        return np.zeros(matrix.shape[1])
    target = check_shape("value", np.atleast_1d(check_finite("value", value)), (len(matrix),))
    solution = np.linalg.lstsq(matrix, target, rcond=None)[0]
    if not np.allclose(matrix @ solution, target, rtol=1e-8, atol=1e-8 * np.abs(target).max(initial=0)):
        raise invalid("value", "attainable: constraint @ theta = value has a solution", "contradictory rows")
    return solution


def _is_constraint(module: nn.Module) -> bool:
    return isinstance(module, ParametrizationList) and isinstance(module[0], ConstraintBySymmetry)


def _gates(module: nn.Module) -> tuple[Tensor, Tensor]:
    return module.original1, module.original2  # type: ignore[return-value]
