"""Layers from the last to the first: what is told of all of them, against the derivative where there is one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring.layers import Layer, Layers, Radii, reach_of_units
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.slopes import add_slopes
from lightning_polystep.scoring.worth import Moment
from lightning_polystep.tape import NotOnTapeError
from tests.helpers.tapes import blocks_of, record


class Smooth(nn.Module):
    def forward(self, x):
        return x.tanh()


class OverTime(nn.Module):
    """Two layers that leak, at three times."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        one, two, total = 0.0, 0.0, 0.0
        for time in range(3):
            one = 0.5 * one + self.first(x.roll(time, 1))
            two = 0.7 * two + self.second(one.tanh())
            total = total + (time + 1) * self.head(two.tanh())
        return total


NETS = {
    "deep": (lambda: nn.Sequential(
        nn.Linear(6, 5), Smooth(), nn.Linear(5, 5), Smooth(), nn.Linear(5, 4), Smooth(), nn.Linear(4, 3)), (40, 6)),
    "convolutions": (lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), Smooth(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 2, stride=2), Smooth(), nn.Flatten(),
        nn.Linear(20, 4), Smooth(), nn.Linear(4, 3)), (20, 1, 8, 8)),
    "normalised": (lambda: nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), Smooth(), nn.Linear(5, 5), nn.BatchNorm1d(5), Smooth(), nn.Linear(5, 3)),
        (40, 6)),
    "time": (OverTime, (40, 6)),
}  # fmt: skip


def setting(make, shape, train=None):
    torch.manual_seed(0)
    net = make().double()
    for parameter in net.parameters():
        parameter.requires_grad_(train is None or any(parameter is each for each in net[train].parameters()))
    x, y = torch.randn(shape).double(), torch.arange(shape[0]) % 3
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), y))
    recording.names = {id(parameter): name for name, parameter in net.named_parameters()}
    scores = Scores.of(recording)
    moment = Moment(recording.taken(), scores.slopes(recording), (0, 0, 0))
    return net, x, y, recording, Layers(recording, scores), moment


def small(layer, tape, units):
    shifts = {}
    for entry in layer.answers.products:
        made = tape.values[entry.made].tensor
        shifts[entry.key] = torch.full((len(made), *made.shape[2:]), 1e-3).double()
    return Radii(shifts, torch.ones(units).double())


@pytest.mark.parametrize("kind", sorted(NETS))
def test_slopes_of_smooth_networks_come_to_those_of_the_derivative(kind):
    """Differences of whole layers over small shifts, mirrors, and the readout's measured slopes, put together."""
    net, x, y, recording, layers, moment = setting(*NETS[kind])
    blocks = [block for block in blocks_of(net) if len(block.parameters) == 2 and block.site is not None]
    found = {block.name: layers.layer(recording.entries(block)[0]) for block in blocks[:-1]}
    for step in range(40):
        for each in found.values():
            each.worth.learn(moment._replace(key=(0, step, 0)), {})
    weights = [block.parameters[0] for block in blocks[:-1]]
    with torch.enable_grad():
        exact = torch.autograd.grad(F.cross_entropy(net(x), y), weights)
    moment = moment._replace(key=(0, 40, 0))
    for block in blocks[:-1]:
        found[block.name].look_at(moment.tape, small(found[block.name], moment.tape, block.rows))
    for block, wanted in zip(blocks[:-1], exact, strict=True):
        entries, _ = recording.entries(block)
        slopes = found[block.name].slopes_by_made(moment)
        sums = {}
        for entry in entries.products:
            made = slopes[entry.made]
            add_slopes(sums, moment.tape, entry, made.movedim(1, 0).reshape(made.shape[1], made.shape[0], -1))
        own = next(each for each in sums.values() if each.shape[1] > 1)
        similarity = F.cosine_similarity(own.flatten(), wanted.flatten(), dim=0)
        assert similarity > 0.97, (block.name, float(similarity))


def test_a_layer_is_found_once_whoever_asks():
    net, _, _, recording, layers, _ = setting(*NETS["deep"])
    first, second, *_ = (recording.entries(block)[0] for block in blocks_of(net))
    taker = layers.layer(first).worth.takers[0]
    assert isinstance(taker.layer, Layer)
    assert layers.layer(second) is taker.layer
    assert taker.mirror.name == "2.weight, 5 by 5"


def test_layers_that_are_not_trained_are_gone_through():
    net, _, _, recording, layers, moment = setting(*NETS["deep"], train=0)
    (block,) = blocks_of(net)
    layer = layers.layer(recording.entries(block)[0])
    layer.worth.learn(moment, {})
    (made,) = layer.slopes_by_made(moment).values()
    assert made.abs().sum() > 0


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        state, x = torch.zeros(len(x), 5).to(x), self.first(x).tanh()
        for _ in range(3):
            state = self.second(x + state).tanh()
        return self.head(state)


def test_a_layer_that_goes_into_itself_is_refused():
    net, _, _, recording, layers, _ = setting(Recurrent, (7, 6))
    block = next(each for each in blocks_of(net) if each.name == "first")
    with pytest.raises(NotOnTapeError, match=r"something else|into itself"):
        layers.layer(recording.entries(block)[0])


def test_units_that_are_not_probed_are_shifted_as_usual():
    reach = reach_of_units(4, torch.tensor([1, 3]), torch.tensor([2.0, 8.0]), torch.zeros(1).double())
    assert reach.tolist() == [1.0, 2.0, 1.0, 8.0]
