"""The spiking MLP: its layers, its currents, its counts."""

import pytest
import torch

from lightning_polystep.functional import lif
from lightning_polystep.layers import LIF
from models import SpikingMLP


def test_equals_its_equations():
    network, images = SpikingMLP((12, 7, 5, 3), num_steps=6, beta=0.8, threshold=0.3), torch.rand(4, 1, 3, 4)
    first, second, third = (layer for layer in network if isinstance(layer, torch.nn.Linear))
    spikes = lif(first(images.flatten(1)), 0.8, 0.3, num_steps=6)
    spikes = lif(third(lif(second(spikes), 0.8, 0.3)), 0.8, 0.3)
    counts = network(images)
    assert counts.sum() > 0
    assert torch.equal(counts, spikes.sum(0))


def test_defaults_are_those_of_the_paper():
    network = SpikingMLP()
    assert [tuple(weight.shape) for weight in network.parameters()] == [(128, 784), (128,), (10, 128), (10,)]
    counts = network(torch.rand(8, 1, 28, 28))
    assert counts.shape == (8, 10)
    assert 0 <= counts.min() <= counts.max() <= 15


def test_options_reach_every_layer():
    network = SpikingMLP((4, 3, 2), 5, reset_mechanism="subtract", spike_on="gt", learn_beta=True, learn_threshold=True)
    neurons = [layer for layer in network if isinstance(layer, LIF)]
    assert [layer.num_steps for layer in neurons] == [5, None]
    for layer in neurons:
        assert (layer.reset_mechanism, layer.spike_on) == ("subtract", "gt")
        assert set(dict(layer.named_parameters())) == {"beta", "threshold"}


def test_a_single_layer_counts_up_to_num_steps():
    network = SpikingMLP((2, 1), num_steps=4)
    torch.nn.init.ones_(network[1].weight)
    torch.nn.init.zeros_(network[1].bias)
    assert network(torch.tensor([[0.5, 0.5], [0.0, 0.0]])).tolist() == [[4.0], [0.0]]


def test_vmap_over_weights_equals_the_loop():
    network, images = SpikingMLP((6, 5, 3), num_steps=4, threshold=0.2), torch.rand(3, 6)
    candidates = {name: value.detach() + torch.randn(4, *value.shape) for name, value in network.named_parameters()}

    def run(weights):
        return torch.func.functional_call(network, weights, (images,))

    together = torch.func.vmap(run)(candidates)
    alone = torch.stack([run({name: value[index] for name, value in candidates.items()}) for index in range(4)])
    assert (together != together[0]).any()
    assert torch.equal(together, alone)


@pytest.mark.parametrize("sizes", [(), (784,)])
def test_too_few_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="an input and an output size"):
        SpikingMLP(sizes)


def test_the_mnist_configuration_is_run_in_two_slices_and_more_steps_in_many():
    assert SpikingMLP().slice_size(torch.empty(512, 1)) is None
    assert SpikingMLP().slice_size(torch.empty(1024, 1)) == 512
    assert SpikingMLP(num_steps=400).samples == 20
    assert SpikingMLP((784, 16, 256, 10), num_steps=16, slice_bytes=2**20).samples == 64
    assert SpikingMLP(num_steps=400, slice_bytes=1).samples == 1
    assert SpikingMLP(num_steps=400, slice_bytes=None).samples is None


def test_slices_change_nothing():
    network, images = SpikingMLP((6, 5, 3), num_steps=4, threshold=0.2), torch.rand(9, 6)
    sliced = SpikingMLP((6, 5, 3), num_steps=4, threshold=0.2, slice_bytes=2 * 4 * 5 * 4)
    sliced.load_state_dict(network.state_dict())
    assert sliced.samples == 2
    torch.testing.assert_close(sliced(images), network(images), rtol=0, atol=1)
    assert torch.equal(sliced.double()(images.double()), network.double()(images.double()))


def test_inputs_with_a_time_axis_drive_the_first_layer_as_they_are():
    network, events = SpikingMLP((12, 7, 3), num_steps=None, beta=0.8, threshold=0.3), torch.rand(4, 6, 2, 2, 3).round()
    first, second = (layer for layer in network if isinstance(layer, torch.nn.Linear))
    spikes = lif(second(lif(first(events.flatten(2).transpose(0, 1)), 0.8, 0.3)), 0.8, 0.3)
    counts = network(events)
    assert counts.sum() > 0
    torch.testing.assert_close(counts, spikes.sum(0))
    assert network.samples is None


def test_first_currents_are_about_one_if_the_inputs_are_known():
    network, events = SpikingMLP((400, 50, 3), num_steps=None, input_mean_square=0.1), torch.rand(20, 5, 400) < 0.1
    currents = network[1](network[0](events.float()))
    assert 0.8 < currents.std() < 1.2
