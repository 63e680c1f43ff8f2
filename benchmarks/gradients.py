"""Gradient noise of every hidden unit against torch.func, BackPACK and Opacus: time and peak memory.

Run ``python benchmarks/gradients.py [--full]``. Each method computes the same numbers, Tr[Sigma A] of the rescaling of
each unit of the first hidden layer of a network with two. The methods run in turn, with one thread and with two; a
ratio is the median over rounds of the ratio within a round. Memory is the peak of a child process above what was
resident before the call. A peer that is not installed is left out. The exit status is 1 if results disagree.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from common import extra_mib, printed_by_child, seconds
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from symlearn.gradients import make_sample_loss, noise_covariance_trace
from symlearn.models import mlp
from symlearn.symmetry import Rescaling

SYMMETRY = Rescaling(("0.weight", "0.bias"), "2.weight")
TOLERANCE = 1e-4  # float32 sums over thousands of samples, relative to the largest value


class Problem:
    def __init__(self, full: bool) -> None:
        width, self.n_samples = (512, 8000) if full else (256, 4000)
        generator = torch.Generator().manual_seed(0)
        self.model = mlp([128, width, width, 10], generator=generator)
        self.x = torch.randn(self.n_samples, 128, generator=generator)
        self.y = torch.randint(10, (self.n_samples,), generator=generator)
        self.params = {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def trainable_copy(self) -> nn.Module:
        """A copy in which only the touched parameters require gradients."""
        model = copy.deepcopy(self.model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in SYMMETRY.names)
        return model

    def chunks(self, size: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.x.split(size), self.y.split(size), strict=True))


def noise_from_sums(second: Tensor, first: dict[str, Tensor], n_samples: int) -> Tensor:
    return second / n_samples - SYMMETRY.charge({name: total / n_samples for name, total in first.items()})


def with_symlearn(problem: Problem, chunk_size: int) -> Callable[[], Tensor]:
    sample_loss = make_sample_loss(problem.model, nn.CrossEntropyLoss())
    return lambda: noise_covariance_trace(
        sample_loss, problem.params, problem.x, problem.y, SYMMETRY, chunk_size=chunk_size
    )


def gradients_with_vmap(problem: Problem) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    touched = {name: problem.params[name] for name in SYMMETRY.names}

    def loss(part: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = functional_call(problem.model, {**problem.params, **part}, (x[None],))
        return nn.functional.cross_entropy(output, y[None])

    return lambda x, y: vmap(grad(loss), in_dims=(None, 0, 0))(touched, x, y)


def with_vmap_streaming(problem: Problem) -> Callable[[], Tensor]:
    gradients = gradients_with_vmap(problem)

    def run() -> Tensor:
        second, first = torch.zeros(()), {name: torch.zeros(()) for name in SYMMETRY.names}
        for x, y in problem.chunks(CHUNKS["vmap(grad), streaming"]):
            chunk = gradients(x, y)
            second = second + vmap(SYMMETRY.charge)(chunk).sum(0)
            first = {name: first[name] + chunk[name].sum(0) for name in chunk}
        return noise_from_sums(second, first, problem.n_samples)

    return run


def with_vmap_materialising(problem: Problem) -> Callable[[], Tensor]:
    gradients = gradients_with_vmap(problem)

    def run() -> Tensor:
        everything = gradients(problem.x, problem.y)
        second = vmap(SYMMETRY.charge)(everything).sum(0)
        return noise_from_sums(second, {name: tensor.sum(0) for name, tensor in everything.items()}, problem.n_samples)

    return run


def with_backpack(problem: Problem, chunk_size: int) -> Callable[[], Tensor]:
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    model, criterion = extend(problem.trainable_copy()), extend(nn.CrossEntropyLoss(reduction="sum"))
    touched = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def run() -> Tensor:
        second, first = torch.zeros(()), {name: torch.zeros(()) for name in SYMMETRY.names}
        for x, y in problem.chunks(chunk_size):
            for parameter in touched.values():
                parameter.grad = None
            with backpack(SumGradSquared()):
                criterion(model(x), y).backward()
            squares = {name: parameter.sum_grad_squared for name, parameter in touched.items()}
            incoming = squares["0.weight"].sum(1) + squares["0.bias"]
            second = second + incoming - squares["2.weight"].sum(0)
            first = {name: first[name] + parameter.grad for name, parameter in touched.items()}
        return noise_from_sums(second, first, problem.n_samples)

    return run


def with_opacus(problem: Problem) -> Callable[[], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus import GradSampleModule

        model = GradSampleModule(problem.trainable_copy(), loss_reduction="sum")
    touched = {
        name.removeprefix("_module."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }

    def run() -> Tensor:
        second, first = torch.zeros(()), {name: torch.zeros(()) for name in SYMMETRY.names}
        for x, y in problem.chunks(CHUNKS["Opacus"]):
            model.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
            second = second + vmap(SYMMETRY.charge)({n: p.grad_sample for n, p in touched.items()}).sum(0)
            first = {name: first[name] + parameter.grad for name, parameter in touched.items()}
        return noise_from_sums(second, first, problem.n_samples)

    return run


def one_plain_pass(problem: Problem) -> Callable[[], Tensor]:
    """Not a method: forward and backward pass over all samples, in the same chunks, as a yardstick."""
    model = problem.trainable_copy()

    def run() -> Tensor:
        for x, y in problem.chunks(500):
            model.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
        return torch.zeros(())

    return run


# Each peer in the chunks that suit it best.
CHUNKS = {"vmap(grad), streaming": 32, "Opacus": 32}
METHODS = {
    "symlearn, chunks of 500": lambda problem: with_symlearn(problem, 500),
    "symlearn, chunks of 1000": lambda problem: with_symlearn(problem, 1000),
    "BackPACK, chunks of 500": lambda problem: with_backpack(problem, 500),
    "BackPACK, one batch": lambda problem: with_backpack(problem, problem.n_samples),
    "Opacus": with_opacus,
    "vmap(grad), streaming": with_vmap_streaming,
    "vmap(grad), materialising": with_vmap_materialising,
    "(one plain pass)": one_plain_pass,
}
OURS = "symlearn, chunks of 500"
PACKAGES = {"BackPACK": ("backpack", "backpack-for-pytorch"), "Opacus": ("opacus", "opacus")}
SLOW = ("Opacus", "vmap(grad), streaming", "vmap(grad), materialising")


def print_extra_memory(name: str, full: bool) -> None:
    """In a child process of its own: the peak during a call, less what was resident before, in MiB."""
    torch.set_num_threads(1)
    problem = Problem(full)
    small = copy.copy(problem)
    small.x, small.y, small.n_samples = problem.x[:40], problem.y[:40], 40
    METHODS[name](small)()  # loads what a first call loads
    print(extra_mib(METHODS[name](problem)))


def extra_memory(name: str, full: bool) -> float:
    memory = None
    with suppress(subprocess.CalledProcessError):  # a peer that runs out of memory
        memory = printed_by_child(__file__, "--memory-of", name, *(["--full"] if full else []))
    return float("nan") if memory is None else memory


def times_of(runs: dict[str, Callable[[], Tensor]], n_rounds: int, n_slow: int) -> dict[str, list[float]]:
    """Seconds of each method in every round; the slow ones take part in the first rounds only."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(n_rounds):
        for name, run in runs.items():
            if index < n_slow or name not in SLOW:
                times[name].append(seconds(run))
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="layers of 512 units, 8000 samples, more rounds")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    if arguments.memory_of:
        print_extra_memory(arguments.memory_of, arguments.full)
        return 0

    problem = Problem(arguments.full)
    methods = dict(METHODS)
    n_parameters = sum(tensor.numel() for tensor in problem.params.values())
    print(f"torch {torch.__version__}, {problem.n_samples} samples, {n_parameters} parameters")
    for peer, (module, package) in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            print(f"{peer}: not installed")
            methods = {name: method for name, method in methods.items() if not name.startswith(peer)}
        else:
            print(f"{peer} {importlib.metadata.version(package)}")

    gradients = 4 * problem.n_samples * sum(problem.params[name].numel() for name in SYMMETRY.names) / 2**30
    if gradients > 2:
        print(f"vmap(grad), materialising: left out, its gradients alone would take {gradients:.0f} GiB")
        methods.pop("vmap(grad), materialising")

    torch.set_num_threads(1)
    runs = {name: method(problem) for name, method in methods.items()}
    reference = runs[OURS]()
    agree = True
    for name, run in runs.items():
        if not name.startswith("("):
            difference = float((run() - reference).abs().max() / reference.abs().max())
            agree &= difference <= TOLERANCE
            print(f"{name:28s} differs by {difference:.1e} of the largest value (allowed {TOLERANCE:g})")
    if not agree:
        return 1

    memory = {name: extra_memory(name, arguments.full) for name in methods}
    n_rounds, n_slow = (9, 1) if arguments.full else (15, 1)
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        times = times_of(runs, n_rounds, n_slow)
        ours = np.array(times[OURS])
        head = "1 thread" if n_threads == 1 else f"{n_threads} threads"
        print(f"\n{head:28s}{'ms':>10s}{'/ first':>12s}{'MiB':>10s}{'/ first':>12s}")
        for name, values in times.items():
            ratio = np.median(np.array(values) / ours[: len(values)])
            extra = f"{memory[name]:10.1f}{memory[name] / memory[OURS]:12.1f}" if not name.startswith("(") else ""
            print(f"{name:28s}{1e3 * np.median(values):10.1f}{ratio:12.2f}{extra}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
