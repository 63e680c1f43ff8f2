"""Classifiers of learning rules: a random forest, a linear support vector machine, a convolution over time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from symlearn._checks import check_choice, check_int, check_scalar, invalid

KINDS = ("random_forest", "linear_svm", "conv1d")
N_FILTERS, KERNEL, LR, WEIGHT_DECAY = 24, 5, 0.01, 0.01


class RuleClassifier(ClassifierMixin, BaseEstimator):
    """Which rule made these trajectories of observables?

    The three classifiers of the paper under one name. Evaluate with groups: ``cross_val_score(RuleClassifier(), X, y,
    groups=groups, cv=GroupShuffleSplit(5))``.

    Parameters
    ----------
    kind : {"random_forest", "linear_svm", "conv1d"}
        A forest of trees; a linear support vector machine on standardised features; two convolutions over checkpoints
        on standardised features.
    n_estimators : int
        Trees of the forest.
    C : float
        Inverse regularisation of the support vector machine, > 0.
    n_times : int
        Checkpoints in a row of ``X``, one after the other as ``TrajectoryDataset.examples`` has them; used by
        ``"conv1d"``.
    n_epochs : int
        Passes of ``"conv1d"`` over the examples.
    random_state : int or None
        The same int, the same classifier. None: a fresh one.
    n_jobs : int or None
        Processes of the forest.

    Attributes
    ----------
    classes_ : ndarray
        The rules.
    estimator_ : estimator
        The fitted forest or pipeline.
    n_features_in_ : int
        Number of features.

    References
    ----------
    Nayebi et al. 2020; chapter :doc:`/chapters/learning_rules`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(60, 8))
    >>> y = np.where(X[:, 0] > 0, "adam", "sgd_momentum")
    >>> RuleClassifier("linear_svm", random_state=0).fit(X, y).score(X, y) > 0.9
    True
    """

    def __init__(
        self,
        kind: str = "random_forest",
        *,
        n_estimators: int = 150,
        C: float = 0.1,
        n_times: int = 1,
        n_epochs: int = 60,
        random_state: int | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.kind = kind
        self.n_estimators = n_estimators
        self.C = C
        self.n_times = n_times
        self.n_epochs = n_epochs
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, X: ArrayLike, y: ArrayLike) -> RuleClassifier:
        """Learn from examples of shape (n, n_features) and their rules, shape (n,)."""
        self._check_params()
        examples, rules = validate_data(self, X, y)
        check_classification_targets(rules)
        if len(np.unique(rules)) < 2:
            raise invalid("y", "labels of at least two classes", "1 class")
        if self.kind == "conv1d" and examples.shape[1] % self.n_times:
            raise invalid("n_times", f"a divisor of the {examples.shape[1]} features", self.n_times)
        self.estimator_ = self._make().fit(examples, rules)
        self.classes_ = self.estimator_.classes_
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The rule of each example, shape (n,)."""
        check_is_fitted(self)
        return self.estimator_.predict(validate_data(self, X, reset=False))

    @available_if(lambda self: self.kind != "linear_svm")
    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probability of each rule, shape (n, n_classes); not of a support vector machine."""
        check_is_fitted(self)
        return self.estimator_.predict_proba(validate_data(self, X, reset=False))

    def _check_params(self) -> None:
        check_choice("kind", self.kind, KINDS)
        for name in ("n_estimators", "n_times", "n_epochs"):
            check_int(name, getattr(self, name), 1)
        if check_scalar("C", self.C) <= 0:
            raise invalid("C", "> 0", self.C)
        if self.random_state is not None and not isinstance(self.random_state, np.random.RandomState):
            check_int("random_state", self.random_state, 0, 2**32 - 1)
        if self.n_jobs is not None and check_int("n_jobs", self.n_jobs, -(2**31)) == 0:
            raise invalid("n_jobs", "None or an integer other than 0", 0)

    def _make(self) -> Any:
        if self.kind == "random_forest":
            return RandomForestClassifier(self.n_estimators, random_state=self.random_state, n_jobs=self.n_jobs)
        if self.kind == "linear_svm":
            machine = LinearSVC(C=self.C, dual="auto", max_iter=20_000, random_state=self.random_state)
            return make_pipeline(StandardScaler(), machine)
        seed = int(np.random.default_rng().integers(2**31))
        if self.random_state is not None:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return make_pipeline(StandardScaler(), ConvolutionClassifier(self.n_times, self.n_epochs, seed))


class ConvolutionClassifier(ClassifierMixin, BaseEstimator):
    """Two convolutions over time, their mean and maximum, and a linear read-out; features are already scaled."""

    def __init__(self, n_times: int, n_epochs: int, seed: int) -> None:
        self.n_times, self.n_epochs, self.seed = n_times, n_epochs, seed

    def fit(self, X: np.ndarray, y: np.ndarray) -> ConvolutionClassifier:
        """Minimise the cross-entropy with AdamW, batches of up to 256 examples."""
        self.classes_, labels = np.unique(y, return_inverse=True)
        inputs, targets = self._series(X), torch.from_numpy(labels)
        generator = torch.Generator().manual_seed(self.seed)
        self.weights_ = self._initial(inputs.shape[1], generator)
        leaves = [weight.requires_grad_() for weight in self.weights_]
        optimizer = torch.optim.AdamW(leaves, lr=LR, weight_decay=WEIGHT_DECAY)
        n_steps = self.n_epochs * math.ceil(len(inputs) / 256)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=max(n_steps, 2))
        with torch.enable_grad():
            for _ in range(self.n_epochs):
                for chosen in torch.randperm(len(inputs), generator=generator).split(256):
                    optimizer.zero_grad()
                    F.cross_entropy(self._logits(inputs[chosen]), targets[chosen]).backward()
                    optimizer.step()
                    schedule.step()
        self.weights_ = [weight.detach() for weight in leaves]
        return self

    @torch.no_grad()
    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probability of each class, shape (n, classes)."""
        return self._logits(self._series(X)).double().softmax(1).numpy()

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Most probable class, shape (n,)."""
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _series(self, X: np.ndarray) -> Tensor:
        """Observables as channels, shape (n, observables, times)."""
        series = np.clip(X, -5, 5).reshape(len(X), self.n_times, -1).swapaxes(1, 2)
        return torch.from_numpy(np.ascontiguousarray(series, dtype=np.float32))

    def _initial(self, n_channels: int, generator: torch.Generator) -> list[Tensor]:
        shapes = [
            (N_FILTERS, n_channels, KERNEL),
            (N_FILTERS, N_FILTERS, KERNEL),
            (len(self.classes_), 2 * N_FILTERS),
        ]
        found = []
        for shape in shapes:
            scale = math.sqrt(2 / math.prod(shape[1:]))
            found += [torch.randn(shape, generator=generator) * scale, torch.zeros(shape[0])]
        return found

    def _logits(self, series: Tensor) -> Tensor:
        first, first_bias, second, second_bias, last, last_bias = self.weights_
        values = F.conv1d(series, first, first_bias, padding=KERNEL // 2).relu()
        values = F.conv1d(values, second, second_bias, padding=KERNEL // 2).relu()
        return F.linear(torch.cat([values.mean(2), values.amax(2)], dim=1), last, last_bias)
