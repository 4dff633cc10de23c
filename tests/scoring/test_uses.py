"""Which operations take a parameter in."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring.layers import Layers
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.uses import uses_of
from lightning_polystep.tape import NotOnTapeError
from tests.helpers.tapes import blocks_of, record


class Net(nn.Module):
    """A bias beside a product, a norm, a gain at three times, a shift that is cut, and parameters that do little."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))
        self.norm, self.gain, self.shift = nn.LayerNorm(6), nn.Parameter(torch.ones(6)), nn.Parameter(torch.randn(12))
        self.sorted, self.idle, self.head = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6)), nn.Linear(6, 3)

    def forward(self, x):
        x = self.norm(F.linear(x, self.weight, self.bias)).tanh()
        for half in self.shift.view(2, 6):
            x = (x * self.gain + half).tanh()
        return self.head(x + self.sorted.cumsum(0))


def uses(name):
    torch.manual_seed(0)
    net, x = Net().double(), torch.randn(9, 6).double()
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), torch.arange(9) % 3))
    block = next(each for each in blocks_of(net) if name in each.parameter_names)
    return uses_of(Layers(recording, Scores.of(recording)), block), block


def test_a_bias_goes_with_its_product():
    (found,), _ = uses("bias")
    assert found.is_bias
    assert "addmm" in str(found.operation.function)
    assert torch.equal(found.places, torch.arange(6))


def test_scale_and_shift_of_a_norm_are_told_apart():
    (scale,), _ = uses("norm.weight")
    (shift,), _ = uses("norm.bias")
    assert not scale.is_bias
    assert scale.operation.function == shift.operation.function
    assert scale.operand != shift.operand


def test_each_time_is_a_use_of_its_own_with_what_lies_behind_it():
    found, _ = uses("gain")
    assert len(found) == 2
    assert found[0].layer is not found[1].layer
    assert all("mul" in str(each.operation.function) for each in found)


def test_moves_are_followed():
    found, _ = uses("shift")
    assert sorted(number for each in found for number in each.places.flatten().tolist()) == list(range(12))
    assert {"add" in str(each.operation.function) for each in found} == {True}


def test_what_is_not_known_and_what_is_not_used_is_told():
    with pytest.raises(NotOnTapeError, match=r"cumsum.* takes it in, of which nothing is known"):
        uses("sorted")
    with pytest.raises(NotOnTapeError, match="the step does not use it"):
        uses("idle")
