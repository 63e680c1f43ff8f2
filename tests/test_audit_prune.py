"""Tests of pruning by audit: every kind of layer, what must stay, nothing touched; and the rank of the Jacobian."""

import copy
import io
import math
import re

import pytest
import torch
import torch.nn.functional as F
from audit_models import (
    GLU,
    GPT,
    RMS,
    Attention,
    LoRA,
    Recurrent,
    Twice,
    WeightNormed,
    mlp,
    normal,
    shaken,
    tokens,
    vgg,
)
from torch import nn

from symlearn.audit import PruneOutcome, audit, functional_dimension, physical_prune


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def outputs(model, x):
    given = x if isinstance(x, tuple) else (x,)
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        result = model(*(part.double() if part.is_floating_point() else part for part in given))
    return result[0] if isinstance(result, tuple) else result


def trains(model, x):
    given = x if isinstance(x, tuple) else (x,)
    result = copy.deepcopy(model).train()(*given)
    result = result[0] if isinstance(result, tuple) else result
    result.square().sum().backward()
    return True


def pruned(model, x, *, tol=1e-6, **options):
    """The outcome, after what must hold for every outcome has been checked."""
    outcome = physical_prune(model, x, tol=tol, **options)
    before, after = outputs(model, x), outputs(outcome.model, x)
    assert float((before - after).abs().max() / before.abs().max()) <= tol
    assert outcome.violation <= tol
    assert outcome.parameters == (count(model), count(outcome.model))
    assert trains(outcome.model, x)
    fresh = copy.deepcopy(outcome.model)
    fresh.load_state_dict(outcome.model.state_dict())
    assert torch.equal(outputs(fresh, x), after)
    return outcome


@torch.no_grad()
def unread(layer, *columns):
    """Nothing reads these inputs of a layer."""
    layer.weight[:, list(columns)] = 0


@torch.no_grad()
def unwritten(layer, *rows):
    """Nothing writes into these outputs of a layer."""
    layer.weight[list(rows)] = 0
    if layer.bias is not None:
        layer.bias[list(rows)] = 0


@torch.no_grad()
def copied(layer, stays, goes, factor=1.0):
    layer.weight[goes] = factor * layer.weight[stays]
    layer.bias[goes] = factor * layer.bias[stays]


def net(*layers):
    return shaken(nn.Sequential(*layers))


# Known values


def predicted(report):
    """Parameters before and after, as the report has them."""
    (advice,) = [each for each in report.recommendations if "physical_prune" in each.action]
    return tuple(int(number.replace(",", "")) for number in re.findall(r"[\d,]+", advice.predicted)[:2])


def test_dead_units_and_copies_leave_a_multilayer_perceptron():
    model = shaken(mlp(8, 12, 9, 3))
    unread(model[2], 3)
    unwritten(model[0], 5)
    copied(model[0], 1, 7, 2.5)
    copied(model[2], 2, 4)
    outcome = pruned(model, normal(32, 8))
    # 9 (8 + 1) + 8 (9 + 1) + 3 (8 + 1)
    assert outcome.parameters == (255, 188)
    assert outcome.removed == {"0.weight": (3, 5, 7), "2.weight": (4,)}
    assert outcome.merged == {"0.weight": ((1, 7),), "2.weight": ((2, 4),)}
    assert outcome.kept_back == {}
    assert outcome.violation < 3e-7  # float32 rounds the merged weights: 6e-8 of each
    assert predicted(audit(model, normal(32, 8))) == (255, 188)


def test_merging_is_exact_to_rounding_in_double_precision():
    model = shaken(mlp(8, 12, 3)).double()
    copied(model[0], 1, 7, 2.5)
    assert pruned(model, normal(32, 8).double()).violation < 1e-14


def test_channels_leave_a_convolutional_network_with_batch_norm():
    model = shaken(vgg(True))
    unread(model[4], 3)
    with torch.no_grad():
        model[1].weight[7], model[1].bias[7] = 0, -1
    outcome = pruned(model, normal(4, 3, 16, 16))
    # each channel: 27 + 1 in its convolution, 2 in the norm, 32 * 9 in the next convolution
    assert outcome.parameters == (69_418, 69_418 - 2 * 318)
    assert outcome.violation < 1e-14
    assert (model[0].out_channels, outcome.model[0].out_channels, outcome.model[1].num_features) == (16, 14, 14)
    assert predicted(audit(model, normal(4, 3, 16, 16))) == outcome.parameters


# Layers: model, inputs, parameters that go


def convolutions(kind, norm):
    size = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[kind]
    model = net(kind(2, 6, 3), norm(6), nn.ReLU(), kind(6, 4, 2), nn.ReLU(), kind(4, 3, 1))
    unread(model[3], 1)
    unwritten(model[3], 2)
    # 2 * 3^size + 1 and the norm's gain and bias, 4 * 2^size; 5 left: 5 * 2^size + 1 and 3
    return model, normal(3, 2, *[5] * size), 2 * 3**size + 1 + 2 + 4 * 2**size + 5 * 2**size + 1 + 3


def transposed(kind):
    size = {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}[kind]
    model = net(kind(2, 6, 3), nn.ReLU(), kind(6, 4, 2))
    with torch.no_grad():
        model[2].weight[4] = 0
    return model, normal(3, 2, *[3] * size), 2 * 3**size + 1 + 4 * 2**size


def plain_norm():
    model = net(nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False), nn.ReLU(), nn.Conv2d(6, 4, 2))
    unread(model[3], 1)
    return model, normal(3, 2, 5, 5), 18 + 16


def instance_norm():
    model = net(nn.Conv2d(2, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.Conv2d(6, 4, 2))
    unread(model[3], 1)
    return model, normal(3, 2, 5, 5), 18 + 1 + 2 + 16


def embedding():
    model = net(nn.Embedding(10, 8), nn.ReLU(), nn.Linear(8, 3))
    unread(model[2], 1, 5)
    return model, tokens(4, 6, high=10), 2 * (10 + 3)


def flattened():
    model = net(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 3))
    with torch.no_grad():
        model[3].weight[:, 18:27] = 0
    return model, normal(3, 2, 5, 5), 18 + 1 + 3 * 9


def channel_slopes():
    model = net(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 3))
    unread(model[2], 0, 4)
    return model, normal(8, 4), 2 * (4 + 1 + 1 + 3)


def depthwise():
    model = net(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 5, 3, groups=5), nn.ReLU(), nn.Conv2d(5, 2, 1))
    unread(model[4], 1, 2)
    return model, normal(3, 3, 5, 5), 2 * (3 + 1 + 9 + 1 + 2)


def equally_many_of_every_group():
    model = net(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    unread(model[4], 1, 2, 3)  # two outputs of the first group and one of the second: one of each can go
    with torch.no_grad():
        model[2].weight[:3, 0] = model[2].weight[3:, 2] = 0  # and input 0 and 5
    # two outputs 2 * (27 + 1 + 2), two inputs 3 + 1 + the 2 * 9 entries left
    return model, normal(3, 3, 5, 5), 2 * (27 + 1 + 2) + 2 * (4 + 18)


def whole_group():
    model = net(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    unread(model[4], 2, 3)
    return model, normal(3, 3, 5, 5), 2 * (18 + 1 + 2) + 2 * 4


def transposed_groups():
    model = net(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.ReLU())
    model = nn.Sequential(*model, shaken(nn.Conv2d(6, 2, 1)))
    unread(model[4], 1, 5)
    return model, normal(3, 3, 3, 3), 2 * (2 * 4 + 2)


def recurrent(kind, gates):
    model = shaken(Recurrent(kind))
    cell = model.cell
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(cell, name)[2::5] = 0  # nothing writes into unit 2
        cell.weight_ih_l0[:, 7] = 0
    # the unit: gates * (12 + 5 + 2) rows, 4 * gates columns and 3 of the last layer; the input: 7 and 4 * gates columns
    return model, normal(2, 4, 6), gates * 19 + 4 * gates + 3 + 7 + 4 * gates


def weight_norm(wrap):
    model = shaken(WeightNormed(wrap))
    unread(model.c, 1)
    # the direction 7, the length 1, the bias 1 and 3 columns
    return model, normal(8, 5), 7 + 1 + 1 + 3


class Stream(nn.Module):
    """A residual stream with three writers and three readers, and no norm."""

    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.up = nn.ModuleList([nn.Linear(8, 5) for _ in range(2)])
        self.down = nn.ModuleList([nn.Linear(5, 8) for _ in range(2)])

    def forward(self, x):
        x = self.embed(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        return self.last(x)


def residual():
    model = shaken(Stream())
    for reader in (*model.up, model.last):
        unread(reader, 2, 6)
    return model, normal(8, 4), 2 * (4 + 1 + 2 * (5 + 1 + 5) + 3)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(10, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x + self.mix(x).relu())


def tied():
    model = shaken(Tied())
    with torch.no_grad():
        model.embed.weight[:, 3] = 0
        unwritten(model.mix, 3)
    return model, tokens(4, 5, high=10), 10 + 6 + 6 - 1 + 1


def applied_twice():
    model = shaken(Twice())
    unread(model.shared, 3)
    unread(model.last, 3)
    return model, normal(8, 4), 4 + 1 + 7 + 7 - 1 + 1 + 4


def gated():
    model = shaken(GLU(F.silu))
    unread(model.down, 0, 8)
    return model, normal(8, 6), 2 * (7 + 7 + 4)


LAYERS = {
    "convolution 1": lambda: convolutions(nn.Conv1d, nn.BatchNorm1d),
    "convolution 2": lambda: convolutions(nn.Conv2d, nn.BatchNorm2d),
    "convolution 3": lambda: convolutions(nn.Conv3d, nn.BatchNorm3d),
    "transposed convolution 1": lambda: transposed(nn.ConvTranspose1d),
    "transposed convolution 2": lambda: transposed(nn.ConvTranspose2d),
    "transposed convolution 3": lambda: transposed(nn.ConvTranspose3d),
    "batch norm without gains": plain_norm,
    "instance norm": instance_norm,
    "embedding": embedding,
    "linear after flatten": flattened,
    "slope per channel": channel_slopes,
    "depthwise": depthwise,
    "equally many of every group": equally_many_of_every_group,
    "a whole group": whole_group,
    "transposed convolution with groups": transposed_groups,
    "lstm": lambda: recurrent(nn.LSTM, 4),
    "gru": lambda: recurrent(nn.GRU, 3),
    "tanh cell": lambda: recurrent(nn.RNN, 1),
    "weight norm": lambda: weight_norm(nn.utils.parametrizations.weight_norm),
    "residual stream": residual,
    "tied embedding": tied,
    "layer applied twice": applied_twice,
    "gated": gated,
}


@pytest.mark.parametrize("name", LAYERS)
def test_units_leave_every_kind_of_layer(name):
    model, x, gone = LAYERS[name]()
    outcome = pruned(model, x)
    assert outcome.parameters[0] - outcome.parameters[1] == gone, (outcome.removed, outcome.kept_back)
    assert outcome.violation < 1e-14


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weights_that_a_hook_computes_are_cut_too():
    model, x, gone = weight_norm(nn.utils.weight_norm)
    outcome = physical_prune(model, x)  # torch refuses to copy such a model
    assert outcome.parameters == (count(model), count(model) - gone)
    assert torch.allclose(outcome.model(x), model(x), atol=1e-6)
    assert (outcome.model.b.out_features, outcome.model.c.in_features) == (5, 5)
    outcome.model(x).sum().backward()


# Heads


class SeparateHeads(nn.Module):
    """Attention that keeps its numbers as attributes, and leaves the width of the values to them."""

    def __init__(self, d, heads, kv_heads=None, rotary=False):
        super().__init__()
        attention = Attention(d, heads, kv_heads)
        self.q, self.k, self.v, self.o = attention.q, attention.k, attention.v, attention.o
        self.n_head, self.n_kv_head, self.inner = heads, kv_heads or heads, d
        self.head_dim = d // heads

    def forward(self, x):
        n, t, _ = x.shape
        q = self.q(x).view(n, t, self.n_head, self.head_dim).transpose(1, 2)
        k = self.k(x).view(n, t, self.n_kv_head, self.head_dim).transpose(1, 2)
        v = self.v(x).view(n, t, self.n_kv_head, self.head_dim).transpose(1, 2)
        k, v = (part.repeat_interleave(self.n_head // self.n_kv_head, 1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(n, t, self.inner))


class PackedHeads(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.num_heads, self.width = heads, d
        self.qkv, self.o = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = (p.view(n, t, self.num_heads, -1).transpose(1, 2) for p in self.qkv(x).split(self.width, -1))
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


def test_a_head_that_nobody_reads_leaves_attention_with_separate_projections():
    model = shaken(nn.Sequential(nn.LayerNorm(12), SeparateHeads(12, 3)))
    unread(model[1].o, 4, 5, 6, 7)
    outcome = pruned(model, normal(2, 5, 12))
    smaller = outcome.model[1]
    assert outcome.removed == {"heads of 1.q.weight": (1,)}
    assert (smaller.n_head, smaller.n_kv_head, smaller.head_dim, smaller.inner) == (2, 2, 4, 8)
    assert outcome.parameters[0] - outcome.parameters[1] == 3 * 4 * 13 + 4 * 12
    assert predicted(audit(model, normal(2, 5, 12))) == outcome.parameters
    assert outcome.model(normal(1, 9, 12)).shape == (1, 9, 12)


def test_heads_without_values_leave_attention_with_one_packed_projection():
    model = shaken(nn.Sequential(nn.LayerNorm(16), PackedHeads(16, 4)))
    unwritten(model[1].qkv, *range(36, 44))  # values of heads 1 and 2
    outcome = pruned(model, normal(2, 5, 16))
    assert outcome.removed == {"heads of 1.qkv.weight": (1, 2)}
    assert (outcome.model[1].num_heads, outcome.model[1].width) == (2, 8)


def test_a_whole_group_of_queries_leaves_with_its_key():
    model = shaken(nn.Sequential(nn.LayerNorm(16), SeparateHeads(16, 4, 2)))
    unread(model[1].o, *range(8))
    outcome = pruned(model, normal(2, 5, 16))
    smaller = outcome.model[1]
    assert (smaller.n_head, smaller.n_kv_head, smaller.head_dim, smaller.inner) == (2, 1, 4, 8)
    assert (smaller.q.out_features, smaller.k.out_features) == (8, 4)


def test_one_query_of_a_group_stays():
    model = shaken(nn.Sequential(nn.LayerNorm(16), SeparateHeads(16, 4, 2)))
    unread(model[1].o, *range(4))
    outcome = pruned(model, normal(2, 5, 16))
    assert outcome.removed == {}


def test_the_last_head_stays():
    model = shaken(nn.Sequential(nn.LayerNorm(12), SeparateHeads(12, 3)))
    unread(model[1].o, *range(12))
    model = nn.Sequential(*model, shaken(nn.Linear(12, 4)))
    outcome = pruned(model, normal(2, 5, 12))
    assert len(outcome.removed["heads of 1.q.weight"]) == 2
    assert outcome.model[1].n_head == 1


def test_units_of_a_living_head_stay():
    model = shaken(nn.Sequential(nn.LayerNorm(12), SeparateHeads(12, 3)))
    unread(model[1].o, 4, 5)
    outcome = pruned(model, normal(2, 5, 12))
    assert outcome.removed == {}
    assert outcome.kept_back == {"1.v.weight": "units inside a head: only whole heads are removed"}


def test_heads_stay_where_the_code_takes_their_size_from_its_input():
    model = shaken(nn.Sequential(nn.LayerNorm(16), Attention(16, 4)))  # reshapes to the width of its input
    unread(model[1].o, 4, 5, 6, 7)
    outcome = pruned(model, normal(2, 5, 16))
    assert outcome.removed == {}
    assert "the forward pass fails" in outcome.kept_back["heads of 1.q.weight"]


class SelfAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 4, batch_first=True, **options)
        self.last = nn.Linear(16, 3)

    def forward(self, x, mask=None, padding=None, weights=False):
        x = self.norm(x)
        y, w = self.attention(x, x, x, padding, need_weights=weights, attn_mask=mask)
        return (self.last(y), w) if weights else self.last(y)


@pytest.mark.parametrize("bias", [True, False])
def test_heads_leave_multihead_attention(bias):
    model = shaken(SelfAttention(bias=bias))
    unread(model.attention.out_proj, *range(4, 8))
    outcome = pruned(model, normal(2, 5, 16))
    smaller = outcome.model.attention
    assert outcome.removed == {"heads of attention.in_proj_weight": (1,)}
    assert (smaller.num_heads, smaller.in_proj_weight.shape, smaller.out_proj.in_features) == (3, (36, 16), 12)
    assert set(smaller.state_dict()) == set(model.attention.state_dict())


def test_heads_leave_multihead_attention_with_projections_of_different_sizes():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=6)

        def forward(self, q, k, v):
            return self.attention(q, k, v)[0]

    model = shaken(Cross())
    unread(model.attention.out_proj, 0, 1, 2, 3)
    outcome = pruned(model, (normal(4, 2, 8), normal(3, 2, 5, seed=2), normal(3, 2, 6, seed=3)))
    assert outcome.model.attention.k_proj_weight.shape == (4, 5)
    alone = [part[:, 0] for part in (normal(4, 2, 8), normal(3, 2, 5, seed=2), normal(3, 2, 6, seed=3))]
    assert torch.allclose(outcome.model(*alone), model(*alone), atol=1e-6)


def test_smaller_multihead_attention_answers_every_call_as_before():
    model = shaken(SelfAttention()).eval()
    unread(model.attention.out_proj, *range(4, 8))
    smaller = physical_prune(model, normal(2, 5, 16)).model
    x, causal = normal(2, 5, 16, seed=3), torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    per_head = normal(8, 5, 5, seed=4)  # one mask for every sample and head, heads counted as they were
    added = torch.zeros(5, 5).masked_fill(causal, -torch.inf)
    for weights in (False, True):
        for mask in (None, causal, added, per_head):
            for pad in (None, padding, torch.zeros(2, 5).masked_fill(padding, -torch.inf)):
                if pad is not None and mask is not None and mask.dtype != pad.dtype:
                    continue
                args = (x, mask, pad, weights)
                before, after = model(*args), smaller(*args)
                if weights:
                    (before, w), (after, v) = before, after
                    assert w.shape == v.shape
                assert torch.allclose(before, after, atol=1e-5)
    _, each = smaller.attention(x, x, x, average_attn_weights=False)
    _, all_heads = model.attention(x, x, x, average_attn_weights=False)
    assert torch.allclose(each, all_heads[:, [0, 2, 3]], atol=1e-6)
    with pytest.raises(RuntimeError, match="attn_mask"):
        smaller.attention(x, x, x, is_causal=True)


@pytest.mark.parametrize("norm_first", [True, False])
def test_heads_and_units_leave_a_transformer_encoder(norm_first):
    layer = nn.TransformerEncoderLayer(16, 4, 24, 0.1, batch_first=True, norm_first=norm_first)
    model = shaken(nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)))
    model = nn.Sequential(*model, shaken(nn.Linear(16, 5)))
    first, second = model[1].layers
    unread(first.self_attn.out_proj, *range(4, 8))
    unread(second.linear2, 3, 5)
    x = normal(2, 6, 8)
    outcome = pruned(model, x)
    assert outcome.removed == {
        "heads of 1.layers.0.self_attn.in_proj_weight": (1,),
        "1.layers.1.linear1.weight": (3, 5),
    }
    assert isinstance(outcome.model[1].layers[1].self_attn, nn.MultiheadAttention)
    with torch.no_grad():  # the fast kernels of evaluation mode, and without them
        assert torch.allclose(outcome.model.eval()(x), model.eval()(x), atol=1e-5)
    assert torch.allclose(outcome.model(x), model(x), atol=1e-5)


def test_attention_with_extra_keys_keeps_its_heads():
    model = shaken(SelfAttention(add_bias_kv=True))
    unread(model.attention.out_proj, *range(4, 8))
    outcome = pruned(model, normal(2, 5, 16))
    assert outcome.removed == {}
    assert all("bias_k" in reason for reason in outcome.kept_back.values())


# What must stay


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(8), nn.LayerNorm(8, elementwise_affine=False), nn.RMSNorm(8), RMS(8), nn.GroupNorm(2, 8)]
)
def test_units_whose_statistics_a_norm_takes_are_never_removed(norm):
    model = net(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 3))
    unread(model[3], 2)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter[2] = 0
    x = normal(8, 4)
    outcome = pruned(model, x)
    assert outcome.removed == {}
    assert model[0].out_features == outcome.model[0].out_features


def test_silent_units_are_never_removed():
    model = shaken(mlp(8, 12, 3))
    with torch.no_grad():
        model[0].bias[4] = -100.0  # off on these data
    report = audit(model, normal(32, 8))
    assert report.units[0].silent == (4,)
    assert physical_prune(model, normal(32, 8), report=report).removed == {}


@pytest.mark.parametrize("build", [lambda: mlp(8, 12, 9, 3), lambda: vgg(True), GPT, Recurrent, LoRA])
def test_a_model_without_dead_units_keeps_its_shapes(build):
    model = shaken(build())
    x = {GPT: tokens(2, 12, high=50), Recurrent: normal(2, 4, 6), LoRA: normal(8, 8)}.get(build, normal(2, 3, 16, 16))
    x = normal(8, 8) if isinstance(model, nn.Sequential) and isinstance(model[0], nn.Linear) else x
    outcome = physical_prune(model, x)
    assert (outcome.removed, outcome.violation) == ({}, 0.0)
    for (name, before), (other, after) in zip(
        model.state_dict().items(), outcome.model.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(before, after)


def test_one_unit_of_a_dead_space_stays():
    model = shaken(mlp(4, 6, 5, 3))
    unwritten(model[0], *range(6))
    outcome = pruned(model, normal(8, 4))
    assert outcome.model[0].out_features == 1
    assert outcome.parameters[1] == 5 + 10 + 18


def test_without_duplicates_only_dead_units_go():
    model = shaken(mlp(4, 6, 3))
    copied(model[0], 0, 2)
    unread(model[2], 4)
    assert pruned(model, normal(8, 4), duplicates=False).removed == {"0.weight": (4,)}


def test_three_copies_become_one_unit():
    model = shaken(mlp(4, 6, 3))
    copied(model[0], 1, 3, 2.0)
    copied(model[0], 1, 5, 0.5)
    assert pruned(model, normal(8, 4)).merged == {"0.weight": ((1, 3), (1, 5))}


def test_parallel_units_of_a_squared_relu_merge_by_the_square():
    class SquaredReLU(nn.Module):
        def forward(self, x):
            return x.relu().square()

    model = shaken(mlp(4, 6, 3, activation=SquaredReLU)).double()
    copied(model[0], 1, 3, 2.0)
    assert pruned(model, normal(8, 4).double()).violation < 1e-14


def test_parallel_units_of_a_gated_layer_merge_by_the_product():
    model = shaken(GLU(F.relu)).double()
    for layer in (model.gate, model.up):
        copied(layer, 1, 3, 2.0)
    outcome = pruned(model, normal(8, 6).double())
    assert outcome.merged == {"gate.weight": ((1, 3),)}
    assert outcome.violation < 1e-14


def test_a_channel_and_its_copy_in_batch_norm_merge():
    model = net(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3)).double()
    copied(model[0], 0, 5)
    copied(model[0], 1, 4)
    with torch.no_grad():
        for tensor in (model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var):
            tensor[5] = tensor[0]  # and those of channel 4 are not those of channel 1
        model[1].bias[4] = model[1].bias[1]
    outcome = pruned(model, normal(4, 3, 6, 6).double())
    assert outcome.removed == {"0.weight": (5,)}
    assert outcome.kept_back == {"0.weight": "the outputs would change by more than 1e-06"}


class BothWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.last = nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.cell(x)[0])


def test_all_layers_and_directions_of_a_recurrent_cell_lose_a_unit_or_none():
    everywhere, once = shaken(BothWays()), shaken(BothWays())
    with torch.no_grad():
        for parameter in everywhere.cell.parameters():
            parameter[2::4] = 0
        for name, parameter in once.cell.named_parameters():
            if name.endswith("l0"):
                parameter[2::4] = 0
    assert pruned(everywhere, normal(2, 6, 5)).model.cell.hidden_size == 3
    outcome = pruned(once, normal(2, 6, 5))
    assert (outcome.removed, set(outcome.kept_back)) == ({}, {"cell.weight_ih_l0"})


def test_a_dead_unit_of_one_direction_stays_and_keeps_no_other_unit_from_going():
    class TwoWay(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(10, 2)
            self.cell = nn.LSTM(8, 5, batch_first=True, bidirectional=True)

        def forward(self, x):
            return self.last(self.cell(self.first(x).relu())[0][:, -1])

    model = shaken(TwoWay())
    with torch.no_grad():
        model.last.weight[:, 2] = 0
        model.cell.weight_hh_l0[:, 2] = 0
        model.cell.weight_ih_l0[:, 3] = 0
        model.cell.weight_ih_l0_reverse[:, 3] = 0
    outcome = pruned(model, normal(4, 5, 6))
    assert outcome.removed == {"first.weight": (3,)}
    assert outcome.parameters == (678, 678 - 7 - 2 * 20)
    assert predicted(audit(model, normal(4, 5, 6))) == outcome.parameters


def test_units_that_a_bare_vector_gates_are_looked_at_without_harm():
    class GatedByVector(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.gate = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(8))

        def forward(self, x):
            return self.last((1 - self.gate) * self.first(x).relu())

    model = shaken(GatedByVector())
    unread(model.last, 4)
    outcome = pruned(model, normal(20, 6))
    assert outcome.violation < 1e-12
    assert outcome.parameters[1] <= outcome.parameters[0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(mode):
    with mode():
        model = shaken(mlp(4, 6, 3))
        unread(model[2], 1)
        smaller = physical_prune(model, normal(8, 4)).model
        assert functional_dimension(model, normal(40, 4)) > 0
    assert all(parameter.requires_grad for parameter in smaller.parameters())
    smaller(normal(8, 4)).sum().backward()


def test_parallel_units_of_tanh_stay_and_equal_ones_merge():
    model = shaken(mlp(4, 6, 3, activation=nn.Tanh))
    copied(model[0], 0, 2, 2.0)
    copied(model[0], 1, 3)
    assert pruned(model, normal(8, 4)).removed == {"0.weight": (3,)}


def test_copies_with_different_slopes_stay_and_the_others_go():
    model = net(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 3))
    copied(model[0], 0, 2)
    copied(model[0], 1, 3)
    unread(model[2], 5)
    with torch.no_grad():
        model[1].weight[3] = model[1].weight[1]
    outcome = pruned(model, normal(8, 4))
    assert outcome.removed == {"0.weight": (3, 5)}
    assert outcome.kept_back == {"0.weight": "copies have other gains, slopes or statistics"}


class Branches(nn.Module):
    """Two branches side by side in one layer: their spaces share its columns."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.slope, self.last = nn.Linear(4, 5), nn.Linear(4, 6), nn.PReLU(6), nn.Linear(11, 3)

    def forward(self, x):
        return self.last(torch.cat([self.a(x).relu(), self.slope(self.b(x)).abs() + 1], 1))


def test_branches_side_by_side_are_pruned_one_by_one_if_they_cannot_be_together():
    model = shaken(Branches())
    unread(model.last, 1, 5 + 2)
    unwritten(model.b, 4)  # reads as 1
    model.last.bias = None
    outcome = pruned(model, normal(8, 4))
    assert outcome.removed == {"a.weight": (1,), "b.weight": (2,)}
    assert set(outcome.kept_back) == {"b.weight"}
    assert outcome.model.last.in_features == 9


def test_copies_that_cannot_merge_do_not_keep_the_others():
    model = shaken(mlp(4, 20, 3, activation=nn.Sigmoid))
    model[2].bias = None
    unwritten(model[0], 3, 8, 13)  # a constant that no bias can take
    for goes in (1, 6, 11, 16):
        copied(model[0], 0, goes)
    outcome = pruned(model, normal(8, 4))
    assert outcome.removed == {"0.weight": (1, 6, 11, 16)}
    assert outcome.kept_back == {"0.weight": "the outputs would change by more than 1e-06"}


def test_a_unit_goes_when_its_only_reader_went():
    model = shaken(mlp(4, 6, 5, 3))
    with torch.no_grad():
        model[2].weight[:, 2] = 0
        model[2].weight[4, 2] = 1.0  # unit 2 is read by unit 4 alone, which nobody reads
        model[4].weight[:, 4] = 0
    report = audit(model, normal(8, 4))
    assert [space.dead for space in report.units] == [(), (4,)]
    assert pruned(model, normal(8, 4), report=report).removed == {"0.weight": (2,), "2.weight": (4,)}


def test_a_constant_goes_into_the_next_bias():
    model = shaken(mlp(4, 6, 3, activation=nn.Sigmoid))
    unwritten(model[0], 1, 4)
    outcome = pruned(model, normal(8, 4))
    assert outcome.removed == {"0.weight": (1, 4)}
    shift = 0.5 * model[2].weight[:, [1, 4]].sum(1)
    assert torch.allclose(outcome.model[2].bias, model[2].bias + shift, atol=1e-6)


@pytest.mark.parametrize(("padding", "bias", "goes"), [(0, True, True), (1, True, False), (0, False, False)])
def test_a_constant_channel_stays_where_the_next_layer_has_no_bias_or_a_border_of_zeros(padding, bias, goes):
    model = net(nn.Conv2d(2, 5, 1), nn.Sigmoid(), nn.Conv2d(5, 3, 3, padding=padding, bias=bias))
    unwritten(model[0], 2)
    outcome = pruned(model, normal(2, 2, 5, 5))
    assert (outcome.removed == {"0.weight": (2,)}) is goes
    assert (outcome.kept_back == {}) is goes


@pytest.mark.parametrize("as_attribute", [True, False])
def test_a_size_in_hand_written_code_follows_if_it_is_an_attribute(as_attribute):
    class Grid(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.width = nn.Linear(4, 6), nn.Linear(6, 3), 6

        def forward(self, x):
            return self.last(self.first(x).relu().reshape(-1, self.width if as_attribute else 6))

    model = shaken(Grid())
    unread(model.last, 1)
    outcome = pruned(model, normal(8, 4))
    assert (outcome.removed == {"first.weight": (1,)}) is as_attribute
    assert outcome.model.width == (5 if as_attribute else 6)
    assert as_attribute or "the forward pass fails" in outcome.kept_back["first.weight"]


def test_nn_unflatten_follows():
    model = net(nn.Linear(4, 6 * 4), nn.ReLU(), nn.Unflatten(1, (6, 4)), nn.Conv1d(6, 3, 2))
    unread(model[3], 5)
    outcome = pruned(model, normal(8, 4))
    assert outcome.model[2].unflattened_size in ((5, 4), (6, 4))


# Nothing touched


def test_nothing_of_the_users_is_touched():
    model = shaken(vgg(True)).train()
    unread(model[4], 3)
    model[0].weight.requires_grad_(False)
    model[2].eval()
    x = normal(4, 3, 16, 16)
    model(x).sum().backward()
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    state = copy.deepcopy(model.state_dict())
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    identities = [id(p) for p in model.parameters()]
    random = torch.get_rng_state()
    outcome = physical_prune(model, x)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.get_default_dtype() == torch.float32
    assert not calls
    assert identities == [id(p) for p in model.parameters()]
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (grads[name] is None)
        assert parameter.grad is None or torch.equal(parameter.grad, grads[name])
    assert [module.training for module in outcome.model.modules()] == [module.training for module in model.modules()]
    assert not outcome.model[0].weight.requires_grad
    assert outcome.model[4].weight.requires_grad
    assert all(parameter.grad is None for parameter in outcome.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_precision_of_the_model_stays(dtype):
    model = shaken(mlp(4, 6, 3)).to(dtype)
    unread(model[2], 1)
    outcome = physical_prune(model, normal(8, 4).to(dtype))
    assert {parameter.dtype for parameter in outcome.model.parameters()} == {dtype}
    assert outcome.removed == {"0.weight": (1,)}


def test_merging_in_half_precision_needs_a_tolerance_for_its_rounding():
    model = shaken(mlp(4, 6, 3)).bfloat16()
    copied(model[0], 1, 3)
    x = normal(8, 4).bfloat16()
    assert "outputs would change" in physical_prune(model, x).kept_back["0.weight"]
    assert physical_prune(model, x, tol=0.02).removed == {"0.weight": (3,)}


def test_pruning_twice_is_pruning_once():
    model, x, _ = residual()
    outcome = physical_prune(model, x)
    again = physical_prune(outcome.model, x)
    assert again.removed == {}
    assert again.parameters == (outcome.parameters[1],) * 2


def test_the_smaller_model_can_be_saved_and_loaded_whole():
    model = shaken(SelfAttention())
    unread(model.attention.out_proj, *range(4, 8))
    smaller = physical_prune(model, normal(2, 5, 16)).model
    file = io.BytesIO()
    torch.save(smaller, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(normal(2, 5, 16)), smaller(normal(2, 5, 16)))


def test_keyword_arguments_reach_the_model():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp(4, 6, 3)

        def forward(self, x, *, scale):
            return self.body(x) * scale

    model = shaken(Scaled())
    unread(model.body[2], 1)
    outcome = physical_prune(model, normal(8, 4), kwargs={"scale": torch.tensor(2.0)})
    assert isinstance(outcome, PruneOutcome)
    assert outcome.removed == {"body.0.weight": (1,)}


# Rank of the Jacobian


def small(name):
    """Model and inputs; every parameter drawn anew, so that no unit is off on all data."""
    model, n, n_in = {
        "relu": (mlp(6, 8, 7, 3), 400, 6),
        "tanh": (mlp(6, 8, 7, 3, activation=nn.Tanh), 200, 6),
        "swiglu": (GLU(F.silu), 200, 6),
        "reglu": (GLU(F.relu), 400, 6),
        "lora": (LoRA(), 200, 8),
        "linear": (mlp(6, 5, 4, 3, activation=None), 60, 6),
    }[name]
    for place, parameter in enumerate(model.parameters()):
        with torch.no_grad():
            parameter.copy_(0.5 * normal(*parameter.shape, seed=place))
    return model, normal(n, n_in, seed=9)


@pytest.mark.parametrize(("name", "flat"), [("relu", 15), ("tanh", 0), ("swiglu", 9), ("reglu", 18), ("lora", 9)])
def test_the_audit_explains_every_flat_direction(name, flat):
    model, x = small(name)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained - functional_dimension(model, x) == flat == audit(model, x).flat_dimension


def test_a_linear_network_has_the_dimension_of_its_matrix_and_bias():
    model, x = small("linear")
    assert functional_dimension(model, x) == 3 * 6 + 3
    assert audit(model, x).flat_dimension == 41 <= count(model) - 21


def test_a_tied_parameter_counts_once_and_a_frozen_one_not_at_all():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    x = normal(20, 3)
    assert functional_dimension(nn.Sequential(first, nn.Tanh(), second), x) == 18
    second.requires_grad_(False)
    assert functional_dimension(nn.Sequential(first, nn.Tanh(), second), x) == 9
    second.requires_grad_(True).weight = first.weight
    assert functional_dimension(nn.Sequential(first, nn.Tanh(), second), x) == 9


def test_few_data_bound_the_rank():
    assert functional_dimension(shaken(mlp(6, 8, 3)), normal(4, 6)) == 12


def test_no_output_depends_on_zero_weights_of_the_last_layer_but_through_that_layer():
    model = shaken(mlp(6, 8, 3, activation=nn.Tanh))
    nn.init.zeros_(model[2].weight)
    assert functional_dimension(model, normal(50, 6)) == 3 * 9


def test_a_share_of_a_billionth_is_resolved():
    """The Gram matrix would square it to 1e-16, the rounding of the largest."""
    model = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[1.0, 0.0], [0.0, 1e-8]])
    assert functional_dimension(model, x) == 2
    assert functional_dimension(model, x, rtol=1e-7) == 1


def test_the_rank_leaves_the_model_alone():
    model = shaken(vgg(True)).train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    functional_dimension(nn.Sequential(model[0], model[1]), normal(2, 3, 4, 4))
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


# Refusals


def another_report():
    model = mlp(4, 7, 3)
    return audit(model, normal(8, 4))


def untraceable():
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x) + torch.randn(3)

    return Random()


def no_float_output():
    class Class(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x).argmax(1)

    return Class()


def detached():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x).detach()

    return Detached()


def infinite():
    model = mlp(4, 3)
    with torch.no_grad():
        model[0].weight[0, 0] = math.inf
    return model


X = normal(8, 4)
BAD = {
    "a function": (lambda: torch.relu, X, {}, TypeError, r"model must be a torch.nn.Module, got"),
    "no parameters": (nn.ReLU, X, {}, ValueError, r"model must be a module with parameters, got ReLU without any"),
    "an infinite parameter": (infinite, X, {}, ValueError, r"parameter '0.weight' must be finite, got inf or nan"),
    "a lazy parameter": (lambda: nn.LazyLinear(3), X, {}, ValueError, r"must be initialised; run the model once"),
    "a list of numbers": (lambda: mlp(4, 3), [1.0], {}, TypeError, r"inputs\[0\] must be a tensor, got float"),
    "a string": (lambda: mlp(4, 3), "x", {}, TypeError, r"inputs must be a tensor or a tuple of tensors, got str"),
    "no inputs": (lambda: mlp(4, 3), (), {}, ValueError, r"inputs must be at least one tensor, got none"),
    "inputs of no samples": (lambda: mlp(4, 3), X[:0], {}, ValueError, r"inputs must be of at least one entry"),
    "infinite inputs": (lambda: mlp(4, 3), X / 0, {}, ValueError, r"inputs must be finite, got inf or nan"),
    "kwargs in a list": (
        lambda: mlp(4, 3),
        X,
        {"kwargs": [1]},
        TypeError,
        r"kwargs must be a dict of keyword arguments",
    ),
    "the model's own error": (lambda: mlp(5, 3), X, {}, RuntimeError, r"shapes cannot be multiplied"),
}
BAD_PRUNE = {
    "tol of zero": (lambda: mlp(4, 3), X, {"tol": 0.0}, ValueError, r"tol must be > 0, got 0"),
    "negative tol": (lambda: mlp(4, 3), X, {"tol": -1e-6}, ValueError, r"tol must be > 0, got -1e-06"),
    "tol that is no number": (lambda: mlp(4, 3), X, {"tol": "1e-6"}, TypeError, r"tol must be real numbers, got str"),
    "tol nan": (lambda: mlp(4, 3), X, {"tol": math.nan}, ValueError, r"tol must be finite, got nan"),
    "duplicates a number": (
        lambda: mlp(4, 3),
        X,
        {"duplicates": 1},
        TypeError,
        r"duplicates must be True or False, got int",
    ),
    "report a dict": (
        lambda: mlp(4, 3),
        X,
        {"report": {}},
        TypeError,
        r"report must be an AuditReport or None, got dict",
    ),
    "report of other shapes": (
        lambda: mlp(4, 6, 3),
        X,
        {"report": another_report},
        ValueError,
        r"report must be the audit of",
    ),
    "report of other names": (
        lambda: nn.Linear(4, 3),
        X,
        {"report": another_report},
        ValueError,
        r"report must be .* '0.weight'",
    ),
    "random outputs": (
        untraceable,
        X,
        {},
        ValueError,
        r"model must be one that can be traced, got untraceable: its outputs",
    ),
    "whole numbers as outputs": (
        no_float_output,
        X,
        {},
        ValueError,
        r"model must be one that can be traced, got .* no floating",
    ),
}
BAD_RANK = {
    "rtol of one": (lambda: mlp(4, 3), X, {"rtol": 1.0}, ValueError, r"rtol must be in \[0, 1\), got 1"),
    "rtol of zero": (lambda: mlp(4, 3), X, {"rtol": 0.0}, ValueError, r"rtol must be > 0, got 0"),
    "rtol of two numbers": (lambda: mlp(4, 3), X, {"rtol": [1e-9, 1e-8]}, ValueError, r"rtol must be a single number"),
    "too large": (
        lambda: mlp(4, 200_000, 10),
        X,
        {},
        ValueError,
        r"inputs must be few enough, and model small enough.*GiB",
    ),
    "frozen": (
        lambda: mlp(4, 3).requires_grad_(False),
        X,
        {},
        ValueError,
        r"model must be one with a parameter that is",
    ),
    "no derivatives": (detached, X, {}, ValueError, r"model must be one whose outputs have derivatives"),
    "whole numbers": (
        no_float_output,
        X,
        {},
        ValueError,
        r"model must be one that returns floating point tensors, got none",
    ),
}
CASES = [(physical_prune, name, each) for name, each in (BAD | BAD_PRUNE).items()]
CASES += [(functional_dimension, name, each) for name, each in (BAD | BAD_RANK).items()]


@pytest.mark.parametrize(
    ("function", "case"), [(f, each) for f, _, each in CASES], ids=[f"{f.__name__}: {name}" for f, name, _ in CASES]
)
def test_bad_input_is_refused_in_words(function, case):
    build, x, options, error, message = case
    options = {name: value() if value is another_report else value for name, value in options.items()}
    with pytest.raises(error, match=message):
        function(build(), x, **options)
