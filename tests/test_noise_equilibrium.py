import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from symlearn.datasets import digits
from symlearn.gradients import make_sample_loss, noise_covariance_trace, per_sample_gradients
from symlearn.models import mlp, small_cnn
from symlearn.noise_equilibrium import (
    charge_rate,
    equilibrium,
    equilibrium_amount,
    gl_equilibrium,
)
from symlearn.symmetry import GL, MirrorSymmetry, Permutation, Rescaling, Rotation, Scale


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def product_loss(params, x, y):
    return (params["u"] * params["w"] * x - y) ** 2


SCALARS = {"u": torch.tensor(2.0, dtype=torch.float64), "w": torch.tensor(0.5, dtype=torch.float64)}
DATA = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64), torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
PAIR = Rescaling("u", "w")


# --- the drift ---


def test_the_drift_is_noise_minus_decay():
    assert charge_rate(2.0, -3.0, temperature=0.1, weight_decay=0.01) == pytest.approx(0.26, rel=1e-12)
    np.testing.assert_allclose(charge_rate([2.0, 0.0], [0.0, 1.0], temperature=0.5, weight_decay=0.25), [1.0, -0.5])
    mixed = charge_rate(torch.tensor([2.0]), torch.tensor([1.0]), temperature=0.0, weight_decay=0.5)
    assert isinstance(mixed, torch.Tensor)
    assert mixed.tolist() == [-1.0]
    assert isinstance(charge_rate(np.float64(1), 1, temperature=1.0), float)


def test_one_step_of_sgd_changes_the_charge_as_the_drift_says():
    """C' = (1 - lr wd)^2 C + lr^2 g^T A g exactly; its mean over batches of one is the drift plus discretisation."""
    lr, decay = 0.01, 0.1
    grads = per_sample_gradients(product_loss, SCALARS, *DATA)
    steps = {k: SCALARS[k] - lr * (grads[k] + decay * SCALARS[k]) for k in SCALARS}
    change = (torch.func.vmap(PAIR.charge)(steps) - PAIR.charge(SCALARS)).mean() / lr
    noise = noise_covariance_trace(product_loss, SCALARS, *DATA, PAIR)
    mean = {k: g.mean(0) for k, g in grads.items()}
    drift = charge_rate(noise, PAIR.charge(SCALARS), temperature=lr, weight_decay=decay)
    expected = drift + lr * PAIR.charge(mean) + lr * decay**2 * PAIR.charge(SCALARS)
    torch.testing.assert_close(change, expected.squeeze(), rtol=1e-10, atol=1e-12)


# --- one orbit, any spectrum ---


@pytest.mark.parametrize(
    ("spectrum", "decay", "amount"),
    [
        (([2, 1, -1, -3], [0.5, 1, 2, 0.3], [0.2, 0.4, 0.1, 0.6]), 0.0, -0.0602049567427155),
        (([2, 1, -1, -3], [0.5, 1, 2, 0.3], [0.2, 0.4, 0.1, 0.6]), 0.05, 0.0069741478327838),
        (([1, 1], [2, 3], [1, 1]), 0.01, 0.6314321610770639),
        (([1.0], [5.0], [2.0]), 0.01, 0.25 * math.log(0.5 / 0.04)),
    ],
)
def test_the_amounts_computed_before(spectrum, decay, amount):
    found = equilibrium_amount(*spectrum, temperature=0.1, weight_decay=decay)
    assert found == pytest.approx(amount, rel=1e-12)


@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(-6, 6), st.booleans())
@settings(deadline=None, max_examples=100)
def test_the_drift_vanishes_at_the_equilibrium_and_shifts_with_the_start(seed, n, power, decays):
    rng = np.random.default_rng(seed)
    a = rng.choice([-1, 1], n) * rng.uniform(0.2, 3, n)
    a[:2] = np.abs(a[0]), -np.abs(a[1])
    s, q = rng.uniform(0.1, 2, (2, n)) * 10.0**power
    decay = 0.3 if decays else 0.0
    amount = equilibrium_amount(a, s, q, temperature=0.1, weight_decay=decay)
    up = 0.1 * a * s * np.exp(-2 * amount * a)
    down = 2 * decay * a * q * np.exp(2 * amount * a)
    assert abs(up.sum() - down.sum()) < 1e-10 * (np.abs(up).sum() + np.abs(down).sum())
    moved = equilibrium_amount(a, s * np.exp(-0.4 * a), q * np.exp(0.4 * a), temperature=0.1, weight_decay=decay)
    assert moved == pytest.approx(amount - 0.2, rel=1e-9, abs=1e-9)


def test_without_decay_the_temperature_does_not_matter_and_with_it_only_the_ratio_does():
    spectrum = [2, 1, -1], [0.5, 1, 2], [0.2, 0.4, 0.1]
    values = [equilibrium_amount(*spectrum, temperature=t) for t in (1e-6, 0.1, 1e6)]
    np.testing.assert_allclose(values, values[0], rtol=1e-12)
    values = [equilibrium_amount(*spectrum, temperature=t, weight_decay=0.3 * t) for t in (1e-6, 0.1, 1e6)]
    np.testing.assert_allclose(values, values[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("spectrum", "decay", "amount"),
    [
        (([1, 2], [1, 1], [1, 1]), 0.0, math.inf),
        (([-1, -2], [1, 1], [1, 1]), 0.0, -math.inf),
        (([1, 2], [0, 0], [1, 1]), 0.1, -math.inf),
        (([1, -2], [1, 0], [0, 0]), 0.5, math.inf),
        (([1, 0], [1, 9], [0, 9]), 0.5, math.inf),
    ],
)
def test_what_only_pushes_to_one_side_has_no_finite_equilibrium(spectrum, decay, amount):
    assert equilibrium_amount(*spectrum, temperature=0.1, weight_decay=decay) == amount


def test_extreme_noise_does_not_overflow():
    assert equilibrium_amount([1, -1], [1e300, 1e-300], [0, 0], temperature=1.0) == pytest.approx(150 * math.log(10))


# --- products of matrices ---


def test_the_matrix_equilibrium_computed_before():
    matrices = np.diag([1, 4]), np.diag([16, 1]), np.diag([2, 1]), np.diag([1, 3])
    np.testing.assert_allclose(gl_equilibrium(*matrices, temperature=0.1), np.diag([4, 0.5]), atol=1e-12)
    with_decay = gl_equilibrium(*matrices, temperature=0.1, weight_decay=0.05)
    np.testing.assert_allclose(with_decay, np.diag([3, math.sqrt(2 / 7)]), atol=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 6))
@settings(deadline=None, max_examples=50)
def test_the_matrix_equation_is_solved_and_turns_with_the_basis(seed, d):
    rng = np.random.default_rng(seed)
    matrices = [m @ m.T + 0.1 * np.eye(d) for m in rng.normal(size=(4, d, d))]
    P = gl_equilibrium(*matrices, temperature=0.2, weight_decay=0.1)
    X, Y = 0.2 * matrices[0] + 0.2 * matrices[3], 0.2 * matrices[1] + 0.2 * matrices[2]
    np.testing.assert_allclose(P @ X @ P, Y, rtol=1e-8, atol=1e-9 * np.abs(Y).max())
    assert np.linalg.eigvalsh(P)[0] > 0
    swapped = gl_equilibrium(*(matrices[i] for i in (1, 0, 3, 2)), temperature=0.2, weight_decay=0.1)
    np.testing.assert_allclose(swapped @ P, np.eye(d), atol=1e-6)
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    turned = gl_equilibrium(*(Q @ m @ Q.T for m in matrices), temperature=0.2, weight_decay=0.1)
    np.testing.assert_allclose(turned, Q @ P @ Q.T, atol=1e-7 * np.abs(P).max())


# --- models ---


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_two_scalars_end_balanced(decay):
    result = equilibrium(product_loss, SCALARS, PAIR, *DATA, temperature=0.1, weight_decay=decay)
    assert float(result.amount) == pytest.approx(-math.log(2), rel=1e-12)
    assert [float(result.params[k]) for k in "uw"] == pytest.approx([1.0, 1.0], rel=1e-12)
    assert float(result.charge) == pytest.approx(0, abs=1e-12)
    assert result.residual < 1e-14


def network(dtype=torch.float64):
    model = mlp([64, 12, 10, 10], generator=generator()).to(dtype)
    params = {name: p.detach() for name, p in model.named_parameters()}
    data = digits()
    x, y = torch.tensor(data.x_train[:150]).to(dtype), torch.tensor(data.y_train[:150])
    layers = [Rescaling(("0.weight", "0.bias"), "2.weight"), Rescaling(("2.weight", "2.bias"), "4.weight")]
    return make_sample_loss(model, nn.CrossEntropyLoss()), model, params, layers, x, y


@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_a_deep_network_reaches_the_joint_equilibrium_of_its_layers_with_its_function_unchanged(decay):
    sample_loss, model, params, layers, x, y = network()
    before = {name: p.clone() for name, p in params.items()}
    result = equilibrium(sample_loss, params, layers, x, y, temperature=0.01, weight_decay=decay, chunk_size=64)
    call = torch.func.functional_call
    torch.testing.assert_close(call(model, result.params, (x,)), call(model, params, (x,)), rtol=1e-9, atol=1e-11)
    assert result.residual < 1e-10
    scale = 0.01 * float(noise_covariance_trace(sample_loss, result.params, x, y))
    for layer, amount, charge in zip(layers, result.amount, result.charge, strict=True):
        noise = noise_covariance_trace(sample_loss, result.params, x, y, layer)
        drift = charge_rate(noise, layer.charge(result.params), temperature=0.01, weight_decay=decay)
        start = charge_rate(
            noise_covariance_trace(sample_loss, params, x, y, layer),
            layer.charge(params),
            temperature=0.01,
            weight_decay=decay,
        )
        assert float(drift.abs().max()) < 1e-9 * scale < 1e-3 * float(start.abs().max())
        assert amount.shape == charge.shape == layer.charge(params).shape
    assert all(torch.equal(before[k], p) for k, p in params.items())
    assert result.params["4.bias"] is params["4.bias"]


def test_the_equilibrium_is_the_least_noisy_point_of_the_orbit():
    sample_loss, _, params, layers, x, y = network()
    result = equilibrium(sample_loss, params, layers, x, y, temperature=0.01, weight_decay=1e-3)

    def potential(point):
        noise = float(noise_covariance_trace(sample_loss, point, x, y))
        return 0.01 * noise + 2e-3 * sum(float(p.square().sum()) for p in point.values())

    least = potential(result.params)
    for seed in range(6):
        moved = result.params
        for layer in layers:
            amounts = 0.1 * torch.randn(len(layer.charge(params)), generator=generator(seed), dtype=torch.float64)
            moved = layer.act(moved, amounts)
        assert potential(moved) > least
    assert potential(params) > least


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=8)
def test_every_point_of_an_orbit_leads_to_the_same_equilibrium(seed):
    sample_loss, _, params, layers, x, y = network()
    moved = params
    for layer in layers:
        amounts = 0.3 * torch.randn(len(layer.charge(params)), generator=generator(seed), dtype=torch.float64)
        moved = layer.act(moved, amounts)
    ends = [
        equilibrium(sample_loss, p, layers, x[:60], y[:60], temperature=0.01, weight_decay=1e-3)
        for p in (params, moved)
    ]
    for name in params:
        torch.testing.assert_close(ends[0].params[name], ends[1].params[name], rtol=1e-7, atol=1e-9)


def test_single_precision_stays_single_and_chunks_do_not_matter():
    sample_loss, _, params, layers, x, y = network(torch.float32)
    results = [
        equilibrium(sample_loss, params, layers[0], x, y, temperature=0.01, weight_decay=1e-3, chunk_size=size)
        for size in (7, 150, 1000)
    ]
    assert all(p.dtype == torch.float32 for p in results[0].params.values())
    for other in results[1:]:
        torch.testing.assert_close(results[0].amount, other.amount, rtol=1e-5, atol=1e-6)


def test_two_whole_layers_can_be_rescaled_together():
    sample_loss, _, params, layers, x, y = network()
    whole = Rescaling(layers[0].incoming, layers[0].outgoing, per_unit=False)
    result = equilibrium(sample_loss, params, whole, x, y, temperature=0.01)
    assert result.amount.shape == ()
    noise = noise_covariance_trace(sample_loss, result.params, x, y, whole)
    assert abs(float(noise)) < 1e-10


def test_a_convolutional_network_has_an_equilibrium_per_channel():
    model = small_cnn((1, 8, 8), channels=(3, 4), generator=generator()).double()
    params = {name: p.detach() for name, p in model.named_parameters()}
    data = digits(flat=False)
    x, y = torch.tensor(data.x_train[:40]).double(), torch.tensor(data.y_train[:40])
    sample_loss = make_sample_loss(model, nn.CrossEntropyLoss())
    result = equilibrium(sample_loss, params, Rescaling(("0.weight", "0.bias"), "3.weight"), x, y, temperature=0.01)
    call = torch.func.functional_call
    torch.testing.assert_close(call(model, result.params, (x,)), call(model, params, (x,)), rtol=1e-10, atol=1e-12)
    assert result.amount.shape == (3,)
    assert result.residual < 1e-12


def test_a_dead_unit_is_left_alone_without_decay():
    sample_loss, _, params, layers, x, y = network()
    params["0.weight"][3] = 0
    params["0.bias"][3] = -1
    result = equilibrium(sample_loss, params, layers[0], x, y, temperature=0.01)
    assert float(result.amount[3]) == 0
    assert (result.amount != 0).sum() == 11


def test_the_norm_of_a_scale_invariant_weight_settles_where_the_formula_says():
    def direction_loss(params, x, y):
        w = params["w"]
        return (w @ x / w.norm() - y) ** 2

    x = torch.randn(400, 10, generator=generator(), dtype=torch.float64)
    y = x[:, 0] + torch.randn(400, generator=generator(1), dtype=torch.float64)
    params = {"w": torch.eye(10, dtype=torch.float64)[0]}
    unit = float(noise_covariance_trace(direction_loss, params, x, y))
    result = equilibrium(direction_loss, params, Scale("w"), x, y, temperature=0.02, weight_decay=0.05)
    norm4 = float(result.params["w"].square().sum()) ** 2
    assert norm4 == pytest.approx(0.02 / (2 * 0.05) * unit, rel=1e-10)
    with pytest.raises(ValueError, match=r"weight_decay must be > 0 for a one-sided symmetry .*, got 0"):
        equilibrium(direction_loss, params, Scale("w"), x, y, temperature=0.02)


def factorisation(seed=0, heads=1):
    d = 3 * heads
    shapes = {"U": (4, d), "W": (d, 5)}
    params = {
        k: torch.randn(s, generator=generator(seed + i), dtype=torch.float64) for i, (k, s) in enumerate(shapes.items())
    }
    x = torch.randn(200, 5, generator=generator(seed + 5), dtype=torch.float64)
    y = torch.randn(200, 4, generator=generator(seed + 6), dtype=torch.float64)
    return (lambda p, a, b: (p["U"] @ (p["W"] @ a) - b).square().sum()), params, x, y


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_a_factorisation_reaches_the_matrix_equilibrium(decay):
    loss, params, x, y = factorisation()
    symmetry = GL("U", "W")
    result = equilibrium(loss, params, symmetry, x, y, temperature=0.1, weight_decay=decay)
    torch.testing.assert_close(result.params["U"] @ result.params["W"], params["U"] @ params["W"], rtol=0, atol=1e-10)
    noise = noise_covariance_trace(loss, result.params, x, y, symmetry)
    drift = charge_rate(noise, symmetry.charge(result.params), temperature=0.1, weight_decay=decay)
    start = 0.1 * noise_covariance_trace(loss, params, x, y, symmetry)
    assert float(drift.abs().max()) < 1e-9 * float(start.abs().max())
    assert result.residual < 1e-10

    def potential(point):
        size = sum(float(p.square().sum()) for p in point.values())
        return 0.1 * float(noise_covariance_trace(loss, point, x, y)) + 2 * decay * size

    least = potential(result.params)
    for seed in range(10):
        matrix = 0.1 * torch.randn(3, 3, generator=generator(seed), dtype=torch.float64)
        assert potential(symmetry.act(result.params, matrix)) > least


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (2, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weight = (q @ k.mT / 3**0.5).softmax(-1)
        return (weight @ v).sum((1, 2, 3))


def test_queries_and_keys_of_attention_have_an_equilibrium_per_head():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Attention().double()
    params = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(30, 4, 6, generator=generator(), dtype=torch.float64)
    y = torch.randn(30, generator=generator(1), dtype=torch.float64)
    sample_loss = make_sample_loss(model, nn.MSELoss())
    symmetry = GL("q.weight", "k.weight", left_bias="q.bias", right_bias="k.bias", transpose_left=True, heads=2)
    result = equilibrium(sample_loss, params, symmetry, x, y, temperature=0.1, weight_decay=1e-3)
    call = torch.func.functional_call
    torch.testing.assert_close(call(model, result.params, (x,)), call(model, params, (x,)), rtol=1e-10, atol=1e-12)
    noise = noise_covariance_trace(sample_loss, result.params, x, y, symmetry)
    drift = charge_rate(noise, result.charge, temperature=0.1, weight_decay=1e-3)
    assert result.charge.shape == result.amount.shape == (2, 3, 3)
    assert float(drift.abs().max()) < 1e-10
    assert result.params["v.weight"] is params["v.weight"]


def test_swapping_the_noise_of_the_factors_moves_away_from_the_equilibrium():
    loss, params, x, y = factorisation()
    grads = per_sample_gradients(loss, params, x, y)
    centred = {k: g - g.mean(0) for k, g in grads.items()}
    left = torch.einsum("nij,nik->jk", centred["U"], centred["U"]) / 200
    right = torch.einsum("nij,nkj->ik", centred["W"], centred["W"]) / 200
    grams = params["U"].T @ params["U"], params["W"] @ params["W"].T
    P = gl_equilibrium(left, right, *grams, temperature=0.1)
    result = equilibrium(loss, params, GL("U", "W"), x, y, temperature=0.1)
    np.testing.assert_allclose(torch.matrix_exp(2 * result.amount).numpy(), P, rtol=1e-8, atol=1e-10)


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((1.0, 1.0), {"temperature": -0.1}, ValueError, r"temperature must be >= 0, got -0.1"),
        ((1.0, 1.0), {"temperature": math.nan}, ValueError, "temperature must be finite"),
        ((1.0, 1.0), {"temperature": "hot"}, TypeError, "temperature must be real numbers"),
        ((1.0, 1.0), {"temperature": 0.1, "weight_decay": -1}, ValueError, "weight_decay must be >= 0, got -1"),
        ((math.inf, 1.0), {"temperature": 0.1}, ValueError, "noise_trace must be finite"),
        ((1.0, torch.tensor(math.nan)), {"temperature": 0.1}, ValueError, "charge must be finite"),
        (("much", 1.0), {"temperature": 0.1}, TypeError, "noise_trace must be real numbers"),
        (([1.0, 2.0], [1.0, 2.0, 3.0]), {"temperature": 0.1}, ValueError, "must be of shapes that broadcast"),
    ],
)
def test_a_drift_is_refused_for(arguments, options, error, message):
    with pytest.raises(error, match=message):
        charge_rate(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1], [1], [1]), {"temperature": 0.0}, ValueError, "temperature must be > 0, got 0"),
        (([1], [1], [1]), {"temperature": math.inf}, ValueError, "temperature must be finite"),
        (([1], [1], [1]), {"temperature": None}, TypeError, "temperature must be a number, got NoneType"),
        (([1], [1], [1]), {"temperature": True}, TypeError, "temperature must be a number, got bool"),
        (([1], [1], [1]), {"weight_decay": -0.1}, ValueError, "weight_decay must be >= 0"),
        (([], [], []), {}, ValueError, r"eigenvalues must be of shape \(n,\), n >= 1, got shape \(0,\)"),
        ((1.0, [1], [1]), {}, ValueError, r"eigenvalues must be of shape \(n,\)"),
        (([1, 2], [[1, 2]], [1, 2]), {}, ValueError, r"noise must be of shape \(n,\)"),
        (([1, 2], [1], [1, 2]), {}, ValueError, r"noise must be as long as eigenvalues \(2\), got length 1"),
        (([1, 2], [1, 2], [1]), {}, ValueError, r"squared_params must be as long as eigenvalues \(2\)"),
        (([1], [-1], [1]), {}, ValueError, "noise must be >= 0, got -1"),
        (([1], [1], [-1]), {}, ValueError, "squared_params must be >= 0, got -1"),
        (([math.nan], [1], [1]), {}, ValueError, "eigenvalues must be finite"),
        (([1], [0], [1]), {}, ValueError, "noise, squared_params must be such that some term pushes"),
        (([0], [1], [1]), {"weight_decay": 0.1}, ValueError, "must be such that some term pushes"),
        ((["a"], [1], [1]), {}, TypeError, "eigenvalues must be"),
    ],
)
def test_an_amount_is_refused_for(arguments, options, error, message):
    with pytest.raises(error, match=message):
        equilibrium_amount(*arguments, **({"temperature": 0.1} | options))


EYE = np.eye(2)


@pytest.mark.parametrize(
    ("matrices", "options", "message"),
    [
        ((EYE, EYE, EYE, np.eye(3)), {}, r"gram_right must be of shape \(2, 2\) like noise_left, got shape \(3, 3\)"),
        ((np.ones((2, 3)), EYE, EYE, EYE), {}, "noise_left must be a square matrix"),
        ((np.triu(np.ones((2, 2))), EYE, EYE, EYE), {}, "noise_left must be symmetric"),
        ((EYE * math.nan, EYE, EYE, EYE), {}, "noise_left must be finite"),
        ((EYE, np.diag([1.0, 0.0]), EYE, EYE), {}, "temperature . noise_right .* must be positive definite"),
        ((np.diag([1.0, 0.0]), EYE, EYE, EYE), {}, "temperature . noise_left .* must be positive definite"),
        ((EYE, EYE, EYE, EYE), {"temperature": 0.0}, "temperature must be > 0"),
        ((EYE, EYE, EYE, EYE), {"weight_decay": -1.0}, "weight_decay must be >= 0"),
    ],
)
def test_a_matrix_equilibrium_is_refused_for(matrices, options, message):
    with pytest.raises(ValueError, match=message):
        gl_equilibrium(*matrices, **({"temperature": 0.1} | options))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"symmetry": MirrorSymmetry.flip(2, [0])}, TypeError, "symmetry must be a Rescaling, Scale or GL"),
        ({"symmetry": Permutation("u", "w")}, TypeError, "symmetry must be a Rescaling, Scale or GL"),
        ({"symmetry": Rotation("u", "w")}, TypeError, "symmetry must be a Rescaling, Scale or GL"),
        ({"symmetry": "rescaling"}, TypeError, "symmetry must be a Rescaling, Scale or GL"),
        ({"symmetry": []}, ValueError, "symmetry must be at least one symmetry, got none"),
        ({"symmetry": [PAIR, GL("u", "w")]}, TypeError, r"symmetry\[1\] must be a Rescaling or a Scale, got GL"),
        ({"symmetry": Rescaling("u", "missing")}, ValueError, "params must be a dict with the name 'missing'"),
        ({"params": [1.0]}, TypeError, "params must be a dict of tensors, got list"),
        ({"inputs": DATA[0][:2]}, ValueError, r"targets must be as long as inputs \(2\), got length 3"),
        ({"inputs": DATA[0][:1], "targets": DATA[1][:1]}, ValueError, "inputs must be at least 2 samples, got 1"),
        ({"inputs": 3}, TypeError, "inputs must be a tensor or an array, got int"),
        ({"temperature": 0.0}, ValueError, "temperature must be > 0, got 0"),
        ({"temperature": -1.0}, ValueError, "temperature must be > 0, got -1"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, got str"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be >= 0"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be >= 1, got 0"),
        ({"chunk_size": 2.0}, TypeError, "chunk_size must be an integer, got float"),
        ({"tol": 0.0}, ValueError, "tol must be > 0, got 0"),
        ({"max_iter": 0}, ValueError, "max_iter must be >= 1, got 0"),
        ({"sample_loss": None}, TypeError, "sample_loss must be a function"),
    ],
)
def test_an_equilibrium_is_refused_for(change, error, message):
    arguments = {
        "sample_loss": product_loss, "params": SCALARS, "symmetry": PAIR, "inputs": DATA[0], "targets": DATA[1],
        "temperature": 0.1,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        equilibrium(**(arguments | change))


def test_too_few_sweeps_are_an_error_and_not_a_wrong_answer():
    sample_loss, _, params, layers, x, y = network()
    with pytest.raises(ValueError, match=r"max_iter must be enough sweeps for a change below 1e-12, got 2"):
        equilibrium(sample_loss, params, layers, x, y, temperature=0.01, max_iter=2)


def test_a_rank_deficient_product_has_no_unique_equilibrium():
    loss, params, x, y = factorisation()
    params["W"][2] = 0
    params["U"][:, 2] = 0
    with pytest.raises(ValueError, match="must be positive definite"):
        equilibrium(loss, params, GL("U", "W"), x, y, temperature=0.1)
