"""A training step of a linearised network against a plain step, and against a linear model on explicit Jacobians.

Run ``python benchmarks/kernel_learning.py [--full]``. Outputs of the two linear models are compared first;
times are medians of alternating runs on one thread. The exit status is 1 if they disagree, or if ``linearize`` is not
faster than explicit Jacobians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import seconds
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from symlearn.kernel_learning import linearize
from symlearn.models import mlp, small_cnn

TOLERANCE = 1e-4


class ExplicitJacobian(nn.Module):
    """f(x) + J(x) (theta - theta_0) with the Jacobian of every sample formed anew."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.origin = {name: value.detach().clone() for name, value in model.named_parameters()}
        self.theta = nn.ParameterList(value.clone() for value in self.origin.values())

    def forward(self, x: Tensor) -> Tensor:
        def one(params: dict[str, Tensor], sample: Tensor) -> Tensor:
            return functional_call(self.model, params, (sample[None],))[0]

        jacobians = vmap(jacrev(one), (None, 0))(self.origin, x)
        output = functional_call(self.model, self.origin, (x,))
        for (name, start), theta in zip(self.origin.items(), self.theta, strict=True):
            output = output + jacobians[name].flatten(2) @ (theta - start).flatten()
        return output


def step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return run


def compare(name: str, model: nn.Module, shape: tuple[int, ...], n_rounds: int) -> bool:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, *shape, generator=generator)
    y = torch.randint(10, (64,), generator=generator)
    linear, explicit = linearize(model), ExplicitJacobian(model)
    with torch.no_grad():
        for theta, other in zip(linear.parameters(), explicit.theta, strict=True):
            change = 0.01 * torch.randn(theta.shape, generator=generator)
            theta.add_(change)
            other.add_(change)
        difference = float((linear(x) - explicit(x)).abs().max() / linear(x).abs().max())
    runs = {"plain": step(model, x, y), "linearize": step(linear, x, y), "explicit Jacobians": step(explicit, x, y)}
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(n_rounds):
        for key, run in runs.items():
            times[key].append(seconds(run))
    medians = {key: statistics.median(values) for key, values in times.items()}
    n_parameters = sum(each.numel() for each in model.parameters())
    print(f"\n{name}, {n_parameters} parameters, batch 64; largest relative difference {difference:.1e}")
    for key, value in medians.items():
        print(f"{key:20s}{1e3 * value:10.1f} ms{value / medians['plain']:8.1f} plain steps")
    return difference < TOLERANCE and medians["linearize"] < medians["explicit Jacobians"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="more rounds and a wider network")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread")
    width, n_rounds = (512, 15) if arguments.full else (128, 7)
    generator = torch.Generator().manual_seed(0)
    good = compare("perceptron", mlp([64, width, width, 10], "gelu", generator=generator), (64,), n_rounds)
    good &= compare("convolutional", small_cnn(generator=generator), (1, 28, 28), n_rounds)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
