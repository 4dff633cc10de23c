"""Reading a feed-forward network: its pass is checked layer by layer, and quantised weights act as they are rounded."""

import pytest
import torch
from torch import nn

from lightning_polystep.layers import QuantActivation, QuantLinear, Sign, Staircase
from lightning_polystep.scoring.feedforward import effective_inputs, effective_rows, effective_weight
from lightning_polystep.scoring.recognise import recognise
from lightning_polystep.scoring.stack import Capture, capturing, disagreement
from tests.helpers.parity import Stacked


class Run:
    """A network with a batch and its captured pass."""

    def __init__(self):
        self.module = Stacked(nn.Linear(4, 6), Staircase(), QuantLinear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        self.stack, self.capture = recognise(self.module), Capture()
        self.x, self.y = torch.randn(40, 4), torch.randint(3, (40,))

    def problem(self):
        with torch.no_grad(), capturing(self.stack, self.capture):
            loss = self.module.criterion(self.module.network(self.x), self.y)
        return disagreement(self.stack, self.capture, loss)


def test_a_plain_pass_is_explained():
    assert Run().problem() is None


@pytest.mark.parametrize(
    ("layer", "change", "reason"),
    [
        (0, lambda *a: 2 * a[-1], "Linear layer 1"),
        (1, lambda *a: 1 - a[-1], "the activation of layer 1"),
        (3, lambda *a: a[-1] + 1, "the activation of layer 2"),
    ],
)
def test_a_hook_that_changes_an_output_is_found_out(layer, change, reason):
    run = Run()
    run.module.network[layer].register_forward_hook(change, prepend=layer == 0)
    assert run.problem() == f"something beside {reason} had a hand in its output"


def test_positions_are_refused():
    run = Run()
    run.x, run.y = torch.randn(40, 2, 4), torch.rand(40, 2, 3)
    run.module = Stacked(*run.module.network, criterion=nn.MSELoss())
    run.stack = recognise(run.module)
    assert run.problem() == "a layer's output has shape (40, 2, 6): not one position per sample"


def test_half_precision_is_refused():
    run = Run()
    run.module.bfloat16()
    run.module.network.register_forward_hook(lambda _m, _args, scores: scores.float())
    run.x = run.x.bfloat16()
    assert run.problem() == "the network computes in torch.bfloat16"


@pytest.mark.parametrize("weight_format", ["int8", "ternary", "binary", "float"])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_the_effective_weight_is_what_the_layer_multiplies_with(weight_format, granularity):
    layer = QuantLinear(5, 4, bias=False, weight_format=weight_format, granularity=granularity)
    assert torch.allclose(effective_weight(layer), layer(torch.eye(5)).T.detach())
    rows = torch.tensor([2, 0])
    latent = layer.weight.detach()[rows, None].expand(-1, 3, -1)
    assert torch.equal(effective_rows(layer, rows, latent)[:, 1], effective_weight(layer)[rows])


def test_a_plain_layer_acts_as_it_is():
    layer = nn.Linear(5, 4)
    assert torch.equal(effective_weight(layer), layer.weight)
    x = torch.randn(3, 5)
    assert effective_inputs(layer, x) is x


def test_a_layer_that_quantises_its_inputs_multiplies_with_those():
    quantiser = QuantActivation(2, scale=0.5)
    x = torch.randn(3, 5)
    assert torch.equal(effective_inputs(QuantLinear(5, 4, input_quant=quantiser), x), quantiser(x))
    assert effective_inputs(QuantLinear(5, 4), x) is x


def test_sign_of_the_data_needs_no_layer():
    run = Run()
    run.module = Stacked(Sign(), nn.Linear(4, 3))
    run.stack = recognise(run.module)
    assert run.problem() is None
