"""Paths of many solvable networks: the closed form for all at once, against integrating each or stepping all of them.

Run ``python benchmarks/feature_learning.py [--full]``. The integrator is SciPy's Runge-Kutta of order 8, one network at
a time; the stepper is gradient descent in NumPy on all of them. That they agree is checked first, runs alternate and
medians count. Peak memory is that of a child process which does the one thing only.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import numpy as np
import scipy
from common import extra_mib, in_mib, printed_by_child, seconds
from scipy.integrate import solve_ivp

from symlearn.feature_learning import SolvableModel

TIMES = np.linspace(0, 5, 51)
STEP = 0.002


def network(n_models: int, width: int) -> SolvableModel:
    rng = np.random.default_rng(0)
    w0, u0 = rng.normal(size=(2, n_models, width))
    return SolvableModel(w0, u0, scale=width**-0.5, lr_out=0.5, xy=rng.normal(size=n_models))


def closed_form(model: SolvableModel) -> np.ndarray:
    """Weights (n, T, d), and all the scalars."""
    return model.trajectory(TIMES).w


def integrated(model: SolvableModel) -> np.ndarray:
    d, paths = model.w0.shape[-1], []
    for w0, u0, scale, xy in zip(model.w0, model.u0, model.scale, model.xy, strict=True):

        def flow(_, both, scale=scale, xy=xy):
            w, u = both[:d], both[d:]
            residual = scale * (xy - scale * (u @ w))
            return np.concatenate([residual * u, 0.5 * residual * w])

        start = np.concatenate([w0, u0])
        path = solve_ivp(flow, (0, TIMES[-1]), start, method="DOP853", t_eval=TIMES, rtol=1e-9, atol=1e-11)
        paths.append(path.y[:d].T)
    return np.stack(paths)


def stepped(model: SolvableModel) -> np.ndarray:
    w, u, scale, xy = model.w0, model.u0, model.scale[:, None], model.xy[:, None]
    every, paths = round((TIMES[1] - TIMES[0]) / STEP), [model.w0]
    for step in range(1, every * (len(TIMES) - 1) + 1):
        residual = STEP * scale * (xy - scale * (u * w).sum(-1, keepdims=True))
        w, u = w + residual * u, u + 0.5 * residual * w
        if step % every == 0:
            paths.append(w)
    return np.stack(paths, axis=1)


WAYS = {"closed form": closed_form, "DOP853, one by one": integrated, "descent, all at once": stepped}


def timed(way, n_models: int, width: int) -> float:
    """Seconds for a model that has not been used: it keeps its modes."""
    model = network(n_models, width)
    return seconds(lambda: way(model))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more and wider networks")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        way, n_models, width = arguments.child
        model = network(int(n_models), int(width))
        print(extra_mib(lambda: WAYS[way](model)))
        return 0
    print(f"numpy {np.__version__}, scipy {scipy.__version__}; 51 times, largest difference from the closed form")
    print("networks width  way                         time    ratio  extra memory   difference")
    bounds = {"closed form": 1e-15, "DOP853, one by one": 1e-6, "descent, all at once": 0.02}
    agree = True
    for n_models, width in ((100, 10), (500, 100)) if not arguments.full else ((100, 10), (500, 100), (2000, 300)):
        model = network(n_models, width)
        exact = closed_form(model)
        errors = {name: float(np.abs(way(model) - exact).max()) for name, way in WAYS.items()}
        agree &= all(errors[name] <= bounds[name] for name in WAYS)
        times = [{name: timed(way, n_models, width) for name, way in WAYS.items()} for _ in range(3)]
        middle = {name: statistics.median(row[name] for row in times) for name in WAYS}
        for name in WAYS:
            ratio = middle[name] / middle["closed form"]
            memory = in_mib(printed_by_child(__file__, "--child", name, n_models, width))
            line = f"{n_models:8d} {width:5d}  {name:21} {1000 * middle[name]:8.1f} ms {ratio:8.1f}"
            print(f"{line} {memory:>12}   {errors[name]:.0e}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
