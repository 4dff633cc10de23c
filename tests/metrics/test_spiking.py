"""Firing, by loops over single spikes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.layers import LIF
from lightning_polystep.metrics import DeadNeuronFraction, SaturatedNeuronFraction, SpikeRate

BATCHES = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 5)),  # (T, N), which may differ from batch to batch
    min_size=1,
    max_size=3,
)


def trains(sizes, neurons, seed):
    draw = torch.Generator().manual_seed(seed)
    levels = torch.rand(neurons, generator=draw)
    # Some neurons never fire and some always do.
    levels = torch.where(levels < 0.3, 0.0, torch.where(levels > 0.7, 1.0, levels))
    return [(torch.rand(*size, *neurons, generator=draw) < levels).float() for size in sizes]


def rates_by_loop(batches, neurons):
    """Each neuron's number of spikes, and the number of its chances, one element at a time."""
    fired, chances = [0] * neurons.numel(), 0
    for spikes in batches:
        for step in spikes:
            for sample in step:
                chances += 1
                for index, value in enumerate(sample.flatten().tolist()):
                    fired[index] += value == 1.0
    return fired, chances


@given(sizes=BATCHES, neurons=st.lists(st.integers(1, 4), min_size=0, max_size=3), seed=st.integers(0, 99))
def test_equal_a_loop_over_every_spike(sizes, neurons, seed):
    neurons = torch.Size(neurons)
    batches = trains(sizes, neurons, seed)
    rate, dead = SpikeRate(), DeadNeuronFraction(neurons.numel())
    full, high = SaturatedNeuronFraction(neurons.numel()), SaturatedNeuronFraction(neurons.numel(), 0.5)
    for spikes in batches:
        for metric in (rate, dead, full, high):
            metric.update(spikes)
    fired, chances = rates_by_loop(batches, neurons)
    assert float(rate.compute()) == pytest.approx(sum(fired) / (chances * len(fired)), rel=1e-6)
    assert float(dead.compute()) == pytest.approx(sum(count == 0 for count in fired) / len(fired), rel=1e-6)
    assert float(full.compute()) == pytest.approx(sum(count == chances for count in fired) / len(fired), rel=1e-6)
    assert float(high.compute()) == pytest.approx(sum(2 * count >= chances for count in fired) / len(fired), rel=1e-6)


def test_booleans_and_integers_count_alike():
    spikes = torch.rand(3, 4, 5) < 0.5
    values = []
    for dtype in (torch.bool, torch.uint8, torch.float32):
        rate = SpikeRate()
        rate.update(spikes.to(dtype))
        values.append(float(rate.compute()))
    assert len(set(values)) == 1


def test_counts_are_exact_beyond_what_a_float_holds():
    rate = SpikeRate()
    rate.spikes += 2**24
    rate.places += 2**25
    rate.update(torch.ones(1, 1, 1))
    assert (int(rate.spikes), int(rate.places)) == (2**24 + 1, 2**25 + 1)


def test_a_layer_of_silent_ordinary_and_saturated_neurons():
    spikes = LIF(beta=1.0, num_steps=4)(torch.tensor([[0.0, 0.5, 2.0, 3.0]]))
    dead, saturated, rate = DeadNeuronFraction(4), SaturatedNeuronFraction(4), SpikeRate()
    for metric in (dead, saturated, rate):
        metric.update(spikes)
    assert [float(metric.compute()) for metric in (dead, saturated, rate)] == [0.25, 0.5, 0.625]


def test_neurons_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"^DeadNeuronFraction: spikes must be .* with 4 neurons, got \(2, 3, 5\)[.]$"):
        DeadNeuronFraction(4).update(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"^SaturatedNeuronFraction: num_neurons must be .*[.]$"):
        SaturatedNeuronFraction(0)
    with pytest.raises(ValueError, match=r"^SaturatedNeuronFraction: rate must be .*[.]$"):
        SaturatedNeuronFraction(3, 0.0)
