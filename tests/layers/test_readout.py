"""The readout modules are their functions."""

import pytest
import torch
from torch import nn

from lightning_polystep.functional import lif
from lightning_polystep.layers import LIF, LastMembrane, SpikeCount, SpikeRate


def test_spike_count_after_a_layer():
    current = torch.rand(4, 3)
    assert torch.equal(nn.Sequential(LIF(num_steps=9), SpikeCount())(current), lif(current, 0.95, num_steps=9).sum(0))


def test_spike_rate_after_a_layer():
    current = torch.rand(4, 3)
    assert torch.equal(nn.Sequential(LIF(num_steps=8), SpikeRate())(current), lif(current, 0.95, num_steps=8).mean(0))


def test_last_membrane_after_a_layer():
    current = torch.rand(4, 3)
    network = nn.Sequential(LIF(num_steps=9, return_membrane=True), LastMembrane())
    assert torch.equal(network(current), lif(current, 0.95, num_steps=9, return_membrane=True).membrane[-1])


def test_the_wrong_layer_before_is_named():
    with pytest.raises(TypeError, match="return_membrane=True"):
        nn.Sequential(LIF(num_steps=9), LastMembrane())(torch.rand(4, 3))
    with pytest.raises(TypeError, match="return_membrane=False"):
        nn.Sequential(LIF(num_steps=9, return_membrane=True), SpikeCount())(torch.rand(4, 3))
