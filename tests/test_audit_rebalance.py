"""Tests of rebalance: known minima, charges that vanish, functions that stay, optimizers that follow, and refusals."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from audit_models import (
    GLU,
    GPT,
    Attention,
    Between,
    Encoder,
    Grouped,
    Llama,
    LoRA,
    Recurrent,
    Twice,
    mlp,
    normal,
    resnet18,
    shaken,
    tokens,
    vgg,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from symlearn.audit import audit, rebalance
from symlearn.gradients import make_sample_loss, noise_covariance_trace, per_sample_gradients
from symlearn.noise_equilibrium import equilibrium
from symlearn.symmetry import Rescaling

# Charges are solved to 1e-12 of the squares they are made of, and these sum over many entries.
SOLVED = 1e-10
# Rounding through 20 layers in float64: measured up to 3e-15.
ROUNDING = 1e-12

EPS_ONLY = "exact up to eps only (approximate=True moves it)"

ZOO = {
    "mlp": (lambda: mlp(64, 32, 16, 10), lambda: normal(8, 64)),
    "vgg": (vgg, lambda: normal(2, 3, 16, 16)),
    "vgg batch norm": (lambda: vgg(True), lambda: normal(2, 3, 16, 16)),
    "resnet18": (lambda: resnet18(8), lambda: normal(2, 3, 32, 32)),
    "gpt": (GPT, lambda: tokens(2, 12, high=50)),
    "encoder": (lambda: Encoder(True, "gelu"), lambda: normal(2, 6, 8)),
    "rnn relu": (lambda: Recurrent(nn.RNN, nonlinearity="relu"), lambda: normal(2, 4, 6)),
    "lora": (LoRA, lambda: normal(8, 8)),
    "grouped query": (lambda: nn.Sequential(nn.LayerNorm(16), Attention(16, 4, 2)), lambda: normal(2, 5, 16)),
    "llama": (Llama, lambda: tokens(2, 6, high=20)),
    "reglu": (lambda: GLU(F.relu), lambda: normal(8, 6)),
    "twice": (Twice, lambda: normal(8, 4)),
    "grouped convolution": (Grouped, lambda: normal(2, 3, 4, 4)),
    "square linear": (lambda: mlp(6, 6, 6, 6, activation=None), lambda: normal(8, 6)),
}


@pytest.fixture(autouse=True)
def seeded():
    """Initialisations come from torch's global generator."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def balanced():
    made = {}

    def get(name, dtype=torch.float64):
        if (name, dtype) not in made:
            build, inputs = ZOO[name]
            torch.manual_seed(0)
            model, x = shaken(build()).to(dtype).eval(), inputs()
            x = x.to(dtype) if x.is_floating_point() else x
            report = audit(model, x, discover=("rescaling",), broken=False)
            made[name, dtype] = (model, x, report, rebalance(model, x, report=report))
        return made[name, dtype]

    return get


def tensors_of(model):
    return {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def norm(model):
    return sum(float(p.detach().double().square().sum()) for p in model.parameters() if p.requires_grad)


def blobs(n, features, classes, seed=3):
    x = normal(n, features, seed=seed).double()
    return x, (x @ normal(features, classes, seed=seed + 1).double()).argmax(1)


# The minimum


@pytest.mark.parametrize("name", ZOO)
def test_at_the_balanced_point_every_charge_is_zero_and_the_function_is_the_same(balanced, name):
    model, x, _, result = balanced(name)
    after = tensors_of(result.model)
    assert result.moved
    assert {reason for _, reason in result.skipped} <= {EPS_ONLY}
    for finding in result.moved:
        charge, squares = finding.symmetry.charge(after), norm(result.model)
        assert float(charge.abs().max()) < SOLVED * squares
        assert float(finding.symmetry.charge(tensors_of(model)).abs().max()) > 1e-3
    assert result.charge_after < 1e-9 * result.charge_before
    assert result.violation < ROUNDING
    with torch.no_grad():
        before, moved = model(x), result.model(x)
    assert float((before - moved).abs().max()) < ROUNDING * float(before.abs().max())


@pytest.mark.parametrize("name", ZOO)
def test_the_norm_falls_by_as_much_as_is_said(balanced, name):
    model, _, _, result = balanced(name)
    assert result.squared_norm == pytest.approx((norm(model), norm(result.model)), rel=1e-12)
    assert result.objective == result.squared_norm
    assert result.squared_norm[1] < 0.999 * result.squared_norm[0]


@pytest.mark.parametrize("name", ["mlp", "vgg batch norm", "gpt", "rnn relu", "grouped query", "reglu", "twice"])
def test_every_other_point_of_the_orbit_has_a_larger_norm(balanced, name):
    _, _, _, result = balanced(name)
    generator = torch.Generator().manual_seed(5)
    trained = [n for n, p in result.model.named_parameters() if p.requires_grad]
    least = norm(result.model)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(5):
            moved = tensors_of(result.model)
            for finding, amount in zip(result.moved, result.amounts, strict=True):
                step = size * torch.randn(amount.shape, dtype=torch.float64, generator=generator)
                moved = finding.symmetry.act(moved, step)
            # Second order in the step: far above rounding, even for steps of a thousandth.
            assert sum(float(moved[n].square().sum()) for n in trained) > least * (1 + 1e-9)


@pytest.mark.parametrize("name", ["mlp", "gpt", "rnn relu", "lora"])
def test_the_amounts_repeat_the_move(balanced, name):
    model, _, _, result = balanced(name)
    moved = tensors_of(model)
    for finding, amount in zip(result.moved, result.amounts, strict=True):
        moved = finding.symmetry.act(moved, amount)
    for key, tensor in tensors_of(result.model).items():
        torch.testing.assert_close(moved[key], tensor, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ["mlp", "vgg batch norm", "resnet18", "gpt", "rnn relu", "llama", "grouped query"])
def test_in_single_precision_the_outputs_change_by_rounding_only(balanced, name):
    model, x, _, result = balanced(name, torch.float32)
    assert result.violation < 1e-6
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    assert result.squared_norm[1] == pytest.approx(balanced(name)[3].squared_norm[1], rel=1e-4)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_balanced_to_its_own_rounding(dtype):
    model = shaken(mlp(8, 12, 4)).to(dtype)
    result = rebalance(model, normal(8, 8))
    assert all(p.dtype == dtype for p in result.model.parameters())
    assert 0 < result.violation < 4 * torch.finfo(dtype).eps
    assert result.charge_after < 0.05 * result.charge_before


def test_two_relu_layers_have_twice_the_path_norm():
    # min |u|^2 + |w|^2 at fixed |u| |w| is 2 |u| |w|, unit by unit.
    model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=False)).double()
    paths = float((model[0].weight.norm(dim=1) * model[2].weight.norm(dim=0)).sum().detach())
    assert rebalance(model, normal(8, 5).double()).squared_norm[1] == pytest.approx(2 * paths, rel=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_linear_layers_have_the_schatten_norm_of_their_product(depth):
    # min sum |W_l|^2 at fixed product is depth * sum sigma^(2 / depth) over its singular values.
    layers = [nn.Linear(4, 4, bias=False).double() for _ in range(depth)]
    product = torch.linalg.multi_dot([layer.weight.detach() for layer in reversed(layers)])
    expected = depth * float(torch.linalg.svdvals(product).pow(2 / depth).sum())
    result = rebalance(nn.Sequential(*layers), normal(8, 4).double())
    assert result.squared_norm[1] == pytest.approx(expected, rel=1e-11)


def test_one_unit_moves_by_a_quarter_of_the_logarithm():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(8.0)
        model[2].weight.fill_(0.5)
    result = rebalance(model, torch.tensor([[1.0], [2.0]]))
    assert float(result.amounts[0]) == pytest.approx(0.25 * math.log(0.25 / 64), rel=1e-12)
    assert [float(p.detach()) for p in result.model.parameters()] == [2.0, 2.0]
    assert (result.charge_before, result.charge_after) == (63.75, 0.0)


def test_a_recurrent_matrix_is_balanced_as_a_general_minimiser_would():
    model = shaken(Recurrent(nn.RNN, nonlinearity="relu")).double()
    report = audit(model, normal(2, 4, 6).double(), discover=("rescaling",))
    (cell,) = [each for each in report.symmetries if "cell.weight_hh_l0" in each.incoming]
    start = tensors_of(model)

    def size(amount):
        moved = cell.symmetry.act(start, torch.as_tensor(amount))
        return sum(float(moved[name].square().sum()) for name in cell.symmetry.names)

    best = minimize(size, torch.zeros(5, dtype=torch.float64).numpy(), tol=1e-14)
    only = dataclasses.replace(report, symmetries=(cell,))
    result = rebalance(model, normal(2, 4, 6).double(), report=only)
    # The minimiser differences the norm: its amounts are good to the square root of rounding.
    assert result.amounts[0].tolist() == pytest.approx(best.x.tolist(), abs=1e-5)
    assert size(result.amounts[0]) <= best.fun * (1 + 1e-13)


class LinearStream(nn.Module):
    """A stream without norms, on which one matrix acts from both sides."""

    def __init__(self):
        super().__init__()
        self.write, self.inside, self.read = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 6)

    def forward(self, x):
        x = self.write(x)
        return self.read(x + self.inside(x))


def test_a_matrix_that_is_mixed_from_both_sides_is_balanced_too():
    model = shaken(LinearStream()).double()
    result = rebalance(model, normal(8, 6).double())
    (finding,) = result.moved
    assert (finding.kind, finding.units, finding.dimension) == ("gl", 5, 25)
    assert result.charge_after < 1e-10
    assert result.violation < ROUNDING
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.1):
        step = size * torch.randn(5, 5, dtype=torch.float64, generator=generator)
        moved = finding.symmetry.act(tensors_of(result.model), (step + step.T) / 2)
        assert sum(float(t.square().sum()) for t in moved.values()) > result.squared_norm[1] * (1 + 1e-9)


def test_badly_conditioned_matrices_are_balanced_as_far_as_rounding_allows():
    # Singular values from 1 to 10^4 on both sides, unaligned: the Gram matrices have half the digits left.
    layers = [nn.Linear(12, 12, bias=False).double() for _ in range(2)]
    with torch.no_grad():
        for layer in layers:
            left, _, right = torch.linalg.svd(layer.weight)
            layer.weight.copy_(left @ torch.diag(torch.logspace(0, 4, 12, dtype=torch.float64)) @ right)
    nuclear = float(torch.linalg.svdvals(layers[1].weight.detach() @ layers[0].weight.detach()).sum())
    result = rebalance(nn.Sequential(*layers), normal(20, 12).double())
    assert result.squared_norm[1] == pytest.approx(2 * nuclear, rel=1e-8)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=3, max_size=5),
    spread=st.floats(0, 6),
    seed=st.integers(0, 10**6),
)
def test_networks_of_any_shape_and_scale_are_balanced(sizes, spread, seed):
    torch.manual_seed(seed)
    model = mlp(*sizes).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn_like(p) * (spread * torch.randn(p.shape[0]).double()).exp()[(...,) + (None,) * (p.ndim - 1)]
            )
    # One hidden unit between others that are off on these inputs leaves nothing to verify: many inputs.
    result = rebalance(model, normal(64, sizes[0]).double())
    after = tensors_of(result.model)
    for finding in result.moved:
        squares = sum(after[name].square().sum() for name in finding.symmetry.names)
        assert float(finding.symmetry.charge(after).abs().max()) < SOLVED * float(squares)
    assert result.squared_norm[1] <= result.squared_norm[0] * (1 + 1e-12)
    assert result.violation < 1e-10


# What stays


@pytest.mark.parametrize("name", ["mlp", "vgg batch norm", "gpt", "rnn relu", "square linear"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_second_time_changes_nothing(balanced, name, dtype):
    _, x, report, once = balanced(name, dtype)
    twice = rebalance(once.model, x, report=report)
    size = 1e-10 if dtype == torch.float64 else 1e-5
    for one, other in zip(once.model.parameters(), twice.model.parameters(), strict=True):
        assert float((one - other).detach().abs().max()) <= size * float(one.detach().abs().max())
    assert twice.squared_norm[1] == pytest.approx(once.squared_norm[1], rel=1e-10)


@pytest.mark.parametrize("name", ["mlp", "vgg", "gpt", "llama", "square linear"])
def test_the_order_of_the_families_does_not_matter(balanced, name):
    model, x, report, result = balanced(name)
    turned = dataclasses.replace(report, symmetries=report.symmetries[::-1])
    other = rebalance(model, x, report=turned)
    for one, two in zip(result.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)


def test_a_copy_is_moved_and_the_model_is_left_as_it_was():
    model = shaken(vgg(True)).train()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    model[-1].bias.grad = torch.ones(10)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    result = rebalance(model, normal(2, 3, 16, 16))
    assert torch.equal(torch.get_rng_state(), state)
    assert result.model is not model
    assert model.training
    assert result.model.training
    assert calls == []
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model[-1].bias.grad, torch.ones(10))
    assert all(p.grad is None for p in result.model.parameters())
    assert torch.get_default_dtype() == torch.float32


def test_in_place_the_same_tensors_hold_the_moved_values():
    model = shaken(mlp(8, 12, 4))
    expected = rebalance(model, normal(8, 8))
    own = list(model.parameters())
    result = rebalance(model, normal(8, 8), inplace=True)
    assert result.model is model
    for parameter, kept, other in zip(model.parameters(), own, expected.model.parameters(), strict=True):
        assert parameter is kept
        assert parameter.requires_grad
        assert torch.equal(parameter, other)


def test_tied_weights_stay_tied(balanced):
    _, _, _, result = balanced("gpt")
    assert result.model.head.weight is result.model.wte.weight
    model = shaken(GPT())
    rebalance(model, tokens(2, 12, high=50), inplace=True)
    assert model.head.weight is model.wte.weight


def test_what_is_frozen_is_left_and_said_to_be():
    model = shaken(mlp(4, 5, 6, 2)).double()
    model[0].bias.requires_grad_(False)
    x = normal(8, 4).double()
    for report in (None, audit(shaken(mlp(4, 5, 6, 2)), normal(8, 4))):  # also if it was not frozen at the audit
        result = rebalance(model, x, report=report)
        assert [each.units for each in result.moved] == [6]
        assert result.skipped == (("0.weight / 2.weight", "it moves frozen 0.bias"),)
        assert torch.equal(result.model[0].weight, model[0].weight)


def test_families_exact_up_to_eps_move_only_on_request():
    model, x = shaken(Encoder(True)).double(), normal(2, 6, 8).double()
    result = rebalance(model, x)
    assert [reason for _, reason in result.skipped] == [EPS_ONLY]
    assert result.violation < ROUNDING
    more = rebalance(model, x, approximate=True)
    assert more.skipped == ()
    assert more.squared_norm[1] < result.squared_norm[1]
    assert ROUNDING < more.violation < 0.01


def test_a_stream_that_only_norms_read_has_no_balanced_scale_but_the_units_inside_do():
    # Its writers and readers are scaled by s and 1/s and the hidden units can follow, so that the gain of the norm
    # that writes into it, also scaled by s, is held by nothing.
    model, x = shaken(Encoder()).double(), normal(2, 6, 8).double()
    result = rebalance(model, x, approximate=True)
    assert [name for name, _ in result.skipped] == [
        f"encoder.layers.{layer}.norm1.weight / encoder.layers.{layer}.linear1.weight: 1 of 1 units" for layer in (0, 1)
    ]
    assert "nothing finite holds them on one side" in result.skipped[0][1]
    hidden = [each for each in result.moved if each.units == 32]
    assert len(hidden) == 2
    for finding in hidden:
        assert float(finding.symmetry.charge(tensors_of(result.model)).abs().max()) < SOLVED


def test_a_bottleneck_of_linear_layers_has_no_balanced_point_and_stays():
    model = shaken(mlp(6, 5, 4, 3, activation=None))
    result = rebalance(model, normal(8, 6))
    assert [reason for _, reason in result.skipped] == [
        "one side has a lower rank than the block, or overflows: there is no balanced point"
    ] * 2
    assert result.skipped[0][0].endswith("1 of 1 blocks")
    assert result.violation == 0
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), result.model.parameters(), strict=True))


def test_other_exponents_stay_and_are_named():
    model = shaken(Between(lambda x: x.relu().square()))
    (skipped,) = rebalance(model, normal(8, 6)).skipped
    assert skipped[0] == "a.weight / last.weight"
    assert "exponents" in skipped[1]


def test_units_with_nothing_on_one_side_stay_and_the_others_are_balanced():
    model = shaken(mlp(4, 6, 3)).double()
    with torch.no_grad():
        model[2].weight[:, 1] = 0
        model[0].weight[4], model[0].bias[4] = 0, 0
    result = rebalance(model, normal(16, 4).double())
    assert result.skipped == (
        ("0.weight / 2.weight: 2 of 6 units", "nothing finite holds them on one side: there is no balanced point"),
    )
    assert torch.equal(result.model[0].weight[1], model[0].weight[1])
    charge = result.moved[0].symmetry.charge(tensors_of(result.model))
    assert float(charge[[0, 2, 3, 5]].abs().max()) < 1e-12
    assert result.charge_after < 1e-12


@pytest.mark.parametrize("activation", [nn.ReLU, None])
def test_weights_whose_squares_overflow_stay(activation):
    model = mlp(3, 3, 3, activation=activation).double()
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 1e200, 0
        model[-1].weight[:, 0] = 1e-120
    result = rebalance(model, normal(8, 3).double())
    assert len(result.skipped) == 1
    assert torch.equal(result.model[0].weight[0], model[0].weight[0])


def test_units_that_only_feed_each_other_are_not_driven_to_infinity():
    # Units 0 and 1 of the cell read each other alone, and the others: nothing holds their common scale from below.
    model = shaken(Recurrent(nn.RNN, nonlinearity="relu")).double()
    with torch.no_grad():
        cell = model.cell
        cell.weight_ih_l0[:2], cell.bias_ih_l0[:2], cell.bias_hh_l0[:2] = 0, 0, 0
        cell.weight_hh_l0[:2, 2:] = 0
    result = rebalance(model, normal(2, 4, 6).double())
    assert any(name.endswith("2 of 5 units") for name, _ in result.skipped)
    assert max(float(amount.abs().max()) for amount in result.amounts) < 5


def test_a_report_of_another_function_is_found_out_before_anything_is_changed():
    relu, tanh = shaken(mlp(4, 6, 3)), shaken(mlp(4, 6, 3, activation=nn.Tanh))
    report = audit(relu, normal(8, 4))
    before = copy.deepcopy(tanh.state_dict())
    with pytest.raises(ValueError, match=r"model must be one whose outputs stay the same .* got a change of"):
        rebalance(tanh, normal(8, 4), report=report, inplace=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in tanh.state_dict().items())


# What follows: gradients and the state of optimizers


def loss_of(model, x):
    return model(x).square().mean()


def with_gradients(build, x, optimizer_class=torch.optim.SGD, **options):
    """A model and the state that its optimizer has after one step of length zero."""
    model = shaken(build()).double()
    optimizer = optimizer_class(model.parameters(), lr=0.0, **options)
    loss_of(model, x).backward()
    optimizer.step()
    return model, optimizer


def fresh_gradients(model, x):
    return torch.autograd.grad(loss_of(model, x), list(model.parameters()))


@pytest.mark.parametrize("build", [lambda: mlp(5, 7, 6, 3), lambda: mlp(5, 5, 5, 5, activation=None)])
def test_gradients_and_momentum_become_those_of_the_moved_model(build):
    x = normal(8, 5).double()
    model, optimizer = with_gradients(build, x, momentum=0.9)
    old = [p.grad.clone() for p in model.parameters()]
    result = rebalance(model, x, inplace=True, optimizer=optimizer)
    assert result.squared_norm[1] < 0.99 * result.squared_norm[0]
    for parameter, gradient in zip(model.parameters(), fresh_gradients(model, x), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], gradient, rtol=1e-9, atol=1e-12)
    first = next(model.parameters())
    assert not torch.allclose(first.grad, old[0], rtol=1e-2)


ADAPTIVE = {
    "Adam": (torch.optim.Adam, {"amsgrad": True, "betas": (0.5, 0.75)}, {"exp_avg": (0.5, 1), "exp_avg_sq": (0.25, 2)}),
    "AdamW": (torch.optim.AdamW, {"betas": (0.5, 0.75)}, {"exp_avg": (0.5, 1), "exp_avg_sq": (0.25, 2)}),
    "NAdam": (torch.optim.NAdam, {"betas": (0.5, 0.75)}, {"exp_avg": (0.5, 1), "exp_avg_sq": (0.25, 2)}),
    "RAdam": (torch.optim.RAdam, {"betas": (0.5, 0.75)}, {"exp_avg": (0.5, 1), "exp_avg_sq": (0.25, 2)}),
    "RMSprop": (torch.optim.RMSprop, {"alpha": 0.5, "centered": True}, {"grad_avg": (0.5, 1), "square_avg": (0.5, 2)}),
    "Adagrad": (torch.optim.Adagrad, {}, {"sum": (1.0, 2)}),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_moments_of_adaptive_optimizers_become_those_of_the_moved_model(name):
    # After one step each is a known multiple of the gradient or of its square.
    kind, options, law = ADAPTIVE[name]
    x = normal(8, 5).double()
    model, optimizer = with_gradients(lambda: mlp(5, 7, 6, 3), x, kind, **options)
    rebalance(model, x, inplace=True, optimizer=optimizer)
    for parameter, gradient in zip(model.parameters(), fresh_gradients(model, x), strict=True):
        for key, (factor, power) in law.items():
            expected = factor * gradient**power
            torch.testing.assert_close(optimizer.state[parameter][key], expected, rtol=1e-9, atol=1e-14)


def test_the_momentum_of_rmsprop_is_a_ratio_that_does_not_move():
    x = normal(8, 5).double()
    model, optimizer = with_gradients(lambda: mlp(5, 7, 3), x, torch.optim.RMSprop, momentum=0.9, eps=1e-30)
    before = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    rebalance(model, x, inplace=True, optimizer=optimizer)
    for parameter, kept in zip(model.parameters(), before, strict=True):
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], kept)


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: mlp(5, 5, 5, 5, activation=None), torch.optim.Adam, r"optimizer must be without squares .* got Adam"),
        (lambda: mlp(5, 7, 3), torch.optim.Adadelta, r"optimizer must be one whose state has a known law .*Adadelta"),
        (lambda: mlp(5, 7, 3), torch.optim.Adamax, r"optimizer must be one whose state .* got Adamax with 'exp_avg'"),
    ],
)
def test_a_state_that_cannot_follow_is_refused_before_anything_moves(build, kind, message):
    x = normal(8, 5).double()
    model, optimizer = with_gradients(build, x, kind)
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        rebalance(model, x, inplace=True, optimizer=optimizer)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    for place, entries in optimizer.state_dict()["state"].items():
        assert all(
            torch.equal(torch.as_tensor(state["state"][place][k]), torch.as_tensor(v)) for k, v in entries.items()
        )


def test_an_optimizer_without_state_is_welcome():
    model = shaken(mlp(5, 7, 3))
    result = rebalance(model, normal(8, 5), inplace=True, optimizer=torch.optim.Adadelta(model.parameters()))
    assert result.charge_after < 1e-5 * result.charge_before


# Noise equilibrium


def measured_objective(model, x, y, temperature, weight_decay, loss=F.cross_entropy):
    with sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for the fused kernel
        gradients = per_sample_gradients(make_sample_loss(model.eval(), loss), dict(model.named_parameters()), x, y)
    noise = sum(float(each.var(0, unbiased=False).sum()) for each in gradients.values())
    return temperature * noise + 2 * weight_decay * norm(model)


@pytest.fixture(scope="module")
def at_noise_equilibrium():
    torch.manual_seed(0)
    model = shaken(mlp(6, 8, 5, 3)).double()
    x, y = blobs(100, 6, 3)
    options = {"loss_fn": F.cross_entropy, "targets": y, "temperature": 0.01, "weight_decay": 1e-3}
    return model, x, y, rebalance(model, x, target="noise_equilibrium", **options)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-3])
def test_the_predicted_noise_is_that_of_fresh_gradients(weight_decay):
    model = shaken(mlp(6, 8, 5, 3)).double()
    x, y = blobs(100, 6, 3)
    options = {"loss_fn": nn.CrossEntropyLoss(), "targets": y, "temperature": 0.01, "weight_decay": weight_decay}
    result = rebalance(model, x, target="noise_equilibrium", **options)
    before = measured_objective(model, x, y, 0.01, weight_decay)
    after = measured_objective(result.model, x, y, 0.01, weight_decay)
    assert result.objective == pytest.approx((before, after), rel=1e-11)
    assert after < 0.95 * before
    assert result.charge_after < 1e-11 * result.charge_before
    assert result.violation < ROUNDING
    assert after < measured_objective(rebalance(model, x).model, x, y, 0.01, weight_decay)


def test_it_is_the_equilibrium_of_the_chapter_on_noise(at_noise_equilibrium):
    model, x, y, result = at_noise_equilibrium
    families = [Rescaling(("0.weight", "0.bias"), "2.weight"), Rescaling(("2.weight", "2.bias"), "4.weight")]
    loss = make_sample_loss(model, F.cross_entropy)
    expected = equilibrium(loss, tensors_of(model), families, x, y, temperature=0.01, weight_decay=1e-3)
    for name, parameter in result.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected.params[name], rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(result.amounts, expected.amount, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_every_other_point_of_the_orbit_is_noisier(at_noise_equilibrium):
    _, x, y, result = at_noise_equilibrium
    generator = torch.Generator().manual_seed(2)
    for size in (0.01, 0.3):
        other = copy.deepcopy(result.model)
        moved = tensors_of(other)
        for finding in result.moved:
            step = size * torch.randn(finding.units, dtype=torch.float64, generator=generator)
            moved = finding.symmetry.act(moved, step)
        other.load_state_dict(moved)
        assert measured_objective(other, x, y, 0.01, 1e-3) > result.objective[1] * (1 + 1e-7)


def test_temperature_does_not_matter_without_weight_decay():
    model = shaken(mlp(6, 8, 3)).double()
    x, y = blobs(50, 6, 3)
    one, other = (
        rebalance(model, x, target="noise_equilibrium", loss_fn=F.cross_entropy, targets=y, temperature=temperature)
        for temperature in (1e-4, 10.0)
    )
    torch.testing.assert_close(one.amounts[0], other.amounts[0], rtol=1e-9, atol=1e-11)
    assert other.objective[0] == pytest.approx(1e5 * one.objective[0], rel=1e-12)


def test_batch_norm_counts_with_its_running_statistics():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model = shaken(model).double().train()
    x, y = blobs(60, 6, 3)
    options = {"loss_fn": F.cross_entropy, "targets": y, "temperature": 0.1}
    result = rebalance(model, x, target="noise_equilibrium", **options)
    assert [each.incoming[0] for each in result.moved] == ["1.weight"]
    expected = measured_objective(copy.deepcopy(result.model), x, y, 0.1, 0)
    assert result.objective[1] == pytest.approx(expected, rel=1e-10)
    assert model.training


def test_a_scale_has_an_equilibrium_with_weight_decay_and_its_statistics_move_along():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, eps=1e-12), nn.Tanh(), nn.Linear(8, 3))
    model = shaken(model).double().eval()
    x, y = blobs(60, 6, 3)
    options = {"loss_fn": F.cross_entropy, "targets": y, "temperature": 0.1, "approximate": True}
    assert rebalance(model, x, target="noise_equilibrium", **options).moved == ()
    result = rebalance(model, x, target="noise_equilibrium", weight_decay=1e-3, **options)
    assert [each.kind for each in result.moved] == ["scale"]
    assert result.violation < 1e-9
    assert not torch.equal(result.model[1].running_var, model[1].running_var)
    # |w|^4 = T / (2 lambda) times the noise at unit norm, which is noise times squared norm anywhere on the orbit.
    sample_loss = make_sample_loss(model, F.cross_entropy)
    gradients = per_sample_gradients(sample_loss, dict(model.named_parameters()), x, y)
    noise = sum(gradients[name].var(0, unbiased=False).reshape(8, -1).sum(1) for name in ("0.weight", "0.bias"))
    before, after = (m[0].weight.square().sum(1) + m[0].bias.square() for m in (model, result.model))
    torch.testing.assert_close(after.square(), 0.1 / 2e-3 * noise * before, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("build", "x", "target", "loss"),
    [
        (lambda: GPT(vocabulary=11, length=6, d=8, heads=2, blocks=1), lambda: tokens(6, 6, high=11), (6, 6), "tokens"),
        (lambda: Recurrent(nn.LSTM), lambda: normal(6, 4, 6).double(), (6, 4, 3), "square"),
        (Twice, lambda: normal(6, 4).double(), (6, 4), "square"),
    ],
)
def test_sequences_tied_weights_and_what_cannot_be_batched_have_the_predicted_noise(build, x, target, loss):
    model, x = shaken(build()).double(), x()
    if loss == "tokens":
        y = tokens(*target, high=11, seed=9)
        loss_fn = lambda out, t: F.cross_entropy(out.flatten(0, 1), t.flatten())  # noqa: E731
    else:
        y, loss_fn = normal(*target, seed=9).double(), F.mse_loss
    result = rebalance(model, x, target="noise_equilibrium", loss_fn=loss_fn, targets=y, temperature=0.1)
    assert result.moved
    expected = measured_objective(result.model, x, y, 0.1, 0, loss_fn)
    assert result.objective[1] == pytest.approx(expected, rel=1e-9)
    assert result.objective[1] < result.objective[0]


def test_matrices_stay_at_the_noise_equilibrium():
    model, x = shaken(mlp(5, 5, 3, activation=None)), normal(8, 5)
    y = normal(8, 3, seed=4)
    result = rebalance(model, x, target="noise_equilibrium", loss_fn=F.mse_loss, targets=y, temperature=0.1)
    assert result.moved == ()
    assert "matrix" in result.skipped[0][1]
    assert result.objective[0] == result.objective[1] > 0


def test_units_that_nothing_pushes_back_have_no_equilibrium():
    model = shaken(mlp(6, 8, 3)).double()
    with torch.no_grad():
        model[2].weight[:, 0] = 0  # no gradient in, but one out
        model[0].weight[1], model[0].bias[1] = 0, -1  # never on: no noise at all
    x, y = blobs(50, 6, 3)
    options = {"loss_fn": F.cross_entropy, "targets": y, "temperature": 0.1}
    result = rebalance(model, x, target="noise_equilibrium", **options)
    reason = "nothing pushes back: there is no finite equilibrium"
    assert result.skipped == (("0.weight / 2.weight: 1 of 8 units", reason),)
    assert result.amounts[0][:2].tolist() == [0, 0]
    assert float(result.amounts[0][2:].abs().min()) > 0


class Masked(nn.Module):
    """Two inputs with samples, one table without, and a keyword."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x, table, *, mask):
        return self.b((self.a(x + table) * mask[:, None]).relu())


def test_every_tensor_as_long_as_the_targets_is_cut_into_samples():
    model, x, table = shaken(Masked()).double(), normal(9, 4).double(), normal(4).double()
    mask, y = torch.arange(9.0).double() / 9, normal(9, 2, seed=7).double()
    options = {"loss_fn": F.mse_loss, "targets": y, "temperature": 0.1, "kwargs": {"mask": mask}}
    result = rebalance(model, (x, table), target="noise_equilibrium", **options)
    one = lambda p, i, _: F.mse_loss(  # noqa: E731
        functional_call(result.model, p, (x[i][None], table), {"mask": mask[i][None]}), y[i][None]
    )
    gradients = [torch.func.grad(one)(tensors_of(result.model), i, None) for i in range(9)]
    noise = sum(float(torch.stack([g[n] for g in gradients]).var(0, unbiased=False).sum()) for n in gradients[0])
    assert result.objective[1] == pytest.approx(0.1 * noise, rel=1e-10)


def test_the_noise_trace_is_the_library_s_own(at_noise_equilibrium):
    _, x, y, result = at_noise_equilibrium
    loss = make_sample_loss(result.model, F.cross_entropy)
    trace = float(noise_covariance_trace(loss, tensors_of(result.model), x, y))
    assert result.objective[1] == pytest.approx(0.01 * trace + 2e-3 * result.squared_norm[1], rel=1e-10)


# Refusals


def nothing(*_):
    return None


NOISE = {
    "target": "noise_equilibrium",
    "loss_fn": F.mse_loss,
    "targets": torch.zeros(8, 3),
    "temperature": 0.1,
}
BAD = {
    "model": ({"model": 3}, TypeError, r"model must be a torch\.nn\.Module, got int"),
    "no parameters": ({"model": nn.ReLU()}, ValueError, "model must be a module with parameters, got ReLU"),
    "inputs": ({"inputs": [[1.0]]}, TypeError, r"inputs\[0\] must be a tensor, got list"),
    "inputs of a string": ({"inputs": "x"}, TypeError, "inputs must be a tensor or a tuple of tensors, got str"),
    "infinite input": ({"inputs": torch.full((8, 4), math.inf)}, ValueError, "inputs must be finite, got inf or nan"),
    "kwargs": ({"kwargs": 3}, TypeError, "kwargs must be a dict of keyword arguments or None, got int"),
    "report": ({"report": "x"}, TypeError, "report must be an AuditReport or None, got str"),
    "target": ({"target": "flat"}, ValueError, "target must be one of 'balanced', 'noise_equilibrium', got 'flat'"),
    "target of none": ({"target": None}, TypeError, "target must be one of .* got NoneType"),
    "approximate": ({"approximate": 1}, TypeError, "approximate must be True or False, got int"),
    "inplace": ({"inplace": "yes"}, TypeError, "inplace must be True or False, got str"),
    "weight decay": ({"weight_decay": -0.1}, ValueError, r"weight_decay must be >= 0, got -0\.1"),
    "weight decay of a string": ({"weight_decay": "a"}, TypeError, "weight_decay must be"),
    "optimizer": ({"optimizer": 3, "inplace": True}, TypeError, r"optimizer must be a torch\.optim\.Optimizer or None"),
    "loss missing": (
        {**NOISE, "loss_fn": None},
        ValueError,
        "loss_fn must be given for the noise equilibrium, got None",
    ),
    "targets missing": ({**NOISE, "targets": None}, ValueError, "targets must be given for the noise equilibrium"),
    "temperature missing": ({**NOISE, "temperature": None}, ValueError, "temperature must be given for the noise"),
    "temperature zero": ({**NOISE, "temperature": 0.0}, ValueError, "temperature must be > 0, got 0"),
    "temperature negative": ({**NOISE, "temperature": -1}, ValueError, "temperature must be > 0, got -1"),
    "temperature infinite": ({**NOISE, "temperature": math.inf}, ValueError, "temperature must be finite, got inf"),
    "temperatures": ({**NOISE, "temperature": [1.0, 2.0]}, ValueError, "temperature must be a single number"),
    "temperature of a string": ({**NOISE, "temperature": "hot"}, TypeError, "temperature must be"),
    "loss": ({**NOISE, "loss_fn": 3}, TypeError, "loss_fn must be a function of output and target, got int"),
    "loss without gradient": (
        {**NOISE, "loss_fn": lambda output, target: F.mse_loss(output, target).detach()},
        ValueError,
        "loss_fn must be a criterion with a gradient, got a loss that is detached",
    ),
    "loss of none": ({**NOISE, "loss_fn": nothing}, TypeError, "loss_fn must be a criterion .* got NoneType"),
    "loss of a vector": (
        {**NOISE, "loss_fn": torch.sub},
        ValueError,
        r"loss_fn must be a criterion .* got shape \(1, 3\)",
    ),
    "loss that fails": (
        {**NOISE, "loss_fn": F.cross_entropy, "targets": torch.full((8,), 7)},
        ValueError,
        "loss_fn must be a criterion .* got IndexError",
    ),
    "loss at infinity": (
        {**NOISE, "loss_fn": lambda out, t: (out.square().sum() * 1e9).exp()},
        ValueError,
        "loss_fn must be finite, with finite gradients, at every sample, got inf or nan",
    ),
    "random loss": (
        {**NOISE, "loss_fn": lambda out, t: (out * torch.randn(3)).sum()},
        ValueError,
        "loss_fn must be deterministic",
    ),
    "targets of a list": ({**NOISE, "targets": [0.0] * 8}, TypeError, "targets must be a tensor, got list"),
    "targets of another length": (
        {**NOISE, "targets": torch.zeros(7, 3)},
        ValueError,
        r"targets must be as long as inputs \(8\), got length 7",
    ),
    "one target": ({**NOISE, "targets": torch.zeros(1, 3)}, ValueError, r"targets must be at least 2 samples"),
    "target without samples": ({**NOISE, "targets": torch.tensor(1.0)}, ValueError, "targets must be at least 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(case):
    changes, error, message = BAD[case]
    arguments = {"model": shaken(mlp(4, 6, 3)), "inputs": normal(8, 4)} | changes
    with pytest.raises(error, match=message):
        rebalance(arguments.pop("model"), arguments.pop("inputs"), **arguments)


def test_an_optimizer_is_refused_for_a_copy_and_for_other_parameters():
    model, x = shaken(mlp(4, 6, 3)), normal(8, 4)
    with pytest.raises(ValueError, match="optimizer must be None unless inplace=True .* got SGD"):
        rebalance(model, x, optimizer=torch.optim.SGD(model.parameters()))
    with pytest.raises(ValueError, match="optimizer must be one of the parameters of model, got SGD of others"):
        rebalance(model, x, inplace=True, optimizer=torch.optim.SGD(mlp(4, 6, 3).parameters()))


@pytest.mark.parametrize(
    ("other", "x", "message"),
    [
        (lambda: mlp(4, 7, 3), lambda: normal(8, 4), "report must be the audit of this model, got an index of shape"),
        (lambda: Twice(), lambda: normal(8, 4), "report must be the audit of this model, got a symmetry of"),
    ],
)
def test_a_report_of_another_model_is_refused(other, x, message):
    report = audit(shaken(other()), x())
    with pytest.raises(ValueError, match=message):
        rebalance(shaken(mlp(4, 6, 3)), normal(8, 4), report=report)


def test_a_model_that_cannot_be_traced_is_refused():
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x) * torch.randn(())

    with pytest.raises(ValueError, match="model must be one that can be traced, got untraceable"):
        rebalance(Random(), normal(8, 4))


def test_a_model_that_fails_raises_its_own_error():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        rebalance(mlp(4, 6, 3), normal(8, 5))
    report = audit(mlp(4, 6, 3), normal(8, 4))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        rebalance(mlp(4, 6, 3), normal(8, 5), report=report)


def test_a_parameter_that_is_not_finite_is_refused_by_name():
    model = mlp(4, 6, 3)
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"parameter '0\.weight' must be finite"):
        rebalance(model, normal(8, 4))


def test_inference_tensors_can_be_copied_but_not_changed():
    with torch.inference_mode():
        model = shaken(mlp(4, 6, 3))
    with pytest.raises(ValueError, match="model must be made outside of inference mode"):
        rebalance(model, normal(8, 4), inplace=True)
    result = rebalance(model, normal(8, 4))
    assert result.charge_after < 1e-5 * result.charge_before
    assert not result.model[0].weight.is_inference()
