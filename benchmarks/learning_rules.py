"""Training runs side by side is many times faster than one after the other, observables included.

Run ``python benchmarks/learning_rules.py [--full]``. All make the same trajectories, of the same seeds, with the same
24 observables at 16 checkpoints: ``make_dataset``; a plain loop over runs as a first script does it, with
``torch.optim``, autograd, and NumPy for the statistics (one run of each rule, the time in proportion to their number);
and the same loop through ``learning_rule`` and ``layer_observables``. The trajectories of all three
are compared. The exit status is 1 if they differ, or if ``make_dataset`` is not at least 8 times faster than both.
"""

import argparse
import platform
import sys

import numpy as np
import torch
import torch.nn.functional as F
from common import extra_mib, in_mib, printed_by_child, seconds
from torch import nn

from symlearn.datasets import digits
from symlearn.learning_rules import laboratory_run, layer_observables, make_dataset

RULES = ("sgd_momentum", "adam", "feedback_alignment", "information_alignment")
REQUIRED_RATIO = 8
ALLOWED_DIFFERENCE = 2e-2  # float32, relative to the spread of an observable over runs, after all steps
N_CHECKPOINTS = 16


def images():
    data = digits(1796)
    return 2 * data.x_train, data.y_train


def row(values, names):
    """Statistics as a first script computes them."""
    quantiles = np.percentile
    functions = {
        "mean": np.mean,
        "median": np.median,
        "norm": np.linalg.norm,
        "thirdquartile": lambda u: quantiles(u, 75),
        "var": np.var,
    }
    transforms = {"raw": lambda u: u, "abs": np.abs, "sq": np.square}
    return [functions[name.split("_")[1]](transforms[name.split("_")[0]](values)) for name in names]


def plain_statistics(model, probe, names):
    """The 24 observables of each layer, with NumPy and a loop over stimuli vectorised along an axis."""
    weight_names = [name.removeprefix("weight_") for name in names if name.startswith("weight_")]
    found, h = [], probe
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            a = layer(h)
            last = layer is layers[-1]
            h = a if last else torch.tanh(a)
            slope = torch.ones_like(a) if last else 1 - h.square()
            gains = ((slope @ layer.weight.sum(1)) / len(layer.weight)).numpy()
            u = h.numpy()
            activity = []
            for f in (np.abs, lambda values: values):
                v = f(u)
                statistics = (v.mean(1), np.median(v, 1), np.linalg.norm(v, axis=1), np.percentile(v, 75, axis=1))
                activity += [each.mean() for each in statistics]
            gain = [np.abs(gains).mean(), gains.mean(), np.square(gains).mean()]
            found.append([*row(layer.weight.numpy().ravel(), weight_names), *activity, *gain])
    return np.array(found)


def plain_run(one, times, names):
    """One run with torch.optim and autograd; feedback through values whose gradient takes another path."""
    model, rule = one.model, one.rule
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    feedback = [None, *(one.state.feedback.get(f"{2 * i}.weight") for i in range(1, len(layers)))]
    if rule.name == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=rule.lr, weight_decay=rule.weight_decay)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=rule.lr, momentum=0.9, weight_decay=rule.weight_decay)
    found = [plain_statistics(model, one.probe, names)]
    for step, (x, y) in enumerate(one.batches, start=1):
        h, seen = x, []
        for layer, down in zip(layers, feedback, strict=True):
            seen.append(h.detach())
            a = layer(h) if down is None else layer(h.detach()) + (h - h.detach()) @ down.T
            h = a if layer is layers[-1] else torch.tanh(a)
        optimizer.zero_grad()
        F.cross_entropy(h, y).backward()
        if rule.name == "information_alignment":
            with torch.no_grad():
                for i in range(1, len(layers)):
                    a = seen[i] @ layers[i].weight.T
                    change = a.T @ seen[i] / len(x) - 0.5 * feedback[i] - a.T @ a / len(x) @ feedback[i]
                    feedback[i] = feedback[i] + 0.01 * change
        optimizer.step()
        if step in times:
            found.append(plain_statistics(model, one.probe, names))
    return np.array(found)


def protocol_run(one, times, names):
    """One run with the library's own rules, one step at a time."""
    state, found = one.state, [layer_observables(one.model, one.probe)]
    for step, (x, y) in enumerate(one.batches, start=1):
        state, _ = one.rule.step(state, x, y)
        if step in times:
            found.append(layer_observables(state.network(), one.probe))
    return np.array(found)


def compare(X, y, width, runs_per_rule, n_steps, repeats):
    """Smallest median ratio, and whether all agree."""
    options = {"n_steps": n_steps, "rng": 0}
    make_dataset(X, y, runs_per_rule=2, widths=(width,), **{**options, "n_steps": 20})
    reference, times, singles, worst = None, {"symlearn": [], "plain loop": [], "learning_rule": []}, {}, 0.0
    for _ in range(repeats):

        def batched():
            nonlocal reference
            reference = make_dataset(
                X, y, runs_per_rule=runs_per_rule, widths=(width,), n_checkpoints=N_CHECKPOINTS, **options
            )

        times["symlearn"].append(seconds(batched))
        for name, function in (("plain loop", plain_run), ("learning_rule", protocol_run)):

            def loop(function=function):
                for rule in RULES:
                    one = laboratory_run(X, y, rule=rule, width=width, **options)
                    singles[rule] = function(one, set(reference.times.tolist()), reference.names)

            times[name].append(seconds(loop) * runs_per_rule)  # one run of each rule
            for rule in RULES:
                chosen = reference.features[np.flatnonzero(reference.rule == rule)]
                spread = reference.features.std(0) + 1e-3
                worst = max(worst, float((np.abs(singles[rule] - chosen[0]) / spread).max()))
    n_runs = len(RULES) * runs_per_rule
    medians = {name: np.median(values) for name, values in times.items()}
    ratios = {name: np.median(np.divide(values, times["symlearn"])) for name, values in times.items()}
    title = f"width {width}, {n_runs} runs x {n_steps} steps"
    print(f"\n{title:40s}{'seconds':>9s}{'ratio':>8s}{'runs/s':>9s}{'ms/run':>9s}")
    for name, label in (
        ("symlearn", "make_dataset"),
        ("plain loop", "plain loop, from one run of each rule"),
        ("learning_rule", "learning_rule, from one run of each"),
    ):
        rate = n_runs / medians[name]
        print(f"{label:40s}{medians[name]:9.2f}{ratios[name]:8.1f}{rate:9.1f}{1000 / rate:9.1f}")
    print(f"largest difference of an observable, in s.d. over runs: {worst:.1e}")
    return min(ratios["plain loop"], ratios["learning_rule"]), worst < ALLOWED_DIFFERENCE


def print_extra_memory(runs_per_rule):
    """In a child process of its own: the peak of a data set, less what was resident before, in MiB."""
    X, y = images()
    make_dataset(X, y, runs_per_rule=1, n_steps=20, rng=0)
    print(extra_mib(lambda: make_dataset(X, y, runs_per_rule=runs_per_rule, n_steps=100, rng=0)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more runs, more widths")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print_extra_memory(arguments.memory)
        return 0
    print(f"Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}")
    torch.set_num_threads(1)
    print("one thread each")
    X, y = images()
    found = [
        compare(X, y, width, 250 if arguments.full else 48, 300, repeats=5 if arguments.full else 3)
        for width in ((24, 40, 64) if arguments.full else (24, 40))
    ]
    print(f"\npeak extra memory, 4 x 48 runs: {in_mib(printed_by_child(__file__, '--memory', 48))}")
    print(f"peak extra memory, 4 x 400 runs: {in_mib(printed_by_child(__file__, '--memory', 400))}")
    good = all(agree and ratio >= REQUIRED_RATIO for ratio, agree in found)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
