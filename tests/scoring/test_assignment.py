"""How one block is scored: what it learns, and what happens when its tier fails."""

import pytest
import torch
from torch import nn

from lightning_polystep.scoring.assignment import Assignment, first_line, score_by
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.tier import Tier
from lightning_polystep.tape import NotOnTapeError
from tests.helpers.tapes import blocks_of, record, trial


class Broken(Tier):
    """Fails in whatever it is asked."""

    name = "broken"

    def look(self, proposal, probe):
        raise NotOnTapeError("no such structure")

    def score(self, proposal, probe, start, stop):
        raise ValueError("first line\nsecond line")


def setting():
    torch.manual_seed(0)
    net, x = nn.Linear(3, 2).double(), torch.randn(5, 3).double()
    _, probe, _ = record(net, lambda: net(x).square().mean())
    block = blocks_of(net)[0]
    return Assignment(block, Broken(), Chunking(4)), trial(block, rows=2, vertices=3), probe


def test_a_tier_that_fails_is_replaced_by_the_loop_once_and_with_a_warning():
    assignment, proposal, probe = setting()
    message = "broken failed: ValueError: first line. Scoring it one candidate at a time"
    with pytest.warns(UserWarning, match=message), probe.isolated():
        losses = assignment.score(proposal, probe, range(proposal.candidates))
    assert assignment.tier.name == LoopTier.name
    assert assignment.failed
    assert assignment.stumbled
    with probe.isolated():
        expected = score_by(LoopTier(), proposal, probe, 0, proposal.candidates)
    assert torch.equal(losses, expected)
    assert losses.std() > 0


def test_what_cannot_be_learned_waits_for_scoring_to_tell():
    assignment, proposal, probe = setting()
    assignment.look(proposal, probe)
    assert assignment.tier.name == "broken"


def test_no_share_costs_nothing():
    assignment, proposal, probe = setting()
    assert assignment.score(proposal, probe, range(0)).tolist() == []
    assert assignment.tier.name == "broken"


def test_of_an_error_its_kind_and_first_line_are_said():
    assert first_line(ValueError("one\ntwo")) == "ValueError: one"
    assert first_line(KeyError()) == "KeyError"
