"""A grid of ridge errors over a large spectrum: a Chebyshev series against Newton's method on the full sums.

Run ``python benchmarks/anisotropic_ridge.py [--quick]``. The direct method would take minutes for the whole grid, so it
solves a sample of the points, and its time for the grid is extrapolated in proportion to their number. Agreement on the
sample is checked first; the exit status is 1 if the two disagree or the series takes more memory than it may.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from common import extra_mib, printed_by_child, seconds

from symlearn.anisotropic_ridge import RidgeTheory

TOLERANCE = 1e-10
MEMORY_LIMIT = 100.0  # MiB
FIELDS = ("test", "train", "bias", "variance", "df1", "df2", "kappa")


def problem(quick: bool) -> tuple[RidgeTheory, np.ndarray, np.ndarray]:
    """A power law with its grid of samples (n, 1) and ridges (n,)."""
    index = np.arange(1.0, (20_000 if quick else 100_000) + 1)
    size = 80 if quick else 200
    theory = RidgeTheory(index**-1.5, index**-2, 0.05)
    return theory, np.geomspace(20, 10 * index.size, size)[:, None], np.geomspace(1e-7, 10, size)


def direct_newton(theory: RidgeTheory, n: np.ndarray, ridge: np.ndarray) -> dict[str, np.ndarray]:
    """The same errors for flat arrays of points with ridge > 0, vectorised over points and eigenvalues."""
    s, m, p = theory.eigenvalues, theory.multiplicities, theory.signal
    results = []
    rows = max(1, 200_000 // s.size)
    for start in range(0, n.size, rows):
        size, penalty = n[start : start + rows], ridge[start : start + rows]
        kappa = penalty + s @ m / size
        while True:
            total = kappa[:, None] + s
            learned, missed = s / total, kappa[:, None] / total
            spread = (learned * missed) @ m / size
            slack = np.where(size < m.sum() / 2, 1 - learned @ m / size, (size - m.sum() + missed @ m) / size) + spread
            following = (penalty + kappa * spread) / slack
            if not (following < kappa * (1 - 1e-15)).any():
                break
            kappa = np.minimum(following, kappa)
        df1, df2, bias = learned @ m, learned**2 @ m, missed**2 @ p
        test = (bias + theory.noise_variance) / (penalty / kappa + spread)
        results.append([test, (penalty / kappa) ** 2 * test, bias, df2 / size * test, df1, df2, kappa])
    return dict(zip(FIELDS, np.concatenate(results, axis=1), strict=True))


def print_extra_memory(quick: bool) -> None:
    """In a child process of its own: the peak during the grid, less what was resident before, in MiB."""
    theory, n, ridges = problem(quick)
    theory.risk(n[0, 0], ridges[0])  # loads what a first call loads
    print(extra_mib(lambda: theory.risk(n, ridges)))


def extra_memory(quick: bool) -> float | None:
    return printed_by_child(__file__, "--memory", *(["--quick"] if quick else []))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller spectrum and a smaller grid")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print_extra_memory(arguments.quick)
        return 0

    theory, n, ridges = problem(arguments.quick)
    points = n.size * ridges.size
    sample = np.random.default_rng(0).choice(points, 20 if arguments.quick else 60, replace=False)
    sample_n, sample_ridge = (np.broadcast_to(x, (n.size, ridges.size)).ravel()[sample] for x in (n, ridges))

    grid, reference = theory.risk(n, ridges), direct_newton(theory, sample_n, sample_ridge)
    worst = max(float(np.abs(getattr(grid, name).ravel()[sample] / reference[name] - 1).max()) for name in FIELDS)
    print(f"{theory.eigenvalues.size} eigenvalues, grid of {n.size} x {ridges.size}")
    print(f"largest relative difference on {sample.size} points, all fields: {worst:.1e} (allowed {TOLERANCE:g})")
    if not worst <= TOLERANCE:
        return 1

    times = [
        (seconds(lambda: theory.risk(n, ridges)), seconds(lambda: direct_newton(theory, sample_n, sample_ridge)))
        for _ in range(3 if arguments.quick else 7)
    ]
    series, direct = np.array(times).T
    direct *= points / sample.size
    ratio = direct / series
    print(f"\n{'method':42s}{'seconds':>10s}{'ratio':>8s}")
    print(f"{'symlearn (series), measured':42s}{np.median(series):10.2f}{1:8.0f}")
    label = f"direct Newton, extrapolated from {sample.size} of {points}"
    print(f"{label:42s}{np.median(direct):10.1f}{np.median(ratio):8.0f}")
    print(f"ratios of {len(times)} alternating runs: {ratio.min():.0f} to {ratio.max():.0f}")

    memory = extra_memory(arguments.quick)
    if memory is None:
        print("peak extra memory: not measured on this system")
        return 0
    print(f"peak extra memory of the grid: {memory:.0f} MiB (allowed {MEMORY_LIMIT:.0f})")
    return int(memory > MEMORY_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
