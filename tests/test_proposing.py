"""The candidates of a step: among the rows that a batch reads, once for a checkpoint's window, shared by processes."""

import torch
from torch import nn

from lightning_polystep.agreement import Agreement
from lightning_polystep.blocks import find_blocks
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.parallel import Axis, Layout
from lightning_polystep.processes import Processes
from lightning_polystep.proposing import Proposing
from lightning_polystep.scoring.assignment import Assignment
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.plan import Plan
from lightning_polystep.sites import Observation


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(20, 4), nn.Linear(4, 3)


def proposing_of(layout=Layout(), rows=(2, 5)):  # noqa: B008 - frozen
    """Return what proposes for two blocks, a plan, and a pass that has read some rows of the table."""
    torch.manual_seed(0)
    module = Words()
    optimizer = PolyStep(module.parameters(), seed=0, subspace="gaussian")
    blocks = find_blocks(module, optimizer.param_groups)
    seen = Observation()
    for block in blocks:
        if block.lookups:
            seen.ask(block, torch.tensor(rows, dtype=torch.int64))
    plan = Plan([Assignment(block, LoopTier(), Chunking(4), rank=2) for block in blocks])
    return Proposing(optimizer, Agreement(Processes(layout), lambda: 0, 1)), plan, seen


def test_only_rows_that_the_batch_reads_are_proposed():
    proposing, plan, seen = proposing_of()
    pending = proposing.of_step(plan, seen)
    words, head = pending.proposals
    assert words.rows.tolist() == [2, 5]
    assert head.rows.tolist() == [0, 1, 2]
    assert [len(costs) for costs in pending.costs] == [each.candidates for each in pending.proposals]
    assert all(bool((costs == 0).all()) for costs in (*pending.costs, *pending.incumbents))
    assert [len(share) for share in pending.shares] == [each.candidates for each in pending.proposals]


def test_of_a_table_that_the_batch_does_not_read_nothing_is_proposed():
    proposing, plan, seen = proposing_of(rows=())
    assert [each.block.name for each in proposing.of_step(plan, seen).proposals] == ["head"]


def test_processes_that_divide_a_batch_propose_all_rows():
    proposing, plan, seen = proposing_of(Layout(data=Axis(0, 2)))
    words = proposing.of_step(plan, seen).proposals[0]
    assert proposing.asked(seen, words.block) is None
    assert len(words.rows) == 20


def test_processes_propose_the_same_and_divide_it():
    both = [proposing_of(Layout(candidates=Axis(rank, 2))) for rank in range(2)]
    first, second = (proposing.of_step(plan, seen) for proposing, plan, seen in both)
    for mine, others in zip(first.proposals, second.proposals, strict=True):
        assert torch.equal(mine.directions, others.directions)
        assert torch.equal(mine.rows, others.rows)
    for proposal, mine, others in zip(first.proposals, first.shares, second.shares, strict=True):
        assert sorted([*mine, *others]) == list(range(proposal.candidates))
    assert any(first.shares)
    assert any(second.shares)


def test_what_a_checkpoint_had_gathered_is_taken_up_once_and_counted_by_one_process():
    proposing, plan, seen = proposing_of()
    gathered = proposing.of_step(plan, seen)
    gathered.weight = 0.5
    for costs in gathered.costs:
        costs.add_(1)
    for rank in range(2):
        again, plan, seen = proposing_of(Layout(candidates=Axis(rank, 2)))
        again.optimizer.binding.loaded = gathered.state_dict()
        pending = again.of_step(plan, seen)
        for mine, before in zip(pending.proposals, gathered.proposals, strict=True):
            assert torch.equal(mine.directions, before.directions)
        assert all(bool((costs == float(rank == 0)).all()) for costs in pending.costs)
        assert pending.weight == (0.5 if rank == 0 else 0.0)
        assert again.of_step(plan, seen).weight == 0.0
