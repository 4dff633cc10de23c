"""Readouts take the time axis away, and refuse what they cannot read."""

import pytest
import torch

from lightning_polystep.functional import last_membrane, lif, spike_count, spike_rate


def test_spike_count_sums_over_time():
    spikes = (torch.rand(7, 3, 4) < 0.5).float()
    expected = [[sum(spikes[t, n, j].item() for t in range(7)) for j in range(4)] for n in range(3)]
    assert spike_count(spikes).tolist() == expected


def test_spike_rate_is_the_share_of_steps():
    spikes = (torch.rand(8, 3, 4) < 0.5).float()
    assert torch.equal(8 * spike_rate(spikes), spike_count(spikes))


def test_last_membrane_is_that_of_the_last_step():
    current = torch.full((1, 1), 0.25)
    for steps in (1, 2, 3):
        output = lif(current, 0.5, num_steps=steps, return_membrane=True)
        assert last_membrane(output).item() == 0.5 - 0.25 * 0.5 ** (steps - 1) * 1.0


def test_spike_count_refuses_an_output_with_membrane():
    with pytest.raises(TypeError, match="return_membrane=False"):
        spike_count(lif(torch.ones(2, 3), 0.9, return_membrane=True))


def test_spike_rate_refuses_an_output_with_membrane():
    with pytest.raises(TypeError, match="return_membrane=False"):
        spike_rate(lif(torch.ones(2, 3), 0.9, return_membrane=True))


def test_last_membrane_refuses_spikes_alone():
    with pytest.raises(TypeError, match="return_membrane=True"):
        last_membrane(lif(torch.ones(2, 3), 0.9))
