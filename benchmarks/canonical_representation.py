"""The probe costs two to three forward and backward passes, and memory that does not grow with the data.

Run ``python benchmarks/canonical_representation.py [--full] [--threads N]``. Three ways through the same batches: a
plain forward and backward pass, the probe, and the direct way, which keeps every activation and gradient and then forms
the four moments in float64. Agreement of the last two is checked first. Times are medians of alternating runs in one
process: compare the ratios. Peak memory is that of a child process, above what it holds before. Exits with an error
when the moments disagree, or (in the full run) when the probe is slower than the direct way or takes more memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from common import extra_mib, printed_by_child
from torch import Tensor, nn

from symlearn.canonical_representation import AlignmentProbe
from symlearn.models import mlp, small_cnn

TOLERANCE = 1e-5  # of the largest entry: the direct way reads outputs that were rounded to float32
Batches = list[tuple[Tensor, Tensor]]
Matrices = dict[str, dict[str, np.ndarray]]


class Block(nn.Module):
    """Attention and a perceptron with residual connections, then a classifier on the mean token."""

    def __init__(self, width: int, heads: int, n_classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.head = (
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
            nn.Linear(width, n_classes),
        )
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


def problem(name: str, full: bool) -> tuple[nn.Module, Batches]:
    """A model with random weights, and batches of 10 classes."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    n_batches = 8 if full else 2
    if name == "MLP":
        model, shape, size = mlp([256, 512, 512, 512, 10], generator=generator), (256,), 1024
    elif name == "CNN":
        model, shape, size = small_cnn(channels=(16, 32), generator=generator), (1, 28, 28), 128
    else:
        model, shape, size = Block(128, 4, 10), (32, 128), 64
    batches = [
        (torch.randn(size, *shape, generator=generator), torch.randint(10, (size,), generator=generator))
        for _ in range(n_batches)
    ]
    return model.eval(), batches


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


def plain(model: nn.Module, batches: Batches) -> Matrices:
    for x, y in batches:
        loss_fn(model(x), y).sum().backward()
        model.zero_grad()
    return {}


def probe(model: nn.Module, batches: Batches) -> Matrices:
    with AlignmentProbe(model) as probe:
        for x, y in batches:
            probe.update(x, y, loss_fn)
    return {name: vars(layer) for name, layer in probe.moments().items()}


def direct(model: nn.Module, batches: Batches) -> Matrices:
    """Keep everything, then one product per moment."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    kept: dict[str, tuple[list[Tensor], list[Tensor], list[Tensor]]] = {name: ([], [], []) for name in layers}

    def rows(layer: nn.Module, values: Tensor) -> Tensor:
        return (values.flatten(2).transpose(1, 2) if isinstance(layer, nn.Conv2d) else values).flatten(0, -2)

    def hook(name: str) -> Callable:
        def keep(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            inputs = args[0].detach()
            if isinstance(layer, nn.Conv2d):
                patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
                kept[name][0].append(patches.transpose(1, 2).flatten(0, 1))
            else:
                kept[name][0].append(inputs.flatten(0, -2).clone())
            kept[name][1].append(rows(layer, output.detach()).clone())
            output.register_hook(lambda gradient: kept[name][2].append(rows(layer, gradient).clone()))

        return keep

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    plain(model, batches)
    for handle in handles:
        handle.remove()
    result: Matrices = {}
    for name, layer in layers.items():
        weight = layer.weight.detach().flatten(1).double()
        h_in, h_out, g_out = (torch.cat(parts).double() for parts in kept.pop(name))
        vectors = {"H_in": h_in, "H_out": h_out, "G_in": g_out @ weight, "G_out": g_out}
        moments = {key: v.T @ v / len(v) for key, v in vectors.items()}
        moments |= {"Z_in": weight.T @ weight, "Z_out": weight @ weight.T}
        result[name] = {key: matrix.numpy() for key, matrix in moments.items()}
    return result


METHODS: dict[str, Callable[[nn.Module, Batches], Matrices]] = {"plain": plain, "probe": probe, "direct": direct}


def difference(first: Matrices, second: Matrices) -> float:
    """Largest difference of entries, relative to the largest entry of each matrix."""
    return max(
        float(np.abs(first[name][key] - matrix).max() / np.abs(matrix).max())
        for name, matrices in second.items()
        for key, matrix in matrices.items()
    )


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def print_extra_memory(name: str, method: str, full: bool) -> None:
    """The peak during a run in this process, less what was resident before, in MiB."""
    model, batches = problem(name, full)
    METHODS[method](model, [(x[:2], y[:2]) for x, y in batches[:1]])  # loads what a first call loads
    print(extra_mib(lambda: METHODS[method](model, batches)))


def extra_memory(name: str, method: str, full: bool) -> float | None:
    options = ["--threads", torch.get_num_threads(), *(["--full"] if full else [])]
    return printed_by_child(__file__, "--memory", name, method, *options)


def compare(name: str, full: bool) -> bool:
    """One table; whether the moments agree and the probe wins."""
    model, batches = problem(name, full)
    worst = difference(probe(model, batches), direct(model, batches))
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(5 if full else 3):
        for method, run in METHODS.items():
            times[method].append(seconds(lambda run=run: run(model, batches)))
    medians = {method: statistics.median(values) for method, values in times.items()}
    memory = {method: extra_memory(name, method, full) for method in METHODS}
    print(f"\n{name}: {len(batches)} batches of {tuple(batches[0][0].shape)}; largest relative difference {worst:.0e}")
    print(f"{'':8}{'seconds':>9}{'to plain':>10}{'MiB':>8}")
    for method, value in medians.items():
        mebibytes = "" if memory[method] is None else f"{memory[method]:.0f}"
        print(f"{method:8}{value:9.3f}{value / medians['plain']:10.2f}{mebibytes:>8}")
    smaller = memory["probe"] is None or memory["probe"] < memory["direct"]
    return worst < TOLERANCE and (not full or (smaller and medians["probe"] < medians["direct"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more batches and runs; the probe has to win")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one is disturbed least by other programs")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print_extra_memory(*arguments.memory, arguments.full)
        return 0
    print(f"torch {torch.__version__}, numpy {np.__version__}, {torch.get_num_threads()} thread(s)")
    good = [compare(name, arguments.full) for name in ("MLP", "CNN", "transformer")]
    if not all(good):
        print("error: the moments disagree, or the probe does not win")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
