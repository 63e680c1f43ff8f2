"""Frames of tangent vectors carried along by SGD at a fixed point of a torch model, chain by chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from symlearn._checks import invalid, wrong_type

_DENSE_LIMIT = 20_000_000
_DENSE_CEILING = 1_000_000_000
_N_PROBED = 4


def named_tensors(params: Any) -> Mapping[str, Tensor]:
    """The parameters by name, of a dict or a module: finite, of one dtype, on one device."""
    if isinstance(params, nn.Module):
        params = dict(params.named_parameters())
    if not isinstance(params, Mapping):
        raise wrong_type("params", "a dict of tensors or a torch.nn.Module", params)
    for name, tensor in params.items():
        if not isinstance(tensor, Tensor):
            raise wrong_type(f"params[{name!r}]", "a tensor", tensor)
        if tensor.dtype not in (torch.float32, torch.float64):
            raise invalid(f"params[{name!r}]", "of dtype float32 or float64", f"{tensor.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise invalid(f"params[{name!r}]", "finite", "inf or nan")
    if len({(tensor.dtype, tensor.device) for tensor in params.values()}) > 1:
        raise invalid("params", "tensors of one dtype on one device", "several")
    if not sum(tensor.numel() for tensor in params.values()):
        raise invalid("params", "tensors with at least one number", "none")
    return params


class FlatLoss:
    """A batch loss as a function of one flat parameter vector and of the indices of a batch."""

    def __init__(self, batch_loss: Callable[..., Tensor], named: Mapping[str, Tensor], data: Any) -> None:
        if not callable(batch_loss):
            raise wrong_type("batch_loss", "callable", batch_loss)
        self.batch_loss = batch_loss
        self.data = _check_data(data, next(iter(named.values())).device)
        self.n_samples = len(self.data[0])
        self.shapes = {name: tensor.shape for name, tensor in named.items()}
        self.theta = torch.cat([tensor.detach().clone().flatten() for tensor in named.values()])
        self._probe()

    def __call__(self, theta: Tensor, *batch: Tensor) -> Tensor:
        """Loss of a batch at the flat parameters."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = zip(self.shapes.items(), theta.split(sizes), strict=True)
        return self.batch_loss({name: part.view(shape) for (name, shape), part in parts}, *batch)

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        """Samples of a batch, or of batches stacked along more axes."""
        return tuple(tensor[indices.to(tensor.device)] for tensor in self.data)

    def _probe(self) -> None:
        indices = torch.arange(min(_N_PROBED, self.n_samples))
        try:
            values = [self(self.theta, *self.batch(indices)) for _ in range(2)]
        except Exception as error:
            raise invalid("batch_loss", "computable on a batch of data", f"{type(error).__name__}: {error}") from error
        for value in values:
            if not isinstance(value, Tensor):
                raise wrong_type("batch_loss", "a function that returns a tensor", value)
            if value.ndim or not value.is_floating_point():
                raise invalid("batch_loss", "a function that returns one real number", f"shape {tuple(value.shape)}")
            if not bool(torch.isfinite(value)):
                raise invalid("batch_loss", "finite at params", value.detach())
        if not bool(torch.isclose(values[0], values[1], rtol=1e-4)):
            raise invalid("batch_loss", "deterministic", f"{values[0].item():g} and {values[1].item():g}")


Product = Callable[[Tensor, Tensor], Tensor]


def hessian_product(loss: FlatLoss, method: str) -> Product:
    """Mean Hessians of batches, indices (C, S), times frames (C, D, k)."""
    n_entries = loss.n_samples * loss.theta.numel() ** 2
    product = _matrix_free_product(loss)
    if method == "hvp" or (method == "auto" and n_entries > _DENSE_LIMIT):
        return product
    if n_entries > _DENSE_CEILING:
        raise invalid("method", "'hvp' or 'auto' for so many parameters and samples", "'dense'")
    if _is_mean(loss, product):
        return _dense_product(loss, product)
    if method == "dense":
        raise invalid("batch_loss", "the mean over the batch for method 'dense'", "another function of it")
    return product


def growth_of_frames(
    product: Product, frames: Tensor, batches: Iterator[Tensor], lr: float, decay: float
) -> tuple[Tensor, Tensor]:
    """Diagonals of R and lengths of the columns before QR in every step, float64 of shape (C, T, k) each."""
    diagonals, lengths = [], []
    for indices in batches:
        moved = decay * frames - lr * product(indices, frames)
        length = moved.norm(dim=1)
        if not bool(torch.isfinite(length).all()):
            raise invalid("batch_loss", "of finite second derivatives at params", "inf or nan")
        if frames.shape[2] == 1:
            frames, diagonal = moved / length.clamp_min(torch.finfo(moved.dtype).tiny)[:, None], length
        else:
            frames, triangle = torch.linalg.qr(moved)
            diagonal = triangle.diagonal(dim1=1, dim2=2)
        diagonals.append(diagonal.double())
        lengths.append(length.double())
    return torch.stack(diagonals, 1).cpu(), torch.stack(lengths, 1).cpu()


@contextmanager
def undisturbed(params: Any, device: torch.device) -> Iterator[None]:
    """Gradients on, autocast off; torch's global generators and the buffers of a module as before at the end."""
    buffers = dict(params.named_buffers()) if isinstance(params, nn.Module) else {}
    copies = {name: buffer.detach().clone() for name, buffer in buffers.items()}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the fused kernels have no second derivative
        stack.enter_context(torch.random.fork_rng([] if device.type == "cpu" else [device]))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in buffers.items():
                    buffer.copy_(copies[name])


def _is_mean(loss: FlatLoss, product: Product) -> bool:
    """Whether the Hessian of a few samples is the mean of their Hessians; the losses themselves may all be 0."""
    indices, theta = torch.arange(min(_N_PROBED, loss.n_samples))[:, None], loss.theta
    frame = torch.randn(1, theta.numel(), 1, generator=torch.Generator().manual_seed(0)).to(theta)
    try:
        together, alone = product(indices.T, frame), product(indices, frame.expand(len(indices), -1, -1))
    except Exception:  # a loss that needs several samples, as batch norm does
        return False
    difference = (together - alone.mean(0)).abs().max()
    return not bool(difference > 1e-3 * alone.abs().max())  # NaN is refused later


def _dense_product(loss: FlatLoss, single: Product) -> Product:
    """From the Hessians of all samples, (N, D * D), computed once."""
    n_params = loss.theta.numel()
    eye = torch.eye(n_params, dtype=loss.theta.dtype, device=loss.theta.device)
    hessians = eye.new_empty(loss.n_samples, n_params**2)
    rows = max(1, 1_000_000 // n_params**2)
    for start in range(0, loss.n_samples, rows):
        indices = torch.arange(start, min(start + rows, loss.n_samples))[:, None]
        hessians[start : start + rows] = single(indices, eye.expand(len(indices), -1, -1)).flatten(1)
    n_chains = max(1, _DENSE_LIMIT // n_params**2)

    def product(indices: Tensor, frames: Tensor) -> Tensor:
        parts = []
        for some, part in zip(indices.split(n_chains), frames.split(n_chains), strict=True):
            mean = nn.functional.embedding_bag(some.to(hessians.device), hessians, mode="mean")
            parts.append(mean.view(-1, n_params, n_params) @ part)
        return torch.cat(parts)

    return product


def _matrix_free_product(loss: FlatLoss) -> Product:
    """By forward over reverse differentiation, batched over chains; one by one where torch cannot batch the model."""

    def of_chain(frame: Tensor, *batch: Tensor) -> Tensor:
        gradient = torch.func.grad(lambda theta: loss(theta, *batch))
        column = torch.func.vmap(lambda v: torch.func.jvp(gradient, (loss.theta,), (v,))[1], in_dims=1, out_dims=1)
        return column(frame)

    def batched(indices: Tensor, frames: Tensor) -> Tensor:
        n_chains = max(1, _DENSE_LIMIT // frames[0].numel())
        return torch.func.vmap(of_chain, chunk_size=n_chains)(frames, *loss.batch(indices)).detach()

    def one_by_one(indices: Tensor, frames: Tensor) -> Tensor:
        return torch.stack([_twice_backward(loss, some, frame) for some, frame in zip(indices, frames, strict=True)])

    try:
        batched(torch.zeros(1, 1, dtype=torch.long), loss.theta.new_ones(1, loss.theta.numel(), 1))
    except Exception:  # control flow on values, operations without batching rule or forward derivative
        return one_by_one
    return batched


def _twice_backward(loss: FlatLoss, indices: Tensor, frame: Tensor) -> Tensor:
    theta = loss.theta.clone().requires_grad_()
    try:
        value = loss(theta, *loss.batch(indices))
        if not value.requires_grad:
            return torch.zeros_like(frame)
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True, materialize_grads=True)
        if not gradient.requires_grad:
            return torch.zeros_like(frame)
        columns = [
            torch.autograd.grad(gradient, theta, column, retain_graph=True, materialize_grads=True)[0]
            for column in frame.unbind(1)
        ]
    except RuntimeError as error:
        raise invalid("batch_loss", "twice differentiable in params", f"{error}") from error
    return torch.stack(columns, 1)


def _check_data(data: Any, device: torch.device) -> tuple[Tensor, ...]:
    tensors = data if isinstance(data, (tuple, list)) else (data,)
    if not tensors:
        raise invalid("data", "a tensor or a tuple of tensors", "an empty one")
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise wrong_type("data", "a tensor or a tuple of tensors", tensor)
        if not tensor.ndim or not len(tensor):
            raise invalid("data", "tensors of at least one sample", f"shape {tuple(tensor.shape)}")
        if len(tensor) != len(tensors[0]):
            raise invalid("data", f"tensors of one length ({len(tensors[0])})", f"length {len(tensor)}")
        if tensor.device != device:
            raise invalid("data", f"on the device of params ({device})", f"{tensor.device}")
    return tuple(tensors)
