"""The Heaviside module is its function, with nothing of its own but options."""

import inspect

import pytest
import torch
from torch import nn

from lightning_polystep.functional import NonDifferentiableError, heaviside
from lightning_polystep.layers import Heaviside
from tests.helpers.layers import COPIES, candidates_equal_the_loop, losses_of_training


@pytest.mark.parametrize("spike_on", ["ge", "gt"])
def test_equals_its_function(spike_on):
    x = torch.tensor([[-1.0, -0.0], [0.0, 2.0]])
    assert torch.equal(Heaviside(spike_on=spike_on)(x), heaviside(x, spike_on=spike_on))


def test_every_option_of_the_function_is_one_of_the_module():
    function, module = (set(inspect.signature(callable_).parameters) for callable_ in (heaviside, Heaviside))
    assert function - {"x", "name"} == module


@pytest.mark.parametrize("copied", COPIES)
def test_copies_behave_alike_and_hold_no_state(copied):
    layer, x = Heaviside(spike_on="gt"), torch.zeros(3)
    assert not layer.state_dict()
    assert torch.equal(copied(layer)(x), layer(x))


def test_backward_names_the_layer_or_gives_zeros():
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(NonDifferentiableError, match=r"Heaviside\(spike_on='ge'\)"):
        Heaviside()(x).sum().backward()
    Heaviside(on_backward="zero")(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(3))


@pytest.mark.parametrize("option", ["spike_on", "on_backward"])
def test_bad_options_are_refused_when_built(option):
    with pytest.raises(ValueError, match=f"^Heaviside: {option} must be .*[.]$"):
        Heaviside(**{option: "eq"})


def network():
    return nn.Sequential(nn.Linear(6, 24), Heaviside(), nn.Linear(24, 3))


def test_vmap_over_parameters_equals_the_loop():
    assert candidates_equal_the_loop(network(), torch.randn(5, 6), exact=False)


def test_a_network_of_them_learns():
    losses = losses_of_training(network())
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
