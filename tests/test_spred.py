"""Tests of spred: the identity behind it, training with it, smaller networks, and the lasso with a certificate."""

import copy
import math
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import Lasso
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.nn.utils import parametrize as torch_parametrize

from symlearn.spred import (
    SpredRegressor,
    lasso_kkt_violation,
    parametrize,
    penalty,
    prune_to_support,
    smaller_network,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_layer(layer, seed=0):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed), dtype=parameter.dtype))
    return layer


def regression(n, p, correlation=0.3, n_true=5, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    for j in range(1, p):
        X[:, j] = correlation * X[:, j - 1] + math.sqrt(1 - correlation**2) * X[:, j]
    coef = np.zeros(p)
    coef[rng.choice(p, min(n_true, p), replace=False)] = 1 + rng.random(min(n_true, p))
    return X + offset, X @ coef + 0.5 * rng.standard_normal(n) + offset


def alpha_max(X, y, intercept=False):
    if intercept:
        X, y = X - X.mean(axis=0), y - y.mean()
    return np.abs(X.T @ y).max() / len(y)


def objective(X, y, coef, alpha, intercept=0.0):
    return np.square(y - X @ coef - intercept).mean() / 2 + alpha * np.abs(coef).sum()


def lasso(X, y, alpha, fit_intercept=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return Lasso(alpha=alpha, fit_intercept=fit_intercept, tol=1e-14, max_iter=100_000).fit(X, y)


def factors(layer, name="weight"):
    parts = layer.parametrizations[name]
    return parts.original0, parts.original1


# --- the identity ---


@pytest.mark.parametrize(
    ("n_factors", "weight", "expected"), [(2, 0.7, 0.7), (3, 0.7, 1.1825603), (4, 0.7, 1.6733201), (3, 2.0, 2.3811016)]
)
def test_the_smallest_l2_of_several_factors_is_a_power_of_the_weight(n_factors, weight, expected):
    def l2(logs):
        last = weight / math.exp(logs.sum())
        return (np.exp(2 * logs).sum() + last**2) / 2

    smallest = minimize(l2, np.full(n_factors - 1, 0.3), tol=1e-14).fun
    assert smallest == pytest.approx(expected, abs=6e-8)
    assert smallest == pytest.approx(n_factors / 2 * weight ** (2 / n_factors), rel=1e-9)


@pytest.mark.parametrize("groups", [None, 0, 1, -1, "ids"])
@pytest.mark.parametrize("imbalance", [1e-3, 0.1, 2.0])
def test_the_penalty_at_the_start_is_a_smoothed_norm_of_the_magnitudes(groups, imbalance):
    layer = random_layer(nn.Linear(5, 4).double())
    weight = layer.weight.detach().clone()
    ids = torch.arange(20).view(4, 5) % 3
    sizes = {
        None: weight.abs().flatten(),
        0: weight.norm(dim=1),
        1: weight.norm(dim=0),
        -1: weight.norm(dim=0),
        "ids": torch.stack([weight[ids == g].norm() for g in range(3)]),
    }[groups]
    parametrize(layer, groups=ids if groups == "ids" else groups, imbalance=imbalance)
    kappa = imbalance * sizes.square().mean().sqrt()
    expected = 0.3 * (kappa**2 + sizes**2).sqrt().sum()
    assert float(penalty(layer, 0.3).detach()) == pytest.approx(float(expected), rel=1e-13)
    gate, direction = factors(layer)
    squares = direction.square()
    across = {
        None: squares.flatten(),
        0: squares.sum(1),
        1: squares.sum(0),
        -1: squares.sum(0),
        "ids": torch.stack([squares[ids == g].sum() for g in range(3)]),
    }[groups]
    torch.testing.assert_close(gate.flatten().square() - across, (2 * kappa).expand(len(across)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("groups", [None, 0, 1, 2, "ids"])
def test_a_parametrized_weight_keeps_its_value_dtype_and_requires_grad(groups, dtype):
    layer = random_layer(nn.Conv1d(4, 6, 3).to(dtype))
    before = layer.weight.detach().clone()
    layer.weight.requires_grad_(False)
    ids = torch.arange(before.numel()).view(before.shape) // 5
    assert parametrize(layer, groups=ids if groups == "ids" else groups) is layer
    torch.testing.assert_close(layer.weight, before, rtol=4 * torch.finfo(dtype).eps, atol=0)
    gate, direction = factors(layer)
    assert gate.dtype == direction.dtype == dtype
    assert not gate.requires_grad
    assert not direction.requires_grad
    assert gate.numel() == {None: 72, 0: 6, 1: 4, 2: 3, "ids": 15}[groups]


def test_a_weight_of_zeros_starts_with_the_imbalance_itself():
    layer = nn.Linear(3, 2, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    gate, direction = factors(parametrize(layer, imbalance=0.25))
    torch.testing.assert_close(gate.square(), torch.full((2, 3), 0.5, dtype=torch.float64))
    assert not direction.any()


def test_a_weight_of_tiny_numbers_survives():
    layer = nn.Linear(2, 1)
    layer.weight.data = torch.tensor([[1e-25, -3e-25]])
    torch.testing.assert_close(parametrize(layer).weight, torch.tensor([[1e-25, -3e-25]]), rtol=1e-6, atol=0)


def test_another_parameter_can_be_parametrized():
    layer = nn.BatchNorm2d(4)
    parametrize(layer, "weight")
    parametrize(layer, "bias")
    assert len(list(layer.parametrizations)) == 2
    # Weights of one: sqrt(1 + 0.01) each; biases of zero: the imbalance, 0.1, each.
    assert float(penalty(layer, 1.0).detach()) == pytest.approx(4 * math.sqrt(1.01) + 4 * 0.1, rel=1e-6)


def test_the_penalty_of_a_whole_model_counts_every_weight_once():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    first, second = (float(penalty(parametrize(model[i]), 0.5).detach()) for i in (0, 2))
    assert float(penalty(model, 0.5).detach()) == pytest.approx(first + second, rel=1e-6)
    shared = nn.ModuleList([model, model[0]])
    assert float(penalty(shared, 0.5).detach()) == pytest.approx(first + second, rel=1e-6)


def test_the_gradient_of_the_penalty_is_that_of_weight_decay():
    layer = parametrize(random_layer(nn.Linear(3, 2).double()))
    penalty(layer, 0.7).backward()
    for part in factors(layer):
        torch.testing.assert_close(part.grad, 0.7 * part.detach())


def test_a_parametrized_module_can_be_copied_and_its_state_restored():
    layer = parametrize(nn.Linear(4, 3), groups=torch.arange(12).view(3, 4) % 4)
    other = parametrize(nn.Linear(4, 3), groups=torch.arange(12).view(3, 4) % 4)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)


def test_neither_the_random_state_nor_the_groups_are_touched():
    state, ids = torch.get_rng_state(), torch.zeros(2, 3, dtype=torch.long)
    layer = nn.Linear(3, 2)
    after_layer = torch.get_rng_state()
    prune_to_support(parametrize(layer, groups=ids))
    assert torch.equal(torch.get_rng_state(), after_layer)
    assert not torch.equal(state, after_layer)
    assert not ids.any()
    ids += 1  # the caller's tensor is not the module's


# --- training ---


def train(layer, X, y, steps, optimizer, extra=None):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (layer(X).squeeze(1) - y).square().mean() / 2
        (loss if extra is None else loss + extra()).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def small_lasso():
    X, y = regression(100, 30)
    alpha = 0.05 * alpha_max(X, y)
    return X, y, alpha, SpredRegressor(alpha, fit_intercept=False, tol=1e-13).fit(X, y).coef_


@pytest.mark.parametrize("method", ["sgd", "momentum", "adam", "adamw-penalty"])
def test_weight_decay_on_the_factors_gives_the_lasso(small_lasso, method):
    X, y, alpha, coef = small_lasso
    layer = parametrize(nn.Linear(30, 1, bias=False).double(), imbalance=0.5)
    parameters, extra = list(layer.parameters()), None
    if method == "sgd":
        optimizer, steps = torch.optim.SGD(parameters, lr=0.2, weight_decay=alpha), 6000
    elif method == "momentum":
        optimizer, steps = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=alpha), 2500
    elif method == "adam":
        optimizer, steps = torch.optim.Adam(parameters, lr=3e-3, weight_decay=alpha), 5000
    else:
        optimizer, steps = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0), 5000
        extra = lambda: penalty(layer, alpha)  # noqa: E731
    train(layer, torch.from_numpy(X), torch.from_numpy(y), steps, optimizer, extra)
    found = layer.weight.detach().numpy()[0]
    # A strength of alpha / 2 or 2 alpha would move coefficients by about alpha, here 0.07 and more.
    np.testing.assert_allclose(found, coef, atol=2e-4)
    kept = prune_to_support(layer, tol=1e-3)
    assert kept == np.count_nonzero(coef) / 30
    assert ((layer.weight.detach().numpy()[0] != 0) == (coef != 0)).all()


def test_decoupled_weight_decay_does_not_give_the_lasso(small_lasso):
    X, y, alpha, coef = small_lasso
    layer = parametrize(nn.Linear(30, 1, bias=False).double(), imbalance=0.5)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-3, weight_decay=alpha)
    train(layer, torch.from_numpy(X), torch.from_numpy(y), 3000, optimizer)
    assert np.abs(layer.weight.detach().numpy()[0] - coef).max() > 0.05


def test_the_penalty_with_groups_gives_the_group_lasso():
    X, y = regression(80, 12, n_true=3)
    alpha, step = 0.3, 0.2
    coef = np.zeros(12)
    for _ in range(5000):  # proximal gradient
        moved = (coef + step * X.T @ (y - X @ coef) / 80).reshape(4, 3)
        norms = np.linalg.norm(moved, axis=1, keepdims=True)
        coef = (moved * np.maximum(0, 1 - step * alpha / np.maximum(norms, 1e-300))).ravel()
    layer = parametrize(nn.Linear(12, 1, bias=False).double(), groups=torch.arange(12).view(1, 12) // 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    train(layer, torch.from_numpy(X), torch.from_numpy(y), 5000, optimizer, lambda: penalty(layer, alpha))
    # The smallest group, of norm 0.007, converges last; half or twice alpha would move norms by 0.1 and more.
    np.testing.assert_allclose(layer.weight.detach().numpy()[0], coef, atol=2e-6)
    zero_groups = int((np.abs(coef.reshape(4, 3)).sum(axis=1) == 0).sum())
    assert 0 < zero_groups < 4
    assert prune_to_support(layer) == 1 - zero_groups / 4


def test_a_weight_with_the_wrong_sign_at_the_start_reaches_its_optimum():
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    layer.weight.data.fill_(-1.0)
    parametrize(layer)
    X, y = torch.ones(4, 1, dtype=torch.float64), torch.full((4,), 2.0, dtype=torch.float64)
    train(layer, X, y, 1500, torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.5))
    assert float(layer.weight.detach()) == pytest.approx(1.5, abs=1e-9)  # 2 - alpha


def test_imbalance_decays_at_twice_the_weight_decay():
    layer = parametrize(random_layer(nn.Linear(3, 1, bias=False).double()))
    gate, direction = factors(layer)
    start = (gate.square() - direction.square()).detach().clone()
    X, y = torch.randn(20, 3, dtype=torch.float64, generator=generator()), torch.zeros(20, dtype=torch.float64)
    lr, alpha, steps = 1e-3, 0.3, 2000
    train(layer, X, y, steps, torch.optim.SGD([gate, direction], lr=lr, weight_decay=alpha))
    measured = (gate.square() - direction.square()).detach() / start
    # Second-order terms in the learning rate: lr t (alpha^2 + g^2) with t = 2 and gradients of order one.
    torch.testing.assert_close(
        measured, torch.full_like(measured, math.exp(-2 * alpha * lr * steps)), rtol=1e-2, atol=0
    )


def test_inactive_weights_decay_at_the_predicted_rate():
    # One feature, optimum 0.1 below alpha = 0.25: g -> -0.1, so |w| ~ exp(-2 (0.25 - 0.1) t).
    layer = parametrize(nn.Linear(1, 1, bias=False).double())
    X, y = torch.ones(2, 1, dtype=torch.float64), torch.full((2,), 0.1, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, weight_decay=0.25)
    train(layer, X, y, 4000, optimizer)
    first = float(layer.weight.detach())
    train(layer, X, y, 1000, optimizer)
    discrete = -2 * math.log(1 - 0.01 * (0.25 - 0.1)) * 1000
    assert math.log(first / float(layer.weight.detach())) == pytest.approx(discrete, rel=1e-3)


# --- zeros ---


def test_pruning_to_the_support_gives_exact_zeros_and_a_plain_weight():
    layer = nn.Linear(4, 1, dtype=torch.float64)
    layer.weight.data = torch.tensor([[1.0, 1e-9, -2.0, 1e-3]], dtype=torch.float64)
    layer.weight.requires_grad_(False)
    assert prune_to_support(parametrize(layer)) == 0.75
    assert layer.weight[0, 1] == 0
    assert not torch_parametrize.is_parametrized(layer)
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.dtype == torch.float64
    assert not layer.weight.requires_grad
    assert [name for name, _ in layer.named_parameters()] == ["bias", "weight"]
    layer.weight.requires_grad_(True)
    with torch.no_grad():  # whatever the mode, the weight stays a parameter that can be trained
        assert prune_to_support(parametrize(layer), tol=1e-2) == 0.5
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.requires_grad


def test_groups_are_judged_by_their_norm():
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.tensor([[0.3, 0.4, 0.0], [0.8, 0.0, 0.0]])
    assert prune_to_support(parametrize(layer, groups=0), tol=0.6) == 0.5
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[0.0, 0.0, 0.0], [0.8, 0.0, 0.0]]))


def test_a_group_at_the_tolerance_goes():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.zeros(1, 2)
    assert prune_to_support(parametrize(layer), tol=0) == 0


# --- smaller networks ---


def outputs_agree(model, smaller, x):
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(smaller).eval()(x), copy.deepcopy(model).eval()(x))


def zero_rows(layer, rows):
    layer.weight.data[rows] = 0


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, lambda: nn.LeakyReLU(0.2), nn.Softplus])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_units_without_input_go_and_their_constant_is_kept(activation, bias):
    model = nn.Sequential(
        nn.Linear(5, 9),
        activation(),
        nn.Dropout(),
        nn.Linear(9, 7, bias=bias),
        activation(),
        nn.Linear(7, 3, bias=bias),
    )
    model = random_layer(model.double())
    zero_rows(model[0], [0, 4, 8])
    zero_rows(model[3], [2, 3])
    smaller = smaller_network(model)
    assert smaller[0].weight.shape == (6, 5)
    assert smaller[3].weight.shape == (5, 6)
    assert smaller[5].weight.shape == (3, 5)
    assert (smaller[3].in_features, smaller[3].out_features, smaller[0].out_features) == (6, 5, 6)
    outputs_agree(model, smaller, torch.randn(11, 5, dtype=torch.float64, generator=generator(1)))


def test_units_that_nothing_reads_go_through_all_layers():
    model = random_layer(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    )
    model[4].weight.data[:, [1, 2, 3, 4]] = 0
    model[2].weight.data[0, [0, 5]] = 0  # read only by units that nothing reads
    smaller = smaller_network(model)
    assert [smaller[i].weight.shape for i in (0, 2, 4)] == [(4, 4), (1, 4), (2, 1)]
    outputs_agree(model, smaller, torch.randn(8, 4, dtype=torch.float64, generator=generator(1)))


def conv_net(padding, padding_mode="zeros", norm=True):
    def normed(n):
        return nn.BatchNorm2d(n) if norm else nn.Identity()

    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), normed(6), nn.ReLU()),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=padding, padding_mode=padding_mode, bias=False),
        normed(8),
        nn.Sigmoid(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
    )
    model = random_layer(model.double())
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator(3)))
            part.running_var.copy_(0.5 + torch.rand(part.num_features, generator=generator(4)))
    return model


@pytest.mark.parametrize(
    ("padding", "padding_mode", "channels"),
    [(0, "zeros", 3), (1, "zeros", 4), ("same", "zeros", 4), (1, "circular", 3)],
)
@pytest.mark.parametrize("norm", [True, False])
def test_channels_go_from_a_convolutional_network(padding, padding_mode, channels, norm):
    model = conv_net(padding, padding_mode, norm)
    zero_rows(model[0][0], [0, 1, 5])
    if norm:
        model[0][1].bias.data[[0, 1, 5]] = torch.tensor([0.4, 1.5, 0.7], dtype=torch.float64)
        model[0][1].weight.data[[0, 1, 5]] = 0.1
    else:
        model[0][0].bias.data[[0, 1, 5]] = torch.tensor([0.4, 1.5, 0.7], dtype=torch.float64)
    zero_rows(model[2], [3, 4])
    before = copy.deepcopy(model.state_dict())
    smaller = smaller_network(model)
    # Padded with zeros a constant channel is not a bias: one of the three stays and stands for all.
    assert smaller[0][0].weight.shape == (channels, 2, 3, 3)
    assert smaller[2].weight.shape == (6, channels, 3, 3)
    assert smaller[7].weight.shape == (10, 24)
    assert (smaller[0][0].out_channels, smaller[2].in_channels, smaller[7].in_features) == (channels, channels, 24)
    if norm:
        assert smaller[0][1].num_features == channels
        assert smaller[3].running_var.shape == (6,)
    outputs_agree(model, smaller, torch.randn(5, 2, 9, 9, dtype=torch.float64, generator=generator(1)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_constant_channels_that_a_relu_silences_go_despite_the_padding():
    model = conv_net(1, norm=False)
    zero_rows(model[0][0], [0, 1, 5])
    model[0][0].bias.data[[0, 1, 5]] = -0.5
    smaller = smaller_network(model)
    assert smaller[0][0].weight.shape == (3, 2, 3, 3)
    outputs_agree(model, smaller, torch.randn(5, 2, 9, 9, dtype=torch.float64, generator=generator(1)))


def test_a_batch_norm_without_scale_makes_its_channels_constant():
    model = conv_net(0)
    parametrize(model[3], "weight")
    gate, _ = factors(model[3])
    gate.data[[1, 2, 6]] = 0
    assert prune_to_support(model[3]) == 5 / 8
    smaller = smaller_network(model)
    assert smaller[2].weight.shape == (5, 6, 3, 3)
    outputs_agree(model, smaller, torch.randn(5, 2, 9, 9, dtype=torch.float64, generator=generator(1)))


@pytest.mark.parametrize(
    "between",
    [
        nn.LayerNorm(6),
        nn.Softmax(dim=1),
        nn.BatchNorm1d(6, track_running_stats=False),
        nn.GLU(),
        nn.Unflatten(1, (2, 3)),
        nn.PReLU(6),
        nn.AvgPool1d(1),
    ],
)
def test_units_stay_where_something_else_may_need_to_know_them(between):
    width = {"GLU": 3, "Unflatten": 3}.get(type(between).__name__, 6)
    model = random_layer(nn.Sequential(nn.Linear(4, 6), copy.deepcopy(between), nn.Linear(width, 2)).double())
    zero_rows(model[0], [1, 2])
    smaller = smaller_network(model)
    assert smaller[0].weight.shape == (6, 4)
    outputs_agree(model, smaller, torch.randn(8, 4, dtype=torch.float64, generator=generator(1)))


def test_average_pooling_over_its_padding_is_not_taken_for_a_constant():
    model = random_layer(nn.Sequential(nn.Conv1d(1, 3, 3), nn.AvgPool1d(2, padding=1), nn.Conv1d(3, 1, 2)).double())
    zero_rows(model[0], [0])
    smaller = smaller_network(model)
    assert smaller[0].out_channels == 3
    outputs_agree(model, smaller, torch.randn(2, 1, 9, dtype=torch.float64, generator=generator(1)))


def test_layers_with_hooks_and_grouped_convolutions_stay():
    model = random_layer(nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 1, 1)).double())
    zero_rows(model[0], [0])
    zero_rows(model[1], [1])
    assert smaller_network(model)[1].weight.shape == (4, 2, 1, 1)
    dense = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    zero_rows(dense[0], [0, 1])
    dense[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert smaller_network(dense)[0].out_features == 4


def test_a_layer_keeps_one_unit_when_all_are_constant():
    model = random_layer(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double())
    zero_rows(model[0], slice(None))
    smaller = smaller_network(model)
    assert smaller[0].weight.shape == (1, 3)
    outputs_agree(model, smaller, torch.randn(8, 3, dtype=torch.float64, generator=generator(1)))


def test_a_smaller_network_keeps_dtype_mode_and_requires_grad():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).to(torch.float32).train()
    zero_rows(model[0], [0, 1])
    model[0].weight.requires_grad_(False)
    smaller = smaller_network(model)
    assert smaller.training
    assert not smaller[0].weight.requires_grad
    assert smaller[2].weight.requires_grad
    assert {p.dtype for p in smaller.parameters()} == {torch.float32}
    smaller(torch.ones(4, 3)).sum().backward()


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_smaller_network_computes_the_same_function(seed):
    rng = np.random.default_rng(seed)
    channels, width, kernel = rng.integers(1, 5, 3)
    convolution, norm = [(nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d)][seed % 2]
    size = [7] * (1 + seed % 2)
    body = [
        convolution(2, channels, kernel, padding=int(rng.integers(0, 2)), bias=bool(rng.integers(2))),
        *([norm(channels)] if rng.integers(2) else []),
        [nn.ReLU(), nn.Tanh(), nn.Sigmoid()][rng.integers(3)],
        convolution(channels, width, 2, padding=int(rng.integers(0, 2)), bias=bool(rng.integers(2))),
        [nn.ReLU(), nn.Identity(), nn.Softplus()][rng.integers(3)],
        nn.Flatten(),
    ]
    body = nn.Sequential(*body)
    features = body(torch.zeros(2, 2, *size)).shape[1]
    model = random_layer(nn.Sequential(body, nn.Linear(features, 4), nn.ReLU(), nn.Linear(4, 2)).double(), seed)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, (nn.Linear, convolution)):
                part.weight[torch.from_numpy(rng.random(len(part.weight)) < 0.4)] = 0
    x = torch.randn(3, 2, *size, dtype=torch.float64, generator=generator(seed))
    outputs_agree(model, smaller_network(model), x)


def test_whole_channels_vanish_from_a_network_trained_on_digits():
    digits = load_digits()
    x = torch.tensor(digits.images[:600, None] / 16, dtype=torch.float32)
    y = torch.tensor(digits.target[:600])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
        )
    for layer in (model[0], model[2]):
        parametrize(layer, groups=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), y) + penalty(model, 0.03)).backward()
        optimizer.step()
    kept = [prune_to_support(layer, tol=1e-2) for layer in (model[0], model[2])]
    smaller = smaller_network(model)
    count = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in smaller.parameters()) < 0.75 * count
    assert max(kept) < 1
    outputs_agree(model, smaller, x)
    assert float((smaller(x).argmax(1) == y).float().mean()) > 0.9


# --- the regressor ---


@parametrize_with_checks([SpredRegressor(), SpredRegressor(alpha=0.01, fit_intercept=False)])
def test_the_regressor_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("relative", [0.02, 0.1, 0.5, 0.99])
@pytest.mark.parametrize(("n", "p", "correlation"), [(100, 30, 0.3), (30, 100, 0.3), (60, 60, 0.95), (200, 15, 0.0)])
def test_the_regressor_equals_the_lasso_of_scikit_learn(n, p, correlation, relative, fit_intercept):
    X, y = regression(n, p, correlation, offset=3.0 if fit_intercept else 0.0)
    alpha = relative * alpha_max(X, y, fit_intercept)
    ours = SpredRegressor(alpha, fit_intercept=fit_intercept).fit(X, y)
    theirs = lasso(X, y, alpha, fit_intercept)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    assert ((ours.coef_ != 0) == (np.abs(theirs.coef_) > 1e-10)).all()
    assert ours.intercept_ == pytest.approx(theirs.intercept_, abs=1e-5)
    mine, other = (objective(X, y, m.coef_, alpha, m.intercept_) for m in (ours, theirs))
    assert mine <= other * (1 + 1e-14)  # a few times float64's epsilon
    # The gap bounds how far any other point can be below.
    assert mine - ours.dual_gap_ <= other * (1 + 1e-14)
    assert ours.dual_gap_ <= 1e-10 * np.square(y - fit_intercept * y.mean()).mean()
    if fit_intercept:
        X, y = X - X.mean(axis=0), y - y.mean()
    assert lasso_kkt_violation(X, y, ours.coef_, alpha) <= 1e-9 * alpha
    np.testing.assert_allclose(ours.predict(X[:3]), X[:3] @ ours.coef_ + ours.intercept_)


@pytest.mark.parametrize("relative", np.geomspace(1, 0.01, 9).round(4))
def test_the_regressor_equals_the_lasso_on_real_data(relative):
    X, y = load_diabetes(return_X_y=True)
    X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    alpha = relative * alpha_max(X, y) * (1 + 1e-12)
    ours, theirs = SpredRegressor(alpha).fit(X, y), lasso(X, y, alpha)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-9)
    assert lasso_kkt_violation(X, y, ours.coef_, alpha) <= 1e-12


@pytest.mark.parametrize("factor", [1.0001, 1.01, 100])
def test_above_the_largest_alpha_the_solution_is_exactly_zero(factor):
    X, y = regression(50, 20, offset=1.0)
    model = SpredRegressor(factor * alpha_max(X, y, intercept=True)).fit(X, y)
    assert not model.coef_.any()
    assert model.intercept_ == pytest.approx(y.mean(), rel=1e-14)
    assert model.dual_gap_ == 0
    just_below = SpredRegressor(0.999 * alpha_max(X, y, intercept=True)).fit(X, y)
    assert np.count_nonzero(just_below.coef_) == 1


@given(st.integers(0, 100_000))
@settings(max_examples=60, deadline=None)
def test_every_solution_has_a_certificate(seed):
    rng = np.random.default_rng(seed)
    n, p = int(rng.integers(2, 60)), int(rng.integers(1, 120))
    X = rng.standard_normal((n, p))
    if seed % 4 == 1:
        X = np.sign(X)  # dependent columns, ties
    elif seed % 4 == 2:
        X[:, p // 2 :] = X[:, : p - p // 2]  # every column twice
    elif seed % 4 == 3:
        X = rng.standard_normal((n, 2)) @ rng.standard_normal((2, p))  # rank two
    y = rng.standard_normal(n) + X[:, 0]
    intercept = bool(rng.integers(2))
    Xc, yc = (X - X.mean(axis=0), y - y.mean()) if intercept else (X, y)
    alpha = max(alpha_max(Xc, yc) * 10 ** -rng.uniform(0, 3), 1e-6)
    model = SpredRegressor(alpha, fit_intercept=intercept).fit(X, y)
    assert lasso_kkt_violation(Xc, yc, model.coef_, alpha) <= 1e-8 * alpha + 1e-12
    assert np.count_nonzero(model.coef_) <= max(n, 2)


@pytest.mark.parametrize("relative", [1e-2, 1e-3])
def test_solutions_with_as_many_features_as_samples_are_exact(relative):
    X, y = regression(40, 160, 0.5)
    alpha = relative * alpha_max(X, y)
    coef = SpredRegressor(alpha, fit_intercept=False).fit(X, y).coef_
    assert lasso_kkt_violation(X, y, coef, alpha) <= 1e-9 * alpha
    assert np.count_nonzero(coef) >= 30


def test_scaling_the_data_scales_the_solution():
    X, y = regression(40, 60)
    alpha = 0.1 * alpha_max(X, y)
    reference = SpredRegressor(alpha, fit_intercept=False).fit(X, y).coef_
    for a, b in [(1e-80, 1.0), (1e80, 1.0), (1.0, 1e-80), (1.0, 1e80), (1e-60, 1e60)]:
        scaled = SpredRegressor(a * b * alpha, fit_intercept=False).fit(a * X, b * y).coef_
        np.testing.assert_allclose(scaled * a / b, reference, atol=1e-11)


def test_shifting_the_data_changes_only_the_intercept():
    X, y = regression(50, 80)
    alpha = 0.05 * alpha_max(X, y, intercept=True)
    reference = SpredRegressor(alpha).fit(X, y)
    shifted = SpredRegressor(alpha).fit(X + 1e4, y - 1e4)
    # Rounding of the shifted numbers: 1e4 times 1e-16, times a condition number of at most 1e3.
    np.testing.assert_allclose(shifted.coef_, reference.coef_, atol=1e-8)
    assert ((shifted.coef_ != 0) == (reference.coef_ != 0)).all()


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_storage_does_not_matter(fit_intercept):
    X, y = regression(60, 90)
    X[np.abs(X) < 1] = 0
    model = SpredRegressor(0.05, fit_intercept=fit_intercept)
    reference = copy.copy(model.fit(X, y).coef_)
    for stored in (np.asfortranarray(X), X.tolist(), scipy.sparse.csr_matrix(X), scipy.sparse.coo_array(X)):
        np.testing.assert_allclose(model.fit(stored, y).coef_, reference, atol=1e-12)
        np.testing.assert_allclose(model.predict(stored), X @ reference + model.intercept_, atol=1e-10)
    np.testing.assert_allclose(model.fit(X.astype(np.float32), y).coef_, reference, atol=1e-5)


def test_data_are_not_changed():
    X, y = regression(30, 40, offset=2.0)
    kept = X.copy(), y.copy()
    X.setflags(write=False)
    y.setflags(write=False)
    SpredRegressor(0.1).fit(X, y)
    assert np.array_equal(X, kept[0])
    assert np.array_equal(y, kept[1])


def test_a_constant_target_needs_no_features():
    model = SpredRegressor(0.1).fit(np.eye(3), [2.0, 2.0, 2.0])
    assert not model.coef_.any()
    assert model.intercept_ == pytest.approx(2)


def test_constant_and_empty_columns_get_no_weight():
    X, y = regression(40, 6)
    X[:, 2], X[:, 4] = 0, 5
    assert not SpredRegressor(0.01).fit(X, y).coef_[[2, 4]].any()


def test_too_few_rounds_are_reported():
    X, y = regression(100, 400, 0.5, n_true=60)
    with pytest.warns(ConvergenceWarning, match=r"The duality gap .* is above its bound .* after 1 rounds"):
        model = SpredRegressor(0.02 * alpha_max(X, y), max_iter=1).fit(X, y)
    assert model.n_iter_ == 1
    assert model.dual_gap_ > 0


def test_a_loose_tolerance_ends_earlier_with_an_honest_gap():
    X, y = regression(100, 400, 0.5, n_true=60)
    alpha = 0.02 * alpha_max(X, y)
    loose, tight = (SpredRegressor(alpha, fit_intercept=False, tol=tol).fit(X, y) for tol in (1e-2, 1e-12))
    assert loose.n_iter_ < tight.n_iter_
    excess = objective(X, y, loose.coef_, alpha) - objective(X, y, tight.coef_, alpha)
    assert 0 < excess <= loose.dual_gap_ <= 1e-2 * np.square(y).mean()


def test_the_violation_is_known_by_hand():
    X, y = np.eye(2), [3.0, 0.5]  # c = (y - w) / 2
    assert lasso_kkt_violation(X, y, [2.5, 0.0], 0.25) == 0
    assert lasso_kkt_violation(X, y, [2.0, 0.0], 0.25) == pytest.approx(0.25)
    assert lasso_kkt_violation(X, y, [-1.0, 0.0], 0.25) == pytest.approx(2.25)
    assert lasso_kkt_violation(X, y, [2.8, 0.0], 0.1) == pytest.approx(0.15)
    assert lasso_kkt_violation(scipy.sparse.csr_matrix(X), y, [2.0, 0.0], 0.25) == pytest.approx(0.25)
    assert lasso_kkt_violation(np.ones((3, 0)), np.ones(3), np.ones(0), 0.25) == 0


# --- refusals ---


def linear(weight=None):
    layer = nn.Linear(3, 2)
    if weight is not None:
        layer.weight.data = torch.as_tensor(weight)
    return layer


def shared_layer():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


def tied_weights():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


IDS = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("module", "name", "options", "error", "message"),
    [
        ("layer", "weight", {}, TypeError, "module must be a torch.nn.Module, got str"),
        (nn.ReLU(), "weight", {}, ValueError, r"name must be a parameter of the ReLU \(it has none\), got 'weight'"),
        (linear(), "wait", {}, ValueError, r"name must be a parameter of the Linear \('bias', 'weight'\), got 'wait'"),
        (linear(), 0, {}, TypeError, "name must be a string, got int"),
        (nn.Linear(3, 2, bias=False), "bias", {}, ValueError, "name must be a parameter of the Linear"),
        (nn.BatchNorm1d(2), "running_mean", {}, ValueError, "name must be a parameter of the BatchNorm1d"),
        (parametrize(linear()), "weight", {}, ValueError, "name must be a parameter that is not parametrized yet"),
        (nn.LazyLinear(2), "weight", {}, ValueError, "name must be an initialised parameter"),
        (linear(torch.full((2, 3), torch.nan)), "weight", {}, ValueError, "weight must be finite, got NaN or infinity"),
        (linear(torch.ones(2, 3, dtype=torch.cfloat)), "weight", {}, TypeError, "weight must be real floating-point"),
        (linear(torch.ones(0, 3)), "weight", {}, ValueError, "weight must be of at least one entry"),
        (linear(), "weight", {"imbalance": 0}, ValueError, "imbalance must be > 0, got 0"),
        (linear(), "weight", {"imbalance": -0.1}, ValueError, "imbalance must be > 0, got -0.1"),
        (linear(), "weight", {"imbalance": math.inf}, ValueError, "imbalance must be finite, got inf"),
        (linear(), "weight", {"imbalance": "much"}, TypeError, "imbalance must be real numbers, got str"),
        (linear(), "weight", {"imbalance": [1, 2]}, ValueError, "imbalance must be a single number"),
        (linear(), "weight", {"groups": 2}, ValueError, "groups must be between -2 and 1, got 2"),
        (linear(), "weight", {"groups": -3}, ValueError, "groups must be between -2 and 1, got -3"),
        (linear(), "weight", {"groups": True}, TypeError, "groups must be an integer, got bool"),
        (linear(), "weight", {"groups": 0.5}, TypeError, "groups must be an integer, got float"),
        (linear(), "weight", {"groups": "rows"}, TypeError, "groups must be an integer, got str"),
        (
            linear(),
            "weight",
            {"groups": IDS.T},
            ValueError,
            r"groups must be of the weight's shape \(2, 3\), got shape",
        ),
        (linear(), "weight", {"groups": IDS.double()}, TypeError, "groups must be a LongTensor, an int or None"),
        (linear(), "weight", {"groups": IDS - 1}, ValueError, "groups must be numbered from 0 without gaps"),
        (linear(), "weight", {"groups": IDS + 1}, ValueError, "groups must be numbered from 0 without gaps"),
        (linear(), "weight", {"groups": IDS + 10**12}, ValueError, "groups must be numbered from 0 without gaps"),
    ],
)
def test_a_parametrization_is_refused_for(module, name, options, error, message):
    with pytest.raises(error, match=message):
        parametrize(module, name, **options)


@pytest.mark.parametrize(
    ("module", "alpha", "error", "message"),
    [
        (linear(), 0.1, ValueError, "module must be a module with a weight from parametrize, got a Linear without one"),
        (None, 0.1, TypeError, "module must be a torch.nn.Module, got NoneType"),
        (parametrize(linear()), 0, ValueError, "alpha must be > 0, got 0"),
        (parametrize(linear()), -1.5, ValueError, "alpha must be > 0, got -1.5"),
        (parametrize(linear()), math.nan, ValueError, "alpha must be finite, got nan"),
        (parametrize(linear()), None, TypeError, "alpha must be real numbers, got NoneType"),
        (parametrize(linear()), [0.1, 0.2], ValueError, "alpha must be a single number"),
    ],
)
def test_a_penalty_is_refused_for(module, alpha, error, message):
    with pytest.raises(error, match=message):
        penalty(module, alpha)


@pytest.mark.parametrize(
    ("module", "name", "tol", "error", "message"),
    [
        (linear(), "weight", 0, ValueError, "name must be a weight from parametrize, got 'weight'"),
        (parametrize(linear()), "bias", 0, ValueError, "name must be a weight from parametrize, got 'bias'"),
        (
            nn.utils.parametrizations.orthogonal(linear()),
            "weight",
            0,
            ValueError,
            "'weight' with another parametrization",
        ),
        (parametrize(linear()), "weight", -1e-6, ValueError, "tol must be >= 0, got -1e-06"),
        (parametrize(linear()), "weight", math.nan, ValueError, "tol must be finite, got nan"),
        (parametrize(linear()), 1, 0, TypeError, "name must be a string, got int"),
        ([1], "weight", 0, TypeError, "module must be a torch.nn.Module, got list"),
    ],
)
def test_pruning_is_refused_for(module, name, tol, error, message):
    with pytest.raises(error, match=message):
        prune_to_support(module, name, tol=tol)


def test_pruning_is_refused_under_another_parametrization():
    layer = parametrize(linear())
    torch_parametrize.register_parametrization(layer, "weight", nn.Tanh())
    with pytest.raises(ValueError, match="name must be a weight with no other parametrization on top, got 2 of them"):
        prune_to_support(layer)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (linear(), TypeError, "model must be a torch.nn.Sequential, got Linear"),
        (nn.Sequential(parametrize(linear())), ValueError, "model must be without weights from parametrize, got one"),
        (shared_layer(), ValueError, "model must be a chain that uses every module once, got a module used twice"),
        (
            tied_weights(),
            ValueError,
            "model must be a chain that uses every parameter once, got a parameter used twice",
        ),
    ],
)
def test_a_smaller_network_is_refused_for(model, error, message):
    with pytest.raises(error, match=message):
        smaller_network(model)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 0}, ValueError, "alpha must be > 0, got 0"),
        ({"alpha": -1}, ValueError, "alpha must be > 0, got -1"),
        ({"alpha": math.nan}, ValueError, "alpha must be finite, got nan"),
        ({"alpha": math.inf}, ValueError, "alpha must be finite, got inf"),
        ({"alpha": "1"}, TypeError, "alpha must be real numbers, got str"),
        ({"alpha": [1, 2]}, ValueError, "alpha must be a single number"),
        ({"tol": 0}, ValueError, "tol must be > 0, got 0"),
        ({"tol": None}, TypeError, "tol must be real numbers, got NoneType"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1, got 0"),
        ({"max_iter": 1.5}, TypeError, "max_iter must be an integer, got float"),
        ({"max_iter": True}, TypeError, "max_iter must be an integer, got bool"),
        ({"fit_intercept": "yes"}, TypeError, "fit_intercept must be True or False, got str"),
    ],
)
def test_a_regressor_refuses(options, error, message):
    with pytest.raises(error, match=message):
        SpredRegressor(**options).fit(np.eye(3), [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ([[1, math.nan]], [1], "Input X contains NaN"),
        ([[1, math.inf]], [1], "Input X contains infinity"),
        ([[1.0], [2.0]], [1, math.nan], "Input y contains NaN"),
        ([[1.0], [2.0]], [1.0], "inconsistent numbers of samples"),
        ([1.0, 2.0], [1.0, 2.0], "Expected 2D array, got 1D array"),
        (np.ones((2, 3)), np.ones((2, 2)), "y should be a 1d array"),
        (np.ones((0, 3)), np.ones(0), "Found array with 0 sample"),
        (np.ones((3, 0)), np.ones(3), "Found array with 0 feature"),
        ([["a"]], [1.0], "could not convert string to float"),
        (np.full((2, 2), 1j), [1.0, 2.0], "Complex data not supported"),
        (1e300 * np.eye(2), [1e300, -1e300], "X and y must be of magnitudes whose products are within the range"),
        (np.eye(2), [1.7e308, 1.7e308], "y must be of magnitudes within the range of float64"),
    ],
)
def test_a_regressor_refuses_data(X, y, message):
    with pytest.raises(ValueError, match=message):
        SpredRegressor(0.1).fit(X, y)


def test_an_unfitted_regressor_does_not_predict():
    with pytest.raises(NotFittedError, match="not fitted yet"):
        SpredRegressor().predict(np.eye(2))


@pytest.mark.parametrize(
    ("X", "y", "coef", "alpha", "error", "message"),
    [
        (np.eye(2), [1, 2, 3], [0, 0], 1, ValueError, r"y must be of shape \(2,\), got shape \(3,\)"),
        (np.eye(2), [1, 2], [0], 1, ValueError, r"coef must be of shape \(2,\), got shape \(1,\)"),
        ([1, 2], [1, 2], [0, 0], 1, ValueError, r"X must be of shape \(n, n\), got shape \(2,\)|X must be of shape"),
        (np.ones((0, 2)), [], [0, 0], 1, ValueError, r"X must be of shape \(n, p\) with n >= 1, got shape \(0, 2\)"),
        ([[math.nan]], [1], [0], 1, ValueError, "X must be finite, got nan"),
        (scipy.sparse.csr_matrix([[math.inf]]), [1], [0], 1, ValueError, "X must be finite, got inf"),
        ([[1]], [math.inf], [0], 1, ValueError, "y must be finite, got inf"),
        ([[1]], [1], [math.nan], 1, ValueError, "coef must be finite, got nan"),
        ([[1]], [1], [0], 0, ValueError, "alpha must be > 0, got 0"),
        ([[1]], [1], [0], "a", TypeError, "alpha must be real numbers, got str"),
        ([["a"]], [1], [0], 1, TypeError, "X must be real numbers, got list"),
        ([[1e300]], [1e300], [0], 1, ValueError, "X, y and coef must be of magnitudes whose products are within"),
    ],
)
def test_a_violation_is_refused_for(X, y, coef, alpha, error, message):
    with pytest.raises(error, match=message):
        lasso_kkt_violation(X, y, coef, alpha)
