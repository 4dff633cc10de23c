"""Plans: of which blocks what is found out on the first micro-batch, and what making one leaves behind."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.agreement import Agreement
from lightning_polystep.commit_pass import CommitPass
from lightning_polystep.input_learning import InputLearning
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.planning import Planning
from lightning_polystep.processes import Processes
from lightning_polystep.proposing import Proposing
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.trained import Trained
from tests.helpers.engines import engine_of, network, problem

NOISE_KEY = (0, 0, 0)


def planned(module, closure, evaluation, max_candidates=None):
    """Make a plan after one commit pass; return it with what it was made of."""
    optimizer, agreement = PolyStep(module.parameters(), seed=0), Agreement(Processes(), lambda: 0, 1)
    inputs, trained = InputLearning(optimizer, agreement), Trained(module, optimizer, recognises=evaluation == "auto")
    trained.follow(planned=False)
    inputs.follow(trained.blocks)
    commit_pass = CommitPass(trained, inputs, Recording())
    with commit_pass.running(NOISE_KEY, closure, None, records=False):
        loss = closure()
    known = {name: vars(each) | {} for name, each in optimizer.statistics.items()}
    proposing = Proposing(optimizer, agreement)
    planning = Planning(optimizer, trained, commit_pass, proposing, evaluation, 2**28, max_candidates)
    with torch.no_grad():
        plan = planning.make(Probe(module, closure, NOISE_KEY, before=commit_pass.before))
    return plan, commit_pass, loss, known, optimizer


def task():
    torch.manual_seed(0)
    module, (x, y) = network(), problem()
    return module, lambda: F.cross_entropy(module(x), y)


@pytest.mark.parametrize(("evaluation", "records"), [("tape", True), ("loop", False)])
def test_a_step_that_was_not_recorded_is_where_the_tape_is_asked_for(evaluation, records):
    module, closure = task()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    plan, commit_pass, loss, *_ = planned(module, closure, evaluation, max_candidates=60)
    assert (commit_pass.recording.tape is not None) == records
    assert {each.tier.reads_tape for each in plan.assignments} == {records}
    if records:
        recorded = commit_pass.recording.tape.values[commit_pass.recording.loss].tensor
        assert torch.equal(recorded, loss), "recorded where the commit pass began, on its noise"
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name])


def test_what_is_known_of_inputs_is_as_before():
    module, closure = task()
    *_, known, optimizer = planned(module, closure, "loop", max_candidates=60)
    assert known
    for name, before in known.items():
        for field, value in vars(optimizer.statistics[name]).items():
            assert torch.equal(value, before[field]) if isinstance(value, torch.Tensor) else value == before[field]


def test_a_layer_that_was_not_reached_is_searched_at_random():
    module, (x, y) = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)]), problem()
    plan, *_ = planned(module, lambda: F.cross_entropy(module[0](x), y), "loop", max_candidates=60)
    assert [each.block.subspace for each in plan.assignments] == ["inputs", "gaussian"]
    assert plan.candidates == sum(plan.last_candidates.values()) > 0


@pytest.mark.parametrize(
    ("build", "reason"), [(network, "no block is scored as part of a stack"), (None, "no cross-entropy")]
)
def test_importance_sampling_without_effect_says_so_once(build, reason):
    torch.manual_seed(0)
    inputs, targets = problem()
    if build is None:
        module = nn.Module()
        module.network, module.criterion = nn.Linear(6, 3), nn.MSELoss()
        targets = F.one_hot(targets, 3).float()

        def loss():
            return module.criterion(module.network(inputs), targets)
    else:
        module = build()

        def loss():
            return F.cross_entropy(module(inputs), targets)

    engine = engine_of(module, optimizer=PolyStep(module.parameters(), seed=0, rank=2, importance_sampling=0.5))
    with pytest.warns(UserWarning, match=f"importance_sampling has no effect.*{reason}"):
        engine.step(loss)
    engine.step(loss)  # a second warning would be an error
    assert reason in str(engine.plan)
