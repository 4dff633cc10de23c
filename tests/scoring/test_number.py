"""A number of the whole step on the way to the loss, as a penalty on a mean."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.engine import Engine
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.scoring.number import Number
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.takers import Moment
from tests.helpers.tapes import record


def number_of(loss_of):
    """Record a step whose loss is a function of the mean of what a layer makes; return that layer and the moment."""
    torch.manual_seed(0)
    net, x = nn.Linear(5, 3).double(), torch.randn(8, 5).double()
    recording, _, _ = record(net, lambda: loss_of(net(x).mean()) + net(x).square().mean())
    tape = recording.taken()
    mean = next(each for each in tape.operations if each.function is torch.ops.aten.mean.default)
    made = mean.outputs[0]
    return Number.of(tape, made, recording.loss), Moment(tape, {}, (0, 0, 0)), tape.values[made].tensor


@pytest.mark.parametrize(
    ("loss_of", "slope_of"),
    [(lambda m: 0.3 * m, lambda m: 0.3 + 0 * m), (lambda m: (m - 1).square(), lambda m: 2 * (m - 1))],
    ids=["linear", "square"],
)
def test_its_slope_is_what_moving_it_does_to_the_loss(loss_of, slope_of):
    number, moment, mean = number_of(loss_of)
    assert not number.learns
    number.learn(moment)
    (slope,) = number.slopes_by_made(moment).values()
    assert slope.shape == mean.shape
    torch.testing.assert_close(slope, slope_of(mean))
    assert [entry.made for entry in number.products] == list(number.slopes_by_made(moment))


def test_a_penalty_on_all_spikes_is_felt_by_the_layer_that_makes_them():
    """A strong penalty on a mean must silence a layer, which the loss of the labels alone does not."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 3)

        def forward(self, x):
            spikes = (self.first(x) > 0).to(x)
            return self.second(spikes), spikes

    rates = []
    for strength in (0.0, 3.0):
        torch.manual_seed(0)
        net, x, y = Net(), torch.randn(64, 12), torch.arange(64) % 3
        engine = Engine(net, PolyStep(net.parameters(), lr=0.2, seed=0), announce=None)

        def loss(net=net, x=x, y=y, strength=strength):
            scores, spikes = net(x)
            return F.cross_entropy(scores, y) + strength * spikes.mean()

        for _ in range(12):
            engine.step(loss)
        rates.append(float(net(x)[1].mean()))
    free, penalised = rates
    assert penalised < 0.5 * free


def test_scores_are_found_beside_a_penalty():
    torch.manual_seed(0)
    net, x, y = nn.Linear(5, 3), torch.randn(8, 5), torch.arange(8) % 3
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), y) + 0.1 * net.weight.square().mean())
    assert Scores.of(recording) is not None
