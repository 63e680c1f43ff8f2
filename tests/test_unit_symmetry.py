"""Tests of the symmetries of units: agreement with the layerwise classes, group laws, charges, and refusals."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

from symlearn.symmetry import GL, Permutation, Rescaling, Scale, UnitMirror, UnitPermutation, UnitSymmetry

ROWS, COLUMNS = torch.arange(3)[:, None], torch.arange(3)[None]
TERMS = [("in", 1, ROWS), ("bias", 1, torch.arange(3)), ("out", -1, COLUMNS)]
seeds = st.integers(0, 2**32 - 1)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def small_net(seed=0):
    """Four inputs, three units, two outputs."""
    return {"in": normal(3, 4, seed=seed), "bias": normal(3, seed=seed + 1), "out": normal(2, 3, seed=seed + 2)}


def assert_same(first, second):
    assert list(first) == list(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-12, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_a_layer_is_rescaled_as_rescaling_does_it(seed):
    params, amount = small_net(seed), normal(3, seed=seed)
    units, layer = UnitSymmetry(TERMS, 3), Rescaling(("in", "bias"), "out")
    assert_same(units.act(params, amount), layer.act(params, amount))
    assert_same(units.generator_product(params), layer.generator_product(params))
    torch.testing.assert_close(units.charge(params), layer.charge(params))


def test_one_sided_terms_are_scale():
    params = small_net()
    units, scale = UnitSymmetry(TERMS[:2], 3), Scale(("in", "bias"), per_unit=True)
    torch.testing.assert_close(units.charge(params), scale.charge(params))
    assert_same(units.act(params, 0.3), scale.act(params, 0.3))


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_matrices_act_as_gl_does(seed):
    params, matrix = small_net(seed), 0.5 * normal(3, 3, seed=seed)
    units, layer = UnitSymmetry(TERMS, 3, blocks=[[0, 1, 2]]), GL("out", "in", right_bias="bias")
    assert_same(units.act(params, matrix), layer.act(params, matrix))
    torch.testing.assert_close(units.charge(params)[0], layer.charge(params))
    assert_same(
        dict(units.generator_product(params, matrix).items()),
        {n: layer.generator_product(params, matrix)[n] for n in units.names},
    )


def test_queries_and_keys_are_both_rows():
    params = {"q": normal(4, 5), "k": normal(4, 5, seed=1)}
    rows = torch.arange(4)[:, None]
    units = UnitSymmetry([("k", 1, rows), ("q", -1, rows)], 4, blocks=[[0, 1], [2, 3]])
    layer, matrix = GL("q", "k", transpose_left=True, heads=2), normal(2, 2, 2, seed=2)
    assert_same(units.act(params, matrix), layer.act(params, matrix))
    torch.testing.assert_close(units.charge(params), layer.charge(params))


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_minus_the_amount_undoes_it(seed):
    params = small_net(seed)
    for symmetry, amount in [
        (UnitSymmetry(TERMS, 3), normal(3, seed=seed)),
        (UnitSymmetry([("in", 2, ROWS), ("out", -0.5, COLUMNS)], 3), normal(3, seed=seed)),
        (UnitSymmetry(TERMS, 3, blocks=[[0, 2]]), normal(1, 2, 2, seed=seed)),
    ]:
        assert_same(symmetry.act(symmetry.act(params, amount), -amount), params)


def test_a_number_is_the_same_amount_for_every_unit_with_and_without_blocks():
    params = small_net()
    with_blocks, without = UnitSymmetry(TERMS, 3, blocks=[[0, 1, 2]]), UnitSymmetry(TERMS, 3)
    assert_same(with_blocks.act(params, 0.7), without.act(params, 0.7))
    charge = with_blocks.charge(params)[0]
    torch.testing.assert_close(charge, charge.T)
    torch.testing.assert_close(charge.diagonal(), without.charge(params))


@settings(max_examples=20, deadline=None)
@given(seed=seeds, exponent=st.sampled_from([1, 2, -1, 0.5, -2]))
def test_the_generator_is_the_derivative_of_the_action(seed, exponent):
    params, direction = small_net(seed), normal(3, seed=seed)
    symmetry = UnitSymmetry([("in", exponent, ROWS), ("in", -1, torch.tensor([[0, 0, -1, 2]])), TERMS[2]], 3)
    for of in (symmetry, UnitSymmetry(TERMS, 3, blocks=[[2, 0]])):
        along = normal(1, 2, 2, seed=seed) if of.blocks is not None else direction
        product = of.generator_product(params, along)
        step = 1e-6
        ahead, behind = of.act(params, step * along), of.act(params, -step * along)
        for name in of.names:
            slope = (ahead[name] - behind[name]) / (2 * step)
            torch.testing.assert_close(product[name], slope, rtol=1e-7, atol=1e-8)


def test_half_the_slope_of_the_squared_norm_is_the_charge():
    # d/dmu |theta|^2 = 2 C for any exponents: the sum of a theta^2 over the entries of a unit.
    params = small_net()
    symmetry = UnitSymmetry([("in", 1, ROWS), ("out", -2, COLUMNS)], 3)
    amount = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    moved = symmetry.act(params, amount)
    (slope,) = torch.autograd.grad(sum(moved[name].square().sum() for name in symmetry.names), amount)
    torch.testing.assert_close(slope / 2, symmetry.charge(params))


def test_blocks_of_columns_belong_to_one_channel():
    params = {"conv": normal(2, 3), "head": normal(4, 6)}
    columns = torch.tensor([[0, 0, 0, 1, 1, 1]])
    symmetry = UnitSymmetry([("conv", 1, torch.tensor([[0], [1]])), ("head", -1, columns)], 2)
    moved = symmetry.act(params, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(moved["head"][:, :3], params["head"][:, :3] * torch.tensor(-1.0).exp().double())
    assert torch.equal(moved["head"][:, 3:], params["head"][:, 3:])
    expected = params["conv"].square().sum(1) - params["head"].square().reshape(4, 2, 3).sum((0, 2))
    torch.testing.assert_close(symmetry.charge(params), expected)


def test_terms_on_the_same_entries_add_up():
    # A square weight that writes into and reads from the same units keeps its diagonal.
    symmetry = UnitSymmetry([("w", 1, ROWS), ("w", -1, COLUMNS)], 3)
    params = {"w": normal(3, 3)}
    moved = symmetry.act(params, normal(3, seed=1))
    torch.testing.assert_close(moved["w"].diagonal(), params["w"].diagonal())
    torch.testing.assert_close(moved["w"][0, 1] * moved["w"][1, 0], params["w"][0, 1] * params["w"][1, 0])


def test_buffers_move_but_have_no_charge():
    index = torch.arange(3)
    symmetry = UnitSymmetry([("in", 1, ROWS), ("mean", 1, index), ("var", 2, index)], 3, buffers=("mean", "var"))
    params = {"in": normal(3, 4), "mean": normal(3), "var": normal(3).square()}
    moved = symmetry.act(params, torch.log(torch.tensor(2.0)))
    torch.testing.assert_close(moved["var"], 4 * params["var"])
    torch.testing.assert_close(moved["mean"], 2 * params["mean"])
    torch.testing.assert_close(symmetry.charge({"in": params["in"]}), params["in"].square().sum(1))


def test_permutations_agree_with_the_layerwise_class_and_carry_blocks_along():
    params, order = small_net(), torch.tensor([2, 0, 1])
    units, layer = UnitPermutation(TERMS, 3), Permutation(("in", "bias"), "out")
    assert_same(units.act(params, order), layer.act(params, order))
    assert_same(units.act(units.act(params, order), order.argsort()), params)
    heads = UnitPermutation([("v", 1, torch.tensor([[0], [0], [1], [1], [-1]]))], 2)
    moved = heads.act({"v": torch.arange(5.0)[:, None]})
    assert moved["v"].reshape(-1).tolist() == [2, 3, 0, 1, 4]


def test_a_mirror_is_its_own_inverse_and_two_terms_on_one_entry_cancel():
    params = small_net()
    mirror = UnitMirror(TERMS, 3)
    assert_same(mirror.act(mirror.act(params)), params)
    moved = mirror.act(params, [1, 0, 0])
    assert torch.equal(moved["in"][0], -params["in"][0])
    assert torch.equal(moved["in"][1:], params["in"][1:])
    both = UnitMirror([("w", 1, ROWS), ("w", 1, COLUMNS)], 3)
    assert torch.equal(both.act({"w": normal(3, 3)})["w"], normal(3, 3))


def test_nothing_but_the_named_tensors_is_touched():
    params = small_net() | {"other": normal(2)}
    kept = {name: tensor.clone() for name, tensor in params.items()}
    for symmetry in (UnitSymmetry(TERMS, 3), UnitSymmetry(TERMS, 3, blocks=[[0, 1]]), UnitMirror(TERMS, 3)):
        moved = symmetry.act(params, 1)
        assert moved["other"] is params["other"]
        assert all(torch.equal(params[name], kept[name]) for name in params)


def test_it_works_under_vmap_and_is_differentiable():
    params, symmetry = small_net(), UnitSymmetry(TERMS, 3)
    amounts = normal(5, 3)
    batched = vmap(lambda amount: symmetry.act(params, amount)["in"])(amounts)
    torch.testing.assert_close(batched[2], symmetry.act(params, amounts[2])["in"])
    charges = vmap(lambda scale: symmetry.charge({name: scale * tensor for name, tensor in params.items()}))(
        amounts[:, 0]
    )
    torch.testing.assert_close(charges[1], amounts[1, 0] ** 2 * symmetry.charge(params))


def test_equal_symmetries_are_equal_and_survive_copies():
    symmetry = UnitSymmetry(TERMS, 3)
    assert symmetry == UnitSymmetry(TERMS, 3)
    assert symmetry != UnitSymmetry(TERMS[:2], 3)
    assert symmetry != UnitMirror(TERMS, 3)
    assert hash(symmetry) == hash(UnitSymmetry(TERMS, 3))
    assert pickle.loads(pickle.dumps(symmetry)) == copy.deepcopy(symmetry) == symmetry
    assert repr(symmetry) == "UnitSymmetry('in', 'bias', 'out'; units=3)"


BAD_TERMS = {
    "none": (None, TypeError, "terms must be a sequence"),
    "string": ("in", TypeError, "terms must be a sequence"),
    "empty": ([], ValueError, "terms must be at least one term, got none"),
    "pair": ([("in", 1)], TypeError, r"terms\[0\] must be a tuple"),
    "list": ([["in", 1, ROWS]], TypeError, r"terms\[0\] must be a tuple"),
    "name": ([(3, 1, ROWS)], TypeError, r"terms\[0\]\[0\] must be a string"),
    "exponent zero": ([("in", 0, ROWS)], ValueError, r"terms\[0\]\[1\] must be different from 0"),
    "exponent nan": ([("in", float("nan"), ROWS)], ValueError, "must be finite"),
    "exponent none": ([("in", None, ROWS)], TypeError, "must be real numbers|must be an array"),
    "index list": ([("in", 1, [[0]])], TypeError, "must be a tensor of integers"),
    "index float": ([("in", 1, ROWS.double())], TypeError, "must be integers, got dtype torch.float64"),
    "index bool": ([("in", 1, ROWS > 0)], TypeError, "must be integers, got dtype torch.bool"),
    "index too large": ([("in", 1, ROWS + 1)], ValueError, "must be between -1 and 2, got 1 to 3"),
    "index too small": ([("in", 1, ROWS - 2)], ValueError, "must be between -1 and 2"),
    "index empty": ([("in", 1, ROWS[:0])], ValueError, "got no entries"),
}


@pytest.mark.parametrize("name", BAD_TERMS)
@pytest.mark.parametrize("kind", [UnitSymmetry, UnitMirror, UnitPermutation])
def test_bad_terms_are_refused(kind, name):
    terms, error, message = BAD_TERMS[name]
    with pytest.raises(error, match=message):
        kind(terms, 3)


BAD_CALLS = {
    "no units": (lambda p: UnitSymmetry(TERMS, 0), ValueError, "units must be >= 1"),
    "units float": (lambda p: UnitSymmetry(TERMS, 3.0), TypeError, "units must be an integer"),
    "blocks overlap": (
        lambda p: UnitSymmetry(TERMS, 3, blocks=[[0, 1], [1, 2]]),
        ValueError,
        "blocks must be disjoint",
    ),
    "blocks lengths": (
        lambda p: UnitSymmetry(TERMS, 3, blocks=[[0, 1], [2]]),
        ValueError,
        "blocks must be of one length",
    ),
    "blocks range": (lambda p: UnitSymmetry(TERMS, 3, blocks=[[0, 3]]), ValueError, r"blocks\[0\] must be between"),
    "blocks exponent": (
        lambda p: UnitSymmetry([("in", 2, ROWS)], 3, blocks=[[0, 1]]),
        ValueError,
        "terms must be of exponents 1 and -1",
    ),
    "only buffers": (
        lambda p: UnitSymmetry(TERMS[:1], 3, buffers=("in",)).charge(p),
        ValueError,
        "buffers must be not all",
    ),
    "missing name": (lambda p: UnitSymmetry([("no", 1, ROWS)], 3).act(p, 1), ValueError, "with the name 'no'"),
    "params list": (lambda p: UnitSymmetry(TERMS, 3).act([1], 1), TypeError, "params must be a dict"),
    "shape": (
        lambda p: UnitSymmetry([("bias", 1, ROWS)], 3).act(p, 1),
        ValueError,
        r"params\['bias'\] must be of a shape that an index \(3, 1\) fits, got \(3,\)",
    ),
    "size": (lambda p: UnitSymmetry([("out", 1, ROWS)], 3).act(p, 1), ValueError, "must be of a shape"),
    "amount shape": (
        lambda p: UnitSymmetry(TERMS, 3).act(p, [1.0, 2.0]),
        ValueError,
        "amount must be a number or of shape",
    ),
    "amount nan": (lambda p: UnitSymmetry(TERMS, 3).act(p, float("nan")), ValueError, "amount must be finite"),
    "amount string": (lambda p: UnitSymmetry(TERMS, 3).act(p, "a"), TypeError, "amount must be"),
    "amount large": (lambda p: UnitSymmetry(TERMS, 3).act(p, 1e4), ValueError, "amount must be small enough"),
    "matrix shape": (
        lambda p: UnitSymmetry(TERMS, 3, blocks=[[0, 1]]).act(p, torch.ones(3, 3)),
        ValueError,
        "amount must be a number or of shape",
    ),
    "mask": (lambda p: UnitMirror(TERMS, 3).act(p, [0, 2, 1]), ValueError, "amount must be a mask of zeros and ones"),
    "short order": (lambda p: UnitPermutation(TERMS, 3).act(p, [0, 1]), ValueError, "a permutation of 3 units"),
    "double order": (lambda p: UnitPermutation(TERMS, 3).act(p, [0, 1, 1]), ValueError, "distinct indices"),
    "unequal units": (
        lambda p: UnitPermutation([("out", 1, torch.tensor([[0, 0, 1]]))], 2).act(p),
        ValueError,
        "with every unit equally often",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments_are_refused(name):
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call(small_net())


def test_a_mask_of_truth_values_flips_as_ones_and_zeros_do():
    terms = [("w", 1, torch.tensor([[0], [1]])), ("v", 1, torch.tensor([[0, 1]]))]
    params = {"w": torch.ones(2, 3), "v": torch.ones(2, 2)}
    mirror = UnitMirror(terms, units=2)
    by_truth, by_number = mirror.act(params, torch.tensor([False, True])), mirror.act(params, [0, 1])
    assert all(torch.equal(by_truth[name], by_number[name]) for name in params)
