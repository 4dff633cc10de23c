"""What tiers know of their block: once for each structure, and no offer where they know nothing."""

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.subjects import Subjects, moment_of, offered
from lightning_polystep.scoring.tier import NotOfferedError
from lightning_polystep.tape import NotOnTapeError
from tests.helpers.tapes import record


class Known(NamedTuple):
    scores: Scores
    reads: int


class Estimator:
    """Says what a test lets it say."""

    def __init__(self, recording, error=None, *, needs_samples=False):
        self.recording, self.error, self.needs_samples = recording, error, needs_samples

    @property
    def subject(self):
        if self.error is not None:
            raise self.error
        return self.recording


def recorded(samples=8, *, mixed=False):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(samples, 4)

    def step():
        made = net(x)
        return F.cross_entropy(made.softmax(0) if mixed else made, torch.arange(samples) % 3)

    recording, probe, _ = record(net, step)
    return recording, probe


def test_a_structure_is_read_once():
    recording, _ = recorded()
    subjects, reads = Subjects(recording), []

    def read(layers):
        reads.append(layers)
        return Known(layers.scores, len(reads))

    first = subjects.find(read)
    assert subjects.find(read) is first
    recording.tape, recording.loss = recorded(samples=6)[0].tape, recording.loss
    assert subjects.find(read).reads == 2
    recording.tape = recorded()[0].tape
    assert subjects.find(read) is first


def test_where_samples_are_mixed_there_are_no_scores():
    with pytest.raises(NotOnTapeError, match="no scores lie between"):
        Subjects(recorded(mixed=True)[0]).find(lambda layers: Known(layers.scores, 0))


def test_layers_are_looked_at_with_the_slopes_of_the_step():
    recording, probe = recorded()
    scores = Scores.of(recording)
    moment = moment_of(recording, scores, probe)
    assert moment.tape is recording.tape
    assert moment.key == probe.noise_key
    assert moment.slopes is scores.slopes(recording)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(NotOnTapeError("it is not there"), "it is not there"), (RecursionError("deep"), "too many layers lie behind it")],
)
def test_what_is_not_known_is_not_offered(error, reason):
    with pytest.raises(NotOfferedError, match=reason):
        offered(Estimator(recorded()[0], error))


def test_other_errors_are_no_reason():
    with pytest.raises(ZeroDivisionError):
        offered(Estimator(recorded()[0], ZeroDivisionError("a fault")))


@pytest.mark.parametrize("needs_samples", [False, True])
def test_feedback_is_not_offered_where_processes_divide_a_batch(needs_samples):
    recording, _ = recorded()
    tier = Estimator(recording, needs_samples=needs_samples)
    assert offered(tier) is tier
    recording.divides_batches = True
    if not needs_samples:
        assert offered(tier) is tier
        return
    with pytest.raises(NotOfferedError, match="would learn different feedback"):
        offered(tier)
