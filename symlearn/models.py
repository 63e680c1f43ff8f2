"""Reference networks: small perceptrons and convolutional nets, VGG and ResNet in their CIFAR form.

Plain ``torch.nn`` modules with one initialisation: Kaiming-normal weights (fan-in, ReLU gain) in ``modules()`` order,
zero biases, batch norm at its defaults. Everything random comes from ``generator``; without one, from torch's global
generator, which then gives the same weights as a fresh generator of the same seed. A given generator also says on
which device the network lives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from symlearn._checks import check_choice, check_generator, check_int, invalid, wrong_type

__all__ = ["mlp", "resnet18", "small_cnn", "vgg11", "vgg16"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "identity": nn.Identity,
}
Module = TypeVar("Module", bound=nn.Module)
_POOL = "M"
_VGG11 = (64, _POOL, 128, _POOL, 256, 256, _POOL, 512, 512, _POOL, 512, 512)
_VGG16 = (64, 64, _POOL, 128, 128, _POOL, 256, 256, 256, _POOL, 512, 512, 512, _POOL, 512, 512, 512)
_RESNET18 = (64, 64, 128, 128, 256, 256, 512, 512)


def mlp(
    sizes: Sequence[int],
    activation: str = "relu",
    *,
    bias: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Multilayer perceptron: Linear, activation, Linear, ..., Linear.

    Parameters
    ----------
    sizes : sequence of int
        Width of the input, of each hidden layer, and of the output; at least two.
    activation : {"relu", "leaky_relu", "tanh", "gelu", "identity"}
        Between the linear layers, not after the last.
    bias : bool
        Whether the linear layers have biases (zero at the start).
    generator : torch.Generator, optional
        Source of the initial weights.

    Returns
    -------
    nn.Sequential
        Parameters ``"0.weight"``, ``"0.bias"``, ``"2.weight"``, ...

    Raises
    ------
    ValueError
        If there are fewer than two sizes, a size is below 1, or the activation is unknown.
    TypeError
        If an argument has the wrong type.

    Examples
    --------
    >>> model = mlp([64, 100, 10], generator=torch.Generator().manual_seed(0))
    >>> [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    [('0.weight', (100, 64)), ('0.bias', (100,)), ('2.weight', (10, 100)), ('2.bias', (10,))]
    """
    widths = _check_sizes("sizes", sizes)
    if len(widths) < 2:
        raise invalid("sizes", "at least two widths", repr(widths))
    if not isinstance(bias, bool):
        raise wrong_type("bias", "a bool", bias)
    make_activation = _ACTIVATIONS[check_choice("activation", activation, _ACTIVATIONS)]

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out, bias=bias), make_activation()]
        return nn.Sequential(*layers[:-1])

    return _initialised(build, generator)


def small_cnn(
    in_shape: Sequence[int] = (1, 28, 28),
    n_classes: int = 10,
    channels: Sequence[int] = (8, 16),
    *,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Small convolutional net: per channel count a 3 x 3 convolution, ReLU and 2 x 2 max-pooling, then one Linear.

    Parameters
    ----------
    in_shape : sequence of three int
        Channels, height and width of one input.
    n_classes : int
        Number of outputs.
    channels : sequence of int
        Output channels of each convolution; each halves height and width (rounded down).
    generator : torch.Generator, optional
        Source of the initial weights.

    Returns
    -------
    nn.Sequential
        Takes inputs of shape ``(n, *in_shape)``, returns ``(n, n_classes)``.

    Raises
    ------
    ValueError
        If ``in_shape`` has not three entries, ``channels`` is empty, a size is below 1, or the image is too small to be
        halved once per convolution.
    TypeError
        If an argument has the wrong type.

    Examples
    --------
    >>> model = small_cnn(generator=torch.Generator().manual_seed(0))
    >>> sum(p.numel() for p in model.parameters())
    9098
    """
    shape = _check_sizes("in_shape", in_shape)
    if len(shape) != 3:
        raise invalid("in_shape", "three sizes (channels, height, width)", repr(shape))
    widths = _check_sizes("channels", channels)
    if not widths:
        raise invalid("channels", "at least one channel count", repr(widths))
    if min(shape[1:]) < 2 ** len(widths):
        raise invalid(
            "in_shape", f"at least {2 ** len(widths)} x {2 ** len(widths)} pixels", f"{shape[1]} x {shape[2]}"
        )
    n_classes = check_int("n_classes", n_classes, 1)
    n_positions = (shape[1] >> len(widths)) * (shape[2] >> len(widths))

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        for n_in, n_out in zip((shape[0], *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * n_positions, n_classes))

    return _initialised(build, generator)


def vgg11(n_classes: int = 10, *, width_divisor: int = 1, generator: torch.Generator | None = None) -> nn.Sequential:
    """VGG-11 with batch norm for 3 x 32 x 32 inputs: 8 convolutions, one Linear.

    Parameters
    ----------
    n_classes : int
        Number of outputs.
    width_divisor : int
        Divides every channel count; a divisor of 64.
    generator : torch.Generator, optional
        Source of the initial weights.

    Returns
    -------
    nn.Sequential
        Takes inputs of shape ``(n, 3, 32, 32)``, returns ``(n, n_classes)``.

    Raises
    ------
    ValueError
        If ``n_classes`` is below 1 or ``width_divisor`` does not divide 64.
    TypeError
        If an argument has the wrong type.

    References
    ----------
    Simonyan and Zisserman, *Very deep convolutional networks for large-scale image recognition*, ICLR 2015.

    Examples
    --------
    >>> model = vgg11(width_divisor=8, generator=torch.Generator().manual_seed(0))
    >>> sum(p.numel() for p in model.parameters())
    145898
    """
    return _vgg(_VGG11, n_classes, width_divisor, generator)


def vgg16(n_classes: int = 10, *, width_divisor: int = 1, generator: torch.Generator | None = None) -> nn.Sequential:
    """VGG-16 with batch norm for 3 x 32 x 32 inputs: 13 convolutions, one Linear.

    Parameters
    ----------
    n_classes : int
        Number of outputs.
    width_divisor : int
        Divides every channel count; a divisor of 64.
    generator : torch.Generator, optional
        Source of the initial weights.

    Returns
    -------
    nn.Sequential
        Takes inputs of shape ``(n, 3, 32, 32)``, returns ``(n, n_classes)``.

    Raises
    ------
    ValueError
        If ``n_classes`` is below 1 or ``width_divisor`` does not divide 64.
    TypeError
        If an argument has the wrong type.

    References
    ----------
    Simonyan and Zisserman, *Very deep convolutional networks for large-scale image recognition*, ICLR 2015.

    Examples
    --------
    >>> model = vgg16(width_divisor=8, generator=torch.Generator().manual_seed(0))
    >>> sum(p.numel() for p in model.parameters())
    232274
    """
    return _vgg(_VGG16, n_classes, width_divisor, generator)


def resnet18(n_classes: int = 10, *, width_divisor: int = 1, generator: torch.Generator | None = None) -> nn.Module:
    """ResNet-18 in its CIFAR form (3 x 3 stem, no stem pooling) for 3 x 32 x 32 inputs.

    Parameters
    ----------
    n_classes : int
        Number of outputs.
    width_divisor : int
        Divides every channel count; a divisor of 64.
    generator : torch.Generator, optional
        Source of the initial weights.

    Returns
    -------
    nn.Module
        Takes inputs of shape ``(n, 3, 32, 32)``, returns ``(n, n_classes)``. Layers ``conv``, ``bn``, ``blocks.0`` to
        ``blocks.7`` (each ``conv1``, ``bn1``, ``conv2``, ``bn2``, ``shortcut``) and ``fc``.

    Raises
    ------
    ValueError
        If ``n_classes`` is below 1 or ``width_divisor`` does not divide 64.
    TypeError
        If an argument has the wrong type.

    References
    ----------
    He, Zhang, Ren and Sun, *Deep residual learning for image recognition*, CVPR 2016.

    Examples
    --------
    >>> model = resnet18(width_divisor=8, generator=torch.Generator().manual_seed(0))
    >>> sum(p.numel() for p in model.parameters())
    176402
    """
    n_classes = check_int("n_classes", n_classes, 1)
    divisor = _check_divisor(width_divisor)
    return _initialised(lambda: _ResNet([width // divisor for width in _RESNET18], n_classes), generator)


class _BasicBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(n_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(branch + self.shortcut(x))


class _ResNet(nn.Module):
    def __init__(self, widths: Sequence[int], n_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        pairs = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.blocks = nn.Sequential(
            *(_BasicBlock(n_in, n_out, 2 if i in (2, 4, 6) else 1) for i, (n_in, n_out) in enumerate(pairs))
        )
        self.fc = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(features.mean(dim=(-2, -1)))


def _vgg(
    plan: Sequence[int | str], n_classes: int, width_divisor: int, generator: torch.Generator | None
) -> nn.Sequential:
    n_classes = check_int("n_classes", n_classes, 1)
    divisor = _check_divisor(width_divisor)

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        n_in = 3
        for entry in plan:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
            else:
                n_out = entry // divisor
                layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]
                n_in = n_out
        return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(n_in, n_classes))

    return _initialised(build, generator)


def _initialised(build: Callable[[], Module], generator: torch.Generator | None) -> Module:
    check_generator(generator)
    with torch.device("meta"):  # the layers' own initialisation would draw from the global generator
        model = build()
    model.to_empty(device=torch.get_default_device() if generator is None else generator.device)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return model


def _check_sizes(name: str, sizes: Iterable[int]) -> tuple[int, ...]:
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Iterable):
        raise wrong_type(name, "a sequence of integers", sizes)
    return tuple(check_int(f"{name}[{i}]", size, 1) for i, size in enumerate(sizes))


def _check_divisor(width_divisor: int) -> int:
    divisor = check_int("width_divisor", width_divisor, 1)
    if 64 % divisor:
        raise invalid("width_divisor", "a divisor of 64", divisor)
    return divisor
