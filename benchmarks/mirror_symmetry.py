"""Curvature normal to a mirror by Hessian-vector products, against the full Hessian; and what a constraint costs.

Run ``python benchmarks/mirror_symmetry.py [--quick]``. Agreement is checked first; runs alternate and medians count.
The exit status is 1 if the two curvatures disagree or the products are not faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import numpy as np
import torch
from common import seconds
from torch import nn
from torch.nn.utils import parametrize

from symlearn.mirror_symmetry import ConstraintBySymmetry, critical_weight_decay, normal_hessian
from symlearn.models import mlp
from symlearn.symmetry import MirrorSymmetry


def alternate(*functions: Callable[[], object], repeats: int) -> list[float]:
    """Median seconds of each function, called in turn."""
    for function in functions:
        function()
    times = [[seconds(function) for function in functions] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def curvature(width: int, repeats: int) -> bool:
    """The mirror that exchanges two units of a 64-width-10 network: k = 75 directions out of n."""
    model = mlp([64, width, 10], "tanh", generator=torch.Generator().manual_seed(0)).double()
    params = {name: p.detach() for name, p in model.named_parameters()}
    sizes, n = [p.numel() for p in params.values()], sum(p.numel() for p in params.values())
    x = torch.randn(200, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.randint(0, 10, (200,), generator=torch.Generator().manual_seed(2))
    out = sizes[0] + sizes[1]
    first, second = (
        [*range(64 * i, 64 * i + 64), sizes[0] + i, *range(out + i, out + 10 * width, width)] for i in (0, 1)
    )
    mirror = MirrorSymmetry.swap(n, first, second)

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, values, (x,)), y)

    def of_vector(theta: torch.Tensor) -> torch.Tensor:
        parts = theta.split(sizes)
        return loss({name: part.view_as(p) for (name, p), part in zip(params.items(), parts, strict=True)})

    flat = torch.cat([p.flatten() for p in params.values()])

    def by_products() -> float:
        return max(0.0, -float(np.linalg.eigvalsh(normal_hessian(loss, params, mirror))[0]))

    def by_full_hessian() -> float:
        return critical_weight_decay(torch.func.hessian(of_vector)(flat), mirror)

    difference = abs(by_products() - by_full_hessian())
    ours, full = alternate(by_products, by_full_hessian, repeats=repeats)
    times = f"{1e3 * ours:9.1f} ms {1e3 * full:9.1f} ms {full / ours:7.1f}"
    print(f"{width:6d} units {n:7d} parameters: {times}   {difference:.0e}")
    return difference < 1e-10 and full > ours


def constraint_cost(repeats: int) -> None:
    """A training step of a 512 x 512 layer, plain and with 512 constraints."""
    x, plain = torch.randn(64, 512), nn.Linear(512, 512)
    constrained = nn.Linear(512, 512)
    rows = torch.kron(torch.eye(16), torch.ones(1, 512 * 512 // 16))
    parametrize.register_parametrization(constrained, "weight", ConstraintBySymmetry(rows))

    def step(layer: nn.Module) -> None:
        layer(x).square().mean().backward()

    def penalised() -> None:
        (constrained(x).square().mean() + ConstraintBySymmetry.penalty(constrained, 0.1)).backward()

    ours, bare = alternate(penalised, lambda: step(plain), repeats=10 * repeats)
    print(f"step of a 512 x 512 layer with 16 constraints {1e3 * ours:.2f} ms, plain {1e3 * bare:.2f} ms")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small networks only")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread")
    print("exchange of two units, k = 75        products   full Hessian   ratio   difference of thresholds")
    agree = [curvature(width, repeats=3) for width in ((8,) if quick else (8, 16, 32))]
    constraint_cost(repeats=3)
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
