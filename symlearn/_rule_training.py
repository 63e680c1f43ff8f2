"""Many small networks trained side by side under four learning rules, with their observables on the way.

Every tensor has a leading axis of runs, sorted so that runs which share an operation are neighbours: Adam, then
momentum; errors through the weights, then through feedback. Biases are the last column of the weights. What a run draws
depends on its own seed alone, never on the other runs of the batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from symlearn._observables import NAMES, layer_statistics

ORDER = ("adam", "sgd_momentum", "feedback_alignment", "information_alignment")
ACTIVATIONS = ("tanh", "relu")
MOMENTUM, BETAS, EPS = 0.9, (0.9, 0.999), 1e-8
FEEDBACK_LR, AMPLIFY, DECAY, NULL = 0.01, 1.0, 0.5, 1.0
LR = {rule: (8e-4, 6.4e-3) if rule == "adam" else (0.01, 0.08) for rule in ORDER}
WEIGHT_DECAY = (1e-5, 1e-3)
RUNS_AT_ONCE = 48
TOO_LARGE = 1e8


@dataclass(frozen=True, eq=False)
class Data:
    """Float32 inputs and labels: training set, probe stimuli, test set."""

    x: np.ndarray
    y: np.ndarray
    probe: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    n_classes: int


@dataclass(frozen=True)
class Plan:
    """What all runs of one architecture share."""

    width: int
    depth: int
    activation: str
    n_steps: int
    times: tuple[int, ...]
    batch_size: int
    subsample: float = 1.0
    measurement_noise: float = 0.0


@dataclass(frozen=True, eq=False)
class Draw:
    """What one run has drawn: hyperparameters, weights (out, in), feedback above the first layer, and samples."""

    rule: str
    lr: float
    weight_decay: float
    weights: list[np.ndarray]
    feedback: list[np.ndarray]
    batches: np.ndarray
    rng: np.random.Generator


def draw_run(root: int, rule: str, run: int, plan: Plan, data: Data) -> Draw:
    """The random numbers of a run: a function of its address alone."""
    address = [root, plan.width, plan.depth, ACTIVATIONS.index(plan.activation), ORDER.index(rule), run]
    rng = np.random.default_rng(address)
    sizes = [data.x.shape[1], *[plan.width] * plan.depth, data.n_classes]
    lr, weight_decay = (_log_uniform(rng, bounds) for bounds in (LR[rule], WEIGHT_DECAY))
    weights = [_normal(rng, (n_out, n_in), n_in) for n_in, n_out in itertools.pairwise(sizes)]
    feedback = [_normal(rng, weight.shape, weight.shape[0]) for weight in weights[1:]]
    batches = rng.integers(len(data.x), size=(plan.n_steps, plan.batch_size))
    return Draw(rule, lr, weight_decay, weights, feedback, batches, rng)


def train(draws: Sequence[Draw], plan: Plan, data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (runs, times, layers, 24), test accuracy (runs,) and whether a run diverged (runs,)."""
    features = np.empty((len(draws), len(plan.times), plan.depth + 1, len(NAMES)))
    accuracy, diverged = np.empty(len(draws)), np.empty(len(draws), dtype=bool)
    order = np.argsort([ORDER.index(draw.rule) for draw in draws], kind="stable")
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # short operations: a second thread costs more than it gives
    try:
        for part in np.array_split(order, math.ceil(len(order) / RUNS_AT_ONCE)):
            features[part], accuracy[part], diverged[part] = _train_together([draws[i] for i in part], plan, data)
    finally:
        torch.set_num_threads(n_threads)
    return features, accuracy, diverged


@torch.inference_mode()
def _train_together(draws: list[Draw], plan: Plan, data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    networks, recorder = _Networks(draws, plan, data), _Recorder(draws, plan, data)
    batches = torch.from_numpy(np.stack([draw.batches for draw in draws], axis=1))  # (steps, runs, batch)
    features = np.zeros((len(draws), len(plan.times), plan.depth + 1, len(NAMES)))
    place = {time: i for i, time in enumerate(plan.times)}
    with np.errstate(all="ignore"):  # what overflows here is reported as diverged
        for step in range(plan.n_steps + 1):
            if step in place:
                features[:, place[step]] = recorder.record(networks)
            if step < plan.n_steps:
                networks.step(batches[step])
        good = (np.isfinite(features) & (np.abs(features) < TOO_LARGE)).all((2, 3))
    good = np.logical_and.accumulate(good, axis=1)
    last = np.maximum(good.sum(1) - 1, 0)
    held = np.minimum(np.arange(len(plan.times)), last[:, None])  # a diverged run stays where it was last seen
    features = np.take_along_axis(features, held[:, :, None, None], axis=1)
    return features, networks.accuracy(data), ~good[:, -1]


class _Networks:
    """Weights and moments of all runs, and one step of all rules."""

    def __init__(self, draws: list[Draw], plan: Plan, data: Data) -> None:
        rules = [draw.rule for draw in draws]
        n_adam, n_momentum, n_runs = rules.count("adam"), rules.count("sgd_momentum"), len(draws)
        self.adam, self.momentum = slice(0, n_adam), slice(n_adam, n_runs)
        self.exact, self.indirect = slice(0, n_adam + n_momentum), slice(n_adam + n_momentum, n_runs)
        self.aligning = slice(n_runs - rules.count("information_alignment"), n_runs)
        self.relu, self.batch_size = plan.activation == "relu", plan.batch_size
        self.weights = [_with_zero_bias([d.weights[i] for d in draws]) for i in range(plan.depth + 1)]
        above = range(plan.depth)
        self.feedback = [torch.from_numpy(np.stack([d.feedback[i] for d in draws]))[self.indirect] for i in above]
        self.first = [torch.zeros_like(weight) for weight in self.weights]
        self.second = [torch.zeros_like(weight[self.adam]) for weight in self.weights]
        self.lr = torch.tensor([draw.lr for draw in draws], dtype=torch.float32)[:, None, None]
        self.weight_decay = torch.tensor([draw.weight_decay for draw in draws], dtype=torch.float32)[:, None, None]
        self.x, self.y = _with_ones(torch.from_numpy(data.x)), torch.from_numpy(data.y)
        self.count = 0

    def step(self, chosen: Tensor) -> None:
        """One minibatch of its own for each run; ``chosen`` has shape (runs, batch)."""
        self.count += 1
        inputs = self.x[chosen]  # (runs, batch, n + 1)
        activity, totals = [inputs], []
        for weight in self.weights:
            totals.append(torch.bmm(activity[-1], weight.mT))
            if len(totals) < len(self.weights):
                activity.append(self._activate(totals[-1]))
        delta = totals[-1].softmax(-1)
        delta.scatter_add_(2, self.y[chosen].unsqueeze(2), delta.new_full((*chosen.shape, 1), -1.0))
        delta /= self.batch_size
        gradients: list[Tensor] = []
        for layer in range(len(self.weights) - 1, -1, -1):
            gradients.insert(0, torch.bmm(delta.mT, activity[layer]))
            if layer:
                delta = self._descend(delta, layer, activity[layer][..., :-1])
        for layer in range(len(self.feedback)):
            self._align(layer, activity[layer + 1][self.aligning, :, :-1], totals[layer + 1][self.aligning])
        for layer, gradient in enumerate(gradients):
            self._update(layer, gradient)

    def probe(self, stimuli: Tensor) -> list[Tensor]:
        """Activity of every layer, each (runs, stimuli, units), logits last; ``stimuli`` has a column of ones."""
        activity, found = stimuli, []
        for weight in self.weights[:-1]:
            activity = self._activate(activity @ weight.mT)
            found.append(activity[..., :-1])
        return [*found, activity @ self.weights[-1].mT]

    def slopes(self, activity: Tensor) -> Tensor:
        """Derivative of the activation, as a function of its value."""
        return (activity > 0).float() if self.relu else 1 - activity.square()

    def accuracy(self, data: Data) -> np.ndarray:
        """Share of the test set that each run gets right."""
        logits = self.probe(_with_ones(torch.from_numpy(data.x_test)))[-1]
        return (logits.argmax(-1) == torch.from_numpy(data.y_test)).double().mean(-1).numpy()

    def _activate(self, totals: Tensor) -> Tensor:
        """With a column of ones for the biases above."""
        values = totals.new_ones((*totals.shape[:-1], totals.shape[-1] + 1))
        if self.relu:
            torch.clamp_min(totals, 0, out=values[..., :-1])
        else:
            torch.tanh(totals, out=values[..., :-1])
        return values

    def _descend(self, delta: Tensor, layer: int, activity: Tensor) -> Tensor:
        below = delta.new_empty(activity.shape)
        torch.bmm(delta[self.exact], self.weights[layer][self.exact, :, :-1], out=below[self.exact])
        torch.bmm(delta[self.indirect], self.feedback[layer - 1], out=below[self.indirect])
        return below.mul_(activity > 0) if self.relu else below.addcmul_(below * activity, activity, value=-1)

    def _align(self, layer: int, arriving: Tensor, totals: Tensor) -> None:
        """Amplify, decay and null, before the weights change; the response is without bias."""
        count = self.aligning.stop - self.aligning.start
        if not count:
            return
        response = totals - self.weights[layer + 1][self.aligning, :, -1].unsqueeze(1)
        feedback = self.feedback[layer][len(self.feedback[layer]) - count :]
        error = torch.baddbmm(arriving, response, feedback, beta=AMPLIFY, alpha=-NULL)
        rate = FEEDBACK_LR / self.batch_size
        feedback.baddbmm_(response.mT, error, beta=1 - FEEDBACK_LR * DECAY, alpha=rate)

    def _update(self, layer: int, gradient: Tensor) -> None:
        weight, first = self.weights[layer], self.first[layer]
        gradient.addcmul_(weight, self.weight_decay)
        part = self.momentum
        first[part].mul_(MOMENTUM).add_(gradient[part])
        weight[part].addcmul_(first[part], self.lr[part], value=-1)
        part, second = self.adam, self.second[layer]
        first[part].lerp_(gradient[part], 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient[part], gradient[part], value=1 - BETAS[1])
        size = second.sqrt().div_(math.sqrt(1 - BETAS[1] ** self.count)).add_(EPS)
        weight[part].addcmul_(first[part] / size, self.lr[part], value=-1 / (1 - BETAS[0] ** self.count))


class _Recorder:
    """Observables of all layers, perhaps of a few units and with noise."""

    def __init__(self, draws: list[Draw], plan: Plan, data: Data) -> None:
        self.stimuli = _with_ones(torch.from_numpy(data.probe))
        self.noise, self.rngs = plan.measurement_noise, [draw.rng for draw in draws]
        self.entries: list[Tensor | None] = [None] * (plan.depth + 1)
        self.units: list[Tensor | None] = [None] * (plan.depth + 1)
        if plan.subsample < 1:
            shapes = [weight.shape for weight in draws[0].weights]
            self.entries = [self._kept(math.prod(shape), plan.subsample) for shape in shapes]
            self.units = [self._kept(shape[0], plan.subsample) for shape in shapes]

    def record(self, networks: _Networks) -> np.ndarray:
        """Observables now, shape (runs, layers, 24)."""
        layers = []
        responses = networks.probe(self.stimuli)
        for layer, activity in enumerate(responses):
            weight = networks.weights[layer][..., :-1]
            slopes = networks.slopes(activity) if layer < len(responses) - 1 else torch.ones_like(activity)
            fans, units, entries = weight.sum(-1), self.units[layer], self.entries[layer]
            weights = weight.flatten(1)
            if units is not None and entries is not None:
                rows = units.unsqueeze(1).expand(-1, activity.shape[1], -1)
                activity, slopes = activity.gather(2, rows), slopes.gather(2, rows)
                fans, weights = fans.gather(1, units), weights.gather(1, entries)
            gains = torch.bmm(slopes, fans.unsqueeze(2)).squeeze(2) / fans.shape[1]
            values = (weights.numpy(), activity.numpy(), gains.numpy())
            layers.append(layer_statistics(*(self._noisy(each) for each in values)))
        return np.stack(layers, axis=1)

    def _kept(self, n: int, fraction: float) -> Tensor:
        """Which of n things each run keeps, shape (runs, kept)."""
        count = math.ceil(fraction * n)
        return torch.from_numpy(np.stack([np.sort(rng.permutation(n)[:count]) for rng in self.rngs]))

    def _noisy(self, values: np.ndarray) -> np.ndarray:
        if not self.noise:
            return values
        axes = tuple(range(1, values.ndim))
        noise = np.stack([rng.standard_normal(values.shape[1:], dtype=np.float32) for rng in self.rngs])
        return values + np.float32(self.noise) * values.std(axes, keepdims=True) * noise


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(bounds))))


def _normal(rng: np.random.Generator, shape: tuple[int, ...], fan: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32) / np.float32(math.sqrt(fan))


def _with_zero_bias(weights: list[np.ndarray]) -> Tensor:
    stacked = torch.from_numpy(np.stack(weights))
    return torch.cat([stacked, stacked.new_zeros((*stacked.shape[:-1], 1))], dim=-1)


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones((len(x), 1))], dim=1)
