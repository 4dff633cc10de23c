"""The Synaptic module is its function, plus constants that it owns."""

import inspect

import pytest
import torch
from torch import nn

from lightning_polystep.functional import NonDifferentiableError, synaptic
from lightning_polystep.layers import SpikeCount, Synaptic
from tests.helpers.layers import COPIES, candidates_equal_the_loop, losses_of_training


@pytest.mark.parametrize("reset_mechanism", ["zero", "subtract", "none"])
@pytest.mark.parametrize("reset_delay", [False, True])
@pytest.mark.parametrize("spike_on", ["ge", "gt"])
def test_equals_its_function(reset_mechanism, reset_delay, spike_on):
    options = {"num_steps": 6, "reset_mechanism": reset_mechanism, "reset_delay": reset_delay, "spike_on": spike_on}
    current, *constants = torch.rand(3, 4), torch.rand(4), torch.rand(4), torch.rand(4)
    module = Synaptic(*constants, return_membrane=True, **options)(current)
    function = synaptic(current, *constants, return_membrane=True, **options)
    assert torch.equal(module.spikes, function.spikes)
    assert torch.equal(module.membrane, function.membrane)


def test_every_option_of_the_function_is_one_of_the_module():
    function, module = (set(inspect.signature(callable_).parameters) for callable_ in (synaptic, Synaptic))
    assert function - {"current", "name"} == module - {"learn_alpha", "learn_beta", "learn_threshold"}


def test_learned_constants_are_parameters_and_others_buffers():
    learned = Synaptic(learn_alpha=True, learn_beta=True, learn_threshold=True)
    assert set(dict(learned.named_parameters())) == set(Synaptic.search_scale) == {"alpha", "beta", "threshold"}
    assert set(dict(Synaptic().named_buffers())) == {"alpha", "beta", "threshold"}
    assert not list(Synaptic().parameters())


@pytest.mark.parametrize("copied", COPIES)
def test_copies_after_use_behave_alike(copied):
    layer, current = Synaptic(torch.rand(3), num_steps=5, learn_alpha=True), torch.rand(4, 3)
    expected = layer(current)
    assert torch.equal(copied(layer)(current), expected)


def test_state_dict_round_trip_carries_the_constants():
    source, target = (Synaptic(torch.rand(3), torch.rand(3), learn_alpha=learn) for learn in (True, False))
    target.load_state_dict(source.state_dict())
    current = torch.rand(9, 2, 3)
    assert torch.equal(target(current), source(current))


def test_backward_names_the_layer():
    layer = Synaptic(0.8, learn_alpha=True, num_steps=5)
    with pytest.raises(NonDifferentiableError, match=r"Synaptic\(.*alpha=0\.8 \(learned\), .*num_steps=5.*polystep"):
        layer(torch.rand(4, 3)).sum().backward()


@pytest.mark.parametrize("option", [{"num_steps": 0}, {"reset_mechanism": "hard"}, {"spike_on": "eq"}])
def test_bad_options_are_refused_when_built(option):
    with pytest.raises(ValueError, match=f"Synaptic: {next(iter(option))} must be"):
        Synaptic(**option)


def network():
    neurons = {"learn_alpha": True, "learn_beta": True, "learn_threshold": True}
    return nn.Sequential(
        nn.Linear(6, 16), Synaptic(0.5, 0.9, num_steps=6, **neurons), nn.Linear(16, 3), Synaptic(0.5, 0.9), SpikeCount()
    )


def test_vmap_over_learned_constants_equals_the_loop():
    layer = Synaptic(torch.rand(3), torch.rand(3), num_steps=6, learn_alpha=True, learn_beta=True, learn_threshold=True)
    assert candidates_equal_the_loop(layer, torch.rand(4, 3))


def test_a_network_of_them_learns():
    losses = losses_of_training(network())
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
