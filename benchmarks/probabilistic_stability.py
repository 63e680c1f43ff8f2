"""A phase diagram in one batch of cells and runs is at least ten times faster than a NumPy loop over the cells.

Run ``python benchmarks/probabilistic_stability.py [--full]``. The loop is vectorised over runs and simulates the two
weights of the network as anybody would, in float64; a second one is in float32. Both would take long for the whole
grid, so they do a sample of the cells, and their times are extrapolated in proportion to the number. A second table
compares the two routes to the exponents of a torch model. ``--full`` also simulates 100 x 100 cells x 1000 runs x 2000
steps. Agreement is checked first; the exit status is 1 if results disagree or the first ratio is below ten.
"""

import argparse
import platform
import sys

import numpy as np
import torch
from common import extra_mib, in_mib, printed_by_child, seconds
from sklearn.datasets import load_digits

from symlearn.probabilistic_stability import phase_diagram, sgd_lyapunov_exponents

REQUIRED_RATIO = 10
INIT_STD = 1e-3
SADDLE_TOL = 1e-3
N_SAMPLED = 6


def cells(size):
    """Learning rates (size, 1) and labels (size, 2) of the two-point data."""
    values = np.linspace(1 / size, 1, size)
    return values[:, None], np.stack([np.ones(size), values - 1], -1)


def ours(size, n_runs, n_steps, **options):
    lr, y = cells(size)
    generator = torch.Generator().manual_seed(0)
    return phase_diagram(
        [1.0, 1.0], y, lr, n_runs=n_runs, n_steps=n_steps, init_std=INIT_STD, saddle_tol=SADDLE_TOL,
        generator=generator, **options,
    )  # fmt: skip


def loop(chosen, n_runs, n_steps, rng, dtype=np.float64):
    """Fractions (cells, 4) by plain SGD on u and w, one cell after the other."""
    fractions = []
    for lr, y in chosen:
        u, w = INIT_STD * rng.normal(size=(2, n_runs)).astype(dtype)
        labels, lr = y.astype(dtype), dtype(lr)
        for _ in range(n_steps):
            step = 2 * lr * (u * w - np.where(rng.random(n_runs, dtype=dtype) < 0.5, *labels))
            u, w = u - step * w, w - step * u
        size = u.astype(float) ** 2 + w.astype(float) ** 2
        unstable = ~(size <= 1e12)
        saddle = ~unstable & (size < SADDLE_TOL**2)
        right = ~unstable & ~saddle & ((u * w >= 0) == (y.mean() >= 0))
        correct, rest = right.mean(), unstable.mean() + saddle.mean()
        fractions.append([correct, 1 - correct - rest, saddle.mean(), unstable.mean()])
    return np.array(fractions)


def print_extra_memory(size, n_runs):
    """In a child process of its own: the peak during the diagram, less what was resident before, in MiB."""
    ours(4, 100, 10)  # loads what a first call loads
    print(extra_mib(lambda: ours(size, n_runs, 200)))


def extra_memory(size, n_runs):
    return in_mib(printed_by_child(__file__, "--memory", size, n_runs))


def compare_diagrams(size, n_runs, n_steps, repeats):
    """Ratio of the first loop's time, extrapolated to the grid, to ours; None if the two disagree."""
    rng = np.random.default_rng(0)
    lr, y = cells(size)
    index = rng.choice(size * size, N_SAMPLED * repeats, replace=False)
    chosen = [(float(lr[i // size, 0]), y[i % size]) for i in index]
    with np.errstate(all="ignore"):
        expected = loop(chosen, n_runs, n_steps, rng)
        found = ours(size, n_runs, n_steps).fractions.reshape(-1, 4)[index]
        stderr = np.sqrt(np.maximum(expected * (1 - expected), 1 / n_runs) * 2 / n_runs)
        worst = float((np.abs(found - expected) / stderr).max())
        print(f"largest difference on {len(index)} cells: {worst:.1f} standard errors (allowed 5)")
        if worst > 5:
            return None
        times = []
        for start in range(0, len(chosen), N_SAMPLED):
            part = chosen[start : start + N_SAMPLED]
            row = [seconds(lambda: ours(size, n_runs, n_steps))]
            for dtype in (np.float64, np.float32):
                sampled = seconds(lambda part=part, dtype=dtype: loop(part, n_runs, n_steps, rng, dtype))
                row.append(sampled * size**2 / N_SAMPLED)
            times.append(row)
    times = np.array(times)
    ratios = times / times[:, :1]
    head = f"phase diagram, {size} x {size} cells, {n_runs} runs, {n_steps} steps"
    print(f"\n{head:60s}{'seconds':>9s}{'ratio':>7s}{'lowest':>8s}{'highest':>9s}")
    names = (
        "symlearn (float32), measured",
        *(f"NumPy loop, {d}, from {N_SAMPLED} cells" for d in ("float64", "float32")),
    )
    for name, column, ratio in zip(names, times.T, ratios.T, strict=True):
        print(f"{name:60s}{np.median(column):9.2f}{np.median(ratio):7.1f}{ratio.min():8.1f}{ratio.max():9.1f}")
    print(f"updates of a run per second: {size**2 * n_runs * n_steps / np.median(times[:, 0]):.2g}")
    print(f"peak extra memory: {extra_memory(size, n_runs)}")
    return float(np.median(ratios[:, 1]))


def zero_neuron(n_inputs):
    """A hidden tanh unit at zero on the digits, with noisy labels: loss, parameters and data."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    x = digits.data[:, :n_inputs] / np.sqrt((digits.data**2).sum(1).mean())
    labels = np.where(digits.target >= 5, 1.0, -1.0) * np.where(rng.random(len(x)) < 0.3, -1, 1)

    def batch_loss(params, x, y):
        return (params["out"] * torch.tanh(x @ params["in"]) - y).square().mean()

    params = {"in": torch.zeros(n_inputs), "out": torch.zeros(())}
    return batch_loss, params, (torch.tensor(x, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32))


def compare_routes(repeats):
    """Whether the dense and the matrix-free exponents agree."""
    print(f"\n{'exponents of a torch model, 16 chains x 550 steps':60s}{'seconds':>9s}{'ratio':>7s}")
    agree = True
    for n_inputs, k in ((8, 1), (64, 1), (64, 3)):
        problem = zero_neuron(n_inputs)

        def exponents(method, problem=problem, k=k):
            generator = torch.Generator().manual_seed(0)
            return sgd_lyapunov_exponents(*problem, 0.1, 1, k=k, method=method, generator=generator).exponents

        agree &= bool(np.allclose(exponents("dense"), exponents("hvp"), atol=1e-5))
        times = [[seconds(lambda m=method: exponents(m)) for method in ("dense", "hvp")] for _ in range(repeats)]
        dense, hvp = np.median(times, 0)
        print(f"{f'dense, {n_inputs + 1} parameters, k = {k}':60s}{dense:9.2f}{1:7.1f}")
        print(f"{f'hvp,   {n_inputs + 1} parameters, k = {k}':60s}{hvp:9.2f}{hvp / dense:7.1f}")
    print(f"exponents agree within 1e-5: {agree}")
    return agree


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also 100 x 100 cells x 1000 runs x 2000 steps")
    parser.add_argument("--memory", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print_extra_memory(*arguments.memory)
        return 0
    print(f"Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}")
    ratio = compare_diagrams(40, 1000, 1000, repeats=5)
    agree = compare_routes(repeats=3)
    if arguments.full:
        duration = seconds(lambda: ours(100, 1000, 2000))
        print(f"\n100 x 100 cells x 1000 runs x 2000 steps, one thread: {duration:.1f} s")
        print(f"updates of a run per second: {2e10 / duration:.2g}; peak extra memory: {extra_memory(100, 1000)}")
    return int(ratio is None or ratio < REQUIRED_RATIO or not agree)


if __name__ == "__main__":
    sys.exit(main())
