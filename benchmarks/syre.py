"""What an anchored decay costs: an optimizer step with it, against the optimizer's own weight decay.

Run ``python benchmarks/syre.py [--quick]``. Both train the same network on the same batch; with an anchor at zero they
must agree, which is checked first. Runs alternate and medians count.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from symlearn.models import resnet18
from symlearn.syre import Syre, low_capacity_report


def stepper(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, std: float | None, spread: float = 0.0) -> Callable:
    """One training step: anchored if ``std`` is given, with the decay of torch otherwise."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.0 if std else 5e-4)
    if std:
        Syre(model, weight_decay=5e-4, std=std, spread=spread).attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def milliseconds(functions: list[Callable], repeats: int) -> list[float]:
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, row in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            row.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(row) for row in times]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="an eighth of the width")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    base = resnet18(width_divisor=8 if quick else 2, generator=generator).eval()
    x, y = torch.randn(8, 3, 32, 32, generator=generator), torch.randint(0, 10, (8,), generator=generator)
    twins = [copy.deepcopy(base) for _ in range(2)]
    for model, std in zip(twins, (None, 1e-30), strict=True):
        stepper(model, x, y, std=std)()
    pairs = zip(*(model.parameters() for model in twins), strict=True)
    gap = max(float((p - q).abs().max().detach()) for p, q in pairs)  # decoupled and coupled: lr**2 * decay * gradient
    models = [copy.deepcopy(base) for _ in range(3)]
    steps = [stepper(m, x, y, std=s, spread=r) for m, s, r in zip(models, (None, 1e-3, 1e-3), (0, 0, 0.1), strict=True)]
    plain, anchored, uneven = milliseconds(steps, 5 if quick else 15)
    (report,) = milliseconds([lambda: low_capacity_report(base)], 3)
    n = sum(p.numel() for p in base.parameters())
    print(f"torch {torch.__version__}, one thread; ResNet-18 with {n} parameters, batch of 8; agreement {gap:.0e}")
    print(f"step with weight_decay of torch   {plain:8.1f} ms")
    print(f"step with Syre                    {anchored:8.1f} ms   {anchored / plain:.2f}")
    print(f"step with Syre, spread 0.1        {uneven:8.1f} ms   {uneven / plain:.2f}")
    print(f"low_capacity_report               {report:8.1f} ms")
    return 0 if gap < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
