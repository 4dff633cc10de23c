"""Codes by layer, before and after a step."""

import pytest
import torch
from torch import nn

from lightning_polystep.layers import QuantConv2d, QuantLinear
from lightning_polystep.metrics.codes import flip_rates, weight_codes


def network():
    return nn.Sequential(
        QuantConv2d(1, 2, 3), QuantLinear(4, 3, weight_format="binary"), QuantLinear(3, 2, weight_format="float")
    )


def test_layers_with_codes_by_name():
    model = network()
    codes = weight_codes(model)
    assert list(codes) == ["0", "1"]
    assert torch.equal(codes["1"], model[1].weight_codes())
    assert not any(each.requires_grad for each in codes.values())
    assert list(weight_codes(model, list(model[1].parameters()))) == ["1"]
    assert weight_codes(model, []) == {}


def test_flips_are_those_of_each_layer_and_the_codes_before_stay():
    model = network()
    before = weight_codes(model)
    with torch.no_grad():
        model[1].weight[0] *= -1
    rates = {name: float(rate) for name, rate in flip_rates(before, weight_codes(model)).items()}
    assert rates == pytest.approx({"0": 0.0, "1": 1 / 3})
