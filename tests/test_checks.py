import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from symlearn import _checks as checks

REAL_INPUTS = [3, 2.5, [1, 2], (1.0, 2), np.int8([1]), np.float16([1]), np.uint64(7), torch.ones(2), torch.tensor(3)]


@pytest.mark.parametrize("value", REAL_INPUTS)
def test_real_numbers_become_float64(value):
    array = checks.check_real("x", value)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float64
    assert array.shape == np.shape(value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int16])
def test_tensors_of_any_number_type_are_read(dtype):
    assert checks.check_real("x", torch.tensor([1, 2], dtype=dtype)).tolist() == [1, 2]


def test_tensors_with_a_graph_or_a_negative_bit_are_read():
    assert checks.check_real("x", torch.ones(2, requires_grad=True) * 2).tolist() == [2, 2]
    assert checks.check_real("x", torch.tensor([1j]).conj().imag).tolist() == [-1]


def test_converted_numbers_are_a_copy():
    given_array = np.ones(2)
    checks.check_real("x", given_array)[:] = 5
    tensor = torch.ones(2, dtype=torch.float64)
    checks.check_real("x", tensor)[:] = 5
    assert given_array.tolist() == tensor.tolist() == [1, 1]


def test_infinities_and_nan_are_real_but_not_finite():
    assert np.isnan(checks.check_real("x", [np.nan, np.inf])[0])
    with pytest.raises(ValueError, match="x must be finite, got inf at index 1"):
        checks.check_finite("x", [0, np.inf])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_exactly_the_numbers_above_zero_are_positive(value):
    accepted = {}
    for check in (checks.check_positive, checks.check_nonnegative):
        try:
            accepted[check] = float(check("x", value)) == value
        except ValueError:
            accepted[check] = False
    assert accepted == {checks.check_positive: value > 0, checks.check_nonnegative: value >= 0}


@given(st.floats(max_value=-1e-300, allow_infinity=False))
def test_the_number_in_a_message_is_the_number_given(value):
    with pytest.raises(ValueError, match="x must be >= 0, got ") as caught:
        checks.check_nonnegative("x", value)
    assert float(str(caught.value).rsplit("got ", 1)[1]) == value


def test_integers_of_all_kinds_become_int():
    for value in (3, np.int8(3), np.uint64(3), torch.tensor(3), np.array(3)):
        number = checks.check_int("n", value, 1, 3)
        assert number == 3
        assert type(number) is int


def test_scalars_become_float():
    for value in (2, 2.0, np.float32(2), np.array(2), torch.tensor(2.0)):
        number = checks.check_scalar("x", value)
        assert number == 2
        assert type(number) is float


def test_good_values_pass_unchanged():
    params, pair, generator, model = (
        {"w": torch.ones(2), "b": 3},
        (np.ones((2, 3)), torch.ones(2)),
        torch.Generator(),
        nn.ReLU(),
    )
    assert checks.check_params(params, ["w"]) is params
    assert all(a is b for a, b in zip(checks.check_pair(*pair), pair, strict=True))
    assert checks.check_generator(generator) is generator
    assert checks.check_generator(None) is None
    assert checks.check_module(model) is model
    assert checks.check_choice("mode", "a", ("a", "b")) == "a"
    assert checks.check_str("version", "") == ""
    assert checks.check_bool("flat", np.bool_(True)) is True


def test_fractions_samples_and_broadcasts_pass():
    assert checks.check_fraction("decay", 0) == 0
    batch = torch.ones(1, 2)
    assert checks.check_samples("x", batch) is batch
    assert [array.shape for array in checks.check_broadcast(p=np.ones((2, 1)), s=np.ones(3))] == [(2, 3), (2, 3)]


def test_shapes_with_free_lengths_are_met():
    assert checks.check_shape("x", np.ones((2, 3)), (None, 3)).shape == (2, 3)
    assert checks.check_shape("x", 1.0, ()).shape == ()
    assert checks.check_square("A", [[1.0]]).shape == (1, 1)
    assert checks.check_symmetric("A", [[1, 2], [2 + 1e-9, 1]]).shape == (2, 2)
    assert checks.check_symmetric("A", np.zeros((2, 2))).sum() == 0


def test_a_generator_is_used_as_it_is_and_a_seed_starts_a_new_one():
    rng = np.random.default_rng(0)
    assert checks.check_rng(rng) is rng
    assert checks.check_rng(np.int32(4)).random() == np.random.default_rng(4).random()
    assert checks.check_rng(None).random() != checks.check_rng(None).random()


SQUARE = [[1.0, 2.0], [3.0, 4.0]]
TENSORS = {"w": torch.ones(2)}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: checks.check_fraction("decay", 1.0), ValueError, r"decay must be in \[0, 1\), got 1"),
        (lambda: checks.check_fraction("decay", -0.1), ValueError, r"decay must be in \[0, 1\), got -0.1"),
        (lambda: checks.check_samples("x", [1.0]), TypeError, "x must be a tensor, got list"),
        (lambda: checks.check_samples("x", torch.ones(0, 2)), ValueError, "x must be of at least one sample"),
        (lambda: checks.check_samples("x", torch.tensor(1.0)), ValueError, "x must be of at least one sample"),
        (
            lambda: checks.check_broadcast(p=np.ones(2), s=np.ones(3)),
            ValueError,
            r"p, s must be of shapes that broadcast, got shapes \(2,\), \(3,\)",
        ),
        (lambda: checks.check_real("x", "abc"), TypeError, "x must be real numbers, got str"),
        (lambda: checks.check_real("x", None), TypeError, "x must be real numbers, got NoneType"),
        (lambda: checks.check_real("x", True), TypeError, "x must be real numbers, got bool"),
        (lambda: checks.check_real("x", [True, False]), TypeError, "x must be real numbers, got list"),
        (lambda: checks.check_real("x", 1j), TypeError, "x must be real numbers, got complex"),
        (lambda: checks.check_real("x", np.array([1j])), TypeError, "x must be real numbers, got dtype complex128"),
        (
            lambda: checks.check_real("x", torch.tensor([1j]).conj()),
            TypeError,
            "x must be .*, got dtype complex64",
        ),
        (
            lambda: checks.check_real("x", torch.tensor([True])),
            TypeError,
            "x must be real numbers, got dtype bool",
        ),
        (lambda: checks.check_real("x", torch.eye(2).to_sparse()), TypeError, "x must be an array of .*, got Tensor"),
        (
            lambda: checks.check_real("x", torch.ones(2, device="meta")),
            TypeError,
            "x must be an array of .*, got Tensor",
        ),
        (lambda: checks.check_real("x", [[1], [1, 2]]), TypeError, "x must be an array of real numbers, got list"),
        (lambda: checks.check_real("x", [1, None]), TypeError, "x must be real numbers, got list"),
        (lambda: checks.check_real("x", {1: 2}), TypeError, "x must be real numbers, got dict"),
        (
            lambda: checks.check_real("x", np.array("now", "M8")),
            TypeError,
            "x must be real numbers, got dtype datetime64",
        ),
        (lambda: checks.check_finite("x", np.nan), ValueError, "x must be finite, got nan$"),
        (lambda: checks.check_finite("x", [[0, 1], [-np.inf, 1]]), ValueError, r"got -inf at index \(1, 0\)"),
        (lambda: checks.check_positive("lr", 0), ValueError, "lr must be > 0, got 0$"),
        (lambda: checks.check_positive("lr", [1, -2.5]), ValueError, "lr must be > 0, got -2.5 at index 1"),
        (lambda: checks.check_positive("lr", torch.tensor(-1.0)), ValueError, "lr must be > 0, got -1$"),
        (lambda: checks.check_nonnegative("ridge", -0.1), ValueError, "ridge must be >= 0, got -0.1$"),
        (lambda: checks.check_nonnegative("ridge", np.nan), ValueError, "ridge must be finite, got nan"),
        (lambda: checks.check_scalar("x", [1.0]), ValueError, r"x must be a single number, got shape \(1,\)"),
        (lambda: checks.check_scalar("x", "1"), TypeError, "x must be real numbers, got str"),
        (lambda: checks.check_int("n", 0, 1), ValueError, "n must be >= 1, got 0"),
        (lambda: checks.check_int("n", 4, 1, 3), ValueError, "n must be between 1 and 3, got 4"),
        (lambda: checks.check_int("n", 1.0, 1), TypeError, "n must be an integer, got float"),
        (lambda: checks.check_int("n", np.float64(1), 1), TypeError, "n must be an integer, got float64"),
        (lambda: checks.check_int("n", True, 1), TypeError, "n must be an integer, got bool"),
        (lambda: checks.check_int("n", np.True_, 1), TypeError, "n must be an integer, got bool"),
        (lambda: checks.check_int("n", torch.tensor(True), 1), TypeError, "n must be an integer, got Tensor"),
        (
            lambda: checks.check_int("n", torch.ones(2, dtype=torch.int64), 1),
            TypeError,
            "n must be an integer, got Tensor",
        ),
        (lambda: checks.check_int("n", "3", 1), TypeError, "n must be an integer, got str"),
        (lambda: checks.check_int("n", None, 1), TypeError, "n must be an integer, got NoneType"),
        (lambda: checks.check_bool("flat", 1), TypeError, "flat must be True or False, got int"),
        (lambda: checks.check_bool("flat", None), TypeError, "flat must be True or False, got NoneType"),
        (lambda: checks.check_str("version", 2), TypeError, "version must be a string, got int"),
        (lambda: checks.check_choice("mode", "c", ("b", "a")), ValueError, "mode must be one of 'a', 'b', got 'c'"),
        (lambda: checks.check_choice("mode", ["a"], ("a",)), TypeError, "mode must be one of 'a', got list"),
        (lambda: checks.check_shape("x", [1.0], (2,)), ValueError, r"x must be of shape \(2,\), got shape \(1,\)"),
        (
            lambda: checks.check_shape("x", [1.0], (None, 2)),
            ValueError,
            r"x must be of shape \(n, 2\), got shape \(1,\)",
        ),
        (lambda: checks.check_shape("x", [np.nan], (1,)), ValueError, "x must be finite, got nan at index 0"),
        (
            lambda: checks.check_square("A", np.ones((2, 3))),
            ValueError,
            r"A must be a square matrix, got shape \(2, 3\)",
        ),
        (
            lambda: checks.check_square("A", np.ones((0, 0))),
            ValueError,
            r"A must be a square matrix, got shape \(0, 0\)",
        ),
        (lambda: checks.check_square("A", [1.0]), ValueError, r"A must be of shape \(n, n\), got shape \(1,\)"),
        (lambda: checks.check_symmetric("A", SQUARE), ValueError, "A must be symmetric, got an asymmetry of 1"),
        (lambda: checks.check_params([1], ["w"]), TypeError, "params must be a dict of tensors, got list"),
        (lambda: checks.check_params(TENSORS, ["v"]), ValueError, "params must be a dict with the name 'v', got 'w'"),
        (lambda: checks.check_params({}, ["v"]), ValueError, "params must be a dict with the name 'v', got no names"),
        (
            lambda: checks.check_params({"w": np.ones(2)}, ["w"]),
            TypeError,
            r"params\['w'\] must be a tensor, got ndarray",
        ),
        (lambda: checks.check_pair([1], torch.ones(1)), TypeError, "inputs must be a tensor or an array, got list"),
        (lambda: checks.check_pair(torch.ones(1), 3), TypeError, "targets must be a tensor or an array, got int"),
        (
            lambda: checks.check_pair(np.ones(3), np.ones(2)),
            ValueError,
            r"targets must be as long as inputs \(3\), got length 2",
        ),
        (
            lambda: checks.check_pair(np.ones(0), np.ones(0)),
            ValueError,
            r"inputs must be of at least one sample, got shape \(0,\)",
        ),
        (
            lambda: checks.check_pair(torch.tensor(1), torch.ones(1)),
            ValueError,
            r"inputs must be of .*, got shape \(\)",
        ),
        (lambda: checks.check_pair(np.ones(2), np.ones(1), names=("x", "y")), ValueError, "y must be as long as x"),
        (lambda: checks.check_generator(0), TypeError, "generator must be a torch.Generator or None, got int"),
        (lambda: checks.check_generator(np.random.default_rng()), TypeError, "generator must be .*, got Generator"),
        (lambda: checks.check_rng(-1), ValueError, "rng must be >= 0, got -1"),
        (lambda: checks.check_rng(1.5), TypeError, "rng must be an int, a numpy Generator or None, got float"),
        (lambda: checks.check_rng(True), TypeError, "rng must be an int, a numpy Generator or None, got bool"),
        (lambda: checks.check_rng(torch.Generator()), TypeError, "rng must be an int, .*, got Generator"),
        (lambda: checks.check_module(nn.ReLU), TypeError, "model must be a torch.nn.Module, got type"),
        (
            lambda: checks.check_module(lambda x: x, "teacher"),
            TypeError,
            "teacher must be a torch.nn.Module, got function",
        ),
    ],
)
def test_bad_values_are_refused_in_one_voice(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert type(caught.value) is error
    assert " must be " in str(caught.value)


def test_messages_describe_values_as_a_reader_would():
    assert str(checks.invalid("x", "small", np.ones((2, 3)))) == "x must be small, got shape (2, 3)"
    assert str(checks.invalid("x", "small", torch.tensor([2.5]).sum())) == "x must be small, got 2.5"
    assert str(checks.invalid("x", "small", np.float32(0.5))) == "x must be small, got 0.5"
    assert str(checks.invalid("x", "< 1", 0.99999999 + 1e-8)) == "x must be < 1, got 1"
    assert str(checks.invalid("x", ">= 1", 0.99999999)) == "x must be >= 1, got 0.99999999"
    assert str(checks.invalid("x", "small", "two words")) == "x must be small, got two words"
    assert str(checks.wrong_type("x", "an int", 1.0)) == "x must be an int, got float"
