"""Streaming second moments of the vectors on both sides of a layer, and a forward pass that leaves no trace.

The machinery of :mod:`symlearn.canonical_representation`: float64 moments that pool exactly, im2col patches without a
copy of the whole batch, and the protection of the user's model.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.hooks import RemovableHandle

from symlearn._checks import invalid, wrong_type

Layer = nn.Linear | nn.Conv2d

_FORWARDS = (nn.Linear.forward, nn.Conv2d.forward)
_BLOCK = 2**17  # float64 numbers in a block: 1 MiB, which fits a processor's second-level cache
_MIN_ROWS = 256  # a block has at least so many vectors: products of fewer are bound by memory
_MIN_STRIP = 48  # columns


def all_layers(model: nn.Module) -> dict[str, Layer]:
    """Every layer that can be measured, by its first name."""
    layers: dict[str, Layer] = {}
    for name, module in model.named_modules():
        if _is_measurable(module) and getattr(module, "groups", 1) == 1:
            layers[name] = _check_initialized(name, module)
    if not layers:
        raise invalid("model", "a module with nn.Linear or nn.Conv2d layers", f"a {type(model).__name__} without")
    return layers


def named_layers(model: nn.Module, names: Sequence[str]) -> dict[str, Layer]:
    """The layers of these names."""
    if isinstance(names, (str, bytes)) or not isinstance(names, Sequence):
        raise wrong_type("layers", "a sequence of names or None", names)
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: dict[str, Layer] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise wrong_type(f"layers[{index}]", "a string", name)
        if name not in modules:
            raise invalid(f"layers[{index}]", "the name of a module of the model", repr(name))
        if name in layers:
            raise invalid("layers", "distinct names", f"{name!r} twice")
        module = modules[name]
        if not _is_measurable(module):
            raise wrong_type(f"layer {name!r}", "an nn.Linear or nn.Conv2d with torch's own forward", module)
        if getattr(module, "groups", 1) != 1:
            raise invalid(f"layer {name!r}", "a convolution with groups=1", f"groups={module.groups}")
        layers[name] = _check_initialized(name, module)
    if not layers:
        raise invalid("layers", "at least one name", "none")
    return layers


class VectorMoments:
    """Number, mean and scatter of a stream of vectors of one size, in float64.

    The scatter is the sum of the squared (outer) deviations from the mean. Blocks are pooled by the update of Chan,
    Golub and LeVeque, which loses nothing when the mean is large. Only the upper triangle of ``scatter`` counts.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.n = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(size, size, dtype=torch.float64, device=device)

    def add(self, block: Tensor) -> None:
        """Add the rows of a float64 matrix, which is overwritten."""
        if not len(block):
            return
        mean = block.mean(0)
        block -= mean
        step = max(_MIN_STRIP, -(-len(mean) // 8))
        for start in range(0, len(mean), step):  # strips of the upper triangle
            strip = slice(start, start + step)
            self.scatter[strip, start:].addmm_(block[:, strip].T, block[:, start:])
        self._move(len(block), mean)

    def pool(self, other: VectorMoments) -> None:
        """Add all vectors that another stream has seen."""
        if other.n:
            self.scatter += other.scatter
            self._move(other.n, other.mean)

    def mapped(self, matrix: Tensor, offset: Tensor | None = None) -> VectorMoments:
        """The moments of ``matrix @ v + offset``."""
        image = VectorMoments(len(matrix), matrix.device)
        image.n = self.n
        image.mean = matrix @ self.mean if offset is None else matrix @ self.mean + offset
        image.scatter = matrix @ _symmetric(self.scatter) @ matrix.T
        return image

    def second_moment(self, centered: bool) -> Tensor:
        """Covariance, or second moment about the origin; a symmetric matrix."""
        moment = self.scatter / self.n
        return _symmetric(moment if centered else moment.addr_(self.mean, self.mean))

    def _move(self, n: int, mean: Tensor) -> None:
        total, difference = self.n + n, mean - self.mean
        if self.n:
            self.scatter.addr_(difference, difference, alpha=self.n * n / total)
        self.mean += difference * (n / total)
        self.n = total


class LayerSums:
    """What one layer has seen: inputs and output gradients, and through its weight outputs and input gradients."""

    def __init__(self, layer: Layer, normalized: bool) -> None:
        weight = layer.weight.detach()
        device = torch.device("cpu") if weight.device.type == "mps" else weight.device  # MPS has no float64
        self.weight = weight.flatten(1).to(device, torch.float64, copy=True)
        self.bias = None if layer.bias is None else layer.bias.detach().to(device, torch.float64, copy=True)
        self.normalized = normalized
        size_out, size_in = self.weight.shape
        self._h_in, self._g_out = VectorMoments(size_in, device), VectorMoments(size_out, device)
        if normalized:  # otherwise these two follow from the others
            self._h_out, self._g_in = VectorMoments(size_out, device), VectorMoments(size_in, device)

    @property
    def n_samples(self) -> int:
        """Number of input vectors."""
        return self._h_in.n

    def add_activations(self, layer: Layer, inputs: Tensor, outputs: Tensor) -> None:
        """Add what one call of the layer read and returned."""
        for block in _input_blocks(layer, inputs.detach(), self.weight.device):
            self._h_in.add(_unit(block) if self.normalized else block)
        if self.normalized:
            for block in _output_blocks(layer, outputs.detach(), self.weight.device):
                self._h_out.add(_unit(block))

    def add_gradients(self, layer: Layer, gradients: Tensor) -> None:
        """Add the gradients of the summed loss with respect to what one call of the layer returned."""
        for block in _output_blocks(layer, gradients, self.weight.device):
            if self.normalized:
                self._g_in.add(_unit(block @ self.weight))
                _unit(block)
            self._g_out.add(block)

    def pool(self, other: LayerSums) -> None:
        """Add another set of sums of the same layer."""
        for own, new in zip(self._streams(), other._streams(), strict=True):
            own.pool(new)

    def same_layer(self, other: LayerSums) -> bool:
        """Whether weight and bias are equal."""
        same_bias = (self.bias is None) == (other.bias is None)
        if same_bias and self.bias is not None and other.bias is not None:
            same_bias = torch.equal(self.bias, other.bias)
        return same_bias and torch.equal(self.weight, other.weight)

    def is_finite(self, side: str) -> bool:
        """Whether all sums of ``"activations"`` or ``"gradients"`` are finite."""
        streams = self._streams()[0 if side == "activations" else 1 :: 2]
        return all(bool(stream.scatter.diagonal().isfinite().all()) for stream in streams)

    def matrices(self, centered: bool) -> dict[str, Tensor]:
        """The six matrices by their names in ``LayerMoments``."""
        weight = self.weight
        if self.normalized:
            h_out, g_in = self._h_out, self._g_in
        else:
            h_out, g_in = self._h_in.mapped(weight, self.bias), self._g_out.mapped(weight.T)
        streams = {"H_in": self._h_in, "H_out": h_out, "G_in": g_in, "G_out": self._g_out}
        moments = {name: stream.second_moment(centered) for name, stream in streams.items()}
        return moments | {"Z_in": _symmetric(weight.T @ weight), "Z_out": _symmetric(weight @ weight.T)}

    def _streams(self) -> list[VectorMoments]:
        streams = [self._h_in, self._g_out]
        return [*streams, self._h_out, self._g_in] if self.normalized else streams


class Recorder:
    """Hooks that feed the sums of a model's layers during one forward pass; a context manager."""

    def __init__(self, layers: dict[str, Layer], normalized: bool) -> None:
        self._layers = layers
        self._normalized = normalized
        self._forward = True
        self._calls: list[_Call] = []
        self._handles: list[RemovableHandle] = []
        self.sums: dict[str, LayerSums] = {}

    def __enter__(self) -> Recorder:
        for name, layer in self._layers.items():

            def hook(
                layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor, name: str = name
            ) -> Tensor:
                return self._record(name, args[0] if args else kwargs["input"], output)

            self._handles.append(layer.register_forward_hook(hook, prepend=True, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def backward(self, losses: Tensor) -> None:
        """Differentiate the sum of the losses with respect to every recorded output."""
        self._forward = False
        calls = [call for call in self._calls if call.edge is not None]
        edges = [call.edge for call in calls if call.edge is not None]
        gradients: list[Tensor | None] = []
        if edges:
            gradients += torch.autograd.grad(losses, edges, torch.ones_like(losses), allow_unused=True)
        for call in [call for call in self._calls if call.edge is None]:
            self._add_gradient(call, None)
        while calls:  # each gradient is freed once it is used
            self._add_gradient(calls.pop(), gradients.pop())

    def _record(self, name: str, inputs: Tensor, output: Tensor) -> Tensor:
        if not self._forward:  # a checkpoint that computes its outputs again
            return output
        layer = self._layers[name]
        if name not in self.sums:
            self.sums[name] = LayerSums(layer, self._normalized)
        self.sums[name].add_activations(layer, inputs, output)
        if not output.requires_grad:
            output = output.detach().requires_grad_(torch.is_grad_enabled())
        # A node of its own, without a copy: an activation in place on a view would cut the output's node off.
        tap: Tensor = torch.ops.aten._unsafe_view(output, output.shape)
        edge = get_gradient_edge(tap) if tap.requires_grad else None
        self._calls.append(_Call(name, edge, tap.shape))
        return tap

    def _add_gradient(self, call: _Call, gradient: Tensor | None) -> None:
        sums = self.sums[call.name]
        if gradient is None:
            gradient = torch.zeros((), dtype=torch.float64).expand(call.shape)
        sums.add_gradients(self._layers[call.name], gradient)


class _Call(NamedTuple):
    name: str
    edge: torch.autograd.graph.GradientEdge | None  # None: forward has cut the output off the loss
    shape: torch.Size


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients; modes, buffers and random states are as before at the end."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [
        _Buffer(m, key, b, b.detach().clone(), b._version)
        for m in modules
        for key, b in m._buffers.items()
        if b is not None
    ]
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.random.fork_rng(sorted(device.index for device in devices)))
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # it would go round the layers
            for module in modules:
                module.training = False
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            for saved in buffers:
                saved.restore()


class _Buffer(NamedTuple):
    module: nn.Module
    name: str
    tensor: Tensor
    copy: Tensor
    version: int

    def restore(self) -> None:
        self.module._buffers[self.name] = self.tensor
        if self.tensor._version != self.version:
            with torch.no_grad():
                self.tensor.copy_(self.copy)


@contextmanager
def blaming(name: str, condition: str, got: str) -> Iterator[None]:
    """Turn what torch itself raises into an error about an argument; exceptions of the user's code pass."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").split(".")[0] != "torch":
            raise
        raise invalid(name, condition, f"{got}, which fails with {type(error).__name__}: {error}") from error


def _is_measurable(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d)) and type(module).forward in _FORWARDS


def _check_initialized(name: str, module: Any) -> Layer:
    if isinstance(module._parameters.get("weight"), nn.parameter.UninitializedParameter):
        raise invalid("model", "initialised by a first forward pass", f"a lazy layer {name!r}")
    return module


def _input_blocks(layer: Layer, inputs: Tensor, device: torch.device) -> Iterator[Tensor]:
    """The vectors that the layer's weight is applied to, (n, d_in), in float64 blocks that share their memory."""
    if isinstance(layer, nn.Conv2d):
        return _position_blocks(_patches(layer, inputs.reshape(-1, *inputs.shape[-3:])), device)
    return _row_blocks(inputs, device)


def _output_blocks(layer: Layer, outputs: Tensor, device: torch.device) -> Iterator[Tensor]:
    """The vectors of outputs, or of gradients with respect to them, (n, d_out)."""
    if isinstance(layer, nn.Conv2d):
        return _position_blocks(outputs.reshape(-1, *outputs.shape[-3:]).transpose(0, 1), device)
    return _row_blocks(outputs, device)


def _row_blocks(vectors: Tensor, device: torch.device) -> Iterator[Tensor]:
    rows = vectors.reshape(-1, vectors.shape[-1])
    step = _n_rows(rows.shape[1])
    buffer = torch.empty(min(step, len(rows)), rows.shape[1], dtype=torch.float64, device=device)
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        yield buffer[: len(chunk)].copy_(chunk)


def _position_blocks(windows: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Blocks of vectors that have the last three axes (images, height, width) of ``windows`` as their positions."""
    *features, n_images, height, width = windows.shape
    size = math.prod(features)
    n_rows = _n_rows(size)
    images = max(1, n_rows // max(1, height * width))
    lines = height if images > 1 else max(1, min(height, n_rows // max(1, width)))
    buffer = torch.empty(size * min(images, n_images) * lines * width, dtype=torch.float64, device=device)
    for image in range(0, n_images, images):
        for line in range(0, height, lines):
            chunk = windows[..., image : image + images, line : line + lines, :]
            yield buffer[: chunk.numel()].view(chunk.shape).copy_(chunk).view(size, -1).T


def _patches(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """A view of what the kernel sees, (channels, kernel height, kernel width, images, height, width)."""
    padding = _padding(layer)
    if any(padding):
        images = F.pad(images, padding, "constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    n, channels, *extent = images.shape
    positions = [
        (size - gap * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, gap in zip(extent, layer.kernel_size, layer.stride, layer.dilation, strict=True)
    ]
    per_image, per_channel, *per_pixel = images.stride()
    per_tap = [step * gap for step, gap in zip(per_pixel, layer.dilation, strict=True)]
    per_position = [step * stride for step, stride in zip(per_pixel, layer.stride, strict=True)]
    return images.as_strided(
        (channels, *layer.kernel_size, n, *positions),
        (per_channel, *per_tap, per_image, *per_position),
        images.storage_offset(),
    )


def _padding(layer: nn.Conv2d) -> Sequence[int]:
    """Left, right, top, bottom."""
    sides: list[int] = []
    for axis in (1, 0):
        if layer.padding == "same":
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            sides += [total // 2, total - total // 2]
        else:
            sides += [0, 0] if isinstance(layer.padding, str) else [layer.padding[axis]] * 2
    return sides


def _n_rows(size: int) -> int:
    return max(_MIN_ROWS, _BLOCK // max(1, size))


def _unit(block: Tensor) -> Tensor:
    """The same rows at length 1, in place; zeros stay zero."""
    norms = torch.linalg.vector_norm(block, dim=1, keepdim=True)
    return block.div_(norms.masked_fill_(norms == 0, 1.0))


def _symmetric(matrix: Tensor) -> Tensor:
    """The symmetric matrix with the upper triangle of ``matrix``."""
    return matrix.triu().add_(matrix.triu(1).T)
