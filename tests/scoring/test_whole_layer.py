"""All rows of a layer from one look: made once for a proposal, and left to exact costs where it cannot be made."""

import pytest
import torch
from torch import nn

from lightning_polystep.scoring.whole_layer import WholeLayerTier
from lightning_polystep.tape import NotOnTapeError
from tests.helpers.tapes import blocks_of, record, trial


class Given(WholeLayerTier):
    """Slopes that somebody gives, and counts how often it is asked."""

    looks, refusal = 0, ""

    @property
    def subject(self):
        if self.refusal:
            raise NotOnTapeError(self.refusal)
        return self.given

    def at_places(self, proposal, probe):
        self.looks += 1
        return [(entry, self.given) for entry in self.entered[0].products]


@pytest.fixture
def setting():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 5)).double(), torch.randn(7, 6).double()
    worth = torch.randn(7, 5).double()
    recording, probe, _ = record(net, lambda: (net(x) * worth).sum(1).mean())
    block = blocks_of(net)[0]
    tier, proposal = Given(block, recording), trial(block, rows=5, vertices=6)
    tier.given, tier._rows_at_once = (worth / 7).T[:, :, None], 2
    return tier, proposal, probe


def test_one_look_serves_all_rows_and_the_next_proposal_has_its_own(setting):
    tier, proposal, probe = setting
    costs = tier.score(proposal, probe, 0, proposal.candidates)
    torch.testing.assert_close(costs, tier.exact().score(proposal, probe, 0, proposal.candidates))
    assert tier.looks == 1
    tier.score(trial(tier.block, rows=5, vertices=6, seed=1), probe, 0, proposal.candidates)
    assert tier.looks == 2


def test_what_cannot_be_looked_at_is_scored_exactly(setting):
    tier, proposal, probe = setting
    tier.refusal = "it has one sample"
    with pytest.warns(UserWarning, match="it has one sample"):
        costs = tier.score(proposal, probe, 0, proposal.candidates)
    assert torch.equal(costs, tier.exact().score(proposal, probe, 0, proposal.candidates))
    assert tier.looks == 0


def test_rows_and_directions_are_free(setting):
    tier, proposal, _ = setting
    assert tier.affordable_rows() is None
    assert tier.affordable() is None
    assert not tier.fills_budget
    assert tier.piece(proposal, 1) == 2 * proposal.vertices_per_row
