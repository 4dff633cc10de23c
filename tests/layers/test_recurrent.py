"""The RLIF module is its function, plus constants and connections that it owns."""

import inspect

import pytest
import torch
from torch import nn

from lightning_polystep.functional import NonDifferentiableError, rlif
from lightning_polystep.layers import LIF, RLIF, SpikeCount
from tests.helpers.layers import COPIES, candidates_equal_the_loop, losses_of_training


@pytest.mark.parametrize("reset_mechanism", ["zero", "subtract", "none"])
@pytest.mark.parametrize("reset_delay", [False, True])
@pytest.mark.parametrize("spike_on", ["ge", "gt"])
def test_equals_its_function(reset_mechanism, reset_delay, spike_on):
    options = {"num_steps": 6, "reset_mechanism": reset_mechanism, "reset_delay": reset_delay, "spike_on": spike_on}
    current, beta, threshold = torch.rand(3, 4), torch.rand(4), torch.rand(4)
    layer = RLIF(4, beta, threshold, return_membrane=True, **options)
    function = rlif(current, layer.recurrent, beta, threshold, return_membrane=True, **options)
    assert torch.equal(layer(current).spikes, function.spikes)
    assert torch.equal(layer(current).membrane, function.membrane)


def test_every_option_of_the_function_is_one_of_the_module():
    function, module = (set(inspect.signature(callable_).parameters) for callable_ in (rlif, RLIF))
    assert function - {"current", "name", "recurrent"} == module - {"features", "bias", "learn_beta", "learn_threshold"}


def test_connections_are_a_linear_child():
    assert {name for name, _ in RLIF(4).named_parameters()} == {"recurrent.weight", "recurrent.bias"}
    assert {name for name, _ in RLIF(4, bias=False).named_parameters()} == {"recurrent.weight"}


@pytest.mark.parametrize("copied", COPIES)
def test_copies_after_use_behave_alike(copied):
    layer, current = RLIF(3, num_steps=5), torch.rand(4, 3)
    expected = layer(current)
    assert torch.equal(copied(layer)(current), expected)


def test_state_dict_round_trip():
    source, target, current = RLIF(3, torch.rand(3)), RLIF(3, torch.rand(3)), torch.rand(9, 2, 3)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(current), source(current))


def test_backward_names_the_layer():
    with pytest.raises(NonDifferentiableError, match=r"RLIF\(beta=0\.95, .*num_steps=5.*polystep"):
        RLIF(3, num_steps=5)(torch.rand(4, 3)).sum().backward()


@pytest.mark.parametrize("option", [{"num_steps": 0}, {"reset_mechanism": "hard"}, {"spike_on": "eq"}])
def test_bad_options_are_refused_when_built(option):
    with pytest.raises(ValueError, match=f"RLIF: {next(iter(option))} must be"):
        RLIF(3, **option)


def network():
    return nn.Sequential(nn.Linear(6, 16), RLIF(16, 0.9, num_steps=6), nn.Linear(16, 3), LIF(0.9), SpikeCount())


def test_vmap_over_parameters_equals_the_loop_in_float64():
    assert candidates_equal_the_loop(network().double(), torch.randn(5, 6).double())


def test_a_network_of_them_learns():
    losses = losses_of_training(network())
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
