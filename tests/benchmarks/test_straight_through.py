"""The straight-through opponent: hard values, and a gradient in every parameter."""

import pytest
import torch

from benchmarks.straight_through import straight_through
from lightning_polystep.functional import NonDifferentiableError, argmax_attention, heaviside, non_differentiable
from lightning_polystep.layers import calibrate
from models import BinaryMLP, Int8MLP, IntegerMLP, MoENet, SlotAttentionNet, StaircaseMLP

NETWORKS = {
    "staircase": lambda: StaircaseMLP((12, 9, 7, 3)),
    "int8": lambda: Int8MLP((12, 9, 7, 3)),
    "integer": lambda: IntegerMLP((12, 9, 7, 3)),
    "binary": lambda: BinaryMLP((12, 9, 7, 3)),
    "attention": lambda: SlotAttentionNet((12, 9, 3)),
    "moe": lambda: MoENet((12, 9, 3), num_experts=2),
    "strict moe": lambda: MoENet((12, 9, 3), num_experts=2, strict=True),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_changes_the_backward_pass_alone(make):
    network, images = make(), 2 * torch.randn(200, 12)  # of both signs, so that every expert has samples
    calibrate(network, [images], keep_given=True)
    with straight_through():
        scores = network(images)
    assert torch.equal(scores, network(images))
    scores.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_the_guard_is_back_afterwards():
    x = torch.ones(3, requires_grad=True)
    with straight_through():
        pass
    with pytest.raises(NonDifferentiableError):
        heaviside(x).sum().backward()


def test_a_step_has_the_derivative_of_a_fast_sigmoid():
    x = torch.tensor([-0.1, 0.0, 0.2], requires_grad=True)
    with straight_through():
        heaviside(x).sum().backward()
    assert torch.allclose(x.grad, (1 + 25 * x.detach().abs()) ** -2.0)


def test_attention_over_tokens_reaches_query_key_and_value():
    tensors = [torch.randn(2, 5, 4, requires_grad=True) for _ in range(3)]
    with straight_through():
        output = argmax_attention(*tensors)
    assert torch.equal(output, argmax_attention(*tensors))
    output.square().sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in tensors)


def test_an_unknown_operation_is_refused():
    with straight_through(), pytest.raises(TypeError, match="no straight-through gradient"):
        non_differentiable(torch.round, torch.ones(2, requires_grad=True), name="round")
