"""The plan gives each block the fastest tier that agrees with the loop, and says why where that is not the fastest."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_polystep.engine import Engine
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.scoring.assignment import Assignment
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.tier import Tier
from tests.helpers.parity import (
    CASES,
    INCREMENTAL,
    LOOP,
    OUTCOME,
    TAPE,
    Stacked,
    prepare,
    reference_losses,
    vectors,
)


def planned(module, closure, *, evaluation="auto", max_candidates=None, **options):
    options = {"rank": 2, "lr": 0.0, **options}
    engine = Engine(
        module,
        PolyStep(module.parameters(), seed=0, **options),
        evaluation=evaluation,
        max_candidates=max_candidates,
        announce=None,
    )
    engine.step(closure)
    return {assignment.block.name: assignment for assignment in engine.plan.assignments}, engine


def plan_of_case(case, **options):
    module = case.build().train()
    inputs, targets = case.batch()
    return planned(module, lambda: case.loss_of(module, inputs, targets), **options)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_block_gets_the_fastest_tier_that_agrees(case):
    assignments, engine = plan_of_case(case)
    assert {name: assignment.tier.name for name, assignment in assignments.items()} == case.tiers
    notes = [
        assignments[name].note for name, tier in case.tiers.items() if tier == LOOP or assignments[name].block.site
    ]
    if case.reason:
        assert any(case.reason in note for note in notes), notes
    for name, tier in case.tiers.items():
        assert (tier == LOOP) <= bool(assignments[name].reason), "a loop needs a reason"
        assert (tier in {OUTCOME, INCREMENTAL}) <= (not assignments[name].reason), "the fastest needs none"
        if tier == TAPE:
            reason = assignments[name].reason
            assert reason.startswith("not as part of a stack: ") == isinstance(engine.module, Stacked), (
                "it says why not"
            )
            assert ";" not in reason
    text = str(engine.plan)
    assert all(name[:12] in text for name in case.tiers)


def test_blocks_know_whether_their_costs_are_estimates():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 3)), torch.randn(64, 64)
    targets = torch.randint(3, (64,))
    assignments, _ = planned(network, lambda: F.cross_entropy(network(x), targets), rank=None)
    assert {name: (a.tier.name, a.block.estimated) for name, a in assignments.items()} == {
        "0": ("units", True),
        "2": ("units", True),
    }
    exact, _ = planned(network, lambda: F.cross_entropy(network(x), targets), rank=None, evaluation="loop")
    assert not any(each.block.estimated for each in exact.values())


def test_the_table_holds_the_numbers():
    _, engine = plan_of_case(CASES[0])
    assert engine.plan.last_candidates == {"0": 32, "1.weight": 16, "1.bias": 16, "4": 20, "6": 12}
    text = " ".join(str(engine.plan).split())
    assert "96 candidates per step" in text
    assert "1. not a Linear or Conv2d weight: no inputs to span" in text
    assert text.count("no inputs to span") == 1, "a note that several blocks share is printed once"


def test_loop_is_taken_when_asked_for():
    assignments, _ = plan_of_case(CASES[0], evaluation="loop")
    assert {assignment.tier.name for assignment in assignments.values()} == {LOOP}
    assert {assignment.reason for assignment in assignments.values()} == {""}, "nothing faster was asked for"


def test_the_tape_refuses_what_it_cannot_carry():
    (case,) = (case for case in CASES if case.name == "a number read from a tensor")
    with pytest.raises(RuntimeError, match=r"first cannot be scored as asked \(.*parity.py.*: use evaluation='auto'"):
        plan_of_case(case, evaluation="tape")
    assignments, _ = plan_of_case(CASES[0], evaluation="tape")
    assert assignments["0"].tier.name == TAPE
    assert not assignments["0"].note, "outcomes were not asked for"


def test_layers_that_are_never_called_say_so_where_no_tape_shows_their_inputs():
    (case,) = (case for case in CASES if case.name == "attention")
    out = plan_of_case(case)[0]["attention.out_proj"]
    assert out.block.subspace == "inputs"
    assert "not seen" not in out.note
    out = plan_of_case(case, evaluation="loop")[0]["attention.out_proj"]
    assert out.block.subspace == "gaussian"
    assert "not seen" in out.note


# Metrics in the loss.


class Scored(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(4, 3)
        self.f1, self.accuracy = MulticlassF1Score(3), MulticlassAccuracy(3, average=None)


def test_a_loss_made_of_a_metric_is_scored_by_the_loop_with_live_metrics():
    module, (inputs, targets) = Scored(), vectors()
    assignments, engine = planned(module, lambda: 1 - module.f1(module.network(inputs), targets))
    assert engine.plan.live_metrics
    assert assignments["network"].tier.name == LOOP
    assert "depends on a torchmetrics object" in assignments["network"].reason
    assert module.f1._update_count == 1


def test_a_metric_that_is_only_logged_costs_nothing():
    module, (inputs, targets) = Scored(), vectors()

    def step():
        scores = module.network(inputs)
        module.f1(scores, targets)
        return F.cross_entropy(scores, targets)

    assignments, engine = planned(module, step)
    assert not engine.plan.live_metrics
    assert assignments["network"].tier.name == TAPE
    assert module.f1._update_count == 1


def test_a_step_that_takes_a_metric_apart_works():
    """A muted metric is one NaN, and has no first class."""
    module, (inputs, targets) = Scored(), vectors()
    logged = {}

    def step():
        scores = module.network(inputs)
        logged.update({f"class {i}": value for i, value in enumerate(module.accuracy(scores, targets))})
        return F.cross_entropy(scores, targets)

    assignments, _ = planned(module, step)
    assert assignments["network"].tier.name == LOOP
    assert assignments["network"].reason
    assert len(logged) == 3
    assert module.accuracy._update_count == 1


# How many candidates.


def candidates(module, shape=(6, 4), **options):
    inputs = torch.randn(shape)
    return planned(module, lambda: module(inputs).square().mean(), rank=options.pop("rank", None), **options)


def test_an_explicit_rank_is_kept():
    _, engine = candidates(nn.Linear(4, 3), rank=3, max_candidates=1)
    assert engine.plan.last_candidates == {"": 3 * 2 * 3}


@pytest.mark.parametrize("budget", [1, 50, 500, 5000])
@pytest.mark.parametrize("polytope", ["orthoplex", "simplex", "cube"])
@pytest.mark.parametrize("particle_dim", [None, 2])
def test_without_a_rank_the_budget_is_shared_by_rows(budget, polytope, particle_dim):
    module = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 10))
    _, engine = candidates(module, max_candidates=budget, polytope=polytope, particle_dim=particle_dim)
    counts = engine.plan.last_candidates
    most = 2**4 if polytope == "cube" else 8  # one row is always probed, in four directions
    assert sum(counts.values()) <= max(budget, 2 * most)
    if budget == 5000:
        assert counts["0"] >= 30 * 5, "what the budget allows is used"


def test_a_small_budget_probes_some_rows_of_each_block():
    assignments, engine = candidates(nn.Linear(4, 100), max_candidates=80)
    assert assignments[""].most_rows == 10
    assert engine.plan.last_candidates == {"": 80}
    assert "10 of 100" in str(engine.plan)


@pytest.mark.parametrize("max_candidates", [7, 60, None])
@pytest.mark.parametrize("rotations", [1, 3])
@pytest.mark.parametrize("particle_dim", [None, 2])
@pytest.mark.parametrize("polytope", ["orthoplex", "simplex"])
@pytest.mark.parametrize("subspace", ["inputs", "gaussian", "full", "flips"])
def test_the_plan_counts_what_a_step_proposes(subspace, polytope, particle_dim, rotations, max_candidates):
    network = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3, bias=False))
    options = {"polytope": polytope, "particle_dim": particle_dim, "rotations": rotations, "subspace": subspace}
    _, engine = candidates(network, (6, 5), max_candidates=max_candidates, **options)
    assert engine.optimizer.progress.candidates == sum(engine.plan.last_candidates.values()) > 0


def test_the_loop_is_given_fewer_candidates():
    by_loop, by_tape = (
        sum(candidates(nn.Linear(50, 40), (60, 50), evaluation=e)[1].plan.last_candidates.values())
        for e in ("loop", "auto")
    )
    assert 0 < by_loop <= 256 < by_tape <= 16_384


def spiking_case():
    (case,) = (case for case in CASES if case.name == "hard LIF and its loss")
    return case


def test_outcomes_are_given_full_rank_unless_the_budget_is_set():
    _, engine = plan_of_case(spiking_case(), rank=None)
    assert engine.plan.last_candidates == {"network.1": 6 * 2 * 5, "network.3": 3 * 2 * 7}
    _, engine = plan_of_case(spiking_case(), rank=None, rotations=2)
    assert engine.plan.last_candidates == {"network.1": 6 * 2 * 2 * 5, "network.3": 3 * 2 * 2 * 7}
    assert "7 x 2" in str(engine.plan)
    _, engine = plan_of_case(spiking_case(), rank=None, max_candidates=40)
    assert 0 < sum(engine.plan.last_candidates.values()) <= 40


def test_outcomes_are_scored_in_one_go():
    assignments, _ = plan_of_case(spiking_case())
    assert assignments["network.1"].chunking.size > 10**9
    assert assignments["network.3"].chunking.size > 10**9


def test_chunks_follow_the_memory_budget():
    def chunk(budget):
        module, inputs = nn.Linear(4, 100), torch.randn(50, 4)
        optimizer = PolyStep(module.parameters(), seed=0, rank=2)
        engine = Engine(module, optimizer, memory_budget=budget, announce=None)
        engine.step(lambda: module(inputs).square().mean())
        return engine.plan.assignments[0].chunking.size

    assert chunk(1) < chunk(2**18) < chunk(2**30)


# When a tier fails later.


class Failing(Tier):
    """A tier whose memory or patience ends."""

    name = "tape"

    def __init__(self, error, room=0):
        self.error, self.room = error, room

    def score(self, proposal, probe, start, stop):
        if stop - start > self.room:
            raise self.error
        return LoopTier().score(proposal, probe, start, stop)


@pytest.fixture
def prepared():
    return prepare(CASES[0])


def test_a_tier_that_runs_out_of_memory_takes_smaller_chunks(prepared):
    proposal = prepared.proposals["0"]
    tier = Failing(torch.OutOfMemoryError("CUDA out of memory"), room=3)
    assignment = Assignment(proposal.block, tier, Chunking(6))
    with prepared.probe.isolated(), pytest.warns(UserWarning, match="evaluating 3 candidates at once") as caught:
        losses = assignment.score(proposal, prepared.probe, range(proposal.candidates))
    assert len(caught) == 1
    assert assignment.tier is tier
    assert torch.equal(losses, reference_losses(prepared, proposal))


@pytest.mark.filterwarnings("ignore:Out of memory")
def test_memory_for_not_even_one_candidate_is_an_error(prepared):
    proposal = prepared.proposals["0"]
    assignment = Assignment(proposal.block, Failing(torch.OutOfMemoryError("CUDA out of memory")), Chunking(6))
    with prepared.probe.isolated(), pytest.raises(torch.OutOfMemoryError):
        assignment.score(proposal, prepared.probe, range(proposal.candidates))


def test_a_tier_that_fails_steps_down_to_the_loop_once_with_a_warning(prepared):
    proposal = prepared.proposals["0"]
    assignment = Assignment(proposal.block, Failing(RuntimeError("no batching rule\nmore")), Chunking(6))
    with prepared.probe.isolated():
        with pytest.warns(UserWarning, match=r"0: tape failed: RuntimeError: no batching rule\. Scoring it one"):
            losses = assignment.score(proposal, prepared.probe, range(proposal.candidates))
        assert torch.equal(losses, reference_losses(prepared, proposal))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assignment.score(proposal, prepared.probe, range(2))
    assert assignment.tier.name == LOOP
    assert "no batching rule" in assignment.note


def test_outcomes_that_fail_leave_no_more_candidates_than_a_loop_can_afford():
    case = spiking_case()
    assignments, _ = plan_of_case(case, rank=None)
    prepared = prepare(case)
    proposal, assignment = prepared.proposals["network.1"], assignments["network.1"]
    assert assignment.rank * assignment.block.rows > 256
    assignment.tier = Failing(RuntimeError("lost"))
    with prepared.probe.isolated(), pytest.warns(UserWarning, match="one candidate at a time"):
        assignment.score(proposal, prepared.probe, range(2))
    rank = min(assignment.rank, assignment.block.dim)
    assert 2 * rank * (assignment.most_rows or assignment.block.rows) <= 256


def test_a_large_chunk_that_runs_out_of_memory_is_halved_from_what_was_tried(prepared):
    proposal = prepared.proposals["0"]
    tier = Failing(torch.OutOfMemoryError("CUDA out of memory"), room=proposal.candidates // 2)
    assignment = Assignment(proposal.block, tier, Chunking(2**60))
    with prepared.probe.isolated(), pytest.warns(UserWarning, match="candidates at once") as caught:
        assignment.score(proposal, prepared.probe, range(proposal.candidates))
    assert len(caught) == 1


def test_an_error_of_the_loop_is_the_users_own(prepared):
    proposal = prepared.proposals["0"]

    def fail():
        raise ArithmeticError("user code")

    prepared.probe.evaluate = fail
    assignment = Assignment(proposal.block, LoopTier(), Chunking(6))
    with prepared.probe.isolated(), pytest.raises(ArithmeticError, match="user code"):
        assignment.score(proposal, prepared.probe, range(2))


def test_a_part_of_the_candidates_is_scored_as_in_the_whole(prepared):
    proposal = prepared.proposals["0"]
    expected = reference_losses(prepared, proposal)
    for size in (1, 7, 1000):
        assignment = Assignment(proposal.block, prepared.tape_tier("0"), Chunking(size))
        with prepared.probe.isolated():
            part = assignment.score(proposal, prepared.probe, range(3, 11))
        torch.testing.assert_close(part, expected[3:11], rtol=1e-12, atol=1e-14)


# A step that leaves the tape on some batches.


class Leaving(nn.Module):
    """Its loss leaves torch on every second batch."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        self.batches = 0

    def forward(self, inputs, targets):
        self.batches += 1
        loss = F.mse_loss(
            self.network(inputs), F.one_hot(targets, 3).float()
        )  # scores of a softmax only the tape knows
        return torch.tensor(float(loss)) if self.batches % 2 == 0 else loss


def fitted(evaluation, steps=5, **options):
    torch.manual_seed(0)
    module, engine, counts, told = Leaving(), None, [], []
    optimizer = PolyStep(module.parameters(), lr=0.1, seed=0, **options.pop("group", {}))
    engine = Engine(module, optimizer, evaluation=evaluation, announce=None, **options)
    for _ in range(steps):
        inputs, targets = torch.randn(6, 4), torch.randint(3, (6,))
        before = optimizer.progress.candidates
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            engine.step(lambda: module(inputs, targets))  # noqa: B023 - called before the next batch comes
        counts.append(optimizer.progress.candidates - before)
        told.append([str(each.message) for each in caught])
    return module, engine, counts, told


def test_a_batch_that_is_not_on_the_tape_is_scored_by_the_loop_and_the_next_one_from_the_tape():
    module, engine, counts, told = fitted("auto", max_candidates=60)
    assert len(set(counts)) == 1, "the budget is kept"
    assert {assignment.tier.name for assignment in engine.plan.assignments} == {TAPE}
    assert [len(each) for each in told] == [0, 2, 0, 0, 0], "each block says so once"
    assert all("on this batch and on others like it; docs/design.md" in text for text in told[1])
    other, *_ = fitted("loop", max_candidates=60)
    for name, value in module.named_parameters():
        torch.testing.assert_close(value, other.get_parameter(name), rtol=1e-4, atol=1e-5)
    assert module.batches == 5


@pytest.mark.parametrize("max_candidates", [None, 400])
def test_where_the_loop_is_dear_all_blocks_that_fail_share_one_budget(max_candidates):
    _, engine, counts, told = fitted(
        "auto", max_candidates=max_candidates, group={"particle_dim": 1, "rotations": 8, "response_grid": 0}
    )
    assert counts[0] > 256
    assert {assignment.tier.name for assignment in engine.plan.assignments} == {LOOP}
    assert all("from now on" in text for text in told[1])
    assert 0 < counts[2] <= 256
    assert counts[2] == counts[3] == counts[4]
