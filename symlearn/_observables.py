"""Statistics of weights, activations and gains: one function over arrays, many runs or one at a time.

The leading axis counts runs. Quantiles are NumPy's linear percentiles, read from one sort.
"""

from __future__ import annotations

import numpy as np

_FIVE = ("mean", "median", "norm", "thirdquartile", "var")

WEIGHT = (*(f"{f}_{s}" for f in ("abs", "raw") for s in _FIVE), "sq_mean", "sq_median", "sq_thirdquartile")
ACTIVATION = tuple(f"{f}_{s}" for f in ("abs", "raw") for s in _FIVE[:4])
GRADIENT = ("abs", "raw", "sq")
ALL = tuple(f"{f}_{s}" for f in ("abs", "raw", "sq") for s in (*_FIVE, "skew", "kurtosis"))

NAMES = tuple(
    f"{kind}_{name}"
    for kind, names in (("weight", WEIGHT), ("activation", ACTIVATION), ("gradient", GRADIENT))
    for name in names
)
"""The 24 observables of a layer, in order."""


def statistics(values: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Statistics over the last axis of values of shape (..., n)."""
    transformed = {"raw": values, "abs": np.abs(values), "sq": np.square(values)}
    ordered: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for name in names:
        kind, statistic = name.split("_")
        sample = transformed[kind]
        if statistic in ("median", "thirdquartile", "skew") and kind not in ordered:
            # the squares have the order of the magnitudes
            ordered[kind] = np.square(ordered["abs"]) if kind == "sq" and "abs" in ordered else np.sort(sample, axis=-1)
        if statistic == "mean":
            found[name] = sample.mean(-1)
        elif statistic == "norm":
            found[name] = np.sqrt(np.square(sample).sum(-1))
        elif statistic == "median":
            found[name] = _quantile(ordered[kind], 0.5)
        elif statistic == "thirdquartile":
            found[name] = _quantile(ordered[kind], 0.75)
        elif statistic == "var":
            found[name] = sample.var(-1)
        elif statistic == "skew":
            found[name] = 3 * (sample.mean(-1) - _quantile(ordered[kind], 0.5)) / sample.std(-1)
        else:
            centred = sample - sample.mean(-1, keepdims=True)
            found[name] = (centred**4).mean(-1) / sample.var(-1) ** 2
    return found


def layer_statistics(weights: np.ndarray, activations: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """The 24 observables of a layer, shape (runs, 24).

    Weights (runs, entries), activations (runs, stimuli, units), gains (runs, stimuli).
    """
    columns = list(statistics(weights, WEIGHT).values())
    columns += [values.mean(-1) for values in statistics(activations, ACTIVATION).values()]
    columns += [np.abs(gains).mean(-1), gains.mean(-1), np.square(gains).mean(-1)]
    return np.stack(columns, axis=-1)


def _quantile(ordered: np.ndarray, q: float) -> np.ndarray:
    position = q * (ordered.shape[-1] - 1)
    low = int(position)
    high = min(low + 1, ordered.shape[-1] - 1)
    return ordered[..., low] + (position - low) * (ordered[..., high] - ordered[..., low])
