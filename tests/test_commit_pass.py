"""The commit pass: what it keeps for probes, and which micro-batches are not fit to be scored."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.agreement import Agreement
from lightning_polystep.commit_pass import CommitPass
from lightning_polystep.input_learning import InputLearning
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.processes import Processes
from lightning_polystep.scoring.plan import Plan
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.trained import Trained
from models import BinaryMLP, Classifier, SpikingMLP
from tests.helpers.engines import digest, engine_of, problem

NOISE_KEY = (0, 0, 0)


def commit_pass_of(module):
    optimizer = PolyStep(module.parameters(), seed=0)
    inputs = InputLearning(optimizer, Agreement(Processes(), lambda: 0, 1))
    trained = Trained(module, optimizer, recognises=True)
    trained.follow(planned=False)
    inputs.follow(trained.blocks)
    return CommitPass(trained, inputs, Recording()), optimizer


@pytest.mark.parametrize("records", [False, True])
def test_it_learns_inputs_and_records_where_it_is_asked_to(records):
    module, x = nn.Linear(6, 3), problem()[0]
    commit_pass, optimizer = commit_pass_of(module)
    with commit_pass.running(NOISE_KEY, None, None, records=records):
        assert commit_pass.runs
        assert not module(x).requires_grad
    assert not commit_pass.runs
    assert [known.batches for known in optimizer.statistics.values()] == [1]
    assert (commit_pass.recording.tape is not None) == records


def test_a_pass_that_fails_is_over():
    commit_pass, optimizer = commit_pass_of(nn.Linear(6, 3))

    def broken_pass():
        with commit_pass.running(NOISE_KEY, None, None, records=True):
            raise KeyError("broken")

    with pytest.raises(KeyError):
        broken_pass()
    assert not commit_pass.runs
    assert commit_pass.recording.tape is None
    assert optimizer.statistics == {}


def test_where_the_step_began_is_remembered_until_a_plan_does_without():
    module = nn.BatchNorm1d(2)
    commit_pass, _ = commit_pass_of(module)
    with commit_pass.running(NOISE_KEY, None, None, records=False):
        module(torch.randn(8, 2))
    assert module.num_batches_tracked == 1
    commit_pass.before.restore()
    assert module.num_batches_tracked == 0
    commit_pass.remember(None, Plan([]))
    assert commit_pass.before is None


def test_noise_is_a_function_of_its_key():
    commit_pass, _ = commit_pass_of(nn.Linear(1, 1))
    drawn = []
    for key in ((0, 1, 0), (0, 1, 0), (0, 2, 0)):
        with commit_pass.running(key, None, None, records=False):
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("loss", "cause"), [(1.0, None), (float("nan"), "loss"), (float("inf"), "loss")])
def test_a_loss_that_is_not_finite_is_unfit(loss, cause):
    commit_pass, _ = commit_pass_of(nn.Linear(1, 1))
    problem_of = commit_pass.unfit(torch.tensor(loss))
    assert (problem_of and problem_of[0]) == cause


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_moves_nothing_and_is_counted(bad):
    module, (inputs, targets) = nn.Linear(6, 3), problem()
    engine, scale = engine_of(module), 1.0

    def closure():
        return scale * F.cross_entropy(module(inputs), targets)

    engine.step(closure)
    before, moment = digest(module), engine.optimizer.state[module.weight]["momentum_buffer"].clone()
    scale = bad
    with pytest.warns(UserWarning, match="loss of a batch is not finite") as caught:
        skipped = [engine.step(closure) for _ in range(3)]
    assert not torch.isfinite(torch.stack(skipped)).any()
    assert len(caught) == 1
    assert digest(module) == before
    assert torch.equal(engine.optimizer.state[module.weight]["momentum_buffer"], moment)
    assert (engine.optimizer.progress.skipped, engine.optimizer.progress.step) == (3, 4)
    scale = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.step(closure)
    assert digest(module) != before


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (lambda: SpikingMLP((6, 5, 3)), r"network\.2"),
        (lambda: BinaryMLP((6, 5, 3)), r"network\.1"),
    ],
)
def test_hard_layers_hide_no_broken_sample(build, layer):
    """Their loss is finite all the same; a network that is scored as a stack stays one."""
    module, (inputs, targets) = Classifier(build(), 3), problem()
    engine = engine_of(module)
    broken = inputs.clone()
    broken[0, 0] = torch.nan
    before = digest(module)
    with pytest.warns(UserWarning, match=f"{layer} got inputs that are not finite.*moves nothing") as caught:
        losses = [engine.step(lambda: module.criterion(module.network(broken), targets)) for _ in range(2)]
    assert len(caught) == 1
    assert torch.isfinite(torch.stack(losses)).all()
    assert digest(module) == before
    assert (engine.optimizer.progress.skipped, engine.optimizer.progress.step) == (2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.step(lambda: module.criterion(module.network(inputs), targets))
    assert digest(module) != before
    assert {assignment.tier.name for assignment in engine.plan.assignments} == {"outcome"}


def test_a_broken_sample_that_the_user_masks_is_no_business_of_ours():
    module, (inputs, targets) = nn.Linear(6, 3), problem()
    inputs[0] = torch.nan
    engine = engine_of(module)
    losses = [float(engine.step(lambda: F.cross_entropy(module(inputs)[1:], targets[1:]))) for _ in range(5)]
    assert engine.optimizer.progress.skipped == 0
    assert losses[-1] < losses[0]


def test_inputs_that_are_not_finite_do_not_poison_the_basis():
    module, (inputs, targets) = nn.Linear(6, 3), problem()
    broken = inputs.clone()
    broken[0, 0] = float("nan")
    engine = engine_of(module)
    with pytest.warns(UserWarning, match="not finite"):
        engine.step(lambda: F.cross_entropy(module(broken), targets))
    losses = [float(engine.step(lambda: F.cross_entropy(module(inputs), targets))) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_one_bad_micro_batch_of_two_is_left_out():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 3), nn.Linear(6, 3)
    second.load_state_dict(first.state_dict())
    inputs = problem()[0]

    def gather(module, *scales):
        engine = engine_of(module)
        for scale in scales:

            def evaluate(scale=scale):
                return scale * module(inputs).square().mean()

            with engine.observing():
                loss = evaluate()
            engine.probe(evaluate, loss, samples=len(inputs))
        assert engine.optimizer.progress.micro_batch == len(scales), "each has noise of its own"
        engine.optimizer.step()
        return engine.optimizer.progress

    with pytest.warns(UserWarning, match="not finite"):
        progress = gather(first, 1.0, float("nan"))
    alone = gather(second, 1.0)
    assert digest(first) == digest(second)
    assert (progress.skipped, alone.skipped) == (1, 0)
    assert progress.candidates == alone.candidates
