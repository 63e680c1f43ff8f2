"""Trajectories of observables of many runs, labelled by learning rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from symlearn._checks import check_choice, check_int, invalid, wrong_type
from symlearn._observables import NAMES
from symlearn._rule_steps import RULES
from symlearn._rule_training import ACTIVATIONS

_GROUPS = ("all", "weight", "activation", "gradient")
_PER_RUN = ("features", "rule", "accuracy", "diverged", "lr", "weight_decay", "architecture")


@dataclass(frozen=True, eq=False)
class TrajectoryDataset:
    """Trajectories of observables, labelled by learning rule.

    Attributes
    ----------
    features : ndarray of float64, shape (runs, times, layers, 24)
        Observables of every layer, the logits last. A run that diverged stays where it was last finite.
    rule : ndarray of str, shape (runs,)
        Name of the rule.
    accuracy : ndarray, shape (runs,)
        On the test set, at the end.
    architecture : ndarray of str, shape (runs,)
        ``"40x2-tanh"`` for two hidden layers of 40 units.
    names : tuple of str, length 24
        Names of the observables: ``"weight_abs_mean"``, ..., ``"gradient_sq"``.
    times : ndarray of int, shape (times,)
        Steps made at each checkpoint.
    diverged : ndarray of bool, shape (runs,)
        Runs whose observables became infinite or larger than 1e8.
    lr, weight_decay : ndarray, shape (runs,)
        Hyperparameters.
    """

    features: np.ndarray
    rule: np.ndarray
    accuracy: np.ndarray
    architecture: np.ndarray
    names: tuple[str, ...]
    times: np.ndarray
    diverged: np.ndarray
    lr: np.ndarray
    weight_decay: np.ndarray

    def examples(
        self,
        observables: str = "all",
        times: Sequence[int] | None = None,
        *,
        layers: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One example per layer of each run that did not diverge, for scikit-learn.

        Parameters
        ----------
        observables : {"all", "weight", "activation", "gradient"}
            Which of the 24.
        times : sequence of int, optional
            Indices of checkpoints, negative ones from the end; all by default.
        layers : sequence of int, optional
            Indices of layers; all by default, ``range(depth)`` for the hidden ones.

        Returns
        -------
        X : ndarray, shape (runs * layers, n_times * n_observables)
            Checkpoint after checkpoint.
        y : ndarray of str, shape (runs * layers,)
            The rules.
        groups : ndarray of int, shape (runs * layers,)
            Index of the run. Split by these, never by rows: layers of a run are alike.
        """
        check_choice("observables", observables, _GROUPS)
        kept = np.array([i for i, name in enumerate(self.names) if observables in ("all", name.split("_")[0])])
        moments = _check_indices("times", times, self.features.shape[1])
        chosen = _check_indices("layers", layers, self.features.shape[2])
        runs = np.flatnonzero(~self.diverged)
        values = self.features[np.ix_(runs, moments, chosen, kept)].swapaxes(1, 2)
        groups = np.repeat(runs, len(chosen))
        return values.reshape(len(groups), -1), self.rule[groups], groups

    def select(self, runs: ArrayLike) -> TrajectoryDataset:
        """The data set of some runs: a mask of shape (runs,), or indices."""
        chosen = np.asarray(runs)
        if chosen.dtype == bool:
            if chosen.shape != self.rule.shape:
                raise invalid("runs", f"a mask of shape {self.rule.shape}", f"shape {chosen.shape}")
            chosen = np.flatnonzero(chosen)
        elif chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise invalid("runs", "a mask or indices of runs", f"dtype {chosen.dtype}, shape {chosen.shape}")
        indices = _check_indices("runs", chosen, len(self.rule))
        return replace(self, **{name: getattr(self, name)[indices] for name in _PER_RUN})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays of numbers, whose shapes are always the same: for :func:`symlearn.sweep.sweep`."""
        shapes = np.array([_parsed(name) for name in self.architecture], dtype=np.int64).reshape(-1, 3)
        numbers = {name: getattr(self, name) for name in ("features", "accuracy", "diverged", "lr", "weight_decay")}
        codes = np.array([RULES.index(rule) for rule in self.rule], dtype=np.int64)
        return numbers | {"rule": codes, "architecture": shapes, "times": self.times}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> TrajectoryDataset:
        """Back from :meth:`to_arrays`, also when a sweep has stacked several along leading axes.

        Examples
        --------
        The same laboratory on several cores or a cluster, resumable, in blocks of runs:

        >>> from sklearn.datasets import load_iris
        >>> from symlearn.learning_rules import make_dataset
        >>> from symlearn.sweep import grid, sweep
        >>> def block(width, rng):
        ...     X, y = load_iris(return_X_y=True)
        ...     options = {"runs_per_rule": 2, "n_steps": 20, "n_checkpoints": 3, "n_probe": 20, "n_test": 30}
        ...     return make_dataset(X, y, widths=(width,), rng=rng, **options).to_arrays()
        >>> result = sweep(block, grid(width=[6, 8]), repeats=3, seed=0)
        >>> TrajectoryDataset.from_arrays(result.values).features.shape
        (48, 3, 3, 24)
        """
        if not isinstance(arrays, Mapping):
            raise wrong_type("arrays", "a mapping of names to arrays", arrays)
        if missing := {*_PER_RUN, "times"} - set(arrays):
            raise invalid("arrays", "a mapping with all names of to_arrays", f"one without {sorted(missing)}")
        found = {name: np.asarray(arrays[name]) for name in (*_PER_RUN, "times")}
        times = found["times"].reshape(-1, found["times"].shape[-1])
        if (times != times[0]).any():
            raise invalid("arrays", "of the same checkpoints", "several")
        features = found["features"].reshape(-1, *found["features"].shape[-3:])
        shapes = found["architecture"].reshape(-1, 3)
        lengths = {len(features), len(shapes), *(found[name].size for name in _PER_RUN[1:-1])}
        if len(lengths) > 1:
            raise invalid("arrays", "of the same runs", f"{sorted(lengths)} of them")
        return cls(
            features,
            np.array(RULES)[found["rule"].ravel()],
            found["accuracy"].ravel(),
            np.array([architecture_name(width, depth, ACTIVATIONS[code]) for width, depth, code in shapes]),
            NAMES,
            times[0],
            found["diverged"].ravel().astype(bool),
            found["lr"].ravel(),
            found["weight_decay"].ravel(),
        )


def architecture_name(width: int, depth: int, activation: str) -> str:
    """As ``"40x2-tanh"``."""
    return f"{width}x{depth}-{activation}"


def _parsed(name: str) -> tuple[int, int, int]:
    sizes, activation = name.split("-")
    width, depth = map(int, sizes.split("x"))
    return width, depth, ACTIVATIONS.index(activation)


def _check_indices(name: str, indices: ArrayLike | None, length: int) -> np.ndarray:
    if indices is None:
        return np.arange(length)
    if isinstance(indices, (str, bytes)) or not hasattr(indices, "__iter__"):
        raise wrong_type(name, "a sequence of ints", indices)
    found = [check_int(name, index, -length, length - 1) for index in indices]
    if not found:
        raise invalid(name, "at least one index", "none")
    return np.array(found) % length
