"""Converted quantised networks have the codes of the originals, and what cannot be expressed is refused by name."""

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize("weight_format", ["int8", "ternary", "binary", "float"])
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
    "four-bit weights": (lambda: nn.Sequential(qnn.QuantLinear(4, 3, bias=True, weight_bit_width=4)), "4 bits"),
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
