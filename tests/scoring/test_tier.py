"""A way of scoring says how it scores; all else is as usual."""

import pytest
import torch
from torch import nn

from lightning_polystep.scoring.tier import NotOfferedError, Provider, Tier
from tests.helpers.tapes import blocks_of, trial


def test_a_tier_that_says_nothing_more_is_exact_and_sees_all_samples():
    tier, loss = Tier(), torch.tensor([0.5], requires_grad=True)
    assert tier.exact() is tier
    assert not tier.approximation()
    assert not tier.doubt()
    assert tier.known_loss() is None
    assert tier.scored_samples(7) == 7
    assert tier.incumbent(loss).shape == ()
    assert not tier.incumbent(loss).requires_grad
    assert not any([tier.takes_starts, tier.reads_tape, tier.samples_by_importance])


def test_processes_divide_its_candidates_by_chunks():
    (block,) = blocks_of(nn.Linear(4, 3))
    assert Tier().piece(trial(block), 64) == 64
    assert Tier().changed_pairs(trial(block)) is None


@pytest.mark.parametrize(
    "ask", [lambda t: t.affordable(), lambda t: t.chunking(1), lambda t: t.score(None, None, 0, 1)]
)
def test_what_every_tier_has_to_say_is_asked_for(ask):
    with pytest.raises(NotImplementedError):
        ask(Tier())


def test_a_provider_that_does_not_offer_says_why():
    def offer(block):
        raise NotOfferedError(f"{block} is too large")

    with pytest.raises(NotOfferedError, match="fc is too large"):
        Provider("by a giant", offer).offer("fc")
