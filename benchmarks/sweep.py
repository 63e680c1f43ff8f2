"""A sweep costs little more per call than plain joblib, and resuming costs little more than reading.

Run ``python benchmarks/sweep.py [--quick]``. All times of one table come from one run on one machine: compare the
ratios. The function under test sleeps a fixed time, so that what remains is overhead.
"""

import argparse
import tempfile
import time

import joblib
import numpy as np

from symlearn.sweep import grid, sweep


def work(x, seconds):
    time.sleep(seconds)
    return np.full(100, float(x))


def with_joblib(points, n_jobs):
    return joblib.Parallel(n_jobs=n_jobs)(joblib.delayed(work)(**point) for point in points)


def best_time(call, n_rounds):
    times = []
    for _ in range(n_rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(points, n_jobs, n_rounds):
    """Seconds for all points: joblib alone, sweep, sweep that fills a cache, sweep that resumes from one."""
    with_joblib(points[:2], n_jobs)
    sweep(work, points[:2], n_jobs=n_jobs)

    def filling():
        with tempfile.TemporaryDirectory() as folder:
            sweep(work, points, n_jobs=n_jobs, cache_dir=folder)

    with tempfile.TemporaryDirectory() as folder:
        sweep(work, points, n_jobs=n_jobs, cache_dir=folder)
        resume = best_time(lambda: sweep(work, points, n_jobs=n_jobs, cache_dir=folder), n_rounds)
    return {
        "joblib": best_time(lambda: with_joblib(points, n_jobs), n_rounds),
        "sweep": best_time(lambda: sweep(work, points, n_jobs=n_jobs), n_rounds),
        "sweep, filling a cache": best_time(filling, n_rounds),
        "sweep, all in the cache": resume,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer calls, each measured once")
    quick = parser.parse_args().quick
    n_rounds = 1 if quick else 2
    print(f"{'calls':>6} {'of':>6} {'jobs':>5}  {'':24} {'total':>8} {'overhead':>17} {'/ joblib':>9}")
    for n_points, seconds in [(200, 0.0), (40, 0.02)] if quick else [(500, 0.0), (100, 0.02), (10, 0.5)]:
        points = grid(x=range(n_points), seconds=[seconds])
        for n_jobs in (1, 2):
            times = measure(points, n_jobs, n_rounds)
            for name, total in times.items():
                ideal = 0 if name.endswith("in the cache") else n_points * seconds / n_jobs
                overhead = 1e3 * (total - ideal) / n_points
                print(
                    f"{n_points:6d} {seconds:4.2f} s {n_jobs:5d}  {name:24} {total:6.2f} s {overhead:8.2f} ms / call"
                    f" {total / times['joblib']:9.2f}"
                )


if __name__ == "__main__":
    main()
