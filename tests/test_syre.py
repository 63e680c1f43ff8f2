import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from symlearn.models import mlp, small_cnn
from symlearn.symmetry import MirrorSymmetry
from symlearn.syre import (
    Syre,
    biased_fixed_point,
    escape_force,
    low_capacity_report,
    min_escape_force,
    reflection_gap,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(dtype=torch.float64):
    return mlp([3, 4, 2], "tanh", generator=generator()).to(dtype)


# --- the anchor ---


@pytest.mark.parametrize("form", ["module", "dict", "iterable"])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_the_penalty_pulls_towards_the_anchor_at_the_stated_rates(form, spread):
    model = network()
    params = {"module": model, "dict": dict(model.named_parameters()), "iterable": model.parameters()}[form]
    anchor = Syre(params, weight_decay=0.06, std=0.2, spread=spread, seed=3)
    anchor.penalty().backward()
    for p, name in zip(model.parameters(), anchor.anchors, strict=True):
        expected = 0.06 * anchor.scales[name] * (p.detach() - anchor.anchors[name])
        torch.testing.assert_close(p.grad, expected, rtol=1e-12, atol=1e-14)
    if form == "iterable":
        assert list(anchor.anchors) == ["0", "1", "2", "3"]


def test_without_an_anchor_the_penalty_is_the_weight_decay_of_torch():
    model, twin = network(), network()
    anchor = Syre(model, weight_decay=0.06, std=1e-300)
    mine, theirs = (
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.optim.SGD(twin.parameters(), 0.1, weight_decay=0.06),
    )
    for net, optimizer, extra in ((model, mine, anchor.penalty()), (twin, theirs, 0.0)):
        (net(torch.ones(1, 3).double()).square().sum() + extra).backward()
        optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_decoupled_decay_is_one_gradient_step_on_the_penalty(spread):
    model = network()
    anchor = Syre(model, weight_decay=0.5, std=0.2, spread=spread)
    anchor.penalty().backward()
    expected = [p.detach() - 0.1 * p.grad for p in model.parameters()]
    anchor.apply_decay_(0.1)
    for p, q in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=1e-14)


def test_building_it_changes_no_parameter_and_no_random_state():
    model = network()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    Syre(model, weight_decay=0.1, spread=0.5).penalty()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_same_seed_gives_the_same_anchor_in_any_order_and_any_dtype():
    model = network()
    named = dict(model.named_parameters())
    first = Syre(model, weight_decay=0.1, seed=5)
    backwards = Syre(dict(reversed(named.items())), weight_decay=0.1, seed=5)
    alone = Syre({"2.weight": named["2.weight"]}, weight_decay=0.1, seed=5)
    low = Syre(network(torch.float32), weight_decay=0.1, seed=5)
    other = Syre(model, weight_decay=0.1, seed=6)
    for name, value in first.anchors.items():
        assert torch.equal(value, backwards.anchors[name])
        torch.testing.assert_close(low.anchors[name], value.float(), rtol=0, atol=0)
        assert not torch.equal(value, other.anchors[name])
    assert torch.equal(alone.anchors["2.weight"], first.anchors["2.weight"])


def test_anchors_and_scales_have_the_stated_distribution():
    big = {"w": torch.zeros(300, 400), "b": torch.zeros(300)}
    anchor = Syre(big, weight_decay=0.1, spread=0.4)
    for name, width in (("w", 0.01 / 20), ("b", 0.01 / math.sqrt(300))):
        values = anchor.anchors[name].flatten().double().numpy() / width
        assert stats.kstest(values, "norm").pvalue > 1e-3
    scale = anchor.scales["w"].flatten().double().numpy()
    assert stats.kstest((scale - 0.6) / 0.8, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(scale, anchor.anchors["w"].flatten())[0, 1]) < 0.02
    assert float(Syre(big, weight_decay=0.1, std=0.3).anchors["w"].std()) == pytest.approx(0.3, rel=0.02)
    assert all(bool((s == 1).all()) for s in Syre(big, weight_decay=0.1).scales.values())


def test_a_shared_parameter_is_anchored_once():
    shared = nn.Parameter(torch.ones(3))
    anchor = Syre([shared, shared], weight_decay=2.0, std=1e-9)
    assert float(anchor.penalty().detach()) == pytest.approx(3.0, rel=1e-5)


def test_a_checkpoint_restores_the_anchor():
    model = network()
    first = Syre(model, weight_decay=0.1, spread=0.2, seed=1)
    other = Syre(model, weight_decay=0.9, seed=2)
    other.load_state_dict(first.state_dict())
    torch.testing.assert_close(other.penalty(), first.penalty(), rtol=0, atol=0)
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
    torch.testing.assert_close(other.penalty(), first.penalty(), rtol=0, atol=0)


# --- training ---


def quadratic(n=6, seed=0):
    root = torch.randn(n, n, generator=generator(seed), dtype=torch.float64)
    return root @ root.T / n + 0.1 * torch.eye(n), torch.randn(n, generator=generator(seed + 1), dtype=torch.float64)


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_gradient_descent_ends_at_the_biased_ridge_solution(spread):
    A, b = quadratic()
    theta = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    anchor = Syre([theta], weight_decay=0.3, std=0.4, spread=spread)
    optimizer = torch.optim.SGD([theta], lr=0.2)
    for _ in range(3000):
        optimizer.zero_grad()
        (theta @ A @ theta / 2 - b @ theta + anchor.penalty()).backward()
        optimizer.step()
    decay = 0.3 * torch.diag(anchor.scales["0"])
    exact = torch.linalg.solve(A + decay, b + decay @ anchor.anchors["0"])
    torch.testing.assert_close(theta.detach(), exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_attached_decay_has_its_own_exact_fixed_point(spread):
    A, b = quadratic()
    theta, lr = nn.Parameter(torch.zeros(6, dtype=torch.float64)), 0.2
    anchor = Syre([theta], weight_decay=0.3, std=0.4, spread=spread)
    optimizer = torch.optim.SGD([theta], lr=lr)
    handle = anchor.attach(optimizer)
    for _ in range(3000):
        optimizer.zero_grad()
        (theta @ A @ theta / 2 - b @ theta).backward()
        optimizer.step()
    D = 0.3 * torch.diag(anchor.scales["0"])
    eye = torch.eye(6, dtype=torch.float64)
    exact = torch.linalg.solve((eye - lr * D) @ A + D, (eye - lr * D) @ b + D @ anchor.anchors["0"])
    torch.testing.assert_close(theta.detach(), exact, rtol=0, atol=1e-10)
    handle.remove()
    before = theta.detach().clone()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(before, theta.detach())


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    ],
)
def test_any_optimizer_can_be_anchored_with_its_own_learning_rate(build):
    model, twin = network(), network()
    anchor = Syre(model, weight_decay=0.5, std=0.2)
    mine, theirs = build(model.parameters()), build(twin.parameters())
    anchor.attach(mine)
    x = torch.randn(5, 3, generator=generator(2), dtype=torch.float64)
    for net, optimizer in ((model, mine), (twin, theirs)):
        net(x).square().sum().backward()
        optimizer.step()
    Syre(twin, weight_decay=0.5, std=0.2).apply_decay_(0.01)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-12)


def test_groups_keep_their_learning_rates_and_foreign_parameters_are_left_alone():
    first, second, foreign = (nn.Parameter(torch.ones(2).double()) for _ in range(3))
    anchor = Syre([first, second], weight_decay=1.0, std=1e-12)
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second, foreign], "lr": 0.5}], lr=1.0)
    anchor.attach(optimizer)
    optimizer.step()
    assert first.tolist() == pytest.approx([0.9, 0.9])
    assert second.tolist() == pytest.approx([0.5, 0.5])
    assert foreign.tolist() == [1, 1]


def cloned_network(seed=0):
    model = mlp([4, 6, 1], "tanh", generator=generator(seed)).double()
    with torch.no_grad():
        for p, axis in ((model[0].weight, 0), (model[0].bias, 0), (model[2].weight, 1)):
            p.copy_(p.select(axis, 0).unsqueeze(axis).expand_as(p))
    return model


def trained(model, anchor=None, weight_decay=0.0, n_steps=400):
    x = torch.randn(60, 4, generator=generator(5), dtype=torch.float64)
    y = torch.sin(2 * x[:, :1]) * x[:, 1:2]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=weight_decay)
    if anchor is not None:
        anchor.attach(optimizer)
    for _ in range(n_steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return low_capacity_report(model).layers[0]


def test_clones_stay_clones_under_weight_decay_and_separate_under_an_anchor():
    assert trained(cloned_network(), weight_decay=2e-3).duplicates == 5
    model = cloned_network()
    assert trained(model, Syre(model, weight_decay=2e-3, std=0.1)).duplicates == 0


def test_it_survives_distributed_training_because_every_rank_draws_the_same_anchor():
    replicas = [copy.deepcopy(network()) for _ in range(2)]
    for model in replicas:
        Syre(model, weight_decay=0.3, seed=4).apply_decay_(0.1)
    for p, q in zip(*(m.parameters() for m in replicas), strict=True):
        assert torch.equal(p, q)


def train_on_rank(rank, n_ranks, store, queue):
    """One of two processes: half of the data, averaged gradients, the anchor attached to the local optimizer."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n_ranks)
    model = network()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    Syre(model, weight_decay=0.3, std=0.2).attach(optimizer)
    x = torch.randn(8, 3, generator=generator(9), dtype=torch.float64)[rank::n_ranks]
    for _ in range(5):
        optimizer.zero_grad()
        parallel(x).square().mean().backward()
        optimizer.step()
    queue.put([p.detach().numpy() for p in model.parameters()])
    torch.distributed.destroy_process_group()


def test_two_processes_train_the_same_anchored_network_as_one(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=train_on_rank, args=(r, 2, tmp_path / "store", queue)) for r in range(2)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Syre(model, weight_decay=0.3, std=0.2).attach(optimizer)
    x = torch.randn(8, 3, generator=generator(9), dtype=torch.float64)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    for alone, one, other in zip(model.parameters(), *results, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, alone.detach().numpy(), rtol=1e-10, atol=1e-13)


# --- closed forms ---


@given(st.integers(0, 10**6), st.floats(0, 2), st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_reflection_gap_is_the_difference_of_two_penalties(seed, weight_decay, uneven):
    rng = np.random.default_rng(seed)
    mirror = MirrorSymmetry.from_constraint(rng.normal(size=(3, 8)))
    theta, anchor = rng.normal(size=(2, 8))
    scale = rng.uniform(0.8, 1.2, 8) if uneven else 1.0

    def penalty(point):
        return weight_decay / 2 * (scale * (point - anchor) ** 2).sum()

    gap = reflection_gap(mirror, theta, anchor, weight_decay, scale)
    assert gap == pytest.approx(penalty(mirror.reflect(theta)) - penalty(theta), abs=1e-12)
    assert gap == pytest.approx(reflection_gap(mirror.O, theta, anchor, weight_decay, scale), abs=1e-12)
    if not uneven:
        product = 2 * weight_decay * mirror.coordinates(theta) @ mirror.coordinates(anchor)
        assert gap == pytest.approx(product, abs=1e-12)


def test_the_escape_force_is_the_slope_of_the_penalty_off_the_mirror():
    rng = np.random.default_rng(0)
    mirror = MirrorSymmetry.swap(8, [0, 1], [4, 5])
    anchor = rng.normal(size=8)
    force = escape_force(mirror, anchor, 0.7)
    for _ in range(3):
        theta = torch.tensor(mirror.project(rng.normal(size=8)), requires_grad=True)
        (0.35 * (theta - torch.tensor(anchor)).square().sum()).backward()
        assert float(mirror.distance(theta.grad)) == pytest.approx(force, rel=1e-12)
    assert escape_force(mirror, mirror.project(anchor), 0.7) == pytest.approx(0, abs=1e-15)
    assert escape_force(MirrorSymmetry.flip(3, [1]), torch.tensor([1.0, 2.0, 3.0]), 0.5) == 1.0


@pytest.mark.parametrize(
    ("delta", "thresholds"),
    [(0.05, [3.1333e-4, 0.0223607, 0.9959261]), (0.5, [0.0031333, 0.0707107, 1.2537967])],
)
def test_the_weakest_of_many_mirrors_as_computed_before(delta, thresholds):
    np.testing.assert_allclose(min_escape_force(200, [1, 2, 10], 1.0, 1.0, delta), thresholds, rtol=2e-5)
    np.testing.assert_allclose(
        min_escape_force(200, [1, 2, 10], 0.3, 0.1, delta), 0.03 * np.array(thresholds), rtol=2e-5
    )


@pytest.mark.parametrize("rank", [1, 2, 10, 77])
def test_the_bound_on_the_weakest_mirror_holds_and_is_not_idle(rank):
    weakest = min_escape_force(200, rank, 1.0, 1.0, 0.05)
    assert 0.02 < 200 * stats.chi(rank).cdf(weakest) <= 0.05 * (1 + 1e-9) or rank > 2
    assert 200 * stats.chi(rank).cdf(weakest) <= 0.05 * (1 + 1e-9)
    draws = stats.chi(rank).rvs((2000, 200), random_state=1).min(1)
    share = (draws < weakest).mean()
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_millions_of_mirrors_of_large_rank_do_not_overflow():
    force = min_escape_force(10**9, 5000, 1.0, 1.0)
    assert 40 < force < math.sqrt(5000)


def test_a_collapsing_coordinate_ends_between_zero_and_its_anchor():
    assert biased_fixed_point(1.0, 0.1, 0.5) == pytest.approx(1 / 30, rel=1e-12)
    values = biased_fixed_point([0.0, 1.0, 99.0], 2.0, 1.0)
    np.testing.assert_allclose(values, [2.0, 1.0, 0.02])
    assert biased_fixed_point(-0.2, 1.0, 0.5) == pytest.approx(5 / 3)
    assert biased_fixed_point(3.0, 1.0, 0.0) == 0


# --- the report ---


def test_a_layer_with_known_faults_is_reported_as_such():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.outer(torch.ones(3), torch.ones(5)))
        model[2].weight[0, 0] = 2
    first, second = low_capacity_report(model).layers
    assert (first.name, first.units, first.dead, first.duplicates, first.rank, first.max_rank) == ("0", 5, 1, 1, 3, 4)
    assert (second.dead, second.duplicates, second.rank, second.max_rank) == (0, 1, 2, 3)
    p = np.array([math.sqrt(2), 2, 3]) / (5 + math.sqrt(2))
    assert first.effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_a_bias_can_tell_units_apart_and_keep_one_alive():
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0], [1, 0], [0, 0]]))
        layer.bias.copy_(torch.tensor([0.0, 1, 1]))
    (row,) = low_capacity_report(layer).layers
    assert (row.dead, row.duplicates, row.rank) == (0, 0, 1)


def test_a_layer_of_zeros_is_all_dead():
    layer = nn.Linear(3, 4)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    (row,) = low_capacity_report(layer).layers
    assert (row.dead, row.duplicates, row.rank, row.effective_rank) == (4, 0, 0, 0)


def test_an_orthogonal_layer_has_full_effective_rank():
    layer = nn.Linear(6, 6, bias=False)
    nn.init.orthogonal_(layer.weight)
    (row,) = low_capacity_report(layer).layers
    assert row.effective_rank == pytest.approx(6, rel=1e-5)
    assert (row.rank, row.duplicates) == (6, 0)


def test_near_copies_chain_into_one_cluster():
    layer = nn.Linear(1, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [1.0008], [1.0016], [2.0]]))
    assert low_capacity_report(layer).layers[0].duplicates == 2
    assert low_capacity_report(layer, tol=1e-4).layers[0].duplicates == 0


def test_convolutions_are_reported_channel_by_channel_and_nothing_changes():
    model = small_cnn((1, 8, 8), generator=generator()).half()
    before = copy.deepcopy(model.state_dict())
    report = low_capacity_report(model)
    assert [(r.name, r.units, r.max_rank) for r in report.layers] == [("0", 8, 8), ("3", 16, 16), ("7", 10, 10)]
    assert "effective" in str(report)
    assert str(report).count("\n") == 3
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# --- bad input ---

W = {"w": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("params", "options", "error", "message"),
    [
        (W, {"weight_decay": -0.1}, ValueError, r"weight_decay must be >= 0, got -0.1"),
        (W, {"weight_decay": math.nan}, ValueError, "weight_decay must be finite"),
        (W, {"weight_decay": "0.1"}, TypeError, "weight_decay must be real numbers"),
        (W, {"weight_decay": [0.1, 0.2]}, ValueError, "weight_decay must be a single number"),
        (W, {"std": 0}, ValueError, "std must be > 0, got 0"),
        (W, {"std": -1.0}, ValueError, "std must be > 0, got -1"),
        (W, {"std": math.inf}, ValueError, "std must be finite"),
        (W, {"spread": -0.1}, ValueError, r"spread must be >= 0, got -0.1"),
        (W, {"spread": 1.0}, ValueError, r"spread must be in \[0, 1\), got 1"),
        (W, {"spread": math.nan}, ValueError, "spread must be finite"),
        (W, {"seed": 1.5}, TypeError, "seed must be an integer, got float"),
        (W, {"seed": -1}, ValueError, "seed must be >= 0, got -1"),
        (W, {"seed": True}, TypeError, "seed must be an integer, got bool"),
        ({}, {}, ValueError, "params must be at least one parameter, got none"),
        ([], {}, ValueError, "params must be at least one parameter, got none"),
        (nn.ReLU(), {}, ValueError, "params must be at least one parameter, got none"),
        (3, {}, TypeError, "params must be a module, a dict or an iterable of tensors, got int"),
        (torch.ones(2), {}, TypeError, "params must be a module, a dict or an iterable of tensors, got Tensor"),
        ({"w": np.ones(2)}, {}, TypeError, r"params\['w'\] must be a tensor, got ndarray"),
        ({"w": torch.ones(2, dtype=torch.long)}, {}, TypeError, r"params\['w'\] must be a floating-point tensor"),
    ],
)
def test_an_anchor_is_refused_for(params, options, error, message):
    with pytest.raises(error, match=message):
        Syre(params, **({"weight_decay": 0.1} | options))


@pytest.mark.parametrize("lr", [-0.1, math.nan, "fast", [0.1, 0.2]])
def test_a_bad_learning_rate_is_refused(lr):
    with pytest.raises((ValueError, TypeError), match="lr must be"):
        Syre(W, weight_decay=0.1).apply_decay_(lr)


def test_an_optimizer_that_cannot_be_anchored_is_refused():
    p = nn.Parameter(torch.ones(2))
    anchor = Syre([p], weight_decay=0.1)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got str"):
        anchor.attach("sgd")
    with pytest.raises(ValueError, match="optimizer must be an optimizer of the anchored parameters, got none of them"):
        anchor.attach(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1))
    with pytest.raises(ValueError, match=r"optimizer must be without weight_decay of its own, got weight_decay 0.01"):
        anchor.attach(torch.optim.AdamW([p], lr=0.1))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "state must be a state_dict of a Syre"),
        (None, "state must be a state_dict of a Syre, got NoneType"),
        ({"weight_decay": 0.1, "anchors": {}, "scales": {}}, r"state\['anchors'\] must be of the parameters w"),
        ({"weight_decay": -1, "anchors": W, "scales": W}, r"state\['weight_decay'\] must be >= 0, got -1"),
        (
            {"weight_decay": 0.1, "anchors": {"w": torch.ones(3)}, "scales": W},
            r"state\['anchors'\]\['w'\] must be of shape \(2, 2\), got shape \(3,\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(state, message):
    anchor = Syre(W, weight_decay=0.1)
    before = anchor.penalty()
    with pytest.raises(ValueError, match=message):
        anchor.load_state_dict(state)
    assert torch.equal(before, anchor.penalty())


FLIP = MirrorSymmetry.flip(2, [0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: escape_force(FLIP, [1.0, 2.0, 3.0], 0.1), r"anchor must be of shape \(2,\), got shape \(3,\)"),
        (lambda: escape_force(FLIP, [1.0, math.nan], 0.1), "anchor must be finite"),
        (lambda: escape_force(FLIP, [1.0, 2.0], -0.1), r"weight_decay must be >= 0, got -0.1"),
        (lambda: escape_force([[1.0], [1.0]], [1.0, 2.0], 0.1), "symmetry must be orthonormal in its columns"),
        (
            lambda: escape_force(np.ones((1, 1, 1)), [1.0], 0.1),
            r"symmetry must be a MirrorSymmetry or of shape \(n, k\)",
        ),
        (lambda: reflection_gap(FLIP, [1.0], [1.0, 2.0], 0.1), r"theta must be of shape \(2,\)"),
        (lambda: reflection_gap(FLIP, [1.0, 2.0], [1.0], 0.1), r"anchor must be of shape \(2,\)"),
        (lambda: reflection_gap(FLIP, [1.0, 2.0], [1.0, 2.0], 0.1, [1.0]), "scale must be a number or of shape"),
        (lambda: reflection_gap(FLIP, [1.0, 2.0], [1.0, 2.0], 0.1, -1.0), "scale must be >= 0, got -1"),
        (lambda: biased_fixed_point(-1.0, 0.1, 0.5), r"curvature \+ weight_decay must be > 0, got -0.5"),
        (lambda: biased_fixed_point(-0.5, 0.1, 0.5), r"curvature \+ weight_decay must be > 0, got 0"),
        (lambda: biased_fixed_point(math.inf, 0.1, 0.5), "curvature must be finite"),
        (lambda: biased_fixed_point(1.0, math.nan, 0.5), "anchor must be finite"),
        (lambda: biased_fixed_point(1.0, 0.1, -0.5), r"weight_decay must be >= 0, got -0.5"),
        (lambda: biased_fixed_point([1.0, 2.0], [1.0, 2.0, 3.0], 0.5), "must be of shapes that broadcast"),
        (lambda: min_escape_force(0, 1, 1.0, 1.0), "n_mirrors must be >= 1, got 0"),
        (lambda: min_escape_force(1, 0, 1.0, 1.0), "rank must be >= 1, got 0"),
        (lambda: min_escape_force(1, 1, 0.0, 1.0), "std must be > 0, got 0"),
        (lambda: min_escape_force(1, 1, 1.0, -1.0), "weight_decay must be >= 0, got -1"),
        (lambda: min_escape_force(1, 1, 1.0, 1.0, 0.0), "delta must be > 0, got 0"),
        (lambda: min_escape_force(1, 1, 1.0, 1.0, 1.0), r"delta must be in \(0, 1\), got 1"),
        (lambda: min_escape_force([1, 2], [1, 2, 3], 1.0, 1.0), "must be of shapes that broadcast"),
        (lambda: low_capacity_report(nn.ReLU()), "module must be a module with a Linear or Conv layer, got a ReLU"),
        (lambda: low_capacity_report(nn.Linear(2, 2), tol=0.0), "tol must be > 0, got 0"),
        (lambda: low_capacity_report(nn.Linear(2, 2), tol=1.0), r"tol must be in \(0, 1\), got 1"),
    ],
)
def test_a_closed_form_is_refused_for(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: min_escape_force(1.5, 1, 1.0, 1.0), "n_mirrors must be integers, got float"),
        (lambda: min_escape_force(1, 1.5, 1.0, 1.0), "rank must be integers, got float"),
        (lambda: escape_force("mirror", [1.0], 0.1), "symmetry must be"),
        (lambda: low_capacity_report("net"), r"module must be a torch.nn.Module, got str"),
        (lambda: biased_fixed_point("steep", 0.1, 0.5), "curvature must be"),
    ],
)
def test_a_wrong_type_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_broken_weight_is_named():
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, math.nan)
    with pytest.raises(ValueError, match="module must be of finite weights, got NaN or infinity in layer ''"):
        low_capacity_report(layer)
