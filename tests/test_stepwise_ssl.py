"""Tests of stepwise self-supervised learning: the closed-form flow, the kernel transformer, and the three losses."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.linalg import sqrtm
from sklearn.base import clone
from sklearn.decomposition import KernelPCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from symlearn.stepwise_ssl import (
    KernelBarlowTwins,
    LinearBarlowTwins,
    barlow_twins_loss,
    cross_correlation,
    detect_steps,
    embedding_spectrum,
    nt_xent_loss,
    vicreg_loss,
)
from symlearn.tangent_kernel import empirical_ntk

GAMMA, INIT = [1.0, 0.6, 0.3], [1e-2, 2e-2, 5e-3]
SPECTRUM = np.array([1.0, 0.6, 0.3, 0.1, 0.05, -0.2])
FIRST = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
SECOND = np.array([[1.0, 1.0], [0.0, 1.0], [2.0, 1.0]])
Z1 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
Z2 = torch.tensor([[0.5, 0.5], [0.0, 2.0], [1.0, 1.0], [-2.0, 0.0]], dtype=torch.float64)
LOSSES = [barlow_twins_loss, nt_xent_loss, vicreg_loss]


def orthogonal(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def random_views(n=20, p=4, noise=0.4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p))
    return x + noise * rng.normal(size=(n, p)), x + noise * rng.normal(size=(n, p))


def embeddings(n=12, d=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z1 = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return z1.to(dtype), (z1 + 0.5 * torch.randn(n, d, generator=generator, dtype=torch.float64)).to(dtype)


def flow(cross_corr, weights, times):
    """Gradient flow of ||W Gamma W^T - I||^2 by a general integrator."""
    shape = weights.shape

    def velocity(_, flat):
        w = flat.reshape(shape)
        return (4 * (np.eye(shape[0]) - w @ cross_corr @ w.T) @ w @ cross_corr).ravel()

    run = solve_ivp(velocity, (0, times[-1]), weights.ravel(), "DOP853", t_eval=times, rtol=1e-11, atol=1e-14)
    return run.y.T.reshape(len(times), *shape)


# --- the closed form ---


def test_the_step_times_are_the_known_ones():
    times = LinearBarlowTwins(GAMMA, 3, INIT).step_times()
    np.testing.assert_allclose(times, [1.15128005, 1.73638158, 4.91691668], atol=6e-9)


def test_the_trajectory_is_the_known_one():
    run = LinearBarlowTwins(GAMMA, 3, INIT).trajectory([0, 1, 2, 5, 10])
    np.testing.assert_allclose(run.singular_values[1], [0.47922701, 0.21734288, 0.01659996], atol=6e-9)
    np.testing.assert_allclose(run.singular_values[2], [0.99943785, 1.14013805, 0.05509099], atol=6e-9)
    np.testing.assert_allclose(run.eigenvalues[2], [0.998876026, 0.779948863, 9.10505191e-4], atol=6e-10)
    np.testing.assert_allclose(run.eigenvalues[3], [1.0, 0.999999843, 0.549685474], atol=6e-10)
    np.testing.assert_allclose(run.loss, [2.99930507, 2.53737846, 1.04660359, 0.202783173, 2.53356e-11], rtol=1e-6)


def test_a_very_small_loss_keeps_its_digits():
    # Mode 1 alone: 1 - lambda = e^{-8t} (1 / x - 1) / (1 + ...), computed here with 50 digits.
    from decimal import Decimal, getcontext

    getcontext().prec = 50
    growth, x = (Decimal(8) * 5).exp(), Decimal("0.0001")
    expected = (1 - x * growth / (1 + x * (growth - 1))) ** 2
    loss = LinearBarlowTwins([1.0], 1, 0.01).trajectory([5.0]).loss[0]
    assert loss == pytest.approx(float(expected), rel=1e-9)
    assert loss < 1e-26


def test_aligned_weights_follow_the_flow_of_the_full_matrix():
    basis, left = orthogonal(6), orthogonal(3, 1)
    gamma = (basis * SPECTRUM) @ basis.T
    start = (left * INIT) @ basis[:, :3].T
    times = np.linspace(0, 12, 25)
    model = LinearBarlowTwins.from_weights(gamma, start)
    np.testing.assert_allclose(model.init, INIT, rtol=1e-9)
    # The integrator's own error: rtol times the growth of perturbations.
    np.testing.assert_allclose(model.weights(times), flow(gamma, start, times), atol=2e-8)
    assert np.abs(model.weights([0.0])[0] - start).max() < 1e-14


@pytest.mark.parametrize("gamma", [-0.7, 0.0, 0.4])
@pytest.mark.parametrize("start", [0.01, 0.9, 3.0])
def test_a_single_mode_of_any_sign_and_size_follows_its_equation(gamma, start):
    times = np.linspace(0, 3, 7)
    run = LinearBarlowTwins([gamma], 1, start).trajectory(times)
    expected = flow(np.array([[gamma]]), np.array([[start]]), times)[:, 0, 0]
    np.testing.assert_allclose(run.singular_values[:, 0], expected, rtol=1e-8)
    np.testing.assert_allclose(run.eigenvalues[:, 0], gamma * expected**2, rtol=1e-8, atol=1e-15)
    np.testing.assert_allclose(run.loss, (1 - gamma * expected**2) ** 2, rtol=1e-6, atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(gamma=st.floats(1e-3, 1e3), ratio=st.floats(1e-12, 0.99))
def test_every_eigenvalue_is_a_logistic_curve_with_rate_eight_gamma(gamma, ratio):
    model = LinearBarlowTwins([gamma], 1, math.sqrt(ratio / gamma))
    tau = model.step_times()[0]
    assert tau == pytest.approx(math.log(1 / ratio - 1) / (8 * gamma), rel=1e-6, abs=1e-9 / gamma)
    assume(tau > 0)
    offsets = np.array([0.0, math.log(9) / (8 * gamma)])
    heights = model.trajectory(tau + offsets).eigenvalues[:, 0]
    np.testing.assert_allclose(heights, [0.5, 0.9], rtol=1e-9)


def test_the_rise_from_a_tenth_to_nine_tenths_does_not_depend_on_the_start():
    for start in (1e-1, 1e-3, 1e-6):
        times = np.linspace(0, 40, 400_001)
        heights = LinearBarlowTwins([0.5], 1, start).trajectory(times).eigenvalues
        low, high = (detect_steps(times, heights, level=level, final=1.0)[0] for level in (0.1, 0.9))
        assert high - low == pytest.approx(math.log(81) / (8 * 0.5), rel=1e-6)


def test_a_mode_above_half_height_has_its_step_in_the_past():
    model = LinearBarlowTwins([2.0, 1.0, 0.5, 0.0, -1.0], 5, [0.6, 1.0, 2.0, 0.1, 0.1])
    times = model.step_times()
    assert times[0] == pytest.approx(math.log(1 / 0.72 - 1) / 16)
    assert times[0] < 0
    assert times[1:].tolist() == [-math.inf, -math.inf, math.inf, math.inf]


def test_the_loss_ends_at_the_number_of_dimensions_that_cannot_be_learned():
    run = LinearBarlowTwins([0.5, 0.2, -0.1, -0.3], 4, 1e-3).trajectory([0, 1e4])
    assert run.loss[0] == pytest.approx(4, abs=1e-5)
    assert run.loss[1] == pytest.approx(2, abs=1e-12)
    assert (np.diff(LinearBarlowTwins(SPECTRUM, 6, 1e-4).trajectory(np.linspace(0, 50, 99)).loss) <= 0).all()


def test_the_loss_falls_by_one_per_step():
    model = LinearBarlowTwins([1.0, 0.3, 0.1], 3, 1e-8)
    tau = model.step_times()
    plateaus = model.trajectory((tau[:-1] + tau[1:]) / 2).loss
    np.testing.assert_allclose(plateaus, [2, 1], atol=1e-4)


def test_eigenvalues_may_come_in_any_order():
    model = LinearBarlowTwins([0.3, 1.0, -5.0, 0.6], 3, INIT)
    assert model.gamma.tolist() == [1.0, 0.6, 0.3, -5.0]
    np.testing.assert_array_equal(model.step_times(), LinearBarlowTwins(GAMMA, 3, INIT).step_times())
    assert model.dim == 3
    assert model.init.tolist() == INIT


@settings(max_examples=60, deadline=None)
@given(scale=st.floats(1e-6, 1e6))
def test_time_runs_in_units_of_the_inverse_eigenvalues(scale):
    model = LinearBarlowTwins(np.array(GAMMA) * scale, 3, np.array(INIT) / math.sqrt(scale))
    np.testing.assert_allclose(model.step_times() * scale, LinearBarlowTwins(GAMMA, 3, INIT).step_times(), rtol=1e-9)
    run = model.trajectory(np.array([0.5, 2.0]) / scale)
    np.testing.assert_allclose(
        run.eigenvalues, LinearBarlowTwins(GAMMA, 3, INIT).trajectory([0.5, 2.0]).eigenvalues, rtol=1e-9
    )


def test_extreme_numbers_stay_finite():
    model = LinearBarlowTwins([1e100, 1e-300, 0.0, -1e100], 4, 1e-200)
    run = model.trajectory([0, 1e-98, 1.0, 1e300])
    for values in (run.singular_values, run.eigenvalues, run.loss):
        assert np.isfinite(values).all()
    assert run.eigenvalues[-1].tolist() == [1, 0, 0, 0]
    assert LinearBarlowTwins([5e-324], 1, 1e-300).step_times() == math.inf  # beyond float64
    big = LinearBarlowTwins([1.0, -1.0], 2, 1e70).trajectory([0.0, 1.0])
    np.testing.assert_allclose(big.eigenvalues[0], [1e140, -1e140], rtol=1e-12)
    assert np.isfinite(big.loss).all()


def test_times_may_be_unordered_or_absent():
    model = LinearBarlowTwins(GAMMA, 2, 1e-2)
    forth, back = model.trajectory([0, 1, 2]), model.trajectory([2, 1, 0])
    np.testing.assert_array_equal(forth.eigenvalues, back.eigenvalues[::-1])
    empty = model.trajectory([])
    assert (empty.singular_values.shape, empty.loss.shape) == ((0, 2), (0,))


def test_the_caller_keeps_his_arrays():
    gamma, init, t = np.array([0.3, 1.0]), np.array([0.1, 0.2]), np.array([0.0, 1.0])
    model = LinearBarlowTwins(gamma, 2, init)
    run = model.trajectory(t)
    model.gamma[0] = model.init[0] = run.t[0] = 9
    assert (gamma.tolist(), init.tolist(), t.tolist()) == ([0.3, 1.0], [0.1, 0.2], [0.0, 1.0])


def test_a_model_prints_its_numbers():
    assert repr(LinearBarlowTwins([0.5], 1, 0.1)) == "LinearBarlowTwins(gamma=array([0.5]), dim=1, init=array([0.1]))"


# --- generic starts: the QR rule ---


@pytest.mark.parametrize(("alpha", "bound"), [(1e-2, 0.03), (1e-4, 2e-3), (1e-6, 2e-4)])
def test_generic_small_weights_step_at_the_times_of_the_qr_rule(alpha, bound):
    basis = orthogonal(6, 1)
    gamma = (basis * SPECTRUM) @ basis.T
    start = alpha * np.random.default_rng(1).normal(size=(3, 6)) / math.sqrt(6)
    model = LinearBarlowTwins.from_weights(gamma, start)
    times = np.linspace(0, 1.5 * model.step_times()[-1], 4001)
    weights = flow(gamma, start, times)
    heights = np.linalg.eigvalsh(weights @ gamma @ weights.transpose(0, 2, 1))[:, ::-1]
    # The error is a power of alpha, 1 - gamma_2 / gamma_1 = 0.4 for the pair that is closest: less for eigenvalues.
    assert np.abs(heights - model.trajectory(times).eigenvalues).max() < bound
    np.testing.assert_allclose(detect_steps(times, heights, final=1.0), model.step_times(), atol=2 * bound)


def test_the_effective_start_is_the_diagonal_of_r_not_the_norm_of_the_columns():
    start = np.array([[3e-3, 4e-3], [0.0, 1e-3]])
    model = LinearBarlowTwins.from_weights(np.diag([1.0, 0.5]), start)
    np.testing.assert_allclose(model.init, [3e-3, 1e-3], rtol=1e-12)
    turned = LinearBarlowTwins.from_weights(np.diag([1.0, 0.5]), orthogonal(2, 3) @ start)
    np.testing.assert_allclose(turned.init, model.init, rtol=1e-12)  # rotations of the embedding are a symmetry


def test_generic_weights_end_where_the_closed_form_says():
    basis = orthogonal(6, 1)
    gamma = (basis * SPECTRUM) @ basis.T
    start = 1e-6 * np.random.default_rng(1).normal(size=(3, 6))
    model = LinearBarlowTwins.from_weights(gamma, start)
    end = flow(gamma, start, np.array([0.0, 40.0]))[-1]
    np.testing.assert_allclose(end, model.final_weights(), atol=0.01)  # of entries of order one
    np.testing.assert_allclose(model.weights([1e3])[0], model.final_weights(), rtol=0, atol=1e-12)


def test_the_final_weights_have_no_loss_and_the_smallest_norm():
    basis = orthogonal(6, 1)
    gamma = (basis * SPECTRUM) @ basis.T
    final = LinearBarlowTwins.from_weights(gamma, np.random.default_rng(1).normal(size=(3, 6))).final_weights()
    np.testing.assert_allclose(final @ gamma @ final.T, np.eye(3), atol=1e-12)
    assert np.square(final).sum() == pytest.approx((1 / SPECTRUM[:3]).sum())
    # Any W with W Gamma W^T = I on other positive modes is longer.
    for modes in ([0, 1, 3], [1, 2, 4]):
        other = (basis[:, modes] / np.sqrt(SPECTRUM[modes])).T
        np.testing.assert_allclose(other @ gamma @ other.T, np.eye(3), atol=1e-12)
        assert np.square(other).sum() > np.square(final).sum() + 1


def test_modes_without_signal_end_at_zero_or_where_they_started():
    model = LinearBarlowTwins([4.0, 0.0, -1.0], 3, 0.1)
    np.testing.assert_allclose(model.final_weights(), np.diag([0.5, 0.1, 0.0]))
    np.testing.assert_allclose(model.weights([1e3])[0], np.diag([0.5, 0.1, 0.0]), atol=1e-12)


def test_eigenvalues_alone_give_weights_in_the_eigenbasis():
    weights = LinearBarlowTwins([1.0, 0.5, -1.0], 2, [0.1, 0.2]).weights([0.0, 1.0])
    assert weights.shape == (2, 2, 3)
    np.testing.assert_allclose(weights[0], [[0.1, 0, 0], [0, 0.2, 0]])


def test_discrete_descent_is_late_by_the_known_factor():
    gamma, rate, start = 0.25, 0.08, 1e-5
    s, steps = start, 0
    while gamma * s**2 < 0.5:
        s, steps = s + rate * 4 * gamma * s * (1 - gamma * s**2), steps + 1
    tau = LinearBarlowTwins([gamma], 1, start).step_times()[0]
    assert tau == pytest.approx(12.2061, abs=6e-5)
    corrected = tau * 4 * gamma * rate / math.log1p(4 * gamma * rate)
    assert corrected == pytest.approx(12.688, abs=6e-4)
    assert steps * rate == pytest.approx(corrected, abs=0.08)  # one step


# --- kernels ---


def test_a_linear_kernel_gives_the_run_of_the_weights():
    x1, x2 = random_views(noise=0.7)
    weights = 1e-4 * np.random.default_rng(1).normal(size=(3, 4))
    views = np.concatenate([x1, x2])
    for center in (False, True):
        by_weights = LinearBarlowTwins.from_weights(cross_correlation(x1, x2, center=center), weights)
        by_kernel = LinearBarlowTwins.from_kernel(views @ views.T, views @ weights.T, center=center)
        np.testing.assert_allclose(by_kernel.gamma, by_weights.gamma, atol=1e-12)
        np.testing.assert_allclose(by_kernel.init, by_weights.init, rtol=1e-8)
        np.testing.assert_allclose(by_kernel.step_times(), by_weights.step_times(), rtol=1e-8)


def test_the_dual_weights_of_a_kernel_give_its_embedding():
    x1, x2 = random_views()
    views = np.concatenate([x1, x2])
    start = 1e-4 * np.random.default_rng(1).normal(size=(2, 4))
    model = LinearBarlowTwins.from_kernel(views @ views.T, views @ start.T)
    primal = LinearBarlowTwins.from_weights(cross_correlation(x1, x2), start)
    assert model.weights([0.3]).shape == (1, 2, 40)
    np.testing.assert_allclose(model.weights([0.3])[0] @ views, primal.weights([0.3])[0], atol=1e-8)
    final = model.final_weights() @ views @ views.T  # (2, 40)
    np.testing.assert_allclose(embedding_spectrum(final[:, :20].T, final[:, 20:].T, center=False), [1, 1], atol=1e-9)


def test_the_step_times_of_a_wide_network_follow_from_its_tangent_kernel():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 1024), nn.Tanh(), nn.Linear(1024, 2, bias=False)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        net[0].weight *= 0.5
        net[2].weight *= 1e-4
    x1, x2 = random_views(n=30, noise=0.2)
    views = torch.tensor(np.concatenate([x1, x2]))
    kernel, start = empirical_ntk(net, views), net(views).detach()
    model = LinearBarlowTwins.from_kernel(kernel, start, center=True)
    lr = 0.02 / model.gamma[0]
    optimizer, times, heights = torch.optim.SGD(net.parameters(), lr), [], []
    for step in range(int(1.3 * model.step_times()[1] / lr)):
        z1, z2 = net(views).split(30)
        times.append(step * lr)
        heights.append(embedding_spectrum(z1, z2))
        optimizer.zero_grad()
        barlow_twins_loss(z1, z2, off_diag_weight=1, normalization="center", symmetrize=True).backward()
        optimizer.step()
    # Late by 4 percent at most from the size of the steps, early by what the hidden layer learns, of order 1 / width.
    np.testing.assert_allclose(detect_steps(times, heights, final=1.0), model.step_times(), rtol=0.06)


def test_the_contrastive_kernel_has_the_spectrum_of_the_cross_correlation():
    def features(x):
        a, b, c = x.T
        r = math.sqrt(2)
        return np.stack([np.ones_like(a), r * a, r * b, r * c, a * a, b * b, c * c, r * a * b, r * a * c, r * b * c], 1)

    x1, x2 = random_views(30, 3)
    ssl = KernelBarlowTwins(3, kernel=lambda x, y: (1 + x @ y.T) ** 2).fit(x1, x2)
    gamma, vectors = np.linalg.eigh(cross_correlation(features(x1), features(x2)))
    np.testing.assert_allclose(ssl.eigenvalues_, gamma[::-1], atol=1e-10)
    new = np.random.default_rng(5).normal(size=(7, 3))
    expected = features(new) @ (vectors[:, ::-1][:, :3] / np.sqrt(gamma[::-1][:3]))
    np.testing.assert_allclose(np.abs(ssl.transform(new)), np.abs(expected), rtol=1e-7, atol=1e-8)


def test_the_components_solve_the_defining_equation_with_matrix_roots():
    x1, x2 = random_views(6, 2)
    ssl = KernelBarlowTwins(2, kernel="rbf", gamma=0.7).fit(x1, x2)
    views = np.concatenate([x1, x2])
    kernel = np.exp(-0.7 * np.square(views[:, None] - views[None]).sum(-1))
    root = np.real(sqrtm(kernel))
    swap = np.kron([[0, 1], [1, 0]], np.eye(6))
    gamma, b = np.linalg.eigh(root @ swap @ root / 12)
    np.testing.assert_allclose(ssl.eigenvalues_, gamma[::-1], atol=1e-9)
    expected = np.linalg.solve(root, b[:, ::-1][:, :2]) / np.sqrt(gamma[::-1][:2])
    np.testing.assert_allclose(np.abs(ssl.dual_coef_), np.abs(expected), rtol=1e-5, atol=1e-6)


def test_known_components_of_a_linear_kernel():
    ssl = KernelBarlowTwins(2, kernel="linear").fit(FIRST, SECOND)
    np.testing.assert_allclose(ssl.eigenvalues_, [1.5205176, 0.14614906], atol=6e-8)
    found = ssl.transform([[1, 0], [0, 1], [2, -1]])[:, 0]
    np.testing.assert_allclose(np.abs(found), [0.63921021, 0.49908025, 0.77934016], atol=6e-9)
    assert (found > 0).all()


def test_known_components_of_an_rbf_kernel():
    ssl = KernelBarlowTwins(2, kernel="rbf", gamma=0.5).fit(FIRST, SECOND)
    top = ssl.eigenvalues_[[0, 1, -1]]
    np.testing.assert_allclose(top, [0.611773101, 0.186409014, -0.0604950084], atol=6e-10)
    found = ssl.transform([[1, 0], [0, 1], [2, -1]])[:, 0]
    np.testing.assert_allclose(np.abs(found), [0.92225119, 0.98123481, 0.21061576], atol=6e-9)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_the_embedding_of_the_training_pairs_is_decorrelated(kernel):
    x1, x2 = random_views(25, 5)
    ssl = KernelBarlowTwins(3, kernel=kernel).fit(x1, x2)
    z1, z2 = ssl.transform(x1), ssl.transform(x2)
    product = (z1.T @ z2 + z2.T @ z1) / 50
    np.testing.assert_allclose(product, np.eye(3), atol=1e-8)
    np.testing.assert_allclose(ssl.transform(x1), KernelBarlowTwins(3, kernel=kernel).fit_transform(x1, x2))
    views = torch.tensor(z1), torch.tensor(z2)
    loss = barlow_twins_loss(*views, off_diag_weight=1, normalization="none", symmetrize=True)
    assert float(loss) < 1e-14


def test_the_views_may_change_places():
    x1, x2 = random_views()
    one, other = KernelBarlowTwins(2).fit(x1, x2), KernelBarlowTwins(2).fit(x2, x1)
    np.testing.assert_allclose(one.eigenvalues_, other.eigenvalues_, atol=1e-12)
    np.testing.assert_allclose(np.abs(one.transform(x1)), np.abs(other.transform(x1)), rtol=1e-6, atol=1e-8)


def test_equal_views_give_whitened_kernel_pca():
    x = random_views()[0]
    x -= x.mean(axis=0)
    ssl = KernelBarlowTwins(3, kernel="linear").fit(x, x)
    reference = KernelPCA(3, kernel="linear").fit(x)
    np.testing.assert_allclose(ssl.eigenvalues_[:3], reference.eigenvalues_ / 20, rtol=1e-9)
    whitened = reference.transform(x) / np.sqrt(reference.eigenvalues_ / 20)
    np.testing.assert_allclose(np.abs(ssl.transform(x)), np.abs(whitened), rtol=1e-8, atol=1e-10)


def test_the_flow_of_a_kernel_model_ends_at_the_transformer():
    x1, x2 = random_views()
    ssl = KernelBarlowTwins(2, kernel="linear").fit(x1, x2)
    gamma = cross_correlation(x1, x2)
    end = flow(gamma, 1e-6 * np.random.default_rng(0).normal(size=(2, 4)), np.array([0.0, 60.0]))[-1]
    new = np.random.default_rng(1).normal(size=(5, 4))
    found, trained = ssl.transform(new), new @ end.T
    np.testing.assert_allclose(found @ found.T, trained @ trained.T, atol=0.01)  # alpha to the power of the gap


def test_the_width_of_the_default_kernel_is_one_over_the_number_of_features():
    x1, x2 = random_views()
    default, explicit = KernelBarlowTwins().fit(x1, x2), KernelBarlowTwins(gamma=0.25).fit(x1, x2)
    np.testing.assert_array_equal(default.eigenvalues_, explicit.eigenvalues_)
    assert not np.allclose(default.eigenvalues_, KernelBarlowTwins(gamma=0.5).fit(x1, x2).eigenvalues_)


def test_the_largest_dual_coefficient_is_positive():
    dual = KernelBarlowTwins(3).fit(*random_views()).dual_coef_
    assert (dual[np.abs(dual).argmax(axis=0), range(3)] > 0).all()


# --- the transformer among others ---


class OneView(KernelBarlowTwins):
    """Both views the same, so that scikit-learn's own checks can fit it."""

    def fit(self, X, y=None):
        return super().fit(X, X)

    def fit_transform(self, X, y=None):
        return self.fit(X).transform(X)


@parametrize_with_checks([OneView()])
def test_the_transformer_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_parameters_are_stored_untouched_and_cloned():
    ssl = KernelBarlowTwins(4, kernel="linear", gamma=0.3, rcond=1e-8)
    assert ssl.get_params() == {"n_components": 4, "kernel": "linear", "gamma": 0.3, "rcond": 1e-8}
    copied = clone(ssl.fit(*random_views(noise=0.1)))
    assert copied.get_params() == ssl.get_params()
    assert not hasattr(copied, "eigenvalues_")
    assert copied.set_params(n_components=2).n_components == 2
    signature = inspect.signature(KernelBarlowTwins)
    assert [p.default for p in signature.parameters.values()] == [2, "rbf", None, 1e-10]


def test_a_fitted_transformer_survives_pickling():
    x1, x2 = random_views()
    ssl = KernelBarlowTwins(2).fit(x1, x2)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ssl)).transform(x1), ssl.transform(x1))


def test_attributes_have_the_documented_shapes():
    x1, x2 = random_views()
    ssl = KernelBarlowTwins(3).fit(x1, x2)
    assert ssl.dual_coef_.shape == (40, 3)
    np.testing.assert_array_equal(ssl.X_fit_, np.concatenate([x1, x2]))
    assert ssl.n_features_in_ == 4
    assert (np.diff(ssl.eigenvalues_) <= 0).all()
    kernel = np.exp(-0.25 * np.square(x1[:, None] - ssl.X_fit_[None]).sum(-1))
    np.testing.assert_allclose(ssl.transform(x1), kernel @ ssl.dual_coef_, atol=1e-12)
    assert ssl.get_feature_names_out().tolist() == ["kernelbarlowtwins0", "kernelbarlowtwins1", "kernelbarlowtwins2"]


def test_the_output_can_be_a_data_frame():
    pytest.importorskip("pandas")
    x1, x2 = random_views()
    ssl = KernelBarlowTwins(2).set_output(transform="pandas").fit(x1, x2)
    assert list(ssl.transform(x1).columns) == ["kernelbarlowtwins0", "kernelbarlowtwins1"]
    assert ssl.fit_transform(x1, x2).shape == (20, 2)


def test_a_frozen_transformer_works_in_a_pipeline():
    frozen = pytest.importorskip("sklearn.frozen")
    x1, x2 = random_views(60)
    labels = (x1[:, 0] > 0).astype(int)
    ssl = KernelBarlowTwins(4).fit(x1, x2)
    pipeline = make_pipeline(frozen.FrozenEstimator(ssl), LogisticRegression()).fit(x1, labels)
    direct = LogisticRegression().fit(ssl.transform(x1), labels)
    np.testing.assert_array_equal(pipeline.predict(x2), direct.predict(ssl.transform(x2)))


def test_labels_in_place_of_the_second_view_are_refused():
    x1, _ = random_views()
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
        make_pipeline(KernelBarlowTwins(), LogisticRegression()).fit(x1, np.arange(20) % 2)


def test_the_views_are_not_changed():
    x1, x2 = random_views()
    before = x1.copy(), x2.copy()
    KernelBarlowTwins().fit(x1, x2).transform(x1)
    np.testing.assert_array_equal(x1, before[0])
    np.testing.assert_array_equal(x2, before[1])


def test_single_precision_views_are_taken_to_double():
    x1, x2 = random_views()
    ssl = KernelBarlowTwins().fit(x1.astype(np.float32), x2.astype(np.float32))
    assert ssl.dual_coef_.dtype == np.float64


# --- the losses ---


def barlow_by_loops(z1, z2, weight=5e-3, normalization="standardize", symmetrize=False, eps=1e-5):
    z1, z2 = np.array(z1, dtype=float), np.array(z2, dtype=float)
    for z in (z1, z2):
        for j in range(z.shape[1]):
            if normalization != "none":
                z[:, j] -= z[:, j].mean()
            if normalization == "standardize":
                z[:, j] /= math.sqrt((z[:, j] ** 2).mean() + eps)
    d = z1.shape[1]
    c = [[sum(z1[n, i] * z2[n, j] for n in range(len(z1))) / len(z1) for j in range(d)] for i in range(d)]
    if symmetrize:
        c = [[(c[i][j] + c[j][i]) / 2 for j in range(d)] for i in range(d)]
    return sum((1 - c[i][i]) ** 2 if i == j else weight * c[i][j] ** 2 for i in range(d) for j in range(d))


def nt_xent_by_loops(z1, z2, temperature=0.5):
    z = [row / np.linalg.norm(row) for row in np.concatenate([z1, z2])]
    n, total = len(z1), 0.0
    for i in range(2 * n):
        scores = {k: z[i] @ z[k] / temperature for k in range(2 * n) if k != i}
        total -= scores[(i + n) % (2 * n)] - math.log(sum(math.exp(s) for s in scores.values()))
    return total / (2 * n)


def vicreg_by_loops(z1, z2, invariance=25.0, variance=25.0, covariance=1.0, target_std=1.0, eps=1e-4):
    n, d = z1.shape
    loss = invariance * sum((z1[i, j] - z2[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
    for z in (z1, z2):
        c = np.cov(z, rowvar=False, ddof=1).reshape(d, d)
        loss += variance / 2 * sum(max(0, target_std - math.sqrt(c[j, j] + eps)) for j in range(d)) / d
        loss += covariance * sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return loss


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.3293948323),
        ({"off_diag_weight": 1, "normalization": "none", "symmetrize": True}, 0.2109375),
        ({"off_diag_weight": 1, "normalization": "center"}, 0.74853515625),
    ],
)
def test_known_values_of_the_barlow_twins_loss(settings, expected):
    assert float(barlow_twins_loss(Z1, Z2, **settings)) == pytest.approx(expected, abs=6e-11)


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, 1.2037938381), (0.1, 0.9042343996)])
def test_known_values_of_the_simclr_loss(temperature, expected):
    assert float(nt_xent_loss(Z1, Z2, temperature=temperature)) == pytest.approx(expected, abs=6e-11)


def test_known_value_of_the_vicreg_loss():
    assert float(vicreg_loss(Z1, Z2)) == pytest.approx(14.1696742698, abs=6e-11)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("loss", "by_loops", "settings"),
    [
        (barlow_twins_loss, barlow_by_loops, {}),
        (barlow_twins_loss, barlow_by_loops, {"normalization": "center", "symmetrize": True}),
        (barlow_twins_loss, barlow_by_loops, {"normalization": "none", "symmetrize": True}),
        (barlow_twins_loss, barlow_by_loops, {"eps": 0.3}),
        (nt_xent_loss, nt_xent_by_loops, {}),
        (nt_xent_loss, nt_xent_by_loops, {"temperature": 0.07}),
        (vicreg_loss, vicreg_by_loops, {}),
        (vicreg_loss, vicreg_by_loops, {"invariance": 2, "variance": 3, "covariance": 4, "target_std": 2, "eps": 0.1}),
    ],
)
def test_the_losses_equal_plain_loops(loss, by_loops, settings, seed):
    z1, z2 = embeddings(seed=seed)
    assert float(loss(z1, z2, **settings)) == pytest.approx(by_loops(z1.numpy(), z2.numpy(), **settings), rel=1e-11)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradients_are_those_of_the_losses(loss):
    z1, z2 = (z.requires_grad_() for z in embeddings(6, 3))
    assert torch.autograd.gradcheck(loss, (z1, z2))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_pairs_and_of_views_does_not_matter(loss):
    z1, z2 = embeddings()
    rows = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    expected = float(loss(z1, z2))
    assert float(loss(z1[rows], z2[rows])) == pytest.approx(expected, rel=1e-12)
    assert float(loss(z2, z1)) == pytest.approx(expected, rel=1e-12)
    assert abs(float(loss(z1[rows], z2)) - expected) > 1e-3  # but who belongs to whom does


def test_each_loss_has_its_symmetries():
    z1, z2 = embeddings()
    turn = torch.tensor(orthogonal(5))
    linear = {"off_diag_weight": 1, "normalization": "center", "symmetrize": True}
    for symmetric in (lambda a, b: barlow_twins_loss(a, b, **linear), nt_xent_loss):
        torch.testing.assert_close(symmetric(z1 @ turn, z2 @ turn), symmetric(z1, z2))
    torch.testing.assert_close(nt_xent_loss(3 * z1, 0.1 * z2), nt_xent_loss(z1, z2))
    for shifted in (barlow_twins_loss, vicreg_loss):
        torch.testing.assert_close(shifted(z1 + 3, z2 + 3), shifted(z1, z2))
    scale = torch.tensor([1.0, 2.0, 0.5, 7.0, 3.0], dtype=torch.float64)
    exact = barlow_twins_loss(z1, z2, eps=0)
    torch.testing.assert_close(barlow_twins_loss(z1 * scale, z2 * scale, eps=0), exact)
    assert abs(vicreg_loss(z1 @ turn, z2 @ turn) - vicreg_loss(z1, z2)) > 1e-4  # VICReg knows its axes


def test_the_linearised_loss_is_the_one_of_the_flow():
    x1, x2 = random_views()
    weights = np.random.default_rng(1).normal(size=(3, 4))
    product = weights @ cross_correlation(x1, x2) @ weights.T
    z1, z2 = torch.tensor(x1 @ weights.T), torch.tensor(x2 @ weights.T)
    loss = barlow_twins_loss(z1, z2, off_diag_weight=1, normalization="none", symmetrize=True)
    assert float(loss) == pytest.approx(np.square(product - np.eye(3)).sum(), rel=1e-12)


def test_a_collapsed_embedding_has_the_known_losses():
    same = torch.ones(10, 4, dtype=torch.float64)
    assert float(nt_xent_loss(same, same)) == pytest.approx(math.log(19))
    assert float(barlow_twins_loss(same, same)) == pytest.approx(4)
    assert float(vicreg_loss(same, same)) == pytest.approx(25 * (1 - 0.01))


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0])
def test_from_collapse_simclr_learns_by_the_same_spectrum_as_barlow_twins(temperature):
    x1, x2 = (torch.tensor(x) for x in random_views(300, 4))
    offset = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    weights = 1e-5 * torch.tensor(np.random.default_rng(1).normal(size=(3, 4)))
    weights.requires_grad_()
    nt_xent_loss(x1 @ weights.T + offset, x2 @ weights.T + offset, temperature=temperature).backward()
    gamma = torch.tensor(cross_correlation(x1, x2, center=True))
    across = weights.detach().clone()
    across[0] = 0
    expected = -2 / (temperature * 4) * across @ gamma
    # The correction is 1 / (2N - 1) of the covariance; a factor of 2 would be far away.
    torch.testing.assert_close(weights.grad, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_from_zero_vicreg_learns_by_the_variance_of_the_views():
    x1, x2 = (torch.tensor(x) for x in random_views(300, 4))
    weights = 1e-6 * torch.tensor(np.random.default_rng(1).normal(size=(3, 4)))
    weights.requires_grad_()
    vicreg_loss(x1 @ weights.T, x2 @ weights.T).backward()
    spread = (torch.cov(x1.T) + torch.cov(x2.T)) * 25 / (4 * math.sqrt(1e-4))
    distance = 25 * (x1 - x2).T @ (x1 - x2) / 300
    torch.testing.assert_close(weights.grad, -2 * weights.detach() @ (spread - distance) / 3, rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_the_losses_are_computed_in_single_precision_at_least(loss, dtype, result):
    z1, z2 = embeddings(dtype=dtype)
    value = loss(z1.requires_grad_(), z2)
    assert value.dtype == result
    assert value.shape == ()
    value.backward()
    assert z1.grad.dtype == dtype
    exact = loss(z1.detach().double(), z2.double())
    assert float(value.detach()) == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_does_not_lower_the_precision(loss):
    z1, z2 = embeddings(64, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(z1, z2)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(loss(z1, z2)), rel=1e-6)  # bfloat16 has three digits


@pytest.mark.parametrize("loss", LOSSES)
def test_the_losses_can_be_mapped_over_runs(loss):
    runs = [embeddings(seed=seed) for seed in range(3)]
    found = torch.vmap(loss)(*(torch.stack(views) for views in zip(*runs, strict=True)))
    torch.testing.assert_close(found, torch.stack([loss(*views) for views in runs]))


@pytest.mark.parametrize("loss", LOSSES)
def test_one_dimension_and_two_pairs_are_enough(loss):
    z1, z2 = embeddings(2, 1)
    assert math.isfinite(float(loss(z1, z2)))


@pytest.mark.parametrize("loss", LOSSES)
def test_embeddings_and_the_random_state_are_not_changed(loss):
    z1, z2 = embeddings()
    before, state = (copy.deepcopy(z1), copy.deepcopy(z2)), torch.get_rng_state()
    loss(z1, z2)
    assert torch.equal(z1, before[0])
    assert torch.equal(z2, before[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("loss", LOSSES)
def test_embeddings_that_are_not_finite_are_not_hidden(loss):
    z1, z2 = embeddings()
    z1[0, 0] = math.nan
    assert math.isnan(float(loss(z1, z2)))


def test_large_scores_do_not_overflow():
    z1, z2 = embeddings(dtype=torch.float32)
    assert math.isfinite(float(nt_xent_loss(1e10 * z1, 1e10 * z2, temperature=1e-3)))


def test_defaults_are_those_of_the_papers():
    defaults = {f: {k: p.default for k, p in inspect.signature(f).parameters.items() if p.kind == 3} for f in LOSSES}
    assert defaults[barlow_twins_loss] == {
        "off_diag_weight": 5e-3,
        "normalization": "standardize",
        "symmetrize": False,
        "eps": 1e-5,
    }
    assert defaults[nt_xent_loss] == {"temperature": 0.5}
    assert list(defaults[vicreg_loss].values()) == [25.0, 25.0, 1.0, 1.0, 1e-4]


# --- monitors ---


def test_the_spectrum_of_an_embedding_is_that_of_its_covariance():
    z1, z2 = embeddings()
    covariance = np.cov(z1.numpy(), rowvar=False, ddof=0)
    np.testing.assert_allclose(embedding_spectrum(z1), np.linalg.eigvalsh(covariance)[::-1], rtol=1e-12)
    a, b = z1.numpy() - z1.numpy().mean(0), z2.numpy() - z2.numpy().mean(0)
    product = (a.T @ b + b.T @ a) / 24
    np.testing.assert_allclose(embedding_spectrum(z1, z2), np.linalg.eigvalsh(product)[::-1], rtol=1e-12)
    plain = z1.numpy().T @ z1.numpy() / 12
    np.testing.assert_allclose(embedding_spectrum(z1, center=False), np.linalg.eigvalsh(plain)[::-1], rtol=1e-12)


def test_the_spectrum_takes_tensors_with_gradients_and_half_precision():
    z1, _ = embeddings(dtype=torch.float16)
    found = embedding_spectrum(z1.requires_grad_())
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, embedding_spectrum(z1.detach().double().numpy()), rtol=1e-12)


def test_the_cross_correlation_is_what_is_shared_minus_what_differs():
    x1, x2 = random_views()
    mean, difference = (x1 + x2) / 2, (x1 - x2) / 2
    gamma = cross_correlation(x1, x2)
    np.testing.assert_allclose(gamma, (mean.T @ mean - difference.T @ difference) / 20, atol=1e-13)
    np.testing.assert_array_equal(gamma, gamma.T)
    np.testing.assert_allclose(6 * cross_correlation(FIRST, SECOND), [[6, 4], [4, 4]], atol=1e-14)
    shifted = cross_correlation(x1 + 5, x2 - 3, center=True)
    np.testing.assert_allclose(shifted, cross_correlation(x1, x2, center=True), atol=1e-12)
    assert np.linalg.eigvalsh(cross_correlation(x1, -x1)).max() < 0


def test_steps_are_found_between_the_times():
    t, heights = [0.0, 1.0, 3.0], [[0.0, 0.5, 0.0, 0.0], [1.0, 0.7, 0.0, 0.1], [2.0, 1.0, 4.0, 0.3]]
    np.testing.assert_allclose(detect_steps(t, heights), [1.0, 0.0, 2.0, 1.5])
    np.testing.assert_allclose(detect_steps(t, heights, level=0.25), [0.5, 0.0, 1.5, 0.75])
    np.testing.assert_allclose(detect_steps(t, heights, final=1.0), [0.5, 0.0, 1.25, math.inf])
    np.testing.assert_allclose(detect_steps(t, heights, final=[4.0, 2.0, 6.0, 0.2]), [3.0, 3.0, 2.5, 1.0])


def test_what_is_never_learned_has_no_step():
    assert detect_steps([0, 1], [[0.0, -1.0], [0.0, -2.0]]).tolist() == [math.inf, math.inf]


def test_the_first_crossing_counts():
    np.testing.assert_allclose(detect_steps([0, 1, 2, 3], [[0.0], [1.0], [0.0], [1.0]]), [0.5])


def test_steps_of_the_closed_form_are_found_where_they_are():
    model = LinearBarlowTwins(GAMMA, 3, INIT)
    times = np.linspace(0, 10, 20_001)
    found = detect_steps(times, model.trajectory(times).eigenvalues, final=1.0)
    np.testing.assert_allclose(found, model.step_times(), atol=1e-6)


# --- bad input ---


@pytest.mark.parametrize(
    ("gamma", "dim", "init", "error", "message"),
    [
        ([[1.0]], 1, 0.1, ValueError, r"gamma must be of shape \(n,\), got shape \(1, 1\)"),
        (1.0, 1, 0.1, ValueError, r"gamma must be of shape \(n,\), got shape \(\)"),
        ([], 1, 0.1, ValueError, r"gamma must be of at least one eigenvalue, got shape \(0,\)"),
        ([1.0, math.nan], 1, 0.1, ValueError, "gamma must be finite, got nan at index 1"),
        ([math.inf], 1, 0.1, ValueError, "gamma must be finite, got inf"),
        (["a"], 1, 0.1, TypeError, "gamma must be real numbers, got list"),
        ([1.0 + 1j], 1, 0.1, TypeError, "gamma must be real numbers, got list"),
        ([1.0], 1.0, 0.1, TypeError, "dim must be an integer, got float"),
        ([1.0], True, 0.1, TypeError, "dim must be an integer, got bool"),
        ([1.0], 0, 0.1, ValueError, "dim must be between 1 and 1, got 0"),
        ([1.0, 0.5], 3, 0.1, ValueError, "dim must be between 1 and 2, got 3"),
        ([1.0], 1, 0.0, ValueError, "init must be > 0, got 0"),
        ([1.0], 1, -0.1, ValueError, "init must be > 0, got -0.1"),
        ([1.0, 0.5], 2, [0.1, -1.0], ValueError, "init must be > 0, got -1 at index 1"),
        ([1.0], 1, math.inf, ValueError, "init must be finite, got inf"),
        ([1.0, 0.5], 2, [0.1], ValueError, r"init must be a number or of shape \(2,\), got shape \(1,\)"),
        ([1.0, 0.5], 1, [0.1, 0.1], ValueError, r"init must be a number or of shape \(1,\), got shape \(2,\)"),
        ([1.0], 1, "small", TypeError, "init must be real numbers, got str"),
        ([1.0], 1, None, TypeError, "init must be real numbers, got NoneType"),
        ([1e100], 1, 1e50, ValueError, r"init must be such that gamma \* init\*\*2 is at most 1e\+150 in modulus"),
        ([-1e200], 1, 1e200, ValueError, "init must be such that .*, got inf"),
    ],
)
def test_a_linear_model_is_refused_for(gamma, dim, init, error, message):
    with pytest.raises(error, match=message):
        LinearBarlowTwins(gamma, dim, init)


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (1.0, ValueError, r"t must be of shape \(n,\), got shape \(\)"),
        ([[1.0]], ValueError, r"t must be of shape \(n,\), got shape \(1, 1\)"),
        ([0.0, -1.0], ValueError, "t must be >= 0, got -1 at index 1"),
        ([math.inf], ValueError, "t must be finite, got inf"),
        ([math.nan], ValueError, "t must be finite, got nan"),
        ("now", TypeError, "t must be real numbers, got str"),
    ],
)
@pytest.mark.parametrize("method", ["trajectory", "weights"])
def test_times_are_refused_for(method, t, error, message):
    with pytest.raises(error, match=message):
        getattr(LinearBarlowTwins(GAMMA, 2, 0.1), method)(t)


@pytest.mark.parametrize(
    ("cross_corr", "weights", "message"),
    [
        ([[1.0, 0.0]], [[1.0, 0.0]], r"cross_corr must be a square matrix, got shape \(1, 2\)"),
        ([[1.0, 0.5], [0.0, 1.0]], [[1.0, 0.0]], "cross_corr must be symmetric, got an asymmetry of 0.5"),
        ([[math.nan]], [[1.0]], "cross_corr must be finite, got nan"),
        (np.zeros((0, 0)), [[1.0]], "cross_corr must be a square matrix"),
        (np.eye(2), [1.0, 0.0], r"weights must be of shape \(n, 2\), got shape \(2,\)"),
        (np.eye(2), [[1.0, 0.0, 0.0]], r"weights must be of shape \(n, 2\), got shape \(1, 3\)"),
        (np.eye(2), [[1.0, math.inf]], r"weights must be finite, got inf at index \(0, 1\)"),
        (np.eye(2), np.eye(3)[:, :2], "weights must be of 1 to 2 embedding dimensions, .*, got 3"),
        (np.eye(2), np.zeros((0, 2)), "weights must be of 1 to 2 embedding dimensions, .*, got 0"),
        (np.diag([2.0, 1.0]), [[0.0, 1.0]], "weights must be of rank 1 on the top 1 modes, got rank 0"),
        (np.diag([2.0, 1.0]), [[1.0, 1.0], [1.0, 1.0]], "weights must be of rank 2 on the top 2 modes, got rank 1"),
        (np.diag([2.0, 1.0]), np.zeros((2, 2)), "weights must be of rank 2 on the top 2 modes, got rank 0"),
    ],
)
def test_weights_are_refused_for(cross_corr, weights, message):
    with pytest.raises(ValueError, match=message):
        LinearBarlowTwins.from_weights(cross_corr, weights)


@pytest.mark.parametrize(
    ("kernel", "outputs", "options", "error", "message"),
    [
        (np.eye(3), np.ones((3, 1)), {}, ValueError, r"kernel must be of even size, .*, got shape \(3, 3\)"),
        (np.eye(4)[:3], np.ones((4, 1)), {}, ValueError, r"kernel must be a square matrix, got shape \(3, 4\)"),
        (np.triu(np.ones((2, 2))), np.ones((2, 1)), {}, ValueError, "kernel must be symmetric"),
        (np.diag([1.0, -1.0]), np.ones((2, 1)), {}, ValueError, "kernel must be positive semidefinite, got an eigenv"),
        (-np.eye(2), np.ones((2, 1)), {}, ValueError, "kernel must be positive semidefinite"),
        (np.zeros((2, 2)), np.ones((2, 1)), {}, ValueError, "kernel must be nonzero somewhere, got only zeros"),
        (np.eye(4), np.ones((2, 1)), {}, ValueError, r"outputs must be of shape \(4, n\), got shape \(2, 1\)"),
        (np.eye(4), np.ones(4), {}, ValueError, r"outputs must be of shape \(4, n\), got shape \(4,\)"),
        (np.eye(4), np.full((4, 1), math.nan), {}, ValueError, "outputs must be finite, got nan"),
        (np.ones((4, 4)), np.eye(4)[:, :2], {}, ValueError, "outputs must be of 1 to 1 embedding dimensions"),
        (np.eye(4), np.zeros((4, 1)), {}, ValueError, "outputs must be of rank 1 on the top 1 modes, got rank 0"),
        (np.eye(4), np.ones((4, 1)), {"rcond": 0.0}, ValueError, "rcond must be > 0, got 0"),
        (np.eye(4), np.ones((4, 1)), {"rcond": 1.0}, ValueError, "rcond must be < 1, got 1"),
        (np.eye(4), np.ones((4, 1)), {"center": 1}, TypeError, "center must be True or False, got int"),
        (np.ones((4, 4)), np.ones((4, 1)), {"center": True}, ValueError, "kernel must be nonzero somewhere"),
    ],
)
def test_a_kernel_is_refused_for(kernel, outputs, options, error, message):
    with pytest.raises(error, match=message):
        LinearBarlowTwins.from_kernel(kernel, outputs, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_components": 0}, ValueError, "n_components must be >= 1, got 0"),
        ({"n_components": 1.5}, TypeError, "n_components must be an integer, got float"),
        ({"n_components": 3, "kernel": "linear"}, ValueError, "n_components must be <= 2 .*, got 3"),
        ({"kernel": "poly"}, ValueError, "kernel must be one of 'linear', 'rbf', got 'poly'"),
        ({"kernel": None}, TypeError, "kernel must be one of 'linear', 'rbf', got NoneType"),
        ({"kernel": lambda x, y: x}, ValueError, r"kernel\(X, Y\) must be of shape \(6, 6\), got shape \(6, 2\)"),
        ({"kernel": lambda x, y: np.full((6, 6), np.nan)}, ValueError, r"kernel\(X, Y\) must be finite, got nan"),
        ({"kernel": lambda x, y: np.triu(np.ones((6, 6)))}, ValueError, "kernel must be symmetric"),
        ({"kernel": lambda x, y: -x @ y.T}, ValueError, "kernel must be positive semidefinite"),
        ({"kernel": lambda x, y: np.zeros((6, 6))}, ValueError, "kernel must be nonzero somewhere"),
        ({"kernel": lambda x, y: "a"}, TypeError, r"kernel\(X, Y\) must be real numbers, got str"),
        ({"gamma": 0.0}, ValueError, "gamma must be > 0, got 0"),
        ({"gamma": -1.0}, ValueError, "gamma must be > 0, got -1"),
        ({"gamma": [1.0, 2.0]}, ValueError, r"gamma must be a single number, got shape \(2,\)"),
        ({"gamma": "scale"}, TypeError, "gamma must be real numbers, got str"),
        ({"rcond": 0.0}, ValueError, "rcond must be > 0, got 0"),
        ({"rcond": 2.0}, ValueError, "rcond must be < 1, got 2"),
    ],
)
def test_a_transformer_refuses_to_fit_with(options, error, message):
    with pytest.raises(error, match=message):
        KernelBarlowTwins(**options).fit(FIRST, SECOND)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (FIRST, SECOND[:2], r"X2 must be of the shape of X1 \(3, 2\), got shape \(2, 2\)"),
        (FIRST, SECOND[:, :1], r"X2 must be of the shape of X1 \(3, 2\), got shape \(3, 1\)"),
        (FIRST[0], SECOND, "Expected 2D array, got 1D array"),
        (FIRST[None], SECOND, "dim 3"),
        (FIRST[:0], SECOND[:0], "0 sample"),
        (FIRST * math.nan, SECOND, "Input X contains NaN"),
        (FIRST, SECOND * math.nan, "Input X2 contains NaN"),
        (FIRST, np.where(SECOND == 2, np.inf, SECOND), "Input X2 contains infinity"),
    ],
)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_views_are_refused_for(kernel, first, second, message):
    with pytest.raises(ValueError, match=message):
        KernelBarlowTwins(1, kernel=kernel).fit(first, second)


def test_views_beyond_the_range_of_products_are_refused():
    with pytest.raises(ValueError, match="X must be of magnitudes whose products are within the range of float64"):
        KernelBarlowTwins(1, kernel="linear").fit(FIRST * 1e200, SECOND * 1e200)
    far = KernelBarlowTwins(1).fit(FIRST * 1e200, FIRST * 1e200)  # distances that overflow are similarities of zero
    np.testing.assert_allclose(far.eigenvalues_, np.full(3, 1 / 3))


def test_noise_alone_has_no_components():
    x = random_views()[0]
    with pytest.raises(ValueError, match="n_components must be <= 0 .*, got 1"):
        KernelBarlowTwins(1, kernel="linear").fit(x, -x)


def test_an_unfitted_transformer_says_so():
    with pytest.raises(NotFittedError, match="not fitted yet"):
        KernelBarlowTwins().transform(FIRST)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.ones((2, 3)), "X has 3 features, but KernelBarlowTwins is expecting 2 features"),
        (np.ones(2), "Expected 2D array"),
        ([[1.0, math.nan]], "contains NaN"),
    ],
)
def test_new_samples_are_refused_for(X, message):
    ssl = KernelBarlowTwins(1).fit(FIRST, SECOND)
    with pytest.raises(ValueError, match=message):
        ssl.transform(X)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("z1", "z2", "error", "message"),
    [
        (Z1.numpy(), Z2, TypeError, "z1 must be a tensor, got ndarray"),
        (Z1, None, TypeError, "z2 must be a tensor, got NoneType"),
        (Z1.long(), Z2, TypeError, "z1 must be of real floating-point numbers, got dtype torch.int64"),
        (Z1, Z2.to(torch.complex128), TypeError, "z2 must be of real floating-point numbers, got dtype torch.complex"),
        (Z1[0], Z2[0], ValueError, r"z1 must be of shape \(N, d\) with at least 2 samples, got shape \(2,\)"),
        (Z1[None], Z2[None], ValueError, r"z1 must be of shape \(N, d\) with at least 2 samples, got shape \(1, 4, 2"),
        (Z1[:1], Z2[:1], ValueError, r"z1 must be of shape \(N, d\) with at least 2 samples, got shape \(1, 2\)"),
        (Z1[:, :0], Z2[:, :0], ValueError, r"z1 must be of shape .*, got shape \(4, 0\)"),
        (Z1, Z2[:3], ValueError, r"z2 must be of the shape of z1 \(4, 2\), got \(3, 2\)"),
        (Z1, Z2[:, :1], ValueError, r"z2 must be of the shape of z1 \(4, 2\), got \(4, 1\)"),
        (Z1, Z2.float(), ValueError, r"z2 must be of the dtype of z1 \(torch.float64\), got torch.float32"),
        (Z1, Z2.to("meta"), ValueError, r"z2 must be of the device of z1 \(cpu\), got meta"),
    ],
)
def test_embeddings_are_refused_for(loss, z1, z2, error, message):
    with pytest.raises(error, match=message):
        loss(z1, z2)


@pytest.mark.parametrize(
    ("loss", "options", "error", "message"),
    [
        (barlow_twins_loss, {"off_diag_weight": -1.0}, ValueError, "off_diag_weight must be >= 0, got -1"),
        (barlow_twins_loss, {"off_diag_weight": [1.0, 2.0]}, ValueError, "off_diag_weight must be a single number"),
        (barlow_twins_loss, {"normalization": "batch"}, ValueError, "normalization must be one of 'center', 'none', "),
        (barlow_twins_loss, {"normalization": None}, TypeError, "normalization must be one of .*, got NoneType"),
        (barlow_twins_loss, {"symmetrize": 1}, TypeError, "symmetrize must be True or False, got int"),
        (barlow_twins_loss, {"eps": -1e-5}, ValueError, "eps must be >= 0, got -1e-05"),
        (nt_xent_loss, {"temperature": 0.0}, ValueError, "temperature must be > 0, got 0"),
        (nt_xent_loss, {"temperature": -0.5}, ValueError, "temperature must be > 0, got -0.5"),
        (nt_xent_loss, {"temperature": math.inf}, ValueError, "temperature must be finite, got inf"),
        (nt_xent_loss, {"temperature": "hot"}, TypeError, "temperature must be real numbers, got str"),
        (vicreg_loss, {"invariance": -1.0}, ValueError, "invariance must be >= 0, got -1"),
        (vicreg_loss, {"variance": -1.0}, ValueError, "variance must be >= 0, got -1"),
        (vicreg_loss, {"covariance": math.nan}, ValueError, "covariance must be finite, got nan"),
        (vicreg_loss, {"target_std": -1.0}, ValueError, "target_std must be >= 0, got -1"),
        (vicreg_loss, {"eps": -1.0}, ValueError, "eps must be >= 0, got -1"),
    ],
)
def test_a_loss_refuses_options(loss, options, error, message):
    with pytest.raises(error, match=message):
        loss(Z1, Z2, **options)


@pytest.mark.parametrize("function", [embedding_spectrum, cross_correlation])
@pytest.mark.parametrize(
    ("first", "second", "options", "error", "message"),
    [
        (FIRST[0], SECOND, {}, ValueError, r"\w+ must be of shape \(n, n\), got shape \(2,\)"),
        (FIRST, SECOND[:2], {}, ValueError, r"\w+ must be of the shape of \w+ \(3, 2\), got shape \(2, 2\)"),
        (FIRST[:0], SECOND[:0], {}, ValueError, "must be of at least one sample and one dimension"),
        (FIRST, SECOND * math.nan, {}, ValueError, "must be finite, got nan"),
        (FIRST, "views", {}, TypeError, "must be real numbers, got str"),
        (FIRST, SECOND, {"center": "no"}, TypeError, "center must be True or False, got str"),
    ],
)
def test_a_monitor_is_refused_for(function, first, second, options, error, message):
    with pytest.raises(error, match=message):
        function(first, second, **options)


@pytest.mark.parametrize(
    ("t", "eigenvalues", "options", "error", "message"),
    [
        ([0.0, 0.0], [[0.0], [1.0]], {}, ValueError, "t must be strictly increasing"),
        ([1.0, 0.0], [[0.0], [1.0]], {}, ValueError, "t must be strictly increasing"),
        ([], np.zeros((0, 1)), {}, ValueError, "t must be strictly increasing, at least one number, got none"),
        ([[0.0, 1.0]], [[0.0], [1.0]], {}, ValueError, r"t must be of shape \(n,\)"),
        ([0.0, math.inf], [[0.0], [1.0]], {}, ValueError, "t must be finite, got inf"),
        ([0.0, 1.0], [0.0, 1.0], {}, ValueError, r"eigenvalues must be of shape \(2, n\), got shape \(2,\)"),
        ([0.0, 1.0], [[0.0]], {}, ValueError, r"eigenvalues must be of shape \(2, n\), got shape \(1, 1\)"),
        ([0.0, 1.0], [[0.0], [math.nan]], {}, ValueError, "eigenvalues must be finite, got nan"),
        ([0.0, 1.0], [[0.0], [1.0]], {"level": 0.0}, ValueError, "level must be between 0 and 1, both excluded, got 0"),
        ([0.0, 1.0], [[0.0], [1.0]], {"level": 1.0}, ValueError, "level must be between 0 and 1, both excluded, got 1"),
        ([0.0, 1.0], [[0.0], [1.0]], {"level": "half"}, TypeError, "level must be real numbers, got str"),
        ([0.0, 1.0], [[0.0], [1.0]], {"final": [1.0, 1.0]}, ValueError, "final must be a number or of shape"),
        ([0.0, 1.0], [[0.0], [1.0]], {"final": math.nan}, ValueError, "final must be finite, got nan"),
    ],
)
def test_steps_are_refused_for(t, eigenvalues, options, error, message):
    with pytest.raises(error, match=message):
        detect_steps(t, eigenvalues, **options)
