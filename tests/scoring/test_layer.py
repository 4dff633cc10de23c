"""Layers of each kind, looked at."""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring.layer import Answering, Part, Parted, Radii, Together
from lightning_polystep.scoring.layers import Layers
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.takers import Moment
from lightning_polystep.tape import Entry
from tests.helpers.tapes import blocks_of, record


def setting():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x = torch.randn(9, 6).double()
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), torch.arange(9) % 3))
    scores = Scores.of(recording)
    layers = Layers(recording, scores)
    found = {block.name: layers.layer(layers.entries(block)) for block in blocks_of(net)[:-1]}
    return found, Moment(recording.taken(), scores.slopes(recording), (0, 0, 0))


def radii(layer, moment, radius):
    shifts = {}
    for entry in layer.products:
        made = moment.tape.values[entry.made].tensor
        shifts[entry.key] = torch.full((len(made),), radius).double()
    return Radii(shifts, torch.ones(made.shape[1]).double())


def test_it_is_looked_at_once_and_anew_when_it_is_shifted_by_more():
    found, moment = setting()
    layer = found["2"]
    assert type(layer) is Answering
    assert not layer.learns
    usual = layer.slopes_by_made(moment)
    assert layer.slopes_by_made(moment) is usual
    layer.look_at(moment.tape, radii(layer, moment, 1e-6))
    near = layer.slopes_by_made(moment)
    (made,) = near
    assert not torch.equal(near[made], usual[made])
    assert torch.equal(near[made], layer.slopes_at(moment, radii(layer, moment, 1e-6))[made])


def test_a_layer_learns_once_a_micro_batch_what_lies_behind_it():
    found, moment = setting()
    layer, mirror = found["0"], found["0"].worth.takers[0].mirror
    assert layer.learns
    layer.learn(moment)
    known = mirror.memory["matrix"].clone()
    layer.learn(moment)
    assert torch.equal(mirror.memory["matrix"], known)
    layer.learn(moment._replace(key=(0, 1, 0)))
    assert not torch.equal(mirror.memory["matrix"], known)
    assert "mirrors" in layer.source
    assert "readout" in found["2"].source


class Given:
    learns = True

    def __init__(self, slopes):
        self.slopes, self.products, self.learned = slopes, [Entry(made, made, None, None) for made in slopes], 0

    def slopes_by_made(self, moment):
        return self.slopes

    def learn(self, moment):
        self.learned += 1


def test_parts_are_put_together_where_they_were_cut():
    found, moment = setting()
    (entry,) = found["0"].products
    whole = moment.tape.values[entry.made].tensor
    places = torch.arange(whole.numel()).reshape(whole.shape)
    left, right = Given({1000: torch.randn(9, 2).double()}), Given({1001: torch.randn(3, 9).double()})
    parts = [
        Part(entry.made, whole, 1000, places[:, :2], left),
        Part(entry.made, whole, 1001, places[:, 2:].T, right),
    ]
    layer = Parted([entry], parts)
    assert layer.learns
    layer.learn(moment)
    assert left.learned == right.learned == 1
    (slopes,) = layer.slopes_by_made(moment).values()
    assert torch.equal(slopes, torch.cat([left.slopes[1000], right.slopes[1001].T], 1))


def test_steps_of_time_are_put_side_by_side():
    _, moment = setting()
    last, first = Given({8: torch.ones(2)}), Given({3: torch.zeros(2)})
    layer = Together([last, first])
    layer.learn(moment)
    assert last.learned == first.learned == 1
    assert [entry.made for entry in layer.products] == [3, 8]
    layer.look_at(moment.tape, Radii({}, torch.ones(1)))
    assert layer.slopes_by_made(moment) == {8: last.slopes[8], 3: first.slopes[3]}
