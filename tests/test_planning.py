"""Plans: of which blocks what is found out on the first micro-batch, and what making one leaves behind."""

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from lightning_polystep import Engine
from lightning_polystep.agreement import Agreement
from lightning_polystep.commit_pass import CommitPass
from lightning_polystep.input_learning import InputLearning
from lightning_polystep.layers import QuantLinear
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.planning import Planning
from lightning_polystep.processes import Processes
from lightning_polystep.proposing import Proposing
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.trained import Trained
from tests.helpers.binary import binary_net
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


def digits():
    data = load_digits()
    return torch.tensor(data.data[:256] / 16).float(), torch.tensor(data.target[:256])


def flipping(net, x, y, **options):
    """Return an engine for a network of binary weights, and what makes a step of it."""
    engine = Engine(net, PolyStep(net.parameters(), seed=0, **options), announce=None)
    scale = 1.0 if isinstance(net[1], nn.BatchNorm1d) else 0.2
    return engine, lambda: F.cross_entropy(scale * net(x), y)


def subspaces(engine):
    return {each.block.name: each.block.subspace for each in engine.plan.assignments}


FLIPPED = {f"{layer}.parametrizations.weight.original": "signs" for layer in (0, 3)}


@pytest.mark.parametrize("bias", [True, False])
def test_weights_that_act_by_their_signs_are_flipped_and_learn(bias):
    torch.manual_seed(0)
    (x, y), net = digits(), binary_net(bias, norm=not bias)
    engine, closure = flipping(net, x, y)
    losses = [float(engine.step(closure)) for _ in range(20)]
    found = subspaces(engine)
    assert FLIPPED.items() <= found.items()
    assert (found.get("0.bias") == "full") == bias
    (first,) = (each for each in engine.plan.assignments if each.block.name == "0.parametrizations.weight.original")
    assert first.tier.name == "units"
    assert first.candidates(None) == 64 * 64 * 2
    assert first.note.startswith("its weights act by their signs alone, so each is flipped")
    assert not {"0", "3", *FLIPPED} & engine.optimizer.statistics.keys(), "nobody asks what their inputs are"
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("options", [{"rank": 4}, {"response_grid": 0}, {"subspace": "gaussian"}])
def test_they_are_not_where_somebody_asks_for_something_else(options):
    torch.manual_seed(0)
    (x, y), net = digits(), binary_net()
    engine, closure = flipping(net, x, y, **options)
    engine.step(closure)
    assert "signs" not in subspaces(engine).values()


def test_nor_where_samples_have_no_loss_of_their_own():
    torch.manual_seed(0)
    (x, y), net = digits(), binary_net()
    engine, _ = flipping(net, x, y)
    engine.step(lambda: net(x).std(0).sum() + F.cross_entropy(net(x), y).square())
    assert subspaces(engine)["0.parametrizations.weight.original"] == "inputs"


def test_other_weights_of_the_same_network_stay_as_they_are():
    torch.manual_seed(0)
    (x, y), net = digits(), binary_net()
    net[3] = nn.Linear(64, 10)
    engine, closure = flipping(net, x, y)
    engine.step(closure)
    assert subspaces(engine)["3"] == "inputs"
    assert FLIPPED["0.parametrizations.weight.original"] == "signs"
    assert engine.optimizer.statistics.keys() == {"3"}


def test_a_run_that_flips_weights_is_resumed_to_the_bit():
    torch.manual_seed(0)
    (x, y), straight = digits(), binary_net(norm=True)
    stopped = copy.deepcopy(straight)

    def run(net, steps, state=None):
        engine, closure = flipping(net, x, y)
        if state is not None:
            engine.optimizer.load_state_dict(copy.deepcopy(state))
        for _ in range(steps):
            engine.step(closure)
        return engine.optimizer.state_dict()

    run(straight, 5)
    resumed = copy.deepcopy(stopped)
    state = run(stopped, 3)
    resumed.load_state_dict(stopped.state_dict())
    run(resumed, 2, state)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_a_stack_of_the_packages_own_binary_layers_keeps_its_way_of_being_scored():
    torch.manual_seed(0)
    task, (x, y) = nn.Module(), digits()
    task.network = nn.Sequential(QuantLinear(64, 16, weight_format="binary"), nn.ReLU(), nn.Linear(16, 10))
    task.criterion = nn.CrossEntropyLoss()
    engine = Engine(task, PolyStep(task.parameters(), seed=0), announce=None)
    engine.step(lambda: task.criterion(task.network(x), y))
    assert subspaces(engine)["network.0"] == "inputs"
