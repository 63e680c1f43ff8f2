import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from symlearn.mirror_symmetry import ConstraintBySymmetry, critical_weight_decay, normal_hessian
from symlearn.models import mlp
from symlearn.symmetry import MirrorSymmetry


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the threshold of weight decay ---


def test_the_threshold_of_a_matrix_done_by_hand():
    mirror = MirrorSymmetry(np.array([1, -1]) / math.sqrt(2))
    assert critical_weight_decay([[2, 1], [1, -3]], mirror) == pytest.approx(1.5, rel=1e-12)


def test_a_convex_direction_needs_no_weight_decay():
    assert critical_weight_decay(np.diag([1.0, 2.0]), MirrorSymmetry.flip(2, [0])) == 0


def test_the_threshold_of_a_product_is_twice_the_correlation():
    c = 0.6189
    hessian = torch.tensor([[0, -2 * c], [-2 * c, 0]], dtype=torch.float64)
    for mirror in (MirrorSymmetry.flip(2, [0, 1]), MirrorSymmetry([0.5**0.5, 0.5**0.5])):
        assert critical_weight_decay(hessian, mirror) == pytest.approx(2 * c, rel=1e-12)
    assert critical_weight_decay(hessian, MirrorSymmetry([0.5**0.5, -(0.5**0.5)])) == 0


@pytest.mark.parametrize(("factor", "collapsed"), [(0.97, False), (1.03, True)])
def test_the_minimum_leaves_the_mirror_exactly_at_the_threshold(factor, collapsed):
    c, s = 0.6189, 1.1
    decay = factor * critical_weight_decay([[0, -2 * c], [-2 * c, 0]], MirrorSymmetry.flip(2, [0, 1]))
    u, w = np.meshgrid(*2 * [np.linspace(-1, 1, 401)])
    loss = s * (u * w) ** 2 - 2 * c * u * w + decay / 2 * (u**2 + w**2)
    best = np.unravel_index(loss.argmin(), loss.shape)
    assert (abs(u[best]) < 1e-12 and abs(w[best]) < 1e-12) == collapsed


@given(st.integers(0, 1000), st.integers(2, 7))
@settings(deadline=None, max_examples=30)
def test_the_threshold_is_the_smallest_curvature_within_the_normal_space(seed, n):
    rng = np.random.default_rng(seed)
    hessian = rng.normal(size=(n, n))
    hessian = hessian + hessian.T
    mirror = MirrorSymmetry.from_constraint(rng.normal(size=(rng.integers(1, n + 1), n)))
    expected = max(0, -np.linalg.eigvalsh(mirror.O.T @ hessian @ mirror.O)[0])
    assert critical_weight_decay(hessian, mirror) == pytest.approx(expected, abs=1e-12)
    assert critical_weight_decay(3 * hessian, mirror) == pytest.approx(3 * expected, abs=1e-11)


def test_an_asymmetry_of_rounding_is_forgiven_and_a_larger_one_is_not():
    hessian = np.diag([-2.0, 1.0])
    hessian[0, 1] = 1e-7
    assert critical_weight_decay(hessian, MirrorSymmetry.flip(2, [0])) == pytest.approx(2)
    hessian[0, 1] = 1e-4
    with pytest.raises(ValueError, match="hessian must be symmetric"):
        critical_weight_decay(hessian, MirrorSymmetry.flip(2, [0]))


# --- curvature normal to a mirror ---


def network_loss(seed=0):
    model = mlp([3, 4, 2], "tanh", generator=generator(seed)).double()
    x, y = (torch.randn(12, n, generator=generator(seed + 1), dtype=torch.float64) for n in (3, 2))
    params = {k: p.detach() for k, p in model.named_parameters()}
    return (lambda p: (torch.func.functional_call(model, p, (x,)) - y).square().mean(1)), params


def full_hessian(loss, params):
    flat = torch.cat([p.flatten() for p in params.values()])
    sizes = [p.numel() for p in params.values()]

    def mean_loss(theta):
        parts = theta.split(sizes)
        return loss({k: part.view_as(p) for (k, p), part in zip(params.items(), parts, strict=True)}).mean()

    return torch.func.hessian(mean_loss)(flat).numpy()


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 64])
def test_the_normal_curvature_of_a_network_is_a_block_of_its_hessian(chunk_size):
    loss, params = network_loss()
    rng = np.random.default_rng(0)
    hessian = full_hessian(loss, params)
    for mirror in (
        MirrorSymmetry.swap(26, [0, 1, 2, 12, 16, 20], [3, 4, 5, 13, 17, 21]),
        MirrorSymmetry.flip(26, [0, 1, 2]),
        MirrorSymmetry.from_constraint(rng.normal(size=(7, 26))),
    ):
        block = normal_hessian(loss, params, mirror, chunk_size=chunk_size)
        np.testing.assert_allclose(block, mirror.O.T @ hessian @ mirror.O, atol=1e-13)
        assert (block == block.T).all()
        assert max(0, -np.linalg.eigvalsh(block)[0]) == pytest.approx(critical_weight_decay(hessian, mirror), abs=1e-12)


def test_a_flat_vector_will_do_as_parameters():
    block = normal_hessian(lambda t: t[0] ** 2 * t[1], torch.tensor([1.0, 5.0]), MirrorSymmetry.flip(2, [0]))
    np.testing.assert_allclose(block, [[10.0]])


def test_the_curvature_of_a_linear_loss_is_zero():
    block = normal_hessian(lambda t: t.sum(), torch.ones(3), MirrorSymmetry.flip(3, [0, 2]))
    np.testing.assert_array_equal(block, np.zeros((2, 2)))


def test_curvature_works_without_gradients_and_leaves_everything_as_it_was():
    loss, params = network_loss()
    watched = {k: p.clone().requires_grad_() for k, p in params.items()}
    before = {k: p.detach().clone() for k, p in watched.items()}
    state = torch.random.get_rng_state()
    with torch.no_grad():
        normal_hessian(loss, watched, MirrorSymmetry.flip(26, [0]))
        assert not torch.is_grad_enabled()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None and p.requires_grad and torch.equal(p, before[k]) for k, p in watched.items())


def test_the_curvature_of_a_million_parameters_fits_when_the_mirror_is_thin():
    n = 1_000_000
    theta = torch.linspace(-1, 1, n)
    block = normal_hessian(lambda t: (t**3).sum(), theta, MirrorSymmetry.swap(n, [0, 1], [n - 1, n - 2]))
    # (6 t_i + 6 t_j) / 2 for the exchanged pair, and t_j = -t_i here
    np.testing.assert_allclose(block, np.zeros((2, 2)), atol=1e-5)


# --- R1 to R3 on a network: what the mirror does ---


def test_no_gradient_points_off_the_mirror_and_the_hessian_is_block_diagonal():
    loss, params = network_loss()
    mirror = MirrorSymmetry.swap(26, [0, 1, 2, 12, 16, 20], [3, 4, 5, 13, 17, 21])
    assert mirror.violation(loss, params) < 1e-14
    on_mirror = mirror.project(params)
    gradient = torch.func.grad(lambda p: loss(p).mean())(on_mirror)
    assert float(mirror.distance(gradient)) < 1e-14
    hessian = full_hessian(loss, on_mirror)
    normal = mirror.O @ mirror.O.T
    assert np.abs(normal @ hessian @ (np.eye(26) - normal)).max() < 1e-13


def test_the_force_off_the_mirror_is_the_integral_of_the_curvature():
    loss, params = network_loss()
    mirror = MirrorSymmetry.swap(26, [0, 1, 2, 12, 16, 20], [3, 4, 5, 13, 17, 21])
    on_mirror, force = mirror.project(params), torch.func.grad(lambda p: loss(p).mean())(params)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    integral = 0
    for node, weight in zip(nodes, weights, strict=True):
        point = {k: torch.lerp(on_mirror[k], params[k], (1 + node) / 2) for k in params}
        integral = integral + weight / 2 * normal_hessian(loss, point, mirror)
    expected = integral @ mirror.coordinates(params).numpy()
    np.testing.assert_allclose(mirror.coordinates(force).numpy(), expected, atol=1e-12)


# --- a constraint by symmetry ---


def quadratic(seed=3):
    root = torch.randn(8, 8, generator=generator(seed), dtype=torch.float64)
    Q = root @ root.T / 8 + torch.eye(8, dtype=torch.float64)
    target = torch.randn(8, generator=generator(seed + 1), dtype=torch.float64)
    constraint = np.random.default_rng(seed).normal(size=(3, 8))
    return Q, target, constraint


def constrained_minimum(Q, target, basis, offset):
    free = torch.linalg.svd(basis.T)[2][basis.shape[1] :].T
    best = offset + free @ torch.linalg.solve(free.T @ Q @ free, free.T @ (target - Q @ offset))
    return best, basis.T @ (Q @ best - target)


def train(constraint, weight_decay, *, gates="element", value=None, n_steps=3000, by_optimizer=False, start=0.3):
    Q, target, _ = quadratic()
    layer = nn.Linear(8, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.fill_(start)
    parametrize.register_parametrization(layer, "weight", ConstraintBySymmetry(constraint, gates=gates, value=value))
    parts = layer.parametrizations.weight
    groups = [
        {"params": [parts.original0]},
        {"params": [parts.original1, parts.original2], "weight_decay": weight_decay if by_optimizer else 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.15)
    for _ in range(n_steps):
        theta = layer.weight.flatten()
        loss = theta @ Q @ theta / 2 - target @ theta
        if not by_optimizer:
            loss = loss + ConstraintBySymmetry.penalty(layer, weight_decay)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return layer.weight.detach().flatten()


@pytest.mark.parametrize("gates", ["element", "group"])
def test_above_the_threshold_the_constrained_minimum_is_reached_exactly(gates):
    Q, target, constraint = quadratic()
    basis = torch.tensor(MirrorSymmetry.from_constraint(constraint).O)
    best, force = constrained_minimum(Q, target, basis, torch.zeros(8, dtype=torch.float64))
    needed = float(force.abs().max() if gates == "element" else force.norm())
    above = train(constraint, 1.2 * needed, gates=gates)
    assert float((basis.T @ above).norm()) < 1e-13
    torch.testing.assert_close(above, best, rtol=0, atol=1e-10)
    below = train(constraint, 0.8 * needed, gates=gates)
    assert float((basis.T @ below).norm()) > 0.02


def proximal(Q, target, basis, strength, gates, n_steps=20000):
    theta = torch.zeros(8, dtype=torch.float64)
    lr = 0.9 / float(torch.linalg.eigvalsh(Q)[-1])
    for _ in range(n_steps):
        theta = theta - lr * (Q @ theta - target)
        x = basis.T @ theta
        size = x.abs() if gates == "element" else x.norm()
        theta = theta + basis @ (x * (1 - lr * strength / size).clamp(min=0) - x)
    return theta


@pytest.mark.parametrize("gates", ["element", "group"])
def test_the_strength_of_the_induced_norm_is_the_weight_decay_itself(gates):
    Q, target, constraint = quadratic()
    basis = torch.tensor(MirrorSymmetry.from_constraint(constraint).O)
    _, force = constrained_minimum(Q, target, basis, torch.zeros(8, dtype=torch.float64))
    strength = 0.5 * float(force.norm())
    trained = train(constraint, strength, gates=gates, n_steps=4000)
    torch.testing.assert_close(trained, proximal(Q, target, basis, strength, gates), rtol=0, atol=1e-8)


def test_weight_decay_of_the_optimizer_on_the_gates_does_the_same_as_the_penalty():
    _, _, constraint = quadratic()
    both = [train(constraint, 0.7, by_optimizer=flag, n_steps=50) for flag in (True, False)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-14)


def test_an_affine_constraint_is_met_exactly():
    Q, target, constraint = quadratic()
    value = np.array([1.0, -2.0, 0.5])
    module = ConstraintBySymmetry(constraint, value=value)
    best, force = constrained_minimum(Q, target, module.O, module.offset)
    trained = train(constraint, 1.2 * float(force.abs().max()), value=value, n_steps=4000)
    np.testing.assert_allclose(constraint @ trained.numpy(), value, atol=1e-12)
    torch.testing.assert_close(trained, best, rtol=0, atol=1e-9)


def test_a_gate_may_change_the_sign_of_its_product():
    target = -2.0
    layer = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    parametrize.register_parametrization(layer, "weight", ConstraintBySymmetry([[1.0]]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        ((layer.weight - target) ** 2).sum().backward()
        optimizer.step()
    assert float(layer.weight.detach()) == pytest.approx(target, abs=1e-6)


@given(st.integers(0, 1000), st.sampled_from(["element", "group"]), st.floats(0.01, 5))
@settings(deadline=None, max_examples=40)
def test_right_inverse_reproduces_the_weight_with_the_stated_imbalance(seed, gates, imbalance):
    rng = np.random.default_rng(seed)
    constraint = rng.normal(size=(rng.integers(1, 5), 6))
    module = ConstraintBySymmetry(constraint, gates=gates, imbalance=imbalance)
    weight = torch.tensor(rng.normal(size=(2, 3)))
    w, u, z = module.right_inverse(weight)
    torch.testing.assert_close(module(w, u, z), weight, rtol=0, atol=1e-12)
    x = module.O.T @ weight.flatten()
    size = x.abs() if gates == "element" else x.norm().reshape(1)
    kappa = imbalance * float(size.square().mean().sqrt())
    gap = u**2 - (z**2 if gates == "element" else (z**2).sum())
    torch.testing.assert_close(gap, torch.full_like(gap, 2 * kappa), rtol=1e-9, atol=1e-12)
    layer = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    parametrize.register_parametrization(layer, "weight", module)
    start = ConstraintBySymmetry.penalty(layer, 0.7)
    assert float(start.detach()) == pytest.approx(0.7 * float((kappa**2 + size**2).sqrt().sum()), rel=1e-9)


def test_a_weight_that_satisfies_the_constraint_starts_at_the_bare_imbalance():
    _, u, z = ConstraintBySymmetry([[1, 1]], imbalance=0.3).right_inverse(torch.tensor([1.0, -1.0]))
    assert float(u) == pytest.approx(math.sqrt(0.6), rel=1e-6)
    assert float(z) == 0


def test_the_basis_is_that_of_the_mirror_and_dependent_rows_do_not_count_twice():
    constraint = np.array([[1.0, 2, 0], [2, 4, 0], [0, 0, 3]])
    module = ConstraintBySymmetry(constraint)
    np.testing.assert_array_equal(module.O.numpy(), MirrorSymmetry.from_constraint(constraint).O)
    assert module.O.shape == (3, 2)
    assert ConstraintBySymmetry(constraint[0]).O.shape == (3, 1)
    assert {name for name, _ in module.named_buffers()} == {"O", "offset"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_weight_keeps_its_dtype_and_shape(dtype):
    layer = nn.Conv1d(2, 3, 5).to(dtype)
    before = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", ConstraintBySymmetry(np.ones((1, 30))))
    assert layer.weight.dtype == dtype
    assert layer.weight.shape == before.shape
    rounding = 4 * torch.finfo(dtype).eps * float(before.abs().max())  # of sums with the largest weight
    torch.testing.assert_close(layer.weight, before, rtol=0, atol=rounding)
    layer(torch.zeros(1, 2, 9, dtype=dtype)).sum().backward()


def test_penalties_add_over_all_layers_and_a_shared_layer_counts_once():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3))
    model.append(model[2])
    for layer, n in ((model[0], 6), (model[2], 6)):
        parametrize.register_parametrization(layer, "weight", ConstraintBySymmetry(np.eye(n)[:2]))
    alone = [ConstraintBySymmetry.penalty(layer, 0.3) for layer in (model[0], model[2])]
    torch.testing.assert_close(ConstraintBySymmetry.penalty(model, 0.3), sum(alone))
    assert float(ConstraintBySymmetry.penalty(model, 0.0).detach()) == 0


def test_a_constrained_module_can_be_saved_copied_and_made_plain_again():
    layer = nn.Linear(4, 2)
    parametrize.register_parametrization(layer, "weight", ConstraintBySymmetry(np.ones((1, 8)), gates="group"))
    twin = nn.Linear(4, 2)
    parametrize.register_parametrization(twin, "weight", ConstraintBySymmetry(np.eye(8)[:1], gates="group"))
    twin.load_state_dict(layer.state_dict())
    torch.testing.assert_close(twin.weight, layer.weight, rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(layer).weight, layer.weight, rtol=0, atol=0)
    weight = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter)
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=0)


def test_a_constraint_says_what_it_is():
    assert "1 of 4 directions, gates='group'" in repr(ConstraintBySymmetry(np.ones(4), gates="group"))


# --- bad input ---

MIRROR = MirrorSymmetry.flip(2, [0])


@pytest.mark.parametrize(
    ("hessian", "symmetry", "error", "message"),
    [
        (np.ones((2, 3)), MIRROR, ValueError, r"hessian must be a square matrix, got shape \(2, 3\)"),
        (np.ones(2), MIRROR, ValueError, "hessian must be of shape"),
        (np.ones((0, 0)), MIRROR, ValueError, "hessian must be a square matrix"),
        ([[1, np.nan], [np.nan, 1]], MIRROR, ValueError, "hessian must be finite, got nan"),
        ([[1, np.inf], [np.inf, 1]], MIRROR, ValueError, "hessian must be finite, got inf"),
        ([[1, 2], [0, 1]], MIRROR, ValueError, "hessian must be symmetric, got an asymmetry of 2"),
        (np.eye(3), MIRROR, ValueError, r"hessian must be of shape \(2, 2\) like the symmetry, got shape \(3, 3\)"),
        (np.eye(1), MIRROR, ValueError, r"hessian must be of shape \(2, 2\) like the symmetry"),
        ("two", MIRROR, TypeError, "hessian must be"),
        (np.eye(2) * 1j, MIRROR, TypeError, "hessian must be real numbers"),
        (np.eye(2, dtype=bool), MIRROR, TypeError, "hessian must be real numbers"),
        (None, MIRROR, TypeError, "hessian must be real numbers"),
        (np.eye(2), np.eye(2), TypeError, "symmetry must be a MirrorSymmetry, got ndarray"),
        (np.eye(2), None, TypeError, "symmetry must be a MirrorSymmetry, got NoneType"),
    ],
)
def test_a_threshold_is_refused_for(hessian, symmetry, error, message):
    with pytest.raises(error, match=message):
        critical_weight_decay(hessian, symmetry)


@pytest.mark.parametrize(
    ("loss", "params", "symmetry", "options", "error", "message"),
    [
        (None, torch.ones(2), MIRROR, {}, TypeError, "loss must be a function of the parameters, got NoneType"),
        (torch.sum, torch.ones(2), "mirror", {}, TypeError, "symmetry must be a MirrorSymmetry, got str"),
        (torch.sum, torch.ones(3), MIRROR, {}, ValueError, r"params must be of shape \(2,\) like the symmetry"),
        (torch.sum, torch.ones(2, 1), MIRROR, {}, ValueError, r"params must be of shape \(2,\) like the symmetry"),
        (torch.sum, np.ones(2), MIRROR, {}, TypeError, "params must be a tensor or a dict of tensors, got ndarray"),
        (torch.sum, {"a": np.ones(2)}, MIRROR, {}, TypeError, r"params\['a'\] must be a tensor, got ndarray"),
        (torch.sum, {"a": torch.ones(3)}, MIRROR, {}, ValueError, "params must be of 2 entries in all"),
        (torch.sum, torch.ones(2, dtype=torch.long), MIRROR, {}, ValueError, "params must be tensors of floating"),
        (torch.sum, torch.tensor([1, torch.nan]), MIRROR, {}, ValueError, "params must be finite"),
        (torch.sum, torch.ones(2), MIRROR, {"chunk_size": 0}, ValueError, "chunk_size must be >= 1, got 0"),
        (torch.sum, torch.ones(2), MIRROR, {"chunk_size": 1.5}, TypeError, "chunk_size must be an integer, got float"),
        (lambda t: 1.0, torch.ones(2), MIRROR, {}, TypeError, r"loss\(params\) must be a tensor, got float"),
        (lambda t: t[:0], torch.ones(2), MIRROR, {}, ValueError, r"loss\(params\) must be a non-empty tensor"),
        (lambda t: t.sum().long(), torch.ones(2), MIRROR, {}, ValueError, r"loss\(params\) must be a non-empty tensor"),
        (lambda t: t.sum() ** 0.5, torch.zeros(2), MIRROR, {}, ValueError, "loss must be twice differentiable"),
    ],
)
def test_a_curvature_is_refused_for(loss, params, symmetry, options, error, message):
    with pytest.raises(error, match=message):
        normal_hessian(loss, params, symmetry, **options)


@pytest.mark.parametrize(
    ("constraint", "options", "error", "message"),
    [
        ([[np.nan, 1]], {}, ValueError, "constraint must be finite, got nan"),
        ([[np.inf, 1]], {}, ValueError, "constraint must be finite, got inf"),
        (np.zeros((2, 3)), {}, ValueError, "constraint must be of rank >= 1, got rank 0"),
        (np.ones((0, 3)), {}, ValueError, "constraint must be of rank >= 1"),
        (np.ones((1, 1, 3)), {}, ValueError, r"constraint must be of shape \(m, n\) or \(n,\)"),
        (1.0, {}, ValueError, r"constraint must be of shape \(m, n\) or \(n,\)"),
        ("sum", {}, TypeError, "constraint must be"),
        ([[1, 1]], {"gates": "both"}, ValueError, "gates must be one of 'element', 'group', got 'both'"),
        ([[1, 1]], {"gates": 1}, TypeError, "gates must be one of 'element', 'group', got int"),
        ([[1, 1]], {"imbalance": 0}, ValueError, "imbalance must be > 0, got 0"),
        ([[1, 1]], {"imbalance": -1.0}, ValueError, "imbalance must be > 0, got -1"),
        ([[1, 1]], {"imbalance": np.nan}, ValueError, "imbalance must be finite, got nan"),
        ([[1, 1]], {"imbalance": [0.1, 0.2]}, ValueError, "imbalance must be a single number"),
        ([[1, 1]], {"imbalance": "0.1"}, TypeError, "imbalance must be real numbers"),
        ([[1, 1]], {"value": [1, 2]}, ValueError, r"value must be of shape \(1,\)|value must be of shape"),
        ([[1, 1]], {"value": [np.nan]}, ValueError, "value must be finite"),
        ([[1, 1], [2, 2]], {"value": [1, 1]}, ValueError, "value must be attainable"),
    ],
)
def test_a_constraint_is_refused_for(constraint, options, error, message):
    with pytest.raises(error, match=message):
        ConstraintBySymmetry(constraint, **options)


def test_a_constraint_with_the_wrong_number_of_columns_is_refused_at_registration():
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="constraint must be of 6 columns, one per entry of the weight, got 5 columns"):
        parametrize.register_parametrization(layer, "weight", ConstraintBySymmetry(np.ones((1, 5))))


def test_a_weight_of_integers_is_refused():
    with pytest.raises(ValueError, match=r"weight must be a tensor of floating-point numbers, got dtype torch.int64"):
        ConstraintBySymmetry(np.ones(2)).right_inverse(torch.ones(2, dtype=torch.long))
    with pytest.raises(TypeError, match="weight must be a tensor, got ndarray"):
        ConstraintBySymmetry(np.ones(2)).right_inverse(np.ones(2))


@pytest.mark.parametrize(
    ("module", "weight_decay", "error", "message"),
    [
        (nn.Linear(2, 1), 0.1, ValueError, "module must be a module with a ConstraintBySymmetry, got a Linear without"),
        ("layer", 0.1, TypeError, r"module must be a torch.nn.Module, got str"),
        (nn.Linear(2, 1), -0.1, ValueError, r"weight_decay must be >= 0, got -0.1"),
        (nn.Linear(2, 1), math.inf, ValueError, "weight_decay must be finite, got inf"),
        (nn.Linear(2, 1), math.nan, ValueError, "weight_decay must be finite, got nan"),
        (nn.Linear(2, 1), "much", TypeError, "weight_decay must be real numbers, got str"),
        (nn.Linear(2, 1), [0.1, 0.1], ValueError, "weight_decay must be a single number"),
    ],
)
def test_a_penalty_is_refused_for(module, weight_decay, error, message):
    with pytest.raises(error, match=message):
        ConstraintBySymmetry.penalty(module, weight_decay)
