"""Tests of the audit: hand counts on every architecture, every rule alone, nothing touched, and refusals."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from audit_models import (
    GLU,
    GPT,
    Attention,
    Between,
    Branching,
    Cells,
    Encoder,
    GraphConvolution,
    Grouped,
    Llama,
    LoRA,
    Mixer,
    Normalised,
    Recurrent,
    TiedAutoencoder,
    Twice,
    UNet,
    VisionTransformer,
    WeightNormed,
    WithParameter,
    convnext,
    mlp,
    normal,
    resnet18,
    shaken,
    tokens,
    vgg,
)
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune

from symlearn.audit import AuditReport, audit, physical_prune, rebalance
from symlearn.symmetry import UnitSymmetry

# Exact symmetries change the outputs by rounding alone: measured up to 4e-15 through 20 layers.
ROUNDING = 1e-13


def total(report, kind, what="units"):
    return sum(getattr(each, what) for each in report.symmetries if each.kind == kind)


def counts(report):
    """Units of rescaling and scale, dimension of matrices, translations, mirrors, spaces; and heads."""
    units = [total(report, kind) for kind in ("rescaling", "scale")]
    dimensions = [total(report, kind, "dimension") for kind in ("gl", "translation")]
    n_spaces = sum(each.kind == "permutation" for each in report.symmetries)
    groups = [each.units for each in report.symmetries if each.kind == "heads"]
    return (*units, *dimensions, total(report, "mirror"), n_spaces, groups)


# name: model, inputs, (rescaling, scale, gl, translation, mirrors, permutation spaces, heads)
ZOO = {
    # hidden units 32 and 16
    "mlp": (lambda: mlp(64, 32, 16, 10), lambda: normal(8, 64), (48, 0, 0, 0, 0, 2, [])),
    "tanh": (lambda: mlp(64, 32, 16, 10, activation=nn.Tanh), lambda: normal(8, 64), (0, 0, 0, 0, 48, 2, [])),
    # 5^2 + 4^2
    "linear": (lambda: mlp(6, 5, 4, 3, activation=None), lambda: normal(8, 6), (0, 0, 41, 0, 0, 2, [])),
    # 16 + 32 + 64 + 64 channels and 32 units
    "vgg": (vgg, lambda: normal(2, 3, 16, 16), (208, 0, 0, 0, 0, 5, [])),
    # the gain of each channel against the next layer, and each convolution (176 channels) against its norm
    "vgg batch norm": (lambda: vgg(True), lambda: normal(2, 3, 16, 16), (208, 176, 0, 0, 176, 5, [])),
    # width 8: rescaling 2 (8 + 16 + 32 + 64) in blocks and 8 + 16 + 32 + 64 streams; scale 8 + 4*8 + 5 (16 + 32 + 64)
    "resnet18": (lambda: resnet18(8), lambda: normal(2, 3, 32, 32), (360, 600, 0, 0, 600, 12, [])),
    # norm gains 4*32, and the tied stream against the last norm; 2 blocks * 2 * 4 heads * 8^2; translations of 12
    # positions and in each block 33 + 129 of the two layers that write into the stream
    "gpt": (GPT, lambda: tokens(2, 12, high=50), (129, 0, 1024, 336, 129, 19, [4, 4])),
    # 5 norms * 32, 2 blocks * 16 rotary pairs; the stream; values only; 50 tokens and 2 (33 + 129)
    "gpt rotary": (
        lambda: GPT(tied=False, rotary=True),
        lambda: tokens(2, 12, high=50),
        (192, 1, 512, 374, 193, 11, [4, 4]),
    ),
    # 2*32 hidden, last norm 16, three norms and the embedding one common scale each; 2 layers * 2 * 2 heads * 8^2
    "encoder post": (Encoder, lambda: normal(2, 6, 8), (84, 0, 512, 100, 20, 11, [2, 2])),
    # 4 norms * 16 and the stream
    "encoder pre": (lambda: Encoder(True, "gelu"), lambda: normal(2, 6, 8), (65, 0, 512, 0, 65, 11, [2, 2])),
    # gain of two norms and of two layer scales 16 each, last norm 16, the stream; two depthwise convolutions
    "convnext": (convnext, lambda: normal(2, 3, 32, 32), (81, 2, 0, 2, 83, 3, [])),
    "swiglu": (lambda: GLU(F.silu), lambda: normal(8, 6), (9, 0, 0, 0, 9, 1, [])),
    "reglu": (lambda: GLU(F.relu), lambda: normal(8, 6), (18, 0, 0, 0, 9, 1, [])),
    "lora": (LoRA, lambda: normal(8, 8), (0, 0, 9, 0, 0, 1, [])),
    "twice": (Twice, lambda: normal(8, 4), (7, 0, 0, 0, 0, 1, [])),
    "branch": (Branching, lambda: normal(8, 5), (6, 0, 0, 0, 6, 2, [])),
    # two key/value heads: queries and keys, values and outputs, 4^2 each; the norm's 16 gains
    "grouped query": (
        lambda: nn.Sequential(nn.LayerNorm(16), Attention(16, 4, 2)),
        lambda: normal(2, 5, 16),
        (16, 0, 64, 0, 16, 4, [2]),
    ),
    "attention by hand": (
        lambda: nn.Sequential(nn.LayerNorm(16), Attention(16, 4, manual=True)),
        lambda: normal(2, 5, 16),
        (16, 0, 128, 0, 16, 8, [4]),
    ),
    # gains 16 and 4 against 4; 4 query and 4 key heads are normalised; values 4 * 4^2
    "shared query and key norm": (
        lambda: nn.Sequential(nn.LayerNorm(16), Attention(16, 4, qk_norm=True)),
        lambda: normal(2, 5, 16),
        (20, 8, 64, 0, 22, 5, [4]),
    ),
    "shared norm and rotary": (
        lambda: nn.Sequential(nn.LayerNorm(16), Attention(16, 4, 2, qk_norm=True, rotary=True)),
        lambda: normal(2, 5, 16),
        (18, 6, 32, 0, 20, 2, [2]),
    ),
    # 3 * 16 gains, 2 key/value heads * 2 rotary pairs, 24 gated units; the stream; 2 * 4^2; signs of 16 stream units
    "llama": (Llama, lambda: tokens(2, 6, high=20), (76, 1, 32, 0, 92, 4, [2])),
    "llama, rms_norm": (lambda: Llama(nn.RMSNorm), lambda: tokens(2, 6, high=20), (76, 1, 32, 0, 92, 4, [2])),
    # 6 gains against the last layer, and all 7 of the first layer together against the second; 7 + 6 directions
    "weight norm": (WeightNormed, lambda: normal(8, 5), (7, 13, 0, 0, 13, 2, [])),
    "normalised output": (Normalised, lambda: normal(8, 5), (7, 1, 0, 0, 0, 1, [])),
    "lstm": (Recurrent, lambda: normal(2, 4, 6), (12, 0, 0, 0, 5, 2, [])),
    "lstm of two layers": (lambda: Recurrent(num_layers=2), lambda: normal(2, 4, 6), (12, 0, 0, 0, 10, 3, [])),
    "gru": (lambda: Recurrent(nn.GRU), lambda: normal(2, 4, 6), (12, 0, 0, 0, 5, 2, [])),
    "rnn": (lambda: Recurrent(nn.RNN), lambda: normal(2, 4, 6), (12, 0, 0, 0, 5, 2, [])),
    "rnn relu": (
        lambda: Recurrent(nn.RNN, nonlinearity="relu"),
        lambda: normal(2, 4, 6),
        (17, 0, 0, 0, 0, 2, []),
    ),
    "cells": (Cells, lambda: normal(3, 4, 5), (0, 0, 0, 0, 7, 2, [])),
    # W^T f(Wx): the scale of the encoder and of the decoder are one and the same
    "tied autoencoder": (TiedAutoencoder, lambda: normal(8, 8), (0, 0, 0, 0, 0, 1, [])),
    # groups cut 4 and 5 channels into 3 + 1 and 2 + 3, then 3 groups of 2
    "u-net": (UNet, lambda: normal(4, 1, 8, 8), (20, 0, 0, 0, 0, 4, [])),
    # gains of three norms, and the stream; 2 * 4 heads * 4^2; patches 48 + 1, token 1, places 17, layers 17 + 65
    "vision transformer": (VisionTransformer, lambda: normal(3, 3, 16, 16), (48, 1, 128, 149, 49, 10, [4])),
    # one gain for all channels where the tokens are mixed, 10, 8 gains, 12
    "mixer": (Mixer, lambda: normal(5, 6, 8), (31, 0, 0, 0, 9, 2, [])),
    "graph convolution": (GraphConvolution, lambda: normal(7, 4), (8, 0, 0, 0, 0, 1, [])),
    "grouped convolution": (Grouped, lambda: normal(2, 3, 4, 4), (15, 0, 0, 0, 0, 6, [])),
}


@pytest.fixture(autouse=True)
def seeded():
    """Initialisations come from torch's global generator."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def reports():
    made = {}

    def get(name):
        if name not in made:
            build, inputs, _ = ZOO[name]
            torch.manual_seed(0)
            model = shaken(build())
            made[name] = (model, inputs(), audit(model, inputs()))
        return made[name]

    return get


@pytest.mark.parametrize("name", ZOO)
def test_the_symmetries_of_an_architecture_are_those_counted_by_hand(reports, name):
    _, _, report = reports(name)
    assert counts(report) == ZOO[name][2]
    assert report.flat_dimension == sum(ZOO[name][2][:4])
    assert report.barriers == ()


@pytest.mark.parametrize("name", ZOO)
def test_exact_symmetries_change_nothing_but_rounding_and_near_misses_change_a_lot(reports, name):
    _, _, report = reports(name)
    for each in report.symmetries:
        if each.status == "exact":
            assert each.violation < ROUNDING
        else:
            assert each.status == "exact up to eps"
            assert each.violation < 1e-3
    for each in report.broken:
        assert each.violation > 1e-3 or each.status == "frozen"


@pytest.mark.parametrize(
    "name", ["mlp", "vgg batch norm", "gpt", "llama", "twice", "lora", "weight norm", "grouped query"]
)
def test_the_generator_is_orthogonal_to_the_gradient_of_every_loss(reports, name):
    # (A theta) . grad = 0: the derivative of an invariant function along its orbit.
    model, x, report = reports(name)
    model = copy.deepcopy(model).double().eval()
    x = x.double() if x.is_floating_point() else x
    loss = model(x).square().sum()
    gradients = (
        dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))
        if all(p.requires_grad for p in model.parameters())
        else {
            n: torch.autograd.grad(loss, p, retain_graph=True)[0]
            for n, p in model.named_parameters()
            if p.requires_grad
        }
    )
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    size = sum(gradient.square().sum() for gradient in gradients.values()).sqrt()
    checked = 0
    for each in report.symmetries:
        if isinstance(each.symmetry, UnitSymmetry) and each.status == "exact":
            step = each.symmetry.generator_product(tensors)
            slope = sum((step[n] * gradients[n]).sum() for n in step if n in gradients)
            length = sum(step[n].square().sum() for n in step).sqrt()
            assert abs(slope) < 1e-11 * size * length
            checked += 1
    assert checked


def test_near_misses_are_listed_with_their_size(reports):
    for name, kind in [("tanh", "rescaling"), ("gpt", "rescaling"), ("swiglu", "rescaling")]:
        _, _, report = reports(name)
        assert all(each.kind == kind and each.status == "broken" for each in report.broken)
        assert report.broken
    _, _, report = reports("tanh")
    assert [each.units for each in report.broken] == [32, 16]
    assert audit(shaken(mlp(4, 5, 2, activation=nn.Tanh)), normal(4, 4), broken=False).broken == ()


def test_zeros_at_the_start_do_not_make_a_near_miss_look_exact():
    model = mlp(6, 8, 4, activation=nn.GELU)
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    report = audit(model, normal(8, 6))
    assert report.flat_dimension == 0
    assert [(each.units, each.status) for each in report.broken] == [(8, "broken")]
    assert report.units[0].dead == tuple(range(8))  # nobody reads them as yet


def test_a_fresh_batch_norm_is_verified_away_from_its_initial_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 2, 1))
    report = audit(model, normal(2, 3, 6, 6))
    assert counts(report) == (0, 4, 0, 0, 8, 1, [])
    (scale,) = [each.symmetry for each in report.symmetries if each.kind == "scale"]
    assert scale.buffers == ("1.running_mean", "1.running_var")
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_a_function_that_saturates_beyond_the_data_is_still_a_near_miss():
    model = shaken(mlp(6, 8, 4, activation=nn.ReLU6))
    x = 0.5 * normal(8, 6)
    assert float(model[0](x).detach().abs().max()) < 3  # nothing saturates on these inputs
    report = audit(model, x)
    assert report.flat_dimension == 0
    assert [each.status for each in report.broken] == ["broken"]


def test_a_family_that_moves_a_frozen_parameter_is_set_apart(reports):
    model = shaken(mlp(4, 5, 2))
    model[0].weight.requires_grad_(False)
    report = audit(model, normal(4, 4))
    assert [each.status for each in report.broken if each.kind == "rescaling"] == ["frozen"]
    assert report.flat_dimension == 0
    assert "0.weight" in report.broken[0].note


def test_the_branch_taken_is_traced_and_said_to_be_the_branch_taken(reports):
    _, _, report = reports("branch")
    assert "path taken" in report.tracer


def test_squared_relu_has_exponents_one_and_minus_two():
    model = shaken(Between(lambda x: x.relu().square()))
    (finding,) = [each for each in audit(model, normal(8, 6)).symmetries if each.kind == "rescaling"]
    assert sorted({exponent for _, exponent, _ in finding.symmetry.terms}) in ([-2, 1], [-1, 0.5])
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    ratio = next(exponent for name, exponent, _ in finding.symmetry.terms if name == "a.weight")
    expected = (
        tensors["a.weight"].square().sum(1) + tensors["a.bias"].square() - 2 * tensors["last.weight"].square().sum(0)
    )
    torch.testing.assert_close(finding.symmetry.charge(tensors), ratio * expected)


# One rule each: function of 8 units, then (rescaling, scale, gl, translation, mirrors, permutation spaces, heads).
RULES = {
    "relu": (torch.relu, (8, 0, 0, 0, 0, 1, [])),
    "relu_": (lambda x: x.relu_(), (8, 0, 0, 0, 0, 1, [])),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), (8, 0, 0, 0, 0, 1, [])),
    "abs": (torch.abs, (8, 0, 0, 0, 8, 1, [])),
    "square": (torch.square, (8, 0, 0, 0, 8, 1, [])),
    "cube": (lambda x: x**3, (8, 0, 0, 0, 8, 1, [])),
    "sign": (torch.sign, (0, 8, 0, 0, 8, 1, [])),
    "identity": (lambda x: x, (0, 0, 64, 0, 0, 1, [])),
    "negative": (torch.neg, (0, 0, 64, 0, 0, 1, [])),
    "times two": (lambda x: 2 * x, (0, 0, 64, 0, 0, 1, [])),
    "divided": (lambda x: x / 3, (0, 0, 64, 0, 0, 1, [])),
    "tanh": (torch.tanh, (0, 0, 0, 0, 8, 1, [])),
    "sigmoid": (torch.sigmoid, (0, 0, 0, 0, 0, 1, [])),
    "exp": (torch.exp, (0, 0, 0, 0, 0, 1, [])),
    "gelu": (F.gelu, (0, 0, 0, 0, 0, 1, [])),
    "softplus": (F.softplus, (0, 0, 0, 0, 0, 1, [])),
    "cosine": (torch.cos, (0, 0, 0, 0, 8, 1, [])),
    "clamp": (lambda x: x.clamp(-1, 1), (0, 0, 0, 0, 8, 1, [])),
    "clamp from below": (lambda x: x.clamp_min(0), (8, 0, 0, 0, 0, 1, [])),
    "rsqrt of square": (lambda x: torch.rsqrt(x.square()), (0, 8, 0, 0, 8, 1, [])),
    "plus one": (lambda x: x + 1, (0, 0, 0, 0, 0, 1, [])),
    "plus zero": (lambda x: x + 0, (0, 0, 64, 0, 0, 1, [])),
    "softmax": (lambda x: x.softmax(-1), (0, 0, 0, 7, 0, 1, [])),
    "cat": (lambda x: torch.cat([x[:, 4:], x[:, :4]], 1), (0, 0, 64, 0, 0, 1, [])),
    "flip": (lambda x: x.flip(1), (0, 0, 64, 0, 0, 1, [])),
    "roll": (lambda x: x.roll(1, 1), (0, 0, 64, 0, 0, 1, [])),
    "view": (lambda x: x.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8), (0, 0, 64, 0, 0, 1, [])),
    "masked_fill": (lambda x: x.masked_fill(torch.zeros(len(x), 1, dtype=torch.bool), 0.0), (8, 0, 0, 0, 8, 1, [])),
    "where": (lambda x: torch.where(x > 0, x, 0.5 * x), (8, 0, 0, 0, 0, 1, [])),
    "layer norm": (lambda x: F.layer_norm(x, (8,)), (0, 1, 0, 9 - 2, 1, 1, [])),
    "rms norm": (lambda x: F.rms_norm(x, (8,)), (0, 1, 0, 0, 8, 1, [])),
    "group norm": (lambda x: F.group_norm(x, 2), (0, 2, 0, 0, 2, 2, [])),
    "normalize": (lambda x: F.normalize(x, dim=-1), (0, 1, 0, 0, 8, 1, [])),
    "times its mean": (lambda x: x * x.mean(-1, keepdim=True), (1, 0, 0, 0, 1, 1, [])),
    "divided by its norm": (lambda x: x / x.norm(dim=-1, keepdim=True), (0, 1, 0, 0, 8, 1, [])),
    "square over square plus eps": (
        lambda x: x.square() / (x.square().sum(-1, keepdim=True) + 1e-6),
        (0, 1, 0, 0, 8, 1, []),
    ),
    "cumsum": (lambda x: x.relu().cumsum(0), (8, 0, 0, 0, 0, 1, [])),
    "constant table": (lambda x: x * torch.arange(1.0, 9.0), (8, 0, 0, 0, 8, 0, [])),
    "glu": (lambda x: torch.cat([F.glu(x), F.glu(x)], -1), (4, 0, 0, 0, 4, 1, [])),
    "dropout": (lambda x: F.dropout(x, 0.5, training=False), (0, 0, 64, 0, 0, 1, [])),
    "sort": (lambda x: x.sort(-1).values, (0, 0, 0, 0, 0, 0, [])),
}


@pytest.mark.parametrize("name", RULES)
def test_the_rule_of_one_operation_gives_the_symmetries_of_the_layer_around_it(name):
    function, expected = RULES[name]
    report = audit(shaken(Between(function)), normal(16, 6))
    assert counts(report) == expected
    assert all(each.violation < 1e-7 for each in report.symmetries if each.status == "exact")


class Indexed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Parameter(normal(10, 6)), nn.Linear(6, 2)

    def forward(self, ids):
        return self.last((2 * self.table[ids]).relu().sum(1))


def test_rows_chosen_by_the_data_have_one_scale_and_one_order():
    report = audit(Indexed(), tokens(3, 4, high=10))
    assert counts(report) == (6, 0, 0, 0, 0, 1, [])


TWO = {
    "add": (torch.add, (0, 0, 64, 0, 0, 1, [])),
    "subtract": (torch.sub, (0, 0, 64, 0, 0, 1, [])),
    "multiply": (torch.mul, (16, 0, 0, 0, 16, 1, [])),
    "divide by absolute value": (lambda a, b: a / b.abs(), (8, 8, 0, 0, 16, 1, [])),
    "maximum": (torch.maximum, (8, 0, 0, 0, 0, 1, [])),
    "where": (lambda a, b: torch.where(a > 0, a, b), (8, 0, 0, 0, 0, 1, [])),
    "relu of a gate": (lambda a, b: a.relu() * b, (16, 0, 0, 0, 8, 1, [])),
    "inner product": (lambda a, b: (a * b).sum(-1, keepdim=True).expand(-1, 8), (9, 0, 0, 0, 9, 1, [])),
    "einsum": (lambda a, b: torch.einsum("ni,ni->n", a, b)[:, None].expand(-1, 8), (1, 0, 64, 0, 1, 1, [])),
}


@pytest.mark.parametrize("name", TWO)
def test_the_rule_of_an_operation_of_two_branches(name):
    function, expected = TWO[name]
    report = audit(shaken(Between(function, two=True)), normal(16, 6))
    assert counts(report)[:6] == expected[:6]


WITH_PARAMETER = {
    "gain": (lambda x, p: x * p, (8,), (16, 0, 0, 0, 16, 1)),
    "bias": (lambda x, p: x + p, (8,), (0, 0, 64, 0, 0, 1)),
    "matrix": (lambda x, p: x @ p, (8, 8), (0, 0, 128, 0, 0, 2)),
    "transposed": (lambda x, p: x @ p.T, (8, 8), (0, 0, 128, 0, 0, 2)),
    "einsum": (lambda x, p: torch.einsum("ni,oi->no", x, p), (8, 8), (0, 0, 128, 0, 0, 2)),
    "halves": (lambda x, p: torch.cat([x @ p[:, :4], x @ p[:, 4:]], 1).relu(), (8, 8), (8, 0, 64, 0, 0, 3)),
    "prelu": (F.prelu, (8,), (8, 0, 0, 0, 0, 1)),
    "temperature": (lambda x, p: x * p.exp(), (1,), (0, 0, 64, 0, 0, 1)),
}


@pytest.mark.parametrize("name", WITH_PARAMETER)
def test_the_rule_of_an_operation_with_a_parameter(name):
    function, shape, expected = WITH_PARAMETER[name]
    report = audit(shaken(WithParameter(function, *shape)), normal(16, 6))
    assert counts(report)[:6] == expected


@pytest.mark.parametrize(
    "build", [lambda: vgg(True), GPT, Recurrent, WeightNormed], ids=["vgg", "gpt", "lstm", "weight norm"]
)
def test_nothing_of_the_users_is_touched(build):
    model = shaken(build()).train()
    x = tokens(2, 12, high=50) if isinstance(model, GPT) else normal(2, 3, 16, 16)
    x = normal(2, 4, 6) if isinstance(model, Recurrent) else normal(8, 5) if isinstance(model, WeightNormed) else x
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    before = {name: (tensor, tensor.detach().clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    given, hooks = x.clone(), len(model._forward_hooks)
    torch.manual_seed(7)
    expected, default = torch.random.get_rng_state(), torch.get_default_dtype()
    audit(model, x)
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert torch.get_default_dtype() == default
    assert torch.is_grad_enabled()
    assert calls == []
    assert len(model._forward_hooks) == hooks
    assert all(module.training for module in model.modules())
    assert torch.equal(x, given)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0]
        assert torch.equal(tensor, before[name][1])
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())


def test_the_same_seed_gives_the_same_report():
    model, x = shaken(mlp(6, 5, 4, 3)), normal(8, 6)
    first, second = audit(model, x, seed=3).to_dict(), audit(model, x, seed=3).to_dict()
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_only_what_is_asked_for_is_searched():
    model, x = shaken(GPT(blocks=1)), tokens(2, 12, high=50)
    kinds = {each.kind for each in audit(model, x, discover=["mirror"]).symmetries}
    assert kinds == {"mirror"}
    kinds = {each.kind for each in audit(model, x, discover=("permutation",)).symmetries}
    assert kinds == {"permutation", "heads"}
    assert {each.kind for each in audit(model, x, discover=["rescaling"]).symmetries} == {
        "rescaling",
        "gl",
        "translation",
    }
    assert audit(model, x, discover=()).symmetries == ()


@pytest.mark.parametrize("name", ZOO)
def test_a_finding_moved_far_keeps_the_outputs_on_other_inputs_and_comes_back(reports, name):
    model, x, report = reports(name)
    model = copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(7)
    if x.is_floating_point():
        x = 3 * torch.randn(x.shape, dtype=torch.float64, generator=generator)
    else:
        x = torch.randint(int(x.max()), x.shape, generator=generator)
    tensors = {n: t.detach() for n, t in (dict(model.named_parameters()) | dict(model.named_buffers())).items()}
    output = model(x)
    for each in report.symmetries:
        if each.symmetry is None or each.status != "exact":
            continue
        if each.kind in ("permutation", "heads"):
            there = torch.randperm(each.units, generator=generator)
            back = there.argsort()
        elif each.kind == "mirror":
            there = back = torch.randint(2, (each.units,), generator=generator)
        else:
            shape = each.symmetry.charge(tensors).shape
            there = torch.randn(shape, dtype=torch.float64, generator=generator) / (
                shape[-1] if each.kind == "gl" else 1
            )
            back = -there
        moved = each.symmetry.act(tensors, there)
        torch.testing.assert_close(functional_call(model, moved, (x,)), output, rtol=1e-8, atol=1e-8)
        again = each.symmetry.act(moved, back)
        for n in each.symmetry.names:
            torch.testing.assert_close(again[n], tensors[n], rtol=1e-10, atol=1e-12)


def test_imbalance_is_zero_where_both_sides_have_one_norm():
    model = mlp(3, 2, 3)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
        model[2].weight.fill_(1.0)
    finding = audit(model, normal(8, 3)).symmetries[0]
    assert finding.imbalance == 0
    with torch.no_grad():
        model[2].weight.mul_(3.0)  # (9 - 1) / (9 + 1)
    assert audit(model, normal(8, 3)).symmetries[0].imbalance == pytest.approx(0.8)


# The rank of the Jacobian bounds the flat directions; with these models the audit explains all of them.
COMPLETE = {
    "relu": (lambda: mlp(6, 8, 7, 3), lambda: 3 * normal(400, 6), 15),
    "tanh": (lambda: mlp(6, 8, 7, 3, activation=nn.Tanh), lambda: 3 * normal(400, 6), 0),
    "swiglu": (lambda: GLU(F.silu), lambda: normal(100, 6), 9),
    "reglu": (lambda: GLU(F.relu), lambda: normal(100, 6), 18),
}


@pytest.mark.parametrize("name", COMPLETE)
def test_the_flat_directions_are_all_that_the_jacobian_has(name):
    build, inputs, dimension = COMPLETE[name]
    torch.manual_seed(4)  # every ReLU is on for some samples and off for others: one that is always on adds a shift
    model, x = build().double(), inputs().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    params = {n: p.detach() for n, p in model.named_parameters()}
    jacobian = torch.func.jacrev(lambda p: functional_call(model, p, (x,)))(params)
    matrix = torch.cat([j.reshape(x.shape[0] * model(x).shape[1], -1) for j in jacobian.values()], 1)
    values = torch.linalg.svdvals(matrix)
    rank = int((values > 1e-9 * values[0]).sum())
    assert matrix.shape[1] - rank == dimension == audit(model, x).flat_dimension


def test_dead_and_duplicate_and_silent_units_are_counted():
    model = shaken(mlp(8, 12, 9, 3))
    with torch.no_grad():
        model[2].bias.fill_(1.0)
        model[2].weight[:, 3] = 0  # nobody reads unit 3
        model[0].weight[5], model[0].bias[5] = 0.0, 0.0  # nothing writes into unit 5
        model[0].weight[7], model[0].bias[7] = 2.5 * model[0].weight[2], 2.5 * model[0].bias[2]
        model[0].weight[9], model[0].bias[9] = model[0].weight[4], model[0].bias[4]
        model[2].bias[1] = -1e3  # never on
    first, second = audit(model, normal(32, 8)).units
    assert (first.space, first.units, first.dead) == ("0.weight", 12, (3, 5))
    assert first.duplicates == ((2, 7), (4, 9))
    assert (second.dead, second.silent) == ((), (1,))


def test_parallel_units_are_no_duplicates_where_units_cannot_be_rescaled():
    model = shaken(mlp(8, 6, 3, activation=nn.Tanh))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 2.0 * model[0].weight[0], 2.0 * model[0].bias[0]
        model[0].weight[3], model[0].bias[3] = model[0].weight[2], model[0].bias[2]
    assert audit(model, normal(16, 8)).units[0].duplicates == ((2, 3),)


def test_the_bias_of_the_keys_is_inert(reports):
    _, _, report = reports("attention by hand")
    assert report.inert["1.k.bias"] == 16
    assert "1.q.bias" not in report.inert


def test_nothing_but_running_statistics_moves_beside_the_parameters(reports):
    spectral = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    found = [audit(shaken(spectral), normal(9, 4)), reports("graph convolution")[2], reports("vgg batch norm")[2]]
    moved = {name for report in found for each in report.symmetries for name in getattr(each.symmetry, "buffers", ())}
    assert moved
    assert all(name.endswith(("running_mean", "running_var")) for name in moved)


def test_a_parameter_with_two_names_counts_once():
    model = shaken(GPT(blocks=1))
    report = audit(model, tokens(2, 12, high=50))
    names = [name for each in report.symmetries for name in each.incoming + each.outgoing]
    assert "head.weight" not in names
    assert report.n_parameters == sum(parameter.numel() for parameter in model.parameters())


class Hidden(nn.Module):
    """A parameter with no operation that any tracer could follow."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return torch.from_numpy(self.layer(x).detach().numpy().copy())


class Noisy(Hidden):
    def forward(self, x):
        return self.layer(x) + torch.rand(len(x), 3)


class Exploding(Hidden):
    def forward(self, x):
        return self.layer(x) / 0.0


class Counting(Hidden):
    def forward(self, x):
        return (self.layer(x) > 0).sum()


class Single(Hidden):
    """Insists on single precision."""

    def forward(self, x):
        if self.layer.weight.dtype != torch.float32:
            raise RuntimeError("single precision only")
        return self.layer(x)


class Locked(Hidden):
    def __deepcopy__(self, memo):
        raise TypeError("no copies")


@pytest.mark.parametrize("build", [Hidden, Noisy, Exploding, Counting, Single, Locked])
def test_a_model_that_cannot_be_analysed_gets_an_honest_report(build):
    report = audit(build(), normal(4, 4))
    assert isinstance(report, AuditReport)
    assert report.symmetries == report.broken == report.units == ()
    if build is not Hidden:
        assert report.tracer.startswith("untraceable")
        assert report.barriers == ("whole model",)
    json.dumps(report.to_dict())
    assert "flat directions" in str(report)


def test_an_unknown_operation_is_a_barrier_and_the_rest_is_still_analysed():
    report = audit(shaken(nn.Sequential(mlp(6, 5, 4), Sorted(), mlp(4, 3, 2))), normal(8, 6))
    assert report.barriers == ("sort",)
    assert total(report, "rescaling") == 5 + 3


class Sorted(nn.Module):
    def forward(self, x):
        return x.sort(-1).values


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        raise KeyError("my own mistake")


def test_what_the_model_itself_raises_is_raised():
    with pytest.raises(KeyError, match="my own mistake"):
        audit(Failing(), normal(4, 4))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        audit(mlp(4, 3, 2), normal(4, 5))
    with pytest.raises(TypeError, match="positional argument"):
        audit(mlp(4, 3, 2), (normal(4, 4), normal(4, 4)))


def broken_model(change):
    model = mlp(4, 3, 2)
    with torch.no_grad():
        change(model)
    return model


def with_inf(model):
    model[2].bias[1] = math.inf


def with_nan(model):
    model[0].weight[0, 0] = math.nan


X = normal(4, 4)
BAD = {
    "no module": ({"model": torch.relu}, TypeError, "model must be a torch.nn.Module, got builtin"),
    "a class": ({"model": nn.Linear}, TypeError, "model must be a torch.nn.Module, got type"),
    "a state dict": ({"model": mlp(4, 3, 2).state_dict()}, TypeError, "model must be"),
    "none": ({"model": None}, TypeError, "model must be a torch.nn.Module, got NoneType"),
    "no parameters": ({"model": nn.ReLU()}, ValueError, "model must be a module with parameters, got ReLU"),
    "nan parameter": ({"model": broken_model(with_nan)}, ValueError, "parameter '0.weight' must be finite"),
    "inf parameter": ({"model": broken_model(with_inf)}, ValueError, "parameter '2.bias' must be finite"),
    "lazy": ({"model": nn.Sequential(nn.LazyLinear(3))}, ValueError, "'0.weight' must be initialised"),
    "meta": ({"model": nn.Linear(4, 3, device="meta")}, ValueError, "parameter 'weight' must be a tensor with values"),
    "empty parameter": (
        {"model": nn.Sequential(nn.Linear(4, 3), nn.ParameterList([nn.Parameter(torch.zeros(0))]))},
        ValueError,
        "must be of at least one entry",
    ),
    "inputs none": ({"inputs": None}, TypeError, "inputs must be a tensor or a tuple of tensors, got NoneType"),
    "inputs array": ({"inputs": X.numpy()}, TypeError, "inputs must be a tensor or a tuple of tensors, got ndarray"),
    "inputs dict": ({"inputs": {"x": X}}, TypeError, "inputs must be a tensor or a tuple of tensors, got dict"),
    "inputs loader": ({"inputs": iter([X])}, TypeError, "inputs must be a tensor or a tuple of tensors"),
    "inputs number": ({"inputs": 3.0}, TypeError, "inputs must be a tensor or a tuple of tensors, got float"),
    "inputs string": ({"inputs": "x"}, TypeError, "inputs must be a tensor or a tuple of tensors, got str"),
    "tuple of lists": ({"inputs": ([1.0, 2.0],)}, TypeError, r"inputs\[0\] must be a tensor, got list"),
    "second none": ({"inputs": (X, None)}, TypeError, r"inputs\[1\] must be a tensor, got NoneType"),
    "no inputs": ({"inputs": ()}, ValueError, "inputs must be at least one tensor, got none"),
    "nan inputs": ({"inputs": X / 0 * 0}, ValueError, "inputs must be finite, got inf or nan"),
    "inf inputs": ({"inputs": (X, X / 0)}, ValueError, r"inputs\[1\] must be finite"),
    "empty inputs": ({"inputs": X[:0]}, ValueError, "inputs must be of at least one entry"),
    "sparse inputs": ({"inputs": X.to_sparse()}, ValueError, "inputs must be a dense tensor"),
    "meta inputs": ({"inputs": X.to("meta")}, ValueError, "inputs must be a tensor with values"),
    "kwargs list": ({"kwargs": [1]}, TypeError, "kwargs must be a dict of keyword arguments or None, got list"),
    "kwargs of numbers": ({"kwargs": {1: 2}}, TypeError, "kwargs must be a dict of keyword arguments"),
    "kwargs nan": ({"kwargs": {"mask": X / 0}}, ValueError, r"kwargs\['mask'\] must be finite"),
    "tol zero": ({"tol": 0.0}, ValueError, "tol must be > 0, got 0"),
    "tol negative": ({"tol": -1e-7}, ValueError, "tol must be > 0, got -1e-07"),
    "tol nan": ({"tol": math.nan}, ValueError, "tol must be finite, got nan"),
    "tol string": ({"tol": "small"}, TypeError, "tol must be"),
    "tol array": ({"tol": [1e-7, 1e-8]}, ValueError, "tol must be a single number"),
    "amount zero": ({"amount": 0}, ValueError, "amount must be > 0, got 0"),
    "amount inf": ({"amount": math.inf}, ValueError, "amount must be finite, got inf"),
    "amount none": ({"amount": None}, TypeError, "amount must be"),
    "discover string": ({"discover": "mirror"}, TypeError, "discover must be a sequence"),
    "discover unknown": ({"discover": ("rotation",)}, ValueError, "discover must be some of .* got 'rotation'"),
    "discover number": ({"discover": 3}, TypeError, "discover must be a sequence"),
    "discover numbers": ({"discover": (3,)}, ValueError, "discover must be some of"),
    "broken number": ({"broken": 1}, TypeError, "broken must be True or False, got int"),
    "seed float": ({"seed": 0.5}, TypeError, "seed must be an integer, got float"),
    "seed negative": ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
    "seed bool": ({"seed": True}, TypeError, "seed must be an integer, got bool"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words(name):
    changed, error, message = BAD[name]
    arguments = {"model": mlp(4, 3, 2), "inputs": X} | changed
    with pytest.raises(error, match=message):
        audit(arguments.pop("model"), arguments.pop("inputs"), **arguments)


def test_keyword_arguments_reach_the_model():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = normal(2, 5, 8)
    report = audit(shaken(model), (x, x, x), kwargs={"need_weights": False})
    assert total(report, "gl", "dimension") == 2 * 2 * 4**2
    assert audit(shaken(mlp(4, 3, 2)), (), kwargs={"input": normal(4, 4)}).flat_dimension == 3


def test_a_packed_projection_used_for_different_inputs_is_taken_apart():
    model = shaken(nn.MultiheadAttention(16, 2, batch_first=True))
    report = audit(model, (normal(2, 5, 16), normal(2, 4, 16, seed=2), normal(2, 4, 16, seed=3)))
    assert total(report, "gl", "dimension") == 2 * 2 * 8**2
    assert [each.units for each in report.symmetries if each.kind == "heads"] == [2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_in_other_precisions_are_analysed_in_double(dtype):
    report = audit(shaken(mlp(4, 5, 2)).to(dtype), normal(8, 4).to(dtype))
    assert report.flat_dimension == 5
    assert report.symmetries[0].violation < ROUNDING


def test_it_works_where_gradients_are_off():
    with torch.no_grad():
        assert audit(shaken(mlp(4, 5, 2)), normal(8, 4)).flat_dimension == 5
    with torch.inference_mode():
        assert audit(shaken(mlp(4, 5, 2)), normal(8, 4)).flat_dimension == 5


def test_what_the_tracer_asserts_about_a_tensor_costs_no_translation():
    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(10, 6), nn.Embedding(5, 6)
            self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, ids):
            places = self.places(torch.arange(ids.shape[1]))
            return self.head(self.norm(self.words(ids) + places.to(ids.device)))

    report = audit(shaken(Places()), tokens(2, 5, high=10))
    assert total(report, "translation") == 10 + 5


def test_hooks_of_the_users_are_named_and_not_called():
    model, x, calls = shaken(mlp(6, 8, 3)), normal(9, 6), []
    assert "hooks" not in audit(model, x).tracer
    model[1].register_forward_pre_hook(lambda *_: calls.append(1))
    assert audit(model, x).tracer == "torch.export, without the hooks of 1"
    for action in (rebalance, physical_prune):
        with pytest.warns(UserWarning, match="forward hooks of 1 are not called"):
            action(model, x)
    assert calls == []


def test_small_inputs_do_not_hide_where_a_function_saturates():
    for seed in range(20):
        torch.manual_seed(seed)
        model = shaken(mlp(4, 6, 3, activation=nn.ReLU6), seed)
        report = audit(model, 0.03 * normal(8, 4, seed=seed), seed=seed, discover=["rescaling"])
        assert report.symmetries == (), seed


def test_the_mask_of_a_pruned_layer_lets_scalings_pass_and_holds_units_in_their_places():
    model = shaken(mlp(6, 8, 3))
    prune.random_unstructured(model[0], "weight", 0.5)
    report = audit(model, normal(9, 6))
    assert [(each.kind, each.units, each.status) for each in report.symmetries] == [("rescaling", 8, "exact")]
    assert report.symmetries[0].incoming == ("0.weight_orig", "0.bias")
    assert report.barriers == ()
