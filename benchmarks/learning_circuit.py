"""A step of the self-assembling circuit against a step of backpropagation, for several expansions.

Run ``python benchmarks/learning_circuit.py [--full]``. First the assembled one-to-one circuit and torch's SGD are shown
to do the same; then steps alternate, one thread, medians. The number of multiplications predicts a cost of about
``1 + 2 r + r**2`` on top of half a plain step; the exit status is 1 if the two learners disagree.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import seconds
from torch import nn

from symlearn.learning_circuit import SelfAssemblingCircuit

LR, DECAY = 0.1, 1e-3


def backpropagation(circuit: SelfAssemblingCircuit) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """The same network in torch, from the same weights."""
    weights, layers = circuit.weights(), []
    for index, (n, m) in enumerate(zip(circuit.sizes[:-1], circuit.sizes[1:], strict=True), start=1):
        layer = nn.Linear(n, m)
        layer.load_state_dict({"weight": weights[f"W{index}"], "bias": weights[f"c{index}"]})
        layers += [layer, nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    groups = [
        {"params": [layer.weight for layer in linear], "weight_decay": DECAY / LR},
        {"params": [layer.bias for layer in linear]},
    ]
    return model, torch.optim.SGD(groups, lr=LR)


def plain_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> Callable[[], None]:
    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return run


def agree(sizes: tuple[int, ...], x: torch.Tensor, y: torch.Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    circuit = SelfAssemblingCircuit(sizes, lr=LR, decay=DECAY, lateral="identity", generator=generator)
    weights = circuit.weights()
    circuit.load_weights({f"V{index}": weights[f"W{index}"].T for index in range(2, len(sizes))})
    model, optimizer = backpropagation(circuit)
    run = plain_step(model, optimizer, x, y)
    for _ in range(20):
        circuit.step(x, y)
        run()
    expected = model(x).detach()
    difference = float((circuit.predict(x) - expected).abs().max() / expected.abs().max())
    print(f"logits of the assembled circuit and of torch after 20 steps: relative difference {difference:.1e}")
    return difference < 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="a wider network and more rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hidden, n_rounds = (400, 60) if arguments.full else (100, 60)
    sizes = (784, hidden, hidden, hidden, 10)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(128, 784, generator=generator), torch.randint(10, (128,), generator=generator)
    print(f"torch {torch.__version__}, one thread; network {'-'.join(map(str, sizes))}, batch 128")
    good = agree(sizes, x, y)
    circuits = {
        f"circuit, r = {r:g}": SelfAssemblingCircuit(sizes, lr=LR, decay=DECAY, expansion=r, generator=generator)
        for r in (1.0, 2.0, 4.0)
    }
    model, optimizer = backpropagation(next(iter(circuits.values())))
    runs = {"backpropagation": plain_step(model, optimizer, x, y)}
    runs |= {name: (lambda circuit=circuit: circuit.step(x, y)) for name, circuit in circuits.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(n_rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    base = statistics.median(times["backpropagation"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:20s}{1e3 * median:8.2f} ms per step{median / base:8.2f}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
