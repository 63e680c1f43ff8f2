"""Linearised networks, kernel regression by gradient flow, the infinite-width kernel, and paths between networks."""

import copy
import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.stats import multivariate_normal
from sklearn.kernel_ridge import KernelRidge
from torch import nn
from torch.func import functional_call

from symlearn.kernel_learning import (
    ErrorBarrier,
    activation_distance,
    disagreement,
    error_barrier,
    infinite_ntk_relu,
    kernel_regression,
    kernel_velocity,
    linearize,
)
from symlearn.tangent_kernel import empirical_ntk, kernel_distance


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def perceptron(*sizes, activation=nn.Tanh, seed=0):
    layers = []
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        layer = nn.Linear(fan_in, fan_out, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(normal(fan_out, fan_in, seed=seed + index) / math.sqrt(fan_in))
            layer.bias.copy_(0.1 * normal(fan_out, seed=seed + 50 + index))
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def random_kernel(n, rank=None, seed=0):
    features = np.random.default_rng(seed).standard_normal((n, rank or 2 * n))
    return features @ features.T / features.shape[1]


# kernel regression


def test_regression_is_the_flow_of_the_function():
    kernel, targets = random_kernel(6), np.random.default_rng(1).standard_normal((6, 2))
    start = np.random.default_rng(2).standard_normal((6, 2))

    def flow(_, f):
        return (-kernel @ (f.reshape(6, 2) - targets)).ravel()

    solved = solve_ivp(flow, (0, 1.7), start.ravel(), rtol=1e-11, atol=1e-12).y[:, -1].reshape(6, 2)
    np.testing.assert_allclose(kernel_regression(kernel, targets, time=1.7, f0_train=start), solved, atol=1e-9)


def test_regression_with_ridge_is_the_flow_of_the_parameters():
    # Features as parameters of a linear model, so that decay towards the start acts on them and not on the outputs.
    rng = np.random.default_rng(0)
    features, test = rng.standard_normal((7, 4)), rng.standard_normal((3, 4))
    targets, theta_0, ridge = rng.standard_normal(7), rng.standard_normal(4), 0.3

    def flow(_, theta):
        return -features.T @ (features @ theta - targets) - ridge * (theta - theta_0)

    theta = solve_ivp(flow, (0, 0.4), theta_0, rtol=1e-11, atol=1e-12).y[:, -1]
    starts = {"f0_train": features @ theta_0, "f0_test": test @ theta_0}
    options = {"time": 0.4, "ridge": ridge, **starts}
    kernel, cross = features @ features.T, test @ features.T
    np.testing.assert_allclose(kernel_regression(kernel, targets, cross, **options), test @ theta, atol=1e-9)
    del options["f0_test"]
    np.testing.assert_allclose(kernel_regression(kernel, targets, **options), features @ theta, atol=1e-9)


def test_regression_at_the_end_is_kernel_ridge_regression():
    kernel, targets = random_kernel(9), np.random.default_rng(3).standard_normal((9, 3))
    cross = np.random.default_rng(4).standard_normal((5, 9))
    peer = KernelRidge(alpha=0.5, kernel="precomputed").fit(kernel, targets).predict(cross)
    np.testing.assert_allclose(kernel_regression(kernel, targets, cross, ridge=0.5), peer, rtol=1e-11)


def test_regression_without_ridge_at_the_end_uses_the_pseudo_inverse():
    kernel, targets = random_kernel(8, rank=3), np.random.default_rng(3).standard_normal(8)
    cross = np.random.default_rng(4).standard_normal((5, 8)) @ kernel
    expected = cross @ np.linalg.pinv(kernel, rcond=1e-12, hermitian=True) @ targets
    np.testing.assert_allclose(kernel_regression(kernel, targets, cross), expected, rtol=1e-8)


def test_null_modes_grow_linearly_for_a_finite_time_in_the_weights_but_never_in_the_outputs():
    kernel = np.diag([1.0, 0.0])
    np.testing.assert_allclose(kernel_regression(kernel, [1.0, 1.0], time=3.0), [1 - math.exp(-3), 0.0], atol=1e-15)
    np.testing.assert_allclose(kernel_regression(kernel, [1.0, 1.0], [[0.0, 1.0]], time=3.0), [3.0])
    np.testing.assert_allclose(kernel_regression(kernel, [1.0, 1.0], [[0.0, 1.0]]), [0.0])
    np.testing.assert_allclose(kernel_regression(kernel, [1.0, 1.0], [[0.0, 1.0]], ridge=0.5), [2.0])


def test_at_time_zero_nothing_has_moved():
    start = np.array([0.3, -1.0])
    np.testing.assert_array_equal(kernel_regression(np.eye(2), [1.0, 1.0], time=0, f0_train=start), start)
    assert kernel_regression(np.eye(2), [1.0, 1.0], [[1.0, 2.0]], time=0.0) == [0.0]


def test_each_residual_mode_decays_at_its_eigenvalue():
    kernel, targets = random_kernel(6), np.random.default_rng(5).standard_normal(6)
    eigenvalues, vectors = np.linalg.eigh(kernel)
    residual = vectors.T @ (targets - kernel_regression(kernel, targets, time=0.7))
    np.testing.assert_allclose(residual, np.exp(-0.7 * eigenvalues) * (vectors.T @ targets), rtol=1e-9)


@given(scale=st.floats(1e-6, 1e6), time=st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_only_the_product_of_kernel_and_time_matters(scale, time):
    kernel, targets = random_kernel(5), np.arange(5.0)
    one = kernel_regression(kernel * scale, targets, time=time / scale)
    np.testing.assert_allclose(one, kernel_regression(kernel, targets, time=time), rtol=1e-7, atol=1e-9)


def test_a_slow_start_keeps_its_digits():
    assert kernel_regression([[1e-9]], [1.0], time=1e-6)[0] == pytest.approx(1e-15, rel=1e-12)


def test_regression_takes_tensors_and_changes_nothing():
    kernel = torch.tensor(random_kernel(4), dtype=torch.float32)
    before = kernel.clone()
    found = kernel_regression(kernel, torch.arange(4), torch.ones(2, 4), ridge=0.1)
    assert found.dtype == np.float64
    assert found.shape == (2,)
    assert torch.equal(kernel, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_train": np.ones((2, 3))}, "k_train must be a square matrix"),
        ({"k_train": np.ones(3)}, "k_train must be of shape"),
        ({"k_train": np.zeros((0, 0))}, "k_train must be a square matrix"),
        ({"k_train": [[1.0, 0.5], [0.0, 1.0]]}, "k_train must be symmetric, got an asymmetry of 0.5"),
        ({"k_train": [[1.0, np.nan], [np.nan, 1.0]]}, "k_train must be finite"),
        ({"k_train": "kernel"}, "k_train must be"),
        ({"k_train": None}, "k_train must be"),
        ({"targets": [1.0]}, r"targets must be of shape \(2,\) or \(2, C\), got shape \(1,\)"),
        ({"targets": np.ones((2, 2, 2))}, "targets must be of shape"),
        ({"targets": 1.0}, "targets must be of shape"),
        ({"targets": [1.0, np.inf]}, "targets must be finite"),
        ({"targets": ["a", "b"]}, "targets must be real numbers"),
        ({"k_test": np.ones((3, 3))}, r"k_test must be of shape \(n, 2\)"),
        ({"k_test": np.ones(2)}, "k_test must be of shape"),
        ({"k_test": [[1.0, np.nan]]}, "k_test must be finite"),
        ({"time": -1.0}, r"time must be >= 0, got -1"),
        ({"time": math.nan}, "time must be >= 0, got nan"),
        ({"time": [1.0, 2.0]}, "time must be a single number"),
        ({"time": "long"}, "time must be real numbers"),
        ({"ridge": -0.1}, r"ridge must be >= 0, got -0\.1"),
        ({"ridge": math.inf}, "ridge must be finite"),
        ({"ridge": None}, "ridge must be"),
        ({"f0_train": [1.0]}, r"f0_train must be of shape \(2,\)"),
        ({"f0_train": [1.0, np.nan]}, "f0_train must be finite"),
        ({"f0_test": [1.0]}, "f0_test must be left out where there is no k_test"),
        ({"k_test": [[1.0, 1.0]], "f0_train": [0.0, 0.0]}, "f0_test must be given along with f0_train"),
        ({"k_test": [[1.0, 1.0]], "f0_train": [0.0, 0.0], "f0_test": [1.0, 2.0]}, r"f0_test must be of shape \(1,\)"),
    ],
)
def test_bad_regressions_are_refused(change, message):
    arguments = {"k_train": np.eye(2), "targets": [1.0, 2.0], **change}
    with pytest.raises((ValueError, TypeError), match=message):
        kernel_regression(**arguments)


# infinite width

AXES = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])


@pytest.mark.parametrize(
    ("depth", "weight", "bias", "row"),
    [
        (0, 2.0, 0.0, [0.66666667, 0.0, 0.66666667]),
        (1, 2.0, 0.0, [1.33333333, 0.21220659, 1.21220659]),
        (2, 2.0, 0.0, [2.0, 0.45713909, 1.68337333]),
        (3, 2.0, 0.1, [3.66666667, 1.41202183, 2.97913034]),
        (2, 1.5, 0.3, [2.1, 1.21957245, 1.87428778]),
    ],
)
def test_infinite_kernel_has_its_known_values(depth, weight, bias, row):
    np.testing.assert_allclose(infinite_ntk_relu(AXES, None, depth, weight, bias)[0], row, atol=5e-9)


def test_infinite_kernel_follows_from_gaussian_integrals():
    # E relu(u) relu(v) and P(u, v > 0) of a pair of Gaussians by quadrature; one hidden layer.
    x, weight, bias = np.array([[0.3, -1.2], [0.8, 0.5]]), 1.7, 0.2
    covariance = weight * x @ x.T / 2 + bias
    grid = np.linspace(0, 9 * math.sqrt(covariance.max()), 1501)
    density = multivariate_normal(cov=covariance).pdf(np.stack(np.meshgrid(grid, grid, indexing="ij"), -1))
    both = np.trapezoid(np.trapezoid(density, grid), grid)
    product = np.trapezoid(np.trapezoid(density * grid, grid) * grid, grid)
    expected = weight * product + bias + weight * both * covariance[0, 1]
    assert infinite_ntk_relu(x, depth=1, sigma_w2=weight, sigma_b2=bias)[0, 1] == pytest.approx(expected, rel=1e-4)


def test_wide_networks_approach_the_infinite_kernel():
    x = normal(5, 6)
    exact = infinite_ntk_relu(x, depth=2, sigma_w2=2.0, sigma_b2=0.1)
    errors = {}
    for width in (32, 512):
        sample = []
        for seed in range(6):
            sizes = (6, width, width, 1)
            # NTK parameterisation: weights of unit variance, gradients scaled by the fan-in (and by the bias variance).
            kernel = np.zeros((5, 5))
            model = perceptron(*sizes, activation=nn.ReLU, seed=100 * seed)
            with torch.no_grad():
                for layer in model[::2]:
                    layer.weight.mul_(math.sqrt(2))
                    layer.bias.mul_(math.sqrt(10.0) * math.sqrt(0.1))
            for layer in model[::2]:
                for each, scale in ((layer.weight, 2 / layer.in_features), (layer.bias, 0.1)):
                    model.requires_grad_(False)
                    each.requires_grad_(True)
                    kernel += scale * empirical_ntk(model, x).numpy()
            sample.append(np.linalg.norm(kernel - exact) / np.linalg.norm(exact))
        errors[width] = np.mean(sample)
    assert errors[512] < 0.15
    assert 2.5 < errors[32] / errors[512] < 6.5  # sixteen times the width: a factor of four


def test_diagonal_is_exact_and_an_explicit_second_argument_agrees():
    x = np.random.default_rng(0).standard_normal((4, 3))
    kernel = infinite_ntk_relu(x, depth=4)
    np.testing.assert_allclose(np.diag(kernel), 5 * 2 * np.square(x).sum(1) / 3, rtol=1e-14)
    np.testing.assert_allclose(infinite_ntk_relu(x, x, depth=4), kernel, rtol=1e-7)
    np.testing.assert_array_equal(kernel, kernel.T)


@given(scale=st.floats(1e-3, 1e3), depth=st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_without_biases_the_kernel_is_homogeneous_in_each_input(scale, depth):
    x = np.random.default_rng(1).standard_normal((4, 3))
    one = infinite_ntk_relu(scale * x, x[:2], depth=depth)
    np.testing.assert_allclose(one, scale * infinite_ntk_relu(x, x[:2], depth=depth), rtol=1e-6, atol=1e-9 * scale)


def test_an_input_of_zeros_and_opposite_inputs_are_allowed():
    x = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    kernel = infinite_ntk_relu(x, depth=3)
    assert not kernel[0].any()
    assert infinite_ntk_relu(x, depth=1)[1, 2] == pytest.approx(0, abs=1e-15)
    assert np.linalg.eigvalsh(infinite_ntk_relu(x, depth=3, sigma_b2=0.2)).min() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x1": [1.0, 2.0]}, "x1 must be of shape"),
        ({"x1": np.ones((0, 2))}, "x1 must be of at least one row"),
        ({"x1": [[1.0, np.nan]]}, "x1 must be finite"),
        ({"x1": "inputs"}, "x1 must be"),
        ({"x2": np.ones((2, 3))}, r"x2 must be of shape \(n, 2\), as x1, got shape \(2, 3\)"),
        ({"x2": [[np.inf, 0.0]]}, "x2 must be finite"),
        ({"depth": -1}, "depth must be >= 0, got -1"),
        ({"depth": 1.0}, "depth must be an int"),
        ({"depth": True}, "depth must be an int"),
        ({"sigma_w2": 0.0}, r"sigma_w2 must be > 0, got 0"),
        ({"sigma_w2": math.nan}, "sigma_w2 must be finite"),
        ({"sigma_b2": -0.1}, r"sigma_b2 must be >= 0, got -0\.1"),
        ({"depth": 900, "sigma_w2": 8.0}, "must be such that the kernel is finite, got an overflow"),
    ],
)
def test_bad_infinite_kernels_are_refused(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        infinite_ntk_relu(**{"x1": np.eye(2), **change})


# linearised networks


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True, dtype=torch.float64)

    def forward(self, x):
        return self.attention(x.reshape(len(x), 2, 8)).flatten(1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, dtype=torch.float64)
        self.second = nn.Linear(4, 4, dtype=torch.float64)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.sin(self.first(x)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(4, 3, batch_first=True, dtype=torch.float64)

    def forward(self, x):
        return self.cell(x.reshape(len(x), 4, 4))[0][:, -1]


def convolutional():
    layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.4), nn.Flatten(), nn.Linear(12, 2)
    return nn.Sequential(*layers).double()


MODELS = {
    "perceptron": (lambda: perceptron(5, 7, 3), (5,)),
    "convolutional": (convolutional, (1, 4, 4)),
    "attention": (Attention, (16,)),
    "tied": (Tied, (4,)),
    "recurrent": (Recurrent, (16,)),
}

EXACT = ("perceptron", "convolutional", "tied")


def built(name):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        make, shape = MODELS[name]
        model = make()
    return model, normal(6, *shape, seed=9)


@pytest.mark.parametrize("name", MODELS)
def test_linearised_network_is_the_first_order_expansion(name):
    model, x = built(name)
    before = snapshot(model)
    linear = linearize(model)
    model.eval()
    # Attention and recurrent cells take another path through torch under differentiation.
    torch.testing.assert_close(
        linear(x), model(x), rtol=0 if name in EXACT else 1e-13, atol=0 if name in EXACT else 1e-14
    )
    params = {key: value.detach() for key, value in model.named_parameters()}
    steps = {
        key: 0.1 * torch.randn(value.shape, generator=seeded(4), dtype=value.dtype) for key, value in params.items()
    }
    with torch.no_grad():
        for (_, theta), step in zip(linear.named_parameters(), steps.values(), strict=True):
            theta.add_(step)
    rows = []
    for index in range(len(x)):  # a sample alone, output by output, by plain autograd
        output = model(x[index : index + 1]).reshape(-1)
        gradients = [torch.autograd.grad(each, list(model.parameters()), retain_graph=True) for each in output]
        rows.append(
            torch.stack([sum((g * s).sum() for g, s in zip(row, steps.values(), strict=True)) for row in gradients])
        )
    expected = model(x) + torch.stack(rows).reshape(model(x).shape)
    torch.testing.assert_close(linear(x), expected, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_gradient_of_the_linearised_network_does_not_depend_on_where_it_stands(name):
    model, x = built(name)
    linear = linearize(model)
    grads = []
    for step in (0.0, 0.5):
        with torch.no_grad():
            for theta in linear.parameters():
                theta.add_(step)
        grads.append(torch.autograd.grad(linear(x).square().mean() * 0 + linear(x).sum(), list(linear.parameters())))
    model.eval()
    own = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    for first, second, each in zip(*grads, own, strict=True):
        torch.testing.assert_close(first, second)
        torch.testing.assert_close(first, each)


def test_training_the_linearised_network_follows_the_closed_form():
    model, x = perceptron(5, 20, 2), normal(9, 5, seed=1)
    x_test, y = normal(4, 5, seed=2), normal(9, 2, seed=3)
    linear, lr, n_steps = linearize(model), 1e-4, 4000
    optimizer = torch.optim.SGD(linear.parameters(), lr=lr)
    for _ in range(n_steps):
        optimizer.zero_grad()
        (0.5 * (linear(x) - y).square().sum()).backward()
        optimizer.step()
    kernel = empirical_ntk(model, x, outputs="full").permute(0, 2, 1, 3).reshape(18, 18)
    cross = empirical_ntk(model, x_test, x, outputs="full").permute(0, 2, 1, 3).reshape(8, 18)
    starts = {"f0_train": model(x).reshape(-1).detach(), "f0_test": model(x_test).reshape(-1).detach()}
    predicted = kernel_regression(kernel, y.reshape(-1), cross, time=lr * n_steps, **starts)
    moved = np.abs(predicted - starts["f0_test"].numpy()).max()
    assert moved > 0.5
    assert np.abs(linear(x_test).detach().numpy().reshape(-1) - predicted).max() < 1e-3 * moved


def test_frozen_parameters_become_buffers_and_names_keep_their_order():
    model = perceptron(3, 4, 2)
    model[0].weight.requires_grad_(False)
    linear = linearize(model)
    assert [name for name, _ in linear.named_parameters()] == ["model.0.bias", "model.2.weight", "model.2.bias"]
    assert "model.0.weight" in dict(linear.named_buffers())
    assert all(parameter.grad is None for parameter in linear.parameters())
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_linearised_network_survives_copying_saving_and_conversion():
    model, x = perceptron(3, 4, 2), normal(5, 3)
    linear = linearize(model)
    with torch.no_grad():
        next(linear.parameters()).add_(0.3)
    value = linear(x)
    assert torch.equal(copy.deepcopy(linear)(x), value)
    assert torch.equal(pickle.loads(pickle.dumps(linear))(x), value)
    other = linearize(perceptron(3, 4, 2, seed=7))
    other.load_state_dict(linear.state_dict())
    assert torch.equal(other(x), value)
    assert linear.float()(x.float()).dtype == torch.float32


def test_mode_and_randomness_do_not_reach_the_linearised_function():
    model, x = built("convolutional")
    state = torch.get_rng_state()
    linear = linearize(model).train()
    assert linear.training
    assert model.training
    assert torch.equal(linear(x), linear(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unused_parameter_has_no_effect():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x):
            return self.used(x)

    linear, x = linearize(Part()), torch.ones(1, 2)
    before = linear(x)
    with torch.no_grad():
        linear.model.unused.weight.add_(1.0)
    assert torch.equal(linear(x), before)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("net", TypeError, "model must be a torch.nn.Module, got str"),
        (None, TypeError, "model must be a torch.nn.Module"),
        (nn.ReLU(), ValueError, "model must be one with trainable parameters"),
        (nn.Linear(2, 2).requires_grad_(False), ValueError, "model must be one with trainable parameters"),
        (nn.LazyLinear(2), ValueError, "model must be initialised, got no values in 'weight'"),
        (nn.Linear(2, 2, device="meta"), ValueError, "model must be initialised"),
    ],
)
def test_models_that_cannot_be_linearised_are_refused(model, error, message):
    with pytest.raises(error, match=message):
        linearize(model)


def test_a_model_that_returns_no_tensor_is_refused():
    with pytest.raises(TypeError, match="model must be a module that returns a tensor, got tuple"):
        linearize(nn.LSTM(2, 2))(torch.ones(1, 3, 2))


# barriers


def quadratic(model):
    return 1 - float(model.weight.detach()) ** 2


def scalar(value):
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(layer.weight, value)
    return layer


def test_barrier_is_the_height_above_the_mean_of_the_ends():
    found = error_barrier(scalar(-1.0), scalar(0.5), quadratic, n_points=7)
    assert isinstance(found, ErrorBarrier)
    np.testing.assert_allclose(found.t, np.linspace(0, 1, 7))
    np.testing.assert_allclose(found.values, 1 - np.linspace(-1, 0.5, 7) ** 2)
    assert found.barrier == pytest.approx(1 - (0 + 0.75) / 2)
    assert found.t_max == pytest.approx(4 / 6)


def test_a_convex_metric_has_no_barrier_but_half_the_difference_of_the_ends():
    found = error_barrier(scalar(0.0), scalar(1.0), lambda model: float(model.weight.detach()) ** 2)
    assert len(found.t) == 25
    assert found.barrier == pytest.approx(0.5)
    assert found.t_max == 1.0
    assert error_barrier(scalar(-1.0), scalar(1.0), lambda m: float(m.weight.detach()) ** 2).barrier == pytest.approx(0)


def test_ends_are_the_models_to_the_bit_and_neither_is_changed():
    one, other = perceptron(3, 4, 2, seed=1), perceptron(3, 4, 2, seed=2)
    states, x, seen = [snapshot(one), snapshot(other)], normal(5, 3), []
    one.train()

    def metric(model):
        assert not torch.is_grad_enabled()
        assert model is not one
        seen.append(model(x))
        with torch.no_grad():
            for each in model.parameters():
                each.zero_()  # the next point must not suffer
        return 0.0

    error_barrier(one, other, metric, n_points=3)
    assert torch.equal(seen[0], one(x))
    assert torch.equal(seen[2], other(x))
    assert torch.allclose(
        seen[1], functional_call(one, {k: (v + other.state_dict()[k]) / 2 for k, v in states[0].items()}, x)
    )
    for model, state in zip((one, other), states, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert all(each.grad is None for each in model.parameters())


def test_statistics_are_mixed_and_counters_come_from_the_first():
    one, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    one.num_batches_tracked.fill_(5)
    other.num_batches_tracked.fill_(9)
    other.running_mean.fill_(4.0)
    seen = []

    def metric(model):
        seen.append((float(model.running_mean[0]), int(model.num_batches_tracked)))
        model.running_mean.fill_(77.0)
        model.num_batches_tracked.fill_(77)
        return 1.0

    assert error_barrier(one, other, metric, n_points=5).barrier == 0
    assert seen == [(0.0, 5), (1.0, 5), (2.0, 5), (3.0, 5), (4.0, 5)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_a": "net"}, TypeError, "model_a must be a torch.nn.Module"),
        ({"model_b": None}, TypeError, "model_b must be a torch.nn.Module"),
        ({"model_b": nn.Linear(1, 1)}, ValueError, "model_b must be of the architecture of model_a, got 'bias'"),
        ({"model_b": nn.Linear(2, 1, bias=False)}, ValueError, r"'weight' \(1, 1\), got \(1, 2\)"),
        ({"metric": 3}, TypeError, "metric must be callable, got int"),
        ({"metric": lambda model: None}, TypeError, "metric must be a function that returns a number"),
        ({"metric": lambda model: "low"}, TypeError, "metric must be a function that returns a number"),
        ({"metric": lambda model: torch.ones(2)}, TypeError, "metric must be a function that returns a number"),
        ({"metric": lambda model: math.nan}, ValueError, "metric must be finite on the whole line, got nan"),
        ({"n_points": 2}, ValueError, "n_points must be >= 3, got 2"),
        ({"n_points": 5.0}, TypeError, "n_points must be an int"),
    ],
)
def test_bad_barriers_are_refused(change, error, message):
    arguments = {"model_a": scalar(0.0), "model_b": scalar(1.0), "metric": quadratic, "n_points": 5, **change}
    n_points = arguments.pop("n_points")
    with pytest.raises(error, match=message):
        error_barrier(*arguments.values(), n_points=n_points)


# velocity and distances of functions


def test_velocity_is_distance_over_time():
    kernels = np.stack([random_kernel(5, seed=seed) for seed in range(3)])
    found = kernel_velocity(kernels, [0.0, 0.5, 2.5])
    expected = [kernel_distance(kernels[0], kernels[1]) / 0.5, kernel_distance(kernels[1], kernels[2]) / 2]
    np.testing.assert_allclose(found, expected)


def test_velocity_of_a_smooth_motion_is_proportional_to_its_step():
    one, other = random_kernel(5, seed=1), random_kernel(5, seed=2)
    coarse = kernel_velocity([one, one + 2e-3 * other], [0, 2e-3])[0]
    fine = kernel_velocity([one, one + 1e-3 * other], [0, 1e-3])[0]
    assert coarse / fine == pytest.approx(2, rel=1e-2)


@pytest.mark.parametrize(
    ("kernels", "times", "message"),
    [
        (np.ones((2, 3, 3)), [0.0], "times must be at least two"),
        (np.ones((2, 3, 3)), [1.0, 0.0], "times must be at least two increasing"),
        (np.ones((2, 3, 3)), [0.0, 0.0], "times must be at least two increasing"),
        (np.ones((2, 3, 3)), [[0.0, 1.0]], "times must be of shape"),
        (np.ones((3, 3, 3)), [0.0, 1.0], r"kernels must be of shape \(2, n, n\)"),
        (np.ones((2, 3)), [0.0, 1.0], "kernels must be of shape"),
        (
            np.stack([np.eye(2), np.zeros((2, 2))]),
            [0.0, 1.0],
            "kernels must be nonzero somewhere, each, got only zeros at 1",
        ),
        (np.full((2, 1, 1), np.nan), [0.0, 1.0], "kernels must be finite"),
    ],
)
def test_bad_velocities_are_refused(kernels, times, message):
    with pytest.raises(ValueError, match=message):
        kernel_velocity(kernels, times)


def relu_units(weights):
    layer = nn.Linear(1, len(weights), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights)[:, None])
    return nn.Sequential(layer, nn.ReLU())


def test_activation_distance_counts_pairs_of_units_and_inputs():
    x = torch.tensor([[1.0], [2.0], [-1.0]])
    one, other = relu_units([1.0, -1.0]), relu_units([1.0, 1.0])
    assert activation_distance(one, one, x) == 0
    assert activation_distance(one, other, x) == pytest.approx(3 / 6)
    assert activation_distance(relu_units([1.0]), relu_units([-1.0]), x) == 1


def test_disagreement_counts_inputs():
    x = torch.eye(4, 2)
    one, other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        one.weight.copy_(torch.eye(2))
        other.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert disagreement(one, other, x) == 0.25


def test_distances_leave_mode_statistics_hooks_and_randomness_alone():
    model, x = convolutional(), normal(4, 1, 4, 4)
    before, state = snapshot(model), torch.get_rng_state()
    assert disagreement(model, model, x) == 0
    assert activation_distance(model, model, x) == 0
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (disagreement, ("net", nn.Linear(2, 2), torch.eye(2)), TypeError, "model_a must be a torch.nn.Module"),
        (
            disagreement,
            (nn.Linear(2, 2), nn.Linear(2, 2), [[1.0, 2.0]]),
            TypeError,
            "inputs must be a tensor, got list",
        ),
        (
            disagreement,
            (nn.Linear(2, 2), nn.Linear(2, 2), torch.ones(0, 2)),
            ValueError,
            "inputs must be of at least one",
        ),
        (
            disagreement,
            (nn.Flatten(0), nn.Linear(2, 2), torch.eye(2)),
            ValueError,
            "model_a must be a module whose scores",
        ),
        (
            activation_distance,
            (relu_units([1.0]), None, torch.ones(1, 1)),
            TypeError,
            "model_b must be a torch.nn.Module",
        ),
        (
            activation_distance,
            (nn.Linear(1, 1), relu_units([1.0]), torch.ones(1, 1)),
            ValueError,
            "with nn.ReLU modules",
        ),
        (
            activation_distance,
            (relu_units([1.0]), relu_units([1.0, 2.0]), torch.ones(1, 1)),
            ValueError,
            "model_b must be a network with the units of model_a",
        ),
    ],
)
def test_bad_comparisons_are_refused(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


def test_laziness_of_a_smooth_network_has_slope_minus_two():
    # Centred outputs times a: the weights need move 1/a as far, the kernel changes 1/a as much, its distance 1/a^2.
    x, y = normal(12, 4), torch.sign(normal(12, 1, seed=5))
    distances = []
    for scale in (2.0, 8.0):
        model = perceptron(4, 40, 1, seed=3)
        start, before = model(x).detach(), empirical_ntk(model, x)
        for _ in range(300):
            loss = 0.5 * (scale * (model(x) - start) - y).square().sum()
            grads = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, grad in zip(model.parameters(), grads, strict=True):
                    parameter.sub_(0.02 / scale**2 * grad)
        distances.append(kernel_distance(before, empirical_ntk(model, x)))
    assert math.log(distances[0] / distances[1]) / math.log(4) == pytest.approx(2, abs=0.3)
