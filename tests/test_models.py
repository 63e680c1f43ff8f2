import pytest
import torch
from torch import nn

from symlearn import models


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


BUILDERS = {
    "mlp": lambda generator=None: models.mlp([12, 7, 5, 3], generator=generator),
    "small_cnn": lambda generator=None: models.small_cnn((2, 8, 12), 4, (3, 5), generator=generator),
    "vgg11": lambda generator=None: models.vgg11(width_divisor=16, generator=generator),
    "vgg16": lambda generator=None: models.vgg16(width_divisor=16, generator=generator),
    "resnet18": lambda generator=None: models.resnet18(width_divisor=16, generator=generator),
}
BIG_BUILDERS = {"vgg11": models.vgg11, "vgg16": models.vgg16, "resnet18": models.resnet18}


def prunable(model):
    return [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


@pytest.mark.parametrize(
    ("name", "divisor", "n_weights", "n_layers", "n_parameters"),
    [
        ("vgg16", 1, 14_715_584, 14, 14_728_266),
        ("vgg11", 1, 9_222_848, 9, 9_231_114),
        ("resnet18", 1, 11_164_352, 21, 11_173_962),
        ("vgg16", 8, 230_680, 14, 232_274),
        ("vgg11", 8, 144_856, 9, 145_898),
        ("resnet18", 8, 175_192, 21, 176_402),
    ],
)
def test_networks_have_the_sizes_of_the_literature(name, divisor, n_weights, n_layers, n_parameters):
    model = BIG_BUILDERS[name](width_divisor=divisor, generator=seeded())
    layers = prunable(model)
    assert len(layers) == n_layers
    assert sum(layer.weight.numel() for layer in layers) == n_weights
    assert sum(p.numel() for p in model.parameters()) == n_parameters


def test_small_networks_have_the_documented_sizes():
    assert sum(p.numel() for p in models.small_cnn().parameters()) == 9098
    digits_net = models.mlp([64, 100, 100, 100, 100, 10])
    assert sum(layer.weight.numel() for layer in prunable(digits_net)) == 37_400


@pytest.mark.parametrize(
    ("name", "input_shape", "n_outputs"),
    [
        ("mlp", (12,), 3),
        ("small_cnn", (2, 8, 12), 4),
        ("vgg11", (3, 32, 32), 10),
        ("vgg16", (3, 32, 32), 10),
        ("resnet18", (3, 32, 32), 10),
    ],
)
def test_output_has_one_row_per_input_and_one_column_per_class(name, input_shape, n_outputs):
    model = BUILDERS[name](seeded())
    assert model.training
    output = model(torch.randn(2, *input_shape, generator=seeded()))
    assert output.shape == (2, n_outputs)
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("name", BUILDERS)
def test_equal_generators_give_equal_networks_and_others_do_not(name):
    first, second, other = (BUILDERS[name](seeded(seed)).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_given_generator_leaves_the_global_one_untouched(name):
    before = torch.random.get_rng_state()
    BUILDERS[name](seeded())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_global_generator_gives_the_weights_of_a_fresh_one_of_the_same_seed(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        implicit = BUILDERS[name]().state_dict()
    explicit = BUILDERS[name](seeded(5)).state_dict()
    assert all(torch.equal(implicit[key], explicit[key]) for key in implicit)


@pytest.mark.parametrize("name", BUILDERS)
def test_weights_are_drawn_one_layer_after_the_other_in_module_order(name):
    generator = seeded(1)
    for layer in prunable(BUILDERS[name](seeded(1))):
        fan_in = layer.weight[0].numel()
        expected = torch.empty_like(layer.weight).normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        torch.testing.assert_close(layer.weight, expected, rtol=1e-6, atol=0)


def test_weight_variance_is_two_over_fan_in():
    for layer in prunable(models.vgg16(width_divisor=4, generator=seeded()))[1:-1]:
        ratio = layer.weight.var().item() * layer.weight[0].numel() / 2
        # relative standard error of a variance of n values: sqrt(2 / n)
        assert ratio == pytest.approx(1, abs=5 * (2 / layer.weight.numel()) ** 0.5)


@pytest.mark.parametrize("name", BUILDERS)
def test_biases_are_zero_and_batch_norm_is_at_its_defaults(name):
    for module in BUILDERS[name](seeded()).modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            assert not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.running_var == 1).all()
            assert not module.bias.any()
            assert not module.running_mean.any()
            assert module.num_batches_tracked == 0


def test_mlp_parameters_are_numbered_with_the_activations_counted():
    for activation in ("relu", "leaky_relu", "tanh", "gelu", "identity"):
        names = [name for name, _ in models.mlp([4, 3, 2], activation).named_parameters()]
        assert names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [n for n, _ in models.mlp([4, 3, 2], bias=False).named_parameters()] == ["0.weight", "2.weight"]


def test_identity_mlp_is_the_product_of_its_matrices():
    model = models.mlp([6, 5, 4], "identity", generator=seeded()).double()
    x = torch.randn(3, 6, dtype=torch.float64, generator=seeded(1))
    torch.testing.assert_close(model(x), x @ (model[2].weight @ model[0].weight).T)


def test_relu_networks_are_positively_homogeneous_of_their_input():
    x = torch.randn(2, 3, 32, 32, generator=seeded(), dtype=torch.float64)
    for build in (BUILDERS["vgg16"], BUILDERS["resnet18"]):
        model = build(seeded()).double().eval()
        torch.testing.assert_close(model(4 * x), 4 * model(x), rtol=1e-10, atol=0)


def test_vgg_is_a_chain_of_convolutions_with_biases():
    model = models.vgg16(width_divisor=8)
    widths = [m.out_channels for m in model if isinstance(m, nn.Conv2d)]
    assert widths == [8, 8, 16, 16, 32, 32, 32, 64, 64, 64, 64, 64, 64]
    assert all(m.bias is not None and m.kernel_size == (3, 3) for m in model if isinstance(m, nn.Conv2d))
    assert sum(isinstance(m, nn.MaxPool2d) for m in model) == 4
    assert [type(m).__name__ for m in model[-3:]] == ["AvgPool2d", "Flatten", "Linear"]


def test_resnet_has_three_projection_shortcuts_where_the_map_shrinks():
    model = models.resnet18(width_divisor=8)
    layers = dict(model.named_modules())
    assert [i for i in range(8) if isinstance(layers[f"blocks.{i}.shortcut"], nn.Sequential)] == [2, 4, 6]
    assert [layers[f"blocks.{i}.conv1"].stride[0] for i in range(8)] == [1, 1, 2, 1, 2, 1, 2, 1]
    assert all(m.bias is None for m in layers.values() if isinstance(m, nn.Conv2d))
    assert layers["conv"].stride == (1, 1)


def test_a_residual_block_with_an_empty_branch_passes_its_input_on():
    model = models.resnet18(width_divisor=8, generator=seeded()).eval()
    block = dict(model.named_modules())["blocks.1"]
    with torch.no_grad():
        block.conv2.weight.zero_()
    x = torch.rand(2, 8, 6, 6, generator=seeded())
    torch.testing.assert_close(block(x), x)


def test_the_number_of_classes_only_changes_the_last_layer():
    ten, seven = (models.vgg11(n, width_divisor=16, generator=seeded()).state_dict() for n in (10, 7))
    last = list(ten)[-2:]
    assert all(torch.equal(ten[key], seven[key]) for key in ten if key not in last)
    assert seven[last[0]].shape == (7, 32)


def test_the_default_dtype_is_respected():
    torch.set_default_dtype(torch.float64)
    try:
        model = models.mlp([3, 2], generator=seeded())
    finally:
        torch.set_default_dtype(torch.float32)
    assert model[0].weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: models.mlp([]), ValueError, r"sizes must be at least two widths, got \(\)"),
        (lambda: models.mlp([3]), ValueError, r"sizes must be at least two widths, got \(3,\)"),
        (lambda: models.mlp([3, 0]), ValueError, r"sizes\[1\] must be >= 1, got 0"),
        (lambda: models.mlp([-3, 2]), ValueError, r"sizes\[0\] must be >= 1, got -3"),
        (lambda: models.mlp([3, 2.0]), TypeError, r"sizes\[1\] must be an integer, got float"),
        (lambda: models.mlp([3, None]), TypeError, r"sizes\[1\] must be an integer, got NoneType"),
        (lambda: models.mlp([True, 2]), TypeError, r"sizes\[0\] must be an integer, got bool"),
        (lambda: models.mlp("34"), TypeError, "sizes must be a sequence of integers, got str"),
        (lambda: models.mlp(5), TypeError, "sizes must be a sequence of integers, got int"),
        (lambda: models.mlp(None), TypeError, "sizes must be a sequence of integers, got NoneType"),
        (lambda: models.mlp([3, 2], "selu"), ValueError, "activation must be one of .*'tanh', got 'selu'"),
        (lambda: models.mlp([3, 2], nn.ReLU), TypeError, "activation must be one of .*, got type"),
        (lambda: models.mlp([3, 2], None), TypeError, "activation must be one of .*, got NoneType"),
        (lambda: models.mlp([3, 2], bias=1), TypeError, "bias must be a bool, got int"),
        (lambda: models.mlp([3, 2], bias="no"), TypeError, "bias must be a bool, got str"),
        (lambda: models.mlp([3, 2], generator=0), TypeError, "generator must be a torch.Generator or None, got int"),
        (lambda: models.small_cnn((1, 28)), ValueError, r"in_shape must be three sizes .*, got \(1, 28\)"),
        (lambda: models.small_cnn((1, 1, 28, 28)), ValueError, "in_shape must be three sizes"),
        (lambda: models.small_cnn(28), TypeError, "in_shape must be a sequence of integers, got int"),
        (lambda: models.small_cnn((1, 28, 0)), ValueError, r"in_shape\[2\] must be >= 1, got 0"),
        (lambda: models.small_cnn((1, 28.0, 28)), TypeError, r"in_shape\[1\] must be an integer, got float"),
        (lambda: models.small_cnn((1, 3, 28)), ValueError, "in_shape must be at least 4 x 4 pixels, got 3 x 28"),
        (lambda: models.small_cnn(channels=()), ValueError, r"channels must be at least one channel count, got \(\)"),
        (lambda: models.small_cnn(channels=8), TypeError, "channels must be a sequence of integers, got int"),
        (lambda: models.small_cnn(channels=(8, -1)), ValueError, r"channels\[1\] must be >= 1, got -1"),
        (lambda: models.small_cnn(channels=(2,) * 5), ValueError, "in_shape must be at least 32 x 32 pixels"),
        (lambda: models.small_cnn(n_classes=0), ValueError, "n_classes must be >= 1, got 0"),
        (lambda: models.small_cnn(n_classes=2.5), TypeError, "n_classes must be an integer, got float"),
        (lambda: models.small_cnn(generator="seed"), TypeError, "generator must be a torch.Generator or None, got str"),
        (lambda: models.vgg11(0), ValueError, "n_classes must be >= 1, got 0"),
        (lambda: models.vgg11("10"), TypeError, "n_classes must be an integer, got str"),
        (lambda: models.vgg11(width_divisor=0), ValueError, "width_divisor must be >= 1, got 0"),
        (lambda: models.vgg16(width_divisor=3), ValueError, "width_divisor must be a divisor of 64, got 3"),
        (lambda: models.vgg16(width_divisor=128), ValueError, "width_divisor must be a divisor of 64, got 128"),
        (lambda: models.vgg16(width_divisor=2.0), TypeError, "width_divisor must be an integer, got float"),
        (lambda: models.vgg16(True), TypeError, "n_classes must be an integer, got bool"),
        (lambda: models.vgg16(generator=1), TypeError, "generator must be a torch.Generator or None, got int"),
        (lambda: models.resnet18(-1), ValueError, "n_classes must be >= 1, got -1"),
        (lambda: models.resnet18(width_divisor=-8), ValueError, "width_divisor must be >= 1, got -8"),
        (lambda: models.resnet18(width_divisor=True), TypeError, "width_divisor must be an integer, got bool"),
        (
            lambda: models.resnet18(generator=torch),
            TypeError,
            "generator must be a torch.Generator or None, got module",
        ),
    ],
)
def test_bad_input_is_refused_in_one_voice(call, error, message):
    with pytest.raises(error, match=message):
        call()
