"""Policies: their shapes, and that what is called int8 or binary is."""

import pytest
import torch
from torch import nn

from lightning_polystep.environments import Policy
from lightning_polystep.layers import QuantActivation, QuantLinear, Sign
from models import PolicyNet


@pytest.mark.parametrize(("units", "layer"), [("tanh", nn.Tanh), ("sign", Sign), ("int8", QuantActivation)])
@pytest.mark.parametrize("weights", ["float", "int8", "binary"])
def test_every_pair_of_units_and_weights_is_a_policy(units, layer, weights):
    network = PolicyNet((4, 5, 2), units, weights)
    assert isinstance(network[1], layer)
    assert network(torch.rand(3, 4)).shape == (3, 2)
    assert Policy(network).sizes == [4, 5, 2]


def test_two_sizes_are_a_linear_policy():
    assert [type(layer) for layer in PolicyNet((4, 2))] == [nn.Linear]


def test_int8_weights_and_units_take_at_most_255_values():
    network = PolicyNet((4, 300, 2), "int8", "int8")
    codes = network[0].weight_codes().detach()
    assert float(codes.abs().max()) <= 127
    assert len(codes.unique()) > 10, "torch's own weights spread over many of them"
    values = network[1](torch.linspace(-9, 9, 5000)).unique()
    assert len(values) == 255
    torch.testing.assert_close(values[-1], torch.tensor(2.0))


def test_binary_weights_act_by_their_signs_and_start_near_them():
    layer = PolicyNet((4, 300, 2), "sign", "binary")[0]
    acting = layer(torch.eye(4)) - layer.bias
    torch.testing.assert_close(acting.detach().abs(), torch.full((4, 300), 0.5))
    assert float(layer.weight.detach().square().mean().sqrt()) == pytest.approx(0.35 * 0.5, rel=1e-4)


def test_scales_stay_when_float_weights_are_loaded():
    network = PolicyNet((4, 5, 2), "tanh", "int8")
    scale = network[0].weight_scale.clone()
    network.load_state_dict(PolicyNet((4, 5, 2)).state_dict(), strict=False)
    assert isinstance(network[0], QuantLinear)
    assert torch.equal(network[0].weight_scale, scale)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": "relu"}, "units must be one of tanh, sign, int8, got 'relu'"),
        ({"weights": "int4"}, "weights must be one of float, int8, binary, got 'int4'"),
        ({"sizes": (4,)}, "PolicyNet: sizes needs an input and an output size"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        PolicyNet(**options)
