"""Normalisations by the statistics of the step, and what slopes by what goes into them are."""

import pytest
import torch
from torch import nn

from lightning_polystep.tape import Dense, compile_program
from lightning_polystep.tape.norms import but_for_what_it_undoes, is_norm, slopes_before
from tests.helpers.tapes import record

NORMS = {
    "batch": (lambda: nn.BatchNorm1d(5), (20, 5)),
    "batch of images": (lambda: nn.BatchNorm2d(5), (8, 5, 3, 4)),
    "batch without a scale": (lambda: nn.BatchNorm1d(5, affine=False), (20, 5)),
    "layer": (lambda: nn.LayerNorm(5), (8, 3, 5)),
    "layer of two axes": (lambda: nn.LayerNorm((3, 5)), (8, 3, 5)),
    "groups": (lambda: nn.GroupNorm(2, 6), (8, 6, 3, 4)),
    "instances": (lambda: nn.InstanceNorm2d(5), (8, 5, 3, 4)),
}


class Normed(nn.Module):
    def __init__(self, norm, width):
        super().__init__()
        self.scale, self.norm = nn.Parameter(torch.ones(1)), norm
        if getattr(norm, "weight", None) is not None:
            nn.init.normal_(norm.weight, 1.0, 0.3)

    def forward(self, x):
        return self.norm(self.scale * x)


def setting(kind):
    make, shape = NORMS[kind]
    torch.manual_seed(0)
    net, x = Normed(make(), shape).double(), torch.randn(shape).double()
    recording, _, _ = record(net, lambda: net(x).square().flatten(1).sum(1).mean())
    tape = recording.taken()
    (operation,) = [each for each in tape.operations if is_norm(each)]
    return net, x, recording, tape, operation


@pytest.mark.parametrize("kind", sorted(NORMS))
def test_slopes_by_what_goes_in_are_those_of_the_derivative(kind):
    net, x, _, tape, operation = setting(kind)
    shape = tape.values[operation.operands[0]].tensor.shape
    slopes = torch.randn(tape.values[operation.outputs[0]].tensor.shape).double()
    with torch.enable_grad():
        given = x.clone().requires_grad_()
        (exact,) = torch.autograd.grad(net.norm(given), given, slopes.reshape(x.shape))
    torch.testing.assert_close(
        slopes_before(operation, tape, slopes), exact.reshape(shape), rtol=1e-2, atol=2e-3
    )  # eps


@pytest.mark.parametrize("kind", sorted(NORMS))
def test_a_shift_and_a_scaling_of_all_that_is_normalised_together_say_nothing(kind):
    _, _, _, tape, operation = setting(kind)
    recorded = tape.values[operation.operands[0]].tensor
    left = but_for_what_it_undoes(operation, recorded, 3.0 + 2.0 * recorded)
    assert left.abs().max() < 1e-9


@pytest.mark.parametrize("kind", ["batch of images", "layer", "groups"])
def test_by_the_statistics_of_the_step_it_acts_place_by_place(kind):
    _, _, recording, tape, operation = setting(kind)
    made, given = operation.outputs[0], operation.operands[0]
    program = compile_program(tape, {given: 1}, recording.loss, as_recorded=True)
    dense = Dense.of(tape, program, {given}, [made])
    value = tape.values[given].tensor
    at = tuple(size // 2 for size in value.shape)
    shifted = value.clone()
    shifted[at] += 1
    out = dense.run(tape, {given: torch.stack([value, shifted])})[made]
    torch.testing.assert_close(out[0], tape.values[made].tensor)
    changed = out[1] != out[0]
    assert changed.sum() == 1
    assert changed[at]
