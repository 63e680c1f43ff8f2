"""Time to a duality gap of 1e-6: SpredRegressor against scikit-learn, celer and skglm.

Run ``python benchmarks/spred.py [--full] [--json FILE]``. Every solver runs at the loosest tolerance of a ladder of
decades at which its solution has a duality gap of at most 1e-6 times ``|y|^2 / n``; the gap is computed here, the same
way for all. Agreement is checked first: gaps, coefficients and support against ``Lasso`` at a tight tolerance. Then the
solvers alternate and medians count. One BLAS thread, ``fit`` on Fortran-ordered float64 data without an intercept;
peers that are not installed are left out. The exit status is 1 if solutions disagree or a solver misses the gap.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn
from common import extra_mib, in_mib, printed_by_child, seconds
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from threadpoolctl import threadpool_limits

from symlearn.spred import SpredRegressor, lasso_kkt_violation

GAP = 1e-6
LADDER = 10.0 ** -np.arange(2, 13)
# (n, p), correlation of neighbouring features, alpha / alpha_max
SHAPES = {
    "quick": [(200, 1000), (1000, 200), (500, 2000), (2000, 500)],
    "full": [(200, 1000), (1000, 200), (500, 500), (500, 2000), (2000, 500), (400, 4000), (5000, 200), (1000, 5000)],
}
CORRELATIONS = {"quick": [0.5, 0.9], "full": [0.0, 0.5, 0.9]}
FRACTIONS = {"quick": [0.2, 0.02], "full": [0.5, 0.2, 0.05, 0.02]}


def problem(n: int, p: int, correlation: float) -> tuple[np.ndarray, np.ndarray]:
    """Features of an autoregressive sequence, and targets with min(n, p) / 20 true ones and as much noise as half."""
    rng = np.random.default_rng(0)
    X = np.asfortranarray(rng.standard_normal((n, p)))
    for j in range(1, p):
        X[:, j] = correlation * X[:, j - 1] + np.sqrt(1 - correlation**2) * X[:, j]
    coef = np.zeros(p)
    n_true = max(5, min(n, p) // 20)
    coef[rng.choice(p, n_true, replace=False)] = rng.standard_normal(n_true)
    signal = X @ coef
    return X, signal + signal.std() / 2 * rng.standard_normal(n)


def solvers() -> tuple[dict[str, Callable[[float, float], Any]], list[str]]:
    """Estimators by name, each made from alpha and a tolerance; and a line on each version."""
    found: dict[str, Callable[[float, float], Any]] = {
        "symlearn": lambda alpha, tol: SpredRegressor(alpha, fit_intercept=False, tol=tol),
        "scikit-learn": lambda alpha, tol: Lasso(alpha=alpha, fit_intercept=False, tol=tol, max_iter=100_000),
    }
    versions = [f"numpy {np.__version__}", f"scipy {scipy.__version__}", f"scikit-learn {sklearn.__version__}"]
    for name in ("celer", "skglm"):
        try:
            peer = importlib.import_module(name)
        except ImportError:
            versions.append(f"{name} not installed")
            continue
        found[name] = lambda alpha, tol, peer=peer: peer.Lasso(alpha=alpha, fit_intercept=False, tol=tol)
        versions.append(f"{name} {peer.__version__}")
    return found, versions


def relative_gap(X: np.ndarray, y: np.ndarray, coef: np.ndarray, alpha: float) -> float:
    residual = y - X @ coef
    scale = min(1.0, alpha * len(y) / np.abs(X.T @ residual).max())
    primal = residual @ residual / 2 + len(y) * alpha * np.abs(coef).sum()
    dual = y @ y / 2 - np.square(scale * residual - y).sum() / 2
    return float((primal - dual) / (y @ y))


def loosest(make: Callable[[float, float], Any], X: np.ndarray, y: np.ndarray, alpha: float) -> float | None:
    """The largest tolerance of the ladder that gives the gap."""
    for tol in LADDER:
        if relative_gap(X, y, np.ravel(make(alpha, tol).fit(X, y).coef_), alpha) <= GAP:
            return float(tol)
    return None


def agreement(X: np.ndarray, y: np.ndarray, alpha: float) -> tuple[np.ndarray, bool]:
    """Our coefficients, and whether objective, coefficients and support are those of Lasso at a tight tolerance."""
    ours = SpredRegressor(alpha, fit_intercept=False).fit(X, y).coef_
    theirs = Lasso(alpha=alpha, fit_intercept=False, tol=1e-13, max_iter=100_000).fit(X, y).coef_
    values = [np.square(y - X @ w).mean() / 2 + alpha * np.abs(w).sum() for w in (ours, theirs)]
    same = abs(values[0] - values[1]) <= 1e-10 * values[1] and np.abs(ours - theirs).max() <= 1e-4 * np.abs(ours).max()
    # Where theirs is a small coefficient, its own convergence decides whether it is exactly zero yet.
    clear = np.abs(theirs) > 1e-4 * np.abs(theirs).max()
    support = (ours[clear] != 0).all() and (theirs[np.abs(ours) > 1e-4 * np.abs(ours).max()] != 0).all()
    return ours, bool(same and support and lasso_kkt_violation(X, y, ours, alpha) <= 1e-9 * alpha)


def measure(n: int, p: int, correlation: float, fraction: float, repeats: int) -> dict[str, Any]:
    X, y = problem(n, p, correlation)
    alpha = fraction * np.abs(X.T @ y).max() / n
    coef, agrees = agreement(X, y, alpha)
    makes, _ = solvers()
    tolerances = {name: loosest(make, X, y, alpha) for name, make in makes.items()}
    fits = {
        name: lambda make=makes[name], tol=tol: make(alpha, tol).fit(X, y)
        for name, tol in tolerances.items()
        if tol is not None
    }
    times = [{name: seconds(fit) for name, fit in fits.items()} for _ in range(repeats)]
    medians = {name: 1e3 * statistics.median(run[name] for run in times) for name in fits}
    support = int(np.count_nonzero(coef))
    return {
        "n": n,
        "p": p,
        "correlation": correlation,
        "fraction": fraction,
        "support": support,
        "sparse": support < min(n, p) / 8,
        "milliseconds": {name: medians.get(name) for name in makes},
        "gaps": {name: relative_gap(X, y, np.ravel(fit().coef_), alpha) for name, fit in fits.items()},
        "ratio": medians["symlearn"] / min(value for name, value in medians.items() if name != "symlearn"),
        "kkt": lasso_kkt_violation(X, y, coef, alpha) / alpha,
        "agrees": agrees,
    }


def verdict(ratio: float) -> str:
    return "win" if ratio < 0.95 else "level" if ratio <= 1.05 else "loss"


def print_row(row: dict[str, Any]) -> None:
    shape = f"{row['n']} x {row['p']}"
    times = "".join(f"{'-' if t is None else format(t, '.2f'):>14s}" for t in row["milliseconds"].values())
    mark = " *" if row["sparse"] else "  "
    print(
        f"{shape:>12s}{row['correlation']:6.1f}{row['fraction']:7.2f}{row['support']:8d}{mark}"
        f"{times}{row['ratio']:8.2f}  {verdict(row['ratio'])}{'' if row['agrees'] else '  DISAGREES'}",
        flush=True,
    )


def summarise(rows: list[dict[str, Any]], label: str) -> str:
    if not rows:
        return f"{label}: none"
    ratios = np.array([row["ratio"] for row in rows])
    words = [verdict(ratio) for ratio in ratios]
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("win", "level", "loss"))
    mean = float(np.exp(np.log(ratios).mean()))
    return f"{label}: {len(rows)} problems, {counts}; geometric mean ratio {mean:.2f}, worst {ratios.max():.2f}"


def print_extra_memory(name: str) -> None:
    """In a child process of its own: the peak during a fit, less what was resident before, in MiB."""
    make = solvers()[0][name]
    small, large = problem(50, 100, 0.5), problem(500, 4000, 0.5)
    make(0.1, 1e-6).fit(*small)  # loads and compiles what a first call needs
    alpha = 0.1 * np.abs(large[0].T @ large[1]).max() / 500
    print(extra_mib(lambda: make(alpha, 1e-6).fit(*large)))


def print_memory() -> None:
    print("peak extra memory of a fit, 500 x 4000 (X takes 15 MiB), alpha = 0.1 alpha_max:")
    for name in solvers()[0]:
        print(f"{name:>14s}{in_mib(printed_by_child(__file__, '--memory', name)):>14s}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="the whole grid, about ten minutes")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to a file")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    with threadpool_limits(limits=1):
        if arguments.memory:
            print_extra_memory(arguments.memory)
            return 0
        grid = "full" if arguments.full else "quick"
        names, versions = solvers()
        print(", ".join(versions))
        print("milliseconds to a duality gap of 1e-6 |y|^2 / n; ratio: ours to the fastest other")
        print("* support below min(n, p) / 8")
        header = f"{'n x p':>12s}{'corr':>6s}{'alpha':>7s}{'support':>8s}  " + "".join(f"{name:>14s}" for name in names)
        print(header + f"{'ratio':>8s}")
        rows = []
        for n, p in SHAPES[grid]:
            for correlation in CORRELATIONS[grid]:
                for fraction in FRACTIONS[grid]:
                    rows.append(measure(n, p, correlation, fraction, 11 if arguments.full else 5))
                    print_row(rows[-1])
        print(summarise([row for row in rows if row["sparse"]], "sparse"))
        print(summarise([row for row in rows if not row["sparse"]], "dense"))
        print_memory()
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
    complete = all(None not in row["milliseconds"].values() for row in rows)
    return int(not (complete and all(row["agrees"] for row in rows)))


if __name__ == "__main__":
    sys.exit(main())
