"""Tests of what an audit reports: table, HTML, picture, JSON, measures of every family and unit, recommendations."""

import json
import math
import re
from collections import OrderedDict

import matplotlib.pyplot as plt
import pytest
import torch
from audit_models import GPT, mlp, normal, resnet18, shaken, tokens, vgg
from torch import nn
from torch.nn.functional import cross_entropy

from symlearn.audit import audit, physical_prune, rebalance
from symlearn.symmetry import UnitSymmetry


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def collapsed():
    """Two dead units, a parallel copy, and an equal pair with equal readers; out of balance."""
    torch.manual_seed(0)
    model = mlp(8, 12, 9, 3)
    with torch.no_grad():
        first, second = model[0], model[2]
        first.weight[1] = first.bias[1] = 0
        second.weight[:, 4] = 0
        first.weight[2], first.bias[2] = 2.5 * first.weight[0], 2.5 * first.bias[0]
        first.weight[5], first.bias[5], second.weight[:, 5] = first.weight[6], first.bias[6], second.weight[:, 6]
        first.weight.mul_(4)
        first.bias.mul_(4)
    inputs = normal(40, 8)
    return model, inputs, audit(model, inputs)


@pytest.fixture(scope="module")
def with_norms():
    torch.manual_seed(0)
    model = shaken(vgg(True))
    return model, normal(4, 3, 16, 16), audit(model, normal(4, 3, 16, 16))


def advice(report, words):
    return [each for each in report.recommendations if words in each.finding]


def test_the_report_survives_json(collapsed, with_norms):
    for _, _, report in (collapsed, with_norms):
        told = report.to_dict()
        assert json.loads(json.dumps(told)) == told
        assert len(told["recommendations"]) == len(report.recommendations) > 0
        assert set(told["units"][0]) == {
            *("space", "units", "dead", "duplicates", "silent", "trapped", "rank", "effective_rank")
        }


def test_numbers_that_are_not_finite_are_null_in_json(with_norms):
    scales = [each for each in with_norms[2].to_dict()["symmetries"] if each["kind"] == "scale"]
    assert scales
    assert all(each["imbalance"] is None and each["noise_distance"] is None for each in scales)


def test_the_printed_report_names_every_family_and_every_recommendation(collapsed):
    _, _, report = collapsed
    text = str(report)
    assert text.startswith("Sequential: 255 parameters, 21 flat directions (8.2%)")
    for each in (*report.symmetries, *report.broken):
        assert re.search(rf"{each.kind} .*{each.incoming[0]}", text)
    words = " ".join(text.split())
    for each in report.recommendations:
        for told in (each.finding, each.action, each.predicted, each.chapter):
            assert " ".join(told.split()) in words
    assert max(len(line) for line in text.splitlines() if not line.startswith("     do ")) < 100


def test_the_representation_is_one_short_line(collapsed):
    assert repr(collapsed[2]) == "<AuditReport of Sequential: 255 parameters, 4 symmetries, 3 recommendations>"


def test_the_columns_of_the_printed_tables_line_up(collapsed):
    lines = str(collapsed[2]).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("  kind"))
    column = lines[start].index("parameters in / out")
    rows = lines[start + 1 : start + 5]
    assert all(row[column - 2 : column] == "  " and row[column] != " " for row in rows)


def test_a_long_table_is_told_in_patterns_which_lose_no_unit():
    report = audit(shaken(GPT()), tokens(2, 12, high=50))
    text = str(report)
    assert "blocks.*.ln1.weight" in text
    table = text[text.index("Symmetries") : text.index("No symmetries")]
    rows = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()[2:] if line.strip()]
    assert sum(int(row[1]) for row in rows) == len(report.symmetries)
    assert sum(int(row[2].replace(",", "")) for row in rows) == sum(each.units for each in report.symmetries)


def test_html_is_self_contained_and_escapes_names():
    named = OrderedDict([("a<b>", nn.Linear(4, 3)), ("relu", nn.ReLU()), ("c&d", nn.Linear(3, 2))])
    html = audit(shaken(nn.Sequential(named)), normal(9, 4))._repr_html_()
    assert "a&lt;b&gt;.weight" in html
    assert "c&amp;d.weight" in html
    assert "a<b>" not in html
    assert "http" not in html
    for tag in ("div", "table", "tr", "td", "th", "p", "h4"):
        assert html.count(f"<{tag}>") + html.count(f"<{tag} ") == html.count(f"</{tag}>")


def test_the_picture_shows_violations_imbalances_and_units(collapsed):
    _, _, report = collapsed
    before = dict(plt.rcParams)
    figure = report.plot()
    violations, units, imbalances = figure.axes
    assert violations.get_xscale() == "log"
    two_sided = [0.0 if math.isnan(each.imbalance) else each.imbalance for each in report.symmetries]
    assert [bar.get_width() for bar in imbalances.patches] == pytest.approx(two_sided)
    dead = [bar.get_width() for bar in units.patches[: len(report.units)]]
    assert dead == pytest.approx([2 / 12, 0])
    assert dict(plt.rcParams) == before
    plt.close(figure)


def test_the_picture_of_a_model_without_a_symmetry_is_drawn():
    plt.close(audit(shaken(mlp(4, 3)), normal(9, 4)).plot())


def test_charge_is_the_largest_of_the_symmetrys_own(with_norms):
    model, _, report = with_norms
    params = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
    for each in report.symmetries:
        if isinstance(each.symmetry, UnitSymmetry):
            assert each.charge == pytest.approx(float(each.symmetry.charge(params).abs().max()))


def test_the_charge_of_a_block_is_its_largest_eigenvalue():
    model = shaken(mlp(6, 5, 3, activation=None))
    (found,) = [each for each in audit(model, normal(9, 6)).symmetries if each.kind == "gl"]
    first, second = model[0].weight.double(), model[1].weight.double()
    first, second = first.detach(), second.detach()
    bias = model[0].bias.detach().double()[:, None]
    matrix = first @ first.T + bias @ bias.T - second.T @ second
    assert found.charge == pytest.approx(float(torch.linalg.eigvalsh(matrix).abs().max()), rel=1e-6)


def test_the_charge_of_a_translation_is_a_sum_along_its_axis():
    model = shaken(GPT(blocks=1))
    (found,) = [each for each in audit(model, tokens(2, 12, high=50)).symmetries if each.incoming == ("wpe.weight",)]
    assert found.charge == pytest.approx(float(model.wpe.weight.detach().double().sum(1).abs().max()))


def test_saliency_is_conserved_by_exact_families_and_not_by_near_misses():
    model = shaken(mlp(6, 8, 8, 3, activation=nn.ReLU))
    found = [each.conservation for each in audit(model, normal(20, 6)).symmetries if each.kind == "rescaling"]
    assert len(found) == 2
    assert max(found) < 1e-12
    model = shaken(mlp(6, 8, 8, 3, activation=nn.Tanh))
    near = [each.conservation for each in audit(model, normal(20, 6)).broken]
    assert min(near) > 1e-2


def test_conservation_is_left_open_where_running_statistics_move_too(with_norms):
    assert all(math.isnan(each.conservation) for each in with_norms[2].symmetries if each.kind == "scale")


def test_rank_and_effective_rank_are_those_of_the_incoming_weights():
    model = shaken(mlp(30, 12, 3))
    with torch.no_grad():
        model[0].weight[6:] = model[0].weight[:6] + 1e-9  # below the resolution of float32
        model[0].bias[6:] = model[0].bias[:6]
    (space,) = audit(model, normal(40, 30)).units
    matrix = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach().double()
    share = torch.linalg.svdvals(matrix)
    share = share / share.sum()
    assert space.rank == 6
    assert space.effective_rank == pytest.approx(float(torch.exp(-(share * share.clamp_min(1e-30).log()).sum())), 1e-3)


def test_equal_singular_values_have_full_effective_rank():
    model = mlp(4, 4, 2).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[0].bias.zero_()
    (space,) = audit(model, normal(9, 4)).units
    assert (space.rank, space.effective_rank) == (4, pytest.approx(4))


def test_only_pairs_with_equal_readers_are_trapped(collapsed):
    space = collapsed[2].units[0]
    assert set(space.duplicates) == {(0, 2), (5, 6)}
    assert space.trapped == ((5, 6),)


@pytest.mark.parametrize(("activation", "trapped"), [(nn.ReLU, True), (nn.Tanh, False)])
def test_units_parallel_in_all_weights_are_trapped_where_they_can_be_rescaled_and_training_keeps_them_so(
    activation, trapped
):
    model = mlp(4, 6, 3, activation=activation).double()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 2 * model[0].weight[0], 2 * model[0].bias[0]
        model[2].weight[:, 1] = 2 * model[2].weight[:, 0]
    (space,) = audit(model, normal(20, 4)).units
    assert (space.trapped == ((0, 1),)) == trapped
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    x, y = normal(20, 4).double(), torch.arange(20) % 3
    for _ in range(20):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    apart = (model[0].weight[1] - 2 * model[0].weight[0]).norm() / model[0].weight[1].norm()
    assert (apart < 1e-12) == trapped


def test_parallel_units_of_a_squared_relu_are_duplicates_but_not_trapped():
    class Squared(nn.Module):
        def forward(self, x):
            return x.relu().square()

    model = mlp(4, 6, 3, activation=Squared)
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 2 * model[0].weight[0], 2 * model[0].bias[0]
        model[2].weight[:, 1] = 2 * model[2].weight[:, 0]
    (space,) = audit(model, normal(20, 4)).units
    assert (space.duplicates, space.trapped) == (((0, 1),), ())


def test_the_predicted_norm_is_the_one_that_rebalancing_reaches(collapsed):
    model, inputs, report = collapsed
    (each,) = advice(report, "out of balance")
    before, after = map(float, re.findall(r"from ([\d.]+) to ([\d.]+)", each.predicted)[0])
    reached = rebalance(model, inputs, report=report).squared_norm
    assert (before, after) == (pytest.approx(reached[0], rel=1e-3), pytest.approx(reached[1], rel=1e-3))
    assert after < 0.5 * before
    assert each.chapter == "law_of_balance"


def test_the_predicted_size_is_the_one_that_pruning_reaches(collapsed):
    model, inputs, report = collapsed
    (each,) = advice(report, "dead")
    assert "2 dead units and 2 pairs" in each.finding
    assert tuple(map(int, re.findall(r"from (\d+) to (\d+)", each.predicted)[0])) == (255, 183)
    assert physical_prune(model, inputs, report=report).parameters == (255, 183)
    assert "Syre(" in each.predicted


def test_trapped_pairs_are_named(collapsed):
    (each,) = advice(collapsed[2], "equal or parallel")
    assert each.finding.startswith("1 pair ")
    assert each.chapter == "mirror_symmetry"


def test_the_predicted_noise_is_the_one_at_the_equilibrium():
    model, inputs = shaken(mlp(6, 8, 4)), normal(30, 6)
    targets = torch.arange(30) % 4
    given = {"loss_fn": cross_entropy, "targets": targets, "temperature": 0.01, "weight_decay": 1e-4}
    report = audit(model, inputs, **given)
    (found,) = [each for each in report.symmetries if each.kind == "rescaling"]
    moved = rebalance(model, inputs, report=report, target="noise_equilibrium", **given)
    assert found.noise_distance == pytest.approx(float(moved.amounts[0].abs().max()), rel=1e-6)
    (each,) = advice(report, "noise equilibrium")
    before, after = map(float, re.findall(r"from ([\d.e-]+) to ([\d.e-]+)", each.predicted)[0])
    assert (before, after) == (pytest.approx(moved.objective[0], rel=1e-3), pytest.approx(moved.objective[1], rel=1e-3))
    again = audit(moved.model, inputs, **given)
    assert max(each.noise_distance for each in again.symmetries if each.kind == "rescaling") < 1e-4
    assert not advice(again, "noise equilibrium")


def test_scale_invariant_weights_are_sent_to_weight_decay_unless_there_is_some(with_norms):
    model, inputs, report = with_norms
    (each,) = advice(report, "scale-invariant")
    assert each.finding.startswith("176 scale-invariant units")
    median = float(re.search(r"\|w\|\^2 = ([\d.]+)", each.finding)[1])
    weights = [(model[i].weight, model[i].bias) for i in (0, 4, 8, 11)]
    squares = torch.cat([weight.flatten(1).square().sum(1) + bias**2 for weight, bias in weights])
    assert median == pytest.approx(float(squares.median()), rel=5e-3)
    assert not advice(audit(model, inputs, weight_decay=1e-3), "scale-invariant")


def test_an_eps_that_outweighs_the_variance_is_reported():
    model = shaken(vgg(True))
    with torch.no_grad():
        model[5].running_var.fill_(1e-4)
    (each,) = advice(audit(model, normal(4, 3, 16, 16)), "eps is")
    assert each.finding.startswith("eps is 9% of the variance in 5,")
    assert not advice(audit(shaken(vgg(True)), normal(4, 3, 16, 16)), "eps is")


def test_a_bias_without_effect_is_reported():
    class Keys(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x):
            return (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)

    (each,) = advice(audit(shaken(Keys()), normal(4, 5, 6)), "nothing depends on")
    assert "key.bias" in each.finding
    assert "bias=False" in each.action
    assert each.predicted.startswith("6 parameters fewer")


def test_a_healthy_balanced_model_gets_no_advice():
    model, inputs = shaken(mlp(6, 8, 4)), normal(60, 6)
    balanced = rebalance(model, inputs).model
    assert audit(balanced, inputs).recommendations == ()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"loss_fn": cross_entropy}, ValueError, "targets must be given for the noise equilibrium"),
        ({"targets": torch.zeros(8).long()}, ValueError, "loss_fn must be given"),
        ({"temperature": 1.0}, ValueError, "loss_fn must be given"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be"),
        ({"weight_decay": "much"}, TypeError, "weight_decay must be"),
        ({"loss_fn": 3, "targets": torch.zeros(8).long(), "temperature": 1.0}, TypeError, "loss_fn must be a function"),
        (
            {"loss_fn": cross_entropy, "targets": torch.zeros(8).long(), "temperature": 0.0},
            ValueError,
            "temperature must be",
        ),
        (
            {"loss_fn": cross_entropy, "targets": torch.zeros(5).long(), "temperature": 1.0},
            ValueError,
            "targets must be as long as inputs",
        ),
        ({"loss_fn": cross_entropy, "targets": [0] * 8, "temperature": 1.0}, TypeError, "targets must be a tensor"),
    ],
)
def test_half_a_loss_is_refused_in_words(given, error, message):
    with pytest.raises(error, match=message):
        audit(shaken(mlp(4, 3, 2)), normal(8, 4), **given)


def test_narrow_resnet_gets_its_numbers_in_one_line_each():
    report = audit(shaken(resnet18(8)), normal(8, 3, 32, 32))
    for each in report.recommendations:
        assert "\n" not in each.finding + each.action + each.predicted
        assert each.chapter in {"noise_equilibrium", "law_of_balance", "syre", "mirror_symmetry", "audit"}
