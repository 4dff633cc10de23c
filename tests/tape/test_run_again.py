"""A recorded step, run again with other parameters and none of its Python, gives what the step itself would."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.tape import NotOnTapeError, Rerun
from tests.helpers.tapes import record


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        membrane, count = torch.zeros(len(x), 4).to(x), torch.zeros(len(x), 3).to(x)
        for t in range(x.shape[1]):
            membrane.mul_(0.9).add_(self.first(x[:, t]))
            spikes = (membrane > 0.1).to(x)
            membrane[spikes > 0] = 0.0
            count += self.head(spikes)
        return count


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(35), nn.Dropout(0.5), nn.Linear(35, 3)

    def forward(self, x):
        return self.head(self.drop(self.norm(x.flatten(1))))


class Drawing(nn.Module):
    """What it draws from the generator depends on what its layer makes."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.bernoulli(self.first(x).sigmoid().mean(1)))


def recorded(make):
    torch.manual_seed(0)
    net = make().double()
    x, y = torch.randn(8, 7, 5).double(), torch.arange(8) % 3
    recording, probe, loss = record(net, lambda: F.cross_entropy(net(x), y))
    tape = recording.taken()
    given = {tape.leaves[id(p)]: p.detach() for p in net.parameters()}
    return net, probe, tape, recording.loss, given, loss


@pytest.mark.parametrize("make", [Recurrent, InPlace, Noisy])
def test_other_parameters_give_the_loss_that_the_step_gives(make):
    net, probe, tape, wanted, given, loss = recorded(make)
    path = Rerun.of(tape, given, wanted)
    assert path.run(tape, {}) == pytest.approx(float(loss), rel=1e-12)
    moved = {index: value + 0.3 * torch.randn_like(value) for index, value in given.items()}
    changed = {p: moved[tape.leaves[id(p)]] for p in net.parameters()}
    with probe.isolated():
        expected = probe.loss(changed)
    assert abs(float(expected - loss)) > 1e-3
    assert path.run(tape, moved) == pytest.approx(float(expected), rel=1e-9)


def test_operations_beside_the_way_are_left_out():
    _net, _, tape, wanted, given, _ = recorded(Recurrent)
    head = [index for index, value in given.items() if value.shape in {(3, 4), (3,)}]
    assert len(Rerun.of(tape, head, wanted).numbers) < len(Rerun.of(tape, given, wanted).numbers) / 4


def test_what_is_drawn_at_random_is_refused():
    _net, _, tape, wanted, given, _ = recorded(Drawing)
    with pytest.raises(NotOnTapeError, match="draws at random"):
        Rerun.of(tape, given, wanted)
