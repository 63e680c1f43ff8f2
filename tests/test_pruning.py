import copy
import dataclasses
import math
import threading
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from symlearn import models
from symlearn.pruning import conservation, critical_compression, max_compression, prune, score

IMAGE = (3, 32, 32)
PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
METHODS = ("random", "magnitude", "snip", "grasp", "synflow")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randomised(model, seed=0):
    """Random parameters everywhere (biases too) and random running statistics."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        for module in model.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
    return model


def tiny():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 0.5], [3.0, 0.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, -4.0, 0.5], [2.0, 1.0, 0.0]]))
    return model


def small(seed=0):
    return randomised(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), seed)


def batch(shape, n_classes, n_samples=7, seed=1):
    generator = seeded(seed)
    return torch.randn(n_samples, *shape, generator=generator), torch.randint(
        n_classes, (n_samples,), generator=generator
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.last(h + F.relu(self.branch(h)))


class CalledTwice(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.inner, self.last = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.last(F.relu(self.inner(F.relu(self.inner(x)))))


class UsedOutside(nn.Module):
    """A weight that is also used without calling its layer."""

    def __init__(self, width=5, hidden=8):
        super().__init__()
        self.encoder = nn.Linear(width, hidden)

    def forward(self, x):
        return F.linear(F.relu(self.encoder(x)), self.encoder.weight.t())


class Attention(nn.Module):
    def __init__(self, n_in=5, width=8, hidden=16):
        super().__init__()
        self.embed = nn.Linear(n_in, width)
        self.block = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.block(self.embed(x)).mean(dim=1))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.branch = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu, self.last = nn.ReLU(inplace=True), nn.Linear(6, 2)

    def forward(self, x):
        h = self.relu(self.first(x))
        total = self.branch(h)
        total += h
        return self.last(self.relu(total).mean(dim=(2, 3)))


def conv1d():
    return nn.Sequential(
        *(nn.Conv1d(3, 6, 3, padding=2, dilation=2), nn.BatchNorm1d(6), nn.ReLU()),
        *(nn.Conv1d(6, 8, 3, stride=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(56, 4)),
    )


def conv2d():
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding="same", padding_mode="reflect"), nn.BatchNorm2d(6, affine=False), nn.LeakyReLU()),
        *(nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=3, padding_mode="replicate"), nn.PReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 8, (3, 1), padding=(1, 0)), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Flatten(), nn.Linear(32, 5)),
    )


def conv3d():
    return nn.Sequential(
        *(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.AvgPool3d(2)),
        *(nn.Flatten(), nn.Linear(32, 3)),
    )


ZOO = {
    "perceptron": (lambda: models.mlp([6, 10, 9, 4]), (6,)),
    "residual": (Residual, (5,)),
    "called twice": (CalledTwice, (5,)),
    "used outside": (UsedOutside, (5,)),
    "attention": (Attention, (4, 5)),
    "in place": (InPlace, (3, 8, 8)),
    "conv1d": (conv1d, (3, 16)),
    "conv2d": (conv2d, (3, 8, 8)),
    "conv3d": (conv3d, (2, 4, 4, 4)),
    "tanh": (lambda: models.mlp([6, 10, 4], "tanh"), (6,)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.LayerNorm(10), nn.Linear(10, 4)), (6,)),
}


def layer_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, PRUNABLE)]


def plain_scores(model, input_shape, masks=None, scale=1.0):
    """The definition, by functional_call in float64: scores and total flow; ones at both ends may be scaled."""
    twin = copy.deepcopy(model).double().eval()
    values = {}
    for name, value in (*twin.named_parameters(), *twin.named_buffers()):
        last = name.rpartition(".")[2]
        if "bias" in last or last == "running_mean":
            values[name] = torch.zeros_like(value)
        else:
            values[name] = value.detach().abs()
    keys = [f"{name}.weight" for name in layer_names(model)]
    for key in keys:
        values[key] = (values[key] * (1 if masks is None else masks[key])).requires_grad_()
    flow = functional_call(twin, values, (torch.full((1, *input_shape), scale, dtype=torch.float64),)).sum()
    slopes = torch.autograd.grad(flow * scale, [values[key] for key in keys], materialize_grads=True)
    return {key: (values[key] * slope).detach() for key, slope in zip(keys, slopes, strict=True)}, flow.item()


def plain_selection(scores, alive, count):
    """Best living weights, the lower index first among equals, by sorting."""
    order = sorted(range(len(scores)), key=lambda i: (not alive[i], -scores[i], i))
    keep = torch.zeros(len(scores), dtype=torch.bool)
    keep[order[:count]] = True
    return keep & torch.tensor(alive)


def plain_prune(model, input_shape, compression, iterations, schedule="exponential", scope="global"):
    masks = {key: torch.ones_like(s, dtype=torch.bool) for key, s in plain_scores(model, input_shape)[0].items()}
    for k in range(1, iterations + 1):
        scores, _ = plain_scores(model, input_shape, masks)
        density = compression ** (-k / iterations)
        if schedule == "linear":
            density = 1 - (1 - 1 / compression) * k / iterations
        groups = [list(masks)] if scope == "global" else [[key] for key in masks]
        for group in groups:
            flat = torch.cat([scores[key].flatten() for key in group])
            alive = torch.cat([masks[key].flatten() for key in group])
            kept = plain_selection(flat.tolist(), alive.tolist(), max(1, round(len(flat) * density)))
            for key, part in zip(group, kept.split([masks[key].numel() for key in group]), strict=True):
                masks[key] = part.view_as(masks[key])
    return masks


def sort_selection(scores, alive, count):
    """As plain_selection, for many weights: a stable sort of the negative scores, the dead ones last."""
    order = torch.argsort(torch.where(alive, -scores, math.inf), stable=True)[:count]
    return torch.zeros_like(alive).index_fill_(0, order, True) & alive


def plain_prune_large(model, input_shape, compression, iterations, scale=1.0):
    masks = {key: torch.ones_like(s, dtype=torch.bool) for key, s in plain_scores(model, input_shape)[0].items()}
    sizes = [mask.numel() for mask in masks.values()]
    for k in range(1, iterations + 1):
        scores, _ = plain_scores(model, input_shape, masks, scale)
        flat, alive = (torch.cat([t.flatten() for t in group.values()]) for group in (scores, masks))
        kept = sort_selection(flat, alive, max(1, round(sum(sizes) * compression ** (-k / iterations))))
        parts = kept.split(sizes)
        masks = {key: part.view_as(masks[key]) for key, part in zip(masks, parts, strict=True)}
    return masks


def n_different(first, second):
    return sum(int((first[key] != second[key]).sum()) for key in first)


def test_synflow_of_a_tiny_network_is_the_weight_of_all_paths_through_each_weight():
    scores = score(tiny(), input_shape=(2,))
    assert list(scores) == ["0.weight", "2.weight"]
    assert scores["0.weight"].tolist() == [[3, 6], [2.5, 2.5], [1.5, 0]]
    assert scores["2.weight"].tolist() == [[3, 4, 1.5], [6, 1, 0]]
    assert all(values.dtype == torch.float64 and values.sum() == 15.5 for values in scores.values())


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("seed", [0, 1])
def test_synflow_scores_follow_the_definition_for_any_module(name, seed):
    build, shape = ZOO[name]
    model = randomised(build(), seed)
    expected, _ = plain_scores(model, shape)
    scores = score(model, input_shape=shape)
    assert list(scores) == list(expected)
    for key, values in scores.items():
        torch.testing.assert_close(values, expected[key], rtol=1e-12, atol=1e-14 * expected[key].abs().max().item())


def test_synflow_ignores_biases_shifts_and_running_means_but_not_scales():
    model = randomised(conv2d())
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(7)
        changed[1].running_mean.fill_(-3)
    first, second = score(model, input_shape=(3, 8, 8)), score(changed, input_shape=(3, 8, 8))
    assert all(torch.equal(first[key], second[key]) for key in first)
    changed[1].running_var.mul_(4).sub_(3 * -changed[1].eps)  # scale 1 / sqrt(4 var + 4 eps) is half as large
    halved = score(changed, input_shape=(3, 8, 8))
    torch.testing.assert_close(halved["3.weight"], first["3.weight"] / 2, rtol=1e-6, atol=0)


def test_batch_norm_without_running_statistics_counts_with_variance_one():
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    randomised(plain)[1].running_var.fill_(1)
    bare = copy.deepcopy(plain)
    bare[1] = nn.BatchNorm2d(2, track_running_stats=False)
    bare[1].load_state_dict(plain[1].state_dict(), strict=False)
    first, second = score(plain, input_shape=(1, 4, 4)), score(bare, input_shape=(1, 4, 4))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_snip_and_grasp_are_the_first_and_second_derivative_of_the_loss():
    model = small().double()
    x, y = batch((4,), 3)
    x = x.double()
    weights = {"0.weight": model[0].weight.detach(), "2.weight": model[2].weight.detach()}

    def loss(values):
        return F.cross_entropy(functional_call(model, values, (x,)), y)

    gradient = torch.func.grad(loss)(weights)
    half_square = torch.func.grad(lambda w: sum(g.square().sum() for g in torch.func.grad(loss)(w).values()) / 2)
    snip, grasp = (score(model, method, data=(x, y)) for method in ("snip", "grasp"))
    for key, slope in half_square(weights).items():
        torch.testing.assert_close(snip[key], (gradient[key] * weights[key]).abs())
        torch.testing.assert_close(grasp[key], slope * weights[key])
    assert min(values.min() for values in grasp.values()) < 0


def test_removing_a_weight_changes_half_the_squared_gradient_by_minus_its_grasp_score():
    model = small().double()
    x, y = batch((4,), 3)
    x = x.double()

    def half_square():
        slopes = torch.autograd.grad(F.cross_entropy(model(x), y), [model[0].weight, model[2].weight])
        return sum(slope.square().sum().item() for slope in slopes) / 2

    before, step = half_square(), 1e-6
    expected = score(model, "grasp", data=(x, y))["0.weight"][2, 1].item()
    with torch.no_grad():
        model[0].weight[2, 1] *= 1 - step
    # first order: the error is of order step relative to the curvature, 1e-4 is generous
    assert (half_square() - before) / step == pytest.approx(-expected, rel=1e-4)


def test_magnitude_and_random_scores_need_no_data():
    model = small()
    assert torch.equal(score(model, "magnitude")["0.weight"], model[0].weight.abs())
    drawn = score(model, "random", generator=seeded(3))
    again = score(model, "random", generator=seeded(3))
    assert all(torch.equal(drawn[key], again[key]) for key in drawn)
    values = torch.cat([score(models.mlp([100, 100]), "random", generator=seeded())["0.weight"].flatten()])
    # mean and variance of U(0, 1); the tolerances are five standard errors of 10000 draws
    assert values.mean().item() == pytest.approx(1 / 2, abs=5 * 0.00289)
    assert values.var().item() == pytest.approx(1 / 12, abs=5 * 0.00075)
    assert values.min() >= 0
    assert values.max() < 1


def test_another_loss_gives_other_scores():
    model, (x, y) = small(), batch((4,), 3)
    target = F.one_hot(y, 3).float()
    squared = score(model, "snip", data=(x, target), loss_fn=F.mse_loss)
    doubled = score(model, "snip", data=(x, target), loss_fn=lambda a, b: 2 * F.mse_loss(a, b))
    assert all(torch.allclose(2 * squared[key], doubled[key]) for key in squared)


@pytest.mark.parametrize("method", METHODS)
def test_scores_of_a_masked_network_are_those_of_the_network_with_these_weights_zero(method):
    model = small()
    mask = torch.rand(6, 4, generator=seeded()) < 0.5
    arguments = {"input_shape": (4,), "data": batch((4,), 3)}
    masked = score(model, method, masks={"0.weight": mask.float()}, generator=seeded(), **arguments)
    assert not masked["0.weight"][~mask].any()
    with torch.no_grad():
        model[0].weight.mul_(mask)
    zeroed = score(model, method, generator=seeded(), **arguments)
    torch.testing.assert_close(masked["0.weight"][mask], zeroed["0.weight"][mask])
    torch.testing.assert_close(masked["2.weight"], zeroed["2.weight"])


def test_scores_keep_the_dtype_of_the_weights_except_synflow():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        model, data = small().to(dtype), batch((4,), 3)
        assert score(model, "magnitude")["0.weight"].dtype == dtype
        assert score(model, "snip", data=data)["0.weight"].dtype == dtype
        assert score(model, input_shape=(4,))["0.weight"].dtype == torch.float64


def test_weights_of_one_tensor_in_two_layers_are_one_layer():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    scores = score(model, input_shape=(4,))
    assert list(scores) == ["0.weight", "3.weight"]
    # both uses count: the flow has degree two in the shared tensor
    assert scores["0.weight"].sum().item() == pytest.approx(2 * scores["3.weight"].sum().item(), rel=1e-12)
    result = prune(model, compression=4, input_shape=(4,), iterations=5)
    assert result.n_total == 24
    assert torch.equal(model[0].weight_mask, model[2].weight_mask)
    assert model[0].weight_orig is model[2].weight_orig


def test_a_single_layer_is_a_model_too():
    layer = nn.Linear(3, 2)
    assert list(score(layer, input_shape=(3,))) == ["weight"]
    assert prune(layer, compression=3, input_shape=(3,)).n_kept == 2
    assert list(conservation(layer, input_shape=(3,))) == [""]


@pytest.mark.parametrize("reparametrise", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_reparametrised_weights_are_scored_but_cannot_be_masked(reparametrise):
    model = small()
    reparametrise(model[0])
    weight = model.eval()[0].weight.detach().clone()
    before = copy.deepcopy(model.train().state_dict())
    twin = small()
    with torch.no_grad():
        twin[0].weight.copy_(weight)
        twin[2].weight.copy_(model[2].weight)
    for _ in range(2):
        first, second = score(model, input_shape=(4,)), score(twin, input_shape=(4,))
        torch.testing.assert_close(first["0.weight"], second["0.weight"], rtol=1e-6, atol=0)
    assert prune(model, compression=2, input_shape=(4,), inplace=False).n_kept == 21
    with pytest.raises(ValueError, match="model must be free of reparametrised weights .*, got one at '0.weight'"):
        prune(model, compression=2, input_shape=(4,))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_compression_six_of_the_tiny_network_leaves_one_path():
    model = tiny()
    result = prune(model, compression=6, input_shape=(2,), iterations=1)
    assert result.masks["0.weight"].nonzero().tolist() == [[0, 1]]
    assert result.masks["2.weight"].nonzero().tolist() == [[1, 0]]
    assert (result.n_total, result.n_kept, result.method, result.compression) == (12, 2, "synflow", 6.0)
    assert result.layer_density == {"0.weight": 1 / 6, "2.weight": 1 / 6}
    assert result.collapsed_layers == ()
    assert result.connected is True
    # 2 * 2 along the only path
    assert model(torch.ones(1, 2)).tolist() == [[0, 0]]
    assert model(-torch.ones(1, 2)).tolist() == [[0, 4]]


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize(
    ("compression", "iterations", "schedule", "scope"),
    [
        (3, 1, "exponential", "global"),
        (10, 20, "exponential", "global"),
        (10, 5, "linear", "global"),
        (5, 10, "exponential", "layer"),
        (4, 3, "linear", "layer"),
    ],
)
def test_iterated_synflow_equals_the_plain_algorithm_in_float64(name, compression, iterations, schedule, scope):
    build, shape = ZOO[name]
    model = randomised(build(), 2)
    expected = plain_prune(model, shape, compression, iterations, schedule, scope)
    result = prune(
        model,
        compression=compression,
        iterations=iterations,
        schedule=schedule,
        scope=scope,
        input_shape=shape,
        inplace=False,
    )
    assert n_different(result.masks, expected) == 0
    assert result.n_kept == sum(int(mask.sum()) for mask in expected.values())


class Mixed(nn.Module):
    """Layers that the fast loop reduces to blocks, and layers that it cannot, with a skip; about 500000 weights."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32, padding_mode="replicate")
        self.wide = nn.Conv2d(32, 256, 3, stride=2, padding=1)
        self.branch = nn.Conv2d(256, 64, (1, 3), padding=(0, 1), bias=False)
        self.back = nn.Conv2d(64, 256, 3, padding=2, dilation=2)
        self.head = nn.Linear(256 * 16, 50)

    def forward(self, x):
        h = self.stem(x)
        h = F.max_pool2d(F.relu(self.wide(h + F.relu(self.depthwise(h)))), 2)
        h = h + self.back(F.relu(self.branch(h)))
        return self.head(F.adaptive_avg_pool2d(h, 4).flatten(1))


LARGE = {
    "mixed": (Mixed, (3, 32, 32)),
    "perceptron": (lambda: models.mlp([300, 600, 200, 10]), (300,)),
    "tokens": (lambda: Attention(40, 256, 512), (6, 40)),
    "used outside": (lambda: UsedOutside(400, 700), (400,)),
    "called twice": (lambda: CalledTwice(520), (520,)),
    "tanh": (lambda: models.mlp([300, 600, 200, 10], "tanh"), (300,)),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize(("compression", "iterations"), [(1.5, 1), (60, 9)])
def test_large_networks_take_the_fast_loop_to_the_same_masks(name, compression, iterations):
    build, shape = LARGE[name]
    model = build()
    for index, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=seeded(index))
    expected = plain_prune_large(model, shape, compression, iterations)
    result = prune(model, compression=compression, iterations=iterations, input_shape=shape, inplace=False)
    assert result.n_total > 2**18
    # other kernels, other rounding: two pairs of scores that agree to fifteen digits may be exchanged
    assert n_different(result.masks, expected) <= 4


def test_the_fast_loop_prunes_layer_by_layer_too():
    model = models.mlp([400, 800, 10], generator=seeded())
    result = prune(model, compression=7, iterations=6, scope="layer", input_shape=(400,), inplace=False)
    assert [int(mask.sum()) for mask in result.masks.values()] == [round(320_000 / 7), round(8000 / 7)]


@pytest.mark.parametrize(
    ("build", "width"),
    [(lambda: models.mlp([1800, 2400, 100], generator=seeded()), 1800), (lambda: DeepResidual(5, 950, 0.1), 950)],
    ids=["chain", "residual"],
)
def test_float32_iteration_of_a_huge_network_exchanges_only_a_few_weights(build, width):
    model = build()
    result = prune(model, compression=10, iterations=3, input_shape=(width,), inplace=False)
    expected = plain_prune_large(model, (width,), 10, 3)
    assert result.n_total > 2**22
    assert result.n_kept == round(result.n_total / 10) == sum(int(mask.sum()) for mask in expected.values())
    # scores are right to six digits: of 450000 kept weights a handful lies that close to the threshold
    assert n_different(result.masks, expected) < 40


def test_a_huge_network_without_flow_is_pruned_by_index():
    model = models.mlp([1700, 2500, 10], bias=False, generator=seeded())
    with torch.no_grad():
        model[2].weight.zero_()
    result = prune(model, compression=2, iterations=2, input_shape=(1700,), inplace=False)
    kept = torch.cat([mask.flatten() for mask in result.masks.values()])
    assert result.n_kept == kept.numel() // 2
    assert kept[: result.n_kept].all()
    assert result.connected is False


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=2, max_size=5),
    method=st.sampled_from(METHODS),
    iterations=st.integers(1, 6),
    schedule=st.sampled_from(["exponential", "linear"]),
    scope=st.sampled_from(["global", "layer"]),
    part=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_the_number_of_kept_weights_is_exact(sizes, method, iterations, schedule, scope, part, seed):
    model = models.mlp(sizes, generator=seeded(seed))
    layer_sizes = [a * b for a, b in pairwise(sizes)]
    compression = sum(layer_sizes) ** part
    result = prune(
        model,
        method,
        compression=compression,
        iterations=iterations,
        schedule=schedule,
        scope=scope,
        input_shape=(sizes[0],),
        data=batch((sizes[0],), sizes[-1]),
        generator=seeded(seed),
    )
    groups = [sum(layer_sizes)] if scope == "global" else layer_sizes
    assert result.n_kept == sum(max(1, round(size / compression)) for size in groups)
    assert result.n_total == sum(layer_sizes)
    assert result.n_kept == sum(int(mask.sum()) for mask in result.masks.values())
    for key, mask in result.masks.items():
        assert result.layer_density[key] == int(mask.sum()) / mask.numel()
        assert (key in result.collapsed_layers) == (not mask.any())
        assert torch.equal(model.get_submodule(key.removesuffix(".weight")).weight_mask, mask.float())
    assert result.connected == (
        plain_scores(models.mlp(sizes, generator=seeded(seed)), (sizes[0],), result.masks)[1] > 0
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), steps=st.integers(1, 5))
def test_a_pruned_weight_never_comes_back(seed, steps):
    model = randomised(models.mlp([5, 6, 4]), seed)
    before = {key: torch.ones_like(values, dtype=torch.bool) for key, values in score(model, "magnitude").items()}
    for step in range(1, steps + 1):
        method = METHODS[(seed + step) % len(METHODS)]
        compression = 1.6**step
        result = prune(model, method, compression=compression, iterations=1, input_shape=(5,), data=batch((5,), 4))
        assert all((result.masks[key] <= before[key]).all() for key in before)
        assert result.n_kept == round(54 / compression)
        before = result.masks
    looser = prune(model, compression=1.2, input_shape=(5,), inplace=False)
    assert n_different(looser.masks, before) == 0


def test_of_equal_scores_the_lower_index_is_kept():
    model = models.mlp([3, 4, 2], bias=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    kept = prune(model, "magnitude", compression=20 / 7, inplace=False).masks
    assert kept["0.weight"].flatten().tolist() == [True] * 7 + [False] * 5
    assert not kept["2.weight"].any()
    # every path of the 3-4-2 net weighs the same: scores 2 / 12 of the flow in layer one, 3 / 24 in layer two
    kept = prune(model, compression=20 / 15, iterations=1, input_shape=(3,), inplace=False).masks
    assert kept["0.weight"].flatten().tolist() == [False] * 12 or kept["2.weight"].all()
    assert sum(int(mask.sum()) for mask in kept.values()) == 15


def test_weights_without_score_go_first_and_from_the_end():
    model = tiny()
    scores = score(model, input_shape=(2,))
    assert scores["0.weight"][2, 1] == scores["2.weight"][1, 2] == 0
    eleven = prune(model, compression=12 / 11, iterations=1, input_shape=(2,), inplace=False).masks
    assert not eleven["2.weight"][1, 2]
    assert eleven["0.weight"].all()


def test_magnitude_pruning_does_not_change_with_the_number_of_rounds():
    model = models.vgg16(width_divisor=16, generator=seeded())
    once, often = (prune(model, "magnitude", compression=200, iterations=n, inplace=False) for n in (1, 20))
    assert n_different(once.masks, often.masks) == 0


def test_schedules_meet_at_the_same_count_by_different_ways():
    model = randomised(models.mlp([8, 20, 6]), 1)
    results = {
        schedule: prune(model, compression=14, iterations=7, schedule=schedule, input_shape=(8,), inplace=False)
        for schedule in ("exponential", "linear")
    }
    assert {result.n_kept for result in results.values()} == {20}
    assert n_different(results["exponential"].masks, results["linear"].masks) > 0


def test_the_last_round_keeps_the_rounded_quotient():
    for n_weights, compression, kept in ((12, 1.0, 12), (12, 8.0, 2), (12, 4.8, 2), (12, 3.43, 3), (12, 12.0, 1)):
        assert round(Fraction(n_weights) / Fraction(str(compression))) == kept
        result = prune(tiny(), compression=compression, input_shape=(2,), iterations=3)
        assert result.n_kept == kept


def test_pruned_weights_stay_zero_under_training():
    model = models.mlp([6, 12, 3], generator=seeded())
    result = prune(model, compression=4, input_shape=(6,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    x, y = batch((6,), 3, n_samples=40)
    before = F.cross_entropy(model(x), y).item()
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert F.cross_entropy(model(x), y).item() < before
    for key, mask in result.masks.items():
        module = model.get_submodule(key.removesuffix(".weight"))
        assert not module.weight[~mask].any()
        assert module.weight[mask].any()


def test_masks_are_those_of_torch_and_can_be_made_permanent():
    model = models.mlp([6, 12, 3], generator=seeded())
    x = batch((6,), 3)[0]
    weight = model[0].weight.detach().clone()
    result = prune(model, compression=4, input_shape=(6,))
    assert torch_prune.is_pruned(model)
    assert {"0.weight_orig", "2.weight_orig"} <= {name for name, _ in model.named_parameters()}
    assert {"0.weight_mask", "2.weight_mask"} == {name for name, _ in model.named_buffers()}
    assert torch.equal(model[0].weight_orig, weight)
    output = model(x)
    for index in (0, 2):
        torch_prune.remove(model[index], "weight")
    assert list(model.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert torch.equal(model[0].weight, weight * result.masks["0.weight"])
    assert torch.equal(model(x), output)


def test_a_pruned_model_survives_saving_and_loading():
    first, second = (models.mlp([6, 12, 3], generator=seeded(seed)) for seed in (0, 1))
    prune(first, compression=4, input_shape=(6,))
    prune(second, "random", compression=2, generator=seeded())
    second.load_state_dict(first.state_dict())
    x = batch((6,), 3)[0]
    assert torch.equal(first(x), second(x))
    again = prune(second, compression=1, input_shape=(6,), inplace=False)
    assert again.n_kept == 27


def test_weights_pruned_by_torch_count_among_the_pruned():
    model = small()
    torch_prune.random_unstructured(model[0], "weight", 0.5)
    mask = model[0].weight_mask.bool()
    assert torch.equal(score(model, input_shape=(4,))["0.weight"] > 0, mask)
    result = prune(model, compression=3, iterations=4, input_shape=(4,))
    assert result.n_total == 42
    assert result.n_kept == 14
    assert not result.masks["0.weight"][~mask].any()
    assert torch.equal(model[0].weight_mask.bool(), result.masks["0.weight"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("call", ["score", "prune", "conservation"])
def test_the_users_model_is_left_as_it_was(method, call):
    model = randomised(conv2d()).train()
    model[0].weight.requires_grad_(False)
    torch_prune.l1_unstructured(model[3], "weight", 0.3)
    data = batch((3, 8, 8), 5)
    F.cross_entropy(model(data[0]), data[1]).backward()
    handle = model[4].register_forward_hook(lambda *_: None)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    weight, rng = model[3].weight, torch.random.get_rng_state()
    arguments = {"input_shape": (3, 8, 8), "data": data}
    if call == "score":
        score(model, method, generator=seeded(), **arguments)
    elif call == "prune":
        prune(model, method, compression=3, iterations=2, inplace=False, generator=seeded(), **arguments)
    else:
        conservation(model, **({"data": data} if method == "snip" else {"input_shape": (3, 8, 8)}))
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert {n: p.grad for n, p in model.named_parameters() if p.grad is not None}.keys() == gradients.keys()
    assert all(torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters() if n in gradients)
    assert all(module.training for module in model.modules())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert model[3].weight is weight
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    handle.remove()


def test_frozen_layers_and_no_grad_make_no_difference():
    model, data = small(), batch((4,), 3)
    expected = {method: score(model, method, input_shape=(4,), data=data) for method in ("synflow", "snip", "grasp")}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu")):
        with context:
            for method, scores in expected.items():
                again = score(model, method, input_shape=(4,), data=data)
                assert all(torch.equal(scores[key], again[key]) for key in scores)
    prune(model, "snip", compression=2, data=data)
    assert not model[0].weight_orig.requires_grad


def test_scoring_with_data_uses_eval_mode():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    data = batch((4,), 3)
    first, second = (score(randomised(m), "snip", data=data) for m in (model, copy.deepcopy(model).eval()))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_memory_format_does_not_matter():
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)))
    expected = prune(model, compression=3, input_shape=(3, 8, 8), inplace=False)
    result = prune(model.to(memory_format=torch.channels_last), compression=3, input_shape=(3, 8, 8))
    assert n_different(result.masks, expected.masks) == 0


def test_connected_is_reported_for_every_method_that_knows_the_input_shape():
    model = small()
    assert prune(model, "magnitude", compression=2, inplace=False).connected is None
    assert prune(model, "magnitude", compression=2, inplace=False, input_shape=(4,)).connected is True
    assert prune(model, "magnitude", compression=42, inplace=False, input_shape=(4,)).connected is False


def test_a_result_cannot_be_changed():
    result = prune(tiny(), compression=2, input_shape=(2,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.n_kept = 0


@pytest.mark.parametrize(
    ("build", "divisor", "expected"),
    [
        (models.vgg16, 1, 1_051_113.14),
        (models.vgg11, 1, 1_024_760.89),
        (models.resnet18, 1, 531_635.81),
        (models.vgg16, 8, 16_477.14),
        (models.vgg11, 8, 16_095.11),
        (models.resnet18, 8, 8_342.48),
    ],
)
def test_max_compression_is_one_weight_per_layer(build, divisor, expected):
    assert max_compression(build(width_divisor=divisor)) == pytest.approx(expected, abs=0.005)


def test_critical_compression_of_the_tiny_network_is_the_largest_possible():
    assert critical_compression(score(tiny(), input_shape=(2,))) == 6 == max_compression(tiny())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=8), min_size=1, max_size=5))
def test_the_rank_formula_equals_a_scan_over_every_count(layers):
    scores = {str(i): torch.tensor(values, dtype=torch.float64) for i, values in enumerate(layers)}
    flat = torch.cat(list(scores.values()))
    owner = torch.cat([torch.full((len(values),), i) for i, values in enumerate(layers)])
    order = torch.argsort(-flat, stable=True)
    fewest = next(k for k in range(1, len(flat) + 1) if len(set(owner[order[:k]].tolist())) == len(layers))
    assert critical_compression(scores) == len(flat) / fewest


@pytest.mark.parametrize("method", ["random", "magnitude", "synflow"])
def test_one_round_collapses_right_behind_the_critical_compression(method):
    model = models.vgg16(width_divisor=16, generator=seeded())
    scores = score(model, method, input_shape=IMAGE, generator=seeded())
    critical = critical_compression(scores)
    n_total = sum(values.numel() for values in scores.values())
    n_kept = round(n_total / critical)
    for kept, collapsed in ((n_kept, False), (n_kept - 1, True)):
        result = prune(
            model,
            method,
            compression=n_total / kept,
            iterations=1,
            input_shape=IMAGE,
            generator=seeded(),
            inplace=False,
        )
        assert bool(result.collapsed_layers) == collapsed


def test_random_pruning_collapses_where_the_smallest_layers_run_out():
    sizes = {"small": 60, "medium": 400, "large": 4000}
    generator = seeded()
    drawn = [
        critical_compression({name: torch.rand(size, generator=generator) for name, size in sizes.items()})
        for _ in range(400)
    ]
    # median: half the draws leave no layer empty, prod (1 - exp(-size / compression)) = 1/2; about 60 / ln 2
    low, high = 1.0, 1000.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        alive = math.prod(1 - math.exp(-size / middle) for size in sizes.values())
        low, high = (middle, high) if alive > 0.5 else (low, middle)
    # half the draws lie below: 400 coins have a standard error of 10
    assert abs(sum(value < low for value in drawn) - 200) < 40
    assert low == pytest.approx(60 / math.log(2), rel=0.02)


def test_the_mean_synflow_score_of_a_layer_is_inversely_proportional_to_its_size():
    scores = score(models.vgg16(width_divisor=8, generator=seeded()), input_shape=IMAGE)
    products = [values.mean().item() * values.numel() for values in scores.values()]
    assert max(products) / min(products) - 1 < 1e-12


def test_one_shot_synflow_collapses_early_and_iterated_synflow_not_at_all():
    model = models.vgg16(width_divisor=8, generator=seeded())
    one_shot = critical_compression(score(model, input_shape=IMAGE))
    assert 5 < one_shot < 60
    for compression in (100, 10_000):
        result = prune(model, compression=compression, input_shape=IMAGE, inplace=False)
        assert result.collapsed_layers == ()
        assert result.connected
        assert result.n_kept == round(230_680 / compression)
        once = prune(model, compression=compression, iterations=1, input_shape=IMAGE, inplace=False)
        assert once.collapsed_layers


def test_synflow_reaches_the_maximal_compression():
    model = models.vgg16(width_divisor=8, generator=seeded())
    result = prune(model, compression=max_compression(model), iterations=200, input_shape=IMAGE, inplace=False)
    assert result.n_kept == 14
    assert all(int(mask.sum()) == 1 for mask in result.masks.values())
    assert result.connected


def test_skips_let_a_branch_be_emptied_while_the_network_stays_connected():
    model = models.resnet18(width_divisor=8, generator=seeded())
    result = prune(model, compression=1000, input_shape=IMAGE, inplace=False)
    assert result.collapsed_layers
    assert all("conv" in key or "shortcut" in key for key in result.collapsed_layers)
    assert result.connected


def test_no_empty_layer_does_not_mean_connected():
    model = models.mlp([2, 2, 2], "identity", bias=False)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, 1.0], [1.0, 1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0], [1.0, 1.0]]))
    result = prune(model, "magnitude", compression=4, input_shape=(2,), inplace=False)
    assert result.collapsed_layers == ()
    assert result.connected is False


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=3, max_size=5), seed=st.integers(0, 10_000), part=st.floats(0.05, 0.95)
)
def test_a_round_that_removes_little_cannot_empty_a_layer(sizes, seed, part):
    model = randomised(models.mlp(sizes, bias=False), seed)
    layers = [a * b for a, b in pairwise(sizes)]
    kept = max(1, round(sum(layers) * part))
    result = prune(model, compression=sum(layers) / kept, iterations=1, input_shape=(sizes[0],), inplace=False)
    for size, mask in zip(layers, result.masks.values(), strict=True):
        if sum(layers) - kept < size or kept > (len(layers) - 1) * size:
            assert mask.any()


def test_removing_one_weight_at_a_time_empties_no_layer_of_a_chain():
    model = randomised(models.mlp([4, 5, 3, 2], bias=False), 3)
    n_weights = 41
    masks = None
    for kept in range(n_weights - 1, 2, -1):
        scores = score(model, input_shape=(4,), masks=masks)
        flat = torch.cat([values.flatten() for values in scores.values()])
        alive = torch.ones_like(flat, dtype=torch.bool)
        if masks is not None:
            alive = torch.cat([mask.flatten() for mask in masks.values()])
        parts = sort_selection(flat, alive, kept).split([values.numel() for values in scores.values()])
        masks = {key: part.view_as(scores[key]) for key, part in zip(scores, parts, strict=True)}
        assert all(mask.any() for mask in masks.values())
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1]


def test_flow_into_each_unit_of_the_tiny_network_flows_out():
    flows = conservation(tiny(), input_shape=(2,))
    assert flows["0"].inflow.tolist() == flows["0"].outflow.tolist() == [9, 5, 1.5]
    assert flows["0"].residual == 0
    assert flows["2"].outflow is None
    assert math.isnan(flows["2"].residual)
    assert flows["0"].total == flows["2"].total == 15.5
    assert flows["0"].inflow.dtype == torch.float64


def homogeneous_net():
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, groups=2, padding_mode="replicate", padding=1), nn.LeakyReLU(0.1), nn.AvgPool2d(2)),
        *(nn.Conv2d(8, 4, 1, bias=False), nn.PReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(16, 5)),
    )


def test_saliency_of_a_homogeneous_network_is_conserved_by_every_unit_on_any_batch():
    flows = conservation(randomised(homogeneous_net()), data=batch((2, 8, 8), 5))
    assert list(flows) == ["0", "3", "6", "10"]
    assert [len(flow.inflow) for flow in flows.values()] == [6, 8, 4, 5]
    assert all(flow.residual < 1e-12 for name, flow in flows.items() if name != "10")
    assert flows["0"].inflow.min() < 0 < flows["0"].inflow.max()


def test_layer_totals_differ_by_the_saliency_of_the_biases_between():
    model, data = randomised(homogeneous_net()).double(), batch((2, 8, 8), 5)
    flows = conservation(model, data=data)
    x, y = data[0].double(), data[1]
    biases = {name: model.get_submodule(name).bias for name in ("0", "3", "10")}
    slopes = torch.autograd.grad(F.cross_entropy(model.eval()(x), y), list(biases.values()))
    saliency = {n: (b * g).sum().item() for (n, b), g in zip(biases.items(), slopes, strict=True)}
    assert flows["0"].total + saliency["0"] == pytest.approx(flows["3"].total, rel=1e-10)
    assert flows["3"].total + saliency["3"] == pytest.approx(flows["6"].total, rel=1e-10)
    assert flows["6"].total == pytest.approx(flows["10"].total, rel=1e-10)


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_activations_that_are_not_homogeneous_break_the_conservation(activation):
    model, data = randomised(models.mlp([5, 8, 3], activation)), batch((5,), 3)
    assert conservation(model, data=data)["0"].residual > 0.01
    assert conservation(randomised(models.mlp([5, 8, 3])), data=data)["0"].residual < 1e-12


def test_synflow_of_a_fresh_vgg_is_the_same_through_every_layer():
    flows = conservation(models.vgg16(width_divisor=8, generator=seeded()), input_shape=IMAGE)
    totals = [flow.total for flow in flows.values()]
    # float64 sums of 2e5 terms
    assert max(totals) / min(totals) - 1 < 1e-12
    assert all(flow.residual < 1e-12 for name, flow in flows.items() if name != "45")


def test_layers_of_a_residual_branch_carry_their_share_of_the_paths():
    flows = conservation(models.resnet18(width_divisor=8, generator=seeded()), input_shape=IMAGE)
    flow = flows["conv"].total
    assert flows["fc"].total == pytest.approx(flow, rel=1e-12)
    for i in range(8):
        branch = flows[f"blocks.{i}.conv1"].total
        assert branch == pytest.approx(flows[f"blocks.{i}.conv2"].total, rel=1e-12)
        assert 0.9 < branch / flow < 1 - 1e-6
        if i in (2, 4, 6):
            assert branch + flows[f"blocks.{i}.shortcut.0"].total == pytest.approx(flow, rel=1e-12)


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.left(h) - self.right(h)


def test_pairs_say_which_layer_reads_which():
    model, data = randomised(TwoReaders()), batch((5,), 3)
    both = conservation(model, data=data, pairs=[("first", "left"), ("first", "right")])
    assert both["first"].residual < 1e-12
    assert both["left"].outflow is None
    assert conservation(model, data=data, pairs=[("first", "left")])["first"].residual > 0.01
    assert conservation(model, data=data, pairs=[])["first"].outflow is None


def test_units_inside_a_residual_branch_conserve_the_flow_and_the_stream_does_not():
    model = models.resnet18(width_divisor=8, generator=seeded())
    pairs = [("blocks.1.conv1", "blocks.1.conv2"), ("blocks.1.conv2", "blocks.2.conv1")]
    flows = conservation(model, input_shape=IMAGE, pairs=pairs)
    assert flows["blocks.1.conv1"].residual < 1e-12
    assert flows["blocks.1.conv2"].residual > 1e-3


def test_a_pair_whose_widths_do_not_fit_is_left_out_unless_it_was_asked_for():
    model = models.resnet18(width_divisor=16, generator=seeded())
    assert conservation(model, input_shape=IMAGE)["blocks.2.conv2"].outflow is None
    with pytest.raises(ValueError, match=r"pairs\[0\] must be layers of fitting widths, got 8 units read as 4 inputs"):
        conservation(model, input_shape=IMAGE, pairs=[("blocks.2.conv2", "blocks.2.shortcut.0")])


def batch_norm_net(eps=1e-5):
    torch_model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, eps=eps), nn.ReLU(), nn.Linear(6, 3))
    return randomised(torch_model, 4).double()


def saliencies(model, data):
    parameters = dict(model.named_parameters())
    slopes = torch.autograd.grad(F.cross_entropy(model(data[0].double()), data[1]), list(parameters.values()))
    return {name: (p * g).detach() for (name, p), g in zip(parameters.items(), slopes, strict=True)}


def test_batch_norm_in_train_mode_cuts_the_flow_and_starts_a_new_one():
    s = saliencies(batch_norm_net(eps=1e-12).train(), batch((5,), 3, 20))
    outflow = s["3.weight"].sum(dim=0)
    # the scale of the weights is ignored up to eps / variance
    assert (s["0.weight"].sum(dim=1) + s["0.bias"]).abs().max() < 1e-10
    torch.testing.assert_close(s["1.weight"] + s["1.bias"], outflow, rtol=1e-12, atol=1e-14)
    assert outflow.abs().max() > 0.01


def test_batch_norm_in_eval_mode_conserves_the_flow_up_to_its_shift():
    model, data = batch_norm_net().eval(), batch((5,), 3, 20)
    s = saliencies(model, data)
    norm, outflow = model[1], s["3.weight"].sum(dim=0)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    slope_u = s["1.bias"] / norm.bias
    shifted = s["0.weight"].sum(dim=1) + s["0.bias"] + s["1.bias"] - scale * norm.running_mean * slope_u
    torch.testing.assert_close(shifted, outflow, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(s["1.weight"] + s["1.bias"], outflow, rtol=1e-11, atol=1e-14)
    assert conservation(model, data=data)["0"].residual > 0.01
    with torch.no_grad():
        norm.bias.zero_()
        norm.running_mean.zero_()
    assert conservation(model, data=data)["0"].residual < 1e-12
    # synaptic flow treats the shifts as zero
    assert conservation(batch_norm_net(), input_shape=(5,))["0"].residual < 1e-12


def test_conservation_agrees_with_the_scores():
    model = randomised(conv1d())
    scores, flows = score(model, input_shape=(3, 16)), conservation(model, input_shape=(3, 16))
    for name, flow in flows.items():
        torch.testing.assert_close(flow.inflow, scores[f"{name}.weight"].flatten(1).sum(dim=1))
        assert flow.total == pytest.approx(scores[f"{name}.weight"].sum().item(), rel=1e-12)


def chain(n_layers, width, std):
    model = models.mlp([width] * (n_layers + 1), bias=False, generator=seeded())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(std * math.sqrt(width / 2))
    return model


def scaled_to_order_one(model):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2.0 ** -round(math.log2(parameter.abs().sum(dim=1).mean().item())))
    return twin


def test_a_chain_of_sixty_layers_is_beyond_float32_and_within_float64():
    flows = conservation(chain(60, 100, 0.7), input_shape=(100,))
    totals = [flow.total for flow in flows.values()]
    assert 1e100 < totals[0] < 1e110
    assert max(totals) / min(totals) - 1 < 1e-12
    assert all(flow.residual < 1e-12 for flow in list(flows.values())[:-1])


@pytest.mark.parametrize(
    ("n_layers", "width", "std"),
    [(60, 100, 0.7), (60, 100, 1e-3), (400, 12, 1.0), (400, 12, 1e-3), (120, 50, 30.0)],
)
def test_dividing_the_layers_of_a_chain_by_powers_of_two_changes_no_mask(n_layers, width, std):
    model = chain(n_layers, width, std)
    masks, scaled = (
        prune(m, compression=10, iterations=5, input_shape=(width,), inplace=False)
        for m in (model, scaled_to_order_one(model))
    )
    # along a single path all scores are equal, and rounding may order them
    assert n_different(masks.masks, scaled.masks) < 0.01 * masks.n_kept
    assert masks.n_kept == round(n_layers * width**2 / 10)
    assert masks.connected


class DeepResidual(nn.Module):
    def __init__(self, n_layers, width, std):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(n_layers))
        self.head = nn.Linear(width, 3, bias=False)
        for index, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, std=std, generator=seeded(index))

    def forward(self, x):
        for branch in self.branches:
            x = x + F.relu(branch(x))
        return self.head(x)


def test_residual_networks_beyond_float64_are_pruned_with_the_scale_split_evenly():
    model = DeepResidual(170, 30, 4.0)
    with pytest.raises(ValueError, match="the synaptic flow of model must be within the range of float64, got inf"):
        score(model, input_shape=(30,))
    result = prune(model, compression=10, iterations=3, input_shape=(30,), inplace=False)
    assert result.n_kept == round((170 * 900 + 90) / 10)
    assert result.connected
    # without biases scaling inputs and outputs scales all scores alike, here into the range
    expected = plain_prune_large(model, (30,), 10, 3, scale=2.0**-550)
    assert n_different(result.masks, expected) <= 4


def test_a_flow_that_leaves_float64_is_refused_with_the_place():
    with pytest.raises(ValueError, match=r"within the range of float64, got inf or nan at '\d+.weight'"):
        score(chain(400, 12, 1.0), input_shape=(12,))
    with pytest.raises(ValueError, match="within the range of float64, got 0"):
        score(chain(400, 12, 1e-3), input_shape=(12,))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), exponents=st.lists(st.integers(-40, 40), min_size=3, max_size=3))
def test_the_scale_of_a_layer_multiplies_all_synflow_scores_alike(seed, exponents):
    model = randomised(models.mlp([4, 6, 5, 3]), seed)
    before = score(model, input_shape=(4,))
    with torch.no_grad():
        for index, exponent in zip((0, 2, 4), exponents, strict=True):
            model[index].weight.mul_(2.0**exponent)
    after = score(model, input_shape=(4,))
    assert all(torch.equal(after[key], before[key] * 2.0 ** sum(exponents)) for key in before)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_renaming_hidden_units_renames_their_scores(seed):
    model = randomised(models.mlp([4, 6, 3]), seed)
    order = torch.randperm(6, generator=seeded(seed))
    renamed = copy.deepcopy(model)
    with torch.no_grad():
        renamed[0].weight.copy_(model[0].weight[order])
        renamed[2].weight.copy_(model[2].weight[:, order])
    before, after = score(model, input_shape=(4,)), score(renamed, input_shape=(4,))
    torch.testing.assert_close(after["0.weight"], before["0.weight"][order], rtol=1e-13, atol=0)
    torch.testing.assert_close(after["2.weight"], before["2.weight"][:, order], rtol=1e-13, atol=0)


def test_the_number_of_threads_is_as_before():
    before = torch.get_num_threads()
    prune(small(), compression=2, input_shape=(4,))
    prune(models.mlp([500, 600, 10]), compression=2, iterations=2, input_shape=(500,))
    with pytest.raises(ValueError, match="input_shape must be"):
        prune(models.mlp([500, 600, 10]), compression=2, iterations=2, input_shape=(501,))
    assert torch.get_num_threads() == before


DATA = batch((4,), 3)


def nan_model():
    model = small()
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    return model


class ReturnsPair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x), x


def bad(call, error, message, name):
    return pytest.param(call, error, message, id=name)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        bad(lambda: score(None, "random"), TypeError, "model must be a torch.nn.Module, got NoneType", "no model"),
        bad(lambda: score(small().state_dict(), "random"), TypeError, "model must be .*, got OrderedDict", "state"),
        bad(
            lambda: score(nn.ReLU(), "random"), ValueError, "model must be a module with Linear or .*, got none", "relu"
        ),
        bad(lambda: score(nn.LazyLinear(3), "random"), ValueError, "model must be initialised .*, got a lazy", "lazy"),
        bad(lambda: score(nn.Linear(2, 2, device="meta"), "random"), ValueError, "must be on a device", "meta"),
        bad(lambda: score(nan_model(), "magnitude"), ValueError, "finite weights, got nan or inf in '2.weight'", "nan"),
        bad(
            lambda: score(nan_model(), input_shape=(4,)), ValueError, "finite weights, got .* in '2.weight'", "nan flow"
        ),
        bad(lambda: score(ReturnsPair(), input_shape=(4,)), ValueError, "one tensor, got a tuple", "pair out"),
        bad(lambda: score(small(), "taylor"), ValueError, "method must be one of .*'synflow', got 'taylor'", "method"),
        bad(lambda: score(small(), None), TypeError, "method must be one of .*, got NoneType", "method None"),
        bad(lambda: score(small()), ValueError, "input_shape must be given for method 'synflow', got None", "no shape"),
        bad(lambda: score(small(), input_shape=4), TypeError, "input_shape must be a tuple .*, got int", "int shape"),
        bad(lambda: score(small(), input_shape=()), ValueError, "input_shape must be at least one size", "no sizes"),
        bad(lambda: score(small(), input_shape=(0,)), ValueError, r"input_shape\[0\] must be >= 1, got 0", "size 0"),
        bad(
            lambda: score(small(), input_shape=(4.0,)), TypeError, r"input_shape\[0\] must be an integer", "float size"
        ),
        bad(
            lambda: score(small(), input_shape=(8,)), ValueError, "input_shape must be a shape that .*8,", "wrong size"
        ),
        bad(
            lambda: score(small(), "snip"), ValueError, "data must be given as .*'snip', got None", "snip without data"
        ),
        bad(lambda: score(small(), "grasp", input_shape=(4,)), ValueError, "data must be given .*'grasp'", "grasp"),
        bad(lambda: score(small(), "snip", data=DATA[0]), TypeError, "data must be a pair .*, got Tensor", "no pair"),
        bad(lambda: score(small(), "snip", data=DATA[:1]), ValueError, "data must be a pair .*, got 1 items", "single"),
        bad(lambda: score(small(), "snip", data=([1.0], DATA[1])), TypeError, r"data\[0\] must be a tensor", "list"),
        bad(lambda: score(small(), "snip", data=(DATA[0], DATA[1][:3])), ValueError, "as long as", "unequal"),
        bad(
            lambda: score(small(), "snip", data=(DATA[0][:0], DATA[1][:0])), ValueError, "at least one sample", "empty"
        ),
        bad(
            lambda: score(small(), "snip", data=(DATA[0][:, :2], DATA[1])), ValueError, "data must be inputs", "narrow"
        ),
        bad(lambda: score(small(), "snip", data=(DATA[0], DATA[1] + 5)), ValueError, "loss_fn accept, got", "labels"),
        bad(lambda: score(small(), "snip", data=(DATA[0] / 0, DATA[1])), ValueError, "of finite loss, got nan", "inf"),
        bad(lambda: score(small(), "snip", data=DATA, loss_fn=1), TypeError, "loss_fn must be callable", "loss_fn"),
        bad(
            lambda: score(small(), "snip", data=DATA, loss_fn=lambda a, b: 1.0),
            TypeError,
            "loss_fn must be a function that returns a scalar tensor, got float",
            "float loss",
        ),
        bad(
            lambda: score(small(), "snip", data=DATA, loss_fn=nn.CrossEntropyLoss(reduction="none")),
            ValueError,
            r"loss_fn must be a function that returns a scalar tensor, got one of shape \(7,\)",
            "loss per sample",
        ),
        bad(lambda: score(small(), "random", generator=0), TypeError, "generator must be a torch.Generator", "seed"),
        bad(lambda: score(small(), "random", masks=[1]), TypeError, "masks must be a mapping .*, got list", "masks"),
        bad(lambda: score(small(), "random", masks={"1.weight": 1}), ValueError, "masks must be named after", "name"),
        bad(
            lambda: score(small(), "random", masks={"0.weight": 1}), TypeError, r"must be a tensor, got int", "int mask"
        ),
        bad(
            lambda: score(small(), "random", masks={"0.weight": torch.ones(4, 6)}),
            ValueError,
            r"masks\['0.weight'\] must be of shape \(6, 4\), got shape \(4, 6\)",
            "mask shape",
        ),
        bad(
            lambda: score(small(), "random", masks={"0.weight": torch.full((6, 4), 0.5)}),
            ValueError,
            r"masks\['0.weight'\] must be 0 or 1 everywhere",
            "half mask",
        ),
        bad(lambda: prune(small(), "magnitude", compression=0.9), ValueError, "must be >= 1, got 0.9", "below one"),
        bad(lambda: prune(small(), "magnitude", compression=-2), ValueError, "must be >= 1, got -2", "negative"),
        bad(lambda: prune(small(), "magnitude", compression=math.inf), ValueError, "finite, got inf", "infinite"),
        bad(lambda: prune(small(), "magnitude", compression=math.nan), ValueError, "finite, got nan", "not a number"),
        bad(lambda: prune(small(), "magnitude", compression=43), ValueError, "must be <= 42, the number", "too large"),
        bad(lambda: prune(small(), "magnitude", compression="9"), TypeError, "compression must be real", "text"),
        bad(lambda: prune(small(), "magnitude", compression=True), TypeError, "compression must be real", "bool"),
        bad(lambda: prune(small(), "magnitude", compression=[2, 3]), ValueError, "must be a single number", "two"),
        bad(
            lambda: prune(small(), "random", compression=2, iterations=0), ValueError, "iterations must be >= 1", "0 it"
        ),
        bad(lambda: prune(small(), "random", compression=2, iterations=2.0), TypeError, "iterations must be an", "2.0"),
        bad(lambda: prune(small(), "random", compression=2, iterations=True), TypeError, "iterations must be", "True"),
        bad(lambda: prune(small(), "random", compression=2, schedule="cubic"), ValueError, "schedule must be", "cubic"),
        bad(lambda: prune(small(), "random", compression=2, scope="unit"), ValueError, "scope must be one of", "scope"),
        bad(lambda: prune(small(), "random", compression=2, inplace=1), TypeError, "inplace must be a bool", "inplace"),
        bad(lambda: prune(small(), compression=2), ValueError, "input_shape must be given for method", "prune shape"),
        bad(lambda: prune(small(), "snip", compression=2), ValueError, "data must be given", "prune data"),
        bad(lambda: prune(nn.Identity(), compression=2, input_shape=(2,)), ValueError, "got none", "prune identity"),
        bad(lambda: conservation(small()), ValueError, "input_shape or data must be given, .*, got none", "neither"),
        bad(
            lambda: conservation(small(), input_shape=(4,), data=DATA),
            ValueError,
            "input_shape or data must be given, and only one of them, got both",
            "both",
        ),
        bad(lambda: conservation("net", data=DATA), TypeError, "model must be a torch.nn.Module, got str", "no net"),
        bad(lambda: conservation(small(), data=DATA, pairs=3), TypeError, "pairs must be a sequence of", "pairs"),
        bad(lambda: conservation(small(), data=DATA, pairs=["02"]), TypeError, r"pairs\[0\] must be a \(prod", "text"),
        bad(lambda: conservation(small(), data=DATA, pairs=[("0",)]), ValueError, r"pairs\[0\] must be .* 1 i", "one"),
        bad(lambda: conservation(small(), data=DATA, pairs=[("0", "1")]), ValueError, "one of '0', '2', got '1'", "1"),
        bad(lambda: conservation(small(), data=DATA, pairs=[("2", "0")]), ValueError, "3 units read as 4", "unfit"),
        bad(lambda: max_compression(nn.ReLU()), ValueError, "model must be a module with Linear", "max of relu"),
        bad(lambda: max_compression(3), TypeError, "model must be a torch.nn.Module, got int", "max of int"),
        bad(lambda: max_compression(nn.Linear(0, 2)), ValueError, "made of layers with weights", "no weights"),
        bad(lambda: critical_compression({}), ValueError, "scores must be at least one layer, got none", "no scores"),
        bad(lambda: critical_compression([DATA[0]]), TypeError, "scores must be a mapping", "list of scores"),
        bad(
            lambda: critical_compression({"a": [1.0]}), TypeError, r"scores\['a'\] must be a tensor, got list", "lists"
        ),
        bad(lambda: critical_compression({"a": torch.ones(0)}), ValueError, "must be at least one number", "empty one"),
        bad(
            lambda: critical_compression({"a": DATA[0] / 0}), ValueError, r"scores\['a'\] must be finite", "inf scores"
        ),
        bad(lambda: critical_compression({"a": DATA[0] > 0}), TypeError, "must be a tensor of real numbers", "bools"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_bad_input_is_refused_in_one_voice(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_module_that_cannot_be_copied_is_refused():
    model = small()
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match="model must be a module that copy.deepcopy can copy, got TypeError"):
        score(model, input_shape=(4,))
