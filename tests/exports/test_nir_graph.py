"""What NIR can say, and what it cannot."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

pytest.importorskip("nir")

import nir

from lightning_polystep.exports import from_nir, to_nir
from lightning_polystep.interop import ConversionError
from lightning_polystep.layers import (
    LIF,
    RLIF,
    LastMembrane,
    MeanOverTime,
    OverTime,
    SpikeCount,
    SpikeRate,
    Synaptic,
    TimeFirst,
)
from tests.exports.networks import lif_stacks


def neurons(**options):
    return nn.Sequential(nn.Linear(4, 3), LIF(**{"num_steps": 5, "spike_on": "gt", **options}))


@given(lif_stacks(spike_on="gt"))
@settings(max_examples=20)
def test_constants_are_those_of_the_equation(case):
    network, shape, _ = case
    graph = to_nir(network, shape, dt=1e-3)
    layers = [layer for layer in network if isinstance(layer, LIF)]
    nodes = [node for node in graph.nodes.values() if isinstance(node, nir.LIF)]
    for layer, node in zip(layers, nodes, strict=True):
        beta = (1 - 1e-3 / node.tau).astype(np.float32)
        assert (beta == layer.beta.clamp(0, 1).numpy()).all()
        np.testing.assert_allclose(node.r * 1e-3 / node.tau, 1, rtol=1e-12)
        assert (node.v_threshold.astype(np.float32) == layer.threshold.numpy()).all()
        assert not node.v_leak.any()
        assert not node.v_reset.any()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"reset_mechanism": "subtract"}, 'sets the membrane to a value: reset_mechanism="subtract" cannot be said'),
        ({"reset_mechanism": "none"}, 'sets the membrane to a value: reset_mechanism="none" cannot be said'),
        ({"reset_delay": True}, "resets the membrane at once: reset_delay=True cannot be said"),
        ({"return_membrane": True}, "gives its spikes alone"),
        ({"spike_on": "ge"}, r"fires above its threshold and not at it: .*at_threshold=\"shift\""),
        ({"threshold": -0.5}, "threshold below 0"),
    ],
)
def test_what_a_neuron_of_nir_cannot_say_is_refused_with_the_reason(options, reason):
    with pytest.raises(ConversionError, match=reason):
        to_nir(neurons(**options), (4,))


@pytest.mark.parametrize(
    ("layers", "shape", "reason"),
    [
        ([nn.Linear(4, 3)], (4,), "has no LIF layer"),
        ([nn.Linear(4, 3), nn.ReLU(), LIF(num_steps=2, spike_on="gt")], (4,), r"layer 1: ReLU\(\) has no node in NIR"),
        ([Synaptic(num_steps=2)], (4,), "Synaptic is not written to NIR here"),
        ([RLIF(4, num_steps=2)], (4,), "RLIF is not written to NIR here"),
        ([LIF(num_steps=2, spike_on="gt"), SpikeCount(), nn.Linear(4, 3)], (4,), "behind a sum over time"),
        ([SpikeRate()], (4,), "there are no spikes yet"),
        ([LIF(num_steps=2, spike_on="gt"), LastMembrane()], (4,), "has no node in NIR"),
        ([nn.MaxPool2d(2), LIF(num_steps=2, spike_on="gt")], (1, 4, 4), "no max-pooling, but for spikes"),
        ([nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")], (1, 4, 4), "pads with zeros"),
        ([nn.Conv2d(1, 2, 2, padding="same")], (1, 4, 4), "pads one side more"),
        ([nn.BatchNorm2d(1)], (1, 4, 4), "fold it first"),
        ([nn.Linear(5, 3)], (4,), r"does not take a sample of shape \(4,\)"),
        ([nn.AvgPool2d(2, ceil_mode=True)], (1, 5, 5), "no ceil_mode"),
    ],
)
def test_layers_without_a_node_are_refused_by_name(layers, shape, reason):
    with pytest.raises(ConversionError, match=reason):
        to_nir(nn.Sequential(*layers), shape)


def test_shifted_thresholds_are_the_same_neuron_at_the_threshold_itself():
    network = neurons(beta=0.0, spike_on="ge")
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(3, 4))
        network[0].bias.zero_()
    below = float(np.nextafter(np.float32(1), np.float32(0)))
    inputs = torch.tensor([[1.0, below, 2.0, 0.0]])
    assert network(inputs)[0, 0].tolist() == [1, 0, 1]
    assert torch.equal(from_nir(to_nir(network, (4,), at_threshold="shift"))(inputs), network(inputs))


def test_a_unit_resistance_is_the_same_neuron_in_other_units():
    network = neurons(beta=0.75, threshold=1.5)
    graph = to_nir(network, (4,), unit_resistance=True)
    node = graph.nodes["lif_1"]
    assert (node.r == 1).all()
    np.testing.assert_allclose(node.v_threshold, 0.375)
    inputs = torch.rand(9, 4) * 3
    assert torch.equal(from_nir(graph)(inputs), network(inputs))


def test_a_linear_layer_behind_a_mean_over_time_goes_into_every_step():
    network = nn.Sequential(
        LIF(0.5, num_steps=3, spike_on="gt"), OverTime(nn.MaxPool2d(2)), MeanOverTime(), nn.Linear(4, 2)
    )
    graph = to_nir(network, (1, 4, 4))
    assert graph.metadata == {"dt": 1e-4, "num_steps": 3, "readout": "mean"}
    inputs = torch.rand(5, 1, 4, 4) * 2
    torch.testing.assert_close(from_nir(graph)(inputs), network(inputs))


def test_inputs_with_a_time_axis_behind_the_batch_are_flattened_at_every_step():
    network = nn.Sequential(TimeFirst(), nn.Linear(8, 3), LIF(0.5, spike_on="gt"), SpikeCount())
    graph = to_nir(network, (2, 2, 2))
    inputs = torch.rand(5, 7, 2, 2, 2) * 4
    assert torch.equal(from_nir(graph)(inputs.transpose(0, 1)), network(inputs))
