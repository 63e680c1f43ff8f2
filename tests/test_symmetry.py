"""Tests of the symmetries: known violations and charges, group laws, limits, and refusals."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, vmap

from symlearn.datasets import digits
from symlearn.models import mlp
from symlearn.symmetry import (
    GL,
    ContinuousSymmetry,
    MirrorSymmetry,
    Permutation,
    Rescaling,
    Rotation,
    Scale,
    Symmetry,
)

EPSILON = 2.0**-52
LAYER = ("0.weight", "0.bias")
seeds = st.integers(0, 2**32 - 1)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_net(seed=0):
    """Two layers: four inputs, three units, two outputs."""
    return {
        "0.weight": normal(3, 4, seed=seed),
        "0.bias": normal(3, seed=seed + 1),
        "2.weight": normal(2, 3, seed=seed + 2),
        "2.bias": normal(2, seed=seed + 3),
    }


def inner(first, second):
    return sum((first[name] * second[name]).sum() for name in second)


def assert_same(first, second, rtol=1e-12):
    assert list(first) == list(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=rtol, atol=1e-13)


@pytest.fixture(scope="module", params=["relu", "tanh"])
def digits_net(request):
    """Name of the activation, parameters, and the loss of each of 200 images as a function of the parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = mlp([64, 32, 16, 10], request.param, generator=generator())
    finally:
        torch.set_default_dtype(before)
    data = digits()
    x, y = torch.tensor(data.x_train[:200]).double(), torch.tensor(data.y_train[:200])
    params = {name: tensor.detach() for name, tensor in model.named_parameters()}
    return request.param, params, lambda p: F.cross_entropy(functional_call(model, p, (x,)), y, reduction="none")


def unit_coordinates(unit):
    """Where one unit of the first layer of 64-32-16-10 sits in the flattened parameters: in, bias, out."""
    incoming, outgoing = range(64 * unit, 64 * (unit + 1)), range(2080 + unit, 2080 + 32 * 16, 32)
    return [*incoming, 2048 + unit, *outgoing]


CONTINUOUS = {
    "rescaling": (Rescaling(LAYER, "2.weight"), small_net),
    "rescaling of layers": (Rescaling(LAYER, "2.weight", per_unit=False), small_net),
    "scale": (Scale(LAYER), small_net),
    "scale per unit": (Scale(LAYER, per_unit=True), small_net),
    "linear-linear": (GL("2.weight", "0.weight", right_bias="0.bias"), small_net),
    "two heads": (
        GL("q.weight", "k.weight", left_bias="q.bias", right_bias="k.bias", transpose_left=True, heads=2),
        lambda seed=0: {
            "q.weight": normal(6, 5, seed=seed),
            "q.bias": normal(6, seed=seed + 1),
            "k.weight": normal(6, 4, seed=seed + 2),
            "k.bias": normal(6, seed=seed + 3),
        },
    ),
    "values and outputs": (
        GL("o.weight", "v.weight", right_bias="v.bias", heads=2),
        lambda seed=0: {
            "o.weight": normal(5, 6, seed=seed),
            "v.weight": normal(6, 4, seed=seed + 1),
            "v.bias": normal(6, seed=seed + 2),
        },
    ),
}
continuous = pytest.mark.parametrize(("symmetry", "make"), CONTINUOUS.values(), ids=CONTINUOUS.keys())


def amounts(symmetry, seed=0, size=0.3):
    """A number and an array of every shape that the symmetry takes."""
    found = [size]
    if isinstance(symmetry, GL):
        found += [size * normal(3, 3, seed=seed)]
        found += [size * normal(symmetry.heads, 3, 3, seed=seed)]
    elif symmetry.per_unit:
        found += [size * normal(3, seed=seed)]
    return found


# Known numbers


def test_a_rescaling_is_exact_for_relu_units_and_broken_by_tanh(digits_net):
    activation, params, loss = digits_net
    symmetry = Rescaling(LAYER, "2.weight")
    violation, random_amounts = symmetry.violation(loss, params, 0.3), symmetry.violation(loss, params, normal(32))
    if activation == "relu":
        assert max(violation, random_amounts) < 5e-16
    else:
        assert violation == pytest.approx(0.0353, abs=6e-5)
        assert random_amounts > 0.03


def test_gl_is_broken_by_any_activation_and_reduces_to_rescaling_for_multiples_of_the_identity(digits_net):
    activation, params, loss = digits_net
    symmetry = GL("2.weight", "0.weight", right_bias="0.bias")
    matrix = 0.01 * normal(32, 32)
    expected = {"relu": 0.0115, "tanh": 0.0023}[activation]
    assert symmetry.violation(loss, params, (matrix + matrix.T) / 2) == pytest.approx(expected, rel=0.5)
    if activation == "relu":
        assert symmetry.violation(loss, params, 0.3) < 5e-16
    else:
        assert symmetry.violation(loss, params, 0.3) == pytest.approx(0.0353, abs=6e-5)
    identity = 0.3 * torch.eye(32, dtype=torch.float64)
    rescaling = Rescaling(LAYER, "2.weight")
    assert_same(symmetry.act(params, identity), rescaling.act(params, 0.3))


def test_any_network_allows_the_exchange_of_units(digits_net):
    _, params, loss = digits_net
    n = sum(tensor.numel() for tensor in params.values())
    permutation = Permutation(LAYER, "2.weight")
    mirror = MirrorSymmetry.swap(n, unit_coordinates(3), unit_coordinates(7))
    assert permutation.violation(loss, params) < 5e-16
    assert mirror.violation(loss, params) < 5e-16
    order = list(range(32))
    order[3], order[7] = 7, 3
    assert_same(mirror.reflect(params), permutation.act(params, order))
    assert float(mirror.distance(params)) == pytest.approx(1.7400183734799, rel=1e-12)
    assert float(permutation.distance(params, order)) == pytest.approx(1.7400183734799, rel=1e-12)


def test_a_sign_flip_is_exact_for_tanh_units_and_broken_by_relu(digits_net):
    activation, params, loss = digits_net
    n = sum(tensor.numel() for tensor in params.values())
    violation = MirrorSymmetry.flip(n, unit_coordinates(3)).violation(loss, params)
    assert violation == (0.0 if activation == "tanh" else pytest.approx(0.0521, abs=6e-5))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_the_charge_of_two_scalars_is_the_difference_of_their_squares(shape):
    params = {"u": torch.full(shape, 2.0), "w": torch.full(shape, 0.5)}
    for per_unit in (True, False):
        symmetry = Rescaling("u", "w", per_unit=per_unit)
        charge = symmetry.charge(params)
        assert charge.item() == 3.75
        assert charge.shape == ((1,) if per_unit else ())
        moved = symmetry.act(params, np.log(2))
        assert (moved["u"].item(), moved["w"].item()) == (pytest.approx(4), pytest.approx(0.25))
        assert moved["u"].shape == shape


def test_the_charge_of_a_unit_is_incoming_with_bias_minus_outgoing():
    params = {
        "0.weight": torch.tensor([[1.0, 2.0], [0.0, 3.0]]),
        "0.bias": torch.tensor([2.0, -1.0]),
        "2.weight": torch.tensor([[1.0, 0.0], [1.0, 4.0], [0.0, 0.0]]),
    }
    assert Rescaling(LAYER, "2.weight").charge(params).tolist() == [1 + 4 + 4 - 2, 9 + 1 - 16]
    assert Rescaling(LAYER, "2.weight", per_unit=False).charge(params).item() == 7 - 6
    assert Scale(LAYER, per_unit=True).charge(params).tolist() == [9, 10]
    assert Scale(LAYER).charge(params).item() == 19


def test_a_vector_reads_from_the_units_along_its_only_axis():
    params = {"w": torch.tensor([[1.0], [2.0]]), "v": torch.tensor([3.0, 4.0])}
    assert Rescaling("w", "v").charge(params).tolist() == [1 - 9, 4 - 16]
    assert GL("v", "w").charge(params).tolist() == [[1 - 9, 2 - 12], [2 - 12, 4 - 16]]


# Which functions they leave unchanged


def test_channels_of_a_convolution_rescale():
    model = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 3)).double()
    params, x = dict(model.named_parameters()), normal(4, 2, 6, 6)
    symmetry = Rescaling(LAYER, "2.weight")

    def loss(p):
        return functional_call(model, p, (x,))

    assert symmetry.violation(loss, params, normal(5)) < 2e-15
    assert Permutation(LAYER, "2.weight").violation(loss, params) < 2e-15
    weight, bias, outgoing = (params[name].detach() for name in (*LAYER, "2.weight"))
    charge = weight.square().sum((1, 2, 3)) + bias.square() - outgoing.square().sum((0, 2, 3))
    torch.testing.assert_close(symmetry.charge(params).detach(), charge)
    linear = nn.Sequential(model[0], model[2])
    linear_params = {name.replace("2.", "1."): tensor for name, tensor in params.items()}
    mixing = GL("1.weight", "0.weight", right_bias="0.bias")
    assert mixing.violation(lambda p: functional_call(linear, p, (x,)), linear_params, 0.3 * normal(5, 5)) < 5e-15


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_batch_norm_ignores_the_scale_of_its_input_up_to_its_eps(scale):
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).double()
    params = {name: scale * tensor.detach() for name, tensor in model.named_parameters()}
    x = normal(50, 6)
    symmetry = Scale(LAYER, per_unit=True)
    buffers = dict(model.named_buffers())
    violation = symmetry.violation(lambda p: functional_call(model, {**p, **buffers}, (x,)), params, 0.5)
    # Relative order eps / var: weights of order 0.2 give a variance of order 0.3.
    assert 1e-8 / scale**2 < violation < 1e-3 / scale**2
    no_norm = symmetry.violation(lambda p: F.linear(x, p["0.weight"], p["0.bias"]), params, 0.5)
    assert no_norm == pytest.approx(1 - np.exp(-0.5))


@pytest.fixture(scope="module")
def attention():
    """Two heads of dimension 4 on a width of 8: parameters, and outputs as a function of them."""
    names = {"q.weight": (8, 8), "q.bias": (8,), "k.weight": (8, 8), "k.bias": (8,)}
    names |= {"v.weight": (8, 8), "v.bias": (8,), "o.weight": (8, 8)}
    params = {name: 0.4 * normal(*shape, seed=index) for index, (name, shape) in enumerate(names.items())}
    x = normal(3, 5, 8, seed=9)

    def outputs(p):
        q, k, v = (
            F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"]).unflatten(-1, (2, 4)).transpose(1, 2) for name in "qkv"
        )
        return F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), p["o.weight"])

    return params, outputs


QUERY_KEY = GL("q.weight", "k.weight", left_bias="q.bias", right_bias="k.bias", transpose_left=True, heads=2)
VALUE_OUTPUT = GL("o.weight", "v.weight", right_bias="v.bias", heads=2)


@pytest.mark.parametrize("symmetry", [QUERY_KEY, VALUE_OUTPUT])
def test_attention_allows_a_matrix_per_head(attention, symmetry):
    params, outputs = attention
    for amount in (0.3, 0.3 * normal(4, 4), 0.3 * normal(2, 4, 4)):
        assert symmetry.violation(outputs, params, amount) < 1e-14
    assert symmetry.charge(params).shape == (2, 4, 4)


def test_attention_without_its_biases_or_with_other_heads_is_not_symmetric(attention):
    params, outputs = attention
    without = GL("q.weight", "k.weight", transpose_left=True, heads=2)
    assert without.violation(outputs, params, 0.3 * normal(2, 4, 4)) > 1e-3
    one_head = GL("q.weight", "k.weight", left_bias="q.bias", right_bias="k.bias", transpose_left=True)
    assert one_head.violation(outputs, params, 0.3 * normal(8, 8)) > 1e-3


def test_heads_can_be_exchanged(attention):
    params, outputs = attention
    rows = tuple(f"{name}.{kind}" for name in "qkv" for kind in ("weight", "bias"))
    assert Permutation(rows, "o.weight").violation(outputs, params, [4, 5, 6, 7, 0, 1, 2, 3]) < 1e-14
    assert Permutation(rows, "o.weight").violation(outputs, params) > 1e-3


def test_the_charge_of_each_head_is_that_of_its_rows(attention):
    params, _ = attention
    charge = QUERY_KEY.charge(params)
    for head, rows in enumerate((slice(0, 4), slice(4, 8))):
        k, bk, q, bq = (params[name][rows] for name in ("k.weight", "k.bias", "q.weight", "q.bias"))
        expected = k @ k.T + torch.outer(bk, bk) - q @ q.T - torch.outer(bq, bq)
        torch.testing.assert_close(charge[head], expected)


def test_a_latent_space_can_be_rotated():
    params = {"emb": normal(7, 4), "next": normal(3, 4, seed=1)}
    tokens = torch.tensor([0, 3, 6])
    symmetry = Rotation("emb", "next", transpose_right=True)
    skew = normal(4, 4)
    skew = skew - skew.T

    def logits(p):
        return F.linear(F.embedding(tokens, p["emb"]), p["next"])

    assert symmetry.violation(logits, params, skew) < 1e-14
    assert symmetry.violation(logits, params) < 1e-14
    wrong = Rotation("next", "emb", transpose_right=True).act(params, skew)
    torch.testing.assert_close(logits(wrong), logits(params))
    for name in params:
        torch.testing.assert_close(symmetry.act(params, skew)[name].norm(dim=1), params[name].norm(dim=1))
    alone = Rotation("next").act(params, normal(3, 3) - normal(3, 3).T)
    torch.testing.assert_close(alone["next"].T @ alone["next"], params["next"].T @ params["next"])
    assert alone["emb"] is params["emb"]


def test_a_rotation_conserves_no_quadratic_form_and_offers_no_charge():
    params = {"right": normal(4, 3), "left": normal(2, 4, seed=1)}
    symmetry = Rotation("right", "left")
    product = symmetry.generator_product(params, normal(4, 4) - normal(4, 4).T)
    assert abs(inner(params, product)) < 1e-14
    assert not isinstance(symmetry, ContinuousSymmetry)
    assert not hasattr(symmetry, "charge")


def test_the_wrong_unit_axis_of_a_square_layer_shows_as_a_violation():
    params = {"0.weight": normal(3, 3), "2.weight": normal(3, 3, seed=1)}
    x = normal(10, 3, seed=2)

    def outputs(p):
        return F.linear(F.relu(F.linear(x, p["0.weight"])), p["2.weight"])

    assert Rescaling("0.weight", "2.weight").violation(outputs, params, normal(3)) < 1e-14
    transposed = {**params, "2.weight": params["2.weight"].T.contiguous()}
    assert Rescaling("0.weight", "2.weight").violation(outputs, transposed, normal(3)) < 1e-14
    moved = Rescaling("0.weight", "2.weight").act(transposed, normal(3))
    assert (outputs({**moved, "2.weight": moved["2.weight"].T}) - outputs(params)).abs().max() > 0.1


# Group laws and charges


@continuous
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_moving_back_returns_the_parameters(symmetry, make, seed):
    params = make(seed % 1000)
    for amount in amounts(symmetry, seed):
        assert_same(symmetry.act(symmetry.act(params, amount), -amount), params)


@continuous
@given(seed=seeds, first=st.floats(-2, 2), second=st.floats(-2, 2))
@settings(max_examples=10, deadline=None)
def test_amounts_add_up_and_zero_does_nothing(symmetry, make, seed, first, second):
    params = make(seed % 1000)
    for amount in amounts(symmetry, seed, size=1.0)[-1:]:
        twice = symmetry.act(symmetry.act(params, first * amount), second * amount)
        # The exponential of a matrix of norm up to 10 loses some digits.
        assert_same(twice, symmetry.act(params, (first + second) * amount), rtol=1e-8)
        assert_same(symmetry.act(params, 0 * amount), params)


@continuous
def test_the_generator_is_the_derivative_of_the_action(symmetry, make):
    params = make()
    product = symmetry.generator_product(params)
    assert tuple(product) == symmetry.names
    difference = {n: (symmetry.act(params, 1e-5)[n] - symmetry.act(params, -1e-5)[n]) / 2e-5 for n in product}
    # Central differences: 1e-10 / 6 from the third derivative, EPSILON / 1e-5 from rounding.
    for name in product:
        torch.testing.assert_close(difference[name], product[name], rtol=1e-9, atol=1e-10)


@continuous
def test_the_charge_is_the_quadratic_form_of_the_generator(symmetry, make):
    params = make()
    charge, product = symmetry.charge(params), symmetry.generator_product(params)
    trace = charge.diagonal(dim1=-2, dim2=-1).sum() if isinstance(symmetry, GL) else charge.sum()
    torch.testing.assert_close(inner(params, product), trace)


@pytest.mark.parametrize("name", ["linear-linear", "two heads", "values and outputs"])
def test_a_matrix_charge_holds_the_charge_of_every_direction(name):
    symmetry, make = CONTINUOUS[name]
    params, direction = make(), normal(symmetry.heads, 3, 3)
    direction = direction + direction.mT
    product = symmetry.generator_product(params, direction)
    expected = (direction.reshape(symmetry.charge(params).shape) * symmetry.charge(params)).sum()
    torch.testing.assert_close(inner(params, product), expected)
    skew = normal(symmetry.heads, 3, 3)
    assert abs(inner(params, symmetry.generator_product(params, skew - skew.mT))) < 1e-13
    step = {
        n: (symmetry.act(params, 1e-5 * direction)[n] - symmetry.act(params, -1e-5 * direction)[n]) for n in product
    }
    for n in product:
        torch.testing.assert_close(step[n] / 2e-5, product[n], rtol=1e-8, atol=1e-8)


@continuous
@given(low=st.floats(-2, 2), step=st.floats(0.01, 2))
@settings(max_examples=10, deadline=None)
def test_the_charge_increases_along_the_orbit(symmetry, make, low, step):
    def charge(amount):
        value = symmetry.charge(symmetry.act(make(), amount))
        return value.diagonal(dim1=-2, dim2=-1) if isinstance(symmetry, GL) else value

    assert (charge(low + step) > charge(low)).all()


@continuous
def test_gradient_flow_conserves_the_charge_of_a_symmetric_loss(symmetry, make):
    params = {name: tensor.requires_grad_() for name, tensor in make().items()}
    # Any function of the invariant products: here of the orbit through the parameters, averaged by hand.
    if "0.weight" in params and not isinstance(symmetry, (Scale, GL)):
        loss = (params["2.weight"] @ F.relu(params["0.weight"] @ normal(4) + params["0.bias"])).square().sum()
    elif isinstance(symmetry, Scale):
        weights = torch.cat([params["0.weight"], params["0.bias"][:, None]], dim=1)
        loss = (weights / weights.norm(dim=1 if symmetry.per_unit else (0, 1), keepdim=True) @ normal(5)).sin().sum()
    else:
        right = torch.cat([params[symmetry.right], params[symmetry.right_bias][:, None]], dim=1)
        left = params[symmetry.left] if symmetry.transpose_left else params[symmetry.left].T
        if symmetry.left_bias:
            left = torch.cat([left, params[symmetry.left_bias][:, None]], dim=1)
        products = left.unflatten(0, (symmetry.heads, 3)).mT @ right.unflatten(0, (symmetry.heads, 3))
        loss = products.sin().sum()
    gradients = dict(zip(params, torch.autograd.grad(loss, params.values(), allow_unused=True), strict=True))
    product = symmetry.generator_product(params)
    assert abs(inner(gradients, product)) < 1e-13
    assert max(gradient.abs().max() for gradient in gradients.values() if gradient is not None) > 1e-3


@continuous
def test_charges_and_actions_work_under_vmap_and_autograd(symmetry, make):
    nets = [make(seed) for seed in range(0, 50, 10)]
    stacked = {name: torch.stack([net[name] for net in nets]) for name in nets[0]}
    torch.testing.assert_close(vmap(symmetry.charge)(stacked), torch.stack([symmetry.charge(net) for net in nets]))
    for amount in amounts(symmetry):
        moved = vmap(lambda net, amount=amount: symmetry.act(net, amount))(stacked)
        for index, net in enumerate(nets):
            assert_same({name: tensor[index] for name, tensor in moved.items()}, symmetry.act(net, amount))
    scales = torch.linspace(-1, 1, 5, dtype=torch.float64)
    along = vmap(lambda scale: symmetry.charge(symmetry.act(nets[0], scale)))(scales)
    torch.testing.assert_close(along[3], symmetry.charge(symmetry.act(nets[0], 0.5)))
    slope = torch.func.grad(lambda scale: symmetry.charge(symmetry.act(nets[0], scale)).sum())(scales[2])
    around = [symmetry.charge(symmetry.act(nets[0], step)).sum() for step in (1e-5, -1e-5)]
    torch.testing.assert_close(slope, (around[0] - around[1]) / 2e-5, rtol=1e-7, atol=1e-7)


@continuous
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_kept_and_other_entries_are_the_same_objects(symmetry, make, dtype):
    params = {name: tensor.to(dtype) for name, tensor in make().items()} | {"other": torch.ones(2), "n": torch.ones(())}
    before = copy.deepcopy(params)
    for amount in [*amounts(symmetry), np.float32(0.1), torch.tensor(1)]:
        moved = symmetry.act(params, amount)
        assert list(moved) == list(params)
        assert all(moved[name].dtype == dtype and moved[name].shape == params[name].shape for name in symmetry.names)
        assert all(moved[name] is params[name] for name in params if name not in symmetry.names)
        assert all(torch.equal(params[name], before[name]) for name in params)
    assert symmetry.charge(params).dtype == dtype
    product = symmetry.generator_product(params)
    assert all(product[name] is not params[name] and product[name].dtype == dtype for name in symmetry.names)


@pytest.mark.parametrize("symmetry", [Rescaling(LAYER, "2.weight"), Scale(LAYER), Permutation(LAYER, "2.weight")])
def test_meta_tensors_stay_on_their_device(symmetry):
    params = {name: tensor.to("meta") for name, tensor in small_net().items()}
    amount = [1, 2, 0] if isinstance(symmetry, Permutation) else 0.5
    assert all(tensor.device.type == "meta" for tensor in symmetry.act(params, amount).values())


def test_layers_of_mixed_precision_keep_theirs():
    params = small_net()
    params["2.weight"] = params["2.weight"].float()
    for symmetry in (Rescaling(LAYER, "2.weight"), GL("2.weight", "0.weight", right_bias="0.bias")):
        moved = symmetry.act(params, amounts(symmetry)[-1])
        assert [moved[name].dtype for name in params] == [torch.float64, torch.float64, torch.float32, torch.float64]
        assert symmetry.charge(params).dtype == torch.float64


def test_layers_with_different_numbers_of_units_rescale_as_wholes():
    params = {"conv": normal(3, 2, 3, 3), "fc": normal(5, 12, seed=1)}
    charge = Rescaling("conv", "fc", per_unit=False).charge(params)
    torch.testing.assert_close(charge, params["conv"].square().sum() - params["fc"].square().sum())


@given(order=st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_a_permutation_is_undone_by_its_inverse_and_keeps_the_distance(order):
    params = {"in": normal(5, 2), "bias": normal(5, seed=1), "out": normal(3, 5, 2, seed=2)}
    symmetry = Permutation(("in", "bias"), "out")
    moved = symmetry.act(params, order)
    assert_same(symmetry.act(moved, np.argsort(order)), params)
    torch.testing.assert_close(symmetry.act(params, torch.tensor(order))["out"], params["out"][:, order])
    squares = sum((moved[name] - params[name]).square().sum() for name in params)
    torch.testing.assert_close(symmetry.distance(params, order), squares.sqrt() / 2)


def test_a_permutation_shifts_by_one_unit_by_default():
    params = {"in": torch.tensor([[1.0], [2.0], [3.0]]), "out": torch.tensor([[4.0, 5.0, 6.0]])}
    assert Permutation("in", "out").act(params)["in"].flatten().tolist() == [3, 1, 2]
    assert Permutation("in", "out").act(params)["out"].flatten().tolist() == [6, 4, 5]


def test_symmetries_print_compare_hash_and_pickle():
    same = {Rescaling(LAYER, "2.weight"), Rescaling(list(LAYER), ["2.weight"]), Scale("a")}
    assert len(same) == 2
    assert Rescaling("a", "b") != Rescaling("a", "b", per_unit=False)
    assert GL("a", "b") != GL("b", "a")
    assert Permutation("a", "b") != Rescaling("a", "b")
    for symmetry in (*same, QUERY_KEY, Rotation("a"), Permutation("a", "b")):
        assert pickle.loads(pickle.dumps(symmetry)) == symmetry
        assert eval(repr(symmetry)) == symmetry
        assert isinstance(symmetry, Symmetry)
    assert QUERY_KEY.names == ("q.weight", "k.weight", "q.bias", "k.bias")


# Violation


def two_values(first, second):
    """A loss with these values before and after a swap of the two parameters (1, 2)."""
    return lambda theta: first if theta[0] == 1 else second


SWAP = MirrorSymmetry.swap(2, 0, 1)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (2.0, 1.0, 0.5),
        (1.0, 2.0, 0.5),
        (-1.0, 1.0, 2.0),
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([1.0, 4.0], [2.0, 4.0], 0.25),
        (torch.tensor([[3.0]]), torch.tensor([[3.0]]), 0.0),
        (0.0, 0.0, 0.0),
        (0.0, 5e-324, 1.0),
        (1.7e308, -1.7e308, 2.0),
        (1, 3, 2 / 3),
    ],
)
def test_a_violation_is_the_largest_change_over_the_largest_loss(first, second, expected):
    assert SWAP.violation(two_values(first, second), [1.0, 2.0]) == pytest.approx(expected, rel=4 * EPSILON)
    assert SWAP.violation(two_values(second, first), [1.0, 2.0]) == pytest.approx(expected, rel=4 * EPSILON)


losses = st.one_of(st.just(0.0), st.floats(0.1, 1e3), st.floats(-1e3, -0.1))


@given(values=st.lists(losses, min_size=4, max_size=4), scale=st.floats(1e-200, 1e200))
@settings(max_examples=50, deadline=None)
def test_a_violation_ignores_the_scale_of_the_loss(values, scale):
    first, second = np.array(values[:2]), np.array(values[2:])
    reference = SWAP.violation(two_values(first, second), [1.0, 2.0])
    scaled = SWAP.violation(two_values(scale * first, scale * second), [1.0, 2.0])
    assert scaled == pytest.approx(reference, rel=1e-14, abs=1e-14)


def test_a_violation_is_the_same_from_both_ends():
    params, symmetry = small_net(), Rescaling(LAYER, "2.weight")
    loss = lambda p: p["0.weight"].sin().sum(1)  # noqa: E731
    there = symmetry.act(params, 0.4)
    assert symmetry.violation(loss, params, 0.4) == pytest.approx(symmetry.violation(loss, there, -0.4), rel=1e-12)
    mirror = MirrorSymmetry(normal(23, 1).numpy() / normal(23, 1).norm().item())
    assert mirror.violation(loss, params) == pytest.approx(mirror.violation(loss, mirror.reflect(params)), rel=1e-12)


def test_a_mean_over_samples_can_hide_a_broken_symmetry():
    values = two_values(np.array([1.0, 3.0]), np.array([3.0, 1.0]))
    assert SWAP.violation(values, [1.0, 2.0]) == pytest.approx(2 / 3)
    assert SWAP.violation(lambda theta: values(theta).mean(), [1.0, 2.0]) == 0


def test_a_violation_builds_no_graph_and_leaves_the_parameters_alone():
    model = mlp([4, 3, 2], generator=generator())
    params, seen = dict(model.named_parameters()), []

    def loss(p):
        value = functional_call(model, p, (torch.ones(2, 4),))
        seen.append(value.requires_grad)
        return value

    before = copy.deepcopy(model.state_dict())
    assert Rescaling(LAYER, "2.weight").violation(loss, params, 0.5) < 1e-6
    assert seen == [False, False]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(tensor.grad is None for tensor in params.values())


# Mirrors


def random_mirror(n=6, k=2, seed=0):
    return MirrorSymmetry(np.linalg.qr(np.random.default_rng(seed).standard_normal((n, k)))[0])


MIRRORS = {
    "dense": random_mirror(),
    "vector": MirrorSymmetry(np.ones(6) / 6**0.5),
    "swap": MirrorSymmetry.swap(6, [0, 4], [2, 1]),
    "flip": MirrorSymmetry.flip(6, [5, 1]),
    "constraint": MirrorSymmetry.from_constraint(np.arange(12.0).reshape(2, 6)),
    "everything": MirrorSymmetry.flip(6, range(6)),
}
mirrors = pytest.mark.parametrize("mirror", MIRRORS.values(), ids=MIRRORS.keys())


@mirrors
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_a_mirror_is_the_formula_with_its_columns(mirror, seed):
    theta, O = np.random.default_rng(seed).standard_normal((3, 6)), mirror.O
    np.testing.assert_allclose(O.T @ O, np.eye(mirror.k), atol=1e-15)
    np.testing.assert_allclose(mirror.reflect(theta), theta - 2 * theta @ O @ O.T, atol=1e-14)
    np.testing.assert_allclose(mirror.project(theta), theta - theta @ O @ O.T, atol=1e-14)
    np.testing.assert_allclose(mirror.coordinates(theta), theta @ O, atol=1e-14)
    np.testing.assert_allclose(mirror.distance(theta), np.linalg.norm(theta @ O, axis=-1), atol=1e-14)
    np.testing.assert_allclose(mirror.embed(theta[:, : mirror.k]), theta[:, : mirror.k] @ O.T, atol=1e-14)


@mirrors
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_reflecting_twice_returns_and_projecting_lands_on_the_mirror(mirror, seed):
    theta = np.random.default_rng(seed).standard_normal(6)
    np.testing.assert_allclose(mirror.reflect(mirror.reflect(theta)), theta, atol=1e-14)
    np.testing.assert_allclose(mirror.coordinates(mirror.project(theta)), 0, atol=1e-14)
    np.testing.assert_allclose(mirror.project(theta), (theta + mirror.reflect(theta)) / 2, atol=1e-14)
    np.testing.assert_allclose(mirror.embed(mirror.coordinates(theta)) + mirror.project(theta), theta, atol=1e-14)
    assert mirror.distance(theta) == pytest.approx(np.linalg.norm(theta - mirror.reflect(theta)) / 2)


@mirrors
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_tensors_and_dicts_agree(mirror, dtype):
    theta = normal(2, 6).to(dtype)
    params = {"a": theta[0, :4].reshape(2, 2), "b": theta[0, 4:]}
    for name in ("reflect", "project", "coordinates", "distance"):
        method = getattr(mirror, name)
        tensor, array, single = method(theta), method(theta.numpy()), method(params)
        assert tensor.dtype == dtype
        assert array.dtype == np.float64
        np.testing.assert_allclose(tensor.numpy(), array, atol=1e-6 if dtype == torch.float32 else 1e-14)
        if name in ("reflect", "project"):
            assert [t.shape for t in single.values()] == [(2, 2), (2,)]
            single = torch.cat([t.flatten() for t in single.values()])
        torch.testing.assert_close(single, tensor[0])
        batched = vmap(method)(theta)
        torch.testing.assert_close(batched, tensor)
    assert mirror.embed(theta[:, : mirror.k]).dtype == dtype


@mirrors
def test_a_mirror_is_differentiable_and_symmetric_losses_have_no_force_off_it(mirror):
    theta = normal(6)
    jacobian = torch.func.jacrev(mirror.reflect)(theta)
    np.testing.assert_allclose(jacobian, np.eye(6) - 2 * mirror.O @ mirror.O.T, atol=1e-14)
    symmetric = lambda t: (t.sin().sum() + mirror.reflect(t).sin().sum()) * 3.0  # noqa: E731
    force = torch.func.grad(symmetric)(mirror.project(theta))
    assert mirror.coordinates(force).abs().max() < 1e-14
    assert force.abs().max() > 0.1 or mirror.k == 6
    assert mirror.violation(symmetric, theta) < 1e-14
    assert torch.func.grad(mirror.distance)(mirror.project(theta)).isfinite().all()


def test_a_swap_is_free_of_rounding_and_never_builds_its_columns_for_a_large_network():
    n = 10_000_000
    mirror = MirrorSymmetry.swap(n, np.arange(1000), np.arange(n - 1000, n))
    theta = torch.arange(n, dtype=torch.float32)
    moved = mirror.reflect(theta)
    assert torch.equal(moved[:1000], theta[-1000:])
    assert torch.equal(moved[1000:-1000], theta[1000:-1000])
    assert float(mirror.distance(theta)) == pytest.approx((n - 1000) * np.sqrt(1000 / 2))
    assert mirror == MirrorSymmetry.swap(n, np.arange(1000), np.arange(n - 1000, n))
    assert mirror != MirrorSymmetry.swap(n, np.arange(n - 1000, n), np.arange(1000))
    assert hash(mirror) == hash(MirrorSymmetry.swap(n, np.arange(1000), np.arange(n - 1000, n)))
    assert repr(mirror) == "MirrorSymmetry(n=10000000, k=1000)"
    assert "O" not in vars(mirror)
    clones = theta.clone()
    clones[-1000:] = clones[:1000]
    assert mirror.distance(clones) == 0


def test_the_columns_of_swaps_and_flips_are_the_documented_ones():
    half = 1 / np.sqrt(2)
    np.testing.assert_array_equal(MirrorSymmetry.swap(3, 2, 0).O, [[-half], [0], [half]])
    np.testing.assert_array_equal(MirrorSymmetry.flip(3, [2, 0]).O, [[0, 1], [0, 0], [1, 0]])


def test_the_reflection_of_a_rescaling_pair_swaps_or_negates_its_factors():
    theta = np.array([2.0, 3.0])
    for O, expected in {(1, -1): [3, 2], (1, 1): [-3, -2]}.items():
        np.testing.assert_allclose(MirrorSymmetry(np.array(O) / 2**0.5).reflect(theta), expected)
    np.testing.assert_allclose(MirrorSymmetry(np.eye(2)).reflect(theta), -theta)


def test_a_reflected_factorisation_keeps_its_product():
    n = np.array([0.6, 0.0, -0.8])
    O = np.kron(np.eye(2 + 1), n[:, None])  # U is 2 x 3, V is 1 x 3, flattened by rows
    params = {"U": normal(2, 3), "V": normal(1, 3, seed=1)}
    mirror = MirrorSymmetry(O)
    assert mirror.violation(lambda p: p["U"] @ p["V"].T, params) < 1e-15
    assert mirror.violation(lambda p: p["U"].sum(), params) > 1e-2
    assert np.linalg.matrix_rank(mirror.project(params)["U"].numpy() @ np.array([[0.6], [0], [-0.8]]), tol=1e-12) == 0


@given(seed=seeds, m=st.integers(1, 4), extra=st.integers(0, 3), scale=st.floats(1e-150, 1e150))
@settings(max_examples=40, deadline=None)
def test_a_constraint_becomes_the_mirror_of_its_null_space(seed, m, extra, scale):
    rng = np.random.default_rng(seed)
    independent = rng.standard_normal((m, 6))
    A = scale * np.concatenate([independent, rng.standard_normal((extra, m)) @ independent])
    mirror = MirrorSymmetry.from_constraint(A)
    assert mirror.k == m
    on_mirror = mirror.project(rng.standard_normal(6))
    assert np.abs(A @ on_mirror).max() < 1e-12 * scale * 100


def test_orthogonal_constraints_are_only_normalised_and_dependent_ones_dropped():
    rows = np.array([[0, 2.0, 0, 2.0], [0, 0, 0, 0], [3.0, 0, 0, 0], [3.0, 1, 0, 1]])
    half = 1 / np.sqrt(2)
    np.testing.assert_allclose(
        MirrorSymmetry.from_constraint(rows[:3]).O.T, [[0, half, 0, half], [1, 0, 0, 0]], atol=4 * EPSILON
    )
    assert MirrorSymmetry.from_constraint(rows).k == 2
    np.testing.assert_allclose(MirrorSymmetry.from_constraint([1e-200, 1e-200]).O.T, [[half, half]])
    rescaled = MirrorSymmetry.from_constraint([[1e-30, 0, 0], [0, 1.0, 0]])
    assert rescaled.k == 2


def test_a_mirror_is_frozen_compares_by_its_columns_and_survives_copies():
    dense, swap = MirrorSymmetry(MirrorSymmetry.swap(5, [0, 1], [3, 2]).O), MirrorSymmetry.swap(5, [0, 1], [3, 2])
    assert dense == swap
    assert hash(dense) == hash(swap)
    assert swap != MirrorSymmetry.swap(5, [0, 1], [2, 3])
    assert swap != MirrorSymmetry.flip(5, [0, 1])
    assert MirrorSymmetry.flip(5, 0) == MirrorSymmetry([1.0, 0, 0, 0, 0])
    assert swap != "swap"
    assert len({dense, swap, MirrorSymmetry.flip(5, 1)}) == 2
    assert dataclasses.is_dataclass(swap)
    for mirror in (dense, swap):
        for copied in (copy.copy(mirror), copy.deepcopy(mirror), pickle.loads(pickle.dumps(mirror))):
            assert copied == mirror
            np.testing.assert_array_equal(copied.reflect(np.arange(5.0)), mirror.reflect(np.arange(5.0)))
        with pytest.raises(dataclasses.FrozenInstanceError):
            mirror.O = np.eye(5)
        with pytest.raises(ValueError, match="read-only"):
            mirror.O[0, 0] = 1.0
    with pytest.raises(AttributeError, match="no attribute 'columns'"):
        swap.columns  # noqa: B018


def test_a_mirror_keeps_its_own_copy():
    O = np.array([[1.0], [0.0]])
    mirror = MirrorSymmetry(O)
    O[:] = 7
    np.testing.assert_array_equal(mirror.reflect([2.0, 3.0]), [-2, 3])
    theta = np.array([2.0, 3.0])
    for symmetry in (mirror, MirrorSymmetry.flip(2, 0), MirrorSymmetry.swap(2, 0, 1)):
        symmetry.reflect(theta)
        symmetry.project(theta)
        np.testing.assert_array_equal(theta, [2, 3])


# Refusals

NET = small_net()
ATTENTION = CONTINUOUS["two heads"][1]()
RESCALING, SCALE, LINEAR = Rescaling(LAYER, "2.weight"), Scale(LAYER, per_unit=True), GL("2.weight", "0.weight")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Rescaling((), "a"), ValueError, "incoming must be at least one name, got none"),
        (lambda: Rescaling("a", []), ValueError, "outgoing must be at least one name, got none"),
        (
            lambda: Rescaling("a", "a"),
            ValueError,
            "outgoing must be names that occur only once, got 'a' in incoming too",
        ),
        (lambda: Rescaling(["a", "a"], "b"), ValueError, "incoming must be names that occur only once, got 'a' twice"),
        (lambda: Rescaling(3, "b"), TypeError, "incoming must be a name or a sequence of names, got int"),
        (lambda: Rescaling([1], "b"), TypeError, r"incoming\[0\] must be a string, got int"),
        (lambda: Rescaling("a", "b", per_unit=1), TypeError, "per_unit must be True or False, got int"),
        (lambda: Scale({"a"}), TypeError, "names must be a name or a sequence of names, got set"),
        (lambda: Scale([]), ValueError, "names must be at least one name, got none"),
        (lambda: GL("a", "a"), ValueError, "right must be names that occur only once, got 'a' in left too"),
        (lambda: GL("a", None), TypeError, "right must be a string, got NoneType"),
        (lambda: GL("a", "b", left_bias="c"), ValueError, "left_bias must be None unless transpose_left=True, got 'c'"),
        (lambda: GL("a", "b", heads=0), ValueError, "heads must be >= 1, got 0"),
        (lambda: GL("a", "b", heads=True), TypeError, "heads must be an integer, got bool"),
        (lambda: GL("a", "b", transpose_left=None), TypeError, "transpose_left must be True or False"),
        (lambda: Rotation("a", "a"), ValueError, "left must be names that occur only once"),
        (lambda: Permutation("a", ()), ValueError, "outgoing must be at least one name, got none"),
        (lambda: RESCALING.act([1.0], 0.1), TypeError, "params must be a dict of tensors, got list"),
        (lambda: RESCALING.charge(nn.Linear(2, 2)), TypeError, "params must be a dict of tensors, got Linear"),
        (
            lambda: RESCALING.charge({"0.weight": NET["0.weight"]}),
            ValueError,
            "params must be a dict with the name '0.bias'",
        ),
        (
            lambda: RESCALING.charge({**NET, "0.bias": 1.0}),
            TypeError,
            r"params\['0.bias'\] must be a tensor, got float",
        ),
        (
            lambda: RESCALING.charge({**NET, "0.bias": torch.ones(3, dtype=torch.long)}),
            TypeError,
            r"params\['0.bias'\] must be real floating point numbers, got dtype torch.int64",
        ),
        (
            lambda: RESCALING.charge({**NET, "0.bias": torch.ones(3, dtype=torch.complex64)}),
            TypeError,
            "must be real floating point numbers, got dtype torch.complex64",
        ),
        (
            lambda: RESCALING.charge({**NET, "2.weight": normal(2, 4)}),
            ValueError,
            r"params must be of one number of units, got 3 from '0.weight' of shape \(3, 4\).*4 from '2.weight'",
        ),
        (
            lambda: RESCALING.charge({**NET, "0.bias": torch.ones(3, device="meta")}),
            ValueError,
            "params must be on one device, got cpu and meta",
        ),
        (
            lambda: Scale("w", per_unit=True).charge({"w": torch.ones(0, 2)}),
            ValueError,
            "params must be of a number of units >= 1, got 0",
        ),
        (
            lambda: RESCALING.act(NET, [1.0, 2.0]),
            ValueError,
            r"amount must be a number or of shape \(3,\), got shape \(2,\)",
        ),
        (
            lambda: Rescaling("0.weight", "2.weight", per_unit=False).act(NET, torch.ones(3)),
            ValueError,
            "amount must be a number",
        ),
        (lambda: RESCALING.act(NET, np.nan), ValueError, "amount must be finite, got nan"),
        (
            lambda: RESCALING.act(NET, torch.tensor([0.0, np.inf, 0.0])),
            ValueError,
            "amount must be finite, got inf or nan",
        ),
        (lambda: RESCALING.act(NET, "0.1"), TypeError, "amount must be real numbers, got str"),
        (lambda: RESCALING.act(NET, True), TypeError, "amount must be real numbers, got bool"),
        (
            lambda: RESCALING.act(NET, torch.tensor(1j)),
            TypeError,
            "amount must be real numbers, got dtype torch.complex64",
        ),
        (lambda: RESCALING.act(NET, None), TypeError, "amount must be real numbers, got NoneType"),
        (
            lambda: RESCALING.act({name: tensor.float() for name, tensor in NET.items()}, -89.0),
            ValueError,
            "amount must be small enough for torch.float32, got one whose exponential overflows",
        ),
        (lambda: LINEAR.act(NET, 710.0), ValueError, "amount must be small enough for torch.float64"),
        (lambda: LINEAR.act(NET, 1e4 * torch.eye(3)), ValueError, "amount must be small enough for torch.float64"),
        (
            lambda: LINEAR.act(NET, torch.ones(2, 2)),
            ValueError,
            r"amount must be a number or of shape \(3, 3\) or of shape \(1, 3, 3\), got shape \(2, 2\)",
        ),
        (lambda: LINEAR.generator_product(NET, torch.ones(3)), ValueError, "direction must be a number or of shape"),
        (
            lambda: LINEAR.charge({**NET, "0.weight": normal(4, 4)}),
            ValueError,
            "params must be of one inner dimension, got 3",
        ),
        (
            lambda: LINEAR.charge({**NET, "0.weight": torch.ones(())}),
            ValueError,
            "must be a vector or a matrix, got shape",
        ),
        (
            lambda: GL("2.weight", "0.weight", heads=2).charge(NET),
            ValueError,
            "heads must be a divisor of the inner dimension 3, got 2",
        ),
        (
            lambda: GL("2.weight", "0.weight", right_bias="0.bias").charge({**NET, "0.bias": torch.ones(3, 1)}),
            ValueError,
            r"params\['0.bias'\] must be a vector, got shape \(3, 1\)",
        ),
        (
            lambda: Rotation("0.weight", "2.weight").act(NET, torch.eye(3)),
            ValueError,
            "amount must be antisymmetric, got a",
        ),
        (
            lambda: Rotation("0.weight", "2.weight").act(NET, torch.zeros(2, 2)),
            ValueError,
            r"number or of shape \(3, 3\)",
        ),
        (
            lambda: Rotation("0.weight", "0.bias").act({**NET, "0.bias": torch.ones(2)}, 0.1),
            ValueError,
            "one inner dimension",
        ),
        (lambda: Permutation(LAYER, "2.weight").act(NET, 0.1), TypeError, "amount must be integers, got dtype float64"),
        (
            lambda: Permutation(LAYER, "2.weight").act(NET, [0, 1]),
            ValueError,
            "amount must be a permutation of 3 units, got",
        ),
        (lambda: Permutation(LAYER, "2.weight").act(NET, [0, 1, 1]), ValueError, "amount must be distinct indices"),
        (
            lambda: Permutation(LAYER, "2.weight").act(NET, [0, 1, 3]),
            ValueError,
            "amount must be between 0 and 2, got 3",
        ),
        (
            lambda: Permutation(LAYER, "2.weight").act(NET, torch.ones(3, 1).long()),
            ValueError,
            "at least one index in one",
        ),
        (lambda: RESCALING.violation(3, NET), TypeError, "loss must be a function of params, got int"),
        (
            lambda: RESCALING.violation(lambda p: None, NET),
            TypeError,
            r"loss\(params\) must be real numbers, got NoneType",
        ),
        (lambda: RESCALING.violation(lambda p: p, NET), TypeError, r"loss\(params\) must be real numbers, got dict"),
        (lambda: RESCALING.violation(lambda p: np.nan, NET), ValueError, r"loss\(params\) must be finite, got nan"),
        (
            lambda: RESCALING.violation(lambda p: torch.ones(0), NET),
            ValueError,
            "must be at least one number, got shape",
        ),
        (lambda: RESCALING.violation(lambda p: 1.0, [NET]), TypeError, "params must be a dict of tensors, got list"),
        (
            lambda: SWAP.violation(two_values(1.0, np.inf), [1.0, 2.0]),
            ValueError,
            "the loss of the transformed params must be finite, got inf",
        ),
        (
            lambda: SWAP.violation(two_values([1.0, 1.0], 1.0), [1.0, 2.0]),
            ValueError,
            r"loss must be of the same shape \(2,\) for transformed params, got shape \(\)",
        ),
        (
            lambda: SWAP.violation(np.sum, [[1.0, 2.0]]),
            ValueError,
            r"params must be one-dimensional, got shape \(1, 2\)",
        ),
        (lambda: SWAP.violation(np.sum, "ab"), TypeError, "params must be real numbers, got str"),
        (lambda: MirrorSymmetry(1.0), ValueError, r"O must be one- or two-dimensional, got shape \(\)"),
        (lambda: MirrorSymmetry(np.ones((1, 1, 1))), ValueError, "O must be one- or two-dimensional"),
        (lambda: MirrorSymmetry([np.nan, 0.0]), ValueError, "O must be finite, got nan at index 0"),
        (lambda: MirrorSymmetry(np.zeros((3, 0))), ValueError, "O must be of at least one column"),
        (lambda: MirrorSymmetry([]), ValueError, r"O must be of at least one column .*, got shape \(0, 1\)"),
        (lambda: MirrorSymmetry(np.eye(3)[:2]), ValueError, r"no more columns than rows, got shape \(2, 3\)"),
        (
            lambda: MirrorSymmetry([1.0, 1.0]),
            ValueError,
            r"O must be orthonormal in its columns, got max\|O\^T O - I\| = 1",
        ),
        (lambda: MirrorSymmetry([1.0, 2e-4]), ValueError, "O must be orthonormal in its columns"),
        (lambda: MirrorSymmetry("O"), TypeError, "O must be real numbers, got str"),
        (lambda: MirrorSymmetry.from_constraint(np.zeros((2, 3))), ValueError, "A must be of rank >= 1, got rank 0"),
        (lambda: MirrorSymmetry.from_constraint(1.0), ValueError, "A must be one- or two-dimensional"),
        (lambda: MirrorSymmetry.from_constraint([[1.0, np.inf]]), ValueError, "A must be finite, got inf"),
        (lambda: MirrorSymmetry.from_constraint([[1.0], [1.0, 2.0]]), TypeError, "A must be an array of real numbers"),
        (
            lambda: MirrorSymmetry.swap(4, [0, 1], [2]),
            ValueError,
            r"second must be as long as first \(2\), got length 1",
        ),
        (
            lambda: MirrorSymmetry.swap(4, [0, 1], [1, 2]),
            ValueError,
            "second must be disjoint from first, got 1 in both",
        ),
        (
            lambda: MirrorSymmetry.swap(4, [0, 0], [1, 2]),
            ValueError,
            "first must be distinct indices, got repeated ones",
        ),
        (lambda: MirrorSymmetry.swap(4, [4], [1]), ValueError, "first must be between 0 and 3, got 4"),
        (lambda: MirrorSymmetry.swap(4, [-1], [1]), ValueError, "first must be between 0 and 3, got -1"),
        (lambda: MirrorSymmetry.swap(0, [0], [1]), ValueError, "n must be >= 1, got 0"),
        (lambda: MirrorSymmetry.flip(4.0, [0]), TypeError, "n must be an integer, got float"),
        (lambda: MirrorSymmetry.flip(4, []), ValueError, "indices must be at least one index"),
        (lambda: MirrorSymmetry.flip(4, [0.0]), TypeError, "indices must be integers, got dtype float64"),
        (lambda: MirrorSymmetry.flip(4, [[0], [1, 2]]), TypeError, "indices must be a sequence of integers, got list"),
        (lambda: SWAP.reflect([1.0, 2.0, 3.0]), ValueError, r"theta must be of shape \(..., 2\), got shape \(3,\)"),
        (lambda: SWAP.project(torch.ones(2, 3)), ValueError, r"theta must be of shape \(..., 2\), got shape \(2, 3\)"),
        (lambda: SWAP.distance(1.0), ValueError, r"theta must be of shape \(..., 2\), got shape \(\)"),
        (
            lambda: SWAP.coordinates(torch.tensor([1, 2])),
            TypeError,
            "theta must be real floating point numbers, got dtype",
        ),
        (lambda: SWAP.reflect([1.0, np.nan]), ValueError, "theta must be finite, got nan at index 1"),
        (lambda: SWAP.reflect({"a": torch.ones(3)}), ValueError, "params must be of 2 entries in total, got 3"),
        (lambda: SWAP.reflect({}), ValueError, "params must be of 2 entries in total, got 0"),
        (lambda: SWAP.reflect({"a": [1.0, 2.0]}), TypeError, r"params\['a'\] must be a tensor, got list"),
        (lambda: SWAP.embed([1.0, 2.0]), ValueError, r"coordinates must be of shape \(..., 1\), got shape \(2,\)"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error, message):
    with pytest.raises(error, match=message):
        call()
