"""Every step function keeps the promise that fast scoring relies on: element by element, growing, known values."""

import pytest
import torch
from torch import nn

from lightning_polystep.layers import Heaviside, Sign, Staircase, StepFunction

LAYERS = [
    Heaviside(),
    Heaviside(spike_on="gt"),
    Sign(),
    Sign(positive_on="gt"),
    Staircase(),
    Staircase(4, rounding="round"),
    Staircase(3, squash="tanh"),
    Staircase(3, squash="clamp", rounding="round"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_values_are_the_levels_in_growing_order(layer, dtype):
    assert isinstance(layer, StepFunction)
    assert layer.elementwise
    x = torch.cat([torch.linspace(-60, 60, 4_001), torch.linspace(-2, 2, 4_001)]).sort().values.to(dtype)
    output, levels = layer(x), layer.levels(dtype)
    assert output.dtype == levels.dtype == dtype
    assert torch.isin(output, levels).all()
    assert (levels[1:] > levels[:-1]).all()
    assert (output[1:] >= output[:-1]).all()
    order = torch.randperm(len(x))
    assert torch.equal(layer(x[order].view(2, -1)).view(-1), output[order])


def test_a_subclass_without_levels_is_named():
    class Half(StepFunction):
        pass

    with pytest.raises(NotImplementedError, match="Half must return its output values"):
        Half().levels(torch.float32)


def test_other_layers_do_not_promise():
    assert not hasattr(nn.ReLU(), "elementwise")
