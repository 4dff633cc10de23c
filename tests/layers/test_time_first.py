"""Time first: where each number goes, and that scoring sees through it."""

import pytest
import torch
from torch import nn

from lightning_polystep.layers import LIF, SpikeCount, TimeFirst


def test_every_number_has_its_place():
    inputs = torch.rand(3, 4, 2, 5, 6)
    outputs = TimeFirst()(inputs)
    assert outputs.shape == (4, 3, 60)
    assert torch.equal(outputs[2, 1], inputs[1, 2].flatten())


def test_equals_time_first_by_hand():
    network = nn.Sequential(TimeFirst(), nn.Linear(6, 4), LIF(beta=0.5, threshold=0.1), SpikeCount())
    inputs = torch.rand(3, 7, 2, 3)
    by_hand = torch.stack([sample.flatten(1) for sample in inputs], dim=1)
    counts = network(inputs)
    assert counts.sum() > 0
    torch.testing.assert_close(counts, network[1:](by_hand))


@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_inputs_without_time_or_features_are_refused(shape):
    with pytest.raises(ValueError, match=r"TimeFirst: inputs must be \(N, T, ...\) with at least one feature, got \(3"):
        TimeFirst()(torch.rand(shape))
