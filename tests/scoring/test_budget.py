"""Blocks divide a step's budget: cheap ones have all their directions, dear ones take turns."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.blocks import find_blocks
from lightning_polystep.scoring.assignment import Assignment
from lightning_polystep.scoring.budget import fill, share_candidates
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.tier import Tier


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_nobody_gets_more_than_wanted_and_nothing_is_left_that_somebody_wants(wanted):
    shares = fill(wanted)
    assert all(0 <= share <= want + 1e-12 for share, want in zip(shares, wanted, strict=True))
    assert sum(shares) == pytest.approx(min(1.0, sum(wanted)))
    short = [share for share, want in zip(shares, wanted, strict=True) if share < want - 1e-9]
    assert not short or min(short) >= max(shares) - 1e-9, "who gets less than wanted gets no less than any other"


@dataclass
class Priced(Tier):
    """A tier that affords so many candidates, or rows."""

    candidates: int | None = None
    rows: int | None = None
    fills_budget = True
    name = "priced"

    def affordable(self):
        return self.candidates

    def affordable_rows(self):
        return self.rows


@dataclass
class Step:
    """What blocks of a step came out with."""

    tiers: list[Tier]
    group: dict[str, Any] = field(default_factory=dict)
    max_candidates: int | None = None

    def shared(self) -> list[Assignment]:
        layers = nn.ModuleList([nn.Linear(19, 10) for _ in self.tiers])
        blocks = find_blocks(layers, PolyStep(layers.parameters(), seed=0, **self.group).param_groups)
        made = [Assignment(b, t, Chunking(1), place=i) for i, (b, t) in enumerate(zip(blocks, self.tiers, strict=True))]
        share_candidates(made, self.max_candidates)
        return made


def test_a_cheap_block_has_all_its_directions_and_the_others_the_rest():
    cheap, dear = Step([Priced(100_000), Priced(1_000)]).shared()
    assert (cheap.rank, cheap.most_rows, cheap.period) == (20, None, 1)
    assert (dear.rank, dear.most_rows, dear.period) == (20, None, 1), "400 of 1,000"
    cheap, dear = Step([Priced(100_000), Priced(100)]).shared()
    assert (cheap.rank, dear.rank, dear.most_rows, dear.period) == (20, 4, None, 1), "80 candidates of 100"


def test_what_is_too_dear_for_every_step_takes_turns():
    first, second = Step([Priced(2), Priced(2)]).shared()
    assert first.rank == second.rank == 4
    assert first.most_rows == second.most_rows == 1
    assert first.period == second.period == 8, "8 candidates at half of 2 a step"
    due = [[assignment.is_due(step) for step in range(16)] for assignment in (first, second)]
    assert [sum(each) for each in due] == [2, 2]
    assert due[0] != due[1]


def test_a_tiny_network_has_all_its_candidates():
    layers = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 2)])
    blocks = find_blocks(layers, PolyStep(layers.parameters(), seed=0).param_groups)
    made = [Assignment(block, Priced(2), Chunking(1), place=place) for place, block in enumerate(blocks)]
    share_candidates(made, None)
    assert [(each.rank, each.most_rows, each.period) for each in made] == [(3, None, 1), (4, None, 1)]


def test_rows_of_a_grid_are_bought_in_the_same_way():
    some, rare = Step([Priced(None, rows=10), Priced(None, rows=1)]).shared()
    assert (some.most_rows, some.period, some.rank) == (5, 1, 128)
    (whole,) = Step([Priced(None, rows=25)]).shared()
    assert (whole.most_rows, whole.period) == (None, 1)
    assert (rare.most_rows, rare.period) == (1, 2)


def test_a_rank_that_was_asked_for_is_kept():
    (assignment,) = Step([Priced(2)], {"rank": 7}).shared()
    assert (assignment.rank, assignment.most_rows, assignment.period) == (7, None, 1)


def test_candidates_that_were_asked_for_are_shared_by_rows():
    first, second = Step([Priced(2), Priced(10**6)], max_candidates=400).shared()
    assert (first.rank, second.rank) == (10, 10)
    assert first.most_candidates == second.most_candidates == 200


def test_a_block_moves_in_its_turn_only():
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(16, 4), torch.randint(3, (16,))
    engine = Engine(net, PolyStep(net.parameters(), seed=0), announce=None)
    step = lambda: engine.step(lambda: nn.functional.cross_entropy(net(x), y))  # noqa: E731
    step()
    first = engine.plan.assignments[0]
    first.period = 3
    moved = []
    for number in range(1, 8):
        before = [net[0].weight.detach().clone(), net[2].weight.detach().clone()]
        step()
        moved.append(not torch.equal(before[0], net[0].weight))
        assert not torch.equal(before[1], net[2].weight)
        assert moved[-1] == first.is_due(number)
    assert sum(moved) == 2
    assert "1 step in 3" in " ".join(str(engine.plan).split())


def test_a_block_that_takes_turns_counts_as_often_as_it_is_probed():
    net, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(16, 4)
    engine = Engine(net, PolyStep(net.parameters(), seed=0), announce=None)
    engine.step(lambda: net(x).square().mean())
    plan = engine.plan
    first, _ = plan.assignments
    first.period = 3
    counts = plan.last_candidates
    assert plan.candidates == round(counts["0"] / 3 + counts["2"]) < sum(counts.values())
    text = " ".join(str(plan).split())
    assert f"{plan.candidates:,} candidates per step on average" in text
    rows = 100 * (6 / 3 + 3) / 9
    assert f"a step probes {rows:.2g} % of the rows" in text


def test_what_the_loop_takes_over_from_a_block_that_took_turns_is_what_a_step_spent_on_it():
    class Dear(Priced):
        name, reads_tape, fills_budget = "dear", False, True

        def score(self, *_):
            raise RuntimeError("not today")

    step = Step([Dear(2), Dear(2)])
    made = step.shared()
    assert all(each.period > 1 for each in made)
    for each in made:
        each.peers, each.planned = made, -(-each.most_candidates // each.period)
    made[0].step_down("failed")
    assert made[0].period == 1
    assert made[0].most_candidates <= 2 * 4 * 2


@pytest.mark.parametrize(("numbers", "all_of_them"), [(0, True), (1e4, True), (1e8, False)])
def test_few_candidates_are_all_scored_unless_they_compute_too_much(numbers, all_of_them):
    """As those of norms of whole batches behind convolutions do."""

    class Worked(Priced):
        def work_of_budget(self):
            return numbers

    layers = nn.ModuleList([nn.Linear(1, 2), nn.Linear(1, 2)])  # 16 candidates
    blocks = find_blocks(layers, PolyStep(layers.parameters(), seed=0).param_groups)
    made = [Assignment(block, Worked(2), Chunking(1), place=place) for place, block in enumerate(blocks)]
    share_candidates(made, None)
    assert all((each.period == 1 and each.most_rows is None) == all_of_them for each in made)


def test_a_tier_may_say_how_many_directions_are_nearly_free():
    class Narrow(Priced):
        def most_directions(self):
            return 3

    narrow, wide = Step([Narrow(rows=100), Priced(rows=100)]).shared()
    assert narrow.rank == 3
    assert wide.rank > 3
