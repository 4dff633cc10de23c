"""What both ONNX formats share: which layers they hold, and step functions as the floats at which they step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("onnxruntime")

from lightning_polystep.exports import check_onnx, to_onnx, to_qonnx
from lightning_polystep.interop import ConversionError
from lightning_polystep.layers import (
    LIF,
    HardMoE,
    Heaviside,
    NotCalibratedError,
    OverTime,
    QuantActivation,
    QuantConv2d,
    QuantLinear,
    Sign,
    Staircase,
)
from models import BinaryMLP


@st.composite
def step_functions(draw):
    kind = draw(st.sampled_from(["staircase", "sign", "heaviside"]))
    tie = draw(st.sampled_from(["ge", "gt"]))
    if kind == "staircase":
        rounding, squash = (
            draw(st.sampled_from(["floor", "round"])),
            draw(st.sampled_from(["sigmoid", "clamp", "tanh"])),
        )
        return Staircase(draw(st.integers(1, 12)), rounding=rounding, squash=squash)
    return Sign(positive_on=tie) if kind == "sign" else Heaviside(spike_on=tie)


@given(step_functions(), st.integers(0, 2**31))
@settings(max_examples=20)
def test_any_step_function_is_the_same_at_its_very_boundaries(layer, seed):
    inputs = torch.randn(7, 20, generator=torch.Generator().manual_seed(seed)) * 2
    inputs[0] = torch.linspace(-1, 1, 20)
    inputs[1, :4] = torch.tensor([0.0, -0.0, 1e-45, -1e-45])
    inputs[2] = torch.nextafter(inputs[0], torch.tensor(9.0))
    found = check_onnx(nn.Sequential(layer), to_onnx(nn.Sequential(layer), (20,)), inputs)
    assert [parity.what for parity in found] == ["codes of 0", "output"]
    assert [str(parity) for parity in found if parity.unequal] == []


def test_a_network_with_everything_that_is_written():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same"),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        QuantConv2d(4, 2, 2, weight_format="float"),
        nn.MaxPool2d(2, padding=1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Identity(),
        nn.Linear(8, 3, bias=False),
    )
    network(torch.randn(20, 1, 8, 8))  # running statistics
    inputs = torch.rand(5, 1, 8, 8)
    for write in (to_onnx, to_qonnx):
        (parity,) = check_onnx(network, write(network, (1, 8, 8)), inputs)
        assert parity.what == "output (up to rounding)"
        assert parity.unequal == 0


def test_binary_networks_are_equal_code_for_code():
    torch.manual_seed(0)
    network = BinaryMLP((20, 12, 12, 5))
    found = check_onnx(network, to_onnx(network, (20,)), torch.rand(9, 20))
    assert [parity.what for parity in found[:-1]] == ["codes of 1", "codes of 3", "codes of 5"]
    assert [str(parity) for parity in found if parity.unequal] == []


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (LIF(num_steps=3), (4,), "LIF.* is not written to ONNX here"),
        (HardMoE([nn.Linear(4, 4), nn.Linear(4, 4)], 4), (4,), "HardMoE"),
        (OverTime(nn.Linear(4, 3)), (4,), "no time axis: write spiking networks to NIR"),
        (nn.Flatten(2), (2, 3, 3), r"use nn.Flatten\(\)"),
        (QuantConv2d(1, 2, 3, padding_mode="reflect", padding=1), (1, 4, 4), 'padding_mode="reflect"'),
        (QuantConv2d(1, 2, 2, padding="same"), (1, 4, 4), "pads one side more"),
        (nn.AvgPool2d(2, ceil_mode=True), (1, 5, 5), "with ceil_mode or divisor_override"),
        (nn.BatchNorm1d(4, affine=False), (4,), "no running statistics or no weights"),
        (QuantLinear(4, 3, dtype=torch.float64), (4,), r"float64, and ONNX graphs here are float32"),
    ],
)
def test_what_is_not_written_is_refused_by_name(layer, shape, reason):
    with pytest.raises(ConversionError, match=reason):
        to_onnx(nn.Sequential(layer), shape)


def test_sums_beyond_int32_are_refused():
    layer = QuantLinear(66_400, 1, input_quant=QuantActivation(scale=0.1), integer=True)
    with pytest.raises(ConversionError, match="may be beyond int32"):
        to_onnx(nn.Sequential(layer), (66_400,))


def test_an_activation_without_a_scale_is_refused():
    for write in (to_onnx, to_qonnx):
        with pytest.raises(NotCalibratedError):
            write(nn.Sequential(QuantActivation()), (3,))


def test_a_scale_that_follows_is_that_of_the_weights_as_they_are():
    network = nn.Sequential(QuantLinear(4, 3, follow=True))
    with torch.no_grad():
        network[0].weight.mul_(3)  # by an optimizer: the scale follows at the next pass
    graph = to_onnx(network, (4,))
    (parity,) = check_onnx(network, graph, torch.rand(5, 4))
    assert parity.unequal == 0
