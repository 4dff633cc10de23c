"""Rows that are replayed together are always the same, whoever asks for which candidates."""

from dataclasses import dataclass, field

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_polystep.scoring.row_tier import RowTier
from tests.helpers.tapes import blocks_of, record, trial


@dataclass
class Numbered(RowTier):
    """Gives each candidate its number, and notes which rows were asked for together."""

    looks: int = field(default=2, kw_only=True)
    together: list[list[int]] = field(default_factory=list, kw_only=True)

    @property
    def replays_of_row(self):
        return self.looks

    def losses_of_rows(self, proposal, probe, chunks):
        for places in chunks:
            self.together.append(places.tolist())
            first = places[:, None] * proposal.vertices_per_row
            yield (first + torch.arange(proposal.vertices_per_row)).double()


def numbered(**options):
    net, x = nn.Linear(4, 6), torch.randn(8, 4)
    recording, probe, _ = record(net, lambda: net(x).square().mean())
    (block,) = blocks_of(net)
    return Numbered(block, recording, **options), trial(block, rows=6, vertices=4), probe


TIER, PROPOSAL, PROBE = numbered()
TIER.recording.clear()  # while a tape lives, Python collects no garbage
CANDIDATES = PROPOSAL.candidates


@given(st.integers(0, CANDIDATES - 1), st.integers(1, CANDIDATES), st.integers(1, 7))
def test_any_piece_is_cut_from_whole_groups_of_rows(start, count, at_once):
    stop = min(start + count, CANDIDATES)
    TIER._rows_at_once, TIER.together = at_once, []
    assert TIER.score(PROPOSAL, PROBE, start, stop).tolist() == list(range(start, stop))
    assert all(rows[0] % at_once == 0 for rows in TIER.together)
    assert TIER.piece(PROPOSAL, 1) == at_once * PROPOSAL.vertices_per_row


def test_a_look_that_takes_twice_the_replays_affords_half_of_the_rows():
    cheap, dear = (numbered(looks=looks)[0] for looks in (1, 2))
    assert cheap.affordable_rows() // 2 == dear.affordable_rows() > 1
    assert dear.affordable() is None
    assert dear.exact().affordable() is not None
