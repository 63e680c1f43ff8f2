r"""Per-sample gradients, and the gradient noise of a symmetry without the covariance matrix.

For a symmetric generator :math:`A` the charge :math:`\theta^\top A\theta` is a quadratic form. The noise
:math:`\operatorname{Tr}[\Sigma A]` that drives it (chapters :doc:`/chapters/law_of_balance` and
:doc:`/chapters/noise_equilibrium`) is the mean charge of the per-sample gradients minus the charge of their mean, so
:math:`\Sigma` is never formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from symlearn._checks import check_int, check_module, check_pair, check_params, invalid, wrong_type
from symlearn._group_actions import check_tensors, unit_axes, wide
from symlearn._layer_gradients import Form, Sums, gradient_alone, layerwise_sums
from symlearn.symmetry import GL, ContinuousSymmetry, Rescaling, Scale

__all__ = [
    "GradientNoise",
    "gradient_noise",
    "make_batch_loss",
    "make_sample_loss",
    "noise_covariance_trace",
    "per_sample_gradients",
]

_Loss = Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class GradientNoise:
    r"""Gradient noise along a symmetry; the tensors have the shape of ``symmetry.charge``.

    Attributes
    ----------
    second_moment : Tensor
        Mean charge of the per-sample gradients, :math:`\mathbb E[g^\top Ag]`.
    mean_part : Tensor
        Charge of the mean gradient, :math:`\mathbb E[g]^\top A\,\mathbb E[g]`.
    noise_trace : Tensor
        Their difference :math:`\operatorname{Tr}[\Sigma A]`, computed from deviations, so it is right also where it is
        small against both. :math:`\Sigma` is divided by the number of samples and has no batch size in it.
    n_samples : int
        Number of samples.
    """

    second_moment: Tensor
    mean_part: Tensor
    noise_trace: Tensor
    n_samples: int


def make_sample_loss(model: nn.Module, loss_fn: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The loss of one sample as a function of the parameters, ``loss_fn(model(x[None]), y[None])``.

    Parameters
    ----------
    model : nn.Module
        Never changed. Its buffers are copied now; its parameters count only where ``params`` does not name them.
    loss_fn : callable
        Ordinary torch criterion ``loss_fn(output, target)`` that returns a scalar. It sees a batch of one, so
        ``reduction="mean"`` and ``"sum"`` are the same.

    Returns
    -------
    callable
        ``sample_loss(params, x, y)`` with ``params`` a dict of tensors, ``x`` and ``y`` without a batch axis. It
        remembers ``model`` and ``loss_fn``, which lets `gradient_noise` take the fast route.

    Raises
    ------
    TypeError
        If ``model`` is not a module or ``loss_fn`` not callable. By the loss: if ``params`` is not a dict of tensors.
    ValueError
        By the loss: for a name that the model does not have, a loss that is not a scalar, and a model with batch norm
        or dropout in training mode, where the loss of one sample is undefined or random.

    See Also
    --------
    make_batch_loss : For batch norm in training mode: a whole minibatch then counts as one sample.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> sample_loss = make_sample_loss(model, nn.MSELoss())
    >>> sample_loss({"weight": torch.tensor([[1.0, 2.0]])}, torch.tensor([3.0, 1.0]), torch.tensor([4.0]))
    tensor(1.)
    """
    return _SampleLoss(model, loss_fn)


def make_batch_loss(model: nn.Module, loss_fn: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The loss of a batch as a function of the parameters, ``loss_fn(model(x), y)``.

    Batch norm in training mode uses the statistics of the batch and does not update its running ones. Such a loss can
    serve as ``sample_loss`` with ``inputs`` of shape (n_batches, batch_size, ...): then the noise is that of minibatch
    gradients, and the temperature is the learning rate alone.

    Parameters
    ----------
    model : nn.Module
        Never changed. Its buffers are copied now; its parameters count only where ``params`` does not name them.
    loss_fn : callable
        Ordinary torch criterion ``loss_fn(output, target)`` that returns the mean over the batch.

    Returns
    -------
    callable
        ``batch_loss(params, x, y)``.

    Raises
    ------
    TypeError, ValueError
        As `make_sample_loss`, except for batch norm.

    Examples
    --------
    >>> batch_loss = make_batch_loss(nn.Linear(2, 1, bias=False), nn.MSELoss())
    >>> x, y = torch.tensor([[3.0, 1.0], [0.0, 1.0]]), torch.tensor([[4.0], [2.0]])
    >>> batch_loss({"weight": torch.tensor([[1.0, 2.0]])}, x, y)
    tensor(0.5000)
    """
    return _BatchLoss(model, loss_fn)


def per_sample_gradients(
    sample_loss: _Loss,
    params: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    chunk_size: int = 256,
) -> dict[str, Tensor]:
    """Gradients of the loss of every sample.

    Parameters
    ----------
    sample_loss : callable
        ``sample_loss(params, x, y)``, a scalar for one sample without a batch axis; see `make_sample_loss`.
    params : dict of Tensor
        Where to differentiate, all names.
    inputs, targets : Tensor, shape (N, ...)
        Samples on axis 0.
    chunk_size : int
        Samples that are processed at once: changes memory, not the result.

    Returns
    -------
    dict of Tensor
        Of shape (N, ...) each, detached, with the names, dtypes and devices of ``params``. The result holds N times the
        parameters, and a chunk ``chunk_size`` times on top.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or ``sample_loss`` returns something other than a tensor.
    ValueError
        For ``inputs`` and ``targets`` of different lengths or on another device than ``params``, no samples,
        ``chunk_size < 1``, or a loss that is random or not a scalar.

    Examples
    --------
    >>> params = {"w": torch.tensor(3.0)}
    >>> per_sample_gradients(lambda p, x, y: (p["w"] * x - y) ** 2, params, torch.tensor([1.0, 2.0]), torch.zeros(2))
    {'w': tensor([ 6., 24.])}
    """
    check_params(params, ())
    size = _check_arguments(sample_loss, params, tuple(params), inputs, targets, 1, chunk_size)
    found = {name: tensor.new_empty(len(inputs), *tensor.shape) for name, tensor in params.items()}
    start = 0
    with _preserved_rng(inputs):
        for chunk in _gradient_chunks(sample_loss, params, tuple(params), inputs, targets, size):
            for name, gradients in chunk.items():
                found[name][start : start + size] = gradients
            start += size
    return found


def noise_covariance_trace(
    sample_loss: _Loss,
    params: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    symmetry: ContinuousSymmetry | None = None,
    *,
    chunk_size: int = 256,
) -> Tensor:
    r""":math:`\operatorname{Tr}[\Sigma A]`, the noise that drives the charge of a symmetry.

    :math:`\Sigma=\frac1N\sum_j(g_j-\bar g)(g_j-\bar g)^\top` is the covariance of the per-sample gradients. It is
    `gradient_noise` without the parts; see there for routes, memory and errors.

    Parameters
    ----------
    sample_loss, params, inputs, targets, chunk_size
        As for `gradient_noise`.
    symmetry : ContinuousSymmetry, optional
        `Rescaling`, `Scale` or `GL`; without one :math:`A` is the identity on all of ``params``.

    Returns
    -------
    Tensor
        Of the shape of ``symmetry.charge(params)``: one number per unit, a matrix per head, or a scalar.

    Raises
    ------
    TypeError, ValueError
        As `gradient_noise`.

    References
    ----------
    Ziyin, Wang, Li and Wu, "Parameter Symmetry and Noise Equilibrium of Stochastic Gradient Descent", 2024; chapter
    :doc:`/chapters/noise_equilibrium`.

    Examples
    --------
    >>> def sample_loss(params, x, y):
    ...     return (params["u"] * params["w"] * x - y) ** 2
    >>> params = {"u": torch.tensor(2.0), "w": torch.tensor(0.5)}
    >>> x, y = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 1.0, 1.0])
    >>> noise_covariance_trace(sample_loss, params, x, y, Rescaling("u", "w", per_unit=False))
    tensor(-3.3333)
    """
    return gradient_noise(sample_loss, params, inputs, targets, symmetry, chunk_size=chunk_size).noise_trace


def gradient_noise(
    sample_loss: _Loss,
    params: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    symmetry: ContinuousSymmetry | None = None,
    *,
    chunk_size: int = 256,
) -> GradientNoise:
    r"""Mean charge of the per-sample gradients, charge of their mean, and the difference of the two.

    Parameters
    ----------
    sample_loss : callable
        ``sample_loss(params, x, y)``, a scalar for one sample without a batch axis; see `make_sample_loss`.
    params : dict of Tensor
        Where to differentiate. Only the tensors that ``symmetry`` touches are; the others are constants.
    inputs, targets : Tensor, shape (N, ...)
        Samples on axis 0, at least 2.
    symmetry : ContinuousSymmetry, optional
        `Rescaling`, `Scale`, `GL` or any other with a ``charge``; without one the charge is the squared norm of all of
        ``params``.
    chunk_size : int
        Samples that are processed at once: changes memory, not the result. About 500 is fastest for small layers.

    Returns
    -------
    GradientNoise
        Detached tensors in the dtype of ``params``, float32 at least.

    Raises
    ------
    TypeError
        If an argument has the wrong type, ``symmetry`` has no charge (`Rotation`, `Permutation`, `MirrorSymmetry`), or
        ``sample_loss`` returns something other than a tensor.
    ValueError
        For ``inputs`` and ``targets`` of different lengths or on another device than ``params``, fewer than 2 samples,
        ``chunk_size < 1``, a name that is not in ``params``, or a loss that is random, not finite or not a scalar.

    Notes
    -----
    *General route.* ``torch.func.vmap(grad)`` over a chunk, or sample by sample if the loss cannot be batched. Memory:
    about ``4 * chunk_size`` times the touched parameters, and the activations of a chunk.

    *Fast route*, for losses of `make_sample_loss`: one batched pass, in which the gradient of a linear layer stays an
    outer product :math:`\delta a^\top`, so that :math:`\sum_j g_{ij}^2=\delta_i^2\|a\|^2`. Memory: the activations of a
    chunk, and a few copies of the touched parameters. Taken if every touched parameter is the weight or bias of a
    linear layer that each sample passes exactly once, and if the first and the last sample of the first chunk have
    the same loss and gradients in the batch as alone; otherwise (convolutions, layers along a sequence, tied weights,
    samples that interact) the general route follows.

    Sums run over deviations from a fixed estimate of the mean gradient, across chunks in float64.

    The random state of torch is as before, whatever the loss does.

    References
    ----------
    Ziyin, Wang, Li and Wu, "Parameter Symmetry and Noise Equilibrium of Stochastic Gradient Descent", 2024; chapter
    :doc:`/chapters/noise_equilibrium`.

    Examples
    --------
    >>> def sample_loss(params, x, y):
    ...     return (params["u"] * params["w"] * x - y) ** 2
    >>> params = {"u": torch.tensor(2.0), "w": torch.tensor(0.5)}
    >>> x, y = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 1.0, 1.0])
    >>> noise = gradient_noise(sample_loss, params, x, y, Rescaling("u", "w", per_unit=False))
    >>> noise.second_moment, noise.mean_part
    (tensor(-45.), tensor(-41.6667))
    """
    names = _check_symmetry(symmetry, params)
    size = _check_arguments(sample_loss, params, names, inputs, targets, 2, chunk_size)
    charge = _squared_norm if symmetry is None else symmetry.charge
    constants = {name: tensor.detach() for name, tensor in params.items()}
    shape = charge(constants).shape
    with _preserved_rng(inputs):
        sums = _layerwise_sums(sample_loss, constants, inputs, targets, symmetry, size)
        if sums is None:
            sums = _general_sums(sample_loss, constants, inputs, targets, names, charge, size)
    n_samples = len(inputs)
    offset = {name: total / n_samples for name, total in sums.first.items()}
    noise = sums.second.reshape(shape) / n_samples - charge(offset)
    mean_part = charge({name: sums.shift[name] + offset[name] for name in names})
    if not bool((noise + mean_part).isfinite().all()):
        raise invalid("sample_loss", "finite, with finite gradients, at every sample", "inf or nan")
    if symmetry is None or type(symmetry) is Scale:
        noise = noise.clamp(min=0.0)
    dtype = torch.promote_types(params[names[0]].dtype, torch.float32)
    return GradientNoise((noise + mean_part).to(dtype), mean_part.to(dtype), noise.to(dtype), n_samples)


class _ModelLoss:
    def __init__(self, model: nn.Module, loss_fn: Callable[[Any, Tensor], Tensor]) -> None:
        self.model = check_module(model)
        if not callable(loss_fn):
            raise wrong_type("loss_fn", "a function of output and target", loss_fn)
        self.loss_fn = loss_fn
        self.buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        self.names = {name for name, _ in model.named_parameters(remove_duplicate=False)} | set(self.buffers)

    def output(self, params: Mapping[str, Tensor], x: Tensor) -> Any:
        check_params(params, ())
        for name in params:
            if name not in self.names:
                raise invalid("params", "a dict of parameters of the model", repr(name))
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items() if name not in params}
        with _batch_norm_without_memory(self.model):
            return functional_call(self.model, {**buffers, **params}, (x,))

    def loss(self, output: Any, y: Tensor) -> Tensor:
        loss = self.loss_fn(output, y)
        return _check_loss("loss_fn", loss, "a criterion that returns a scalar (reduction='mean' or 'sum')")


class _SampleLoss(_ModelLoss):
    def __call__(self, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        for name, value in (("x", x), ("y", y)):
            if not isinstance(value, Tensor):
                raise wrong_type(name, "a tensor", value)
        for module in self.model.modules():
            _check_deterministic(module)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
                kind = "in training mode" if module.training else "without running statistics"
                raise invalid("model", "in eval mode (call model.eval())", f"{type(module).__name__} {kind}")
        return self.loss(self.output(params, x[None]), y[None])

    def output_losses(self, output: Tensor, y: Tensor) -> Tensor:
        """The loss of each sample of a batch from its output."""
        loss_fn: Any = self.loss_fn
        plain = type(loss_fn) is nn.CrossEntropyLoss
        if plain and loss_fn.weight is None and output.ndim == 2 and y.ndim == 1 and (y != loss_fn.ignore_index).all():
            # The most common criterion, without the cost of vmap. An ignored sample alone has the mean 0 / 0.
            return cross_entropy(output, y, reduction="none", label_smoothing=loss_fn.label_smoothing)
        return vmap(lambda o, t: self.loss(o[None], t[None]), randomness="error")(output, y)


class _BatchLoss(_ModelLoss):
    def __call__(self, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        for module in self.model.modules():
            _check_deterministic(module)
        return self.loss(self.output(params, x), y)


def _check_deterministic(module: nn.Module) -> None:
    if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
        raise invalid("model", "in eval mode (call model.eval())", f"{type(module).__name__} in training mode")


def _check_loss(argument: str, loss: Any, expected: str) -> Tensor:
    if not isinstance(loss, Tensor):
        raise wrong_type(argument, expected, loss)
    if loss.ndim:
        raise invalid(argument, expected, f"shape {tuple(loss.shape)}")
    return loss


@contextmanager
def _batch_norm_without_memory(model: nn.Module) -> Iterator[None]:
    """Within it, batch norm in training mode does not update its running statistics, which vmap would not allow."""
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    tracking = [layer for layer in layers if layer.training and layer.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True


def _check_symmetry(symmetry: Any, params: Any) -> tuple[str, ...]:
    """The names of the parameters that are differentiated."""
    if symmetry is None:
        check_params(params, ())
        if not params:
            raise invalid("params", "at least one parameter", "none")
        return tuple(params)
    if not isinstance(symmetry, ContinuousSymmetry):
        raise wrong_type("symmetry", "one with a charge (Rescaling, Scale, GL) or None", symmetry)
    return symmetry.names


def _check_arguments(
    sample_loss: Any,
    params: Any,
    names: tuple[str, ...],
    inputs: Any,
    targets: Any,
    least: int,
    chunk_size: Any,
) -> int:
    """The size of a chunk, once all arguments are right."""
    if not callable(sample_loss):
        raise wrong_type("sample_loss", "a function of params, x and y", sample_loss)
    check_tensors(params, names)
    check_params(params, tuple(params))
    check_pair(inputs, targets)
    for argument, value in (("inputs", inputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise wrong_type(argument, "a tensor", value)
        for name in names[:1]:
            if value.device != params[name].device:
                raise invalid(argument, f"on the device of params ({params[name].device})", str(value.device))
    if len(inputs) < least:
        raise invalid("inputs", f"at least {least} samples", str(len(inputs)))
    return min(check_int("chunk_size", chunk_size, 1), len(inputs))


@contextmanager
def _preserved_rng(inputs: Tensor) -> Iterator[None]:
    """Within it, random numbers are refused; after it, the random state is what it was."""
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(each) for each in devices)]
        yield
        after = [torch.get_rng_state(), *(torch.cuda.get_rng_state(each) for each in devices)]
    if not all(torch.equal(one, other) for one, other in zip(states, after, strict=True)):
        raise _random()


def _random() -> ValueError:
    return invalid("sample_loss", "deterministic (call model.eval())", "a random operation")


def _squared_norm(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in tensors.values()]).sum()


def _layerwise_sums(
    sample_loss: Any,
    params: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    symmetry: ContinuousSymmetry | None,
    chunk_size: int,
) -> Sums | None:
    """The fast route, for losses and symmetries that allow it."""
    if not isinstance(sample_loss, _SampleLoss):
        return None
    if symmetry is None:
        terms, form = dict.fromkeys(params, (1, 0)), Form(heads=None, per_unit=False)
    elif type(symmetry) in (Rescaling, Scale):
        signs = symmetry._signs()
        terms = {name: (signs[name], axis) for name, axis in unit_axes(params, signs).items()}
        form = Form(heads=None, per_unit=symmetry.per_unit)  # type: ignore[attr-defined]
    elif type(symmetry) is GL:
        terms = {name: (symmetry._signs()[name], axis) for name, axis in symmetry._axes(params).items()}
        form = Form(heads=symmetry.heads, per_unit=False)
    else:
        return None
    return layerwise_sums(
        sample_loss.output, sample_loss, sample_loss.output_losses, params, terms, form, inputs, targets, chunk_size
    )


def _general_sums(
    sample_loss: _Loss,
    params: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    names: tuple[str, ...],
    charge: Callable[[dict[str, Tensor]], Tensor],
    chunk_size: int,
) -> Sums:
    """Sums over per-sample gradients less their mean over the first chunk."""
    shift: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    second = None
    for chunk in _gradient_chunks(sample_loss, params, names, inputs, targets, chunk_size):
        if not shift:
            shift = {name: chunk[name].mean(0) for name in names}
            first = {name: torch.zeros_like(wide(shift[name])) for name in names}
        deviations = {name: chunk.pop(name) - shift[name] for name in names}
        charges = wide(vmap(charge)(deviations)).sum(0)
        second = charges if second is None else second + charges
        for name in names:
            first[name] += deviations.pop(name).sum(0)
    assert second is not None
    return Sums(second, first, {name: wide(tensor) for name, tensor in shift.items()})


def _gradient_chunks(
    sample_loss: _Loss,
    params: Mapping[str, Tensor],
    names: tuple[str, ...],
    inputs: Tensor,
    targets: Tensor,
    chunk_size: int,
) -> Iterator[dict[str, Tensor]]:
    """Gradients of the named parameters for each sample of one chunk after the other."""
    constants = {name: tensor.detach() for name, tensor in params.items()}

    def checked(full: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return _check_loss("sample_loss", sample_loss(full, x, y), "a function that returns a scalar")

    touched = {name: constants[name] for name in names}
    gradient = grad(lambda touched, x, y: checked({**constants, **touched}, x, y))
    batched = vmap(gradient, in_dims=(None, 0, 0), randomness="error")
    for x, y in zip(inputs.detach().split(chunk_size), targets.detach().split(chunk_size), strict=True):
        try:
            chunk = batched(touched, x, y)
        except RuntimeError as error:
            if "randomness" in str(error):
                raise _random() from error
            # Not everything can be batched (control flow on values, in-place updates); one by one, errors are genuine.
            alone = [gradient_alone(checked, constants, names, *sample)[1] for sample in zip(x, y, strict=True)]
            chunk = {name: torch.stack([gradients[name] for gradients in alone]) for name in names}
        yield chunk
