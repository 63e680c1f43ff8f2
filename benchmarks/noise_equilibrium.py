"""The noise equilibrium of a network: gradients once and algebra along the orbit, against fresh gradients per sweep.

Run ``python benchmarks/noise_equilibrium.py [--quick]``. Both solve the joint equilibrium of two hidden layers of a
perceptron on digits; that they agree is checked first. Runs alternate and medians count.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch
from common import seconds
from torch import nn

from symlearn.datasets import digits
from symlearn.gradients import make_sample_loss, noise_covariance_trace
from symlearn.models import mlp
from symlearn.noise_equilibrium import equilibrium
from symlearn.symmetry import Rescaling, Scale

TEMPERATURE, DECAY = 0.01, 1e-3


def problem(width: int, n_samples: int) -> tuple:
    """Loss, parameters, one rescaling per hidden layer, and the data."""
    model = mlp([64, width, width, 10], generator=torch.Generator().manual_seed(0)).double()
    params = {name: p.detach() for name, p in model.named_parameters()}
    data = digits()
    layers = [Rescaling(("0.weight", "0.bias"), "2.weight"), Rescaling(("2.weight", "2.bias"), "4.weight")]
    x, y = torch.tensor(data.x_train[:n_samples]).double(), torch.tensor(data.y_train[:n_samples])
    return make_sample_loss(model, nn.CrossEntropyLoss()), params, layers, x, y


def measured_anew(sample_loss, params, layers, x, y, tol: float = 1e-8) -> dict[str, torch.Tensor]:
    """The same sweeps, with the noise of every point from fresh gradients."""
    change = 1.0
    while change > tol:
        change = 0.0
        for layer in layers:
            incoming = Scale(layer.incoming, per_unit=True)
            noise_in = noise_covariance_trace(sample_loss, params, x, y, incoming)
            noise_out = noise_in - noise_covariance_trace(sample_loss, params, x, y, layer)
            size_in = incoming.charge(params)
            size_out = size_in - layer.charge(params)
            up, down = TEMPERATURE * noise_in + 2 * DECAY * size_out, TEMPERATURE * noise_out + 2 * DECAY * size_in
            amount = 0.25 * (up / down).log()
            params = layer.act(params, amount)
            change = max(change, float(amount.abs().max()))
    return params


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small networks only")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread\n units samples      once     anew  ratio   difference")
    worst = 0.0
    for width, n_samples in ((32, 300),) if quick else ((32, 300), (128, 1400)):
        arguments = problem(width, n_samples)

        def once(arguments=arguments):
            return equilibrium(*arguments, temperature=TEMPERATURE, weight_decay=DECAY, tol=1e-8).params

        def anew(arguments=arguments):
            return measured_anew(*arguments)

        ours, theirs = once(), anew()
        difference = max(float((ours[k] - theirs[k]).abs().max()) for k in ours)
        times = [(seconds(once), seconds(anew)) for _ in range(3)]
        one, other = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{width:6d} {n_samples:7d} {one:7.2f} s {other:6.2f} s {other / one:6.1f}   {difference:.0e}")
        worst = max(worst, difference)
    return 0 if worst < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
