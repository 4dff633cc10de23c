"""The convolutional network of 8 bits: which layers are quantised, and how its candidates are scored."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep import Engine, PolyStep
from lightning_polystep.layers import NotCalibratedError, QuantConv2d, QuantLinear, calibrate
from models import QuantisedLeNet


def small():
    torch.manual_seed(0)
    network, images = QuantisedLeNet((1, 14, 16), (3, 5), (7,), num_classes=4), torch.rand(32, 1, 14, 16)
    calibrate(network, [images])
    return network, images, torch.arange(32) % 4


def test_every_layer_with_weights_is_quantised_from_the_start():
    network, _, _ = small()
    layers = [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert [type(layer) for layer in layers] == [QuantConv2d, QuantConv2d, QuantLinear, QuantLinear]
    for layer in layers:
        torch.testing.assert_close(layer.weight_scale, layer.weight.flatten(1).abs().amax(1) / 127)


def test_the_default_is_lenet_5():
    shapes = [tuple(weight.shape) for weight in QuantisedLeNet().parameters() if weight.ndim > 1]
    assert shapes == [(6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]


def test_scales_of_activations_have_to_be_calibrated():
    with pytest.raises(NotCalibratedError):
        QuantisedLeNet()(torch.rand(2, 1, 28, 28))


def test_costs_of_its_filters_are_estimated_and_followed_down():
    network, images, labels = small()
    images = images + labels[:, None, None, None] * 0.2
    engine = Engine(network, PolyStep(network.parameters(), lr=0.05, seed=0), announce=None)
    losses = [float(engine.step(lambda: F.cross_entropy(network(images), labels))) for _ in range(7)]
    tiers = {assignment.block.name: assignment.tier.name for assignment in engine.plan.assignments}
    assert tiers["3"] == "units"
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [({"channels": (8,)}, "channels must be two"), ({"image_shape": (1, 28, 10)}, "at least 12 x 12 pixels")],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=f"QuantisedLeNet: .*{message}"):
        QuantisedLeNet(**options)
