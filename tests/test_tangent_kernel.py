"""Tests of the tangent kernel: closed forms, brute-force Jacobians, both routes, invariances, and refusals."""

import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from symlearn.models import mlp, resnet18, small_cnn
from symlearn.tangent_kernel import empirical_ntk, kernel_distance

OUTPUTS = ("trace", "full", "sum")
# Sums of the same products in another order, relative to the largest entry.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def randomised(model, dtype=torch.float64):
    """Random weights, biases and running statistics, so that nothing is 0 or 1 by default; in eval mode."""
    model = model.to(dtype).eval()
    for index, parameter in enumerate(model.parameters()):
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data = normal(*parameter.shape, seed=index, dtype=dtype) / fan_in**0.5
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.data = normal(*buffer.shape, seed=len(name), dtype=dtype).square() + 0.5
    return model


def brute_force(model, x1, x2=None, outputs="trace"):
    """From autograd, sample by sample and output by output."""
    params = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def jacobian(x):
        rows = []
        for index in range(len(x)):
            outputs = model(x[index : index + 1]).reshape(-1)
            gradients = [torch.autograd.grad(o, params, retain_graph=True, allow_unused=True) for o in outputs]
            filled = [
                [torch.zeros_like(p) if g is None else g for p, g in zip(params, each, strict=True)]
                for each in gradients
            ]
            rows.append(torch.stack([torch.cat([g.flatten() for g in each]) for each in filled]))
        return torch.stack(rows)

    first = jacobian(x1)
    second = first if x2 is None else jacobian(x2)
    full = torch.einsum("ncp,mdp->nmcd", first, second)
    if outputs == "full":
        return full
    return (full.sum((2, 3)) if outputs == "sum" else full.diagonal(dim1=2, dim2=3).sum(-1)) / full.shape[-1]


def assert_same(kernel, expected, dtype=torch.float64):
    assert kernel.shape == expected.shape
    assert kernel.dtype == dtype
    assert float((kernel - expected).abs().max()) <= ROUNDING[dtype] * float(expected.abs().max())


class Function(nn.Module):
    """A model with the given modules and forward function."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x):
        return torch.relu(x + self.norms[1](self.second(F.relu(self.norms[0](self.first(x)), inplace=True))))


def tied():
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    model[2].weight = model[0].weight
    return model


def frozen(model, *names):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    return model


class SquareFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight**2

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient * weight**2, (2 * gradient * x * weight).sum(0)


def custom_function():
    return Function(lambda m, x: SquareFunction.apply(m.a(x), m.a.bias), a=nn.Linear(5, 3))


def experts():
    def forward(model, x):
        return model.positive(x) if x.sum() > 0 else model.negative(x)

    return Function(forward, positive=nn.Linear(5, 2), negative=nn.Linear(5, 2))


def cached():
    """A list keeps the parameter, so replacing the module's parameters would not reach this use."""
    model = Function(lambda m, x: m.a(x) * m.extra[0].sum(), a=nn.Linear(5, 3))
    model.extra = [model.a.weight]
    return model


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.1)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 2))


MODELS = {
    "perceptron": (lambda: mlp([5, 7, 6, 3], "tanh"), (5,)),
    "rectifier in place": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)), (5,)),
    "linear without bias": (lambda: nn.Linear(5, 3, bias=False), (5,)),
    "one output": (lambda: nn.Sequential(mlp([5, 6, 1]), nn.Flatten(0)), (5,)),
    "squeezed output": (lambda: Function(lambda m, x: m.a(x).squeeze(), a=mlp([5, 6, 1])), (5,)),
    "outputs with axes": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Unflatten(1, (2, 3))), (5,)),
    "frozen weight": (lambda: frozen(mlp([5, 6, 3]), "2.weight"), (5,)),
    "frozen bias": (lambda: frozen(mlp([5, 6, 3]), "0.bias"), (5,)),
    "frozen first layer": (lambda: frozen(mlp([5, 6, 3]), "0.weight", "0.bias"), (5,)),
    "convolutions": (lambda: small_cnn((2, 9, 9), 3, (3, 4)), (2, 9, 9)),
    "stride and padding": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2)), nn.Tanh(), nn.Flatten(1)),
        (2, 5, 4),
    ),
    "dilation and groups": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, dilation=2, groups=2), nn.GELU(), nn.Flatten(), nn.Linear(24, 2)),
        (4, 6, 6),
    ),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 2, groups=3), nn.Tanh(), nn.Conv2d(6, 2, 1), nn.Flatten()),
        (3, 3, 3),
    ),
    "padding same": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(1, 2)), nn.Flatten()),
        (2, 4, 5),
    ),
    "padding reflect": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.Tanh(), nn.Flatten()),
        (2, 4, 4),
    ),
    "pointwise with stride": (lambda: nn.Sequential(nn.Conv2d(2, 3, 1, stride=2, padding=1), nn.Flatten()), (2, 5, 4)),
    "few positions": (
        lambda: nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 2), nn.Flatten(), nn.Linear(12, 3)),
        (8, 4, 4),
    ),
    "one axis": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten()), (2, 7)),
    "three axes": (lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)), (1, 3, 3, 3)),
    "transposed convolution": (lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 2), nn.Tanh(), nn.Flatten()), (2, 2, 2)),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)),
        (2, 3, 3),
    ),
    "batch norm of features": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)),
        (5,),
    ),
    "layer norm": (lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2)), (5,)),
    "layer norm of images": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 2), nn.LayerNorm((2, 2, 2)), nn.Tanh(), nn.Flatten()),
        (2, 3, 3),
    ),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten()), (2, 3, 3)),
    "residual": (lambda: nn.Sequential(Block(2), Block(2), nn.Flatten(), nn.Linear(18, 2)), (2, 3, 3)),
    "sequence": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.LayerNorm(6), nn.Linear(6, 3), nn.Flatten()),
        (3, 4),
    ),
    "sequence as long as the batch": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Flatten()), (6, 4)),
    "time first": (lambda: Function(lambda m, x: torch.tanh(m.a(x.movedim(1, 0))).sum(0), a=nn.Linear(4, 3)), (6, 4)),
    "tied": (tied, (5,)),
    "called twice": (lambda: Function(lambda m, x: m.a(torch.tanh(m.a(x))) + x, a=nn.Linear(5, 5)), (5,)),
    "convolution called twice": (
        lambda: Function(lambda m, x: m.a(torch.relu(m.a(x))).flatten(1), a=nn.Conv2d(2, 2, 3, padding=1)),
        (2, 3, 4),
    ),
    "weight and transpose": (
        lambda: Function(lambda m, x: torch.tanh(m.a(x)) @ m.a.weight, a=nn.Linear(5, 4, bias=False)),
        (5,),
    ),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), (5,)),
    "cached parameter": (cached, (5,)),
    "custom function": (custom_function, (5,)),
    "control flow": (experts, (5,)),
    "checkpoint": (
        lambda: Function(lambda m, x: checkpoint(m.a, x, use_reentrant=False), a=mlp([5, 4, 2])),
        (5,),
    ),
    "unused layer": (lambda: Function(lambda m, x: m.a(x), a=nn.Linear(5, 2), b=nn.Linear(5, 2)), (5,)),
    "unused branch": (lambda: Function(lambda m, x: (m.b(x), m.a(x))[1], a=nn.Linear(5, 2), b=nn.Linear(5, 2)), (5,)),
    "stopped gradient": (
        lambda: Function(lambda m, x: m.a(x) * m.b(x).detach(), a=nn.Linear(5, 2), b=nn.Linear(5, 2)),
        (5,),
    ),
    "bilinear": (lambda: Function(lambda m, x: m.a(x, x), a=nn.Bilinear(5, 5, 2)), (5,)),
    "recurrent": (lambda: Function(lambda m, x: m.a(x)[0][:, -1], a=nn.GRU(4, 3, batch_first=True)), (3, 4)),
    "transformer": (transformer, (3, 8)),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    make, shape = MODELS[request.param]
    return randomised(make()), normal(6, *shape, seed=100), normal(4, *shape, seed=101)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_kernel_is_that_of_brute_force_jacobians(case, outputs):
    model, x1, x2 = case
    assert_same(empirical_ntk(model, x1, outputs=outputs), brute_force(model, x1, outputs=outputs))
    assert_same(empirical_ntk(model, x1, x2, outputs=outputs), brute_force(model, x1, x2, outputs))


def test_both_methods_agree(case):
    model, x1, x2 = case
    for outputs in OUTPUTS:
        expected = empirical_ntk(model, x1, x2, outputs=outputs, method="jacobian")
        assert_same(empirical_ntk(model, x1, x2, outputs=outputs), expected)


@pytest.mark.parametrize("name", ["perceptron", "convolutions", "few positions", "sequence", "tied", "transformer"])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_single_precision_agrees_with_double(name, outputs):
    make, shape = MODELS[name]
    model, x = randomised(make()), normal(6, *shape)
    expected = empirical_ntk(model, x, outputs=outputs)
    kernel = empirical_ntk(copy.deepcopy(model).float(), x.float(), outputs=outputs)
    assert kernel.dtype == torch.float32
    torch.testing.assert_close(kernel.double(), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_half_precision_is_kept_and_summed_in_single():
    model, x = randomised(mlp([5, 64, 3]), torch.bfloat16), normal(6, 5, dtype=torch.bfloat16)
    kernel = empirical_ntk(model, x)
    assert kernel.dtype == torch.bfloat16
    expected = empirical_ntk(copy.deepcopy(model).double(), x.double())
    # eight bits of mantissa in activations and gradients
    torch.testing.assert_close(kernel.double(), expected, rtol=0, atol=0.03 * float(expected.max()))


# Closed forms


def test_linear_model_has_the_linear_kernel():
    x, y = normal(5, 4), normal(3, 4, seed=1)
    model = nn.Linear(4, 2).double()
    assert_same(empirical_ntk(model, x, y), x @ y.T + 1)
    full = empirical_ntk(model, x, y, outputs="full")
    assert_same(full, (x @ y.T + 1)[:, :, None, None] * torch.eye(2, dtype=torch.float64))


def test_convolution_over_a_constant_image_counts_positions():
    # A sum over 4 x 4 positions of w * x + b has the gradient (16 x, 16).
    model = Function(lambda m, x: m.a(x).sum((2, 3)), a=nn.Conv2d(1, 1, 1)).double()
    x = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    images = x[:, None, None, None].expand(3, 1, 4, 4)
    assert_same(empirical_ntk(model, images), 256 * (torch.outer(x, x) + 1))


def test_deep_linear_scalar_chain():
    # f = u v x: the gradient is (v x, u x).
    model = mlp([1, 1, 1], "identity", bias=False).double()
    u, v = (parameter.item() for parameter in model.parameters())
    x = normal(4, 1)
    assert_same(empirical_ntk(model, x), (u**2 + v**2) * x @ x.T)


def test_wide_rectifier_network_approaches_the_arc_cosine_kernel():
    # Depth 1, sigma_w^2 = 2: Theta(x, x) = 4/3 and Theta(x, x') = 2/(3 pi) for orthogonal unit inputs in 3 dimensions.
    width = 20_000
    model = mlp([3, width, 1], bias=False).double()
    first, second = model[0], model[2]
    first.weight.data, second.weight.data = normal(width, 3), normal(1, width, seed=1)
    scales = (2 / 3) ** 0.5, (2 / width) ** 0.5
    scaled = Function(lambda m, x: m.b(torch.relu(m.a(x) * scales[0])) * scales[1], a=first, b=second)
    kernel = empirical_ntk(scaled, torch.eye(3, dtype=torch.float64)[:2])
    # fluctuations of an average over independent units, four standard deviations
    assert abs(float(kernel[0, 0]) - 4 / 3) < 4 * 3 / width**0.5
    assert abs(float(kernel[0, 1]) - 2 / (3 * np.pi)) < 4 * 3 / width**0.5


def test_one_entry_is_a_derivative_along_a_gradient():
    model, x = randomised(mlp([4, 6, 3], "tanh")), normal(2, 4)
    gradients = torch.autograd.grad(model(x[:1])[0, 1], list(model.parameters()))
    step, values = 1e-5, []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
            parameter.data.add_(gradient, alpha=sign * step)
        values.append(float(moved(x[1:])[0, 2]))
    entry = float(empirical_ntk(model, x, outputs="full")[0, 1, 1, 2])
    # central difference: error of the order of the squared step
    assert entry == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-7)


# Relations


def test_trace_and_sum_follow_from_the_full_kernel(case):
    model, x1, _ = case
    full = empirical_ntk(model, x1, outputs="full")
    n_outputs = full.shape[-1]
    assert_same(empirical_ntk(model, x1), full.diagonal(dim1=2, dim2=3).sum(-1) / n_outputs)
    assert_same(empirical_ntk(model, x1, outputs="sum"), full.sum((2, 3)) / n_outputs)


def test_kernel_is_exactly_symmetric_and_positive_semidefinite(case):
    model, x, _ = case
    for outputs in ("trace", "sum"):
        kernel = empirical_ntk(model, x, outputs=outputs)
        assert torch.equal(kernel, kernel.T)
        assert float(torch.linalg.eigvalsh(kernel)[0]) >= -1e-12 * float(kernel.diagonal().max())
    full = empirical_ntk(model, x, outputs="full")
    assert torch.equal(full, full.permute(1, 0, 3, 2))


def test_other_inputs_give_blocks_of_the_kernel_of_all(case):
    model, x1, x2 = case
    for outputs in OUTPUTS:
        whole = empirical_ntk(model, torch.cat([x1, x2]), outputs=outputs)
        assert_same(whole[: len(x1), len(x1) :], empirical_ntk(model, x1, x2, outputs=outputs))


def test_kernels_of_disjoint_parameters_add():
    model, x = randomised(mlp([4, 6, 5, 3], "tanh")), normal(5, 4)
    whole = empirical_ntk(model, x)
    parts = torch.zeros_like(whole)
    for name, _ in list(model.named_parameters()):
        others = [other for other, _ in model.named_parameters() if other != name]
        parts += empirical_ntk(frozen(copy.deepcopy(model), *others), x)
    assert_same(parts, whole)


def test_trace_kernel_is_a_mean_over_outputs():
    model, x = randomised(mlp([4, 6, 3])), normal(5, 4)
    doubled = Function(lambda m, x: m.a(x).repeat(1, 2), a=model)
    assert_same(empirical_ntk(doubled, x), empirical_ntk(model, x))
    # the sum of all outputs doubles, and 1/C halves
    assert_same(empirical_ntk(doubled, x, outputs="sum"), 2 * empirical_ntk(model, x, outputs="sum"))


@settings(max_examples=25, deadline=None)
@given(
    chunk_size=st.integers(1, 20),
    n_samples=st.integers(1, 15),
    n_others=st.integers(0, 6),
    outputs=st.sampled_from(OUTPUTS),
    name=st.sampled_from(
        ["perceptron", "convolutions", "few positions", "called twice", "weight norm", "control flow"]
    ),
)
def test_chunks_do_not_change_the_kernel(chunk_size, n_samples, n_others, outputs, name):
    make, shape = MODELS[name]
    model, x = randomised(make()), normal(n_samples, *shape)
    others = normal(n_others, *shape, seed=1) if n_others else None
    expected = brute_force(model, x, others, outputs)
    assert_same(empirical_ntk(model, x, others, outputs=outputs, chunk_size=chunk_size), expected)


@pytest.mark.parametrize("stored", [1, 1000, 20_000])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_little_memory_does_not_change_the_kernel(monkeypatch, stored, outputs):
    model, x, others = randomised(MODELS["convolutions"][0]()), normal(13, 2, 9, 9), normal(7, 2, 9, 9, seed=1)
    expected = brute_force(model, x, outputs=outputs), brute_force(model, x, others, outputs)
    monkeypatch.setattr("symlearn.tangent_kernel.STORED", stored)
    monkeypatch.setattr("symlearn._kernel_features.WORKING", 5 * stored)
    assert_same(empirical_ntk(model, x, outputs=outputs), expected[0])
    assert_same(empirical_ntk(model, x, others, outputs=outputs), expected[1])


def test_many_samples_fill_every_block_of_the_kernel():
    model, x = randomised(mlp([3, 4, 2], "tanh")), normal(700, 3)
    assert_same(empirical_ntk(model, x), empirical_ntk(model, x, x.clone(), method="jacobian"))


def test_deep_residual_network_in_eval_mode():
    model = randomised(resnet18(3, width_divisor=32))
    x = normal(3, 3, 8, 8)
    assert_same(empirical_ntk(model, x), empirical_ntk(model, x, method="jacobian"))


def test_tokens_can_be_inputs():
    model = randomised(nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)))
    tokens = torch.tensor([[0, 1], [1, 1], [5, 6], [2, 0]])
    assert_same(empirical_ntk(model, tokens), brute_force(model, tokens))


def test_inputs_without_features():
    model = Function(lambda m, x: m.a(x[:, None]).squeeze(1), a=nn.Linear(1, 1)).double()
    x = normal(5)
    assert_same(empirical_ntk(model, x), torch.outer(x, x) + 1)


# Samples that interact: the kernel is that of each sample alone


INTERACTIONS = {
    "mean of the batch": lambda m, x: m.a(x - 0.3 * x.mean(0)),
    "first sample": lambda m, x: m.a(x - 0.5 * x[:1]),
    "last sample": lambda m, x: m.a(x - 0.5 * x[-1:]),
    "earlier samples": lambda m, x: m.a(x.cumsum(0)),
    "later samples": lambda m, x: m.a(x.flip(0).cumsum(0).flip(0)),
    "length of the batch": lambda m, x: m.a(x) * len(x),
    "gradient of others": lambda m, x: (lambda z: z + z.mean(0) - z.mean(0).detach())(m.a(x)),
    "order of the batch": lambda m, x: m.a(x.flip(0)).flip(0),
}


@pytest.mark.parametrize("name", INTERACTIONS)
@pytest.mark.parametrize("n_samples", [1, 2, 3, 4, 5, 6])
def test_interacting_samples_are_taken_alone(name, n_samples):
    model = Function(INTERACTIONS[name], a=mlp([5, 4, 2], "tanh")).double()
    x = normal(n_samples, 5)
    assert_same(empirical_ntk(model, x), brute_force(model, x))


# What is left as it was


def state_of(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (id(tensor), tensor._version, tensor.detach().clone()) for name, tensor in tensors.items()}


@pytest.mark.parametrize("method", ["auto", "jacobian"])
@pytest.mark.parametrize("name", ["residual", "transformer", "control flow", "called twice"])
def test_model_inputs_and_random_state_stay_as_they_were(name, method):
    make, shape = MODELS[name]
    model, x = randomised(make()), normal(4, *shape).requires_grad_()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, values, random_state = state_of(model), x.detach().clone(), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()]
    kernel = empirical_ntk(model, x, method=method)
    assert not kernel.requires_grad
    after = state_of(model)
    for key, (identity, version, tensor) in before.items():
        assert after[key][:2] == (identity, version)
        assert torch.equal(after[key][2], tensor)
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())
    assert modes == [module.training for module in model.modules()]
    assert hooks == [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()]
    assert torch.equal(x, values)
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("method", ["auto", "jacobian"])
def test_buffers_that_a_forward_pass_changes_stay_as_they_were(method):
    def forward(model, x):
        model.calls.add_(1)
        return model.a(x)

    model = Function(forward, a=nn.Linear(5, 2)).double()
    model.register_buffer("calls", torch.zeros(()))
    empirical_ntk(model, normal(4, 5), method=method)
    assert float(model.calls) == 0


def test_inputs_that_a_forward_pass_changes_stay_as_they_were():
    model = Function(lambda m, x: m.a(x.mul_(2)), a=nn.Linear(5, 2)).double()
    x = normal(4, 5)
    assert_same(empirical_ntk(model, x), 4 * normal(4, 5) @ normal(4, 5).T + 1)
    assert torch.equal(x, normal(4, 5))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_caller_may_have_switched_gradients_off(mode):
    model, x = randomised(mlp([5, 6, 2])), normal(4, 5)
    expected = empirical_ntk(model, x)
    with mode():
        assert_same(empirical_ntk(model, x), expected)
        assert_same(empirical_ntk(model, x + 0, method="jacobian"), expected)


def test_autocast_does_not_lower_the_precision():
    model, x = randomised(mlp([5, 6, 2]), torch.float32), normal(4, 5, dtype=torch.float32)
    expected = empirical_ntk(model, x)
    with torch.autocast("cpu"):
        assert torch.equal(empirical_ntk(model, x), expected)


# Distance of kernels


def test_distance_of_known_kernels():
    # cosines 1/sqrt(2), 0 and -1
    assert kernel_distance(np.eye(2), np.ones((2, 2))) == pytest.approx(1 - 0.5**0.5, rel=1e-14)
    assert kernel_distance([[1, 0], [0, 0]], [[0, 0], [0, 1]]) == pytest.approx(1, rel=1e-14)
    assert kernel_distance([1.0, 2.0], [-1.0, -2.0]) == pytest.approx(2, rel=1e-14)


def test_distance_is_blind_to_scale_and_symmetric():
    first, second = np.random.default_rng(0).standard_normal((2, 6, 6))
    assert kernel_distance(first, second) == pytest.approx(kernel_distance(second, 1e-200 * first), rel=1e-13)
    assert kernel_distance(first, 1e300 * first) < 1e-30
    assert kernel_distance(first, first) == 0


@given(exponent=st.integers(-12, -3))
def test_small_distances_keep_their_digits(exponent):
    # a relative change e across the kernel gives 1 - 1/sqrt(1 + e^2) = e^2/2 - 3 e^4/8
    change = 10.0**exponent
    expected = change**2 / 2 - 3 * change**4 / 8
    # rounding of the entries, 1e-16, against the change itself
    assert kernel_distance([1.0, 0.0], [1.0, change]) == pytest.approx(expected, rel=1e-8)


def test_distance_takes_tensors_of_any_precision_and_shape():
    kernel = normal(3, 3, 2, 2, dtype=torch.float32)
    assert kernel_distance(kernel, kernel.double()) == 0
    assert isinstance(kernel_distance(kernel.bfloat16(), kernel.requires_grad_()), float)


# Refusals


def network():
    return mlp([5, 4, 2])


X = torch.ones(3, 5)


class Random(nn.Module):
    def __init__(self, noise=torch.rand_like):
        super().__init__()
        self.a, self.noise = nn.Linear(5, 2), noise

    def forward(self, x):
        return self.a(x) + self.noise(x[:, :2])


def with_parameter(parameter):
    model = network()
    model.register_parameter("extra", parameter)
    return model


def overflowing():
    model = network()
    model[2].weight.data.fill_(1e30)
    return model


def not_a_number():
    model = network()
    model[0].weight.data[0, 0] = torch.nan
    return model


EVAL = r"model must be in eval mode \(call model.eval\(\)\), got "
BAD_CALLS = {
    "model is a function": (
        TypeError,
        "model must be a torch.nn.Module, got function",
        lambda: empirical_ntk(lambda x: x, X),
    ),
    "model is None": (TypeError, "model must be a torch.nn.Module, got NoneType", lambda: empirical_ntk(None, X)),
    "x1 is an array": (TypeError, "x1 must be a tensor, got ndarray", lambda: empirical_ntk(network(), X.numpy())),
    "x1 is a list": (TypeError, "x1 must be a tensor, got list", lambda: empirical_ntk(network(), X.tolist())),
    "x1 is a number": (
        ValueError,
        r"x1 must be of at least one sample, got shape \(\)",
        lambda: empirical_ntk(network(), torch.tensor(1.0)),
    ),
    "x1 is empty": (
        ValueError,
        r"x1 must be of at least one sample, got shape \(0, 5\)",
        lambda: empirical_ntk(network(), X[:0]),
    ),
    "x1 has other features": (
        ValueError,
        r"x1 must be a batch that model accepts, got shape \(1, 4\)",
        lambda: empirical_ntk(network(), X[:, :4]),
    ),
    "x1 has another dtype": (
        ValueError,
        r"x1 must be a batch that model accepts, got .*float64",
        lambda: empirical_ntk(network(), X.double()),
    ),
    "x1 is boolean": (
        ValueError,
        r"x1 must be a batch that model accepts, got .*bool",
        lambda: empirical_ntk(network(), X > 0),
    ),
    "x1 is an image": (
        ValueError,
        r"x1 must be a batch that model accepts",
        lambda: empirical_ntk(small_cnn((1, 8, 8)), torch.ones(2, 3, 8, 8)),
    ),
    "x1 elsewhere": (
        ValueError,
        r"x1 must be on the device of the parameters \(cpu\), got meta",
        lambda: empirical_ntk(network(), X.to("meta")),
    ),
    "x2 is an array": (TypeError, "x2 must be a tensor, got ndarray", lambda: empirical_ntk(network(), X, X.numpy())),
    "x2 is empty": (
        ValueError,
        r"x2 must be of at least one sample, got shape \(0, 5\)",
        lambda: empirical_ntk(network(), X, X[:0]),
    ),
    "x2 has other features": (
        ValueError,
        r"x2 must be of the features of x1 \(5,\), got \(4,\)",
        lambda: empirical_ntk(network(), X, X[:, :4]),
    ),
    "x2 has more axes": (
        ValueError,
        r"x2 must be of the features of x1 \(5,\), got \(5, 1\)",
        lambda: empirical_ntk(network(), X, X[..., None]),
    ),
    "x2 has another dtype": (
        ValueError,
        r"x2 must be of the dtype of x1 \(torch.float32\), got torch.float64",
        lambda: empirical_ntk(network(), X, X.double()),
    ),
    "x2 elsewhere": (
        ValueError,
        r"x2 must be on the device of the parameters \(cpu\), got meta",
        lambda: empirical_ntk(network(), X, X.to("meta")),
    ),
    "unknown outputs": (
        ValueError,
        "outputs must be one of 'full', 'sum', 'trace', got 'mean'",
        lambda: empirical_ntk(network(), X, outputs="mean"),
    ),
    "outputs is an int": (
        TypeError,
        "outputs must be one of .*, got int",
        lambda: empirical_ntk(network(), X, outputs=1),
    ),
    "unknown method": (
        ValueError,
        "method must be one of 'auto', 'jacobian', got 'fast'",
        lambda: empirical_ntk(network(), X, method="fast"),
    ),
    "method is None": (
        TypeError,
        "method must be one of .*, got NoneType",
        lambda: empirical_ntk(network(), X, method=None),
    ),
    "chunk of nothing": (
        ValueError,
        "chunk_size must be >= 1, got 0",
        lambda: empirical_ntk(network(), X, chunk_size=0),
    ),
    "negative chunk": (
        ValueError,
        "chunk_size must be >= 1, got -3",
        lambda: empirical_ntk(network(), X, chunk_size=-3),
    ),
    "fractional chunk": (
        TypeError,
        "chunk_size must be an integer, got float",
        lambda: empirical_ntk(network(), X, chunk_size=2.0),
    ),
    "boolean chunk": (
        TypeError,
        "chunk_size must be an integer, got bool",
        lambda: empirical_ntk(network(), X, chunk_size=True),
    ),
    "no parameters": (
        ValueError,
        "model must be one with trainable parameters, got none",
        lambda: empirical_ntk(nn.ReLU(), X),
    ),
    "all frozen": (
        ValueError,
        "model must be one with trainable parameters, got none",
        lambda: empirical_ntk(network().requires_grad_(False), X),
    ),
    "batch norm in training": (
        ValueError,
        EVAL + "BatchNorm1d in training mode",
        lambda: empirical_ntk(nn.Sequential(network(), nn.BatchNorm1d(2)), X),
    ),
    "batch norm without memory": (
        ValueError,
        EVAL + "BatchNorm1d without running statistics",
        lambda: empirical_ntk(nn.Sequential(network(), nn.BatchNorm1d(2, track_running_stats=False)).eval(), X),
    ),
    "dropout in training": (
        ValueError,
        EVAL + "Dropout in training mode",
        lambda: empirical_ntk(nn.Sequential(network(), nn.Dropout(0.5)), X),
    ),
    "random model": (ValueError, "model must be deterministic", lambda: empirical_ntk(Random(), X)),
    "random model, Jacobians": (
        ValueError,
        "model must be deterministic",
        lambda: empirical_ntk(Random(), X, method="jacobian"),
    ),
    "functional dropout": (
        ValueError,
        "model must be deterministic",
        lambda: empirical_ntk(Random(lambda x: F.dropout(x, 0.5)), X),
    ),
    "output is a tuple": (
        TypeError,
        "model must be one that returns a tensor, got tuple",
        lambda: empirical_ntk(nn.GRU(5, 2), X),
    ),
    "output is None": (
        TypeError,
        "model must be one that returns a tensor, got NoneType",
        lambda: empirical_ntk(Function(lambda m, x: None, a=network()), X),
    ),
    "output is discrete": (
        ValueError,
        "model must be one with real, differentiable outputs, got outputs of torch.int64",
        lambda: empirical_ntk(Function(lambda m, x: m.a(x).argmax(1), a=network()), X),
    ),
    "output is complex": (
        ValueError,
        "model must be one with real, differentiable outputs",
        lambda: empirical_ntk(Function(lambda m, x: m.a(x) * 1j, a=network()), X),
    ),
    "output is empty": (
        ValueError,
        "model must be one with at least one output",
        lambda: empirical_ntk(Function(lambda m, x: m.a(x)[:, :0], a=network()), X),
    ),
    "output is one number": (
        ValueError,
        r"model must be a map from each sample to its outputs, got shape \(\)",
        lambda: empirical_ntk(Function(lambda m, x: m.a(x).sum(), a=network()), X),
    ),
    "outputs first": (
        ValueError,
        r"model must be a map from each sample to its outputs, got shape \(4, 2\)",
        lambda: empirical_ntk(Function(lambda m, x: m.a(x).repeat(2, 1), a=network()), X),
    ),
    "output without gradient": (
        ValueError,
        "model must be differentiable in a trainable parameter",
        lambda: empirical_ntk(Function(torch.no_grad()(lambda m, x: m.a(x)), a=network()), X),
    ),
    "not initialised": (
        ValueError,
        "model must be initialised, got no values in 'weight'",
        lambda: empirical_ntk(nn.LazyLinear(2), X),
    ),
    "on the meta device": (
        ValueError,
        "model must be initialised, got no values",
        lambda: empirical_ntk(network().to("meta"), X),
    ),
    "complex parameter": (
        ValueError,
        "model must be one with real parameters, got torch.complex64 in 'extra'",
        lambda: empirical_ntk(with_parameter(nn.Parameter(torch.ones(2, dtype=torch.complex64))), X),
    ),
    "overflow": (
        ValueError,
        "model must be finite, with finite gradients, at every input, got inf or nan",
        lambda: empirical_ntk(overflowing(), X),
    ),
    "parameter is not a number": (ValueError, "model must be finite", lambda: empirical_ntk(not_a_number(), X)),
    "input is not a number": (ValueError, "model must be finite", lambda: empirical_ntk(network(), X * torch.nan)),
    "kernels of different shapes": (
        ValueError,
        r"k2 must be of the shape of k1 \(2, 2\), got shape \(3, 3\)",
        lambda: kernel_distance(np.eye(2), np.eye(3)),
    ),
    "kernels that would broadcast": (
        ValueError,
        "k2 must be of the shape of k1",
        lambda: kernel_distance(np.eye(2), np.ones((2, 1))),
    ),
    "zero kernel": (
        ValueError,
        "k1 must be nonzero somewhere, got only zeros",
        lambda: kernel_distance(np.zeros((2, 2)), np.eye(2)),
    ),
    "empty kernels": (ValueError, "k1 must be nonzero somewhere", lambda: kernel_distance([], [])),
    "kernel with nan": (
        ValueError,
        r"k2 must be finite, got nan at index \(0, 1\)",
        lambda: kernel_distance(np.eye(2), [[1, np.nan], [0, 1]]),
    ),
    "kernel with inf": (
        ValueError,
        r"k1 must be finite, got inf at index 0",
        lambda: kernel_distance([np.inf, 1], [1, 1]),
    ),
    "complex kernel": (TypeError, "k1 must be real numbers", lambda: kernel_distance([1j, 1], [1, 1])),
    "kernel of words": (TypeError, "k2 must be", lambda: kernel_distance([1, 1], ["a", "b"])),
    "kernel is None": (TypeError, "k1 must be", lambda: kernel_distance(None, [1])),
    "ragged kernel": (TypeError, "k1 must be an array of real numbers", lambda: kernel_distance([[1, 2], [3]], [1])),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused(name):
    kind, message, call = BAD_CALLS[name]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert type(caught.value) is kind
    assert re.fullmatch(r"\w+(\[.*\])? must be .+, got (.|\n)+", str(caught.value))


def test_a_refused_model_leaves_the_random_state_as_it_was():
    model, state = Random(), torch.get_rng_state()
    with pytest.raises(ValueError, match="deterministic"):
        empirical_ntk(model, X)
    assert torch.equal(torch.get_rng_state(), state)
