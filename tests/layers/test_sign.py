"""The Sign module is its function, with nothing of its own but options."""

import inspect

import pytest
import torch
from torch import nn

from lightning_polystep.functional import NonDifferentiableError, sign
from lightning_polystep.layers import Sign
from tests.helpers.layers import COPIES, candidates_equal_the_loop, losses_of_training


@pytest.mark.parametrize("positive_on", ["ge", "gt"])
def test_equals_its_function(positive_on):
    x = torch.tensor([[-1.0, -0.0], [0.0, 2.0]])
    assert torch.equal(Sign(positive_on=positive_on)(x), sign(x, positive_on=positive_on))


def test_every_option_of_the_function_is_one_of_the_module():
    function, module = (set(inspect.signature(callable_).parameters) for callable_ in (sign, Sign))
    assert function - {"x", "name"} == module


@pytest.mark.parametrize("copied", COPIES)
def test_copies_behave_alike_and_hold_no_state(copied):
    layer, x = Sign(positive_on="gt"), torch.zeros(3)
    assert not layer.state_dict()
    assert torch.equal(copied(layer)(x), layer(x))


def test_backward_names_the_layer_or_gives_zeros():
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(NonDifferentiableError, match=r"Sign\(positive_on='ge'\)"):
        Sign()(x).sum().backward()
    Sign(on_backward="zero")(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(3))


@pytest.mark.parametrize("option", ["positive_on", "on_backward"])
def test_bad_options_are_refused_when_built(option):
    with pytest.raises(ValueError, match=f"^Sign: {option} must be .*[.]$"):
        Sign(**{option: "eq"})


def network():
    return nn.Sequential(nn.Linear(6, 24), Sign(), nn.Linear(24, 3))


def test_vmap_over_parameters_equals_the_loop():
    assert candidates_equal_the_loop(network(), torch.randn(5, 6), exact=False)


def test_a_network_of_them_learns():
    losses = losses_of_training(network())
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
