"""Tests of probabilistic stability: known numbers, simulated tails and phases, exponents of torch models, refusals."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import nn
from torch.func import functional_call

from symlearn.lyapunov import gaussian_lyapunov_exponent, lyapunov_exponent_1d, matrix_lyapunov_exponents
from symlearn.probabilistic_stability import (
    phase_diagram,
    saddle_exponents,
    sgd_lyapunov_exponents,
    tail_exponent,
)
from symlearn.sweep import grid, sweep

NAMES = ("correct", "incorrect", "saddle", "unstable")
# A fine law of x^2 for Gaussian x; the grid misses the tail beyond 9 standard deviations, 1e-17 of the mass.
NORMAL = np.linspace(0, 9, 40_001)[1:]
NORMAL_WEIGHTS = np.exp(-(NORMAL**2) / 2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def two_points(alpha):
    """Labels 1 and -(1 - alpha), (..., 2)."""
    return np.stack(np.broadcast_arrays(1.0, np.asarray(alpha) - 1.0), -1)


# Tails


def test_least_squares_with_a_gaussian_input_has_the_known_tails():
    exponents = tail_exponent(2 * NORMAL**2, [0.2, 0.3, 0.5, 0.8], weights=NORMAL_WEIGHTS)
    np.testing.assert_allclose(exponents, [3.8056, 2.3017, 1.0908, 0.3999], atol=1e-4)


@pytest.mark.parametrize(("order", "critical"), [(1, 1.05225), (2, 2 / 3)])
def test_moments_lose_stability_at_the_known_step(order, critical):
    def excess(a):
        return float(tail_exponent(NORMAL**2, a, weights=NORMAL_WEIGHTS)) - order

    assert brentq(excess, 0.5, 1.5) == pytest.approx(critical, abs=6e-6)


@pytest.mark.parametrize(("lr", "alpha", "expected"), [(0.3, 0.15, 0.7155), (0.5, 0.3, 0.5972)])
def test_a_two_point_saddle_has_the_known_tail(lr, alpha, expected):
    product = two_points(alpha)
    tails = [float(tail_exponent(sign * 2 * product, lr)) for sign in (-1, 1)]
    assert min(tails) == pytest.approx(expected, abs=6e-5)


@given(
    h=st.lists(st.floats(-2, 5), min_size=2, max_size=5),
    lr=st.floats(0.05, 1),
    batch_size=st.integers(1, 3),
    weight_decay=st.floats(0, 0.5),
)
@settings(max_examples=80, deadline=None)
def test_the_tail_is_the_order_of_the_moment_that_neither_grows_nor_shrinks(h, lr, batch_size, weight_decay):
    options = {"batch_size": batch_size, "weight_decay": weight_decay}
    p = float(tail_exponent(h, lr, **options))
    exponent = float(lyapunov_exponent_1d(h, lr, **options).value)
    if exponent >= 0:
        assert p == 0
        return
    choices = np.array(np.meshgrid(*[h] * batch_size)).reshape(batch_size, -1).mean(0)
    factors = np.abs(1 - lr * weight_decay - lr * choices)
    if not np.isfinite(p):
        assert factors.max() <= 1 + 1e-15
        return
    assert p >= 0
    if 1e-6 < p < 1e3:
        assert np.log(np.mean(factors**p)) == pytest.approx(0, abs=1e-8)
        assert np.mean(factors ** (p * 0.99)) < 1 < np.mean(factors ** (p * 1.01))


def test_tails_have_their_limits():
    assert tail_exponent([1.0, 1.5], 0.5) == np.inf  # no factor above one
    assert tail_exponent([1.0, 1.5], 2.0) == 0  # factors 1 and 2
    assert tail_exponent([2.0], 1.0) == 0  # modulus one: the exponent is zero
    assert tail_exponent([1.0, 2.5], 1.0) == pytest.approx(np.log(2) / np.log(1.5), rel=1e-12)  # a factor of zero
    # The exponent vanishes at 1.4, where the two factors are 0.4 and 2.5.
    lr = 1.4 * (1 - np.array([1e-3, 1e-5, 1e-7]))
    tails = tail_exponent([1.0, 2.5], lr)
    logs = np.log(np.abs(1 - lr[:, None] * [1.0, 2.5]))
    np.testing.assert_allclose(tails, -2 * logs.mean(1) / logs.var(1), rtol=1e-4)
    assert tail_exponent([1.0, 2.5], [[0.6, 0.9]]).shape == (1, 2)
    assert tail_exponent([1.0, 2.5], []).shape == (0,)


def test_sampled_batches_give_nearly_the_tail_of_enumerated_ones():
    h = [0.5, 1.0, 5.0]
    exact = tail_exponent(h, 0.6, batch_size=4)
    sampled = tail_exponent(h, 0.6, batch_size=4, max_terms=1, rng=0)
    assert sampled == pytest.approx(float(exact), rel=0.03)


def test_additive_noise_gives_a_stationary_law_with_that_tail():
    lr, n_chains, rng = 0.5, 200_000, np.random.default_rng(0)
    theta = np.zeros(n_chains)
    for _ in range(150):
        theta = (1 - 2 * lr * rng.normal(size=n_chains) ** 2) * theta + lr * rng.normal(size=n_chains)
    largest = np.sort(np.abs(theta))[-1001:]
    hill = 1 / np.log(largest[1:] / largest[0]).mean()
    # Hill's estimate from 1000 values has a relative standard error of 3 %.
    assert hill == pytest.approx(1.0908, rel=0.1)


def test_an_attractive_saddle_is_left_with_the_known_power_of_the_initial_scale():
    rng, lr, alpha, n_runs = np.random.default_rng(0), 0.3, 0.15, 40_000

    def escaped(scale):
        p, q = np.full(n_runs, scale), np.full(n_runs, scale / 2)
        left = np.zeros(n_runs, dtype=bool)
        for _ in range(300):
            step = 2 * lr * ((p**2 - q**2) / 2 - np.where(rng.random(n_runs) < 0.5, 1, alpha - 1))
            p, q = p * (1 - step), q * (1 + step)
            left |= np.abs(p**2 - q**2) > 0.1  # |u w| > 0.05
            p[left] = q[left] = 0.0
        return left.mean()

    large, small = escaped(1e-2), escaped(1e-3)
    # Binomial standard errors: 0.0013 and 0.0006.
    assert large == pytest.approx(0.0734, abs=0.005)
    assert small == pytest.approx(0.0139, abs=0.0024)
    slope = np.log(large / small) / np.log(10)
    assert slope == pytest.approx(float(tail_exponent(-2 * two_points(alpha), lr)), abs=0.06)


# Saddles


def test_exponents_at_a_saddle_are_known():
    exponents = saddle_exponents([1, 1, 2], [1, -0.7, 0.3], 0.4, batch_size=2)
    assert exponents.symmetric.value == pytest.approx(0.143695, abs=6e-7)
    assert exponents.antisymmetric.value == pytest.approx(-0.448801, abs=6e-7)
    assert exponents.phase == "correct"
    for lr, alpha, plus, minus in ((0.3, 0.15, -0.1217, -0.2521), (0.8, 0.3, -0.582, 0.120)):
        pair = saddle_exponents([1, 1], two_points(alpha), lr)
        assert pair.symmetric.value == pytest.approx(plus, abs=6e-4 if lr == 0.8 else 6e-5)
        assert pair.antisymmetric.value == pytest.approx(minus, abs=6e-4 if lr == 0.8 else 6e-5)


@given(lr=st.floats(0.01, 1), alpha=st.floats(0.01, 0.99), weight_decay=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_two_points_have_their_closed_form(lr, alpha, weight_decay):
    pair = saddle_exponents([1, 1], two_points(alpha), lr, weight_decay=weight_decay)
    keep, small = 1 - lr * weight_decay, 2 * lr * (1 - alpha)
    factors = np.abs([keep + 2 * lr, keep - small, keep - 2 * lr, keep + small])
    if factors.min() > 1e-9:
        plus, minus = np.log(factors).reshape(2, 2).mean(1)
        assert pair.symmetric.value == pytest.approx(plus, rel=1e-9, abs=1e-9)
        assert pair.antisymmetric.value == pytest.approx(minus, rel=1e-9, abs=1e-9)


def test_the_saddle_attracts_beyond_the_known_step():
    alpha = np.array([0.1, 0.2, 0.3, 0.4])
    for a, critical in zip(alpha, alpha / (2 * (1 - alpha)), strict=True):
        pair = saddle_exponents([1, 1], two_points(a), critical * np.array([0.999, 1.001]))
        assert (np.sign(pair.symmetric.value) == [1, -1]).all()
        assert pair.phase.tolist() == ["correct", "saddle"]


@pytest.mark.parametrize(
    ("batch_size", "n_cells", "window"), [(1, 2878, (0.13, 0.73)), (2, 2585, (0.25, 0.80)), (4, 1852, (0.45, 1.0))]
)
def test_larger_batches_shrink_the_saddle_phase_as_known(batch_size, n_cells, window):
    lr = np.linspace(0.01, 1, 100)
    saddle = np.array(
        [saddle_exponents([1, 1], two_points(alpha), lr, batch_size=batch_size).phase == "saddle" for alpha in lr]
    )
    assert saddle.sum() == pytest.approx(n_cells, abs=2)  # a boundary can pass through a cell
    inside = lr[saddle[19]]
    assert (inside.min(), inside.max()) == pytest.approx(window, abs=0.011)


def test_the_phase_follows_the_sign_of_the_correlation_and_of_both_exponents():
    for sign in (1, -1):
        y = sign * two_points(0.3)
        pair = saddle_exponents([0.2, 1], y, [0.05, 0.5, 0.8], weights=[1, 1])
        assert (
            saddle_exponents([0.2, 1], -y, 0.8).symmetric.value
            == saddle_exponents([0.2, 1], y, 0.8).antisymmetric.value
        )
        assert pair.symmetric.value.shape == (3,)
    assert saddle_exponents([0.2, 1], [5, -0.7], [0.1, 0.5, 0.8, 0.9, 0.99]).phase.tolist() == [
        "correct",
        "saddle",
        "incorrect",
        "incorrect",
        "unstable",
    ]
    assert saddle_exponents([0.2, 1], [-5, 0.7], [0.1, 0.8]).phase.tolist() == ["correct", "incorrect"]
    assert saddle_exponents([1, 1], two_points(0.2), 0.95).phase == "unstable"
    assert saddle_exponents([1], [0.0], 0.1, weight_decay=0.1).phase == "saddle"


def test_weight_decay_kills_below_the_threshold_of_gradient_descent():
    x, y, lr = [1, 1], two_points(0.3), 0.1
    noisy = brentq(lambda k: saddle_exponents(x, y, lr, weight_decay=k).symmetric.value, 0, 1)
    deterministic = 2 * 0.15
    # To second order in lr the noise takes lr * 2 * E[C^2] off: 0.149.
    assert deterministic - noisy == pytest.approx(2 * lr * (1 + 0.49) / 2 - lr * deterministic**2 / 2, abs=0.02)


@pytest.mark.parametrize(("lr", "critical"), [(0.05, 4.124), (0.1, 3.105)])
def test_gaussian_label_noise_has_the_known_critical_strength(lr, critical):
    def symmetric(noise_std, batch_size=1):
        return gaussian_lyapunov_exponent(-2, 2 * noise_std / np.sqrt(batch_size), lr)

    assert brentq(symmetric, 1, 5) == pytest.approx(critical, abs=6e-4)
    assert brentq(lambda s: symmetric(s, 4), 2, 10) == pytest.approx(2 * critical, abs=1.2e-3)
    rng = np.random.default_rng(0)
    sample = saddle_exponents(np.ones(300_000), 1 + critical * rng.normal(size=300_000), lr).symmetric.value
    assert sample == pytest.approx(0, abs=4 * 1.0 / np.sqrt(300_000))  # the logs scatter by about 1


def test_sampled_exponents_of_both_directions_see_the_same_batches():
    x, y = np.ones(40), np.random.default_rng(0).normal(size=40)
    first = saddle_exponents(x, y, 0.2, batch_size=20, n_samples=500, rng=3)
    second = saddle_exponents(x, -y, 0.2, batch_size=20, n_samples=500, rng=3)
    assert not first.symmetric.exact
    assert first.symmetric.value == second.antisymmetric.value
    assert first.antisymmetric.value == second.symmetric.value


# Exponents of torch models


def two_layer(params, x, y):
    return (params["u"] * params["w"] * x - y).square().mean()


def vector_network(params, x, y):
    return (torch.einsum("a,b,nb->na", params["u"], params["w"], x) - y).square().sum(1).mean()


def least_squares(params, x):
    return (x @ params["w"]).square().mean() / 2


def zeros(*sizes, dtype=torch.float64):
    return {name: torch.zeros(size, dtype=dtype) for name, size in zip("uw", sizes, strict=True)}


THREE_POINTS = (torch.tensor([1.0, 1.0, 2.0]).double(), torch.tensor([1.0, -0.7, 0.3]).double())


@pytest.mark.parametrize("method", ["auto", "dense", "hvp"])
def test_a_two_layer_network_has_the_known_exponents_at_its_saddle(method):
    spectrum = sgd_lyapunov_exponents(
        two_layer, zeros((), ()), THREE_POINTS, 0.4, 2, k=2, method=method, n_chains=32, generator=seeded()
    )
    assert (np.abs(spectrum.exponents - [0.143695, -0.448801]) < 4 * spectrum.stderr).all()
    assert (spectrum.stderr < 0.01).all()
    assert spectrum.n_steps == 32 * 500


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_both_routes_see_the_same_batches_and_agree(dtype, k):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).to(dtype)
    data = torch.randn(30, 3, dtype=dtype), torch.randn(30, 1, dtype=dtype)

    def batch_loss(params, x, y):
        return nn.functional.mse_loss(functional_call(model, params, (x,)), y)

    options = {"k": k, "n_steps": 40, "burn_in": 10, "weight_decay": 0.1}
    dense, hvp = (
        sgd_lyapunov_exponents(batch_loss, model, data, 0.2, 4, method=method, generator=seeded(1), **options)
        for method in ("dense", "hvp")
    )
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(dense.exponents, hvp.exponents, atol=tolerance)
    np.testing.assert_allclose(dense.stderr, hvp.stderr, atol=tolerance)


def test_the_exponents_are_those_of_the_product_of_batch_hessians():
    x = torch.randn(50, 3, generator=seeded(5), dtype=torch.float64)
    generator = seeded(7)
    spectrum = sgd_lyapunov_exponents(
        least_squares, {"w": torch.zeros(3).double()}, x, 0.5, 2, k=3, generator=generator
    )
    replay = seeded(7)
    frames = torch.randn(16, 3, 3, generator=replay, dtype=torch.float64)
    drawn = x[torch.stack([torch.randint(50, (16, 2), generator=replay) for _ in range(550)], 1)].numpy()
    factors = np.eye(3) - 0.5 * np.einsum("ctsi,ctsj->ctij", drawn, drawn) / 2
    start = np.linalg.qr(frames.numpy())[0]
    factors[:, 0] = factors[:, 0] @ start  # the frame need not be orthonormal: only its span enters
    expected = matrix_lyapunov_exponents(factors, burn_in=50)
    np.testing.assert_allclose(spectrum.exponents, expected.exponents, rtol=1e-9)
    np.testing.assert_allclose(spectrum.stderr, expected.stderr, rtol=1e-7)
    assert torch.equal(generator.get_state(), replay.get_state())


def test_isotropic_least_squares_has_the_known_spectrum():
    x = torch.randn(200_000, 3, generator=seeded(), dtype=torch.float64)
    spectrum = sgd_lyapunov_exponents(
        least_squares, {"w": torch.zeros(3).double()}, x, 0.9, 1, k=3, n_chains=64, n_steps=600, generator=seeded(1)
    )
    assert (np.abs(spectrum.exponents - [0.1806, 0.0170, -0.1978]) < 4 * spectrum.stderr + 5e-5).all()


@pytest.mark.parametrize(("dimension", "expected"), [(1, -0.0180), (2, 0.0068), (3, 0.0272), (5, 0.0628)])
def test_pure_noise_attracts_to_the_saddle_in_one_dimension_and_repels_in_more(dimension, expected):
    x, y = torch.randn(2, 100_000, dimension, generator=seeded(2), dtype=torch.float64)
    spectrum = sgd_lyapunov_exponents(
        vector_network, zeros(dimension, dimension), (x, y), 0.1, 1,
        n_chains=64, n_steps=1000, burn_in=200, generator=seeded(3),
    )  # fmt: skip
    # A finite data set has a correlation of 0.003, which shifts the exponent by at most 2 * 0.1 * 0.003.
    assert np.abs(spectrum.exponents[0] - expected) < 4 * spectrum.stderr[0] + 6e-4 + 2e-4


def test_weight_decay_shifts_small_exponents_by_itself_times_the_learning_rate():
    x = torch.randn(100, 4, generator=seeded(), dtype=torch.float64)
    options = {"k": 2, "n_steps": 100, "generator": None}
    torch.manual_seed(0)
    plain = sgd_lyapunov_exponents(least_squares, {"w": torch.zeros(4).double()}, x, 0.01, 1, **options)
    decayed = sgd_lyapunov_exponents(
        least_squares, {"w": torch.zeros(4).double()}, x, 0.01, 1, weight_decay=0.5, **options
    )
    # (1 - lr k - lr h) = (1 - lr k)(1 - lr h / (1 - lr k)): the exponents themselves are 0.01.
    np.testing.assert_allclose(decayed.exponents - plain.exponents, np.log(0.995), rtol=0.02)
    no_data = sgd_lyapunov_exponents(
        lambda p, x: (p["w"] * 0).sum(), {"w": torch.zeros(4).double()}, x, 0.1, 1, weight_decay=2.0, **options
    )
    np.testing.assert_allclose(no_data.exponents, np.log(0.8), rtol=1e-12)


def test_a_loss_that_ignores_the_parameters_neither_attracts_nor_repels():
    x = torch.ones(3, 1)
    for method in ("dense", "hvp"):
        spectrum = sgd_lyapunov_exponents(
            lambda params, x: x.mean(), {"w": torch.zeros(2)}, x, 0.1, 1, k=2, n_steps=3, method=method
        )
        np.testing.assert_allclose(spectrum.exponents, 0, atol=1e-6)


def test_a_step_that_annihilates_has_the_exponent_minus_infinity():
    spectrum = sgd_lyapunov_exponents(
        least_squares, {"w": torch.zeros(2).double()}, torch.eye(2).double()[:1], 1.0, 1, k=2, n_steps=30
    )
    assert spectrum.exponents == pytest.approx([0, -np.inf], abs=1e-12)
    assert spectrum.stderr[1] == np.inf


def test_few_chains_are_judged_by_blocks_of_time():
    x = torch.randn(1000, 2, generator=seeded(), dtype=torch.float64)
    few, many = (
        sgd_lyapunov_exponents(
            least_squares, {"w": torch.zeros(2).double()}, x, 0.5, 1, n_chains=n, n_steps=6400 // n, generator=seeded(1)
        )
        for n in (4, 64)
    )
    assert few.stderr == pytest.approx(many.stderr, rel=0.4)
    assert few.n_steps == many.n_steps == 6400


def test_too_short_a_burn_in_is_noticed():
    # Curvatures 0 and 1: a frame turns to the flat direction within 1 / 0.1 steps.
    x = torch.eye(40).double()[:20] * np.sqrt(20)
    arguments = least_squares, {"w": torch.zeros(40).double()}, x, 0.1, 20
    with pytest.warns(UserWarning, match="exponent 0 changed by .* increase burn_in"):
        sgd_lyapunov_exponents(*arguments, n_steps=60, burn_in=0, generator=seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sgd_lyapunov_exponents(*arguments, n_steps=60, burn_in=400, generator=seeded())


class Conditional(nn.Module):
    """A model that torch cannot batch over chains: its control flow depends on values."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        if self.linear.weight.sum().item() > -1e9:
            return torch.tanh(self.linear(x))
        return x


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x[:, :, None].expand(-1, 3, 4))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(1, 3, batch_first=True)

    def forward(self, x):
        return self.layer(x[..., None])[0][:, -1]


@pytest.mark.parametrize(
    "build",
    [
        Conditional,
        Attention,
        Recurrent,
        lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten()),
        lambda: nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 1)),
        lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)).eval(),
    ],
    ids=["conditional", "attention", "recurrent", "convolution", "layer norm", "batch norm"],
)
def test_any_architecture_has_exponents_equal_to_those_of_its_explicit_hessians(build):
    torch.manual_seed(0)
    model = build().double()
    x = torch.randn(4, 3, dtype=torch.float64)
    names = [name for name, p in model.named_parameters() if "weight" in name][:1]
    params = {name: dict(model.named_parameters())[name] for name in names}

    def batch_loss(params, x):
        return functional_call(model, params, (x,)).square().mean()

    def flat_loss(theta, x):
        return batch_loss({names[0]: theta.view(params[names[0]].shape)}, x)

    theta = params[names[0]].detach().flatten()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hessians = torch.stack(
            [torch.autograd.functional.hessian(lambda t, i=i: flat_loss(t, x[[i]]), theta) for i in range(4)]
        )
    for method in ("dense", "hvp"):
        spectrum = sgd_lyapunov_exponents(
            batch_loss, params, x, 0.3, 1, n_steps=4, n_chains=2, burn_in=0, method=method, generator=seeded(3)
        )
        replay = seeded(3)
        frames = torch.randn(2, theta.numel(), 1, generator=replay, dtype=torch.float64)
        logs = []
        for _ in range(4):
            frames = frames / frames.norm(dim=1, keepdim=True) if logs else frames
            frames = frames - 0.3 * hessians[torch.randint(4, (2, 1), generator=replay)[:, 0]] @ frames
            logs.append(frames.norm(dim=1).log())
        assert spectrum.exponents[0] == pytest.approx(float(torch.stack(logs).mean()), rel=1e-8, abs=1e-10)


def test_a_loss_that_is_no_mean_takes_the_matrix_free_route():
    x = torch.randn(20, 3, generator=seeded(), dtype=torch.float64)

    def contrast(params, x):  # samples of a batch interact
        return (x @ params["w"]).mean().square() - 0.5 * (x @ params["w"]).var(unbiased=False)

    options = {"n_steps": 20, "k": 2}
    point = {"w": torch.ones(3).double()}
    automatic, hvp = (
        sgd_lyapunov_exponents(contrast, point, x, 0.1, 4, method=method, generator=seeded(1), **options)
        for method in ("auto", "hvp")
    )
    np.testing.assert_allclose(automatic.exponents, hvp.exponents, rtol=1e-12)
    with pytest.raises(ValueError, match="batch_loss must be the mean over the batch for method 'dense', got another"):
        sgd_lyapunov_exponents(contrast, point, x, 0.1, 4, method="dense", **options)


def test_only_the_named_parameters_move():
    x, y = THREE_POINTS
    alone = sgd_lyapunov_exponents(
        lambda params, x, y: (params["u"] * 2.0 * x - y).square().mean(),
        {"u": torch.zeros((), dtype=torch.float64)}, (x, y), 0.02, 1, generator=seeded(),
    )  # fmt: skip
    exact = lyapunov_exponent_1d(2 * (2 * x.numpy()) ** 2, 0.02).value  # curvature 2 (w x)^2
    assert np.abs(alone.exponents[0] - exact) < 4 * alone.stderr[0]


def test_the_model_the_data_and_the_global_generator_are_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    x, y = torch.randn(20, 3), torch.randn(20, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copies = x.clone(), y.clone()
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002

    def batch_loss(params, x, y):
        return (functional_call(model, params, (x,)) - y).square().mean()

    with torch.no_grad():
        first = sgd_lyapunov_exponents(batch_loss, model, (x, y), 0.1, 4, n_steps=4, burn_in=2, n_chains=2)
    second = sgd_lyapunov_exponents(batch_loss, model, (x, y), 0.1, 4, n_steps=4, burn_in=2, n_chains=2)
    np.testing.assert_array_equal(first.exponents, second.exponents)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model[2].weight.grad is None
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_a_generator_moves_on_and_decides_alone():
    x = torch.randn(20, 3, generator=seeded(), dtype=torch.float64)
    generator = seeded(5)
    first, second, again = (
        sgd_lyapunov_exponents(least_squares, {"w": torch.zeros(3).double()}, x, 0.5, 1, n_steps=50, generator=g)
        for g in (generator, generator, seeded(5))
    )
    assert first.exponents != second.exponents
    assert first.exponents == again.exponents


# Phase diagrams


@pytest.mark.parametrize(
    ("lr", "alpha", "expected"),
    [
        (0.8, 0.3, (0, 0.975, 0.011, 0.015)),
        (0.5, 0.2, (0, 0, 0.9985, 0.0015)),
        (0.1, 0.6, (0.66, 0, 0, 0.34)),
        (0.95, 0.2, (0, 0, 0, 1)),
    ],
)
def test_two_points_with_a_small_input_end_in_the_known_phases(lr, alpha, expected):
    diagram = phase_diagram([0.2, 1], [5, alpha - 1], lr, n_runs=4000, init_std=1e-3, generator=seeded())
    stderr = np.sqrt(np.array(expected) * (1 - np.array(expected)) / 4000)
    assert (np.abs(diagram.fractions - expected) < 4.5 * stderr + 0.003).all()
    assert diagram.names == NAMES
    assert NAMES[diagram.labels] == NAMES[int(np.argmax(expected))]


def test_the_diagram_of_two_points_follows_the_exponents_below_a_step_of_06():
    lr, alpha = np.linspace(0.03, 0.6, 20)[:, None], np.linspace(0.03, 1, 20)
    diagram = phase_diagram([1, 1], two_points(alpha), lr, n_runs=128, init_std=1e-3, generator=seeded())
    assert diagram.fractions.shape == (20, 20, 4)
    assert diagram.labels.shape == diagram.lr.shape == (20, 20)
    np.testing.assert_allclose(diagram.fractions.sum(-1), 1, rtol=1e-12)
    np.testing.assert_array_equal(diagram.labels, diagram.fractions.argmax(-1))
    exponents = [saddle_exponents([1, 1], two_points(a), lr[:, 0]) for a in alpha]
    largest = np.stack([np.maximum(e.symmetric.value, e.antisymmetric.value) for e in exponents], 1)
    phase = np.stack([e.phase for e in exponents], 1)
    same = np.array(NAMES)[diagram.labels] == phase
    assert same.mean() > 0.96
    assert same[np.abs(largest) > 0.01].mean() > 0.98


@pytest.mark.parametrize(
    ("noise_std", "expected"),
    [(2, (0.848, 0, 0.004, 0.149)), (3.3, (0.011, 0, 0.787, 0.202)), (4, (0, 0, 0.883, 0.117))],
)
def test_gaussian_label_noise_drives_to_the_saddle_as_known(noise_std, expected):
    diagram = phase_diagram(
        [1], [1], 0.1, noise_std=noise_std, n_runs=2000, n_steps=4000, init_std=1e-3, generator=seeded()
    )
    # Those runs started at one point, at the same distance; these start at random.
    np.testing.assert_allclose(diagram.fractions, expected, atol=0.045)


def simulate(x, y, lr, weights, noise_std, batch_size, weight_decay, n_runs, n_steps, init_std, width, rng):
    """Plain SGD on u and w of one cell."""
    u, w = init_std * rng.normal(size=(2, n_runs, width))
    for _ in range(n_steps):
        drawn = rng.choice(len(x), (n_runs, batch_size), p=np.array(weights) / np.sum(weights))
        inputs = np.array(x)[drawn]
        labels = np.array(y)[drawn] + noise_std * rng.normal(size=drawn.shape)
        error = (u * w).sum(1)[:, None] * inputs - labels
        slope = 2 * (error * inputs).mean(1)[:, None]
        u, w = u - lr * (slope * w + weight_decay * u), w - lr * (slope * u + weight_decay * w)
    size, product = (u**2 + w**2).sum(1), (u * w).sum(1)
    right = (product >= 0) == (np.sum(np.array(weights) * x * y) >= 0)
    unstable = ~(size <= 1e12)
    saddle = ~unstable & (size < 1e-6)
    alive = ~unstable & ~saddle
    return np.array([(alive & right).mean(), (alive & ~right).mean(), saddle.mean(), unstable.mean()])


@pytest.mark.parametrize(
    "cell",
    [
        {"x": [1.0, 0.0], "y": [1.0, 3.0], "lr": 0.3, "weights": [1, 2], "batch_size": 3, "noise_std": 3.0},
        {
            "x": np.linspace(-1, 2, 10),
            "y": np.linspace(1, -2, 10),
            "lr": 0.12,
            "weights": np.arange(10),
            "batch_size": 2,
        },
        {"x": [0.2, 1.0], "y": [5.0, -0.7], "lr": 0.8, "weights": [0.5, 0.5]},
        {"x": [1.0, 1.0], "y": [1.0, -0.8], "lr": 0.12, "weights": [0.3, 0.7], "width": 5},
        {"x": [1.0, -0.5, 2.0], "y": [0.4, 1.5, -0.7], "lr": 0.15, "weights": [1, 2, 3], "batch_size": 3},
        {"x": [1.0, -0.5, 2.0], "y": [0.4, 1.5, -0.1], "lr": 0.2, "weights": [1, 2, 3], "batch_size": 12},
        {"x": [1.0, 0.7], "y": [1.0, -0.9], "lr": 0.25, "weights": [2, 1], "noise_std": 1.5, "batch_size": 2},
        {"x": [1.0, 1.0], "y": [1.0, -0.5], "lr": 0.05, "weights": [1, 1], "weight_decay": 0.42, "init_std": 0.003},
        {"x": [1.0, 2.0], "y": [3.0, -1.4], "lr": 0.11, "weights": [1, 1], "batch_size": 300, "noise_std": 2.0},
    ],
    ids=["zero input", "many points", "incorrect", "width", "batch", "large batch", "noise", "decay", "huge batch"],
)
def test_outcomes_are_those_of_plain_sgd_on_the_network(cell):
    options = {"noise_std": 0.0, "batch_size": 1, "weight_decay": 0.0, "init_std": 0.01, "width": 1, "n_steps": 150}
    options |= cell
    n_runs = 500 if options["batch_size"] > 50 else 4000
    with np.errstate(all="ignore"):
        expected = simulate(**options, n_runs=n_runs, rng=np.random.default_rng(0))
    found = phase_diagram(**options, n_runs=20_000, generator=seeded()).fractions
    by_cell = phase_diagram(
        **(options | {"weights": [options["weights"], np.ones(len(options["x"]))]}), n_runs=20_000, generator=seeded(1)
    ).fractions[0]
    for fractions in (found, by_cell):
        # Five standard errors of both; the largest fraction must not be everything, or nothing would be compared.
        stderr = np.sqrt(np.maximum(fractions * (1 - fractions), 1 / n_runs) * (1 / n_runs + 1 / 20_000))
        assert (np.abs(fractions - expected) < 5 * stderr).all(), (fractions, expected)


def test_width_enters_only_through_the_initial_norms():
    # The norm of u + w of 100 units of standard deviation s/10 is s, up to 7 %; both start well below the minimum.
    cells = {"x": [1.0, 1.0], "y": two_points([0.1, 0.3, 0.6]), "lr": 0.15, "n_runs": 4000, "n_steps": 400}
    wide = phase_diagram(**cells, width=100, init_std=0.001, generator=seeded())
    wider = phase_diagram(**cells, width=10_000, init_std=0.0001, generator=seeded(1))
    assert (np.abs(wide.fractions - wider.fractions) < 5 * np.sqrt(2 * 0.25 / 4000)).all()
    assert (wide.labels == wider.labels).all()


MIXED = {
    "plain": {},
    "batches": {"batch_size": 3},
    "large batches": {"batch_size": 40, "noise_std": 10.0},
    "huge batches": {"batch_size": 300, "noise_std": 30.0},
    "different inputs": {"x": [0.2, 1.0], "y": np.array([5, 0]) - [0, 1] * (1 - np.linspace(0.1, 0.9, 7))[:, None]},
    "label noise": {"noise_std": np.linspace(0, 2, 7)},
    "weight decay": {"weight_decay": np.linspace(0, 0.5, 7)},
    "all weights": {"weights": np.linspace(1, 2, 14).reshape(7, 2), "batch_size": 2},
    "three points": {"x": [1.0, 0.5, -2], "y": np.linspace(-1, 1, 21).reshape(7, 3), "batch_size": 5, "noise_std": 0.1},
    "many points": {
        "x": np.where(np.arange(7)[:, None] < 3, 1, np.linspace(0.3, 1.2, 10)),
        "y": np.linspace(-2.5, 3, 10),
        "batch_size": 3,
    },
    "double": {"dtype": torch.float64, "x": [1.0, 0.7], "batch_size": 3},
}


@pytest.mark.parametrize("name", MIXED)
def test_blocks_change_nothing(name):
    options = {"x": [1.0, 1.0], "y": two_points(np.linspace(0.1, 0.9, 7)), "n_runs": 100, "n_steps": 120, **MIXED[name]}
    lr = np.linspace(0.05, 0.9, 9)[:, None]
    whole = phase_diagram(lr=lr, **options, generator=seeded())
    assert len(np.unique(whole.labels)) > 1
    for chunk_elements in (1, 500, 1111, 10**9):
        parts = phase_diagram(lr=lr, **options, chunk_elements=chunk_elements, generator=seeded())
        np.testing.assert_array_equal(parts.fractions, whole.fractions)


def test_many_runs_are_cut_into_blocks_of_their_own_streams():
    options = {"x": [1.0, 1.0], "y": two_points(0.3), "n_steps": 60, "init_std": 0.1}
    both, first = (phase_diagram(lr=[0.3, 0.4], **options, n_runs=n, generator=seeded()) for n in (2 * 16_384, 16_384))
    second = 2 * both.fractions - first.fractions
    assert (second >= 0).all()
    assert (second != first.fractions).any()
    np.testing.assert_allclose(second, first.fractions, atol=5 * np.sqrt(0.5 / 16_384))
    one_by_one = phase_diagram(lr=[0.3, 0.4], **options, n_runs=2 * 16_384, chunk_elements=1, generator=seeded())
    np.testing.assert_array_equal(one_by_one.fractions, both.fractions)


def test_both_precisions_see_the_same_random_numbers():
    lr, alpha = np.linspace(0.05, 0.6, 8)[:, None], np.linspace(0.05, 0.95, 8)
    single, double = (
        phase_diagram([1, 1], two_points(alpha), lr, n_runs=200, n_steps=1000, dtype=dtype, generator=seeded())
        for dtype in (torch.float32, torch.float64)
    )
    # Not within rounding, since the dynamics is chaotic; but most runs agree, far beyond the scatter of 0.035.
    assert np.abs(single.fractions - double.fractions).mean() < 0.004
    assert (single.labels == double.labels).mean() > 0.96


def test_the_grid_is_what_the_arguments_broadcast_to():
    diagram = phase_diagram(
        np.ones(2), two_points(np.full((1, 3, 1), 0.2)), np.full(4, 0.1), noise_std=np.zeros((2, 1, 1)),
        weights=np.ones((3, 1, 2)), weight_decay=0.1, n_runs=10, n_steps=5,
    )  # fmt: skip
    assert diagram.lr.shape == diagram.labels.shape == (2, 3, 4)
    assert diagram.fractions.shape == (2, 3, 4, 4)
    assert phase_diagram([1], [1], 0.1, n_runs=3, n_steps=2).labels.shape == ()
    assert phase_diagram([1], [1], [], n_runs=3, n_steps=2).fractions.shape == (0, 4)


def test_the_scale_of_weights_and_repeated_points_do_not_matter():
    options = {"lr": [0.1, 0.3], "n_runs": 5000, "n_steps": 200}
    once = phase_diagram([1, 1], [1, -0.8], **options, weights=[2, 4], generator=seeded())
    scaled = phase_diagram([1, 1], [1, -0.8], **options, weights=[1e-300, 2e-300], generator=seeded())
    np.testing.assert_array_equal(once.fractions, scaled.fractions)
    repeated = phase_diagram([1, 1, 1], [1, -0.8, -0.8], **options, generator=seeded(1))
    np.testing.assert_allclose(repeated.fractions, once.fractions, atol=5 * np.sqrt(2 * 0.25 / 5000))


def test_a_point_of_no_weight_is_never_drawn():
    options = {"lr": [0.1, 0.3], "n_runs": 300, "n_steps": 200}
    for weights in ([0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]):
        y, x = np.array([1.0, -0.8, -0.8]), np.ones(3)
        y[np.array(weights) > 0] = [1.0, -0.8]
        y[np.array(weights) == 0] = 1e6  # one draw would explode
        for size in (1, 20):
            diagram = phase_diagram(x, y, **options, weights=weights, batch_size=size, generator=seeded())
            assert diagram.fractions[0, 3] < 0.5
        by_cell = phase_diagram(x, y, **options, weights=np.array([weights, weights]) * [[1], [3]])
        assert by_cell.fractions[0, 3] < 0.5


def test_a_stable_minimum_is_found_and_a_large_step_diverges():
    # Noise-free x = y = 1: the minimum u w = 1 is stable below lr = 1/2; the map is unbounded above 1.
    diagram = phase_diagram([1], [1], [0.1, 0.4, 1.1], n_runs=500, n_steps=1500, init_std=1e-3, generator=seeded())
    np.testing.assert_array_equal(diagram.fractions[:, [0, 3]], [[1, 0], [1, 0], [0, 1]])


def test_the_sign_of_the_correlation_decides_what_is_correct():
    options = {"lr": 0.8, "n_runs": 500, "n_steps": 1000, "init_std": 1e-3}
    plus = phase_diagram([0.2, 1], [5, -0.7], **options, generator=seeded())
    minus = phase_diagram([0.2, 1], [-5, 0.7], **options, generator=seeded())
    assert plus.fractions[1] > 0.9
    assert minus.fractions[1] > 0.9


def test_the_saddle_is_as_wide_as_its_tolerance():
    options = {"x": [1.0], "y": [0.0], "lr": 1e-9, "n_steps": 1, "n_runs": 20_000, "init_std": 1.0}
    # p^2 + q^2 is exponential with mean 2: below t^2 with probability 1 - exp(-t^2 / 2).
    for tolerance in (0.5, 1.0, 2.0):
        fraction = phase_diagram(**options, saddle_tol=tolerance, generator=seeded()).fractions[2]
        assert fraction == pytest.approx(1 - np.exp(-(tolerance**2) / 2), abs=4.5 * np.sqrt(0.25 / 20_000))
    assert phase_diagram(**options, width=50, saddle_tol=8, generator=seeded()).fractions[2] < 0.01


def test_the_diagram_leaves_threads_subnormals_and_generators_as_they_were():
    state, n_threads = torch.get_rng_state(), torch.get_num_threads()
    small = torch.tensor(1e-38)
    torch.set_num_threads(2)
    try:
        for flushed in (True, False):
            torch.set_flush_denormal(flushed)
            first = phase_diagram([1, 1], two_points(0.3), 0.3, n_runs=50, n_steps=20)
            again = phase_diagram([1, 1], two_points(0.3), 0.3, n_runs=50, n_steps=20)
            with pytest.raises(ValueError, match="lr must be such that a step stays within the range of torch.float32"):
                phase_diagram([1e20, 1], two_points(0.3), 0.3)
            assert bool(small.mul(0.1) == 0) is flushed
            assert torch.get_num_threads() == 2
            np.testing.assert_array_equal(first.fractions, again.fractions)
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(n_threads)
    assert torch.equal(torch.get_rng_state(), state)


def test_diagrams_follow_their_generator_and_it_moves_on():
    options = {"x": [1, 1], "y": two_points(0.3), "lr": [0.2, 0.3], "n_runs": 300, "n_steps": 100}
    generator = seeded(1)
    first, second = (phase_diagram(**options, generator=generator).fractions for _ in range(2))
    assert (first != second).any()
    np.testing.assert_array_equal(phase_diagram(**options, generator=seeded(1)).fractions, first)
    torch.manual_seed(1)
    np.testing.assert_array_equal(phase_diagram(**options).fractions, first)


def diagram_row(alpha, n_runs):
    """One row of a diagram, for a sweep."""
    lr = np.linspace(0.05, 0.9, 12)
    return phase_diagram([1, 1], two_points(alpha), lr, n_runs=n_runs, n_steps=200, generator=seeded()).fractions


def test_a_sweep_over_rows_gives_the_whole_diagram(tmp_path):
    alpha, lr = np.linspace(0.1, 0.9, 5), np.linspace(0.05, 0.9, 12)
    points = grid(alpha=alpha, n_runs=[100])
    rows = sweep(diagram_row, points, cache_dir=tmp_path).values["value"][:, 0]
    whole = phase_diagram([1, 1], two_points(alpha[:, None]), lr, n_runs=100, n_steps=200, generator=seeded())
    np.testing.assert_array_equal(rows, whole.fractions)
    assert sweep(diagram_row, points, cache_dir=tmp_path).n_cached == 5


# Refusals

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"h": []}, r"h must be one-dimensional and not empty, got shape \(0,\)"),
        ({"h": [1.0, NAN]}, "h must be finite, got nan at index 1"),
        ({"lr": 0.0}, "lr must be > 0, got 0"),
        ({"lr": INF}, "lr must be finite, got inf"),
        ({"weights": [1.0, -1.0]}, "weights must be >= 0, got -1 at index 1"),
        ({"weights": [0.0, 0.0]}, "weights must be of positive sum, got 0"),
        ({"weights": [1.0]}, r"weights must be of shape \(2,\), got shape \(1,\)"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"weight_decay": -1}, "weight_decay must be >= 0, got -1"),
        ({"max_terms": 0}, "max_terms must be >= 1, got 0"),
        ({"n_samples": 0}, "n_samples must be >= 2, got 0"),
    ],
)
def test_bad_curvatures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tail_exponent(**{"h": [1.0, 2.5], "lr": 0.9, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": []}, ValueError, r"x must be one-dimensional and not empty, got shape \(0,\)"),
        ({"y": [1.0]}, ValueError, r"y must be as long as x \(2\), got length 1"),
        ({"y": [1.0, INF]}, ValueError, "y must be finite, got inf at index 1"),
        ({"x": [1e200, 1], "y": [1e200, 1]}, ValueError, r"x must be such that x \* y is finite, got 1e\+200"),
        ({"lr": -0.1}, ValueError, "lr must be > 0, got -0.1"),
        ({"weights": [1, 2, 3]}, ValueError, r"weights must be of shape \(2,\), got shape \(3,\)"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be an integer, got float"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be >= 0, got -0.1"),
        ({"rng": "seed"}, TypeError, "rng must be an int, a numpy Generator or None, got str"),
        ({"x": "ones"}, TypeError, "x must be real numbers, got str"),
    ],
)
def test_bad_data_of_a_saddle_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        saddle_exponents(**{"x": [1.0, 1.0], "y": [1.0, -0.8], "lr": 0.3, **arguments})


def noisy_loss(params, x, y):
    return two_layer(params, x, y) * torch.rand(())


def rough_loss(params, x, y):
    return two_layer(params, x, y) + torch.sqrt(params["u"].abs())


class OnceDifferentiable(torch.autograd.Function):
    """The identity, with a gradient that has no derivative."""

    @staticmethod
    def forward(ctx, u):
        return u.clone()

    @staticmethod
    def backward(ctx, grad):
        return Underivable.apply(grad)


class Underivable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad):
        return grad.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no second derivative")


def once_differentiable_loss(params, x, y):
    return (OnceDifferentiable.apply(params["u"]) + x.mean()).square()


HALF = {"u": torch.zeros((), dtype=torch.float16), "w": torch.zeros((), dtype=torch.float16)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0}, "lr must be > 0, got 0"),
        ({"lr": NAN}, "lr must be finite, got nan"),
        ({"lr": [0.1, 0.2]}, r"lr must be a single number, got shape \(2,\)"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"k": 0}, "k must be between 1 and 2, got 0"),
        ({"k": 3}, "k must be between 1 and 2, got 3"),
        ({"n_steps": 0}, "n_steps must be >= 1, got 0"),
        ({"n_chains": 0}, "n_chains must be >= 1, got 0"),
        ({"burn_in": -1}, "burn_in must be >= 0, got -1"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0, got -0.1"),
        ({"method": "qr"}, "method must be one of 'auto', 'dense', 'hvp', got 'qr'"),
        ({"data": (torch.ones(3), torch.ones(2))}, r"data must be tensors of one length \(3\), got length 2"),
        ({"data": (torch.ones(0), torch.ones(0))}, r"data must be tensors of at least one sample, got shape \(0,\)"),
        ({"data": torch.tensor(1.0)}, r"data must be tensors of at least one sample, got shape \(\)"),
        ({"data": ()}, "data must be a tensor or a tuple of tensors, got an empty one"),
        ({"data": torch.ones(3, device="meta")}, r"data must be on the device of params \(cpu\), got meta"),
        ({"params": {}}, "params must be tensors with at least one number, got none"),
        ({"params": nn.ReLU()}, "params must be tensors with at least one number, got none"),
        ({"params": HALF}, r"params\['u'\] must be of dtype float32 or float64, got torch.float16"),
        ({"params": {"u": torch.tensor(1)}}, r"params\['u'\] must be of dtype float32 or float64, got torch.int64"),
        ({"params": {"u": torch.tensor(NAN)}}, r"params\['u'\] must be finite, got inf or nan"),
        (
            {"params": {"u": torch.zeros(()), "w": torch.zeros(()).double()}},
            "params must be tensors of one dtype on one",
        ),
        ({"params": {"u": torch.zeros(())}}, "batch_loss must be computable on a batch of data, got KeyError: 'w'"),
        ({"data": THREE_POINTS[0]}, "batch_loss must be computable on a batch of data, got TypeError"),
        (
            {"batch_loss": lambda p, x, y: x * p["u"]},
            r"batch_loss must be a function that returns one real number, got shape",
        ),
        ({"batch_loss": lambda p, x, y: p["u"] / 0 * 0}, "batch_loss must be finite at params, got nan"),
        ({"batch_loss": noisy_loss}, "batch_loss must be deterministic, got .* and "),
        ({"batch_loss": rough_loss}, "batch_loss must be of finite second derivatives at params, got inf or nan"),
        ({"batch_loss": once_differentiable_loss}, "batch_loss must be twice differentiable in params, got "),
        (
            {"batch_loss": lambda p, x, y: (p["u"] * x - y).square().sum(), "method": "dense"},
            "batch_loss must be the mean over the batch",
        ),
    ],
)
def test_bad_arguments_of_the_exponents_of_a_model_are_refused(arguments, message):
    defaults = {"batch_loss": two_layer, "params": zeros((), ()), "data": THREE_POINTS, "lr": 0.1, "batch_size": 1}
    with pytest.raises(ValueError, match=message):
        sgd_lyapunov_exponents(**defaults | {"n_steps": 3, "burn_in": 0, "n_chains": 2} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_loss": None}, "batch_loss must be callable, got NoneType"),
        ({"batch_loss": lambda p, x, y: 1.0}, "batch_loss must be a function that returns a tensor, got float"),
        ({"params": [torch.zeros(2)]}, "params must be a dict of tensors or a torch.nn.Module, got list"),
        ({"params": {"u": 1.0}}, r"params\['u'\] must be a tensor, got float"),
        ({"data": np.ones(3)}, "data must be a tensor or a tuple of tensors, got ndarray"),
        ({"data": (torch.ones(3), [1, 2, 3])}, "data must be a tensor or a tuple of tensors, got list"),
        ({"lr": "0.1"}, "lr must be real numbers, got str"),
        ({"batch_size": 1.0}, "batch_size must be an integer, got float"),
        ({"k": True}, "k must be an integer, got bool"),
        ({"n_steps": 1e3}, "n_steps must be an integer, got float"),
        ({"n_chains": None}, "n_chains must be an integer, got NoneType"),
        ({"burn_in": "50"}, "burn_in must be an integer, got str"),
        ({"method": None}, "method must be one of 'auto', 'dense', 'hvp', got NoneType"),
        ({"generator": 0}, "generator must be a torch.Generator or None, got int"),
    ],
)
def test_arguments_of_the_exponents_of_a_model_of_a_wrong_type_are_refused(arguments, message):
    defaults = {"batch_loss": two_layer, "params": zeros((), ()), "data": THREE_POINTS, "lr": 0.1, "batch_size": 1}
    with pytest.raises(TypeError, match=message):
        sgd_lyapunov_exponents(**defaults | arguments)


def test_too_many_parameters_are_refused_for_dense_hessians_before_any_is_computed():
    point = {"w": torch.zeros(20_000)}
    with pytest.raises(
        ValueError, match="method must be 'hvp' or 'auto' for so many parameters and samples, got 'dense'"
    ):
        sgd_lyapunov_exponents(least_squares, point, torch.ones(3, 20_000), 0.1, 1, method="dense")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0}, "lr must be > 0, got 0"),
        ({"lr": [0.1, NAN]}, "lr must be finite, got nan at index 1"),
        ({"x": [1e200, 1], "y": [1e200, -1]}, "lr must be such that a step stays within the range of torch.float32"),
        ({"lr": 1e300}, r"lr must be such that a step stays within the range of torch.float32, got 1e\+300"),
        ({"x": 1.0}, r"x must be of shape G \+ \(K,\) with at least one data point, got shape \(\)"),
        ({"y": np.ones((3, 0))}, r"y must be of shape G \+ \(K,\) with at least one data point, got shape \(3, 0\)"),
        ({"x": [1, INF]}, "x must be finite, got inf at index 1"),
        ({"y": [NAN, 1]}, "y must be finite, got nan at index 0"),
        ({"y": [1, 2, 3]}, r"x must be of a shape that broadcasts against the others, got shapes x \(2,\), y \(3,\)"),
        ({"lr": [0.1, 0.2], "noise_std": [1, 2, 3]}, r"x must be of a shape that broadcasts .* noise_std \(3,\)"),
        ({"weights": [1, -1]}, "weights must be >= 0, got -1 at index 1"),
        ({"weights": [0, 0]}, "weights must be of positive sum, got 0"),
        ({"weights": [[1, 1], [0, 0]]}, "weights must be of positive sum, got 0"),
        ({"weights": [1, 1, 1]}, "x must be of a shape that broadcasts against the others"),
        ({"weights": 1.0}, r"weights must be of shape G \+ \(K,\) with at least one data point, got shape \(\)"),
        ({"noise_std": -1}, "noise_std must be >= 0, got -1"),
        ({"noise_std": INF}, "noise_std must be finite, got inf"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0, got -0.1"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        (
            {"batch_size": 1001, "weights": [[1, 1], [1, 2]]},
            "batch_size must be <= 1000 where weights differ between cells",
        ),
        ({"n_runs": 0}, "n_runs must be >= 1, got 0"),
        ({"n_steps": 0}, "n_steps must be >= 1, got 0"),
        ({"width": 0}, "width must be >= 1, got 0"),
        ({"chunk_elements": 0}, "chunk_elements must be >= 1, got 0"),
        ({"init_std": 0}, "init_std must be > 0, got 0"),
        ({"init_std": [0.1, 0.2]}, r"init_std must be a single number, got shape \(2,\)"),
        ({"saddle_tol": -1e-3}, "saddle_tol must be > 0, got -0.001"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64, got torch.float16"),
        ({"device": "abacus"}, "device must be a device of this machine, got 'abacus'"),
        ({"device": "meta"}, "device must be a device of this machine, got 'meta'"),
        ({"device": "cuda:99"}, "device must be a device of this machine, got 'cuda:99'"),
    ],
)
def test_bad_cells_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        phase_diagram(**{"x": [1.0, 1.0], "y": [1.0, -0.8], "lr": 0.1, "n_steps": 2, "n_runs": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": "ones"}, "x must be real numbers, got str"),
        ({"y": [1j, 1]}, "y must be real numbers, got list"),
        ({"lr": None}, "lr must be real numbers, got NoneType"),
        ({"weights": {"a": 1}}, "weights must be real numbers, got dict"),
        ({"noise_std": "loud"}, "noise_std must be real numbers, got str"),
        ({"batch_size": 1.0}, "batch_size must be an integer, got float"),
        ({"n_runs": 1e3}, "n_runs must be an integer, got float"),
        ({"n_steps": True}, "n_steps must be an integer, got bool"),
        ({"width": "wide"}, "width must be an integer, got str"),
        ({"chunk_elements": 1e6}, "chunk_elements must be an integer, got float"),
        ({"dtype": "float32"}, "dtype must be torch.float32 or torch.float64, got str"),
        ({"device": 0}, "device must be a device or its name, got int"),
        ({"generator": np.random.default_rng(0)}, "generator must be a torch.Generator or None, got Generator"),
    ],
)
def test_cells_of_a_wrong_type_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        phase_diagram(**{"x": [1.0, 1.0], "y": [1.0, -0.8], "lr": 0.1, "n_steps": 2, "n_runs": 2, **arguments})
