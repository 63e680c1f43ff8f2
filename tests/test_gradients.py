"""Tests of the gradient noise: known fractions, brute force, both routes against each other, memory, and refusals."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, vmap
from torch.utils.checkpoint import checkpoint

from symlearn.datasets import digits
from symlearn.gradients import (
    GradientNoise,
    gradient_noise,
    make_batch_loss,
    make_sample_loss,
    noise_covariance_trace,
    per_sample_gradients,
)
from symlearn.models import mlp
from symlearn.symmetry import GL, ContinuousSymmetry, MirrorSymmetry, Permutation, Rescaling, Rotation, Scale

LAYER = ("0.weight", "0.bias")
CRITERION = nn.CrossEntropyLoss()
# Both routes sum the same numbers in another order.
ROUNDING = {torch.float32: 1e-5, torch.float64: 2e-14}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=generator(seed))


def labels(n, n_classes=3, seed=0):
    return torch.randint(n_classes, (n,), generator=generator(seed))


def parameters(model):
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


def with_random_biases(model):
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(tensor, std=0.3, generator=generator(len(name) + tensor.numel()))
    return model


def small_net(dtype=torch.float64, activation="relu"):
    """Five inputs, hidden layers of 6 and 4 units, three classes: fewer than 100 parameters."""
    return with_random_biases(mlp([5, 6, 4, 3], activation, generator=generator()).to(dtype))


def opaque(sample_loss):
    """The same loss without the memory of its model: it takes the general route."""
    return lambda params, x, y: sample_loss(params, x, y)


def covariance(sample_loss, params, inputs, targets, names=None):
    """The matrix that the library never forms."""
    gradients = per_sample_gradients(sample_loss, params, inputs, targets)
    flat = torch.cat([gradients[name].flatten(1) for name in names or gradients], dim=1)
    return torch.cov(flat.T, correction=0)


def generator_matrix(symmetry, params):
    """A as a matrix, (charges, n, n), from the second derivative of the charge."""
    sizes = [params[name].numel() for name in symmetry.names]

    def charge(flat):
        pieces = flat.split(sizes)
        return symmetry.charge({n: p.reshape(params[n].shape) for n, p in zip(symmetry.names, pieces, strict=True)})

    return torch.func.hessian(charge)(torch.zeros(sum(sizes), dtype=torch.float64)) / 2


def assert_same_noise(first, second, dtype=torch.float64):
    scale = max(float(second.second_moment.abs().max()), float(second.mean_part.abs().max()))
    for field in ("second_moment", "mean_part", "noise_trace"):
        one, other = getattr(first, field), getattr(second, field)
        assert one.shape == other.shape
        assert one.dtype == other.dtype == dtype
        assert float((one - other).abs().max()) <= ROUNDING[dtype] * scale, field


class Attention(nn.Module):
    def __init__(self, heads=2, width=8):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.o = nn.Linear(width, 3)
        for index, (name, parameter) in enumerate(self.named_parameters()):
            nn.init.normal_(parameter, std=0.4, generator=generator(index + len(name)))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2)).mean(1)


QUERY_KEY = GL("q.weight", "k.weight", left_bias="q.bias", right_bias="k.bias", transpose_left=True, heads=2)
VALUE_OUTPUT = GL("o.weight", "v.weight", right_bias="v.bias", heads=2)

SYMMETRIES = {
    "none": None,
    "rescaling": Rescaling(LAYER, "2.weight"),
    "second layer": Rescaling(("2.weight", "2.bias"), "4.weight"),
    "without bias": Rescaling("0.weight", "2.weight"),
    "bias alone": Rescaling("0.bias", "2.weight"),
    "weight against bias": Rescaling("0.weight", "0.bias"),
    "layers": Rescaling(LAYER, "2.weight", per_unit=False),
    "scale": Scale(LAYER),
    "scale of everything": Scale(("0.weight", "2.bias", "4.weight")),
    "scale per unit": Scale(("2.weight", "2.bias"), per_unit=True),
    "matrix": GL("2.weight", "0.weight", right_bias="0.bias"),
    "matrix without bias": GL("4.weight", "2.weight"),
    "heads": GL("2.weight", "0.weight", right_bias="0.bias", heads=3),
    "transposed": GL("0.weight", "2.weight", left_bias="0.bias", transpose_left=True, heads=2),
}


def net_for(name, dtype=torch.float64):
    """The transposed symmetry needs as many units in the second layer as in the first."""
    if name == "transposed":
        return with_random_biases(mlp([5, 4, 4, 3], generator=generator()).to(dtype))
    return small_net(dtype)


each_symmetry = pytest.mark.parametrize("name", SYMMETRIES)


# Known numbers


def scalar_loss(params, x, y):
    return (params["u"] * params["w"] * x - y) ** 2


SCALARS = {"u": torch.tensor(2.0, dtype=torch.float64), "w": torch.tensor(0.5, dtype=torch.float64)}
SCALAR_X, SCALAR_Y = torch.tensor([1.0, 2.0, -1.0]).double(), torch.tensor([0.0, 1.0, 1.0]).double()


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
@pytest.mark.parametrize("per_unit", [True, False])
def test_two_scalars_have_the_known_fractions(chunk_size, per_unit):
    symmetry = Rescaling("u", "w", per_unit=per_unit)
    noise = gradient_noise(scalar_loss, SCALARS, SCALAR_X, SCALAR_Y, symmetry, chunk_size=chunk_size)
    assert noise.second_moment.item() == pytest.approx(-45, rel=1e-14)
    assert noise.mean_part.item() == pytest.approx(-125 / 3, rel=1e-14)
    assert noise.noise_trace.item() == pytest.approx(-10 / 3, rel=1e-14)
    assert noise.noise_trace.shape == ((1,) if per_unit else ())
    assert noise.n_samples == 3
    total = noise_covariance_trace(scalar_loss, SCALARS, SCALAR_X, SCALAR_Y, chunk_size=chunk_size)
    assert total.item() == pytest.approx(34 / 9, rel=1e-14)
    moved = symmetry.act(SCALARS, np.log(2))
    trace = noise_covariance_trace(scalar_loss, moved, SCALAR_X, SCALAR_Y, symmetry, chunk_size=chunk_size)
    assert trace.item() == pytest.approx(-85 / 6, rel=1e-13)


def test_per_sample_gradients_of_two_scalars_are_known():
    gradients = per_sample_gradients(scalar_loss, SCALARS, SCALAR_X, SCALAR_Y, chunk_size=2)
    assert gradients["u"].tolist() == [1, 2, 2]
    assert gradients["w"].tolist() == [4, 8, 8]


def test_a_scale_invariant_model_has_the_noise_of_its_dimensions():
    x, label_noise = normal(20_000, 10), normal(20_000, seed=1)
    w = torch.zeros(10, dtype=torch.float64)
    w[0] = 1

    def loss(params, x, y):
        return (x @ params["w"] / params["w"].norm() - y) ** 2

    trace = noise_covariance_trace(loss, {"w": w}, x, x[:, 0] + label_noise, Scale("w"))
    # g = 2 (noise) (the 9 components of x across w): mean 4 * 9 of a square with relative standard deviation
    # sqrt(3 * (9 + 2) / 9 - 1) = 1.63.
    assert trace.item() == pytest.approx(36, abs=4 * 36 * 1.63 / 20_000**0.5)


@pytest.fixture(scope="module")
def digits_problem():
    data = digits()
    model = mlp([64, 32, 16, 10], generator=generator()).double()
    return model, torch.tensor(data.x_train[:200]).double(), torch.tensor(data.y_train[:200])


def test_the_noise_of_each_neuron_on_digits_is_that_of_the_full_covariance(digits_problem):
    model, x, y = digits_problem
    loss, params, symmetry = make_sample_loss(model, CRITERION), parameters(model), Rescaling(LAYER, "2.weight")
    gradients = per_sample_gradients(loss, params, x, y, chunk_size=64)
    deviations = {name: g - g.mean(0) for name, g in gradients.items()}
    incoming = deviations["0.weight"].square().sum(2).mean(0) + deviations["0.bias"].square().mean(0)
    expected = incoming - deviations["2.weight"].square().sum(1).mean(0)
    for each in (loss, opaque(loss)):
        trace = noise_covariance_trace(each, params, x, y, symmetry, chunk_size=64)
        assert float((trace - expected).abs().max()) < 1e-15
    assert expected.abs().max() > 0.01


def test_the_mean_of_sample_losses_is_the_batch_loss(digits_problem):
    model, x, y = digits_problem
    params = parameters(model)
    sample_loss, batch_loss = make_sample_loss(model, CRITERION), make_batch_loss(model, CRITERION)
    losses = torch.stack([sample_loss(params, *sample) for sample in zip(x, y, strict=True)])
    assert float(batch_loss(params, x, y)) == pytest.approx(float(losses.mean()), rel=1e-14)
    assert float(batch_loss(params, x, y)) == pytest.approx(CRITERION(model(x), y).item(), rel=1e-14)


# Brute force and laws


@each_symmetry
def test_the_trace_is_that_of_the_covariance_with_the_generator(name):
    model, symmetry = net_for(name), SYMMETRIES[name]
    params, x, y = parameters(model), normal(23, 5), labels(23)
    loss = make_sample_loss(model, CRITERION)
    sigma = covariance(loss, params, x, y, symmetry.names if symmetry else None)
    generators = generator_matrix(symmetry, params) if symmetry else torch.eye(len(sigma), dtype=torch.float64)
    expected = (generators * sigma).sum((-2, -1))
    for each in (loss, opaque(loss)):
        for chunk_size in (5, 23):
            trace = noise_covariance_trace(each, params, x, y, symmetry, chunk_size=chunk_size)
            torch.testing.assert_close(trace, expected, rtol=1e-12, atol=1e-14)


@each_symmetry
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk_size", [1, 7, 256])
def test_both_routes_and_all_chunk_sizes_agree(name, dtype, chunk_size):
    model, symmetry = net_for(name, dtype), SYMMETRIES[name]
    params, x, y = parameters(model), normal(30, 5, dtype=dtype), labels(30)
    loss = make_sample_loss(model, CRITERION)
    fast = gradient_noise(loss, params, x, y, symmetry, chunk_size=chunk_size)
    assert_same_noise(fast, gradient_noise(opaque(loss), params, x, y, symmetry, chunk_size=11), dtype)
    assert_same_noise(fast, gradient_noise(loss, params, x, y, symmetry, chunk_size=30), dtype)
    assert isinstance(fast, GradientNoise)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 12), chunk_size=st.integers(1, 13), offset=st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_both_routes_agree_on_any_data(seed, n, chunk_size, offset):
    model = small_net(activation="tanh")
    params = {name: tensor + 0.3 * normal(*tensor.shape, seed=seed) for name, tensor in parameters(model).items()}
    x, y = normal(n, 5, seed=seed) + offset, normal(n, 3, seed=seed + 1)
    for symmetry in (None, SYMMETRIES["rescaling"], SYMMETRIES["heads"]):
        loss = make_sample_loss(model, nn.MSELoss())
        fast = gradient_noise(loss, params, x, y, symmetry, chunk_size=chunk_size)
        assert_same_noise(fast, gradient_noise(opaque(loss), params, x, y, symmetry, chunk_size=chunk_size))


@pytest.mark.parametrize("mu", [-0.7, 0.3])
def test_noise_transforms_along_the_orbit_without_new_gradients(mu):
    model = small_net()
    params, x, y = parameters(model), normal(40, 5), labels(40)
    loss, symmetry = make_sample_loss(model, CRITERION), SYMMETRIES["rescaling"]
    amounts = mu * normal(6, seed=1)
    trace = noise_covariance_trace(loss, params, x, y, symmetry)
    incoming = noise_covariance_trace(loss, params, x, y, Scale(LAYER, per_unit=True))
    predicted = incoming * (-2 * amounts).exp() - (incoming - trace) * (2 * amounts).exp()
    moved = noise_covariance_trace(loss, symmetry.act(params, amounts), x, y, symmetry)
    torch.testing.assert_close(moved, predicted, rtol=1e-11, atol=1e-14)


def test_attention_noise_transforms_head_by_head():
    model = Attention().double()
    params, x, y = parameters(model), normal(25, 6, 8), labels(25)
    loss = make_sample_loss(model, CRITERION)
    direction = 0.3 * normal(2, 4, 4, seed=1)
    direction = direction + direction.mT
    gradients = per_sample_gradients(loss, params, x, y)
    deviations = {name: tensor - tensor.mean(0) for name, tensor in gradients.items()}

    def gram(names):
        parts = [deviations[name].unflatten(1, (2, 4)).reshape(25, 2, 4, -1) for name in names]
        return sum((part @ part.mT).mean(0) for part in parts)

    right, left = gram(("k.weight", "k.bias")), gram(("q.weight", "q.bias"))
    trace = noise_covariance_trace(loss, params, x, y, QUERY_KEY, chunk_size=10)
    torch.testing.assert_close(trace, right - left, rtol=1e-11, atol=1e-15)
    grow = torch.matrix_exp(direction)
    shrink = torch.linalg.inv(grow)
    moved = noise_covariance_trace(loss, QUERY_KEY.act(params, direction), x, y, QUERY_KEY)
    torch.testing.assert_close(moved, shrink @ right @ shrink - grow @ left @ grow, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("symmetry", [QUERY_KEY, VALUE_OUTPUT])
def test_the_noise_of_a_direction_is_the_product_with_the_matrix_trace(symmetry):
    model = Attention().double()
    params, x, y = parameters(model), normal(25, 6, 8), labels(25)
    loss = make_sample_loss(model, CRITERION)
    direction = normal(2, 4, 4, seed=1)
    direction = direction + direction.mT
    gradients = per_sample_gradients(loss, params, x, y)
    products = vmap(lambda g: symmetry.generator_product(g, direction))(gradients)
    along = sum((gradients[n] * products[n]).flatten(1).sum(1) for n in symmetry.names).mean()
    mean = {name: tensor.mean(0) for name, tensor in gradients.items()}
    of_mean = sum((mean[n] * symmetry.generator_product(mean, direction)[n]).sum() for n in symmetry.names)
    trace = noise_covariance_trace(loss, params, x, y, symmetry)
    assert trace.shape == (2, 4, 4)
    torch.testing.assert_close((direction * trace).sum(), along - of_mean)
    # The symmetry itself: no sample pushes along the orbit.
    pushed = symmetry.generator_product(params, direction)
    push = sum((gradients[n] * pushed[n]).flatten(1).sum(1) for n in symmetry.names)
    assert push.abs().max() < 1e-14


def test_dead_units_have_exactly_no_incoming_noise():
    model = small_net()
    params = parameters(model)
    params["0.bias"][2] = -100
    params["2.weight"][:, 4] = 0
    x, y = normal(20, 5), labels(20)
    for loss in (make_sample_loss(model, CRITERION), opaque(make_sample_loss(model, CRITERION))):
        incoming = noise_covariance_trace(loss, params, x, y, Scale(LAYER, per_unit=True), chunk_size=6)
        assert incoming[2] == 0
        assert incoming[4] == 0
        assert (incoming[[0, 1, 3, 5]] > 0).all()
        assert noise_covariance_trace(loss, params, x, y, SYMMETRIES["rescaling"], chunk_size=6)[2] == 0


def test_equal_samples_have_no_noise():
    model = small_net(torch.float32)
    x, y = normal(1, 5, dtype=torch.float32).expand(50, 5), labels(1).expand(50)
    for loss in (make_sample_loss(model, CRITERION), opaque(make_sample_loss(model, CRITERION))):
        noise = gradient_noise(loss, parameters(model), x, y, chunk_size=16)
        assert 0 <= noise.noise_trace.item() < 1e-12 * noise.mean_part.item()


@pytest.mark.parametrize("chunk_size", [32, 1000])
def test_noise_far_below_the_mean_gradient_is_right_in_single_precision(chunk_size):
    model = small_net(activation="tanh")
    x = 1 + 1e-4 * normal(500, 5)
    y = torch.full((500,), 1)
    exact = gradient_noise(make_sample_loss(model, CRITERION), parameters(model), x, y, SYMMETRIES["rescaling"])
    single = small_net(torch.float32, "tanh")
    for loss in (make_sample_loss(single, CRITERION), opaque(make_sample_loss(single, CRITERION))):
        noise = gradient_noise(loss, parameters(single), x.float(), y, SYMMETRIES["rescaling"], chunk_size=chunk_size)
        ratio = (exact.noise_trace / exact.mean_part).abs()
        assert 1e-12 < ratio.max() < 1e-5
        # Inputs are rounded to 6e-8 / 1e-4 of their spread, gradients likewise.
        assert (noise.noise_trace - exact.noise_trace).abs().max() < 2e-2 * exact.noise_trace.abs().max()


def test_sorted_data_do_not_spoil_the_sums():
    model = small_net()
    y = labels(60).sort().values
    x = normal(60, 5) + 20.0 * y[:, None]
    loss, params = make_sample_loss(model, CRITERION), parameters(model)
    for symmetry in (None, SYMMETRIES["matrix"]):
        whole = gradient_noise(opaque(loss), params, x, y, symmetry, chunk_size=60)
        assert_same_noise(gradient_noise(loss, params, x, y, symmetry, chunk_size=8), whole)
        assert_same_noise(gradient_noise(opaque(loss), params, x, y, symmetry, chunk_size=8), whole)


# Layers of every kind, and which route they take


def batch_lengths(model, *arguments, **options):
    """The noise, and the lengths of the batches that the model saw."""
    seen = []
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        return gradient_noise(*arguments, **options), seen
    finally:
        handle.remove()


def assert_fast(model, loss_fn, x, y, symmetry, chunk_size=8):
    loss, params = make_sample_loss(model, loss_fn), parameters(model)
    fast, seen = batch_lengths(model, loss, params, x, y, symmetry, chunk_size=chunk_size)
    rest = [chunk_size] * (len(x) // chunk_size - 1) + [len(x) % chunk_size] * (len(x) % chunk_size > 0)
    assert seen == [chunk_size, 1, 1, *rest]
    assert_same_noise(fast, gradient_noise(opaque(loss), params, x, y, symmetry), x.dtype)


def assert_general(model, loss_fn, x, y, symmetry, chunk_size=8):
    loss, params = make_sample_loss(model, loss_fn), parameters(model)
    noise, seen = batch_lengths(model, loss, params, x, y, symmetry, chunk_size=chunk_size)
    assert seen[-1] == 1
    reference = gradient_noise(opaque(loss), params, x, y, symmetry, chunk_size=chunk_size)
    assert torch.equal(noise.noise_trace, reference.noise_trace)
    return noise


@pytest.mark.parametrize(
    "loss_fn",
    [
        CRITERION,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)),
        F.cross_entropy,
        lambda output, target: output.gather(1, target[:, None]).exp().sum() ** 0.5,
    ],
)
def test_any_criterion_takes_the_fast_route(loss_fn):
    assert_fast(small_net(), loss_fn, normal(20, 5), labels(20), SYMMETRIES["rescaling"])


def test_a_weighted_mean_over_a_batch_of_one_ignores_the_weight():
    model, x, y = small_net(), normal(20, 5), labels(20)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    first = gradient_noise(make_sample_loss(model, weighted), parameters(model), x, y)
    assert_same_noise(first, gradient_noise(make_sample_loss(model, CRITERION), parameters(model), x, y))


def convolutional_net():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), bias=False),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(60, 8),
        nn.ReLU(inplace=True),
        nn.Linear(8, 3),
    )
    model = model.double().eval()
    for index, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=generator(index))
    nn.init.normal_(model[1].running_mean, generator=generator())
    return model


def test_the_linear_layers_behind_convolutions_take_the_fast_route():
    head = Rescaling(("6.weight", "6.bias"), "8.weight")
    assert_fast(convolutional_net(), CRITERION, normal(20, 2, 6, 6), labels(20), head)


@pytest.mark.parametrize("symmetry", [Rescaling(LAYER, "3.weight"), GL("3.weight", "0.weight", heads=2), None])
def test_convolutions_take_the_general_route(symmetry):
    model, x, y = convolutional_net(), normal(20, 2, 6, 6), labels(20)
    noise = assert_general(model, CRITERION, x, y, symmetry)
    gradients = per_sample_gradients(make_sample_loss(model, CRITERION), parameters(model), x, y)
    charge = (lambda g: sum(t.square().sum() for t in g.values())) if symmetry is None else symmetry.charge
    mean = {name: tensor.mean(0) for name, tensor in gradients.items()}
    torch.testing.assert_close(noise.noise_trace, vmap(charge)(gradients).mean(0) - charge(mean))


@pytest.mark.parametrize("symmetry", [QUERY_KEY, VALUE_OUTPUT, None])
def test_layers_along_a_sequence_take_the_general_route(symmetry):
    assert_general(Attention().double(), CRITERION, normal(20, 6, 8), labels(20), symmetry)


def test_integer_inputs_and_embeddings_that_are_not_touched_take_the_fast_route():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, 5)
            self.layers = mlp([5, 6, 3], generator=generator())

        def forward(self, tokens):
            return self.layers(self.embedding(tokens).mean(1))

    model = Text().double()
    x, y = torch.randint(11, (20, 4), generator=generator()), labels(20)
    fast = Rescaling(("layers.0.weight", "layers.0.bias"), "layers.2.weight")
    loss, params = make_sample_loss(model, CRITERION), parameters(model)
    noise, seen = batch_lengths(model, loss, params, x, y, fast, chunk_size=8)
    assert seen == [8, 1, 1, 8, 4]
    assert_same_noise(noise, gradient_noise(opaque(loss), params, x, y, fast))
    assert_general(model, CRITERION, x, y, Rescaling("embedding.weight", "layers.0.weight", per_unit=False))


class Twice(nn.Module):
    """One weight in two places."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.layer(self.layer(x).relu()).relu())


class Reads(nn.Module):
    """A layer whose forward is the function given."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.head, self.function = nn.Linear(5, 6), nn.Linear(6, 3), function

    def forward(self, x):
        return self.function(self, x)


def overwritten_input(net, x):
    x = x.clone()
    hidden = net.layer(x).relu()
    x.zero_()
    return net.head(hidden)


def through_item(net, x):
    return net.head(net.layer(x).relu()) * (1.0 if x.sum().item() > -1e9 else 2.0)


GENERAL = {
    "weight used twice": Twice,
    "weight decay inside": lambda: Reads(
        lambda net, x: net.head(net.layer(x).relu()) + net.layer.weight.square().sum()
    ),
    "weight through a matmul": lambda: Reads(lambda net, x: net.head((x @ net.layer.weight.T + net.layer.bias).relu())),
    "weight transposed": lambda: Reads(lambda net, x: net.head(F.linear(x, net.layer.weight.T.T).relu())),
    "weight frozen by hand": lambda: Reads(lambda net, x: net.head(F.linear(x, net.layer.weight.detach()).relu())),
    "samples normalised by the batch": lambda: Reads(lambda net, x: net.head(net.layer(x - x.mean(0)).relu())),
    "samples coupled after the layer": lambda: Reads(lambda net, x: net.head(net.layer(x).relu().cumsum(0))),
    "samples coupled in the gradient only": lambda: Reads(
        lambda net, x: net.head((h := net.layer(x).relu()) + h.sum(0) - h.sum(0).detach())
    ),
    "batch axis elsewhere": lambda: Reads(lambda net, x: net.head(net.layer(x.repeat(2, 1)).relu())[: len(x)]),
    "value of a tensor": lambda: Reads(through_item),
    "checkpoint": lambda: Reads(
        lambda net, x: net.head(checkpoint(lambda t: net.layer(t).relu(), x, use_reentrant=False))
    ),
    "no gradient": lambda: Reads(lambda net, x: net.head(torch.no_grad()(net.layer)(x).relu())),
    "parametrised weight": lambda: Reads(lambda net, x: net.head(F.linear(x, 2 * net.layer.weight, net.layer.bias))),
}


@pytest.mark.parametrize("make", GENERAL.values(), ids=GENERAL.keys())
def test_anything_else_takes_the_general_route(make):
    torch.manual_seed(0)
    model = make().double()
    symmetry = Rescaling(("layer.weight", "layer.bias"), "head.weight")
    if isinstance(model.layer, nn.Linear) and make is GENERAL["weight transposed"]:
        symmetry = Rescaling("layer.weight", "head.weight")
    assert_general(model, CRITERION, normal(20, 5), labels(20), symmetry)


def test_an_input_that_is_overwritten_is_refused_by_autograd():
    torch.manual_seed(0)
    model = Reads(overwritten_input).double()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient_noise(make_sample_loss(model, CRITERION), parameters(model), normal(20, 5), labels(20))


def test_the_reference_for_the_general_route_is_right_one_by_one():
    """Plain autograd, sample by sample, on a model with control flow that cannot be batched."""
    torch.manual_seed(0)
    model = Reads(through_item).double()
    x, y, params = normal(12, 5), labels(12), parameters(model)
    gradients = per_sample_gradients(make_sample_loss(model, CRITERION), params, x, y, chunk_size=5)
    for index in range(12):
        model.zero_grad()
        CRITERION(model(x[index : index + 1]), y[index : index + 1]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name][index], parameter.grad)


def test_tied_weights_take_the_general_route():
    torch.manual_seed(0)
    tied = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    tied[2].weight = tied[0].weight
    assert_general(tied, CRITERION, normal(20, 5), labels(20), Rescaling("0.weight", "4.weight"))


def test_normalisation_parameters_take_the_general_route():
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).double()
    assert_general(model, CRITERION, normal(20, 5), labels(20), Rescaling(("1.weight", "1.bias"), "3.weight"))
    assert_fast(model, CRITERION, normal(20, 5), labels(20), Scale("0.weight"))


def test_an_own_symmetry_takes_the_general_route():
    class Weighted(ContinuousSymmetry):
        names = ("0.weight",)

        def charge(self, params):
            return 3 * params["0.weight"].square().sum()

    model, x, y = small_net(), normal(20, 5), labels(20)
    noise = assert_general(model, CRITERION, x, y, Weighted())
    expected = noise_covariance_trace(make_sample_loss(model, CRITERION), parameters(model), x, y, Scale("0.weight"))
    assert noise.noise_trace.item() == pytest.approx(3 * expected.item(), rel=1e-12)


def test_an_unused_parameter_has_no_noise():
    model = nn.ModuleDict({"used": nn.Linear(5, 3), "idle": nn.Linear(2, 2)}).double()
    loss = lambda params, x, y: CRITERION(F.linear(x, params["used.weight"])[None], y[None])  # noqa: E731
    params, x, y = parameters(model), normal(20, 5), labels(20)
    assert noise_covariance_trace(loss, params, x, y, Scale("idle.weight")) == 0
    assert (per_sample_gradients(loss, params, x, y)["idle.bias"] == 0).all()
    expected = noise_covariance_trace(loss, params, x, y, Scale("used.weight"))
    torch.testing.assert_close(noise_covariance_trace(loss, params, x, y), expected)


def test_ignored_targets_have_no_gradient_by_the_sum_and_are_refused_by_the_mean():
    model, x, y = small_net(), normal(20, 5), labels(20)
    y[4] = -100
    params, by_sum = parameters(model), make_sample_loss(model, nn.CrossEntropyLoss(reduction="sum"))
    assert (per_sample_gradients(by_sum, params, x, y)["0.bias"][4] == 0).all()
    fast, general = (gradient_noise(loss, params, x, y, SYMMETRIES["rescaling"]) for loss in (by_sum, opaque(by_sum)))
    assert_same_noise(fast, general)


# Batch norm, modes and buffers


def normalised_net():
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    for index, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, generator=generator(index))
    nn.init.normal_(model[1].running_mean, generator=generator(7))
    return model


def test_batch_norm_in_eval_mode_is_a_constant_map():
    model, x, y = normalised_net().eval(), normal(20, 5), labels(20)
    assert_fast(model, CRITERION, x, y, Rescaling(LAYER, "3.weight"))
    expected = covariance(make_sample_loss(model, CRITERION), parameters(model), x, y).trace()
    trace = noise_covariance_trace(make_sample_loss(model, CRITERION), parameters(model), x, y)
    torch.testing.assert_close(trace, expected)


def test_minibatches_can_be_the_samples_of_batch_norm_in_training_mode():
    model = normalised_net().train()
    batches, targets = normal(9, 16, 5), labels(9 * 16).reshape(9, 16)
    loss, params = make_batch_loss(model, CRITERION), parameters(model)
    before = copy.deepcopy(model.state_dict())
    gradients = per_sample_gradients(loss, params, batches, targets, chunk_size=4)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model[1].track_running_stats
    trace = noise_covariance_trace(loss, params, batches, targets, Scale(LAYER, per_unit=True), chunk_size=4)
    for index in range(9):
        model.zero_grad()
        CRITERION(model(batches[index]), targets[index]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name][index], parameter.grad)
    deviations = {name: gradients[name] - gradients[name].mean(0) for name in LAYER}
    expected = deviations["0.weight"].square().sum(2).mean(0) + deviations["0.bias"].square().mean(0)
    torch.testing.assert_close(trace, expected)


def test_buffers_are_those_of_the_moment_the_loss_was_made():
    model, x, y = normalised_net().eval(), normal(20, 5), labels(20)
    sample_loss, batch_loss = make_sample_loss(model, CRITERION), make_batch_loss(model, CRITERION)
    params = parameters(model)
    first = sample_loss(params, x[0], y[0]), batch_loss(params, x, y)
    model[1].running_mean += 3
    assert (sample_loss(params, x[0], y[0]), batch_loss(params, x, y)) == first
    assert make_batch_loss(model, CRITERION)(params, x, y) != first[1]
    given_buffers = {**params, "1.running_mean": model[1].running_mean}
    assert batch_loss(given_buffers, x, y) == make_batch_loss(model, CRITERION)(params, x, y)


def test_parameters_that_are_not_given_are_the_models_own():
    model, x, y = small_net(), normal(4, 5), labels(4)
    loss = make_batch_loss(model, CRITERION)
    assert loss({}, x, y) == CRITERION(model(x), y)
    moved = {"4.bias": torch.ones(3, dtype=torch.float64)}
    assert loss(moved, x, y) == CRITERION(functional_call(model, moved, (x,)), y)


def test_inactive_dropout_is_allowed():
    for dropout in (nn.Dropout(0.5).eval(), nn.Dropout(0.0)):
        model = nn.Sequential(nn.Linear(5, 6), dropout, nn.Linear(6, 3)).double()
        x, y = normal(10, 5), labels(10)
        assert_same_noise(
            gradient_noise(make_sample_loss(model, CRITERION), parameters(model), x, y),
            gradient_noise(
                make_sample_loss(nn.Sequential(model[0], nn.Identity(), model[2]), CRITERION), parameters(model), x, y
            ),
        )


def test_nothing_of_the_users_is_changed():
    model = small_net()
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    params, x, y = dict(model.named_parameters()), normal(20, 5).requires_grad_(), labels(20)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    data, modules = x.detach().clone(), [set(vars(module)) for module in model.modules()]
    for loss in (make_sample_loss(model, CRITERION), opaque(make_sample_loss(model, CRITERION))):
        for symmetry in (None, SYMMETRIES["rescaling"]):
            noise = gradient_noise(loss, params, x, y, symmetry)
            assert not noise.noise_trace.requires_grad
        gradients = per_sample_gradients(loss, params, x, y)
        assert not any(gradient.requires_grad for gradient in gradients.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all((parameter.grad == 1).all() and parameter.requires_grad for parameter in model.parameters())
    assert x.grad is None
    assert torch.equal(x, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert [set(vars(module)) for module in model.modules()] == modules
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert model.training
    assert list(params) == list(dict(model.named_parameters()))


def test_gradients_are_computed_also_without_grad_mode():
    model, x, y = small_net(), normal(20, 5), labels(20)
    loss, params = make_sample_loss(model, CRITERION), parameters(model)
    expected = gradient_noise(loss, params, x, y)
    with torch.no_grad():
        assert_same_noise(gradient_noise(loss, params, x, y), expected)
        assert_same_noise(gradient_noise(opaque(loss), params, x, y), expected)


def test_half_precision_gives_single_precision_numbers():
    model = small_net(torch.bfloat16)
    x, y = normal(20, 5).bfloat16(), labels(20)
    for loss in (make_sample_loss(model, CRITERION), opaque(make_sample_loss(model, CRITERION))):
        noise = noise_covariance_trace(loss, parameters(model), x, y, SYMMETRIES["rescaling"])
        assert noise.dtype == torch.float32
    exact = noise_covariance_trace(
        make_sample_loss(model.double(), CRITERION), parameters(model), x.double(), y, SYMMETRIES["rescaling"]
    )
    assert (noise - exact).abs().max() < 0.05 * exact.abs().max()


def test_losses_differentiate_under_torch_func():
    model, x, y = small_net(), normal(4, 5), labels(4)
    params = parameters(model)
    gradient = torch.func.grad(make_batch_loss(model, CRITERION))(params, x, y)
    one_by_one = per_sample_gradients(make_sample_loss(model, CRITERION), params, x, y)
    for name in params:
        torch.testing.assert_close(gradient[name], one_by_one[name].mean(0))
        assert one_by_one[name].shape == (4, *params[name].shape)
    assert list(one_by_one) == list(params)


# Memory


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("route", "limit"), [("fast", 40), ("general", 160)])
def test_memory_does_not_grow_with_the_samples(route, limit):
    """2000 gradients of 140 000 touched parameters are 1.1 GiB, a chunk of 64 is 34 MiB: four chunks fit, and slack."""
    script = f"""
from pathlib import Path
import torch
from torch import nn
from symlearn.gradients import make_sample_loss, noise_covariance_trace
from symlearn.models import mlp
from symlearn.symmetry import Rescaling

def kib(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

torch.set_num_threads(1)
model = mlp([200, 350, 200, 10], generator=torch.Generator().manual_seed(0))
params = {{name: parameter.detach() for name, parameter in model.named_parameters()}}
x, y = torch.randn(2000, 200), torch.randint(10, (2000,))
sample_loss = make_sample_loss(model, nn.CrossEntropyLoss())
loss = sample_loss if {route == "fast"} else lambda *arguments: sample_loss(*arguments)
symmetry = Rescaling(("0.weight", "0.bias"), "2.weight")
noise_covariance_trace(loss, params, x[:4], y[:4], symmetry)
before = kib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
noise_covariance_trace(loss, params, x, y, symmetry, chunk_size=64)
print((kib("VmHWM") - before) / 1024)
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(child.stdout) < limit


# Refusals

MODEL, X, Y = small_net(), normal(6, 5), labels(6)
LOSS, PARAMS, RESCALING = make_sample_loss(MODEL, CRITERION), parameters(MODEL), SYMMETRIES["rescaling"]


def noise_of(loss=LOSS, params=PARAMS, x=X, y=Y, symmetry=None, **options):
    return noise_covariance_trace(loss, params, x, y, symmetry, **options)


def loss_of(model, training=True):
    return make_sample_loss(model.train(training), CRITERION)


NORMALISED = normalised_net()
FORGETFUL = nn.BatchNorm1d(5, track_running_stats=False)


def random_loss(params, x, y):
    return (params["4.bias"] * torch.rand(3)).sum()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make_sample_loss(3, CRITERION), TypeError, "model must be a torch.nn.Module, got int"),
        (lambda: make_batch_loss(None, CRITERION), TypeError, "model must be a torch.nn.Module, got NoneType"),
        (lambda: make_sample_loss(MODEL, "mse"), TypeError, "loss_fn must be a function of output and target, got str"),
        (lambda: LOSS(PARAMS, [1.0] * 5, Y[0]), TypeError, "x must be a tensor, got list"),
        (lambda: LOSS(PARAMS, X[0], 1), TypeError, "y must be a tensor, got int"),
        (lambda: LOSS(MODEL, X[0], Y[0]), TypeError, "params must be a dict of tensors, got Sequential"),
        (
            lambda: LOSS({"weight": X}, X[0], Y[0]),
            ValueError,
            "params must be a dict of parameters of the model, got 'weight'",
        ),
        (
            lambda: make_sample_loss(MODEL, nn.CrossEntropyLoss(reduction="none"))(PARAMS, X[0], Y[0]),
            ValueError,
            r"loss_fn must be a criterion that returns a scalar \(reduction='mean' or 'sum'\), got shape \(1,\)",
        ),
        (
            lambda: make_batch_loss(MODEL, nn.CrossEntropyLoss(reduction="none"))(PARAMS, X, Y),
            ValueError,
            r"loss_fn must be a criterion that returns a scalar .*, got shape \(6,\)",
        ),
        (
            lambda: make_sample_loss(MODEL, lambda o, t: 1.0)(PARAMS, X[0], Y[0]),
            TypeError,
            "loss_fn must be a criterion that returns a scalar .*, got float",
        ),
        (
            lambda: loss_of(NORMALISED)(PARAMS, X[0], Y[0]),
            ValueError,
            r"model must be in eval mode \(call model.eval\(\)\), got BatchNorm1d in training mode",
        ),
        (
            lambda: noise_of(loss_of(NORMALISED), parameters(NORMALISED)),
            ValueError,
            r"model must be in eval mode \(call model.eval\(\)\), got BatchNorm1d in training mode",
        ),
        (
            lambda: loss_of(FORGETFUL, False)({}, X[0], Y[0]),
            ValueError,
            "model must be in eval mode .*, got BatchNorm1d without running statistics",
        ),
        (
            lambda: noise_of(loss_of(nn.Sequential(*MODEL, nn.Dropout(0.1)))),
            ValueError,
            r"model must be in eval mode \(call model.eval\(\)\), got Dropout in training mode",
        ),
        (
            lambda: make_batch_loss(nn.Sequential(MODEL, nn.Dropout2d(0.1)), CRITERION)({}, X, Y),
            ValueError,
            "model must be in eval mode .*, got Dropout2d in training mode",
        ),
        (
            lambda: noise_of(make_sample_loss(nn.Sequential(MODEL[0], nn.RReLU(), *MODEL[2:]).train(), CRITERION)),
            ValueError,
            r"sample_loss must be deterministic \(call model.eval\(\)\), got a random operation",
        ),
        (lambda: noise_of(random_loss), ValueError, "sample_loss must be deterministic"),
        (lambda: per_sample_gradients(random_loss, PARAMS, X, Y), ValueError, "sample_loss must be deterministic"),
        (lambda: noise_of("loss"), TypeError, "sample_loss must be a function of params, x and y, got str"),
        (
            lambda: noise_of(lambda p, x, y: 1.0),
            TypeError,
            "sample_loss must be a function that returns a scalar, got float",
        ),
        (
            lambda: noise_of(lambda p, x, y: p["0.bias"]),
            ValueError,
            r"sample_loss must be a function that returns a scalar, got shape \(6,\)",
        ),
        (
            lambda: noise_of(lambda p, x, y: p["0.bias"].sum() * torch.log(x[0] - 10)),
            ValueError,
            "sample_loss must be finite, with finite gradients, at every sample, got inf or nan",
        ),
        (lambda: noise_of(x=X * np.inf), ValueError, "sample_loss must be finite, with finite gradients"),
        (lambda: noise_of(params=[1.0]), TypeError, "params must be a dict of tensors, got list"),
        (lambda: noise_of(params={}), ValueError, "params must be at least one parameter, got none"),
        (lambda: noise_of(params={**PARAMS, "n": 3}), TypeError, r"params\['n'\] must be a tensor, got int"),
        (
            lambda: noise_of(params={**PARAMS, "n": torch.tensor(3)}),
            TypeError,
            r"params\['n'\] must be real floating point numbers, got dtype torch.int64",
        ),
        (
            lambda: noise_of(symmetry=Scale("6.weight")),
            ValueError,
            "params must be a dict with the name '6.weight', got '0.bias', '0.weight'",
        ),
        (
            lambda: noise_of(params=MODEL, symmetry=RESCALING),
            TypeError,
            "params must be a dict of tensors, got Sequential",
        ),
        (
            lambda: noise_of(symmetry=Rescaling(LAYER, "4.weight")),
            ValueError,
            "params must be of one number of units, got 6 from '0.weight'",
        ),
        (
            lambda: noise_of(symmetry=Rotation("0.weight", "2.weight")),
            TypeError,
            r"symmetry must be one with a charge \(Rescaling, Scale, GL\) or None, got Rotation",
        ),
        (lambda: noise_of(symmetry=Permutation(LAYER, "2.weight")), TypeError, "symmetry must be .*, got Permutation"),
        (lambda: noise_of(symmetry=MirrorSymmetry.flip(91, 0)), TypeError, "symmetry must be .*, got MirrorSymmetry"),
        (lambda: noise_of(symmetry=Rescaling), TypeError, "symmetry must be one with a charge .*, got type"),
        (lambda: noise_of(symmetry="rescaling"), TypeError, "symmetry must be one with a charge .*, got str"),
        (lambda: noise_of(y=Y[:5]), ValueError, r"targets must be as long as inputs \(6\), got length 5"),
        (lambda: noise_of(x=X[:1], y=Y[:1]), ValueError, "inputs must be at least 2 samples, got 1"),
        (lambda: noise_of(x=X[:0], y=Y[:0]), ValueError, "inputs must be of at least one sample, got shape"),
        (lambda: noise_of(x=X[0, 0]), ValueError, r"inputs must be of at least one sample, got shape \(\)"),
        (lambda: noise_of(x=X.numpy()), TypeError, "inputs must be a tensor, got ndarray"),
        (lambda: noise_of(y=Y.tolist()), TypeError, "targets must be a tensor or an array, got list"),
        (lambda: noise_of(x=X.to("meta")), ValueError, r"inputs must be on the device of params \(cpu\), got meta"),
        (lambda: noise_of(chunk_size=0), ValueError, "chunk_size must be >= 1, got 0"),
        (lambda: noise_of(chunk_size=-3), ValueError, "chunk_size must be >= 1, got -3"),
        (lambda: noise_of(chunk_size=2.0), TypeError, "chunk_size must be an integer, got float"),
        (lambda: noise_of(chunk_size=True), TypeError, "chunk_size must be an integer, got bool"),
        (lambda: gradient_noise(LOSS, PARAMS, X, Y, chunk_size=0), ValueError, "chunk_size must be >= 1, got 0"),
        (lambda: per_sample_gradients(LOSS, PARAMS, X, Y, chunk_size=0), ValueError, "chunk_size must be >= 1, got 0"),
        (lambda: per_sample_gradients(LOSS, PARAMS, X, Y[:2]), ValueError, "targets must be as long as inputs"),
        (lambda: per_sample_gradients(LOSS, [X], X, Y), TypeError, "params must be a dict of tensors, got list"),
        (
            lambda: per_sample_gradients(LOSS, {"a": X}, X, Y),
            ValueError,
            "params must be a dict of parameters of the model",
        ),
        (
            lambda: per_sample_gradients(None, PARAMS, X, Y),
            TypeError,
            "sample_loss must be a function of params, x and y",
        ),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error, message):
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        call()
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_of_the_model_itself_comes_out_as_it_is():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        noise_of(x=normal(6, 4))

    def fails(params, x, y):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        noise_of(fails)
