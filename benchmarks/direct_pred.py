"""What a computed predictor costs in a training step, and what a map of the basin of collapse costs.

Run ``python benchmarks/direct_pred.py [--quick]``. A step of `DirectPredictor` (update, forward, backward) against one
of a trained linear predictor (forward, backward, SGD with momentum) and one of BYOL's predictor with a hidden layer; a
map of basins against ``scipy.integrate.solve_ivp`` point by point, on points where both must agree. Steps alternate and
medians count.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import scipy
import torch
from scipy.integrate import solve_ivp
from torch import nn

from symlearn.direct_pred import ByolDynamics, DirectPredictor, byol_loss


def computed(z: torch.Tensor, goal: torch.Tensor, freq: int) -> Callable[[], None]:
    predictor = DirectPredictor(z.shape[1], freq=freq)

    def step() -> None:
        predictor.update(z)
        byol_loss(predictor(z, update=False), goal).backward()

    return step


def trained(z: torch.Tensor, goal: torch.Tensor, hidden: int) -> Callable[[], None]:
    dim = z.shape[1]
    model: nn.Module = nn.Linear(dim, dim, bias=False)
    if hidden:
        first, last = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        model = nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(), last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        byol_loss(model(z), goal).backward()
        optimizer.step()

    return step


def milliseconds(steps: list[Callable[[], None]], period: int, repeats: int) -> list[float]:
    """Medians over repeats of the mean of ``period`` steps, so that rare refreshes of the weight count in full."""
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats + 1):
        for step, row in zip(steps, times, strict=True):
            start = time.perf_counter()
            for _ in range(period):
                step()
            row.append(1e3 * (time.perf_counter() - start) / period)
    return [statistics.median(row[1:]) for row in times]


def one_by_one(dynamics: ByolDynamics, p: np.ndarray, s: np.ndarray) -> np.ndarray:
    """The basin by integrating each point of its own."""
    k, decay, rate = 1 + dynamics.augmentation_variance, dynamics.weight_decay, dynamics.ema_rate

    def velocity(_: float, y: np.ndarray) -> list[float]:
        w, a, p = y
        a = w if np.isinf(rate) else a
        error = a - k * p * w
        return [p * error - decay * w, 0.0 if np.isinf(rate) else rate * (w - a), w * error - decay * p]

    def end(p0: float, s0: float) -> float:
        start = [s0**0.5, s0**0.5, p0]
        return solve_ivp(velocity, (0, 20 / decay), start, method="LSODA", rtol=1e-7, atol=1e-12).y[0, -1] ** 2

    return np.array([end(*point) for point in zip(p, s, strict=True)]) > 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller embeddings and fewer points")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, scipy {scipy.__version__}, one thread; 512 rows; ms per step")
    print(f"{'dim':>5} {'trained':>9} {'hidden 4x':>10} {'computed':>9} {'freq=10':>9} {'/trained':>9} {'freq=10':>8}")
    for dim in (32, 128) if quick else (32, 128, 256, 512):
        z, goal = torch.randn(512, dim, requires_grad=True), torch.randn(512, dim)
        steps = [trained(z, goal, 0), trained(z, goal, 4 * dim), computed(z, goal, 1), computed(z, goal, 10)]
        plain, deep, every, tenth = milliseconds(steps, 10, 3 if quick else 7)
        row = f"{dim:5d} {plain:9.2f} {deep:10.2f} {every:9.2f} {tenth:9.2f}"
        print(f"{row} {every / plain:9.2f} {tenth / plain:8.2f}")
    agree, n_points, side = True, 40 if quick else 200, 64 if quick else 128
    rng = np.random.default_rng(0)
    p, s = rng.uniform(-1, 2, n_points), rng.uniform(0.001, 1, n_points)
    grid = np.meshgrid(np.linspace(-1, 2, side), np.linspace(0.001, 1, side))
    print(f"basin of {side} x {side} starts, s; one by one from {n_points} points")
    for rate in (np.inf, 0.5):
        dynamics = ByolDynamics(weight_decay=0.05, augmentation_variance=0.2, ema_rate=rate)
        start = time.perf_counter()
        dynamics.basin(*grid)
        middle = time.perf_counter()
        agree &= bool((one_by_one(dynamics, p, s) == dynamics.basin(p, s)).all())
        single, whole = (time.perf_counter() - middle) * side**2 / n_points, middle - start
        print(f"target rate {rate:<4g} {whole:8.3f}   one by one {single:8.1f}   {single / whole:8.0f} times")
    print("both agree on all points:", agree)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
