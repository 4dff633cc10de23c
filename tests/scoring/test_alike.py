"""Layers that answer alike: one replay of all of them says what each would by itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring import alike as alike_module
from lightning_polystep.scoring.layer import Answering
from lightning_polystep.scoring.layers import Layers
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.takers import Moment
from tests.helpers.tapes import blocks_of, record


class Over(nn.Module):
    """A cell over steps of time, and a readout of its last state."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(5, 3)

    def forward(self, x):
        state = None
        for now in x.unbind(1):
            state = self.cell(now, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Spiking(nn.Module):
    """Spikes that come back a step later; membranes leak, each by a constant of its own, and are reset."""

    def __init__(self):
        super().__init__()
        self.into, self.back = nn.Linear(6, 5), nn.Linear(5, 5, bias=False)
        self.register_buffer("leak", torch.linspace(0.5, 0.9, 5))

    def forward(self, x, state):
        spikes, membrane = state if state is not None else (x.new_zeros(len(x), 5), x.new_zeros(len(x), 5))
        membrane = self.leak * membrane * (1 - spikes) + self.into(x) + self.back(spikes)
        return (membrane > 0.5).to(x), membrane


CELLS = {
    "lstm": lambda: nn.LSTMCell(6, 5),
    "gru": lambda: nn.GRUCell(6, 5),
    "plain": lambda: nn.RNNCell(6, 5),
    "spiking": Spiking,
}


def setting(make, steps=4):
    torch.manual_seed(0)
    net, x = Over(make()).double(), torch.randn(7, steps, 6).double()
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), torch.arange(7) % 3))
    scores = Scores.of(recording)
    layers = Layers(recording, scores)
    for block in blocks_of(net)[:-1]:
        if block.name.endswith("weight_hh") or block.name.endswith("back"):
            layers.of_products(layers.reading.products(block))
    found = [layer for layer in recording.layers.values() if isinstance(layer, Answering)]
    return found, Moment(recording.taken(), scores.slopes(recording), (0, 0, 0))


@torch.no_grad()
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("numbers", [1, 2**17])
def test_steps_of_time_are_looked_at_together_and_say_what_each_says_by_itself(name, numbers, monkeypatch):
    monkeypatch.setattr(alike_module, "_AT_ONCE", numbers)
    found, moment = setting(CELLS[name])
    together = [layer for layer in found if layer.alike is not None and layer.alike.are_looked_at(moment.tape)]
    assert max(len(layer.alike.members) for layer in together) >= 2
    passed_on = 0.0
    for layer in together:
        (slopes,) = layer.slopes_by_made(moment).values()
        (alone,) = layer.slopes_at(moment, layer._usual(moment.tape)).values()
        torch.testing.assert_close(slopes, alone, rtol=1e-9, atol=1e-12)
        passed_on += float(slopes.abs().sum())
    assert passed_on > 0


@pytest.mark.parametrize(("within", "alike"), [(nn.ReLU(), True), (nn.BatchNorm1d(5), False), (nn.Identity(), False)])
def test_what_keeps_statistics_of_its_own_or_does_nothing_is_not_looked_at_with_others(within, alike):
    net, x = nn.Sequential(nn.Linear(6, 5), within, nn.Linear(5, 3)), torch.randn(7, 6)
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), torch.arange(7) % 3))
    layers = Layers(recording, Scores.of(recording))
    layer = layers.layer(layers.entries(blocks_of(net)[0]))
    assert (layer.alike is not None) is alike


def test_spikes_that_come_back_count_though_there_are_none_before_the_first_step():
    found, moment = setting(Spiking)
    passing = [layer for layer in found if len(layer.answers.sinks) == 2]
    shares = [layer.alike.gains(moment.tape, layer.answers) for layer in passing if layer.alike is not None]
    assert all(len(gains) == 2 for gains in shares)
    assert any(all(bool(gain.any()) for gain in gains.values()) for gains in shares)


def test_numbers_that_have_changed_are_looked_at_one_by_one():
    found, moment = setting(CELLS["lstm"])
    alike = next(layer.alike for layer in found if layer.alike is not None and len(layer.alike.members) > 1)
    assert alike.are_looked_at(moment.tape)
    first = next(iter(alike.members))
    first.program.fractions = ("0.25",)
    assert not alike.are_looked_at(moment.tape)


def test_what_takes_a_value_in_is_asked_once_for_all_layers_that_pass_it_on():
    found, _ = setting(CELLS["lstm"])
    takers = [taker for layer in found for taker in layer.worth.takers]
    assert len({id(taker) for taker in takers}) < len(takers)
