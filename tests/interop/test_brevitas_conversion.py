"""Converted quantised networks have the codes of the originals, and what cannot be expressed is refused by name."""

import warnings

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.functional import activation_scale
from lightning_polystep.interop import ConversionError, UncalibratedScaleError, from_brevitas, to_brevitas
from lightning_polystep.layers import (
    NotCalibratedError,
    QuantActivation,
    QuantConv2d,
    QuantLinear,
    Sign,
    Staircase,
    calibrate,
)

qnn = pytest.importorskip("brevitas.nn", reason="brevitas is not installed (extra brevitas)")
quant = pytest.importorskip("brevitas.quant")
common = pytest.importorskip("brevitas_examples.bnn_pynq.models.common")

WEIGHTS = {
    "int8 per tensor": quant.Int8WeightPerTensorFloat,
    "int8 per channel": quant.Int8WeightPerChannelFloat,
    "int8 power of two": quant.Int8WeightPerTensorFixedPoint,
    "ternary": quant.SignedTernaryWeightPerTensorConst,
    "binary": quant.SignedBinaryWeightPerTensorConst,
}


def network(weight_quant, return_quant_tensor=False):
    net = nn.Sequential(
        qnn.QuantIdentity(return_quant_tensor=return_quant_tensor),
        qnn.QuantLinear(6, 20, bias=True, weight_quant=weight_quant),
        nn.BatchNorm1d(20),
        qnn.QuantReLU(bit_width=3, return_quant_tensor=return_quant_tensor),
        nn.Sequential(qnn.QuantLinear(20, 3, bias=True, weight_quant=weight_quant), nn.Dropout()),
    )
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(64, 6))
    return net.eval()


def close(left, right):
    """Equal up to rounding, but for a few samples in which rounding moved a code over a tie."""
    off = (left - right).abs() > 1e-5 * right.abs().max()
    return off.any(1).double().mean() < 0.02


@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
def test_codes_are_equal_and_outputs_up_to_rounding(name, quantised):
    original = network(WEIGHTS[name], quantised)
    with warnings.catch_warnings():
        # Of a rule that is not known here, of which a test of its own tells.
        warnings.filterwarnings("ignore", message="QuantLinear: Brevitas takes the scale of its weights from other")
        converted = from_brevitas(original).eval()
    x = 2 * torch.randn(256, 6)
    with torch.no_grad():
        for mine, theirs in ((converted[1], original[1]), (converted[4], original[4][0])):
            scale = theirs.quant_weight().scale
            assert torch.equal(mine.weight_scale.flatten(), scale.flatten())
            assert torch.equal(mine.weight_codes(), (theirs.quant_weight().value / scale).round())
        seen = original[0](x)
        assert torch.equal(converted[0](x), seen.value if quantised else seen)
        assert close(converted(x), original(x))
        back = to_brevitas(converted)
        assert torch.equal(back[1].quant_weight().value, original[1].quant_weight().value)
        assert torch.equal(back(x), original(x))


@pytest.mark.parametrize("weight_format", ["int8", "int4", "int2", "ternary", "binary", "float"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_there_and_back_is_the_same_network(weight_format, granularity):
    options = {"weight_format": weight_format, "granularity": granularity}
    original = nn.Sequential(
        QuantConv2d(2, 4, (3, 2), padding=1, stride=(1, 2), **options),
        QuantActivation(4),
        nn.Flatten(),
        QuantLinear(48, 5, input_quant=QuantActivation(8, signed=True, narrow_range=False), bias=False, **options),
        QuantActivation(2, signed=True),
    )
    calibrate(original, [torch.randn(32, 2, 4, 4)])
    exported = to_brevitas(original)
    again = from_brevitas(exported)
    x = torch.randn(64, 2, 4, 4)
    with torch.no_grad():
        assert close(exported(x), original(x))
        assert torch.equal(again(x), original(x))
    assert again[0].weight_scale is None or torch.equal(again[0].weight_scale, original[0].weight_scale)


def test_the_original_is_not_touched_and_nothing_is_shared():
    original = network(quant.Int8WeightPerTensorFloat).train()
    counter = original[0].act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.counter
    converted = from_brevitas(original)
    assert original[0].act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.counter == counter == 3
    mine, theirs = set(converted.parameters()), set(original.parameters())
    assert not mine & theirs
    assert not {p.data_ptr() for p in mine} & {p.data_ptr() for p in theirs}


def test_one_bit_activations_are_signs():
    original = nn.Sequential(qnn.QuantIdentity(act_quant=common.CommonActQuant, bit_width=1)).eval()
    converted, x = from_brevitas(original), torch.tensor([-2.0, -0.5, 0.0, 3.0])
    assert isinstance(converted[0], Sign)
    assert torch.equal(converted(x), original(x))


def test_a_missing_calibration_is_an_error():
    with pytest.raises(UncalibratedScaleError, match="QuantReLU was never calibrated"):
        from_brevitas(nn.Sequential(qnn.QuantLinear(2, 2, bias=True), qnn.QuantReLU()))
    with pytest.raises(NotCalibratedError):
        to_brevitas(nn.Sequential(QuantActivation(8)))


class Tutorial(nn.Module):
    def forward(self, x):
        return x


def seen(layer):
    with torch.no_grad():
        layer(torch.randn(16, 4))
    return nn.Sequential(layer)


REFUSED = {
    "a class": (Tutorial, "forward of its own"),
    "nine-bit weights": (lambda: nn.Sequential(qnn.QuantLinear(4, 3, bias=True, weight_bit_width=9)), "9 bits"),
    "a scaled sign": (
        lambda: nn.Sequential(
            qnn.QuantIdentity(act_quant=quant.SignedBinaryActPerTensorConst, min_val=-0.5, max_val=0.5)
        ),
        r"one bit and a scale of \[0\.5\] .* set max_val",
    ),
    "a wide range of weights": (
        lambda: nn.Sequential(qnn.QuantLinear(4, 3, bias=True, weight_narrow_range=False)),
        "narrow range",
    ),
    "a zero point of weights": (
        lambda: nn.Sequential(qnn.QuantLinear(4, 3, bias=True, weight_quant=quant.ShiftedUint8WeightPerTensorFloat)),
        "zero point",
    ),
    "a zero point of activations": (lambda: seen(qnn.QuantIdentity(quant.ShiftedUint8ActPerTensorFloat)), "zero point"),
    "a quantised bias": (
        lambda: nn.Sequential(qnn.QuantLinear(4, 3, bias=True, bias_quant=quant.Int8BiasPerTensorFloatInternalScaling)),
        "quantised bias",
    ),
    "rounding down": (lambda: seen(qnn.QuantReLU(bit_width=4, float_to_int_impl_type="floor")), "rounds its inputs"),
    "many bits": (lambda: seen(qnn.QuantReLU(bit_width=9)), "9 bits"),
    "a sigmoid": (lambda: seen(qnn.QuantSigmoid()), "QuantSigmoid"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ConversionError, match=message):
        from_brevitas(make())


def test_what_brevitas_has_not_is_refused():
    with pytest.raises(ConversionError, match="no counterpart in Brevitas"):
        to_brevitas(nn.Sequential(Staircase(4)))


def test_a_sign_that_brevitas_has_not_says_which_it_has():
    with pytest.raises(ConversionError, match='use positive_on="ge"'):
        to_brevitas(nn.Sequential(Sign(positive_on="gt")))


@pytest.mark.parametrize("case", REFUSED)
def test_every_refusal_names_a_cure(case):
    with pytest.raises(ConversionError, match=r"use |set |build it |convert |put its layers"):
        from_brevitas(REFUSED[case][0]())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", [quant.Int8WeightPerTensorFloat, quant.Int8WeightPerChannelFloat])
def test_weights_of_any_width_keep_their_codes_and_scales_there_and_back(bits, kind):
    options = {"weight_quant": kind, "weight_bit_width": bits, "bias": True}
    original = nn.Sequential(qnn.QuantConv2d(2, 4, 3, **options), nn.Flatten(), qnn.QuantLinear(16, 5, **options))
    x = torch.randn(64, 2, 4, 4)
    converted = from_brevitas(original)
    back = to_brevitas(converted)
    with torch.no_grad():
        for mine, theirs, again in zip(converted[::2], original[::2], back[::2], strict=True):
            assert mine.weight_format == f"int{bits}"
            assert torch.equal(mine.weight_scale.flatten(), theirs.quant_weight().scale.flatten())
            assert torch.equal(mine.weight_codes(), (theirs.quant_weight().value / theirs.quant_weight().scale).round())
            assert torch.equal(again.quant_weight().value, theirs.quant_weight().value)
        assert close(converted(x), original(x))
        assert torch.equal(back(x), original(x))


def test_weights_of_four_bits_are_scored_as_a_stack():
    torch.manual_seed(0)
    four = {"bias": True, "weight_bit_width": 4}
    net = nn.Sequential(qnn.QuantLinear(16, 8, **four), qnn.QuantReLU(bit_width=4), qnn.QuantLinear(8, 3, **four))
    x, y = torch.randn(64, 16), torch.randint(3, (64,))
    net(x)

    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.criterion = from_brevitas(net), nn.CrossEntropyLoss()

    task = Task()
    engine = Engine(task, PolyStep(task.parameters(), lr=0.1, seed=0), announce=None)
    losses = [engine.step(lambda: task.criterion(task.network(x), y)) for _ in range(30)]
    assert {a.tier.name for a in engine.plan.assignments} <= {"outcome", "incremental"}
    assert losses[-1] < 0.8 * losses[0]


def clipped(layer):
    return float((layer.weight.abs() > 1.001 * 127 * layer.weight_scale.view(-1, 1)).float().mean())


@pytest.mark.parametrize("granularity", [quant.Int8WeightPerTensorFloat, quant.Int8WeightPerChannelFloat])
def test_scales_follow_after_the_conversion_where_those_of_brevitas_do(granularity):
    """As they were frozen, 99 % of the second layer's weights ended beyond the largest code."""
    torch.manual_seed(0)
    options = {"bias": True, "weight_quant": granularity}
    net = nn.Sequential(
        qnn.QuantLinear(64, 32, **options), qnn.QuantReLU(bit_width=4), qnn.QuantLinear(32, 10, **options)
    )
    x, y = torch.rand(256, 64), torch.randint(10, (256,))
    net(x)
    converted = from_brevitas(net)
    before = float(converted[1].scale)
    engine = Engine(converted, PolyStep(converted.parameters(), lr=0.1, seed=0), max_candidates=200, announce=None)
    for _ in range(60):
        engine.step(lambda: nn.functional.cross_entropy(converted(x), y))
    with torch.no_grad():
        converted(x)  # the scales of the weights as the last step left them
        hidden = converted[0](x)
        assert [clipped(converted[0]), clipped(converted[2])] == [0, 0]
        # Still the network that Brevitas would have: the same scales from the same weights.
        assert torch.equal(
            to_brevitas(converted)[2].quant_weight().value, converted[2].weight_codes() * scale_of(converted[2])
        )
    assert float(converted[1].scale) != before
    assert float((hidden > 15.5 * converted[1].scale).float().mean()) < 0.02


def scale_of(layer):
    return layer.weight_scale.view(-1, 1) if layer.weight_scale.ndim else layer.weight_scale


def test_scales_that_brevitas_freezes_are_frozen_here():
    const = {"weight_scaling_impl_type": "const", "weight_scaling_init": 0.5}
    learned = {"weight_scaling_impl_type": "parameter", "weight_scaling_init": 0.5}
    act = qnn.QuantReLU(bit_width=4)
    with torch.no_grad():
        act(torch.rand(4, 4))
    act.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.counter = 301
    net = nn.Sequential(
        qnn.QuantLinear(4, 4, bias=True, **const),
        act,
        qnn.QuantLinear(4, 4, bias=True, **learned),
        qnn.QuantIdentity(quant.SignedTernaryActPerTensorConst),
        qnn.QuantLinear(4, 4, bias=True, weight_quant=quant.SignedBinaryWeightPerTensorConst),
    )
    converted = from_brevitas(net)
    assert [layer.follow for layer in converted] == [False] * 5
    # A calibration may move what was measured or learned, not what is a constant of the network.
    assert [layer.scale_given for layer in converted] == [False, False, False, True, True]


def test_a_rule_that_is_not_known_here_is_said_to_be_frozen():
    net = nn.Sequential(qnn.QuantLinear(4, 3, bias=True, weight_quant=quant.Int8WeightPerTensorFixedPoint))
    with pytest.warns(UserWarning, match=r"from other statistics than the largest weight.*Calibrate\(follow=True\)"):
        assert not from_brevitas(net)[0].follow


class OneBit(quant.SignedBinaryActPerTensorConst):
    scaling_const = 1.0


def test_a_binary_network_goes_there_and_back():
    weights = {"bias": True, "weight_quant": quant.SignedBinaryWeightPerTensorConst}
    original = nn.Sequential(
        qnn.QuantIdentity(act_quant=OneBit),
        qnn.QuantLinear(6, 20, **weights),
        qnn.QuantIdentity(act_quant=OneBit),
        qnn.QuantLinear(20, 3, **weights),
    )
    x = torch.cat([torch.randn(64, 6), torch.zeros(1, 6), -torch.zeros(1, 6)])
    converted = from_brevitas(original)
    assert [type(layer) for layer in converted] == [Sign, QuantLinear, Sign, QuantLinear]
    back = to_brevitas(converted)
    with torch.no_grad():
        assert torch.equal(back(x), original(x))
        assert close(converted(x), original(x))
    assert torch.equal(from_brevitas(back)(x), converted(x))


@pytest.mark.parametrize("training", [True, False])
def test_every_layer_stays_in_its_mode(training):
    original = network(quant.Int8WeightPerTensorFloat).train(training)
    original[4][1].train(not training)
    for converted in (from_brevitas(original), to_brevitas(from_brevitas(original))):
        assert [layer.training for layer in converted] == [training] * 5 + [not training]
        assert converted.training == training
    assert [part.training for part in original] == [training] * 5


def test_batch_normalisation_is_folded_on_request():
    original = network(quant.Int8WeightPerChannelFloat)
    with torch.no_grad():
        original[2].weight.uniform_(-1.5, 1.5)
    converted = from_brevitas(original, fold_batch_norm=True)
    assert [type(layer) for layer in converted] == [
        QuantActivation,
        QuantLinear,
        QuantActivation,
        QuantLinear,
        nn.Dropout,
    ]
    x = torch.randn(256, 6)
    with torch.no_grad():
        assert close(converted(x), original(x))


def test_the_scale_of_an_activation_starts_where_it_was_and_follows_the_batches():
    original = seen(qnn.QuantReLU(bit_width=4))
    converted = from_brevitas(nn.Sequential(nn.Linear(4, 4), *original))
    start, x = converted[1].scale.clone(), 3 * torch.rand(128, 4)
    engine = Engine(converted, PolyStep(converted.parameters(), lr=0.0, seed=0), max_candidates=50, announce=None)
    for _ in range(60):
        engine.step(lambda: converted(x).square().mean())
    with torch.no_grad():
        wanted = activation_scale(converted[0](x), 4, percentile=99.9)
    assert abs(start - wanted) > 0.05 * wanted
    assert torch.allclose(converted[1].scale, wanted, rtol=0.01)
