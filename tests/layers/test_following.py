"""Scales that follow the weights move at every pass that counts, and at no other."""

import torch
from torch.func import functional_call, vmap

from lightning_polystep.layers import QuantConv2d, QuantLinear
from lightning_polystep.layers.following import frozen_scales, scales_are_frozen


def test_scales_are_frozen_inside_alone():
    assert not scales_are_frozen()
    with frozen_scales():
        with frozen_scales():
            pass
        assert scales_are_frozen()
    assert not scales_are_frozen()


def test_every_pass_takes_the_scale_of_the_weights_as_they_are():
    conv = QuantConv2d(2, 4, 3, follow=True, granularity="per_tensor")
    for layer, x in ((QuantLinear(6, 4, follow=True), torch.randn(5, 6)), (conv, torch.randn(2, 2, 5, 5))):
        with torch.no_grad():
            layer.weight.mul_(3)
        layer(x)
        plain = type(layer)(*((6, 4) if x.ndim == 2 else (2, 4, 3)), granularity=layer.granularity)
        with torch.no_grad():
            plain.weight.copy_(layer.weight)
            plain.bias.copy_(layer.bias)
        plain.calibrate_weight()
        assert torch.equal(layer.weight_scale, plain.weight_scale)
        assert torch.equal(layer(x), plain(x))


def test_a_scale_is_frozen_by_default_and_while_candidates_are_scored():
    for layer in (QuantLinear(6, 4), QuantLinear(6, 4, follow=True)):
        before = layer.weight_scale.clone()
        with torch.no_grad():
            layer.weight.mul_(3)
        with frozen_scales():
            layer(torch.randn(5, 6))
        assert torch.equal(layer.weight_scale, before)


def test_many_weights_at_once_leave_the_scale_alone():
    layer, x = QuantLinear(6, 4, follow=True), torch.randn(5, 6)
    weights, before = torch.randn(3, 4, 6), layer.weight_scale.clone()
    outputs = vmap(lambda weight: functional_call(layer, {"weight": weight}, (x,)))(weights)
    assert outputs.shape == (3, 5, 4)
    assert torch.equal(layer.weight_scale, before)


def test_it_shows():
    assert "follow=True" in str(QuantLinear(6, 4, follow=True))
    assert "follow" not in str(QuantLinear(6, 4))
