"""How units of a layer answer to shifts, against the derivative where there is one and by hand where there is none."""

import pytest
import torch
from torch import nn

from lightning_polystep.scoring import answers as answers_module
from lightning_polystep.scoring.answers import Answers
from lightning_polystep.tape import NotOnTapeError
from tests.helpers.tapes import blocks_of, record


class Net(nn.Module):
    """A layer, something that stays within its units, and a linear readout."""

    def __init__(self, layer, within, width):
        super().__init__()
        self.layer, self.within, self.head = layer, within, nn.Linear(width, 3, bias=False)

    def forward(self, x):
        return self.head(self.within(self.layer(x)).flatten(1))


class OverTime(nn.Module):
    """A layer at three times, whose membranes are passed on at each of them."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 5), nn.Linear(5, 3, bias=False)

    def forward(self, x):
        membrane, total = 0.0, 0.0
        for time in range(3):
            membrane = 0.5 * membrane + self.layer(x.roll(time, 1))
            total = total + (time + 1) * self.head(membrane)
        return total


NETS = {
    "linear": (lambda: Net(nn.Linear(6, 5), nn.Identity(), 5), (7, 6)),
    "tokens": (lambda: Net(nn.Linear(6, 5), nn.Identity(), 20), (7, 4, 6)),
    "convolution": (lambda: Net(nn.Conv2d(1, 5, 2), nn.Identity(), 60), (7, 1, 5, 4)),
}


def setting(make, shape):
    torch.manual_seed(0)
    net, x = make().double(), torch.randn(shape).double()
    recording, _, _ = record(net, lambda: net(x).flatten(1).sum(1).mean())
    block = blocks_of(net)[0]
    entries, _ = recording.entries(block)
    tape = recording.taken()
    return net, x, tape, entries, Answers.of(tape, entries)


def slopes_of(answers, tape, entries, worth, radius=0.1):
    entry = entries.products[0]
    shape = tape.values[entry.made].tensor.shape
    typical = {each.key: torch.full((shape[0], *shape[2:]), radius).double() for each in entries.products}
    return answers.slopes(tape, typical, torch.ones(shape[1]).double(), worth)


@pytest.mark.parametrize("kind", sorted(NETS))
def test_of_what_is_passed_on_unchanged_slopes_are_what_it_is_worth(kind):
    _, _, tape, entries, answers = setting(*NETS[kind])
    (sink,) = answers.sinks
    worth = torch.randn(tape.values[sink].tensor.shape).double()
    ((entry, slopes),) = slopes_of(answers, tape, entries, {sink: worth})
    made = tape.values[entry.made].tensor
    layout, own = answers.sinks[sink], answers.layouts[entry.key]
    expected = own.back(layout.apart(worth[None]))[0].movedim(1, 0).reshape(made.shape[1], made.shape[0], -1)
    torch.testing.assert_close(slopes, expected)


def test_windows_of_a_pooling_are_seen_and_shared_among_their_places():
    net, x, tape, entries, answers = setting(lambda: Net(nn.Conv2d(1, 5, 2), nn.AvgPool2d(2), 20), (7, 1, 5, 5))
    (sink,) = answers.sinks
    (passing,) = answers.passing(tape)
    expected = torch.tensor([[True, False], [True, False], [False, True], [False, True]])
    assert torch.equal(passing.places.matrices[0][0] > 0, expected)
    assert torch.equal(passing.places.matrices[1][1] > 0, expected)
    worth = torch.randn(tape.values[sink].tensor.shape).double()
    ((_, slopes),) = slopes_of(answers, tape, entries, {sink: worth})
    made = net.layer(x).detach().requires_grad_()
    (net.within(made).flatten(1) * worth).sum().backward()
    torch.testing.assert_close(slopes, made.grad.transpose(0, 1).reshape(5, 7, -1))


def test_what_is_passed_on_later_counts_for_each_earlier_time_as_far_as_that_reaches():
    _, _, tape, entries, answers = setting(OverTime, (7, 6))
    sinks = list(answers.sinks)
    (passing,) = answers.passing(tape)
    assert passing.sinks == sinks
    kept = torch.tensor([[1, 0.5, 0.25], [0, 1, 0.5], [0, 0, 1]]).double()
    torch.testing.assert_close(passing.strength / passing.strength.diagonal()[:, None], kept)
    worth = {sink: torch.randn(tape.values[sink].tensor.shape).double() for sink in sinks}
    for at, (_, slopes) in enumerate(slopes_of(answers, tape, entries, worth)):
        exact = sum(0.5 ** (later - at) * worth[sinks[later]] for later in range(at, 3))
        torch.testing.assert_close(slopes[:, :, 0].T, exact)


def test_a_threshold_within_reach_answers_and_one_beyond_does_not():
    class Step(nn.Module):
        def forward(self, x):
            return (x > 0.05).to(x)

    net, x, tape, entries, answers = setting(lambda: Net(nn.Linear(6, 5), Step(), 5), (40, 6))
    (sink,) = answers.sinks
    ((_, slopes),) = slopes_of(answers, tape, entries, {sink: torch.ones(40, 5).double()}, radius=0.3)
    near = (net.layer(x).detach() - 0.05).abs() < 0.3
    assert near.any()
    assert not near.all()
    torch.testing.assert_close(slopes[:, :, 0].T, near.double() * 0.5 / 0.3)


def test_wider_units_are_shifted_further():
    _, _, tape, entries, answers = setting(lambda: Net(nn.Linear(6, 5), nn.ReLU(), 5), (40, 6))
    (sink,), key = answers.sinks, entries.products[0].key
    typical, worth = {key: torch.full((40,), 0.1).double()}, {sink: torch.ones(40, 5).double()}
    reach = torch.tensor([1.0, 1.0, 4.0, 1.0, 1.0]).double()
    ((_, plain),), ((_, wide),) = (
        answers.slopes(tape, typical, each, worth) for each in (torch.ones(5).double(), reach)
    )
    others = [0, 1, 3, 4]
    assert torch.equal(plain[others], wide[others])
    assert not torch.equal(plain[2], wide[2])


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (lambda: nn.Linear(6, 5), lambda: nn.BatchNorm1d(5), (40, 6)),
        (lambda: nn.Conv2d(1, 5, 2), lambda: nn.BatchNorm2d(5), (20, 1, 3, 3)),
    ],
)
def test_slopes_before_a_batch_normalisation_are_those_of_what_it_leaves(layer, norm, shape):
    width = 5 if len(shape) == 2 else 20
    net, x, tape, entries, answers = setting(lambda: Net(layer(), norm(), width), shape)
    (sink,) = answers.sinks
    worth = torch.randn(tape.values[sink].tensor.shape).double()
    ((_, slopes),) = slopes_of(answers, tape, entries, {sink: worth})
    made = net.layer(x).detach().requires_grad_()
    (net.within(made).flatten(1) * worth).sum().backward()
    exact = made.grad.transpose(0, 1).reshape(5, len(x), -1)
    torch.testing.assert_close(slopes, exact, rtol=1e-3, atol=1e-3)  # it adds a small number to the variance


def test_units_of_too_many_places_are_refused(monkeypatch):
    monkeypatch.setattr(answers_module, "_MOST_PLACES", 5)
    with pytest.raises(NotOnTapeError, match="too many places"):
        setting(*NETS["convolution"])
