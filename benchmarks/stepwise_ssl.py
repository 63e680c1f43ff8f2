"""The embedding that a kernel model ends with under self-supervised training: in closed form, and by training.

Run ``python benchmarks/stepwise_ssl.py [--full]``. Pairs of noisy digits, RBF kernel. The closed form of
``KernelBarlowTwins`` is compared with full-batch gradient descent on the same loss in the features of the kernel, run
until the loss is gone; scikit-learn's KernelPCA of the same size stands beside it for scale. The weights found by
training must have the least squared norm, the sum of the inverse eigenvalues. Medians of alternating runs, one thread;
the exit status is 1 if that fails or training is faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import numpy as np
import sklearn
from common import seconds
from sklearn.decomposition import KernelPCA
from sklearn.metrics.pairwise import rbf_kernel
from threadpoolctl import threadpool_limits

from symlearn.datasets import digits
from symlearn.stepwise_ssl import KernelBarlowTwins, cross_correlation

TOLERANCE, WIDTH = 0.05, 0.05


def pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = digits(scaling="centered").x_train[:n].astype(float)
    return images + 0.1 * rng.normal(size=images.shape), images + 0.1 * rng.normal(size=images.shape)


def closed_form(x1: np.ndarray, x2: np.ndarray, d: int) -> KernelBarlowTwins:
    return KernelBarlowTwins(d, gamma=WIDTH).fit(x1, x2)


def trained(x1: np.ndarray, x2: np.ndarray, d: int) -> np.ndarray:
    """Gradient descent with half of the largest stable learning rate, to 60 times the last time constant; weights."""
    views = np.vstack([x1, x2])
    values, vectors = np.linalg.eigh(rbf_kernel(views, gamma=WIDTH))
    features = vectors * np.sqrt(values.clip(min=0))
    gamma = cross_correlation(features[: len(x1)], features[len(x1) :])
    eigenvalues = np.linalg.eigvalsh(gamma)[::-1]
    lr = 0.5 / (4 * eigenvalues[0])
    weights = 1e-4 * np.random.default_rng(1).normal(size=(d, len(gamma)))
    for _ in range(int(60 / (8 * eigenvalues[d - 1] * lr)) + 1):
        push = weights @ gamma
        weights += 4 * lr * (np.eye(d) - push @ weights.T) @ push
    return weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="1000 pairs and more rounds")
    arguments = parser.parse_args()
    n, n_rounds = (1000, 7) if arguments.full else (300, 5)
    x1, x2 = pairs(n)
    good = True
    print(f"{n} pairs of digits; numpy {np.__version__}, scikit-learn {sklearn.__version__}, one thread")
    with threadpool_limits(1):
        for d in (2, 8):
            least = float((1 / closed_form(x1, x2, d).eigenvalues_[:d]).sum())
            excess = float(np.square(trained(x1, x2, d)).sum()) / least - 1
            runs = {
                "closed form": lambda d=d: closed_form(x1, x2, d),
                "gradient descent": lambda d=d: trained(x1, x2, d),
                "KernelPCA": lambda d=d: KernelPCA(d, kernel="rbf", gamma=WIDTH).fit(np.vstack([x1, x2])),
            }
            times: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(n_rounds):
                for name, run in runs.items():
                    times[name].append(seconds(run))
            medians = {name: statistics.median(values) for name, values in times.items()}
            print(f"\n{d} dimensions; squared norm after training above the least by {100 * excess:.1f} %")
            for name, value in medians.items():
                print(f"{name:20s}{1e3 * value:10.1f} ms{value / medians['closed form']:8.1f}")
            good &= abs(excess) < TOLERANCE and medians["closed form"] < medians["gradient descent"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
