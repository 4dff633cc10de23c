"""The guard lets values through and no gradient, for one input or several."""

import pytest
import torch

from lightning_polystep.functional import NonDifferentiableError, non_differentiable


def first(*inputs):
    return inputs[0].round()


def test_values_are_those_of_the_function():
    x = torch.randn(4, requires_grad=True)
    assert torch.equal(non_differentiable(torch.round, x, name="round"), x.round())
    with torch.no_grad():
        assert non_differentiable(torch.round, x, name="round").grad_fn is None


@pytest.mark.parametrize("which", [0, 1])
def test_every_input_is_guarded(which):
    inputs = [torch.ones(3), torch.ones(2)]
    inputs[which].requires_grad_()
    with pytest.raises(NonDifferentiableError, match=r'^my_op has no gradient: .*"polystep".*on_backward="zero"\.$'):
        non_differentiable(first, *inputs, name="my_op").sum().backward()
    non_differentiable(first, *inputs, on_backward="zero", name="my_op").sum().backward()
    assert torch.equal(inputs[which].grad, torch.zeros_like(inputs[which]))


def test_integer_inputs_pass_along():
    x, index = torch.ones(3, requires_grad=True), torch.tensor([2, 0])
    output = non_differentiable(lambda x, index: x[index], x, index, on_backward="zero", name="take")
    output.sum().backward()
    assert torch.equal(x.grad, torch.zeros(3))


def test_zeros_have_the_shape_of_the_input_under_vmap():
    def loss(x):
        return non_differentiable(lambda x: x.sum(-1, keepdim=True), x, on_backward="zero", name="sum").sum() + x.sum()

    assert torch.equal(torch.func.vmap(torch.func.grad(loss))(torch.randn(4, 3)), torch.ones(4, 3))


def test_misspelt_option_is_refused():
    with pytest.raises(ValueError, match=r"^my_op: on_backward must be .*[.]$"):
        non_differentiable(torch.round, torch.ones(1), on_backward="ignore", name="my_op")
