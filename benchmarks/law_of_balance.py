"""Chains of SGD side by side are a thousand times faster than one after the other, and faster than plain torch.

Run ``python benchmarks/law_of_balance.py [--full]``. All simulate the same algorithm, SGD of a product of weights on
minibatches drawn with replacement: symlearn; a Python loop over chains and steps with NumPy arrays of one chain, as a
first script does it (a few chains are run, and the time is extrapolated in proportion to their number); and loops over
steps that carry all chains, in torch with autograd, in torch with explicit gradients and in NumPy. Agreement is checked
first: the distributions of all ensembles must be those of the closed form. The exit status is 1 if they are not, or if
symlearn is not at least 1000 times faster than the loop over chains and 1.5 times faster than every other.
"""

import argparse
import platform
import sys

import numpy as np
import torch
from common import extra_mib, in_mib, printed_by_child, seconds
from scipy import stats

from symlearn.law_of_balance import RegressionMoments, StationaryDistribution, simulate_sgd

REQUIRED_RATIOS = {"loop over chains": 1000, "torch, autograd": 1.5, "torch, explicit": 1.5, "NumPy, explicit": 1.5}
N_LOOPED = 4
START = 0.5
# A Kolmogorov-Smirnov distance of 4096 exact draws exceeds 0.0255 with a chance of 1 %; the steps are finite.
ALLOWED_DISTANCE = 0.04


def noisy_data():
    x, noise = np.random.default_rng(1).normal(size=(2, 20_000))
    return x, x + 30 * noise


def ours(x, y, depth, lr, n_steps, n_chains, seed):
    return simulate_sgd(x, y, depth=depth, lr=lr, n_steps=n_steps, n_chains=n_chains, init=START, rng=seed).product


def loop_over_chains(x, y, depth, lr, n_steps, n_chains, seed):
    rng, products = np.random.default_rng(seed), []
    for _ in range(n_chains):
        weights = np.full(depth, START)
        for _ in range(n_steps):
            k = rng.integers(len(x))
            error = 2 * x[k] * (np.prod(weights) * x[k] - y[k])
            gradient = np.array([error * np.prod(np.delete(weights, j)) for j in range(depth)])
            weights = weights - lr * gradient
        products.append(np.prod(weights))
    return np.array(products)


def loop_in_numpy(x, y, depth, lr, n_steps, n_chains, seed):
    rng, weights = np.random.default_rng(seed), np.full((depth, n_chains), START)
    for _ in range(n_steps):
        k = rng.integers(len(x), size=n_chains)
        error = 2 * x[k] * (weights.prod(0) * x[k] - y[k])
        others = np.stack([np.delete(weights, j, 0).prod(0) for j in range(depth)])
        weights = weights - lr * error * others
    return weights.prod(0)


def loop_in_torch(x, y, depth, lr, n_steps, n_chains, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y, weights = torch.tensor(x), torch.tensor(y), torch.full((depth, n_chains), START, dtype=torch.float64)
    for _ in range(n_steps):
        k = torch.randint(len(x), (n_chains,), generator=generator)
        error = 2 * x[k] * (weights.prod(0) * x[k] - y[k])
        others = torch.stack([torch.cat([weights[:j], weights[j + 1 :]]).prod(0) for j in range(depth)])
        weights = weights - lr * error * others
    return weights.prod(0).numpy()


def loop_with_autograd(x, y, depth, lr, n_steps, n_chains, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.tensor(x), torch.tensor(y)
    weights = torch.full((depth, n_chains), START, dtype=torch.float64, requires_grad=True)
    for _ in range(n_steps):
        k = torch.randint(len(x), (n_chains,), generator=generator)
        loss = (weights.prod(0) * x[k] - y[k]).square().sum()
        (gradient,) = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            weights -= lr * gradient
    return weights.detach().prod(0).numpy()


LOOPS = {
    "torch, autograd": loop_with_autograd,
    "torch, explicit": loop_in_torch,
    "NumPy, explicit": loop_in_numpy,
}


def agrees(data, depth, lr, n_steps, n_chains):
    """Whether all ensembles have the distribution of the closed form."""
    law = StationaryDistribution(RegressionMoments.from_data(*data), lr, depth)
    good = True
    for name, simulate in {"symlearn": ours, **LOOPS}.items():
        products = simulate(*data, depth, lr, n_steps, n_chains, 0)
        distance = stats.kstest(products[np.isfinite(products)], law.cdf).statistic
        good &= bool(distance < ALLOWED_DISTANCE)
        print(f"depth {depth}, {name}: Kolmogorov-Smirnov distance to the closed form {distance:.4f}")
    return good


def compare(data, depth, lr, n_steps, n_chains, repeats):
    """Smallest margin of the median ratios over what is required."""
    rows, names = [], ["loop over chains", *LOOPS]
    for repeat in range(repeats):
        row = [seconds(lambda seed=repeat: ours(*data, depth, lr, n_steps, n_chains, seed))]
        looped = seconds(lambda seed=repeat: loop_over_chains(*data, depth, lr, n_steps, N_LOOPED, seed))
        row.append(looped * n_chains / N_LOOPED)
        for simulate in LOOPS.values():
            row.append(seconds(lambda f=simulate, seed=repeat: f(*data, depth, lr, n_steps, n_chains, seed)))
        rows.append(row)
    times = np.array(rows)
    ratios = np.median(times / times[:, :1], 0)
    print(f"\n{f'depth {depth}, {n_chains} chains x {n_steps} steps':45s}{'seconds':>10s}{'ratio':>9s}{'steps/s':>10s}")
    labels = ["symlearn", f"loop over chains, from {N_LOOPED} of them", *LOOPS]
    for name, duration, ratio in zip(labels, np.median(times, 0), ratios, strict=True):
        print(f"{name:45s}{duration:10.2f}{ratio:9.1f}{n_chains * n_steps / duration:10.2g}")
    return min(ratio / REQUIRED_RATIOS[name] for name, ratio in zip(names, ratios[1:], strict=True))


def print_extra_memory(n_chains):
    """In a child process of its own: the peak during a simulation, less what was resident before, in MiB."""
    data = noisy_data()
    ours(*data, 3, 1e-4, 2, 8, 0)  # loads what a first call loads
    print(extra_mib(lambda: ours(*data, 3, 1e-4, 200, n_chains, 0)))


def extra_memory(n_chains):
    return in_mib(printed_by_child(__file__, "--memory", n_chains))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="longer runs, and depth 4 as well")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print_extra_memory(arguments.memory)
        return 0
    print(f"Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}")
    torch.set_num_threads(1)
    print("one thread each")
    data = noisy_data()
    moments = RegressionMoments.from_data(*data)
    lr = 0.4 * moments.beta2 / moments.alpha1
    agree = all(agrees(data, depth, lr, 12_000 if arguments.full else 4000, 4096) for depth in (2, 3))
    margins = [
        compare(data, depth, lr, 6000 if arguments.full else 1000, 4096, repeats=3)
        for depth in ((2, 3, 4) if arguments.full else (2, 3))
    ]
    print(
        f"\npeak extra memory of symlearn, 4096 chains: {extra_memory(4096)}; 100 000 chains: {extra_memory(100_000)}"
    )
    return int(not agree or min(margins) < 1)


if __name__ == "__main__":
    sys.exit(main())
