"""What units' answers are worth, by the readout's weights and by learned feedback."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring import worth as worth_module
from lightning_polystep.scoring.answers import Answers
from lightning_polystep.scoring.feedback import Feedback
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.worth import ByFeedback, ByReadout, worth_of
from lightning_polystep.tape import NotOnTapeError
from tests.helpers.tapes import blocks_of, record

KEY = (0, 0, 0)


def setting(name, samples=64):
    """Return what answers of a layer are worth, in a linear network of three layers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)).double()
    x, y = torch.randn(samples, 6).double(), torch.arange(samples) % 3
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), y))
    tape, block = recording.taken(), next(each for each in blocks_of(net) if each.name == name)
    entries, _ = recording.entries(block)
    scores = Scores.of(recording)
    found = worth_of(tape, Answers.of(tape, entries), scores, Feedback({}))
    slopes = scores.slopes(recording)
    typical = {entry.key: torch.full((samples,), 0.3).double() for entry in entries.products}
    return net, tape, found, slopes, typical


def test_what_the_readout_takes_in_is_worth_its_weights():
    net, tape, found, slopes, typical = setting("1")
    assert type(found) is ByReadout
    assert not found.learns
    (worth,) = found.worth(tape, slopes).values()
    torch.testing.assert_close(worth, slopes @ net[2].weight.detach())
    assert found.on_trial(tape, typical, KEY, "1") is found


def test_what_lies_deeper_is_learned():
    net, tape, found, slopes, typical = setting("0")
    assert type(found) is ByFeedback
    assert found.learns
    for step in range(100):
        found.learn(tape, typical, (0, step, 0), "0")
    (worth,) = found.worth(tape, slopes).values()
    exact = slopes @ net[2].weight.detach() @ net[1].weight.detach()
    assert (worth - exact).norm() / exact.norm() < 0.1


def test_what_is_learned_is_a_function_of_seed_step_and_micro_batch():
    def memory(*steps):
        _, tape, found, _, typical = setting("0")
        for step in steps:
            found.learn(tape, typical, (0, step, 0), "0")
        return found.feedback.memory

    assert all(torch.equal(a, b) for a, b in zip(memory(0, 1).values(), memory(0, 1).values(), strict=True))
    assert not torch.equal(memory(0, 1)["met/0"], memory(0, 2)["met/0"])


def test_a_trial_learns_and_keeps_nothing():
    _, tape, found, slopes, typical = setting("0")
    tried = found.on_trial(tape, typical, KEY, "0")
    assert found.feedback.is_new
    assert not tried.feedback.is_new
    found.learn(tape, typical, KEY, "0")
    assert found.on_trial(tape, typical, KEY, "0") is found
    pairs = zip(found.worth(tape, slopes).values(), tried.worth(tape, slopes).values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_feedback_of_too_many_numbers_is_refused(monkeypatch):
    monkeypatch.setattr(worth_module, "MOST_NUMBERS", 10)
    with pytest.raises(NotOnTapeError, match="too many numbers"):
        setting("0")
