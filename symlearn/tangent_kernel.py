r"""Empirical tangent kernels of any module, and how far two kernels are apart.

The tangent kernel :math:`\nabla f(x)\cdot\nabla f(x')` says how a gradient step on one input moves the output at
another (chapter :doc:`/chapters/kernel_learning`). Linear and convolutional layers contribute through products of
their inputs and output gradients; their Jacobians are never formed. Source: Jacot, Gabriel and Hongler, "Neural
tangent kernel", NeurIPS 2018.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from symlearn._checks import check_choice, check_finite, check_int, check_module, check_samples, invalid
from symlearn._kernel_contraction import Workspace, rectangle, triangle
from symlearn._kernel_features import STORED, FeatureMap, check_batch, random_model
from symlearn._kernel_recording import NotLayerwiseError, ordinary_autograd

__all__ = ["empirical_ntk", "kernel_distance"]


def empirical_ntk(
    model: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    outputs: Literal["trace", "full", "sum"] = "trace",
    chunk_size: int = 256,
    method: Literal["auto", "jacobian"] = "auto",
) -> Tensor:
    r"""Tangent kernel of a model, :math:`\Theta_{cd}(x,x')=\nabla f_c(x)\cdot\nabla f_d(x')`.

    Gradients are with respect to all parameters that require gradients; the :math:`C` outputs of a sample are all
    entries of the model's output for it.

    Parameters
    ----------
    model : nn.Module
        Any module in eval mode. It is run, forward hooks included, but never changed: not its parameters, their
        ``.grad``, its buffers, mode or hooks.
    x1 : Tensor, shape (N1, ...)
        Inputs, samples on axis 0.
    x2 : Tensor, shape (N2, ...), optional
        Other inputs; by default the same. Then only half of the products are formed.
    outputs : {"trace", "full", "sum"}
        ``"trace"``: the mean over outputs :math:`\frac1C\sum_c\Theta_{cc}`. ``"full"``: :math:`\Theta` itself.
        ``"sum"``: :math:`\frac1C\sum_{cd}\Theta_{cd}`, the kernel of the scalar :math:`\frac1{\sqrt C}\sum_cf_c`,
        which needs one backward pass instead of :math:`C`.
    chunk_size : int
        Samples that go through the model at once: changes memory, not the result. Fewer do if a chunk would need more
        than 256 MiB.
    method : {"auto", "jacobian"}
        ``"jacobian"`` multiplies the Jacobians of all parameters: slow, and the reference for ``"auto"``.

    Returns
    -------
    Tensor, shape (N1, N2), or (N1, N2, C, C) for ``"full"``
        Detached, in the dtype and on the device of the parameters. With ``x2=None`` exactly symmetric:
        :math:`\Theta_{cd}(x,x')=\Theta_{dc}(x',x)`.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or the model returns something other than a tensor.
    ValueError
        For an unknown choice, ``chunk_size < 1``, no samples, inputs that differ in features, dtype or device, or
        that the model does not accept; a model without trainable parameters, with batch norm or dropout in training
        mode or any other random operation, with an output that depends on no parameter, or with outputs or gradients
        that are not finite.

    Notes
    -----
    *Structure.* For a linear layer with inputs :math:`a` and output gradients :math:`g_c` the weight contributes
    :math:`(a\cdot a')(g_c\cdot g'_d)` and the bias :math:`g_c\cdot g'_d`. Convolutions (one or two axes, with stride,
    padding, dilation, groups), linear layers along a sequence and layers that are used several times contribute the
    products of their weight gradients, summed over positions and uses, or the products of all pairs of positions if
    that is cheaper; batch, group and layer norms the products of their gradients.

    *Certainty.* Every torch operation on a parameter is watched, for one sample alone, and its uses are counted in the
    graph of the output. A parameter with any use outside of these layers is left to ``torch.func.vmap`` of its
    Jacobian, or to autograd sample by sample where vmap fails or does not reproduce autograd. So is every parameter
    if the sample has other outputs or gradients in its batch than alone: the kernel is that of the model on each
    sample alone.

    *Memory.* The kernel, and at most about 1 GiB of features (a single sample may need more); beyond, features of
    columns are made again for each group of rows. Sums run in float32 at least.

    The random state of torch is as before, whatever the model does.

    References
    ----------
    Jacot, Gabriel and Hongler, NeurIPS 2018. The kernel through training: Fort, Dziugaite, Paul, Kharaghani, Roy and
    Ganguli, "Deep learning versus kernel learning", NeurIPS 2020; chapter :doc:`/chapters/kernel_learning`. The sum
    over outputs: Mohamadi, Bae and Sutherland, "A fast, well-founded approximation to the empirical neural tangent
    kernel", ICML 2023.

    Examples
    --------
    The gradient of :math:`w\cdot x+b` is :math:`(x,1)`, so the kernel is :math:`x\cdot x'+1`:

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    >>> empirical_ntk(nn.Linear(2, 3), x)
    tensor([[2., 2.],
            [2., 6.]])
    >>> empirical_ntk(nn.Linear(2, 3), x, outputs="full").shape
    torch.Size([2, 2, 3, 3])
    """
    check_choice("outputs", outputs, ("trace", "full", "sum"))
    check_choice("method", method, ("auto", "jacobian"))
    dtype = _check_model(model)
    device = next(each.device for each in model.parameters() if each.requires_grad)
    _check_inputs("x1", x1, device)
    if x2 is not None:
        _check_like(x2, x1, device)
    size = check_int("chunk_size", chunk_size, 1)
    x1, x2 = x1.detach(), None if x2 is None else x2.detach()
    with _preserved_rng(device), ordinary_autograd(device):
        kernel = None
        if method == "auto":
            with suppress(NotLayerwiseError):
                kernel = _kernel(model, x1, x2, outputs, size, layerwise=True)
        if kernel is None:
            check_batch(model, x1)
            kernel = _kernel(model, x1, x2, outputs, size, layerwise=False)
    kernel = kernel.to(dtype)
    if not bool(torch.stack(torch.aminmax(kernel)).isfinite().all()):
        raise invalid("model", "finite, with finite gradients, at every input", "inf or nan")
    return kernel


def kernel_distance(k1: ArrayLike | Tensor, k2: ArrayLike | Tensor) -> float:
    r"""One minus the cosine of two kernels, :math:`1-\langle K,K'\rangle/(\|K\|_F\,\|K'\|_F)`.

    0 for kernels that are multiples of each other, so blind to a change of scale; at most 1 for positive semidefinite
    kernels, 2 in general. For small changes it is half the square of the relative change across the kernel.

    Parameters
    ----------
    k1, k2 : array_like or Tensor
        Kernels of one shape, any number of axes.

    Returns
    -------
    float
        Computed in float64 as half the squared distance of the normalised kernels, which keeps its digits where the
        kernels are close.

    Raises
    ------
    TypeError
        If a kernel is not an array of real numbers.
    ValueError
        For different shapes, entries that are not finite, or a kernel that is zero everywhere.

    References
    ----------
    Fort et al., NeurIPS 2020; chapter :doc:`/chapters/kernel_learning`.

    Examples
    --------
    >>> kernel_distance([[2.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]])
    0.29289...
    """
    first, second = _normalised("k1", k1), _normalised("k2", k2)
    if first.shape != second.shape:
        raise invalid("k2", f"of the shape of k1 {first.shape}", f"shape {second.shape}")
    return float(np.square(first - second).sum() / 2)


def _normalised(name: str, kernel: ArrayLike | Tensor) -> np.ndarray:
    values = check_finite(name, kernel)
    if not values.any():
        raise invalid(name, "nonzero somewhere", f"only zeros, shape {values.shape}")
    values = values / np.abs(values).max()
    return values / np.linalg.norm(values)


def _check_model(model: Any) -> torch.dtype:
    """The dtype of the kernel, once the model is known to have one."""
    for module in check_module(model).modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise invalid("model", "in eval mode (call model.eval())", f"{type(module).__name__} in training mode")
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            kind = "in training mode" if module.training else "without running statistics"
            raise invalid("model", "in eval mode (call model.eval())", f"{type(module).__name__} {kind}")
    dtype = None
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.is_meta:
            raise invalid("model", "initialised", f"no values in {name!r}")
        if parameter.requires_grad:
            if not parameter.is_floating_point():
                raise invalid("model", "one with real parameters", f"{parameter.dtype} in {name!r}")
            dtype = parameter.dtype if dtype is None else torch.promote_types(dtype, parameter.dtype)
    if dtype is None:
        raise invalid("model", "one with trainable parameters", "none that require gradients")
    return dtype


def _check_inputs(name: str, value: Any, device: torch.device) -> None:
    check_samples(name, value)
    if value.device != device:
        raise invalid(name, f"on the device of the parameters ({device})", str(value.device))


def _check_like(x2: Any, x1: Tensor, device: torch.device) -> None:
    _check_inputs("x2", x2, device)
    if x2.shape[1:] != x1.shape[1:]:
        raise invalid("x2", f"of the features of x1 {tuple(x1.shape[1:])}", str(tuple(x2.shape[1:])))
    if x2.dtype != x1.dtype:
        raise invalid("x2", f"of the dtype of x1 ({x1.dtype})", str(x2.dtype))


@contextmanager
def _preserved_rng(device: torch.device) -> Iterator[None]:
    """Within it, random numbers are refused; after it, the random state is what it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(each) for each in devices)]
        yield
        after = [torch.get_rng_state(), *(torch.cuda.get_rng_state(each) for each in devices)]
    if not all(torch.equal(one, other) for one, other in zip(states, after, strict=True)):
        raise random_model()


def _kernel(model: nn.Module, x1: Tensor, x2: Tensor | None, outputs: str, chunk_size: int, layerwise: bool) -> Tensor:
    """The kernel, group of rows by group of rows."""
    others = x1 if x2 is None else x2
    features = FeatureMap(model, x1, outputs, chunk_size, len(others), layerwise)
    rows = features.n_outputs if outputs == "full" else 1
    matrix = torch.zeros(len(x1) * rows, len(others) * rows, dtype=features.dtype, device=x1.device)
    workspace = Workspace(matrix, outputs == "full")
    group, step = _sizes(features, len(x1), 0 if x2 is None else len(x2))
    for start in range(0, len(x1), group):
        stop = min(start + group, len(x1))
        block = matrix[start * rows : stop * rows]
        here = features.of(x1[start:stop])
        if x2 is None:
            triangle(block[:, start * rows : stop * rows], features.terms, here, workspace)
        for first in range(stop if x2 is None else 0, len(others), step):
            last = min(first + step, len(others))
            part = block[:, first * rows : last * rows]
            rectangle(part, features.terms, here, features.of(others[first:last]), workspace)
        if x2 is None:
            matrix[stop * rows :, start * rows : stop * rows] = block[:, stop * rows :].mT
    if outputs == "full":
        return matrix.view(len(x1), rows, len(others), rows).permute(0, 2, 1, 3).contiguous()
    return matrix.div_(features.n_outputs)


def _sizes(features: FeatureMap, n_rows: int, n_columns: int) -> tuple[int, int]:
    """Samples of a group of rows, and of a piece of the columns, whose features are kept at a time."""
    fit = max(1, STORED // features.n_bytes)
    if n_rows + min(n_columns, features.step) <= fit:
        return n_rows, max(1, min(fit - n_rows, n_columns or 1))
    step = max(1, min(features.step, fit // 4))
    return max(1, fit - step), step
