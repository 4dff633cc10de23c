"""The Staircase module is its function, with nothing of its own but options."""

import inspect

import pytest
import torch
from torch import nn

from lightning_polystep.functional import NonDifferentiableError, staircase
from lightning_polystep.layers import Staircase
from tests.helpers.layers import COPIES, candidates_equal_the_loop, losses_of_training


@pytest.mark.parametrize("rounding", ["floor", "round"])
@pytest.mark.parametrize("squash", ["sigmoid", "clamp", "tanh"])
def test_equals_its_function(squash, rounding):
    x = torch.randn(50)
    assert torch.equal(
        Staircase(7, rounding=rounding, squash=squash)(x), staircase(x, 7, rounding=rounding, squash=squash)
    )


def test_every_option_of_the_function_is_one_of_the_module():
    function, module = (set(inspect.signature(callable_).parameters) for callable_ in (staircase, Staircase))
    assert function - {"x", "name"} == module


@pytest.mark.parametrize("copied", COPIES)
def test_copies_behave_alike_and_hold_no_state(copied):
    layer, x = Staircase(3, squash="tanh"), torch.randn(9)
    assert not layer.state_dict()
    assert torch.equal(copied(layer)(x), layer(x))


def test_backward_names_the_layer_or_gives_zeros():
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(NonDifferentiableError, match=r"Staircase\(levels=5, rounding='floor', squash='sigmoid'\)"):
        Staircase()(x).sum().backward()
    Staircase(on_backward="zero")(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(3))


@pytest.mark.parametrize("option", [{"levels": 0}, {"rounding": "up"}, {"squash": "gelu"}, {"on_backward": "ste"}])
def test_bad_options_are_refused_when_built(option):
    with pytest.raises(ValueError, match=f"^Staircase: {next(iter(option))} must be .*[.]$"):
        Staircase(**option)


def network():
    return nn.Sequential(nn.Linear(6, 16), Staircase(), nn.Linear(16, 16), Staircase(), nn.Linear(16, 3))


def test_vmap_over_parameters_equals_the_loop():
    assert candidates_equal_the_loop(network(), torch.randn(5, 6), exact=False)


def test_a_network_of_them_learns():
    losses = losses_of_training(network())
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
