"""Random networks of the families that the formats hold, and inputs, with sums that are exact in any order.

Weights, biases and inputs are multiples of a power of two: float32 adds them without rounding, so that a library which
adds in another order has the same currents, and every spike has to be equal. Leaks and thresholds are any float32.
"""

from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import nn

from lightning_polystep.layers import (
    LIF,
    Heaviside,
    OverTime,
    QuantActivation,
    QuantConv2d,
    QuantLinear,
    Sign,
    SpikeCount,
    Staircase,
    calibrate,
)

SAMPLES = 6


def dyadic(shape, draw, unit=1 / 16, reach=12):
    return torch.randint(-reach, reach + 1, shape, generator=draw) * unit


@torch.no_grad()
def make_dyadic(network, draw):
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.copy_(dyadic(layer.weight.shape, draw))
            if layer.bias is not None:
                layer.bias.copy_(dyadic(layer.bias.shape, draw))
    return network


def loud(network, inputs):
    """Whether there is something to compare: all layers fire, and none always."""
    rates = []
    hooks = [
        layer.register_forward_hook(lambda _l, _i, out: rates.append(float(out.mean())))
        for layer in network.modules()
        if isinstance(layer, LIF)
    ]
    with torch.no_grad():
        network(inputs)
    for hook in hooks:
        hook.remove()
    return all(0 < rate < 1 for rate in rates)


@st.composite
def lif_stacks(draw, leaks=None, **neuron):
    """Linear and LIF in turns; a leak for each layer, or for each neuron."""
    seeded = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sizes = draw(st.lists(st.integers(2, 12), min_size=2, max_size=4))
    steps = draw(st.sampled_from([3, 7, None]))
    layers = []
    for place, (features_in, features_out) in enumerate(pairwise(sizes)):
        linear = nn.Linear(features_in, features_out, bias=draw(st.booleans()) or place == 0)
        constants = leak(draw, seeded, (features_out,), leaks)
        threshold = draw(st.floats(0.125, 1.5, width=32)) if leaks is None else 1.0
        layers += [linear, LIF(constants, threshold, num_steps=None if place else steps, **neuron)]
    network = make_dyadic(nn.Sequential(*layers, *([SpikeCount()] if draw(st.booleans()) else [])), seeded)
    shape = (SAMPLES, sizes[0]) if steps is not None else (5, SAMPLES, sizes[0])
    return network, (sizes[0],), dyadic(shape, seeded, 1 / 4, 8)


@st.composite
def spiking_convolutions(draw, leaks=None, **neuron):
    """Two convolutions with LIF, one pooling of spikes, flattened into a last layer."""
    seeded = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    channels, groups = draw(st.sampled_from([2, 4])), draw(st.sampled_from([1, 2]))
    stride, padding, dilation = draw(st.integers(1, 2)), draw(st.integers(0, 1)), draw(st.integers(1, 2))
    pool = draw(st.sampled_from([nn.MaxPool2d(2), nn.AvgPool2d(2) if leaks is None else nn.MaxPool2d(2)]))
    first = nn.Conv2d(2, channels, 3, stride=stride, padding=padding + 1)
    second = nn.Conv2d(channels, 4, 2, padding=padding, dilation=dilation, groups=groups, bias=draw(st.booleans()))
    side = (11 + 2 * (padding + 1) - 3) // stride + 1
    side = side // 2 + 2 * padding - dilation
    layers = [
        first,
        LIF(leak(draw, seeded, (channels, 1, 1), leaks), num_steps=4, **neuron),
        OverTime(pool),
        OverTime(second),
        LIF(leak(draw, seeded, (), leaks), **neuron),
        nn.Flatten(2),
        nn.Linear(4 * side * side, 3),
        LIF(leak(draw, seeded, (), leaks), **neuron),
    ]
    return make_dyadic(nn.Sequential(*layers), seeded), (2, 11, 11), dyadic((SAMPLES, 2, 11, 11), seeded, 1 / 4, 8)


def leak(draw, seeded, shape, leaks):
    if leaks is not None:
        return draw(st.sampled_from(leaks))
    if draw(st.booleans()):
        return draw(st.sampled_from([0.0, 1.0, 0.95, draw(st.floats(0.0078125, 0.9921875, width=32))]))
    return torch.rand(shape, generator=seeded)


@st.composite
def integer_networks(draw):
    """Linear or convolution layers on codes, all with exact sums, and a step or a ReLU between them."""
    seeded = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    convolution = draw(st.booleans())
    shape = (2, 6, 6) if convolution else (draw(st.integers(2, 40)),)
    options = [
        {
            "input_quant": quantiser(draw),
            "integer": True,
            "weight_format": draw(st.sampled_from(["int8", "int4", "int2", "ternary", "binary"])),
            "granularity": draw(st.sampled_from(["per_channel", "per_tensor"])),
            "bias": draw(st.booleans()),
        }
        for _ in range(2)
    ]
    if convolution:
        front = [QuantConv2d(2, 4, 3, padding=1, groups=draw(st.sampled_from([1, 2])), **options[0]), nn.MaxPool2d(2)]
        layers = [*front, nn.Flatten(), QuantLinear(36, 5, **options[1])]
    else:
        layers = [QuantLinear(shape[0], 9, **options[0]), nn.ReLU(), QuantLinear(9, 5, **options[1])]
    return scaled(nn.Sequential(*layers), shape, seeded)


@st.composite
def quantised_networks(draw):
    """Floats between quantisers whose scales are powers of two, so that sums are exact all the same."""
    seeded = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    features = draw(st.integers(2, 40))
    bits, signed = draw(st.integers(2, 8)), draw(st.booleans())
    formats = [draw(st.sampled_from(["int8", "int5", "int2", "ternary", "binary"])) for _ in range(2)]
    network = nn.Sequential(
        QuantActivation(8, signed=True, scale=2.0**-6),
        QuantLinear(features, 9, weight_format=formats[0]),
        QuantActivation(bits, signed, scale=2.0 ** -draw(st.integers(0, 4))),
        QuantLinear(9, 5, weight_format=formats[1], bias=False),
        QuantActivation(3, signed=True, scale=0.25),
    )
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, QuantLinear):
                layer.weight_scale = 2.0 ** -torch.randint(3, 6, layer.weight_scale.shape, generator=seeded)
                if layer.bias is not None:
                    layer.bias.copy_(dyadic(layer.bias.shape, seeded))
    return network, (features,), torch.randn(SAMPLES, features, generator=seeded)


@st.composite
def stepping_networks(draw):
    """Binary weights between signs, or dyadic ones between staircases, steps and signs: two hidden layers."""
    seeded = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sizes = [draw(st.integers(2, 20)) for _ in range(4)]
    binary = draw(st.booleans())
    layers = [Sign()] if binary else []
    for features_in, features_out in pairwise(sizes):
        if binary:
            layers.append(QuantLinear(features_in, features_out, weight_format="binary"))
            with torch.no_grad():
                layers[-1].weight.copy_(torch.randn(features_out, features_in, generator=seeded))
                layers[-1].weight_scale = torch.full_like(layers[-1].weight_scale, 2.0 ** -draw(st.integers(0, 3)))
                layers[-1].bias.copy_(dyadic(layers[-1].bias.shape, seeded))
            layers.append(Sign(positive_on=draw(st.sampled_from(["ge", "gt"]))))
        else:
            # Of 2 or 4 levels, so that what the next layer adds up does not round.
            step = draw(st.sampled_from([Staircase(2), Staircase(4, squash="clamp"), Heaviside(), Sign()]))
            layers += [make_dyadic(nn.Sequential(nn.Linear(features_in, features_out)), seeded)[0], step]
    return nn.Sequential(*layers), (sizes[0],), dyadic((SAMPLES, sizes[0]), seeded, 1 / 4, 8)


def quantiser(draw):
    signed = draw(st.booleans())
    return QuantActivation(draw(st.integers(2, 8)), signed, narrow_range=draw(st.booleans()) or not signed)


def scaled(network, shape, seeded):
    inputs = torch.randn(SAMPLES, *shape, generator=seeded)
    calibrate(network, [inputs])
    return network, shape, inputs
