"""Tests of feature learning: the exact solution against integration, four numbers, phases, mechanisms, refusals."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from torch import nn

from symlearn.feature_learning import (
    PARAMETRIZATIONS,
    Mechanism,
    ScalingPhase,
    SolvableModel,
    SolvableTrajectory,
    mechanism,
    ntk_change,
    scaling_phase,
)
from symlearn.models import mlp
from symlearn.tangent_kernel import empirical_ntk, kernel_distance

NAN, INF = float("nan"), float("inf")
# Weights along the data, readout, and the other arguments.
ALIGNMENT = ([1, 0.5], [0.2, -0.3], {})
RESCALING = ([0.1], [0.2], {"xy": 2})
DISALIGNMENT = ([1, 1], [1, 0.5], {"lr_in": 2, "lr_out": 0.5, "scale": 1.5, "xy": 0.3})
ZERO_READOUT = ([1, -1, 2], [0, 0, 0], {"scale": 0.5, "x2": 2, "xy": -1})
CASES = {"alignment": ALIGNMENT, "rescaling": RESCALING, "disalignment": DISALIGNMENT, "zero readout": ZERO_READOUT}


def build(case):
    w0, u0, options = case
    return SolvableModel(w0, u0, **options)


def integrate(model, times):
    """Weights (T, d) of one model by Runge-Kutta of order 8 on the 2 d equations."""
    d = model.w0.shape[-1]
    rate_in, rate_out, scale, x2, xy = (float(getattr(model, n)) for n in ("lr_in", "lr_out", "scale", "x2", "xy"))

    def flow(_, weights):
        w, u = weights[:d], weights[d:]
        residual = xy - x2 * scale * (u @ w)
        return np.concatenate([rate_in * scale * residual * u, rate_out * scale * residual * w])

    start = np.concatenate([model.w0, model.u0])
    tolerance = {"rtol": 1e-12, "atol": 1e-14 * max(1e-300, np.abs(start).max())}
    path = solve_ivp(flow, (0, max(times)), start, method="DOP853", t_eval=times, **tolerance).y.T
    return path[:, :d], path[:, d:]


def assert_all_finite(path):
    for field in dataclasses.fields(path):
        if field.name != "t":
            assert np.isfinite(getattr(path, field.name)).all(), field.name


sizes = st.one_of(st.just(0.0), st.floats(-3, 3, allow_subnormal=False))
positive = st.floats(0.05, 20)


@st.composite
def models(draw):
    d = draw(st.integers(1, 5))
    w0, u0 = (draw(st.lists(sizes, min_size=d, max_size=d)) for _ in range(2))
    rates = {name: draw(positive) for name in ("lr_in", "lr_out", "scale", "x2")}
    return SolvableModel(w0, u0, **rates, xy=draw(st.one_of(st.just(0.0), st.floats(-5, 5))))


# The exact solution


@pytest.mark.parametrize(
    ("case", "outputs", "kernels", "cosines"),
    [
        (ALIGNMENT, [0.05, 0.56180159, 0.83816582, 0.98416096], (1.38, 2.42783854), (0.12403473, 0.92847669)),
        (RESCALING, [0.02, 0.15490409, 0.7669167, 1.94280062], (0.05, 4.0001125), (1, 1)),
        (DISALIGNMENT, [2.25, 0.45682948, 0.31917529, 0.30029991], (7.875, 4.1548917), (0.9486833, 0.37139068)),
        (ZERO_READOUT, [0, -0.39101396, -0.47720635, -0.49903098], (1.5, 1.58113883), (0, -1)),
    ],
)
def test_four_networks_have_the_known_paths(case, outputs, kernels, cosines):
    model = build(case)
    path, end = model.trajectory([0, 0.5, 1, 2]), model.limit()
    # Half of the last printed digit.
    np.testing.assert_allclose(path.output, outputs, atol=6e-9)
    np.testing.assert_allclose([model.initial_kernel, *end.kernel], kernels, rtol=6e-9)
    np.testing.assert_allclose([path.alignment[0], *end.alignment], cosines, atol=6e-9)


def test_three_networks_have_the_known_weights_after_two_steps():
    ends = [build(case).trajectory([2.0]).w[0] for case in (ALIGNMENT, RESCALING, DISALIGNMENT)]
    np.testing.assert_allclose(ends[0], [1.26380025, 0.40461578], atol=6e-9)
    np.testing.assert_allclose(ends[1], [1.38847345], atol=6e-9)
    np.testing.assert_allclose(ends[2], [0.03157086, 0.58796979], atol=6e-9)


@pytest.mark.parametrize("width", [1, 2, 3, 10, 100, 1000])
def test_any_width_follows_the_integrated_flow(width):
    rng = np.random.default_rng(width)
    times = np.array([0, 0.1, 0.5, 1, 3])
    for _ in range(4):
        w0, u0 = rng.normal(size=(2, width))
        rate_in, rate_out, x2 = np.exp(0.7 * rng.normal(size=3))
        scale, xy = np.exp(0.5 * rng.normal()) / np.sqrt(width), 2 * rng.normal()
        model = SolvableModel(w0, u0, lr_in=rate_in, lr_out=rate_out, scale=scale, x2=x2, xy=xy)
        path = model.trajectory(times)
        w, u = integrate(model, times)
        # The integrator's tolerance is 1e-12; 1e-9 leaves room for its accumulation over the path.
        np.testing.assert_allclose(path.w, w, rtol=0, atol=1e-9 * np.abs(w).max())
        np.testing.assert_allclose(path.u, u, rtol=0, atol=1e-9 * np.abs(u).max())
        np.testing.assert_allclose(path.output, scale * (u * w).sum(1), rtol=0, atol=1e-9 * path.norm_product.max())
        kernel = scale**2 * (rate_out * (w**2).sum(1) + rate_in * (u**2).sum(1))
        np.testing.assert_allclose(path.kernel, kernel, rtol=1e-9)


def test_tiny_weights_follow_the_integrated_flow_along_the_plateau():
    model = SolvableModel([1e-9, 2e-9], [1e-9, -3e-9], lr_in=0.7, lr_out=1.4)
    times = np.array([1.0, 10.0, 20.0, 25.0])
    w, u = integrate(model, times)
    path = model.trajectory(times)
    # Over the plateau of e^20 the integrator's own errors of 1e-12 per unit of time add up.
    np.testing.assert_allclose(path.w, w, rtol=1e-8)
    np.testing.assert_allclose(path.u, u, rtol=1e-8)
    np.testing.assert_allclose(path.output, (u * w).sum(1), rtol=1e-8)


def test_gradient_descent_with_small_steps_follows_the_flow():
    rng = np.random.default_rng(0)
    w0, u0 = rng.normal(size=(2, 20))
    options = {"scale": 0.3, "x2": 1.5, "xy": -2.0}
    worst = []
    for step in (0.002, 0.001):
        w, u = w0, u0
        for _ in range(round(1 / step)):
            residual = -2.0 - 1.5 * 0.3 * (u @ w)
            w, u = w + 1.3 * step * 0.3 * residual * u, u + 0.6 * step * 0.3 * residual * w
        flow = SolvableModel(w0, u0, lr_in=1.3, lr_out=0.6, **options).trajectory([1.0])
        worst.append(max(np.abs(w - flow.w[0]).max(), np.abs(u - flow.u[0]).max()))
    assert worst[1] < 2e-3
    assert worst[1] == pytest.approx(worst[0] / 2, rel=0.1)  # an error of first order in the step


def test_a_torch_network_on_one_direction_moves_only_along_it_and_as_predicted():
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    direction = torch.randn(6, **draw)
    direction /= direction.norm()
    amplitude, noise = torch.randn(2, 50, **draw)
    inputs, targets = amplitude[:, None] * direction, 1.5 * amplitude + 0.3 * noise
    inner, outer = torch.randn(8, 6, **draw), torch.randn(8, **draw)
    first, second = inner.clone().requires_grad_(), outer.clone().requires_grad_()
    step = 1e-3
    for _ in range(500):
        loss = (0.4 * (inputs @ first.T) @ second - targets).square().mean() / 2
        gradients = torch.autograd.grad(loss, [first, second])
        with torch.no_grad():
            first -= 2 * step * gradients[0]
            second -= step * gradients[1]
    moments = {"x2": float(amplitude.square().mean()), "xy": float((amplitude * targets).mean())}
    model = SolvableModel(inner @ direction, outer, lr_in=2 * step, lr_out=step, scale=0.4, **moments)
    path = model.trajectory([500])
    # Errors of first order in the step of 1e-3 against a motion of order 1; a factor of two in time would be 0.1.
    np.testing.assert_allclose(path.w[0], (first @ direction).detach(), atol=3e-3)
    np.testing.assert_allclose(path.u[0], second.detach(), atol=3e-3)
    moved = (first - inner).detach()
    torch.testing.assert_close(moved, (moved @ direction)[:, None] * direction, atol=1e-12, rtol=0)


def test_the_kernel_is_the_one_that_a_tangent_kernel_of_the_module_gives():
    w0, u0, options = ALIGNMENT
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(w0, dtype=torch.float64)[:, None])
        model[1].weight.copy_(torch.tensor(u0, dtype=torch.float64)[None])
    at_two = empirical_ntk(model, torch.tensor([[2.0]], dtype=torch.float64)).item()
    assert 4 * SolvableModel(w0, u0, **options).initial_kernel == pytest.approx(at_two, rel=1e-12)
    # The rate of the input weights multiplies the readout.
    assert SolvableModel([2.0], [3.0], lr_in=10.0, lr_out=1.0).initial_kernel == pytest.approx(10 * 9 + 4)


@settings(max_examples=60, deadline=None)
@given(models(), st.floats(0, 5), st.floats(0, 5))
def test_the_flow_started_again_on_its_way_goes_on_as_before(model, first, second):
    halfway = model.trajectory([first])
    options = {name: getattr(model, name) for name in ("lr_in", "lr_out", "scale", "x2", "xy")}
    rest = SolvableModel(halfway.w[0], halfway.u[0], **options).trajectory([second])
    whole = model.trajectory([first + second])
    # Rounding in the middle grows with the unstable direction of a saddle, by at most e^{B second}.
    exponent = 2 * float(model.scale * np.sqrt(model.lr_in * model.lr_out) * np.abs(model.xy)) * second
    if exponent < 10:
        spread = np.sqrt(model.lr_out / model.lr_in) + np.sqrt(model.lr_in / model.lr_out)
        size = np.exp(exponent) * spread * (1 + np.abs(model.w0).max() + np.abs(model.u0).max())
        np.testing.assert_allclose(rest.w, whole.w, rtol=0, atol=1e-13 * size)
        np.testing.assert_allclose(rest.u, whole.u, rtol=0, atol=1e-13 * size)


@settings(max_examples=100, deadline=None)
@given(models())
def test_the_four_numbers_give_kernel_norms_angle_and_output(model):
    path = model.trajectory([0, 0.01, 0.3, 2, 50, INF])
    f, scale = path.output, float(model.scale)
    m = np.hypot(model.area, model.imbalance)
    omega, ratio = np.sqrt(model.lr_in * model.lr_out), np.sqrt(model.lr_out / model.lr_in)
    size = np.hypot(f, m)
    rounding = {"rtol": 1e-11, "atol": 1e-11 * float(model.initial_kernel / (2 * scale * omega)) + 1e-300}
    np.testing.assert_allclose(path.kernel / (2 * scale * omega), size, **rounding)
    np.testing.assert_allclose(path.norm_product, np.hypot(f, model.area), rtol=1e-12)
    np.testing.assert_allclose(scale * (path.u * path.w).sum(-1), f, **rounding)
    np.testing.assert_allclose(scale / ratio * (path.u**2).sum(-1), size + model.imbalance, **rounding)
    np.testing.assert_allclose(scale * ratio * (path.w**2).sum(-1), size - model.imbalance, **rounding)
    np.testing.assert_allclose(path.alignment * path.norm_product, f, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(path.loss, model.x2 / 2 * (f - model.target) ** 2, rtol=1e-6, atol=1e-13 * path.loss[0])
    assert (np.abs(path.alignment) <= 1).all()
    assert_all_finite(path)


@settings(max_examples=60, deadline=None)
@given(models(), st.floats(0.001, 3))
def test_area_and_imbalance_are_conserved(model, time):
    path = model.trajectory([time])
    options = {name: getattr(model, name) for name in ("lr_in", "lr_out", "scale", "x2", "xy")}
    later = SolvableModel(path.w[0], path.u[0], **options)
    size = float(
        max(later.initial_kernel, model.initial_kernel) / (2 * model.scale * np.sqrt(model.lr_in * model.lr_out))
    )
    assert later.imbalance == pytest.approx(model.imbalance, abs=1e-12 * size + 1e-300)
    # Where the layers become parallel the area is the root of a difference.
    assert later.area == pytest.approx(model.area, abs=1e-12 * size + 1e-300)


def test_products_of_the_modes_of_any_two_units_are_conserved():
    rng = np.random.default_rng(3)
    model = SolvableModel(*rng.normal(size=(2, 4)), lr_in=0.5, lr_out=3.0)
    path = model.trajectory([0, 0.2, 4])
    u, w = path.u / np.sqrt(3.0), path.w / np.sqrt(0.5)
    products = np.einsum("ti,tj->tij", u + w, u - w)
    np.testing.assert_allclose(products, np.broadcast_to(products[0], products.shape), atol=1e-13)


def test_the_output_obeys_its_closed_equation():
    model = build(DISALIGNMENT)
    t, step = 0.4, 1e-4
    before, at, after = model.trajectory([t - step, t, t + step]).output
    m = np.hypot(model.area, model.imbalance)
    slope = 2 * 1.5 * 1.0 * np.hypot(at, m) * (0.3 - at)
    assert (after - before) / (2 * step) == pytest.approx(slope, rel=1e-6)  # central difference, step squared


def test_a_loss_without_the_half_is_twice_as_fast():
    slow = SolvableModel(*ALIGNMENT[:2])
    fast = SolvableModel(*ALIGNMENT[:2], lr_in=2.0, lr_out=2.0)
    np.testing.assert_allclose(fast.trajectory([0.35]).w, slow.trajectory([0.7]).w, rtol=1e-13)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_symmetries_of_the_model_are_symmetries_of_the_solution(case):
    w0, u0, options = case
    path = build(case).trajectory([0.3, 2])
    mirrored = SolvableModel(w0, -np.array(u0), **options | {"xy": -options.get("xy", 1)}).trajectory([0.3, 2])
    np.testing.assert_allclose(mirrored.output, -path.output, rtol=1e-14)
    np.testing.assert_allclose(mirrored.w, path.w, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(mirrored.u, -path.u, rtol=1e-12, atol=1e-14)
    swapped = options | {"lr_in": options.get("lr_out", 1), "lr_out": options.get("lr_in", 1)}
    np.testing.assert_allclose(SolvableModel(u0, w0, **swapped).trajectory([0.3, 2]).u, path.w, rtol=1e-12, atol=1e-14)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(len(w0), len(w0))))[0]
    turned = SolvableModel(turn @ w0, turn @ u0, **options).trajectory([0.3, 2])
    np.testing.assert_allclose(turned.w, path.w @ turn.T, rtol=1e-12, atol=1e-14)


def test_the_order_of_the_times_does_not_matter_and_time_zero_is_the_start():
    model = build(ALIGNMENT)
    path = model.trajectory([2, 0, INF, 0.5])
    np.testing.assert_allclose(path.output[[1, 3, 0, 2]], [*model.trajectory([0, 0.5, 2]).output, 1.0], rtol=1e-15)
    np.testing.assert_array_equal(path.w[1], model.w0)
    np.testing.assert_array_equal(path.u[1], model.u0)
    np.testing.assert_array_equal(path.t, [2, 0, INF, 0.5])


def test_no_times_and_a_single_number_are_times_too():
    model = build(ALIGNMENT)
    assert model.trajectory([]).w.shape == (0, 2)
    assert model.trajectory(0.5).output == pytest.approx([0.56180159], abs=6e-9)


# Limits


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_limit_is_the_target_exactly_and_the_limit_of_late_times(case):
    model = build(case)
    end, late = model.limit(), model.trajectory([1e6])
    assert end.t == [INF]
    assert end.output == [model.target]
    assert end.loss == [0.0]
    for name in ("w", "u", "kernel", "alignment", "norm_product"):
        np.testing.assert_allclose(getattr(late, name), getattr(end, name), rtol=1e-13, atol=1e-15)


def test_the_loss_keeps_its_digits_until_it_underflows():
    model = build(ALIGNMENT)
    losses = model.trajectory([20, 40, 80, 120]).loss
    # At late times the distance decays at the rate of the final kernel.
    rates = -np.diff(np.log(losses)) / [20, 40, 40]
    np.testing.assert_allclose(rates, 2 * model.limit().kernel[0], rtol=1e-10)
    assert losses[-1] < 1e-200


@pytest.mark.parametrize("sign", [1, -1])
def test_exactly_opposite_layers_end_in_the_saddle_for_the_wrong_sign_of_the_target(sign):
    w0 = np.array([1.0, -2.0, 0.5])
    wrong = SolvableModel(w0, -sign * w0, xy=sign)
    right = SolvableModel(w0, -sign * w0, xy=-sign)
    end = wrong.limit()
    assert (end.output[0], end.kernel[0], end.alignment[0], end.norm_product[0]) == (0, 0, 0, 0)
    assert end.loss[0] == pytest.approx(0.5, rel=1e-14)
    assert not end.w.any()
    assert not end.u.any()
    assert right.limit().output == [-sign]
    path = wrong.trajectory([0.1, 1, 10, 50])
    # The distance from the saddle falls as e^{-2t} in the end, and no rounding makes it grow again.
    assert path.output[3] / path.output[2] == pytest.approx(np.exp(-80), rel=1e-8)
    np.testing.assert_array_equal(path.alignment, -sign)
    w, _ = integrate(wrong, np.array([0.1, 1.0]))
    np.testing.assert_allclose(path.w[:2], w, rtol=1e-9)


def test_opposite_layers_are_judged_after_division_by_the_roots_of_their_rates():
    saddle = SolvableModel([1.0, 2.0], [-2.0, -4.0], lr_in=1.0, lr_out=4.0)
    assert saddle.limit().output == [0.0]
    assert SolvableModel([1.0, 2.0], [-1.0, -2.0], lr_in=1.0, lr_out=4.0).limit().output == [1.0]


def test_without_a_signal_parallel_layers_decay_algebraically():
    model = SolvableModel([1.0, 0.5], [1.0, 0.5], xy=0.0)
    times = np.array([0, 1, 10, 1e6])
    start = 1.25
    np.testing.assert_allclose(model.trajectory(times).output, start / (1 + 2 * start * times), rtol=1e-13)
    assert model.limit().output == [0.0]
    assert not model.limit().w.any()


def test_without_a_signal_the_output_goes_to_zero_and_the_layers_do_not():
    model = SolvableModel([1.0, 0.5], [0.2, -0.3], xy=0.0)
    end = model.limit()
    assert end.output == [0.0]
    assert end.norm_product == pytest.approx(model.area)
    assert end.kernel == pytest.approx(2 * np.hypot(model.area, model.imbalance))


@pytest.mark.parametrize("xy", [-1.0, 0.0, 2.0])
def test_a_network_of_zeros_stays_where_it_is(xy):
    model = SolvableModel([0.0, 0.0], [0.0, 0.0], xy=xy)
    path = model.trajectory([0, 1, 1e300, INF])
    for name in ("w", "u", "output", "kernel", "alignment", "norm_product"):
        assert not getattr(path, name).any(), name
    np.testing.assert_array_equal(path.loss, xy**2 / 2)
    how = mechanism(model)
    assert (how.label, how.kernel_ratio, how.angle_share) == ("kernel", 1.0, 0.0)


def test_a_network_at_its_target_does_not_move():
    model = SolvableModel([0.5, 1.0], [1.0, 0.5], xy=1.0)
    path = model.trajectory([0, 3, INF])
    np.testing.assert_allclose(path.w, [[0.5, 1.0]] * 3, rtol=1e-15)
    assert not path.loss.any()
    assert mechanism(model).angle_share == pytest.approx(0.36)  # sin^2 of the angle, whose cosine is 0.8


@pytest.mark.parametrize("size", [1e-3, 1e-9, 1e-100, 1e-200, 1e-300])
@pytest.mark.parametrize("xy", [1.0, -1.0, 0.0])
def test_tiny_weights_reach_the_target_and_keep_their_digits(size, xy):
    w0, u0 = size * np.array([1.0, 2.0]), size * np.array([1.0, -3.0])
    model = SolvableModel(w0, u0, xy=xy)
    path = model.trajectory([0, 1, 100, 1e4, 1e300, INF])
    assert_all_finite(path)
    assert path.output[-1] == xy
    # A saddle multiplies p by e^{t} and q by e^{-t}, or the other way round, as long as the output is small.
    p, q = (u0 + w0) / 2 * np.exp(xy), (u0 - w0) / 2 * np.exp(-xy)
    if size < 1e-8:
        np.testing.assert_allclose(path.w[1], p - q, rtol=1e-13)
    if xy:
        # In the end the direction is that of the mode which grows, and the norm of each layer is 1.
        mode = (u0 + xy * w0) / size
        np.testing.assert_allclose(path.u[-1], mode / np.linalg.norm(mode), atol=1e-12 if size < 1e-8 else 1e-5)


@pytest.mark.parametrize("width", [2, 3])
def test_half_of_the_target_takes_a_time_that_is_logarithmic_in_the_size_of_the_weights(width):
    rng = np.random.default_rng(0)
    w0, u0 = rng.normal(size=(2, width))
    options = {"lr_in": 0.7, "lr_out": 1.4, "scale": 1.3, "x2": 0.8, "xy": 1.2}
    gain = 1.3 * np.sqrt(0.7 * 1.4)
    for size in (1e-3, 1e-5, 1e-8):
        model = SolvableModel(size * w0, size * u0, **options)
        half = brentq(lambda t, model=model: model.trajectory([t]).output[0] - 0.75, 0, 100, xtol=1e-13)
        p = size * (u0 / np.sqrt(1.4) + w0 / np.sqrt(0.7)) / 2
        # Corrections are of relative order of the initial size squared.
        assert half == pytest.approx(np.log(1.5 / (gain * (p @ p))) / (2 * gain * 1.2), rel=10 * size**2)


def test_a_frozen_layer_makes_the_other_one_learn_alone():
    w0, u0 = np.array([1.0, 2.0]), np.array([1.0, 1.0])
    model = SolvableModel(w0, u0, lr_out=1e-30)
    path = model.trajectory([0, 0.5, 2, INF])
    # A linear regression with features u: the output decays at the rate |u|^2 = 2.
    output = 1 + 2 * np.exp(-2 * path.t)
    np.testing.assert_allclose(path.output, output, rtol=1e-13)
    np.testing.assert_allclose(path.w, w0 + (output - 3)[:, None] / 2 * u0, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(path.u, [u0] * 4, rtol=1e-15)
    np.testing.assert_allclose(path.kernel, 2, rtol=1e-13)


@pytest.mark.parametrize("power", [30, -30])
def test_the_largest_and_smallest_numbers_that_are_accepted_give_finite_numbers(power):
    big = 10.0**power
    for names in (
        ("scale", "lr_in"),
        ("x2", "xy"),
        ("lr_in",),
        ("lr_out", "x2"),
        ("scale", "lr_in", "lr_out", "x2", "xy"),
    ):
        model = SolvableModel([1.0, -2.0], [0.5, 1.0], **dict.fromkeys(names, big))
        assert_all_finite(model.trajectory([0, 1e-30, 1, 1e30, INF]))
        assert_all_finite(SolvableModel([1e30, 1.0], [1e-30, 0.0], **dict.fromkeys(names, big)).trajectory([0, 1, INF]))


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_other_units_of_the_weights_are_another_unit_of_time(factor):
    w0, u0 = np.random.default_rng(0).normal(size=(2, 30))
    times = np.array([0.0, 0.003, 0.01, 0.1, INF])
    path = SolvableModel(w0, u0).trajectory(times)
    scaled = SolvableModel(factor * w0, factor * u0, xy=factor**2).trajectory(times / factor**2)
    np.testing.assert_allclose(scaled.output / factor**2, path.output, rtol=1e-13)
    np.testing.assert_allclose(scaled.w / factor, path.w, rtol=1e-12)


# Batches


def test_a_batch_is_its_models_one_by_one():
    rng = np.random.default_rng(0)
    w0, u0 = rng.normal(size=(2, 3, 4, 5))
    options = {
        "lr_in": rng.uniform(0.5, 2, 4),
        "lr_out": 0.7,
        "scale": rng.uniform(0.1, 1, (3, 1)),
        "xy": rng.normal(size=(3, 4)),
    }
    batch = SolvableModel(w0, u0, **options)
    path = batch.trajectory([0.1, 1, INF])
    assert path.w.shape == path.u.shape == (3, 4, 3, 5)
    full = {name: np.broadcast_to(value, (3, 4)) for name, value in options.items()}
    for i, j in np.ndindex(3, 4):
        one = SolvableModel(w0[i, j], u0[i, j], **{name: value[i, j] for name, value in full.items()})
        alone = one.trajectory([0.1, 1, INF])
        for name in ("w", "u", "output", "kernel", "alignment", "norm_product", "loss"):
            np.testing.assert_allclose(getattr(path, name)[i, j], getattr(alone, name), rtol=1e-13, atol=1e-300)
        for name in ("target", "area", "imbalance", "initial_kernel"):
            assert getattr(batch, name).shape == (3, 4)
            assert getattr(one, name).shape == ()
            assert getattr(batch, name)[i, j] == pytest.approx(getattr(one, name), rel=1e-13)


def test_an_empty_batch_is_a_batch():
    model = SolvableModel(np.zeros((0, 3)), np.zeros((0, 3)))
    assert model.trajectory([0, 1]).w.shape == (0, 2, 3)
    assert model.limit().output.shape == (0, 1)
    assert mechanism(model).label.shape == (0,)


def test_a_batch_mixes_special_starts_with_ordinary_ones():
    w0 = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.5], [1e-200, 0.0]])
    u0 = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.2, -0.3], [0.0, 1e-200]])
    np.testing.assert_array_equal(SolvableModel(w0, u0, xy=1).limit().output[:, 0], [0, 1, 0, 1, 1])
    np.testing.assert_array_equal(SolvableModel(w0, u0, xy=-1).limit().output[:, 0], [-1, 0, 0, -1, -1])
    np.testing.assert_array_equal(SolvableModel(w0, u0, xy=0).limit().output[:, 0], np.zeros(5))


def test_lists_integers_and_tensors_are_taken_and_nothing_is_changed():
    w0, u0 = np.array([1, 2]), torch.tensor([1.0, -1.0], dtype=torch.float32, requires_grad=True)
    model = SolvableModel(w0, u0, xy=torch.tensor(2.0))
    assert model.trajectory(torch.tensor([1, 2])).w.dtype == np.float64
    w0[0] = 5
    assert model.w0[0] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.xy = 3
    with pytest.raises(ValueError, match="read-only"):
        model.w0[0] = 3
    with pytest.raises(AttributeError):
        model.area = 1


def test_signatures_and_fields_are_those_of_the_documentation():
    assert list(inspect.signature(SolvableModel).parameters) == ["w0", "u0", "lr_in", "lr_out", "scale", "x2", "xy"]
    fields = [field.name for field in dataclasses.fields(SolvableTrajectory)]
    assert fields == ["t", "w", "u", "output", "kernel", "alignment", "norm_product", "loss"]
    for kind in (SolvableTrajectory, Mechanism, ScalingPhase):
        assert kind.__dataclass_params__.frozen


# Mechanisms


@pytest.mark.parametrize(
    ("case", "label", "share", "ratio"),
    [
        (ALIGNMENT, "alignment", 0.672, 2.42783854 / 1.38),
        (RESCALING, "rescaling", 0.0, 80.00225),
        (DISALIGNMENT, "disalignment", 0.465, 4.1548917 / 7.875),
        (ZERO_READOUT, "kernel", 1.0, 1.0540926),
    ],
)
def test_four_networks_learn_by_the_known_mechanisms(case, label, share, ratio):
    model = build(case)
    how = mechanism(model)
    assert how.label == label
    assert isinstance(how.label, str)
    assert how.angle_share == pytest.approx(share, abs=6e-4)
    assert how.kernel_ratio == pytest.approx(ratio, rel=1e-7)
    path = model.trajectory([0, INF])
    assert [how.alignment_before, how.alignment_after] == pytest.approx(path.alignment)
    assert [how.norm_before, how.norm_after] == pytest.approx(path.norm_product)


def test_the_shares_of_angle_and_norm_make_up_the_whole_change():
    how = mechanism(build(DISALIGNMENT))
    gain = np.log(0.3 / 2.25)
    assert np.log(how.alignment_after / how.alignment_before) / gain == pytest.approx(how.angle_share)
    assert np.log(how.norm_after / how.norm_before) / gain == pytest.approx(1 - how.angle_share)


@settings(max_examples=60, deadline=None)
@given(models())
def test_the_kernel_ratio_follows_from_the_output_alone(model):
    how = mechanism(model)
    assert 0 <= how.angle_share <= 1
    before, after = model.trajectory([0, INF]).output
    m2 = model.area**2 + model.imbalance**2
    if before**2 + m2 > 1e-200:
        expected = np.sqrt((after**2 + m2) / (before**2 + m2))
        assert how.kernel_ratio == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_one_unit_only_rescales_and_parallel_layers_stay_parallel():
    assert mechanism(SolvableModel([2.0], [0.01], xy=3.0)).angle_share == 0.0
    parallel = mechanism(SolvableModel([1.0, 2.0], [0.1, 0.2], xy=3.0))
    assert parallel.label == "rescaling"
    assert parallel.alignment_after == pytest.approx(1)


def test_from_an_output_of_zero_the_angle_makes_all_of_the_change():
    crossed = mechanism(SolvableModel([1.0, 0.0], [0.0, 1.0]))
    assert (crossed.label, crossed.angle_share, crossed.alignment_before) == ("alignment", 1.0, 0.0)
    forgotten = mechanism(SolvableModel([1.0, 0.5], [1.0, -0.5], xy=0.0))
    assert (forgotten.label, forgotten.angle_share, forgotten.alignment_after) == ("disalignment", 1.0, 0.0)
    saddle = mechanism(SolvableModel([1.0, 0.5], [-1.0, -0.5], xy=1.0))
    assert (saddle.label, saddle.kernel_ratio, saddle.angle_share) == ("rescaling", 0.0, 0.0)


@pytest.mark.parametrize("size", [4e-162, 1e-200])
def test_a_kernel_that_underflows_at_the_start_grows_without_bound_and_does_not_stay(size):
    how = mechanism(SolvableModel([0.0, size], [size, size]))
    assert how.kernel_ratio == INF
    assert how.label != "kernel"


def test_tolerances_move_the_labels():
    model = build(ALIGNMENT)
    assert mechanism(model, kernel_tol=0.75).label == "alignment"
    assert mechanism(model, kernel_tol=0.77).label == "kernel"
    assert mechanism(model, angle_tol=0.67).label == "alignment"
    assert mechanism(model, angle_tol=0.68).label == "rescaling"


def test_a_batch_has_a_mechanism_each():
    w0 = np.array([[1, 0.5], [1, 1]])
    u0 = np.array([[0.2, -0.3], [1, 0.5]])
    how = mechanism(SolvableModel(w0, u0, lr_in=[1, 2], lr_out=[1, 0.5], scale=[1, 1.5], xy=[1, 0.3]))
    assert how.label.tolist() == ["alignment", "disalignment"]
    assert how.angle_share == pytest.approx([0.672, 0.465], abs=6e-4)


# Scaling with the width


@pytest.mark.parametrize(
    ("name", "kernel", "rate", "alignment", "phase", "stability"),
    [
        ("ntk", 0.5, 0, 0.5, "kernel", "stable"),
        ("standard", 1, 1, 0.5, "kernel", "unstable"),
        ("standard, small steps", 1, 0, 0.5, "kernel", "stable"),
        ("mean field", 0, 0, 0, "feature", "stable"),
        ("mup", 0, 0, 0, "feature", "stable"),
        ("xavier", 0, 0, 0, "feature", "stable"),
        ("tiny", -1, 0, -1, "feature", "stable"),
        ("tiny readout", 1, 1, -1, "kernel", "unstable"),
    ],
)
def test_eight_parametrisations_have_the_known_phases(name, kernel, rate, alignment, phase, stability):
    found = scaling_phase(**PARAMETRIZATIONS[name])
    assert dataclasses.astuple(found) == (phase, stability, kernel, rate, alignment)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_exponents_are_the_slopes_of_random_networks(name):
    found, widths = scaling_phase(**PARAMETRIZATIONS[name]), (10**3, 10**5)
    kernels, ratios, areas = [], [], []
    for width in widths:
        model = SolvableModel.random(width, **PARAMETRIZATIONS[name], size=4, rng=0)
        end = model.limit().kernel[:, 0]
        kernels.append(np.log10(np.maximum(end, model.initial_kernel)).mean())
        ratios.append(np.log10(end / model.initial_kernel).mean())
        areas.append(np.log10(model.area).mean())
    slopes = np.diff([kernels, ratios, areas])[:, 0] / 2
    # Fluctuations are of order width^-1/2 over two decades.
    assert slopes == pytest.approx(
        [found.rate_exponent, max(0, -found.kernel_exponent), found.alignment_exponent], abs=0.02
    )


@pytest.mark.parametrize(("target", "mean"), [(1.0, 0.0), (2.0, 1.5)])
def test_at_ntk_scaling_the_kernel_moves_by_the_inverse_of_the_width(target, mean):
    model = SolvableModel.random(256, **PARAMETRIZATIONS["ntk"], xy=target, size=4000, rng=1)
    change = 256 * (model.limit().kernel[:, 0] / model.initial_kernel - 1)
    # (f*^2 - f0^2) / 2 with f0 standard normal, up to corrections of order 1/d.
    assert change.mean() == pytest.approx(mean, abs=4 * change.std() / 4000**0.5 + 0.03)
    assert change.std() == pytest.approx(0.5**0.5, rel=0.1)


def test_at_mean_field_scaling_the_kernel_grows_by_a_fixed_factor():
    model = SolvableModel.random(1024, **PARAMETRIZATIONS["mean field"], xy=2.0, size=500, rng=1)
    ratio = model.limit().kernel[:, 0] / model.initial_kernel
    assert ratio.mean() == pytest.approx(5**0.5, rel=0.01)  # a standard error of 0.1 %, corrections of order 1/d


def test_rounding_does_not_move_a_phase_boundary():
    tilted = scaling_phase(output=0.1 + 0.2 - 0.3, lr_in=-1.0, lr_out=-1.0, var_in=-1.0, var_out=-1.0)
    assert (tilted.phase, tilted.stability) == ("feature", "frozen")
    assert scaling_phase(output=0.1 + 0.2 - 0.3, var_in=-1, var_out=-1).stability == "stable"
    assert scaling_phase(output=1e-8, var_in=-1, var_out=-1).phase == "kernel"


def test_random_models_have_the_variances_that_were_asked_for_and_repeat():
    options = {"output": -1, "lr_in": 1, "lr_out": 0.5, "var_in": -1, "var_out": 1}
    model = SolvableModel.random(100, **options, x2=2.0, xy=-1.0, size=(20, 30), rng=5)
    assert model.w0.shape == (20, 30, 100)
    # 60000 weights: a relative standard error of 0.6 %.
    assert model.w0.var() == pytest.approx(0.01, rel=0.03)
    assert model.u0.var() == pytest.approx(100, rel=0.03)
    assert (model.scale.item(0), model.lr_in.item(0), model.lr_out.item(0)) == pytest.approx((0.01, 100, 10))
    assert (model.target == -0.5).all()
    again = SolvableModel.random(100, **options, size=(20, 30), rng=np.random.default_rng(5))
    np.testing.assert_array_equal(again.w0, model.w0)
    assert SolvableModel.random(3, rng=0).w0.shape == (3,)


# The tangent kernel of other models


def parameters(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def trained(model, inputs, n_steps=5, lr=0.1):
    """Parameters after some steps, the model as before."""
    before = parameters(model)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for _ in range(n_steps):
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()
    after = parameters(model)
    model.zero_grad(set_to_none=True)
    model.load_state_dict(before, strict=False)
    return before, after


def kernels(model, points, inputs):
    """Kernels (B C, B C) from autograd, output by output."""
    found = []
    for point in points:

        def outputs(values, model=model):
            return torch.func.functional_call(model, values, (inputs,)).flatten()

        jacobian = torch.func.jacrev(outputs)(point)
        flat = torch.cat([j.flatten(1) for j in jacobian.values()], 1)
        found.append(flat @ flat.T)
    return found


@pytest.mark.parametrize(
    "model",
    [
        mlp([4, 8, 3], generator=torch.Generator().manual_seed(0)),
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2)),
        nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 1)),
    ],
    ids=["perceptron", "layer norm", "convolution"],
)
def test_the_change_is_that_of_kernels_from_autograd(model):
    model = model.double()
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before, after = trained(model, inputs, lr=0.01)
    first, second = kernels(model, (before, after), inputs)
    change = ntk_change(model, before, after, inputs)
    assert change.relative == pytest.approx(float((second - first).norm() / first.norm()), rel=1e-9)
    assert change.trace_ratio == pytest.approx(float(second.trace() / first.trace()), rel=1e-9)
    assert change.distance == pytest.approx(kernel_distance(first, second), rel=1e-6)
    assert change.relative > 1e-3


def test_no_change_of_the_parameters_is_no_change_of_the_kernel():
    model, inputs = mlp([4, 8, 3], generator=torch.Generator().manual_seed(0)), torch.randn(5, 4)
    change = ntk_change(model, parameters(model), parameters(model), inputs)
    assert (change.relative, change.distance, change.trace_ratio) == (0.0, 0.0, 1.0)


def test_twice_the_weights_of_two_layers_are_four_times_the_kernel():
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)).double()
    before = parameters(model)
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    change = ntk_change(model, before, {name: 2 * value for name, value in before.items()}, inputs)
    assert (change.relative, change.trace_ratio) == pytest.approx((3, 4), rel=1e-12)
    assert change.distance < 1e-20


def test_the_kernel_of_a_solvable_model_changes_as_it_says():
    solved = SolvableModel(*ALIGNMENT[:2])
    end = solved.limit()
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)).double()

    def point(w, u):
        return {"0.weight": torch.tensor(w)[:, None], "1.weight": torch.tensor(u)[None]}

    inputs = torch.tensor([[1.0], [2.0], [-0.5]]).double()
    change = ntk_change(model, point(solved.w0, solved.u0), point(end.w[0], end.u[0]), inputs)
    assert change.trace_ratio == pytest.approx(mechanism(solved).kernel_ratio, rel=1e-12)
    assert change.relative == pytest.approx(change.trace_ratio - 1, rel=1e-12)
    assert change.distance < 1e-20


def test_parameters_that_are_not_trained_count_too():
    model, inputs = mlp([4, 8, 3], generator=torch.Generator().manual_seed(0)).double(), torch.randn(5, 4).double()
    before, after = trained(model, inputs, lr=0.01)
    whole = ntk_change(model, before, after, inputs)
    model[0].weight.requires_grad_(False)
    assert ntk_change(model, before, after, inputs) == whole
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert ntk_change(model, before, after, inputs) == whole


def test_a_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before, after = trained(model, inputs.detach())
    model[0].weight.grad = torch.ones(6, 4)
    model[3].bias.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    copies = {name: value.clone() for name, value in after.items()}
    random = torch.get_rng_state()
    ntk_change(model, before, after, inputs)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(after[name], value) for name, value in copies.items())
    assert torch.equal(model[0].weight.grad, torch.ones(6, 4))
    assert not model[3].bias.requires_grad
    assert model[3].weight.grad is None
    assert inputs.grad is None
    assert not model.training


def test_dtypes_are_those_of_the_model_and_parameters_of_any_dtype_are_taken():
    model, inputs = mlp([4, 8, 3], generator=torch.Generator().manual_seed(0)), torch.randn(5, 4)
    before = parameters(model)
    after = {name: (1.1 * value).double() for name, value in before.items()}
    change = ntk_change(model, before, after, inputs)
    rounded = {name: value.float() for name, value in after.items()}
    assert change == ntk_change(model, before, rounded, inputs)
    modules = {name: nn.Parameter(value) for name, value in before.items()}
    assert ntk_change(model, modules, after, inputs) == change


# Refusals

WEIGHTS = {"w0": [1.0, 0.5], "u0": [0.2, -0.3]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w0": [1.0, 2.0, 3.0]}, r"u0 must be of the shape of w0 \(3,\), got shape \(2,\)"),
        ({"u0": [[0.2, -0.3]]}, r"u0 must be of the shape of w0 \(2,\), got shape \(1, 2\)"),
        ({"w0": 1.0, "u0": 1.0}, r"w0 must be of shape \(..., d\) with d >= 1, got shape \(\)"),
        ({"w0": [], "u0": []}, r"w0 must be of shape \(..., d\) with d >= 1, got shape \(0,\)"),
        ({"w0": np.zeros((3, 0)), "u0": np.zeros((3, 0))}, r"w0 must be .* with d >= 1, got shape \(3, 0\)"),
        ({"w0": [1.0, NAN]}, "w0 must be finite, got nan at index 1"),
        ({"u0": [INF, 1.0]}, "u0 must be finite, got inf at index 0"),
        ({"w0": [1e31, 1.0]}, r"w0 must be at most 1e\+30 in modulus, got 1e\+31"),
        ({"lr_in": 0.0}, "lr_in must be > 0, got 0"),
        ({"lr_in": -1.0}, "lr_in must be > 0, got -1"),
        ({"lr_in": NAN}, "lr_in must be finite, got nan"),
        ({"lr_out": 0.0}, "lr_out must be > 0, got 0"),
        ({"lr_out": INF}, "lr_out must be finite, got inf"),
        ({"lr_out": 1e-40}, "lr_out must be at least 1e-30, got 1e-40"),
        ({"scale": -2.0}, "scale must be > 0, got -2"),
        ({"scale": 1e40}, r"scale must be at most 1e\+30 in modulus, got 1e\+40"),
        ({"x2": 0.0}, "x2 must be > 0, got 0"),
        ({"x2": NAN}, "x2 must be finite, got nan"),
        ({"xy": INF}, "xy must be finite, got inf"),
        ({"xy": -1e31}, r"xy must be at most 1e\+30 in modulus, got -1e\+31"),
        ({"xy": [1.0, 2.0]}, r"xy must be a number, or of a shape that broadcasts to the batch \(\), got shape \(2,\)"),
        ({"lr_in": [[1.0]]}, r"lr_in must be a number, or of a shape that broadcasts to the batch \(\)"),
    ],
)
def test_bad_models_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SolvableModel(**WEIGHTS | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w0": "weights"}, "w0 must be real numbers, got str"),
        ({"u0": None}, "u0 must be real numbers, got NoneType"),
        ({"w0": [[1.0], [1.0, 2.0]]}, "w0 must be an array of real numbers, got list"),
        ({"u0": [1j, 0]}, "u0 must be real numbers, got list"),
        ({"lr_in": True}, "lr_in must be real numbers, got bool"),
        ({"scale": "1"}, "scale must be real numbers, got str"),
        ({"xy": None}, "xy must be real numbers, got NoneType"),
    ],
)
def test_models_of_a_wrong_type_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        SolvableModel(**WEIGHTS | arguments)


def test_a_batch_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"xy must be a number, or .* to the batch \(3,\), got shape \(2,\)"):
        SolvableModel(np.ones((3, 2)), np.ones((3, 2)), xy=[1.0, 2.0])


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        ([0.0, -1.0], ValueError, "t must be >= 0 steps, got -1"),
        ([-INF], ValueError, "t must be >= 0 steps, got -inf"),
        ([NAN], ValueError, "t must be >= 0 steps, got nan"),
        ([[0.0, 1.0]], ValueError, r"t must be of shape \(T,\), got shape \(1, 2\)"),
        ("now", TypeError, "t must be real numbers, got str"),
        (None, TypeError, "t must be real numbers, got NoneType"),
    ],
)
def test_bad_times_are_refused(t, error, message):
    with pytest.raises(error, match=message):
        build(ALIGNMENT).trajectory(t)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel_tol": -0.1}, ValueError, "kernel_tol must be >= 0, got -0.1"),
        ({"kernel_tol": NAN}, ValueError, "kernel_tol must be finite, got nan"),
        ({"angle_tol": 1.5}, ValueError, "angle_tol must be at most 1, got 1.5"),
        ({"angle_tol": [0.1, 0.2]}, ValueError, r"angle_tol must be a single number, got shape \(2,\)"),
        ({"angle_tol": "small"}, TypeError, "angle_tol must be real numbers, got str"),
        ({"model": WEIGHTS}, TypeError, "model must be a SolvableModel, got dict"),
    ],
)
def test_bad_questions_for_a_mechanism_are_refused(arguments, error, message):
    options = {"model": build(ALIGNMENT), **arguments}
    with pytest.raises(error, match=message):
        mechanism(options.pop("model"), **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"output": NAN}, ValueError, "output must be finite, got nan"),
        ({"lr_in": INF}, ValueError, "lr_in must be finite, got inf"),
        ({"var_out": 101}, ValueError, "var_out must be at most 100 in modulus, got 101"),
        ({"lr_out": [1.0]}, ValueError, r"lr_out must be a single number, got shape \(1,\)"),
        ({"var_in": "wide"}, TypeError, "var_in must be real numbers, got str"),
        ({"output": None}, TypeError, "output must be real numbers, got NoneType"),
    ],
)
def test_bad_exponents_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        scaling_phase(**arguments)
    with pytest.raises(error, match=message):
        SolvableModel.random(10, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"width": 0}, ValueError, "width must be >= 1, got 0"),
        ({"width": 2.5}, TypeError, "width must be an integer, got float"),
        ({"size": -1}, ValueError, "size must be >= 0, got -1"),
        ({"size": (2, 1.5)}, TypeError, "size must be an integer, got float"),
        ({"rng": "seed"}, TypeError, "rng must be an int, a numpy Generator or None, got str"),
        ({"output": 40}, ValueError, "output must be such that this power of the width is between 1e-29 and 1e29"),
        ({"x2": 0}, ValueError, "x2 must be > 0, got 0"),
    ],
)
def test_bad_random_models_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        SolvableModel.random(**{"width": 10, **arguments})


class Noncopyable(nn.Linear):
    def __deepcopy__(self, memo):
        raise RuntimeError("no")


def small(**changes):
    model = mlp([4, 3, 2], generator=torch.Generator().manual_seed(0))
    point = parameters(model)
    return {"model": model, "before": point, "after": dict(point), "inputs": torch.ones(2, 4), **changes}


def without(name):
    return {key: value for key, value in small()["before"].items() if key != name}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (small(model=lambda x: x), TypeError, "model must be a torch.nn.Module, got function"),
        (small(model=None), TypeError, "model must be a torch.nn.Module, got NoneType"),
        (small(before=[1.0]), TypeError, "before must be a dict of tensors, got list"),
        (small(after=None), TypeError, "after must be a dict of tensors, got NoneType"),
        (small(before=without("0.bias")), ValueError, r"before must be a dict with the names .*, got missing '0.bias'"),
        (small(after=without("2.weight")), ValueError, r"after must be a dict .*, got missing '2.weight'"),
        (small(after={}), ValueError, r"after must be a dict .*, got missing '0.bias'"),
        (small(after=small()["before"] | {"extra": torch.ones(1)}), ValueError, r"after must .*, got unknown 'extra'"),
        (
            small(after=small()["before"] | {"0.bias": [0.0] * 3}),
            TypeError,
            r"after\['0.bias'\] must be a tensor, got list",
        ),
        (
            small(before=small()["before"] | {"0.bias": torch.ones(4)}),
            ValueError,
            r"before\['0.bias'\] must be of shape \(3,\), got shape \(4,\)",
        ),
        (
            small(after=small()["before"] | {"0.bias": torch.tensor([1.0, NAN, 0.0])}),
            ValueError,
            r"after\['0.bias'\] must be finite real numbers, got nan",
        ),
        (
            small(after=small()["before"] | {"0.bias": torch.ones(3).long()}),
            ValueError,
            r"after\['0.bias'\] must be finite",
        ),
        (small(inputs=torch.ones(0, 4)), ValueError, r"inputs must be of at least one sample, got shape \(0, 4\)"),
        (small(inputs=torch.tensor(1.0)), ValueError, r"inputs must be of at least one sample, got shape \(\)"),
        (small(inputs=np.ones((2, 4))), TypeError, "inputs must be a tensor, got ndarray"),
        (small(inputs=torch.ones(2, 5)), ValueError, "inputs must be a batch that model accepts"),
        (small(inputs=torch.ones(2, 4).double()), ValueError, "inputs must be a batch that model accepts"),
        (small(inputs=torch.ones(2, 4, device="meta")), ValueError, "inputs must be on the device of the model"),
        (small(inputs=torch.full((2, 4), NAN)), ValueError, "model must be finite"),
        (small(model=nn.ReLU(), before={}, after={}), ValueError, "model must be one with trainable parameters"),
        (
            small(model=nn.LazyLinear(2), before={"weight": torch.ones(2, 4), "bias": torch.ones(2)}),
            ValueError,
            "model must be one with real, initialised",
        ),
    ],
)
def test_bad_arguments_of_a_kernel_change_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ntk_change(**arguments)


def test_a_model_in_training_mode_that_cannot_be_copied_or_without_a_kernel_is_refused():
    noisy = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"model must be in eval mode \(call model.eval\(\)\), got Dropout"):
        ntk_change(noisy, parameters(noisy), parameters(noisy), torch.ones(2, 4))
    stubborn = Noncopyable(4, 2)
    with pytest.raises(ValueError, match="model must be a module that copy.deepcopy can copy, got RuntimeError: no"):
        ntk_change(stubborn, parameters(stubborn), parameters(stubborn), torch.ones(2, 4))
    silent = nn.Linear(4, 2, bias=False)
    with pytest.raises(ValueError, match="before must be parameters at which the tangent kernel is not 0 everywhere"):
        ntk_change(silent, parameters(silent), parameters(silent), torch.zeros(2, 4))
