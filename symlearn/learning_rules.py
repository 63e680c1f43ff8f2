"""Which learning rule was it? A virtual laboratory for identifying rules from aggregate statistics of a network.

Four learning rules as one protocol for any chain of torch layers, thousands of small networks trained side by side, the
24 observables of each layer, classifiers of rules, and the theory of what tells rules apart (chapter
:doc:`/chapters/learning_rules`). Source: Nayebi, Srivastava, Ganguli and Yamins, "Identifying learning rules from
neural network observables", NeurIPS 2020; charges and update scales are derived in the chapter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from symlearn import _observables, _rule_training
from symlearn._checks import (
    check_bool,
    check_choice,
    check_finite,
    check_fraction,
    check_int,
    check_nonnegative,
    check_rng,
    check_scalar,
    check_shape,
    check_symmetric,
    invalid,
    wrong_type,
)
from symlearn._layer_observables import layer_observables
from symlearn._rule_classifier import RuleClassifier
from symlearn._rule_steps import RULES, Rule, RuleState
from symlearn._rule_training import ACTIVATIONS, Data, Plan
from symlearn._trajectories import TrajectoryDataset, architecture_name

__all__ = [
    "LaboratoryRun",
    "LearningRule",
    "RuleClassifier",
    "RuleState",
    "TrajectoryDataset",
    "conserved_charge",
    "information_alignment_fixed_point",
    "laboratory_run",
    "layer_observables",
    "learning_rule",
    "make_dataset",
    "observable_statistics",
]


@runtime_checkable
class LearningRule(Protocol):
    """What a learning rule does: it makes a state from a model, and a new state from a state and a batch.

    :func:`learning_rule` gives four of them; anything with these two methods is another.
    """

    def init(self, model: nn.Sequential, generator: torch.Generator | None = None) -> RuleState:
        """State before the first step; the model is copied, not changed."""
        ...

    def step(self, state: RuleState, x: Tensor, y: Tensor) -> tuple[RuleState, float]:
        """State after a step on inputs (batch, ...) and labels (batch,), and the mean cross-entropy before it."""
        ...


def learning_rule(
    name: str,
    *,
    lr: float,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    feedback_lr: float = 0.01,
    amplify: float = 1.0,
    decay: float = 0.5,
    null: float = 1.0,
) -> LearningRule:
    r"""One of four learning rules, for any chain of layers.

    All minimise the mean cross-entropy and differ in the matrix that passes errors down, and in the update.
    ``sgd_momentum`` and ``adam`` use the weights: they are ``torch.optim.SGD`` and ``Adam`` on all parameters.
    ``feedback_alignment`` passes errors through a fixed random tensor :math:`F_l` instead. ``information_alignment``
    lets it learn from the input :math:`x` of the layer and :math:`a=W_lx`, without bias:

    .. math:: F\leftarrow F+\eta_B\big[\alpha\langle ax^\top\rangle-\beta F-\gamma\langle aa^\top\rangle F\big].

    Parameters
    ----------
    name : {"sgd_momentum", "adam", "feedback_alignment", "information_alignment"}
        The rule.
    lr : float
        Learning rate of the parameters, > 0.
    momentum : float
        :math:`v\leftarrow\mu v+g`, :math:`W\leftarrow W-\eta v`, in [0, 1); of all rules but Adam.
    betas, eps : pair of float in [0, 1), float > 0
        Of Adam.
    weight_decay : float
        Added to the gradient as ``weight_decay * theta``, of all parameters, as torch does; not of the feedback.
    feedback_lr : float
        :math:`\eta_B>0` of information alignment.
    amplify, decay, null : float
        :math:`\alpha,\beta,\gamma\ge0` of information alignment.

    Returns
    -------
    LearningRule
        ``rule.init(model, generator)`` gives a :class:`RuleState`, ``rule.step(state, x, y)`` the next one and the loss
        before the step. The model is an ``nn.Sequential``, perhaps nested; feedback belongs to every ``Linear`` and
        ``Conv2d`` weight except the first. Other layers, also with parameters, pass errors as usual.

    Raises
    ------
    TypeError
        If an argument is not of its type, or the model no ``nn.Sequential``.
    ValueError
        For an unknown name or a hyperparameter out of range; in ``init`` for shared or lazy weights, active dropout or
        layers inside of others; in ``step`` for a batch that does not fit.

    Notes
    -----
    In a convolution :math:`\langle\cdot\rangle` is the mean over the batch and over positions. Information alignment
    is stable only if :math:`\eta_B(\beta+\gamma\lambda_{\max}(\langle aa^\top\rangle))<2`. A state is plain tensors:
    under DistributedDataParallel, average the loss gradients yourself, or train with torch's own optimizers.

    References
    ----------
    Lillicrap et al., Nature Communications 2016 (feedback alignment); Kunin et al., ICML 2020 (information alignment,
    here reconstructed from its primitives); chapter :doc:`/chapters/learning_rules`.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    >>> rule = learning_rule("feedback_alignment", lr=0.05)
    >>> state = rule.init(model, generator)
    >>> x = torch.randn(64, 4, generator=generator)
    >>> y = x[:, :3].argmax(1)
    >>> losses = []
    >>> for _ in range(100):
    ...     state, loss = rule.step(state, x, y)
    ...     losses.append(loss)
    >>> losses[-1] < 0.5 * losses[0], list(state.feedback)
    (True, ['2.weight'])
    """
    check_choice("name", name, RULES)
    pair = _check_betas(betas)
    return Rule(
        name,
        _above_zero("lr", lr),
        check_fraction("momentum", momentum),
        pair,
        _above_zero("eps", eps),
        _at_least_zero("weight_decay", weight_decay),
        _above_zero("feedback_lr", feedback_lr),
        *(_at_least_zero(key, value) for key, value in (("amplify", amplify), ("decay", decay), ("null", null))),
    )


def conserved_charge(w1: ArrayLike, w2: ArrayLike, feedback: ArrayLike | None = None) -> np.ndarray:
    r"""What gradient flow keeps constant in two successive layers, under backpropagation or with fixed feedback.

    :math:`W_1W_1^\top-W_2^\top W_2`, or with feedback :math:`B=F^\top` the matrix
    :math:`W_1W_1^\top-(BW_2+W_2^\top B^\top)`. In a linear network without biases, weight decay and momentum all of it
    is conserved; in a ReLU network its diagonal.

    Parameters
    ----------
    w1 : array_like, shape (..., hidden, inputs)
        Incoming weights.
    w2 : array_like, shape (..., outputs, hidden)
        Outgoing weights.
    feedback : array_like, shape (..., outputs, hidden), optional
        The tensor :math:`F` through which errors come down, stored in the shape of ``w2``.

    Returns
    -------
    ndarray, shape (..., hidden, hidden)
        Symmetric.

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers.
    ValueError
        For shapes that do not fit, or values that are not finite.

    References
    ----------
    Chapter :doc:`/chapters/learning_rules`, eq. 3 and 4.

    Examples
    --------
    >>> conserved_charge([[2.0]], [[1.0]]), conserved_charge([[2.0]], [[1.0]], feedback=[[0.5]])
    (array([[3.]]), array([[3.]]))
    """
    incoming, outgoing = _check_matrix("w1", w1), _check_matrix("w2", w2)
    if outgoing.shape[-1] != incoming.shape[-2] or not _fit(incoming, outgoing):
        raise invalid("w2", f"of shape (..., outputs, {incoming.shape[-2]}) for w1 {incoming.shape}", outgoing)
    if feedback is None:
        product = outgoing.mT @ outgoing
    else:
        down = _check_matrix("feedback", feedback)
        if down.shape[-2:] != outgoing.shape[-2:] or not _fit(incoming, outgoing, down):
            raise invalid("feedback", f"of the shape of w2 {outgoing.shape}", down)
        product = down.mT @ outgoing
        product = product + product.mT
    return incoming @ incoming.mT - product


def information_alignment_fixed_point(
    weight: ArrayLike, covariance: ArrayLike, *, amplify: float = 1.0, decay: float = 0.5, null: float = 1.0
) -> np.ndarray:
    r"""Where information alignment brings the feedback if weights and inputs stay as they are.

    :math:`F^*=\alpha(\gamma W\Sigma W^\top+\beta I)^{-1}W\Sigma`: a scaled copy of :math:`W` for white inputs and large
    :math:`\beta`, the transposed pseudo-inverse for :math:`\beta\to0`.

    Parameters
    ----------
    weight : array_like, shape (n_out, n_in)
        :math:`W`.
    covariance : array_like, shape (n_in, n_in)
        Second moment :math:`\Sigma=\langle xx^\top\rangle` of the layer's input, without subtracting the mean.
    amplify, decay, null : float
        :math:`\alpha,\beta,\gamma\ge0`.

    Returns
    -------
    ndarray, shape (n_out, n_in)
        The feedback, in the shape of the weight.

    Raises
    ------
    TypeError
        If an argument is not of real numbers.
    ValueError
        For wrong shapes, a covariance that is not symmetric and positive semidefinite, a negative strength, or where
        there is no unique fixed point, as without decay and with a singular :math:`W\Sigma W^\top`.

    References
    ----------
    Chapter :doc:`/chapters/learning_rules`, eq. 7.

    Examples
    --------
    >>> information_alignment_fixed_point([[2.0, 0.0]], np.eye(2), decay=1.0)
    array([[0.4, 0. ]])
    """
    matrix = check_shape("weight", weight, (None, None))
    second = check_symmetric("covariance", covariance)
    if not matrix.size or second.shape[0] != matrix.shape[1]:
        raise invalid("covariance", f"of shape ({matrix.shape[1]}, {matrix.shape[1]})", f"shape {second.shape}")
    smallest, largest = np.linalg.eigvalsh(second)[[0, -1]]
    if smallest < -1e-10 * max(abs(largest), abs(smallest)):
        raise invalid("covariance", "positive semidefinite", f"an eigenvalue of {smallest:.3g}")
    alpha, beta, gamma = (
        _at_least_zero(name, value) for name, value in (("amplify", amplify), ("decay", decay), ("null", null))
    )
    driven = matrix @ second
    response = gamma * driven @ matrix.T + beta * np.eye(len(matrix))
    if not np.linalg.cond(response) < 1e14:
        raise invalid("decay", "> 0 where weight covariance weight.T is singular or null is 0", beta)
    return alpha * np.linalg.solve(response, driven)


def observable_statistics(values: ArrayLike, names: str = "weight") -> dict[str, float]:
    """Aggregate statistics of a layer's weights or activations.

    A function (``raw``, ``abs``, ``sq``), then a statistic: ``mean``, ``median``, ``norm`` (L2), ``thirdquartile``,
    ``var`` (population), ``skew`` (3 (mean - median) / std), ``kurtosis`` (fourth moment over squared variance).

    Parameters
    ----------
    values : array_like
        Of any shape for ``"weight"``; of shape (stimuli, units) or (units,) otherwise.
    names : {"weight", "activation", "all"}
        ``"weight"``: 13 statistics over all entries. ``"activation"``: 8 statistics of each row, averaged over rows.
        ``"all"``: all 21, of each row, averaged over rows.

    Returns
    -------
    dict of str to float
        Keys as ``"abs_mean"`` or ``"raw_thirdquartile"``.

    Raises
    ------
    TypeError
        If the values are not real numbers.
    ValueError
        For no values, values that are not finite or too large to be squared, or, with ``"all"``, a row whose values,
        magnitudes or squares do not vary, where skew and kurtosis do not exist.

    References
    ----------
    Nayebi et al. 2020; chapter :doc:`/chapters/learning_rules`.

    Examples
    --------
    >>> found = observable_statistics([1.0, -2.0, 3.0])
    >>> found["abs_mean"], found["raw_median"], found["sq_thirdquartile"]
    (2.0, 1.0, 6.5)
    """
    array = check_finite("values", values)
    check_choice("names", names, ("weight", "activation", "all"))
    if not array.size:
        raise invalid("values", "at least one number", f"shape {array.shape}")
    if names == "weight":
        array = array.reshape(1, -1)
    elif array.ndim not in (1, 2):
        raise invalid("values", "of shape (stimuli, units) or (units,)", f"shape {array.shape}")
    rows = np.atleast_2d(array)
    if names == "all" and not all((np.ptp(kind, axis=1) > 0).all() for kind in (rows, np.abs(rows))):
        raise invalid("values", "of rows whose values and magnitudes vary, for skew and kurtosis", "a constant one")
    listed = {"weight": _observables.WEIGHT, "activation": _observables.ACTIVATION, "all": _observables.ALL}[names]
    with np.errstate(all="ignore"):
        found = {key: float(each.mean()) for key, each in _observables.statistics(rows, listed).items()}
    if not all(map(math.isfinite, found.values())):
        raise invalid("values", "of a size that can be squared", f"magnitudes up to {np.abs(rows).max():.3g}")
    return found


def make_dataset(
    X: ArrayLike,
    y: ArrayLike,
    *,
    rules: Sequence[str] = RULES,
    runs_per_rule: int = 32,
    widths: Sequence[int] = (40,),
    depth: int = 2,
    activations: Sequence[str] = ("tanh",),
    n_steps: int = 300,
    n_checkpoints: int = 16,
    batch_size: int = 32,
    n_probe: int = 64,
    n_test: int = 300,
    subsample: float = 1.0,
    measurement_noise: float = 0.0,
    rng: int | np.random.Generator | None = None,
    progress: bool = False,
) -> TrajectoryDataset:
    r"""Train many small networks under known rules, and record what an observer could see.

    The networks classify ``y`` from ``X``: multilayer perceptrons of one width, weights normal with variance one over
    the fan-in, biases 0, feedback of variance one over the fan-out. Each run draws a learning rate, log-uniform in
    [0.01, 0.08], or [0.0008, 0.0064] for Adam, and a weight decay, log-uniform in [1e-5, 1e-3]; the rest are the
    defaults of :func:`learning_rule`. All runs of an architecture train side by side.

    Parameters
    ----------
    X : array_like, shape (n, n_inputs)
        Inputs, shuffled and scaled by you: the first ``n_probe`` rows are the probe stimuli, the last ``n_test`` the
        test set, and those between are trained on.
    y : array_like, shape (n,)
        Labels of any kind, at least two different ones.
    rules : sequence of str
        Names as in :func:`learning_rule`.
    runs_per_rule : int
        Runs of each rule, width and activation.
    widths, depth, activations : sequence of int, int, sequence of {"tanh", "relu"}
        Hidden layers, ``depth`` of them of equal width. Every combination is one architecture.
    n_steps, batch_size : int
        Steps on minibatches drawn with replacement.
    n_checkpoints : int
        At least 2, evenly spaced from before the first step to after the last.
    n_probe, n_test : int
        At least 1.
    subsample : float
        Fraction in (0, 1] of the units, and of the weights, of every layer that the observer sees: ``ceil(fraction *
        units)`` of them, one draw per run and layer.
    measurement_noise : float
        Standard deviation of Gaussian noise on every recorded number (weight, activity, gain), in units of the standard
        deviation over its layer; fresh at every checkpoint.
    rng : int, numpy.random.Generator or None
        Source of all randomness. With the same seed a run is the same whatever else is in the data set.
    progress : bool
        Show a bar of trained blocks.

    Returns
    -------
    TrajectoryDataset
        Runs sorted by architecture, then rule, in the orders given.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range, a name unknown or given twice, or there are too few rows.

    References
    ----------
    Nayebi et al. 2020; chapter :doc:`/chapters/learning_rules`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> order = np.random.default_rng(0).permutation(150)
    >>> options = {"n_steps": 30, "n_checkpoints": 4, "n_probe": 20, "n_test": 30, "rng": 0}
    >>> data = make_dataset(X[order], y[order], runs_per_rule=3, widths=(8,), **options)
    >>> data.features.shape, data.times.tolist()
    ((12, 4, 3, 24), [0, 10, 20, 30])
    >>> examples, labels, groups = data.examples("activation")
    >>> examples.shape, len(set(groups))
    ((36, 32), 12)
    """
    data, times = _check_laboratory(X, y, n_steps, n_checkpoints, batch_size, n_probe, n_test)
    names = _check_distinct("rules", rules, str)
    for name in names:
        check_choice("rules", name, RULES)
    count = check_int("runs_per_rule", runs_per_rule, 1)
    sizes = [check_int("widths", width, 1) for width in _check_distinct("widths", widths, int)]
    kinds = [
        check_choice("activations", kind, ACTIVATIONS) for kind in _check_distinct("activations", activations, str)
    ]
    shapes = [(size, kind) for size in sizes for kind in kinds]
    check_int("depth", depth, 1)
    fraction = check_scalar("subsample", subsample)
    if not 0 < fraction <= 1:
        raise invalid("subsample", "in (0, 1]", fraction)
    noise = _at_least_zero("measurement_noise", measurement_noise)
    root = int(check_rng(rng).integers(2**63))
    runs = [(name, run) for name in names for run in range(count)]
    parts = []
    for width, kind in _bar(shapes, check_bool("progress", progress)):
        plan = Plan(width, depth, kind, n_steps, times, batch_size, fraction, noise)
        draws = [_rule_training.draw_run(root, name, run, plan, data) for name, run in runs]
        hyperparameters = [(draw.lr, draw.weight_decay) for draw in draws]
        parts.append((*_rule_training.train(draws, plan, data), np.array(hyperparameters)))
    features, accuracy, diverged, hyper = (np.concatenate(each) for each in zip(*parts, strict=True))
    architecture = np.repeat([architecture_name(width, depth, kind) for width, kind in shapes], len(runs))
    rule = np.array([name for name, _ in runs] * len(shapes))
    return TrajectoryDataset(
        features, rule, accuracy, architecture, _observables.NAMES, np.array(times), diverged, *hyper.T
    )


@dataclass(frozen=True, eq=False)
class LaboratoryRun:
    """One run of the laboratory, to be done by hand.

    Attributes
    ----------
    model : nn.Sequential
        With the initial weights.
    rule : LearningRule
        With the hyperparameters drawn.
    state : RuleState
        The initial one, with the feedback drawn.
    batches : list of (Tensor, Tensor)
        Inputs and labels of each step.
    probe : Tensor, shape (n_probe, n_inputs)
        The probe stimuli.
    """

    model: nn.Sequential
    rule: LearningRule
    state: RuleState
    batches: list[tuple[Tensor, Tensor]]
    probe: Tensor


def laboratory_run(
    X: ArrayLike,
    y: ArrayLike,
    *,
    rule: str,
    run: int = 0,
    width: int = 40,
    depth: int = 2,
    activation: str = "tanh",
    n_steps: int = 300,
    batch_size: int = 32,
    n_probe: int = 64,
    n_test: int = 300,
    rng: int | np.random.Generator | None = None,
) -> LaboratoryRun:
    """What one run of :func:`make_dataset` has drawn, to repeat it step by step or look inside.

    Parameters
    ----------
    X, y, depth, n_steps, batch_size, n_probe, n_test, rng
        As given to :func:`make_dataset`; ``rng`` has to be the same seed.
    rule, width, activation : str, int, str
        One of those given there.
    run : int
        Number of the run among those of the same rule, width and activation.

    Returns
    -------
    LaboratoryRun

    Raises
    ------
    TypeError, ValueError
        As :func:`make_dataset`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> options = {"n_steps": 20, "n_probe": 20, "n_test": 30, "rng": 0}
    >>> one = laboratory_run(X, y, rule="adam", run=2, width=8, **options)
    >>> state = one.state
    >>> for inputs, labels in one.batches:
    ...     state, _ = one.rule.step(state, inputs, labels)
    >>> data = make_dataset(X, y, runs_per_rule=3, widths=(8,), rules=("adam",), n_checkpoints=2, **options)
    >>> np.allclose(data.features[2, -1], layer_observables(state.network(), one.probe), atol=1e-4)
    True
    """
    data, times = _check_laboratory(X, y, n_steps, 2, batch_size, n_probe, n_test)
    check_choice("rule", rule, RULES)
    check_choice("activation", activation, ACTIVATIONS)
    plan = Plan(check_int("width", width, 1), check_int("depth", depth, 1), activation, n_steps, times, batch_size)
    root = int(check_rng(rng).integers(2**63))
    draw = _rule_training.draw_run(root, rule, check_int("run", run, 0), plan, data)
    layers: list[nn.Module] = []
    for weight in draw.weights:
        layer = torch.nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.zeros(len(weight))})
        layers += [layer, nn.Tanh() if activation == "tanh" else nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    made = learning_rule(rule, lr=draw.lr, weight_decay=draw.weight_decay)
    state = made.init(model, torch.Generator().manual_seed(0))
    drawn = (torch.from_numpy(each) for each in draw.feedback)
    state = replace(state, feedback=dict(zip(state.feedback, drawn, strict=False)))
    x, labels = torch.from_numpy(data.x), torch.from_numpy(data.y)
    batches = [(x[chosen], labels[chosen]) for chosen in torch.from_numpy(draw.batches)]
    return LaboratoryRun(model, made, state, batches, torch.from_numpy(data.probe))


def _above_zero(name: str, value: ArrayLike) -> float:
    number = check_scalar(name, value)
    if number <= 0:
        raise invalid(name, "> 0", number)
    return number


def _at_least_zero(name: str, value: ArrayLike) -> float:
    return check_scalar(name, check_nonnegative(name, value))


def _check_betas(betas: Any) -> tuple[float, float]:
    if isinstance(betas, str) or not isinstance(betas, Sequence):
        raise wrong_type("betas", "a pair of numbers", betas)
    if len(betas) != 2:
        raise invalid("betas", "a pair of numbers", f"{len(betas)} of them")
    return check_fraction("betas", betas[0]), check_fraction("betas", betas[1])


def _check_matrix(name: str, value: ArrayLike) -> np.ndarray:
    array = check_finite(name, value)
    if array.ndim < 2 or not array.size:
        raise invalid(name, "a matrix, or several along leading axes", f"shape {array.shape}")
    return array


def _fit(*arrays: np.ndarray) -> bool:
    """Whether the leading axes broadcast."""
    try:
        np.broadcast_shapes(*(array.shape[:-2] for array in arrays))
    except ValueError:
        return False
    return True


def _check_distinct(name: str, values: Any, kind: type) -> list[Any]:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise wrong_type(name, f"a sequence of {kind.__name__}", values)
    found = list(values)
    if not found:
        raise invalid(name, "at least one", "none")
    for value in found:
        if kind is str and not isinstance(value, str):
            raise wrong_type(name, "a sequence of str", value)
    if len(set(found)) < len(found):
        raise invalid(name, "different from each other", repr(found))
    return found


def _check_laboratory(
    X: ArrayLike, y: ArrayLike, n_steps: int, n_checkpoints: int, batch_size: int, n_probe: int, n_test: int
) -> tuple[Data, tuple[int, ...]]:
    steps = check_int("n_steps", n_steps, 1)
    times = np.linspace(0, steps, check_int("n_checkpoints", n_checkpoints, 2, steps + 1)).round().astype(int)
    check_int("batch_size", batch_size, 1)
    probe, test = check_int("n_probe", n_probe, 1), check_int("n_test", n_test, 1)
    inputs = check_shape("X", X, (None, None))
    if len(inputs) <= probe + test or not inputs.shape[1]:
        raise invalid("X", f"of more than n_probe + n_test = {probe + test} rows", f"shape {inputs.shape}")
    labels = np.asarray(y)
    if labels.ndim != 1 or len(labels) != len(inputs):
        raise invalid("y", f"of shape ({len(inputs)},)", f"shape {labels.shape}")
    if labels.dtype.kind == "f":
        check_finite("y", labels)
    try:
        classes, codes = np.unique(labels, return_inverse=True)
    except TypeError:
        raise wrong_type("y", "labels of one kind", y) from None
    if len(classes) < 2:
        raise invalid("y", "labels of at least two classes", f"{len(classes)}")
    with np.errstate(over="ignore"):
        inputs, end = inputs.astype(np.float32), len(inputs) - test
    if not np.isfinite(inputs).all():
        raise invalid("X", "within the range of float32", "larger values")
    parts = (inputs[probe:end], codes[probe:end], inputs[:probe], inputs[end:], codes[end:])
    x, y_train, stimuli, x_test, y_test = (np.ascontiguousarray(part) for part in parts)
    return Data(x, y_train, stimuli, x_test, y_test, len(classes)), tuple(times.tolist())


def _bar(items: Sequence[Any], progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(items, unit="block", disable=not progress)
