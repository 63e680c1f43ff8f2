"""Tests of the six alignments: known numbers, identities, brute force, simulation, and refusals."""

import copy
import gc
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torch.utils.checkpoint import checkpoint

from symlearn.canonical_representation import (
    AlignmentProbe,
    LayerMoments,
    alignment,
    crh_report,
    linear_layer_moments,
    power_law_exponent,
)
from symlearn.datasets import digits
from symlearn.models import mlp, resnet18, small_cnn

NAMES = ("H_in", "H_out", "G_in", "G_out", "Z_in", "Z_out")
# float64 sums of the same numbers in another order: a few hundred roundings of 1e-16.
ROUNDING = 1e-12
V, SIGMA = np.array([[1.0, 0, 0], [0, 0.5, 0]]), np.diag([0.2, 1.0])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randomised(model, seed=0):
    """Float64 model with random weights and biases."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model.double()


def cross_entropy(output, target):
    return F.cross_entropy(output, target, reduction="none")


def squared(output, target):
    return (output - target).flatten(1).square().sum(1) / 2


def batch(shape, n=23, n_classes=3, seed=1):
    generator = seeded(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64) + 0.3
    return x, torch.randint(n_classes, (n,), generator=generator)


def measure(model, x, y, loss_fn=cross_entropy, layers=None, **options):
    with AlignmentProbe(model, layers, **options) as probe:
        probe.update(x, y, loss_fn)
    return probe.moments()


def moments_of(vectors, centered=False, normalized=False):
    vectors = vectors.detach().double().numpy()
    if normalized:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(lengths == 0, 1, lengths)
    if centered:
        vectors = vectors - vectors.mean(0)
    return vectors.T @ vectors / len(vectors)


def assert_moments(measured, h_in, h_out, g_out, weight, rtol=ROUNDING, **options):
    """All six matrices and the count against the stored vectors, (n, d)."""
    weight = weight.detach().double().flatten(1)
    expected = {
        "H_in": moments_of(h_in, **options),
        "H_out": moments_of(h_out, **options),
        "G_in": moments_of(g_out.double() @ weight, **options),
        "G_out": moments_of(g_out, **options),
        "Z_in": (weight.T @ weight).numpy(),
        "Z_out": (weight @ weight.T).numpy(),
    }
    assert measured.n_samples == len(h_in)
    for name, matrix in expected.items():
        value = getattr(measured, name)
        assert value.dtype == np.float64
        np.testing.assert_array_equal(value, value.T, err_msg=name)
        np.testing.assert_allclose(value, matrix, rtol=0, atol=rtol * np.abs(matrix).max(), err_msg=name)


def shifts_and_gradients(model, name, x, y, loss_fn, shape):
    """Per-sample gradients with respect to a shift of one layer's output: torch.func, no sums over samples."""
    layer = model.get_submodule(name)
    outputs = []

    def sample_loss(shift, x, y):
        handle = layer.register_forward_hook(lambda _module, _inputs, output: output + shift)
        try:
            return loss_fn(functional_call(model, {}, (x[None],)), y[None]).sum()
        finally:
            handle.remove()

    handle = layer.register_forward_hook(lambda _module, inputs, output: outputs.append((inputs[0], output.clone())))
    model(x)
    handle.remove()
    zeros = torch.zeros(len(x), *shape, dtype=torch.float64)
    gradients = vmap(grad(sample_loss), randomness="error")(zeros, x, y)
    return *outputs[0], gradients


@pytest.fixture(scope="module")
def trained():
    """A net on digits, float32, after plain SGD with weight decay; with its data."""
    data = digits()
    model = mlp([64, 48, 48, 48, 10], generator=seeded())
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    parameters, generator = list(model.parameters()), seeded(1)
    for _ in range(60):
        for index in torch.randperm(len(x), generator=generator).split(32):
            gradients = torch.autograd.grad(F.cross_entropy(model(x[index]), y[index]), parameters)
            with torch.no_grad():
                torch._foreach_mul_(parameters, 1 - 0.1 * 5e-3)
                torch._foreach_add_(parameters, gradients, alpha=-0.1)
    return model, x, y


# Against brute force


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_moments_of_a_perceptron_are_those_of_per_sample_gradients(centered, normalized):
    model = randomised(mlp([5, 7, 6, 3]))
    x, y = batch((5,))
    options = {"centered": centered, "normalized": normalized}
    measured = measure(model, x, y, **options)
    assert list(measured) == ["0", "2", "4"]
    for name, size in (("0", 7), ("2", 6), ("4", 3)):
        h_in, h_out, gradients = shifts_and_gradients(model, name, x, y, cross_entropy, (size,))
        assert_moments(measured[name], h_in, h_out, gradients, model.get_submodule(name).weight, **options)


def convolutions():
    def conv(*args, **options):
        return nn.Sequential(nn.Conv2d(*args, **options), nn.Tanh(), nn.Conv2d(4, 3, 2), nn.Flatten(), nn.LazyLinear(3))

    yield "plain", conv(2, 4, 3)
    yield "no bias", conv(2, 4, 3, bias=False)
    yield "stride and padding", conv(2, 4, 3, stride=2, padding=1)
    yield "rectangular", conv(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    yield "dilated", conv(2, 4, 3, dilation=2, padding=3)
    yield "same", conv(2, 4, (2, 3), padding="same", dilation=(3, 1))
    yield "same, reflected", conv(2, 4, (4, 3), padding="same", padding_mode="reflect")
    yield "valid", conv(2, 4, 3, padding="valid")
    for mode in ("reflect", "replicate", "circular"):
        yield mode, conv(2, 4, 3, padding=(2, 1), padding_mode=mode)


def unfolded(layer, x):
    """Im2col patches (n, positions, d) from the layer itself: the response of each position to every input pixel."""
    identity = copy.deepcopy(layer)
    size = layer.weight[0].numel()
    identity.bias = None
    identity.weight = nn.Parameter(torch.eye(size, dtype=torch.float64).view(size, *layer.weight.shape[1:]))
    return identity(x).flatten(2).transpose(1, 2)


@pytest.mark.filterwarnings("ignore:Using padding:UserWarning")
@pytest.mark.parametrize(
    ("kind", "model"), list(convolutions()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_position_of_a_convolution_is_a_sample(kind, model):
    x, y = batch((2, 8, 7), n=5)
    model.double()(x)
    randomised(model)
    layer = model[0]
    shape = layer(x).shape[1:]
    h_in, h_out, gradients = shifts_and_gradients(model, "0", x, y, cross_entropy, shape)
    h_out, gradients = (v.flatten(2).transpose(1, 2).flatten(0, 1) for v in (h_out, gradients))
    patches = unfolded(layer, h_in).detach().flatten(0, 1)
    for options in ({}, {"centered": True}, {"normalized": True}):
        assert_moments(measure(model, x, y, **options)["0"], patches, h_out, gradients, layer.weight, **options)


def test_patches_of_a_convolution_are_written_out_by_hand():
    layer = nn.Conv2d(1, 1, 2, stride=2, padding=1, bias=False).double()
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]], dtype=torch.float64)
    patches = np.array([[0, 0, 0, 1], [0, 0, 2, 3], [0, 4, 0, 7], [5, 6, 8, 9]])
    measured = measure(layer, x, torch.zeros(1), lambda output, target: output.sum((1, 2, 3)))[""]
    np.testing.assert_allclose(measured.H_in, patches.T @ patches / 4, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(measured.G_out, [[1.0]], rtol=1e-14)
    np.testing.assert_allclose(measured.G_in, measured.Z_in, rtol=1e-14)
    assert measured.n_samples == 4


def test_an_unbatched_image_is_a_batch_of_one():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 2)

        def forward(self, x):
            return torch.stack([self.conv(image).relu_().mean((1, 2)) for image in x])

    class Together(Single):
        def forward(self, x):
            return self.conv(x).relu().mean((2, 3))

    single, together = randomised(Single()), randomised(Together())
    x, y = batch((2, 4, 4), n=3)
    first, second = (measure(model, x, y)["conv"] for model in (single, together))
    for name in NAMES:
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-12, atol=1e-13)


class Attention(nn.Module):
    """Hand-made attention block with residual connections, as in a small transformer."""

    def __init__(self, width=6, heads=2, inplace=False):
        super().__init__()
        self.heads = heads
        self.inplace = inplace
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(width, 10), nn.Linear(10, width, bias=False), nn.Linear(width, 3)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for layer in (self.q, self.k, self.v))
        x = x + self.o(((q @ k.mT).softmax(-1) @ v).transpose(-2, -3).flatten(-2))
        hidden = self.up(x)
        x = x + self.down(hidden.relu_() if self.inplace else hidden.relu())
        return self.head(x.mean(-2))


@pytest.mark.parametrize("normalized", [False, True])
def test_every_token_is_a_sample(normalized):
    model = randomised(Attention())
    x, y = batch((5, 6), n=7)
    measured = measure(model, x, y, normalized=normalized)
    assert list(measured) == ["q", "k", "v", "o", "up", "down", "head"]
    for name in ("q", "k", "v", "o", "up", "down"):
        layer = model.get_submodule(name)
        h_in, h_out, gradients = shifts_and_gradients(model, name, x, y, cross_entropy, (5, layer.out_features))
        vectors = (v.flatten(0, 1) for v in (h_in, h_out, gradients))
        # Softmax and its gradient are rounded in another order.
        assert_moments(measured[name], *vectors, layer.weight, rtol=1e-11, normalized=normalized)
    assert measured["head"].n_samples == 7


def test_more_leading_axes_are_more_samples():
    model = nn.Sequential(randomised(nn.Linear(4, 3)), nn.Flatten())
    x, _ = batch((2, 5, 4), n=6)
    y = torch.zeros(6, 30, dtype=torch.float64)
    h_out = model[0](x).flatten(0, 2)
    measured = measure(model, x, y, squared)["0"]
    assert_moments(measured, x.flatten(0, 2), h_out, h_out.detach(), model[0].weight)
    assert measured.n_samples == 60


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_transformer_encoder_layer_is_measured_without_its_fast_path(frozen, dropout):
    encoder = nn.TransformerEncoderLayer(8, 2, 12, dropout=dropout, batch_first=True)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(40, 3))
    randomised(model).requires_grad_(not frozen)
    x, y = batch((5, 8), n=6)
    measured = measure(model, x, y)
    assert list(measured) == ["0.linear1", "0.linear2", "2"]
    stored = []
    handle = encoder.linear1.register_forward_hook(lambda _module, inputs, output: stored.append((inputs[0], output)))
    model.eval()(x.clone().requires_grad_())
    handle.remove()
    h_in, h_out = stored[0]
    gradient = torch.autograd.grad(
        cross_entropy(model[2](model[1](_after_linear1(encoder, h_in, h_out))), y).sum(), h_out
    )
    vectors = (v.flatten(0, 1) for v in (h_in, h_out, *gradient))
    assert_moments(measured["0.linear1"], *vectors, encoder.linear1.weight, rtol=1e-11)
    assert torch.backends.mha.get_fastpath_enabled()


def _after_linear1(encoder, h_in, h_out):
    return encoder.norm2(h_in + encoder.linear2(h_out.relu()))


def test_the_output_projection_of_multihead_attention_is_never_called():
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).double()
    x, _ = batch((5, 8), n=4)
    with AlignmentProbe(model, ["self_attn.out_proj"]) as probe:
        probe.update(x, x, squared)
        with pytest.raises(ValueError, match=r"update must be called before moments, with data for .* got no data"):
            probe.moments()
    with AlignmentProbe(model, ["linear1", "self_attn.out_proj"]) as probe:
        probe.update(x, x, squared)
        with pytest.raises(ValueError, match=r"layers must be names .* got 'self_attn.out_proj', without data"):
            probe.moments()


def test_a_layer_called_twice_sees_both_calls():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x).relu_())

    class Unrolled(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.first, self.second = layer, copy.deepcopy(layer)

        def forward(self, x):
            return self.second(self.first(x).relu())

    model = randomised(Recurrent())
    x, y = batch((3,), n=11)
    both, single = measure(model, x, y)["layer"], measure(Unrolled(model.layer), x, y)
    assert both.n_samples == 22
    for name in ("H_in", "H_out", "G_in", "G_out"):
        mean = (getattr(single["first"], name) + getattr(single["second"], name)) / 2
        np.testing.assert_allclose(getattr(both, name), mean, rtol=0, atol=1e-14 * np.abs(mean).max())
    np.testing.assert_array_equal(both.Z_in, single["first"].Z_in)


def test_checkpointed_layers_are_counted_once():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp([4, 5, 5], "tanh")
            self.head = nn.Linear(5, 3)

        def forward(self, x):
            return self.head(checkpoint(self.body, x, use_reentrant=False))

    model = randomised(Checkpointed())
    x, y = batch((4,))
    measured = measure(model, x, y)
    plain = measure(nn.Sequential(model.body, model.head), x, y)
    for name in ("0", "2"):
        assert measured[f"body.{name}"].n_samples == 23
        np.testing.assert_allclose(measured[f"body.{name}"].G_in, plain[f"0.{name}"].G_in, rtol=0, atol=1e-14)


def test_a_shared_module_has_one_entry_and_can_be_asked_for_by_either_name():
    layer = nn.Linear(3, 3)
    model = randomised(nn.Sequential(layer, nn.Tanh(), layer))
    x, y = batch((3,))
    assert list(measure(model, x, y)) == ["0"]
    both = measure(model, x, y, layers=["2", "0"])
    assert list(both) == ["2", "0"]
    np.testing.assert_array_equal(both["0"].G_in, both["2"].G_in)


@pytest.mark.parametrize(
    "activation",
    [lambda: nn.ReLU(inplace=True), lambda: nn.LeakyReLU(0.1, inplace=True), lambda: nn.ELU(inplace=True)],
)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("tokens", [(), (4,)])
def test_activations_in_place_change_nothing(activation, frozen, tokens):
    def build(inplace):
        act = activation()
        act.inplace = inplace
        middle = nn.Linear(6, 6, bias=False)
        return randomised(
            nn.Sequential(nn.Linear(5, 6), act, middle, act, nn.Flatten(), nn.Linear(6 * (tokens or [1])[0], 3))
        )

    x, y = batch((*tokens, 5))
    for normalized in (False, True):
        plain, inplace = (
            measure(build(flag).requires_grad_(not frozen), x, y, normalized=normalized) for flag in (False, True)
        )
        for layer in plain:
            for name in NAMES:
                # Some activations round their gradient in another order when they work in place.
                value, expected = getattr(inplace[layer], name), getattr(plain[layer], name)
                np.testing.assert_allclose(value, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())
            assert plain[layer].G_in.any()


def test_convolutions_before_an_activation_in_place_are_measured():
    def build(inplace):
        layers = [nn.Conv2d(1, 3, 3), nn.ReLU(inplace), nn.Conv2d(3, 2, 2), nn.ReLU(inplace), nn.Flatten()]
        return randomised(nn.Sequential(*layers))

    x, _ = batch((1, 6, 6))
    y = torch.zeros(23, 18, dtype=torch.float64)
    plain, inplace = (measure(build(flag), x, y, squared) for flag in (False, True))
    for layer in plain:
        for name in NAMES:
            np.testing.assert_array_equal(getattr(inplace[layer], name), getattr(plain[layer], name))
            assert getattr(plain[layer], name).any()


def test_frozen_layers_are_measured_as_trainable_ones():
    x, y = batch((5,))
    reference = measure(randomised(mlp([5, 6, 6, 3])), x, y)
    for frozen in (["0.weight", "0.bias"], ["2.weight"], ["4.weight", "4.bias"]):
        model = randomised(mlp([5, 6, 6, 3]))
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)
        measured = measure(model, x, y)
        for layer, matrices in reference.items():
            for name in NAMES:
                np.testing.assert_array_equal(getattr(measured[layer], name), getattr(matrices, name))
        assert [n for n, p in model.named_parameters() if not p.requires_grad] == frozen


def test_an_output_that_the_loss_does_not_use_has_no_gradient():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.detached, self.unused, self.hidden = (nn.Linear(3, 3) for _ in range(4))

        def forward(self, x):
            self.unused(x)
            with torch.no_grad():
                blind = self.hidden(x)
            return self.used(x) + self.detached(x).detach() + blind

    x, y = batch((3,))
    measured = measure(randomised(Branches()), x, y)
    for name in ("detached", "unused", "hidden"):
        assert not measured[name].G_out.any()
        assert not measured[name].G_in.any()
        assert measured[name].H_out.any()
        assert measured[name].n_samples == 23
    assert measured["used"].G_in.any()


@pytest.mark.parametrize("kind", ["weight norm", "spectral norm", "pruned"])
def test_the_weight_is_the_one_that_multiplies(kind):
    layer = nn.Linear(4, 3)
    if kind == "pruned":
        torch_prune.l1_unstructured(layer, "weight", amount=0.5)
    else:
        layer = getattr(parametrizations, kind.replace(" ", "_"))(layer)
    model = layer.double()
    x, y = batch((4,))
    effective = (model.eval()(torch.eye(4, dtype=torch.float64)) - model.bias).T
    model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    measured = measure(model, x, y)[""]
    expected = (effective @ effective.T).detach().numpy()
    np.testing.assert_allclose(measured.Z_out, expected, rtol=0, atol=1e-13 * expected.max())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_residual_network_is_measured_everywhere():
    model = resnet18(width_divisor=16, generator=seeded())
    x, y = batch((3, 8, 8), n=4)
    measured = measure(model, x.float(), y, centered=True)
    assert len(measured) == 21
    assert measured["blocks.2.shortcut.0"].n_samples == 4 * 16
    for layer in measured.values():
        for name in NAMES:
            matrix = getattr(layer, name)
            # Positive semi-definite up to rounding.
            assert np.linalg.eigvalsh(matrix).min() >= -1e-12 * np.abs(matrix).max()


# Identities


def test_output_moments_follow_from_input_moments_in_a_trained_net(trained):
    model, x, y = trained
    raw, centred = (measure(model, x, y, centered=centered) for centered in (False, True))
    stored = {}
    handles = [
        model[index].register_forward_hook(
            lambda _m, inputs, output, i=index: stored.update({str(i): (inputs[0], output)})
        )
        for index in (0, 2, 4, 6)
    ]
    losses = cross_entropy(model(x), y)
    for handle in handles:
        handle.remove()
    for name, (h_in, h_out) in stored.items():
        (gradient,) = torch.autograd.grad(losses.sum(), h_out, retain_graph=True)
        weight, bias = (getattr(model.get_submodule(name), key).detach().double() for key in ("weight", "bias"))
        # Outputs and gradients of the net itself are float32: relative errors of 1e-7.
        assert_moments(raw[name], h_in, h_out, gradient, weight, rtol=2e-6)
        assert_moments(centred[name], h_in, h_out, gradient, weight, rtol=2e-6, centered=True)
        w, b, mean = weight.numpy(), bias.numpy(), h_in.double().mean(0).detach().numpy()
        cross = np.outer(w @ mean, b)
        expected = w @ raw[name].H_in @ w.T + cross + cross.T + np.outer(b, b)
        np.testing.assert_allclose(raw[name].H_out, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
        np.testing.assert_allclose(raw[name].G_in, w.T @ raw[name].G_out @ w, rtol=0, atol=1e-12)


def test_training_aligns_hidden_layers(trained):
    model, x, y = trained
    first, last = (
        crh_report(measure(net, x, y, centered=True)) for net in (mlp([64, 48, 48, 48, 10], generator=seeded()), model)
    )
    for layer in ("2", "4"):
        # From about .2 to .7 at the start to about .5 to .9, with differences of up to .1 between seeds.
        for name, value in vars(last[layer]).items():
            assert value > getattr(first[layer], name) + 0.1, name
        assert min(last[layer].forward_RWA, last[layer].forward_GWA, last[layer].backward_GWA) > 0.7


@given(cuts=st.lists(st.integers(1, 39), max_size=5, unique=True), centered=st.booleans(), normalized=st.booleans())
@settings(max_examples=20, deadline=None)
def test_batches_do_not_matter(cuts, centered, normalized):
    model = randomised(small_cnn((1, 6, 6), 3, (2,)))
    x, y = batch((1, 6, 6), n=40)
    options = {"centered": centered, "normalized": normalized}
    whole = measure(model, x, y, **options)
    with AlignmentProbe(model, **options) as probe:
        for start, stop in pairwise([0, *sorted(cuts), 40]):
            probe.update(x[start:stop], y[start:stop], cross_entropy)
    for name, layer in probe.moments().items():
        assert layer.n_samples == whole[name].n_samples
        for key in NAMES:
            expected = getattr(whole[name], key)
            np.testing.assert_allclose(getattr(layer, key), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("n", [300, 5000])
def test_blocks_do_not_matter(n):
    # 600 features make blocks of 256 rows and several strips; 9 x 9 x 5000 positions many blocks of images.
    wide = nn.Linear(600, 2).double()
    x, _ = batch((600,), n=n)
    measured = measure(wide, x, torch.zeros(n, 2), squared, centered=True)[""]
    output = wide(x).detach()
    assert_moments(measured, x, output, output, wide.weight, centered=True)


def test_a_large_image_is_cut_into_lines():
    conv = nn.Conv2d(3, 4, 5, bias=False).double()
    x, _ = batch((3, 90, 70), n=2)
    measured = measure(conv, x, torch.zeros(2, 4, 86, 66), squared)[""]
    patches = F.unfold(x, 5).transpose(1, 2).flatten(0, 1)
    output = conv(x).detach().flatten(2).transpose(1, 2).flatten(0, 1)
    assert_moments(measured, patches, output, output, conv.weight)


def test_raw_moments_of_workers_combine_by_their_weighted_mean():
    model = randomised(mlp([4, 5, 3]))
    x, y = batch((4,), n=30)
    whole, first, second = (measure(model, x[part], y[part])["0"] for part in (slice(30), slice(12), slice(12, 30)))
    for name in NAMES:
        mean = (12 * getattr(first, name) + 18 * getattr(second, name)) / 30
        np.testing.assert_allclose(getattr(whole, name), mean, rtol=1e-12, atol=1e-14)


def test_a_mean_far_above_the_spread_does_no_harm():
    # Raw sums would keep none of the 16 digits: mean**2 / variance is 1e16.
    layer = nn.Linear(3, 2).double()
    x, _ = batch((3,), n=500)
    shifted = 1e8 + torch.round(x * 2**20) / 2**20
    expected = np.cov((shifted - 1e8).numpy().T, ddof=0)
    parts = shifted.split(77)
    with AlignmentProbe(layer, centered=True) as probe:
        for part in parts:
            probe.update(part, torch.zeros(len(part), 2), squared)
    np.testing.assert_allclose(probe.moments()[""].H_in, expected, rtol=0, atol=1e-6 * expected.max())


def test_a_zero_vector_stays_zero_when_normalised():
    layer = nn.Linear(2, 2, bias=False).double()
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    measured = measure(layer, x, torch.zeros(2, 2), squared, normalized=True)[""]
    np.testing.assert_allclose(measured.H_in, np.array([[0.36, 0.48], [0.48, 0.64]]) / 2, rtol=1e-14)
    assert np.trace(measured.G_out) == pytest.approx(0.5, rel=1e-14)


def test_a_mean_reduced_loss_would_shrink_the_gradients():
    model = randomised(mlp([4, 5, 3]))
    x, y = batch((4,), n=10)
    full, shrunk = measure(model, x, y), measure(model, x, y, lambda o, t: cross_entropy(o, t) / 10)
    np.testing.assert_allclose(full["0"].G_out, 100 * shrunk["0"].G_out, rtol=1e-12, atol=1e-16)


def test_half_precision_models_have_float64_moments():
    model = mlp([4, 8, 3], generator=seeded()).bfloat16()
    x, y = batch((4,))
    measured = measure(model, x.bfloat16(), y)["2"]
    assert measured.H_in.dtype == np.float64
    assert model[0].weight.dtype == torch.bfloat16


# The model is left as it was


def snapshot(model):
    return {
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "identity": [id(p) for p in (*model.parameters(), *model.buffers())],
        "modes": [module.training for module in model.modules()],
        "hooks": [[list(value) for key, value in vars(module).items() if "hooks" in key] for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "rng": torch.get_rng_state(),
        "grad_mode": torch.is_grad_enabled(),
    }


def assert_untouched(model, before):
    after = snapshot(model)
    for key in ("identity", "modes", "hooks", "requires_grad", "grad_mode"):
        assert before[key] == after[key], key
    assert all(torch.equal(before["state"][key], value) for key, value in after["state"].items())
    assert torch.equal(before["rng"], after["rng"])
    for old, new in zip(before["grads"], after["grads"], strict=True):
        assert (old is None) == (new is None)
        assert old is None or (old[0] == new[0] and torch.equal(old[1], new[1]))


class Restless(nn.Module):
    """Counts its calls in a buffer, draws noise, and replaces another buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.last = x.detach().mean()
        return self.layer(x + 0.01 * torch.randn_like(x))


def busy():
    layers = (nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, 3))
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("build", [busy, lambda: Restless().double()])
@pytest.mark.parametrize("grads", [False, True])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
def test_model_and_random_state_are_untouched(build, grads, context):
    torch.manual_seed(0)
    model = build()
    x, y = batch((4,))
    if grads:
        cross_entropy(model(x), y).sum().backward()
    next(iter(model.children())).eval()
    with context():
        before = snapshot(model)
        measured = measure(model, x, y)
        assert_untouched(model, before)
    assert all(layer.G_in.any() for layer in measured.values())


def test_it_works_under_inference_mode():
    model = randomised(mlp([4, 5, 3]))
    x, y = batch((4,))
    expected = measure(model, x, y)["0"]
    with torch.inference_mode():
        measured = measure(model, x.clone(), y.clone())["0"]
    np.testing.assert_array_equal(measured.G_in, expected.G_in)


def test_gradients_of_a_training_step_survive_a_probe_in_between():
    model = busy()
    x, y = batch((4,))
    torch.manual_seed(0)
    loss = cross_entropy(model(x), y).mean()
    measure(model, x, y)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("place", ["forward", "loss", "shape", "block", "backward"])
def test_an_exception_leaves_the_model_untouched(place):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            output = self.layer(x)
            if place == "forward":
                raise RuntimeError("of the user")
            if place == "backward":
                output.register_hook(fail)
            return output

    def fail(*_):
        raise RuntimeError("of the user")

    model = Failing().double()
    x, y = batch((4,))
    before = snapshot(model)
    probe = AlignmentProbe(model)
    loss_fn = {"loss": fail, "shape": lambda o, t: o.sum()}.get(place, cross_entropy)
    with pytest.raises((RuntimeError, ValueError), match="of the user|one loss per sample"), probe:  # noqa: PT012
        probe.update(x, y, loss_fn)
        fail()
    assert_untouched(model, before)
    if place != "block":
        with pytest.raises(ValueError, match="got no data"):
            probe.moments()


def test_an_update_that_fails_adds_nothing():
    model = randomised(mlp([4, 5, 3]))
    x, y = batch((4,))
    with AlignmentProbe(model) as probe:
        probe.update(x, y, cross_entropy)
        before = probe.moments()
        bad = x.clone()
        bad[3, 2] = float("nan")
        with pytest.raises(ValueError):
            probe.update(bad, y, cross_entropy)
        with pytest.raises(ValueError):
            probe.update(x, y, lambda o, t: cross_entropy(o, t).mean())
        after = probe.moments()
    for layer in before:
        assert before[layer].n_samples == after[layer].n_samples == 23
        np.testing.assert_array_equal(before[layer].G_in, after[layer].G_in)


def test_moments_keep_the_weights_of_the_updates():
    model = randomised(mlp([4, 5, 3]))
    x, y = batch((4,))
    with AlignmentProbe(model) as probe:
        probe.update(x, y, cross_entropy)
    before = probe.moments()["0"]
    with torch.no_grad():
        model[0].weight.mul_(2)
    after = probe.moments()["0"]
    np.testing.assert_array_equal(before.Z_in, after.Z_in)
    with probe, pytest.raises(ValueError, match=r"the same in all updates of a probe, got another weight in layer '0'"):
        probe.update(x, y, cross_entropy)
    with AlignmentProbe(model) as other:
        other.update(x, y, cross_entropy)
    np.testing.assert_allclose(other.moments()["0"].Z_in, 4 * before.Z_in, rtol=1e-15)


def test_the_users_own_forward_passes_inside_the_block_do_not_count():
    model = randomised(mlp([4, 5, 3]))
    x, y = batch((4,))
    with AlignmentProbe(model) as probe:
        model(x)
        probe.update(x, y, cross_entropy)
        model(x)
        assert not any(module._forward_hooks for module in model.modules())
    assert probe.moments()["0"].n_samples == 23


def test_many_batches_take_no_more_memory_than_few():
    model = mlp([20, 30, 3], generator=seeded())
    x, y = batch((20,), n=64)
    x = x.float()

    def n_numbers():
        """In all tensors that are alive."""
        gc.collect()
        tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, nn.Parameter)]
        return sum(tensor.numel() for tensor in tensors)

    with AlignmentProbe(model) as probe:
        probe.update(x, y, cross_entropy)
        before = n_numbers()
        for _ in range(50):
            probe.update(x, y, cross_entropy)
        assert n_numbers() == before
    assert probe.moments()["0"].n_samples == 51 * 64


# Alignment


def test_alignments_of_two_small_matrices_are_known():
    A, B = [[2, 1], [1, 3]], [[1, -1], [-1, 5]]
    assert alignment(A, B) == pytest.approx(0.98473193, abs=6e-9)
    assert alignment(A, B, measure="cosine") == pytest.approx(0.73192505, abs=6e-9)


@given(
    size=st.integers(2, 6),
    seed=st.integers(0, 10**6),
    factor=st.floats(1e-150, 1e150),
    measure=st.sampled_from(["pearson", "cosine"]),
)
@settings(max_examples=100, deadline=None)
def test_alignment_ignores_scale_order_and_rotation_by_signs(size, seed, factor, measure):
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((2, size, size))
    value = alignment(A, B, measure=measure)
    assert -1 <= value <= 1
    assert alignment(B, A, measure=measure) == pytest.approx(value, abs=1e-14)
    assert alignment(factor * A, B, measure=measure) == pytest.approx(value, abs=1e-13)
    assert alignment(-A, B, measure=measure) == pytest.approx(-value, abs=1e-14)
    order = rng.permutation(size)
    assert alignment(A[order][:, order], B[order][:, order], measure=measure) == pytest.approx(value, abs=1e-14)
    assert alignment(A, factor * A, measure=measure) == pytest.approx(1, abs=1e-14)
    expected = (
        np.corrcoef(A.ravel(), B.ravel())[0, 1]
        if measure == "pearson"
        else np.vdot(A, B) / np.sqrt(np.vdot(A, A) * np.vdot(B, B))
    )
    assert value == pytest.approx(expected, abs=1e-13)


def test_only_pearson_ignores_a_constant():
    A = np.diag([1.0, 2.0, 4.0])
    assert alignment(A + 7, 3 * A) == pytest.approx(1, abs=1e-14)
    assert alignment(A + 7, 3 * A, measure="cosine") < 0.7


def test_entries_near_the_ends_of_the_range_align():
    A, B = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -1.0], [-1.0, 5.0]])
    for scale in (1e-300, 1e-200, 1e200, 3e307):
        assert alignment(scale * A, scale * B) == pytest.approx(0.98473193, abs=6e-9)


def test_tensors_are_matrices_too():
    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]], requires_grad=True)
    assert alignment(A, torch.tensor([[1, -1], [-1, 5]])) == pytest.approx(0.98473193, abs=6e-9)


def test_a_report_has_the_six_alignments():
    rng = np.random.default_rng(0)
    matrices = {name: np.cov(rng.standard_normal((5 if "out" in name else 3, 9))) for name in NAMES}
    layer = LayerMoments(**matrices, n_samples=9)
    for measure_ in ("pearson", "cosine"):
        report = crh_report({"a": layer}, measure=measure_)["a"]
        for side, label in (("out", "forward"), ("in", "backward")):
            for pair, label2 in (("HG", "RGA"), ("HZ", "RWA"), ("GZ", "GWA")):
                A, B = (matrices[f"{letter}_{side}"] for letter in pair)
                assert getattr(report, f"{label}_{label2}") == alignment(A, B, measure=measure_)


# Power laws


def power_laws():
    """Forward and backward relation, then the exponents of H_in, H_out, G_in, G_out in Z."""
    yield "f-RGA, b-RWA", (1, 2, 3, 2)
    yield "f-GWA, b-RWA", (1, 2, 2, 1)
    yield "f-GWA, b-RGA", (2, 3, 2, 1)
    yield "f-RWA, b-GWA", (0, 1, 1, 0)
    yield "f-RGA, b-GWA", (-1, 0, 1, 0)
    yield "f-RWA, b-RGA", (0, 1, 0, -1)


@pytest.mark.parametrize(("relations", "exponents"), list(power_laws()))
@pytest.mark.parametrize("seed", [0, 1])
def test_two_relations_fix_all_exponents(relations, exponents, seed):
    """Build the input moment and the gradient moment from the relations alone; the rest follows from the layer."""
    rng = np.random.default_rng(seed)
    z = np.exp(rng.uniform(-2, 1, 8))
    left, right = (np.linalg.qr(rng.standard_normal((8, 8)))[0] for _ in range(2))
    weight = left * np.sqrt(z) @ right.T
    z_in, z_out = weight.T @ weight, weight @ weight.T
    inverse = np.linalg.inv(weight)
    forward, backward = relations.split(", ")
    if backward == "b-RWA":
        h_in = z_in
    elif forward == "f-RWA":
        h_in = inverse @ z_out @ inverse.T
    elif backward == "b-RGA":
        h_in = weight.T @ z_out @ weight  # g_out = z_out
    else:
        h_in = inverse @ inverse.T  # f-RGA with g_out white
    h_out = weight @ h_in @ weight.T
    if forward == "f-RGA":
        g_out = h_out
    elif forward == "f-GWA":
        g_out = z_out
    elif backward == "b-GWA":
        g_out = inverse.T @ z_in @ inverse
    else:
        g_out = inverse.T @ h_in @ inverse
    g_in = weight.T @ g_out @ weight
    aligned = {"f-RGA": (h_out, g_out), "f-RWA": (h_out, z_out), "f-GWA": (g_out, z_out)}[forward]
    assert alignment(*aligned) == pytest.approx(1, abs=1e-10)
    aligned = {"b-RGA": (h_in, g_in), "b-RWA": (h_in, z_in), "b-GWA": (g_in, z_in)}[backward]
    assert alignment(*aligned) == pytest.approx(1, abs=1e-10)
    pairs = ((z_in, h_in), (z_out, h_out), (z_in, g_in), (z_out, g_out))
    for (base, matrix), exponent in zip(pairs, exponents, strict=True):
        fit = power_law_exponent(base, (matrix + matrix.T) / 2)
        assert fit.exponent == pytest.approx(exponent, abs=1e-6)
        assert fit.n_modes == 8
        assert fit.off_diagonal < 1e-6
        assert fit.r2 == pytest.approx(1.0, abs=1e-6) or exponent == 0


@given(exponent=st.floats(-3, 3), factor=st.floats(1e-100, 1e100), scale=st.floats(1e-100, 1e100))
@settings(max_examples=60, deadline=None)
def test_units_change_the_prefactor_alone(exponent, factor, scale):
    z = scale * np.array([1.0, 2.0, 3.0, 5.0, 8.0])
    unit = np.array([1.0, 2.0, 3.0, 5.0, 8.0]) ** exponent
    fit = power_law_exponent(np.diag(z), np.diag(factor * unit))
    assert fit.exponent == pytest.approx(exponent, abs=1e-9)
    expected = np.log(factor) - exponent * np.log(scale)
    assert fit.log_prefactor == pytest.approx(expected, abs=1e-6)


def test_one_outlier_does_not_move_the_exponent():
    z = np.geomspace(1, 100, 12)
    values = z**2
    values[3] *= 50
    fit = power_law_exponent(np.diag(z), np.diag(values))
    assert fit.exponent == pytest.approx(2, abs=1e-9)
    assert fit.r2 < 0.99


def test_modes_are_counted_from_the_top():
    z = np.geomspace(1, 1e-8, 9)
    B = np.diag(z**2)
    assert power_law_exponent(np.diag(z), B, rtol=3e-7).n_modes == 4  # 1, 1e-1, 1e-2, 1e-3: their squares count
    assert power_law_exponent(np.diag(z), np.eye(9), rtol=3e-7).n_modes == 7
    assert power_law_exponent(np.diag(z), np.eye(9), rtol=3e-4).n_modes == 4
    assert power_law_exponent(np.diag(z), np.eye(9), rtol=0).n_modes == 9
    two_slopes = np.diag(np.where(z >= 1e-4, z, z**3 * 1e8))
    assert power_law_exponent(np.diag(z), two_slopes, rtol=0, max_modes=5).exponent == pytest.approx(1)


def test_a_flat_spectrum_has_exponent_zero_and_explains_nothing():
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    fit = power_law_exponent(rotation * [1, 2, 3, 4, 5, 6] @ rotation.T, 3 * rotation @ rotation.T)
    assert fit.exponent == pytest.approx(0, abs=1e-12)
    assert fit.r2 == 0
    assert fit.log_prefactor == pytest.approx(np.log(3))


def test_equal_eigenvalues_do_not_count_as_a_slope():
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    z = np.repeat([1.0, 2.0], 4)
    fit = power_law_exponent(rotation * z @ rotation.T, rotation * z**2 @ rotation.T)
    # Rounding splits each group of four; slopes within a group would be noise.
    assert fit.exponent == pytest.approx(2, abs=1e-9)


def test_off_diagonal_mass_is_the_frobenius_fraction():
    fit = power_law_exponent(np.diag([1.0, 2.0, 3.0]), np.array([[1.0, 2, 0], [2, 4.0, 0], [0, 0, 9.0]]))
    assert fit.off_diagonal == pytest.approx(np.sqrt(8 / (1 + 16 + 81 + 8)))


# The solvable layer


@pytest.mark.parametrize(
    ("lr", "decay", "batch_size", "z", "g", "max_lr", "pearson", "cosine"),
    [
        (0.1, 0.2, 1, (0.72632944, 0.32020104), (0.25966278, 1.15353437), 0.69767442, 0.33262594, 0.59448796),
        (0.1, 0.0, 1, (1.03529412, 0.42647059), (0.23529412, 1.17647059), 0.66666667, 0.27877774, 0.55481907),
        (0.4, 0.2, 1, (0.95052083, 1.35091146), (0.48385417, 2.18424479), 0.69767442, 0.88125815, 0.92293965),
        (0.1, 0.2, 8, (0.69811744, 0.19049753), (0.23145077, 1.02383087), 1.42011834, 0.16179293, 0.46949109),
    ],
)
def test_moments_of_the_solvable_layer_are_known(lr, decay, batch_size, z, g, max_lr, pearson, cosine):
    layer = linear_layer_moments(V, SIGMA, lr=lr, weight_decay=decay, batch_size=batch_size)
    np.testing.assert_allclose(layer.Z_out, np.diag(z), atol=6e-9)
    np.testing.assert_allclose(layer.H_out, np.diag(z), atol=6e-9)
    np.testing.assert_allclose(layer.G_out, np.diag(g), atol=6e-9)
    assert layer.max_lr == pytest.approx(max_lr, abs=6e-9)
    assert alignment(layer.Z_out, layer.G_out) == pytest.approx(pearson, abs=6e-9)
    assert alignment(layer.Z_out, layer.G_out, measure="cosine") == pytest.approx(cosine, abs=6e-9)
    np.testing.assert_allclose(layer.Z_out, layer.mean_weight @ layer.mean_weight.T + layer.fluctuation, rtol=1e-14)


@pytest.mark.parametrize(
    ("decay", "known"),
    [
        (0.2, (0.1393, 0.2705, 0.5663, 0.8179, 0.9529, 0.9964, 0.99997)),
        (1.0, (0.3420, 0.5222, 0.8071, 0.9430, 0.9886, 0.9993, 0.999995)),
    ],
)
def test_noise_aligns_gradients_with_weights(decay, known):
    largest = linear_layer_moments(V, SIGMA, lr=1e-9, weight_decay=decay).max_lr
    for fraction, expected in zip((0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99), known, strict=True):
        layer = linear_layer_moments(V, SIGMA, lr=fraction * largest, weight_decay=decay)
        digits_ = 6e-7 if expected > 0.99999 else 6e-6 if expected > 0.9999 else 6e-5
        assert alignment(layer.Z_out, layer.G_out) == pytest.approx(expected, abs=digits_)


@pytest.mark.parametrize(
    ("p", "d", "lr", "decay", "batch_size", "level"),
    [(4, 6, 0.25, 0.5, 1, 0.3), (3, 5, 0.4, 1.0, 4, 2.0)],
)
def test_simulated_sgd_has_the_predicted_moments(p, d, lr, decay, batch_size, level):
    generator = seeded()
    n_chains, n_steps, burn_in = 2000, 160, 80

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    target, root = normal(p, d) / d**0.5, normal(p, p) * (level / p) ** 0.5
    weight = (target / (1 + decay)).repeat(n_chains, 1, 1)
    z, h, g = (torch.zeros(p, p, dtype=torch.float64) for _ in range(3))
    for step in range(n_steps):
        x = normal(n_chains, batch_size, d)
        x *= d**0.5 / x.norm(dim=-1, keepdim=True)
        noise = normal(n_chains, batch_size, p) @ root.T
        output = x @ weight.mT
        error = x @ target.T + noise - output
        if step >= burn_in:
            z += torch.einsum("cij,ckj->ik", weight, weight)
            h += torch.einsum("cbi,cbk->ik", output, output) / batch_size
            g += torch.einsum("cbi,cbk->ik", error, error) / batch_size
        weight = (1 - lr * decay) * weight + lr / batch_size * error.mT @ x
    layer = linear_layer_moments(target, root @ root.T, lr=lr, weight_decay=decay, batch_size=batch_size)
    for name, total in (("Z_out", z), ("H_out", h), ("G_out", g)):
        measured, predicted = total.numpy() / (n_chains * (n_steps - burn_in)), getattr(layer, name)
        # 2000 chains of 80 correlated steps: measured to about half a percent.
        assert np.linalg.norm(measured - predicted) < 0.02 * np.linalg.norm(predicted), name


@given(lr=st.floats(0.01, 0.99), decay=st.floats(0, 2), batch_size=st.integers(1, 20), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_decay_balances_systematic_gradient_and_noise(lr, decay, batch_size, seed):
    """The balance of stationary SGD, term by term, with the expectations over x that the sphere allows."""
    rng = np.random.default_rng(seed)
    p, d = 3, 5
    target, root = rng.standard_normal((p, d)), rng.standard_normal((p, p))
    noise = root @ root.T
    rate = lr * linear_layer_moments(target, noise, lr=1e-9, weight_decay=decay, batch_size=batch_size).max_lr
    layer = linear_layer_moments(target, noise, lr=rate, weight_decay=decay, batch_size=batch_size)
    signal, fluctuation = layer.mean_weight @ layer.mean_weight.T, layer.fluctuation
    balance = (2 * decay - rate * decay**2) * layer.Z_out
    systematic = 2 * (decay * signal - fluctuation)  # E[(V - W) W^T] and its transpose
    mean_product = decay**2 * signal + fluctuation  # E[(V - W) (V - W)^T]
    squared_gradient = d * layer.G_out / batch_size + (1 - 1 / batch_size) * mean_product  # |h_in|^2 = d
    total = (1 - rate * decay) * systematic + rate * squared_gradient
    scale = np.abs(layer.Z_out).max() + rate * np.abs(squared_gradient).max()
    np.testing.assert_allclose(total, balance, rtol=0, atol=1e-12 * scale)


def test_limits_of_the_solvable_layer():
    free = linear_layer_moments(V, SIGMA, lr=0.1, weight_decay=0)
    assert alignment(free.G_out, SIGMA) == pytest.approx(1, abs=1e-14)
    slow = linear_layer_moments(V, SIGMA, lr=1e-12, weight_decay=0.5)
    np.testing.assert_allclose(slow.Z_out, V @ V.T / 2.25, atol=1e-11)
    large = linear_layer_moments(V, SIGMA, lr=0.1, weight_decay=0.2, batch_size=10**9)
    assert np.abs(large.fluctuation).max() < 1e-9
    one = linear_layer_moments([[2.0]], 0.5, lr=0.5, weight_decay=0.0)  # x is +-1: a random walk with restoring force
    assert one.fluctuation[0, 0] == pytest.approx(0.5**2 * 0.5 / (1 - 0.5**2), rel=1e-14)
    scalar, matrix = (linear_layer_moments(V, s, lr=0.1, weight_decay=0.2) for s in (0.3, 0.3 * np.eye(2)))
    np.testing.assert_array_equal(scalar.G_out, matrix.G_out)


def test_a_collapsed_layer_has_gradients_aligned_with_its_weight():
    """Classes at the corners of a simplex, full-batch descent to the stationary point of the regularised loss."""
    k, decay, radius = 4, 0.02, 2.0
    corners = torch.eye(k, dtype=torch.float64)
    for centred, factor in ((False, k), (True, k - 1)):
        means = corners - corners.mean(0) if centred else corners
        means = radius * means / means[0].norm()
        layer = nn.Linear(k, k, bias=False).double()
        with torch.no_grad():
            layer.weight.copy_(torch.randn(k, k, generator=seeded(), dtype=torch.float64) / 10)
        optimizer = torch.optim.LBFGS(
            layer.parameters(), max_iter=2000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
        )
        classes = torch.arange(k)

        def closure(layer=layer, means=means, optimizer=optimizer, classes=classes):
            optimizer.zero_grad()
            loss = F.cross_entropy(layer(means), classes) + decay / 2 * layer.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        measured = measure(layer, means, classes)[""]
        expected = factor * decay**2 / radius**2 * measured.Z_out
        # The solver stops at gradients of 1e-8 or so relative to the decay.
        np.testing.assert_allclose(measured.G_out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert crh_report({"": measured})[""].forward_GWA == pytest.approx(1, abs=1e-8)


# Refusals


GOOD = {"model": lambda: mlp([4, 5, 3], generator=seeded()).double()}


class OwnForward(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def zoo():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 3),
            "relu": nn.ReLU(),
            "grouped": nn.Conv2d(4, 4, 1, groups=2),
            "line": nn.Conv1d(4, 4, 1),
            "own": OwnForward(4, 3),
        }
    )
    return model


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.relu,), {}, TypeError, r"model must be a torch.nn.Module, got builtin_function_or_method"),
        ((nn.ReLU(),), {}, ValueError, r"model must be a module with nn.Linear or nn.Conv2d layers, got a ReLU"),
        ((nn.Conv2d(4, 4, 1, groups=2),), {}, ValueError, r"model must be a module with .* layers, got a Conv2d"),
        (
            (nn.LazyLinear(3),),
            {},
            ValueError,
            r"model must be initialised by a first forward pass, got a lazy layer ''",
        ),
        ((zoo(), "linear"), {}, TypeError, r"layers must be a sequence of names or None, got str"),
        ((zoo(), 3), {}, TypeError, r"layers must be a sequence of names or None, got int"),
        ((zoo(), [0]), {}, TypeError, r"layers\[0\] must be a string, got int"),
        ((zoo(), []), {}, ValueError, r"layers must be at least one name, got none"),
        ((zoo(), ["linear", "liner"]), {}, ValueError, r"layers\[1\] must be the name of a module .* got 'liner'"),
        ((zoo(), ["linear", "linear"]), {}, ValueError, r"layers must be distinct names, got 'linear' twice"),
        ((zoo(), ["relu"]), {}, TypeError, r"layer 'relu' must be an nn.Linear or nn.Conv2d .* got ReLU"),
        ((zoo(), ["line"]), {}, TypeError, r"layer 'line' must be an nn.Linear or nn.Conv2d .* got Conv1d"),
        ((zoo(), ["own"]), {}, TypeError, r"layer 'own' must be .* torch's own forward, got OwnForward"),
        ((zoo(), ["grouped"]), {}, ValueError, r"layer 'grouped' must be .* groups=1, got groups=2"),
        ((zoo(),), {"centered": 1}, TypeError, r"centered must be True or False, got int"),
        ((zoo(),), {"normalized": "yes"}, TypeError, r"normalized must be True or False, got str"),
    ],
)
def test_bad_models_and_layers_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        AlignmentProbe(*arguments, **options)


def test_layers_that_are_not_what_they_seem_are_left_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.own, self.line, self.spare = OwnForward(4, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 4)
            self.grouped, self.linear = nn.Conv2d(4, 4, 1, groups=2), nn.Linear(4, 3)

        def forward(self, x):
            x = self.line(self.own(x)[..., None])
            return self.linear(self.grouped(x[..., None]).flatten(1))

    x, y = batch((4,))
    assert list(measure(randomised(Net()), x, y)) == ["linear"]


X, Y = batch((4,))


@pytest.mark.parametrize(
    ("inputs", "targets", "loss_fn", "error", "message"),
    [
        (X.numpy(), Y, cross_entropy, TypeError, r"inputs must be a tensor, got ndarray"),
        (X, [0] * 23, cross_entropy, TypeError, r"targets must be a tensor, got list"),
        (X, Y[:5], cross_entropy, ValueError, r"targets must be as long as inputs \(23\), got length 5"),
        (X[:0], Y[:0], cross_entropy, ValueError, r"inputs must be of at least one sample, got shape \(0, 4\)"),
        (X[0, 0], Y, cross_entropy, ValueError, r"inputs must be of at least one sample, got shape \(\)"),
        (
            X[:, :3],
            Y,
            cross_entropy,
            ValueError,
            r"inputs must be accepted by the model, got shape \(23, 3\) and dtype",
        ),
        (X.float(), Y, cross_entropy, ValueError, r"inputs must be accepted by the model, got .* torch.float32"),
        (X, Y + 3, cross_entropy, ValueError, r"targets must be accepted by loss_fn, got .* IndexError"),
        (X, X, cross_entropy, ValueError, r"targets must be accepted by loss_fn, got shape \(23, 4\)"),
        (X, Y, "mse", TypeError, r"loss_fn must be a function, got str"),
        (X, Y, F.cross_entropy, ValueError, r"must be one loss per sample, shape \(23,\), .* got shape \(\)"),
        (X, Y, lambda o, t: o.square(), ValueError, r"must be one loss per sample, .* got shape \(23, 3\)"),
        (X, Y, lambda o, t: cross_entropy(o, t)[None], ValueError, r"one loss per sample, .* got shape \(1, 23\)"),
        (X, Y, lambda o, t: 0.5, TypeError, r"loss_fn\(output, targets\) must be a tensor, got float"),
        (X, Y, lambda o, t: (o.argmax(1) != t).double(), ValueError, r"must be differentiable .* got a constant"),
        (X, Y, lambda o, t: cross_entropy(o, t).detach(), ValueError, r"must be differentiable .* got a constant"),
        (X, Y, lambda o, t: cross_entropy(o, t) / t, ValueError, r"must be finite, got inf at index \d+"),
        (
            X,
            Y,
            lambda o, t: (o[:, 0] - o[:, 0].detach()).abs().sqrt(),
            ValueError,
            r"gradients must be finite, got oth",
        ),
        (X * float("nan"), Y, cross_entropy, ValueError, r"activations must be finite, got others in layer '0'"),
        (X * 1e300, Y, cross_entropy, ValueError, r"activations must be finite, got others in layer '0'"),
    ],
)
def test_bad_batches_are_refused(inputs, targets, loss_fn, error, message):
    model = GOOD["model"]()
    before = snapshot(model)
    with AlignmentProbe(model) as probe, pytest.raises(error, match=message):
        probe.update(inputs, targets, loss_fn)
    assert_untouched(model, before)


def test_updates_belong_inside_the_block():
    probe = AlignmentProbe(GOOD["model"]())
    with pytest.raises(ValueError, match=r"update must be called inside the `with` block of the probe, got a call out"):
        probe.update(X, Y, cross_entropy)
    with probe:
        probe.update(X, Y, cross_entropy)
    with pytest.raises(ValueError, match=r"inside the `with` block"):
        probe.update(X, Y, cross_entropy)


def test_moments_without_data_are_refused():
    probe = AlignmentProbe(GOOD["model"]())
    with pytest.raises(ValueError, match=r"update must be called before moments, .* got no data"):
        probe.moments()


@pytest.mark.parametrize(
    ("A", "B", "options", "error", "message"),
    [
        ([[1, 2, 3], [4, 5, 6]], np.eye(2), {}, ValueError, r"A must be a square matrix, got shape \(2, 3\)"),
        ([1.0, 2.0], np.eye(2), {}, ValueError, r"A must be of shape \(n, n\), got shape \(2,\)"),
        (np.zeros((0, 0)), np.eye(2), {}, ValueError, r"A must be a square matrix, got shape \(0, 0\)"),
        (np.eye(2), np.eye(3), {}, ValueError, r"B must be of the shape of A, \(2, 2\), got shape \(3, 3\)"),
        (np.eye(2), [[1, np.nan], [0, 1]], {}, ValueError, r"B must be finite, got nan at index \(0, 1\)"),
        ([[np.inf, 0], [0, 1]], np.eye(2), {}, ValueError, r"A must be finite, got inf"),
        (np.ones((2, 2)), np.eye(2), {}, ValueError, r"A must be a matrix with different entries .* got only 1"),
        (np.eye(2), np.zeros((2, 2)), {}, ValueError, r"B must be a matrix with different entries .* got only 0"),
        ([[2.0]], [[3.0]], {}, ValueError, r"A must be a matrix with different entries"),
        (np.eye(2), np.zeros((2, 2)), {"measure": "cosine"}, ValueError, r"B must be a matrix other than zero"),
        (
            np.eye(2),
            np.eye(2),
            {"measure": "cka"},
            ValueError,
            r"measure must be one of 'cosine', 'pearson', got 'cka'",
        ),
        (np.eye(2), np.eye(2), {"measure": None}, TypeError, r"measure must be one of .*, got NoneType"),
        ("A", np.eye(2), {}, TypeError, r"A must be real numbers, got str"),
        (np.eye(2) * 1j, np.eye(2), {}, TypeError, r"A must be real numbers, got dtype complex128"),
        ([[True, False], [False, True]], np.eye(2), {}, TypeError, r"A must be real numbers"),
    ],
)
def test_bad_matrices_are_refused(A, B, options, error, message):
    with pytest.raises(error, match=message):
        alignment(A, B, **options)


LAYER = LayerMoments(**{name: np.diag([1.0, 2.0]) for name in NAMES}, n_samples=3)


@pytest.mark.parametrize(
    ("moments", "options", "error", "message"),
    [
        ([LAYER], {}, TypeError, r"moments must be a dict of LayerMoments, got list"),
        ({}, {}, ValueError, r"moments must be of at least one layer, got none"),
        ({"a": np.eye(2)}, {}, TypeError, r"moments\['a'\] must be a LayerMoments, got ndarray"),
        ({"a": LAYER}, {"measure": "r2"}, ValueError, r"measure must be one of"),
        (
            {"a": LAYER, "b": LayerMoments(**{**vars(LAYER), "G_in": np.zeros((2, 2))})},
            {},
            ValueError,
            r"moments\['b'\].G_in must be a matrix with different entries .* got only 0",
        ),
        (
            {"a": LayerMoments(**{**vars(LAYER), "Z_out": np.eye(3)})},
            {},
            ValueError,
            r"moments\['a'\].Z_out must be of the shape of moments\['a'\].H_out, \(2, 2\), got shape \(3, 3\)",
        ),
    ],
)
def test_bad_moments_are_refused(moments, options, error, message):
    with pytest.raises(error, match=message):
        crh_report(moments, **options)


LADDER = np.diag([1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize(
    ("A", "B", "options", "error", "message"),
    [
        (np.eye(3, 4), LADDER, {}, ValueError, r"A must be a square matrix, got shape \(3, 4\)"),
        (LADDER, np.eye(3), {}, ValueError, r"B must be of the shape of A, \(4, 4\), got shape \(3, 3\)"),
        (np.triu(np.ones((4, 4))), LADDER, {}, ValueError, r"A must be symmetric, got an asymmetry of 1"),
        (LADDER, np.triu(np.ones((4, 4))), {}, ValueError, r"B must be symmetric"),
        (LADDER, LADDER * np.nan, {}, ValueError, r"B must be finite"),
        (np.eye(4), LADDER, {}, ValueError, r"A must be of at least two different eigenvalues, got equal ones"),
        (np.diag([1.0, 2.0]), np.eye(2), {}, ValueError, r"at least 3 usable modes, got 2"),
        (np.diag([1.0, 2.0, 1e-9, 0]), np.eye(4), {}, ValueError, r"at least 3 usable modes, got 2"),
        (LADDER, np.diag([1.0, 1.0, -1.0, 0]), {}, ValueError, r"at least 3 usable modes, got 2"),
        (-LADDER, LADDER, {}, ValueError, r"at least 3 usable modes, got 0"),
        (np.zeros((4, 4)), LADDER, {}, ValueError, r"at least 3 usable modes, got 0"),
        (LADDER, np.zeros((4, 4)), {}, ValueError, r"at least 3 usable modes, got 0"),
        (LADDER, LADDER, {"rtol": -1e-9}, ValueError, r"rtol must be >= 0 and < 1, got -1e-09"),
        (LADDER, LADDER, {"rtol": 1}, ValueError, r"rtol must be >= 0 and < 1, got 1"),
        (LADDER, LADDER, {"rtol": [1e-6]}, ValueError, r"rtol must be a single number, got shape \(1,\)"),
        (LADDER, LADDER, {"max_modes": 2}, ValueError, r"max_modes must be >= 3, got 2"),
        (LADDER, LADDER, {"max_modes": 3.0}, TypeError, r"max_modes must be an integer, got float"),
    ],
)
def test_bad_spectra_are_refused(A, B, options, error, message):
    with pytest.raises(error, match=message):
        power_law_exponent(A, B, **options)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": [1.0, 2.0]}, ValueError, r"target must be of shape \(n, n\), got shape \(2,\)"),
        ({"target": np.zeros((2, 0))}, ValueError, r"target must be a matrix with at least one entry"),
        ({"target": V + np.inf}, ValueError, r"target must be finite"),
        ({"target": V * 1e200}, ValueError, r"must be small enough for finite moments, got an overflow"),
        ({"noise_cov": np.eye(3)}, ValueError, r"noise_cov must be of shape \(2, 2\), got shape \(3, 3\)"),
        ({"noise_cov": [1.0, 1.0]}, ValueError, r"noise_cov must be of shape \(2, 2\), got shape \(2,\)"),
        ({"noise_cov": [[1, 0.5], [0, 1]]}, ValueError, r"noise_cov must be symmetric"),
        (
            {"noise_cov": [[1, 2], [2, 1]]},
            ValueError,
            r"noise_cov must be positive semi-definite, got an eigenvalue -1",
        ),
        ({"noise_cov": -0.1}, ValueError, r"noise_cov must be positive semi-definite, got an eigenvalue -0.1"),
        ({"noise_cov": np.nan}, ValueError, r"noise_cov must be finite"),
        ({"lr": 0}, ValueError, r"lr must be > 0 and < max_lr = 0.697674, got 0"),
        ({"lr": -0.1}, ValueError, r"lr must be > 0 and < max_lr = 0.697674, got -0.1"),
        ({"lr": 0.7}, ValueError, r"lr must be > 0 and < max_lr = 0.697674, got 0.7"),
        ({"lr": [0.1, 0.2]}, ValueError, r"lr must be a single number"),
        ({"lr": "fast"}, TypeError, r"lr must be real numbers, got str"),
        ({"weight_decay": -1e-3}, ValueError, r"weight_decay must be >= 0, got -0.001"),
        ({"weight_decay": 1e300}, ValueError, r"lr must be > 0 and < max_lr"),
        ({"batch_size": 0}, ValueError, r"batch_size must be >= 1, got 0"),
        ({"batch_size": 1.5}, TypeError, r"batch_size must be an integer, got float"),
        ({"batch_size": 10**400}, ValueError, r"batch_size must be at most 1e\+15"),
    ],
)
def test_bad_solvable_layers_are_refused(changes, error, message):
    arguments = {"target": V, "noise_cov": SIGMA, "lr": 0.1, "weight_decay": 0.2} | changes
    with pytest.raises(error, match=message):
        linear_layer_moments(arguments.pop("target"), arguments.pop("noise_cov"), **arguments)


def test_the_largest_learning_rate_itself_is_refused():
    largest = linear_layer_moments(V, SIGMA, lr=0.1, weight_decay=0.2).max_lr
    with pytest.raises(ValueError, match="lr must be > 0 and < max_lr"):
        linear_layer_moments(V, SIGMA, lr=largest, weight_decay=0.2)
    assert np.isfinite(linear_layer_moments(V, SIGMA, lr=largest * (1 - 1e-9), weight_decay=0.2).Z_out).all()


def test_arguments_are_not_changed():
    target, noise = V.copy(), SIGMA.copy()
    layer = linear_layer_moments(target, noise, lr=0.1, weight_decay=0.2)
    layer.Z_out[:] = 0
    assert layer.H_out.any()
    np.testing.assert_array_equal(target, V)
    A = np.diag([1.0, 2.0, 4.0])
    power_law_exponent(A, A)
    alignment(A, A)
    np.testing.assert_array_equal(A, np.diag([1.0, 2.0, 4.0]))
