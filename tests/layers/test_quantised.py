"""Quantised layers own latent float weights and frozen scales, and are their functions."""

import inspect

import pytest
import torch
from torch import nn

from lightning_polystep.functional import (
    ActivationFormat,
    NonDifferentiableError,
    quant_conv2d,
    quant_linear,
    weight_scale,
)
from lightning_polystep.layers import NotCalibratedError, QuantActivation, QuantConv2d, QuantLinear, calibrate
from tests.helpers.layers import COPIES, candidates_equal_the_loop, losses_of_training, problem

FORMATS = ("int8", "int4", "ternary", "binary")
SHARED = {"weight_format", "granularity", "input_quant", "integer", "on_backward", "follow"}


def integer_network():
    """Inputs, weights, activations: all integers."""
    network = nn.Sequential(
        QuantLinear(6, 24, input_quant=QuantActivation(8, signed=True), integer=True),
        nn.ReLU(),
        QuantLinear(24, 3, input_quant=QuantActivation(8), integer=True),
    )
    calibrate(network, [problem()[0]])
    return network


def small_network(weight_format, granularity="per_channel"):
    options = {"weight_format": weight_format, "granularity": granularity}
    network = nn.Sequential(QuantLinear(6, 24, **options), QuantActivation(4), QuantLinear(24, 3, **options))
    calibrate(network, [problem()[0]])
    return network


def convolutions():
    network = nn.Sequential(
        QuantConv2d(1, 4, 3, padding=1, input_quant=QuantActivation(8, signed=True), integer=True),
        QuantActivation(4),
        nn.Flatten(),
        QuantLinear(24, 3, weight_format="ternary"),
    )
    calibrate(network, [problem()[0].view(-1, 1, 2, 3)])
    return network


@pytest.mark.parametrize("weight_format", [*FORMATS, "float"])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_equals_its_function(weight_format, granularity):
    options = {"weight_format": weight_format, "granularity": granularity}
    linear, x = QuantLinear(6, 4, **options), torch.randn(5, 6)
    expected = quant_linear(x, linear.weight, linear.weight_scale, linear.bias, weight_format=weight_format)
    assert torch.equal(linear(x), expected)
    conv, image = QuantConv2d(4, 6, 3, 2, 1, 1, 2, **options), torch.randn(2, 4, 7, 7)
    geometry = {"stride": 2, "padding": 1, "groups": 2, "weight_format": weight_format}
    assert torch.equal(conv(image), quant_conv2d(image, conv.weight, conv.weight_scale, conv.bias, **geometry))


@pytest.mark.parametrize("integer", [False, True])
def test_quantises_its_input(integer):
    layer, x = QuantLinear(6, 4, input_quant=QuantActivation(4, True, scale=0.2), integer=integer), torch.randn(5, 6)
    input_format = ActivationFormat(torch.tensor(0.2), 4, True)
    options = {"input_format": input_format, "integer": integer}
    assert torch.equal(layer(x), quant_linear(x, layer.weight, layer.weight_scale, layer.bias, **options))
    assert torch.equal(layer(x), layer(layer.input_quant(x)))


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
def test_padding_modes_are_those_of_the_float_layer(padding_mode, integer):
    """With weights that are their own codes and whole inputs."""
    options = {"padding": 2, "padding_mode": padding_mode}
    quantised = QuantConv2d(2, 3, 3, **options, input_quant=QuantActivation(4, scale=1.0), integer=integer)
    plain = nn.Conv2d(2, 3, 3, **options)
    with torch.no_grad():
        quantised.weight.copy_(torch.randint(-127, 128, quantised.weight.shape))
        quantised.weight[:, 0, 0, 0] = 127
        quantised.calibrate_weight()
        plain.load_state_dict({"weight": quantised.weight, "bias": quantised.bias})
    x = torch.randint(0, 16, (2, 2, 5, 5)).float()
    assert torch.equal(quantised.weight_scale, torch.ones(3))
    assert torch.allclose(quantised(x), plain(x), atol=1e-2)


def test_constructors_extend_those_of_torch():
    for plain, quantised in ((nn.Linear, QuantLinear), (nn.Conv2d, QuantConv2d)):
        theirs, ours = (list(inspect.signature(class_).parameters) for class_ in (plain, quantised))
        assert set(ours) - set(theirs) == SHARED
        assert set(theirs) <= set(ours)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_scales_are_set_when_built_and_then_frozen(weight_format):
    layer = QuantLinear(6, 4, weight_format=weight_format)
    before, x = layer.weight_scale.clone(), torch.randn(5, 6)
    with torch.no_grad():
        layer.weight.mul_(3)
        layer(x)
    assert torch.equal(layer.weight_scale, before)
    layer.calibrate_weight()
    assert torch.allclose(layer.weight_scale, 3 * before)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_candidate_changes_one_output_unit(weight_format, granularity):
    layer, x = QuantLinear(6, 4, weight_format=weight_format, granularity=granularity), torch.randn(5, 6)
    before = layer(x)
    with torch.no_grad():
        layer.weight[2] -= 10 * layer.weight[2].abs().max() * layer.weight[2].sign()
    assert ((layer(x) != before).any(0)).tolist() == [False, False, True, False]


def test_codes_of_the_weights():
    layer = QuantLinear(6, 4)
    assert torch.allclose(layer.weight_codes() * layer.weight_scale.view(-1, 1), layer.weight, atol=2e-3)
    assert layer.weight_codes().abs().amax(1).tolist() == [127] * 4
    with pytest.raises(ValueError, match=r"float weights, which have no codes\.$"):
        QuantLinear(6, 4, weight_format="float").weight_codes()


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("build", [integer_network, convolutions, lambda: small_network("ternary")])
def test_copies_behave_alike(build, copied):
    network = build()
    x = torch.randn(5, 1, 2, 3) if isinstance(network[0], QuantConv2d) else torch.randn(5, 6)
    assert torch.equal(copied(network)(x), network(x))


def test_state_dict_round_trip_carries_the_scales():
    def build():
        return nn.Sequential(QuantLinear(6, 4), QuantActivation(), QuantLinear(4, 3, weight_format="binary"))

    source, target, x = build(), build(), torch.randn(5, 6)
    calibrate(source, [torch.randn(40, 6)])
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_the_state_of_a_float_network_loads_strictly(weight_format, granularity):
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    options = {"weight_format": weight_format, "granularity": granularity}
    quantised = nn.Sequential(
        QuantConv2d(1, 4, 3, **options), QuantActivation(4), nn.Flatten(), QuantLinear(16, 3, **options)
    )
    images = torch.randn(32, 1, 4, 4)
    quantised.load_state_dict(plain.state_dict(), strict=True)
    for place in (0, 3):
        assert torch.equal(quantised[place].weight, plain[place].weight)
        expected = weight_scale(plain[place].weight, weight_format, granularity)
        assert torch.equal(quantised[place].weight_scale, expected)
    with pytest.raises(NotCalibratedError, match="calibrate first"):
        quantised(images)
    calibrate(quantised, [images])
    assert torch.isfinite(quantised(images)).all()
    # A scale of other weights would clip these.
    with pytest.raises(RuntimeError, match=r'Missing key.*"1\.scale"'):
        quantised.load_state_dict(plain.state_dict(), strict=True)


def test_scales_that_were_given_outlive_a_float_state():
    plain = nn.Sequential(nn.Linear(4, 3))
    quantised = nn.Sequential(QuantLinear(4, 3, weight_format="binary", input_quant=QuantActivation(scale=0.5)))
    quantised[0].weight_scale, quantised[0].scale_given = torch.full((3,), 0.25), True
    quantised.load_state_dict(plain.state_dict())
    assert quantised[0].weight_scale.tolist() == [0.25] * 3
    assert float(quantised[0].input_quant.scale) == 0.5


def test_a_part_of_a_state_leaves_the_scales_of_other_layers_alone():
    network, x = small_network("int8"), torch.randn(5, 6)
    before = network(x)
    network.load_state_dict({"0.bias": network[0].bias.detach().clone()}, strict=False)
    assert torch.equal(network(x), before)
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        network.load_state_dict({"0.bias": network[0].bias})


@pytest.mark.parametrize("weight_format", FORMATS)
def test_vmap_over_parameters_equals_the_loop(weight_format):
    assert candidates_equal_the_loop(small_network(weight_format), torch.randn(5, 6), exact=False)


def test_vmap_over_parameters_equals_the_loop_bit_for_bit_in_integers():
    assert candidates_equal_the_loop(integer_network(), torch.randn(5, 6))
    assert candidates_equal_the_loop(convolutions()[:2], torch.randn(5, 1, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_follows_the_dtype_of_the_network(dtype):
    assert integer_network().to(dtype)(torch.randn(2, 6, dtype=dtype)).dtype == dtype
    assert QuantLinear(6, 3, dtype=dtype)(torch.randn(2, 6, dtype=dtype)).dtype == dtype


def test_autocast_runs():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert small_network("int8")(torch.randn(2, 6)).shape == (2, 3)
        assert integer_network()(torch.randn(2, 6)).shape == (2, 3)


def test_backward_names_the_layer_or_gives_zeros():
    x = torch.randn(5, 6)
    with pytest.raises(NonDifferentiableError, match=r"QuantLinear\(in_features=6, .*weight_format='ternary'\)"):
        QuantLinear(6, 4, weight_format="ternary")(x).sum().backward()
    with pytest.raises(NonDifferentiableError, match=r"QuantConv2d\(1, 4, .*weight_format='int8'\)"):
        QuantConv2d(1, 4, 1)(torch.randn(2, 1, 3, 3)).sum().backward()
    layer = QuantLinear(6, 4, on_backward="zero")
    layer(x).sum().backward()
    assert torch.equal(layer.weight.grad, torch.zeros(4, 6))


def test_use_before_calibration_names_the_quantiser():
    layer = QuantLinear(6, 4, input_quant=QuantActivation(8), integer=True)
    with pytest.raises(NotCalibratedError, match=r"^QuantActivation\(.*\) has no scale yet: calibrate first, .*[.]$"):
        layer(torch.ones(2, 6))


@pytest.mark.parametrize(
    ("message", "option"),
    [
        ("weight_format must be", {"weight_format": "int9"}),
        ("granularity must be", {"granularity": "per_row"}),
        ("integer needs quantised inputs", {"integer": True}),
        ("integer needs quantised weights", {"integer": True, "weight_format": "float"}),
        ("on_backward must be", {"on_backward": "ste"}),
    ],
)
def test_bad_options_are_refused_when_built(message, option):
    with pytest.raises(ValueError, match=f"^QuantLinear: {message}.*[.]$"):
        QuantLinear(6, 4, **option)
    with pytest.raises(ValueError, match=f"^QuantConv2d: {message}.*[.]$"):
        QuantConv2d(6, 4, 3, **option)


@pytest.mark.filterwarnings("ignore:At pass .* their frozen scales")
@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_quantised_network_learns(weight_format):
    losses = losses_of_training(small_network(weight_format), steps=40)
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]


@pytest.mark.filterwarnings("ignore:At pass .* their frozen scales")
def test_an_integer_network_learns():
    losses = losses_of_training(integer_network())
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]


@pytest.mark.filterwarnings("ignore:At pass .* their frozen scales")
def test_a_quantised_convolution_learns():
    inputs, targets = problem()
    losses = losses_of_training(convolutions(), inputs=inputs.view(-1, 1, 2, 3), targets=targets)
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
