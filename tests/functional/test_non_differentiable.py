"""The guard lets values through and no gradient, for one input or several."""

import pytest
import torch

from lightning_polystep.functional import NonDifferentiableError, gradient_rule, non_differentiable, true_gradients


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


def test_a_rule_stands_in_for_the_guard_and_only_in_its_context():
    x = torch.randn(4, requires_grad=True)
    with gradient_rule(lambda forward, x: forward(x) + (x - x.detach())):
        y = non_differentiable(torch.round, x, name="round")
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(4))
    with pytest.raises(NonDifferentiableError):
        non_differentiable(torch.round, x, name="round").sum().backward()


def test_true_gradients_are_those_of_the_parts_that_have_one():
    x, y = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
    with true_gradients():
        non_differentiable(lambda x, y: x.round() * y, x, y, name="half hard").sum().backward()
    assert torch.equal(x.grad, torch.zeros(4))
    assert torch.equal(y.grad, x.detach().round())


def test_no_rule_without_autograd():
    with torch.no_grad(), gradient_rule(lambda *_: pytest.fail("nothing is recorded")):
        non_differentiable(torch.round, torch.ones(2), name="round")
