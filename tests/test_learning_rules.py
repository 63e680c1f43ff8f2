"""Four learning rules against references, the laboratory against single runs, charges, scales, and classifiers."""

import itertools
import logging
import math

import joblib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.base import clone
from sklearn.model_selection import GroupShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from symlearn.datasets import digits
from symlearn.learning_rules import (
    LearningRule,
    RuleClassifier,
    RuleState,
    TrajectoryDataset,
    conserved_charge,
    information_alignment_fixed_point,
    laboratory_run,
    layer_observables,
    learning_rule,
    make_dataset,
    observable_statistics,
)
from symlearn.models import small_cnn
from symlearn.sweep import grid, sweep

RULES = ("sgd_momentum", "adam", "feedback_alignment", "information_alignment")
SMALL = {"n_steps": 20, "n_checkpoints": 3, "n_probe": 8, "n_test": 40}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chain(*sizes, activation=nn.Tanh, bias=True, seed=0):
    layers = []
    for n_in, n_out in itertools.pairwise(sizes):
        layer = nn.Linear(n_in, n_out, bias=bias, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(n_out, n_in, generator=seeded(seed + n_in), dtype=torch.float64) / n_in**0.5)
            if bias:
                layer.bias.copy_(0.1 * torch.randn(n_out, generator=seeded(seed + n_out), dtype=torch.float64))
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def batch(n=12, n_inputs=6, n_classes=4, seed=1):
    x = torch.randn(n, n_inputs, generator=seeded(seed), dtype=torch.float64)
    return x, torch.randint(n_classes, (n,), generator=seeded(seed + 1))


def toy(n=120, n_inputs=6, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, n_inputs))
    return X, X[:, :n_classes].argmax(1)


# The rules


@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
@pytest.mark.parametrize("name", ["sgd_momentum", "adam"])
def test_rules_without_feedback_are_the_optimizers_of_torch(name, weight_decay):
    model = chain(6, 7, 5, 4)
    if name == "adam":
        rule = learning_rule(name, lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay)
        reference = chain(6, 7, 5, 4)
        optimizer = torch.optim.Adam(
            reference.parameters(), lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay
        )
    else:
        rule = learning_rule(name, lr=0.1, momentum=0.7, weight_decay=weight_decay)
        reference = chain(6, 7, 5, 4)
        optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.7, weight_decay=weight_decay)
    state = rule.init(model)
    for seed in range(25):
        x, y = batch(seed=seed)
        optimizer.zero_grad()
        loss = F.cross_entropy(reference(x), y)
        loss.backward()
        optimizer.step()
        state, found = rule.step(state, x, y)
        assert found == pytest.approx(float(loss.detach()), rel=1e-12)
    for key, value in reference.named_parameters():
        torch.testing.assert_close(state.params[key], value.detach(), rtol=1e-9, atol=1e-12)
    assert state.feedback == {}
    assert state.n_steps == 25


def numpy_feedback_step(params, feedback, velocity, x, y, lr, momentum, weight_decay, align, relu):
    """One step of an MLP with feedback, written out sample by sample in NumPy from the definitions."""
    depth = len(params)
    gradients = [[np.zeros_like(w), np.zeros_like(c)] for w, c in params]
    covariances = [[np.zeros_like(w), np.zeros((len(w), len(w)))] for w, _ in params]
    for sample, label in zip(x, y, strict=True):
        h, a = [sample], []
        for layer, (w, c) in enumerate(params):
            a.append(w @ h[-1] + c)
            last = layer == depth - 1
            h.append(a[-1] if last else (np.maximum(a[-1], 0) if relu else np.tanh(a[-1])))
        p = np.exp(a[-1] - a[-1].max())
        delta = p / p.sum() - np.eye(len(p))[label]
        for layer in range(depth - 1, -1, -1):
            gradients[layer][0] += np.outer(delta, h[layer]) / len(x)
            gradients[layer][1] += delta / len(x)
            plain = params[layer][0] @ h[layer]
            covariances[layer][0] += np.outer(plain, h[layer]) / len(x)
            covariances[layer][1] += np.outer(plain, plain) / len(x)
            if layer:
                slope = (a[layer - 1] > 0) * 1.0 if relu else 1 / np.cosh(a[layer - 1]) ** 2
                delta = slope * (feedback[layer].T @ delta)
    for layer in range(1, depth if align else 0):
        eta, alpha, beta, gamma = align
        amplified, response = covariances[layer]
        old = feedback[layer]
        feedback[layer] = old + eta * (alpha * amplified - beta * old - gamma * response @ old)
    for pair, slopes, moments in zip(params, gradients, velocity, strict=True):
        for k in (0, 1):
            moments[k] = momentum * moments[k] + slopes[k] + weight_decay * pair[k]
            pair[k] = pair[k] - lr * moments[k]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", RULES[2:])
def test_rules_with_feedback_are_the_definition_written_out(name, relu):
    model = chain(6, 7, 5, 4, activation=nn.ReLU if relu else nn.Tanh)
    options = {"feedback_lr": 0.05, "amplify": 0.7, "decay": 0.3, "null": 1.2}
    rule = learning_rule(name, lr=0.1, momentum=0.8, weight_decay=0.01, **options)
    state = rule.init(model, seeded(5))
    params = [[m.weight.detach().numpy().copy(), m.bias.detach().numpy().copy()] for m in model[::2]]
    feedback = {1: state.feedback["2.weight"].numpy().copy(), 2: state.feedback["4.weight"].numpy().copy()}
    velocity = [[np.zeros_like(w), np.zeros_like(c)] for w, c in params]
    align = tuple(options.values()) if name == "information_alignment" else None
    for seed in range(12):
        x, y = batch(seed=seed)
        state, _ = rule.step(state, x, y)
        numpy_feedback_step(params, feedback, velocity, x.numpy(), y.numpy(), 0.1, 0.8, 0.01, align, relu)
    for i, (w, c) in enumerate(params):
        np.testing.assert_allclose(state.params[f"{2 * i}.weight"].numpy(), w, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(state.params[f"{2 * i}.bias"].numpy(), c, rtol=1e-9, atol=1e-11)
        if i:
            np.testing.assert_allclose(state.feedback[f"{2 * i}.weight"].numpy(), feedback[i], rtol=1e-9, atol=1e-11)


def with_feedback(state, feedback):
    from dataclasses import replace

    return replace(state, feedback=feedback)


@pytest.mark.parametrize(
    "model",
    [
        small_cnn((1, 8, 8), n_classes=4, generator=seeded(3)),
        nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Tanh()),
            nn.Flatten(),
            nn.Linear(24, 4),
        ),
    ],
    ids=["small_cnn", "strides, groups, nested"],
)
def test_feedback_equal_to_the_weights_is_backpropagation_in_any_chain(model):
    x = torch.randn(5, 1, 8, 8, generator=seeded())
    y = torch.randint(4, (5,), generator=seeded(1))
    rule, exact = (learning_rule(name, lr=0.1) for name in ("feedback_alignment", "sgd_momentum"))
    state = rule.init(model, seeded())
    weights = [key for key, value in model.named_parameters() if value.ndim > 1]
    assert list(state.feedback) == weights[1:]
    state = with_feedback(state, {key: state.params[key] for key in state.feedback})
    one, other = rule.step(state, x, y), exact.step(exact.init(model), x, y)
    assert one[1] == pytest.approx(other[1], rel=1e-6)
    for key, value in one[0].params.items():
        torch.testing.assert_close(value, other[0].params[key])
    random, _ = rule.step(rule.init(model, seeded()), x, y)
    first = weights[0]
    assert not torch.allclose(random.params[first], other[0].params[first], atol=1e-6)


def test_information_alignment_of_a_convolution_of_one_position_is_that_of_a_linear_layer():
    flat = chain(5, 6, 4, seed=2)
    conv = nn.Sequential(nn.Conv2d(5, 6, 1), nn.Tanh(), nn.Conv2d(6, 4, 1), nn.Flatten()).double()
    for i in (0, 2):
        conv[i].load_state_dict({"weight": flat[i].weight[:, :, None, None], "bias": flat[i].bias})
    rule, (x, y) = learning_rule("information_alignment", lr=0.1), batch(9, 5)
    one, other = rule.init(flat, seeded()), rule.init(conv, seeded())
    other = with_feedback(other, {"2.weight": one.feedback["2.weight"][:, :, None, None]})
    for _ in range(5):
        one, _ = rule.step(one, x, y)
        other, _ = rule.step(other, x[:, :, None, None], y)
    torch.testing.assert_close(one.feedback["2.weight"], other.feedback["2.weight"][:, :, 0, 0])
    torch.testing.assert_close(one.params["0.weight"], other.params["0.weight"][:, :, 0, 0])


def test_feedback_starts_with_variance_one_over_the_fan_out():
    linear = nn.Sequential(nn.Linear(3, 300), nn.ReLU(), nn.Linear(300, 200))
    conv = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ReLU(), nn.Conv2d(40, 50, 3), nn.Flatten(), nn.Linear(200, 3))
    rule = learning_rule("feedback_alignment", lr=0.1)
    assert float(rule.init(linear, seeded()).feedback["2.weight"].var() * 200) == pytest.approx(1, rel=0.02)
    assert float(rule.init(conv, seeded()).feedback["2.weight"].var() * 450) == pytest.approx(1, rel=0.05)


def test_a_normalised_network_learns_and_its_own_buffers_stay():
    first, _, second = chain(6, 8, 4)
    model = nn.Sequential(first, nn.BatchNorm1d(8), nn.ReLU(), second).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rule, (x, y) = learning_rule("feedback_alignment", lr=0.05), batch(40)
    state, losses = rule.init(model, seeded()), []
    for _ in range(80):
        state, loss = rule.step(state, x, y)
        losses.append(loss)
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert int(state.network()[1].num_batches_tracked) == 80


def test_states_are_never_changed_and_the_model_keeps_its_weights_mode_and_gradients():
    model, (x, y) = chain(6, 7, 4), batch()
    model.eval()
    copies = {key: value.detach().clone() for key, value in model.named_parameters()}
    rule = learning_rule("information_alignment", lr=0.1)
    random = torch.get_rng_state()
    first = rule.init(model, seeded())
    kept = {key: value.clone() for key, value in first.feedback.items()}
    second, _ = rule.step(first, x, y)
    third, _ = rule.step(second, x, y)
    again, _ = rule.step(second, x, y)
    assert torch.equal(third.params["0.weight"], again.params["0.weight"])
    assert all(torch.equal(value, kept[key]) for key, value in first.feedback.items())
    assert all(torch.equal(value, copies[key]) for key, value in first.params.items())
    assert all(torch.equal(value, copies[key]) for key, value in model.named_parameters())
    assert all(value.grad is None and value.requires_grad for value in model.parameters())
    assert not model.training
    assert not any(value.requires_grad for value in third.params.values())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_state_gives_a_network_and_keeps_the_dtype():
    model, (x, y) = chain(6, 7, 4), batch()
    rule = learning_rule("adam", lr=0.1)
    state, _ = rule.step(rule.init(model), x.float(), y.to(torch.int32))
    network = state.network()
    assert torch.equal(network[0].weight.detach(), state.params["0.weight"])
    assert network[0].weight.dtype == torch.float64
    assert not torch.equal(network[0].weight, model[0].weight)


def test_every_rule_is_a_learning_rule_and_keeps_hyperparameters_in_its_repr():
    for name in RULES:
        rule = learning_rule(name, lr=0.25)
        assert isinstance(rule, LearningRule)
        assert "lr=0.25" in repr(rule)
        assert isinstance(rule.init(chain(3, 4, 2), seeded()), RuleState)


# Theory: charges, alignment, scales


def flow(name, activation, dt, duration=4.0):
    """Largest drift, over its size, of both charges: all entries, the diagonal, and entries off it."""
    model = chain(6, 8, 3, activation=activation, bias=False, seed=11)
    x, y = batch(40, 6, 3, seed=4)
    rule = learning_rule(name, lr=dt, momentum=0.0)
    start = state = rule.init(model, seeded(2))
    down = seeded(2)
    down = torch.randn(3, 8, generator=down, dtype=torch.float64) / math.sqrt(3)
    for _ in range(round(duration / dt)):
        state, _ = rule.step(state, x, y)
    drifts = []
    for feedback in (None, down):
        one, other = (conserved_charge(s.params["0.weight"], s.params["2.weight"], feedback) for s in (start, state))
        change = np.abs(other - one)
        drifts.append((np.diag(change).max(), (change - np.diag(np.diag(change))).max()))
    return np.array(drifts)


@pytest.mark.parametrize(("name", "own"), [("sgd_momentum", 0), ("feedback_alignment", 1)])
def test_each_rule_conserves_its_own_charge_and_not_the_other(name, own):
    fine, coarse = flow(name, nn.Identity, 0.005), flow(name, nn.Identity, 0.01)
    assert fine[own].max() < 5e-3
    assert fine[1 - own].max() > 0.1
    # the drift is the second order of a step: halving it halves the drift
    np.testing.assert_allclose(coarse[own] / fine[own], 2, rtol=0.1)


@pytest.mark.parametrize(("name", "own"), [("sgd_momentum", 0), ("feedback_alignment", 1)])
def test_relu_networks_conserve_only_the_diagonal(name, own):
    diagonal, off = flow(name, nn.ReLU, 0.005)[own]
    assert diagonal < 5e-3
    assert off > 0.05
    assert flow(name, nn.ReLU, 0.005)[1 - own][0] > 0.05


def test_one_step_changes_the_charge_by_the_second_order_exactly():
    model, (x, y) = chain(6, 8, 4, activation=nn.Identity, bias=False), batch()
    rule = learning_rule("sgd_momentum", lr=0.3, momentum=0.0)
    before = rule.init(model)
    after, _ = rule.step(before, x, y)
    w1, w2 = (before.params[key].numpy() for key in ("0.weight", "2.weight"))
    g1, g2 = ((before.params[key] - after.params[key]).numpy() for key in ("0.weight", "2.weight"))
    new = conserved_charge(after.params["0.weight"], after.params["2.weight"])
    np.testing.assert_allclose(new - conserved_charge(w1, w2), g1 @ g1.T - g2.T @ g2, atol=1e-13)


def test_charges_of_many_times_at_once_are_symmetric_and_those_of_single_times():
    rng = np.random.default_rng(0)
    w1, w2, b = rng.normal(size=(5, 4, 3)), rng.normal(size=(5, 2, 4)), rng.normal(size=(2, 4))
    plain, other = conserved_charge(w1, w2), conserved_charge(torch.tensor(w1), torch.tensor(w2), b)
    np.testing.assert_allclose(plain, plain.mT)
    np.testing.assert_allclose(plain[2], w1[2] @ w1[2].T - w2[2].T @ w2[2])
    np.testing.assert_allclose(other[2], w1[2] @ w1[2].T - b.T @ w2[2] - w2[2].T @ b)


def test_feedback_alignment_from_zero_weights_aligns_from_the_first_step():
    model = chain(10, 12, 3, activation=nn.Identity, bias=False)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.zero_()
    rule = learning_rule("feedback_alignment", lr=0.02, momentum=0.0)
    state = rule.init(model, seeded())
    # orthogonal feedback: B^T B = rho I, and W1 = B S
    orthogonal = torch.linalg.qr(torch.randn(12, 3, generator=seeded(1), dtype=torch.float64))[0].T * 1.5
    state = with_feedback(state, {"2.weight": orthogonal})
    x, y = batch(60, 10, 3)
    y = x[:, :3].argmax(1)
    for _ in range(400):
        state, _ = rule.step(state, x, y)
        trace = float((state.params["2.weight"] * orthogonal).sum())
        assert trace > -1e-12
    w1, w2 = state.params["0.weight"], state.params["2.weight"]
    s = orthogonal @ w1 / 1.5**2
    torch.testing.assert_close(w1, orthogonal.T @ s, atol=1e-12, rtol=0)
    # tr(W2 B) = rho/2 |S|^2, up to the discretisation of the flow
    assert trace == pytest.approx(0.5 * 1.5**2 * float(s.norm() ** 2), rel=0.03)
    # errors of a softmax sum to zero over the classes, so of three directions only two can align
    assert float(F.cosine_similarity(w2.flatten(), orthogonal.flatten(), 0)) == pytest.approx(
        math.sqrt(2 / 3), rel=0.02
    )


def frozen_alignment(options, n_steps=2500):
    """Feedback of a layer whose weights and inputs stand still, and its fixed point."""
    model, (x, y) = chain(8, 8, 5, activation=nn.Identity), batch(200, 8, 5)
    rule = learning_rule("information_alignment", lr=1e-300, feedback_lr=0.05, **options)
    state = rule.init(model, seeded())
    for _ in range(n_steps):
        state, _ = rule.step(state, x, y)
    inputs = model[0](x).detach()
    second = inputs.T @ inputs / len(x)
    return state.feedback["2.weight"].numpy(), information_alignment_fixed_point(
        model[2].weight.detach(), second, **options
    )


@pytest.mark.parametrize("options", [{}, {"amplify": 0.6, "decay": 0.2, "null": 0.8}])
def test_information_alignment_comes_to_its_fixed_point(options):
    found, expected = frozen_alignment(options)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert np.abs(expected).max() > 0.05


def test_information_alignment_diverges_beyond_its_step():
    model, (x, y) = chain(8, 8, 5, activation=nn.Identity), batch(200, 8, 5)
    response = (model[2](model[0](x)) - model[2].bias).detach()
    largest = float(torch.linalg.eigvalsh(response.T @ response / len(x))[-1])
    sizes = []
    for factor in (0.97, 1.03):
        rate = factor * 2 / (0.5 + largest)
        rule = learning_rule("information_alignment", lr=1e-300, feedback_lr=rate)
        state = rule.init(model, seeded())
        for _ in range(400):
            state, _ = rule.step(state, x, y)
        sizes.append(float(state.feedback["2.weight"].abs().max()))
    assert sizes[0] < 5
    assert sizes[1] > 1e3


def test_fixed_point_between_transpose_and_pseudo_inverse():
    weight = np.random.default_rng(0).standard_normal((40, 40)) / math.sqrt(40)
    values = np.linalg.svd(weight, compute_uv=False)
    for beta in (0.01, 0.1, 1.0, 10.0, 100.0):
        found = information_alignment_fixed_point(weight, np.eye(40), decay=beta)
        cosine = (found * weight).sum() / np.linalg.norm(found) / np.linalg.norm(weight)
        gains = values / (values**2 + beta)
        assert cosine == pytest.approx(gains @ values / np.linalg.norm(gains) / np.linalg.norm(values), rel=1e-10)
    assert cosine > 0.999
    narrow = weight[:10]
    limit = information_alignment_fixed_point(narrow, np.eye(40), decay=0.0)
    np.testing.assert_allclose(limit, np.linalg.pinv(narrow).T, atol=1e-10)
    with pytest.raises(ValueError, match="decay must be > 0 where"):
        information_alignment_fixed_point(np.ones((3, 2)), np.eye(2), decay=0.0)


def noisy_updates(rule, n_steps=1200, n_burn=400):
    """Updates over lr, of weights driven by gradients that are noise, and the s.d. of these gradients."""
    model = nn.Sequential(nn.Linear(100, 10, bias=False, dtype=torch.float64))
    nn.init.zeros_(model[0].weight)
    state, generator, updates, total = rule.init(model), seeded(), [], 0
    for _ in range(n_steps):
        x = torch.randn(4, 100, generator=generator, dtype=torch.float64)
        before = state.params["0.weight"]
        state, _ = rule.step(state, x, torch.randint(10, (4,), generator=generator))
        updates.append((state.params["0.weight"] - before) / rule.lr)
    total = torch.stack(updates[n_burn:]).sum(0)
    kept = torch.stack(updates[n_burn:])
    # one sample has the gradient (1/10 - [k = y]) x, of variance 0.09 in each entry
    return updates[0], float(kept.square().mean().sqrt()), float(total.square().mean() / len(kept)), math.sqrt(0.09 / 4)


def test_adam_moves_by_its_rate_whatever_the_gradient():
    rule = learning_rule("adam", lr=1e-7)
    first, rms, diffusion, _ = noisy_updates(rule)
    torch.testing.assert_close(first.abs(), torch.ones_like(first), atol=1e-4, rtol=0)
    # 1000 weights over 800 steps; the second moment is still forgetting its start
    assert rms == pytest.approx(math.sqrt(0.1 / 1.9), rel=0.02)
    assert diffusion == pytest.approx(1, rel=0.1)


def test_momentum_moves_by_the_size_of_the_gradient():
    _, rms, diffusion, spread = noisy_updates(learning_rule("sgd_momentum", lr=1e-7))
    assert rms == pytest.approx(spread / math.sqrt(1 - 0.81), rel=0.02)
    assert diffusion == pytest.approx(spread**2 / 0.01, rel=0.1)


# Statistics


TRANSFORMS = {"raw": lambda u: u, "abs": np.abs, "sq": np.square}
STATISTICS = {
    "mean": np.mean,
    "median": np.median,
    "norm": np.linalg.norm,
    "thirdquartile": lambda u: np.percentile(u, 75),
    "var": np.var,
    "skew": lambda u: 3 * (u.mean() - np.median(u)) / u.std(),
    "kurtosis": lambda u: stats.kurtosis(u, fisher=False),
}


@pytest.mark.parametrize("shape", [(5, 30), (7, 1001), (1, 4)])
def test_all_statistics_are_those_of_numpy_and_scipy_row_by_row(shape):
    values = np.random.default_rng(0).standard_normal(shape) + 0.3
    found = observable_statistics(values, "all")
    assert len(found) == 21
    for name, value in found.items():
        f, s = name.split("_")
        expected = np.mean([STATISTICS[s](TRANSFORMS[f](row)) for row in values])
        assert value == pytest.approx(expected, rel=1e-10), name


@given(values=arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e3, 1e3)))
@settings(max_examples=60, deadline=None)
def test_statistics_of_weights_are_over_all_entries(values):
    found = observable_statistics(values)
    assert list(found) == [
        *(f"{f}_{s}" for f in ("abs", "raw") for s in ("mean", "median", "norm", "thirdquartile", "var")),
        "sq_mean",
        "sq_median",
        "sq_thirdquartile",
    ]
    for name, value in found.items():
        f, s = name.split("_")
        assert value == pytest.approx(STATISTICS[s](TRANSFORMS[f](values)), rel=1e-9, abs=1e-9), name


def test_statistics_of_activations_are_means_over_stimuli():
    values = np.random.default_rng(1).standard_normal((6, 9))
    found = observable_statistics(torch.tensor(values), "activation")
    assert list(found) == [f"{f}_{s}" for f in ("abs", "raw") for s in ("mean", "median", "norm", "thirdquartile")]
    assert found["abs_norm"] == pytest.approx(np.linalg.norm(values, axis=1).mean())
    assert observable_statistics(values[0], "activation")["raw_mean"] == pytest.approx(values[0].mean())
    assert observable_statistics(values)["raw_norm"] == pytest.approx(np.linalg.norm(values))


def test_layer_observables_of_a_network_by_hand():
    model, x = chain(6, 7, 5, 4), torch.randn(9, 6, generator=seeded(), dtype=torch.float64)
    found = layer_observables(model, x)
    names = make_dataset(*toy(), runs_per_rule=1, widths=(4,), **SMALL, rng=0).names
    assert found.shape == (3, 24)
    h = x
    for layer, linear in enumerate(model[::2]):
        below = h.clone().requires_grad_()
        h = linear(below) if layer == 2 else torch.tanh(linear(below))
        (gains,) = torch.autograd.grad(h.sum(), below)  # the sum over stimuli keeps them apart
        gains = gains.sum(1) / h.shape[1]
        h = h.detach()
        row = dict(zip(names, found[layer], strict=True))
        for key, value in observable_statistics(linear.weight.detach()).items():
            assert row[f"weight_{key}"] == pytest.approx(value, rel=1e-10)
        for key, value in observable_statistics(h, "activation").items():
            assert row[f"activation_{key}"] == pytest.approx(value, rel=1e-10)
        assert row["gradient_raw"] == pytest.approx(float(gains.mean()), rel=1e-9)
        assert row["gradient_abs"] == pytest.approx(float(gains.abs().mean()), rel=1e-9)
        assert row["gradient_sq"] == pytest.approx(float(gains.square().mean()), rel=1e-9)


def test_layer_observables_of_a_convolutional_network():
    model = small_cnn((1, 8, 8), n_classes=4, generator=seeded())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(3, 1, 8, 8, generator=seeded())
    found = layer_observables(model, x)
    assert found.shape == (sum(value.ndim > 1 for value in model.parameters()), 24)
    assert np.isfinite(found).all()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    conv = next(layer for layer in model if isinstance(layer, nn.Conv2d))
    after = torch.relu(conv(x))
    (slope,) = torch.autograd.grad(torch.relu(conv(leaf := x.clone().requires_grad_())).sum(), leaf)
    gain = float(slope.flatten(1).sum(1).mean()) / after[0].numel()
    assert found[0, 22] == pytest.approx(gain, rel=1e-5)  # names[22] is gradient_raw


# The laboratory


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("rule", RULES)
def test_a_run_of_the_batch_is_the_run_done_alone_by_autograd(rule, activation):
    data = digits()
    X, y = 2 * data.x_train[:500], data.y_train[:500]
    options = {"n_steps": 40, "n_probe": 16, "n_test": 50, "rng": 5}
    made = make_dataset(
        X, y, rules=RULES, runs_per_rule=3, widths=(12,), activations=(activation,), n_checkpoints=5, **options
    )
    index = RULES.index(rule) * 3 + 1
    assert made.rule[index] == rule
    one = laboratory_run(X, y, rule=rule, run=1, width=12, activation=activation, **options)
    state, rows = one.state, [layer_observables(one.model, one.probe)]
    for step, (inputs, labels) in enumerate(one.batches, start=1):
        state, _ = one.rule.step(state, inputs, labels)
        if step in made.times:
            rows.append(layer_observables(state.network(), one.probe))
    # float32, 40 steps
    np.testing.assert_allclose(made.features[index], np.stack(rows), rtol=2e-3, atol=2e-4)
    test = torch.tensor(X[-50:])
    found = float((state.network()(test).argmax(1).numpy() == y[-50:]).mean())
    assert made.accuracy[index] == pytest.approx(found, abs=0.021)
    assert (made.lr[index], made.weight_decay[index]) == (one.rule.lr, one.rule.weight_decay)
    assert np.abs(made.features[index, -1] - made.features[index, 0]).max() > 0.01


def test_a_run_does_not_depend_on_what_else_is_in_the_data_set():
    X, y = toy()
    whole = make_dataset(X, y, runs_per_rule=4, widths=(5, 7), activations=("tanh", "relu"), rng=3, **SMALL)
    part = make_dataset(X, y, rules=("adam",), runs_per_rule=2, widths=(7,), activations=("relu",), rng=3, **SMALL)
    same = (whole.rule == "adam") & (whole.architecture == "7x2-relu")
    np.testing.assert_allclose(whole.features[same][:2], part.features, rtol=1e-4, atol=1e-6)
    assert len(whole.rule) == 4 * 4 * 4


def test_the_same_seed_gives_the_same_data_set_and_global_randomness_and_threads_stay():
    X, y = toy()
    numpy_state, torch_state, threads = np.random.get_state()[1].copy(), torch.get_rng_state(), torch.get_num_threads()  # noqa: NPY002
    copies = X.copy(), y.copy()
    options = {"runs_per_rule": 3, "widths": (6,), "subsample": 0.5, "measurement_noise": 0.3, **SMALL}
    one, other = (make_dataset(X, y, rng=1, **options) for _ in range(2))
    different = make_dataset(X, y, rng=2, **options)
    generator = make_dataset(X, y, rng=np.random.default_rng(1), **options)
    assert np.array_equal(one.features, other.features)
    assert np.array_equal(one.features, generator.features)
    assert not np.array_equal(one.features, different.features)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.get_num_threads() == threads
    assert np.array_equal(X, copies[0])
    assert np.array_equal(y, copies[1])


def test_shapes_names_and_order_of_a_data_set():
    X, y = toy()
    made = make_dataset(X, y, runs_per_rule=2, widths=(5, 6), depth=3, rng=0, **{**SMALL, "n_checkpoints": 5})
    assert made.features.shape == (16, 5, 4, 24)
    assert made.times.tolist() == [0, 5, 10, 15, 20]
    assert made.architecture.tolist() == ["5x3-tanh"] * 8 + ["6x3-tanh"] * 8
    assert made.rule.tolist() == [name for _ in range(2) for name in RULES for _ in range(2)]
    assert made.names[0] == "weight_abs_mean"
    assert made.names[13] == "activation_abs_mean"
    assert made.names[21:] == ("gradient_abs", "gradient_raw", "gradient_sq")
    assert len(set(made.names)) == 24
    assert np.isfinite(made.features).all()
    assert ((made.accuracy >= 0) & (made.accuracy <= 1)).all()


def test_hyperparameters_are_drawn_from_their_ranges():
    made = make_dataset(*toy(), runs_per_rule=60, widths=(3,), rng=0, **{**SMALL, "n_steps": 2})
    for name in RULES:
        rates = made.lr[made.rule == name]
        low, high = (8e-4, 6.4e-3) if name == "adam" else (0.01, 0.08)
        assert low <= rates.min() < 1.3 * low
        assert high / 1.3 < rates.max() <= high
        # log-uniform: the median is the geometric mean of the ends, within 0.6 of the 2.08 of the logarithm
        assert np.log(np.median(rates)) == pytest.approx(np.log(low * high) / 2, abs=0.3)
    assert made.weight_decay.min() >= 1e-5
    assert made.weight_decay.max() <= 1e-3


def test_all_rules_learn_the_digits():
    data = digits()
    made = make_dataset(2 * data.x_train, data.y_train, runs_per_rule=4, widths=(24,), n_checkpoints=2, rng=0)
    for name, least in zip(RULES, (0.95, 0.93, 0.9, 0.85), strict=True):
        assert made.accuracy[made.rule == name].mean() > least


def test_a_run_that_diverges_is_marked_held_and_left_out():
    rng = np.random.default_rng(0)
    X, y = 40 * rng.standard_normal((150, 6)), rng.integers(3, size=150)
    made = make_dataset(X, y, runs_per_rule=6, widths=(8,), activations=("relu",), rng=0, **{**SMALL, "n_steps": 60})
    bad = made.diverged
    assert bad[made.rule == "information_alignment"].any()
    assert np.isfinite(made.features).all()
    assert np.isfinite(made.accuracy).all()
    _, labels, groups = made.examples()
    assert set(groups) == set(np.flatnonzero(~bad))
    assert len(labels) == 3 * (~bad).sum()
    one = made.features[np.flatnonzero(bad)[0]]
    assert np.array_equal(one[-1], one[-2]) or np.array_equal(one[1], one[0]) or np.abs(one).max() < 1e8


def test_examples_are_layers_of_runs_with_checkpoints_in_a_row():
    made = make_dataset(*toy(), runs_per_rule=2, widths=(5,), rng=0, **SMALL)
    X, y, groups = made.examples()
    assert X.shape == (8 * 3, 3 * 24)
    assert groups.tolist() == [run for run in range(8) for _ in range(3)]
    assert y.tolist() == made.rule[groups].tolist()
    np.testing.assert_array_equal(X[4].reshape(3, 24), made.features[1, :, 1])
    parts = {name: made.examples(name)[0].shape[1] for name in ("weight", "activation", "gradient")}
    assert parts == {"weight": 39, "activation": 24, "gradient": 9}
    last = made.examples("gradient", times=[-1], layers=[0])[0]
    np.testing.assert_array_equal(last, made.features[:, -1, 0, 21:])


def test_a_selection_of_runs_is_a_data_set():
    made = make_dataset(*toy(), runs_per_rule=2, widths=(5,), rng=0, **SMALL)
    adam = made.select(made.rule == "adam")
    assert adam.rule.tolist() == ["adam", "adam"]
    np.testing.assert_array_equal(adam.features, made.features[2:4])
    np.testing.assert_array_equal(made.select([3, -1]).lr, made.lr[[3, 7]])


def test_arrays_and_back():
    made = make_dataset(*toy(), runs_per_rule=2, widths=(5,), activations=("relu", "tanh"), rng=0, **SMALL)
    again = TrajectoryDataset.from_arrays(made.to_arrays())
    for name in ("features", "rule", "accuracy", "architecture", "times", "diverged", "lr", "weight_decay"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name), err_msg=name)
    assert again.names == made.names


# Subsampling and noise


def test_few_units_and_weights_are_seen_the_same_ones_at_all_times():
    X, y = toy()
    options = {"runs_per_rule": 2, "widths": (10,), "rng": 0, **SMALL}
    full, one = make_dataset(X, y, **options), make_dataset(X, y, subsample=1e-9, **options)
    names = list(full.names)
    # one unit and one weight: mean, median and norm agree, and the variance is zero
    abs_mean, abs_norm, var = (names.index(f"weight_{s}") for s in ("abs_mean", "abs_norm", "raw_var"))
    np.testing.assert_allclose(one.features[..., abs_mean], one.features[..., abs_norm], rtol=1e-5)
    assert np.abs(one.features[..., var]).max() < 1e-12
    np.testing.assert_array_equal(one.accuracy, full.accuracy)
    # the same weight: it moves less between checkpoints than weights differ
    raw = names.index("weight_raw_mean")
    moved = np.abs(np.diff(one.features[..., raw], axis=1)).mean()
    assert moved < 0.3 * one.features[:, 0, :, raw].std()


def test_the_number_of_units_seen_is_rounded_up():
    X, y = toy()
    options = {"runs_per_rule": 3, "rules": ("adam",), "widths": (10,), "rng": 0, **SMALL}
    norms = {}
    for fraction in (0.3, 0.21, 0.3001, 1.0):
        made = make_dataset(X, y, subsample=fraction, **options)
        index = [made.names.index(f"activation_abs_{s}") for s in ("norm", "mean")]
        norms[fraction] = made.features[:, 0, 1, index]
    np.testing.assert_array_equal(norms[0.3], norms[0.21])  # three units of ten
    assert not np.array_equal(norms[0.3], norms[0.3001])  # four
    assert not np.array_equal(norms[0.3], norms[1.0])


@pytest.mark.parametrize("level", [0.5, 2.0])
def test_noise_adds_its_share_to_the_variance_of_weights(level):
    X, y = toy(n_inputs=60)
    options = {"runs_per_rule": 6, "widths": (60,), "rng": 0, **SMALL}
    clean, noisy = make_dataset(X, y, **options), make_dataset(X, y, measurement_noise=level, **options)
    index = clean.names.index("weight_raw_var")
    ratio = noisy.features[..., :2, index] / clean.features[..., :2, index]
    # 3600 weights: relative standard error of a variance 0.024
    assert ratio.mean() == pytest.approx(1 + level**2, rel=0.01)
    assert ratio.std() < 0.06 * (1 + level**2)
    np.testing.assert_array_equal(noisy.accuracy, clean.accuracy)
    norm = clean.names.index("activation_raw_norm")
    assert (noisy.features[..., norm] > clean.features[..., norm]).mean() > 0.95


# Identification


@pytest.fixture(scope="module")
def laboratory():
    data = digits()
    return make_dataset(
        2 * data.x_train, data.y_train, runs_per_rule=30, widths=(16,), n_steps=150, n_checkpoints=8, rng=0
    )


@pytest.mark.parametrize("kind", ["random_forest", "linear_svm", "conv1d"])
def test_rules_are_told_apart_in_runs_never_seen_and_not_before_training(laboratory, kind):
    splits = GroupShuffleSplit(3, test_size=0.25, random_state=0)
    found = []
    for times in (None, [0]):
        X, y, groups = laboratory.examples(times=times)
        classifier = RuleClassifier(kind, n_times=8 if times is None else 1, random_state=0, n_estimators=60)
        found.append(cross_val_score(classifier, X, y, groups=groups, cv=splits).mean())
    assert found[0] > 0.45
    assert found[1] < 0.4


def test_a_classifier_is_reproducible_and_lives_in_pipelines(laboratory):
    X, y, groups = laboratory.examples("activation")
    train, test = next(GroupShuffleSplit(1, random_state=0).split(X, y, groups))
    assert not set(groups[train]) & set(groups[test])
    for kind in ("random_forest", "linear_svm", "conv1d"):
        one = make_pipeline(
            StandardScaler(), RuleClassifier(kind, n_times=8, n_estimators=20, n_epochs=5, random_state=3)
        )
        other = clone(one)
        state = torch.get_rng_state()
        np.testing.assert_array_equal(
            one.fit(X[train], y[train]).predict(X[test]), other.fit(X[train], y[train]).predict(X[test])
        )
        assert torch.equal(torch.get_rng_state(), state)
        assert one[-1].get_params()["n_times"] == 8
        assert set(one.classes_) == set(RULES)
        if kind != "linear_svm":
            np.testing.assert_allclose(one.predict_proba(X[test]).sum(1), 1)
    assert not hasattr(RuleClassifier("linear_svm"), "predict_proba")


@parametrize_with_checks(
    [
        RuleClassifier(n_estimators=10, random_state=0),
        RuleClassifier("linear_svm", random_state=0),
        RuleClassifier("conv1d", n_epochs=30, random_state=0),
    ]
)
def test_classifiers_pass_the_exam_of_scikit_learn(estimator, check):
    check(estimator)


# On a cluster


def block(width, rng):
    """A block of the laboratory, as a sweep runs it."""
    X, y = toy()
    return make_dataset(X, y, runs_per_rule=2, widths=(width,), rng=rng, **SMALL).to_arrays()


def gathered(**options):
    return TrajectoryDataset.from_arrays(sweep(block, grid(width=[5, 6]), repeats=2, seed=0, **options).values)


def test_a_sweep_gathers_blocks_and_resumes(tmp_path):
    first = gathered(cache_dir=tmp_path)
    assert first.features.shape == (2 * 2 * 8, 3, 3, 24)
    assert len(set(map(bytes, first.features))) == 32
    np.testing.assert_array_equal(first.features, gathered(cache_dir=tmp_path).features)
    np.testing.assert_array_equal(first.features, gathered(n_jobs=2).features)


def test_the_same_sweep_on_a_dask_cluster_gives_the_same_trajectories(tmp_path):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=":0",
        local_directory=str(tmp_path),
        silence_logs=logging.CRITICAL,
    )
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        found = gathered()
    np.testing.assert_array_equal(found.features, gathered().features)
    np.testing.assert_array_equal(found.architecture, gathered().architecture)


# What is refused


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "hebb"}, ValueError, "name must be one of .*, got 'hebb'"),
        ({"name": 3}, TypeError, "name must be one of"),
        ({"lr": 0.0}, ValueError, "lr must be > 0, got 0"),
        ({"lr": -0.1}, ValueError, r"lr must be > 0, got -0\.1"),
        ({"lr": "fast"}, TypeError, "lr must be real numbers, got str"),
        ({"lr": None}, TypeError, "lr must be"),
        ({"lr": math.nan}, ValueError, "lr must be finite"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1"),
        ({"momentum": -0.1}, ValueError, r"momentum must be in \[0, 1\)"),
        ({"betas": (0.9,)}, ValueError, "betas must be a pair of numbers, got 1"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas must be in \[0, 1\)"),
        ({"betas": 0.9}, TypeError, "betas must be a pair of numbers, got float"),
        ({"eps": 0.0}, ValueError, "eps must be > 0"),
        ({"weight_decay": -1e-4}, ValueError, "weight_decay must be >= 0, got -0.0001"),
        ({"feedback_lr": 0.0}, ValueError, "feedback_lr must be > 0"),
        ({"amplify": -1.0}, ValueError, "amplify must be >= 0"),
        ({"decay": -1.0}, ValueError, "decay must be >= 0"),
        ({"null": [1.0, 2.0]}, ValueError, "null must be a single number"),
    ],
)
def test_bad_rules_are_refused(change, error, message):
    arguments = {"name": "adam", "lr": 0.1, **change}
    with pytest.raises(error, match=message):
        learning_rule(arguments.pop("name"), **arguments)


def shared():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Linear(6, 4), TypeError, "model must be a torch.nn.Sequential, got Linear"),
        (nn.Sequential(nn.ReLU()), ValueError, "model must be a chain with at least one Linear or Conv2d"),
        (shared(), ValueError, "model must be a chain of layers with weights of their own, got shared"),
        (nn.Sequential(nn.Linear(6, 4), nn.Dropout()), ValueError, "model must be without dropout in training"),
        (nn.Sequential(nn.LazyLinear(6)), ValueError, "model must be initialised, got lazy"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))),
            ValueError,
            "model must be of plain weights",
        ),
        (
            nn.Sequential(nn.Linear(6, 4), nn.TransformerEncoderLayer(4, 1)),
            ValueError,
            "model must be a chain of layers, got TransformerEncoderLayer",
        ),
    ],
)
def test_models_that_are_no_chains_are_refused(model, error, message):
    with pytest.raises(error, match=message):
        learning_rule("feedback_alignment", lr=0.1).init(model)
    if error is ValueError and "dropout" not in message:
        with pytest.raises(error, match=message):
            layer_observables(model, torch.zeros(2, 6))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r, s, x, y: r.step(None, x, y), TypeError, "state must be a RuleState, got NoneType"),
        (lambda r, s, x, y: learning_rule("adam", lr=1).step(s, x, y), ValueError, "state must be one that 'adam'"),
        (lambda r, s, x, y: r.step(s, x.tolist(), y), TypeError, "x must be a tensor, got list"),
        (lambda r, s, x, y: r.step(s, x[0], y), ValueError, r"x must be of shape \(batch, ...\)"),
        (lambda r, s, x, y: r.step(s, x[:, :3], y), ValueError, "x must be a batch that the model accepts"),
        (lambda r, s, x, y: r.step(s, x * math.nan, y), ValueError, "x must be finite real numbers"),
        (lambda r, s, x, y: r.step(s, x, y.double()), TypeError, "y must be a tensor of integers, got dtype"),
        (lambda r, s, x, y: r.step(s, x, y.tolist()), TypeError, "y must be a tensor of integers, got list"),
        (lambda r, s, x, y: r.step(s, x, y[:3]), ValueError, r"y must be of shape \(12,\)"),
        (lambda r, s, x, y: r.step(s, x, y + 2), ValueError, r"y must be labels in \[0, 4\)"),
        (lambda r, s, x, y: r.init(chain(6, 7, 4), 3), TypeError, "generator must be a torch.Generator"),
        (lambda r, s, x, y: layer_observables(chain(6, 4), [1.0]), TypeError, "probe must be a tensor"),
        (lambda r, s, x, y: layer_observables(x, x), TypeError, "model must be a torch.nn.Sequential"),
        (lambda r, s, x, y: layer_observables(chain(6, 4), x[0]), ValueError, "probe must be of shape"),
        (lambda r, s, x, y: layer_observables(chain(6, 4), x[:, :2]), ValueError, "probe must be stimuli that"),
        (lambda r, s, x, y: layer_observables(chain(6, 4), x / 0), ValueError, "probe must be finite real"),
    ],
)
def test_bad_steps_and_probes_are_refused(call, error, message):
    rule, (x, y) = learning_rule("feedback_alignment", lr=0.1), batch()
    state = rule.init(chain(6, 7, 4), seeded())
    with pytest.raises(error, match=message):
        call(rule, state, x, y)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": np.zeros(5)}, ValueError, "X must be of shape"),
        ({"X": np.full((120, 6), np.inf)}, ValueError, "X must be finite"),
        ({"X": np.full((120, 6), 1e200)}, ValueError, "X must be within the range of float32"),
        ({"X": [["a"]]}, TypeError, "X must be real numbers"),
        ({"n_probe": 80}, ValueError, r"X must be of more than n_probe \+ n_test = 120 rows"),
        ({"y": np.zeros(3)}, ValueError, r"y must be of shape \(120,\), got shape \(3,\)"),
        ({"y": np.zeros(120)}, ValueError, "y must be labels of at least two classes, got 1"),
        ({"y": np.full(120, np.nan)}, ValueError, "y must be finite"),
        ({"y": np.array([1, "a"] * 60, dtype=object)}, TypeError, "y must be labels of one kind"),
        ({"rules": ("hebb",)}, ValueError, "rules must be one of"),
        ({"rules": ()}, ValueError, "rules must be at least one, got none"),
        ({"rules": "adam"}, TypeError, "rules must be a sequence of str, got str"),
        ({"rules": ("adam", "adam")}, ValueError, "rules must be different from each other"),
        ({"runs_per_rule": 0}, ValueError, "runs_per_rule must be >= 1, got 0"),
        ({"runs_per_rule": 2.0}, TypeError, "runs_per_rule must be an int"),
        ({"widths": (0,)}, ValueError, "widths must be >= 1, got 0"),
        ({"widths": 40}, TypeError, "widths must be a sequence of int, got int"),
        ({"depth": 0}, ValueError, "depth must be >= 1"),
        ({"activations": ("gelu",)}, ValueError, "activations must be one of"),
        ({"activations": (torch.tanh,)}, TypeError, "activations must be a sequence of str"),
        ({"n_steps": 0}, ValueError, "n_steps must be >= 1"),
        ({"n_checkpoints": 1}, ValueError, "n_checkpoints must be between 2 and 21, got 1"),
        ({"n_checkpoints": 50}, ValueError, "n_checkpoints must be between 2 and 21, got 50"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1"),
        ({"n_probe": 0}, ValueError, "n_probe must be >= 1"),
        ({"n_test": 0}, ValueError, "n_test must be >= 1"),
        ({"subsample": 0.0}, ValueError, r"subsample must be in \(0, 1\], got 0"),
        ({"subsample": 1.5}, ValueError, r"subsample must be in \(0, 1\]"),
        ({"measurement_noise": -0.1}, ValueError, "measurement_noise must be >= 0, got -0.1"),
        ({"rng": "seed"}, TypeError, "rng must be an int"),
        ({"rng": -1}, ValueError, "rng must be >= 0"),
        ({"progress": 1}, TypeError, "progress must be True or False"),
    ],
)
def test_bad_laboratories_are_refused(change, error, message):
    X, y = toy()
    arguments = {"X": X, "y": y, "runs_per_rule": 1, **SMALL, **change}
    with pytest.raises(error, match=message):
        make_dataset(arguments.pop("X"), arguments.pop("y"), **arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: observable_statistics([]), ValueError, "values must be at least one number"),
        (lambda: observable_statistics([1.0, math.nan]), ValueError, "values must be finite, got nan at index 1"),
        (lambda: observable_statistics("weights"), TypeError, "values must be real numbers"),
        (lambda: observable_statistics([1.0], "weights"), ValueError, "names must be one of"),
        (lambda: observable_statistics(np.zeros((2, 2, 2)), "all"), ValueError, "values must be of shape"),
        (lambda: observable_statistics([1.0, 1.0], "all"), ValueError, "values must be of rows whose values"),
        (lambda: observable_statistics([1.0, -1.0], "all"), ValueError, "values must be of rows whose values"),
        (lambda: observable_statistics([1e200, 1.0]), ValueError, "values must be of a size that can be squared"),
        (lambda: conserved_charge([1.0], [[1.0]]), ValueError, "w1 must be a matrix"),
        (lambda: conserved_charge(np.ones((3, 2)), np.ones((2, 2))), ValueError, "w2 must be of shape"),
        (lambda: conserved_charge(np.ones((2, 3, 2)), np.ones((4, 2, 3))), ValueError, "w2 must be of shape"),
        (
            lambda: conserved_charge(np.ones((3, 2)), np.ones((2, 3)), np.ones((3, 2))),
            ValueError,
            "feedback must be of",
        ),
        (lambda: conserved_charge([[math.inf]], [[1.0]]), ValueError, "w1 must be finite"),
        (lambda: conserved_charge("w", [[1.0]]), TypeError, "w1 must be real"),
        (lambda: information_alignment_fixed_point(np.ones((2, 3)), np.eye(2)), ValueError, "covariance must be of"),
        (lambda: information_alignment_fixed_point([[1.0]], [[-1.0]]), ValueError, "covariance must be positive"),
        (lambda: information_alignment_fixed_point(np.eye(2), [[1, 2], [0, 1]]), ValueError, "covariance must be sym"),
        (lambda: information_alignment_fixed_point([[1.0]], [[1.0]], null=-1), ValueError, "null must be >= 0"),
        (lambda: laboratory_run(*toy(), rule="hebb", n_test=9), ValueError, "rule must be one of"),
        (lambda: laboratory_run(*toy(), rule="adam", n_test=9, run=-1), ValueError, "run must be >= 0"),
        (lambda: laboratory_run(*toy(), rule="adam", n_test=9, activation="x"), ValueError, "activation must be one"),
        (lambda: TrajectoryDataset.from_arrays([1]), TypeError, "arrays must be a mapping"),
        (lambda: TrajectoryDataset.from_arrays({"lr": 1}), ValueError, "arrays must be a mapping with all names"),
    ],
)
def test_bad_statistics_and_charges_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: d.examples("weights"), ValueError, "observables must be one of"),
        (lambda d: d.examples(times=[3]), ValueError, "times must be between -3 and 2, got 3"),
        (lambda d: d.examples(times=[]), ValueError, "times must be at least one index"),
        (lambda d: d.examples(times=1), TypeError, "times must be a sequence of ints"),
        (lambda d: d.examples(times=[0.5]), TypeError, "times must be an integer"),
        (lambda d: d.examples(layers=[3]), ValueError, "layers must be between -3 and 2"),
        (lambda d: d.select([99]), ValueError, "runs must be between"),
        (lambda d: d.select([True]), ValueError, "runs must be a mask of shape"),
        (lambda d: d.select([0.5]), ValueError, "runs must be a mask or indices"),
    ],
)
def test_bad_selections_are_refused(call, error, message):
    made = make_dataset(*toy(), runs_per_rule=1, widths=(4,), rng=0, **SMALL)
    with pytest.raises(error, match=message):
        call(made)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "svm"}, ValueError, "kind must be one of"),
        ({"kind": None}, TypeError, "kind must be one of"),
        ({"n_estimators": 0}, ValueError, "n_estimators must be >= 1"),
        ({"C": 0.0}, ValueError, "C must be > 0"),
        ({"n_times": 0}, ValueError, "n_times must be >= 1"),
        ({"kind": "conv1d", "n_times": 3}, ValueError, "n_times must be a divisor of the 4 features, got 3"),
        ({"n_epochs": 1.5}, TypeError, "n_epochs must be an int"),
        ({"random_state": -1}, ValueError, "random_state must be between 0"),
        ({"random_state": "seed"}, TypeError, "random_state must be an int"),
        ({"n_jobs": 0}, ValueError, "n_jobs must be None or an integer other than 0"),
    ],
)
def test_bad_classifiers_are_refused(change, error, message):
    X, y = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 2
    with pytest.raises(error, match=message):
        RuleClassifier(**change).fit(X, y)


def test_one_rule_is_not_enough_for_a_classifier():
    with pytest.raises(ValueError, match="y must be labels of at least two classes, got 1 class"):
        RuleClassifier().fit(np.zeros((4, 2)), ["adam"] * 4)
